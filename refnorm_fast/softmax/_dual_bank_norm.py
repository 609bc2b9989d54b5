"""Similarities normalized by banks: the log-sum-exp down each bank's columns as a kernel, then one pass over the similarities.

The exponentials of the banks are all that is expensive. Without rows that are left out, and as a logarithm, the result is
the similarities times a number minus a number for each column. The other forms (``dynamic``, ``log=False``) are the
reference's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import refnorm.softmax as reference
from refnorm._typing import AnyArray, Array, F, Pullback
from refnorm.softmax._dual_bank_norm import _arguments as arguments
from refnorm_fast.softmax._core import _scaled_minus, logsumexp, softmax


def inverted_softmax(sim: Array[F], bank: Array[F], *, sharpness: float = 20.0, log: bool = True) -> Array[F]:
    """Divide each similarity by how similar its item is to a bank; see :func:`refnorm.softmax.inverted_softmax`.

    Examples
    --------
    >>> sim, bank = np.array([[0.9, 0.8], [0.7, 0.1]]), np.array([[0.9, 0.1], [0.8, 0.2]])
    >>> inverted_softmax(sim, bank, sharpness=10.0).round(4)
    array([[-0.3133,  5.6867],
           [-2.3133, -1.3133]])
    """
    checked = _plain(sim, {"bank": bank}, (sharpness,), log)
    if checked is None:
        return reference.inverted_softmax(sim, bank, sharpness=sharpness, log=log)
    return _log_normalized(*checked)


def inverted_softmax_vjp(
    sim: Array[F], bank: Array[F], *, sharpness: float = 20.0, log: bool = True
) -> tuple[Array[F], Pullback]:
    """Return :func:`inverted_softmax` and its pullback; see :func:`refnorm.softmax.inverted_softmax_vjp`."""
    checked = _plain(sim, {"bank": bank}, (sharpness,), log)
    if checked is None:
        return reference.inverted_softmax_vjp(sim, bank, sharpness=sharpness, log=log)
    return _log_normalized(*checked), _pullback(*checked)


def dual_bank_norm(
    sim: Array[F],
    query_bank: Array[F],
    gallery_bank: Array[F],
    *,
    query_sharpness: float = 1 / 1.99,
    gallery_sharpness: float = 3.0,
    k: int = 1,
    dynamic: bool = False,
    inactive: str = "exp",
    log: bool = True,
) -> Array[F]:
    """Normalize with a bank of queries and one of gallery items; see :func:`refnorm.softmax.dual_bank_norm`.

    Examples
    --------
    >>> sim, bank = np.array([[0.9, 0.8]]), np.array([[0.9, 0.1]])
    >>> dual_bank_norm(sim, bank, bank, query_sharpness=1.0, gallery_sharpness=1.0).round(4)
    array([[0. , 1.4]])
    """
    sharpness: dict[str, Any] = {"query_sharpness": query_sharpness, "gallery_sharpness": gallery_sharpness}
    options: dict[str, Any] = {"k": k, "dynamic": dynamic, "inactive": inactive, "log": log}
    checked = _both_plain(sim, query_bank, gallery_bank, sharpness, options)
    if checked is None:
        return reference.dual_bank_norm(sim, query_bank, gallery_bank, **sharpness, **options)
    return _log_normalized(*checked)


def dual_bank_norm_vjp(
    sim: Array[F],
    query_bank: Array[F],
    gallery_bank: Array[F],
    *,
    query_sharpness: float = 1 / 1.99,
    gallery_sharpness: float = 3.0,
    k: int = 1,
    dynamic: bool = False,
    inactive: str = "exp",
    log: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`dual_bank_norm` and its pullback; see :func:`refnorm.softmax.dual_bank_norm_vjp`."""
    sharpness: dict[str, Any] = {"query_sharpness": query_sharpness, "gallery_sharpness": gallery_sharpness}
    options: dict[str, Any] = {"k": k, "dynamic": dynamic, "inactive": inactive, "log": log}
    checked = _both_plain(sim, query_bank, gallery_bank, sharpness, options)
    if checked is None:
        return reference.dual_bank_norm_vjp(sim, query_bank, gallery_bank, **sharpness, **options)
    return _log_normalized(*checked), _pullback(*checked)


def _both_plain(
    sim: Array[F], query_bank: Array[F], gallery_bank: Array[F], sharpness: dict[str, Any], options: dict[str, Any]
) -> Any:
    if options["dynamic"] or options["inactive"] not in ("exp", "raw"):
        return None
    # Without `dynamic` no row is left out, but k is checked all the same.
    columns = np.shape(sim)[-1] if np.ndim(sim) else 0
    k = options["k"]
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= columns:
        return None
    banks = {"query_bank": query_bank, "gallery_bank": gallery_bank}
    return _plain(sim, banks, tuple(sharpness.values()), options["log"])


def _plain(
    sim: Array[F], banks: dict[str, AnyArray], sharpness: tuple[float, ...], log: bool
) -> tuple[AnyArray, list[AnyArray], tuple[float, ...]] | None:
    """The checked arguments, or None for what the reference computes or refuses."""
    usable = all(isinstance(s, (int, float, np.number)) and 0 < s < np.inf for s in sharpness)
    if not (usable and log is True):
        return None
    sim, arrays = arguments(sim, **banks)
    return sim, arrays, tuple(float(s) for s in sharpness)


def _log_normalized(sim: AnyArray, banks: list[AnyArray], sharpness: tuple[float, ...]) -> AnyArray:
    popularity = np.zeros(sim.shape[1])
    for bank, sharp in zip(banks, sharpness, strict=True):
        popularity += logsumexp(bank, axis=0, temperature=1 / sharp)
    # The difference may cancel, so it is formed in float64.
    return _scaled_minus(sim, sum(sharpness), popularity)


def _pullback(sim: AnyArray, banks: list[AnyArray], sharpness: tuple[float, ...]) -> Pullback:
    def pullback(dy: Array[F]) -> tuple[AnyArray, ...]:
        # Each column's log-sum-exp is taken off all rows: its cotangent is minus their sum, and the bank shares it by a
        # softmax down the column.
        dsim = np.multiply(dy, sum(sharpness), dtype=np.float64).astype(sim.dtype)
        asked = np.sum(dy, axis=0, dtype=np.float64)
        dbanks = []
        for bank, sharp in zip(banks, sharpness, strict=True):
            dbank = softmax(bank, axis=0, temperature=1 / sharp)
            np.multiply(dbank, -sharp * asked, out=dbank, casting="same_kind")
            dbanks.append(dbank)
        return dsim, *dbanks

    return pullback
