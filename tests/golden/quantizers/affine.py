"""Truth for the affine quantizer: exact fractions, a hand calculation, PyTorch's fake-quantization operators."""

import math
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from fractions import Fraction

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

TORCH = f"torch {torch.__version__.split('+')[0]}"
MODES = {"nearest": ROUND_HALF_EVEN, "away": ROUND_HALF_UP, "floor": ROUND_FLOOR}
NEAREST_TIE = 1e-5
"""Quotients this close to a tie, but not on it, are drawn again: multiplying by 1 / scale may decide otherwise."""


def exact_code(x, scale, zero_point, lowest, highest, rounding="nearest"):
    u = Fraction(float(x)) / Fraction(float(scale))
    doubled = abs(u * 2 - round(u * 2))
    assert doubled == 0 or doubled > NEAREST_TIE
    # A half-integer or a number far from one is decided rightly by 28 decimal digits.
    rounded = int((Decimal(u.numerator) / Decimal(u.denominator)).to_integral_value(rounding=MODES[rounding]))
    return min(max(rounded + int(zero_point), lowest), highest)


def exact_codes(x, scale, zero_point, lowest, highest, rounding="nearest"):
    scale, zero_point = np.broadcast_to(scale, x.shape), np.broadcast_to(zero_point, x.shape)
    codes = [
        exact_code(*entry, lowest, highest, rounding)
        for entry in zip(x.ravel(), scale.ravel(), zero_point.ravel(), strict=True)
    ]
    return np.array(codes, dtype=np.int64).reshape(x.shape)


def clear_of_ties(rng, shape, scale, dtype):
    """Draw numbers whose quotient by ``scale`` is not near a multiple of one half."""
    while True:
        x = (4 * rng.standard_normal(shape)).astype(dtype)
        doubled = 2 * x.astype(np.float64) / scale
        if (np.abs(doubled - np.rint(doubled)) > 4 * NEAREST_TIE).all():
            return x


def grid(bits, signed=True, narrow=False):
    return (-(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def code_type(bits, signed):
    return np.int32 if bits > 8 else np.int8 if signed else np.uint8


def cases():
    rng = np.random.default_rng(20200218)
    return [*by_hand(), *ranges(rng), *codes(rng), *against_torch(rng), *learned(rng), *after_norms()]


def by_hand():
    x, scale, zero_point = np.array([0.0, 0.5, 1.0, 2.0]), np.array(2 / 255), np.array(-128, np.int32)
    q = np.array([-128, -64, 0, 127], np.int8)
    x_hat = np.array([0.0, 128 / 255, 256 / 255, 2.0])
    two_ulp = Tolerance(2, "ulp")
    found = [
        GoldenCase(
            function="quantizers.affine_qparams",
            name="hand calculation",
            args=(x,),
            options={"symmetric": False},
            expected=(scale, zero_point),
            tolerance=two_ulp,
            source="by hand: range [0, 2], 255 steps, lowest code for 0",
        ),
        GoldenCase(
            function="quantizers.quantize",
            name="hand calculation",
            args=(x, scale, zero_point),
            expected=q,
            source="by hand: quotients 0, 63.75, 127.5 (a tie, to 128), 255",
        ),
        GoldenCase(
            function="quantizers.dequantize",
            name="hand calculation",
            args=(q, scale, zero_point),
            expected=x_hat,
            tolerance=two_ulp,
            source="by hand: 0, 64, 128, 255 steps of 2/255",
        ),
        GoldenCase(
            function="quantizers.fake_quantize",
            name="hand calculation",
            args=(x, scale, zero_point),
            expected=x_hat,
            tolerance=two_ulp,
            source="by hand: 0, 64, 128, 255 steps of 2/255",
        ),
        GoldenCase(
            function="quantizers.rounding_error_bound",
            name="half a scale",
            args=(np.array([0.5, 3.0], np.float32),),
            expected=np.array([0.25, 1.5]),
            source="by hand",
        ),
        GoldenCase(
            function="quantizers.lsq_scale",
            name="two channels, unsigned 4 bits",
            args=(np.array([[1.0, -1.0, 4.0], [0.0, 0.0, 0.0]]),),
            options={"bits": 4, "signed": False, "axis": 0},
            expected=np.array([[4 / np.sqrt(15.0)], [1.0]]),
            tolerance=two_ulp,
            source="by hand: mean 2, highest code 15; a slice of zeros has scale 1",
        ),
    ]
    ties = np.array([-2.5, -1.5, -0.5, np.nextafter(0.5, 0), 0.5, 1.5, 2.5])
    for rounding, expected in (
        ("nearest", [-2, -2, 0, 0, 0, 2, 2]),
        ("away", [-3, -2, -1, 0, 1, 2, 3]),
        ("floor", [-3, -2, -1, 0, 0, 1, 2]),
    ):
        found.append(
            GoldenCase(
                function="quantizers.quantize",
                name=f"ties, {rounding}",
                args=(ties, 1.0, 0),
                options={"rounding": rounding},
                expected=np.array(expected, np.int8),
                source="by hand",
            )
        )
    return found


def ranges(rng):
    x = rng.standard_t(3, size=(3, 17))
    x[1] = np.abs(x[1])
    rows = [[Fraction(float(v)) for v in row] for row in x]
    found = []

    def add(name, options, expected, source="exact fractions"):
        scale = np.array([[float(s)] for s, _ in expected])
        zero_point = np.array([[z] for _, z in expected], np.int32)
        found.append(
            GoldenCase(
                function="quantizers.affine_qparams",
                name=name,
                args=(x,),
                options={"axis": 0, **options},
                expected=(scale, zero_point),
                tolerance=Tolerance(4, "ulp"),
                source=source,
            )
        )

    def affine(low, high, lowest, highest):
        low, high = min(low, Fraction(0)), max(high, Fraction(0))
        scale = (high - low) / (highest - lowest)
        return scale, min(max(lowest - round(low / scale), lowest), highest)

    for bits, signed in ((8, True), (8, False), (4, True), (3, False)):
        lowest, highest = grid(bits, signed)
        expected = [affine(min(row), max(row), lowest, highest) for row in rows]
        add(f"minmax, {bits} bits, signed {signed}", {"bits": bits, "signed": signed, "symmetric": False}, expected)
    for bits in (2, 8, 16):
        expected = [(max(abs(v) for v in row) / (2 ** (bits - 1) - 1), 0) for row in rows]
        add(f"absmax, {bits} bits", {"bits": bits, "method": "absmax"}, expected)
        add(f"symmetric minmax, {bits} bits", {"bits": bits}, expected)
    add("symmetric unsigned", {"signed": False}, [(max(row) / 255, 0) for row in rows])

    def quantile(row, p):
        position = p * (len(row) - 1)
        below = math.floor(position)
        ordered = sorted(row)
        return ordered[below] + (position - below) * (ordered[min(below + 1, len(row) - 1)] - ordered[below])

    p = Fraction(0.9375)
    expected = [affine(quantile(row, 1 - p), quantile(row, p), -128, 127) for row in rows]
    add("percentile", {"method": "percentile", "percentile": 0.9375, "symmetric": False}, expected)

    def squared_error(row, scale, zero_point, lowest, highest):
        codes = [min(max(round(v / scale) + zero_point, lowest), highest) for v in row]
        return sum((v - scale * (code - zero_point)) ** 2 for v, code in zip(row, codes, strict=True))

    best = []
    for row in rows:
        pairs = [affine(min(row) * i / 20, max(row) * i / 20, -4, 3) for i in range(20, 0, -1)]
        best.append(min(pairs, key=lambda pair: squared_error(row, *pair, -4, 3)))
    add("mse of 20 ranges", {"method": "mse", "n_grid": 20, "bits": 3, "symmetric": False}, best)
    return found


def codes(rng):
    found = []
    for bits, signed, narrow, rounding, dtype in (
        (8, True, False, "nearest", np.float32),
        (8, False, False, "nearest", np.float64),
        (4, True, True, "away", np.float32),
        (3, True, False, "floor", np.float64),
        (12, False, False, "nearest", np.float32),
    ):
        lowest, highest = grid(bits, signed, narrow)
        scale = (8 / (highest - lowest) * rng.uniform(0.7, 1.3, (1, 5))).astype(dtype)
        zero_point = rng.integers(lowest, highest + 1, (1, 5)).astype(np.int32)
        x = clear_of_ties(rng, (6, 5), scale, dtype)
        found.append(
            GoldenCase(
                function="quantizers.quantize",
                name=f"{bits} bits, signed {signed}, {rounding}, {np.dtype(dtype)}",
                args=(x, scale, zero_point),
                options={"bits": bits, "signed": signed, "narrow": narrow, "rounding": rounding},
                expected=exact_codes(x, scale, zero_point, lowest, highest, rounding).astype(code_type(bits, signed)),
                source="exact fractions",
            )
        )
    return found


def against_torch(rng):
    """PyTorch's operators work in float32 whatever the dtype of the numbers."""
    x = clear_of_ties(rng, (5, 7), 0.04, np.float32)
    scale = rng.uniform(0.02, 0.1, 5).astype(np.float32)
    zero_point = rng.integers(0, 256, 5).astype(np.int32)
    channels = clear_of_ties(rng, (5, 7), scale[:, None], np.float32)
    wide = clear_of_ties(rng, (5, 7), scale[:, None].astype(np.float64), np.float64)
    steps = exact_codes(wide, scale[:, None], zero_point[:, None], 0, 255) - zero_point[:, None]
    return [
        GoldenCase(
            function="quantizers.fake_quantize",
            name="per tensor",
            args=(x, np.float32(0.04), 9),
            expected=torch.fake_quantize_per_tensor_affine(torch.tensor(x), 0.04, 9, -128, 127).numpy(),
            tolerance=Tolerance(2, "ulp"),
            source=f"{TORCH}, fake_quantize_per_tensor_affine",
        ),
        GoldenCase(
            function="quantizers.fake_quantize",
            name="per channel, unsigned",
            args=(channels, scale[:, None], zero_point[:, None]),
            options={"signed": False},
            expected=torch.fake_quantize_per_channel_affine(
                torch.tensor(channels), torch.tensor(scale), torch.tensor(zero_point), 0, 0, 255
            ).numpy(),
            tolerance=Tolerance(2, "ulp"),
            source=f"{TORCH}, fake_quantize_per_channel_affine",
        ),
        GoldenCase(
            function="quantizers.fake_quantize",
            name="per channel, unsigned, float64",
            args=(wide, scale[:, None].astype(np.float64), zero_point[:, None]),
            options={"signed": False},
            expected=np.array(
                [[float(Fraction(float(s)) * int(n)) for n in row] for s, row in zip(scale, steps, strict=True)]
            ),
            tolerance=Tolerance(1, "ulp"),
            source="exact fractions",
        ),
    ]


def learned(rng):
    """PyTorch's operators with a learned step: all three cotangents, float32."""
    found = []
    for lsq in (False, True):
        x = clear_of_ties(rng, (6, 5), 0.6, np.float32)
        scale, zero_point = np.array([0.6], np.float32), np.array([2.0], np.float32)
        cotangent = rng.standard_normal(x.shape).astype(np.float32)
        tensors = [torch.tensor(a, requires_grad=True) for a in (x, scale, zero_point)]
        factor = 1 / math.sqrt(x.size * 7) if lsq else 1.0
        value = torch._fake_quantize_learnable_per_tensor_affine(*tensors, -8, 7, factor)
        value.backward(torch.tensor(cotangent))
        dx, dscale, dzero_point = (t.grad.numpy() for t in tensors)
        # Their factor reaches the zero point as well; LSQ defines it for the step alone.
        found.append(
            GoldenCase(
                function="quantizers.fake_quantize",
                name=f"learned step and zero point, LSQ factor {lsq}",
                args=(x, scale.reshape(()), zero_point.reshape(())),
                options={"bits": 4, "lsq_grad_scale": lsq},
                cotangent=cotangent,
                expected=(dx, dscale.reshape(()), (dzero_point / np.float32(factor)).reshape(())),
                tolerance=Tolerance(1e-5, "relative_of_largest"),
                source=f"{TORCH}, _fake_quantize_learnable_per_tensor_affine",
            )
        )
    x = clear_of_ties(rng, (6, 5), 0.3, np.float32)
    scale, zero_point = np.full(5, 0.3, np.float32), rng.integers(-8, 8, 5).astype(np.float32)
    cotangent = rng.standard_normal(x.shape).astype(np.float32)
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, scale, zero_point)]
    torch._fake_quantize_learnable_per_channel_affine(*tensors, 1, -8, 7, 1.0).backward(torch.tensor(cotangent))
    found.append(
        GoldenCase(
            function="quantizers.fake_quantize",
            name="learned steps and zero points per channel",
            args=(x, scale[None], zero_point[None]),
            options={"bits": 4},
            cotangent=cotangent,
            expected=tuple(
                t.grad.numpy().reshape(a.shape)
                for t, a in zip(tensors, (x, scale[None], zero_point[None]), strict=True)
            ),
            tolerance=Tolerance(1e-5, "relative_of_largest"),
            source=f"{TORCH}, _fake_quantize_learnable_per_channel_affine",
        )
    )
    return found


def after_norms():
    """Codes of normalized vectors, computed in 50 digits."""
    rng, found = np.random.default_rng(1), []
    with mpmath.workdps(50):
        for lowest, zero_point in ((-128, 3), (0, 120)):
            x, gain, bias = rng.standard_normal((3, 9)), 1 + rng.random(9), rng.standard_normal(9)
            for norm in ("layer_norm", "rms_norm"):
                codes = []
                for row in x.tolist():
                    mean = mpmath.fsum(row) / 9 if norm == "layer_norm" else mpmath.mpf(0)
                    centred = [v - mean for v in row]
                    size = mpmath.sqrt(mpmath.fsum(v * v for v in centred) / 9 + mpmath.mpf(1e-5))
                    y = [g * v / size + b for g, v, b in zip(gain.tolist(), centred, bias.tolist(), strict=True)]
                    scaled = [v / mpmath.mpf(0.03125) for v in y]
                    assert all(abs(v - mpmath.floor(v) - 0.5) > NEAREST_TIE for v in scaled)
                    codes.append([min(max(int(mpmath.nint(v)) + zero_point, lowest), lowest + 255) for v in scaled])
                grid_of = (0.03125, zero_point)
                args = (x, gain, bias, *grid_of) if norm == "layer_norm" else (x, *grid_of, gain, bias)
                expected = np.array(codes, np.int8 if lowest else np.uint8)
                name, options = f"grid from {lowest}", {"lowest": lowest}
                found.append(
                    GoldenCase(
                        f"quantizers.{norm}_quantize", name, args, expected, "mpmath, 50 digits", options=options
                    )
                )
    return found
