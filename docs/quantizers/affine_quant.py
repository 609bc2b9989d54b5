"""Activations with two outlying channels as they are, with a factor for each channel, and with a full matrix."""

import numpy as np

from refnorm.quantizers import affine_quant_linear, fit_affine_quant

INPUTS, OUTPUTS, ROWS, LOUD = 24, 32, 128, (6, 17)


def problem():
    """Return correlated activations for the fit, fresh ones, and weights."""
    rng = np.random.default_rng(0)
    spread = np.exp(rng.uniform(np.log(0.3), np.log(3), INPUTS))
    mixing = np.eye(INPUTS) + 0.3 * rng.standard_normal((INPUTS, INPUTS)) / np.sqrt(INPUTS)
    x = rng.standard_normal((2 * ROWS, INPUTS)) * spread @ mixing
    x[:, LOUD] *= 8
    return x[:ROWS], x[ROWS:], rng.standard_normal((INPUTS, OUTPUTS)) / np.sqrt(INPUTS)


def layers():
    """Return by name the transform, the fresh activations behind it and the 4-bit layer's relative error on them."""
    x, fresh, weight = problem()
    bias, mask = np.zeros(OUTPUTS), np.ones((INPUTS, INPUTS))
    wide = np.full(OUTPUTS, 30.0)  # no clipping
    found = {"as they are": (np.eye(INPUTS), np.zeros(INPUTS), wide, wide)}
    for name, diagonal in (("a diagonal", True), ("a full matrix", False)):
        fit = fit_affine_quant(x, weight, bias, n_epochs=20, steps_per_epoch=25, diagonal_only=diagonal, stability=1.0)
        found[name] = (fit.transform, fit.shift, fit.clip_high, fit.clip_low)
    result = {}
    for name, (transform, shift, *clips) in found.items():
        y, exact = affine_quant_linear(fresh, weight, bias, transform, shift, *clips, mask=mask), fresh @ weight
        error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
        result[name] = transform, np.linalg.solve(transform.T, (fresh - shift).T).T, error
    return result


def figure():
    r"""24 rows of activations, each drawn between its own extremes, which is how 4-bit codes see them. As they are, two channels
    take the range, and within a row all others share a few neighbouring codes, nearly one colour; the layer's relative
    error stands above. A factor for each channel makes the two smaller, and the rest spreads over the codes. The
    full matrix, here with $\phi=1$, lowers the error further. Right: $P$, from brown for 1 over white for 0 to violet for -1. Its
    diagonal holds the factors; what is off the diagonal mixes the channels."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 4, figsize=(7, 2.3), layout="constrained")
    made = layers()
    for ax, (name, (_, x, error)) in zip(axes, made.items(), strict=False):
        low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
        ax.imshow(((x - low) / (high - low))[:24], cmap="viridis", vmin=0, vmax=1)
        ax.set_title(f"{name}\n{error:.3f}", fontsize=11)
        ax.set_xlabel("channel")
    axes[3].imshow(made["a full matrix"][0], cmap="PuOr_r", vmin=-1, vmax=1)
    axes[3].set_title("$P$\n", fontsize=11)
    axes[0].set_ylabel("row")
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
    return fig
