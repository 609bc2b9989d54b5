"""JLCM: codebooks and the mapping of weights to codewords, learned together.

    m = softmax(logits)      w = sum_j m_j c_j                     (while learning; the largest m_j in the end)

The mapping's gradient prefers codewords that are near; neurons are sorted into groups with a codebook each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refnorm import _checks
from refnorm._arrays import sum_to
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.quantizers._descent import Descent
from refnorm.softmax import softmax
from refnorm.solvers import Monitor
from refnorm.solvers._monitor import Callback

METHOD = Method(
    title="Network Memory Footprint Compression Through Jointly Learnable Codebooks and Mappings",
    authors="Yvinec, Dapogny, Bailly",
    year=2024,
    arxiv="2309.17361",
    functions=(
        "group_neurons",
        "fold_permutation",
        "kmeans_codebook",
        "soft_map",
        "CodebookResult",
        "fit_codebook",
        "refit_codebook",
        "bits_per_weight",
    ),
    chapter="quantizers/joint_codebook",
)

GROUPINGS = ("sort", "kmeans")
GRADIENTS = ("proximal", "exact")
KERNELS = ("exp", "rational")
FORWARDS = ("soft", "hard")

FIRST_SHARPNESS = 5.0
"""Logits begin at minus this many times the distance to a codeword in gaps: the nearest has most of the mass."""

PENALTY_FROM = 0.2
"""Share of the steps after which the penalty on undecided mappings sets in."""


def group_neurons(
    weight: Array[F], n_groups: int, *, method: str = "sort", rng: np.random.Generator | None = None
) -> tuple[IntArray, IntArray]:
    """Order the neurons of a layer so that neighbours have like weights, and cut them into groups.

    Parameters
    ----------
    weight : array (K, N)
        One neuron a column.
    n_groups : int, 1 to N
    method : {"sort", "kmeans"}
        ``"sort"``: by standard deviation, into groups of equal size. ``"kmeans"``: clusters of (standard deviation,
        largest magnitude), in the order of their mean standard deviation.
    rng : numpy.random.Generator
        Needed for ``"kmeans"``.

    Returns
    -------
    permutation : int array (N,)
        ``weight[:, permutation]`` has the groups side by side.
    boundaries : int array (n_groups + 1,)
        Group ``g`` is columns ``boundaries[g]`` to ``boundaries[g + 1]`` of that.

    Raises
    ------
    TypeError, ValueError
        If ``weight`` is no finite matrix, there are more groups than neurons, or an option is out of its range.

    References
    ----------
    Yvinec et al. (2024), arXiv 2309.17361, figure 1 and the section on grouping neurons.

    Examples
    --------
    >>> group_neurons(np.array([[3.0, 0.1, 2.0, 0.2], [-3.0, 0.0, -2.0, 0.0]]), 2)
    (array([1, 3, 2, 0]), array([0, 2, 4]))
    """
    weight = _checks.float_array(weight, "weight", ndim=2)
    _checks.not_empty(weight, "weight", (0, 1))
    _checks.finite(weight, "weight")
    neurons = weight.shape[1]
    _checks.whole(n_groups, "n_groups", low=1, high=neurons)
    _checks.one_of(method, "method", GROUPINGS)
    spread = weight.std(axis=0)
    if method == "sort":
        sizes = [len(part) for part in np.array_split(np.arange(neurons), n_groups)]
        return np.argsort(spread, kind="stable"), np.cumsum([0, *sizes])
    features = np.column_stack([spread, np.abs(weight).max(axis=0)]).astype(np.float64)
    label = _lloyd(features, _seeded(features, n_groups, _checks.generator(rng)))[1]
    rank = np.argsort([spread[label == g].mean() if (label == g).any() else np.inf for g in range(n_groups)])
    order = np.argsort(rank)[label]
    return np.argsort(order, kind="stable"), np.cumsum([0, *np.bincount(order, minlength=n_groups)])


def fold_permutation(weight: Array[F], weight_next: Array[F], permutation: IntArray) -> tuple[Array[F], Array[F]]:
    """Reorder a layer's neurons and the inputs of the next layer: the network's output does not change.

    Parameters
    ----------
    weight : array (K, N)
    weight_next : array (N, M)
    permutation : int array (N,)

    Returns
    -------
    weight, weight_next : arrays (K, N), (N, M)
        ``weight[:, permutation]`` and ``weight_next[permutation]``. A bias is reordered as the columns are.

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit or ``permutation`` is none.

    Examples
    --------
    >>> fold_permutation(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]), np.array([1, 0]))
    (array([[2., 1.]]), array([[4.],
           [3.]]))
    """
    return fold_permutation_vjp(weight, weight_next, permutation)[0]


def fold_permutation_vjp(
    weight: Array[F], weight_next: Array[F], permutation: IntArray
) -> tuple[tuple[Array[F], Array[F]], Pullback]:
    """Return :func:`fold_permutation` and its pullback, which maps two cotangents to ``(dweight, dweight_next)``."""
    weight, weight_next = (
        _checks.float_array(array, name, ndim=2) for array, name in ((weight, "weight"), (weight_next, "weight_next"))
    )
    neurons = weight.shape[1]
    permutation = _checks.integer_array(permutation, "permutation", ndim=1)
    if not np.array_equal(np.sort(permutation), np.arange(neurons)):
        _checks.fail("permutation", f"every number from 0 to {neurons - 1} once", permutation)
    _checks.shape(weight_next, "weight_next", (neurons, weight_next.shape[1]))
    inverse = np.argsort(permutation)

    def pullback(cotangents: tuple[Array[F], Array[F]]) -> tuple[Array[F], Array[F]]:
        # A permutation's transpose is its inverse.
        return cotangents[0][:, inverse], cotangents[1][inverse]

    return (weight[:, permutation], weight_next[permutation]), pullback


def kmeans_codebook(
    weight: Array[F], k: int, *, n_iter: int = 50, rng: np.random.Generator | None = None
) -> tuple[Array[F], IntArray]:
    """Cluster numbers by Lloyd's algorithm.

    Parameters
    ----------
    weight : array
        Finite, not empty.
    k : int >= 1
        Codewords.
    n_iter : int >= 1
        Most iterations; fewer are done if nothing changes any more.
    rng : numpy.random.Generator, optional
        Begin with k-means++; by default with evenly spaced quantiles.

    Returns
    -------
    codebook : array (k,), dtype of ``weight``
        Ascending; codewords repeat where there are fewer distinct weights.
    index : int array of the shape of ``weight``
        The nearest codeword, the lower one of two equals.

    Raises
    ------
    TypeError, ValueError
        If ``weight`` is empty or not finite or an option is out of its range.

    References
    ----------
    Lloyd (1982); Arthur, Vassilvitskii (2007) for k-means++.

    Examples
    --------
    >>> kmeans_codebook(np.array([0.0, 0.2, 5.0, 5.2]), 2)
    (array([0.1, 5.1]), array([0, 0, 1, 1]))
    """
    weight = _checks.float_array(weight, "weight")
    _checks.not_empty(weight, "weight", range(weight.ndim))
    _checks.finite(weight, "weight")
    _checks.whole(k, "k", low=1)
    _checks.whole(n_iter, "n_iter", low=1)
    points = np.sort(weight, axis=None).astype(np.float64)
    quantiles = np.quantile(points, (np.arange(k) + 0.5) / k)
    start = quantiles if rng is None else np.sort(_seeded(points[:, None], k, _checks.generator(rng))[:, 0])
    codebook: Array[F] = _lloyd_sorted(points, start, n_iter).astype(weight.dtype)
    # Codewords are sorted: the nearest one is found between midpoints.
    return codebook, np.searchsorted(_midpoints(codebook), weight.ravel(), side="left").reshape(weight.shape)


def _midpoints(centres: AnyArray) -> AnyArray:
    return np.asarray(centres[:-1] / 2 + centres[1:] / 2)


def _lloyd_sorted(points: AnyArray, centres: AnyArray, n_iter: int) -> AnyArray:
    """Lloyd's algorithm for sorted numbers: clusters are intervals, and prefix sums give their means."""
    sums = np.concatenate([[0.0], np.cumsum(points)])
    ends = np.full(len(centres) + 1, -1)
    for _ in range(n_iter):
        moved = np.concatenate([[0], np.searchsorted(points, _midpoints(centres), side="right"), [len(points)]])
        if (moved == ends).all():
            break
        ends = moved
        counts = np.diff(ends)
        centres = np.where(counts > 0, np.diff(sums[ends]) / np.maximum(counts, 1), centres)
        if (counts == 0).any():
            # A centre without points moves to the point that is farthest from its own.
            own = np.abs(points - np.repeat(centres, counts))
            for empty in np.flatnonzero(counts == 0):
                farthest = int(own.argmax())
                if own[farthest] > 0:
                    centres[empty], own[farthest] = points[farthest], 0
        centres = np.sort(centres)
    return centres


def _seeded(points: AnyArray, k: int, rng: np.random.Generator) -> AnyArray:
    """Draw centres by k-means++: each with a probability proportional to the squared distance to those before it."""
    chosen = [points[rng.integers(len(points))]]
    for _ in range(1, k):
        distance = np.min([((points - centre) ** 2).sum(axis=1) for centre in chosen], axis=0)
        total = distance.sum()
        # Fewer distinct points than centres: a centre is repeated.
        index = rng.choice(len(points), p=distance / total) if total > 0 else 0
        chosen.append(points[index])
    return np.array(chosen)


def _lloyd(points: AnyArray, centres: AnyArray, n_iter: int = 50) -> tuple[AnyArray, IntArray]:
    """Return centres and labels; a centre without points moves to the point that is farthest from its own."""
    label = np.full(len(points), -1)
    for _ in range(n_iter):
        distance = ((points[:, None] - centres) ** 2).sum(axis=2)
        moved = distance.argmin(axis=1)
        if (moved == label).all():
            break
        label = moved
        counts = np.bincount(label, minlength=len(centres))
        sums = np.stack([np.bincount(label, column, len(centres)) for column in points.T], axis=1)
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
        own = distance[np.arange(len(points)), label]
        for empty in np.flatnonzero(counts == 0):
            farthest = int(own.argmax())
            if own[farthest] > 0:
                centres[empty], own[farthest] = points[farthest], 0
    return centres, ((points[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)


def soft_map(codebook: Array[F], logits: Array[F]) -> Array[F]:
    """Return mixtures of codewords: ``sum_j softmax(logits)_j codebook_j``.

    Parameters
    ----------
    codebook : array (..., k)
        Broadcasts against ``logits``: (k,) for all weights, or (N, k), one for each column of weights (K, N).
    logits : array (..., k)
        One row a weight.

    Returns
    -------
    array (...)

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes do not fit.

    References
    ----------
    Yvinec et al. (2024), arXiv 2309.17361, section on learning the mapping.

    Examples
    --------
    >>> soft_map(np.array([-1.0, 0.0, 2.0]), np.log(np.array([[1.0, 2.0, 1.0], [1.0, 0.5, 0.5]])))
    array([0.25, 0.  ])
    """
    return soft_map_vjp(codebook, logits)[0]


def soft_map_vjp(
    codebook: Array[F], logits: Array[F], *, gradient: str = "proximal", kernel: str = "exp"
) -> tuple[Array[F], Pullback]:
    """Return :func:`soft_map` and its pullback ``dy -> (dcodebook, dlogits)``.

    Parameters and errors are those of :func:`soft_map`, and

    Parameters
    ----------
    gradient : {"proximal", "exact"}
        ``"exact"`` is the derivative, ``dlogits_j = dy m_j (c_j - y)``, whose size grows with the distance of a codeword.
        ``"proximal"`` keeps its sign and puts ``gap kernel(|c_j - y| / gap)`` in the place of the distance, with the
        mean gap between codewords, and subtracts the mean over j. It still descends.
    kernel : {"exp", "rational"}
        ``exp(-d)`` or ``1 / (1 + d^2)``.
    """
    codebook = _checks.float_array(codebook, "codebook", min_ndim=1)
    logits = _checks.float_array(logits, "logits", min_ndim=1)
    _checks.same_dtype("codebook", codebook, logits=logits)
    size = codebook.shape[-1]
    _checks.not_empty(codebook, "codebook", range(codebook.ndim))
    _checks.shape(logits, "logits", (*logits.shape[:-1], size))
    if codebook.ndim > logits.ndim or any(
        a not in (1, b) for a, b in zip(codebook.shape[::-1], logits.shape[::-1], strict=False)
    ):
        _checks.fail("codebook", f"a shape that broadcasts to {logits.shape}", codebook.shape)
    _checks.one_of(gradient, "gradient", GRADIENTS)
    _checks.one_of(kernel, "kernel", KERNELS)
    m = softmax(logits) if logits.dtype.kind == "f" else _analytic_softmax(logits)
    y: Array[F] = (m * codebook).sum(axis=-1)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F]]:
        dcodebook = sum_to(dy[..., None] * m, codebook.shape)
        # dm_j / dlogit_l = m_j (1[j = l] - m_l): a logit moves y towards its codeword, by m_l (c_l - y).
        away = codebook - y[..., None]
        if gradient == "proximal":
            gap = _mean_gap(codebook)
            d = np.abs(away) / gap
            away = np.sign(away) * gap * (np.exp(-d) if kernel == "exp" else 1 / (1 + d * d))
        dlogits = dy[..., None] * m * away
        if gradient == "proximal":
            dlogits = dlogits - dlogits.mean(axis=-1, keepdims=True)
        return dcodebook, dlogits.astype(logits.dtype)

    return y, pullback


def _analytic_softmax(logits: AnyArray) -> AnyArray:
    """Softmax of complex numbers, for complex-step differentiation."""
    powers = np.exp(logits - logits.real.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _mean_gap(codebook: AnyArray) -> AnyArray:
    """Return the mean distance of neighbouring codewords, 1 where all are equal, with the last axis kept."""
    width = codebook.max(axis=-1, keepdims=True) - codebook.min(axis=-1, keepdims=True)
    return np.where(width > 0, width / max(codebook.shape[-1] - 1, 1), 1).astype(codebook.dtype)


@dataclass(frozen=True, eq=False)
class CodebookResult:
    """A weight matrix as codes, found by :func:`fit_codebook`.

    Parameters
    ----------
    codes : int array (K, N)
        Columns in the order of ``permutation``.
    codebooks : array (G, k)
        One a group, or a single one with ``scales``.
    scales : array (N,)
        Factor on the codewords of each column; ones if each group has a codebook.
    permutation : int array (N,)
    boundaries : int array (G + 1,)
    weight : array (K, N)
        The weights that the codes stand for, columns in their first order.
    n_iter : int
    history : dict of arrays
        Before every step: ``loss``, without the penalty; ``changed``, the codes that the last step changed, and
        ``jumped``, those of them that did not go to a neighbouring codeword.
    """

    codes: IntArray
    codebooks: AnyArray
    scales: AnyArray
    permutation: IntArray
    boundaries: IntArray
    weight: AnyArray
    n_iter: int
    history: Mapping[str, AnyArray]


def fit_codebook(
    x: Array[F],
    weight: Array[F],
    *,
    k: int = 4,
    n_groups: int = 8,
    n_iter: int = 1000,
    learning_rates: tuple[float, float] = (1e-2, 1e-3),
    penalty: float = 0.01,
    gradient: str = "proximal",
    kernel: str = "exp",
    forward: str = "soft",
    shared: bool = False,
    grouping: str = "sort",
    rng: np.random.Generator | None = None,
    callback: Callback | None = None,
) -> CodebookResult:
    """Learn codebooks and codes of a layer's weights by the error of the layer's output.

    Parameters
    ----------
    x : array (T, K)
        Calibration data.
    weight : array (K, N)
    k : int >= 2
        Codewords of a codebook: 4 for 2 bits.
    n_groups : int, 1 to N
    n_iter : int >= 0
        Steps of Adam; 0 leaves k-means and the final least squares.
    learning_rates : two floats > 0
        Of logits and of codewords.
    penalty : float >= 0
        Weight of ``sum(1 - sum_j m_j^2)``, which drives mappings to a decision; it grows from 0 over the steps after
        the first fifth.
    gradient, kernel
        As in :func:`soft_map_vjp`.
    forward : {"soft", "hard"}
        Whether the error is that of mixtures or of the codewords with the largest shares.
    shared : bool
        One codebook for all groups, with a scale for each (its largest magnitude), instead of a codebook each.
    grouping : {"sort", "kmeans"}
        As in :func:`group_neurons`.
    rng : numpy.random.Generator, optional
        For k-means++; by default k-means begins with quantiles.
    callback : function, optional
        See :class:`refnorm.solvers.Progress`; a true result ends the fit.

    Returns
    -------
    CodebookResult

    Raises
    ------
    TypeError, ValueError
        If a shape, a dtype or an option does not fit.

    Notes
    -----
    Minimizes ``sum((x @ soft - x @ weight)^2) / T + penalty``, takes the largest share of each mapping, and refits the
    codewords by least squares. Logits take k numbers a weight.

    References
    ----------
    Yvinec et al. (2024), arXiv 2309.17361, section on joint learning.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, weight = rng.standard_normal((64, 8)) @ rng.standard_normal((8, 32)), rng.standard_normal((32, 8))
    >>> plain, found = (
    ...     fit_codebook(x, weight, n_groups=2, n_iter=steps, learning_rates=(0.1, 1e-3)) for steps in (0, 200)
    ... )
    >>> errors = [np.square(x @ (fit.weight - weight)).sum() for fit in (plain, found)]
    >>> bool(errors[1] < 0.5 * errors[0])
    True
    """
    x, weight = _checks.float_array(x, "x", ndim=2), _checks.float_array(weight, "weight", ndim=2)
    _checks.same_dtype("x", x, weight=weight)
    _checks.not_empty(x, "x", (0, 1))
    _checks.shape(weight, "weight", (x.shape[1], weight.shape[1]))
    _checks.finite(x, "x")
    _checks.whole(k, "k", low=2)
    _checks.whole(n_iter, "n_iter", low=0)
    _checks.non_negative(penalty, "penalty")
    _checks.one_of(forward, "forward", FORWARDS)
    permutation, boundaries = group_neurons(weight, n_groups, method=grouping, rng=rng)
    sorted_weight, rows, scales = _grouped(weight[:, permutation], boundaries, shared)
    codebooks = np.stack(
        [kmeans_codebook((sorted_weight / scales)[:, rows == g], k, rng=rng)[0] for g in range(rows.max() + 1)]
    )
    columns = scales[:, None] * codebooks[rows]
    distance = np.abs(sorted_weight[..., None] - columns)
    params = {"logits": (-FIRST_SHARPNESS * distance / _mean_gap(columns)).astype(x.dtype), "codebooks": codebooks}
    # The loss and its gradient need only the inputs' second moments.
    moments = x.T @ x / x.dtype.type(len(x))
    descent = Descent({"logits": learning_rates[0], "codebooks": learning_rates[1]})
    monitor = Monitor("fit_codebook", callback=callback, hint="use smaller learning_rates")
    codes = params["logits"].argmax(axis=-1)
    for i in range(n_iter):
        columns = scales[:, None] * params["codebooks"][rows]
        soft, pull = soft_map_vjp(columns, params["logits"], gradient=gradient, kernel=kernel)
        hard_codes = params["logits"].argmax(axis=-1)
        used = soft if forward == "soft" else _look_up(columns, hard_codes)
        error = used - sorted_weight
        pushed = moments @ error
        moved = np.abs(hard_codes - codes)
        codes = hard_codes
        if monitor.record(loss=(error * pushed).sum(), changed=(moved > 0).sum(), jumped=(moved > 1).sum()):
            break
        dcolumns, dlogits = pull(2 * pushed)
        ramp = max(0.0, (i / n_iter - PENALTY_FROM) / (1 - PENALTY_FROM))
        dlogits = dlogits + x.dtype.type(penalty * ramp) * _undecided_gradient(params["logits"])
        dcodebooks = np.zeros_like(codebooks)
        np.add.at(dcodebooks, rows, scales[:, None] * dcolumns)
        params = descent.step(params, {"logits": dlogits, "codebooks": dcodebooks})
    codes = params["logits"].argmax(axis=-1)
    fitted = _refit(moments, sorted_weight, codes, rows, scales, params["codebooks"])
    found = np.empty_like(weight)
    found[:, permutation] = _look_up(scales[:, None] * fitted[rows], codes)
    return CodebookResult(codes, fitted, scales, permutation, boundaries, found, monitor.n_iter, monitor.history())


def _grouped(weight: AnyArray, boundaries: IntArray, shared: bool) -> tuple[AnyArray, IntArray, AnyArray]:
    """Return the sorted weights, the codebook of each column, and the factor of each column."""
    group = np.repeat(np.arange(len(boundaries) - 1), np.diff(boundaries))
    if not shared:
        return weight, group, np.ones(weight.shape[1], weight.dtype)
    largest = np.array([np.abs(weight[:, group == g]).max(initial=0) for g in range(len(boundaries) - 1)])
    scales = np.where(largest > 0, largest, 1).astype(weight.dtype)
    return weight, np.zeros_like(group), scales[group]


def _look_up(columns: AnyArray, codes: IntArray) -> AnyArray:
    """Return the codeword of every code; ``columns`` (N, k) has the codebook of each column."""
    return np.asarray(columns[np.arange(codes.shape[1]), codes])


def _undecided_gradient(logits: AnyArray) -> AnyArray:
    """Return the gradient of ``sum(1 - sum_j m_j^2)`` with respect to the logits."""
    m = softmax(logits)
    return np.asarray(-2 * m * (m - (m * m).sum(axis=-1, keepdims=True)))


def refit_codebook(
    x: Array[F],
    weight: Array[F],
    codes: IntArray,
    boundaries: IntArray,
    *,
    codebooks: Array[F] | None = None,
) -> Array[F]:
    """Return the codewords with the least squared error of the layer's output, for given codes.

    Parameters
    ----------
    x : array (T, K)
    weight : array (K, N)
        Columns in the order of the groups.
    codes : int array (K, N)
    boundaries : int array (G + 1,)
        As :func:`group_neurons` returns them.
    codebooks : array (G, k), optional
        Gives k, and the codewords that no weight uses; by default those are 0 and k is the largest code plus 1.

    Returns
    -------
    array (G, k), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes do not fit.

    Notes
    -----
    For one group, ``sum_j c_j x Z_j`` with the 0-1 matrices ``Z_j`` of the places of code ``j`` is linear in ``c``: k
    normal equations.

    Examples
    --------
    >>> refit_codebook(np.eye(2), np.array([[1.0, 3.0], [5.0, 3.5]]), np.array([[0, 1], [1, 1]]), np.array([0, 2]))
    array([[1.        , 3.83333333]])
    """
    x, weight = _checks.float_array(x, "x", ndim=2), _checks.float_array(weight, "weight", ndim=2)
    _checks.same_dtype("x", x, weight=weight, codebooks=codebooks)
    _checks.not_empty(x, "x", (0, 1))
    _checks.shape(weight, "weight", (x.shape[1], weight.shape[1]))
    codes = _checks.integer_array(codes, "codes", low=0)
    _checks.shape(codes, "codes", weight.shape)
    boundaries = _checks.integer_array(boundaries, "boundaries", ndim=1)
    groups = len(boundaries) - 1
    if groups < 1 or boundaries[0] != 0 or boundaries[-1] != weight.shape[1] or (np.diff(boundaries) < 0).any():
        _checks.fail("boundaries", f"numbers from 0 to {weight.shape[1]} that do not decrease", boundaries)
    if codebooks is None:
        codebooks = np.zeros((groups, int(codes.max()) + 1), x.dtype)
    _checks.shape(codebooks, "codebooks", (groups, codebooks.shape[-1]))
    _checks.integer_array(codes, "codes", high=codebooks.shape[1] - 1)
    rows = np.repeat(np.arange(groups), np.diff(boundaries))
    scales = np.ones(weight.shape[1], x.dtype)
    return _refit(x.T @ x / x.dtype.type(len(x)), weight, codes, rows, scales, codebooks)


def _refit(
    moments: AnyArray, weight: AnyArray, codes: IntArray, rows: IntArray, scales: AnyArray, codebooks: AnyArray
) -> AnyArray:
    """Solve the normal equations of each codebook, in float64; unused codewords stay."""
    fitted = codebooks.copy()
    target = moments.astype(np.float64) @ weight
    for g in range(len(codebooks)):
        mine = rows == g
        used = np.unique(codes[:, mine])
        if not used.size:
            continue
        placed = [(codes[:, mine] == j) * scales[mine].astype(np.float64) for j in used]
        pushed = [moments @ z for z in placed]
        normal = np.array([[np.vdot(z, p) for p in pushed] for z in placed])
        right = np.array([np.vdot(z, target[:, mine]) for z in placed])
        fitted[g, used] = np.linalg.lstsq(normal, right, rcond=None)[0]
    return fitted


def bits_per_weight(shape: Sequence[int], k: int, n_groups: int, *, codeword_bits: int = 32) -> float:
    """Return what a weight takes in memory, codes and codebooks together.

    Parameters
    ----------
    shape : two ints
        Of the weight matrix.
    k : int >= 1
        Codewords of a codebook.
    n_groups : int >= 1
        Codebooks.
    codeword_bits : int >= 1
        Of one codeword.

    Returns
    -------
    float
        ``ceil(log2 k) + n_groups k codeword_bits / size``.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range.

    Examples
    --------
    >>> bits_per_weight((64, 64), 4, 8)
    2.25
    """
    for name, value in (("k", k), ("n_groups", n_groups), ("codeword_bits", codeword_bits)):
        _checks.whole(value, name, low=1)
    size = 1
    for length in shape:
        size *= _checks.whole(length, "shape", low=1)
    return (int(k) - 1).bit_length() + n_groups * k * codeword_bits / size
