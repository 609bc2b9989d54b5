"""Truth for the boosted network: PyTorch's losses and derivatives (second ones too), mpmath, and hand calculations."""

import mpmath
import numpy as np
import torch
from torch.nn import functional

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
# The order of sums, and with it the last bit, must not depend on the machine's cores.
torch.set_num_threads(1)
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
ACTIVATIONS = {"logistic": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


def net(x, weight, bias, output, output_bias, *, activation):
    return ACTIVATIONS[activation](functional.linear(x, weight, bias)) @ output + output_bias


def net_loss(x, residual, weight, bias, output, output_bias, *, activation, l2):
    error = net(x, weight, bias, output, output_bias, activation=activation) - residual
    return (error.square().sum() + l2 * (weight.square().sum() + output.square().sum())) / (2 * len(x))


def sample_losses(target, score, loss):
    if loss == "squared":
        return (target - score) ** 2 / 2
    if loss == "binary":
        return functional.softplus(-2 * target * score)
    return -(target * torch.log_softmax(score, dim=1)).sum(dim=1)


def loss_mean(target, score, *, loss):
    return sample_losses(target, score, loss).mean()


def cases():
    rng = np.random.default_rng(20190926)
    found = []

    def add(function, name, args, expected, source, *, rule=(1e-13, "relative_of_largest"), **more):
        found.append(
            GoldenCase(
                function=f"solvers.{function}", name=name, args=args, expected=expected, source=source,
                tolerance=Tolerance(*rule), **more,
            )
        )  # fmt: skip

    def both(function, formula, name, args, options):
        tensors = [torch.tensor(a, requires_grad=True) for a in args]
        value = formula(*tensors, **options)
        cotangent = np.asarray(rng.standard_normal(tuple(value.shape)))
        value.backward(torch.tensor(cotangent))
        add(function, name, args, value.detach().numpy(), TORCH, options=options)
        add(function, name, args, tuple(t.grad.numpy() for t in tensors), TORCH, options=options, cotangent=cotangent)

    for activation in ACTIVATIONS:
        n, d, j, k = 5, 3, 4, 2
        parameters = tuple(rng.standard_normal(s) for s in ((j, d), (j,), (j, k), (k,)))
        x, residual = rng.standard_normal((n, d)), rng.standard_normal((n, k))
        both("small_net", net, activation, (x, *parameters), {"activation": activation})
        options = {"activation": activation, "l2": 0.1}
        both("small_net_loss", net_loss, activation, (x, residual, *parameters), options)

    targets = {
        "squared": rng.standard_normal(9),
        "binary": np.sign(rng.standard_normal(9)),
        "multiclass": np.eye(4)[rng.integers(4, size=9)],
    }
    for loss, target in targets.items():
        score, h = rng.standard_normal((2, *target.shape))
        both("boosting_loss", loss_mean, loss, (target, score), {"loss": loss})
        at = torch.tensor(score, requires_grad=True)
        slope = torch.autograd.grad(sample_losses(torch.tensor(target), at, loss).sum(), at, create_graph=True)[0]
        residual = -slope.detach().numpy()
        add("pseudo_residual", loss, (target, score, loss), residual, f"{TORCH}: minus the slope of the loss")
        # The diagonal of the Hessian, one entry at a time.
        bend = torch.stack(
            [torch.autograd.grad(s, at, retain_graph=True)[0].flatten()[i] for i, s in enumerate(slope.flatten())]
        )
        step = (residual * h).sum() / (bend.reshape(at.shape).numpy() * h**2).sum()
        expected = np.array(1.0 if loss == "squared" else step)
        add("newton_step", loss, (target, residual, h, loss), expected, f"{TORCH}: second derivatives")

    confident = np.array([30.0, -30.0, 400.0, -400.0])
    digits = [2 / (1 + mpmath.exp(2 * mpmath.mpf(float(s)))) for s in confident]
    add(
        "pseudo_residual", "confident scores", (np.ones(4), confident, "binary"),
        np.array([float(v) for v in digits]), "mpmath, 50 digits", rule=(1e-13, "relative"),
    )  # fmt: skip
    three = np.array([1.0, 1.0, -1.0])
    add(
        "boosting_init",
        "labels 1, 1, -1",
        (three, "binary"),
        np.array(np.log(2) / 2),
        "by hand: half of log 2",
        rule=(2, "ulp"),
    )
    add("boosting_init", "mean", (np.array([1.0, 2.0, 6.0]), "squared"), np.array(3.0), "by hand")
    add("boosting_init", "classes", (np.eye(3), "multiclass"), np.zeros(3), "by hand")
    hand = np.array([2 / 3, 2 / 3, -4 / 3])
    add(
        "newton_step",
        "labels 1, 1, -1",
        (three, hand, hand, "binary"),
        np.array(1.125),
        "by hand: 9/8",
        rule=(4, "ulp"),
    )
    return found
