"""Evidence for target-based surrogates: monotone decrease, and cheap inner steps that save loss gradients."""

import functools

import numpy as np
from scipy.optimize import minimize

from refnorm.claims import Claim
from refnorm.solvers import (
    minimize_target_surrogate,
    random_batches,
    target_loss,
    target_smoothness,
    target_surrogate,
)

SEEDS = range(3)
EXAMPLES, FEATURES, BATCH = 200, 20, 20
INNER = (1, 10, 100)
OUTER = 300


def claims() -> list[Claim]:
    return [full_batches(), upper_bound(), mini_batches()]


def problem(seed: int):
    """Features of very different scales, and labels drawn from a planted logistic model."""
    rng = np.random.default_rng(seed)
    scale = np.logspace(0, -1.5, FEATURES)
    x = rng.standard_normal((EXAMPLES, FEATURES)) * scale
    planted = rng.standard_normal(FEATURES) / scale
    chance = 1 / (1 + np.exp(-x @ planted))
    return x, np.where(rng.random(EXAMPLES) < chance, 1, -1)


def optimum(x, target) -> float:
    loss = target_loss("logistic", target)

    def value_and_gradient(theta):
        value, gradient = loss(x @ theta, slice(None))
        return float(value), x.T @ gradient

    return float(minimize(value_and_gradient, np.zeros(FEATURES), jac=True, options={"gtol": 1e-10}).fun)


@functools.cache
def full_runs(seed: int):
    """Gap to the optimum after each outer step, by the number of inner steps, and whether it never grew."""
    x, target = problem(seed)
    best, gaps, monotone = optimum(x, target), {}, True
    for inner in INNER:
        result = minimize_target_surrogate(
            target_loss("logistic", target),
            x,
            np.zeros(FEATURES),
            step_size=1 / target_smoothness("logistic", EXAMPLES),
            inner_steps=inner,
            inner_rate=1 / np.linalg.norm(x, 2) ** 2,
            n_iter=OUTER,
            tol=0,
            inner_tol=0,
        )
        loss = result.history["loss"]
        monotone = monotone and bool((np.diff(loss) <= 1e-15).all() and result.history["bound_holds"].all())
        gaps[inner] = loss - best
    return gaps, monotone


def full_batches() -> Claim:
    figures: dict[str, float | int | str] = {}
    all_monotone, first, second = True, [], []
    for seed in SEEDS:
        gaps, monotone = full_runs(seed)
        all_monotone = all_monotone and monotone
        first.append(gaps[1][-1] / gaps[10][-1])
        second.append(gaps[10][-1] / gaps[100][-1])
        if seed == 0:
            for inner in INNER:
                for after in (10, 50, OUTER):
                    figures[f"seed 0: gap after {after} loss gradients, inner steps: {inner}"] = float(
                        gaps[inner][after - 1]
                    )
    return Claim(
        statement="On all examples every outer step decreases the loss, and more inner steps reach a smaller loss "
        "with the same number of loss gradients (logistic regression, 20 badly scaled features).",
        expected="no increase on three seeds; after 300 gradients the gap is at most half as large with 10 inner "
        "steps than with one, and at most a fifth with 100 of that with 10",
        holds=bool(all_monotone and min(first) >= 2 and min(second) >= 5),
        figures=figures
        | {
            "smallest ratio of gaps, 1 and 10 inner steps": float(min(first)),
            "smallest ratio of gaps, 10 and 100 inner steps": float(min(second)),
        },
    )


def upper_bound() -> Claim:
    rng = np.random.default_rng(0)
    n, classes = 7, 4
    figures: dict[str, float | int | str] = {}
    violated = 0
    for name, shape, target in (
        ("squared", (n,), rng.standard_normal(n)),
        ("logistic", (n,), np.where(rng.random(n) < 0.5, 1, -1)),
        ("softmax", (n, classes), rng.integers(classes, size=n)),
    ):
        loss = target_loss(name, target)
        counts = {1.0: 0, 4.0: 0}
        for _ in range(1000):
            anchor, moved = rng.standard_normal((2, *shape)) * rng.choice(
                [0.1, 1.0, 10.0], size=(2, *(1 for _ in shape))
            )
            value, gradient = loss(anchor, slice(None))
            for factor in counts:
                bound = target_surrogate(
                    anchor + moved,
                    anchor,
                    gradient,
                    step_size=factor / target_smoothness(name, n),
                    loss=float(value),
                )
                counts[factor] += int(loss(anchor + moved, slice(None))[0] > bound + 1e-12 * (1 + abs(bound)))
        violated += counts[1.0]
        figures[f"{name}: violations of 1000, step 1 / smoothness"] = counts[1.0]
        figures[f"{name}: violations of 1000, four times that step"] = counts[4.0]
    above = min(int(v) for name, v in figures.items() if "four" in name)
    return Claim(
        statement="With a step of at most 1 / smoothness the surrogate lies above the loss; with a longer one it "
        "need not.",
        expected="no violation at 1000 random pairs of points for each of three losses; some at four times the step",
        holds=violated == 0 and above > 0,
        figures=figures,
    )


def batch_run(seed: int, inner: int, steps: int, schedule: str) -> float:
    """Gap on all examples at the end; the inner step is 1 / |x_B|^2 for the largest of 50 batches."""
    x, target = problem(seed)
    probe = random_batches(np.random.default_rng(1000 + seed), EXAMPLES, BATCH)
    largest = max(np.linalg.norm(x[next(probe)], 2) ** 2 for _ in range(50))
    result = minimize_target_surrogate(
        target_loss("logistic", target),
        x,
        np.zeros(FEATURES),
        step_size=1 / target_smoothness("logistic", BATCH),
        inner_steps=inner,
        inner_rate=1 / largest,
        schedule=schedule,
        n_iter=steps,
        batches=random_batches(np.random.default_rng(seed), EXAMPLES, BATCH),
        inner_tol=0,
    )
    return float(target_loss("logistic", target)(x @ result.x, slice(None))[0]) - optimum(x, target)


def mini_batches() -> Claim:
    figures: dict[str, float | int | str] = {}
    ratios: dict[str, list[float]] = {}
    for schedule in ("stochastic", "exponential", "constant"):
        ratios[schedule] = [batch_run(seed, 10, 1000, schedule) / batch_run(seed, 1, 2000, schedule) for seed in SEEDS]
        figures[f"{schedule}: smallest ratio of gaps"] = min(ratios[schedule])
        figures[f"{schedule}: largest ratio of gaps"] = max(ratios[schedule])
    return Claim(
        statement="On batches of 20 with a decreasing step, 10 inner steps get further with 1000 loss gradients than "
        "one inner step with 2000.",
        expected="ratio of gaps below 0.9 on each of three seeds with the stochastic and the exponential schedule "
        "(nothing is asserted for the constant step)",
        holds=max(ratios["stochastic"] + ratios["exponential"]) < 0.9,
        figures=figures,
    )


def figure():
    """Gap to the optimal loss against loss gradients, for 1, 10 and 100 inner steps; three seeds."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for number, inner in enumerate(INNER):
        for seed in SEEDS:
            gaps = full_runs(seed)[0][inner]
            label = f"{inner} inner step" + "s" * (inner > 1) + (" (gradient descent)" if inner == 1 else "")
            ax.plot(
                np.arange(1, OUTER + 1),
                np.maximum(gaps, 1e-9),
                color=f"C{number}",
                alpha=0.75,
                linewidth=1.2,
                label=label if seed == 0 else None,
            )
    ax.set(xscale="log", yscale="log", xlabel="gradients of the loss", ylabel="gap to the optimum", ylim=(1e-7, 1))
    ax.set_title("Logistic regression, all examples, step 1 / smoothness (three seeds)")
    ax.legend(loc="lower left")
    return fig
