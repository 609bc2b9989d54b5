"""Monotone deep Boltzmann machine: mean-field inference with one fixed point, found from everywhere.

q = softmax(phi q + b), one softmax for each categorical variable
phi = blockdiag(W^T W) - W^T W,   |W_i| <= sqrt(1 - margin)        so that I - phi >= margin I
q <- prox((1 - damping) q + damping (phi q + b))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.solvers._monitor import Callback, Monitor

METHOD = Method(
    title="Monotone deep Boltzmann machines",
    authors="Feng, Winston, Kolter",
    year=2023,
    arxiv="2307.04990",
    functions=(
        "MeanFieldResult",
        "block_softmax",
        "conditional_mean_field",
        "hollow_coupling",
        "mean_field",
        "prox_softmax",
    ),
    chapter="solvers/monotone_boltzmann",
)

SCALAR_STEPS = 60
SHIFT_STEPS = 100
"""Of Halley's method in an entry and of Newton's for the shift; some ten suffice, and the limits only guard against NaN."""


@dataclass(frozen=True)
class MeanFieldResult:
    """Outcome of :func:`mean_field` or :func:`conditional_mean_field`.

    Parameters
    ----------
    x : array (..., D)
        Marginal probabilities, one block for each variable.
    n_iter
        Iterations.
    converged
        Whether the residual fell to ``tol``.
    history
        ``residual``: largest entry of ``|softmax(phi q + b) - q|`` before each iteration.
    """

    x: AnyArray
    n_iter: int
    converged: bool
    history: dict[str, Array[np.float64]]


def hollow_coupling(weight: Array[F], block_sizes: Sequence[int], *, margin: float = 0.1) -> Array[F]:
    """Couplings between variables that make mean-field inference monotone, from free weights.

    Parameters
    ----------
    weight : array (r, D)
        Free parameters; a block of columns for each variable.
    block_sizes : ints >= 1 that sum to D
        Number of states of each variable.
    margin : float in (0, 1)
        Lower bound of the eigenvalues of ``I - phi``.

    Returns
    -------
    array (D, D), dtype of ``weight``
        Symmetric, with zero blocks on the diagonal.

    Raises
    ------
    TypeError, ValueError
        If a dtype, a shape or an option is wrong.

    Notes
    -----
    Each block of columns is scaled down to the spectral norm ``sqrt(1 - margin)`` if it is larger. Then
    ``I - phi = (I - blockdiag(W^T W)) + W^T W``, the first part is at least ``margin I`` and the second at
    least 0.

    References
    ----------
    Feng, Winston, Kolter (2023), arXiv 2307.04990, section 3.

    Examples
    --------
    >>> hollow_coupling(np.array([[0.5, 0.0, 0.5, 0.0]]), (2, 2))
    array([[ 0.  ,  0.  , -0.25, -0.  ],
           [ 0.  ,  0.  , -0.  , -0.  ],
           [-0.25, -0.  ,  0.  ,  0.  ],
           [-0.  , -0.  ,  0.  ,  0.  ]])
    """
    return hollow_coupling_vjp(weight, block_sizes, margin=margin)[0]


def hollow_coupling_vjp(
    weight: Array[F], block_sizes: Sequence[int], *, margin: float = 0.1
) -> tuple[Array[F], Pullback]:
    """Return :func:`hollow_coupling` and its pullback ``dphi -> (dweight,)``."""
    weight = _checks.float_array(weight, "weight", ndim=2)
    blocks = _Blocks(block_sizes, weight.shape[1])
    _checks.in_range(margin, "margin", 0, 1, closed="neither")
    limit = np.sqrt(1 - margin)
    scaled, parts = weight.copy(), []
    for columns in blocks.slices:
        left, sizes, right = np.linalg.svd(weight[:, columns], full_matrices=False)
        norm = sizes[0] if sizes.size else 0.0
        if norm > limit:  # at the limit itself the scale is 1 and does not move
            scaled[:, columns] *= limit / norm
            parts.append((columns, norm, np.outer(left[:, 0], right[0])))
    phi: Array[F] = np.where(blocks.same, 0, -(scaled.T @ scaled)).astype(weight.dtype)

    def pullback(dphi: Array[F]) -> tuple[AnyArray]:
        hollow = np.where(blocks.same, 0, dphi)
        dweight = -(scaled @ (hollow + hollow.T))
        for columns, norm, direction in parts:
            # d(limit / norm) = -limit / norm^2 <u w^T, dA>: the gradient along A itself is moved onto the
            # top singular pair, which is what the scale can feel.
            along = (weight[:, columns] * dweight[:, columns]).sum() / norm
            dweight[:, columns] = limit / norm * (dweight[:, columns] - along * direction)
        return (dweight.astype(weight.dtype),)

    return phi, pullback


def block_softmax(x: Array[F], block_sizes: Sequence[int]) -> Array[F]:
    """Softmax of each block of the last axis.

    Parameters
    ----------
    x : array (..., D)
    block_sizes : ints >= 1 that sum to D

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If a dtype or the sizes are wrong.

    Examples
    --------
    >>> block_softmax(np.array([0.0, 0.0, 1.0, 1.0, 1.0, 1.0]), (2, 4))
    array([0.5 , 0.5 , 0.25, 0.25, 0.25, 0.25])
    """
    return block_softmax_vjp(x, block_sizes)[0]


def block_softmax_vjp(x: Array[F], block_sizes: Sequence[int]) -> tuple[Array[F], Pullback]:
    """Return :func:`block_softmax` and its pullback ``dq -> (dx,)``."""
    x = _checks.float_array(x, "x", min_ndim=1)
    blocks = _Blocks(block_sizes, x.shape[-1])
    q: Array[F] = blocks.softmax(x).astype(x.dtype)

    def pullback(dq: Array[F]) -> tuple[AnyArray]:
        return (blocks.tangent(q, dq).astype(x.dtype),)

    return q, pullback


def prox_softmax(y: Array[F], *, damping: float, axis: int = -1) -> Array[F]:
    """Proximal map that turns softmax into a damped step towards it.

    Parameters
    ----------
    y : array
    damping : float in (0, 1]
        With 1 the map is softmax.
    axis : int
        Axis of the probabilities.

    Returns
    -------
    array, shape and dtype of ``y``

    Raises
    ------
    TypeError, ValueError
        If a dtype or option is wrong, or there is no entry along ``axis``.

    Notes
    -----
    ``argmin_z |z - y|^2 / 2 + damping (sum z log z - |z|^2 / 2)`` over the simplex: the solution of
    ``(1 - damping) z + damping log z = y + shift`` with the shift for which ``sum z = 1``. NaN in a row makes
    the row NaN.

    References
    ----------
    Feng, Winston, Kolter (2023), arXiv 2307.04990, section 4.

    Examples
    --------
    >>> prox_softmax(np.array([0.0, 0.0]), damping=0.3)
    array([0.5, 0.5])
    >>> prox_softmax(np.array([1.0, 0.0]), damping=0.5).round(4)
    array([0.8017, 0.1983])
    """
    return prox_softmax_vjp(y, damping=damping, axis=axis)[0]


def prox_softmax_vjp(y: Array[F], *, damping: float, axis: int = -1) -> tuple[Array[F], Pullback]:
    """Return :func:`prox_softmax` and its pullback ``dz -> (dy,)``."""
    y = _checks.float_array(y, "y", min_ndim=1)
    (last,) = _checks.axes((axis,), y.ndim)
    _checks.not_empty(y, "y", (last,))
    _checks.in_range(damping, "damping", 0, 1, closed="right")
    rows = np.moveaxis(y, last, -1)
    z = np.moveaxis(_Blocks((rows.shape[-1],), rows.shape[-1]).prox(rows, damping), -1, last)

    def pullback(dz: Array[F]) -> tuple[AnyArray]:
        # dz = gain (dy + dshift), and sum dz = 0 fixes dshift: a symmetric map.
        gain = z / (damping + (1 - damping) * z)
        common = (gain * dz).sum(axis=last, keepdims=True) / gain.sum(axis=last, keepdims=True)
        return ((gain * (dz - common)).astype(y.dtype),)

    return z.astype(y.dtype), pullback


def mean_field(
    phi: Array[F],
    b: Array[F],
    block_sizes: Sequence[int],
    *,
    damping: float | None = None,
    q0: Array[F] | None = None,
    max_iter: int = 1000,
    tol: float = 1e-10,
    callback: Callback | None = None,
) -> MeanFieldResult:
    """Marginal probabilities by mean-field inference: the solution of ``q = softmax(phi q + b)``.

    Parameters
    ----------
    phi : array (D, D)
        Couplings, for example from :func:`hollow_coupling`.
    b : array (..., D)
        Biases; leading axes are separate problems with the same couplings.
    block_sizes : ints >= 1 that sum to D
        Number of states of each variable.
    damping : float in (0, 1], optional
        ``m / L^2`` by default, with the smallest eigenvalue m of the symmetric part of ``I - phi`` and its norm
        L; it converges below ``2 m / L^2``, and often with larger values. With 1 the iteration is the usual
        parallel mean field.
    q0 : array, shape of ``b``, optional
        Start; uniform by default.
    max_iter : int >= 1
    tol : float > 0
        Largest entry of the residual ``softmax(phi q + b) - q`` at the end.
    callback : callable, optional
        Called with a ``Progress`` after every iteration; a true result ends the run.

    Returns
    -------
    MeanFieldResult

    Raises
    ------
    TypeError, ValueError
        If a dtype, a shape or an option is wrong, or ``damping`` is left out and ``I - phi`` is not positive.

    Notes
    -----
    Forward-backward splitting for a strongly monotone inclusion. For symmetric couplings the squared distance
    to the solution shrinks by ``1 - m^2 / L^2`` a step with the default damping.

    References
    ----------
    Feng, Winston, Kolter (2023), arXiv 2307.04990, section 4.

    Examples
    --------
    >>> phi = hollow_coupling(np.eye(4), (2, 2))
    >>> mean_field(phi, np.array([1.0, 0.0, 0.0, 0.0]), (2, 2)).x.round(4)
    array([0.7311, 0.2689, 0.5   , 0.5   ])
    """
    phi, b, blocks = _problem(phi, b, block_sizes)
    start = _start(q0, b, blocks)
    return _iterate("mean_field", phi, b, blocks, start, damping, max_iter, tol, callback)


def mean_field_vjp(
    phi: Array[F],
    b: Array[F],
    block_sizes: Sequence[int],
    *,
    damping: float | None = None,
    q0: Array[F] | None = None,
    max_iter: int = 1000,
    tol: float = 1e-10,
    callback: Callback | None = None,
) -> tuple[AnyArray, Pullback]:
    """Return the marginals of :func:`mean_field` and their pullback ``dq -> (dphi, db)``.

    The derivative is that of the exact fixed point; it depends neither on the damping nor on the start.
    """
    result = mean_field(phi, b, block_sizes, damping=damping, q0=q0, max_iter=max_iter, tol=tol, callback=callback)
    phi, b, blocks = _problem(phi, b, block_sizes)
    adjoint = _adjoint(phi, result.x, blocks)

    def pullback(dq: Array[F]) -> tuple[AnyArray, AnyArray]:
        v = adjoint(dq)
        rows = v.reshape(-1, v.shape[-1]), result.x.reshape(-1, v.shape[-1])
        return (rows[0].T @ rows[1]).astype(phi.dtype), v.astype(b.dtype)

    return result.x, pullback


def conditional_mean_field(
    phi: Array[F],
    b: Array[F],
    block_sizes: Sequence[int],
    observed: AnyArray,
    x: Array[F],
    *,
    damping: float | None = None,
    max_iter: int = 1000,
    tol: float = 1e-10,
    callback: Callback | None = None,
) -> MeanFieldResult:
    """Mean-field inference of the hidden variables, given the values of the others.

    Parameters
    ----------
    phi, b, block_sizes, damping, max_iter, tol, callback
        As in :func:`mean_field`.
    observed : boolean array (number of variables,)
        Which variables are known.
    x : array, shape of ``b``
        Their values, one-hot or as probabilities; entries of hidden variables are ignored.

    Returns
    -------
    MeanFieldResult
        ``x`` holds the given values of the observed variables and the marginals of the hidden ones.

    Raises
    ------
    TypeError, ValueError
        As in :func:`mean_field`, or if the mask is not boolean.

    Notes
    -----
    Inference with ``phi_hh`` and ``b_h + phi_ho x_o``. A principal submatrix of ``I - phi`` has no smaller
    eigenvalue than the whole, so nothing is lost of the guarantee.

    References
    ----------
    Feng, Winston, Kolter (2023), arXiv 2307.04990, section 3.

    Examples
    --------
    >>> phi = hollow_coupling(np.tile(np.eye(2), 2), (2, 2), margin=0.5)
    >>> known = np.array([True, False])
    >>> conditional_mean_field(phi, np.zeros(4), (2, 2), known, np.array([1.0, 0.0, 0.0, 0.0])).x.round(4)
    array([1.    , 0.    , 0.3775, 0.6225])
    """
    clamped = _clamp(phi, b, block_sizes, observed, x)
    result = _iterate(
        "conditional_mean_field",
        clamped.phi[np.ix_(clamped.hidden, clamped.hidden)],
        clamped.bias,
        clamped.blocks,
        _start(None, clamped.bias, clamped.blocks),
        damping,
        max_iter,
        tol,
        callback,
    )
    whole = clamped.x.copy()
    whole[..., clamped.hidden] = result.x
    return MeanFieldResult(whole, result.n_iter, result.converged, result.history)


def conditional_mean_field_vjp(
    phi: Array[F],
    b: Array[F],
    block_sizes: Sequence[int],
    observed: AnyArray,
    x: Array[F],
    *,
    damping: float | None = None,
    max_iter: int = 1000,
    tol: float = 1e-10,
    callback: Callback | None = None,
) -> tuple[AnyArray, Pullback]:
    """Return the values of :func:`conditional_mean_field` and their pullback ``dq -> (dphi, db, dx)``."""
    options: dict[str, Any] = {"damping": damping, "max_iter": max_iter, "tol": tol, "callback": callback}
    whole = conditional_mean_field(phi, b, block_sizes, observed, x, **options).x
    clamped = _clamp(phi, b, block_sizes, observed, x)
    hidden = clamped.hidden
    adjoint = _adjoint(clamped.phi[np.ix_(hidden, hidden)], whole[..., hidden], clamped.blocks)

    def pullback(dq: Array[F]) -> tuple[AnyArray, AnyArray, AnyArray]:
        v = np.zeros(whole.shape)
        v[..., hidden] = adjoint(dq[..., hidden])
        # Rows of phi at hidden variables meet the whole vector: its observed part acts as a bias.
        dphi = v.reshape(-1, v.shape[-1]).T @ whole.reshape(-1, v.shape[-1])
        dx = np.where(hidden, 0, dq + v @ clamped.phi)
        return dphi.astype(clamped.phi.dtype), v.astype(whole.dtype), dx.astype(whole.dtype)

    return whole, pullback


class _Blocks:
    """The partition of the last axis into variables, and maps that act on each of them."""

    def __init__(self, block_sizes: Sequence[int], total: int) -> None:
        sizes = [_checks.whole(size, "block_sizes", low=1) for size in block_sizes]
        if not sizes or sum(sizes) != total:
            _checks.fail("block_sizes", f"sizes that sum to {total}", tuple(block_sizes))
        self.sizes = np.array(sizes)
        self.starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.slices = [slice(start, start + size) for start, size in zip(self.starts, sizes, strict=True)]
        owner = np.repeat(np.arange(len(sizes)), self.sizes)
        self.owner, self.same = owner, owner[:, None] == owner

    def spread(self, values: AnyArray) -> AnyArray:
        """One value a block, to all its entries."""
        return np.asarray(values[..., self.owner])

    def sum(self, x: AnyArray) -> AnyArray:
        return np.asarray(np.add.reduceat(x, self.starts, axis=-1))

    def softmax(self, x: AnyArray) -> AnyArray:
        wide = x.astype(np.result_type(x, np.float64))
        terms = np.exp(wide - self.spread(np.maximum.reduceat(wide, self.starts, axis=-1)))
        return np.asarray(terms / self.spread(self.sum(terms)))

    def tangent(self, q: AnyArray, dx: AnyArray) -> AnyArray:
        """``(diag(q) - q q^T) dx`` in each block."""
        return np.asarray(q * (dx - self.spread(self.sum(q * dx))))

    def prox(self, y: AnyArray, damping: float) -> AnyArray:
        """Solve ``(1 - damping) z + damping log z = y + shift`` with ``sum z = 1`` in each block, in float64."""
        if damping == 1:
            return self.softmax(y)
        y = y.astype(np.float64)
        # Here the largest entry alone is 1: the sum is too large, and as it is a convex, increasing function
        # of the shift, Newton's method comes down to the root without ever passing it.
        shift = 1 - np.maximum.reduceat(y, self.starts, axis=-1)
        logs = None
        for _ in range(SHIFT_STEPS):
            logs = _solve_log(y + self.spread(shift), damping, logs)
            z = np.exp(logs)
            excess, slope = self.sum(z) - 1, self.sum(z / (damping + (1 - damping) * z))
            lower = shift - excess / slope
            if not (lower < shift).any() or not (excess > ROUNDING * self.sizes).any():
                break
            shift = np.minimum(lower, shift)
        return np.asarray(z / self.spread(self.sum(z)))


ROUNDING = 4 * float(np.finfo(np.float64).eps)
"""Relative error of a few operations: a sum that is closer to 1 than this per entry is 1."""


def _solve_log(t: AnyArray, damping: float, start: AnyArray | None) -> AnyArray:
    """Solve ``damping l + (1 - damping) exp(l) = t - damping`` for every entry, by Halley's method.

    The logarithm of z keeps all digits where z itself underflows.
    """
    # Both bounds are above the root and near it, where Halley's steps triple the number of right digits.
    logs = np.minimum(t / damping - 1, t - 1) if start is None else start
    for _ in range(SCALAR_STEPS):
        grown = (1 - damping) * np.exp(logs)
        value, slope = t - damping - damping * logs - grown, -damping - grown
        step = 2 * value * slope / (2 * slope * slope + value * grown)
        following = logs - step
        if not (np.abs(step) > ROUNDING * (1 + np.abs(logs))).any():
            return np.asarray(following)
        logs = following
    return logs


def _problem(phi: Array[F], b: Array[F], block_sizes: Sequence[int]) -> tuple[AnyArray, AnyArray, _Blocks]:
    phi, b = _checks.float_array(phi, "phi", ndim=2), _checks.float_array(b, "b", min_ndim=1)
    _checks.same_dtype("phi", phi, b=b)
    _checks.shape(phi, "phi", (b.shape[-1], b.shape[-1]))
    _checks.finite(phi, "phi")
    return phi, b, _Blocks(block_sizes, b.shape[-1])


def _start(q0: AnyArray | None, b: AnyArray, blocks: _Blocks) -> AnyArray:
    if q0 is None:
        return np.broadcast_to(blocks.spread(1 / blocks.sizes), b.shape)
    q0 = _checks.float_array(q0, "q0")
    _checks.shape(q0, "q0", b.shape)
    return q0


def _default_damping(phi: AnyArray) -> float:
    operator = np.eye(len(phi)) - phi.astype(np.float64)
    smallest = float(np.linalg.eigvalsh((operator + operator.T) / 2)[0])
    if smallest <= 0:
        _checks.fail("phi", "eigenvalues of I - phi above 0 (see hollow_coupling), or a damping", smallest)
    # phi has trace 0, so smallest <= 1 <= norm and the result is at most 1; rounding may say otherwise.
    return min(1.0, smallest / float(np.linalg.norm(operator, 2)) ** 2)


def _iterate(
    name: str,
    phi: AnyArray,
    b: AnyArray,
    blocks: _Blocks,
    start: AnyArray,
    damping: float | None,
    max_iter: int,
    tol: float,
    callback: Callback | None,
) -> MeanFieldResult:
    damping = _default_damping(phi) if damping is None else damping
    _checks.in_range(damping, "damping", 0, 1, closed="right")
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    _checks.positive(tol, "tol")
    monitor = Monitor(name, callback=callback, hint="use finite biases")
    q, wide, bias = start.astype(np.float64), phi.astype(np.float64), b.astype(np.float64)
    residual = np.inf
    while True:
        logits = q @ wide.T + bias
        residual = float(np.abs(blocks.softmax(logits) - q).max(initial=0.0))
        stop = residual <= tol or monitor.n_iter == max_iter
        if stop or monitor.record(residual=residual):
            break
        q = blocks.prox((1 - damping) * q + damping * logits, damping)
    return MeanFieldResult(q.astype(b.dtype), monitor.n_iter, residual <= tol, monitor.history())


def _adjoint(phi: AnyArray, q: AnyArray, blocks: _Blocks) -> Callable[[AnyArray], AnyArray]:
    """``dq -> v``, the cotangent of ``phi q + b`` at the fixed point.

    ``dq = S (phi dq + db)`` with the softmax's symmetric derivative S, so ``v = S (I - phi^T S)^-1 dq``. The
    matrix is invertible: on the range of S it is similar to ``I - S^1/2 phi S^1/2 >= margin I``, since S <= I.
    """
    wide, q = phi.astype(np.float64), q.astype(np.float64)
    slope = np.where(blocks.same, -q[..., :, None] * q[..., None, :], 0) + q[..., None] * np.eye(q.shape[-1])
    matrix = np.eye(q.shape[-1]) - wide.T @ slope

    def adjoint(dq: AnyArray) -> AnyArray:
        u = np.linalg.solve(matrix, dq.astype(np.float64)[..., None])[..., 0]
        return blocks.tangent(q, u)

    return adjoint


@dataclass(frozen=True)
class _Clamped:
    phi: AnyArray
    x: AnyArray
    hidden: AnyArray
    bias: AnyArray
    blocks: _Blocks


def _clamp(phi: AnyArray, b: AnyArray, block_sizes: Sequence[int], observed: AnyArray, x: AnyArray) -> _Clamped:
    phi, b, blocks = _problem(phi, b, block_sizes)
    x = _checks.float_array(x, "x")
    _checks.same_dtype("phi", phi, x=x)
    _checks.shape(x, "x", b.shape)
    mask = np.asarray(observed)
    if mask.dtype != np.bool_:
        _checks.fail_type("observed", "a boolean array", f"dtype {mask.dtype}")
    _checks.shape(mask, "observed", blocks.sizes.shape)
    if mask.all():
        _checks.fail("observed", "at least one hidden variable", "none")
    hidden = blocks.spread(~mask)
    # The observed variables act on the hidden ones as a bias.
    bias = (b + np.where(hidden, 0, x) @ phi.T)[..., hidden]
    return _Clamped(phi, x, hidden, bias, _Blocks(tuple(blocks.sizes[~mask]), int(hidden.sum())))
