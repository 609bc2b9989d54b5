import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.norms import (
    batch_norm,
    instance_norm,
    region_norm_basic,
    region_norm_basic_vjp,
    region_norm_learnable,
    region_norm_learnable_vjp,
    region_normalize,
    region_normalize_vjp,
    resize_mask_nearest,
)

RNG = np.random.default_rng(1911)
SHAPE = (2, 3, 4, 5)
MASK = RNG.random((2, 1, 4, 5)) > 0.4
FILTERS = ((1, 2, 3, 5), (1, 1, 7, 7), (1,), (1, 1, 3, 3), (1,))


def draw(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


def with_mask(function, mask=MASK):
    return lambda x, *params, **options: function(x, mask, *params, **options)


GRADIENT_CASES = [
    GradientCase(region_normalize_vjp, draw(SHAPE), call=with_mask(region_normalize_vjp), method="complex"),
    GradientCase(
        region_normalize_vjp, draw(SHAPE), {"stats": "instance", "eps_mode": "plain", "eps": 0.1}, call=with_mask(region_normalize_vjp), method="complex", name="instance, plain eps"
    ),
    GradientCase(region_normalize_vjp, draw(SHAPE), call=with_mask(region_normalize_vjp, np.ones_like(MASK)), name="one region"),
    GradientCase(region_normalize_vjp, (np.ones(SHAPE),), {"eps": 0.1}, call=with_mask(region_normalize_vjp), method="complex", name="constant"),
    GradientCase(region_norm_basic_vjp, draw(SHAPE, 3, 3, 3, 3), call=with_mask(region_norm_basic_vjp), method="complex"),
    GradientCase(
        region_norm_basic_vjp, draw(SHAPE, 3, 3, 3, 3), {"shared_bias": True, "stats": "instance"}, call=with_mask(region_norm_basic_vjp, np.array([1, 0, 1, 1, 0, 1, 1, 0]).reshape(2, 1, 2, 2)), method="complex", name="shared bias, small mask"
    ),
    GradientCase(region_norm_learnable_vjp, draw(SHAPE, *FILTERS), {"threshold": 0.5}, method="complex"),
    GradientCase(region_norm_learnable_vjp, draw(SHAPE, *FILTERS), {"threshold": 0.6, "stats": "instance", "eps": 0.1}, method="complex", name="instance"),
    GradientCase(region_norm_learnable_vjp, draw(SHAPE, *FILTERS), step=1e-5, name="differences"),
]  # fmt: skip


@given(seed=st.integers(0, 99), share=st.floats(0, 1), stats=st.sampled_from(["batch", "instance"]))
def test_each_region_has_mean_zero_and_mean_square_one(seed, share, stats):
    rng = np.random.default_rng(seed)
    x, mask = 3 + 2 * rng.standard_normal((2, 3, 5, 5)), rng.random((2, 1, 5, 5)) < share
    y = region_normalize(x, mask, stats=stats, eps=1e-300)
    for images in [slice(0, 1), slice(1, 2)] if stats == "instance" else [slice(None)]:
        for region in (mask[images], ~mask[images]):
            values = y[images].transpose(1, 0, 2, 3)[:, region[:, 0]]
            if values.shape[1] > 1:
                np.testing.assert_allclose(values.mean(axis=1), 0, atol=1e-10)
                np.testing.assert_allclose((values**2).mean(axis=1), 1, rtol=1e-9)


@given(seed=st.integers(0, 99), content=st.sampled_from([0.0, 1e6, np.nan, np.inf]))
def test_nothing_of_a_hole_reaches_the_known_pixels_or_their_gradient(seed, content):
    rng = np.random.default_rng(seed)
    x, mask, dy = rng.standard_normal(SHAPE), rng.random((2, 1, 4, 5)) > 0.4, rng.standard_normal(SHAPE)
    y, pullback = region_normalize_vjp(x, mask)
    holed = np.where(mask, x, content)
    other, back = region_normalize_vjp(holed, mask)
    known = np.broadcast_to(mask, SHAPE)
    np.testing.assert_array_equal(other[known], y[known])
    np.testing.assert_array_equal(back(dy)[0][known], pullback(dy)[0][known])


def test_one_region_is_batch_or_instance_norm():
    x, one, zero = draw(SHAPE)[0], np.ones(3), np.zeros(3)
    for mask in (np.ones_like(MASK), np.zeros_like(MASK)):
        np.testing.assert_allclose(region_normalize(x, mask), batch_norm(x, one, zero, axes=(0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(region_normalize(x, mask, stats="instance"), instance_norm(x, one, zero), rtol=1e-12)


@given(seed=st.integers(0, 99))
def test_filling_with_the_mean_and_rescaling_is_the_scaled_eps(seed):
    rng = np.random.default_rng(seed)
    x, mask = rng.standard_normal(SHAPE), rng.random((2, 1, 4, 5)) > 0.4
    total, size = mask.size, mask.sum()
    if size:
        mean = np.where(mask, x, 0).sum(axis=(0, 2, 3), keepdims=True) / size
        filled = batch_norm(np.where(mask, x, mean), np.ones(3), np.zeros(3), axes=(0, 2, 3), eps=1e-2)
        known = np.broadcast_to(mask, SHAPE)
        expected = (filled * np.sqrt(size / total))[known]
        np.testing.assert_allclose(region_normalize(x, mask, eps=1e-2)[known], expected, rtol=1e-10, atol=1e-13)


def test_one_pixel_region_is_zero():
    mask = np.zeros((1, 1, 3, 3), bool)
    mask[0, 0, 1, 1] = True
    y = region_normalize(draw((1, 2, 3, 3))[0], mask)
    assert not y[:, :, 1, 1].any()


def test_basic_form_starts_as_the_plain_regions_and_has_parameters_of_its_own():
    x, zero = draw(SHAPE)[0], np.zeros(3)
    plain = region_normalize(x, MASK)
    np.testing.assert_array_equal(region_norm_basic(x, MASK, zero, zero, zero, zero), plain)
    gain, bias = draw(3, 3)
    y = region_norm_basic(x, MASK, gain, bias, zero, zero)
    known = np.broadcast_to(MASK, SHAPE)
    expected = plain * (1 + gain.reshape(1, 3, 1, 1)) + bias.reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(y[known], expected[known])
    np.testing.assert_array_equal(y[~known], plain[~known])


def test_shared_bias_adds_both_everywhere():
    x, one, two, zero = draw(SHAPE)[0], np.ones(3), np.full(3, 2.0), np.zeros(3)
    y = region_norm_basic(x, MASK, zero, one, zero, two, shared_bias=True)
    np.testing.assert_allclose(y, region_normalize(x, MASK) + 3, rtol=1e-12)


def test_masks_may_be_booleans_integers_or_floats_and_of_another_size():
    x, params = draw(SHAPE)[0], draw(3, 3, 3, 3)
    results = [region_norm_basic(x, MASK.astype(dtype), *params) for dtype in (bool, int, np.float32)]
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
    large = MASK.repeat(2, axis=2).repeat(3, axis=3)
    np.testing.assert_array_equal(region_norm_basic(x, large, *params), results[0])
    soft = np.where(MASK, 0.7, 0.2)
    np.testing.assert_array_equal(region_norm_basic(x, soft, *params, binarize=True), results[0])


def test_learnable_form_uses_the_mask_that_it_predicts():
    x, zero = draw((2, 3, 6, 6))[0], np.zeros(1)
    flat, map_weight = np.zeros((1, 1, 3, 3)), np.zeros((1, 2, 1, 1))
    map_weight[0, 1] = 4.0
    y = region_norm_learnable(x, map_weight, flat, zero, flat, zero, threshold=0.8)
    predicted = 1 / (1 + np.exp(-4 * x.max(axis=1, keepdims=True))) >= 0.8
    assert 0 < predicted.mean() < 1
    np.testing.assert_allclose(y, region_normalize(x, predicted), rtol=1e-12)


def test_equal_channels_hand_the_maximum_to_the_first():
    x = np.ones((1, 3, 5, 5))
    weight = np.zeros((1, 2, 1, 1))
    weight[0, 1] = 1.0
    bias_weight, zero = np.ones((1, 1, 1, 1)), np.zeros(1)
    _, pullback = region_norm_learnable_vjp(x, weight, 0 * bias_weight, zero, bias_weight, zero)
    dx = pullback(np.ones(x.shape))[0]
    assert np.abs(dx[:, 0]).min() > 0.1
    np.testing.assert_allclose(dx[:, 1:], 0, atol=1e-12)


def test_resizing_copies_pixels():
    mask = np.arange(6).reshape(1, 1, 2, 3)
    np.testing.assert_array_equal(resize_mask_nearest(mask, (4, 3))[0, 0], mask[0, 0].repeat(2, axis=0))
    np.testing.assert_array_equal(resize_mask_nearest(mask, (1, 1)), [[[[0]]]])
    np.testing.assert_array_equal(resize_mask_nearest(mask, (2, 3)), mask)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    x, *params = (a.astype(dtype) for a in draw(SHAPE, 3, 3, 3, 3))
    y, pullback = region_norm_basic_vjp(x, MASK, *params)
    assert {a.dtype for a in (y, *pullback(y))} == {np.dtype(dtype)}
    y, pullback = region_normalize_vjp(x, MASK)
    assert {a.dtype for a in (y, *pullback(y))} == {np.dtype(dtype)}
    filters = [a.astype(dtype) for a in draw(*FILTERS)]
    y, pullback = region_norm_learnable_vjp(x, *filters)
    assert {a.dtype for a in (y, *pullback(y))} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    arrays, filters = draw(SHAPE, 3, 3, 3, 3), draw(*FILTERS)
    mask = MASK.copy()
    for array in (*arrays, *filters, mask):
        array.setflags(write=False)
    region_norm_basic_vjp(arrays[0], mask, *arrays[1:])[1](arrays[0])
    region_norm_learnable_vjp(arrays[0], *filters)[1](arrays[0])


X, Z = np.ones(SHAPE), np.zeros(3)
GOOD = tuple(np.ones(shape) for shape in FILTERS)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (region_normalize, (X, 0.5 * np.ones((2, 1, 4, 5))), {}, ValueError, r"mask: expected zeros and ones \(or binarize=True\), got 0.5"),
        (region_normalize, (X, MASK[:1]), {}, ValueError, r"mask: expected shape \(2, 1, 4, 5\), got \(1, 1, 4, 5\)"),
        (region_normalize, (X, MASK), {"stats": "layer"}, ValueError, "stats: expected one of 'batch', 'instance', got 'layer'"),
        (region_normalize, (X, MASK), {"eps_mode": "no"}, ValueError, "eps_mode: expected one of 'scaled', 'plain', got 'no'"),
        (region_normalize, (X, MASK), {"eps": 0.0}, ValueError, "eps: expected a finite number > 0, got 0.0"),
        (region_normalize, (X.astype(int), MASK), {}, TypeError, "x: expected a float32 or float64 array"),
        (region_norm_basic, (X, MASK, Z, Z, Z, np.zeros(2)), {}, ValueError, r"background_bias: expected shape \(3,\), got \(2,\)"),
        (region_norm_basic, (X, MASK[0], Z, Z, Z, Z), {}, ValueError, r"mask: expected 4 dimensions, got shape \(1, 4, 5\)"),
        (region_norm_basic, (X, MASK, Z.astype("f4"), Z, Z, Z), {}, TypeError, "foreground_gain: expected dtype float64 like x, got float32"),
        (region_norm_learnable, (X, np.ones((1, 3, 7, 7)), *GOOD[1:]), {}, ValueError, r"map_weight: expected shape \(1, 2, A, B\) with odd A and B, got shape \(1, 3, 7, 7\)"),
        (region_norm_learnable, (X, np.ones((1, 2, 4, 7)), *GOOD[1:]), {}, ValueError, "map_weight: expected shape"),
        (region_norm_learnable, (X, *GOOD), {"threshold": 1.0}, ValueError, r"threshold: expected a number in \(0, 1\), got 1.0"),
        (resize_mask_nearest, (MASK, (0, 2)), {}, ValueError, "size: expected an integer >= 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)
