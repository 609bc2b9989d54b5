"""Truth for the linear layer: a hand calculation, PyTorch in float64."""

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

SOURCE = f"torch {torch.__version__.split('+')[0]}, float64"


def cases():
    rng = np.random.default_rng(19860906)
    x, weight, bias = np.array([[1.0, 2.0]]), np.array([[1.0, 0.0, 3.0], [0.0, 1.0, 4.0]]), np.array([0.5, 1.0, -1.0])
    found = [
        GoldenCase("nn.linear", "hand calculation", (x, weight, bias), np.array([[1.5, 3.0, 10.0]]), "by hand"),
        GoldenCase(
            "nn.linear",
            "hand calculation",
            (x, weight, bias),
            (np.array([[4.0, 6.0]]), np.array([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0]]), np.array([1.0, 2.0, 1.0])),
            "by hand: dy weight^T, x^T dy, dy",
            cotangent=np.array([[1.0, 2.0, 1.0]]),
        ),
    ]
    for shape, outputs, biased in (
        ((5, 7), 3, True),
        ((2, 3, 16), 33, True),
        ((9,), 4, True),
        ((4, 6), 5, False),
        ((0, 3), 2, True),
    ):
        for dtype, limit in ((np.float64, 1e-14), (np.float32, 1e-6)):
            x, weight, bias = (rng.standard_normal(s).astype(dtype) for s in (shape, (shape[-1], outputs), (outputs,)))
            cotangent = rng.standard_normal((*shape[:-1], outputs)).astype(dtype)
            arrays = [x, weight, bias] if biased else [x, weight]
            tensors = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in arrays]
            value = tensors[0] @ tensors[1]
            if biased:
                value = value + tensors[2]
            value.backward(torch.tensor(cotangent.astype(np.float64)))
            common = {
                "function": "nn.linear",
                "name": f"{np.dtype(dtype)}, shape {shape}, {outputs} outputs{'' if biased else ', no bias'}",
                "args": (*arrays, *(() if biased else (None,))),
                "tolerance": Tolerance(limit, "relative_of_largest"),
                "source": SOURCE,
            }
            found.append(GoldenCase(**common, expected=value.detach().numpy()))
            found.append(GoldenCase(**common, cotangent=cotangent, expected=tuple(t.grad.numpy() for t in tensors)))
    return found
