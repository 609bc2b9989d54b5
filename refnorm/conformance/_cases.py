"""Golden cases and their portable files: a JSON manifest beside an ``.npz`` with the arrays."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from refnorm._arrays import ulp_error
from refnorm._checks import one_of, positive
from refnorm._typing import AnyArray

GOLDEN_ROOT = Path(__file__).parent / "golden"
SCHEMA = 1
_RULES = ("ulp", "ulp_of_largest", "relative", "relative_of_largest", "exact")


@dataclass(frozen=True)
class Tolerance:
    """How far a result may be from the truth.

    Parameters
    ----------
    limit
        Largest error allowed; ignored for ``"exact"``.
    rule
        ``"ulp"``: units in the last place of the result's dtype, entry by entry;
        ``"ulp_of_largest"``: the same unit, taken at the largest expected magnitude;
        ``"relative"``: divided by each expected entry; ``"relative_of_largest"``: divided by the largest
        expected magnitude; ``"exact"``: equal, NaN matching NaN.
    """

    limit: float = 0.0
    rule: str = "exact"

    def __post_init__(self) -> None:
        one_of(self.rule, "rule", _RULES)
        if self.rule != "exact":
            positive(self.limit, "limit")

    def error(self, actual: AnyArray, expected: AnyArray) -> float:
        """Return the largest error in this tolerance's unit; ``inf`` if the shapes differ."""
        if actual.shape != expected.shape:
            return float("inf")
        if not expected.size:
            return 0.0
        if self.rule == "exact":
            same = (actual == expected) | ((actual != actual) & (expected != expected))
            return 0.0 if bool(np.all(same)) else float("inf")
        dtype = actual.dtype if actual.dtype.kind == "f" else np.dtype(np.float64)
        special = ~np.isfinite(expected)
        if special.any() and Tolerance().error(actual[special], expected[special].astype(dtype)) > 0:
            return float("inf")
        got, truth = actual[~special], expected[~special]
        if not truth.size:
            return 0.0
        if not np.isfinite(got).all():
            return float("inf")
        if self.rule == "ulp":
            return float(np.max(ulp_error(got, truth, dtype)))
        difference = np.abs(got.astype(np.longdouble) - truth.astype(np.longdouble))
        largest = np.abs(truth).max()
        if self.rule == "ulp_of_largest":
            return float(difference.max() / np.spacing(largest.astype(dtype)))
        scale = np.abs(truth) if self.rule == "relative" else np.full(truth.shape, largest)
        zero = scale == 0
        if bool(np.any(difference[zero] > 0)):
            return float("inf")
        return float(np.max(difference[~zero] / scale[~zero], initial=0.0))

    def accepts(self, error: float) -> bool:
        return error == 0.0 if self.rule == "exact" else error <= self.limit


@dataclass(frozen=True, eq=False)
class GoldenCase:
    """One function call with a result that this package did not compute.

    Parameters
    ----------
    function
        ``"room.function"``, for example ``"norms.layer_norm"``.
    name
        What is special about this case, in a few words; unique within its method.
    args
        Positional arguments: arrays, numbers, strings, ``None``, lists of them, or dataclass records.
    expected
        The true result: an array, or a tuple of arrays in the order of the function's results. It may
        hold more digits than the function's dtype.
    source
        What computed it: ``"mpmath, 50 digits"``, ``"torch 2.13 float64"``, ``"by hand"``.
    tolerance
        Largest error allowed.
    options
        Keyword arguments (numbers, strings, booleans, ``None``, tuples of them).
    cotangent
        If given, the case is about ``function_vjp``: ``expected`` are the cotangents that its pullback
        returns for this cotangent (``None`` entries are left out).
    kind
        ``"value"``, ``"cotangents"`` (implied by ``cotangent``) or ``"optimizer"``: ``function`` is a class
        built with ``options``; ``args`` are the start parameters and a list of gradients, one a step;
        ``expected`` are the final parameters.
    """

    function: str
    name: str
    args: Sequence[Any]
    expected: Any
    source: str
    tolerance: Tolerance = field(default_factory=Tolerance)
    options: Mapping[str, Any] = field(default_factory=dict)
    cotangent: Any = None
    kind: str = "value"

    def __post_init__(self) -> None:
        one_of(self.kind, "kind", ("value", "cotangents", "optimizer"))
        if self.cotangent is not None:
            object.__setattr__(self, "kind", "cotangents")


def method_names(root: Path = GOLDEN_ROOT) -> list[str]:
    """Return the names ``"room/method"`` that have golden vectors."""
    return sorted(str(path.relative_to(root).with_suffix("").as_posix()) for path in root.glob("*/*.json"))


def save_cases(method: str, cases: Sequence[GoldenCase], root: Path = GOLDEN_ROOT) -> tuple[Path, Path]:
    """Write ``root/method.json`` and ``root/method.npz``; both are replaced only when both are whole.

    Raises
    ------
    ValueError
        If two cases share a name or a value cannot be stored.
    """
    arrays: dict[str, AnyArray] = {}
    entries = []
    for number, case in enumerate(cases):
        key = f"{number:03d}"
        entries.append(
            {
                "function": case.function,
                "name": case.name,
                "kind": case.kind,
                "args": [_encode(arg, f"{key}.args.{i}", arrays) for i, arg in enumerate(case.args)],
                "options": {n: _encode(v, f"{key}.options.{n}", arrays) for n, v in case.options.items()},
                "cotangent": _encode(case.cotangent, f"{key}.cotangent", arrays),
                "expected": _encode(case.expected, f"{key}.expected", arrays),
                "tolerance": {"limit": case.tolerance.limit, "rule": case.tolerance.rule},
                "source": case.source,
            }
        )
    names = [(case.function, case.name, case.kind) for case in cases]
    if len(set(names)) != len(names):
        raise ValueError(f"{method}: expected distinct case names, got {sorted(names)}")
    manifest, data = root / f"{method}.json", root / f"{method}.npz"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    text = json.dumps({"schema": SCHEMA, "method": method, "cases": entries}, indent=1) + "\n"
    for path, content in ((data, buffer.getvalue()), (manifest, text.encode())):
        path.with_suffix(path.suffix + ".part").write_bytes(content)
    for path in (data, manifest):
        os.replace(path.with_suffix(path.suffix + ".part"), path)
    return manifest, data


def load_cases(method: str, root: Path = GOLDEN_ROOT) -> list[GoldenCase]:
    """Read the golden cases of ``"room/method"``.

    Raises
    ------
    ValueError
        If there are none of that name, or the files were written by an unknown schema.
    """
    manifest = root / f"{method}.json"
    if not manifest.is_file():
        known = ", ".join(method_names(root)) or "none"
        raise ValueError(f"method: expected one of {known}, got {method!r}")
    content = json.loads(manifest.read_text())
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{manifest.name}: expected schema {SCHEMA}, got {content.get('schema')!r}")
    with np.load(manifest.with_suffix(".npz"), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for array in arrays.values():
        array.setflags(write=False)
    return [
        GoldenCase(
            function=entry["function"],
            name=entry["name"],
            args=tuple(_decode(arg, arrays) for arg in entry["args"]),
            options={name: _decode(value, arrays) for name, value in entry["options"].items()},
            cotangent=_decode(entry["cotangent"], arrays),
            expected=_decode(entry["expected"], arrays),
            tolerance=Tolerance(**entry["tolerance"]),
            source=entry["source"],
            kind=entry["kind"],
        )
        for entry in content["cases"]
    ]


def _encode(value: Any, key: str, arrays: dict[str, AnyArray]) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and not isinstance(value, np.floating):
        return {"float": value.hex()}
    if isinstance(value, (np.ndarray, np.generic)):
        arrays[key] = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
        if arrays[key].dtype.kind not in "fiub":
            raise ValueError(f"{key}: expected a float, integer or boolean array, got dtype {arrays[key].dtype}")
        return {"array": key}
    if isinstance(value, dict):
        return {"dict": {name: _encode(item, f"{key}.{name}", arrays) for name, item in value.items()}}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encode(item, f"{key}.{i}", arrays) for i, item in enumerate(value)]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        encoded = {name: _encode(item, f"{key}.{name}", arrays) for name, item in fields.items()}
        return {"record": type(value).__name__, "fields": encoded}
    raise ValueError(f"{key}: expected an array, number, string, list, dict or record, got {type(value).__name__}")


def _decode(value: Any, arrays: Mapping[str, AnyArray]) -> Any:
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "float" in value:
        return float.fromhex(value["float"])
    if "dict" in value:
        return {name: _decode(item, arrays) for name, item in value["dict"].items()}
    if "tuple" in value:
        return tuple(_decode(item, arrays) for item in value["tuple"])
    if "list" in value:
        return [_decode(item, arrays) for item in value["list"]]
    return SimpleNamespace(**{name: _decode(item, arrays) for name, item in value["fields"].items()})
