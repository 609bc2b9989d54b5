"""Truth for MgNO: hand calculations, and PyTorch's convolutions and autograd in float64."""

import dataclasses

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.solvers import MgNOLayer, MgNOParams, VCycleWeights

TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def draw(rng, outputs, inputs, size=3):
    return rng.standard_normal((outputs, inputs, size, size)) / np.sqrt(inputs * size * size)


def random_cycle(rng, c_f, c_u, geometry, down, up):
    """Kernels for the given numbers of smoothings a level."""
    between = range(len(down) - 1)
    return VCycleWeights(
        tuple(tuple(draw(rng, c_f, c_u) for _ in range(n - (level == 0))) for level, n in enumerate(down)),
        tuple(tuple(draw(rng, c_u, c_f) for _ in range(n)) for n in down),
        tuple(tuple(draw(rng, c_f, c_u) for _ in range(n)) for n in up),
        tuple(tuple(draw(rng, c_u, c_f) for _ in range(n)) for n in up),
        tuple(draw(rng, c_f, c_u) for _ in between),
        tuple(draw(rng, c_f, c_f) for _ in between),
        tuple(draw(rng, c_u, c_u) for _ in between),
        tuple(draw(rng, c_u, c_u, 4 if geometry == "even" else 3) for _ in between),
    )


def to_torch(tree, found):
    """The same tree with tensors, all of them also collected in order."""
    if isinstance(tree, tuple):
        return tuple(to_torch(item, found) for item in tree)
    if dataclasses.is_dataclass(tree):
        return type(tree)(*(to_torch(getattr(tree, f.name), found) for f in dataclasses.fields(tree)))
    found.append(torch.tensor(tree, requires_grad=True))
    return found[-1]


def conv(x, kernel, mode="zeros", stride=1, padding=1):
    if padding:
        x = torch.nn.functional.pad(x, (padding,) * 4, mode="constant" if mode == "zeros" else mode)
    return torch.nn.functional.conv2d(x, kernel, stride=stride)


def torch_cycle(f, w, mode, geometry, use_residual):
    levels, even = len(w.pre_smoothers), geometry == "even"
    transfer = {"mode": mode, "stride": 2, "padding": 1 if even else 0}
    u, sources, states = conv(f, w.pre_smoothers[0][0], mode), [f], []
    for level in range(levels):
        f = sources[level]
        for a, s in zip(w.pre_operators[level], w.pre_smoothers[level][1 if level == 0 else 0 :], strict=True):
            u = u + conv(f - conv(u, a, mode), s, mode)
        states.append(u)
        if level < levels - 1:
            down = f - conv(u, w.residual_operators[level], mode) if use_residual else f
            sources.append(conv(down, w.restrictions[level], **transfer))
            u = conv(u, w.state_restrictions[level], **transfer)
    for level in reversed(range(levels - 1)):
        up = torch.nn.functional.conv_transpose2d(u, w.prolongations[level], stride=2, padding=1 if even else 0)
        u = states[level] + up
        for a, s in zip(w.post_operators[level], w.post_smoothers[level], strict=True):
            u = u + conv(sources[level] - conv(u, a, mode), s, mode)
    return u


def run(function, trees, cotangent_rng):
    """Value, a cotangent, and the cotangents of all leaves; leaves that are not used have 0."""
    found = []
    value = function(*(to_torch(tree, found) for tree in trees))
    cotangent = cotangent_rng.standard_normal(tuple(value.shape))
    grads = torch.autograd.grad(value, found, torch.tensor(cotangent), allow_unused=True)
    arrays = [np.zeros(leaf.shape) if g is None else g.numpy() for g, leaf in zip(grads, found, strict=True)]
    return value.detach().numpy(), cotangent, tuple(arrays)


def cases():
    rng = np.random.default_rng(20231016)
    found = []

    def both(function, name, args, options, truth, *, values=True):
        value, cotangent, grads = run(truth, args, rng)
        common = {"function": f"solvers.{function}", "name": name, "args": args, "options": options, "source": TORCH}
        if values:
            found.append(GoldenCase(**common, expected=value, tolerance=Tolerance(1e-13, "relative_of_largest")))
        found.append(
            GoldenCase(**common, cotangent=cotangent, expected=grads, tolerance=Tolerance(1e-12, "relative_of_largest"))
        )

    for mode, stride, padding in (("zeros", 2, 1), ("circular", 1, 1), ("reflect", 1, 2)):
        both(
            "padded_conv2d",
            f"{mode}, stride {stride}, padding {padding}",
            (rng.standard_normal((2, 2, 5, 4)), draw(rng, 3, 2)),
            {"mode": mode, "stride": stride, "padding": padding},
            lambda x, k, m=mode, s=stride, p=padding: conv(x, k, m, s, p),
        )
    for size, padding in ((4, 1), (3, 0)):
        both(
            "conv_transpose2d",
            f"kernel {size}, padding {padding}",
            (rng.standard_normal((2, 2, 3, 4)), draw(rng, 2, 3, size)),
            {"padding": padding},
            lambda x, k, p=padding: torch.nn.functional.conv_transpose2d(x, k, stride=2, padding=p),
        )
    for geometry, mode, use_residual, side, down, up in (
        ("even", "zeros", True, 4, (1, 1), (1, 0)),
        ("odd", "zeros", True, 7, (1, 0, 1), (1, 0, 0)),
        ("odd", "circular", False, 7, (2, 0), (0, 0)),
    ):
        options = {"geometry": geometry, "mode": mode, "use_residual": use_residual}
        both(
            "vcycle",
            f"{geometry}, {mode}, residual {use_residual}",
            (rng.standard_normal((2, 1, side, side)), random_cycle(rng, 1, 2, geometry, down, up)),
            options,
            lambda f, w, m=mode, g=geometry, r=use_residual: torch_cycle(f, w, m, g, r),
            values=mode == "zeros",
        )

    def torch_layer(f, layer):
        bias = layer.bias[:, None, None] if layer.bias.ndim == 1 else layer.bias
        u = torch_cycle(f, layer.weights, "zeros", "even", True) + conv(f, layer.skip, padding=0) + bias
        return torch.nn.functional.gelu(u)

    def layer(c_f, bias):
        return MgNOLayer(random_cycle(rng, c_f, 2, "even", (1, 1), (1, 0)), draw(rng, 2, c_f, 1), bias)

    f = rng.standard_normal((2, 1, 4, 4))
    both("mgno_layer", "bias a channel", (f, layer(1, rng.standard_normal(2))), {}, torch_layer, values=False)
    params = MgNOParams(
        (layer(1, rng.standard_normal((2, 4, 4))), layer(2, rng.standard_normal((2, 4, 4)))), draw(rng, 1, 2, 1)
    )

    def torch_network(f, params):
        for one in params.layers:
            f = torch_layer(f, one)
        return conv(f, params.head, padding=0)

    both("mgno", "two layers, biases are functions", (f, params), {}, torch_network, values=False)

    point = np.zeros((1, 1, 3, 3))
    point[0, 0, 1, 1] = 1
    pixel = np.zeros((1, 1, 4, 4))
    pixel[0, 0, 1, 2] = 1
    found.append(
        GoldenCase(
            function="solvers.vcycle",
            name="two smoothings of a pixel by hand",
            args=(pixel, VCycleWeights(((point,),), ((2 * point, 2 * point),), ((),), ((),), (), (), (), ())),
            expected=0 * pixel,
            source="by hand: 2, then 2 + 2 (1 - 2)",
        )
    )
    return found
