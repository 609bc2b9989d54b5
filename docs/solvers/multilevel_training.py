"""First-layer weights of a network, of the small one that is trained for it, and of what comes back."""

import numpy as np
from sklearn.datasets import load_digits

from refnorm.nn import linear_vjp, relu_vjp
from refnorm.softmax import cross_entropy_vjp
from refnorm.solvers import coalesce, decoalesce, interpolate, mlp_width_plan

WIDTH = 8


def train(params, steps, rate=0.5):
    """Gradient descent on all digits, for a network with one hidden layer."""
    x, target = load_digits(return_X_y=True)
    x = (x - x.mean(axis=0)) / 16
    (weight, bias), (head, offset) = params
    for _ in range(steps):
        hidden, back_first = linear_vjp(x, weight, bias)
        active, back_relu = relu_vjp(hidden)
        logits, back_head = linear_vjp(active, head, offset)
        _, back_loss = cross_entropy_vjp(logits, target)
        dactive, dhead, doffset = back_head(back_loss(1.0)[0])
        _, dweight, dbias = back_first(back_relu(dactive)[0])
        weight, bias = weight - rate * dweight, bias - rate * dbias
        head, offset = head - rate * dhead, offset - rate * doffset
    return [(weight, bias), (head, offset)]


def networks():
    """Return the networks of a V-cycle with two levels, in order."""
    rng = np.random.default_rng(1)
    start = [
        (rng.standard_normal((64, WIDTH)) / 20, np.zeros(WIDTH)),
        (rng.standard_normal((WIDTH, 10)) / 1.5, np.zeros(10)),
    ]
    plan = mlp_width_plan(start)
    big = train(start, 80)
    merged = coalesce(big, plan)
    small = train(merged, 160)
    grown = decoalesce(small, plan)
    blend = interpolate(big, grown, 0.5)
    return {"big": big, "merged": merged, "trained": small, "copied": grown, "blend": blend}


def figure():
    r"""What the hidden units of a small network for digits look for in a picture of $8\times8$ pixels, stage by stage. The
    first two rows: eight units, trained a little, are averaged in pairs (1 with 5, 2 with 6, and so on). The third: the four are
    trained at half the price. The fourth: each is copied to both places; the pairs are identical and would stay so. The last:
    the mean with the first row keeps what the small network has learned and makes the pairs differ again."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(5, WIDTH, figsize=(7, 4.2), layout="constrained")
    for row, (name, params) in zip(axes, networks().items(), strict=True):
        for unit, ax in enumerate(row):
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
            if unit >= params[0][0].shape[1]:
                ax.axis("off")
                continue
            image = ax.imshow(params[0][0][:, unit].reshape(8, 8), cmap="PuOr_r", vmin=-0.8, vmax=0.8)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for unit, ax in enumerate(axes[0]):
        ax.set_title(f"{unit + 1}", fontsize=10)
    fig.get_layout_engine().set(h_pad=0.02, hspace=0.02)
    fig.colorbar(image, ax=axes, shrink=0.5, ticks=[-0.8, 0, 0.8], label="weight")
    return fig
