import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.softmax import (
    cross_entropy,
    decide,
    fit_inverse_temperature,
    fit_inverse_temperature_vjp,
    gibbs_value,
    gibbs_value_vjp,
    ordinal_agreement,
    reestimate_probability,
    reestimate_probability_vjp,
    soft_regret,
    soft_regret_vjp,
    softmax,
    utility_sgd_step,
)

RNG = np.random.default_rng(61)
UTILITY, CHOICE = 2 * RNG.standard_normal((5, 4)), np.array([0, 3, 2, 2, 1])
SHARE = RNG.dirichlet(np.ones(4), 5)


def with_temperature(utility, temperature, **options):
    return soft_regret_vjp(utility, CHOICE, temperature=temperature, **options)


def with_inverse_temperature(utility, inverse_temperature):
    return reestimate_probability_vjp(utility, inverse_temperature=inverse_temperature)


def fitted(utility):
    fit, pullback = fit_inverse_temperature_vjp(utility, CHOICE, tol=1e-15)
    return np.asarray(fit.inverse_temperature), pullback


def noisy(seed, rows=40, classes=4, scale=0.7):
    """Utilities and choices drawn at a given inverse temperature."""
    rng = np.random.default_rng(seed)
    utility = 2 * rng.standard_normal((rows, classes))
    return utility, decide(softmax(scale * utility), rule="sample", rng=rng)


GRADIENT_CASES = [
    *(
        GradientCase(
            soft_regret_vjp, (UTILITY, np.asarray(temperature)), {"reduction": reduction}, call=with_temperature,
            method="complex", name=f"{reduction}, temperature {temperature}",
        )
        for reduction, temperature in (("mean", 1.0), ("sum", 0.3), ("none", 5.0), ("none", 0.02))
    ),
    GradientCase(soft_regret_vjp, (UTILITY, CHOICE), method="complex", name="no slope in the temperature"),
    GradientCase(soft_regret_vjp, (UTILITY, CHOICE), {"temperature": 0.0}, step=1e-4, name="hard"),
    GradientCase(soft_regret_vjp, (UTILITY, CHOICE), {"temperature": 2.0}, step=1e-3, name="differences"),
    GradientCase(gibbs_value_vjp, (UTILITY, SHARE), {"temperature": 0.7}, method="complex"),
    GradientCase(gibbs_value_vjp, (UTILITY, SHARE), {"temperature": 0.0}, method="complex", name="no entropy"),
    GradientCase(reestimate_probability_vjp, (UTILITY, np.asarray(1.7)), call=with_inverse_temperature, method="complex"),
    GradientCase(reestimate_probability_vjp, (UTILITY,), {"inverse_temperature": 0.5}, step=1e-3, name="differences"),
    GradientCase(fit_inverse_temperature_vjp, (UTILITY + 0.5 * np.eye(4)[CHOICE],), call=fitted, step=1e-3, name="inside"),
    GradientCase(fit_inverse_temperature_vjp, (UTILITY + 50 * np.eye(4)[CHOICE],), call=fitted, step=1e-3, name="at the end of the search"),
]  # fmt: skip


@given(seed=st.integers(0, 9999), temperature=st.sampled_from([0.0, 1e-300, 1e-3, 0.5, 1.0, 20.0]))
def test_regret_lies_between_its_bounds(seed, temperature):
    rng = np.random.default_rng(seed)
    utility, choice = 3 * rng.standard_normal((4, 6)), rng.integers(6, size=4)
    hard = utility.max(axis=1) - utility[np.arange(4), choice]
    regret = soft_regret(utility, choice, temperature=temperature, reduction="none")
    assert (regret >= hard).all()
    assert (regret <= hard + temperature * np.log(6) + 1e-12).all()


@given(seed=st.integers(0, 9999))
def test_regret_does_not_fall_with_the_temperature(seed):
    rng = np.random.default_rng(seed)
    utility, choice = rng.standard_normal((3, 5)), rng.integers(5, size=3)
    values = [soft_regret(utility, choice, temperature=t) for t in (0.0, 0.1, 0.5, 1.0, 3.0, 10.0)]
    assert (np.diff(values) >= 0).all()


def test_temperature_one_is_the_likelihood_and_a_shift_changes_nothing():
    np.testing.assert_allclose(soft_regret(UTILITY, CHOICE), cross_entropy(UTILITY, CHOICE), rtol=1e-14)
    shifted = soft_regret(UTILITY + RNG.standard_normal((5, 1)), CHOICE, temperature=0.4)
    np.testing.assert_allclose(shifted, soft_regret(UTILITY, CHOICE, temperature=0.4), rtol=1e-12)


def test_sure_and_right_choice_keeps_a_regret_and_a_slope():
    regret, pullback = soft_regret_vjp(np.array([[50.0, 0.0]]), np.array([0]))
    np.testing.assert_allclose(regret, np.log1p(np.exp(-50)), rtol=1e-14)
    np.testing.assert_allclose(pullback(1.0)[0], np.exp(-50) * np.array([[-1, 1]]), rtol=1e-13)


def test_hard_regret_sends_its_slope_to_the_first_of_the_best():
    _, pullback = soft_regret_vjp(np.array([[1.0, 1.0, 0.0]]), np.array([2]), temperature=0.0)
    assert pullback(1.0)[0].tolist() == [[1, 0, -1]]
    _, pullback = soft_regret_vjp(np.array([[1.0, 1.0, 0.0]]), np.array([1]), temperature=0.0)
    assert pullback(1.0)[0].tolist() == [[1, -1, 0]]
    _, pullback = soft_regret_vjp(np.array([[1.0, 1.0, 0.0]]), np.array([2]), temperature=np.asarray(0.0))
    np.testing.assert_allclose(pullback(1.0)[1], np.log(2))


@given(seed=st.integers(0, 9999), temperature=st.floats(0.05, 5))
def test_softmax_maximises_the_gibbs_value(seed, temperature):
    rng = np.random.default_rng(seed)
    utility = 2 * rng.standard_normal((3, 5))
    best = gibbs_value(utility, softmax(utility / temperature), temperature=temperature)
    free = temperature * scipy.special.logsumexp(utility / temperature, axis=1)
    np.testing.assert_allclose(best, free, rtol=1e-12, atol=1e-13)
    for _ in range(5):
        assert (gibbs_value(utility, rng.dirichlet(np.ones(5), 3), temperature=temperature) <= free + 1e-12).all()


def test_certain_distribution_has_no_entropy_and_an_infinite_slope():
    value, pullback = gibbs_value_vjp(UTILITY[:1], np.eye(4)[:1], temperature=2.0)
    assert value[0] == UTILITY[0, 0]
    assert np.isposinf(pullback(np.ones(1))[1][0, 1:]).all()


@given(seed=st.integers(0, 9999), step=st.floats(0.01, 2))
def test_step_keeps_the_sum_and_raises_the_choice(seed, step):
    rng = np.random.default_rng(seed)
    utility, choice = rng.standard_normal(5), int(rng.integers(5))
    after = utility_sgd_step(utility, choice, step=step)
    np.testing.assert_allclose(after.sum(), utility.sum(), atol=1e-13)
    assert after[choice] > utility[choice]
    (gradient,) = soft_regret_vjp(utility[None], np.array([choice]))[1](1.0)
    np.testing.assert_allclose(after, utility - step * gradient[0], rtol=1e-13, atol=1e-14)


@given(seed=st.integers(0, 9999), scale=st.floats(0.1, 5))
def test_fit_is_the_minimum_and_undoes_a_scale(seed, scale):
    utility, choice = noisy(seed)
    fit = fit_inverse_temperature(utility, choice)
    if not fit.converged or fit.inverse_temperature == 0:
        return
    best = scipy.optimize.minimize_scalar(
        lambda b: (scipy.special.logsumexp(b * utility, axis=1) - b * utility[np.arange(40), choice]).mean(),
        bounds=(0, 10), method="bounded", options={"xatol": 1e-10},
    )  # fmt: skip
    np.testing.assert_allclose(fit.inverse_temperature, best.x, rtol=1e-6)
    scaled = fit_inverse_temperature(scale * utility + 3, choice)
    np.testing.assert_allclose(scaled.inverse_temperature, fit.inverse_temperature / scale, rtol=1e-8)
    np.testing.assert_allclose(
        reestimate_probability(scale * utility, inverse_temperature=scaled.inverse_temperature),
        reestimate_probability(utility, inverse_temperature=fit.inverse_temperature),
        rtol=1e-7,
    )


def test_three_of_four_choices_give_log_three():
    fit = fit_inverse_temperature(np.array([[1.0, 0.0]] * 4), np.array([0, 0, 0, 1]))
    np.testing.assert_allclose(fit.inverse_temperature, np.log(3), rtol=1e-10)
    assert fit.converged
    assert fit.n_iter == len(fit.history["loss"]) < 12


def test_degenerate_fits_end_where_they_should():
    always = fit_inverse_temperature(UTILITY, UTILITY.argmax(axis=1), largest=50.0)
    assert (always.inverse_temperature, always.converged) == (50.0, False)
    against = fit_inverse_temperature(UTILITY, UTILITY.argmin(axis=1))
    assert (against.inverse_temperature, against.converged) == (0.0, True)
    flat = fit_inverse_temperature(np.ones((3, 2)), np.array([0, 1, 1]))
    assert flat.inverse_temperature == 0
    _, pullback = fit_inverse_temperature_vjp(UTILITY, UTILITY.argmin(axis=1))
    assert (pullback(1.0)[0] == 0).all()
    # A fit far beyond where float64 probabilities can still move.
    huge = fit_inverse_temperature(1e4 * UTILITY, UTILITY.argmax(axis=1))
    assert (huge.inverse_temperature, huge.converged) == (1e3, False)


def test_callback_sees_every_iteration_and_can_stop():
    seen = []

    def callback(progress):
        seen.append(progress.values["inverse_temperature"])
        return progress.n_iter == 2

    fit = fit_inverse_temperature(*noisy(3), callback=callback)
    assert (len(seen), fit.n_iter, fit.converged) == (2, 2, False)
    assert seen == fit.history["inverse_temperature"].tolist()


def test_rules():
    p = np.array([[0.4, 0.35, 0.25], [0.1, 0.8, 0.1]])
    near = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.8], [0.0, 0.8, 1.0]])
    assert decide(p).tolist() == [0, 1]
    assert decide(np.array([[2.0, 2.0, -7.0]])).tolist() == [0]
    assert decide(p, rule="mbr", gain=near).tolist() == [1, 1]
    assert decide(p, rule="mbr", gain=np.eye(3)).tolist() == [0, 1]


def test_sampling_follows_the_probabilities_and_never_takes_what_has_none():
    p = np.tile([0.0, 0.25, 0.0, 0.75, 0.0], (20_000, 1))
    drawn = decide(p, rule="sample", rng=np.random.default_rng(0))
    assert set(drawn.tolist()) == {1, 3}
    assert abs((drawn == 1).mean() - 0.25) < 0.02
    certain = decide(np.eye(5).astype(np.float32), rule="sample", rng=np.random.default_rng(0))
    assert certain.tolist() == [0, 1, 2, 3, 4]


@given(seed=st.integers(0, 9999), classes=st.integers(2, 8), ties=st.booleans())
def test_agreement_is_kendalls_tau_b(seed, classes, ties):
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((2, 3, classes))
    if ties:
        first, second = first.round(), second.round()
    kendall, top1 = ordinal_agreement(first, second)
    taus = []
    for a, b in zip(first, second, strict=True):
        constant = np.ptp(a) == 0 or np.ptp(b) == 0
        taus.append(0.0 if constant else scipy.stats.kendalltau(a, b).statistic)
    np.testing.assert_allclose(kendall, np.mean(taus), atol=1e-13)
    assert top1 == np.mean(first.argmax(axis=1) == second.argmax(axis=1))


def test_agreement_ignores_increasing_maps():
    assert ordinal_agreement(UTILITY, np.exp(3 * UTILITY) + 1) == (1.0, 1.0)
    np.testing.assert_allclose(ordinal_agreement(UTILITY, -UTILITY)[0], -1, rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_nothing_is_written_to(dtype):
    utility, share = UTILITY.astype(dtype), SHARE.astype(dtype)
    utility.setflags(write=False)
    share.setflags(write=False)
    for value, pullback in (
        soft_regret_vjp(utility, CHOICE, temperature=np.asarray(0.5, dtype)),
        soft_regret_vjp(utility, CHOICE, temperature=0.0),
        gibbs_value_vjp(utility, share, temperature=0.5),
        reestimate_probability_vjp(utility, inverse_temperature=np.asarray(2.0, dtype)),
    ):
        assert {value.dtype, *(c.dtype for c in pullback(value))} == {np.dtype(dtype)}
    assert fit_inverse_temperature_vjp(utility, CHOICE)[1](1.0)[0].dtype == dtype
    assert utility_sgd_step(utility[0], 1, step=0.1).dtype == dtype


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: soft_regret(UTILITY, CHOICE, temperature=-1.0), ValueError, "temperature: expected a finite number >= 0, got -1.0"),
        (lambda: soft_regret(UTILITY, CHOICE, temperature=np.ones(2)), ValueError, r"temperature: expected one number, got shape \(2,\)"),
        (lambda: soft_regret(UTILITY, CHOICE + 1), ValueError, "choice: expected values of at most 3, got 4"),
        (lambda: soft_regret(UTILITY, CHOICE[:3]), ValueError, r"choice: expected shape \(5,\), got \(3,\)"),
        (lambda: soft_regret(UTILITY * np.inf, CHOICE), ValueError, "utility: expected finite values"),
        (lambda: soft_regret(UTILITY[:, :0], CHOICE), ValueError, "utility: expected at least one entry"),
        (lambda: soft_regret(UTILITY, CHOICE, reduction="max"), ValueError, "reduction: expected one of"),
        (lambda: gibbs_value(UTILITY, -SHARE, temperature=1.0), ValueError, "p: expected numbers of at least 0"),
        (lambda: gibbs_value(UTILITY, SHARE[:2], temperature=1.0), ValueError, r"p: expected shape \(5, 4\), got \(2, 4\)"),
        (lambda: utility_sgd_step(UTILITY[0], 4, step=0.1), ValueError, "choice: expected an integer >= 0 and <= 3, got 4"),
        (lambda: utility_sgd_step(UTILITY[0], 0, step=0.0), ValueError, "step: expected a finite number > 0"),
        (lambda: fit_inverse_temperature(UTILITY[:0], CHOICE[:0]), ValueError, "utility: expected at least one entry"),
        (lambda: fit_inverse_temperature(UTILITY, CHOICE, tol=0.0), ValueError, "tol: expected a finite number > 0"),
        (lambda: fit_inverse_temperature(UTILITY, CHOICE, largest=np.inf), ValueError, "largest: expected a finite number > 0"),
        (lambda: reestimate_probability(UTILITY, inverse_temperature=-1.0), ValueError, "inverse_temperature: expected a finite number >= 0"),
        (lambda: decide(UTILITY, rule="beam"), ValueError, "rule: expected one of 'argmax', 'sample', 'mbr', got 'beam'"),
        (lambda: decide(UTILITY, rule="sample", rng=RNG), ValueError, "p_or_utility: expected rows of probabilities that sum to 1"),
        (lambda: decide(SHARE, rule="sample"), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: decide(SHARE, rule="mbr", gain=np.eye(3)), ValueError, r"gain: expected shape \(4, 4\), got \(3, 3\)"),
        (lambda: decide(SHARE, rule="mbr"), TypeError, "gain: expected a float32 or float64 array"),
        (lambda: ordinal_agreement(UTILITY, UTILITY[:, :2]), ValueError, r"second: expected shape \(5, 4\), got \(5, 2\)"),
        (lambda: ordinal_agreement(UTILITY[:, :1], UTILITY[:, :1]), ValueError, "first: expected at least 1 row of at least 2 alternatives"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_inverse_temperature_that_is_cut_short_says_so():
    rng = np.random.default_rng(0)
    utility, choice = rng.standard_normal((30, 4)), rng.integers(4, size=30)
    utility[np.arange(30), choice] += 1
    short, whole = (fit_inverse_temperature(utility, choice, max_iter=count) for count in (1, 100))
    assert (short.n_iter, short.converged, whole.converged) == (1, False, True)
    assert abs(short.inverse_temperature - whole.inverse_temperature) > 1e-8


def test_a_fit_that_has_arrived_does_not_start_again():
    rng = np.random.default_rng(1)
    found = fit_inverse_temperature(rng.standard_normal((50, 5)), rng.integers(0, 5, 50))
    assert found.converged
    assert found.n_iter <= 8
