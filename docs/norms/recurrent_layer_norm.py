"""The state of a recurrent network, step by step, for weights of three sizes, with and without layer norm."""

import numpy as np

from refnorm.norms import layer_norm_rnn

STEPS, INPUTS, UNITS = 40, 3, 16
SCALES = (0.5, 1.0, 4.0)


def without(x, input_weight, recurrent_weight):
    """Return the states of a plain cell that normalizes nothing."""
    h, states = np.zeros((1, UNITS)), []
    for x_t in x:
        h = np.tanh(h @ recurrent_weight + x_t @ input_weight)
        states.append(h)
    return np.stack(states)


def with_norm(x, input_weight, recurrent_weight):
    gain, zero = np.full(UNITS, 0.7), np.zeros(UNITS)
    return layer_norm_rnn(x, np.zeros((1, UNITS)), input_weight, recurrent_weight, gain, zero)


def figure():
    """Sixteen units (rows) of a plain tanh cell over 40 steps. Only the first eight steps have an input; after them the state
    is on its own. Without a norm, half the weights make it die out, and four times the weights drive it to plus and minus one,
    where tanh has no slope. With layer norm the three pictures are the same: rescaling all weights changes nothing, and
    the gain, 0.7 here, sets the size of the state."""
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(1)
    x = rng.standard_normal((STEPS, 1, INPUTS)) * (np.arange(STEPS) < 8)[:, None, None]
    weights = (
        rng.standard_normal((INPUTS, UNITS)) / np.sqrt(INPUTS),
        np.linalg.qr(rng.standard_normal((UNITS, UNITS)))[0],
    )
    fig, axes = plt.subplots(2, 3, figsize=(7, 3.4), layout="constrained", sharex=True, sharey=True)
    for row, run, name in zip(axes, (without, with_norm), ("no norm", "layer norm"), strict=True):
        for ax, scale in zip(row, SCALES, strict=True):
            states = run(x, *(scale * weight for weight in weights))[:, 0]
            image = ax.imshow(states.T, cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto")
            ax.set(xticks=[0, 20, 40], yticks=[])
            ax.grid(visible=False)
        row[0].set_ylabel(name)
    for ax, scale in zip(axes[0], SCALES, strict=True):
        ax.set_title(f"weights times {scale:g}", fontsize=11)
    for ax in axes[1]:
        ax.set_xlabel("step")
    fig.colorbar(image, ax=axes, ticks=[-1, 0, 1])
    return fig
