"""Truth for L1 batch normalization: hand calculations, mpmath, PyTorch autograd in float64."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
TORCH = f"the formula under torch {torch.__version__.split('+')[0]} autograd, float64"


def moments(values):
    values = [mpmath.mpf(float(v)) for v in values]
    mean = mpmath.fsum(values) / len(values)
    return mean, mpmath.fsum(abs(v - mean) for v in values) / len(values)


def cases():
    rng = np.random.default_rng(180209769)
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

    x, one, zero = np.array([[1.0], [2.0], [6.0]]), np.ones(1), np.zeros(1)
    add("l1_batch_statistics", "three values", (x,), (np.array([3.0]), np.array([2.0])), Tolerance(1, "ulp"), "by hand")
    add(
        "l1_batch_norm",
        "three values",
        (x, one, zero),
        np.array([[-1.0], [-0.5], [1.5]]),
        Tolerance(2, "ulp"),
        "by hand",
        options={"eps": 1e-300},
    )
    # sign = (-1, -1, 1), its mean -1/3; cotangent (1, 0, 0): mean(g) = 1/3, mean(g x_hat) = -1/3;
    # dx = (g - 1/3 + (sign + 1/3) / 3) / 2.
    add(
        "l1_batch_norm",
        "three values",
        (x, one, zero),
        (np.array([[4.0], [-5.0], [1.0]]) / 18, np.array([-1.0]), np.array([1.0])),
        Tolerance(4, "ulp_of_largest"),
        "by hand",
        options={"eps": 1e-300},
        cotangent=np.array([[1.0], [0.0], [0.0]]),
    )
    add(
        "update_l1_running_statistics",
        "one step",
        (zero, one, np.array([2.0]), np.array([3.0])),
        (np.array([0.5]), np.array([1.5])),
        Tolerance(1, "ulp"),
        "by hand: 3/4 of the old, 1/4 of the batch",
        options={"momentum": 0.25},
    )
    for offset in (0.0, 1e3, 1e6):
        x = (rng.standard_normal((41, 3)) + offset).astype(np.float32)
        pairs = [moments(column) for column in x.T]
        add(
            "l1_batch_statistics",
            f"float32, common offset {offset:g}",
            (x,),
            (np.array([float(m) for m, _ in pairs]), np.array([float(d) for _, d in pairs])),
            Tolerance(2, "ulp"),
            "mpmath, 50 digits",
        )
        factor = mpmath.sqrt(mpmath.pi / 2)
        exact = [
            [float((mpmath.mpf(float(v)) - m) / (factor * d + mpmath.mpf(1e-5))) for v in column]
            for column, (m, d) in zip(x.T, pairs, strict=True)
        ]
        add(
            "l1_batch_norm",
            f"float32, common offset {offset:g}, match std",
            (x, np.ones(3, np.float32), np.zeros(3, np.float32)),
            np.array(exact).T,
            Tolerance(2, "ulp_of_largest"),
            "mpmath, 50 digits",
            options={"match_std": True},
        )
    limit = Tolerance(1e-13, "relative_of_largest")
    for shape, axes, match_std in (((6, 4), (0,), False), ((3, 4, 2, 5), (0, 2, 3), True)):
        x, g = rng.standard_normal((2, *shape))
        gain, bias, mean = rng.standard_normal((3, 4))
        deviation = rng.random(4) + 0.1
        view = tuple(1 if axis in axes else 4 for axis in range(len(shape)))
        options = {"axes": axes, "eps": 1e-3, "match_std": match_std}
        factor = np.sqrt(np.pi / 2) if match_std else 1.0
        for mode in ("training", "inference"):
            tensors = [torch.tensor(a, requires_grad=True) for a in (x, gain, bias, mean, deviation)]
            value_x, *units = tensors
            t_gain, t_bias, t_mean, t_deviation = (unit.reshape(view) for unit in units)
            if mode == "training":
                t_mean = value_x.mean(axes, keepdim=True)
                t_deviation = (value_x - t_mean).abs().mean(axes, keepdim=True)
            value = t_gain * (value_x - t_mean) / (factor * t_deviation + 1e-3) + t_bias
            value.backward(torch.tensor(g))
            used = 3 if mode == "training" else 5
            args = tuple(t.detach().numpy() for t in tensors[:used])
            name = f"{mode}, shape {shape}"
            add("l1_batch_norm", name, args, value.detach().numpy(), limit, TORCH, options=options)
            grads = tuple(t.grad.numpy() for t in tensors[:used])
            add("l1_batch_norm", name, args, grads, limit, TORCH, options=options, cotangent=g)
        tensor = torch.tensor(x, requires_grad=True)
        dmean, ddeviation = rng.standard_normal((2, 4))
        t_mean = tensor.mean(axes, keepdim=True)
        t_deviation = (tensor - t_mean).abs().mean(axes)
        torch.autograd.backward([t_mean.reshape(4), t_deviation], [torch.tensor(dmean), torch.tensor(ddeviation)])
        add(
            "l1_batch_statistics",
            f"shape {shape}",
            (x, axes),
            (tensor.grad.numpy(),),
            limit,
            TORCH,
            cotangent=(dmean, ddeviation),
        )
    return found
