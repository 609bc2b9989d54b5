import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.quantizers import (
    affine_qparams,
    dequantize,
    fake_quantize,
    fake_quantize_vjp,
    lsq_scale,
    quantize,
    rounding_error_bound,
)

RNG = np.random.default_rng(1)


def straight_through(x, scale, zero_point, *, bits=8, signed=True, narrow=False, noise=None, share=1.0):
    """The smooth function that the pullback at these arguments belongs to: rounding errors held.

    ``share`` below 1 lets only that share of a change of the scale through, with the same value.
    """
    lowest = -(2 ** (bits - 1)) + narrow if signed else 0
    highest = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    error = np.rint(x / scale) - x / scale if noise is None else np.floor(x / scale + noise) - x / scale
    moved = np.rint(zero_point) - zero_point
    code = x / scale + error + zero_point + moved
    below, above = code < lowest - 0.25, code > highest + 0.25
    first = np.asarray(scale)

    def surrogate(x, scale, zero_point, **_):
        scale = share * scale + (1 - share) * first
        outside = scale * (np.where(below, lowest, highest) - zero_point - moved)
        return np.where(below | above, outside, scale * (x / scale + error))

    return surrogate


def case(x, scale, zero_point, options=None, name="", **grid):
    return GradientCase(
        fake_quantize_vjp,
        (x, scale, zero_point),
        {**grid, **(options or {})},
        surrogate=straight_through(x, scale, zero_point, **grid),
        name=name,
    )


SAMPLE = 3 * RNG.standard_normal((4, 5))
CHANNEL_SCALES = RNG.uniform(0.05, 0.4, (1, 5))
NOISE_SEED = 5
TIES = np.array([-4.5, -4.0, -0.5, 0.0, 0.5, 1.5, 3.5, 3.0, 3.49])

GRADIENT_CASES = [
    case(SAMPLE, np.array(0.3), np.array(2.0), bits=4, name="learned zero point, clipped at both ends"),
    case(SAMPLE, np.array(0.3), np.array(1.7), bits=4, name="zero point between two codes"),
    case(SAMPLE, CHANNEL_SCALES, np.zeros((1, 5)), bits=5, narrow=True, name="per channel"),
    case(SAMPLE, CHANNEL_SCALES, np.array(3, dtype=np.int32), bits=4, name="integer zero point has no entry"),
    case(SAMPLE, 0.25, 100, signed=False, name="scale is a Python float"),
    case(SAMPLE, np.full((4, 1), 0.01), np.full((4, 1), 2.0), bits=2, signed=False, name="all but all clipped"),
    case(TIES, np.array(1.0), np.array(0.0), bits=3, name="ties and both ends"),
    case(SAMPLE.reshape(2, 2, 5), np.array([[[0.3]], [[0.1]]]), np.zeros((2, 2, 1)), bits=16, name="groups"),
    GradientCase(
        fake_quantize_vjp,
        (SAMPLE, np.array(0.3), np.array(2.0)),
        call=lambda x, scale, zero_point: fake_quantize_vjp(
            x, scale, zero_point, bits=4, rounding="stochastic", rng=np.random.default_rng(NOISE_SEED)
        ),
        surrogate=straight_through(
            SAMPLE, 0.3, 2.0, bits=4, noise=np.random.default_rng(NOISE_SEED).random(SAMPLE.shape)
        ),
        name="stochastic",
    ),
    GradientCase(
        fake_quantize_vjp,
        (SAMPLE, CHANNEL_SCALES, 0),
        {"bits": 4, "lsq_grad_scale": True},
        surrogate=straight_through(SAMPLE, CHANNEL_SCALES, 0, bits=4, share=1 / np.sqrt(4 * 7)),
        name="LSQ gradient scale",
    ),
]

numbers = st.floats(-1e3, 1e3, width=32)
grids = st.fixed_dictionaries(
    {"bits": st.integers(2, 16), "signed": st.just(True), "narrow": st.booleans()}
) | st.fixed_dictionaries({"bits": st.integers(2, 16), "signed": st.just(False)})


def random_array(seed, shape, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@given(values=st.lists(numbers, min_size=1, max_size=20), grid=grids, symmetric=st.booleans())
def test_numbers_of_the_range_move_by_at_most_half_a_scale(values, grid, symmetric):
    x = np.array(values)
    if symmetric and not grid["signed"]:
        x = np.abs(x)
    scale, zero_point = affine_qparams(x, symmetric=symmetric, **grid)
    error = np.abs(fake_quantize(x, scale, zero_point, **grid) - x)
    # The rounded zero point shifts an asymmetric grid by at most half a scale, which the ends may lose.
    allowed = rounding_error_bound(scale) * (1 if symmetric else 2)
    assert (error <= allowed * (1 + 1e-9)).all()


@given(seed=st.integers(0, 99), grid=grids, dtype=st.sampled_from([np.float32, np.float64]))
def test_fake_quantization_is_idempotent_and_equals_the_round_trip(seed, grid, dtype):
    x = random_array(seed, (3, 7), dtype)
    scale, zero_point = affine_qparams(x, symmetric=False, axis=0, **grid)
    once = fake_quantize(x, scale, zero_point, **grid)
    codes = quantize(x, scale, zero_point, **grid)
    np.testing.assert_array_equal(fake_quantize(once, scale, zero_point, **grid), once)
    np.testing.assert_array_equal(dequantize(codes, scale, zero_point), once)
    np.testing.assert_array_equal(quantize(once, scale, zero_point, **grid), codes)


@given(seed=st.integers(0, 99), rounding=st.sampled_from(["nearest", "floor", "away"]))
def test_codes_are_monotone(seed, rounding):
    x = np.sort(random_array(seed, 50))
    codes = quantize(x, 0.11, 3, bits=4, rounding=rounding)
    assert (np.diff(codes.astype(int)) >= 0).all()


@given(seed=st.integers(0, 99), grid=grids)
def test_zero_stays_zero(seed, grid):
    x = 5 + random_array(seed, 9)
    scale, zero_point = affine_qparams(x, symmetric=False, **grid)
    assert fake_quantize(np.zeros(1), scale, zero_point, **grid) == 0


@given(seed=st.integers(0, 99), bits=st.integers(2, 6), symmetric=st.booleans())
def test_mse_range_is_no_worse_than_the_full_range(seed, bits, symmetric):
    x = np.random.default_rng(seed).standard_t(2, size=(3, 40))
    errors = {}
    for method in ("minmax", "mse"):
        scale, zero_point = affine_qparams(x, bits=bits, symmetric=symmetric, axis=0, method=method)
        errors[method] = np.square(fake_quantize(x, scale, zero_point, bits=bits) - x).sum(axis=1)
    assert (errors["mse"] <= errors["minmax"]).all()


def test_mse_range_is_the_best_of_its_grid():
    x = RNG.standard_normal(64)
    scale, _ = affine_qparams(x, bits=3, method="mse", n_grid=20)
    candidates = np.abs(x).max() * np.arange(1, 21) / 20 / 3
    errors = [np.square(fake_quantize(x, float(s), 0, bits=3) - x).sum() for s in candidates]
    assert float(scale) == pytest.approx(candidates[int(np.argmin(errors))], rel=1e-15)


def test_mse_tie_goes_to_the_larger_range():
    # Ranges 1 and 1/2 represent every entry of -1/2, 0 exactly on the grid -2 .. 1 of steps 1/2 and 1/4.
    scale, zero_point = affine_qparams(np.array([-0.5, 0.0]), bits=2, symmetric=True, method="mse", n_grid=2)
    assert (float(scale), int(zero_point)) == (0.5, 0)


def test_percentile_ignores_the_tail():
    x = np.linspace(-1, 1, 1001)
    x[-1] = 1e6
    scale, _ = affine_qparams(x, method="percentile", percentile=0.99)
    assert float(scale) * 127 == pytest.approx(0.98)
    assert affine_qparams(x, method="percentile", percentile=1.0) == affine_qparams(x)


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("nearest", [-2, -2, 0, 0, 0, 0, 2, 2]),
        ("away", [-3, -2, -1, 0, 0, 1, 2, 3]),
        ("floor", [-3, -2, -1, 0, 0, 0, 1, 2]),
    ],
)
def test_rounding_modes_at_ties(rounding, expected):
    below_half = np.nextafter(0.5, 0)
    x = np.array([-2.5, -1.5, -0.5, 0.0, below_half, 0.5, 1.5, 2.5])
    np.testing.assert_array_equal(quantize(x, 1.0, 0, rounding=rounding), expected)


def test_stochastic_rounding_is_right_on_average():
    x = np.repeat([-1.75, 0.25, 0.5, 2.0], 40_000).reshape(4, -1)
    codes = quantize(x, 1.0, 0, rounding="stochastic", rng=np.random.default_rng(0))
    # Five standard deviations of a mean of 40 000 numbers of standard deviation at most 1/2.
    np.testing.assert_allclose(codes.mean(axis=1), x[:, 0], atol=0.0125)
    assert (codes[3] == 2).all()


def test_stochastic_rounding_is_reproducible():
    x = RNG.standard_normal(100)
    first, second = (fake_quantize(x, 0.1, 0, rounding="stochastic", rng=np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_rounding_precedes_the_zero_point():
    # 0.5 rounds to 0, and 1 is added; rounding 0.5 + 1 would give 2.
    assert quantize(np.array([0.5]), 1.0, 1) == [1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_values(dtype):
    # The largest number itself may round to a grid point above it, which is infinite.
    largest, smallest = 0.99 * np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal
    for x in (np.zeros(3), np.array([largest, -largest]), np.array([smallest, 0]), np.array(2.5)):
        x = x.astype(dtype)
        for symmetric in (False, True):
            for method in ("minmax", "mse", "percentile"):
                scale, zero_point = affine_qparams(x, symmetric=symmetric, method=method)
                assert scale.dtype == dtype
                assert np.isfinite(scale)
                y = fake_quantize(x, scale, zero_point)
                assert np.isfinite(y).all()
                if method == "minmax":
                    assert (np.abs(y - x) <= scale).all()
    assert (fake_quantize(np.array([largest, -largest], dtype), np.array(smallest), 0) == smallest * np.array([127, -128], dtype)).all()  # fmt: skip


def test_slice_of_zeros_gets_scale_one():
    scale, zero_point = affine_qparams(np.array([[0.0, 0.0], [1.0, -1.0]]), axis=0, symmetric=False)
    assert scale.shape == (2, 1)
    assert scale[0, 0] == 1
    assert fake_quantize(np.zeros((2, 2)), scale, zero_point).tolist() == [[0, 0], [0, 0]]
    assert lsq_scale(np.zeros(4)) == 1


def test_empty_input_gives_empty_codes():
    assert quantize(np.zeros((0, 3)), 1.0, 0).shape == (0, 3)
    y, pullback = fake_quantize_vjp(np.zeros((0, 3)), 1.0, 0, lsq_grad_scale=True)
    assert y.shape == (0, 3)
    assert pullback(y)[1] == 0


def test_groups_share_a_scale():
    x = RNG.standard_normal((4, 6))
    scale, _ = affine_qparams(x.reshape(4, 2, 3), axis=(0, 1))
    assert scale.shape == (4, 2, 1)
    np.testing.assert_array_equal(scale[1, 1, 0], np.abs(x[1, 3:]).max() / 127)


@pytest.mark.parametrize(("bits", "signed", "dtype"), [(2, True, "i1"), (8, True, "i1"), (8, False, "u1"), (9, False, "i4")])  # fmt: skip
def test_smallest_fitting_code_type(bits, signed, dtype):
    codes = quantize(np.array([-1e9, 1e9]), 1.0, 0, bits=bits, signed=signed)
    assert codes.dtype == dtype
    assert codes.tolist() == ([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_for_the_affine_quantizer(dtype):
    x = RNG.standard_normal((2, 3)).astype(dtype)
    scale, zero_point = affine_qparams(x, axis=1, symmetric=False)
    assert (scale.dtype, zero_point.dtype) == (dtype, np.int32)
    y, pullback = fake_quantize_vjp(x, scale, zero_point.astype(dtype), lsq_grad_scale=True)
    assert y.dtype == dequantize(quantize(x, scale, zero_point), scale, zero_point).dtype == dtype
    assert [entry.dtype for entry in pullback(y)] == [dtype] * 3
    assert lsq_scale(x).dtype == rounding_error_bound(scale).dtype == dtype


def test_affine_arguments_are_not_written_to():
    x, scale, zero_point = RNG.standard_normal((2, 3)), np.full((1, 3), 0.1), np.zeros((1, 3))
    for array in (x, scale, zero_point):
        array.setflags(write=False)
    affine_qparams(x, method="mse")
    _, pullback = fake_quantize_vjp(x, scale, zero_point)
    pullback(x)


ONES = np.ones((2, 3))


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (quantize, (ONES.astype(int), 1.0, 0), {}, TypeError, "x: expected a float32 or float64 array, got dtype int64"),
        (quantize, (np.array([1.0, np.nan]), 1.0, 0), {}, ValueError, r"x: expected finite values, got 1 .* index \(1,\)"),
        (quantize, (ONES, 0.0, 0), {}, ValueError, "scale: expected finite numbers > 0, got 0.0"),
        (quantize, (ONES, np.inf, 0), {}, ValueError, "scale: expected finite numbers > 0"),
        (quantize, (ONES, np.float32(1), 0), {}, TypeError, "scale: expected dtype float64 like x, got float32"),
        (quantize, (ONES, np.ones(3), 0), {}, ValueError, r"scale: expected shape \(\) or \(2, 3\) with any size 1, like x, got \(3,\)"),
        (quantize, (ONES, np.ones((2, 4)), 0), {}, ValueError, r"scale: expected shape"),
        (quantize, (ONES, 1.0, 128), {}, ValueError, "zero_point: expected values of at most 127, got 128"),
        (quantize, (ONES, 1.0, -128), {"narrow": True}, ValueError, "zero_point: expected values of at least -127"),
        (quantize, (ONES, 1.0, np.zeros(3, int)), {}, ValueError, r"zero_point: expected shape"),
        (fake_quantize, (ONES, 1.0, np.array(7.6)), {"bits": 4}, ValueError, "zero_point: expected values from -8 to 7"),
        (fake_quantize, (ONES, 1.0, np.float32(0)), {}, TypeError, "zero_point: expected dtype float64 like x"),
        (quantize, (ONES, 1.0, 0), {"bits": 1}, ValueError, "bits: expected an integer >= 2 and <= 16, got 1"),
        (quantize, (ONES, 1.0, 0), {"bits": 17}, ValueError, "bits: expected an integer"),
        (quantize, (ONES, 1.0, 0), {"signed": False, "narrow": True}, ValueError, "narrow: expected False for an unsigned grid"),
        (quantize, (ONES, 1.0, 0), {"rounding": "up"}, ValueError, "rounding: expected one of 'nearest'"),
        (quantize, (ONES, 1.0, 0), {"rounding": "stochastic"}, TypeError, "rng: expected a numpy.random.Generator"),
        (dequantize, (ONES, 1.0, 0), {}, TypeError, "q: expected an integer array"),
        (dequantize, (np.ones(3, int), 1.0, 0.5), {}, TypeError, "zero_point: expected an integer array"),
        (dequantize, (np.ones(3, int), np.ones(1, int), 0), {}, TypeError, "scale: expected a float32 or float64 array"),
        (affine_qparams, (np.zeros((0, 2)),), {}, ValueError, "x: expected at least one entry along axes"),
        (affine_qparams, (np.array([np.inf]),), {}, ValueError, "x: expected finite values"),
        (affine_qparams, (ONES,), {"method": "max"}, ValueError, "method: expected one of 'minmax'"),
        (affine_qparams, (ONES,), {"method": "absmax", "symmetric": False}, ValueError, "symmetric: expected True for method 'absmax'"),
        (affine_qparams, (ONES,), {"method": "percentile", "percentile": 0.5}, ValueError, r"percentile: expected a number in \(0.5, 1.0\]"),
        (affine_qparams, (ONES,), {"method": "mse", "n_grid": 0}, ValueError, "n_grid: expected an integer >= 1, got 0"),
        (affine_qparams, (ONES,), {"axis": 2}, ValueError, "axis: expected integers from -2 to 1, got 2"),
        (rounding_error_bound, (-1.0,), {}, ValueError, "scale: expected finite numbers > 0, got -1.0"),
    ],
)  # fmt: skip
def test_bad_input_of_the_affine_quantizer_is_named(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)
