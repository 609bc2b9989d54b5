"""Evidence for weight normalization: training from badly scaled weights, and lengths that regulate the step."""

import functools

import numpy as np
from small_conv_networks import train_chain
from small_data import digits
from small_networks import batches

from refnorm.claims import Claim
from refnorm.nn import linear_vjp, relu_vjp
from refnorm.norms import init_weight_norm, weight_norm_vjp

SEEDS, DEPTH, WIDTH, EPOCHS = range(3), 6, 64, 4


def claims() -> list[Claim]:
    return [first_batch(), training(), length_regulates()]


def normalized_linear(x, direction, gain, bias):
    weight, back_weight = weight_norm_vjp(direction, gain, axis=1)
    y, back_linear = linear_vjp(x, weight, bias)

    def pullback(dy):
        dx, dweight, dbias = back_linear(dy)
        return (dx, *back_weight(dweight), dbias)

    return y, pullback


def build(normalized, scale, seed):
    """Layers, parameters, and each layer's outputs for the first 200 digits.

    ``scale`` multiplies the usual initial weights of variance 2 / inputs.
    """
    x, rng = digits().x[:200], np.random.default_rng(seed)
    layers, params, outputs = [], [], []
    for width in [WIDTH] * DEPTH + [10]:
        direction = rng.standard_normal((WIDTH, width)) * scale * np.sqrt(2 / WIDTH)
        gain, bias = np.ones(width), np.zeros(width)
        if normalized:
            raw, _ = normalized_linear(x, direction, gain, bias)
            gain, bias = init_weight_norm(raw)
            outputs.append(gain * raw + bias)
            layers += [normalized_linear, relu_vjp]
            params += [(direction, gain, bias), ()]
        else:
            outputs.append(x @ direction)
            layers += [linear_vjp, relu_vjp]
            params += [(direction, bias), ()]
        x = np.maximum(outputs[-1], 0)
    return layers[:-1], params[:-1], outputs


def first_batch() -> Claim:
    spread = {}
    for name, normalized in (("weight norm", True), ("plain", False)):
        stds = [build(normalized, scale, 0)[2][DEPTH - 1].std() for scale in (0.3, 1.0, 2.0)]
        spread[name] = float(max(stds) / min(stds))
    return Claim(
        statement="The data-dependent initialization gives every layer outputs of deviation 1, whatever the scale of "
        "the directions; with plain weights the scale is raised to the power of the depth.",
        expected="sixth layer, directions scaled by 0.3, 1 and 2: largest over smallest deviation below 1.001 against "
        "above 10 000",
        holds=spread["weight norm"] < 1.001 and spread["plain"] > 1e4,
        figures={f"largest over smallest deviation, {name}": value for name, value in spread.items()},
    )


@functools.cache
def train(normalized: bool, scale: float, rate: float, seed: int):
    """Mean of the last 20 losses, and the lengths of a hidden layer's directions before and after."""
    layers, params, _ = build(normalized, scale, seed)
    data, rng = digits(), np.random.default_rng(seed)
    order, history = batches(rng, len(data.x), 32, EPOCHS), []
    with np.errstate(all="ignore"):
        trained = train_chain(
            layers, params, data.x, data.target, order, learning_rate=rate, momentum=0.0, each_step=history.append
        )
    lengths = [np.linalg.norm(p[2][0], axis=0) for p in (params, trained)]
    return float(np.nan_to_num(np.mean(history[-20:]), nan=np.log(10))), lengths


def training() -> Claim:
    settings = {"scale 1, rate 0.03": (1.0, 0.03), "scale 2, rate 0.03": (2.0, 0.03), "scale 2, rate 0.1": (2.0, 0.1)}
    losses = {
        (name, kind): float(np.mean([train(kind == "weight norm", *setting, seed)[0] for seed in SEEDS]))
        for name, setting in settings.items()
        for kind in ("weight norm", "plain")
    }
    holds = all(losses[name, "weight norm"] < 0.6 * losses[name, "plain"] for name in settings)
    return Claim(
        statement="Weight normalization trains faster than plain gradient descent, and trains where initial weights "
        "of twice the usual size make the plain network fail (digits, six hidden layers, no momentum).",
        expected="mean of the last 20 losses, 3 seeds: below 0.6 of the plain network's in each setting (NaN counts "
        "as guessing, 2.30)",
        holds=holds,
        figures={f"{name}, {kind}": value for (name, kind), value in losses.items()},
    )


def length_regulates() -> Claim:
    growth, shortest = {}, np.inf
    for rate in (0.03, 0.1, 0.3):
        before, after = train(True, 2.0, rate, 0)[1]
        growth[rate] = float((after / before).mean())
        shortest = min(shortest, float((after / before).min()))
    first, second, third = growth.values()
    return Claim(
        statement="Directions only grow under gradient descent, and grow more at a higher learning rate, which lowers "
        "the angle that the next step turns them by.",
        expected="no unit's direction shorter at the end than at the start; mean growth larger at each of the rates "
        "0.03, 0.1 and 0.3 than at the one before",
        holds=bool(shortest >= 1 and 1 < first < second < third),
        figures={f"mean growth in %, rate {rate}": 100 * (value - 1) for rate, value in growth.items()}
        | {"smallest growth of a unit in %": 100 * (shortest - 1)},
    )


def figure():
    """Left: weights, gradient and step in the plane of a direction. Right: length of a direction during descent."""
    import matplotlib.pyplot as plt

    fig, (plane, lengths) = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    circle = np.linspace(0, 2 * np.pi, 200)
    plane.plot(np.cos(circle), np.sin(circle), color="0.8")
    target, point = np.array([np.cos(2.2), np.sin(2.2)]), np.array([[1.0, 0.0]])
    path = [point[0]]
    for _ in range(12):
        point = point - 0.5 * weight_norm_vjp(point, np.ones(1))[1](weight_norm_vjp(point, np.ones(1))[0] - target)[0]
        path.append(point[0])
    steps = np.array(path)
    plane.plot(*steps.T, "o-", markersize=4, label="direction")
    plane.plot(*(steps / np.linalg.norm(steps, axis=1, keepdims=True)).T, ".", label="weight, length 1")
    plane.plot(*target, "k*", markersize=10, label="target")
    plane.set(aspect="equal", title="every step is a tangent", xlim=(-1.6, 1.6), ylim=(-1.2, 1.9))
    plane.legend(fontsize=8, loc="lower left")
    rng = np.random.default_rng(0)
    for rate in (0.3, 1.0, 3.0, 10.0):
        point, sizes = np.eye(1, 10), []
        for _ in range(300):
            # A cotangent of noise: nothing to learn, only steps that turn the direction about.
            point = point - rate * weight_norm_vjp(point, np.ones(1))[1](rng.standard_normal((1, 10)) / 10)[0]
            sizes.append(np.linalg.norm(point))
        lengths.plot(sizes, label=f"rate {rate:g}")
    lengths.set(xlabel="step", ylabel="length of the direction", yscale="log", title="under noise")
    lengths.legend(fontsize=8)
    return fig
