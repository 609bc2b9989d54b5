"""Evidence for log-softmax and cross-entropy: relative accuracy where the textbook formulas have none."""

import numpy as np

from refnorm._arrays import ulp_error
from refnorm.claims import Claim
from refnorm.softmax import cross_entropy_vjp, log_softmax, logsumexp, softmax

SCALES, SIZES = (1, 10, 30), (10, 1000, 100_000, 1_000_000)


def claims() -> list[Claim]:
    return [rounded_once(), confident()]


def exact(x):
    wide = x.astype(np.longdouble)
    shifted = wide - wide.max()
    terms = np.exp(shifted)
    terms[wide.argmax()] = 0
    return shifted - np.log1p(terms.sum())


def rounded_once() -> Claim:
    ours, formula = 0.0, 0.0
    for scale in SCALES:
        for size in SIZES:
            x = (scale * np.random.default_rng(size + scale).standard_normal(size)).astype(np.float32)
            truth = exact(x)
            ours = max(ours, float(ulp_error(log_softmax(x), truth).max()))
            with_total = (x.astype(np.float64) - logsumexp(x.astype(np.float64))).astype(np.float32)
            formula = max(formula, float(ulp_error(with_total, truth).max()))
    return Claim(
        statement="Log-softmax has a small relative error in every entry, the one near 0 included "
        "(float32, N(0, 1), N(0, 10) and N(0, 30), rows of 10 to a million).",
        expected="largest error at most 2 units in the last place",
        holds=ours <= 2,
        figures={
            "log1p of the rest: largest error, ULP": ours,
            "x - logsumexp(x), all in float64: largest error, ULP": formula,
        },
    )


def confident() -> Claim:
    logits, target = np.array([[60.0, 0.0, 5.0]]), np.array([0])
    truth = np.longdouble(1) * (np.exp(np.longdouble(-60)) + np.exp(np.longdouble(-55)))
    loss, pullback = cross_entropy_vjp(logits, target)
    slope = pullback(1.0)[0][0, 0]
    naive_loss = -np.log(softmax(logits))[0, 0]
    naive_slope = softmax(logits)[0, 0] - 1
    worst = float(max(abs(loss / truth - 1), abs(slope / -truth - 1)))
    return Claim(
        statement="A confident, right answer still has a loss and a gradient: both are the other classes' "
        "probability, 1.3e-24 in the example.",
        expected="relative error below 1e-14, where -log(softmax) and softmax - 1 are exactly 0",
        holds=bool(worst < 1e-14 and naive_loss == 0 and naive_slope == 0),
        figures={
            "largest relative error": worst,
            "-log(softmax)": abs(float(naive_loss)),
            "softmax - 1": float(naive_slope),
        },
    )
