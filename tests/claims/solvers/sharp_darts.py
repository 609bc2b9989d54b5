"""Evidence for sharpDARTS: where the schedule lies, and what choosing the best operation costs."""

import functools

import numpy as np

from refnorm.claims import Claim
from refnorm.solvers import cosine_power_annealing, discretize, mixed_op_vjp

EPOCHS, HIGH, LOW = 100, 0.1, 1e-4
SEEDS, STEPS, POINTS, NOISE = range(20), 200, 40, 0.1
RIGHT = 2
VARIANTS = {
    "scalar": {"weighting": "scalar"},
    "max-W": {"weighting": "max_w"},
    "max-W, constant maximum": {"weighting": "max_w", "stop_gradient_max": True},
}


def claims() -> list[Claim]:
    return [schedule(), discretization()]


def schedule() -> Claim:
    epoch = np.arange(1, EPOCHS + 1)
    power, cosine = (cosine_power_annealing(EPOCHS, exponent_order=order) for order in (10.0, 1.0))
    exponential = HIGH * (LOW / HIGH) ** (epoch / EPOCHS)
    between = int(((exponential < power) & (power < cosine))[1:-1].sum())
    middle = EPOCHS // 2 - 1
    return Claim(
        statement="Cosine power annealing falls from the largest to the smallest rate, between the exponential "
        "decay and the cosine (100 epochs, order 10, from 0.1 to 0.0001).",
        expected="strictly decreasing, both ends exact, strictly between the two at mid training and at 95 or more "
        "of the 98 inner epochs",
        holds=bool(
            (np.diff(power) < 0).all()
            and power[0] == HIGH
            and power[-1] == LOW
            and exponential[middle] < power[middle] < cosine[middle]
            and between >= 95
        ),
        figures={
            "rate at epoch 50, exponential": float(exponential[middle]),
            "rate at epoch 50, cosine power": float(power[middle]),
            "rate at epoch 50, cosine": float(cosine[middle]),
            "inner epochs strictly between, of 98": between,
        },
    )


class Adam:
    def __init__(self, size, rate, betas):
        self.mean, self.square, self.step, self.rate, self.betas = np.zeros(size), np.zeros(size), 0, rate, betas

    def __call__(self, grad):
        self.step += 1
        self.mean = self.betas[0] * self.mean + (1 - self.betas[0]) * grad
        self.square = self.betas[1] * self.square + (1 - self.betas[1]) * grad**2
        mean = self.mean / (1 - self.betas[0] ** self.step)
        return self.rate * mean / (np.sqrt(self.square / (1 - self.betas[1] ** self.step)) + 1e-8)


def operations(x):
    return np.stack([x, x**2, np.sin(3 * x)])


def search(seed: int, options) -> tuple[float, bool]:
    """Return how much the validation loss grows when only the best operation is kept, and whether it is right."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (2, POINTS))
    target = np.sin(3 * x) + NOISE * rng.standard_normal(x.shape)
    train, validation = (operations(part) for part in x)
    gain, logits = 0.5 + 0.1 * rng.standard_normal(3), 1e-3 * rng.standard_normal(3)
    move_gain, move_logits = Adam(3, 0.05, (0.9, 0.999)), Adam(3, 0.02, (0.5, 0.999))

    def gradients(inputs, wanted):
        y, back = mixed_op_vjp(gain[:, None] * inputs, logits, **options)
        doutputs, dlogits = back(2 * (y - wanted) / POINTS)
        return float(np.mean((y - wanted) ** 2)), (doutputs * inputs).sum(axis=1), dlogits

    for _ in range(STEPS):
        logits = logits - move_logits(gradients(validation, target[1])[2])
        gain = gain - move_gain(gradients(train, target[0])[1])
    mixed = gradients(validation, target[1])[0]
    best = int(discretize(logits))
    alone = float(np.mean((gain[best] * validation[best] - target[1]) ** 2))
    return alone - mixed, best == RIGHT


@functools.cache
def searches():
    return {name: [search(seed, options) for seed in SEEDS] for name, options in VARIANTS.items()}


def discretization() -> Claim:
    found = searches()
    gap = {name: float(np.median([growth for growth, _ in runs])) for name, runs in found.items()}
    right = {name: sum(hit for _, hit in runs) for name, runs in found.items()}
    figures = {f"median growth of the loss, {name}": gap[name] for name in VARIANTS}
    figures |= {f"right operation found, of 20, {name}": right[name] for name in VARIANTS}
    return Claim(
        statement="Under max-W weighting the winning operation learns to do the work alone, so that dropping the "
        "others costs little (toy search among x, x^2 and sin 3x for noisy sin 3x, 200 steps, no retraining).",
        expected="median growth of the validation loss at most a tenth of that of the scalar mixture, and at least "
        "as many right operations, over 20 seeds",
        holds=bool(gap["max-W"] <= 0.1 * gap["scalar"] and right["max-W"] >= right["scalar"]),
        figures=figures,
    )


def figure():
    """Left: learning rates of the schedules over 100 epochs. Right: growth of the validation loss in 20 searches."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    epoch = np.arange(1, EPOCHS + 1)
    for order in (1.0, 10.0, 100.0):
        left.plot(epoch, cosine_power_annealing(EPOCHS, exponent_order=order), label=f"order {order:g}")
    left.plot(epoch, HIGH * (LOW / HIGH) ** (epoch / EPOCHS), "k:", label="exponential")
    left.set(xlabel="epoch", ylabel="learning rate", title="Cosine power annealing")
    left.legend()
    for place, runs in enumerate(searches().values()):
        offset = place + np.linspace(-0.25, 0.25, len(runs))
        for hit, marker in ((True, "o"), (False, "x")):
            chosen = np.array([ok == hit for _, ok in runs])
            values = np.array([growth for growth, _ in runs])[chosen]
            right.plot(offset[chosen], values, marker, color=f"C{place}", alpha=0.8)
    right.set_xticks(range(3), ["scalar", "max-W", "max-W,\nconstant maximum"])
    right.axhline(0, color="grey", linewidth=0.8)
    right.set(ylabel="growth of validation loss", title="Dropping all but the best (x: wrong operation)")
    return fig
