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
import time
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

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
        self.headings: list[int] = []
        self.language = ""
        self.unnamed_links: list[str] = []
        self._link: tuple[str, bool] | None = None
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
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "html":
            self.language = given.get("lang", "")
        if tag == "a" and "href" in given:
            self._link = (given["href"], bool(given.get("aria-label") or given.get("title")))
        elif self._link and tag == "img" and given.get("alt"):
            self._link = (self._link[0], True)

    def handle_data(self, data: str) -> None:
        if self._link and data.strip():
            self._link = (self._link[0], True)

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._link:
            if not self._link[1]:
                self.unnamed_links.append(self._link[0])
            self._link = None


@cache
def read(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    # The theme repeats title and contents for printers; no screen shows that part and no voice reads it.
    return Page(re.sub(r'<div id="jb-print-docs-body".*?(?=<div id="searchbox">)', "", text, flags=re.DOTALL))


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
def test_headings_are_in_order(name: str) -> None:
    levels = read(BOOK / name).headings
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert not [pair for pair in pairwise(levels) if pair[1] > pair[0] + 1]


@pytest.mark.parametrize("name", pages())
def test_page_names_its_language_and_links(name: str) -> None:
    assert read(BOOK / name).language == "en"
    assert not read(BOOK / name).unnamed_links


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


UNFOLD = """
(() => { const all = [...document.querySelectorAll("details.solution")];
  for (const solution of all) solution.open = true;
  return all.length; })()
"""


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("name", pages())
def test_page_in_a_browser(name: str, width: int, address: str, browser: chromium.Browser) -> None:
    browser.size(width)
    browser.open(f"{address}/{name}")
    browser.evaluate(UNFOLD)
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


SHOWN = """
[...document.querySelectorAll("details.solution > section")].filter(e => e.checkVisibility()).length
"""


def test_solutions_are_folded_until_asked_for(address: str, browser: chromium.Browser) -> None:
    browser.size(DESKTOP)
    browser.open(f"{address}/norms/layer_norm.html")
    assert browser.evaluate(SHOWN) == 0
    browser.evaluate("document.querySelector('details.solution > summary').click()")
    assert browser.evaluate(SHOWN) == 1
    assert browser.evaluate("dispatchEvent(new Event('beforeprint')), 0") == 0
    assert browser.evaluate(SHOWN) == 3
    assert browser.evaluate("dispatchEvent(new Event('afterprint')), 0") == 0
    assert browser.evaluate(SHOWN) == 1


SEARCHES = {"rescaling one case changes nothing": "norms/layer_norm.html", "gyrovector": "poincare/ball.html"}


@pytest.mark.parametrize("query", SEARCHES)
def test_search_finds_a_chapter_without_a_network(query: str, address: str, browser: chromium.Browser) -> None:
    browser.size(DESKTOP)
    browser.open(f"{address}/search.html?q={quote(query)}")
    done = "[...document.querySelectorAll('#search-results li a[href]')].map(e => e.getAttribute('href'))"
    found: set[str] = set()
    for _ in range(100):
        found = {re.sub(r"[#?].*", "", link) for link in browser.evaluate(done)}
        if SEARCHES[query] in found:
            break
        time.sleep(0.1)
    assert SEARCHES[query] in found
    assert not [url for url in browser.requests if not url.startswith((address, "data:", "blob:"))]


# Text that is too faint: the ratio of luminances that WCAG 2.1 asks for at level AA, computed from what is shown.
FAINT_TEXT = """
(() => {
  const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = colour => { context.clearRect(0, 0, 1, 1); context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].map((v, i) => i < 3 ? v : v / 255); };
  const over = (top, under) => under.map((v, i) => i < 3 ? top[i] * top[3] + v * (1 - top[3]) : 1);
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const ground = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.unshift(rgba(getComputedStyle(e).backgroundColor));
    return layers.reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const faint = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const e = node.parentElement;
    if (!node.data.trim() || e.closest("script, style, noscript, [disabled], mjx-assistive-mml")) continue;
    if (!e.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    const style = getComputedStyle(e), under = ground(e), size = parseFloat(style.fontSize);
    const [a, b] = [luminance(over(rgba(style.color), under)), luminance(under)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5) - 0.005)
      faint.set(e.tagName + "." + e.className + " " + style.color, ratio.toFixed(2) + " " + node.data.trim().slice(0, 40));
  }
  return [...faint].map(pair => pair.join(": "));
})()
"""
SETTLED = "Promise.all(document.getAnimations().map(a => a.finished.catch(() => 0))).then(() => 0)"
"""Colours and places change in transitions."""
SAMPLE = ("index.html", "norms/layer_norm.html", "front/backward.html", "catalogue.html", "race.html", "search.html",
          "api/softmax.html", "poincare/ball.html", "norms/index.html")  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", SAMPLE)
def test_text_stands_out_from_its_ground(name: str, theme: str, address: str, browser: chromium.Browser) -> None:
    browser.size(DESKTOP)
    browser.open(f"{address}/{name}")
    browser.evaluate(f"document.documentElement.dataset.theme = {theme!r}")
    browser.evaluate(SETTLED)
    assert not browser.evaluate(FAINT_TEXT)


FOCUSED = """
(() => {
  const e = document.activeElement;
  // A toggle has no size of its own: its picture has.
  const parts = [e, ...e.querySelectorAll("*")], boxes = parts.map(part => part.getBoundingClientRect());
  const marked = parts.map(part => getComputedStyle(part)).some(style => style.boxShadow !== "none" ||
    (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0));
  return {text: (e.getAttribute("aria-label") || e.innerText || e.title || e.placeholder || "").trim(), href: e.getAttribute("href"),
    tag: e.tagName, shown: boxes.some(box => box.width > 0 && box.height > 0 && box.bottom > 0 && box.top < innerHeight),
    marked};
})()
"""


def press_tab(browser: chromium.Browser) -> None:
    for kind in ("rawKeyDown", "keyUp"):
        browser.send("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    # The skip link slides in, and the page scrolls to what has the focus.
    browser.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))).then(() => 0)")
    browser.evaluate(SETTLED)


def test_a_page_can_be_read_with_the_keyboard(address: str, browser: chromium.Browser) -> None:
    browser.size(DESKTOP)
    browser.open(f"{address}/norms/layer_norm.html")
    seen = []
    for _ in range(30):
        press_tab(browser)
        seen.append(browser.evaluate(FOCUSED))
    # The first stop leads past the menus.
    assert seen[0]["text"] == "Skip to main content"
    assert seen[0]["href"] == "#main-content"
    assert browser.evaluate("!!document.querySelector('#main-content')")
    stops = [stop for stop in seen if stop["tag"] != "BODY"]
    assert not [stop for stop in stops if not (stop["shown"] and stop["marked"] and stop["text"])]
    assert len({(stop["text"], stop["href"]) for stop in seen}) > 15


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
    page.write_text('<!doctype html><body style="background: #777"><p style="color: #999">faint</p><p>dark</p>')
    browser.open(page.as_uri())
    (faint,) = browser.evaluate(FAINT_TEXT)
    assert "faint" in faint


def test_the_parser_reports_what_is_wrong() -> None:
    page = Page('<html lang="en"><h1>a</h1><h3>b</h3><a href="x"><i></i></a><a href="y">y</a><img src="z">')
    assert (page.headings, page.unnamed_links, page.without_alt) == ([1, 3], ["x"], ["z"])
