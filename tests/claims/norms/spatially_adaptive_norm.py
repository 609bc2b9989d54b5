"""Evidence for spatially adaptive normalization: what a plain norm washes out, thin curves, zero coupling."""

import functools

import numpy as np

from refnorm.claims import Claim
from refnorm.nn import conv2d, conv2d_vjp
from refnorm.norms import (
    init_spade,
    instance_norm,
    spade,
    spade_vjp,
    standardize_groups_vjp,
    zero_conv_add_vjp,
)

CHANNELS, HIDDEN, SIZE, BATCH, STEPS, RATE = 8, 8, 16, 16, 150, 2e-2
POSITIVE_WEIGHT = 5.0
"""A curve covers a sixteenth of the pixels."""


def claims() -> list[Claim]:
    return [wash_out(), curves(), zero_coupling()]


def label_differences(seeds):
    """Differences between two labels after instance norm (largest) and after the adaptive norm (mean), by seed."""
    plain, adaptive = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        weight, params = rng.standard_normal((CHANNELS, 2, 3, 3)) / 4, init_spade(CHANNELS, 2, HIDDEN, rng)
        outputs = []
        for label in (0, 1):
            condition = np.zeros((1, 2, 12, 12))
            condition[:, label] = 1
            # The border is replicated: two more pixels of the same label, and no padding.
            x = conv2d(np.pad(condition, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge"), weight)
            normal = instance_norm(x, np.ones(CHANNELS), np.zeros(CHANNELS))
            outputs.append((normal, spade(x, condition, *params, norm="instance")))
        (first, first_adaptive), (second, second_adaptive) = outputs
        plain.append(float(np.abs(first - second).max()))
        adaptive.append(float(np.abs(first_adaptive - second_adaptive).mean()))
    return plain, adaptive


def wash_out() -> Claim:
    plain, adaptive = label_differences(range(5))
    return Claim(
        statement="A region of one label is constant after a convolution, and instance norm makes it zero, whatever the "
        "label was. The spatially adaptive norm keeps the label.",
        expected="between two labels, 5 seeds: largest difference below 1e-3, against a mean difference above 0.02",
        holds=max(plain) < 1e-3 and min(adaptive) > 0.02,
        figures={
            "instance norm, largest difference": max(plain),
            "adaptive norm, smallest mean difference": min(adaptive),
        },
    )


def draw_curves(rng, count):
    """Thin curves: one pixel a column, each at most one row from the last; half of them are turned."""
    steps = np.cumsum(rng.integers(-1, 2, (count, SIZE)), axis=1) + rng.integers(SIZE, size=(count, 1))
    rows = np.abs((steps + SIZE - 1) % (2 * SIZE - 2) - (SIZE - 1))
    masks = (rows[:, None, :] == np.arange(SIZE)[:, None]).astype(float)
    masks[::2] = masks[::2].transpose(0, 2, 1)
    return masks[:, None]


def by_map(x, mask, *params):
    return spade_vjp(x, mask, *params, groups=4)


def by_average(x, mask, gain_weight, gain_bias, bias_weight, bias_bias):
    """Group norm with a gain and a bias a channel, both linear in the mask's average (FiLM)."""
    x_hat, back = standardize_groups_vjp(x, groups=4)
    share = mask.mean(axis=(1, 2, 3))[:, None, None, None]
    gain, bias = (
        w[:, None, None] * share + b[:, None, None] for w, b in ((gain_weight, gain_bias), (bias_weight, bias_bias))
    )

    def pullback(dy):
        dgain, dbias = (dy * x_hat).sum(axis=(2, 3)), dy.sum(axis=(2, 3))
        share_ = share[:, :, 0, 0]
        (dx,) = back(dy * (1 + gain))
        return (
            dx,
            None,
            (dgain * share_).sum(axis=0),
            dgain.sum(axis=0),
            (dbias * share_).sum(axis=0),
            dbias.sum(axis=0),
        )

    return x_hat * (1 + gain) + bias, pullback


@functools.cache
def train(name: str, seed: int):
    """Train norm and readout with Adam to reproduce the mask from noise; return IoU and a sample of test logits."""
    rng = np.random.default_rng(seed)
    norm = {"map": by_map, "average": by_average}[name]
    params = (
        list(init_spade(CHANNELS, 1, HIDDEN, rng)) if name == "map" else list(0.1 * rng.standard_normal((4, CHANNELS)))
    )
    params += [rng.standard_normal((1, CHANNELS, 1, 1)) / np.sqrt(CHANNELS), np.zeros(1)]
    first, second = ([np.zeros_like(p) for p in params] for _ in range(2))

    def forward(count):
        mask, x = draw_curves(rng, count), rng.standard_normal((count, CHANNELS, SIZE, SIZE))
        h, back_norm = norm(x, mask, *params[:-2])
        logit, back_read = conv2d_vjp(h, *params[-2:])
        return mask, logit, lambda dlogit: (lambda dh, *read: [*back_norm(dh)[2:], *read])(*back_read(dlogit))

    for step in range(1, STEPS + 1):
        mask, logit, backward = forward(BATCH)
        probability = 1 / (1 + np.exp(-logit))
        grads = backward((1 + (POSITIVE_WEIGHT - 1) * mask) * (probability - mask) / mask.size)
        first = [0.9 * m + 0.1 * g for m, g in zip(first, grads, strict=True)]
        second = [0.999 * v + 0.001 * g * g for v, g in zip(second, grads, strict=True)]
        rates = RATE / (1 - 0.9**step), 1 - 0.999**step
        params = [
            p - rates[0] * m / (np.sqrt(v / rates[1]) + 1e-8) for p, m, v in zip(params, first, second, strict=True)
        ]
    mask, logit, _ = forward(64)
    found = logit > 0
    iou = float((found & (mask > 0)).sum() / (found | (mask > 0)).sum())
    return iou, mask[:3, 0], logit[:3, 0]


def curves() -> Claim:
    found = {name: [train(name, seed)[0] for seed in range(2)] for name in ("map", "average")}
    return Claim(
        statement="One spatially adaptive norm puts thin curves where the mask has them; a norm modulated by the mask's "
        "average cannot (noise as features, 16 x 16 pixels, Adam, 150 steps).",
        expected="overlap (intersection over union) with the map above 0.95 and more than 0.4 above the average, 2 seeds",
        holds=min(found["map"]) > 0.95 and min(found["map"]) - max(found["average"]) > 0.4,
        figures={f"overlap, modulated by the {name}": float(np.mean(value)) for name, value in found.items()},
    )


def zero_coupling() -> Claim:
    rng = np.random.default_rng(0)
    backbone, control, dy = (rng.standard_normal((4, channels, 8, 8)) for channels in (6, 8, 6))
    y, pullback = zero_conv_add_vjp(backbone, control, np.zeros((6, 8, 1, 1)), np.zeros(6))
    _, dcontrol, dweight, _ = pullback(dy)
    changed, smallest = int((y != backbone).sum()), float(np.abs(dweight).min())
    return Claim(
        statement="Coupled through a convolution that starts at zero, the control branch leaves the backbone's output as it "
        "is and can learn from the first step.",
        expected="no entry changed; every entry of the weight's gradient above 1e-3; no gradient into the branch",
        holds=changed == 0 and smallest > 1e-3 and not dcontrol.any(),
        figures={"entries changed": changed, "smallest gradient of a weight": smallest},
    )


def figure():
    """Three masks, and the logits made from noise: modulated by the map, and by the mask's average."""
    import matplotlib.pyplot as plt

    _, masks, by_the_map = train("map", 0)
    _, _, by_the_average = train("average", 0)
    fig, axes = plt.subplots(3, 3, figsize=(6, 6), layout="constrained")
    rows = (("mask", masks), ("logit, by the map", by_the_map), ("logit, by the average", by_the_average))
    for line, (label, images) in zip(axes, rows, strict=True):
        for ax, image in zip(line, images, strict=True):
            low, high = (0, 1) if label == "mask" else (-4, 4)
            ax.imshow(image, cmap="gray" if label == "mask" else "coolwarm", vmin=low, vmax=high)
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(label)
    return fig
