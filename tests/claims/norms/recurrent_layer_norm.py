"""Evidence for layer-normalized recurrent cells: dynamics that do not depend on the scale of the weights."""

import dataclasses

import numpy as np

from refnorm.claims import Claim
from refnorm.norms import (
    init_layer_norm_gru,
    init_layer_norm_lstm,
    layer_norm_gru,
    layer_norm_lstm,
    layer_norm_rnn,
    layer_norm_rnn_vjp,
)

STEPS, BATCH, INPUTS, UNITS = 50, 8, 6, 24
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
TINY = {"eps": 1e-300}


def claims() -> list[Claim]:
    return [scale_of_weights(), gradient_through_time()]


def problem(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((STEPS, BATCH, INPUTS))
    orthogonal = np.linalg.qr(rng.standard_normal((UNITS, UNITS)))[0]
    return rng, x, rng.standard_normal((INPUTS, UNITS)) / np.sqrt(INPUTS), orthogonal


def plain(x, input_weight, recurrent_weight):
    h, states = np.zeros((BATCH, UNITS)), []
    for x_t in x:
        h = np.tanh(h @ recurrent_weight + x_t @ input_weight)
        states.append(h)
    return np.stack(states)


def scale_of_weights() -> Claim:
    rng, x, input_weight, recurrent_weight = problem(0)
    start, gain, bias = np.zeros((BATCH, UNITS)), np.ones(UNITS), np.zeros(UNITS)
    # The state before the first step is random: from zero, a recurrent sum would have no variance.
    h = rng.standard_normal((BATCH, UNITS))
    lstm, gru = init_layer_norm_lstm(rng, INPUTS, UNITS), init_layer_norm_gru(rng, INPUTS, UNITS)

    def change(run):
        return float(np.abs(run(5.0) - run(1.0)).max())

    kept = {
        "plain cell, both matrices times 5": change(
            lambda s: layer_norm_rnn(x, start, s * input_weight, s * recurrent_weight, gain, bias, **TINY)
        ),
        "LSTM, recurrent matrix times 5": change(
            lambda s: layer_norm_lstm(
                x, h, h, dataclasses.replace(lstm, recurrent_weight=s * lstm.recurrent_weight), **TINY
            )[0]
        ),
        "GRU, all matrices times 5": change(
            lambda s: layer_norm_gru(
                x,
                h,
                dataclasses.replace(
                    gru,
                    **{
                        name: s * getattr(gru, name)
                        for name in ("input_weight", "recurrent_weight", "gate_input_weight", "gate_recurrent_weight")
                    },
                ),
                **TINY,
            )
        ),
    }
    without = change(lambda s: plain(x, s * input_weight, s * recurrent_weight))
    return Claim(
        statement="The states of a layer-normalized cell do not change when all summed inputs are rescaled "
        "(Section 4 of the paper; 50 steps, 24 units).",
        expected="largest change of a state below 1e-9 with layer norm, above 0.1 without",
        holds=max(kept.values()) < 1e-9 and without > 0.1,
        figures=kept | {"without layer norm, both matrices times 5": without},
    )


def gradient_norms(scale, normalize, seed=0):
    """Size of the last state's gradient with respect to each earlier input, averaged over sequences."""
    rng, x, input_weight, recurrent_weight = problem(seed)
    input_weight, recurrent_weight = scale * input_weight, scale * recurrent_weight
    cotangent = np.zeros((STEPS, BATCH, UNITS))
    cotangent[-1] = rng.standard_normal((BATCH, UNITS))
    if normalize:
        start, gain, bias = np.zeros((BATCH, UNITS)), np.ones(UNITS), np.zeros(UNITS)
        dx = layer_norm_rnn_vjp(x, start, input_weight, recurrent_weight, gain, bias)[1](cotangent)[0]
    else:
        states = plain(x, input_weight, recurrent_weight)
        dx, dh = np.zeros_like(x), np.zeros((BATCH, UNITS))
        for t in reversed(range(STEPS)):
            dsum = (dh + cotangent[t]) * (1 - states[t] ** 2)
            dx[t], dh = dsum @ input_weight.T, dsum @ recurrent_weight.T
    return np.linalg.norm(dx, axis=-1).mean(axis=-1)


def spread(normalize):
    """Ratio of the largest to the smallest gradient, 20 steps back, over the scales of the weights."""
    sizes = [gradient_norms(scale, normalize)[-21] for scale in SCALES]
    return float(max(sizes) / min(sizes))


def gradient_through_time() -> Claim:
    normed, without = spread(True), spread(False)
    return Claim(
        statement="How much of the gradient survives 20 steps does not depend on the scale of the weights either.",
        expected="over scales from 1/4 to 4, the gradient varies by less than a factor 1.1 with layer norm and "
        "more than 100 without",
        holds=normed < 1.1 and without > 100,
        figures={"largest over smallest, layer norm": normed, "largest over smallest, without": without},
    )


def figure():
    """Gradient of the last state with respect to earlier inputs, for several scales of the weights."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7.5, 3.4), sharey=True, layout="constrained")
    back = np.arange(STEPS)[::-1]
    for ax, normalize, title in ((axes[0], False, "without"), (axes[1], True, "layer norm")):
        for scale in SCALES:
            ax.plot(back, gradient_norms(scale, normalize), label=f"weights times {scale:g}")
        ax.set(xlabel="steps back", yscale="log", title=title, ylim=(1e-12, 1e2))
    axes[0].set_ylabel("size of the gradient")
    axes[0].legend(fontsize=8)
    return fig
