"""Names that a user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST = 3
"""Names that are offered."""

ALIKE = 0.6
"""Share of common letters from which on a name is offered."""


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that ``name`` may have been meant for, the likeliest first; of equally likely ones the earlier.

    The part before a slash or dot may be left out: ``"layernorm"`` finds ``"norms/layer_norm"``.

    Examples
    --------
    >>> nearest("layernorm", ["norms/group_norm", "norms/layer_norm", "softmax/two_pass"])
    ['norms/layer_norm']
    """

    def likeness(candidate: str) -> float:
        short = candidate.replace(".", "/").split("/")[-1]
        return max(difflib.SequenceMatcher(None, name, text).ratio() for text in (candidate, short))

    close = sorted(known, key=likeness, reverse=True)[:MOST]
    return [candidate for candidate in close if likeness(candidate) >= ALIKE]


def got(name: str, known: Iterable[str]) -> str:
    """Describe an unknown name for an error: itself, and the nearest ones in parentheses.

    Examples
    --------
    >>> got("layernorm", ["norms/layer_norm"])
    "'layernorm' (nearest: norms/layer_norm)"
    """
    names = ", ".join(nearest(name, known))
    shown = f"{name!r:.80}"
    return f"{shown} (nearest: {names})" if names else shown
