import numpy as np
import pytest

from refnorm.gradcheck import GradientCase, GradientMismatch, check_vjp

RNG = np.random.default_rng(3)
X, W = RNG.standard_normal((4, 3)), RNG.standard_normal((3, 2))


def product_vjp(x, w, *, factor=1.0):
    return np.exp(factor * (x @ w)), lambda g: (
        factor * (g * np.exp(factor * (x @ w))) @ w.T,
        factor * x.T @ (g * np.exp(factor * (x @ w))),
    )


@pytest.mark.parametrize(("method", "limit"), [("complex", 1e-13), ("richardson", 1e-8)])
def test_a_right_pullback_passes_with_a_small_error(method, limit):
    report = check_vjp(product_vjp, X, W, options={"factor": 0.5}, method=method)
    assert report.worst_error < limit
    assert report.checks == 6


def wrong(change):
    def f_vjp(x, w):
        value, pullback = product_vjp(x, w)
        return value, lambda g: change(*pullback(g))

    return f_vjp


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda dx, dw: (-dx, dw), r"argument 0 of shape \(4, 3\), direction 0: expected .*, got"),
        (lambda dx, dw: (dx, dw * (1 + 1e-5)), r"argument 1 of shape \(3, 2\).*relative error"),
        (lambda dx, dw: (dx,), "returned 1 cotangents for 2 float arguments"),
        (lambda dx, dw: [dx, dw], "returned list, expected a tuple"),
        (lambda dx, dw: (dx, dw.T), r"argument 1 has shape \(2, 3\), expected \(3, 2\)"),
        (lambda dx, dw: (dx.astype("f4"), dw), "argument 0 has dtype float32, expected float64"),
        (lambda dx, dw: (dx * np.nan, dw), "got nan"),
    ],
)
@pytest.mark.parametrize("method", ["complex", "richardson"])
def test_a_wrong_pullback_is_named(change, message, method):
    with pytest.raises(GradientMismatch, match=message):
        check_vjp(wrong(change), X, W, method=method)


def test_nan_is_a_mismatch_also_where_the_derivative_is_zero():
    with pytest.raises(GradientMismatch, match="got nan"):
        check_vjp(lambda x: (np.zeros(3), lambda g: (np.full_like(x, np.nan),)), X)


def test_trees_floats_integers_and_missing_arrays():
    def f_vjp(params, scale, index, bias):
        assert bias is None
        value = {"out": scale * params["w"][0][index]}

        def pullback(g):
            dw = np.zeros_like(params["w"][0])
            np.add.at(dw, index, scale * g["out"])
            dscale = np.asarray((g["out"] * params["w"][0][index]).sum())
            return {"w": [dw], "b": np.zeros(2)}, dscale, None

        return value, pullback

    params = {"w": [RNG.standard_normal(5)], "b": np.ones(2)}
    assert check_vjp(f_vjp, params, 2.0, np.array([0, 0, 3]), None).worst_error < 1e-9


def test_a_missing_array_has_no_cotangent():
    with pytest.raises(GradientMismatch, match="argument 1 is None but got a cotangent"):
        check_vjp(lambda x, bias: (2 * x, lambda g: (2 * g, g)), X, None)


def test_surrogate_replaces_the_function():
    def rounded_vjp(x):
        return np.rint(x), lambda g: (g,)

    case = GradientCase(rounded_vjp, (X,), surrogate=lambda x: x)
    assert case.check().worst_error < 1e-9
    with pytest.raises(GradientMismatch):
        check_vjp(rounded_vjp, X)


def test_call_binds_keyword_arrays():
    def f_vjp(x, *, weights):
        return x * weights, lambda g: (g * weights, g * x)

    GradientCase(f_vjp, (X, X + 1), call=lambda x, w: f_vjp(x, weights=w)).check()


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method: expected one of 'complex', 'richardson', got 'magic'"):
        check_vjp(product_vjp, X, W, method="magic")
