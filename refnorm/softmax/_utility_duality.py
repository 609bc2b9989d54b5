"""A softmax network's outputs read as utilities: learned by regret, turned into probabilities afterwards.

soft regret   R = T logsumexp(u / T) - u_chosen             (T = 1: the negative log-likelihood; T = 0: max(u) - u_chosen)
duality       T logsumexp(u / T) = max over distributions p of <p, u> + T entropy(p)
re-estimate   p = softmax(inverse_temperature u), with the inverse temperature that fits held-out choices best
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.softmax._cross_entropy import _reduce, log_softmax, logsumexp
from refnorm.softmax._two_pass import softmax, softmax_vjp

if TYPE_CHECKING:
    from refnorm.solvers._monitor import Callback

METHOD = Method(
    title="Utility-Probability Duality of Neural Networks",
    authors="Bojun, Yuan",
    year=2023,
    arxiv="2305.14859",
    functions=(
        "InverseTemperatureFit",
        "decide",
        "fit_inverse_temperature",
        "gibbs_value",
        "ordinal_agreement",
        "reestimate_probability",
        "soft_regret",
        "utility_sgd_step",
    ),
    chapter="softmax/utility_duality",
)

SUM_TOLERANCE = 1e-5
"""How far a row of probabilities may be from summing to 1: float32 rows of a million classes stay within it."""

_REDUCTIONS = ("mean", "sum", "none")
_RULES = ("argmax", "sample", "mbr")


def soft_regret(utility: Array[F], choice: IntArray, *, temperature: Any = 1.0, reduction: str = "mean") -> Array[F]:
    """How much better than the observed choice the softly best alternative is.

    Parameters
    ----------
    utility : array (B, C)
        Finite; one utility for each alternative.
    choice : integer array (B,)
        The alternative that was chosen, from 0 to C - 1.
    temperature : float >= 0, or array ()
        1 gives the negative log-likelihood, 0 the hard regret.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    array, () or (B,), dtype of ``utility``
        At least 0.

    Raises
    ------
    TypeError
        If ``utility`` is not float32 or float64, or ``choice`` is not integer.
    ValueError
        If a shape is wrong, a utility is not finite, a choice or option is out of range, or there is no row to take
        the mean of.

    Notes
    -----
    ``temperature logsumexp(utility / temperature) - utility_chosen``. It lies between the hard regret
    ``max(utility) - utility_chosen`` and that plus ``temperature log C``, and does not fall with the temperature.

    References
    ----------
    Bojun, Yuan (2023), arXiv 2305.14859, for the reading of the likelihood as regret.

    Examples
    --------
    >>> utility, choice = np.array([[1.0, 0.0]]), np.array([1])
    >>> [float(soft_regret(utility, choice, temperature=t).round(6)) for t in (0.0, 1.0)]
    [1.0, 1.313262]
    """
    return soft_regret_vjp(utility, choice, temperature=temperature, reduction=reduction)[0]


def soft_regret_vjp(
    utility: Array[F], choice: IntArray, *, temperature: Any = 1.0, reduction: str = "mean"
) -> tuple[Array[F], Pullback]:
    """Return :func:`soft_regret` and its pullback ``dregret -> (dutility,)``.

    If the temperature is an array, the pullback returns ``(dutility, dtemperature)``. At temperature 0 the first of
    several best alternatives gets the slope. Parameters, errors and references are those of :func:`soft_regret`.
    """
    utility, choice = _choices(utility, choice)
    _checks.one_of(reduction, "reduction", _REDUCTIONS)
    _check_number(temperature, "temperature")
    _checks.non_negative(np.real(temperature), "temperature")
    wide, column = _wide(utility), choice[:, None]
    first = wide.real.argmax(axis=1)[:, None]
    best = np.take_along_axis(wide, first, axis=1)
    hard = (best - np.take_along_axis(wide, column, axis=1))[:, 0]
    if np.real(temperature) > 0:
        # The best alternative's 1 in the sum is split off: both terms of the regret are at least 0.
        with np.errstate(over="ignore"):
            scaled = (wide - best) / temperature
        regret = hard + temperature * logsumexp(scaled)
        log_p = log_softmax(scaled)
    else:
        regret, log_p = hard, np.where(np.arange(wide.shape[1]) == first, 0, -np.inf)
    value, row_weights = _reduce(regret, np.ones(len(regret), np.bool_), reduction)

    def pullback(dregret: Array[F]) -> tuple[AnyArray, ...]:
        # d R / du = p - e_chosen: up for what the present utility prefers, down for what was chosen. In the chosen
        # column 1 is taken off inside expm1.
        row = row_weights(dregret)
        difference = np.exp(log_p)
        np.put_along_axis(difference, column, np.expm1(np.take_along_axis(log_p, column, axis=1)), axis=1)
        dutility = (row[:, None] * difference).astype(utility.dtype)
        if not isinstance(temperature, np.ndarray):
            return (dutility,)
        # d R / dT = entropy(p): the envelope of <p, u> + T entropy(p). At T = 0 it is that of the tied best.
        entropy = _entropy(np.exp(log_p)) if temperature > 0 else np.log((wide == best).sum(axis=1))
        return dutility, np.asarray((row * entropy).sum(), temperature.dtype)

    return np.asarray(_in_dtype_of(utility, value)), pullback


def gibbs_value(utility: Array[F], p: Array[F], *, temperature: float) -> Array[F]:
    """Expected utility of a distribution plus the temperature times its entropy.

    Parameters
    ----------
    utility : array (B, C)
    p : array (B, C)
        Distributions: at least 0, rows summing to 1 (which is not checked).
    temperature : float >= 0

    Returns
    -------
    array (B,), dtype of ``utility``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong, a utility is not finite, an entry of ``p`` is negative or NaN, or ``temperature < 0``.

    Notes
    -----
    ``<p, u> - temperature <p, log p>``. Its largest value over all distributions is ``temperature logsumexp(u /
    temperature)``, at ``p = softmax(u / temperature)``.

    References
    ----------
    Bojun, Yuan (2023), arXiv 2305.14859; Gibbs' variational principle.

    Examples
    --------
    >>> gibbs_value(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]]), temperature=1.0).round(6)
    array([1.193147])
    """
    return gibbs_value_vjp(utility, p, temperature=temperature)[0]


def gibbs_value_vjp(utility: Array[F], p: Array[F], *, temperature: float) -> tuple[Array[F], Pullback]:
    """Return :func:`gibbs_value` and its pullback ``dvalue -> (dutility, dp)``.

    The slope in an entry of ``p`` that is 0 is infinite. Parameters, errors and references are those of
    :func:`gibbs_value`.
    """
    utility = _utilities(utility)
    p = _checks.float_array(p, "p")
    _checks.same_dtype("utility", utility, p=p)
    _checks.shape(p, "p", utility.shape)
    if not (p.real >= 0).all():
        _checks.fail("p", "numbers of at least 0", p.real.min())
    _checks.non_negative(temperature, "temperature")
    wide, share = _wide(utility), _wide(p)
    value = (share * wide).sum(axis=1) + temperature * _entropy(share)

    def pullback(dvalue: Array[F]) -> tuple[Array[F], Array[F]]:
        # (p log p)' = log p + 1.
        column = np.asarray(dvalue)[:, None]
        slope = wide
        if temperature > 0:
            with np.errstate(divide="ignore"):
                slope = wide - temperature * (np.log(share) + 1)
        return (column * share).astype(utility.dtype), (column * slope).astype(p.dtype)

    return _in_dtype_of(utility, value), pullback


def utility_sgd_step(utility: Array[F], choice: int, *, step: float) -> Array[F]:
    """Move a table of utilities towards one observed choice, by a gradient step on the soft regret.

    Parameters
    ----------
    utility : array (C,)
    choice : int from 0 to C - 1
    step : float > 0

    Returns
    -------
    array (C,), dtype of ``utility``
        ``utility + step (e_choice - softmax(utility))``; the sum does not change.

    Raises
    ------
    TypeError
        If ``utility`` is not float32 or float64, or ``choice`` is not an integer.
    ValueError
        If a utility is not finite, ``choice`` is out of range or ``step`` is not > 0.

    References
    ----------
    Bojun, Yuan (2023), arXiv 2305.14859: training as an iteration towards an optimal utility.

    Examples
    --------
    >>> utility_sgd_step(np.array([0.0, 0.0]), 1, step=0.5)
    array([-0.25,  0.25])
    """
    utility = _checks.float_array(utility, "utility", ndim=1)
    _checks.not_empty(utility, "utility", (0,))
    _checks.finite(utility, "utility")
    choice = _checks.whole(choice, "choice", low=0, high=len(utility) - 1)
    _checks.positive(step, "step")
    towards = -softmax(utility)
    towards[choice] += 1
    return np.asarray(utility + step * towards)


@dataclass(frozen=True)
class InverseTemperatureFit:
    """Result of :func:`fit_inverse_temperature`.

    Parameters
    ----------
    inverse_temperature : float
    n_iter : int
    converged : bool
        False also if the likelihood rises for ever: the value is then the largest that is allowed.
    history : dict
        ``"loss"``: the mean negative log-likelihood, and ``"inverse_temperature"``, an entry an iteration.
    """

    inverse_temperature: float
    n_iter: int
    converged: bool
    history: Mapping[str, AnyArray]


def fit_inverse_temperature(
    utility: Array[F],
    choice: IntArray,
    *,
    tol: float = 1e-10,
    max_iter: int = 100,
    largest: float = 1e3,
    callback: Callback | None = None,
) -> InverseTemperatureFit:
    """Fit the scale at which utilities become probabilities.

    Parameters
    ----------
    utility : array (B, C)
        Finite, from held-out data.
    choice : integer array (B,)
    tol : float > 0
        Largest last step, relative to the larger of 1 and the result.
    max_iter : int >= 1
    largest : float > 0
        Upper end of the search.
    callback : callable, optional
        Called with a ``refnorm.solvers.Progress`` after every iteration.

    Returns
    -------
    InverseTemperatureFit

    Raises
    ------
    TypeError
        If ``utility`` is not float32 or float64, ``choice`` is not integer or ``max_iter`` is not an integer.
    ValueError
        If a shape is wrong, there is no row, a utility is not finite, or a number is out of range.

    Notes
    -----
    Minimises the mean of ``logsumexp(b u) - b u_chosen`` over b in [0, ``largest``], which is convex: its slope is the
    mean of ``<p, u> - u_chosen``, its curvature that of ``Var_p(u)``. Newton's steps, halving the bracket where
    they leave it. The result is 0 if the choices go against the utility, and ``largest``, not converged, if every
    choice is a best alternative.

    References
    ----------
    Bojun, Yuan (2023), arXiv 2305.14859: probabilities re-estimated from utilities. Guo et al. (2017),
    arXiv 1706.04599 (temperature scaling).

    Examples
    --------
    In three of four cases the better of two alternatives is chosen; the gap is 1.

    >>> fit = fit_inverse_temperature(np.array([[1.0, 0.0]] * 4), np.array([0, 0, 0, 1]))
    >>> round(fit.inverse_temperature, 6), fit.converged
    (1.098612, True)
    """
    options: dict[str, Any] = {"tol": tol, "max_iter": max_iter, "largest": largest, "callback": callback}
    return fit_inverse_temperature_vjp(utility, choice, **options)[0]


def fit_inverse_temperature_vjp(
    utility: Array[F],
    choice: IntArray,
    *,
    tol: float = 1e-10,
    max_iter: int = 100,
    largest: float = 1e3,
    callback: Callback | None = None,
) -> tuple[InverseTemperatureFit, Pullback]:
    """Return :func:`fit_inverse_temperature` and its pullback ``dinverse_temperature -> (dutility,)``.

    At either end of the search the slope is 0. Parameters, errors and references are those of
    :func:`fit_inverse_temperature`.
    """
    utility, choice = _choices(utility, choice)
    _checks.not_empty(utility, "utility", (0,))
    _checks.positive(tol, "tol")
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    _checks.positive(largest, "largest")
    wide, column = _wide(utility), choice[:, None]
    fit, inside = _fit(wide, column, tol, max_iter, largest, callback)
    beta = fit.inverse_temperature

    def pullback(dbeta: Any) -> tuple[Array[F]]:
        # The slope's root moves with u: h(u, b) = sum of <p, u> - u_chosen = 0, so db/du = -(dh/du) / (dh/db).
        # dh/du_c = p_c (1 + b (u_c - <p, u>)) - [c chosen], dh/db = sum of Var_p(u).
        if not inside:
            return (np.zeros_like(utility),)
        p = softmax(beta * wide)
        centred = wide - (p * wide).sum(axis=1, keepdims=True)
        slope = p * (1 + beta * centred)
        np.put_along_axis(slope, column, np.take_along_axis(slope, column, axis=1) - 1, axis=1)
        return ((-np.asarray(dbeta) * slope / (p * centred * centred).sum()).astype(utility.dtype),)

    return fit, pullback


def reestimate_probability(utility: Array[F], *, inverse_temperature: Any) -> Array[F]:
    """Turn utilities into probabilities at a fitted scale.

    Parameters
    ----------
    utility : array (B, C)
        Of all alternatives or of a list of candidates, for example total log-probabilities of an n-best list.
    inverse_temperature : float >= 0, or array ()

    Returns
    -------
    array (B, C), dtype of ``utility``
        ``softmax(inverse_temperature utility)``.

    Raises
    ------
    TypeError
        If ``utility`` is not float32 or float64.
    ValueError
        If a utility is not finite, there is no alternative, or ``inverse_temperature < 0``.

    References
    ----------
    Bojun, Yuan (2023), arXiv 2305.14859: probabilities re-estimated from utilities.

    Examples
    --------
    >>> reestimate_probability(np.array([[1.0, 0.0]]), inverse_temperature=np.log(3)).round(6)
    array([[0.75, 0.25]])
    """
    return reestimate_probability_vjp(utility, inverse_temperature=inverse_temperature)[0]


def reestimate_probability_vjp(utility: Array[F], *, inverse_temperature: Any) -> tuple[Array[F], Pullback]:
    """Return :func:`reestimate_probability` and its pullback ``dp -> (dutility,)``.

    If the inverse temperature is an array, the pullback returns ``(dutility, dinverse_temperature)``. Parameters,
    errors and references are those of :func:`reestimate_probability`.
    """
    utility = _utilities(utility)
    _check_number(inverse_temperature, "inverse_temperature")
    _checks.non_negative(np.real(inverse_temperature), "inverse_temperature")
    wide = _wide(utility)
    p, to_scaled = softmax_vjp(inverse_temperature * wide)

    def pullback(dp: Array[F]) -> tuple[AnyArray, ...]:
        (dscaled,) = to_scaled(dp)
        dutility = (inverse_temperature * dscaled).astype(utility.dtype)
        if not isinstance(inverse_temperature, np.ndarray):
            return (dutility,)
        return dutility, np.asarray((dscaled * wide).sum(), inverse_temperature.dtype)

    return _in_dtype_of(utility, p), pullback


def decide(
    p_or_utility: AnyArray,
    *,
    rule: str = "argmax",
    gain: AnyArray | None = None,
    rng: np.random.Generator | None = None,
) -> IntArray:
    """Choose one alternative a row.

    Parameters
    ----------
    p_or_utility : array (B, C)
        Utilities or probabilities for ``"argmax"``; probabilities for the other rules.
    rule : {"argmax", "sample", "mbr"}
        The best (the first of several), a random one, or the one with the largest expected gain.
    gain : array (C, C), for ``"mbr"``
        ``gain[true, chosen]``.
    rng : numpy.random.Generator, for ``"sample"``

    Returns
    -------
    integer array (B,)

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or ``rng`` is missing.
    ValueError
        If there is no alternative, an entry is not finite, a row of probabilities is negative or does not sum to 1,
        or ``gain`` is missing or of another shape.

    References
    ----------
    Bojun, Yuan (2023), arXiv 2305.14859: ordinal and probability-based decision rules.

    Examples
    --------
    >>> p = np.array([[0.4, 0.35, 0.25]])
    >>> near = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.8], [0.0, 0.8, 1.0]])
    >>> decide(p), decide(p, rule="mbr", gain=near)
    (array([0]), array([1]))
    """
    table = _utilities(p_or_utility, "p_or_utility")
    _checks.one_of(rule, "rule", _RULES)
    if rule == "argmax":
        return np.asarray(table.argmax(axis=1))
    if (table < 0).any() or np.abs(_wide(table).sum(axis=1) - 1).max(initial=0) > SUM_TOLERANCE:
        _checks.fail("p_or_utility", "rows of probabilities that sum to 1", "other rows")
    if rule == "sample":
        reached = np.cumsum(_wide(table), axis=1)
        # Scaled by the sum, so that rounding cannot leave a gap at the end.
        drawn = _checks.generator(rng).random((len(table), 1)) * reached[:, -1:]
        return np.asarray((drawn >= reached).sum(axis=1))
    gain = _checks.float_array(gain, "gain")
    _checks.shape(gain, "gain", (table.shape[1],) * 2)
    return np.asarray((_wide(table) @ _wide(gain)).argmax(axis=1))


def ordinal_agreement(first: AnyArray, second: AnyArray) -> tuple[float, float]:
    """How far two utilities rank alike.

    Parameters
    ----------
    first, second : arrays (B, C), B >= 1 and C >= 2

    Returns
    -------
    kendall : float in [-1, 1]
        Mean over the rows of Kendall's tau-b; a row in which one utility is constant counts 0.
    top1 : float in [0, 1]
        Fraction of rows with the same best alternative (the first of several).

    Raises
    ------
    TypeError
        If an array is not float32 or float64.
    ValueError
        If a shape is wrong or an entry is not finite.

    References
    ----------
    Kendall (1945), The treatment of ties in ranking problems.

    Examples
    --------
    >>> ordinal_agreement(np.array([[3.0, 2.0, 1.0]]), np.array([[9.0, 0.1, 0.2]]))
    (0.3333333333333333, 1.0)
    """
    first, second = _utilities(first, "first"), _utilities(second, "second")
    _checks.shape(second, "second", first.shape)
    if len(first) < 1 or first.shape[1] < 2:
        _checks.fail("first", "at least 1 row of at least 2 alternatives", f"shape {first.shape}")
    taus = []
    for a, b in zip(first, second, strict=True):
        order_a, order_b = np.sign(a[:, None] - a), np.sign(b[:, None] - b)
        pairs = np.sqrt((order_a**2).sum() * (order_b**2).sum())
        taus.append(float((order_a * order_b).sum() / pairs) if pairs > 0 else 0.0)
    return float(np.mean(taus)), float((first.argmax(axis=1) == second.argmax(axis=1)).mean())


def _fit(
    utility: AnyArray, column: IntArray, tol: float, max_iter: int, largest: float, callback: Callback | None
) -> tuple[InverseTemperatureFit, bool]:
    """The fit, and whether it lies inside the search interval."""
    from refnorm.solvers._monitor import Monitor  # not at the top: other rooms' solvers use this room

    # Relative to the choice: <p, u> - u_chosen is then a sum without cancellation.
    relative = utility - np.take_along_axis(utility, column, axis=1)

    def derivatives(beta: float) -> tuple[float, float, float]:
        p = softmax(beta * relative)
        mean = (p * relative).sum(axis=1)
        variance = (p * (relative - mean[:, None]) ** 2).sum(axis=1)
        return float(logsumexp(beta * relative).mean()), float(mean.mean()), float(variance.mean())

    monitor = Monitor("fit_inverse_temperature", callback=callback, hint="check the utilities")
    if derivatives(0.0)[1] >= 0:
        monitor.record(loss=derivatives(0.0)[0], inverse_temperature=0.0)
        return InverseTemperatureFit(0.0, monitor.n_iter, True, monitor.history()), False
    if derivatives(largest)[1] < 0 or relative.max() <= 0:
        monitor.record(loss=derivatives(largest)[0], inverse_temperature=largest)
        return InverseTemperatureFit(largest, monitor.n_iter, False, monitor.history()), False

    low, high, beta, converged = 0.0, largest, min(1.0, largest / 2), False
    for _ in range(max_iter):
        loss, slope, curvature = derivatives(beta)
        low, high = (beta, high) if slope < 0 else (low, beta)
        newton = beta - slope / curvature if curvature > 0 else high
        # At the minimum, to the last place, a Newton step ends where it began: on one of the bounds.
        following = newton if low < newton < high or newton == beta else (low + high) / 2
        stop = monitor.record(loss=loss, inverse_temperature=beta)
        converged = abs(following - beta) <= tol * max(1.0, beta)
        beta = following
        if converged or stop:
            break
    return InverseTemperatureFit(beta, monitor.n_iter, converged, monitor.history()), True


def _entropy(p: AnyArray) -> AnyArray:
    """``-sum p log p`` of each row, with 0 log 0 = 0."""
    positive = p.real > 0
    return np.asarray(-(p * np.log(np.where(positive, p, 1))).sum(axis=1))


def _utilities(utility: AnyArray, name: str = "utility") -> AnyArray:
    utility = _checks.float_array(utility, name, ndim=2)
    _checks.not_empty(utility, name, (1,))
    _checks.finite(utility, name)
    return utility


def _choices(utility: AnyArray, choice: IntArray) -> tuple[AnyArray, IntArray]:
    utility = _utilities(utility)
    choice = _checks.integer_array(choice, "choice", ndim=1, low=0, high=utility.shape[1] - 1)
    _checks.shape(choice, "choice", utility.shape[:1])
    return utility, choice


def _check_number(value: Any, name: str) -> None:
    if np.ndim(value) != 0:
        _checks.fail(name, "one number", f"shape {np.shape(value)}")


def _wide(x: AnyArray) -> AnyArray:
    return np.asarray(x.astype(np.result_type(x, np.float64), copy=False))


def _in_dtype_of(x: AnyArray, value: AnyArray) -> AnyArray:
    return value if np.iscomplexobj(value) else value.astype(x.dtype)
