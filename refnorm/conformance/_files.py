"""Reading and writing golden cases; whatever is wrong with a file is a ``ValueError`` that names it.

The files are read with care because they may come from anywhere: no pickles, no array larger than its file says
and no file larger than :data:`LARGEST`.
"""

from __future__ import annotations

import io
import json
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._names import got
from refnorm._typing import AnyArray
from refnorm.conformance._cases import GoldenCase, Tolerance
from refnorm.conformance._values import decode, encode

GOLDEN_ROOT = Path(__file__).parent / "golden"
SCHEMA = 1
MOST_DIMENSIONS = 16
LARGEST = 1 << 28
"""Bytes of a manifest or of all arrays of a method, unpacked; the largest here has a thousandth of it."""


def method_names(root: Path = GOLDEN_ROOT) -> list[str]:
    """Return the names ``"room/method"`` that have golden vectors."""
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.glob("*/*.json"))


def function_names(root: Path = GOLDEN_ROOT, methods: Iterable[str] | None = None) -> list[str]:
    """Return the names that golden cases exist for: ``"norms.layer_norm"``, ``"norms.layer_norm_vjp"``, ...

    Parameters
    ----------
    methods
        ``["norms/layer_norm", ...]``; all by default.
    """
    found = set()
    for method in method_names(root) if methods is None else methods:
        for entry in _entries(root / f"{method}.json", method):
            found.add(f"{entry.get('function')}{'_vjp' if entry.get('kind') == 'cotangents' else ''}")
    return sorted(found)


def encode_cases(method: str, cases: Sequence[GoldenCase]) -> tuple[list[dict[str, Any]], dict[str, AnyArray]]:
    """Return the manifest's entries and the arrays that they refer to.

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
                "args": [encode(arg, f"{key}.args.{i}", arrays) for i, arg in enumerate(case.args)],
                "options": {n: encode(v, f"{key}.options.{n}", arrays) for n, v in case.options.items()},
                "cotangent": encode(case.cotangent, f"{key}.cotangent", arrays),
                "expected": encode(case.expected, f"{key}.expected", arrays),
                "tolerance": {"limit": case.tolerance.limit, "rule": case.tolerance.rule},
                "source": case.source,
            }
        )
    names = [(case.function, case.name, case.kind) for case in cases]
    if len(set(names)) != len(names):
        raise ValueError(f"{method}: expected distinct case names, got {sorted(names)}")
    return entries, arrays


def decode_cases(entries: Sequence[Any], arrays: Mapping[str, AnyArray], file: str) -> list[GoldenCase]:
    """Return the cases that a manifest's entries describe.

    Raises
    ------
    ValueError
        If an entry is not what :func:`encode_cases` writes; the message begins with ``file``.
    """
    found = []
    for number, entry in enumerate(entries):
        where = f"{file}: case {number}"
        try:
            found.append(
                GoldenCase(
                    function=_text(entry, "function"),
                    name=_text(entry, "name"),
                    args=tuple(decode(arg, arrays, f"args.{i}") for i, arg in enumerate(_typed(entry, "args", list))),
                    options={n: decode(v, arrays, f"options.{n}") for n, v in _typed(entry, "options", dict).items()},
                    cotangent=decode(entry.get("cotangent"), arrays, "cotangent"),
                    expected=decode(entry.get("expected"), arrays, "expected"),
                    tolerance=_tolerance(_typed(entry, "tolerance", dict)),
                    source=_text(entry, "source"),
                    kind=_text(entry, "kind"),
                )
            )
        except ValueError as error:
            raise ValueError(f"{where}: {_checks.reason(error)}") from None
    return found


def save_cases(method: str, cases: Sequence[GoldenCase], root: Path = GOLDEN_ROOT) -> tuple[Path, Path]:
    """Write ``root/method.json`` and ``root/method.npz``; both are replaced only when both are whole.

    Raises
    ------
    ValueError
        If two cases share a name or a value cannot be stored.
    """
    entries, arrays = encode_cases(method, cases)
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
        If there are none of that name, or the files are damaged or were written by an unknown schema.
    """
    manifest = root / f"{method}.json"
    if not manifest.is_file():
        raise ValueError(f"method: expected a method with golden vectors, got {got(method, method_names(root))}")
    arrays = _read_archive(manifest.with_suffix(".npz"))
    for array in arrays.values():
        array.setflags(write=False)
    return decode_cases(_entries(manifest, method), arrays, manifest.name)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    ValueError
        If the file is missing, too large, or holds something else.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path.name}: expected at most {LARGEST} bytes, got {path.stat().st_size}")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path.name}: expected JSON, got: {_checks.reason(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: expected a JSON object, got {type(content).__name__}")
    return content


def _entries(manifest: Path, method: str) -> list[Any]:
    content = read_json(manifest)
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{manifest.name}: expected schema {SCHEMA}, got {content.get('schema')!r:.80}")
    cases = content.get("cases")
    if not isinstance(cases, list) or not all(isinstance(entry, dict) for entry in cases):
        raise ValueError(f"{manifest.name}: cases: expected a list of objects")
    return cases


def _read_archive(path: Path) -> dict[str, AnyArray]:
    """Read an ``.npz`` file, trusting none of the sizes that it states."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if size > LARGEST:
                raise zipfile.BadZipFile(f"{size} bytes of arrays, more than {LARGEST}")
            if not {member.compress_type for member in members} <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise zipfile.BadZipFile("an unusual compression")
            contents = {member.filename: archive.read(member) for member in members}
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        LookupError,
        ValueError,
    ) as error:
        raise ValueError(f"{path.name}: expected a whole .npz file, got: {_checks.reason(error)}") from None
    return {name.removesuffix(".npy"): _read_array(part, f"{path.name}: {name}") for name, part in contents.items()}


def _read_array(content: bytes, where: str) -> AnyArray:
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"format version {version}")
        shape, column_order, dtype = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ValueError(f"{where}: expected an array in NumPy's format, got: {_checks.reason(error)}") from None
    return array_of(content[stream.tell() :], dtype, shape, where, order="F" if column_order else "C")


def array_of(content: bytes, dtype: Any, shape: Sequence[int], where: str, order: Any = "C") -> AnyArray:
    """Return the array that ``content`` holds.

    Raises
    ------
    ValueError
        If the dtype is not plain, or the length is not that of the shape.
    """
    if dtype.kind not in "fiub" or dtype.fields is not None:
        raise ValueError(f"{where}: expected a float, integer or boolean array, got dtype {dtype}")
    if len(shape) > MOST_DIMENSIONS or not all(0 <= size <= LARGEST for size in shape):
        raise ValueError(
            f"{where}: expected at most {MOST_DIMENSIONS} sizes from 0 to {LARGEST}, got shape {tuple(shape)!r:.80}"
        )
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"{where}: expected {dtype} of shape {tuple(shape)!r:.80}, got {len(content)} bytes")
    if dtype.kind == "b" and not set(content) <= {0, 1}:
        raise ValueError(f"{where}: expected bytes 0 and 1 in a boolean array, got others")
    return np.frombuffer(content, dtype).reshape(tuple(shape), order=order)


def _typed(entry: Mapping[str, Any], name: str, kind: type) -> Any:
    value = entry.get(name)
    if not isinstance(value, kind):
        raise ValueError(f"{name}: expected {kind.__name__}, got {value!r:.80}")
    return value


def _text(entry: Mapping[str, Any], name: str) -> str:
    value = _typed(entry, name, str)
    if name == "function" and value.count(".") != 1:
        raise ValueError(f"{name}: expected room.function, got {value!r:.80}")
    return str(value)


def _tolerance(entry: Mapping[str, Any]) -> Tolerance:
    limit = entry.get("limit")
    if isinstance(limit, bool) or not isinstance(limit, (int, float)):
        raise ValueError(f"tolerance: limit: expected a number, got {limit!r:.80}")
    try:
        return Tolerance(limit, _text(entry, "rule"))
    except (TypeError, OverflowError):
        raise ValueError(f"tolerance: limit: expected a finite number > 0, got {limit!r:.80}") from None
