"""A residual of Poisson's equation, the best direction for it, and what a trained and an untrained network propose."""

import numpy as np
from claims.solvers.deep_conjugate_direction import MATRIX, SHAPE, SIZE, load_weights, proposal

from refnorm.solvers import conjugate_direction, init_direction_net


def energies(b, best, propose, steps=8):
    """Return the squared error in the norm of A after each iteration, relative to that at the start."""
    points = [conjugate_direction(MATRIX, b, propose, max_iter=k, tol=1e-12).x for k in range(1, steps + 1)]
    return [1.0] + [float((x - best) @ MATRIX(x - best) / (best @ b)) for x in points]


def figure():
    r"""Poisson's equation on 32 by 32 points. The first residual, a white right-hand side, does not look at all like the best
    direction $A^{-1}r$, a landscape of hills and valleys. A network of 7097 weights that has seen 200 residuals of this matrix, and not
    one solution, draws nearly that landscape (cosine 0.98 in the inner product of $A$), turned upside down: length and sign are
    the line search's business. Right: the energy of the error. It never rises, even along the proposals of an untrained
    network."""
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(0)
    b = rng.standard_normal(SIZE)
    best = np.linalg.solve(MATRIX(np.eye(SIZE)), b)
    trained, untrained = proposal(load_weights()), proposal(init_direction_net(rng))
    images = {"residual $r$": b, "$A^{-1}r$": best, "network": trained(b / np.linalg.norm(b))}
    fig, axes = plt.subplots(1, 4, figsize=(7, 2.1), layout="constrained", width_ratios=(1, 1, 1, 1.5))
    for ax, (name, v) in zip(axes, images.items(), strict=False):
        ax.imshow(v.reshape(SHAPE) / np.abs(v).max(), cmap="PuOr_r", vmin=-1, vmax=1)
        ax.set_title(name, fontsize=11)
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
    for name, propose, style, place in (
        ("untrained network", untrained, ":", (0.5, 2)),
        ("residuals", lambda r: r, "--", (4.5, 4e-3)),
        ("network", trained, "-", (0.2, 1e-5)),
    ):
        axes[3].plot(energies(b, best, propose), style, color="#1f77b4")
        axes[3].text(*place, name, fontsize=9, va="top" if name != "untrained network" else "bottom")
    axes[3].set(
        yscale="log", xlabel="iteration", ylabel="energy", ylim=(1e-9, 100), yticks=[1e-8, 1e-4, 1], xticks=[0, 4, 8]
    )
    return fig
