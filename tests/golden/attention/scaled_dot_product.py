"""Truth for scaled dot-product attention: closed forms, PyTorch in float64."""

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

FUNCTION = "attention.scaled_dot_product_attention"


def cases():
    rng = np.random.default_rng(20170612)
    log3 = np.log(3.0)
    value = np.array([[0.0, 4.0], [8.0, 0.0]])
    found = [
        GoldenCase(
            FUNCTION,
            "weights 3/4 and 1/4",
            (np.array([[1.0, 0.0]]), np.array([[log3, 5.0], [0.0, 7.0]]), value),
            np.array([[2.0, 3.0]]),
            "by hand: softmax(log 3, 0)",
            tolerance=Tolerance(4, "ulp"),
            options={"scale": 1.0},
        ),
        GoldenCase(
            FUNCTION,
            "weights 3/4 and 1/4",
            (np.array([[1.0, 0.0]]), np.array([[log3, 5.0], [0.0, 7.0]]), value),
            # Both weights move by 3/16 times the difference of what the cotangent sees of their values, -8.
            (np.array([[-1.5 * log3, 3.0]]), np.array([[-1.5, 0.0], [1.5, 0.0]]), np.array([[0.75, 0.0], [0.25, 0.0]])),
            "by hand: the derivative of a softmax of two scores is 3/16",
            tolerance=Tolerance(8, "ulp_of_largest"),
            options={"scale": 1.0},
            cotangent=np.array([[1.0, 0.0]]),
        ),
        GoldenCase(
            FUNCTION,
            "a query that may attend to nothing gives zeros",
            (np.ones((2, 3)), np.ones((2, 3)), value),
            np.array([[0.0, 0.0], [4.0, 2.0]]),
            "by hand",
            tolerance=Tolerance(2, "ulp"),
            options={"mask": np.array([[False, False], [True, True]])},
        ),
    ]
    mask = rng.random((2, 1, 5, 7)) < 0.6
    mask[..., 0] = True  # PyTorch gives NaN for a row without keys
    settings = (
        ((2, 2, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6), {}),
        ((2, 2, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6), {"mask": mask, "scale": 0.25}),
        ((1, 7, 32), (1, 7, 32), (1, 7, 32), {"causal": True}),
        ((1, 4), (1, 4), (1, 3), {}),
    )
    for dtype, limit in ((np.float64, 1e-13), (np.float32, 4e-6)):
        for query, key, value_shape, options in settings:
            arrays = [rng.standard_normal(s).astype(dtype) for s in (query, key, value_shape)]
            tensors = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in arrays]
            names = {"mask": "attn_mask", "causal": "is_causal", "scale": "scale"}
            theirs = {names[n]: torch.tensor(v) if isinstance(v, np.ndarray) else v for n, v in options.items()}
            value = torch.nn.functional.scaled_dot_product_attention(*tensors, **theirs)
            cotangent = rng.standard_normal(value.shape).astype(dtype)
            value.backward(torch.tensor(cotangent.astype(np.float64)))
            common = {
                "function": FUNCTION,
                "name": f"{np.dtype(dtype)}, query {query}, key {key}, {', '.join(options) or 'no options'}",
                "args": tuple(arrays),
                "options": options,
                "tolerance": Tolerance(limit, "relative_of_largest"),
                "source": f"torch {torch.__version__.split('+')[0]}, float64",
            }
            found.append(GoldenCase(**common, expected=value.detach().numpy()))
            found.append(GoldenCase(**common, cotangent=cotangent, expected=tuple(t.grad.numpy() for t in tensors)))
    return found
