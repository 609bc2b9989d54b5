"""Evidence for bilevel grasp synthesis: the envelope gradient, and what the program's energy is good for."""

import functools

import numpy as np

from refnorm.claims import Claim
from refnorm.solvers import (
    equal_force_energy_vjp,
    friction_qp,
    grasp_energy,
    grasp_energy_vjp,
    grasp_matrix,
    optimize_grasp,
    project_ellipsoid,
    project_ellipsoid_vjp,
    solve_qp,
)

AXES, FRICTION, RATE = np.array([1.0, 0.7, 0.5]), 0.5, 0.1
FORCES = np.concatenate([np.eye(6)[:3], -np.eye(6)[:3]])
LIFT = np.array([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
TASKS = {
    "six forces": (FORCES, 0.5, range(3), 50),
    "lift": (LIFT, 1.5, range(20), 60),
}


def claims() -> list[Claim]:
    return [gradient(), descent(), directed()]


def gradient() -> Claim:
    rng = np.random.default_rng(0)
    p, n = project_ellipsoid(rng.standard_normal((4, 3)), np.ones(3))
    targets = np.concatenate([np.eye(6), -np.eye(6)])

    def value(p):
        matrix, total = grasp_matrix(p, n), 0.0
        for target in targets:
            h, rows, low, high = friction_qp(matrix, target, friction=FRICTION)
            x = solve_qp(h, np.zeros(len(h)), rows, low, high)
            total += float(x @ h @ x)
        return total

    _, back = grasp_energy_vjp(p, n, targets, friction=FRICTION)
    slope = back(np.ones(len(targets)))[0]
    measured = np.zeros_like(p)
    for place in np.ndindex(p.shape):
        step = np.zeros_like(p)
        step[place] = 1e-5
        measured[place] = (value(p + step) - value(p - step)) / 2e-5
    error = float(np.abs(slope - measured).max() / np.abs(measured).max())
    return Claim(
        statement="The gradient of the optimal value needs no derivative of the forces: with the forces held fixed it is "
        "exact (four contacts on a sphere, twelve target wrenches).",
        expected="largest deviation from central differences, relative to the largest entry, below 1e-5",
        holds=error < 1e-5,
        figures={"relative deviation": error},
    )


@functools.cache
def scores(task):
    """Return scores of all grasps at the start, after descent on the program's energy, and on that of equal forces."""
    targets, strength, seeds, steps = TASKS[task]
    options = {"friction": FRICTION, "strength": strength}
    found = []
    for seed in seeds:
        start = np.random.default_rng(seed).standard_normal((3, 3))

        def surface(p):
            return project_ellipsoid_vjp(p, AXES)

        def energy(p, n):
            return grasp_energy_vjp(p, n, targets, **options)

        def score(p, n):
            return float(grasp_energy(p, n, targets, **options).sum())

        ours = optimize_grasp(start, surface, energy, steps=steps, learning_rate=RATE)
        equal = optimize_grasp(start, surface, equal_force_energy_vjp, steps=steps, learning_rate=RATE)
        found.append([score(*project_ellipsoid(start, AXES)), ours.energy, score(equal.positions, equal.normals)])
    return np.array(found)


def descent() -> Claim:
    found = scores("six forces")
    ratio = float(found[:, 1].mean() / found[:, 0].mean())
    return Claim(
        statement="Descent on the program's energy turns random grasps of three contacts into good ones (ellipsoid, six "
        "force directions, 50 steps).",
        expected="no grasp gets worse; mean score at most 0.1 of the mean at the start, three seeds",
        holds=bool((found[:, 1] <= found[:, 0]).all() and ratio <= 0.1),
        figures={
            "mean score at the start": float(found[:, 0].mean()),
            "mean score in the end": float(found[:, 1].mean()),
            "ratio": ratio,
        },
    )


def directed() -> Claim:
    every = scores("lift")
    found, better = np.median(every, axis=0), int((every[:, 1] < every[:, 2]).sum())
    return Claim(
        statement="When one wrench matters, the program's energy, which knows it, finds better grasps than the energy of "
        "equal normal forces, which does not (lift with 1.5 times the largest finger force).",
        expected="median score at most half of the other's, and the better grasp from at least 12 of 20 starts",
        holds=bool(found[1] <= 0.5 * found[2] and better >= 12),
        figures={
            "median score at the start": float(found[0]),
            "median score, program": float(found[1]),
            "median score, equal forces": float(found[2]),
            "starts from which the program's grasp is better, of 20": better,
        },
    )


def figure():
    """Scores of single grasps: at the start, after descent on the program's energy, and on that of equal forces."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    titles = {"six forces": "Six force directions", "lift": "Lift only, 1.5 times as strong"}
    for ax, (task, title) in zip(axes, titles.items(), strict=True):
        for place, name in enumerate(("start", "program", "equal forces")):
            values = np.maximum(scores(task)[:, place], 1e-6)
            ax.plot(place + np.linspace(-0.15, 0.15, len(values)), values, "o", color=f"C{place}", label=name)
        ax.set_xticks(range(3), ["start", "program", "equal forces"])
        ax.set(yscale="log", title=title)
    axes[0].set_ylabel("score (squared wrench error)")
    return fig
