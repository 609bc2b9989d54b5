"""A tiling of the Poincaré disk by heptagons, three at each corner, grown by Möbius addition alone."""

import numpy as np

from refnorm.poincare import dist, gyration, mobius_add

SIDES, AT_CORNER = 7, 3
RIM = 0.982
"""Tiles with a centre farther out than this are a few pixels wide and are left out."""
SAME = 1e-6
"""Corners that two tiles share are found twice, and differ by rounding only; others are much farther apart."""


def radii():
    """Return the Euclidean distances from a tile's centre to its corners and to the next tile's centre.

    A seventh of half a tile is a right triangle with the angles pi/7 and pi/3, which fix all its sides.
    """
    at_centre, at_corner = np.pi / SIDES, np.pi / AT_CORNER
    corner = np.arccosh(1 / (np.tan(at_centre) * np.tan(at_corner)))
    middle = np.arccosh(np.cos(at_corner) / np.sin(at_centre))
    return np.tanh(corner / 2), np.tanh(middle)


def turned(angle, points):
    """Rotate points about the centre of the disk."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return points @ np.array([[cosine, sine], [-sine, cosine]])


def on_circle(radius, angles):
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def moved(centre, points):
    """Translate points by the one that takes the centre of the disk to ``centre``."""
    return mobius_add(np.broadcast_to(centre, points.shape).copy(), points, 1.0)


def tiles():
    """Return each tile's motion from the middle one, ``z -> centre (+) turn(angle) z``: centres and angles.

    The neighbour of the middle tile is a half turn followed by the translation by n. Behind another motion that is
    centre (+) (n (+) -z) = (centre (+) n) (+) gyr[centre, n](-z): the gyration is the rotation that is left over.
    """
    neighbours = on_circle(radii()[1], 2 * np.pi * np.arange(SIDES) / SIDES)
    centres, angles, place = [np.zeros(2)], [0.0], 0
    while place < len(centres):
        start, steps = np.tile(centres[place], (SIDES, 1)), turned(angles[place], neighbours)
        rest = gyration(start, steps, np.tile([1.0, 0.0], (SIDES, 1)), 1.0)
        angle = angles[place] + np.pi + np.arctan2(rest[:, 1], rest[:, 0])
        for centre, turn in zip(mobius_add(start, steps, 1.0), angle, strict=True):
            known = np.min(np.linalg.norm(np.array(centres) - centre, axis=1)) < SAME
            if np.linalg.norm(centre) < RIM and not known:
                centres.append(centre)
                angles.append(float(np.mod(turn, 2 * np.pi)))
        place += 1
    return np.array(centres), np.array(angles)


def tiling():
    """Return centres and angles of the tiles, the corners, and the sides as pairs of corners."""
    centres, angles = tiles()
    polygon = on_circle(radii()[0], np.pi * (2 * np.arange(SIDES) + 1) / SIDES)
    corners, sides, numbers = [], set(), {}
    for centre, angle in zip(centres, angles, strict=True):
        ring = []
        for corner in moved(centre, turned(angle, polygon)):
            key = tuple(np.rint(corner / SAME / 8).astype(int))
            around = ((key[0] + i, key[1] + j) for i in (-1, 0, 1) for j in (-1, 0, 1))
            number = next((numbers[near] for near in around if near in numbers), None)
            if number is None:
                number = numbers[key] = len(corners)
                corners.append(corner)
            ring.append(number)
        sides |= {tuple(sorted(pair)) for pair in zip(ring, ring[1:] + ring[:1], strict=True)}
    return centres, angles, np.array(corners), np.array(sorted(sides))


def data():
    """Return the tiling in plain lists; ``home`` are the corners of the middle tile, in order."""
    centres, angles, corners, sides = tiling()
    return {
        "centres": centres.round(7).tolist(),
        "angles": angles.round(7).tolist(),
        "corners": corners.round(7).tolist(),
        "sides": sides.tolist(),
        "home": list(range(SIDES)),
        "side": float(dist(*(corners[[end]] for end in sides[0]), 1.0)[0]),
    }


def geodesic(start, end, count=24):
    """Return points on the geodesic between two points: a straight line, seen from its start."""
    ray = mobius_add(-start, end, 1.0)
    length = np.linalg.norm(ray)
    steps = np.tanh(np.linspace(0, 1, count) * np.arctanh(length))[:, None] * ray / length
    return moved(start, steps)


def figure():
    """A tiling of the Poincaré disk by heptagons, at rest and translated by a point. All tiles have the same size in
    the hyperbolic metric, and all their sides the same length. The three diameters through the centre (dashed) become
    arcs through the point that meet the rim at right angles."""
    import matplotlib.pyplot as plt
    from matplotlib.collections import LineCollection

    _, _, corners, sides = tiling()
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.6), layout="constrained")
    for ax, shift in zip(axes, (np.zeros(2), np.array([0.45, 0.3])), strict=True):
        at = moved(shift, corners)
        # Close to the rim an arc is shorter than a line is wide.
        near = sides[np.linalg.norm(at[sides].mean(axis=1), axis=1) < 0.96]
        ax.add_collection(LineCollection([geodesic(*at[pair], 8) for pair in near], colors="#1f77b4", linewidths=0.7))
        home = np.concatenate([geodesic(at[k], at[(k + 1) % SIDES]) for k in range(SIDES)])
        ax.fill(*home.T, color="#ff7f0e", alpha=0.55, linewidth=0)
        for angle in np.pi * np.arange(3) / 3:
            far = on_circle(0.9999, np.array([angle, angle + np.pi]))
            ax.plot(*geodesic(*moved(shift, far), 200).T, color="#d62728", linestyle="--", linewidth=1)
        ax.plot(*shift, "o", color="#d62728", markersize=4)
        ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="#8a8a8a"))
        ax.set(xlim=(-1.01, 1.01), ylim=(-1.01, 1.01), aspect="equal")
        ax.axis("off")
    return fig
