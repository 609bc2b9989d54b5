"""Truth for EvoNorm: hand calculations, the formulas in mpmath, PyTorch autograd in float64."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.norms import EvoNormState, Expression

mpmath.mp.dps = 50
TORCH = f"the formula under torch {torch.__version__.split('+')[0]} autograd, float64"


def exact_s0(x, groups, eps):
    """S0 with gain 1, bias 0, slope 1."""
    result = []
    for block in x.reshape(len(x) * groups, -1):
        values = [mpmath.mpf(float(v)) for v in block]
        mean = mpmath.fsum(values) / len(values)
        std = mpmath.sqrt(mpmath.fsum((v - mean) ** 2 for v in values) / len(values) + mpmath.mpf(eps))
        result.append([float(v / (1 + mpmath.exp(-v)) / std) for v in values])
    return np.array(result).reshape(x.shape)


def torch_s0(x, gain, bias, slope, groups, eps):
    view = (1, -1, 1, 1)
    var = x.reshape(len(x), groups, -1).var(dim=2, correction=0)
    std = torch.sqrt(var + eps).repeat_interleave(x.shape[1] // groups, dim=1)[..., None, None]
    return gain.view(view) * x * torch.sigmoid(slope.view(view) * x) / std + bias.view(view)


def torch_b0(x, gain, bias, slope, var, eps):
    view = (1, -1, 1, 1)
    batch = x.var(dim=(0, 2, 3), correction=0) if var is None else var
    instance = torch.sqrt(x.var(dim=(2, 3), correction=0, keepdim=True) + eps)
    denominator = torch.maximum(torch.sqrt(batch + eps).view(view), slope.view(view) * x + instance)
    return gain.view(view) * x / denominator + bias.view(view), batch


def cases():
    rng = np.random.default_rng(200402967)
    found = []

    def add(function, name, args, expected, tolerance, source=TORCH, **more):
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

    x, one, zero = np.array([[[[-1.0, 1.0]]]]), np.ones(1), np.zeros(1)
    gate = 1 / (1 + np.exp(-1.0))
    tiny = {"eps": 1e-300}
    add(
        "evonorm_s0",
        "two pixels",
        (x, one, zero, one),
        np.array([[[[gate - 1, gate]]]]),
        Tolerance(4, "ulp"),
        "by hand: mean 0, deviation 1",
        options=tiny,
    )
    start = EvoNormState(np.array([3.0]))
    add(
        "evonorm_b0_train",
        "two pixels",
        (x, one, zero, one, start),
        (np.array([[[[-1.0, 0.5]]]]), np.array([2.5])),
        Tolerance(2, "ulp"),
        "by hand: denominators 1 and 2; 3/4 of 3 and 1/4 of 1",
        options=tiny | {"decay": 0.75},
    )
    add(
        "evonorm_b0_train",
        "two pixels",
        (x, one, zero, one, start),
        (np.array([[[[0.125, 0.125]]]]), np.array([0.5]), np.array([1.0]), np.array([-0.25])),
        Tolerance(4, "ulp"),
        "by hand: (0, 1/2) + (0, -1/4) - (-1, 1)/8",
        options=tiny,
        cotangent=np.array([[[[0.0, 1.0]]]]),
    )
    add(
        "evonorm_b0_eval",
        "two pixels, running variance 16",
        (x, one, zero, one, EvoNormState(np.array([16.0]))),
        np.array([[[[-0.25, 0.25]]]]),
        Tolerance(2, "ulp"),
        "by hand: max(4, 2)",
        options=tiny,
    )
    for channels, groups in ((48, 24), (96, 32), (7, 7), (37, 1)):
        add("default_groups", f"{channels} channels", (channels,), np.array(groups), Tolerance(), "by hand: divisors")
    for dtype in (np.float32, np.float64):
        x = (2 + rng.standard_normal((2, 4, 3, 3))).astype(dtype)
        ones = np.ones(4, dtype)
        add(
            "evonorm_s0",
            f"{np.dtype(dtype).name}, mean 2",
            (x, ones, np.zeros(4, dtype), ones),
            exact_s0(x, 2, 1e-5),
            Tolerance(4, "ulp"),
            "mpmath, 50 digits",
            options={"groups": 2},
        )
    limit = Tolerance(1e-12, "relative_of_largest")
    for shape, groups in (((2, 4, 3, 2), 2), ((3, 6, 1, 2), None), ((2, 4, 2, 2), 1)):
        channels = shape[1]
        x, cotangent = rng.standard_normal((2, *shape))
        arrays = (x, *rng.standard_normal((3, channels)))
        tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        value = torch_s0(*tensors, groups or channels, 1e-3)
        value.backward(torch.tensor(cotangent))
        call = ("evonorm_s0", f"shape {shape}, groups {groups}", arrays)
        options = {"groups": groups, "eps": 1e-3}
        add(*call, value.detach().numpy(), limit, options=options)
        add(*call, tuple(t.grad.numpy() for t in tensors), limit, options=options, cotangent=cotangent)

        state = EvoNormState(rng.random(channels) + 0.2)
        for mode in ("train", "eval"):
            tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
            value, var = torch_b0(*tensors, None if mode == "train" else torch.tensor(state.var), 1e-3)
            value.backward(torch.tensor(cotangent))
            call = (f"evonorm_b0_{mode}", f"shape {shape}", (*arrays, state))
            expected = value.detach().numpy()
            if mode == "train":
                expected = (expected, 0.9 * state.var + 0.1 * var.detach().numpy())
            add(*call, expected, limit, options={"eps": 1e-3})
            add(*call, tuple(t.grad.numpy() for t in tensors), limit, options={"eps": 1e-3}, cotangent=cotangent)
    x, gain, bias, slope, cotangent = (rng.standard_normal(s) for s in ((2, 3, 2, 2), 3, 3, 3, (2, 3, 2, 2)))
    view = (1, -1, 1, 1)
    affine = gain.reshape(view) * x + bias.reshape(view)
    sums = (cotangent * gain.reshape(view), (cotangent * x).sum((0, 2, 3)), cotangent.sum((0, 2, 3)), np.zeros(3))
    call = ("evonorm_s0", "affine only", (x, gain, bias, slope))
    add(*call, affine, limit, "by hand: gain x + bias", options={"nonlinearity": False})
    add(*call, sums, limit, "by hand: gain x + bias", options={"nonlinearity": False}, cotangent=cotangent)
    # max(v0 x + v1, 0) tanh(x), over the channel's deviation: every node differentiated by autograd.
    nodes = (("mul", (0, 2)), ("add", (4, 3)), ("max", (5, 1)), ("tanh", (0,)), ("mul", (6, 7)), ("instance_std", (0,)))
    expression = Expression((*nodes, ("div", (8, 9))), 2)
    x, v0, v1 = rng.standard_normal((2, 3, 2, 4)), *rng.standard_normal((2, 3))
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, v0, v1)]
    gain, shift = (v.reshape(1, 3, 1, 1) for v in leaves[1:])
    spread = (leaves[0].var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    value = torch.clamp(gain * leaves[0] + shift, min=0) * torch.tanh(leaves[0]) / spread
    cotangent = rng.standard_normal(x.shape)
    value.backward(torch.tensor(cotangent))
    for more in (
        {"expected": value.detach().numpy()},
        {"expected": tuple(t.grad.numpy() for t in leaves), "cotangent": cotangent},
    ):
        found.append(
            GoldenCase(
                function="norms.evaluate_expression",
                name="seven nodes",
                args=(expression, x, v0, v1),
                tolerance=Tolerance(1e-12, "relative_of_largest"),
                source=f"torch {torch.__version__.split('+')[0]}, float64",
                **more,
            )
        )
    return found
