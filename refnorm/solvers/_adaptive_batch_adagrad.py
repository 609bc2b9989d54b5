"""AdAdaGrad: AdaGrad with batches that grow when their gradient becomes too noisy.

batch_size = max(batch_size, ceil(variance / (tolerance^2 |grad|^2)))       (variance of one sample's gradient)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Tree
from refnorm.solvers._monitor import Callback, Monitor
from refnorm.solvers._protocol import Optimizer, update_leaves, zeros_like
from refnorm.tree import tree_leaves, tree_map

METHOD = Method(
    title="AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods",
    authors="Lau, Liu, Kolar",
    year=2024,
    arxiv="2402.11215",
    functions=(
        "AdaGrad",
        "AdaGradNorm",
        "AdaGradNormState",
        "AdaGradState",
        "AdaptiveBatchResult",
        "BatchTest",
        "adadagrad",
        "augmented_inner_product_test",
        "coordinate_norm_test",
        "inner_product_test",
        "next_batch_size",
        "norm_test",
        "orthogonality_test",
    ),
    chapter="solvers/adaptive_batch_adagrad",
)

_TESTS = ("norm", "inner_product", "augmented", "coordinate", None)


@dataclass(frozen=True)
class BatchTest:
    """Outcome of a test of a batch's gradient.

    Parameters
    ----------
    required
        Whole number: the batch size at which the test would pass, and no less than the one given; infinite
        where the mean gradient is 0 and its samples are not.
    statistic
        ``variance / (tolerance^2 grad_norm_squared)``; the test passes if it is at most the batch size.
    variance
        The variance of a single sample's gradient that the test looks at, with divisor ``b - 1``.
    grad_norm_squared
        What it is compared with: the squared norm of the mean gradient, or its entry's square.
    """

    required: float
    statistic: float
    variance: float
    grad_norm_squared: float


def norm_test(per_sample_grads: Array[F], *, tolerance: float) -> BatchTest:
    """Compare the sampling error of a mean gradient with its length.

    Parameters
    ----------
    per_sample_grads : array (b, d)
        Gradients of at least two samples.
    tolerance : float > 0
        Largest ratio of the error's root mean square to the length; larger is laxer, 1 is a usual maximum.

    Returns
    -------
    BatchTest

    Raises
    ------
    TypeError, ValueError
        If there are fewer than two samples or a number is outside its range.

    Notes
    -----
    The test is ``sum_j v_j / b <= tolerance^2 |g|^2`` with the mean ``g`` and the variances ``v`` over the
    samples. All sums are float64. A NaN makes the statistic NaN.

    References
    ----------
    Lau, Liu, Kolar (2024), arXiv 2402.11215 (approximate norm test).

    Examples
    --------
    >>> norm_test(np.array([[1.0, 0.0], [3.0, 2.0]]), tolerance=0.5)
    BatchTest(required=4.0, statistic=3.2, variance=4.0, grad_norm_squared=5.0)
    """
    centred, mean = _samples(per_sample_grads)
    return _outcome(_variance(centred), mean @ mean, tolerance, len(centred))


def inner_product_test(per_sample_grads: Array[F], *, tolerance: float) -> BatchTest:
    """Test the sampling error along the mean gradient alone.

    Parameters, results and errors are those of :func:`norm_test`.

    Notes
    -----
    The statistic is ``Var <G_i, g> / (tolerance^2 |g|^4)``. It is computed, and ``variance`` reported, with
    the unit vector along ``g``, whose powers do not overflow.

    References
    ----------
    Bollapragada, Byrd, Nocedal (2018), SIAM Journal on Optimization 28, 3312-3343 (inner product test).

    Examples
    --------
    >>> round(inner_product_test(np.array([[1.0, 0.0], [3.0, 2.0]]), tolerance=0.5).statistic, 12)
    2.88
    """
    centred, mean = _samples(per_sample_grads)
    unit = _unit(mean)
    # A mean of 0 has no direction; the samples then err in all of them.
    along = centred @ unit if unit.any() else centred
    return _outcome(_variance(along), mean @ mean, tolerance, len(centred))


def orthogonality_test(per_sample_grads: Array[F], *, tolerance: float) -> BatchTest:
    """Test the sampling error perpendicular to the mean gradient.

    Parameters, results and errors are those of :func:`norm_test`.

    Notes
    -----
    The samples lose their component along ``g``; what is left has the mean 0. Its variance and that of
    :func:`inner_product_test` add up to that of :func:`norm_test`.

    References
    ----------
    Bollapragada, Byrd, Nocedal (2018), SIAM Journal on Optimization 28, 3312-3343 (orthogonality test).

    Examples
    --------
    >>> round(orthogonality_test(np.array([[1.0, 0.0], [3.0, 2.0]]), tolerance=0.5).statistic, 12)
    0.32
    """
    centred, mean = _samples(per_sample_grads)
    unit = _unit(mean)
    across = centred - np.outer(centred @ unit, unit)
    return _outcome(_variance(across), mean @ mean, tolerance, len(centred))


def augmented_inner_product_test(
    per_sample_grads: Array[F], *, tolerance: float, orthogonality_tolerance: float
) -> BatchTest:
    """Test the sampling error along and across the mean gradient, each with its own tolerance.

    Parameters
    ----------
    per_sample_grads, tolerance
        As in :func:`inner_product_test`.
    orthogonality_tolerance : float > 0
        As the tolerance of :func:`orthogonality_test`.

    Returns
    -------
    BatchTest
        Of whichever test has the larger statistic.

    Raises
    ------
    TypeError, ValueError
        As in :func:`norm_test`.

    References
    ----------
    Bollapragada, Byrd, Nocedal (2018), SIAM Journal on Optimization 28, 3312-3343 (augmented test).

    Examples
    --------
    >>> test = augmented_inner_product_test(
    ...     np.array([[1.0, 0.0], [3.0, 2.0]]), tolerance=0.5, orthogonality_tolerance=0.1)
    >>> round(test.statistic, 12), test.required
    (8.0, 8.0)
    """
    _checks.positive(orthogonality_tolerance, "orthogonality_tolerance")
    along = inner_product_test(per_sample_grads, tolerance=tolerance)
    across = orthogonality_test(per_sample_grads, tolerance=orthogonality_tolerance)
    return across if across.statistic > along.statistic else along


def coordinate_norm_test(per_sample_grads: Array[F], *, tolerance: float) -> BatchTest:
    """Apply the norm test to every coordinate; the worst one decides.

    Parameters, results and errors are those of :func:`norm_test`.

    Notes
    -----
    ``v_j / b <= tolerance^2 g_j^2`` for every ``j``. Coordinates in which all samples agree are passed. One
    coordinate whose mean happens to be near 0 is enough to ask for a very large batch.

    References
    ----------
    Lau, Liu, Kolar (2024), arXiv 2402.11215 (coordinate-wise norm test).

    Examples
    --------
    >>> coordinate_norm_test(np.array([[1.0, 0.0], [3.0, 2.0]]), tolerance=0.5)
    BatchTest(required=8.0, statistic=8.0, variance=2.0, grad_norm_squared=1.0)
    """
    centred, mean = _samples(per_sample_grads)
    variances = (centred * centred).sum(axis=0) / (len(centred) - 1)
    if not variances.any():
        return _outcome(0.0, 0.0, tolerance, len(centred))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios = np.where(variances == 0, 0.0, variances / (mean * mean))
    worst = int(np.argmax(ratios))
    return _outcome(variances[worst], mean[worst] ** 2, tolerance, len(centred))


def next_batch_size(current: int, required: float, *, max_batch_size: int) -> int:
    """Return the size of the next batch: never smaller than the current one, never above the maximum.

    Parameters
    ----------
    current : int >= 1
    required : float
        What a test asks for; may be infinite.
    max_batch_size : int >= current

    Returns
    -------
    int

    Raises
    ------
    TypeError, ValueError
        If a size is out of range or ``required`` is NaN.

    Notes
    -----
    ``min(max_batch_size, ceil(max(current, required)))``, capped before it is rounded: ``required`` may be
    beyond every integer type.

    References
    ----------
    Lau, Liu, Kolar (2024), arXiv 2402.11215, algorithm 1.

    Examples
    --------
    >>> next_batch_size(2, 3.2, max_batch_size=100), next_batch_size(2, float("inf"), max_batch_size=100)
    (4, 100)
    """
    current = _checks.whole(current, "current", low=1)
    largest = _checks.whole(max_batch_size, "max_batch_size", low=current)
    if math.isnan(required):
        _checks.fail("required", "a number", required)
    return math.ceil(min(float(largest), max(float(current), required)))


@dataclass(frozen=True)
class AdaGradNormState:
    """State of :class:`AdaGradNorm`.

    Parameters
    ----------
    accumulator
        Initial value plus the squared norms of all gradients up to here.
    """

    accumulator: float


@dataclass(frozen=True)
class AdaGradNorm:
    """AdaGrad with one step size for all parameters.

    Parameters
    ----------
    learning_rate : float > 0
    initial_accumulator_value : float >= 0
        What the sum of squared norms starts from.

    Raises
    ------
    ValueError
        If a hyper-parameter is outside its range.

    Notes
    -----
    ``accumulator += |grad|^2`` over all parameters, then
    ``param -= learning_rate grad / sqrt(accumulator)``. A zero gradient changes nothing.

    References
    ----------
    Ward, Wu, Bottou (2020), Journal of Machine Learning Research 21, algorithm 1.

    Examples
    --------
    >>> optimizer = AdaGradNorm(learning_rate=5.0, initial_accumulator_value=0.0)
    >>> params = np.zeros(2)
    >>> optimizer.step(params, np.array([3.0, 4.0]), optimizer.init(params))
    (array([-3., -4.]), AdaGradNormState(accumulator=25.0))
    """

    learning_rate: float = 1.0
    initial_accumulator_value: float = 1e-2

    def __post_init__(self) -> None:
        _checks.positive(self.learning_rate, "learning_rate")
        _checks.non_negative(self.initial_accumulator_value, "initial_accumulator_value")

    def init(self, params: Tree) -> AdaGradNormState:
        """Return the state before the first step."""
        zeros_like(params)
        return AdaGradNormState(accumulator=float(self.initial_accumulator_value))

    def step(self, params: Tree, grads: Tree, state: AdaGradNormState) -> tuple[Tree, AdaGradNormState]:
        """Return parameters and state after one step; see :class:`refnorm.solvers.Optimizer`."""
        leaves = [np.asarray(leaf, dtype=np.float64) for _, leaf in tree_leaves(grads) if leaf is not None]
        accumulator = state.accumulator + sum(float(np.sum(leaf * leaf)) for leaf in leaves)
        # The current gradient is part of the sum, so no step is longer than the learning rate. A sum of 0 has
        # no step, a sum of NaN makes everything NaN.
        rate = self.learning_rate / math.sqrt(accumulator) if accumulator > 0 else accumulator

        def update(param: AnyArray, grad: AnyArray) -> tuple[AnyArray]:
            return (np.asarray(param - rate * grad),)

        (params,) = update_leaves(update, params, grads, {})
        return params, AdaGradNormState(accumulator=accumulator)


@dataclass(frozen=True)
class AdaGradState:
    """State of :class:`AdaGrad`.

    Parameters
    ----------
    accumulator
        Tree like the parameters: initial value plus the squares of all gradients up to here.
    step
        Steps taken.
    """

    accumulator: Tree
    step: int


@dataclass(frozen=True)
class AdaGrad:
    """AdaGrad with a step size for every coordinate.

    Parameters
    ----------
    learning_rate : float > 0
    learning_rate_decay : float >= 0
        Step ``k``, from 0, uses ``learning_rate / (1 + k learning_rate_decay)``.
    weight_decay : float >= 0
        Coefficient of an L2 penalty, added to the gradient.
    initial_accumulator_value : float >= 0
        What the sums of squares start from.
    eps : float > 0
        Added to the root of the sum.

    Raises
    ------
    ValueError
        If a hyper-parameter is outside its range.

    Notes
    -----
    ``accumulator += grad^2``, then ``param -= rate grad / (sqrt(accumulator) + eps)``.

    References
    ----------
    Duchi, Hazan, Singer (2011), Journal of Machine Learning Research 12, 2121-2159.

    Examples
    --------
    >>> optimizer = AdaGrad(learning_rate=0.5)
    >>> params = np.zeros(2)
    >>> optimizer.step(params, np.array([3.0, -0.01]), optimizer.init(params))[0].round(6)
    array([-0.5,  0.5])
    """

    learning_rate: float = 1e-2
    learning_rate_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10

    def __post_init__(self) -> None:
        _checks.positive(self.learning_rate, "learning_rate")
        _checks.non_negative(self.learning_rate_decay, "learning_rate_decay")
        _checks.non_negative(self.weight_decay, "weight_decay")
        _checks.non_negative(self.initial_accumulator_value, "initial_accumulator_value")
        _checks.positive(self.eps, "eps")

    def init(self, params: Tree) -> AdaGradState:
        """Return the state before the first step."""
        start = self.initial_accumulator_value
        filled = tree_map(lambda zero: None if zero is None else np.asarray(zero + start), zeros_like(params))
        return AdaGradState(accumulator=filled, step=0)

    def step(self, params: Tree, grads: Tree, state: AdaGradState) -> tuple[Tree, AdaGradState]:
        """Return parameters and state after one step; see :class:`refnorm.solvers.Optimizer`."""
        rate = self.learning_rate / (1 + state.step * self.learning_rate_decay)

        def update(param: AnyArray, grad: AnyArray, accumulator: AnyArray) -> tuple[AnyArray, AnyArray]:
            if self.weight_decay:
                grad = grad + self.weight_decay * param
            accumulator = accumulator + grad * grad
            return np.asarray(param - rate * grad / (np.sqrt(accumulator) + self.eps)), np.asarray(accumulator)

        params, accumulator = update_leaves(update, params, grads, {"state.accumulator": state.accumulator})
        return params, AdaGradState(accumulator=accumulator, step=state.step + 1)


@dataclass(frozen=True)
class AdaptiveBatchResult:
    """Outcome of :func:`adadagrad`.

    Parameters
    ----------
    x
        The last parameters (d,).
    n_iter
        Updates made.
    converged
        Whether the full gradient reached ``tol``; False when the budget ended the run.
    batch_sizes
        Size of each update's batch (n_iter,).
    history
        ``gradient_norm`` of each batch and the test's ``statistic`` (NaN where no test was made).
    """

    x: AnyArray
    n_iter: int
    converged: bool
    batch_sizes: IntArray
    history: dict[str, Array[np.float64]]


def adadagrad(
    per_sample_grad: Callable[[AnyArray, IntArray], AnyArray],
    x0: Array[F],
    n_samples: int,
    *,
    optimizer: Optimizer[Any],
    max_samples: int,
    rng: np.random.Generator,
    test: str | None = "norm",
    tolerance: float = 0.1,
    orthogonality_tolerance: float = 0.1,
    batch_size: int = 8,
    max_batch_size: int | None = None,
    test_interval: int = 1,
    tol: float = 0.0,
    callback: Callback | None = None,
) -> AdaptiveBatchResult:
    """Minimise a mean of losses with batches that grow when a test of their gradient fails.

    Parameters
    ----------
    per_sample_grad : callable
        ``per_sample_grad(x, indices)`` returns the gradients (b, d) of the samples ``indices`` (b,).
    x0 : array (d,)
        Start.
    n_samples : int >= 2
        Number of samples; indices run from 0.
    optimizer
        Usually :class:`AdaGradNorm` or :class:`AdaGrad`; any optimizer will do.
    max_samples : int >= batch_size
        Budget of per-sample gradients, which the run does not exceed.
    rng : numpy.random.Generator
        Draws each batch without replacement.
    test : ``"norm"``, ``"inner_product"``, ``"augmented"``, ``"coordinate"`` or ``None``
        ``None`` keeps the batch size.
    tolerance, orthogonality_tolerance : floats > 0
        Of the test; the second one of ``"augmented"`` only.
    batch_size : int >= 2
        First batch size.
    max_batch_size : int, optional
        ``n_samples`` by default.
    test_interval : int >= 1
        Updates from one test to the next.
    tol : float >= 0
        The run ends when a batch of all samples has a gradient of at most this norm.
    callback
        See :class:`refnorm.solvers.Progress`.

    Returns
    -------
    AdaptiveBatchResult

    Raises
    ------
    TypeError, ValueError
        If a shape differs or a number is outside its range.
    Diverged
        If the gradients grow without bound or are not finite.

    Notes
    -----
    The test looks at the same gradients as the update. It is not made once the maximal size is reached.

    References
    ----------
    Lau, Liu, Kolar (2024), arXiv 2402.11215, algorithm 1.

    Examples
    --------
    >>> data = np.random.default_rng(0).standard_normal((200, 3)) + 1
    >>> result = adadagrad(lambda x, rows: x - data[rows], np.zeros(3), 200, optimizer=AdaGradNorm(),
    ...                    max_samples=20_000, tolerance=0.5, rng=np.random.default_rng(1))
    >>> bool(np.abs(result.x - data.mean(axis=0)).max() < 1e-3), int(result.batch_sizes[-1])
    (True, 200)
    """
    x = _checks.float_array(x0, "x0", ndim=1)
    n_samples = _checks.whole(n_samples, "n_samples", low=2)
    size = _checks.whole(batch_size, "batch_size", low=2, high=n_samples)
    largest = _checks.whole(
        n_samples if max_batch_size is None else max_batch_size, "max_batch_size", low=size, high=n_samples
    )
    budget = _checks.whole(max_samples, "max_samples", low=size)
    interval = _checks.whole(test_interval, "test_interval", low=1)
    _checks.non_negative(tol, "tol")
    rng = _checks.generator(rng)
    run_test = _test(test, tolerance, orthogonality_tolerance)
    monitor = Monitor("adadagrad", callback=callback, hint="use a smaller learning_rate")

    sizes: list[int] = []
    state, used, converged = optimizer.init(x), 0, False
    while used + size <= budget:
        rows = rng.choice(n_samples, size, replace=False) if size < n_samples else np.arange(n_samples)
        grads = np.asarray(per_sample_grad(x, rows))
        _checks.shape(grads, "per_sample_grad", (size, x.size))
        grad = grads.mean(axis=0, dtype=np.float64)
        norm = float(np.sqrt(grad @ grad))
        testing = run_test is not None and size < largest and len(sizes) % interval == 0
        outcome = run_test(grads) if run_test is not None and testing and math.isfinite(norm) else None
        sizes.append(size)
        used += size
        stop = monitor.record(gradient_norm=norm, statistic=outcome.statistic if outcome else math.nan)
        converged = size == n_samples and norm <= tol
        if converged:
            break
        x, state = optimizer.step(x, grad.astype(x.dtype), state)
        if outcome:
            size = next_batch_size(size, outcome.required, max_batch_size=largest)
        if stop:
            break
    return AdaptiveBatchResult(x, monitor.n_iter, converged, np.array(sizes), monitor.history())


def _test(name: str | None, tolerance: float, orthogonality_tolerance: float) -> Callable[[AnyArray], BatchTest] | None:
    _checks.one_of(name, "test", _TESTS)
    _checks.positive(tolerance, "tolerance")
    _checks.positive(orthogonality_tolerance, "orthogonality_tolerance")
    if name is None:
        return None
    if name == "augmented":
        return lambda grads: augmented_inner_product_test(
            grads, tolerance=tolerance, orthogonality_tolerance=orthogonality_tolerance
        )
    chosen = {"norm": norm_test, "inner_product": inner_product_test, "coordinate": coordinate_norm_test}[name]
    return lambda grads: chosen(grads, tolerance=tolerance)


def _samples(per_sample_grads: Any) -> tuple[AnyArray, AnyArray]:
    """Return deviations from the mean (b, d) and the mean (d,), both in float64."""
    grads = _checks.float_array(per_sample_grads, "per_sample_grads", ndim=2)
    if len(grads) < 2:
        _checks.fail("per_sample_grads", "at least 2 samples", f"shape {grads.shape}")
    # Two passes: E[x^2] - E[x]^2 loses all digits where the mean is large against the deviation.
    mean = grads.mean(axis=0, dtype=np.float64)
    return grads - mean, mean


def _variance(centred: AnyArray) -> float:
    return float(np.sum(centred * centred) / (len(centred) - 1))


def _unit(mean: AnyArray) -> AnyArray:
    length = np.sqrt(mean @ mean)
    return np.asarray(mean / length if length else np.zeros_like(mean))


def _outcome(variance: Any, square: Any, tolerance: float, size: int) -> BatchTest:
    _checks.positive(tolerance, "tolerance")
    variance, square = float(variance), float(square)
    allowed = tolerance**2 * square
    # No variance: the samples agree, and a mean of 0 is then exact as well.
    statistic = 0.0 if variance == 0 else variance / allowed if allowed else math.inf
    if math.isnan(statistic):
        return BatchTest(math.nan, statistic, variance, square)
    required = max(float(size), float(np.ceil(statistic)))
    return BatchTest(required, statistic, variance, square)
