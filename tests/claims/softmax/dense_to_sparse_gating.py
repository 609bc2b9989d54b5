"""Evidence for temperature gates: a flat direction with a linear score, none with an activation before the division."""

import dataclasses
import functools

import numpy as np

from refnorm.claims import Claim
from refnorm.softmax import TemperatureMoE, fisher_information, fit_moe, null_direction, temperature_gate

INFORMATION_SEEDS, POINTS = range(5), 20_000
RATE_SEEDS, SIZES = range(10), (500, 2000, 8000)


def claims() -> list[Claim]:
    return [flat_direction(), rates()]


def draw(rng, params, x, activation):
    weights = temperature_gate(x, params.gate_weight, params.gate_bias, params.temperature, activation=activation)
    expert = (rng.random((len(x), 1)) > np.cumsum(weights, axis=1)).sum(axis=1)
    mean = (x @ params.weight.T + params.bias)[np.arange(len(x)), expert]
    return mean + np.sqrt(params.variance[expert]) * rng.standard_normal(len(x))


def spectrum(seed, activation):
    """Eigenvalues of the information with unit diagonal, and |cosine| of the lowest one's vector with the flat direction."""
    rng = np.random.default_rng(seed)
    gate_weight, weight, gate_bias, bias = (rng.standard_normal(s) for s in ((3, 2), (3, 2), 3, 3))
    gate_weight[-1], gate_bias[-1] = 0, 0
    params = TemperatureMoE(gate_weight, gate_bias, 0.7, weight, bias, np.exp(0.3 * rng.standard_normal(3)))
    x = rng.uniform(-1, 1, (POINTS, 2))
    information = fisher_information(params, x, draw(rng, params, x, activation), activation=activation)
    size = np.sqrt(np.diag(information))
    values, vectors = np.linalg.eigh(information / np.outer(size, size))
    flat = size * null_direction(params)
    return values, float(abs(vectors[:, 0] @ flat) / np.linalg.norm(flat))


def flat_direction() -> Claim:
    ratios, cosines = {}, []
    for activation in ("identity", "sigmoid", "tanh"):
        spectra = [spectrum(seed, activation) for seed in INFORMATION_SEEDS]
        ratios[activation] = np.array([abs(values[0]) / values[-1] for values, _ in spectra])
        if activation == "identity":
            cosines = [cosine for _, cosine in spectra]
    active = np.minimum(ratios["sigmoid"], ratios["tanh"])
    holds = (
        ratios["identity"].max() < 1e-12
        and min(cosines) > 0.999
        and ratios["sigmoid"].min() > 1e-8
        and ratios["tanh"].min() > 1e-6
        and (active >= 1e4 * ratios["identity"]).all()
    )
    return Claim(
        statement="With a linear gate the information matrix is singular: gate weights, gate biases and temperature "
        "can grow together unnoticed. An activation before the division removes the flat direction (three experts, "
        "two inputs, five random mixtures, 20 000 points drawn from each).",
        expected="smallest over largest eigenvalue: linear below 1e-12, its vector within |cosine| 0.999 of the flat "
        "direction; sigmoid above 1e-8, tanh above 1e-6; both at least 10^4 times the linear one",
        holds=bool(holds),
        figures={
            "linear: largest ratio": float(ratios["identity"].max()),
            "linear: smallest |cosine| with the flat direction": min(cosines),
            "sigmoid: smallest ratio": float(ratios["sigmoid"].min()),
            "sigmoid: largest ratio": float(ratios["sigmoid"].max()),
            "tanh: smallest ratio": float(ratios["tanh"].min()),
            "tanh: largest ratio": float(ratios["tanh"].max()),
        },
    )


TRUE = TemperatureMoE(
    gate_weight=np.array([[2.5], [0.0]]),
    gate_bias=np.array([0.3, 0.0]),
    temperature=0.5,
    weight=np.array([[2.0], [-2.0]]),
    bias=np.array([1.0, -1.0]),
    variance=np.array([0.09, 0.16]),
)


def gate_parameters(params):
    return np.array([params.gate_weight[0, 0], params.gate_bias[0], params.temperature])


@functools.cache
def error(n, seed, activation):
    """Errors of gate weight, gate bias and temperature of a fit to n points, started near the truth."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, (n, 1))
    y = draw(rng, TRUE, x, activation)
    kept = np.array([[1.0], [0.0]])

    def near(value):
        return value + 0.1 * rng.standard_normal(value.shape)

    start = dataclasses.replace(
        TRUE,
        gate_weight=near(TRUE.gate_weight) * kept,
        gate_bias=near(TRUE.gate_bias) * kept[:, 0],
        temperature=0.5 * float(np.exp(0.1 * rng.standard_normal())),
        weight=near(TRUE.weight),
        bias=near(TRUE.bias),
        variance=TRUE.variance * np.exp(0.1 * rng.standard_normal(2)),
    )
    fit = fit_moe(x, y, k=2, activation=activation, rng=rng, init=start)
    return gate_parameters(fit.params) - gate_parameters(TRUE)


def typical_errors(seeds):
    """For each size: the sigmoid gate's median error, the linear gate's mean error along and across the flat direction."""
    flat = gate_parameters(TRUE) / np.linalg.norm(gate_parameters(TRUE))
    rows = []
    for n in SIZES:
        sigmoid = [np.linalg.norm(error(n, seed, "sigmoid")[[0, 2]]) for seed in seeds]
        linear = np.array([error(n, seed, "identity") for seed in seeds])
        along = linear @ flat
        across = np.linalg.norm(linear - along[:, None] * flat, axis=1)
        rows.append((np.median(sigmoid), np.abs(along).mean(), across.mean()))
    return np.array(rows)


def rates() -> Claim:
    errors = typical_errors(RATE_SEEDS)
    sigmoid, along, across = errors[-1] / errors[0]
    return Claim(
        statement="More data sharpen the temperature of a sigmoid gate. Of a linear gate they sharpen everything but "
        "the flat direction, along which a fit stays where it began (two experts, fits started near the truth).",
        expected="error at 8000 points over error at 500: sigmoid gate at most 1/2 (median); linear gate above 0.6 "
        "along the flat direction, at most 1/2 across it (means)",
        holds=bool(sigmoid <= 0.5 and along > 0.6 and across <= 0.5),
        figures={
            "sigmoid gate: ratio": float(sigmoid),
            "linear gate, along the flat direction: ratio": float(along),
            "linear gate, across it: ratio": float(across),
            "sigmoid gate: median error at 8000": float(errors[-1, 0]),
            "linear gate: mean error along, at 8000": float(errors[-1, 1]),
        },
    )


def figure():
    """Errors of fitted gates against the number of points: the linear gate's error along its flat direction does not fall,
    all others do."""
    import matplotlib.pyplot as plt

    errors = typical_errors(RATE_SEEDS)
    fig, ax = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    for column, label, style in (
        (0, "sigmoid gate: weight and temperature", "C0o-"),
        (2, "linear gate, across the flat direction", "C1o-"),
        (1, "linear gate, along the flat direction", "C1s--"),
    ):
        ax.loglog(SIZES, errors[:, column], style, label=label)
    ax.set(xlabel="number of points", ylabel="typical error", title="Two experts, ten fits a size")
    ax.set_xticks(SIZES, labels=[str(n) for n in SIZES])
    ax.minorticks_off()
    ax.legend()
    return fig
