"""A signal in a maze: after a few rounds of messages, and at the fixed point."""

import numpy as np

from refnorm.solvers import graph_fixed_point

SIZE, CONTRACTION = 15, 0.99


def maze():
    """Return the walls, and both directions of each edge between neighbouring free places."""
    walls = np.zeros((SIZE, SIZE), bool)
    walls[:-3, 4] = walls[3:, 8] = walls[:-3, 12] = True
    walls[6, 9:11] = True
    number = np.arange(SIZE**2).reshape(SIZE, SIZE)
    across, down = ~(walls[:, 1:] | walls[:, :-1]), ~(walls[1:] | walls[:-1])
    here = np.concatenate([number[:, :-1][across], number[:-1][down]])
    there = np.concatenate([number[:, 1:][across], number[1:][down]])
    return walls, np.concatenate([here, there]), np.concatenate([there, here])


def states():
    """Return the states after 8 and 25 rounds and at the fixed point: one place has a bias of 1, every edge the logit 1."""
    walls, src, dst = maze()
    b = np.zeros((SIZE**2, 1))
    b[0] = 1
    logits = np.ones((len(src), 1))
    options = {"contraction": CONTRACTION, "tol": 1e-12}
    found = {
        f"{rounds} rounds": graph_fixed_point(logits, b, src, dst, max_iter=rounds, **options).x for rounds in (8, 25)
    }
    found["fixed point"] = graph_fixed_point(logits, b, src, dst, method="direct", **options).x
    return walls, {name: z.reshape(SIZE, SIZE) for name, z in found.items()}


def figure():
    """A maze as a graph: every free place is a node that hands its state on to its neighbours, in equal shares and with a
    contraction of 0.99, and only the corner with the red dot has a bias. A network of 8 or 25 rounds of messages leaves most
    of the maze at exactly 0 (no colour): the farthest corner is 58 steps away along the corridors. At the fixed point the
    signal has arrived everywhere, and no number of rounds had to be chosen."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    walls, found = states()
    fig, axes = plt.subplots(1, 3, figsize=(7, 2.5), layout="constrained")
    for ax, (name, z) in zip(axes, found.items(), strict=True):
        image = ax.imshow(np.where(z > 0, z, np.nan), cmap="viridis", norm=LogNorm(1e-8, 1))
        ax.imshow(np.where(walls, 1.0, np.nan), cmap="gray", vmin=0, vmax=2)
        ax.plot(0, 0, "o", color="#d62728")
        ax.set_title(name, fontsize=11)
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
    fig.colorbar(image, ax=axes, shrink=0.8, label="state $z$")
    return fig
