"""What two 16-bit formats resolve at which magnitude, and a weight whose steps are smaller than that."""

import numpy as np

from refnorm.quantizers import round_bfloat16, round_float16, sgd_lowp_step

STEPS, STEP = 1000, 1e-4


def resolution(rounded, octaves):
    """Return the largest relative rounding error of the numbers in each octave."""
    mantissas = 1 + np.arange(4096) / 4096  # the ties of both formats among them
    x = 2.0 ** octaves[:, None] * mantissas
    with np.errstate(over="ignore"):
        errors = np.abs(rounded(x) - x) / x
    return np.where(np.isinf(errors), -np.inf, errors).max(axis=1)  # an infinite one if no number fits


def weights(**options):
    """Return three weights that begin at 1, after each of many equal steps."""
    weight, places = np.ones(3), []
    master = weight if options.pop("copied", False) else None
    for _ in range(STEPS):
        weight, master = sgd_lowp_step(weight, np.ones(3), learning_rate=STEP, master=master, **options)
        places.append(weight)
    return np.array(places)


def figure():
    r"""Left: the largest relative rounding error of two formats, by magnitude. float16 has three binary digits more, for numbers
    from $2^{-14}$ to $2^{16}$; below, digits get lost, and from $2^{-25}$ down everything becomes 0; above, everything becomes
    infinite. bfloat16 has the same few digits everywhere. Right: a weight that begins at 1 and is to take 1000 steps of
    $10^{-4}$, less than half the distance to the next number. In float16, rounded to nearest, it never moves. With a copy in a wider format
    (black) it arrives at 0.9; three weights rounded stochastically (green) come near that on ways of their own."""
    import matplotlib.pyplot as plt

    fig, (formats, steps) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
    octaves = np.arange(-30, 21)
    for rounded, colour, style in ((round_float16, "#1f77b4", "-"), (round_bfloat16, "#d62728", "--")):
        error = resolution(rounded, octaves)
        fits = np.isfinite(error)
        ends = np.append(octaves[fits], octaves[fits][-1] + 1)
        formats.stairs(np.log2(error[fits]), ends, color=colour, linestyle=style, linewidth=2, baseline=None)
    formats.annotate("float16", (-12, -10.6), color="#1f77b4")
    formats.annotate("bfloat16", (-12, -7.6), color="#d62728")
    formats.set(xlabel=r"$\log_2$ of the number", ylabel=r"$\log_2$ of the relative error", yticks=[0, -4, -8, -11])
    rng = np.random.default_rng(0)
    every = np.arange(0, STEPS, 10)
    steps.plot(every, weights(rounding="stochastic", rng=rng)[every], color="#2ca02c", linewidth=1)
    steps.plot(every, weights(copied=True)[every, 0], color="black", linewidth=2)
    steps.plot(every, weights()[every, 0], color="#1f77b4", linewidth=2.5)
    steps.annotate("to nearest", (600, 0.99), color="#1f77b4", va="top")
    steps.annotate("stochastic", (120, 0.93), color="#2ca02c", va="top")
    steps.set(xlabel="step", ylabel="weight", ylim=(0.88, 1.01))
    return fig
