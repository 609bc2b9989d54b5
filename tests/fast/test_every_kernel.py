"""What holds for every function of refnorm_fast, whatever it computes.

The golden cases supply arguments: small, and chosen so that every special case of a function is among them.
"""

from __future__ import annotations

import ctypes
import gc
import inspect
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest

import refnorm
import refnorm_fast
from refnorm.conformance import GoldenCase, load_cases, method_names
from refnorm.tree import tree_leaves, tree_map
from refnorm_fast import _runtime
from tests.fast import support

WITHOUT_REFERENCE = {"models.EncoderOps", "models.Int8EncoderOps", "models.ops"}
"""Parts of the encoder that exist to be fast; tests/fast/test_encoder_ops.py holds them to compositions of the reference."""


def kernels() -> dict[str, Any]:
    found = {}
    for room in refnorm_fast.ROOMS:
        module: ModuleType = getattr(refnorm_fast, room)
        for name in module.__all__:
            found[f"{room}.{name}"] = getattr(module, name)
    return found


KERNELS = kernels()


def reference(name: str) -> Any:
    room, function = name.split(".")
    return getattr(getattr(refnorm, room), function, None)


@cache
def cases_of(name: str) -> list[GoldenCase]:
    room = name.split(".")[0]
    return [
        case
        for method in method_names()
        if method.split("/")[0] == room
        for case in _cases(method)
        if target(case) == name
    ]


_cases = cache(load_cases)


def target(case: GoldenCase) -> str:
    return case.function + ("_vjp" if case.kind == "cotangents" else "")


WITH_CASES = sorted(name for name in KERNELS if cases_of(name))


def call(case: GoldenCase, function: Callable[..., Any]) -> Any:
    if case.kind == "optimizer":
        optimizer = function(**case.options)
        params, gradients = case.args
        state = optimizer.init(params)
        for gradient in gradients:
            params, state = optimizer.step(params, gradient, state)
        return params
    result = function(*case.args, **case.options)
    if case.kind == "cotangents":
        value, pullback = result
        return value, pullback(case.cotangent)
    return result


def fingerprint(result: Any) -> list[tuple[str, bytes]]:
    return [
        (str(np.asarray(leaf).dtype), np.asarray(leaf).tobytes()) for _, leaf in tree_leaves(result) if leaf is not None
    ]


@pytest.mark.parametrize("name", sorted(set(KERNELS) - WITHOUT_REFERENCE))
def test_signature_is_the_references(name: str) -> None:
    assert reference(name) is not None, f"refnorm has no {name}"
    given, wanted = inspect.signature(KERNELS[name]).parameters, inspect.signature(reference(name)).parameters
    shown = [(p.name, p.kind, p.default) for p in given.values() if p.name != "out"]
    assert [entry[:2] for entry in shown] == [(p.name, p.kind) for p in wanted.values()]
    for (_, _, default), parameter in zip(shown, wanted.values(), strict=True):
        if parameter.name != "ops":  # the operations that a whole network runs on: each package's own
            assert default == parameter.default or default is parameter.default, parameter.name
    if "out" in given:
        assert given["out"].kind is inspect.Parameter.KEYWORD_ONLY
        assert given["out"].default is None


def test_list_of_functions_without_reference_is_true() -> None:
    assert {name for name in KERNELS if reference(name) is None} <= WITHOUT_REFERENCE <= set(KERNELS)


@pytest.mark.parametrize("name", WITH_CASES)
def test_arguments_are_left_as_they_are_and_may_be_read_only(name: str) -> None:
    function = KERNELS[name]

    def locked(leaf: Any) -> Any:
        return support.read_only(leaf) if isinstance(leaf, np.ndarray) else leaf

    for case in cases_of(name):
        expected = fingerprint(call(case, function))
        args = [tree_map(locked, argument) for argument in case.args]
        given = replace(case, args=args, cotangent=locked(case.cotangent))
        assert fingerprint(call(given, function)) == expected, case.name


@pytest.mark.parametrize("name", WITH_CASES)
def test_arguments_may_be_misaligned(name: str) -> None:
    """The results are right on most processors even where a kernel reads through a misaligned pointer; a build with
    UndefinedBehaviorSanitizer stops there."""
    function = KERNELS[name]

    def shifted(leaf: Any) -> Any:
        return support.misaligned(leaf) if isinstance(leaf, np.ndarray) and leaf.size else leaf

    for case in cases_of(name):
        args = [tree_map(shifted, argument) for argument in case.args]
        given = replace(case, args=args, cotangent=shifted(case.cotangent))
        for (_, mine), (_, plain) in zip(
            tree_leaves(call(given, function)), tree_leaves(call(case, function)), strict=True
        ):
            # Not always the same bits: an odd layout may be left to the reference.
            precision = 16 * np.finfo(plain.dtype).eps if getattr(plain, "dtype", np.dtype(int)).kind == "f" else 0
            if plain is not None:
                np.testing.assert_allclose(mine, plain, rtol=precision, atol=0, err_msg=case.name)


def everything(seed: int) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Call every kernel on every golden case, in an order of its own."""
    jobs = [(name, case) for name in WITH_CASES for case in cases_of(name)]
    random.Random(seed).shuffle(jobs)
    for name, case in jobs:
        yield f"{name}: {target(case)}: {case.name}", fingerprint(call(case, KERNELS[name]))


def test_eight_python_threads_at_once_get_the_bits_of_one() -> None:
    expected = dict(everything(0))
    with support.threads(2), ThreadPoolExecutor(8) as pool:
        for results in pool.map(lambda seed: dict(everything(seed)), range(1, 9)):
            wrong = [key for key in expected if results[key] != expected[key]]
            assert not wrong


def _in_child(queue: multiprocessing.Queue[list[str]], expected: dict[str, list[tuple[str, bytes]]]) -> None:
    queue.put([key for key, result in everything(1) if result != expected[key]])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_every_kernel_after_fork() -> None:
    with support.threads(2):
        refnorm_fast.softmax.softmax(np.zeros((512, 4096), np.float32))  # the pool of threads exists from here on
        expected = dict(everything(0))
        context = multiprocessing.get_context("fork")
        queue: multiprocessing.Queue[list[str]] = context.Queue()
        child = context.Process(target=_in_child, args=(queue, expected))
        child.start()
        try:
            wrong = queue.get(timeout=120)
        finally:
            child.join(60)
    assert wrong == []
    assert child.exitcode == 0


# ---- memory ------------------------------------------------------------------------------------------------------


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (field, ctypes.c_size_t)
        for field in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def bytes_in_use() -> int:
    """Bytes that malloc has handed out, small and mapped ones, by the C library's own account."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        pytest.skip("this C library does not tell how much memory is in use")
    library.mallinfo2.restype = _Mallinfo
    info = library.mallinfo2()
    return int(info.uordblks + info.hblkhd)


LEAK_CALLS = 300
LEAK_SECONDS = 0.2


@pytest.mark.parametrize("name", WITH_CASES)
def test_calls_leave_no_memory_behind(name: str) -> None:
    """One leaked array of one entry a call, or one leaked reference, would show as tens of kilobytes or hundreds of blocks."""
    function, cases = KERNELS[name], cases_of(name)

    def rounds(count: int) -> int:
        start, done = time.perf_counter(), 0
        while done < count and (done < 50 or time.perf_counter() - start < LEAK_SECONDS):
            call(cases[done % len(cases)], function)
            done += 1
        return done

    rounds(2 * len(cases))
    growth = []
    gc.collect()
    gc.freeze()  # what hundreds of tests have left is not searched again and again
    try:
        for _ in range(3):  # caches of other parts of Python may grow once, a leak grows each time
            gc.collect()
            blocks, used = sys.getallocatedblocks(), bytes_in_use()
            done = rounds(LEAK_CALLS)
            gc.collect()
            growth.append((sys.getallocatedblocks() - blocks, bytes_in_use() - used, done))
            # A fifth of an object or 8 bytes a call, and what an interpreter may do besides in the meantime.
            if growth[-1][0] <= 0.2 * done + 20 and growth[-1][1] <= 8 * done + 4000:
                return
    finally:
        gc.unfreeze()
    pytest.fail(f"blocks and bytes, of so many calls, three times: {growth}")


@pytest.mark.parametrize(
    "call_once",
    [
        lambda x: refnorm_fast.softmax.softmax(x),
        lambda x: refnorm_fast.norms.layer_norm_vjp(x, np.ones(8, np.float32), np.zeros(8, np.float32))[1](x),
        lambda x: refnorm_fast.poincare.exp0(x, 1.0),
        lambda x: refnorm_fast.quantizers.absmax_quantize(x),
    ],
    ids=["softmax", "layer_norm_vjp", "exp0", "absmax_quantize"],
)
def test_a_hundred_thousand_calls_leave_no_memory_behind(call_once: FunctionType) -> None:
    x = np.linspace(-0.1, 0.1, 64, dtype=np.float32).reshape(8, 8)
    for _ in range(1000):
        call_once(x)
    gc.collect()
    blocks, used = sys.getallocatedblocks(), bytes_in_use()
    for _ in range(100_000):
        call_once(x)
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 200
    assert bytes_in_use() - used < 100_000


def test_blocks_kept_for_reuse_are_bounded() -> None:
    _runtime.release_memory()
    for rows in range(100, 900, 50):
        refnorm_fast.softmax.softmax(np.zeros((rows, 4096), np.float32))
    assert _runtime.release_memory() <= 512 << 20
