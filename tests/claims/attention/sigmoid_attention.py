"""Evidence for sigmoid attention: its size at initialization, its rows' independence, two numbers on its slope, and training."""

import numpy as np
from small_data import digits
from small_networks import accuracy

from refnorm.attention import (
    row_mass,
    scaled_dot_product_attention,
    scaled_dot_product_attention_vjp,
    sigmoid_attention,
    sigmoid_attention_vjp,
)
from refnorm.attention._multi_head import merge_heads, split_heads
from refnorm.claims import Claim
from refnorm.nn import linear_vjp, relu_vjp
from refnorm.norms import layer_norm_vjp
from refnorm.softmax import cross_entropy_vjp

LENGTHS = (64, 256, 1024)
DEPTH = 64
SEEDS = range(3)
KINDS = {
    "softmax": scaled_dot_product_attention,
    "sigmoid, bias -log n": sigmoid_attention,
    "sigmoid, no bias": lambda *arrays: sigmoid_attention(*arrays, bias=0.0),
}


def mean_norms(kind, shift):
    """Return the mean length of an output row for every sequence length."""
    found = []
    for length in LENGTHS:
        norms = []
        for seed in SEEDS:
            query, key, value = np.random.default_rng([seed, length]).standard_normal((3, length, DEPTH))
            norms.append(np.linalg.norm(KINDS[kind](query, key, value + shift), axis=-1).mean())
        found.append(float(np.mean(norms)))
    return found


def exponent(norms):
    return float(np.polyfit(np.log(LENGTHS), np.log(norms), 1)[0])


def slope_growth(vjp, seed):
    """Return how much the largest singular value of the Jacobian of self-attention grows from tokens of norm 1 to norm 8."""
    rng = np.random.default_rng(seed)
    tokens = rng.standard_normal((8, 4))
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    to_query, to_key, to_value = rng.standard_normal((3, 4, 4)) / 2
    largest = []
    for size in (1.0, 8.0):
        x = size * tokens
        y, pullback = vjp(x @ to_query, x @ to_key, x @ to_value)
        rows = []
        for unit in np.eye(y.size):
            dquery, dkey, dvalue = pullback(unit.reshape(y.shape))
            rows.append((dquery @ to_query.T + dkey @ to_key.T + dvalue @ to_value.T).ravel())
        largest.append(np.linalg.norm(np.array(rows), 2))
    return largest[1] / largest[0]


def norm_claim(shift):
    slopes = {kind: exponent(mean_norms(kind, shift)) for kind in KINDS}
    least = 0.9 if shift else 0.4
    distance = abs(slopes["sigmoid, bias -log n"] - slopes["softmax"])
    values = "values of mean 1" if shift else "centred values"
    return Claim(
        statement="Without a bias the output of sigmoid attention grows with the sequence length n; the bias -log n holds "
        f"it at softmax's size ({values}).",
        expected=f"exponent of the mean row norm in n without a bias at least {least}; with it within 0.1 of softmax's",
        holds=slopes["sigmoid, no bias"] >= least and distance <= 0.1,
        figures={f"exponent, {kind}": slope for kind, slope in slopes.items()},
    )


def mass_claim():
    length = LENGTHS[-1]
    query, key, unit = np.zeros((1, 4)), np.zeros((length, 4)), np.eye(length)
    mass, heavy = (float(row_mass(sigmoid_attention(query, key, unit, bias=b))[0]) for b in ("-log_n", 0.0))
    return Claim(
        statement="At scores of 0 the bias -log n brings the sum of a row's weights to n / (n + 1).",
        expected="error below 1e-12; at n = 1024 at least 100 times smaller than without the bias",
        holds=abs(mass - length / (length + 1)) < 1e-12 and heavy / mass >= 100,
        figures={"sum of weights": mass, "sum without bias": heavy, "ratio": heavy / mass},
    )


def independence_claim():
    rng = np.random.default_rng(5)
    query, key = rng.standard_normal((16, 8)), rng.standard_normal((32, 8))
    moved = key.copy()
    moved[7] += 1
    unit, others = np.eye(32), np.arange(32) != 7
    changes = {
        name: float(np.abs((attend(query, moved, unit) - attend(query, key, unit))[:, others]).max())
        for name, attend in (("sigmoid", sigmoid_attention), ("softmax", scaled_dot_product_attention))
    }
    growth = {
        name: float(np.median([slope_growth(vjp, seed) for seed in range(20)]))
        for name, vjp in (("softmax", scaled_dot_product_attention_vjp), ("sigmoid", sigmoid_attention_vjp))
    }
    return Claim(
        statement="Keys do not compete: moving one key leaves all other weights of sigmoid attention as they are.",
        expected="largest change of the other weights exactly 0; softmax's above 1e-3",
        holds=changes["sigmoid"] == 0 and changes["softmax"] > 1e-3,
        figures={
            "change of the other weights, sigmoid": changes["sigmoid"],
            "change of the other weights, softmax": changes["softmax"],
            "growth of the Jacobian's norm from token norm 1 to 8, median of 20, sigmoid": growth["sigmoid"],
            "growth of the Jacobian's norm from token norm 1 to 8, median of 20, softmax": growth["softmax"],
        },
    )


WIDTH, HEADS, HIDDEN, BLOCKS, STEPS, BATCH = 32, 4, 64, 2, 250, 64
TRAINING_SEEDS = range(3)
ATTENTIONS = {
    "softmax": scaled_dot_product_attention_vjp,
    "sigmoid, bias -log n": sigmoid_attention_vjp,
    "sigmoid, no bias": lambda *arrays: sigmoid_attention_vjp(*arrays, bias=0.0),
}


def patches(images):
    """Return images (N, 1, 8, 8) as 16 tokens of 2 x 2 pixels."""
    return images.reshape(-1, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, 16, 4).astype(np.float32)


def start(rng):
    """Return the parameters of a transformer: embedding, positions, blocks, last norm and read-out."""

    def linear(before, after):
        return [rng.standard_normal((before, after)) / np.sqrt(before), np.zeros(after)]

    def norm():
        return [np.ones(WIDTH), np.zeros(WIDTH)]

    params = [*linear(4, WIDTH), 0.1 * rng.standard_normal((16, WIDTH))]
    for _ in range(BLOCKS):
        params += [*norm(), *linear(WIDTH, 3 * WIDTH), *linear(WIDTH, WIDTH)]
        params += [*norm(), *linear(WIDTH, HIDDEN), *linear(HIDDEN, WIDTH)]
    return [p.astype(np.float32) for p in (*params, *norm(), *linear(WIDTH, 10))]


def attend(vjp, x, weight_in, bias_in, weight_out, bias_out):
    """Return multi-head self-attention and its pullback to the arguments after ``vjp``."""
    projected, back_in = linear_vjp(x, weight_in, bias_in)
    context, back = vjp(*split_heads(projected, HEADS))
    y, back_out = linear_vjp(context.transpose(0, 2, 1, 3).reshape(x.shape), weight_out, bias_out)

    def pullback(dy):
        dmerged, *dout = back_out(dy)
        dcontext = dmerged.reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)
        dx, *din = back_in(merge_heads(*back(dcontext)))
        return dx, *din, *dout

    return y, pullback


def perceptron(x, weight_in, bias_in, weight_out, bias_out):
    before, back_in = linear_vjp(x, weight_in, bias_in)
    hidden, back_relu = relu_vjp(before)
    y, back_out = linear_vjp(hidden, weight_out, bias_out)

    def pullback(dy):
        dhidden, *dout = back_out(dy)
        dx, *din = back_in(*back_relu(dhidden))
        return dx, *din, *dout

    return y, pullback


def transformer(kind, params, tokens):
    """Return logits and the pullback to the parameters."""
    embedded, back_embedding = linear_vjp(tokens, *params[:2])
    x, backs = embedded + params[2], []
    for at in range(3, 3 + 12 * BLOCKS, 6):
        normed, back_norm = layer_norm_vjp(x, *params[at : at + 2])
        layer = perceptron if (at - 3) % 12 else lambda *args: attend(ATTENTIONS[kind], *args)
        update, back = layer(normed, *params[at + 2 : at + 6])
        x = x + update
        backs.append((back_norm, back))
    final, back_final = layer_norm_vjp(x, *params[-4:-2])
    logits, back_head = linear_vjp(final.mean(axis=1), *params[-2:])

    def pullback(dlogits):
        dpooled, *dhead = back_head(dlogits)
        dx, *dnorm = back_final(np.repeat(dpooled[:, None] / final.shape[1], final.shape[1], axis=1))
        grads = [*dnorm, *dhead]
        for back_norm, back in reversed(backs):
            dnormed, *dlayer = back(dx)
            through, *dnorm = back_norm(dnormed)
            dx, grads = dx + through, [*dnorm, *dlayer, *grads]
        return [*back_embedding(dx)[1:], dx.sum(axis=0), *grads]

    return logits, pullback


def train(kind, seed):
    """Return the loss of the first batch and the accuracy on the test digits after the steps of Adam."""
    data, rng = digits(test=597, images=True), np.random.default_rng(seed)
    params, tokens = start(rng), patches(data.x)
    first, second = [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params]
    losses = []
    for step in range(1, STEPS + 1):
        chosen = rng.integers(len(tokens), size=BATCH)
        logits, pullback = transformer(kind, params, tokens[chosen])
        loss, back_loss = cross_entropy_vjp(logits, data.target[chosen])
        losses.append(float(loss))
        for i, grad in enumerate(pullback(back_loss(np.array(1.0))[0])):
            first[i] = 0.9 * first[i] + 0.1 * grad
            second[i] = 0.999 * second[i] + 0.001 * grad**2
            corrected = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
            params[i] = params[i] - 3e-3 * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
        if kind == "sigmoid, no bias":  # only its start is asked for
            return losses[0], float("nan")
    logits, _ = transformer(kind, params, patches(data.x_test))
    return losses[0], accuracy(logits, data.target_test)


def digits_claims():
    runs = {kind: [train(kind, seed) for seed in TRAINING_SEEDS] for kind in ATTENTIONS}
    start_loss = {kind: float(np.mean([loss for loss, _ in runs[kind]])) for kind in ATTENTIONS}
    right = {kind: float(np.mean([part for _, part in runs[kind]])) for kind in list(ATTENTIONS)[:2]}
    pairs = zip(runs["sigmoid, no bias"], runs["sigmoid, bias -log n"], strict=True)
    ratio = min(free[0] / held[0] for free, held in pairs)
    setting = "(16 tokens of a digit, 2 pre-norm blocks of width 32, 4 heads, 250 steps of Adam, 3 seeds)"
    return [
        Claim(
            statement=f"With the bias -log n sigmoid attention learns as softmax attention does {setting}.",
            expected="mean accuracy at most 0.04 below softmax's and at least 0.85",
            holds=right["sigmoid, bias -log n"] >= max(right["softmax"] - 0.04, 0.85),
            figures={f"accuracy, {kind}": part for kind, part in right.items()},
        ),
        Claim(
            statement=f"Without the bias training starts from a larger loss {setting}.",
            expected="each first loss without the bias at least 1.08 times that with it",
            holds=ratio >= 1.08,
            figures={
                **{f"first loss, {kind}": loss for kind, loss in start_loss.items()},
                "smallest ratio of first losses": ratio,
            },
            refuted="With a layer norm before the read-out the logits do not see the size of the blocks' outputs; the first losses "
            "differ by as much from seed to seed.",
        ),
    ]


def claims() -> list[Claim]:
    return [norm_claim(0.0), norm_claim(1.0), mass_claim(), independence_claim(), *digits_claims()]


def figure():
    """Mean length of an output row against sequence length, for centred values (left) and values of mean 1 (right)."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharex=True)
    for axis, shift in zip(axes, (0.0, 1.0), strict=True):
        for kind in KINDS:
            axis.loglog(LENGTHS, mean_norms(kind, shift), "o-", label=kind)
        axis.set(title="values of mean 1" if shift else "centred values", xlabel="sequence length")
        axis.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
        axis.minorticks_off()
    axes[0].set_ylabel("mean norm of an output row")
    axes[1].legend()
    return fig
