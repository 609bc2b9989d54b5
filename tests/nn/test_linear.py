import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.nn import linear, linear_vjp

RNG = np.random.default_rng(11)


def normal(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


GRADIENT_CASES = [
    GradientCase(linear_vjp, normal((5, 3), (3, 4), (4,)), method="complex"),
    GradientCase(linear_vjp, normal((2, 3, 4), (4, 1), (1,)), method="complex", name="stacked"),
    GradientCase(linear_vjp, normal((3,), (3, 2), (2,)), method="complex", name="one vector"),
    GradientCase(linear_vjp, (*normal((5, 3), (3, 4)), None), method="complex", name="no bias"),
    GradientCase(linear_vjp, normal((0, 3), (3, 4), (4,)), method="complex", name="no examples"),
    GradientCase(linear_vjp, normal((2, 0), (0, 4), (4,)), method="complex", name="no inputs"),
]


@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    inputs=st.integers(0, 5),
    outputs=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_it_is_a_sum_over_inputs(shape, inputs, outputs, seed):
    rng = np.random.default_rng(seed)
    x, weight, bias = (rng.standard_normal(s) for s in ((*shape, inputs), (inputs, outputs), (outputs,)))
    y = linear(x, weight, bias)
    assert y.shape == (*shape, outputs)
    np.testing.assert_allclose(y, np.einsum("...i,io->...o", x, weight) + bias, atol=1e-13)


@given(seed=st.integers(0, 99), factor=st.floats(-10, 10))
def test_it_is_linear_in_the_input(seed, factor):
    x, other = np.random.default_rng(seed).standard_normal((2, 4, 3))
    weight = np.random.default_rng(seed + 1).standard_normal((3, 5))
    np.testing.assert_allclose(
        linear(x + factor * other, weight), linear(x, weight) + factor * linear(other, weight), atol=1e-12
    )


@pytest.mark.parametrize("layout", ["reversed", "fortran", "every other"])
def test_strides_do_not_matter(layout):
    x, weight = normal((6, 4), (4, 3))
    views = {"reversed": x[::-1], "fortran": np.asfortranarray(x), "every other": x[::2]}
    view = views[layout]
    np.testing.assert_allclose(linear(view, weight), np.ascontiguousarray(view) @ weight, atol=1e-14)


def test_nan_stays_in_its_example():
    x, weight = normal((3, 2), (2, 2))
    x[1, 0] = np.nan
    y = linear(x, weight)
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    x, weight, bias = (a.astype(dtype) for a in normal((2, 3), (3, 4), (4,)))
    for array in (x, weight, bias):
        array.setflags(write=False)
    y, pullback = linear_vjp(x, weight, bias)
    assert y.dtype == dtype
    assert [entry.dtype for entry in pullback(y)] == [dtype] * 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.ones((2, 3)), np.ones((4, 5))), ValueError, r"x: expected shape \(2, 4\), got \(2, 3\)"),
        ((np.ones((2, 3)), np.ones(3)), ValueError, r"weight: expected 2 dimensions, got shape \(3,\)"),
        ((np.ones((2, 3)), np.ones((3, 5)), np.ones(3)), ValueError, r"bias: expected shape \(5,\), got \(3,\)"),
        ((np.float64(3), np.ones((3, 5))), ValueError, "x: expected at least 1 dimension"),
        ((np.ones((2, 3), int), np.ones((3, 5))), TypeError, "x: expected a float32 or float64 array, got dtype int64"),
        ((np.ones((2, 3)), np.ones((3, 5), "f4")), TypeError, "weight: expected dtype float64 like x, got float32"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        linear(*arguments)
