"""A random network of one input, before and after training nothing but the gains and biases of its norm."""

import numpy as np

from refnorm import nn, norms

WIDTH, STEPS, RATE = 24, 1500, 0.03


def target(x):
    """Return the curve to be learned."""
    return np.sin(2 * x)


def network_vjp(x, weight, output, gain, bias):
    """Return features (n, WIDTH) and values (n,), and the pullback from values to gain and bias."""
    hidden = nn.linear(x[:, None], weight)
    state = norms.BatchNormState.create(WIDTH)
    (normed, _), back_norm = norms.batch_norm_train_vjp(hidden, gain, bias, state)
    features, back_relu = nn.relu_vjp(normed)
    return features, features @ output, lambda dy: back_norm(*back_relu(dy[:, None] * output))[1:]


def train(x, rng):
    """Return features and values before and after training."""
    weight, output = rng.standard_normal((1, WIDTH)), rng.standard_normal(WIDTH)
    params = rng.uniform(0, 1, WIDTH), np.zeros(WIDTH)
    velocity = np.zeros((2, WIDTH))
    before = network_vjp(x, weight, output, *params)[:2]
    for _ in range(STEPS):
        _, y, pullback = network_vjp(x, weight, output, *params)
        velocity = 0.9 * velocity + np.stack(pullback((y - target(x)) / len(x)))
        params = params[0] - RATE * velocity[0], params[1] - RATE * velocity[1]
    return before, network_vjp(x, weight, output, *params)[:2]


def figure():
    """A network of one input and 24 random ReLU features, whose filters and output weights never change. Left, the features at
    the start: all bend at 0, so their sum (right, dashed) bends only there. Middle, after training the 48 gains and biases of the
    norm: the bends have spread, slopes have changed, three are reversed, and five features are switched off on all of the
    range. Their sum (right, red) follows a sine (grey)."""
    import matplotlib.pyplot as plt

    x = np.linspace(-2, 2, 81)
    before, after = train(x, np.random.default_rng(0))
    fig, axes = plt.subplots(1, 3, figsize=(7, 2.8), layout="constrained", sharex=True)
    for ax, (features, _), color in ((axes[0], before, "#1f77b4"), (axes[1], after, "#d62728")):
        ax.plot(x, features, color=color, linewidth=1)
        ax.set(xlabel="input")
    axes[2].plot(x, target(x), color="#8a8a8a", linewidth=5)
    axes[2].plot(x, before[1], "--", color="#1f77b4")
    axes[2].plot(x, after[1], color="#d62728", linewidth=2)
    axes[2].set(xlabel="input", ylim=(-1.5, 4.2))
    axes[0].set_ylabel("feature")
    axes[2].set_ylabel("sum")
    return fig
