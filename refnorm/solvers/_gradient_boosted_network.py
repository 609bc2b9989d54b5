"""A one-hidden-layer network trained a few units at a time, by gradient boosting.

score_0 = best constant,   score_t = score_{t-1} + learning_rate step_t h_t(x)
h_t: a small network fitted by least squares to the negative slope of the loss;  step_t: a Newton step along it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.softmax import log_softmax, softmax
from refnorm.solvers._monitor import Callback, Monitor

METHOD = Method(
    title="Sequential Training of Neural Networks with Gradient Boosting",
    authors="Emami, Martinez-Munoz",
    year=2019,
    arxiv="1909.12098",
    functions=(
        "GradientBoostedNetwork",
        "SmallNet",
        "assemble_boosted",
        "boosting_init",
        "boosting_loss",
        "fit_gradient_boosted_network",
        "fit_small_net",
        "newton_step",
        "predict_boosted",
        "pseudo_residual",
        "small_net",
        "small_net_loss",
    ),
    chapter="solvers/gradient_boosted_network",
)

LOSSES = ("squared", "binary", "multiclass")
ACTIVATIONS = ("logistic", "tanh", "relu")


@dataclass(frozen=True)
class SmallNet:
    """Parameters of ``activation(x weight^T + bias) output + output_bias``.

    Parameters
    ----------
    weight, bias
        Hidden layer, (J, d) and (J,).
    output, output_bias
        Output layer, (J, K) and (K,).
    """

    weight: AnyArray
    bias: AnyArray
    output: AnyArray
    output_bias: AnyArray


@dataclass(frozen=True)
class GradientBoostedNetwork:
    """Outcome of :func:`fit_gradient_boosted_network`.

    Parameters
    ----------
    pieces
        The small networks in the order in which they were trained.
    steps
        What each is multiplied by, learning rate included, (T,).
    intercept
        The constant that came first, (K,); one entry for ``"squared"`` and ``"binary"``.
    loss, activation
        As given to the fit.
    history
        Array ``loss``: mean training loss after each piece.
    """

    pieces: tuple[SmallNet, ...]
    steps: AnyArray
    intercept: AnyArray
    loss: str
    activation: str
    history: Mapping[str, Array[np.float64]]


def boosting_init(target: Array[F], loss: str) -> Array[F]:
    """Return the constant score with which boosting begins.

    Parameters
    ----------
    target : array (N,), or (N, K) for ``"multiclass"``
        Values, labels -1 and 1, or one-hot rows.
    loss : ``"squared"``, ``"binary"`` or ``"multiclass"``

    Returns
    -------
    array (), or (K,) for ``"multiclass"``

    Raises
    ------
    TypeError, ValueError
        If the targets do not fit the loss, or the labels are all the same.

    Notes
    -----
    The mean; ``1/2 log((1 + mean) / (1 - mean))``; zeros. The first two minimise the loss.

    References
    ----------
    Emami, Martinez-Munoz (2019), arXiv 1909.12098; Friedman (2001), Annals of Statistics 29.

    Examples
    --------
    >>> float(boosting_init(np.array([1.0, 1.0, -1.0]), "binary").round(6))
    0.346574
    """
    target = _labels(target, loss)
    if loss == "multiclass":
        return np.zeros(target.shape[1], target.dtype)
    mean = target.mean(dtype=np.float64)
    if loss == "binary":
        if abs(mean) == 1:
            _checks.fail("target", "labels of both kinds", f"{mean:g} only")
        mean = np.arctanh(mean)
    return np.asarray(mean, dtype=target.dtype)


def boosting_loss(target: Array[F], score: Array[F], *, loss: str) -> Array[F]:
    """Return the mean loss of scores.

    Parameters
    ----------
    target, score : arrays (N,), or (N, K) for ``"multiclass"``
    loss : ``"squared"``, ``"binary"`` or ``"multiclass"``

    Returns
    -------
    array (), dtype of ``score``

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or the targets do not fit the loss.

    Notes
    -----
    ``1/2 (target - score)^2``; ``log(1 + exp(-2 target score))``; ``-sum target log softmax(score)``. Half the
    logit is the natural score of the second: the probability of label 1 is ``sigmoid(2 score)``.

    References
    ----------
    Emami, Martinez-Munoz (2019), arXiv 1909.12098.

    Examples
    --------
    >>> float(boosting_loss(np.array([1.0, -1.0]), np.zeros(2), loss="binary").round(6))
    0.693147
    """
    return boosting_loss_vjp(target, score, loss=loss)[0]


def boosting_loss_vjp(target: Array[F], score: Array[F], *, loss: str) -> tuple[Array[F], Pullback]:
    """Return :func:`boosting_loss` and its pullback ``dy -> (dtarget, dscore)``."""
    target, score = _pair(target, score, loss)
    residual = _residual(target, score, loss)
    if loss == "squared":
        each, dtarget = (target - score) ** 2 / 2, target - score
    elif loss == "binary":
        each, dtarget = np.logaddexp(0, -2 * target * score), -2 * score * scipy.special.expit(-2 * target * score)
    else:
        each, dtarget = -target * log_softmax(score), -log_softmax(score)
    n = len(target)
    value = np.asarray(each.sum() / n, dtype=score.dtype)

    def pullback(dy: Array[F]) -> tuple[AnyArray, AnyArray]:
        # The pseudo-residual is minus the slope of one example's loss.
        return dy / n * dtarget, -dy / n * residual

    return value, pullback


def pseudo_residual(target: Array[F], score: Array[F], loss: str) -> Array[F]:
    """Return the negative slope of every example's loss in its score: what the next piece is fitted to.

    Parameters
    ----------
    target, score : arrays (N,), or (N, K) for ``"multiclass"``
    loss : ``"squared"``, ``"binary"`` or ``"multiclass"``

    Returns
    -------
    array of the shape of ``score``

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or the targets do not fit the loss.

    Notes
    -----
    ``target - score``; ``2 target / (1 + exp(2 target score))``; ``target - softmax(score)``.

    References
    ----------
    Emami, Martinez-Munoz (2019), arXiv 1909.12098.

    Examples
    --------
    >>> pseudo_residual(np.array([1.0, -1.0]), np.zeros(2), "binary")
    array([ 1., -1.])
    """
    target, score = _pair(target, score, loss)
    return _residual(target, score, loss)


def newton_step(target: Array[F], residual: Array[F], h: Array[F], loss: str) -> float:
    """Return the multiple of ``h`` that minimises the loss's second-order expansion.

    Parameters
    ----------
    target, residual, h : arrays (N,), or (N, K) for ``"multiclass"``
        Targets, pseudo-residuals and the outputs of the piece.
    loss : ``"squared"``, ``"binary"`` or ``"multiclass"``

    Returns
    -------
    float
        1 for ``"squared"``; 0 if the expansion has no curvature along ``h``. Negative if ``h`` points uphill.

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or the loss is unknown.

    Notes
    -----
    ``sum residual h / sum curvature h^2``. The curvature of the binary loss is ``residual (2 target - residual)``;
    for classes the diagonal of the Hessian is taken, ``p (1 - p)`` with ``p = target - residual``, and one
    number for all classes.

    References
    ----------
    Emami, Martinez-Munoz (2019), arXiv 1909.12098.

    Examples
    --------
    >>> residual = np.array([2 / 3, 2 / 3, -4 / 3])
    >>> round(newton_step(np.array([1.0, 1.0, -1.0]), residual, residual, "binary"), 6)
    1.125
    """
    target = _target(target, loss)
    residual, h = _checks.float_array(residual, "residual"), _checks.float_array(h, "h")
    _checks.same_dtype("target", target, residual=residual, h=h)
    _checks.shape(residual, "residual", target.shape)
    _checks.shape(h, "h", target.shape)
    if loss == "squared":
        return 1.0
    probability = target - residual
    curvature = residual * (2 * target - residual) if loss == "binary" else probability * (1 - probability)
    slope, bend = float((residual * h).sum()), float((curvature * h * h).sum())
    return slope / bend if bend > 0 else 0.0


def small_net(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    output: Array[F],
    output_bias: Array[F],
    *,
    activation: str = "logistic",
) -> Array[F]:
    """Apply a network with one hidden layer.

    Parameters
    ----------
    x : array (N, d)
    weight, bias : arrays (J, d) and (J,)
        Hidden layer.
    output, output_bias : arrays (J, K) and (K,)
        Output layer.
    activation : ``"logistic"``, ``"tanh"`` or ``"relu"``

    Returns
    -------
    array (N, K)

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or the activation is unknown.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> small_net(0 * one, one, np.zeros(1), 4 * one, np.ones(1))
    array([[3.]])
    """
    return small_net_vjp(x, weight, bias, output, output_bias, activation=activation)[0]


def small_net_vjp(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    output: Array[F],
    output_bias: Array[F],
    *,
    activation: str = "logistic",
) -> tuple[Array[F], Pullback]:
    """Return :func:`small_net` and its pullback ``dy -> (dx, dweight, dbias, doutput, doutput_bias)``."""
    x = _checks.float_array(x, "x", ndim=2)
    net = SmallNet(*(np.asarray(a) for a in (weight, bias, output, output_bias)))
    _check_net(net, x)
    _checks.one_of(activation, "activation", ACTIVATIONS)
    hidden, slope = _activate(x @ net.weight.T + net.bias, activation)
    y: Array[F] = hidden @ net.output + net.output_bias

    def pullback(dy: Array[F]) -> tuple[AnyArray, ...]:
        dy = np.asarray(dy)
        dsummed = dy @ net.output.T * slope
        return dsummed @ net.weight, dsummed.T @ x, dsummed.sum(axis=0), hidden.T @ dy, dy.sum(axis=0)

    return y, pullback


def small_net_loss(
    x: Array[F],
    residual: Array[F],
    weight: Array[F],
    bias: Array[F],
    output: Array[F],
    output_bias: Array[F],
    *,
    activation: str = "logistic",
    l2: float = 1e-4,
) -> Array[F]:
    """Return the objective of the inner fit: half the mean squared error, and a little weight decay.

    Parameters
    ----------
    x : array (N, d)
    residual : array (N, K)
        What the network is fitted to.
    weight, bias, output, output_bias
        As in :func:`small_net`.
    activation : ``"logistic"``, ``"tanh"`` or ``"relu"``
    l2 : float >= 0
        Weight decay, as scikit-learn counts it: biases are left alone, and the sum is divided by N.

    Returns
    -------
    array (), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or an option is outside its range.

    Notes
    -----
    ``(|net(x) - residual|^2 + l2 (|weight|^2 + |output|^2)) / (2 N)``.

    References
    ----------
    Emami, Martinez-Munoz (2019), arXiv 1909.12098.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> float(small_net_loss(0 * one, one, one, np.zeros(1), 2 * one, np.zeros(1), l2=1.0))
    2.5
    """
    return small_net_loss_vjp(x, residual, weight, bias, output, output_bias, activation=activation, l2=l2)[0]


def small_net_loss_vjp(
    x: Array[F],
    residual: Array[F],
    weight: Array[F],
    bias: Array[F],
    output: Array[F],
    output_bias: Array[F],
    *,
    activation: str = "logistic",
    l2: float = 1e-4,
) -> tuple[Array[F], Pullback]:
    """Return :func:`small_net_loss` and its pullback.

    The pullback maps ``dy`` to ``(dx, dresidual, dweight, dbias, doutput, doutput_bias)``.
    """
    prediction, through = small_net_vjp(x, weight, bias, output, output_bias, activation=activation)
    residual = _checks.float_array(residual, "residual", ndim=2)
    _checks.same_dtype("x", prediction, residual=residual)
    _checks.shape(residual, "residual", prediction.shape)
    _checks.not_empty(residual, "residual", (0,))
    _checks.non_negative(l2, "l2")
    weight, output, n = np.asarray(weight), np.asarray(output), len(residual)
    error = prediction - residual
    decay = (weight * weight).sum() + (output * output).sum()
    value = np.asarray(((error * error).sum() + l2 * decay) / (2 * n), dtype=prediction.dtype)

    def pullback(dy: Array[F]) -> tuple[AnyArray, ...]:
        derror = dy / n * error
        dx, dweight, dbias, doutput, doutput_bias = through(derror)
        shrink = dy * l2 / n
        return dx, -derror, dweight + shrink * weight, dbias, doutput + shrink * output, doutput_bias

    return value, pullback


def fit_small_net(
    x: Array[F],
    residual: Array[F],
    *,
    units: int = 1,
    activation: str = "logistic",
    l2: float = 1e-4,
    max_iter: int = 200,
    rng: np.random.Generator,
) -> SmallNet:
    """Fit a network of a few units by least squares, with L-BFGS from random weights.

    Parameters
    ----------
    x : array (N, d)
    residual : array (N, K)
    units : int >= 1
        Hidden units J.
    activation : ``"logistic"``, ``"tanh"`` or ``"relu"``
    l2 : float >= 0
        See :func:`small_net_loss`.
    max_iter : int >= 1
        Iterations of L-BFGS.
    rng : numpy.random.Generator
        Draws the weights and biases from Glorot's uniform distribution.

    Returns
    -------
    SmallNet

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, a value is not finite or an option is outside its range.

    References
    ----------
    Emami, Martinez-Munoz (2019), arXiv 1909.12098; Glorot, Bengio (2010), for the start.

    Examples
    --------
    >>> x = np.linspace(-3, 3, 50)[:, None]
    >>> net = fit_small_net(x, np.tanh(x), rng=np.random.default_rng(0))
    >>> bool(np.abs(small_net(x, *vars(net).values()) - np.tanh(x)).max() < 1e-2)
    True
    """
    x = _checks.float_array(x, "x", ndim=2)
    residual = _checks.float_array(residual, "residual", ndim=2)
    _checks.same_dtype("x", x, residual=residual)
    _checks.shape(residual, "residual", (len(x), residual.shape[1]))
    _checks.not_empty(x, "x", (0, 1))
    _checks.finite(x, "x")
    _checks.finite(residual, "residual")
    units = _checks.whole(units, "units", low=1)
    _checks.one_of(activation, "activation", ACTIVATIONS)
    _checks.non_negative(l2, "l2")
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    inputs, outputs = x.shape[1], residual.shape[1]
    shapes = ((units, inputs), (units,), (units, outputs), (outputs,))
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    wide = x.astype(np.float64), residual.astype(np.float64)

    def unpack(flat: AnyArray) -> list[AnyArray]:
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes, strict=True)]

    def objective(flat: AnyArray) -> tuple[float, AnyArray]:
        value, pullback = small_net_loss_vjp(*wide, *unpack(flat), activation=activation, l2=l2)
        return float(value), np.concatenate([np.ravel(part) for part in pullback(np.float64(1.0))[2:]])

    start = _glorot(_checks.generator(rng), inputs, units, outputs, activation)
    found = scipy.optimize.minimize(objective, start, method="L-BFGS-B", jac=True, options={"maxiter": max_iter})
    return SmallNet(*(part.astype(x.dtype) for part in unpack(found.x)))


def fit_gradient_boosted_network(
    x: Array[F],
    target: Array[F],
    *,
    loss: str,
    total_units: int = 200,
    units_per_step: int = 1,
    learning_rate: float = 1.0,
    subsample: float = 0.5,
    activation: str = "logistic",
    l2: float = 1e-4,
    max_iter: int = 200,
    max_step: float | None = None,
    rng: np.random.Generator,
    callback: Callback | None = None,
) -> GradientBoostedNetwork:
    """Train a network with one hidden layer a few units at a time.

    Parameters
    ----------
    x : array (N, d)
        Standardized features: logistic units saturate on others.
    target : array (N,), or (N, K) for ``"multiclass"``
        Values, labels -1 and 1, or one-hot rows.
    loss : ``"squared"``, ``"binary"`` or ``"multiclass"``
    total_units, units_per_step : int >= 1
        ``total_units // units_per_step`` pieces are trained.
    learning_rate : float > 0
        Factor on every step.
    subsample : float in (0, 1]
        Fraction of the examples that a piece is fitted to, drawn without replacement.
    activation, l2, max_iter
        See :func:`fit_small_net`.
    max_step : float > 0, optional
        Largest size of a Newton step.
    rng : numpy.random.Generator
    callback : callable, optional
        Called with a :class:`Progress` after every piece; a true result ends the run.

    Returns
    -------
    GradientBoostedNetwork
        With fewer pieces if a Newton step was 0: the loss has no slope or no curvature left.

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, the targets do not fit the loss or an option is outside its range.
    Diverged
        If the loss grows without bound; a ``max_step`` or a smaller ``learning_rate`` helps.

    Notes
    -----
    The piece is fitted to the residuals of the subsample; its Newton step is taken on all examples.

    References
    ----------
    Emami, Martinez-Munoz (2019), arXiv 1909.12098.

    Examples
    --------
    >>> x = np.linspace(-2, 2, 40)[:, None]
    >>> model = fit_gradient_boosted_network(x, np.sin(2 * x[:, 0]), loss="squared", total_units=10, subsample=1.0,
    ...                                      rng=np.random.default_rng(0))
    >>> len(model.pieces), bool(model.history["loss"][-1] < 0.03)
    (10, True)
    """
    x, target = _checks.float_array(x, "x", ndim=2), _labels(target, loss)
    _checks.same_dtype("x", x, target=target)
    _checks.not_empty(x, "x", (0, 1))
    _checks.shape(target, "target", (len(x), *target.shape[1:]))
    _checks.finite(x, "x")
    units_per_step = _checks.whole(units_per_step, "units_per_step", low=1)
    total_units = _checks.whole(total_units, "total_units", low=units_per_step)
    _checks.positive(learning_rate, "learning_rate")
    _checks.in_range(subsample, "subsample", 0.0, 1.0, closed="right")
    drawn = int(subsample * len(x))
    if drawn < 1:
        _checks.fail("subsample", f"at least one of {len(x)} examples", subsample)
    if max_step is not None:
        _checks.positive(max_step, "max_step")
    _checks.generator(rng)
    options: dict[str, Any] = {"activation": activation, "l2": l2, "max_iter": max_iter}
    monitor = Monitor("fit_gradient_boosted_network", callback=callback, hint="use max_step or a smaller learning_rate")
    intercept = boosting_init(target, loss)
    score: AnyArray = np.broadcast_to(intercept, target.shape).astype(target.dtype)
    pieces: list[SmallNet] = []
    steps: list[float] = []
    for _ in range(total_units // units_per_step):
        residual = pseudo_residual(target, score, loss)
        chosen = rng.choice(len(x), drawn, replace=False) if drawn < len(x) else slice(None)
        columns = residual.reshape(len(x), -1)
        piece = fit_small_net(x[chosen], columns[chosen], units=units_per_step, rng=rng, **options)
        h = small_net(x, *vars(piece).values(), activation=activation).reshape(target.shape)
        step = learning_rate * newton_step(target, residual, h, loss)
        if max_step is not None:
            step = float(np.clip(step, -max_step, max_step))
        if step == 0:
            break
        score = (score + step * h).astype(target.dtype)
        pieces.append(piece)
        steps.append(step)
        if monitor.record(loss=float(boosting_loss(target, score, loss=loss))):
            break
    return GradientBoostedNetwork(
        pieces=tuple(pieces),
        steps=np.array(steps, x.dtype),
        intercept=np.atleast_1d(intercept),
        loss=loss,
        activation=activation,
        history=monitor.history() or {"loss": np.zeros(0)},
    )


def assemble_boosted(model: GradientBoostedNetwork, n_units: int | None = None) -> SmallNet:
    """Return the boosted pieces as one network, whose output goes through a sigmoid or softmax as usual.

    Parameters
    ----------
    model : GradientBoostedNetwork
    n_units : int >= 0, optional
        Use only the pieces that were trained first, up to so many units; all by default.

    Returns
    -------
    SmallNet

    Raises
    ------
    TypeError, ValueError
        If ``n_units`` is not an integer from 0 to the number of units.

    Notes
    -----
    Hidden weights are stacked, output weights multiplied by their steps, the constants added up. The score of the
    binary loss is half a logit, so its output layer is doubled.

    References
    ----------
    Emami, Martinez-Munoz (2019), arXiv 1909.12098.

    Examples
    --------
    >>> x = np.linspace(-2, 2, 40)[:, None]
    >>> model = fit_gradient_boosted_network(x, np.sign(x[:, 0] - 0.01), loss="binary", total_units=4,
    ...                                      units_per_step=2, rng=np.random.default_rng(0))
    >>> assemble_boosted(model).weight.shape, assemble_boosted(model, 2).weight.shape
    ((4, 1), (2, 1))
    """
    units = [len(piece.bias) for piece in model.pieces]
    if n_units is not None:
        n_units = _checks.whole(n_units, "n_units", low=0, high=sum(units))
    kept = len(units) if n_units is None else int(np.searchsorted(np.cumsum(units), n_units, side="right"))
    pieces, steps = model.pieces[:kept], model.steps[:kept]
    factor = 2 if model.loss == "binary" else 1
    if not pieces:
        return SmallNet(np.zeros((0, 0)), np.zeros(0), np.zeros((0, len(model.intercept))), factor * model.intercept)
    constants = sum(step * piece.output_bias for step, piece in zip(steps, pieces, strict=True))
    return SmallNet(
        weight=np.concatenate([piece.weight for piece in pieces]),
        bias=np.concatenate([piece.bias for piece in pieces]),
        output=factor * np.concatenate([step * piece.output for step, piece in zip(steps, pieces, strict=True)]),
        output_bias=factor * (model.intercept + constants),
    )


def predict_boosted(model: GradientBoostedNetwork, x: Array[F], n_units: int | None = None) -> Array[F]:
    """Apply a boosted network.

    Parameters
    ----------
    model : GradientBoostedNetwork
    x : array (N, d)
    n_units : int >= 0, optional
        As in :func:`assemble_boosted`: the accuracy-cost trade-off at prediction time.

    Returns
    -------
    array (N,), or (N, K) for ``"multiclass"``
        Values, probabilities of label 1, or probabilities of the classes.

    Raises
    ------
    TypeError, ValueError
        If ``x`` does not fit the model or ``n_units`` is outside its range.

    Examples
    --------
    >>> x = np.linspace(-2, 2, 40)[:, None]
    >>> model = fit_gradient_boosted_network(x, np.sign(x[:, 0] - 0.01), loss="binary", total_units=5,
    ...                                      rng=np.random.default_rng(0))
    >>> predict_boosted(model, np.array([[-1.0], [1.0]])).round(1)
    array([0., 1.])
    """
    x = _checks.float_array(x, "x", ndim=2)
    net = assemble_boosted(model, n_units)
    if len(net.bias):
        y = small_net(x, net.weight, net.bias, net.output, net.output_bias, activation=model.activation)
    else:
        y = np.broadcast_to(net.output_bias, (len(x), len(net.output_bias))).astype(x.dtype)
    if model.loss == "multiclass":
        return softmax(y)
    return np.asarray(scipy.special.expit(y[:, 0]) if model.loss == "binary" else y[:, 0])


def _residual(target: AnyArray, score: AnyArray, loss: str) -> AnyArray:
    if loss == "squared":
        return np.asarray(target - score)
    if loss == "binary":
        return np.asarray(2 * target * scipy.special.expit(-2 * target * score))
    # Rows of the target sum to 1; in general the slope is the row's sum times softmax minus the row.
    return np.asarray(target - target.sum(axis=1, keepdims=True) * softmax(score))


def _activate(summed: AnyArray, activation: str) -> tuple[AnyArray, AnyArray]:
    """Return the activation and its slope."""
    if activation == "logistic":
        y = scipy.special.expit(summed)
        return y, y * (1 - y)
    if activation == "tanh":
        y = np.tanh(summed)
        return y, 1 - y * y
    return np.maximum(summed, 0), (summed > 0).astype(summed.dtype)


def _glorot(rng: np.random.Generator, inputs: int, units: int, outputs: int, activation: str) -> AnyArray:
    """Return random weights and biases of both layers, joined; the bound is smaller for logistic units."""
    parts = []
    for before, after in ((inputs, units), (units, outputs)):
        bound = np.sqrt((2 if activation == "logistic" else 6) / (before + after))
        parts.append(rng.uniform(-bound, bound, before * after + after))
    return np.concatenate(parts)


def _target(target: AnyArray, loss: str) -> AnyArray:
    _checks.one_of(loss, "loss", LOSSES)
    target = _checks.float_array(target, "target", ndim=2 if loss == "multiclass" else 1)
    _checks.not_empty(target, "target", range(target.ndim))
    _checks.finite(target, "target")
    return target


def _labels(target: AnyArray, loss: str) -> AnyArray:
    """Check the targets as data: where a loss is differentiated they are any numbers."""
    target = _target(target, loss)
    if loss == "binary" and not (np.abs(target) == 1).all():
        _checks.fail("target", "labels -1 and 1", f"{target[np.abs(target) != 1][0]:g}")
    if loss == "multiclass" and not (((target == 0) | (target == 1)).all() and (target.sum(axis=1) == 1).all()):
        _checks.fail("target", "one-hot rows", "others")
    return target


def _pair(target: AnyArray, score: AnyArray, loss: str) -> tuple[AnyArray, AnyArray]:
    target, score = _target(target, loss), _checks.float_array(score, "score")
    _checks.same_dtype("target", target, score=score)
    _checks.shape(score, "score", target.shape)
    return target, score


def _check_net(net: SmallNet, x: AnyArray) -> None:
    for name, array, ndim in (("weight", net.weight, 2), ("output", net.output, 2)):
        _checks.float_array(array, name, ndim=ndim)
    units, outputs = len(net.weight), net.output.shape[1]
    shapes = {"weight": (units, x.shape[1]), "bias": (units,), "output": (units, outputs), "output_bias": (outputs,)}
    for name, shape in shapes.items():
        array = _checks.float_array(getattr(net, name), name)
        _checks.same_dtype("x", x, **{name: array})
        _checks.shape(array, name, shape)
