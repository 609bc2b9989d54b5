"""Norms that end in 8-bit codes against their composition."""

from __future__ import annotations

import doctest
import inspect
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refnorm.quantizers as reference
import refnorm_fast.norms as norms
import refnorm_fast.quantizers as fast
from refnorm_fast.quantizers import _norm
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]
NAMES = ("layer_norm_absmax_quantize", "layer_norm_quantize", "rms_norm_absmax_quantize", "rms_norm_quantize")


@pytest.fixture(params=support.ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    with support.using_isa(request.param):
        yield request.param


def rows_of(y: AnyArray) -> tuple[AnyArray, AnyArray]:
    q, absmax = reference.absmax_quantize(y.reshape(-1, y.shape[-1]), axis=0)
    return q.reshape(y.shape), absmax.reshape(*y.shape[:-1], 1)


def check(x: AnyArray, gain: AnyArray, bias: AnyArray, eps: float = 1e-5, message: str = "") -> None:
    """The float32 codes are bit for bit those of the kernels' own norms."""
    for y, by_absmax, on_grid in (
        (
            norms.layer_norm(x, gain, bias, eps=eps),
            lambda: fast.layer_norm_absmax_quantize(x, gain, bias, eps=eps),
            lambda *grid, **more: fast.layer_norm_quantize(x, gain, bias, *grid, eps=eps, **more),
        ),
        (
            norms.rms_norm(x, gain, bias, eps=eps),
            lambda: fast.rms_norm_absmax_quantize(x, gain, bias, eps=eps),
            lambda *grid, **more: fast.rms_norm_quantize(x, *grid, gain, bias, eps=eps, **more),
        ),
    ):
        for found, expected in zip(by_absmax(), rows_of(y), strict=True):
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected, err_msg=message)
        for scale, zero_point, lowest in ((0.01, -3, -128), (0.02, 120, 0), (1e-30, 0, -128), (3e38, 255, 0)):
            found = on_grid(scale, zero_point, lowest=lowest)
            expected = reference.quantize(y, scale, zero_point, signed=lowest < 0)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected, err_msg=message)


@pytest.mark.usefixtures("isa")
def test_every_tail() -> None:
    rng = np.random.default_rng(0)
    for length in support.TAILS:
        if length:
            guarded = np.full((3, length + 2), np.nan, np.float32)  # neighbours that must not be read
            guarded[:, 1:-1] = rng.normal(size=(3, length)) + 3
            gain, bias = rng.normal(size=(2, length)).astype(np.float32)
            check(guarded[:, 1:-1], gain, bias, message=f"length {length}")


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("shape", [(300, 700), (2, 300001), (2, 3, 4), (0, 4), (7,)])
def test_shapes_and_layouts(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    gain, bias = rng.normal(size=(2, shape[-1])).astype(np.float32)
    x = rng.normal(size=shape).astype(np.float32)
    check(x, gain, bias)
    if x.size and x.ndim > 1 and x.size < 1000:
        for name, same in support.layouts(x).items():
            expected = rows_of(norms.layer_norm(same, gain, bias))
            for one, other in zip(fast.layer_norm_absmax_quantize(same, gain, bias), expected, strict=True):
                np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.usefixtures("isa")
def test_rows_of_zeros_and_tiny_results() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 37)).astype(np.float32)
    x[1] = 2
    zero = np.zeros(37, np.float32)
    check(x, zero, zero)
    check(x, np.full(37, 1e-39, np.float32), zero)  # 127 / absmax is infinite
    check(x, np.full(37, 1e38, np.float32), zero)


def test_without_gain_or_bias_and_in_float64() -> None:
    x, gain, bias = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32)
    for given_gain, given_bias in ((None, None), (gain, None), (None, bias)):
        y = norms.rms_norm(x, given_gain, given_bias)
        np.testing.assert_array_equal(fast.rms_norm_absmax_quantize(x, given_gain, given_bias)[0], rows_of(y)[0])
        codes = fast.rms_norm_quantize(x, 0.1, 3, given_gain, given_bias)
        np.testing.assert_array_equal(codes, reference.quantize(y, 0.1, 3))
    wide = [a.astype(np.float64) for a in (x, gain, bias)]
    q, absmax = fast.layer_norm_absmax_quantize(*wide)
    expected = reference.layer_norm_absmax_quantize(*wide)
    np.testing.assert_array_equal(q, expected[0])
    np.testing.assert_array_equal(absmax, expected[1])


@given(
    st.integers(0, 9), st.integers(1, 70), st.integers(0, 2**32), st.sampled_from(support.ISAS), st.floats(1e-3, 1e3)
)
def test_equals_the_composition(rows: int, length: int, seed: int, isa: str, size: float) -> None:
    rng = np.random.default_rng(seed)
    x = (size * rng.normal(size=(rows, length))).astype(np.float32)
    gain, bias = rng.normal(size=(2, length)).astype(np.float32)
    with support.using_isa(isa):
        check(x, gain, bias, eps=1e-3)


def test_same_bits_for_any_number_of_threads() -> None:
    x = np.random.default_rng(0).normal(size=(3001, 300)).astype(np.float32)
    gain, bias = np.ones(300, np.float32), np.zeros(300, np.float32)
    with support.threads(1):
        expected = (*fast.layer_norm_absmax_quantize(x, gain, bias), fast.rms_norm_quantize(x, 0.02, 0))
    for count in (2, 5):
        with support.threads(count):
            found = (*fast.layer_norm_absmax_quantize(x, gain, bias), fast.rms_norm_quantize(x, 0.02, 0))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


X, ONE = np.ones((2, 3), np.float32), np.ones(3, np.float32)
BROKEN = np.array([[1, 2, 3], [1, np.nan, 2]], np.float32)
INFINITE = np.array([[1, 2, np.inf]], np.float32)
ERRORS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("layer_norm_absmax_quantize", (BROKEN, ONE, ONE), {}),
    ("layer_norm_absmax_quantize", (INFINITE, ONE, ONE), {}),
    ("layer_norm_absmax_quantize", (X, INFINITE[0], ONE), {}),
    ("layer_norm_absmax_quantize", (X, ONE, BROKEN[1]), {}),
    ("layer_norm_absmax_quantize", (X, None, ONE), {}),
    ("layer_norm_absmax_quantize", (X, ONE[:2], ONE), {}),
    ("layer_norm_absmax_quantize", (X.astype(int), ONE, ONE), {}),
    ("layer_norm_absmax_quantize", (X, ONE, ONE), {"eps": 0.0}),
    ("layer_norm_absmax_quantize", (X[:, :0], ONE[:0], ONE[:0]), {}),
    ("layer_norm_quantize", (BROKEN, ONE, ONE, 0.1, 0), {}),
    ("layer_norm_quantize", (X, ONE, ONE, 0.0, 0), {}),
    ("layer_norm_quantize", (X, ONE, ONE, 1e-60, 0), {}),
    ("layer_norm_quantize", (X, ONE, ONE, 0.1, 128), {}),
    ("layer_norm_quantize", (X, ONE, ONE, 0.1, -1), {"lowest": 0}),
    ("layer_norm_quantize", (X, ONE, ONE, 0.1, 0), {"lowest": 1}),
    ("layer_norm_quantize", (X, ONE, ONE, 0.1, 0.5), {}),
    ("rms_norm_absmax_quantize", (BROKEN,), {}),
    ("rms_norm_absmax_quantize", (X, ONE, ONE[:1]), {}),
    ("rms_norm_quantize", (INFINITE, 0.1, 0), {}),
    ("rms_norm_quantize", (X, np.float64(0.1), 0), {}),
]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(("name", "arguments", "options"), ERRORS)
def test_errors_are_the_references(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)) as expected:
        getattr(reference, name)(*arguments, **options)
    with pytest.raises(expected.type) as raised:
        getattr(fast, name)(*arguments, **options)
    assert str(raised.value) == str(expected.value)


def test_signatures_are_the_references() -> None:
    for name in NAMES:
        mine, theirs = (inspect.signature(getattr(package, name)).parameters for package in (fast, reference))
        assert [(p.name, p.kind, p.default) for p in mine.values()] == [
            (p.name, p.kind, p.default) for p in theirs.values()
        ]


def test_examples() -> None:
    outcome = doctest.testmod(_norm, extraglobs={"np": np})
    assert outcome.failed == 0
    assert outcome.attempted > 0
