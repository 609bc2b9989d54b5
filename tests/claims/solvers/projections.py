"""Evidence for the projections: they are the closest points, and they move no further than their input."""

import numpy as np
from scipy.optimize import minimize

from refnorm.claims import Claim
from refnorm.solvers import ball_projection, box_projection, lasso_prox, ridge_prox, simplex_projection


def claims() -> list[Claim]:
    return [closest_points(), proximal_maps(), nonexpansive()]


def closest_points() -> Claim:
    rng = np.random.default_rng(0)
    draws = 4000
    figures, worst = {}, 0.0
    x = rng.standard_normal(6)
    candidates = {
        "simplex": (simplex_projection(x), rng.dirichlet(np.full(6, 0.5), draws)),
        "box": (box_projection(x, -0.5, 0.5), rng.uniform(-0.5, 0.5, (draws, 6))),
        "ball": (ball_projection(x, 1.0), ball_projection(3 * rng.standard_normal((draws, 6)), 1.0)),
    }
    for name, (point, others) in candidates.items():
        # The variational inequality: the way to the projection makes no acute angle with the set.
        angle = float(((others - point) @ (x - point)).max())
        figures[f"largest <x - projection, other - projection>, {name}"] = angle
        worst = max(worst, angle)
    return Claim(
        statement="No point of the set lies in the direction from the projection to the projected point.",
        expected="inner product at most 1e-12 for 4000 random points of each set",
        holds=worst <= 1e-12,
        figures=figures,
    )


def proximal_maps() -> Claim:
    rng = np.random.default_rng(1)
    x, penalty, step = 2 * rng.standard_normal(40), 0.7, 1.3
    worst = 0.0
    for prox, cost in ((lasso_prox, np.abs), (ridge_prox, lambda y: y * y / 2)):
        ours = prox(x, penalty, step_size=step)
        for value, start in zip(ours, x, strict=True):
            found = minimize(
                lambda y, start=start, cost=cost: float((0.5 * (y - start) ** 2 + step * penalty * cost(y))[0]),
                x0=[start],
                method="Nelder-Mead",
                options={"xatol": 1e-10, "fatol": 1e-16},
            )
            worst = max(worst, abs(float(found.x[0]) - value))
    return Claim(
        statement="The proximal maps minimise 1/2 |y - x|^2 + step * penalty.",
        expected="within 1e-6 of a derivative-free search (its own accuracy) on 40 points, both penalties",
        holds=worst < 1e-6,
        figures={"worst distance from the search": worst},
    )


def nonexpansive() -> Claim:
    rng = np.random.default_rng(2)
    x, y = 3 * rng.standard_normal((2, 2000, 8))
    maps = {
        "simplex": simplex_projection,
        "box": lambda a: box_projection(a, -1.0, 1.0),
        "ball": lambda a: ball_projection(a, 1.0),
        "lasso": lambda a: lasso_prox(a, 0.5),
        "ridge": lambda a: ridge_prox(a, 0.5),
    }
    ratios = {
        name: float((np.linalg.norm(f(x) - f(y), axis=1) / np.linalg.norm(x - y, axis=1)).max())
        for name, f in maps.items()
    }
    return Claim(
        statement="No projection or proximal map moves two points apart.",
        expected="ratio of distances at most 1 (and 1 / 1.5 for the ridge) for 2000 random pairs",
        holds=max(ratios.values()) <= 1 + 1e-12 and ratios["ridge"] <= 1 / 1.5 + 1e-12,
        figures={f"largest ratio of distances, {name}": value for name, value in ratios.items()},
    )
