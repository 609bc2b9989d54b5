"""Truth for unified normalization: hand calculations, the rule written out in mpmath, PyTorch in float64."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.norms import UnifiedNormState

mpmath.mp.dps = 50


def exact(array):
    return [[mpmath.mpf(float(v)) for v in row] for row in np.atleast_2d(array)]


def average(values):
    return mpmath.fsum(values) / len(values)


def one_step(x, gain, state, dy, warmup, filtration):
    """One batch by the rule, channel by channel in mpmath: y (bias 0), gradients, and the whole state after it."""
    eps, a = mpmath.mpf(1e-5), mpmath.mpf(0.9)
    t, window, channels = state.iteration + 1, len(state.forward_buffer), x.shape[1]
    buffer = exact(state.forward_buffer)
    roots = [mpmath.sqrt(v) for row in buffer for v in row]
    spread = mpmath.fsum((v - average(roots)) ** 2 for v in roots) / (len(roots) - 1)
    columns, cotangents = exact(x.T), exact(dy.T)
    squares = [average([v * v for v in column]) for column in columns]
    buffer[t % window] = list(squares)
    geometric = [mpmath.exp(average([mpmath.log(row[c]) for row in buffer])) for c in range(channels)]
    gaps = [average([row[c] for row in buffer]) - geometric[c] for c in range(channels)]
    running, (nu,), (gains,) = exact(state.mean_square)[0], exact(state.backward_mean), exact(gain)
    skip = filtration and t >= warmup and any(gap > window * spread for gap in gaps)
    if skip:
        buffer[t % window] = list(running)
    averaged = not (t <= window or t < warmup or skip)
    back = exact(state.backward_buffer)
    y, dx, dgain, square_after, nu_after, record = [], [], [], [], [], []
    for c in range(channels):
        used = geometric[c] if averaged else squares[c]
        ratio = mpmath.mpf(1)
        if t > max(1000, warmup) and not skip:
            ratio = min(max(mpmath.sqrt((used + eps) / (running[c] + eps)), mpmath.mpf(1) / 5), mpmath.mpf(5))
        inv = 1 / mpmath.sqrt(used + eps)
        z = [v * inv for v in columns[c]]
        dz = [ratio * gains[c] * g for g in cotangents[c]]
        along = average([p * q for p, q in zip(dz, z, strict=True)])
        record.append(nu[c] if skip else along)
        rows = [record[c] if r == t % window else row[c] for r, row in enumerate(back)]
        smooth = average(rows) if averaged else along
        nu_after.append(a * nu[c] + (1 - a) * smooth)
        part = smooth if skip else nu_after[c]
        y.append([gains[c] * v for v in z])
        dx.append([inv * (p - part * q) for p, q in zip(dz, z, strict=True)])
        dgain.append(ratio * mpmath.fsum(g * v for g, v in zip(cotangents[c], z, strict=True)))
        square_after.append(a * running[c] + (1 - a) * used)
    back[t % window] = record

    def floats(values):
        return np.array([[float(v) for v in row] for row in values])

    forward = floats(buffer), floats([square_after])[0]
    backward = floats(back), floats([nu_after])[0]
    return floats(y).T, (floats(dx).T, floats([dgain])[0]), forward, backward, t, state.skipped + int(skip)


def cases():
    rng = np.random.default_rng(220801313)
    found = []

    def add(function, name, args, expected, tolerance, source, **more):
        found.append(
            GoldenCase(
                function=f"norms.{function}",
                name=name,
                args=args,
                expected=expected,
                tolerance=tolerance,
                source=source,
                **more,
            )
        )

    x, one, zero, g = np.array([[3.0], [4.0]]), np.ones(1), np.zeros(1), np.array([[1.0], [0.0]])
    root = np.sqrt(12.5)
    start = UnifiedNormState(np.zeros((2, 1)), np.zeros((2, 1)), one, zero, 0, 0)
    buffer, square, counts = np.array([[0.0], [12.5]]), np.array([2.15]), (np.array(1), np.array(0))
    call = ("unified_norm", "first batch", (x, one, zero, start))
    tiny = {"eps": 1e-300}
    add(
        *call,
        (x / root, buffer, np.zeros((2, 1)), square, zero, *counts),
        Tolerance(4, "ulp"),
        "by hand: mean square 25/2",
        options=tiny,
    )
    # along = 3 / (2 root), a tenth of it is used: dx = (g - 0.1 along z) / root = (1 - 9/250, -12/250) / root.
    along = np.array([1.5]) / root
    grads = np.array([[241.0], [-12.0]]) / 250 / root, np.array([3.0]) / root, one
    expected = (*grads, buffer, np.array([[0.0], along]), square, 0.1 * along, *counts)
    add(*call, expected, Tolerance(4, "ulp_of_largest"), "by hand", options=tiny, cotangent=g)

    limit, source = Tolerance(1e-12, "relative_of_largest"), "mpmath, 50 digits: the rule written out"
    for name, iteration, scale, filtration in (
        ("window not full", 2, 1.0, False),
        ("late batch", 2000, 1.0, False),
        ("late batch, filter silent", 2003, 1.0, True),
        ("outlier", 2000, 20.0, True),
        ("large change without the filter", 2001, 40.0, False),
    ):
        scales = np.array([0.5, 1.0, 3.0])
        state = UnifiedNormState(
            scales**2 * np.exp(0.05 * rng.standard_normal((4, 3))),
            rng.standard_normal((4, 3)),
            scales**2 * np.exp(0.05 * rng.standard_normal(3)),
            0.1 * rng.standard_normal(3),
            iteration,
            7,
        )
        x, dy, gain = (
            scale * scales * rng.standard_normal((32, 3)),
            rng.standard_normal((32, 3)),
            rng.standard_normal(3),
        )
        y, grads, forward, backward, t, skipped = one_step(x, gain, state, dy, 10, filtration)
        args, options = (x, gain, np.zeros(3), state), {"warmup": 10, "outlier_filtration": filtration}
        counts = np.array(t), np.array(skipped)
        expected = (y, forward[0], state.backward_buffer, forward[1], state.backward_mean, *counts)
        add("unified_norm", name, args, expected, limit, source, options=options)
        expected = (*grads, dy.sum(axis=0), forward[0], backward[0], forward[1], backward[1], *counts)
        add("unified_norm", name, args, expected, limit, source, options=options, cotangent=dy)

    channels, outputs = 4, 3
    weight, bias = rng.standard_normal((channels, outputs)), rng.standard_normal(outputs)
    gain, norm_bias, square = *rng.standard_normal((2, channels)), rng.random(channels) + 0.1
    # The folded layer applied to the unit vectors and to zero is norm and layer applied to them.
    inputs = torch.cat([torch.zeros(1, channels, dtype=torch.float64), torch.eye(channels, dtype=torch.float64)])
    normal = torch.tensor(gain) * inputs / torch.sqrt(torch.tensor(square) + 1e-5) + torch.tensor(norm_bias)
    values = torch.nn.functional.linear(normal, torch.tensor(weight.T), torch.tensor(bias)).numpy()
    expected = (values[1:] - values[0], values[0])
    source = f"torch {torch.__version__.split('+')[0]}, float64: norm and layer applied to 0 and to the unit vectors"
    add("fold_into_linear", "four channels", (weight, bias, gain, norm_bias, square), expected, limit, source)
    return found
