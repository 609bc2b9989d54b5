"""Arguments and results as JSON: arrays by reference, everything else by value.

A value is ``null``, a boolean, an integer, a string, or an object with one of the keys

``array``
    the name of an array in the data file
``float``
    a number as text, so that infinity and NaN have a place: ``"0x1.8p+1"``, ``"0.1"``, ``"inf"``
``list``, ``tuple``
    a sequence of values
``dict``
    values by name
``record`` and ``fields``
    a dataclass: its name, and its fields by name
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from refnorm._typing import AnyArray

DEEPEST = 32
"""Levels of nesting that are read."""

WIDEST_ITEM = 8
"""Bytes of an array's item; the 10 or 16 bytes of a long double differ between machines."""


def encode(value: Any, key: str, arrays: dict[str, AnyArray]) -> Any:
    """Return a JSON value, adding its arrays to ``arrays`` under names that begin with ``key``.

    Raises
    ------
    ValueError
        If the value cannot be kept so that every machine reads it.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and not isinstance(value, np.floating):
        return {"float": value.hex()}
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
        if array.dtype.kind not in "fiub" or array.dtype.itemsize > WIDEST_ITEM:
            raise ValueError(
                f"{key}: expected a float, integer or boolean array of at most {WIDEST_ITEM} bytes an item, "
                f"got dtype {array.dtype}"
            )
        arrays[key] = array.astype(array.dtype.newbyteorder("<"), copy=False)
        return {"array": key}
    if isinstance(value, dict):
        return {"dict": {name: encode(item, f"{key}.{name}", arrays) for name, item in value.items()}}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [encode(item, f"{key}.{i}", arrays) for i, item in enumerate(value)]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        encoded = {name: encode(item, f"{key}.{name}", arrays) for name, item in fields.items()}
        return {"record": type(value).__name__, "fields": encoded}
    if isinstance(value, SimpleNamespace):
        encoded = {name: encode(item, f"{key}.{name}", arrays) for name, item in vars(value).items()}
        return {"record": "namespace", "fields": encoded}
    raise ValueError(f"{key}: expected an array, number, string, list, dict or record, got {type(value).__name__}")


def decode(value: Any, arrays: Mapping[str, AnyArray], where: str, depth: int = 0) -> Any:
    """Return the value that was encoded; a record comes back as a namespace.

    Raises
    ------
    ValueError
        If ``value`` is none of the forms above; the message begins with ``where``.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if depth > DEEPEST:
        raise ValueError(f"{where}: expected at most {DEEPEST} levels of nesting, got more")

    def inner(item: Any, name: object) -> Any:
        return decode(item, arrays, f"{where}.{name}", depth + 1)

    kind = next((name for name in _FORMS if isinstance(value, dict) and name in value), None)
    if kind is None or not isinstance(value[kind], _FORMS[kind]):
        raise ValueError(
            f"{where}: expected a value (one of null, true, 1, text, {', '.join(_FORMS)}), got {value!r:.80}"
        )
    content = value[kind]
    if kind == "array":
        if content not in arrays:
            raise ValueError(f"{where}: expected an array {content!r} in the data file, got none of that name")
        return arrays[content]
    if kind == "float":
        return _number(content, where)
    if kind in ("list", "tuple"):
        items = [inner(item, number) for number, item in enumerate(content)]
        return tuple(items) if kind == "tuple" else items
    named = {name: inner(item, name) for name, item in content.items()}
    return SimpleNamespace(**named) if kind == "fields" else named


_FORMS: dict[str, type] = {"array": str, "float": str, "dict": dict, "tuple": list, "list": list, "fields": dict}


def _number(text: str, where: str) -> float:
    try:
        return float.fromhex(text) if "0x" in text else float(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{where}: expected a number as text, got {text!r:.80}") from None
