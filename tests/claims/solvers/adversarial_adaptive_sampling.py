"""Evidence for adversarial adaptive sampling: the inner maximum, and an adversary that finds a peak."""

import functools
from dataclasses import replace

import numpy as np

from refnorm.claims import Claim
from refnorm.solvers import (
    AdamP,
    GridDensity,
    PoissonProblem,
    adversarial_adaptive_sampling,
    best_response_1d,
    grid_objective_vjp,
    init_tanh_net,
    poisson_residual,
)

CELLS, SEEDS, EPOCHS, SHARPNESS = 64, (0, 1), 150, 2000.0
STEPS = 2000
PENALTIES = (0.05, 0.005, 0.0005)


def claims() -> list[Claim]:
    return [inner_maximum(), finds_the_peak()]


@functools.cache
def ascent():
    """Adam on 128 cells for the squared residual 1 + cos(pi x): the density, and the objective on the way."""
    centres = (np.arange(128) + 0.5) / 128
    # Cell averages of 1 + cos(pi x), exactly.
    edges = np.arange(129) / 128
    reward = 1 + np.diff(np.sin(np.pi * edges)) / np.pi * 128
    optimizer, logits, values = AdamP(learning_rate=0.02, delta=5e-324), np.zeros(128), []
    state = optimizer.init(logits)
    for step in range(STEPS):
        value, pullback = grid_objective_vjp(logits, reward, penalty=0.1)
        values.append(float(value))
        rate = 0.02 * (1 + np.cos(np.pi * step / STEPS))
        logits, state = replace(optimizer, learning_rate=rate).step(logits, -pullback(np.ones(()))[0], state)
    density = GridDensity(logits).masses() * 128
    return centres, reward, density, values


def inner_maximum() -> Claim:
    centres, reward, density, values = ascent()
    exact = 1 + np.cos(np.pi * centres) / (2 * 0.1 * np.pi**2)
    response = best_response_1d(reward, 0.1)
    best = 1 + 1 / (4 * 0.1) / (2 * np.pi**2)
    return Claim(
        statement="Against a fixed squared residual 1 + cos(pi x) the adversary's maximum is the density "
        "1 + cos(pi x) / (2 penalty pi^2), and the maximum exceeds the mean by the squared dual norm of the residual "
        "over 4 penalty: the link with optimal transport.",
        expected="penalty 0.1, 128 cells: gradient ascent within 1 % of that density everywhere, the exact response "
        "within 0.01 %, the objective within 1e-3 of 1.126651",
        holds=bool(
            np.abs(density - exact).max() < 0.01
            and np.abs(response - exact).max() < 1e-4
            and abs(values[-1] - best) < 1e-3
        ),
        figures={
            "largest error of the density, ascent": float(np.abs(density - exact).max()),
            "largest error of the density, exact response": float(np.abs(response - exact).max()),
            "objective": values[-1],
            "its closed form": float(best),
        },
    )


def peak(x):
    return np.exp(-SHARPNESS * (x[:, 0] - 0.5) ** 2)


def source(x):
    """Minus the second derivative of the peak."""
    return (2 * SHARPNESS - (2 * SHARPNESS * (x[:, 0] - 0.5)) ** 2) * peak(x)


PROBLEM = PoissonProblem(source, peak, np.array([[0.0], [1.0]]))


@functools.cache
def run(penalty: float | None, seed: int):
    """Mass near the peak half way, spread of the squared residual at the end, and the sampler half way."""
    rng = np.random.default_rng(seed)
    net, sampler = init_tanh_net(rng, 1, frequency=40.0), GridDensity(np.zeros(CELLS))
    options = {
        "rng": rng,
        "epochs": EPOCHS // 2,
        "n_points": 100,
        "learning_rate": 2e-3,
        "boundary_weight": 1e4,
        "sampler_steps": 0 if penalty is None else 1,
        "penalty": 1.0 if penalty is None else penalty,
        "response": "exact",
        "tol": 0,
    }
    half = adversarial_adaptive_sampling(PROBLEM, net, sampler, **options)
    centres = (np.arange(CELLS) + 0.5) / CELLS
    mass = float(half.sampler.masses()[np.abs(centres - 0.5) < 0.1].sum() / np.mean(np.abs(centres - 0.5) < 0.1))
    result = adversarial_adaptive_sampling(PROBLEM, half.net, half.sampler, **options)
    fine = np.linspace(0, 1, 2001)[:, None]
    square = poisson_residual(fine, result.net, source(fine)) ** 2
    return mass, float(square.std() / square.mean()), half.sampler, square


def finds_the_peak() -> Claim:
    figures: dict[str, float | int | str] = {}
    masses = {penalty: [run(penalty, seed)[0] for seed in SEEDS] for penalty in PENALTIES}
    for penalty in PENALTIES:
        figures[f"penalty {penalty:g}: smallest mass near the peak, in units of the uniform"] = min(masses[penalty])
        figures[f"penalty {penalty:g}: largest"] = max(masses[penalty])
    adaptive, uniform = ([run(penalty, seed)[1] for seed in SEEDS] for penalty in (0.005, None))
    flatter = max(a / u for a, u in zip(adaptive, uniform, strict=True))
    growing = all(a < b < c for a, b, c in zip(*(masses[p] for p in PENALTIES), strict=True))
    return Claim(
        statement="On an equation whose solution is a narrow peak the adversary moves its points to the peak, the more the "
        "smaller the penalty, and the residual becomes flatter than with uniform points.",
        expected="penalty 0.005: at least twice the uniform mass within 0.1 of the peak; mass growing as the penalty falls, "
        "a coefficient of variation of the squared residual below 0.95 of that with uniform points; on both seeds",
        holds=min(masses[0.005]) >= 2 and growing and flatter < 0.95,
        figures=figures
        | {
            "mean variation of the squared residual, penalty 0.005": float(np.mean(adaptive)),
            "mean variation of the squared residual, uniform points": float(np.mean(uniform)),
            "larger ratio of the two": float(flatter),
        },
    )


def figure():
    """Left: the inner maximum by ascent and in closed form. Right: the samplers' densities half way through training."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    centres, _, density, _ = ascent()
    left.plot(centres, density, linewidth=3, alpha=0.5, label="gradient ascent")
    left.plot(centres, 1 + np.cos(np.pi * centres) / (0.2 * np.pi**2), "k--", linewidth=1, label="closed form")
    left.set(xlabel="x", ylabel="density", title="residual² = 1 + cos πx, penalty 0.1")
    left.legend()
    cells = (np.arange(CELLS) + 0.5) / CELLS
    for penalty in PENALTIES:
        right.step(cells, run(penalty, 0)[2].masses() * CELLS, where="mid", label=f"penalty {penalty:g}")
    right.axvline(0.5, color="0.5", linewidth=0.8)
    right.set(xlabel="x", ylabel="density", title="narrow peak at 1/2")
    right.legend()
    return fig
