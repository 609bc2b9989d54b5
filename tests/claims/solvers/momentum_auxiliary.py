"""Evidence for the momentum auxiliary network: locality, memory, and what the learnable twin repairs."""

import functools
from dataclasses import replace

import numpy as np
from small_data import digits
from small_networks import batches

from refnorm.claims import Claim
from refnorm.solvers import activation_floats, init_local_net, local_grads, local_train_step, predict_local_net
from refnorm.tree import tree_leaves, tree_map

VARIANTS = ("end_to_end", "greedy", "bias_only", "man", "ema_only")
HEAD, BATCH, MOMENTUM = 32, 50, 0.99


class SGD:
    """Gradient descent with heavy-ball momentum, as an optimizer of the room."""

    def __init__(self, learning_rate, momentum=0.9):
        self.learning_rate, self.momentum = learning_rate, momentum

    def init(self, params):
        return tree_map(np.zeros_like, params)

    def step(self, params, grads, state):
        state = tree_map(lambda v, g: v if g is None else self.momentum * v + g, state, grads)
        return tree_map(lambda p, v: p - self.learning_rate * v, params, state), state


def train(variant, data, sizes, n_blocks, classes, *, learning_rate, epochs, seed):
    """Return the test error of the trained network."""
    x, target, x_test, target_test = data
    rng = np.random.default_rng(seed)
    net = init_local_net(rng, sizes, n_blocks, classes, variant=variant, head_hidden=HEAD)
    optimizer = SGD(learning_rate)
    state = optimizer.init(net)
    for batch in batches(rng, len(x), BATCH, epochs):
        net, state, _ = local_train_step(net, optimizer, state, x[batch], target[batch], momentum=MOMENTUM)
    return float((predict_local_net(net, x_test).argmax(axis=1) != target_test).mean())


def digit_data(seed, count=500):
    split = digits(test=597, seed=seed)
    return split.x[:count], split.target[:count], split.x_test, split.target_test


LAYERS, EPOCHS, RATE, SEEDS = 5, 25, 0.05, range(3)


def claims() -> list[Claim]:
    return [locality(), memory(), accuracy()]


def locality() -> Claim:
    rng = np.random.default_rng(0)
    net = init_local_net(rng, [64] * 6, 5, 10, head_hidden=HEAD)
    x, target = rng.standard_normal((20, 64)), rng.integers(10, size=20)
    _, before, _ = local_grads(net, x, target)
    worst = 0.0
    for number in range(4):
        moved = [
            tree_map(lambda a: a + rng.standard_normal(a.shape), block) if place > number else block
            for place, block in enumerate(net.blocks)
        ]
        _, after, _ = local_grads(replace(net, blocks=tuple(moved)), x, target)
        pairs = zip(tree_leaves(before.blocks[: number + 1]), tree_leaves(after.blocks[: number + 1]), strict=True)
        worst = max(worst, *(float(np.abs(a - b).max()) for (_, a), (_, b) in pairs))
    return Claim(
        statement="Within a step a block's gradient does not depend on the blocks behind it: changing all their "
        "weights at random changes nothing, so every block can be updated as soon as it has been run.",
        expected="largest change exactly 0",
        holds=worst == 0,
        figures={"largest change of a gradient": worst},
    )


def stored(variant, layers):
    net = init_local_net(np.random.default_rng(0), [64] * (layers + 1), layers, 10, variant=variant, head_hidden=HEAD)
    return activation_floats(net)


def memory() -> Claim:
    counts = {variant: stored(variant, 8) for variant in ("end_to_end", "man", "greedy")}
    ratio = counts["man"] / counts["end_to_end"]
    return Claim(
        statement="Local learning stores one block's activations at a time (8 layers of width 64, one a block).",
        expected="with both twins at most half of what end-to-end training stores",
        holds=ratio <= 0.5,
        figures={f"floats an example, {name}": count for name, count in counts.items()} | {"ratio": ratio},
    )


@functools.cache
def errors():
    return {
        variant: [
            train(
                variant, digit_data(seed), [64] * (LAYERS + 1), LAYERS, 10, learning_rate=RATE, epochs=EPOCHS, seed=seed
            )
            for seed in SEEDS
        ]
        for variant in VARIANTS
    }


def accuracy() -> Claim:
    mean = {variant: 100 * float(np.mean(runs)) for variant, runs in errors().items()}
    local = max(mean[variant] for variant in ("greedy", "bias_only", "man"))
    return Claim(
        statement="The running average alone is a bad glass to look through, and the learnable twin repairs it; with "
        "it, local learning is as good as end-to-end training (500 digits, five layers of 64, one a block, 250 steps).",
        expected="mean test error with both twins at least 5 points below that with the average alone; with both, with "
        "the learnable one and with none, at most 3 points above end-to-end training",
        holds=bool(mean["man"] <= mean["ema_only"] - 5 and local <= mean["end_to_end"] + 3),
        figures={f"mean test error in %, {variant}": value for variant, value in mean.items()},
    )


def figure():
    """Left: test errors of three runs. Right: numbers stored an example against the depth of the network."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    labels = {
        "end_to_end": "end to end",
        "greedy": "no twin",
        "bias_only": "learnable",
        "man": "both",
        "ema_only": "average",
    }
    for place, variant in enumerate(VARIANTS):
        runs = 100 * np.array(errors()[variant])
        left.plot(place + np.linspace(-0.15, 0.15, len(runs)), runs, "o", color=f"C{place}")
        left.plot([place - 0.3, place + 0.3], [runs.mean()] * 2, color=f"C{place}")
    left.set_xticks(range(5), [labels[variant] for variant in VARIANTS])
    left.set(ylabel="test error in %", ylim=(0, None), title="Digits, five blocks (line: mean)")
    depths = [1, 2, 4, 8, 16, 32]
    for place, variant in ((0, "end_to_end"), (3, "man"), (1, "greedy")):
        right.plot(depths, [stored(variant, depth) for depth in depths], "o-", color=f"C{place}", label=labels[variant])
    right.set(xscale="log", yscale="log", xlabel="layers of width 64, one a block", ylabel="floats an example")
    right.set_title("Stored at the worst moment")
    right.set_xticks(depths, depths)
    right.minorticks_off()
    right.legend()
    return fig
