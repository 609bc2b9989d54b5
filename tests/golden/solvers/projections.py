"""Truth for projections and proximal maps: rational arithmetic, mpmath, quadratic programs by enumeration."""

from fractions import Fraction
from itertools import product

import mpmath
import numpy as np

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50


def exact_simplex(row, total):
    """Try every support; the one whose shifted entries are positive, and no other entry is, is right."""
    values = [Fraction(float(v)) for v in row]
    for support in product((False, True), repeat=len(values)):
        if not any(support):
            continue
        shift = (sum(v for v, s in zip(values, support, strict=True) if s) - Fraction(total)) / sum(support)
        if all((v - shift > 0) == s for v, s in zip(values, support, strict=True)):
            return [float(v - shift) if s else 0.0 for v, s in zip(values, support, strict=True)], support
    raise AssertionError("one support is right")


def simplex_cases(rng):
    for dtype, total in ((np.float64, 1.0), (np.float32, 1.0), (np.float64, 2.5)):
        x = rng.standard_normal((6, 7)).astype(dtype)
        x[1] += 100
        x[2, 3] = x[2, 4]
        cotangent = rng.standard_normal(x.shape).astype(dtype)
        rows, pulled = [], []
        for row, dy in zip(x, cotangent, strict=True):
            y, support = exact_simplex(row, total)
            rows.append(y)
            dys = [Fraction(float(v)) for v in dy]
            mean = sum(v for v, s in zip(dys, support, strict=True) if s) / sum(support)
            pulled.append([float(v - mean) if s else 0.0 for v, s in zip(dys, support, strict=True)])
        common = {
            "function": "solvers.simplex_projection",
            "name": f"{np.dtype(dtype).name}, total {total:g}",
            "args": (x,),
            "options": {"total": total},
            # x near 100 has a spacing of 1e-14 (float64): the result cannot know its own digits better.
            "tolerance": Tolerance(8, "ulp_of_largest"),
            "source": "rational arithmetic over all supports",
        }
        yield GoldenCase(**common, expected=np.array(rows))
        yield GoldenCase(**common, cotangent=cotangent, expected=(np.array(pulled),))
    yield GoldenCase(
        function="solvers.simplex_projection",
        name="hand calculation",
        args=(np.array([0.6, 0.5, -1.0]),),
        cotangent=np.array([1.0, 0.0, 5.0]),
        expected=(np.array([0.5, -0.5, 0.0]),),
        tolerance=Tolerance(2, "ulp"),
        source="by hand: support of two",
    )


def ball_cases(rng):
    for dtype in (np.float64, np.float32):
        x = rng.standard_normal((4, 5)).astype(dtype)
        x[3] *= 0.01
        cotangent = rng.standard_normal((4, 5)).astype(dtype)
        radius = mpmath.mpf(0.5)
        rows, pulled, dradius = [], [], mpmath.mpf(0)
        for row, dy in zip(x, cotangent, strict=True):
            v, g = ([mpmath.mpf(float(e)) for e in a] for a in (row, dy))
            norm = mpmath.sqrt(mpmath.fsum(e * e for e in v))
            if norm < radius:
                rows.append([float(e) for e in v])
                pulled.append([float(e) for e in g])
                continue
            unit = [e / norm for e in v]
            radial = mpmath.fsum(a * b for a, b in zip(unit, g, strict=True))
            rows.append([float(radius * e) for e in unit])
            pulled.append([float(radius / norm * (b - a * radial)) for a, b in zip(unit, g, strict=True)])
            dradius += radial
        common = {
            "function": "solvers.ball_projection",
            "name": np.dtype(dtype).name,
            "args": (x, 0.5),
            "tolerance": Tolerance(4, "ulp_of_largest"),
            "source": "mpmath, 50 digits",
        }
        yield GoldenCase(**common, expected=np.array(rows))
        yield GoldenCase(**common, cotangent=cotangent, expected=(np.array(pulled), np.array(float(dradius))))


def cases():
    rng = np.random.default_rng(1974)
    found = [*simplex_cases(rng), *ball_cases(rng)]
    x = np.array([-3.0, -1.0, -0.25, 0.0, 0.5, 2.0])
    ones = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    for dtype in (np.float64, np.float32):
        name = np.dtype(dtype).name
        for function, args, options, value, cotangents in (
            (
                "box_projection", (x, -0.5, 0.5), {},
                [-0.5, -0.5, -0.25, 0, 0.5, 0.5], ([0, 0, 4, 8, 0, 0], 3.0, 48.0),
            ),
            ("soft_threshold", (x, 0.5), {}, [-2.5, -0.5, 0, 0, 0, 1.5], ([1, 2, 0, 0, 0, 32], 3.0 - 32.0)),
            (
                "lasso_prox", (x, 2.0), {"step_size": 0.25},
                [-2.5, -0.5, 0, 0, 0, 1.5], ([1, 2, 0, 0, 0, 32], (3.0 - 32.0) / 4),
            ),
            (
                # x / 2; the penalty's slope is -step x / (1 + step penalty)^2 = -x / 8.
                "ridge_prox", (x, 2.0), {"step_size": 0.5},
                x / 2, (ones / 2, float(-(x * ones).sum() / 8)),
            ),
        ):  # fmt: skip
            common = {
                "function": f"solvers.{function}",
                "name": f"hand calculation, {name}",
                "args": (args[0].astype(dtype), *args[1:]),
                "options": options,
                "tolerance": Tolerance(),
                "source": "by hand, in numbers that binary holds exactly",
            }
            found.append(GoldenCase(**common, expected=np.array(value, dtype)))
            found.append(
                GoldenCase(
                    **common,
                    cotangent=ones.astype(dtype),
                    expected=tuple(np.array(entry, dtype) for entry in cotangents),
                )
            )
    return found
