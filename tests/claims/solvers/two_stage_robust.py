"""Evidence for learned two-stage robust optimization: exact baselines, the network's ranking, and the gap."""

import functools

import numpy as np
from scipy.stats import spearmanr

from refnorm.claims import Claim
from refnorm.solvers import (
    ccg,
    exact_main,
    init_value_net,
    knapsack_data,
    neural_ccg,
    random_knapsack,
    set_value,
    solve_exact,
    train_value_net,
    worst_case_exact,
)

ITEMS, TRAINING, PAIRS, TESTS, SEED = 6, 100, 40, 8, 0
SIZES, EPOCHS, RATE, BATCH = {"embed": 12, "pool": 6, "code": 3, "head": 6}, 80, 5e-3, 256


@functools.cache
def setting():
    """Return a trained network, fresh instances, their exact optima, and the network's test predictions."""
    rng = np.random.default_rng(SEED)
    data = knapsack_data([random_knapsack(ITEMS, rng) for _ in range(TRAINING)], rng, pairs=PAIRS)
    start = init_value_net(rng, **SIZES)
    net = train_value_net(data, rng=rng, epochs=EPOCHS, learning_rate=RATE, batch=BATCH, params=start)
    instances = [random_knapsack(ITEMS, rng) for _ in range(TESTS)]
    a, b, value = knapsack_data(instances, rng, pairs=PAIRS)
    scaled = net.value_low + net.value_scale * set_value(
        net.params, (a - net.low) / net.scale, (b - net.low) / net.scale
    )
    return net, instances, [solve_exact(instance) for instance in instances], (scaled, value)


@functools.cache
def gaps():
    """Return the relative gap to the exact optimum of every method on every instance."""
    net, instances, optima, _ = setting()
    values = {
        "argmax form": [neural_ccg(instance, net, formulation="argmax").value for instance in instances],
        "max form": [neural_ccg(instance, net, formulation="max").value for instance in instances],
        "deterministic": [
            worst_case_exact(instance, exact_main(instance, np.zeros((1, ITEMS)))[0])[0] for instance in instances
        ],
    }
    best = np.array([optimum.value for optimum in optima])
    return {name: (np.array(found) - best) / np.abs(best) for name, found in values.items()}


def claims() -> list[Claim]:
    return [exact(), ranking(), quality()]


def exact() -> Claim:
    _, instances, optima, _ = setting()
    results = [ccg(instance, worst_case_exact, exact_main) for instance in instances[:5]]
    worst = max(
        abs(result.value - optimum.value) / abs(optimum.value) for result, optimum in zip(results, optima, strict=False)
    )
    return Claim(
        statement="Classical column-and-constraint generation with an exact adversary reaches the optimum (six items, "
        "five instances).",
        expected="relative difference from enumerating all decisions below 1e-6",
        holds=bool(worst < 1e-6 and all(result.converged for result in results)),
        figures={
            "largest relative difference": float(worst),
            "fewest iterations": min(result.n_iter for result in results),
            "most iterations": max(result.n_iter for result in results),
        },
    )


def ranking() -> Claim:
    correlation = float(spearmanr(*setting()[3])[0])
    return Claim(
        statement="A small set network learns the second stage's value from 100 instances.",
        expected="rank correlation with the exact values of fresh instances at least 0.95",
        holds=correlation >= 0.95,
        figures={"rank correlation": correlation, "fresh pairs": TESTS * PAIRS},
    )


def quality() -> Claim:
    found = gaps()
    median = {name: float(np.median(gap)) for name, gap in found.items()}
    mean = {name: float(np.mean(gap)) for name, gap in found.items()}
    worse = float((found["deterministic"] > 1e-6).mean())
    return Claim(
        statement="With the learned second stage, the form that pays an exact reaction to the predicted worst scenario "
        "comes closer to the robust optimum than the decision that ignores uncertainty (8 instances).",
        expected="argmax form: median gap at most 15 %, mean gap at most 0.9 of the deterministic decision's; the latter "
        "strictly worse than the optimum on at least 60 % of the instances",
        holds=bool(
            median["argmax form"] <= 0.15 and mean["argmax form"] <= 0.9 * mean["deterministic"] and worse >= 0.6
        ),
        figures={f"median gap, {name}": value for name, value in median.items()}
        | {f"mean gap, {name}": value for name, value in mean.items()}
        | {"share of instances where the deterministic decision is worse": worse},
    )


def figure():
    """Left: predicted against exact second-stage values. Right: relative gaps to the exact optimum."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    predicted, value = setting()[3]
    left.plot(value, predicted, ".", alpha=0.6)
    ends = [value.min(), value.max()]
    left.plot(ends, ends, "k:")
    left.set(xlabel="exact second-stage value", ylabel="predicted", title="Fresh instances")
    for place, (name, gap) in enumerate(gaps().items()):
        right.plot(100 * gap, place + np.linspace(-0.2, 0.2, len(gap)), "o", label=name)
        right.plot([100 * gap.mean()] * 2, [place - 0.3, place + 0.3], color=f"C{place}")
    right.set_yticks(range(3), gaps().keys())
    right.set(xlabel="gap to the robust optimum in % (line: mean)", title="8 instances of six items")
    return fig
