"""The figures that a reader moves: their data against refnorm, and the built pages in a browser."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BOOK = Path(os.environ.get("REFNORM_BOOK", "not built")).resolve()
needs_book = pytest.mark.skipif(
    not (BOOK / "index.html").is_file(), reason="needs a fresh build of the book: run tools/book --check"
)


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


chromium = load("refnorm_interactive_chromium", HERE / "chromium.py")


def chapters() -> dict[str, str]:
    """Return the page of each figure, by the figure's script below ``docs``."""
    found = {}
    for path in sorted((ROOT / "docs").glob("*/*.md")):
        for name in re.findall(r"^`{3,}\{interactive\}\s+(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            found[name] = path.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
    return found


@functools.cache
def script(name: str) -> ModuleType:
    return load(f"refnorm_interactive_{Path(name).stem}", ROOT / "docs" / f"{name}.py")


@functools.cache
def data(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(script(name).data(), allow_nan=False))
    return found


# --- the data


@pytest.mark.parametrize("name", chapters())
def test_a_figure_has_its_script_and_little_data(name: str) -> None:
    assert (ROOT / "docs" / "_static" / "interactive" / f"{Path(name).stem}.js").is_file()
    assert len(json.dumps(data(name), separators=(",", ":"))) < 200_000


def test_the_tiling_is_regular() -> None:
    from refnorm.poincare import dist

    found = data("poincare/tiling")
    corners, sides = np.array(found["corners"]), np.array(found["sides"])
    lengths = dist(corners[sides[:, 0]], corners[sides[:, 1]], 1.0)
    # Corners are rounded to 7 digits, which the metric magnifies near the rim.
    np.testing.assert_allclose(lengths, found["side"], rtol=1e-4)
    # Half a side, by the right triangle with the angles pi/7 and pi/3.
    assert found["side"] / 2 == pytest.approx(np.arccosh(np.cos(np.pi / 7) / np.sin(np.pi / 3)), rel=1e-12)
    meeting = np.bincount(sides.ravel(), minlength=len(corners))
    assert set(meeting[np.linalg.norm(corners, axis=1) < 0.9]) == {3}
    home = corners[found["home"]]
    np.testing.assert_allclose(np.linalg.norm(home, axis=1), np.linalg.norm(home[0]), rtol=1e-6)


def test_each_motion_of_the_tiling_takes_corners_to_corners() -> None:
    from refnorm.poincare import mobius_add

    found = data("poincare/tiling")
    corners, home = np.array(found["corners"]), np.array(found["corners"])[found["home"]]
    for centre, angle in zip(found["centres"], found["angles"], strict=True):
        turned = home @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        there = mobius_add(np.tile(centre, (len(home), 1)), turned, 1.0)
        assert np.linalg.norm(there[:, None] - corners, axis=-1).min(axis=1).max() < 1e-6


def test_the_errors_of_softmax_are_those_of_exact_arithmetic() -> None:
    mpmath = pytest.importorskip("mpmath")
    found, module = data("softmax/temperature"), script("softmax/temperature")
    for index in (3, 12):
        x = (module.LOGITS / np.float32(found["temperatures"][index])).astype(np.float32)
        with mpmath.workdps(40):
            exponentials = [mpmath.exp(mpmath.mpf(float(value))) for value in x]
            exact = [value / mpmath.fsum(exponentials) for value in exponentials]
            for algorithm in found["algorithms"]:
                y = module.ALGORITHMS[algorithm["name"]](x)
                units = [float(np.spacing(np.float32(float(value)))) for value in exact]
                ulps = [float(abs(mpmath.mpf(float(a)) - b)) / u for a, b, u in zip(y, exact, units, strict=True)]
                np.testing.assert_allclose(algorithm["errors"][index], ulps, atol=0.006)
    by_name = {algorithm["name"]: algorithm["errors"] for algorithm in found["algorithms"]}
    assert by_name["exp(x) as it is"][0] is None
    assert max(value for row in by_name["two passes over pairs"] for value in row if value is not None) <= 0.51
    np.testing.assert_allclose(np.sum(found["probabilities"], axis=1), 1, atol=5e-5)


@pytest.mark.parametrize(
    ("norm", "axes", "removes_mean"),
    [
        ("Batch", (0, 2), True),
        ("Layer", (1, 2), True),
        ("Layer, per token", (1,), True),
        ("RMS, per token", (1,), False),
        ("Instance", (2,), True),
    ],
)
def test_entries_share_statistics_along_the_axes_of_the_norm(
    norm: str, axes: tuple[int, ...], removes_mean: bool
) -> None:
    found = data("norms/shared_entries")
    record = {record["name"]: record for record in found["norms"]}[norm]
    sets = np.array(record["sets"]).reshape(found["shape"])
    assert record["removesMean"] == removes_mean
    # One number along these axes, and another for each entry of the others.
    assert (sets == sets.min(axis=axes, keepdims=True)).all()
    assert len(np.unique(sets)) == sets.size // np.prod([sets.shape[axis] for axis in axes])


def test_groups_of_channels_share_statistics() -> None:
    found = data("norms/shared_entries")
    examples, channels, places = found["shape"]
    sets = np.array(found["norms"][-1]["sets"]).reshape(examples, 2, channels // 2 * places)
    assert (sets == sets[..., :1]).all()
    assert len(np.unique(sets)) == examples * 2


def test_the_grids_of_the_weights_are_those_of_the_quantizer() -> None:
    from refnorm.quantizers import affine_qparams, fake_quantize

    found, module = data("quantizers/grid"), script("quantizers/grid")
    w, _ = module.weights()
    assert sum(found["histogram"]) == found["size"] == w.size
    for grid in found["grids"]:
        for bits, at in zip(found["bits"], grid["at"], strict=True):
            scale, zero_point = affine_qparams(w, bits=bits, **module.GRIDS[grid["name"]])
            quantized = fake_quantize(w, scale, zero_point, bits=bits).astype(np.float64)
            assert at["error"] == pytest.approx(np.sqrt(np.mean((quantized - w) ** 2)), rel=1e-4)
            assert len(at["counts"]) == 2**bits
            assert sum(at["counts"]) == w.size
            values = at["first"] + at["scale"] * np.arange(2**bits)
            mean = np.dot(values, at["counts"]) / w.size
            assert mean == pytest.approx(quantized.mean(), abs=1e-4 * at["scale"] * 2**bits)


def test_without_the_encoder_a_small_network_is_trained() -> None:
    pytest.importorskip("sklearn")
    w = script("quantizers/grid").digit_weights()
    assert w.shape == (64, 64)
    assert w.dtype == np.float32
    # scikit-learn starts from a uniform distribution of this half width.
    assert np.abs(w).max() > 1.2 * np.sqrt(6 / (64 + 64))


def test_gradients_of_the_landscapes() -> None:
    module = script("solvers/valley")
    points = np.random.default_rng(1).normal(0, 2, (20, 2))
    for function, _, _ in module.LANDSCAPES.values():
        steps = 1e-6 * np.eye(2)
        slopes = [(function(points + step)[0] - function(points - step)[0]) / 2e-6 for step in steps]
        np.testing.assert_allclose(np.stack(slopes, axis=-1), function(points)[1], rtol=1e-6, atol=1e-8)


def test_paths_are_the_steps_of_the_optimizers() -> None:
    pytest.importorskip("contourpy")
    found, module = data("solvers/valley"), script("solvers/valley")
    for landscape in found["landscapes"]:
        function, start, _ = module.LANDSCAPES[landscape["name"]]
        paths = {name: rates[3] for name, rates in zip(found["names"], landscape["paths"], strict=True)}
        momentum, accumulator, average = np.zeros((3, 2))
        x = dict.fromkeys(("SGD with momentum", "AdaGrad", "Lion"), start)
        for step in range(8):
            gradients = {name: function(point)[1] for name, point in x.items()}
            for name, point in x.items():
                np.testing.assert_allclose(paths[name]["points"][step], point, atol=6e-4)
            momentum = 0.9 * momentum + gradients["SGD with momentum"]
            accumulator = accumulator + gradients["AdaGrad"] ** 2
            sign = np.sign(0.9 * average + 0.1 * gradients["Lion"])
            average = 0.99 * average + 0.01 * gradients["Lion"]
            moves = {
                "SGD with momentum": momentum,
                "AdaGrad": gradients["AdaGrad"] / np.sqrt(accumulator),
                "Lion": sign,
            }
            x = {name: x[name] - 0.1 * move for name, move in moves.items()}


def test_projection_keeps_the_weights_short_where_only_their_direction_counts() -> None:
    pytest.importorskip("contourpy")
    found = data("solvers/valley")
    paths = dict(zip(found["names"], found["landscapes"][1]["paths"], strict=True))
    for rate in range(3, len(found["rates"])):
        length = {name: np.linalg.norm(rates[rate]["points"][-1]) for name, rates in paths.items()}
        assert length["SGDP"] < length["SGD with momentum"] / 2
        assert length["AdamP"] < length["Adam"] / 2


# --- the directive


CONF = """
import sys
sys.path[:0] = [{extension!r}, {root!r}]
extensions = ["myst_parser", "refnorm_book", "interactive"]
exclude_patterns = ["_generated", "_out*", "_doctrees*"]
html_static_path = ["_static"]
html_theme = "basic"
version = copyright = "1"
suppress_warnings = ["epub.unknown_project_files"]
refnorm_book_root = {work!r}
"""

SCRIPT = '''
def data():
    return {"text": "</script>", "numbers": [1, 2]}

def figure():
    """A *line*."""
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots()
    ax.plot(data()["numbers"])
    return fig
'''


def build(docs: Path, builder: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "sphinx", "-b", builder, "-W", "-q", "-d", str(docs / f"_doctrees-{builder}")]
    process = subprocess.run(
        [*command, str(docs), str(docs / f"_out-{builder}")], capture_output=True, text=True, check=False
    )
    return process.returncode, process.stdout + process.stderr


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("sphinx", "myst_parser", "matplotlib"):
        pytest.importorskip(module, reason='the book needs pip install ".[docs]"')
    docs = tmp_path_factory.mktemp("interactive") / "docs"
    shutil.copytree(ROOT / "docs" / "_static" / "interactive", docs / "_static" / "interactive")
    work, extension = str(docs.parent), str(ROOT / "docs" / "_ext")
    (docs / "conf.py").write_text(CONF.format(extension=extension, root=str(ROOT), work=work))
    (docs / "index.md").write_text("# Top\n\n```{interactive} moves\n```\n\n```{toctree}\nother\n```\n")
    (docs / "other.md").write_text("# Other\n")
    (docs / "moves.py").write_text(SCRIPT)
    (docs / "_static" / "interactive" / "moves.js").write_text("")
    return docs


def test_pages_get_data_scripts_and_a_picture_without_scripts(small: Path) -> None:
    status, printed = build(small, "html")
    assert status == 0, printed
    page = (small / "_out-html" / "index.html").read_text()
    found = re.search(r'<script type="application/json">(.*?)</script>\s*<noscript>(.*?)</noscript>', page, re.DOTALL)
    assert found is not None
    assert json.loads(found[1]) == {"text": "</script>", "numbers": [1, 2]}
    assert found[2].count("<img ") == 2
    assert page.index("interactive/interactive.js") < page.index("interactive/moves.js")
    assert "<em>line</em>" in page[page.index("<figcaption") :]
    assert "interactive" not in (small / "_out-html" / "other.html").read_text()


@pytest.mark.parametrize(("builder", "page"), [("latex", "*.tex"), ("epub", "index.xhtml")])
def test_other_formats_get_the_picture_alone(small: Path, builder: str, page: str) -> None:
    status, printed = build(small, builder)
    assert status == 0, printed
    text = next((small / f"_out-{builder}").rglob(page)).read_text()
    assert "moves-light" in text
    assert "application/json" not in text
    assert "interactive.js" not in text


# --- the built pages


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Browser]:
    path = chromium.find()
    if path is None:
        pytest.skip("no Chromium was found: apt-get install chromium, or set CHROMIUM to its path")
    with chromium.Browser(path) as opened:
        yield opened


def open_page(browser: chromium.Browser, name: str, width: int) -> str:
    """Open the page of a figure, and return an expression for the figure's element."""
    browser.size(width)
    browser.open((BOOK / chapters()[name]).as_uri())
    place = f"document.querySelector('[data-figure=\"{Path(name).stem}\"]')"
    # The drawing waits for its width.
    browser.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))")
    assert browser.evaluate(f"{place}.dataset.ready") == "true"
    return place


# Moves a slider as the arrow keys do, to the far end of where it stands; chooses the next of exclusive choices.
CONTROLS = """
(place => {
  const picture = () => [...place.querySelectorAll("svg")].map(svg => svg.outerHTML).join("");
  const groups = [...place.querySelectorAll("fieldset")].map(set => [...set.querySelectorAll("input")]);
  const found = [];
  for (const input of place.querySelectorAll("input[type=range]")) {
    const before = picture(), said = input.parentElement.querySelector("output").textContent;
    input.value = Number(input.value) > (Number(input.min) + Number(input.max)) / 2 ? input.min : input.max;
    input.dispatchEvent(new Event("input", { bubbles: true }));
    found.push([input.labels[0].textContent, picture() !== before,
      said !== input.parentElement.querySelector("output").textContent, /NaN|Infinity|undefined/.test(picture())]);
  }
  for (const inputs of groups) {
    const before = picture(), at = inputs.findIndex(input => input.checked);
    inputs[(at + 1) % inputs.length].click();
    found.push([inputs[0].closest("fieldset").querySelector("legend").textContent, picture() !== before, true,
      /NaN|Infinity|undefined/.test(picture())]);
  }
  return found;
})
"""


@needs_book
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", chapters())
def test_every_control_changes_the_figure(name: str, width: int, browser: chromium.Browser) -> None:
    place = open_page(browser, name, width)
    moved = browser.evaluate(f"{CONTROLS}({place})")
    assert moved
    for label, changed, said, broken in moved:
        assert label
        assert (changed, said, broken) == (True, True, False), label
    assert not browser.console
    assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@needs_book
@pytest.mark.parametrize("name", chapters())
def test_without_scripts_there_is_a_picture(name: str, browser: chromium.Browser) -> None:
    browser.size(1280)
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open((BOOK / chapters()[name]).as_uri())
        document = browser.send("DOM.getDocument", depth=1)["root"]["nodeId"]
        wanted = f'[data-figure="{Path(name).stem}"] noscript img'
        image = browser.send("DOM.querySelector", nodeId=document, selector=wanted)["nodeId"]
        corners = browser.send("DOM.getBoxModel", nodeId=image)["model"]["content"]
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert corners[2] - corners[0] > 300
    assert corners[5] - corners[1] > 100


@needs_book
def test_a_slider_moves_by_the_arrow_keys(browser: chromium.Browser) -> None:
    place = open_page(browser, "poincare/tiling", 1280)
    browser.evaluate(f"{place}.querySelector('input').focus()")
    before = browser.evaluate(f"{place}.querySelector('output').textContent")
    for kind in ("keyDown", "keyUp"):
        browser.send("Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39)
    after = browser.evaluate(f"{place}.querySelector('output').textContent")
    assert float(after) == pytest.approx(float(before) + 0.05)


@needs_book
def test_the_point_of_the_tiling_follows_the_pointer(browser: chromium.Browser) -> None:
    place = open_page(browser, "poincare/tiling", 1280)
    browser.evaluate(f"{place}.scrollIntoView(); 0")
    box = "(e => { const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2, b.width]; })"
    x, y, _ = browser.evaluate(f"{box}({place}.querySelector('.handle'))")
    middle, height, width = browser.evaluate(f"{box}({place}.querySelector('svg'))")
    half = (width - 4) / 2
    target = (middle - half / 2, height)
    for kind, (at_x, at_y) in (("mousePressed", (x, y)), ("mouseMoved", target), ("mouseReleased", target)):
        browser.send("Input.dispatchMouseEvent", type=kind, x=at_x, y=at_y, button="left", clickCount=1)
    # Half way to the rim, to the left: artanh(1/2) 2 = log 3.
    distance, direction = browser.evaluate(f"[...{place}.querySelectorAll('input')].map(input => Number(input.value))")
    assert distance == pytest.approx(np.log(3), abs=0.05)
    assert direction == pytest.approx(180, abs=1)


@needs_book
def test_the_page_adds_points_as_refnorm_does(browser: chromium.Browser) -> None:
    from refnorm.poincare import exp0, mobius_add

    rng = np.random.default_rng(0)
    x, y = exp0(rng.normal(0, 1.5, (2, 50, 2)), 1.0)
    open_page(browser, "poincare/tiling", 1280)
    call = f"{json.dumps(x.tolist())}.map((x, k) => refnormFigures.mobiusAdd(x, {json.dumps(y.tolist())}[k]))"
    np.testing.assert_allclose(browser.evaluate(call), mobius_add(x, y, 1.0), rtol=1e-12, atol=1e-13)
