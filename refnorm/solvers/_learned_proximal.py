"""Learned proximal networks: the gradient of an input-convex network is a proximal map, whatever its weights.

z_1 = softplus(H_1 x),   z_(l+1) = softplus(W_l z_l + H_(l+1) x + c_(l+1)),   W_l >= 0
potential(x) = <w, z_last> + <h, x> + c + convexity / 2 |x|^2,   w >= 0            (convex in x)
prox(x) = gradient of the potential
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.solvers._monitor import Callback, Monitor
from refnorm.tree import tree_leaves, tree_map

METHOD = Method(
    title="What's in a Prior? Learned Proximal Networks for Inverse Problems",
    authors="Fang, Buchanan, Sulam",
    year=2024,
    arxiv="2310.14344",
    functions=(
        "LPNParams",
        "PlugAndPlayResult",
        "ProximalInverse",
        "init_lpn",
        "lpn_invert",
        "lpn_potential",
        "lpn_prior",
        "lpn_prox",
        "pnp_admm",
        "pnp_pgd",
        "project_nonneg",
        "proximal_matching_loss",
    ),
    chapter="solvers/learned_proximal",
)

POSITIVE_INITS = ("exp_normal", "clipped_uniform")

FIRST_DAMPING = 0.1
DAMPING_FACTOR = 4.0
"""The inversion's first step is at most 1 / FIRST_DAMPING long; the bound grows by the factor after every good step."""

ARMIJO = 1e-4
"""Part of the predicted decrease that a step must reach, as usual."""

HALVINGS = 40
"""2^-40 of a step of length 10 is 1e-11, below any sensible tolerance."""

CG_STEPS_PER_ENTRY = 2
"""In exact arithmetic 1 suffices; rounding delays it."""


@dataclass(frozen=True)
class LPNParams:
    """Weights of a learned proximal network with inputs of size n, width h and L hidden-to-hidden layers.

    Parameters
    ----------
    input_weights : L + 1 arrays (h, n)
        From the input to every layer.
    hidden_weights : L arrays (h, h), >= 0
        From layer to layer.
    biases : L arrays (h,)
        Of all layers but the first.
    output_weight : array (h,), >= 0
        From the last layer to the potential.
    output_linear : array (n,)
        From the input to the potential.
    output_bias : array ()
        Added to the potential; the proximal map does not feel it.
    """

    input_weights: tuple[AnyArray, ...]
    hidden_weights: tuple[AnyArray, ...]
    biases: tuple[AnyArray, ...]
    output_weight: AnyArray
    output_linear: AnyArray
    output_bias: AnyArray


@dataclass(frozen=True)
class ProximalInverse:
    """Outcome of :func:`lpn_invert`.

    Parameters
    ----------
    x : array, shape of ``u``
        Inputs whose proximal points are closest to ``u``.
    n_iter
        Iterations.
    converged
        Whether every row's distance is at most ``tol``.
    residual : array (...,)
        Largest difference between ``prox(x)`` and ``u`` in each row.
    history
        ``gap``: largest difference in any row after each iteration.
    """

    x: AnyArray
    n_iter: int
    converged: bool
    residual: AnyArray
    history: dict[str, Array[np.float64]]


@dataclass(frozen=True)
class PlugAndPlayResult:
    """Outcome of :func:`pnp_admm` or :func:`pnp_pgd`.

    Parameters
    ----------
    x
        The last iterate.
    n_iter
        Iterations.
    converged
        Whether all quantities of the history fell to ``tol``.
    history
        ``change``: norm of the step of ``x``; for ADMM also ``disagreement``: norm of the difference between
        the two blocks.
    """

    x: AnyArray
    n_iter: int
    converged: bool
    history: dict[str, Array[np.float64]]


def init_lpn(
    n: int,
    hidden: int,
    layers: int,
    *,
    rng: np.random.Generator,
    positive: str = "exp_normal",
    log_mean: float | None = None,
    log_std: float = 0.1,
    dtype: Any = np.float64,
) -> LPNParams:
    """Draw the weights of a learned proximal network.

    Parameters
    ----------
    n, hidden : int >= 1
        Size of the input; width.
    layers : int >= 0
        Number of hidden-to-hidden layers.
    rng : numpy.random.Generator
    positive : {"exp_normal", "clipped_uniform"}
        Non-negative weights: ``exp(N(log_mean, log_std^2))``, or uniform and clipped at 0.
    log_mean : float, optional
        ``-log(hidden)`` by default, with which the weights into a unit sum to about 1.
    log_std : float >= 0
    dtype : float32 or float64

    Returns
    -------
    LPNParams
        All other weights are uniform on ``+-1 / sqrt(inputs)``.

    Raises
    ------
    TypeError, ValueError
        If a size or option is out of range.

    References
    ----------
    Fang, Buchanan, Sulam (2024), arXiv 2310.14344, section 3.

    Examples
    --------
    >>> params = init_lpn(2, 8, 3, rng=np.random.default_rng(0))
    >>> len(params.input_weights), params.hidden_weights[0].shape, bool((params.hidden_weights[0] > 0).all())
    (4, (8, 8), True)
    """
    n, hidden = _checks.whole(n, "n", low=1), _checks.whole(hidden, "hidden", low=1)
    layers = _checks.whole(layers, "layers", low=0)
    rng = _checks.generator(rng)
    _checks.one_of(positive, "positive", POSITIVE_INITS)
    _checks.non_negative(log_std, "log_std")
    centre = -np.log(hidden) if log_mean is None else log_mean

    def uniform(shape: tuple[int, ...], inputs: int) -> AnyArray:
        return np.asarray(rng.uniform(-1, 1, shape) / np.sqrt(inputs))

    def non_negative(shape: tuple[int, ...]) -> AnyArray:
        if positive == "exp_normal":
            return np.asarray(np.exp(centre + log_std * rng.standard_normal(shape)))
        return np.asarray(np.maximum(uniform(shape, hidden), 0))

    params = LPNParams(
        input_weights=tuple(uniform((hidden, n), n) for _ in range(layers + 1)),
        hidden_weights=tuple(non_negative((hidden, hidden)) for _ in range(layers)),
        biases=tuple(uniform((hidden,), hidden) for _ in range(layers)),
        output_weight=non_negative((hidden,)),
        output_linear=uniform((n,), n),
        output_bias=uniform((), hidden),
    )
    cast: LPNParams = tree_map(lambda leaf: _checks.float_array(np.asarray(leaf, dtype), "dtype"), params)
    return cast


def project_nonneg(params: LPNParams) -> LPNParams:
    """Clip the weights that have to be non-negative; done after every training step.

    Parameters
    ----------
    params : LPNParams

    Returns
    -------
    LPNParams

    Examples
    --------
    >>> params = init_lpn(1, 2, 0, rng=np.random.default_rng(0))
    >>> moved = LPNParams(params.input_weights, (), (), np.array([-1.0, 2.0]), *(np.zeros(1), np.zeros(())))
    >>> project_nonneg(moved).output_weight
    array([0., 2.])
    """
    return LPNParams(
        tuple(params.input_weights),
        tuple(np.maximum(weight, 0) for weight in params.hidden_weights),
        tuple(params.biases),
        np.maximum(params.output_weight, 0),
        params.output_linear,
        params.output_bias,
    )


def lpn_potential(x: Array[F], params: LPNParams, *, sharpness: float = 10.0, convexity: float = 0.0) -> Array[F]:
    """Convex potential of a learned proximal network.

    Parameters
    ----------
    x : array (..., n)
        Inputs.
    params : LPNParams
        Weights; those from layer to layer and to the output are non-negative.
    sharpness : float > 0
        Of the softplus ``log(1 + exp(sharpness t)) / sharpness``.
    convexity : float >= 0
        Strong convexity that is added; with more than 0 the proximal map has an inverse everywhere.

    Returns
    -------
    array (...), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype is wrong, a weight that must not be negative is, or an option is out of range.

    Notes
    -----
    Softplus is convex and increasing, so a non-negative combination of convex functions, put through it, is
    convex. NaN or infinity in a row stays in that row.

    References
    ----------
    Fang, Buchanan, Sulam (2024), arXiv 2310.14344, section 3, proposition 3.1.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> unit = LPNParams((one,), (), (), np.ones(1), np.zeros(1), np.zeros(()))
    >>> lpn_potential(np.array([[0.0]]), unit, sharpness=1.0).round(6)
    array([0.693147])
    """
    return lpn_potential_vjp(x, params, sharpness=sharpness, convexity=convexity)[0]


def lpn_potential_vjp(
    x: Array[F], params: LPNParams, *, sharpness: float = 10.0, convexity: float = 0.0
) -> tuple[Array[F], Pullback]:
    """Return :func:`lpn_potential` and its pullback ``dpotential -> (dx, dparams)``."""
    net = _Network(x, params, sharpness, convexity)
    value = net.potential().reshape(net.batch)

    def pullback(dpotential: Array[F]) -> tuple[AnyArray, LPNParams]:
        scale = dpotential.reshape(-1, 1)
        # The slope of every unit's summed input, as in the proximal map itself, scaled row by row.
        slopes = [scale * delta for delta in net.deltas]
        dparams = LPNParams(
            tuple(slope.T @ net.x for slope in slopes),
            tuple(slope.T @ below for slope, below in zip(slopes[1:], net.z, strict=False)),
            tuple(slope.sum(axis=0) for slope in slopes[1:]),
            (scale * net.z[-1]).sum(axis=0),
            (scale * net.x).sum(axis=0),
            scale.sum(),
        )
        return (scale * net.prox()).reshape(x.shape), _typed(dparams, net.x)

    return value, pullback


def lpn_prox(x: Array[F], params: LPNParams, *, sharpness: float = 10.0, convexity: float = 0.0) -> Array[F]:
    """Proximal map of a learned regularizer: the gradient of the potential.

    Parameters
    ----------
    x, params, sharpness, convexity
        As in :func:`lpn_potential`.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As in :func:`lpn_potential`.

    Notes
    -----
    A continuous map is the proximal map of some function, convex or not, exactly if it is the gradient of a
    convex function. It is so here for any weights.

    References
    ----------
    Fang, Buchanan, Sulam (2024), arXiv 2310.14344, section 3; Gribonval, Nikolova (2020), theorem 1.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> unit = LPNParams((one,), (), (), np.ones(1), np.zeros(1), np.zeros(()))
    >>> lpn_prox(np.array([[0.0]]), unit, sharpness=1.0)  # the logistic function
    array([[0.5]])
    """
    return lpn_prox_vjp(x, params, sharpness=sharpness, convexity=convexity)[0]


def lpn_prox_vjp(
    x: Array[F], params: LPNParams, *, sharpness: float = 10.0, convexity: float = 0.0
) -> tuple[Array[F], Pullback]:
    """Return :func:`lpn_prox` and its pullback ``dy -> (dx, dparams)``: second derivatives of the potential."""
    net = _Network(x, params, sharpness, convexity)
    value = net.prox().reshape(x.shape)

    def pullback(dy: Array[F]) -> tuple[AnyArray, LPNParams]:
        # <dy, prox(x)> is the potential's derivative along dy. First that derivative, layer by layer ...
        v = dy.reshape(net.x.shape)
        a_along, z_along = [v @ net.input_weights[0].T], []
        for layer, gate in enumerate(net.gates):
            z_along.append(gate * a_along[layer])
            if layer < net.layers:
                a_along.append(z_along[layer] @ net.hidden_weights[layer].T + v @ net.input_weights[layer + 1].T)
        # ... then backwards: adjoints of the derivatives are the network's own deltas, those of the values
        # begin where a gate moves.
        moved = np.zeros_like(net.gates[-1])
        upper = np.broadcast_to(net.output_weight, moved.shape)
        dx = net.convexity * v
        from_input: list[AnyArray] = []
        from_hidden: list[AnyArray] = []
        from_bias: list[AnyArray] = []
        for layer in reversed(range(net.layers + 1)):
            gate, delta = net.gates[layer], net.deltas[layer]
            bend = net.sharpness * gate * (1 - gate)
            pull = moved * gate + upper * a_along[layer] * bend
            from_input.append(delta.T @ v + pull.T @ net.x)
            dx = dx + pull @ net.input_weights[layer]
            if layer:
                weight = net.hidden_weights[layer - 1]
                from_hidden.append(delta.T @ z_along[layer - 1] + pull.T @ net.z[layer - 1])
                from_bias.append(pull.sum(axis=0))
                upper, moved = delta @ weight, pull @ weight
        dparams = LPNParams(
            tuple(from_input[::-1]),
            tuple(from_hidden[::-1]),
            tuple(from_bias[::-1]),
            z_along[-1].sum(axis=0),
            v.sum(axis=0),
            np.zeros(()),
        )
        return dx.reshape(x.shape), _typed(dparams, net.x)

    return value, pullback


class _Network:
    """One evaluation: checked weights, every layer's values ``z``, and the slopes that the proximal map sums."""

    def __init__(self, x: AnyArray, params: LPNParams, sharpness: float, convexity: float) -> None:
        x = _checks.float_array(x, "x", min_ndim=1)
        _check_params(params, x)
        _checks.positive(sharpness, "sharpness")
        _checks.non_negative(convexity, "convexity")
        self.batch, self.x = x.shape[:-1], x.reshape(-1, x.shape[-1])
        self.sharpness, self.convexity = sharpness, convexity
        self.input_weights, self.hidden_weights = params.input_weights, params.hidden_weights
        self.output_weight, self.params = params.output_weight, params
        self.layers = len(self.hidden_weights)
        summed = self.x @ self.input_weights[0].T
        self.z: list[AnyArray] = []
        self.gates: list[AnyArray] = []
        for layer in range(self.layers + 1):
            # softplus and its derivative, the gate, neither of which overflows.
            with np.errstate(invalid="ignore"):  # NaN in a row
                self.z.append(np.logaddexp(0, sharpness * summed) / sharpness)
            self.gates.append(scipy.special.expit(sharpness * summed))
            if layer < self.layers:
                summed = (
                    self.z[layer] @ self.hidden_weights[layer].T
                    + self.x @ self.input_weights[layer + 1].T
                    + params.biases[layer]
                )
        # Slopes of the potential in every unit's summed input, from the output down.
        deltas = [self.gates[-1] * self.output_weight]
        for layer in reversed(range(self.layers)):
            deltas.append(self.gates[layer] * (deltas[-1] @ self.hidden_weights[layer]))
        self.deltas = deltas[::-1]

    def potential(self) -> AnyArray:
        linear = self.z[-1] @ self.output_weight + self.x @ self.params.output_linear + self.params.output_bias
        return np.asarray(linear + self.convexity / 2 * (self.x * self.x).sum(axis=1))

    def prox(self) -> AnyArray:
        total = self.params.output_linear + self.convexity * self.x
        for delta, weight in zip(self.deltas, self.input_weights, strict=True):
            total = total + delta @ weight
        return np.asarray(total)


def _check_params(params: LPNParams, x: AnyArray) -> None:
    n, depth = x.shape[-1], len(params.hidden_weights)
    for path, leaf in tree_leaves(params):
        _checks.float_array(leaf, f"params.{path}")
        _checks.same_dtype("x", x, **{f"params.{path}": leaf})
    if len(params.input_weights) != depth + 1 or len(params.biases) != depth:
        _checks.fail(
            "params",
            f"{depth + 1} input_weights and {depth} biases for {depth} hidden_weights",
            f"{len(params.input_weights)} and {len(params.biases)}",
        )
    _checks.float_array(params.output_weight, "params.output_weight", ndim=1)
    hidden = len(params.output_weight)
    wanted: list[tuple[str, AnyArray, tuple[int, ...]]] = [
        (f"input_weights.{i}", weight, (hidden, n)) for i, weight in enumerate(params.input_weights)
    ]
    wanted += [(f"hidden_weights.{i}", weight, (hidden, hidden)) for i, weight in enumerate(params.hidden_weights)]
    wanted += [(f"biases.{i}", bias, (hidden,)) for i, bias in enumerate(params.biases)]
    wanted += [("output_linear", params.output_linear, (n,)), ("output_bias", params.output_bias, ())]
    for name, array, shape in wanted:
        _checks.shape(array, f"params.{name}", shape)
    signed = [(f"hidden_weights.{i}", weight) for i, weight in enumerate(params.hidden_weights)]
    for name, array in (*signed, ("output_weight", params.output_weight)):
        if (array < 0).any():
            _checks.fail(f"params.{name}", "values of at least 0 (see project_nonneg)", array.min())


def _typed(params: LPNParams, x: AnyArray) -> LPNParams:
    typed: LPNParams = tree_map(lambda leaf: np.asarray(leaf, x.dtype), params)
    return typed


def proximal_matching_loss(prediction: Array[F], target: Array[F], *, width: float) -> Array[F]:
    """Loss that counts misses: near 0 close to the target, near 1 further than ``width`` away.

    Parameters
    ----------
    prediction, target : arrays (..., n)
    width : float > 0
        Of the well, as a root mean square over the n entries. Training begins wide and ends narrow.

    Returns
    -------
    array ()
        Mean over all leading axes.

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, there is no entry, or ``width`` is not positive.

    Notes
    -----
    ``mean(1 - exp(-|prediction - target|^2 / (n width^2)))``. The minimiser over predictions approaches the
    mode of the targets as ``width`` tends to 0, and their mean as it grows. Far out the gradient underflows
    to 0.

    References
    ----------
    Fang, Buchanan, Sulam (2024), arXiv 2310.14344, section 3, theorem 3.2.

    Examples
    --------
    >>> float(proximal_matching_loss(np.array([[1.0]]), np.array([[0.0]]), width=1.0).round(6))
    0.632121
    """
    return proximal_matching_loss_vjp(prediction, target, width=width)[0]


def proximal_matching_loss_vjp(prediction: Array[F], target: Array[F], *, width: float) -> tuple[Array[F], Pullback]:
    """Return :func:`proximal_matching_loss` and its pullback ``dloss -> (dprediction, dtarget)``."""
    prediction = _checks.float_array(prediction, "prediction", min_ndim=1)
    target = _checks.float_array(target, "target")
    _checks.same_dtype("prediction", prediction, target=target)
    _checks.shape(target, "target", prediction.shape)
    _checks.not_empty(prediction, "prediction", range(prediction.ndim))
    _checks.positive(width, "width")
    missed = prediction - target
    exponent = -(missed * missed).sum(axis=-1, keepdims=True) / (missed.shape[-1] * width**2)
    value = np.asarray(-np.expm1(exponent).mean())

    def pullback(dloss: Array[F]) -> tuple[AnyArray, AnyArray]:
        slope = dloss / exponent.size * np.exp(exponent) * (2 / (missed.shape[-1] * width**2)) * missed
        return slope, -slope

    return value, pullback


def lpn_invert(
    u: Array[F],
    params: LPNParams,
    *,
    sharpness: float = 10.0,
    convexity: float = 0.0,
    x0: Array[F] | None = None,
    tol: float = 1e-7,
    max_iter: int = 200,
    callback: Callback | None = None,
) -> ProximalInverse:
    """Find the inputs that the proximal map takes to ``u``.

    Parameters
    ----------
    u : array (..., n)
        Points in the range of the map.
    params, sharpness, convexity
        As in :func:`lpn_potential`.
    x0 : array, shape of ``u``, optional
        Start; ``u`` itself by default.
    tol : float > 0
        Largest difference between ``prox(x)`` and ``u`` that counts as found.
    max_iter : int >= 1
    callback : callable, optional
        Called with a ``Progress`` after every iteration; a true result ends the run.

    Returns
    -------
    ProximalInverse

    Raises
    ------
    TypeError, ValueError
        As in :func:`lpn_potential`, or if ``u`` is not finite.

    Notes
    -----
    Minimises the convex ``potential(x) - <u, x>``, whose gradient is ``prox(x) - u``, by Newton's method with
    conjugate gradients, in float64, each row on its own. With ``convexity = 0`` a point outside the range has no inverse: the run ends unconverged.

    References
    ----------
    Fang, Buchanan, Sulam (2024), arXiv 2310.14344, section 3.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> unit = LPNParams((one,), (), (), np.ones(1), np.zeros(1), np.zeros(()))
    >>> lpn_invert(np.array([[0.75]]), unit, sharpness=1.0).x.round(5)  # log 3
    array([[1.09861]])
    """
    u = _checks.float_array(u, "u", min_ndim=1)
    _checks.finite(u, "u")
    start = u if x0 is None else _checks.float_array(x0, "x0")
    _checks.shape(start, "x0", u.shape)
    _checks.positive(tol, "tol")
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    _check_params(params, u)
    wide: LPNParams = tree_map(lambda leaf: np.asarray(leaf, np.float64), params)
    goal = u.astype(np.float64)
    monitor = Monitor("lpn_invert", callback=callback, hint="begin closer to the solution (x0)")
    rows = start.astype(np.float64).reshape(-1, u.shape[-1])  # a copy, which moves
    goal = goal.reshape(rows.shape)

    def evaluate(at: AnyArray, which: AnyArray) -> tuple[AnyArray, AnyArray]:
        net = _Network(at, wide, sharpness, convexity)
        return net.potential() - (goal[which] * at).sum(axis=1), net.prox() - goal[which]

    value, gradient = evaluate(rows, np.arange(len(rows)))
    damping = np.full((len(rows), 1), FIRST_DAMPING)
    while (np.abs(gradient) > tol).any() and monitor.n_iter < max_iter:
        active = np.flatnonzero((np.abs(gradient) > tol).any(axis=1))
        norm = np.linalg.norm(gradient[active], axis=1, keepdims=True)
        back = lpn_prox_vjp(rows[active], wide, sharpness=sharpness, convexity=convexity)[1]
        # Where the map is flat the Hessian is almost 0. The shift bounds the step by 1 / damping, and it vanishes
        # at the solution, so that the last steps are Newton's.
        step = _rowwise_cg(back, damping[active] * norm, gradient[active])
        halvings = _backtrack(evaluate, (rows, value, gradient), active, step)
        damping[active, 0] *= DAMPING_FACTOR ** (2.0 * halvings - 1)
        if monitor.record(gap=float(np.abs(gradient).max())) or (halvings == HALVINGS).all():
            break
    residual = np.abs(gradient).max(axis=1).reshape(u.shape[:-1])
    return ProximalInverse(
        rows.reshape(u.shape).astype(u.dtype),
        monitor.n_iter,
        bool((residual <= tol).all()),
        residual.astype(u.dtype),
        monitor.history(),
    )


def _backtrack(
    evaluate: Callable[[AnyArray, AnyArray], tuple[AnyArray, AnyArray]],
    state: tuple[AnyArray, AnyArray, AnyArray],
    active: AnyArray,
    step: AnyArray,
) -> AnyArray:
    """Move every active row of (points, values, gradients) by its step, halved until it helps.

    Returns the number of halvings; with all of them the row stays where it is.
    """
    rows, value, gradient = state
    norm, slope = np.linalg.norm(gradient[active], axis=1), (gradient[active] * step).sum(axis=1)
    halvings, pending = np.full(len(active), HALVINGS), np.arange(len(active))
    for count in range(HALVINGS):
        length, which = 0.5**count, active[pending]
        trial = rows[which] - length * step[pending]
        lower, there = evaluate(trial, which)
        # Below the rounding of the value only the gradient can tell that a step was good.
        enough = lower <= value[which] - ARMIJO * length * slope[pending]
        enough |= np.linalg.norm(there, axis=1) <= norm[pending] / 2
        moved = which[enough]
        rows[moved], value[moved], gradient[moved] = trial[enough], lower[enough], there[enough]
        halvings[pending[enough]] = count
        pending = pending[~enough]
        if not pending.size:
            break
    return halvings


def _rowwise_cg(back: Pullback, shift: AnyArray, b: AnyArray) -> AnyArray:
    """Solve ``(Hessian + shift) x = b`` by conjugate gradients, one system a row, all rows at once.

    The Hessian is the derivative of a gradient, hence symmetric: the gradient's pullback is the product with it.
    """
    x, residual, direction = np.zeros_like(b), b, b
    first = square = (b * b).sum(axis=1, keepdims=True)
    # The relative accuracy grows with the gradient's decrease, which keeps Newton's method fast at the end.
    limit = first * np.minimum(0.1, np.sqrt(first)) ** 2
    for _ in range(CG_STEPS_PER_ENTRY * b.shape[1]):
        image = back(direction)[0] + shift * direction
        curvature = (direction * image).sum(axis=1, keepdims=True)
        going = (square > limit) & (curvature > 0)
        if not going.any():
            break
        length = np.divide(square, curvature, out=np.zeros_like(square), where=going)
        x = x + length * direction
        residual = residual - length * image
        following = (residual * residual).sum(axis=1, keepdims=True)
        direction = residual + np.divide(following, square, out=np.zeros_like(square), where=going) * direction
        square = following
    return x


def lpn_prior(
    u: Array[F],
    params: LPNParams,
    *,
    sharpness: float = 10.0,
    convexity: float = 0.0,
    tol: float = 1e-7,
    max_iter: int = 200,
) -> Array[F]:
    """Regularizer whose proximal map the network is, up to a constant.

    Parameters
    ----------
    u : array (..., n)
        Points in the range of the map.
    params, sharpness, convexity, tol, max_iter
        As in :func:`lpn_invert`.

    Returns
    -------
    array (...), dtype of ``u``
        ``inf`` for rows whose inversion does not reach ``tol``: outside the range the regularizer is infinite.

    Raises
    ------
    TypeError, ValueError
        As in :func:`lpn_invert`.

    Notes
    -----
    ``R(u) = max_x (<u, x> - potential(x)) - |u|^2 / 2``: the conjugate of the potential, less the square. An
    error of the inversion enters squared.

    References
    ----------
    Fang, Buchanan, Sulam (2024), arXiv 2310.14344, equation 4.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> unit = LPNParams((one,), (), (), np.ones(1), np.zeros(1), np.zeros(()))
    >>> lpn_prior(np.array([[0.5]]), unit, sharpness=1.0).round(6)  # -log 2 - 1/8
    array([-0.818147])
    """
    return lpn_prior_vjp(u, params, sharpness=sharpness, convexity=convexity, tol=tol, max_iter=max_iter)[0]


def lpn_prior_vjp(
    u: Array[F],
    params: LPNParams,
    *,
    sharpness: float = 10.0,
    convexity: float = 0.0,
    tol: float = 1e-7,
    max_iter: int = 200,
) -> tuple[Array[F], Pullback]:
    """Return :func:`lpn_prior` and its pullback ``dR -> (du, dparams)``."""
    options: dict[str, Any] = {"sharpness": sharpness, "convexity": convexity}
    inverse = lpn_invert(u, params, tol=tol, max_iter=max_iter, **options)
    x = inverse.x
    potential, back = lpn_potential_vjp(x, params, **options)
    reached = (u * x).sum(axis=-1) - (u * u).sum(axis=-1) / 2 - potential
    value: Array[F] = np.where(inverse.residual <= tol, reached, np.inf).astype(u.dtype)

    def pullback(dprior: Array[F]) -> tuple[AnyArray, LPNParams]:
        # At a maximum over x, x need not be differentiated (the envelope theorem): dR = <x - u, du> - dpotential.
        return dprior[..., None] * (x - u), back(-dprior)[1]

    return value, pullback


def pnp_admm(
    prox_data: Callable[[AnyArray], AnyArray],
    prox_prior: Callable[[AnyArray], AnyArray],
    x0: Array[F],
    *,
    max_iter: int = 1000,
    tol: float = 1e-8,
    callback: Callback | None = None,
) -> PlugAndPlayResult:
    """Minimise data term + regularizer, both known by their proximal maps only.

    Parameters
    ----------
    prox_data, prox_prior : callables
        Proximal maps of the two terms, each divided by the same penalty.
    x0 : array
        Start.
    max_iter : int >= 1
    tol : float >= 0
        The run ends when the step of ``x`` and the difference of the two blocks have at most this norm.
    callback : callable, optional
        Called with a ``Progress`` after every iteration; a true result ends the run.

    Returns
    -------
    PlugAndPlayResult

    Raises
    ------
    TypeError, ValueError
        If an option is out of range or a map changes the shape.
    Diverged
        If the steps grow without bound.

    Notes
    -----
    ``x = prox_data(u - v)``, ``u = prox_prior(x + v)``, ``v = v + x - u``.

    References
    ----------
    Fang, Buchanan, Sulam (2024), arXiv 2310.14344, algorithm 2; Venkatakrishnan, Bouman, Wohlberg (2013).

    Examples
    --------
    >>> shrink = lambda x: np.sign(x) * np.maximum(np.abs(x) - 1, 0)
    >>> pnp_admm(lambda x: (x + np.array([3.0, 0.5])) / 2, shrink, np.zeros(2)).x.round(6)
    array([2., 0.])
    """
    u = x = _checks.float_array(x0, "x0")
    v = np.zeros_like(u)
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    _checks.non_negative(tol, "tol")
    monitor = Monitor("pnp_admm", callback=callback, hint="use a proximal map (a gradient of a convex function)")
    converged = False
    for _ in range(max_iter):
        before, x = x, _applied(prox_data, u - v, "prox_data")
        u = _applied(prox_prior, x + v, "prox_prior")
        v = v + x - u
        change, disagreement = float(np.linalg.norm(x - before)), float(np.linalg.norm(x - u))
        stop = monitor.record(change=change, disagreement=disagreement)
        converged = max(change, disagreement) <= tol
        if converged or stop:
            break
    return PlugAndPlayResult(x, monitor.n_iter, converged, monitor.history())


def pnp_pgd(
    gradient_data: Callable[[AnyArray], AnyArray],
    prox_prior: Callable[[AnyArray], AnyArray],
    x0: Array[F],
    *,
    step_size: float,
    max_iter: int = 1000,
    tol: float = 1e-8,
    callback: Callback | None = None,
) -> PlugAndPlayResult:
    """Minimise a smooth data term + a regularizer known by its proximal map.

    Parameters
    ----------
    gradient_data : callable
        Gradient of the data term.
    prox_prior : callable
        Proximal map of ``step_size`` times the regularizer.
    x0 : array
        Start.
    step_size : float > 0
        Below 1 / (smoothness of the data term).
    max_iter, tol, callback
        As in :func:`pnp_admm`.

    Returns
    -------
    PlugAndPlayResult

    Raises
    ------
    TypeError, ValueError
        If an option is out of range or a map changes the shape.
    Diverged
        If the steps grow without bound.

    Notes
    -----
    ``x = prox_prior(x - step_size gradient_data(x))``.

    References
    ----------
    Fang, Buchanan, Sulam (2024), arXiv 2310.14344, algorithm 1.

    Examples
    --------
    >>> shrink = lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0)
    >>> pnp_pgd(lambda x: x - np.array([3.0, 0.5]), shrink, np.zeros(2), step_size=0.5).x.round(6)
    array([2., 0.])
    """
    x = _checks.float_array(x0, "x0")
    _checks.positive(step_size, "step_size")
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    _checks.non_negative(tol, "tol")
    monitor = Monitor("pnp_pgd", callback=callback, hint="use a smaller step_size")
    converged = False
    for _ in range(max_iter):
        slope = _applied(gradient_data, x, "gradient_data")
        before, x = x, _applied(prox_prior, x - step_size * slope, "prox_prior")
        change = float(np.linalg.norm(x - before))
        stop = monitor.record(change=change)
        converged = change <= tol
        if converged or stop:
            break
    return PlugAndPlayResult(x, monitor.n_iter, converged, monitor.history())


def _applied(function: Callable[[AnyArray], AnyArray], x: AnyArray, name: str) -> AnyArray:
    value = np.asarray(function(x))
    _checks.shape(value, name, x.shape)
    return value
