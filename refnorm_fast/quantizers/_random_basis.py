"""Adapters from random bases whose entries are made in registers, used there, and never stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm import quantizers as reference
from refnorm._typing import Array, F, Pullback
from refnorm.quantizers import NolaAdapter
from refnorm.quantizers import _random_basis_adapter as adapters
from refnorm_fast.quantizers import _basis


@dataclass(frozen=True)
class BasisGenerator(reference.BasisGenerator):
    """:class:`refnorm.quantizers.BasisGenerator`, the same numbers bit for bit.

    Its parameters and errors are the reference's. Sums run in float64 in one order, whatever ``chunk``: no basis exists.

    Examples
    --------
    >>> generator = BasisGenerator(7, (2, 3), n_basis=100)
    >>> bool((generator.bases(40, 42)[1] == generator.bases(41, 42)[0]).all())
    True
    >>> generator.combine(np.ones(100)).shape
    (2, 3)
    """

    def bases(self, start: int, stop: int) -> Array[np.float32]:
        """Return the basis arrays ``start`` to ``stop - 1``, a float32 array of shape ``(stop - start, *shape)``."""
        _checks.whole(start, "start", low=0, high=self.n_basis)
        _checks.whole(stop, "stop", low=start, high=self.n_basis)
        if not self._countable():
            return super().bases(start, stop)
        return _basis.bases(self.seed, self._size(), self._bound(), start, stop).reshape(stop - start, *self.shape)

    def combine(self, coefficients: Array[F], *, chunk: int = 64) -> Array[F]:
        """Return ``sum_i coefficients[i] basis[i]``; see :meth:`refnorm.quantizers.BasisGenerator.combine`."""
        coefficients = _checks.float_array(coefficients, "coefficients")
        _checks.shape(coefficients, "coefficients", (self.n_basis,))
        _checks.whole(chunk, "chunk", low=1)
        if not self._countable():
            return super().combine(coefficients, chunk=chunk)
        return _basis.combine(self.seed, self._size(), self._bound(), coefficients).reshape(self.shape)

    def project(self, cotangent: Array[F], *, chunk: int = 64) -> Array[F]:
        """Return the inner products of ``cotangent`` with all bases: the pullback of :meth:`combine`."""
        cotangent = _checks.float_array(cotangent, "cotangent")
        _checks.shape(cotangent, "cotangent", self.shape)
        _checks.whole(chunk, "chunk", low=1)
        if not self._countable():
            return super().project(cotangent, chunk=chunk)
        return _basis.project(self.seed, self._bound(), cotangent, self.n_basis)

    def _size(self) -> int:
        return int(np.prod(self.shape))

    def _countable(self) -> bool:
        """Whether 64 bits count all words."""
        return self.n_basis * self._size() < _basis.MOST_COUNTERS


def nola_linear(
    x: Array[F], weight: Array[F], coefficients_a: Array[F], coefficients_b: Array[F], adapter: NolaAdapter
) -> Array[F]:
    """Apply a linear layer with a change from random bases; see :func:`refnorm.quantizers.nola_linear`.

    Examples
    --------
    >>> adapter = reference.nola_init((2, 3), rank=4, n_basis=(5, 5), seed=0)
    >>> x, weight = np.ones((1, 3)), np.ones((2, 3))
    >>> nola_linear(x, weight, adapter.coefficients_a, adapter.coefficients_b, adapter)
    array([[3., 3.]])
    """
    return nola_linear_vjp(x, weight, coefficients_a, coefficients_b, adapter)[0]


def nola_linear_vjp(
    x: Array[F],
    weight: Array[F],
    coefficients_a: Array[F],
    coefficients_b: Array[F],
    adapter: NolaAdapter,
    *,
    train_weight: bool = False,
) -> tuple[Array[F], Pullback]:
    """Return :func:`nola_linear` and its pullback ``dy -> (dx, dweight, dcoefficients_a, dcoefficients_b)``."""
    return adapters._nola_linear_vjp(x, weight, coefficients_a, coefficients_b, adapter, train_weight, BasisGenerator)


def nola_delta(adapter: NolaAdapter) -> Array[Any]:
    """Return the change of the weight that an adapter stands for; see :func:`refnorm.quantizers.nola_delta`.

    Examples
    --------
    >>> adapter = reference.nola_init((4, 3), rank=2, n_basis=(5, 5), seed=0)
    >>> nola_delta(adapter).shape
    (4, 3)
    """
    return adapters._nola_delta(adapter, BasisGenerator)


def nola_merge(weight: Array[F], adapter: NolaAdapter) -> Array[F]:
    """Return the weight with the adapter's change added; see :func:`refnorm.quantizers.nola_merge`.

    Examples
    --------
    >>> nola_merge(np.eye(2), reference.nola_init((2, 2), rank=1, n_basis=(3, 3), seed=0))
    array([[1., 0.],
           [0., 1.]])
    """
    return adapters._nola_merge(weight, adapter, BasisGenerator)
