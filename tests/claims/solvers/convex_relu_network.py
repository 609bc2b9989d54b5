"""Evidence for convex ReLU networks: the global value, local minima of gradient descent, and the rate of ADMM."""

from functools import cache

import numpy as np

from refnorm.claims import Claim
from refnorm.solvers import admm_relu, recover_relu, relu_objective, sample_patterns, sampled_convex_program

PENALTY, COUPLING, ITERATIONS = 1e-3, 1e-2, 3000
RUNS, NEURONS, STEPS, RATE = 20, 10, 20_000, 0.003


def claims() -> list[Claim]:
    return [recovery(), local_minima(), rate(), sampled()]


@cache
def problem():
    """Twenty points on a line, a bias, and a planted network of two neurons."""
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.standard_normal(20), np.ones(20)])
    target = np.maximum(x @ rng.standard_normal((2, 2)).T, 0) @ np.array([1.0, -1.0])
    return x, target, sample_patterns(x, 2000, rng=rng)


@cache
def optimum():
    x, target, patterns = problem()
    return admm_relu(x, target, patterns, penalty=PENALTY, coupling=COUPLING, max_iter=ITERATIONS, tol=0.0)


@cache
def descents():
    """Train all networks at once on the non-convex loss; return their weights, outputs and final losses."""
    x, target, _ = problem()
    rng = np.random.default_rng(1)
    weight, output = rng.standard_normal((RUNS, NEURONS, 2)), rng.standard_normal((RUNS, 1, NEURONS))
    for _ in range(STEPS):
        summed = weight @ x.T
        hidden = np.maximum(summed, 0)
        residual = output @ hidden - target
        dsummed = output.transpose(0, 2, 1) * residual * (summed > 0)
        weight, output = (
            weight - RATE * (dsummed @ x + PENALTY * weight),
            output - RATE * (residual @ hidden.transpose(0, 2, 1) + PENALTY * output),
        )
    losses = [float(relu_objective(x, target, w, o[0], penalty=PENALTY)) for w, o in zip(weight, output, strict=True)]
    return weight, output[:, 0], np.array(losses)


def recovery() -> Claim:
    x, target, patterns = problem()
    result = optimum()
    weight, output = recover_relu(result.v, result.w)
    loss = float(relu_objective(x, target, weight, output, penalty=PENALTY))
    difference = abs(loss - result.objective) / result.objective
    return Claim(
        statement="The network recovered from the convex program has the convex program's value as its own, "
        "non-convex loss.",
        expected=f"relative difference below 1 % after {ITERATIONS} iterations",
        holds=difference < 0.01,
        figures={
            "activation patterns": len(patterns),
            "convex objective": result.objective,
            "non-convex loss of the recovered network": loss,
            "neurons of the recovered network": len(output),
            "largest violation of a gate": result.violation,
        },
    )


def local_minima() -> Claim:
    best = optimum().objective
    losses = descents()[2]
    return Claim(
        statement="Gradient descent on the non-convex loss never ends below the convex optimum, and often well "
        f"above it ({RUNS} networks of {NEURONS} neurons, {STEPS} steps).",
        expected="no run more than 1e-4 below the optimum; at least one more than 5 % above it",
        holds=bool(losses.min() >= best - 1e-4 and losses.max() > 1.05 * best),
        figures={
            "convex optimum": best,
            "best run": losses.min(),
            "median run": float(np.median(losses)),
            "worst run": losses.max(),
            "runs more than 5 % above": int((losses > 1.05 * best).sum()),
        },
    )


def rate() -> Claim:
    primal = optimum().history["primal_residual"]
    # The first iteration from which on the residual stays below each power of ten.
    reached = [int(np.flatnonzero(primal > 10.0**-power).max()) + 2 for power in range(1, 6)]
    needed = np.diff(reached)
    return Claim(
        statement="The residuals of ADMM fall at one geometric rate.",
        expected="every tenth of the primal residual, down to 1e-5, takes at most 1.5 times the iterations of "
        "the one before",
        holds=bool((needed[1:] <= 1.5 * needed[:-1]).all()),
        figures={f"iterations from 1e-{k + 1} to 1e-{k + 2}": int(count) for k, count in enumerate(needed)},
        refuted="Each further tenth takes longer than the one before, as long as groups of weights still appear "
        "and vanish; a geometric rate can be seen, if at all, only after the set of neurons has settled.",
    )


def sampled() -> Claim:
    x, target, _ = problem()
    best = optimum().objective
    values = {
        n: sampled_convex_program(x, target, n_neurons=n, penalty=PENALTY, rng=np.random.default_rng(7)).objective
        for n in (10, 50, 250)
    }
    ordered = list(values.values())
    return Claim(
        statement="The sampled convex program approaches the optimum from above as neurons are added.",
        expected="the value falls from 10 to 50 to 250 neurons (the same draw, prolonged) and is never more than "
        "1 % below ADMM's",
        holds=bool(ordered[0] > ordered[1] > ordered[2] and ordered[2] >= 0.99 * best),
        figures={f"value with {n} neurons": value for n, value in values.items()} | {"ADMM": best},
    )


def figure():
    """Two panels. Left: the objective of ADMM falls within 100 iterations below the final losses of all 20
    gradient descents. Right: the data, the network recovered from ADMM, which follows the planted function,
    and the worst of the descents, which misses a kink."""
    import matplotlib.pyplot as plt

    x, target, _ = problem()
    result = optimum()
    weight, output, losses = descents()
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for number, loss in enumerate(losses):
        left.axhline(
            loss, color="C1", lw=0.8, alpha=0.6, label="gradient descent, ends of 20 runs" if not number else None
        )
    left.plot(np.arange(1, result.n_iter + 1), result.history["objective"], color="C0", label="ADMM, convex objective")
    left.set(xlabel="iteration of ADMM", ylabel="objective", yscale="log", xscale="log")
    left.legend(fontsize=8)

    line = np.linspace(x[:, 0].min() - 0.3, x[:, 0].max() + 0.3, 300)
    inputs = np.column_stack([line, np.ones(300)])
    recovered = recover_relu(result.v, result.w)
    worst = losses.argmax()
    for (w, o), style in ((recovered, "C0-"), ((weight[worst], output[worst]), "C1--")):
        right.plot(line, np.maximum(inputs @ w.T, 0) @ o, style)
    right.plot(x[:, 0], target, "k.", ms=5)
    right.set(xlabel="x", ylabel="target")
    right.legend(["recovered from ADMM", "worst gradient descent", "data"], fontsize=8)
    return fig
