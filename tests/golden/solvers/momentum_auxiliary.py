"""Truth for the momentum auxiliary network: hand calculations, and PyTorch with ``detach`` between the blocks."""

import itertools

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.solvers import LocalNet
from refnorm.tree import tree_leaves, tree_map

VERSION = f"torch {torch.__version__.split('+')[0]}, float64"


def draw(rng, sizes, per_block, classes, variant, window=None):
    """A network with random numbers everywhere, biases included."""

    def layer(inputs, outputs, window=window):
        shape = (inputs, outputs) if window is None else (outputs, inputs, window, window)
        return rng.standard_normal(shape) / np.sqrt(inputs), 0.2 * rng.standard_normal(outputs)

    layers = [layer(a, b) for a, b in itertools.pairwise(sizes)]
    blocks = [tuple(layers[i : i + per_block]) for i in range(0, len(layers), per_block)]
    ends = sizes[per_block::per_block]
    twins = [(ends[i], sizes[(i + 1) * per_block + 1]) for i in range(len(blocks) - 1)]
    seen = [a if variant == "greedy" else b for a, b in twins]
    heads = [(layer(width, 5, None), layer(5, classes, None)) for width in seen]
    return LocalNet(
        blocks=tuple(blocks),
        heads=(*heads, (layer(ends[-1], classes, None),)),
        learnable=tuple(layer(*t) for t in twins) if variant in ("man", "bias_only") else (),
        ema=tuple(layer(*t) for t in twins) if variant in ("man", "ema_only") else (),
    )


def torch_layer(z, layer, activate=True):
    weight, bias = layer
    if weight.ndim == 4:
        a = torch.nn.functional.conv2d(z, weight, bias, padding=weight.shape[-1] // 2)
    else:
        a = z @ weight + bias
    return torch.relu(a) if activate else a


def torch_run(net, x, target):
    net = tree_map(lambda a: torch.tensor(a, requires_grad=True), net)
    for _, leaf in tree_leaves(net.ema):
        leaf.requires_grad_(False)
    z, target, losses = torch.tensor(x), torch.tensor(target), []
    for number, block in enumerate(net.blocks):
        z = z.detach()
        for layer in block:
            z = torch_layer(z, layer)
        v = z
        twins = [t[number] for t in (net.learnable, net.ema) if number < len(t)]
        if twins:
            v = sum(torch_layer(z, twin) for twin in twins)
        v = v.mean(dim=(2, 3)) if v.ndim == 4 else v
        for layer in net.heads[number][:-1]:
            v = torch_layer(v, layer)
        logits = torch_layer(v, net.heads[number][-1], activate=False)
        losses.append(torch.nn.functional.cross_entropy(logits, target))
    sum(losses).backward()
    grads = [leaf.grad.numpy() for part in (net.blocks, net.heads, net.learnable) for _, leaf in tree_leaves(part)]
    return np.array([loss.item() for loss in losses]), grads, logits.detach().numpy()


def cases():
    rng = np.random.default_rng(20240708)
    one, half = ((np.array([[w]]), np.zeros(1)) for w in (1.0, 0.5))
    twins = {
        "function": "solvers.auxiliary_features",
        "name": "one unit by hand",
        "args": (np.array([[2.0]]), one, half),
        "source": "by hand",
        "tolerance": Tolerance(1, "ulp"),
    }
    found = [
        GoldenCase(**twins, expected=np.array([[3.0]])),
        GoldenCase(
            **twins,
            cotangent=np.ones((1, 1)),
            expected=(np.array([[1.5]]), (np.array([[2.0]]), np.ones(1)), (np.zeros((1, 1)), np.zeros(1))),
        ),
        GoldenCase(
            function="solvers.ema_update",
            name="by hand",
            args=(np.array([0.5]), np.array([1.0])),
            options={"momentum": 0.9},
            expected=np.array([0.55]),
            tolerance=Tolerance(2, "ulp"),
            source="by hand",
        ),
    ]
    for variant, sizes, per_block, window in (
        ("man", [4, 6, 5], 1, None),
        ("man", [3, 4, 4, 5, 4], 2, None),
        ("greedy", [4, 6, 5], 1, None),
        ("ema_only", [4, 6, 5], 1, None),
        ("bias_only", [4, 6, 5], 1, None),
        ("end_to_end", [4, 6, 5], 2, None),
        ("man", [2, 3, 4], 1, 3),
    ):
        net = draw(rng, sizes, per_block, 3, variant, window)
        x = rng.standard_normal((7, sizes[0]) if window is None else (3, sizes[0], 4, 5))
        target = rng.integers(3, size=len(x))
        losses, grads, logits = torch_run(net, x, target)
        name = f"{variant}, {len(net.blocks)} blocks of {per_block}{', images' if window else ''}"
        common = {"args": (net, x, target), "tolerance": Tolerance(1e-12, "relative_of_largest"), "source": VERSION}
        found.append(GoldenCase(function="solvers.local_grads", name=name, expected=(losses, grads, logits), **common))
        if variant == "man":
            found.append(GoldenCase(function="solvers.local_losses", name=name, expected=losses, **common))
            common["args"] = (net, x)
            found.append(GoldenCase(function="solvers.predict_local_net", name=name, expected=logits, **common))
    return found
