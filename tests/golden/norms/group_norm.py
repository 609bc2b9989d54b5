"""Truth for group and instance normalization: a hand calculation, mpmath, PyTorch in float64."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def exact(x, groups, eps):
    rows = []
    for row in x.reshape(len(x) * groups, -1):
        values = [mpmath.mpf(float(v)) for v in row]
        mean = mpmath.fsum(values) / len(values)
        variance = mpmath.fsum((v - mean) ** 2 for v in values) / len(values)
        rows.append([float((v - mean) / mpmath.sqrt(variance + mpmath.mpf(eps))) for v in values])
    return np.array(rows).reshape(x.shape)


def both(function, name, value, tensors, cotangent, args, options):
    """A value case and a cotangent case from one PyTorch graph."""
    value.backward(torch.tensor(cotangent))
    common = {
        "function": f"norms.{function}",
        "name": name,
        "args": args,
        "options": options,
        "tolerance": Tolerance(1e-13, "relative_of_largest"),
        "source": TORCH,
    }
    return [
        GoldenCase(**common, expected=value.detach().numpy()),
        GoldenCase(**common, cotangent=cotangent, expected=tuple(t.grad.numpy() for t in tensors)),
    ]


def cases():
    rng = np.random.default_rng(180308494)
    x = np.array([[[1.0, 3.0], [2.0, 6.0]]])
    hand = np.array([[[-2.0, 0.0], [-1.0, 3.0]]]) / np.sqrt(3.5)
    found = [
        GoldenCase(
            function="norms.standardize_groups",
            name="one group",
            args=(x,),
            options={"groups": 1, "eps": 1e-300},
            expected=hand,
            tolerance=Tolerance(4, "ulp"),
            source="by hand: mean 3, variance 7/2",
        ),
        GoldenCase(
            function="norms.standardize_groups",
            name="two groups",
            args=(x,),
            options={"groups": 2, "eps": 1e-300},
            expected=np.array([[[-1.0, 1.0], [-1.0, 1.0]]]),
            tolerance=Tolerance(2, "ulp"),
            source="by hand: means 2 and 4, deviations 1 and 2",
        ),
        GoldenCase(
            function="norms.instance_norm",
            name="two channels",
            args=(x, np.array([1.0, 2.0]), np.array([0.5, 0.0])),
            options={"eps": 1e-300},
            expected=np.array([[[-0.5, 1.5], [-2.0, 2.0]]]),
            tolerance=Tolerance(2, "ulp"),
            source="by hand: means 2 and 4, deviations 1 and 2",
        ),
    ]
    for offset in (0.0, 1e3, 1e6):
        x = (rng.standard_normal((2, 6, 7)) + offset).astype(np.float32)
        found.append(
            GoldenCase(
                function="norms.standardize_groups",
                name=f"float32, common offset {offset:g}",
                args=(x,),
                options={"groups": 3},
                expected=exact(x, 3, 1e-5),
                tolerance=Tolerance(2, "ulp_of_largest"),
                source="mpmath, 50 digits",
            )
        )
    for shape, groups in (((2, 6), 3), ((2, 6, 5), 2), ((3, 4, 2, 3), 1), ((2, 4, 3, 3), 4), ((0, 4, 2), 2)):
        channels = shape[1]
        x, gain, bias, cotangent = (rng.standard_normal(s) for s in (shape, channels, channels, shape))
        tensors = [torch.tensor(a, requires_grad=True) for a in (x, gain, bias)]
        value = torch.nn.functional.group_norm(tensors[0], groups, tensors[1], tensors[2], eps=1e-3)
        found += both(
            "group_norm",
            f"shape {shape}, {groups} groups",
            value,
            tensors,
            cotangent,
            (x, gain, bias),
            {"groups": groups, "eps": 1e-3},
        )
        if x.size:
            tensor = torch.tensor(x, requires_grad=True)
            value = torch.nn.functional.group_norm(tensor, groups, eps=1e-3)
            options = {"groups": groups, "eps": 1e-3}
            found += both(
                "standardize_groups", f"shape {shape}, {groups} groups", value, [tensor], cotangent, (x,), options
            )
    for shape in ((2, 3, 6), (2, 3, 2, 4)):
        x, gain, bias, cotangent = (rng.standard_normal(s) for s in (shape, 3, 3, shape))
        tensors = [torch.tensor(a, requires_grad=True) for a in (x, gain, bias)]
        value = torch.nn.functional.instance_norm(tensors[0], weight=tensors[1], bias=tensors[2], eps=1e-3)
        found += both("instance_norm", f"shape {shape}", value, tensors, cotangent, (x, gain, bias), {"eps": 1e-3})
    return found
