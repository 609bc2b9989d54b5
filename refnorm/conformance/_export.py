"""Golden vectors as a folder that a program in any language can read, and the way back.

The folder's README and :doc:`/use/conformance` in the book describe the format.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import refnorm
from refnorm import _checks
from refnorm._names import got
from refnorm._typing import AnyArray
from refnorm.conformance._cases import GoldenCase
from refnorm.conformance._files import (
    LARGEST,
    array_of,
    decode_cases,
    encode_cases,
    load_cases,
    method_names,
    read_json,
)
from refnorm.conformance._version import FORMAT, FORMAT_VERSION, VECTORS_VERSION

SCHEMA_FILE = Path(__file__).parent / "schema.json"
README_FILE = Path(__file__).parent / "export_readme.md"
SAFETENSORS = {
    "float16": "F16", "float32": "F32", "float64": "F64", "int8": "I8", "int16": "I16", "int32": "I32",
    "int64": "I64", "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64", "bool": "BOOL",
}  # fmt: skip
"""Names of dtypes in NumPy and in a safetensors header."""


def export_vectors(
    directory: str | os.PathLike[str],
    *,
    methods: Sequence[str] | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write the golden vectors as a folder that programs in other languages read.

    Parameters
    ----------
    directory
        Is made, whole or not at all; one that exists has to be empty.
    methods
        ``["norms/layer_norm", ...]``; all by default.
    overwrite
        Replace a folder that was exported before.
    progress
        Called with each method's name before it is written.

    Returns
    -------
    dict
        The content of ``index.json``.

    Raises
    ------
    ValueError
        If a method has no golden vectors, or ``directory`` holds anything but an earlier export.
    OSError
        If the folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     index = export_vectors(folder, methods=["norms/layer_norm"])
    >>> index["methods"][0]["cases"]
    17
    """
    target = Path(directory).resolve()
    known = method_names()
    for method in methods or ():
        if method not in known:
            raise ValueError(f"methods: expected methods with golden vectors, got {got(method, known)}")
    _check_target(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.part-") as part:
        folder = Path(part) / "export"
        folder.mkdir()
        index = _write(folder, sorted(set(methods or known)), progress)
        if target.exists():
            # What was there goes into the folder that is removed in the end.
            os.replace(target, Path(part) / "before")
        os.replace(folder, target)
    return index


def load_exported(directory: str | os.PathLike[str]) -> dict[str, list[GoldenCase]]:
    """Read a folder that :func:`export_vectors` wrote.

    Returns
    -------
    dict
        Cases by method.

    Raises
    ------
    ValueError
        If the folder is not such an export, is damaged, or was written in a format that is not known here.
    """
    root = Path(directory)
    index = read_json(root / "index.json")
    if index.get("format") != FORMAT or index.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"index.json: expected format {FORMAT}, version {FORMAT_VERSION}, "
            f"got {index.get('format')!r:.80}, version {index.get('format_version')!r:.80}"
        )
    entries = index.get("methods")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("index.json: methods: expected a list of objects")
    return {_checked_method(entry): _read_method(root, entry) for entry in entries}


def compare_exported(directory: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Tell what changed between an earlier export and this package's vectors.

    Returns
    -------
    dict
        Names of cases (``"norms/layer_norm: norms.layer_norm: hand calculation"``) under ``"added"``, ``"removed"``
        and ``"changed"`` (other arguments, expected values or tolerance).
    """
    before, after = _digests(load_exported(directory)), _digests({m: load_cases(m) for m in method_names()})
    return {
        "added": sorted(after.keys() - before.keys()),
        "removed": sorted(before.keys() - after.keys()),
        "changed": sorted(name for name in before.keys() & after.keys() if before[name] != after[name]),
    }


def _digests(vectors: Mapping[str, Sequence[GoldenCase]]) -> dict[str, str]:
    found = {}
    for method, cases in vectors.items():
        for case in cases:
            (entry,), arrays = encode_cases(method, [case])
            content = {name: value for name, value in entry.items() if name not in ("name", "source")}
            digest = hashlib.sha256(json.dumps(_without_class_names(content), sort_keys=True).encode())
            for name in sorted(arrays):
                digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + arrays[name].tobytes())
            found[f"{method}: {case.target}: {case.name}"] = digest.hexdigest()
    return found


def _without_class_names(value: Any) -> Any:
    """Drop the classes of records, which no implementation sees and which an export does not bring back."""
    if isinstance(value, dict):
        return {name: _without_class_names(item) for name, item in value.items() if name != "record"}
    return [_without_class_names(item) for item in value] if isinstance(value, list) else value


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise ValueError(f"directory: expected a folder or a name that is free, got a file: {target}")
    if not target.is_dir() or not any(target.iterdir()):
        return
    try:
        ours = read_json(target / "index.json").get("format") == FORMAT
    except ValueError:
        ours = False
    if not ours:
        raise ValueError(f"directory: expected an empty folder or an earlier export, got other files: {target}")
    if not overwrite:
        raise ValueError(f"directory: expected an empty folder, or overwrite, got an earlier export: {target}")


def _write(folder: Path, methods: Sequence[str], progress: Callable[[str], None] | None) -> dict[str, Any]:
    listed, functions = [], {}
    rows = ["function\tcase\trole\ttype\tshape\tfile\tvalue"]
    for method in methods:
        if progress:
            progress(method)
        cases = load_cases(method)
        entries, arrays = encode_cases(method, cases)
        data = f"{method}.safetensors"
        (folder / method).parent.mkdir(exist_ok=True)
        places = _write_safetensors(folder / data, arrays)
        portable = [_portable_entry(entry, places) for entry in entries]
        for number, (case, entry) in enumerate(zip(cases, portable, strict=True)):
            functions[case.target] = parameters = _parameters(case)
            rows += ["\t".join(row) for row in _rows(case.target, number, entry, parameters, data)]
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, "method": method, "data": data}
        _write_json(folder / f"{method}.json", content | {"cases": portable})
        files = {name: _sha256(folder / name) for name in (f"{method}.json", data)}
        listed.append({"method": method, "file": f"{method}.json", "data": data, "cases": len(cases), "sha256": files})
    index = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "vectors_version": VECTORS_VERSION,
        "refnorm": refnorm.__version__,
        "methods": listed,
        "functions": {name: functions[name] for name in sorted(functions)},
    }
    _write_json(folder / "index.json", index)
    (folder / "values.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    shutil.copyfile(SCHEMA_FILE, folder / "schema.json")
    shutil.copyfile(README_FILE, folder / "README.md")
    return index


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _parameters(case: GoldenCase) -> list[str]:
    """Return the names of the positional arguments, as the reference calls them."""
    if case.kind == "optimizer":
        return ["params", "gradients"]
    room, name = case.target.split(".")
    signature = inspect.signature(getattr(importlib.import_module(f"refnorm.{room}"), name))
    return [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]


def _write_safetensors(path: Path, arrays: Mapping[str, AnyArray]) -> dict[str, dict[str, Any]]:
    """Write the arrays back to back, the widest items first so that each is aligned; return where each one is."""
    ordered = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header, position = {}, 0
    for name in ordered:
        array = arrays[name]
        end = position + array.nbytes
        dtype = SAFETENSORS[array.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            stream.write(arrays[name].tobytes())
    return {
        name: {
            "array": name,
            "dtype": arrays[name].dtype.name,
            "shape": list(arrays[name].shape),
            "offset": start + header[name]["data_offsets"][0],
        }
        for name in ordered
    }


def _portable_entry(entry: Mapping[str, Any], places: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    return dict(entry) | {
        "args": [_portable(value, places) for value in entry["args"]],
        "options": {name: _portable(value, places) for name, value in entry["options"].items()},
        "cotangent": _portable(entry["cotangent"], places),
        "expected": _portable(entry["expected"], places),
    }


def _portable(value: Any, places: Mapping[str, dict[str, Any]]) -> Any:
    """Say of each array what it is and where, and write floats as decimals: not every language reads hexadecimal."""
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return places[value["array"]]
    if "float" in value:
        return {"float": repr(float.fromhex(value["float"]))}
    form = next(form for form in ("dict", "tuple", "list", "fields") if form in value)
    content = value[form]
    inner: Any = (
        {name: _portable(item, places) for name, item in content.items()}
        if isinstance(content, dict)
        else [_portable(item, places) for item in content]
    )
    return value | {form: inner}


def _rows(
    target: str, number: int, entry: Mapping[str, Any], parameters: Sequence[str], data: str
) -> Iterator[list[str]]:
    """Yield a line of ``values.tsv`` for everything about a case: the same as the JSON, without nesting."""

    def line(role: str, kind: str, shape: str = "", file: str = "", value: object = "") -> list[str]:
        text = " ".join(str(value).split()) if kind == "text" else str(value)
        return [target, str(number), role, kind, shape, file, text]

    def leaves(role: str, value: Any) -> Iterator[list[str]]:
        if isinstance(value, dict):
            if "array" in value:
                shape = ",".join(map(str, value["shape"]))
                yield line(role, value["dtype"], shape, data, value["offset"])
            elif "float" in value:
                yield line(role, "number", value=value["float"])
            else:
                inner = next(value[form] for form in ("dict", "tuple", "list", "fields") if form in value)
                for name, item in inner.items() if isinstance(inner, dict) else enumerate(inner):
                    yield from leaves(f"{role}.{name}", item)
        elif value is None or isinstance(value, bool):
            yield line(role, "none" if value is None else "bool", value="" if value is None else str(value).lower())
        else:
            yield line(role, "integer" if isinstance(value, int) else "text", value=value)

    yield line("name", "text", value=entry["name"])
    yield line("kind", "text", value=entry["kind"])
    yield line("tolerance", "number", value=entry["tolerance"]["limit"])
    yield line("rule", "text", value=entry["tolerance"]["rule"])
    for position, value in enumerate(entry["args"]):
        name = parameters[position] if position < len(parameters) else str(position)
        yield from leaves(f"args.{name}", value)
    for name, value in entry["options"].items():
        yield from leaves(f"options.{name}", value)
    if entry["cotangent"] is not None:
        yield from leaves("cotangent", entry["cotangent"])
    yield from leaves("expected", entry["expected"])


def _checked_method(entry: Mapping[str, Any]) -> str:
    name = entry.get("method")
    parts = name.split("/") if isinstance(name, str) else []
    # The name becomes a path: it must not lead out of the folder.
    if len(parts) != 2 or not all(part.isidentifier() for part in parts):
        raise ValueError(f"index.json: method: expected room/method, got {name!r:.80}")
    return str(name)


def _read_method(root: Path, entry: Mapping[str, Any]) -> list[GoldenCase]:
    method = _checked_method(entry)
    content = read_json(root / f"{method}.json")
    cases = content.get("cases")
    if content.get("method") != method or not isinstance(cases, list) or not all(isinstance(c, dict) for c in cases):
        raise ValueError(f"{method}.json: expected the cases of {method}, got something else")
    if len(cases) != entry.get("cases"):
        raise ValueError(f"{method}.json: expected {entry.get('cases')!r:.80} cases, got {len(cases)}")
    digests = entry.get("sha256")
    for name in (f"{method}.json", f"{method}.safetensors"):
        if not isinstance(digests, dict) or digests.get(name) != _digest_of(root / name):
            raise ValueError(f"{name}: expected the content that index.json has a digest of, got another one")
    return decode_cases(cases, read_safetensors(root / f"{method}.safetensors"), f"{method}.json")


def _digest_of(path: Path) -> str:
    try:
        return _sha256(path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None


def read_safetensors(path: Path) -> dict[str, AnyArray]:
    """Read a safetensors file of at most 256 MiB.

    Raises
    ------
    ValueError
        If it is damaged.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path.name}: expected at most {LARGEST} bytes, got {path.stat().st_size}")
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise ValueError(f"{path.name}: expected a header of {length} bytes, got a file of {len(content)}")
    try:
        header = json.loads(content[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: expected a JSON header, got: {_checks.reason(error)}") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path.name}: expected a JSON object as header, got {type(header).__name__}")
    body = memoryview(content)[8 + length :]
    names = {code: name for name, code in SAFETENSORS.items()}
    found = {}
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        where = f"{path.name}: {name:.80}"
        dtype, shape, offsets = (_member(tensor, key) for key in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str) or dtype not in names:
            raise ValueError(f"{where}: expected dtype one of {', '.join(names)}, got {dtype!r:.80}")
        if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2 or offsets[1] > len(body):
            raise ValueError(
                f"{where}: expected a shape and two offsets in the file, got {shape!r:.80}, {offsets!r:.80}"
            )
        part = bytes(body[offsets[0] : offsets[1]])
        array = array_of(part, np.dtype(names[dtype]).newbyteorder("<"), shape, where)
        found[name] = array
    return found


def _member(tensor: Any, key: str) -> Any:
    return tensor.get(key) if isinstance(tensor, dict) else None


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)
