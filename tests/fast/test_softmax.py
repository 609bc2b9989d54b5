"""The softmax room's kernels against the reference and against long doubles."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import refnorm.softmax as reference
import refnorm_fast.softmax as fast
from refnorm._arrays import ulp_error
from refnorm_fast.softmax import _core
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]
EPS = {np.dtype(np.float32): 2.0**-23, np.dtype(np.float64): 2.0**-52}


def exact_softmax(x: AnyArray) -> AnyArray:
    wide = x.astype(np.longdouble)
    e = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def exact_log_softmax(x: AnyArray) -> AnyArray:
    wide = x.astype(np.longdouble)
    at = wide.argmax(axis=-1)[..., None]
    shifted = wide - np.take_along_axis(wide, at, axis=-1)
    e = np.exp(shifted)
    np.put_along_axis(e, at, 0, axis=-1)
    return shifted - np.log1p(e.sum(axis=-1, keepdims=True))


@pytest.fixture(params=support.ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    with support.using_isa(request.param):
        yield request.param


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("spread", [1, 10, 30])
@pytest.mark.parametrize("length", [10, 37, 129, 1000, 4096, 40000, 100003, 1000000])
def test_float32_within_two_ulp(length: int, spread: float) -> None:
    rng = np.random.default_rng(length)
    x = (spread * rng.normal(size=(max(1, 200000 // length), length))).astype(np.float32)
    assert ulp_error(fast.softmax(x), exact_softmax(x)).max() <= 2
    assert ulp_error(fast.log_softmax(x), exact_log_softmax(x)).max() <= 2


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("length", [5, 33, 64, 100, 129])
@pytest.mark.parametrize("algorithm", ["two_pass", "_two_pass_always"])
def test_float32_within_two_ulp_where_few_terms_decide(algorithm: str, length: int) -> None:
    # The error of a sum of one or two large terms does not average out: many rows find its largest.
    x = (10 * np.random.default_rng(length).normal(size=(3000, length))).astype(np.float32)
    x[::2, 0] += 40
    assert ulp_error(fast.softmax(x, algorithm=algorithm), exact_softmax(x)).max() <= 2


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("offset", [-1e5, -1e3, 1e3, 6e4, 7e4, 1e5, 1e7])
def test_float32_within_two_ulp_far_from_zero(offset: float) -> None:
    rng = np.random.default_rng(3)
    for length in (100, 5000, 100000):
        x = (5 * rng.normal(size=(3, length)) + offset).astype(np.float32)
        assert ulp_error(fast.softmax(x), exact_softmax(x)).max() <= 2
        assert ulp_error(fast.log_softmax(x), exact_log_softmax(x)).max() <= 2


@pytest.mark.usefixtures("isa")
def test_subnormal_results_are_rounded_not_flushed() -> None:
    x = np.linspace(-110, 0, 100001, dtype=np.float32)
    y = fast.softmax(x)
    assert ((y > 0) & (y < np.finfo(np.float32).tiny)).sum() > 1000
    assert ulp_error(y, exact_softmax(x)).max() <= 2
    wide = np.linspace(-760, 0, 100001)
    y64 = fast.softmax(wide)
    assert ((y64 > 0) & (y64 < np.finfo(np.float64).tiny)).sum() > 1000
    np.testing.assert_allclose(y64, np.asarray(exact_softmax(wide), np.float64), rtol=1e-14, atol=1.5e-323)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_every_tail(dtype: type) -> None:
    rng = np.random.default_rng(0)
    for length in support.TAILS:
        if length == 0:
            continue
        x = (3 * rng.normal(size=(3, length))).astype(dtype)
        guarded = np.full((3, length + 2), np.nan, dtype)  # neighbours that must be neither read nor written
        guarded[:, 1:-1] = x
        y = fast.softmax(guarded[:, 1:-1])
        assert ulp_error(y, exact_softmax(x)).max() <= 3, length
        assert ulp_error(fast.log_softmax(guarded[:, 1:-1]), exact_log_softmax(x)).max() <= 4, length
        out = np.full(3 * length + 2, 7, dtype)
        fast.softmax(x, out=out[1:-1].reshape(3, length))
        np.testing.assert_array_equal(out[1:-1].reshape(3, length), y)
        assert out[0] == out[-1] == 7
        for name in ("softmax", "log_softmax", "logsumexp"):
            value, pullback = getattr(fast, name + "_vjp")(x)
            expected, reference_pullback = getattr(reference, name + "_vjp")(x)
            dy = rng.normal(size=value.shape).astype(dtype)
            np.testing.assert_allclose(value, expected, rtol=8 * EPS[x.dtype], atol=8 * EPS[x.dtype])
            np.testing.assert_allclose(
                pullback(dy)[0],
                reference_pullback(dy)[0],
                rtol=1e-5,
                atol=32 * EPS[x.dtype],
                err_msg=f"{name} {length}",
            )


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("length", [5, 64, 5000, 300001])
@pytest.mark.parametrize("algorithm", [*_core.ALGORITHMS, "_two_pass_always"])
def test_special_rows(length: int, algorithm: str, dtype: type) -> None:
    x = np.zeros((7, length), dtype)
    x[0, -1] = np.nan
    x[1, 0] = np.inf
    x[2] = -np.inf
    x[3, 1:] = -np.inf
    x[4] = -np.inf
    x[4, length // 2] = np.nan
    x[5, :-1] = -np.inf
    x[5, -1] = -3e38
    y = fast.softmax(x, algorithm=algorithm)
    assert np.isnan(y[[0, 1, 2, 4]]).all()
    assert y[3, 0] == 1
    assert (y[3, 1:] == 0).all()
    assert y[5, -1] == 1
    assert (y[5, :-1] == 0).all()
    np.testing.assert_allclose(y[6], 1 / length, rtol=4 * EPS[x.dtype])
    z = fast.log_softmax(x)
    assert np.isnan(z[[0, 1, 2, 4]]).all()
    assert z[3, 0] == 0
    assert (z[3, 1:] == -np.inf).all()
    lse = fast.logsumexp(x)
    np.testing.assert_array_equal(lse[:5], np.array([np.nan, np.inf, -np.inf, 0, np.nan], dtype))


@pytest.mark.usefixtures("isa")
def test_huge_entries_beside_ordinary_ones() -> None:
    for length in (100, 70000, 300000):
        x = np.zeros((4, length), np.float32)
        x[0, 7] = 3e38
        x[1, :] = -3e38
        x[1, 7] = -2e38
        x[2, ::2] = -3e38
        x[3, -1] = 1e6
        assert ulp_error(fast.softmax(x), exact_softmax(x)).max() <= 2
        assert ulp_error(fast.log_softmax(x), exact_log_softmax(x)).max() <= 2


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("function", [fast.softmax, fast.log_softmax])
def test_layouts_and_axes(function: Callable[..., AnyArray], dtype: type) -> None:
    exact = exact_softmax if function is fast.softmax else exact_log_softmax
    bound = 2 if dtype is np.float32 else 4
    x = (4 * np.random.default_rng(0).normal(size=(6, 5, 7))).astype(dtype)
    for name, same in support.layouts(x).items():
        for axis in (-1, 0, 1, 2, -3):
            contiguous = np.ascontiguousarray(same)
            expected = function(contiguous, axis=axis)
            result = function(same, axis=axis)
            np.testing.assert_array_equal(result, expected, err_msg=f"{name}, axis {axis}")
            assert ulp_error(np.moveaxis(result, axis, -1), exact(np.moveaxis(contiguous, axis, -1))).max() <= bound
            assert result.flags.c_contiguous
    # larger than one chunk of the copies that awkward layouts need
    tall = (4 * np.random.default_rng(0).normal(size=(700, 3, 401))).astype(dtype)
    for axis in (0, 1):
        expected = function(tall, axis=axis)
        np.testing.assert_array_equal(function(np.asfortranarray(tall), axis=axis), expected)
        np.testing.assert_array_equal(
            function(tall[::-1, :, ::-1], axis=axis)[:, :, ::-1], function(tall[::-1], axis=axis)
        )
    assert ulp_error(np.moveaxis(function(tall, axis=0), 0, -1), exact(np.moveaxis(tall, 0, -1))).max() <= bound


def exact_backward(name: str, y: AnyArray, g: AnyArray) -> AnyArray:
    """Along axis -2, from long doubles; ``y`` is the exact softmax."""
    y, g = y.astype(np.longdouble), g.astype(np.longdouble)
    if name == "softmax":
        return y * (g - (g * y).sum(axis=-2, keepdims=True))
    return g - y * g.sum(axis=-2, keepdims=True)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("length", [1, 2, 3, 5, 31, 300, 9001])
def test_columns(length: int, dtype: type) -> None:
    """Every width of a tail beside whole strips; columns that are copied to scratch and such that are too long for it."""
    rng = np.random.default_rng(length)
    unit = EPS[np.dtype(dtype)]
    for inner in (*range(2, 70), 130) if length < 300 else (5, 64, 81):
        x = (5 * rng.normal(size=(2, length, inner))).astype(dtype)
        guarded = np.full(x.size + 2, np.nan, dtype)  # neighbours that must be neither read nor written
        guarded[1:-1] = x.ravel()
        same, moved = guarded[1:-1].reshape(x.shape), np.moveaxis(x, 1, -1)
        exact, exact_log = (np.moveaxis(f(moved), -1, 1) for f in (exact_softmax, exact_log_softmax))
        y, z = fast.softmax(same, axis=1), fast.log_softmax(same, axis=1)
        assert ulp_error(y, exact).max() <= (2 if dtype is np.float32 else 4), inner
        assert ulp_error(z, exact_log).max() <= (2 if dtype is np.float32 else 4), inner
        np.testing.assert_allclose(
            fast.logsumexp(x, axis=1), reference.logsumexp(x, axis=1), rtol=4 * unit, atol=4 * unit
        )
        out = np.full(x.size + 2, 7, dtype)
        fast.softmax(x, axis=1, out=out[1:-1].reshape(x.shape))
        np.testing.assert_array_equal(out[1:-1].reshape(x.shape), y)
        assert out[0] == out[-1] == 7
        dy = rng.normal(size=x.shape).astype(dtype)
        for name in ("softmax", "log_softmax"):
            value, pullback = getattr(fast, name + "_vjp")(x, axis=1)
            np.testing.assert_array_equal(value, y if name == "softmax" else z)
            scale = max(1.0, float(np.abs(dy.sum(axis=1)).max()))
            np.testing.assert_allclose(
                pullback(dy)[0], exact_backward(name, exact, dy).astype(dtype), rtol=0, atol=16 * unit * scale
            )


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("length", [2, 64, 5000])
def test_special_columns(length: int, dtype: type) -> None:
    x = np.zeros((2, length, 9), dtype)
    x[:, -1, 0] = np.nan
    x[:, 0, 1] = np.inf
    x[:, :, 2] = -np.inf
    x[:, 1:, 3] = -np.inf
    x[:, :, 4] = -np.inf
    x[:, length // 2, 4] = np.nan
    x[:, :-1, 5] = -np.inf
    x[:, -1, 5] = -3e38
    x[:, 0, 6] = 3e38
    x[:, ::2, 7] = -3e38
    x[:, ::2, 8] = 1e5
    rows = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    for name in ("softmax", "log_softmax"):
        y, pullback = getattr(fast, name + "_vjp")(x, axis=1)
        by_rows, rows_pullback = getattr(fast, name + "_vjp")(rows)
        expected = np.moveaxis(by_rows, -1, 1)
        np.testing.assert_allclose(y, expected, rtol=4 * EPS[x.dtype], atol=0, err_msg=name)
        dy = np.random.default_rng(0).normal(size=x.shape).astype(dtype)
        dx = rows_pullback(np.ascontiguousarray(np.moveaxis(dy, 1, -1)))[0]
        scale = max(1.0, float(np.abs(dy.sum(axis=1)).max()))
        np.testing.assert_allclose(pullback(dy)[0], np.moveaxis(dx, -1, 1), rtol=0, atol=16 * EPS[x.dtype] * scale)
    lse = fast.logsumexp(x, axis=1)
    np.testing.assert_allclose(lse, fast.logsumexp(rows), rtol=4 * EPS[x.dtype])


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("function", [fast.softmax, fast.log_softmax])
@pytest.mark.parametrize("shape", [(5, 33), (3, 2, 8), (3, 60000)])
def test_out(function: Callable[..., AnyArray], shape: tuple[int, ...], dtype: type) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    support.check_out(function, x)
    support.check_out(lambda x, **out: function(x, axis=0, **out), x[:, :8])
    support.check_out_errors(function, x)


def test_results_too_large_for_the_caches() -> None:
    # non-temporal stores: large enough for any last-level cache that reports itself as up to 64 MiB
    x = np.random.default_rng(0).normal(size=(9, 1000003)).astype(np.float32)
    small = np.concatenate([fast.softmax(row)[None] for row in x])
    np.testing.assert_array_equal(fast.softmax(x), small)
    out = np.empty(x.size + 1, np.float32)[1:].reshape(x.shape)
    np.testing.assert_array_equal(fast.softmax(x, out=out), small)
    np.testing.assert_array_equal(fast.softmax(x.reshape(3, -1)[:, :30]), fast.softmax(x.reshape(3, -1)[:, :30].copy()))
    short = x.reshape(-1)[: 9000 * 1000].reshape(9000, 1000)
    for first in (0, 4321):
        np.testing.assert_array_equal(fast.softmax(short)[first : first + 50], fast.softmax(short[first : first + 50]))


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("shape", [(2000, 300), (3, 400000), (1, 3000001)])
def test_same_bits_for_any_number_of_threads(shape: tuple[int, int], dtype: type) -> None:
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    target = rng.integers(0, shape[1], shape[0])

    def results() -> list[AnyArray]:
        found = [fast.softmax(x), fast.log_softmax(x), fast.logsumexp(x)]
        found += [fast.softmax(x, algorithm=name) for name in _core.ALGORITHMS[1:]]
        for name in ("softmax", "log_softmax"):
            found += getattr(fast, name + "_vjp")(x)[1](dy)
            if shape[0] > 3:
                y, pullback = getattr(fast, name + "_vjp")(x, axis=0)
                found += [y, *pullback(dy)]
        loss, pullback = fast.cross_entropy_vjp(x, target, label_smoothing=0.1)
        return [*found, loss, *pullback(1.0)]

    with support.threads(1):
        expected = results()
    for count in (2, 3, 7):
        with support.threads(count):
            for one, other in zip(results(), expected, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("algorithm", _core.ALGORITHMS[1:])
def test_baselines(algorithm: str) -> None:
    for length in (10, 3000, 60000):
        x = (3 * np.random.default_rng(1).normal(size=(4, length))).astype(np.float32)
        # |x - max| < 32 is rounded to 2^-20, which e^(x - max) turns into at most 16 ULP.
        assert np.ptp(x) < 32
        assert ulp_error(fast.softmax(x, algorithm=algorithm), exact_softmax(x)).max() <= 16 + 2
        y, pullback = fast.softmax_vjp(x, algorithm=algorithm)
        np.testing.assert_array_equal(y, fast.softmax(x, algorithm=algorithm))
        np.testing.assert_allclose(pullback(np.ones_like(x))[0], 0, atol=1e-7)


finite = st.one_of(st.floats(-100, 100, width=32), st.sampled_from(support.HOSTILE))
hostile = st.one_of(finite, st.sampled_from(support.SPECIAL))
shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=9)


@given(hnp.arrays(np.float32, shapes, elements=st.floats(width=32)), st.data(), st.sampled_from(support.ISAS))
def test_equals_the_reference(x: AnyArray, data: Any, isa: str) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    with support.using_isa(isa):
        for name in ("softmax", "log_softmax"):
            expected = getattr(reference, name)(x, axis=axis)
            assert ulp_error(getattr(fast, name)(x, axis=axis), expected).max() <= 3
        np.testing.assert_allclose(
            fast.logsumexp(x, axis=axis), reference.logsumexp(x, axis=axis), rtol=3e-7, atol=1e-44
        )


@given(hnp.arrays(np.float64, shapes, elements=hostile), st.data(), st.sampled_from(support.ISAS))
def test_vjp_equals_the_reference(x: AnyArray, data: Any, isa: str) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    keepdims = data.draw(st.booleans())
    dy = data.draw(hnp.arrays(np.float64, x.shape, elements=st.floats(-10, 10)))
    with support.using_isa(isa):
        for name in ("softmax", "log_softmax"):
            y, pullback = getattr(fast, name + "_vjp")(x, axis=axis)
            expected, reference_pullback = getattr(reference, name + "_vjp")(x, axis=axis)
            np.testing.assert_allclose(y, expected, rtol=1e-14, atol=1e-300)
            np.testing.assert_allclose(pullback(dy)[0], reference_pullback(dy)[0], rtol=1e-9, atol=1e-13, err_msg=name)
        value, pullback = fast.logsumexp_vjp(x, axis=axis, keepdims=keepdims)
        expected, reference_pullback = reference.logsumexp_vjp(x, axis=axis, keepdims=keepdims)
        assert value.shape == expected.shape
        np.testing.assert_allclose(value, expected, rtol=1e-14, atol=1e-300)
        along = np.asarray(dy.take([0], axis=axis) if keepdims else dy.take(0, axis=axis))
        np.testing.assert_allclose(pullback(along)[0], reference_pullback(along)[0], rtol=1e-12, atol=1e-150)


@given(
    st.integers(1, 6),
    st.integers(1, 40),
    st.sampled_from(("mean", "sum", "none")),
    st.sampled_from((0.0, 0.1, 0.7)),
    st.sampled_from(support.ISAS),
    st.sampled_from(support.DTYPES),
    st.integers(0, 2**32),
)
def test_cross_entropy_equals_the_reference(
    rows: int, classes: int, reduction: str, smoothing: float, isa: str, dtype: type, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.choice([1, 30, 300]) * rng.normal(size=(rows, classes))).astype(dtype)
    target = rng.integers(0, classes, rows)
    target[1:][rng.random(rows - 1) < 0.2] = -100
    dy = rng.normal(size=(rows,) if reduction == "none" else ()).astype(dtype)
    tolerance = {"rtol": 8 * EPS[logits.dtype], "atol": 16 * EPS[logits.dtype]}
    with support.using_isa(isa):
        options = {"label_smoothing": smoothing, "reduction": reduction}
        loss, pullback = fast.cross_entropy_vjp(logits, target, **options)
        expected, reference_pullback = reference.cross_entropy_vjp(logits, target, **options)
        np.testing.assert_allclose(loss, expected, **tolerance)
        np.testing.assert_array_equal(fast.cross_entropy(logits, target, **options), loss)
        np.testing.assert_allclose(pullback(dy)[0], reference_pullback(dy)[0], **tolerance)
        weights = rng.normal(size=logits.shape).astype(dtype)
        loss, pullback = fast.soft_cross_entropy_vjp(logits, weights, reduction=reduction)
        expected, reference_pullback = reference.soft_cross_entropy_vjp(logits, weights, reduction=reduction)
        scale = np.abs(weights).sum() * max(1, np.abs(logits).max())
        np.testing.assert_allclose(loss, expected, rtol=8 * EPS[logits.dtype], atol=4 * EPS[logits.dtype] * scale)
        for one, other in zip(pullback(dy), reference_pullback(dy), strict=True):
            np.testing.assert_allclose(one, other, rtol=32 * EPS[logits.dtype], atol=32 * EPS[logits.dtype] * scale)


def test_cross_entropy_keeps_a_sure_answers_digits() -> None:
    logits = np.array([[40.0, 0.0, 1.0], [60.0, 0.0, -np.inf]], np.float32)
    loss, pullback = fast.cross_entropy_vjp(logits, np.array([0, 0]), reduction="none")
    rest = np.array([np.exp(-40.0) + np.exp(-39.0), np.exp(-60.0)])
    np.testing.assert_allclose(loss, rest, rtol=3e-7)
    np.testing.assert_allclose(pullback(np.ones(2, np.float32))[0][:, 0], -rest, rtol=3e-7)


def test_masked_class_with_weight_zero_costs_nothing() -> None:
    logits = np.array([[0.0, -np.inf, 1.0]])
    target = np.array([[0.5, 0.0, 0.5]])
    np.testing.assert_allclose(fast.soft_cross_entropy(logits, target), reference.soft_cross_entropy(logits, target))


ERRORS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("softmax", (np.arange(3),), {}),
    ("softmax", (np.zeros(3, np.float16),), {}),
    ("softmax", (np.float64(1.0),), {}),
    ("softmax", (np.zeros((2, 0)),), {}),
    ("softmax", (np.zeros((2, 3)),), {"axis": 2}),
    ("softmax", (np.zeros((2, 3)),), {"axis": 1.0}),
    ("softmax", (np.zeros((2, 3)),), {"algorithm": "one_pass"}),
    ("log_softmax", (np.zeros((2, 0)),), {}),
    ("logsumexp", (np.zeros((2, 3)),), {"axis": -3}),
    ("logsumexp", (np.zeros(3, complex),), {}),
    ("cross_entropy", (np.zeros(3), np.array([0])), {}),
    ("cross_entropy", (np.zeros((2, 3)), np.array([0])), {}),
    ("cross_entropy", (np.zeros((2, 3)), np.array([0, 3])), {}),
    ("cross_entropy", (np.zeros((2, 3)), np.array([0, -1])), {}),
    ("cross_entropy", (np.zeros((2, 3)), np.array([0.0, 1.0])), {}),
    ("cross_entropy", (np.zeros((2, 3)), np.array([-100, -100])), {}),
    ("cross_entropy", (np.zeros((2, 3)), np.array([0, 1])), {"label_smoothing": 1.0}),
    ("cross_entropy", (np.zeros((2, 3)), np.array([0, 1])), {"reduction": "max"}),
    ("cross_entropy", (np.zeros((2, 0)), np.array([0, 1])), {}),
    ("soft_cross_entropy", (np.zeros((2, 3)), np.zeros((2, 2))), {}),
    ("soft_cross_entropy", (np.zeros((2, 3)), np.zeros((2, 3), np.float32)), {}),
    ("soft_cross_entropy", (np.zeros((0, 3)), np.zeros((0, 3))), {}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), ERRORS)
def test_errors_are_the_references(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    for suffix in ("", "_vjp"):
        with pytest.raises((TypeError, ValueError)) as expected:
            getattr(reference, name + suffix)(*arguments, **options)
        with pytest.raises(expected.type) as raised:
            getattr(fast, name + suffix)(*arguments, **options)
        assert str(raised.value) == str(expected.value)


def test_empty_batches() -> None:
    for shape in ((0, 5), (2, 0, 5), (0,) * 3 + (4,)):
        x = np.zeros(shape, np.float32)
        assert fast.softmax(x).shape == shape
        assert fast.log_softmax(x).shape == shape
        assert fast.logsumexp(x).shape == shape[:-1]
        for name in ("softmax", "log_softmax"):
            assert getattr(fast, name + "_vjp")(x)[1](x)[0].shape == shape
    loss, pullback = fast.cross_entropy_vjp(np.zeros((0, 3)), np.zeros(0, int), reduction="sum")
    assert loss == 0
    assert pullback(1.0)[0].shape == (0, 3)


def test_lists_are_taken_as_by_the_reference() -> None:
    np.testing.assert_allclose(fast.softmax([0.0, 0.0]), [0.5, 0.5])


def test_inputs_are_not_written() -> None:
    x = support.read_only(np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32))
    for name in ("softmax", "log_softmax", "logsumexp"):
        y, pullback = getattr(fast, name + "_vjp")(x)
        pullback(support.read_only(y))


def test_examples() -> None:
    outcome = doctest.testmod(_core, extraglobs={"np": np})
    assert outcome.failed == 0
    assert outcome.attempted > 10
