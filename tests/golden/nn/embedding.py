"""Truth for the embedding lookup: by hand, PyTorch."""

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance


def cases():
    rng = np.random.default_rng(20030301)
    table = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    found = [
        GoldenCase("nn.embedding", "by hand", (np.array([2, 0, 2]), table), table[[2, 0, 2]], "by hand"),
        GoldenCase(
            "nn.embedding",
            "a row that is looked up twice gets both cotangents",
            (np.array([2, 0, 2]), table),
            (np.array([[4.0, 8.0], [0.0, 0.0], [17.0, 34.0]]),),
            "by hand",
            cotangent=np.array([[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]]),
        ),
    ]
    for dtype, limit in ((np.float64, 1e-15), (np.float32, 1e-6)):
        ids, table = rng.integers(7, size=(3, 4)), rng.standard_normal((7, 5)).astype(dtype)
        cotangent = rng.standard_normal((3, 4, 5)).astype(dtype)
        tensor = torch.tensor(table.astype(np.float64), requires_grad=True)
        value = torch.nn.functional.embedding(torch.tensor(ids), tensor)
        value.backward(torch.tensor(cotangent.astype(np.float64)))
        common = {
            "function": "nn.embedding",
            "name": f"{np.dtype(dtype)}, grid of ids",
            "args": (ids, table),
            "source": f"torch {torch.__version__.split('+')[0]}, float64",
        }
        found.append(GoldenCase(**common, expected=value.detach().numpy()))
        found.append(
            GoldenCase(
                **common,
                cotangent=cotangent,
                expected=(tensor.grad.numpy(),),
                tolerance=Tolerance(limit, "relative_of_largest"),
            )
        )
    return found
