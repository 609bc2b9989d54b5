"""Truth for seeded random bases: Philox in Python integers, hand calculations, PyTorch in float64 on explicit bases."""

from dataclasses import make_dataclass

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

TORCH = f"Philox 4x64-10 in Python integers; torch {torch.__version__.split('+')[0]}, float64, on explicit bases"
FIELDS = ("shape", "rank", "seed_a", "seed_b", "coefficients_a", "coefficients_b", "scale", "variant")
Record = make_dataclass("NolaAdapter", FIELDS)
MASK = 2**64 - 1


def philox(key, counter):
    """Ten rounds of Philox 4x64 (Salmon et al., 2011): four words of 64 bits."""
    c = [counter >> (64 * i) & MASK for i in range(4)]
    k = [key & MASK, key >> 64 & MASK]
    for _ in range(10):
        p, q = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [q >> 64 ^ c[1] ^ k[0], q & MASK, p >> 64 ^ c[3] ^ k[1], p & MASK]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
    return c


def bases(key, shape, count, scale):
    """Each basis begins with the counter after i * ceil(size / 4); 24 bits of a word are a number in [-1, 1)."""
    size = int(np.prod(shape))
    per_basis = (size + 3) // 4
    found = []
    for i in range(count):
        words = [w for j in range(per_basis) for w in philox(key, i * per_basis + j + 1)][:size]
        found.append([((w >> 40) - 2**23) / 2**23 for w in words])
    return (np.float32(scale) * np.array(found, np.float32)).astype(np.float64).reshape(count, *shape)


def cases():
    rng = np.random.default_rng(20231004)
    counts = [
        GoldenCase("quantizers.parameter_count", "coefficients", ((64, 32),), np.array(70), "by hand: 40 + 30", options={"n_basis": (40, 30)}),
        GoldenCase("quantizers.parameter_count", "factors", ((64, 32),), np.array(288), "by hand: 3 (64 + 32)", options={"rank": 3}),
    ]  # fmt: skip
    return [*one_number(), *networks(rng), *lora(rng), *counts]


def one_number():
    """Layers of one input and one output, rank and bases of one entry: products of five numbers."""
    a, b = (float(bases(key, (1,), 1, 1.0)[0, 0]) for key in (3, 3 + 2**64))
    found = []
    for beta in (0.0, 0.1):
        record = Record((1, 1), 1, 3, 3 + 2**64, np.ones(1), np.array([beta]), 1.0, "pure")
        common = {
            "function": "quantizers.nola_linear",
            "name": f"one number, second coefficient {beta}",
            "args": (np.full((1, 1), 3.0), np.ones((1, 1)), np.ones(1), np.array([beta]), record),
            "tolerance": Tolerance(4, "ulp_of_largest"),
            "source": "by hand: y = x (w + beta b a), with a and b from Philox in Python integers",
        }
        found += [
            GoldenCase(**common, expected=np.array([[3 * (1 + beta * b * a)]])),
            GoldenCase(
                **common,
                cotangent=np.ones((1, 1)),
                expected=(
                    np.array([[1 + beta * b * a]]),
                    np.zeros((1, 1)),
                    np.array([3 * beta * b * a]),
                    np.array([3 * a * b]),
                ),
            ),
        ]
    return found


def networks(rng):
    found = []
    for variant, (m, n), rank, (count_a, count_b), seed in (
        ("official", (4, 7), 3, (5, 6), 11),
        ("pure", (5, 3), 2, (70, 3), 2**64 - 1),
    ):
        x, weight, cotangent = (rng.standard_normal(s) for s in ((6, n), (m, n), (6, m)))
        first, second = rng.standard_normal(count_a), rng.standard_normal(count_b)
        record = Record((m, n), rank, seed, seed + 2**64, first, second, 0.7, variant)
        basis_a = torch.tensor(bases(record.seed_a, (rank, n), count_a, count_a**-0.5))
        basis_b = torch.tensor(bases(record.seed_b, (m, rank), count_b, count_b**-0.5))
        offset = torch.tensor(bases(seed + 2**65, (rank, n), 1, n**-0.5)[0] * (variant == "official"))
        tensors = [torch.tensor(array, requires_grad=True) for array in (x, weight, first, second)]
        a = offset + torch.einsum("i,irn->rn", tensors[2], basis_a)
        b = torch.einsum("j,jmr->mr", tensors[3], basis_b)
        y = tensors[0] @ tensors[1].T + 0.7 * tensors[0] @ a.T @ b.T
        y.backward(torch.tensor(cotangent))
        dx, dweight, dfirst, dsecond = (tensor.grad.numpy() for tensor in tensors)
        change = (0.7 * b @ a).detach().numpy()
        common = {"tolerance": Tolerance(1e-13, "relative_of_largest"), "source": TORCH}
        linear = common | {"function": "quantizers.nola_linear", "args": (x, weight, first, second, record)}
        found += [
            GoldenCase(**linear, name=variant, expected=y.detach().numpy()),
            GoldenCase(
                **linear,
                name=f"{variant}, frozen weight",
                cotangent=cotangent,
                expected=(dx, np.zeros_like(weight), dfirst, dsecond),
            ),
            GoldenCase(
                **linear,
                name=f"{variant}, trained weight",
                cotangent=cotangent,
                options={"train_weight": True},
                expected=(dx, dweight, dfirst, dsecond),
            ),
            GoldenCase(**common, function="quantizers.nola_delta", name=variant, args=(record,), expected=change),
            GoldenCase(
                **common,
                function="quantizers.nola_merge",
                name=variant,
                args=(weight, record),
                expected=weight + change,
            ),
        ]
    return found


def lora(rng):
    arrays = [rng.standard_normal(s) for s in ((2, 3, 5), (4, 5), (2, 5), (4, 2))]
    cotangent = rng.standard_normal((2, 3, 4))
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    x, weight, a, b = tensors
    y = x @ weight.T + 0.3 * x @ a.T @ b.T
    y.backward(torch.tensor(cotangent))
    common = {
        "function": "quantizers.lora_linear",
        "name": "rank 2, two axes of examples",
        "args": tuple(arrays),
        "tolerance": Tolerance(1e-13, "relative_of_largest"),
        "source": f"torch {torch.__version__.split('+')[0]}, float64",
    }
    return [
        GoldenCase(**common, options={"scale": 0.3}, expected=y.detach().numpy()),
        GoldenCase(
            **common,
            options={"scale": 0.3, "train_weight": True},
            cotangent=cotangent,
            expected=tuple(tensor.grad.numpy() for tensor in tensors),
        ),
    ]
