"""Truth for two-stage robust optimization: hand calculations, enumeration, PyTorch's automatic differentiation."""

import itertools

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.solvers import KnapsackInstance
from refnorm.tree import tree_leaves, tree_map

VERSION = f"torch {torch.__version__.split('+')[0]}, float64"


def draw(rng, n):
    cost = rng.uniform(1, 20, n)
    profit = cost * rng.uniform(0.8, 1.6, n)
    return KnapsackInstance(
        cost, profit, profit * rng.uniform(0.2, 0.9, n), profit * rng.uniform(1.1, 1.5, n),
        cost * rng.uniform(0.1, 0.6, n), float(cost.sum()) / 2, 2.0,
    )  # fmt: skip


def best_reaction(instance, x, xi):
    """Go through all reactions, one item at a time."""
    best = (np.inf, None, None)
    for state in itertools.product(("leave", "produce", "repair"), repeat=len(x)):
        weight = value = 0.0
        for i, what in enumerate(state):
            if what != "leave":
                if not x[i]:
                    weight = np.inf
                weight += instance.cost[i]
                value += instance.degradation[i] * xi[i] - instance.outsourcing[i]
            if what == "repair":
                weight += instance.repair[i]
                value -= instance.degradation[i] * xi[i]
        if weight <= instance.capacity and value < best[0]:
            y = np.array([float(what != "leave") for what in state])
            best = (value, y, np.array([float(what == "repair") for what in state]))
    return best


def torch_value(params, a, b, cotangent):
    leaves = tree_map(lambda array: torch.tensor(array, requires_grad=True), (params, a, b))
    p, a, b = leaves

    def encode(phi, rho, items):
        embedded = torch.relu(items @ phi[0]) @ phi[1]
        return torch.relu(embedded.mean(dim=1) @ rho[0]) @ rho[1]

    code = torch.cat([encode(p["phi_x"], p["rho_x"], a), encode(p["phi_xi"], p["rho_xi"], b)], dim=1)
    (w1, b1), (w2, b2) = p["head"]
    y = (torch.relu(code @ w1 + b1) @ w2 + b2)[:, 0]
    y.backward(torch.tensor(cotangent))
    return y.detach().numpy(), [leaf.grad.numpy() for _, leaf in tree_leaves(leaves)]


def cases():
    rng = np.random.default_rng(20231006)
    ones = np.ones(1)
    found = []
    left, repaired = (np.array(0.0), np.zeros(1), np.zeros(1)), (np.array(-3.0), ones, ones)
    for capacity, expected in ((2.0, repaired), (1.0, left)):
        found.append(
            GoldenCase(
                function="solvers.second_stage_value",
                name=f"one item, capacity {capacity:g}, by hand",
                args=(KnapsackInstance(ones, 5 * ones, 4 * ones, 3 * ones, ones, capacity, 1.0), ones, 0.9 * ones),
                expected=expected,
                source="by hand: leave 0, produce 4 * 0.9 - 3 = 0.6, repair -3 where it fits",
            )
        )
    for n in (3, 5, 6):
        instance, x, xi = draw(rng, n), np.ones(n), rng.uniform(0, 1, n)
        x[0] = 0
        value, y, r = best_reaction(instance, x, xi)
        found.append(
            GoldenCase(
                function="solvers.second_stage_value",
                name=f"{n} items",
                args=(instance, x, xi),
                expected=(np.array(value), y, r),
                tolerance=Tolerance(1e-13, "relative_of_largest"),
                source="enumeration, item by item",
            )
        )
    for n, count in ((3, 2), (4, 3)):
        instance, scenarios = draw(rng, n), rng.uniform(0, 1, (count, n))
        values = {
            x: sum((f - p) * chosen for f, p, chosen in zip(instance.outsourcing, instance.profit, x, strict=True))
            + max(best_reaction(instance, x, xi)[0] for xi in scenarios)
            for x in itertools.product((0.0, 1.0), repeat=n)
        }
        best = min(values, key=values.get)
        found.append(
            GoldenCase(
                function="solvers.exact_main",
                name=f"{n} items, {count} scenarios",
                args=(instance, scenarios),
                expected=(np.array(best), np.array(values[best])),
                tolerance=Tolerance(1e-8, "relative_of_largest"),
                source="enumeration of all decisions and reactions",
            )
        )
    found.append(
        GoldenCase(
            function="solvers.interval_bounds",
            name="two layers by hand",
            args=([(np.array([[2.0, -1.0]]), np.array([-1.0, 0.5])), (np.array([[1.0], [-2.0]]), np.array([3.0]))],
                  np.zeros(1), np.ones(1)),
            expected=[(np.array([-1.0, -0.5]), np.array([1.0, 0.5])), (np.array([2.0]), np.array([4.0]))],
            tolerance=Tolerance(1e-8, "relative_of_largest"),
            source="by hand: [0, 1] and [0, 1/2] after ReLU, then 3 + [0, 1] - 2 [0, 1/2]; widened by 1e-9",
        )
    )  # fmt: skip
    for rows, n in ((4, 3), (2, 1)):
        params = {
            name: [
                rng.standard_normal((7 if "phi" in name else 4, 5)),
                rng.standard_normal((5, 4 if "phi" in name else 3)),
            ]
            for name in ("phi_x", "rho_x", "phi_xi", "rho_xi")
        }
        params["head"] = [
            (rng.standard_normal((6, 4)), rng.standard_normal(4)),
            (rng.standard_normal((4, 1)), np.ones(1)),
        ]
        a, b, cotangent = rng.uniform(0, 1, (rows, n, 7)), rng.uniform(0, 1, (rows, n, 7)), rng.standard_normal(rows)
        value, grads = torch_value(params, a, b, cotangent)
        common = {
            "function": "solvers.set_value",
            "name": f"{rows} pairs of {n} items",
            "args": (params, a, b),
            "tolerance": Tolerance(1e-12, "relative_of_largest"),
            "source": VERSION,
        }
        found.append(GoldenCase(**common, expected=value))
        found.append(GoldenCase(**common, cotangent=cotangent, expected=grads))
    return found
