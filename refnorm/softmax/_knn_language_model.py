"""Nearest-neighbour language model: the training contexts that look like this one vote for the next token.

p(token) = (1 - knn_weight) softmax(logits)_token + knn_weight sum over neighbours with this token of softmax(scores / t)

score of a neighbour: minus the squared distance of its key from the query
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.softmax._cross_entropy import _reduce, log_softmax, log_softmax_vjp, logsumexp

if TYPE_CHECKING:
    from refnorm.solvers._monitor import Callback

METHOD = Method(
    title="Why do Nearest Neighbor Language Models Work?",
    authors="Xu, Alon, Neubig",
    year=2023,
    arxiv="2301.02828",
    functions=(
        "IVFIndex",
        "InterpolationFit",
        "fit_interpolation",
        "ivf_build",
        "ivf_search",
        "knn_lm_nll",
        "knn_log_prob",
        "knn_search",
        "perplexity",
    ),
    chapter="softmax/knn_language_model",
)

METRICS = ("sqeuclidean", "euclidean", "inner_product")
BLOCK_ENTRIES = 2**22
"""Largest number of float64 entries, 32 MiB, of a temporary in a search: queries are taken block by block."""
KMEANS_STEPS = 20
"""Lloyd iterations of an index. Its cells only have to be compact, not optimal."""

_REDUCTIONS = ("mean", "sum", "none")


def knn_search(queries: Array[F], keys: Array[F], *, k: int, metric: str = "sqeuclidean") -> tuple[Array[F], IntArray]:
    """Find the k best keys of each query.

    Parameters
    ----------
    queries : array (B, d)
    keys : array (N, d)
    k : int from 1 to N
    metric : {"sqeuclidean", "euclidean", "inner_product"}
        The score is minus the squared distance, minus the distance, or the inner product.

    Returns
    -------
    scores : array (B, k), dtype of ``queries``
        Best first.
    indices : integer array (B, k)
        Of equal scores the smaller index comes first.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ or ``k`` is not an integer.
    ValueError
        If a shape is wrong, an entry is not finite, or an option is unknown or out of range.

    Notes
    -----
    Candidates are chosen by ``|q|^2 - 2 q k + |k|^2``, a matrix product, which cancels for close points. The
    scores that are returned are computed again from the differences.

    References
    ----------
    Xu, Alon, Neubig (2023), arXiv 2301.02828, section 2. Khandelwal et al. (2020), the kNN-LM.

    Examples
    --------
    >>> knn_search(np.array([[0.0]]), np.array([[2.0], [0.5], [-1.0]]), k=2)
    (array([[-0.25, -1.  ]]), array([[1, 2]]))
    """
    return knn_search_vjp(queries, keys, k=k, metric=metric)[0]


def knn_search_vjp(
    queries: Array[F], keys: Array[F], *, k: int, metric: str = "sqeuclidean"
) -> tuple[tuple[Array[F], IntArray], Pullback]:
    """Return :func:`knn_search` and its pullback ``dscores -> (dqueries, dkeys)``.

    Which keys are found counts as constant. A Euclidean distance of 0 has slope 0. Parameters, errors and references
    are those of :func:`knn_search`.
    """
    queries, keys = _vectors(queries, "queries"), _vectors(keys, "keys")
    _checks.same_dtype("queries", queries, keys=keys)
    _checks.shape(keys, "keys", (len(keys), queries.shape[1]))
    k = _checks.whole(k, "k", low=1, high=len(keys))
    _checks.one_of(metric, "metric", METRICS)
    scores, indices = _search(_wide(queries), _wide(keys), k, metric)

    def pullback(dscores: Array[F]) -> tuple[Array[F], Array[F]]:
        dqueries, dkeys = np.zeros(queries.shape), np.zeros(keys.shape)
        for rows in _blocks(len(queries), k * queries.shape[1]):
            near, weight = _wide(keys)[indices[rows]], np.asarray(dscores)[rows]
            if metric == "inner_product":
                dqueries[rows] = (weight[..., None] * near).sum(axis=1)
                share = weight[..., None] * _wide(queries)[rows, None]
            else:
                # -|q - k|^2 has slope 2 (k - q) in q and the opposite in k; -|q - k| half of that over the distance.
                apart = near - _wide(queries)[rows, None]
                if metric == "euclidean":
                    distance = -scores[rows]
                    weight = np.divide(weight, 2 * distance, out=np.zeros(distance.shape), where=distance > 0)
                share = -2 * weight[..., None] * apart
                dqueries[rows] = -share.sum(axis=1)
            np.add.at(dkeys, indices[rows].ravel(), share.reshape(-1, keys.shape[1]))
        return dqueries.astype(queries.dtype), dkeys.astype(keys.dtype)

    return (scores.astype(queries.dtype), indices), pullback


@dataclass(frozen=True)
class IVFIndex:
    """Keys sorted into cells, for :func:`ivf_search`.

    Parameters
    ----------
    keys : array (N, d)
    centroids : array (C, d)
    cells : tuple of C integer arrays
        The keys of each cell, in ascending order.
    """

    keys: AnyArray
    centroids: AnyArray
    cells: tuple[IntArray, ...]


def ivf_build(keys: Array[F], *, n_cells: int, rng: np.random.Generator) -> IVFIndex:
    """Sort keys into cells by k-means.

    Parameters
    ----------
    keys : array (N, d)
    n_cells : int from 1 to N
    rng : numpy.random.Generator
        Draws the first centroids among the keys.

    Returns
    -------
    IVFIndex

    Raises
    ------
    TypeError
        If ``keys`` is not float32 or float64, ``n_cells`` is not an integer, or ``rng`` is not a generator.
    ValueError
        If an entry is not finite or ``n_cells`` is out of range.

    References
    ----------
    Jégou, Douze, Schmid (2011), Product quantization for nearest neighbor search (the inverted file).

    Examples
    --------
    >>> index = ivf_build(np.array([[0.0], [0.1], [5.0], [5.2]]), n_cells=2, rng=np.random.default_rng(0))
    >>> sorted(cell.tolist() for cell in index.cells)
    [[0, 1], [2, 3]]
    """
    keys = _vectors(keys, "keys")
    n_cells = _checks.whole(n_cells, "n_cells", low=1, high=len(keys))
    rng = _checks.generator(rng)
    wide = _wide(keys)
    centroids = wide[rng.choice(len(wide), n_cells, replace=False)]
    nearest: IntArray
    for _ in range(KMEANS_STEPS):
        nearest = _search(wide, centroids, 1, "sqeuclidean")[1][:, 0]
        counts = np.bincount(nearest, minlength=n_cells)
        sums = np.zeros_like(centroids)
        np.add.at(sums, nearest, wide)
        # A cell that has lost all its keys keeps its centroid.
        centroids = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centroids)
    nearest = _search(wide, centroids, 1, "sqeuclidean")[1][:, 0]
    cells = tuple(np.flatnonzero(nearest == cell) for cell in range(n_cells))
    return IVFIndex(keys, centroids.astype(keys.dtype), cells)


def ivf_search(
    index: IVFIndex, queries: Array[F], *, k: int, n_probe: int, rescore: bool = True
) -> tuple[Array[F], IntArray]:
    """Find good keys of each query, looking only into the cells closest to it.

    Parameters
    ----------
    index : IVFIndex
    queries : array (B, d)
    k : int from 1 to N
    n_probe : int from 1 to the number of cells
        Cells to look into; more where these hold fewer than k keys.
    rescore : bool
        Score by the true squared distance. Without it a key counts as its cell's centroid, as if that were all that
        is stored.

    Returns
    -------
    scores, indices
        As from :func:`knn_search`.

    Raises
    ------
    TypeError
        If ``queries`` is not of the keys' dtype, or a count is not an integer.
    ValueError
        If a shape is wrong, an entry is not finite, or a count is out of range.

    References
    ----------
    Xu, Alon, Neubig (2023), arXiv 2301.02828, section on approximate search.

    Examples
    --------
    >>> index = ivf_build(np.array([[0.0], [0.1], [5.0], [5.2]]), n_cells=2, rng=np.random.default_rng(0))
    >>> scores, indices = ivf_search(index, np.array([[5.0]]), k=2, n_probe=1)
    >>> scores.round(4), indices
    (array([[-0.  , -0.04]]), array([[2, 3]]))
    """
    queries = _vectors(queries, "queries")
    _checks.same_dtype("index.keys", index.keys, queries=queries)
    _checks.shape(queries, "queries", (len(queries), index.keys.shape[1]))
    k = _checks.whole(k, "k", low=1, high=len(index.keys))
    n_cells = len(index.cells)
    n_probe = _checks.whole(n_probe, "n_probe", low=1, high=n_cells)
    keys, centroids, wide = _wide(index.keys), _wide(index.centroids), _wide(queries)
    order = _search(wide, centroids, n_cells, "sqeuclidean")[1]
    held = np.cumsum(np.array([len(cell) for cell in index.cells])[order], axis=1)
    probes = np.maximum(n_probe, (held < k).sum(axis=1) + 1)
    centre_of = np.empty(len(keys), dtype=np.intp)
    for number, cell in enumerate(index.cells):
        centre_of[cell] = number

    scores, indices = np.empty((len(wide), k)), np.empty((len(wide), k), dtype=np.intp)
    for row, (query, nearest, count) in enumerate(zip(wide, order, probes, strict=True)):
        seen = np.sort(np.concatenate([index.cells[cell] for cell in nearest[:count]]))
        difference = (keys[seen] if rescore else centroids[centre_of[seen]]) - query
        score = -np.einsum("ij,ij->i", difference, difference)
        best = np.argsort(-score, kind="stable")[:k]
        scores[row], indices[row] = score[best], seen[best]
    return scores.astype(queries.dtype), indices


def knn_log_prob(scores: Array[F], values: IntArray, *, vocab: int, temperature: float = 1.0) -> Array[F]:
    """Logarithm of the neighbours' vote for each token.

    Parameters
    ----------
    scores : array (B, k)
        One for each neighbour; ``-inf`` for one that shall not count.
    values : integer array (B, k)
        The token that followed each neighbour, from 0 to ``vocab - 1``.
    vocab : int >= 1
    temperature : float > 0

    Returns
    -------
    array (B, vocab), dtype of ``scores``
        ``-inf`` for a token of no neighbour.

    Raises
    ------
    TypeError
        If ``scores`` is not float32 or float64, or ``values`` are not integers.
    ValueError
        If a shape is wrong, a value or option is out of range, or there is no neighbour.

    Notes
    -----
    ``logsumexp`` of ``log_softmax(scores / temperature)`` over the neighbours with the token.

    References
    ----------
    Khandelwal et al. (2020), Generalization through memorization, equation 2.

    Examples
    --------
    >>> np.exp(knn_log_prob(np.array([[0.0, -1.0, -4.0]]), np.array([[0, 1, 0]]), vocab=3)).round(6)
    array([[0.734612, 0.265388, 0.      ]])
    """
    return knn_log_prob_vjp(scores, values, vocab=vocab, temperature=temperature)[0]


def knn_log_prob_vjp(
    scores: Array[F], values: IntArray, *, vocab: int, temperature: float = 1.0
) -> tuple[Array[F], Pullback]:
    """Return :func:`knn_log_prob` and its pullback ``dlog -> (dscores,)``.

    Cotangents of tokens without a neighbour are not read. Parameters, errors and references are those of
    :func:`knn_log_prob`.
    """
    scores, values = _neighbours(scores, values)
    vocab = _checks.whole(vocab, "vocab", low=1)
    _checks.integer_array(values, "values", low=0, high=vocab - 1)
    _checks.positive(temperature, "temperature")
    log_share, to_scaled = log_softmax_vjp(_wide(scores) / temperature)
    value, shares = _vote(log_share, values, vocab)

    def pullback(dlog: Array[F]) -> tuple[Array[F]]:
        # A token's log-sum-exp hands its cotangent to its neighbours in proportion to their shares of its vote.
        (dscaled,) = to_scaled(np.take_along_axis(np.asarray(dlog), values, axis=1) * shares)
        return ((dscaled / temperature).astype(scores.dtype),)

    return _in_dtype_of(scores, value), pullback


def knn_lm_nll(
    lm_logits: Array[F],
    scores: Array[F],
    values: IntArray,
    target: IntArray,
    knn_weight: float,
    temperature: float,
    *,
    reduction: str = "mean",
) -> Array[F]:
    """Negative log-likelihood of tokens under a language model mixed with its neighbours' votes.

    Parameters
    ----------
    lm_logits : array (B, V)
        Logits of the language model.
    scores : array (B, k)
    values : integer array (B, k)
        Neighbours, as in :func:`knn_log_prob`.
    target : integer array (B,)
        The tokens that came, from 0 to V - 1.
    knn_weight : float in [0, 1]
        Weight of the neighbours.
    temperature : float > 0
        Of the neighbours' softmax.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    array, () or (B,), dtype of ``lm_logits``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ, or values or targets are not integers.
    ValueError
        If a shape is wrong, a number is out of range, or there is no row to take the mean of.

    Warns
    -----
    RuntimeWarning
        If a target has probability 0, which makes its loss infinite.

    Notes
    -----
    ``-logaddexp(log(1 - knn_weight) + log p_lm, log(knn_weight) + log p_knn)`` at the target.

    References
    ----------
    Khandelwal et al. (2020), Generalization through memorization, equation 3. Xu, Alon, Neubig (2023),
    arXiv 2301.02828, for the temperature.

    Examples
    --------
    >>> scores, values = np.array([[0.0, -1.0, -4.0]]), np.array([[0, 1, 0]])
    >>> loss = knn_lm_nll(np.zeros((1, 2)), scores, values, np.array([0]), 0.25, 1.0)
    >>> float(np.exp(-loss).round(6))
    0.558653
    """
    return knn_lm_nll_vjp(lm_logits, scores, values, target, knn_weight, temperature, reduction=reduction)[0]


def knn_lm_nll_vjp(
    lm_logits: Array[F],
    scores: Array[F],
    values: IntArray,
    target: IntArray,
    knn_weight: float,
    temperature: float,
    *,
    reduction: str = "mean",
) -> tuple[Array[F], Pullback]:
    """Return :func:`knn_lm_nll` and its pullback ``dloss -> (dlm_logits, dscores, dknn_weight, dtemperature)``.

    A target of probability 0 has gradient 0. Parameters, errors and references are those of :func:`knn_lm_nll`.
    """
    lm_logits, scores, values, target = _model_arguments(lm_logits, scores, values, target)
    _checks.in_range(np.real(knn_weight), "knn_weight", 0, 1)
    _checks.positive(np.real(temperature), "temperature")
    _checks.one_of(reduction, "reduction", _REDUCTIONS)
    column = target[:, None]
    log_lm, to_logits = log_softmax_vjp(_wide(lm_logits))
    log_share = log_softmax(_wide(scores) / temperature)
    lm = np.take_along_axis(log_lm, column, axis=1)[:, 0]
    # -inf for the other tokens' neighbours; what is left is the target's log-sum-exp.
    voting = np.where(values == column, log_share, -np.inf)
    vote = logsumexp(voting)
    with np.errstate(divide="ignore"):
        parts = np.stack([np.log(1 - knn_weight) + lm, np.log(knn_weight) + vote], axis=1)
    log_p = logsumexp(parts)
    possible = np.isfinite(log_p)
    if not possible.all():
        warnings.warn("knn_lm_nll: a target has probability 0", RuntimeWarning, stacklevel=2)
    value, row_weights = _reduce(-log_p, np.ones(len(target), np.bool_), reduction)

    def pullback(dloss: Array[F]) -> tuple[AnyArray, ...]:
        row = np.where(possible, row_weights(dloss), 0)
        safe = np.where(possible, log_p, 0)
        # How much of the target's probability came from each source.
        from_lm, from_knn = (np.where(possible, np.exp(part - safe), 0) for part in parts.T)
        dlog_lm = np.zeros(lm_logits.shape)
        np.put_along_axis(dlog_lm, column, (-row * from_lm)[:, None], axis=1)
        within = np.exp(voting - np.where(np.isfinite(vote), vote, 0)[:, None])
        # With shares pi and pi_w among the target's neighbours, the slope is pi - pi_w, at those neighbours
        # -pi_w times what all others have: written so, it keeps its digits where nearly all vote for the target.
        others = np.where(values == column, 0, np.exp(log_share))
        dscaled = (row * from_knn)[:, None] * (others - within * others.sum(axis=1, keepdims=True))
        dscores = dscaled / temperature
        # p is linear in the weight, with slope p_knn - p_lm.
        dweight = -(row * (np.exp(vote - safe) - np.exp(lm - safe)))[possible].sum()
        used = np.where(dscores != 0, scores, 0)  # a masked neighbour's score is -inf
        dtemperature = -(dscores * used).sum() / temperature
        return (
            to_logits(dlog_lm)[0].astype(lm_logits.dtype),
            dscores.astype(scores.dtype),
            np.asarray(dweight, _dtype_of(knn_weight)),
            np.asarray(dtemperature, _dtype_of(temperature)),
        )

    return np.asarray(_in_dtype_of(lm_logits, value)), pullback


@dataclass(frozen=True)
class InterpolationFit:
    """The best weight of the neighbours, from :func:`fit_interpolation`.

    Parameters
    ----------
    knn_weight : float in [0, 1]
    n_iter : int
    converged : bool
    history : dict
        ``"log_likelihood"``: the mean over the tokens, an entry an iteration.
    """

    knn_weight: float
    n_iter: int
    converged: bool
    history: Mapping[str, AnyArray]


def fit_interpolation(
    lm_logp: AnyArray,
    knn_logp: AnyArray,
    *,
    tol: float = 1e-10,
    max_iter: int = 10_000,
    callback: Callback | None = None,
) -> InterpolationFit:
    """Fit the weight of the neighbours on held-out tokens.

    Parameters
    ----------
    lm_logp, knn_logp : arrays (n,)
        Log-probabilities of the tokens under both models, at most one of each pair ``-inf``.
    tol : float > 0
        Largest change of the weight in the last iteration.
    max_iter : int >= 1
    callback : callable, optional
        Called with a ``refnorm.solvers.Progress`` after every iteration.

    Returns
    -------
    InterpolationFit

    Raises
    ------
    TypeError
        If an array is not float32 or float64.
    ValueError
        If there is no token, the shapes differ, an entry is NaN or ``inf``, both entries of a pair are ``-inf``,
        or a number is out of range.

    Notes
    -----
    Expectation maximization: the new weight is the mean posterior probability that a token came from the
    neighbours. The likelihood is concave in the weight and never falls.

    References
    ----------
    Dempster, Laird, Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm.

    Examples
    --------
    >>> fit = fit_interpolation(np.log(np.array([0.2, 0.8])), np.log(np.array([0.5, 0.4])))
    >>> round(fit.knn_weight, 6), fit.converged
    (0.666667, True)
    """
    from refnorm.solvers._monitor import Monitor  # not at the top: other rooms' solvers use this room

    lm, knn = _checks.float_array(lm_logp, "lm_logp", ndim=1), _checks.float_array(knn_logp, "knn_logp")
    _checks.not_empty(lm, "lm_logp", (0,))
    _checks.shape(knn, "knn_logp", lm.shape)
    for name, array in (("lm_logp", lm), ("knn_logp", knn)):
        if (np.isnan(array) | (array == np.inf)).any():
            _checks.fail(name, "finite numbers or -inf", "NaN or inf")
    if np.isneginf(np.maximum(lm, knn)).any():
        _checks.fail("knn_logp", "a finite entry where lm_logp is -inf", "-inf in both")
    _checks.positive(tol, "tol")
    max_iter = _checks.whole(max_iter, "max_iter", low=1)

    lm, knn = _wide(lm), _wide(knn)
    monitor = Monitor("fit_interpolation", callback=callback, hint="check the log-probabilities")
    weight, converged = 0.5, False
    for _ in range(max_iter):
        with np.errstate(divide="ignore"):
            log_odds = np.log(weight) - np.log1p(-weight) + (knn - lm)
            likelihood = np.logaddexp(np.log1p(-weight) + lm, np.log(weight) + knn).mean()
        following = float(expit(log_odds).mean())
        stop = monitor.record(log_likelihood=float(likelihood))
        converged = abs(following - weight) <= tol
        weight = following
        if converged or stop:
            break
    return InterpolationFit(weight, monitor.n_iter, converged, monitor.history())


def perplexity(logp: AnyArray) -> float:
    """Exponential of the mean negative log-probability.

    Parameters
    ----------
    logp : float array, not empty
        Log-probabilities of the tokens that came.

    Returns
    -------
    float
        ``inf`` if one of them is ``-inf``.

    Raises
    ------
    TypeError, ValueError
        If ``logp`` is not float32 or float64, or empty.

    Examples
    --------
    >>> round(perplexity(np.log(np.array([0.5, 0.125]))), 12)
    4.0
    """
    logp = _checks.float_array(logp, "logp")
    if not logp.size:
        _checks.fail("logp", "at least one entry", f"shape {logp.shape}")
    return float(np.exp(-_wide(logp).mean()))


def _search(queries: AnyArray, keys: AnyArray, k: int, metric: str) -> tuple[AnyArray, IntArray]:
    scores, indices = np.empty((len(queries), k)), np.empty((len(queries), k), dtype=np.intp)
    half_norms = 0 if metric == "inner_product" else 0.5 * np.einsum("ij,ij->i", keys, keys)
    for rows in _blocks(len(queries), len(keys) + k * keys.shape[1]):
        part = queries[rows]
        # q k - |k|^2 / 2 ranks like minus the squared distance: |q|^2 is the same for all keys.
        found = _largest(part @ keys.T - half_norms, k)
        near = keys[found]
        if metric == "inner_product":
            exact = np.einsum("ij,ikj->ik", part, near)
        else:
            apart = near - part[:, None]
            exact = -np.einsum("ikj,ikj->ik", apart, apart)
            if metric == "euclidean":
                exact = -np.sqrt(-exact)
        order = np.argsort(-exact, axis=1, kind="stable")
        scores[rows] = np.take_along_axis(exact, order, axis=1)
        indices[rows] = np.take_along_axis(found, order, axis=1)
    return scores, indices


def _largest(scores: AnyArray, k: int) -> IntArray:
    """Indices of each row's k largest entries, in ascending order; of equal ones the first."""
    last = np.partition(scores, -k, axis=1)[:, [-k]]
    above, level = scores > last, scores == last
    missing = k - above.sum(axis=1, keepdims=True)
    chosen = above | (level & (np.cumsum(level, axis=1) <= missing))
    return np.nonzero(chosen)[1].reshape(len(scores), k)


def _blocks(rows: int, entries: int) -> list[slice]:
    size = max(1, BLOCK_ENTRIES // max(1, entries))
    return [slice(start, start + size) for start in range(0, rows, size)]


def _vote(log_share: AnyArray, values: IntArray, vocab: int) -> tuple[AnyArray, AnyArray]:
    """Log-sum-exp of the neighbours by token, and each neighbour's share of its token's vote."""
    rows = np.broadcast_to(np.arange(len(values))[:, None], values.shape)
    largest = np.full((len(values), vocab), -np.inf)
    np.maximum.at(largest, (rows, values), log_share.real)
    anchor = np.where(np.isfinite(largest), largest, 0)
    terms = np.exp(log_share - anchor[rows, values])
    total = np.zeros((len(values), vocab), dtype=terms.dtype)
    np.add.at(total, (rows, values), terms)
    with np.errstate(divide="ignore"):
        value = anchor + np.log(total)
    return value, np.divide(terms, total[rows, values], out=np.zeros_like(terms), where=terms != 0)


def _vectors(x: AnyArray, name: str) -> AnyArray:
    x = _checks.float_array(x, name, ndim=2)
    _checks.not_empty(x, name, (1,))
    _checks.finite(x, name)
    return x


def _neighbours(scores: AnyArray, values: IntArray) -> tuple[AnyArray, IntArray]:
    scores = _checks.float_array(scores, "scores", ndim=2)
    _checks.not_empty(scores, "scores", (1,))
    values = _checks.integer_array(values, "values", ndim=2)
    _checks.shape(values, "values", scores.shape)
    return scores, values


def _model_arguments(
    lm_logits: AnyArray, scores: AnyArray, values: IntArray, target: IntArray
) -> tuple[AnyArray, AnyArray, IntArray, IntArray]:
    lm_logits = _checks.float_array(lm_logits, "lm_logits", ndim=2)
    _checks.not_empty(lm_logits, "lm_logits", (1,))
    scores, values = _neighbours(scores, values)
    _checks.same_dtype("lm_logits", lm_logits, scores=scores)
    _checks.shape(scores, "scores", (len(lm_logits), scores.shape[1]))
    last = lm_logits.shape[1] - 1
    _checks.integer_array(values, "values", low=0, high=last)
    target = _checks.integer_array(target, "target", ndim=1, low=0, high=last)
    _checks.shape(target, "target", lm_logits.shape[:1])
    return lm_logits, scores, values, target


def _dtype_of(number: Any) -> Any:
    """The dtype of a number's cotangent: float64 for a Python number."""
    return np.result_type(np.asarray(number).dtype, np.float32)


def _wide(x: AnyArray) -> AnyArray:
    return np.asarray(x.astype(np.result_type(x, np.float64), copy=False))


def _in_dtype_of(x: AnyArray, value: AnyArray) -> AnyArray:
    return value if np.iscomplexobj(value) else value.astype(x.dtype)
