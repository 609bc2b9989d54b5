"""Optimality conditions: functions of (x, parameters) that are zero where ``x`` is a solution.

Every condition is built from functions in this library's own form, ``f_vjp(...) -> (value, pullback)``:
a gradient with its pullback, a proximal map with its pullback. No automatic differentiation is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Pullback

FunctionVjp: TypeAlias = Callable[..., tuple[AnyArray, Pullback]]


class RootProblem(Protocol):
    """A condition ``residual(x, *theta) = 0`` and the two products that implicit differentiation needs.

    Optional members: ``jvp_x(x, *theta, v)`` and ``jvp_theta(x, *theta, *dtheta)``, the forward products;
    ``symmetric`` (default False), whether the derivative in ``x`` is a symmetric matrix; ``orientation``
    (default 1), -1 if that derivative is positive rather than negative where the solver converges, as it
    is for the gradient of a function that is minimised; ``residual_vjp(x, *theta)``, the residual with a
    pullback to ``(x, *theta)``, which saves evaluating the residual again for each product.
    """

    def residual(self, x: AnyArray, *theta: Any) -> AnyArray:
        """Return ``F(x, theta)``, of the shape of ``x``."""
        ...

    def vjp_x(self, x: AnyArray, *theta_and_u: Any) -> AnyArray:
        """Return ``(dF/dx)^T u``; called as ``vjp_x(x, *theta, u)``."""
        ...

    def vjp_theta(self, x: AnyArray, *theta_and_u: Any) -> tuple[Any, ...]:
        """Return ``(dF/dtheta)^T u``, one entry a parameter; called as ``vjp_theta(x, *theta, u)``."""
        ...


class _Condition:
    """The three products of :class:`RootProblem`, from ``residual_vjp`` alone."""

    symmetric = False
    orientation = 1

    def residual_vjp(self, x: AnyArray, *theta: Any) -> tuple[AnyArray, Pullback]:
        raise TypeError(f"{type(self).__name__}: expected a residual_vjp method, got none")

    def residual(self, x: AnyArray, *theta: Any) -> AnyArray:
        """Return the condition's value, zero at a solution."""
        return self.residual_vjp(x, *theta)[0]

    def vjp_x(self, x: AnyArray, *theta_and_u: Any) -> AnyArray:
        """Return ``(dF/dx)^T u``; called as ``vjp_x(x, *theta, u)``."""
        *theta, u = theta_and_u
        cotangent: AnyArray = self.residual_vjp(x, *theta)[1](u)[0]
        return cotangent

    def vjp_theta(self, x: AnyArray, *theta_and_u: Any) -> tuple[Any, ...]:
        """Return ``(dF/dtheta)^T u``; called as ``vjp_theta(x, *theta, u)``."""
        *theta, u = theta_and_u
        return self.residual_vjp(x, *theta)[1](u)[1:]


@dataclass(frozen=True)
class Root(_Condition):
    """The condition ``residual = 0`` for any function given with its pullback.

    Parameters
    ----------
    residual_vjp
        ``residual_vjp(x, *theta) -> (value, pullback)``, ``pullback(u) -> (dx, *dtheta)``.

    Examples
    --------
    >>> def square_root_vjp(x, a):
    ...     return x * x - a, lambda u: (2 * x * u, -u)
    >>> Root(square_root_vjp).vjp_x(np.array([3.0]), np.array([9.0]), np.array([1.0]))
    array([6.])
    """

    residual_vjp: FunctionVjp


@dataclass(frozen=True)
class FixedPoint(_Condition):
    """The condition ``map(x) - x = 0``.

    Parameters
    ----------
    map_vjp
        ``map_vjp(x, *theta) -> (value, pullback)``, ``pullback(u) -> (dx, *dtheta)``.

    Examples
    --------
    >>> def cosine_vjp(x, a):
    ...     return np.cos(a * x), lambda u: (-a * np.sin(a * x) * u, -x * np.sin(a * x) * u)
    >>> FixedPoint(cosine_vjp).residual(np.array([0.7390851332]), np.array([1.0])).round(9)
    array([0.])
    """

    map_vjp: FunctionVjp

    def residual_vjp(self, x: AnyArray, *theta: Any) -> tuple[AnyArray, Pullback]:
        """Return ``map(x) - x`` and its pullback."""
        value, map_pullback = self.map_vjp(x, *theta)

        def pullback(u: AnyArray) -> tuple[Any, ...]:
            dx, *dtheta = map_pullback(u)
            return (dx - u, *dtheta)

        return value - x, pullback


@dataclass(frozen=True)
class Stationary(_Condition):
    """The condition ``gradient = 0`` of an unconstrained minimum.

    Parameters
    ----------
    gradient_vjp
        ``gradient_vjp(x, *theta) -> (gradient, pullback)``, where ``pullback(u)`` returns the product of
        the Hessian with ``u`` and, for each parameter, of the mixed derivative with ``u``.

    Examples
    --------
    >>> def gradient_vjp(x, a):
    ...     return a * x - 1, lambda u: (a * u, x * u)
    >>> Stationary(gradient_vjp).residual(np.array([0.5]), np.array([2.0]))
    array([0.])
    """

    gradient_vjp: FunctionVjp
    symmetric = True
    orientation = -1

    def residual_vjp(self, x: AnyArray, *theta: Any) -> tuple[AnyArray, Pullback]:
        """Return the gradient and its pullback."""
        return self.gradient_vjp(x, *theta)


@dataclass(frozen=True)
class GradientStep(_Condition):
    """The condition that a gradient step stands still: ``(x - step_size gradient) - x = 0``.

    Parameters
    ----------
    gradient_vjp
        As in :class:`Stationary`.
    step_size : float > 0
        Cancels in every derivative.

    Examples
    --------
    >>> GradientStep(lambda x, a: (a * x - 1, lambda u: (a * u, x * u)), 0.1).residual(np.ones(1), np.ones(1))
    array([-0.])
    """

    gradient_vjp: FunctionVjp
    step_size: float
    symmetric = True

    def __post_init__(self) -> None:
        _checks.positive(self.step_size, "step_size")

    def residual_vjp(self, x: AnyArray, *theta: Any) -> tuple[AnyArray, Pullback]:
        """Return ``-step_size * gradient`` and its pullback."""
        gradient, gradient_pullback = self.gradient_vjp(x, *theta)
        return -self.step_size * gradient, lambda u: gradient_pullback(-self.step_size * u)


@dataclass(frozen=True)
class NewtonStep(_Condition):
    """The condition that a Newton step stands still, ``-(dG/dx)^-1 G = 0``, for a root of ``G``.

    Parameters
    ----------
    function_vjp
        ``G`` with its pullback. Its derivative in ``x`` is formed with one pullback an unknown.

    Notes
    -----
    At a root the derivative in ``x`` is exactly ``-I``, so no linear system is left to solve. Away from
    one, the change of ``dG/dx`` is left out: the products are those at the root.

    Examples
    --------
    >>> NewtonStep(lambda x, a: (a * x - 1, lambda u: (a * u, x * u))).residual(np.zeros(1), np.full(1, 4.0))
    array([0.25])
    """

    function_vjp: FunctionVjp
    symmetric = True

    def residual_vjp(self, x: AnyArray, *theta: Any) -> tuple[AnyArray, Pullback]:
        """Return the Newton step and its pullback at a root."""
        value, function_pullback = self.function_vjp(x, *theta)
        units = np.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
        derivative = np.stack([np.ravel(function_pullback(unit)[0]) for unit in units])
        step = -_solve(derivative, np.ravel(value)).reshape(x.shape)

        def pullback(u: AnyArray) -> tuple[Any, ...]:
            weights = _solve(derivative.T, -np.ravel(u)).reshape(x.shape)
            return (-u, *function_pullback(weights)[1:])

        return step, pullback


@dataclass(frozen=True)
class ProximalGradient(_Condition):
    """The condition that a proximal gradient step stands still.

    Parameters
    ----------
    gradient_vjp
        Gradient of the smooth part with its pullback, ``gradient_vjp(x, *smooth_theta)``.
    prox_vjp
        ``prox_vjp(y, *prox_theta, step_size=...)`` with pullback ``u -> (dy, *dprox_theta)``, for example
        :func:`refnorm.solvers.lasso_prox_vjp`.
    step_size : float > 0, or array that broadcasts with ``x``
        An array gives each block of a separable penalty a step of its own (block proximal gradient).
    prox_arguments : int >= 0
        How many of the parameters, counted from the last, belong to the penalty.

    Notes
    -----
    ``prox(x - step_size gradient(x)) - x = 0``.

    Examples
    --------
    >>> from refnorm.solvers import lasso_prox_vjp
    >>> def gradient_vjp(w, y):
    ...     return w - y, lambda u: (u, -u)
    >>> lasso = ProximalGradient(gradient_vjp, lasso_prox_vjp, step_size=0.5)
    >>> lasso.residual(np.array([2.0, 0.0]), np.array([3.0, 0.4]), 1.0)
    array([0., 0.])
    """

    gradient_vjp: FunctionVjp
    prox_vjp: FunctionVjp
    step_size: float | AnyArray = 1.0
    prox_arguments: int = 1

    def __post_init__(self) -> None:
        for step in np.ravel(self.step_size):
            _checks.positive(float(step), "step_size")
        _checks.whole(self.prox_arguments, "prox_arguments", low=0)

    def residual_vjp(self, x: AnyArray, *theta: Any) -> tuple[AnyArray, Pullback]:
        """Return the step and its pullback."""
        return _proximal_step(
            self.gradient_vjp,
            lambda y, *prox_theta: self.prox_vjp(y, *prox_theta, step_size=self.step_size),
            self.step_size,
            self.prox_arguments,
            x,
            theta,
        )


@dataclass(frozen=True)
class ProjectedGradient(_Condition):
    """The condition that a projected gradient step stands still.

    Parameters
    ----------
    gradient_vjp
        As in :class:`Stationary`.
    projection_vjp
        ``projection_vjp(y, *set_theta)`` with pullback ``u -> (dy, *dset_theta)``, for example
        :func:`refnorm.solvers.simplex_projection_vjp`.
    step_size : float > 0
        Cancels in every derivative, but not in the condition number: the inverse of the gradient's
        Lipschitz constant is a good choice.
    set_arguments : int >= 0
        How many of the parameters, counted from the last, describe the set.

    Notes
    -----
    ``projection(x - step_size gradient(x)) - x = 0``.

    Examples
    --------
    >>> from refnorm.solvers import box_projection_vjp
    >>> def gradient_vjp(x, y):
    ...     return x - y, lambda u: (u, -u)
    >>> box = ProjectedGradient(gradient_vjp, box_projection_vjp, step_size=1.0, set_arguments=2)
    >>> box.residual(np.array([0.5, 1.0]), np.array([0.5, 7.0]), 0.0, 1.0)
    array([0., 0.])
    """

    gradient_vjp: FunctionVjp
    projection_vjp: FunctionVjp
    step_size: float = 1.0
    set_arguments: int = 0

    def __post_init__(self) -> None:
        _checks.positive(self.step_size, "step_size")
        _checks.whole(self.set_arguments, "set_arguments", low=0)

    def residual_vjp(self, x: AnyArray, *theta: Any) -> tuple[AnyArray, Pullback]:
        """Return the step and its pullback."""
        return _proximal_step(self.gradient_vjp, self.projection_vjp, self.step_size, self.set_arguments, x, theta)


@dataclass(frozen=True)
class MirrorDescent(_Condition):
    """The condition that a mirror descent step on the simplex (each row of ``x``) stands still.

    Parameters
    ----------
    gradient_vjp
        As in :class:`Stationary`.
    step_size : float > 0

    Notes
    -----
    ``softmax(log(x) - step_size gradient(x)) - x = 0``. Coordinates that are zero stay zero whatever the
    gradient: their derivative ``1 / x`` is masked to 0.

    Examples
    --------
    >>> condition = MirrorDescent(lambda x, c: (c, lambda u: (0 * u, u)), step_size=1.0)
    >>> condition.residual(np.array([1.0, 0.0]), np.array([2.0, 5.0]))
    array([0., 0.])
    """

    gradient_vjp: FunctionVjp
    step_size: float = 1.0

    def __post_init__(self) -> None:
        _checks.positive(self.step_size, "step_size")

    def residual_vjp(self, x: AnyArray, *theta: Any) -> tuple[AnyArray, Pullback]:
        """Return the step and its pullback."""
        gradient, gradient_pullback = self.gradient_vjp(x, *theta)
        positive = x > 0
        logits = np.where(positive, np.log(np.where(positive, x, 1)) - self.step_size * gradient, -np.inf)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        value = weights / weights.sum(axis=-1, keepdims=True)

        def pullback(u: AnyArray) -> tuple[Any, ...]:
            dlogits = value * (u - (value * u).sum(axis=-1, keepdims=True))
            dx, *dtheta = gradient_pullback(-self.step_size * dlogits)
            through_log = np.where(positive, dlogits / np.where(positive, x, 1), 0)
            return (through_log + dx - u, *dtheta)

        return value - x, pullback


@dataclass(frozen=True)
class QPKkt(_Condition):
    """The Karush-Kuhn-Tucker conditions of a quadratic program.

    ``min 1/2 z^T Q z + c^T z`` subject to ``E z = d`` and ``M z <= h``. The unknown is the vector of
    ``z``, the multipliers of ``E z = d`` and those of ``M z <= h``; the parameters are
    ``(Q, c, E, d, M, h)``, where ``None`` stands for absent pairs ``E, d`` or ``M, h``.

    Notes
    -----
    ``[Q z + c + E^T nu + M^T lambda; E z - d; lambda (M z - h)] = 0``, the last product entry by entry.
    ``Q`` enters as ``(Q + Q^T) / 2``, the only part of it that the objective sees. A constraint that is
    active with multiplier 0 makes the derivative singular.

    Examples
    --------
    >>> minimum, parameters = np.array([1.0, 0.0, 2.0]), (np.eye(2), np.array([-3.0, 0.0]), None, None)
    >>> QPKkt().residual(minimum, *parameters, np.array([[1.0, 0.0]]), np.array([1.0]))
    array([0., 0., 0.])
    """

    def residual_vjp(self, x: AnyArray, *theta: Any) -> tuple[AnyArray, Pullback]:
        """Return the three residuals, joined, and their pullback."""
        if len(theta) != 6:
            _checks.fail("theta", "the six parameters (Q, c, E, d, M, h)", f"{len(theta)}")
        quadratic, linear, equal, equal_to, inequal, bound = theta
        x = _checks.float_array(x, "x", ndim=1)
        linear = _checks.float_array(linear, "c", ndim=1)
        n = linear.size
        quadratic = _checks.float_array(quadratic, "Q")
        _checks.shape(quadratic, "Q", (n, n))
        e, d = _constraints(equal, equal_to, n, x.dtype, "E", "d")
        m, h = _constraints(inequal, bound, n, x.dtype, "M", "h")
        _checks.shape(x, "x", (n + d.size + h.size,))
        z, nu, multiplier = np.split(x, [n, n + d.size])
        symmetric = (quadratic + quadratic.T) / 2
        slack = m @ z - h
        value = np.concatenate([symmetric @ z + linear + e.T @ nu + m.T @ multiplier, e @ z - d, multiplier * slack])

        def pullback(u: AnyArray) -> tuple[Any, ...]:
            a, b, c = np.split(u, [n, n + d.size])
            weighted = multiplier * c
            dx = np.concatenate([symmetric @ a + e.T @ b + m.T @ weighted, e @ a, m @ a + slack * c])
            dquadratic = (np.outer(a, z) + np.outer(z, a)) / 2
            dequal = None if equal is None else np.outer(nu, a) + np.outer(b, z)
            dinequal = None if inequal is None else np.outer(multiplier, a) + np.outer(weighted, z)
            return (
                dx,
                dquadratic,
                a,
                dequal,
                None if equal is None else -b,
                dinequal,
                None if inequal is None else -weighted,
            )

        return value, pullback


def _proximal_step(
    gradient_vjp: FunctionVjp,
    prox_vjp: FunctionVjp,
    step_size: float | AnyArray,
    prox_arguments: int,
    x: AnyArray,
    theta: tuple[Any, ...],
) -> tuple[AnyArray, Pullback]:
    if len(theta) < prox_arguments:
        _checks.fail("theta", f"at least {prox_arguments} parameters", len(theta))
    split = len(theta) - prox_arguments
    gradient, gradient_pullback = gradient_vjp(x, *theta[:split])
    value, prox_pullback = prox_vjp(x - step_size * gradient, *theta[split:])

    def pullback(u: AnyArray) -> tuple[Any, ...]:
        dpoint, *dprox = prox_pullback(u)
        # point = x - step_size gradient(x, theta): x is reached directly and through the gradient.
        dx, *dsmooth = gradient_pullback(-step_size * dpoint)
        return (dpoint + dx - u, *dsmooth, *dprox)

    return value - x, pullback


def _constraints(
    matrix: Any, values: Any, n: int, dtype: Any, matrix_name: str, values_name: str
) -> tuple[AnyArray, AnyArray]:
    if (matrix is None) != (values is None):
        _checks.fail(values_name, f"an array if and only if {matrix_name} is one", values)
    if matrix is None:
        return np.zeros((0, n), dtype), np.zeros(0, dtype)
    values = _checks.float_array(values, values_name, ndim=1)
    matrix = _checks.float_array(matrix, matrix_name)
    _checks.shape(matrix, matrix_name, (values.size, n))
    return matrix, values


def _solve(matrix: AnyArray, right: AnyArray) -> AnyArray:
    try:
        solution: AnyArray = np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        _checks.fail("function_vjp", "an invertible derivative in x", "a singular matrix")
    return solution
