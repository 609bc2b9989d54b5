"""Evidence for AdAdaGrad: fewer updates for the same gradient, and what its tests measure."""

import numpy as np
from scipy.special import expit
from sklearn.datasets import load_breast_cancer

from refnorm.claims import Claim
from refnorm.solvers import AdaGrad, AdaGradNorm, adadagrad, norm_test

SEEDS = (0, 1, 2)
EPOCHS, PENALTY = 200, 1e-3


def claims() -> list[Claim]:
    return [fewer_updates(), promised_error(), blind_spot(), harsh_coordinates()]


def problem():
    """Logistic regression on the breast cancer data: signed rows, and per-sample gradients."""
    data, label = load_breast_cancer(return_X_y=True)
    data = np.column_stack([(data - data.mean(axis=0)) / data.std(axis=0), np.ones(len(data))])
    signed = data * (2.0 * label[:, None] - 1)

    def per_sample_grad(x, rows):
        chosen = signed[rows]
        return -expit(-(chosen @ x))[:, None] * chosen + PENALTY * x

    return signed, per_sample_grad


def run(seed: int, *, test, optimizer=None, tolerance=0.5):
    signed, grad = problem()
    n, d = signed.shape
    result = adadagrad(
        grad,
        np.zeros(d),
        n,
        optimizer=optimizer or AdaGradNorm(),
        test=test,
        tolerance=tolerance,
        max_samples=EPOCHS * n,
        rng=np.random.default_rng(seed),
    )
    return result, float(np.linalg.norm(grad(result.x, np.arange(n)).mean(axis=0)))


def fewer_updates() -> Claim:
    n = len(problem()[0])
    figures: dict[str, float | int | str] = {}
    holds = True
    for seed in SEEDS:
        (adaptive, near), (constant, far) = run(seed, test="norm"), run(seed, test=None)
        sizes = adaptive.batch_sizes
        holds &= bool((np.diff(sizes) >= 0).all() and sizes[-1] == n)
        holds &= constant.n_iter > 20 * adaptive.n_iter and 0.25 < near / far < 4
        figures |= {
            f"seed {seed}: updates, adaptive": adaptive.n_iter,
            f"seed {seed}: updates, batches of 8": constant.n_iter,
            f"seed {seed}: gradient norm, adaptive": near,
            f"seed {seed}: gradient norm, batches of 8": far,
        }
    return Claim(
        statement="AdaGrad-Norm with the norm test makes far fewer updates from the same number of per-sample "
        "gradients and ends as well (logistic regression, 569 samples, 200 epochs, tolerance 0.5).",
        expected="batch sizes never shrink and reach all samples; more than 20 times fewer updates; "
        "final full gradient within a factor of 4 of that of batches of 8; on three seeds",
        holds=holds,
        figures=figures,
    )


def promised_error() -> Claim:
    signed, grad = problem()
    everything = grad(np.zeros(signed.shape[1]), np.arange(len(signed)))
    full = everything.mean(axis=0)
    rng = np.random.default_rng(0)
    figures: dict[str, float | int | str] = {}
    worst = 0.0
    for tolerance in (0.5, 0.2, 0.1):
        ratios = []
        for _ in range(20):
            pilot = everything[rng.choice(len(signed), 32, replace=False)]
            size = int(norm_test(pilot, tolerance=tolerance).required)
            drawn = everything[rng.integers(len(signed), size=(500, size))].mean(axis=1)
            ratios.append(((drawn - full) ** 2).sum(axis=1).mean() / (full @ full))
        ratio = float(np.mean(ratios)) / tolerance**2
        worst = max(worst, ratio)
        figures[f"squared error / (tolerance² squared norm), tolerance {tolerance}"] = ratio
    return Claim(
        statement="A batch of the size that the norm test asks for has the promised sampling error "
        "(20 test batches of 32 at the start, 500 draws of the new size each).",
        expected="mean squared error below 1.5 tolerance² |gradient|²",
        holds=worst < 1.5,
        figures=figures,
    )


def blind_spot() -> Claim:
    rng = np.random.default_rng(0)
    size, dimension = 8, 2000
    figures: dict[str, float | int | str] = {}
    worst = 0.0
    for ratio in (0.1, 1.0, 10.0):
        signal = np.full(dimension, np.sqrt(1 / (size * ratio)))
        measured = []
        for _ in range(20):
            found = norm_test(signal + rng.standard_normal((size, dimension)), tolerance=1.0)
            measured.append(found.variance / (size * found.grad_norm_squared))
        predicted = ratio / (1 + ratio)
        worst = max(worst, abs(float(np.mean(measured)) / predicted - 1))
        figures[f"measured ratio where the true one is {ratio:g}"] = float(np.mean(measured))
    return Claim(
        statement="The test compares the error with the batch's own gradient, which the error has lengthened: a "
        "true ratio r of squared error to squared norm is seen as r / (1 + r), never above 1.",
        expected="mean of 20 batches of 8 in 2000 dimensions within 3 percent of r / (1 + r)",
        holds=worst < 0.03,
        figures=figures,
    )


def harsh_coordinates() -> Claim:
    figures: dict[str, float | int | str] = {}
    smallest = np.inf
    for seed in SEEDS:
        coordinate, _ = run(seed, test="coordinate", optimizer=AdaGrad(learning_rate=1.0))
        joint, _ = run(seed, test="norm")
        second = (int(coordinate.batch_sizes[1]), int(joint.batch_sizes[1]))
        smallest = min(smallest, second[0])
        figures[f"seed {seed}: second batch, coordinate-wise test"] = second[0]
        figures[f"seed {seed}: second batch, norm test"] = second[1]
    return Claim(
        statement="The coordinate-wise test asks for a very large batch at once: one mean near 0 among 31 is enough.",
        expected="second batch at least 300 after a first one of 8, on three seeds",
        holds=bool(smallest >= 300),
        figures=figures,
    )


def figure():
    """Batch sizes of the norm test for three tolerances, and gradient norms against samples used."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for tolerance, colour in ((1.0, "C0"), (0.5, "C1"), (0.2, "C2")):
        result, _ = run(0, test="norm", tolerance=tolerance)
        used = np.cumsum(result.batch_sizes)
        left.plot(used, result.batch_sizes, ".-", color=colour, label=f"tolerance {tolerance:g}")
        right.plot(used, result.history["gradient_norm"], color=colour)
    constant, _ = run(0, test=None)
    used, norms = np.cumsum(constant.batch_sizes), constant.history["gradient_norm"]
    right.plot(used, norms, color="0.75", lw=0.5, zorder=0, label="batches of 8")
    left.set(xscale="log", yscale="log", xlabel="samples used", ylabel="batch size")
    right.set(xscale="log", yscale="log", xlabel="samples used", ylabel="batch gradient norm")
    left.legend()
    right.legend()
    return fig
