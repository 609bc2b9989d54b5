"""TrAct: train the pre-activations of a first layer, through a closed-form change of its weights.

dweight = dz^T x (x^T x / n + damping I)^-1        (forward pass and all other gradients as usual)
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.nn import conv2d, conv2d_vjp, linear, linear_vjp
from refnorm.nn._conv2d import two_whole, windows

METHOD = Method(
    title="TrAct: Making First-layer Pre-Activations Trainable",
    authors="Petersen, Borgelt, Ermon",
    year=2024,
    arxiv="2410.23970",
    functions=("patch_gram", "tract_conv2d", "tract_linear", "tract_weight_gradient"),
    chapter="solvers/first_layer_activation_training",
)

_FORMS = ("auto", "primal", "dual")


def tract_weight_gradient(x: Array[F], dz: Array[F], *, damping: float = 0.1, form: str = "auto") -> Array[F]:
    """Return the change of the weights that moves the pre-activations against their gradient.

    Parameters
    ----------
    x : array (..., I)
        Inputs of the layer; all axes but the last are the n examples.
    dz : array (..., O)
        Gradient of the loss with respect to the pre-activations.
    damping : float > 0
        Ridge penalty on the change. With inputs of variance 1, 0.1 amplifies weak directions by at most 10.
    form : ``"auto"``, ``"primal"`` or ``"dual"``
        Size of the system that is solved: inputs, or examples; ``"auto"`` takes the smaller.

    Returns
    -------
    array (O, I), dtype of ``x``
        Takes the place of ``dz^T x`` in any optimizer.

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, there is no example, or ``damping`` is not > 0.

    Notes
    -----
    ``dz^T x (x^T x / n + damping I)^-1 = dz^T (x x^T / n + damping I)^-1 x``, by a Cholesky factor in
    float64. For ``damping -> infinity``, ``damping`` times the result is the ordinary gradient.

    References
    ----------
    Petersen, Borgelt, Ermon (2024), arXiv 2410.23970.

    Examples
    --------
    >>> tract_weight_gradient(np.array([[1.0, 2.0]]), np.array([[1.0]])).round(6)
    array([[0.196078, 0.392157]])
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    dz = _checks.float_array(dz, "dz", min_ndim=1)
    _checks.same_dtype("x", x, dz=dz)
    _checks.shape(dz, "dz", (*x.shape[:-1], dz.shape[-1]))
    _checks.positive(damping, "damping")
    _checks.one_of(form, "form", _FORMS)
    _checks.not_empty(x, "x", range(x.ndim))
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    deltas = dz.reshape(len(rows), dz.shape[-1]).astype(np.float64)
    examples, inputs = rows.shape
    if form == "dual" or (form == "auto" and examples < inputs):
        return np.asarray(_damped_solve(rows @ rows.T, examples, damping, deltas).T @ rows, dtype=x.dtype)
    return np.asarray(_damped_solve(rows.T @ rows, examples, damping, rows.T @ deltas).T, dtype=x.dtype)


def _damped_solve(gram: AnyArray, examples: int, damping: float, right: AnyArray) -> AnyArray:
    """Solve ``(gram / examples + damping I) y = right``; its condition is at most ``1 + largest / damping``."""
    system = gram / examples
    system[np.diag_indices_from(system)] += damping
    return np.asarray(scipy.linalg.cho_solve(scipy.linalg.cho_factor(system), right))


def tract_linear(x: Array[F], weight: Array[F], bias: Array[F] | None = None) -> Array[F]:
    """Apply a linear layer, ``x weight^T + bias``; only its backward pass is special.

    Parameters
    ----------
    x : array (..., I)
        Inputs, for example pixels; all axes but the last are examples.
    weight : array (O, I)
        Row ``o`` holds the weights of output ``o``.
    bias : array (O,), optional

    Returns
    -------
    array (..., O), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs; in the pullback's place also if there is no example or ``damping`` is
        not > 0.

    Notes
    -----
    :func:`tract_linear_vjp` takes ``damping``, by default 0.1. Its pullback gives ``dx = dz weight`` and
    ``dbias = sum dz`` as usual, but :func:`tract_weight_gradient` for the weight: the covariance of the
    inputs counts as a constant. It is the gradient of no loss.

    References
    ----------
    Petersen, Borgelt, Ermon (2024), arXiv 2410.23970.

    Examples
    --------
    >>> tract_linear(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([0.5]))
    array([[11.5]])
    """
    x, weight = _linear_layer(x, weight)
    return linear(x, weight.T, bias)


def tract_linear_vjp(
    x: Array[F], weight: Array[F], bias: Array[F] | None = None, *, damping: float = 0.1
) -> tuple[Array[F], Pullback]:
    """Return :func:`tract_linear` and its pullback ``dz -> (dx, dweight, dbias)`` with TrAct's ``dweight``."""
    x, weight = _linear_layer(x, weight)
    _checks.positive(damping, "damping")
    _checks.not_empty(x, "x", range(x.ndim))
    z, ordinary = linear_vjp(x, weight.T, bias)

    def pullback(dz: Array[F]) -> tuple[Array[F], Array[F], Array[F] | None]:
        # Ask for z - learning_rate n dz and fit the change of the weights by ridge regression:
        #   min 1/n |x dweight^T + learning_rate n dz|^2 + damping |dweight|^2.
        # Its solution is -learning_rate times this gradient, so a plain descent step takes it.
        dx, _, dbias = ordinary(dz)
        return dx, tract_weight_gradient(x, np.asarray(dz, dtype=x.dtype), damping=damping), dbias

    return z, pullback


def tract_conv2d(
    x: Array[F],
    weight: Array[F],
    bias: Array[F] | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> Array[F]:
    """Apply a convolution, :func:`refnorm.nn.conv2d`; only its backward pass is special.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    weight : array (O, C, A, B)
    bias : array (O,), optional
    stride, padding : int or two ints

    Returns
    -------
    array (N, O, H', W'), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.nn.conv2d`; in the pullback's place also if there is no patch or ``damping`` is not > 0.

    Notes
    -----
    A convolution is a linear layer on patches. :func:`tract_conv2d_vjp` takes ``damping`` and treats the
    N H' W' patches as the examples of :func:`tract_linear`.

    References
    ----------
    Petersen, Borgelt, Ermon (2024), arXiv 2410.23970.

    Examples
    --------
    >>> tract_conv2d(np.arange(4.0).reshape(1, 1, 2, 2), np.ones((1, 1, 2, 2)))
    array([[[[6.]]]])
    """
    return conv2d(x, weight, bias, stride=stride, padding=padding)


def tract_conv2d_vjp(
    x: Array[F],
    weight: Array[F],
    bias: Array[F] | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    damping: float = 0.1,
) -> tuple[Array[F], Pullback]:
    """Return :func:`tract_conv2d` and its pullback ``dz -> (dx, dweight, dbias)`` with TrAct's ``dweight``."""
    _checks.positive(damping, "damping")
    z, ordinary = conv2d_vjp(x, weight, bias, stride=stride, padding=padding)
    x, weight = np.asarray(x), np.asarray(weight)
    _checks.not_empty(x, "x", range(4))
    outputs, size = len(weight), (int(weight.shape[2]), int(weight.shape[3]))
    patches, inputs = z.size // max(outputs, 1), weight[0].size if outputs else 0

    def pullback(dz: Array[F]) -> tuple[Array[F], Array[F], Array[F] | None]:
        dx, dweight, dbias = ordinary(dz)
        if patches < inputs:
            rows = _patches(x, size, stride, padding).transpose(0, 4, 5, 1, 2, 3).reshape(patches, inputs)
            deltas = np.asarray(dz, dtype=x.dtype).transpose(0, 2, 3, 1).reshape(patches, outputs)
            fitted = tract_weight_gradient(rows, deltas, damping=damping, form="dual")
        else:
            gram = patch_gram(x.astype(np.float64), size, stride=stride, padding=padding)
            flat = dweight.reshape(outputs, inputs).astype(np.float64)
            fitted = _damped_solve(gram, patches, damping, flat.T).T
        return dx, fitted.reshape(weight.shape).astype(x.dtype), dbias

    return z, pullback


def patch_gram(
    x: Array[F],
    kernel: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> Array[F]:
    """Return the sum of ``p p^T`` over all patches ``p`` of images, without a list of the patches.

    Parameters
    ----------
    x : array (N, C, H, W)
    kernel : int or two ints
        Height A and width B of a patch.
    stride, padding : int or two ints
        As in :func:`refnorm.nn.conv2d`.

    Returns
    -------
    array (C A B, C A B), dtype of ``x``
        Entries in the order channel, row, column of the patch; exactly symmetric.

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a float array of images at least as large as a patch, or a number is outside its range.

    Notes
    -----
    The block of two places in the patch is a product of two shifted images. Only places in order are
    multiplied, the other half follows by symmetry. Storing the patches would take A B times the images.

    Examples
    --------
    >>> patch_gram(np.array([[[[1.0, 2.0, 3.0]]]]), (1, 2))
    array([[ 5.,  8.],
           [ 8., 13.]])
    """
    x = _checks.float_array(x, "x", ndim=4)
    size = two_whole(kernel, "kernel", 1)
    view = _patches(x, size, stride, padding)
    channels, places = x.shape[1], size[0] * size[1]

    def shifted(place: int) -> Array[F]:
        row, column = divmod(place, size[1])
        pixels: Array[F] = view[:, :, row, column].swapaxes(0, 1).reshape(channels, -1)
        return pixels

    gram = np.zeros((channels, places, channels, places), x.dtype)
    for i in range(places):
        first = shifted(i)
        for j in range(i + 1):
            gram[:, i, :, j] = first @ shifted(j).T
            gram[:, j, :, i] = gram[:, i, :, j].T
    return gram.reshape(channels * places, channels * places)


def _patches(
    x: AnyArray, size: tuple[int, int], stride: int | tuple[int, int], padding: int | tuple[int, int]
) -> AnyArray:
    """Return the view (N, C, A, B, H', W') of all patches of padded images."""
    step, pad = two_whole(stride, "stride", 1), two_whole(padding, "padding", 0)
    padded = np.pad(x, ((0, 0), (0, 0), (pad[0], pad[0]), (pad[1], pad[1])))
    return windows(padded, size, step).transpose(0, 1, 4, 5, 2, 3)


def _linear_layer(x: AnyArray, weight: AnyArray) -> tuple[AnyArray, AnyArray]:
    x = _checks.float_array(x, "x", min_ndim=1)
    weight = _checks.float_array(weight, "weight", ndim=2)
    _checks.shape(weight, "weight", (len(weight), x.shape[-1]))
    return x, weight
