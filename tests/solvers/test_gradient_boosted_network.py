import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.neural_network import MLPRegressor

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    assemble_boosted,
    boosting_init,
    boosting_loss,
    boosting_loss_vjp,
    fit_gradient_boosted_network,
    fit_small_net,
    newton_step,
    predict_boosted,
    pseudo_residual,
    small_net,
    small_net_loss,
    small_net_loss_vjp,
    small_net_vjp,
)

RNG = np.random.default_rng(2)
LOSSES = ("squared", "binary", "multiclass")


def normal(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


def labels(loss, n=7, classes=3, rng=RNG):
    if loss == "squared":
        return rng.standard_normal(n)
    return np.sign(rng.standard_normal(n)) if loss == "binary" else np.eye(classes)[rng.integers(classes, size=n)]


NET = normal((3, 2), (3,), (3, 2), (2,))

GRADIENT_CASES = [
    *(GradientCase(small_net_vjp, (*normal((5, 2)), *NET), {"activation": a}) for a in ("logistic", "tanh", "relu")),
    GradientCase(small_net_vjp, normal((1, 1), (1, 1), (1,), (1, 1), (1,)), name="one of each"),
    GradientCase(small_net_vjp, (30 * RNG.standard_normal((4, 2)), *NET), step=1e-3, name="saturated units"),
    *(
        GradientCase(small_net_loss_vjp, (*normal((5, 2), (5, 2)), *NET), {"activation": a, "l2": 0.3})
        for a in ("logistic", "tanh", "relu")
    ),
    GradientCase(small_net_loss_vjp, (*normal((5, 2), (5, 2)), *NET), {"l2": 0.0}),
    GradientCase(boosting_loss_vjp, normal((6,), (6,)), {"loss": "squared"}),
    GradientCase(boosting_loss_vjp, (labels("binary"), RNG.standard_normal(7)), {"loss": "binary"}),
    GradientCase(
        boosting_loss_vjp, (labels("binary"), 40 * RNG.standard_normal(7)), {"loss": "binary"}, name="confident"
    ),
    GradientCase(boosting_loss_vjp, (labels("multiclass"), *normal((7, 3))), {"loss": "multiclass"}),
    GradientCase(boosting_loss_vjp, normal((4, 3), (4, 3)), {"loss": "multiclass"}, name="targets not one-hot"),
]


def data(loss, seed=0, n=60):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 2))
    score = np.sin(2 * x[:, 0]) + x[:, 1]
    if loss == "squared":
        return x, score
    if loss == "binary":
        return x, np.where(score + 0.3 * rng.standard_normal(n) > 0, 1.0, -1.0)
    return x, np.eye(3)[np.digitize(score, [-0.7, 0.7])]


def fit(loss, seed=0, **options):
    options = {"total_units": 6, "max_iter": 40, "rng": np.random.default_rng(seed), **options}
    return fit_gradient_boosted_network(*data(loss), loss=loss, **options)


def score_by_pieces(model, x, pieces):
    score = np.zeros((len(x), len(model.intercept))) + model.intercept
    for piece, step in zip(model.pieces[:pieces], model.steps[:pieces], strict=True):
        score = score + step * small_net(x, *vars(piece).values(), activation=model.activation)
    return score


def test_binary_step_by_hand():
    target = np.array([1.0, 1.0, -1.0])
    start = boosting_init(target, "binary")
    np.testing.assert_allclose(start, np.log(2) / 2, rtol=1e-15)
    residual = pseudo_residual(target, np.full(3, start), "binary")
    np.testing.assert_allclose(residual, [2 / 3, 2 / 3, -4 / 3], rtol=1e-14)
    np.testing.assert_allclose(newton_step(target, residual, residual, "binary"), 1.125, rtol=1e-14)


@pytest.mark.parametrize("loss", ["squared", "binary"])
def test_start_is_the_best_constant(loss):
    target = labels(loss, 25)
    best = minimize_scalar(lambda s: float(boosting_loss(target, np.full(25, s), loss=loss)), tol=1e-12).x
    np.testing.assert_allclose(boosting_init(target, loss), best, atol=1e-6)
    np.testing.assert_allclose(
        pseudo_residual(target, np.full(25, boosting_init(target, loss)), loss).sum(), 0, atol=1e-13
    )


@given(loss=st.sampled_from(LOSSES), seed=st.integers(0, 99))
def test_residual_is_minus_the_slope(loss, seed):
    rng = np.random.default_rng(seed)
    target = labels(loss, rng=rng)
    score = rng.standard_normal(target.shape)
    _, pullback = boosting_loss_vjp(target, score, loss=loss)
    np.testing.assert_allclose(pseudo_residual(target, score, loss), -7 * pullback(np.array(1.0))[1], rtol=1e-13)


@given(seed=st.integers(0, 99))
def test_binary_newton_step_is_the_ratio_of_derivatives_along_the_piece(seed):
    rng = np.random.default_rng(seed)
    target, score, h = labels("binary", rng=rng), *rng.standard_normal((2, 7))

    def along(s):
        return 7 * float(boosting_loss(target, score + s * h, loss="binary"))

    eps = 1e-4
    slope, bend = (along(eps) - along(-eps)) / (2 * eps), (along(eps) - 2 * along(0.0) + along(-eps)) / eps**2
    found = newton_step(target, pseudo_residual(target, score, "binary"), h, "binary")
    np.testing.assert_allclose(found, -slope / bend, rtol=1e-4, atol=1e-4)


def test_newton_step_uses_one_number_for_all_classes():
    target, score = labels("multiclass"), RNG.standard_normal((7, 3))
    residual = pseudo_residual(target, score, "multiclass")
    p = target - residual
    h = RNG.standard_normal((7, 3))
    expected = (h * (target - p)).sum() / (h**2 * p * (1 - p)).sum()
    np.testing.assert_allclose(newton_step(target, residual, h, "multiclass"), expected, rtol=1e-12)
    np.testing.assert_allclose(newton_step(target, residual, -h, "multiclass"), -expected, rtol=1e-12)


@pytest.mark.parametrize("loss", ["binary", "multiclass"])
def test_no_curvature_gives_no_step(loss):
    target = labels(loss)
    assert newton_step(target, pseudo_residual(target, 0 * target, loss), 0 * target, loss) == 0
    assert (
        newton_step(target, pseudo_residual(target, 1e4 * (2 * target - (loss == "multiclass")), loss), target, loss)
        == 0
    )


def test_step_along_a_piece_that_is_active_where_all_is_fitted_is_enormous_and_can_be_bounded():
    # The first example is certain and the piece is active there alone: nearly no slope, and still less curvature.
    target, score = np.ones(3), np.array([20.0, 0.0, 0.0])
    residual = pseudo_residual(target, score, "binary")
    np.testing.assert_allclose(newton_step(target, residual, np.array([1.0, 0.0, 0.0]), "binary"), 0.5, rtol=1e-10)
    assert newton_step(target, residual, np.array([1.0, 1e-4, 0.0]), "binary") > 5000


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("units_per_step", [1, 2])
def test_assembled_network_is_the_sum_of_its_pieces_at_every_truncation(loss, units_per_step):
    model = fit(loss, units_per_step=units_per_step)
    x, _ = data(loss)
    factor = 2 if loss == "binary" else 1
    for pieces in range(len(model.pieces) + 1):
        net = assemble_boosted(model, pieces * units_per_step)
        expected = factor * score_by_pieces(model, x, pieces)
        if pieces:
            np.testing.assert_allclose(small_net(x, *vars(net).values()), expected, rtol=1e-12, atol=1e-12)
        else:
            np.testing.assert_array_equal(np.broadcast_to(net.output_bias, expected.shape), expected)
        predicted = predict_boosted(model, x, pieces * units_per_step)
        if loss == "binary":
            expected = 1 / (1 + np.exp(-expected[:, 0]))
        elif loss == "multiclass":
            expected = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
        else:
            expected = expected[:, 0]
        np.testing.assert_allclose(predicted, expected, rtol=1e-10, atol=1e-12)


def test_units_that_do_not_fill_a_piece_are_left_out():
    model = fit("squared", units_per_step=2)
    np.testing.assert_array_equal(assemble_boosted(model, 3).weight, assemble_boosted(model, 2).weight)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ["logistic", "tanh", "relu"])
def test_training_lowers_the_loss(loss, activation):
    model = fit(loss, activation=activation, subsample=1.0, total_units=8)
    x, target = data(loss)
    start = float(boosting_loss(target, np.broadcast_to(boosting_init(target, loss), target.shape).copy(), loss=loss))
    assert model.history["loss"][-1] < 0.7 * start
    score = score_by_pieces(model, x, None).reshape(target.shape)
    np.testing.assert_allclose(boosting_loss(target, score, loss=loss), model.history["loss"][-1], rtol=1e-10)


def test_squared_loss_never_rises_without_subsampling():
    # With weight decay a unit may be fitted a little worse than by 0, and the loss rise by that little.
    assert (np.diff(fit("squared", subsample=1.0, total_units=15, l2=0.0).history["loss"]) <= 0).all()


def test_steps_are_scaled_and_clipped():
    plain, slow = fit("binary", total_units=1), fit("binary", total_units=1, learning_rate=0.25)
    np.testing.assert_allclose(slow.steps, 0.25 * plain.steps, rtol=1e-12)
    clipped = fit("binary", total_units=10, max_step=0.5)
    assert np.abs(clipped.steps).max() <= 0.5


def test_a_perfect_fit_ends_early():
    x = RNG.standard_normal((10, 2))
    target = np.sign(x[:, 0])
    model = fit_gradient_boosted_network(
        x, target, loss="binary", total_units=200, learning_rate=1e3, subsample=1.0, max_step=1e6, rng=RNG
    )
    assert len(model.pieces) < 200
    assert model.history["loss"][-1] == 0


def test_fit_is_as_good_as_scikit_learns():
    x = np.random.default_rng(0).standard_normal((80, 3))
    target = np.tanh(x @ np.array([1.0, -2.0, 0.5]))[:, None]

    def best(fits):
        return min(fits)

    ours = best(
        float(
            small_net_loss(x, target, *vars(fit_small_net(x, target, units=2, rng=np.random.default_rng(s))).values())
        )
        for s in range(3)
    )
    peers = []
    for seed in range(3):
        peer = MLPRegressor(
            hidden_layer_sizes=(2,),
            activation="logistic",
            solver="lbfgs",
            alpha=1e-4,
            max_iter=400,
            max_fun=10**5,
            tol=1e-7,
            random_state=seed,
        )
        peer.fit(x, target[:, 0])
        weights = peer.coefs_[0].T, peer.intercepts_[0], peer.coefs_[1], peer.intercepts_[1]
        peers.append(float(small_net_loss(x, target, *weights)))
        np.testing.assert_allclose(peers[-1], peer.loss_, rtol=1e-6)
    assert ours < 1.2 * best(peers) + 1e-5


def test_same_generator_gives_the_same_network():
    one, other = fit("binary", seed=3), fit("binary", seed=3)
    np.testing.assert_array_equal(one.steps, other.steps)
    assert not np.array_equal(fit("binary", seed=4).steps, one.steps)


def test_callback_ends_the_run():
    assert len(fit("squared", callback=lambda progress: progress.n_iter == 2).pieces) == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("loss", LOSSES)
def test_dtype_in_is_dtype_out(loss, dtype):
    x, target = (a.astype(dtype) for a in data(loss))
    model = fit_gradient_boosted_network(x, target, loss=loss, total_units=2, max_iter=5, rng=RNG)
    net = assemble_boosted(model)
    y, pullback = small_net_vjp(x, *vars(net).values())
    inner, inner_pullback = small_net_loss_vjp(x, y, *vars(net).values())
    value, loss_pullback = boosting_loss_vjp(target, target, loss=loss)
    one = np.array(1, dtype)
    arrays = [
        *vars(net).values(),
        model.steps,
        model.intercept,
        predict_boosted(model, x),
        predict_boosted(model, x, 0),
    ]
    arrays += [y, inner, value, *pullback(y), *inner_pullback(one), *loss_pullback(one), boosting_init(target, loss)]
    assert {a.dtype for a in arrays} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    for loss in LOSSES:
        x, target = data(loss)
        x.setflags(write=False)
        target.setflags(write=False)
        model = fit_gradient_boosted_network(x, target, loss=loss, total_units=2, max_iter=5, rng=RNG)
        predict_boosted(model, x)
        boosting_loss_vjp(target, target, loss=loss)[1](np.array(1.0))


X, Y = np.ones((4, 2)), np.array([1.0, 1.0, -1.0, -1.0])


def build(x=X, target=Y, loss="binary", **options):
    return fit_gradient_boosted_network(x, target, loss=loss, rng=RNG, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: build(total_units=1, units_per_step=2), ValueError, "total_units: expected an integer >= 2, got 1"),
        (lambda: build(subsample=0.0), ValueError, r"subsample: expected a number in \(0.0, 1.0\], got 0.0"),
        (lambda: build(subsample=0.1), ValueError, "subsample: expected at least one of 4 examples, got 0.1"),
        (lambda: build(target=np.ones(4)), ValueError, "target: expected labels of both kinds, got 1 only"),
        (lambda: build(target=2 * Y), ValueError, "target: expected labels -1 and 1, got 2"),
        (lambda: build(target=np.ones((4, 2)), loss="multiclass"), ValueError, "target: expected one-hot rows"),
        (lambda: build(loss="absolute"), ValueError, "loss: expected one of 'squared', 'binary', 'multiclass'"),
        (lambda: build(target=Y[:3]), ValueError, r"target: expected shape \(4,\), got \(3,\)"),
        (lambda: build(target=Y.astype(int)), TypeError, "target: expected a float32 or float64 array"),
        (lambda: build(x=X * np.inf), ValueError, "x: expected finite values"),
        (lambda: build(learning_rate=0.0), ValueError, "learning_rate: expected a finite number > 0"),
        (lambda: build(max_step=-1.0), ValueError, "max_step: expected a finite number > 0"),
        (lambda: build(activation="sine"), ValueError, "activation: expected one of 'logistic', 'tanh', 'relu'"),
        (lambda: predict_boosted(fit("squared"), X, 7), ValueError, "n_units: expected an integer >= 0 and <= 6, got 7"),
        (lambda: predict_boosted(fit("squared"), np.ones((4, 3))), ValueError, r"weight: expected shape \(6, 3\), got \(6, 2\)"),
        (lambda: newton_step(Y, Y, Y[:2], "binary"), ValueError, r"h: expected shape \(4,\), got \(2,\)"),
        (lambda: pseudo_residual(Y, Y[:2], "binary"), ValueError, r"score: expected shape \(4,\), got \(2,\)"),
        (lambda: fit_small_net(X, X[:2], rng=RNG), ValueError, r"residual: expected shape \(4, 2\), got \(2, 2\)"),
        (lambda: fit_small_net(X, X, units=0, rng=RNG), ValueError, "units: expected an integer >= 1, got 0"),
        (lambda: small_net_loss(X, X, *NET, l2=-1.0), ValueError, "l2: expected a finite number >= 0, got -1.0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
