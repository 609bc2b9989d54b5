"""NOLA: low-rank adapters that are linear combinations of seeded random bases.

    a = a_0 + sum_i coefficients_a[i] basis_a[i]        b = sum_j coefficients_b[j] basis_b[j]
    y = x @ weight.T + scale * (x @ a.T) @ b.T

What is stored is a seed and the coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import Array, F, Method, Pullback
from refnorm.quantizers._affine import affine_qparams, dequantize, quantize

METHOD = Method(
    title="NOLA: Compressing LoRA using Linear Combination of Random Basis",
    authors="Koohpayegani, Navaneet, Nooralinejad, Kolouri, Pirsiavash",
    year=2024,
    arxiv="2310.02556",
    functions=(
        "BasisGenerator",
        "NolaAdapter",
        "lora_linear",
        "nola_delta",
        "nola_init",
        "nola_linear",
        "nola_merge",
        "parameter_count",
        "quantize_coefficients",
    ),
    chapter="quantizers/random_basis_adapter",
)

VARIANTS = ("official", "pure")

WORDS_PER_COUNT = 4
"""Philox turns one value of its counter into this many words of 64 bits."""

FRACTION_BITS = 24
"""Top bits of a word that become a number: as many as float32 holds exactly, so that no rounding is involved."""

STREAM_B, STREAM_OFFSET = 1 << 64, 1 << 65
"""Added to an adapter's seed, these give the keys of its other streams. Seeds end below them."""


@dataclass(frozen=True)
class BasisGenerator:
    """Random arrays that are made from a seed whenever they are needed, and never stored.

    Parameters
    ----------
    seed : int, 0 to 2^128 - 1
        The key of the Philox generator.
    shape : tuple of ints >= 1
        Shape of one basis array.
    n_basis : int >= 1
        Number of basis arrays.
    scale : float > 0, optional
        Entries are uniform on [-scale, scale). The default ``1 / sqrt(n_basis)`` keeps the variance of a
        combination with coefficients of variance 1 at 1/3, however many there are.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range.

    Notes
    -----
    Basis ``i`` is made from the counters that follow ``i * ceil(size / 4)``, so that each can be had alone and in
    any order. An entry is ``scale * (2^-23 * t - 1)`` with ``t`` the top 24 bits of its word: exact in float32
    but for the product with ``scale``. All bases are float32; float64 callers get the same numbers.

    References
    ----------
    Koohpayegani et al. (2024), arXiv 2310.02556, section 3. Philox: Salmon et al. (2011), Parallel random
    numbers: as easy as 1, 2, 3.

    Examples
    --------
    >>> generator = BasisGenerator(7, (2, 3), n_basis=100)
    >>> bool((generator.bases(40, 42)[1] == generator.bases(41, 42)[0]).all())
    True
    >>> generator.combine(np.ones(100)).shape
    (2, 3)
    """

    seed: int
    shape: tuple[int, ...]
    n_basis: int
    scale: float | None = None

    def __post_init__(self) -> None:
        _checks.whole(self.seed, "seed", low=0, high=2**128 - 1)
        for size in self.shape:
            _checks.whole(size, "shape", low=1)
        _checks.whole(self.n_basis, "n_basis", low=1)
        if self.scale is not None:
            _checks.positive(self.scale, "scale")

    def bases(self, start: int, stop: int) -> Array[np.float32]:
        """Return the basis arrays ``start`` to ``stop - 1``, a float32 array of shape ``(stop - start, *shape)``."""
        _checks.whole(start, "start", low=0, high=self.n_basis)
        _checks.whole(stop, "stop", low=start, high=self.n_basis)
        size = int(np.prod(self.shape))
        counts = -(-size // WORDS_PER_COUNT)
        philox = np.random.Philox(key=self.seed, counter=start * counts)
        words = philox.random_raw((stop - start) * counts * WORDS_PER_COUNT)
        top = (words >> np.uint64(64 - FRACTION_BITS)).astype(np.float32)
        uniform = top * np.float32(2.0 ** (1 - FRACTION_BITS)) - np.float32(1)
        used = uniform.reshape(stop - start, counts * WORDS_PER_COUNT)[:, :size]
        return (np.float32(self._bound()) * used).reshape(stop - start, *self.shape)

    def combine(self, coefficients: Array[F], *, chunk: int = 64) -> Array[F]:
        """Return ``sum_i coefficients[i] basis[i]``.

        Parameters
        ----------
        coefficients : array (n_basis,)
        chunk : int >= 1
            Bases that exist at one time. Another value gives another order of summation.

        Returns
        -------
        array of ``shape``, dtype of ``coefficients``

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong dtype, shape or range.
        """
        coefficients = _checks.float_array(coefficients, "coefficients")
        _checks.shape(coefficients, "coefficients", (self.n_basis,))
        total: Array[F] = np.zeros(int(np.prod(self.shape)), coefficients.dtype)
        for start, stop in self._chunks(chunk):
            rows = self.bases(start, stop).reshape(stop - start, -1).astype(coefficients.dtype)
            total = total + coefficients[start:stop] @ rows
        return total.reshape(self.shape)

    def project(self, cotangent: Array[F], *, chunk: int = 64) -> Array[F]:
        """Return the inner products of ``cotangent`` with all bases: the pullback of :meth:`combine`.

        Parameters
        ----------
        cotangent : array of ``shape``
        chunk : int >= 1
            Bases that exist at one time.

        Returns
        -------
        array (n_basis,), dtype of ``cotangent``

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong dtype, shape or range.
        """
        cotangent = _checks.float_array(cotangent, "cotangent")
        _checks.shape(cotangent, "cotangent", self.shape)
        # combine is linear: d combine = sum_i d coefficients[i] basis[i], so entry i is <cotangent, basis[i]>.
        parts = [
            self.bases(start, stop).reshape(stop - start, -1).astype(cotangent.dtype) @ cotangent.reshape(-1)
            for start, stop in self._chunks(chunk)
        ]
        products: Array[F] = np.concatenate(parts)
        return products

    def _bound(self) -> float:
        return self.n_basis**-0.5 if self.scale is None else self.scale

    def _chunks(self, chunk: int) -> list[tuple[int, int]]:
        _checks.whole(chunk, "chunk", low=1)
        return [(start, min(start + chunk, self.n_basis)) for start in range(0, self.n_basis, chunk)]


@dataclass(frozen=True, eq=False)
class NolaAdapter:
    """The adapter of one linear layer, as it is stored.

    Parameters
    ----------
    shape : tuple of two ints
        Outputs and inputs of the layer.
    rank : int
        Rank of the change.
    seed_a, seed_b : int
        Keys of the bases of the two factors.
    coefficients_a, coefficients_b : arrays (k,), (l,)
        The trained numbers.
    scale : float
        Factor of the change.
    variant : {"official", "pure"}
        Whether the first factor has a frozen random offset.
    """

    shape: tuple[int, int]
    rank: int
    seed_a: int
    seed_b: int
    coefficients_a: Array[Any]
    coefficients_b: Array[Any]
    scale: float
    variant: str


def nola_init(
    shape: tuple[int, int],
    *,
    rank: int = 16,
    n_basis: tuple[int, int] = (1024, 1024),
    alpha_scale: float = 1.0,
    variant: str = "official",
    seed: int,
    rng: np.random.Generator | None = None,
    dtype: Any = np.float64,
) -> NolaAdapter:
    """Make an adapter that changes nothing yet.

    Parameters
    ----------
    shape : (outputs, inputs)
        Shape of the frozen weight.
    rank : int >= 1
        Rank of the change; it costs no parameters.
    n_basis : two ints >= 1
        Coefficients of the first factor (rank, inputs) and of the second one (outputs, rank).
    alpha_scale : float > 0
        The change is multiplied by ``alpha_scale / rank``.
    variant : {"official", "pure"}
        ``official``: both coefficient vectors start at 0, and a frozen offset, uniform on ``+-1/sqrt(inputs)``, is
        added to the first factor. ``pure``: no offset; the first coefficients start as N(0, 1).
    seed : int, 0 to 2^64 - 1
        Makes the bases and the offset.
    rng : numpy.random.Generator
        Needed by, and only used for, ``variant="pure"``.
    dtype : float32 or float64
        Of the coefficients.

    Returns
    -------
    NolaAdapter

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range or ``rng`` is missing.

    Notes
    -----
    The second factor starts at 0 in both variants, so the change is 0, and the first one does not, so the
    gradient of the second one's coefficients is not 0.

    References
    ----------
    Koohpayegani et al. (2024), arXiv 2310.02556, section 3; the offset is that of the authors' code.

    Examples
    --------
    >>> adapter = nola_init((64, 32), rank=4, n_basis=(8, 8), seed=0)
    >>> float(np.abs(nola_delta(adapter)).max())
    0.0
    """
    for size in shape:
        _checks.whole(size, "shape", low=1)
    _checks.whole(rank, "rank", low=1)
    for count in n_basis:
        _checks.whole(count, "n_basis", low=1)
    _checks.positive(alpha_scale, "alpha_scale")
    _checks.one_of(variant, "variant", VARIANTS)
    _checks.whole(seed, "seed", low=0, high=STREAM_B - 1)
    _checks.one_of(np.dtype(dtype), "dtype", (np.dtype(np.float32), np.dtype(np.float64)))
    first = np.zeros(n_basis[0])
    if variant == "pure":
        first = _checks.generator(rng).standard_normal(n_basis[0])
    return NolaAdapter(
        shape=(int(shape[0]), int(shape[1])),
        rank=rank,
        seed_a=seed,
        seed_b=seed + STREAM_B,
        coefficients_a=first.astype(dtype),
        coefficients_b=np.zeros(n_basis[1], dtype),
        scale=alpha_scale / rank,
        variant=variant,
    )


def lora_linear(x: Array[F], weight: Array[F], a: Array[F], b: Array[F], *, scale: float = 1.0) -> Array[F]:
    """Apply a linear layer with a change of low rank.

    Parameters
    ----------
    x : array (..., N)
        Inputs.
    weight : array (M, N)
        The frozen weight.
    a : array (R, N)
        First factor of the change.
    b : array (M, R)
        Second factor of the change.
    scale : float
        Factor of the change.

    Returns
    -------
    array (..., M), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes do not fit or ``scale`` is not finite.

    Notes
    -----
    ``y = x @ weight.T + scale * (x @ a.T) @ b.T``; the M x N product ``b @ a`` is never formed.

    References
    ----------
    Hu et al. (2022), LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685, equation 3.

    Examples
    --------
    >>> x, weight = np.array([[1.0, 2.0]]), np.eye(2)
    >>> lora_linear(x, weight, np.array([[1.0, 1.0]]), np.array([[0.0], [2.0]]), scale=0.5)
    array([[1., 5.]])
    """
    return lora_linear_vjp(x, weight, a, b, scale=scale)[0]


def lora_linear_vjp(
    x: Array[F], weight: Array[F], a: Array[F], b: Array[F], *, scale: float = 1.0, train_weight: bool = False
) -> tuple[Array[F], Pullback]:
    """Return :func:`lora_linear` and its pullback ``dy -> (dx, dweight, da, db)``.

    Parameters, errors and references are those of :func:`lora_linear`, and

    Parameters
    ----------
    train_weight : bool
        If False, the weight is a constant and ``dweight`` is 0.
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    weight = _checks.float_array(weight, "weight", ndim=2)
    a, b = _checks.float_array(a, "a", ndim=2), _checks.float_array(b, "b", ndim=2)
    _checks.same_dtype("x", x, weight=weight, a=a, b=b)
    (outputs, inputs), rank = weight.shape, len(a)
    _checks.shape(x, "x", (*x.shape[:-1], inputs))
    _checks.shape(a, "a", (rank, inputs))
    _checks.shape(b, "b", (outputs, rank))
    if not np.isfinite(scale):
        _checks.fail("scale", "a finite number", scale)
    rows = x.reshape(int(np.prod(x.shape[:-1])), inputs)
    inner = rows @ a.T
    y = rows @ weight.T + float(scale) * (inner @ b.T)

    def pullback(dy: Array[F]) -> tuple[Array[Any], ...]:
        dy = np.asarray(dy).reshape(len(rows), outputs)
        # y = x W^T + c u b^T with u = x a^T: each factor's cotangent is dy times the others.
        dinner = float(scale) * (dy @ b)
        db = float(scale) * (dy.T @ inner)
        da = dinner.T @ rows
        dx = dy @ weight + dinner @ a
        dweight = dy.T @ rows if train_weight else np.zeros_like(weight)
        return dx.reshape(x.shape), dweight, da, db

    return y.reshape(*x.shape[:-1], outputs), pullback


def nola_linear(
    x: Array[F], weight: Array[F], coefficients_a: Array[F], coefficients_b: Array[F], adapter: NolaAdapter
) -> Array[F]:
    """Apply a linear layer with a change that is a combination of seeded random bases.

    Parameters
    ----------
    x : array (..., N)
        Inputs.
    weight : array (M, N)
        The frozen weight.
    coefficients_a, coefficients_b : arrays (K,), (L,)
        Coefficients of both factors; those in ``adapter`` are not read.
    adapter : NolaAdapter
        Seeds, shape, rank, scale and variant.

    Returns
    -------
    array (..., M), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes do not fit, or a coefficient vector is empty.

    Notes
    -----
    ``a = offset + sum_i coefficients_a[i] basis_a[i]``, ``b = sum_j coefficients_b[j] basis_b[j]`` and
    ``y = x @ weight.T + scale * (x @ a.T) @ b.T``. The offset is 0 for ``variant="pure"``.

    References
    ----------
    Koohpayegani et al. (2024), arXiv 2310.02556, section 3.

    Examples
    --------
    >>> adapter = nola_init((2, 3), rank=4, n_basis=(5, 5), seed=0)
    >>> x, weight = np.ones((1, 3)), np.ones((2, 3))
    >>> nola_linear(x, weight, adapter.coefficients_a, adapter.coefficients_b, adapter)
    array([[3., 3.]])
    """
    return nola_linear_vjp(x, weight, coefficients_a, coefficients_b, adapter)[0]


def nola_linear_vjp(
    x: Array[F],
    weight: Array[F],
    coefficients_a: Array[F],
    coefficients_b: Array[F],
    adapter: NolaAdapter,
    *,
    train_weight: bool = False,
) -> tuple[Array[F], Pullback]:
    """Return :func:`nola_linear` and its pullback ``dy -> (dx, dweight, dcoefficients_a, dcoefficients_b)``.

    The bases are made a second time for the pullback. Parameters, errors and references are those of
    :func:`nola_linear`, and

    Parameters
    ----------
    train_weight : bool
        If False, the weight is a constant and ``dweight`` is 0.
    """
    return _nola_linear_vjp(x, weight, coefficients_a, coefficients_b, adapter, train_weight, BasisGenerator)


def _nola_linear_vjp(
    x: Array[F],
    weight: Array[F],
    coefficients_a: Array[F],
    coefficients_b: Array[F],
    adapter: NolaAdapter,
    train_weight: bool,
    kind: type[BasisGenerator],
) -> tuple[Array[F], Pullback]:
    x = _checks.float_array(x, "x", min_ndim=1)
    weight = _checks.float_array(weight, "weight", ndim=2)
    coefficients_a = _checks.float_array(coefficients_a, "coefficients_a", ndim=1)
    coefficients_b = _checks.float_array(coefficients_b, "coefficients_b", ndim=1)
    _checks.same_dtype("x", x, weight=weight, coefficients_a=coefficients_a, coefficients_b=coefficients_b)
    _checks.shape(weight, "weight", adapter.shape)
    basis_a, basis_b = _generators(adapter, coefficients_a, coefficients_b, kind)
    # The factors are small and are kept; the bases, k and l times as large, are not.
    a = basis_a.combine(coefficients_a) + _offset(adapter, kind).astype(x.dtype)
    b = basis_b.combine(coefficients_b)
    y, pull = lora_linear_vjp(x, weight, a, b, scale=adapter.scale, train_weight=train_weight)

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        # The factors are linear in the coefficients: a coefficient's cotangent is <factor's cotangent, basis>.
        dx, dweight, da, db = pull(dy)
        return dx, dweight, basis_a.project(da), basis_b.project(db)

    return y, pullback


def nola_delta(adapter: NolaAdapter) -> Array[Any]:
    """Return the change of the weight that an adapter stands for, ``scale * b @ a``.

    Parameters
    ----------
    adapter : NolaAdapter

    Returns
    -------
    array (M, N), dtype of the coefficients

    Raises
    ------
    TypeError, ValueError
        If the coefficients are no float vectors of at least one entry.

    Examples
    --------
    >>> adapter = nola_init((4, 3), rank=2, n_basis=(5, 5), seed=0)
    >>> int(np.linalg.matrix_rank(nola_delta(replace(adapter, coefficients_b=np.ones(5)))))
    2
    """
    return _nola_delta(adapter, BasisGenerator)


def _nola_delta(adapter: NolaAdapter, kind: type[BasisGenerator]) -> Array[Any]:
    coefficients_a = _checks.float_array(adapter.coefficients_a, "coefficients_a", ndim=1)
    coefficients_b = _checks.float_array(adapter.coefficients_b, "coefficients_b", ndim=1)
    _checks.same_dtype("coefficients_a", coefficients_a, coefficients_b=coefficients_b)
    basis_a, basis_b = _generators(adapter, coefficients_a, coefficients_b, kind)
    a = basis_a.combine(coefficients_a) + _offset(adapter, kind).astype(coefficients_a.dtype)
    change: Array[Any] = float(adapter.scale) * (basis_b.combine(coefficients_b) @ a)
    return change


def nola_merge(weight: Array[F], adapter: NolaAdapter) -> Array[F]:
    """Return the weight with the adapter's change added, for use without an adapter.

    Parameters
    ----------
    weight : array (M, N), dtype of the coefficients
    adapter : NolaAdapter

    Returns
    -------
    array (M, N)

    Raises
    ------
    TypeError, ValueError
        If shape or dtype do not fit the adapter.

    Examples
    --------
    >>> nola_merge(np.eye(2), nola_init((2, 2), rank=1, n_basis=(3, 3), seed=0))
    array([[1., 0.],
           [0., 1.]])
    """
    return _nola_merge(weight, adapter, BasisGenerator)


def _nola_merge(weight: Array[F], adapter: NolaAdapter, kind: type[BasisGenerator]) -> Array[F]:
    weight = _checks.float_array(weight, "weight", ndim=2)
    _checks.shape(weight, "weight", adapter.shape)
    change = _nola_delta(adapter, kind)
    _checks.same_dtype("coefficients_a", change, weight=weight)
    merged: Array[F] = weight + change
    return merged


def quantize_coefficients(adapter: NolaAdapter, *, bits: int = 8) -> NolaAdapter:
    """Round both coefficient vectors to symmetric grids, one each.

    Parameters
    ----------
    adapter : NolaAdapter
        With finite coefficients.
    bits : int, 2 to 16
        The paper uses 4 and 8.

    Returns
    -------
    NolaAdapter
        With coefficients on the grid, in floats.

    Raises
    ------
    TypeError, ValueError
        If the coefficients hold NaN or infinity, or ``bits`` is out of its range.

    Notes
    -----
    The step of a vector is its largest magnitude divided by ``2^(bits - 1) - 1``, so 0 stays 0 and the
    largest coefficient keeps its value.

    References
    ----------
    Koohpayegani et al. (2024), arXiv 2310.02556, section 4.

    Examples
    --------
    >>> adapter = nola_init((4, 3), rank=2, n_basis=(3, 1), seed=0)
    >>> adapter = replace(adapter, coefficients_a=np.array([0.7, -0.32, 0.04]))
    >>> quantize_coefficients(adapter, bits=4).coefficients_a.round(6)
    array([ 0.7, -0.3,  0. ])
    """

    def rounded(coefficients: Array[Any], name: str) -> Array[Any]:
        coefficients = _checks.float_array(coefficients, name, ndim=1)
        _checks.not_empty(coefficients, name, (0,))
        _checks.finite(coefficients, name)
        scale, zero_point = affine_qparams(coefficients, bits=bits, method="absmax", narrow=True)
        return dequantize(quantize(coefficients, scale, zero_point, bits=bits, narrow=True), scale, zero_point)

    return replace(
        adapter,
        coefficients_a=rounded(adapter.coefficients_a, "coefficients_a"),
        coefficients_b=rounded(adapter.coefficients_b, "coefficients_b"),
    )


def parameter_count(shape: tuple[int, int], *, rank: int = 16, n_basis: tuple[int, int] | None = None) -> int:
    """Count the trained numbers of an adapter.

    Parameters
    ----------
    shape : (outputs, inputs)
        Of the layer.
    rank : int >= 1
        Rank of the change.
    n_basis : two ints >= 1, optional
        Coefficients of both factors. None: a low-rank adapter whose factors are trained directly.

    Returns
    -------
    int
        ``sum(n_basis)``, whatever shape and rank; or ``rank * (outputs + inputs)``.

    Raises
    ------
    TypeError, ValueError
        If a number is no integer or below 1.

    Examples
    --------
    >>> parameter_count((4096, 4096), rank=1), parameter_count((4096, 4096), n_basis=(1024, 1024))
    (8192, 2048)
    """
    for size in shape:
        _checks.whole(size, "shape", low=1)
    _checks.whole(rank, "rank", low=1)
    if n_basis is None:
        return rank * int(sum(shape))
    for count in n_basis:
        _checks.whole(count, "n_basis", low=1)
    return int(sum(n_basis))


def _generators(
    adapter: NolaAdapter, coefficients_a: Array[Any], coefficients_b: Array[Any], kind: type[BasisGenerator]
) -> tuple[BasisGenerator, BasisGenerator]:
    _checks.not_empty(coefficients_a, "coefficients_a", (0,))
    _checks.not_empty(coefficients_b, "coefficients_b", (0,))
    outputs, inputs = adapter.shape
    return (
        kind(adapter.seed_a, (adapter.rank, inputs), len(coefficients_a)),
        kind(adapter.seed_b, (outputs, adapter.rank), len(coefficients_b)),
    )


def _offset(adapter: NolaAdapter, kind: type[BasisGenerator]) -> Array[np.float32]:
    _checks.one_of(adapter.variant, "variant", VARIANTS)
    shape = (adapter.rank, adapter.shape[1])
    if adapter.variant == "pure":
        return np.zeros(shape, np.float32)
    # Kaiming uniform with a = sqrt 5, the usual start of a linear layer: +-1 / sqrt(inputs).
    generator = kind(adapter.seed_a + STREAM_OFFSET, shape, 1, scale=adapter.shape[1] ** -0.5)
    return generator.bases(0, 1).reshape(shape)
