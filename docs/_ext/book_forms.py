"""What the book needs in one form and not in others: solutions that stay folded, formulas as MathML, drawings for a light ground.

A web page and an EPUB show a solution when its reader asks for it; paper shows it at once. An EPUB shows formulas without a program: its readers know MathML, and ``latex2mathml`` makes it. In HTML MathJax sets
them, in a PDF LaTeX does.
"""

from __future__ import annotations

import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.builders.epub3 import Epub3Builder
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator
from sphinx_exercise.nodes import solution_node

logger = logging.getLogger(__name__)

MATHML = "{http://www.w3.org/1998/Math/MathML}"
ElementTree.register_namespace("", MATHML[1:-1])
EPUB_STYLES = ("epub.css", "pygments.css")


def with_macros(text: str, macros: dict[str, str]) -> str:
    """Replace the book's own commands by what they stand for."""
    for name, meaning in macros.items():
        text = re.sub(rf"\\{name}(?![A-Za-z])", lambda _, meaning=meaning: meaning, text)
    return text


def mathml(text: str, macros: dict[str, str], display: str) -> str:
    """Return a formula as MathML; what cannot be converted raises."""
    known = re.sub(r"\\(begin|end)\{(?:aligned|gathered)\}", r"\\\1{align*}", with_macros(text, macros))
    # A bracket that begins a row is no option of the environment.
    known = re.sub(r"(\\begin\{(?:cases|align\*)\})\s*(?=\[)", r"\1{}", known)
    made: str = latex2mathml.converter.convert(known, display=display)
    if r"\begin{gathered}" in text:
        made = made.replace('columnalign="right"', 'columnalign="center"')
    # What is not well formed would break the whole page: parsing it raises.
    tree = ElementTree.fromstring(made)
    mend(tree)
    return ElementTree.tostring(tree, encoding="unicode")


def styled(character: str, style: str) -> str:
    """Return a letter or digit in a style of mathematics; what has no such form stays.

    Examples
    --------
    >>> [styled(*given) for given in (("R", "double-struck"), ("1", "bold"), ("L", "script"), ("+", "bold"))]
    ['ℝ', '𝟏', 'ℒ', '+']
    """
    name = unicodedata.name(character, "").replace("LATIN ", "").replace("LETTER ", "")
    for form in (f"MATHEMATICAL {style.upper()} {name}", f"{style.upper()} {name}"):
        try:
            return unicodedata.lookup(form)
        except KeyError:
            continue
    return character


def mend(tree: ElementTree.Element) -> None:
    """Make the converter's tree valid: readers of EPUBs are strict."""
    for element in tree.iter():
        # Browsers and readers follow the attribute for upright letters alone.
        if element.get("mathvariant", "normal") != "normal":
            style = element.attrib.pop("mathvariant")
            element.text = "".join(styled(character, style) for character in element.text or "")
        if element.tag in (f"{MATHML}mi", f"{MATHML}mo", f"{MATHML}mn") and len(element):
            element.tag = f"{MATHML}mrow"
        if not element.get("columnspacing", "0em"):
            element.set("columnspacing", "0em")
        if " " in element.get("columnspacing", ""):
            # Pairs of columns stand apart; one number for all gaps is what the rules allow.
            element.set("columnspacing", "0em")
            for row in element.iter(f"{MATHML}mtr"):
                for cell in list(row)[2::2]:
                    cell.insert(0, ElementTree.Element(f"{MATHML}mspace", {"width": "2em"}))


def converted(self: HTML5Translator, node: nodes.Element, display: str) -> str:
    """Return a node's formula as MathML, or report that there is none and show its source."""
    try:
        return mathml(node.astext(), self.config.book_macros, display)
    except Exception as error:  # the library's errors have no base of their own
        logger.warning("no MathML for %r: %r", node.astext(), error, location=node, type="refnorm")
        return f"<code>{self.encode(node.astext())}</code>"


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(converted(self, node, "inline"))
    raise nodes.SkipNode


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(converted(self, node, "block"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})</span>')
    self.body.append("</div>\n")
    raise nodes.SkipNode


def on_paper(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Leave out the drawings for a dark ground, and anchors that occur on a page more than once."""
    for section in doctree.findall(nodes.section):
        if set(section["ids"]) <= {"exercise-content", "solution-content", "proof-content"}:
            section["ids"] = []
    if app.builder.name == "html":
        return
    for image in list(doctree.findall(nodes.image)):
        if "drawn-dark" in image["classes"]:
            image.parent.remove(image)


class folded(nodes.General, nodes.Element):
    """What a reader unfolds."""


class fold(nodes.General, nodes.TextElement):
    """The line that unfolds it."""


def visit_folded(self: HTML5Translator, node: folded) -> None:
    self.body.append(self.starttag(node, "details", CLASS="admonition"))


def depart_folded(self: HTML5Translator, node: folded) -> None:
    self.body.append("</details>\n")


def visit_fold(self: HTML5Translator, node: fold) -> None:
    self.body.append(self.starttag(node, "summary", "", CLASS="admonition-title"))


def depart_fold(self: HTML5Translator, node: fold) -> None:
    self.body.append("</summary>\n")


def fold_solutions(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Hide solutions until they are asked for, by what every browser has: no script is needed."""
    if app.builder.format != "html":
        return
    for solution in list(doctree.findall(solution_node)):
        title = solution.next_node(nodes.title)
        # The exercise that the title leads to stands above; a link would be pressed in place of the fold.
        line = fold("", title.astext())
        title.parent.remove(title)
        solution.replace_self(folded("", line, *solution.children, ids=solution["ids"], classes=solution["classes"]))


def strict_page(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Make an EPUB's page what its readers accept: no scripts, no lists in places where XHTML has none."""
    if app.builder.name != "epub":
        return
    context["script_files"] = []
    context["css_files"] = [file for file in context["css_files"] if str(file.filename).endswith(EPUB_STYLES)]
    if "body" in context:
        context["body"] = strict(context["body"])


def strict(body: str) -> str:
    """Return a page's body with valid signatures and descriptions.

    Examples
    --------
    >>> strict("<p><ul><li>a</li></ul></p><dl><dd>x</dd><dd>y</dd></dl>")
    '<ul><li>a</li></ul><span class="sig-line">x</span><span class="sig-line">y</span>'
    """
    body = re.sub(r"<p>(?=<[uo]l\b)", "", body)
    body = re.sub(r"(</[uo]l>\s*)</p>", r"\1", body)
    return re.sub(
        r"<dl>\s*((?:<dd>(?:(?!<d[dlt]\b).)*?</dd>\s*)+)</dl>",
        lambda found: found[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>"),
        body,
        flags=re.DOTALL,
    )


class BookEpub(Epub3Builder):
    """Sphinx's EPUB, whose list of files says which pages have formulas."""

    def build_epub(self) -> None:
        listing = Path(self.outdir) / "content.opf"
        text = listing.read_text(encoding="utf-8")
        for name in self.files:
            if name.endswith(".xhtml") and "<math" in (Path(self.outdir) / name).read_text(encoding="utf-8"):
                text = text.replace(f'href="{name}"', f'href="{name}" properties="mathml"')
        listing.write_text(text, encoding="utf-8")
        super().build_epub()


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_config_value("book_macros", {}, "env", types=frozenset({dict}))
    app.add_html_math_renderer("mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math_block, None))
    app.connect("doctree-resolved", on_paper)
    # After the notebooks, which have folds of their own.
    app.add_node(folded, html=(visit_folded, depart_folded))
    app.add_node(fold, html=(visit_fold, depart_fold))
    app.connect("doctree-resolved", fold_solutions, priority=960)
    app.connect("html-page-context", strict_page, priority=900)
    app.add_builder(BookEpub, override=True)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
