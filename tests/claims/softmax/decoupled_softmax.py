"""Evidence for the decoupled softmax: positives do not fight, hard ones are lifted; soft top-k is what it says."""

import numpy as np

from refnorm.claims import Claim
from refnorm.softmax import decoupled_softmax_loss_vjp, multilabel_softmax_loss_vjp, soft_topk

LOSSES = {"softmax": multilabel_softmax_loss_vjp, "decoupled": decoupled_softmax_loss_vjp}
QUERIES, LABELS, STEPS = 64, 200, 300


def claims() -> list[Claim]:
    return [conflict(), margin(), membership()]


def conflict() -> Claim:
    slopes = {name: [] for name in LOSSES}
    for seed in range(5):
        scores = np.random.default_rng(seed).standard_normal((1, 50))
        scores[0, :2] = 8, 2
        positives = np.zeros((1, 50), bool)
        positives[0, :2] = True
        for name, loss_vjp in LOSSES.items():
            slopes[name].append(float(loss_vjp(scores, positives, normalize_by_positives=False)[1](1.0)[0][0, 0]))
    return Claim(
        statement="With two right labels, one easy (score 8) and one hard (score 2) among 48 wrong ones, the softmax loss "
        "pushes the easy one down; the decoupled loss does not.",
        expected="slope at the easy label: softmax above 0.5, decoupled at most 0, on each of 5 seeds",
        holds=min(slopes["softmax"]) > 0.5 and max(slopes["decoupled"]) <= 0,
        figures={
            "softmax: smallest slope": min(slopes["softmax"]),
            "decoupled: smallest slope": min(slopes["decoupled"]),
            "decoupled: largest slope": max(slopes["decoupled"]),
        },
    )


def descend(name, seed, rate=1.0):
    """Descend on a free table of scores; return the mean margin of the lowest positive over the highest negative."""
    rng = np.random.default_rng(seed)
    positives = np.zeros((QUERIES, LABELS), bool)
    for row in positives:
        row[rng.permutation(LABELS)[: rng.integers(1, 21)]] = True
    scores, margins = 0.1 * rng.standard_normal((QUERIES, LABELS)), []
    for _ in range(STEPS):
        _, pullback = LOSSES[name](scores, positives, reduction="sum", normalize_by_positives=True)
        scores = scores - rate * pullback(1.0)[0]
        lowest = np.where(positives, scores, np.inf).min(axis=1)
        margins.append(float((lowest - np.where(positives, -np.inf, scores).max(axis=1)).mean()))
    return margins


def margin() -> Claim:
    final = {name: np.array([descend(name, seed)[-1] for seed in range(3)]) for name in LOSSES}
    ratio = final["decoupled"] / final["softmax"]
    return Claim(
        statement="Descent on the decoupled loss lifts the hardest of several right labels further above the wrong ones "
        "(64 free rows of 200 scores, 1 to 20 right labels, both losses divided by their number).",
        expected="mean margin after 300 steps at least 15 % larger, on each of 3 seeds",
        holds=bool(ratio.min() >= 1.15),
        figures={
            "softmax: mean margin": float(final["softmax"].mean()),
            "decoupled: mean margin": float(final["decoupled"].mean()),
            "smallest ratio": float(ratio.min()),
        },
    )


def membership() -> Claim:
    scores = np.random.default_rng(0).standard_normal((200, 100))
    hard = np.zeros(scores.shape)
    np.put_along_axis(hard, np.argsort(-scores, axis=1)[:, :5], 1, axis=1)
    off_sum = max(float(np.abs(soft_topk(scores, 5, sharpness=a).sum(axis=1) - 5).max()) for a in (0.1, 1, 10, 1000))
    apart = {
        a: float(np.abs(soft_topk(scores, 5, sharpness=a) - hard).max(axis=1).mean()) for a in (1.0, 100.0, 1e4, 1e6)
    }
    falling = list(apart.values())
    return Claim(
        statement="The soft indicator of the 5 best of 100 sums to 5 and becomes the hard one as it is sharpened.",
        expected="sum within 1e-10 of 5; mean largest difference from the hard indicator falling, and below 0.01 at 10^6",
        holds=off_sum < 1e-10 and falling == sorted(falling, reverse=True) and falling[-1] < 0.01,
        figures={"largest error of the sum": off_sum}
        | {f"sharpness {a:g}: mean largest difference": v for a, v in apart.items()},
    )


def figure():
    """Left: margin of the lowest right label over the highest wrong one during descent on both losses. Right: the soft
    indicator of the 3 best of 12 scores, by sharpness."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name in LOSSES:
        left.plot(descend(name, 0), label=name)
    left.axhline(0, color="grey", lw=0.8)
    left.set(xlabel="step", ylabel="mean margin", title="Free scores, 1 to 20 right labels")
    left.legend()
    scores = -np.sort(-np.random.default_rng(2).standard_normal(12))
    for sharpness in (1, 4, 30):
        right.plot(
            np.arange(1, 13), soft_topk(scores, 3, sharpness=sharpness), "o-", ms=4, label=f"sharpness {sharpness}"
        )
    right.set(xlabel="rank of the score", ylabel="soft indicator", title="The 3 best of 12", xticks=range(1, 13))
    right.legend()
    return fig
