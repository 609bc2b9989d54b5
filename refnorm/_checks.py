"""Argument checks: one helper a rule, one wording for every error.

Every message reads ``"<argument>: expected <what>, got <what>"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

import numpy as np

from refnorm._typing import AnyArray

_complex_allowed: ContextVar[bool] = ContextVar("complex_allowed", default=False)


@contextmanager
def complex_allowed() -> Iterator[None]:
    """Let float arguments be complex inside the block, for complex-step differentiation."""
    token = _complex_allowed.set(True)
    try:
        yield
    finally:
        _complex_allowed.reset(token)


def fail(name: str, expected: str, got: object) -> NoReturn:
    """Raise the ``ValueError`` that all checks share."""
    raise ValueError(f"{name}: expected {expected}, got {got}")


def fail_type(name: str, expected: str, got: object) -> NoReturn:
    """Raise the ``TypeError`` that all checks share."""
    raise TypeError(f"{name}: expected {expected}, got {got}")


def reason(error: BaseException) -> str:
    """Return what an exception says on one line of at most 200 characters: other libraries quote whole files."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def host_array(x: Any, name: str) -> AnyArray:
    """Return ``x`` as a NumPy array, without a copy where its owner shares memory, or raise.

    Taken are arrays, numbers and nested lists of them, and what has ``__array__`` or, failing that, ``__dlpack__``:
    tensors of other frameworks in host memory.
    """
    if isinstance(x, np.ndarray):
        return np.asarray(x)
    if getattr(x, "requires_grad", False) is True:
        fail_type(
            name,
            "a tensor that records no gradient (detach it, or differentiate with refnorm.interop.torch_function)",
            "one with requires_grad=True",
        )
    try:
        if not hasattr(x, "__array__") and hasattr(x, "__dlpack__"):
            return np.from_dlpack(x)
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        fail_type(name, "an array that NumPy can read", f"{type(x).__name__} ({reason(error)})")


def float_array(x: Any, name: str, *, ndim: int | None = None, min_ndim: int = 0) -> AnyArray:
    """Return ``x`` as a float32 or float64 array, or raise.

    Integer and boolean arrays are refused: their result type would be a guess.
    """
    array = host_array(x, name)
    allowed = array.dtype in (np.float32, np.float64) or (_complex_allowed.get() and array.dtype == np.complex128)
    if not allowed:
        fail_type(name, "a float32 or float64 array", f"dtype {array.dtype}")
    _check_ndim(array, name, ndim, min_ndim)
    return array


def integer_array(
    x: Any, name: str, *, ndim: int | None = None, low: int | None = None, high: int | None = None
) -> AnyArray:
    """Return ``x`` as an integer array with ``low <= x <= high``, or raise."""
    array = host_array(x, name)
    if not np.issubdtype(array.dtype, np.integer):
        fail_type(name, "an integer array", f"dtype {array.dtype}")
    _check_ndim(array, name, ndim, 0)
    if array.size:
        smallest, largest = int(array.min()), int(array.max())
        if low is not None and smallest < low:
            fail(name, f"values of at least {low}", smallest)
        if high is not None and largest > high:
            fail(name, f"values of at most {high}", largest)
    return array


def _check_ndim(array: AnyArray, name: str, ndim: int | None, min_ndim: int) -> None:
    if ndim is not None and array.ndim != ndim:
        fail(name, f"{ndim} dimensions", f"shape {array.shape}")
    if array.ndim < min_ndim:
        fail(name, f"at least {min_ndim} dimension{'s' if min_ndim > 1 else ''}", f"shape {array.shape}")


def same_dtype(reference_name: str, reference: AnyArray, **others: AnyArray | None) -> None:
    """Raise unless every given array has the reference's dtype: no silent promotion."""
    if _complex_allowed.get():
        return
    for name, array in others.items():
        if array is not None and array.dtype != reference.dtype:
            fail_type(name, f"dtype {reference.dtype} like {reference_name}", array.dtype)


def shape(array: AnyArray, name: str, expected: Sequence[int]) -> None:
    """Raise unless ``array.shape == expected``: no silent broadcast."""
    if array.shape != tuple(expected):
        fail(name, f"shape {tuple(expected)}", array.shape)


def axes(axis: int | Sequence[int], ndim: int, name: str = "axis") -> tuple[int, ...]:
    """Return distinct non-negative axes of an array with ``ndim`` dimensions, in ascending order."""
    given = (axis,) if isinstance(axis, (int, np.integer)) else tuple(axis)
    for one in given:
        if not isinstance(one, (int, np.integer)) or not -ndim <= one < ndim:
            fail(name, f"integers from {-ndim} to {ndim - 1}", axis)
    normal = sorted(int(one) % ndim for one in given)
    if len(set(normal)) != len(normal) or not normal:
        fail(name, "distinct axes, at least one", axis)
    return tuple(normal)


def not_empty(array: AnyArray, name: str, over: Sequence[int]) -> None:
    """Raise if the array has no entry along one of the axes ``over``."""
    if any(array.shape[axis] == 0 for axis in over):
        fail(name, f"at least one entry along axes {tuple(over)}", f"shape {array.shape}")


def positive(value: float, name: str) -> None:
    """Raise unless ``value`` is finite and > 0."""
    if not (np.isfinite(value) and value > 0):
        fail(name, "a finite number > 0", value)


def non_negative(value: float, name: str) -> None:
    """Raise unless ``value`` is finite and >= 0."""
    if not (np.isfinite(value) and value >= 0):
        fail(name, "a finite number >= 0", value)


def in_range(value: float, name: str, low: float, high: float, *, closed: str = "both") -> None:
    """Raise unless ``value`` lies between ``low`` and ``high``; ``closed`` is both, left, right or neither."""
    above = value >= low if closed in ("both", "left") else value > low
    below = value <= high if closed in ("both", "right") else value < high
    if not (above and below):
        left = "[" if closed in ("both", "left") else "("
        right = "]" if closed in ("both", "right") else ")"
        fail(name, f"a number in {left}{low}, {high}{right}", value)


def whole(value: Any, name: str, *, low: int | None = None, high: int | None = None) -> int:
    """Return ``value`` as an int with ``low <= value <= high``, or raise."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        fail_type(name, "an integer", repr(value))
    if (low is not None and value < low) or (high is not None and value > high):
        limits = " and ".join(
            text for text in (f">= {low}" if low is not None else "", f"<= {high}" if high is not None else "") if text
        )
        fail(name, f"an integer {limits}", value)
    return int(value)


def one_of(value: Any, name: str, options: Sequence[Any]) -> None:
    """Raise unless ``value`` is one of ``options``."""
    if value not in options:
        fail(name, "one of " + ", ".join(repr(option) for option in options), repr(value))


def finite(array: AnyArray, name: str) -> None:
    """Raise if the array holds NaN or infinity, saying how many and where the first one is."""
    wrong = ~np.isfinite(array)
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        fail(name, "finite values", f"{int(wrong.sum())} that are not, the first at index {first}")


def generator(rng: Any, name: str = "rng") -> np.random.Generator:
    """Return ``rng`` if it is a ``numpy.random.Generator``, or raise."""
    if not isinstance(rng, np.random.Generator):
        fail_type(name, "a numpy.random.Generator (numpy.random.default_rng(seed))", type(rng).__name__)
    return rng
