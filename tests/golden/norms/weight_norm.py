"""Truth for weight normalization: hand calculations, mpmath, PyTorch in float64."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def exact(direction, gain):
    rows = []
    for row, length in zip(direction, gain, strict=True):
        values = [mpmath.mpf(float(v)) for v in row]
        norm = mpmath.sqrt(mpmath.fsum(v * v for v in values))
        rows.append([float(mpmath.mpf(float(length)) * v / norm) for v in values])
    return np.array(rows)


def cases():
    rng = np.random.default_rng(160207868)
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

    direction, gain = np.array([[3.0, 4.0]]), np.array([10.0])
    add("weight_norm", "3-4-5", (direction, gain), np.array([[6.0, 8.0]]), Tolerance(2, "ulp"), "by hand")
    # unit (0.6, 0.8); cotangent (1, 0): along 0.6; (10 / 5) ((1, 0) - 0.6 (0.6, 0.8)).
    add(
        "weight_norm",
        "3-4-5",
        (direction, gain),
        (np.array([[1.28, -0.96]]), np.array([0.6])),
        Tolerance(4, "ulp_of_largest"),
        "by hand",
        cotangent=np.array([[1.0, 0.0]]),
    )
    add(
        "init_weight_norm",
        "two values",
        (np.array([[1.0], [5.0]]),),
        (np.array([0.5]), np.array([-1.5])),
        Tolerance(1, "ulp"),
        "by hand: mean 3, deviation 2",
    )
    add(
        "mean_only_batch_norm",
        "two values",
        (np.array([[1.0], [5.0]]), np.array([10.0])),
        np.array([[8.0], [12.0]]),
        Tolerance(1, "ulp"),
        "by hand",
    )
    for dtype, size in ((np.float32, 1e-30), (np.float32, 1.0), (np.float32, 1e30), (np.float64, 1e-200)):
        direction = (size * rng.standard_normal((3, 11))).astype(dtype)
        gain = rng.standard_normal(3).astype(dtype)
        add(
            "weight_norm",
            f"{np.dtype(dtype).name}, entries near {size:g}",
            (direction, gain),
            exact(direction, gain),
            Tolerance(4, "ulp"),
            "mpmath, 50 digits",
        )
    limit = Tolerance(1e-13, "relative_of_largest")
    for shape, axis in (((4, 3, 2, 2), 0), ((5, 3), 1), ((3, 4), 0)):
        direction, cotangent = rng.standard_normal((2, *shape))
        gain = rng.standard_normal(shape[axis])
        tensors = [torch.tensor(a, requires_grad=True) for a in (direction, gain)]
        view = tuple(-1 if a == axis else 1 for a in range(len(shape)))
        value = torch._weight_norm(tensors[0], tensors[1].reshape(view), axis)
        value.backward(torch.tensor(cotangent))
        common = ("weight_norm", f"shape {shape}, axis {axis}", (direction, gain))
        add(*common, value.detach().numpy(), limit, TORCH, options={"axis": axis})
        add(*common, tuple(t.grad.numpy() for t in tensors), limit, TORCH, options={"axis": axis}, cotangent=cotangent)
    for shape, axes in (((5, 3), (0,)), ((2, 3, 4, 2), (0, 2, 3))):
        x, cotangent = rng.standard_normal((2, *shape))
        bias, mean = rng.standard_normal((2, 3))
        view = tuple(1 if a in axes else 3 for a in range(len(shape)))
        for mode, extra in (("training", ()), ("inference", (mean,))):
            tensors = [torch.tensor(a, requires_grad=True) for a in (x, bias, *extra)]
            centre = tensors[2].reshape(view) if extra else tensors[0].mean(axes, keepdim=True)
            value = tensors[0] - centre + tensors[1].reshape(view)
            value.backward(torch.tensor(cotangent))
            common = ("mean_only_batch_norm", f"{mode}, shape {shape}", (x, bias, *extra))
            add(*common, value.detach().numpy(), limit, TORCH, options={"axes": axes})
            grads = tuple(t.grad.numpy() for t in tensors)
            add(*common, grads, limit, TORCH, options={"axes": axes}, cotangent=cotangent)
        std, mean_of = torch.std_mean(torch.tensor(x), dim=axes, correction=0)
        expected = ((1 / std).numpy(), (-mean_of / std).numpy())
        add("init_weight_norm", f"shape {shape}", (x,), expected, limit, TORCH, options={"axes": axes})
    return found
