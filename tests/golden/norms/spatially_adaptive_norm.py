"""Truth for spatially adaptive normalization: hand calculations, SciPy, PyTorch in float64."""

from dataclasses import make_dataclass

import numpy as np
import scipy.signal
import torch
from torch.nn.functional import batch_norm, conv2d, group_norm, instance_norm, interpolate, relu, silu

from refnorm.conformance import GoldenCase, Tolerance

TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
BLOCK = ["first", "first_weight", "first_bias", "second", "second_weight", "second_bias"]
Block = make_dataclass("SpadeBlockParams", [*BLOCK, "time_weight", "shortcut_weight", "shortcut_bias"])
NORMS = {
    "group": lambda x, groups: group_norm(x, groups, eps=1e-3),
    "batch": lambda x, groups: batch_norm(x, None, None, training=True, eps=1e-3),
    "instance": lambda x, groups: instance_norm(x, eps=1e-3),
}


def torch_spade(x, condition, w0, b0, w1, b1, w2, b2, norm="group", groups=2, activation=silu):
    if condition.shape[2:] != x.shape[2:]:
        condition = interpolate(condition, x.shape[2:], mode="nearest")
    hidden = activation(conv2d(condition, w0, b0, padding=1))
    gain, bias = conv2d(hidden, w1, b1, padding=1), conv2d(hidden, w2, b2, padding=1)
    return NORMS[norm](x, groups) * (1 + gain) + bias


def torch_resblock(x, condition, params, time):
    def half(h, name):
        spade = torch_spade(h, condition, *params[name])
        return conv2d(silu(spade), params[f"{name}_weight"], params[f"{name}_bias"], padding=1)

    h = half(x, "first")
    if time is not None:
        h = h + (time @ params["time_weight"])[:, :, None, None]
    straight = x if params["shortcut_weight"] is None else conv2d(x, params["shortcut_weight"], params["shortcut_bias"])
    return straight + half(h, "second")


def cases():
    rng = np.random.default_rng(240708209)
    found = []

    def add(function, name, args, expected, tolerance, source=TORCH, **more):
        found.append(
            GoldenCase(
                function=f"norms.{function}",
                name=name,
                args=args,
                expected=expected,
                tolerance=tolerance,
                source=source,
                **more,
            )
        )

    maps = (np.array([-1.0, 1.0]), np.array([0.5, -0.5]), np.array([1.0, 2.0]))
    add("spade_modulate", "two pixels", maps, np.array([-0.5, 2.5]), Tolerance(1, "ulp"), "by hand")
    add(
        "spade_modulate",
        "two pixels",
        maps,
        (np.array([1.5, 0.5]), np.array([-1.0, 1.0]), np.array([1.0, 1.0])),
        Tolerance(1, "ulp"),
        "by hand",
        cotangent=np.array([1.0, 1.0]),
    )
    # The condition is 1 at every pixel of a 1 x 2 image and the filters have one pixel: silu(1) = 1 / (1 + 1/e) in
    # the hidden layer; gain map 2 silu(1), bias map 3.
    gate = 1 / (1 + np.exp(-1.0))
    filters = (np.array([1.0, 2.0, 0.0]).reshape(3, 1, 1, 1, 1), np.array([[0.0], [0.0], [3.0]]))
    weights = [a for pair in zip(*filters, strict=True) for a in pair]
    add(
        "spade",
        "filters of one pixel",
        (np.array([[[[-1.0, 1.0]]]]), np.ones((1, 1, 1, 2)), *weights),
        np.array([[[[3 - (1 + 2 * gate), 3 + (1 + 2 * gate)]]]]),
        Tolerance(4, "ulp"),
        "by hand",
        options={"groups": 1, "eps": 1e-300},
    )
    # Hidden weights zero and hidden bias 1, one channel, so both maps come from a constant image with a zero margin.
    w1, w2 = rng.standard_normal((2, 1, 1, 3, 3))
    x = np.array([[[[-1.0, 1.0, 1.0], [1.0, -1.0, -1.0]]]])
    constant = np.full((2, 3), gate)
    gain_map, bias_map = (scipy.signal.correlate2d(constant, w[0, 0], mode="same") for w in (w1, w2))
    add(
        "spade",
        "maps from one hidden channel",
        (x, np.zeros((1, 1, 2, 3)), np.zeros((1, 1, 3, 3)), np.ones(1), w1, np.zeros(1), w2, np.zeros(1)),
        (x[0, 0] * (1 + gain_map) + bias_map)[None, None],
        Tolerance(1e-14, "relative_of_largest"),
        f"scipy {scipy.__version__}: correlate2d",
        options={"groups": 1, "eps": 1e-300},
    )
    limit = Tolerance(1e-12, "relative_of_largest")
    settings = (
        ("group", 2, "silu", (3, 4)),
        ("group", 1, "silu", (2, 3)),
        ("batch", 1, "relu", (3, 4)),
        ("instance", 1, "relu", (6, 8)),
    )
    for norm, groups, activation, size in settings:
        shapes = ((2, 4, 3, 4), (2, 2, *size), (3, 2, 3, 3), (3,), (4, 3, 3, 3), (4,), (4, 3, 3, 3), (4,))
        arrays = tuple(rng.standard_normal(s) for s in shapes)
        cotangent = rng.standard_normal(shapes[0])
        tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        value = torch_spade(*tensors, norm, groups, {"silu": silu, "relu": relu}[activation])
        value.backward(torch.tensor(cotangent))
        options = {"norm": norm, "groups": groups, "activation": activation, "eps": 1e-3}
        options["resize"] = None if size == (3, 4) else "nearest"
        name = f"{norm}, {groups} groups, {activation}, condition {size}"
        add("spade", name, arrays, value.detach().numpy(), limit, options=options)
        grads = tuple(t.grad.numpy() for t in tensors)
        add("spade", name, arrays, grads, limit, options=options, cotangent=cotangent)

    shapes = ((2, 3, 2, 3), (2, 4, 2, 3), (3, 4, 1, 1), (3,))
    arrays = tuple(rng.standard_normal(s) for s in shapes)
    cotangent = rng.standard_normal(shapes[0])
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    value = tensors[0] + conv2d(*tensors[1:])
    value.backward(torch.tensor(cotangent))
    add("zero_conv_add", "one by one", arrays, value.detach().numpy(), limit)
    add("zero_conv_add", "one by one", arrays, tuple(t.grad.numpy() for t in tensors), limit, cotangent=cotangent)
    for outputs, time_features in ((4, 0), (6, 3)):
        x, condition = rng.standard_normal((2, 4, 3, 4)), rng.standard_normal((2, 2, 3, 4))
        time = rng.standard_normal((2, time_features)) if time_features else None
        params = {}
        for half, channels in (("first", 4), ("second", outputs)):
            sizes = ((3, 2, 3, 3), (3,), (channels, 3, 3, 3), (channels,), (channels, 3, 3, 3), (channels,))
            params[half] = tuple(rng.standard_normal(s) for s in sizes)
            params[f"{half}_weight"] = rng.standard_normal((outputs, channels, 3, 3))
            params[f"{half}_bias"] = rng.standard_normal(outputs)
        params["time_weight"] = rng.standard_normal((time_features, outputs)) if time_features else None
        wider = outputs != 4
        params["shortcut_weight"] = rng.standard_normal((outputs, 4, 1, 1)) if wider else None
        params["shortcut_bias"] = rng.standard_normal(outputs) if wider else None
        block, leaves = Block(**params), []

        def leaf(array, leaves=leaves):
            if array is None:
                return None
            if isinstance(array, tuple):
                return [leaf(part) for part in array]
            leaves.append(torch.tensor(array, requires_grad=True))
            return leaves[-1]

        inputs = [leaf(array) for array in (x, condition)]
        value = torch_resblock(*inputs, {name: leaf(array) for name, array in params.items()}, leaf(time))
        cotangent = rng.standard_normal(value.shape)
        value.backward(torch.tensor(cotangent))
        args, options = (x, condition, block, time), {"groups": 2, "eps": 1e-3}
        name = f"{outputs} channels, {time_features} features of time"
        add("spade_resblock", name, args, value.detach().numpy(), limit, options=options)
        grads = tuple(t.grad.numpy() for t in leaves)
        add("spade_resblock", name, args, grads, limit, options=options, cotangent=cotangent)
    return found
