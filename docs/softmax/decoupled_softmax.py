"""Where one step of descent moves the scores of right and wrong labels, under two losses."""

import numpy as np

from refnorm.softmax import decoupled_softmax_loss_vjp, multilabel_softmax_loss_vjp

LOSSES = (("summed softmax", multilabel_softmax_loss_vjp), ("decoupled softmax", decoupled_softmax_loss_vjp))


def figure():
    """One query's scores of three right labels (blue, filled) and seven wrong ones (red, hollow), and the step that
    descent takes from each (arrows, learning rate 5; steps below 0.2 left out). Under the summed softmax loss the easy right label, first by far, is pushed
    down for the sake of the two other right ones, harder than any wrong label is. The decoupled loss lifts all three,
    most of all the two that are not yet safe, and pushes down the wrong labels that are near them."""
    import matplotlib.pyplot as plt

    scores = np.array([[4.0, 1.6, 0.3, 1.2, 0.9, 0.5, 0.0, -0.4, -0.8, -1.3]])
    right = np.arange(10)[None] < 3
    fig, axes = plt.subplots(1, 2, figsize=(7, 3), sharey=True, layout="constrained")
    for ax, (name, loss) in zip(axes, LOSSES, strict=True):
        (step,) = loss(scores, right, normalize_by_positives=True)[1](np.float64(-5))[:1]
        for i, (score, move, ok) in enumerate(zip(scores[0], step[0], right[0], strict=True)):
            color = "#1f77b4" if ok else "#d62728"
            ax.plot(i, score, "o", color=color, markersize=7, markerfacecolor=color if ok else "none")
            if abs(move) > 0.2:
                arrow = {"arrowstyle": "->", "color": color, "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
                ax.annotate("", (i, score + move), (i, score), arrowprops=arrow)
        ax.set_title(name, fontsize=11)
        ax.set(xticks=[1, 6], xticklabels=["right labels", "wrong labels"], ylim=(-1.8, 4.7))
        ax.tick_params(axis="x", length=0)
        ax.grid(visible=False, axis="x")
    axes[0].set_ylabel("score")
    return fig
