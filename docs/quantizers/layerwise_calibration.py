"""A layer with 2 bits as a regression problem: its outputs and the range of its inputs before and after calibration."""

import numpy as np

from refnorm.quantizers import adaquant, range_fake_quantize

INPUTS, OUTPUTS, ROWS, BITS, SHOWN = 32, 16, 300, 2, 80


def problem():
    """Return calibration inputs, fresh ones, and the weights of a layer behind a ReLU."""
    rng = np.random.default_rng(0)
    mixing, weight = rng.standard_normal((INPUTS, INPUTS)) / 6, rng.standard_normal((INPUTS, OUTPUTS)) / 6
    x = np.maximum(rng.laplace(size=(2 * ROWS, INPUTS)) @ mixing, 0)
    return x[:ROWS], x[ROWS:], weight


def layers(x, weight):
    """Return the layer with the extremes as ranges, and the calibrated one."""
    options = {"weight_bits": BITS, "bits": BITS}
    plain = adaquant(x, weight, np.zeros(OUTPUTS), n_iter=1, holdout=0.0, batch_size=None, **options)
    found = adaquant(x, weight, np.zeros(OUTPUTS), n_iter=200, rng=np.random.default_rng(0), **options)
    return {"extremes as ranges": plain, "calibrated": found}


def figure():
    """A layer whose weights and inputs have 2 bits. Left: its outputs against those of the float layer, with ranges from the
    smallest to the largest number. Middle: after calibration on 300 other inputs. Above stands the mean squared error over the mean
    square. Right: the inputs, and the four values that a code can stand for, before (dashed, red) and after (blue). Two of the first four
    are spent on inputs that hardly occur; calibration gave the largest inputs up, and weights and bias have moved to make up for
    what that costs."""
    import matplotlib.pyplot as plt

    x, fresh, weight = problem()
    y = fresh @ weight
    fig, axes = plt.subplots(1, 3, figsize=(7, 2.7), layout="constrained")
    inputs = axes[2]
    inputs.hist(x[x > 0], np.linspace(0, 7, 36), color="#8a8a8a")
    styles = (("#d62728", "s", "--"), ("#1f77b4", "o", "-"))
    for ax, (name, layer), (colour, marker, line) in zip(axes[:2], layers(x, weight).items(), styles, strict=True):
        rounded = range_fake_quantize(fresh, *layer.input_range, bits=BITS)
        found = rounded @ layer.quantized_weight + layer.bias
        error = np.mean((found - y) ** 2) / np.mean(y**2)
        ax.axline((0, 0), slope=1, color="#8a8a8a", linewidth=1)
        ax.plot(y[:SHOWN, :3].ravel(), found[:SHOWN, :3].ravel(), marker, color=colour, markersize=2.5)
        ax.set_title(f"{name}\n{error:.2f}", fontsize=11)
        ax.set(xlabel="float output", xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), xticks=[-3, 0, 3], yticks=[-3, 0, 3])
        for point in np.unique(rounded):
            inputs.axvline(point, color=colour, linestyle=line, linewidth=1.6)
    axes[0].set_ylabel("quantized output")
    inputs.set(xlabel="input above 0", yticks=[])
    inputs.grid(visible=False)
    return fig
