"""The same tokens, normalized as in training and as in use, by batch norm and by power norm."""

import numpy as np

from refnorm.norms import PowerNormState, batch_norm, batch_statistics, power_norm, update_running_statistics

TOKENS, CHANNELS, BATCHES, SHOWN = 24, 8, 60, 8


def stream():
    """Yield batches as text gives them: each has a scale of its own, and a mean of its own."""
    rng = np.random.default_rng(1)
    for _ in range(BATCHES):
        scale, shift = np.exp(0.7 * rng.standard_normal()), rng.standard_normal(CHANNELS)
        yield scale * (rng.standard_normal((TOKENS, CHANNELS)) + shift)


def outputs():
    """Return one channel of the last batches, in use and in training, by both norms."""
    one, zero = np.ones(CHANNELS), np.zeros(CHANNELS)
    mean, var, state, by_batch, by_power = zero, one, PowerNormState.create(CHANNELS), [], []
    for x in stream():
        in_use = batch_norm(x, one, zero, mean, var)
        by_batch.append((in_use[:, 0], batch_norm(x, one, zero)[:, 0]))
        mean, var = update_running_statistics(mean, var, *batch_statistics(x), TOKENS)
        in_use, _ = power_norm(x, one, zero, state, warmup=0, training=False)
        y, state = power_norm(x, one, zero, state, warmup=0)
        by_power.append((in_use[:, 0], y[:, 0]))
    return by_batch[-SHOWN:], by_power[-SHOWN:]


def figure():
    """Eight batches whose mean and scale vary as in text, one colour each: what one channel's tokens become in training,
    and what the same tokens would become in use at that time. Batch norm has batch statistics in the one case and running
    ones in the other, and every batch has its own line: the next layer learns from numbers that it will never see again.
    Power norm divides by the running value both times, so that all batches lie on the diagonal."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained", sharey=True)
    colours = ("#1f77b4", "#d62728", "#9467bd", "#8c564b", "#2ca02c", "#ff7f0e", "black", "#8a8a8a")
    for ax, found, name in zip(axes, outputs(), ("batch norm", "power norm"), strict=True):
        for (in_use, trained), colour in zip(found, colours, strict=True):
            order = np.argsort(in_use)
            ax.plot(in_use[order], trained[order], ".-", color=colour, linewidth=0.8, markersize=4)
        ax.set(
            xlabel="output in use",
            title=name,
            xlim=(-4, 4),
            ylim=(-4, 4),
            aspect="equal",
            xticks=(-4, 0, 4),
            yticks=(-4, 0, 4),
        )
    axes[0].set_ylabel("output in training")
    return fig
