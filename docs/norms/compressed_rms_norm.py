"""Where layer norm, RMSNorm and compressed RMSNorm put vectors of two and three entries."""

import numpy as np

from refnorm import norms


def arrows(ax, start, end, color):
    """Draw how each vector moves, with a dot at its end."""
    shift = (end - start).T
    ax.quiver(*start.T, *shift, color=color, angles="xy", scale_units="xy", scale=1, width=0.006, alpha=0.6)
    ax.plot(*end.T, "o", color=color, markersize=5)


def figure():
    r"""Left, twelve vectors of two entries. RMSNorm (blue) puts each where its own direction meets the circle of radius
    $\sqrt2$; layer norm (red squares) knows only two results, the ends of the dashed line of vectors that sum to zero. On that line,
    and nowhere else, the two agree. Right, vectors of three entries that sum to zero, stored as their first two. Compressed RMSNorm
    moves each along its own direction as well, onto an ellipse and not a circle, because the entry that is not stored counts."""
    import matplotlib.pyplot as plt

    far = np.tile([[0.55], [1.6]], (6, 1))
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)

    x = np.sqrt(2) * far * circle[np.arange(12) * 16 + 5]
    left.plot(*(np.sqrt(2) * circle.T), color="#8a8a8a")
    left.plot([-2.3, 2.3], [2.3, -2.3], "--", color="black")
    arrows(left, x, norms.rms_norm(x), "#1f77b4")
    left.plot(*norms.layer_norm(x, np.ones(2), np.zeros(2)).T, "s", color="#d62728", markersize=9)
    left.text(1.55, -0.62, "layer norm", color="#d62728")
    left.text(-0.1, 1.58, "RMSNorm", color="#1f77b4")

    ring = norms.compressed_rms_norm(circle)
    z = far * norms.compressed_rms_norm(circle[np.arange(12) * 16 + 5])
    right.plot(*ring.T, color="#8a8a8a")
    arrows(right, z, norms.compressed_rms_norm(z), "#2ca02c")
    for ax, names in ((left, ("$x_1$", "$x_2$")), (right, ("$z_1$", "$z_2$"))):
        ax.set(xlabel=names[0], ylabel=names[1], aspect="equal", xlim=(-2.6, 3.4), ylim=(-2.6, 2.6))
        ax.set(xticks=[-2, 0, 2], yticks=[-2, 0, 2])
    return fig
