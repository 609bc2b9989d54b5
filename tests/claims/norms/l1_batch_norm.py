"""Evidence for L1 batch normalization: the factor, training as with batch norm, half precision."""

import functools

import numpy as np
from small_conv_networks import train_chain
from small_data import digits
from small_networks import batches

from refnorm.claims import Claim
from refnorm.nn import linear_vjp, relu_vjp
from refnorm.norms import batch_norm_vjp, l1_batch_norm_vjp, l1_batch_statistics

SEEDS, LAYERS, WIDTH, EPOCHS, RATE = range(3), 4, 64, 3, 0.2


def claims() -> list[Claim]:
    return [factor(), training(), half_precision()]


def ratios(draw):
    """Standard deviation over mean absolute deviation, of 100 000 numbers."""
    x = draw(100_000)[:, None]
    return float(x.std() / l1_batch_statistics(x)[1][0])


def factor() -> Claim:
    rng = np.random.default_rng(0)
    found = {"normal": ratios(rng.standard_normal), "uniform": ratios(rng.random)}
    found["Laplace"] = ratios(lambda n: rng.laplace(size=n))
    truth = {"normal": np.sqrt(np.pi / 2), "uniform": 2 / np.sqrt(3), "Laplace": np.sqrt(2)}
    return Claim(
        statement="For normal data the standard deviation is sqrt(pi / 2) = 1.2533 times the mean absolute deviation; "
        "for other shapes the number is another, but near.",
        expected="within 0.02 of the closed forms 1.2533, 1.1547 and 1.4142",
        holds=all(abs(found[name] - truth[name]) < 0.02 for name in truth),
        figures={f"std over deviation, {name}": value for name, value in found.items()},
    )


def no_norm(x, gain, bias):
    return x, lambda dy: (dy, np.zeros_like(gain), np.zeros_like(bias))


def by_batch(norm):
    def layer(x, gain, bias):
        y, pullback = norm(x, gain, bias)
        return y, lambda dy: pullback(dy)[:3]

    return layer


NORMS = {"L1 batch norm": by_batch(l1_batch_norm_vjp), "batch norm": by_batch(batch_norm_vjp), "none": no_norm}


@functools.cache
def losses(name: str, seed: int) -> list[float]:
    """Mini-batch losses of a network of four hidden layers on the digits."""
    data, rng = digits(), np.random.default_rng(seed)
    layers, params = [], []
    for _ in range(LAYERS):
        layers += [linear_vjp, NORMS[name], relu_vjp]
        weight = rng.standard_normal((WIDTH, WIDTH)) * np.sqrt(2 / WIDTH)
        params += [(weight, np.zeros(WIDTH)), (np.ones(WIDTH), np.zeros(WIDTH)), ()]
    layers += [linear_vjp]
    params += [(rng.standard_normal((WIDTH, 10)) / np.sqrt(WIDTH), np.zeros(10))]
    history = []
    order = batches(rng, len(data.x), 32, EPOCHS)
    train_chain(layers, params, data.x, data.target, order, learning_rate=RATE, each_step=history.append)
    return history


def training() -> Claim:
    last = {name: float(np.mean([losses(name, seed)[-20:] for seed in SEEDS])) for name in NORMS}
    gap = last["L1 batch norm"] - last["batch norm"]
    return Claim(
        statement="A network trains with L1 batch norm as it does with batch norm, at a learning rate at which it does "
        "not train without (digits, four hidden layers, momentum SGD at 0.2).",
        expected="mean of the last 20 losses, 3 seeds: at most 0.15 above batch norm's and below 0.4 of the plain "
        "network's",
        holds=bool(gap < 0.15 and last["L1 batch norm"] < 0.4 * last["none"]),
        figures={f"last losses, {name}": value for name, value in last.items()} | {"L1 minus L2": gap},
    )


def half_precision() -> Claim:
    x = (300 * np.random.default_rng(1).standard_normal(64)).astype(np.float16)
    centred = x - x.mean(dtype=np.float16)
    with np.errstate(over="ignore"):
        var = (centred * centred).mean(dtype=np.float16)
    deviation = np.abs(centred).mean(dtype=np.float16)
    truth = np.abs(x.astype(np.float64) - x.astype(np.float64).mean()).mean()
    return Claim(
        statement="In half precision the squares of activations of size 300 overflow (the largest float16 is 65 504); "
        "their absolute values do not.",
        expected="float16 variance infinite, float16 mean absolute deviation right to 1%",
        holds=bool(np.isinf(var) and abs(deviation / truth - 1) < 0.01),
        figures={
            "float16 variance": float(var),
            "float16 deviation": float(deviation),
            "deviation in float64": float(truth),
        },
    )


def figure():
    """Training loss of one network without normalization, with batch norm and with L1 batch norm, at rate 0.2."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for name in ("none", "batch norm", "L1 batch norm"):
        ax.plot(np.convolve(losses(name, 0), np.ones(10) / 10, mode="valid"), label=name)
    ax.set(xlabel="step", ylabel="training loss (mean of 10 batches)", yscale="log")
    ax.legend()
    return fig
