"""PV-Tuning: descent on weights that are stored as codes, over codewords and codes in turn.

    P step: codes fixed, gradient step on the codewords         V step: codewords fixed, few codes chosen anew

The V step moves those groups of weights whose step is largest, to the codewords nearest to where the gradient sends them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.quantizers._descent import EPS
from refnorm.quantizers._joint_codebook import _lloyd, _seeded
from refnorm.solvers import Monitor
from refnorm.solvers._monitor import Callback
from refnorm.solvers._protocol import check_betas

METHOD = Method(
    title="PV-Tuning: Beyond Straight-Through Estimation for Extreme LLM Compression",
    authors="Malinovskii, Mazur, Ilin, Kuznedelev, Burlachenko, Yi, Alistarh, Richtarik",
    year=2024,
    arxiv="2405.14852",
    functions=(
        "partition",
        "values",
        "PVResult",
        "pv_exact_quadratic",
        "pv_linearized_quadratic",
        "additive_dequantize",
        "AdditiveQuantized",
        "kmeans_init",
        "nearest_codes",
        "PVState",
        "PVOptimizer",
        "ste_step",
        "continuous_only_step",
    ),
    chapter="quantizers/pv_tuning",
)

MOST_ASSIGNMENTS = 2**16
"""Largest table of assignments that the exact V step goes through: 16 coordinates with two values."""

TIE = 1e-14
"""Distances from a group closer than this share of its length are equal: some fifty roundings of float64."""

STILL = 1e-12
"""A P step that moves no coordinate by more than this share of the largest one has come to rest."""


def partition(x: Array[F]) -> IntArray:
    """Return the class of each coordinate: equal coordinates share a class.

    Parameters
    ----------
    x : array (d,)

    Returns
    -------
    int array (d,)
        Index of each coordinate among :func:`values`.

    Raises
    ------
    TypeError, ValueError
        If ``x`` is no vector of finite floats.

    Examples
    --------
    >>> partition(np.array([0.5, -1.0, 0.5]))
    array([1, 0, 1])
    """
    return np.unique(_vector(x, "x"), return_inverse=True)[1].reshape(-1)


def values(x: Array[F]) -> Array[F]:
    """Return the distinct coordinates, ascending: ``values(x)[partition(x)]`` is ``x``.

    Parameters
    ----------
    x : array (d,)

    Returns
    -------
    array (c,)

    Raises
    ------
    TypeError, ValueError
        If ``x`` is no vector of finite floats.

    Examples
    --------
    >>> values(np.array([0.5, -1.0, 0.5]))
    array([-1. ,  0.5])
    """
    return np.unique(_vector(x, "x"))


@dataclass(frozen=True, eq=False)
class PVResult:
    """What alternating P and V steps on a quadratic end with.

    Parameters
    ----------
    x : array (d,)
        With no more distinct values than the start.
    n_iter : int
        Pairs of steps done.
    converged : bool
        Whether the last pair changed no class, and its P step was at rest.
    history : dict of arrays
        After every pair: ``objective``, and ``changed``, the coordinates that the V step gave another value.
    """

    x: AnyArray
    n_iter: int
    converged: bool
    history: Mapping[str, AnyArray]


def pv_exact_quadratic(
    matrix: Array[F], vector: Array[F], x0: Array[F], *, n_iter: int = 100, callback: Callback | None = None
) -> PVResult:
    """Minimize ``x A x / 2 - b x`` over vectors with few distinct values, by exact P and V steps.

    Parameters
    ----------
    matrix : array (d, d)
        A: symmetric, positive semidefinite.
    vector : array (d,)
        b.
    x0 : array (d,)
        With c distinct values; ``c ** d`` is at most 65536.
    n_iter : int >= 1
        Most pairs of steps.
    callback
        Called after every pair with a :class:`refnorm.solvers.Progress`; a true result ends the run.

    Returns
    -------
    PVResult

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit, ``matrix`` is not symmetric, or there are too many assignments.
    Diverged
        If the objective grows beyond bounds, as it can where ``matrix`` is indefinite.

    Notes
    -----
    P step: the best vector whose classes are those of x, or unions of them. V step: the best one whose values are among
    those of x. Both minimize over a set that holds the vector that they begin with: the objective never grows.

    References
    ----------
    Malinovskii et al. (2024), arXiv 2405.14852, algorithm 1.

    Examples
    --------
    >>> found = pv_exact_quadratic(np.eye(4), np.array([0.0, 0.2, 0.4, 2.0]), np.array([0.0, 0.0, 1.0, 1.0]))
    >>> found.x.round(6), found.n_iter
    (array([0.2, 0.2, 0.2, 2. ]), 2)
    """
    matrix, vector, x = _quadratic(matrix, vector, x0)
    _checks.whole(n_iter, "n_iter", low=1)
    d, c = len(x), len(values(x))
    if c**d > MOST_ASSIGNMENTS:
        _checks.fail("x0", f"c values for d coordinates with c ** d <= {MOST_ASSIGNMENTS}", f"c = {c}, d = {d}")
    monitor = Monitor("pv_exact_quadratic", callback=callback, hint="use a positive semidefinite matrix")
    converged = False
    for _ in range(n_iter):
        label = partition(x)
        # Z sends values to coordinates; the least change among minimizers, where Z^T A Z is singular.
        z = (label[:, None] == np.arange(label.max() + 1)).astype(x.dtype)
        now = values(x)
        slope = z.T @ (vector - matrix @ x)
        x = z @ (now + np.linalg.lstsq(z.T @ matrix @ z, slope, rcond=None)[0])
        x, changed = _best_assignment(matrix, vector, x)
        # Without a change of classes the next P step would solve the same system.
        converged = changed == 0
        if monitor.record(objective=_objective(matrix, vector, x), changed=changed) or converged:
            break
    return PVResult(x, monitor.n_iter, converged, monitor.history())


def _best_assignment(matrix: AnyArray, vector: AnyArray, x: AnyArray) -> tuple[AnyArray, int]:
    """Return the best vector with values among those of x, and in how many coordinates it differs."""
    among, label = values(x), partition(x)
    table = np.indices((len(among),) * len(x)).reshape(len(x), -1)
    candidates = among[table]
    objective = ((matrix @ candidates) * candidates).sum(axis=0) / 2 - vector @ candidates
    own = np.ravel_multi_index(tuple(label), (len(among),) * len(x))
    best = int(objective.argmin())
    if not objective[best] < objective[own]:
        return x, 0
    return candidates[:, best], int((table[:, best] != label).sum())


def pv_linearized_quadratic(
    matrix: Array[F],
    vector: Array[F],
    x0: Array[F],
    *,
    n_iter: int = 100,
    subspace: int | None = None,
    callback: Callback | None = None,
) -> PVResult:
    """Minimize ``x A x / 2 - b x`` over vectors with few distinct values, by gradient steps.

    Parameters
    ----------
    matrix, vector, x0, n_iter, callback
        As in :func:`pv_exact_quadratic`; here ``c`` and ``d`` have no limit.
    subspace : int, 1 to d, optional
        The V step moves this many coordinates, those with the largest gradient; by default all.

    Returns
    -------
    PVResult

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit, or ``matrix`` is not symmetric.

    Notes
    -----
    With the largest eigenvalue L of A, a P step replaces each class by the mean of ``x - grad / L`` over it. A V step
    replaces coordinate i of the set S by the value nearest to ``x_i - grad_i / L_S``, where ``L_S <= L`` is the largest
    eigenvalue of A restricted to S. Both minimize a majorant: the objective never grows. For A = I it is Lloyd's algorithm.

    References
    ----------
    Malinovskii et al. (2024), arXiv 2405.14852, sections on linearized and on subspace linearized PV.

    Examples
    --------
    >>> vector, x0 = np.array([0.0, 0.2, 0.4, 2.0]), np.array([0.0, 0.0, 1.0, 1.0])
    >>> pv_linearized_quadratic(np.eye(4), vector, x0, n_iter=1).x.round(6)
    array([0.1, 0.1, 0.1, 1.2])
    """
    matrix, vector, x = _quadratic(matrix, vector, x0)
    _checks.whole(n_iter, "n_iter", low=1)
    tau = len(x) if subspace is None else _checks.whole(subspace, "subspace", low=1, high=len(x))
    largest = _largest_eigenvalue(matrix)
    monitor = Monitor("pv_linearized_quadratic", callback=callback, hint="use a positive semidefinite matrix")
    converged = False
    for _ in range(n_iter):
        label = partition(x)
        moved = _divided(vector - matrix @ x, largest)
        y = x + (np.bincount(label, moved) / np.bincount(label))[label].astype(x.dtype)
        at_rest = bool(np.abs(y - x).max() <= STILL * np.abs(y).max())
        slope = vector - matrix @ y
        chosen = np.argsort(-np.abs(slope), kind="stable")[:tau]
        target = y[chosen] + _divided(slope[chosen], _largest_eigenvalue(matrix[np.ix_(chosen, chosen)]))
        x = y.copy()
        x[chosen] = _nearest_values(target, values(y), y[chosen])
        changed = int((x != y).sum())
        converged = changed == 0 and at_rest
        if monitor.record(objective=_objective(matrix, vector, x), changed=changed) or converged:
            break
    return PVResult(x, monitor.n_iter, converged, monitor.history())


def _nearest_values(target: AnyArray, among: AnyArray, own: AnyArray) -> AnyArray:
    distance = np.abs(target[:, None] - among)
    best = distance.argmin(axis=1)
    better = distance[np.arange(len(target)), best] < np.abs(target - own)
    return np.where(better, among[best], own)


def _divided(slope: AnyArray, curvature: float) -> AnyArray:
    # Without curvature the quadratic is constant along these coordinates (A is semidefinite) or has no minimum.
    return np.asarray(slope / curvature if curvature > 0 else np.zeros_like(slope))


def _largest_eigenvalue(matrix: AnyArray) -> float:
    return float(np.linalg.eigvalsh(matrix)[-1])


def _objective(matrix: AnyArray, vector: AnyArray, x: AnyArray) -> float:
    return float(x @ (matrix @ x) / 2 - vector @ x)


def _vector(x: AnyArray, name: str) -> AnyArray:
    x = _checks.float_array(x, name, ndim=1)
    _checks.not_empty(x, name, (0,))
    _checks.finite(x, name)
    return x


def _quadratic(matrix: AnyArray, vector: AnyArray, x0: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
    matrix = _checks.float_array(matrix, "matrix", ndim=2)
    vector, x0 = _vector(vector, "vector"), _vector(x0, "x0")
    _checks.same_dtype("matrix", matrix, vector=vector, x0=x0)
    _checks.shape(matrix, "matrix", (len(vector), len(vector)))
    _checks.shape(x0, "x0", vector.shape)
    _checks.finite(matrix, "matrix")
    if not np.allclose(matrix, matrix.T):
        _checks.fail("matrix", "a symmetric matrix", f"a difference of {np.abs(matrix - matrix.T).max():.3g}")
    return matrix, vector, x0


def additive_dequantize(codes: IntArray, codebooks: Array[F], scales: Array[F]) -> Array[F]:
    """Return the weights that codes stand for: each group is a scale times a sum of codewords.

    Parameters
    ----------
    codes : int array (R, G, M)
        0 to K - 1: for each of G groups of a row, a codeword of each codebook.
    codebooks : array (M, K, g)
        At least two codewords each.
    scales : array (R,)
        One a row.

    Returns
    -------
    array (R, G g)

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit or a code is out of range.

    Notes
    -----
    ``w_j = s sum_m C_m[k_jm]``: linear in codebooks and in scales.

    References
    ----------
    Malinovskii et al. (2024), arXiv 2405.14852, section on vector quantization; Egiazarian et al. (2024).

    Examples
    --------
    >>> codebooks = np.array([[[1.0, 2.0], [0.0, -1.0]]])
    >>> additive_dequantize(np.array([[[0], [1]]]), codebooks, np.array([2.0]))
    array([[ 2.,  4.,  0., -2.]])
    """
    return additive_dequantize_vjp(codes, codebooks, scales)[0]


def additive_dequantize_vjp(codes: IntArray, codebooks: Array[F], scales: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`additive_dequantize` and its pullback ``dw -> (dcodebooks, dscales)``."""
    codes, codebooks, scales = _additive(codes, codebooks, scales)
    m, k, g = codebooks.shape
    rows, groups, _ = codes.shape
    summed = _sum_of_codewords(codes, codebooks)
    w: Array[F] = (scales[:, None, None] * summed).reshape(rows, groups * g)

    def pullback(dw: Array[F]) -> tuple[Array[F], Array[F]]:
        by_group = dw.reshape(rows, groups, g)
        # dL/dC_m[c] = sum of s G_j over the groups j that use codeword c.
        scaled = np.broadcast_to((scales[:, None, None] * by_group)[:, :, None], (rows, groups, m, g))
        place = ((np.arange(m) * k + codes)[..., None] * g + np.arange(g)).ravel()
        dcodebooks = np.bincount(place, scaled.ravel(), m * k * g).reshape(m, k, g)
        # dL/ds = sum over the row's groups of <G_j, sum_m C_m[k_jm]>.
        return dcodebooks.astype(codebooks.dtype), (by_group * summed).sum(axis=(1, 2))

    return w, pullback


def _sum_of_codewords(codes: IntArray, codebooks: AnyArray) -> AnyArray:
    return np.asarray(codebooks[np.arange(len(codebooks)), codes].sum(axis=-2))


def _additive(codes: IntArray, codebooks: AnyArray, scales: AnyArray) -> tuple[IntArray, AnyArray, AnyArray]:
    codebooks = _checks.float_array(codebooks, "codebooks", ndim=3)
    _checks.not_empty(codebooks, "codebooks", (0, 2))
    if codebooks.shape[1] < 2:
        _checks.fail("codebooks", "at least 2 codewords", f"shape {codebooks.shape}")
    codes = _checks.integer_array(codes, "codes", ndim=3, low=0, high=codebooks.shape[1] - 1)
    _checks.shape(codes, "codes", (*codes.shape[:2], len(codebooks)))
    scales = _checks.float_array(scales, "scales", ndim=1)
    _checks.same_dtype("codebooks", codebooks, scales=scales)
    _checks.shape(scales, "scales", codes.shape[:1])
    return codes, codebooks, scales


@dataclass(frozen=True, eq=False)
class AdditiveQuantized:
    """A weight matrix as codes: a group of g weights is a scale times a sum of M codewords.

    Parameters
    ----------
    codes : int array (R, G, M)
    codebooks : array (M, K, g)
    scales : array (R,)

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit or a code is out of range.

    Examples
    --------
    >>> codebooks = np.array([[[1.0, 2.0], [0.0, -1.0]]])
    >>> AdditiveQuantized(np.array([[[0], [1]]]), codebooks, np.array([2.0])).dequantize()
    array([[ 2.,  4.,  0., -2.]])
    """

    codes: IntArray
    codebooks: AnyArray
    scales: AnyArray

    def __post_init__(self) -> None:
        _additive(self.codes, self.codebooks, self.scales)

    def dequantize(self) -> AnyArray:
        """Return the weights, (R, G g); see :func:`additive_dequantize`."""
        return additive_dequantize(self.codes, self.codebooks, self.scales)


def kmeans_init(
    weight: Array[F], *, group: int, codebook_size: int, n_codebooks: int = 1, rng: np.random.Generator
) -> AdditiveQuantized:
    """Quantize a matrix by k-means over its groups of weights, one codebook after the other.

    Parameters
    ----------
    weight : array (R, G group)
        Finite; a group is ``group`` neighbours of a row.
    group : int >= 1
    codebook_size : int >= 2
        Codewords of a codebook.
    n_codebooks : int >= 1
        Each one after the first clusters what is left of the groups.
    rng : numpy.random.Generator
        For k-means++.

    Returns
    -------
    AdditiveQuantized
        A row's scale is its root mean square; codewords are in lexicographic order.

    Raises
    ------
    TypeError, ValueError
        If ``group`` does not divide the row, ``weight`` is empty or not finite, or a number is out of its range.

    Examples
    --------
    >>> weight = np.array([[1.0, 1.0, -1.0, -1.0]])
    >>> kmeans_init(weight, group=2, codebook_size=2, rng=np.random.default_rng(0)).codes.ravel()
    array([1, 0])
    """
    weight = _checks.float_array(weight, "weight", ndim=2)
    _checks.not_empty(weight, "weight", (0, 1))
    _checks.finite(weight, "weight")
    _checks.whole(group, "group", low=1)
    _checks.whole(codebook_size, "codebook_size", low=2)
    _checks.whole(n_codebooks, "n_codebooks", low=1)
    _checks.generator(rng)
    rows, width = weight.shape
    if width % group:
        _checks.fail("group", f"a divisor of the row's length {width}", group)
    scales = np.sqrt(np.square(weight, dtype=np.float64).mean(axis=1))
    left = (weight / np.where(scales > 0, scales, 1)[:, None]).reshape(-1, group).astype(np.float64)
    codebooks, codes = [], []
    for _ in range(n_codebooks):
        centres, label = _lloyd(left, _seeded(left, codebook_size, rng))
        order = np.lexsort(centres.T[::-1])
        codebooks.append(centres[order])
        codes.append(np.argsort(order)[label])
        left = left - centres[label]
    return AdditiveQuantized(
        np.stack(codes, axis=1).reshape(rows, -1, n_codebooks),
        np.array(codebooks, weight.dtype),
        scales.astype(weight.dtype),
    )


def nearest_codes(
    weight: Array[F],
    quantized: AdditiveQuantized,
    *,
    beam_size: int = 1,
    keep_ties: bool = True,
    rng: np.random.Generator | None = None,
) -> IntArray:
    """Return codes whose weights are near to given ones, with codebooks and scales as they are.

    Parameters
    ----------
    weight : array (R, G g)
        What the codes shall stand for.
    quantized : AdditiveQuantized
        Its codes are where the search begins.
    beam_size : int >= 1
        Candidates kept after each codebook.
    keep_ties : bool
        Keep a group's codes unless others are nearer; otherwise the lowest of equals.
    rng : numpy.random.Generator, optional
        Go through the codebooks in random order; by default from the first to the last.

    Returns
    -------
    int array (R, G, M)

    Raises
    ------
    TypeError, ValueError
        If ``weight`` does not fit the codes or an option is out of its range.

    Notes
    -----
    One codebook: the nearest codeword. Several: a beam search in which each codebook in turn chooses its code anew, the others
    fixed. The error never grows. Groups of a row whose scale is 0 keep their codes.

    References
    ----------
    Malinovskii et al. (2024), arXiv 2405.14852, section on vector quantization; Babenko, Lempitsky (2014).

    Examples
    --------
    >>> quantized = AdditiveQuantized(np.array([[[0], [0]]]), np.array([[[1.0], [-1.0]]]), np.array([2.0]))
    >>> nearest_codes(np.array([[3.0, -0.5]]), quantized).ravel()
    array([0, 1])
    """
    codes, codebooks, scales = _additive(quantized.codes, quantized.codebooks, quantized.scales)
    weight = _weights_like(weight, "weight", codes, codebooks)
    _checks.whole(beam_size, "beam_size", low=1)
    target = weight.reshape(-1, codebooks.shape[2])
    flat = codes.reshape(-1, len(codebooks))
    per_group = np.repeat(scales, codes.shape[1])
    order = np.arange(len(codebooks)) if rng is None else _checks.generator(rng).permutation(len(codebooks))
    return _search(target, per_group, flat, codebooks, order, beam_size, keep_ties).reshape(codes.shape)


def _search(
    target: AnyArray,
    scales: AnyArray,
    codes: IntArray,
    codebooks: AnyArray,
    order: IntArray,
    beam: int,
    keep_ties: bool,
) -> IntArray:
    """Return codes (n, M) for groups (n, g), beginning with ``codes``."""
    books = codebooks.astype(np.float64)
    n, size = len(target), books.shape[1]
    wanted = target / np.where(scales != 0, scales, 1)[:, None].astype(np.float64)
    found = codes[:, None]
    for m in order:
        # |r - c|^2 = |r|^2 + |c|^2 - 2 c r, where r is what the other codebooks leave; about the codebook's mean, so that
        # codewords that are close to each other and far from 0 do not cancel.
        mean = books[m].mean(axis=0)
        rest = wanted[:, None] - _sum_of_codewords(found, books) + books[m, found[..., m]] - mean
        book = books[m] - mean
        error = (rest**2).sum(axis=2)[..., None] + (book**2).sum(axis=1) - 2 * rest @ book.T
        error = error.reshape(n, -1)
        kept = np.argsort(error, axis=1, kind="stable")[:, :beam] if beam > 1 else error.argmin(axis=1)[:, None]
        found = np.take_along_axis(found, (kept // size)[..., None], axis=1)
        found[..., m] = kept % size
    best = found[:, 0]
    before, after = (np.square(wanted - _sum_of_codewords(k, books)).sum(axis=1) for k in (codes, best))
    nearer = after <= before
    if keep_ties:
        away = np.sqrt(before)
        nearer = away - np.sqrt(after) > TIE * (away + np.sqrt(np.square(wanted).sum(axis=1)))
    return np.where((nearer & (scales != 0))[:, None], best, codes)


def _weights_like(weight: AnyArray, name: str, codes: IntArray, codebooks: AnyArray) -> AnyArray:
    weight = _checks.float_array(weight, name, ndim=2)
    _checks.same_dtype("codebooks", codebooks, **{name: weight})
    _checks.shape(weight, name, (codes.shape[0], codes.shape[1] * codebooks.shape[2]))
    return weight


@dataclass(frozen=True, eq=False)
class PVState:
    """State of :class:`PVOptimizer`.

    Parameters
    ----------
    weight : array (R, G g)
        The buffer from which the step of the weights begins: the dequantized weights, or with ``delta_decay`` below 1 a
        float copy that remembers.
    first, second : dicts of arrays
        Adam's averages of gradients and of their squares, for ``codebooks``, ``scales`` and ``weight``.
    n_steps : int
    changed : int
        Groups that the last step gave other codes.
    """

    weight: AnyArray
    first: Mapping[str, AnyArray]
    second: Mapping[str, AnyArray]
    n_steps: int = 0
    changed: int = 0


@dataclass(frozen=True)
class PVOptimizer:
    """Gradient steps on codebooks and scales, and new codes for a few groups of weights.

    Parameters
    ----------
    learning_rate_values, learning_rate_codes : floats > 0
        Adam's rates for codebooks and scales, and for the weights whose step chooses codes.
    max_code_change : float in (0, 1]
        Largest share of groups that a step gives other codes, but always at least one group.
    trust_ratio : float > 0
        Largest length of the change by new codes, relative to the weights' own; infinity for no limit.
    delta_decay : float in [0, 1]
        1: the weights' step begins at the dequantized weights. 0: at where the last one ended, which is straight-through
        estimation. Between: at the mixture.
    temperature : float >= 0
        0: the groups with the longest steps. Otherwise draw them with probabilities proportional to the length to the power
        ``1 / temperature``.
    beam_size : int >= 1
        See :func:`nearest_codes`.
    betas : two floats in [0, 1)
        Decay of Adam's averages.

    Raises
    ------
    TypeError, ValueError
        If a hyper-parameter is outside its range.

    Notes
    -----
    With the gradient G at the weights W: codebooks and scales take an Adam step along their share of G; a reference is the buffer
    after an Adam step along G; groups are ranked by the distance of the reference from their weights with the stepped
    codebooks; the first ones take the nearest codes, in order, as long as the change is below the trust ratio.

    References
    ----------
    Malinovskii et al. (2024), arXiv 2405.14852, algorithm 2 and the section on implementation.

    Examples
    --------
    >>> quantized = AdditiveQuantized(np.array([[[0], [0]]]), np.array([[[1.0], [-1.0]]]), np.array([1.0]))
    >>> optimizer = PVOptimizer(learning_rate_values=1e-3, learning_rate_codes=1.5, trust_ratio=np.inf)
    >>> state = optimizer.init(quantized)
    >>> quantized, state = optimizer.step(quantized, np.array([[0.0, 3.0]]), state)
    >>> quantized.codes.ravel(), state.changed
    (array([0, 1]), 1)
    """

    learning_rate_values: float = 1e-4
    learning_rate_codes: float = 3e-4
    max_code_change: float = 0.01
    trust_ratio: float = 0.01
    delta_decay: float = 1.0
    temperature: float = 0.0
    beam_size: int = 1
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        _checks.positive(self.learning_rate_values, "learning_rate_values")
        _checks.positive(self.learning_rate_codes, "learning_rate_codes")
        _checks.in_range(self.max_code_change, "max_code_change", 0.0, 1.0, closed="right")
        _checks.in_range(self.trust_ratio, "trust_ratio", 0.0, np.inf, closed="right")
        _checks.in_range(self.delta_decay, "delta_decay", 0.0, 1.0)
        _checks.non_negative(self.temperature, "temperature")
        _checks.whole(self.beam_size, "beam_size", low=1)
        check_betas(self.betas, closed="left")

    def init(self, params: AdditiveQuantized) -> PVState:
        """Return the state before the first step: no averages, and the buffer at the dequantized weights."""
        weight = additive_dequantize(params.codes, params.codebooks, params.scales)
        zeros = {"codebooks": params.codebooks * 0, "scales": params.scales * 0, "weight": weight * 0}
        return PVState(weight, zeros, zeros)

    def step(
        self, params: AdditiveQuantized, grads: Array[F], state: PVState, *, rng: np.random.Generator | None = None
    ) -> tuple[AdditiveQuantized, PVState]:
        """Return quantized weights and state after one step; nothing is written in place.

        Parameters
        ----------
        params : AdditiveQuantized
        grads : array (R, G g)
            Gradient of the loss at the dequantized weights.
        state : PVState
        rng : numpy.random.Generator, optional
            Needed with a temperature; otherwise it orders the codebooks of the search.
        """
        if self.temperature > 0:
            _checks.generator(rng)
        stepped, reference, moments = self._adam(params, grads, state)
        before = stepped.dequantize()
        codes = self._new_codes(reference, before, stepped, rng)
        params = AdditiveQuantized(codes, stepped.codebooks, stepped.scales)
        # delta 1: the next step begins at what the codes stand for; delta 0: at the float copy.
        buffer = self.delta_decay * params.dequantize() + (1 - self.delta_decay) * reference
        changed = int((codes != stepped.codes).any(axis=2).sum())
        return params, PVState(buffer, *moments, state.n_steps + 1, changed)

    def _adam(
        self, params: AdditiveQuantized, grads: AnyArray, state: PVState
    ) -> tuple[AdditiveQuantized, AnyArray, tuple[dict[str, AnyArray], dict[str, AnyArray]]]:
        """Return the P step, the reference and Adam's averages."""
        _, pullback = additive_dequantize_vjp(params.codes, params.codebooks, params.scales)
        grads = _weights_like(grads, "grads", params.codes, params.codebooks)
        slopes = dict(zip(("codebooks", "scales", "weight"), (*pullback(grads), grads), strict=True))
        beta1, beta2 = self.betas
        first = {name: beta1 * state.first[name] + (1 - beta1) * g for name, g in slopes.items()}
        second = {name: beta2 * state.second[name] + (1 - beta2) * g * g for name, g in slopes.items()}
        # Both averages begin at 0; dividing by 1 - beta^t makes them averages of the gradients seen so far.
        unbias1, unbias2 = (1 - beta ** (state.n_steps + 1) for beta in self.betas)
        direction = {name: first[name] / unbias1 / (np.sqrt(second[name] / unbias2) + EPS) for name in slopes}
        stepped = AdditiveQuantized(
            params.codes,
            params.codebooks - self.learning_rate_values * direction["codebooks"],
            params.scales - self.learning_rate_values * direction["scales"],
        )
        return stepped, state.weight - self.learning_rate_codes * direction["weight"], (first, second)

    def _new_codes(
        self, reference: AnyArray, before: AnyArray, stepped: AdditiveQuantized, rng: np.random.Generator | None
    ) -> IntArray:
        """Return the V step's codes."""
        n_codebooks, _, g = stepped.codebooks.shape
        old = stepped.codes.reshape(-1, n_codebooks)
        target, own = reference.reshape(-1, g), before.reshape(-1, g)
        length = np.sqrt(np.square(target - own).sum(axis=1))
        ranked = _ranked(length, self.temperature, rng)[: max(1, int(self.max_code_change * len(old)))]
        scales = np.repeat(stepped.scales, stepped.codes.shape[1])[ranked]
        order = np.arange(n_codebooks) if rng is None else rng.permutation(n_codebooks)
        found = _search(target[ranked], scales, old[ranked], stepped.codebooks, order, self.beam_size, True)
        changing = np.flatnonzero((found != old[ranked]).any(axis=1))
        # Groups do not overlap: the squared lengths of their changes add up.
        moved = scales[:, None] * _sum_of_codewords(found, stepped.codebooks) - own[ranked]
        grown = np.sqrt(np.cumsum(np.square(moved[changing]).sum(axis=1)))
        # An infinite ratio times weights of 0 would be NaN.
        limit = self.trust_ratio * np.sqrt(np.square(before).sum()) if np.isfinite(self.trust_ratio) else np.inf
        trusted = grown <= limit
        trusted[:1] = True
        accepted = changing[trusted]
        codes = old.copy()
        codes[ranked[accepted]] = found[accepted]
        return codes.reshape(stepped.codes.shape)


def _ranked(length: AnyArray, temperature: float, rng: np.random.Generator | None) -> IntArray:
    if temperature == 0 or rng is None:
        return np.argsort(-length, kind="stable")
    # The order of log p plus Gumbel noise is a draw without replacement with probabilities p.
    with np.errstate(divide="ignore"):
        return np.argsort(-(np.log(length) / temperature + rng.gumbel(size=len(length))), kind="stable")


def ste_step(
    params: AdditiveQuantized,
    grads: Array[F],
    state: PVState,
    *,
    learning_rate_values: float = 1e-4,
    learning_rate_codes: float = 3e-4,
    beam_size: int = 1,
) -> tuple[AdditiveQuantized, PVState]:
    """Take a step of straight-through estimation: a float copy takes the gradient's steps and all codes follow it.

    Parameters
    ----------
    params : AdditiveQuantized
    grads : array (R, G g)
        Gradient of the loss at the dequantized weights.
    state : PVState
        Of ``PVOptimizer().init(params)`` before the first step.
    learning_rate_values, learning_rate_codes, beam_size
        As in :class:`PVOptimizer`.

    Returns
    -------
    params, state : AdditiveQuantized, PVState

    Raises
    ------
    TypeError, ValueError
        If the gradient does not fit or a number is outside its range.

    Examples
    --------
    >>> quantized = AdditiveQuantized(np.array([[[0], [0]]]), np.array([[[1.0], [-1.0]]]), np.array([1.0]))
    >>> state, grads = PVOptimizer().init(quantized), np.array([[0.0, 3.0]])
    >>> for _ in range(2):
    ...     quantized, state = ste_step(quantized, grads, state, learning_rate_codes=0.7)
    ...     print(quantized.codes.ravel())
    [0 0]
    [0 1]
    """
    optimizer = PVOptimizer(
        learning_rate_values, learning_rate_codes, 1.0, np.inf, delta_decay=0.0, beam_size=beam_size
    )
    return optimizer.step(params, grads, state)


def continuous_only_step(
    params: AdditiveQuantized, grads: Array[F], state: PVState, *, learning_rate_values: float = 1e-4
) -> tuple[AdditiveQuantized, PVState]:
    """Take a P step alone: codebooks and scales move, codes stay.

    Parameters
    ----------
    params : AdditiveQuantized
    grads : array (R, G g)
        Gradient of the loss at the dequantized weights.
    state : PVState
        Of ``PVOptimizer().init(params)`` before the first step.
    learning_rate_values : float > 0

    Returns
    -------
    params, state : AdditiveQuantized, PVState

    Raises
    ------
    TypeError, ValueError
        If the gradient does not fit or the rate is not positive.

    Examples
    --------
    >>> quantized = AdditiveQuantized(np.array([[[0], [0]]]), np.array([[[1.0], [-1.0]]]), np.array([1.0]))
    >>> state = PVOptimizer().init(quantized)
    >>> continuous_only_step(quantized, np.array([[0.0, 3.0]]), state, learning_rate_values=0.5)[0].codebooks
    array([[[ 0.5],
            [-1. ]]])
    """
    stepped, _, moments = PVOptimizer(learning_rate_values)._adam(params, grads, state)
    return stepped, PVState(stepped.dequantize(), *moments, state.n_steps + 1)
