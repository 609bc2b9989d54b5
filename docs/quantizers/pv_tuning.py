"""Which weights get another value in a step that is safe for all of them, and in one that is safe for one."""

import numpy as np

from refnorm.quantizers import pv_linearized_quadratic, values


def problem():
    """Return a quadratic of eight weights, and a start with two values."""
    rng = np.random.default_rng(6)
    root = rng.standard_normal((8, 8))
    matrix = root @ root.T
    x0 = np.where(rng.integers(2, size=8) > 0, 0.5, -0.5)
    return matrix, matrix @ rng.standard_normal(8), x0


def figure():
    r"""Eight weights that share two values (dashed; dotted: the midpoint between them), after one P step. An
    arrow shows where the gradient sends a weight. Left: the step $1/L$ is safe for all weights together, and no
    arrow crosses the midpoint, so that every weight is rounded back to where it was. Middle: a single weight, the one with the
    largest gradient, has the curvature $L_S=0.54\,L$ and may step 1.9 times as far. It crosses and takes the other value. Right:
    on this quadratic the steps of all weights never change a code, and only the two values are fitted; steps of single
    weights change two codes and end far lower."""
    import matplotlib.pyplot as plt

    matrix, vector, x0 = problem()
    x = pv_linearized_quadratic(matrix, vector, x0, n_iter=1).x
    slope = vector - matrix @ x
    top = int(np.abs(slope).argmax())
    curvature = np.linalg.eigvalsh(matrix)[-1]
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(7, 3.2), layout="constrained", width_ratios=(3, 3, 3.4))
    for ax, moving, divisor in ((left, range(8), curvature), (middle, [top], matrix[top, top])):
        for value in values(x):
            ax.axvline(value, color="black", linestyle="--", linewidth=1)
        ax.axvline(values(x).mean(), color="#8a8a8a", linestyle=":")
        for i in range(8):
            target = x[i] + slope[i] / divisor
            active = i in moving
            ax.plot(x[i], i, "o", color="#1f77b4" if active else "#8a8a8a")
            if active:
                colour = "#d62728" if abs(target - values(x)).argmin() != abs(x[i] - values(x)).argmin() else "#1f77b4"
                ax.annotate("", (target, i), (x[i], i), arrowprops={"arrowstyle": "->", "color": colour, "lw": 2})
        ax.set(xlabel="value", xlim=(-0.85, 0.85), yticks=range(8), yticklabels=range(1, 9))
        ax.grid(visible=False)
    left.set(ylabel="weight")
    left.set_title("all, step $1/L$", fontsize=11)
    middle.set_title("one, step $1/L_S$", fontsize=11)
    middle.set_yticklabels([])
    for subspace, colour, style, label in ((None, "#1f77b4", "--", "all weights"), (1, "#d62728", "-", "one weight")):
        found = pv_linearized_quadratic(matrix, vector, x0, n_iter=40, subspace=subspace)
        right.plot(found.history["objective"], style, color=colour, label=label)
    right.set(xlabel="pair of steps", ylabel="objective")
    right.legend()
    return fig
