"""Evidence for gradient-normalized smoothness: three Hessians on a soft maximum, and the radius itself."""

from functools import cache

import numpy as np

from refnorm.claims import Claim
from refnorm.solvers import gradient_regularized_newton, logsumexp_oracle, smoothness_radius, soft_maximum_vjp

LEVELS = (1e-2, 1e-4, 1e-6, 1e-8)
NAMES = ("exact", "Gauss-Newton", "none")


def claims() -> list[Claim]:
    return [iterations(), descent(), radius()]


def problem(seed: int = 0):
    """A soft maximum of 100 affine functions in 20 dimensions whose minimum is at 0."""
    rng = np.random.default_rng(seed)
    matrix, offset = rng.uniform(-1, 1, (100, 20)), rng.uniform(-1, 1, 100)
    # Subtracting the gradient at 0 from every row makes the gradient there 0.
    matrix = matrix - soft_maximum_vjp(np.zeros(20), matrix, offset, smoothing=0.1)[1](np.array(1.0))[0]
    oracle = logsumexp_oracle(matrix, offset, 0.1)
    return oracle, oracle.fun(np.zeros(20))


@cache
def run(name: str, seed: int = 0):
    oracle, best = problem(seed)
    hessian = {"exact": oracle.hessian, "Gauss-Newton": oracle.gauss_newton, "none": lambda x: None}[name]
    result = gradient_regularized_newton(
        oracle.fun, oracle.gradient, hessian, np.ones(20), target=best + 1e-9, max_iter=3000
    )
    return result, np.concatenate([[oracle.fun(np.ones(20))], result.history["fun"]]) - best


def counts(gaps):
    return [int(np.argmax(gaps < level)) for level in LEVELS]


def iterations() -> Claim:
    found = {name: counts(run(name)[1]) for name in NAMES}
    late = {name: row[-1] - row[0] for name, row in found.items()}
    return Claim(
        statement="An approximate Hessian costs little near the minimum: Gauss-Newton converges as fast as the "
        "exact Hessian there, no Hessian does not (soft maximum of 100 functions in 20 dimensions).",
        expected="from a gap of 10⁻² to 10⁻⁸: fewer than 15 iterations with Gauss-Newton, more than 200 without a "
        "Hessian; the exact Hessian needs fewer than 40 in all",
        holds=late["Gauss-Newton"] < 15 and late["none"] > 200 and found["exact"][-1] < 40,
        figures={f"{name}: iterations to 10⁻², 10⁻⁴, 10⁻⁶, 10⁻⁸": ", ".join(map(str, found[name])) for name in NAMES},
    )


def descent() -> Claim:
    figures: dict[str, float | int | str] = {}
    rise, excess = -np.inf, 0.0
    for name in NAMES:
        result, gaps = run(name)
        rise = max(rise, float(np.diff(gaps).max()))
        excess = max(excess, float((result.history["step_norm"] - result.history["radius"]).max()))
        figures[f"{name}: mean number of trials"] = float(result.history["trials"].mean())
    return Claim(
        statement="Every step lowers the value and is no longer than the radius, whatever the Hessian.",
        expected="no rise; no step longer than its radius by more than 1.1e-8 (the constant eps is 1e-8)",
        holds=bool(rise <= 0 and excess <= 1.1e-8),
        figures=figures | {"largest change of the value in a step": rise, "largest excess of a step": excess},
    )


def radius() -> Claim:
    rng = np.random.default_rng(1)
    root = rng.standard_normal((8, 8))
    hessian = root @ root.T
    x = rng.standard_normal(8)
    size, steepest = float(np.linalg.norm(hessian @ x)), float(np.linalg.eigvalsh(hessian)[-1])
    grid = np.arange(0.05, 3.01, 0.05)
    blind = smoothness_radius(lambda z: hessian @ z, None, x, radii=grid * size / steepest, n_directions=200, rng=rng)

    def cubic(z):
        # Gradient of |z|^3 / 3, whose Hessian is Lipschitz with constant 2.
        return np.linalg.norm(z) * z

    length = float(np.linalg.norm(x))
    second = np.eye(8) * length + np.outer(x, x) / length
    bound = float(np.sqrt(2 * np.linalg.norm(cubic(x)) / 2))
    informed = smoothness_radius(cubic, second, x, radii=grid * bound, n_directions=200, rng=rng)
    return Claim(
        statement="The radius is |grad| / L without a Hessian on a quadratic of largest curvature L, and at least "
        "sqrt(2 |grad| / M) with the exact one, if that is Lipschitz with constant M.",
        expected="sampled radius from 0.95 to 2 times each (200 directions, candidates in steps of 0.05)",
        holds=bool(0.95 <= blind * steepest / size <= 2 and 0.95 <= informed / bound <= 2),
        figures={
            "no Hessian: radius / (|grad| / L)": blind * steepest / size,
            "exact Hessian of |x|³/3: radius / sqrt(2 |grad| / M)": informed / bound,
        },
    )


def figure():
    """Gap to the minimum and radius of each step, for the exact Hessian, Gauss-Newton and none."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name in NAMES:
        result, gaps = run(name)
        left.plot(np.maximum(gaps, 1e-10), label=name)
        right.plot(np.arange(1, result.n_iter + 1), result.history["radius"], label=name)
    left.set(xscale="symlog", yscale="log", xlim=(0, None), xlabel="iteration", ylabel="value minus minimum")
    right.set(xscale="log", yscale="log", xlabel="iteration", ylabel="radius")
    left.legend(title="Hessian")
    return fig
