"""What the company of an example does to it in training, and what running statistics do about it."""

import numpy as np

from refnorm import norms

CENTRE, SPREAD, BATCH, MOMENTUM = 3.0, 2.0, 16, 0.05


def running_means(rng, steps=150):
    """Return the mean of every batch and the running mean after it, for one unit."""
    running = np.zeros(1), np.ones(1)
    means, averages = [], []
    for _ in range(steps):
        mean, var = norms.batch_statistics(CENTRE + SPREAD * rng.standard_normal((BATCH, 1)))
        running = norms.update_running_statistics(*running, mean, var, BATCH, momentum=MOMENTUM)
        means.append(mean[0])
        averages.append(running[0][0])
    return means, averages


def in_company(rng, value, size, times=60):
    """Return what a batch norm in training makes of one value in many random batches."""
    one, zero = np.ones(1), np.zeros(1)
    others = CENTRE + SPREAD * rng.standard_normal((times, size, 1))
    others[:, 0] = value
    return [norms.batch_norm(batch, one, zero)[0, 0] for batch in others]


def figure():
    r"""Left: the mean of one unit over each of 150 batches of 16 (dots), and the running mean with momentum 0.05, which starts
    at 0 and finds the population's 3. Right: one and the same value, 4 deviations above the population's mean, in 60 random
    batches of each size. In training its output depends on the company it is in, and never exceeds $\sqrt{n-1}$ (dashed);
    with the population's statistics, which is what the running ones are for, it would be 4 every time."""
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(0)
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    means, averages = running_means(rng)
    left.plot(means, ".", color="#8a8a8a", markersize=4, label="batch mean")
    left.plot(averages, color="#1f77b4", linewidth=2.5, label="running mean")
    left.axhline(CENTRE, color="black", linestyle=":")
    left.set(xlabel="batch", ylabel="mean of the unit")
    left.legend(loc="lower right")
    sizes = [2, 4, 8, 16, 32, 64, 128]
    for size in sizes:
        y = in_company(rng, CENTRE + 4 * SPREAD, size)
        right.plot(size * 1.06 ** rng.uniform(-1, 1, len(y)), y, ".", color="#1f77b4", markersize=3)
    n = np.geomspace(1.7, 160, 50)
    right.plot(n, np.sqrt(n - 1), "--", color="#d62728")
    right.text(7.2, 3.2, r"$\sqrt{n-1}$", color="#d62728", ha="right")
    right.axhline(4, color="black", linestyle=":")
    right.set(xscale="log", xlim=(1.7, 160), ylim=(0.3, 5.2), xlabel="examples in the batch, $n$", ylabel="output")
    right.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    right.minorticks_off()
    return fig
