"""Where constant and falling rates end, and the schedule that the gradient norms of a run ask for."""

import numpy as np
from sklearn.datasets import load_digits

from refnorm.nn import linear_vjp
from refnorm.softmax import cross_entropy_vjp
from refnorm.solvers import ScheduledSGD, inverse_power_decay, linear_decay, refine_schedule, smooth_norms

STEPS, RUNS = 400, 200
PLACE = np.random.default_rng(1).uniform(-1, 1, 100)
TARGET = PLACE + 0.5 + 0.3 * np.random.default_rng(2).standard_normal(100)


def ends(schedule, rate):
    """Slopes and offsets of a line after subgradient steps on single absolute errors, of many runs."""
    rng, optimizer = np.random.default_rng(0), ScheduledSGD(rate, schedule)
    params = rng.standard_normal((RUNS, 2))
    state = optimizer.init(params)
    for rows in rng.integers(100, size=(STEPS, RUNS)):
        along = np.stack([PLACE[rows], np.ones(RUNS)], axis=1)
        sign = np.sign((along * params).sum(axis=1) - TARGET[rows])
        params, state = optimizer.step(params, sign[:, None] * along, state)
    return params


def norms():
    """Gradient norms of softmax regression on digits, batches of 64."""
    x, target = load_digits(return_X_y=True)
    rng, weight, found = np.random.default_rng(0), np.zeros((64, 10)), []
    for _ in range(STEPS):
        rows = rng.integers(len(x), size=64)
        logits, back = linear_vjp(x[rows] / 16, weight)
        dweight = back(cross_entropy_vjp(logits, target[rows])[1](1.0)[0])[1]
        found.append(np.linalg.norm(dweight))
        weight = weight - 0.5 * dweight
    return np.array(found)


def figure():
    r"""Left: the last iterates of 200 runs that fit a line by stochastic subgradients, 400 steps with the same mean rate. With
    a constant rate a run ends wherever the last samples have thrown it; with linear decay to zero all end near the best line.
    Right: gradient norms of softmax regression on digits (grey), their running median (black), and the schedule that they
    ask for. Norms that are more than four times as large at the beginning as in the end give a warm-up over more than a third of
    the run; the rest is decay, later than the linear one and steeper."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained", width_ratios=[1, 1.3])
    for name, schedule, rate, mark, color in (
        ("constant", inverse_power_decay(STEPS, power=0.0), 0.05, "x", "#d62728"),
        ("linear decay", linear_decay(STEPS), 0.1, ".", "#1f77b4"),
    ):
        found = ends(schedule, rate)
        left.plot(*found.T, mark, color=color, markersize=5, label=name, linestyle="none")
    left.set(xlabel="slope", ylabel="offset", ylim=(0.2, 0.92))
    left.legend(fontsize=9, loc="upper left")

    measured = norms()
    right.plot(measured, color="#8a8a8a", linewidth=0.7)
    right.plot(smooth_norms(measured), color="black", linewidth=2)
    right.plot(refine_schedule(measured), color="#1f77b4", linewidth=2)
    right.plot(linear_decay(STEPS), "--", color="#1f77b4", linewidth=1)
    right.text(110, 0.04, "gradient norm", fontsize=10)
    right.text(215, 0.93, "refined rate", fontsize=10, color="#1f77b4")
    right.text(8, 0.8, "linear decay", fontsize=10, color="#1f77b4", rotation=-38)
    right.set(xlabel="step", ylabel="norm; rate / largest rate")
    return fig
