"""Evidence for utilities and probabilities: training finds an order; the scale has to be fitted afterwards."""

import functools

import numpy as np
import small_data

from refnorm.claims import Claim
from refnorm.softmax import (
    decide,
    fit_inverse_temperature,
    ordinal_agreement,
    reestimate_probability,
    soft_regret_vjp,
    softmax,
    utility_sgd_step,
)

FREQUENCIES = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
DRAWS, FEW, MANY = 20_000, 30, 3000
SPLITS = (0, 1)


def claims() -> list[Claim]:
    return [iteration(), order_without_scale(), reestimation()]


@functools.cache
def table(seed):
    """Utilities learned from single observed choices, averaged over the second half; and the path of the last ones."""
    rng = np.random.default_rng(seed)
    choices = rng.choice(len(FREQUENCIES), size=DRAWS, p=FREQUENCIES)
    utility, total, path = np.zeros(len(FREQUENCIES)), np.zeros(len(FREQUENCIES)), []
    for t, choice in enumerate(choices):
        utility = utility_sgd_step(utility, int(choice), step=1 / np.sqrt(t + 10))
        if t >= DRAWS // 2:
            total += utility
        if t % 100 == 0:
            path.append(utility)
    return total / (DRAWS - DRAWS // 2), np.array(path)


def iteration() -> Claim:
    found = [table(seed)[0] for seed in range(2)]
    off = max(float(np.abs(softmax(utility) - FREQUENCIES).sum()) for utility in found)
    ranked = all((np.argsort(-utility) == np.arange(len(FREQUENCIES))).all() for utility in found)
    return Claim(
        statement="Descent on the regret of single observed choices is an iteration towards a utility whose softmax is the "
        "choices' frequencies (5 alternatives, 20 000 choices, averaged over the second half).",
        expected="sum of absolute errors below 0.05 and the right order of all alternatives, on each of 2 seeds",
        holds=off < 0.05 and ranked,
        figures={"largest sum of absolute errors": off},
    )


@functools.cache
def classifiers(split):
    """Held-out and test utilities of a linear classifier of digits after FEW and after MANY steps, and the labels."""
    data = small_data.digits(test=597, seed=split)
    x, held, test = (np.c_[a, np.ones(len(a))] for a in (data.x[:800], data.x[800:], data.x_test))
    weight, target, kept = np.zeros((65, 10)), data.target[:800], {}
    for step in range(1, MANY + 1):
        _, pullback = soft_regret_vjp(x @ weight, target)
        weight = weight - 0.5 * (x.T @ pullback(1.0)[0])
        if step in (FEW, MANY):
            kept[step] = held @ weight, test @ weight
    return kept, data.target[800:], data.target_test


def figures_of(split):
    kept, held_target, target = classifiers(split)
    found = {}
    for step, (held, test) in kept.items():
        raw, beta = softmax(test), fit_inverse_temperature(held, held_target).inverse_temperature
        fitted = reestimate_probability(test, inverse_temperature=beta)
        rows = np.arange(len(target))
        found[step] = {
            "accuracy": float((decide(test) == target).mean()),
            "confidence": float(raw.max(axis=1).mean()),
            "inverse temperature": beta,
            "sampling": float(raw[rows, target].mean()),
            "sampling, fitted": float(fitted[rows, target].mean()),
            "same decisions": bool((decide(fitted) == decide(raw)).all()),
        }
    found["agreement"] = ordinal_agreement(kept[FEW][1], kept[MANY][1])
    return found


def order_without_scale() -> Claim:
    holds, shown = True, {}
    for split in SPLITS:
        found = figures_of(split)
        few, many = found[FEW], found[MANY]
        holds &= abs(many["accuracy"] - few["accuracy"]) < 0.08 and many["confidence"] - few["confidence"] > 0.3
        holds &= few["inverse temperature"] > 2 > many["inverse temperature"]
        shown = {
            f"{step} steps: {name}": found[step][name]
            for step in (FEW, MANY)
            for name in ("accuracy", "confidence", "inverse temperature")
        }
        shown |= {"Kendall's tau between the two": found["agreement"][0], "same best class": found["agreement"][1]}
    return Claim(
        statement="Training settles early which class is best and goes on changing how sure the softmax is (digits, a linear "
        "classifier after 30 and after 3000 steps).",
        expected="accuracy changes by less than 0.08, mean largest probability by more than 0.3; fitted inverse "
        "temperature above 2, then below 2; on each of 2 splits",
        holds=bool(holds),
        figures=shown,
    )


def reestimation() -> Claim:
    found = [figures_of(split)[FEW] for split in SPLITS]
    gain = min(f["sampling, fitted"] - f["sampling"] for f in found)
    same = all(f["same decisions"] for f in found)
    return Claim(
        statement="Probabilities re-estimated from the utilities of the under-trained classifier make a rule that needs "
        "probabilities better, and leave the rule that needs only the order alone.",
        expected="expected accuracy of sampling larger by at least 0.25; best-class decisions identical; on each of 2 splits",
        holds=gain >= 0.25 and same,
        figures={
            "sampling from the softmax: accuracy": found[0]["sampling"],
            "sampling from re-estimated probabilities: accuracy": found[0]["sampling, fitted"],
            "smallest gain": gain,
        },
    )


def figure():
    """Left: softmax of the learned utilities during the iteration, and the frequencies of the choices (dotted). Right: how
    often a class is right against the probability it is given, before and after re-estimation, for the classifier after
    30 steps."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    _, path = table(0)
    left.plot(100 * np.arange(len(path)), softmax(path), lw=1)
    for frequency in FREQUENCIES:
        left.axhline(frequency, color="k", ls=":", lw=0.8)
    left.set(xlabel="observed choices", ylabel="softmax of the utility", title="Five alternatives")
    kept, held_target, target = classifiers(SPLITS[0])
    held, test = kept[FEW]
    beta = fit_inverse_temperature(held, held_target).inverse_temperature
    hit = np.eye(10)[target].ravel()
    for label, p in (
        ("softmax", softmax(test)),
        ("re-estimated", reestimate_probability(test, inverse_temperature=beta)),
    ):
        cells = np.clip((p.ravel() * 10).astype(int), 0, 9)
        count = np.bincount(cells, minlength=10)
        shown = count >= 20
        mean_p, rate = (np.bincount(cells, v, minlength=10)[shown] / count[shown] for v in (p.ravel(), hit))
        right.plot(mean_p, rate, "o-", label=label)
    right.plot([0, 1], [0, 1], "k:", label="calibrated")
    right.set(xlabel="probability given to a class", ylabel="how often it is right", title="Digits, 30 steps")
    right.legend(loc="lower right")
    return fig
