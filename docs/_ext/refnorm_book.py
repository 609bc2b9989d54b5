"""Directives of the textbook: what a page says about a method is looked up or measured, never typed in.

``{method} ROOM/NAME``      the paper, the functions, and what exists of them
``{claims} ROOM/NAME``      the evidence script's claims with the measured figures, and its drawing
``{drawing} PATH``          the drawing of a script below ``docs``
``{race} ROOM/NAME``        timings against peers, from ``docs/_data/race.json``
``{sources} ROOM/NAME``     where each function stands in the literature, from the docstrings
``{lost-races}``            the races in which a peer is faster, from the same file
``{evidence} ROOM``         how well a room, or all of them, is proved, from ``docs/_data/evidence.json``
``{catalogue}``             every paper with computed status
``{kernels}``               the functions of ``refnorm_fast``, by room
``{chapters}``              a table of contents in the listed order, then whatever else there is
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from evidence import Evidence, ScriptFailed, Store
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.directives.other import TocTree
from sphinx.domains.python import PyMethod
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.matching import patfilter

ROOT = Path(__file__).resolve().parents[2]
logger = logging.getLogger(__name__)

MARK = {True: "✓", False: "✗", None: "–"}
SAID = {True: "there", False: "missing", None: "does not apply"}
CATALOGUE_COLUMNS = r"p{0.33\linewidth}p{0.1\linewidth}p{0.11\linewidth}p{0.08\linewidth}*{3}{p{0.06\linewidth}}"
RACE_COLUMNS = (0.15, 0.31, 0.09, 0.18, 0.13)
"""Widths on paper, as parts of a line; the rest of it lies between the columns."""
KIND = {True: "yes", False: "no", None: "none"}


# --- small node builders ------------------------------------------------------------------------------------


def paragraph(*children: nodes.Node | str, classes: Sequence[str] = ()) -> nodes.paragraph:
    made = nodes.paragraph(classes=list(classes))
    made += [nodes.Text(child) if isinstance(child, str) else child for child in children]
    return made


def span(text: str, *classes: str) -> nodes.inline:
    return nodes.inline(text, text, classes=list(classes))


def web(text: str, uri: str) -> nodes.reference:
    return nodes.reference(text, text, refuri=uri, internal=False)


def arxiv(identifier: str) -> nodes.reference:
    return web(f"arXiv {identifier}", f"https://arxiv.org/abs/{identifier}")


def to_function(env: BuildEnvironment, room: str, name: str, package: str = "refnorm") -> nodes.Node:
    """Refer to a documented object of a room; an undocumented one is an error of the nitpicky build."""
    literal = nodes.literal(name, name, classes=["xref", "py", "py-obj"])
    attributes = {"refdomain": "py", "reftype": "obj", "reftarget": f"{package}.{room}.{name}", "refdoc": env.docname}
    return addnodes.pending_xref("", literal, refexplicit=True, refwarn=True, **attributes)


def to_chapter(env: BuildEnvironment, chapter: str, text: str) -> nodes.Node:
    if chapter not in env.found_docs:
        return nodes.Text(text)
    attributes = {"refdomain": "std", "reftype": "doc", "reftarget": f"/{chapter}", "refdoc": env.docname}
    return addnodes.pending_xref("", nodes.inline(text, text), refexplicit=True, refwarn=True, **attributes)


def table(
    head: Sequence[str], rows: Iterable[Sequence[Any]], *, classes: Sequence[str] = (), numbers: Iterable[int] = ()
) -> nodes.table:
    """Make a table; a cell is a string, a node or a list of nodes, ``numbers`` are right-aligned columns."""
    right = set(numbers)

    def row(cells: Sequence[Any]) -> nodes.row:
        made = nodes.row()
        for column, cell in enumerate(cells):
            content = cell if isinstance(cell, list) else [nodes.Text(cell) if isinstance(cell, str) else cell]
            # A block stands on its own; loose text and references need a paragraph around them.
            if not content or not isinstance(content[0], nodes.Body) or isinstance(content[0], nodes.Inline):
                content = [paragraph(*content)]
            made += nodes.entry("", *content, classes=["text-end"] if column in right else [])
        return made

    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    group += nodes.thead("", row(head))
    group += nodes.tbody("", *[row(cells) for cells in rows])
    return nodes.table("", group, classes=["colwidths-auto", *classes])


def format_number(value: float | int | str | bool) -> str:
    """Show four digits, and as many as there are of a whole number."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        shown = f"{value:,}".replace(",", "\u202f")
    elif not math.isfinite(value):
        shown = "NaN" if math.isnan(value) else f"{value:+}".replace("inf", "∞").lstrip("+")
    else:
        shown, _, exponent = f"{value:.4g}".partition("e")
        if exponent:
            raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
            shown += f" · 10{raised}"
    return shown.replace("-", "−")


# --- directives ---------------------------------------------------------------------------------------------


class BookDirective(SphinxDirective):
    """A directive whose page is read again whenever the book is built, because it shows computed things."""

    def run(self) -> list[nodes.Node]:
        computed_pages(self.env).add(self.env.docname)
        return self.content_nodes()

    def content_nodes(self) -> list[nodes.Node]:
        raise TypeError(f"{type(self).__name__} has no content_nodes")

    def complain(self, message: str) -> list[nodes.Node]:
        """Report a problem that fails the build, and say it on the page as well."""
        logger.warning(message, location=self.get_location(), type="refnorm")
        return [nodes.warning("", paragraph(message))]

    def prose(self, text: str) -> list[nodes.Node]:
        """Read running text in the page's own markup."""
        return self.parse_text_to_nodes(text)


def _catalogue() -> Any:
    from refnorm import catalogue

    return catalogue


class MethodBox(BookDirective):
    required_arguments = 1

    def content_nodes(self) -> list[nodes.Node]:
        catalogue = _catalogue()
        try:
            method = catalogue.find(self.arguments[0])
        except ValueError as error:
            return self.complain(f"method {error}")
        status = catalogue.status(method)
        box = nodes.container(classes=["method-box"], ids=[f"method-{nodes.make_id(self.arguments[0])}"])
        title = nodes.strong(method.title, method.title)
        source: list[nodes.Node | str] = [f"{method.authors} ({method.year})"]
        if method.arxiv:
            source += [", ", arxiv(method.arxiv)]
        if method.paper:
            box += paragraph(title, classes=["method-title"])
            box += paragraph(*source)
        else:
            box += paragraph(title, " ", span("shared by the room", "method-basics"), classes=["method-title"])
            box += paragraph("First source: ", *source)
        functions: list[nodes.Node | str] = ["Functions: "]
        for number, name in enumerate(status.functions):
            functions += [", "] if number else []
            functions.append(to_function(self.env, method.room, name))
            if f"{name}_vjp" in status.vjps:
                functions += [" ", span("vjp", "method-vjp")]
        box += paragraph(*functions)
        badges: list[nodes.Node | str] = []
        for part, exists in status.parts.items():
            if part in ("function", "chapter") or (part in ("vjp", "gradient check", "kernel") and exists is None):
                continue
            text = f"{MARK[exists]} {part}"
            if part == "golden" and exists:
                text += f" ({status.golden_cases})"
            badges += [span(text, "status", f"status-{KIND[exists]}"), " "]
        box += paragraph(*badges, classes=["method-status"])
        return [self.index_entries(method, box["ids"][0]), box]

    def index_entries(self, method: Any, target: str) -> nodes.Node:
        """Put the chapter's and the paper's title into the book's index."""
        chapter = self.state.document.next_node(nodes.title)
        words = dict.fromkeys([*([chapter.astext()] if chapter else []), method.title])
        # Sphinx splits an entry at semicolons.
        entries = [("single", word.replace(";", ","), target, "", None) for word in words]
        return addnodes.index(entries=entries)


class MethodOrPython(PyMethod):
    """The Python domain has a directive of this name too, which describes a method of a class."""

    def run(self) -> list[nodes.Node]:
        if "/" not in self.arguments[0]:
            return super().run()
        given = (self.arguments, {}, self.content, self.lineno, self.content_offset, self.block_text)
        return MethodBox(self.name, *given, self.state, self.state_machine).run()


class Sources(BookDirective):
    """Which equation, algorithm or section each function of a method is."""

    required_arguments = 1

    def content_nodes(self) -> list[nodes.Node]:
        catalogue = _catalogue()
        try:
            method = catalogue.find(self.arguments[0])
        except ValueError as error:
            return self.complain(f"sources: {error}")
        items = []
        for text, names in catalogue.references(method).items():
            linked: list[nodes.Node] = []
            for number, name in enumerate(names):
                linked += [nodes.Text(", ")] if number else []
                linked.append(to_function(self.env, method.room, name))
            term = nodes.term("", "", *linked)
            items.append(nodes.definition_list_item("", term, nodes.definition("", *self.prose(text))))
        if not items:
            return self.complain(f"sources: no function of {self.arguments[0]} has a References section")
        return [nodes.definition_list("", *items, classes=["sources"])]


class Claims(BookDirective):
    required_arguments = 1

    def content_nodes(self) -> list[nodes.Node]:
        name = self.arguments[0]
        script = root(self.env.app) / "tests" / "claims" / f"{name}.py"
        found = obtain(self, name, script)
        if not isinstance(found, Evidence):
            return found
        made: list[nodes.Node] = []
        for number, claim in enumerate(found.claims, 1):
            made.append(self.claim(number, claim))
            if not claim["as_stated"]:
                self.complain(f"claim {number} of {name} does not come out as stated: {claim['statement']}")
        made += drawing(self, name, found)
        command = f"tools/claims {name}"
        made.append(
            paragraph(
                "Measured when this page was built, in ",
                f"{found.seconds:.0f} s; " if found.seconds >= 1 else "under a second; ",
                nodes.literal(command, command),
                " repeats it.",
                classes=["claims-source"],
            )
        )
        return made

    def claim(self, number: int, claim: dict[str, Any]) -> nodes.Node:
        if claim["refuted"] and not claim["holds"]:
            verdict, kind = "does not show in miniature", "refuted"
        else:
            verdict, kind = ("holds", "holds") if claim["holds"] else ("does not hold", "fails")
        box = nodes.container(classes=["claim", f"claim-{kind}"])
        box += paragraph(nodes.strong("", f"Claim {number} "), span(verdict, "claim-verdict"), classes=["claim-head"])
        box += self.prose(claim["statement"])
        if claim["figures"]:
            rows = [[name, format_number(value)] for name, value in claim["figures"]]
            box += table(["Measured", ""], rows, classes=["claim-figures"], numbers=[1])
        box += self.labelled("Expected", claim["expected"])
        if claim["refuted"]:
            box += self.labelled("Why it does not show", claim["refuted"])
        return box

    def labelled(self, label: str, text: str) -> list[nodes.Node]:
        parsed = self.prose(text)
        if parsed and isinstance(parsed[0], nodes.paragraph):
            parsed[0].insert(0, [nodes.emphasis("", f"{label}: ")])
        return parsed


class Drawing(BookDirective):
    required_arguments = 1

    def content_nodes(self) -> list[nodes.Node]:
        name = self.arguments[0]
        found = obtain(self, f"docs/{name}", root(self.env.app) / "docs" / f"{name}.py")
        return drawing(self, f"docs/{name}", found) if isinstance(found, Evidence) else found


def obtain(directive: BookDirective, name: str, script: Path) -> Evidence | list[nodes.Node]:
    """Return the results of a script, or the nodes that say why there are none."""
    if not script.is_file():
        return directive.complain(f"{script}: no such script")
    try:
        return store(directive.env.app).obtain(name, script)
    except ScriptFailed as error:
        return directive.complain(str(error))


def drawing(directive: BookDirective, name: str, found: Evidence) -> list[nodes.Node]:
    if not found.drawing:
        return []
    description = found.drawing["description"]
    if not description:
        return directive.complain(f"{name}: figure() needs a docstring, it is the drawing's description")
    generated = Path(directive.env.srcdir) / "_generated"
    generated.mkdir(exist_ok=True)
    figure = nodes.figure(classes=["evidence-figure"])
    for theme, file in found.drawing["files"].items():
        target = generated / f"{name.replace('/', '-')}-{theme}{Path(file).suffix}"
        fresh = plain_svg((found.folder / file).read_bytes())
        if not target.is_file() or target.read_bytes() != fresh:
            target.write_bytes(fresh)
        alternative = " ".join(description.split())
        classes = [] if theme == "both" else [f"drawn-{theme}"]
        figure += nodes.image(uri=f"/_generated/{target.name}", alt=alternative, classes=classes)
    caption = nodes.caption()
    first = directive.prose(description.split("\n\n")[0])
    caption += first[0].children if first and isinstance(first[0], nodes.paragraph) else first
    figure += caption
    return [figure]


def plain_svg(drawing: bytes) -> bytes:
    """Return an SVG without its document type, empty glyphs and names of images, which occur twice where an image does.

    An EPUB may have none of them.
    """
    without_type = re.sub(rb"<!DOCTYPE[^>]*>\s*", b"", drawing, count=1)
    unnamed = re.sub(rb'(<image [^>]*?) id="image[0-9a-f]+"', rb"\1", without_type)
    return re.sub(rb"<path (?![^>]*\bd=)", b'<path d="M0 0" ', unnamed)


class Race(BookDirective):
    """Timings of one method, or of all of them without an argument."""

    optional_arguments = 1

    def content_nodes(self) -> list[nodes.Node]:
        path = Path(self.env.srcdir) / "_data" / "race.json"
        self.env.note_dependency(path)
        data = json.loads(path.read_text()) if path.is_file() else {}
        wanted = set(self.arguments) or {race["method"] for race in data.get("races", [])}
        races = [race for race in data.get("races", []) if race["method"] in wanted]
        if not races:
            subject = "The kernel of this method has" if self.arguments else "The kernels have"
            return [paragraph(f"{subject} not been raced against other implementations.")]
        made: list[nodes.Node] = []
        for method, name in dict.fromkeys((race["method"], race["name"]) for race in races):
            group = [race for race in races if (race["method"], race["name"]) == (method, name)]
            heading: list[nodes.Node | str] = [nodes.strong(name, name)]
            if not self.arguments:
                heading += [" (", to_chapter(self.env, method, method), ")"]
            # On paper the name stays with its table.
            made.append(nodes.raw("", r"\needspace{7\baselineskip}", format="latex"))
            made.append(paragraph(*heading, classes=["race-name"]))
            results = self.results(group)
            columns = RACE_COLUMNS[: len(list(results.findall(nodes.colspec)))]
            spec = "".join(rf"p{{{width}\linewidth}}" for width in columns)
            made += [addnodes.tabular_col_spec(spec=spec), results]
        command = data.get("command", "tools/race")
        made.append(
            paragraph(
                "A ratio says how many times longer the other implementation takes: the median over interleaved "
                f"rounds, with quartiles. {data.get('machine', '')}",
                f"; {data['threads']} threads" if "threads" in data else "",
                f"; copying an array moves {data['copy_gb_per_s']:.1f} GB/s" if "copy_gb_per_s" in data else "",
                ". Repeat it with ",
                nodes.literal(command, command),
                ".",
                classes=["race-machine"],
            )
        )
        return made

    def results(self, group: list[dict[str, Any]]) -> nodes.table:
        checked = any(race.get("accuracy") for race in group)
        units = dict.fromkeys(race.get("check_unit") or "" for race in group)
        head = ["Size", "Implementation", "Median, ms", "Ratio"] + (
            [f"Worst error, {', '.join(units)}".rstrip(", ")] if checked else []
        )
        rows = []
        for race in group:
            ours = race["ours"]
            ordered = sorted(race["results"].items(), key=lambda item: (item[0] != ours, item[1]["median_ms"]))
            for number, (label, result) in enumerate(ordered):
                ratio: str | list[nodes.Node] = "1"
                if label != ours:
                    ratio = f"{result['ratio']:.2f} ({result['ratio_low']:.2f} to {result['ratio_high']:.2f})"
                speed = []
                if label == ours and race.get("gb_per_s"):
                    speed.append(f"{race['gb_per_s']:.1f} GB/s")
                if label == ours and race.get("gop_per_s"):
                    speed.append(f"{race['gop_per_s']:.0f} Gop/s")
                shown = [nodes.strong(label, label) if label == ours else nodes.Text(label)]
                if speed:
                    shown.append(nodes.Text(f" ({', '.join(speed)} of the floor)"))
                error = race.get("accuracy", {}).get(label)
                cells = [race["shape"] if number == 0 else "", shown, f"{result['median_ms']:.3g}", ratio]
                rows.append(cells + ([format_number(float(error)) if error is not None else ""] if checked else []))
        return table(head, rows, classes=["race"], numbers=[2, 3, 4])


class LostRaces(BookDirective):
    """Where a peer is faster than the kernel, the clearest first."""

    def content_nodes(self) -> list[nodes.Node]:
        standings = importlib.import_module("tests.bench.standings")
        path = Path(self.env.srcdir) / "_data" / "race.json"
        self.env.note_dependency(path)
        data = standings.load(path)
        entries = standings.standings(data["races"])
        lost = standings.lost(entries)
        rows = [
            [
                to_chapter(self.env, entry.method, entry.name),
                entry.shape,
                entry.peer,
                f"{entry.ratio:.2f} ({entry.low:.2f} to {entry.high:.2f})",
                " / ".join(format_number(float(error)) for error in entry.errors) if entry.errors else "",
            ]
            for entry in lost
        ]
        said = f"In {len(lost)} of {len(entries)} races the ratio is below {standings.DRAW}"
        if not lost:
            return [paragraph(f"{said}.")]
        head = ["Race", "Size", "Faster", "Ratio", "Worst error, ours / theirs"]
        return [paragraph(f"{said}:"), table(head, rows, classes=["race"], numbers=[3, 4])]


class Proof(BookDirective):
    """What ``tools/evidence`` measured: of one room in sentences, of all rooms as a table."""

    optional_arguments = 1

    def content_nodes(self) -> list[nodes.Node]:
        path = Path(self.env.srcdir) / "_data" / "evidence.json"
        self.env.note_dependency(path)
        if not path.is_file():
            return [paragraph("The evidence has not been collected: run ", nodes.literal("", "tools/evidence"), ".")]
        data = json.loads(path.read_text())
        if self.arguments:
            if self.arguments[0] not in data["rooms"]:
                return self.complain(f"evidence: no room {self.arguments[0]!r} in {path.name}")
            return self.room(data["rooms"][self.arguments[0]], data["command"])
        rows = [
            [
                room,
                f"{found['functions']} ({found['vjps']})",
                format_number(found["worst_gradient_error"]) if found["gradient_cases"] else "–",
                str(found["golden_cases"]),
                f"{found['claims_holding']} of {found['claims_holding'] + len(found['claims_refuted'])}",
            ]
            for room, found in data["rooms"].items()
        ]
        head = ["Room", "Functions (with vjp)", "Worst gradient error", "Golden cases", "Claims that hold"]
        return [table(head, rows, numbers=[1, 2, 3, 4])]

    def room(self, found: dict[str, Any], command: str) -> list[nodes.Node]:
        sources = ", ".join(
            f"{count} from {kind}" if kind != "by hand" else f"{count} by hand"
            for kind, count in found["golden_sources"].items()
        )
        claims = found["claims_holding"] + len(found["claims_refuted"])
        text = (
            f"{found['functions']} public functions and classes, {found['vjps']} with a backward pass derived by hand. In "
            f"{found['gradient_cases']} gradient checks the worst relative error is "
            f"{format_number(found['worst_gradient_error'])} (``{found['worst_gradient_at']}``). "
            f"{found['golden_cases']} golden cases: {sources}. {found['claims_holding']} of {claims} claims hold."
        )
        made: list[nodes.Node] = [nodes.rubric("Evidence", "Evidence"), paragraph(text.replace("``", ""))]
        if found["claims_refuted"]:
            made.append(paragraph("These do not show in miniature:"))
            items = nodes.bullet_list()
            for claim in found["claims_refuted"]:
                figures = "; ".join(
                    f"{name}: {value if isinstance(value, str) else format_number(value)}"
                    for name, value in claim["figures"].items()
                )
                entry = paragraph(to_chapter(self.env, claim["method"], claim["method"]), ": ")
                said = self.prose(claim["statement"])
                entry += said[0].children if said and isinstance(said[0], nodes.paragraph) else said
                items += nodes.list_item("", entry, paragraph(f"Measured: {figures}."))
            made.append(items)
        made.append(paragraph("Collected with ", nodes.literal(command, command), ".", classes=["race-machine"]))
        return made


class Catalogue(BookDirective):
    def content_nodes(self) -> list[nodes.Node]:
        catalogue = _catalogue()
        columns = [part for part in catalogue.PARTS if part not in ("function", "vjp", "chapter")]
        made: list[nodes.Node] = []
        for title, paper in (("Papers", True), ("Shared basics of the rooms", False)):
            rows = []
            for method in catalogue.methods():
                if method.paper is not paper:
                    continue
                status = catalogue.status(method)
                source: list[nodes.Node] = [to_chapter(self.env, method.chapter, method.title), nodes.Text(", ")]
                source.append(nodes.Text(f"{method.authors} ({method.year})"))
                if method.arxiv:
                    source += [nodes.Text(", "), arxiv(method.arxiv)]
                cells: list[Any] = [source, method.room, f"{len(status.functions)} ({len(status.vjps)})"]
                for part in columns:
                    exists = status.parts[part]
                    text = str(status.golden_cases) if part == "golden" and exists else MARK[exists]
                    cells.append([span(text, "status", f"status-{KIND[exists]}")])
                rows.append(cells)
            if rows:
                made.append(nodes.rubric(title, title))
                head = ["Source", "Room", "Functions (vjp)", *(name.capitalize() for name in columns)]
                # Widths for a PDF; web pages find their own.
                made.append(addnodes.tabular_col_spec(spec=CATALOGUE_COLUMNS))
                made.append(table(head, rows, classes=["catalogue"], numbers=range(2, 3)))
        made.append(paragraph("; ".join(f"{MARK[value]} {SAID[value]}" for value in MARK), "."))
        return made


class Kernels(BookDirective):
    """Functions of the compiled package; the page builds without it and says so."""

    def content_nodes(self) -> list[nodes.Node]:
        catalogue = _catalogue()
        rows = []
        for method in catalogue.methods():
            kernels = catalogue.status(method).kernels
            if kernels:
                named: list[nodes.Node] = []
                for number, name in enumerate(kernels):
                    named += [nodes.Text(", ")] if number else []
                    named.append(to_function(self.env, method.room, name))
                rows.append([f"refnorm_fast.{method.room}", named])
        if rows:
            return [table(["Module", "Functions (linked to the reference's description)"], rows)]
        return [paragraph("This copy of the book was built without the compiled package, so no kernel is listed.")]


class Chapters(TocTree):
    """A table of contents that takes the listed documents first, in order, then all others that match."""

    option_spec: ClassVar = {**TocTree.option_spec, "rest": directives.unchanged, "except": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        here = self.env.current_document.docname
        folder = f"{here.rpartition('/')[0]}/" if "/" in here else ""
        pattern = self.options.pop("rest", "*")
        left_out = {here, *(folder + name for name in self.options.pop("except", "").split())}
        matching = sorted(set(patfilter(self.env.found_docs, folder + pattern)) - left_out)
        listed = [folder + entry.strip() for entry in self.content if entry.strip()]
        chosen = [name for name in dict.fromkeys(listed) if name in self.env.found_docs]
        chosen += [name for name in matching if name not in chosen]
        # A document that comes or goes changes this page.
        computed_pages(self.env).add(here)
        self.content = StringList([f"/{name}" for name in chosen], source=here)
        return super().run() if chosen else []


# --- the build ----------------------------------------------------------------------------------------------


def root(app: Sphinx) -> Path:
    """Return the checkout whose evidence scripts are run: this one, but for tests of the directives."""
    return Path(app.config.refnorm_book_root or ROOT)


def store(app: Sphinx) -> Store:
    return Store(root(app), root(app) / ".cache" / "claims")


def computed_pages(env: BuildEnvironment) -> set[str]:
    if not hasattr(env, "refnorm_computed_pages"):
        env.refnorm_computed_pages = set()  # type: ignore[attr-defined]
    pages: set[str] = env.refnorm_computed_pages  # type: ignore[attr-defined]
    return pages


def read_again(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    return sorted(computed_pages(env) & set(env.found_docs)) if app.config.refnorm_book_read_again else []


def forget_page(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    computed_pages(env).discard(docname)


def run_evidence(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """Run the scripts that the pages ask for beforehand, one on each core."""
    pattern = re.compile(r"^\s*`{3,}\{(claims|drawing|interactive)\}\s+(\S+)", re.MULTILINE)
    wanted = {}
    for docname in docnames:
        for kind, name in pattern.findall(Path(env.doc2path(docname)).read_text()):
            folder = "tests/claims" if kind == "claims" else "docs"
            script = root(app) / folder / f"{name}.py"
            if script.is_file():
                wanted[name if kind == "claims" else f"docs/{name}"] = script
    store(app).obtain_all(wanted.items(), os.cpu_count() or 1)


def setup(app: Sphinx) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT))
    app.add_config_value("refnorm_book_root", "", "env", types=frozenset({str}))
    # Off where another builder has read the pages a moment before.
    app.add_config_value("refnorm_book_read_again", True, "", types=frozenset({bool}))
    app.add_directive_to_domain("py", "method", MethodOrPython, override=True)
    app.add_directive("claims", Claims)
    app.add_directive("drawing", Drawing)
    app.add_directive("race", Race)
    app.add_directive("sources", Sources)
    app.add_directive("lost-races", LostRaces)
    app.add_directive("evidence", Proof)
    app.add_directive("catalogue", Catalogue)
    app.add_directive("kernels", Kernels)
    app.add_directive("chapters", Chapters)
    app.connect("env-before-read-docs", run_evidence)
    app.connect("env-get-outdated", read_again)
    app.connect("env-purge-doc", forget_page)
    return {"version": "1", "env_version": 1, "parallel_read_safe": False, "parallel_write_safe": True}
