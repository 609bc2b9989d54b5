"""Truth for un-mixed test-time statistics: hand calculations, and the rule in PyTorch with its own gradients, float64."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.norms import UnMixState

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def torch_rule(x, gain, bias, means, variances, rate, temperature, between):
    flat = x.flatten(2)
    own, own_var = flat.mean(2), flat.var(2, unbiased=False)
    with torch.no_grad():
        similar = torch.nn.functional.cosine_similarity(own[:, None], means[None], dim=-1, eps=1e-12)
        p = torch.softmax(similar / temperature, 1)[:, :, None]
        after = (
            torch.lerp(means, own[:, None], rate * p).mean(0),
            torch.lerp(variances, own_var[:, None], rate * p).mean(0),
        )
    m = torch.lerp(means.expand(len(x), -1, -1), own[:, None].expand(-1, len(means), -1), p.expand(-1, -1, x.shape[1]))
    v = (1 - p) * variances + p * own_var[:, None]
    if between:
        v = v + p * (1 - p) * (own[:, None] - means) ** 2
    mean, var = m.mean(1), v.mean(1) + m.var(1, unbiased=False)
    y = gain[:, None] * (flat - mean[:, :, None]) / torch.sqrt(var + 1e-5)[:, :, None] + bias[:, None]
    return y.reshape(x.shape), after


def cases():
    rng = np.random.default_rng(240108328)
    found = []

    def add(function, name, args, expected, source, tolerance, **more):
        found.append(
            GoldenCase(function=f"norms.{function}", name=name, args=args, expected=expected, source=source, tolerance=tolerance, **more)
        )  # fmt: skip

    one, zero = np.ones(1), np.zeros(1)
    state = UnMixState(np.array([[1.0], [-1.0]]), np.array([[0.5], [0.5]]))
    text = "by hand: cosines 1 and -1, so the first component is the example's; the other's share is 4e-13"
    add(
        "unmix_norm", "two components", (np.array([[[1.0, 3.0]]]), one, zero, state),
        (np.array([[[0.5, 2.5]]]) / np.sqrt(3.0), UnMixState(np.array([[1.1], [-1.0]]), np.array([[0.55], [0.5]]))),
        text, Tolerance(1e-11, "relative_of_largest"), options={"rate": 0.1, "eps": 1e-300},
    )  # fmt: skip
    # One component: p = 1, and the layer is instance norm.
    state = UnMixState(np.array([[7.0]]), np.array([[9.0]]))
    x = np.array([[[1.0, 3.0]], [[-2.0, 4.0]]])
    add(
        "unmix_norm", "one component", (x, one, zero, state),
        (np.array([[[-1.0, 1.0]], [[-1.0, 1.0]]]), UnMixState(np.array([[4.25]]), np.array([[7.0]]))),
        "by hand: means 2 and 1, variances 1 and 9", Tolerance(4, "ulp_of_largest"), options={"rate": 0.5, "eps": 1e-300},
    )  # fmt: skip

    for shape, k, temperature, between in (((3, 4, 2, 3), 16, 0.07, False), ((2, 3, 5), 4, 0.5, True), ((5, 6, 1, 1), 3, 1.0, False), ((2, 2, 3, 3), 1, 0.07, True)):  # fmt: skip
        channels = shape[1]
        arrays = [rng.standard_normal(s) for s in (shape, channels, channels)]
        means, variances = rng.standard_normal((k, channels)), rng.random((k, channels)) + 0.2
        leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
        y, after = torch_rule(*leaves, torch.tensor(means), torch.tensor(variances), 0.2, temperature, between)
        cotangent = rng.standard_normal(shape)
        y.backward(torch.tensor(cotangent))
        options = {"rate": 0.2, "temperature": temperature, "between": between}
        args, name = (*arrays, UnMixState(means, variances)), f"shape {shape}, {k} components, between {between}"
        tolerance = Tolerance(1e-12, "relative_of_largest")
        expected = (y.detach().numpy(), UnMixState(*(t.numpy() for t in after)))
        add("unmix_norm", name, args, expected, TORCH, tolerance, options=options)
        grads = tuple(t.grad.numpy() for t in leaves)
        add("unmix_norm", name, args, grads, TORCH, tolerance, options=options, cotangent=cotangent)

    for momentum, batch in ((0.1, 16), (0.1, 64), (1e-9, 1), (0.9, 200)):
        exact = 1 - (1 - mpmath.mpf(momentum)) ** (mpmath.mpf(batch) / 64)
        add(
            "unmix_rate",
            f"momentum {momentum}, batch {batch}",
            (momentum, batch),
            np.array(float(exact)),
            "mpmath, 50 digits",
            Tolerance(4, "ulp"),
        )
    return found
