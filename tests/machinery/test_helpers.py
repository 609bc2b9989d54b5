import dataclasses
import importlib
import inspect

import numpy as np
import pytest

import refnorm
from refnorm import _checks, catalogue
from refnorm._arrays import sum_to, ulp_error
from refnorm.tree import tree_leaves, tree_map


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _checks.float_array([1, 2], "x"), TypeError, "x: expected a float32 or float64 array, got dtype int64"),
        (lambda: _checks.float_array(1j, "x"), TypeError, "got dtype complex128"),
        (lambda: _checks.float_array(np.ones(2), "x", ndim=2), ValueError, r"x: expected 2 dimensions, got shape \(2,\)"),
        (lambda: _checks.integer_array([1.0], "k"), TypeError, "k: expected an integer array, got dtype float64"),
        (lambda: _checks.integer_array([1, 7], "k", high=5), ValueError, "k: expected values of at most 5, got 7"),
        (lambda: _checks.integer_array([-1], "k", low=0), ValueError, "k: expected values of at least 0, got -1"),
        (lambda: _checks.axes(2, 2), ValueError, "axis: expected integers from -2 to 1, got 2"),
        (lambda: _checks.axes((0, -2), 2), ValueError, "axis: expected distinct axes"),
        (lambda: _checks.positive(np.inf, "eps"), ValueError, "eps: expected a finite number > 0, got inf"),
        (lambda: _checks.non_negative(-1, "eps"), ValueError, "eps: expected a finite number >= 0, got -1"),
        (lambda: _checks.in_range(1, "beta", 0, 1, closed="left"), ValueError, r"beta: expected a number in \[0, 1\), got 1"),
        (lambda: _checks.in_range(np.nan, "beta", 0, 1), ValueError, "got nan"),
        (lambda: _checks.whole(True, "bits"), TypeError, "bits: expected an integer, got True"),
        (lambda: _checks.whole(1, "bits", low=2, high=16), ValueError, "bits: expected an integer >= 2 and <= 16, got 1"),
        (lambda: _checks.one_of("a", "mode", ("b", "c")), ValueError, "mode: expected one of 'b', 'c', got 'a'"),
        (lambda: _checks.finite(np.array([0, np.nan]), "x"), ValueError, r"x: expected finite values, got 1 that are not, the first at index \(1,\)"),
        (lambda: _checks.generator(0), TypeError, "rng: expected a numpy.random.Generator"),
    ],
)  # fmt: skip
def test_every_error_names_argument_expectation_and_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_complex_is_allowed_only_inside_the_block():
    with _checks.complex_allowed():
        assert _checks.float_array(1j, "x").dtype == complex
    with pytest.raises(TypeError):
        _checks.float_array(1j, "x")


@pytest.mark.parametrize("shape", [(3,), (1,), (4, 1), (1, 3), (4, 3), ()])
def test_sum_to_is_the_adjoint_of_broadcasting(shape):
    rng = np.random.default_rng(0)
    small, large = rng.standard_normal(shape), rng.standard_normal((4, 3))
    left = (np.broadcast_to(small, (4, 3)) * large).sum()
    assert left == pytest.approx((small * sum_to(large, shape)).sum())


def test_ulp_error_of_special_values():
    actual = np.array([np.nan, np.inf, np.inf, 1.0], np.float32)
    np.testing.assert_array_equal(ulp_error(actual, np.array([np.nan, np.inf, 1.0, np.inf])), [0, 0, np.inf, np.inf])
    assert float(ulp_error(np.float32(0), np.float64(2.0**-149))) == 1


@dataclasses.dataclass(frozen=True)
class Pair:
    left: object
    right: object


def test_tree_map_keeps_structure_and_reports_where_it_differs():
    tree = {"a": [1.0, (2.0, None)], "b": Pair(3.0, {"c": 4.0})}
    doubled = tree_map(lambda leaf: None if leaf is None else 2 * leaf, tree)
    assert doubled == {"a": [2.0, (4.0, None)], "b": Pair(6.0, {"c": 8.0})}
    assert [path for path, _ in tree_leaves(tree)] == ["a.0", "a.1.0", "a.1.1", "b.left", "b.right.c"]
    with pytest.raises(ValueError, match=r"b\.right: expected the same structure"):
        tree_map(lambda a, b: a, tree, tree | {"b": Pair(3.0, {"d": 4.0})})


def test_catalogue_has_nothing_missing():
    assert catalogue.methods()
    for method in catalogue.methods():
        status = catalogue.status(method)
        missing = [name for name, there in status.parts.items() if there is False]
        assert not missing, f"{method.chapter}: {missing}"


def test_catalogue_finds_by_short_and_full_name():
    assert catalogue.find("layer_norm") is catalogue.find("norms/layer_norm")
    with pytest.raises(ValueError, match="name: expected a method such as norms/layer_norm"):
        catalogue.find("no_such_method")


def test_every_public_function_of_a_room_belongs_to_a_method():
    listed = {}
    for method in catalogue.methods():
        listed.setdefault(method.room, set()).update(method.functions, (f"{name}_vjp" for name in method.functions))
    for room in set(refnorm.ROOMS) - {"models"}:  # models are loaders and programs built of methods
        module = importlib.import_module(f"refnorm.{room}")
        public = {name for name in module.__all__ if inspect.isfunction(getattr(module, name))}
        assert public <= listed[room], f"{room}: {public - listed[room]}"
