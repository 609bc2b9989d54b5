"""Newton's method with an approximate Hessian, damped in proportion to the gradient.

step = -(hessian + |grad| / radius I)^-1 grad,        |step| <= radius
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.linalg

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.softmax import logsumexp, softmax
from refnorm.solvers._monitor import Callback, Monitor

METHOD = Method(
    title="Gradient-Normalized Smoothness for Optimization with Approximate Hessians",
    authors="Semenov, Jaggi, Doikov",
    year=2025,
    arxiv="2506.13710",
    functions=(
        "HessianOracle",
        "RegularizedNewtonResult",
        "gradient_regularized_newton",
        "logsumexp_oracle",
        "power_residual_oracle",
        "rank_one_step",
        "regularized_newton_step",
        "smoothness_radius",
        "soft_maximum",
        "soft_maximum_hessian",
    ),
    chapter="solvers/gradient_normalized_smoothness",
)

SUFFICIENT = 1 / 8
"""Share of ``|new grad|^2 / damping`` that a step has to gain; 1/2 is certain inside the radius of smoothness."""

ROUNDING = 10.0
"""Near a minimum a gain of this many rounding errors of the value says nothing; the gradient then decides."""

HessianModel: TypeAlias = "AnyArray | tuple[float, AnyArray] | None"
"""A matrix (d, d), a pair ``(c, v)`` that stands for ``c v v^T``, or ``None`` for 0."""


def regularized_newton_step(
    grad: Array[F], hessian: Array[F], damping: float, norm_matrix: Array[F] | None = None
) -> Array[F]:
    """Return ``-(hessian + damping norm_matrix)^-1 grad``.

    Parameters
    ----------
    grad : array (d,)
    hessian : array (d, d)
        Its symmetric part is used.
    damping : float > 0
    norm_matrix : array (d, d), optional
        The identity by default; symmetric and positive definite.

    Returns
    -------
    array (d,)

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, ``damping`` is not positive, or the damped matrix is not positive
        definite.

    Notes
    -----
    By Cholesky factorization. If ``hessian`` is positive semidefinite, the step's norm is at most the dual
    norm of ``grad`` divided by ``damping``.

    References
    ----------
    Semenov, Jaggi, Doikov (2025), arXiv 2506.13710 (the method with adaptive search).

    Examples
    --------
    >>> regularized_newton_step(np.array([1.0]), np.array([[1.0]]), 1.0)
    array([-0.5])
    """
    return regularized_newton_step_vjp(grad, hessian, damping, norm_matrix)[0]


def regularized_newton_step_vjp(
    grad: Array[F], hessian: Array[F], damping: float, norm_matrix: Array[F] | None = None
) -> tuple[Array[F], Pullback]:
    """Return :func:`regularized_newton_step` and its pullback ``dstep -> (dgrad, dhessian, ddamping, dnorm_matrix)``.

    Parameters, errors and references are those of :func:`regularized_newton_step`.
    """
    grad, hessian, metric = _step_arguments(grad, hessian, norm_matrix)
    _checks.positive(damping, "damping")
    matrix = 0.5 * (hessian + hessian.T) + damping * 0.5 * (metric + metric.T)
    try:
        factor = scipy.linalg.cho_factor(matrix, check_finite=False)
    except np.linalg.LinAlgError:
        _checks.fail("hessian", "a positive definite matrix after damping", f"damping {damping}")
    step = -scipy.linalg.cho_solve(factor, grad, check_finite=False)

    def pullback(dstep: AnyArray) -> tuple[AnyArray | None, ...]:
        # matrix step = -grad, so matrix dstep' = -dgrad - dmatrix step; solve against the cotangent once.
        u = -scipy.linalg.cho_solve(factor, np.asarray(dstep), check_finite=False)
        dmatrix = 0.5 * (np.outer(u, step) + np.outer(step, u))
        ddamping = np.asarray(np.sum(dmatrix * metric))
        return u, dmatrix, ddamping, None if norm_matrix is None else damping * dmatrix

    return np.asarray(step), pullback


def rank_one_step(grad: Array[F], coefficient: float, vector: Array[F], damping: float) -> Array[F]:
    """Return ``-(coefficient vector vector^T + damping I)^-1 grad`` in a time proportional to its length.

    Parameters
    ----------
    grad, vector : arrays (d,)
    coefficient : float >= 0
    damping : float > 0

    Returns
    -------
    array (d,)

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or a number is outside its range.

    Notes
    -----
    ``-(grad - c <v, grad> / (damping + c |v|^2) v) / damping`` (Sherman, Morrison).

    References
    ----------
    Semenov, Jaggi, Doikov (2025), arXiv 2506.13710 (Fisher approximations).

    Examples
    --------
    >>> rank_one_step(np.array([1.0, 1.0]), 3.0, np.array([1.0, 0.0]), 1.0)
    array([-0.25, -1.  ])
    """
    return rank_one_step_vjp(grad, coefficient, vector, damping)[0]


def rank_one_step_vjp(
    grad: Array[F], coefficient: float, vector: Array[F], damping: float
) -> tuple[Array[F], Pullback]:
    """Return :func:`rank_one_step` and its pullback ``dstep -> (dgrad, dcoefficient, dvector, ddamping)``."""
    grad = _checks.float_array(grad, "grad", ndim=1)
    vector = _checks.float_array(vector, "vector")
    _checks.same_dtype("grad", grad, vector=vector)
    _checks.shape(vector, "vector", grad.shape)
    _checks.non_negative(coefficient, "coefficient")
    _checks.positive(damping, "damping")

    def solve(right: AnyArray) -> AnyArray:
        weight = coefficient * (vector @ right) / (damping + coefficient * (vector @ vector))
        return np.asarray((right - weight * vector) / damping)

    step = -solve(grad)

    def pullback(dstep: AnyArray) -> tuple[AnyArray, ...]:
        u = -solve(np.asarray(dstep))
        # <u, d(c v v^T + damping I) step>, read off for each factor.
        left, right = vector @ u, vector @ step
        dvector = coefficient * (right * u + left * step)
        return u, np.asarray(left * right), dvector, np.asarray(u @ step)

    return step, pullback


@dataclass(frozen=True)
class RegularizedNewtonResult:
    """Outcome of :func:`gradient_regularized_newton`.

    Parameters
    ----------
    x
        The last point (d,).
    fun
        Its value.
    n_iter
        Steps taken.
    converged
        Whether the gradient reached ``grad_tol``, or the value ``target``.
    history
        After each step: ``fun``, ``grad_norm`` (dual norm), the ``radius`` and ``step_norm`` of the step, and
        the ``trials`` that it took.
    """

    x: AnyArray
    fun: float
    n_iter: int
    converged: bool
    history: dict[str, Array[np.float64]]


def gradient_regularized_newton(
    fun: Callable[[AnyArray], float],
    gradient: Callable[[AnyArray], AnyArray],
    hessian: Callable[[AnyArray], HessianModel],
    x0: Array[F],
    *,
    radius0: float = 1.0,
    radius_min: float = 1e-9,
    adaptive: bool = True,
    norm_matrix: Array[F] | None = None,
    max_iter: int = 1000,
    max_trials: int = 40,
    eps: float = 1e-8,
    grad_tol: float = 1e-8,
    target: float = -math.inf,
    callback: Callback | None = None,
) -> RegularizedNewtonResult:
    """Minimise a function by Newton steps whose damping is the gradient's norm over an adaptive radius.

    Parameters
    ----------
    fun, gradient : callables
        Value and gradient (d,) at a point (d,).
    hessian : callable
        Any positive semidefinite approximation: a matrix (d, d), a pair ``(c, v)`` for ``c v v^T``, or ``None``
        for 0, which makes the method normalized gradient descent.
    x0 : array (d,)
        Start.
    radius0 : float > 0
        First radius.
    radius_min : float > 0
        Smallest radius after a step that succeeded.
    adaptive : bool
        Double the radius after a step, halve it after a trial that gains too little. Otherwise it is constant
        and every step is taken.
    norm_matrix : array (d, d), optional
        Of the norm ``sqrt(<norm_matrix x, x>)``; the identity by default.
    max_iter, max_trials : ints >= 1
        Steps, and trials of one step.
    eps : float > 0
        Added to the radius where it divides.
    grad_tol : float >= 0
        Dual norm of the gradient at which the run ends.
    target : float
        Value at which the run ends.
    callback
        See :class:`refnorm.solvers.Progress`.

    Returns
    -------
    RegularizedNewtonResult
        When no trial succeeds, the run ends with the point that it had and ``converged=False``.

    Raises
    ------
    TypeError, ValueError
        If a shape differs, a number is outside its range, ``norm_matrix`` is not positive definite, or the
        Hessian of a run with constant radius is not.

    Notes
    -----
    ``damping = |grad| / (radius + eps)``. A trial is taken if it gains ``|new grad|^2 / (8 damping)``, or, where
    rounding hides the gain, if it halves the gradient. A Hessian that is not positive definite after damping
    is a trial that failed, and so is a value that is not finite.

    References
    ----------
    Semenov, Jaggi, Doikov (2025), arXiv 2506.13710 (the method with adaptive search).

    Examples
    --------
    >>> result = gradient_regularized_newton(
    ...     lambda x: float(0.5 * x @ x), lambda x: x, lambda x: np.eye(2), np.array([3.0, -4.0]))
    >>> result.converged, bool(np.linalg.norm(result.x) < 1e-8)
    (True, True)
    """
    x = _checks.float_array(x0, "x0", ndim=1)
    norms = _Norms(norm_matrix, x)
    for name, number in (("radius0", radius0), ("radius_min", radius_min), ("eps", eps)):
        _checks.positive(number, name)
    _checks.non_negative(grad_tol, "grad_tol")
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    max_trials = _checks.whole(max_trials, "max_trials", low=1)
    evaluate = _evaluator(fun, gradient, x.shape)
    monitor = Monitor("gradient_regularized_newton", callback=callback, hint="use a smaller radius0")

    def search(x: AnyArray, at: _Point, radius: float) -> tuple[AnyArray, _Point, float, int] | None:
        """Return step, new point, radius and number of trials."""
        model = hessian(x)
        for trial in range(1, (max_trials if adaptive else 1) + 1):
            damping = at.size / (radius + eps)
            step = _model_step(at.grad, model, damping, norms.matrix, must=not adaptive)
            if step is not None:
                new = evaluate(x + step, norms)
                if not adaptive or _gains(at, new, damping, x.dtype):
                    return step, new, radius, trial
            radius /= 2
        return None

    point, radius = evaluate(x, norms), radius0
    converged = point.size <= grad_tol or point.value <= target
    while not converged and monitor.n_iter < max_iter:
        found = search(x, point, radius)
        if found is None:
            break
        step, point, radius, trials = found
        x = x + step
        converged = point.size <= grad_tol or point.value <= target
        length = norms.primal(step)
        if monitor.record(fun=point.value, grad_norm=point.size, radius=radius, step_norm=length, trials=trials):
            break
        if adaptive:
            radius = max(2 * radius, radius_min)
    return RegularizedNewtonResult(x, point.value, monitor.n_iter, converged, monitor.history())


@dataclass(frozen=True)
class _Point:
    value: float
    grad: AnyArray
    size: float


def _gains(before: _Point, after: _Point, damping: float, dtype: Any) -> bool:
    """Whether a trial gains enough; False for values that are not finite."""
    gain = before.value - after.value
    if gain >= SUFFICIENT * after.size**2 / damping:
        return True
    hidden = ROUNDING * float(np.finfo(dtype).eps) * (1 + abs(before.value))
    return abs(gain) <= hidden and after.size <= before.size / 2


def _model_step(
    grad: AnyArray, model: HessianModel, damping: float, metric: AnyArray | None, *, must: bool
) -> AnyArray | None:
    d = len(grad)
    if metric is None and model is None:
        return np.asarray(-grad / damping)
    if metric is None and isinstance(model, tuple):
        return rank_one_step(grad, model[0], model[1], damping)
    if model is None:
        matrix: AnyArray = np.zeros((d, d), grad.dtype)
    elif isinstance(model, tuple):
        matrix = np.asarray(model[0] * np.outer(model[1], model[1]))
    else:
        matrix = np.asarray(model)
    _checks.shape(matrix, "hessian", (d, d))
    try:
        return regularized_newton_step(grad, matrix, damping, metric)
    except ValueError:
        # Not positive definite: more damping may help.
        if must:
            raise
        return None


class _Norms:
    """The norm of a positive definite matrix and its dual."""

    def __init__(self, matrix: Any, x: AnyArray) -> None:
        self.matrix: AnyArray | None = None
        if matrix is None:
            return
        checked = _checks.float_array(matrix, "norm_matrix")
        _checks.same_dtype("x0", x, norm_matrix=checked)
        _checks.shape(checked, "norm_matrix", (x.size, x.size))
        try:
            self._factor = scipy.linalg.cho_factor(checked)
        except np.linalg.LinAlgError:
            _checks.fail("norm_matrix", "a positive definite matrix", "one that is not")
        self.matrix = checked

    def primal(self, h: AnyArray) -> float:
        return float(np.linalg.norm(h) if self.matrix is None else np.sqrt(h @ self.matrix @ h))

    def dual(self, g: AnyArray) -> float:
        if self.matrix is None:
            return float(np.linalg.norm(g))
        if not np.isfinite(g).all():
            return math.nan
        return float(np.sqrt(g @ scipy.linalg.cho_solve(self._factor, g)))


def _evaluator(
    fun: Callable[[AnyArray], float], gradient: Callable[[AnyArray], AnyArray], shape: tuple[int, ...]
) -> Callable[[AnyArray, _Norms], _Point]:
    def evaluate(x: AnyArray, norms: _Norms) -> _Point:
        grad = np.asarray(gradient(x))
        _checks.shape(grad, "gradient", shape)
        return _Point(float(fun(x)), grad, norms.dual(grad))

    return evaluate


def smoothness_radius(
    gradient: Callable[[AnyArray], AnyArray],
    hessian: HessianModel,
    x: Array[F],
    *,
    radii: Array[F],
    n_directions: int = 32,
    rng: np.random.Generator,
) -> float:
    """Estimate the gradient-normalized smoothness at a point by sampling directions.

    Parameters
    ----------
    gradient : callable
        Gradient (d,) at a point (d,).
    hessian : array (d, d), pair ``(c, v)`` or ``None``
        The approximate Hessian at ``x``.
    x : array (d,)
    radii : array (k,)
        Candidates, positive and increasing.
    n_directions : int >= 1
        Random directions; both ways of each are tried.
    rng : numpy.random.Generator

    Returns
    -------
    float
        The largest candidate for which no violation was found, 0 if there is none.

    Raises
    ------
    TypeError, ValueError
        If a shape differs or a number is outside its range.

    Notes
    -----
    The largest ``r`` with ``|grad(x + h) - grad(x) - H h| <= |h| |grad(x)| / r`` for all ``|h| <= r``, in the
    Euclidean norm. Directions that are not sampled may violate it earlier: a diagnostic from above.

    References
    ----------
    Semenov, Jaggi, Doikov (2025), arXiv 2506.13710 (gradient-normalized smoothness).

    Examples
    --------
    Without a Hessian, a quadratic of curvature 2 has the radius ``|grad| / 2 = |x|``:

    >>> smoothness_radius(lambda x: 2 * x, None, np.array([3.0, 4.0]), radii=np.arange(1.0, 9.0),
    ...                   rng=np.random.default_rng(0))
    5.0
    """
    x = _checks.float_array(x, "x", ndim=1)
    radii = _checks.float_array(radii, "radii", ndim=1)
    if not radii.size or radii[0] <= 0 or (np.diff(radii) <= 0).any():
        _checks.fail("radii", "positive increasing numbers", radii)
    n_directions = _checks.whole(n_directions, "n_directions", low=1)
    half = _checks.generator(rng).standard_normal((n_directions, x.size))
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    here = np.asarray(gradient(x))
    _checks.shape(here, "gradient", x.shape)

    worst = np.zeros(len(radii))
    for i, radius in enumerate(radii):
        for unit in np.concatenate([half, -half]):
            error = np.asarray(gradient(x + radius * unit)) - here - radius * _times(hessian, unit)
            worst[i] = max(worst[i], float(np.linalg.norm(error)) / radius)
    # All shorter steps count as well, hence the running maximum.
    fits = np.maximum.accumulate(worst) * radii <= np.linalg.norm(here) * (1 + 1e-12)
    return float(radii[fits][-1]) if fits.any() else 0.0


def _times(model: HessianModel, v: AnyArray) -> AnyArray:
    if model is None:
        return np.zeros_like(v)
    if isinstance(model, tuple):
        return np.asarray(model[0] * (model[1] @ v) * model[1])
    return np.asarray(model @ v)


@dataclass(frozen=True)
class HessianOracle:
    """A function with its gradient and several positive semidefinite stand-ins for its Hessian.

    Parameters
    ----------
    fun, gradient, hessian
        Value, gradient (d,) and exact Hessian (d, d) at a point (d,); ``hessian`` is ``None`` where unknown.
    gauss_newton
        Hessian without the curvature of the inner function.
    fisher_term
        A rank-one part ``(c, v)``, or ``None`` where there is none.
    """

    fun: Callable[[AnyArray], float]
    gradient: Callable[[AnyArray], AnyArray]
    hessian: Callable[[AnyArray], AnyArray] | None
    gauss_newton: Callable[[AnyArray], AnyArray]
    fisher_term: Callable[[AnyArray], tuple[float, AnyArray]] | None


def soft_maximum(x: Array[F], matrix: Array[F], offset: Array[F], *, smoothing: float = 1.0) -> Array[F]:
    """Return a smooth maximum of affine functions.

    Parameters
    ----------
    x : array (d,)
    matrix : array (n, d)
    offset : array (n,)
    smoothing : float > 0
        Above the maximum by at most ``smoothing log(n)``.

    Returns
    -------
    array ()

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or ``smoothing`` is not positive.

    Notes
    -----
    ``smoothing logsumexp((matrix x - offset) / smoothing)``, with the largest entry taken out.

    References
    ----------
    Semenov, Jaggi, Doikov (2025), arXiv 2506.13710 (experiments).

    Examples
    --------
    >>> float(soft_maximum(np.array([0.0]), np.array([[1.0], [-1.0]]), np.zeros(2)).round(6))
    0.693147
    """
    return soft_maximum_vjp(x, matrix, offset, smoothing=smoothing)[0]


def soft_maximum_vjp(
    x: Array[F], matrix: Array[F], offset: Array[F], *, smoothing: float = 1.0
) -> tuple[Array[F], Pullback]:
    """Return :func:`soft_maximum` and its pullback ``dvalue -> (dx, dmatrix, doffset)``."""
    x, matrix, offset = _affine(x, matrix, offset, smoothing)
    logits = (matrix @ x - offset) / smoothing
    portion = softmax(logits)

    def pullback(dvalue: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
        # d(smoothing lse(logits)) = <softmax, d(matrix x - offset)>: the smoothing cancels.
        dscore = portion * np.asarray(dvalue, dtype=x.dtype)
        return dscore @ matrix, np.outer(dscore, x), -dscore

    return np.asarray(smoothing * logsumexp(logits), dtype=x.dtype), pullback


def soft_maximum_hessian(
    x: Array[F], matrix: Array[F], offset: Array[F], *, smoothing: float = 1.0, gauss_newton: bool = False
) -> Array[F]:
    """Return the Hessian of :func:`soft_maximum` with respect to ``x``, or its Gauss-Newton part.

    Parameters
    ----------
    x, matrix, offset, smoothing
        As in :func:`soft_maximum`.
    gauss_newton : bool
        Leave out the term that makes the weights' mean disappear.

    Returns
    -------
    array (d, d)

    Raises
    ------
    TypeError, ValueError
        As in :func:`soft_maximum`.

    Notes
    -----
    ``matrix^T diag(p) matrix / smoothing``, less ``g g^T / smoothing`` for the exact one, with the softmax
    ``p`` and the gradient ``g``.

    References
    ----------
    Semenov, Jaggi, Doikov (2025), arXiv 2506.13710 (weighted Gauss-Newton).

    Examples
    --------
    >>> soft_maximum_hessian(np.array([0.0]), np.array([[1.0], [-1.0]]), np.zeros(2))
    array([[1.]])
    """
    x, matrix, offset = _affine(x, matrix, offset, smoothing)
    portion = softmax((matrix @ x - offset) / smoothing)
    # Centred rows instead of a difference of two matrices: the result stays positive semidefinite.
    rows = matrix if gauss_newton else matrix - portion @ matrix
    return np.asarray((portion * rows.T) @ rows / smoothing, dtype=x.dtype)


def logsumexp_oracle(matrix: Array[F], offset: Array[F], smoothing: float) -> HessianOracle:
    """Return :func:`soft_maximum` with its gradient and both Hessians.

    Parameters
    ----------
    matrix, offset, smoothing
        As in :func:`soft_maximum`.

    Returns
    -------
    HessianOracle

    Raises
    ------
    TypeError, ValueError
        As in :func:`soft_maximum`.

    References
    ----------
    Semenov, Jaggi, Doikov (2025), arXiv 2506.13710 (experiments).

    Examples
    --------
    >>> oracle = logsumexp_oracle(np.array([[1.0], [-1.0]]), np.zeros(2), 1.0)
    >>> oracle.gradient(np.array([0.0])), oracle.gauss_newton(np.array([0.0]))
    (array([0.]), array([[1.]]))
    """
    matrix = _checks.float_array(matrix, "matrix", ndim=2)
    _affine(np.zeros(matrix.shape[1], matrix.dtype), matrix, offset, smoothing)

    def gradient(x: AnyArray) -> AnyArray:
        return np.asarray(soft_maximum_vjp(x, matrix, offset, smoothing=smoothing)[1](np.array(1.0))[0])

    return HessianOracle(
        fun=lambda x: float(soft_maximum(x, matrix, offset, smoothing=smoothing)),
        gradient=gradient,
        hessian=lambda x: soft_maximum_hessian(x, matrix, offset, smoothing=smoothing),
        gauss_newton=lambda x: soft_maximum_hessian(x, matrix, offset, smoothing=smoothing, gauss_newton=True),
        fisher_term=None,
    )


def power_residual_oracle(
    residual: Callable[[AnyArray], AnyArray],
    jacobian: Callable[[AnyArray], AnyArray],
    power: float,
    *,
    curvature: Callable[[AnyArray, AnyArray], AnyArray] | None = None,
) -> HessianOracle:
    """Return ``|residual(x)|^power / power`` with its gradient and Hessians.

    Parameters
    ----------
    residual, jacobian : callables
        ``residual(x)`` (m,) and its derivative (m, d) at a point (d,).
    power : float >= 2
    curvature : callable, optional
        ``curvature(x, w)`` returns ``sum_i w_i`` times the Hessian of residual ``i``; without it the exact
        Hessian is unknown.

    Returns
    -------
    HessianOracle
        ``fisher_term`` is ``(p - 2) |u|^(p - 4) (J^T u)(J^T u)^T`` as a pair, ``gauss_newton`` adds
        ``|u|^(p - 2) J^T J``, ``hessian`` adds ``|u|^(p - 2)`` times the residuals' curvature.

    Raises
    ------
    ValueError
        If ``power`` is below 2.

    Notes
    -----
    Where the residual is 0, everything is 0, but for ``J^T J`` at power 2.

    References
    ----------
    Semenov, Jaggi, Doikov (2025), arXiv 2506.13710 (nonlinear equations).

    Examples
    --------
    >>> oracle = power_residual_oracle(lambda x: x - 1, lambda x: np.eye(2), 4.0)
    >>> oracle.fun(np.array([1.0, 3.0])), oracle.gradient(np.array([1.0, 3.0]))
    (4.0, array([0., 8.]))
    >>> oracle.fisher_term(np.array([1.0, 3.0]))
    (2.0, array([0., 2.]))
    """
    _checks.in_range(power, "power", 2.0, math.inf, closed="left")

    def scaled(size: float, exponent: float) -> float:
        # Negative exponents meet a factor that vanishes faster.
        return size**exponent if size > 0 or exponent == 0 else 0.0

    def parts(x: AnyArray) -> tuple[AnyArray, float, AnyArray]:
        u = np.asarray(residual(x))
        return u, float(np.linalg.norm(u)), np.asarray(jacobian(x))

    def fun(x: AnyArray) -> float:
        return float(np.linalg.norm(np.asarray(residual(x))) ** power / power)

    def gradient(x: AnyArray) -> AnyArray:
        u, size, slope = parts(x)
        return np.asarray(scaled(size, power - 2) * (u @ slope))

    def fisher_term(x: AnyArray) -> tuple[float, AnyArray]:
        u, size, slope = parts(x)
        return (power - 2) * scaled(size, power - 4), np.asarray(u @ slope)

    def gauss_newton(x: AnyArray) -> AnyArray:
        u, size, slope = parts(x)
        pull = u @ slope
        outer = (power - 2) * scaled(size, power - 4) * np.outer(pull, pull)
        return np.asarray(scaled(size, power - 2) * slope.T @ slope + outer)

    def hessian(x: AnyArray) -> AnyArray:
        assert curvature is not None
        u, size, _ = parts(x)
        return np.asarray(gauss_newton(x) + scaled(size, power - 2) * np.asarray(curvature(x, u)))

    return HessianOracle(fun, gradient, hessian if curvature else None, gauss_newton, fisher_term)


def _affine(x: Any, matrix: Any, offset: Any, smoothing: float) -> tuple[AnyArray, AnyArray, AnyArray]:
    x = _checks.float_array(x, "x", ndim=1)
    matrix, offset = _checks.float_array(matrix, "matrix", ndim=2), _checks.float_array(offset, "offset")
    _checks.same_dtype("x", x, matrix=matrix, offset=offset)
    _checks.not_empty(matrix, "matrix", (0,))
    _checks.shape(matrix, "matrix", (len(matrix), x.size))
    _checks.shape(offset, "offset", (len(matrix),))
    _checks.positive(smoothing, "smoothing")
    return x, matrix, offset


def _step_arguments(grad: Any, hessian: Any, norm_matrix: Any) -> tuple[AnyArray, AnyArray, AnyArray]:
    grad = _checks.float_array(grad, "grad", ndim=1)
    hessian = _checks.float_array(hessian, "hessian")
    metric = np.eye(grad.size, dtype=grad.dtype) if norm_matrix is None else norm_matrix
    metric = _checks.float_array(metric, "norm_matrix")
    _checks.same_dtype("grad", grad, hessian=hessian, norm_matrix=metric)
    _checks.shape(hessian, "hessian", (grad.size, grad.size))
    _checks.shape(metric, "norm_matrix", (grad.size, grad.size))
    return grad, hessian, metric
