"""Truth for layer normalization: the paper's formula in mpmath, a hand calculation, PyTorch in float64."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50


def exact(x, gain, bias, eps):
    rows = []
    for row in x.reshape(-1, x.shape[-1]):
        values = [mpmath.mpf(float(v)) for v in row]
        mean = mpmath.fsum(values) / len(values)
        variance = mpmath.fsum((v - mean) ** 2 for v in values) / len(values)
        inv_std = 1 / mpmath.sqrt(variance + mpmath.mpf(eps))
        rows.append(
            [
                float(mpmath.mpf(float(g)) * (v - mean) * inv_std + mpmath.mpf(float(b)))
                for v, g, b in zip(values, gain, bias, strict=True)
            ]
        )
    return np.array(rows).reshape(x.shape)


def cases():
    rng = np.random.default_rng(20160721)
    found = [
        GoldenCase(
            function="norms.layer_norm",
            name="hand calculation",
            args=(np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4), np.zeros(4)),
            options={"eps": 1e-300},
            expected=np.array([-3, -1, 1, 3]) / np.sqrt(5.0),
            tolerance=Tolerance(4, "ulp"),
            source="by hand: mean 5/2, variance 5/4",
        ),
        GoldenCase(
            function="norms.layer_norm",
            name="hand calculation",
            args=(np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4), np.zeros(4)),
            options={"eps": 1e-300},
            cotangent=np.array([1.0, 0.0, 0.0, 0.0]),
            expected=(
                np.array([3.0, -4.0, -1.0, 2.0]) / np.sqrt(125.0),
                np.array([-3 / np.sqrt(5.0), 0.0, 0.0, 0.0]),
                np.array([1.0, 0.0, 0.0, 0.0]),
            ),
            tolerance=Tolerance(4, "ulp_of_largest"),
            source="by hand: inv_std (1 - 1/4 - x_hat mean(g x_hat)) entry by entry",
        ),
    ]
    x, bias, cotangent = (rng.standard_normal(s) for s in ((5, 1), (1,), (5, 1)))
    found.append(
        GoldenCase(
            function="norms.layer_norm",
            name="one unit: the output is the bias whatever the input",
            args=(x, np.ones(1), bias),
            cotangent=cotangent,
            expected=(np.zeros((5, 1)), np.zeros(1), cotangent.sum(axis=0)),
            tolerance=Tolerance(2, "ulp"),
            source="by hand: a constant function",
        )
    )
    for offset in (0.0, 1e2, 1e4, 1e6):
        x = (rng.standard_normal((3, 67)) + offset).astype(np.float32)
        gain = (1 + 0.1 * rng.standard_normal(67)).astype(np.float32)
        bias = (0.1 * rng.standard_normal(67)).astype(np.float32)
        found.append(
            GoldenCase(
                function="norms.layer_norm",
                name=f"float32, common offset {offset:g}",
                args=(x, gain, bias),
                expected=exact(x, gain, bias, 1e-5),
                tolerance=Tolerance(4, "ulp_of_largest"),
                source="mpmath, 50 digits",
            )
        )
    for shape, axes in (
        ((5, 2), (-1,)),
        ((2, 3, 4, 5), (-1,)),
        ((2, 3, 4, 5), (-3, -2, -1)),
        ((0, 4), (-1,)),
    ):
        units = shape[len(shape) - len(axes) :]
        x, gain, bias, cotangent = (rng.standard_normal(s) for s in (shape, units, units, shape))
        tensors = [torch.tensor(a, requires_grad=True) for a in (x, gain, bias)]
        value = torch.nn.functional.layer_norm(tensors[0], units, tensors[1], tensors[2], eps=1e-3)
        value.backward(torch.tensor(cotangent))
        common = {
            "function": "norms.layer_norm",
            "name": f"shape {shape}, axes {axes}",
            "args": (x, gain, bias),
            "options": {"eps": 1e-3, "axes": axes},
            "tolerance": Tolerance(1e-13, "relative_of_largest"),
            "source": f"torch {torch.__version__.split('+')[0]}, float64",
        }
        found.append(GoldenCase(**common, expected=value.detach().numpy()))
        found.append(GoldenCase(**common, cotangent=cotangent, expected=tuple(t.grad.numpy() for t in tensors)))
    return found + sums(rng)


def sums(rng):
    x, residual, cotangent = rng.standard_normal((3, 4, 19))
    gain, bias = rng.standard_normal((2, 19))
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, residual, gain, bias)]
    value = torch.nn.functional.layer_norm(tensors[0] + tensors[1], (19,), *tensors[2:], eps=1e-3)
    value.backward(torch.tensor(cotangent))
    common = {
        "function": "norms.add_layer_norm",
        "name": "sum of two arrays",
        "args": (x, residual, gain, bias),
        "options": {"eps": 1e-3},
        "tolerance": Tolerance(1e-13, "relative_of_largest"),
        "source": f"torch {torch.__version__.split('+')[0]}, float64",
    }
    gradients = tuple(t.grad.numpy() for t in tensors)
    return [
        GoldenCase(**common, expected=value.detach().numpy()),
        GoldenCase(**common, cotangent=cotangent, expected=gradients),
    ]
