"""Evidence for unified normalization: robust and smooth statistics, the outlier filter, folding."""

import functools

import numpy as np

from refnorm.claims import Claim
from refnorm.nn import linear
from refnorm.norms import UnifiedNormState, fold_into_linear, unified_norm

TOKENS, CHANNELS, WINDOW, WARMUP = 64, 8, 4, 50
ONE, ZERO = np.ones(CHANNELS), np.zeros(CHANNELS)


def claims() -> list[Claim]:
    return [robustness(), outliers(), smoothness(), folding()]


def robustness() -> Claim:
    # Three batches of mean square 1, and one of 100.
    state = UnifiedNormState(np.ones((WINDOW, 1)), np.zeros((WINDOW, 1)), np.ones(1), np.zeros(1), 100)
    x = np.full((2, 1), 10.0)
    y, _ = unified_norm(x, np.ones(1), np.zeros(1), state, warmup=WARMUP, eps=1e-12)
    geometric, arithmetic = float((x / y)[0, 0]), float(np.sqrt((3 + 100) / 4))
    return Claim(
        statement="One outlier among four batches inflates the geometric mean far less than the arithmetic one.",
        expected="mean squares 1, 1, 1, 100: scale with the arithmetic mean over scale used above 2.5 (exact: 2.854)",
        holds=arithmetic / geometric > 2.5,
        figures={"scale used": geometric, "with the arithmetic mean": arithmetic, "ratio": arithmetic / geometric},
    )


@functools.cache
def run(spread: float, filtration: bool, outlier_share: float, batches: int, seed: int = 0):
    """Feed Gaussian batches; return applied scales, outliers and which batches the filter took for one."""
    rng = np.random.default_rng(seed)
    scales = np.exp(spread * rng.standard_normal(CHANNELS))
    state, used, fired = UnifiedNormState.create(CHANNELS, WINDOW), [], []
    outlier = rng.random(batches) < outlier_share
    for large in outlier:
        x = (20 if large else 1) * scales * rng.standard_normal((TOKENS, CHANNELS))
        y, after = unified_norm(x, ONE, ZERO, state, warmup=WARMUP, outlier_filtration=filtration)
        used.append(x[0] / y[0] / scales)
        fired.append(after.skipped > state.skipped)
        state = after
    return np.array(used)[WARMUP:], outlier[WARMUP:], np.array(fired)[WARMUP:]


def outliers() -> Claim:
    figures, detected, alarms = {}, [], {}
    for name, spread in (("unequal", 0.5), ("equal", 0.0)):
        _, outlier, fired = run(spread, True, 0.01, 3000)
        detected.append(float(fired[outlier].mean()))
        alarms[name] = float(fired[~outlier].mean())
        figures |= {f"detected, {name} channels": detected[-1], f"false alarms, {name} channels": alarms[name]}
    return Claim(
        statement="The filter finds batches that are 20 times larger. Its false alarms depend on the channels: the threshold "
        "is a variance over all of them, so that unequal scales make it high and equal scales make it far too low.",
        expected="3000 batches, 1% outliers: at least 99% detected; false alarms at most 5% with channel scales exp(0.5 N(0, 1)), "
        "more than 20% with equal scales",
        holds=min(detected) >= 0.99 and alarms["unequal"] <= 0.05 and alarms["equal"] > 0.2,
        figures=figures,
    )


def smoothness() -> Claim:
    used, _, _ = run(0.0, False, 0.0, 1500)
    rng = np.random.default_rng(1)
    alone = np.sqrt((rng.standard_normal((1500, TOKENS, CHANNELS)) ** 2).mean(axis=1))
    smooth, rough = (float((a.std(axis=0) / a.mean(axis=0)).mean()) for a in (used, alone))
    return Claim(
        statement="The geometric mean over four batches halves the fluctuation of the scale.",
        expected="coefficient of variation at most 0.6 of that of single batches (theory: 0.5)",
        holds=smooth <= 0.6 * rough,
        figures={"of single batches": rough, "of the scale used": smooth, "ratio": smooth / rough},
    )


def folding() -> Claim:
    rng = np.random.default_rng(0)
    worst = 0.0
    for dtype in (np.float32, np.float64):
        x, weight = (rng.standard_normal(s).astype(dtype) for s in ((100, CHANNELS), (CHANNELS, 16)))
        bias, gain, norm_bias = (rng.standard_normal(size).astype(dtype) for size in (16, CHANNELS, CHANNELS))
        state = UnifiedNormState.create(CHANNELS, dtype=dtype)
        for _ in range(20):
            batch = (3 * rng.standard_normal((TOKENS, CHANNELS))).astype(dtype)
            _, state = unified_norm(batch, gain, norm_bias, state, warmup=5)
        y, _ = unified_norm(x, gain, norm_bias, state, training=False)
        expected = linear(y, weight, bias)
        found = linear(x, *fold_into_linear(weight, bias, gain, norm_bias, state.mean_square))
        worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
    return Claim(
        statement="In use the norm disappears in the linear layer after it, which is where the paper's speed comes from.",
        expected="relative difference below 1e-6, in float32 and float64",
        holds=worst < 1e-6,
        figures={"largest relative difference": worst},
    )


def figure():
    """Scale that one channel is divided by, batch by batch: single batches, window of four, with outliers and the filter."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.3), layout="constrained")
    rng = np.random.default_rng(1)
    alone = np.sqrt((rng.standard_normal((120, TOKENS)) ** 2).mean(axis=1))
    left.plot(alone, linewidth=0.8, color="0.6", label="single batches")
    left.plot(run(0.0, False, 0.0, 1500)[0][:120, 0], label="geometric mean of four")
    left.set(xlabel="batch", ylabel="scale", title="no outliers")
    left.legend(fontsize=8)
    for filtration, label in ((False, "no filter"), (True, "filter")):
        used, _, _ = run(0.5, filtration, 0.02, 400)
        right.plot(used[:200, 0], label=label, linewidth=1)
    right.set(xlabel="batch", yscale="log", title="2% outliers, 20 times larger")
    right.legend(fontsize=8)
    return fig
