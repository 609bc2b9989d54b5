"""The Poincaré kernels against the reference: every level, tail, layout and corner of the ball."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refnorm.poincare as reference
import refnorm_fast.poincare as fast
from refnorm.conformance import format_table, run
from refnorm.poincare._numerics import gap, norm
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]
NAMES = ("mobius_add", "exp0", "log0", "project_ball", "expmap", "logmap", "dist", "dist_sq")
PAIRS = ("mobius_add", "expmap", "logmap", "dist", "dist_sq")
FREE = {"project": False}


@pytest.fixture(params=support.ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    with support.using_isa(request.param):
        yield request.param


def points(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, curvature: float, edge: bool = False
) -> AnyArray:
    """Points of the ball; with ``edge``, some of them within a few units in the last place of the boundary."""
    u = float(np.finfo(dtype).epsneg)
    direction = rng.standard_normal(shape)
    radii = [0.9, 0.5, 1e-3, 1e-20, 0.0] + ([1 - u, 1 - 4 * u, 1 - 1000 * u] if edge else [])
    radius = rng.choice(radii, (*shape[:-1], 1))
    x = (direction / np.linalg.norm(direction, axis=-1, keepdims=True) * radius / np.sqrt(curvature)).astype(dtype)
    while True:
        outside = gap(x.astype(float), curvature) <= 0
        if not outside.any():
            return x
        x = np.where(outside, x * dtype(1 - np.finfo(dtype).eps), x)


def arguments(
    name: str, rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, curvature: float, edge: bool = False
) -> tuple[AnyArray, ...]:
    x = points(rng, shape, dtype, curvature, edge)
    if name in ("exp0", "project_ball"):
        reach = rng.choice([1e-3, 1.0, 20.0], (*shape[:-1], 1))
        return ((reach * rng.standard_normal(shape) / np.sqrt(curvature)).astype(dtype),)
    if name == "expmap":
        reach = rng.choice([1e-9, 0.1, 1.0, 5.0], (*shape[:-1], 1)) * gap(x.astype(float), curvature)
        return x, (reach * rng.standard_normal(shape) / np.sqrt(curvature)).astype(dtype)
    return (x, points(rng, shape, dtype, curvature, edge)) if name in PAIRS else (x,)


def agree(name: str, args: tuple[AnyArray, ...], curvature: float, actual: AnyArray, expected: AnyArray) -> None:
    """Row by row, within what rounding the arguments once more could do (float64), or a few units (float32)."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    eps = float(np.finfo(actual.dtype).eps)
    if name in ("dist", "dist_sq"):
        np.testing.assert_allclose(actual, expected, rtol=(20 + args[0].shape[-1] / 4) * eps)
        return
    error = norm(actual.astype(float) - expected.astype(float))
    size = norm(expected.astype(float))
    allowed = (30 + args[0].shape[-1] / 4) * eps * size
    if name == "expmap" and actual.dtype == np.float64:
        # A turn of the velocity by one rounding moves the end point by up to eps/gap.
        allowed += (
            200 * eps / gap(args[0].astype(float), curvature) * gap(expected, curvature).clip(eps) / np.sqrt(curvature)
        )
    assert (error <= allowed).all(), (name, float((error / np.where(size == 0, 1, size)).max()))


def options_of(name: str) -> dict[str, Any]:
    return FREE if name in ("exp0", "expmap") else {}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", NAMES)
def test_every_tail(name: str) -> None:
    rng = np.random.default_rng(1)
    for dtype in support.DTYPES:
        for length in support.TAILS[1:]:
            args = arguments(name, rng, (3, length), dtype, 0.7)
            agree(name, args, 0.7, getattr(fast, name)(*args, 0.7), getattr(reference, name)(*args, 0.7))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", NAMES)
@given(
    length=st.integers(1, 40),
    dtype=st.sampled_from(support.DTYPES),
    curvature=st.sampled_from([1.0, 0.1, 7.0, 1e-9, 1e12]),
    seed=st.integers(0, 2**32),
)
def test_agrees_with_the_reference_up_to_the_boundary(
    name: str, length: int, dtype: Any, curvature: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    args = arguments(name, rng, (8, length), dtype, curvature, edge=True)
    options = options_of(name)
    actual = getattr(fast, name)(*args, curvature, **options)
    agree(name, args, curvature, actual, getattr(reference, name)(*args, curvature, **options))
    if name in ("mobius_add", "exp0", "project_ball", "expmap"):
        assert (gap(actual.astype(float), curvature) > 0).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("method", ["poincare/ball", "poincare/geodesics", "poincare/linear"])
def test_golden_values_on_every_level(method: str) -> None:
    outcomes = run({f"poincare.{name}": getattr(fast, name) for name in fast.__all__}, methods=[method])
    assert all(outcome.passed for outcome in outcomes), "\n" + format_table(outcomes)


@pytest.mark.usefixtures("isa")
def test_opposite_points_at_the_boundary() -> None:
    for dtype in support.DTYPES:
        x = points(np.random.default_rng(3), (40, 5), dtype, 1.0, edge=True)
        near = np.nextafter(x, dtype(0))
        for y in (-x, -near, near, x):
            agree("mobius_add", (x, y), 1.0, fast.mobius_add(x, y, 1.0), reference.mobius_add(x, y, 1.0))
            agree("logmap", (x, y), 1.0, fast.logmap(x, y, 1.0), reference.logmap(x, y, 1.0))


@pytest.mark.usefixtures("isa")
def test_a_gap_that_doubled_precision_cannot_resolve() -> None:
    x = np.array([[0.6, 0.8]])
    x[0, 1] = np.nextafter(np.sqrt(1 - x[0, 0] ** 2), 0)
    assert 0 < gap(x, 1.0)[0, 0] < 1e-15
    np.testing.assert_allclose(fast.log0(x, 1.0), reference.log0(x, 1.0), rtol=1e-15)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", ["exp0", "project_ball"])
def test_enormous_and_tiny_vectors(name: str) -> None:
    huge, tiny = np.finfo(np.float64).max, 5e-324
    v = np.array([[huge, -huge], [tiny, 0.0], [1e-200, 1e-180], [1e200, 1.0], [0.0, 0.0]])
    options = options_of(name)
    agree(name, (v,), 1.0, getattr(fast, name)(v, 1.0, **options), getattr(reference, name)(v, 1.0, **options))


@pytest.mark.usefixtures("isa")
def test_velocities_of_any_length() -> None:
    x = np.array([[0.3, -0.4]] * 5)
    v = np.array([[0.0, 0.0], [1e-300, 1e-300], [1e-320, 0.0], [1e300, -1e300], [1e3, 1.0]])
    agree("expmap", (x, v), 1.0, fast.expmap(x, v, 1.0, project=False), reference.expmap(x, v, 1.0, project=False))


def test_layouts() -> None:
    rng = np.random.default_rng(5)
    x, y = points(rng, (6, 10), np.float32, 1.0), points(rng, (6, 10), np.float32, 1.0)
    weight, bias = rng.standard_normal((10, 7)).astype(np.float32), np.full(7, 0.1, np.float32)
    for label, a in support.layouts(x).items():
        for b in support.layouts(y).values():
            np.testing.assert_array_equal(
                fast.mobius_add(a, b, 1.0), fast.mobius_add(a.copy(), b.copy(), 1.0), err_msg=label
            )
        np.testing.assert_array_equal(fast.exp0(a, 1.0), fast.exp0(a.copy(), 1.0), err_msg=label)
        for w in support.layouts(weight).values():
            np.testing.assert_array_equal(
                fast.fully_connected(a, w, bias, 1.0),
                fast.fully_connected(a.copy(), w.copy(), bias, 1.0),
                err_msg=label,
            )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("axis", [0, 1, -2])
def test_axis(name: str, axis: int) -> None:
    args = tuple(
        np.moveaxis(a, -1, axis) for a in arguments(name, np.random.default_rng(6), (2, 3, 5), np.float64, 1.0)
    )
    expected = getattr(reference, name)(*args, 1.0, axis=axis)
    np.testing.assert_allclose(getattr(fast, name)(*args, 1.0, axis=axis), expected, rtol=1e-12, atol=1e-30)
    out = np.empty_like(expected)
    assert getattr(fast, name)(*args, 1.0, axis=axis, out=out) is out
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-30)


@pytest.mark.parametrize("name", ["exp0", "project_ball", "log0"])
def test_out(name: str) -> None:
    x = 0.1 * np.random.default_rng(7).standard_normal((5, 9))
    function = getattr(fast, name)
    support.check_out(lambda a, **options: function(a, 1.0, **options), x)
    support.check_out_errors(lambda a, **options: function(a, 1.0, **options), x)
    second = 0.1 * np.random.default_rng(8).standard_normal((5, 9))
    for pair in ("mobius_add", "expmap", "logmap"):
        operation = getattr(fast, pair)
        support.check_out(lambda a, operation=operation, **options: operation(a, second, 1.0, **options), x)
        support.check_out(lambda a, operation=operation, **options: operation(second, a, 1.0, **options), x)


def test_distances_into_out() -> None:
    x, y = points(np.random.default_rng(9), (2, 4, 3), np.float32, 1.0)
    out = np.empty(4, np.float32)
    assert fast.dist(x, y, 1.0, out=out) is out
    np.testing.assert_array_equal(out, fast.dist(x, y, 1.0))
    with pytest.raises(ValueError, match="out: expected shape"):
        fast.dist(x, y, 1.0, out=np.empty(3, np.float32))
    assert isinstance(fast.dist(x[0], y[0], 1.0), np.float32)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize(
    ("rows", "n", "m"), [(1, 1, 1), (7, 3, 130), (33, 40, 17), (5, 64, 64), (70, 129, 65), (0, 40, 3)]
)
def test_fully_connected(dtype: Any, project: bool, rows: int, n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    for curvature, scale in ((1.0, 0.5), (0.1, 2.0), (3.0, 0.05)):
        x = points(rng, (rows, n), dtype, curvature, edge=dtype == np.float64)
        weight = (scale * rng.standard_normal((n, m)) / np.sqrt(n)).astype(dtype)
        bias = (0.2 * rng.standard_normal(m) / np.sqrt(curvature)).astype(dtype)
        y = fast.fully_connected(x, weight, bias, curvature, project=project)
        wide = (a.astype(np.float64) for a in (x, weight, bias))
        expected = reference.fully_connected(*wide, curvature, project=False)
        if project:
            expected = reference.project_ball(
                expected, curvature, eps=reference._ball.PROJECTION_MARGIN[np.dtype(dtype)]
            )
        assert y.dtype == dtype
        assert (gap(y.astype(float), curvature) > 0).all()
        # Errors of an inner product and of one rounding of the largest logit, both in the exponent of sinh.
        logits = reference.mlr(x.astype(float), weight.astype(float), bias.astype(float), curvature)
        largest = 1 + np.sqrt(curvature) * np.abs(logits).max(initial=0)
        limit = (10 + 4 * largest + np.sqrt(n)) * np.finfo(dtype).eps / np.sqrt(curvature)
        np.testing.assert_allclose(y, expected, rtol=0, atol=2 * limit)


@pytest.mark.usefixtures("isa")
def test_fully_connected_keeps_points_under_half_the_identity() -> None:
    x = points(np.random.default_rng(2), (50, 64), np.float32, 1.0)
    weight, bias = reference.init_identity(64, 64, dtype=np.float32)
    y = fast.fully_connected(x, weight, bias, 1.0)
    np.testing.assert_allclose(y, reference.project_ball(x, 1.0), rtol=0, atol=5e-7)


@pytest.mark.usefixtures("isa")
def test_fully_connected_with_logits_of_any_size() -> None:
    rng = np.random.default_rng(4)
    x = points(rng, (20, 48), np.float32, 1.0)
    for size in (1e-30, 1e-6, 1.0, 30.0, 1e4, 1e9):
        weight = (size * rng.standard_normal((48, 40))).astype(np.float32)
        y = fast.fully_connected(x, weight, np.zeros(40, np.float32), 1.0, project=False)
        assert np.isfinite(y).all()
        assert (gap(y.astype(float), 1.0) > 0).all()


def test_zero_columns_large_biases_and_nan_rows() -> None:
    rng = np.random.default_rng(5)
    x, weight, bias = points(rng, (4, 40), np.float32, 1.0), np.zeros((40, 5), np.float32), np.full(5, 3.0, np.float32)
    weight[:, 0] = 1
    np.testing.assert_allclose(
        fast.fully_connected(x, weight, bias, 1.0), reference.fully_connected(x, weight, bias, 1.0), atol=1e-6
    )
    far = np.full(5, 240.0, np.float32)
    np.testing.assert_allclose(
        fast.fully_connected(x, weight, far, 1.0), reference.fully_connected(x, weight, far, 1.0), atol=1e-6
    )
    x[2, 1] = np.nan
    y = fast.fully_connected(x, weight, bias, 1.0)
    assert np.isnan(y[2]).all()
    assert np.isfinite(y[[0, 1, 3]]).all()


def test_fully_connected_into_out() -> None:
    rng = np.random.default_rng(6)
    x, weight, bias = (
        points(rng, (9, 40), np.float32, 1.0),
        rng.standard_normal((40, 40)).astype(np.float32),
        np.zeros(40, np.float32),
    )
    expected = fast.fully_connected(x, weight, bias, 1.0)
    for out in (np.empty_like(expected), np.empty_like(expected, order="F"), np.empty((9, 80), np.float32)[:, ::2]):
        assert fast.fully_connected(x, weight, bias, 1.0, out=out) is out
        np.testing.assert_array_equal(out, expected)
    same = x.copy()
    fast.fully_connected(same, weight, bias, 1.0, out=same)
    np.testing.assert_array_equal(same, expected)
    with pytest.raises(ValueError, match="out: expected shape"):
        fast.fully_connected(x, weight, bias, 1.0, out=np.empty((9, 39), np.float32))


def test_extreme_curvatures() -> None:
    for exponent in (-700, 700):
        scale = 2.0 ** (-exponent // 2)
        x, y = points(np.random.default_rng(8), (2, 4, 3), np.float64, 1.0)
        z = fast.mobius_add(scale * x, scale * y, 2.0**exponent)
        np.testing.assert_allclose(z, scale * reference.mobius_add(x, y, 1.0), rtol=1e-12)


X = np.full((2, 3), 0.1)


@pytest.mark.parametrize(
    "call",
    [
        lambda room: room.mobius_add(X, X[:1], 1.0),
        lambda room: room.mobius_add(X, X.astype("f4"), 1.0),
        lambda room: room.mobius_add(X.astype(int), X, 1.0),
        lambda room: room.mobius_add(X, 10 * X, 1.0),
        lambda room: room.mobius_add(X, X, 0.0),
        lambda room: room.mobius_add(X, X, np.ones(2)),
        lambda room: room.mobius_add(X, X, 1.0, axis=2),
        lambda room: room.log0(np.array([1.0, 0.0]), 1.0),
        lambda room: room.exp0(np.zeros((2, 0)), 1.0),
        lambda room: room.exp0(np.float64(1.0), 1.0),
        lambda room: room.dist(X, 10 * X, 1.0),
        lambda room: room.expmap(10 * X, X, 1.0),
        lambda room: room.project_ball(X, 1.0, eps=1.0),
        lambda room: room.fully_connected(X, np.ones((2, 4)), np.zeros(4), 1.0),
        lambda room: room.fully_connected(10 * X, np.ones((3, 4)), np.zeros(4), 1.0),
        lambda room: room.fully_connected(X, np.ones((3, 4)), np.full(4, 300.0), 1.0),
        lambda room: room.fully_connected(X, np.ones((3, 4)), np.zeros(4, "f4"), 1.0),
        lambda room: room.fully_connected(X, np.ones((3, 0)), np.zeros(0), 1.0),
    ],
)
def test_errors_are_those_of_the_reference(call: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as expected:
        call(reference)
    with pytest.raises(expected.type) as actual:
        call(fast)
    assert str(actual.value) == str(expected.value)


def test_a_failed_call_in_place_leaves_its_argument_alone() -> None:
    x = np.array([[0.1, 0.2], [2.0, 0.0]])
    before = x.copy()
    with pytest.raises(ValueError, match="x: expected points"):
        fast.mobius_add(x, 0.1 * x, 1.0, out=x)
    np.testing.assert_array_equal(x, before)


def test_empty_batches() -> None:
    empty = np.zeros((0, 3), np.float32)
    assert fast.mobius_add(empty, empty, 1.0).shape == (0, 3)
    assert fast.dist(empty, empty, 1.0).shape == (0,)


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    rng = np.random.default_rng(10)
    x, v = points(rng, (5000, 20), np.float32, 1.0), rng.standard_normal((5000, 20)).astype(np.float32)
    weight, bias = rng.standard_normal((40, 48)).astype(np.float32), np.zeros(48, np.float32)
    wide = points(rng, (500, 40), np.float32, 1.0)
    results = []
    for count in (1, 2, 3):
        with support.threads(count):
            results.append((fast.expmap(x, v, 1.0), fast.fully_connected(wide, weight, bias, 1.0)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_eight_python_threads() -> None:
    x = points(np.random.default_rng(11), (300, 40), np.float32, 1.0)
    weight, bias = np.eye(40, dtype=np.float32), np.zeros(40, np.float32)
    expected, wrong = fast.fully_connected(x, weight, bias, 1.0), []

    def work() -> None:
        for _ in range(10):
            if not np.array_equal(fast.fully_connected(x, weight, bias, 1.0), expected):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_after_fork() -> None:
    x = points(np.random.default_rng(12), (3000, 40), np.float32, 1.0)
    expected = fast.mobius_add(x, x, 1.0)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(fast.mobius_add(x, x, 1.0), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
