from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm._arrays import ulp_error
from refnorm.gradcheck import GradientCase
from refnorm.softmax import (
    ExtExp,
    ext_add,
    ext_exp,
    ext_log,
    ext_sum,
    ext_to_float,
    memory_traffic,
    online_merge,
    softmax,
    softmax_vjp,
)

RNG = np.random.default_rng(2)
ALGORITHMS = ("two_pass", "three_pass_recompute", "three_pass_reload", "online")

GRADIENT_CASES = [
    *(
        GradientCase(
            softmax_vjp,
            (3 * RNG.standard_normal((3, 7)),),
            {"algorithm": algorithm},
            method="complex",
            name=algorithm,
        )
        for algorithm in ALGORITHMS
    ),
    GradientCase(softmax_vjp, (RNG.standard_normal((2, 5, 3)),), {"axis": 1}, name="middle axis, differences"),
    GradientCase(softmax_vjp, (1000 + RNG.standard_normal(6),), method="complex", name="large offset"),
    GradientCase(softmax_vjp, (np.array([[2.0, 2.0, 2.0], [0.5, 0.5, -7.0]]),), method="complex", name="ties"),
    GradientCase(softmax_vjp, (np.array([[0.0, 8.0, -8.0]]),), method="complex", name="saturated"),
    GradientCase(softmax_vjp, (np.log(2) * np.array([0.5, 1.5, -2.5]),), method="complex", name="edge of the reduction"),
    GradientCase(softmax_vjp, (np.array([[4.0]]),), method="complex", name="one entry"),
    *(
        GradientCase(softmax_vjp, (RNG.standard_normal((3, 7)),), {"algorithm": algorithm, "temperature": 0.4, "where": RNG.random((3, 7)) < 0.6}, method="complex", name=f"{algorithm}, masked, temperature 0.4")
        for algorithm in ALGORITHMS[:3]
    ),
    GradientCase(softmax_vjp, (RNG.standard_normal((3, 7)),), {"algorithm": "online", "temperature": 0.4, "where": RNG.random((3, 7)) < 0.6}, name="online, masked, temperature 0.4, differences"),
    GradientCase(softmax_vjp, (RNG.standard_normal((2, 5, 3)),), {"axis": 1, "temperature": 3.0, "where": RNG.random((5, 1)) < 0.6}, name="middle axis, masked by a column, temperature 3"),
    GradientCase(softmax_vjp, (RNG.standard_normal((2, 4)),), {"where": np.array([[False] * 4, [True] * 4])}, method="complex", name="a row in which nothing takes part"),
]  # fmt: skip

finite_floats = st.floats(-1e4, 1e4, allow_nan=False)


def exact_softmax(x):
    """Truth in long double, from differences that are exact for float32 and cheap for a million entries."""
    wide = np.asarray(x, np.longdouble)
    terms = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return terms / terms.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("scale", [1, 10, 30])
@pytest.mark.parametrize("size", [10, 1000, 100_000, 1_000_000])
def test_float32_softmax_is_rounded_once(scale, size):
    x = (scale * np.random.default_rng(size + scale).standard_normal(size)).astype(np.float32)
    assert ulp_error(softmax(x), exact_softmax(x)).max() <= 0.51


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, 2e-5), (np.float64, 3e-14)])
def test_algorithms_agree(algorithm, dtype, limit):
    x = (10 * RNG.standard_normal((4, 513))).astype(dtype)
    np.testing.assert_allclose(softmax(x, algorithm=algorithm), exact_softmax(x).astype(dtype), rtol=limit)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_rows_and_only_they_are_nan(algorithm, dtype):
    inf, nan = np.inf, np.nan
    x = np.array([[1, 2, -inf], [-inf, -inf, -inf], [inf, 0, 1], [nan, 0, 1], [inf, -inf, nan], [3, 1, 2]], dtype)
    y = softmax(x, algorithm=algorithm)
    assert np.isnan(y[1:5]).all()
    assert y[0, 2] == 0
    np.testing.assert_allclose(y[[0, 5]].sum(axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_largest_finite_numbers_neither_overflow_nor_warn(algorithm, dtype):
    largest = np.finfo(dtype).max
    x = np.array([[largest, largest, -largest], [-largest, -np.inf, -largest], [largest, 0, -largest]])
    with np.errstate(under="ignore"):
        y = softmax(x.astype(dtype), algorithm=algorithm)
    assert y.tolist() == [[0.5, 0.5, 0], [0.5, 0, 0.5], [1, 0, 0]]


def test_subnormal_results_underflow_gradually():
    x = np.array([0.0, -740.0, -745.0, -800.0])
    y = softmax(x)
    np.testing.assert_allclose(y[1], float(mpmath.exp(-740)), rtol=1e-2)
    assert 0 < y[2] <= 2 * np.finfo(float).smallest_subnormal
    assert y[3] == 0
    y = softmax(np.array([0.0, -95.0, -103.0, -120.0], np.float32))
    assert (y[1:3] > 0).all()
    assert y[3] == 0


def test_subnormal_logits_count_as_zero():
    tiny = np.finfo(np.float64).smallest_subnormal
    assert (softmax(np.array([tiny, -tiny, 0.0, 3 * tiny])) == 0.25).all()


@given(
    rows=st.integers(0, 4),
    size=st.integers(1, 70),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e3]),
    algorithm=st.sampled_from(ALGORITHMS),
    seed=st.integers(0, 999),
)
def test_rows_sum_to_one_and_gradients_to_zero(rows, size, scale, algorithm, seed):
    rng = np.random.default_rng(seed)
    y, pullback = softmax_vjp(scale * rng.standard_normal((rows, size)), algorithm=algorithm)
    np.testing.assert_allclose(y.sum(axis=-1), 1, rtol=1e-12)
    np.testing.assert_allclose(pullback(rng.standard_normal((rows, size)))[0].sum(axis=-1), 0, atol=1e-12)


@given(shift=st.integers(-(10**6), 10**6), size=st.integers(1, 40), seed=st.integers(0, 999))
def test_common_shift_changes_nothing(shift, size, seed):
    # Sixteenths: shift and sum are exact, so that the invariance is the algorithm's and not the input's.
    x = np.random.default_rng(seed).integers(-160, 160, size) / 16
    np.testing.assert_allclose(softmax(x + shift), softmax(x), rtol=1e-14)


@given(size=st.integers(1, 300), seed=st.integers(0, 999))
def test_permutation_permutes(size, seed):
    rng = np.random.default_rng(seed)
    x, order = 5 * rng.standard_normal(size), rng.permutation(size)
    np.testing.assert_allclose(softmax(x[order]), softmax(x)[order], rtol=1e-14)


def test_axis_and_memory_layout_do_not_matter():
    x = RNG.standard_normal((3, 4, 5))
    expected = np.stack([softmax(x[:, i]) for i in range(4)], axis=1)
    assert (softmax(x) == expected).all()
    assert (softmax(np.asfortranarray(x)) == expected).all()
    assert (softmax(np.moveaxis(x, -1, 0), axis=0) == np.moveaxis(expected, -1, 0)).all()
    assert (softmax(x[::-1, ::2, ::-1], axis=2) == softmax(x[::-1, ::2, ::-1].copy(), axis=-1)).all()
    assert softmax(np.zeros((0, 3))).shape == (0, 3)


def test_one_entry_gives_one_and_gradient_exactly_zero():
    y, pullback = softmax_vjp(RNG.standard_normal((5, 1)))
    assert (y == 1).all()
    assert (pullback(RNG.standard_normal((5, 1)))[0] == 0).all()


def test_jacobian_is_symmetric():
    x, dx, dy = RNG.standard_normal((3, 8))
    y, pullback = softmax_vjp(x)
    tangent = y * (dx - y @ dx)
    np.testing.assert_allclose(pullback(dx)[0], tangent, rtol=1e-12, atol=1e-16)
    np.testing.assert_allclose(pullback(dy)[0] @ dx, tangent @ dy, rtol=1e-12)


def test_gradient_of_a_saturated_row_keeps_its_digits():
    x, dy = np.array([0.0, 50.0, -30.0]), np.array([0.3, 1.7, -0.4])
    with mpmath.workdps(50):
        terms = [mpmath.exp(mpmath.mpf(v)) for v in x]
        y = [term / sum(terms) for term in terms]
        mean = sum(p * mpmath.mpf(g) for p, g in zip(y, dy, strict=True))
        truth = [float(p * (mpmath.mpf(g) - mean)) for p, g in zip(y, dy, strict=True)]
    np.testing.assert_allclose(softmax_vjp(x)[1](dy)[0], truth, rtol=1e-14)


def test_masked_entries_have_gradient_zero():
    _, pullback = softmax_vjp(np.array([[1.0, -np.inf, 3.0]]))
    dx = pullback(np.array([[1.0, 5.0, -2.0]]))[0]
    assert dx[0, 1] == 0
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_nothing_is_written_to(dtype):
    x = RNG.standard_normal((2, 3)).astype(dtype)
    x.setflags(write=False)
    for algorithm in ALGORITHMS:
        y, pullback = softmax_vjp(x, algorithm=algorithm)
        assert y.dtype == pullback(x)[0].dtype == dtype
    pair = ext_exp(x)
    total = ext_sum(ext_add(pair, pair))
    for array in (pair.mantissa, pair.exponent, total.mantissa, total.exponent, ext_log(total), ext_to_float(pair)):
        assert array.dtype == dtype
    assert all(part.dtype == dtype for part in online_merge((x, x), (x, x)))


@pytest.mark.parametrize(("dtype", "unit"), [(np.float32, 2.0**-24), (np.float64, 2.0**-53)])
def test_reduction_does_not_lose_digits_far_from_zero(dtype, unit):
    points = np.concatenate([RNG.uniform(-r, r, 100) for r in (1, 88, 700, 1e4, 1e6)]).astype(dtype)
    pair = ext_exp(points)
    with mpmath.workdps(50):
        errors = [
            abs(mpmath.mpf(float(m)) * mpmath.mpf(2) ** int(n) / mpmath.exp(mpmath.mpf(float(x))) - 1)
            for x, m, n in zip(points, pair.mantissa, pair.exponent, strict=True)
        ]
    assert max(errors) < 3 * unit
    assert ((pair.mantissa > 0.70) & (pair.mantissa < 1.42)).all()


def test_exponential_of_special_values():
    pair = ext_exp(np.array([-np.inf, np.inf, np.nan, 0.0, -0.0]))
    np.testing.assert_array_equal(pair.mantissa, [0, np.inf, np.nan, 1, 1])
    np.testing.assert_array_equal(pair.exponent, [-np.inf, 0, 0, 0, 0])
    np.testing.assert_array_equal(ext_to_float(pair), [0, np.inf, np.nan, 1, 1])
    np.testing.assert_array_equal(ext_log(pair), [-np.inf, np.inf, np.nan, 0, 0])


pairs = st.builds(
    lambda m, n: ExtExp(np.array(m), np.array(float(n))),
    st.one_of(st.floats(0.5, 4), st.just(0.0)),
    st.one_of(st.integers(-60, 60)),
)


def value(pair):
    return Fraction(float(pair.mantissa)) * Fraction(2) ** int(pair.exponent)


@given(a=pairs, b=pairs, c=pairs)
def test_pair_addition_is_a_commutative_monoid(a, b, c):
    zero = ExtExp(np.array(0.0), np.array(-np.inf))
    left, right = ext_add(a, b), ext_add(b, a)
    assert (left.mantissa, left.exponent) == (right.mantissa, right.exponent)
    same = ext_add(a, zero)
    assert (same.mantissa, same.exponent) == (a.mantissa, a.exponent)
    exact = value(a) + value(b) + value(c)
    for total in (ext_add(left, c), ext_add(a, ext_add(b, c))):
        assert abs(value(total) - exact) <= exact * Fraction(2) ** -51


def test_sum_of_nothing_and_of_zeros_is_zero():
    for total in (ext_sum(ext_exp(np.zeros((2, 0)))), ext_sum(ext_exp(np.full((2, 3), -np.inf)))):
        assert total.mantissa.tolist() == [0, 0]
        assert total.exponent.tolist() == [-np.inf, -np.inf]
        assert ext_log(total).tolist() == [-np.inf, -np.inf]


def test_sum_does_not_depend_on_the_axis():
    pair = ext_exp(RNG.uniform(-900, 900, (4, 50)))
    total, turned = ext_sum(pair), ext_sum(ExtExp(pair.mantissa.T, pair.exponent.T), axis=0)
    assert (total.mantissa == turned.mantissa).all()
    assert (total.exponent == turned.exponent).all()


def test_plain_float_overflows_to_infinity_only_when_it_must():
    assert np.isfinite(ext_to_float(ExtExp(np.array(0.75), np.array(1024.0))))
    with np.errstate(over="ignore"):
        assert ext_to_float(ExtExp(np.array(1.0), np.array(1e300))) == np.inf
    assert ext_to_float(ExtExp(np.array(1.0), np.array(-1e300))) == 0


@given(size=st.integers(1, 50), cut=st.integers(0, 50), seed=st.integers(0, 999))
def test_online_partials_merge_in_any_order(size, cut, seed):
    x = np.random.default_rng(seed).uniform(-50, 50, size)

    def partial(part):
        largest = part.max(initial=-np.inf)
        return np.asarray(largest), np.asarray(np.exp(part - largest).sum())

    a, b = partial(x[:cut]), partial(x[cut:])
    whole = partial(x)
    for merged in (online_merge(a, b), online_merge(b, a)):
        assert merged[0] == whole[0]
        np.testing.assert_allclose(merged[1], whole[1], rtol=1e-13)


def test_traffic_table():
    rows = {
        "three_pass_recompute": (4, 5),
        "three_pass_reload": (5, 6),
        "online": (3, 4),
        "two_pass": (3, 4),
        "cross_entropy": (1, 1),
        "cross_entropy_vjp": (3, 4),
    }
    assert {name: (memory_traffic(name, 1, 1), memory_traffic(name, 1, 1, rfo=True)) for name in rows} == rows
    assert memory_traffic("two_pass", 1000, 8) == 24_000


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: softmax(np.zeros((2, 0))), ValueError, r"x: expected at least one entry along axes \(1,\), got shape"),
        (lambda: softmax(np.float64(1)), ValueError, "x: expected at least 1 dimension, got shape"),
        (lambda: softmax(np.arange(3)), TypeError, "x: expected a float32 or float64 array, got dtype int64"),
        (lambda: softmax(np.zeros(3, np.float16)), TypeError, "x: expected a float32 or float64 array, got dtype float16"),
        (lambda: softmax(np.zeros(3), axis=1), ValueError, "axis: expected integers from -1 to 0"),
        (lambda: softmax(np.zeros((3, 3)), axis=(0, 1)), ValueError, "axis: expected integers from -2 to 1"),
        (lambda: softmax(np.zeros(3), algorithm="one_pass"), ValueError, "algorithm: expected one of 'two_pass'"),
        (lambda: ext_exp(np.arange(3)), TypeError, "x: expected a float32 or float64 array"),
        (lambda: ext_add(ExtExp(np.ones(2), np.ones(3)), ExtExp(np.ones(2), np.ones(2))), ValueError, r"a.exponent: expected shape \(2,\), got \(3,\)"),
        (lambda: ext_add(ext_exp(np.ones(2)), ext_exp(np.ones(2, "f4"))), TypeError, "b: expected dtype float64 like a, got float32"),
        (lambda: ext_sum(ext_exp(np.float64(1))), ValueError, "pairs.mantissa: expected at least 1 dimension"),
        (lambda: online_merge((np.ones(1), np.ones(1)), (np.ones(1), np.ones(1, "f4"))), TypeError, r"b\[1\]: expected dtype float64"),
        (lambda: memory_traffic("fast", 1, 4), ValueError, "algorithm: expected one of 'three_pass_recompute'"),
        (lambda: memory_traffic("online", -1, 4), ValueError, "n: expected an integer >= 0, got -1"),
        (lambda: memory_traffic("online", 1.5, 4), TypeError, "n: expected an integer, got 1.5"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@given(
    size=st.integers(1, 20),
    temperature=st.sampled_from([0.1, 0.5, 1.0, 4.0]),
    algorithm=st.sampled_from(ALGORITHMS),
    seed=st.integers(0, 999),
)
def test_where_is_the_softmax_of_what_takes_part(size, temperature, algorithm, seed):
    rng = np.random.default_rng(seed)
    x, g = rng.standard_normal((2, size))
    where = rng.random(size) < 0.6
    options = {"temperature": temperature, "algorithm": algorithm}
    # what does not take part is not read
    y, pullback = softmax_vjp(np.where(where, x, np.nan), where=where, **options)
    (dx,) = pullback(np.where(where, g, np.nan))
    assert (y[~where] == 0).all()
    assert (dx[~where] == 0).all()
    if where.any():
        packed, back = softmax_vjp(x[where] / temperature, algorithm=algorithm)
        np.testing.assert_allclose(y[where], packed, rtol=1e-12)
        np.testing.assert_allclose(dx[where], back(g[where])[0] / temperature, rtol=1e-10, atol=1e-13)


def test_extreme_temperatures():
    x = np.array([1.0, 2.0, 2.0])
    assert softmax(x, temperature=1e-300).tolist() == [0, 0.5, 0.5]
    np.testing.assert_allclose(softmax(x, temperature=1e300), 1 / 3, rtol=1e-15)
    assert softmax(np.array([1e308, -1e308]), temperature=0.1).tolist() == [1, 0]


def test_rows_without_entries_and_with_nan():
    x = np.array([[1.0, 2.0], [np.nan, 1.0], [np.nan, 1.0], [np.inf, 1.0]])
    where = np.array([[False, False], [False, True], [True, False], [True, False]])
    y = softmax(x, where=where)
    np.testing.assert_array_equal(y, [[0, 0], [0, 1], [np.nan, 0], [np.nan, 0]])


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (TypeError, {"where": np.ones(3)}, "where: expected a boolean array .*, got dtype float64"),
        (ValueError, {"where": np.ones(2, bool)}, r"where: expected a shape that broadcasts to \(3,\), got \(2,\)"),
        (ValueError, {"temperature": 0}, "temperature: expected a finite number > 0, got 0"),
        (ValueError, {"temperature": np.inf}, "temperature: expected a finite number > 0, got inf"),
    ],
)
def test_bad_masks_and_temperatures(error, options, message):
    with pytest.raises(error, match=message):
        softmax(np.zeros(3), **options)
