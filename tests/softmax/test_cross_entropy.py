import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm._arrays import ulp_error
from refnorm.gradcheck import GradientCase
from refnorm.softmax import (
    cross_entropy,
    cross_entropy_vjp,
    ext_exp,
    ext_log,
    ext_sum,
    log_softmax,
    log_softmax_vjp,
    logsumexp,
    logsumexp_vjp,
    soft_cross_entropy,
    soft_cross_entropy_vjp,
    softmax,
)

RNG = np.random.default_rng(3)
REDUCTIONS = ("mean", "sum", "none")
LOGITS = 3 * RNG.standard_normal((4, 5))
TARGET = np.array([2, -100, 0, 4])

MASK = RNG.random((3, 7)) < 0.6


def finite_log_softmax(x, **options):
    """The function whose derivative is asked for: -inf has none, and a constant will do as well."""
    z = log_softmax(x, **options)
    return np.where(np.isfinite(z), z, 0)


GRADIENT_CASES = [
    GradientCase(log_softmax_vjp, (3 * RNG.standard_normal((3, 7)),), method="complex"),
    GradientCase(log_softmax_vjp, (RNG.standard_normal((2, 5, 3)),), {"axis": -2}, name="middle axis, differences"),
    GradientCase(log_softmax_vjp, (np.array([[1.0, 1.0], [-1000.0, -1003.0]]),), method="complex", name="ties, offset"),
    GradientCase(log_softmax_vjp, (3 * RNG.standard_normal((3, 7)),), {"where": MASK, "temperature": 0.4}, surrogate=finite_log_softmax, method="complex", name="masked, temperature 0.4"),
    GradientCase(log_softmax_vjp, (RNG.standard_normal((7, 3)),), {"axis": 0, "where": MASK.T}, surrogate=finite_log_softmax, name="masked, first axis, differences"),
    GradientCase(log_softmax_vjp, (3 * RNG.standard_normal((3, 7)),), {"temperature": 3.0}, method="complex", name="temperature 3"),
    GradientCase(logsumexp_vjp, (3 * RNG.standard_normal((3, 7)),), {"where": np.arange(7) % 3 > 0, "temperature": 0.4}, method="complex", name="masked, temperature 0.4"),
    GradientCase(logsumexp_vjp, (3 * RNG.standard_normal((3, 7)),), method="complex"),
    GradientCase(logsumexp_vjp, (RNG.standard_normal((2, 5, 3)),), {"axis": 0, "keepdims": True}, method="complex", name="first axis kept"),
    GradientCase(logsumexp_vjp, (RNG.standard_normal(6),), name="one row, differences"),
    *(
        GradientCase(
            cross_entropy_vjp,
            (LOGITS, TARGET),
            {"reduction": reduction, "label_smoothing": smoothing},
            method="complex",
            name=f"{reduction}, smoothing {smoothing}",
        )
        for reduction in REDUCTIONS
        for smoothing in (0.0, 0.1)
    ),
    GradientCase(cross_entropy_vjp, (LOGITS, TARGET), name="differences"),
    GradientCase(cross_entropy_vjp, (LOGITS, np.array([0, 1, 2, 3])), {"ignore_index": 2}, method="complex", name="ignore a class"),
    GradientCase(cross_entropy_vjp, (RNG.standard_normal((3, 1)), np.zeros(3, int)), method="complex", name="one class"),
    *(
        GradientCase(soft_cross_entropy_vjp, (LOGITS, RNG.standard_normal((4, 5))), {"reduction": reduction}, method="complex", name=reduction)
        for reduction in REDUCTIONS
    ),
    GradientCase(soft_cross_entropy_vjp, (LOGITS, RNG.dirichlet(np.ones(5), 4)), name="distributions, differences"),
]  # fmt: skip


def exact_log_softmax(x):
    """Truth in long double; the largest term is left out of the sum and 1 put back by log1p."""
    wide = np.asarray(x, np.longdouble)
    shifted = wide - wide.max()
    terms = np.exp(shifted)
    terms[wide.argmax()] = 0
    return shifted - np.log1p(terms.sum())


@pytest.mark.parametrize("scale", [1, 10, 30])
@pytest.mark.parametrize("size", [10, 1000, 100_000, 1_000_000])
def test_float32_log_softmax_is_rounded_once(scale, size):
    x = (scale * np.random.default_rng(size + scale).standard_normal(size)).astype(np.float32)
    assert ulp_error(log_softmax(x), exact_log_softmax(x)).max() <= 0.51
    assert ulp_error(log_softmax(x.astype(np.float64)), exact_log_softmax(x)).max() <= 8


def test_confident_row_keeps_the_digits_of_the_other_probabilities():
    z = log_softmax(np.array([50.0, 0.0]))
    np.testing.assert_allclose(z[0], float(-mpmath.log1p(mpmath.exp(-50))), rtol=1e-15)
    loss, pullback = cross_entropy_vjp(np.array([[50.0, 0.0]]), np.array([0]))
    np.testing.assert_allclose(loss, -z[0], rtol=1e-15)
    np.testing.assert_allclose(pullback(1.0)[0], float(mpmath.exp(-50)) * np.array([[-1, 1]]), rtol=1e-14)


def test_hopeless_row_has_a_finite_loss():
    loss, pullback = cross_entropy_vjp(np.array([[0.0, 5000.0]]), np.array([0]))
    assert loss == 5000
    assert pullback(1.0)[0].tolist() == [[-1, 1]]


@given(
    rows=st.integers(1, 4),
    size=st.integers(1, 60),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e3]),
    seed=st.integers(0, 999),
)
def test_functions_agree_with_each_other(rows, size, scale, seed):
    rng = np.random.default_rng(seed)
    x = scale * rng.standard_normal((rows, size))
    z, total = log_softmax(x), logsumexp(x, keepdims=True)
    np.testing.assert_allclose(np.exp(z), softmax(x), rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(x - total, z, rtol=1e-12, atol=1e-12 * scale)
    np.testing.assert_allclose(total[:, 0], ext_log(ext_sum(ext_exp(x))), rtol=1e-14, atol=1e-14)
    target = rng.integers(size, size=rows)
    losses = cross_entropy(x, target, reduction="none")
    np.testing.assert_array_equal(losses, -z[np.arange(rows), target])
    one_hot = np.eye(size)[target]
    np.testing.assert_allclose(soft_cross_entropy(x, one_hot, reduction="none"), losses, rtol=1e-15)
    smooth = 0.7 * one_hot + 0.3 / size
    np.testing.assert_allclose(cross_entropy(x, target, label_smoothing=0.3), soft_cross_entropy(x, smooth), rtol=1e-12)


@given(size=st.integers(1, 30), seed=st.integers(0, 999), smoothing=st.sampled_from([0.0, 0.2]))
def test_gradients_sum_to_zero(size, seed, smoothing):
    rng = np.random.default_rng(seed)
    x, g = 5 * rng.standard_normal((2, 3, size))
    np.testing.assert_allclose(log_softmax_vjp(x)[1](g)[0].sum(axis=-1), 0, atol=1e-12)
    _, pullback = cross_entropy_vjp(x, rng.integers(size, size=3), label_smoothing=smoothing)
    np.testing.assert_allclose(pullback(1.0)[0].sum(axis=-1), 0, atol=1e-13)


def test_reductions():
    losses = cross_entropy(LOGITS, TARGET, reduction="none")
    assert losses[1] == 0
    np.testing.assert_allclose(cross_entropy(LOGITS, TARGET, reduction="sum"), losses.sum(), rtol=1e-15)
    np.testing.assert_allclose(cross_entropy(LOGITS, TARGET), losses.sum() / 3, rtol=1e-15)
    assert (cross_entropy_vjp(LOGITS, TARGET)[1](1.0)[0][1] == 0).all()
    assert cross_entropy(np.zeros((0, 3)), np.zeros(0, int), reduction="none").shape == (0,)
    assert cross_entropy(np.zeros((0, 3)), np.zeros(0, int), reduction="sum") == 0


def test_ignored_row_may_hold_nan():
    logits = LOGITS.copy()
    logits[1] = np.nan
    loss, pullback = cross_entropy_vjp(logits, TARGET)
    assert loss == cross_entropy(LOGITS, TARGET)
    assert (pullback(1.0)[0][1] == 0).all()


def test_masked_classes_count_only_if_they_have_weight():
    logits = np.array([[0.0, np.log(3.0), -np.inf]])
    loss, pullback = cross_entropy_vjp(logits, np.array([1]))
    np.testing.assert_allclose(loss, np.log(4 / 3), rtol=1e-15)
    np.testing.assert_allclose(pullback(1.0)[0], [[0.25, -0.25, 0]], rtol=1e-15)
    assert cross_entropy(logits, np.array([2])) == np.inf
    assert cross_entropy(logits, np.array([1]), label_smoothing=0.1) == np.inf
    np.testing.assert_allclose(soft_cross_entropy(logits, np.array([[0.0, 1.0, 0.0]])), np.log(4 / 3), rtol=1e-15)


def test_special_rows():
    inf, nan = np.inf, np.nan
    x = np.array([[1, -inf], [-inf, -inf], [inf, 0], [inf, inf], [nan, 0]])
    np.testing.assert_array_equal(logsumexp(x), [1, -inf, inf, inf, nan])
    np.testing.assert_array_equal(log_softmax(x), [[0, -inf], *[[nan, nan]] * 4])
    huge = np.array([[1.7e308, -1.7e308], [-1.7e308, -1.7e308]])
    np.testing.assert_array_equal(log_softmax(huge), [[0, -inf], [-np.log(2), -np.log(2)]])
    assert logsumexp(huge).tolist() == [1.7e308, -1.7e308]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_nothing_is_written_to(dtype):
    x, q = LOGITS.astype(dtype), np.abs(LOGITS).astype(dtype)
    x.setflags(write=False)
    q.setflags(write=False)
    for value, pullback in (
        log_softmax_vjp(x),
        logsumexp_vjp(x),
        cross_entropy_vjp(x, TARGET),
        soft_cross_entropy_vjp(x, q),
        soft_cross_entropy_vjp(x, q, reduction="none"),
    ):
        assert value.dtype == dtype
        assert all(entry.dtype == dtype and entry.shape == x.shape for entry in pullback(value))


def test_axis_and_layout_do_not_matter():
    x = RNG.standard_normal((3, 4, 5))
    assert (log_softmax(np.moveaxis(x, -1, 0), axis=0) == np.moveaxis(log_softmax(x), -1, 0)).all()
    assert (log_softmax(np.asfortranarray(x)) == log_softmax(x)).all()
    assert (logsumexp(np.moveaxis(x, -1, 1), axis=1) == logsumexp(x)).all()
    assert logsumexp(x, axis=1, keepdims=True).shape == (3, 1, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: log_softmax(np.zeros((2, 0))), ValueError, "x: expected at least one entry along axes"),
        (lambda: logsumexp(np.zeros((0, 2)), axis=0), ValueError, "x: expected at least one entry along axes"),
        (lambda: logsumexp(np.arange(3)), TypeError, "x: expected a float32 or float64 array, got dtype int64"),
        (lambda: cross_entropy(np.zeros(3), TARGET), ValueError, r"logits: expected 2 dimensions, got shape \(3,\)"),
        (lambda: cross_entropy(np.zeros((4, 0)), TARGET), ValueError, "logits: expected at least one entry"),
        (lambda: cross_entropy(LOGITS, TARGET[:3]), ValueError, r"target: expected shape \(4,\), got \(3,\)"),
        (lambda: cross_entropy(LOGITS, TARGET.astype(float)), TypeError, "target: expected an integer array, got dtype float64"),
        (lambda: cross_entropy(LOGITS, np.array([0, 1, 5, 0])), ValueError, "target: expected classes from 0 to 4 or -100, got 5"),
        (lambda: cross_entropy(LOGITS, np.array([0, 1, -1, 0])), ValueError, "target: expected classes from 0 to 4 or -100, got -1"),
        (lambda: cross_entropy(LOGITS, TARGET, label_smoothing=1.0), ValueError, r"label_smoothing: expected a number in \[0, 1\), got 1.0"),
        (lambda: cross_entropy(LOGITS, TARGET, ignore_index=0.5), TypeError, "ignore_index: expected an integer, got 0.5"),
        (lambda: cross_entropy(LOGITS, TARGET, reduction="max"), ValueError, "reduction: expected one of 'mean', 'sum', 'none'"),
        (lambda: cross_entropy(LOGITS, np.full(4, -100)), ValueError, "target: expected at least one row that is not ignored for the mean"),
        (lambda: soft_cross_entropy(LOGITS, LOGITS[:, :4]), ValueError, r"target: expected shape \(4, 5\), got \(4, 4\)"),
        (lambda: soft_cross_entropy(LOGITS, LOGITS.astype("f4")), TypeError, "target: expected dtype float64 like logits, got float32"),
        (lambda: soft_cross_entropy(np.zeros((0, 3)), np.zeros((0, 3))), ValueError, "at least one row"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@given(size=st.integers(1, 20), temperature=st.sampled_from([0.1, 0.5, 1.0, 4.0]), seed=st.integers(0, 999))
def test_where_and_temperature(size, temperature, seed):
    rng = np.random.default_rng(seed)
    x, g = rng.standard_normal((2, size))
    where = rng.random(size) < 0.6
    options = {"where": where, "temperature": temperature}
    given_x, given_g = np.where(where, x, np.nan), np.where(where, g, np.nan)  # what takes no part is not read
    z, pullback = log_softmax_vjp(given_x, **options)
    total, spread = logsumexp_vjp(given_x, **options)
    (dx,), (share,) = pullback(given_g), spread(2.0)
    for result, left_out in ((z, -np.inf), (dx, 0), (share, 0)):
        assert (result[~where] == left_out).all()
    if not where.any():
        assert total == -np.inf
        return
    expected, back = log_softmax_vjp(x[where] / temperature)
    np.testing.assert_allclose(z[where], expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(dx[where], back(g[where])[0] / temperature, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(total, logsumexp(x[where] / temperature), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(share, 2 / temperature * softmax(x, **options), rtol=1e-12)


@pytest.mark.parametrize("function", [log_softmax, logsumexp])
def test_bad_masks_and_temperatures(function):
    with pytest.raises(TypeError, match="where: expected a boolean array"):
        function(np.zeros(3), where=[1, 0, 1])
    with pytest.raises(ValueError, match="where: expected a shape that broadcasts"):
        function(np.zeros(3), where=[True, False])
    with pytest.raises(ValueError, match="temperature: expected a finite number > 0, got -1"):
        function(np.zeros(3), temperature=-1)
