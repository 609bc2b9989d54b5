"""Softmax over the largest entries and along other axes than the last, StableMax, cross-entropy: against PyTorch; and
Soft-NMS against ensemble_boxes and loops compiled by numba."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import numpy as np

TOP_K = ((1, 64, 2), (4096, 8, 2), (4096, 64, 2), (4096, 64, 8), (16384, 256, 8), (65536, 64, 8), (64, 50257, 50))
AXES = (((512, 8, 64), 1), ((64, 512, 64), 1), ((16, 1000, 7, 7), 1), ((4096, 1024), 0), ((64, 256, 512), 0))
BOXES = (100, 1000, 5000)
BANKS = ((100, 1000, 1000), (1000, 4096, 5000))
MATRICES = ((64, 128), (4096, 1024), (512, 32768))
OURS = "refnorm_fast"


def races() -> Iterator[dict]:
    for rows, length, top_k in TOP_K:
        yield from topk(rows, length, top_k)
    for shape, axis in AXES:
        yield from along(shape, axis)
    for rows, length in MATRICES:
        yield from stable(rows, length)
        yield from cross_entropy(rows, length)
    for queries, rows, columns in BANKS:
        yield banks(queries, rows, columns)
    if all(importlib.util.find_spec(peer) for peer in ("ensemble_boxes", "numba")):
        for count in BOXES:
            yield soft_nms(count)


def race(method: str, name: str, shape: str, candidates: dict[str, Callable], exact: Callable, moved: int) -> dict:
    """Every candidate returns one array, whose error is measured relative to the largest entry."""

    def check() -> dict[str, float]:
        expected = exact()
        unit = np.abs(expected).max() * np.finfo(np.float32).eps
        return {label: float(np.abs(np.asarray(call()) - expected).max() / unit) for label, call in candidates.items()}

    ours = f"{OURS} out=" if f"{OURS} out=" in candidates else OURS
    return {
        "method": method,
        "name": name,
        "shape": shape,
        "candidates": candidates,
        "ours": ours,
        "bytes": moved,
        "check": check,
        "check_unit": "units of the largest",
    }


def banks(queries: int, rows: int, columns: int) -> dict:
    """Two banks of the same size; PyTorch by its log-sum-exps and two in-place operations."""
    import torch

    import refnorm.softmax as reference
    import refnorm_fast.softmax as fast

    rng = np.random.default_rng(0)
    sim = rng.standard_normal((queries, columns), dtype=np.float32)
    first, second = rng.standard_normal((2, rows, columns), dtype=np.float32)
    query_sharpness, gallery_sharpness = 0.5, 3.0
    tensors = [torch.from_numpy(array) for array in (sim, first, second)]

    def by_torch() -> torch.Tensor:
        x, *pair = tensors
        popularity = sum(
            torch.logsumexp(s * bank, 0) for s, bank in zip((query_sharpness, gallery_sharpness), pair, strict=True)
        )
        return (x * (query_sharpness + gallery_sharpness)).sub_(popularity)

    options = {"query_sharpness": query_sharpness, "gallery_sharpness": gallery_sharpness}
    return race(
        "softmax/dual_bank_norm",
        "dual_bank_norm",
        f"{queries} queries, banks {rows}x{columns}",
        {
            OURS: lambda: fast.dual_bank_norm(sim, first, second, **options),
            "torch": by_torch,
            "NumPy": lambda: reference.dual_bank_norm(sim, first, second, **options),
        },
        lambda: reference.dual_bank_norm(*(array.astype(np.float64) for array in (sim, first, second)), **options),
        4 * columns * (2 * rows + 2 * queries),
    )


def topk(rows: int, length: int, top_k: int) -> Iterator[dict]:
    import torch

    import refnorm.softmax as reference
    import refnorm_fast.softmax as fast

    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, rows, length), dtype=np.float32)
    tensor, up = torch.from_numpy(x), torch.from_numpy(g)
    shape = f"{rows}x{length}, {top_k} of each"

    def dense(given):
        values, at = torch.topk(given, top_k, -1)
        return torch.zeros_like(given).scatter(-1, at, torch.softmax(values, -1))

    def packed():
        return torch.softmax(torch.topk(tensor, top_k, -1)[0], -1)

    forward = {OURS: lambda: fast.topk_softmax(x, top_k=top_k)[0], "torch": lambda: dense(tensor)}
    found = race(
        "softmax/topk_gating",
        "topk_softmax",
        shape,
        forward,
        lambda: reference.topk_softmax(x, top_k=top_k)[0],
        x.nbytes * 2 + x.size,
    )
    forward["torch, packed"] = packed  # without the matrix of weights; not checked
    inner = found["check"]
    found["check"] = lambda: _without(inner, forward, "torch, packed")
    yield found

    def torch_both():
        leaf = tensor.detach().requires_grad_()
        dense(leaf).backward(up)
        return leaf.grad

    both = {OURS: lambda: fast.topk_softmax_vjp(x, top_k=top_k)[1](g)[0], "torch": torch_both}
    yield race(
        "softmax/topk_gating",
        "topk_softmax, value and gradient",
        shape,
        both,
        lambda: reference.topk_softmax_vjp(x, top_k=top_k)[1](g)[0],
        x.nbytes * 4 + x.size,
    )


def _without(check: Callable, candidates: dict[str, Callable], label: str) -> dict[str, float]:
    call = candidates.pop(label)
    try:
        return check()
    finally:
        candidates[label] = call


def along(shape: tuple[int, ...], axis: int) -> Iterator[dict]:
    import torch

    import refnorm.softmax as reference
    import refnorm_fast.softmax as fast

    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, *shape), dtype=np.float32)
    out, tensor, up = np.empty_like(x), torch.from_numpy(x), torch.from_numpy(g)
    tensor_out = torch.empty_like(tensor)
    text = "x".join(map(str, shape)) + f", axis {axis}"
    for name, method in (("softmax", "softmax/two_pass"), ("log_softmax", "softmax/cross_entropy")):
        ours, theirs, vjp = getattr(fast, name), getattr(torch, name), getattr(fast, name + "_vjp")
        candidates = {
            OURS: lambda ours=ours: ours(x, axis=axis),
            f"{OURS} out=": lambda ours=ours: ours(x, axis=axis, out=out),
            "torch": lambda theirs=theirs: theirs(tensor, axis),
        }
        if name == "softmax":
            candidates["torch out="] = lambda: torch.softmax(tensor, axis, out=tensor_out)
        yield race(
            method, name, text, candidates, lambda name=name: getattr(reference, name)(x, axis=axis), x.nbytes * 2
        )

        def torch_both(theirs=theirs):
            leaf = tensor.detach().requires_grad_()
            theirs(leaf, axis).backward(up)
            return leaf.grad

        yield race(
            method,
            f"{name}, value and gradient",
            text,
            {OURS: lambda vjp=vjp: vjp(x, axis=axis)[1](g)[0], "torch": torch_both},
            lambda name=name: getattr(reference, name + "_vjp")(x, axis=axis)[1](g)[0],
            x.nbytes * 5,
        )


def stable(rows: int, length: int) -> Iterator[dict]:
    import torch

    import refnorm.softmax as reference
    import refnorm_fast.softmax as fast

    x = np.random.default_rng(0).standard_normal((rows, length), dtype=np.float32)
    out, tensor = np.empty_like(x), torch.from_numpy(x)

    def torch_stablemax():
        s = torch.where(tensor < 0, 1 / (1 - tensor), tensor + 1)
        return s / s.sum(-1, keepdim=True)

    shape = f"{rows}x{length}"
    candidates = {
        OURS: lambda: fast.stablemax(x),
        f"{OURS} out=": lambda: fast.stablemax(x, out=out),
        "torch": torch_stablemax,
    }
    yield race("softmax/stablemax", "stablemax", shape, candidates, lambda: reference.stablemax(x), x.nbytes * 2)
    logs = {
        OURS: lambda: fast.log_stablemax(x),
        f"{OURS} out=": lambda: fast.log_stablemax(x, out=out),
        "torch": lambda: torch.log(torch_stablemax()),
    }
    yield race("softmax/stablemax", "log_stablemax", shape, logs, lambda: reference.log_stablemax(x), x.nbytes * 2)


def cross_entropy(rows: int, length: int) -> Iterator[dict]:
    import torch

    import refnorm.softmax as reference
    import refnorm_fast.softmax as fast

    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, length), dtype=np.float32)
    target = rng.integers(0, length, rows)
    soft = rng.random((rows, length), dtype=np.float32) / np.float32(length)
    tensor, labels, weights = torch.from_numpy(x), torch.from_numpy(target), torch.from_numpy(soft)
    kinds = {
        "cross_entropy": (fast.cross_entropy_vjp, reference.cross_entropy_vjp, target, labels, {}),
        "cross_entropy, label smoothing": (
            fast.cross_entropy_vjp,
            reference.cross_entropy_vjp,
            target,
            labels,
            {"label_smoothing": 0.1},
        ),
        "soft_cross_entropy": (fast.soft_cross_entropy_vjp, reference.soft_cross_entropy_vjp, soft, weights, {}),
    }
    for name, (ours, exact, given, given_tensor, options) in kinds.items():

        def torch_both(given_tensor=given_tensor, options=options):
            leaf = tensor.detach().requires_grad_()
            # ours returns the gradient of a soft target too
            wanted = given_tensor.detach().requires_grad_(given_tensor.is_floating_point())
            torch.nn.functional.cross_entropy(leaf, wanted, **options).backward()
            return leaf.grad

        candidates = {
            OURS: lambda ours=ours, given=given, options=options: ours(x, given, **options)[1](1.0)[0],
            "torch": torch_both,
        }
        yield race(
            "softmax/cross_entropy",
            f"{name}, value and gradient",
            f"{rows}x{length}",
            candidates,
            lambda exact=exact, given=given, options=options: exact(x, given, **options)[1](1.0)[0],
            x.nbytes * (5 if name.startswith("soft") else 3),
        )


def soft_nms(count: int) -> dict:
    import numba
    from ensemble_boxes.ensemble_boxes_nms import cpu_soft_nms_float

    import refnorm.softmax as reference
    import refnorm_fast.softmax as fast

    rng = np.random.default_rng(0)
    begin = 0.9 * rng.random((count, 2))
    boxes, scores = np.concatenate([begin, begin + 0.1 * rng.random((count, 2))], axis=1), rng.random(count)

    @numba.njit(cache=False)
    def loops(boxes, scores, sigma, threshold):
        n = len(scores)
        alive, left = scores.copy(), np.ones(n, np.bool_)
        kept, lowered, found = np.empty(n, np.int64), np.empty(n), 0
        while True:
            best = -1
            for i in range(n):
                if left[i] and (best < 0 or alive[i] > alive[best]):
                    best = i
            if best < 0:
                return kept[:found], lowered[:found]
            kept[found], lowered[found], left[best] = best, alive[best], False
            found += 1
            x1, y1, x2, y2 = boxes[best]
            for i in range(n):
                if not left[i]:
                    continue
                width = min(x2, boxes[i, 2]) - max(x1, boxes[i, 0])
                height = min(y2, boxes[i, 3]) - max(y1, boxes[i, 1])
                if width <= 0 or height <= 0:
                    continue
                inter = width * height
                own = (boxes[i, 2] - boxes[i, 0]) * (boxes[i, 3] - boxes[i, 1])
                iou = inter / ((x2 - x1) * (y2 - y1) + own - inter)
                alive[i] *= np.exp(-iou * iou / sigma)
                left[i] = alive[i] >= threshold

    def ensemble():
        given = scores.copy()
        kept = cpu_soft_nms_float(boxes.copy(), given, 0.3, 0.5, 1e-3, 2)
        return np.asarray(kept), np.sort(given[given > 1e-3])[::-1]

    def ours():
        kept = fast.soft_nms(boxes, scores)
        return kept.indices, kept.scores

    candidates = {OURS: ours, "ensemble_boxes": ensemble, "numba": lambda: loops(boxes, scores, 0.5, 1e-3)}

    def check() -> dict[str, float]:
        expected = reference.soft_nms(boxes, scores).scores
        return {label: float(np.abs(call()[1] - expected).max()) for label, call in candidates.items()}

    return {
        "method": "softmax/soft_nms",
        "name": "soft_nms",
        "shape": f"{count} boxes",
        "candidates": candidates,
        "ours": OURS,
        "bytes": count * 40,
        "check": check,
        "check_unit": "largest error of a score",
    }
