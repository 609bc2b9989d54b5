"""Figures that the reader moves: ``{interactive} PATH``, a script below ``docs`` as for ``{drawing}``.

The script has two functions. ``data()`` computes what the page needs, from the running code, as plain lists, dictionaries,
numbers and strings; ``figure()`` draws the picture for paper. Both are made again when a module of the project changes that the
script imports at its top. The stem of PATH names the script
``_static/interactive/STEM.js`` that turns the data into a figure. Only HTML pages get it; without scripts, and in every
other format, there is the picture.
"""

from __future__ import annotations

import html
import importlib.util
import json
from pathlib import Path
from typing import Any

from docutils import nodes
from evidence import Evidence
from refnorm_book import BookDirective, drawing, obtain, root
from sphinx.application import Sphinx

LARGEST_DATA = 200_000
"""Bytes of data in one page: a reader on a phone waits for them."""

FOLDER = "interactive"
"""Below ``_static``."""


def compute(script: Path) -> dict[str, Any]:
    """Return a script's ``data()``."""
    spec = importlib.util.spec_from_file_location(f"interactive_{script.stem}", script)
    if spec is None or spec.loader is None:
        raise ImportError(f"{script}: not a Python script")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, Any] = module.data()
    return found


def encode(data: dict[str, Any]) -> str:
    """Return JSON that can stand inside a ``script`` element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def stored(script: Path, evidence: Evidence) -> str:
    """Return the data, kept beside the picture: when a source changes, both are made again."""
    path = evidence.folder / "data.json"
    if not path.is_file():
        part = path.with_suffix(".part")
        part.write_text(encode(compute(script)))
        part.replace(path)
    return path.read_text()


class Interactive(BookDirective):
    """A picture, and in a browser with scripts a figure with controls in its place."""

    required_arguments = 1

    def content_nodes(self) -> list[nodes.Node]:
        name = self.arguments[0]
        script = root(self.env.app) / "docs" / f"{name}.py"
        found = obtain(self, f"docs/{name}", script)
        if not isinstance(found, Evidence):
            return found
        made = drawing(self, f"docs/{name}", found)
        if not (made and isinstance(made[0], nodes.figure)):
            return made or self.complain(f"{name}: needs a figure(), the picture for paper")
        data = stored(script, found)
        if len(data) > LARGEST_DATA:
            return self.complain(f"{name}: data() has {len(data)} bytes, expected at most {LARGEST_DATA}")
        pages = self.env.metadata[self.env.docname]
        pages["interactive"] = " ".join(dict.fromkeys([*pages.get("interactive", "").split(), script.stem]))
        made[0]["interactive"] = {"stem": script.stem, "data": data}
        return made


def with_scripts(app: Sphinx) -> bool:
    """Whether the pages that are built can load scripts: an EPUB is HTML too, but its readers rarely can."""
    return app.builder.name in ("html", "dirhtml")


def enclose(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the pictures of a page where only a browser without scripts sees them, and the data beside them.

    This comes last, so that whatever else reads the page (the notebooks do) finds an ordinary figure.
    """
    if not with_scripts(app):
        return
    for figure in [found for found in doctree.findall(nodes.figure) if "interactive" in found]:
        stem, data = figure["interactive"]["stem"], figure["interactive"]["data"]
        label = html.escape(next(iter(figure.findall(nodes.image)))["alt"], quote=True)
        opening = (
            f'<div class="interactive" data-figure="{stem}" role="group" aria-label="{label}">'
            f'<script type="application/json">{data}</script><noscript>'
        )
        caption = next(index for index, child in enumerate(figure) if isinstance(child, nodes.caption))
        figure.insert(caption, nodes.raw("", "</noscript></div>", format="html"))
        figure.insert(0, nodes.raw("", opening, format="html"))
        figure["classes"].append("interactive-figure")


def add_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Load the scripts on the pages that have such figures, and nowhere else."""
    stems = app.env.metadata.get(page, {}).get("interactive", "").split()
    if not (stems and with_scripts(app)):
        return
    app.add_css_file(f"{FOLDER}/interactive.css")
    for stem in ("interactive", *stems):
        app.add_js_file(f"{FOLDER}/{stem}.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("refnorm_book")
    app.add_directive("interactive", Interactive)
    app.connect("doctree-resolved", enclose, priority=950)
    app.connect("html-page-context", add_scripts)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
