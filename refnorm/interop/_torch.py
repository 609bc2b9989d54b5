"""A function and its pullback as a function of PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray
from refnorm.interop._arguments import (
    framework,
    is_array,
    leaf_cotangents,
    leaf_names,
    leaves_of,
    name_of,
    named_after,
    with_leaves,
)


def torch_function(f_vjp: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of PyTorch tensors whose gradient is the pullback of ``f_vjp``.

    Parameters
    ----------
    f_vjp : callable
        ``f_vjp(*args, **options)`` returns ``(value, pullback)``, as every such function of ``refnorm`` and
        ``refnorm_fast`` does; see :mod:`refnorm.gradcheck` to check one of your own.

    Returns
    -------
    callable
        ``function(*args, **options)``. Arguments by position are tensors in host memory, trees of them, or anything
        else that ``f_vjp`` takes; only tensors get gradients, integer tensors none. Options by keyword go to
        ``f_vjp`` as they are. The value has the structure that ``f_vjp`` gives it, with tensors for arrays.

    Raises
    ------
    ImportError
        If PyTorch is not installed.
    TypeError
        In the call, if NumPy cannot read a tensor: it is on a GPU, sparse or of a dtype that NumPy has not.

    Notes
    -----
    Contiguous tensors are not copied on the way in, nor results on the way out. A tensor that is changed in place
    between the call and the backward pass is an error, as it is for PyTorch's own functions. There is no second
    derivative: the pullback is NumPy. ``torch.compile`` and ``torch.func`` do not see through the call.

    Examples
    --------
    >>> from refnorm.norms import layer_norm_vjp
    >>> layer_norm = torch_function(layer_norm_vjp)                                        # doctest: +SKIP
    >>> y = layer_norm(x, gain, bias, eps=1e-6)                                            # doctest: +SKIP
    >>> y.square().sum().backward()                                                        # doctest: +SKIP
    """
    function = _function_class()

    def call(*args: Any, **options: Any) -> Any:
        made = _Call(f_vjp, args, options)
        outputs = iter(function.apply(made, *leaves_of(args)))
        return with_leaves(made.value, [next(outputs) if is_array(leaf) else leaf for leaf in leaves_of(made.value)])

    return named_after(f_vjp, call)


@dataclass
class _Call:
    """What a call of the function hands to PyTorch beside its leaves; ``value`` is filled in on the way."""

    f_vjp: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any]
    value: Any = None


@functools.cache
def _function_class() -> Any:
    torch = framework("torch")

    def forward(ctx: Any, call: _Call, *leaves: Any) -> tuple[Any, ...]:
        names = leaf_names(call.f_vjp, call.args)
        inputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        read = [
            _checks.host_array(leaf.detach(), name) if isinstance(leaf, torch.Tensor) else leaf
            for leaf, name in zip(leaves, names, strict=True)
        ]
        ctx.args = with_leaves(call.args, read)
        call.value, ctx.pullback = call.f_vjp(*ctx.args, **call.options)
        ctx.call = call
        taken = [leaf for leaf in read if isinstance(leaf, np.ndarray)]
        outputs = _tensors((leaf for leaf in leaves_of(call.value) if is_array(leaf)), taken)
        ctx.mark_non_differentiable(*(output for output in outputs if not output.is_floating_point()))
        # Pullbacks read the inputs and the value again: saved here, a change in place is noticed.
        ctx.save_for_backward(*inputs, *outputs)
        return tuple(outputs)

    def backward(ctx: Any, *doutputs: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{name_of(ctx.call.f_vjp)}: expected a first derivative, got create_graph=True; "
                "a pullback in NumPy has no derivative of its own"
            )
        _ = ctx.saved_tensors
        given = [_checks.host_array(doutput, "cotangent") for doutput in doutputs]
        following = iter(given)
        value = leaves_of(ctx.call.value)
        cotangent = with_leaves(ctx.call.value, [next(following) if is_array(leaf) else None for leaf in value])
        gradients = leaf_cotangents(ctx.call.f_vjp, ctx.args, ctx.pullback(cotangent))
        wanted = [
            None if gradient is None or not isinstance(leaf, torch.Tensor) else np.asarray(gradient, dtype=array.dtype)
            for gradient, leaf, array in zip(gradients, leaves_of(ctx.call.args), leaves_of(ctx.args), strict=True)
        ]
        tensors = iter(_tensors((gradient for gradient in wanted if gradient is not None), given))
        # `call` comes first and has no gradient.
        return None, *(None if gradient is None else next(tensors) for gradient in wanted)

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type("PullbackFunction", (torch.autograd.Function,), methods)


def _tensors(arrays: Iterable[AnyArray], others: list[AnyArray]) -> list[Any]:
    """Make tensors of arrays, without a copy where the memory is nobody else's and may be written to."""
    torch = framework("torch")
    taken = list(others)
    made = []
    for array in arrays:
        own = np.asarray(array)
        if (
            not own.flags.writeable
            or any(stride < 0 for stride in own.strides)
            or any(np.may_share_memory(own, other) for other in taken)
        ):
            own = own.copy(order="C")
        taken.append(own)
        made.append(torch.from_numpy(own))
    return made
