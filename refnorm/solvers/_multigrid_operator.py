"""MgNO: linear operators between functions, parametrised as multigrid V-cycles.

u <- u + S (f - A u)                                  smoothing, on every level
f' = R (f - A u),  u' = P_down u                      down to the next coarser grid
u <- u + P u'                                         up again
layer(f) = gelu(V-cycle(f) + K f + b)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._arrays import sum_to
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.nn import conv2d_vjp, gelu_vjp
from refnorm.nn._conv2d import add_windows, windows
from refnorm.tree import tree_map

METHOD = Method(
    title="MgNO: Efficient Parameterization of Linear Operators via Multigrid",
    authors="He, Liu, Xu",
    year=2023,
    arxiv="2310.19809",
    functions=(
        "MgNOLayer",
        "MgNOParams",
        "VCycleWeights",
        "conv_transpose2d",
        "init_mgno",
        "init_vcycle",
        "mgno",
        "mgno_layer",
        "padded_conv2d",
        "poisson_vcycle",
        "vcycle",
    ),
    chapter="solvers/multigrid_operator",
)

MODES = {"zeros": "constant", "circular": "wrap", "reflect": "reflect"}
GEOMETRIES = ("even", "odd")
ACTIVATIONS = ("gelu", "identity")
DEFAULT_SMOOTHINGS = ((1, 1), (1, 1), (2, 0))

Kernels = tuple[AnyArray, ...]


@dataclass(frozen=True)
class VCycleWeights:
    """Kernels of a V-cycle with L levels, from fine to coarse.

    Parameters
    ----------
    pre_operators, post_operators : L tuples of arrays (C_f, C_u, 3, 3)
        A, one for each smoothing on the way down and on the way up; the very first smoothing has none, because it
        starts from zero, and the coarsest level has no way up.
    pre_smoothers, post_smoothers : L tuples of arrays (C_u, C_f, 3, 3)
        S, likewise, with the first one.
    residual_operators : L - 1 arrays (C_f, C_u, 3, 3)
        A in the residual that goes down.
    restrictions : L - 1 arrays (C_f, C_f, 3, 3)
        R, stride 2.
    state_restrictions : L - 1 arrays (C_u, C_u, 3, 3)
        From u to the coarser grid's first u, stride 2; zero in classical multigrid.
    prolongations : L - 1 arrays (C_u, C_u, 4, 4) or (C_u, C_u, 3, 3)
        P, transposed with stride 2; 4 x 4 in the geometry "even", 3 x 3 in "odd".
    """

    pre_operators: tuple[Kernels, ...]
    pre_smoothers: tuple[Kernels, ...]
    post_operators: tuple[Kernels, ...]
    post_smoothers: tuple[Kernels, ...]
    residual_operators: Kernels
    restrictions: Kernels
    state_restrictions: Kernels
    prolongations: Kernels


@dataclass(frozen=True)
class MgNOLayer:
    """One layer: a V-cycle, a 1 x 1 convolution beside it, and a bias.

    Parameters
    ----------
    weights : VCycleWeights
    skip : array (C_u, C_f, 1, 1)
    bias : array (C_u,) or (C_u, H, W)
        One number a channel, or a whole function.
    """

    weights: VCycleWeights
    skip: AnyArray
    bias: AnyArray


@dataclass(frozen=True)
class MgNOParams:
    """Layers of a network and the 1 x 1 convolution (C_out, C_u, 1, 1) at its end."""

    layers: tuple[MgNOLayer, ...]
    head: AnyArray


def padded_conv2d(x: Array[F], weight: Array[F], *, stride: int = 1, padding: int = 1, mode: str = "zeros") -> Array[F]:
    """Cross-correlation with a choice of what lies beyond the border.

    Parameters
    ----------
    x : array (N, C, H, W)
    weight : array (O, C, A, B)
    stride : int >= 1
    padding : int >= 0
        Rows and columns on every side.
    mode : {"zeros", "circular", "reflect"}
        Dirichlet, periodic or mirrored border.

    Returns
    -------
    array (N, O, H', W'), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If a dtype, shape or option is wrong, or the border to be copied is wider than the image.

    Examples
    --------
    >>> padded_conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3)))[0, 0]
    array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]])
    """
    return padded_conv2d_vjp(x, weight, stride=stride, padding=padding, mode=mode)[0]


def padded_conv2d_vjp(
    x: Array[F], weight: Array[F], *, stride: int = 1, padding: int = 1, mode: str = "zeros"
) -> tuple[Array[F], Pullback]:
    """Return :func:`padded_conv2d` and its pullback ``dy -> (dx, dweight)``."""
    x = _checks.float_array(x, "x", ndim=4)
    padding = _checks.whole(padding, "padding", low=0)
    _checks.one_of(mode, "mode", tuple(MODES))
    if mode == "zeros":
        y, back = conv2d_vjp(x, weight, stride=stride, padding=padding)
        return y, lambda dy: back(dy)[:2]
    smallest = min(x.shape[2:]) - (mode == "reflect")
    if padding > smallest:
        _checks.fail("x", f"sides of at least {padding + (mode == 'reflect')} for mode {mode!r}", f"shape {x.shape}")
    # The border is a gather of rows and columns; its adjoint adds them back to where they came from.
    row, column = (np.pad(np.arange(side), padding, mode=MODES[mode]) for side in x.shape[2:])  # type: ignore[call-overload]
    y, back = conv2d_vjp(np.ascontiguousarray(x[:, :, row[:, None], column]), weight, stride=stride)

    def pullback(dy: Array[F]) -> tuple[AnyArray, AnyArray]:
        dpadded, dweight, _ = back(dy)
        dx = np.zeros_like(x)
        place: Any = (slice(None), slice(None), row[:, None], column)
        np.add.at(dx, place, dpadded)
        return dx, dweight

    return y, pullback


def conv_transpose2d(x: Array[F], weight: Array[F], *, stride: int = 2, padding: int = 0) -> Array[F]:
    """Transposed convolution: every input pixel stamps a copy of the kernel.

    Parameters
    ----------
    x : array (N, C, H, W)
    weight : array (C, O, A, B)
    stride : int >= 1
        Distance of the stamps.
    padding : int >= 0
        Rows and columns cut off on every side.

    Returns
    -------
    array (N, O, H', W'), dtype of ``x``
        ``H' = (H - 1) stride + A - 2 padding``.

    Raises
    ------
    TypeError, ValueError
        If a dtype, shape or option is wrong or nothing would be left.

    Notes
    -----
    The adjoint, in x, of the convolution with the same kernel, stride and padding.

    Examples
    --------
    >>> conv_transpose2d(np.ones((1, 1, 1, 2)), np.array([[[[1.0, 2.0, 1.0]]]]))
    array([[[[1., 2., 2., 2., 1.]]]])
    """
    return conv_transpose2d_vjp(x, weight, stride=stride, padding=padding)[0]


def conv_transpose2d_vjp(
    x: Array[F], weight: Array[F], *, stride: int = 2, padding: int = 0
) -> tuple[Array[F], Pullback]:
    """Return :func:`conv_transpose2d` and its pullback ``dy -> (dx, dweight)``."""
    x, weight = _checks.float_array(x, "x", ndim=4), _checks.float_array(weight, "weight", ndim=4)
    _checks.same_dtype("x", x, weight=weight)
    stride, padding = _checks.whole(stride, "stride", low=1), _checks.whole(padding, "padding", low=0)
    _checks.shape(weight, "weight", (x.shape[1], *weight.shape[1:]))
    images, channels, height, width = x.shape
    _, outputs, rows, columns = weight.shape
    size = ((height - 1) * stride + rows, (width - 1) * stride + columns)
    if min(size) <= 2 * padding:
        _checks.fail("padding", f"less than half of {size}", padding)
    inner = (slice(None), slice(None), slice(padding, size[0] - padding), slice(padding, size[1] - padding))
    pixels, kernels = x.transpose(0, 2, 3, 1).reshape(-1, channels), weight.reshape(channels, -1)
    stamps = (pixels @ kernels).reshape(images, height, width, outputs, rows, columns).transpose(0, 3, 1, 2, 4, 5)
    y = add_windows(stamps, (images, outputs, *size), (stride, stride))[inner]

    def pullback(dy: Array[F]) -> tuple[AnyArray, AnyArray]:
        whole = np.zeros((images, outputs, *size), x.dtype)
        whole[inner] = dy
        patches = windows(whole, (rows, columns), (stride, stride)).transpose(0, 2, 3, 1, 4, 5).reshape(len(pixels), -1)
        dx = (patches @ kernels.T).reshape(images, height, width, channels).transpose(0, 3, 1, 2)
        return dx, (pixels.T @ patches).reshape(weight.shape)

    return y, pullback


def init_vcycle(
    rng: np.random.Generator,
    c_f: int,
    c_u: int,
    levels: int,
    *,
    geometry: str = "even",
    smoothings: Sequence[tuple[int, int]] | None = None,
    dtype: Any = np.float64,
) -> VCycleWeights:
    """Draw the kernels of a V-cycle, uniform on ``+-1 / sqrt(inputs of the kernel)``.

    Parameters
    ----------
    rng : numpy.random.Generator
    c_f, c_u : int >= 1
        Channels of input and output.
    levels : int >= 1
    geometry : {"even", "odd"}
        See :func:`vcycle`.
    smoothings : pairs of int, one a level, optional
        Smoothings on the way down (at least one on the finest level) and up; ((1, 1), ..., (1, 1), (2, 0)) by
        default.
    dtype : float32 or float64

    Returns
    -------
    VCycleWeights

    Raises
    ------
    TypeError, ValueError
        If an option is out of range.

    Examples
    --------
    >>> weights = init_vcycle(np.random.default_rng(0), 1, 4, 3)
    >>> weights.prolongations[0].shape, len(weights.pre_operators[0]), len(weights.pre_smoothers[0])
    ((4, 4, 4, 4), 0, 1)
    """
    rng = _checks.generator(rng)
    c_f, c_u = _checks.whole(c_f, "c_f", low=1), _checks.whole(c_u, "c_u", low=1)
    counts = _counts(levels, smoothings)
    _checks.one_of(geometry, "geometry", GEOMETRIES)
    side = 4 if geometry == "even" else 3

    def draw(outputs: int, inputs: int, size: int = 3) -> AnyArray:
        return np.asarray(rng.uniform(-1, 1, (outputs, inputs, size, size)) / np.sqrt(size * size * inputs), dtype)

    def several(shape: tuple[int, int], numbers: Sequence[int]) -> tuple[Kernels, ...]:
        return tuple(tuple(draw(*shape) for _ in range(number)) for number in numbers)

    down, up = [pair[0] for pair in counts], [pair[1] for pair in counts]
    between = range(len(counts) - 1)
    return VCycleWeights(
        pre_operators=several((c_f, c_u), [number - (level == 0) for level, number in enumerate(down)]),
        pre_smoothers=several((c_u, c_f), down),
        post_operators=several((c_f, c_u), up),
        post_smoothers=several((c_u, c_f), up),
        residual_operators=tuple(draw(c_f, c_u) for _ in between),
        restrictions=tuple(draw(c_f, c_f) for _ in between),
        state_restrictions=tuple(draw(c_u, c_u) for _ in between),
        prolongations=tuple(draw(c_u, c_u, side) for _ in between),
    )


def _counts(levels: int, smoothings: Sequence[tuple[int, int]] | None) -> list[tuple[int, int]]:
    levels = _checks.whole(levels, "levels", low=1)
    if smoothings is None:
        smoothings = [*([(1, 1)] * (levels - 1)), (2, 0)]
    if len(smoothings) != levels:
        _checks.fail("smoothings", f"{levels} pairs", len(smoothings))
    pairs = [(_checks.whole(a, "smoothings", low=0), _checks.whole(b, "smoothings", low=0)) for a, b in smoothings]
    if pairs[0][0] < 1:
        _checks.fail("smoothings", "at least one smoothing down on the finest level", pairs[0])
    if pairs[-1][1]:
        _checks.fail("smoothings", "no smoothing up on the coarsest level", pairs[-1])
    return pairs


def poisson_vcycle(
    n: int,
    levels: int,
    *,
    relaxation: float = 0.8,
    smoothings: Sequence[tuple[int, int]] | None = None,
) -> VCycleWeights:
    """Kernels with which the V-cycle is classical multigrid for ``-Laplace u = f`` on the unit square.

    Parameters
    ----------
    n : int >= 1
        Inner grid points a side; the spacing is ``1 / (n + 1)`` and the border value 0.
    levels : int >= 1
    relaxation : float in (0, 2)
        Factor of the Jacobi smoother.
    smoothings : pairs of int, one a level, optional
        ((2, 2), ..., (2, 2), (8, 0)) by default.

    Returns
    -------
    VCycleWeights
        For the geometry "odd" and mode "zeros": five-point stencil, full weighting, bilinear prolongation.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range or the grid cannot be halved so often.

    Examples
    --------
    >>> poisson_vcycle(7, 2).pre_smoothers[0][0][0, 0, 1, 1] * 64  # relaxation h^2 / 4, and h = 1/8
    np.float64(0.2)
    """
    n = _checks.whole(n, "n", low=1)
    if smoothings is None:
        smoothings = [*([(2, 2)] * (_checks.whole(levels, "levels", low=1) - 1)), (8, 0)]
    counts = _counts(levels, smoothings)
    _checks.in_range(relaxation, "relaxation", 0, 2, closed="neither")
    _sizes((n, n), levels, "odd")
    stencil = np.array([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]])[None, None]
    tent = np.array([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None]
    point = np.zeros((1, 1, 3, 3))
    point[0, 0, 1, 1] = 1
    spacing = 2.0 ** np.arange(levels) / (n + 1)
    operators, smoothers = [stencil / h**2 for h in spacing], [relaxation * h**2 / 4 * point for h in spacing]

    def repeat(kernels: list[AnyArray], numbers: list[int]) -> tuple[Kernels, ...]:
        return tuple((kernel,) * number for kernel, number in zip(kernels, numbers, strict=True))

    down, up = [pair[0] for pair in counts], [pair[1] for pair in counts]
    return VCycleWeights(
        pre_operators=repeat(operators, [number - (level == 0) for level, number in enumerate(down)]),
        pre_smoothers=repeat(smoothers, down),
        post_operators=repeat(operators, up),
        post_smoothers=repeat(smoothers, up),
        residual_operators=tuple(operators[:-1]),
        restrictions=(tent / 16,) * (levels - 1),
        state_restrictions=(0 * point,) * (levels - 1),
        prolongations=(tent / 4,) * (levels - 1),
    )


def vcycle(
    f: Array[F], weights: VCycleWeights, *, mode: str = "zeros", geometry: str = "even", use_residual: bool = True
) -> Array[F]:
    """Apply a linear operator that is parametrised as a multigrid V-cycle.

    Parameters
    ----------
    f : array (N, C_f, H, W)
        Functions on a grid.
    weights : VCycleWeights
    mode : {"zeros", "circular", "reflect"}
        Border of all convolutions.
    geometry : {"even", "odd"}
        How grids are halved: "even" for cells (sides divisible by ``2^(levels - 1)``, 4 x 4 prolongations), "odd"
        for inner points between fixed borders (``2 m + 1`` points to m, 3 x 3 prolongations).
    use_residual : bool
        Whether the residual goes down, as in classical multigrid, or ``f`` itself.

    Returns
    -------
    array (N, C_u, H, W), dtype of ``f``

    Raises
    ------
    TypeError, ValueError
        If a dtype, shape or option is wrong, or the sides cannot be halved so often.

    Notes
    -----
    There is no bias: the result is linear in ``f``.

    References
    ----------
    He, Liu, Xu (2023), arXiv 2310.19809, section 3.

    Examples
    --------
    >>> f = np.ones((1, 1, 7, 7))
    >>> u = vcycle(f, poisson_vcycle(7, 3), geometry="odd")
    >>> float(u[0, 0, 3, 3].round(3))  # one cycle; the solution has 0.073
    0.06
    """
    return vcycle_vjp(f, weights, mode=mode, geometry=geometry, use_residual=use_residual)[0]


def vcycle_vjp(
    f: Array[F], weights: VCycleWeights, *, mode: str = "zeros", geometry: str = "even", use_residual: bool = True
) -> tuple[Array[F], Pullback]:
    """Return :func:`vcycle` and its pullback ``du -> (df, dweights)``."""
    f = _checks.float_array(f, "f", ndim=4)
    _checks.not_empty(f, "f", range(4))
    _checks.one_of(geometry, "geometry", GEOMETRIES)
    levels = len(weights.pre_smoothers)
    _check_weights(weights, f, geometry)
    _sizes(f.shape[2:], levels, geometry)
    tape = _Tape(mode, geometry)

    u = tape.first(f, weights.pre_smoothers[0][0])
    states, sources = [], [f]
    for level in range(levels):
        # The first smoothing of all has been done; it needed no operator.
        smoothers = weights.pre_smoothers[level][level == 0 :]
        for number, pair in enumerate(zip(weights.pre_operators[level], smoothers, strict=True)):
            u = tape.smooth("pre", level, number, u, sources[level], *pair)
        states.append(u)
        if level < levels - 1:
            sources.append(tape.restrict(level, u, sources[level], weights, use_residual))
            u = tape.restrict_state(level, u, weights.state_restrictions[level])
    for level in reversed(range(levels - 1)):
        u = tape.prolong(level, states[level], u, weights.prolongations[level])
        pairs = zip(weights.post_operators[level], weights.post_smoothers[level], strict=True)
        for number, pair in enumerate(pairs):
            u = tape.smooth("post", level, number, u, sources[level], *pair)
    return u, lambda du: tape.back(_Cotangents(du, states, sources, weights))


class _Tape:
    """The steps of one V-cycle with their pullbacks, to be called in reverse."""

    def __init__(self, mode: str, geometry: str) -> None:
        self.options: dict[str, Any] = {"padding": 1, "mode": mode}
        even = geometry == "even"
        self.down: dict[str, Any] = {"stride": 2, "padding": 1, "mode": mode} if even else {"stride": 2, "padding": 0}
        self.up = {"stride": 2, "padding": 1 if even else 0}
        self.steps: list[Callable[[_Cotangents], None]] = []

    def first(self, f: AnyArray, smoother: AnyArray) -> AnyArray:
        u, back = padded_conv2d_vjp(f, smoother, **self.options)

        def step(at: _Cotangents) -> None:
            df, at.pre_smoothers[0][0] = back(at.u[0])
            at.f[0] = at.f[0] + df

        self.steps.append(step)
        return u

    def smooth(
        self, way: str, level: int, number: int, u: AnyArray, f: AnyArray, operator: AnyArray, smoother: AnyArray
    ) -> AnyArray:
        """``u + S (f - A u)``."""
        image, back_operator = padded_conv2d_vjp(u, operator, **self.options)
        change, back_smoother = padded_conv2d_vjp(f - image, smoother, **self.options)
        place = number + (way == "pre" and level == 0)

        def step(at: _Cotangents) -> None:
            dresidual, dsmoother = back_smoother(at.u[level])
            du, doperator = back_operator(-dresidual)
            at.u[level] = at.u[level] + du
            at.f[level] = at.f[level] + dresidual
            (at.pre_operators if way == "pre" else at.post_operators)[level][number] = doperator
            (at.pre_smoothers if way == "pre" else at.post_smoothers)[level][place] = dsmoother

        self.steps.append(step)
        return np.asarray(u + change)

    def restrict(self, level: int, u: AnyArray, f: AnyArray, weights: VCycleWeights, use_residual: bool) -> AnyArray:
        """``R (f - A u)`` or ``R f``."""
        if use_residual:
            image, back_operator = padded_conv2d_vjp(u, weights.residual_operators[level], **self.options)
            f = f - image
        coarse, back = padded_conv2d_vjp(f, weights.restrictions[level], **self.down)

        def step(at: _Cotangents) -> None:
            dresidual, at.restrictions[level] = back(at.f[level + 1])
            at.f[level] = at.f[level] + dresidual
            if use_residual:
                du, at.residual_operators[level] = back_operator(-dresidual)
                at.u[level] = at.u[level] + du

        self.steps.append(step)
        return coarse

    def restrict_state(self, level: int, u: AnyArray, kernel: AnyArray) -> AnyArray:
        coarse, back = padded_conv2d_vjp(u, kernel, **self.down)

        def step(at: _Cotangents) -> None:
            du, at.state_restrictions[level] = back(at.u[level + 1])
            at.u[level] = at.u[level] + du

        self.steps.append(step)
        return coarse

    def prolong(self, level: int, u: AnyArray, coarse: AnyArray, kernel: AnyArray) -> AnyArray:
        """``u + P coarse``."""
        change, back = conv_transpose2d_vjp(coarse, kernel, **self.up)

        def step(at: _Cotangents) -> None:
            at.u[level + 1], at.prolongations[level] = back(at.u[level])

        self.steps.append(step)
        return np.asarray(u + change)

    def back(self, at: _Cotangents) -> tuple[AnyArray, VCycleWeights]:
        for step in reversed(self.steps):
            step(at)
        return at.f[0], at.weights()


class _Cotangents:
    """Cotangents of u and f on every level, and of every kernel, while the steps are undone."""

    def __init__(self, du: AnyArray, states: list[AnyArray], sources: list[AnyArray], weights: VCycleWeights) -> None:
        self.u = [np.asarray(du), *(np.zeros_like(u) for u in states[1:])]
        self.f = [np.zeros_like(f) for f in sources]
        zeros: VCycleWeights = tree_map(np.zeros_like, weights)
        self.pre_operators = [list(kernels) for kernels in zeros.pre_operators]
        self.pre_smoothers = [list(kernels) for kernels in zeros.pre_smoothers]
        self.post_operators = [list(kernels) for kernels in zeros.post_operators]
        self.post_smoothers = [list(kernels) for kernels in zeros.post_smoothers]
        self.residual_operators, self.restrictions = list(zeros.residual_operators), list(zeros.restrictions)
        self.state_restrictions, self.prolongations = list(zeros.state_restrictions), list(zeros.prolongations)

    def weights(self) -> VCycleWeights:
        def nested(kernels: list[list[AnyArray]]) -> tuple[Kernels, ...]:
            return tuple(tuple(level) for level in kernels)

        return VCycleWeights(
            nested(self.pre_operators),
            nested(self.pre_smoothers),
            nested(self.post_operators),
            nested(self.post_smoothers),
            tuple(self.residual_operators),
            tuple(self.restrictions),
            tuple(self.state_restrictions),
            tuple(self.prolongations),
        )


def _sizes(shape: Sequence[int], levels: int, geometry: str) -> None:
    for side in shape:
        rest = side
        for _ in range(levels - 1):
            possible = rest % 2 == 0 if geometry == "even" else rest % 2 == 1 and rest > 1
            if not possible:
                needed = "divisible by 2" if geometry == "even" else "2 m + 1"
                _checks.fail("levels", f"sides that are {needed} on each of {levels - 1} finer levels", tuple(shape))
            rest //= 2


def _check_weights(weights: VCycleWeights, f: AnyArray, geometry: str) -> None:
    c_f, first = f.shape[1], weights.pre_smoothers[0]
    if not first:
        _checks.fail("weights", "at least one pre_smoothers kernel on the finest level", "none")
    c_u, levels, side = first[0].shape[0], len(weights.pre_smoothers), 4 if geometry == "even" else 3
    wanted: list[tuple[str, Sequence[AnyArray], tuple[int, ...]]] = [
        ("residual_operators", weights.residual_operators, (c_f, c_u, 3, 3)),
        ("restrictions", weights.restrictions, (c_f, c_f, 3, 3)),
        ("state_restrictions", weights.state_restrictions, (c_u, c_u, 3, 3)),
        ("prolongations", weights.prolongations, (c_u, c_u, side, side)),
    ]
    for name, kernels, _ in wanted:
        if len(kernels) != levels - 1:
            _checks.fail(f"weights.{name}", f"{levels - 1} kernels for {levels} levels", len(kernels))
    for way in ("pre", "post"):
        operators, smoothers = getattr(weights, f"{way}_operators"), getattr(weights, f"{way}_smoothers")
        expected = [len(kernels) - (way == "pre" and level == 0) for level, kernels in enumerate(smoothers)]
        if [len(kernels) for kernels in operators] != expected or len(smoothers) != levels:
            _checks.fail(f"weights.{way}_operators", f"{expected} kernels a level", [len(k) for k in operators])
        wanted += [(f"{way}_operators.{level}", kernels, (c_f, c_u, 3, 3)) for level, kernels in enumerate(operators)]
        wanted += [(f"{way}_smoothers.{level}", kernels, (c_u, c_f, 3, 3)) for level, kernels in enumerate(smoothers)]
    for name, kernels, shape in wanted:
        for number, kernel in enumerate(kernels):
            _checks.float_array(kernel, f"weights.{name}.{number}")
            _checks.same_dtype("f", f, **{f"weights.{name}.{number}": kernel})
            _checks.shape(kernel, f"weights.{name}.{number}", shape)


def mgno_layer(
    f: Array[F],
    layer: MgNOLayer,
    *,
    activation: str = "gelu",
    mode: str = "zeros",
    geometry: str = "even",
    use_residual: bool = True,
) -> Array[F]:
    """A layer whose weights are a linear operator between functions.

    Parameters
    ----------
    f : array (N, C_f, H, W)
    layer : MgNOLayer
    activation : {"gelu", "identity"}
    mode, geometry, use_residual
        As in :func:`vcycle`.

    Returns
    -------
    array (N, C_u, H, W), dtype of ``f``

    Raises
    ------
    TypeError, ValueError
        As :func:`vcycle`.

    Notes
    -----
    ``activation(V-cycle(f) + skip f + bias)``.

    References
    ----------
    He, Liu, Xu (2023), arXiv 2310.19809, section 3.

    Examples
    --------
    >>> params = init_mgno(np.random.default_rng(0), 1, 3, 1, levels=2, depth=1)
    >>> mgno_layer(np.ones((2, 1, 8, 8)), params.layers[0]).shape
    (2, 3, 8, 8)
    """
    options: dict[str, Any] = {"activation": activation, "mode": mode, "geometry": geometry}
    return mgno_layer_vjp(f, layer, use_residual=use_residual, **options)[0]


def mgno_layer_vjp(
    f: Array[F],
    layer: MgNOLayer,
    *,
    activation: str = "gelu",
    mode: str = "zeros",
    geometry: str = "even",
    use_residual: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`mgno_layer` and its pullback ``dy -> (df, dlayer)``."""
    _checks.one_of(activation, "activation", ACTIVATIONS)
    u, back_cycle = vcycle_vjp(f, layer.weights, mode=mode, geometry=geometry, use_residual=use_residual)
    beside, back_skip = padded_conv2d_vjp(f, layer.skip, padding=0)
    _checks.shape(beside, "layer.skip", u.shape)
    bias = _checks.float_array(layer.bias, "layer.bias")
    _checks.same_dtype("f", u, **{"layer.bias": bias})
    if bias.ndim == 1:
        bias = bias[:, None, None]
        _checks.shape(bias, "layer.bias", (u.shape[1], 1, 1))
    else:
        _checks.shape(bias, "layer.bias", u.shape[1:])
    y = u + beside + bias
    activate: Pullback = lambda dy: (dy,)  # noqa: E731
    if activation == "gelu":
        y, activate = gelu_vjp(y)

    def pullback(dy: Array[F]) -> tuple[AnyArray, MgNOLayer]:
        (dz,) = activate(dy)
        df, dweights = back_cycle(dz)
        df_beside, dskip = back_skip(dz)
        dbias = sum_to(dz, bias.shape).reshape(layer.bias.shape)
        return df + df_beside, MgNOLayer(dweights, dskip, dbias)

    return y, pullback


def init_mgno(
    rng: np.random.Generator,
    c_in: int,
    c_u: int,
    c_out: int,
    *,
    levels: int,
    depth: int = 4,
    geometry: str = "even",
    smoothings: Sequence[tuple[int, int]] | None = None,
    function_bias: tuple[int, int] | None = None,
    dtype: Any = np.float64,
) -> MgNOParams:
    """Draw the parameters of a network of V-cycle layers.

    Parameters
    ----------
    rng : numpy.random.Generator
    c_in, c_u, c_out : int >= 1
        Channels of input, hidden layers and output.
    levels : int >= 1
        Grids of each V-cycle.
    depth : int >= 1
        Layers.
    geometry, smoothings, dtype
        As in :func:`init_vcycle`.
    function_bias : (H, W), optional
        Biases are functions on that grid; otherwise one number a channel.

    Returns
    -------
    MgNOParams

    Raises
    ------
    TypeError, ValueError
        If an option is out of range.

    Examples
    --------
    >>> len(init_mgno(np.random.default_rng(0), 1, 3, 1, levels=2, depth=2).layers)
    2
    """
    depth, c_out = _checks.whole(depth, "depth", low=1), _checks.whole(c_out, "c_out", low=1)
    sizes = [_checks.whole(c_in, "c_in", low=1)] + [_checks.whole(c_u, "c_u", low=1)] * depth
    layers = []
    for before, after in itertools.pairwise(sizes):
        limit = 1 / np.sqrt(before)
        cycle = init_vcycle(rng, before, after, levels, geometry=geometry, smoothings=smoothings, dtype=dtype)
        skip = np.asarray(rng.uniform(-limit, limit, (after, before, 1, 1)), dtype)
        layers.append(MgNOLayer(cycle, skip, np.zeros((after, *(function_bias or ())), dtype)))
    head = rng.uniform(-1, 1, (c_out, sizes[-1], 1, 1)) / np.sqrt(sizes[-1])
    return MgNOParams(tuple(layers), np.asarray(head, dtype))


def mgno(
    f: Array[F],
    params: MgNOParams,
    *,
    activation: str = "gelu",
    mode: str = "zeros",
    geometry: str = "even",
    use_residual: bool = True,
) -> Array[F]:
    """Network of V-cycle layers, ended by a 1 x 1 convolution without bias.

    Parameters
    ----------
    f : array (N, C_in, H, W)
    params : MgNOParams
    activation, mode, geometry, use_residual
        As in :func:`mgno_layer`.

    Returns
    -------
    array (N, C_out, H, W), dtype of ``f``

    Raises
    ------
    TypeError, ValueError
        As :func:`vcycle`.

    References
    ----------
    He, Liu, Xu (2023), arXiv 2310.19809, section 3.

    Examples
    --------
    >>> mgno(np.ones((2, 1, 8, 8)), init_mgno(np.random.default_rng(0), 1, 3, 1, levels=2)).shape
    (2, 1, 8, 8)
    """
    options: dict[str, Any] = {"activation": activation, "mode": mode, "geometry": geometry}
    return mgno_vjp(f, params, use_residual=use_residual, **options)[0]


def mgno_vjp(
    f: Array[F],
    params: MgNOParams,
    *,
    activation: str = "gelu",
    mode: str = "zeros",
    geometry: str = "even",
    use_residual: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`mgno` and its pullback ``dy -> (df, dparams)``."""
    options: dict[str, Any] = {"activation": activation, "mode": mode, "geometry": geometry}
    backs = []
    y = f
    for layer in params.layers:
        y, back = mgno_layer_vjp(y, layer, use_residual=use_residual, **options)
        backs.append(back)
    y, back_head = padded_conv2d_vjp(y, params.head, padding=0)

    def pullback(dy: Array[F]) -> tuple[AnyArray, MgNOParams]:
        dy, dhead = back_head(dy)
        dlayers = []
        for back in reversed(backs):
            dy, dlayer = back(dy)
            dlayers.append(dlayer)
        return dy, MgNOParams(tuple(dlayers[::-1]), dhead)

    return y, pullback
