"""What each layer of a digit classifier loses when it alone is pruned, and how the programme shares out a budget."""

import numpy as np

from refnorm.quantizers import allocate_ratios, distortion_curves, magnitude_mask

RATIOS, SPARSITY = np.linspace(0, 1, 51), 0.8


def network():
    """Train a network of three layers on digits; return its forward pass, its weights and calibration inputs."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    model = MLPClassifier((64, 32), learning_rate_init=3e-3, random_state=0)
    for _ in range(15):
        model.partial_fit(x / 16, y, classes=np.arange(10))

    def forward(x, weights):
        for weight, bias in zip(weights[:-1], model.intercepts_[:-1], strict=True):
            x = np.maximum(x @ weight + bias, 0)
        return x @ weights[-1] + model.intercepts_[-1]

    return forward, model.coefs_, x[:256] / 16


def figure():
    """A network that reads digits is to keep a fifth of its weights. Left: what the output loses when one layer alone is pruned, by the
    share that goes. At the same share (open circles) the small third layer hurts most. The programme (full circles) prunes it little
    and pays with the first, where weights are many and cost little. Right: how many weights stay in each layer; both rules
    stay within the same budget, and the measured loss of all three layers together is much smaller with the programme's shares."""
    import matplotlib.pyplot as plt

    forward, weights, x = network()
    curves = distortion_curves(forward, weights, x, ratios=RATIOS)
    chosen = allocate_ratios(curves, [w.size for w in weights], ratios=RATIOS, sparsity=SPARSITY).ratios
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained", width_ratios=(1.3, 1))
    kept = {}
    for name, ratios in (("uniform", np.full(3, SPARSITY)), ("programme", chosen)):
        pruned = [w * magnitude_mask(w, ratio) for w, ratio in zip(weights, ratios, strict=True)]
        error = np.mean((forward(x, pruned) - forward(x, weights)) ** 2)
        kept[f"{name}\nloss {error:.1f}"] = [np.count_nonzero(w) for w in pruned]
    styles = (("#1f77b4", "-", "first"), ("#d62728", "--", "second"), ("#9467bd", "-.", "third"))
    starts = np.zeros(2)
    for layer, (colour, style, label) in enumerate(styles):
        left.semilogy(RATIOS[1:-1], curves[layer, 1:-1], style, color=colour, linewidth=1.8, label=label)
        for ratio, filled in ((SPARSITY, "none"), (chosen[layer], colour)):
            place = round(float(ratio) * 50)
            left.plot(ratio, curves[layer, place], "o", color=colour, markerfacecolor=filled, markersize=7)
        widths = np.array([counts[layer] for counts in kept.values()])
        bars = right.barh(list(kept), widths, left=starts, color=colour, height=0.6)
        names = [f"{width}" if width > 100 else "" for width in widths]
        right.bar_label(bars, names, label_type="center", color="white", fontsize=10)
        starts += widths
    left.set(xlabel="share of the layer that is pruned", ylabel="loss, this layer alone", ylim=(1e-3, 200))
    left.legend(loc="upper left", title="layer")
    right.set(xlabel="weights kept", ylim=(1.5, -0.5))
    right.grid(visible=False)
    return fig
