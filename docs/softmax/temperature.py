"""Softmax at one temperature after another: the probabilities, and the rounding error of four float32 algorithms."""

from functools import partial

import numpy as np

from refnorm.softmax import softmax

SCORES = np.array([2.0, 1.4, 1.0, 0.5, 0.0, -0.4, -1.0, -2.0])
TEMPERATURES = np.round(np.geomspace(0.1, 10, 25), 4)
LOGITS = np.random.default_rng(5).normal(8.0, 2.0, 128).astype(np.float32)
"""The row whose errors are measured. Its mean has no influence on the result, but it lets exponentials overflow."""
LEAST_ERROR = 0.125
"""In units in the last place; smaller errors are shown as this one."""


def plain(x):
    """Exponentials of the logits as they are."""
    with np.errstate(over="ignore", invalid="ignore"):
        exponentials = np.exp(x)
        return exponentials / exponentials.sum()


ALGORITHMS = {
    "exp(x) as it is": plain,
    "three passes, max first": partial(softmax, algorithm="three_pass_reload"),
    "online maximum": partial(softmax, algorithm="online"),
    "two passes over pairs": softmax,
}


def errors(temperature):
    """Return, by algorithm, each entry's error in ULP of float32: NaN where the exact value is below normal numbers."""
    x = (LOGITS / np.float32(temperature)).astype(np.float32)
    exact = softmax(x.astype(np.float64))
    unit = np.spacing(exact.astype(np.float32)).astype(np.float64)
    normal = exact >= np.finfo(np.float32).tiny
    found = {}
    for name, algorithm in ALGORITHMS.items():
        y = algorithm(x)
        found[name] = np.where(normal, np.abs(y.astype(np.float64) - exact) / unit, np.nan)
        if not np.isfinite(y).all():
            found[name][:] = np.inf
    return x, normal, found


def listed(values):
    """Return errors as JSON can have them: ``None`` for what is not shown."""
    return [None if np.isnan(value) else round(float(value), 2) for value in values]


def data():
    """Return by temperature the probabilities and, by algorithm, the errors; ``None`` for one that overflowed."""
    measured = [errors(temperature) for temperature in TEMPERATURES]
    return {
        "scores": SCORES.tolist(),
        "temperatures": TEMPERATURES.tolist(),
        "probabilities": [softmax(SCORES / t).round(5).tolist() for t in TEMPERATURES],
        "below": [(x.max() - x).astype(float).round(2).tolist() for x, _, _ in measured],
        "least": LEAST_ERROR,
        "algorithms": [
            {
                "name": name,
                "errors": [None if np.isinf(found[name]).all() else listed(found[name]) for _, _, found in measured],
            }
            for name in ALGORITHMS
        ],
    }


def figure():
    """Eight scores as probabilities at different temperatures, and the errors of four float32 softmax algorithms, entry by entry,
    against the distance of the logit from the maximum (on paper at temperature 0.15). The subtraction of the maximum is rounded,
    which exp magnifies with the distance; without it, exponentials overflow from a temperature of about 0.14 down; pairs of mantissa
    and exponent have neither fault."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.4), layout="constrained", width_ratios=(1, 1.4))
    for number, temperature in enumerate((0.3, 1.0, 3.0)):
        places = np.arange(len(SCORES)) + 0.27 * (number - 1)
        left.bar(places, softmax(SCORES / temperature), width=0.25, label=f"temperature {temperature}")
    left.set(
        xticks=range(len(SCORES)), xticklabels=[f"{score:g}" for score in SCORES], xlabel="score", ylabel="probability"
    )
    left.legend(fontsize=8)
    x, _, found = errors(0.15)
    styles = (("s", 3, "full"), ("^", 3.5, "full"), ("o", 5.5, "none"), ("x", 3.5, "full"))
    for (name, ulps), (mark, size, fill) in zip(found.items(), styles, strict=True):
        right.plot(x.max() - x, np.maximum(ulps, LEAST_ERROR), mark, markersize=size, label=name, fillstyle=fill)
    right.set_yscale("log", base=2)
    right.set(xlabel="max − x", ylabel="error, ULP", yticks=[0.125, 1, 8, 64], yticklabels=["⅛", "1", "8", "64"])
    right.legend(fontsize=8)
    return fig
