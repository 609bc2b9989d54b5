"""Evidence for the conversion of Pre-LN transformers: same function, same training."""

import dataclasses

import numpy as np

from refnorm.claims import Claim
from refnorm.norms import (
    init_pre_norm,
    layer_norm_vjp,
    pre_norm_forward,
    rms_norm_vjp,
    to_pre_crms,
    to_pre_rms,
    zero_mean_linear_vjp,
)
from refnorm.softmax import cross_entropy_vjp

SEEDS = range(5)
STEPS, LEARNING_RATE = 20, 0.5


def claims() -> list[Claim]:
    return [same_function(), same_training()]


def same_function() -> Claim:
    rng = np.random.default_rng(0)
    params = init_pre_norm(rng, 50, 10, 32, 4, 3, 7)
    tokens = rng.integers(50, size=(2, 10))
    expected = pre_norm_forward(params, tokens)
    rms = to_pre_rms(params)
    raw = ("output_weight", "output_bias", "result_weight", "result_bias")
    off_centre = dataclasses.replace(
        rms,
        blocks=tuple(
            dataclasses.replace(after, **{name: getattr(before, name) for name in raw})
            for before, after in zip(params.blocks, rms.blocks, strict=True)
        ),
    )
    rms_change = float(np.abs(pre_norm_forward(rms, tokens, kind="rms") - expected).max())
    crms_change = float(np.abs(pre_norm_forward(to_pre_crms(params), tokens, kind="crms") - expected).max())
    control = float(np.abs(pre_norm_forward(off_centre, tokens, kind="rms") - expected).max())
    return Claim(
        statement="A Pre-LN transformer, its Pre-RMSNorm and its Pre-CRMSNorm form compute the same function "
        "(32 units, 4 heads, 3 blocks, random gains and biases, float64).",
        expected="largest difference of a logit below 1e-12 for both; above 1e-2 if the layers' outputs are not centred",
        holds=max(rms_change, crms_change) < 1e-12 and control > 1e-2,
        figures={"RMSNorm": rms_change, "CRMSNorm": crms_change, "RMSNorm, outputs not centred": control},
    )


def linear_vjp(x, weight, bias):
    return x @ weight + bias, lambda dy: (dy @ weight.T, x.T @ dy, dy.sum(axis=0))


def losses(zero_mean: bool, seed: int) -> np.ndarray:
    """Losses of an embedding, one residual block, a norm and a read-out, trained on fixed random labels."""
    rng = np.random.default_rng(seed)
    classes, units, hidden = 12, 16, 64
    table = rng.standard_normal((64, units))
    target = rng.integers(classes, size=64)
    params = [
        *(1 + 0.1 * rng.standard_normal(units), 0.1 * rng.standard_normal(units)),
        *(rng.standard_normal((units, hidden)) / 4, np.zeros(hidden)),
        *(rng.standard_normal((hidden, units)) / 8, 0.1 * rng.standard_normal(units)),
        *(np.ones(units), np.zeros(units)),
        *(rng.standard_normal((units, classes)) / 4, np.zeros(classes)),
    ]
    norm_vjp, outward_vjp = (rms_norm_vjp, zero_mean_linear_vjp) if zero_mean else (layer_norm_vjp, linear_vjp)
    history = []
    for _ in range(STEPS + 1):
        # A row of an identity matrix picks a token: the embedding is an outward linear map as well.
        x, pull_embedding = outward_vjp(np.eye(64), table, np.zeros(units))
        normed, pull_norm = norm_vjp(x, *params[0:2])
        before, pull_in = linear_vjp(normed, *params[2:4])
        update, pull_out = outward_vjp(np.maximum(before, 0), *params[4:6])
        final, pull_final = norm_vjp(x + update, *params[6:8])
        logits, pull_head = linear_vjp(final, *params[8:10])
        loss, pull_loss = cross_entropy_vjp(logits, target)
        history.append(float(loss))

        dfinal, *dhead = pull_head(*pull_loss(1.0))
        dx, *dfinal_norm = pull_final(dfinal)
        dhidden, *dout = pull_out(dx)
        dnormed, *din = pull_in(dhidden * (before > 0))
        through, *dnorm = pull_norm(dnormed)
        dtable = pull_embedding(dx + through)[1]
        grads = [*dnorm, *din, *dout, *dfinal_norm, *dhead]
        params = [p - LEARNING_RATE * g for p, g in zip(params, grads, strict=True)]
        table = table - LEARNING_RATE * dtable
    return np.array(history)


def same_training() -> Claim:
    runs = [(losses(False, seed), losses(True, seed)) for seed in SEEDS]
    difference = max(float(np.abs(a - b).max()) for a, b in runs)
    return Claim(
        statement="Trained with the centring in the forward pass, both forms go through the same losses "
        "(one ReLU block of 16 units, 64 tokens, 12 classes, 20 steps of SGD, 5 seeds).",
        expected="largest difference of a loss below 1e-9",
        holds=difference < 1e-9,
        figures={
            "largest difference": difference,
            "mean loss at the start": float(np.mean([a[0] for a, _ in runs])),
            "mean loss at the end": float(np.mean([a[-1] for a, _ in runs])),
        },
    )
