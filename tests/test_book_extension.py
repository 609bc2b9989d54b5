"""The directives that put computed things on the pages of the book."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

for module in ("sphinx", "myst_parser", "matplotlib"):
    pytest.importorskip(module, reason='the book needs pip install ".[docs]"')

ROOT = Path(__file__).resolve().parents[1]
EXTENSION = ROOT / "docs" / "_ext"

CONF = """
import sys
sys.path.insert(0, {extension!r})
extensions = ["myst_parser", "refnorm_book"]
myst_enable_extensions = ["dollarmath"]
source_suffix = {{".md": "markdown"}}
exclude_patterns = ["_generated", "_out", "_doctrees"]
html_theme = "basic"
nitpicky = True
nitpick_ignore_regex = [("py:obj", "refnorm.*")]  # there is no reference section here
refnorm_book_root = {root!r}
"""

CLAIMS = '''
from pathlib import Path
from helper import ANSWER
from refnorm.claims import Claim

with (Path(__file__).parent / "runs.txt").open("a") as log:
    log.write("run\\n")

def claims():
    return [
        Claim(statement="It is *fast*.", expected="above 1", holds=ANSWER > 1, figures={"speed-up": 1234.5678, "runs": 3}),
        Claim(statement="It is exact.", expected="below 1", holds=False, refuted="it is not", figures={"error": 2.5e-7}),
    ]

def figure():
    """A line that goes up."""
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots()
    ax.plot([0, 1], [0, 1])
    ax.set_xlabel("x")
    return fig
'''

RACE = {
    "machine": "a machine",
    "threads": 2,
    "copy_gb_per_s": 20.0,
    "command": "tools/race --json",
    "races": [
        {
            "method": "room/raced",
            "name": "forward",
            "shape": "4 x 4",
            "ours": "refnorm_fast",
            "results": {
                "PyTorch": {"median_ms": 2.0, "ratio": 2.5, "ratio_low": 2.25, "ratio_high": 2.75},
                "refnorm_fast": {"median_ms": 0.8, "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0},
            },
            "gb_per_s": 12.3,
            "accuracy": {"PyTorch": 60.0, "refnorm_fast": 0.9},
            "check_unit": "ULP",
        },
        {
            "method": "room/lost",
            "name": "backward",
            "shape": "8 x 8",
            "ours": "refnorm_fast",
            "results": {
                "PyTorch": {"median_ms": 0.4, "ratio": 0.5, "ratio_low": 0.45, "ratio_high": 0.55},
                "refnorm_fast": {"median_ms": 0.8, "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0},
            },
            "accuracy": {"PyTorch": 60.0, "refnorm_fast": 0.9},
            "check_unit": "ULP",
        },
    ],
}


EVIDENCE = {
    "command": "tools/evidence --json",
    "rooms": {
        "norms": {
            "methods": 2,
            "functions": 5,
            "vjps": 3,
            "gradient_cases": 7,
            "worst_gradient_error": 2.5e-9,
            "worst_gradient_at": "layer_norm_vjp",
            "golden_cases": 12,
            "golden_sources": {"mpmath": 10, "by hand": 2},
            "claims_holding": 3,
            "claims_refuted": [
                {"method": "norms/x", "statement": "It is *fast*.", "reason": "no", "figures": {"ratio": 0.5}}
            ],
        }
    },
}


def project(folder: Path, pages: dict[str, str]) -> Path:
    docs = folder / "docs"
    for name, text in pages.items():
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / f"{name}.md").write_text(text)
    (docs / "conf.py").write_text(CONF.format(extension=str(EXTENSION), root=str(folder)))
    claims = folder / "tests" / "claims" / "room"
    claims.mkdir(parents=True, exist_ok=True)
    (folder / "tests" / "helper.py").write_text("ANSWER = 2\n")
    (claims / "method.py").write_text(CLAIMS)
    return docs


def build(docs: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q"]
    process = subprocess.run(
        [*command, "-d", str(docs / "_doctrees"), str(docs), str(docs / "_out")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return process.returncode, process.stdout + process.stderr


def text_of(page: Path) -> str:
    """Return what a reader sees, without tags, on one line."""
    return " ".join(re.sub(r"<[^>]+>", " ", page.read_text()).split())


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    pages = {
        "index": "# Index\n\n```{chapters}\n:rest: room/*\nroom/second\nroom/absent\nroom/claims\n```\n",
        "room/claims": "# Claims\n\n```{claims} room/method\n```\n",
        "room/second": "# Second\n\n```{race} room/raced\n```\n\n```{race} room/other\n```\n",
        "room/lost": "# Lost\n\n```{lost-races}\n```\n",
        "room/box": "# Box\n\n```{method} norms/layer_norm\n```\n\n```{sources} norms/layer_norm\n```\n",
        "room/proof": "# Proof\n\n```{evidence}\n```\n\n```{evidence} norms\n```\n",
        "room/all": "# All\n\n```{catalogue}\n```\n\n```{kernels}\n```\n\n```{race}\n```\n",
    }
    docs = project(tmp_path_factory.mktemp("book"), pages)
    (docs / "_data").mkdir()
    (docs / "_data" / "race.json").write_text(json.dumps(RACE))
    (docs / "_data" / "evidence.json").write_text(json.dumps(EVIDENCE))
    status, printed = build(docs)
    assert status == 0, printed
    return docs


def test_claims_show_verdict_figures_and_reason(book):
    text = text_of(book / "_out" / "room" / "claims.html")
    assert "Claim 1 holds" in text
    assert "1235" in text
    assert "Claim 2 does not show in miniature" in text
    assert "2.5 · 10⁻⁷" in text
    assert "Why it does not show: it is not" in text
    assert "<em>fast</em>" in (book / "_out" / "room" / "claims.html").read_text()


def test_a_drawing_is_described_and_follows_the_page_into_the_dark(book):
    html = (book / "_out" / "room" / "claims.html").read_text()
    pictures = re.findall(r"<img [^>]*>", html)
    assert len(pictures) == 2
    assert all('alt="A line that goes up."' in picture for picture in pictures)
    light, dark = ((book / "_out" / "_images" / f"room-method-{theme}.svg").read_text() for theme in ("light", "dark"))
    assert "#000000" in light
    assert "#000000" not in dark


def test_a_race_lists_ours_first_and_says_when_there_is_none(book):
    text = text_of(book / "_out" / "room" / "second.html")
    assert text.index("refnorm_fast (12.3 GB/s of the floor)") < text.index("PyTorch")
    assert "2.50 (2.25 to 2.75)" in text
    assert "Worst error, ULP" in text
    assert "a machine; 2 threads" in text
    assert "has not been raced" in text


def test_lost_races_are_listed_with_peer_and_errors(book):
    text = text_of(book / "_out" / "room" / "lost.html")
    assert "In 1 of 2 races the ratio is below 0.95" in text
    assert "backward 8 x 8 PyTorch 0.50 (0.45 to 0.55) 0.9 / 60" in text
    assert "4 x 4" not in text


def test_chapters_come_in_the_listed_order_and_none_is_left_out(book):
    links = re.findall(r'toctree-l1"><a[^>]*href="room/(\w+)\.html"', (book / "_out" / "index.html").read_text())
    assert links[:2] == ["second", "claims"]
    assert sorted(links) == ["all", "box", "claims", "lost", "proof", "second"]


def test_the_box_of_a_method_is_looked_up(book):
    text = text_of(book / "_out" / "room" / "box.html")
    assert "Layer Normalization" in text
    assert "Ba, Kiros, Hinton (2016)" in text
    assert "✓ gradient check" in text
    assert 'href="https://arxiv.org/abs/1607.06450"' in (book / "_out" / "room" / "box.html").read_text()


def test_functions_are_listed_with_the_equations_that_they_are(book):
    text = text_of(book / "_out" / "room" / "box.html")
    assert "add_layer_norm , layer_norm Ba, Kiros, Hinton (2016), arXiv 1607.06450, equations 3 and 4." in text
    assert "invariance_report Ba, Kiros, Hinton (2016), arXiv 1607.06450, table 1." in text


def test_a_chapter_is_in_the_index_under_its_title_and_the_papers(book):
    html = (book / "_out" / "genindex.html").read_text()
    for title in ("Box", "Layer Normalization"):
        assert f'<a href="room/box.html#method-norms-layer-norm">{title}</a>' in html
    assert 'id="method-norms-layer-norm"' in (book / "_out" / "room" / "box.html").read_text()


def test_the_evidence_of_a_room_is_told(book):
    text = text_of(book / "_out" / "room" / "proof.html")
    assert "3 of 4" in text
    assert "worst relative error is 2.5 · 10⁻⁹ (layer_norm_vjp)" in text
    assert "12 golden cases: 10 from mpmath, 2 by hand" in text
    assert "Measured: ratio: 0.5" in text


def test_the_catalogue_lists_every_method(book):
    from refnorm import catalogue

    text = text_of(book / "_out" / "room" / "all.html")
    for method in catalogue.methods():
        assert method.authors in text


def test_a_script_runs_again_only_when_something_it_imports_changes(tmp_path):
    docs = project(tmp_path, {"index": "# Claims\n\n```{claims} room/method\n```\n"})
    runs = tmp_path / "tests" / "claims" / "room" / "runs.txt"
    assert build(docs)[0] == 0
    assert build(docs)[0] == 0
    assert runs.read_text().count("run") == 1
    (tmp_path / "tests" / "helper.py").write_text("ANSWER = 3\n")
    assert build(docs)[0] == 0
    assert runs.read_text().count("run") == 2


def test_a_claim_that_does_not_come_out_fails_the_build(tmp_path):
    docs = project(tmp_path, {"index": "# Claims\n\n```{claims} room/method\n```\n"})
    (tmp_path / "tests" / "helper.py").write_text("ANSWER = 0\n")
    status, printed = build(docs)
    assert status == 1
    assert "claim 1 of room/method does not come out as stated" in printed
    assert "Claim 1 does not hold" in text_of(docs / "_out" / "index.html")


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("```{method} norms/no_such_norm\n```", "no_such_norm"),
        ("```{sources} norms/no_such_norm\n```", "no_such_norm"),
        ("```{evidence} no_such_room\n```", "no room 'no_such_room'"),
        ("```{claims} room/no_such_claim\n```", "no such script"),
        ("```{drawing} broken\n```", "ZeroDivisionError"),
    ],
)
def test_what_cannot_be_computed_fails_the_build(tmp_path, page, complaint):
    docs = project(tmp_path, {"index": f"# Title\n\n{page}\n"})
    (docs / "broken.py").write_text("1 / 0\n")
    (docs / "_data").mkdir()
    (docs / "_data" / "evidence.json").write_text(json.dumps(EVIDENCE))
    status, printed = build(docs)
    assert status == 1
    assert complaint in printed


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, "yes"),
        (3, "3"),
        (1234567, "1\u202f234\u202f567"),
        (-2, "−2"),
        (0.0, "0"),
        (0.123456, "0.1235"),
        (-0.5, "−0.5"),
        (1e-12, "1 · 10⁻¹²"),
        (2.5e300, "2.5 · 10³⁰⁰"),
        (float("inf"), "∞"),
        (float("nan"), "NaN"),
        ("text", "text"),
    ],
)
def test_numbers_are_shown_to_four_digits(value, shown):
    probe = f"import sys; sys.path.insert(0, {str(EXTENSION)!r}); from refnorm_book import format_number as f, re\n"
    probe += f"inf, nan = float('inf'), float('nan')\nsys.stdout.buffer.write(f({value!r}).encode())"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, check=True).stdout.decode() == shown
