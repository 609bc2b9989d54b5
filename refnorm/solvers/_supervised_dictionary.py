"""Supervised dictionary learning: one dictionary that reconstructs the data and predicts their labels.

sum log-loss(target, weight^T F + gamma^T covariates) + reconstruction |x - dictionary code|^2
F = dictionary^T x  ("filter")   or   F = code  ("feature");   columns are samples
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.solvers._monitor import Callback, Monitor

METHOD = Method(
    title="Supervised Dictionary Learning with Auxiliary Covariates",
    authors="Lee, Lyu, Yao",
    year=2022,
    arxiv="2206.06774",
    functions=(
        "SDLResult",
        "multinomial_loss",
        "rank_projection",
        "sdl_bcd",
        "sdl_encode",
        "sdl_factorize",
        "sdl_lift",
        "sdl_lpgd",
        "sdl_objective",
        "sdl_predict_proba",
    ),
    chapter="solvers/supervised_dictionary",
)

MODES = ("filter", "feature")

INNER_STEPS = 10
"""Gradient steps on one block before block coordinate descent turns to the next."""

RADIUS_DECAY = 0.1
"""Exponent with which its trust radius shrinks."""


@dataclass(frozen=True)
class SDLResult:
    """Outcome of :func:`sdl_lpgd` and :func:`sdl_bcd`.

    Parameters
    ----------
    dictionary, code
        Factors (p, r) and (r, n) of the reconstruction.
    weight
        Classifier on the filtered data or the codes, (r, k).
    gamma
        Classifier on the covariates, (q, k), or ``None``.
    x
        The combined factor, see :func:`sdl_lift`.
    mode
        ``"filter"`` or ``"feature"``.
    n_iter
        Number of iterations.
    converged
        Whether the relative change met the tolerance.
    history
        Array ``objective``, one entry an iteration.
    """

    dictionary: AnyArray
    code: AnyArray
    weight: AnyArray
    gamma: AnyArray | None
    x: AnyArray
    mode: str
    n_iter: int
    converged: bool
    history: Mapping[str, Array[np.float64]]


def multinomial_loss(activation: Array[F], target: Array[F]) -> Array[F]:
    """Return the negative log-likelihood of labels, with class 0 as the reference.

    Parameters
    ----------
    activation : array (k, n)
        Logits of the classes 1 to k; that of class 0 is 0.
    target : array (k, n)
        One-hot columns; a column of zeros stands for class 0.

    Returns
    -------
    array (), dtype of ``activation``

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs.

    Notes
    -----
    ``sum_i log(1 + sum_c exp(a_ci)) - sum_c target_ci a_ci``, with the largest logit taken out first.

    References
    ----------
    Lee, Lyu, Yao (2022), arXiv 2206.06774.

    Examples
    --------
    >>> float(multinomial_loss(np.zeros((1, 1)), np.ones((1, 1))).round(6))
    0.693147
    """
    return multinomial_loss_vjp(activation, target)[0]


def multinomial_loss_vjp(activation: Array[F], target: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`multinomial_loss` and its pullback ``dy -> (dactivation, dtarget)``."""
    activation = _checks.float_array(activation, "activation", ndim=2)
    target = _checks.float_array(target, "target", ndim=2)
    _checks.same_dtype("activation", activation, target=target)
    _checks.shape(target, "target", activation.shape)
    largest = np.maximum(activation.real.max(axis=0, initial=0), 0)
    # The reference class has the logit 0, so its share is exp(-largest).
    shares = np.exp(activation - largest)
    total = np.exp(-largest) + shares.sum(axis=0)
    value = np.asarray((largest + np.log(total)).sum() - (target * activation).sum())
    probability = shares / total

    def pullback(dy: Array[F]) -> tuple[AnyArray, AnyArray]:
        return dy * (probability - target), -dy * activation

    return value, pullback


def sdl_objective(
    x: Array[F],
    target: Array[F],
    covariates: Array[F] | None,
    dictionary: Array[F],
    code: Array[F],
    weight: Array[F],
    gamma: Array[F] | None,
    *,
    reconstruction: float = 1.0,
    ridge: float = 0.0,
    mode: str = "filter",
) -> Array[F]:
    """Return the loss of supervised dictionary learning in its factors, where it is not convex.

    Parameters
    ----------
    x : array (p, n)
        Data; columns are samples.
    target : array (k, n)
        As in :func:`multinomial_loss`.
    covariates : array (q, n), optional
        Auxiliary covariates; a row of ones gives an intercept.
    dictionary, code : arrays (p, r) and (r, n)
    weight : array (r, k)
    gamma : array (q, k), given if and only if ``covariates`` are
    reconstruction : float >= 0
        Weight of the squared reconstruction error.
    ridge : float >= 0
        Weight of half the squares of ``gamma`` and of the combined classifier, ``dictionary weight`` (filter)
        or ``weight^T code`` (feature).
    mode : ``"filter"`` or ``"feature"``

    Returns
    -------
    array (), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or an option is outside its range.

    Notes
    -----
    The activation is ``weight^T dictionary^T x`` (filter) or ``weight^T code`` (feature), plus
    ``gamma^T covariates``.

    References
    ----------
    Lee, Lyu, Yao (2022), arXiv 2206.06774.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> float(sdl_objective(one, one, None, one, 0 * one, 0 * one, None).round(6))
    1.693147
    """
    return sdl_objective_vjp(
        x, target, covariates, dictionary, code, weight, gamma, reconstruction=reconstruction, ridge=ridge, mode=mode
    )[0]


def sdl_objective_vjp(
    x: Array[F],
    target: Array[F],
    covariates: Array[F] | None,
    dictionary: Array[F],
    code: Array[F],
    weight: Array[F],
    gamma: Array[F] | None,
    *,
    reconstruction: float = 1.0,
    ridge: float = 0.0,
    mode: str = "filter",
) -> tuple[Array[F], Pullback]:
    """Return :func:`sdl_objective` and its pullback.

    The pullback maps ``dy`` to ``(dx, dtarget, dcovariates, ddictionary, dcode, dweight, dgamma)``.
    """
    _checks.one_of(mode, "mode", MODES)
    _checks.non_negative(reconstruction, "reconstruction")
    _checks.non_negative(ridge, "ridge")
    x, target, covariates, dictionary, code, weight, gamma = _factors(
        x, target, covariates, dictionary, code, weight, gamma
    )
    classifier = dictionary @ weight if mode == "filter" else weight.T @ code
    activation = classifier.T @ x if mode == "filter" else classifier
    if covariates is not None and gamma is not None:
        activation = activation + gamma.T @ covariates
    loss, loss_pullback = multinomial_loss_vjp(activation, target)
    error = dictionary @ code - x
    penalty = (classifier * classifier).sum() + (0 if gamma is None else (gamma * gamma).sum())
    value = np.asarray(loss + reconstruction * (error * error).sum() + ridge / 2 * penalty)

    def pullback(dy: Array[F]) -> tuple[AnyArray | None, ...]:
        dactivation, dtarget = loss_pullback(dy)
        derror = 2 * dy * reconstruction * error
        dx, ddictionary, dcode = -derror, derror @ code.T, dictionary.T @ derror
        if mode == "filter":
            # activation = (dictionary weight)^T x: the classifier's cotangent is x dactivation^T.
            dclassifier = x @ dactivation.T + dy * ridge * classifier
            dx = dx + classifier @ dactivation
            ddictionary, dweight = ddictionary + dclassifier @ weight.T, dictionary.T @ dclassifier
        else:
            dclassifier = dactivation + dy * ridge * classifier
            dcode, dweight = dcode + weight @ dclassifier, code @ dclassifier.T
        if covariates is None or gamma is None:
            return dx, dtarget, None, ddictionary, dcode, dweight, None
        dgamma = covariates @ dactivation.T + dy * ridge * gamma
        return dx, dtarget, gamma @ dactivation, ddictionary, dcode, dweight, dgamma

    return value, pullback


def rank_projection(matrix: Array[F], rank: int) -> Array[F]:
    """Return the closest matrix of at most that rank: the truncated singular value decomposition.

    Parameters
    ----------
    matrix : array (a, b)
    rank : int >= 1

    Returns
    -------
    array (a, b)

    Raises
    ------
    TypeError, ValueError
        If ``matrix`` is not a float matrix or ``rank < 1``.

    References
    ----------
    Eckart, Young (1936), Psychometrika 1, 211-218.

    Examples
    --------
    >>> rank_projection(np.array([[3.0, 0.0], [0.0, 1.0]]), 1)
    array([[3., 0.],
           [0., 0.]])
    """
    matrix = _checks.float_array(matrix, "matrix", ndim=2)
    rank = _checks.whole(rank, "rank", low=1)
    if rank >= min(matrix.shape):
        return matrix.copy()
    left, singular, right = _svd(matrix)
    projected: Array[F] = (left[:, :rank] * singular[:rank]) @ right[:rank]
    return projected


def sdl_lift(dictionary: Array[F], code: Array[F], weight: Array[F], *, mode: str = "filter") -> Array[F]:
    """Return the combined factor, in which the loss is convex.

    Parameters
    ----------
    dictionary, code, weight : arrays (p, r), (r, n), (r, k)
    mode : ``"filter"`` or ``"feature"``

    Returns
    -------
    array (p, k + n) or (k + p, n)
        ``dictionary [weight, code]``, or ``[weight^T; dictionary] code``.

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or the mode is unknown.

    References
    ----------
    Lee, Lyu, Yao (2022), arXiv 2206.06774.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> sdl_lift(2 * one, 3 * one, 5 * one), sdl_lift(2 * one, 3 * one, 5 * one, mode="feature")
    (array([[10.,  6.]]), array([[15.],
           [ 6.]]))
    """
    _checks.one_of(mode, "mode", MODES)
    dictionary, code = _checks.float_array(dictionary, "dictionary", ndim=2), _checks.float_array(code, "code", ndim=2)
    weight = _checks.float_array(weight, "weight", ndim=2)
    _checks.same_dtype("dictionary", dictionary, code=code, weight=weight)
    r = dictionary.shape[1]
    _checks.shape(code, "code", (r, code.shape[1]))
    _checks.shape(weight, "weight", (r, weight.shape[1]))
    if mode == "filter":
        return np.asarray(dictionary @ np.hstack([weight, code]))
    return np.asarray(np.vstack([weight.T, dictionary]) @ code)


def sdl_factorize(
    lifted: Array[F], n_classes: int, rank: int, *, mode: str = "filter"
) -> tuple[Array[F], Array[F], Array[F]]:
    """Split a combined factor of low rank: the inverse of :func:`sdl_lift`, up to a change of basis.

    Parameters
    ----------
    lifted : array (p, k + n) or (k + p, n)
    n_classes : int >= 2
        k + 1.
    rank : int >= 1
        Atoms r of the dictionary.
    mode : ``"filter"`` or ``"feature"``

    Returns
    -------
    dictionary, code, weight : arrays (p, r), (r, n), (r, k)
        The dictionary has Frobenius norm 1.

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit or the mode is unknown.

    Notes
    -----
    From ``U S V^T``, ``U sqrt(S)`` and ``sqrt(S) V^T``, with the norm of the dictionary moved to the other factor.
    The largest entry of each column of U is positive. A zero matrix gives zero factors.

    References
    ----------
    Lee, Lyu, Yao (2022), arXiv 2206.06774.

    Examples
    --------
    >>> sdl_factorize(np.array([[10.0, 6.0]]), 2, 1)
    (array([[1.]]), array([[6.]]), array([[10.]]))
    """
    lifted = _checks.float_array(lifted, "lifted", ndim=2)
    k = _checks.whole(n_classes, "n_classes", low=2) - 1
    _checks.one_of(mode, "mode", MODES)
    if lifted.shape[mode == "filter"] <= k:
        _checks.fail("lifted", f"more than {k} {'columns' if mode == 'filter' else 'rows'}", f"shape {lifted.shape}")
    rank = _checks.whole(rank, "rank", low=1)
    left, singular, right = _svd(lifted)
    # More atoms than singular values: the others are 0.
    missing = max(0, rank - len(singular))
    root = np.sqrt(singular[:rank])
    first: AnyArray = np.pad(left[:, :rank] * root, ((0, 0), (0, missing)))
    second: AnyArray = np.pad(root[:, None] * right[:rank], ((0, missing), (0, 0)))
    norm = float(np.linalg.norm(first if mode == "filter" else first[k:])) or 1.0
    if mode == "filter":
        parts: tuple[AnyArray, ...] = (first / norm, norm * second[:, k:], norm * second[:, :k])
    else:
        parts = (first[k:] / norm, norm * second, first[:k].T / norm)
    return parts[0], parts[1], parts[2]


def sdl_lpgd(
    x: Array[F],
    labels: IntArray,
    *,
    rank: int,
    reconstruction: float = 1.0,
    ridge: float = 1e-3,
    mode: str = "filter",
    covariates: Array[F] | None = None,
    step_size: float | None = None,
    project: Callable[[AnyArray, AnyArray | None], tuple[AnyArray, AnyArray | None]] | None = None,
    tol: float = 1e-6,
    max_iter: int = 500,
    init_scale: float = 0.1,
    rng: np.random.Generator | None = None,
    callback: Callback | None = None,
) -> SDLResult:
    """Learn a dictionary by projected gradients on the combined factor, whose rank is cut after every step.

    Parameters
    ----------
    x : array (p, n)
        Data; columns are samples. Best scaled to a spectral norm near 1.
    labels : integer array (n,)
        Classes 0 to k, each at least once.
    rank : int >= 1
        Atoms of the dictionary.
    reconstruction : float >= 0
        Weight of the squared reconstruction error.
    ridge : float >= 0
        Weight of half the squares of the classifier.
    mode : ``"filter"`` or ``"feature"``
        Classify from the filtered data or from the codes.
    covariates : array (q, n), optional
        Auxiliary covariates; a row of ones gives an intercept.
    step_size : float > 0, optional
        The inverse of the gradient's Lipschitz constant by default.
    project : callable, optional
        ``(lifted, gamma) -> (lifted, gamma)``, a projection on convex constraints before the rank is cut.
    tol : float >= 0
        Relative change of the combined factor that ends the run.
    max_iter : int >= 1
    init_scale : float >= 0
        Standard deviation of a random start.
    rng : numpy.random.Generator, optional
        Draws a random start; by default the run begins at the truncated SVD of the data, without a classifier.
    callback : callable, optional
        Called with a :class:`Progress` after every iteration; a true result ends the run.

    Returns
    -------
    SDLResult

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, a value is not finite, a class is absent or an option is outside its range.
    Diverged
        If ``step_size`` is too large.

    Notes
    -----
    With ``A`` the combined classifier, ``B`` the reconstruction and ``P`` the probabilities:
    ``G_A = x (P - Y)^T + ridge A`` (filter) or ``P - Y + ridge A`` (feature), ``G_B = 2 reconstruction (B - x)``,
    ``G_gamma = covariates (P - Y)^T + ridge gamma``, all at the same point.

    References
    ----------
    Lee, Lyu, Yao (2022), arXiv 2206.06774.

    Examples
    --------
    >>> x = np.array([[1.0, 0.9, -1.0, -1.1], [0.1, -0.1, 0.1, 0.0]])
    >>> result = sdl_lpgd(x, np.array([1, 1, 0, 0]), rank=1, ridge=0.1)
    >>> sdl_predict_proba(result, np.array([[1.0, -1.0], [0.0, 0.0]])).argmax(axis=0)
    array([1, 0])
    """
    data, y, z, k, rank = _problem(x, labels, covariates, rank, reconstruction, ridge, mode, tol)
    if step_size is not None:
        _checks.positive(step_size, "step_size")
    step = 1 / _lipschitz(data, z, k, reconstruction, ridge, mode) if step_size is None else step_size
    if rng is None:
        lifted = _join(np.zeros((len(data), k) if mode == "filter" else (k, data.shape[1])), data, mode)
    else:
        _checks.non_negative(init_scale, "init_scale")
        shape = (len(data), k + data.shape[1]) if mode == "filter" else (k + len(data), data.shape[1])
        lifted = init_scale * _checks.generator(rng).standard_normal(shape)
    lifted = rank_projection(lifted, rank)
    gamma = None if z is None else np.zeros((len(z), k))
    monitor = Monitor("sdl_lpgd", callback=callback, hint="use a smaller step_size")
    converged = False
    for _ in range(_checks.whole(max_iter, "max_iter", low=1)):
        classifier, rebuilt = _split(lifted, k, mode)
        slope, _ = _label_slope(data, y, z, classifier, gamma, mode)
        dclassifier = (data @ slope.T if mode == "filter" else slope) + ridge * classifier
        moved = lifted - step * _join(dclassifier, 2 * reconstruction * (rebuilt - data), mode)
        if z is not None and gamma is not None:
            gamma = gamma - step * (z @ slope.T + ridge * gamma)
        if project is not None:
            moved, gamma = project(moved, gamma)
        moved = rank_projection(moved, rank)
        change = float(np.linalg.norm(moved - lifted))
        converged = change <= tol * float(np.linalg.norm(lifted))
        lifted = moved
        stopped = monitor.record(objective=_lifted_objective(data, y, z, lifted, gamma, reconstruction, ridge, mode))
        if converged or stopped:
            break
    dictionary, code, weight = sdl_factorize(lifted, k + 1, rank, mode=mode)
    return _result(dictionary, code, weight, gamma, lifted, mode, monitor, converged, x.dtype)


def sdl_bcd(
    x: Array[F],
    labels: IntArray,
    *,
    rank: int,
    reconstruction: float = 1.0,
    ridge: float = 1e-3,
    mode: str = "filter",
    covariates: Array[F] | None = None,
    nonnegative: bool = False,
    radius: float = 1.0,
    tol: float = 1e-6,
    max_iter: int = 200,
    init_scale: float = 0.1,
    rng: np.random.Generator | None = None,
    callback: Callback | None = None,
) -> SDLResult:
    """Learn a dictionary by descending in one factor at a time, within a trust region that shrinks.

    Parameters
    ----------
    x, labels, rank, reconstruction, ridge, mode, covariates, init_scale, rng, callback
        As in :func:`sdl_lpgd`.
    nonnegative : bool
        Keep dictionary and code at or above 0.
    radius : float > 0
        Size of the first trust region, of the order of the factors.
    tol : float >= 0
        Relative change of the objective that ends the run.
    max_iter : int >= 1

    Returns
    -------
    SDLResult

    Raises
    ------
    TypeError, ValueError, Diverged
        As :func:`sdl_lpgd`.

    Notes
    -----
    Blocks in the order code, dictionary, weight, gamma. Each takes ten gradient steps of length
    ``1 / (sqrt(i + 10) (c + 1))``, with ``c`` a trace that bounds the block's curvature, and is pulled back to a
    ball around its value at the start of the iteration, of radius
    ``radius (t + 10)^-0.1 / log(t + 2)`` at iteration t.

    References
    ----------
    Lee, Lyu, Yao (2022), arXiv 2206.06774.

    Examples
    --------
    >>> x = np.array([[1.0, 0.9, 0.1, 0.0], [0.1, 0.0, 1.0, 1.1]])
    >>> result = sdl_bcd(x, np.array([1, 1, 0, 0]), rank=2, nonnegative=True)
    >>> bool((result.dictionary >= 0).all() and (result.code >= 0).all())
    True
    """
    data, y, z, k, rank = _problem(x, labels, covariates, rank, reconstruction, ridge, mode, tol)
    _checks.positive(radius, "radius")
    if rng is None:
        factors = sdl_factorize(_join(np.zeros((len(data), k)), data, "filter"), k + 1, rank)
    else:
        _checks.non_negative(init_scale, "init_scale")
        shapes = ((len(data), rank), (rank, data.shape[1]), (rank, k))
        normal = _checks.generator(rng).standard_normal
        factors = (init_scale * normal(shapes[0]), init_scale * normal(shapes[1]), init_scale * normal(shapes[2]))
    blocks: dict[str, AnyArray | None] = dict(zip(("dictionary", "code", "weight"), factors, strict=True))
    blocks["gamma"] = None if z is None else np.zeros((len(z), k))
    if nonnegative:
        blocks |= {name: np.abs(np.asarray(blocks[name])) for name in ("dictionary", "code")}
    places = {"dictionary": 3, "code": 4, "weight": 5, "gamma": 6}
    monitor = Monitor("sdl_bcd", callback=callback, hint="scale the data to a spectral norm near 1")

    def loss_and_slopes() -> tuple[float, tuple[AnyArray, ...]]:
        value, pullback = sdl_objective_vjp(
            data, y, z, *blocks.values(), reconstruction=reconstruction, ridge=ridge, mode=mode  # type: ignore[arg-type]
        )  # fmt: skip
        return float(value), pullback(np.float64(1.0))

    converged, last = False, np.inf
    for t in range(1, _checks.whole(max_iter, "max_iter", low=1) + 1):
        trust = radius * (t + 10) ** -RADIUS_DECAY / np.log(t + 2)
        for name in ("code", "dictionary", "weight", "gamma"):
            start = block = blocks[name]
            if block is None or start is None:
                continue
            curvature = _curvature(name, data, z, blocks, reconstruction, ridge, mode)
            for i in range(INNER_STEPS):
                blocks[name] = block = block - loss_and_slopes()[1][places[name]] / (np.sqrt(i + 10) * (curvature + 1))
                if nonnegative and name in ("code", "dictionary"):
                    blocks[name] = block = np.maximum(block, 0)
            far = float(np.linalg.norm(block - start))
            if far > trust:
                blocks[name] = start + trust / far * (block - start)
        value, _ = loss_and_slopes()
        stopped = monitor.record(objective=value)
        converged = abs(last - value) <= tol * abs(value)
        last = value
        if converged or stopped:
            break
    dictionary, code, weight = (np.asarray(blocks[name]) for name in ("dictionary", "code", "weight"))
    lifted = sdl_lift(dictionary, code, weight, mode=mode)
    return _result(dictionary, code, weight, blocks["gamma"], lifted, mode, monitor, converged, x.dtype)


def sdl_encode(dictionary: Array[F], x: Array[F], *, nonnegative: bool = False) -> Array[F]:
    """Return the codes that reconstruct data best: a least-squares problem for each sample.

    Parameters
    ----------
    dictionary : array (p, r)
    x : array (p, n)
        Columns are samples.
    nonnegative : bool
        Allow only codes at or above 0.

    Returns
    -------
    array (r, n)

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or a value is not finite; in the pullback if the atoms that are used are
        linearly dependent.

    Notes
    -----
    The solution of smallest norm, if there are several. With the cotangent ``g`` and ``u = (W^T W)^-1 g``:
    ``dx = W u`` and ``ddictionary = (x - W h) u^T - W u h^T``; for nonnegative codes on the atoms that are used.

    References
    ----------
    Lee, Lyu, Yao (2022), arXiv 2206.06774.

    Examples
    --------
    >>> sdl_encode(np.eye(2), np.array([[1.0], [-2.0]])).ravel()
    array([ 1., -2.])
    >>> sdl_encode(np.eye(2), np.array([[1.0], [-2.0]]), nonnegative=True).ravel()
    array([1., 0.])
    """
    return sdl_encode_vjp(dictionary, x, nonnegative=nonnegative)[0]


def sdl_encode_vjp(dictionary: Array[F], x: Array[F], *, nonnegative: bool = False) -> tuple[Array[F], Pullback]:
    """Return :func:`sdl_encode` and its pullback ``dcode -> (ddictionary, dx)``."""
    dictionary, x = _checks.float_array(dictionary, "dictionary", ndim=2), _checks.float_array(x, "x", ndim=2)
    _checks.same_dtype("dictionary", dictionary, x=x)
    _checks.shape(x, "x", (len(dictionary), x.shape[1]))
    _checks.not_empty(dictionary, "dictionary", (0, 1))
    _checks.finite(dictionary, "dictionary")
    _checks.finite(x, "x")
    atoms, data = dictionary.astype(np.float64), x.astype(np.float64)
    if nonnegative:
        code = np.stack([scipy.optimize.nnls(atoms, column)[0] for column in data.T] or [np.zeros(0)], axis=-1)
        code = code.reshape(atoms.shape[1], data.shape[1])
        used = code > 0
    else:
        code = np.linalg.lstsq(atoms, data, rcond=None)[0]
        used = np.ones(code.shape, bool)
    residual = data - atoms @ code

    def pullback(dcode: Array[F]) -> tuple[AnyArray, AnyArray]:
        # W^T W h = W^T x on the atoms in use: W^T W dh = dW^T (x - W h) - W^T dW h + W^T dx.
        u = np.zeros(code.shape)
        for support in np.unique(used, axis=1).T:
            samples = (used == support[:, None]).all(axis=0)
            u[np.ix_(support, samples)] = _gram_solve(atoms[:, support], np.asarray(dcode)[np.ix_(support, samples)])
        image = atoms @ u
        return (residual @ u.T - image @ code.T).astype(x.dtype), image.astype(x.dtype)

    return np.asarray(code, dtype=x.dtype), pullback


def sdl_predict_proba(result: SDLResult, x: Array[F], covariates: Array[F] | None = None) -> Array[F]:
    """Return the probabilities of the classes of samples.

    Parameters
    ----------
    result : SDLResult
    x : array (p, n)
        Columns are samples.
    covariates : array (q, n), given if and only if the model has some

    Returns
    -------
    array (k + 1, n)
        Row 0 is the reference class.

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs.

    Notes
    -----
    In mode ``"feature"`` the codes are found first, by :func:`sdl_encode`, without regard to the labels.

    Examples
    --------
    >>> x = np.array([[2.0, -2.0]])
    >>> result = sdl_lpgd(x, np.array([1, 0]), rank=1)
    >>> sdl_predict_proba(result, np.zeros((1, 1))).ravel()
    array([0.5, 0.5])
    """
    x = _checks.float_array(x, "x", ndim=2)
    _checks.shape(x, "x", (len(result.dictionary), x.shape[1]))
    if (covariates is None) != (result.gamma is None):
        _checks.fail("covariates", "an array if and only if the model has covariates", type(covariates).__name__)
    features = result.dictionary.T @ x if result.mode == "filter" else sdl_encode(result.dictionary, x)
    activation = result.weight.T @ features
    if covariates is not None and result.gamma is not None:
        covariates = _checks.float_array(covariates, "covariates", ndim=2)
        _checks.shape(covariates, "covariates", (len(result.gamma), x.shape[1]))
        activation = activation + result.gamma.T @ covariates
    return np.asarray(_probabilities(activation), dtype=x.dtype)


def _svd(matrix: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
    left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    if not singular.size:
        return left, singular, right
    sign = np.where(np.take_along_axis(left, np.abs(left).argmax(axis=0)[None], axis=0) < 0, -1, 1).astype(matrix.dtype)
    return left * sign, singular, right * sign.T


def _join(classifier: AnyArray, rebuilt: AnyArray, mode: str) -> AnyArray:
    return np.hstack([classifier, rebuilt]) if mode == "filter" else np.vstack([classifier, rebuilt])


def _split(lifted: AnyArray, k: int, mode: str) -> tuple[AnyArray, AnyArray]:
    return (lifted[:, :k], lifted[:, k:]) if mode == "filter" else (lifted[:k], lifted[k:])


def _probabilities(activation: AnyArray) -> AnyArray:
    """Return the probabilities (k + 1, n), that of the reference class first."""
    logits = np.vstack([np.zeros_like(activation[:1]), activation])
    shares = np.exp(logits - logits.max(axis=0))
    return np.asarray(shares / shares.sum(axis=0))


def _label_slope(
    data: AnyArray, y: AnyArray, z: AnyArray | None, classifier: AnyArray, gamma: AnyArray | None, mode: str
) -> tuple[AnyArray, float]:
    """Return the slope of the label loss in the activation, (k, n), and the loss."""
    activation = classifier.T @ data if mode == "filter" else classifier
    if z is not None and gamma is not None:
        activation = activation + gamma.T @ z
    value, pullback = multinomial_loss_vjp(activation, y)
    return pullback(np.float64(1.0))[0], float(value)


def _lifted_objective(
    data: AnyArray,
    y: AnyArray,
    z: AnyArray | None,
    lifted: AnyArray,
    gamma: AnyArray | None,
    reconstruction: float,
    ridge: float,
    mode: str,
) -> float:
    classifier, rebuilt = _split(lifted, len(y), mode)
    squares = np.square(classifier).sum() + (0 if gamma is None else np.square(gamma).sum())
    loss = _label_slope(data, y, z, classifier, gamma, mode)[1]
    return float(loss + reconstruction * np.square(data - rebuilt).sum() + ridge / 2 * squares)


def _logit_curvature(k: int) -> float:
    """Largest eigenvalue of the Hessian of the log-loss in its activation, ``diag(p) - p p^T``."""
    return 0.25 if k == 1 else 0.5


def _lipschitz(data: AnyArray, z: AnyArray | None, k: int, reconstruction: float, ridge: float, mode: str) -> float:
    """Return a Lipschitz constant of the gradient in (A, B, gamma) together."""
    # A and gamma act on the same activation, so it is the stacked matrix whose norm counts.
    if mode == "filter":
        norm = float(np.linalg.norm(data if z is None else np.vstack([data, z]), 2)) ** 2
    else:
        norm = 1.0 + (0.0 if z is None else float(np.linalg.norm(z, 2)) ** 2)
    return max(2 * reconstruction, _logit_curvature(k) * norm + ridge)


def _curvature(
    name: str,
    data: AnyArray,
    z: AnyArray | None,
    blocks: Mapping[str, AnyArray | None],
    reconstruction: float,
    ridge: float,
    mode: str,
) -> float:
    """Return a trace that bounds the curvature of the objective in one block."""
    squares = {key: 0.0 if block is None else float(np.square(block).sum()) for key, block in blocks.items()}
    logit = _logit_curvature(np.asarray(blocks["weight"]).shape[1])
    if name == "code":
        return 2 * reconstruction * squares["dictionary"] + (mode == "feature") * (logit + ridge) * squares["weight"]
    if name == "dictionary":
        labels = (logit * float(np.square(data).sum()) + ridge) * squares["weight"]
        return 2 * reconstruction * squares["code"] + (mode == "filter") * labels
    if name == "weight":
        if mode == "feature":
            return (logit + ridge) * squares["code"]
        filtered = np.asarray(blocks["dictionary"]).T @ data
        return logit * float(np.square(filtered).sum()) + ridge * squares["dictionary"]
    return logit * (0.0 if z is None else float(np.square(z).sum())) + ridge


def _gram_solve(atoms: AnyArray, right: AnyArray) -> AnyArray:
    if not atoms.shape[1]:
        return np.zeros(right.shape)
    r = np.linalg.qr(atoms, mode="r")
    diagonal = np.abs(np.diag(r))
    if len(r) < atoms.shape[1] or diagonal.min() <= len(atoms) * np.finfo(np.float64).eps * diagonal.max():
        _checks.fail("dictionary", "linearly independent atoms", f"{atoms.shape[1]} dependent")
    half = scipy.linalg.solve_triangular(r, right, trans="T")
    return np.asarray(scipy.linalg.solve_triangular(r, half))


def _result(
    dictionary: AnyArray,
    code: AnyArray,
    weight: AnyArray,
    gamma: AnyArray | None,
    lifted: AnyArray,
    mode: str,
    monitor: Monitor,
    converged: bool,
    dtype: Any,
) -> SDLResult:
    return SDLResult(
        dictionary=dictionary.astype(dtype),
        code=code.astype(dtype),
        weight=weight.astype(dtype),
        gamma=None if gamma is None else gamma.astype(dtype),
        x=lifted.astype(dtype),
        mode=mode,
        n_iter=monitor.n_iter,
        converged=bool(converged),
        history=monitor.history(),
    )


def _problem(
    x: AnyArray,
    labels: AnyArray,
    covariates: AnyArray | None,
    rank: int,
    reconstruction: float,
    ridge: float,
    mode: str,
    tol: float,
) -> tuple[AnyArray, AnyArray, AnyArray | None, int, int]:
    """Check what both solvers share; return data, one-hot labels, covariates, k and the rank, in float64."""
    x = _checks.float_array(x, "x", ndim=2)
    _checks.not_empty(x, "x", (0, 1))
    _checks.finite(x, "x")
    labels = _checks.integer_array(labels, "labels", low=0)
    _checks.shape(labels, "labels", x.shape[1:])
    counts = np.bincount(labels)
    if len(counts) < 2 or not counts.all():
        _checks.fail("labels", "every class from 0 to the largest, at least two", f"counts {counts.tolist()}")
    if covariates is not None:
        covariates = _checks.float_array(covariates, "covariates", ndim=2)
        _checks.same_dtype("x", x, covariates=covariates)
        _checks.shape(covariates, "covariates", (len(covariates), x.shape[1]))
        _checks.finite(covariates, "covariates")
        covariates = covariates.astype(np.float64)
    _checks.one_of(mode, "mode", MODES)
    _checks.non_negative(reconstruction, "reconstruction")
    _checks.non_negative(ridge, "ridge")
    _checks.non_negative(tol, "tol")
    target = np.eye(len(counts))[1:, labels]
    return x.astype(np.float64), target, covariates, len(target), _checks.whole(rank, "rank", low=1)


def _factors(
    x: AnyArray,
    target: AnyArray,
    covariates: AnyArray | None,
    dictionary: AnyArray,
    code: AnyArray,
    weight: AnyArray,
    gamma: AnyArray | None,
) -> tuple[AnyArray, AnyArray, AnyArray | None, AnyArray, AnyArray, AnyArray, AnyArray | None]:
    x, target = _checks.float_array(x, "x", ndim=2), _checks.float_array(target, "target", ndim=2)
    dictionary = _checks.float_array(dictionary, "dictionary", ndim=2)
    code, weight = _checks.float_array(code, "code"), _checks.float_array(weight, "weight")
    (p, n), k, r = x.shape, len(target), dictionary.shape[1]
    if (covariates is None) != (gamma is None):
        _checks.fail("gamma", "an array if and only if covariates are given", type(gamma).__name__)
    shapes = {"target": (k, n), "dictionary": (p, r), "code": (r, n), "weight": (r, k)}
    arrays = {"target": target, "dictionary": dictionary, "code": code, "weight": weight}
    if covariates is not None:
        covariates, gamma = _checks.float_array(covariates, "covariates", ndim=2), _checks.float_array(gamma, "gamma")
        q = len(covariates)
        shapes |= {"covariates": (q, n), "gamma": (q, k)}
        arrays |= {"covariates": covariates, "gamma": gamma}
    _checks.same_dtype("x", x, **arrays)
    for name, shape in shapes.items():
        _checks.shape(arrays[name], name, shape)
    return x, target, covariates, dictionary, code, weight, gamma
