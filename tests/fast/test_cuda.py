"""CUDA kernels without a GPU: run on the CPU by an emulator, through the real wrappers and with the real launches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refnorm
from refnorm._arrays import ulp_error
from refnorm.conformance import format_table, functions_of, load_cases, method_names, run
from refnorm.tree import tree_leaves, tree_map
from refnorm_fast import cuda
from refnorm_fast.cuda import _device
from tests.fast import cuda_emulator, support
from tests.fast.cuda_emulator import EmulatedArray

EMULATOR, DESCENDING = cuda_emulator.Emulator(0), cuda_emulator.Emulator(1)

pytestmark = pytest.mark.skipif(cuda_emulator.COMPILER is None, reason="no C++ compiler for the emulator")


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    with _device.using(EMULATOR):
        yield


def to_device(tree: Any) -> Any:
    return tree_map(lambda leaf: EMULATOR.from_host(leaf) if isinstance(leaf, np.ndarray) else leaf, tree)


def to_host(tree: Any) -> Any:
    return tree_map(lambda leaf: EMULATOR.to_host(leaf) if isinstance(leaf, EmulatedArray) else leaf, tree)


def has_pullback(result: Any) -> bool:
    return isinstance(result, tuple) and len(result) == 2 and callable(result[1])


def through_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of NumPy arrays that copies them to the emulated device, and results and pullbacks back."""

    def call(*args: Any, **options: Any) -> Any:
        result = function(*(to_device(a) for a in args), **to_device(options))
        if has_pullback(result):
            return to_host(result[0]), through_device(result[1])
        return to_host(result)

    return call


def find(package: Any, name: str) -> Callable[..., Any]:
    room, function = name.split(".")
    found: Callable[..., Any] = getattr(getattr(package, room), function)
    return found


def on_device(name: str) -> Callable[..., Any]:
    return through_device(find(cuda, name))


def values(call: Callable[..., Any], args: Any, options: dict[str, Any], seed: int = 0) -> list[Any]:
    """All arrays that a function returns; for one with a pullback, its cotangents for random ones follow."""
    result = call(*args, **options)
    if not has_pullback(result):
        return [leaf for _, leaf in tree_leaves(result)]
    rng = np.random.default_rng(seed)
    value, pullback = np.asarray(result[0]), result[1]
    cotangent = np.asarray(rng.standard_normal(value.shape), value.dtype)
    first = pullback(cotangent)
    for again, before in zip(pullback(cotangent), first, strict=True):
        np.testing.assert_array_equal(again, before)  # a pullback can be called again
    return [value, *first]


def wide(tree: Any) -> Any:
    return tree_map(lambda x: x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype == np.float32 else x, tree)


# ---- the golden vectors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [m for m in method_names() if m.split("/")[0] in cuda.ROOMS])
def test_golden_vectors(method: str) -> None:
    functions = {name: through_device(f) for name, f in functions_of(cuda, [method]).items() if not isinstance(f, type)}
    if not functions:
        pytest.skip("no kernel for this method")
    # Masks and temperatures are refused on a GPU, which test_masks_are_refused sees.
    vectors = {method: [case for case in load_cases(method) if "where" not in case.options]}
    outcomes = run(functions, methods=[method], vectors=vectors)
    assert outcomes
    assert all(outcome.passed for outcome in outcomes), "\n" + format_table(outcomes)


@pytest.mark.parametrize("options", [{"where": np.array([True, False, True])}, {"temperature": 2.0}])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_masks_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}: .* on a GPU"):
        getattr(cuda.softmax, name)(to_device(np.zeros(3, np.float32)), **options)


@pytest.mark.parametrize("method", ["solvers/lion", "solvers/adamp"])
def test_golden_optimizers(method: str) -> None:
    def class_on_device(name: str) -> Callable[..., Any]:
        class Through:
            def __init__(self, **options: Any) -> None:
                self.optimizer = getattr(cuda.solvers, name)(**options)

            def init(self, params: Any) -> Any:
                return self.optimizer.init(to_device(params))

            def step(self, params: Any, grads: Any, state: Any) -> Any:
                params, state = self.optimizer.step(to_device(params), to_device(grads), state)
                return to_host(params), state

        return Through

    outcomes = run({f"solvers.{n}": class_on_device(n) for n in ("Lion", "AdamP", "SGDP")}, methods=[method])
    assert all(outcome.passed for outcome in outcomes), "\n" + format_table(outcomes)


# ---- every function against the reference, at sizes that reach each way of launching ---------------------------------

Case = tuple[str, Callable[[np.random.Generator, Any], tuple[Any, dict[str, Any]]], float]


def normal(rng: np.random.Generator, dtype: Any, *shape: int, scale: float = 1.0) -> Any:
    return (rng.standard_normal(shape) * scale).astype(dtype)


def ball(rng: np.random.Generator, dtype: Any, *shape: int, curvature: float) -> Any:
    x = rng.standard_normal(shape)
    radius = 1 - 10.0 ** -rng.uniform(0, 6, (*shape[:-1], 1))
    inside = x / np.linalg.norm(x, axis=-1, keepdims=True) * radius / np.sqrt(curvature)
    return np.where(
        curvature * (inside.astype(dtype).astype(np.float64) ** 2).sum(-1, keepdims=True) < 1, inside, 0
    ).astype(dtype)


def rows_case(name: str, *shape: int, scale: float = 30.0, **options: Any) -> Case:
    return name, lambda rng, dtype: ((normal(rng, dtype, *shape, scale=scale),), options), 4.0


def norm_case(name: str, shape: tuple[int, ...], units: tuple[int, ...], **options: Any) -> Case:
    def build(rng: np.random.Generator, dtype: Any) -> tuple[Any, dict[str, Any]]:
        return (normal(rng, dtype, *shape), normal(rng, dtype, *units), normal(rng, dtype, *units)), options

    return name, build, 8.0


def entropy_case(rows: int, classes: int, **options: Any) -> Case:
    def build(rng: np.random.Generator, dtype: Any) -> tuple[Any, dict[str, Any]]:
        target = rng.integers(0, classes, rows)
        target[::3] = options.get("ignore_index", -100)
        return (normal(rng, dtype, rows, classes, scale=5), target.astype(np.int32)), options

    return "softmax.cross_entropy_vjp", build, 8.0


def attention_case(query: Any, key: Any, value: Any, mask: Any = None, **options: Any) -> Case:
    def build(rng: np.random.Generator, dtype: Any) -> tuple[Any, dict[str, Any]]:
        chosen = dict(options)
        if mask is not None:
            chosen["mask"] = rng.random(mask) < 0.7
        return tuple(normal(rng, dtype, *shape) for shape in (query, key, value)), chosen

    return "attention.scaled_dot_product_attention_vjp", build, 32.0


def ball_case(
    name: str, points: str, shape: tuple[int, ...], curvature: float, limit: float = 64.0, **options: Any
) -> Case:
    """``points`` says for each argument whether it is a point (p) or any vector (v)."""

    def build(rng: np.random.Generator, dtype: Any) -> tuple[Any, dict[str, Any]]:
        args = [
            ball(rng, dtype, *shape, curvature=curvature) if kind == "p" else normal(rng, dtype, *shape)
            for kind in points
        ]
        return (*args, curvature), options

    return f"poincare.{name}", build, limit


CASES: dict[str, Case] = {
    "softmax, warps": rows_case("softmax.softmax_vjp", 9, 130),
    "softmax, first axis": rows_case("softmax.softmax_vjp", 7, 3, 5, axis=0),
    "softmax, a block a row": rows_case("softmax.softmax_vjp", 3, 3000),
    "softmax, rows beyond shared memory": rows_case("softmax.softmax_vjp", 2, 13000),
    "log-softmax, warps": rows_case("softmax.log_softmax_vjp", 9, 130),
    "log-softmax, middle axis": rows_case("softmax.log_softmax_vjp", 7, 31, 5, axis=1),
    "log-softmax, a block a row": rows_case("softmax.log_softmax_vjp", 3, 3000),
    "log-sum-exp": rows_case("softmax.logsumexp_vjp", 9, 130),
    "log-sum-exp, kept axis": rows_case("softmax.logsumexp_vjp", 3, 9, 13, axis=1, keepdims=True),
    "cross-entropy": entropy_case(11, 130),
    "cross-entropy, smoothed sum": entropy_case(11, 7, label_smoothing=0.1, reduction="sum"),
    "cross-entropy, none": entropy_case(600, 5, reduction="none", ignore_index=-1),
    "cross-entropy, a block a row": entropy_case(4, 2000, label_smoothing=0.2),
    "layer norm, warps": norm_case("norms.layer_norm_vjp", (3, 70, 130), (130,)),
    "layer norm, a block a row": norm_case("norms.layer_norm_vjp", (4, 3000), (3000,)),
    "layer norm, images": norm_case("norms.layer_norm_vjp", (3, 2, 5, 7), (2, 5, 7), axes=(1, 2, 3)),
    "RMS norm": norm_case("norms.rms_norm_vjp", (9, 130), (130,)),
    "RMS norm, many rows": norm_case("norms.rms_norm_vjp", (300, 33), (33,)),
    "group norm": norm_case("norms.group_norm_vjp", (3, 6, 5, 7), (6,), groups=3),
    "group norm without places": norm_case("norms.group_norm_vjp", (5, 64), (64,), groups=4),
    "group norm, a block a row": norm_case("norms.group_norm_vjp", (2, 4, 30, 30), (4,), groups=2),
    "instance norm": norm_case("norms.instance_norm_vjp", (2, 3, 11), (3,)),
    "attention": attention_case((2, 3, 20, 16), (2, 3, 37, 16), (2, 3, 37, 16)),
    "attention, causal": attention_case((2, 70, 40), (2, 70, 40), (2, 70, 24), causal=True),
    "attention, wide values": attention_case((5, 8), (40, 8), (40, 150), scale=0.3),
    "attention, wide keys": attention_case((5, 150), (40, 150), (40, 8)),
    "attention, mask": attention_case((2, 20, 9), (2, 35, 9), (2, 35, 5), mask=(2, 20, 35)),
    "attention, mask of keys": attention_case(
        (2, 2, 20, 9), (2, 2, 35, 9), (2, 2, 35, 5), mask=(2, 1, 1, 35), causal=True
    ),
    "attention, one mask": attention_case((3, 17, 4), (3, 17, 4), (3, 17, 4), mask=(17, 17)),
    "attention, shared keys": attention_case((3, 2, 18, 8), (2, 33, 8), (3, 1, 33, 5)),
    "mobius_add": ball_case("mobius_add_vjp", "pp", (9, 130), 1.0),
    "mobius_add, first axis": ball_case("mobius_add_vjp", "pp", (4, 5, 3), 1e-20),
    "exp0": ball_case("exp0_vjp", "v", (9, 40), 1.7),
    "exp0, unprojected": ball_case("exp0_vjp", "v", (9, 3), 0.01, project=False),
    "exp0, a block a row": ball_case("exp0_vjp", "v", (2, 2000), 2.5e-4),
    "log0": ball_case("log0_vjp", "p", (9, 40), 0.7),
    "project_ball": ball_case("project_ball_vjp", "v", (9, 40), 0.02),
    "project_ball, margin": ball_case("project_ball_vjp", "v", (9, 3), 0.7, eps=0.25),
    "expmap": ball_case("expmap", "pv", (30, 3), 1.3, 1e3),
    "expmap, unprojected": ball_case("expmap", "pv", (30, 5), 0.3, 1e3, project=False),
    "logmap": ball_case("logmap", "pp", (30, 7), 0.9),
    "dist": ball_case("dist_vjp", "pp", (30, 7), 3.0),
    "dist_sq": ball_case("dist_sq_vjp", "pp", (30, 7), 0.2),
}


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_reference(case: str, dtype: Any) -> None:
    name, build, limit = CASES[case]
    args, options = build(np.random.default_rng(1), dtype)
    got = values(on_device(name), args, options)
    # The ball's margin depends on the dtype, and the reference computes there in float64 anyway.
    expected = values(find(refnorm, name), args if name.startswith("poincare") else wide(args), options)
    for actual, truth in zip(got, expected, strict=True):
        assert actual.dtype == dtype
        assert actual.shape == truth.shape
        error = np.abs(actual.astype(np.longdouble) - truth).max(initial=0)
        assert error <= limit * np.finfo(dtype).eps * np.abs(truth).max(initial=0), (error, np.abs(truth).max())


@pytest.mark.parametrize("case", CASES)
def test_no_thread_reads_before_another_has_written(case: str) -> None:
    name, build, _ = CASES[case]
    args, options = build(np.random.default_rng(2), np.float32)
    ascending = values(on_device(name), args, options)
    with _device.using(DESCENDING):
        descending = values(on_device(name), args, options)
    for a, b in zip(ascending, descending, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", CASES)
def test_function_without_pullback_is_the_same(case: str) -> None:
    name, build, _ = CASES[case]
    if not name.endswith("_vjp"):
        pytest.skip("has no pullback")
    args, options = build(np.random.default_rng(3), np.float64)
    value, _ = on_device(name)(*args, **options)
    np.testing.assert_array_equal(on_device(name.removesuffix("_vjp"))(*args, **options), value)


# ---- softmax ---------------------------------------------------------------------------------------------------------


def uneven_rows(length: int, dtype: Any) -> Any:
    rng = np.random.default_rng(length)
    x = normal(rng, dtype, 2, length, scale=30)
    x[0, : length // 2] += dtype(1e4)  # x - max(x) must not lose digits
    return x


UNITS = {"softmax.softmax": 1.0, "softmax.log_softmax": 2.0}


def test_float32_softmax_is_near_the_truth_at_every_length() -> None:
    for length in (*support.TAILS[1:], 1023, 1024, 1025, 6145, 12289, 100_000):
        x = uneven_rows(length, np.float32)
        for name, limit in UNITS.items():
            truth = find(refnorm, name)(x.astype(np.float64))
            assert ulp_error(on_device(name)(x), truth, np.float32).max() <= limit, (name, length)


def test_sums_of_many_equal_terms() -> None:
    x = np.zeros((1, 3_000_000), np.float32)
    x[0, 0] = 3
    truth = 1 / (np.exp(3) + x.size - 1)
    assert ulp_error(on_device("softmax.softmax")(x)[:, 1:], np.full((1, x.size - 1), truth), np.float32).max() <= 1


@pytest.mark.parametrize("length", [1, 2, 7, 33, 130, 1025])
def test_float64_softmax_is_near_the_truth(length: int) -> None:
    x = uneven_rows(length, np.float64)
    with mpmath.workdps(60):
        terms = [[mpmath.exp(mpmath.mpf(float(entry))) for entry in row] for row in x]
        y = [[mpmath.nstr(term / mpmath.fsum(row), 30) for term in row] for row in terms]
        z = [[mpmath.nstr(mpmath.log(term / mpmath.fsum(row)), 30) for term in row] for row in terms]
    for name, truth in (("softmax.softmax", y), ("softmax.log_softmax", z)):
        assert ulp_error(on_device(name)(x), np.array(truth, np.longdouble), np.float64).max() <= UNITS[name], name


def numbers(dtype: Any) -> Any:
    width = 32 if dtype == np.float32 else 64
    return st.floats(width=width) | st.sampled_from(support.HOSTILE + support.SPECIAL)


@pytest.mark.parametrize("dtype", support.DTYPES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_softmax_of_hostile_rows(dtype: Any, data: st.DataObject) -> None:
    row = np.array(data.draw(st.lists(numbers(dtype), min_size=1, max_size=40)), np.float64).astype(dtype)
    with np.errstate(all="ignore"):
        for name in ("softmax", "log_softmax", "logsumexp"):
            truth = find(refnorm, f"softmax.{name}")(row.astype(np.float64)).astype(dtype)
            got = on_device(f"softmax.{name}")(row)
            special = ~np.isfinite(truth)
            np.testing.assert_array_equal(got[special], truth[special], err_msg=name)
            assert (ulp_error(got[~special], truth[~special], dtype) <= 4).all(), name


def test_masked_classes_and_a_confident_answer() -> None:
    x = np.array([[-np.inf, 0.0, 60.0], [-np.inf, -np.inf, 1.0], [3.0, 3.0, 3.0]])
    target = np.array([2, 2, 0])
    got = values(on_device("softmax.cross_entropy_vjp"), (x, target), {})
    for actual, truth in zip(got, values(refnorm.softmax.cross_entropy_vjp, (x, target), {}), strict=True):
        np.testing.assert_allclose(actual, truth, rtol=1e-14, atol=0)


# ---- norms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("name", ["norms.layer_norm", "norms.rms_norm"])
def test_norms_at_every_length(name: str, dtype: Any) -> None:
    rng = np.random.default_rng(5)
    for length in (*support.TAILS[1:], 1024, 1025, 12289):
        args = normal(rng, dtype, 3, length), normal(rng, dtype, length), normal(rng, dtype, length)
        truth = find(refnorm, name)(*wide(args))
        error = np.abs(on_device(name)(*args) - truth).max()
        assert error <= 4 * np.finfo(dtype).eps * np.abs(truth).max(), length


def test_special_values_stay_in_their_row() -> None:
    x = np.ones((5, 40))
    x[1, 3], x[2, 4], x[4, 1] = np.nan, np.inf, 1e200
    x[3] = np.arange(40) * 1e30
    for name in ("norms.layer_norm", "norms.rms_norm"):
        for dtype in support.DTYPES:
            with np.errstate(all="ignore"):
                args = x.astype(dtype), np.ones(40, dtype), np.ones(40, dtype)
                truth = find(refnorm, name)(*args)
            largest = np.nanmax(np.abs(truth))
            np.testing.assert_allclose(on_device(name)(*args), truth, rtol=0, atol=4 * np.finfo(dtype).eps * largest)


def test_a_common_offset_costs_no_digits() -> None:
    x = (np.random.default_rng(6).standard_normal((5, 200)) + 1e6).astype(np.float32)
    args = x, np.ones(200, np.float32), np.zeros(200, np.float32)
    for mine, theirs in zip(
        values(on_device("norms.layer_norm_vjp"), args, {}),
        values(refnorm.norms.layer_norm_vjp, wide(args), {}),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=8 * np.finfo(np.float32).eps * np.abs(theirs).max())


def test_rms_norm_without_gain_or_bias() -> None:
    x, gain = normal(np.random.default_rng(6), np.float32, 4, 9), np.ones(9, np.float32)
    bias = np.zeros(9, np.float32)
    for given_gain, given_bias in ((None, None), (gain, None), (None, bias)):
        y, pullback = on_device("norms.rms_norm_vjp")(x, given_gain, given_bias)
        truth, reference_pullback = refnorm.norms.rms_norm_vjp(x, given_gain, given_bias)
        np.testing.assert_allclose(y, truth, rtol=1e-6)
        for mine, theirs in zip(pullback(x), reference_pullback(x), strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=1e-6)


# ---- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_queries_that_may_attend_to_nothing(dtype: Any) -> None:
    rng = np.random.default_rng(7)
    args = tuple(normal(rng, dtype, *shape) for shape in ((20, 3), (40, 3), (40, 2)))
    mask = rng.random((20, 40)) < 0.5
    mask[[0, 17]] = False
    got = values(on_device("attention.scaled_dot_product_attention_vjp"), args, {"mask": mask})
    assert (got[0][[0, 17]] == 0).all()
    assert (got[1][[0, 17]] == 0).all()
    for actual, truth in zip(
        got, values(refnorm.attention.scaled_dot_product_attention_vjp, args, {"mask": mask}), strict=True
    ):
        np.testing.assert_allclose(actual, truth, rtol=0, atol=20 * np.finfo(dtype).eps * np.abs(truth).max())


def test_special_values_in_attention() -> None:
    rng = np.random.default_rng(8)
    for place, number in ((0, np.nan), (1, np.inf), (1, -np.inf), (2, np.nan), (2, np.inf)):
        for causal in (False, True):
            args = [normal(rng, np.float64, 70, 3) for _ in range(3)]
            args[place][60, 1] = number
            if number == -np.inf:
                args[0][:, 1] = 1.0  # scores of -infinity
            with np.errstate(all="ignore"):
                truth = refnorm.attention.scaled_dot_product_attention(*args, causal=causal)
            got = on_device("attention.scaled_dot_product_attention")(*args, causal=causal)
            np.testing.assert_allclose(got, truth, rtol=1e-12, err_msg=f"{place} {number} {causal}")
    only = [np.ones((2, 1)), np.full((3, 1), -np.inf), np.ones((3, 1))]
    assert np.isnan(on_device("attention.scaled_dot_product_attention")(*only)).all()


def test_empty_attention() -> None:
    for shapes in (
        ((0, 3), (5, 3), (5, 2)),
        ((4, 3), (0, 3), (0, 2)),
        ((4, 3), (5, 3), (5, 0)),
        ((0, 4, 3), (0, 5, 3), (0, 5, 2)),
    ):
        for causal in (False, True):
            args = tuple(np.ones(shape) for shape in shapes)
            got = values(on_device("attention.scaled_dot_product_attention_vjp"), args, {"causal": causal})
            expected = values(refnorm.attention.scaled_dot_product_attention_vjp, args, {"causal": causal})
            for actual, truth in zip(got, expected, strict=True):
                np.testing.assert_array_equal(actual, truth)


# ---- quantizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("rounding", ["nearest", "floor", "away"])
def test_codes_are_the_reference_s(rounding: str, dtype: Any) -> None:
    rng = np.random.default_rng(9)
    x = normal(rng, dtype, 4, 6, 50)
    x[0, 0, :4] = 0.5, -0.5, 0.49999997, 1e30
    for shape in ((), (1, 6, 1), (4, 1, 1), (4, 6, 1), (4, 1, 50), (1, 1, 1)):
        scale = np.asarray(rng.uniform(0.01, 0.1, shape) if shape else 1.0, dtype)
        for bits, signed in ((8, True), (8, False), (4, True), (12, True)):
            zero = rng.integers(0, 7, shape, dtype=np.int64)
            options = {"bits": bits, "signed": signed, "rounding": rounding}
            codes = on_device("quantizers.quantize")(x, scale, zero, **options)
            expected = refnorm.quantizers.quantize(x, scale, zero, **options)
            assert codes.dtype == expected.dtype
            np.testing.assert_array_equal(codes, expected)
            back = on_device("quantizers.dequantize")(codes, scale, zero)
            np.testing.assert_array_equal(back, refnorm.quantizers.dequantize(expected, scale, zero))


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("axis", [None, 0, 1, (0, 2), 2])
def test_codes_by_the_largest_magnitude(axis: Any, dtype: Any) -> None:
    x = normal(np.random.default_rng(10), dtype, 5, 7, 300)
    x[2], x[3] = 0, x[3] * dtype(1e-42)
    for actual, truth in zip(
        on_device("quantizers.absmax_quantize")(x, axis=axis),
        refnorm.quantizers.absmax_quantize(x, axis=axis),
        strict=True,
    ):
        assert actual.dtype == truth.dtype
        np.testing.assert_array_equal(actual, truth)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_codes_next_to_a_tie(dtype: Any) -> None:
    ties = (np.arange(-127, 127) + 0.5).astype(dtype)
    for absmax in (dtype(1), dtype(0.7), dtype(3.1), dtype(1e-3)):
        middle = ties / 127 * absmax
        x = np.stack([middle + k * np.spacing(middle) for k in range(-3, 4)]).astype(dtype)
        x[:, 0] = absmax
        for axis in (None, 0):
            codes, _ = on_device("quantizers.absmax_quantize")(x, axis=axis)
            np.testing.assert_array_equal(codes, refnorm.quantizers.absmax_quantize(x, axis=axis)[0])


@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 65, 31), (70, 128, 40), (5, 0, 4), (3, 7, 2)])
def test_int8_products_are_exact(shape: tuple[int, int, int]) -> None:
    rows, depth, columns = shape
    rng = np.random.default_rng(11)
    a, b = (rng.integers(-127, 128, size, dtype=np.int8) for size in ((rows, depth), (columns, depth)))
    np.testing.assert_array_equal(on_device("quantizers.int8_matmul")(a, b), a.astype(np.int32) @ b.astype(np.int32).T)
    for dtype in support.DTYPES:
        x, weight = normal(rng, dtype, rows, depth), normal(rng, dtype, depth, columns)
        expected = refnorm.quantizers.matmul_vectorwise(x, weight)
        np.testing.assert_array_equal(on_device("quantizers.matmul_vectorwise")(x, weight), expected)


# ---- the ball --------------------------------------------------------------------------------------------------------


def test_points_next_to_the_boundary() -> None:
    rng = np.random.default_rng(12)
    for n in (1, 2, 3, 40):
        x = rng.standard_normal((50, n))
        x /= np.linalg.norm(x, axis=-1, keepdims=True)
        x *= 1 - np.exp2(-rng.uniform(30, 60, (50, 1)))
        x = refnorm.poincare.project_ball(x, 1.0, eps=0.0)  # as near as float64 goes
        for name, args in (
            ("log0", (x,)),
            ("dist", (x, -x[::-1])),
            ("mobius_add", (x, -x[::-1])),
            ("mobius_add", (x, -x * 0.5)),
        ):
            got = on_device(f"poincare.{name}")(*args, 1.0)
            truth = find(refnorm, f"poincare.{name}")(*args, 1.0)
            np.testing.assert_allclose(
                got, truth, rtol=0, atol=64 * np.finfo(float).eps * np.abs(truth).max(), err_msg=f"{name} {n}"
            )
        assert (
            refnorm.poincare.conformal_factor(on_device("poincare.exp0")(x * 1e3, 1.0, project=False), 1.0) > 2
        ).all()


def test_points_nearer_to_the_boundary_than_doubled_precision_resolves() -> None:
    rng = np.random.default_rng(16)
    gaps = {}
    for a in rng.uniform(0.3, 0.9, 4000).tolist():
        a /= math.sqrt(3)
        b = math.sqrt(1 / 3 - a * a)
        gap = 1 - 3 * Fraction(a) ** 2 - 3 * Fraction(b) ** 2
        if gap > 0:
            gaps[gap] = (a, b)
    nearest = sorted(gaps)[:3]
    assert nearest[0] < 2.0**-62
    x = np.array([gaps[gap] for gap in nearest])
    for name in ("log0_vjp", "dist_vjp"):
        args = (x, 3.0) if name == "log0_vjp" else (x, x * 0.25, 3.0)
        pairs = zip(
            values(on_device(f"poincare.{name}"), args, {}),
            values(find(refnorm, f"poincare.{name}"), args, {}),
            strict=True,
        )
        for mine, theirs in pairs:
            np.testing.assert_allclose(mine, theirs, rtol=1e-14)


@pytest.mark.parametrize("name", ["mobius_add", "logmap", "dist", "log0", "expmap"])
def test_points_outside_raise_as_in_the_reference(name: str) -> None:
    good, bad = np.full((3, 2), 0.1), np.array([[0.1, 0.2], [0.9, 0.9], [0.0, 0.0]])
    combinations = [(bad,)] if name == "log0" else [(bad, good)] + [(good, bad)] * (name != "expmap")
    for args in combinations:
        with pytest.raises(ValueError) as theirs:
            find(refnorm, f"poincare.{name}")(*args, 1.5)
        with pytest.raises(ValueError) as mine:
            on_device(f"poincare.{name}")(*args, 1.5)
        assert str(mine.value) == str(theirs.value)
        on_device(f"poincare.{name}")(*args, 1.5, check=False)


def test_zero_vectors_and_special_values() -> None:
    x = np.zeros((3, 4))
    x[1, 2], x[2] = np.nan, 0.3
    for name in ("exp0_vjp", "log0_vjp", "project_ball_vjp"):
        with np.errstate(all="ignore"):
            for mine, theirs in zip(
                values(on_device(f"poincare.{name}"), (x, 1.0), {}),
                values(find(refnorm, f"poincare.{name}"), (x, 1.0), {}),
                strict=True,
            ):
                np.testing.assert_allclose(mine, theirs, rtol=1e-13, err_msg=name)
    assert on_device("poincare.dist")(x, x, 1.0)[0] == 0


# ---- optimizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("form", ["mul_add", "lerp"])
def test_lion_has_the_reference_s_bits(form: str, dtype: Any) -> None:
    rng = np.random.default_rng(13)
    args = [normal(rng, dtype, 3, 400) for _ in range(3)]
    args[1][0, :4], args[2][0, :4] = (0, np.nan, np.inf, -0.0), (0, 0, 1, -0.0)
    options = {"learning_rate": 0.01, "beta1": 0.8, "weight_decay": 0.3, "form": form}
    for mine, theirs in zip(
        on_device("solvers.lion_update")(*args, **options), refnorm.solvers.lion_update(*args, **options), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("view", ["channel", "layer", "none", "vector"])
def test_projected_steps(view: str, dtype: Any) -> None:
    rng = np.random.default_rng(14)
    param, grad = normal(rng, dtype, 6, 5, 40), normal(rng, dtype, 6, 5, 40)
    if view in ("channel", "layer"):
        rows = (
            (param.reshape(6, -1), grad.reshape(6, -1))
            if view == "channel"
            else (param.reshape(1, -1), grad.reshape(1, -1))
        )
        p, g = (r.astype(np.float64) for r in rows)
        grad = (
            (g - p * ((g * p).sum(1, keepdims=True) / (p * p).sum(1, keepdims=True))).astype(dtype).reshape(param.shape)
        )
        assert refnorm.solvers.which_view(param, grad) == view or view == "layer"
    if view == "vector":
        param, grad = param.reshape(-1), grad.reshape(-1)
    first, second = normal(rng, dtype, *param.shape), normal(rng, dtype, *param.shape) ** 2
    chosen = refnorm.solvers.which_view(param, grad) if view != "vector" else "none"
    assert (chosen == "none") == (view in ("none", "vector"))
    for nesterov in (False, True):
        calls = {
            "solvers.adamp_update": (
                (param, grad, first, second),
                {"step": 3, "weight_decay": 0.1, "nesterov": nesterov},
            ),
            "solvers.sgdp_update": (
                (param, grad, first),
                {
                    "learning_rate": 0.1,
                    "momentum": 0.9,
                    "weight_decay": 0.1,
                    "nesterov": nesterov,
                    "project_buffer": True,
                },
            ),
        }
        for name, (args, options) in calls.items():
            for mine, theirs in zip(
                on_device(name)(*args, **options), find(refnorm, name)(*args, **options), strict=True
            ):
                assert mine.dtype == dtype
                np.testing.assert_allclose(
                    mine, theirs, rtol=0, atol=4 * np.finfo(dtype).eps * np.abs(theirs).max(), err_msg=name
                )


def test_trees_with_missing_gradients() -> None:
    params = {"a": np.ones((2, 3)), "b": [np.ones(4)]}
    optimizer, reference = (
        cuda.solvers.Lion(learning_rate=0.5, maximize=True),
        refnorm.solvers.Lion(learning_rate=0.5, maximize=True),
    )
    grads = {"a": np.full((2, 3), 2.0), "b": [None]}
    moved, state = optimizer.step(to_device(params), to_device(grads), optimizer.init(to_device(params)))
    expected, _ = reference.step(params, grads, reference.init(params))
    for (_, mine), (_, theirs) in zip(tree_leaves(to_host(moved)), tree_leaves(expected), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(ValueError, match="grads"):
        optimizer.step(to_device(params), to_device({"a": grads["a"]}), state)


# ---- arguments -------------------------------------------------------------------------------------------------------

X, V = np.ones((2, 3)), np.ones(3)
Q = np.ones((4, 3))
WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("softmax.softmax", (np.ones(3, np.int64),), {}),
    ("softmax.softmax", (np.array(1.0),), {}),
    ("softmax.softmax", (X,), {"axis": 2}),
    ("softmax.softmax", (np.ones((3, 0)),), {}),
    ("softmax.softmax", (X,), {"algorithm": "four_pass"}),
    ("softmax.softmax_vjp", (X,), {"algorithm": "four_pass"}),
    ("softmax.log_softmax", (X.astype(np.float16),), {}),
    ("softmax.logsumexp", (np.ones((3, 0)),), {}),
    ("softmax.cross_entropy", (X, np.array([0, 3])), {}),
    ("softmax.cross_entropy", (X, np.array([0, -1])), {}),
    ("softmax.cross_entropy", (X, np.array([0.0, 1.0])), {}),
    ("softmax.cross_entropy", (X, np.array([0])), {}),
    ("softmax.cross_entropy", (X, np.array([-100, -100])), {}),
    ("softmax.cross_entropy", (X, np.array([0, 1])), {"label_smoothing": 1.0}),
    ("softmax.cross_entropy", (X, np.array([0, 1])), {"reduction": "max"}),
    ("softmax.cross_entropy", (X, np.array([0, 1])), {"ignore_index": 1.0}),
    ("softmax.cross_entropy", (V, np.array([0])), {}),
    ("norms.layer_norm", (X, V, V[:2]), {}),
    ("norms.layer_norm", (X, V.astype(np.float32), V), {}),
    ("norms.layer_norm", (X, V, V), {"eps": 0.0}),
    ("norms.layer_norm", (X, V, V), {"axes": (0,)}),
    ("norms.layer_norm", (X, V, V), {"axes": (-1, 1)}),
    ("norms.layer_norm", (np.ones((2, 0)), np.ones(0), np.ones(0)), {}),
    ("norms.rms_norm", (X, V[:1]), {}),
    ("norms.rms_norm", (X, V, V.astype(np.float32)), {}),
    ("norms.rms_norm", (X,), {"eps": np.nan}),
    ("norms.group_norm", (X, V, V), {"groups": 2}),
    ("norms.group_norm", (X, V, V), {"groups": 1.0}),
    ("norms.group_norm", (np.ones((2, 3, 0)), V, V), {"groups": 3}),
    ("norms.instance_norm", (X, V, V), {}),
    ("attention.scaled_dot_product_attention", (Q, X, Q), {}),
    ("attention.scaled_dot_product_attention", (Q, Q[:, :2], Q), {}),
    ("attention.scaled_dot_product_attention", (Q, Q.astype(np.float32), Q), {}),
    ("attention.scaled_dot_product_attention", (Q, Q, Q), {"scale": 0.0}),
    ("attention.scaled_dot_product_attention", (Q, Q, Q), {"mask": np.ones((4, 4))}),
    ("attention.scaled_dot_product_attention", (Q, Q, Q), {"mask": np.ones((3, 4), bool)}),
    ("attention.scaled_dot_product_attention", (Q[:, :0], Q[:, :0], Q), {}),
    ("attention.scaled_dot_product_attention", (np.ones((2, 4, 3)), np.ones((3, 4, 3)), Q), {}),
    ("quantizers.quantize", (np.array([1.0, np.nan]), 0.1, 0), {}),
    ("quantizers.quantize", (X, 0.0, 0), {}),
    ("quantizers.quantize", (X, V, 0), {}),
    ("quantizers.quantize", (X, np.float32(1), 0), {}),
    ("quantizers.quantize", (X, 0.1, 200), {}),
    ("quantizers.quantize", (X, 0.1, 0), {"bits": 1}),
    ("quantizers.quantize", (X, 0.1, 0), {"rounding": "up"}),
    ("quantizers.quantize", (X, 0.1, 0), {"signed": False, "narrow": True}),
    ("quantizers.dequantize", (X, 0.1, 0), {}),
    ("quantizers.dequantize", (np.ones((2, 3), np.int8), -0.1, 0), {}),
    ("quantizers.absmax_quantize", (np.array([1.0, np.inf]),), {}),
    ("quantizers.absmax_quantize", (X,), {"axis": 5}),
    ("quantizers.int8_matmul", (np.ones((2, 3), np.int8), np.ones((2, 4), np.int8)), {}),
    ("quantizers.int8_matmul", (np.full((2, 3), -128, np.int8), np.ones((2, 3), np.int8)), {}),
    ("quantizers.int8_matmul", (np.ones((2, 3), np.int8), np.full((1, 3), -128, np.int8)), {}),
    ("quantizers.int8_matmul", (np.ones((2, 3), np.int16), np.ones((2, 3), np.int8)), {}),
    ("quantizers.int8_matmul", (X, np.ones((2, 3), np.int8)), {}),
    ("quantizers.matmul_vectorwise", (X, np.array([[np.nan], [1.0], [1.0]])), {}),
    ("quantizers.matmul_vectorwise", (X, X), {}),
    ("poincare.exp0", (X, -1.0), {}),
    ("poincare.exp0", (X, np.ones(2)), {}),
    ("poincare.exp0", (X, 1.0), {"axis": 2}),
    ("poincare.exp0", (np.ones((2, 0)), 1.0), {}),
    ("poincare.mobius_add", (X * 0.1, V * 0.1, 1.0), {}),
    ("poincare.mobius_add", (X * 0.1, X.astype(np.float32), 1.0), {}),
    ("poincare.project_ball", (X, 1.0), {"eps": 1.0}),
    ("solvers.lion_update", (X, X, V), {}),
    ("solvers.lion_update", (X, X.astype(np.float32), X), {}),
    ("solvers.lion_update", (X, X, X), {"beta1": 1.5}),
    ("solvers.lion_update", (X, X, X), {"form": "other"}),
    ("solvers.sign_momentum", (X, X, X), {"beta": 2.0}),
    ("solvers.adamp_update", (X, X, X, V), {"step": 1}),
    ("solvers.adamp_update", (X, X, X, X), {"step": 0}),
    ("solvers.adamp_update", (X, X, X, X), {"step": 1, "beta2": 1.0}),
    ("solvers.sgdp_update", (X, X, X), {"learning_rate": -1.0}),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_errors_are_the_reference_s(number: int) -> None:
    name, args, options = WRONG[number]
    with pytest.raises((TypeError, ValueError)) as theirs:
        find(refnorm, name)(*args, **options)
    with pytest.raises(type(theirs.value)) as mine:
        on_device(name)(*args, **options)
    assert str(mine.value) == str(theirs.value)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_layouts(dtype: Any) -> None:
    x = normal(np.random.default_rng(15), dtype, 5, 7, 11)
    expected = on_device("softmax.softmax")(x)
    for name, view in support.layouts(x).items():
        got = EMULATOR.to_host(cuda.softmax.softmax(EmulatedArray(view)))
        np.testing.assert_array_equal(
            got, expected if "repeated" not in name else np.broadcast_to(expected[:1], x.shape), err_msg=name
        )


@pytest.mark.parametrize("name", ["softmax.softmax_vjp", "softmax.log_softmax_vjp", "softmax.logsumexp_vjp"])
def test_no_rows(name: str) -> None:
    got = values(on_device(name), (np.ones((0, 3)),), {})
    for actual, truth in zip(got, values(find(refnorm, name), (np.ones((0, 3)),), {}), strict=True):
        assert actual.shape == truth.shape


def test_no_rows_of_norms() -> None:
    args = np.ones((0, 3)), np.ones(3), np.ones(3)
    for name, options in (("layer_norm_vjp", {}), ("rms_norm_vjp", {}), ("group_norm_vjp", {"groups": 1})):
        got = values(on_device(f"norms.{name}"), args, options)
        for actual, truth in zip(got, values(find(refnorm, f"norms.{name}"), args, options), strict=True):
            np.testing.assert_array_equal(actual, truth)


# ---- the emulator itself ---------------------------------------------------------------------------------------------

BROKEN = """
KERNEL unequal_barrier(real *x) { if (threadIdx.x < 32) __syncthreads(); }
KERNEL reads_too_early(real *x) {
    DYNAMIC_SHARED(shared);
    shared[threadIdx.x] = (real) threadIdx.x;
    x[threadIdx.x] = shared[(threadIdx.x + 1) % 64];
}
KERNEL past_shared(real *x) {
    DYNAMIC_SHARED(shared);
    shared[threadIdx.x] = 0;
}
KERNEL past_array(real *x) { x[threadIdx.x] = 0; }
"""


def test_emulator_finds_broken_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    common = _device.source("softmax").split('#line 1 "softmax.cu"')[0]
    monkeypatch.setattr(cuda_emulator, "source", lambda unit: common + BROKEN)
    results = []
    for order in (0, 1):
        device = cuda_emulator.Emulator(order)

        def launch(kernel: str, size: int, shared: int, device: Any = device) -> Any:
            x = device.empty((size,), np.float32)
            device.launch("broken", kernel, np.dtype(np.float32), (1, 1, 1), (64, 1, 1), shared, [x])
            return device.to_host(x)

        with pytest.raises(RuntimeError, match="a barrier that not all threads reach"):
            launch("unequal_barrier", 64, 0)
        with pytest.raises(RuntimeError, match="past the end of shared memory"):
            launch("past_shared", 64, 63 * 4)
        with pytest.raises(AssertionError, match="past the end of an array"):
            launch("past_array", 63, 0)
        with pytest.raises(RuntimeError, match="out of range"):
            launch("past_shared", 64, 49 * 1024)
        results.append(launch("reads_too_early", 64, 64 * 4))
    assert not np.array_equal(*results, equal_nan=True)
