import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.softmax import (
    OrthoGrad,
    log_stablemax,
    log_stablemax_vjp,
    nlm_cosine,
    orthogonalize_gradient,
    softmax,
    softmax_collapse_rate,
    stable_s,
    stable_s_vjp,
    stablemax,
    stablemax_cross_entropy,
    stablemax_cross_entropy_vjp,
    stablemax_vjp,
)
from refnorm.solvers import Lion

RNG = np.random.default_rng(5)
LOGITS = 3 * RNG.standard_normal((4, 5))
TARGET = np.array([2, 1, 0, 4])
NEAR_ZERO = np.array([[1e-9, -1e-9, 0.5], [0.0, -0.0, -4.0]])

GRADIENT_CASES = [
    GradientCase(stable_s_vjp, (LOGITS,), method="complex"),
    GradientCase(stable_s_vjp, (NEAR_ZERO,), method="complex", name="near 0"),
    GradientCase(stable_s_vjp, (np.array(-2.5),), name="scalar, differences"),
    GradientCase(stablemax_vjp, (LOGITS,), method="complex"),
    GradientCase(stablemax_vjp, (NEAR_ZERO,), method="complex", name="near 0"),
    GradientCase(stablemax_vjp, (RNG.standard_normal((2, 5, 3)),), {"axis": -2}, method="complex", name="middle axis"),
    GradientCase(stablemax_vjp, (np.array([[1e6, 3.0, -1e6], [-1e9, -2e9, -3e9]]),), method="complex", name="far out"),
    GradientCase(stablemax_vjp, (RNG.standard_normal((3, 4)) + 5,), name="differences"),
    GradientCase(log_stablemax_vjp, (LOGITS,), method="complex"),
    GradientCase(log_stablemax_vjp, (NEAR_ZERO,), method="complex", name="near 0"),
    GradientCase(log_stablemax_vjp, (RNG.standard_normal((2, 5, 3)),), {"axis": 0}, method="complex", name="first axis"),
    *(
        GradientCase(stablemax_cross_entropy_vjp, (LOGITS, TARGET), {"reduction": reduction}, method="complex", name=reduction)
        for reduction in ("mean", "sum", "none")
    ),
    GradientCase(stablemax_cross_entropy_vjp, (np.array([[1e5, 0.0, -2.0]]), np.array([0])), method="complex", name="confident"),
]  # fmt: skip


class Descent:
    """Plain gradient descent at rate 0.1."""

    def init(self, params):
        return None

    def step(self, params, grads, state):
        return [p if g is None else p - 0.1 * g for p, g in zip(params, grads, strict=True)], state


@given(x=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8))
def test_stablemax_is_softmax_of_a_signed_logarithm(x):
    x = np.array(x)
    h = np.sign(x) * np.log1p(np.abs(x))
    np.testing.assert_allclose(stablemax(x), softmax(h), rtol=1e-13)
    np.testing.assert_allclose(np.exp(log_stablemax(x)), stablemax(x), rtol=1e-13)
    np.testing.assert_allclose(stablemax(x).sum(), 1, rtol=1e-14)


@given(x=st.floats(-1e300, 1e300), y=st.floats(-1e300, 1e300))
def test_s_is_increasing_and_turns_a_sign_into_a_reciprocal(x, y):
    s = stable_s(np.array([x, y, -x]))
    assert (s >= 0).all()
    assert (s[0] <= s[1]) == (x <= y) or s[0] == s[1]
    np.testing.assert_allclose(s[0] * s[2], 1, rtol=1e-15)


def test_value_and_slope_are_continuous_at_zero():
    x = np.array([-1e-300, -0.0, 0.0, 1e-300])
    y, pullback = stable_s_vjp(x)
    assert (y == 1).all()
    assert (pullback(np.ones(4))[0] == 1).all()


def test_small_logits_keep_their_digits():
    x = np.array([1e-20, -2e-20])
    assert (stablemax(x) == 0.5).all()
    np.testing.assert_allclose(log_stablemax(x), -np.log(2), rtol=1e-15)
    np.testing.assert_allclose(stable_s_vjp(x)[0], [1, 1])


def test_common_shift_changes_the_result():
    x = np.array([1.0, 0.0, -1.0])
    assert np.abs(stablemax(x + 1) - stablemax(x)).max() > 0.05


def test_huge_and_tiny_rows_neither_overflow_nor_vanish():
    largest = np.finfo(float).max
    p = stablemax(np.array([[largest, largest, 0], [-largest, -largest, -largest]]))
    np.testing.assert_allclose(p, [[0.5, 0.5, 1 / largest / 2], [1 / 3] * 3], rtol=1e-14)
    small = stablemax(np.array([[-3e38, -3e38]], np.float32))
    assert small.tolist() == [[0.5, 0.5]]


def test_special_rows():
    inf, nan = np.inf, np.nan
    x = np.array([[1, 1, -inf], [-inf] * 3, [inf, 0, 1], [nan, 0, 1]])
    np.testing.assert_array_equal(stablemax(x), [[0.5, 0.5, 0], *[[nan] * 3] * 3])
    np.testing.assert_allclose(log_stablemax(x), [[-np.log(2)] * 2 + [-inf], *[[nan] * 3] * 3], rtol=1e-15)
    np.testing.assert_array_equal(stable_s(np.array([inf, -inf, nan])), [inf, 0, nan])
    for f_vjp in (stablemax_vjp, log_stablemax_vjp):
        masked = f_vjp(x[:1])[1](np.array([[1.0, 2.0, 3.0]]))[0]
        assert masked[0, 2] == 0
        assert np.isfinite(masked).all()
    loss, pullback = stablemax_cross_entropy_vjp(x[:1], np.array([0]))
    np.testing.assert_allclose(loss, np.log(2))
    np.testing.assert_allclose(pullback(1.0)[0], [[-0.25, 0.25, 0]], rtol=1e-15)
    assert stablemax_cross_entropy(x[:1], np.array([2])) == inf


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e2, 1e6, 1e12])
def test_confident_answer_keeps_its_loss_and_its_slope(scale, dtype):
    logits = np.zeros((1, 113), dtype)
    logits[0, 7] = scale
    loss, pullback = stablemax_cross_entropy_vjp(logits, np.array([7]))
    others = 112 / (np.longdouble(scale) + 113)
    rtol = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(loss, float(-np.log1p(-others)), rtol=rtol)
    np.testing.assert_allclose(pullback(dtype(1))[0][0, 7], float(-others / (1 + np.longdouble(scale))), rtol=rtol)


def test_loss_is_minus_log_of_the_share():
    loss = stablemax_cross_entropy(LOGITS, TARGET, reduction="none")
    np.testing.assert_allclose(loss, -np.log(stablemax(LOGITS)[np.arange(4), TARGET]), rtol=1e-13)
    np.testing.assert_allclose(stablemax_cross_entropy(LOGITS, TARGET), loss.mean(), rtol=1e-15)
    np.testing.assert_allclose(stablemax_cross_entropy(LOGITS, TARGET, reduction="sum"), loss.sum(), rtol=1e-15)


@given(seed=st.integers(0, 9999), size=st.integers(2, 30), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_orthogonal_gradient_is_orthogonal_and_as_long(seed, size, scale):
    weight, grad = np.random.default_rng(seed).standard_normal((2, size))
    weight = scale * weight
    got = orthogonalize_gradient(weight, grad)
    assert abs(weight @ got) <= 1e-12 * np.linalg.norm(weight) * np.linalg.norm(grad) * (
        np.linalg.norm(grad) / np.linalg.norm(orthogonalize_gradient(weight, grad, rescale=False))
    )
    np.testing.assert_allclose(np.linalg.norm(got), np.linalg.norm(grad), rtol=1e-12)
    assert got @ grad >= 0


def test_zero_weights_leave_the_gradient():
    grad = RNG.standard_normal((2, 3))
    np.testing.assert_allclose(orthogonalize_gradient(np.zeros((2, 3)), grad), grad, rtol=1e-15)
    assert (orthogonalize_gradient(grad, np.zeros((2, 3))) == 0).all()


def test_parallel_gradient_can_be_dropped():
    weight = RNG.standard_normal(50)
    assert (orthogonalize_gradient(weight, -3 * weight, min_ratio=1e-8) == 0).all()
    assert np.linalg.norm(orthogonalize_gradient(weight, -3 * weight, rescale=False)) < 1e-13
    turned = weight.copy()
    turned[0] += 1
    assert (orthogonalize_gradient(weight, turned, min_ratio=1e-8) != 0).any()


def test_descent_grows_the_norm_only_by_the_square_of_the_step():
    params = [RNG.standard_normal((3, 4)), RNG.standard_normal(4), np.ones(2)]
    grads = [RNG.standard_normal((3, 4)), RNG.standard_normal(4), None]
    optimizer = OrthoGrad(Descent())
    after, _ = optimizer.step(params, grads, optimizer.init(params))
    for before, grad, now in zip(params[:2], grads[:2], after[:2], strict=True):
        np.testing.assert_allclose((now**2).sum(), (before**2).sum() + 0.01 * (grad**2).sum(), rtol=1e-13)
    assert after[2] is params[2]


def test_wrapped_optimizer_sees_the_orthogonal_gradients():
    params, grads = {"a": RNG.standard_normal(6)}, {"a": RNG.standard_normal(6)}
    base = Lion(learning_rate=0.1)
    optimizer = OrthoGrad(base, rescale=False)
    got, state = optimizer.step(params, grads, optimizer.init(params))
    expected, expected_state = base.step(
        params, {"a": orthogonalize_gradient(params["a"], grads["a"], rescale=False)}, base.init(params)
    )
    np.testing.assert_array_equal(got["a"], expected["a"])
    np.testing.assert_array_equal(state.momentum["a"], expected_state.momentum["a"])


@pytest.mark.parametrize(("dtype", "gap"), [(np.float16, 8.4), (np.float32, 17.4), (np.float64, 37.5)])
def test_collapse_begins_where_one_competitor_is_absorbed(dtype, gap):
    # Half a unit in the last place of 1 is 2**-11, 2**-24 and 2**-53.
    logits = np.array([[gap, 0.0], [gap - 1.0, 0.0]])
    assert softmax_collapse_rate(logits, np.array([0, 0]), dtype=dtype) == 0.5


def test_wrong_and_tied_and_nan_rows_have_not_collapsed():
    logits = np.array([[90.0, 0.0], [90.0, 90.0], [np.nan, 0.0], [90.0, 0.0]])
    assert softmax_collapse_rate(logits, np.array([1, 0, 0, 0])) == 0.25


def test_cosine_of_every_array():
    weight, grad = RNG.standard_normal((2, 3, 4))
    tree = {"a": [weight, None], "b": np.zeros(2)}
    cosines = nlm_cosine(tree, {"a": [-2 * weight, None], "b": np.ones(2)})
    assert cosines == pytest.approx([1, 0, 0])
    (got,) = nlm_cosine(weight, grad)
    np.testing.assert_allclose(
        got, -np.corrcoef(np.r_[weight.ravel(), -weight.ravel()], np.r_[grad.ravel(), -grad.ravel()])[0, 1]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_nothing_is_written_to(dtype):
    x = LOGITS.astype(dtype)
    x.setflags(write=False)
    for value, pullback in (
        stable_s_vjp(x),
        stablemax_vjp(x),
        log_stablemax_vjp(x),
        stablemax_cross_entropy_vjp(x, TARGET),
    ):
        assert value.dtype == dtype
        (dx,) = pullback(value)
        assert (dx.dtype, dx.shape) == (dtype, x.shape)
    assert orthogonalize_gradient(x, x).dtype == dtype


def test_axis_and_layout_do_not_matter():
    x = RNG.standard_normal((3, 4, 5))
    assert (stablemax(np.moveaxis(x, -1, 0), axis=0) == np.moveaxis(stablemax(x), -1, 0)).all()
    assert (log_stablemax(np.asfortranarray(x)) == log_stablemax(x)).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: stable_s(np.arange(3)), TypeError, "x: expected a float32 or float64 array, got dtype int64"),
        (lambda: stablemax(np.zeros((2, 0))), ValueError, "x: expected at least one entry along axes"),
        (lambda: stablemax(np.array(1.0)), ValueError, "x: expected at least 1 dimension"),
        (lambda: log_stablemax(np.zeros(3), axis=1), ValueError, "axis: expected integers from -1 to 0, got"),
        (lambda: stablemax_cross_entropy(np.zeros(3), TARGET), ValueError, r"logits: expected 2 dimensions, got shape \(3,\)"),
        (lambda: stablemax_cross_entropy(LOGITS, TARGET[:3]), ValueError, r"target: expected shape \(4,\), got \(3,\)"),
        (lambda: stablemax_cross_entropy(LOGITS, TARGET + 1), ValueError, "target: expected values of at most 4, got 5"),
        (lambda: stablemax_cross_entropy(LOGITS, TARGET - 1), ValueError, "target: expected values of at least 0, got -1"),
        (lambda: stablemax_cross_entropy(LOGITS, TARGET, reduction="max"), ValueError, "reduction: expected one of"),
        (lambda: orthogonalize_gradient(np.ones(2), np.ones(3)), ValueError, r"grad: expected shape \(2,\), got \(3,\)"),
        (lambda: orthogonalize_gradient(np.ones(2), np.ones(2, "f4")), TypeError, "grad: expected dtype float64 like weight"),
        (lambda: orthogonalize_gradient(np.ones(2), np.ones(2), min_ratio=2.0), ValueError, r"min_ratio: expected a number in \[0.0, 1.0\]"),
        (lambda: orthogonalize_gradient(np.ones(2), np.ones(2), eps=0.0), ValueError, "eps: expected a finite number > 0"),
        (lambda: OrthoGrad(Descent(), min_ratio=-1.0), ValueError, "min_ratio: expected a number in"),
        (lambda: OrthoGrad(Descent()).step([np.ones(2)], {"a": 1.0}, None), ValueError, "grads: expected the same structure"),
        (lambda: softmax_collapse_rate(LOGITS, TARGET, dtype=int), ValueError, "dtype: expected one of"),
        (lambda: softmax_collapse_rate(LOGITS[:0], TARGET[:0]), ValueError, "logits: expected at least one entry"),
        (lambda: nlm_cosine([np.ones(2)], [np.ones(3)]), ValueError, r"grads: expected shape \(2,\), got \(3,\)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
