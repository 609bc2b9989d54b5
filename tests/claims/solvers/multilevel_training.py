"""Evidence for multi-level training: functions that are kept, symmetries that stay, and a warm start."""

import functools

import numpy as np
from small_data import digits
from small_networks import mlp_init, mlp_loss_and_grads, mlp_vjp

from refnorm.attention import multi_head_attention
from refnorm.claims import Claim
from refnorm.norms import layer_norm
from refnorm.softmax import cross_entropy
from refnorm.solvers import (
    AdamP,
    WidthPlan,
    coalesce,
    decoalesce,
    interpolate,
    mlp_width_plan,
    pair_scheme,
    vcycle_train,
)
from refnorm.tree import tree_leaves, tree_map

SIZES, BATCH, STEPS, SEEDS = (64, 128, 128, 10), 64, 300, range(3)
RATE, EVERY, ALPHAS = 1e-3, 10, (0.5, 1.0)


@functools.cache
def data(seed):
    split = digits(test=597, seed=seed, scale=4.0)
    return split.x, split.target


def trainer(seed):
    """Adam from a fresh state on batches of digits; reported is the loss on all training data, every ``EVERY`` steps."""
    x, target = data(seed)

    def train(params, steps, rng):
        # A threshold of 0, but for the smallest number, takes the projection out of AdamP: Adam is left.
        optimizer = AdamP(learning_rate=RATE, delta=5e-324)
        state, losses = optimizer.init(params), []
        for step in range(1, steps + 1):
            rows = rng.integers(len(x), size=BATCH)
            _, grads = mlp_loss_and_grads(params, x[rows], target[rows])
            params, state = optimizer.step(params, grads, state)
            if step % EVERY == 0 or step == 1:
                loss = float(cross_entropy(mlp_vjp(params, x)[0], target))
            losses.append(loss)
        return params, losses

    return train


@functools.cache
def plain(seed):
    """Losses of training the big network alone, and its parameters at the start."""
    params = mlp_init(np.random.default_rng(seed), SIZES)
    return np.array(trainer(seed)(params, STEPS, np.random.default_rng(seed + 1000))[1]), params


@functools.cache
def warm_start(seed, alpha):
    """Return the result of a V-cycle in which the big network, too, has all its steps in the end."""
    params = plain(seed)[1]
    steps = (STEPS // 20, 9 * STEPS // 20, STEPS)
    rng = np.random.default_rng(seed + 1000)
    return vcycle_train(params, mlp_width_plan(params), trainer(seed), rng=rng, steps=steps, alpha=alpha)


def outcome(seed, alpha):
    """Part of the plain steps after which its final loss is reached, and the ratio of final losses."""
    goal, found = plain(seed)[0][-1], warm_start(seed, alpha).history["loss"][-STEPS:]
    reached = np.flatnonzero(found <= goal)
    return (float(reached[0] + 1) / STEPS if len(reached) else np.inf), float(found[-1] / goal)


def claims() -> list[Claim]:
    return [preservation(), symmetry(), savings()]


STREAM, HEAD, HEADS = 6, 3, 2


def attention_plan():
    """Plan for a block with twice the stream and twice the heads: heads move as a whole."""
    stream, heads = pair_scheme(2 * STREAM), pair_scheme(2 * HEADS * HEAD, block=HEAD, near=True)
    width = 2 * HEADS * HEAD
    thrice = [tuple(i + part * width for i in pair) for part in range(3) for pair in heads]
    averaged = ("average", stream)
    return WidthPlan(
        {
            "weight_in": (("sum", stream), ("average", thrice)),
            "bias_in": (("average", thrice),),
            "weight_out": (("sum", heads), averaged),
            "bias_out": (averaged,),
            "gain": (averaged,),
            "bias": (averaged,),
        },
        normalized=True,
    ), stream


def attention_block(params, x, heads):
    mixed = multi_head_attention(
        x, params["weight_in"], params["bias_in"], params["weight_out"], params["bias_out"], heads=heads
    )
    return layer_norm(x + mixed, params["gain"], params["bias"])


def largest(left, right):
    pairs = zip(tree_leaves(left), tree_leaves(right), strict=True)
    return max(float(np.abs(a - b).max()) for (_, a), (_, b) in pairs)


def preservation() -> Claim:
    rng = np.random.default_rng(0)
    big = mlp_init(rng, (20, 64, 64, 10))
    plan = mlp_width_plan(big)
    small = [(w, b + rng.standard_normal(b.shape)) for w, b in coalesce(big, plan)]
    x = rng.standard_normal((30, 20))
    grown = decoalesce(small, plan)
    network = float(np.abs(mlp_vjp(small, x)[0] - mlp_vjp(grown, x)[0]).max())
    back = largest(coalesce(grown, plan), small)

    width = HEADS * HEAD
    shapes = {"weight_in": (STREAM, 3 * width), "bias_in": (3 * width,), "weight_out": (width, STREAM)}
    shapes |= dict.fromkeys(("bias_out", "gain", "bias"), (STREAM,))
    block = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    plan, stream = attention_plan()
    sequence = rng.standard_normal((2, 7, STREAM))
    copied = np.empty((2, 7, 2 * STREAM))
    for index, pair in enumerate(stream):
        copied[..., list(pair)] = sequence[..., index : index + 1]
    few = attention_block(block, sequence, HEADS)
    many = attention_block(decoalesce(block, plan), copied, 2 * HEADS)
    attention = max(float(np.abs(many[..., [a, b]] - few[..., i : i + 1]).max()) for i, (a, b) in enumerate(stream))
    return Claim(
        statement="Growing in width keeps the function: of a multilayer perceptron, and of an attention block with "
        "normalization that goes from two heads to four; shrinking what was grown gives the small network back.",
        expected="largest change of an output below 1e-12; of a weight below 1e-15",
        holds=network < 1e-12 and attention < 1e-12 and back < 1e-15,
        figures={
            "perceptron, largest change of an output": network,
            "attention block, largest change of an output": attention,
            "largest change of a weight after growing and shrinking": back,
        },
    )


def descend(params, steps=50, rate=0.1):
    x, target = data(0)
    for step in range(steps):
        rows = slice(64 * step % 1024, 64 * step % 1024 + 64)
        _, grads = mlp_loss_and_grads(params, x[rows], target[rows])
        params = tree_map(lambda p, g: p - rate * g, params, grads)
    return params


def symmetry() -> Claim:
    rng = np.random.default_rng(0)
    big = mlp_init(rng, (64, 32, 32, 10))
    plan = mlp_width_plan(big)
    grown = decoalesce(coalesce(big, plan), plan)
    apart = {}
    for alpha in (1.0, 0.5):
        weight = descend(interpolate(big, grown, alpha))[0][0]
        apart[alpha] = float(np.abs(weight[:, :16] - weight[:, 16:]).max())
    return Claim(
        statement="Copies of a neuron have the same gradient and stay copies for ever; blending with the old weights "
        "sets them free (50 steps of gradient descent on digits).",
        expected="copies differ by less than 1e-10 from the grown network, by more than 0.001 from the blend",
        holds=apart[1.0] < 1e-10 and apart[0.5] > 1e-3,
        figures={f"largest difference of copies, alpha {alpha:g}": value for alpha, value in apart.items()},
    )


def savings() -> Claim:
    found = {alpha: np.median([outcome(seed, alpha) for seed in SEEDS], axis=0) for alpha in ALPHAS}
    needed, ratio = found[0.5]
    figures = {f"steps needed / plain steps, alpha {a:g}": float(v[0]) for a, v in found.items()}
    figures |= {f"final loss / plain final loss, alpha {a:g}": float(v[1]) for a, v in found.items()}
    return Claim(
        statement="After a V-cycle through a network of half the width, the big network needs fewer steps to the loss of "
        "plain training and ends lower after as many (digits, hidden layers of 128, 300 steps of Adam, 15 and 135 "
        "steps before).",
        expected="at alpha 0.5, medians of three seeds: at most as many steps, final loss at most 0.9 of the plain one",
        holds=bool(needed <= 1.0 and ratio <= 0.9),
        figures=figures,
    )


def figure():
    """Left: training loss against the steps of the big network. Right: the same against the cost of all steps."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    for seed in SEEDS:
        alone, params = plain(seed)
        result = warm_start(seed, 0.5)
        size = sum(w.size + b.size for w, b in params)
        steps = np.arange(1, STEPS + 1)
        first = seed == SEEDS[0]
        left.plot(steps, alone, "--", color=f"C{seed}", label="plain" if first else None)
        left.plot(
            steps, result.history["loss"][-STEPS:], color=f"C{seed}", label="after the V-cycle" if first else None
        )
        right.plot(steps, alone, "--", color=f"C{seed}")
        right.plot(result.history["cost"] / size, result.history["loss"], color=f"C{seed}")
    left.set(xlabel="steps of the big network", ylabel="training loss", yscale="log", title="Big network only")
    right.set(xlabel="cost of all steps, in steps of the big network", title="Everything counted")
    left.legend()
    return fig
