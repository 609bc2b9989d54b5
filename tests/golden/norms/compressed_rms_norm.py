"""Truth for RMSNorm and its compressed form: mpmath with 50 digits, PyTorch in float64, the hand example."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
MPMATH = "mpmath, 50 digits"
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def exact_rms(x, eps, implied=False):
    rows = []
    for row in x.reshape(-1, x.shape[-1]):
        values = [mpmath.mpf(float(v)) for v in row]
        full = [*values, -mpmath.fsum(values)] if implied else values
        inv_rms = 1 / mpmath.sqrt(mpmath.fsum(v * v for v in full) / len(full) + mpmath.mpf(eps))
        rows.append([float(v * inv_rms) for v in values])
    return np.array(rows).reshape(x.shape)


def cases():
    rng = np.random.default_rng(230514858)
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

    root = float(mpmath.sqrt(mpmath.mpf(14) / 3))
    for dtype in (np.float32, np.float64):
        label = np.dtype(dtype).name
        tiny = {"eps": 1e-300}
        vector = np.array([1, 2, -3], dtype)
        add(
            "rms_norm",
            f"{label}, 1, 2, -3",
            (vector,),
            np.array([1, 2, -3]) / root,
            Tolerance(2, "ulp"),
            "by hand: mean square 14/3",
            options=tiny,
        )
        add(
            "compressed_rms_norm",
            f"{label}, 1, 2",
            (vector[:2],),
            np.array([1, 2]) / root,
            Tolerance(2, "ulp"),
            "by hand: (5 + 9) / 3",
            options=tiny,
        )
        add(
            "compressed_rms_norm",
            f"{label}, 1, 2",
            (vector[:2],),
            (np.array([1 - 4 / 14, -5 / 14]) / root,),
            Tolerance(4, "ulp_of_largest"),
            "by hand: r (g - <g, x> (x + 3) / 14)",
            options=tiny,
            cotangent=np.array([1, 0], dtype),
        )
        add("compress", f"{label}, 1, 2, -3", (vector,), np.array([1.0, 2.0]), Tolerance(), "by hand")
        add(
            "compress",
            f"{label}, 1, 2, -3",
            (vector,),
            (np.array([5.0, 7.0, 0.0]),),
            Tolerance(),
            "by hand",
            cotangent=np.array([5, 7], dtype),
        )
        add("decompress", f"{label}, 1, 2", (vector[:2],), np.array([1.0, 2.0, -3.0]), Tolerance(), "by hand")
        add(
            "decompress",
            f"{label}, 1, 2",
            (vector[:2],),
            (np.array([-6.0, -4.0]),),
            Tolerance(),
            "by hand",
            cotangent=np.array([5, 7, 11], dtype),
        )
        add("rms_norm", f"{label}, zero", (np.zeros((1, 4), dtype),), np.zeros((1, 4)), Tolerance(), "by hand")
        add(
            "compressed_rms_norm",
            f"{label}, zero",
            (np.zeros((1, 4), dtype),),
            np.zeros((1, 4)),
            Tolerance(),
            "by hand",
        )
        for size in (1, 7, 150):
            for offset in (0, 100):
                x = (rng.standard_normal((2, size)) + offset).astype(dtype)
                name = f"{label}, rows of {size}, offset {offset}"
                add("rms_norm", name, (x,), exact_rms(x, 1e-5), Tolerance(4, "ulp_of_largest"), MPMATH)
                add(
                    "compressed_rms_norm",
                    name,
                    (x,),
                    exact_rms(x, 1e-5, implied=True),
                    Tolerance(4, "ulp_of_largest"),
                    MPMATH,
                )

    for dtype, limit in (
        (np.float32, Tolerance(16 * 2.0**-24, "relative_of_largest")),
        (np.float64, Tolerance(1e-13, "relative_of_largest")),
    ):
        label = np.dtype(dtype).name
        x, g = rng.standard_normal((2, 3, 4, 9)).astype(np.float32)
        gain, bias = rng.standard_normal((2, 9)).astype(np.float32)
        tensors = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in (x, gain, bias)]
        value = torch.nn.functional.rms_norm(tensors[0], (9,), tensors[1], eps=1e-3) + tensors[2]
        value.backward(torch.tensor(g.astype(np.float64)))
        args, options = tuple(a.astype(dtype) for a in (x, gain, bias)), {"eps": 1e-3}
        add("rms_norm", f"{label}, gain and bias", args, value.detach().numpy(), limit, TORCH, options=options)
        add(
            "rms_norm",
            f"{label}, gain and bias",
            args,
            tuple(t.grad.numpy() for t in tensors),
            limit,
            TORCH,
            options=options,
            cotangent=g.astype(dtype),
        )
        tensors = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in (x, g, gain, bias)]
        value = torch.nn.functional.rms_norm(tensors[0] + tensors[1], (9,), tensors[2], eps=1e-3) + tensors[3]
        value.backward(torch.tensor(g.astype(np.float64)))
        add(
            "add_rms_norm",
            f"{label}, gain and bias",
            (args[0], g.astype(dtype), *args[1:]),
            tuple(t.grad.numpy() for t in tensors),
            limit,
            TORCH,
            options=options,
            cotangent=g.astype(dtype),
        )
        tensors = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in (x, gain)]
        torch.nn.functional.rms_norm(tensors[0], (9,), tensors[1], eps=1e-3).backward(
            torch.tensor(g.astype(np.float64))
        )
        add(
            "rms_norm",
            f"{label}, gain",
            args[:2],
            tuple(t.grad.numpy() for t in tensors),
            limit,
            TORCH,
            options=options,
            cotangent=g.astype(dtype),
        )

        tensor = torch.tensor(x.astype(np.float64), requires_grad=True)
        full = torch.cat((tensor, -tensor.sum(-1, keepdim=True)), dim=-1)
        value = torch.nn.functional.rms_norm(full, (10,), eps=1e-3)[..., :-1]
        value.backward(torch.tensor(g.astype(np.float64)))
        source = f"{TORCH}, rms_norm of the decompressed vector"
        add(
            "compressed_rms_norm",
            f"{label}, three axes",
            args[:1],
            value.detach().numpy(),
            limit,
            source,
            options=options,
        )
        add(
            "compressed_rms_norm",
            f"{label}, three axes",
            args[:1],
            (tensor.grad.numpy(),),
            limit,
            source,
            options=options,
            cotangent=g.astype(dtype),
        )

        weight, shift, out = (rng.standard_normal(s).astype(np.float32) for s in ((9, 5), 5, (3, 4, 5)))
        tensors = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in (x, weight, shift)]
        value = tensors[0] @ tensors[1] + tensors[2]
        value = value - value.mean(dim=-1, keepdim=True)
        value.backward(torch.tensor(out.astype(np.float64)))
        args = tuple(a.astype(dtype) for a in (x, weight, shift))
        add("zero_mean_linear", label, args, value.detach().numpy(), limit, TORCH)
        add(
            "zero_mean_linear",
            label,
            args,
            tuple(t.grad.numpy() for t in tensors),
            limit,
            TORCH,
            cotangent=out.astype(dtype),
        )
    # Halves, so that the sum of both branches is exact.
    x, residual = (rng.integers(-9, 10, (3, 7)) / 2 for _ in range(2))
    gain, bias = rng.standard_normal((2, 7))
    add(
        "add_rms_norm",
        "sum of two branches",
        (x, residual, gain, bias),
        gain * exact_rms(x + residual, 1e-3) + bias,
        Tolerance(4, "ulp_of_largest"),
        MPMATH,
        options={"eps": 1e-3},
    )
    return found
