"""Truth for the Poincaré ResNet: the network from textbook formulas in PyTorch, float64, with its autograd."""

import numpy as np
import torch
from discovery import TESTS, load

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.poincare import PoincareResNet
from refnorm.tree import tree_leaves, tree_map

textbook, normal, residual = (
    load(TESTS / "golden" / "poincare" / f"{name}.py") for name in ("conv2d", "batch_norm", "residual")
)


def network(params, x, c, running=None, order="fr", eps=1e-6):
    def conv(part, y, kernel=3, stride=1):
        return textbook.conv2d(y, part["weight"], part["bias"], c, kernel=kernel, stride=stride, padding=kernel // 2)

    def norm(part, y, given):
        statistics = () if given is None else (given["mean"], given["var"])
        return normal.batch_norm(y, part["bias"], part["gain"], c, *statistics, eps=eps)

    def last(function, *arrays):
        return function(*(array.movedim(1, -1) for array in arrays), c).movedim(-1, 1)

    y = last(lambda v, c: textbook.project(textbook.exp0(v, c), c), x)
    y = last(residual.relu, norm(params["norm"], conv(params["conv"], y), running and running["norm"]))
    for number, block in enumerate(params["blocks"]):
        given = running["blocks"][number] if running else {"norm1": None, "norm2": None}
        shrinks = "shortcut" in block
        f = norm(block["norm1"], conv(block["conv1"], y, stride=2 if shrinks else 1), given["norm1"])
        f = norm(block["norm2"], conv(block["conv2"], last(residual.relu, f)), given["norm2"])
        skip = conv(block["shortcut"], y, kernel=1, stride=2) if shrinks else y
        pair = (f, skip) if order == "fr" else (skip, f)
        y = last(residual.relu, last(normal.mobius_add, *pair))
    pooled = textbook.project(textbook.exp0(textbook.log0(y.movedim(1, -1), c).mean((1, 2)), c), c)
    head = textbook.fully_connected(pooled, params["head"]["weight"], params["head"]["bias"], c)
    return textbook.log0(textbook.project(head, c), c)


def cases():
    found = []
    for seed, (blocks, c, order, inference) in enumerate((((1, 1, 1), 0.5, "fr", False), ((1, 1, 1), 0.1, "rf", True))):
        rng = np.random.default_rng(20231002 + seed)
        config = PoincareResNet(
            channels=(2, 3, 4), blocks=blocks, channels_in=1, classes=3, curvature=c, init_kind="baseline"
        )
        params, running = config.init(rng), config.init_running() if inference else None
        # Away from initialization, so that every parameter matters.
        params = tree_map(lambda leaf: moved(leaf, rng), params)  # noqa: B023
        if inference:
            running = tree_map(lambda leaf: moved(leaf, rng), running)  # noqa: B023
        x = rng.standard_normal((2, 1, 6, 6))
        found += differentiated(params, x, c, running, order, rng, f"{sum(blocks)} blocks, {order}")
    return found


def moved(leaf, rng):
    if leaf.ndim == 2:
        return 2 * leaf + 0.1 * rng.standard_normal(leaf.shape)
    return leaf + 0.1 * rng.standard_normal(leaf.shape) if leaf.ndim else np.asarray(leaf * rng.uniform(0.5, 1.5))


def differentiated(params, x, c, running, order, rng, name):
    def tensor(leaf):
        return torch.tensor(np.asarray(leaf), dtype=torch.float64, requires_grad=True)

    args = [tree_map(tensor, params), tensor(x), tensor(c), running and tree_map(tensor, running)]
    logits = network(*args, order=order)
    cotangent = rng.standard_normal(tuple(logits.shape))
    given = args if running else args[:3]
    leaves = [leaf for _, leaf in tree_leaves(given)]
    slopes = iter(torch.autograd.grad(logits, leaves, torch.tensor(cotangent)))
    expected = tuple(tree_map(lambda _: next(slopes).numpy(), arg) for arg in given)
    common = {
        "function": "poincare.poincare_resnet",
        "name": f"{name}, {'inference' if running else 'training'}",
        "args": (params, x, c, running) if running else (params, x, c),
        "options": {"order": order},
        "source": f"torch {torch.__version__.split('+')[0]} autograd of the textbook formulas, float64",
    }
    return [
        GoldenCase(**common, expected=logits.detach().numpy(), tolerance=Tolerance(1e-12, "relative_of_largest")),
        GoldenCase(**common, cotangent=cotangent, expected=expected, tolerance=Tolerance(2e-12, "relative_of_largest")),
    ]
