"""How Sphinx makes the textbook; `tools/book` runs it."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import refnorm  # noqa: E402

project = "refnorm"
author = "The refnorm authors"
copyright = author
version = release = refnorm.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax and its fonts, copied into the book: no page loads anything remote
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_exercise",
    "sphinx_proof",
    "sphinxcontrib.bibtex",
    "sphinxcontrib.rsvgconverter",  # drawings stay drawings in a PDF
    "refnorm_book",
    "notebooks",
    "book_forms",
    "interactive",
]
root_doc = "index"
exclude_patterns = ["_build", "_generated", "_ext", "_data", "Thumbs.db", ".DS_Store"]
source_suffix = {".md": "markdown"}
nitpicky = True
suppress_warnings = ["myst.mathjax"]
numfig = True
math_numfig = True
math_eqref_format = "({number})"
numfig_secnum_depth = 0

# --- Markdown and mathematics
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "fieldlist", "attrs_inline"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
book_macros = {"R": r"\mathbb{R}", "mean": r"\operatorname{mean}"}
html_math_renderer = "mathjax"  # an EPUB has "mathml": tools/book --epub
mathjax3_config = {
    "options": {"processHtmlClass": "tex2jax_process|mathjax_process|math|output_area"},
    "tex": {"macros": book_macros},
    "chtml": {"mtextInheritFont": True},
}

# --- Python descriptions
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
# Types in the docstrings are prose ("array (..., H)"), not names to be looked up.
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_use_ivar = False
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries = False

# Names that annotations use and that no page of this book describes: there is no network to ask others for.
nitpick_ignore_regex = [
    ("py:.*", r"(np|numpy|scipy|collections|typing|dataclasses|types|pathlib|os|importlib)\..*"),
    # A bare name in a signature: an alias such as Array or Pullback, a builtin, a class of another package.
    ("py:class", r"\w+"),
    ("py:exc", r"\w+(Error|Interrupt)"),
]

# --- References
bibtex_bibfiles = sorted(path.relative_to(HERE).as_posix() for path in (HERE / "bib").glob("*.bib"))
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"

# --- Pages
html_theme = "sphinx_book_theme"
html_title = "refnorm"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_context = {"default_mode": "auto"}
html_css_files = ["book.css", "family_tree.css"]
html_js_files = ["book.js"]
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
html_last_updated_fmt = None
html_theme_options = {
    "navbar_persistent": [],  # the sidebar has a search field
    "show_navbar_depth": 1,
    "max_navbar_depth": 2,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "use_issues_button": False,
    "home_page_in_toc": True,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
# --- An EPUB
epub_title = "refnorm"
epub_description = "Machine-learning papers as readable NumPy with hand-derived backward passes"
epub_identifier = epub_uid = "refnorm-book"
epub_scheme = "ID"
epub_contributor = author
epub_css_files = ["epub.css"]
epub_exclude_files = ["_static/book.css"]
epub_show_urls = "no"
epub_tocscope = "includehidden"

# --- A PDF
latex_engine = "xelatex"
latex_use_xindy = False
latex_documents = [(root_doc, "refnorm.tex", "refnorm", author, "manual")]
latex_show_urls = "no"
latex_table_style = ["booktabs"]
latex_elements = {
    "papersize": "a4paper",
    "pointsize": "10pt",
    "extraclassoptions": "openany,oneside",
    "fncychap": "",
    "sphinxsetup": "verbatimforcewraps=true, hmargin=2.2cm, vmargin=2.4cm",
    "preamble": "".join(rf"\newcommand{{\{name}}}{{{meaning}}}" "\n" for name, meaning in book_macros.items())
    # A tall drawing leaves room for its caption.
    + r"\makeatletter\AtBeginDocument{\spx@image@maxheight=.82\textheight}\makeatother",
}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def written_signature(
    app: Any, what: str, name: str, thing: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str, str] | None:
    """Show annotations as the source spells them: ``Array[F]``, not the union that it stands for."""
    if what not in ("function", "method") or not callable(thing):
        return None
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return None
    parameters = list(found.parameters.values())
    if what == "method" and parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    text = {p.name: p.annotation for p in parameters if isinstance(p.annotation, str)}
    shown = str(found.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    for annotation in text.values():
        # inspect quotes an annotation that was kept as text.
        shown = shown.replace(repr(annotation), annotation)
    result = found.return_annotation
    return re.sub(r"\s+", " ", shown), result if isinstance(result, str) else ""


def setup(app: Any) -> None:
    app.connect("autodoc-process-signature", written_signature)
