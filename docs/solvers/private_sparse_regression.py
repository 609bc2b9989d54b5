"""What one user's message says, and what many of them say in three protocols."""

import numpy as np

from refnorm.solvers import ball_randomizer, ldp_iht, nldp_estimate, nldp_messages, nldp_public

USERS, SIZE, SPARSE = 2**16, 12, 3
PRIVACY, LABELS = (1.0, 1e-3), 3.0
VECTOR = np.array([0.75, 0.3])


def messages(count):
    """Randomized versions of one vector in the unit ball."""
    return ball_randomizer(np.tile(VECTOR, (count, 1)), PRIVACY[0], 1.0, np.random.default_rng(0))


def estimates():
    """Return the true vector and the estimates of three protocols from as many users."""
    rng = np.random.default_rng(0)
    theta = np.zeros(SIZE)
    theta[[2, 5, 9]] = np.array([1.0, -1.0, 1.0]) / np.sqrt(SPARSE)
    x, public = rng.standard_normal((USERS, SIZE)), rng.standard_normal((USERS, SIZE))
    y, radius = x @ theta + 0.1 * rng.standard_normal(USERS), 1.2 * np.sqrt(SIZE)
    options = (*PRIVACY, radius, LABELS, rng)
    sums = [nldp_messages(x[part], y[part], *options) for part in np.array_split(np.arange(USERS), 16)]
    covariance, moment = (np.mean([pair[i].mean(axis=0) for pair in sums], axis=0) for i in (0, 1))
    bounds = {"radius": radius, "bound": LABELS, "gradient_bound": np.sqrt(SIZE)}
    return theta, {
        "all at once": nldp_estimate(covariance, moment, k=SIZE).theta,
        "with public rows": nldp_public(public, x, y, *options, k=SIZE).theta,
        "in three rounds": ldp_iht(x, y, epsilon=PRIVACY[0], k=SPARSE, rounds=3, rng=rng, **bounds).theta,
    }


def figure():
    r"""Left: a vector (black) and what 300 users send who all hold it, at $\epsilon=1$: points on a circle 3.4 times as large as
    the ball of what they might hold. Only a slight surplus on one side tells anything; the mean of the 300 (square) is off
    by 0.2, that of 100,000 (cross) by less than 0.01. Right: a vector with three entries in twelve dimensions from 65,536
    users. If all send a noisy matrix and a noisy vector at once, the estimate is worthless; with public rows for
    the matrix it is better; in three rounds of gradients it is good. Given are the errors of the whole vectors."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained", width_ratios=[1, 1.5])
    sent = messages(100_000)
    left.plot(*sent[:300].T, ".", color="#8a8a8a", markersize=4)
    left.annotate(
        "", VECTOR, (0, 0), arrowprops={"arrowstyle": "-|>", "color": "black", "linewidth": 1.5, "shrinkB": 0}
    )
    left.plot(*sent[:300].mean(axis=0), "s", color="#1f77b4", markersize=9, markerfacecolor="none", markeredgewidth=2)
    left.plot(*sent.mean(axis=0), "x", color="#d62728", markersize=9, markeredgewidth=2)
    left.set(aspect="equal", xticks=[-3, 0, 3], yticks=[-3, 0, 3])

    theta, found = estimates()
    place = np.arange(SIZE)
    right.bar(place, theta, color="#8a8a8a", alpha=0.5, label="true")
    marks = zip(("x", "s", "o"), ("#d62728", "#ff7f0e", "#1f77b4"), found.items(), strict=True)
    for mark, color, (name, values) in marks:
        error = np.linalg.norm(values - theta)
        right.plot(place, values, mark, color=color, markersize=6, label=f"{name}: error {error:.2g}")
    right.set(xlabel="entry", ylabel="value", xticks=[0, 5, 10])
    fig.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=10)
    return fig
