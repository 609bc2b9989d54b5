"""Evidence for the gyromidpoint: how near it is to the Fréchet mean, what it saves, where it stays exact."""

import numpy as np

from refnorm.claims import Claim
from refnorm.poincare import dist, exp0, frechet_mean, midpoint, mobius_add

SPREADS, SEEDS, POINTS = (0.1, 0.3, 0.6), range(5), 256


def claims() -> list[Claim]:
    return [close_to_the_frechet_mean(), one_pass_against_many(), exact_far_from_the_origin()]


def cloud(spread, seed):
    rng = np.random.default_rng(seed)
    return exp0(spread * rng.standard_normal((POINTS, 2)) + np.array([0.6, 0.2]), 1.0)


def compare(spread, seed):
    """Distance of the two means over the root mean squared distance, and the iterations of the Fréchet mean."""
    x = cloud(spread, seed)
    result = frechet_mean(x, 1.0)
    assert result.converged
    return float(dist(midpoint(x, 1.0), result.x, 1.0) / np.sqrt(result.variance)), result.n_iter


def close_to_the_frechet_mean() -> Claim:
    worst = {spread: max(compare(spread, seed)[0] for seed in SEEDS) for spread in SPREADS}
    return Claim(
        statement="The midpoint is close to the Fréchet mean, measured by how far the points are spread (256 points of "
        "the plane, root mean squared distances of 0.3, 0.9 and 1.8, 5 seeds).",
        expected="distance of the two means below 0.08 of the root mean squared distance",
        holds=max(worst.values()) < 0.08,
        figures={f"spread {spread}: largest ratio": ratio for spread, ratio in worst.items()},
    )


def one_pass_against_many() -> Claim:
    counts = {spread: [compare(spread, seed)[1] for seed in SEEDS] for spread in SPREADS}
    fewest = min(min(found) for found in counts.values())
    return Claim(
        statement="The Fréchet mean to 12 digits costs many midpoints: every iteration is a weighted midpoint, and "
        "needs all distances besides.",
        expected="at least 5 times the midpoint's passes over the points, counting the start",
        holds=1 + 2 * fewest >= 5,
        figures={f"spread {spread}: fewest iterations": min(found) for spread, found in counts.items()}
        | {"passes over the points, at least (the midpoint's: 1)": 1 + 2 * fewest},
    )


def textbook(x):
    factor = 2 / (1 - (x * x).sum(axis=-1, keepdims=True))
    n = (factor * x).sum(axis=0) / (factor - 1).sum(axis=0)
    return n / (1 + np.sqrt(np.maximum(1 - (n * n).sum(), 0.0)))


def far_errors(distance, seed):
    """Translate ten points far out; hyperbolic error of their midpoint, by the package and by the textbook."""
    rng = np.random.default_rng(seed)
    x = exp0(0.3 * rng.standard_normal((10, 3)), 1.0)
    direction = rng.standard_normal(3)
    shift = np.tanh(distance / 2) * direction / np.linalg.norm(direction)
    moved = mobius_add(np.tile(shift, (10, 1)), x, 1.0)
    expected = mobius_add(shift, midpoint(x, 1.0), 1.0)
    with np.errstate(all="ignore"):
        return tuple(
            float(dist(mean(moved), expected, 1.0, check=False)) for mean in (lambda p: midpoint(p, 1.0), textbook)
        )


def exact_far_from_the_origin() -> Claim:
    errors = np.array([far_errors(18.0, seed) for seed in SEEDS])
    return Claim(
        statement="Far from the origin (distance 18), the sum of positive terms keeps the midpoint where the points "
        "are; the textbook formula, whose square root cancels, loses it.",
        expected="hyperbolic error below 1e-7, against above 1e-4",
        holds=bool(errors[:, 0].max() < 1e-7 and errors[:, 1].min() > 1e-4),
        figures={
            "largest error": float(errors[:, 0].max()),
            "smallest error of the textbook formula": float(errors[:, 1].min()),
        },
    )


def figure():
    """Left: six points, four of them near the boundary, with their midpoint, Fréchet mean and arithmetic mean;
    distant points pull the midpoint most. Right: hyperbolic error of the midpoint by distance from the origin; at a
    distance of 18 the textbook formula is off by 0.1, the sum of positive terms by 1e-8.
    """
    import matplotlib.pyplot as plt

    fig, (disk, errors) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", width_ratios=(1, 1.25))
    x = np.array([[0.95, 0.1], [0.88, 0.32], [0.5, 0.8], [-0.93, 0.2], [-0.1, -0.3], [0.2, -0.5]])
    disk.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.5"))
    disk.plot(*x.T, ".", color="0.4", ms=9)
    disk.plot(*midpoint(x, 1.0), "o", color="tab:blue", ms=9, mfc="none", mew=2, label="midpoint")
    disk.plot(*frechet_mean(x, 1.0).x, "x", color="tab:orange", ms=8, mew=2, label="Fréchet mean")
    disk.plot(*x.mean(axis=0), "+", color="tab:green", ms=10, mew=2, label="arithmetic mean")
    disk.set(aspect="equal", xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xticks=[], yticks=[])
    disk.legend(frameon=False, loc="lower left", fontsize=9, bbox_to_anchor=(-0.12, -0.12))
    disk.set_axis_off()
    distances = np.linspace(1, 18, 35)
    found = np.array([[far_errors(d, seed) for seed in range(3)] for d in distances])
    for column, (label, colour) in enumerate((("positive terms", "tab:blue"), ("textbook formula", "tab:orange"))):
        errors.semilogy(distances, found[:, :, column].max(axis=1), color=colour, label=label)
    errors.set(xlabel="distance from the origin", ylabel="hyperbolic error of the midpoint")
    errors.legend(frameon=False)
    return fig
