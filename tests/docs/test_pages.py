"""The built book, page by page: links and images, nothing remote, and how it looks in a browser.

``tools/book --check`` builds the book and runs these; otherwise they are skipped, since a stale build proves nothing.
"""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

HERE = Path(__file__).resolve().parent
BOOK = Path(os.environ.get("REFNORM_BOOK", "not built")).resolve()
BUILT = (BOOK / "index.html").is_file()
pytestmark = pytest.mark.skipif(not BUILT, reason="needs a fresh build of the book: run tools/book --check")

spec = importlib.util.spec_from_file_location("refnorm_chromium", HERE / "chromium.py")
assert spec is not None
assert spec.loader is not None
chromium = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = chromium
spec.loader.exec_module(chromium)

MADE_BY_SPHINX = {"search.html", "genindex.html", "py-modindex.html", "prf-prf.html"}
DESKTOP, PHONE = 1280, 390


def pages() -> list[str]:
    if not BUILT:
        return ["index.html"]
    found = (path.relative_to(BOOK) for path in BOOK.glob("**/*.html"))
    return sorted(path.as_posix() for path in found if not path.parts[0].startswith("_"))


class Page(HTMLParser):
    """What a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.assets: list[str] = []
        self.ids: set[str] = set()
        self.without_alt: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed") and given.get("src"):
            self.assets.append(given["src"])
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev", "index", "search"):
            self.assets.append(given.get("href", ""))
        if tag == "img" and not given.get("alt", "").strip():
            self.without_alt.append(given.get("src", "?"))


@cache
def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", pages())
def test_links_lead_somewhere(name: str) -> None:
    broken = []
    for link in (*read(BOOK / name).links, *read(BOOK / name).assets):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (BOOK / name).parent / unquote(parts.path) if parts.path else BOOK / name
        if not target.exists() or (
            parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in read(target).ids
        ):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("name", pages())
def test_images_are_described(name: str) -> None:
    assert not read(BOOK / name).without_alt


@pytest.mark.parametrize("name", pages())
def test_no_page_asks_for_anything_remote(name: str) -> None:
    assert not [asset for asset in read(BOOK / name).assets if urlsplit(asset).netloc]


def test_no_style_sheet_asks_for_anything_remote() -> None:
    remote = re.compile(r"""(?:url\(\s*["']?|@import\s+["'])(?:https?:)?//""")
    assert not [path.name for path in BOOK.glob("**/*.css") if remote.search(path.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(BOOK)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Browser]:
    path = chromium.find()
    if path is None:
        pytest.skip("no Chromium was found: apt-get install chromium, or set CHROMIUM to its path")
    with chromium.Browser(path) as opened:
        yield opened


# What shows up as text, although it should have become a formula, a reference or a table.
RAW_MARKUP = r"""
(() => {
  const skipped = "pre, code, script, style, mjx-container, .math, .MathJax, table.race";
  const walker = document.createTreeWalker(document.querySelector("article, main, body"), NodeFilter.SHOW_TEXT);
  const found = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.parentElement.closest(skipped)) continue;
    if (/\$|\\\(|\\\[|\\begin|\{(doc|ref|eq|cite)\}|`|<cite>/.test(node.data)) found.push(node.data.trim().slice(0, 90));
  }
  return found;
})()
"""

BAD_MATH = """
[...document.querySelectorAll("mjx-merror, [data-mjx-error]")].map(e => e.getAttribute("data-mjx-error") || e.innerText)
"""

UNTYPESET = """
[...document.querySelectorAll(".math")].filter(e => !e.querySelector("mjx-container")).map(e => e.innerText.slice(0, 90))
"""

EMPTY_IMAGES = """
Promise.all([...document.images].map(e => { e.loading = "eager"; return e.decode().then(() => 0, () => e.src); }))
  .then(found => found.filter(src => src))
"""

OVERFLOW = """
(() => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width && document.body.scrollWidth <= width) return [];
  const scrolls = e => ["auto", "scroll", "hidden"].includes(getComputedStyle(e).overflowX);
  const inside = e => { for (let p = e.parentElement; p; p = p.parentElement)
    if (p !== document.body && p !== document.documentElement && scrolls(p)) return true; return false; };
  const wide = [...document.querySelectorAll("article *")]
    .filter(e => e.getBoundingClientRect().right > width + 1 && !inside(e))
    .map(e => e.tagName + "." + e.className + ": " + (e.innerText || "").slice(0, 60));
  return ["page " + document.documentElement.scrollWidth + " in " + width, ...wide.slice(0, 5)];
})()
"""


# A formula may scroll in its box on a phone; on a desktop it is broken into lines by its author.
WIDE_FORMULAS = """
[...document.querySelectorAll("div.math mjx-container")].filter(e => e.scrollWidth > e.clientWidth + 1)
  .map(e => (e.scrollWidth - e.clientWidth) + " px too wide: " + e.parentElement.id + " "
    + e.querySelector("mjx-assistive-mml")?.textContent.replace(/\\s+/g, "").slice(0, 60))
"""


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("name", pages())
def test_page_in_a_browser(name: str, width: int, address: str, browser: chromium.Browser) -> None:
    browser.size(width)
    browser.open(f"{address}/{name}")
    problems = {
        "console": browser.console,
        "failed requests": browser.failed,
        "remote requests": [url for url in browser.requests if not url.startswith((address, "data:", "blob:"))],
        "errors in formulas": browser.evaluate(BAD_MATH),
        "formulas that were not set": browser.evaluate(UNTYPESET),
        "images without a picture": browser.evaluate(EMPTY_IMAGES),
        "wider than the screen": browser.evaluate(OVERFLOW),
    }
    if width == DESKTOP:
        problems["formulas that do not fit"] = browser.evaluate(WIDE_FORMULAS)
    if name not in MADE_BY_SPHINX:
        problems["raw markup"] = browser.evaluate(RAW_MARKUP)
    assert not {what: found for what, found in problems.items() if found}


def test_formulas_show_when_the_book_is_opened_from_disk(browser: chromium.Browser) -> None:
    browser.size(DESKTOP)
    browser.open((BOOK / "front" / "backward.html").as_uri())
    assert browser.evaluate('document.querySelectorAll("mjx-container").length') > 20
    assert not browser.console
    assert not [url for url in browser.requests if not url.startswith(("file:", "data:", "blob:"))]


def test_the_browser_reports_what_is_wrong(tmp_path: Path, browser: chromium.Browser) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        '<!doctype html><body><article><p>raw $x$</p><div style="width: 5000px">wide</div><img src="none.png">'
        '<div class="math">\\[x\\]</div><script>console.error("oh"); missing()</script></article>'
    )
    browser.size(PHONE)
    browser.open(page.as_uri())
    assert browser.evaluate(RAW_MARKUP) == ["raw $x$"]
    assert browser.evaluate(OVERFLOW)
    assert len(browser.evaluate(EMPTY_IMAGES)) == 1
    assert browser.evaluate(UNTYPESET) == ["\\[x\\]"]
    assert any("oh" in text for text in browser.console)
    assert any("missing is not defined" in text for text in browser.console)
    assert any("none.png" in text for text in browser.failed)
