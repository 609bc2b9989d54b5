"""Where the gradients of five convex functions point: the sets that hold the weights."""

import numpy as np

from refnorm.solvers import make_kappa

NAMES = {"l1": "l1 (Lion)", "l2": "l2", "topk": "topk, $k=1$", "relu": "relu", "huber": "huber"}


def figure():
    r"""Lion-K's step pulls $\lambda x$ towards $\nabla\mathcal K(\tilde m)$. The panels show these targets (dots) for momenta in 72
    directions (lengths 0.3 to 3), for five functions; grey is the domain of $\mathcal K^*$, in which
    $\lambda x$ must end. For the 1-norm the targets are the corners of the box, whichever way the momentum points; for the 2-norm they are
    the circle. The sum of the $k$ largest magnitudes moves one coordinate at a time, and $\max(z,0)$ allows no negative weights. Huber's function,
    whose gradient is not only a sign, can aim inside of the box."""
    import matplotlib.pyplot as plt

    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False) + 0.01
    lengths = np.random.default_rng(0).uniform(0.3, 3, 72)
    momenta = lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ticks = np.linspace(-1.3, 1.3, 105)
    fig, axes = plt.subplots(1, 5, figsize=(7, 2.1), layout="constrained", sharey=True)
    for ax, (name, title) in zip(axes, NAMES.items(), strict=True):
        kappa = make_kappa(name)
        inside = np.array([[kappa.in_domain(np.array([u, v])) for u in ticks] for v in ticks])
        ax.contourf(ticks, ticks, inside, levels=(0.5, 1.5), colors="#8a8a8a", alpha=0.35)
        targets = np.array([kappa.gradient(m) for m in momenta])
        ax.plot(*targets.T, "o", color="#d62728", markersize=4)
        ax.set(aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1], xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
        ax.set_title(title, fontsize=11)
    axes[0].set_ylabel("second entry")
    axes[2].set_xlabel(r"first entry of the targets $\nabla\mathcal{K}(\tilde m)$")
    return fig
