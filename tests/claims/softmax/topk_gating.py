"""Evidence for top-K gating: with the right number of experts, density and parameters converge like 1/sqrt(n)."""

import functools

import numpy as np

from refnorm.claims import Claim
from refnorm.softmax import (
    GaussianMoE,
    fit_topk_moe,
    hellinger2,
    moe_log_density,
    required_selection,
    topk_softmax,
    voronoi_cells,
    voronoi_loss,
)

SIZES, SEEDS, TOP_K = (200, 800, 3200), range(5), 2
TRUE = GaussianMoE(
    gate_weight=np.array([[3.0], [-2.0], [0.0]]),
    gate_bias=np.array([0.0, 0.5, 0.0]),
    weight=np.array([[2.0], [-2.0], [0.5]]),
    bias=np.array([0.0, 1.0, -1.0]),
    variance=np.array([0.3, 0.4, 0.25]),
)
INPUTS, GRID = np.linspace(-1, 1, 101)[:, None], np.linspace(-9, 9, 361)


def claims() -> list[Claim]:
    return [rates(), selection_without_bias()]


def sample(rng, n):
    x = rng.uniform(-1, 1, (n, 1))
    weights, _ = topk_softmax(x @ TRUE.gate_weight.T, TRUE.gate_bias, top_k=TOP_K)
    expert = (rng.random((n, 1)) > np.cumsum(weights, axis=1)).sum(axis=1)
    mean = (x @ TRUE.weight.T + TRUE.bias)[np.arange(n), expert]
    return x, mean + np.sqrt(TRUE.variance[expert]) * rng.standard_normal(n)


def log_density(params):
    return lambda x, y: moe_log_density(params, x, y, top_k=TOP_K)


@functools.cache
def errors(n, seed):
    """Voronoi loss and Hellinger distance of a fit to n points, started near the truth."""
    rng = np.random.default_rng(seed)
    x, y = sample(rng, n)
    near = GaussianMoE(
        *(
            getattr(TRUE, name) + 0.1 * rng.standard_normal(getattr(TRUE, name).shape)
            for name in ("gate_weight", "gate_bias", "weight", "bias")
        ),
        TRUE.variance,
    )
    fit = fit_topk_moe(x, y, k=3, top_k=TOP_K, rng=rng, init=near, max_iter=100, gate_steps=5)
    distance = np.sqrt(hellinger2(log_density(fit.params), log_density(TRUE), INPUTS, grid=GRID))
    return voronoi_loss(fit.params, TRUE, top_k=TOP_K), float(distance), fit


def table(seeds):
    return np.array([[errors(n, seed)[:2] for seed in seeds] for n in SIZES])


def slopes(measured):
    """Slopes of the mean logarithms on log n."""
    logs = np.log(measured).mean(axis=1)
    return [float(np.polyfit(np.log(SIZES), logs[:, i], 1)[0]) for i in range(2)]


def rates() -> Claim:
    measured = table(SEEDS)
    loss, distance = slopes(measured)
    return Claim(
        statement="With as many experts as the truth has, the likelihood's maximum finds density and parameters at "
        "the rate 1/sqrt(n) (three experts, two selected).",
        expected="slope on log n of the mean log Hellinger distance in [-0.75, -0.3], of the mean log Voronoi loss "
        "in [-0.9, -0.25]",
        holds=-0.75 <= distance <= -0.3 and -0.9 <= loss <= -0.25,
        figures={
            "slope, Hellinger distance": distance,
            "slope, Voronoi loss": loss,
            **{
                f"n = {n}: mean Hellinger distance": float(row[:, 1].mean())
                for n, row in zip(SIZES, measured, strict=True)
            },
            **{
                f"n = {n}: median Voronoi loss": float(np.median(row[:, 0]))
                for n, row in zip(SIZES, measured, strict=True)
            },
        },
    )


def selection_without_bias() -> Claim:
    fits = [errors(SIZES[-1], seed)[2].params for seed in SEEDS]
    needed = {required_selection(voronoi_cells(params, TRUE), TOP_K) for params in fits}
    shifted = max(
        float(
            np.abs(
                log_density(
                    GaussianMoE(
                        params.gate_weight + 7.0, params.gate_bias - 3.0, params.weight, params.bias, params.variance
                    )
                )(INPUTS, 0.0 * INPUTS[:, 0])
                - log_density(params)(INPUTS, 0.0 * INPUTS[:, 0])
            ).max()
        )
        for params in fits
    )
    return Claim(
        statement="Each true expert has one estimated expert in its Voronoi cell, so that selecting K of them is "
        "enough; and the gate is determined only up to a common shift.",
        expected="required selection 2 for every fit of 3200 points; density unchanged to 1e-12 by the shift",
        holds=needed == {TOP_K} and shifted < 1e-12,
        figures={"required selection, largest": max(needed), "largest change of the log-density by a shift": shifted},
    )


def figure():
    """Errors of the fitted mixture against the number of points: the Hellinger distance of the densities and the Voronoi
    loss of the parameters, one dot a run, with lines of slope -1/2."""
    import matplotlib.pyplot as plt

    measured = table(SEEDS)
    fig, ax = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    for i, label in ((0, "Voronoi loss"), (1, "Hellinger distance")):
        middle = np.exp(np.log(measured[..., i]).mean(axis=1))
        ax.loglog(np.repeat(SIZES, len(SEEDS)), measured[..., i].ravel(), ".", color=f"C{i}", alpha=0.5)
        ax.loglog(SIZES, middle, "o-", color=f"C{i}", label=label)
        ax.loglog(SIZES, middle[0] * np.sqrt(SIZES[0] / np.array(SIZES)), ":", color=f"C{i}")
    ax.plot([], [], "k:", label="slope -1/2")
    ax.set(xlabel="number of points", ylabel="error", title="Three experts, two selected")
    ax.set_xticks(SIZES, labels=[str(n) for n in SIZES])
    ax.minorticks_off()
    ax.legend()
    return fig
