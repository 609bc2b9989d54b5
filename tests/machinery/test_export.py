"""Golden vectors for other languages: what is written is what was meant, and readers that are not Python find it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refnorm.conformance import (
    GOLDEN_ROOT,
    GoldenCase,
    Tolerance,
    compare_exported,
    export_vectors,
    load_cases,
    load_exported,
    method_names,
    run,
)
from refnorm.conformance import _export as export_module
from refnorm.norms import layer_norm
from refnorm.tree import tree_leaves

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors") / "all"
    export_vectors(folder)
    return folder


def same(a, b):
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert type(a) is type(b)
        assert a == b or a != a


def test_every_case_comes_back_bit_for_bit(exported):
    found = load_exported(exported)
    assert sorted(found) == method_names()
    for method in method_names():
        for before, after in zip(load_cases(method), found[method], strict=True):
            for part in ("function", "name", "kind", "source", "tolerance"):
                assert getattr(before, part) == getattr(after, part)
            for part in ("args", "options", "cotangent", "expected"):
                leaves = [list(tree_leaves(getattr(case, part))) for case in (before, after)]
                for (place, one), (other_place, other) in zip(*leaves, strict=True):
                    assert place == other_place
                    same(one, other)


def test_the_schema_describes_every_file(exported):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((exported / "schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    validator.validate(json.loads((exported / "index.json").read_text()))
    for method in ("norms/layer_norm", "solvers/lion", "quantizers/llm_int8", "poincare/ball"):
        validator.validate(json.loads((exported / f"{method}.json").read_text()))
    broken = json.loads((exported / "norms/layer_norm.json").read_text())
    broken["cases"][0]["expected"] = {"array": "x"}
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(broken)


def test_the_safetensors_library_reads_the_same_arrays(exported):
    numpy = pytest.importorskip("safetensors.numpy")
    for method in method_names():
        found = numpy.load_file(exported / f"{method}.safetensors")
        with np.load(GOLDEN_ROOT / f"{method}.npz") as stored:
            assert set(found) == set(stored.files)
            for name in stored.files:
                same(stored[name], found[name])


def test_the_table_leads_to_every_array_by_its_offset_alone(exported):
    lines = (exported / "values.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["function", "case", "role", "type", "shape", "file", "value"]
    cases = {case.target: [] for method in method_names() for case in load_cases(method)}
    for method in method_names():
        for number, case in enumerate(load_cases(method)):
            cases[case.target].append((number, case))
    seen = 0
    for line in lines[1:]:
        function, number, role, kind, shape, file, value = line.split("\t")
        assert function in cases
        if role == "args.x" and kind in ("float32", "float64"):
            case = dict(cases[function])[int(number)]
            sizes = [int(size) for size in shape.split(",") if size]
            raw = np.fromfile(exported / file, np.dtype(kind), int(np.prod(sizes)), offset=int(value)).reshape(sizes)
            assert any(np.array_equal(raw, arg, equal_nan=True) for arg in case.args if isinstance(arg, np.ndarray))
            assert int(value) % raw.itemsize == 0, "aligned"
            seen += 1
    assert seen > 500


def test_an_implementation_is_held_to_an_exported_folder(exported):
    outcomes = run({"norms.layer_norm": layer_norm}, vectors=load_exported(exported))
    assert all(outcome.passed for outcome in outcomes)
    assert len(outcomes) == 9


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "_rows", fails)
    with pytest.raises(OSError, match="No space"):
        export_vectors(tmp_path / "vectors", methods=["norms/layer_norm"])
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_somebody_elses_is_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="expected an empty folder or an earlier export, got other files"):
            export_vectors(tmp_path, methods=["norms/layer_norm"], overwrite=overwrite)
    with pytest.raises(ValueError, match="expected a folder or a name that is free, got a file"):
        export_vectors(tmp_path / "notes.txt")
    with pytest.raises(
        ValueError, match=r"methods: expected methods with golden vectors, got 'norms/layernorm' \(nearest"
    ):
        export_vectors(tmp_path / "new", methods=["norms/layernorm"])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_earlier_export_is_replaced_on_demand_only(tmp_path):
    folder = tmp_path / "vectors"
    folder.mkdir()
    export_vectors(folder, methods=["norms/layer_norm", "nn/linear"])
    with pytest.raises(ValueError, match="expected an empty folder, or overwrite, got an earlier export"):
        export_vectors(folder, methods=["norms/layer_norm"])
    export_vectors(folder, methods=["norms/layer_norm"], overwrite=True)
    assert not (folder / "nn").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["vectors"]


def test_what_changed_since_an_export_is_told(exported, tmp_path, monkeypatch):
    assert compare_exported(exported) == {"added": [], "removed": [], "changed": []}
    old = [GoldenCase("room.f", name, (np.ones(2),), np.ones(2), "by hand", Tolerance(1, "ulp")) for name in ("a", "b")]
    new = [old[0], GoldenCase("room.f", "c", (1,), np.ones(2), "by hand")]
    changed = GoldenCase("room.f", "a", (np.ones(2),), np.full(2, 2.0), "by hand", Tolerance(1, "ulp"))
    monkeypatch.setattr(export_module, "load_exported", lambda directory: {"room/f": old})
    monkeypatch.setattr(export_module, "method_names", lambda: ["room/f"])
    monkeypatch.setattr(export_module, "load_cases", lambda method: [changed, *new[1:]])
    assert compare_exported(tmp_path) == {
        "added": ["room/f: room.f: c"], "removed": ["room/f: room.f: b"], "changed": ["room/f: room.f: a"],
    }  # fmt: skip


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_the_c_program_of_the_book_finds_what_the_page_says(exported, tmp_path):
    program = tmp_path / "check"
    command = [
        "gcc",
        "-O2",
        "-std=c11",
        "-Wall",
        "-Wextra",
        "-Werror",
        str(DOCS / "use" / "check.c"),
        "-lm",
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True)
    done = subprocess.run([program, exported], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    pattern = re.compile(r"(passed|FAILED) ([\w.]+), (.*): (\S+) ULP( at entry .*)?")
    printed, shown = (
        [pattern.fullmatch(line).groups() for line in text.splitlines()]
        for text in (done.stdout, (DOCS / "_data" / "conformance_c.txt").read_text())
    )
    assert [found[1:3] for found in printed] == [found[1:3] for found in shown]
    cases = [case for method in ("norms/layer_norm", "softmax/two_pass") for case in load_cases(method)]
    limits = {(case.target, case.name): case.tolerance.limit for case in cases}
    for (verdict, function, name, error, _), (_, _, _, page, _) in zip(printed, shown, strict=True):
        assert verdict == ("passed" if float(error) <= limits[function, name] else "FAILED")
        # Another compiler or C library rounds elsewhere.
        assert abs(float(error) - float(page)) <= 1 + 0.2 * float(page)
    nowhere = subprocess.run([program, tmp_path / "none"], capture_output=True, text=True)
    assert nowhere.returncode == 2
    assert "No such file" in nowhere.stderr


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_the_javascript_program_of_the_book_reads_the_vectors(exported):
    done = subprocess.run(["node", DOCS / "use" / "check.mjs", exported], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = [float(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines()]
    assert len(errors) == 4
    assert max(errors) < 1e-14


def adapter(name, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "refnorm.conformance", "run", f"refnorm.conformance.adapters.{name}:functions", *arguments],
        capture_output=True, text=True,
    )  # fmt: skip


def shown_functions(file):
    lines = (DOCS / "_data" / file).read_text().splitlines()
    return [line.split()[0] for line in lines[1:-1] if not line.startswith(" ")]


# Continuous integration installs neither framework; the extra "bench" has both.
@pytest.mark.parametrize(("name", "packages"), [("pytorch", ["torch"]), ("onnx", ["onnx", "onnxruntime"])])
def test_frameworks_own_operators_are_held_to_the_vectors(name, packages):
    import importlib.util

    if any(importlib.util.find_spec(package) is None for package in packages):
        pytest.skip(f"needs {' and '.join(packages)}")
    done = adapter(name, "--json")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["format"] == "refnorm-conformance-report"
    assert all(report["summary"][count] > 0 for count in ("passed", "failed", "not_supported"))
    assert not [
        case["problem"] for case in report["cases"] if not case["passed"] and case["supported"] and case["problem"]
    ]
    by_function = {}
    for case in report["cases"]:
        by_function.setdefault(case["function"], []).append(case)
    assert list(by_function) == shown_functions(f"conformance_{name}.txt"), "the page shows the same functions"
    assert all(case["passed"] for case in by_function["nn.relu"])
    offset = next(case for case in by_function["norms.layer_norm"] if case["name"] == "float32, common offset 1e+06")
    assert offset["ulp"] > 1000, "the rounded mean is seen"


def test_an_adapter_without_its_framework_says_so(tmp_path):
    code = "import sys; sys.modules['torch'] = None; from refnorm.conformance.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "refnorm.conformance.adapters.pytorch:functions"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("conformance: ")
    assert "torch" in done.stderr
