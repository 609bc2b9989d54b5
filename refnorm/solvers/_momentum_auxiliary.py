"""Momentum auxiliary network: train a network block by block, each with a glimpse of the next one.

features(x) = learnable(x) + ema(x)            ema <- momentum ema + (1 - momentum) first layer of the next block
loss_j      = cross_entropy(head_j(features(block_j(x_j))), target)                  no gradient reaches x_j
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback, Tree
from refnorm.nn import conv2d_vjp, linear_vjp, relu_vjp
from refnorm.softmax import cross_entropy_vjp
from refnorm.solvers._protocol import Optimizer
from refnorm.tree import tree_map

METHOD = Method(
    title="Momentum Auxiliary Network for Supervised Local Learning",
    authors="Su, Cai, Zhu, He, Xu, Guan, Si",
    year=2024,
    arxiv="2407.05623",
    functions=(
        "LocalNet",
        "init_local_net",
        "auxiliary_features",
        "local_losses",
        "local_grads",
        "ema_update",
        "local_train_step",
        "predict_local_net",
        "activation_floats",
    ),
    chapter="solvers/momentum_auxiliary",
)

Layer: TypeAlias = tuple[AnyArray, AnyArray]
"""Weight and bias: (inputs, outputs) and (outputs,), or (outputs, inputs, n, n) and (outputs,) for images."""

HE_GAIN = 2.0
"""Variance of a weight times its number of inputs: ReLU halves the mean square, 2 restores it."""

BITS_PER_FLOAT = 32
"""A ReLU's mask is one bit a unit, counted in float32 numbers."""

_VARIANTS = ("man", "greedy", "ema_only", "bias_only", "end_to_end")


@dataclass(frozen=True)
class LocalNet:
    """A network in blocks, with what is needed to train each of them alone.

    Parameters
    ----------
    blocks
        One tuple of layers a block; a layer is ``(weight, bias)``, followed by ReLU.
    heads
        One classifier a block, a tuple of layers with ReLU between them. The last one belongs to the network,
        the others are thrown away after training.
    learnable
        One trainable twin of the next block's first layer for each block but the last, or nothing.
    ema
        One running average of that layer for each block but the last, or nothing.
    """

    blocks: tuple[tuple[Layer, ...], ...]
    heads: tuple[tuple[Layer, ...], ...]
    learnable: tuple[Layer, ...] = ()
    ema: tuple[Layer, ...] = ()


def init_local_net(
    rng: np.random.Generator,
    sizes: Sequence[int],
    n_blocks: int,
    n_classes: int,
    *,
    variant: str = "man",
    head_hidden: int = 128,
    window: int | None = None,
) -> LocalNet:
    """Draw a network with He's initialization and split its layers into blocks.

    Parameters
    ----------
    rng : numpy.random.Generator
    sizes : ints >= 1
        Width of the input and of every layer; channels if there is a ``window``.
    n_blocks : int from 1 to the number of layers
        Blocks, as equal in depth as possible.
    n_classes : int >= 1
    variant : ``"man"``, ``"greedy"``, ``"ema_only"``, ``"bias_only"`` or ``"end_to_end"``
        Both twins, none, only the average, only the learnable one; or a single block.
    head_hidden : int >= 1
        Hidden units of the auxiliary heads.
    window : odd int, optional
        Rows and columns of the filters of convolutional layers; dense layers if left out.

    Returns
    -------
    LocalNet

    Raises
    ------
    TypeError, ValueError
        If an option is outside its range.

    References
    ----------
    Su et al. (2024), arXiv 2407.05623.

    Examples
    --------
    >>> net = init_local_net(np.random.default_rng(0), [2, 8, 8, 8], 3, n_classes=2, head_hidden=4)
    >>> [len(block) for block in net.blocks], len(net.learnable), net.heads[0][0][0].shape
    ([1, 1, 1], 2, (8, 4))
    """
    rng = _checks.generator(rng)
    widths = [_checks.whole(size, "sizes", low=1) for size in sizes]
    if len(widths) < 2:
        _checks.fail("sizes", "the input's width and at least one layer's", tuple(sizes))
    n_blocks = _checks.whole(n_blocks, "n_blocks", low=1, high=len(widths) - 1)
    n_classes = _checks.whole(n_classes, "n_classes", low=1)
    head_hidden = _checks.whole(head_hidden, "head_hidden", low=1)
    _checks.one_of(variant, "variant", _VARIANTS)
    if window is not None and _checks.whole(window, "window", low=1) % 2 == 0:
        _checks.fail("window", "an odd number", window)
    n_blocks = 1 if variant == "end_to_end" else n_blocks

    def layer(inputs: int, outputs: int, window: int | None = window) -> Layer:
        shape = (inputs, outputs) if window is None else (outputs, inputs, window, window)
        fan_in = inputs * (window or 1) ** 2
        return rng.standard_normal(shape) * np.sqrt(HE_GAIN / fan_in), np.zeros(outputs)

    layers = [layer(before, after) for before, after in itertools.pairwise(widths)]
    parts = np.array_split(np.arange(len(layers)), n_blocks)
    ends = [widths[part[-1] + 1] for part in parts]
    # The width that an auxiliary head sees: that of the twins if there are any.
    seen = [widths[part[-1] + (1 if variant == "greedy" else 2)] for part in parts[:-1]]
    heads = [(layer(width, head_hidden, None), layer(head_hidden, n_classes, None)) for width in seen]
    following = [(ends[i], widths[parts[i + 1][0] + 1]) for i in range(n_blocks - 1)]
    return LocalNet(
        blocks=tuple(tuple(layers[i] for i in part) for part in parts),
        heads=(*heads, (layer(ends[-1], n_classes, None),)),
        learnable=tuple(layer(*shape) for shape in following) if variant in ("man", "bias_only") else (),
        ema=tuple(layer(*shape) for shape in following) if variant in ("man", "ema_only") else (),
    )


def auxiliary_features(x: Array[F], learnable: Layer, ema: Layer) -> Array[F]:
    """Look at a block's output through both twins of the next block's first layer.

    Parameters
    ----------
    x : array (..., I) or (N, C, H, W)
        Output of the block.
    learnable, ema : (weight, bias)
        The trained twin and the running average.

    Returns
    -------
    array (..., O) or (N, O, H, W), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype does not fit.

    Notes
    -----
    ``relu(x W_learnable + b_learnable) + relu(x W_ema + b_ema)``. The pullback goes through both layers to
    ``x``; the parameters of ``ema`` are constants, and their cotangents are 0.

    References
    ----------
    Su et al. (2024), arXiv 2407.05623.

    Examples
    --------
    >>> one, half = ((np.array([[w]]), np.zeros(1)) for w in (1.0, 0.5))
    >>> auxiliary_features(np.array([[2.0]]), one, half)
    array([[3.]])
    """
    return auxiliary_features_vjp(x, learnable, ema)[0]


def auxiliary_features_vjp(x: Array[F], learnable: Layer, ema: Layer) -> tuple[Array[F], Pullback]:
    """Return :func:`auxiliary_features` and its pullback ``dy -> (dx, dlearnable, dema)``, ``dema`` being 0."""
    trained, back_trained = _layer_vjp(x, learnable)
    averaged, back_averaged = _layer_vjp(x, ema)
    _checks.shape(averaged, "ema", trained.shape)
    y: Array[F] = trained + averaged

    def pullback(dy: Array[F]) -> tuple[Array[F], Layer, Layer]:
        dx, dlearnable = back_trained(dy)
        # Only the average's parameters are frozen: what it shows of the next block must reach this one.
        dx_averaged, _ = back_averaged(dy)
        return dx + dx_averaged, dlearnable, tree_map(np.zeros_like, ema)

    return y, pullback


def local_losses(net: LocalNet, x: Array[F], target: IntArray) -> Array[F]:
    """Return the mean cross-entropy of every block's head.

    Parameters
    ----------
    net : LocalNet
    x : array (N, I) or (N, C, H, W)
    target : integer array (N,)

    Returns
    -------
    array (blocks,), dtype of ``x``
        The last entry is the loss of the network itself.

    Raises
    ------
    TypeError, ValueError
        If the layers do not fit each other or the input.

    References
    ----------
    Su et al. (2024), arXiv 2407.05623.

    Examples
    --------
    >>> net = init_local_net(np.random.default_rng(0), [2, 4, 4], 2, n_classes=3)
    >>> local_losses(net, np.zeros((5, 2)), np.array([0, 1, 2, 0, 1])).round(6)
    array([1.098612, 1.098612])
    """
    _check_net(net)
    losses = []
    for block in range(len(net.blocks)):
        loss, x, *_ = _block_vjp(net, block, x, target)
        losses.append(loss)
    return np.stack(losses)


def local_grads(net: LocalNet, x: Array[F], target: IntArray) -> tuple[Array[F], LocalNet, Array[F]]:
    """Return every block's loss, its gradient with respect to that block's own parameters, and the logits.

    Parameters, errors and references are those of :func:`local_losses`.

    Returns
    -------
    losses : array (blocks,)
    grads : LocalNet
        ``None`` in place of every array of ``ema``.
    logits : array (N, classes)
        Of the network.

    Notes
    -----
    Block j, its head and its learnable twin get the gradient of loss j alone; a block's input is a constant.
    What a block stored for its pullback is free as soon as its gradient is known, before the next block begins.

    Examples
    --------
    >>> net = init_local_net(np.random.default_rng(0), [2, 4, 4], 2, n_classes=3)
    >>> losses, grads, logits = local_grads(net, np.ones((5, 2)), np.array([0, 1, 2, 0, 1]))
    >>> grads.blocks[0][0][0].shape, logits.shape, grads.ema
    ((2, 4), (5, 3), ((None, None),))
    """
    _check_net(net)
    losses, blocks, heads, learnable = [], [], [], []
    logits: AnyArray = np.asarray(x)
    for block in range(len(net.blocks)):
        loss, x, logits, pullback = _block_vjp(net, block, x, target)
        dblock, dhead, dlearnable = pullback()
        losses.append(loss)
        blocks.append(dblock)
        heads.append(dhead)
        learnable += dlearnable
    frozen = tree_map(lambda _: None, tuple(net.ema))
    return np.stack(losses), LocalNet(tuple(blocks), tuple(heads), tuple(learnable), frozen), logits


def ema_update(ema: Tree, target: Tree, *, momentum: float = 0.999) -> Tree:
    """Move an exponential moving average towards its target.

    Parameters
    ----------
    ema, target : parameter trees of one structure
    momentum : float in [0, 1]
        Weight of the old average. Steps below half a unit in the last place of the average are lost:
        in float32 stay below 0.9999.

    Returns
    -------
    tree like ``ema``

    Raises
    ------
    ValueError
        If the trees differ in structure or shape or ``momentum`` is outside [0, 1].

    References
    ----------
    Su et al. (2024), arXiv 2407.05623.

    Examples
    --------
    >>> ema_update(np.array([0.5]), np.array([1.0]), momentum=0.9)
    array([0.55])
    """
    _checks.in_range(momentum, "momentum", 0.0, 1.0)

    def update(average: AnyArray, goal: AnyArray) -> AnyArray:
        average = _checks.float_array(average, "ema")
        _checks.shape(np.asarray(goal), "target", average.shape)
        return np.asarray(momentum * average + (1 - momentum) * goal, dtype=average.dtype)

    return tree_map(update, ema, target, path="target")


def local_train_step(
    net: LocalNet, optimizer: Optimizer[Any], state: Any, x: Array[F], target: IntArray, *, momentum: float = 0.999
) -> tuple[LocalNet, Any, Array[F]]:
    """Take one optimizer step on all blocks and update the running averages.

    Parameters
    ----------
    net : LocalNet
    optimizer, state
        An optimizer of this room and its state, from ``optimizer.init(net)``.
    x, target : arrays
        As in :func:`local_losses`.
    momentum : float in [0, 1]
        Of the running averages; 0.99 for runs of a few hundred steps.

    Returns
    -------
    net, state, losses

    Raises
    ------
    TypeError, ValueError
        As :func:`local_losses` and :func:`ema_update`.

    Notes
    -----
    The average moves towards the next block's first layer as it was *before* the optimizer's step.

    References
    ----------
    Su et al. (2024), arXiv 2407.05623.

    Examples
    --------
    >>> from refnorm.solvers import Lion
    >>> net, optimizer = init_local_net(np.random.default_rng(0), [2, 4, 4], 2, n_classes=2), Lion()
    >>> x, target = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0, 1])
    >>> after, state, losses = local_train_step(net, optimizer, optimizer.init(net), x, target, momentum=0.5)
    >>> bool((after.ema[0][0] == 0.5 * net.ema[0][0] + 0.5 * net.blocks[1][0][0]).all())
    True
    """
    losses, grads, _ = local_grads(net, x, target)
    moved, state = optimizer.step(net, grads, state)
    following = tuple(block[0] for block in net.blocks[1:]) if net.ema else ()
    ema = ema_update(net.ema, following, momentum=momentum)
    return LocalNet(moved.blocks, moved.heads, moved.learnable, ema), state, losses


def predict_local_net(net: LocalNet, x: Array[F]) -> Array[F]:
    """Return the logits of the blocks and the last head; nothing auxiliary takes part.

    Parameters and errors are those of :func:`local_losses`.

    Examples
    --------
    >>> net = init_local_net(np.random.default_rng(0), [2, 4, 4], 2, n_classes=3)
    >>> predict_local_net(net, np.ones((5, 2))).shape
    (5, 3)
    """
    _check_net(net)
    for block in net.blocks:
        x, _ = _layers_vjp(x, block)
    return _head_vjp(x, net.heads[-1])[0]


def activation_floats(net: LocalNet, *, pixels: int = 1) -> int:
    """Count the numbers an example makes training store at its worst moment.

    Parameters
    ----------
    net : LocalNet
    pixels : int >= 1
        Pixels of an image, for convolutional layers.

    Returns
    -------
    int
        The largest count over the blocks, since one block's storage is free before the next one begins.

    Raises
    ------
    ValueError
        If ``pixels < 1``.

    Notes
    -----
    Counted is what pullbacks read: the input of every linear map and the probabilities, as float32 numbers,
    and the mask of every ReLU, one bit a unit.

    Examples
    --------
    >>> sizes = [64] + [64] * 8
    >>> rng = np.random.default_rng(0)
    >>> [
    ...     activation_floats(init_local_net(rng, sizes, 8, 10, variant=variant, head_hidden=32))
    ...     for variant in ("end_to_end", "man", "greedy")
    ... ]
    [602, 241, 173]
    """
    pixels = _checks.whole(pixels, "pixels", low=1)
    _check_net(net)
    totals = []
    for number, (block, head) in enumerate(zip(net.blocks, net.heads, strict=True)):
        inputs = [_shape(layer)[0] * pixels for layer in block]
        units = [_shape(layer)[1] * pixels for layer in block]
        twins = [twin[number] for twin in (net.learnable, net.ema) if number < len(twin)]
        if twins:
            inputs.append(units[-1])
            units += [_shape(twin)[1] * pixels for twin in twins]
        inputs += [_shape(layer)[0] for layer in head] + [_shape(head[-1])[1]]
        units += [_shape(layer)[1] for layer in head[:-1]]
        totals.append(sum(inputs) + -(-sum(units) // BITS_PER_FLOAT))
    return max(totals)


def _block_vjp(
    net: LocalNet, number: int, x: AnyArray, target: IntArray
) -> tuple[AnyArray, AnyArray, AnyArray, Callable[[], tuple[Any, Any, list[Layer]]]]:
    """Return a block's loss, its output, its head's logits, and the pullback to its own parameters."""
    z, back_block = _layers_vjp(x, net.blocks[number])
    learnable, ema = (twin[number] if number < len(twin) else None for twin in (net.learnable, net.ema))
    features, back_twins = z, None
    if learnable is not None and ema is not None:
        features, back_twins = auxiliary_features_vjp(z, learnable, ema)
    elif learnable is not None or ema is not None:
        features, back_twins = _layer_vjp(z, learnable if ema is None else ema)  # type: ignore[arg-type]
    logits, back_head = _head_vjp(features, net.heads[number])
    loss, back_loss = cross_entropy_vjp(logits, target)

    def pullback() -> tuple[Any, Any, list[Layer]]:
        (dlogits,) = back_loss(np.ones_like(loss))
        dz, dhead = back_head(dlogits)
        dlearnable: list[Layer] = []
        if back_twins is not None:
            dz, dtwin, *_ = back_twins(dz)
            dlearnable = [dtwin] if learnable is not None else []
        # The cotangent of the block's input is dropped: that is the whole of local learning.
        _, dblock = back_block(dz)
        return dblock, dhead, dlearnable

    return loss, z, logits, pullback


def _layer_vjp(x: AnyArray, layer: Layer) -> tuple[AnyArray, Pullback]:
    """A layer with its ReLU; the pullback returns ``(dx, (dweight, dbias))``."""
    weight, bias = layer
    if np.ndim(weight) == 4:
        a, back = conv2d_vjp(x, weight, bias, padding=weight.shape[-1] // 2)
    else:
        a, back = linear_vjp(x, weight, bias)
    h, activate = relu_vjp(a)

    def pullback(dh: AnyArray) -> tuple[AnyArray, Layer]:
        dx, dweight, dbias = back(activate(dh)[0])
        return dx, (dweight, dbias)

    return h, pullback


def _layers_vjp(x: AnyArray, layers: Sequence[Layer]) -> tuple[AnyArray, Pullback]:
    backs = []
    for layer in layers:
        x, back = _layer_vjp(x, layer)
        backs.append(back)

    def pullback(dx: AnyArray) -> tuple[AnyArray, tuple[Layer, ...]]:
        grads = []
        for back in reversed(backs):
            dx, grad = back(dx)
            grads.append(grad)
        return dx, tuple(grads[::-1])

    return x, pullback


def _head_vjp(x: AnyArray, head: Sequence[Layer]) -> tuple[AnyArray, Pullback]:
    """Global average pooling of images, then dense layers with ReLU between them."""
    shape = x.shape
    pooled = x.mean(axis=(2, 3)) if x.ndim == 4 else x
    hidden, back_hidden = _layers_vjp(pooled, head[:-1])
    logits, back = linear_vjp(hidden, *head[-1])

    def pullback(dlogits: AnyArray) -> tuple[AnyArray, tuple[Layer, ...]]:
        dhidden, dweight, dbias = back(dlogits)
        dpooled, grads = back_hidden(dhidden)
        if len(shape) == 4:
            dpooled = np.broadcast_to(dpooled[:, :, None, None] / (shape[2] * shape[3]), shape).astype(x.dtype)
        return dpooled, (*grads, (dweight, dbias))

    return logits, pullback


def _shape(layer: Layer) -> tuple[int, int]:
    """Inputs and outputs of a layer."""
    weight = layer[0]
    return (weight.shape[1], weight.shape[0]) if weight.ndim == 4 else (weight.shape[0], weight.shape[1])


def _check_net(net: LocalNet) -> None:
    """Raise unless every layer accepts what the one before it gives."""
    count = len(net.blocks)
    if not count or not all(net.blocks):
        _checks.fail("net.blocks", "at least one block, each with at least one layer", [len(b) for b in net.blocks])
    if len(net.heads) != count or not all(net.heads):
        _checks.fail("net.heads", f"{count} heads, each with at least one layer", [len(h) for h in net.heads])
    width = _shape(net.blocks[0][0])[0]
    for number, block in enumerate(net.blocks):
        for place, layer in enumerate(block):
            width = _fits(layer, f"net.blocks.{number}.{place}", width)
        seen = width
        for name, twins in (("learnable", net.learnable), ("ema", net.ema)):
            if len(twins) not in (0, count - 1):
                _checks.fail(f"net.{name}", f"0 or {count - 1} layers", len(twins))
            if number < len(twins):
                seen = _fits(twins[number], f"net.{name}.{number}", width)
                _checks.shape(twins[number][0], f"net.{name}.{number}", net.blocks[number + 1][0][0].shape)
        for place, layer in enumerate(net.heads[number]):
            seen = _fits(layer, f"net.heads.{number}.{place}", seen)


def _fits(layer: Layer, name: str, width: int) -> int:
    inputs, outputs = _shape(layer)
    if inputs != width:
        _checks.fail(name, f"a layer of {width} inputs", inputs)
    return outputs
