"""The same four kernels in C and in Mojo, and PyTorch's: how much the language costs.

The Mojo kernels have one thread; the C kernels run once with as many as the race has, and once with one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

OURS, OURS_SINGLE, MOJO = "refnorm_fast", "refnorm_fast, 1 thread", "Mojo, 1 thread"
METHOD = "kernels/mojo"
ROWS = ((64, 128), (1024, 1024), (512, 32768))
PRODUCTS = ((64, 384, 384), (512, 384, 1536), (1024, 1024, 1024))
LAYERS = ((256, 32, 32), (1024, 64, 64), (8192, 128, 128))


def races() -> Iterator[dict]:
    from refnorm_fast import mojo

    if mojo.find_compiler() is None:
        print('race_mojo: no Mojo compiler; pip install "refnorm[mojo]"')
        return
    for shape in ROWS:
        x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        yield softmax(x)
        yield layer_norm(x)
    for sizes in PRODUCTS:
        yield int8_matmul(*sizes)
    for sizes in LAYERS:
        yield fully_connected(*sizes)


def single(call: Callable) -> Callable:
    from refnorm_fast import set_num_threads

    def on_one_thread():
        set_num_threads(1)
        try:
            return call()
        finally:
            set_num_threads(None)

    return on_one_thread


def race(
    name: str, shape: str, c: Callable, mojo: Callable, peers: dict[str, Callable], exact: Callable, **extra
) -> dict:
    candidates = {OURS: c, OURS_SINGLE: single(c), MOJO: mojo, **peers}

    def check() -> dict[str, float]:
        expected = exact()
        unit = np.spacing(np.abs(expected).max().astype(np.float32)) if expected.dtype.kind == "f" else 1
        return {
            label: float((np.abs(np.asarray(call()) - expected) / unit).max()) for label, call in candidates.items()
        }

    return {
        "method": METHOD,
        "name": f"{name} in C and in Mojo",
        "shape": shape,
        "candidates": candidates,
        "ours": OURS,
        "check": check,
        "check_unit": "ULP of the largest",
        **extra,
    }


def softmax(x) -> dict:
    import torch

    import refnorm.softmax as reference
    import refnorm_fast.softmax as fast
    from refnorm_fast import mojo

    tensor = torch.from_numpy(x)
    return race(
        "softmax",
        f"{x.shape[0]}x{x.shape[1]}",
        lambda: fast.softmax(x),
        lambda: mojo.softmax.softmax(x),
        {"torch": lambda: torch.softmax(tensor, -1)},
        lambda: reference.softmax(x.astype(np.float64)),
        bytes=2 * x.nbytes,
    )


def layer_norm(x) -> dict:
    import torch

    import refnorm.norms as reference
    import refnorm_fast.norms as fast
    from refnorm_fast import mojo

    gain, bias = np.random.default_rng(1).standard_normal((2, x.shape[1]), dtype=np.float32)
    tensors = [torch.from_numpy(a) for a in (x, gain, bias)]
    return race(
        "layer_norm",
        f"{x.shape[0]}x{x.shape[1]}",
        lambda: fast.layer_norm(x, gain, bias),
        lambda: mojo.norms.layer_norm(x, gain, bias),
        {"torch": lambda: torch.nn.functional.layer_norm(tensors[0], x.shape[1:], *tensors[1:])},
        lambda: reference.layer_norm(*(a.astype(np.float64) for a in (x, gain, bias))),
        bytes=2 * x.nbytes,
    )


def int8_matmul(rows: int, depth: int, width: int) -> dict:
    import torch

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast
    from refnorm_fast import mojo

    codes = np.random.default_rng(2).integers(-127, 128, (rows + width, depth)).astype(np.int8)
    a, b = codes[:rows], codes[rows:]
    left, right = torch.from_numpy(a), torch.from_numpy(b)
    return race(
        "int8_matmul",
        f"{rows}x{depth} by {width}x{depth}",
        lambda: fast.int8_matmul(a, b),
        lambda: mojo.quantizers.int8_matmul(a, b),
        {"torch._int_mm": lambda: torch._int_mm(left, right.T)},
        lambda: reference.int8_matmul(a, b),
        ops=2 * rows * depth * width,
    )


def fully_connected(rows: int, length: int, width: int) -> dict:
    import refnorm.poincare as reference
    import refnorm_fast.poincare as fast
    from refnorm_fast import mojo

    rng = np.random.default_rng(3)
    x = rng.standard_normal((rows, length))
    x = (0.7 * x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    weight = (0.1 * rng.standard_normal((length, width))).astype(np.float32)
    bias = (0.1 * rng.standard_normal(width)).astype(np.float32)
    return race(
        "fully_connected",
        f"{rows}x{length} to {width}",
        lambda: fast.fully_connected(x, weight, bias, 1.0),
        lambda: mojo.poincare.fully_connected(x, weight, bias, 1.0),
        {"refnorm (NumPy)": lambda: reference.fully_connected(x, weight, bias, 1.0)},
        lambda: reference.fully_connected(*(a.astype(np.float64) for a in (x, weight, bias)), 1.0),
        ops=2 * rows * length * width,
    )
