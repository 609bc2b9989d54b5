"""A dictionary of seven entries, asked everywhere between them."""

import numpy as np

from refnorm.attention import scaled_dot_product_attention

LOOKS = ((1, "#2ca02c", "-."), (30, "#1f77b4", "-"), (3000, "#d62728", "--"))


def unit(angle):
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def figure():
    r"""A dictionary with seven entries: keys are unit vectors (their angles are the positions of the dots), values are numbers (their
    heights). The query turns through half a circle; the lines are the answers. A short query, $\|q\|=1$ (green, dash-dotted), hardly tells the keys apart and
    gets nearly the mean of all values. A long one, 3000 (red, dashed), gets the value of the closest key, as in an ordinary dictionary, with a
    jump half-way between two keys. In between, 30 (blue), the answer goes smoothly from entry to entry, and so it can be
    differentiated."""
    import matplotlib.pyplot as plt

    keys = np.radians([8, 30, 55, 80, 112, 140, 170])
    values = np.array([0.2, 0.9, 0.6, -0.4, -0.8, 0.3, 0.7])
    turn = np.radians(np.linspace(0, 180, 361))
    fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
    for length, color, style in LOOKS:
        y = scaled_dot_product_attention(length * unit(turn), unit(keys), values[:, None])
        ax.plot(np.degrees(turn), y[:, 0], style, color=color, linewidth=2)
    ax.plot(np.degrees(keys), values, "o", color="black", markersize=8)
    ax.set(xlabel="angle of query and keys, degrees", ylabel="value", xticks=range(0, 181, 30))
    return fig
