"""Which entries of a feature map share statistics, found by asking each norm's pullback."""

import numpy as np

from refnorm.norms import batch_norm_vjp, group_norm_vjp, instance_norm_vjp, layer_norm_vjp, rms_norm_vjp

SHAPE = (3, 6, 5)
"""Examples, channels, places."""
GROUPS = 2
EXAMPLES, CHANNELS, PLACES = SHAPE
GAIN, BIAS = np.ones(CHANNELS), np.zeros(CHANNELS)
WHOLE_GAIN, WHOLE_BIAS = np.ones((CHANNELS, PLACES)), np.zeros((CHANNELS, PLACES))


def per_place(vector_norm_vjp):
    """Return a norm of vectors as one of the channels at each place, as in a transformer, where a place is a token."""

    def run(x):
        y, pullback = vector_norm_vjp(np.moveaxis(x, 1, -1))
        return np.moveaxis(y, -1, 1), lambda dy: (np.moveaxis(pullback(np.moveaxis(dy, 1, -1))[0], -1, 1),)

    return run


NORMS = {
    "Batch": lambda x: batch_norm_vjp(x, GAIN, BIAS, axes=(0, 2)),
    "Layer": lambda x: layer_norm_vjp(x, WHOLE_GAIN, WHOLE_BIAS, axes=(1, 2)),
    "Layer, per token": per_place(lambda x: layer_norm_vjp(x, GAIN, BIAS)),
    "RMS, per token": per_place(lambda x: rms_norm_vjp(x, GAIN)),
    "Instance": lambda x: instance_norm_vjp(x, GAIN, BIAS),
    f"Group ({GROUPS} groups)": lambda x: group_norm_vjp(x, GAIN, BIAS, groups=GROUPS),
}


def influence(norm_vjp):
    """Return whether each output (rows) depends on each input (columns): its gradient there is not zero."""
    _, pullback = norm_vjp(feature_map())
    cotangents = np.eye(np.prod(SHAPE)).reshape(-1, *SHAPE)
    return np.array([pullback(dy)[0].ravel() != 0 for dy in cotangents])


def feature_map():
    return np.random.default_rng(0).normal(size=SHAPE)


def removes_mean(norm_vjp):
    """Return whether a shift of everything leaves the output as it was."""
    x = feature_map()
    return bool(np.allclose(norm_vjp(x + 1)[0], norm_vjp(x)[0]))


def sets(norm_vjp):
    """Return the number of the set that each entry belongs to: entries that depend on the same inputs."""
    rows = [row.tobytes() for row in influence(norm_vjp)]
    numbers = {row: number for number, row in enumerate(dict.fromkeys(rows))}
    return [numbers[row] for row in rows]


def data():
    """Return the shape and, by norm, the set of each entry (examples, then channels, then places)."""
    norms = [
        {"name": name, "sets": sets(norm_vjp), "removesMean": removes_mean(norm_vjp)}
        for name, norm_vjp in NORMS.items()
    ]
    return {"shape": list(SHAPE), "norms": norms}


ALONG, DOWN, BACK = np.array([0.866, -0.5]), np.array([0.0, -1.0]), np.array([0.866, 0.5])
"""Where the drawing goes with the channel, the place, and into the depth: equal lengths, equal angles."""


def faces(example, channel, place):
    """Return the visible faces of one entry's cube; examples stand side by side."""
    corner = np.array([example * (CHANNELS + 2) * ALONG[0], 0.0]) + channel * ALONG + place * DOWN
    found = [[corner, corner + ALONG, corner + ALONG + DOWN, corner + DOWN]]
    if place == 0:
        found.append([corner, corner + BACK, corner + BACK + ALONG, corner + ALONG])
    if channel == CHANNELS - 1:
        right = corner + ALONG
        found.append([right, right + BACK, right + BACK + DOWN, right + DOWN])
    return found


def figure():
    """Three examples of a feature map, each a slab of channels (to the lower right) and places (downwards). The red entry's
    output depends on the orange entries: they share its statistics. Which they are was asked of each norm's pullback, whose
    gradient is zero everywhere else."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Polygon

    chosen = np.ravel_multi_index((1, 2, 1), SHAPE)
    fig, axes = plt.subplots(3, 2, figsize=(7.4, 6.2), layout="constrained")
    for ax, (name, norm_vjp) in zip(axes.ravel(), NORMS.items(), strict=True):
        number = sets(norm_vjp)
        for entry, place in enumerate(np.ndindex(*SHAPE)):
            shared = number[entry] == number[chosen]
            for shade, face in enumerate(faces(*place)):
                colour, alpha = (
                    ("#ff7f0e", (1.0, 0.55, 0.75)[shade]) if shared else ("#8a8a8a", (0.12, 0.2, 0.28)[shade])
                )
                colour = "#d62728" if entry == chosen else colour
                ax.add_patch(Polygon(face, facecolor=colour, alpha=alpha, edgecolor="none"))
                ax.add_patch(Polygon(face, facecolor="none", edgecolor="#8a8a8a", linewidth=0.5))
        ax.set(xlim=(-0.3, 20.9), ylim=(-8.3, 0.8), aspect="equal")
        ax.set_title(name, fontsize=10)
        ax.axis("off")
    return fig
