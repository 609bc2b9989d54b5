"""Options mean the same to a function and to its vjp, are what is documented where they are left out, and do something."""

import inspect
import warnings

import numpy as np
import pytest
from discovery import TESTS, load

from refnorm import poincare

ball, conv = load(TESTS / "poincare" / "test_ball.py"), load(TESTS / "poincare" / "test_conv2d.py")
resnet = load(TESTS / "poincare" / "test_poincare_resnet.py")
RNG = np.random.default_rng(12)

X, Y, Z = ball.points(RNG, (3, 3, 3), 1.0)
STACKS = ball.points(RNG, (3, 2, 3, 3), 1.0)
FAR = X.copy()
FAR[1] *= 3 / np.linalg.norm(FAR[1])
EDGE = np.abs(X) / np.linalg.norm(X, axis=-1, keepdims=True) * (1 - 1e-7)
IMAGES = conv.images(RNG, (2, 3, 4, 4), 1.0)
FAR_IMAGES, EDGE_IMAGES = (np.tile(x.T[None, :, :, None], (1, 1, 1, 3)) for x in (FAR, EDGE))
MATRIX = RNG.standard_normal((3, 3))
WEIGHT, BIAS, GAIN = 0.3 * MATRIX, 0.1 * RNG.standard_normal(3), np.array(1.0)
KERNEL, LARGE = RNG.standard_normal((12, 2)), 30.0

OPTIONS = [
    *(
        (name, (*arguments, 1.0), "axis", -1, 1)
        for name, arguments in {
            "mobius_add": tuple(STACKS[:2]),
            "mobius_scalar_mul": (0.7, STACKS[0]),
            "mobius_matvec": (MATRIX, STACKS[0]),
            "exp0": (STACKS[0],),
            "log0": (STACKS[0],),
            "conformal_factor": (STACKS[0],),
            "project_ball": (3 * STACKS[0],),
            "dist": tuple(STACKS[:2]),
            "dist_sq": tuple(STACKS[:2]),
            "expmap": tuple(STACKS[:2]),
            "logmap": tuple(STACKS[:2]),
            "gyration": tuple(STACKS),
            "transport": tuple(STACKS),
            "relu": (STACKS[0],),
            "residual_add": tuple(STACKS[:2]),
        }.items()
    ),
    *(
        (name, arguments, "check", True, False)
        for name, arguments in {
            "mobius_add": (FAR, Y, 1.0),
            "mobius_scalar_mul": (0.7, FAR, 1.0),
            "mobius_matvec": (MATRIX, FAR, 1.0),
            "log0": (FAR, 1.0),
            "conformal_factor": (FAR, 1.0),
            "dist": (FAR, Y, 1.0),
            "dist_sq": (X, FAR, 1.0),
            "expmap": (FAR, Y, 1.0),
            "logmap": (FAR, Y, 1.0),
            "gyration": (X, FAR, Z, 1.0),
            "transport": (X, FAR, Z, 1.0),
            "relu": (FAR, 1.0),
            "residual_add": (FAR, Y, 1.0),
            "avg_pool2d": (FAR_IMAGES, 1.0),
            "beta_concat": ([X, FAR], 1.0),
            "conv2d": (FAR_IMAGES, KERNEL, BIAS[:2], 1.0),
            "fully_connected": (FAR, WEIGHT, BIAS, 1.0),
            "mlr": (FAR, WEIGHT, BIAS, 1.0),
            "midpoint": (FAR, 1.0),
            "midpoint_batch_norm": (FAR, BIAS, GAIN, 1.0),
            "midpoint_statistics": (FAR, 1.0),
            "frechet_mean": (FAR, 1.0),
        }.items()
    ),
    *(
        (name, arguments, "project", name != "mobius_matvec", name == "mobius_matvec")
        for name, arguments in {
            "mobius_matvec": (LARGE * MATRIX, X, 1.0),
            "exp0": (LARGE * X, 1.0),
            "expmap": (X, LARGE * Y, 1.0),
            "relu": (EDGE, 1.0),
            "avg_pool2d": (EDGE_IMAGES.swapaxes(2, 3), 1.0),
            "beta_concat": ([EDGE, EDGE], 1.0),
            "conv2d": (IMAGES, LARGE * KERNEL, BIAS[:2], 1.0),
            "fully_connected": (X, LARGE * WEIGHT, BIAS, 1.0),
            "midpoint_batch_norm": (X, BIAS, LARGE**2 * GAIN, 1.0),
        }.items()
    ),
    ("project_ball", (X, 1.0), "eps", 1e-5, 0.9),
    ("residual_add", (X, Y, 1.0), "order", "fr", "rf"),
    ("midpoint_batch_norm", (X, BIAS, GAIN, 1.0), "eps", 1e-6, 1e-3),
    ("conv2d", (IMAGES, KERNEL, BIAS[:2], 1.0), "stride", 1, (1, 2)),
    ("conv2d", (IMAGES, KERNEL, BIAS[:2], 1.0), "padding", 0, (0, 1)),
    ("avg_pool2d", (IMAGES, 1.0), "stride", (2, 1), (1, 2)),
    ("poincare_resnet", (resnet.PARAMS, resnet.X, 0.5), "order", "fr", "rf"),
    ("poincare_resnet", (resnet.PARAMS, resnet.X, 0.5), "eps", 1e-6, 1e-3),
    ("poincare_resnet", (resnet.PARAMS, resnet.X, 0.5), "running", None, resnet.RUNNING),
]
REQUIRED = {"conv2d": {"kernel": 2}, "avg_pool2d": {"size": (2, 1)}}


def outcome(function, arguments, options):
    """Return the arrays of a result, or what the error says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Points outside the ball have no logarithm.
        try:
            value = function(*arguments, **options)
        except (ValueError, ArithmeticError) as error:
            return str(error)
    return [value.x] if hasattr(value, "x") else [*value] if isinstance(value, tuple) else [value]


def same(one, other):
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("name", "arguments", "option", "default", "other"), OPTIONS, ids=[f"{row[0]}-{row[2]}" for row in OPTIONS]
)
def test_option(name, arguments, option, default, other):
    function, required = getattr(poincare, name), REQUIRED.get(name, {})
    results = {}
    for key, given in (("omitted", {}), ("default", {option: default}), ("other", {option: other})):
        results[key] = outcome(function, arguments, required | given)
        f_vjp = getattr(poincare, f"{name}_vjp", None)
        if f_vjp is not None:
            assert same(outcome(lambda *a, f=f_vjp, **o: f(*a, **o)[0], arguments, required | given), results[key])
    assert same(results["omitted"], results["default"])
    assert not same(results["omitted"], results["other"])


ARGUMENTS = {
    "mobius_add": (X, Y),
    "mobius_matvec": (MATRIX, X),
    "exp0": (X,),
    "log0": (X,),
    "conformal_factor": (X,),
    "project_ball": (X,),
    "dist": (X, Y),
    "dist_sq": (X, Y),
    "expmap": (X, Y),
    "logmap": (X, Y),
    "gyration": (X, Y, Z),
    "transport": (X, Y, Z),
    "relu": (X,),
    "residual_add": (X, Y),
    "avg_pool2d": (IMAGES,),
    "conv2d": (IMAGES, KERNEL, BIAS[:2]),
    "fully_connected": (X, WEIGHT, BIAS),
    "mlr": (X, WEIGHT, BIAS),
    "midpoint": (X,),
    "midpoint_batch_norm": (X, BIAS, GAIN),
    "midpoint_statistics": (X,),
    "frechet_mean": (X,),
}


@pytest.mark.parametrize(
    ("name", "position"), [(name, i) for name, arrays in ARGUMENTS.items() for i in range(len(arrays))]
)
def test_every_array_is_checked(name, position):
    function, required, arrays = getattr(poincare, name), REQUIRED.get(name, {}), ARGUMENTS[name]
    argument = list(inspect.signature(function).parameters)[position]

    def call(array):
        return function(*arrays[:position], array, *arrays[position + 1 :], 1.0, **required)

    with pytest.raises(TypeError, match=f"{argument}: expected a float32 or float64 array, got dtype int64"):
        call(np.zeros_like(arrays[position], dtype=np.int64))
    if len(arrays) == 1:
        return
    with pytest.raises(
        TypeError, match="expected dtype (float64 like [a-z]+, got float32|float32 like [a-z]+, got float64)"
    ):
        call(arrays[position].astype(np.float32))
    with pytest.raises(ValueError, match="expected (shape|padded|2 dimensions|4 dimensions|at least)"):
        call(arrays[position][..., None])
