"""One atom for a cloud of two classes: the best for reconstruction, and the best for labels too."""

import numpy as np

from refnorm.solvers import sdl_lpgd

SAMPLES = 240


def cloud():
    """Points of large variance along one direction, labels that follow the other one. Columns are samples."""
    rng = np.random.default_rng(0)
    strong, weak = 2.0 * rng.standard_normal(SAMPLES), 0.6 * rng.standard_normal(SAMPLES)
    turn = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    labels = (weak + 0.1 * rng.standard_normal(SAMPLES) > 0).astype(int)
    return turn @ np.stack([strong, weak]), labels


def atoms(x, labels):
    """Unit atoms, pointing up: the best without labels, and the one that is learned with labels."""
    model = sdl_lpgd(x / np.linalg.norm(x, 2), labels, rank=1, max_iter=500)
    found = {"without labels": np.linalg.svd(x)[0][:, 0], "with labels": model.dictionary[:, 0]}
    return {name: atom * np.sign(atom[1]) for name, atom in found.items()}


def figure():
    r"""Left: a cloud of two classes, and two dictionaries of a single atom. The atom that reconstructs best lies along the cloud,
    where the classes are mixed; the atom that is learned with the labels lies across it. Right: all that is left of the
    points on one atom, $w^\top x$. Without labels the difference of the classes, a direction of small variance, is what the low rank
    drops first; with labels it is kept, at the price of most of the reconstruction."""
    import matplotlib.pyplot as plt

    x, labels = cloud()
    rng = np.random.default_rng(1)
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained", width_ratios=[1.3, 1])
    marks = ((0, ".", "#ff7f0e"), (1, "x", "#1f77b4"))
    for label, mark, color in marks:
        left.plot(*x[:, labels == label], mark, color=color, markersize=5, label=f"class {label}")
    for row, (name, atom) in enumerate(atoms(x, labels).items()):
        ends = np.outer(atom, [-5.5, 5.5] if row == 0 else [-2.5, 3])
        left.plot(*ends, ("--", "-")[row], color="black", linewidth=2, label=f"atom {name}")
        for label, mark, color in marks:
            along = atom @ x[:, labels == label]
            right.plot(along, -row + rng.uniform(-0.25, 0.25, len(along)), mark, color=color, markersize=4)
    left.set(aspect="equal", xticks=[], yticks=[], ylim=(-6.3, 3.8))
    left.legend(fontsize=9, loc="lower right", handlelength=1.5)
    right.set(xlabel=r"$w^\top x$", ylim=(-1.5, 0.5))
    right.set_yticks([0, -1], ["without\nlabels", "with\nlabels"])
    return fig
