"""The commands that look methods up and repeat their evidence."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("typer", reason="the command needs the extra demo")
pytest.importorskip("rich", reason="the command needs the extra demo")

import refnorm
from refnorm import catalogue, cli
from refnorm.cli import _config, _names, _race

ROOT = Path(__file__).parents[2]


def document(capsys, *arguments):
    """Run a command with --json and return what it wrote."""
    assert cli.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_list_shows_the_methods_that_hold_all_words(capsys):
    assert cli.main(["list", "layer", "norm", "--room", "norms"]) == 0
    out = capsys.readouterr().out
    assert "norms/layer_norm" in out
    assert "softmax/" not in out
    assert "methods; `refnorm show METHOD` tells more" in out


def test_list_as_json_is_the_catalogue(capsys):
    listed = document(capsys, "list")
    assert [entry["method"] for entry in listed] == [method.chapter for method in catalogue.methods()]
    assert {"title", "authors", "year", "arxiv", "functions", "vjps", "golden_cases", "kernels", "parts"} < set(
        listed[0]
    )


def test_show_tells_formula_functions_sources_and_files(capsys):
    assert cli.main(["show", "norms/layer_norm"]) == 0
    out = capsys.readouterr().out
    assert "y = gain * (x - mean(x)) / sqrt(var(x) + eps) + bias" in out
    assert "arXiv 1607.06450" in out
    assert "layer_norm(x, gain, bias, *, eps=1e-05, axes=(-1,))  vjp" in out
    assert "arXiv 1607.06450, equations 3 and 4.\n    add_layer_norm, layer_norm\n" in out
    assert "mpmath, 50 digits" in out
    assert str(ROOT / "docs" / "norms" / "layer_norm.md") in out


def test_show_takes_the_name_of_a_function_too(capsys):
    shown = document(capsys, "show", "gelu")
    assert shown["method"] == "nn/activations"
    assert sum(shown["golden_sources"].values()) == shown["golden_cases"]


def test_show_has_measured_figures_once_they_are_measured(capsys, monkeypatch, tmp_path):
    claim = {
        "statement": "S",
        "expected": "E",
        "holds": True,
        "as_stated": True,
        "refuted": "",
        "figures": [["f", 0.5]],
    }

    class Store:
        found = SimpleNamespace(claims=[claim], seconds=1.0)

        def stored(self, name, script):
            return self.found

    monkeypatch.setattr("refnorm.cli._show.evidence", lambda root: (Store(), RuntimeError))
    assert document(capsys, "show", "norms/layer_norm")["evidence"]["claims"][0]["figures"] == {"f": 0.5}
    Store.found = None
    assert cli.main(["show", "norms/layer_norm"]) == 0
    assert "`refnorm claims norms/layer_norm` measures them" in " ".join(capsys.readouterr().out.split())


def test_an_installed_package_says_where_the_evidence_is(capsys, monkeypatch):
    monkeypatch.setattr(catalogue, "source_root", lambda: None)
    for command in (["claims"], ["race"]):
        assert cli.main(command) == 2
        assert "are not part of the installed package: get the source" in capsys.readouterr().err
    assert cli.main(["show", "norms/layer_norm"]) == 0
    assert "in the source checkout, not in the installed package" in " ".join(capsys.readouterr().out.split())


def test_claims_measures_and_its_status_tells_the_outcome(capsys, tmp_path, monkeypatch):
    script = tmp_path / "tests" / "claims" / "norms" / "layer_norm.py"
    script.parent.mkdir(parents=True)
    for holds in (True, False):
        script.write_text(
            "from refnorm.claims import Claim\n"
            f"def claims():\n    return [Claim(statement='Half is half.', expected='0.5', holds={holds}, figures={{'half': 0.5}})]\n"
        )
        monkeypatch.setattr("refnorm.cli._claims.checkout", lambda what: tmp_path)
        monkeypatch.setattr("refnorm.cli._claims.evidence", lambda root: real_store(tmp_path))
        assert cli.main(["claims", "norms/layer_norm", "--json"]) == (0 if holds else 1)
        (measured,) = json.loads(capsys.readouterr().out)
        assert measured["method"] == "norms/layer_norm"
        assert measured["claims"][0]["figures"] == {"half": 0.5}
        assert cli.main(["claims", "norms/layer_norm"]) == (0 if holds else 1)
        assert ("[holds] Half is half." in capsys.readouterr().out) is holds
    script.write_text("raise RuntimeError('broken script')")
    assert cli.main(["claims", "norms/layer_norm"]) == 2
    assert "broken script" in capsys.readouterr().err


def real_store(folder):
    sys.path.append(str(ROOT / "docs" / "_ext"))
    try:
        from evidence import ScriptFailed, Store
    finally:
        sys.path.pop()
    return Store(folder, folder / "cache"), ScriptFailed


def test_race_hands_its_options_to_the_tool_and_prints_its_json(capfd, tmp_path, monkeypatch):
    tool = tmp_path / "tools" / "race"
    tool.parent.mkdir()
    tool.write_text(
        "import json, sys\nprint('racing')\nargs = sys.argv[1:]\n"
        "open(args[args.index('--json') + 1], 'w').write(json.dumps({'given': args[:6] + args[-2:]}))\n"
    )
    monkeypatch.setattr(_race, "checkout", lambda what: tmp_path)
    assert cli.main(["race", "softmax", "--rounds", "3", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["given"] == ["--rounds", "3", "--budget", "6.0", "--threads", "2", "--", "softmax"]
    assert err == "racing\n"


def test_config_describes_the_installation(capsys):
    assert cli.main(["config"]) == 0
    out = capsys.readouterr().out
    assert f"refnorm: {refnorm.__version__}" in out
    facts = document(capsys, "config")
    assert facts["checkout"] == str(ROOT)
    assert {"numpy", "scipy", "kernels", "extras", "model", "environment"} < set(facts)


def test_config_knows_which_packages_of_an_extra_are_missing(monkeypatch):
    monkeypatch.setattr(
        "importlib.metadata.requires",
        lambda name: ['rich>=13; extra == "demo"', 'no-such-thing; extra == "demo"', "numpy>=2"],
    )
    found = _config.extras()
    assert found["demo"]["rich"]
    assert found["demo"]["no-such-thing"] is None
    assert list(found) == ["demo"]


def test_completion_knows_every_method_without_importing_them():
    assert _names.method_names() == [method.chapter for method in catalogue.methods()]
    assert _names.complete_method("norms/layer") == ["norms/layer_norm"]
    assert _names.complete_method("layer_n") == ["norms/layer_norm"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("refnorm sh", ["show"]),
        ("refnorm show norms/lay", ["norms/layer_norm"]),
        ("refnorm conformance ex", ["export"]),
    ],
)
def test_a_shell_is_offered_commands_and_methods(words, offered):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "_REFNORM_COMPLETE": "complete_bash", "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "refnorm"], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == offered, done.stderr
