import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase, check_vjp
from refnorm.nn import conv2d_vjp, relu_vjp
from refnorm.quantizers import (
    activation_ranges,
    bn_stats_loss,
    bn_stats_loss_vjp,
    distill_data,
    layer_sensitivity,
    pareto_frontier,
)
from refnorm.quantizers._zero_shot_quant import _loss_and_grad, _targets

RNG = np.random.default_rng(1)
MEAN, STD = RNG.standard_normal(3), RNG.uniform(0.5, 2, 3)
BATCH = {"stats": "batch"}

GRADIENT_CASES = [
    GradientCase(bn_stats_loss_vjp, (RNG.standard_normal((2, 3, 4, 4)), MEAN, STD), method="complex"),
    GradientCase(bn_stats_loss_vjp, (RNG.standard_normal((4, 3, 2)), MEAN, STD), {"eps": 0.0}, method="complex", name="two pixels"),
    GradientCase(bn_stats_loss_vjp, (RNG.standard_normal((5, 3)), MEAN, STD), BATCH, method="complex", name="batch, no pixels"),
    GradientCase(bn_stats_loss_vjp, (RNG.standard_normal((2, 3, 2, 3)), MEAN, STD), BATCH, method="complex", name="batch"),
    GradientCase(bn_stats_loss_vjp, (2 + 1e-3 * RNG.standard_normal((2, 3, 9)), MEAN, 0 * STD), method="complex", name="nearly constant maps, deviation 0"),
]  # fmt: skip


@given(seed=st.integers(0, 999), stats=st.sampled_from(["image", "batch"]))
def test_loss_is_zero_exactly_for_the_statistics_themselves(seed, stats):
    rng = np.random.default_rng(seed)
    h = rng.standard_normal((1 if stats == "image" else 4, 3, 5))
    mean, std = h.mean(axis=(0, 2)), np.sqrt(h.var(axis=(0, 2), ddof=1) + 1e-6)
    assert bn_stats_loss(h, mean, std, stats=stats) < 1e-28
    assert bn_stats_loss(h, mean + 0.1, std, stats=stats) == pytest.approx(0.03)


@given(seed=st.integers(0, 999))
def test_loss_of_images_is_the_mean_and_ignores_the_order_of_pixels(seed):
    rng = np.random.default_rng(seed)
    h = rng.standard_normal((3, 3, 4, 2))
    whole = bn_stats_loss(h, MEAN, STD)
    assert whole == pytest.approx(np.mean([bn_stats_loss(one[None], MEAN, STD) for one in h]))
    shuffled = h.reshape(3, 3, 8)[:, :, rng.permutation(8)]
    assert whole == pytest.approx(bn_stats_loss(shuffled, MEAN, STD))


def test_constant_maps_have_a_finite_gradient():
    h = np.full((2, 3, 4), 7.0)
    for eps in (0.0, 1e-6):
        dh = bn_stats_loss_vjp(h, MEAN, STD, eps=eps)[1](1.0)[0]
        np.testing.assert_allclose(dh, np.broadcast_to((7 - MEAN)[:, None] / 4, (2, 3, 4)), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept_and_inputs_are_not_written(dtype):
    arrays = [a.astype(dtype) for a in (RNG.standard_normal((2, 3, 4)), MEAN, STD)]
    for array in arrays:
        array.setflags(write=False)
    value, pullback = bn_stats_loss_vjp(*arrays)
    assert {value.dtype, *(c.dtype for c in pullback(dtype(1)))} == {np.dtype(dtype)}
    rng = np.random.default_rng(0)
    assert distill_data([relu_vjp], [(0, *arrays[1:])], (2, 3, 4), n_iter=3, rng=rng).x.dtype == dtype


def network(rng):
    first, second = rng.standard_normal((3, 2, 3, 3)) / 4, rng.standard_normal((4, 3, 3, 3)) / 5
    layers = [
        lambda x: conv2d_vjp(x, first, padding=1),
        lambda x: (2 * x, lambda dy: (2 * dy,)),
        relu_vjp,
        lambda x: conv2d_vjp(x, second, padding=1),
        lambda x: pytest.fail("a layer after the last statistics was called"),
    ]
    norms = [(1, rng.standard_normal(3), rng.uniform(0.5, 2, 3)), (4, rng.standard_normal(4), rng.uniform(0.5, 2, 4))]
    return layers, norms


def test_steps_follow_the_gradient_of_the_whole_loss():
    """A single step of Adam moves each pixel by the rate against the sign of the derivative, found by differences."""
    layers, norms = network(np.random.default_rng(0))
    found = distill_data(layers, norms, (2, 2, 4, 4), n_iter=1, learning_rate=0.01, rng=np.random.default_rng(3))
    start = np.random.default_rng(3).standard_normal((2, 2, 4, 4))

    def loss(x):
        one = layers[0](x)[0]
        two = layers[3](layers[2](layers[1](one)[0])[0])[0]
        inside = zip((one, two), norms, strict=True)
        terms = [bn_stats_loss(h, mean, np.sqrt(var + 1e-6)) for h, (_, mean, var) in inside]
        return sum(terms) + bn_stats_loss(x, np.zeros(2), np.ones(2))

    assert found.history["loss"][0] == pytest.approx(loss(start), rel=1e-13)

    # With the step known to be the sign of the gradient, its size is checked by the pullback of the same sum.
    def loss_vjp(x):
        value, dx = _loss_and_grad(layers, _targets(norms, 5, 1e-6)[0], x, {"stats": "image", "eps": 1e-6})
        np.testing.assert_allclose(np.sign(start - found.x), np.sign(dx))
        return np.asarray(value), lambda dy: (dy * dx,)

    assert check_vjp(loss_vjp, start, surrogate=loss).worst_error < 1e-6


def test_distillation_reaches_statistics_that_can_be_reached():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 1, 3, 3)) / 3
    real = rng.standard_normal((50, 1, 8, 8))
    h = conv2d_vjp(real, weight, padding=1)[0]
    norms = [(1, h.mean(axis=(0, 2, 3)), h.var(axis=(0, 2, 3)))]
    found = distill_data([lambda x: conv2d_vjp(x, weight, padding=1), relu_vjp], norms, (4, 1, 8, 8), rng=rng)
    assert found.history["loss"][-1] < 1e-4 * found.history["loss"][0]
    assert found.n_iter == 500


def test_rate_falls_on_a_plateau_and_no_further_than_its_limit():
    def still(x):
        return x, lambda dy: (0 * dy,)

    norms = [(0, np.zeros(1), np.ones(1))]
    found = distill_data(
        [still], norms, (1, 1, 6), n_iter=60, learning_rate=1e-9, patience=5, min_learning_rate=2e-11,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    # The first loss is an improvement; six without one lower the rate.
    np.testing.assert_allclose(found.history["learning_rate"], np.repeat([1e-9, 1e-10, 2e-11], [7, 6, 47]))


def test_callback_ends_the_run():
    norms = [(0, np.zeros(1), np.ones(1))]
    rng = np.random.default_rng(0)
    assert distill_data([relu_vjp], norms, (1, 1, 6), rng=rng, callback=lambda p: p.n_iter == 4).n_iter == 4


def test_ranges_are_those_of_the_whole_batch():
    low, high = activation_ranges(lambda x: [x, np.maximum(x, 0)], np.array([[-3.0, 1.0], [2.0, 0.0]], np.float32))
    assert low.tolist() == [-3, 0]
    assert high.tolist() == [2, 2]
    assert low.dtype == high.dtype == np.float32


def test_sensitivity_is_zero_on_the_grid_and_falls_with_bits():
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((6, 5)), np.array([[0.0, 1, 2, 3, 0, 1], [3.0, 0, 1, 2, 3, 0]])]

    def forward(weights, x):
        return np.tanh(x @ weights[0].T) @ weights[1].T

    found = layer_sensitivity(forward, weights, rng.standard_normal((40, 5)), (2, 4, 8))
    assert (found >= 0).all()
    assert found[0, 0] > 5 * found[0, 1] > 25 * found[0, 2] > 0
    # 0 to 3 is the 2-bit grid itself; finer grids of 16 and 256 points hold it too.
    assert found[1].max() < 1e-20


def test_sensitivity_is_the_divergence_of_the_outputs():
    weight, x = np.array([[1.0, 0.2, 0.0], [-1.0, 0.0, 0.0]]), np.ones((1, 3))
    p, q = (1 / (1 + np.exp(-d)) for d in (2.2, 1 + 1 / 3 + 1))
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    found = layer_sensitivity(lambda w, x: x @ w[0].T, [weight], x, (2,))
    np.testing.assert_allclose(found, [[expected]], rtol=1e-12)
    # One range for all of [-1, 1]: 0.2 and 0 become 1/3, or -1/3 and 1/3 by the tie at 0.
    assert layer_sensitivity(lambda w, x: x @ w[0].T, [weight], x, (2,), axis=None)[0, 0] != found[0, 0]


@given(seed=st.integers(0, 199), layers=st.integers(1, 5))
def test_frontier_beats_every_choice(seed, layers):
    rng = np.random.default_rng(seed)
    found, sizes, bits = rng.random((layers, 3)), rng.integers(1, 20, layers), (2, 4, 8)
    frontier = pareto_frontier(found, sizes, bits)
    assert (np.diff(frontier.size) > 0).all()
    assert (np.diff(frontier.sensitivity) < 0).all()
    for picks in itertools.product(range(3), repeat=layers):
        size = sum(n * bits[k] for n, k in zip(sizes, picks, strict=True))
        best = frontier.select(size)
        assert (sizes * best).sum() <= size
        assert sum(found[i, bits.index(k)] for i, k in enumerate(best)) <= found[range(layers), picks].sum() + 1e-12


@given(seed=st.integers(0, 99), points=st.integers(2, 20))
def test_capped_frontier_keeps_the_limit_and_the_smallest_size(seed, points):
    rng = np.random.default_rng(seed)
    found = np.sort(rng.random((8, 3)), axis=1)[:, ::-1].copy()
    sizes = rng.integers(1, 1000, 8)
    frontier = pareto_frontier(found, sizes, (2, 4, 8), max_points=points)
    assert len(frontier.size) <= points
    assert frontier.size[0] == 2 * sizes.sum()
    assert ((frontier.choice * sizes).sum(axis=1) == frontier.size).all()
    assert frontier.select(8 * sizes.sum()).tolist() == [8] * 8


FRONTIER = pareto_frontier(np.array([[1.0, 0.5]]), np.array([10]), (2, 4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: bn_stats_loss(np.ones((4, 3)), MEAN, STD),
            ValueError,
            "h: expected at least 2 entries a channel of each image, got shape (4, 3)",
        ),
        (
            lambda: bn_stats_loss(np.ones((4, 3, 1)), MEAN, STD),
            ValueError,
            "h: expected at least 2 entries a channel of each image, got shape (4, 3, 1)",
        ),
        (lambda: bn_stats_loss(np.ones((4, 2, 2)), MEAN, STD), ValueError, "mean: expected shape (2,), got (3,)"),
        (
            lambda: bn_stats_loss(np.ones((4, 3, 2)), MEAN, STD, stats="channel"),
            ValueError,
            "stats: expected one of 'image', 'batch', got 'channel'",
        ),
        (
            lambda: distill_data([relu_vjp], [], (1, 1, 2), rng=np.random.default_rng(0)),
            ValueError,
            "batch_norms: expected at least one, got none",
        ),
        (
            lambda: distill_data([relu_vjp], [(1, MEAN, STD)], (1, 3, 2), rng=np.random.default_rng(0)),
            ValueError,
            "batch_norms: expected an integer >= 0 and <= 0, got 1",
        ),
        (
            lambda: distill_data([relu_vjp], [(0, MEAN, -np.ones(3))], (1, 3, 2), rng=np.random.default_rng(0)),
            ValueError,
            "var: expected values >= 0, got -1.0",
        ),
        (
            lambda: activation_ranges(lambda x: [x / 0 * 0], np.ones((1, 2))),
            ValueError,
            "activation: expected finite values, got 2 that are not, the first at index (0, 0)",
        ),
        (
            lambda: layer_sensitivity(lambda w, x: x[0], [np.ones((2, 2))], np.ones((1, 2)), (2,)),
            ValueError,
            "logits: expected 2 dimensions, got shape (2,)",
        ),
        (
            lambda: pareto_frontier(np.ones((2, 2)), np.array([1, 2]), (2, 4, 8)),
            ValueError,
            "bits: expected shape (2,), got (3,)",
        ),
        (
            lambda: pareto_frontier(np.ones((1, 1)), np.array([0]), (2,)),
            ValueError,
            "sizes: expected values of at least 1, got 0",
        ),
        (lambda: FRONTIER.select(19), ValueError, "budget: expected at least the smallest size 20, got 19"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with np.errstate(all="ignore"), pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
