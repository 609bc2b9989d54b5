from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    MgNOLayer,
    conv_transpose2d,
    conv_transpose2d_vjp,
    init_mgno,
    init_vcycle,
    mgno,
    mgno_layer,
    mgno_layer_vjp,
    mgno_vjp,
    padded_conv2d,
    padded_conv2d_vjp,
    poisson_vcycle,
    vcycle,
    vcycle_vjp,
)
from refnorm.tree import tree_leaves, tree_map

RNG = np.random.default_rng(23)


def cycle(c_f=2, c_u=3, levels=3, seed=0, **options):
    return init_vcycle(np.random.default_rng(seed), c_f, c_u, levels, **options)


def network(**options):
    return init_mgno(np.random.default_rng(1), 2, 3, 1, levels=2, depth=2, **options)


SINGLE = ((3, 0),)
GRADIENT_CASES = [
    *(
        GradientCase(
            padded_conv2d_vjp,
            (RNG.standard_normal((2, 2, 5, 4)), RNG.standard_normal((3, 2, 3, 3))),
            {"mode": mode, "stride": stride, "padding": padding},
            method="complex",
            name=f"{mode}, stride {stride}, padding {padding}",
        )
        for mode in ("zeros", "circular", "reflect")
        for stride, padding in ((1, 1), (2, 1), (1, 2))
    ),
    *(
        GradientCase(
            conv_transpose2d_vjp,
            (RNG.standard_normal((2, 2, 3, 4)), RNG.standard_normal((2, 3, size, size))),
            {"stride": stride, "padding": padding},
            method="complex",
            name=f"kernel {size}, stride {stride}, padding {padding}",
        )
        for size, stride, padding in ((4, 2, 1), (3, 2, 0), (3, 1, 1), (2, 3, 0))
    ),
    *(
        GradientCase(
            vcycle_vjp,
            (RNG.standard_normal((2, 2, side, side)), cycle(levels=levels, geometry=geometry)),
            {"geometry": geometry, "mode": mode, "use_residual": use_residual},
            method="complex",
            name=f"{geometry}, {mode}, residual {use_residual}",
        )
        for geometry, mode, use_residual, side, levels in (
            ("even", "zeros", True, 8, 3),
            ("even", "circular", False, 8, 3),
            ("even", "reflect", True, 4, 2),
            ("odd", "zeros", True, 7, 3),
            ("odd", "reflect", False, 7, 2),
        )
    ),
    GradientCase(
        vcycle_vjp,
        (RNG.standard_normal((1, 1, 3, 5)), cycle(1, 1, 1, smoothings=SINGLE)),
        method="complex",
        name="one level",
    ),
    GradientCase(
        vcycle_vjp,
        (RNG.standard_normal((1, 2, 4, 4)), cycle(levels=3, smoothings=((1, 0), (0, 0), (0, 0)))),
        method="complex",
        name="levels without smoothing",
    ),
    GradientCase(
        vcycle_vjp,
        (RNG.standard_normal((1, 1, 7, 7)), poisson_vcycle(7, 2)),
        {"geometry": "odd"},
        method="complex",
        name="classical",
    ),
    GradientCase(mgno_layer_vjp, (RNG.standard_normal((2, 2, 4, 4)), network().layers[0]), name="bias a channel"),
    GradientCase(
        mgno_layer_vjp,
        (RNG.standard_normal((2, 2, 4, 4)), network(function_bias=(4, 4)).layers[0]),
        {"activation": "identity"},
        name="bias a function, linear",
    ),
    GradientCase(mgno_vjp, (RNG.standard_normal((2, 2, 4, 4)), network(function_bias=(4, 4))), name="two layers"),
]


def test_two_smoothings_of_a_pixel_by_hand():
    point = np.zeros((1, 1, 3, 3))
    point[0, 0, 1, 1] = 1
    weights = replace(
        cycle(1, 1, 1, smoothings=((2, 0),)), pre_operators=((point,),), pre_smoothers=((2 * point,) * 2,)
    )
    f = np.zeros((1, 1, 4, 4))
    f[0, 0, 1, 2] = 1
    np.testing.assert_array_equal(vcycle(f, weights), 0 * f)
    once = replace(weights, pre_operators=((),), pre_smoothers=((2 * point,),))
    np.testing.assert_array_equal(vcycle(f, once), 2 * f)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 999),
    geometry=st.sampled_from(["even", "odd"]),
    mode=st.sampled_from(["zeros", "circular"]),
    use_residual=st.booleans(),
)
def test_cycle_is_linear_and_its_pullback_is_its_adjoint(seed, geometry, mode, use_residual):
    rng = np.random.default_rng(seed)
    side = 8 if geometry == "even" else 7
    weights, options = (
        cycle(seed=seed, geometry=geometry),
        {"geometry": geometry, "mode": mode, "use_residual": use_residual},
    )
    f, g = rng.standard_normal((2, 2, 2, side, side))
    y, pullback = vcycle_vjp(f, weights, **options)
    size = 1e-12 * np.abs(y).max()
    np.testing.assert_allclose(
        vcycle(3 * f + g, weights, **options), 3 * y + vcycle(g, weights, **options), atol=10 * size
    )
    cotangent = rng.standard_normal(y.shape)
    adjoint = pullback(cotangent)[0]
    np.testing.assert_allclose(
        (cotangent * vcycle(g, weights, **options)).sum(), (adjoint * g).sum(), atol=1e-10 * (1 + np.abs(adjoint).sum())
    )


def test_transposed_convolution_is_the_adjoint_of_the_convolution():
    kernel = RNG.standard_normal((2, 3, 4, 4))
    x, y = RNG.standard_normal((2, 2, 4, 4)), RNG.standard_normal((2, 3, 8, 8))
    down = padded_conv2d(y, kernel, stride=2, padding=1)
    up = conv_transpose2d(x, kernel, stride=2, padding=1)
    np.testing.assert_allclose((down * x).sum(), (up * y).sum(), rtol=1e-12)


def test_classical_transfers_keep_constants_and_are_adjoint_up_to_a_quarter():
    weights = poisson_vcycle(7, 2)
    restriction, prolongation = weights.restrictions[0], weights.prolongations[0]
    np.testing.assert_array_equal(
        padded_conv2d(np.ones((1, 1, 7, 7)), restriction, stride=2, padding=0), np.ones((1, 1, 3, 3))
    )
    fine = conv_transpose2d(np.ones((1, 1, 3, 3)), prolongation, stride=2)
    assert fine.shape == (1, 1, 7, 7)
    assert (fine[0, 0, 1:-1, 1:-1] == 1).all()
    x, y = RNG.standard_normal((1, 1, 7, 7)), RNG.standard_normal((1, 1, 3, 3))
    left = (padded_conv2d(x, restriction, stride=2, padding=0) * y).sum()
    np.testing.assert_allclose(left, (x * conv_transpose2d(y, prolongation, stride=2)).sum() / 4, rtol=1e-12)


def test_cycle_solves_poisson_when_repeated():
    n = 15
    operator = np.array([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]])[None, None] * (n + 1) ** 2
    weights, solution = poisson_vcycle(n, 3), RNG.standard_normal((2, 1, n, n))
    f, u = padded_conv2d(solution, operator), np.zeros((2, 1, n, n))
    for _ in range(25):
        u = u + vcycle(f - padded_conv2d(u, operator), weights, geometry="odd")
    np.testing.assert_allclose(u, solution, atol=1e-11)


def test_translation_on_a_periodic_even_grid_by_the_coarsest_cell():
    # All convolutions wrap around; the transposed ones are cut off at the border, so one level is left.
    weights = cycle(levels=1, smoothings=((3, 0),))
    f = RNG.standard_normal((1, 2, 6, 6))
    y = vcycle(f, weights, mode="circular")
    np.testing.assert_allclose(
        vcycle(np.roll(f, (1, 2), (2, 3)), weights, mode="circular"), np.roll(y, (1, 2), (2, 3)), atol=1e-13
    )


def test_state_restriction_of_zero_and_no_residual_start_the_correction_from_f():
    weights = poisson_vcycle(7, 2, smoothings=((1, 0), (1, 0)))
    f = RNG.standard_normal((1, 1, 7, 7))
    coarse = padded_conv2d(f, weights.restrictions[0], stride=2, padding=0)
    expected = padded_conv2d(f, weights.pre_smoothers[0][0]) + conv_transpose2d(
        padded_conv2d(coarse, weights.pre_smoothers[1][0]), weights.prolongations[0], stride=2
    )
    np.testing.assert_allclose(vcycle(f, weights, geometry="odd", use_residual=False), expected, atol=1e-14)


def test_coarsest_side_may_be_one():
    assert vcycle(np.ones((1, 1, 3, 7)), poisson_vcycle(3, 2), geometry="odd").shape == (1, 1, 3, 7)
    assert vcycle(np.ones((1, 2, 4, 4)), cycle(levels=3)).shape == (1, 3, 4, 4)


def test_first_smoothing_needs_no_operator_in_any_count():
    weights = cycle(levels=2, smoothings=((2, 1), (0, 0)))
    assert [len(k) for k in weights.pre_operators] == [1, 0]
    assert [len(k) for k in weights.pre_smoothers] == [2, 0]
    assert vcycle(np.ones((1, 2, 4, 4)), weights).shape == (1, 3, 4, 4)


def test_network_is_its_layers_in_turn():
    params, f = network(), RNG.standard_normal((2, 2, 4, 4))
    y = f
    for layer in params.layers:
        y = mgno_layer(y, layer)
    np.testing.assert_array_equal(mgno(f, params), padded_conv2d(y, params.head, padding=0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    params, f = network(dtype=dtype), RNG.standard_normal((2, 2, 4, 4)).astype(dtype)
    y, pullback = mgno_vjp(f, params)
    df, dparams = pullback(y)
    assert {y.dtype, df.dtype, *(leaf.dtype for _, leaf in tree_leaves(dparams))} == {np.dtype(dtype)}
    for mode in ("circular", "reflect"):
        y, pullback = vcycle_vjp(f, params.layers[0].weights, mode=mode)
        assert y.dtype == pullback(y)[0].dtype == dtype


def test_arguments_are_not_written_to():
    params, f = network(), RNG.standard_normal((2, 2, 4, 4))
    for array in (f, *(leaf for _, leaf in tree_leaves(params))):
        array.setflags(write=False)
    y, pullback = mgno_vjp(f, params)
    pullback(y)


F = np.ones((1, 2, 4, 4))
TWO = cycle(levels=2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: vcycle(np.ones((1, 2, 6, 6)), cycle(levels=3)), ValueError, r"levels: expected sides that are divisible by 2 on each of 2 finer levels, got \(6, 6\)"),
        (lambda: vcycle(np.ones((1, 2, 8, 8)), cycle(levels=2, geometry="odd"), geometry="odd"), ValueError, r"levels: expected sides that are 2 m \+ 1 on each of 1 finer levels, got \(8, 8\)"),
        (lambda: vcycle(np.ones((1, 3, 4, 4)), TWO), ValueError, r"weights.residual_operators.0: expected shape \(3, 3, 3, 3\), got \(2, 3, 3, 3\)"),
        (lambda: vcycle(F.astype("f4"), TWO), TypeError, "weights.residual_operators.0: expected dtype float32 like f, got float64"),
        (lambda: vcycle(F, TWO, geometry="odd"), ValueError, r"weights.prolongations.0: expected shape \(3, 3, 3, 3\), got \(3, 3, 4, 4\)"),
        (lambda: vcycle(F, TWO, geometry="cell"), ValueError, "geometry: expected one of 'even', 'odd', got 'cell'"),
        (lambda: vcycle(F, TWO, mode="same"), ValueError, "mode: expected one of 'zeros', 'circular', 'reflect', got 'same'"),
        (lambda: vcycle(np.ones((0, 2, 4, 4)), TWO), ValueError, "f: expected at least one entry along axes"),
        (lambda: vcycle(F, replace(TWO, restrictions=())), ValueError, "weights.restrictions: expected 1 kernels for 2 levels, got 0"),
        (lambda: vcycle(F, replace(TWO, pre_operators=((), ()))), ValueError, r"weights.pre_operators: expected \[0, 2\] kernels a level, got \[0, 0\]"),
        (lambda: padded_conv2d(np.ones((1, 1, 1, 5)), np.ones((1, 1, 3, 3)), mode="reflect"), ValueError, "x: expected sides of at least 2 for mode 'reflect'"),
        (lambda: padded_conv2d(F, np.ones((1, 2, 3, 3)), padding=-1), ValueError, "padding: expected an integer >= 0, got -1"),
        (lambda: conv_transpose2d(F, np.ones((3, 2, 3, 3))), ValueError, r"weight: expected shape \(2, 2, 3, 3\), got \(3, 2, 3, 3\)"),
        (lambda: conv_transpose2d(np.ones((1, 1, 1, 1)), np.ones((1, 1, 2, 2)), padding=1), ValueError, r"padding: expected less than half of \(2, 2\), got 1"),
        (lambda: init_vcycle(0, 1, 1, 1), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: cycle(levels=0), ValueError, "levels: expected an integer >= 1, got 0"),
        (lambda: cycle(smoothings=((1, 1),)), ValueError, "smoothings: expected 3 pairs, got 1"),
        (lambda: cycle(levels=1, smoothings=((0, 0),)), ValueError, r"smoothings: expected at least one smoothing down on the finest level, got \(0, 0\)"),
        (lambda: cycle(levels=1, smoothings=((1, 1),)), ValueError, r"smoothings: expected no smoothing up on the coarsest level, got \(1, 1\)"),
        (lambda: poisson_vcycle(8, 2), ValueError, r"levels: expected sides that are 2 m \+ 1"),
        (lambda: poisson_vcycle(7, 2, relaxation=2.0), ValueError, r"relaxation: expected a number in \(0, 2\), got 2.0"),
        (lambda: mgno_layer(F, network().layers[0], activation="relu"), ValueError, "activation: expected one of 'gelu', 'identity', got 'relu'"),
        (lambda: mgno_layer(F, MgNOLayer(TWO, np.ones((3, 2, 1, 1)), np.zeros(2))), ValueError, r"layer.bias: expected shape \(3, 1, 1\), got \(2, 1, 1\)"),
        (lambda: mgno_layer(F, MgNOLayer(TWO, np.ones((2, 2, 1, 1)), np.zeros(3))), ValueError, "layer.skip: expected shape"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_initial_kernels_are_within_their_bound():
    for _, kernel in tree_leaves(cycle()):
        assert np.abs(kernel).max() <= 1 / np.sqrt(kernel[0].size)
    zeros = tree_map(np.zeros_like, cycle())
    assert (vcycle(np.ones((1, 2, 4, 4)), zeros) == 0).all()
