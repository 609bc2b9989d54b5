import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from refnorm.conformance import GoldenCase, Tolerance, format_table, functions_of, load_cases, run, save_cases
from refnorm.norms import layer_norm, layer_norm_vjp

FULL = {"norms.layer_norm": layer_norm, "norms.layer_norm_vjp": layer_norm_vjp}


def test_the_reference_passes_and_every_source_is_named():
    outcomes = run(FULL)
    assert all(outcome.passed for outcome in outcomes), format_table(outcomes)
    assert all(outcome.source for outcome in outcomes)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda x, gain, bias, **o: layer_norm(x, gain, bias, **o) * (1 + 1e-6), ""),
        (lambda x, gain, bias, **o: layer_norm(x, gain, bias, **o)[..., :1], "shape"),
        (lambda x, gain, bias: x, "TypeError"),
        (lambda x, gain, bias, **o: (x, x), "2 results for 1 expected"),
        (lambda x, gain, bias, **o: layer_norm(x, gain, bias, **o) * np.nan, ""),
    ],
)
def test_a_wrong_implementation_fails_and_says_why(function, problem):
    outcomes = run({"norms.layer_norm": function})
    failed = [outcome for outcome in outcomes if not outcome.passed]
    assert failed
    assert problem in failed[0].problem
    assert f"FAILED {failed[0].name}" in format_table(outcomes)


def test_nothing_to_test_is_an_error():
    with pytest.raises(ValueError, match="implementation: expected at least one function with golden vectors"):
        run({}, methods=["norms/layer_norm"])


def test_a_misspelt_name_is_an_error_and_the_nearest_is_named():
    message = r"expected names of functions with golden vectors, got 'norms.layernorm' \(nearest: norms.layer_norm, "
    with pytest.raises(ValueError, match=message):
        run(FULL | {"norms.layernorm": layer_norm})
    with pytest.raises(ValueError, match="methods: expected methods with golden vectors, got 'norms/layer' "):
        run(FULL, methods=["norms/layer"])


def command(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "refnorm.conformance", *arguments], cwd=cwd, capture_output=True, text=True
    )


def test_command_on_a_third_partys_module(tmp_path):
    (tmp_path / "good.py").write_text("from refnorm.norms import layer_norm\n")
    (tmp_path / "mapped.py").write_text(
        "from refnorm.norms import layer_norm\n"
        "CONFORMANCE = {'norms.layer_norm': lambda x, g, b, **o: layer_norm(x, g, b, **o) + 1}\n"
    )
    good = command("good", cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    assert "0 failed" in good.stdout
    bad = command("mapped", cwd=tmp_path)
    assert bad.returncode == 1
    assert "FAILED" in bad.stdout
    missing = command("no_such_module", cwd=tmp_path)
    assert missing.returncode == 2
    assert missing.stderr.strip() == "conformance: No module named 'no_such_module'"
    unknown = command("good", "--method", "norms/none", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "methods: expected methods with golden vectors, got 'norms/none' (nearest: " in unknown.stderr


def test_files_hold_every_kind_of_argument(tmp_path):
    args = (np.arange(3.0), None, 2, "mean", 0.1, [np.float32(1.5), {"a": np.ones(2)}], (True, np.int8(3)))
    case = GoldenCase(
        "room.f", "all kinds", args, np.array([0.25, np.inf]), "by hand", Tolerance(1, "ulp"), {"axes": (-1,)}
    )
    save_cases("room/f", [case], tmp_path)
    (loaded,) = load_cases("room/f", tmp_path)
    assert loaded.options == {"axes": (-1,)}
    assert loaded.args[1:5] == (None, 2, "mean", 0.1)
    np.testing.assert_array_equal(loaded.args[5][1]["a"], np.ones(2))
    assert loaded.args[5][0].dtype == np.float32
    np.testing.assert_array_equal(loaded.expected, case.expected)
    assert not list(tmp_path.glob("**/*.part"))


def test_records_come_back_with_their_fields(tmp_path):
    from refnorm.gradcheck import GradientReport

    save_cases("room/f", [GoldenCase("room.f", "r", (GradientReport(0.5, "x", 3),), np.ones(1), "by hand")], tmp_path)
    assert load_cases("room/f", tmp_path)[0].args[0] == SimpleNamespace(worst_error=0.5, worst_argument="x", checks=3)


def test_unknown_schema_and_method_are_refused(tmp_path):
    save_cases("room/f", [GoldenCase("room.f", "r", (1,), np.ones(1), "by hand")], tmp_path)
    manifest = tmp_path / "room" / "f.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema": 99}))
    with pytest.raises(ValueError, match=r"f\.json: expected schema 1, got 99"):
        load_cases("room/f", tmp_path)
    with pytest.raises(
        ValueError, match=r"method: expected a method with golden vectors, got 'room/g' \(nearest: room/f\)"
    ):
        load_cases("room/g", tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            np.array(["a"]),
            r"0\.args\.0: expected a float, integer or boolean array of at most 8 bytes an item, got dtype <U1",
        ),
        (object(), r"0\.args\.0: expected an array, number, string, list, dict or record, got object"),
        (GoldenCase, "got type"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        save_cases("room/f", [GoldenCase("room.f", "r", (value,), np.ones(1), "by hand")], tmp_path)
    assert not list(tmp_path.glob("**/*.*"))


def test_a_module_may_declare_its_functions_and_run_tells_how_far_it_is():
    module = SimpleNamespace(CONFORMANCE={"norms.layer_norm": layer_norm})
    assert functions_of(module) == {"norms.layer_norm": layer_norm}
    seen = []
    run(FULL, methods=["norms/layer_norm"], progress=seen.append)
    assert seen == ["norms/layer_norm"]


def test_two_cases_of_one_name_are_refused(tmp_path):
    case = GoldenCase("room.f", "same", (1,), np.ones(1), "by hand")
    with pytest.raises(ValueError, match="expected distinct case names"):
        save_cases("room/f", [case, case], tmp_path)
    assert not (tmp_path / "room").exists()


@pytest.mark.parametrize(
    ("tolerance", "actual", "expected", "error"),
    [
        (Tolerance(), [1.0, np.nan], [1.0, np.nan], 0.0),
        (Tolerance(), [1.0, 2.0], [1.0, np.nan], np.inf),
        (Tolerance(2, "ulp"), [1.0 + 2**-52], [1.0], 1.0),
        (Tolerance(2, "ulp"), [np.inf, 1.0], [np.inf, 1.0], 0.0),
        (Tolerance(2, "ulp"), [np.inf], [1.0], np.inf),
        (Tolerance(2, "ulp"), [1.0, 1.0], [1.0, np.inf], np.inf),
        (Tolerance(2, "ulp"), [np.inf, np.nan], [np.inf, np.nan], 0.0),
        (Tolerance(2, "ulp_of_largest"), [0.0, 4.0], [2**-50, 4.0], 1.0),
        (Tolerance(1, "relative"), [1.5], [1.0], 0.5),
        (Tolerance(1, "relative"), [1.5], [0.0], np.inf),
        (Tolerance(1, "relative_of_largest"), [1.5, 10.0], [1.0, 10.0], 0.05),
        (Tolerance(1, "ulp"), [1.0], [1.0, 2.0], np.inf),
        (Tolerance(1, "ulp"), [], [], 0.0),
    ],
)
def test_error_measures(tolerance, actual, expected, error):
    assert tolerance.error(np.array(actual), np.array(expected)) == pytest.approx(error)


def test_a_tolerance_without_a_limit_is_refused():
    with pytest.raises(ValueError, match=r"limit: expected a finite number > 0, got 0\.0"):
        Tolerance(rule="ulp")
    with pytest.raises(ValueError, match="rule: expected one of"):
        Tolerance(1.0, "about")


def test_of_a_result_with_fields_those_that_count_are_compared(tmp_path):
    case = GoldenCase("room.f", "r", (2.0,), {"x": np.array(4.0)}, "by hand", kind="fields")
    save_cases("room/f", [case], tmp_path)
    vectors = {"room/f": load_cases("room/f", tmp_path)}

    def outcome(function):
        (found,) = run({"room.f": function}, vectors=vectors)
        return found

    assert outcome(lambda v: SimpleNamespace(x=np.array(v * v), n_iter=7)).passed
    assert outcome(lambda v: {"x": v * v, "history": {}}).passed
    assert not outcome(lambda v: {"x": v}).passed
    assert "KeyError" in outcome(lambda v: {"y": v}).problem


def test_what_an_implementation_does_not_do_is_neither_passed_nor_failed():
    def last_axis_only(x, gain, bias, *, eps=1e-5, axes=(-1,)):
        if tuple(axes) != (-1,):
            raise NotImplementedError("other axes")
        return layer_norm(x, gain, bias, eps=eps)

    outcomes = run({"norms.layer_norm": last_axis_only})
    (left_out,) = [outcome for outcome in outcomes if not outcome.supported]
    assert (left_out.passed, left_out.failed, left_out.problem) == (False, False, "other axes")
    assert format_table(outcomes).splitlines()[-1] == "8 passed, 0 failed, 1 not supported"
    assert "8/8" in format_table(outcomes)


def test_the_report_is_json_with_distances(tmp_path):
    (tmp_path / "near.py").write_text(
        "from refnorm.norms import layer_norm\n"
        "def functions():\n    return {'norms.layer_norm': lambda *a, **o: layer_norm(*a, **o) * (1 + 2**-20)}\n"
        "def broken():\n    raise KeyError('gone')\n"
    )
    done = command("run", "near:functions", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["implementation"] == "near:functions"
    assert found["summary"]["failed"] > 0
    double = next(case for case in found["cases"] if case["name"].startswith("shape (5, 2)"))
    assert 2**31 < double["ulp"] < 2**34
    assert double["entry_ulp"] >= double["ulp"]
    wrong = command("run", "near:broken", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("conformance: implementation: near:broken: KeyError: 'gone' (")
    assert wrong.stderr.rstrip().endswith("near.py:5)")


def test_commands_of_the_module_need_no_other_package(tmp_path):
    exported = command("export", "vectors", "--method", "nn/linear", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert "cases of 1 methods" in exported.stdout
    again = command("export", "vectors", cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr.startswith(
        "conformance: DIR: expected an empty folder, or --overwrite, got an earlier export: "
    )
    listed = json.loads(command("list", "--json", cwd=tmp_path).stdout)
    assert listed["nn/linear"] == {"nn.linear": 11, "nn.linear_vjp": 11}
    compared = command("compare", "vectors", cwd=tmp_path)
    assert compared.returncode == 0
    assert "0 removed, 0 changed: the version rises by MINOR" in compared.stdout
    assert command("run", "refnorm", "--vectors", "vectors", cwd=tmp_path).stdout.endswith("22 passed, 0 failed\n")
