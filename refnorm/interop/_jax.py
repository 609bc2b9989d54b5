"""A function and its pullback as a function of JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm.interop._arguments import (
    framework,
    is_array,
    leaf_cotangents,
    leaf_names,
    leaves_of,
    named_after,
    with_leaves,
)


def jax_function(f_vjp: Callable[..., Any], *, like: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Return a function of JAX arrays whose reverse-mode derivative is the pullback of ``f_vjp``.

    Parameters
    ----------
    f_vjp : callable
        ``f_vjp(*args, **options)`` returns ``(value, pullback)``; the value's shape depends on the arguments' shapes
        alone.
    like : callable, optional
        ``like(*args, **options)`` returns the value's shapes and dtypes, as arrays or ``jax.ShapeDtypeStruct``, from
        arguments of which only shapes and dtypes count. By default ``f_vjp`` is run once for each set of shapes, on
        zeros (ones for arrays without axes), which it has to accept.

    Returns
    -------
    callable
        ``function(*args, **options)``, which works under ``jax.jit``, ``jax.grad`` and ``jax.vmap``. Arrays by
        position, or trees of them, are differentiated if they are of floats; anything else by position, and every
        option by keyword, goes to ``f_vjp`` as it is and must not be traced.

    Raises
    ------
    ImportError
        If JAX is not installed.
    ValueError
        In the call, if the shape of the value cannot be found on zeros.

    Notes
    -----
    A ``jax.custom_vjp`` of two ``jax.pure_callback``: the value is computed on the host by NumPy, and the backward
    pass, which cannot keep a Python function from the forward one, runs ``f_vjp`` again. ``vmap`` calls it once for
    each example. There is no forward mode, so no ``jacfwd``, and no second derivative.

    Examples
    --------
    >>> from refnorm.norms import layer_norm_vjp
    >>> layer_norm = jax_function(layer_norm_vjp)                                          # doctest: +SKIP
    >>> jax.jit(jax.grad(lambda x: (layer_norm(x, gain, bias, eps=1e-6) ** 2).sum()))(x)   # doctest: +SKIP
    """
    jax = framework("jax")
    known: dict[Any, Any] = {}

    def call(*args: Any, **options: Any) -> Any:
        leaves = leaves_of(args)
        is_given = [isinstance(leaf, (jax.Array, np.ndarray, np.generic)) for leaf in leaves]
        arrays = [jax.numpy.asarray(leaf) for leaf, given in zip(leaves, is_given, strict=True) if given]
        constants = tuple(None if given else leaf for leaf, given in zip(leaves, is_given, strict=True))
        host = _OnHost(f_vjp, args, is_given, options)
        key = _key(args, arrays, constants, options)
        value = known.get(key) if key is not None else None
        if value is None:
            value = host.shapes(arrays, like)
            if key is not None:
                known[key] = value
        outputs = iter(_differentiable(host, leaves_of(value))(*arrays))
        return with_leaves(value, [next(outputs) if _is_shape(leaf) else leaf for leaf in leaves_of(value)])

    return named_after(f_vjp, call)


def _differentiable(host: _OnHost, value: Sequence[Any]) -> Any:
    """Return the ``jax.custom_vjp`` of one call, from arrays to the arrays of the value."""
    jax = framework("jax")
    shapes = [leaf for leaf in value if _is_shape(leaf)]

    @jax.custom_vjp  # type: ignore[untyped-decorator]
    def function(*arrays: Any) -> Any:
        return jax.pure_callback(host.value, shapes, *arrays, vmap_method="sequential")

    def forward(*arrays: Any) -> Any:
        return function(*arrays), arrays

    def backward(arrays: Any, doutputs: Any) -> Any:
        is_float = [jax.numpy.issubdtype(array.dtype, jax.numpy.floating) for array in arrays]
        wanted = [_shape_of(array) for array, floating in zip(arrays, is_float, strict=True) if floating]
        # The cotangent of an integer result is of a type without values; the pullback gets zeros in its place.
        cotangents = [
            jax.numpy.zeros(shape.shape, shape.dtype) if doutput.dtype == jax.dtypes.float0 else doutput
            for doutput, shape in zip(doutputs, shapes, strict=True)
        ]
        gradients = iter(jax.pure_callback(host.gradients, wanted, arrays, cotangents, vmap_method="sequential"))
        return tuple(next(gradients) if floating else None for floating in is_float)

    function.defvjp(forward, backward)
    return function


class _OnHost:
    """The NumPy side of a call: ``args`` with arrays put in where ``is_given`` says."""

    def __init__(
        self, f_vjp: Callable[..., Any], args: tuple[Any, ...], is_given: Sequence[bool], options: dict[str, Any]
    ) -> None:
        self.f_vjp, self.is_given, self.options = f_vjp, is_given, options
        self.names = leaf_names(f_vjp, args)
        # Traced arrays must not outlive the call.
        self.frame = with_leaves(args, [None if g else leaf for leaf, g in zip(leaves_of(args), is_given, strict=True)])

    def fill(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        following = iter(arrays)
        leaves = [next(following) if g else leaf for leaf, g in zip(leaves_of(self.frame), self.is_given, strict=True)]
        filled: tuple[Any, ...] = with_leaves(self.frame, leaves)
        return filled

    def arguments(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        names = [name for name, given in zip(self.names, self.is_given, strict=True) if given]
        return self.fill([_checks.host_array(array, name) for array, name in zip(arrays, names, strict=True)])

    def value(self, *arrays: Any) -> list[Any]:
        value, _ = self.f_vjp(*self.arguments(arrays), **self.options)
        return [np.asarray(leaf, dtype=_canonical(leaf)) for leaf in leaves_of(value) if is_array(leaf)]

    def gradients(self, arrays: Sequence[Any], doutputs: Sequence[Any]) -> list[Any]:
        args = self.arguments(arrays)
        value, pullback = self.f_vjp(*args, **self.options)
        following = iter(doutputs)
        leaves = [
            np.asarray(next(following), dtype=leaf.dtype) if is_array(leaf) else None for leaf in leaves_of(value)
        ]
        found = leaf_cotangents(self.f_vjp, args, pullback(with_leaves(value, leaves)))
        return [
            np.zeros_like(leaf) if gradient is None else np.asarray(gradient, dtype=leaf.dtype)
            for leaf, gradient, given in zip(leaves_of(args), found, self.is_given, strict=True)
            if given and leaf.dtype.kind == "f"
        ]

    def shapes(self, arrays: Sequence[Any], like: Callable[..., Any] | None) -> Any:
        """Return the value with a ``jax.ShapeDtypeStruct`` for each array."""
        probes = [np.zeros(array.shape, array.dtype) if array.ndim else np.ones((), array.dtype) for array in arrays]
        args = self.fill(probes)
        if like is not None:
            value = like(*args, **self.options)
        else:
            try:
                value, _ = self.f_vjp(*args, **self.options)
            except ValueError as error:
                raise ValueError(
                    "like: expected a function that gives the value's shape, got None, and it cannot be found on "
                    f"zeros ({_checks.reason(error)})"
                ) from error
        return with_leaves(
            value, [_shape_of(leaf) if is_array(leaf) or _is_shape(leaf) else leaf for leaf in leaves_of(value)]
        )


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, framework("jax").ShapeDtypeStruct)


def _canonical(array: Any) -> Any:
    """Return the dtype that JAX stores: 32 bits wide unless it is told to allow 64."""
    return framework("jax").dtypes.canonicalize_dtype(array.dtype)


def _shape_of(array: Any) -> Any:
    return framework("jax").ShapeDtypeStruct(array.shape, _canonical(array))


def _key(args: Any, arrays: Sequence[Any], constants: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Return what the value's shape depends on as a key, or ``None`` if an option cannot be one."""
    jax = framework("jax")
    shapes = tuple((array.shape, str(array.dtype)) for array in arrays)
    structure = tuple(leaf_names(lambda: None, args))
    key = (shapes, structure, constants, tuple(sorted(options.items())), jax.config.jax_enable_x64)
    try:
        hash(key)
    except TypeError:
        return None
    return key
