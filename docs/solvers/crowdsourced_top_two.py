"""Answers of a crowd: who knows, who guesses, and the two answers between which the knowing hesitate."""

import numpy as np

from refnorm.solvers import simulate_top_two, top_two

WORKERS, TASKS, CHOICES, RATE = 24, 300, 5, 0.8


def crowd():
    """Return answers with their truth; workers are sorted by reliability and tasks by certainty."""
    reliability, certainty = np.linspace(1, 0, WORKERS) ** 2, np.linspace(0.95, 0.55, TASKS)
    answers, first, second = simulate_top_two(
        np.random.default_rng(0), WORKERS, TASKS, CHOICES, reliability, certainty, RATE
    )
    return answers, first, second, reliability, certainty


def figure():
    """Left: answers of 24 workers (rows, the reliable ones on top) to every sixth of 300 tasks (columns, the confusing ones to the
    right), coloured by what they are; no colour: not asked. Workers on top say the true answer, and towards the right more and
    more often one particular wrong one; those at the bottom guess. Nobody tells the method which is which: right, the
    reliabilities that it finds from the answers alone (dots) and the true ones (line). With them it names the true answer
    wrongly in 15 % of the tasks, a plain vote in 25 %."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    answers, first, second, reliability, _ = crowd()
    found = top_two(answers, CHOICES)
    kind = np.where(answers == first, 0.0, np.where(answers == second, 1.0, np.where(answers > 0, 2.0, np.nan)))
    colours = {"true": "#1f77b4", "confusing": "#ff7f0e", "another": "#8a8a8a"}
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained", width_ratios=(1.7, 1))
    left.imshow(kind[:, ::6], cmap=ListedColormap(list(colours.values())), aspect="auto")
    left.set(xlabel="task", ylabel="worker", xticks=[], yticks=[0, 10, 20])
    left.grid(visible=False)
    marks = [Patch(color=colour, label=name) for name, colour in colours.items()]
    left.legend(handles=marks, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=10)
    right.plot(found.reliability, np.arange(WORKERS), "o", color="#1f77b4")
    right.plot(reliability, np.arange(WORKERS), color="black")
    right.set(xlabel="reliability", ylim=(WORKERS - 0.5, -0.5), yticks=[0, 10, 20])
    return fig
