"""Softmax in two passes over memory, by sums of numbers with an exponent of their own.

    exp(x) = mantissa * 2**exponent,   exponent = rint(x / ln 2),   mantissa = exp(x - exponent * ln 2)
    (total_mantissa, total_exponent) = sum of the pairs over the row                           (pass 1)
    y = mantissa / total_mantissa * 2**(exponent - total_exponent)                             (pass 2)

No maximum is needed: the mantissa stays near 1 and the exponent, an integer kept in a float, is never
raised to a power unless it is at most 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback

METHOD = Method(
    title="The Two-Pass Softmax Algorithm",
    authors="Dukhan, Ablavatski",
    year=2020,
    arxiv="2001.04438",
    functions=(
        "ExtExp",
        "ext_exp",
        "ext_add",
        "ext_sum",
        "ext_to_float",
        "ext_log",
        "softmax",
        "online_merge",
        "memory_traffic",
    ),
    chapter="softmax/two_pass",
)

LOG2_E = float.fromhex("0x1.71547652b82fep+0")
LN2_HIGH = float.fromhex("0x1.62e43p-1")
"""ln 2 rounded to 21 bits: its product with an integer of up to 32 bits is exact in float64."""
LN2_MIDDLE = float.fromhex("-0x1.05c61p-29")
"""What LN2_HIGH leaves, rounded to 21 bits: exact in the same products."""
LN2_LOW = float.fromhex("-0x1.950d871319ff0p-54")
"""The rest; the three together hold ln 2 to a relative 2**-107."""

EXP_COEFFICIENTS = tuple(
    float.fromhex(text)
    for text in ("0x1.0p0", "0x1.FFFFF6p-1", "0x1.FFFDC6p-2", "0x1.555A80p-3", "0x1.573A1Ap-5", "0x1.0F9F9Cp-7")
)
"""Minimax-type fit of exp on [-ln 2 / 2, ln 2 / 2] for float32, lowest power first (XNNPACK)."""

VANISHING_EXPONENT = -2000
"""2**-2000 times any mantissa that a sum can reach underflows to 0, in float32 and float64."""
OVERFLOWING_EXPONENT = 3000
"""2**3000 times any mantissa above 2**-1074 overflows."""


@dataclass(frozen=True)
class ExtExp:
    """Numbers ``mantissa * 2**exponent`` whose exponent has the range of a float.

    Parameters
    ----------
    mantissa : float32 or float64 array
        Between 0.7 and 1.42 from :func:`ext_exp`; sums grow, and are not renormalized.
    exponent : array of the mantissa's shape and dtype
        Integers, or ``-inf``: the pair ``(0, -inf)`` is zero, the identity of addition.

    Examples
    --------
    >>> ext_to_float(ExtExp(np.array([1.5]), np.array([3.0])))
    array([12.])
    """

    mantissa: AnyArray
    exponent: AnyArray


def ext_exp(x: Array[F]) -> ExtExp:
    """Exponential without overflow: pairs with ``mantissa * 2**exponent = exp(x)``.

    Parameters
    ----------
    x : float32 or float64 array of any shape

    Returns
    -------
    ExtExp
        Both arrays of the shape and dtype of ``x``. ``-inf`` gives ``(0, -inf)``, ``inf`` gives
        ``(inf, 0)`` and NaN gives ``(NaN, 0)``.

    Raises
    ------
    TypeError
        If ``x`` is neither float32 nor float64.

    Notes
    -----
    ``exponent = rint(x / ln 2)`` and ``mantissa = exp(t)`` with ``t = x - exponent * ln 2``, at most
    ``ln 2 / 2`` in size (0.347 where ``x / ln 2`` rounds to the other side of a half).

    The product ``exponent * ln 2`` is as large as ``x``, so ln 2 is split in three parts: the first two
    products and differences are exact for exponents below 2**32, only the third is rounded, and the
    error of ``t`` is half a unit in its last place for any ``|x|`` below 2.9e9. Further out it is at
    most about ``|x| * 2**-52``, the effect of changing the last digit of ``x``, and ``t`` is held inside
    the interval.

    In float32 the mantissa is the paper's polynomial of degree 5, within 3 * 2**-24 of the exponential;
    the float32 exponent is exact for ``|x|`` below 2**24 ln 2, about 1.1e7.

    References
    ----------
    Dukhan, Ablavatski (2020), arXiv 2001.04438; the polynomial's constants are those of the paper's
    implementation in XNNPACK.

    Examples
    --------
    >>> pair = ext_exp(np.array([1000.0, 1001.0, 1002.0]))
    >>> pair.exponent
    array([1443., 1444., 1446.])
    >>> pair.mantissa.round(4)
    array([0.8095, 1.1002, 0.7476])
    """
    x = _checks.float_array(x, "x")
    # The reduction is done in float64 for float32 too: without a fused multiply-add, the rounding of
    # exponent * ln 2 to 24 bits would cost 8195 units of 2**-24 at |x| = 10^4.
    wide = x.astype(np.result_type(x.dtype, np.float64), copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        largest = np.finfo(x.dtype).max
        exponent = np.clip(np.rint(wide.real * LOG2_E), -largest, largest)
        t = ((wide - exponent * LN2_HIGH) - exponent * LN2_MIDDLE) - exponent * LN2_LOW
        if not np.iscomplexobj(t):
            t = np.clip(t, -0.35, 0.35)
        if x.dtype == np.float32:
            mantissa = _exp_polynomial(t.astype(np.float32))
        else:
            mantissa = np.exp(t)
    special = ~np.isfinite(x.real)
    if special.any():
        masked = x.real == -np.inf
        mantissa = np.where(special, np.where(masked, 0, x), mantissa)
        exponent = np.where(special, np.where(masked, -np.inf, 0.0), exponent)
    return ExtExp(mantissa.astype(x.dtype, copy=False), exponent.astype(x.real.dtype))


def _exp_polynomial(t: Array[F]) -> Array[F]:
    value = np.full_like(t, EXP_COEFFICIENTS[-1])
    for coefficient in EXP_COEFFICIENTS[-2::-1]:
        value = value * t + t.dtype.type(coefficient)
    return value


def _times_power_of_two(mantissa: Array[F], exponent: Array[F]) -> Array[F]:
    """``mantissa * 2**exponent`` for any float exponent, with gradual underflow."""
    integers = np.clip(exponent, VANISHING_EXPONENT, OVERFLOWING_EXPONENT).astype(np.int32)
    if np.iscomplexobj(mantissa):  # a complex step under way: there is no complex ldexp
        complex_scaled: Array[F] = mantissa * np.ldexp(1.0, integers)
        return complex_scaled
    scaled: Array[F] = np.ldexp(mantissa, integers)
    return scaled


def _shift(exponent: Array[F], largest: Array[F]) -> Array[F]:
    """``exponent - largest``, with -inf minus -inf taken as 0: both are the zero of the pairs."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference: Array[F] = np.where(exponent == largest, 0, exponent - largest).astype(exponent.dtype)
    return difference


def ext_add(a: ExtExp, b: ExtExp) -> ExtExp:
    """Add two arrays of pairs, with broadcasting.

    Parameters
    ----------
    a, b : ExtExp
        Of one dtype and of shapes that broadcast.

    Returns
    -------
    ExtExp
        ``(a.mantissa * 2**(a.exponent - e) + b.mantissa * 2**(b.exponent - e), e)`` with
        ``e = max(a.exponent, b.exponent)``: neither power exceeds 1, and one of them is exactly 1.

    Raises
    ------
    TypeError
        If a part is not float32 or float64, or the dtypes differ.

    Notes
    -----
    Commutative bit for bit, associative up to rounding, with identity ``(0, -inf)``: parts of a row may
    be summed in any order, by any number of lanes or threads.

    References
    ----------
    Dukhan, Ablavatski (2020), arXiv 2001.04438.

    Examples
    --------
    >>> total = ext_add(ExtExp(np.array(1.0), np.array(3.0)), ExtExp(np.array(1.5), np.array(1.0)))
    >>> float(total.mantissa), float(total.exponent)
    (1.375, 3.0)
    """
    left, right = _pair(a, "a"), _pair(b, "b")
    _checks.same_dtype("a", left.mantissa, b=right.mantissa)
    largest = np.maximum(left.exponent, right.exponent)
    mantissa = _times_power_of_two(left.mantissa, _shift(left.exponent, largest)) + _times_power_of_two(
        right.mantissa, _shift(right.exponent, largest)
    )
    return ExtExp(mantissa, largest)


def ext_sum(pairs: ExtExp, *, axis: int = -1) -> ExtExp:
    """Sum pairs along an axis.

    Parameters
    ----------
    pairs : ExtExp
        Arrays of at least one dimension.
    axis : int
        The axis that is summed; it is absent from the result.

    Returns
    -------
    ExtExp
        The total, with the largest exponent that occurs and a mantissa of at most 1.42 times the number
        of terms. The sum of nothing is ``(0, -inf)``.

    Raises
    ------
    TypeError
        If a part is not float32 or float64.
    ValueError
        If there is no such axis.

    Notes
    -----
    The shifted mantissas are added by pairwise summation: the rounding error grows with the logarithm of
    the number of terms.

    References
    ----------
    Dukhan, Ablavatski (2020), arXiv 2001.04438, first pass of the two-pass algorithm.

    Examples
    --------
    >>> total = ext_sum(ext_exp(np.array([1000.0, 1001.0, 1002.0])))
    >>> float(total.mantissa.round(6)), float(total.exponent)
    (1.123875, 1446.0)
    """
    pair = _pair(pairs, "pairs", min_ndim=1)
    last = _checks.axes((axis,), pair.mantissa.ndim)[0]
    # Pairwise summation needs the terms side by side in memory.
    mantissa, exponent = (np.ascontiguousarray(np.moveaxis(a, last, -1)) for a in (pair.mantissa, pair.exponent))
    largest = exponent.max(axis=-1, keepdims=True, initial=-np.inf)
    total = _times_power_of_two(mantissa, _shift(exponent, largest)).sum(axis=-1)
    return ExtExp(np.asarray(total), np.asarray(largest[..., 0]))


def ext_to_float(pairs: ExtExp) -> AnyArray:
    """Return ``mantissa * 2**exponent`` as a plain number.

    Parameters
    ----------
    pairs : ExtExp

    Returns
    -------
    array of the parts' shape and dtype
        Infinite where the number overflows, subnormal or 0 where it underflows.

    Raises
    ------
    TypeError
        If a part is not float32 or float64.

    Examples
    --------
    >>> ext_to_float(ext_exp(np.array([0.0, 1.0, -np.inf])))
    array([1.        , 2.71828183, 0.        ])
    """
    pair = _pair(pairs, "pairs")
    return np.asarray(_times_power_of_two(pair.mantissa, pair.exponent))


def ext_log(pairs: ExtExp) -> AnyArray:
    """Return the natural logarithm of pairs, which never overflows.

    Parameters
    ----------
    pairs : ExtExp
        With mantissas of at least 0.

    Returns
    -------
    array of the parts' shape and dtype
        ``log(mantissa) + exponent * ln 2``; ``-inf`` for the pair ``(0, -inf)``.

    Raises
    ------
    TypeError
        If a part is not float32 or float64.

    Notes
    -----
    Of a row's total this is log-sum-exp, at no further pass. The sum is formed in float64.

    Examples
    --------
    >>> float(ext_log(ext_sum(ext_exp(np.array([1000.0, 1001.0, 1002.0])))).round(6))
    1002.407606
    """
    pair = _pair(pairs, "pairs")
    wide = np.result_type(pair.mantissa.dtype, np.float64)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        log_mantissa, exponent = np.log(pair.mantissa.astype(wide)), pair.exponent.astype(np.float64)
        log = exponent * LN2_HIGH + (exponent * LN2_MIDDLE + (exponent * LN2_LOW + log_mantissa))
        # -inf times the negative parts of ln 2 would turn zero's logarithm into NaN.
        log = np.where(np.isfinite(exponent), log, log_mantissa)
    return np.asarray(log.astype(pair.mantissa.dtype))


def _pair(pairs: ExtExp, name: str, *, min_ndim: int = 0) -> ExtExp:
    mantissa = _checks.float_array(pairs.mantissa, f"{name}.mantissa", min_ndim=min_ndim)
    exponent = _checks.float_array(pairs.exponent, f"{name}.exponent")
    _checks.same_dtype(f"{name}.mantissa", mantissa, **{f"{name}.exponent": exponent})
    _checks.shape(exponent, f"{name}.exponent", mantissa.shape)
    return ExtExp(mantissa, exponent)


def softmax(
    x: Array[F],
    *,
    axis: int = -1,
    algorithm: str = "two_pass",
    where: AnyArray | None = None,
    temperature: float = 1.0,
) -> Array[F]:
    """Exponentials of the entries, divided by their sum.

    Parameters
    ----------
    x : array of at least one dimension
        Logits.
    axis : int
        The axis along which the result sums to 1.
    algorithm : {"two_pass", "three_pass_recompute", "three_pass_reload", "online"}
        ``"two_pass"`` computes in float64 and rounds once. The other three are the paper's comparison;
        they compute in the dtype of ``x`` and lose the digits that ``x - max(x)`` rounds off.
    where : boolean array, broadcastable to the shape of ``x``, optional
        True for the entries that take part. The others are not read; their result is 0.
    temperature : float > 0
        The logits are ``x / temperature``: below 1 the largest entries gain, above 1 all become more alike.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If ``x`` is neither float32 nor float64, or ``where`` is not boolean.
    ValueError
        If the axis does not exist or is empty, the algorithm is unknown, ``where`` does not broadcast to the
        shape of ``x``, or ``temperature`` is not a finite number > 0.

    Notes
    -----
    ``y_i = exp(x_i) / sum_j exp(x_j)``. An entry ``-inf`` is masked: its result is 0. A row that holds
    NaN or ``inf``, or nothing but ``-inf``, is NaN everywhere, and no other row is affected.

    ``where`` differs from ``-inf`` in one case: a row in which nothing takes part is 0 everywhere, as a query
    that may attend to nothing, and so is its gradient. In a row that is NaN the entries left out are still 0.

    References
    ----------
    Dukhan, Ablavatski (2020), arXiv 2001.04438 (both three-pass algorithms and the two-pass
    one). Milakov, Gimelshein (2018), arXiv 1805.02867, algorithm 3 (``"online"``).

    Examples
    --------
    >>> softmax(np.array([1000.0, 1001.0, 1002.0])).round(4)
    array([0.09  , 0.2447, 0.6652])
    >>> softmax(np.array([1.0, 2.0, 3.0]), where=np.array([True, False, True]), temperature=2.0).round(4)
    array([0.2689, 0.    , 0.7311])
    """
    return softmax_vjp(x, axis=axis, algorithm=algorithm, where=where, temperature=temperature)[0]


def softmax_vjp(
    x: Array[F],
    *,
    axis: int = -1,
    algorithm: str = "two_pass",
    where: AnyArray | None = None,
    temperature: float = 1.0,
) -> tuple[Array[F], Pullback]:
    """Return :func:`softmax` and its pullback ``dy -> (dx,)``.

    Parameters, errors and references are those of :func:`softmax`.
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    last = _checks.axes((axis,), x.ndim)[0]
    _checks.not_empty(x, "x", (last,))
    _checks.one_of(algorithm, "algorithm", tuple(_ALGORITHMS))
    chosen = _chosen(where, x.shape)
    _checks.positive(temperature, "temperature")
    logits: AnyArray = x if chosen is None else np.where(chosen, x, x.dtype.type(-np.inf))
    if temperature != 1:
        logits = _tempered(logits, last, temperature, wide=algorithm == "two_pass")
    y = np.moveaxis(_ALGORITHMS[algorithm](np.ascontiguousarray(np.moveaxis(logits, last, -1))), -1, last)
    if chosen is not None:
        y = np.where(chosen, y, 0)  # a row in which nothing takes part has become NaN
    largest = np.expand_dims(y.real.argmax(axis=last), last)

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        if chosen is not None:
            dy = np.where(chosen, dy, 0)  # an entry left out is 0 whatever happens
        # dy_i/dx_j = y_i ([i = j] - y_j): the cotangent loses its y-weighted mean, because adding one
        # number to all logits changes nothing, and what is left is scaled by y. For the same reason any
        # number may first be taken off the cotangent. Its entry at the largest y is the right one: the
        # term that would cancel when that y is nearly 1 is then exactly 0.
        relative = dy - np.take_along_axis(np.asarray(dy), largest, axis=last)
        dx: AnyArray = y * (relative - (relative * y).sum(axis=last, keepdims=True))
        if temperature != 1:
            dx = dx / temperature
        if chosen is not None:
            dx = np.where(chosen, dx, 0)
        return (dx.astype(x.dtype),)

    return np.ascontiguousarray(y.astype(x.dtype)), pullback


def _chosen(where: AnyArray | None, shape: tuple[int, ...]) -> AnyArray | None:
    """The checked ``where`` at full shape (a view), or ``None`` for all entries."""
    if where is None:
        return None
    where = np.asarray(where)
    if where.dtype != np.bool_:
        _checks.fail_type("where", "a boolean array (True: takes part)", f"dtype {where.dtype}")
    try:
        return np.broadcast_to(where, shape)
    except ValueError:
        _checks.fail("where", f"a shape that broadcasts to {shape}", where.shape)


def _tempered(x: AnyArray, axis: int, temperature: float, *, wide: bool) -> AnyArray:
    """Logits whose softmax is that of ``x / temperature``, in float64 if ``wide``, else in the dtype of ``x``."""
    if wide:
        x = x.astype(np.result_type(x.dtype, np.float64), copy=False)
    # Adding one number to all logits changes nothing: taken off before the division, the largest cannot overflow,
    # and in float64 the difference of float32 entries is exact or far below the last digit.
    largest = x.real.max(axis=axis, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):
        shifted: AnyArray = (x - np.where(np.isfinite(largest), largest, 0)) / x.real.dtype.type(temperature)
    return shifted


def _two_pass(x: AnyArray) -> AnyArray:
    # float64 pairs also for float32 logits: the result is rounded once, at the end.
    pairs = ext_exp(x.astype(np.result_type(x.dtype, np.float64), copy=False))
    total = ext_sum(pairs)
    # An infinite total must not hide as m / inf = 0; one of 0 (all masked) gives 0 / 0.
    divisor = np.where(np.isinf(total.mantissa), np.nan, total.mantissa)[..., None]
    with np.errstate(invalid="ignore"):
        # The paper multiplies by the reciprocal; a quotient of equal numbers is exactly 1.
        mantissa = pairs.mantissa / divisor
    return _times_power_of_two(mantissa, _shift(pairs.exponent, total.exponent[..., None]))


def _three_pass_recompute(x: AnyArray) -> AnyArray:
    with np.errstate(invalid="ignore", over="ignore"):
        largest = _real_max(x)
        inv_sum = 1 / np.exp(x - largest).sum(axis=-1, keepdims=True)
        y: AnyArray = np.exp(x - largest) * inv_sum
    return y


def _three_pass_reload(x: AnyArray) -> AnyArray:
    with np.errstate(invalid="ignore", over="ignore"):
        y: AnyArray = np.exp(x - _real_max(x))
        y *= 1 / y.sum(axis=-1, keepdims=True)
    return y


def _online(x: AnyArray) -> AnyArray:
    # Every entry is a partial result; halves are merged until one is left. The paper merges one entry
    # at a time, which is the same sum in another order.
    largest, total = x, np.where(x == -np.inf, 0, 1).astype(x.dtype)
    while largest.shape[-1] > 1:
        half = largest.shape[-1] // 2
        rest = (largest[..., 2 * half :], total[..., 2 * half :])
        merged = online_merge(
            (largest[..., :half], total[..., :half]), (largest[..., half : 2 * half], total[..., half : 2 * half])
        )
        largest, total = (np.concatenate(parts, axis=-1) for parts in zip(merged, rest, strict=True))
    with np.errstate(invalid="ignore", over="ignore"):
        y: AnyArray = np.where(np.isfinite(largest), np.exp(x - largest) / total, np.nan)
    return y


def _real_max(x: AnyArray) -> AnyArray:
    # A complex step must not choose the maximum by, or leave its mark on, the imaginary part.
    largest: AnyArray = x.real.max(axis=-1, keepdims=True)
    return largest


_ALGORITHMS: dict[str, Callable[[AnyArray], AnyArray]] = {
    "two_pass": _two_pass,
    "three_pass_recompute": _three_pass_recompute,
    "three_pass_reload": _three_pass_reload,
    "online": _online,
}


def online_merge(a: tuple[Array[F], Array[F]], b: tuple[Array[F], Array[F]]) -> tuple[Array[F], Array[F]]:
    """Merge the online softmax's partial results of two parts of a row.

    Parameters
    ----------
    a, b : (largest, total)
        Arrays of one dtype that broadcast: the maximum of the part and the sum of
        ``exp(x - largest)`` over it. Nothing seen so far is ``(-inf, 0)``.

    Returns
    -------
    (largest, total) of both parts together

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.

    Notes
    -----
    ``largest = max(a, b)`` and ``total = total_a exp(largest_a - largest) + total_b exp(largest_b - largest)``:
    associative, commutative, with identity ``(-inf, 0)``. Unlike a shift of :func:`ext_add`, the
    correction is a true exponential.

    References
    ----------
    Milakov, Gimelshein (2018), arXiv 1805.02867, section 3.1, equation 4.

    Examples
    --------
    >>> largest, total = online_merge((np.array(2.0), np.array(1.0)), (np.array(-np.inf), np.array(0.0)))
    >>> float(largest), float(total)
    (2.0, 1.0)
    """
    (largest_a, total_a), (largest_b, total_b) = (
        (_checks.float_array(part[0], f"{name}[0]"), _checks.float_array(part[1], f"{name}[1]"))
        for name, part in (("a", a), ("b", b))
    )
    _checks.same_dtype("a[0]", largest_a, **{"a[1]": total_a, "b[0]": largest_b, "b[1]": total_b})
    largest = np.maximum(largest_a, largest_b)
    total = total_a * np.exp(_shift(largest_a, largest)) + total_b * np.exp(_shift(largest_b, largest))
    return largest, total


_TRAFFIC = {
    "three_pass_recompute": (3, 1),
    "three_pass_reload": (3, 2),
    "online": (2, 1),
    "two_pass": (2, 1),
    "cross_entropy": (1, 0),
    "cross_entropy_vjp": (2, 1),
}


def memory_traffic(algorithm: str, n: int, itemsize: int, *, rfo: bool = False) -> int:
    """Bytes that move between memory and processor for one row that no cache holds.

    Parameters
    ----------
    algorithm : str
        One of :func:`softmax`'s, or ``"cross_entropy"`` (forward, from a two-pass log-sum-exp) or
        ``"cross_entropy_vjp"`` (forward and backward, fused).
    n : int >= 0
        Entries of the row.
    itemsize : int >= 1
        Bytes of an entry.
    rfo : bool
        Count the read for ownership by which an ordinary store fetches the line that it is about to
        overwrite. Non-temporal stores avoid it. A second store to a line that was just read, as in
        ``"three_pass_reload"``, has none.

    Returns
    -------
    int

    Raises
    ------
    TypeError
        If ``n`` or ``itemsize`` is not an integer.
    ValueError
        If the algorithm is unknown or a number is out of range.

    References
    ----------
    Dukhan, Ablavatski (2020), arXiv 2001.04438, on the cost of each pass.

    Examples
    --------
    >>> memory_traffic("two_pass", 2**20, 4), memory_traffic("three_pass_recompute", 2**20, 4)
    (12582912, 16777216)
    """
    _checks.one_of(algorithm, "algorithm", tuple(_TRAFFIC))
    n, itemsize = _checks.whole(n, "n", low=0), _checks.whole(itemsize, "itemsize", low=1)
    reads, writes = _TRAFFIC[algorithm]
    return n * itemsize * (reads + writes + (1 if rfo and writes else 0))
