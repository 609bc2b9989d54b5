"""Mean field of two coupled variables, with loose couplings and with monotone ones."""

import numpy as np

from refnorm.solvers import block_softmax, hollow_coupling, prox_softmax

SIZES = (2, 2)
DAMPING, STEPS = 0.08, 250
BIAS = np.array([0.0, 0.2, 0.0, 0.0])
WEIGHT = np.sqrt(3) * np.hstack([np.eye(2), -np.eye(2)])  # the two variables attract each other


def couplings():
    """Return the hollow matrix without and with the scaling of its blocks."""
    same = np.kron(np.eye(2), np.ones((2, 2))) > 0
    return {"loose": np.where(same, 0, -WEIGHT.T @ WEIGHT), "monotone": hollow_coupling(WEIGHT, SIZES, margin=0.1)}


def states(first, second):
    """Return probabilities of both variables from those of their first states."""
    return np.stack([first, 1 - first, second, 1 - second], axis=-1)


def paths(phi):
    """Damped mean field from starts around the border, shape (steps, starts, 2)."""
    side = np.array([0.02, 0.27, 0.5, 0.73, 0.98])
    first = np.concatenate([side, side, side[[0, 0, 0]], side[[4, 4, 4]]])
    second = np.concatenate([side[[0] * 5], side[[4] * 5], side[1:4], side[1:4]])
    q, seen = states(first, second), []
    for _ in range(STEPS):
        seen.append(q[:, ::2])
        y = (1 - DAMPING) * q + DAMPING * (q @ phi.T + BIAS)
        q = np.concatenate([prox_softmax(y[:, part], damping=DAMPING) for part in (slice(2), slice(2, 4))], axis=1)
    return np.array(seen)


def figure():
    r"""Two variables of two states that attract each other, with $q$ as a point of the square. Each of the thick lines holds
    the points where one variable agrees with its neighbour; states of rest are the crossings, and thin lines are runs of
    the damped iteration. Left: with an attraction of 3 the lines cross three times, and the start decides whether a run
    ends in the upper or in the lower corner. Right: the same weights after their blocks have been scaled, an attraction
    of 0.9. The lines cross once, and all sixteen runs end there."""
    import matplotlib.pyplot as plt

    grid = np.linspace(0, 1, 201)
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained", sharey=True)
    for ax, (name, phi) in zip(axes, couplings().items(), strict=True):
        reply = block_softmax(states(grid, grid) @ phi.T + BIAS, SIZES)
        seen = paths(phi)
        ax.plot(seen[..., 0], seen[..., 1], color="#8a8a8a", linewidth=0.8)
        ax.plot(reply[:, 0], grid, color="#1f77b4", linewidth=2, label="first reacts to second")
        ax.plot(grid, reply[:, 2], "--", color="#d62728", linewidth=2, label="second reacts to first")
        ax.plot(seen[-1, :, 0], seen[-1, :, 1], "o", color="black", markersize=7)
        smallest = np.linalg.eigvalsh(np.eye(4) - phi)[0]
        ax.set_title(rf"{name}: smallest eigenvalue of $I-\Phi$ {smallest:.1f}".replace("-2", "−2"), fontsize=10)
        ax.set(xlabel="probability, first variable", aspect="equal", xlim=(0, 1), ylim=(0, 1))
        ax.grid(visible=False)
    axes[0].set_ylabel("probability, second variable")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=10)
    return fig
