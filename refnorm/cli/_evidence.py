"""How measured claims are shown."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def verdict(claim: dict[str, Any]) -> tuple[str, str]:
    """Return what came out, in words, and the colour to say it in."""
    if claim["holds"]:
        return ("holds", "green") if claim["as_stated"] else ("holds, though the book says that it does not", "red")
    return ("does not show in miniature", "yellow") if claim["as_stated"] else ("does NOT hold", "red")


def show_claims(out: "Console", claims: Sequence[dict[str, Any]]) -> None:
    """Print each claim with its verdict, its margin and its figures."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    for claim in claims:
        words, colour = verdict(claim)
        out.print(Padding(Text.assemble((f"[{words}] ", colour), claim["statement"]), (0, 0, 0, 2), expand=False))
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        table.add_row("expected", claim["expected"])
        for name, value in claim["figures"]:
            table.add_row(name, f"{value:.6g}" if isinstance(value, float) else str(value))
        if claim["refuted"]:
            table.add_row("why not", claim["refuted"])
        out.print(Padding(table, (0, 0, 0, 6), expand=False))


def as_json(method: str, claims: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Describe a method's measured claims for a program."""
    return {
        "method": method,
        "seconds": seconds,
        "claims": [claim | {"figures": dict(claim["figures"])} for claim in claims],
    }
