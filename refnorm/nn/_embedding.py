"""Embedding: a table looked up by integer.

y[i] = table[ids[i]]
"""

from __future__ import annotations

from typing import cast

import numpy as np

from refnorm import _checks
from refnorm._typing import Array, F, IntArray, Method, Pullback

METHOD = Method(
    title="Embedding lookup",
    authors="Bengio, Ducharme, Vincent, Jauvin",
    year=2003,
    arxiv=None,
    functions=("embedding",),
    chapter="nn/embedding",
    paper=False,
)


def embedding(ids: IntArray, table: Array[F]) -> Array[F]:
    """Return row ``ids[...]`` of a table.

    Parameters
    ----------
    ids : integer array (...)
        Row numbers from 0 to V - 1.
    table : array (V, H)
        One row a word.

    Returns
    -------
    array (..., H), dtype of ``table``

    Raises
    ------
    TypeError
        If ``ids`` are not integers, or ``table`` is not float32 or float64.
    ValueError
        If an id is negative or above V - 1, or ``table`` is not a matrix.

    Notes
    -----
    The same as multiplying one-hot rows by ``table``, at the price of a copy.

    References
    ----------
    Bengio, Ducharme, Vincent, Jauvin (2003), A neural probabilistic language model, section 2.

    Examples
    --------
    >>> embedding(np.array([2, 0]), np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    array([[5., 6.],
           [1., 2.]])
    """
    return embedding_vjp(ids, table)[0]


def embedding_vjp(ids: IntArray, table: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`embedding` and its pullback ``dy -> (dtable,)``.

    Parameters, errors and references are those of :func:`embedding`.
    """
    table = _checks.float_array(table, "table", ndim=2)
    ids = cast(IntArray, _checks.integer_array(ids, "ids", low=0, high=len(table) - 1))
    y: Array[F] = table[ids]

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        # The lookup is linear in the table: one-hot rows times table. Its adjoint adds each cotangent row
        # to the row that it came from; rows that were never looked up get 0. `add.at` does not lose the
        # repeats, as `dtable[ids] += dy` would.
        dtable = np.zeros_like(table)
        np.add.at(dtable, ids, dy)
        return (dtable,)

    return y, pullback
