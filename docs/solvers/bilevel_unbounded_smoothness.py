"""Two levels in one dimension each: normalized steps down a wall, and a lower solution that is tracked."""

import numpy as np

from refnorm.solvers import BilevelProblem, bo_rep

RATE, PERIOD = 0.12, 4


def solution(x):
    """Return the minimum of the lower problem, y*(x)."""
    return x + 0.25 * np.sin(3 * x)


def problem(seen):
    """Return an upper loss cosh(2 y) over a lower one, (y - y*(x))^2 / 2; every visited point is appended to a list."""

    def upper(x, y, rng):
        seen.append((x[0], y[0]))
        return float(np.cosh(2 * y[0]))

    return BilevelProblem(
        upper=upper,
        upper_x=lambda x, y, rng: np.zeros(1),
        upper_y=lambda x, y, rng: 2 * np.sinh(2 * y),
        lower_y=lambda x, y, rng: y - solution(x),
        lower_yy=lambda x, y, v, rng: v,
        lower_xy=lambda x, y, v, rng: -(1 + 0.75 * np.cos(3 * x)) * v,
    )


def path(rate, n_iter, normalize=True):
    """Return the points (x, y) of a run that starts at x = 3."""
    seen = []
    rates = {"learning_rate": rate, "lower_learning_rate": 0.5, "aux_learning_rate": 0.5}
    rounds = {"max_iter": n_iter, "period": PERIOD, "lower_steps": 4, "normalize": normalize}
    start = np.array([3.0])
    bo_rep(problem(seen), start, start, **rates, **rounds, momentum=0.0, rng=np.random.default_rng(0))
    return np.array(seen).T


def figure():
    r"""Left: an objective that grows like an exponential, and two runs from $x=3$. A constant step of 0.005 times the gradient
    (squares) is thirty times smaller than the curvature at the minimum would allow; it leaps over the valley and climbs the other
    wall. Normalized steps (dots) are 0.12 long wherever they begin. Right: the same normalized run as points $(x_k,y_k)$. The
    lower variable stands still while $x$ makes four steps, and is then brought back to the curve $y^\star(x)$: since no step
    is longer than 0.12, it is never far off when the next round comes."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
    line, (x, y) = np.linspace(-5.3, 3.4, 300), path(RATE, 32)
    left.plot(line, np.cosh(2 * solution(line)), color="#8a8a8a", zorder=1)
    leaps = path(5e-3, 8, normalize=False)[0]
    left.plot(leaps, np.cosh(2 * solution(leaps)), "s--", color="#d62728", markersize=5, linewidth=1)
    left.plot(x, np.cosh(2 * solution(x)), "o", color="#1f77b4", markersize=4)
    left.text(-1.4, 900, "constant", color="#d62728")
    left.text(0.7, 1.1, "normalized", color="#1f77b4")
    left.set(yscale="log", ylabel="$F(x)$", xlabel="$x$", xlim=(-5.4, 3.4))
    right.plot(line, solution(line), color="#8a8a8a", linewidth=3)
    right.plot(x, y, "o-", color="#1f77b4", markersize=4, linewidth=1)
    right.text(2.1, 1.5, r"$y^\star(x)$", color="#8a8a8a")
    right.set(ylabel="$y$", xlabel="$x$", xlim=(-0.4, 3.2), ylim=(-0.6, 3.4))
    return fig
