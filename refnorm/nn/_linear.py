"""Linear layer.

y = x @ weight + bias        (over the last axis)
"""

from __future__ import annotations

import numpy as np

from refnorm import _checks
from refnorm._typing import Array, F, Method, Pullback

METHOD = Method(
    title="Linear layer",
    authors="Rosenblatt; Rumelhart, Hinton, Williams (backward pass)",
    year=1986,
    arxiv=None,
    functions=("linear",),
    chapter="nn/linear",
    paper=False,
)


def linear(x: Array[F], weight: Array[F], bias: Array[F] | None = None) -> Array[F]:
    """Multiply the last axis by a matrix and add a bias.

    Parameters
    ----------
    x : array (..., I)
        Inputs; all axes but the last are examples.
    weight : array (I, O)
        Column ``o`` holds the weights of output ``o``.
    bias : array (O,), optional
        Added to every example.

    Returns
    -------
    array (..., O), dtype of ``x``

    Raises
    ------
    TypeError
        If an argument is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape does not fit.

    Notes
    -----
    ``y[..., o] = sum_i x[..., i] weight[i, o] + bias[o]``. The product is BLAS's, whose order of summation
    (and so the last bits) may depend on the number of examples. NaN or infinity in an example stays in
    that example; in a weight it reaches column ``o`` of all examples.

    References
    ----------
    Rumelhart, Hinton, Williams (1986), Learning representations by back-propagating errors, equation 1.

    Examples
    --------
    >>> linear(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0, 3.0], [0.0, 1.0, 4.0]]), np.array([0.5, 0.5, 0.5]))
    array([[ 1.5,  2.5, 11.5]])
    """
    return linear_vjp(x, weight, bias)[0]


def linear_vjp(x: Array[F], weight: Array[F], bias: Array[F] | None = None) -> tuple[Array[F], Pullback]:
    """Return :func:`linear` and its pullback ``dy -> (dx, dweight, dbias)``.

    The entry of a bias that was left out is ``None``. Parameters, errors and references are those of
    :func:`linear`.
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    weight = _checks.float_array(weight, "weight", ndim=2)
    bias = None if bias is None else _checks.float_array(bias, "bias")
    _checks.same_dtype("x", x, weight=weight, bias=bias)
    inputs, outputs = weight.shape
    _checks.shape(x, "x", (*x.shape[:-1], inputs))
    if bias is not None:
        _checks.shape(bias, "bias", (outputs,))

    # One matrix of examples: a stack of small products would call BLAS once an example.
    rows = x.reshape(-1, inputs) if x.size else np.zeros((int(np.prod(x.shape[:-1])), inputs), x.dtype)
    y: Array[F] = rows @ weight
    if bias is not None:
        y = y + bias

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F] | None]:
        # <dy, dx W> = <dy W^T, dx> and <dy, x dW> = <x^T dy, dW>: each factor's cotangent is dy times
        # the other factor, laid so that the shapes fit. The bias is broadcast, so its pullback sums.
        dy = np.asarray(dy).reshape(len(rows), outputs)
        dx = (dy @ weight.T).reshape(x.shape)
        return dx, rows.T @ dy, None if bias is None else dy.sum(axis=0)

    return y.reshape(*x.shape[:-1], outputs), pullback
