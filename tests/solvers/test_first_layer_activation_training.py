import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.nn import conv2d, conv2d_vjp, linear_vjp
from refnorm.solvers import (
    patch_gram,
    tract_conv2d,
    tract_conv2d_vjp,
    tract_linear,
    tract_linear_vjp,
    tract_weight_gradient,
)

RNG = np.random.default_rng(5)
STRIDED = {"stride": (2, 1), "padding": (1, 2)}


def unfold(x, size, stride=1, padding=0):
    """The rows of patches, by reading them one after the other."""
    (down, across), (top, left) = ((s, s) if isinstance(s, int) else s for s in (stride, padding))
    padded = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)))
    return np.array(
        [
            image[:, i : i + size[0], j : j + size[1]].ravel()
            for image in padded
            for i in range(0, padded.shape[2] - size[0] + 1, down)
            for j in range(0, padded.shape[3] - size[1] + 1, across)
        ]
    )


def preconditioned(rows, damping):
    return np.linalg.inv(rows.T @ rows / len(rows) + damping * np.eye(rows.shape[1]))


def linear_surrogate(x0, weight0):
    """The map whose exact gradient the pullback is: changes of the weight enter through the inverse covariance."""

    def value(x, weight, bias=None, *, damping=0.1):
        rows = x0.reshape(-1, x0.shape[-1])
        inputs = rows @ preconditioned(rows, damping)
        z = x @ weight0.T + (inputs @ (weight - weight0).T).reshape(*x0.shape[:-1], len(weight0))
        return z if bias is None else z + bias

    return value


def conv_surrogate(x0, weight0):
    def value(x, weight, bias=None, *, damping=0.1, **options):
        rows = unfold(x0, weight0.shape[2:], **options)
        z = conv2d(x, weight0, bias, **options)
        change = rows @ preconditioned(rows, damping) @ (weight - weight0).reshape(len(weight0), -1).T
        return z + change.reshape(len(x0), *z.shape[2:], -1).transpose(0, 3, 1, 2)

    return value


def linear_case(x, weight, bias=None, **options):
    return GradientCase(
        tract_linear_vjp, (x, weight, bias), options, method="complex", surrogate=linear_surrogate(x, weight)
    )


def conv_case(x, weight, bias=None, **options):
    return GradientCase(
        tract_conv2d_vjp, (x, weight, bias), options, method="complex", surrogate=conv_surrogate(x, weight)
    )


def normal(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


GRADIENT_CASES = [
    linear_case(*normal((9, 4), (3, 4), (3,))),
    linear_case(*normal((3, 7), (2, 7)), damping=0.01),
    linear_case(*normal((2, 3, 4), (3, 4), (3,)), damping=10.0),
    linear_case(*normal((1, 1), (1, 1))),
    conv_case(*normal((2, 2, 5, 4), (3, 2, 3, 2), (3,))),
    conv_case(*normal((1, 3, 3, 3), (2, 3, 2, 2)), damping=1.0),
    conv_case(*normal((2, 1, 5, 4), (2, 1, 2, 3), (2,)), **STRIDED),
]


def test_one_example_by_hand():
    for form in ("primal", "dual", "auto"):
        found = tract_weight_gradient(np.array([[1.0, 2.0]]), np.array([[1.0]]), damping=0.1, form=form)
        np.testing.assert_allclose(found, [[1 / 5.1, 2 / 5.1]], rtol=1e-13)


@given(n=st.integers(1, 12), inputs=st.integers(1, 12), damping=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_gradient_times_the_damped_covariance_is_the_ordinary_gradient(n, inputs, damping, seed):
    rng = np.random.default_rng(seed)
    x, dz = rng.standard_normal((n, inputs)), rng.standard_normal((n, 3))
    for form in ("primal", "dual"):
        found = tract_weight_gradient(x, dz, damping=damping, form=form)
        np.testing.assert_allclose(
            found @ (x.T @ x / n + damping * np.eye(inputs)), dz.T @ x, atol=1e-10 * (1 + damping)
        )


def test_large_damping_gives_the_ordinary_gradient():
    x, dz = normal((5, 3), (5, 2))
    np.testing.assert_allclose(1e9 * tract_weight_gradient(x, dz, damping=1e9), dz.T @ x, rtol=1e-8)


@given(contrast=st.floats(1e-2, 1e2), seed=st.integers(0, 99))
def test_without_damping_the_move_of_the_outputs_ignores_the_contrast(contrast, seed):
    rng = np.random.default_rng(seed)
    x, dz = rng.standard_normal((4, 9)), rng.standard_normal((4, 3))
    moved = contrast * x @ tract_weight_gradient(contrast * x, dz, damping=1e-12).T
    np.testing.assert_allclose(moved, 4 * dz, rtol=1e-4, atol=1e-6)


def test_leading_axes_are_examples():
    x, dz = normal((2, 3, 4), (2, 3, 5))
    flat = tract_weight_gradient(x.reshape(6, 4), dz.reshape(6, 5))
    np.testing.assert_array_equal(tract_weight_gradient(x, dz), flat)


def test_only_the_weight_gradient_differs_from_an_ordinary_layer():
    x, weight, bias, dz = normal((6, 4), (3, 4), (3,), (6, 3))
    z, pullback = tract_linear_vjp(x, weight, bias)
    plain, ordinary = linear_vjp(x, weight.T, bias)
    np.testing.assert_array_equal(z, plain)
    np.testing.assert_array_equal(tract_linear(x, weight, bias), plain)
    dx, dweight, dbias = ordinary(dz)
    found = pullback(dz)
    np.testing.assert_array_equal(found[0], dx)
    np.testing.assert_array_equal(found[2], dbias)
    assert np.abs(found[1] - dweight.T).max() > 0.1

    x, weight, dz = normal((2, 2, 5, 5), (3, 2, 3, 3), (2, 3, 3, 3))
    z, pullback = tract_conv2d_vjp(x, weight)
    plain, ordinary = conv2d_vjp(x, weight)
    np.testing.assert_array_equal(z, plain)
    np.testing.assert_array_equal(tract_conv2d(x, weight), plain)
    np.testing.assert_array_equal(pullback(dz)[0], ordinary(dz)[0])
    assert pullback(dz)[2] is None


def test_convolution_of_single_pixels_is_the_linear_layer_on_them():
    x, weight, dz = normal((2, 3, 4, 5), (6, 3, 1, 1), (2, 6, 4, 5))
    by_conv = tract_conv2d_vjp(x, weight)[1](dz)[1]
    by_linear = tract_linear_vjp(x.transpose(0, 2, 3, 1), weight[..., 0, 0])[1](dz.transpose(0, 2, 3, 1))[1]
    np.testing.assert_allclose(by_conv[..., 0, 0], by_linear, rtol=1e-10)


@pytest.mark.parametrize("shape", [(1, 2, 3, 3), (4, 2, 6, 5)], ids=["fewer patches than inputs", "more"])
def test_convolution_is_the_linear_layer_on_patches(shape):
    x = RNG.standard_normal(shape)
    weight = RNG.standard_normal((3, 2, 2, 3))
    z, pullback = tract_conv2d_vjp(x, weight, **STRIDED, damping=0.3)
    dz = RNG.standard_normal(z.shape)
    rows = unfold(x, (2, 3), **STRIDED)
    expected = tract_weight_gradient(rows, dz.transpose(0, 2, 3, 1).reshape(len(rows), 3), damping=0.3)
    np.testing.assert_allclose(pullback(dz)[1].reshape(3, -1), expected, rtol=1e-10)


@given(
    channels=st.integers(1, 3),
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 1)),
    seed=st.integers(0, 99),
)
def test_patch_gram_is_that_of_the_listed_patches(channels, size, stride, padding, seed):
    x = np.random.default_rng(seed).standard_normal((2, channels, 4, 5))
    rows = unfold(x, size, stride, padding)
    gram = patch_gram(x, size, stride=stride, padding=padding)
    np.testing.assert_allclose(gram, rows.T @ rows, atol=1e-12)
    np.testing.assert_array_equal(gram, gram.T)


def test_constant_input_is_harmless():
    x, dz = RNG.standard_normal((20, 4)), RNG.standard_normal((20, 2))
    x[:, 1], x[:, 2] = 0, 1
    found = tract_weight_gradient(x, dz)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[:, 1], 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    x, weight, bias = (a.astype(dtype) for a in normal((6, 4), (3, 4), (3,)))
    z, pullback = tract_linear_vjp(x, weight, bias)
    images, filters = (a.astype(dtype) for a in normal((2, 2, 5, 5), (3, 2, 3, 3)))
    y, conv_pullback = tract_conv2d_vjp(images, filters)
    small, small_pullback = tract_conv2d_vjp(images[:1, :, :3, :3], filters)
    arrays = [z, *pullback(z), y, *conv_pullback(y)[:2], *small_pullback(small)[:2], patch_gram(images, 2)]
    assert {array.dtype for array in arrays} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    x, weight, images, filters = normal((6, 4), (3, 4), (2, 2, 5, 5), (3, 2, 3, 3))
    for array in (x, weight, images, filters):
        array.setflags(write=False)
    for value, pullback in (tract_linear_vjp(x, weight), tract_conv2d_vjp(images, filters, padding=1)):
        value.setflags(write=False)
        pullback(value)
    patch_gram(images, 3)


X, W = np.ones((4, 3)), np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tract_weight_gradient(X, X, damping=0.0), ValueError, "damping: expected a finite number > 0, got 0.0"),
        (lambda: tract_weight_gradient(X, X[:3]), ValueError, r"dz: expected shape \(4, 3\), got \(3, 3\)"),
        (lambda: tract_weight_gradient(X[:0], X[:0]), ValueError, "x: expected at least one entry along axes"),
        (lambda: tract_weight_gradient(X, X, form="best"), ValueError, "form: expected one of 'auto', 'primal', 'dual'"),
        (lambda: tract_weight_gradient(X, X.astype("f4")), TypeError, "dz: expected dtype float64 like x, got float32"),
        (lambda: tract_linear(X, W.T), ValueError, r"weight: expected shape \(3, 3\), got \(3, 2\)"),
        (lambda: tract_linear_vjp(X[:0], W), ValueError, "x: expected at least one entry along axes"),
        (lambda: tract_linear_vjp(X, W, damping=-1.0), ValueError, "damping: expected a finite number > 0, got -1.0"),
        (lambda: tract_linear(X, W, np.ones(3)), ValueError, r"bias: expected shape \(2,\), got \(3,\)"),
        (lambda: tract_conv2d_vjp(np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)), damping=np.nan), ValueError, "damping"),
        (lambda: tract_conv2d_vjp(np.ones((0, 1, 3, 3)), np.ones((1, 1, 2, 2))), ValueError, "x: expected at least one"),
        (lambda: patch_gram(np.ones((1, 1, 3, 3)), 4), ValueError, r"x: expected padded images of at least 4 x 4 pixels"),
        (lambda: patch_gram(np.ones((1, 3, 3)), 2), ValueError, "x: expected 4 dimensions"),
        (lambda: patch_gram(np.ones((1, 1, 3, 3)), 0), ValueError, "kernel: expected an integer >= 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
