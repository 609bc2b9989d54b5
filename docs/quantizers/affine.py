"""The staircase of a quantizer with its straight-through slope, and one set of numbers on three grids."""

import numpy as np

from refnorm.quantizers import affine_qparams, dequantize, fake_quantize, fake_quantize_vjp

BITS = 3
SCALE, ZERO_POINT = np.array(0.5), np.array(-1)
RANGES = {
    "absmax": {"symmetric": True, "method": "absmax"},
    "minmax": {"symmetric": False, "method": "minmax"},
    "mse": {"symmetric": False, "method": "mse"},
}


def numbers():
    """Return numbers as a layer has them: nearly all of them small, and one that is not."""
    return np.append(0.5 * np.random.default_rng(0).standard_normal(2000), 4.0)


def draw_staircase(ax):
    x = np.linspace(-2.3, 3.3, 561)
    y, pullback = fake_quantize_vjp(x, SCALE, ZERO_POINT, bits=BITS)
    inside = pullback(np.ones_like(x))[0] > 0
    ax.plot(x[inside], x[inside], "--", color="#d62728", linewidth=1.4)
    for value in np.unique(y):
        ax.plot(x[y == value], y[y == value], color="#1f77b4", linewidth=2.4)
    ax.annotate("slope 1", (0.1, 0.3), xytext=(-1.9, 1.1), color="#d62728")
    ax.annotate("clipped", (2.3, 2.0), xytext=(1.9, 1.2))
    ax.set(xlabel="$x$", ylabel=r"$\hat x$", aspect="equal", xticks=range(-2, 4), yticks=range(-2, 3))


def draw_grids(ax):
    x = numbers()
    counts, edges = np.histogram(x, np.linspace(-5.5, 4.5, 81))
    ax.bar(edges[:-1], np.minimum(counts / counts.max(), 1), np.diff(edges), align="edge", color="#8a8a8a")
    ax.annotate("one", (4.0, 0.05), xytext=(4.0, 0.6), ha="center", arrowprops={"arrowstyle": "->"})
    for row, (name, options) in enumerate(RANGES.items()):
        scale, zero = affine_qparams(x, bits=BITS, **options)
        grid = dequantize(np.arange(-4, 4), scale, zero)
        error = np.sqrt(np.mean((fake_quantize(x, scale, zero, bits=BITS) - x) ** 2))
        ax.plot(grid, np.full(8, -0.5 - 0.75 * row), "|", color="#1f77b4", markersize=17, markeredgewidth=2.2)
        ax.annotate(f"{name}, {error:.2f}", (5.0, -0.5 - 0.75 * row), va="center", annotation_clip=False)
    ax.set(xlabel="$x$", yticks=[], xlim=(-5.6, 4.8), ylim=(-2.5, 1.05))
    ax.spines["left"].set_visible(False)
    ax.grid(visible=False)


def figure():
    r"""Left: the quantizer with 3 bits, $s=\frac12$ and $z=-1$: eight steps, then clipped. The straight-through
    estimator takes the dashed line's slope on the steps and 0 beyond. Right: 2000 numbers with a standard deviation of 0.5 and
    one number at 4, and the eight points of three grids; beside each is its root mean square error. The largest number decides
    where the points of `absmax` lie, on both sides of 0. `minmax` leaves the empty half out. `mse` gives the one number up and
    puts the points where the others are."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained", width_ratios=(1, 1.4))
    draw_staircase(axes[0])
    draw_grids(axes[1])
    return fig
