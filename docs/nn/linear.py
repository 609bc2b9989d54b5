"""The weight of a linear layer that reads digits, and how one digit's scores are made of it."""

import numpy as np
from sklearn.datasets import load_digits

from refnorm import nn
from refnorm.softmax import cross_entropy_vjp

EXAMPLE, STEPS = 3, 100


def learn():
    """Return images without their mean, and weight and bias after gradient descent from zero."""
    data = load_digits()
    x, target = data.data / 16 - (data.data / 16).mean(axis=0), data.target
    weight, bias = np.zeros((64, 10)), np.zeros(10)
    for _ in range(STEPS):
        y, back = nn.linear_vjp(x, weight, bias)
        _, back_loss = cross_entropy_vjp(y, target)
        _, dweight, dbias = back(*back_loss(np.float64(1)))
        weight, bias = weight - dweight, bias - dbias
    return x, weight, bias


def figure():
    """Upper row: the ten columns of the weight of a linear layer that has learned to tell digits apart, drawn as images (orange
    for, violet against). Lower row: one image, a 3 from which the mean image is subtracted, and its product with each column, pixel
    by pixel. The sum over the pixels plus a bias is that digit's score, the number below; 3 has the
    largest."""
    import matplotlib.pyplot as plt

    x, weight, bias = learn()
    image = x[EXAMPLE]
    scores = nn.linear(image, weight, bias)
    fig, axes = plt.subplots(2, 11, figsize=(7, 2.1), layout="constrained")
    axes[0, 0].set_axis_off()
    panels = [(axes[1, 0], image, 1)]
    for digit in range(10):
        column = weight[:, digit]
        axes[0, digit + 1].set_title(str(digit), fontsize=11)
        axes[1, digit + 1].set_xlabel(f"{scores[digit]:.1f}", fontsize=10)
        panels += [(axes[0, digit + 1], column, np.abs(weight).max()), (axes[1, digit + 1], image * column, 0.8)]
    for ax, values, size in panels:
        ax.imshow(values.reshape(8, 8), cmap="PuOr_r", vmin=-size, vmax=size)
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
    axes[1, 0].set_title("image", fontsize=11)
    return fig
