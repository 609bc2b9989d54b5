"""Evidence for ghost batch normalization and the corrections for large batches."""

import functools
import itertools

import numpy as np
from small_conv_networks import chain_vjp
from small_data import digits
from small_networks import accuracy, batches

from refnorm.claims import Claim
from refnorm.nn import linear_vjp, relu_vjp
from refnorm.norms import (
    GhostBatchState,
    adapt_regime,
    batch_norm,
    batch_norm_vjp,
    clip_by_global_norm,
    fit_diffusion,
    ghost_batch_norm,
    ghost_batch_norm_train_vjp,
    scale_learning_rate,
    weight_distance,
)
from refnorm.softmax import cross_entropy_vjp

WIDTH, SMALL, LARGE, GHOST, EPOCHS, RATE = 64, 64, 1024, 64, 20, 0.05
SEEDS, DIFFUSION_STEPS = range(2), 3000


def claims() -> list[Claim]:
    return [exactness(), noise(), diffusion(), gap()]


def exactness() -> Claim:
    rng = np.random.default_rng(0)
    x, (gain, bias) = rng.standard_normal((48, 6, 3)), rng.standard_normal((2, 6))
    whole = ghost_batch_norm(x, gain, bias, ghost_size=48) - batch_norm(x, gain, bias, axes=(0, 2))
    parts = ghost_batch_norm(x, gain, bias, ghost_size=16) - np.concatenate(
        [batch_norm(part, gain, bias, axes=(0, 2)) for part in np.split(x, 3)]
    )
    largest = float(max(np.abs(whole).max(), np.abs(parts).max()))
    return Claim(
        statement="One ghost batch is batch norm; several are batch norm applied to each.",
        expected="largest difference below 1e-14",
        holds=largest < 1e-14,
        figures={"largest difference": largest},
    )


def noise() -> Claim:
    x = np.random.default_rng(0).standard_normal((2000, 512))
    small = x.reshape(2000, 16, 32).mean(axis=2).var()
    ratio = float(small / x.mean(axis=1).var())
    return Claim(
        statement="The mean of a ghost batch has the noise of a small batch: its variance is that of the data divided by "
        "the ghost size.",
        expected="variance of the mean of 32 over that of 512 between 13.5 and 18.5 (exact: 16), 2000 trials",
        holds=13.5 < ratio < 18.5,
        figures={"ratio": ratio},
    )


class GhostLayer:
    def __init__(self, ghost_size):
        self.ghost_size, self.state = ghost_size, GhostBatchState.create(WIDTH)

    def __call__(self, x, gain, bias):
        (y, self.state), pullback = ghost_batch_norm_train_vjp(
            x, gain, bias, self.state, ghost_size=self.ghost_size, merge_last=True
        )
        return y, pullback

    def for_test(self, x, gain, bias):
        return batch_norm_vjp(x, gain, bias, self.state.mean, self.state.var)


@functools.cache
def data():
    found = digits(test=597)
    mean, std = found.x.mean(), found.x.std()
    return (found.x - mean) / std, found.target, (found.x_test - mean) / std, found.target_test


def train(seed, batch, rate, steps, ghost_size, clip=np.inf, watch=lambda step, params: None):
    """Return the test accuracy of a network of one hidden layer after plain SGD."""
    x, target, x_test, target_test = data()
    rng = np.random.default_rng(seed)
    layers = [linear_vjp, GhostLayer(ghost_size), relu_vjp, linear_vjp]
    params = [
        (rng.standard_normal((64, WIDTH)) * np.sqrt(2 / 64), np.zeros(WIDTH)),
        (np.ones(WIDTH), np.zeros(WIDTH)),
        (),
        (rng.standard_normal((WIDTH, 10)) / np.sqrt(WIDTH), np.zeros(10)),
    ]
    watch(0, params)
    for step, chosen in enumerate(itertools.islice(batches(rng, len(x), batch, steps), steps), start=1):
        logits, network = chain_vjp(layers, params, x[chosen])
        _, back = cross_entropy_vjp(logits, target[chosen])
        _, grads = network(back(np.array(1.0))[0])
        if np.isfinite(clip):
            grads, _ = clip_by_global_norm(grads, clip)
        params = [
            tuple(p - rate * g for p, g in zip(ps, gs, strict=True)) for ps, gs in zip(params, grads, strict=True)
        ]
        watch(step, params)
    tested = [getattr(layer, "for_test", layer) for layer in layers]
    return accuracy(chain_vjp(tested, params, x_test)[0], target_test)


@functools.cache
def distances(seed):
    """Distance of all parameters from their start after 10 to 3000 updates of 64 examples."""
    times = np.unique(np.geomspace(10, DIFFUSION_STEPS, 200).astype(int))
    found, start = {}, []

    def watch(step, params):
        if step == 0:
            start.append(params)
        if step in wanted:
            found[step] = weight_distance(params, start[0])

    wanted = set(times.tolist())
    train(seed, SMALL, 0.1, DIFFUSION_STEPS, SMALL, watch=watch)
    return times.astype(float), np.array([found[step] for step in times.tolist()])


def diffusion() -> Claim:
    fit = fit_diffusion(*distances(0))
    return Claim(
        statement="Weights move away from their start like the logarithm of the number of updates, far slower than by "
        "free diffusion (digits, batches of 64, constant learning rate 0.1, updates 10 to 3000).",
        expected="the logarithm explains more than 0.98 of the variance and more than the best power; that power is below "
        "0.35 (free diffusion: 0.5)",
        holds=fit.log_r2 > 0.98 and fit.log_r2 > fit.power_r2 and fit.power < 0.35,
        figures={
            "slope of the logarithm": fit.log_slope,
            "R2, logarithm": fit.log_r2,
            "best power": fit.power,
            "R2, power": fit.power_r2,
        },
    )


def gap() -> Claim:
    examples = len(data()[0])
    fast = scale_learning_rate(RATE, SMALL, LARGE)
    (long,) = adapt_regime([EPOCHS], SMALL, LARGE)
    settings = {
        "small batch": (SMALL, RATE, EPOCHS * (examples // SMALL), SMALL),
        "large batch": (LARGE, RATE, EPOCHS, LARGE),
        "large batch, root of the ratio": (LARGE, fast, EPOCHS, LARGE),
        "the same, ghost batches, clipping": (LARGE, fast, EPOCHS, GHOST, 5.0),
        "the same, as many updates": (LARGE, fast, long, GHOST, 5.0),
    }
    found = {name: np.array([train(seed, *setting) for seed in SEEDS]) for name, setting in settings.items()}
    small, large, root, ghost, regime = found.values()
    holds = (
        (small - large).min() > 0.2
        and (root - large).min() > 0.15
        and (regime - small).min() >= -0.01
        and abs((ghost - root).mean()) < 0.03
    )
    return Claim(
        statement="A large batch for the same number of epochs generalizes worse; the root of the ratio on the learning "
        "rate closes most of the gap and as many updates close it (digits, 1024 against 64 examples, 20 epochs). Ghost "
        "batches and clipping alone change nothing here.",
        expected="test accuracy, every seed: small above large by 0.2, root above large by 0.15, as many updates no more "
        "than 0.01 below small; mean effect of ghost batches and clipping within 0.03",
        holds=bool(holds),
        figures={f"test accuracy, {name}": float(value.mean()) for name, value in found.items()},
    )


def figure():
    """Distance of the weights from their start against the number of updates, with both fitted laws."""
    import matplotlib.pyplot as plt

    t, d = distances(0)
    fit = fit_diffusion(t, d)
    fig, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
    ax.plot(t, d, "o", markersize=3, color="0.5", label="measured")
    ax.plot(t, fit.log_intercept + fit.log_slope * np.log(t), label="intercept + slope log t")
    ax.plot(t, fit.power_scale * t**fit.power, "--", label=f"scale t^{fit.power:.2f}")
    ax.set(xscale="log", xlabel="updates", ylabel="distance from the start")
    ax.legend()
    return fig
