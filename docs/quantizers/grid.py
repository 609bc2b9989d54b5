"""The weights of a trained layer on the grids of 2 to 8 bits."""

from functools import cache

import numpy as np

from refnorm.models import ModelError, default_directory
from refnorm.quantizers import affine_qparams, dequantize, quantize

BITS = range(2, 9)
GRIDS = {
    "symmetric, whole range": {"symmetric": True, "method": "minmax"},
    "asymmetric, whole range": {"symmetric": False, "method": "minmax"},
    "symmetric, least squared error": {"symmetric": True, "method": "mse"},
}
BINS = 120
TENSOR = "encoder.layer.0.attention.self.query.weight"


@cache
def weights():
    """Return a trained weight matrix and its name: of the installed sentence encoder, else of a small network."""
    try:
        from safetensors import safe_open

        with safe_open(str(default_directory() / "model.safetensors"), "np") as file:
            return file.get_tensor(TENSOR).astype(
                np.float32
            ), "first query matrix of the sentence encoder all-MiniLM-L6-v2"
    except (ImportError, ModelError):
        return digit_weights(), "first layer of a network that reads handwritten digits"


def digit_weights():
    """Train a network of one hidden layer on scikit-learn's digits, and return its first weights."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    # A few epochs will do; fit() would warn that it has not converged.
    network = MLPClassifier((64,), random_state=0)
    for _ in range(10):
        network.partial_fit(x / 16, y, classes=np.arange(10))
    return network.coefs_[0].astype(np.float32)


def on_grid(bits, options):
    """Return what quantizing the weights to ``bits`` does."""
    w, _ = weights()
    scale, zero_point = affine_qparams(w, bits=bits, **options)
    codes = quantize(w, scale, zero_point, bits=bits)
    error = (dequantize(codes, scale, zero_point).astype(np.float64) - w).ravel()
    lowest = -(2 ** (bits - 1))
    return {
        "scale": float(f"{scale:.6g}"),
        "first": float(f"{scale * (lowest - int(zero_point)):.6g}"),
        "counts": np.bincount(codes.ravel().astype(int) - lowest, minlength=2**bits).tolist(),
        "error": float(f"{np.sqrt(np.mean(error**2)):.5g}"),
        "clipped": int(np.sum(np.abs(error) > 0.5001 * scale)),
    }


def data():
    """Return a histogram of the weights, and by grid and number of bits where its codes lie and how many weights each has."""
    w, name = weights()
    counts, edges = np.histogram(w, BINS)
    return {
        "name": name,
        "size": int(w.size),
        "rms": float(np.sqrt(np.mean(w.astype(np.float64) ** 2))),
        "edges": [float(edges[0]), float(edges[-1])],
        "histogram": counts.tolist(),
        "bits": list(BITS),
        "grids": [{"name": name, "at": [on_grid(bits, options) for bits in BITS]} for name, options in GRIDS.items()],
    }


def figure():
    """The weights of a trained layer (grey: their histogram) on grids of few bits: a line stands at each code's value and is as high
    as the code has weights; a stroke below the axis is a code without any. Over the whole range, a few large weights push the
    codes apart; the grid of the least squared error clips these weights and gives all others a finer step."""
    import matplotlib.pyplot as plt

    w, name = weights()
    fig, axes = plt.subplots(2, 2, figsize=(7.4, 4.6), layout="constrained", sharex=True, sharey=True)
    for row, grid in zip(axes, ("symmetric, whole range", "symmetric, least squared error"), strict=True):
        for ax, bits in zip(row, (3, 5), strict=True):
            found = on_grid(bits, GRIDS[grid])
            ax.hist(w.ravel(), BINS, color="#8a8a8a", alpha=0.4)
            values = found["first"] + found["scale"] * np.arange(2**bits)
            ax.vlines(values, 0.7, np.maximum(found["counts"], 0.7), color="#1f77b4", linewidth=1.4)
            ax.plot(values, np.maximum(found["counts"], 0.7), "o", markersize=3, color="#1f77b4")
            ax.set_title(f"{grid}, {bits} bits: RMS error {found['error']:.4f}", fontsize=8.5)
            ax.set_yscale("log")
            ax.grid(axis="x", visible=False)
    axes[0, 0].set(ylim=(0.7, None), xlim=(1.1 * w.min(), 1.1 * w.max()))
    fig.supxlabel(f"weight ({name})", fontsize=9)
    fig.supylabel("weights", fontsize=9)
    return fig
