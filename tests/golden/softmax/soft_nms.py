"""Truth for Soft-NMS: hand calculations, the package ensemble-boxes, PyTorch autograd in float64."""

import importlib.metadata
import sys
from types import ModuleType

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

# Both are imported at the top of ensemble_boxes for other functions; soft-NMS itself is plain NumPy.
stubs = []
for missing in ("numba", "pandas"):
    try:
        __import__(missing)
    except ImportError:
        stubs.append(missing)
        sys.modules[missing] = ModuleType(missing)
        sys.modules[missing].jit = lambda *_, **__: lambda function: function
from ensemble_boxes.ensemble_boxes_nms import cpu_soft_nms_float  # noqa: E402

for stub in stubs:
    # scikit-learn, which other makers use, would take it for the package.
    del sys.modules[stub]

mpmath.mp.dps = 50
ENSEMBLE = f"ensemble-boxes {importlib.metadata.version('ensemble-boxes')}"
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def torch_iou(a, b, offset):
    """IoU of two boxes as tensors of four entries."""
    width = torch.clamp(torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0]) + offset, min=0)
    height = torch.clamp(torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1]) + offset, min=0)
    area_a, area_b = ((c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b))
    return width * height / (area_a + area_b - width * height)


def torch_soft_nms(boxes, scores, factor, threshold, offset):
    """The algorithm on lists of scalars, every step recorded by autograd."""
    left, order, out = {i: scores[i] for i in range(len(scores))}, [], []
    while left:
        best = max(left, key=lambda i: left[i].item())
        order.append(best)
        out.append(left.pop(best))
        left = {i: s * factor(torch_iou(boxes[best], boxes[i], offset)) for i, s in left.items()}
        left = {i: s for i, s in left.items() if s.item() >= threshold}
    return np.array(order), torch.stack(out)


FACTORS = {
    "gaussian": lambda iou: torch.exp(-iou * iou / 0.5),
    "linear": lambda iou: 1 - iou if iou.item() > 0.3 else torch.ones_like(iou),
    "hard": lambda iou: torch.zeros_like(iou) if iou.item() > 0.3 else torch.ones_like(iou),
}


def cases():
    rng = np.random.default_rng(1704)
    found = []

    def add(function, name, args, expected, tolerance, source, **more):
        found.append(
            GoldenCase(
                function=f"softmax.{function}", name=name, args=args, expected=expected, tolerance=tolerance,
                source=source, **more,
            )
        )  # fmt: skip

    boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]])
    scores = np.array([0.9, 0.8, 0.7])
    half = np.array([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]])
    add("box_iou", "hand calculation", (boxes, boxes), half, Tolerance(), "by hand")
    pixels = np.array([[0.0, 0, 9, 9], [0, 0, 9, 4], [9, 9, 18, 18]])
    add(
        "box_iou", "inclusive pixels", (pixels[:1], pixels[1:]), np.array([[0.5, 1 / 199]]), Tolerance(1, "ulp"),
        "by hand: 10 x 10 pixels, 10 x 5 inside, one shared corner pixel", options={"offset": 1.0},
    )  # fmt: skip
    overlaps = np.array([0, 0.1, 0.3, 0.30001, 0.5, 1.0])
    for dtype in (np.float32, np.float64):
        label, given = np.dtype(dtype).name, overlaps.astype(dtype)
        exact = [float(mpmath.exp(-(mpmath.mpf(float(v)) ** 2) / mpmath.mpf(0.5))) for v in given]
        add("decay", f"{label}, gaussian", (given,), np.array(exact), Tolerance(2, "ulp"), "mpmath, 50 digits")
    add(
        "decay",
        "linear",
        (overlaps,),
        np.array([1, 1, 1, 0.69999, 0.5, 0]),
        Tolerance(1, "ulp"),
        "by hand",
        options={"method": "linear"},
    )
    add(
        "decay", "hard", (overlaps,), np.array([1.0, 1, 1, 0, 0, 0]), Tolerance(), "by hand", options={"method": "hard"}
    )
    tail = float(mpmath.mpf("0.8") * mpmath.exp(mpmath.mpf("-0.5")))
    for method, indices, out in (
        ("gaussian", [0, 2, 1], [0.9, 0.7, tail]),
        ("linear", [0, 2, 1], [0.9, 0.7, 0.4]),
        ("hard", [0, 2], [0.9, 0.7]),
    ):
        add(
            "soft_nms", f"hand calculation, {method}", (boxes, scores), (np.array(indices), np.array(out)),
            Tolerance(2, "ulp"), "by hand", options={"method": method},
        )  # fmt: skip
    weak = np.array([0.9, 0.8, 1e-4])
    add(
        "soft_nms", "a weak box that overlaps nothing, pruned", (boxes, weak), (np.array([0, 1]), np.array([0.9, tail])),
        Tolerance(2, "ulp"), "by hand",
    )  # fmt: skip
    add(
        "soft_nms", "a weak box that overlaps nothing, kept", (boxes, weak), (np.array([0, 1, 2]), np.array([0.9, tail, 1e-4])),
        Tolerance(2, "ulp"), "by hand", options={"prune": "overlap"},
    )  # fmt: skip
    add(
        "soft_nms", "labels keep the classes apart", (boxes, scores), (np.array([0, 1, 2]), scores), Tolerance(),
        "by hand", options={"labels": np.array([0, 1, 0])},
    )  # fmt: skip

    for method, number in (("linear", 1), ("gaussian", 2)):
        for n in (10, 40):
            corner = rng.uniform(0, 0.6, (n, 2))
            some = np.concatenate([corner, corner + rng.uniform(0.1, 0.4, (n, 2))], axis=1)
            given = rng.uniform(0.1, 1, n)
            after = given.copy()
            order = cpu_soft_nms_float(some.copy(), after, 0.3, 0.5, 0.0, number)
            add(
                "soft_nms", f"{n} boxes, {method}", (some, given), (order, after), Tolerance(1e-12, "relative"),
                ENSEMBLE, options={"method": method, "score_threshold": 0.0},
            )  # fmt: skip
    a, b, g = some[:4], some[4:9], rng.standard_normal((4, 5))
    for offset in (0.0, 1.0):
        ta, tb = (torch.tensor(v, requires_grad=True) for v in (a, b))
        value = torch.stack([torch.stack([torch_iou(p, q, offset) for q in tb]) for p in ta])
        value.backward(torch.tensor(g))
        common = {"options": {"offset": offset}}
        add(
            "box_iou",
            f"offset {offset:g}",
            (a, b),
            value.detach().numpy(),
            Tolerance(1e-14, "relative"),
            TORCH,
            **common,
        )
        add(
            "box_iou", f"offset {offset:g}", (a, b), (ta.grad.numpy(), tb.grad.numpy()),
            Tolerance(1e-13, "relative_of_largest"), TORCH, cotangent=g, **common,
        )  # fmt: skip
    for method, factor in FACTORS.items():
        for offset in (0.0, 1.0):
            n = 12
            corner = rng.uniform(0, 8, (n, 2))
            some = np.concatenate([corner, corner + rng.uniform(2, 6, (n, 2))], axis=1)
            given = rng.permutation(n) / n * 0.8 + 0.1
            tb, ts = (torch.tensor(v, requires_grad=True) for v in (some, given))
            order, out = torch_soft_nms(tb, ts, factor, 0.05, offset)
            g = rng.standard_normal(len(order))
            out.backward(torch.tensor(g))
            options = {"method": method, "offset": offset, "score_threshold": 0.05}
            name = f"12 boxes, {method}, offset {offset:g}"
            add(
                "soft_nms",
                name,
                (some, given),
                (order, out.detach().numpy()),
                Tolerance(1e-13, "relative"),
                TORCH,
                options=options,
            )
            grads = tuple(np.zeros(v.shape) if t.grad is None else t.grad.numpy() for t, v in ((tb, some), (ts, given)))
            add(
                "soft_nms",
                name,
                (some, given),
                grads,
                Tolerance(1e-12, "relative_of_largest"),
                TORCH,
                options=options,
                cotangent=g,
            )
    inner = np.array([0.1, 0.29, 0.31, 0.9])
    slope = [float(-4 * mpmath.mpf(v) * mpmath.exp(-2 * mpmath.mpf(v) ** 2)) for v in inner.tolist()]
    for method, expected in (("gaussian", slope), ("linear", [0.0, 0, -1, -1]), ("hard", [0.0, 0, 0, 0])):
        add(
            "decay", f"slope, {method}", (inner,), (np.array(expected),), Tolerance(4, "ulp"),
            "mpmath, 50 digits" if method == "gaussian" else "by hand", options={"method": method}, cotangent=np.ones(4),
        )  # fmt: skip
    return found
