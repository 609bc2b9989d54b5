"""Evidence for Lion-K: the constraint, the loss against the bound, the Lyapunov function, composite problems."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.datasets import load_breast_cancer

from refnorm.claims import Claim
from refnorm.solvers import LionK, integrate_lion_ode, lyapunov, lyapunov_rate, make_kappa

TARGET = np.array([3.0, 0.2, -2.0])
RATIOS = (4.0, 2.0, 1.25, 1.0, 0.75, 0.5, 0.25)
CONSTANTS = {"gradient_rate": 1.0, "momentum_rate": 2.0, "weight_decay": 0.5, "lookahead": 0.3}


def claims() -> list[Claim]:
    return [constraint(), loss_against_bound(), certificate(), composite()]


def run(optimizer, x, gradient, steps: int):
    state = optimizer.init(x)
    for _ in range(steps):
        x, state = optimizer.step(x, gradient(x), state)
    return x


def constraint() -> Claim:
    rate, steps = 1e-3, 20_000
    optimizer = LionK(learning_rate=rate, weight_decay=1.0)
    error = float(np.abs(run(optimizer, np.zeros(3), lambda x: x - TARGET, steps) - [1, 0.2, -1]).max())
    x = np.full(3, 10.0)
    state, distance, worst = optimizer.init(x), make_kappa("l1").distance_to_domain, 0.0
    start = distance(x)
    for step in range(1, 4001):
        x, state = optimizer.step(x, x - TARGET, state)
        worst = max(worst, distance(x) / (start * (1 - rate) ** step))
    return Claim(
        statement="Lion with weight decay 1 minimises |x - (3, 0.2, -2)|² / 2 in the box |x| ≤ 1, and enters the "
        "box from outside at least as fast as (1 - rate decay)^step.",
        expected="within 5e-3 of (1, 0.2, -1) after 20,000 steps of rate 10⁻³; distance at most that law (1e-9 slack)",
        holds=error < 5e-3 and worst <= 1 + 1e-9,
        figures={"largest error": error, "largest distance / law over 4000 steps": worst},
    )


def problem():
    data, label = load_breast_cancer(return_X_y=True)
    data = np.column_stack([(data - data.mean(axis=0)) / data.std(axis=0), np.ones(len(data))])
    signed = data * (2.0 * label[:, None] - 1)

    def loss(x):
        return float(np.logaddexp(0, -signed @ x).mean() + 0.005 * (x @ x))

    def gradient(x):
        return -expit(-(signed @ x)) @ signed / len(signed) + 0.01 * x

    return loss, gradient, signed.shape[1]


def bounded_minimum(bound=None):
    loss, gradient, d = problem()
    limits = None if bound is None else [(-bound, bound)] * d
    found = minimize(
        loss, np.zeros(d), jac=gradient, method="L-BFGS-B", bounds=limits, options={"ftol": 1e-15, "gtol": 1e-10}
    )
    return found.x, float(found.fun)


def losses():
    """Final loss of Lion for each bound, and the constrained minimum, relative to the free minimum."""
    loss, gradient, d = problem()
    best, free = bounded_minimum()
    size = np.abs(best).max()
    reached, truth = [], []
    for ratio in RATIOS:
        optimizer = LionK(learning_rate=1e-3, weight_decay=1 / (ratio * size))
        reached.append(loss(run(optimizer, np.zeros(d), gradient, 4000)) / free - 1)
        truth.append(bounded_minimum(ratio * size)[1] / free - 1)
    return np.array(reached), np.array(truth)


def loss_against_bound() -> Claim:
    reached, truth = losses()
    flat = float(np.abs(reached[:4]).max())
    return Claim(
        statement="The loss that Lion reaches does not change as long as the bound 1 / decay lets the free minimiser "
        "in, and rises as soon as it does not (logistic regression on the breast cancer data).",
        expected="at most 1 percent above the free minimum for bounds of 1 to 4 times its largest coordinate, at "
        "least 5 percent at half; everywhere within 0.1 percent of the constrained minimum of SciPy",
        holds=bool(flat <= 0.01 and reached[5] >= 0.05 and np.abs(reached - truth).max() < 1e-3),
        figures={
            **{
                f"bound {ratio:g}: loss above the free minimum, percent": float(100 * value)
                for ratio, value in zip(RATIOS, reached, strict=True)
            },
            "largest distance from the constrained minimum, percent": float(100 * np.abs(reached - truth).max()),
        },
    )


def descent(name: str, *, control: bool = False):
    """Follow the equations on a quadratic; return H, its predicted rate and its measured rate along the path."""
    rng = np.random.default_rng(0)
    root = rng.standard_normal((6, 4))
    hessian, centre = root.T @ root / 6 + 0.2 * np.eye(4), 3 * rng.standard_normal(4)
    kappa = make_kappa(name, width=0.5)

    def gradient(x):
        return hessian @ (x - centre)

    def energy(x, m):
        total = lyapunov(x, m, float(0.5 * (x - centre) @ gradient(x)), kappa, **CONSTANTS)
        if control:
            # c = 1 in the place of (1 - lookahead momentum_rate) / (1 + lookahead decay).
            w, eps, rate = (CONSTANTS[key] for key in ("weight_decay", "lookahead", "momentum_rate"))
            gap = kappa.conjugate(w * x) + kappa.value(m) - w * float(m @ x)
            total += (1 - (1 - eps * rate) / (1 + eps * w)) * gap
        return total

    path = integrate_lion_ode(gradient, np.zeros(4), kappa, step_size=1e-2, max_iter=1000, **CONSTANTS)
    values = np.array([energy(x, m) for x, m in zip(path.x, path.momentum, strict=True)])
    predicted, measured = [], []
    for x, m in zip(path.x[::10], path.momentum[::10], strict=True):
        pull = CONSTANTS["gradient_rate"] * gradient(x) + CONSTANTS["momentum_rate"] * m
        dx = kappa.gradient(m - CONSTANTS["lookahead"] * pull) - CONSTANTS["weight_decay"] * x
        h = 1e-6
        measured.append((energy(x + h * dx, m - h * pull) - energy(x - h * dx, m + h * pull)) / (2 * h))
        predicted.append(lyapunov_rate(x, m, gradient(x), kappa, **CONSTANTS))
    return path.time, values, np.array(predicted), np.array(measured)


def certificate() -> Claim:
    figures: dict[str, float | int | str] = {}
    worst_rise, worst_rate = 0.0, 0.0
    for name in ("huber", "sq", "l2"):
        _, values, predicted, measured = descent(name)
        worst_rise = max(worst_rise, float(np.diff(values).max()))
        rate = float(np.abs(predicted - measured).max() / np.abs(predicted).max())
        worst_rate = max(worst_rate, rate)
        figures[f"{name}: H at the start and at the end"] = f"{values[0]:.4f}, {values[-1]:.4f}"
        figures[f"{name}: largest error of the rate, relative"] = rate
    _, values, predicted, measured = descent("sq", control=True)
    wrong = float(np.abs(predicted - measured).max() / np.abs(predicted).max())
    return Claim(
        statement="The Lyapunov function never increases along the equations, and its rate is the closed form "
        "(quadratic in four dimensions, three functions, 1000 Runge-Kutta steps of 0.01).",
        expected="rise at most 1e-8 a step, rates within 1e-4 of the largest; with the constant c = 1 they are off "
        "by more than 1e-2",
        holds=bool(worst_rise <= 1e-8 and worst_rate < 1e-4 and wrong > 1e-2),
        figures=figures | {"largest rise in a step": worst_rise, "control, c = 1: error of the rate": wrong},
    )


def composite() -> Claim:
    decay, width = 0.8, 0.5
    hessian = np.diag([1.0, 2.0, 0.5]) + 0.2
    options = {"learning_rate": 0.01, "betas": (0.9, 0.95), "weight_decay": decay}
    x = run(
        LionK(kappa=make_kappa("huber", width=width), **options), np.zeros(3), lambda x: hessian @ (x - TARGET), 5000
    )
    found = minimize(
        lambda x: 0.5 * (x - TARGET) @ hessian @ (x - TARGET) + width * decay / 2 * (x @ x),
        np.zeros(3),
        jac=lambda x: hessian @ (x - TARGET) + width * decay * x,
        bounds=[(-1 / decay, 1 / decay)] * 3,
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-12},
    )
    error = float(np.abs(x - found.x).max())
    return Claim(
        statement="With Huber's function Lion-K minimises f + kappa*(decay x) / decay: a ridge inside a box.",
        expected="within 1e-3 of SciPy's bounded minimiser",
        holds=error < 1e-3,
        figures={"largest difference": error},
    )


def figure():
    """Paths of four members of the family to their constrained minima, and the Lyapunov function along the
    continuous paths of three."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.9), layout="constrained")
    centre = np.array([1.6, 0.45])
    for name, label in (("l1", "l1 (Lion)"), ("l2", "l2"), ("sq", "sq"), ("topk", "topk, k = 1")):
        optimizer, x = LionK(learning_rate=5e-3, kappa=name), np.array([-0.4, 1.5])
        state, path = optimizer.init(x), [x]
        for _ in range(3000):
            x, state = optimizer.step(x, x - centre, state)
            path.append(x)
        points = np.array(path)
        (line,) = left.plot(*points.T, lw=1.2, label=label)
        left.plot(*points[-1], "o", color=line.get_color())
    angle = np.linspace(0, 2 * np.pi, 200)
    left.plot([1, 1, -1, -1, 1], [-1, 1, 1, -1, -1], "--", color="0.5", lw=1)
    left.plot(np.cos(angle), np.sin(angle), ":", color="0.5", lw=1)
    left.plot(*centre, "k*", label="free minimum")
    left.set(aspect="equal", xlim=(-1.1, 1.9), ylim=(-1.1, 1.7), title="Decay 1: box (dashed) and ball (dotted)")
    left.legend(fontsize=8, loc="lower left")
    for name in ("huber", "sq", "l2"):
        time, values, _, _ = descent(name)
        right.plot(time, values, label=name)
    right.set(xlabel="time", ylabel="H", title="Lyapunov function, continuous time")
    right.legend()
    return fig
