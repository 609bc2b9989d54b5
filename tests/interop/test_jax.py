from contextlib import contextmanager

import numpy as np
import pytest
from interop_cases import CASES

import refnorm_fast
from refnorm import _checks, interop, norms, softmax
from refnorm.tree import tree_leaves, tree_map

jax = pytest.importorskip("jax")
jnp = jax.numpy


@contextmanager
def float64():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_right(name):
    from jax.test_util import check_grads

    f_vjp, args, options = CASES[name]
    function = interop.jax_function(f_vjp)
    is_float = [isinstance(arg, np.ndarray) and arg.dtype.kind == "f" for arg in args]

    def of_floats(*floats):
        following = iter(floats)
        return function(*(next(following) if f else arg for f, arg in zip(is_float, args, strict=True)), **options)

    with float64():
        floats = [jnp.asarray(arg) for arg, f in zip(args, is_float, strict=True) if f]
        check_grads(of_floats, floats, order=1, modes=["rev"], rtol=1e-6, atol=1e-6)
        check_grads(jax.jit(of_floats), floats, order=1, modes=["rev"], rtol=1e-6, atol=1e-6)
        expected = [leaf for _, leaf in tree_leaves(f_vjp(*args, **options)[0])]
        for got, other in zip(jax.tree.leaves(of_floats(*floats)), expected, strict=True):
            np.testing.assert_array_equal(got, other)


def affine_vjp(params, x, codes):
    def pullback(cotangents):
        dy, dcodes = cotangents["y"], cotangents["codes"]
        assert dcodes.dtype == codes.dtype
        return {"weight": x.T @ dy, "bias": [dy.sum(axis=0), None]}, dy @ params["weight"].T

    return {"y": x @ params["weight"] + params["bias"][0], "codes": codes + 1, "note": "kept"}, pullback


def test_trees_of_arrays_in_and_out():
    function = interop.jax_function(affine_vjp)
    params = {"weight": np.arange(6, dtype=np.float32).reshape(3, 2), "bias": [np.ones(2, np.float32), None]}
    x, codes = np.ones((4, 3), np.float32), np.array([1, 2], np.int32)
    value = function(params, x, codes)
    assert value["note"] == "kept"
    assert value["codes"].tolist() == [2, 3]
    gradient = jax.grad(lambda p: (function(p, x, codes)["y"] ** 2).sum())(params)
    np.testing.assert_allclose(gradient["weight"], x.T @ (2 * np.asarray(value["y"])))
    assert gradient["bias"][1] is None
    assert jax.tree.structure(gradient) == jax.tree.structure(params)


def test_a_layer_of_kernels_under_jit_grad_and_vmap():
    rng = np.random.default_rng(0)
    x, gain, bias = (rng.standard_normal(shape).astype(np.float32) for shape in [(6, 32), 32, 32])
    layer_norm = interop.jax_function(refnorm_fast.norms.layer_norm_vjp)

    def own(x, gain, bias):
        centred = x - x.mean(-1, keepdims=True)
        return gain * centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) + bias

    def loss(function):
        return jax.jit(jax.grad(lambda *args: jnp.cos(function(*args)).sum(), argnums=(0, 1, 2)))

    for got, expected in zip(loss(layer_norm)(x, gain, bias), loss(own)(x, gain, bias), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    over_rows = jax.vmap(layer_norm, in_axes=(0, None, None))
    np.testing.assert_allclose(over_rows(x, gain, bias), layer_norm(x, gain, bias), rtol=1e-6)


def test_large_arrays_pass_the_callback():
    x = jnp.ones((1500, 1500), jnp.float32)
    gradient = jax.jit(jax.grad(lambda x: interop.jax_function(refnorm_fast.softmax.softmax_vjp)(x)[0, 0]))(x)
    np.testing.assert_allclose(gradient[0, 0], (1 / 1500) * (1 - 1 / 1500), rtol=1e-4)


def reciprocal_vjp(x):
    if (x == 0).any():
        raise ValueError("x: expected no zeros, got some")
    return 1 / x, lambda dy: (-dy / x**2,)


def test_a_function_that_refuses_zeros_needs_to_be_told_the_shape():
    x = jnp.array([1.0, 2.0])
    with pytest.raises(ValueError, match=r"^like: expected a function .* on zeros \(x: expected no zeros"):
        interop.jax_function(reciprocal_vjp)(x)
    for like in (lambda x: x, lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)):
        told = interop.jax_function(reciprocal_vjp, like=like)
        np.testing.assert_allclose(jax.grad(lambda x: told(x).sum())(x), [-1.0, -0.25])  # noqa: B023


def test_the_shape_is_found_once_for_each_set_of_shapes():
    runs = []

    def counted_vjp(x, *, axis=-1):
        runs.append(x.shape)
        return softmax.softmax_vjp(x, axis=axis)

    function = interop.jax_function(counted_vjp)
    for shape in ((3, 2), (3, 2), (2, 3)):
        function(jnp.ones(shape)).block_until_ready()
    assert len(runs) == 5


def test_errors_name_the_argument():
    layer_norm = interop.jax_function(norms.layer_norm_vjp)
    with pytest.raises(ValueError, match=r"gain: expected shape \(3,\), got \(4,\)"):
        layer_norm(jnp.ones((2, 3)), jnp.ones(4), jnp.ones(3))
    with pytest.raises(TypeError, match="x: expected a float32 or float64 array, got dtype bfloat16"):
        layer_norm(jnp.ones((2, 3), jnp.bfloat16), jnp.ones(3), jnp.ones(3))


def test_an_array_of_jax_is_read_where_it_is():
    x = jnp.ones((64, 32), jnp.float32)
    assert _checks.float_array(x, "x").__array_interface__["data"][0] == x.unsafe_buffer_pointer()


def test_options_must_not_be_traced():
    function = interop.jax_function(norms.layer_norm_vjp)
    ones = jnp.ones(3)
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(lambda eps: function(jnp.ones((2, 3)), ones, ones, eps=eps))(1e-3)


def test_structure_of_the_arguments_is_kept():
    x = {"a": jnp.ones(2), "b": (jnp.zeros(2), None)}
    total = interop.jax_function(lambda t: (t["a"] + t["b"][0], lambda dy: ({"a": dy, "b": (dy, None)},)))
    assert tree_map(np.shape, jax.grad(lambda t: total(t).sum())(x)["b"][0]) == (2,)
