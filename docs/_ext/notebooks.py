"""Every chapter as a Jupyter notebook, cut from the page while the book is built, and run.

A page becomes a notebook if it is a method's chapter or has samples in Python. Its text turns into Markdown cells, its
samples into code cells, and a function that it prints from ``refnorm`` into a code cell too, which the reader
can change: what the function needs is imported in the first cell, and after it come the examples of its
description and its golden vectors, held to the definition in the notebook. Solutions fold away.

A cell that fails, warns, or prints something else than the page says fails the build.
"""

from __future__ import annotations

import ast
import base64
import doctest
import importlib
import inspect
import io
import os
import posixpath
import re
import textwrap
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import resvg_py
import run_script
from book_forms import with_macros
from docutils import nodes
from docutils.utils import new_document
from notebook_runner import CodeCell, Runner
from refnorm_book import root
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx_markdown_builder.escape import escape_markdown_chars
from sphinx_markdown_builder.translator import MarkdownTranslator

logger = logging.getLogger(__name__)

FOLDER = "_notebooks"
ARCHIVE = f"{FOLDER}/refnorm-notebooks.zip"
SAMPLES = re.compile(r"^`{3,}(?:python|pycon)[ \t]*$", re.MULTILINE)
PICTURE_DPI = 144
"""Resolution of drawings: twice what Matplotlib's points ask for, for sharp screens."""

INTRODUCTION = """\
*This is a chapter of the refnorm book as a notebook. It needs refnorm {version} and Jupyter: in a checkout of
refnorm,* `pip install . notebook` *(or* `REFNORM_PURE=1 pip install . notebook` *without a C compiler). The next cell imports
what the chapter uses.*"""

TRY_IT = """\
Change a definition above, run its cell again, and see what these cells say. Names that the first cell imports
keep the package's definitions."""

GOLDEN = "The golden vectors, which come from other sources than this code, held to the definitions above:"


# --- what the code needs ------------------------------------------------------------------------------------


class NamesRead(ast.NodeVisitor):
    """The names that code reads when it runs; annotations are text and are left out."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_Name(self, node: ast.Name) -> None:
        self.found.add(node.id)

    def visit_arg(self, node: ast.arg) -> None:
        pass

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in (*node.decorator_list, node.args, *node.body):
            self.visit(part)


def names_read(source: str) -> set[str]:
    """Return the names that ``source`` reads when it runs, its own among them."""
    visitor = NamesRead()
    visitor.visit(ast.parse(source))
    return visitor.found


def defined_names(source: str) -> set[str]:
    """Return the functions and classes that ``source`` defines; empty if it is no module's text."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return set()
    return {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def import_lines(module: ModuleType, names: Iterable[str], public: Iterable[str]) -> list[str]:
    """Return the statements that bring ``names`` of a module, its own imports among them, into a notebook."""
    wanted = {name for name in names if name in vars(module)}
    plain: list[str] = []
    taken: dict[str, set[str]] = {}
    for node in ast.parse(Path(str(module.__file__)).read_text()).body:
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        for alias in node.names:
            bound = alias.asname or alias.name.partition(".")[0]
            if bound not in wanted:
                continue
            wanted.discard(bound)
            text = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
            if isinstance(node, ast.Import):
                plain.append(f"import {text}")
            else:
                taken.setdefault(str(node.module), set()).add(text)
    room = module.__name__.rpartition(".")[0]
    offered = set(public)
    for name in wanted:
        taken.setdefault(room if name in offered else module.__name__, set()).add(name)
    return sorted(plain) + [import_from(source, taken[source]) for source in sorted(taken)]


def import_from(source: str, names: Iterable[str]) -> str:
    """Return one ``from`` statement, in lines of at most 88 characters."""
    listed = ", ".join(sorted(names))
    line = f"from {source} import {listed}"
    if len(line) <= 88:
        return line
    inner = textwrap.fill(f"{listed},", 88, initial_indent="    ", subsequent_indent="    ")
    return f"from {source} import (\n{inner}\n)"


# --- cells --------------------------------------------------------------------------------------------------


@dataclass
class TextCell:
    """Markdown, with the pictures that it shows."""

    text: str
    pictures: dict[str, bytes] = field(default_factory=dict)


def sample_cells(code: str, *, hidden: bool = False) -> Iterator[CodeCell]:
    """Turn a sample into cells; a session with prompts gets a cell for each output that it shows."""
    if code.lstrip().startswith(">>>"):
        yield from session_cells(code, hidden=hidden)
    else:
        yield CodeCell(code.rstrip("\n"), hidden=hidden)


def session_cells(code: str, *, hidden: bool = False) -> Iterator[CodeCell]:
    lines: list[str] = []
    for example in doctest.DocTestParser().get_examples(code):
        lines.append(example.source.rstrip("\n"))
        if example.want:
            yield CodeCell("\n".join(lines), expected=example.want, raises=example.exc_msg, hidden=hidden)
            lines = []
    if lines:
        yield CodeCell("\n".join(lines), expected="", hidden=hidden)


class NotebookTranslator(MarkdownTranslator):  # type: ignore[misc]
    """Markdown for Jupyter, which sets formulas with MathJax and knows no page but its own."""

    def __init__(self, document: nodes.document, cutter: Cutter, level: int) -> None:
        super().__init__(document, cutter.app.builder)
        self.cutter = cutter
        self._push_status(section_level=level)

    def formula(self, text: str) -> str:
        return with_macros(text, self.config.book_macros)

    def visit_math(self, node: nodes.math) -> None:
        text = " ".join(self.formula(node.astext()).split())
        if in_table(node):
            text = text.replace(r"\|", r"\Vert ").replace("|", r"\vert ")
        self.add(f"${text}$")
        raise nodes.SkipNode

    def visit_math_block(self, node: nodes.math_block) -> None:
        text = self.formula(node.astext()).strip()
        number = self.cutter.number("displaymath", node) if node.get("number") else ""
        if number:
            text += f"\\tag{{{number}}}"
        if not node.get("nowrap", node.get("no-wrap", False)):
            text = f"$$\n{text}\n$$"
        self.add(text, prefix_eol=2, suffix_eol=2)
        raise nodes.SkipNode

    def visit_Text(self, node: nodes.Text) -> None:
        text = node.astext()
        if self.status.escape_text:
            text = escape_markdown_chars(text.replace("\n", " ") if in_table(node) else text).replace("$", r"\$")
        self.add(text.replace("|", r"\|") if in_table(node) else text)

    def visit_reference(self, node: nodes.reference) -> None:
        if self.cutter.target(node) is not None:
            self.add("[")

    def depart_reference(self, node: nodes.reference) -> None:
        target = self.cutter.target(node)
        if target is not None:
            self.add(f"]({target})")

    def visit_image(self, node: nodes.image) -> None:
        if "drawn-dark" in node["classes"]:
            return
        name = self.cutter.picture(node["uri"])
        alternative = node.get("alt", "").replace("[", "(").replace("]", ")")
        self.add(f"![{alternative}](attachment:{name})", prefix_eol=2, suffix_eol=2)

    def visit_caption(self, node: nodes.caption) -> None:
        self.ensure_eol(2)

    def depart_caption(self, node: nodes.caption) -> None:
        self.ensure_eol(2)

    def visit_target(self, node: nodes.target) -> None:
        """Links inside a page become text, so that nothing leads to its anchors."""

    def visit_desc(self, node: addnodes.desc) -> None:
        """Leave descriptions of functions to the book: a notebook has ``help``."""
        raise nodes.SkipNode

    def visit_admonition(self, node: nodes.Element) -> None:
        """Exercises, proofs and boxes: a bold title, then the text."""
        children = list(node.children)
        title = self.cutter.box_title(node)
        if children and isinstance(children[0], nodes.title):
            title = " ".join(f"{title} {children.pop(0).astext()}".split())
        if title:
            self.add(f"**{title}**", prefix_eol=2, suffix_eol=2)
        for child in children:
            child.walkabout(self)
        self.ensure_eol(2)
        raise nodes.SkipNode

    def visit_solution_node(self, node: nodes.Element) -> None:
        title, *children = node.children
        opening = f"<details>\n<summary>{title.astext()}</summary>\n\n"
        self.add(opening, prefix_eol=2, suffix_eol=2)
        for child in children:
            child.walkabout(self)
        self.add("</details>", prefix_eol=2, suffix_eol=2)
        raise nodes.SkipNode

    def unknown_visit(self, node: nodes.Node) -> None:
        if isinstance(node, nodes.Admonition):
            self.visit_admonition(node)
        super().unknown_visit(node)


def ancestors(node: nodes.Node) -> Iterator[nodes.Node]:
    while node.parent is not None:
        node = node.parent
        yield node


def in_table(node: nodes.Node) -> bool:
    """Whether a bar in a node's text would end a cell."""
    return any(isinstance(parent, nodes.table) for parent in ancestors(node))


class Cutter:
    """Cuts one resolved page into cells."""

    def __init__(self, app: Sphinx, docname: str, notebooks: frozenset[str], doctree: nodes.document) -> None:
        self.app, self.docname, self.notebooks, self.doctree = app, docname, notebooks, doctree
        self.settings = doctree.settings
        self.cells: list[TextCell | CodeCell] = []
        self.pending: list[nodes.Node] = []
        self.pictures: dict[str, bytes] = {}
        self.module = method_module(docname)
        self.names: set[str] = set()
        self.shown: dict[str, None] = {}
        self.after_code: int | None = None

    # What the page means outside of the book.

    def number(self, kind: str, node: nodes.Element) -> str:
        numbers = self.app.env.toc_fignumbers.get(self.docname, {}).get(kind, {})
        return ".".join(map(str, numbers.get(node["ids"][0], ()))) if node["ids"] else ""

    def box_title(self, node: nodes.Element) -> str:
        kind = type(node).__name__
        if kind.startswith("exercise"):
            return f"Exercise {self.number('exercise', node)}".strip()
        if "realtype" in node:
            return f"{node['realtype'].title()} {self.number(node.get('countertype', ''), node)}".strip()
        return "" if isinstance(node, nodes.admonition) or kind == "proof_node" else kind.title()

    def target(self, node: nodes.reference) -> str | None:
        """Return where a link of the page leads in a notebook; None if it stays text."""
        uri = str(node.get("refuri", ""))
        if re.match(r"[a-z]+:", uri):
            return uri
        page = posixpath.normpath(posixpath.join(posixpath.dirname(self.docname), uri.partition("#")[0]))
        name = page.removesuffix(".html")
        if not uri or name not in self.notebooks or name == self.docname:
            return None
        return posixpath.relpath(f"{name}.ipynb", posixpath.dirname(self.docname) or ".")

    def picture(self, uri: str) -> str:
        path = Path(self.app.srcdir) / uri.lstrip("/")
        if path.suffix == ".svg":
            # Jupyter shows no drawing in SVG unless the notebook is trusted; black lines need a white ground.
            drawn = resvg_py.svg_to_bytes(
                svg_path=str(path), dpi=PICTURE_DPI, background="white", skip_system_fonts=True
            )
            self.pictures[f"{path.stem}.png"] = bytes(drawn)
            return f"{path.stem}.png"
        self.pictures[path.name] = path.read_bytes()
        return path.name

    # Cutting.

    def cut(self) -> list[TextCell | CodeCell]:
        self.section(self.doctree, 0)
        self.flush(0)
        cells = list(self.workbench())
        place = len(self.cells) if self.after_code is None else self.after_code
        title, rest = self.cells[:1], [*self.cells[1:place], *cells, *self.cells[place:]]
        return [*title, *self.opening(), *rest]

    def section(self, parent: nodes.Element, level: int) -> None:
        for node in parent.children:
            if isinstance(node, nodes.section):
                self.flush(level)
                before = len(self.shown)
                self.section(node, level + 1)
                self.flush(level + 1)
                if len(self.shown) > before and level > 0:
                    self.after_code = len(self.cells)
            elif isinstance(node, nodes.literal_block) and (cells := list(self.code(node))):
                self.flush(level)
                self.cells += cells
            elif type(node).__name__ == "solution_node" and self.has_samples(node):
                self.solution(node, level)
            else:
                self.pending.append(node)

    def has_samples(self, node: nodes.Element) -> bool:
        return any(is_sample(block) for block in node.findall(nodes.literal_block))

    def solution(self, node: nodes.Element, level: int) -> None:
        """Code of a solution follows its folded text in folded cells: a cell cannot lie inside a text."""
        title, content = node.children
        children = content.children
        texts = [child for child in children if not is_sample(child)]
        shell = node.copy()
        shell += [title.deepcopy(), *[child.deepcopy() for child in texts]]
        self.pending.append(shell)
        self.flush(level)
        for child in children:
            if is_sample(child):
                self.cells += sample_cells(child.astext(), hidden=True)

    def flush(self, level: int) -> None:
        """Turn the nodes that wait into one cell of text."""
        document = new_document(self.docname, self.settings)
        document += [node.deepcopy() for node in self.pending]
        self.pending = []
        if any(is_sample(block) for block in document.findall(nodes.literal_block)):
            self.complain("a sample inside a list or a box cannot be a cell: it is never run")
        translator = NotebookTranslator(document, self, level)
        document.walkabout(translator)
        text = translator.astext().strip()
        if text:
            self.cells.append(TextCell(text, self.pictures))
        self.pictures = {}

    def complain(self, message: str) -> None:
        logger.warning("notebook: %s", message, location=self.docname, type="refnorm")

    # Code.

    def code(self, block: nodes.literal_block) -> Iterator[CodeCell]:
        if is_sample(block):
            yield from sample_cells(block.astext())
            return
        source = block.astext()
        found = defined_names(source)
        if self.module is None or "source" not in block or not found:
            return
        if Path(block["source"]).resolve() != Path(str(self.module.__file__)).resolve():
            return
        # A method that stands by itself is no definition of the module.
        if not found <= set(vars(self.module)):
            return
        self.shown.update(dict.fromkeys(sorted(found)))
        self.names |= names_read(source)
        yield CodeCell(source.rstrip("\n"))

    def opening(self) -> list[TextCell | CodeCell]:
        version = self.app.config.version
        made: list[TextCell | CodeCell] = [TextCell(INTRODUCTION.format(version=version))]
        if self.module is not None:
            lines = import_lines(self.module, self.names - set(self.shown), room_names(self.module))
            future = ["from __future__ import annotations"] if self.shown else []
            source = "\n\n".join(["\n".join(part) for part in (future, lines) if part])
            made.append(CodeCell(source))
        return made

    def workbench(self) -> Iterator[TextCell | CodeCell]:
        """Examples and golden vectors, for definitions that the reader may have changed."""
        if self.module is None:
            return
        short = [self.short_definition(name) for name in self.module.METHOD.functions]
        short = [source for source in short if source]
        examples = list(self.examples())
        if examples:
            yield TextCell("### Try it\n\n" + (TRY_IT if self.shown else ""))
            if short:
                yield CodeCell("\n\n\n".join(short))
            yield from examples
        golden = self.golden()
        if golden is not None:
            yield TextCell(GOLDEN)
            yield golden

    def short_definition(self, name: str) -> str:
        """Return a function without its description, if it only calls a backward pass that the page shows.

        Defined again, it calls the reader's version.
        """
        function, backward = vars(self.module).get(name), f"{name}_vjp"
        if name in self.shown or backward not in self.shown or not inspect.isfunction(function):
            return ""
        source = inspect.getsource(function)
        definition = ast.parse(source).body[0]
        assert isinstance(definition, ast.FunctionDef)
        if backward not in names_read(source) or ast.get_docstring(definition) is None or len(definition.body) != 2:
            return ""
        described, body = definition.body
        lines = source.rstrip("\n").split("\n")
        self.shown[name] = None
        self.names |= names_read(source)
        return "\n".join([*lines[: described.lineno - 1], *lines[body.lineno - 1 :]])

    def examples(self) -> Iterator[CodeCell]:
        assert self.module is not None
        for name in self.module.METHOD.functions:
            for function in (name, f"{name}_vjp"):
                text = getattr(vars(self.module).get(function), "__doc__", None) or ""
                for number, cell in enumerate(session_cells(text)):
                    self.names |= names_read(cell.source)
                    source = f"# {function}\n{cell.source}" if number == 0 else cell.source
                    yield CodeCell(source, cell.expected, cell.raises)

    def golden(self) -> CodeCell | None:
        from refnorm.conformance import load_cases, method_names

        if self.docname not in method_names():
            return None
        room = self.docname.partition("/")[0]
        kinds = {(case.function, case.kind == "cotangents") for case in load_cases(self.docname)}
        lines = []
        for function, cotangents in sorted(kinds):
            name = function.partition(".")[2]
            called = f"{name}_vjp" if cotangents else name
            if called in self.shown:
                lines.append(f'        "{room}.{called}": {called},')
        if not lines:
            return None
        return CodeCell(
            "\n".join(
                (
                    "from refnorm.conformance import format_table, run",
                    "",
                    "outcomes = run(",
                    "    {",
                    *lines,
                    "    },",
                    f'    methods=["{self.docname}"],',
                    ")",
                    "print(format_table(outcomes))",
                    "assert all(outcome.passed for outcome in outcomes)",
                )
            ),
            files=tuple(f"refnorm/conformance/golden/{self.docname}{suffix}" for suffix in (".json", ".npz")),
        )


def pixels(drawing: Path, cache: Path) -> bytes:
    """Return an SVG as PNG: Jupyter shows no SVG of a notebook that is not trusted. Black lines need a white ground."""
    kept = cache / f"{run_script.digest(drawing)}-{PICTURE_DPI}.png"
    if not kept.is_file():
        made = resvg_py.svg_to_bytes(svg_path=str(drawing), dpi=PICTURE_DPI, background="white", skip_system_fonts=True)
        write(kept, bytes(made))
    return kept.read_bytes()


# --- which pages, and the files -----------------------------------------------------------------------------


def is_sample(node: nodes.Node) -> bool:
    """Whether a node is a sample that the page's author typed, not a file that it includes."""
    return (
        isinstance(node, nodes.literal_block)
        and "source" not in node
        and node.get("language") in ("python", "pycon")
        and not any(isinstance(parent, addnodes.desc) for parent in ancestors(node))
    )


def method_module(docname: str) -> ModuleType | None:
    """Return the module whose chapter a page is."""
    from refnorm import catalogue

    found = [method for method in catalogue.methods() if method.chapter == docname]
    return importlib.import_module(f"refnorm.{found[0].room}._{found[0].name}") if found else None


def room_names(module: ModuleType) -> tuple[str, ...]:
    return tuple(importlib.import_module(module.__name__.rpartition(".")[0]).__all__)


def notebook_pages(env: BuildEnvironment) -> frozenset[str]:
    """Return the pages that become notebooks: chapters of methods, and pages with samples."""
    from refnorm import catalogue

    chapters = {method.chapter for method in catalogue.methods()} & set(env.found_docs)
    sampled = (name for name in env.found_docs if SAMPLES.search(Path(env.doc2path(name)).read_text()))
    return frozenset(chapters.union(sampled))


def notebook(name: str, cells: Sequence[TextCell | CodeCell], outputs: Sequence[list[dict[str, Any]]]) -> Any:
    """Put cells and outputs together in the notebook format."""
    made, left = nbformat.v4.new_notebook(), iter(outputs)
    made.metadata = nbformat.from_dict(
        {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
            "title": name,
        }
    )
    count = 0
    for number, cell in enumerate(cells):
        if isinstance(cell, TextCell):
            added = nbformat.v4.new_markdown_cell(cell.text)
            if cell.pictures:
                added["attachments"] = {
                    file: {f"image/{Path(file).suffix[1:]}": base64.b64encode(data).decode()}
                    for file, data in cell.pictures.items()
                }
        else:
            count += 1
            added = nbformat.v4.new_code_cell(cell.source, execution_count=count)
            added.outputs = [nbformat.from_dict(output) for output in next(left)]
            for output in added.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = count
            if cell.hidden:
                added.metadata = nbformat.from_dict({"jupyter": {"source_hidden": True, "outputs_hidden": True}})
            if cell.raises:
                added.metadata["tags"] = ["raises-exception"]
        added["id"] = f"cell-{number}"
        made.cells.append(added)
    nbformat.validate(made)
    return made


def write(path: Path, data: bytes) -> None:
    """Write a file beside and rename it, if it changes."""
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


def archive(folder: Path, target: Path) -> None:
    """Pack all notebooks, the same bytes for the same notebooks."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*.ipynb")):
            entry = zipfile.ZipInfo(f"refnorm-notebooks/{path.relative_to(folder).as_posix()}")
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, path.read_bytes())
    write(target, packed.getvalue())


# --- the build ----------------------------------------------------------------------------------------------


def wanted(app: Sphinx) -> bool:
    return app.builder.name == "html"


def read_again(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Make every notebook again: what its cells show depends on code that no page names."""
    return sorted(notebook_pages(env)) if wanted(app) else []


def cut_page(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Cut a page into cells, and put the link to its notebook below the title."""
    state = app.refnorm_notebooks  # type: ignore[attr-defined]
    if not wanted(app) or docname not in (pages := state.setdefault("pages", notebook_pages(app.env))):
        return
    state.setdefault("cells", {})[docname] = Cutter(app, docname, pages, doctree).cut()
    title = next(iter(doctree.findall(nodes.title)))
    place = posixpath.relpath(f"{FOLDER}/{docname}.ipynb", posixpath.dirname(docname) or ".")
    (link,) = download_link(place, "Download this chapter as a Jupyter notebook").children
    title.parent.insert(title.parent.index(title) + 1, link)


def download_link(address: str, text: str) -> addnodes.only:
    html = f'<p class="notebook-link"><a href="{address}" download>{text}</a></p>'
    return addnodes.only("", nodes.raw("", html, format="html"), expr="builder_html")


class AllNotebooks(SphinxDirective):
    """The link to all notebooks in one archive, in a book of pages."""

    def run(self) -> list[nodes.Node]:
        folder = posixpath.dirname(self.env.docname) or "."
        return [download_link(posixpath.relpath(ARCHIVE, folder), "Download all chapters as Jupyter notebooks")]


def write_notebooks(app: Sphinx, exception: Exception | None) -> None:
    cells = app.refnorm_notebooks.get("cells", {})  # type: ignore[attr-defined]
    if exception is not None or not wanted(app):
        return
    folder = Path(app.outdir) / FOLDER
    code = {name: [cell for cell in made if isinstance(cell, CodeCell)] for name, made in cells.items()}
    runner = Runner(root(app), root(app) / ".cache" / "notebooks")
    for name, run in runner.run_all(code, os.cpu_count() or 1).items():
        for text in run.problems:
            logger.warning("notebook: %s", text, location=name, type="refnorm")
        made = notebook(name, cells[name], run.outputs)
        write(folder / f"{name}.ipynb", (nbformat.writes(made) + "\n").encode())
    pages = notebook_pages(app.env)
    for path in folder.rglob("*.ipynb"):
        if path.relative_to(folder).with_suffix("").as_posix() not in pages:
            path.unlink()
    archive(folder, Path(app.outdir) / ARCHIVE)


def setup(app: Sphinx) -> dict[str, Any]:
    app.refnorm_notebooks = {}  # type: ignore[attr-defined]
    app.setup_extension("sphinx_markdown_builder")
    app.add_directive("notebooks", AllNotebooks)
    app.connect("env-get-outdated", read_again)
    app.connect("doctree-resolved", cut_page, priority=900)
    app.connect("build-finished", write_notebooks)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": False}
