"""Evidence for pooling: what a shift of the image by one pixel changes."""

import numpy as np
from sklearn.datasets import load_digits

from refnorm.claims import Claim
from refnorm.nn import avg_pool2d, max_pool2d


def claims() -> list[Claim]:
    x = load_digits().images[:500, None] / 16.0
    # A margin, so that nothing leaves the image.
    x = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    moved = np.roll(x, 1, axis=3)

    def change(f):
        before, after = f(x), f(moved)
        return float(np.sqrt(((after - before) ** 2).sum() / (before**2).sum()))

    changes = {
        "pixels": change(lambda a: a),
        "maximum of 2 x 2": change(lambda a: max_pool2d(a, 2)),
        "mean of 2 x 2": change(lambda a: avg_pool2d(a, 2)),
        "maximum of 4 x 4": change(lambda a: max_pool2d(a, 4)),
    }
    values = list(changes.values())
    figures = {f"relative change, {name}": value for name, value in changes.items()}
    return [
        Claim(
            statement="Pooled images of digits change less than the pixels when the image moves by one pixel.",
            expected="maximum and mean of 2 x 2 both below 0.9 of the pixels' relative change",
            holds=max(values[1], values[2]) < 0.9 * values[0],
            figures=figures,
        ),
        Claim(
            statement="A larger window makes the maximum still less sensitive to the shift.",
            expected="relative change with 4 x 4 below 0.9 of that with 2 x 2",
            holds=values[3] < 0.9 * values[1],
            figures=figures,
            refuted="the strokes of these digits are two pixels wide and the windows tile the image: a stroke that "
            "crosses an edge changes two windows of either size, and there are fewer large ones",
        ),
    ]
