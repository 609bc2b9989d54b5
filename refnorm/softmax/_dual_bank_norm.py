"""Inverted softmax with one or two banks: retrieval without hubs, after training.

log y_qg = sharpness sim_qg - log sum_m exp(sharpness bank_mg)             (each gallery item pays for its popularity)
dual:      the sum of two of these, with a query bank and a gallery bank
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.softmax._cross_entropy import logsumexp_vjp

METHOD = Method(
    title="Balance Act: Mitigating Hubness in Cross-Modal Retrieval with Query and Gallery Banks",
    authors="Wang, Jian, Xue",
    year=2023,
    arxiv="2310.11612",
    functions=(
        "dual_bank_norm",
        "dynamic_inverted_softmax",
        "hubness_skewness",
        "inverted_softmax",
        "k_occurrence",
        "recall_at_k",
    ),
    chapter="softmax/dual_bank_norm",
)

INACTIVE = ("exp", "raw")


def inverted_softmax(sim: Array[F], bank: Array[F], *, sharpness: float = 20.0, log: bool = True) -> Array[F]:
    """Divide each similarity by how similar its gallery item is to a bank.

    Parameters
    ----------
    sim : array (Q, G)
        Similarity of queries to gallery items.
    bank : array (M, G)
        Similarity of the bank's items to the same gallery, M >= 1.
    sharpness : float > 0
        The inverse temperature.
    log : bool
        Return the logarithm, which ranks the same.

    Returns
    -------
    array (Q, G), dtype of ``sim``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If the columns differ, the bank is empty, an entry is not finite, or ``sharpness`` is not > 0.

    Notes
    -----
    ``exp(sharpness sim_qg) / sum_m exp(sharpness bank_mg)``. If the bank is ``sim`` itself, each column sums to 1:
    a softmax over the queries instead of the gallery.

    References
    ----------
    Smith et al. (2017), arXiv 1702.03859 (inverted softmax). Wang, Jian, Xue (2023), arXiv 2310.11612.

    Examples
    --------
    The first item is close to everything in the bank, and loses both queries.

    >>> sim, bank = np.array([[0.9, 0.8], [0.7, 0.1]]), np.array([[0.9, 0.1], [0.8, 0.2]])
    >>> inverted_softmax(sim, bank, sharpness=10.0).round(4)
    array([[-0.3133,  5.6867],
           [-2.3133, -1.3133]])
    """
    return inverted_softmax_vjp(sim, bank, sharpness=sharpness, log=log)[0]


def inverted_softmax_vjp(
    sim: Array[F], bank: Array[F], *, sharpness: float = 20.0, log: bool = True
) -> tuple[Array[F], Pullback]:
    """Return :func:`inverted_softmax` and its pullback ``dy -> (dsim, dbank)``.

    Parameters, errors and references are those of :func:`inverted_softmax`.
    """
    sim, (bank,) = _arguments(sim, bank=bank)
    _checks.positive(sharpness, "sharpness")
    value, to_both = _normalize(_wide(sim), _wide(bank), sharpness, None)
    return _finish(sim, value, to_both, log)


def dynamic_inverted_softmax(
    sim: Array[F],
    bank: Array[F],
    *,
    sharpness: float = 20.0,
    k: int = 1,
    inactive: str = "exp",
    log: bool = True,
) -> Array[F]:
    """Normalize only the queries whose best item is popular in the bank.

    Parameters
    ----------
    sim, bank, sharpness, log
        As in :func:`inverted_softmax`.
    k : int from 1 to G
        An item is popular if it is among the k best of some row of the bank; of equal ones the first.
    inactive : {"exp", "raw"}
        What other queries keep: ``exp(sharpness sim)``, or ``sim`` itself. With ``"raw"`` and ``log``, the row is
        ``sim``, which ranks the same.

    Returns
    -------
    array (Q, G), dtype of ``sim``

    Raises
    ------
    TypeError, ValueError
        As :func:`inverted_softmax`, or if ``k`` or ``inactive`` is not one of the above.

    References
    ----------
    Bogolin et al. (2022), arXiv 2112.12777 (dynamic inverted softmax). Wang, Jian, Xue (2023), arXiv 2310.11612.

    Examples
    --------
    >>> sim, bank = np.array([[0.9, 0.8], [0.1, 0.7]]), np.array([[0.9, 0.1], [0.8, 0.2]])
    >>> dynamic_inverted_softmax(sim, bank, sharpness=10.0).round(4)
    array([[-0.3133,  5.6867],
           [ 1.    ,  7.    ]])
    """
    options: dict[str, Any] = {"sharpness": sharpness, "k": k, "inactive": inactive, "log": log}
    return dynamic_inverted_softmax_vjp(sim, bank, **options)[0]


def dynamic_inverted_softmax_vjp(
    sim: Array[F],
    bank: Array[F],
    *,
    sharpness: float = 20.0,
    k: int = 1,
    inactive: str = "exp",
    log: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`dynamic_inverted_softmax` and its pullback ``dy -> (dsim, dbank)``.

    Which rows are normalized counts as constant. Parameters, errors and references are those of
    :func:`dynamic_inverted_softmax`.
    """
    sim, (bank,) = _arguments(sim, bank=bank)
    _checks.positive(sharpness, "sharpness")
    _checks.one_of(inactive, "inactive", INACTIVE)
    active = _active_rows(sim, bank, _checks.whole(k, "k", low=1, high=sim.shape[1]))
    value, to_both = _normalize(_wide(sim), _wide(bank), sharpness, active)
    raw = ~active if inactive == "raw" else np.zeros_like(active)
    return _finish(sim, value, to_both, log, raw)


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
    """Normalize with a bank of queries and a bank of gallery items, and multiply the two results.

    Parameters
    ----------
    sim : array (Q, G)
    query_bank : array (M, G)
        Similarity of queries set aside to the gallery.
    gallery_bank : array (N, G)
        Similarity of gallery items set aside to the gallery.
    query_sharpness, gallery_sharpness : floats > 0
    k, inactive
        As in :func:`dynamic_inverted_softmax`, for each bank by itself.
    dynamic : bool
        Whether only the queries whose best item is popular are normalized.
    log : bool
        Return the logarithm of the product. Rows with a factor left raw are the product itself in either case:
        a raw similarity may be negative.

    Returns
    -------
    array (Q, G), dtype of ``sim``

    Raises
    ------
    TypeError, ValueError
        As :func:`dynamic_inverted_softmax`.

    Notes
    -----
    Without ``dynamic``, the logarithm is ``(query_sharpness + gallery_sharpness) sim`` minus one number a column:
    one log-sum-exp of each bank.

    References
    ----------
    Wang, Jian, Xue (2023), arXiv 2310.11612, DualIS and DualDIS.

    Examples
    --------
    >>> sim, bank = np.array([[0.9, 0.8]]), np.array([[0.9, 0.1]])
    >>> dual_bank_norm(sim, bank, bank, query_sharpness=1.0, gallery_sharpness=1.0).round(4)
    array([[0. , 1.4]])
    """
    options: dict[str, Any] = {"k": k, "dynamic": dynamic, "inactive": inactive, "log": log}
    return dual_bank_norm_vjp(
        sim,
        query_bank,
        gallery_bank,
        query_sharpness=query_sharpness,
        gallery_sharpness=gallery_sharpness,
        **options,
    )[0]


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
    """Return :func:`dual_bank_norm` and its pullback ``dy -> (dsim, dquery_bank, dgallery_bank)``.

    Which rows are normalized counts as constant. Parameters, errors and references are those of
    :func:`dual_bank_norm`.
    """
    sim, banks = _arguments(sim, query_bank=query_bank, gallery_bank=gallery_bank)
    _checks.positive(query_sharpness, "query_sharpness")
    _checks.positive(gallery_sharpness, "gallery_sharpness")
    _checks.one_of(inactive, "inactive", INACTIVE)
    k = _checks.whole(k, "k", low=1, high=sim.shape[1])
    active = [_active_rows(sim, bank, k) if dynamic else np.ones(len(sim), np.bool_) for bank in banks]
    pairs = zip(banks, (query_sharpness, gallery_sharpness), active, strict=True)
    logs, to_both = zip(*(_normalize(_wide(sim), _wide(b), s, a) for b, s, a in pairs), strict=True)
    raw = [~a if inactive == "raw" else np.zeros_like(a) for a in active]
    mixed = (raw[0] | raw[1])[:, None]
    # A factor left raw is sim itself, whose logarithm need not exist: such rows are products, not sums of logs.
    factors = [
        np.where(r[:, None], _wide(sim), np.exp(np.where(mixed | (not log), v, 0)))
        for r, v in zip(raw, logs, strict=True)
    ]
    value = np.where(mixed | (not log), factors[0] * factors[1], logs[0] + logs[1])

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        # A sum of logarithms hands dy on to both terms; a product hands each factor dy times the other one, and a
        # factor exp(log) its logarithm once more times itself.
        dsim, dbanks = np.zeros(sim.shape), []
        for i in (0, 1):
            dfactor = dy * factors[1 - i]
            dlog = np.where(mixed | (not log), np.where(raw[i][:, None], 0, dfactor * factors[i]), dy)
            through, dbank = to_both[i](dlog)
            dsim = dsim + through + np.where(raw[i][:, None], dfactor, 0)
            dbanks.append(dbank)
        return dsim.astype(sim.dtype), dbanks[0].astype(sim.dtype), dbanks[1].astype(sim.dtype)

    return _in_dtype_of(sim, value), pullback


def k_occurrence(sim: AnyArray, *, k: int = 10) -> IntArray:
    """Count for each gallery item the queries that have it among their k best.

    Parameters
    ----------
    sim : array (Q, G)
    k : int from 1 to G

    Returns
    -------
    integer array (G,)
        Sums to ``k Q``. Of equal similarities the first ones are taken.

    Raises
    ------
    TypeError
        If ``sim`` is neither float32 nor float64, or ``k`` is not an integer.
    ValueError
        If an entry is not finite or ``k`` is outside its range.

    Examples
    --------
    >>> k_occurrence(np.array([[0.9, 0.2, 0.1], [0.8, 0.1, 0.9], [0.7, 0.6, 0.1]]), k=1)
    array([2, 0, 1])
    """
    sim = _similarities(sim, "sim")
    k = _checks.whole(k, "k", low=1, high=sim.shape[1])
    return np.bincount(_best(sim, k).ravel(), minlength=sim.shape[1])


def hubness_skewness(sim: AnyArray, *, k: int = 10, include_zero: bool = True) -> float:
    """Skewness of the k-occurrence: how unequally the gallery items are retrieved.

    Parameters
    ----------
    sim : array (Q, G)
    k : int from 1 to G
    include_zero : bool
        Count the items that no query retrieves.

    Returns
    -------
    float
        ``E[(N - mean)^3] / deviation^3``; 0 if all items occur equally often.

    Raises
    ------
    TypeError, ValueError
        As :func:`k_occurrence`, or if there is no query.

    References
    ----------
    Radovanović, Nanopoulos, Ivanović (2010), Hubs in space.

    Examples
    --------
    >>> round(hubness_skewness(np.array([[0.9, 0.2, 0.1], [0.8, 0.1, 0.7], [0.7, 0.6, 0.1]]), k=1), 6)
    0.707107
    """
    counts = k_occurrence(sim, k=k).astype(np.float64)
    _checks.not_empty(np.asarray(sim), "sim", (0,))
    counts = counts if include_zero else counts[counts > 0]
    centred = counts - counts.mean()
    variance = float((centred**2).mean())
    return float((centred**3).mean()) / variance**1.5 if variance > 0 else 0.0


def recall_at_k(sim: AnyArray, truth: IntArray, *, k: int) -> float:
    """Fraction of queries whose true item is among their k best.

    Parameters
    ----------
    sim : array (Q, G)
        At least one query.
    truth : integer array (Q,)
        The true item of each query.
    k : int from 1 to G
        Of equal similarities the first ones are taken.

    Returns
    -------
    float in [0, 1]

    Raises
    ------
    TypeError, ValueError
        As :func:`k_occurrence`, or if ``truth`` is not integer, of another shape or out of range.

    Examples
    --------
    >>> sim = np.array([[0.9, 0.2, 0.1], [0.8, 0.1, 0.7]])
    >>> recall_at_k(sim, np.array([0, 2]), k=1), recall_at_k(sim, np.array([0, 2]), k=2)
    (0.5, 1.0)
    """
    sim = _similarities(sim, "sim")
    _checks.not_empty(sim, "sim", (0,))
    truth = _checks.integer_array(truth, "truth", ndim=1, low=0, high=sim.shape[1] - 1)
    _checks.shape(truth, "truth", sim.shape[:1])
    k = _checks.whole(k, "k", low=1, high=sim.shape[1])
    return float((_best(sim, k) == truth[:, None]).any(axis=1).mean())


def _normalize(sim: AnyArray, bank: AnyArray, sharpness: float, active: AnyArray | None) -> tuple[AnyArray, Any]:
    """Log of the normalized similarities, or ``sharpness sim`` in rows that are not active; and the pullback."""
    popularity, to_bank = logsumexp_vjp(sharpness * bank, axis=0)
    rows = np.ones((len(sim), 1)) if active is None else active[:, None].astype(np.float64)
    value = sharpness * sim - rows * popularity

    def pullback(dvalue: AnyArray) -> tuple[AnyArray, AnyArray]:
        # Each column's log-sum-exp is taken off all active rows: its cotangent is minus their sum, and is shared
        # among the bank by a softmax down the column.
        (dbank,) = to_bank(-(rows * dvalue).sum(axis=0))
        return sharpness * dvalue, sharpness * dbank

    return value, pullback


def _finish(
    sim: AnyArray, value: AnyArray, to_both: Any, log: bool, raw: AnyArray | None = None
) -> tuple[AnyArray, Pullback]:
    """Exponentiate unless ``log``, put raw rows back, and complete the pullback."""
    kept = np.zeros((len(sim), 1), np.bool_) if raw is None else raw[:, None]
    y = np.where(kept, _wide(sim), value if log else np.exp(np.where(kept, 0, value)))

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F]]:
        dsim, dbank = to_both(np.where(kept, 0, dy if log else dy * y))
        return (dsim + np.where(kept, dy, 0)).astype(sim.dtype), dbank.astype(sim.dtype)

    return _in_dtype_of(sim, y), pullback


def _active_rows(sim: AnyArray, bank: AnyArray, k: int) -> AnyArray:
    popular = np.zeros(sim.shape[1], np.bool_)
    popular[_best(bank, k)] = True
    return np.asarray(popular[sim.real.argmax(axis=1)])


def _best(sim: AnyArray, k: int) -> IntArray:
    order: IntArray = np.argsort(-sim.real, axis=1, kind="stable")
    return order[:, :k]


def _similarities(sim: AnyArray, name: str) -> AnyArray:
    sim = _checks.float_array(sim, name, ndim=2)
    _checks.not_empty(sim, name, (1,))
    _checks.finite(sim, name)
    return sim


def _arguments(sim: AnyArray, **banks: AnyArray) -> tuple[AnyArray, list[AnyArray]]:
    sim = _similarities(sim, "sim")
    checked = []
    for name, given in banks.items():
        bank = _similarities(given, name)
        _checks.same_dtype("sim", sim, **{name: bank})
        _checks.not_empty(bank, name, (0,))
        _checks.shape(bank, name, (len(bank), sim.shape[1]))
        checked.append(bank)
    return sim, checked


def _wide(x: AnyArray) -> AnyArray:
    return np.asarray(x.astype(np.result_type(x, np.float64), copy=False))


def _in_dtype_of(x: AnyArray, value: AnyArray) -> AnyArray:
    return value if np.iscomplexobj(value) else value.astype(x.dtype)
