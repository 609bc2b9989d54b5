"""Truth for gradient noise: the schedule in mpmath and by hand, clipping in rationals and by PyTorch's autograd."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50


def exact_clip(leaves, max_norm):
    values = [[mpmath.mpf(float(v)) for v in leaf.ravel()] for leaf in leaves]
    norm = mpmath.sqrt(mpmath.fsum(v * v for leaf in values for v in leaf))
    scale = min(mpmath.mpf(1), mpmath.mpf(max_norm) / norm)
    clipped = [
        np.array([float(scale * v) for v in row]).reshape(leaf.shape) for row, leaf in zip(values, leaves, strict=True)
    ]
    return clipped, np.array(float(norm))


def cases():
    rng = np.random.default_rng(20151121)
    found = []
    for step, variance in ((0, 0.3), (1, 0.3), (99, 0.3), (9, 1.0), (12345, 0.01)):
        truth = mpmath.sqrt(mpmath.mpf(variance) / mpmath.mpf(1 + step) ** mpmath.mpf(0.55))
        found.append(
            GoldenCase(
                function="solvers.noise_std",
                name=f"step {step}, variance {variance}",
                args=(step,),
                options={"variance": variance},
                expected=np.array(float(truth)),
                tolerance=Tolerance(3, "ulp"),
                source="mpmath, 50 digits",
            )
        )
    found += [
        GoldenCase(
            function="solvers.noise_std",
            name="decay 1",
            args=(3,),
            options={"variance": 1.0, "decay": 1.0},
            expected=np.array(0.5),
            tolerance=Tolerance(1, "ulp"),
            source="by hand: sqrt(1/4)",
        ),
        GoldenCase(
            function="solvers.clip_by_global_norm",
            name="3, 4, 5",
            args=([np.array([3.0]), np.array([[4.0]])], 1.0),
            expected=([np.array([0.6]), np.array([[0.8]])], np.array(5.0)),
            tolerance=Tolerance(2, "ulp"),
            source="by hand: a right triangle",
        ),
    ]
    for dtype, max_norm in ((np.float64, 1.5), (np.float64, 1e3), (np.float32, 0.25)):
        leaves = [rng.standard_normal(shape).astype(dtype) for shape in ((3, 4), (5,))]
        found.append(
            GoldenCase(
                function="solvers.clip_by_global_norm",
                name=f"two arrays, bound {max_norm:g}, {np.dtype(dtype).name}",
                args=(leaves, max_norm),
                expected=exact_clip(leaves, max_norm),
                tolerance=Tolerance(4, "ulp"),
                source="mpmath, 50 digits",
            )
        )
    for max_norm in (1.5, 1e3):
        leaves = [rng.standard_normal(shape) for shape in ((3, 4), (5,))]
        cotangent = ([rng.standard_normal(leaf.shape) for leaf in leaves], np.array(rng.standard_normal()))
        tensors = [torch.tensor(leaf, requires_grad=True) for leaf in leaves]
        norm = torch.sqrt(sum((t * t).sum() for t in tensors))
        scale = torch.clamp(max_norm / norm, max=1.0)
        products = [(scale * t * torch.tensor(dy)).sum() for t, dy in zip(tensors, cotangent[0], strict=True)]
        (sum(products) + norm * float(cotangent[1])).backward()
        found.append(
            GoldenCase(
                function="solvers.clip_by_global_norm",
                name=f"cotangents, bound {max_norm:g}",
                args=(leaves, max_norm),
                cotangent=cotangent,
                expected=([t.grad.numpy() for t in tensors],),
                tolerance=Tolerance(1e-14, "relative_of_largest"),
                source=f"torch {torch.__version__.split('+')[0]} autograd, float64",
            )
        )
    return found
