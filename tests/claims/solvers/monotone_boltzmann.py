"""Evidence for the monotone Boltzmann machine: one fixed point, found from everywhere; without the constraint, none."""

import numpy as np

from refnorm.claims import Claim
from refnorm.solvers import block_softmax, hollow_coupling, mean_field

SIZES, MARGIN, STARTS = (3,) * 8, 0.1, 20
TOTAL = sum(SIZES)
DAMPINGS = (None, 0.1, 0.3)


def claims() -> list[Claim]:
    return [margin(), one_limit(), unconstrained()]


def problem(seed: int):
    rng = np.random.default_rng(seed)
    weight, b = 3 * rng.standard_normal((TOTAL, TOTAL)), rng.standard_normal(TOTAL)
    starts = block_softmax(3 * rng.standard_normal((STARTS, TOTAL)), SIZES)
    return weight, b, starts


def margin() -> Claim:
    smallest, largest = np.inf, 0.0
    for seed in range(20):
        values = np.linalg.eigvalsh(np.eye(TOTAL) - hollow_coupling(problem(seed)[0], SIZES, margin=MARGIN))
        smallest, largest = min(smallest, float(values[0])), max(largest, float(values[-1]))
    return Claim(
        statement="The parametrisation keeps the eigenvalues of I - phi above the margin, for any weights "
        "(8 variables of 3 states, weights of size 3).",
        expected="smallest eigenvalue at least 0.1 - 1e-12 on 20 seeds",
        holds=smallest >= MARGIN - 1e-12,
        figures={"smallest eigenvalue": smallest, "largest eigenvalue": largest},
    )


def one_limit() -> Claim:
    figures: dict[str, float | int | str] = {}
    spread, counts, converged = 0.0, {}, True
    for seed in range(3):
        weight, b, starts = problem(seed)
        phi = hollow_coupling(weight, SIZES, margin=MARGIN)
        limits = []
        for damping in DAMPINGS:
            result = mean_field(
                phi, np.tile(b, (STARTS, 1)), SIZES, q0=starts, damping=damping, tol=1e-9, max_iter=2000
            )
            converged = converged and result.converged
            limits.append(result.x)
            counts[seed, damping] = result.n_iter
        everything = np.concatenate(limits)
        spread = max(spread, float(np.abs(everything - everything[0]).max()))
    for damping in DAMPINGS:
        name = "default damping" if damping is None else f"damping {damping:g}"
        figures[f"{name}: most iterations of three seeds"] = max(counts[seed, damping] for seed in range(3))
    return Claim(
        statement="From 20 random starts and with three dampings the iteration reaches one and the same solution.",
        expected="all converge to a residual of 1e-9 within 2000 iterations, solutions within 1e-7 of each other, on "
        "three seeds",
        holds=converged and spread < 1e-7,
        figures=figures | {"largest difference between solutions": spread},
    )


def loose_coupling(weight):
    """The same hollow matrix without the scaling of its blocks, of spectral norm 20."""
    same = np.kron(np.eye(len(SIZES)), np.ones((3, 3))) > 0
    phi = np.where(same, 0, -(weight.T @ weight))
    return 20 / np.linalg.norm(phi, 2) * phi


def unconstrained() -> Claim:
    figures: dict[str, float | int | str] = {}
    failed = 0
    for seed in range(3):
        weight, b, starts = problem(seed)
        q = starts
        for _ in range(2000):
            q = block_softmax(q @ loose_coupling(weight) + b, SIZES)
        after = block_softmax(q @ loose_coupling(weight) + b, SIZES)
        residuals = np.abs(after - q).max(axis=1)
        cycling = int((residuals > 1e-3).sum())
        distinct = len(np.unique(np.round(q[residuals <= 1e-3], 3), axis=0))
        figures[f"seed {seed}: starts that never settle, of 20"] = cycling
        figures[f"seed {seed}: different limits of the others"] = distinct
        failed += int(cycling > 0 or distinct > 1)
    return Claim(
        statement="Without the constraint, couplings of norm 20 make the usual parallel mean field cycle or end in "
        "different places.",
        expected="on each of three seeds at least one of 20 starts has a residual above 1e-3 after 2000 steps, or two "
        "starts have different limits",
        holds=failed == 3,
        figures=figures,
    )


def figure():
    """Residual of mean field against iterations: monotone couplings with three dampings, and loose couplings."""
    import matplotlib.pyplot as plt

    weight, b, starts = problem(0)
    fig, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for damping in DAMPINGS:
        phi = hollow_coupling(weight, SIZES, margin=MARGIN)
        result = mean_field(phi, b, SIZES, q0=starts[0], damping=damping, tol=1e-12, max_iter=600)
        name = "m / L²" if damping is None else f"{damping:g}"
        ax.plot(result.history["residual"], label=f"monotone, damping {name}")
    loose = mean_field(loose_coupling(weight), b, SIZES, q0=starts[0], damping=1.0, max_iter=600)
    ax.plot(loose.history["residual"], color="C3", linewidth=1, label="unconstrained, parallel updates")
    ax.set(yscale="log", xlabel="iteration", ylabel="largest entry of the residual", ylim=(1e-12, 3))
    ax.legend()
    return fig
