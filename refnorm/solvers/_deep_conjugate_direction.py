"""Deep conjugate directions: a learned map proposes the next direction, conjugacy and line search are exact.

d = propose(r / |r|)                                        r = b - A x
d <- d - (d^T A d_i / d_i^T A d_i) d_i                      for the directions that are kept
x <- x + (r^T d / d^T A d) d
loss(f; r) = |r - (r^T f / f^T A f) A f|^2                  trains the map, without solutions
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback, Tree
from refnorm.nn import avg_pool2d_vjp, conv2d_vjp, relu_vjp
from refnorm.solvers._adamp import AdamP
from refnorm.solvers._monitor import Callback, Monitor
from refnorm.solvers._protocol import Optimizer

METHOD = Method(
    title="A Deep Conjugate Direction Method for Iteratively Solving Linear Systems",
    authors="Kaneda, Akar, Chen, Kala, Hyde, Teran",
    year=2023,
    arxiv="2205.10763",
    functions=(
        "ConjugateDirectionResult",
        "DirectionNetParams",
        "ProposalTraining",
        "conjugate_direction",
        "dcdm_loss",
        "direction_net",
        "init_direction_net",
        "lanczos_ritz",
        "poisson_2d",
        "ritz_training_set",
        "train_linear_proposal",
        "train_proposal",
    ),
    chapter="solvers/deep_conjugate_direction",
)

RowMatVec: TypeAlias = Callable[[AnyArray], AnyArray]
"""Multiplies every row of an array (..., n) by a symmetric matrix."""

SPAN = 1e-8
"""A direction that conjugation shrinks by more than this was in the span of the kept ones, and one with a smaller
cosine to the residual is orthogonal to it: what is left is rounding."""

SMALLEST_RITZ_VALUE = 1e-8
"""Ritz vectors below this value are dropped: they are not resolved."""

BREAKDOWN = 1e-12
"""A new Lanczos vector this short, relative to the matrix, means that the Krylov space is complete."""

NO_PROJECTION = 5e-324
"""With this threshold AdamP never projects: it is Adam."""


@dataclass(frozen=True)
class ConjugateDirectionResult:
    """Outcome of :func:`conjugate_direction`.

    Parameters
    ----------
    x : array (n,)
        The last iterate.
    n_iter
        Iterations, each with one product with the matrix.
    converged
        Whether ``|b - A x| <= tol |b|``.
    history
        ``residual``: its norm after each iteration; ``decrease``: by how much the iteration lowered the squared
        error in the energy norm.
    n_fallback
        Iterations in which the proposal was of no use and the residual took its place.
    """

    x: AnyArray
    n_iter: int
    converged: bool
    history: dict[str, Array[np.float64]]
    n_fallback: int


@dataclass(frozen=True)
class ProposalTraining:
    """Outcome of :func:`train_proposal`: the parameters, and the ``loss`` of every batch."""

    params: Tree
    n_iter: int
    history: dict[str, Array[np.float64]]


@dataclass(frozen=True)
class DirectionNetParams:
    """Weights and biases of a small U-shaped network with C channels.

    Parameters
    ----------
    lift : (weight, bias)
        3 x 3 convolution from one channel to C.
    fine : tuple of two (weight, bias)
        On the fine grid, before the first pooling.
    middle, coarse : tuples of four (weight, bias)
        Two residual blocks of two convolutions after the first and the second pooling.
    up : tuple of two (weight, bias)
        One residual convolution after each step up.
    head : (weight, bias)
        1 x 1 convolution to one channel.
    """

    lift: tuple[AnyArray, AnyArray]
    fine: tuple[tuple[AnyArray, AnyArray], ...]
    middle: tuple[tuple[AnyArray, AnyArray], ...]
    coarse: tuple[tuple[AnyArray, AnyArray], ...]
    up: tuple[tuple[AnyArray, AnyArray], ...]
    head: tuple[AnyArray, AnyArray]


def conjugate_direction(
    matvec: RowMatVec,
    b: Array[F],
    propose: Callable[[AnyArray], AnyArray],
    *,
    x0: Array[F] | None = None,
    n_keep: int = 2,
    tol: float = 1e-6,
    max_iter: int = 1000,
    residual_refresh: int = 50,
    callback: Callback | None = None,
) -> ConjugateDirectionResult:
    """Solve ``A x = b`` for a symmetric positive definite ``A`` along proposed directions.

    Parameters
    ----------
    matvec : callable
        Returns ``A v`` for a vector (n,).
    b : array (n,)
    propose : callable
        Returns a direction for a residual of unit length. Any direction is allowed; good ones resemble
        ``A^-1 r``. With ``lambda r: r`` the method is conjugate gradients.
    x0 : array (n,), optional
        Start; 0 by default.
    n_keep : int >= 0
        How many previous directions a new one is made conjugate to.
    tol : float >= 0
        Of the residual, relative to ``|b|``.
    max_iter : int >= 1
    residual_refresh : int >= 1
        After so many iterations the residual is computed afresh.
    callback : callable, optional
        Called with a ``Progress`` after every iteration; a true result ends the run.

    Returns
    -------
    ConjugateDirectionResult

    Raises
    ------
    TypeError, ValueError
        If a shape or option is wrong, or the matrix shows itself not to be positive definite.

    Notes
    -----
    The step length minimises the energy ``(x - x*)^T A (x - x*)`` along the direction, so the energy never
    grows, whatever is proposed. A proposal that is 0, not finite, orthogonal to the residual or in the span of
    the kept directions is replaced by the residual.

    References
    ----------
    Kaneda et al. (2023), arXiv 2205.10763, algorithm 1.

    Examples
    --------
    >>> matrix = np.array([[4.0, 1.0], [1.0, 3.0]])
    >>> result = conjugate_direction(lambda v: matrix @ v, np.array([1.0, 2.0]), lambda r: r)
    >>> result.x.round(6), result.n_iter
    (array([0.090909, 0.636364]), 2)
    """
    b = _checks.float_array(b, "b", ndim=1)
    x = np.zeros_like(b) if x0 is None else _checks.float_array(x0, "x0")
    _checks.same_dtype("b", b, x0=x)
    _checks.shape(x, "x0", b.shape)
    n_keep, max_iter = _checks.whole(n_keep, "n_keep", low=0), _checks.whole(max_iter, "max_iter", low=1)
    _checks.non_negative(tol, "tol")
    residual_refresh = _checks.whole(residual_refresh, "residual_refresh", low=1)
    monitor = Monitor("conjugate_direction", callback=callback, hint="check that the matrix is positive definite")
    kept: deque[tuple[AnyArray, AnyArray, float]] = deque(maxlen=n_keep)
    limit, fallbacks = tol * float(np.linalg.norm(b)), 0
    residual = b - _applied(matvec, x, "matvec")
    norm = float(np.linalg.norm(residual))
    while norm > limit and monitor.n_iter < max_iter:
        found = _along(matvec, _applied(propose, residual / norm, "propose").astype(b.dtype), residual, kept)
        if found is None:
            fallbacks += 1
            direction = residual / norm
            image = _applied(matvec, direction, "matvec")
            curvature = float(direction @ image)
            if not curvature > 0:
                _checks.fail("matvec", "a positive definite matrix", f"r^T A r = {curvature * norm**2}")
            found = direction, image, curvature
        direction, image, curvature = found
        slope = float(residual @ direction)
        step = slope / curvature
        x, residual = x + step * direction, np.asarray(residual - step * image)
        kept.append((direction, image, curvature))
        if (monitor.n_iter + 1) % residual_refresh == 0:
            residual = b - _applied(matvec, x, "matvec")
        norm = float(np.linalg.norm(residual))
        if monitor.record(residual=norm, decrease=slope * step):
            break
    return ConjugateDirectionResult(x, monitor.n_iter, norm <= limit, monitor.history(), fallbacks)


def _along(
    matvec: RowMatVec, direction: AnyArray, residual: AnyArray, kept: deque[tuple[AnyArray, AnyArray, float]]
) -> tuple[AnyArray, AnyArray, float] | None:
    """A proposal made A-orthogonal to the kept directions, with ``A d`` and ``d^T A d``, or ``None`` if useless."""
    before = float(np.linalg.norm(direction))
    for other, image, curvature in kept:
        direction = direction - float(direction @ image) / curvature * other
    left = float(np.linalg.norm(direction))
    if not (np.isfinite(before) and left > SPAN * before):
        return None
    if abs(float(residual @ direction)) <= SPAN * left * float(np.linalg.norm(residual)):
        return None
    image = _applied(matvec, direction, "matvec")
    curvature = float(direction @ image)
    return (direction, image, curvature) if curvature > 0 else None


def _applied(function: Callable[[AnyArray], AnyArray], v: AnyArray, name: str) -> AnyArray:
    value = np.asarray(function(v))
    _checks.shape(value, name, v.shape)
    return value


def dcdm_loss(f: Array[F], r: Array[F], matvec: RowMatVec | AnyArray) -> Array[F]:
    """How far a proposal is from a multiple of ``A^-1 r``, without knowing it.

    Parameters
    ----------
    f : array (..., n)
        Proposals.
    r : array (..., n)
        Residuals that they are for.
    matvec : callable, or symmetric array (n, n)
        Multiplies every row by the positive definite matrix ``A``.

    Returns
    -------
    array ()
        Mean over all rows.

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, or a row has ``f^T A f <= 0``.

    Notes
    -----
    ``|r - c A f|^2`` with the best step along f, ``c = r^T f / f^T A f``: the residual that an exact line search
    leaves. It does not feel the length of f.

    References
    ----------
    Kaneda et al. (2023), arXiv 2205.10763, section 4.

    Examples
    --------
    >>> float(dcdm_loss(np.array([1.0, 1.0]), np.array([1.0, 1.0]), np.diag([1.0, 4.0])).round(12))
    0.72
    """
    return dcdm_loss_vjp(f, r, matvec)[0]


def dcdm_loss_vjp(f: Array[F], r: Array[F], matvec: RowMatVec | AnyArray) -> tuple[Array[F], Pullback]:
    """Return :func:`dcdm_loss` and its pullback ``dloss -> (df, dr)``.

    A matrix that is given as an array counts as fixed and has no cotangent.
    """
    f, r = _checks.float_array(f, "f", min_ndim=1), _checks.float_array(r, "r")
    _checks.same_dtype("f", f, r=r)
    _checks.shape(r, "r", f.shape)
    _checks.not_empty(f, "f", range(f.ndim))
    apply = matvec if callable(matvec) else _by_rows(matvec)

    def inner(a: AnyArray, b: AnyArray) -> AnyArray:
        return np.asarray((a * b).sum(axis=-1, keepdims=True))

    image = _applied(apply, f, "matvec")
    slope, curvature = inner(r, f), inner(f, image)
    if not (curvature.real > 0).all():
        _checks.fail("f", "rows with f^T A f > 0", float(curvature.real.min()))
    step = slope / curvature
    error = r - step * image
    value = np.asarray(inner(error, error).mean())

    def pullback(dloss: Array[F]) -> tuple[AnyArray, AnyArray]:
        # d|e|^2 = 2 e^T (dr - dc A f - c A df),  dc = (r^T df + f^T dr) / curvature - 2 slope (A f)^T df / curvature^2
        along = inner(error, image) / curvature
        df = -along * r + 2 * step * along * image - step * apply(error)
        scale = 2 * dloss / slope.size
        return (scale * df).astype(f.dtype), (scale * (error - along * f)).astype(r.dtype)

    return value, pullback


def _by_rows(matrix: AnyArray) -> RowMatVec:
    matrix = _checks.float_array(matrix, "matvec", ndim=2)
    return lambda v: np.asarray(v @ matrix.T)


def poisson_2d(nx: int, ny: int) -> RowMatVec:
    """Return the product with the five-point Laplacian of a grid with zeros beyond its border.

    Parameters
    ----------
    nx, ny : int >= 1
        Grid points; entry ``i * ny + j`` of a vector is point (i, j).

    Returns
    -------
    callable
        ``(..., nx * ny) -> (..., nx * ny)``.

    Raises
    ------
    TypeError, ValueError
        If a size is no positive integer; the product, if a vector has another length.

    Examples
    --------
    >>> poisson_2d(1, 3)(np.array([1.0, 0.0, 0.0]))
    array([ 4., -1.,  0.])
    """
    nx, ny = _checks.whole(nx, "nx", low=1), _checks.whole(ny, "ny", low=1)

    def matvec(v: AnyArray) -> AnyArray:
        if v.shape[-1] != nx * ny:
            _checks.fail("v", f"shape (..., {nx * ny})", v.shape)
        grid = v.reshape(*v.shape[:-1], nx, ny)
        image = 4 * grid
        image[..., 1:, :] -= grid[..., :-1, :]
        image[..., :-1, :] -= grid[..., 1:, :]
        image[..., 1:] -= grid[..., :-1]
        image[..., :-1] -= grid[..., 1:]
        return np.asarray(image.reshape(v.shape))

    return matvec


def lanczos_ritz(
    matvec: RowMatVec, n: int, m: int, *, rng: np.random.Generator
) -> tuple[Array[np.float64], Array[np.float64]]:
    """Approximate eigenpairs of a symmetric matrix from a Krylov space.

    Parameters
    ----------
    matvec : callable
        Returns ``A v`` for a vector (n,).
    n, m : int, 1 <= m <= n
        Size of the matrix, and of the space.
    rng : numpy.random.Generator
        The space is that of ``A g`` for a Gaussian vector g.

    Returns
    -------
    values : array (k,), ascending
    vectors : array (n, k), orthonormal columns
        With k = m, or fewer if the space is complete before or values are below 1e-8.

    Raises
    ------
    TypeError, ValueError
        If an option is out of range or the product has a wrong shape.

    Notes
    -----
    Lanczos with full re-orthogonalisation, twice, so that the basis stays orthogonal to rounding.

    References
    ----------
    Kaneda et al. (2023), arXiv 2205.10763, section 4; Lanczos (1950).

    Examples
    --------
    >>> values, vectors = lanczos_ritz(poisson_2d(1, 3), 3, 3, rng=np.random.default_rng(0))
    >>> values.round(4)  # 4 - 2 cos(k pi / 4)
    array([2.5858, 4.    , 5.4142])
    """
    n = _checks.whole(n, "n", low=1)
    m = _checks.whole(m, "m", low=1, high=n)
    start = _applied(matvec, _checks.generator(rng).standard_normal(n), "matvec")
    basis = np.zeros((m, n))
    basis[0] = start / np.linalg.norm(start)
    diagonal, beside = np.zeros(m), np.zeros(m)
    size = m
    for k in range(m):
        image = _applied(matvec, basis[k], "matvec")
        diagonal[k] = basis[k] @ image
        for _ in range(2):  # the first pass leaves a rounding error that the second removes
            image = image - basis[: k + 1].T @ (basis[: k + 1] @ image)
        beside[k] = np.linalg.norm(image)
        if k + 1 < m:
            if beside[k] <= BREAKDOWN * np.abs(diagonal).max():
                size = k + 1
                break
            basis[k + 1] = image / beside[k]
    tridiagonal = np.diag(diagonal[:size]) + np.diag(beside[: size - 1], 1) + np.diag(beside[: size - 1], -1)
    values, small = np.linalg.eigh(tridiagonal)
    resolved = values >= SMALLEST_RITZ_VALUE
    return values[resolved], basis[:size].T @ small[:, resolved]


def ritz_training_set(
    vectors: AnyArray,
    n_samples: int,
    *,
    boost: float = 9.0,
    cutoff: int | None = None,
    rng: np.random.Generator,
) -> Array[np.float64]:
    """Draw residuals of unit length that are rich in low frequencies.

    Parameters
    ----------
    vectors : array (n, m)
        Ritz vectors in order of ascending values.
    n_samples : int >= 1
    boost : float > 0
        Factor of the coefficients of the first ``cutoff`` vectors.
    cutoff : int >= 0, optional
        ``m // 2 + m // 20`` by default.
    rng : numpy.random.Generator

    Returns
    -------
    array (n_samples, n)

    Raises
    ------
    TypeError, ValueError
        If an option is out of range.

    References
    ----------
    Kaneda et al. (2023), arXiv 2205.10763, section 4.

    Examples
    --------
    >>> samples = ritz_training_set(np.eye(4), 3, rng=np.random.default_rng(0))
    >>> np.linalg.norm(samples, axis=1)
    array([1., 1., 1.])
    """
    vectors = _checks.float_array(vectors, "vectors", ndim=2)
    n_samples = _checks.whole(n_samples, "n_samples", low=1)
    _checks.positive(boost, "boost")
    m = vectors.shape[1]
    cutoff = m // 2 + m // 20 if cutoff is None else _checks.whole(cutoff, "cutoff", low=0)
    coefficients = _checks.generator(rng).standard_normal((n_samples, m))
    coefficients[:, :cutoff] *= boost
    samples = coefficients @ vectors.T
    return np.asarray(samples / np.linalg.norm(samples, axis=1, keepdims=True))


def train_proposal(
    model_vjp: Callable[[Tree, AnyArray], tuple[AnyArray, Pullback]],
    params: Tree,
    samples: Array[F],
    matvec: RowMatVec,
    *,
    rng: np.random.Generator,
    n_iter: int,
    batch_size: int = 10,
    optimizer: Optimizer[Any] | None = None,
    callback: Callback | None = None,
) -> ProposalTraining:
    """Train a map from residuals to directions by :func:`dcdm_loss`.

    Parameters
    ----------
    model_vjp : callable
        ``(params, r) -> (f, pullback)`` for rows (B, n); the first entry of the pullback is the cotangent of the
        parameters.
    params : parameters to begin with
    samples : array (N, n)
        Residuals of unit length, for example :func:`ritz_training_set`.
    matvec : callable
        Multiplies every row by the matrix.
    rng : numpy.random.Generator
        Draws the batches.
    n_iter : int >= 1
        Steps.
    batch_size : int >= 1
    optimizer : optional
        Adam with the learning rate 1e-4 by default.
    callback : callable, optional
        Called with a ``Progress`` after every step; a true result ends the training.

    Returns
    -------
    ProposalTraining

    Raises
    ------
    TypeError, ValueError
        If an option is out of range.
    Diverged
        If the loss is no longer finite.

    Examples
    --------
    >>> samples = ritz_training_set(np.eye(2), 20, rng=np.random.default_rng(0))
    >>> model = lambda weight, r: (r @ weight.T, lambda df: (df.T @ r,))
    >>> trained = train_proposal(model, np.eye(2), samples, poisson_2d(1, 2), rng=np.random.default_rng(1), n_iter=5)
    >>> trained.n_iter
    5
    """
    samples = _checks.float_array(samples, "samples", ndim=2)
    rng = _checks.generator(rng)
    n_iter = _checks.whole(n_iter, "n_iter", low=1)
    batch_size = _checks.whole(batch_size, "batch_size", low=1, high=len(samples))
    chosen: Any = AdamP(learning_rate=1e-4, delta=NO_PROJECTION) if optimizer is None else optimizer
    state = chosen.init(params)
    monitor = Monitor("train_proposal", callback=callback)
    for _ in range(n_iter):
        r = samples[rng.choice(len(samples), batch_size, replace=False)]
        f, back_model = model_vjp(params, r)
        loss, back_loss = dcdm_loss_vjp(f, r, matvec)
        grads = back_model(back_loss(np.ones((), f.dtype))[0])[0]
        params, state = chosen.step(params, grads, state)
        if monitor.record(loss=float(loss)):
            break
    return ProposalTraining(params, monitor.n_iter, monitor.history())


def train_linear_proposal(
    samples: Array[F],
    matvec: RowMatVec,
    *,
    rng: np.random.Generator,
    n_iter: int = 500,
    learning_rate: float = 1e-2,
    batch_size: int = 10,
    callback: Callback | None = None,
) -> ProposalTraining:
    """Train a linear map ``f = weight r``, beginning with the identity, that is, with conjugate gradients.

    Parameters
    ----------
    samples, matvec, rng, n_iter, batch_size, callback
        As in :func:`train_proposal`.
    learning_rate : float > 0
        Of Adam.

    Returns
    -------
    ProposalTraining
        ``params`` is the weight (n, n).

    Raises
    ------
    TypeError, ValueError
        As :func:`train_proposal`.

    Examples
    --------
    >>> samples = ritz_training_set(np.eye(3), 50, rng=np.random.default_rng(0))
    >>> trained = train_linear_proposal(samples, poisson_2d(1, 3), rng=np.random.default_rng(1))
    >>> bool(trained.history["loss"][-1] < 0.01 * trained.history["loss"][0])
    True
    """
    samples = _checks.float_array(samples, "samples", ndim=2)

    def model_vjp(weight: Tree, r: AnyArray) -> tuple[AnyArray, Pullback]:
        return np.asarray(r @ weight.T), lambda df: (df.T @ r,)

    return train_proposal(
        model_vjp,
        np.eye(samples.shape[1], dtype=samples.dtype),
        samples,
        matvec,
        rng=rng,
        n_iter=n_iter,
        batch_size=batch_size,
        optimizer=AdamP(learning_rate=learning_rate, delta=NO_PROJECTION),
        callback=callback,
    )


def init_direction_net(rng: np.random.Generator, *, channels: int = 8, dtype: Any = np.float32) -> DirectionNetParams:
    """Draw the weights of :func:`direction_net`, uniform on ``+-1 / sqrt(inputs)``.

    Parameters
    ----------
    rng : numpy.random.Generator
    channels : int >= 1
    dtype : float32 or float64

    Returns
    -------
    DirectionNetParams

    Raises
    ------
    TypeError, ValueError
        If an option is out of range.

    Examples
    --------
    >>> init_direction_net(np.random.default_rng(0)).lift[0].shape
    (8, 1, 3, 3)
    """
    rng = _checks.generator(rng)
    channels = _checks.whole(channels, "channels", low=1)

    def conv(outputs: int, inputs: int, side: int = 3) -> tuple[AnyArray, AnyArray]:
        limit = 1 / np.sqrt(inputs * side * side)
        weight = rng.uniform(-limit, limit, (outputs, inputs, side, side))
        return np.asarray(weight, dtype), np.asarray(rng.uniform(-limit, limit, outputs), dtype)

    def several(number: int) -> tuple[tuple[AnyArray, AnyArray], ...]:
        return tuple(conv(channels, channels) for _ in range(number))

    return DirectionNetParams(conv(channels, 1), several(2), several(4), several(4), several(2), conv(1, channels, 1))


def direction_net(r: Array[F], params: DirectionNetParams, *, shape: tuple[int, int]) -> Array[F]:
    """Propose directions with a small U-shaped network on a grid.

    Parameters
    ----------
    r : array (..., H * W)
        Residuals of unit length.
    params : DirectionNetParams
    shape : (H, W)
        Of the grid; both divisible by 4.

    Returns
    -------
    array, shape and dtype of ``r``

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype is wrong.

    Notes
    -----
    Two poolings by 2, residual convolutions with ReLU on each of the three grids, and sums on the way up.

    References
    ----------
    Kaneda et al. (2023), arXiv 2205.10763, section 4 (in three dimensions, with one pooling).

    Examples
    --------
    >>> params = init_direction_net(np.random.default_rng(0), dtype=np.float64)
    >>> direction_net(np.ones((2, 32)), params, shape=(8, 4)).shape
    (2, 32)
    """
    return direction_net_vjp(r, params, shape=shape)[0]


def direction_net_vjp(r: Array[F], params: DirectionNetParams, *, shape: tuple[int, int]) -> tuple[Array[F], Pullback]:
    """Return :func:`direction_net` and its pullback ``df -> (dr, dparams)``."""
    r = _checks.float_array(r, "r", min_ndim=1)
    height, width = (_checks.whole(side, "shape", low=4) for side in shape)
    if height % 4 or width % 4:
        _checks.fail("shape", "sides divisible by 4", tuple(shape))
    _checks.shape(r, "r", (*r.shape[:-1], height * width))

    image = r.reshape(-1, 1, height, width)
    a, back_lift = conv2d_vjp(image, *params.lift, padding=1)
    fine, back_fine0 = _rectified(a, params.fine[0])
    fine, back_fine1 = _residual(fine, params.fine[1:])
    middle, back_pool0 = avg_pool2d_vjp(fine, 2)
    middle, back_middle0 = _residual(middle, params.middle[:2])
    middle, back_middle1 = _residual(middle, params.middle[2:])
    coarse, back_pool1 = avg_pool2d_vjp(middle, 2)
    coarse, back_coarse0 = _residual(coarse, params.coarse[:2])
    coarse, back_coarse1 = _residual(coarse, params.coarse[2:])
    joined, back_up0 = _residual(middle + _doubled(coarse), params.up[:1])
    top, back_up1 = _residual(fine + _doubled(joined), params.up[1:])
    f, back_head = conv2d_vjp(top, *params.head)

    def pullback(df: Array[F]) -> tuple[AnyArray, DirectionNetParams]:
        dtop, *head = back_head(df.reshape(f.shape))
        dtop, up1 = back_up1(dtop)
        djoined, up0 = back_up0(_halved(dtop))
        dcoarse, coarse1 = back_coarse1(_halved(djoined))
        dcoarse, coarse0 = back_coarse0(dcoarse)
        dmiddle = djoined + back_pool1(dcoarse)[0]
        dmiddle, middle1 = back_middle1(dmiddle)
        dmiddle, middle0 = back_middle0(dmiddle)
        dfine = dtop + back_pool0(dmiddle)[0]
        dfine, fine1 = back_fine1(dfine)
        da, fine0 = back_fine0(dfine)
        dimage, *lift = back_lift(da)
        dparams = DirectionNetParams(
            (lift[0], lift[1]),
            (fine0, *fine1),
            (*middle0, *middle1),
            (*coarse0, *coarse1),
            (*up0, *up1),
            (head[0], head[1]),
        )
        return dimage.reshape(r.shape), dparams

    return f.reshape(r.shape), pullback


Convolution: TypeAlias = tuple[AnyArray, AnyArray]


def _rectified(x: AnyArray, kernel: Convolution) -> tuple[AnyArray, Callable[[AnyArray], tuple[AnyArray, Convolution]]]:
    """``relu(conv(x))``."""
    summed, back_conv = conv2d_vjp(x, *kernel, padding=1)
    y, back_relu = relu_vjp(summed)

    def back(dy: AnyArray) -> tuple[AnyArray, Convolution]:
        dx, dweight, dbias = back_conv(back_relu(dy)[0])
        return dx, (dweight, dbias)

    return y, back


def _residual(
    x: AnyArray, kernels: tuple[Convolution, ...]
) -> tuple[AnyArray, Callable[[AnyArray], tuple[AnyArray, tuple[Convolution, ...]]]]:
    """``x + relu(conv(... relu(conv(x))))``."""
    y, backs = x, []
    for kernel in kernels:
        y, back_one = _rectified(y, kernel)
        backs.append(back_one)

    def back(dy: AnyArray) -> tuple[AnyArray, tuple[Convolution, ...]]:
        dx, found = dy, []
        for back_one in reversed(backs):
            dx, dkernel = back_one(dx)
            found.append(dkernel)
        return dy + dx, tuple(found[::-1])

    return x + y, back


def _doubled(x: AnyArray) -> AnyArray:
    """Every pixel becomes a 2 x 2 square."""
    return np.asarray(x.repeat(2, axis=2).repeat(2, axis=3))


def _halved(x: AnyArray) -> AnyArray:
    """The adjoint of :func:`_doubled`: squares are summed."""
    return np.asarray(x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2])
