"""Random bases made in registers against the reference's, which NumPy's Philox makes."""

from __future__ import annotations

import doctest
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refnorm.quantizers as reference
import refnorm_fast.quantizers as fast
from refnorm_fast.quantizers import _random_basis
from tests.fast import support

SEEDS = (0, 1, 12345678901234567890, (1 << 64) + 3, (1 << 128) - 1)


@pytest.fixture(params=support.ISAS, autouse=True)
def isa(request):
    with support.using_isa(request.param):
        yield request.param


def pair(*args: Any, **options: Any) -> tuple[Any, Any]:
    return fast.BasisGenerator(*args, **options), reference.BasisGenerator(*args, **options)


@pytest.mark.parametrize("seed", SEEDS)
def test_bases_are_the_reference_s_bit_for_bit(seed):
    for size in support.TAILS[1:]:
        mine, wanted = pair(seed, (size,), 7)
        np.testing.assert_array_equal(mine.bases(2, 5), wanted.bases(2, 5))
    for shape, scale in [((), None), ((3, 5, 7), 0.3), ((16, 100), 1e-30), ((2, 999), 1.0)]:
        mine, wanted = pair(seed, shape, 300, scale)
        found = mine.bases(297, 300)
        assert (found.dtype, found.shape) == (np.float32, (3, *shape))
        np.testing.assert_array_equal(found, wanted.bases(297, 300))
        assert mine.bases(4, 4).shape == (0, *shape)


def test_counters_that_pass_32_bits():
    mine, wanted = pair(5, (1000,), 1 << 40)
    start = (1 << 40) - 3
    np.testing.assert_array_equal(mine.bases(start, start + 3), wanted.bases(start, start + 3))
    # And those that pass 64 bits are left to the reference.
    mine, wanted = pair(5, (1000,), 1 << 70)
    start = (1 << 70) - 3
    np.testing.assert_array_equal(mine.bases(start, start + 3), wanted.bases(start, start + 3))


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_sums_and_products_follow_the_reference(dtype):
    rng = np.random.default_rng(0)
    for size, n_basis in [(1, 1), (3, 200), (31, 5), (64, 3), (65, 130), (130, 64), (1001, 65), (257, 1000)]:
        mine, wanted = pair(9, (size,), n_basis)
        coefficients, x = rng.standard_normal(n_basis).astype(dtype), rng.standard_normal(size).astype(dtype)
        rows = wanted.bases(0, n_basis).astype(np.float64)
        found = mine.combine(coefficients)
        assert (found.dtype, found.shape) == (dtype, (size,))
        eps = np.finfo(dtype).eps
        bound = np.abs(coefficients.astype(np.float64)) @ np.abs(rows) * (4e-16 * n_basis) + eps
        assert (np.abs(found - coefficients.astype(np.float64) @ rows) <= bound + eps * np.abs(found)).all()
        found = mine.project(x)
        assert (found.dtype, found.shape) == (dtype, (n_basis,))
        bound = np.abs(rows) @ np.abs(x.astype(np.float64)) * (4e-16 * size) + eps
        assert (np.abs(found - rows @ x.astype(np.float64)) <= bound + eps * np.abs(found)).all()
        np.testing.assert_allclose(mine.project(x), wanted.project(x), rtol=0, atol=64 * eps * np.sqrt(size))


@given(st.integers(0, 2**128 - 1), st.integers(1, 90), st.integers(1, 40), st.data())
def test_any_basis_is_the_reference_s(seed, size, n_basis, data):
    mine, wanted = pair(seed, (size,), n_basis)
    start = data.draw(st.integers(0, n_basis))
    stop = data.draw(st.integers(start, n_basis))
    np.testing.assert_array_equal(mine.bases(start, stop), wanted.bases(start, stop))


def test_one_coefficient_gives_its_basis():
    mine = fast.BasisGenerator(3, (6, 7), 5)
    for i, row in enumerate(np.eye(5)):
        np.testing.assert_array_equal(mine.combine(row), mine.bases(i, i + 1)[0].astype(np.float64))


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_special_values_and_layouts(dtype):
    mine = fast.BasisGenerator(3, (6, 7), 5)
    coefficients, x = np.ones(5, dtype), np.random.default_rng(1).standard_normal((6, 7)).astype(dtype)
    for special in support.SPECIAL:
        odd = coefficients.copy()
        odd[2] = special
        assert not np.isfinite(mine.combine(odd)).any()
        y = x.copy()
        y[3, 4] = special
        assert not np.isfinite(mine.project(y)).any()
    for name, view in support.layouts(x).items():
        np.testing.assert_array_equal(mine.project(view), mine.project(view.copy()), err_msg=name)
    doubled = np.repeat(coefficients, 2)[::2]
    np.testing.assert_array_equal(mine.combine(doubled), mine.combine(coefficients))
    np.testing.assert_array_equal(mine.combine(support.misaligned(coefficients)), mine.combine(coefficients))


def test_results_do_not_depend_on_threads_nor_on_chunks(isa):
    if isa != support.ISAS[-1]:
        pytest.skip("one level: the sharing is the same")
    mine = fast.BasisGenerator(3, (60, 70), 333)
    x, found = np.random.default_rng(1).standard_normal((60, 70)), []
    for count in (1, 2, 3):
        with support.threads(count):
            found.append((mine.bases(0, 333), mine.combine(np.linspace(-1, 1, 333), chunk=count), mine.project(x)))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("variant", ["official", "pure"])
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_adapters_follow_the_reference(variant, dtype):
    rng = np.random.default_rng(2)
    adapter = reference.nola_init((9, 13), rank=3, n_basis=(70, 5), variant=variant, seed=8, rng=rng, dtype=dtype)
    adapter = replace(adapter, coefficients_b=rng.standard_normal(5).astype(dtype))
    x, weight, dy = (rng.standard_normal(shape).astype(dtype) for shape in [(4, 13), (9, 13), (4, 9)])
    args = x, weight, adapter.coefficients_a, adapter.coefficients_b, adapter
    y, pullback = fast.nola_linear_vjp(*args, train_weight=True)
    wanted, reference_pullback = reference.nola_linear_vjp(*args, train_weight=True)
    tolerance = {"rtol": 64 * np.finfo(dtype).eps, "atol": 256 * np.finfo(dtype).eps}
    np.testing.assert_allclose(y, wanted, **tolerance)
    np.testing.assert_array_equal(fast.nola_linear(*args), y)
    for one, other in zip(pullback(dy), reference_pullback(dy), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_allclose(one, other, **tolerance)
    np.testing.assert_allclose(fast.nola_delta(adapter), reference.nola_delta(adapter), **tolerance)
    np.testing.assert_allclose(fast.nola_merge(weight, adapter), reference.nola_merge(weight, adapter), **tolerance)


def test_bad_input_raises_what_the_reference_raises():
    calls = [
        lambda module: module.BasisGenerator(-1, (3,), 2),
        lambda module: module.BasisGenerator(1, (0,), 2),
        lambda module: module.BasisGenerator(1, (3,), 2, scale=0.0),
        lambda module: module.BasisGenerator(1, (3,), 2).bases(0, 3),
        lambda module: module.BasisGenerator(1, (3,), 2).bases(2, 1),
        lambda module: module.BasisGenerator(1, (3,), 2).combine(np.ones(3)),
        lambda module: module.BasisGenerator(1, (3,), 2).combine(np.ones(2, int)),
        lambda module: module.BasisGenerator(1, (3,), 2).combine(np.ones(2), chunk=0),
        lambda module: module.BasisGenerator(1, (3,), 2).project(np.ones(2)),
        lambda module: module.BasisGenerator(1, (3,), 2).project(np.ones(3), chunk=0),
        lambda module: module.nola_merge(np.ones((3, 3)), reference.nola_init((2, 2), rank=1, n_basis=(3, 3), seed=0)),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError)) as wanted:
            call(reference)
        with pytest.raises(type(wanted.value)) as found:
            call(fast)
        assert str(found.value) == str(wanted.value)


def test_examples():
    assert doctest.testmod(_random_basis).failed == 0
