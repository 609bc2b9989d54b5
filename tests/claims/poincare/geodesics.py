"""Evidence for the geodesics: another model of the same space gives the same numbers; a tiling by reflections."""

import numpy as np

from refnorm.claims import Claim
from refnorm.poincare import dist, expmap, logmap, mobius_add, transport


def claims() -> list[Claim]:
    return [hyperboloid(), near_points(), angle_deficit()]


def lift(x, c):
    """Send the ball to the hyperboloid: time coordinate factor - 1, space coordinates factor sqrt(c) x."""
    factor = 2 / (1 - c * (x * x).sum(axis=-1, keepdims=True))
    return np.concatenate([factor - 1, factor * np.sqrt(c) * x], axis=-1)


def lorentz_distance(x, y, c):
    a, b = lift(x, c), lift(y, c)
    return np.arccosh(np.maximum(a[:, 0] * b[:, 0] - (a[:, 1:] * b[:, 1:]).sum(axis=-1), 1)) / np.sqrt(c)


def random_points(rng, count, n, c, largest):
    direction = rng.standard_normal((count, n))
    radius = largest * rng.uniform(0.1, 1, (count, 1)) / np.sqrt(c)
    return direction / np.linalg.norm(direction, axis=-1, keepdims=True) * radius


def hyperboloid() -> Claim:
    rng = np.random.default_rng(0)
    worst = 0.0
    for c in (0.1, 1.0, 4.0):
        x, y = (random_points(rng, 1000, 6, c, 0.9) for _ in range(2))
        ours, theirs = dist(x, y, c), lorentz_distance(x, y, c)
        worst = max(worst, float((np.abs(ours - theirs) / theirs).max()))
    return Claim(
        statement="Distances in the ball are those of the hyperboloid model (points in the inner 90% of the radius).",
        expected="largest relative difference below 1e-12, curvature 0.1, 1 and 4",
        holds=worst < 1e-12,
        figures={"largest relative difference": worst},
    )


def near_points() -> Claim:
    rng = np.random.default_rng(1)
    x = random_points(rng, 200, 3, 1.0, 0.9)
    v = 1e-9 * rng.standard_normal((200, 3))
    y = x + v
    # For points this near, |y - x| times the conformal factor halfway is the distance to 10^-15 of itself.
    middle = (x + y) / 2
    truth = 2 / (1 - (middle**2).sum(axis=-1)) * np.linalg.norm(y - x, axis=-1)
    ours = float(np.abs(dist(x, y, 1.0) / truth - 1).max())
    theirs = float(np.abs(lorentz_distance(x, y, 1.0) / truth - 1).max())
    return Claim(
        statement="For points 10^-9 apart the ball's formula keeps its digits; arcosh of the Lorentz product does not.",
        expected="largest relative error below 1e-13 against above 1e-2",
        holds=ours < 1e-13 and theirs > 1e-2,
        figures={"arsinh in the ball": ours, "arcosh on the hyperboloid": theirs},
    )


def angle_deficit() -> Claim:
    """Gauss-Bonnet: carrying a vector around a triangle turns it by the area, pi minus the angles."""
    rng = np.random.default_rng(2)
    worst = 0.0
    for c in (0.5, 1.0, 2.0):
        corners = [random_points(rng, 200, 2, c, 0.9) for _ in range(3)]
        v = rng.standard_normal((200, 2))
        carried, angles = v, np.zeros(200)
        for i in range(3):
            here, following, before = corners[i], corners[(i + 1) % 3], corners[i - 1]
            carried = transport(here, following, carried, c)
            a, b = logmap(here, following, c), logmap(here, before, c)
            angles += np.abs(np.arctan2(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0], (a * b).sum(axis=-1)))
        turned = np.abs(np.arctan2(v[:, 0] * carried[:, 1] - v[:, 1] * carried[:, 0], (v * carried).sum(axis=-1)))
        # arctan2 gives the turn up to a full circle; the deficit lies between 0 and pi.
        worst = max(worst, float(np.abs(turned - (np.pi - angles)).max()))
    return Claim(
        statement="Parallel transport around a triangle turns a vector by the angle that the triangle lacks (Gauss-Bonnet).",
        expected="largest difference below 1e-11, 200 random triangles for each of three curvatures",
        holds=worst < 1e-11,
        figures={"largest difference, radians": worst},
    )


def order_seven_triangles(rounds=7):
    """Edges of the tiling by equilateral triangles of which seven meet in each corner."""
    # All angles are 2 pi/7; the second law of cosines gives the side.
    angle = 2 * np.pi / 7
    side = np.arccosh(np.cos(angle) / (1 - np.cos(angle)))
    spokes = np.stack([np.cos(angle * np.arange(7)), np.sin(angle * np.arange(7))], axis=-1)
    corner = np.tanh(side / 2) * spokes
    seen, edges = {(0.0, 0.0)}, []
    front = [(np.zeros(2), corner)]
    for _ in range(rounds):
        following = []
        for centre, neighbours in front:
            for neighbour in neighbours:
                edges.append((centre, neighbour))
                key = tuple(np.round(neighbour, 6) + 0.0)
                if key in seen or neighbour @ neighbour > 0.9995**2:
                    continue
                seen.add(key)
                # Around a new corner, one neighbour is where we came from; the others follow by turning.
                back = logmap(neighbour, centre, 1.0)
                turns = angle * np.arange(7)
                directions = np.stack(
                    [
                        np.cos(turns) * back[0] - np.sin(turns) * back[1],
                        np.sin(turns) * back[0] + np.cos(turns) * back[1],
                    ],
                    axis=-1,
                )
                around = expmap(np.tile(neighbour, (7, 1)), directions, 1.0, project=False)
                following.append((neighbour, around))
        front = following
    return edges


def figure():
    """Seven equilateral triangles around every corner: a tiling that only fits in hyperbolic space."""
    import matplotlib.pyplot as plt
    from matplotlib.collections import LineCollection

    edges = order_seven_triangles(rounds=6)
    fig, axes = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
    start, end = (np.stack(side) for side in zip(*edges, strict=True))
    steps = np.linspace(0, 1, 12)
    velocity = logmap(start, end, 1.0)
    for ax, centre in zip(axes, (np.zeros(2), np.array([0.55, 0.3])), strict=True):
        lines = []
        for t in steps:
            points = expmap(start, t * velocity, 1.0, project=False)
            lines.append(mobius_add(np.tile(centre, (len(points), 1)), points, 1.0))
        ax.add_collection(LineCollection(np.stack(lines, axis=1), colors="tab:blue", linewidths=0.6))
        ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.3", lw=1.2))
        ax.set(xlim=(-1.03, 1.03), ylim=(-1.03, 1.03), aspect="equal")
        ax.axis("off")
    axes[0].set_title("all edges have the same length", fontsize=10)
    axes[1].set_title("the same tiling, translated by Möbius addition", fontsize=10)
    return fig
