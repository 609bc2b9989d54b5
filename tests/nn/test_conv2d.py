import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import correlate2d

from refnorm.gradcheck import GradientCase
from refnorm.nn import conv2d, conv2d_vjp

RNG = np.random.default_rng(14)


def normal(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


IMAGE, BANK, BIAS = normal((2, 3, 6, 5), (4, 3, 3, 2), (4,))

GRADIENT_CASES = [
    GradientCase(conv2d_vjp, (IMAGE, BANK, BIAS), method="complex"),
    GradientCase(conv2d_vjp, (IMAGE, BANK, None), {"padding": 1}, method="complex", name="no bias, padding"),
    GradientCase(
        conv2d_vjp,
        (IMAGE, BANK, BIAS),
        {"stride": (2, 3), "padding": (0, 2)},
        method="complex",
        name="strides that leave pixels out",
    ),
    GradientCase(conv2d_vjp, normal((1, 2, 4, 4), (3, 2, 1, 1), (3,)), {"stride": 2}, method="complex", name="1 x 1"),
    GradientCase(conv2d_vjp, normal((1, 2, 3, 4), (3, 2, 3, 4), (3,)), method="complex", name="whole image"),
    GradientCase(conv2d_vjp, normal((0, 2, 3, 4), (3, 2, 2, 2), (3,)), method="complex", name="no images"),
]


@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    step=st.integers(1, 3),
    pad=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_it_is_a_sum_of_plain_correlations(height, width, rows, columns, step, pad, seed):
    rng = np.random.default_rng(seed)
    x, weight = rng.standard_normal((2, 2, height, width)), rng.standard_normal((3, 2, rows, columns))
    bias = rng.standard_normal(3)
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    expected = np.array(
        [
            [
                bias[o] + sum(correlate2d(image[c], weight[o, c], mode="valid")[::step, ::step] for c in range(2))
                for o in range(3)
            ]
            for image in padded
        ]
    )
    np.testing.assert_allclose(conv2d(x, weight, bias, stride=step, padding=pad), expected, atol=1e-12)


def test_a_shifted_image_gives_a_shifted_result():
    y = conv2d(IMAGE, BANK, BIAS)
    shifted = conv2d(np.roll(IMAGE, 1, axis=3), BANK, BIAS)
    np.testing.assert_allclose(shifted[..., 1:], y[..., :-1], atol=1e-13)


def test_nan_reaches_the_patches_that_hold_it():
    x = np.ones((1, 1, 4, 4))
    x[0, 0, 0, 0] = np.nan
    y = conv2d(x, np.ones((1, 1, 2, 2)))
    assert np.isnan(y[0, 0, 0, 0])
    assert np.isfinite(y).sum() == 8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    arrays = [array.astype(dtype) for array in (IMAGE, BANK, BIAS)]
    for array in arrays:
        array.setflags(write=False)
    y, pullback = conv2d_vjp(*arrays, stride=2, padding=1)
    assert y.dtype == dtype
    assert [(entry.dtype, entry.shape) for entry in pullback(y)] == [(dtype, array.shape) for array in arrays]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((IMAGE[0], BANK), {}, ValueError, "x: expected 4 dimensions, got shape"),
        ((IMAGE, BANK[:, :2]), {}, ValueError, r"x: expected shape \(2, 2, 6, 5\), got \(2, 3, 6, 5\)"),
        ((IMAGE, BANK, BIAS[:2]), {}, ValueError, r"bias: expected shape \(4,\), got \(2,\)"),
        ((IMAGE, BANK), {"stride": 0}, ValueError, "stride: expected an integer >= 1, got 0"),
        ((IMAGE, BANK), {"stride": 1.5}, TypeError, "stride: expected an integer, got 1.5"),
        ((IMAGE, BANK), {"padding": (1, -1)}, ValueError, "padding: expected an integer >= 0, got -1"),
        ((IMAGE, BANK), {"padding": (1, 1, 1)}, ValueError, "padding: expected an integer or a pair of them"),
        ((IMAGE[:, :, :2], BANK), {}, ValueError, r"x: expected padded images of at least 3 x 2 pixels, got \(2, 5\)"),
        ((IMAGE, BANK.astype("f4")), {}, TypeError, "weight: expected dtype float64 like x, got float32"),
    ],
)
def test_bad_input_is_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        conv2d(*arguments, **options)
