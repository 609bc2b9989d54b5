"""Truth for pooling: a hand calculation, PyTorch in float64."""

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

SETTINGS = ((2, {}), ((3, 2), {"stride": 1}), (3, {"stride": 2, "padding": 1}), ((2, 3), {"stride": 3}))


def cases():
    rng = np.random.default_rng(20100621)
    image = np.arange(16.0).reshape(1, 1, 4, 4)
    found = [
        GoldenCase("nn.max_pool2d", "by hand", (image, 2), np.array([[[[5.0, 7.0], [13.0, 15.0]]]]), "by hand"),
        GoldenCase("nn.avg_pool2d", "by hand", (image, 2), np.array([[[[2.5, 4.5], [10.5, 12.5]]]]), "by hand"),
        GoldenCase(
            "nn.max_pool2d",
            "of equal entries the first one gets the cotangent",
            (np.zeros((1, 1, 2, 2)), 2),
            (np.array([[[[3.0, 0.0], [0.0, 0.0]]]]),),
            "by hand",
            cotangent=np.full((1, 1, 1, 1), 3.0),
        ),
    ]
    for dtype, limit in ((np.float64, 1e-14), (np.float32, 1e-6)):
        for size, options in SETTINGS:
            x = rng.standard_normal((2, 3, 7, 8)).astype(dtype)
            for name in ("max_pool2d", "avg_pool2d"):
                tensor = torch.tensor(x.astype(np.float64), requires_grad=True)
                value = getattr(torch.nn.functional, name)(tensor, size, **options)
                cotangent = rng.standard_normal(value.shape).astype(dtype)
                value.backward(torch.tensor(cotangent.astype(np.float64)))
                common = {
                    "function": f"nn.{name}",
                    "name": f"{np.dtype(dtype)}, window {size}, {options or 'no options'}",
                    "args": (x, size),
                    "options": options,
                    "tolerance": Tolerance(limit, "relative_of_largest"),
                    "source": f"torch {torch.__version__.split('+')[0]}, float64",
                }
                found.append(GoldenCase(**common, expected=value.detach().numpy()))
                found.append(GoldenCase(**common, cotangent=cotangent, expected=(tensor.grad.numpy(),)))
    return found
