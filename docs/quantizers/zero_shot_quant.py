"""What digits, noise and distilled inputs do to a batch norm's input in a small network."""

from functools import partial, reduce

import numpy as np
from sklearn.datasets import load_digits

from refnorm.nn import conv2d_vjp, relu_vjp
from refnorm.norms import batch_norm_vjp
from refnorm.quantizers import distill_data

AXES, IMAGES, CHANNELS = (0, 2, 3), 64, 8


def network(x):
    """Return the layers of two convolutions with batch norms that have stored the statistics of ``x``, and these."""
    rng = np.random.default_rng(0)
    layers, stored, h = [], [], x
    for inputs in (1, CHANNELS):
        weight = rng.standard_normal((CHANNELS, inputs, 3, 3)) * np.sqrt(2 / (9 * inputs))
        h = conv2d_vjp(h, weight, padding=1)[0]
        stats = {"mean": h.mean(axis=AXES), "var": h.var(axis=AXES)}
        stored.append((len(layers) + 1, *stats.values()))
        norm = partial(batch_norm_vjp, gain=np.ones(CHANNELS), bias=np.zeros(CHANNELS), axes=AXES, **stats)
        layers += [partial(conv2d_vjp, weight=weight, padding=1), norm, relu_vjp]
        h = relu_vjp(norm(h)[0])[0]
    return layers, stored


def inputs():
    """Return digits, noise and distilled images, each with the inputs of the second batch norm, and its stored statistics."""
    digits = load_digits().images[:300, None]
    digits = (digits - digits.mean()) / digits.std()
    layers, stored = network(digits)
    rng = np.random.default_rng(0)
    distilled = distill_data(layers, stored, (IMAGES, 1, 8, 8), n_iter=150, rng=rng).x
    kinds = {"digits": digits[:IMAGES], "noise": rng.standard_normal((IMAGES, 1, 8, 8)), "distilled": distilled}
    found = {name: (x, reduce(lambda h, layer: layer(h)[0], layers[:4], x)) for name, x in kinds.items()}
    return found, stored[1]


def figure():
    r"""Inputs of a network whose batch norms have stored the statistics of digits (two convolutions of random weights). Left: one
    digit, one image of noise, one distilled image. Middle: a mark is one image, at the mean and the deviation that it causes in one
    channel of the second batch norm's input. Noise is mostly off the stored pair (ring), and digits scatter about it; distilled images, made
    from nothing but what the batch norms store, are all at it. Right: the largest value of each channel over 64 images, the upper
    end of a quantizer's range. Distilled images come nearer to the digits' (diagonal) on average than noise does."""
    import matplotlib.pyplot as plt

    found, (_, mean, var) = inputs()
    tops = {name: h.max(axis=AXES) for name, (_, h) in found.items()}
    channel = int(np.abs(found["noise"][1].mean(axis=AXES) - mean).argmax())
    layout = [[name, "middle", "right"] for name in found]
    fig, axes = plt.subplot_mosaic(layout, figsize=(7, 3.2), layout="constrained", width_ratios=(1.1, 3, 3))
    marks = {"digits": ("o", "#8a8a8a"), "noise": ("x", "#d62728"), "distilled": ("^", "#1f77b4")}
    for name, (x, h) in found.items():
        axes[name].imshow(x[3, 0], cmap="PuOr_r", vmin=-2.5, vmax=2.5)
        axes[name].set_title(name, fontsize=10)
        axes[name].set(xticks=[], yticks=[])
        marker, colour = marks[name]
        spread = h[:, channel].std(axis=(1, 2), ddof=1)
        axes["middle"].scatter(h[:, channel].mean(axis=(1, 2)), spread, s=20, marker=marker, color=colour, label=name)
        if name != "digits":
            axes["right"].scatter(tops["digits"], tops[name], s=36, marker=marker, color=colour)
    ring = {"markersize": 14, "markeredgewidth": 2, "fillstyle": "none", "color": "black"}
    axes["middle"].plot(mean[channel], np.sqrt(var[channel]), "o", **ring)
    axes["middle"].set(xlabel="mean in an image", ylabel="deviation in an image")
    axes["middle"].legend(handletextpad=0.1)
    axes["right"].axline((0, 0), slope=1, color="#8a8a8a", linewidth=1)
    axes["right"].set(xlabel="largest value, digits", ylabel="largest value, others", xlim=(0, 5), ylim=(0, 5))
    return fig
