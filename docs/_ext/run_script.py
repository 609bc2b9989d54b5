"""Run one evidence script in a process of its own and write down what it measured.

    python run_script.py ROOT SCRIPT FOLDER

calls the script's ``claims()`` and ``figure()``, whichever it has, and leaves ``result.json`` and the drawings
in FOLDER. ``result.json`` also lists every source file of the project that was imported, with a digest, so that
the caller can tell when a result is out of date.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

SOURCES = ("refnorm", "refnorm_fast", "tests", "docs")
LARGEST_SVG = 600_000
"""Bytes above which a drawing is stored as pixels: thousands of marks are slower to draw than to show."""

STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#8a8a8a",
    "grid.alpha": 0.25,
    "font.size": 11.0,
    "legend.frameon": False,
    "svg.hashsalt": "refnorm",
    "svg.fonttype": "path",
    "figure.dpi": 100,
}
"""Drawings have no background of their own; the page's shows through."""

ON_DARK = {
    "#000000": "#d9dce1",
    "#0f0f0f": "#d9dce1",
    "#262626": "#d9dce1",
    "#1f77b4": "#5aa9e6",
    "#d62728": "#ff6b6b",
    "#9467bd": "#b794e0",
    "#8c564b": "#c08a7d",
}
"""Colours that fade on a dark page, and what stands for them there."""


def digest(path: Path) -> str:
    """Return a digest of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def versions() -> dict[str, str]:
    """Return the releases that can change a measured figure."""
    found = {"python": sys.version.split()[0], "runner": digest(Path(__file__))}
    for name in ("numpy", "scipy", "matplotlib", "scikit-learn"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def plain(value: Any) -> float | int | str | bool:
    """Return a Python number or string for a NumPy one."""
    return value.item() if hasattr(value, "item") else value


def draw(module: Any, folder: Path) -> dict[str, Any] | None:
    """Call ``figure()`` and save it, once for light and once for dark pages."""
    if not hasattr(module, "figure"):
        return None
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("Agg")
    with matplotlib.rc_context(STYLE):
        figure = module.figure()
        figure.savefig(folder / "light.svg", metadata={"Date": None})
        svg = (folder / "light.svg").read_text()
        text = inspect.cleandoc(module.figure.__doc__ or "")
        drawing = {"description": text, "files": {"light": "light.svg", "dark": "dark.svg"}}
        if len(svg) > LARGEST_SVG:
            (folder / "light.svg").unlink()
            figure.savefig(folder / "both.png", dpi=160, facecolor="white")
            drawing["files"] = {"both": "both.png"}
        else:
            dark = re.sub(r"#[0-9a-f]{6}\b", lambda colour: ON_DARK.get(colour[0], colour[0]), svg)
            # A glyph without a fill of its own is black; the root's colour is inherited by all of them.
            dark = dark.replace("<svg ", f'<svg fill="{ON_DARK["#000000"]}" ', 1)
            (folder / "dark.svg").write_text(dark)
        plt.close(figure)
    return drawing


def main() -> int:
    root, script, folder = (Path(argument).resolve() for argument in sys.argv[1:4])
    sys.path[:0] = [str(root), str(root / "tests")]
    spec = importlib.util.spec_from_file_location("evidence_script", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling look a module up by its name.
    sys.modules["evidence_script"] = module
    start = time.perf_counter()
    spec.loader.exec_module(module)
    claims = [
        {
            "statement": claim.statement,
            "expected": claim.expected,
            "holds": bool(claim.holds),
            "as_stated": bool(claim.as_stated),
            "refuted": claim.refuted,
            "figures": [[name, plain(value)] for name, value in claim.figures.items()],
        }
        for claim in (module.claims() if hasattr(module, "claims") else ())
    ]
    drawing = draw(module, folder)
    imported = {Path(m.__file__).resolve() for m in list(sys.modules.values()) if getattr(m, "__file__", None)}
    allowed = [root / name for name in SOURCES]
    # Data files that the script reads: it names them in DATA_FILES, relative to the checkout.
    imported |= {root / name for name in getattr(module, "DATA_FILES", ())}
    inputs = {
        path.relative_to(root).as_posix(): digest(path)
        for path in sorted({script, *imported})
        if any(path.is_relative_to(top) for top in allowed) and path.is_file()
    }
    result = {
        "claims": claims,
        "drawing": drawing,
        "seconds": round(time.perf_counter() - start, 1),
        "inputs": inputs,
        "versions": versions(),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1, allow_nan=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
