"""The error of an approximate solution: what smoothing leaves, and what a V-cycle leaves."""

import numpy as np

from refnorm.solvers import padded_conv2d, poisson_vcycle, vcycle

SIDE = 31
STENCIL = np.array([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]])[None, None] * (SIDE + 1) ** 2


def errors():
    """Return an error with a rough and a smooth part, and what is left of it after smoothing or a cycle."""
    grid = np.arange(1, SIDE + 1) / (SIDE + 1)
    rng = np.random.default_rng(0)
    smooth = np.outer(np.sin(np.pi * grid), np.sin(2 * np.pi * grid))
    error = (smooth + 0.5 * rng.standard_normal((SIDE, SIDE)))[None, None]
    ways = {
        "4 smoothings": (poisson_vcycle(SIDE, 1, smoothings=((4, 0),)), 1),
        "40 smoothings": (poisson_vcycle(SIDE, 1, smoothings=((4, 0),)), 10),
        "1 V-cycle (4 + coarser)": (poisson_vcycle(SIDE, 4), 1),
    }
    shown = {"error before": error[0, 0]}
    for name, (weights, times) in ways.items():
        left = error
        for _ in range(times):
            left = left - vcycle(padded_conv2d(left, STENCIL), weights, geometry="odd")
        shown[name] = left[0, 0]
    return shown


def figure():
    r"""The error $u^\star-u$ of an approximate solution of Poisson's equation on $31\times31$ points, and what is left of it
    (RMS: root mean square). Four smoothings with a stencil that sees the next neighbours remove what is rough; the
    smooth part survives even forty of them. A V-cycle with four smoothings on this grid and some on three coarser ones
    removes both, because a smooth error is a rough one on a grid that is coarse enough."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 4, figsize=(7, 2.4), layout="constrained")
    for ax, (name, error) in zip(axes, errors().items(), strict=True):
        image = ax.imshow(error, cmap="PuOr_r", vmin=-1.5, vmax=1.5)
        ax.set_title(name, fontsize=9)
        ax.set_xlabel(f"RMS {np.sqrt(np.mean(error**2)):.2f}")
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
    fig.colorbar(image, ax=axes, shrink=0.7, ticks=[-1.5, 0, 1.5])
    return fig
