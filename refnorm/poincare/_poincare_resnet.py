"""A residual network whose features are points of the Poincaré ball, from the first layer to the logits.

exp0 -> conv 3x3 -> norm -> relu -> three groups of blocks (strides 1, 2, 2) -> pool -> fully connected -> log0
block: relu(F(x) (+) S(x)),  F = conv 3x3, norm, relu, conv 3x3, norm,  S = identity or conv 1x1
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback, Tree
from refnorm.poincare._ball import exp0_vjp, log0_vjp
from refnorm.poincare._batch_norm import DEFAULT_EPS, normalize, update_running_midpoint
from refnorm.poincare._conv2d import IDENTITIES, conv2d_vjp, init_conv2d_identity
from refnorm.poincare._linear import fully_connected_vjp, init_baseline
from refnorm.poincare._residual import ORDERS, avg_pool2d_vjp, relu_vjp, residual_add_vjp

METHOD = Method(
    title="Poincaré ResNet",
    authors="van Spengler, Berkhout, Mettes",
    year=2023,
    arxiv="2303.14027",
    functions=("PoincareResNet", "poincare_resnet"),
    chapter="poincare/poincare_resnet",
)

INITS = (*IDENTITIES, "baseline")
STRIDES = (1, 2, 2)
SMALLEST_GAIN = 1e-3
"""Where ``constrain`` stops a normalization's gain, which must stay positive."""

LAYERS = SimpleNamespace(
    exp0_vjp=exp0_vjp,
    conv2d_vjp=conv2d_vjp,
    normalize=normalize,
    relu_vjp=relu_vjp,
    residual_add_vjp=residual_add_vjp,
    avg_pool2d_vjp=avg_pool2d_vjp,
    fully_connected_vjp=fully_connected_vjp,
    log0_vjp=log0_vjp,
)
"""The layers that the network is made of. Other implementations offer the same names."""

Back = Pullback
"""A layer's pullback within the network: cotangents of the input, of its parameters, (of its statistics,) and of
the curvature."""


@dataclass(frozen=True)
class PoincareResNet:
    """Configuration of a Poincaré residual network, and the functions that go with it.

    Parameters
    ----------
    channels : three ints >= 1
        Channels of the three groups; the paper's networks have (8, 16, 32).
    blocks : three ints >= 1
        Blocks of each group. ``2 * sum(blocks) + 2`` layers: (3, 3, 3) makes 20, (5, 5, 5) makes 32; see
        :meth:`of_depth`.
    channels_in : int >= 1
        Channels of the images.
    classes : int >= 1
    curvature : float > 0
        Minus the sectional curvature of all balls.
    init_kind : ``"unfolded"``, ``"centre"`` or ``"baseline"``
        How weights start: half the identity in the order of the unfolding (the paper's), with the central pixel
        (see ``init_conv2d_identity``), or normal of variance ``1/(2 n m)`` (earlier networks').
    keep_length : bool
        Whether identities make up for the concatenation's factor; see ``init_conv2d_identity``.
    order : ``"fr"`` or ``"rf"``
        Order of the residual sum; see ``residual_add``.
    eps : float > 0
        Of the normalizations.
    recompute : bool
        Whether pullbacks keep their layers' arguments only, and run the layers again when they are called: a
        fraction of the memory for one more forward pass.
    dtype : numpy.float32 or numpy.float64

    Raises
    ------
    TypeError, ValueError
        If an option is out of range.

    Notes
    -----
    Parameters and running statistics are trees of arrays; nothing is stored in the object. All layers have
    hand-derived pullbacks, and the network's pullback calls them in reverse.

    References
    ----------
    van Spengler, Berkhout, Mettes (2023), arXiv 2303.14027, sections 3 and 4.

    Examples
    --------
    >>> network = PoincareResNet(channels=(2, 2, 2), blocks=(1, 1, 1), channels_in=1, classes=2)
    >>> params = network.init(np.random.default_rng(0))
    >>> x = np.linspace(0, 1, 2 * 64).reshape(2, 1, 8, 8)
    >>> logits, pullback = network.forward_vjp(params, x)
    >>> dparams, dx, _ = pullback(np.ones((2, 2)))
    >>> network.depth, logits.shape, dx.shape, dparams["head"]["weight"].shape
    (8, (2, 2), (2, 1, 8, 8), (2, 2))
    """

    channels: tuple[int, int, int] = (8, 16, 32)
    blocks: tuple[int, int, int] = (3, 3, 3)
    channels_in: int = 3
    classes: int = 10
    curvature: float = 0.1
    init_kind: str = "unfolded"
    keep_length: bool = False
    order: str = "fr"
    eps: float = DEFAULT_EPS
    recompute: bool = False
    dtype: Any = np.float64

    def __post_init__(self) -> None:
        for name in ("channels", "blocks"):
            values = getattr(self, name)
            if len(values) != len(STRIDES):
                _checks.fail(name, "three integers", values)
            for value in values:
                _checks.whole(value, name, low=1)
        _checks.whole(self.channels_in, "channels_in", low=1)
        _checks.whole(self.classes, "classes", low=1)
        _checks.positive(self.curvature, "curvature")
        _checks.one_of(self.init_kind, "init_kind", INITS)
        _checks.one_of(self.order, "order", ORDERS)
        _checks.positive(self.eps, "eps")
        _checks.one_of(np.dtype(self.dtype), "dtype", (np.dtype(np.float32), np.dtype(np.float64)))

    @classmethod
    def of_depth(cls, depth: int, **options: Any) -> PoincareResNet:
        """Return the network with ``depth`` layers: 8, 14, 20, 26, 32, ...; other options as in the constructor."""
        blocks, rest = divmod(_checks.whole(depth, "depth", low=8) - 2, 6)
        if rest:
            _checks.fail("depth", "2 more than a multiple of 6", depth)
        return cls(blocks=(blocks, blocks, blocks), **options)

    @property
    def depth(self) -> int:
        """Layers with weights on the longest path."""
        return 2 * sum(self.blocks) + 2

    def init(self, rng: np.random.Generator) -> dict[str, Any]:
        """Return the initial parameters.

        Biases are 0 and gains 1. ``rng`` is drawn from for ``init_kind="baseline"`` only.
        """
        _checks.generator(rng)
        before, blocks = self.channels[0], []
        for channels, count, stride in zip(self.channels, self.blocks, STRIDES, strict=True):
            for number in range(count):
                block = {
                    "conv1": self._init_conv(before, channels, 3, rng),
                    "norm1": self._init_norm(channels),
                    "conv2": self._init_conv(channels, channels, 3, rng),
                    "norm2": self._init_norm(channels),
                }
                if number == 0 and stride > 1:
                    block["shortcut"] = self._init_conv(before, channels, 1, rng)
                blocks.append(block)
                before = channels
        return {
            "conv": self._init_conv(self.channels_in, self.channels[0], 3, rng),
            "norm": self._init_norm(self.channels[0]),
            "blocks": blocks,
            "head": self._init_conv(before, self.classes, 1, rng),
        }

    def init_running(self) -> dict[str, Any]:
        """Return running statistics before the first batch: the origin, and the variance 1."""

        def fresh(channels: int) -> dict[str, AnyArray]:
            return {"mean": np.zeros(channels, self.dtype), "var": np.array(1.0, self.dtype)}

        counts = zip(self.channels, self.blocks, strict=True)
        return {
            "norm": fresh(self.channels[0]),
            "blocks": [
                {"norm1": fresh(channels), "norm2": fresh(channels)} for channels, count in counts for _ in range(count)
            ],
        }

    def forward(self, params: Tree, x: Array[F], running: Tree = None) -> Array[F]:
        """Return the logits; see :func:`poincare_resnet`."""
        return self.forward_vjp(params, x, running)[0]

    def forward_vjp(self, params: Tree, x: Array[F], running: Tree = None) -> tuple[Array[F], Pullback]:
        """Return the logits and their pullback ``dlogits -> (dparams, dx, drunning)``.

        The last entry is ``None`` without running statistics.
        """
        logits, _, pullback = _run(params, self._image(x), running, self._setting())
        return logits, _without_curvature(pullback)

    def training_vjp(self, params: Tree, x: Array[F]) -> tuple[Array[F], Tree, Pullback]:
        """Return logits, the batch's statistics for :meth:`update_running`, and the pullback of the logits.

        Batch statistics are used; the pullback is that of :meth:`forward_vjp`.
        """
        logits, statistics, pullback = _run(params, self._image(x), None, self._setting())
        return logits, statistics, _without_curvature(pullback)

    def update_running(self, running: Tree, statistics: Tree, *, momentum: float = 0.1) -> dict[str, Any]:
        """Return running statistics moved by ``momentum`` of the way to those of a batch."""

        def moved(old: Tree, new: Tree) -> dict[str, AnyArray]:
            mean, var = update_running_midpoint(
                old["mean"], old["var"], new["mean"], new["var"], self.curvature, momentum=momentum
            )
            return {"mean": mean, "var": var}

        pairs = zip(running["blocks"], statistics["blocks"], strict=True)
        return {
            "norm": moved(running["norm"], statistics["norm"]),
            "blocks": [{name: moved(old[name], new[name]) for name in old} for old, new in pairs],
        }

    def constrain(self, params: Tree) -> dict[str, Any]:
        """Return parameters whose gains are at least 0.001, for use after an optimizer's step."""

        def bounded(norm: Tree) -> dict[str, AnyArray]:
            gain = norm["gain"]
            return {**norm, "gain": np.maximum(gain, gain.dtype.type(SMALLEST_GAIN))}

        blocks = [
            {name: bounded(part) if name.startswith("norm") else part for name, part in block.items()}
            for block in params["blocks"]
        ]
        return {**params, "norm": bounded(params["norm"]), "blocks": blocks}

    def _setting(self) -> _Setting:
        return _Setting(self.curvature, self.order, self.eps, self.recompute, LAYERS)

    def _image(self, x: Any) -> AnyArray:
        image = _checks.float_array(x, "x", ndim=4)
        if image.dtype != np.dtype(self.dtype):
            _checks.fail_type("x", f"dtype {np.dtype(self.dtype)}", image.dtype)
        if image.shape[1] != self.channels_in:
            _checks.fail("x", f"shape (N, {self.channels_in}, H, W)", image.shape)
        return image

    def _init_conv(self, before: int, after: int, kernel: int, rng: np.random.Generator) -> dict[str, AnyArray]:
        if self.init_kind == "baseline":
            weight, bias = init_baseline(before * kernel**2, after, rng, dtype=self.dtype)
        else:
            weight, bias = init_conv2d_identity(
                before, after, kernel, identity=self.init_kind, keep_length=self.keep_length, dtype=self.dtype
            )
        return {"weight": weight, "bias": bias}

    def _init_norm(self, channels: int) -> dict[str, AnyArray]:
        return {"bias": np.zeros(channels, self.dtype), "gain": np.array(1.0, self.dtype)}


def _without_curvature(pullback: Pullback) -> Pullback:
    def back(dlogits: AnyArray) -> tuple[Tree, AnyArray, Tree]:
        dparams, dx, _, drunning = pullback(dlogits)
        return dparams, dx, drunning

    return back


def poincare_resnet(
    params: Tree,
    x: Array[F],
    curvature: float | Array[F],
    running: Tree = None,
    *,
    order: str = "fr",
    eps: float = DEFAULT_EPS,
    recompute: bool = False,
    ops: Any = LAYERS,
) -> Array[F]:
    """Return the logits of a Poincaré residual network.

    Parameters
    ----------
    params
        Tree as from :meth:`PoincareResNet.init`; it holds the architecture: a block with a shortcut has stride 2.
    x : array (N, C, H, W)
        Images: tangent vectors at the origin, pixel values of any size.
    curvature : float or 0-d array > 0
        Minus the sectional curvature of all balls.
    running, optional
        Running statistics, for inference. Without them every normalization uses the batch's.
    order : ``"fr"`` or ``"rf"``
        Order of the residual sum; see ``residual_add``.
    eps : float > 0
        Of the normalizations.
    recompute : bool
        Whether the pullback keeps the layers' arguments only, and runs the layers again.
    ops : object, optional
        Other implementations of the layers, with the attributes of ``LAYERS``.

    Returns
    -------
    array (N, classes), dtype of ``x``
        Tangent vectors at the origin: the logarithm of the last layer's points.

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype does not fit, or an option is out of range; the message names the layer's argument.

    References
    ----------
    van Spengler, Berkhout, Mettes (2023), arXiv 2303.14027, sections 3 and 4.

    Examples
    --------
    >>> network = PoincareResNet(channels=(2, 2, 2), blocks=(1, 1, 1), channels_in=1, classes=2)
    >>> params = network.init(np.random.default_rng(0))
    >>> poincare_resnet(params, np.ones((3, 1, 8, 8)), 0.1).shape
    (3, 2)
    """
    return poincare_resnet_vjp(params, x, curvature, running, order=order, eps=eps, recompute=recompute, ops=ops)[0]


def poincare_resnet_vjp(
    params: Tree,
    x: Array[F],
    curvature: float | Array[F],
    running: Tree = None,
    *,
    order: str = "fr",
    eps: float = DEFAULT_EPS,
    recompute: bool = False,
    ops: Any = LAYERS,
) -> tuple[Array[F], Pullback]:
    """Return :func:`poincare_resnet` and its pullback ``dlogits -> (dparams, dx, dcurvature, drunning)``.

    The last entry is ``None`` without running statistics. Parameters, errors and references are those of
    :func:`poincare_resnet`.
    """
    logits, _, pullback = _run(params, x, running, _Setting(curvature, order, eps, recompute, ops))
    return logits, pullback


@dataclass(frozen=True)
class _Setting:
    """What all layers of a network share."""

    curvature: Any
    order: str
    eps: float
    recompute: bool
    ops: Any

    def layer(self, f_vjp: Callable[..., tuple[Any, Pullback]], *args: Any, **options: Any) -> Any:
        """Call a layer; with ``recompute`` its pullback keeps the arguments only and runs the layer again."""
        y, pullback = f_vjp(*args, **options)
        if self.recompute:
            return y, lambda dy: f_vjp(*args, **options)[1](dy)
        return y, pullback


def _run(params: Tree, x: Any, running: Tree, to: _Setting) -> tuple[AnyArray, Tree, Pullback]:
    x = _checks.float_array(x, "x", ndim=4)
    given: Tree = running or {"norm": None, "blocks": [None] * len(params["blocks"])}
    y, back_exp = to.layer(to.ops.exp0_vjp, x, to.curvature, axis=1)
    y, back_conv = _conv(params["conv"], y, to)
    y, seen, back_norm = _norm(params["norm"], y, given["norm"], to)
    y, back_relu = to.layer(to.ops.relu_vjp, y, to.curvature, axis=1)
    statistics, backs = [], []
    for block, block_given in zip(params["blocks"], given["blocks"], strict=True):
        y, block_seen, back = _block(block, y, block_given, to)
        statistics.append(block_seen)
        backs.append(back)
    logits, back_head = _head(params["head"], y, to)

    def pullback(dlogits: AnyArray) -> tuple[Tree, AnyArray, AnyArray, Tree]:
        dy, dhead, dc = back_head(dlogits)
        dblocks: list[Tree] = []
        dblocks_running: list[Tree] = []
        for back in reversed(backs):
            dy, dblock, dblock_running, dc_block = back(dy)
            dblocks.insert(0, dblock)
            dblocks_running.insert(0, dblock_running)
            dc = dc + dc_block
        dy, dc_relu = back_relu(dy)
        dy, dnorm, dnorm_running, dc_norm = back_norm(dy)
        dy, dconv, dc_conv = back_conv(dy)
        dx, dc_exp = back_exp(dy)
        dparams = {"conv": dconv, "norm": dnorm, "blocks": dblocks, "head": dhead}
        drunning = {"norm": dnorm_running, "blocks": dblocks_running}
        dc = np.asarray(dc + dc_relu + dc_norm + dc_conv + dc_exp, dc.dtype)
        return dparams, dx, dc, None if running is None else drunning

    return logits, {"norm": seen, "blocks": statistics}, pullback


def _block(params: Tree, x: AnyArray, running: Tree, to: _Setting) -> tuple[AnyArray, Tree, Back]:
    running = running or {"norm1": None, "norm2": None}
    stride = 2 if "shortcut" in params else 1
    y, back_conv1 = _conv(params["conv1"], x, to, stride=stride)
    y, seen1, back_norm1 = _norm(params["norm1"], y, running["norm1"], to)
    y, back_relu1 = to.layer(to.ops.relu_vjp, y, to.curvature, axis=1)
    y, back_conv2 = _conv(params["conv2"], y, to)
    y, seen2, back_norm2 = _norm(params["norm2"], y, running["norm2"], to)
    skip, back_skip = _skip(params, x, to)
    y, back_add = to.layer(to.ops.residual_add_vjp, y, skip, to.curvature, order=to.order, axis=1)
    y, back_relu2 = to.layer(to.ops.relu_vjp, y, to.curvature, axis=1)

    def back(dy: AnyArray) -> tuple[AnyArray, Tree, Tree, AnyArray]:
        dy, dc_relu2 = back_relu2(dy)
        dy, dskip, dc_add = back_add(dy)
        dy, dnorm2, drunning2, dc_norm2 = back_norm2(dy)
        dy, dconv2, dc_conv2 = back_conv2(dy)
        dy, dc_relu1 = back_relu1(dy)
        dy, dnorm1, drunning1, dc_norm1 = back_norm1(dy)
        dx, dconv1, dc_conv1 = back_conv1(dy)
        # The input went two ways.
        dx_skip, dshortcut, dc_skip = back_skip(dskip)
        dparams = {"conv1": dconv1, "norm1": dnorm1, "conv2": dconv2, "norm2": dnorm2, **dshortcut}
        dc = dc_relu2 + dc_add + dc_norm2 + dc_conv2 + dc_relu1 + dc_norm1 + dc_conv1 + dc_skip
        return dx + dx_skip, dparams, {"norm1": drunning1, "norm2": drunning2}, dc

    return y, {"norm1": seen1, "norm2": seen2}, back


def _skip(params: Tree, x: AnyArray, to: _Setting) -> tuple[AnyArray, Back]:
    if "shortcut" not in params:
        return x, lambda dskip: (dskip, {}, np.zeros((), x.dtype))
    skip, back_conv = _conv(params["shortcut"], x, to, kernel=1, stride=2)

    def back(dskip: AnyArray) -> tuple[AnyArray, Tree, AnyArray]:
        dx, dconv, dc = back_conv(dskip)
        return dx, {"shortcut": dconv}, dc

    return skip, back


def _conv(params: Tree, x: AnyArray, to: _Setting, *, kernel: int = 3, stride: int = 1) -> tuple[AnyArray, Back]:
    weight, bias = params["weight"], params["bias"]
    options = {"kernel": kernel, "stride": stride, "padding": kernel // 2}
    y, pullback = to.layer(to.ops.conv2d_vjp, x, weight, bias, to.curvature, **options)

    def back(dy: AnyArray) -> tuple[AnyArray, Tree, AnyArray]:
        dx, dweight, dbias, dc = pullback(dy)
        return dx, {"weight": dweight, "bias": dbias}, dc

    return y, back


def _norm(params: Tree, x: AnyArray, running: Tree, to: _Setting) -> tuple[AnyArray, Tree, Back]:
    mean, var = (None, None) if running is None else (running["mean"], running["var"])
    (y, used), pullback = to.layer(
        _normalized, to.ops, x, params["bias"], params["gain"], to.curvature, mean, var, to.eps
    )

    def back(dy: AnyArray) -> tuple[AnyArray, Tree, Tree, AnyArray]:
        dx, dbias, dgain, dc, dmean, dvar = pullback(dy)
        return dx, {"bias": dbias, "gain": dgain}, {"mean": dmean, "var": dvar}, dc

    return y, {"mean": used[0], "var": used[1]}, back


def _normalized(
    ops: Any, x: AnyArray, bias: AnyArray, gain: AnyArray, curvature: Any, mean: Any, var: Any, eps: float
) -> tuple[Any, Pullback]:
    y, used, pullback = ops.normalize(x, bias, gain, curvature, mean, var, eps, True, True)
    return (y, used), pullback


def _head(params: Tree, x: AnyArray, to: _Setting) -> tuple[AnyArray, Back]:
    pooled, back_pool = to.ops.avg_pool2d_vjp(x, to.curvature, size=(x.shape[2], x.shape[3]))
    points, back_layer = to.ops.fully_connected_vjp(pooled[:, :, 0, 0], params["weight"], params["bias"], to.curvature)
    logits, back_log = to.ops.log0_vjp(points, to.curvature)

    def back(dlogits: AnyArray) -> tuple[AnyArray, Tree, AnyArray]:
        dpoints, dc_log = back_log(dlogits)
        dpooled, dweight, dbias, dc_layer = back_layer(dpoints)
        dx, dc_pool = back_pool(dpooled[:, :, None, None])
        return dx, {"weight": dweight, "bias": dbias}, dc_log + dc_layer + dc_pool

    return logits, back
