"""The weights of a dense and of a sparse gate around a circle, and the regions of a plane that select the same experts."""

import numpy as np

from refnorm.softmax import topk_softmax

LOOKS = (("#1f77b4", "-"), ("#d62728", "--"), ("#2ca02c", "-."), ("#9467bd", ":"), ("#ff7f0e", "-"))
FILLS = ["#5aa9e6", "#f2b36b", "#7fc97f", "#e58a8a", "#b794e0", "#c9a58f", "#9adbd8", "#d9d37a"]


def figure():
    r"""Five experts over a plane of inputs. Left: which two of them are selected, one colour a pair. The selection cuts the plane into wedges, because the order
    of the scores $\beta_{1i}^\top x$ does not depend on the length of $x$. Middle and right: the experts' weights along the circle, with all of
    them taking part and with the best two. Within a wedge two experts share what there is, and the other three need not be computed; where a
    wedge ends, one weight falls to 0 and another jumps up."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap

    angles = np.array([0.0, 1.1, 2.6, 3.7, 5.0])
    gate = 2.5 * np.stack([np.cos(angles), np.sin(angles)]) * np.array([1.0, 0.9, 1.1, 0.8, 1.0])
    fig, (plane, dense, sparse) = plt.subplots(1, 3, figsize=(7, 2.7), layout="constrained")
    side = np.linspace(-1, 1, 160)
    mask = topk_softmax(np.stack(np.meshgrid(side, side), axis=-1) @ gate, top_k=2)[1]
    pairs = np.unique(mask @ (1 << np.arange(5)), return_inverse=True)[1].reshape(160, 160)
    colors = ListedColormap(FILLS[: pairs.max() + 1])
    plane.imshow(pairs, cmap=colors, extent=(-1, 1, -1, 1), origin="lower")
    turn = np.linspace(0, 2 * np.pi, 361)
    circle = 0.8 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    plane.plot(*circle.T, color="#0f0f0f", linestyle="--", linewidth=1)
    plane.set(xlabel="$x_1$", ylabel="$x_2$", xticks=[-1, 1], yticks=[-1, 1])
    plane.grid(visible=False)
    for ax, top_k, name in ((dense, 5, "all five"), (sparse, 2, "best two")):
        for weight, (color, style) in zip(topk_softmax(circle @ gate, top_k=top_k)[0].T, LOOKS, strict=True):
            ax.plot(turn * 180 / np.pi, weight, style, color=color, linewidth=1.8)
        ax.set_title(name, fontsize=11)
        ax.set(xlabel="angle, degrees", xticks=[0, 180, 360], ylim=(-0.03, 1.03))
    dense.set_ylabel("weight")
    return fig
