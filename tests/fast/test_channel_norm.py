"""The norms with statistics per channel against the reference, on hostile input and every instruction set."""

from __future__ import annotations

import doctest
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refnorm.norms as reference
import refnorm_fast.norms as fast
from refnorm_fast.norms import (
    _alpha,
    _batch,
    _batch_channel,
    _evonorm,
    _ghost,
    _l1,
    _mean_only,
    _power,
    _unified,
    _unmix,
)
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]
EPS = {np.dtype(np.float32): 2.0**-23, np.dtype(np.float64): 2.0**-52}
STATES: dict[str, Callable[[int, Any], Any]] = {
    "batch_norm_train": reference.BatchNormState.create,
    "ghost_batch_norm_train": reference.GhostBatchState.create,
    "evonorm_b0_train": reference.EvoNormState.create,
    "unified_norm": lambda channels, dtype: reference.UnifiedNormState.create(channels, dtype=dtype),
    "power_norm": lambda channels, dtype: reference.PowerNormState(
        np.linspace(0.5, 2, channels, dtype=dtype), np.linspace(-0.2, 0.3, channels, dtype=dtype), 3
    ),
    "evonorm_b0_eval": lambda channels, dtype: reference.EvoNormState(np.linspace(0.2, 2, channels, dtype=dtype)),
    "batch_norm_eval": lambda channels, dtype: reference.BatchNormState(
        np.linspace(-1, 1, channels, dtype=dtype), np.linspace(0.2, 2, channels, dtype=dtype)
    ),
}
"""A state before the call, of the functions that take one."""


@pytest.fixture(params=support.ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[None]:
    with support.using_isa(request.param):
        yield


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The reference warns of overflow and NaN on its way."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def places(x: AnyArray) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def with_axes(*units: int, **options: Any) -> Callable[[AnyArray, AnyArray], Arguments]:
    return lambda x, per_channel: ((x, *(per_channel[i] for i in units)), {"axes": places(x), **options})


def with_state(name: str, **options: Any) -> Callable[[AnyArray, AnyArray], Arguments]:
    return lambda x, per_channel: (
        (x, per_channel[0], per_channel[1], STATES[name](x.shape[1], x.dtype)),
        options,
    )


def of_maps(name: str, **options: Any) -> Callable[[AnyArray, AnyArray], Arguments]:
    """For functions of four axes, the last of which may be missing."""

    def arguments(x: AnyArray, per_channel: AnyArray) -> Arguments:
        state = (STATES[name](x.shape[1], x.dtype),) if name in STATES else ()
        maps = x if x.ndim == 4 else x.reshape(*x.shape[:2], -1, 1)
        if maps[0].size == 1:
            maps = np.repeat(maps, 2, axis=3)
        return (maps, *per_channel[:3], *state), options

    return arguments


def of_tokens(name: str, **options: Any) -> Callable[[AnyArray, AnyArray], Arguments]:
    """For functions whose channels are the last axis; ``moved`` batches of the state lie behind."""
    moved = options.pop("moved", 0)

    def arguments(x: AnyArray, per_channel: AnyArray) -> Arguments:
        tokens = np.moveaxis(x, 1, -1)
        if name not in STATES:
            return (tokens, *per_channel[:2]), options
        state = STATES[name](x.shape[1], x.dtype)
        for _ in range(moved):
            state = reference.unified_norm(tokens, *per_channel[:2], state, **options)[1]
        return (tokens, *per_channel[:2], state), options

    return arguments


def fitting_groups(**options: Any) -> Callable[[AnyArray, AnyArray], Arguments]:
    """S0 with groups of two entries or more."""
    whole = of_maps("evonorm_s0", **options)
    return lambda x, per_channel: (
        whole(x, per_channel)[0],
        {**options, "groups": None if x[0].size >= 2 * x.shape[1] or x[0].size == 1 else 1},
    )


def of_groups(estimated: bool, **options: Any) -> Callable[[AnyArray, AnyArray], Arguments]:
    """Batch norm, then group norm, in two groups where they divide the channels."""

    def arguments(x: AnyArray, per_channel: AnyArray) -> Arguments:
        groups = 2 if x.shape[1] % 2 == 0 else 1
        state = (reference.BatchChannelState(per_channel[2], per_channel[3]),) if estimated else ()
        pairs = (per_channel[0], per_channel[1], per_channel[2, :groups], per_channel[3, :groups])
        return (x, *pairs, *state), {"groups": groups, **options}

    return arguments


def of_components(**options: Any) -> Callable[[AnyArray, AnyArray], Arguments]:
    """A mixture of three components."""

    def arguments(x: AnyArray, per_channel: AnyArray) -> Arguments:
        means = np.stack([per_channel[2], -per_channel[2], per_channel[1]])
        state = reference.UnMixState(means, np.stack([per_channel[3]] * 3))
        return (x if x.ndim > 2 else x[..., None], *per_channel[:2], state), {"rate": 0.2, **options}

    return arguments


# Arrays of one number a channel: 0 gain, 1 bias, 2 mean, 3 variance or deviation.
CASES: dict[str, Callable[[AnyArray, AnyArray], Arguments]] = {
    "batch_statistics": with_axes(),
    "batch_norm": with_axes(0, 1),
    "batch_norm eps": with_axes(0, 1, eps=0.3),
    "batch_norm given": with_axes(0, 1, 2, 3),
    "batch_norm_train": with_state("batch_norm_train", momentum=0.3),
    "batch_norm_eval": with_state("batch_norm_eval"),
    "ghost_batch_norm": lambda x, per_channel: (
        (x, per_channel[0], per_channel[1]),
        {"ghost_size": max(8, x.shape[0] // 3), "merge_last": True},
    ),
    "ghost_batch_norm_train": with_state("ghost_batch_norm_train", ghost_size=8, merge_last=True),
    "l1_batch_statistics": with_axes(),
    "l1_batch_norm": with_axes(0, 1),
    "l1_batch_norm as std": with_axes(0, 1, match_std=True),
    "l1_batch_norm given": with_axes(0, 1, 2, 3),
    "mean_only_batch_norm": with_axes(1),
    "mean_only_batch_norm given": with_axes(1, 2),
    "evonorm_b0_train": of_maps("evonorm_b0_train", decay=0.8),
    "evonorm_b0_eval": of_maps("evonorm_b0_eval"),
    "evonorm_b0_eval linear": of_maps("evonorm_b0_eval", nonlinearity=False),
    "alpha_batch_norm": lambda x, per_channel: ((x, *per_channel), {"source_weight": 0.6}),
    "alpha_batch_norm of a mixture": lambda x, per_channel: (
        (x, *per_channel),
        {"source_weight": 0.3, "moments": "mixture", "ddof": 0},
    ),
    "alpha_batch_norm detached": lambda x, per_channel: ((x, *per_channel), {"detach_stats": True}),
    "power_norm_v": of_tokens("power_norm_v"),
    "power_norm": of_tokens("power_norm"),
    "power_norm after warmup": of_tokens("power_norm", warmup=2, groups=None, decay_backward=0.6),
    "power_norm by its batch": of_tokens("power_norm", warmup=0, backward_scale="batch", decay_forward=0.5),
    "power_norm in use": of_tokens("power_norm", training=False),
    "unified_norm": of_tokens("unified_norm"),
    "unified_norm after warmup": of_tokens("unified_norm", warmup=2, moved=6),
    "unified_norm in use": of_tokens("unified_norm", training=False),
    "batch_channel_norm": of_groups(False),
    "batch_channel_norm_estimated": of_groups(True, rate=0.3),
    "batch_channel_norm_estimated in use": of_groups(True, training=False),
    "unmix_norm": of_components(),
    "unmix_norm between": of_components(between=True, temperature=0.5),
    "evonorm_s0": fitting_groups(),
    "evonorm_s0 one group": of_maps("evonorm_s0", groups=1),
    "evonorm_s0 linear": fitting_groups(nonlinearity=False),
}


def leaves(value: Any) -> Iterator[AnyArray | None]:
    """The arrays of a result, of which some are tuples and states."""
    if isinstance(value, tuple):
        for one in value:
            yield from leaves(one)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from leaves(getattr(value, name))
    else:
        yield None if value is None else np.asarray(value)


def widen(value: Any) -> Any:
    """The same arguments in float64."""
    if isinstance(value, np.ndarray) and value.dtype == np.float32:
        return value.astype(np.float64)
    if hasattr(value, "__dataclass_fields__"):
        return type(value)(**{name: widen(getattr(value, name)) for name in value.__dataclass_fields__})
    return value


def check_equal(found: Any, expected: Any, message: str) -> None:
    for one, other in zip(leaves(found), leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=message)


def check_close(found: Any, expected: Any, dtype: Any, units: float, message: str, terms: float = 1) -> None:
    """Every array within ``units`` roundings of its largest entry, or of ``terms`` random terms that a channel's sum has."""
    for one, other in zip(leaves(found), leaves(expected), strict=True):
        if other is None:
            assert one is None
            continue
        assert one is not None
        assert one.shape == other.shape, message
        if other.dtype.kind == "f" and other.ndim:
            assert one.dtype == dtype, message
        bound = max(
            1.0, float(np.abs(other[np.isfinite(other)]).max(initial=0)), np.sqrt(terms) if other.ndim == 1 else 0
        )
        np.testing.assert_allclose(one, other, rtol=0, atol=units * EPS[np.dtype(dtype)] * bound, err_msg=message)


def cotangent_of(value: Any, rng: np.random.Generator) -> Any:
    """A random cotangent: of ``y`` where a state comes with it."""
    if isinstance(value, tuple) and hasattr(value[1], "__dataclass_fields__"):
        value = value[0]
    if isinstance(value, tuple):
        return tuple(cotangent_of(one, rng) for one in value)
    return rng.normal(size=value.shape).astype(value.dtype)


def wide_cotangent(dy: Any) -> Any:
    return tuple(wide_cotangent(one) for one in dy) if isinstance(dy, tuple) else dy.astype(np.float64)


def compare(case: str, x: AnyArray, rng: np.random.Generator, message: str = "", units: float = 16) -> None:
    """A function and its pullback against the reference in float64, which has the digits to judge float32."""
    per_channel = rng.normal(size=(4, x.shape[1])).astype(x.dtype)
    per_channel[3] = np.abs(per_channel[3])
    name, (arguments, options) = case.split()[0], CASES[case](x, per_channel)
    value, pullback = getattr(fast, name + "_vjp")(*arguments, **options)
    check_equal(getattr(fast, name)(*arguments, **options), value, message)
    wide = [widen(argument) for argument in arguments]
    expected, reference_pullback = getattr(reference, name + "_vjp")(*wide, **options)
    check_close(value, expected, x.dtype, units, message)
    dy = cotangent_of(value, rng)
    gradient = pullback(dy)
    # what batch norm's bias owes is taken away again by the group's mean, but for roundings
    terms = x[:, 0].size if name.startswith("batch_channel") else 1
    check_close(gradient, reference_pullback(wide_cotangent(dy)), x.dtype, 4 * units, message, terms)
    check_equal(pullback(dy), gradient, message)


MIXING = ("evonorm", "power", "unified", "batch_channel", "unmix")
"""Functions whose channels are not apart, or not about a mean."""

OWN_LOOPS = ("batch_norm", "evonorm_b0_train", "evonorm_s0")


def tails(case: str) -> range:
    """All lengths for the cases that have a loop of their own, some for those that share it."""
    return support.TAILS[1:] if case in OWN_LOOPS else support.TAILS[1::29]


def guarded(shape: tuple[int, ...], dtype: type, rng: np.random.Generator) -> AnyArray:
    """Numbers whose neighbours in memory are NaN and must not be read."""
    size = int(np.prod(shape))
    memory = np.full(size + 64, np.nan, dtype)
    x = memory[32 : 32 + size].reshape(shape)
    x[...] = rng.normal(size=shape) + 3
    return x


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_every_tail_of_a_run(case: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    for length in tails(case):
        compare(case, guarded((3, 2, length), dtype, rng), rng, f"length {length}")


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_every_tail_of_columns(case: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    for channels in tails(case if case == "batch_norm" else ""):
        compare(case, guarded((9 + channels % 17, channels), dtype, rng), rng, f"channels {channels}")


SHAPES = (
    (1100, 3),
    (70, 300),
    (3, 5, 40, 41),
    (40, 6, 7, 7),
    (9, 4, 2, 2),
    (1, 3, 8, 8),
    (5, 1, 6),
    (4, 100, 33),
    (2, 2, 8300),
)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_shapes(case: str, dtype: type) -> None:
    rng = np.random.default_rng(1)
    for shape in SHAPES if case in OWN_LOOPS else SHAPES[::2]:
        compare(case, (rng.normal(size=shape) * 2 + 1).astype(dtype), rng, str(shape), units=32)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_layouts(case: str, dtype: type) -> None:
    rng = np.random.default_rng(2)
    for shape in ((6, 5), (4, 3, 5, 6), (3, 4, 40)):
        x = rng.normal(size=shape).astype(dtype)
        last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
        for name, same in {**support.layouts(x), "channels last": np.moveaxis(last, -1, 1)}.items():
            compare(case, same, np.random.default_rng(3), name)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("axes", [(0,), (-1,), (0, 1, 2), (1, 2), (0, 1, 2, 3), (2, 0), (1,), (1, 3), (0, 3)])
def test_axes(axes: tuple[int, ...], dtype: type) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(4, 5, 6, 3)).astype(dtype)
    over = [axis % 4 for axis in axes]
    units = [size for axis, size in enumerate(x.shape) if axis not in over]
    gain, bias, mean = (np.asarray(rng.normal(size=units), dtype) for _ in range(3))
    dy = rng.normal(size=x.shape).astype(dtype)
    for arguments in ((x, gain, bias), (x, gain, bias, mean, np.asarray(np.abs(mean)))):
        y, pullback = fast.batch_norm_vjp(*arguments, axes=axes)
        expected, reference_pullback = reference.batch_norm_vjp(*(widen(a) for a in arguments), axes=axes)
        check_close(y, expected, dtype, 32, str(axes))
        check_close(pullback(dy), reference_pullback(widen(dy)), dtype, 64, str(axes))
    check_close(fast.batch_statistics(x, axes), reference.batch_statistics(widen(x), axes), dtype, 16, str(axes))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("offset", [0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("shape", [(500, 6), (7, 3, 40, 41), (20000, 2)], ids=str)
def test_common_offset_costs_no_digits(shape: tuple[int, ...], offset: float) -> None:
    x = (np.random.default_rng(0).normal(size=shape) + offset).astype(np.float32)
    one, zero = np.ones(shape[1], np.float32), np.zeros(shape[1], np.float32)
    y = fast.batch_norm(x, one, zero, axes=places(x))
    expected = reference.batch_norm(widen(x), widen(one), widen(zero), axes=places(x))
    assert np.abs(y - expected).max() <= 4 * np.spacing(np.float32(np.abs(expected).max()))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("shape", [(300, 40), (16, 3, 70)], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1e-16, 1.0, 1e15, 1e30])
@pytest.mark.parametrize("first", [0.0, 30.0, 1e4, 1e7])
def test_entries_that_begin_far_from_the_mean_cost_no_digits(
    shape: tuple[int, ...], scale: float, first: float
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    x[:2] += first
    x[:, 1] -= first
    x = (scale * x).astype(np.float32)
    one, zero = np.ones(shape[1], np.float32), np.zeros(shape[1], np.float32)
    y = fast.batch_norm(x, one, zero, axes=places(x), eps=1e-300)
    expected = reference.batch_norm(widen(x), widen(one), widen(zero), axes=places(x), eps=1e-300)
    assert np.abs(y - expected).max() <= 4 * np.spacing(np.float32(np.abs(expected).max()))
    mean, var = fast.batch_statistics(x, places(x))
    wide_mean, wide_var = reference.batch_statistics(widen(x), places(x))
    np.testing.assert_allclose(mean, wide_mean, rtol=1e-6, atol=1e-6 * float(np.abs(x).max()))
    if scale <= 1e15:
        np.testing.assert_allclose(var, wide_var.astype(np.float32), rtol=2e-6, atol=1e-44)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith(MIXING)])
@pytest.mark.parametrize("shape", [(40, 9), (6, 9, 35)], ids=str)
def test_special_channels(case: str, shape: tuple[int, ...], dtype: type) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(dtype)
    flat = x.swapaxes(0, 1).reshape(9, -1).copy()
    flat[0, 1], flat[1, 2], flat[2, 3], flat[3] = np.nan, np.inf, -np.inf, 7
    flat[4, 0], flat[4, 5] = np.inf, -np.inf
    flat[5] = np.resize(support.HOSTILE, flat[5].shape)
    flat[6] = 0
    x = np.ascontiguousarray(flat.reshape(9, shape[0], *shape[2:]).swapaxes(0, 1))
    per_channel = rng.uniform(0.5, 2, size=(4, 9)).astype(dtype)
    name, (arguments, options) = case.split()[0], CASES[case](x, per_channel)
    found, pullback = getattr(fast, name + "_vjp")(*arguments, **options)
    wide = [widen(argument) for argument in arguments]
    expected, reference_pullback = getattr(reference, name + "_vjp")(*wide, **options)
    for one, other in zip(leaves(found), leaves(expected), strict=True):
        with np.errstate(over="ignore"):
            wanted = other.astype(one.dtype)  # type: ignore[union-attr]
        np.testing.assert_allclose(one, wanted, rtol=1e-5, atol=2e-5)
    dy = cotangent_of(found, rng)
    plain = np.array([6, 7, 8]) if "statistics" in case else np.array([3, 6, 7, 8])
    ours, theirs = pullback(dy)[0], reference_pullback(wide_cotangent(dy))[0]
    np.testing.assert_allclose(ours[:, plain], theirs[:, plain], rtol=1e-3, atol=1e-5 * np.abs(theirs[:, plain]).max())
    if "statistics" not in case:
        np.testing.assert_array_equal(np.isnan(ours[:, :3]), np.isnan(theirs[:, :3]))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("case", [case for case in CASES if "evonorm" in case])
def test_special_maps(case: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 8, 5, 7)).astype(dtype)
    x[0, 0, 0, 1], x[1, 1, 2, 3], x[1, 2, 0, 0], x[2, 3], x[3, 4], x[:, 5] = np.nan, np.inf, -np.inf, 7, 0, -3
    x[4, 6], x[5, 7] = 1e4, -1e-30
    per_channel = rng.uniform(0.5, 2, size=(4, 8)).astype(dtype)
    per_channel[2] *= 0.1  # slopes that keep B0's divisor away from 0
    name, (arguments, options) = case.split()[0], CASES[case](x, per_channel)
    found, pullback = getattr(fast, name + "_vjp")(*arguments, **options)
    wide = [widen(argument) for argument in arguments]
    expected, reference_pullback = getattr(reference, name + "_vjp")(*wide, **options)
    for one, other in zip(leaves(found), leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)  # type: ignore[arg-type]
    dy = cotangent_of(found, rng)
    ours, theirs = pullback(dy)[0], reference_pullback(wide_cotangent(dy))[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("shape", [(5, 33), (3, 2, 40), (3, 2, 20000), (600, 64)], ids=str)
def test_out(shape: tuple[int, ...], dtype: type) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(dtype)
    gain, bias, mean = rng.normal(size=(3, shape[1])).astype(dtype)
    state, axes = reference.BatchNormState(mean, np.abs(mean)), places(x)
    functions: list[Callable[..., AnyArray]] = [
        lambda x, **out: fast.batch_norm(x, gain, bias, axes=axes, **out),
        lambda x, **out: fast.batch_norm(x, gain, bias, mean, np.abs(mean), axes=axes, **out),
        lambda x, **out: fast.batch_norm_eval(x, gain, bias, state, **out),
        lambda x, **out: fast.ghost_batch_norm(x, gain, bias, ghost_size=2, merge_last=True, **out),
        lambda x, **out: fast.alpha_batch_norm(x, gain, bias, mean, np.abs(mean), **out),
        lambda x, **out: fast.l1_batch_norm(x, gain, bias, axes=axes, **out),
        lambda x, **out: fast.mean_only_batch_norm(x, bias, axes=axes, **out),
    ]
    for function in functions:
        support.check_out(function, x)
        support.check_out_errors(function, x)
    maps = x.reshape(*shape[:2], -1, 2) if len(shape) == 3 else x[..., None, None]
    of_maps: list[Callable[..., AnyArray]] = [
        lambda x, **out: fast.evonorm_s0(x, gain, bias, mean, groups=1, **out),
        lambda x, **out: fast.evonorm_b0_eval(x, gain, bias, mean, reference.EvoNormState(np.abs(mean)), **out),
        lambda x, **out: fast.evonorm_s0(x, gain, bias, mean, groups=1, nonlinearity=False, **out),
    ]
    for function in of_maps:
        support.check_out(function, maps)
        support.check_out_errors(function, maps)
    square = rng.normal(size=(8, 8)).astype(dtype)
    expected = fast.batch_norm(square, square[0].copy(), square[1].copy())
    np.testing.assert_array_equal(fast.batch_norm(square, square[0], square[1], out=square), expected)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(500, 300), (2, 3, 40000), (30, 60, 99)], ids=str)
def test_same_bits_for_any_number_of_threads(case: str, shape: tuple[int, ...], dtype: type) -> None:
    rng = np.random.default_rng(0)
    x, per_channel = rng.normal(size=shape).astype(dtype), rng.uniform(0.5, 2, size=(4, shape[1])).astype(dtype)
    name, (arguments, options) = case.split()[0], CASES[case](x, per_channel)

    def results() -> list[AnyArray | None]:
        value, pullback = getattr(fast, name + "_vjp")(*arguments, **options)
        dy = cotangent_of(value, np.random.default_rng(1))
        return [*leaves(value), *leaves(pullback(dy))]

    with support.threads(1):
        expected = results()
    for count in (2, 5):
        with support.threads(count):
            for one, other in zip(results(), expected, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_masked_tokens(dtype: type) -> None:
    rng = np.random.default_rng(0)
    x, (gain, bias) = rng.normal(size=(5, 6, 4)).astype(dtype), rng.normal(size=(2, 4)).astype(dtype)
    mask, state = rng.random((5, 6)) < 0.7, reference.UnifiedNormState.create(4, dtype=dtype)
    expected = reference.power_norm_v(x, gain, bias, mask=mask)
    out = np.empty_like(x)
    assert fast.power_norm_v(x, gain, bias, mask=mask, out=out) is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(fast.power_norm_v_vjp(x, gain, bias, mask=mask)[0], expected)
    power = reference.PowerNormState.create(4, dtype=dtype)
    check_equal(
        fast.power_norm(x, gain, bias, power, mask=mask), reference.power_norm(x, gain, bias, power, mask=mask), ""
    )
    check_equal(
        fast.unified_norm(x, gain, bias, state, mask=mask), reference.unified_norm(x, gain, bias, state, mask=mask), ""
    )


def test_results_too_large_for_the_caches() -> None:
    # non-temporal stores: large enough for any last-level cache that reports itself as up to 64 MiB
    rng = np.random.default_rng(0)
    for shape in ((9000, 1008), (9001, 1003), (20, 10, 45001)):
        x = rng.normal(size=shape).astype(np.float32)
        gain, bias, mean = rng.normal(size=(3, shape[1])).astype(np.float32)
        y = fast.batch_norm(x, gain, bias, mean, np.abs(mean), axes=places(x))
        elsewhere = np.empty(x.size + 3, x.dtype)[3:].reshape(shape)
        fast.batch_norm(x, gain, bias, mean, np.abs(mean), axes=places(x), out=elsewhere)
        np.testing.assert_array_equal(elsewhere, y)
        for first in range(0, shape[0], shape[0] // 4):
            part = x[first : first + 1]
            np.testing.assert_array_equal(
                y[first : first + 1], fast.batch_norm(part, gain, bias, mean, np.abs(mean), axes=places(x))
            )
        trained = fast.batch_norm(x, gain, bias, axes=places(x))
        in_place = x.copy()
        np.testing.assert_array_equal(fast.batch_norm(in_place, gain, bias, axes=places(x), out=in_place), trained)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=2, max_size=4),
    st.integers(0, 2**32 - 1),
    st.sampled_from(list(CASES)),
    st.sampled_from(support.ISAS),
    st.sampled_from(support.DTYPES),
    st.sampled_from((0.0, 1.0, 100.0)),
)
def test_equals_the_reference(shape: list[int], seed: int, case: str, isa: str, dtype: type, offset: float) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(2 * shape[0], *shape[1:])) + offset).astype(dtype)
    with support.using_isa(isa):
        compare(case, x, rng, units=16 * max(1, offset))


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("case", [case for case in CASES if case.startswith(("batch_channel", "unmix"))])
def test_special_planes(case: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 4, 6, 7)).astype(dtype)
    x[0, 0, 1, 2], x[1, 2, 3, 4], x[2, 1], x[3, 3] = np.nan, np.inf, 7, 0
    per_channel = rng.uniform(0.5, 2, size=(4, 4)).astype(dtype)
    per_channel[0, 3] = 0
    name, (arguments, options) = case.split()[0], CASES[case](x, per_channel)
    found, pullback = getattr(fast, name + "_vjp")(*arguments, **options)
    wide = [widen(argument) for argument in arguments]
    expected, reference_pullback = getattr(reference, name + "_vjp")(*wide, **options)
    dy = cotangent_of(found, rng)
    pairs = [(found, expected), (pullback(dy), reference_pullback(wide_cotangent(dy)))]
    for ours, theirs in pairs:
        for one, other in zip(leaves(ours), leaves(theirs), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 8), (2, 2, 4000)], ids=str)
def test_batch_channel_norm_out(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    gain, bias = rng.normal(size=(2, shape[1])).astype(np.float32)
    group_gain, group_bias = rng.normal(size=(2, 2)).astype(np.float32)

    def function(x: AnyArray, **out: Any) -> AnyArray:
        return fast.batch_channel_norm(x, gain, bias, group_gain, group_bias, groups=2, **out)

    x = rng.normal(size=shape).astype(np.float32)
    support.check_out(function, x)
    support.check_out_errors(function, x)


def test_empty() -> None:
    for dtype in support.DTYPES:
        none, two = np.ones(0, dtype), np.ones(2, dtype)
        y, pullback = fast.batch_norm_vjp(np.ones((3, 0), dtype), none, none)
        assert y.shape == (3, 0)
        assert [one.shape for one in pullback(y)[:3]] == [(3, 0), (0,), (0,)]
        x = np.ones((0, 2, 4), dtype)
        y, pullback = fast.batch_norm_vjp(x, two, two, two, two, axes=(0, 2))
        assert y.shape == x.shape
        for one in pullback(y)[1:]:
            np.testing.assert_array_equal(one, [0, 0])


ONE, TWO = np.ones(3), np.ones((2, 3))
MAPS, PLANES = np.ones((2, 3, 2, 2)), np.ones((2, 3, 40))
STATE = reference.BatchNormState(ONE, ONE)
ERRORS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("batch_statistics", (TWO.astype(int),), {}),
    ("batch_statistics", (np.float64(1),), {}),
    ("batch_statistics", (TWO, (2,)), {}),
    ("batch_statistics", (TWO, (0, 0)), {}),
    ("batch_statistics", (np.ones((0, 3)),), {}),
    ("batch_norm", (TWO.astype(int), ONE, ONE), {}),
    ("batch_norm", (TWO, ONE.astype(np.float32), ONE), {}),
    ("batch_norm", (TWO, ONE, np.ones(4)), {}),
    ("batch_norm", (TWO, ONE, None), {}),
    ("l1_batch_norm", (TWO, None, ONE), {}),
    ("batch_norm", (TWO, ONE, ONE, ONE), {}),
    ("batch_norm", (TWO, ONE, ONE, None, ONE), {}),
    ("batch_norm", (TWO, ONE, ONE, ONE, -ONE), {}),
    ("batch_norm", (TWO, ONE, ONE, ONE, np.ones(2)), {}),
    ("batch_norm", (TWO, ONE, ONE), {"eps": 0.0}),
    ("batch_norm", (TWO, ONE, ONE), {"eps": np.nan}),
    ("batch_norm", (TWO, ONE, ONE), {"axes": (5,)}),
    ("batch_norm", (TWO, ONE, ONE), {"axes": (1,)}),
    ("batch_norm", (np.ones((0, 3)), ONE, ONE), {}),
    ("batch_norm", (np.float64(1), ONE, ONE), {}),
    ("ghost_batch_norm", (TWO, ONE, np.ones(2)), {}),
    ("ghost_batch_norm", (TWO, ONE, ONE), {"ghost_size": 1}),
    ("ghost_batch_norm", (TWO, ONE, ONE), {"ghost_size": 2.0}),
    ("ghost_batch_norm", (TWO, ONE, ONE), {"eps": 0.0}),
    ("ghost_batch_norm", (np.ones((5, 3)), ONE, ONE), {"ghost_size": 2}),
    ("ghost_batch_norm", (np.ones((0, 3)), ONE, ONE), {}),
    ("ghost_batch_norm_train", (TWO, ONE, ONE, reference.GhostBatchState.create(2)), {}),
    ("ghost_batch_norm_train", (TWO, ONE, ONE, reference.GhostBatchState.create(3)), {"momentum": -1.0}),
    ("l1_batch_statistics", (np.ones((0, 3)),), {}),
    ("l1_batch_norm", (TWO, ONE, ONE, ONE), {}),
    ("l1_batch_norm", (TWO, ONE, ONE, ONE, -ONE), {}),
    ("l1_batch_norm", (TWO, ONE, ONE), {"eps": -1.0}),
    ("mean_only_batch_norm", (TWO, np.ones(2)), {}),
    ("alpha_batch_norm", (TWO, ONE, ONE, ONE, -ONE), {}),
    ("alpha_batch_norm", (TWO, ONE, ONE, ONE, ONE[:2]), {}),
    ("alpha_batch_norm", (TWO, ONE, ONE, ONE, ONE), {"source_weight": 2.0}),
    ("alpha_batch_norm", (TWO, ONE, ONE, ONE, ONE), {"ddof": 2}),
    ("alpha_batch_norm", (TWO, ONE, ONE, ONE, ONE), {"moments": "none"}),
    ("alpha_batch_norm", (TWO, ONE, ONE, ONE, ONE), {"eps": 0.0}),
    ("alpha_batch_norm", (np.ones((0, 3)), ONE, ONE, ONE, ONE), {}),
    ("power_norm_v", (TWO, ONE, ONE[:2]), {}),
    ("power_norm_v", (ONE, ONE, ONE), {}),
    ("power_norm_v", (TWO, ONE, ONE), {"eps": 0.0}),
    ("power_norm_v", (np.ones((0, 3)), ONE, ONE), {}),
    ("power_norm_v", (TWO, ONE, ONE), {"mask": np.ones(2)}),
    ("power_norm", (TWO, ONE, ONE, reference.PowerNormState.create(2)), {}),
    ("power_norm", (TWO, ONE, ONE, reference.PowerNormState(-ONE, ONE)), {}),
    ("power_norm", (TWO, ONE, ONE[:2], reference.PowerNormState.create(3)), {}),
    ("power_norm", (TWO, ONE, ONE, reference.PowerNormState.create(3)), {"groups": 2}),
    ("power_norm", (TWO, ONE, ONE, reference.PowerNormState.create(3)), {"decay_forward": 1.0}),
    ("power_norm", (TWO, ONE, ONE, reference.PowerNormState.create(3)), {"decay_backward": -0.1}),
    ("power_norm", (TWO, ONE, ONE, reference.PowerNormState.create(3)), {"warmup": -1}),
    ("power_norm", (TWO, ONE, ONE, reference.PowerNormState.create(3)), {"backward_scale": "none"}),
    ("unified_norm", (TWO, ONE, ONE, reference.UnifiedNormState.create(2)), {}),
    ("batch_channel_norm", (PLANES, ONE, ONE, ONE, ONE), {"groups": 2}),
    ("batch_channel_norm", (PLANES, ONE, ONE, ONE[:2], ONE), {"groups": 3}),
    ("batch_channel_norm", (PLANES, ONE, ONE, ONE, ONE), {"groups": 3, "eps": 0.0}),
    ("batch_channel_norm", (PLANES[:0], ONE, ONE, ONE, ONE), {"groups": 3}),
    ("batch_channel_norm_estimated", (PLANES, *[ONE] * 4, reference.BatchChannelState.create(2)), {"groups": 3}),
    ("batch_channel_norm_estimated", (PLANES, *[ONE] * 4, reference.BatchChannelState(ONE, -ONE)), {"groups": 3}),
    (
        "batch_channel_norm_estimated",
        (PLANES, *[ONE] * 4, reference.BatchChannelState(ONE, ONE)),
        {"groups": 3, "rate": 2.0},
    ),
    ("unmix_norm", (PLANES, ONE, ONE[:2], reference.UnMixState(TWO, TWO)), {"rate": 0.1}),
    ("unmix_norm", (PLANES, ONE, ONE, reference.UnMixState(TWO, -TWO)), {"rate": 0.1}),
    ("unmix_norm", (PLANES, ONE, ONE, reference.UnMixState(TWO, TWO)), {"rate": 1.1}),
    ("unmix_norm", (PLANES, ONE, ONE, reference.UnMixState(TWO, TWO)), {"rate": 0.1, "temperature": 0.0}),
    ("unmix_norm", (PLANES, ONE, ONE, reference.UnMixState(TWO, TWO)), {"rate": 0.1, "eps": 0.0}),
    ("unmix_norm", (TWO, ONE, ONE, reference.UnMixState(TWO, TWO)), {"rate": 0.1}),
    ("unified_norm", (TWO, ONE, ONE, reference.UnifiedNormState.create(3)), {"momentum": 1.0}),
    ("unified_norm", (TWO, ONE, ONE, reference.UnifiedNormState.create(3)), {"warmup": 1.0}),
    ("evonorm_s0", (TWO, ONE, ONE, ONE), {}),
    ("evonorm_s0", (MAPS, ONE, ONE[:2], ONE), {}),
    ("evonorm_s0", (MAPS, ONE, ONE, ONE.astype(np.float32)), {}),
    ("evonorm_s0", (MAPS, ONE, ONE, ONE), {"groups": 2}),
    ("evonorm_s0", (MAPS, ONE, ONE, ONE), {"groups": 3.0}),
    ("evonorm_s0", (MAPS[:, :, :1, :1], ONE, ONE, ONE), {}),
    ("evonorm_s0", (MAPS[:0], ONE, ONE, ONE), {}),
    ("evonorm_s0", (MAPS, ONE, ONE, ONE), {"eps": 0.0}),
    ("evonorm_b0_train", (MAPS, ONE, ONE, ONE, reference.EvoNormState.create(2)), {}),
    ("evonorm_b0_train", (MAPS, ONE, ONE, ONE, reference.EvoNormState(ONE)), {"decay": 2.0}),
    ("evonorm_b0_eval", (MAPS, ONE, ONE, ONE, reference.EvoNormState(-ONE)), {}),
    ("mean_only_batch_norm", (TWO, ONE, ONE.astype(np.float32)), {}),
    ("mean_only_batch_norm", (np.ones((0, 3)), ONE), {}),
    ("batch_norm_train", (ONE, ONE, ONE, STATE), {}),
    ("batch_norm_train", (TWO[:1], ONE, ONE, STATE), {}),
    ("batch_norm_train", (TWO, ONE, ONE, reference.BatchNormState.create(2)), {}),
    ("batch_norm_train", (TWO, ONE, ONE, STATE), {"momentum": 1.5}),
    ("batch_norm_eval", (TWO, ONE, ONE, reference.BatchNormState(ONE, -ONE)), {}),
    ("batch_norm_eval", (TWO, ONE, ONE, reference.BatchNormState(ONE[:2], ONE)), {}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), ERRORS)
def test_errors_are_the_references(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    for suffix in ("", "_vjp"):
        with pytest.raises((TypeError, ValueError)) as expected:
            getattr(reference, name + suffix)(*arguments, **options)
        with pytest.raises(expected.type) as raised:
            getattr(fast, name + suffix)(*arguments, **options)
        assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("name", sorted({case.split()[0] for case in CASES}))
def test_signatures_are_the_references(name: str) -> None:
    for suffix in ("", "_vjp"):
        wanted = inspect.signature(getattr(reference, name + suffix)).parameters
        found = dict(inspect.signature(getattr(fast, name + suffix)).parameters)
        found.pop("out", None)
        assert [(p.name, p.default, p.kind) for p in found.values()] == [
            (p.name, p.default, p.kind) for p in wanted.values()
        ]


@pytest.mark.parametrize(
    "module", [_alpha, _batch, _batch_channel, _evonorm, _ghost, _l1, _mean_only, _power, _unified, _unmix]
)
def test_examples(module: Any) -> None:
    outcome = doctest.testmod(module, extraglobs={"np": np})
    assert outcome.failed == 0
    assert outcome.attempted >= 4
