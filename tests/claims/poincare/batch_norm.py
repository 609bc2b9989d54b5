"""Evidence for midpoint batch normalization: what it fixes, how it compares with the Fréchet mean, evaluation."""

import numpy as np

from refnorm.claims import Claim
from refnorm.poincare import (
    dist,
    dist_sq,
    exp0,
    frechet_mean,
    midpoint,
    midpoint_batch_norm,
    midpoint_statistics,
    update_running_midpoint,
)

SEEDS, POINTS = range(5), 256
ONE = np.array(1.0)


def claims() -> list[Claim]:
    return [variance_is_the_gain(), as_with_the_frechet_mean(), cost(), evaluation()]


def features(channels, spread, rng, count=POINTS):
    """Points about a place off the origin: ``spread`` is the standard deviation of a coordinate in the plane."""
    offset = np.concatenate([[0.6, 0.2], np.zeros(channels - 2)])
    return exp0(spread * rng.standard_normal((count, channels)) / np.sqrt(channels / 2) + offset, 1.0)


def variance_is_the_gain() -> Claim:
    rng = np.random.default_rng(0)
    errors, drift = [], []
    for gain in (0.1, 1.0, 4.0):
        bias = 0.5 * rng.standard_normal(16) / 4
        y = midpoint_batch_norm(features(16, 0.5, rng), bias, np.array(gain), 1.0, eps=1e-12, project=False)
        centre = exp0(bias, 1.0)
        errors.append(abs(dist_sq(y, np.tile(centre, (POINTS, 1)), 1.0).mean() / gain - 1))
        drift.append(dist(midpoint(y, 1.0), centre, 1.0) / np.sqrt(gain))
    return Claim(
        statement="The mean squared distance of the result to the bias's point is the gain; the result's own midpoint is "
        "near that point, but not on it, because a midpoint does not commute with a scaling of logarithms.",
        expected="relative error of the variance below 1e-10; midpoint off by less than 0.1 standard deviations",
        holds=max(errors) < 1e-10 and max(drift) < 0.1,
        figures={"largest relative error": float(max(errors)), "largest drift, standard deviations": float(max(drift))},
    )


def against_frechet(channels, spread, seed):
    """Root mean squared distance between the two layers' results, and the iterations that the other mean needs."""
    x = features(channels, spread, np.random.default_rng(seed))
    other = frechet_mean(x, 1.0)
    y = midpoint_batch_norm(x, np.zeros(channels), ONE, 1.0)
    z = midpoint_batch_norm(x, np.zeros(channels), ONE, 1.0, other.x, other.variance)
    return float(np.sqrt(dist_sq(y, z, 1.0).mean())), other.n_iter


SETTINGS = ((16, 0.5), (16, 1.0), (64, 1.0))


def as_with_the_frechet_mean() -> Claim:
    worst = {s: max(against_frechet(*s, seed)[0] for seed in SEEDS) for s in SETTINGS}
    return Claim(
        statement="Normalizing about the midpoint and about the Fréchet mean gives nearly the same points (256 points, "
        "unit variance after normalization, 5 seeds).",
        expected="root mean squared distance below 0.1, a tenth of the result's standard deviation",
        holds=max(worst.values()) < 0.1,
        figures={f"{channels} channels, spread {spread}: largest": w for (channels, spread), w in worst.items()},
    )


def cost() -> Claim:
    fewest = min(against_frechet(*s, seed)[1] for s in SETTINGS for seed in SEEDS)
    return Claim(
        statement="Its mean costs one pass over the batch; the Fréchet mean to 12 digits costs two an iteration, a "
        "weighted midpoint and the distances.",
        expected="at least 5 times as many passes",
        holds=1 + 2 * fewest >= 5,
        figures={"fewest iterations": fewest, "passes, at least (the midpoint's: 1)": 1 + 2 * fewest},
    )


def evaluation() -> Claim:
    """Sixty batches of 32 from one distribution; then one point in the company of others."""
    rng = np.random.default_rng(1)
    running = np.zeros(16), ONE
    for _ in range(60):
        running = update_running_midpoint(*running, *midpoint_statistics(features(16, 0.5, rng, 32), 1.0), 1.0)
    truth = midpoint_statistics(features(16, 0.5, rng, 20000), 1.0)
    off = float(dist(running[0], truth[0], 1.0) / np.sqrt(truth[1]))
    point = features(16, 0.5, rng, 1)
    companies = [np.concatenate([point, features(16, 0.5, rng, 31)]) for _ in range(8)]
    bias = np.zeros(16)
    by_batch = np.stack([midpoint_batch_norm(x, bias, ONE, 1.0)[0] for x in companies])
    by_running = np.stack([midpoint_batch_norm(x, bias, ONE, 1.0, *running)[0] for x in companies])
    spread = [float(dist(np.tile(y[0], (7, 1)), y[1:], 1.0).max()) for y in (by_batch, by_running)]
    return Claim(
        statement="Running statistics come close to those of the distribution, and with them a point's result does not "
        "depend on its company, as it does with the batch's statistics.",
        expected="running mean off by less than 0.1 standard deviations, variance by less than 10 %; same result in any "
        "company to 1e-12, against a change above 0.05",
        holds=off < 0.1 and abs(float(running[1] / truth[1]) - 1) < 0.1 and spread[1] < 1e-12 and spread[0] > 0.05,
        figures={
            "running mean, standard deviations off": off,
            "running variance over the distribution's": float(running[1] / truth[1]),
            "change with company, batch statistics": spread[0],
            "change with company, running statistics": spread[1],
        },
    )


def figure():
    """Two hundred points of the disk, far from the origin and of unequal spread (left), and the same points after
    midpoint batch normalization with bias 0 (middle) and with another bias (right): centred at the bias's point, with
    mean squared distance 1 to it. Crosses mark the midpoints.
    """
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(0)
    x = exp0(rng.standard_normal((200, 2)) @ np.array([[0.7, 0.3], [0.0, 0.25]]) + np.array([1.0, 0.6]), 1.0)
    biases = (np.zeros(2), np.array([-0.7, 0.4]))
    panels = [x] + [midpoint_batch_norm(x, bias, ONE, 1.0) for bias in biases]
    fig, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
    for ax, points, title in zip(axes, panels, ("input", "bias 0", "bias (-0.7, 0.4)"), strict=True):
        ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.5"))
        ax.plot(*points.T, ".", color="tab:blue", ms=4, alpha=0.6)
        ax.plot(*midpoint(points, 1.0), "x", color="tab:orange", ms=9, mew=2.5)
        ax.set(aspect="equal", xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), title=title)
        ax.set_axis_off()
    return fig
