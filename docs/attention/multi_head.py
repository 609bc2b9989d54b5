"""What one head and two heads hand on when a token looks at two places."""

import numpy as np

from refnorm.attention import multi_head_attention

LENGTH, SHARPNESS = 8, 6.0
TURN = 2 * np.pi * np.outer(np.arange(LENGTH), np.arange(1, 5)) / LENGTH


def places(offset):
    """Position features whose inner product with those at offset 0 is largest ``offset`` places further on (a circle)."""
    angle = TURN + 2 * np.pi * offset * np.arange(1, 5) / LENGTH
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1)


def look(offsets):
    """Self-attention of eight tokens with one head for each list of offsets; tokens are one-hot, so outputs are weights."""
    query = [SHARPNESS * sum(places(o) for o in group) for group in offsets]
    key = [places(0)] * len(offsets)
    value = [np.eye(LENGTH)] * len(offsets)
    weight_in = np.concatenate(query + key + value, axis=1)  # each token's rows of the projections
    weight_out = np.eye(LENGTH * len(offsets))
    return multi_head_attention(np.eye(LENGTH)[None], weight_in, None, weight_out, None, heads=len(offsets))[0]


def figure():
    """Eight tokens, each of which wants the token before it and the one three places after it (counted round the circle). A row is what a token
    receives, one column for each token that there is. One head returns the mean of the two: both have the weight one half, and nothing
    says which was which. Two heads, left and right of the line, keep them apart: each finds one token, with a weight near 1, and the
    last projection receives both."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7, 2.9), layout="constrained", width_ratios=(1, 2))
    for ax, offsets, name in ((axes[0], [(-1, 3)], "one head"), (axes[1], [(-1,), (3,)], "two heads")):
        y = look(offsets)
        image = ax.imshow(y, cmap="viridis", vmin=0, vmax=1)
        ax.set_title(name, fontsize=11)
        ax.set(
            xticks=range(0, y.shape[1], 2),
            xticklabels=[str(i % LENGTH) for i in range(0, y.shape[1], 2)],
            yticks=[0, 7],
        )
        ax.set_xlabel("token received")
        ax.grid(visible=False)
    axes[1].axvline(LENGTH - 0.5, color="#d62728", linewidth=2.5)
    axes[0].set_ylabel("token")
    fig.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 0.5, 1])
    return fig
