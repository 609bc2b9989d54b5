"""A norm and the quantizer that follows it: what an 8-bit linear layer reads."""

from __future__ import annotations

from refnorm import _checks
from refnorm._typing import Array, F, IntArray
from refnorm.norms import layer_norm, rms_norm
from refnorm.quantizers._affine import quantize
from refnorm.quantizers._int8 import absmax_quantize


def layer_norm_absmax_quantize(
    x: Array[F], gain: Array[F], bias: Array[F], *, eps: float = 1e-5
) -> tuple[IntArray, Array[F]]:
    """Normalize each vector and quantize it to 8 bits by its own largest magnitude.

    Parameters
    ----------
    x : array (..., H)
        Summed inputs of a layer.
    gain, bias : arrays (H,)
        Scale and shift of each normalized unit.
    eps : float > 0
        Added to the variance.

    Returns
    -------
    q : int8 array of the shape of ``x``
        Codes from -127 to 127; ``q * absmax / 127`` approximates the normalized vectors.
    absmax : array (..., 1), dtype of ``x``
        Largest magnitude of each normalized vector.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.layer_norm` and :func:`absmax_quantize`: NaN and infinity are refused.

    Notes
    -----
    ``absmax_quantize(layer_norm(x, gain, bias, eps=eps))``, one constant a vector: what an 8-bit linear layer
    reads after a norm.

    References
    ----------
    Ba, Kiros, Hinton (2016), arXiv 1607.06450; Dettmers et al. (2022), arXiv 2208.07339, section 2.1.

    Examples
    --------
    >>> import numpy as np
    >>> q, absmax = layer_norm_absmax_quantize(np.array([[1.0, 2.0, 3.0, 4.0]]), np.ones(4), np.zeros(4))
    >>> q, absmax.round(4)
    (array([[-127,  -42,   42,  127]], dtype=int8), array([[1.3416]]))
    """
    return _quantize_rows(layer_norm(x, gain, bias, eps=eps))


def layer_norm_quantize(
    x: Array[F], gain: Array[F], bias: Array[F], scale: float, zero_point: int, *, eps: float = 1e-5, lowest: int = -128
) -> IntArray:
    """Normalize each vector and quantize it to 8 bits on a given grid.

    Parameters
    ----------
    x : array (..., H)
        Summed inputs of a layer.
    gain, bias : arrays (H,)
        Scale and shift of each normalized unit.
    scale : float > 0
        Distance of two grid points.
    zero_point : int
        The code of 0, on the grid.
    eps : float > 0
        Added to the variance.
    lowest : -128 or 0
        The grid: codes from -128 to 127, or from 0 to 255.

    Returns
    -------
    int8 or uint8 array of the shape of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.layer_norm` and :func:`quantize`: NaN and infinity are refused.

    Notes
    -----
    ``quantize(layer_norm(x, gain, bias, eps=eps), scale, zero_point, signed=lowest < 0)``, for a grid that was
    calibrated before.

    References
    ----------
    Ba, Kiros, Hinton (2016), arXiv 1607.06450.

    Examples
    --------
    >>> import numpy as np
    >>> layer_norm_quantize(np.array([[1.0, 2.0, 3.0, 4.0]]), np.ones(4), np.zeros(4), 0.02, 0)
    array([[-67, -22,  22,  67]], dtype=int8)
    """
    _checks.one_of(lowest, "lowest", (-128, 0))
    return quantize(layer_norm(x, gain, bias, eps=eps), scale, zero_point, signed=lowest < 0)


def rms_norm_absmax_quantize(
    x: Array[F], gain: Array[F] | None = None, bias: Array[F] | None = None, *, eps: float = 1e-5
) -> tuple[IntArray, Array[F]]:
    """Divide each vector by its root mean square and quantize it to 8 bits by its own largest magnitude.

    Parameters
    ----------
    x : array (..., d)
    gain, bias : arrays (d,), optional
        Scale and shift of each entry; left out they are 1 and 0.
    eps : float > 0
        Added to the mean square.

    Returns
    -------
    q : int8 array of the shape of ``x``
        Codes from -127 to 127; ``q * absmax / 127`` approximates the normalized vectors.
    absmax : array (..., 1), dtype of ``x``
        Largest magnitude of each normalized vector.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.rms_norm` and :func:`absmax_quantize`: NaN and infinity are refused.

    Notes
    -----
    ``absmax_quantize(rms_norm(x, gain, bias, eps=eps))``, one constant a vector.

    References
    ----------
    Jiang, Gu, Zhu, Pan (2023), arXiv 2305.14858; Dettmers et al. (2022), arXiv 2208.07339, section 2.1.

    Examples
    --------
    >>> import numpy as np
    >>> q, absmax = rms_norm_absmax_quantize(np.array([[3.0, 4.0]]), eps=1e-12)
    >>> q, absmax.round(4)
    (array([[ 95, 127]], dtype=int8), array([[1.1314]]))
    """
    return _quantize_rows(rms_norm(x, gain, bias, eps=eps))


def rms_norm_quantize(
    x: Array[F],
    scale: float,
    zero_point: int,
    gain: Array[F] | None = None,
    bias: Array[F] | None = None,
    *,
    eps: float = 1e-5,
    lowest: int = -128,
) -> IntArray:
    """Divide each vector by its root mean square and quantize it to 8 bits on a given grid.

    Parameters
    ----------
    x : array (..., d)
    scale : float > 0
        Distance of two grid points.
    zero_point : int
        The code of 0, on the grid.
    gain, bias : arrays (d,), optional
        Scale and shift of each entry; left out they are 1 and 0.
    eps : float > 0
        Added to the mean square.
    lowest : -128 or 0
        The grid: codes from -128 to 127, or from 0 to 255.

    Returns
    -------
    int8 or uint8 array of the shape of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.rms_norm` and :func:`quantize`: NaN and infinity are refused.

    Notes
    -----
    ``quantize(rms_norm(x, gain, bias, eps=eps), scale, zero_point, signed=lowest < 0)``.

    References
    ----------
    Jiang, Gu, Zhu, Pan (2023), arXiv 2305.14858.

    Examples
    --------
    >>> import numpy as np
    >>> rms_norm_quantize(np.array([[3.0, 4.0]]), 0.01, 0, eps=1e-12)
    array([[ 85, 113]], dtype=int8)
    """
    _checks.one_of(lowest, "lowest", (-128, 0))
    return quantize(rms_norm(x, gain, bias, eps=eps), scale, zero_point, signed=lowest < 0)


def _quantize_rows(y: Array[F]) -> tuple[IntArray, Array[F]]:
    """Quantize every vector along the last axis by its own largest magnitude."""
    q, absmax = absmax_quantize(y.reshape(-1, y.shape[-1]), axis=0)
    return q.reshape(y.shape), absmax.reshape(*y.shape[:-1], 1)
