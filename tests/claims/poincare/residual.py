"""Evidence for the residual network's other parts: order of the sum, ReLU's geometry, pooling against the midpoint."""

import numpy as np

from refnorm.claims import Claim
from refnorm.poincare import avg_pool2d, dist, exp0, gyration, log0, midpoint, mobius_add, relu, residual_add
from refnorm.poincare._numerics import gap

SEEDS = range(5)


def claims() -> list[Claim]:
    return [
        order_is_a_rotation(),
        stacked_blocks_stay_inside(),
        pooling_is_not_the_midpoint(),
        relu_near_the_boundary(),
    ]


def order_is_a_rotation() -> Claim:
    rng = np.random.default_rng(0)
    f, skip = (exp0(0.6 * rng.standard_normal((500, 8)) / np.sqrt(8), 1.0) for _ in range(2))
    fr, rf = residual_add(f, skip, 1.0), residual_add(f, skip, 1.0, order="rf")
    turned = gyration(f, skip, rf, 1.0)
    lengths = np.abs(np.linalg.norm(fr, axis=-1) / np.linalg.norm(rf, axis=-1) - 1).max()
    angle = np.degrees(
        np.arccos(np.clip((fr * rf).sum(-1) / (np.linalg.norm(fr, axis=-1) * np.linalg.norm(rf, axis=-1)), -1, 1))
    )
    return Claim(
        statement="The two orders of the residual sum give points equally far from the origin, turned against each other by "
        "the gyration of the two terms.",
        expected="lengths and turned points equal to 1e-12",
        holds=bool(lengths < 1e-12 and np.abs(turned - fr).max() < 1e-12),
        figures={
            "largest relative difference of lengths": float(lengths),
            "largest difference after the gyration": float(np.abs(turned - fr).max()),
            "median angle, degrees": float(np.median(angle)),
            "largest angle, degrees": float(angle.max()),
        },
    )


def stacked_blocks_stay_inside() -> Claim:
    """Add points to one another, sixty times, without any projection."""
    smallest, farthest = 1.0, 0.0
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        x = exp0(rng.standard_normal((20, 4)), 1.0)
        for _ in range(60):
            x = residual_add(exp0(rng.standard_normal((20, 4)), 1.0), x, 1.0, check=False)
        smallest = min(smallest, float(gap(x, 1.0).min()))
        farthest = max(farthest, float(dist(x, np.zeros_like(x), 1.0).max()))
    return Claim(
        statement="Residual sums need no projection: sixty in a row, of points at distances of about 4 from the origin, "
        "arrive at the last numbers before the boundary and stay inside (20 points, 5 seeds).",
        expected="1 - |x|^2, computed exactly, > 0 for every point",
        holds=smallest > 0,
        figures={"smallest 1 - |x|^2": smallest, "farthest point's distance": farthest},
    )


def pooling_errors(seeds):
    near, far, moved = [], [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        for spread, found in ((0.1, near), (1.0, far)):
            x = exp0(spread * rng.standard_normal((1, 8, 4, 4)) / np.sqrt(8), 1.0, axis=1)
            rows = x[0].reshape(8, 16).T
            pooled, middle = avg_pool2d(x, 1.0, size=4)[0, :, 0, 0], midpoint(rows, 1.0)
            found.append(float(dist(pooled, middle, 1.0) / dist(middle, np.zeros(8), 1.0)))
        # Carry all pixels by one isometry: the midpoint goes along, the pooled point does not.
        shift = exp0(np.full(8, 0.4), 1.0)
        together = mobius_add(np.tile(shift, (16, 1)), rows, 1.0)
        image = np.ascontiguousarray(together.T).reshape(1, 8, 4, 4)
        moved.append(float(dist(avg_pool2d(image, 1.0, size=4)[0, :, 0, 0], mobius_add(shift, pooled, 1.0), 1.0)))
    return near, far, moved


def pooling_is_not_the_midpoint() -> Claim:
    near, far, moved = pooling_errors(SEEDS)
    return Claim(
        statement="Pooling in the tangent space at the origin agrees with the midpoint for short features, not for long ones, "
        "and is not carried along by isometries.",
        expected="difference from the midpoint, relative to its distance from the origin: below 0.03 for spread 0.1, above "
        "0.1 for spread 1; off by more than 0.1 after an isometry",
        holds=max(near) < 0.03 and min(far) > 0.1 and min(moved) > 0.1,
        figures={
            "spread 0.1: largest relative difference": max(near),
            "spread 1: smallest relative difference": min(far),
            "smallest distance after an isometry": min(moved),
        },
    )


def relu_near_the_boundary() -> Claim:
    """ReLU at one unit roundoff from the boundary, against the composition of its three steps."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((200, 3))
    x *= (1 - 2.0**-50) / np.linalg.norm(x, axis=-1, keepdims=True)
    y, steps = relu(x, 1.0, project=False), exp0(np.maximum(log0(x, 1.0), 0), 1.0, project=False)
    reach = dist(x, np.zeros_like(x), 1.0)
    share = np.linalg.norm(np.maximum(x, 0), axis=-1) / np.linalg.norm(x, axis=-1)
    landed = dist(y, np.zeros_like(y), 1.0)
    usable = (share > 0) & (share * reach < 20)
    error = float(np.abs(landed[usable] / (share * reach)[usable] - 1).max())
    return Claim(
        statement="ReLU shortens a point's distance from the origin to the share that its positive coordinates have of its "
        "direction's length, also next to the boundary.",
        expected="relative error of the distance below 1e-7 (up to distances of 20, where coordinates resolve as much); "
        "equal to the three steps to 1e-14",
        holds=error < 1e-7 and float(np.abs(y - steps).max()) < 1e-14,
        figures={
            "largest relative error of the distance": error,
            "difference from the steps": float(np.abs(y - steps).max()),
        },
    )


def figure():
    """Left: sums of the same two points in both orders, with the geodesics that each is carried along. Right: ReLU's
    image of a fan of points; the left and the lower half-planes fold onto the axes.
    """
    import matplotlib.pyplot as plt

    fig, (sums, fold) = plt.subplots(1, 2, figsize=(8.5, 4), layout="constrained")
    f, skip, zero = np.array([0.6, 0.1]), np.array([0.2, 0.6]), np.zeros(2)
    steps = np.linspace(0, 1, 60)[:, None]
    for first, second, colour, label in ((f, skip, "tab:blue", "f (+) skip"), (skip, f, "tab:orange", "skip (+) f")):
        way = mobius_add(np.tile(first, (60, 1)), np.ascontiguousarray(steps * second), 1.0)
        sums.plot(*np.stack([zero, first]).T, "--", color=colour, lw=1)
        sums.plot(*way.T, color=colour)
        sums.plot(*way[-1], "o", color=colour, label=label)
        sums.plot(*first, ".", color="0.3")
    sums.annotate("f", f, xytext=(6, -12), textcoords="offset points")
    sums.annotate("skip", skip, xytext=(-28, 4), textcoords="offset points")
    sums.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.12, -0.1))
    angles = np.linspace(0, 2 * np.pi, 49)[:-1]
    for radius, colour in ((1.0, "tab:green"), (2.5, "tab:purple")):
        x = exp0(radius / 2 * np.stack([np.cos(angles), np.sin(angles)], -1), 1.0)
        y = relu(x, 1.0)
        fold.plot(*x.T, ".", color=colour, alpha=0.35, ms=5)
        fold.quiver(*x.T, *(y - x).T, angles="xy", scale_units="xy", scale=1, color=colour, width=0.003, alpha=0.7)
    for ax in (sums, fold):
        ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.5"))
        ax.set(aspect="equal", xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
        ax.set_axis_off()
    return fig
