import dataclasses

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.softmax import (
    BimodalState,
    bimodal_temp_loss,
    bimodal_temp_loss_vjp,
    cross_entropy,
    init_prototype_tempnet,
    init_tempnet,
    prototype_tempnet,
    prototype_tempnet_vjp,
    robust_temperature_loss,
    robust_temperature_loss_vjp,
    softmax,
    solve_temperature,
    solve_temperature_vjp,
    tempnet,
    tempnet_vjp,
)
from refnorm.tree import tree_map

RNG = np.random.default_rng(31)
LOGITS = 2 * RNG.standard_normal((5, 7))
TARGET = np.array([0, 6, 2, 2, 4])
COOL = RNG.uniform(0.3, 2, 5)
MASK = np.array([True, True, False, True, False])
PARAMS = init_tempnet(np.random.default_rng(1), feature_dim=7, hidden=4)
PARAMS = dataclasses.replace(
    PARAMS, log_sharpening=np.asarray(-0.7), pool_weight=RNG.standard_normal(4), pool_bias=np.asarray(0.2)
)
PROTO = init_prototype_tempnet(np.random.default_rng(2), feature_dim=3, hidden=4, prototypes=6)
PROTO = dataclasses.replace(PROTO, log_sharpening=np.asarray(-0.4), pool_weight=RNG.standard_normal(6))
FEATURES = RNG.standard_normal((5, 3))
IMAGE, TEXT = RNG.standard_normal((2, 4, 3))
T_IMAGE, T_TEXT = RNG.uniform(0.3, 1, (2, 4))
STATE = BimodalState(*RNG.uniform(0.5, 2, (4, 4)))


def solved(logits, **options):
    solution, pullback = solve_temperature_vjp(logits, **options)
    return solution.temperature, pullback


def losses_only(*args, **options):
    (feature, temperature, _), pullback = bimodal_temp_loss_vjp(*args, **options)
    return (feature, temperature), pullback


def with_dropout(params, logits):
    return tempnet_vjp(params, logits, lowest=0.1, highest=2.0, dropout=0.5, rng=np.random.default_rng(5))


def frozen(state, momentum=0.8, radius=0.5):
    """The losses with omega and the temperatures' slopes held at the base point: what the pullback differentiates."""

    def one_side(s, t, old):
        delta = s - np.diag(s)[:, None]
        off = ~np.eye(len(s), dtype=bool)
        total = (np.exp(delta / t[:, None]) * off).sum(axis=1)
        if old is not None:
            total = (1 - momentum) * old[0] * np.exp(old[1]) + momentum * total
        omega = np.exp(delta / t[:, None]) * off / total[:, None]
        return omega, np.log(total / (len(s) - 1)) + radius - (omega * delta).sum(axis=1) / t

    old = (None, None) if state is None else ((state.image_sum, state.image_shift), (state.text_sum, state.text_shift))
    base = IMAGE @ TEXT.T
    sides = one_side(base, T_IMAGE, old[0]), one_side(base.T, T_TEXT, old[1])

    def surrogate(image, text, image_temperature, text_temperature, *_, **__):
        s = image @ text.T
        feature = sum(
            (omega * (m - np.diag(m)[:, None])).sum(axis=1).mean()
            for (omega, _), m in zip(sides, (s, s.T), strict=True)
        )
        return feature, (image_temperature * sides[0][1]).mean() + (text_temperature * sides[1][1]).mean()

    return surrogate


BOUNDS = {"lowest": 0.1, "highest": 2.0}

GRADIENT_CASES = [
    *(
        GradientCase(
            robust_temperature_loss_vjp, (LOGITS, TARGET, COOL), {"radius": 0.3, "reduction": reduction, "mask": mask},
            method="complex", name=f"{reduction}, {'all rows' if mask is None else 'mask'}",
        )
        for reduction in ("mean", "sum", "none")
        for mask in (None, MASK)
    ),
    GradientCase(robust_temperature_loss_vjp, (30 * LOGITS, TARGET, COOL), {"radius": 0.0}, method="complex", name="confident"),
    GradientCase(solve_temperature_vjp, (LOGITS,), {"radius": 0.5, "tol": 1e-14}, call=solved, step=1e-3, name="between the bounds"),
    GradientCase(solve_temperature_vjp, (LOGITS * [[1], [1], [1], [0.01], [100]],), {"radius": 0.7, "tol": 1e-14}, call=solved, step=1e-3, name="two at a bound"),
    GradientCase(tempnet_vjp, (PARAMS, LOGITS), BOUNDS, method="complex", name="logits"),
    GradientCase(tempnet_vjp, (PARAMS, LOGITS), call=with_dropout, method="complex", name="dropout"),
    GradientCase(tempnet_vjp, (PARAMS, LOGITS), BOUNDS, step=1e-3, name="differences"),
    GradientCase(prototype_tempnet_vjp, (PROTO, FEATURES), method="complex", name="features"),
    GradientCase(prototype_tempnet_vjp, (PROTO, FEATURES), BOUNDS, step=1e-3, name="differences"),
    GradientCase(bimodal_temp_loss_vjp, (IMAGE, TEXT, T_IMAGE, T_TEXT), {"radius": 0.5}, call=losses_only, surrogate=frozen(None), name="first time"),
    GradientCase(
        bimodal_temp_loss_vjp, (IMAGE, TEXT, T_IMAGE, T_TEXT), {"radius": 0.5, "momentum": 0.3},
        call=lambda *a, **o: losses_only(*a, STATE, **o), surrogate=frozen(STATE, 0.3), name="running sums",
    ),
]  # fmt: skip


def kl(logits, temperature):
    p = softmax(logits / temperature[:, None])
    return scipy.special.rel_entr(p, 1 / logits.shape[1]).sum(axis=1)


def test_loss_is_the_dual_of_the_robust_problem():
    loss = robust_temperature_loss(LOGITS, TARGET, COOL, radius=0.3, reduction="none")
    expected = COOL * cross_entropy(LOGITS / COOL[:, None], TARGET, reduction="none") + (0.3 - np.log(7)) * COOL
    np.testing.assert_allclose(loss, expected, rtol=1e-13)
    # Weak duality: no distribution in the ball does better than the dual value.
    for _ in range(50):
        p = RNG.dirichlet(np.ones(7))
        if scipy.special.rel_entr(p, 1 / 7).sum() <= 0.3:
            assert (p @ (LOGITS[0] - LOGITS[0, 0]) <= loss[0] + 1e-12).all()


@given(seed=st.integers(0, 9999), radius=st.floats(0.01, 2.0))
def test_solution_is_on_the_sphere_or_at_a_bound(seed, radius):
    logits = 3 * np.random.default_rng(seed).standard_normal((6, 9))
    solution = solve_temperature(logits, radius=radius, lowest=0.1, highest=4.0)
    assert solution.converged
    t = solution.temperature
    inside = (t > 0.1) & (t < 4)
    np.testing.assert_allclose(kl(logits, t)[inside], radius, atol=1e-9)
    assert (kl(logits, t)[t == 0.1] <= radius).all()
    assert (kl(logits, t)[t == 4] >= radius).all()


@given(seed=st.integers(0, 9999))
def test_solution_minimises_the_loss_whatever_the_target(seed):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((3, 6))
    best = solve_temperature(logits, radius=0.4).temperature
    for target in rng.integers(6, size=(2, 3)):
        at_best = robust_temperature_loss(logits, target, best, radius=0.4, reduction="none")
        for factor in (0.9, 1.1):
            near = np.clip(factor * best, 0.01, 5)
            assert (
                robust_temperature_loss(logits, target, near, radius=0.4, reduction="none") >= at_best - 1e-12
            ).all()


def test_solution_is_brents():
    solution = solve_temperature(LOGITS, radius=0.5)
    for row, t in zip(LOGITS, solution.temperature, strict=True):
        expected = scipy.optimize.brentq(lambda u, row=row: kl(row[None], np.array([u]))[0] - 0.5, 0.05, 50, xtol=1e-14)
        np.testing.assert_allclose(t, expected, rtol=1e-9)


def test_solution_scales_with_the_logits_and_ignores_a_shift():
    options = {"radius": 0.5, "lowest": 1e-3, "highest": 1e3}
    base = solve_temperature(LOGITS, **options).temperature
    np.testing.assert_allclose(solve_temperature(7 * LOGITS + 3, **options).temperature, 7 * base, rtol=1e-8)


def test_degenerate_rows_go_to_a_bound():
    rows = np.array([[0.0, 0, 0, 0], [2, 2, 0, 0], [1, 0, 0, 0]])
    assert solve_temperature(rows, radius=0.7).temperature[0] == 0.01
    assert solve_temperature(rows, radius=0.7).temperature[1] == 0.01  # KL is at most log(4/2) = 0.693 there
    assert (solve_temperature(rows, radius=np.log(4)).temperature == 0.01).all()
    solution, pullback = solve_temperature_vjp(rows, radius=0.0)
    assert (solution.temperature == 5).all()
    assert (pullback(np.ones(3))[0] == 0).all()


def test_callback_sees_the_residual_and_can_stop():
    seen = []

    def callback(progress):
        seen.append(progress.values["residual"])
        return progress.n_iter == 2

    solution = solve_temperature(LOGITS, radius=0.5, callback=callback)
    assert (solution.n_iter, solution.converged) == (2, False)
    assert seen == solution.history["residual"].tolist()


@given(seed=st.integers(0, 9999), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_predictions_lie_between_the_bounds_and_ignore_the_scale(seed, scale):
    logits = np.random.default_rng(seed).standard_normal((4, 7))
    t = tempnet(PARAMS, logits, **BOUNDS)
    assert ((t > 0.1) & (t < 2)).all()
    np.testing.assert_allclose(tempnet(PARAMS, scale * logits, **BOUNDS), t, rtol=1e-12)


def test_row_of_zeros_has_a_temperature_and_no_nan():
    t, pullback = tempnet_vjp(PARAMS, np.zeros((2, 7)), **BOUNDS)
    assert np.isfinite(t).all()
    assert all(np.isfinite(leaf).all() for leaf in dataclasses.astuple(pullback(np.ones(2))[0]))


def test_equal_hidden_units_pool_to_the_bias():
    flat = dataclasses.replace(PARAMS, weight2=np.zeros((4, 4)), bias2=np.full(4, 3.0))
    expected = 0.1 + 1.9 / (1 + np.exp(-0.2))
    np.testing.assert_allclose(tempnet(flat, LOGITS, **BOUNDS), expected, rtol=1e-14)


def test_dropout_keeps_the_mean_of_hidden_units_and_needs_a_generator():
    linear = dataclasses.replace(PARAMS, log_sharpening=np.asarray(60.0), weight2=np.zeros((4, 4)))
    np.testing.assert_allclose(
        tempnet(linear, LOGITS, **BOUNDS, dropout=0.5, rng=np.random.default_rng(0)),
        tempnet(linear, LOGITS, **BOUNDS),
        rtol=1e-12,
    )
    dropped = [tempnet(PARAMS, LOGITS, **BOUNDS, dropout=0.5, rng=np.random.default_rng(i)) for i in range(2)]
    assert (dropped[0] != dropped[1]).any()
    with pytest.raises(TypeError, match="rng: expected a numpy.random.Generator"):
        tempnet(PARAMS, LOGITS, **BOUNDS, dropout=0.5)


def test_length_of_a_prototype_does_not_matter():
    longer = dataclasses.replace(PROTO, prototypes=PROTO.prototypes * np.arange(1, 7)[:, None])
    np.testing.assert_allclose(prototype_tempnet(longer, FEATURES), prototype_tempnet(PROTO, FEATURES), rtol=1e-13)


@pytest.mark.parametrize("hidden", [1, 5])
def test_initial_parameters_have_the_stated_ranges(hidden):
    params = init_tempnet(np.random.default_rng(0), feature_dim=16, hidden=hidden)
    assert np.abs(params.weight1).max() <= 0.25
    assert (params.pool_weight == 1).all()
    assert params.log_sharpening == params.pool_bias == 0
    head = init_prototype_tempnet(np.random.default_rng(0), feature_dim=16, hidden=hidden, prototypes=3)
    np.testing.assert_allclose(np.exp(head.log_sharpening), 0.01)


def test_first_batch_weighs_negatives_by_softmax():
    feature, temperature, state = bimodal_temp_loss(IMAGE, TEXT, T_IMAGE, T_TEXT, radius=0.5)
    s, expected, dual = IMAGE @ TEXT.T, 0.0, 0.0
    for m, t in ((s, T_IMAGE), (s.T, T_TEXT)):
        for i in range(4):
            delta = np.delete(m[i] - m[i, i], i)
            expected += (softmax(delta / t[i]) * delta).sum() / 4
            robust = t[i] * (scipy.special.logsumexp(delta / t[i]) - np.log(3) + 0.5)
            dual += (robust - (softmax(delta / t[i]) * delta).sum()) / 4
    np.testing.assert_allclose(feature, expected, rtol=1e-13)
    np.testing.assert_allclose(temperature, dual, rtol=1e-12)
    assert (state.image_sum >= 1).all()


def test_running_sums_are_averages_at_any_shift():
    _, _, first = bimodal_temp_loss(IMAGE, TEXT, T_IMAGE, T_TEXT, radius=0.5)
    moved = BimodalState(
        first.image_sum * np.exp(3.0), first.image_shift - 3.0, first.text_sum * np.exp(3.0), first.text_shift - 3.0
    )
    options = {"radius": 0.5, "momentum": 0.6}
    a, b = (bimodal_temp_loss(1.1 * IMAGE, TEXT, T_IMAGE, T_TEXT, s, **options) for s in (first, moved))
    np.testing.assert_allclose(a[:2], b[:2], rtol=1e-12)
    again = bimodal_temp_loss(IMAGE, TEXT, T_IMAGE, T_TEXT, first, **options)
    np.testing.assert_allclose(again[2].image_sum, first.image_sum, rtol=1e-14)


def test_large_similarities_do_not_overflow():
    feature, temperature, state = bimodal_temp_loss(100 * IMAGE, TEXT, 1e-3 * T_IMAGE, 1e-3 * T_TEXT, radius=0.5)
    assert np.isfinite([feature, temperature, *state.image_shift, *state.image_sum]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_nothing_is_written_to(dtype):
    def cast(a):
        a = np.asarray(a).astype(dtype)
        a.setflags(write=False)
        return a

    logits, cool = cast(LOGITS), cast(COOL)
    loss, pullback = robust_temperature_loss_vjp(logits, TARGET, cool, radius=0.1)
    assert [loss.dtype, *(c.dtype for c in pullback(loss))] == [dtype] * 3
    solution, pullback = solve_temperature_vjp(logits, radius=0.5)
    assert solution.temperature.dtype == pullback(cool)[0].dtype == dtype
    for f_vjp, params, x in ((tempnet_vjp, PARAMS, LOGITS), (prototype_tempnet_vjp, PROTO, FEATURES)):
        t, pullback = f_vjp(tree_map(cast, params), cast(x), **BOUNDS)
        dparams, dx = pullback(t)
        assert t.dtype == dx.dtype == dtype
        assert {np.asarray(leaf).dtype for leaf in dataclasses.astuple(dparams)} == {np.dtype(dtype)}
    (feature, temperature, _), pullback = bimodal_temp_loss_vjp(*map(cast, (IMAGE, TEXT, T_IMAGE, T_TEXT)), radius=0.5)
    assert {feature.dtype, temperature.dtype, *(c.dtype for c in pullback((feature, temperature)))} == {np.dtype(dtype)}


def test_masked_rows_may_hold_anything_finite_and_do_not_count():
    kept = np.flatnonzero(MASK)
    got = robust_temperature_loss(LOGITS, TARGET, COOL, radius=0.3, mask=MASK)
    np.testing.assert_allclose(
        got, robust_temperature_loss(LOGITS[kept], TARGET[kept], COOL[kept], radius=0.3), rtol=1e-14
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: robust_temperature_loss(LOGITS, TARGET, -COOL, radius=0.1), ValueError, "temperature: expected numbers > 0"),
        (lambda: robust_temperature_loss(LOGITS, TARGET, COOL, radius=-0.1), ValueError, "radius: expected a finite number >= 0"),
        (lambda: robust_temperature_loss(LOGITS, TARGET + 1, COOL, radius=0.1), ValueError, "target: expected values of at most 6, got 7"),
        (lambda: robust_temperature_loss(LOGITS, TARGET, COOL[:2], radius=0.1), ValueError, r"temperature: expected shape \(5,\), got \(2,\)"),
        (lambda: robust_temperature_loss(LOGITS, TARGET, COOL, radius=0.1, mask=np.ones(5)), TypeError, "mask: expected a boolean array"),
        (lambda: robust_temperature_loss(LOGITS, TARGET, COOL, radius=0.1, mask=np.zeros(5, bool)), ValueError, "at least one row that is not ignored"),
        (lambda: robust_temperature_loss(LOGITS, TARGET, COOL, radius=0.1, reduction="max"), ValueError, "reduction: expected one of"),
        (lambda: solve_temperature(LOGITS, radius=0.5, lowest=0.0), ValueError, "lowest: expected a finite number > 0, got 0.0"),
        (lambda: solve_temperature(LOGITS, radius=0.5, lowest=2.0, highest=1.0), ValueError, "highest: expected a number > lowest = 2.0, got 1.0"),
        (lambda: solve_temperature(LOGITS * np.nan, radius=0.5), ValueError, "logits: expected finite values"),
        (lambda: solve_temperature(LOGITS, radius=0.5, tol=0.0), ValueError, "tol: expected a finite number > 0"),
        (lambda: tempnet(PARAMS, LOGITS[:, :3], **BOUNDS), ValueError, r"params.weight1: expected shape \(3, 4\), got \(7, 4\)"),
        (lambda: tempnet(PARAMS, LOGITS.astype("f4"), **BOUNDS), TypeError, "params.weight1: expected dtype float32 like logits"),
        (lambda: tempnet(PARAMS, LOGITS, **BOUNDS, dropout=1.0, rng=RNG), ValueError, r"dropout: expected a number in \[0, 1\)"),
        (lambda: prototype_tempnet(PROTO, LOGITS), ValueError, r"params.weight: expected shape \(7, 4\), got \(3, 4\)"),
        (lambda: init_tempnet(0, feature_dim=3), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: init_prototype_tempnet(RNG, feature_dim=0), ValueError, "feature_dim: expected an integer >= 1, got 0"),
        (lambda: bimodal_temp_loss(IMAGE, TEXT[:, :2], T_IMAGE, T_TEXT, radius=0.5), ValueError, r"text: expected shape \(4, 3\)"),
        (lambda: bimodal_temp_loss(IMAGE[:1], TEXT[:1], T_IMAGE[:1], T_TEXT[:1], radius=0.5), ValueError, "image: expected at least 2 rows, got 1"),
        (lambda: bimodal_temp_loss(IMAGE, TEXT, 0 * T_IMAGE, T_TEXT, radius=0.5), ValueError, "image_temperature: expected numbers > 0, got 0.0"),
        (lambda: bimodal_temp_loss(IMAGE, TEXT, T_IMAGE, T_TEXT, radius=0.5, momentum=0.0), ValueError, r"momentum: expected a number in \(0, 1\]"),
        (lambda: bimodal_temp_loss(IMAGE, TEXT, T_IMAGE, T_TEXT, BimodalState(*np.ones((4, 3))), radius=0.5), ValueError, r"state.image_sum: expected shape \(4,\)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_rows_that_have_arrived_do_not_start_again():
    logits = np.random.default_rng(0).standard_normal((256, 400))
    found = solve_temperature(logits, radius=1.0, tol=1e-14)
    assert found.converged
    assert found.n_iter <= 12
