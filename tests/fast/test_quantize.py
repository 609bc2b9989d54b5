"""The elementwise quantizers' kernels: bit for bit the reference's values, and its cotangents."""

from __future__ import annotations

import doctest
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import refnorm.quantizers
import refnorm_fast.quantizers
from refnorm_fast.quantizers import _codewords, _half, _levels, _quantize
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]
# Arguments of either precision, right and wrong ones, in every form: more than the annotations allow.
reference: Any = refnorm.quantizers
fast: Any = refnorm_fast.quantizers
UNIT = {np.dtype(np.float32): 2.0**-23, np.dtype(np.float64): 2.0**-52}
ROUNDINGS = ("nearest", "floor", "away")
WHOLE: dict[Any, Any] = {np.dtype(np.float32): np.int32, np.dtype(np.float64): np.int64}


@pytest.fixture(params=support.ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with support.using_isa(request.param):
        yield request.param


@pytest.fixture
def kernels_for_few_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few entries would go to the reference: making tables takes longer."""
    monkeypatch.setattr(_levels, "FEW", 1)


def same(found: Any, expected: Any, message: str = "") -> None:
    """One shape, one dtype, the same bits; any NaN for NaN."""
    one, other = np.asarray(found), np.asarray(expected)
    assert one.dtype == other.dtype, message
    assert one.shape == other.shape, message
    if one.tobytes() != other.tobytes():
        np.testing.assert_array_equal(one, other, err_msg=message)
        number = ~np.isnan(other)
        np.testing.assert_array_equal(np.signbit(one[number]), np.signbit(other[number]), err_msg=message)


def close(found: Any, expected: Any, size: float, message: str = "") -> None:
    """Sums of ``size`` entries whose order differs."""
    one, other = np.asarray(found), np.asarray(expected)
    assert one.dtype == other.dtype, message
    assert one.shape == other.shape, message
    bound = 8 * UNIT[other.dtype] * size * max(1.0, float(np.abs(other).max(initial=0)))
    np.testing.assert_allclose(one, other, rtol=0, atol=bound, err_msg=message)


def cotangent(x: AnyArray) -> AnyArray:
    return np.asarray(np.random.default_rng(1).normal(size=x.shape), x.dtype)


# ---- uniform grids -----------------------------------------------------------------------------------------------


def awkward(size: int, scale: float, dtype: Any, seed: int = 0) -> AnyArray:
    """Numbers on and about the grid, ties and their neighbours, numbers beyond its ends, hostile ones."""
    rng = np.random.default_rng(seed)
    on_grid = np.arange(-300, 300, 0.5) * scale
    x = np.concatenate(
        [
            support.HOSTILE,
            on_grid,
            np.nextafter(on_grid.astype(dtype), dtype(np.inf)),
            rng.normal(size=size) * 50 * scale,
        ]
    ).astype(dtype)
    return rng.permutation(x)[:size] if len(x) >= size else np.resize(x, size)


def compare_affine(x: AnyArray, scale: Any, zero_point: Any, message: str = "", **options: Any) -> None:
    """Codes, grid points, cotangents."""
    codes = reference.quantize(x, scale, zero_point, **options)
    same(fast.quantize(x, scale, zero_point, **options), codes, message)
    same(fast.dequantize(codes, scale, zero_point), reference.dequantize(codes, scale, zero_point), message)
    y, pullback = fast.fake_quantize_vjp(x, scale, zero_point, **options)
    expected, reference_pullback = reference.fake_quantize_vjp(x, scale, zero_point, **options)
    same(y, expected, message)
    same(fast.fake_quantize(x, scale, zero_point, **options), expected, message)
    dy = cotangent(x)
    for _ in range(2):
        found, wanted = pullback(dy), reference_pullback(dy)
        same(found[0], wanted[0], message)
        close(found[1], wanted[1], x.size * 200, message)
        assert len(found) == len(wanted) == 2


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("signed", [True, False])
def test_every_tail(signed: bool, rounding: str, dtype: Any) -> None:
    x = awkward(2000, 0.37, dtype)
    for length in (*support.TAILS[1:], 255, 256, 257, 511):
        row = np.full(length + 2, np.nan, dtype)  # neighbours that must not be read
        row[1:-1] = x[length : 2 * length]
        options = {"rounding": rounding, "signed": signed}
        scale = dtype(0.37 if length % 3 else 0.5)
        codes = reference.quantize(row[1:-1], scale, 3, **options)
        same(fast.quantize(row[1:-1], scale, 3, **options), codes, f"length {length}")
        same(
            fast.fake_quantize(row[1:-1], scale, 3, **options),
            reference.dequantize(codes, scale, 3),
            f"length {length}",
        )
        same(fast.dequantize(codes, scale, 3), reference.dequantize(codes, scale, 3), f"length {length}")


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("bits", [2, 3, 4, 7, 8, 9, 12, 16])
def test_every_width(bits: int, dtype: Any) -> None:
    for scale in (0.37, 0.5, 1e-30, 3e30, 2.0**-126):
        x = awkward(1500, scale, dtype)
        for options in ({}, {"narrow": True}, {"signed": False}):
            lowest = 0 if "signed" in options else -(2 ** (bits - 1)) + len(options)
            for zero_point in (lowest, lowest + 1, lowest + 2 ** (bits - 1) - 1):
                compare_affine(x, dtype(scale), zero_point, f"{scale} {options} {zero_point}", bits=bits, **options)


PARAMETER_SHAPES = [(), (1, 1, 1), (7, 1, 1), (1, 5, 1), (1, 1, 33), (7, 5, 1), (1, 5, 33), (7, 1, 33), (7, 5, 33)]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_parameters_of_channels_and_groups(rounding: str, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for x in (rng.normal(size=(7, 5, 33)).astype(dtype), rng.normal(size=(7, 5, 3)).astype(dtype)):
        for shape in PARAMETER_SHAPES:
            for other in (shape, ()):
                fitted = [tuple(min(a, b) for a, b in zip(one, x.shape, strict=False)) for one in (shape, other)]
                scale = rng.uniform(0.01, 0.2, fitted[0]).astype(dtype)
                zero_point = rng.integers(-100, 100, fitted[1])
                compare_affine(x, scale, zero_point, f"{x.shape} {fitted}", rounding=rounding)
                scale = rng.uniform(0.01, 0.2, fitted[1]).astype(dtype)
                zero_point = rng.integers(-100, 100, fitted[0]).astype(np.int16)
                compare_affine(x, scale, zero_point, f"{x.shape} {fitted}", rounding=rounding)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_learned_zero_point(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x, dy = (3 * rng.normal(size=(2, 6, 5, 40))).astype(dtype)
    for shape, other in (
        ((), ()),
        ((1, 5, 1), (1, 5, 1)),
        ((1, 5, 1), ()),
        ((6, 1, 1), (1, 5, 1)),
        ((1, 1, 40), (1, 1, 40)),
    ):
        scale, zero_point = rng.uniform(0.01, 0.03, shape).astype(dtype), rng.uniform(-90, 90, other).astype(dtype)
        y, pullback = fast.fake_quantize_vjp(x, scale, zero_point, lsq_grad_scale=True)
        expected, reference_pullback = reference.fake_quantize_vjp(x, scale, zero_point, lsq_grad_scale=True)
        same(y, expected)
        for one, wanted in zip(pullback(dy), reference_pullback(dy), strict=True):
            close(one, wanted, x.size)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("scale", [0.1, 0.3, 1 / 3, 0.0137, 0.77])
def test_every_float_about_the_ties(scale: float, bits: int) -> None:
    # the products that stand in for quotients must not decide here
    step = np.float32(scale)
    ties = (np.arange(-(2 ** (bits - 1)) - 3, 2 ** (bits - 1) + 3) + 0.5).astype(np.float32) * step
    x = (ties.view(np.int32)[:, None] + np.arange(-200, 200, dtype=np.int32)).view(np.float32).ravel()
    for name in support.ISAS:
        with support.using_isa(name):
            compare_affine(x, step, 0, name, bits=bits)
            compare_affine(x, step, 1, name, bits=bits)


def test_stochastic_rounding_is_the_references() -> None:
    x = np.random.default_rng(0).normal(size=(5, 40))
    for function in ("quantize", "fake_quantize"):
        found, expected = (
            getattr(package, function)(x, 0.1, 0, rounding="stochastic", rng=np.random.default_rng(1))
            for package in (fast, reference)
        )
        same(found, expected)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_dequantize_other_codes(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for code in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64):
        ends = np.iinfo(code)
        q = rng.integers(max(ends.min, -(2**40)), min(ends.max, 2**40), size=(9, 70), dtype=code)
        for zero_point in (0, -7, 2**22 - 1, 2**22, 2**40, rng.integers(-9, 9, (1, 70)), rng.integers(-9, 9, (9, 1))):
            for scale in (dtype(0.3), rng.uniform(0.1, 1, (9, 1)).astype(dtype), 0.3):
                same(fast.dequantize(q, scale, zero_point), reference.dequantize(q, scale, zero_point))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("axis", [None, 0, 1, 2, (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_parameters_from_data(axis: Any, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for shape in ((5, 8, 70), (3, 9, 1), (1, 40, 9)):
        x = (rng.normal(size=shape) + 1).astype(dtype)
        x[0] = 0
        for options in ({}, {"symmetric": False}, {"signed": False}, {"method": "absmax", "narrow": True}, {"bits": 3}):
            found = fast.affine_qparams(x, axis=axis, **options)
            for one, expected in zip(found, reference.affine_qparams(x, axis=axis, **options), strict=True):
                same(one, expected, f"{shape} {options}")
        expected = reference.lsq_scale(x, axis=axis, bits=4)
        found = fast.lsq_scale(x, axis=axis, bits=4)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=(2 if dtype == np.float32 else 16) * UNIT[x.dtype])
    huge = np.array([3e38, -3e38, 1e-45] * 40, dtype)
    for one, expected in zip(
        fast.affine_qparams(huge, symmetric=False), reference.affine_qparams(huge, symmetric=False), strict=True
    ):
        same(one, expected)
    for method in ("mse", "percentile"):
        for one, expected in zip(
            fast.affine_qparams(x, method=method), reference.affine_qparams(x, method=method), strict=True
        ):
            same(one, expected)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (33,), (5, 1), (7, 1, 1), (7, 5, 33)])
def test_range(shape: tuple[int, ...], dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 7, 5, 33)).astype(dtype)
    x[0, 0, :3] = np.inf, -np.inf, np.nan
    for bits in (2, 8, 16):
        for width in (rng.uniform(0.5, 3, shape), np.full(shape, 1e-9), np.full(shape, 1e7)):
            for minimum in (rng.uniform(-2, 0.5, shape), np.array(-0.5), np.array(2.0)):
                arguments = (x, width.astype(dtype), minimum.astype(dtype))
                y, pullback = fast.range_fake_quantize_vjp(*arguments, bits=bits)
                with np.errstate(all="ignore"):
                    expected, reference_pullback = reference.range_fake_quantize_vjp(*arguments, bits=bits)
                    wanted = reference_pullback(dy)
                same(y, expected)
                same(fast.range_fake_quantize(*arguments, bits=bits), expected)
                found = pullback(dy)
                same(found[0], wanted[0])
                for one, other in zip(found[1:], wanted[1:], strict=True):
                    assert one.dtype == dtype
                    assert one.shape == other.shape
                clean = np.where(np.isfinite(x), x, 0)
                found = fast.range_fake_quantize_vjp(clean, *arguments[1:], bits=bits)[1](dy)
                wide = [a.astype(np.float64) for a in arguments[1:]]
                if dtype == np.float64:
                    wanted = reference.range_fake_quantize_vjp(clean, *wide, bits=bits)[1](dy.astype(np.float64))
                    for one, other in zip(found[1:], wanted[1:], strict=True):
                        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * np.abs(other).max())


# ---- 16-bit formats ----------------------------------------------------------------------------------------------


def every_kind_of_number(dtype: Any) -> AnyArray:
    """Numbers of every exponent, the ties of the formats and their neighbours, subnormal numbers, NaN and infinity."""
    rng = np.random.default_rng(0)
    whole = WHOLE[np.dtype(dtype)]
    patterns = rng.integers(0, np.iinfo(whole).max, 20000, dtype=whole)
    small = np.concatenate([np.arange(2049.0), np.arange(2048.0) + 0.5]) * 2.0**-24
    every_half = np.arange(2**15, dtype=np.uint16).view(np.float16).astype(dtype)
    ties = (every_half[:-1] / 2 + every_half[1:] / 2)[: 31 * 1024 - 1]
    brain = (rng.integers(0, 2**15, 4000).astype(np.uint32) << 16).view(np.float32).astype(dtype)
    brain_ties = ((rng.integers(0, 2**15, 4000).astype(np.uint32) << 16) + 2**15).view(np.float32).astype(dtype)
    positive = np.concatenate(
        [a.astype(dtype) for a in (patterns.view(dtype), small, every_half, ties, brain, brain_ties)]
    )
    beside = [np.nextafter(positive, dtype(0)), np.nextafter(positive, dtype(np.inf))]
    every = np.concatenate([positive, *beside, np.array([65504, 65519.99, 65520, 3.4e38, 1e-45], dtype)])
    return np.concatenate([every, -every, np.array([np.nan, np.inf, -np.inf], dtype)])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_rounding_to_sixteen_bits(dtype: Any) -> None:
    x = every_kind_of_number(dtype)
    for name in ("round_float16", "round_bfloat16"):
        expected = getattr(reference, name)(x)
        for isa_name in support.ISAS:
            with support.using_isa(isa_name):
                same(getattr(fast, name)(x), expected, f"{name} {isa_name}")
                for length in support.TAILS:
                    same(
                        getattr(fast, name)(x[3 : 3 + length]), expected[3 : 3 + length], f"{name} {isa_name} {length}"
                    )


@pytest.mark.usefixtures("isa")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("storage", ["float16", "bfloat16", "float32"])
def test_stochastic_round_draws_the_references_numbers(storage: str, dtype: Any) -> None:
    x = every_kind_of_number(dtype)[::7]
    same(
        fast.stochastic_round(x, storage, rng=np.random.default_rng(1)),
        reference.stochastic_round(x, storage, rng=np.random.default_rng(1)),
    )
    generator, other = np.random.default_rng(2), np.random.default_rng(2)
    fast.stochastic_round(x, storage, rng=generator)
    reference.stochastic_round(x, storage, rng=other)
    assert generator.random() == other.random()


# ---- logarithmic grids -------------------------------------------------------------------------------------------


def about_the_steps(per_octave: int, dtype: Any) -> AnyArray:
    """Numbers from 0 on, and the neighbours of every place where a logarithm of base 2 (or its root) is near a tie."""
    rng = np.random.default_rng(0)
    whole = WHOLE[np.dtype(dtype)]
    ties = 2.0 ** (-(np.arange(-2, 150) + 0.5) / per_octave)
    near = (ties.astype(dtype).view(whole)[:, None] + np.arange(-120, 120, dtype=whole)).view(dtype).ravel()
    smooth = rng.standard_exponential(3000) ** 6
    tiny = np.array([0.0, -0.0, 1e-45, 1e-40, 1e-310, 3e38], dtype)
    return rng.permutation(np.concatenate([near[near >= 0], smooth.astype(dtype), tiny]))


@pytest.mark.usefixtures("isa", "kernels_for_few_entries")
@pytest.mark.filterwarnings("ignore:overflow encountered in divide:RuntimeWarning")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_powers_of_two_and_of_its_root(bits: int, dtype: Any) -> None:
    for per_octave, name in ((1, "log2_fake_quantize"), (2, "log_sqrt2_fake_quantize")):
        a = about_the_steps(per_octave, dtype)
        dy = cotangent(a)
        for scale in (dtype(1), dtype(0.7), dtype(1e-30)):
            y, pullback = getattr(fast, name + "_vjp")(a, scale, bits=bits)
            with np.errstate(all="ignore"):
                expected, reference_pullback = getattr(reference, name + "_vjp")(a, scale, bits=bits)
                wanted = reference_pullback(dy)
            same(y, expected, f"{name} {scale}")
            same(getattr(fast, name)(a, scale, bits=bits), expected, f"{name} {scale}")
            found = pullback(dy)
            same(found[0], wanted[0], f"{name} {scale}")
            close(found[1], wanted[1], a.size, f"{name} {scale}")
            q, mask = reference.log_sqrt2_quantize(a, scale, bits=bits)
            for one, other in zip(fast.log_sqrt2_quantize(a, scale, bits=bits), (q, mask), strict=True):
                same(one, other, f"{scale}")
            for decode in ("log_sqrt2_dequantize", "log2_reparam_dequantize"):
                same(getattr(fast, decode)(q, mask, scale), getattr(reference, decode)(q, mask, scale))
        with np.errstate(all="ignore"):
            unit = reference.log_sqrt2_fake_quantize_vjp(a, 0.9, bits=bits, unit_gradient=True)[1](dy)
        found = fast.log_sqrt2_fake_quantize_vjp(a, 0.9, bits=bits, unit_gradient=True)[1](dy)
        same(found[0], unit[0])
        close(found[1], unit[1], a.size)


@pytest.mark.usefixtures("isa", "kernels_for_few_entries")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("levels", ["b_bits", "official"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_shift_uniform_log2(bits: int, levels: str, dtype: Any) -> None:
    whole = WHOLE[np.dtype(dtype)]
    for shift in (0.001, 0.05, 1.0):
        params = reference.SulqParams(shift, float(np.log2(shift)), float(np.log2(1 + shift)) - 0.1, bits, levels)
        ties = 2.0 ** (params.low + params.step * (np.arange(-1, params.highest + 2) + 0.5)) - shift
        near = (np.maximum(ties, 0).astype(dtype).view(whole)[:, None] + np.arange(60, dtype=whole)).view(dtype).ravel()
        a = np.concatenate([near, about_the_steps(1, dtype)[::5]])
        a = a[a < 1e6]
        q = reference.sulq_encode(a, params)
        same(fast.sulq_encode(a, params), q)
        dy = cotangent(a)
        for exponent in (True, False):
            same(
                fast.sulq_decode(q, params, integer_exponent=exponent),
                reference.sulq_decode(q, params, integer_exponent=exponent),
            )
            for clamp in (True, False):
                options = {"integer_exponent": exponent, "clamp": clamp}
                y, pullback = fast.sulq_fake_quantize_vjp(a, shift, params, **options)
                expected, reference_pullback = reference.sulq_fake_quantize_vjp(a, shift, params, **options)
                same(y, expected)
                same(fast.sulq_fake_quantize(a, shift, params, **options), expected)
                found, wanted = pullback(dy), reference_pullback(dy)
                same(found[0], wanted[0])
                close(found[1], wanted[1], a.size)


@pytest.mark.usefixtures("isa", "kernels_for_few_entries")
def test_levels_of_every_tail() -> None:
    a = about_the_steps(1, np.float32)
    params = reference.SulqParams(0.01, -6.0, 0.0, 4)
    for length in support.TAILS[1:]:
        row = np.full(length + 2, np.nan, np.float32)
        row[1:-1] = np.minimum(a[length : 2 * length], 1)
        same(fast.log2_fake_quantize(row[1:-1], 0.9, bits=4), reference.log2_fake_quantize(row[1:-1], 0.9, bits=4))
        same(fast.sulq_encode(row[1:-1], params), reference.sulq_encode(row[1:-1], params))


def test_steps_of_a_function_that_turns_back_are_not_used() -> None:
    def level_of(t: AnyArray) -> AnyArray:
        return np.where(t == np.nextafter(np.float32(1), np.float32(2)), 0, t >= 1)

    assert _levels.steps_of(level_of, 1, np.dtype(np.float32)) is None
    steps = _levels.steps_of(lambda t: np.floor(t), 5, np.dtype(np.float64))
    assert steps is not None
    assert steps.tolist() == [1, 2, 3, 4, 5]


# ---- sums of codewords -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("code", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_additive_dequantize(code: Any, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for words in (2, 16, 128, 256, 300):
        for width in (1, 2, 7, 8, 16, 33):
            count = 1 + width % 9
            most = min(words, int(np.iinfo(code).max) + 1)
            codes = rng.integers(0, most, (5, 6, count)).astype(code)
            books, scales = rng.normal(size=(count, words, width)).astype(dtype), rng.normal(size=5).astype(dtype)
            expected = reference.additive_dequantize(codes, books, scales)
            same(fast.additive_dequantize(codes, books, scales), expected)
            for layout, other in support.layouts(books).items() if width == 8 else ():
                wanted = reference.additive_dequantize(codes, other, scales)
                same(fast.additive_dequantize(codes, other, scales), wanted, layout)
            turned = np.asfortranarray(codes)
            same(
                fast.additive_dequantize(turned, books, scales[::-1]),
                reference.additive_dequantize(turned, books, scales[::-1]),
            )
            for out in (np.empty_like(expected), np.asfortranarray(expected), support.misaligned(expected)):
                assert fast.additive_dequantize(codes, books, scales, out=out) is out
                np.testing.assert_array_equal(out, expected)


def test_additive_dequantize_errors() -> None:
    codes, books, scales = np.ones((2, 3, 2), int), np.ones((2, 4, 5)), np.ones(2)
    for arguments in (
        (codes + 3, books, scales),
        (codes - 2, books, scales),
        ((codes - 2).astype(np.int8), np.ones((2, 256, 5)), scales),
        (codes.astype(float), books, scales),
        (codes[0], books, scales),
        (codes, books[:1], scales),
        (codes, books[:, :1], scales),
        (codes, books.astype(np.float32), scales),
        (codes, books, np.ones(3)),
        (codes, books.astype(int), scales),
    ):
        with pytest.raises((TypeError, ValueError)) as expected:
            reference.additive_dequantize(*arguments)
        with pytest.raises(expected.type) as raised:
            fast.additive_dequantize(*arguments)
        assert str(raised.value) == str(expected.value)
    with pytest.raises(ValueError, match="out: expected shape"):
        fast.additive_dequantize(codes, books, scales, out=np.empty((2, 14)))


# ---- layouts, outputs, threads -----------------------------------------------------------------------------------

PARAMS = reference.SulqParams(0.01, -6.0, 0.0, 4)
POINTS: dict[str, Callable[..., Any]] = {
    "fake_quantize": lambda package, x, **out: package.fake_quantize(x, x.dtype.type(0.13), 3, **out),
    "fake_quantize by channel": lambda package, x, **out: package.fake_quantize(
        x, np.linspace(0.1, 0.2, x.shape[-1], dtype=x.dtype).reshape((1,) * (x.ndim - 1) + (-1,)), 3, **out
    ),
    "range_fake_quantize": lambda package, x, **out: package.range_fake_quantize(
        x, x.dtype.type(2), x.dtype.type(-1), bits=4, **out
    ),
    "round_float16": lambda package, x, **out: package.round_float16(x, **out),
    "round_bfloat16": lambda package, x, **out: package.round_bfloat16(x, **out),
    "stochastic_round": lambda package, x, **out: package.stochastic_round(x, rng=np.random.default_rng(0), **out),
    "log2_fake_quantize": lambda package, x, **out: package.log2_fake_quantize(x, 1.0, bits=4, **out),
    "log_sqrt2_fake_quantize": lambda package, x, **out: package.log_sqrt2_fake_quantize(x, 1.0, bits=4, **out),
    "sulq_fake_quantize": lambda package, x, **out: package.sulq_fake_quantize(x, 0.01, PARAMS, **out),
}
CODES: dict[str, Callable[..., Any]] = {
    "quantize": lambda package, x, **out: package.quantize(x, x.dtype.type(0.13), 3, **out),
    "quantize to 12 bits": lambda package, x, **out: package.quantize(x, x.dtype.type(0.001), 3, bits=12, **out),
    "affine_qparams": lambda package, x: package.affine_qparams(x, axis=1, symmetric=False)[1],
    "log_sqrt2_quantize": lambda package, x: package.log_sqrt2_quantize(x, 1.0, bits=4)[0],
    "sulq_encode": lambda package, x: package.sulq_encode(x, PARAMS),
}


def sample(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> AnyArray:
    x: AnyArray = np.random.default_rng(seed).exponential(size=shape).astype(dtype)
    return x


@pytest.mark.usefixtures("kernels_for_few_entries")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("name", [*POINTS, *CODES])
def test_layouts(name: str, dtype: Any) -> None:
    function = {**POINTS, **CODES}[name]
    for shape in ((6, 35), (4, 3, 20)):
        for layout, x in support.layouts(sample(shape, dtype)).items():
            same(function(fast, x), function(reference, x), layout)


@pytest.mark.usefixtures("kernels_for_few_entries")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("name", POINTS)
def test_out(name: str, dtype: Any) -> None:
    for shape in ((5, 33), (3, 2, 8)):
        support.check_out(lambda x, **out: POINTS[name](fast, x, **out), sample(shape, dtype))
        support.check_out_errors(lambda x, **out: POINTS[name](fast, x, **out), sample(shape, dtype))


def test_out_of_codes() -> None:
    x = sample((6, 70), np.float32)
    q = reference.quantize(x, np.float32(0.1), 3)
    points = reference.dequantize(q, np.float32(0.1), 3)
    memory = np.zeros((6, 70), np.float32)
    bytes_of_x = memory.view(np.int8)[:, :70]  # within the memory of the numbers themselves
    memory[...] = x
    for out in (np.empty_like(q), np.empty((6, 140), np.int8)[:, ::2], np.asfortranarray(q), bytes_of_x):
        given = memory if out is bytes_of_x else x
        assert fast.quantize(given, np.float32(0.1), 3, out=out) is out
        np.testing.assert_array_equal(out, q)
    for out in (np.empty_like(x), np.empty((6, 140), np.float32)[:, ::2], np.asfortranarray(x)):
        assert fast.dequantize(q, np.float32(0.1), 3, out=out) is out
        np.testing.assert_array_equal(out, points)
    wide = reference.sulq_decode(np.ones((40, 50), np.uint8), PARAMS)
    out = np.empty((40, 50))
    assert fast.sulq_decode(np.ones((40, 50), np.uint8), PARAMS, out=out) is out
    np.testing.assert_array_equal(out, wide)
    with pytest.raises(TypeError, match="out: expected dtype int8, got dtype uint8"):
        fast.quantize(x, np.float32(0.1), 3, out=np.empty(x.shape, np.uint8))
    with pytest.raises(ValueError, match="out: expected shape"):
        fast.quantize(x, np.float32(0.1), 3, out=np.empty(3, np.int8))
    with pytest.raises(ValueError, match="out: expected a writable array"):
        fast.quantize(x, np.float32(0.1), 3, out=support.read_only(q))
    with pytest.raises(TypeError, match="out: expected dtype"):
        fast.dequantize(q, np.float32(0.1), 3, out=np.empty(x.shape))


def test_wrong_entries_leave_an_array_that_is_its_own_output_as_it_was() -> None:
    x = sample((5, 40), np.float32)
    x[3, 7] = np.nan
    before = x.copy()
    with pytest.raises(ValueError, match=r"x: expected finite values, got 1 that are not, the first at index \(3, 7\)"):
        fast.fake_quantize(x, 0.1, 0, out=x)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("shape", [(3000, 200), (3, 400001)])
def test_same_bits_for_any_number_of_threads(shape: tuple[int, int], dtype: Any) -> None:
    x, dy = sample(shape, dtype), sample(shape, dtype, 1)
    rows, columns = np.full((shape[0], 1), dtype(0.1)), np.full((1, shape[1]), dtype(0.1))

    def results() -> list[AnyArray]:
        found = [function(fast, x) for function in (*POINTS.values(), *CODES.values())]
        for scale in (dtype(0.1), rows, columns):
            y, pullback = fast.fake_quantize_vjp(x, scale, dtype(2))
            found += [y, *pullback(dy), fast.lsq_scale(x, axis=0), fast.lsq_scale(x, axis=1), fast.lsq_scale(x)]
        found += [*fast.log2_fake_quantize_vjp(x, 1.0, bits=4)[1](dy)]
        found += [*fast.sulq_fake_quantize_vjp(x, 0.01, PARAMS)[1](dy)]
        return found

    with support.threads(1):
        expected = results()
    with support.threads(2):
        for one, other in zip(results(), expected, strict=True):
            same(one, other)


def test_results_too_large_for_the_caches() -> None:
    # non-temporal stores: large enough for any last-level cache that reports itself as up to 64 MiB
    x = sample((9000, 1001), np.float32)
    part = slice(4321, 4400)
    scale = np.linspace(0.1, 0.2, 9000, dtype=np.float32)[:, None]
    for make in (fast.quantize, fast.fake_quantize):
        same(make(x, scale, 3)[part], make(x[part], scale[part], 3))
    q = fast.quantize(x, scale, 3)
    same(fast.dequantize(q, scale, 3)[part], fast.dequantize(q[part], scale[part], 3))
    same(fast.round_bfloat16(x)[part], fast.round_bfloat16(x[part]))
    out = np.empty(x.size + 1, np.float32)[1:].reshape(x.shape)
    same(fast.fake_quantize(x, scale, 3, out=out), fast.fake_quantize(x, scale, 3))


def test_what_the_pullback_needs_is_its_own() -> None:
    x = sample((5, 40), np.float32)
    _, pullback = fast.fake_quantize_vjp(x, np.float32(0.1), 0)
    expected = [one.copy() for one in pullback(np.ones_like(x))]
    x[...] = 0
    for one, other in zip(pullback(np.ones_like(x)), expected, strict=True):
        same(one, other)
    same(pullback(np.float64(1))[0], expected[0])


finite = st.one_of(st.floats(-100, 100, width=32), st.sampled_from((0.0, -0.0, 1e-30, 1e4, 1e15, 0.5, 1.5, 2.5)))


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=12), elements=finite),
    st.integers(0, 2**32),
    st.integers(2, 16),
    st.sampled_from(ROUNDINGS),
    st.sampled_from(support.ISAS),
)
def test_equals_the_reference(x: AnyArray, seed: int, bits: int, rounding: str, isa: str) -> None:
    rng = np.random.default_rng(seed)
    shapes = [tuple(n if rng.random() < 0.5 else 1 for n in x.shape) if rng.random() < 0.8 else () for _ in range(2)]
    scale = np.exp(rng.normal(size=shapes[0])).astype(np.float32)
    zero_point = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shapes[1])
    with support.using_isa(isa):
        compare_affine(x, scale, zero_point, bits=bits, rounding=rounding)


# ---- errors ------------------------------------------------------------------------------------------------------

ONE = np.linspace(0.1, 1, 6).reshape(2, 3)
NOT_FINITE = np.array([[1.0, np.nan, np.inf]])
ERRORS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    *(
        (name, arguments, {})
        for name in ("quantize", "fake_quantize")
        for arguments in (
            (ONE.astype(int), 0.1, 0),
            (NOT_FINITE, 0.1, 0),
            (ONE, 0.0, 0),
            (ONE, -1.0, 0),
            (ONE, np.nan, 0),
            (ONE, np.inf, 0),
            (ONE, np.float32(0.1), 0),
            (ONE, np.ones(3), 0),
            (ONE, np.ones((2, 2)), 0),
            (ONE, "a", 0),
            (ONE, 0.1, 128),
            (ONE, 0.1, -129),
            (ONE, 0.1, 200.5),
            (ONE, 0.1, np.array([1, 2, 3])),
            (ONE, 0.1, np.float32(1)),
            (ONE, 0.1, np.float64(np.nan)),
            (ONE, 0.1, None),
        )
    ),
    ("quantize", (ONE, 0.1, 0), {"bits": 1}),
    ("quantize", (ONE, 0.1, 0), {"bits": 17}),
    ("quantize", (ONE, 0.1, 0), {"bits": 8.0}),
    ("quantize", (ONE, 0.1, 0), {"signed": False, "narrow": True}),
    ("quantize", (ONE, 0.1, 0), {"rounding": "up"}),
    ("quantize", (ONE, 0.1, 0), {"rounding": "stochastic"}),
    ("dequantize", (ONE, 0.1, 0), {}),
    ("dequantize", (np.ones(3, np.int8), 0.0, 0), {}),
    ("dequantize", (np.ones(3, np.int8), 1, 0), {}),
    ("dequantize", (np.ones(3, np.int8), 0.1, 0.5), {}),
    ("dequantize", (np.ones(3, np.int8), np.ones(2), 0), {}),
    ("affine_qparams", (NOT_FINITE,), {}),
    ("affine_qparams", (NOT_FINITE,), {"axis": 0}),
    ("affine_qparams", (ONE,), {"axis": 2}),
    ("affine_qparams", (ONE,), {"axis": (0, 0)}),
    ("affine_qparams", (ONE,), {"method": "max"}),
    ("affine_qparams", (ONE,), {"method": "absmax", "symmetric": False}),
    ("affine_qparams", (ONE,), {"bits": 1}),
    ("affine_qparams", (np.ones((0, 3)),), {}),
    ("lsq_scale", (NOT_FINITE,), {}),
    ("lsq_scale", (ONE,), {"bits": 0}),
    ("range_fake_quantize", (ONE, np.float64(1), np.float64(0)), {"bits": 1}),
    ("range_fake_quantize", (ONE, np.ones(2), np.float64(0)), {"bits": 4}),
    ("range_fake_quantize", (ONE, np.float32(1), np.float64(0)), {"bits": 4}),
    ("round_float16", (ONE.astype(int),), {}),
    ("round_bfloat16", (ONE.astype(bool),), {}),
    ("stochastic_round", (ONE,), {"rng": 3}),
    ("stochastic_round", (ONE, "float64"), {"rng": np.random.default_rng(0)}),
    *(
        (name, arguments, {"bits": bits})
        for name in ("log2_fake_quantize", "log_sqrt2_fake_quantize", "log_sqrt2_quantize")
        for arguments, bits in (
            ((-ONE, 1.0), 4),
            ((NOT_FINITE, 1.0), 4),
            ((ONE, 0.0), 4),
            ((ONE, np.float32(1)), 4),
            ((ONE, 1.0), 1),
            ((ONE, 1.0), 9),
        )
    ),
    ("log_sqrt2_dequantize", (np.ones(3, np.uint8), np.ones(2, bool), 1.0), {}),
    ("log2_reparam_dequantize", (np.full(3, 256), np.ones(3, bool), 1.0), {}),
    ("sulq_encode", (-ONE, PARAMS), {}),
    ("sulq_encode", (NOT_FINITE, PARAMS), {}),
    ("sulq_decode", (np.full(3, 16, np.uint8), PARAMS), {}),
    ("sulq_decode", (np.ones(3), PARAMS), {}),
    ("sulq_fake_quantize", (-ONE, 0.01, PARAMS), {}),
    ("sulq_fake_quantize", (ONE, 0.0, PARAMS), {}),
    ("sulq_fake_quantize", (ONE, np.float32(1), PARAMS), {}),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.usefixtures("kernels_for_few_entries")
@pytest.mark.parametrize(("name", "arguments", "options"), ERRORS)
def test_errors_are_the_references(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    for suffix in ("", "_vjp"):
        if suffix and not hasattr(fast, name + suffix):
            continue
        with pytest.raises((TypeError, ValueError)) as expected:
            getattr(reference, name + suffix)(*arguments, **options)
        with pytest.raises(expected.type) as raised:
            getattr(fast, name + suffix)(*arguments, **options)
        assert str(raised.value) == str(expected.value)


def test_empty_arrays_and_single_numbers() -> None:
    for x in (np.ones((0, 3)), np.float64(0.7), np.array(0.7, np.float32)):
        for name in ("quantize", "fake_quantize"):
            same(
                getattr(fast, name)(x, np.asarray(0.1, x.dtype), 0),
                getattr(reference, name)(x, np.asarray(0.1, x.dtype), 0),
            )
        for name in ("round_float16", "round_bfloat16"):
            same(getattr(fast, name)(x), getattr(reference, name)(x))
        same(fast.log2_fake_quantize(x, 1.0, bits=4), reference.log2_fake_quantize(x, 1.0, bits=4))
        same(fast.sulq_encode(x, PARAMS), reference.sulq_encode(x, PARAMS))
        width, minimum = np.asarray(1, x.dtype), np.asarray(0, x.dtype)
        same(
            fast.range_fake_quantize(x, width, minimum, bits=4),
            reference.range_fake_quantize(x, width, minimum, bits=4),
        )


@pytest.mark.parametrize("module", [_quantize, _half, _levels, _codewords])
def test_examples(module: Any) -> None:
    outcome = doctest.testmod(module, extraglobs={"np": np})
    assert outcome.failed == 0
    assert outcome.attempted > 1
