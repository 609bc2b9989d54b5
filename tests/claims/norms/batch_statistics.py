"""Evidence for batch statistics: what running averages converge to, and what they do not depend on."""

import numpy as np

from refnorm.claims import Claim
from refnorm.norms import batch_norm, batch_statistics, update_running_statistics

UNITS, BATCH, STEPS, MOMENTUM = 16, 32, 1000, 0.01


def claims() -> list[Claim]:
    return [inference_matches_population(), variance_survives_an_offset()]


def population(rng, size):
    centre, spread = np.linspace(-3, 3, UNITS), np.linspace(0.2, 4, UNITS)
    return centre + spread * rng.standard_normal((size, UNITS))


def inference_matches_population() -> Claim:
    rng = np.random.default_rng(0)
    running = np.zeros(UNITS), np.ones(UNITS)
    for _ in range(STEPS):
        batch = population(rng, BATCH)
        running = update_running_statistics(*running, *batch_statistics(batch), BATCH, momentum=MOMENTUM)
    gain, bias = np.ones(UNITS), np.zeros(UNITS)
    y = batch_norm(population(rng, 100_000), gain, bias, *running)
    mean_error = float(np.abs(y.mean(axis=0)).max())
    std_error = float(np.abs(y.std(axis=0) - 1).max())
    one_batch = batch_norm(population(rng, 4), gain, bias)
    # In a batch of 4 no value can be farther than sqrt(3) from the mean, in units of the deviation.
    return Claim(
        statement="With running statistics, new data come out with mean 0 and deviation 1 for every unit "
        "(1000 batches of 32, momentum 0.01), and no example depends on its neighbours.",
        expected="mean within 0.1 of 0 and deviation within 0.1 of 1 on 100 000 new examples; in training mode "
        "a batch of 4 cannot exceed sqrt(3)",
        holds=bool(mean_error < 0.1 and std_error < 0.1 and np.abs(one_batch).max() <= np.sqrt(3)),
        figures={
            "largest |mean| over units": mean_error,
            "largest |deviation - 1| over units": std_error,
            "largest value in inference": float(np.abs(y).max()),
            "largest value in training, batch of 4": float(np.abs(one_batch).max()),
        },
    )


def variance_survives_an_offset() -> Claim:
    x = (1e4 + np.random.default_rng(1).standard_normal((256, UNITS))).astype(np.float32)
    truth = x.astype(np.longdouble).var(axis=0)
    centred = float(np.abs(batch_statistics(x)[1] / truth - 1).max())
    squares = float(np.abs((np.mean(x * x, axis=0) - np.mean(x, axis=0) ** 2) / truth - 1).max())
    return Claim(
        statement="The variance of centred values keeps its digits where the mean of squares minus the squared mean "
        "loses all of them (float32, offset 10 000).",
        expected="relative error below 1e-6 against more than 1",
        holds=centred < 1e-6 and squares > 1,
        figures={"from centred values": centred, "E[x^2] - E[x]^2 in float32": squares},
    )
