"""Geodesics of the Poincaré disk: a fan through one point, and a vector carried around a triangle."""

import numpy as np

from refnorm.poincare import expmap, logmap, mobius_add, transport

POINT, FOOT = np.array([0.3, 0.42]), np.array([-0.12, -0.2])
"""Where the fan's lines meet, and the point of another line that is nearest to the centre."""
CORNERS = np.array([[-0.52, -0.34], [0.56, -0.32], [0.02, 0.6]])


def walk(start, velocity, times):
    return expmap(np.tile(start, (len(times), 1)), times[:, None] * velocity, 1.0, project=False)


def unit(start, angle):
    return (1 - start @ start) / 2 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def angle_of(vector):
    return np.arctan2(vector[..., 1], vector[..., 0])


def fan():
    """Return the lines' directions at the point, the other line, and for each direction whether it misses that line."""
    line = walk(FOOT, unit(FOOT, angle_of(FOOT) + np.pi / 2), np.linspace(-9, 9, 161))
    # Seen from the point, the line covers the directions between its two ends.
    first, last = angle_of(mobius_add(np.tile(-POINT, (2, 1)), line[[0, -1]], 1.0))
    middle, width = (first + last) / 2, np.abs(last - first) / 2
    angles = middle + np.pi * (np.arange(8) + 0.5) / 8
    return angles, line, np.abs(np.cos(angles - middle)) < np.cos(width)


def round_trip():
    """Carry a vector around the triangle: stations along the sides, and the vector at each of them."""
    places, vectors = [CORNERS[0]], [unit(CORNERS[0], 1.25 * np.pi)]
    for here, there in zip(CORNERS, np.roll(CORNERS, -1, axis=0), strict=True):
        for place in walk(here, logmap(here[None], there[None], 1.0)[0], np.arange(1, 13) / 12):
            vectors.append(transport(places[-1][None], place[None], vectors[-1][None], 1.0)[0])
            places.append(place)
    return np.array(places), np.array(vectors)


def figure():
    r"""Left, eight geodesics through a point $x$, with dots at equal hyperbolic steps. Dots of one distance lie on a circle
    (grey); $x$ is its centre, though not to the eye, since a step looks the shorter the nearer it is to the rim. The thick
    curve is a geodesic as well. In the plane one line through $x$ would never meet it; here the six dashed ones never do.
    Right, a tangent vector is carried counter-clockwise around a triangle, from the arrow at the lower left through the blue
    ones to the red one. It is never turned on the way, and yet comes back turned by 94 degrees: what the triangle's angles, 86
    degrees together, lack of 180."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
    angles, line, misses = fan()
    for angle, missing in zip(angles, misses, strict=True):
        colour, style, velocity = *(("#d62728", "--") if missing else ("#1f77b4", "-")), unit(POINT, angle)
        left.plot(*walk(POINT, velocity, np.linspace(-9, 9, 161)).T, style, color=colour)
        left.plot(*walk(POINT, velocity, np.arange(-3, 3.1, 0.75)).T, "o", color=colour, markersize=3)
    for distance in np.arange(0.75, 3.1, 0.75):
        ring = unit(POINT, np.linspace(0, 2 * np.pi, 181)) * distance
        left.plot(*expmap(np.tile(POINT, (181, 1)), ring, 1.0).T, color="#8a8a8a", linewidth=0.8)
    left.plot(*line.T, color="black", linewidth=2.5)
    left.annotate("$x$", POINT, (0.33, 0.25), fontsize=13)
    places, vectors = round_trip()
    right.plot(*places.T, color="#8a8a8a")
    colours = ["black"] + ["#1f77b4"] * 8 + ["#d62728"]
    right.quiver(*places[::4].T, *vectors[::4].T, color=colours, angles="xy", scale_units="xy", scale=1.1, width=0.012)
    for ax in (left, right):
        ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="#8a8a8a"))
        ax.set(xlim=(-1.02, 1.02), ylim=(-1.02, 1.02), aspect="equal")
        ax.axis("off")
    return fig
