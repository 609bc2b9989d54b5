"""Truth for the convolution: a hand calculation, PyTorch in float64."""

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

SETTINGS = (
    ((2, 3, 6, 5), (4, 3, 3, 2), {}),
    ((2, 3, 6, 5), (4, 3, 3, 2), {"padding": 1}),
    ((1, 2, 9, 8), (3, 2, 3, 3), {"stride": 2, "padding": (1, 2)}),
    ((2, 4, 7, 7), (5, 4, 1, 1), {"stride": (2, 3)}),
)


def cases():
    rng = np.random.default_rng(19891201)
    image = np.arange(9.0).reshape(1, 1, 3, 3)
    found = [
        GoldenCase(
            "nn.conv2d",
            "sums of 2 x 2 pixels",
            (image, np.ones((1, 1, 2, 2)), np.array([0.5])),
            np.array([[[[8.5, 12.5], [20.5, 24.5]]]]),
            "by hand",
        )
    ]
    for dtype, limit in ((np.float64, 1e-14), (np.float32, 2e-6)):
        for shape, bank, options in SETTINGS:
            arrays = [rng.standard_normal(s).astype(dtype) for s in (shape, bank, bank[:1])]
            tensors = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in arrays]
            value = torch.nn.functional.conv2d(*tensors, **options)
            cotangent = rng.standard_normal(value.shape).astype(dtype)
            value.backward(torch.tensor(cotangent.astype(np.float64)))
            common = {
                "function": "nn.conv2d",
                "name": f"{np.dtype(dtype)}, {shape} by {bank}, {options or 'no options'}",
                "args": tuple(arrays),
                "options": options,
                "tolerance": Tolerance(limit, "relative_of_largest"),
                "source": f"torch {torch.__version__.split('+')[0]}, float64",
            }
            found.append(GoldenCase(**common, expected=value.detach().numpy()))
            found.append(GoldenCase(**common, cotangent=cotangent, expected=tuple(t.grad.numpy() for t in tensors)))
    return found
