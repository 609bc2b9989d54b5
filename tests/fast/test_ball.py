"""Pullbacks and rotations of the Poincaré ball against the reference: every level, tail, layout and corner."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refnorm.poincare as reference
import refnorm_fast.poincare as fast
from refnorm.poincare._numerics import gap, norm
from tests.fast import support
from tests.fast.test_poincare import points

AnyArray = np.ndarray[Any, np.dtype[Any]]
SCALARS = ("dist", "dist_sq", "conformal_factor")
PAIRS = ("mobius_add", "logmap", "dist", "dist_sq")
TURNS = ("gyration", "transport")
RAYS = ("exp0", "project_ball")
NAMES = (*PAIRS, *TURNS, *RAYS, "log0", "expmap", "mobius_scalar_mul", "conformal_factor")
FORWARD = (*TURNS, "mobius_scalar_mul", "conformal_factor")


@pytest.fixture(params=support.ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    with support.using_isa(request.param):
        yield request.param


def arguments(
    name: str, rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, curvature: float, edge: bool = False
) -> tuple[AnyArray, ...]:
    """The arrays of a call in the order of the function's arguments, and a cotangent of its result."""
    x, y = points(rng, shape, dtype, curvature, edge), points(rng, shape, dtype, curvature, edge)
    reach = rng.choice([1e-3, 1.0, 20.0], (*shape[:-1], 1))
    w = (reach * rng.standard_normal(shape) / np.sqrt(curvature)).astype(dtype)
    g = rng.standard_normal(shape[:-1] if name in SCALARS else shape).astype(dtype)
    if name in PAIRS:
        return x, y, g
    if name in TURNS:
        return x, y, w, g
    if name in RAYS:
        return w, g
    if name == "expmap":
        return x, w, g
    if name == "mobius_scalar_mul":
        return rng.choice([-2.0, 0.0, 0.5, 3.0], shape[:-1]).astype(dtype), x, g
    return x, g


def sizes(
    name: str, args: tuple[AnyArray, ...], curvature: float, g: AnyArray, **options: Any
) -> tuple[list[AnyArray], float]:
    """How large the terms are that cancel in a row's cotangents, and those in the curvature's.

    Measured with other cotangents, in one dimension more: there is a direction across every vector then.
    """
    rng = np.random.default_rng(99)
    wide = tuple(
        a if name == "mobius_scalar_mul" and i == 0 else np.concatenate([a, 0 * a[..., :1]], axis=-1)
        for i, a in enumerate(np.asarray(a, dtype=np.float64) for a in args)
    )
    z, pullback = getattr(reference, f"{name}_vjp")(*wide, curvature, **options)
    length = np.abs(g)[..., None].astype(float) if name in SCALARS else norm(g.astype(float))
    found: list[AnyArray] = []
    for _ in range(3):
        other = rng.standard_normal(z.shape)
        unit = np.sign(other) if name in SCALARS else other / norm(other)
        *rows, _ = pullback(unit * (length[..., 0] if name in SCALARS else length))
        rows = [
            norm(d) if d.ndim > g.ndim or (name not in SCALARS and d.ndim == g.ndim) else np.abs(d)[..., None]
            for d in rows
        ]
        found = [np.maximum(a, b) for a, b in zip(found, rows, strict=True)] if found else rows
    if name in TURNS:
        # The two terms of the inner product <g, turned w> alone.
        u, v, w = wide[:3]
        root, gaps = np.sqrt(curvature), gap(u, curvature) * gap(v, curvature)
        found[:2] = [d + 4 * root * length * norm(w) / gaps for d in found[:2]]
    if name in SCALARS:
        whole = length * np.abs(z)[..., None]
    else:
        whole = length * norm(z)
    for a, d in zip(wide, found, strict=False):
        whole = whole + (np.abs(a)[..., None] if a.ndim < wide[-1].ndim else norm(a)) * d
    return found, float(whole.sum()) / curvature


def check(name: str, args: tuple[AnyArray, ...], curvature: Any, isas: list[str], **options: Any) -> None:
    """Value and cotangents on every level in ``isas``, within 200 roundings of the terms that a row's cotangents are made of."""
    *given_arrays, g = args
    rows = tuple(given_arrays)
    expected, pullback = getattr(reference, f"{name}_vjp")(*rows, curvature, **options)
    truth = pullback(g)
    scales, whole = sizes(name, rows, float(curvature), g, **options)
    eps = float(np.finfo(g.dtype).eps)
    factor = 200 + g.shape[-1] if g.dtype == np.float64 else 4.0
    for level in isas:
        with support.using_isa(level):
            value, back = getattr(fast, f"{name}_vjp")(*rows, curvature, **options)
            plain = getattr(fast, name)(*rows, curvature, **options)
            cotangents = back(g)
        np.testing.assert_array_equal(plain, value)
        assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
        for actual, right, scale in zip(cotangents, truth, scales, strict=False):
            assert (actual.dtype, actual.shape) == (right.dtype, right.shape)
            difference = actual.astype(float) - right.astype(float)
            error = norm(difference) if actual.ndim == rows[-1].ndim else np.abs(difference)[..., None]
            # Below the smallest normal number there are fewer digits.
            allowed = factor * eps * scale + 4 * np.finfo(g.dtype).tiny
            assert (error <= allowed).all(), (name, level, float((error / allowed).max()))
        assert (cotangents[-1].dtype, cotangents[-1].shape) == (truth[-1].dtype, ())
        assert abs(float(cotangents[-1]) - float(truth[-1])) <= factor * eps * whole, (name, level)


@pytest.mark.parametrize("name", NAMES)
def test_every_tail(name: str) -> None:
    rng = np.random.default_rng(1)
    for dtype in support.DTYPES:
        # The loops take one vector at a time, so that a few long rows stand for all.
        for length in (*support.TAILS[1:36], *support.TAILS[36::11]):
            check(name, arguments(name, rng, (2, length), dtype, 0.7), 0.7, support.ISAS)


@pytest.mark.parametrize("name", NAMES)
@given(
    length=st.integers(1, 20),
    dtype=st.sampled_from(support.DTYPES),
    curvature=st.sampled_from([1.0, 0.1, 7.0, 1e-9, 1e12]),
    seed=st.integers(0, 2**32),
)
def test_inner_points_of_any_curvature(name: str, length: int, dtype: Any, curvature: float, seed: int) -> None:
    check(
        name, arguments(name, np.random.default_rng(seed), (7, length), dtype, curvature), curvature, support.ISAS[-1:]
    )


@pytest.mark.parametrize("name", sorted({*NAMES} - {*TURNS, "expmap", "logmap"}))
def test_up_to_the_boundary(name: str) -> None:
    rng = np.random.default_rng(2)
    for dtype in support.DTYPES:
        for length in (2, 3, 17):
            check(name, arguments(name, rng, (70, length), dtype, 1.0, edge=True), 1.0, support.ISAS)


@pytest.mark.parametrize("name", [*TURNS, "expmap", "logmap"])
def test_float32_up_to_the_boundary(name: str) -> None:
    rng = np.random.default_rng(3)
    for length in (2, 3, 17):
        check(name, arguments(name, rng, (70, length), np.float32, 1.0, edge=True), 1.0, support.ISAS)


@pytest.mark.parametrize("name", ["exp0", "expmap"])
def test_without_projection(name: str) -> None:
    rng = np.random.default_rng(4)
    for dtype in support.DTYPES:
        check(name, arguments(name, rng, (70, 5), dtype, 0.4), 0.4, support.ISAS, project=False)


def test_margins_of_a_projection() -> None:
    for eps in (0.0, 0.5):
        check(
            "project_ball",
            arguments("project_ball", np.random.default_rng(5), (70, 5), np.float64, 2.0),
            2.0,
            support.ISAS,
            eps=eps,
        )


@pytest.mark.usefixtures("isa")
def test_coinciding_points_and_zero_vectors() -> None:
    x = points(np.random.default_rng(6), (9, 4), np.float64, 1.0)
    zero, g = np.zeros_like(x), np.random.default_rng(7).standard_normal((9, 4))
    for name, args in {
        "logmap": (x, x),
        "expmap": (x, zero),
        "dist_sq": (x, x),
        "dist": (x, x),
        "exp0": (zero,),
        "log0": (zero,),
        "mobius_scalar_mul": (np.full(9, -2.0), zero),
        "project_ball": (zero,),
    }.items():
        up = g[:, 0] if name in SCALARS else g
        (_, actual), (_, expected) = (getattr(room, f"{name}_vjp")(*args, 1.0) for room in (fast, reference))
        for a, b in zip(actual(up), expected(up), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14 * np.abs(up).max(), err_msg=name)
    np.testing.assert_array_equal(fast.dist_vjp(x, x, 1.0)[1](g[:, 0])[0], zero)


@pytest.mark.usefixtures("isa")
def test_vectors_of_any_length() -> None:
    v = np.array([[0.0, 0.0], [1e-300, 1e-300], [1e-320, 0.0], [1e300, -1e300], [1e3, 1.0], [1e-160, 3e-170]])
    g = np.array([[1.0, 0.5]] * 6)
    for name, options in (
        ("exp0", {"project": False}),
        ("exp0", {}),
        ("project_ball", {}),
        ("expmap", {"project": False}),
    ):
        args = (0 * v + 0.25, v) if name == "expmap" else (v,)
        (_, actual), (_, expected) = (getattr(room, f"{name}_vjp")(*args, 1.0, **options) for room in (fast, reference))
        for a, b in zip(actual(g), expected(g), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15, err_msg=name)


def test_a_ray_in_one_dimension_has_no_across() -> None:
    v = np.array([[18.0], [3.0], [-25.0]])
    for name, args in (("exp0", (v,)), ("mobius_scalar_mul", (np.full(3, 9.0), np.tanh(v) / 1.01))):
        options = {"project": False} if name == "exp0" else {}
        expected = getattr(reference, f"{name}_vjp")(*args, 1.0, **options)[1](np.full((3, 1), 0.7))
        actual = getattr(fast, f"{name}_vjp")(*args, 1.0, **options)[1](np.full((3, 1), 0.7))
        np.testing.assert_allclose(actual[-2], expected[-2], rtol=1e-13)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("axis", [0, 1, -2])
def test_axis(name: str, axis: int) -> None:
    *args, g = arguments(name, np.random.default_rng(8), (2, 3, 5), np.float64, 1.0)

    def move(a: AnyArray) -> AnyArray:
        return np.moveaxis(a, -1, axis) if a.ndim == 3 else a

    z, pullback = getattr(fast, f"{name}_vjp")(*args, 1.0)
    moved, back = getattr(fast, f"{name}_vjp")(*map(move, args), 1.0, axis=axis)
    np.testing.assert_array_equal(moved, move(z))
    for a, b in zip(back(move(g)), pullback(g), strict=True):
        np.testing.assert_array_equal(a, move(b))


@pytest.mark.parametrize("name", NAMES)
def test_layouts_and_later_writes(name: str) -> None:
    *args, g = arguments(name, np.random.default_rng(9), (6, 10), np.float32, 1.0)
    expected = None
    for label in support.layouts(np.zeros((6, 10), np.float32)):
        if label.startswith("row repeated"):
            continue
        rows = [support.layouts(a)[label] if a.ndim == 2 else a.copy() for a in args]
        z, pullback = getattr(fast, f"{name}_vjp")(*rows, 1.0)
        for a in rows:
            if a.flags.writeable:
                a[...] = 0.5
        z[...] = 7
        up = support.layouts(g)[label] if g.ndim == 2 else g
        first, second = pullback(up), pullback(up)
        expected = expected or first
        for a, b, c in zip(first, second, expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=label)
            np.testing.assert_array_equal(a, c, err_msg=label)


def test_rows_of_a_zero_stride_and_one_vector() -> None:
    x = points(np.random.default_rng(10), (4, 6), np.float64, 1.0)
    one = np.broadcast_to(x[:1], x.shape)
    for name in PAIRS:
        g = np.ones(4) if name in SCALARS else np.ones((4, 6))
        for actual, expected in zip(
            getattr(fast, f"{name}_vjp")(one, x, 1.0)[1](g),
            getattr(reference, f"{name}_vjp")(one.copy(), x, 1.0)[1](g),
            strict=True,
        ):
            np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-13)
    distance, pullback = fast.dist_vjp(x[0], x[1], 1.0)
    assert isinstance(distance, np.float64)
    assert pullback(np.float64(1.0))[0].shape == (6,)
    scaled, pullback = fast.mobius_scalar_mul_vjp(2, x[0], np.array(1.0, np.float32))
    np.testing.assert_allclose(scaled, reference.mobius_add(x[0], x[0], 1.0), rtol=1e-13)
    dscale, _, dcurvature = pullback(x[0])
    assert (dscale.shape, dscale.dtype, dcurvature.dtype) == ((), np.float64, np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_cotangents_of_other_dtypes_and_shapes(name: str) -> None:
    *args, g = arguments(name, np.random.default_rng(11), (5, 3), np.float32, 1.0)
    pullback = getattr(fast, f"{name}_vjp")(*args, 1.0)[1]
    other = getattr(reference, f"{name}_vjp")(*args, 1.0)[1]
    up = g.astype(np.float64) + 1e-9
    for a, b in zip(pullback(up), other(up), strict=True):
        np.testing.assert_array_equal(a, b)
    for wrong in (g[:-1], np.float32(1.0)):
        with pytest.raises(ValueError, match="cotangent: expected shape") as expected:
            other(wrong)
        with pytest.raises(ValueError, match="cotangent") as actual:
            pullback(wrong)
        assert str(actual.value) == str(expected.value)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_in_its_row(name: str) -> None:
    *args, g = arguments(name, np.random.default_rng(12), (5, 9), np.float32, 1.0)
    args[-1][2, 4] = np.nan
    with np.errstate(invalid="ignore"):
        expected = getattr(reference, f"{name}_vjp")(*args, 1.0)[1](g)[:-1]
    for d, right in zip(getattr(fast, f"{name}_vjp")(*args, 1.0)[1](g)[:-1], expected, strict=True):
        assert np.isnan(d[2]).any() == np.isnan(right[2]).any()
        assert np.isfinite(np.delete(d, 2, axis=0)).all()


@pytest.mark.parametrize("name", FORWARD)
def test_out(name: str) -> None:
    *args, _ = arguments(name, np.random.default_rng(13), (5, 9), np.float64, 1.0)
    function: Callable[..., AnyArray] = getattr(fast, name)
    if name == "conformal_factor":
        out = np.empty(5)
        assert function(*args, 1.0, out=out) is out
        np.testing.assert_array_equal(out, function(*args, 1.0))
        with pytest.raises(ValueError, match="out: expected shape"):
            function(*args, 1.0, out=np.empty(4))
        return
    for place, array in enumerate(args):
        if array.ndim == 1:
            continue

        def call(a: AnyArray, place: int = place, **options: Any) -> AnyArray:
            return function(*args[:place], a, *args[place + 1 :], 1.0, **options)

        support.check_out(call, array)
    support.check_out_errors(call, array)


def test_a_failed_call_leaves_out_and_arguments_alone() -> None:
    x = np.array([[0.1, 0.2], [2.0, 0.0]])
    before = x.copy()
    with pytest.raises(ValueError, match="u: expected points"):
        fast.gyration(x, 0.1 * x, x, 1.0, out=x)
    np.testing.assert_array_equal(x, before)


X = np.full((2, 3), 0.1)


@pytest.mark.parametrize("suffix", ["", "_vjp"])
@pytest.mark.parametrize(
    "call",
    [
        lambda room, s: getattr(room, "mobius_add" + s)(X, X[:1], 1.0),
        lambda room, s: getattr(room, "mobius_add" + s)(X, X.astype("f4"), 1.0),
        lambda room, s: getattr(room, "mobius_add" + s)(X, 10 * X, 1.0),
        lambda room, s: getattr(room, "logmap" + s)(X.astype(int), X, 1.0),
        lambda room, s: getattr(room, "log0" + s)(np.array([1.0, 0.0]), 1.0),
        lambda room, s: getattr(room, "exp0" + s)(np.zeros((2, 0)), 1.0),
        lambda room, s: getattr(room, "exp0" + s)(X, 0.0),
        lambda room, s: getattr(room, "dist" + s)(X, 10 * X, 1.0),
        lambda room, s: getattr(room, "dist_sq" + s)(X, X, np.ones(2)),
        lambda room, s: getattr(room, "expmap" + s)(10 * X, X, 1.0),
        lambda room, s: getattr(room, "project_ball" + s)(X, 1.0, eps=1.0),
        lambda room, s: getattr(room, "gyration" + s)(X, 10 * X, X, 1.0),
        lambda room, s: getattr(room, "gyration" + s)(X, X, X[0], 1.0),
        lambda room, s: getattr(room, "transport" + s)(X, X, X.astype("f4"), 1.0),
        lambda room, s: getattr(room, "transport" + s)(X, X, X, 1.0, axis=2),
        lambda room, s: getattr(room, "conformal_factor" + s)(10 * X, 1.0),
        lambda room, s: getattr(room, "conformal_factor" + s)(np.float64(0.5), 1.0),
        lambda room, s: getattr(room, "mobius_scalar_mul" + s)(np.ones(3), X, 1.0),
        lambda room, s: getattr(room, "mobius_scalar_mul" + s)(np.ones(2, "f4"), X, 1.0),
        lambda room, s: getattr(room, "mobius_scalar_mul" + s)("2", X, 1.0),
        lambda room, s: getattr(room, "mobius_scalar_mul" + s)(2.0, 10 * X, 1.0),
    ],
)
def test_errors_are_those_of_the_reference(call: Any, suffix: str) -> None:
    with pytest.raises((TypeError, ValueError)) as expected:
        call(reference, suffix)
    with pytest.raises(expected.type) as actual:
        call(fast, suffix)
    assert str(actual.value) == str(expected.value)


def test_signatures_are_those_of_the_reference() -> None:
    for name in fast.__all__:
        if not hasattr(reference, name):
            continue
        theirs, ours = (list(inspect.signature(getattr(room, name)).parameters) for room in (reference, fast))
        assert ours in (theirs, [*theirs, "out"]), name


def test_empty_batches() -> None:
    empty = np.zeros((0, 3), np.float32)
    for name, args in {
        "mobius_add": (empty, empty),
        "dist": (empty, empty),
        "log0": (empty,),
        "gyration": (empty,) * 3,
    }.items():
        z, pullback = getattr(fast, f"{name}_vjp")(*args, 1.0)
        *rows, dcurvature = pullback(z)
        assert all(d.shape == (0, 3) for d in rows)
        assert dcurvature == 0


def test_extreme_curvatures() -> None:
    for exponent in (-400, 400):
        scale = 2.0 ** (-exponent // 2)
        x, y = points(np.random.default_rng(14), (2, 4, 3), np.float64, 1.0)
        for a, b in zip(
            fast.mobius_add_vjp(scale * x, scale * y, 2.0**exponent)[1](x)[:2],
            reference.mobius_add_vjp(x, y, 1.0)[1](x)[:2],
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_result_does_not_depend_on_the_number_of_threads(name: str) -> None:
    *args, g = arguments(name, np.random.default_rng(15), (5000, 20), np.float32, 1.0)
    results = []
    for count in (1, 2, 3):
        with support.threads(count):
            z, pullback = getattr(fast, f"{name}_vjp")(*args, 1.0)
            results.append((z, *pullback(g)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_eight_python_threads() -> None:
    x, v, g = arguments("expmap", np.random.default_rng(16), (300, 40), np.float32, 1.0)
    pullback = fast.expmap_vjp(x, v, 1.0)[1]
    expected, wrong = pullback(g), []

    def work() -> None:
        for _ in range(10):
            if not all(np.array_equal(a, b) for a, b in zip(pullback(g), expected, strict=True)):
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
    x, y, g = arguments("logmap", np.random.default_rng(17), (3000, 40), np.float32, 1.0)
    pullback = fast.logmap_vjp(x, y, 1.0)[1]
    expected = pullback(g)[0]
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(pullback(g)[0], expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
