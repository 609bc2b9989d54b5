"""LLM.int8(): vector-wise int8 matrix multiplication with mixed-precision decomposition.

    y = x[:, outliers] @ weight[outliers]  +  outer(c_x, c_w) / 127^2 * (x_8 @ w_8)  +  bias

An activation of the sum and the addition of a residual branch may follow in the same call.

``c_x`` are row constants, ``c_w`` column constants; columns of ``x`` that hold a number of at least the
threshold are outliers, multiplied in float and left out of the int8 product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.nn import gelu_vjp, relu_vjp
from refnorm.quantizers._int8 import (
    HIGHEST,
    absmax_quantize,
    check_matrices,
    check_terms,
    codes,
    int8_matmul,
    matmul_vectorwise,
    rescale,
)

METHOD = Method(
    title="LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale",
    authors="Dettmers, Lewis, Belkada, Zettlemoyer",
    year=2022,
    arxiv="2208.07339",
    functions=(
        "absmax_quantize",
        "layer_norm_absmax_quantize",
        "rms_norm_absmax_quantize",
        "zeropoint_quantize",
        "vectorwise_quantize",
        "Int8Weight",
        "quantize_weight",
        "int8_matmul",
        "llm_int8_linear",
        "int8_matmul_trainable",
        "matmul_tensorwise",
        "matmul_rowwise",
        "matmul_vectorwise",
        "matmul_zeropoint",
        "outlier_features",
    ),
    chapter="quantizers/llm_int8",
)

ROW_STATS = ("elements", "columns")
OUTLIER_WEIGHTS = ("dequantized", "float")

ACTIVATIONS = ("gelu", "gelu_tanh", "relu")
"""What :func:`llm_int8_linear` accepts as ``activation`` besides None."""


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """The weights of a linear layer in int8, made by :func:`quantize_weight`.

    Parameters
    ----------
    q : int8 array (N, K)
        Codes from -127 to 127, one output a row: the transpose of the float weight.
    scale : float array (N,)
        Largest magnitude of each output's weights; a code stands for ``q * scale / 127``.
    col_sum : int32 array (N,)
        Sum of each output's codes, which kernels with unsigned activations subtract.

    Examples
    --------
    >>> quantize_weight(np.array([[0.5], [-1.0]])).q
    array([[  64, -127]], dtype=int8)
    """

    q: IntArray
    scale: AnyArray
    col_sum: IntArray


def quantize_weight(weight: Array[F]) -> Int8Weight:
    """Quantize a weight matrix once, with one constant for each output.

    Parameters
    ----------
    weight : array (K, N)
        Finite; inputs by outputs.

    Returns
    -------
    Int8Weight
        ``scale`` has the dtype of ``weight``.

    Raises
    ------
    TypeError
        If ``weight`` is not float32 or float64.
    ValueError
        If it is not a matrix, holds NaN or infinity, or K > 133144.

    Examples
    --------
    >>> packed = quantize_weight(np.array([[0.5, 0.0], [-1.0, 0.0]]))
    >>> packed.scale, packed.col_sum
    (array([1., 0.]), array([-63,   0], dtype=int32))
    """
    weight = _checks.float_array(weight, "weight", ndim=2)
    check_terms(weight.shape[0], "weight")
    q, scale = absmax_quantize(weight, axis=1)
    rows = np.ascontiguousarray(q.T)
    return Int8Weight(rows, scale.reshape(-1), rows.sum(axis=1, dtype=np.int32))


def vectorwise_quantize(
    x: Array[F], *, threshold: float = 0.0, row_stats: str = "elements"
) -> tuple[IntArray, Array[F], IntArray]:
    """Quantize the rows of a matrix to 8 bits, leaving outlier columns out.

    Parameters
    ----------
    x : array (T, K)
        Finite numbers.
    threshold : float >= 0
        A column with a magnitude of at least this is an outlier; 0 means that none is.
    row_stats : {"elements", "columns"}
        What a row's constant is taken over: every entry below the threshold, or the columns that are not
        outliers.

    Returns
    -------
    q : int8 array (T, K)
        Codes, 0 in outlier columns.
    c : array (T,), dtype of ``x``
        Row constants; ``q * c[:, None] / 127`` approximates the columns that are left.
    outlier_cols : intp array
        Outlier columns, ascending.

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64.
    ValueError
        If ``x`` is not a matrix, holds NaN or infinity, or an option is out of its range.

    References
    ----------
    Dettmers et al. (2022), arXiv 2208.07339, section 3.2.

    Examples
    --------
    >>> vectorwise_quantize(np.array([[1.0, -2.0, 0.5], [0.25, 3.0, 8.0]]), threshold=6.0)
    (array([[  64, -127, 0], [ 11,  127, 0]], dtype=int8), array([2., 3.]), array([2]))
    """
    x = _checks.float_array(x, "x", ndim=2)
    _checks.finite(x, "x")
    _checks.non_negative(threshold, "threshold")
    _checks.one_of(row_stats, "row_stats", ROW_STATS)
    magnitude = np.abs(x)
    large = magnitude >= threshold if threshold > 0 else np.zeros(x.shape, bool)
    outlier = large.any(axis=0)
    ignored = large if row_stats == "elements" else outlier
    c: Array[F] = np.where(ignored, 0, magnitude).max(axis=1, initial=0)
    q = codes(np.where(outlier, 0, x), c[:, None])
    return q, c, np.flatnonzero(outlier)


def llm_int8_linear(
    x: Array[F],
    weight: Int8Weight,
    bias: Array[F] | None = None,
    *,
    threshold: float = 6.0,
    row_stats: str = "elements",
    outlier_weights: str = "dequantized",
    w_float: Array[F] | None = None,
    activation: str | None = None,
    residual: Array[F] | None = None,
) -> Array[F]:
    """Apply a linear layer whose weights are int8.

    Parameters
    ----------
    x : array (..., K)
        Finite inputs; a column is an outlier, or not, for all leading axes together.
    weight : Int8Weight of (N, K)
    bias : array (N,) or None
    threshold : float >= 0
        Magnitude from which a column of ``x`` is multiplied in float; 0 switches the decomposition off.
    row_stats : {"elements", "columns"}
        As in :func:`vectorwise_quantize`: ``"elements"`` as in the authors' code, ``"columns"`` as in the paper.
    outlier_weights : {"dequantized", "float"}
        What outlier columns are multiplied by: the int8 weights, or ``w_float``.
    w_float : array (K, N) or None
        The weights before quantization, read only for ``outlier_weights="float"``.
    activation : {"gelu", "gelu_tanh", "relu"} or None
        Applied to the layer's sum; ``"gelu_tanh"`` is GELU in its tanh form.
    residual : array (..., N) or None
        Added after the activation.

    Returns
    -------
    array (..., N), dtype of ``x``

    Raises
    ------
    TypeError
        If a dtype differs from that of ``x``, which includes ``weight.scale``.
    ValueError
        If a shape does not fit, ``x`` holds NaN or infinity, K > 133144, an option is out of its range, or
        ``w_float`` is missing.

    Notes
    -----
    ``y = activation(x[:, O] @ w[O] + outer(c_x, c_w) / 127^2 * (x_8 @ w_8) + bias) + residual``: the integer
    product is exact, the rest is float64 and rounded once to the dtype of ``x``.

    References
    ----------
    Dettmers et al. (2022), arXiv 2208.07339, equation 8 and Table 1.

    Examples
    --------
    >>> weight = quantize_weight(np.array([[0.5, -1.0], [1.0, 0.25], [-0.1, 0.2]]))
    >>> llm_int8_linear(np.array([[1.0, -2.0, 0.5], [0.25, 3.0, 8.0]]), weight).round(6)
    array([[-1.543276, -1.413386], [ 2.312047,  2.070866]])
    """
    return llm_int8_linear_vjp(
        x,
        weight,
        bias,
        threshold=threshold,
        row_stats=row_stats,
        outlier_weights=outlier_weights,
        w_float=w_float,
        activation=activation,
        residual=residual,
    )[0]


def llm_int8_linear_vjp(
    x: Array[F],
    weight: Int8Weight,
    bias: Array[F] | None = None,
    *,
    threshold: float = 6.0,
    row_stats: str = "elements",
    outlier_weights: str = "dequantized",
    w_float: Array[F] | None = None,
    activation: str | None = None,
    residual: Array[F] | None = None,
    scale_gradient: bool = False,
) -> tuple[Array[F], Pullback]:
    """Return :func:`llm_int8_linear` and its straight-through pullback ``dy -> (dx, dbias)``.

    The codes of ``x`` pass gradients as if they were not rounded and the row constants are held; the int8
    weights are frozen. ``dbias`` is None without a bias. With a residual, its cotangent follows as the last.

    Parameters, errors and references are those of :func:`llm_int8_linear`, and

    Parameters
    ----------
    scale_gradient : bool
        Return ``(dx, dscale, dbias)`` in place of ``(dx, dbias)``, with the cotangent of ``weight.scale``, the codes held.
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    outputs, terms = _check_weight(weight, x)
    if bias is not None:
        bias = _checks.float_array(bias, "bias")
        _checks.same_dtype("x", x, bias=bias)
        _checks.shape(bias, "bias", (outputs,))
    _checks.one_of(outlier_weights, "outlier_weights", OUTLIER_WEIGHTS)
    if activation is not None:
        _checks.one_of(activation, "activation", ACTIVATIONS)
    shape = (*x.shape[:-1], outputs)
    if residual is not None:
        residual = _checks.float_array(residual, "residual")
        _checks.same_dtype("x", x, residual=residual)
        _checks.shape(residual, "residual", shape)
    scale = weight.scale.astype(np.float64)
    float_rows = _float_weight(w_float, x, (terms, outputs)) if outlier_weights == "float" else None

    rows = x.reshape(int(np.prod(x.shape[:-1])), terms)
    q, c, outliers = vectorwise_quantize(rows, threshold=threshold, row_stats=row_stats)
    # Both branches without the column constants, in which the dequantized layer is linear.
    regular = rescale(int8_matmul(q, weight.q), c[:, None], np.ones(1))
    large = rows[:, outliers].astype(np.float64)
    if float_rows is None:
        regular = regular + large @ (weight.q[:, outliers].T / HIGHEST)
        product = regular * scale
    else:
        product = regular * scale + large @ float_rows[outliers]
    summed = (product if bias is None else product + bias).reshape(shape)
    activated, pull_activation = _activate_vjp(summed, activation)
    y: Array[F] = (activated if residual is None else activated + residual).astype(x.dtype)

    def pullback(dy: Array[F]) -> tuple[Array[F] | None, ...]:
        # x_8 c_x / 127 stands for x with slope 1, so the layer is x @ w_hat + bias for the weights w_hat
        # that it really multiplied with, outlier columns included.
        w_hat = weight.q.T * (scale / HIGHEST)
        if float_rows is not None:
            w_hat[outliers] = float_rows[outliers]
        g = pull_activation(dy.reshape(shape).astype(np.float64))[0].reshape(len(rows), outputs)
        dx: Array[F] = (g @ w_hat.T).astype(x.dtype).reshape(x.shape)
        dbias = None if bias is None else g.sum(axis=0).astype(x.dtype)
        added = () if residual is None else (dy.astype(x.dtype).reshape(shape),)
        if not scale_gradient:
            return dx, dbias, *added
        return dx, (g * regular).sum(axis=0).astype(x.dtype), dbias, *added

    return y, pullback


def _activate_vjp(x: AnyArray, activation: str | None) -> tuple[AnyArray, Pullback]:
    if activation is None:
        return x, lambda dy: (dy,)
    if activation == "relu":
        return relu_vjp(x)
    return gelu_vjp(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def int8_matmul_trainable(x: Array[F], weight: Array[F], *, threshold: float = 6.0) -> Array[F]:
    """Multiply by float weights in int8, quantizing them at every call: the layer while it is trained.

    Parameters
    ----------
    x : array (..., K)
        Finite inputs.
    weight : array (K, N), dtype of ``x``
        Finite weights; outlier columns of ``x`` meet them in float.
    threshold : float >= 0
        As in :func:`llm_int8_linear`.

    Returns
    -------
    array (..., N), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`llm_int8_linear`.

    References
    ----------
    Dettmers et al. (2022), arXiv 2208.07339, section 3; the backward pass is that of the authors' code.

    Examples
    --------
    >>> int8_matmul_trainable(np.array([[1.0, -2.0, 10.0]]), np.array([[1.0], [0.5], [0.25]])).round(4)
    array([[2.5]])
    """
    return int8_matmul_trainable_vjp(x, weight, threshold=threshold)[0]


def int8_matmul_trainable_vjp(x: Array[F], weight: Array[F], *, threshold: float = 6.0) -> tuple[Array[F], Pullback]:
    """Return :func:`int8_matmul_trainable` and its pullback ``dy -> (dx, dweight)``.

    ``dx`` is straight-through, as in :func:`llm_int8_linear_vjp`. ``dweight`` is an int8 estimate of
    ``x.T @ dy``: columns of both factors are quantized with constants of their own, and the rows of outlier
    columns are computed in float. It is not linear in ``dy``. Parameters, errors and references are those of
    :func:`int8_matmul_trainable`.
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    rows, weight = check_matrices(x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1]), weight)
    check_terms(len(rows), "x")
    packed = quantize_weight(weight)
    y, linear_pullback = llm_int8_linear_vjp(x, packed, threshold=threshold, outlier_weights="float", w_float=weight)
    _, _, outliers = vectorwise_quantize(rows, threshold=threshold)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F]]:
        g = dy.reshape(len(rows), weight.shape[1])
        _checks.finite(g, "dy")
        # One constant for each column of x and of dy: the sum over the rows t leaves k and n free, and only
        # constants of k and n factor out of it.
        dweight = matmul_vectorwise(rows.T, g)
        dweight[outliers] = rows[:, outliers].T @ g
        return linear_pullback(dy)[0], dweight

    return y, pullback


def outlier_features(
    hidden: Sequence[Array[F]],
    threshold: float = 6.0,
    layer_fraction: float = 0.25,
    sequence_fraction: float = 0.06,
) -> IntArray:
    """Find the feature dimensions that are outliers throughout a model.

    Parameters
    ----------
    hidden : sequence of arrays (T, K)
        Hidden states of each layer; T may differ, K may not.
    threshold : float > 0
        Magnitude from which an entry counts.
    layer_fraction, sequence_fraction : float in [0, 1]
        A dimension is an outlier feature if it has such an entry in at least this share of the layers, and
        at at least this share of all positions of all layers.

    Returns
    -------
    intp array
        Outlier dimensions, ascending.

    Raises
    ------
    TypeError, ValueError
        If there is no layer, a shape or dtype does not fit, a number is not finite, or an option is out of
        its range.

    References
    ----------
    Dettmers et al. (2022), arXiv 2208.07339, section 4.

    Examples
    --------
    >>> layers = [np.array([[1.0, 7.0, 9.0], [2.0, -8.0, 0.0]]), np.array([[0.5, 6.0, 0.0], [1.0, 7.0, 0.0]])]
    >>> outlier_features(layers, layer_fraction=1.0)
    array([1])
    """
    _checks.positive(threshold, "threshold")
    _checks.in_range(layer_fraction, "layer_fraction", 0, 1)
    _checks.in_range(sequence_fraction, "sequence_fraction", 0, 1)
    layers = [_checks.float_array(layer, f"hidden[{i}]", ndim=2) for i, layer in enumerate(hidden)]
    if not layers:
        _checks.fail("hidden", "at least one layer", 0)
    for i, layer in enumerate(layers):
        _checks.finite(layer, f"hidden[{i}]")
        _checks.shape(layer, f"hidden[{i}]", (layer.shape[0], layers[0].shape[1]))
    large = [np.abs(layer) >= threshold for layer in layers]
    layer_count = np.sum([entry.any(axis=0) for entry in large], axis=0)
    position_count = np.sum([entry.sum(axis=0) for entry in large], axis=0)
    # Counts are compared with the product: a share of exactly 6 of 100 must not fall to a rounded quotient.
    many_layers = layer_count >= layer_fraction * len(layers)
    many_positions = position_count >= sequence_fraction * sum(len(layer) for layer in layers)
    return np.flatnonzero((layer_count > 0) & many_layers & many_positions)


def _check_weight(weight: Int8Weight, x: AnyArray) -> tuple[int, int]:
    """Return the outputs and inputs of a weight that fits ``x``, or raise."""
    q = _checks.integer_array(weight.q, "weight.q", ndim=2)
    scale = _checks.float_array(weight.scale, "weight.scale")
    _checks.same_dtype("x", x, **{"weight.scale": scale})
    _checks.shape(scale, "weight.scale", q.shape[:1])
    if q.shape[1] != x.shape[-1]:
        _checks.fail("x", f"shape (..., {q.shape[1]}) like weight.q", x.shape)
    check_terms(q.shape[1], "x")
    outputs, terms = q.shape
    return outputs, terms


def _float_weight(w_float: Array[F] | None, x: AnyArray, expected: tuple[int, int]) -> AnyArray:
    if w_float is None:
        _checks.fail("w_float", "the float weights for outlier_weights 'float'", None)
    array = _checks.float_array(w_float, "w_float")
    _checks.same_dtype("x", x, w_float=array)
    _checks.shape(array, "w_float", expected)
    _checks.finite(array, "w_float")
    return array.astype(np.float64)
