"""Damage valid files: at random places, and where a reader is likely to trust what it reads."""

from __future__ import annotations

import copy
import io
import json
import random
import zipfile
from typing import Any

ODD_VALUES = (
    None, True, False, -1, 0, 1, 2, 3, 255, 2**31, 2**32, 2**53, 2**63, 2**64, 10**30, -(10**30), 0.5, -0.0, 1e308, 1e-320,
    float("nan"), float("inf"), "", "x", "\0", "é", "../..", "/etc/passwd", "x" * 5000, "0x1p99999", "1e999", [], {}, [[]],
    [None], {"": None}, {"array": "none"}, {"float": "x"}, {"list": 3}, {"record": "R"}, {"fields": {}},
)  # fmt: skip
"""What a JSON value is replaced by."""

ODD_BYTES = (
    b"",
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff" * 8,
    b"\0" * 8,
    b"\n",
    b"{",
    b"}",
    b'"',
    b"[" * 2000,
    b"9" * 30,
)


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    """Return ``content`` with one to three changes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(data) + 1)
        # Headers are short, and what is wrong with them matters most.
        place = min(place, rng.choice((place, 8, 64)))
        length = rng.choice((1, 1, 2, 4, 8, 64, 1024))
        change = rng.randrange(6)
        if change == 0 and data:
            data[place % len(data)] ^= 1 << rng.randrange(8)
        elif change == 1:
            del data[place : place + length]
        elif change == 2:
            data[place:place] = rng.choice(ODD_BYTES)
        elif change == 3:
            piece = rng.choice(ODD_BYTES)
            data[place : place + len(piece)] = piece
        elif change == 4:
            data[place:place] = data[place : place + length]
        else:
            del data[place:]
    return bytes(data)


def damaged_value(rng: random.Random, value: Any) -> Any:
    """Return a JSON value with one to three of its nodes replaced, removed, renamed, copied or buried."""
    whole = [copy.deepcopy(value)]
    for _ in range(rng.randint(1, 3)):
        holder, key = rng.choice(list(_places(whole)))
        change = rng.randrange(7)
        if change < 3:
            holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
        elif change == 3 and holder is not whole:
            del holder[key]
        elif change == 4 and isinstance(holder, dict):
            holder[rng.choice(("x", "array", "type", key + "x"))] = holder.pop(key)
        elif change == 5 and isinstance(holder[key], int) and not isinstance(holder[key], bool):
            holder[key] += rng.choice((-1, 1, 2**31, 2**62))
        elif change == 6:
            for _ in range(rng.choice((1, 50, 3000))):
                holder[key] = [holder[key]]
    return whole[0]


def _places(root: Any) -> Any:
    stack = [root]
    while stack:
        node = stack.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in items:
            yield node, key
            if isinstance(child, (dict, list)):
                stack.append(child)


def damaged_json(rng: random.Random, content: bytes) -> bytes:
    """Return the file with damaged values, or with damaged bytes."""
    if rng.random() < 0.25:
        return damaged_bytes(rng, content)
    return dumped(damaged_value(rng, json.loads(content)))


def dumped(value: Any) -> bytes:
    """Write JSON that may be nested deeper than the standard encoder goes."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        depth = 5000
        return b"[" * depth + b"]" * depth


def damaged_safetensors(rng: random.Random, content: bytes) -> bytes:
    """Return the file with a damaged header whose length is right, or with damaged bytes."""
    if rng.random() < 0.4:
        return damaged_bytes(rng, content)
    length = int.from_bytes(content[:8], "little")
    header = dumped(damaged_value(rng, json.loads(content[8 : 8 + length])))
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def damaged_npz(rng: random.Random, content: bytes) -> bytes:
    """Return the archive with a damaged array, a missing or an added one, or with damaged bytes."""
    if rng.random() < 0.4:
        return damaged_bytes(rng, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    change = rng.randrange(4)
    if change == 0:
        del members[name]
    elif change == 1:
        members[rng.choice(("x", "../x.npy", name + "x"))] = members[name]
    elif change == 2:
        text = members[name]
        for old, new in rng.sample(HEADER_CHANGES, 2):
            text = text.replace(old, new, 1)
        members[name] = text
    else:
        members[name] = damaged_bytes(rng, members[name])
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target.getvalue()


HEADER_CHANGES = (
    (b"<f8", b"|O8"), (b"<f8", b"<M8"), (b"<f8", b"<U2"), (b"<f8", b">f8"), (b"<f4", b"<c8"), (b"<f8", b"<f9"),
    (b"(", b"(999999999999, "), (b"(", b"(-1, "), (b"(", b"(1.5, "), (b"shape", b"shade"), (b"False", b"True "),
    (b"descr", b"desks"), (b"\x93NUMPY\x01", b"\x93NUMPY\x03"), (b"\x93NUMPY", b"\x80\x04NUMP"), (b"'<f8'", b"[('a','<f8')]"),
)  # fmt: skip
"""What is exchanged in the header of a ``.npy`` file."""
