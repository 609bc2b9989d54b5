"""Truth for batch statistics and batch normalization: PyTorch in float64, mpmath, calculations by hand."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def moments(values):
    values = [mpmath.mpf(float(v)) for v in values]
    mean = mpmath.fsum(values) / len(values)
    return mean, mpmath.fsum((v - mean) ** 2 for v in values) / len(values)


def exact(x, gain, bias, eps):
    """Training output for x of shape (N, C)."""
    columns = []
    for unit, values in enumerate(x.T):
        mean, var = moments(values)
        inv_std = 1 / mpmath.sqrt(var + mpmath.mpf(eps))
        g, b = mpmath.mpf(float(gain[unit])), mpmath.mpf(float(bias[unit]))
        columns.append([float(g * (mpmath.mpf(float(v)) - mean) * inv_std + b) for v in values])
    return np.array(columns).T


def cases():
    rng = np.random.default_rng(150203167)
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

    for dtype in (np.float32, np.float64):
        label = np.dtype(dtype).name
        add(
            "batch_statistics",
            f"{label}, by hand",
            (np.array([[1, 10], [3, 10]], dtype),),
            (np.array([2.0, 10.0]), np.array([1.0, 0.0])),
            Tolerance(1, "ulp"),
            "by hand",
        )
        add(
            "batch_statistics",
            f"{label}, by hand",
            (np.array([[1, 10], [3, 10]], dtype),),
            (np.array([[0.5 - 1.0, 1.0], [0.5 + 1.0, 1.0]]),),
            Tolerance(1, "ulp"),
            "by hand: (dmean + 2 dvar (x - mean)) / 2",
            cotangent=(np.array([1, 2], dtype), np.array([1, 5], dtype)),
        )
        add(
            "update_running_statistics",
            f"{label}, unbiased variance",
            (np.zeros(1, dtype), np.ones(1, dtype), np.array([2], dtype), np.array([3], dtype), 4),
            (np.array([0.5]), np.array([1.75])),
            Tolerance(2, "ulp"),
            "by hand: 3/4 of the old, 1/4 of 2 and of 3 * 4/3",
            options={"momentum": 0.25},
        )
    for offset in (0.0, 1e2, 1e4, 1e6):
        x = (rng.standard_normal((41, 3)) + offset).astype(np.float32)
        gain, bias = (1 + 0.1 * rng.standard_normal(3)).astype(np.float32), rng.standard_normal(3).astype(np.float32)
        pairs = [moments(column) for column in x.T]
        add(
            "batch_statistics",
            f"float32, common offset {offset:g}",
            (x,),
            (np.array([float(m) for m, _ in pairs]), np.array([float(v) for _, v in pairs])),
            Tolerance(2, "ulp"),
            "mpmath, 50 digits",
        )
        add(
            "batch_norm",
            f"float32, common offset {offset:g}",
            (x, gain, bias),
            exact(x, gain, bias, 1e-5),
            Tolerance(4, "ulp_of_largest"),
            "mpmath, 50 digits",
        )
    limit = Tolerance(1e-13, "relative_of_largest")
    for shape, axes in (((6, 4), (0,)), ((3, 4, 2, 5), (0, 2, 3))):
        x, g = rng.standard_normal((2, *shape))
        gain, bias, mean = rng.standard_normal((3, 4))
        var = rng.random(4) + 0.1
        dmean, dvar = rng.standard_normal((2, 4))
        options = {"axes": axes, "eps": 1e-3}
        tensors = [torch.tensor(a, requires_grad=True) for a in (x, gain, bias)]
        value = torch.nn.functional.batch_norm(tensors[0], None, None, *tensors[1:], training=True, eps=1e-3)
        value.backward(torch.tensor(g))
        name = f"training, shape {shape}"
        add("batch_norm", name, (x, gain, bias), value.detach().numpy(), limit, options=options)
        add(
            "batch_norm",
            name,
            (x, gain, bias),
            tuple(t.grad.numpy() for t in tensors),
            limit,
            options=options,
            cotangent=g,
        )

        view = tuple(1 if axis in axes else 4 for axis in range(len(shape)))
        tensors = [torch.tensor(a, requires_grad=True) for a in (x, gain, bias, mean, var)]
        value = torch.nn.functional.batch_norm(
            tensors[0], tensors[3].detach(), tensors[4].detach(), *tensors[1:3], eps=1e-3
        )
        add(
            "batch_norm",
            f"inference, shape {shape}",
            (x, gain, bias, mean, var),
            value.detach().numpy(),
            limit,
            options=options,
        )
        # PyTorch's function has no gradient for the given statistics: the formula is written out.
        t = [tensors[0], *(tensor.reshape(view) for tensor in tensors[1:])]
        formula = t[1] * (t[0] - t[3]) / torch.sqrt(t[4] + 1e-3) + t[2]
        formula.backward(torch.tensor(g))
        add(
            "batch_norm",
            f"inference, shape {shape}",
            (x, gain, bias, mean, var),
            tuple(t.grad.numpy() for t in tensors),
            limit,
            options=options,
            cotangent=g,
        )

        tensor = torch.tensor(x, requires_grad=True)
        var_of, mean_of = torch.var_mean(tensor, dim=axes, correction=0)
        add("batch_statistics", f"shape {shape}", (x, axes), (mean_of.detach().numpy(), var_of.detach().numpy()), limit)
        torch.autograd.backward([mean_of, var_of], [torch.tensor(dmean), torch.tensor(dvar)])
        add("batch_statistics", f"shape {shape}", (x, axes), (tensor.grad.numpy(),), limit, cotangent=(dmean, dvar))

        running = torch.tensor(mean), torch.tensor(var)
        torch.nn.functional.batch_norm(torch.tensor(x), *running, training=True, momentum=0.3)
        count = x.size // 4
        add(
            "update_running_statistics",
            f"one step, shape {shape}",
            (mean, var, mean_of.detach().numpy(), var_of.detach().numpy(), count),
            tuple(r.numpy() for r in running),
            limit,
            options={"momentum": 0.3},
        )
    return found
