"""AffineQuant: a learned change of basis between activations and weights, before both are rounded.

x' = (x - shift) P^-1      weight' = P weight      bias' = bias + shift weight        x' weight' + bias' = x weight + bias
P = transform * mask, diagonally dominant while the mask opens band by band
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.quantizers._calibration import check_bits, fake_quantize_range_vjp
from refnorm.quantizers._descent import Descent
from refnorm.solvers import Monitor
from refnorm.solvers._monitor import Callback

METHOD = Method(
    title="AffineQuant: Affine Transformation Quantization for Large Language Models",
    authors="Ma, Li, Zheng, Ling, Xiao, Wang, Wen, Chao, Ji",
    year=2024,
    arxiv="2403.12544",
    functions=(
        "gradual_mask",
        "dominance_margin",
        "affine_equivalent",
        "affine_quant_linear",
        "smooth_init",
        "AffineQuantResult",
        "fit_affine_quant",
        "Int4Weight",
        "quantize_weight_int4",
        "dequantize_weight_int4",
        "int4_linear",
    ),
    chapter="quantizers/affine_quant",
)

FIRST_CLIP_LOGIT = 4.0
"""sigmoid(4) = 0.982: clipping begins just inside the extremes, where the sigmoid still has a slope."""

SMALLEST_SCALE = 1e-5
"""Of a channel at initialization, as in the authors' code: channels that are always 0 must not become singular."""


def gradual_mask(
    size: int, epoch: int, n_epochs: int, *, stability: float = 0.1, block: int | None = None
) -> Array[np.float64]:
    """Return the mask that lets a matrix grow from its diagonal, band by band.

    Parameters
    ----------
    size : int >= 1
        Rows and columns.
    epoch : int, 0 to ``n_epochs - 1``
    n_epochs : int >= 1
    stability : float > 0
        Factor on the entries off the diagonal.
    block : int, optional
        Side of the blocks on the diagonal, outside of which all is 0; divides ``size``.

    Returns
    -------
    float64 array (size, size)
        1 on the diagonal, ``stability`` where ``0 < |i - j| < bands``, with
        ``bands = floor((side - 1) / (n_epochs - 1) * epoch) + 1``; all of a block with a single epoch.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range.

    References
    ----------
    Ma et al. (2024), arXiv 2403.12544, section on the gradual mask.

    Examples
    --------
    >>> gradual_mask(3, 1, 3, stability=0.5)
    array([[1. , 0.5, 0. ],
           [0.5, 1. , 0.5],
           [0. , 0.5, 1. ]])
    """
    _checks.whole(size, "size", low=1)
    _checks.whole(n_epochs, "n_epochs", low=1)
    _checks.whole(epoch, "epoch", low=0, high=n_epochs - 1)
    _checks.positive(stability, "stability")
    side = size if block is None else _checks.whole(block, "block", low=1, high=size)
    if size % side:
        _checks.fail("block", f"a divisor of {size}", block)
    bands = side if n_epochs == 1 else (side - 1) * epoch // (n_epochs - 1) + 1
    rows = np.arange(side)
    distance = np.abs(rows[:, None] - rows)
    one = np.where(distance == 0, 1.0, np.where(distance < bands, stability, 0.0))
    mask: Array[np.float64] = np.kron(np.eye(size // side), one).astype(np.float64)
    return mask


def dominance_margin(matrix: Array[F]) -> float:
    """Return by how much the diagonal outweighs the rest in the worst row.

    Parameters
    ----------
    matrix : array (K, K)

    Returns
    -------
    float
        ``min_i(|a_ii| - sum_{j != i} |a_ij|)``. Above 0, the matrix is invertible and the largest row sum of its
        inverse is at most the inverse of the margin.

    Raises
    ------
    TypeError, ValueError
        If the matrix is not square.

    References
    ----------
    Ma et al. (2024), arXiv 2403.12544, theorem of Levy and Desplanques.

    Examples
    --------
    >>> dominance_margin(np.array([[2.0, 0.5], [0.0, 1.0]]))
    1.0
    """
    matrix = _checks.float_array(matrix, "matrix", ndim=2)
    _checks.not_empty(matrix, "matrix", (0,))
    _checks.shape(matrix, "matrix", (matrix.shape[0],) * 2)
    magnitude = np.abs(matrix)
    diagonal = np.diagonal(magnitude)
    return float((2 * diagonal - magnitude.sum(axis=1)).min())


def affine_equivalent(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    transform: Array[F],
    shift: Array[F],
    *,
    mask: Array[F] | None = None,
) -> tuple[Array[F], Array[F], Array[F]]:
    """Change the basis between inputs and weights of a linear layer.

    Parameters
    ----------
    x : array (T, K)
    weight : array (K, N)
    bias : array (N,)
    transform : array (K, K)
    shift : array (K,)
    mask : array (K, K), optional
        Multiplied into ``transform``; from :func:`gradual_mask`.

    Returns
    -------
    x, weight, bias : arrays (T, K), (K, N), (N,)
        ``(x - shift) P^-1``, ``P weight``, ``bias + shift weight`` with ``P = transform * mask``; the layer's output is
        what it was.

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes do not fit, or P is singular to working precision.

    References
    ----------
    Ma et al. (2024), arXiv 2403.12544, section on the equivalent affine transformation.

    Examples
    --------
    >>> transform = np.array([[2.0, 0.5], [0.0, 1.0]])
    >>> affine_equivalent(np.array([[4.0, 2.0]]), np.ones((2, 1)), np.zeros(1), transform, np.zeros(2))
    (array([[2., 1.]]), array([[2.5], [1. ]]), array([0.]))
    """
    return affine_equivalent_vjp(x, weight, bias, transform, shift, mask=mask)[0]


def affine_equivalent_vjp(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    transform: Array[F],
    shift: Array[F],
    *,
    mask: Array[F] | None = None,
) -> tuple[tuple[Array[F], Array[F], Array[F]], Pullback]:
    """Return :func:`affine_equivalent` and its pullback.

    It maps the three cotangents, a tuple, to ``(dx, dweight, dbias, dtransform, dshift)``.
    """
    x, weight, bias, transform, shift, mask = _checked(x, weight, bias, transform, shift, mask)
    p = transform if mask is None else transform * mask
    solve = _solver(p)
    centred = x - shift
    # x' P = x - shift, transposed for the factorization of P.
    new_x: Array[F] = solve(centred.T, 1).T
    value = (new_x, p @ weight, bias + shift @ weight)

    def pullback(cotangents: tuple[Array[F], Array[F], Array[F]]) -> tuple[Array[F], ...]:
        dnew_x, dnew_weight, dnew_bias = cotangents
        dx = solve(dnew_x.T, 0).T
        # d(P^-1) = -P^-1 dP P^-1: through x' = (x - shift) P^-1 the cotangent of P is -x'^T dx.
        dp = dnew_weight @ weight.T - new_x.T @ dx
        dtransform = dp if mask is None else dp * mask
        dweight = p.T @ dnew_weight + np.outer(shift, dnew_bias)
        dshift = weight @ dnew_bias - dx.sum(axis=0)
        return dx, dweight, np.asarray(dnew_bias), dtransform, dshift

    return value, pullback


def _checked(
    x: AnyArray, weight: AnyArray, bias: AnyArray, transform: AnyArray, shift: AnyArray, mask: AnyArray | None
) -> tuple[Any, ...]:
    x, weight = _checks.float_array(x, "x", ndim=2), _checks.float_array(weight, "weight", ndim=2)
    bias, shift = _checks.float_array(bias, "bias"), _checks.float_array(shift, "shift")
    transform = _checks.float_array(transform, "transform")
    _checks.same_dtype("x", x, weight=weight, bias=bias, transform=transform, shift=shift)
    inputs, outputs = x.shape[1], weight.shape[1]
    _checks.shape(weight, "weight", (inputs, outputs))
    _checks.shape(bias, "bias", (outputs,))
    _checks.shape(transform, "transform", (inputs, inputs))
    _checks.shape(shift, "shift", (inputs,))
    if mask is not None:
        mask = _checks.float_array(mask, "mask").astype(x.dtype)
        _checks.shape(mask, "mask", (inputs, inputs))
    return x, weight, bias, transform, shift, mask


def _solver(p: AnyArray) -> Callable[[AnyArray, int], AnyArray]:
    """Factorize P once; the function that is returned solves with P (0) or its transpose (1)."""
    _checks.finite(p, "transform")
    getrf, gecon = scipy.linalg.get_lapack_funcs(("getrf", "gecon"), (p,))
    lu, pivots, info = getrf(p)
    reciprocal = 0.0 if info else float(gecon(lu, np.abs(p).sum(axis=0).max())[0])
    if reciprocal < np.finfo(p.dtype).eps:
        _checks.fail(
            "transform", "an invertible matrix; a smaller stability keeps it so", f"1 / condition {reciprocal:g}"
        )
    return lambda right, transposed: np.asarray(scipy.linalg.lu_solve((lu, pivots), right, trans=transposed))


def affine_quant_linear(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    transform: Array[F],
    shift: Array[F],
    clip_high: Array[F],
    clip_low: Array[F],
    *,
    mask: Array[F] | None = None,
    weight_bits: int | None = 4,
    bits: int | None = 4,
) -> Array[F]:
    """Apply a linear layer in the transformed basis with both factors quantized.

    Parameters
    ----------
    x, weight, bias, transform, shift, mask
        As in :func:`affine_equivalent`.
    clip_high, clip_low : arrays (N,)
        Logits: an output's weights are quantized between ``sigmoid(clip_low) min(w, 0)`` and
        ``sigmoid(clip_high) max(w, 0)``.
    weight_bits, bits : int, 2 to 16, or None
        Of weights and activations; None leaves them in float.

    Returns
    -------
    array (T, N), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`affine_equivalent`, or if bits are out of their range.

    Notes
    -----
    Activations are quantized between the extremes of each row, measured when the row is there.

    References
    ----------
    Ma et al. (2024), arXiv 2403.12544, equation of the optimization objective.

    Examples
    --------
    >>> x, weight, none, open_ = np.array([[4.0, -2.0]]), np.ones((2, 1)), np.zeros(2), np.array([50.0])
    >>> affine_quant_linear(x, weight, np.zeros(1), np.diag([2.0, 1.0]), none, open_, open_, bits=None).round(3)
    array([[1.867]])
    """
    return affine_quant_linear_vjp(
        x, weight, bias, transform, shift, clip_high, clip_low, mask=mask, weight_bits=weight_bits, bits=bits
    )[0]


def affine_quant_linear_vjp(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    transform: Array[F],
    shift: Array[F],
    clip_high: Array[F],
    clip_low: Array[F],
    *,
    mask: Array[F] | None = None,
    weight_bits: int | None = 4,
    bits: int | None = 4,
    range_gradient: bool = False,
) -> tuple[Array[F], Pullback]:
    """Return :func:`affine_quant_linear` and its pullback, with an entry for each of the seven arrays.

    Rounding is passed straight through. The range of weights is differentiated, through its logits and through the
    extreme weights. Parameters are those of :func:`affine_quant_linear`, and

    Parameters
    ----------
    range_gradient : bool
        Differentiate the extremes of each row of activations too; they are held by default.
    """
    (new_x, new_weight, new_bias), pull_basis = affine_equivalent_vjp(x, weight, bias, transform, shift, mask=mask)
    for name, array in (("clip_high", clip_high), ("clip_low", clip_low)):
        array = _checks.float_array(array, name)
        _checks.same_dtype("x", new_x, **{name: array})
        _checks.shape(array, name, new_bias.shape)
    w, pull_weight = _clipped_weight_vjp(new_weight, clip_high, clip_low, weight_bits)
    a, pull_rows = _quantized_rows_vjp(new_x, bits, range_gradient)
    y: Array[F] = a @ w + new_bias

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        dnew_weight, dclip_high, dclip_low = pull_weight(a.T @ dy)
        (dnew_x,) = pull_rows(dy @ w.T)
        return *pull_basis((dnew_x, dnew_weight, dy.sum(axis=0))), dclip_high, dclip_low

    return y, pullback


def _sigmoid(logit: Array[F]) -> Array[F]:
    return np.asarray(1 / (1 + np.exp(-logit)))


def _clipped_weight_vjp(
    weight: Array[F], clip_high: Array[F], clip_low: Array[F], bits: int | None
) -> tuple[Array[F], Pullback]:
    """Return weights quantized on a learned range for each column, and the pullback to weight and logits."""
    if bits is None:
        return weight, lambda dy: (dy, np.zeros_like(clip_high), np.zeros_like(clip_low))
    largest, smallest = np.maximum(weight.max(axis=0), 0), np.minimum(weight.min(axis=0), 0)
    share_high, share_low = _sigmoid(clip_high), _sigmoid(clip_low)
    y, pull = fake_quantize_range_vjp(weight, share_low * smallest, share_high * largest, bits=bits)
    columns = np.arange(weight.shape[1])
    top, bottom = weight.argmax(axis=0), weight.argmin(axis=0)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        dweight, dlow, dhigh = pull(dy)
        # The first of the largest weights carries the range with it, unless the range ends at 0.
        dweight[top, columns] += np.where(largest > 0, dhigh * share_high, 0)
        dweight[bottom, columns] += np.where(smallest < 0, dlow * share_low, 0)
        dclip_high = dhigh * largest * share_high * (1 - share_high)
        return dweight, dclip_high, dlow * smallest * share_low * (1 - share_low)

    return y, pullback


def _quantized_rows_vjp(x: Array[F], bits: int | None, range_gradient: bool) -> tuple[Array[F], Pullback]:
    """Return rows quantized between their extremes, and the pullback."""
    if bits is None:
        return x, lambda dy: (dy,)
    y, pull = fake_quantize_range_vjp(x, x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True), bits=bits)
    rows = np.arange(len(x))

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        dx, dlow, dhigh = pull(dy)
        if range_gradient:
            dx[rows, x.argmax(axis=1)] += dhigh[:, 0]
            dx[rows, x.argmin(axis=1)] += dlow[:, 0]
        return (dx,)

    return y, pullback


def smooth_init(x: Array[F], weight: Array[F], *, alpha: float = 0.5, shift: bool = True) -> tuple[Array[F], Array[F]]:
    """Return the diagonal transform that shares the difficulty between activations and weights, and a shift.

    Parameters
    ----------
    x : array (T, K)
        Calibration data.
    weight : array (K, N)
    alpha : float in [0, 1]
        Share of the activations' range that the weights take over.
    shift : bool
        Centre each channel's range; otherwise the shift is 0.

    Returns
    -------
    transform : array (K, K)
        ``diag(max|x_k|^alpha / max|w_k|^(1 - alpha))``, at least 1e-5.
    shift : array (K,)
        The middle of each channel's range.

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes do not fit, ``x`` is empty or ``alpha`` is out of its range.

    References
    ----------
    Ma et al. (2024), arXiv 2403.12544; Xiao et al. (2023), arXiv 2211.10438, equation 4.

    Examples
    --------
    >>> smooth_init(np.array([[4.0, -1.0], [0.0, 1.0]]), np.ones((2, 3)))
    (array([[2., 0.],
           [0., 1.]]), array([2., 0.]))
    """
    x, weight = _checks.float_array(x, "x", ndim=2), _checks.float_array(weight, "weight", ndim=2)
    _checks.same_dtype("x", x, weight=weight)
    _checks.not_empty(x, "x", (0, 1))
    _checks.shape(weight, "weight", (x.shape[1], weight.shape[1]))
    _checks.not_empty(weight, "weight", (1,))
    _checks.in_range(alpha, "alpha", 0.0, 1.0)
    size = np.maximum(np.abs(x).max(axis=0), SMALLEST_SCALE) ** alpha
    weight_size = np.maximum(np.abs(weight).max(axis=1), SMALLEST_SCALE) ** (1 - alpha)
    diagonal = np.maximum(size / weight_size, SMALLEST_SCALE).astype(x.dtype)
    middle = (x.max(axis=0) / 2 + x.min(axis=0) / 2).astype(x.dtype)
    return np.diag(diagonal), middle if shift else np.zeros_like(middle)


@dataclass(frozen=True, eq=False)
class AffineQuantResult:
    """What :func:`fit_affine_quant` found: the best of the steps.

    Parameters
    ----------
    transform : array (K, K)
        P, with the mask multiplied in.
    inverse : array (K, K)
        Its inverse, to be folded into what comes before the layer.
    shift : array (K,)
    clip_high, clip_low : arrays (N,)
        Logits of the weights' ranges.
    weight, bias : arrays (K, N), (N,)
        Of the equivalent layer, the weights on their grid.
    n_iter : int
    history : dict of arrays
        ``loss``, before every step, and ``margin``, the dominance margin of P there.
    """

    transform: AnyArray
    inverse: AnyArray
    shift: AnyArray
    clip_high: AnyArray
    clip_low: AnyArray
    weight: AnyArray
    bias: AnyArray
    n_iter: int
    history: Mapping[str, AnyArray]


def fit_affine_quant(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    *,
    weight_bits: int = 4,
    bits: int | None = 4,
    n_epochs: int = 20,
    steps_per_epoch: int = 25,
    learning_rate: float = 5e-3,
    clip_learning_rate: float = 1e-2,
    stability: float = 0.1,
    diagonal_only: bool = False,
    block: int | None = None,
    shift: bool = True,
    x_quantized: Array[F] | None = None,
    callback: Callback | None = None,
) -> AffineQuantResult:
    """Learn transform, shift and clipping so that the quantized layer gives the float layer's outputs.

    Parameters
    ----------
    x : array (T, K)
        Calibration data.
    weight, bias : arrays (K, N), (N,)
    weight_bits : int, 2 to 16
    bits : int, 2 to 16, or None
        Of activations; None leaves them in float.
    n_epochs, steps_per_epoch : int >= 1
        The mask opens from epoch to epoch, over ``steps_per_epoch`` steps of Adam each.
    learning_rate, clip_learning_rate : float > 0
        For transform and shift, and for the clipping logits.
    stability : float > 0
        Factor on the entries off the diagonal.
    diagonal_only : bool
        Learn a factor for each channel only.
    block : int, optional
        Learn blocks of this side only; divides K.
    shift : bool
        Begin with centred channels.
    x_quantized : array (T, K), optional
        Inputs that the layer gets when earlier layers are quantized; the error on them is added to the loss.
    callback : function, optional
        See :class:`refnorm.solvers.Progress`; a true result ends the fit.

    Returns
    -------
    AffineQuantResult

    Raises
    ------
    TypeError, ValueError
        If a shape, a dtype or an option does not fit, or the transform becomes singular.

    Notes
    -----
    Computed in float64 whatever the dtype, so that the inverse costs no digits; the result is rounded.

    References
    ----------
    Ma et al. (2024), arXiv 2403.12544, section on optimization.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((64, 8)) * np.geomspace(0.1, 10, 8)
    >>> found = fit_affine_quant(x, rng.standard_normal((8, 4)), np.zeros(4), n_epochs=4, steps_per_epoch=10)
    >>> bool(found.history["loss"].min() < found.history["loss"][0]), found.n_iter
    (True, 40)
    """
    dtype = _checks.float_array(x, "x", ndim=2).dtype
    transform, middle = smooth_init(x, weight, shift=shift)
    x, weight, bias, transform, middle, _ = _checked(x, weight, bias, transform, middle, None)
    check_bits(weight_bits, "weight_bits")
    _checks.whole(n_epochs, "n_epochs", low=1)
    _checks.whole(steps_per_epoch, "steps_per_epoch", low=1)
    seen = [x.astype(np.float64)]
    if x_quantized is not None:
        seen.append(_checks.float_array(x_quantized, "x_quantized").astype(np.float64))
        _checks.shape(seen[1], "x_quantized", x.shape)
    weight, bias = weight.astype(np.float64), bias.astype(np.float64)
    targets = [inputs @ weight + bias for inputs in seen]
    logit = np.full(bias.shape, FIRST_CLIP_LOGIT)
    params = {"transform": transform.astype(np.float64), "shift": middle.astype(np.float64)}
    params |= {"clip_high": logit, "clip_low": logit}
    descent = Descent(
        {
            "transform": learning_rate,
            "shift": learning_rate,
            "clip_high": clip_learning_rate,
            "clip_low": clip_learning_rate,
        }
    )
    monitor = Monitor("fit_affine_quant", callback=callback, hint="use a smaller stability or learning_rate")
    best, best_loss = params, np.inf
    stopped = False
    for epoch in range(n_epochs):
        mask = gradual_mask(x.shape[1], epoch, n_epochs, stability=stability, block=1 if diagonal_only else block)
        for _ in range(0 if stopped else steps_per_epoch):
            loss, grads = 0.0, {name: np.zeros_like(value) for name, value in params.items()}
            for inputs, target in zip(seen, targets, strict=True):
                y, pull = affine_quant_linear_vjp(
                    inputs, weight, bias, *params.values(), mask=mask, weight_bits=weight_bits, bits=bits
                )
                error = y - target
                loss += float(np.mean(error * error))
                entries = pull(2 / error.size * error)[3:]
                grads = {name: grads[name] + entry for name, entry in zip(grads, entries, strict=True)}
            masked = params | {"transform": params["transform"] * mask}
            if loss < best_loss:
                best, best_loss = masked, loss
            stopped = monitor.record(loss=loss, margin=dominance_margin(masked["transform"]))
            if stopped:
                break
            params = descent.step(params, grads)
    p = best["transform"]
    quantized, _ = _clipped_weight_vjp(p @ weight, best["clip_high"], best["clip_low"], weight_bits)
    inverse = _solver(p)(np.eye(len(p)), 0)
    arrays = {"transform": p, "inverse": inverse, "weight": quantized, "bias": bias + best["shift"] @ weight}
    arrays |= {name: best[name] for name in ("shift", "clip_high", "clip_low")}
    rounded = {name: array.astype(dtype) for name, array in arrays.items()}
    return AffineQuantResult(**rounded, n_iter=monitor.n_iter, history=monitor.history())
