"""Truth for ghost batch normalization: hand calculations, PyTorch and SciPy in float64, mpmath."""

import mpmath
import numpy as np
import scipy.stats
import torch
from scipy.optimize import curve_fit

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.norms import GhostBatchState

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def cases():
    rng = np.random.default_rng(170508741)
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

    x, one, zero = np.array([[1.0], [3.0], [2.0], [6.0]]), np.ones(1), np.zeros(1)
    hand = np.array([[-1.0], [1.0], [-1.0], [1.0]])
    options = {"ghost_size": 2, "eps": 1e-300}
    add(
        "ghost_batch_norm",
        "two pairs",
        (x, one, zero),
        hand,
        Tolerance(2, "ulp"),
        "by hand: means 2, 4; deviations 1, 2",
        options=options,
    )
    add(
        "ghost_batch_norm",
        "one ghost batch",
        (x, one, zero),
        np.array([[-2.0], [0.0], [-1.0], [3.0]]) / np.sqrt(3.5),
        Tolerance(4, "ulp"),
        "by hand: mean 3, variance 7/2",
        options=options | {"ghost_size": 4},
    )
    add(
        "ghost_batch_norm_train",
        "two pairs",
        (x, one, zero, GhostBatchState(zero, one)),
        (hand, np.array([1.25]) * 2, np.array([4.75])),
        Tolerance(4, "ulp"),
        "by hand, momentum 1/2: means 0, 1, 5/2; variances 1, 3/2, (3/2 + 8)/2",
        options=options | {"momentum": 0.5},
    )
    limit = Tolerance(1e-12, "relative_of_largest")
    for shape, size in (((6, 3), 2), ((7, 3, 2), 3), ((8, 2, 3, 2), 4)):
        channels = shape[1]
        x, cotangent = rng.standard_normal((2, *shape))
        arrays = (x, *rng.standard_normal((2, channels)))
        state = GhostBatchState(rng.standard_normal(channels), rng.random(channels) + 0.2)
        tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        running = torch.tensor(state.mean), torch.tensor(state.var)
        value = torch.cat(
            [
                torch.nn.functional.batch_norm(
                    part, *running, tensors[1], tensors[2], training=True, momentum=0.2, eps=1e-3
                )
                for part in tensors[0].split(size)
            ]
        )
        value.backward(torch.tensor(cotangent))
        y, grads = value.detach().numpy(), tuple(t.grad.numpy() for t in tensors)
        source = f"{TORCH}: batch_norm on each ghost batch"
        options = {"ghost_size": size, "eps": 1e-3}
        name = f"shape {shape}, ghost size {size}"
        add("ghost_batch_norm", name, arrays, y, limit, source, options=options)
        add("ghost_batch_norm", name, arrays, grads, limit, source, options=options, cotangent=cotangent)
        options = options | {"momentum": 0.2}
        expected = (y, *(r.numpy() for r in running))
        add("ghost_batch_norm_train", name, (*arrays, state), expected, limit, source, options=options)
        add(
            "ghost_batch_norm_train", name, (*arrays, state), grads, limit, source, options=options, cotangent=cotangent
        )

    add("scale_learning_rate", "root of 16", (0.1, 64, 1024), np.array(0.4), Tolerance(1, "ulp"), "by hand")
    add(
        "scale_learning_rate",
        "linear",
        (0.1, 64, 1024),
        np.array(1.6),
        Tolerance(1, "ulp"),
        "by hand",
        options={"rule": "linear"},
    )
    add(
        "adapt_regime",
        "16 times and rounded up",
        ([81, 122], 64, 1000),
        (np.array(1296), np.array(1952)),
        Tolerance(),
        "by hand",
    )
    grads = [rng.standard_normal((3, 4)), rng.standard_normal(5)]
    for max_norm in (0.5, 100.0):
        norm = mpmath.sqrt(mpmath.fsum(mpmath.mpf(float(v)) ** 2 for g in grads for v in g.ravel()))
        scale = min(mpmath.mpf(1), mpmath.mpf(max_norm) / norm)
        clipped = [np.array([float(mpmath.mpf(float(v)) * scale) for v in g.ravel()]).reshape(g.shape) for g in grads]
        expected = (*clipped, np.array(float(norm)))
        add(
            "clip_by_global_norm",
            f"largest norm {max_norm:g}",
            (grads, max_norm),
            expected,
            Tolerance(4, "ulp"),
            "mpmath, 50 digits",
        )
    a, b = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 5))
    total = mpmath.fsum(
        (mpmath.mpf(float(p)) - mpmath.mpf(float(q))) ** 2
        for p, q in [*zip(a[0].ravel(), a[1].ravel(), strict=True), *zip(*b, strict=True)]
    )
    add(
        "weight_distance",
        "two leaves",
        ([a[0], b[0]], [a[1], b[1]]),
        np.array(float(mpmath.sqrt(total))),
        Tolerance(1e-14, "relative"),
        "mpmath, 50 digits",
    )
    t = np.geomspace(1, 1000, 40)
    d = 1 + 0.7 * np.log(t) + 0.05 * rng.standard_normal(40)
    line = scipy.stats.linregress(np.log(t), d)
    (scale, power), _ = curve_fit(lambda t, a, p: a * t**p, t, d, p0=(1, 0.3), xtol=1e-14, ftol=1e-14)
    rest = ((d - scale * t**power) ** 2).sum() / ((d - d.mean()) ** 2).sum()
    expected = tuple(np.array(float(v)) for v in (line.intercept, line.slope, line.rvalue**2, scale, power, 1 - rest))
    source = f"scipy {scipy.__version__}: linregress, curve_fit"
    add("fit_diffusion", "logarithm with noise", (t, d), expected, Tolerance(1e-6, "relative"), source)
    return found
