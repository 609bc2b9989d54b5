"""Top-K softmax gating: each input goes to the few experts whose scores are largest.

selected = the K largest of scores            weight_i = exp(scores_i + bias_i) / sum over selected, 0 elsewhere
p(y | x) = sum_i weight_i(x) Normal(y; weight_i . x + bias_i, variance_i)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.softmax._cross_entropy import log_softmax, logsumexp_vjp
from refnorm.softmax._two_pass import softmax_vjp

if TYPE_CHECKING:
    from refnorm.solvers._monitor import Callback

METHOD = Method(
    title="Statistical Perspective of Top-K Sparse Softmax Gating Mixture of Experts",
    authors="Nguyen, Akbarian, Yan, Ho",
    year=2023,
    arxiv="2309.13850",
    functions=(
        "GaussianMoE",
        "MoEFit",
        "fit_topk_moe",
        "hellinger2",
        "moe_log_density",
        "required_selection",
        "topk_softmax",
        "voronoi_cells",
        "voronoi_loss",
    ),
    chapter="softmax/topk_gating",
)

LogDensity: TypeAlias = Callable[[AnyArray, AnyArray], AnyArray]

RIDGE = 1e-8
"""Added to the diagonal of the weighted normal equations, relative to their mean diagonal: an expert that
answers for fewer points than it has coefficients stays finite."""
VARIANCE_FLOOR = 1e-6
"""Smallest variance of an expert, relative to that of y: the likelihood is unbounded at variance 0."""
LEAST_RESPONSIBILITY = 1e-8
"""An expert that answers for less than this many points is left as it is."""
LARGEST_STEP, HALVINGS = 64.0, 12
"""Gate ascent: the step never exceeds LARGEST_STEP and is given up after so many halvings."""
OVER_SPECIFIED_POWERS = {2: 4.0, 3: 6.0}
LAST_OVER_SPECIFIED_POWER = 7.0
"""Powers of the Voronoi loss in a cell of 2, of 3, and of more estimated experts."""


@dataclass(frozen=True)
class GaussianMoE:
    """Mixture of linear experts with Gaussian noise and a softmax gate.

    Parameters
    ----------
    gate_weight : array (k, d)
    gate_bias : array (k,)
        Scores of expert ``i`` at ``x``: ``gate_weight[i] @ x``, and ``gate_bias[i]`` on top once it is selected.
    weight : array (k, d)
    bias : array (k,)
        The expert's mean is ``weight[i] @ x + bias[i]``.
    variance : array (k,)
        Its noise, > 0.
    """

    gate_weight: AnyArray
    gate_bias: AnyArray
    weight: AnyArray
    bias: AnyArray
    variance: AnyArray


@dataclass(frozen=True)
class MoEFit:
    """A fitted mixture.

    Parameters
    ----------
    params
        The parameters, with the gate of the last expert at 0.
    n_iter : int
    converged : bool
        Whether the last iteration raised the mean log-likelihood by less than ``tol``.
    history : dict
        ``"log_likelihood"``: the mean over the data, an entry an iteration.
    """

    params: GaussianMoE
    n_iter: int
    converged: bool
    history: Mapping[str, AnyArray]


def topk_softmax(
    scores: Array[F], bias: Array[F] | None = None, *, top_k: int, select_with_bias: bool = False
) -> tuple[Array[F], Array[np.bool_]]:
    """Softmax over the K largest scores of each row, 0 elsewhere.

    Parameters
    ----------
    scores : array (..., k)
        One score an expert.
    bias : array (k,), optional
        Added to the scores of the selected experts.
    top_k : int from 1 to k
        How many experts are selected; of equal scores the first ones.
    select_with_bias : bool
        Whether the bias counts in the selection too.

    Returns
    -------
    weights : array (..., k), dtype of ``scores``
    mask : boolean array (..., k)
        Which experts are selected.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ, or ``top_k`` is not an integer.
    ValueError
        If a shape is wrong or ``top_k`` is outside its range.

    Notes
    -----
    A row with NaN is NaN, as for softmax.

    References
    ----------
    Nguyen et al. (2023), arXiv 2309.13850, section 1 (the model). Shazeer et al. (2017), arXiv 1701.06538, for the gate.

    Examples
    --------
    The third expert has the largest bias, but is not asked.

    >>> weights, mask = topk_softmax(np.array([2.0, 1.0, 0.0]), np.array([0.0, 1.0, 5.0]), top_k=2)
    >>> weights, mask
    (array([0.5, 0.5, 0. ]), array([ True,  True, False]))
    """
    return topk_softmax_vjp(scores, bias, top_k=top_k, select_with_bias=select_with_bias)[0]


def topk_softmax_vjp(
    scores: Array[F], bias: Array[F] | None = None, *, top_k: int, select_with_bias: bool = False
) -> tuple[tuple[Array[F], Array[np.bool_]], Pullback]:
    """Return :func:`topk_softmax` and its pullback ``dweights -> (dscores, dbias)``.

    The selection counts as a constant: it is, except where two scores meet. The entry of a bias that was left out
    is ``None``. Parameters, errors and references are those of :func:`topk_softmax`.
    """
    scores = _checks.float_array(scores, "scores", min_ndim=1)
    bias = None if bias is None else _checks.float_array(bias, "bias")
    _checks.same_dtype("scores", scores, bias=bias)
    if bias is not None:
        _checks.shape(bias, "bias", scores.shape[-1:])
    top_k = _checks.whole(top_k, "top_k", low=1, high=scores.shape[-1])
    raised = scores if bias is None else scores + bias
    mask = _selected(raised if select_with_bias else scores, top_k)
    weights, back = softmax_vjp(_masked(raised, mask))

    def pullback(dweights: Array[F]) -> tuple[Array[F], Array[F] | None]:
        # Softmax gives masked entries, whose weight is 0, a cotangent of 0.
        (draised,) = back(dweights)
        dbias = None if bias is None else draised.reshape(-1, len(bias)).sum(axis=0)
        return draised, dbias

    return (weights, mask), pullback


def moe_log_density(params: GaussianMoE, x: Array[F], y: Array[F], *, top_k: int) -> Array[F]:
    """Logarithm of the density of ``y`` at ``x`` under a mixture with top-K gate.

    Parameters
    ----------
    params : GaussianMoE
        With k experts for d inputs.
    x : array (n, d)
    y : array (n,)
    top_k : int from 1 to k

    Returns
    -------
    array (n,), dtype of ``x``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ, or ``top_k`` is not an integer.
    ValueError
        If a shape is wrong, a variance is not > 0, or ``top_k`` is outside its range.

    Notes
    -----
    ``logsumexp`` over the selected experts of ``log weight_i + log Normal(y; mean_i, variance_i)``. The selection
    looks at ``gate_weight @ x`` alone, as in the paper.

    References
    ----------
    Nguyen et al. (2023), arXiv 2309.13850, section 1.

    Examples
    --------
    >>> one, zero = np.ones((2, 1)), np.zeros(2)
    >>> params = GaussianMoE(np.array([[1.0], [-1.0]]), zero, one, zero, np.ones(2))
    >>> moe_log_density(params, np.array([[0.5]]), np.array([0.5]), top_k=1).round(4)
    array([-0.9189])
    """
    return moe_log_density_vjp(params, x, y, top_k=top_k)[0]


def moe_log_density_vjp(params: GaussianMoE, x: Array[F], y: Array[F], *, top_k: int) -> tuple[Array[F], Pullback]:
    """Return :func:`moe_log_density` and its pullback ``dlog -> (dparams, dx, dy)``.

    ``dparams`` is a :class:`GaussianMoE`. An expert that no point selects gets exactly 0. Parameters, errors and
    references are those of :func:`moe_log_density`.
    """
    x, y = _checks.float_array(x, "x", ndim=2), _checks.float_array(y, "y", ndim=1)
    params = _check_params(params, "params", x)
    _checks.same_dtype("x", x, y=y)
    _checks.shape(y, "y", x.shape[:1])
    top_k = _checks.whole(top_k, "top_k", low=1, high=len(params.bias))
    log_weight, joint, residual = _joint(params, x, y, top_k)
    value, to_joint = logsumexp_vjp(joint)

    def pullback(dlog: Array[F]) -> tuple[GaussianMoE, Array[F], Array[F]]:
        # Through logsumexp each expert gets its responsibility r for the point; through log-softmax the gate
        # gets r - weight: what the point says about the experts minus what the gate had said.
        (share,) = to_joint(dlog)
        dgate = share - np.exp(log_weight) * dlog[:, None]
        precision = 1 / params.variance
        dmean = share * residual * precision
        dvariance = 0.5 * share * precision * (residual * residual * precision - 1)
        dparams = GaussianMoE(
            gate_weight=dgate.T @ x,
            gate_bias=dgate.sum(axis=0),
            weight=dmean.T @ x,
            bias=dmean.sum(axis=0),
            variance=dvariance.sum(axis=0),
        )
        dx = dgate @ params.gate_weight + dmean @ params.weight
        return dparams, dx, -dmean.sum(axis=1)

    return value, pullback


def fit_topk_moe(
    x: Array[F],
    y: Array[F],
    *,
    k: int,
    top_k: int,
    rng: np.random.Generator,
    init: GaussianMoE | None = None,
    max_iter: int = 200,
    gate_steps: int = 10,
    tol: float = 1e-8,
    callback: Callback | None = None,
) -> MoEFit:
    """Fit a mixture with top-K gate by maximum likelihood.

    Parameters
    ----------
    x : array (n, d)
    y : array (n,)
        At least two points.
    k : int >= 1
        Number of experts.
    top_k : int from 1 to k
        How many of them a point selects.
    rng : numpy.random.Generator
        Draws the start if there is no ``init``.
    init : GaussianMoE, optional
        Where to begin.
    max_iter : int >= 1
    gate_steps : int >= 0
        Ascent steps of the gate an iteration.
    tol : float >= 0
        Smallest gain of the mean log-likelihood with which to go on.
    callback : callable, optional
        Called with a ``refnorm.solvers.Progress`` after every iteration.

    Returns
    -------
    MoEFit

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ, or a count is not an integer.
    ValueError
        If a shape is wrong, a value is not finite, or a number is outside its range.
    refnorm.solvers.Diverged
        If the likelihood leaves the finite numbers.

    Notes
    -----
    Each iteration first solves the experts' weighted least squares with the points' responsibilities as weights,
    which cannot lower the likelihood (the ridge and the floor of the variances aside), then climbs the
    likelihood in the gate. When a gate moves, some points select other experts and the likelihood jumps, so a
    step is taken only if the likelihood has risen. Only a local maximum is found: the start matters.

    The start without ``init`` puts each expert at one of k random points, as in nearest-neighbour classification.

    References
    ----------
    Nguyen et al. (2023), arXiv 2309.13850, section on experiments, for the setting. Jordan, Jacobs (1994),
    Hierarchical mixtures of experts and the EM algorithm.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.uniform(-1, 1, (400, 1))
    >>> y = 3 * np.abs(x[:, 0]) + 0.1 * rng.standard_normal(400)
    >>> fit = fit_topk_moe(x, y, k=2, top_k=1, rng=rng)
    >>> bool(fit.converged), np.sort(fit.params.weight[:, 0]).round(1)
    (True, array([-3.,  3.]))
    """
    from refnorm.solvers._monitor import Monitor  # not at the top: other rooms' solvers use this room

    x, y = _checks.float_array(x, "x", ndim=2), _checks.float_array(y, "y", ndim=1)
    _checks.same_dtype("x", x, y=y)
    _checks.shape(y, "y", x.shape[:1])
    _checks.finite(x, "x")
    _checks.finite(y, "y")
    if len(y) < 2:
        _checks.fail("x", "at least 2 points", len(y))
    k = _checks.whole(k, "k", low=1)
    top_k = _checks.whole(top_k, "top_k", low=1, high=k)
    rng = _checks.generator(rng)
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    gate_steps = _checks.whole(gate_steps, "gate_steps", low=0)
    _checks.non_negative(tol, "tol")
    floor = VARIANCE_FLOOR * float(y.var()) or np.finfo(np.float64).tiny
    params = _start(x, y, k, rng, floor) if init is None else _check_params(init, "init", x)
    if len(params.bias) != k:
        _checks.fail("init", f"{k} experts", len(params.bias))

    monitor = Monitor("fit_topk_moe", callback=callback, hint="use fewer experts or another start")
    step, before, converged = 1.0, -np.inf, False
    for _ in range(max_iter):
        params = _update_experts(params, x, y, top_k, floor)
        params, likelihood, step = _climb_gate(params, x, y, top_k, gate_steps, step)
        stop = monitor.record(log_likelihood=likelihood)
        converged = bool(likelihood - before < tol)
        before = likelihood
        if converged or stop:
            break
    params = GaussianMoE(
        params.gate_weight - params.gate_weight[-1], params.gate_bias - params.gate_bias[-1],
        params.weight, params.bias, params.variance,
    )  # fmt: skip
    return MoEFit(params, monitor.n_iter, converged, monitor.history())


def voronoi_cells(estimated: GaussianMoE, true: GaussianMoE) -> list[IntArray]:
    """Assign each estimated expert to the true expert that is closest.

    Parameters
    ----------
    estimated, true : GaussianMoE
        For inputs of one dimension d.

    Returns
    -------
    list of integer arrays
        For each true expert the indices of the estimated ones in its cell; it may be empty.

    Raises
    ------
    TypeError, ValueError
        If an array is not float, a shape is wrong or a variance is not > 0.

    Notes
    -----
    Distance of the vectors ``(gate_weight, weight, bias, variance)``; ties go to the first true expert. The gate is
    known only up to a common shift: give both mixtures the same convention, for example the last gate at 0.

    References
    ----------
    Nguyen et al. (2023), arXiv 2309.13850, definition of the Voronoi cells.

    Examples
    --------
    >>> def mixture(*biases):
    ...     b = np.array(biases)
    ...     return GaussianMoE(0 * b[:, None], 0 * b, 0 * b[:, None], b, 1 + 0 * b)
    >>> voronoi_cells(mixture(0.1, 1.9, -0.3), mixture(0.0, 2.0))
    [array([0, 2]), array([1])]
    """
    estimated, true = _pair(estimated, true)
    distance = np.linalg.norm(_atoms(estimated)[:, None] - _atoms(true)[None], axis=2)
    nearest = distance.argmin(axis=1)
    return [np.flatnonzero(nearest == j) for j in range(len(true.bias))]


def voronoi_loss(estimated: GaussianMoE, true: GaussianMoE, *, top_k: int, over_specified: bool = False) -> float:
    """Distance between mixtures that allows several estimated experts for one true expert.

    Parameters
    ----------
    estimated, true : GaussianMoE
    top_k : int from 1 to the number of true experts
        How many experts the true gate selects.
    over_specified : bool
        Use the weaker powers of the theory for cells with more than one estimated expert.

    Returns
    -------
    float >= 0

    Raises
    ------
    TypeError, ValueError
        As :func:`voronoi_cells`, or if ``top_k`` is outside its range.

    Notes
    -----
    A cell's term is ``sum_i exp(gate_bias_i) (|d gate_weight| + |d weight| + |d bias| + |d variance|)``, plus the
    difference between the cell's total ``exp(gate_bias)`` and the true one. The loss is the largest sum over K
    cells, and because no term is negative, that is the sum of the K largest terms.

    With ``over_specified`` the differences in a cell of m > 1 experts are raised to r, r/2, r and r/2, where r is
    4 for m = 2, 6 for m = 3, and 7 beyond.

    References
    ----------
    Nguyen et al. (2023), arXiv 2309.13850, the losses of the exact-specified and the over-specified settings.

    Examples
    --------
    >>> one = np.ones(1)
    >>> true = GaussianMoE(0 * one[:, None], 0 * one, one[:, None], 0 * one, one)
    >>> off = GaussianMoE(0 * one[:, None], 0 * one, one[:, None] + 0.25, 0.5 * one, one)
    >>> voronoi_loss(off, true, top_k=1)
    0.75
    """
    estimated, true = _pair(estimated, true)
    top_k = _checks.whole(top_k, "top_k", low=1, high=len(true.bias))
    terms = []
    for j, cell in enumerate(voronoi_cells(estimated, true)):
        mass = np.exp(estimated.gate_bias[cell])
        power = 1.0
        if over_specified and len(cell) > 1:
            power = OVER_SPECIFIED_POWERS.get(len(cell), LAST_OVER_SPECIFIED_POWER)
        half = power / 2 if power > 1 else 1.0
        apart = (
            np.linalg.norm(estimated.gate_weight[cell] - true.gate_weight[j], axis=1) ** power
            + np.linalg.norm(estimated.weight[cell] - true.weight[j], axis=1) ** half
            + np.abs(estimated.bias[cell] - true.bias[j]) ** power
            + np.abs(estimated.variance[cell] - true.variance[j]) ** half
        )
        terms.append(float(mass @ apart) + abs(float(mass.sum()) - float(np.exp(true.gate_bias[j]))))
    return float(np.sort(terms)[-top_k:].sum())


def required_selection(cells: Sequence[IntArray], top_k: int) -> int:
    """How many estimated experts a point must select for the density to be estimated well.

    Parameters
    ----------
    cells : sequence of integer arrays
        From :func:`voronoi_cells`.
    top_k : int from 1 to the number of cells
        How many experts the true gate selects.

    Returns
    -------
    int
        The sum of the ``top_k`` largest cell sizes.

    Raises
    ------
    TypeError, ValueError
        If ``top_k`` is not an integer in its range.

    References
    ----------
    Nguyen et al. (2023), arXiv 2309.13850, the condition of the over-specified setting.

    Examples
    --------
    >>> required_selection([np.array([0, 2]), np.array([1]), np.array([3, 4, 5])], 2)
    5
    """
    top_k = _checks.whole(top_k, "top_k", low=1, high=len(cells))
    return int(np.sort([len(cell) for cell in cells])[-top_k:].sum())


def hellinger2(p: LogDensity, q: LogDensity, x: AnyArray, *, grid: AnyArray) -> float:
    """Squared Hellinger distance of two conditional densities of a number, averaged over inputs.

    Parameters
    ----------
    p, q : callables ``(x, y) -> log density``
        Of arrays (n, d) and (n,) to an array (n,).
    x : array (m, d)
        Inputs to average over.
    grid : array (g,)
        Increasing points of y, wide and dense enough for both densities.

    Returns
    -------
    float from 0 to 1

    Raises
    ------
    TypeError
        If ``x`` or ``grid`` is not float32 or float64.
    ValueError
        If there is no input, or the grid is not increasing.

    Notes
    -----
    ``mean over x of 1/2 integral (sqrt p - sqrt q)^2 dy`` by the trapezoidal rule, which for smooth densities
    that vanish at both ends converges faster than any power of the spacing.

    References
    ----------
    Nguyen et al. (2023), arXiv 2309.13850, theorem on the rate of density estimation.

    Examples
    --------
    >>> def normal(mean):
    ...     return lambda x, y: -0.5 * (y - mean) ** 2 - 0.5 * np.log(2 * np.pi)
    >>> float(np.round(hellinger2(normal(0), normal(1), np.zeros((1, 1)), grid=np.linspace(-9, 9, 200)), 6))
    0.117503
    """
    x, grid = _checks.float_array(x, "x", ndim=2), _checks.float_array(grid, "grid", ndim=1)
    _checks.not_empty(x, "x", (0,))
    if len(grid) < 2 or (np.diff(grid) <= 0).any():
        _checks.fail("grid", "at least 2 increasing points", f"shape {grid.shape}")
    inputs, outputs = np.repeat(x, len(grid), axis=0), np.tile(grid, len(x))
    roots = [np.exp(0.5 * density(inputs, outputs)).reshape(len(x), len(grid)) for density in (p, q)]
    return float(0.5 * np.trapezoid((roots[0] - roots[1]) ** 2, grid, axis=1).mean())


def _selected(scores: AnyArray, top_k: int) -> Array[np.bool_]:
    order = np.argsort(-scores.real, axis=-1, kind="stable")
    mask = np.zeros(scores.shape, dtype=np.bool_)
    np.put_along_axis(mask, order[..., :top_k], True, axis=-1)
    return mask


def _masked(scores: AnyArray, mask: AnyArray) -> AnyArray:
    """``-inf`` where not selected; NaN stays, so that it cannot hide."""
    return np.where(mask | np.isnan(scores), scores, scores.dtype.type(-np.inf))


def _joint(params: GaussianMoE, x: AnyArray, y: AnyArray, top_k: int) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Log of each expert's gate weight, of gate weight times density, and ``y - mean``; all (n, k)."""
    scores = x @ params.gate_weight.T
    log_weight = log_softmax(_masked(scores + params.gate_bias, _selected(scores, top_k)))
    residual = y[:, None] - x @ params.weight.T - params.bias
    log_normal = -0.5 * (residual * residual / params.variance + np.log(2 * np.pi * params.variance))
    return log_weight, log_weight + log_normal, residual


def _update_experts(params: GaussianMoE, x: AnyArray, y: AnyArray, top_k: int, floor: float) -> GaussianMoE:
    responsibility = np.exp(log_softmax(_joint(params, x, y, top_k)[1]))
    weight, bias, variance = params.weight.copy(), params.bias.copy(), params.variance.copy()
    for i in np.flatnonzero(responsibility.sum(axis=0) >= LEAST_RESPONSIBILITY):
        weight[i], bias[i], variance[i] = _regression(x, y, responsibility[:, i], floor)
    return GaussianMoE(params.gate_weight, params.gate_bias, weight, bias, variance)


def _regression(x: AnyArray, y: AnyArray, share: AnyArray, floor: float) -> tuple[AnyArray, float, float]:
    """Weighted least squares with an intercept: coefficients, intercept and mean squared residual."""
    design = np.concatenate([x, np.ones((len(x), 1), x.dtype)], axis=1).astype(np.float64)
    normal = design.T @ (share[:, None] * design)
    normal += RIDGE * np.trace(normal) / len(normal) * np.eye(len(normal))
    solution = np.linalg.solve(normal, design.T @ (share * y))
    variance = float(share @ (y - design @ solution) ** 2 / share.sum())
    return solution[:-1], float(solution[-1]), max(variance, floor)


def _climb_gate(
    params: GaussianMoE, x: AnyArray, y: AnyArray, top_k: int, steps: int, step: float
) -> tuple[GaussianMoE, float, float]:
    """Gradient ascent of the mean log-likelihood in the gate; a step that does not climb is halved."""

    def value_and_gate_gradient(at: GaussianMoE) -> tuple[float, AnyArray, AnyArray]:
        log_weight, joint, _ = _joint(at, x, y, top_k)
        likelihood, to_joint = logsumexp_vjp(joint)
        dgate = (to_joint(np.ones(len(y)))[0] - np.exp(log_weight)) / len(y)
        return float(likelihood.mean()), dgate.T @ x, dgate.sum(axis=0)

    value, dweight, dbias = value_and_gate_gradient(params)
    for _ in range(steps):
        for _ in range(HALVINGS):
            trial = GaussianMoE(
                params.gate_weight + step * dweight, params.gate_bias + step * dbias,
                params.weight, params.bias, params.variance,
            )  # fmt: skip
            new_value, *gradient = value_and_gate_gradient(trial)
            if new_value > value:
                params, value, (dweight, dbias) = trial, new_value, gradient
                step = min(2 * step, LARGEST_STEP)
                break
            step /= 2
        else:
            return params, value, 1.0
    return params, value, step


def _start(x: AnyArray, y: AnyArray, k: int, rng: np.random.Generator, floor: float) -> GaussianMoE:
    centres = rng.choice(len(x), size=k, replace=k > len(x))
    points = np.concatenate([x, y[:, None]], axis=1)
    spread = points.std(axis=0)
    points = points / np.where(spread > 0, spread, 1)
    squared = ((points[:, None] - points[centres][None]) ** 2).sum(axis=2)
    shares = np.eye(k)[squared.argmin(axis=1)]
    weight, bias, variance = zip(
        *(_regression(x, y, share if share.any() else np.ones(len(y)), floor) for share in shares.T), strict=True
    )
    # Scores c . x - |c|^2 / 2 rank the centres c by their distance from x.
    gate_weight = x[centres] - x[centres].mean(axis=0)
    return GaussianMoE(
        gate_weight, -0.5 * (gate_weight**2).sum(axis=1),
        np.array(weight, x.dtype), np.array(bias, x.dtype), np.array(variance, x.dtype),
    )  # fmt: skip


def _atoms(params: GaussianMoE) -> AnyArray:
    return np.concatenate([params.gate_weight, params.weight, params.bias[:, None], params.variance[:, None]], axis=1)


def _check_params(params: GaussianMoE, name: str, x: AnyArray | None = None) -> GaussianMoE:
    """The same parameters as checked arrays, for inputs like ``x``."""
    weight = _checks.float_array(params.weight, f"{name}.weight", ndim=2)
    _checks.not_empty(weight, f"{name}.weight", (0,))
    k, d = weight.shape
    if x is not None and d != x.shape[1]:
        _checks.fail(f"{name}.weight", f"{x.shape[1]} columns like x", f"shape {weight.shape}")
    shapes = {"gate_weight": (k, d), "gate_bias": (k,), "weight": (k, d), "bias": (k,), "variance": (k,)}
    arrays = {field: _checks.float_array(getattr(params, field), f"{name}.{field}") for field in shapes}
    for field, shape in shapes.items():
        _checks.shape(arrays[field], f"{name}.{field}", shape)
        like = weight if x is None else x
        _checks.same_dtype(f"{name}.weight" if x is None else "x", like, **{f"{name}.{field}": arrays[field]})
    if not (arrays["variance"].real > 0).all():
        _checks.fail(f"{name}.variance", "numbers > 0", arrays["variance"].real.min())
    return GaussianMoE(**arrays)


def _pair(estimated: GaussianMoE, true: GaussianMoE) -> tuple[GaussianMoE, GaussianMoE]:
    estimated, true = _check_params(estimated, "estimated"), _check_params(true, "true")
    if estimated.weight.shape[1] != true.weight.shape[1]:
        _checks.fail("estimated.weight", f"{true.weight.shape[1]} columns like true", f"shape {estimated.weight.shape}")
    return estimated, true
