"""Truth for training in 16 bits: hand calculations, mpmath, ml_dtypes, and PyTorch's float16, bfloat16 and float64."""

from dataclasses import make_dataclass

import ml_dtypes
import mpmath
import numpy as np
import torch
from torch.nn import functional

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
VERSION = f"torch {torch.__version__.split('+')[0]}"
Precision = make_dataclass("Precision", ["storage", "product", "accumulate"])
Bfloat16Weight = make_dataclass("Bfloat16Weight", ["bits"])
EXACT = Precision("float64", "float64", "float64")
CLOSE = Tolerance(1e-13, "relative_of_largest")
TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def cases():
    rng = np.random.default_rng(230519167)
    found = [*by_hand(), *rounding(rng), *products(rng), *layers(rng), *losses_and_steps(rng)]
    return [*found, *transposes(), *stored_weights(rng)]


def by_hand():
    source = "by hand"
    x, ones = np.array([[[[1.0, 2.0], [3.0, 4.0]]]]), np.ones((1, 1, 2, 2))
    many = np.ones((1, 4096))
    return [
        GoldenCase(
            "quantizers.round_float16", "by hand", (np.array([0.1, 2049.0, 2051.0, 65519.0, 65520.0, 2.0**-25]),),
            np.array([0.0999755859375, 2048.0, 2052.0, 65504.0, np.inf, 0.0]), source,
        ),
        GoldenCase(
            "quantizers.round_bfloat16", "by hand", (np.array([1.01, 1 + 2.0**-8 + 2.0**-40, 257.0]),),
            np.array([1.0078125, 1.0078125, 256.0]), source,
        ),
        GoldenCase(
            "quantizers.matmul_lowp", "5 + ((1 + 3) + (2 + 4))", (np.arange(1.0, 6)[None], np.ones((5, 1))),
            np.array([[15.0]]), source, options={"order": "lanes"},
        ),
        *(
            GoldenCase(
                "quantizers.matmul_lowp", f"4096 ones, {form}, {order}", (many, many.T), np.array([[total]]), source,
                options={"order": order, "precision": Precision(form, form, form)},
            )
            for form, order, total in (
                ("float16", "sequential", 2048.0), ("float16", "lanes", 4096.0), ("float16", "pairwise", 4096.0),
                ("bfloat16", "sequential", 256.0), ("bfloat16", "lanes", 512.0),
            )
        ),
        GoldenCase("quantizers.conv2d_lowp", "1 + 2 + 3 + 4", (x, ones), np.array([[[[10.0]]]]), source),
        GoldenCase(
            "quantizers.conv2d_lowp", "1 + 2 + 3 + 4", (x, ones), cotangent=np.ones((1, 1, 1, 1)),
            expected=(ones, x), source=source,
        ),
        *(
            GoldenCase(
                "quantizers.dot_error_bound", f"{terms} terms, {order}", (terms, 2.0**-11, order),
                np.array(float(mpmath.mpf(n) / (2048 - n))), "mpmath, 50 digits: n / (2048 - n)", Tolerance(2, "ulp"),
            )
            for terms, order, n in ((64, "sequential", 64), (257, "lanes", 130), (1000, "pairwise", 11))
        ),
    ]  # fmt: skip


def rounding(rng):
    x = np.ldexp(rng.standard_normal(100), rng.integers(-30, 18, 100))
    half = [rounded(v, 11, -14) for v in x]
    wide = np.ldexp(rng.standard_normal(100), rng.integers(-140, 126, 100))
    single = np.ldexp(rng.standard_normal(100), rng.integers(-145, 128, 100)).astype(np.float32)
    return [
        GoldenCase(
            "quantizers.round_float16", "all exponents", (x,),
            np.where(np.abs(half) > 65504, np.copysign(np.inf, half), half), "mpmath, 50 digits",
        ),
        GoldenCase(
            "quantizers.round_bfloat16", "float64, all exponents", (wide,),
            np.array([rounded(v, 8, -126) for v in wide]), "mpmath, 50 digits",
        ),
        GoldenCase(
            "quantizers.round_bfloat16", "float32, all exponents", (single,),
            single.astype(ml_dtypes.bfloat16).astype(np.float32), f"ml_dtypes {ml_dtypes.__version__}",
        ),
    ]  # fmt: skip


def rounded(value, digits, lowest):
    exponent = max(int(mpmath.floor(mpmath.log(abs(mpmath.mpf(float(value))), 2))), lowest) - digits + 1
    unit = mpmath.mpf(2) ** exponent
    return float(mpmath.nint(mpmath.mpf(float(value)) / unit) * unit)


def running(a, b, ks):
    total = torch.zeros((len(a), b.shape[1]), dtype=a.dtype)
    for k in ks:
        total = total + a[:, k, None] * b[k]
    return total


def product(a, b, order):
    """The sum in PyTorch's own 16-bit additions and multiplications, each rounded by itself."""
    terms = len(b)
    if order == "sequential":
        return running(a, b, range(terms))
    total = running(a, b, range(0, terms - terms % 2, 2)) + running(a, b, range(1, terms, 2))
    return total if terms % 2 == 0 else a[:, -1, None] * b[-1] + total


def numpy64(tensor):
    return tensor.detach().to(torch.float64).numpy()


def products(rng):
    found = []
    for form, kind in TORCH.items():
        for order, terms in (("sequential", 33), ("lanes", 33), ("lanes", 40)):
            a, b = rng.standard_normal((4, terms)), rng.standard_normal((terms, 3))
            expected = product(torch.tensor(a).to(kind), torch.tensor(b).to(kind), order)
            found.append(
                GoldenCase(
                    "quantizers.matmul_lowp", f"{form}, {order}, {terms} terms", (a, b), numpy64(expected),
                    f"{VERSION}, {form} arithmetic", options={"order": order, "precision": Precision(form, form, form)},
                )
            )  # fmt: skip
    x, weight, dy = (torch.tensor(rng.standard_normal(s)).half() for s in ((6, 9), (4, 9), (6, 4)))
    found.append(
        GoldenCase(
            "quantizers.linear_lowp", "float16 everywhere", (numpy64(x), numpy64(weight)), cotangent=numpy64(dy),
            expected=(numpy64(product(dy, weight, "lanes")), numpy64(product(dy.T, x, "sequential"))),
            source=f"{VERSION}, float16 arithmetic",
        )
    )  # fmt: skip
    x, weight = (torch.tensor(rng.standard_normal(s)).half() for s in ((2, 2, 5, 5), (3, 2, 3, 3)))
    rows = functional.unfold(x.float(), 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 18).half()
    y = product(rows, weight.reshape(3, -1).T, "lanes").reshape(2, 3, 3, 3).permute(0, 3, 1, 2)
    found.append(
        GoldenCase(
            "quantizers.conv2d_lowp", "float16 everywhere", (numpy64(x), numpy64(weight)), numpy64(y),
            f"{VERSION}, float16 arithmetic", options={"stride": 2, "padding": 1},
        )
    )  # fmt: skip
    return found


def stored_weights(rng):
    """Bits by ml_dtypes; layers of whole numbers, whose sums are exact, rounded by PyTorch."""
    weight = np.concatenate([rng.standard_normal((30, 4)), [[1e-40, -np.inf, 1 + 2.0**-8, 0.0]]])
    bits = np.ascontiguousarray(weight.astype(ml_dtypes.bfloat16).T).view(np.uint16)
    found = [
        GoldenCase(
            "quantizers.round_weight_bfloat16", f"{np.dtype(dtype)}", (weight.astype(dtype),), (bits,), "ml_dtypes"
        )
        for dtype in (np.float64, np.float32)
    ]
    for dtype in (np.float64, np.float32):
        x, weight = rng.integers(-9, 10, (2, 3, 40)).astype(dtype), rng.integers(-9, 10, (40, 35)).astype(dtype)
        dy, bias = rng.integers(-9, 10, (2, 3, 35)).astype(dtype), (100 * rng.standard_normal(35)).astype(dtype)
        stored = Bfloat16Weight(np.ascontiguousarray(weight.astype(ml_dtypes.bfloat16).T).view(np.uint16))
        rounded = torch.tensor(x @ weight).bfloat16() + torch.tensor(bias).bfloat16()
        back = torch.tensor(dy @ weight.T).bfloat16(), torch.tensor(dy.sum((0, 1))).bfloat16()
        common = {"function": "quantizers.bfloat16_linear", "name": f"{np.dtype(dtype)}", "args": (x, stored, bias)}
        common |= {"source": f"{VERSION}, bfloat16"}
        found.append(GoldenCase(**common, expected=numpy64(rounded).astype(dtype)))
        grads = tuple(numpy64(each).astype(dtype) for each in back)
        found.append(GoldenCase(**common, cotangent=dy, expected=grads))
    return found


def layers(rng):
    found = []
    x = rng.standard_normal((2, 3, 5, 6))
    columns = functional.unfold(torch.tensor(x), (3, 2), padding=(1, 0), stride=(2, 1))
    rows = columns.transpose(1, 2).reshape(-1, 18).numpy()
    options = {"stride": (2, 1), "padding": (1, 0)}
    back = functional.fold(columns, (5, 6), (3, 2), padding=(1, 0), stride=(2, 1)).numpy()
    source = f"{VERSION}, unfold and fold"
    found.append(GoldenCase("quantizers.im2row", "strided, padded", (x, (3, 2)), rows, source, options=options))
    found.append(
        GoldenCase("quantizers.row2im", "strided, padded", (rows, x.shape, (3, 2)), back, source, CLOSE, options)
    )
    for stride, padding in ((1, 1), (2, 0), (3, 2)):
        arrays = [rng.standard_normal(s) for s in ((2, 3, 7, 6), (4, 3, 3, 3), (4,))]
        leaves = [torch.tensor(array, requires_grad=True) for array in arrays]
        y = functional.conv2d(*leaves, stride=stride, padding=padding)
        cotangent = rng.standard_normal(tuple(y.shape))
        y.backward(torch.tensor(cotangent))
        common = {"args": tuple(arrays), "tolerance": CLOSE, "name": f"stride {stride}, padding {padding}"}
        options = {"stride": stride, "padding": padding, "precision": EXACT}
        common |= {"options": options, "source": f"{VERSION}, float64"}
        found.append(GoldenCase("quantizers.conv2d_lowp", expected=y.detach().numpy(), **common))
        grads = tuple(leaf.grad.numpy() for leaf in leaves)
        for form in ("full", "scatter"):
            changed = {"name": f"{common['name']}, {form}", "options": {**options, "input_gradient": form}}
            found.append(
                GoldenCase("quantizers.conv2d_lowp", expected=grads, cotangent=cotangent, **common | changed)
            )  # fmt: skip
    arrays = [rng.standard_normal(s) for s in ((5, 7), (4, 7), (4,))]
    leaves = [torch.tensor(array, requires_grad=True) for array in arrays]
    y = functional.linear(*leaves)
    cotangent = rng.standard_normal((5, 4))
    y.backward(torch.tensor(cotangent))
    common = {"args": tuple(arrays), "name": "float64", "options": {"precision": EXACT}, "tolerance": CLOSE}
    common["source"] = f"{VERSION}, float64"
    found.append(GoldenCase("quantizers.linear_lowp", expected=y.detach().numpy(), **common))
    grads = tuple(leaf.grad.numpy() for leaf in leaves)
    found.append(GoldenCase("quantizers.linear_lowp", expected=grads, cotangent=cotangent, **common))
    return found


def losses_and_steps(rng):
    found = []
    for form, kind in TORCH.items():
        logits = numpy64(torch.tensor(3 * rng.standard_normal((4, 6))).to(kind))
        target = np.eye(6)[rng.integers(0, 6, 4)]
        leaf, weights = torch.tensor(logits, requires_grad=True), torch.tensor(target, requires_grad=True)
        loss = -(weights * functional.log_softmax(leaf, -1)).sum() / 4
        (512 * loss).backward()
        common = {"args": (logits, target, form), "name": form, "source": f"{VERSION}, float64, rounded once"}
        name = "quantizers.softmax_cross_entropy_lowp"
        found.append(GoldenCase(name, expected=numpy64(loss.to(kind)), **common))
        grads = tuple(numpy64(x.grad.to(kind)) for x in (leaf, weights))
        found.append(GoldenCase(name, expected=grads, cotangent=np.array(512.0), **common))
        weight, grad = (torch.tensor(rng.standard_normal(50)).to(kind) for _ in range(2))
        # Powers of 2, so that the scalars are the same in every format.
        g = grad + 0.0625 * weight
        stepped = numpy64(weight - 0.125 * g)
        options = {"learning_rate": 0.125, "weight_decay": 0.0625, "storage": form}
        source = f"{VERSION}, {form} arithmetic"
        args = (numpy64(weight), numpy64(grad))
        found.append(
            GoldenCase("quantizers.sgd_lowp_step", f"{form}, decay", args, (stepped, None), source, options=options)
        )
    return found


def transposes():
    """Each of im2row and row2im is the other's transpose: the pullbacks are PyTorch's fold and unfold."""
    rng, shape = np.random.default_rng(7), (2, 3, 5, 6)
    geometry = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)}
    x = rng.standard_normal(shape)
    columns = functional.unfold(torch.tensor(x), **geometry)
    rows = columns.transpose(1, 2).reshape(-1, columns.shape[1]).numpy()
    given = rng.standard_normal(rows.shape)
    folded = functional.fold(torch.tensor(given).reshape(2, -1, rows.shape[1]).transpose(1, 2), shape[2:], **geometry)
    options = {"stride": (2, 1), "padding": (1, 0)}
    return [
        GoldenCase(
            "quantizers.im2row", "gradient", (x, (3, 2)), (folded.numpy(),), f"{VERSION}: fold", CLOSE, options, given
        ),
        GoldenCase(
            "quantizers.row2im", "gradient", (given, shape, (3, 2)), (rows,), f"{VERSION}: unfold", CLOSE, options, x
        ),
    ]
