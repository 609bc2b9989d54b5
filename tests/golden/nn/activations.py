"""Truth for the activations: the definitions in mpmath at 50 digits."""

import mpmath
import numpy as np

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
SOURCE = "mpmath, 50 digits"


def exact(x):
    return x * mpmath.ncdf(x)


def exact_slope(x):
    return mpmath.ncdf(x) + x * mpmath.npdf(x)


def tanh_inner(x):
    return mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)


def tanh(x):
    # (1 + tanh u) / 2 as a logistic function, which keeps its digits for negative u.
    return x / (1 + mpmath.exp(-2 * tanh_inner(x)))


def tanh_slope(x):
    probability = 1 / (1 + mpmath.exp(-2 * tanh_inner(x)))
    inner = mpmath.sqrt(2 / mpmath.pi) * (1 + 3 * mpmath.mpf("0.044715") * x**2)
    return probability + 2 * x * probability * (1 - probability) * inner


def logistic(x):
    return 1 / (1 + mpmath.exp(-x))


# Value and slope, from the definitions.
LOGISTIC_RELATIVES = {
    "sigmoid": (logistic, lambda x: logistic(x) * logistic(-x)),
    "silu": (lambda x: x * logistic(x), lambda x: logistic(x) + x * logistic(x) * logistic(-x)),
    "softplus": (lambda x: mpmath.log1p(mpmath.exp(x)), logistic),
    "erf": (mpmath.erf, lambda x: 2 / mpmath.sqrt(mpmath.pi) * mpmath.exp(-x * x)),
}


def truth(function, x):
    return np.array([float(function(mpmath.mpf(float(v)))) for v in x.ravel()]).reshape(x.shape)


def cases():
    rng = np.random.default_rng(20160627)
    found = []
    for dtype in (np.float64, np.float32):
        inputs = {
            "standard normal": rng.standard_normal(65),
            "grid from -6 to 9": np.linspace(-6, 9, 61),
            "near zero": np.array([0.0, 1e-30, -1e-30, 1e-8, -1e-8, 1e-3, -1e-3]),
        }
        for name, values in inputs.items():
            x = values.astype(dtype)
            cotangent = rng.standard_normal(x.shape).astype(dtype)
            for approximate, value, slope in (("none", exact, exact_slope), ("tanh", tanh, tanh_slope)):
                common = {
                    "function": "nn.gelu",
                    "name": f"{approximate}, {np.dtype(dtype)}, {name}",
                    "args": (x,),
                    "options": {"approximate": approximate},
                    "source": SOURCE,
                }
                # In the tail Phi changes by x^2 units for one of the rounded argument: 36 at -6.
                found.append(GoldenCase(**common, expected=truth(value, x), tolerance=Tolerance(1e-14, "relative") if dtype is np.float64 else Tolerance(4, "ulp")))  # fmt: skip
                # The slope has a zero near -0.75: an error relative to the entry has no meaning there.
                found.append(
                    GoldenCase(
                        **common,
                        cotangent=cotangent,
                        expected=(truth(slope, x) * cotangent.astype(np.float64),),
                        tolerance=Tolerance(8, "ulp_of_largest"),
                    )
                )
            for function, (value, slope) in LOGISTIC_RELATIVES.items():
                common = {
                    "function": f"nn.{function}",
                    "name": f"{function}, {np.dtype(dtype)}, {name}",
                    "args": (x,),
                    "source": SOURCE,
                }
                found.append(GoldenCase(**common, expected=truth(value, x), tolerance=Tolerance(3, "ulp")))
                found.append(
                    GoldenCase(
                        **common,
                        cotangent=cotangent,
                        expected=(truth(slope, x) * cotangent.astype(np.float64),),
                        tolerance=Tolerance(8, "ulp_of_largest"),
                    )
                )
            common = {"function": "nn.relu", "name": f"{np.dtype(dtype)}, {name}", "args": (x,), "source": "by hand"}
            found.append(GoldenCase(**common, expected=np.where(x > 0, x, 0)))
            found.append(GoldenCase(**common, cotangent=cotangent, expected=(np.where(x > 0, cotangent, 0),)))
        special = np.array([np.inf, -np.inf, np.nan, 1e30, -1e30], dtype)
        for approximate in ("none", "tanh"):
            found.append(
                GoldenCase(
                    "nn.gelu",
                    f"{approximate}, {np.dtype(dtype)}, special values",
                    (special,),
                    np.array([np.inf, 0, np.nan, dtype(1e30), 0], dtype),
                    "by hand: limits at infinity; Phi(-1e30) is below the smallest number",
                    options={"approximate": approximate},
                )
            )
        limits = {
            "sigmoid": [1, 0, np.nan, 1, 0],
            "silu": [np.inf, 0, np.nan, dtype(1e30), 0],
            "softplus": [np.inf, 0, np.nan, dtype(1e30), 0],
            "erf": [1, -1, np.nan, 1, -1],
        }
        for function, expected in limits.items():
            found.append(
                GoldenCase(
                    f"nn.{function}",
                    f"{function}, {np.dtype(dtype)}, special values",
                    (special,),
                    np.array(expected, dtype),
                    "by hand: limits at infinity",
                )
            )
        found.append(
            GoldenCase(
                "nn.relu",
                f"{np.dtype(dtype)}, special values",
                (special,),
                np.array([np.inf, 0, np.nan, dtype(1e30), 0], dtype),
                "by hand",
            )
        )
    return found
