"""Compile the Mojo sources of this folder into a shared library, once for each source, compiler and processor."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from refnorm._typing import AnyArray

KERNELS = Path(__file__).parent / "kernels"
ROOT = "refnorm_kernels.mojo"
"""The source that exports the functions; it imports the others."""

# Contraction would turn the rounding errors that the Poincare kernel carries along into something else.
FLAGS = ("--emit", "shared-lib", "--fp-mode", "contract=off")

_lock = threading.Lock()


def find_compiler() -> str | None:
    """Return the path of the Mojo compiler of this environment, or else of ``PATH``; None if there is none."""
    return shutil.which("mojo", path=sysconfig.get_path("scripts")) or shutil.which("mojo")


def cache_folder() -> Path:
    """Return the folder of compiled libraries: ``REFNORM_CACHE``, or ``refnorm`` in the user's cache folder."""
    given = os.environ.get("REFNORM_CACHE")
    if given:
        return Path(given) / "mojo"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refnorm" / "mojo"


def library_path() -> Path:
    """Return the compiled library's path, compiling it if it does not exist yet.

    Raises
    ------
    ImportError
        If there is no Mojo compiler.
    RuntimeError
        If the compiler fails; the message has what it said.
    """
    compiler = find_compiler()
    if compiler is None:
        raise ImportError(
            'refnorm_fast.mojo: no Mojo compiler was found; `pip install "refnorm[mojo]"` installs one',
            name="refnorm_fast.mojo",
        )
    target = cache_folder() / f"librefnorm-{_key(compiler)}.so"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place and then renamed: whoever else builds at the same time replaces like with like.
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            _run(compiler, "build", *FLAGS, "-o", str(made), str(KERNELS / ROOT))
            made.replace(target)
    return target


def _key(compiler: str) -> str:
    digest = hashlib.sha256()
    for part in (_run(compiler, "--version"), _run(compiler, "build", "--print-effective-target"), " ".join(FLAGS)):
        digest.update(part.encode() + b"\0")
    for source in sorted(KERNELS.glob("*.mojo")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:24]


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"refnorm_fast.mojo: {' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return done.stdout


@functools.cache
def _load() -> ctypes.CDLL:
    return ctypes.CDLL(str(library_path()))


def library() -> ctypes.CDLL:
    """Return the loaded library; the first call in a process may compile it (see :func:`library_path`)."""
    with _lock:
        return _load()


def call(name: str, *arguments: AnyArray | int | float) -> None:
    """Call an exported function: arrays by address, integers as sizes, floats as float64."""
    converted: list[Any] = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            converted.append(ctypes.c_void_p(argument.ctypes.data))
        elif isinstance(argument, int):
            converted.append(ctypes.c_ssize_t(argument))
        else:
            converted.append(ctypes.c_double(argument))
    function = getattr(library(), name)
    function.restype = None
    function(*converted)


def suffix(x: AnyArray) -> str:
    """Return the end of an exported function's name for the dtype of ``x``."""
    return "_f32" if x.dtype == np.float32 else "_f64"


def in_order(x: AnyArray) -> AnyArray:
    """Return ``x``, or a copy of it, with its entries side by side and aligned."""
    return np.require(x, requirements=("C_CONTIGUOUS", "ALIGNED"))
