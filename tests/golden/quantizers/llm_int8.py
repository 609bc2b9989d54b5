"""Truth for LLM.int8(): a hand calculation, exact fractions, mpmath, PyTorch's integer product and automatic gradients."""

from fractions import Fraction

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.quantizers import Int8Weight
from tests.exact_norms import clear_code, draw_clear, exact_rows

TORCH = f"torch {torch.__version__.split('+')[0]}"
NEAREST_TIE = 1e-4
"""Draw again where a scaled number is this close to a tie: float32 may decide otherwise than exact arithmetic."""


def fractions(array):
    return [[Fraction(float(v)) for v in row] for row in array]


def largest(values):
    return max((abs(v) for v in values), default=Fraction(0))


def code(value, constant):
    """The nearest of -127 .. 127, by Python's exact round-half-even."""
    return round(127 * value / constant) if constant else 0


def codes_of_rows(x, constants):
    return [[code(v, c) for v in row] for row, c in zip(x, constants, strict=True)]


def transposed(rows):
    return [list(column) for column in zip(*rows, strict=True)]


def to_array(rows, dtype=np.float64):
    return np.array([[float(v) for v in row] for row in rows], dtype=dtype)


def clear(x):
    """Whether no number of a matrix is near a tie for row, column or whole-matrix constants."""
    with np.errstate(divide="ignore", invalid="ignore"):
        for constants in (np.abs(x).max(), np.abs(x).max(axis=1, keepdims=True), np.abs(x).max(axis=0)):
            distance = np.abs(127 * np.nan_to_num(x.astype(np.float64) / constants) % 1 - 0.5)
            if distance.min(initial=1) < NEAREST_TIE:
                return False
    return True


def draw(rng, shape, dtype, outliers=0, scale=1.0):
    while True:
        x = scale * rng.standard_normal(shape)
        x[:, rng.choice(shape[1], outliers, replace=False)] *= 25
        x = x.astype(dtype)
        regular = np.where(np.abs(x) < 6, x, 0)
        kept = x[:, (np.abs(x) < 6).all(axis=0)]
        if clear(x) and clear(regular) and clear(kept):
            return x


def decompose(x, threshold, row_stats):
    """Return codes, row constants and outlier columns of a matrix of fractions."""
    width = range(len(x[0]))
    cut = [k for k in width if threshold and any(abs(row[k]) >= threshold for row in x)]
    if row_stats == "elements":
        constants = [largest(v for v in row if not threshold or abs(v) < threshold) for row in x]
    else:
        constants = [largest(row[k] for k in width if k not in cut) for row in x]
    codes = [[0 if k in cut else code(v, c) for k, v in enumerate(row)] for row, c in zip(x, constants, strict=True)]
    return codes, constants, cut


def exact_linear(x, w, bias, threshold=6.0, row_stats="elements", outlier_weights="dequantized"):
    x, w = fractions(x), fractions(w)
    codes, constants, cut = decompose(x, threshold, row_stats)
    columns = transposed(w)
    column_constants = [largest(column) for column in columns]
    column_codes = codes_of_rows(columns, column_constants)
    rows = []
    for row, row_codes, c in zip(x, codes, constants, strict=True):
        y = []
        for n, (column, other, cw) in enumerate(zip(columns, column_codes, column_constants, strict=True)):
            total = sum(a * b for a, b in zip(row_codes, other, strict=True)) * c * cw / 127**2
            for k in cut:
                total += row[k] * (column[k] if outlier_weights == "float" else other[k] * cw / 127)
            y.append(total + (Fraction(float(bias[n])) if bias is not None else 0))
        rows.append(y)
    return to_array(rows)


def exact_weight(w):
    columns = transposed(fractions(w))
    constants = [largest(column) for column in columns]
    q = np.array(codes_of_rows(columns, constants), dtype=np.int8)
    return Int8Weight(q, np.array([float(c) for c in constants], w.dtype), q.sum(axis=1, dtype=np.int32))


def exact_product(x, w, kind):
    x, columns = fractions(x), transposed(fractions(w))
    if kind == "zeropoint":
        return exact_zeropoint_product(x, columns)
    x_constants = [largest(row) for row in x]
    if kind == "tensorwise":
        x_constants = [max(x_constants)] * len(x)
    w_constants = [largest(column) for column in columns]
    if kind != "vectorwise":
        w_constants = [max(w_constants)] * len(columns)
    x_codes, w_codes = codes_of_rows(x, x_constants), codes_of_rows(columns, w_constants)
    return to_array(
        [
            [
                sum(a * b for a, b in zip(row, column, strict=True)) * c * cw / 127**2
                for column, cw in zip(w_codes, w_constants, strict=True)
            ]
            for row, c in zip(x_codes, x_constants, strict=True)
        ]
    )


def zeropoint(rows):
    low, high = min(map(min, rows)), max(map(max, rows))
    n = 254 / (high - low)
    z = -round(n * low) - 127
    return [[min(max(round(n * v) + z, -127), 127) for v in row] for row in rows], n, z


def exact_zeropoint_product(x, columns):
    (x_codes, x_n, x_z), (w_codes, w_n, w_z) = zeropoint(x), zeropoint(columns)
    return to_array(
        [
            [sum((a - x_z) * (b - w_z) for a, b in zip(row, column, strict=True)) / (x_n * w_n) for column in w_codes]
            for row in x_codes
        ]
    )


HAND_X = np.array([[1.0, -2.0, 0.5], [0.25, 3.0, 8.0]])
HAND_W = np.array([[0.5, -1.0], [1.0, 0.25], [-0.1, 0.2]])


def cases():
    rng = np.random.default_rng(20220815)
    return [
        *by_hand(),
        *quantized(rng),
        *integer_products(rng),
        *layers(rng),
        *trainable(rng),
        *comparisons(rng),
        *after_norms(rng),
        *epilogues(rng),
    ]


def by_hand():
    weight = Int8Weight(np.array([[64, 127, -13], [-127, 32, 25]], np.int8), np.ones(2), np.array([178, -70], np.int32))
    accumulated = np.array([[64 * 64 - 127 * 127, -64 * 127 - 127 * 32], [11 * 64 + 127 * 127, -11 * 127 + 127 * 32]])
    constants = np.array([[2.0], [3.0]]) / 127**2
    outlier_part = np.array([[0.5], [8.0]]) * np.array([[-13, 25]]) / 127
    hidden = [np.zeros((50, 4)) for _ in range(4)]
    for layer in hidden:
        layer[0, 0], layer[:3, 3] = 100.0, -6.0
    hidden[2][:, 1] = 9.0
    return [
        GoldenCase(
            function="quantizers.quantize_weight",
            name="hand calculation",
            args=(HAND_W,),
            expected=(weight.q, weight.scale, weight.col_sum),
            source="by hand: 63.5 is a tie, to 64",
        ),
        GoldenCase(
            function="quantizers.vectorwise_quantize",
            name="hand calculation",
            args=(HAND_X,),
            options={"threshold": 6.0},
            expected=(np.array([[64, -127, 0], [11, 127, 0]], np.int8), np.array([2.0, 3.0]), np.array([2])),
            source="by hand",
        ),
        GoldenCase(
            function="quantizers.llm_int8_linear",
            name="hand calculation",
            args=(HAND_X, weight, None),
            expected=accumulated * constants + outlier_part,
            tolerance=Tolerance(1e-14, "relative"),
            source="by hand",
        ),
        GoldenCase(
            function="quantizers.outlier_features",
            name="one position is too few, one layer in four is enough",
            args=(hidden,),
            expected=np.array([1, 3]),
            source="by hand",
        ),
    ]


def quantized(rng):
    found = []
    for dtype in (np.float32, np.float64):
        x = draw(rng, (7, 33), dtype, outliers=3)
        x[4] = 0
        rows = fractions(x)
        for threshold, row_stats in ((0.0, "elements"), (6.0, "elements"), (6.0, "columns")):
            codes, constants, cut = decompose(rows, threshold, row_stats)
            found.append(
                GoldenCase(
                    function="quantizers.vectorwise_quantize",
                    name=f"threshold {threshold:g}, {row_stats}, {np.dtype(dtype)}, a row of zeros",
                    args=(x,),
                    options={"threshold": threshold, "row_stats": row_stats},
                    expected=(
                        np.array(codes, np.int8),
                        np.array([float(c) for c in constants]),
                        np.array(cut, np.intp),
                    ),
                    source="exact fractions",
                )
            )
        constant = largest(v for row in rows for v in row)
        found.append(
            GoldenCase(
                function="quantizers.absmax_quantize",
                name=f"whole tensor, {np.dtype(dtype)}",
                args=(x,),
                expected=(np.array(codes_of_rows(rows, [constant] * 7), np.int8), np.array(float(constant))),
                source="exact fractions",
            )
        )
        columns = transposed(rows)
        constants = [largest(column) for column in columns]
        found.append(
            GoldenCase(
                function="quantizers.absmax_quantize",
                name=f"per column, {np.dtype(dtype)}",
                args=(x,),
                options={"axis": 1},
                expected=(
                    np.array(codes_of_rows(columns, constants), np.int8).T,
                    np.array([[float(c) for c in constants]]),
                ),
                source="exact fractions",
            )
        )
        positive = (2 + rng.random((4, 9))).astype(dtype)
        codes, n, z = zeropoint(fractions(positive))
        found.append(
            GoldenCase(
                function="quantizers.zeropoint_quantize",
                name=f"one-sided data, {np.dtype(dtype)}",
                args=(positive,),
                expected=(np.array(codes, np.int8), np.array(float(n), dtype), np.array(z)),
                source="exact fractions",
            )
        )
    return found


def integer_products(rng):
    found = []
    for rows, terms, outputs in ((1, 1, 1), (3, 65, 17), (17, 260, 33), (2, 1041, 2), (1, 4099, 1)):
        a, b = (rng.integers(-127, 128, (n, terms), dtype=np.int8) for n in (rows, outputs))
        if rows <= 2:
            a[:], b[:] = 127, 127  # beyond 1040 terms, float32 cannot hold the sum
        expected = (torch.tensor(a, dtype=torch.int64) @ torch.tensor(b, dtype=torch.int64).T).numpy()
        source = f"{TORCH}, int64 product"
        if rows == 17:
            padded = np.zeros((rows, -terms % 8), np.int8), np.zeros((-outputs % 8, terms), np.int8)
            left = torch.tensor(np.concatenate([a, padded[0]], axis=1))
            right = torch.tensor(np.concatenate([b, padded[1]]))
            right = torch.nn.functional.pad(right, (0, -terms % 8))
            expected = torch._int_mm(left, right.T.contiguous())[:, :outputs].numpy()
            source = f"{TORCH}, _int_mm"
        found.append(
            GoldenCase(
                function="quantizers.int8_matmul",
                name=f"{rows}x{terms} by {outputs}x{terms}",
                args=(a, b),
                expected=expected.astype(np.int32),
                source=source,
            )
        )
    return found


def layers(rng):
    found = []
    for dtype, limit in (
        (np.float32, Tolerance(8, "ulp_of_largest")),
        (np.float64, Tolerance(1e-13, "relative_of_largest")),
    ):
        x, w = draw(rng, (6, 29), dtype, outliers=2), draw(rng, (29, 13), dtype, scale=0.2)
        bias = rng.standard_normal(13).astype(dtype)
        weight = exact_weight(w)
        found.append(
            GoldenCase(
                function="quantizers.quantize_weight",
                name=f"29x13, {np.dtype(dtype)}",
                args=(w,),
                expected=(weight.q, weight.scale, weight.col_sum),
                source="exact fractions",
            )
        )
        for name, used, options in (
            ("outliers", bias, {}),
            ("no bias, column statistics", None, {"row_stats": "columns"}),
            ("no decomposition", bias, {"threshold": 0.0}),
            ("float outlier weights", bias, {"outlier_weights": "float"}),
        ):
            given = dict(options, w_float=w) if "outlier_weights" in options else options
            found.append(
                GoldenCase(
                    function="quantizers.llm_int8_linear",
                    name=f"{name}, {np.dtype(dtype)}",
                    args=(x, weight, used),
                    options=given,
                    expected=exact_linear(x, w, used, **options),
                    tolerance=limit,
                    source="exact fractions",
                )
            )
        cotangent = rng.standard_normal((2, 3, 13)).astype(dtype)
        tensors = [torch.tensor(a, requires_grad=True) for a in (x.reshape(2, 3, 29), bias)]
        frozen = torch.tensor(weight.q.T.astype(dtype)) * torch.tensor(weight.scale) / 127
        (tensors[0] @ frozen + tensors[1]).backward(torch.tensor(cotangent))
        found.append(
            GoldenCase(
                function="quantizers.llm_int8_linear",
                name=f"leading axes, {np.dtype(dtype)}",
                args=(x.reshape(2, 3, 29), weight, bias),
                cotangent=cotangent,
                expected=tuple(t.grad.numpy() for t in tensors),
                tolerance=Tolerance(1e-13 if dtype == np.float64 else 2e-6, "relative_of_largest"),
                source=f"{TORCH}, gradient of the layer with dequantized weights",
            )
        )
    return found


def trainable(rng):
    found = []
    for dtype, limit in ((np.float32, 2e-6), (np.float64, 1e-13)):
        x, w = draw(rng, (8, 11), dtype, outliers=2), draw(rng, (11, 5), dtype)
        cotangent = draw(rng, (8, 5), dtype)
        found.append(
            GoldenCase(
                function="quantizers.int8_matmul_trainable",
                name=f"outliers, {np.dtype(dtype)}",
                args=(x, w),
                expected=exact_linear(x, w, None, outlier_weights="float"),
                tolerance=Tolerance(limit, "relative_of_largest"),
                source="exact fractions",
            )
        )
        effective = exact_weight(w)
        effective = effective.q.T.astype(np.float64) * effective.scale / 127
        outliers = (np.abs(x) >= 6).any(axis=0)
        effective[outliers] = w[outliers]
        dweight = exact_product(x.T, cotangent, "vectorwise")
        dweight[outliers] = x[:, outliers].astype(np.float64).T @ cotangent
        found.append(
            GoldenCase(
                function="quantizers.int8_matmul_trainable",
                name=f"outliers, {np.dtype(dtype)}",
                args=(x, w),
                cotangent=cotangent,
                expected=(cotangent.astype(np.float64) @ effective.T, dweight),
                tolerance=Tolerance(limit, "relative_of_largest"),
                source="exact fractions for the int8 weight gradient; NumPy, float64, for the rest",
            )
        )
    return found


def comparisons(rng):
    found = []
    for dtype, limit in (
        (np.float32, Tolerance(4, "ulp_of_largest")),
        (np.float64, Tolerance(1e-13, "relative_of_largest")),
    ):
        x, w = draw(rng, (6, 21), dtype), draw(rng, (21, 4), dtype)
        for kind in ("tensorwise", "rowwise", "vectorwise", "zeropoint"):
            found.append(
                GoldenCase(
                    function=f"quantizers.matmul_{kind}",
                    name=f"6x21 by 21x4, {np.dtype(dtype)}",
                    args=(x, w),
                    expected=exact_product(x, w, kind),
                    tolerance=limit,
                    source="exact fractions",
                )
            )
    found.append(
        GoldenCase(
            function="quantizers.matmul_tensorwise",
            name="hand calculation",
            args=(HAND_X, HAND_W),
            expected=exact_product(HAND_X, HAND_W, "tensorwise"),
            tolerance=Tolerance(1e-14, "relative"),
            source="exact fractions",
        )
    )
    return found


def after_norms(rng):
    """A norm in mpmath, then the nearest of -127 .. 127 of each row's largest magnitude."""
    found = []
    for dtype in (np.float32, np.float64):
        for centred, eps in ((True, 1e-5), (True, 0.5), (False, 1e-5), (False, 0.5)):
            gain, bias = (1 + rng.standard_normal((2, 21)) / 3).astype(dtype)

            def rows_of(x, gain=gain, bias=bias, eps=eps, centred=centred):
                return exact_rows(x, gain, bias, eps=eps, centred=centred)

            def codes_of(x, rows_of=rows_of):
                return [[clear_code(127 * y / max(map(abs, row)), -127, 127) for y in row] for row in rows_of(x)]

            x, codes = draw_clear(rng, (5, 21), dtype, codes_of)
            absmax = np.array([[float(max(map(abs, row)))] for row in rows_of(x)])
            found.append(
                GoldenCase(
                    function=f"quantizers.{'layer' if centred else 'rms'}_norm_absmax_quantize",
                    name=f"eps {eps:g}, {np.dtype(dtype)}",
                    args=(x, gain, bias),
                    options={"eps": eps},
                    expected=(np.array(codes, np.int8), absmax.astype(dtype)),
                    tolerance=Tolerance(4, "ulp"),
                    source="mpmath, 50 digits",
                )
            )
    return found


def epilogues(rng):
    """The exact sum of the layer, PyTorch's activation of it, and its gradient through the dequantized weights."""
    found = []
    for dtype, limit in (
        (np.float32, Tolerance(8, "ulp_of_largest")),
        (np.float64, Tolerance(1e-13, "relative_of_largest")),
    ):
        x, w = draw(rng, (4, 17), dtype, outliers=2), draw(rng, (17, 9), dtype, scale=0.2)
        bias, residual, cotangent = (rng.standard_normal(shape).astype(dtype) for shape in (9, (4, 9), (4, 9)))
        weight = exact_weight(w)
        summed = torch.tensor(exact_linear(x, w, bias))
        frozen = torch.tensor(weight.q.T * weight.scale.astype(np.float64) / 127)
        for activation, function in (
            ("gelu", torch.nn.functional.gelu),
            ("gelu_tanh", lambda z: torch.nn.functional.gelu(z, approximate="tanh")),
            ("relu", torch.relu),
            (None, lambda z: z),
        ):
            options = {"activation": activation, "residual": residual}
            name = f"{activation or 'no activation'}, a residual, {np.dtype(dtype)}"
            found.append(
                GoldenCase(
                    function="quantizers.llm_int8_linear",
                    name=name,
                    args=(x, weight, bias),
                    options=options,
                    expected=(function(summed) + torch.tensor(residual)).numpy(),
                    tolerance=limit,
                    source=f"exact fractions for the sum; {TORCH}, float64, for the activation",
                )
            )
            inputs, shift = (torch.tensor(a.astype(np.float64), requires_grad=True) for a in (x, bias))
            # The activation stands where the rounded sum is, and passes its slope to the straight-through layer.
            straight = inputs @ frozen + shift
            function(straight + (summed - straight).detach()).backward(torch.tensor(cotangent.astype(np.float64)))
            found.append(
                GoldenCase(
                    function="quantizers.llm_int8_linear",
                    name=name,
                    args=(x, weight, bias),
                    options=options,
                    cotangent=cotangent,
                    expected=(inputs.grad.numpy(), shift.grad.numpy(), cotangent),
                    tolerance=Tolerance(1e-13 if dtype == np.float64 else 2e-6, "relative_of_largest"),
                    source=f"{TORCH}, float64, gradient at the exact sum",
                )
            )
    return found
