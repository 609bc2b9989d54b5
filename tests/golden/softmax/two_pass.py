"""Truth for the softmax room's algorithms: mpmath with 50 digits, and the specification's hand example."""

import mpmath
import numpy as np

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.softmax import ExtExp

mpmath.mp.dps = 50
MPMATH = "mpmath, 50 digits"
THREE_PASS = ("three_pass_recompute", "three_pass_reload", "online")


def exact(row):
    return exact_of([mpmath.mpf(float(v)) for v in row])


def exact_of(logits):
    terms = [mpmath.exp(v) for v in logits]
    total = mpmath.fsum(terms)
    return [term / total for term in terms]


def softmax_rows(x):
    return np.array([[float(p) for p in exact(row)] for row in x.reshape(-1, x.shape[-1])]).reshape(x.shape)


def gradient_rows(x, cotangent):
    rows = []
    for row, dy in zip(x, cotangent, strict=True):
        y, dy = exact(row), [mpmath.mpf(float(g)) for g in dy]
        mean = mpmath.fsum(p * g for p, g in zip(y, dy, strict=True))
        rows.append([float(p * (g - mean)) for p, g in zip(y, dy, strict=True)])
    return np.array(rows)


def where_cases(rng):
    """Over the entries that take part, of x / temperature: 50 digits, the division included."""
    found = []
    x = (4 * rng.standard_normal((4, 21))).astype(np.float32)
    cotangent = rng.standard_normal(x.shape).astype(np.float32)
    where = rng.random(x.shape) < 0.6
    where[2] = False
    for temperature in (0.1, 1.0, 7.5):
        value, gradient, log, total, spread = (np.zeros(x.shape) for _ in range(5))
        log[...], total = -np.inf, np.full(len(x), -np.inf)
        for row, chosen in enumerate(where):
            if not chosen.any():
                continue
            logits = [mpmath.mpf(float(v)) / mpmath.mpf(temperature) for v in x[row][chosen]]
            y, dy = exact_of(logits), [mpmath.mpf(float(g)) for g in cotangent[row][chosen]]
            mean = mpmath.fsum(p * g for p, g in zip(y, dy, strict=True))
            lse = mpmath.log(mpmath.fsum(mpmath.exp(v) for v in logits))
            asked = mpmath.fsum(dy)
            value[row, chosen] = [float(p) for p in y]
            gradient[row, chosen] = [float(p * (g - mean) / temperature) for p, g in zip(y, dy, strict=True)]
            log[row, chosen], total[row] = [float(v - lse) for v in logits], float(lse)
            spread[row, chosen] = [float((g - p * asked) / temperature) for p, g in zip(y, dy, strict=True)]
        # In float64 the quotient's half unit, of up to 2**8 here, becomes relative error.
        for dtype, limit in ((np.float32, 2), (np.float64, 256)):
            label = f"{np.dtype(dtype).name}, masked, temperature {temperature}"
            shared = {
                "args": (x.astype(dtype),),
                "options": {"where": where, "temperature": temperature},
                "source": MPMATH,
            }
            forward = Tolerance(limit, "ulp")
            for function, expected in (("softmax", value), ("log_softmax", log), ("logsumexp", total)):
                found.append(
                    GoldenCase(
                        function=f"softmax.{function}", name=label, expected=expected, tolerance=forward, **shared
                    )
                )
            backward = Tolerance(16, "ulp_of_largest")
            for function, expected in (("softmax", gradient), ("log_softmax", spread)):
                found.append(
                    GoldenCase(
                        function=f"softmax.{function}",
                        name=label,
                        cotangent=cotangent.astype(dtype),
                        expected=(expected,),
                        tolerance=backward,
                        **shared,
                    )
                )
    return found


def pair_cases(rng):
    found = []
    for dtype, limit in ((np.float32, 3 * 2.0**-24), (np.float64, 3 * 2.0**-53)):
        x = np.concatenate([rng.uniform(-r, r, 12) for r in (0.4, 1, 80, 700, 1e4)] + [[1e4, -1e4, 0.0]]).astype(dtype)
        # The nearest integer to x / ln 2 is the exponent; x is drawn, so that none lies near a half.
        exponent = [int(mpmath.nint(mpmath.mpf(float(v)) / mpmath.log(2))) for v in x]
        mantissa = [
            float(mpmath.exp(mpmath.mpf(float(v)) - n * mpmath.log(2))) for v, n in zip(x, exponent, strict=True)
        ]
        found.append(
            GoldenCase(
                function="softmax.ext_exp",
                name=f"{np.dtype(dtype).name}, up to 1e4 from zero",
                args=(x,),
                expected=(np.array(mantissa), np.array(exponent, float)),
                tolerance=Tolerance(limit, "relative"),
                source=MPMATH,
            )
        )
        one, three = np.array(1.0, dtype), np.array(3.0, dtype)
        found.append(
            GoldenCase(
                function="softmax.ext_add",
                name=f"{np.dtype(dtype).name}, 8 + 3 = 11, and 0 + 3",
                args=(
                    ExtExp(np.array([1.0, 0.0], dtype), np.array([3.0, -np.inf], dtype)),
                    ExtExp(np.array([1.5, 1.5], dtype), np.array([1.0, 1.0], dtype)),
                ),
                expected=(np.array([1.375, 1.5]), np.array([3.0, 1.0])),
                source="by hand: (1 + 1.5 / 4) 2**3",
            )
        )
        found.append(
            GoldenCase(
                function="softmax.ext_sum",
                name=f"{np.dtype(dtype).name}, powers of two",
                args=(ExtExp(np.full(4, one), np.array([0, 1, 2, 3], dtype)),),
                expected=(np.array(1.875), np.array(3.0)),
                source="by hand: 1 + 2 + 4 + 8 = 15 = 1.875 2**3",
            )
        )
        found.append(
            GoldenCase(
                function="softmax.ext_to_float",
                name=f"{np.dtype(dtype).name}, twelve, zero",
                args=(ExtExp(np.array([1.5, 0.0], dtype), np.array([three, -np.inf], dtype)),),
                expected=np.array([12.0, 0.0]),
                source="by hand",
            )
        )
        found.append(
            GoldenCase(
                function="softmax.ext_log",
                name=f"{np.dtype(dtype).name}, far beyond overflow",
                args=(ExtExp(np.array([1.25, 0.75, 0.0], dtype), np.array([100000, -5000, -np.inf], dtype)),),
                expected=np.array(
                    [float(mpmath.log(mpmath.mpf(m)) + n * mpmath.log(2)) for m, n in ((1.25, 100000), (0.75, -5000))]
                    + [-np.inf]
                ),
                tolerance=Tolerance(1, "ulp"),
                source=MPMATH,
            )
        )
    return found


def cases():
    rng = np.random.default_rng(200104438)
    found = pair_cases(rng)
    found += [case for case in where_cases(np.random.default_rng(20)) if case.function == "softmax.softmax"]
    hand = np.array([1000.0, 1001.0, 1002.0])
    truth = np.array([0.090030573170380458, 0.24472847105479765, 0.66524095577482189])
    gradient = np.array([0.14181709360981, 0.14077035746963, -0.28258745107944])
    for dtype in (np.float32, np.float64):
        found.append(
            GoldenCase(
                function="softmax.softmax",
                name=f"{np.dtype(dtype).name}, 1000 to 1002",
                args=(hand.astype(dtype),),
                expected=truth,
                tolerance=Tolerance(2, "ulp"),
                source="by hand: 1, e, e^2 over their sum",
            )
        )
        found.append(
            GoldenCase(
                function="softmax.softmax",
                name=f"{np.dtype(dtype).name}, 1000 to 1002",
                args=(hand.astype(dtype),),
                cotangent=np.array([1.0, 0.0, -1.0], dtype),
                expected=(gradient,),
                tolerance=Tolerance(1e-6 if dtype == np.float32 else 1e-12, "relative"),
                source="by hand: y (g - <g, y>), 13 digits",
            )
        )
    for scale in (1, 10, 30):
        for size in (10, 1000):
            x = (scale * rng.standard_normal((2, size))).astype(np.float32)
            found.append(
                GoldenCase(
                    function="softmax.softmax",
                    name=f"float32, N(0, {scale}), rows of {size}",
                    args=(x,),
                    expected=softmax_rows(x),
                    tolerance=Tolerance(2, "ulp"),
                    source=MPMATH,
                )
            )
    x = (3 * rng.standard_normal((3, 33))).astype(np.float32)
    cotangent = rng.standard_normal(x.shape).astype(np.float32)
    for dtype, limit in ((np.float32, 4), (np.float64, 8)):
        found.append(
            GoldenCase(
                function="softmax.softmax",
                name=f"{np.dtype(dtype).name}, rows of 33",
                args=(x.astype(dtype),),
                cotangent=cotangent.astype(dtype),
                expected=(gradient_rows(x, cotangent),),
                tolerance=Tolerance(limit, "ulp_of_largest"),
                source=MPMATH,
            )
        )
    x = 5 * rng.standard_normal((2, 3, 4))
    for axis in (-1, 0, 1):
        found.append(
            GoldenCase(
                function="softmax.softmax",
                name=f"float64, axis {axis}",
                args=(x,),
                options={"axis": axis},
                expected=np.moveaxis(softmax_rows(np.ascontiguousarray(np.moveaxis(x, axis, -1))), -1, axis),
                tolerance=Tolerance(6, "ulp"),
                source=MPMATH,
            )
        )
    for algorithm in THREE_PASS:
        found.append(
            GoldenCase(
                function="softmax.softmax",
                name=f"float64, {algorithm}",
                args=(x,),
                options={"algorithm": algorithm},
                expected=softmax_rows(x),
                # Half a unit of x - max(x), here up to 2**5, becomes relative error.
                tolerance=Tolerance(32 * 2.0**-53, "relative"),
                source=MPMATH,
            )
        )
    inf, nan = np.inf, np.nan
    for dtype in (np.float32, np.float64):
        found.append(
            GoldenCase(
                function="softmax.softmax",
                name=f"{np.dtype(dtype).name}, masked, infinite, NaN and huge entries",
                args=(
                    np.array(
                        [[2, 2, -inf], [-inf] * 3, [inf, 0, 1], [nan, 0, 1], [3e38, 3e38, -3e38], [-inf, -3e38, -inf]],
                        dtype,
                    ),
                ),
                expected=np.array([[0.5, 0.5, 0], [nan] * 3, [nan] * 3, [nan] * 3, [0.5, 0.5, 0], [0, 1, 0]]),
                tolerance=Tolerance(1, "ulp"),
                source="by hand",
            )
        )
        found.append(
            GoldenCase(
                function="softmax.softmax",
                name=f"{np.dtype(dtype).name}, one entry: 1, whatever it is",
                args=(np.array([[7.0], [-700.0]], dtype),),
                expected=np.ones((2, 1)),
                source="by hand",
            )
        )
        found.append(
            GoldenCase(
                function="softmax.softmax",
                name=f"{np.dtype(dtype).name}, one entry: gradient 0",
                args=(np.array([[7.0], [-700.0]], dtype),),
                cotangent=np.array([[3.0], [0.3]], dtype),
                expected=(np.zeros((2, 1)),),
                source="by hand",
            )
        )
    found.append(
        GoldenCase(
            function="softmax.softmax",
            name="no rows",
            args=(np.zeros((0, 4)),),
            expected=np.zeros((0, 4)),
            source="by hand",
        )
    )
    found.append(
        GoldenCase(
            function="softmax.online_merge",
            name="two parts, and nothing with a part",
            args=(
                (np.array([2.0, -inf]), np.array([1.5, 0.0])),
                (np.array([1.0, 3.0]), np.array([2.0, 1.25])),
            ),
            expected=(np.array([2.0, 3.0]), np.array([float(mpmath.mpf(1.5) + 2 * mpmath.exp(-1)), 1.25])),
            tolerance=Tolerance(2, "ulp"),
            source=MPMATH,
        )
    )
    for algorithm, elements in (("three_pass_recompute", 4), ("three_pass_reload", 5), ("online", 3), ("two_pass", 3)):
        found.append(
            GoldenCase(
                function="softmax.memory_traffic",
                name=f"{algorithm}, float32",
                args=(algorithm, 1024, 4),
                expected=np.array(elements * 4096),
                source="by hand: passes over the row",
            )
        )
    return found
