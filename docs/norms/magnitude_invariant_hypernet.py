"""The weights that a hypernetwork predicts when its input runs from 0 to 1."""

import numpy as np

from refnorm.norms import encode_cos_sin, hypernet, init_hypernet

SETTINGS = np.linspace(0, 1, 11)[:, None]
PREDICTED = 30


def predicted(encoding):
    """Return the weights predicted for every setting by a random hypernetwork of widths 16 and 128."""
    inputs = 1 if encoding == "none" else 2
    params = init_hypernet((inputs, 16, 128), {"weights": (PREDICTED,)}, np.random.default_rng(6))
    theta = hypernet(SETTINGS, params, encoding=encoding, residual=False)
    return theta / np.sqrt(np.mean(theta**2, axis=1).max())


def figure():
    r"""Left, what a hypernetwork is fed for eleven settings from 0 to 1: the number itself (blue), or the code, a point on a
    quarter circle (red), always at the distance 1 from the origin. Right, the changes of thirty weights that a random network predicts, one row a
    setting. Fed the number, it has one pattern only, which fades to nothing at 0. Fed the code, its predictions keep
    their size over all settings (root mean square between 0.7 and 1), and the pattern changes from row to row."""
    import matplotlib.pyplot as plt

    fig, (codes, plain, coded) = plt.subplots(1, 3, figsize=(7, 2.6), layout="constrained", width_ratios=(1, 1.2, 1.2))
    codes.plot(*encode_cos_sin(SETTINGS).T, "o-", color="#d62728", markersize=4, clip_on=False)
    codes.plot(SETTINGS[:, 0], 0 * SETTINGS[:, 0], "s--", color="#1f77b4", markersize=4, clip_on=False)
    codes.set(xlabel="first input", ylabel="second input", aspect="equal", xlim=(0, 1.05), ylim=(0, 1.05))
    for ax, encoding, title in ((plain, "none", "the number"), (coded, "cos_sin", "the code")):
        theta = predicted(encoding)
        image = ax.imshow(theta, cmap="PuOr_r", vmin=-2.5, vmax=2.5, extent=(0, PREDICTED, 1.05, -0.05), aspect="auto")
        ax.set(xlabel="predicted weight", xticks=[], yticks=[0, 0.5, 1], title=f"fed {title}")
        ax.grid(visible=False)
    plain.set_ylabel("setting")
    fig.colorbar(image, ax=coded, ticks=[-2, 0, 2])
    return fig
