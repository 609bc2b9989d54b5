"""Truth for sigmoid attention: by hand, PyTorch in float64, mpmath."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

FUNCTION = "attention.sigmoid_attention"


def by_hand():
    log2 = np.log(2.0)
    arrays = (np.array([[1.0]]), np.array([[0.0], [log2]]), np.array([[1.0], [2.0]]))
    common = {"function": FUNCTION, "name": "weights 1/3 and 1/2", "args": arrays}
    yield GoldenCase(
        **common,
        expected=np.array([[4 / 3]]),
        source="by hand: logistic function of -log 2 and 0",
        tolerance=Tolerance(4, "ulp"),
    )
    yield GoldenCase(
        **common,
        # The weights' slopes are 2/9 and 1/4, the values 1 and 2.
        expected=(np.array([[log2 / 2]]), np.array([[2 / 9], [1 / 2]]), np.array([[1 / 3], [1 / 2]])),
        source="by hand",
        tolerance=Tolerance(8, "ulp_of_largest"),
        cotangent=np.array([[1.0]]),
    )
    yield GoldenCase(
        FUNCTION,
        "one key, far from it: the weight keeps its digits",
        (np.array([[1.0]]), np.array([[-40.0]]), np.array([[1.0]])),
        np.array([[float(1 / (1 + mpmath.exp(40)))]]),
        "mpmath, 50 digits",
        tolerance=Tolerance(4, "ulp"),
    )
    yield GoldenCase(
        "attention.sigmoid_bias",
        "up to the longest sequences",
        (np.array([1, 2, 3, 1000, 2**40]),),
        np.array([float(-mpmath.log(n)) for n in (1, 2, 3, 1000, 2**40)]),
        "mpmath, 50 digits",
        tolerance=Tolerance(1, "ulp"),
    )
    yield GoldenCase(
        "attention.alibi_bias",
        "four heads",
        (2, 3, 4),
        np.array([[[0, -s, -2 * s], [-s, 0, -s]] for s in (0.25, 0.0625, 0.015625, 0.00390625)]),
        "by hand",
        tolerance=Tolerance(),
    )
    yield GoldenCase(
        "attention.row_mass",
        "two rows",
        (np.array([[0.25, 0.5, 1.0], [0.0, 0.0, 0.125]]),),
        np.array([1.75, 0.125]),
        "by hand",
        tolerance=Tolerance(),
    )


def theirs(tensors, bias, attn_bias, allowed, scale):
    """The definition on PyTorch's own operations."""
    query, key, value = tensors
    scores = scale * (query @ key.transpose(-1, -2)) + bias
    if attn_bias is not None:
        scores = scores + attn_bias
    weights = torch.sigmoid(scores)
    if allowed is not None:
        weights = weights * allowed
    return weights @ value


def cases():
    mpmath.mp.dps = 50
    rng = np.random.default_rng(20240906)
    found = list(by_hand())
    version = f"torch {torch.__version__.split('+')[0]}, float64"
    mask = rng.random((2, 1, 5, 7)) < 0.6
    mask[1, 0, 2] = False
    settings = (
        ((2, 2, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6), {}),
        ((2, 2, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6), {"mask": mask, "scale": 0.25, "bias": "per_row"}),
        ((1, 7, 16), (1, 7, 16), (1, 7, 16), {"causal": True, "bias": "per_row"}),
        ((3, 7, 4), (7, 4), (3, 7, 5), {"causal": True, "bias": 0.5, "attn_bias": (7, 7)}),
        ((3, 6, 4), (3, 9, 4), (3, 9, 5), {"bias": (3, 1, 1), "attn_bias": (9,)}),
    )
    for dtype, limit in ((np.float64, 1e-13), (np.float32, 4e-6)):
        for query, key, value_shape, given in settings if dtype == np.float64 else settings[1:4]:
            options = {n: rng.standard_normal(v).astype(dtype) if isinstance(v, tuple) else v for n, v in given.items()}
            arrays = [rng.standard_normal(s).astype(dtype) for s in (query, key, value_shape)]
            wanted = [*arrays, *(options[n] for n in ("bias", "attn_bias") if isinstance(given.get(n), tuple))]
            leaves = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in wanted]
            rest = iter(leaves[3:])
            allowed = options.get("mask", np.ones((query[-2], key[-2]), bool))
            if options.get("causal"):
                allowed = allowed & np.tri(query[-2], key[-2], dtype=bool)
            bias = options.get("bias", "-log_n")
            if isinstance(given.get("bias"), tuple):
                bias = next(rest)
            elif isinstance(bias, str):
                seen = allowed.sum(axis=-1, keepdims=True) if bias == "per_row" else np.array(key[-2])
                bias = -torch.log(torch.tensor(np.maximum(seen, 1), dtype=torch.float64))
            attn_bias = next(rest) if "attn_bias" in given else None
            scale = options.get("scale", query[-1] ** -0.5)
            value = theirs(leaves[:3], bias, attn_bias, torch.tensor(allowed), scale)
            cotangent = rng.standard_normal(value.shape).astype(dtype)
            value.backward(torch.tensor(cotangent.astype(np.float64)))
            common = {
                "function": FUNCTION,
                "name": f"{np.dtype(dtype)}, query {query}, key {key}, {', '.join(options) or 'no options'}",
                "args": tuple(arrays),
                "options": options,
                "tolerance": Tolerance(limit, "relative_of_largest"),
                "source": version,
            }
            found.append(GoldenCase(**common, expected=value.detach().numpy()))
            found.append(GoldenCase(**common, cotangent=cotangent, expected=tuple(t.grad.numpy() for t in leaves)))
    for dtype, limit in ((np.float64, 1e-14), (np.float32, 2e-6)):
        arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((2, 3, 8), (5, 8))]
        leaves = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in arrays]
        values = [torch.nn.functional.rms_norm(t, (8,), eps=1e-5) for t in leaves]
        cotangent = [rng.standard_normal(a.shape).astype(dtype) for a in arrays]
        torch.autograd.backward(values, [torch.tensor(c.astype(np.float64)) for c in cotangent])
        common = {
            "function": "attention.qk_norm",
            "name": f"{np.dtype(dtype)}, shapes (2, 3, 8) and (5, 8)",
            "args": tuple(arrays),
            "options": {"eps": 1e-5},
            "tolerance": Tolerance(limit, "relative_of_largest"),
            "source": f"{version}, rms_norm",
        }
        found.append(GoldenCase(**common, expected=tuple(v.detach().numpy() for v in values)))
        found.append(GoldenCase(**common, cotangent=cotangent, expected=tuple(t.grad.numpy() for t in leaves)))
    return found
