"""The Mojo kernels against the golden values and the reference, and how they are compiled."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refnorm.norms
import refnorm.poincare
import refnorm.quantizers
import refnorm.softmax
import refnorm_fast
from refnorm.conformance import format_table, run
from refnorm.poincare._numerics import EXACT_GAP, gap
from refnorm_fast import mojo
from refnorm_fast.mojo import _build
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]

needs_compiler = pytest.mark.skipif(mojo.find_compiler() is None, reason="no Mojo compiler is installed")

FUNCTIONS: dict[str, Callable[..., AnyArray]] = {
    "softmax.softmax": mojo.softmax.softmax,
    "norms.layer_norm": mojo.norms.layer_norm,
    "quantizers.int8_matmul": mojo.quantizers.int8_matmul,
    "poincare.fully_connected": mojo.poincare.fully_connected,
}


@pytest.fixture(scope="module", autouse=True)
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compile into a folder of the tests, not the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFNORM_CACHE", str(tmp_path_factory.mktemp("cache")))
        if mojo.find_compiler() is not None:
            mojo.library()
        yield


def worst_ulp(y: AnyArray, expected: AnyArray) -> float:
    unit = np.spacing(np.abs(expected).astype(y.dtype)).astype(np.longdouble)
    error = np.abs(y - expected) / unit
    assert (np.isnan(y) == np.isnan(expected)).all()
    return float(np.nanmax(error, initial=0.0))


def same_error(name: str, *arguments: Any, **options: Any) -> None:
    room, function = name.split(".")
    reference = getattr(getattr(refnorm, room), function)
    with pytest.raises((TypeError, ValueError)) as wanted:
        reference(*arguments, **options)
    with pytest.raises(wanted.type) as found:
        FUNCTIONS[name](*arguments, **options)
    assert str(found.value) == str(wanted.value)


@needs_compiler
def test_golden_values() -> None:
    outcomes = run(FUNCTIONS)
    assert {outcome.function for outcome in outcomes} == set(FUNCTIONS)
    assert all(outcome.passed for outcome in outcomes), "\n" + format_table(outcomes)


# ---- softmax ----------------------------------------------------------------------------------------------------------


# The worst rows are those whose sum is one large entry and many small ones.
SOFTMAX_ULP = {np.float32: 3.0, np.float64: 6.0}


def exact_softmax(x: AnyArray, axis: int = -1) -> AnyArray:
    wide = x.astype(np.longdouble)
    with np.errstate(invalid="ignore"):
        e = np.exp(wide - wide.max(axis=axis, keepdims=True))
    result: AnyArray = e / e.sum(axis=axis, keepdims=True)
    return result


def check_softmax(x: AnyArray, message: str = "", **options: Any) -> None:
    y = mojo.softmax.softmax(x, **options)
    assert y.dtype == x.dtype
    assert y.shape == x.shape
    assert y.flags.c_contiguous
    assert worst_ulp(y, exact_softmax(x, **options)) <= SOFTMAX_ULP[x.dtype.type], message


@needs_compiler
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_softmax_of_every_tail(dtype: type) -> None:
    rng = np.random.default_rng(0)
    for length in support.TAILS[1:]:
        guarded = np.full((5, length + 2), np.nan, dtype)  # neighbours that must not be read
        guarded[:, 1:-1] = 5 * rng.normal(size=(5, length))
        check_softmax(guarded[:, 1:-1], f"length {length}")


@needs_compiler
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("length", [1000, 4097, 100003])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 5.0, 30.0, 3000.0])
def test_softmax_of_long_rows(length: int, scale: float, dtype: type) -> None:
    check_softmax((scale * np.random.default_rng(0).normal(size=(3, length))).astype(dtype))


@needs_compiler
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_softmax_of_hostile_numbers(dtype: type) -> None:
    rng = np.random.default_rng(1)
    largest = np.finfo(dtype).max
    pool = np.array(
        [*support.HOSTILE, -np.inf, 9999.0, 10001.0, -9999.0, -10001.0, 1e8, 1e8 + 8, -1e9, largest, -largest]
    )
    for length in (1, 2, 7, 64, 200):
        check_softmax(rng.choice(pool, size=(300, length)).astype(dtype), f"length {length}")
    # The last digits of results that are subnormal or nearly so.
    check_softmax(np.linspace(0, -110 if dtype == np.float32 else -760, 1001).astype(dtype)[None])


@needs_compiler
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_softmax_of_nan_and_infinity_spoils_one_row(dtype: type) -> None:
    x = np.random.default_rng(2).normal(size=(40, 37)).astype(dtype)
    for row, value in enumerate((np.nan, np.inf, -np.inf)):
        for column in (0, 16, 36):
            x[3 * row + column % 3, column] = value
    x[20] = -np.inf
    y = mojo.softmax.softmax(x)
    expected = refnorm.softmax.softmax(x)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    assert np.isnan(y).any(axis=1).sum() == np.isnan(expected).any(axis=1).sum() > 2
    np.testing.assert_array_equal(y == 0, expected == 0)
    np.testing.assert_array_equal(mojo.softmax.softmax(x[30:]), y[30:])


@needs_compiler
def test_softmax_layouts_axes_and_algorithms() -> None:
    x = np.random.default_rng(3).normal(size=(6, 5, 40)).astype(np.float32)
    for name, same in support.layouts(x).items():
        straight = mojo.softmax.softmax(np.ascontiguousarray(same))
        np.testing.assert_array_equal(mojo.softmax.softmax(same), straight, err_msg=name)
    for axis in (-3, 0, 1, 2):
        check_softmax(x, axis=axis)
    np.testing.assert_array_equal(
        mojo.softmax.softmax(x, algorithm="online"), refnorm.softmax.softmax(x, algorithm="online")
    )
    assert mojo.softmax.softmax(x[:0]).shape == (0, 5, 40)


def test_softmax_errors() -> None:
    x = np.zeros((2, 3), np.float32)
    same_error("softmax.softmax", np.zeros(3, int))
    same_error("softmax.softmax", np.float32(1))
    same_error("softmax.softmax", x, axis=2)
    same_error("softmax.softmax", x[:, :0])
    same_error("softmax.softmax", x, algorithm="fast")


@needs_compiler
@given(st.integers(1, 9), st.integers(1, 300), st.integers(0, 2**32), st.floats(-5, 5))
def test_softmax_of_random_shapes(rows: int, length: int, seed: int, magnitude: float) -> None:
    x = 10.0**magnitude * np.random.default_rng(seed).normal(size=(rows, length))
    check_softmax(x.astype(np.float32))


# ---- layer norm -------------------------------------------------------------------------------------------------------


def check_layer_norm(x: AnyArray, gain: AnyArray, bias: AnyArray, message: str = "", **options: Any) -> None:
    y = mojo.norms.layer_norm(x, gain, bias, **options)
    assert y.dtype == x.dtype
    assert y.shape == x.shape
    expected = refnorm.norms.layer_norm(*(a.astype(np.float64) for a in (x, gain, bias)), **options)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected), err_msg=message)
    unit = np.finfo(x.dtype).eps * max(1.0, float(np.nanmax(np.abs(expected), initial=0)))
    tolerance = (2 if x.dtype == np.float32 else 64) * unit
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance, err_msg=message)


@needs_compiler
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_layer_norm_of_every_tail(dtype: type) -> None:
    rng = np.random.default_rng(0)
    for length in support.TAILS[1:]:
        guarded = np.full((5, length + 2), np.nan, dtype)
        guarded[:, 1:-1] = rng.normal(size=(5, length)) + 3
        gain, bias = rng.normal(size=(2, length)).astype(dtype)
        check_layer_norm(guarded[:, 1:-1], gain, bias, f"length {length}")


@needs_compiler
@pytest.mark.parametrize("offset", [0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("length", [2, 10, 768, 40000])
def test_layer_norm_with_a_common_offset(length: int, offset: float) -> None:
    x = (np.random.default_rng(length).normal(size=(3, length)) + offset).astype(np.float32)
    check_layer_norm(x, np.ones(length, np.float32), np.zeros(length, np.float32))


@needs_compiler
@pytest.mark.parametrize("scale", [1e-30, 1e-16, 1e15, 1e30])
def test_layer_norm_of_tiny_and_huge_numbers(scale: float) -> None:
    x = (scale * np.random.default_rng(0).normal(size=(4, 100))).astype(np.float32)
    x[0, :16] *= 1e7
    check_layer_norm(x, np.ones(100, np.float32), np.zeros(100, np.float32), eps=1e-300)


@needs_compiler
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_layer_norm_of_nan_and_infinity_spoils_one_row(dtype: type) -> None:
    x = np.random.default_rng(2).normal(size=(40, 37)).astype(dtype)
    x[[3, 5, 7], [0, 16, 36]] = np.nan, np.inf, -np.inf
    gain, bias = np.random.default_rng(3).normal(size=(2, 37)).astype(dtype)
    with np.errstate(invalid="ignore"):
        check_layer_norm(x, gain, bias)
    assert np.isnan(mojo.norms.layer_norm(x, gain, bias)).all(axis=1).nonzero()[0].tolist() == [3, 5, 7]


@needs_compiler
def test_layer_norm_layouts_and_axes() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(6, 5, 40)).astype(np.float32)
    for axes in ((-1,), (-2, -1), (0, 1, 2)):
        gain, bias = rng.normal(size=(2, *x.shape[-len(axes) :])).astype(np.float32)
        check_layer_norm(x, gain, bias, axes=axes)
        for name, same in support.layouts(x).items():
            straight = mojo.norms.layer_norm(np.ascontiguousarray(same), gain, bias, axes=axes)
            found = mojo.norms.layer_norm(same, np.asfortranarray(gain), bias, axes=axes)
            np.testing.assert_array_equal(found, straight, err_msg=name)
    assert mojo.norms.layer_norm(x[:0], gain[0, 0], bias[0, 0]).shape == (0, 5, 40)


def test_layer_norm_errors() -> None:
    x, one = np.zeros((2, 3), np.float32), np.ones(3, np.float32)
    same_error("norms.layer_norm", np.zeros(3, int), one, one)
    same_error("norms.layer_norm", x, one.astype(np.float64), one)
    same_error("norms.layer_norm", x, one[:2], one)
    same_error("norms.layer_norm", x, one, one, axes=(0,))
    same_error("norms.layer_norm", x[:, :0], one[:0], one[:0])
    same_error("norms.layer_norm", x, one, one, eps=0.0)


# ---- int8 -------------------------------------------------------------------------------------------------------------


def check_int8(a: AnyArray, b: AnyArray, message: str = "") -> None:
    c = mojo.quantizers.int8_matmul(a, b)
    assert c.dtype == np.int32
    np.testing.assert_array_equal(c, a.astype(np.int64) @ b.astype(np.int64).T, err_msg=message)


@needs_compiler
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("width", [0, 1, 5, 8])
def test_int8_matmul_of_every_tail(rows: int, width: int) -> None:
    rng = np.random.default_rng(0)
    for depth in support.TAILS:
        codes = rng.integers(-127, 128, (rows + width, depth)).astype(np.int8)
        check_int8(codes[:rows], codes[rows:], f"depth {depth}")


@needs_compiler
@pytest.mark.parametrize("sign", [1, -1])
def test_int8_matmul_of_the_largest_sums(sign: int) -> None:
    a, b = np.full((5, 133144), 127, np.int8), np.full((6, 133144), sign * 127, np.int8)
    check_int8(a, b)


@needs_compiler
def test_int8_matmul_layouts() -> None:
    codes = np.random.default_rng(3).integers(-127, 128, (9, 128)).astype(np.int8)
    layouts = {
        "Fortran": np.asfortranarray(codes),
        "every other row": np.repeat(codes, 2, axis=0)[::2],
        "every other entry": np.repeat(codes, 2, axis=1)[:, ::2],
        "reversed": codes[::-1, ::-1],
        "off a vector boundary": np.frombuffer(b"0" + codes.tobytes(), np.int8)[1:].reshape(codes.shape),
        "row repeated by a zero stride": np.broadcast_to(codes[:1], codes.shape),
    }
    for name, same in layouts.items():
        check_int8(same, codes, name)
        check_int8(codes, same, name)


def test_int8_matmul_errors() -> None:
    a = np.zeros((2, 3), np.int8)
    same_error("quantizers.int8_matmul", a.astype(np.int16), a)
    same_error("quantizers.int8_matmul", a, a[0])
    same_error("quantizers.int8_matmul", a, a[:, :2])
    same_error("quantizers.int8_matmul", np.full((2, 3), -128, np.int8), a)
    same_error("quantizers.int8_matmul", *(np.zeros((1, 133145), np.int8),) * 2)


# ---- Poincare ---------------------------------------------------------------------------------------------------------


def points(rng: np.random.Generator, shape: tuple[int, ...], curvature: float, nearest: float) -> AnyArray:
    """Points of the ball, some of them as close to its boundary as ``nearest``."""
    x = rng.normal(size=shape)
    length = np.tanh(rng.exponential(2.0, size=(*shape[:-1], 1)))
    return x / np.linalg.norm(x, axis=-1, keepdims=True) * np.minimum(length, 1 - nearest) / np.sqrt(curvature)


def check_layer(*arguments: Any, message: str = "", **options: Any) -> None:
    y = mojo.poincare.fully_connected(*arguments, **options)
    expected = refnorm.poincare.fully_connected(*arguments, **options)
    assert y.dtype == expected.dtype
    assert y.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected), err_msg=message)
    scale = np.abs(expected).max(axis=-1, keepdims=True)
    units = 2 if y.dtype == np.float32 else 512
    error = np.abs(y - expected) - units * np.finfo(y.dtype).eps * scale
    assert np.nanmax(error, initial=0.0) <= 0, message


@needs_compiler
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("curvature", [1.0, 0.1, 37.5, 1e-12, 1e12])
def test_fully_connected(curvature: float, project: bool, dtype: type) -> None:
    rng = np.random.default_rng(0)
    for rows, length, width in ((1, 1, 1), (3, 2, 5), (70, 17, 19), (5, 33, 8), (130, 8, 40)):
        x = points(rng, (rows, length), curvature, 1e-3).astype(dtype)
        weight = rng.normal(size=(length, width)).astype(dtype)
        bias = (0.3 * rng.normal(size=width) / np.sqrt(curvature)).astype(dtype)
        check_layer(x, weight, bias, curvature, project=project, message=f"{rows}, {length}, {width}")


@needs_compiler
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e-3, 30.0, 1e4])
def test_fully_connected_with_logits_of_any_size(scale: float, dtype: type) -> None:
    rng = np.random.default_rng(1)
    x = points(rng, (4, 6, 9), 1.0, 1e-3).astype(dtype)
    weight = (scale * rng.normal(size=(9, 21))).astype(dtype)
    for columns in (21, 1):
        check_layer(x, weight[:, :columns], np.zeros(columns, dtype), 1.0)


@needs_compiler
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_fully_connected_next_to_the_boundary(dtype: type) -> None:
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(3, 4)).astype(dtype)
    x = np.zeros((3, 3), dtype)
    x[0, 0], x[1, 1], x[2, 2] = 1 - np.finfo(dtype).eps, np.nextafter(dtype(1), dtype(0)), -1 + 4 * np.finfo(dtype).eps
    check_layer(x, weight, np.zeros(4, dtype), 1.0)
    with np.errstate(invalid="ignore", over="ignore"):
        check_layer(np.array([[np.nan, 0, 0], [0.1, 0.2, 0.3]], dtype), weight, np.zeros(4, dtype), 1.0)


@needs_compiler
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_gaps_to_the_boundary_keep_their_digits(dtype: type) -> None:
    rng = np.random.default_rng(5)
    for length in (1, 2, 7, 8, 40, 131):
        x = rng.normal(size=(200, length))
        x *= (1 - 10.0 ** rng.uniform(-12, -1, (200, 1))) / np.linalg.norm(x, axis=1, keepdims=True) / np.sqrt(0.7)
        x, found = x.astype(dtype), np.empty(200)
        _build.call("rn_gaps" + _build.suffix(x), x, found, 200, length, 1.0, 0.7)
        expected = gap(x.astype(np.float64), 0.7)[:, 0]
        sharp = np.abs(expected) > (length + 4) * EXACT_GAP
        assert sharp.sum() > 100
        np.testing.assert_allclose(found[sharp], expected[sharp], rtol=1e-15, err_msg=f"{length}")


@needs_compiler
def test_fully_connected_layouts() -> None:
    rng = np.random.default_rng(3)
    x = points(rng, (8, 6), 1.0, 1e-2).astype(np.float32)
    weight, bias = rng.normal(size=(6, 5)).astype(np.float32), np.zeros(5, np.float32)
    for name, same in support.layouts(x).items():
        straight = mojo.poincare.fully_connected(np.ascontiguousarray(same), weight, bias, 1.0)
        found = mojo.poincare.fully_connected(same, np.asfortranarray(weight), bias, 1.0)
        np.testing.assert_array_equal(found, straight, err_msg=name)
    assert mojo.poincare.fully_connected(x[:0], weight, bias, 1.0).shape == (0, 5)
    assert mojo.poincare.fully_connected(x[0], weight, bias, 1.0).shape == (5,)


@needs_compiler
def test_fully_connected_errors() -> None:
    x, weight, bias = np.zeros((2, 3), np.float32), np.ones((3, 4), np.float32), np.zeros(4, np.float32)
    same_error("poincare.fully_connected", x.astype(int), weight, bias, 1.0)
    same_error("poincare.fully_connected", x, weight.astype(np.float64), bias, 1.0)
    same_error("poincare.fully_connected", x, weight[:2], bias, 1.0)
    same_error("poincare.fully_connected", x, weight, bias[:2], 1.0)
    same_error("poincare.fully_connected", x, weight, bias, -1.0)
    same_error("poincare.fully_connected", x + np.float32(1), weight, bias, 1.0)
    same_error("poincare.fully_connected", x, weight, bias + np.float32(1e4), 1.0)


# ---- the library ------------------------------------------------------------------------------------------------------


@needs_compiler
def test_calls_from_several_threads() -> None:
    x = np.random.default_rng(4).normal(size=(64, 3000)).astype(np.float32)
    expected = mojo.softmax.softmax(x)
    with ThreadPoolExecutor(4) as pool:
        for y in pool.map(mojo.softmax.softmax, [x] * 40):
            np.testing.assert_array_equal(y, expected)


@needs_compiler
def test_library_is_compiled_once() -> None:
    first = mojo._build.library_path()
    made = first.stat().st_mtime_ns
    assert _build.library_path() == first
    assert first.stat().st_mtime_ns == made
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def fake_compiler(folder: Path, version: str, build: str) -> str:
    """A program that answers like a Mojo compiler as far as the cache's key goes, and then runs ``build``."""
    folder.mkdir()
    program = folder / "mojo"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in\n--version) echo {version};;\n*print*) echo cpu;;\n*) {build};;\nesac\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def test_key_is_of_sources_and_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one = fake_compiler(tmp_path / "one", "1", "exit 1")
    other = fake_compiler(tmp_path / "other", "2", "exit 1")
    key = _build._key(one)
    assert _build._key(one) == key
    assert _build._key(other) != key
    sources = tmp_path / "kernels"
    shutil.copytree(_build.KERNELS, sources)
    monkeypatch.setattr(_build, "KERNELS", sources)
    assert _build._key(one) == key
    (sources / "norm.mojo").write_text("# another")
    assert _build._key(one) != key


def test_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = fake_compiler(tmp_path / "fake", "1", "echo no such intrinsic >&2; exit 3")
    monkeypatch.setattr(_build, "find_compiler", lambda: compiler)
    monkeypatch.setenv("REFNORM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RuntimeError, match="no such intrinsic"):
        _build.library_path()
    assert list((tmp_path / "cache" / "mojo").iterdir()) == []


def test_missing_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(_build.sysconfig, "get_path", lambda name: str(tmp_path))
    assert _build.find_compiler() is None
    assert refnorm_fast.show_config(print_it=False)["mojo"] is False
    with pytest.raises(ImportError, match=r'pip install "refnorm\[mojo\]"'):
        _build.library_path()
    program = fake_compiler(tmp_path / "fake", "1", "exit 1")
    monkeypatch.setenv("PATH", str(Path(program).parent))
    assert _build.find_compiler() == program
    assert refnorm_fast.show_config(print_it=False)["mojo"] is True
