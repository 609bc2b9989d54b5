"""Test-time statistics for streams whose labels come in runs: several components, un-mixed by similarity.

mean, var of one example = those of K components, of which the most similar one has moved towards the example
y = gain * (x - mean) / sqrt(var + eps) + bias
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.norms._batch_statistics import batch_statistics_vjp
from refnorm.softmax import softmax

METHOD = Method(
    title="Un-Mixing Test-Time Normalization Statistics: Combatting Label Temporal Correlation",
    authors="Tomar, Vray, Thiran, Bozorgtabar",
    year=2024,
    arxiv="2401.08328",
    functions=("UnMixState", "unmix_init", "unmix_norm", "unmix_rate"),
    chapter="norms/unmix_test_time_norm",
)

SMALLEST_NORM = 1e-12
"""Lower limit of a norm in the cosine: a zero vector is similar to nothing, instead of 0 / 0."""


@dataclass(frozen=True)
class UnMixState:
    """Statistics of the components of one layer.

    Parameters
    ----------
    means, variances : arrays (K, C)
        Mean and variance of every component and channel; from :func:`unmix_init`.
    """

    means: AnyArray
    variances: AnyArray


def unmix_init(
    source_mean: Array[F], source_var: Array[F], rng: np.random.Generator, *, components: int = 16, alpha: float = 0.5
) -> UnMixState:
    """Spread the statistics of a trained batch norm over several components.

    Parameters
    ----------
    source_mean, source_var : arrays (C,)
        Running statistics of the trained batch norm.
    rng : numpy.random.Generator
        Draws the noise of the means.
    components : int >= 1
        Number K of components.
    alpha : float in [0, 1]
        Share of the variance that lies between the components.

    Returns
    -------
    UnMixState

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ, ``components`` is not an integer or ``rng`` not a
        generator.
    ValueError
        If a shape is wrong, a variance is negative or an option is out of range.

    Notes
    -----
    ``means = source_mean + sqrt(alpha K / (K - 1) source_var) noise`` and ``variances = (1 - alpha) source_var``. On
    average over the noise, the mixture of the components has the source's mean and variance. A single component
    is the source itself.

    References
    ----------
    Tomar et al. (2024), arXiv 2401.08328, the section on the initialization, and the authors' code.

    Examples
    --------
    >>> state = unmix_init(np.zeros(2), np.ones(2), np.random.default_rng(0), components=4)
    >>> state.means.shape, state.variances[0]
    ((4, 2), array([0.5, 0.5]))
    """
    mean, var = _checks.float_array(source_mean, "source_mean", ndim=1), _checks.float_array(source_var, "source_var")
    _checks.same_dtype("source_mean", mean, source_var=var)
    _checks.shape(var, "source_var", mean.shape)
    if var.size and var.min() < 0:
        _checks.fail("source_var", "values >= 0", var.min())
    rng = _checks.generator(rng)
    k = _checks.whole(components, "components", low=1)
    _checks.in_range(alpha, "alpha", 0, 1)
    if k == 1:
        return UnMixState(mean[None].copy(), var[None].copy())
    # The sample variance of K draws of variance v is on average v (K - 1) / K: the factor makes up for it.
    spread = np.sqrt(alpha * k / (k - 1) * var.astype(np.float64))
    means = mean + spread * rng.standard_normal((k, len(mean)))
    return UnMixState(means.astype(mean.dtype), np.repeat(((1 - alpha) * var).astype(var.dtype)[None], k, axis=0))


def unmix_rate(momentum: float, batch: int, *, reference: int = 64) -> float:
    """Adapt a batch norm's momentum to the size of the test batches.

    Parameters
    ----------
    momentum : float in [0, 1]
        Weight of a batch of the reference size.
    batch : int >= 1
        Size of the test batches.
    reference : int >= 1
        Size for which the momentum is meant.

    Returns
    -------
    float
        Weight of one batch, such that ``reference / batch`` batches move the statistics as far as one of the
        reference size.

    Raises
    ------
    TypeError
        If a size is not an integer.
    ValueError
        If a number is out of range.

    Notes
    -----
    ``1 - (1 - momentum)^(batch / reference)``, computed without the cancellation of small momenta.

    References
    ----------
    Tomar et al. (2024), arXiv 2401.08328, the authors' code.

    Examples
    --------
    >>> round(unmix_rate(0.1, 16), 6)
    0.025996
    """
    _checks.in_range(momentum, "momentum", 0, 1)
    batch, reference = _checks.whole(batch, "batch", low=1), _checks.whole(reference, "reference", low=1)
    if momentum == 1:
        return 1.0
    return float(-np.expm1(batch / reference * np.log1p(-momentum)))


def unmix_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: UnMixState,
    *,
    rate: float,
    temperature: float = 0.07,
    eps: float = 1e-5,
    between: bool = False,
) -> tuple[Array[F], UnMixState]:
    """Normalize each test example by the mixture of the components, one of which it has pulled to itself.

    Parameters
    ----------
    x : array (B, C, H, W), or with other axes of places
        Test batch.
    gain, bias : arrays (C,)
        Affine parameters of the trained batch norm.
    state : UnMixState
        Components before this batch.
    rate : float in [0, 1]
        How far the batch moves the components; from :func:`unmix_rate`.
    temperature : float > 0
        Divides the cosines: the smaller, the more one component takes all of an example.
    eps : float > 0
        Added to the variance.
    between : bool
        When a component is blended with an example, count the distance of their means in its variance.

    Returns
    -------
    y : array, shape and dtype of ``x``
    state : UnMixState
        Components after this batch; they do not affect its own output.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong, there is no component, example or place, a variance of the state is negative or an option
        is out of range.

    Notes
    -----
    For each example with mean ``m`` and variance ``v`` over its places: assignment
    ``p_k = softmax_k(cos(m, means_k) / temperature)``, blended components ``(1 - p_k) means_k + p_k m`` and
    ``(1 - p_k) variances_k + p_k v``; the mean of the blended means is subtracted, and the variance is the mean of the
    blended variances plus the variance of the blended means. Then ``means_k`` moves by
    ``rate mean_over_batch(p_k (m - means_k))``, and ``variances_k`` alike. NaN in an example makes its output NaN and
    reaches the state.

    References
    ----------
    Tomar et al. (2024), arXiv 2401.08328, the section on UnMix-TNS, and the authors' code.

    Examples
    --------
    >>> state = UnMixState(np.array([[1.0], [-1.0]]), np.array([[0.5], [0.5]]))
    >>> x = np.array([[[1.0, 3.0]]])
    >>> y, after = unmix_norm(x, np.ones(1), np.zeros(1), state, rate=0.1, eps=1e-12)
    >>> y.round(4), after.means.ravel().round(3)
    (array([[[0.2887, 1.4434]]]), array([ 1.1, -1. ]))
    """
    return unmix_norm_vjp(x, gain, bias, state, rate=rate, temperature=temperature, eps=eps, between=between)[0]


def unmix_norm_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: UnMixState,
    *,
    rate: float,
    temperature: float = 0.07,
    eps: float = 1e-5,
    between: bool = False,
) -> tuple[tuple[Array[F], UnMixState], Pullback]:
    """Return :func:`unmix_norm` and its pullback ``dy -> (dx, dgain, dbias)``.

    Assignments and components are constants in the backward pass. The state takes no cotangent and gets none.
    """
    x = _checks.float_array(x, "x", min_ndim=3)
    named = {"gain": gain, "bias": bias}
    for name, array in named.items():
        _checks.same_dtype("x", x, **{name: _checks.float_array(array, name)})
        _checks.shape(array, name, (x.shape[1],))
    means, variances = _checked(state, x)
    _checks.in_range(rate, "rate", 0, 1)
    _checks.positive(temperature, "temperature")
    _checks.positive(eps, "eps")
    places = tuple(range(2, x.ndim))
    _checks.not_empty(x, "x", (0, 1, *places))

    wide = x.astype(np.result_type(x, np.float64), copy=False)
    (own_mean, own_var), back_stats = batch_statistics_vjp(wide, places)  # (B, C)
    p = _assignments(own_mean.real, means, temperature)[..., None]  # (B, K, 1)
    gap = own_mean[:, None] - means
    blended_mean = means + p * gap
    blended_var = (1 - p) * variances + p * own_var[:, None]
    if between:
        blended_var = blended_var + p * (1 - p) * gap * gap
    mean = blended_mean.mean(axis=1)
    deviation = blended_mean - mean[:, None]
    # E[m^2] - E[m]^2 would cancel; the mean of squared deviations cannot become negative.
    var = blended_var.mean(axis=1) + (deviation * deviation).mean(axis=1)
    inv_std = np.expand_dims(1 / np.sqrt(var + eps), places)
    x_hat = (wide - np.expand_dims(mean, places)) * inv_std
    gain_, bias_ = (array.reshape(-1, *[1] * len(places)) for array in (gain, bias))
    y: Array[F] = (gain_ * x_hat + bias_).astype(np.result_type(x, gain, bias))
    k = len(means)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        direct = gain_ * dy * inv_std
        dmean = -direct.sum(axis=places)
        dvar = -0.5 * (direct * x_hat * inv_std).sum(axis=places)
        # Every blended component has the share 1 / K of the mean and of the variance; the deviations' own
        # dependence on the mean drops out, because they sum to 0. An example's statistics enter with weight p.
        dblended = (dmean[:, None] + 2 * deviation * dvar[:, None]) / k
        if between:
            dblended = dblended + 2 * (1 - p) * gap * dvar[:, None] / k
        down_mean = (p * dblended).sum(axis=1)
        down_var = dvar / k * p.sum(axis=1)
        dx = direct + back_stats((down_mean, down_var))[0]
        over = (0, *places)
        sums = ((dy * x_hat).sum(axis=over), np.sum(dy, axis=over, dtype=np.float64))
        return dx.astype(x.dtype), sums[0].astype(x.dtype), sums[1].astype(x.dtype)

    moved = (
        old + rate * (p * (own.real[:, None] - old)).mean(axis=0)
        for old, own in ((means, own_mean), (variances, own_var))
    )
    return (y, UnMixState(*(array.astype(state.means.dtype) for array in moved))), pullback


def _assignments(own: AnyArray, means: AnyArray, temperature: float) -> AnyArray:
    def unit(vectors: AnyArray) -> AnyArray:
        norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
        return np.asarray(vectors / np.maximum(norms, SMALLEST_NORM))

    return softmax(unit(own) @ unit(means).T / temperature)


def _checked(state: UnMixState, x: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Return means and variances (K, C) in float64."""
    means = _checks.float_array(state.means, "state.means", ndim=2)
    variances = _checks.float_array(state.variances, "state.variances", ndim=2)
    _checks.same_dtype("x", x, **{"state.means": means, "state.variances": variances})
    _checks.not_empty(means, "state.means", (0,))
    _checks.shape(means, "state.means", (len(means), x.shape[1]))
    _checks.shape(variances, "state.variances", means.shape)
    if variances.size and variances.min() < 0:
        _checks.fail("state.variances", "values >= 0", variances.min())
    return means.astype(np.float64), variances.astype(np.float64)
