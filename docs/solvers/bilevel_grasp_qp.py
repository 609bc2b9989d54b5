"""Two contacts on an ellipsoid: the forces that a small program finds for a lift, before and after the contacts moved."""

import numpy as np

from refnorm.solvers import friction_qp, grasp_energy_vjp, grasp_matrix, optimize_grasp, project_ellipsoid_vjp, solve_qp

AXES, FRICTION, STRENGTH = np.array([1.0, 0.6, 0.6]), 0.4, 0.5
LIFT = np.array([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]])


def surface(points):
    return project_ellipsoid_vjp(points, AXES)


def energy(positions, normals):
    return grasp_energy_vjp(positions, normals, LIFT, friction=FRICTION, strength=STRENGTH)


def forces(positions, normals):
    """Solve the lower program and return the force at each contact."""
    matrix = grasp_matrix(positions, normals)
    quadratic, *bounds = friction_qp(matrix, LIFT[0], friction=FRICTION, strength=STRENGTH)
    x = solve_qp(quadratic, np.zeros(len(quadratic)), *bounds)
    return np.einsum("icj,ij->ic", matrix[:, :3], x[:-1].reshape(-1, 3))


def grasps():
    """Return positions, normals and energy at the start and after the upper level's descent."""
    start = np.array([[0.95, 0.2, 0.0], [-0.5, 0.8, 0.0]])
    positions, normals = surface(start)[0]
    result = optimize_grasp(start, surface, energy, steps=60, learning_rate=1.0)
    value = energy(positions, normals)[0][0]
    return {"start": (positions, normals, value), "60 steps": (result.positions, result.normals, result.energy)}


def figure():
    """A cut through an ellipsoid (grey) with two contacts and the cones of the forces that friction allows (blue; pale). Wanted is an
    upward force of 0.5 without torque (thick black arrow); red is the sum of the best forces (blue arrows). Left: both cones look
    down, no choice of forces lifts, and all that the lower program can do is press as little as it may. Right: the upper level
    has followed the gradient of what is missing. One contact has walked round to the underside, the wanted force lies in its
    cone, and the squared error $E$ has fallen from 0.26 to 0.00003."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7, 2.5), layout="constrained")
    t = np.linspace(0, 2 * np.pi, 100)
    arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0}
    for ax, (name, (positions, normals, value)) in zip(axes, grasps().items(), strict=True):
        ax.fill(AXES[0] * np.cos(t), AXES[1] * np.sin(t), color="#8a8a8a", alpha=0.3)
        found = forces(positions, normals)
        for place, normal, force in zip(positions[:, :2], normals[:, :2], found[:, :2], strict=True):
            side = FRICTION * np.array([-normal[1], normal[0]])
            ax.fill(
                *np.stack([place, place + 0.7 * (normal + side), place + 0.7 * (normal - side)]).T,
                "#1f77b4",
                alpha=0.25,
            )
            ax.plot(*place, "o", color="#1f77b4", markersize=7)
            if np.linalg.norm(force) > 0.1:
                ax.annotate("", place + force, place, arrowprops=arrow | {"color": "#1f77b4", "linewidth": 2})
        origin, total = np.array([0.3, 0.0]), found.sum(axis=0)[:2]
        ax.annotate("", origin + STRENGTH * LIFT[0, :2], origin, arrowprops=arrow | {"color": "black", "linewidth": 5})
        ax.annotate("", origin + total, origin, arrowprops=arrow | {"color": "#d62728", "linewidth": 2})
        ax.text(0.37, 0.3, "wanted", va="center")
        ax.set_title(f"{name}: $E$ = {value:.5f}", fontsize=11)
        ax.set(aspect="equal", xticks=[], yticks=[])
        ax.axis("off")
    return fig
