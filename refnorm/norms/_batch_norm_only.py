"""Training only the gains and biases of batch normalization, all other weights staying random.

x_hat = (x - mean) / sqrt(var + eps)          y = gain * x_hat + bias              (only gain and bias are trained)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback, Tree
from refnorm.nn import conv2d_vjp, linear_vjp, relu_vjp
from refnorm.norms._batch_statistics import batch_norm_vjp, batch_statistics, update_running_statistics
from refnorm.softmax import cross_entropy_vjp
from refnorm.solvers._protocol import zeros_like
from refnorm.tree import tree_map

METHOD = Method(
    title="Training BatchNorm and Only BatchNorm: On the Expressive Power of Random Features in CNNs",
    authors="Frankle, Schwab, Morcos",
    year=2020,
    arxiv="2003.00152",
    functions=(
        "BatchNormOnlyRun",
        "BatchNormState",
        "MaskedSGD",
        "MaskedSGDState",
        "RandomFeatureResNet",
        "batch_norm_eval",
        "batch_norm_train",
        "dead_relu_fraction",
        "disabled_fraction",
        "run_batch_norm_only",
        "trainable_mask",
    ),
    chapter="norms/batch_norm_only",
)

DISABLED_BELOW = 0.01
"""Size of a gain below which a feature counts as switched off."""

NORM_INITS = ("uniform", "fixed", "one_one", "positive_negative")
MODES = ("all", "bn", "output", "bn+output", "random_per_channel", "shortcut")


@dataclass(frozen=True)
class BatchNormState:
    """Running mean and variance of every channel.

    Parameters
    ----------
    mean, var : arrays (C,)
        0 and 1 before the first batch.

    Examples
    --------
    >>> BatchNormState.create(2)
    BatchNormState(mean=array([0., 0.]), var=array([1., 1.]))
    """

    mean: AnyArray
    var: AnyArray

    @classmethod
    def create(cls, channels: int, dtype: Any = np.float64) -> BatchNormState:
        """Return the state before the first batch."""
        channels = _checks.whole(channels, "channels", low=1)
        return cls(np.zeros(channels, dtype), np.ones(channels, dtype))


def batch_norm_train(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: BatchNormState,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Array[F], BatchNormState]:
    """Normalize channels over the batch and move the running statistics.

    Parameters
    ----------
    x : array (N, C, ...)
        Feature maps.
    gain, bias : arrays (C,)
    state : BatchNormState
        Before this batch.
    momentum : float in [0, 1]
        Weight of the batch in the running statistics.
    eps : float > 0
        Added to the variance.

    Returns
    -------
    y : array, shape and dtype of ``x``
    state : BatchNormState

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong, an option is out of range or a channel has fewer than two values.

    Notes
    -----
    ``batch_norm`` and ``update_running_statistics`` of this room in one step: biased variance in ``y``, unbiased
    in the running one. A channel of variance 0 gives the bias.

    References
    ----------
    Frankle, Schwab, Morcos (2020), arXiv 2003.00152, section 2.

    Examples
    --------
    >>> x, one, zero = np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1)
    >>> y, state = batch_norm_train(x, one, zero, BatchNormState.create(1))
    >>> y.ravel().round(4), state.mean, state.var
    (array([-1.,  1.]), array([0.2]), array([1.1]))
    """
    return batch_norm_train_vjp(x, gain, bias, state, momentum=momentum, eps=eps)[0]


def batch_norm_train_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: BatchNormState,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[tuple[Array[F], BatchNormState], Pullback]:
    """Return :func:`batch_norm_train` and its pullback ``dy -> (dx, dgain, dbias)``.

    The state takes no cotangent and gets none.
    """
    x = _checks.float_array(x, "x", min_ndim=2)
    places = (0, *range(2, x.ndim))
    y, back = batch_norm_vjp(x, gain, bias, axes=places, eps=eps)
    count = x.size // x.shape[1] if x.shape[1] else 0
    if count < 2:
        _checks.fail("x", "at least two values a channel", f"shape {x.shape}")
    statistics = batch_statistics(np.ascontiguousarray(x.real), places)
    running = update_running_statistics(state.mean, state.var, *statistics, count, momentum=momentum)
    return (y, BatchNormState(*running)), lambda dy: back(dy)[:3]


def batch_norm_eval(
    x: Array[F], gain: Array[F], bias: Array[F], state: BatchNormState, *, eps: float = 1e-5
) -> Array[F]:
    """Normalize channels by running statistics.

    Parameters
    ----------
    x : array (N, C, ...)
    gain, bias : arrays (C,)
    state : BatchNormState
    eps : float > 0

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`batch_norm_train`, or if a variance is negative.

    References
    ----------
    Frankle, Schwab, Morcos (2020), arXiv 2003.00152, section 2.

    Examples
    --------
    >>> state = BatchNormState(np.array([1.0]), np.array([4.0]))
    >>> batch_norm_eval(np.array([[5.0]]), np.ones(1), np.zeros(1), state, eps=1e-12)
    array([[2.]])
    """
    return batch_norm_eval_vjp(x, gain, bias, state, eps=eps)[0]


def batch_norm_eval_vjp(
    x: Array[F], gain: Array[F], bias: Array[F], state: BatchNormState, *, eps: float = 1e-5
) -> tuple[Array[F], Pullback]:
    """Return :func:`batch_norm_eval` and its pullback ``dy -> (dx, dgain, dbias)``."""
    x = _checks.float_array(x, "x", min_ndim=2)
    y, back = batch_norm_vjp(x, gain, bias, state.mean, state.var, axes=(0, *range(2, x.ndim)), eps=eps)
    return y, lambda dy: back(dy)[:3]


def trainable_mask(
    params: Mapping[str, AnyArray], mode: str, rng: np.random.Generator, *, k: int = 2
) -> dict[str, AnyArray]:
    """Say which entries of a network's parameters are trained.

    Parameters
    ----------
    params : dict of arrays
        Names as in :class:`RandomFeatureResNet`: ``.gain`` and ``.bias`` of norms, ``.conv`` of convolutions,
        ``output.weight`` and ``output.bias``, and ``shortcut`` in the names of shortcuts.
    mode : ``"all"``, ``"bn"``, ``"output"``, ``"bn+output"``, ``"random_per_channel"`` or ``"shortcut"``
        ``"bn"`` are all gains and biases of norms; ``"random_per_channel"`` are ``k`` weights of every output channel
        of every convolution, as many as ``"bn"`` has for ``k = 2``; ``"shortcut"`` are the shortcuts' convolutions
        and norms.
    rng : numpy.random.Generator
        Chooses the random weights.
    k : int >= 1

    Returns
    -------
    dict of boolean arrays

    Raises
    ------
    TypeError
        If ``k`` is not an integer or ``rng`` not a generator.
    ValueError
        If the mode is unknown, nothing fits it, or a filter has fewer than ``k`` entries.

    References
    ----------
    Frankle, Schwab, Morcos (2020), arXiv 2003.00152, sections 3 and 4.

    Examples
    --------
    >>> params = RandomFeatureResNet(width=4, depth=1).init(np.random.default_rng(0))
    >>> mask = trainable_mask(params, "bn", np.random.default_rng(0))
    >>> sum(int(m.sum()) for m in mask.values())
    24
    """
    _checks.one_of(mode, "mode", MODES)
    rng, k = _checks.generator(rng), _checks.whole(k, "k", low=1)
    mask = {}
    for name, array in params.items():
        of_output = name.startswith("output.")
        of_norm = not of_output and name.endswith((".gain", ".bias"))
        chosen = {
            "all": True,
            "bn": of_norm,
            "output": of_output,
            "bn+output": of_norm or of_output,
            "shortcut": "shortcut" in name,
            "random_per_channel": False,
        }[mode]
        mask[name] = np.full(array.shape, chosen)
        if mode == "random_per_channel" and name.endswith(".conv"):
            mask[name] = _some_of_each(array.shape, k, rng, name)
    if not any(m.any() for m in mask.values()):
        _checks.fail("mode", "one that trains at least one parameter", repr(mode))
    return mask


def _some_of_each(shape: tuple[int, ...], k: int, rng: np.random.Generator, name: str) -> AnyArray:
    """Choose ``k`` entries of every filter without replacement."""
    entries = int(np.prod(shape[1:]))
    if entries < k:
        _checks.fail("k", f"at most the {entries} weights of a filter of {name}", k)
    rank = rng.random((shape[0], entries)).argsort(axis=1).argsort(axis=1)
    return np.asarray((rank < k).reshape(shape))


@dataclass(frozen=True)
class MaskedSGDState:
    """The velocity of every parameter."""

    velocity: Tree


@dataclass(frozen=True)
class MaskedSGD:
    """Momentum SGD that moves the chosen entries only.

    Parameters
    ----------
    learning_rate : float > 0
    momentum : float in [0, 1)
    weight_decay : float >= 0
        Times the parameter is added to the gradient, of trained entries only.

    Raises
    ------
    ValueError
        If a number is outside its range.

    Notes
    -----
    ``velocity = momentum velocity + mask (grad + weight_decay param)``, ``param = param - learning_rate velocity``.
    Frozen entries stay equal, bit for bit.

    References
    ----------
    Frankle, Schwab, Morcos (2020), arXiv 2003.00152, appendix A.

    Examples
    --------
    >>> optimizer = MaskedSGD(learning_rate=0.5, momentum=0.0, weight_decay=0.0)
    >>> params, grads, mask = {"w": np.ones(2)}, {"w": np.ones(2)}, {"w": np.array([True, False])}
    >>> optimizer.step(params, grads, optimizer.init(params), mask)[0]
    {'w': array([0.5, 1. ])}
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        _checks.positive(self.learning_rate, "learning_rate")
        _checks.in_range(self.momentum, "momentum", 0, 1, closed="left")
        _checks.non_negative(self.weight_decay, "weight_decay")

    def init(self, params: Tree) -> MaskedSGDState:
        """Return the state before the first step."""
        return MaskedSGDState(zeros_like(params))

    def step(self, params: Tree, grads: Tree, state: MaskedSGDState, mask: Tree) -> tuple[Tree, MaskedSGDState]:
        """Return the parameters and the state after one step; ``mask`` has a boolean array for each parameter."""

        def accelerate(param: AnyArray, grad: AnyArray, velocity: AnyArray, chosen: AnyArray) -> AnyArray:
            for name, array in (("grads", grad), ("state.velocity", velocity), ("mask", chosen)):
                _checks.shape(np.asarray(array), name, param.shape)
            if np.asarray(chosen).dtype != bool:
                _checks.fail_type("mask", "boolean arrays", f"dtype {np.asarray(chosen).dtype}")
            pull = grad + self.weight_decay * param
            return np.asarray(np.where(chosen, self.momentum * velocity + pull, 0), dtype=param.dtype)

        velocity = tree_map(accelerate, params, grads, state.velocity, mask)
        moved = tree_map(
            lambda param, v, chosen: np.where(chosen, param - self.learning_rate * v, param), params, velocity, mask
        )
        return moved, MaskedSGDState(velocity)


def disabled_fraction(gain: Array[F], *, threshold: float = DISABLED_BELOW) -> float:
    """Return the share of gains that are nearly zero.

    Parameters
    ----------
    gain : array of any shape, not empty
    threshold : float > 0
        A smaller size counts as zero.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        If ``gain`` is neither float32 nor float64.
    ValueError
        If ``gain`` is empty or ``threshold <= 0``.

    References
    ----------
    Frankle, Schwab, Morcos (2020), arXiv 2003.00152, section 5.

    Examples
    --------
    >>> disabled_fraction(np.array([0.001, -0.5, 0.0, 2.0]))
    0.5
    """
    gain = _checks.float_array(gain, "gain")
    _checks.positive(threshold, "threshold")
    if not gain.size:
        _checks.fail("gain", "at least one entry", f"shape {gain.shape}")
    return float((np.abs(gain) < threshold).mean())


def dead_relu_fraction(activation: Array[F], *, share: float = 0.99) -> float:
    """Return the share of channels that are zero nearly always.

    Parameters
    ----------
    activation : array (N, C, ...)
        Outputs of a ReLU.
    share : float in [0, 1)
        A channel is dead if more than this share of its values is 0.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        If ``activation`` is neither float32 nor float64.
    ValueError
        If ``activation`` is empty or ``share`` is out of range.

    References
    ----------
    Frankle, Schwab, Morcos (2020), arXiv 2003.00152, section 5.

    Examples
    --------
    >>> dead_relu_fraction(np.array([[0.0, 1.0], [0.0, 0.0]]))
    0.5
    """
    activation = _checks.float_array(activation, "activation", min_ndim=2)
    _checks.not_empty(activation, "activation", range(activation.ndim))
    _checks.in_range(share, "share", 0, 1, closed="left")
    places = (0, *range(2, activation.ndim))
    return float(((activation <= 0).mean(axis=places) > share).mean())


Params = dict[str, AnyArray]
States = dict[str, BatchNormState]


@dataclass(frozen=True)
class RandomFeatureResNet:
    """A small residual network whose parameters are a flat dict.

    Parameters
    ----------
    width : int >= 1
        Channels of the first stage.
    depth : int >= 1
        Residual blocks a stage.
    classes : int >= 1
    stages : int >= 1
        From one stage to the next the width doubles and the image is halved, by a block with a stride of 2 and a
        shortcut of its own; three stages are the paper's networks for small images.
    norm_init : ``"uniform"``, ``"fixed"``, ``"one_one"`` or ``"positive_negative"``
        Gains uniform in (0, 1) with biases 0; 1 and 0; 1 and 1; or gains uniform in (-1, 1) with biases 0.
    inputs : int >= 1
        Channels of the images.

    Raises
    ------
    TypeError, ValueError
        If a number or the kind of initialization is not allowed.

    Notes
    -----
    conv - norm - ReLU; then blocks conv - norm - ReLU - conv - norm, plus the shortcut, ReLU; the mean over the
    image; a linear layer. Convolutions are 3 x 3 without bias, drawn with variance ``2 / fan_in``.

    References
    ----------
    Frankle, Schwab, Morcos (2020), arXiv 2003.00152, section 3; He et al. (2016), arXiv 1512.03385.

    Examples
    --------
    >>> model = RandomFeatureResNet(width=4, depth=1)
    >>> params = model.init(np.random.default_rng(0))
    >>> list(params)[:3]
    ['stem.conv', 'stem.gain', 'stem.bias']
    >>> logits, states = model.apply(params, model.init_states(), np.ones((2, 1, 8, 8)))
    >>> logits.shape
    (2, 10)
    """

    width: int = 16
    depth: int = 2
    classes: int = 10
    stages: int = 1
    norm_init: str = "uniform"
    inputs: int = 1

    def __post_init__(self) -> None:
        for name in ("width", "depth", "classes", "stages", "inputs"):
            _checks.whole(getattr(self, name), name, low=1)
        _checks.one_of(self.norm_init, "norm_init", NORM_INITS)

    def _layers(self) -> list[tuple[str, int, int, int, int]]:
        """Name, inputs, outputs, filter size and stride of every convolution with its norm, in order."""
        layers = [("stem", self.inputs, self.width, 3, 1)]
        before = self.width
        for stage in range(self.stages):
            width = self.width * 2**stage
            for block in range(self.depth):
                name, stride = f"stage{stage}.block{block}", 2 if stage and not block else 1
                layers += [(f"{name}.first", before, width, 3, stride), (f"{name}.second", width, width, 3, 1)]
                if before != width:
                    layers.append((f"{name}.shortcut", before, width, 1, stride))
                before = width
        return layers

    def init(self, rng: np.random.Generator, *, dtype: Any = np.float64) -> Params:
        """Draw all parameters."""
        rng = _checks.generator(rng)
        params: Params = {}
        outputs = self.width
        for name, inputs, outputs, size, _ in self._layers():
            std = np.sqrt(2 / (inputs * size * size))
            params[f"{name}.conv"] = std * rng.standard_normal((outputs, inputs, size, size))
            low = {"uniform": 0.0, "positive_negative": -1.0}.get(self.norm_init, 1.0)
            params[f"{name}.gain"] = rng.uniform(low, 1.0, outputs)
            params[f"{name}.bias"] = np.full(outputs, float(self.norm_init == "one_one"))
        params["output.weight"] = rng.standard_normal((outputs, self.classes)) / np.sqrt(outputs)
        params["output.bias"] = np.zeros(self.classes)
        return {name: array.astype(dtype) for name, array in params.items()}

    def init_states(self, *, dtype: Any = np.float64) -> States:
        """Return the running statistics of every norm before the first batch."""
        return {name: BatchNormState.create(outputs, dtype) for name, _, outputs, _, _ in self._layers()}

    def apply(self, params: Params, states: States, x: AnyArray, *, training: bool = True) -> tuple[AnyArray, States]:
        """Return logits (N, classes) of images (N, inputs, H, W), and the running statistics after them."""
        return self.apply_vjp(params, states, x, training=training)[0]

    def apply_vjp(
        self, params: Params, states: States, x: AnyArray, *, training: bool = True
    ) -> tuple[tuple[AnyArray, States], Pullback]:
        """Return :meth:`apply` and its pullback ``dlogits -> (dparams, dx)``."""
        strides = {name: (size, stride) for name, _, _, size, stride in self._layers()}
        after: States = {}

        def conv_norm(h: AnyArray, name: str) -> tuple[AnyArray, Callable[[AnyArray, Params], AnyArray]]:
            size, stride = strides[name]
            h, back_conv = conv2d_vjp(h, params[f"{name}.conv"], stride=stride, padding=size // 2)
            affine = params[f"{name}.gain"], params[f"{name}.bias"]
            if training:
                (h, after[name]), back_norm = batch_norm_train_vjp(h, *affine, states[name])
            else:
                h, back_norm = batch_norm_eval_vjp(h, *affine, states[name])
                after[name] = states[name]

            def pullback(dy: AnyArray, grads: Params) -> AnyArray:
                dh, grads[f"{name}.gain"], grads[f"{name}.bias"] = back_norm(dy)
                dh, grads[f"{name}.conv"], _ = back_conv(dh)
                return np.asarray(dh)

            return h, pullback

        def block(h: AnyArray, name: str) -> tuple[AnyArray, Callable[[AnyArray, Params], AnyArray]]:
            inner, back_first = conv_norm(h, f"{name}.first")
            inner, back_relu = relu_vjp(inner)
            inner, back_second = conv_norm(inner, f"{name}.second")
            straight, back_shortcut = h, None
            if f"{name}.shortcut" in strides:
                straight, back_shortcut = conv_norm(h, f"{name}.shortcut")
            y, back_sum = relu_vjp(inner + straight)

            def pullback(dy: AnyArray, grads: Params) -> AnyArray:
                # A sum copies its cotangent to both branches, and a copied input adds up what both return.
                (dsum,) = back_sum(dy)
                dinner = back_first(back_relu(back_second(dsum, grads))[0], grads)
                return dinner + (dsum if back_shortcut is None else back_shortcut(dsum, grads))

            return y, pullback

        h, back_stem = conv_norm(x, "stem")
        h, back_relu = relu_vjp(h)
        blocks = []
        for stage in range(self.stages):
            for number in range(self.depth):
                h, back = block(h, f"stage{stage}.block{number}")
                blocks.append(back)
        logits, back_output = linear_vjp(h.mean(axis=(2, 3)), params["output.weight"], params["output.bias"])
        shape = h.shape

        def pullback(dlogits: AnyArray) -> tuple[Params, AnyArray]:
            grads: Params = {}
            dpooled, grads["output.weight"], grads["output.bias"] = back_output(dlogits)
            dh = np.broadcast_to(dpooled[..., None, None] / (shape[2] * shape[3]), shape).astype(dpooled.dtype)
            for back in reversed(blocks):
                dh = back(dh, grads)
            dx = back_stem(back_relu(dh)[0], grads)
            return {name: grads[name] for name in params}, dx

        return (logits, after), pullback


@dataclass(frozen=True)
class BatchNormOnlyRun:
    """What :func:`run_batch_norm_only` measured.

    Parameters
    ----------
    train_accuracy, test_accuracy
        After training, with running statistics.
    disabled
        Share of gains below 0.01 in size.
    trained
        Number of trained entries.
    params, states
        The network after training.
    history
        Mean training loss of each epoch.
    """

    train_accuracy: float
    test_accuracy: float
    disabled: float
    trained: int
    params: Params
    states: States
    history: tuple[float, ...]


def run_batch_norm_only(
    rng: np.random.Generator,
    mode: str,
    x: Array[F],
    target: IntArray,
    x_test: Array[F],
    target_test: IntArray,
    *,
    model: RandomFeatureResNet | None = None,
    epochs: int = 20,
    batch_size: int = 64,
    optimizer: MaskedSGD | None = None,
    drop_after: float = 0.75,
    k: int = 2,
    callback: Callable[[int, float], Any] | None = None,
) -> BatchNormOnlyRun:
    """Train the chosen parameters of a random network and measure what comes of it.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws parameters, mask and batches.
    mode, k
        As in :func:`trainable_mask`.
    x, x_test : arrays (N, I, H, W)
        Images for training and for the test.
    target, target_test : integer arrays (N,)
        Classes.
    model : RandomFeatureResNet, optional
        ``RandomFeatureResNet(inputs=I)`` by default.
    epochs, batch_size : ints >= 1
        Only full batches are used.
    optimizer : MaskedSGD, optional
        ``MaskedSGD()`` by default.
    drop_after : float in [0, 1]
        Share of the epochs after which the learning rate is divided by 10.
    callback
        Called with each epoch's number and mean loss.

    Returns
    -------
    BatchNormOnlyRun

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type, shape or range.

    References
    ----------
    Frankle, Schwab, Morcos (2020), arXiv 2003.00152, section 3.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, target = rng.standard_normal((32, 1, 4, 4)), np.arange(32) % 2
    >>> model = RandomFeatureResNet(width=4, depth=1, classes=2)
    >>> run = run_batch_norm_only(rng, "bn", x, target, x, target, model=model, epochs=2, batch_size=16)
    >>> run.trained, len(run.history)
    (24, 2)
    """
    x, x_test = _checks.float_array(x, "x", ndim=4), _checks.float_array(x_test, "x_test", ndim=4)
    target = _checks.integer_array(target, "target", ndim=1, low=0)
    _checks.shape(target, "target", (len(x),))
    rng, epochs = _checks.generator(rng), _checks.whole(epochs, "epochs", low=1)
    batch_size = _checks.whole(batch_size, "batch_size", low=1, high=len(x))
    _checks.in_range(drop_after, "drop_after", 0, 1)
    model, optimizer = model or RandomFeatureResNet(inputs=x.shape[1]), optimizer or MaskedSGD()
    params, states = model.init(rng, dtype=x.dtype), model.init_states(dtype=x.dtype)
    mask = trainable_mask(params, mode, rng, k=k)
    state, history = optimizer.init(params), []
    slower = MaskedSGD(optimizer.learning_rate / 10, optimizer.momentum, optimizer.weight_decay)
    for epoch in range(epochs):
        now = optimizer if epoch < drop_after * epochs else slower
        order, losses = rng.permutation(len(x)), []
        for start in range(0, len(x) - batch_size + 1, batch_size):
            chosen = order[start : start + batch_size]
            (logits, states), network = model.apply_vjp(params, states, x[chosen])
            loss, back = cross_entropy_vjp(logits, target[chosen])
            grads, _ = network(back(np.ones((), x.dtype))[0])
            params, state = now.step(params, grads, state, mask)
            losses.append(float(loss))
        history.append(float(np.mean(losses)))
        if callback is not None:
            callback(epoch, history[-1])

    def accuracy(images: AnyArray, classes: IntArray) -> float:
        logits, _ = model.apply(params, states, images, training=False)
        return float((logits.argmax(axis=1) == classes).mean())

    gains = np.concatenate([array for name, array in params.items() if name.endswith(".gain")])
    return BatchNormOnlyRun(
        accuracy(x, target),
        accuracy(x_test, target_test),
        disabled_fraction(gains),
        sum(int(m.sum()) for m in mask.values()),
        params,
        states,
        tuple(history),
    )
