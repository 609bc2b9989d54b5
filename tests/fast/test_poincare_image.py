"""The Poincaré layers on images against the reference: every level, window, layout and corner of the ball."""

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
from refnorm.poincare._numerics import gap
from refnorm.poincare._poincare_resnet import LAYERS
from refnorm.tree import tree_map
from refnorm_fast.poincare._image import add_images, relu_images
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(params=support.ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    with support.using_isa(request.param):
        yield request.param


def pixels(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    dtype: Any,
    curvature: float,
    reach: float = 0.9,
    edge: bool = False,
) -> AnyArray:
    """Images of points; with ``edge``, some of them within a few units in the last place of the boundary."""
    u = float(np.finfo(dtype).epsneg)
    direction = np.moveaxis(rng.standard_normal(shape), 1, -1)
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    radius = reach * rng.uniform(0, 1, (*direction.shape[:-1], 1))
    if edge:
        rare = rng.uniform(0, 1, radius.shape) < 0.2
        radius = np.where(rare, rng.choice([1 - u, 1 - 4 * u, 1 - 1000 * u, 1e-20, 0.0], radius.shape), radius)
    x = (direction * radius / np.sqrt(curvature)).astype(dtype)
    while (outside := gap(x.astype(float), curvature) <= 0).any():
        x = np.where(outside, x * dtype(1 - np.finfo(dtype).eps), x)
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def layer(
    rng: np.random.Generator, entries: int, outputs: int, dtype: Any, curvature: float, scale: float = 0.6
) -> tuple[AnyArray, AnyArray]:
    weight = scale * rng.standard_normal((entries, outputs)) / np.sqrt(entries)
    return weight.astype(dtype), (0.2 * rng.standard_normal(outputs) / np.sqrt(curvature)).astype(dtype)


def agree(actual: AnyArray, expected: AnyArray, ulp: float, size: float = 0.0) -> None:
    """Within some units in the last place of the largest entry, or of ``size`` if that is larger."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    largest = max(size, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=ulp * np.finfo(actual.dtype).eps * largest)


def widened(function: Any, *args: Any, **options: Any) -> Any:
    """The reference in float64 on arguments of any dtype."""
    return function(*(a.astype(float) if isinstance(a, np.ndarray) else a for a in args), **options)


WINDOWS: dict[str, dict[str, Any]] = {
    "3x3": {"kernel": 3, "padding": 1},
    "stride 2": {"kernel": 3, "stride": 2, "padding": 1},
    "1x1, stride 2": {"kernel": 1, "stride": 2},
    "uneven": {"kernel": (2, 3), "stride": (1, 2), "padding": (0, 1)},
    "stride beyond the window": {"kernel": 2, "stride": (3, 4)},
    "wide margin": {"kernel": (1, 2), "stride": (2, 1), "padding": (3, 4)},
}


def entries_of(options: dict[str, Any], channels: int) -> int:
    kernel: int | tuple[int, int] = options["kernel"]
    rows, columns = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    return channels * rows * columns


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("window", WINDOWS)
def test_conv2d_windows(window: str, dtype: Any) -> None:
    options = WINDOWS[window]
    rng = np.random.default_rng(1)
    for shape, outputs, curvature in (((2, 3, 9, 7), 5, 1.0), ((3, 10, 4, 21), 13, 0.1), ((1, 1, 17, 5), 26, 7.0)):
        x = pixels(rng, shape, dtype, curvature)
        weight, bias = layer(rng, entries_of(options, shape[1]), outputs, dtype, curvature)
        y = fast.conv2d(x, weight, bias, curvature, **options)
        agree(y, reference.conv2d(x, weight, bias, curvature, **options), 8)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_conv2d_every_tail_of_pixels_and_outputs(dtype: Any) -> None:
    rng = np.random.default_rng(2)
    weight, bias = layer(rng, 30, 40, dtype, 1.0)
    for width in range(1, 67):
        outputs = 1 + width % 40
        x = pixels(rng, (1, 10, 1, width), dtype, 1.0)
        arguments = x, weight[:, :outputs], bias[:outputs], 1.0
        options: dict[str, Any] = {"kernel": (1, 3), "padding": (0, 1)}
        agree(fast.conv2d(*arguments, **options), reference.conv2d(*arguments, **options), 8)


@pytest.mark.usefixtures("isa")
@given(
    channels=st.integers(1, 12),
    outputs=st.integers(1, 14),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dtype=st.sampled_from(support.DTYPES),
    curvature=st.sampled_from([1.0, 0.1, 7.0, 1e-9, 1e12]),
    project=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_conv2d_up_to_the_boundary(
    channels: int,
    outputs: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dtype: Any,
    curvature: float,
    project: bool,
    seed: int,
) -> None:
    if any(s + 2 * p < k for s, p, k in zip(size, padding, kernel, strict=True)):
        return
    rng = np.random.default_rng(seed)
    entries = channels * kernel[0] * kernel[1]
    x = pixels(rng, (2, channels, *size), dtype, curvature, edge=True)
    weight, bias = layer(rng, entries, outputs, dtype, curvature, scale=0.4)
    options: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": padding}
    y = fast.conv2d(x, weight, bias, curvature, project=project, **options)
    assert (gap(np.moveaxis(y, 1, -1).astype(float), curvature) > 0).all()
    expected = reference.conv2d(x, weight, bias, curvature, project=project, **options)
    # Near the boundary a patch has s = 18 (6, projected): sinh(2s) and the sinh of logits turn the relative error of
    # their exponents into 2s times as much, the reference's and the kernel's.
    agree(y, expected, 100 if project else 400)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("window", WINDOWS)
def test_conv2d_pullback(window: str, dtype: Any) -> None:
    options = WINDOWS[window]
    rng = np.random.default_rng(12)
    for shape, outputs, reach in (((2, 3, 9, 7), 5, 0.9), ((1, 10, 4, 21), 13, 0.9), ((3, 5, 17, 5), 9, 0.99)):
        for project in (True, False):
            x = pixels(rng, shape, dtype, 0.3, reach)
            weight, bias = layer(rng, entries_of(options, shape[1]), outputs, dtype, 0.3)
            weight[:, 1] = 0
            arguments: tuple[Any, ...] = x, weight, bias, np.array(0.3)
            y, back = fast.conv2d_vjp(*arguments, project=project, **options)
            expected, reference_back = reference.conv2d_vjp(*arguments, project=project, **options)
            agree(y, expected, 20)
            g = np.asarray(rng.standard_normal(y.shape), dtype)
            # The caller's arrays are his own again.
            kept = [a.copy() for a in arguments[:3]]
            for a in arguments[:3]:
                a[...] = 0
            for actual, wanted in zip(back(g)[:3], reference_back(g)[:3], strict=True):
                agree(actual, wanted, 60 if reach == 0.9 else 1000)
            again = back(g)
            for actual, wanted in zip(again, back(g), strict=True):
                np.testing.assert_array_equal(actual, wanted)
            # Nearly equal sums of <dx, x> and <dy, y> are subtracted.
            size = float(np.abs(g * y).sum() + np.abs(again[0] * kept[0]).sum()) / 0.3
            assert again[3].dtype == np.float64
            np.testing.assert_allclose(again[3], reference_back(g)[3], rtol=0, atol=8 * np.finfo(dtype).eps * size)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_conv2d_pullback_of_any_size(dtype: Any) -> None:
    rng = np.random.default_rng(13)
    for channels in (1, 3, 40):
        for outputs in range(1, 27, 5):
            for width in (1, 5, 16, 37):
                x = pixels(rng, (2, channels, 2, width), dtype, 1.0)
                weight, bias = layer(rng, 3 * channels, outputs, dtype, 1.0)
                options: dict[str, Any] = {"kernel": (1, 3), "padding": (0, 1)}
                _, back = fast.conv2d_vjp(x, weight, bias, 1.0, **options)
                y, reference_back = reference.conv2d_vjp(x, weight, bias, 1.0, **options)
                g = np.asarray(rng.standard_normal(y.shape), dtype)
                for actual, wanted in zip(back(g)[:3], reference_back(g)[:3], strict=True):
                    agree(actual, wanted, 100)
    for far in (5.0, 200.0, 249.0):  # squares of sinh(2 * 249) leave the range
        arguments = x, weight, np.full(len(bias), far, dtype), 1.0
        if dtype == np.float64 or far == 5.0:
            found, wanted = (room.conv2d_vjp(*arguments, **options)[1](g) for room in (fast, reference))
            for actual, of in zip(found[:3], wanted[:3], strict=True):
                agree(actual, of, 3000)
    large = fast.conv2d_vjp(x, (50 * weight).astype(dtype), bias, 1.0, **options)[1](g)
    wanted = reference.conv2d_vjp(x, (50 * weight).astype(dtype), bias, 1.0, **options)[1](g)
    agree(large[0], wanted[0], 3000)
    agree(large[1], wanted[1], 3000)


@pytest.mark.usefixtures("isa")
def test_golden_values_on_every_level() -> None:
    functions = {f"poincare.{name}": getattr(fast, name) for name in fast.__all__}
    for method in (
        "poincare/conv2d",
        "poincare/midpoint",
        "poincare/batch_norm",
        "poincare/residual",
        "poincare/poincare_resnet",
    ):
        outcomes = run(functions, methods=[method])
        assert all(outcome.passed for outcome in outcomes), "\n" + format_table(outcomes)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_conv2d_with_logits_of_any_size(dtype: Any) -> None:
    rng = np.random.default_rng(3)
    x = pixels(rng, (2, 5, 6, 6), dtype, 1.0)
    for size in (1e-30, 1e-6, 1.0, 30.0, 1e4, 1e9, 1e14):
        weight = (size * rng.standard_normal((45, 7))).astype(dtype)
        arguments = x, weight, np.zeros(7, dtype), 1.0
        y = fast.conv2d(*arguments, kernel=3, padding=1)
        assert np.isfinite(y).all()
        # Large logits turn rounding errors into relative ones of sinh.
        expected = reference.conv2d(*arguments, kernel=3, padding=1)
        if size <= 30:
            agree(y, expected, 20 * max(1.0, size))
        free = fast.conv2d(*arguments, kernel=3, padding=1, project=False)
        assert (gap(np.moveaxis(free, 1, -1).astype(float), 1.0) > 0).all()


@pytest.mark.usefixtures("isa")
def test_conv2d_with_zero_columns_and_large_biases() -> None:
    rng = np.random.default_rng(4)
    for dtype in support.DTYPES:
        x = pixels(rng, (1, 4, 5, 5), dtype, 1.0)
        weight = np.zeros((36, 6), dtype)
        weight[:, 1] = 1
        for size in (3.0, 100.0, 240.0):
            arguments = x, weight, np.full(6, size, dtype), 1.0
            agree(fast.conv2d(*arguments, kernel=3), reference.conv2d(*arguments, kernel=3), 400)


@pytest.mark.usefixtures("isa")
def test_nan_reaches_the_windows_that_hold_it() -> None:
    rng = np.random.default_rng(5)
    for dtype in support.DTYPES:
        x = pixels(rng, (2, 4, 12, 40), dtype, 1.0)
        weight, bias = layer(rng, 36, 14, dtype, 1.0)
        expected = reference.conv2d(x, weight, bias, 1.0, kernel=3, padding=1)
        x[1, 2, 5, 17] = np.nan
        y = fast.conv2d(x, weight, bias, 1.0, kernel=3, padding=1)
        reached = np.zeros(y.shape, bool)
        reached[1, :, 4:7, 16:19] = True
        np.testing.assert_array_equal(np.isnan(y), reached)
        agree(np.where(reached, 0, y).astype(dtype), np.where(reached, 0, expected).astype(dtype), 8)


def batch_of(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, curvature: float, edge: bool = False
) -> tuple[AnyArray, ...]:
    """Points, bias, gain, and a mean and variance for inference."""
    x = pixels(rng, (*shape, 1)[:4] if len(shape) == 3 else shape, dtype, curvature, edge=edge)
    bias = rng.choice([0, 0.1, 0.3]) * rng.standard_normal(shape[1]) / np.sqrt(shape[1] * curvature)
    gain = np.array(rng.choice([0.2, 1.0, 3.0]) / curvature, dtype)
    mean, var = pixels(rng, (1, shape[1]), dtype, curvature)[0], np.array(0.7 / curvature, dtype)
    return x, bias.astype(dtype), gain, mean, var


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_batch_norm_every_tail(dtype: Any) -> None:
    rng = np.random.default_rng(20)
    shapes = [(n, 1 + n % 9) for n in range(1, 131)] + [(2, 3, 1, 7), (3, 17, 5, 8), (1, 2, 40, 40), (2, 1, 513, 1)]
    for shape in shapes:
        x, bias, gain, mean, var = batch_of(rng, shape, dtype, 0.7)
        for statistics in ((), (mean, var)):
            y = fast.midpoint_batch_norm(x, bias, gain, 0.7, *statistics)
            agree(y, reference.midpoint_batch_norm(x, bias, gain, 0.7, *statistics), 60)
        actual, expected = fast.midpoint_statistics(x, 0.7), reference.midpoint_statistics(x, 0.7)
        agree(actual[0], expected[0], 20, np.abs(x).max())
        agree(actual[1], expected[1], 20)


@pytest.mark.usefixtures("isa")
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 4), st.integers(1, 5)),
    dtype=st.sampled_from(support.DTYPES),
    curvature=st.sampled_from([1.0, 0.1, 1e-9, 1e12]),
    edge=st.booleans(),
    project=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_batch_norm_up_to_the_boundary(
    shape: tuple[int, int, int, int], dtype: Any, curvature: float, edge: bool, project: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, bias, gain, mean, var = batch_of(rng, shape, dtype, curvature, edge)
    y = fast.midpoint_batch_norm(x, bias, gain, curvature, mean, var, project=project)
    assert (gap(np.moveaxis(y, 1, -1).astype(float), curvature) > 0).all()
    agree(y, reference.midpoint_batch_norm(x, bias, gain, curvature, mean, var, project=project), 100)
    # A midpoint at the boundary has a gap, and so a variance, that its rounded coordinates no longer tell: two
    # orders of one sum differ by 1e-8 there.
    ulp = 1e9 if edge and dtype == np.float64 else 100
    y = fast.midpoint_batch_norm(x, bias, gain, curvature, project=project)
    agree(y, reference.midpoint_batch_norm(x, bias, gain, curvature, project=project), ulp)
    for actual, expected in zip(
        fast.midpoint_statistics(x, curvature), reference.midpoint_statistics(x, curvature), strict=True
    ):
        agree(actual, expected, ulp, np.abs(x).max() if actual.ndim else 0)


@pytest.mark.usefixtures("isa")
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 20), st.integers(1, 9)),
    dtype=st.sampled_from(support.DTYPES),
    curvature=st.sampled_from([1.0, 0.1, 1e-9, 1e12]),
    weighted=st.booleans(),
    edge=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_midpoint(
    shape: tuple[int, int, int], dtype: Any, curvature: float, weighted: bool, edge: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = np.moveaxis(pixels(rng, (shape[0], shape[2], shape[1]), dtype, curvature, edge=edge), 1, -1)
    weights = rng.standard_normal(shape[:2]).astype(dtype) if weighted else None
    if weights is not None:
        weights[:, 1:3] = 0
    actual, expected = fast.midpoint(x, curvature, weights), reference.midpoint(x, curvature, weights)
    agree(actual, expected, 40, np.abs(x).max(initial=0))
    if len(x):
        one = None if weights is None else weights[0]
        np.testing.assert_array_equal(fast.midpoint(x[0], curvature, one), actual[0])


def pullbacks_agree(
    function: str,
    arguments: tuple[Any, ...],
    ulp: float,
    rng: np.random.Generator,
    curvature: float,
    size: float = 0.0,
    **options: Any,
) -> None:
    """Values and cotangents of a room's function against the reference's; the caller's arrays are his own again in between.
    ``size`` is that of terms that may cancel."""
    y, back = getattr(fast, function)(*arguments, **options)
    expected, reference_back = getattr(reference, function)(*arguments, **options)
    first = y[0] if isinstance(y, tuple) else y
    dtype = first.dtype
    g: Any = rng.standard_normal(first.shape).astype(dtype)
    of_y = y
    if isinstance(y, tuple):
        g, of_y = (g, np.array(0.7, dtype)), y[0]
    wanted = reference_back(g)
    x = arguments[0].copy()
    for a in arguments:
        if isinstance(a, np.ndarray) and a.ndim:
            a[...] = 0
    found = back(g)
    for again, once in zip(back(g), found, strict=True):
        np.testing.assert_array_equal(again, once)
    for i, (actual, of) in enumerate(zip(found, wanted, strict=True)):
        if of is None or actual is None:
            assert actual is of
        elif actual.shape == () and i > 0:
            # Sums over the batch: what matters is how large their terms are.
            terms = float(
                np.abs(np.asarray(g[0] if isinstance(g, tuple) else g) * of_y).sum() + np.abs(found[0] * x).sum()
            )
            assert actual.dtype == of.dtype
            scale = max(terms / curvature, terms, size, float(np.abs(of)))
            np.testing.assert_allclose(actual, of, rtol=0, atol=ulp * np.finfo(dtype).eps * scale)
        else:
            agree(actual, of, ulp, size)
    for actual, of in zip(
        y if isinstance(y, tuple) else (y,), expected if isinstance(y, tuple) else (expected,), strict=True
    ):
        agree(actual, of, ulp, np.abs(x).max(initial=0) if actual.ndim else 0)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_batch_norm_pullback_every_tail(dtype: Any) -> None:
    rng = np.random.default_rng(30)
    shapes = [(n, 1 + n % 9) for n in range(2, 131, 3)] + [(2, 3, 1, 7), (3, 17, 5, 8), (1, 2, 40, 40), (2, 1, 513, 1)]
    for shape in shapes:
        for inference in (False, True):
            x, bias, gain, mean, var = batch_of(rng, shape, dtype, 0.7)
            arguments = (x, bias, gain, np.array(0.7, dtype), *((mean, var) if inference else ()))
            pullbacks_agree("midpoint_batch_norm_vjp", arguments, 200, rng, 0.7)
        pullbacks_agree("midpoint_statistics_vjp", (batch_of(rng, shape, dtype, 0.7)[0], 0.7), 60, rng, 0.7)


@pytest.mark.usefixtures("isa")
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 4), st.integers(1, 5)),
    dtype=st.sampled_from(support.DTYPES),
    curvature=st.sampled_from([1.0, 0.1, 1e-9, 1e12]),
    reach=st.sampled_from([0.0, 1e-9, 0.5, 0.99, 0.9999]),
    inference=st.booleans(),
    project=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_batch_norm_pullback(
    shape: tuple[int, int, int, int],
    dtype: Any,
    curvature: float,
    reach: float,
    inference: bool,
    project: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    _, bias, gain, mean, var = batch_of(rng, shape, dtype, curvature)
    x = pixels(rng, shape, dtype, curvature, reach)
    arguments = (x, bias, gain, curvature, *((mean, var) if inference else ()))
    # Cotangents grow as 1/gap, and errors of the points' gaps and of the directions with them. Where points are
    # equal, or only one, terms as large as the scale cancel.
    ulp = {0.99: 3e3, 0.9999: 3e5}.get(reach, 100) if dtype == np.float64 else 100
    size = 4 * float(np.sqrt(gain * curvature / 0.01))
    pullbacks_agree(
        "midpoint_batch_norm_vjp", arguments, ulp, rng, curvature, size, eps=0.01 / curvature, project=project
    )


@pytest.mark.usefixtures("isa")
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 20), st.integers(1, 9)),
    dtype=st.sampled_from(support.DTYPES),
    curvature=st.sampled_from([1.0, 0.1, 1e-9, 1e12]),
    weighted=st.booleans(),
    reach=st.sampled_from([0.0, 0.5, 0.99, 0.9999]),
    seed=st.integers(0, 2**32),
)
def test_midpoint_pullback(
    shape: tuple[int, int, int], dtype: Any, curvature: float, weighted: bool, reach: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = np.moveaxis(pixels(rng, (shape[0], shape[2], shape[1]), dtype, curvature, reach), 1, -1)
    weights = rng.standard_normal(shape[:2]).astype(dtype) if weighted else None
    if weights is not None:
        weights[:, 1:3] = 0
    pullbacks_agree("midpoint_vjp", (x, np.array(curvature), weights), 1e6 if reach > 0.9 else 1000, rng, curvature)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_midpoints_of_more_points_than_a_block(dtype: Any) -> None:
    rng = np.random.default_rng(31)
    for points, channels in ((1500, 3), (70, 900), (33, 33), (1000, 16), (17, 1)):
        x = np.moveaxis(pixels(rng, (2, channels, points), dtype, 0.4), 1, -1)
        weights = rng.standard_normal((2, points)).astype(dtype)
        for of in (None, weights):
            agree(fast.midpoint(x, 0.4, of), reference.midpoint(x, 0.4, of), 60, np.abs(x).max())
            pullbacks_agree("midpoint_vjp", (x.copy(), 0.4, None if of is None else of.copy()), 300, rng, 0.4)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_pullbacks_of_one_point_equal_points_and_projected_ones(dtype: Any) -> None:
    rng = np.random.default_rng(32)
    bias, gain = np.full(5, 0.1, dtype), np.array(9.0, dtype)
    one = pixels(rng, (1, 5), dtype, 1.0)
    pullbacks_agree("midpoint_batch_norm_vjp", (one.copy(), bias.copy(), gain, 1.0), 30, rng, 1.0, 10.0, eps=1.0)
    for inference in ((), (one[0].copy(), np.array(0.5, dtype))):
        arguments = (np.repeat(one, 40, axis=0), bias.copy(), gain, 1.0, *inference)
        pullbacks_agree("midpoint_batch_norm_vjp", arguments, 300, rng, 1.0, 100.0, eps=1.0)
    # A variance of 9 sends many points to the projection's edge.
    x = pixels(rng, (200, 5), dtype, 1.0, 0.99)
    assert (np.linalg.norm(fast.midpoint_batch_norm(x, bias, gain, 1.0), axis=1) > 0.995).any()
    pullbacks_agree("midpoint_batch_norm_vjp", (x, bias.copy(), gain, 1.0), 1e4, rng, 1.0)


@pytest.mark.usefixtures("isa")
def test_nan_in_pullbacks() -> None:
    for dtype in support.DTYPES:
        x, bias, gain, mean, var = batch_of(np.random.default_rng(33), (2, 4, 6, 7), dtype, 1.0)
        g = np.ones_like(x)
        g[1, 2, 3, 4] = np.nan
        dx, dbias, *_ = fast.midpoint_batch_norm_vjp(x, bias, gain, 1.0, mean, var)[1](g)
        assert np.isnan(dx[1, :, 3, 4]).all()
        assert np.isnan(dx).sum() == 4
        assert np.isnan(dbias).all()
        assert all(np.isnan(part).all() for part in fast.midpoint_batch_norm_vjp(x, bias, gain, 1.0)[1](g)[:4])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_equal_points_and_clusters(dtype: Any) -> None:
    rng = np.random.default_rng(21)
    one = pixels(rng, (1, 5), dtype, 1.0)
    x = np.repeat(one, 40, axis=0)
    bias, gain = np.full(5, 0.1, dtype), np.array(1.0, dtype)
    agree(fast.midpoint(x, 1.0), one[0], 4)
    agree(fast.midpoint_batch_norm(x, bias, gain, 1.0), reference.midpoint_batch_norm(x, bias, gain, 1.0), 1e4)
    cluster = (x + 1e-5 * rng.standard_normal(x.shape)).astype(dtype)
    y = fast.midpoint_batch_norm(cluster, bias, gain, 1.0, eps=1e-12)
    agree(y, reference.midpoint_batch_norm(cluster, bias, gain, 1.0, eps=1e-12), 1e6 if dtype == np.float64 else 60)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_batch_norm_with_a_bias_near_the_boundary(dtype: Any) -> None:
    rng = np.random.default_rng(22)
    x, _, gain, mean, var = batch_of(rng, (3, 4, 5, 5), dtype, 1.0)
    bias = np.full(4, 1.5, dtype)
    y = fast.midpoint_batch_norm(x, bias, gain, 1.0, mean, var)
    agree(y, reference.midpoint_batch_norm(x, bias, gain, 1.0, mean, var), 200)


@pytest.mark.usefixtures("isa")
def test_nan_makes_a_training_batch_nan_and_one_pixel_in_inference() -> None:
    for dtype in support.DTYPES:
        x, bias, gain, mean, var = batch_of(np.random.default_rng(23), (2, 4, 6, 7), dtype, 1.0)
        x[1, 2, 3, 4] = np.nan
        assert np.isnan(fast.midpoint_batch_norm(x, bias, gain, 1.0)).all()
        assert all(np.isnan(part).all() for part in fast.midpoint_statistics(x, 1.0))
        y = fast.midpoint_batch_norm(x, bias, gain, 1.0, mean, var)
        assert np.isnan(y[1, :, 3, 4]).all()
        assert np.isnan(y).sum() == 4


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("project", [True, False])
def test_avg_pool2d(dtype: Any, project: bool) -> None:
    rng = np.random.default_rng(24)
    for shape in ((2, 3, 4, 4), (1, 1, 7, 13), (3, 9, 8, 8), (0, 2, 3, 3)):
        for size, stride in ((2, None), ((3, 2), (2, 1)), (shape[2:], None), (1, 3)):
            x = pixels(rng, shape, dtype, 0.3, edge=True)
            options: dict[str, Any] = {"size": size, "stride": stride, "project": project}
            y = fast.avg_pool2d(x, 0.3, **options)
            agree(y, reference.avg_pool2d(x, 0.3, **options), 30)
            x = pixels(rng, shape, dtype, 0.3, 0.99)
            y, back = fast.avg_pool2d_vjp(x, np.array(0.3), **options)
            expected, reference_back = reference.avg_pool2d_vjp(x, np.array(0.3), **options)
            agree(y, expected, 30)
            g, kept = np.asarray(rng.standard_normal(y.shape), dtype), x.copy()
            x[...] = 0
            (dx, dc), wanted = back(g), reference_back(g)
            agree(dx, wanted[0], 300)
            size_of_terms = float(np.abs(g * y).sum() + np.abs(dx * kept).sum()) / 0.3
            assert dc.dtype == np.float64
            np.testing.assert_allclose(dc, wanted[1], rtol=0, atol=8 * np.finfo(dtype).eps * size_of_terms)
            assert (gap(np.moveaxis(y, 1, -1).astype(float), 0.3) > 0).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_relu_and_residual_sum_of_images(dtype: Any) -> None:
    rng = np.random.default_rng(27)
    for width in (*range(1, 20), 600):
        shape = (2, 1 + width % 7, 1, width)
        f, skip = pixels(rng, shape, dtype, 0.3, edge=True), pixels(rng, shape, dtype, 0.3, edge=True)
        f[0, :, 0, 0] = -abs(f[0, :, 0, 0])
        agree(relu_images(f, 0.3), reference.relu(f, 0.3, axis=1), 30)
        for order in ("fr", "rf"):
            for other in (skip, -f):
                y = add_images(f, other, 0.3, order=order)
                assert (gap(np.moveaxis(y, 1, -1).astype(float), 0.3) > 0).all()
                agree(y, reference.residual_add(f, other, 0.3, order=order, axis=1), 60)
    f[1, 0, 0, 5] = np.nan
    for y in (relu_images(f, 0.3), add_images(f, skip, 0.3)):
        assert np.isnan(y[1, :, 0, 5]).all()
        assert np.isnan(y).sum() == f.shape[1]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("order", ["fr", "rf"])
def test_poincare_resnet(order: str) -> None:
    rng = np.random.default_rng(28)
    for dtype in support.DTYPES:
        network = reference.PoincareResNet(channels=(3, 4, 5), blocks=(1, 1, 1), classes=4, dtype=dtype, order=order)
        params = tree_map(lambda a: (a + 0.1 * rng.standard_normal(a.shape)).astype(a.dtype), network.init(rng))
        x: AnyArray = rng.standard_normal((3, 3, 8, 10)).astype(dtype)
        _, statistics, _ = network.training_vjp(params, x)
        running = network.update_running(network.init_running(), statistics, momentum=0.7)
        for given_running in (None, running):
            actual = fast.poincare_resnet(params, x, 0.1, given_running, order=order)
            agree(actual, network.forward(params, x, given_running), 4000)
            logits, back = fast.poincare_resnet_vjp(params, x, 0.1, given_running, order=order)
            expected, reference_back = reference.poincare_resnet_vjp(params, x, 0.1, given_running, order=order)
            agree(logits, expected, 4000)
            weights = [part(np.ones_like(logits))[0] for part in (back, reference_back)]
            for name in ("conv", "head"):
                agree(weights[0][name]["weight"], weights[1][name]["weight"], 40000)
        layers = fast.poincare_resnet(params, x, 0.1, order=order, ops=LAYERS)
        np.testing.assert_array_equal(layers, network.forward(params, x))


def test_layouts_of_points() -> None:
    rng = np.random.default_rng(25)
    x, bias, gain, mean, var = batch_of(rng, (3, 4, 5, 6), np.float32, 1.0)
    for label, a in support.layouts(x).items():
        for statistics in ((), (mean, var)):
            expected = fast.midpoint_batch_norm(a.copy(), bias, gain, 1.0, *statistics)
            actual = fast.midpoint_batch_norm(a, bias[::-1][::-1], gain, 1.0, *statistics)
            np.testing.assert_array_equal(actual, expected, err_msg=label)
        expected = fast.avg_pool2d(a.copy(), 1.0, size=2)
        np.testing.assert_array_equal(fast.avg_pool2d(a, 1.0, size=2), expected, err_msg=label)
        points = np.moveaxis(a, 1, -1)
        weights = a[:, 0]
        expected = fast.midpoint(points.copy(), 1.0, weights.copy())
        np.testing.assert_array_equal(fast.midpoint(points, 1.0, weights), expected, err_msg=label)


def test_out_of_points() -> None:
    for dtype in support.DTYPES:
        rng = np.random.default_rng(26)
        for shape in ((2, 3, 4, 5), (7, 3)):
            x, bias, gain, mean, var = batch_of(rng, shape, dtype, 1.0)
            for statistics in ((), (mean, var)):

                def function(
                    a: AnyArray,
                    bias: AnyArray = bias,
                    gain: AnyArray = gain,
                    statistics: tuple[AnyArray, ...] = statistics,
                    **options: Any,
                ) -> AnyArray:
                    return fast.midpoint_batch_norm(a, bias, gain, 1.0, *statistics, **options)

                support.check_out(function, x)
                support.check_out_errors(function, x)
        x = pixels(rng, (2, 3, 4, 5), dtype, 1.0)
        support.check_out(lambda a, **options: fast.avg_pool2d(a, 1.0, size=1, **options), x)
        support.check_out_errors(lambda a, **options: fast.avg_pool2d(a, 1.0, size=1, **options), x)
        points = np.moveaxis(x, 1, -1)
        for out in (np.empty((2, 4, 3), dtype), np.empty((3, 4, 2), dtype).T):
            assert fast.midpoint(points, 1.0, out=out) is out
            np.testing.assert_array_equal(out, fast.midpoint(points, 1.0))
        with pytest.raises(ValueError, match="out: expected shape"):
            fast.midpoint(points, 1.0, out=np.empty((2, 4, 4), dtype))


@pytest.mark.usefixtures("isa")
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    lead=st.lists(st.integers(0, 5), max_size=2),
    dtype=st.sampled_from(support.DTYPES),
    curvature=st.sampled_from([1.0, 0.1, 1e-9, 1e12]),
    project=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_beta_concat(sizes: list[int], lead: list[int], dtype: Any, curvature: float, project: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = int(np.prod(lead))
    xs = [pixels(rng, (rows, n), dtype, curvature).reshape(*lead, n) for n in sizes]
    y, back = fast.beta_concat_vjp(xs, curvature, project=project)
    expected, reference_back = reference.beta_concat_vjp(xs, curvature, project=project)
    agree(y, expected, 20)
    np.testing.assert_array_equal(fast.beta_concat(xs, curvature, project=project), y)
    g = np.asarray(rng.standard_normal(y.shape), dtype)
    found, wanted = back(g), reference_back(g)
    for actual, of in zip(found[0], wanted[0], strict=True):
        agree(actual, of, 2000, float(np.abs(of).max(initial=0)))
    assert isinstance(fast.beta_concat_vjp(tuple(xs), curvature)[1](g)[0], tuple)
    size = float(np.abs(g * y).sum() + sum(np.abs(a * x).sum() for a, x in zip(found[0], xs, strict=True))) / curvature
    np.testing.assert_allclose(found[1], wanted[1], rtol=0, atol=100 * np.finfo(dtype).eps * size)


def test_out_and_errors_of_beta_concat() -> None:
    x = np.full((3, 4), 0.1)
    out = np.empty((3, 8))
    assert fast.beta_concat([x, x], 1.0, out=out) is out
    np.testing.assert_array_equal(out, fast.beta_concat([x, x], 1.0))
    with pytest.raises(ValueError, match=r"out: expected shape \(3, 8\)"):
        fast.beta_concat([x, x], 1.0, out=out[:2])
    for xs in (
        [],
        x,
        [x, x[:2]],
        [x, x.astype("f4")],
        [10 * x],
        [np.array(0.1)],
        [x[:, :0]],
        [x.astype(int)],
        [x, "x"],
    ):
        for name in ("beta_concat", "beta_concat_vjp"):
            with pytest.raises((TypeError, ValueError)) as expected:
                getattr(reference, name)(xs, 1.0)
            with pytest.raises(expected.type) as actual:
                getattr(fast, name)(xs, 1.0)
            assert str(actual.value) == str(expected.value)


def test_conv2d_layouts() -> None:
    rng = np.random.default_rng(6)
    x = pixels(rng, (3, 4, 6, 5), np.float32, 1.0)
    weight, bias = layer(rng, 36, 7, np.float32, 1.0)
    for label, a in support.layouts(x).items():
        expected = fast.conv2d(a.copy(), weight, bias, 1.0, kernel=3)
        np.testing.assert_array_equal(fast.conv2d(a, weight, bias, 1.0, kernel=3), expected, err_msg=label)
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    expected = fast.conv2d(x, weight, bias, 1.0, kernel=3)
    np.testing.assert_array_equal(fast.conv2d(last, weight, bias, 1.0, kernel=3), expected)
    for label, w in support.layouts(weight).items():
        expected = fast.conv2d(x, w.copy(), bias, 1.0, kernel=3)
        np.testing.assert_array_equal(fast.conv2d(x, w, bias, 1.0, kernel=3), expected, err_msg=label)


def test_conv2d_out() -> None:
    rng = np.random.default_rng(7)
    for dtype in support.DTYPES:
        weight, bias = layer(rng, 27, 3, dtype, 1.0)
        x = pixels(rng, (2, 3, 5, 4), dtype, 4.0)

        def function(a: AnyArray, weight: AnyArray = weight, bias: AnyArray = bias, **options: Any) -> AnyArray:
            return fast.conv2d(a, weight, bias, 1.0, kernel=3, padding=1, check=False, **options)

        support.check_out(function, x)
        support.check_out_errors(function, x)


X = np.full((2, 3, 4, 4), 0.1)
V, G, M = np.zeros(3), np.array(1.0), np.full(3, 0.1)
W, B = np.full((27, 2), 0.1), np.zeros(2)


@pytest.mark.parametrize(
    "call",
    [
        lambda room: room.conv2d(X[0], W, B, 1.0, kernel=3),
        lambda room: room.conv2d(X.astype(int), W, B, 1.0, kernel=3),
        lambda room: room.conv2d(X, W.astype("f4"), B, 1.0, kernel=3),
        lambda room: room.conv2d(X, W, B.astype("f4"), 1.0, kernel=3),
        lambda room: room.conv2d(X, W[:-1], B, 1.0, kernel=3),
        lambda room: room.conv2d(X, W, B[:-1], 1.0, kernel=3),
        lambda room: room.conv2d(X, W[:, :0], B[:0], 1.0, kernel=3),
        lambda room: room.conv2d(10 * X, W, B, 1.0, kernel=3),
        lambda room: room.conv2d(X, W, B, 0.0, kernel=3),
        lambda room: room.conv2d(X, W, B, np.ones(2), kernel=3),
        lambda room: room.conv2d(X, W, np.full(2, 300.0), 1.0, kernel=3),
        lambda room: room.conv2d(X, W, B, 1.0, kernel=3.0),
        lambda room: room.conv2d(X, W, B, 1.0, kernel=0),
        lambda room: room.conv2d(X, W, B, 1.0, kernel=(3, 3, 3)),
        lambda room: room.conv2d(X, W, B, 1.0, kernel=3, stride=0),
        lambda room: room.conv2d(X, W, B, 1.0, kernel=3, padding=-1),
        lambda room: room.conv2d(X[:, :, :2], W, B, 1.0, kernel=3),
        lambda room: room.conv2d_vjp(10 * X, W, B, 1.0, kernel=3),
        lambda room: room.conv2d_vjp(X, W[:-1], B, 1.0, kernel=3),
        lambda room: room.conv2d_vjp(X, W, B, 1.0, kernel=3)[1](X),
        lambda room: room.midpoint(X[0, 0, 0], 1.0),
        lambda room: room.midpoint(X.astype(int), 1.0),
        lambda room: room.midpoint(X[:, :, :0], 1.0),
        lambda room: room.midpoint(10 * X, 1.0),
        lambda room: room.midpoint(X, -1.0),
        lambda room: room.midpoint(X, 1.0, X),
        lambda room: room.midpoint(X, 1.0, X[..., 0].astype("f4")),
        lambda room: room.midpoint(X, 1.0, 0 * X[..., 0]),
        lambda room: room.midpoint_vjp(10 * X, 1.0),
        lambda room: room.midpoint_vjp(X, 1.0)[1](X),
        lambda room: room.midpoint_vjp(X, 1.0, 0 * X[..., 0]),
        lambda room: room.midpoint_statistics_vjp(10 * X, 1.0),
        lambda room: room.midpoint_statistics_vjp(X, 1.0)[1]((V[:2], G)),
        lambda room: room.midpoint_statistics_vjp(X, 1.0)[1]((V, V)),
        lambda room: room.midpoint_statistics_vjp(X, 1.0)[1]((V.astype("f4"), G)),
        lambda room: room.midpoint_batch_norm_vjp(10 * X, V, G, 1.0),
        lambda room: room.midpoint_batch_norm_vjp(X, V, G, 1.0)[1](X[0]),
        lambda room: room.midpoint_batch_norm_vjp(X, V, G, 1.0, M),
        lambda room: room.midpoint_statistics(X[0], 1.0),
        lambda room: room.midpoint_statistics(X[:0], 1.0),
        lambda room: room.midpoint_statistics(10 * X, 1.0),
        lambda room: room.midpoint_batch_norm(X[0], V, G, 1.0),
        lambda room: room.midpoint_batch_norm(X[:0], V, G, 1.0),
        lambda room: room.midpoint_batch_norm(10 * X, V, G, 1.0),
        lambda room: room.midpoint_batch_norm(10 * X, V, G, 1.0, M, G),
        lambda room: room.midpoint_batch_norm(X, V[:2], G, 1.0),
        lambda room: room.midpoint_batch_norm(X, V.astype("f4"), G, 1.0),
        lambda room: room.midpoint_batch_norm(X, V, np.ones(1), 1.0),
        lambda room: room.midpoint_batch_norm(X, V, 0 * G, 1.0),
        lambda room: room.midpoint_batch_norm(X, V, 1, 1.0),
        lambda room: room.midpoint_batch_norm(X, V, G, 1.0, M),
        lambda room: room.midpoint_batch_norm(X, V, G, 1.0, None, G),
        lambda room: room.midpoint_batch_norm(X, V, G, 1.0, 10 * M, G),
        lambda room: room.midpoint_batch_norm(X, V, G, 1.0, M, -G),
        lambda room: room.midpoint_batch_norm(X, V, G, 1.0, M[:2], G),
        lambda room: room.midpoint_batch_norm(X, V, G, 0.0),
        lambda room: room.midpoint_batch_norm(X, V, G, 1.0, eps=0.0),
        lambda room: room.midpoint_batch_norm(X, V, G, 1.0, eps="1"),
        lambda room: room.poincare_resnet({}, X[0], 1.0),
        lambda room: room.avg_pool2d(X[0], 1.0, size=2),
        lambda room: room.avg_pool2d(10 * X, 1.0, size=2),
        lambda room: room.avg_pool2d(X, 1.0, size=5),
        lambda room: room.avg_pool2d(X, 1.0, size=0),
        lambda room: room.avg_pool2d(X, 1.0, size=2, stride=0),
        lambda room: room.avg_pool2d(X, np.nan, size=2),
    ],
)
def test_errors_are_those_of_the_reference(call: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as expected:
        call(reference)
    with pytest.raises(expected.type) as actual:
        call(fast)
    assert str(actual.value) == str(expected.value)


def test_numpy_integers_and_extreme_curvatures() -> None:
    rng = np.random.default_rng(8)
    x = pixels(rng, (1, 3, 4, 4), np.float64, 1.0)
    y = reference.conv2d(x, W, B, 1.0, kernel=3)
    agree(fast.conv2d(x, W, B, np.float64(1.0), kernel=np.int64(3)), y, 8)  # type: ignore[arg-type]
    for exponent in (-700, 700):
        scale = 2.0 ** (-exponent // 2)
        agree(fast.conv2d(scale * x, W, B, 2.0**exponent, kernel=3), scale * y, 8)
    single = x.astype(np.float32), W.astype(np.float32), B.astype(np.float32)
    expected = reference.conv2d(*single, 1.0, kernel=3)
    for exponent in (-100, 100):
        small = np.float32(2.0 ** (-exponent // 2))
        agree(fast.conv2d(small * single[0], *single[1:], 2.0**exponent, kernel=3), small * expected, 8)


def test_empty_batches() -> None:
    for room in (reference, fast):
        y, back = room.conv2d_vjp(X[:0], W, B, 1.0, kernel=3)
        assert y.shape == room.conv2d(X[:0], W, B, 1.0, kernel=3).shape == (0, 2, 2, 2)
        assert [part.shape for part in back(y)] == [(0, 3, 4, 4), (27, 2), (2,), ()]


def gradients(x: AnyArray, weight: AnyArray, bias: AnyArray) -> tuple[AnyArray, ...]:
    y, back = fast.conv2d_vjp(x, weight, bias, 1.0, kernel=3, stride=2)
    found: tuple[AnyArray, ...] = back(y)
    return found


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    rng = np.random.default_rng(9)
    for images, size in ((9, 17), (1, 70)):
        x = pixels(rng, (images, 8, size, size), np.float32, 1.0)
        weight, bias = layer(rng, 72, 20, np.float32, 1.0)
        results = []
        for count in (1, 2, 3):
            with support.threads(count):
                results.append(
                    (
                        fast.conv2d(x, weight, bias, 1.0, kernel=3, padding=1),
                        *gradients(x, weight, bias),
                        fast.midpoint_batch_norm(x, bias[:8], np.array(1, np.float32), 1.0),
                        fast.avg_pool2d(x, 1.0, size=3),
                        *fast.midpoint_statistics(x, 1.0),
                        *fast.midpoint_batch_norm_vjp(x, bias[:8], np.array(1, np.float32), 1.0)[1](x)[:4],
                        *fast.midpoint_vjp(np.moveaxis(x, 1, -1), 1.0, x[:, 0])[1](x[:, :, :, 0].swapaxes(1, 2)),
                    )
                )
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(a, b)


def test_eight_python_threads() -> None:
    rng = np.random.default_rng(10)
    x = pixels(rng, (6, 6, 9, 9), np.float32, 1.0)
    weight, bias = layer(rng, 54, 10, np.float32, 1.0)
    expected, wrong = fast.conv2d(x, weight, bias, 1.0, kernel=3), []

    def work() -> None:
        for _ in range(10):
            if not np.array_equal(fast.conv2d(x, weight, bias, 1.0, kernel=3), expected):
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
    rng = np.random.default_rng(11)
    x = pixels(rng, (8, 8, 16, 16), np.float32, 1.0)
    weight, bias = layer(rng, 72, 10, np.float32, 1.0)
    expected = fast.conv2d(x, weight, bias, 1.0, kernel=3)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(fast.conv2d(x, weight, bias, 1.0, kernel=3), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
