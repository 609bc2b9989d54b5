"""Truth for calibrated batch statistics: hand calculations, PyTorch in float64, mpmath for the loss."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def torch_norm(x, gain, bias, mean, var, weight, ddof, mixture):
    over = [0, *range(2, x.ndim)]
    mean_t, var_t = x.mean(over), x.var(over, unbiased=bool(ddof))
    mixed = weight * var + (1 - weight) * var_t
    if mixture:
        mixed = mixed + weight * (1 - weight) * (mean - mean_t) ** 2
    view = (-1, *[1] * (x.ndim - 2))
    centre = (weight * mean + (1 - weight) * mean_t).view(view)
    return (x - centre) / torch.sqrt(mixed + 1e-5).view(view) * gain.view(view) + bias.view(view)


def torch_loss(logits, temperature, weighted):
    p = torch.softmax(logits / temperature, 1)
    weight = torch.ones(len(p), dtype=p.dtype)
    if weighted:
        certainty = 1 + torch.exp(-torch.special.entr(p).sum(1)).detach()
        weight = certainty / certainty.mean()
    r = torch.einsum("i,ik,il->kl", weight, p, p)
    return 1 - torch.diagonal(r / r.sum(1, keepdim=True)).mean()


def exact_loss(logits, temperature):
    rows = [[mpmath.exp(mpmath.mpf(float(v)) / mpmath.mpf(temperature)) for v in row] for row in logits]
    p = [[v / mpmath.fsum(row) for v in row] for row in rows]
    certainty = [1 + mpmath.exp(mpmath.fsum(v * mpmath.log(v) for v in row)) for row in p]
    classes = range(logits.shape[1])
    loss = mpmath.mpf(0)
    for k in classes:
        r = [mpmath.fsum(c * row[k] * row[m] for c, row in zip(certainty, p, strict=True)) for m in classes]
        loss += mpmath.fsum(r[m] for m in classes if m != k) / mpmath.fsum(r)
    return np.array(float(loss / len(classes)))


def cases():
    rng = np.random.default_rng(211004065)
    found = []

    def add(function, name, args, expected, source, tolerance, **more):
        found.append(
            GoldenCase(function=f"norms.{function}", name=name, args=args, expected=expected, source=source, tolerance=tolerance, **more)
        )  # fmt: skip

    one, zero = np.ones(1), np.zeros(1)
    hand = (np.array([[2.0], [4.0]]), one, zero, zero, one)
    options = {"source_weight": 0.5, "ddof": 0, "eps": 1e-300}
    few = Tolerance(4, "ulp_of_largest")
    text = "by hand: batch mean 3 and variance 1, mixed mean 3/2"
    add("alpha_batch_norm", "two values", hand, np.array([[0.5], [2.5]]), text, few, options=options)
    add(
        "alpha_batch_norm", "two values", hand,
        (np.array([[0.875], [-0.375]]), np.array([0.5]), np.ones(1), np.array([-0.5]), np.array([-0.125])),
        text, few, options=options, cotangent=np.array([[1.0], [0.0]]),
    )  # fmt: skip
    add(
        "alpha_batch_norm", "two values, mixture", hand, np.array([[0.5], [2.5]]) / np.sqrt(3.25),
        text + ", variance 1 + 9/4", few, options=options | {"moments": "mixture"},
    )  # fmt: skip

    for shape, weight, ddof, mixture in (
        ((7, 3), 0.9, 1, False), ((3, 4, 2, 5), 0.35, 0, False), ((2, 3, 6), 0.6, 1, True), ((4, 2, 3, 3), 0.0, 1, True), ((5, 4), 1.0, 0, False),
    ):  # fmt: skip
        channels = shape[1]
        args = (*(rng.standard_normal(s) for s in (shape, channels, channels, channels)), rng.random(channels) + 0.2)
        tensors = [torch.tensor(a, requires_grad=True) for a in args]
        value = torch_norm(*tensors, weight, ddof, mixture)
        cotangent = rng.standard_normal(shape)
        value.backward(torch.tensor(cotangent))
        opts = {"source_weight": weight, "ddof": ddof, "moments": "mixture" if mixture else "linear"}
        name, tolerance = f"shape {shape}, source weight {weight}", Tolerance(1e-12, "relative_of_largest")
        add("alpha_batch_norm", name, args, value.detach().numpy(), TORCH, tolerance, options=opts)
        grads = tuple(t.grad.numpy() for t in tensors)
        add("alpha_batch_norm", name, args, grads, TORCH, tolerance, options=opts, cotangent=cotangent)

    x = rng.standard_normal((6, 3, 4, 4)) * 2 + 1
    mean, var, gain, bias = rng.standard_normal(3), rng.random(3) + 0.5, rng.standard_normal(3), rng.standard_normal(3)
    t = torch.tensor(x)
    buffers = [0.8 * torch.tensor(s) + 0.2 * m for s, m in ((mean, t.mean((0, 2, 3))), (var, t.var((0, 2, 3))))]
    value = torch.nn.functional.batch_norm(t, *buffers, torch.tensor(gain), torch.tensor(bias), eps=1e-5)
    add(
        "alpha_batch_norm", "buffers of a batch norm mixed", (x, gain, bias, mean, var), value.numpy(),
        TORCH + ", batch_norm in use with mixed buffers", Tolerance(1e-13, "relative_of_largest"), options={"source_weight": 0.8},
    )  # fmt: skip

    add(
        "class_correlation_loss", "no confusion", (np.array([[1e4, 0.0], [0.0, 1e4]]),), np.array(0.0),
        "by hand: the correlation is the identity", Tolerance(),
    )  # fmt: skip
    add(
        "class_correlation_loss", "uniform predictions", (np.zeros((3, 4)),), np.array(0.75),
        "by hand: every entry of the correlation is equal", Tolerance(4, "ulp"),
    )  # fmt: skip
    for scale in (0.5, 4.0, 40.0):
        logits = scale * rng.standard_normal((5, 3))
        add("class_correlation_loss", f"logits of size {scale:g}", (logits,), exact_loss(logits, 2.5), "mpmath, 50 digits", Tolerance(1e-13, "relative"))  # fmt: skip
    logits = np.diag([70.0, 80.0, 90.0])
    add("class_correlation_loss", "nearly no confusion", (logits,), exact_loss(logits, 2.0), "mpmath, 50 digits", Tolerance(1e-13, "relative"), options={"temperature": 2.0})  # fmt: skip
    for size, classes, weighted in ((6, 3, True), (2, 4, True), (8, 5, False)):
        logits = 3 * rng.standard_normal((size, classes))
        tensor = torch.tensor(logits, requires_grad=True)
        torch_loss(tensor, 1.5, weighted).backward(torch.tensor(0.7, dtype=torch.float64))
        add(
            "class_correlation_loss", f"{size} examples, {classes} classes, weighted {weighted}", (logits,), (tensor.grad.numpy(),),
            TORCH, Tolerance(1e-12, "relative_of_largest"),
            options={"temperature": 1.5, "weight_by_entropy": weighted}, cotangent=np.array(0.7),
        )  # fmt: skip
    return found
