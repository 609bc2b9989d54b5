"""The logits and the fully connected layer of the ball, forward and backward, against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refnorm.poincare as reference
import refnorm_fast.poincare as fast
from tests.fast import support
from tests.fast.test_poincare import points

AnyArray = np.ndarray[Any, np.dtype[Any]]
NAMES = ("mlr", "fully_connected")
SHAPES = ((1, 1, 1), (7, 3, 130), (33, 40, 17), (65, 64, 64), (70, 129, 65), (130, 33, 9))


@pytest.fixture(params=support.ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    with support.using_isa(request.param):
        yield request.param


def arguments(
    rng: np.random.Generator, rows: int, n: int, m: int, dtype: Any, curvature: float, scale: float, edge: bool = False
) -> tuple[AnyArray, AnyArray, AnyArray]:
    weight = (scale * rng.standard_normal((n, m)) / np.sqrt(n)).astype(dtype)
    bias = (0.2 * rng.standard_normal(m) / np.sqrt(curvature)).astype(dtype)
    return points(rng, (rows, n), dtype, curvature, edge), weight, bias


def check(name: str, args: Any, curvature: float, g: AnyArray, **options: Any) -> None:
    """Against the reference in float64: a rounding of the largest logit, which sinh turns into a relative error."""
    x, weight, bias = args
    points_wide, weight_wide, bias_wide = (a.astype(np.float64) for a in (x, weight, bias))
    value, back = getattr(fast, f"{name}_vjp")(*args, curvature, **options)
    plain = getattr(fast, name)(*args, curvature, **options)
    np.testing.assert_array_equal(value, plain)
    eps = float(np.finfo(x.dtype).eps)
    logits = np.sqrt(curvature) * np.abs(reference.mlr(points_wide, weight_wide, bias_wide, curvature)).max(initial=1.0)
    loss = (20 + 8 * logits + 2 * np.sqrt(x.shape[-1])) * eps * (1 if x.dtype == np.float32 else 20)
    if name == "mlr":
        expected, pullback = reference.mlr_vjp(points_wide, weight_wide, bias_wide, curvature)
    else:
        # With the projection margin of the dtype.
        free, back_layer = reference.fully_connected_vjp(points_wide, weight_wide, bias_wide, curvature, project=False)
        expected, pullback = free, back_layer
        if options.get("project", True):
            margin = reference._ball.PROJECTION_MARGIN[x.dtype]
            expected, back_clip = reference.project_ball_vjp(free, curvature, eps=margin)

            def pullback(up: AnyArray) -> tuple[AnyArray, ...]:
                u, dc = back_clip(up)
                *rest, dc_layer = back_layer(u)
                return *rest, dc + dc_layer

    truth, actual = (expected, *pullback(g.astype(np.float64))), (value, *back(g))
    shapes = [value.shape, x.shape, args[1].shape, args[2].shape, ()]
    for place, (a, b) in enumerate(zip(actual, truth, strict=True)):
        assert (a.dtype, a.shape) == (x.dtype, shapes[place])
        largest = np.abs(b).max(initial=0.0)
        if place == 4:
            # Its terms cancel: they are of the size of <x, dx> and <g, y>.
            largest = (np.abs(x * truth[1]).sum() + np.abs(g * expected).sum()) / curvature
        assert np.abs(a - b).max(initial=0.0) <= loss * largest, (name, place, np.abs(a - b).max() / largest / loss)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize(("rows", "n", "m"), SHAPES)
def test_values_and_cotangents(dtype: Any, rows: int, n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    for curvature, scale in ((1.0, 0.5), (0.1, 2.0), (3.0, 0.05)):
        args = arguments(rng, rows, n, m, dtype, curvature, scale)
        g = rng.standard_normal((rows, m)).astype(dtype)
        check("mlr", args, curvature, g)
        for project in (True, False):
            check("fully_connected", args, curvature, g, project=project)


@given(
    rows=st.integers(1, 70),
    n=st.integers(1, 50),
    m=st.integers(1, 20),
    dtype=st.sampled_from(support.DTYPES),
    seed=st.integers(0, 2**32),
)
def test_random_shapes(rows: int, n: int, m: int, dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    args, g = arguments(rng, rows, n, m, dtype, 0.5, 1.0), rng.standard_normal((rows, m)).astype(dtype)
    for name in NAMES:
        check(name, args, 0.5, g)


@pytest.mark.usefixtures("isa")
def test_large_logits_in_float64() -> None:
    rng = np.random.default_rng(1)
    for scale in (30.0, 3e2, 1e4):
        args = arguments(rng, 20, 5, 4, np.float64, 1.0, scale)
        g = rng.standard_normal((20, 4))
        actual, expected = (room.fully_connected_vjp(*args, 1.0, project=False)[1](g) for room in (fast, reference))
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * scale**0.5 * np.abs(b).max())


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", NAMES)
def test_zero_columns_large_biases_and_nan_rows(name: str) -> None:
    rng = np.random.default_rng(5)
    x, weight = points(rng, (4, 40), np.float32, 1.0), np.zeros((40, 5), np.float32)
    weight[:, 0], bias, g = 1, np.full(5, 3.0, np.float32), rng.standard_normal((4, 5)).astype(np.float32)
    for far in (bias, 30 * bias):
        actual, expected = (getattr(room, f"{name}_vjp")(x, weight, far, 1.0)[1](g) for room in (fast, reference))
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max() + 1e-30)
        assert not actual[1][:, 1:].any()
    x[2, 1] = np.nan
    dx = getattr(fast, f"{name}_vjp")(x, weight, bias, 1.0)[1](g)[0]
    assert np.isnan(dx[2]).all()
    assert np.isfinite(dx[[0, 1, 3]]).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [5, 40])
def test_layouts_and_later_writes(name: str, n: int) -> None:
    args = arguments(np.random.default_rng(6), 6, n, 7, np.float32, 1.0, 0.5)
    g = np.random.default_rng(7).standard_normal((6, 7)).astype(np.float32)
    expected: Any = None
    for label in support.layouts(args[0]):
        if label.startswith("row repeated"):
            continue
        rows = [support.layouts(args[0])[label], support.layouts(args[1])[label], args[2].copy()]
        y, pullback = getattr(fast, f"{name}_vjp")(*rows, 1.0)
        expected = expected or (y.copy(), *pullback(g))
        for a in (*rows, y):
            if a.flags.writeable:
                a[...] = 0.25
        for a, b in zip(pullback(support.layouts(g)[label]), expected[1:], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=label)
    batch, back = getattr(fast, f"{name}_vjp")(args[0].reshape(2, 3, n), *args[1:], 1.0)
    np.testing.assert_array_equal(batch.reshape(6, 7), expected[0])
    np.testing.assert_array_equal(back(g.reshape(2, 3, 7))[0].reshape(6, n), expected[1])


@pytest.mark.parametrize("name", NAMES)
def test_cotangents_of_other_dtypes_and_shapes_and_no_rows(name: str) -> None:
    args = arguments(np.random.default_rng(8), 5, 3, 4, np.float32, 1.0, 0.5)
    g = np.random.default_rng(9).standard_normal((5, 4))
    pullback, other = (getattr(room, f"{name}_vjp")(*args, 1.0)[1] for room in (fast, reference))
    for a, b in zip(pullback(g), other(g), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="cotangent: expected shape"):
        pullback(g[:, :3])
    empty, back = getattr(fast, f"{name}_vjp")(args[0][:0], *args[1:], np.array(1.0, np.float64))
    dx, dweight, dbias, dcurvature = back(empty)
    assert (dx.shape, dweight.shape, dbias.shape, dcurvature.dtype) == ((0, 3), (3, 4), (4,), np.float64)
    assert not dweight.any()


@pytest.mark.parametrize("n", [9, 40])
def test_logits_into_out(n: int) -> None:
    x, weight, bias = arguments(np.random.default_rng(10), 9, n, n, np.float32, 1.0, 0.5)
    expected = fast.mlr(x, weight, bias, 1.0)
    for out in (np.empty_like(expected), np.empty_like(expected, order="F"), np.empty((9, 2 * n), np.float32)[:, ::2]):
        assert fast.mlr(x, weight, bias, 1.0, out=out) is out
        np.testing.assert_array_equal(out, expected)
    same = x.copy()
    fast.mlr(same, weight, bias, 1.0, out=same)
    np.testing.assert_array_equal(same, expected)
    with pytest.raises(ValueError, match="out: expected shape"):
        fast.mlr(x, weight, bias, 1.0, out=np.empty((9, n + 1), np.float32))


X = np.full((2, 3), 0.1)


@pytest.mark.parametrize("suffix", ["", "_vjp"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "args",
    [
        (X, np.ones((2, 4)), np.zeros(4), 1.0),
        (10 * X, np.ones((3, 4)), np.zeros(4), 1.0),
        (X, np.ones((3, 4)), np.full(4, 300.0), 1.0),
        (X, np.ones((3, 4)), np.zeros(4, "f4"), 1.0),
        (X, np.ones((3, 0)), np.zeros(0), 1.0),
        (X, np.ones((3, 4)), np.zeros(4), -1.0),
    ],
)
def test_errors_are_those_of_the_reference(name: str, suffix: str, args: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as expected:
        getattr(reference, name + suffix)(*args)
    with pytest.raises(expected.type) as actual:
        getattr(fast, name + suffix)(*args)
    assert str(actual.value) == str(expected.value)


@pytest.mark.parametrize("name", NAMES)
def test_result_does_not_depend_on_the_number_of_threads(name: str) -> None:
    rng = np.random.default_rng(11)
    args, g = arguments(rng, 1000, 40, 48, np.float32, 1.0, 0.5), rng.standard_normal((1000, 48)).astype(np.float32)
    results = []
    for count in (1, 2, 3):
        with support.threads(count):
            y, pullback = getattr(fast, f"{name}_vjp")(*args, 1.0)
            results.append((y, *pullback(g)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
