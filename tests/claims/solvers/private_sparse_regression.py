"""Evidence for private sparse regression: rates as slopes, public data, interaction, and an audit of the randomizer."""

from functools import cache

import numpy as np

from refnorm.claims import Claim
from refnorm.solvers import ball_randomizer, gaussian_sigma, ldp_iht, nldp_estimate, randomizer_scale

EPSILON, DELTA, SPARSE, LABEL_BOUND = 1.0, 1e-3, 3, 3.0
DATA = 2**15
USERS = (2**22, 2**24, 2**26, 2**28)
DIMENSIONS, MANY = (32, 64, 128, 256), 2**36
PUBLIC_SEEDS, RATE_SEEDS, ROUND_SEEDS = range(10), range(30), range(3)


def claims() -> list[Claim]:
    return [rate(), public(), interaction(), audit()]


def sample(rng, n, d):
    """Gaussian rows, a vector of length 1 with three entries, labels with noise 0.1."""
    theta = np.zeros(d)
    theta[rng.permutation(d)[:SPARSE]] = rng.choice([-1.0, 1.0], SPARSE) / np.sqrt(SPARSE)
    x = rng.standard_normal((n, d))
    return x, x @ theta + 0.1 * rng.standard_normal(n), theta


def radius(d):
    return 1.2 * np.sqrt(d)


@cache
def statistics(seed, d):
    """Means of x x^T and x y after clipping rows and labels together, and the means of fresh public rows."""
    rng = np.random.default_rng(1000 * d + seed)
    x, y, theta = sample(rng, DATA, d)
    factor = np.minimum(1, radius(d) / np.linalg.norm(x, axis=1))
    rows, labels = x * factor[:, None], np.clip(y, -LABEL_BOUND, LABEL_BOUND) * factor
    return rows.T @ rows / DATA, rows.T @ labels / DATA, theta


def noise(rng, d, n):
    """The mean of n users' noises is one noise of a variance n times smaller."""
    first = gaussian_sigma(np.sqrt(2) * radius(d) ** 2, EPSILON / 2, DELTA / 2) / np.sqrt(n)
    second = gaussian_sigma(2 * radius(d) * LABEL_BOUND, EPSILON / 2, DELTA / 2) / np.sqrt(n)
    upper = np.triu(rng.standard_normal((d, d)))
    return first * (upper + np.triu(upper, 1).T), second * rng.standard_normal(d)


def noisy(seed, d, n):
    """What the server sees of n users."""
    covariance, moment, theta = statistics(seed, d)
    of_covariance, of_moment = noise(np.random.default_rng(seed), d, n)
    return covariance + of_covariance, moment + of_moment, theta


@cache
def errors(n, d=10, k=SPARSE):
    found = []
    for seed in RATE_SEEDS:
        covariance, moment, theta = noisy(seed, d, n)
        found.append(np.linalg.norm(nldp_estimate(covariance, moment, k=k).theta - theta))
    return float(np.median(found))


def rate() -> Claim:
    medians = {n: errors(n) for n in USERS}
    slope = float(np.polyfit(np.log(USERS), np.log(list(medians.values())), 1)[0])
    return Claim(
        statement="Without interaction the error falls as one over the square root of the number of users (d = 10, epsilon = 1) "
        "-- once there are millions of them.",
        expected="log-log slope of the median error of 30 seeds over 2^22 to 2^28 users from -0.58 to -0.42",
        holds=-0.58 <= slope <= -0.42,
        figures={f"median error, 2^{int(np.log2(n))} users": error for n, error in medians.items()}
        | {"slope": slope, "median error, 2^19 users (0 would have error 1)": errors(2**19)},
    )


@cache
def public_ratio(d):
    """Error without public rows over error with them, before any sparsity is used, for a covariance of 1."""
    ratios = []
    for seed in PUBLIC_SEEDS:
        rng = np.random.default_rng(1000 * d + seed)
        theta = np.zeros(d)
        theta[:SPARSE] = 1 / np.sqrt(SPARSE)
        of_covariance, of_moment = noise(rng, d, MANY)
        private = nldp_estimate(np.eye(d) + of_covariance, theta + of_moment, threshold=0.0).theta
        sigma = gaussian_sigma(2 * radius(d) * LABEL_BOUND, EPSILON, DELTA) / np.sqrt(MANY)
        with_public = theta + sigma * rng.standard_normal(d)
        ratios.append(np.linalg.norm(private - theta) / np.linalg.norm(with_public - theta))
    return float(np.median(ratios))


def public() -> Claim:
    ratios = {d: public_ratio(d) for d in DIMENSIONS}
    slope = float(np.polyfit(np.log(DIMENSIONS), np.log(list(ratios.values())), 1)[0])
    return Claim(
        statement="Public unlabelled data gain a factor that grows as the square root of the dimension.",
        expected="log-log slope over the dimension of the ratio of the errors from 0.35 to 0.75, for d from 32 to 256",
        holds=0.35 <= slope <= 0.75,
        figures={"ratio of the errors, d = 8": public_ratio(8)}
        | {f"ratio of the errors, d = {d}": ratio for d, ratio in ratios.items()}
        | {"slope": slope},
    )


@cache
def rounds(worst_case):
    n, d, found = 2**17, 32, []
    for seed in ROUND_SEEDS:
        rng = np.random.default_rng(seed)
        x, y, theta = sample(rng, n, d)
        options = {"rounds": 13} if worst_case else {"rounds": 3, "gradient_bound": np.sqrt(d)}
        result = ldp_iht(
            x, y, epsilon=EPSILON, k=SPARSE, radius=radius(d), bound=LABEL_BOUND, kept=2 * SPARSE, rng=rng, **options
        )
        found.append(np.linalg.norm(result.theta - theta))
    return float(np.mean(found))


def interaction() -> Claim:
    n, d = 2**17, 32
    alone = float(
        np.mean([
            np.linalg.norm(nldp_estimate(covariance, moment, k=SPARSE).theta - theta)
            for covariance, moment, theta in (noisy(seed, d, n) for seed in ROUND_SEEDS)
        ])
    )  # fmt: skip
    typical, worst = rounds(False), rounds(True)
    return Claim(
        statement="Interaction helps far more: with few rounds and gradients clipped at their typical length the vector is found "
        "with 2^17 users in dimension 32.",
        expected="mean error of 3 seeds at most 0.4, and at most 0.2 of that without interaction",
        holds=typical <= 0.4 and typical <= 0.2 * alone,
        figures={
            "error, 3 rounds, typical length": typical,
            "error, 13 rounds, worst-case length": worst,
            "error without interaction": alone,
        },
    )


def audit() -> Claim:
    draws, figures, holds = 100_000, {}, True
    rng = np.random.default_rng(0)
    plus, minus = (ball_randomizer(np.full((draws, 1), v), EPSILON, 1.0, rng)[:, 0] > 0 for v in (1.0, -1.0))
    log_ratio = float(np.log(plus.mean() / minus.mean()))
    spread = float(np.sqrt((1 - plus.mean()) / plus.sum() + (1 - minus.mean()) / minus.sum()))
    holds &= log_ratio <= EPSILON + 4 * spread
    figures["log of the ratio of the probabilities, d = 1"] = log_ratio
    figures["its standard error"] = spread
    for d in (1, 2, 5):
        v = np.full(d, 0.6 / np.sqrt(d))
        messages = ball_randomizer(np.tile(v, (draws, 1)), EPSILON, 1.0, rng)
        z = np.abs(messages.mean(axis=0) - v) / (messages.std(axis=0) / np.sqrt(draws))
        holds &= bool(z.max() < 4)
        figures[f"bias in standard errors, d = {d}"] = float(z.max())
        figures[f"length of a message, d = {d}"] = randomizer_scale(d, EPSILON, 1.0)
    return Claim(
        statement="The ball randomizer spends exactly epsilon and is unbiased.",
        expected=f"log ratio at most epsilon = 1 plus 4 standard errors; bias below 4 standard errors ({draws} draws)",
        holds=holds,
        figures=figures,
    )


def figure():
    """Two panels. Left: median error without interaction against the number of users for dimension 10: above 1, which
    is worse than the zero vector, until a million users, then a straight line of slope -1/2. Right: ratio of the
    errors without and with public data against the dimension: nearly flat at first, then along a line of slope
    1/2."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    powers = np.arange(17, 29)
    found = [errors(2 ** int(p)) for p in powers]
    left.plot(2.0**powers, found, "o-", label="no interaction, keep 3")
    left.plot(2.0 ** powers[5:], found[-1] * 2.0 ** ((28 - powers[5:]) / 2), "k--", lw=1, label="slope -1/2")
    left.axhline(1, color="C3", lw=1, label="zero vector")
    left.set(xlabel="users", ylabel="median error", xscale="log", yscale="log")
    left.legend()
    dimensions = (4, 8, 16, 32, 64, 128, 256)
    ratios = [public_ratio(d) for d in dimensions]
    right.plot(dimensions, ratios, "o-", label="measured")
    right.plot(dimensions, ratios[-1] * np.sqrt(np.array(dimensions) / 256), "k--", lw=1, label="slope 1/2")
    right.set(xlabel="dimension", ylabel="error / error with public data", xscale="log", yscale="log")
    right.set_xticks(dimensions, [str(d) for d in dimensions])
    right.set_yticks((1, 2, 5, 10), ("1", "2", "5", "10"))
    right.minorticks_off()
    right.legend()
    return fig
