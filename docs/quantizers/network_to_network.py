"""What a removal policy learns to do with eight layers, iteration by iteration."""

import numpy as np

from refnorm.quantizers import RemovalPolicy, reinforce_search

COSTS = np.array([8, 1, 8, 1, 8, 1, 8, 1])
"""Parameters of the layers."""
BLOCKS, ITERATIONS = 16, 10


def reward(keep, _=0):
    """Return compression times (2 - compression) times relative accuracy, which falls by a quarter below three layers."""
    if not keep.any():
        return -1.0
    compression = 1 - (COSTS @ keep) / COSTS.sum()
    return float(compression * (2 - compression) * (1 if keep.sum() >= 3 else 0.75))


def learn():
    """Return the rollouts of every tenth iteration, and the policy's probability of keeping each layer there."""
    rng = np.random.default_rng(0)
    codes = np.stack([COSTS, COSTS], axis=1) / 8.0
    policy = RemovalPolicy.init(rng, codes.shape[1])
    rollouts, kept = [], []
    for _ in range(BLOCKS):
        rollouts.append(policy.sample(codes, rng, n_rollouts=5))
        kept.append(np.exp(policy.log_probs(codes, np.ones((1, 8), int))[0, :, 1]))
        policy = reinforce_search(policy, codes, reward, n_iter=ITERATIONS, rng=rng, learning_rate=1e-2).policy
    return np.array(rollouts), np.array(kept).T


def figure():
    r"""A removal policy reads eight layers, of 8 and of 1 parameters in turn, and learns which to keep. Left: five students that
    it draws at the beginning, one a column (dark: layer kept), with their rewards below. Middle: the probability with which it
    keeps each layer. It begins near one half for all; rewards alone move it, until cheap layers are kept and expensive ones
    dropped. Right: after 150 iterations all five students are the same one, with a ninth of the parameters and the
    reward $0.99$. (Accuracy is a formula here: it falls by a quarter where fewer than three layers are left.)"""
    import matplotlib.pyplot as plt

    rollouts, kept = learn()
    fig, axes = plt.subplots(1, 3, figsize=(7, 3), layout="constrained", sharey=True, width_ratios=(5, 9, 5))
    for ax, students in ((axes[0], rollouts[0]), (axes[2], rollouts[-1])):
        ax.imshow(students.T, cmap="viridis_r", vmin=0, vmax=1, aspect="auto")
        ax.set_xticks(range(5), [f"{reward(one):.2f}".lstrip("0") for one in students])
        ax.set_xlabel("rewards")
    image = axes[1].imshow(kept, cmap="viridis_r", vmin=0, vmax=1, aspect="auto")
    axes[1].set_xticks(range(0, BLOCKS, 5), range(0, BLOCKS * ITERATIONS, 5 * ITERATIONS))
    axes[1].set_xlabel("iteration")
    axes[0].set_yticks(range(8), COSTS)
    axes[0].set_ylabel("parameters of each layer")
    for ax, title in zip(axes, ("five at first", "probability of keeping", "five at last"), strict=True):
        ax.set_title(title, fontsize=11)
        ax.grid(visible=False)
    fig.colorbar(image, ax=axes, ticks=[0, 0.5, 1])
    return fig
