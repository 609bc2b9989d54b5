"""Sums of random bases and products with them, against NumPy's Philox and PyTorch's generator, which make the bases first."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

SIZES = (((16, 64), 64), ((16, 768), 256), ((16, 4096), 256))
"""Shape of a basis and the number of bases: factors of rank 16."""


def races() -> Iterator[dict]:
    for shape, n_basis in SIZES:
        yield race("combine", shape, n_basis)
        yield race("project", shape, n_basis)


def race(name: str, shape: tuple[int, int], n_basis: int) -> dict:
    import torch

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast

    rng, size = np.random.default_rng(0), shape[0] * shape[1]
    coefficients, x = rng.standard_normal(n_basis, dtype=np.float32), rng.standard_normal(shape, dtype=np.float32)
    ours, theirs = (module.BasisGenerator(1, shape, n_basis) for module in (fast, reference))
    generator = torch.Generator()

    def of_torch() -> np.ndarray:
        """The same work on other numbers, a chunk of 64 bases at a time as in the reference."""
        generator.manual_seed(1)
        parts = []
        for start in range(0, n_basis, 64):
            rows = torch.rand(min(64, n_basis - start), size, generator=generator).mul_(2).sub_(1).mul_(n_basis**-0.5)
            if name == "combine":
                parts.append(torch.from_numpy(coefficients[start : start + 64]) @ rows)
            else:
                parts.append(rows @ torch.from_numpy(x).reshape(-1))
        return (sum(parts) if name == "combine" else torch.cat(parts)).numpy()

    argument = coefficients if name == "combine" else x
    candidates: dict[str, Callable] = {
        "refnorm_fast": lambda: getattr(ours, name)(argument),
        "PyTorch, other numbers": of_torch,
        "NumPy reference": lambda: getattr(theirs, name)(argument),
    }

    def check() -> dict[str, float]:
        exact = getattr(theirs, name)(argument.astype(np.float64))
        unit = np.spacing(np.abs(exact).max().astype(np.float32))
        return {
            label: float(np.abs(call() - exact).max() / unit)
            for label, call in candidates.items()
            if not label.startswith("PyTorch")
        }

    return {
        "method": "quantizers/random_basis_adapter",
        "name": name,
        "shape": f"{n_basis} bases of {shape[0]}x{shape[1]}",
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": 4 * (size + n_basis),
        "check": check,
        "check_unit": "ULP of the largest",
    }
