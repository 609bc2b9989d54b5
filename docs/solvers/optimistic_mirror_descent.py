"""Plays and corrections of optimistic steps, for gradients that turn slowly and for noise."""

import numpy as np

from refnorm.solvers import BallDomain, OptimisticOMD

RATE, ROUNDS = 0.12, 14


def streams():
    """Two sequences of unit gradients in the plane."""
    turning = np.linspace(np.pi, 2.4 * np.pi, ROUNDS)
    noise = np.random.default_rng(5).uniform(0, 2 * np.pi, ROUNDS)
    return {name: np.stack([np.cos(a), np.sin(a)], axis=1) for name, a in (("turning", turning), ("noise", noise))}


def run(gradients):
    """Return corrected points (rounds + 1, 2), plays (rounds, 2), and the sum of squared surprises."""
    learner = OptimisticOMD(BallDomain(1.0), step="fixed", learning_rate=RATE, grad_bound=1.001)
    state, points, plays = learner.init(np.zeros(2)), [np.zeros(2)], []
    for gradient in gradients:
        plays.append(learner.play(state))
        state = learner.observe(state, gradient)
        points.append(state.point)
    return np.array(points), np.array(plays), float(state.variation)


def figure():
    r"""Fourteen rounds in the plane with steps of one length. Each round starts from a corrected point $\hat x_t$ (circle), plays
    $x_t$ (cross) one step along the last gradient, and then goes to $\hat x_{t+1}$ along the true one. Red is what the round pays
    for, from the play to the correction: $\eta\lVert g_t-M_t\rVert$. Where the gradient turns slowly, a play is almost the next
    correction, and $\sum\lVert g_t-M_t\rVert^2$ is 2.5, of which the first round, without a hint, has 1. Where gradients are
    noise, the hint says nothing, and the sum is 26, close to $2$ a round."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained")
    for ax, (name, gradients) in zip(axes, streams().items(), strict=True):
        points, plays, surprise = run(gradients)
        for play, point in zip(plays, points[1:], strict=True):
            ax.plot(*np.array([play, point]).T, color="#d62728", linewidth=2)
        ax.plot(*points.T, "o-", color="#1f77b4", linewidth=0.8, markersize=5, label=r"corrected $\hat x_t$")
        ax.plot(*plays.T, "x", color="black", markersize=7, markeredgewidth=1.6, label="play $x_t$")
        ax.plot([], [], color="#d62728", linewidth=2, label=r"paid, $\eta\Vert g_t-M_t\Vert$")
        ax.set(aspect="equal", xticks=[], yticks=[])
        ax.set_title(rf"{name}: $\sum\Vert g_t-M_t\Vert^2={surprise:.1f}$", fontsize=10)
        ax.grid(visible=False)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=10)
    return fig
