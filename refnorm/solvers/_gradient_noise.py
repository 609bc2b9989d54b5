"""Annealed Gaussian gradient noise.

noisy_grad = clip(grad) + noise,    noise ~ Normal(0, variance / (1 + step)^decay)    in every coordinate
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Method, Pullback, Tree
from refnorm.solvers._protocol import Optimizer
from refnorm.tree import tree_leaves, tree_map

METHOD = Method(
    title="Adding Gradient Noise Improves Learning for Very Deep Networks",
    authors="Neelakantan, Vilnis, Le, Sutskever, Kaiser, Kurach, Martens",
    year=2015,
    arxiv="1511.06807",
    functions=("GradientNoise", "GradientNoiseState", "add_gradient_noise", "clip_by_global_norm", "noise_std"),
    chapter="solvers/gradient_noise",
)


def noise_std(step: int, *, variance: float = 0.01, decay: float = 0.55) -> float:
    """Return the standard deviation of the noise that is added in one step.

    Parameters
    ----------
    step : int >= 0
        Steps taken before this one.
    variance : float >= 0
        Variance of the first step's noise; the paper tries 0.01, 0.3 and 1.
    decay : float >= 0
        Power of the decay in time; 0 keeps the variance as it is.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        If ``step`` is not an integer >= 0, or a number is negative or not finite.

    Notes
    -----
    ``sqrt(variance) (1 + step)^(-decay / 2)``.

    References
    ----------
    Neelakantan et al. (2015), arXiv 1511.06807, section 3.

    Examples
    --------
    >>> round(noise_std(0, variance=0.3) ** 2, 6), round(noise_std(99, variance=0.3) ** 2, 6)
    (0.3, 0.02383)
    """
    step = _checks.whole(step, "step", low=0)
    _checks.non_negative(variance, "variance")
    _checks.non_negative(decay, "decay")
    # The root is taken of each factor: the power itself may underflow where its root does not.
    return math.sqrt(variance) * math.pow(1 + step, -decay / 2)


def add_gradient_noise(
    grads: Tree, step: int, *, variance: float = 0.01, decay: float = 0.55, rng: np.random.Generator
) -> Tree:
    """Add one step's noise to every gradient.

    Parameters
    ----------
    grads : tree of float32 or float64 arrays
        Leaves of ``None`` stay ``None`` and draw nothing.
    step, variance, decay
        As in :func:`noise_std`.
    rng : numpy.random.Generator
        Leaf after leaf, in the tree's order, draws ``rng.standard_normal(shape, dtype)``. The float32 and
        float64 streams of a generator differ, so the dtype of the gradients decides which noise they get.

    Returns
    -------
    tree of arrays like ``grads``
        ``grads`` itself if ``variance`` is 0; nothing is drawn then.

    Raises
    ------
    TypeError, ValueError
        If a leaf has another dtype, or an argument is outside its range.

    Notes
    -----
    The noise does not depend on the gradient: the pullback of this function is the identity.

    References
    ----------
    Neelakantan et al. (2015), arXiv 1511.06807, section 3.

    Examples
    --------
    >>> grads = {"weight": np.zeros((200, 200))}
    >>> noisy = add_gradient_noise(grads, 0, variance=0.25, rng=np.random.default_rng(0))
    >>> bool(abs(noisy["weight"].std() - 0.5) < 0.01)
    True
    """
    std = noise_std(step, variance=variance, decay=decay)
    rng = _checks.generator(rng)
    _named_arrays(grads)
    if std == 0:
        return grads

    def noisy(leaf: Any) -> AnyArray | None:
        if leaf is None:
            return None
        grad = np.asarray(leaf)
        return np.asarray(grad + std * rng.standard_normal(grad.shape, dtype=grad.dtype))

    return tree_map(noisy, grads)


def clip_by_global_norm(grads: Tree, max_norm: float) -> tuple[Tree, AnyArray]:
    """Shorten all gradients by one factor so that their joint Euclidean norm is at most ``max_norm``.

    Parameters
    ----------
    grads : tree of float32 or float64 arrays
        Leaves of ``None`` count as 0.
    max_norm : float > 0

    Returns
    -------
    grads : tree like ``grads``
    norm : float64 array ()
        The norm before clipping.

    Raises
    ------
    TypeError, ValueError
        If a leaf has another dtype or ``max_norm`` is not a finite number > 0.

    Notes
    -----
    ``grads min(1, max_norm / norm)``. The squares are summed in float64 after division by the largest
    entry, so they do not overflow. A NaN makes all gradients NaN; an infinite one becomes NaN and the finite
    ones 0.

    References
    ----------
    Pascanu, Mikolov, Bengio (2013), ICML, algorithm 1.

    Examples
    --------
    >>> grads, norm = clip_by_global_norm([np.array([3.0]), np.array([4.0])], 1.0)
    >>> grads, float(norm)
    ([array([0.6]), array([0.8])], 5.0)
    """
    return clip_by_global_norm_vjp(grads, max_norm)[0]


def clip_by_global_norm_vjp(grads: Tree, max_norm: float) -> tuple[tuple[Tree, AnyArray], Pullback]:
    """Return :func:`clip_by_global_norm` and its pullback ``(dclipped, dnorm) -> (dgrads,)``.

    Parameters, errors and references are those of :func:`clip_by_global_norm`.
    """
    arrays = _named_arrays(grads)
    _checks.positive(max_norm, "max_norm")
    norm = _norm(arrays)
    active = not norm.real <= max_norm
    scale = max_norm / norm if active else 1.0

    def shorten(leaf: Any) -> AnyArray | None:
        if leaf is None:
            return None
        grad = np.asarray(leaf)
        with np.errstate(invalid="ignore"):
            return np.asarray(scale * grad, dtype=grad.dtype)

    def pullback(cotangent: tuple[Tree, Any]) -> tuple[Tree]:
        dclipped, dnorm = cotangent
        # The norm moves by <unit, dgrads>, with unit = grads / norm. A clipped gradient max_norm unit keeps
        # its length: what the cotangent has along it, seen by all leaves together, is projected off.
        pairs = zip(tree_leaves(grads), tree_leaves(dclipped), strict=True)
        inner = sum(float(np.sum(np.asarray(dy) * (g / norm))) for (_, g), (_, dy) in pairs if g is not None and active)
        along = float(dnorm) - scale * inner

        def back(leaf: Any, dy: Any) -> AnyArray | None:
            if leaf is None:
                return None
            unit = leaf / norm if norm else np.zeros_like(leaf)
            return np.asarray(scale * np.asarray(dy) + along * unit, dtype=np.asarray(leaf).dtype)

        return (tree_map(back, grads, dclipped),)

    return (tree_map(shorten, grads), np.asarray(norm)), pullback


@dataclass(frozen=True)
class GradientNoiseState:
    """State of :class:`GradientNoise`.

    Parameters
    ----------
    inner
        State of the wrapped optimizer.
    step
        Steps taken.
    """

    inner: Any
    step: int


@dataclass(frozen=True)
class GradientNoise:
    """Give an optimizer noisy gradients.

    Parameters
    ----------
    inner : optimizer
        Anything with the two methods of :class:`refnorm.solvers.Optimizer`.
    variance, decay
        As in :func:`noise_std`.
    clip_norm : float > 0, optional
        Bound on the joint norm of the gradients before noise is added; no clipping by default.

    Raises
    ------
    TypeError, ValueError
        If ``inner`` is no optimizer or a number is outside its range.

    Notes
    -----
    Clip, add noise, take the inner step, count. With ``variance=0`` and no clipping it is the inner optimizer,
    bit by bit, and draws no random numbers.

    References
    ----------
    Neelakantan et al. (2015), arXiv 1511.06807, section 3.

    Examples
    --------
    >>> from refnorm.solvers import Lion
    >>> optimizer = GradientNoise(Lion(learning_rate=0.1), variance=0.3)
    >>> params = np.zeros(3)
    >>> state = optimizer.init(params)
    >>> params, state = optimizer.step(params, np.zeros(3), state, np.random.default_rng(0))
    >>> np.abs(params), state.step
    (array([0.1, 0.1, 0.1]), 1)
    """

    inner: Optimizer[Any]
    variance: float = 0.01
    decay: float = 0.55
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if not (hasattr(self.inner, "init") and hasattr(self.inner, "step")):
            _checks.fail_type("inner", "an optimizer with init and step", type(self.inner).__name__)
        _checks.non_negative(self.variance, "variance")
        _checks.non_negative(self.decay, "decay")
        if self.clip_norm is not None:
            _checks.positive(self.clip_norm, "clip_norm")

    def init(self, params: Tree) -> GradientNoiseState:
        """Return the state before the first step."""
        return GradientNoiseState(inner=self.inner.init(params), step=0)

    def step(
        self, params: Tree, grads: Tree, state: GradientNoiseState, rng: np.random.Generator
    ) -> tuple[Tree, GradientNoiseState]:
        """Return parameters and state after one step.

        Parameters
        ----------
        params, grads : trees of one structure
        state : GradientNoiseState
        rng : numpy.random.Generator
            Consumed as in :func:`add_gradient_noise`.
        """
        if self.clip_norm is not None:
            grads, _ = clip_by_global_norm(grads, self.clip_norm)
        noisy = add_gradient_noise(grads, state.step, variance=self.variance, decay=self.decay, rng=rng)
        params, inner = self.inner.step(params, noisy, state.inner)
        return params, GradientNoiseState(inner=inner, step=state.step + 1)


def _named_arrays(grads: Tree) -> list[AnyArray]:
    return [
        _checks.float_array(leaf, f"grads.{path}" if path else "grads")
        for path, leaf in tree_leaves(grads)
        if leaf is not None
    ]


def _norm(arrays: list[AnyArray]) -> Any:
    largest = max((float(np.abs(array.real).max(initial=0.0)) for array in arrays), default=0.0)
    if not 0 < largest < math.inf:
        # 0, infinity or NaN: the sum of the sizes is the same.
        return float(sum(float(np.sum(np.abs(array))) for array in arrays))
    wide = [array / largest for array in (a.astype(np.result_type(a.dtype, np.float64)) for a in arrays)]
    norm = largest * np.sqrt(sum(np.sum(array * array) for array in wide))
    return complex(norm) if np.iscomplexobj(norm) else float(norm)
