"""Evidence for group normalization: independence of the batch, contrast, and training with two examples."""

import itertools

import numpy as np
from small_conv_networks import chain_vjp, train_chain, two_conv_net
from small_data import digits
from small_networks import accuracy, batches

from refnorm.claims import Claim
from refnorm.norms import (
    batch_norm,
    batch_norm_vjp,
    batch_statistics,
    group_norm,
    group_norm_vjp,
    instance_norm,
    update_running_statistics,
)

IMAGE_AXES = (0, 2, 3)
SEEDS, STEPS, BATCH, RATE = range(2), 1000, 2, 0.01


def claims() -> list[Claim]:
    return [batch_independence(), contrast(), tiny_batches()]


def change_with_company(norm, sizes, draws=50):
    """Mean absolute change of one example's output when the rest of its batch is drawn again."""
    rng = np.random.default_rng(0)
    example = rng.standard_normal((1, 8, 4, 4))

    def output(size):
        rest = rng.standard_normal((size - 1, 8, 1, 1)) + rng.standard_normal((size - 1, 8, 4, 4))
        return norm(np.concatenate([example, rest]), np.ones(8), np.zeros(8))[0]

    return [float(np.mean([np.abs(output(size) - output(size)).mean() for _ in range(draws)])) for size in sizes]


def batch_independence() -> Claim:
    sizes = (2, 8, 32, 128)
    by_batch = change_with_company(lambda x, g, b: batch_norm(x, g, b, axes=IMAGE_AXES), sizes)
    by_group = change_with_company(lambda x, g, b: group_norm(x, g, b, groups=4), sizes)
    ratio = by_batch[0] / by_batch[-1]
    return Claim(
        statement="An example's output does not depend on its batch; under batch norm it does, and the more so the "
        "smaller the batch is, like one over the root of its size.",
        expected="group norm: exactly 0 at batches of 2 to 128; batch norm: above 0.2 at 2, and a ratio between 4 and "
        "16 from 2 to 128 (the root of 64 is 8)",
        holds=bool(max(by_group) == 0 and by_batch[0] > 0.2 and 4 < ratio < 16),
        figures={
            "group norm, largest change": max(by_group),
            "batch norm, change at 2": by_batch[0],
            "batch norm, change at 128": by_batch[-1],
            "ratio": ratio,
        },
    )


def contrasted():
    """Six digits, each with a contrast and a brightness of its own."""
    x = digits(images=True, scale=8.0).x[:6]
    rng = np.random.default_rng(4)
    return x, rng.uniform(0.2, 2, (6, 1, 1, 1)) * x + rng.uniform(-1, 1, (6, 1, 1, 1))


def contrast() -> Claim:
    x, moved = contrasted()
    one, zero = np.ones(1), np.zeros(1)
    by_instance = np.abs(instance_norm(moved, one, zero) - instance_norm(x, one, zero)).max()
    by_batch = np.abs(batch_norm(moved, one, zero, axes=IMAGE_AXES) - batch_norm(x, one, zero, axes=IMAGE_AXES)).mean()
    return Claim(
        statement="Instance norm takes brightness and contrast out of an image; batch norm leaves them in.",
        expected="largest change below 1e-3 (eps is all that remains) against a mean change above 0.2",
        holds=bool(by_instance < 1e-3 and by_batch > 0.2),
        figures={
            "instance norm, largest change": float(by_instance),
            "batch norm, mean change": float(by_batch),
        },
    )


class BatchNormLayer:
    """Batch norm with running statistics, which are what is used for the test."""

    def __init__(self, channels):
        self.running = np.zeros(channels), np.ones(channels)

    def __call__(self, x, gain, bias):
        count = x.size // x.shape[1]
        self.running = update_running_statistics(*self.running, *batch_statistics(x, IMAGE_AXES), count)
        y, pullback = batch_norm_vjp(x, gain, bias, axes=IMAGE_AXES)
        return y, lambda dy: pullback(dy)[:3]

    def for_test(self, x, gain, bias):
        return batch_norm_vjp(x, gain, bias, *self.running, axes=IMAGE_AXES)


def test_accuracy(kind, seed):
    data, rng = digits(images=True, scale=8.0), np.random.default_rng(seed)

    def by_group(x, gain, bias):
        return group_norm_vjp(x, gain, bias, groups=4)

    layers, params = two_conv_net(rng, by_group, lambda width: (np.ones(width), np.zeros(width)), (16, 16))
    if kind == "batch":
        layers = [BatchNormLayer(16) if layer is by_group else layer for layer in layers]
    order = itertools.islice(batches(rng, len(data.x), BATCH, 2), STEPS)
    params = train_chain(layers, params, data.x, data.target, order, learning_rate=RATE)
    tested = [getattr(layer, "for_test", layer) for layer in layers]
    return accuracy(chain_vjp(tested, params, data.x_test)[0], data.target_test)


def tiny_batches() -> Claim:
    found = {kind: float(np.mean([test_accuracy(kind, seed) for seed in SEEDS])) for kind in ("batch", "group")}
    return Claim(
        statement="With two examples a batch, group norm trains to a higher accuracy than batch norm (digits, two "
        "convolutions, 1000 steps).",
        expected="mean test accuracy of 2 seeds higher by 0.05",
        holds=found["group"] > found["batch"] + 0.05,
        figures={f"test accuracy, {kind} norm": value for kind, value in found.items()},
        refuted="On 16 channels with pooling over the whole image the noise of tiny batches hurts less than it helps: "
        "batch norm is ahead. The paper's result is about deep networks on photographs.",
    )


def figure():
    """Six digits of different contrast and brightness: as they are, after batch norm and after instance norm."""
    import matplotlib.pyplot as plt

    _, moved = contrasted()
    one, zero = np.ones(1), np.zeros(1)
    rows = {
        "input": (moved, -1.2, 4),
        "batch norm": (batch_norm(moved, one, zero, axes=IMAGE_AXES), -1.5, 3),
        "instance norm": (instance_norm(moved, one, zero), -1.5, 3),
    }
    fig, axes = plt.subplots(3, 6, figsize=(7, 3.8), layout="constrained")
    for line, (label, (images, low, high)) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, images, strict=True):
            ax.imshow(image[0], cmap="gray", vmin=low, vmax=high)
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(label)
    return fig
