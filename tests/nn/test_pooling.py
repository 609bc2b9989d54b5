import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.nn import avg_pool2d, avg_pool2d_vjp, conv2d, max_pool2d, max_pool2d_vjp

RNG = np.random.default_rng(15)
# Distinct numbers, apart by more than any step of the gradient check.
IMAGE = RNG.permutation(2 * 3 * 6 * 5).reshape(2, 3, 6, 5) / 7.0
OPTIONS = [{}, {"stride": 1}, {"stride": (3, 2), "padding": (1, 0)}, {"stride": 3}]

GRADIENT_CASES = [
    case
    for size in ((2, 3), 2)
    for options in OPTIONS
    for case in (
        GradientCase(max_pool2d_vjp, (IMAGE, size), options, step=1e-4, name=f"{size}, {options}"),
        GradientCase(avg_pool2d_vjp, (IMAGE, size), options, method="complex", name=f"{size}, {options}"),
    )
]


@given(height=st.integers(1, 7), width=st.integers(1, 7), rows=st.integers(1, 4), step=st.integers(1, 3))
def test_windows_are_reduced_one_by_one(height, width, rows, step):
    x = np.random.default_rng(height + 10 * width).standard_normal((2, 1, height, width))
    pad = rows // 2
    for pool, reduce, edge in ((max_pool2d, np.max, -np.inf), (avg_pool2d, np.mean, 0.0)):
        padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=edge)
        if min(padded.shape[2:]) < rows:
            with pytest.raises(ValueError, match="x: expected padded images of at least"):
                pool(x, rows, stride=step, padding=pad)
            continue
        expected = [
            [reduce(padded[:, :, i : i + rows, j : j + rows], axis=(2, 3)) for j in range(0, padded.shape[3] - rows + 1, step)]
            for i in range(0, padded.shape[2] - rows + 1, step)
        ]  # fmt: skip
        y = pool(x, rows, stride=step, padding=pad)
        np.testing.assert_allclose(y, np.moveaxis(np.array(expected), (0, 1), (2, 3)), atol=1e-14)


def test_average_pooling_is_a_convolution_with_a_constant():
    y = avg_pool2d(IMAGE[:, :1], (2, 3), stride=2, padding=1)
    np.testing.assert_allclose(y, conv2d(IMAGE[:, :1], np.full((1, 1, 2, 3), 1 / 6), stride=2, padding=1), atol=1e-13)


def test_the_first_of_equal_entries_gets_the_cotangent():
    _, pullback = max_pool2d_vjp(np.zeros((1, 1, 2, 2)), 2)
    np.testing.assert_array_equal(pullback(np.full((1, 1, 1, 1), 3.0))[0][0, 0], [[3, 0], [0, 0]])


def test_overlapping_windows_add_up():
    x = np.zeros((1, 1, 3, 3))
    x[0, 0, 1, 1] = 1
    _, pullback = max_pool2d_vjp(x, 2, stride=1)
    assert pullback(np.ones((1, 1, 2, 2)))[0][0, 0, 1, 1] == 4


def test_special_values():
    x = np.array([[[[1.0, np.nan], [2.0, 3.0]]]])
    assert np.isnan(max_pool2d(x, 2)).all()
    assert np.isnan(avg_pool2d(x, 2)).all()
    low = np.full((1, 1, 2, 2), -np.inf)
    assert (max_pool2d(low, 2, padding=1) == -np.inf).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("f_vjp", [max_pool2d_vjp, avg_pool2d_vjp])
def test_dtype_in_is_dtype_out(dtype, f_vjp):
    x = IMAGE.astype(dtype)
    x.setflags(write=False)
    y, pullback = f_vjp(x, 3, stride=2, padding=1)
    (dx,) = pullback(y)
    assert (y.dtype, dx.dtype, dx.shape) == (dtype, dtype, x.shape)


@pytest.mark.parametrize(
    ("x", "size", "options", "error", "message"),
    [
        (IMAGE[0], 2, {}, ValueError, "x: expected 4 dimensions, got shape"),
        (IMAGE.astype(int), 2, {}, TypeError, "x: expected a float32 or float64 array, got dtype int64"),
        (IMAGE, 0, {}, ValueError, "size: expected an integer >= 1, got 0"),
        (IMAGE, 2, {"stride": 0}, ValueError, "stride: expected an integer >= 1, got 0"),
        (IMAGE, 2, {"padding": 2}, ValueError, r"padding: expected at most half of the window \(2, 2\), got \(2, 2\)"),
        (IMAGE, 7, {}, ValueError, "x: expected padded images of at least 7 x 7 pixels"),
    ],
)
@pytest.mark.parametrize("pool", [max_pool2d, avg_pool2d])
def test_bad_input_is_named(pool, x, size, options, error, message):
    with pytest.raises(error, match=message):
        pool(x, size, **options)
