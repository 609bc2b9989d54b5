"""What reactions cost between two scenarios, and decisions against a growing list of scenarios."""

import numpy as np

from refnorm.solvers import ccg, exact_main, random_knapsack, second_stage_value, worst_case_exact

ITEMS, PAIR = 4, (1, 2)
INSTANCE = random_knapsack(ITEMS, np.random.default_rng(3), budget=1.0)


def scenario(share):
    """Split the whole budget between two items."""
    xi = np.zeros(ITEMS)
    xi[list(PAIR)] = share, 1 - share
    return xi


def cost(y, r, xi):
    """Second-stage cost of a reaction that is held fixed."""
    loss = INSTANCE.degradation * xi
    return float((loss - INSTANCE.outsourcing) @ y - loss @ r)


def figure():
    r"""Left: all four items of a knapsack are accepted, and the budget of one is split between two of them. Grey: what each of three
    reactions costs, a straight line over the scenarios. The best reaction (blue) is the lowest of them; its worst scenario is
    a split (star), and neither end. This is the function that the network learns, and whose peak the adversary looks for. Right: an
    instance of five items. The main problem decides against a list of scenarios, and is too optimistic; the
    adversary says what the decision costs in its worst one, and adds that to the list. They meet after five rounds."""
    import matplotlib.pyplot as plt

    x, grid = np.ones(ITEMS), np.linspace(0, 1, 201)
    found = [second_stage_value(INSTANCE, x, scenario(share)) for share in grid]
    best = np.array([value for value, _, _ in found])
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.1), layout="constrained")
    for y, r in {(y.tobytes(), r.tobytes()): (y, r) for _, y, r in found}.values():
        left.plot(grid, [cost(y, r, scenario(share)) for share in grid], color="#8a8a8a", linewidth=1)
    left.plot(grid, best, color="#1f77b4", linewidth=3)
    left.plot(grid[best.argmax()], best.max(), "*", color="#d62728", markersize=15)
    left.text(0.03, -22, "a fixed reaction", fontsize=10, color="#8a8a8a")
    left.text(0.3, -24.2, "the best one", fontsize=10, color="#1f77b4")
    left.set(xlabel="share of the second item", ylabel="second-stage cost", ylim=(-25.2, -19.5))

    result = ccg(random_knapsack(5, np.random.default_rng(14), budget=1.5), worst_case_exact, exact_main)
    number = np.arange(1, result.n_iter + 1)
    right.plot(number, result.history["adversary"], "s--", color="#d62728", label="adversary: worst case")
    right.plot(number, result.history["value"], "o-", color="#1f77b4", label="main problem: on the list")
    right.set(xlabel="round = scenarios on the list", ylabel="cost", xticks=number)
    right.legend(fontsize=10)
    return fig
