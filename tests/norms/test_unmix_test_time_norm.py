import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.norms import UnMixState, batch_norm, instance_norm, unmix_init, unmix_norm, unmix_norm_vjp, unmix_rate

RNG = np.random.default_rng(2401)


def arguments(shape, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(s) for s in (shape, shape[1], shape[1]))


def components(k, channels, seed=0):
    rng = np.random.default_rng(seed)
    return UnMixState(rng.standard_normal((k, channels)), rng.random((k, channels)) + 0.3)


def assignments(x, state, temperature):
    own = x.mean(axis=tuple(range(2, x.ndim)))
    dot = own @ state.means.T
    lengths = np.linalg.norm(own, axis=1)[:, None] * np.linalg.norm(state.means, axis=1)
    e = np.exp((dot / lengths - 1) / temperature)
    return (e / e.sum(axis=1, keepdims=True))[:, :, None]


def fixed(at, state, temperature, between=False, eps=1e-5):
    """The rule as printed, with the assignments of ``at`` whatever x is: what the pullback is the gradient of."""
    p = assignments(at, state, temperature)

    def function(x, gain, bias):
        places = tuple(range(2, x.ndim))
        own = x.mean(axis=places)[:, None]
        own_var = ((x - x.mean(axis=places, keepdims=True)) ** 2).mean(axis=places)[:, None]
        m = (1 - p) * state.means + p * own
        v = (1 - p) * state.variances + p * own_var + between * p * (1 - p) * (own - state.means) ** 2
        mean, shape = m.mean(axis=1), (*x.shape[:2], *[1] * len(places))
        var = v.mean(axis=1) + (m * m).mean(axis=1) - mean * mean
        normal = (x - mean.reshape(shape)) / np.sqrt(var + eps).reshape(shape)
        return gain.reshape(shape[1:]) * normal + bias.reshape(shape[1:])

    return function


def call(state, **options):
    def function(*arrays):
        (y, _), pullback = unmix_norm_vjp(*arrays, state, rate=0.1, **options)
        return y, pullback

    return function


IMAGES, SEQUENCE, ONE_PLACE = arguments((3, 4, 2, 3)), arguments((2, 3, 5), 1), arguments((2, 5, 1, 1), 2)
FIVE, THREE, SIX = components(5, 4), components(3, 3), components(6, 5)

GRADIENT_CASES = [
    GradientCase(unmix_norm_vjp, IMAGES, method="complex", call=call(FIVE), surrogate=fixed(IMAGES[0], FIVE, 0.07), name="images"),
    GradientCase(
        unmix_norm_vjp, SEQUENCE, method="complex", call=call(THREE, temperature=1.0, between=True, eps=0.1),
        surrogate=fixed(SEQUENCE[0], THREE, 1.0, True, 0.1), name="variance between",
    ),
    GradientCase(
        unmix_norm_vjp, ONE_PLACE, method="complex", call=call(SIX, temperature=0.5), surrogate=fixed(ONE_PLACE[0], SIX, 0.5), name="one place"
    ),
    # A single component has the assignment 1, which does not depend on x: the pullback is the exact gradient.
    GradientCase(unmix_norm_vjp, IMAGES, method="complex", call=call(components(1, 4)), name="one component"),
]  # fmt: skip


@given(seed=st.integers(0, 99), k=st.integers(1, 5), between=st.booleans())
def test_output_and_state_are_those_of_the_rule_as_printed(seed, k, between):
    x, gain, bias = arguments((3, 4, 2, 2), seed)
    state = components(k, 4, seed)
    y, after = unmix_norm(x, gain, bias, state, rate=0.2, temperature=0.3, between=between)
    np.testing.assert_allclose(y, fixed(x, state, 0.3, between)(x, gain, bias), rtol=1e-9, atol=1e-9)
    p = assignments(x, state, 0.3)
    own, own_var = x.mean(axis=(2, 3))[:, None], x.var(axis=(2, 3))[:, None]
    np.testing.assert_allclose(
        after.means, state.means + 0.2 * (p * (own - state.means)).mean(axis=0), rtol=1e-11, atol=1e-12
    )
    np.testing.assert_allclose(
        after.variances, state.variances + 0.2 * (p * (own_var - state.variances)).mean(axis=0), rtol=1e-11
    )


@given(seed=st.integers(0, 99), k=st.integers(1, 6))
def test_examples_do_not_affect_each_other_and_components_have_no_order(seed, k):
    x, gain, bias = arguments((4, 3, 2, 2), seed)
    state = components(k, 3, seed)
    y, after = unmix_norm(x, gain, bias, state, rate=0.1)
    alone, _ = unmix_norm(x[2:3], gain, bias, state, rate=0.1)
    np.testing.assert_allclose(alone, y[2:3], rtol=1e-10, atol=1e-10)
    order = np.random.default_rng(seed).permutation(k)
    shuffled, moved = unmix_norm(x, gain, bias, UnMixState(state.means[order], state.variances[order]), rate=0.1)
    np.testing.assert_allclose(shuffled, y, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moved.means, after.means[order], rtol=1e-9, atol=1e-12)


def test_one_component_is_instance_norm_whatever_the_state():
    x, gain, bias = IMAGES
    y, _ = unmix_norm(x, gain, bias, components(1, 4), rate=0.1)
    np.testing.assert_allclose(y, instance_norm(x, gain, bias), rtol=1e-12, atol=1e-13)


def test_many_components_that_do_not_move_are_the_source():
    x, gain, bias = arguments((2, 4, 3, 3))
    mean, var = np.full(4, 3.0), np.full(4, 2.0)
    state = unmix_init(mean, var, np.random.default_rng(0), components=20000)
    y, after = unmix_norm(x, gain, bias, state, rate=0.0, temperature=10.0)
    np.testing.assert_allclose(y, batch_norm(x, gain, bias, mean, var, axes=(0, 2, 3)), atol=0.1)
    np.testing.assert_array_equal(after.means, state.means)


@given(seed=st.integers(0, 20), alpha=st.floats(0, 1))
def test_first_components_share_the_variance(seed, alpha):
    var = np.array([0.5, 4.0])
    state = unmix_init(np.array([1.0, -2.0]), var, np.random.default_rng(seed), components=4000, alpha=alpha)
    np.testing.assert_allclose(state.variances, np.tile((1 - alpha) * var, (4000, 1)), rtol=1e-14)
    np.testing.assert_allclose(state.means.var(axis=0), alpha * var, rtol=0.15, atol=1e-12)
    np.testing.assert_allclose(state.means.mean(axis=0), [1, -2], atol=0.2)


def test_single_first_component_is_a_copy_of_the_source():
    mean, var = np.array([1.0]), np.array([2.0])
    state = unmix_init(mean, var, np.random.default_rng(0), components=1)
    assert state.means == 1
    assert state.variances == 2
    assert not np.shares_memory(state.means, mean)


def test_only_the_similar_component_moves():
    state = UnMixState(np.array([[5.0, 0.0], [0.0, 5.0], [-5.0, 0.0]]), np.ones((3, 2)))
    x = np.zeros((1, 2, 2, 2)) + np.array([3.0, 0.1])[:, None, None]
    after = unmix_norm(x, np.ones(2), np.zeros(2), state, rate=0.5)[1]
    np.testing.assert_allclose(after.means[0], [4, 0.05], atol=1e-4)
    np.testing.assert_allclose(after.means[1:], state.means[1:], atol=1e-4)


def test_zero_mean_is_similar_to_all_components_alike():
    x = np.array([[[-1.0, 1.0], [2.0, -2.0]]])
    after = unmix_norm(x, np.ones(2), np.zeros(2), FOUR_ALIKE, rate=1.0)[1]
    np.testing.assert_allclose(after.means, 0.75 * FOUR_ALIKE.means, rtol=1e-12)


FOUR_ALIKE = components(4, 2, 7)


def test_large_offset_leaves_a_positive_variance_in_float32():
    x = (1e4 + RNG.standard_normal((2, 3, 4, 4))).astype(np.float32)
    one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    state = UnMixState(np.full((4, 3), 1e4, np.float32), np.ones((4, 3), np.float32))
    y, _ = unmix_norm(x, one, zero, state, rate=0.1)
    assert np.isfinite(y).all()
    assert 0.7 < y.std() < 1.3


@given(momentum=st.floats(0, 0.99), batch=st.integers(1, 64))
def test_as_many_batches_as_fit_move_as_far_as_one_of_the_reference_size(momentum, batch):
    rate = unmix_rate(momentum, batch, reference=64)
    np.testing.assert_allclose((1 - rate) ** (64 / batch), 1 - momentum, rtol=1e-12)
    assert unmix_rate(1.0, batch) == 1
    assert unmix_rate(momentum, 64) == pytest.approx(momentum, rel=1e-12, abs=1e-300)


def test_nan_stays_in_its_example_of_the_output():
    x, gain, bias = arguments((3, 4, 2, 2))
    x[1, 2, 0, 0] = np.nan
    y, _ = unmix_norm(x, gain, bias, FIVE, rate=0.1)
    assert np.isnan(y[1]).any()
    assert np.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    args = tuple(a.astype(dtype) for a in IMAGES)
    state = unmix_init(args[1], np.abs(args[2]), np.random.default_rng(0))
    (y, after), pullback = unmix_norm_vjp(*args, state, rate=0.1)
    assert y.dtype == after.means.dtype == after.variances.dtype == dtype
    assert [entry.dtype for entry in pullback(y)] == [dtype] * 3


def test_arguments_are_not_written_to():
    args, state = arguments((3, 4, 2, 2)), components(3, 4)
    for array in (*args, state.means, state.variances):
        array.setflags(write=False)
    (y, _), pullback = unmix_norm_vjp(*args, state, rate=0.1)
    pullback(y)


def norm(x=IMAGES[0], gain=IMAGES[1], state=FIVE, **options):
    return unmix_norm(x, gain, IMAGES[2], state, **{"rate": 0.1} | options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: norm(rate=1.5), ValueError, r"rate: expected a number in \[0, 1\], got 1.5"),
        (lambda: norm(temperature=0.0), ValueError, "temperature: expected a finite number > 0, got 0.0"),
        (lambda: norm(eps=0.0), ValueError, "eps: expected a finite number > 0, got 0.0"),
        (lambda: norm(x=np.ones((2, 4))), ValueError, r"x: expected at least 3 dimensions, got shape \(2, 4\)"),
        (lambda: norm(x=np.ones((0, 4, 2))), ValueError, "x: expected at least one entry along axes"),
        (lambda: norm(gain=np.ones(3)), ValueError, r"gain: expected shape \(4,\), got \(3,\)"),
        (lambda: norm(x=IMAGES[0].astype("f4")), TypeError, "gain: expected dtype float32 like x, got float64"),
        (lambda: norm(state=components(2, 3)), ValueError, r"state.means: expected shape \(2, 4\), got \(2, 3\)"),
        (lambda: norm(state=UnMixState(np.ones((0, 4)), np.ones((0, 4)))), ValueError, "state.means: expected at least one entry along axes"),
        (lambda: norm(state=UnMixState(np.ones((2, 4)), np.ones((3, 4)))), ValueError, r"state.variances: expected shape \(2, 4\), got \(3, 4\)"),
        (lambda: norm(state=UnMixState(np.ones((2, 4)), -np.ones((2, 4)))), ValueError, "state.variances: expected values >= 0, got -1.0"),
        (lambda: unmix_init(np.ones(2), -np.ones(2), RNG), ValueError, "source_var: expected values >= 0, got -1.0"),
        (lambda: unmix_init(np.ones(2), np.ones(3), RNG), ValueError, r"source_var: expected shape \(2,\), got \(3,\)"),
        (lambda: unmix_init(np.ones(2), np.ones(2), RNG, components=0), ValueError, "components: expected an integer >= 1, got 0"),
        (lambda: unmix_init(np.ones(2), np.ones(2), RNG, alpha=2.0), ValueError, r"alpha: expected a number in \[0, 1\], got 2.0"),
        (lambda: unmix_init(np.ones(2), np.ones(2), 0), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: unmix_rate(-0.1, 4), ValueError, r"momentum: expected a number in \[0, 1\], got -0.1"),
        (lambda: unmix_rate(0.1, 0), ValueError, "batch: expected an integer >= 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
