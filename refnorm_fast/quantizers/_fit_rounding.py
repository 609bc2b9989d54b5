"""Learning roundings with the kernels of :mod:`refnorm_fast.quantizers`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refnorm._typing import Array, F
from refnorm.quantizers import RoundingResult
from refnorm.quantizers import _gradient_ptq as reference
from refnorm.solvers._monitor import Callback
from refnorm_fast.quantizers._rounding import rectified_sigmoid_vjp, rounding_regulariser_vjp, soft_quantize_vjp


def fit_rounding(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    *,
    bits: int,
    loss: str = "mse",
    learn: Sequence[str] = ("rounding",),
    variable: str = "sigmoid",
    power: float = 1.0,
    method: str = "mse",
    optimizer: str = "adam",
    learning_rate: float = 1e-2,
    other_learning_rate: float = 1e-3,
    n_iter: int = 2000,
    penalty: float = 0.01,
    exponents: tuple[float, float] = (20.0, 2.0),
    warmup: float = 0.2,
    activation: str | None = None,
    x_quantized: Array[F] | None = None,
    batch_size: int | None = None,
    rng: np.random.Generator | None = None,
    callback: Callback | None = None,
) -> RoundingResult:
    """Learn the rounding of a layer's weights by the error of the layer's output.

    Parameters, result and errors are those of :func:`refnorm.quantizers.fit_rounding`; only the last digits of a step differ.

    Examples
    --------
    >>> x, weight = np.ones((4, 2)), np.array([[0.5], [0.5]])
    >>> found = fit_rounding(x + np.eye(4, 2) * 1e-3, weight, np.zeros(1), bits=2, n_iter=300)
    >>> bool(abs((x @ found.weight)[0, 0] - 1) < 0.2)
    True
    """
    return reference._fit_rounding(
        reference.Operations(soft_quantize_vjp, rectified_sigmoid_vjp, rounding_regulariser_vjp),
        x,
        weight,
        bias,
        bits=bits,
        loss=loss,
        learn=learn,
        variable=variable,
        power=power,
        method=method,
        optimizer=optimizer,
        learning_rate=learning_rate,
        other_learning_rate=other_learning_rate,
        n_iter=n_iter,
        penalty=penalty,
        exponents=exponents,
        warmup=warmup,
        activation=activation,
        x_quantized=x_quantized,
        batch_size=batch_size,
        rng=rng,
        callback=callback,
    )
