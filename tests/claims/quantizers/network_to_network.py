"""Evidence for N2N learning: an unbiased gradient, a search that finds good masks and one that cannot, real students."""

import functools
import itertools

import numpy as np
from small_data import digits
from small_networks import accuracy, batches, mlp_init, mlp_loss_and_grads, mlp_vjp

from refnorm.claims import Claim
from refnorm.quantizers import RemovalPolicy, count_params, n2n_search, reinforce_search
from refnorm.quantizers._descent import Descent
from refnorm.tree import tree_leaves, tree_map

SEEDS = range(5)
COSTS = np.array([8, 1, 8, 1, 8, 1, 8, 1])
TEACHER, ITERATIONS, ROLLOUTS = (64, 128, 128, 128, 10), 8, 3


def claims() -> list[Claim]:
    return [unbiased(), bandit(), identical(), students()]


def masks(layers: int):
    return np.array(list(itertools.product((0, 1), repeat=layers)))


def surrogate(costs, keep) -> float:
    """Reward of a network whose accuracy falls by a quarter when fewer than three layers are left; no training."""
    if not keep.any():
        return -1.0
    compression = 1 - (costs @ keep) / costs.sum()
    return float(compression * (2 - compression) * (1 if keep.sum() >= 3 else 0.75))


def unbiased() -> Claim:
    """Compare the sampled gradient with differences of the expected reward over all 8 masks."""
    worst, n = 0.0, 20000
    every = masks(3)
    rewards = np.array([surrogate(np.array([8, 1, 4]), keep) for keep in every])
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        policy, x = RemovalPolicy.init(rng, 2), rng.standard_normal((3, 2))
        counts = np.bincount(policy.sample(x, rng, n_rollouts=n) @ [4, 2, 1], minlength=8)
        for _ in range(3):
            along = tree_map(lambda leaf: rng.standard_normal(leaf.shape), policy.params)  # noqa: B023

            def expected(step, policy=policy, along=along, x=x):
                moved = tree_map(lambda leaf, v: leaf + step * v, policy.params, along)
                return float(np.exp(RemovalPolicy(moved).log_prob(x, every)) @ rewards)

            exact = (expected(1e-5) - expected(-1e-5)) / 2e-5
            _, pullback = policy.log_prob_vjp(x, every)
            slopes = np.array([dot(pullback(row)[0], along) for row in np.eye(8)])
            terms = rewards * slopes
            mean = counts @ terms / n
            error = np.sqrt(counts @ (terms - mean) ** 2 / n / n)
            worst = max(worst, abs(mean - exact) / error)
    return Claim(
        statement="Reward times the gradient of the log-probability is, on average, the gradient of the expected reward "
        "(three layers, 20 000 rollouts, three random directions in the parameters).",
        expected="within 4 standard errors of differences of the expected reward on each of 5 seeds",
        holds=bool(worst <= 4),
        figures={"largest difference, standard errors": float(worst)},
    )


def dot(left, right) -> float:
    return sum(float((a * b).sum()) for (_, a), (_, b) in zip(tree_leaves(left), tree_leaves(right), strict=True))


def run_bandit(seed: int, costs, x):
    rng = np.random.default_rng(seed)
    policy = RemovalPolicy.init(rng, x.shape[1])
    return reinforce_search(
        policy, x, lambda keep, _: surrogate(costs, keep), n_iter=150, rng=rng, learning_rate=1e-2
    ).history


@functools.cache
def different(seed: int):
    """Eight layers of unlike size, which the policy can tell apart."""
    return run_bandit(seed, COSTS, np.column_stack([np.roll(COSTS, 1), COSTS]) / 8)["mean_reward"]


def optimum(costs) -> float:
    return max(surrogate(costs, keep) for keep in masks(len(costs)))


def bandit() -> Claim:
    best = optimum(COSTS)
    rewards = [different(seed) for seed in SEEDS]
    share = [r[-20:].mean() / best for r in rewards]
    gain = [r[-20:].mean() / r[:20].mean() for r in rewards]
    return Claim(
        statement="Where layers differ, the removal policy learns which to drop: the mean reward comes near the best of "
        "all 256 masks.",
        expected="last 20 of 150 iterations: at least 0.9 of the optimum, 1.15 times the first 20, on each of 5 seeds",
        holds=min(share) >= 0.9 and min(gain) >= 1.15,
        figures={
            "reward of the best mask": best,
            "smallest share of it at the end": float(min(share)),
            "smallest gain over the beginning": float(min(gain)),
        },
    )


def identical() -> Claim:
    costs = np.ones(8, int)
    best = optimum(costs)
    share = [run_bandit(seed, costs, np.ones((8, 2)))["mean_reward"][-20:].mean() / best for seed in SEEDS]
    return Claim(
        statement="Where layers look alike, the removal policy finds the best of all 256 masks as well.",
        expected="last 20 of 150 iterations: at least 0.9 of the optimum on each of 5 seeds",
        holds=min(share) >= 0.9,
        refuted="layers with the same code get nearly the same probability, and independent draws scatter around the "
        "best number of layers",
        figures={
            "reward of the best mask": best,
            "smallest share of it at the end": float(min(share)),
            "largest share of it at the end": float(max(share)),
        },
    )


def train(sizes, data, seed: int, epochs: int, teacher=None):
    """Fit labels, or the teacher's logits by their mean squared difference; return logits of the test set and the net."""
    rng = np.random.default_rng(seed)
    params = mlp_init(rng, sizes)
    names = [f"{kind}{i}" for i in range(len(params)) for kind in ("weight", "bias")]
    descent = Descent(dict.fromkeys(names, 3e-3))
    for index in batches(rng, len(data.x), 32, epochs):
        if teacher is None:
            _, grads = mlp_loss_and_grads(params, data.x[index], data.target[index])
        else:
            logits, pullback = mlp_vjp(params, data.x[index])
            grads, _ = pullback(2 * (logits - teacher[index]) / logits.size)
        moved = descent.step(*(dict(zip(names, itertools.chain(*tree), strict=True)) for tree in (params, grads)))
        params = [(moved[f"weight{i}"], moved[f"bias{i}"]) for i in range(len(params))]
    return mlp_vjp(params, data.x_test)[0], mlp_vjp(params, data.x)[0]


@functools.cache
def search_students(seed: int):
    """Shrink a teacher of digits; return its accuracy and the sizes and accuracy of every student."""
    data = digits()
    logits, soft = train(TEACHER, data, seed, 20)
    reference, seen = accuracy(logits, data.target_test), {}

    def evaluate(sizes):
        seen[sizes] = accuracy(train(sizes, data, seed, 5, soft)[0], data.target_test)
        return seen[sizes]

    n2n_search(
        TEACHER, evaluate, stage="shrinkage", n_iter=ITERATIONS, n_rollouts=ROLLOUTS, learning_rate=1e-2,
        teacher_accuracy=reference, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return reference, seen


def smallest_good(reference, seen) -> float:
    good = [count_params(TEACHER) / count_params(sizes) for sizes, a in seen.items() if a >= reference - 0.02]
    return max(good, default=1.0)


def students() -> Claim:
    reference, seen = search_students(0)
    ratio = smallest_good(reference, seen)
    return Claim(
        statement="Students of digits that the shrinkage policy proposes have a fraction of the teacher's parameters and "
        "its accuracy (24 rollouts, 5 epochs of distillation each).",
        expected="one with 2.5 times fewer parameters, at most 0.02 less accurate",
        holds=ratio >= 2.5,
        figures={
            "accuracy of the teacher": reference,
            "times fewer parameters within 0.02": ratio,
            "students trained": len(seen),
        },
    )


def figure():
    """Mean reward of the surrogate search on five seeds, and the students of digits by size and accuracy."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for seed in SEEDS:
        smooth = np.convolve(different(seed), np.ones(10) / 10, mode="valid")
        left.plot(
            np.arange(10, 10 + len(smooth)), smooth, color="C0", alpha=0.6, label="5 seeds" if seed == 0 else None
        )
    left.axhline(optimum(COSTS), color="C3", linestyle="--", label="best of all masks")
    left.set(xlabel="iteration", ylabel="mean reward (10 iterations)", title="Removal, eight unlike layers")
    left.legend(loc="lower right")
    reference, seen = search_students(0)
    sizes, found = [count_params(one) for one in seen], list(seen.values())
    points = right.scatter(sizes, found, c=range(1, len(seen) + 1), cmap="viridis", zorder=2)
    right.plot(count_params(TEACHER), reference, "*", color="C3", markersize=14, label="teacher")
    right.axhline(reference - 0.02, color="0.6", linestyle=":", label="teacher - 0.02")
    right.set(
        ylim=(min(*found, reference - 0.02) - 0.004, reference + 0.008),
        xlabel="parameters",
        ylabel="accuracy",
        title="Shrinkage, students of digits",
    )
    right.legend(loc="upper left")
    fig.colorbar(points, ax=right, label="order in which they were tried")
    return fig
