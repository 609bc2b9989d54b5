"""Evidence for logistic regression with large steps: fewer iterations, the perceptron limit, the factor n."""

import numpy as np
from scipy.optimize import minimize

from refnorm.claims import Claim
from refnorm.solvers import (
    batch_perceptron,
    batch_perceptron_bound,
    logistic_gd,
    normalized_gd_bound,
    perceptron,
    perceptron_bound,
)

RATES = (0.1, 1.0, 10.0, 100.0, 1e4, 1e8)
SEEDS = (0, 1, 2)


def claims() -> list[Claim]:
    return [large_steps(), perceptron_limit(), dilution(), bounds()]


def sphere(seed: int):
    """Fifty unit vectors in ten dimensions, all at a distance of 0.1 and more from a hyperplane."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(10)
    normal /= np.linalg.norm(normal)
    rows: list[np.ndarray] = []
    while len(rows) < 50:
        row = rng.standard_normal(10)
        row /= np.linalg.norm(row)
        if abs(row @ normal) > 0.1:
            rows.append(row)
    x = np.array(rows)
    return x, np.where(x @ normal > 0, 1, -1)


def diluted(n: int = 1000):
    """All samples alike but one, which points almost the other way."""
    return np.vstack([np.tile([1.0, 0.0], (n - 1, 1)), [[-0.95, 0.3122]]]), np.ones(n, int)


def largest_margin(x, target) -> float:
    signed = np.unique(x * target[:, None], axis=0)
    found = minimize(
        lambda w: 0.5 * w @ w,
        np.ones(x.shape[1]),
        jac=lambda w: w,
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda w: signed @ w - 1, "jac": lambda w: signed},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert found.success
    return float(1 / np.linalg.norm(found.x))


def large_steps() -> Claim:
    figures: dict[str, float | int | str] = {}
    holds = True
    for seed in SEEDS:
        x, target = sphere(seed)
        runs = [logistic_gd(x, target, learning_rate=rate, max_iter=10**4) for rate in RATES]
        limit = batch_perceptron(x, target, max_iter=10**4)
        counts = [run.n_iter for run in runs]
        peak = float(runs[-1].history["loss"].max()) / np.log(2)
        holds &= all(run.converged for run in runs) and counts[-1] == limit.n_iter
        holds &= seed == 2 or peak > 1000
        figures[f"seed {seed}: iterations for rates 0.1 to 10⁸"] = ", ".join(map(str, counts))
        figures[f"seed {seed}: iterations of the batch perceptron"] = limit.n_iter
        figures[f"seed {seed}: largest loss at rate 10⁸, in units of the first"] = peak
    return Claim(
        statement="Larger steps separate the data in fewer iterations, while the loss explodes on the way "
        "(50 unit vectors in ten dimensions).",
        expected="every rate separates; rate 10⁸ takes exactly the batch perceptron's iterations on three "
        "seeds, and its largest loss exceeds 1000 log 2 on seeds 0 and 1",
        holds=bool(holds),
        figures=figures,
    )


def perceptron_limit() -> Claim:
    rate, worst = 1e8, 0.0
    for x, target in (*(sphere(seed) for seed in SEEDS), diluted(100)):
        for steps in range(1, batch_perceptron(x, target, max_iter=1000).n_iter + 1):
            ours = logistic_gd(x, target, learning_rate=rate, max_iter=steps).weight / rate
            limit = batch_perceptron(x, target, max_iter=steps).weight
            worst = max(worst, float(np.abs(ours - limit).max()))
    return Claim(
        statement="Divided by the learning rate, the iterates of gradient descent tend to those of the batch perceptron.",
        expected="largest difference of any iterate below 1e-6 at rate 10⁸, on four data sets",
        holds=worst < 1e-6,
        figures={"largest difference": worst},
    )


def dilution() -> Claim:
    x, target = diluted()
    figures: dict[str, float | int | str] = {}
    ratios = []
    for rate, name in ((1.0, "1"), (1e3, "10³"), (1e8, "10⁸")):
        plain, normed = (
            logistic_gd(x, target, learning_rate=rate, max_iter=10**5, normalize=normalize).n_iter
            for normalize in (False, True)
        )
        ratios.append(plain / normed)
        figures |= {f"iterations at rate {name}": plain, f"iterations at rate {name}, normalized": normed}
    return Claim(
        statement="One wrong sample among 1000 pulls with weight 1/1000; the normalized method gives it its full weight.",
        expected="at least 100 times fewer iterations at the rates 1, 10³ and 10⁸",
        holds=min(ratios) >= 100,
        figures=figures | {"smallest ratio": min(ratios)},
    )


def bounds() -> Claim:
    figures: dict[str, float | int | str] = {}
    holds = True
    sets = {"seed 0": sphere(0), "seed 1": sphere(1), "one in 1000": diluted()}
    for name, (x, target) in sets.items():
        radius, margin = float(np.linalg.norm(x, axis=1).max()), largest_margin(x, target)
        counts = {
            "perceptron": (perceptron(x, target, max_epochs=1000).n_iter, perceptron_bound(radius, margin)),
            "batch perceptron": (
                batch_perceptron(x, target, max_iter=10**4).n_iter,
                batch_perceptron_bound(radius, margin, len(x)),
            ),
        }
        for rate, label in ((1.0, "1"), (1e8, "10⁸")):
            run = logistic_gd(x, target, learning_rate=rate, max_iter=10**4, normalize=True)
            counts[f"normalized, rate {label}"] = (run.n_iter, normalized_gd_bound(radius, margin, len(x), rate))
        for method, (count, bound) in counts.items():
            holds &= count <= bound
            figures[f"{name}: {method}, iterations and bound"] = f"{count}, {bound:.0f}"
    return Claim(
        statement="The bounds of the chapter hold; that of the normalized method has no factor n.",
        expected="no count above its bound",
        holds=holds,
        figures=figures,
    )


def figure():
    """Iterations until all samples are classified against the learning rate, and the loss on the way."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    x, target = sphere(1)
    rates = 10.0 ** np.arange(-1, 6.5, 0.5)
    for normalize, label in ((False, "gradient descent"), (True, "normalized")):
        counts = [
            logistic_gd(x, target, learning_rate=rate, max_iter=10**4, normalize=normalize).n_iter for rate in rates
        ]
        left.plot(rates, counts, "o-", label=label)
    left.axhline(batch_perceptron(x, target, max_iter=100).n_iter, color="0.5", ls="--", label="batch perceptron")
    left.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="iterations to separate")
    left.legend()
    for rate in (1.0, 10.0, 100.0, 1e4):
        loss = logistic_gd(x, target, learning_rate=rate, max_iter=100).history["loss"]
        right.plot(np.arange(len(loss) + 1), [np.log(2), *loss], "o-", ms=3, label=f"rate {rate:g}")
    right.set(xscale="symlog", yscale="log", xlabel="iteration", ylabel="loss", xlim=(0, 150), ylim=(0.01, 30))
    right.legend()
    return fig
