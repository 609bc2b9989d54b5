"""Two-layer ReLU networks by convex optimization: ADMM over activation patterns, and a sampled program.

min  1/2 |sum_i D_i x (v_i - w_i) - target|^2 + penalty sum_i (|v_i| + |w_i|)
s.t. (2 D_i - I) x v_i >= 0,  (2 D_i - I) x w_i >= 0             (D_i = diag(1[x h_i >= 0]))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.solvers._monitor import Callback, Monitor

METHOD = Method(
    title="Efficient Global Optimization of Two-layer ReLU Networks: Quadratic-time Algorithms and Adversarial Training",
    authors="Bai, Gautam, Sojoudi",
    year=2022,
    arxiv="2201.01965",
    functions=(
        "ConvexReluResult",
        "SampledProgramResult",
        "admm_relu",
        "gate_violation",
        "gated_objective",
        "recover_relu",
        "relu_objective",
        "robust_hinge",
        "sample_patterns",
        "sampled_convex_program",
    ),
    chapter="solvers/convex_relu_network",
)

NEGLIGIBLE_NORM = 1e-8
"""Norm below which a group of weights counts as absent: a neuron that small changes no digit of a prediction."""

CENTRING = 0.3
"""Factor on the complementarity that a Newton step of the interior-point method aims at."""

SPENT = 1e3
"""A duality gap so many times the smallest one says that rounding has taken over: the Newton systems of an
interior-point method lose a digit with every digit that is gained."""

TO_THE_BOUNDARY = 0.99
"""Part of the way to the boundary that it goes at most: a weight on the boundary could not come back."""


@dataclass(frozen=True)
class ConvexReluResult:
    """Outcome of :func:`admm_relu`.

    Parameters
    ----------
    v, w
        Weights of each pattern, (P, d), with positive and with negative output; many rows are exactly 0.
    objective
        Value of :func:`gated_objective` there.
    violation
        Largest violation of the gate constraints, see :func:`gate_violation`. The recovered network has the
        same predictions as far as this is 0.
    n_iter
        Number of iterations.
    converged
        Whether both residuals met the tolerance.
    history
        Arrays ``objective``, ``primal_residual`` and ``dual_residual``, one entry an iteration.
    """

    v: AnyArray
    w: AnyArray
    objective: float
    violation: float
    n_iter: int
    converged: bool
    history: Mapping[str, Array[np.float64]]


@dataclass(frozen=True)
class SampledProgramResult:
    """Outcome of :func:`sampled_convex_program`.

    Parameters
    ----------
    weight
        The sampled hidden weights (N, d), of norm 1.
    output
        Their output weights (N,); many are exactly 0.
    objective
        ``1/2 |relu(x weight^T) output - target|^2 + penalty sum |output|``.
    n_iter
        Number of Newton steps.
    converged
        Whether the duality gap met the tolerance.
    history
        Arrays ``objective`` and ``gap``, before the first and after each step.
    """

    weight: AnyArray
    output: AnyArray
    objective: float
    n_iter: int
    converged: bool
    history: Mapping[str, Array[np.float64]]


def sample_patterns(x: Array[F], n_draws: int, *, rng: np.random.Generator) -> Array[np.bool_]:
    """Return the distinct activation patterns ``x h >= 0`` of random hidden weights ``h``.

    Parameters
    ----------
    x : array (n, d)
        Data; append a column of ones for a bias.
    n_draws : int >= 1
        Number of weights drawn from the standard normal distribution.
    rng : numpy.random.Generator

    Returns
    -------
    bool array (P, n)
        One row a pattern, in lexicographic order, ``1 <= P <= n_draws``.

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a finite float matrix with an entry, or ``n_draws < 1``.

    Notes
    -----
    There are at most ``2 sum_{k<r} binom(n - 1, k)`` patterns for data of rank ``r``: the regions into
    which n planes through the origin cut the space of weights. A row of zeros is active in every pattern.

    References
    ----------
    Bai, Gautam, Sojoudi (2022), arXiv 2201.01965.

    Examples
    --------
    >>> sample_patterns(np.array([[1.0], [-2.0]]), 20, rng=np.random.default_rng(0))
    array([[False,  True],
           [ True, False]])
    """
    x = _data(x)
    n_draws = _checks.whole(n_draws, "n_draws", low=1)
    hidden = _checks.generator(rng).standard_normal((n_draws, x.shape[1]))
    patterns: Array[np.bool_] = np.unique(hidden @ x.T >= 0, axis=0)
    return patterns


def relu_objective(
    x: Array[F], target: Array[F], weight: Array[F], output: Array[F], *, penalty: float = 1e-3
) -> Array[F]:
    """Return the loss that a two-layer ReLU network is trained on, the non-convex one.

    Parameters
    ----------
    x : array (n, d)
    target : array (n,)
    weight : array (m, d)
        Hidden weights, one row a neuron.
    output : array (m,)
        Output weights.
    penalty : float >= 0
        Weight decay.

    Returns
    -------
    array (), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or ``penalty < 0``.

    Notes
    -----
    ``1/2 |relu(x weight^T) output - target|^2 + penalty/2 (|weight|^2 + |output|^2)``. The derivative of
    ReLU at 0 is taken as 0.

    References
    ----------
    Bai, Gautam, Sojoudi (2022), arXiv 2201.01965.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> float(relu_objective(one, np.array([2.0]), one, np.array([1.0]), penalty=0.5))
    1.0
    """
    return relu_objective_vjp(x, target, weight, output, penalty=penalty)[0]


def relu_objective_vjp(
    x: Array[F], target: Array[F], weight: Array[F], output: Array[F], *, penalty: float = 1e-3
) -> tuple[Array[F], Pullback]:
    """Return :func:`relu_objective` and its pullback ``dy -> (dx, dtarget, dweight, doutput)``."""
    x, target = _regression(x, target)
    weight, output = _checks.float_array(weight, "weight", ndim=2), _checks.float_array(output, "output")
    _checks.same_dtype("x", x, weight=weight, output=output)
    _checks.shape(weight, "weight", (len(weight), x.shape[1]))
    _checks.shape(output, "output", (len(weight),))
    _checks.non_negative(penalty, "penalty")
    summed = x @ weight.T
    active = summed.real > 0
    hidden = np.where(active, summed, 0)
    residual = hidden @ output - target
    decay = (weight * weight).sum() + (output * output).sum()
    value = np.asarray((residual @ residual + penalty * decay) / 2)

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        # The loss has slope `residual` in the predictions; each active neuron passes it on times its output.
        dprediction = dy * residual
        dsummed = np.where(active, np.outer(dprediction, output), 0)
        return (
            dsummed @ weight,
            -dprediction,
            dsummed.T @ x + dy * penalty * weight,
            hidden.T @ dprediction + dy * penalty * output,
        )

    return value, pullback


def gated_objective(
    x: Array[F], target: Array[F], patterns: Array[np.bool_], v: Array[F], w: Array[F], *, penalty: float = 1e-3
) -> Array[F]:
    """Return the convex loss: fixed activation patterns, and a norm for each pattern's weights.

    Parameters
    ----------
    x : array (n, d)
    target : array (n,)
    patterns : bool array (P, n)
        From :func:`sample_patterns`.
    v, w : arrays (P, d)
        Weights of each pattern, added and subtracted.
    penalty : float >= 0

    Returns
    -------
    array (), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or ``penalty < 0``.

    Notes
    -----
    ``1/2 |sum_i D_i x (v_i - w_i) - target|^2 + penalty sum_i (|v_i| + |w_i|)``, without the gate constraints,
    which :func:`gate_violation` measures. At a zero row the pullback is the subgradient without that norm.

    References
    ----------
    Bai, Gautam, Sojoudi (2022), arXiv 2201.01965; the convex form is due to Pilanci, Ergen (2020), arXiv
    2002.10553, theorem 1.

    Examples
    --------
    >>> one, pattern = np.ones((1, 1)), np.array([[True]])
    >>> float(gated_objective(one, np.array([2.0]), pattern, one, 0 * one, penalty=0.5))
    1.0
    """
    return gated_objective_vjp(x, target, patterns, v, w, penalty=penalty)[0]


def gated_objective_vjp(
    x: Array[F], target: Array[F], patterns: Array[np.bool_], v: Array[F], w: Array[F], *, penalty: float = 1e-3
) -> tuple[Array[F], Pullback]:
    """Return :func:`gated_objective` and its pullback ``dy -> (dx, dtarget, dv, dw)``."""
    x, target = _regression(x, target)
    patterns, v, w = _gated(x, patterns, v, w)
    _checks.non_negative(penalty, "penalty")
    gate = patterns.astype(x.real.dtype)
    # The effective weights of example k are those of all patterns that are active in it.
    effective = gate.T @ (v - w)
    residual = (x * effective).sum(axis=1) - target
    norm_v, norm_w = _norms(v), _norms(w)
    value = np.asarray(residual @ residual / 2 + penalty * (norm_v.sum() + norm_w.sum()))

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        dprediction = dy * residual
        dgroups = gate @ (dprediction[:, None] * x)
        dv = dgroups + dy * penalty * _unit(v, norm_v)
        dw = -dgroups + dy * penalty * _unit(w, norm_w)
        return dprediction[:, None] * effective, -dprediction, dv, dw

    return value, pullback


def gate_violation(
    x: Array[F], patterns: Array[np.bool_], v: Array[F], w: Array[F], *, radius: float = 0.0
) -> Array[F]:
    """Return how far the weights are from lying in the cones of their patterns.

    Parameters
    ----------
    x : array (n, d)
    patterns : bool array (P, n)
    v, w : arrays (P, d)
    radius : float >= 0
        Every entry of ``x`` may be moved by so much, and the gates must hold all the same.

    Returns
    -------
    array (), dtype of ``x``
        0 if all gates hold.

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or ``radius < 0``.

    Notes
    -----
    The largest ``radius |v_i|_1 - (S_i x v_i)_k`` over all examples, patterns and both kinds of weights, or
    0; ``S_i = 2 D_i - I``. The worst move within the box takes ``radius |v_i|_1`` off the margin.

    References
    ----------
    Bai, Gautam, Sojoudi (2022), arXiv 2201.01965, adversarial training.

    Examples
    --------
    >>> x, pattern = np.array([[1.0, 0.0]]), np.array([[True]])
    >>> v = np.array([[0.5, -0.25]])
    >>> float(gate_violation(x, pattern, v, 0 * v)), float(gate_violation(x, pattern, v, 0 * v, radius=1.0))
    (0.0, 0.25)
    """
    x = _data(x)
    patterns, v, w = _gated(x, patterns, v, w)
    _checks.non_negative(radius, "radius")
    groups = np.stack([v, w])
    margins = np.where(patterns, 1, -1) * (groups @ x.T) - radius * np.abs(groups).sum(axis=-1, keepdims=True)
    return np.asarray(max(0.0, -margins.min(initial=0.0)), dtype=x.dtype)


def robust_hinge(
    x: Array[F], target: Array[F], patterns: Array[np.bool_], v: Array[F], w: Array[F], *, radius: float
) -> Array[F]:
    """Return the mean hinge loss under the worst change of each example within a box.

    Parameters
    ----------
    x : array (n, d)
    target : array (n,)
        Labels -1 and 1.
    patterns : bool array (P, n)
    v, w : arrays (P, d)
    radius : float >= 0
        Every entry of ``x`` may be moved by so much.

    Returns
    -------
    array (), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or ``radius < 0``.

    Notes
    -----
    ``mean_k max(0, 1 - target_k x_k^T q_k + radius |q_k|_1)`` with ``q_k = sum_i d_ik (v_i - w_i)``. It is
    the adversarial loss of the network as long as no move opens or closes a gate, which
    ``gate_violation(..., radius=radius) == 0`` says. The pullback is a subgradient: 0 at the hinge and for
    the sign of 0.

    References
    ----------
    Bai, Gautam, Sojoudi (2022), arXiv 2201.01965, adversarial training.

    Examples
    --------
    >>> x, label, pattern = np.array([[1.0, 0.0]]), np.array([1.0]), np.array([[True]])
    >>> v = np.array([[0.5, -0.25]])
    >>> float(robust_hinge(x, label, pattern, v, 0 * v, radius=1.0))
    1.25
    """
    return robust_hinge_vjp(x, target, patterns, v, w, radius=radius)[0]


def robust_hinge_vjp(
    x: Array[F], target: Array[F], patterns: Array[np.bool_], v: Array[F], w: Array[F], *, radius: float
) -> tuple[Array[F], Pullback]:
    """Return :func:`robust_hinge` and its pullback ``dy -> (dx, dtarget, dv, dw)``."""
    x, target = _regression(x, target)
    patterns, v, w = _gated(x, patterns, v, w)
    _checks.non_negative(radius, "radius")
    gate = patterns.astype(x.real.dtype)
    effective = gate.T @ (v - w)
    prediction = (x * effective).sum(axis=1)
    sign = np.sign(effective.real)
    slack = 1 - target * prediction + radius * (sign * effective).sum(axis=1)
    violated = slack.real > 0
    value = np.asarray(np.where(violated, slack, 0).sum() / len(x))

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        dslack = np.where(violated, dy / len(x), 0).astype(x.dtype)
        dprediction = -dslack * target
        deffective = dprediction[:, None] * x + radius * dslack[:, None] * sign
        dgroups = gate @ deffective
        return dprediction[:, None] * effective, -dslack * prediction, dgroups, -dgroups

    return value, pullback


def admm_relu(
    x: Array[F],
    target: Array[F],
    patterns: Array[np.bool_],
    *,
    penalty: float = 1e-3,
    coupling: float = 1e-2,
    dual_step: float | None = None,
    max_iter: int = 3000,
    tol: float = 1e-6,
    callback: Callback | None = None,
) -> ConvexReluResult:
    """Train a two-layer ReLU network to the global optimum over the given patterns.

    Parameters
    ----------
    x : array (n, d)
        Data; append a column of ones for a bias.
    target : array (n,)
    patterns : bool array (P, n), P >= 1
        From :func:`sample_patterns`.
    penalty : float >= 0
        Weight decay of the network.
    coupling : float > 0
        Weight of the augmented Lagrangian's squares; 1 to 10 times ``penalty`` is a good choice.
    dual_step : float > 0, optional
        Step of the multipliers; ``coupling`` by default.
    max_iter : int >= 1
    tol : float >= 0
        Largest residuals, relative to the iterate (primal) and to the slope at 0 (dual).
    callback : callable, optional
        Called with a :class:`Progress` after every iteration; a true result ends the run.

    Returns
    -------
    ConvexReluResult

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, a value is not finite or a number is outside its range.
    Diverged
        If ``dual_step`` is too large.

    Notes
    -----
    With ``u`` the stacked weights, ``F u`` the predictions and ``G u`` the signed gates, the linear system
    ``I + F^T F / coupling + G^T G`` has 2 d P unknowns. Signs square to 1, so ``G^T G`` repeats one
    ``d x d`` block, ``x^T x``; the inverse is that of ``I + x^T x`` and of one n x n matrix. An iteration
    costs ``O(n^2 + n d P)``. All work is done in float64.

    References
    ----------
    Bai, Gautam, Sojoudi (2022), arXiv 2201.01965, the ADMM algorithm.

    Examples
    --------
    >>> result = admm_relu(np.ones((1, 1)), np.ones(1), np.array([[True], [False]]), penalty=0.25, coupling=0.5)
    >>> result.v.round(5).ravel(), result.w.ravel(), round(result.objective, 5)
    (array([0.75, 0.  ]), array([0., 0.]), 0.21875)
    """
    x, target = _regression(x, target)
    patterns = _patterns(patterns, x)
    _checks.finite(target, "target")
    _checks.non_negative(penalty, "penalty")
    _checks.positive(coupling, "coupling")
    _checks.positive(coupling if dual_step is None else dual_step, "dual_step")
    _checks.non_negative(tol, "tol")
    relative_step = 1.0 if dual_step is None else dual_step / coupling
    program = _Program(x.astype(np.float64), target.astype(np.float64), patterns, coupling)
    monitor = Monitor("admm_relu", callback=callback, hint="use a dual_step of at most coupling")

    copy = dual = np.zeros(program.shape)
    slack = gate_dual = np.zeros((*program.shape[:2], len(x)))
    converged = False
    for _ in range(_checks.whole(max_iter, "max_iter", low=1)):
        u = program.solve(copy - dual + program.gates_adjoint(slack - gate_dual))
        gates = program.gates(u)
        previous = copy, slack
        copy, slack = _shrink_groups(u + dual, penalty / coupling), np.maximum(gates + gate_dual, 0)
        dual = dual + relative_step * (u - copy)
        gate_dual = gate_dual + relative_step * (gates - slack)

        primal = _size(u - copy) + _size(gates - slack)
        moved = _size(copy - previous[0]) + _size(program.gates_adjoint(slack - previous[1]))
        stopped = monitor.record(
            objective=program.objective(copy, penalty), primal_residual=primal, dual_residual=coupling * moved
        )
        converged = primal <= tol * max(_size(u) + _size(gates), _size(program.target)) and (
            coupling * moved <= tol * _size(program.slope_at_zero)
        )
        if converged or stopped:
            break
    v, w = copy.astype(x.dtype)
    return ConvexReluResult(
        v=v,
        w=w,
        objective=program.objective(copy, penalty),
        violation=max(0.0, -float(program.gates(copy).min())),
        n_iter=monitor.n_iter,
        converged=bool(converged),
        history=monitor.history(),
    )


class _Program:
    """The linear maps of the convex program, without their matrices; weights have the shape (2, P, d)."""

    def __init__(self, x: AnyArray, target: AnyArray, patterns: AnyArray, coupling: float) -> None:
        self.x, self.target, self.coupling = x, target, coupling
        self.gate = patterns.astype(np.float64)
        self.sign = 2 * self.gate - 1
        self.shape = (2, len(patterns), x.shape[1])
        self.block = scipy.linalg.cho_factor(np.eye(x.shape[1]) + x.T @ x)
        # F K^-1 F^T for K = I + G^T G: entry (j, k) is that of x (I + x^T x)^-1 x^T, once for every pattern
        # in which both examples are active, and for v and w.
        inner = x @ scipy.linalg.cho_solve(self.block, x.T) * (2 * self.gate.T @ self.gate)
        self.outer = scipy.linalg.cho_factor(coupling * np.eye(len(x)) + inner)
        self.slope_at_zero = self.predict_adjoint(target)

    def predict(self, u: AnyArray) -> AnyArray:
        return np.asarray((self.gate * ((u[0] - u[1]) @ self.x.T)).sum(axis=0))

    def predict_adjoint(self, residual: AnyArray) -> AnyArray:
        down = (self.gate * residual) @ self.x
        return np.stack([down, -down])

    def gates(self, u: AnyArray) -> AnyArray:
        return np.asarray(self.sign * (u @ self.x.T))

    def gates_adjoint(self, s: AnyArray) -> AnyArray:
        return np.asarray((self.sign * s) @ self.x)

    def solve(self, right: AnyArray) -> AnyArray:
        """Return ``(K + F^T F / coupling)^-1 (F^T target / coupling + right)`` by Woodbury's identity."""
        start = self._block_solve(right + self.slope_at_zero / self.coupling)
        pull = scipy.linalg.cho_solve(self.outer, self.predict(start), check_finite=False)
        return start - self._block_solve(self.predict_adjoint(pull))

    def _block_solve(self, u: AnyArray) -> AnyArray:
        flat = u.reshape(-1, self.shape[2]).T
        solved: AnyArray = scipy.linalg.cho_solve(self.block, flat, check_finite=False).T
        return solved.reshape(self.shape)

    def objective(self, u: AnyArray, penalty: float) -> float:
        residual = self.predict(u) - self.target
        return float(residual @ residual / 2 + penalty * np.linalg.norm(u, axis=-1).sum())


def _shrink_groups(u: AnyArray, threshold: float) -> AnyArray:
    """Shorten every row by ``threshold``, or to 0: the proximal map of the sum of the rows' norms."""
    norm = np.linalg.norm(u, axis=-1, keepdims=True)
    kept = norm > threshold
    return np.where(kept, u * (1 - threshold / np.where(kept, norm, 1)), 0)


def recover_relu(v: Array[F], w: Array[F], *, tol: float = NEGLIGIBLE_NORM) -> tuple[Array[F], Array[F]]:
    """Return the two-layer ReLU network of a solution of the convex program.

    Parameters
    ----------
    v, w : arrays (P, d)
        Weights of each pattern, from :func:`admm_relu`.
    tol : float >= 0
        Rows of at most this norm give no neuron.

    Returns
    -------
    weight : array (m, d)
        Hidden weights.
    output : array (m,)
        Output weights: positive for rows of ``v``, negative for rows of ``w``.

    Raises
    ------
    TypeError, ValueError
        If shape or dtype differs or ``tol < 0``.

    Notes
    -----
    ``weight = v / sqrt(|v|)``, ``output = sqrt(|v|)``: both layers share the norm, so that
    ``penalty/2 (|weight|^2 + output^2) = penalty |v|``.

    References
    ----------
    Bai, Gautam, Sojoudi (2022), arXiv 2201.01965; Pilanci, Ergen (2020), arXiv 2002.10553, theorem 1.

    Examples
    --------
    >>> recover_relu(np.array([[0.0, 4.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [9.0, 0.0]]))
    (array([[0., 2.],
           [3., 0.]]), array([ 2., -3.]))
    """
    v, w = _checks.float_array(v, "v", ndim=2), _checks.float_array(w, "w")
    _checks.same_dtype("v", v, w=w)
    _checks.shape(w, "w", v.shape)
    _checks.non_negative(tol, "tol")
    rows, norms = np.concatenate([v, w]), np.concatenate([_norms(v), _norms(w)])
    kept = norms > tol
    root = np.sqrt(norms[kept])
    sign = np.repeat(np.array([1, -1], v.dtype), len(v))[kept]
    return rows[kept] / root[:, None], sign * root


def sampled_convex_program(
    x: Array[F],
    target: Array[F],
    *,
    n_neurons: int,
    penalty: float = 1e-3,
    max_iter: int = 100,
    tol: float = 1e-9,
    rng: np.random.Generator,
    callback: Callback | None = None,
) -> SampledProgramResult:
    """Draw hidden weights at random and train the output weights alone: a lasso.

    Parameters
    ----------
    x : array (n, d)
    target : array (n,)
    n_neurons : int >= 1
        Number of hidden weights, drawn uniformly from the unit sphere.
    penalty : float > 0
    max_iter : int >= 1
    tol : float >= 0
        Largest duality gap, relative to ``|target|^2 / 2``, the loss of no network.
    rng : numpy.random.Generator
        The first rows of a larger draw from the same state are those of a smaller one.
    callback : callable, optional
        Called with a :class:`Progress` after every iteration; a true result ends the run.

    Returns
    -------
    SampledProgramResult

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, a value is not finite or a number is outside its range.

    Notes
    -----
    ``min 1/2 |relu(x weight^T) output - target|^2 + penalty |output|_1``, by an interior-point method whose
    Newton steps solve one n x n system, whatever the number of neurons. Since weight and output may share
    the norm of a neuron, the value is an upper bound of the network's optimum, and it falls as neurons are
    added. Weights that end on the boundary are returned as exactly 0.

    References
    ----------
    Bai, Gautam, Sojoudi (2022), arXiv 2201.01965, the sampled convex program. Kim, Koh, Lustig, Boyd,
    Gorinevsky (2007), IEEE Journal of Selected Topics in Signal Processing 1, 606-617, for the solver.

    Examples
    --------
    >>> x, target = np.array([[1.0], [-1.0]]), np.array([2.0, 0.0])
    >>> result = sampled_convex_program(x, target, n_neurons=5, penalty=0.5, rng=np.random.default_rng(0))
    >>> round(result.objective, 5), round(float(np.abs(result.output).sum()), 5)
    (0.875, 1.5)
    """
    x, target = _regression(x, target)
    _checks.finite(target, "target")
    _checks.positive(penalty, "penalty")
    _checks.non_negative(tol, "tol")
    draws = _checks.generator(rng).standard_normal((_checks.whole(n_neurons, "n_neurons", low=1), x.shape[1]))
    weight = draws / np.linalg.norm(draws, axis=1, keepdims=True)
    features, y = np.maximum(x.astype(np.float64) @ weight.T, 0), target.astype(np.float64)
    monitor = Monitor("sampled_convex_program", callback=callback, hint="check the scale of the data")
    max_iter = _checks.whole(max_iter, "max_iter", low=1)

    iterate = output = np.zeros(len(weight))
    smallest = np.inf
    interior = _Interior(features, y, penalty)
    while True:
        value, gap = _lasso_gap(features, y, iterate, penalty)
        stopped = monitor.record(objective=value, gap=gap)
        if gap < smallest:
            smallest, output = gap, interior.rounded() if iterate.any() else iterate
        converged = gap <= tol * (y @ y) / 2
        if converged or stopped or monitor.n_iter > max_iter or gap > SPENT * smallest:
            break
        iterate = interior.step()
    objective, _ = _lasso_gap(features, y, output, penalty)
    return SampledProgramResult(
        weight=weight.astype(x.dtype),
        output=output.astype(x.dtype),
        objective=objective,
        n_iter=monitor.n_iter - 1,
        converged=bool(converged),
        history=monitor.history(),
    )


class _Interior:
    """Path-following steps for ``min 1/2 |A (z+ - z-) - y|^2 + penalty sum(z)`` over ``z = (z+, z-) >= 0``.

    ``s`` is the slope in ``z``, which has to be >= 0 as well, and 0 where ``z`` is not.
    """

    def __init__(self, features: AnyArray, y: AnyArray, penalty: float) -> None:
        self.features, self.y, self.penalty = features, y, penalty
        # Any positive start will do; this one has the size of the answer and of the slope at 0.
        size = max(float(np.abs(features.T @ y).max()), penalty)
        self.z = np.full((2, features.shape[1]), float(y @ y) / size / features.shape[1] + 1e-3)
        self.s = np.full_like(self.z, size)

    def step(self) -> AnyArray:
        """Take one Newton step towards a smaller complementarity; return the weights."""
        z, s = self.z, self.s
        slope = self.features.T @ (self.features @ (z[0] - z[1]) - self.y)
        target = CENTRING * float((z * s).mean())
        # (B^T B + s/z) dz = right for B = [A, -A]; with theta = z/s, Woodbury leaves (I + B theta B^T)^-1.
        # Near the end theta spans thirty powers of ten: only singular values bear that.
        right = target / z - self.penalty - np.stack([slope, -slope])
        theta = z / s
        scaled = theta * right
        left, singular, _ = np.linalg.svd(self.features * np.sqrt(theta.sum(axis=0)), full_matrices=False)
        pull = left @ (left.T @ (self.features @ (scaled[0] - scaled[1])) / (1 + singular**2))
        fitted = self.features.T @ pull
        dz = scaled - theta * np.stack([fitted, -fitted])
        ds = target / z - s - s / z * dz
        # One length for both: with two, the slope of a quadratic would no longer fit its multiplier.
        length = min(1.0, TO_THE_BOUNDARY * min(_room(z, dz), _room(s, ds)))
        self.z, self.s = z + length * dz, s + length * ds
        return np.asarray(self.z[0] - self.z[1])

    def rounded(self) -> AnyArray:
        """Return the weights with 0 for those that are on the boundary: smaller than their slope."""
        kept = np.where(self.z > self.s, self.z, 0)
        return np.asarray(kept[0] - kept[1])


def _room(value: AnyArray, change: AnyArray) -> float:
    """Return how many times ``change`` can be added before an entry is 0."""
    shrinking = change < 0
    return float(np.min(-value[shrinking] / change[shrinking], initial=np.inf))


def _lasso_gap(features: AnyArray, y: AnyArray, output: AnyArray, penalty: float) -> tuple[float, float]:
    """Return the lasso's objective and its distance from the dual objective, which bounds the error."""
    residual = y - features @ output
    objective = residual @ residual / 2 + penalty * np.abs(output).sum()
    # Any multiple of the residual whose products with the columns stay within the penalty is dual feasible.
    slope = np.abs(features.T @ residual).max()
    multiplier = residual * min(1.0, penalty / slope if slope > 0 else 1.0)
    dual = (y @ y - (y - multiplier) @ (y - multiplier)) / 2
    return float(objective), float(objective - dual)


def _data(x: AnyArray) -> AnyArray:
    x = _checks.float_array(x, "x", ndim=2)
    _checks.not_empty(x, "x", (0, 1))
    _checks.finite(x, "x")
    return x


def _regression(x: AnyArray, target: AnyArray) -> tuple[AnyArray, AnyArray]:
    x, target = _data(x), _checks.float_array(target, "target", ndim=1)
    _checks.same_dtype("x", x, target=target)
    _checks.shape(target, "target", x.shape[:1])
    return x, target


def _patterns(patterns: AnyArray, x: AnyArray) -> AnyArray:
    patterns = np.asarray(patterns)
    if patterns.dtype != np.bool_:
        _checks.fail_type("patterns", "a boolean array", f"dtype {patterns.dtype}")
    _checks.shape(patterns, "patterns", (*patterns.shape[:1], len(x)))
    _checks.not_empty(patterns, "patterns", (0,))
    return patterns


def _gated(x: AnyArray, patterns: AnyArray, v: AnyArray, w: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
    patterns = _patterns(patterns, x)
    v, w = _checks.float_array(v, "v"), _checks.float_array(w, "w")
    _checks.same_dtype("x", x, v=v, w=w)
    for name, array in (("v", v), ("w", w)):
        _checks.shape(array, name, (len(patterns), x.shape[1]))
    return patterns, v, w


def _norms(rows: AnyArray) -> AnyArray:
    return np.asarray(np.sqrt((rows * rows).sum(axis=-1)))


def _unit(rows: AnyArray, norms: AnyArray) -> AnyArray:
    present = norms != 0
    return np.asarray(np.where(present[:, None], rows / np.where(present, norms, 1)[:, None], 0))


def _size(array: AnyArray) -> float:
    return float(np.sqrt(np.vdot(array, array)))
