"""The loss of one row against the lead of its right class, by two routes in float32."""

import numpy as np

from refnorm.softmax import cross_entropy, softmax


def losses(lead):
    """Return -log(softmax) and the cross-entropy of rows of two logits, (lead, 0)."""
    logits = np.stack([lead, np.zeros_like(lead)], axis=1)
    with np.errstate(divide="ignore"):
        detour = -np.log(softmax(logits)[:, 0])
    return detour, cross_entropy(logits, np.zeros(len(lead), int), reduction="none")


def figure():
    r"""Loss of a row of two logits in float32, against the lead of the right class. Left, a hopeless answer: the
    logarithm of softmax follows the loss until the probability is 0, at a lead of $-104$, and is infinite from there on
    (cross: the last finite one); the loss taken straight from the logits goes on as a line of slope $-1$. Right, a confident answer: the
    probability rounds to 1 at a lead of 17.3, and its logarithm is 0 beyond (cross), where the
    true loss is still about $e^{-\text{lead}}$."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
    for ax, lead in ((left, np.linspace(-150, 0, 151)), (right, np.linspace(0, 40, 161))):
        detour, straight = losses(lead.astype(np.float32))
        fine = np.isfinite(detour) & (detour > 0)
        end = np.flatnonzero(fine)[0 if ax is left else -1]
        ax.plot(lead, straight, color="#1f77b4", linewidth=2)
        ax.plot(lead[fine], detour[fine], "--", color="#d62728", linewidth=4, alpha=0.7)
        ax.plot(lead[end], detour[end], "X", color="#d62728", markersize=11)
        ax.set_xlabel("lead of the right class")
    left.set(ylabel="loss, nats")
    right.set(yscale="log")
    left.text(-95, 105, "log of softmax:\n$\\infty$ to the left", color="#d62728")
    left.text(-150, 40, "straight from\nthe logits", color="#1f77b4")
    right.text(18.5, 1e-6, "log of softmax:\n0 beyond", color="#d62728")
    right.text(2, 1e-16, "straight from\nthe logits", color="#1f77b4")
    return fig
