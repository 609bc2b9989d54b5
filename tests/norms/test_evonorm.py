import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase, check_vjp
from refnorm.norms import (
    EvoNormState,
    Expression,
    default_groups,
    evaluate_expression,
    evaluate_expression_vjp,
    evonorm_b0_eval,
    evonorm_b0_eval_vjp,
    evonorm_b0_train,
    evonorm_b0_train_vjp,
    evonorm_s0,
    evonorm_s0_vjp,
    expression_accuracy,
    largest_gradient,
    mutate_expression,
    random_expression,
    search_expressions,
)
from refnorm.norms._evonorm import OPERATIONS, _init_network, _network_vjp

RNG = np.random.default_rng(20)
STATE = EvoNormState(np.array([0.3, 1.0, 4.0, 0.0]))


def draw(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


def in_training(*arrays, **options):
    (y, _), pullback = evonorm_b0_train_vjp(*arrays, STATE, **options)
    return y, pullback


def in_use(*arrays, **options):
    return evonorm_b0_eval_vjp(*arrays, STATE, **options)


def of_expression(expression):
    return lambda x, v0, v1: evaluate_expression_vjp(expression, x, v0, v1)


def every_operation():
    """One case an operation: of x and, for two arguments, of x and v0; away from kinks and poles."""
    cases = []
    for operation in OPERATIONS:
        binary = operation in ("add", "mul", "div", "max")
        nodes = (("mul", (0, 3)), (operation, (4, 2) if binary else (4,)), ("mul", (5, 0)))
        x, v0, v1 = 1 + RNG.random((2, 4, 2, 2)), 5 + RNG.random(4), 1 + RNG.random(4)
        expression = Expression(nodes, groups=2)
        cases.append(
            GradientCase(
                evaluate_expression_vjp, (x, v0, v1), call=of_expression(expression), name=operation, step=1e-3
            )
        )
    return cases


SHAPE = (3, 4, 2, 3)
GRADIENT_CASES = [
    GradientCase(evonorm_s0_vjp, draw(SHAPE, 4, 4, 4), {"groups": 2}, method="complex"),
    GradientCase(evonorm_s0_vjp, draw(SHAPE, 4, 4, 4), {"eps": 0.1}, method="complex", name="instance groups"),
    GradientCase(evonorm_s0_vjp, draw((2, 4, 1, 1), 4, 4, 4), {"groups": 1}, method="complex", name="one pixel"),
    GradientCase(evonorm_s0_vjp, (np.ones(SHAPE), *draw(4, 4, 4)), {"eps": 1.0}, method="complex", name="constant"),
    GradientCase(evonorm_s0_vjp, draw(SHAPE, 4, 4, 4), {"groups": 2}, step=1e-3, name="differences"),
    GradientCase(
        evonorm_s0_vjp, draw(SHAPE, 4, 4, 4), {"nonlinearity": False}, method="complex", name="affine only"
    ),
    GradientCase(evonorm_b0_train_vjp, draw(SHAPE, 4, 4, 4), method="complex", call=in_training),
    GradientCase(
        evonorm_b0_train_vjp, draw((5, 4, 1, 1), 4, 4, 4), {"eps": 0.1}, method="complex", call=in_training, name="one pixel"
    ),
    GradientCase(evonorm_b0_train_vjp, draw(SHAPE, 4, 4, 4), call=in_training, step=1e-4, name="differences"),
    GradientCase(evonorm_b0_eval_vjp, draw(SHAPE, 4, 4, 4), method="complex", call=in_use),
    GradientCase(
        evonorm_b0_eval_vjp, draw(SHAPE, 4, 4, 4), {"nonlinearity": False}, method="complex", call=in_use, name="affine only"
    ),
    *every_operation(),
]  # fmt: skip


@pytest.mark.parametrize(("channels", "groups"), [(48, 24), (96, 32), (7, 7), (1, 1), (37, 1), (64, 32)])
def test_groups_are_the_largest_divisor_up_to_the_target(channels, groups):
    assert default_groups(channels) == groups


@given(seed=st.integers(0, 99), size=st.integers(1, 6))
def test_s0_of_a_sample_does_not_depend_on_its_batch(seed, size):
    rng = np.random.default_rng(seed)
    arrays = rng.standard_normal((6, 4, 3, 3)), *rng.standard_normal((3, 4))
    np.testing.assert_array_equal(
        evonorm_s0(arrays[0][:size], *arrays[1:], groups=2), evonorm_s0(*arrays, groups=2)[:size]
    )


@given(seed=st.integers(0, 99), scale=st.floats(0.01, 100))
def test_s0_ignores_a_scale_that_the_slope_undoes(seed, scale):
    rng = np.random.default_rng(seed)
    x, (gain, bias, slope) = rng.standard_normal((2, 4, 3, 3)), rng.standard_normal((3, 4))
    a = evonorm_s0(x, gain, bias, slope, groups=2, eps=1e-300)
    b = evonorm_s0(scale * x, gain, bias, slope / scale, groups=2, eps=1e-300)
    np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-12)


def test_s0_with_a_steep_slope_is_relu_over_the_deviation():
    x, one, zero = draw(SHAPE)[0], np.ones(4), np.zeros(4)
    deviation = x.reshape(3, 2, -1).std(axis=2).repeat(2, axis=1)[..., None, None]
    np.testing.assert_allclose(
        evonorm_s0(x, one, zero, 1e8 * one, groups=2, eps=1e-300), np.maximum(x, 0) / deviation, atol=1e-9
    )


def test_constant_sample_is_large_because_the_numerator_is_not_centred():
    y = evonorm_s0(np.ones((1, 1, 2, 2)), np.ones(1), np.zeros(1), np.ones(1))
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-1)) / np.sqrt(1e-5), rtol=1e-12)


def test_a_very_steep_negative_argument_is_silent():
    y = evonorm_s0(np.array([[[[-1e6, 1.0]]]]), np.ones(1), np.zeros(1), np.ones(1))
    assert y[0, 0, 0, 0] == 0


def test_s0_keeps_the_digits_of_a_gate_that_is_almost_open():
    # d swish / d slope = x^2 sigmoid(z) sigmoid(-z): at z = 40 the second gate is 4e-18, which 1 - sigmoid(z) does not have
    x, one, zero = np.array([40.0, -40.0]).reshape(1, 1, 1, 2), np.ones(1), np.zeros(1)
    dslope = evonorm_s0_vjp(x, one, zero, one, eps=1e-12)[1](np.array([1.0, 0.0]).reshape(x.shape))[3]
    np.testing.assert_allclose(dslope, 40 * np.exp(-40.0), rtol=1e-12)


@given(seed=st.integers(0, 99), scale=st.floats(0.01, 100))
def test_b0_does_not_notice_the_scale_of_a_channel_without_slope(seed, scale):
    x = np.random.default_rng(seed).standard_normal((4, 2, 3, 3))
    one, zero, state = np.ones(2), np.zeros(2), EvoNormState.create(2)
    a, _ = evonorm_b0_train(x, one, zero, zero, state, eps=1e-300)
    b, _ = evonorm_b0_train(scale * x, one, zero, zero, state, eps=1e-300)
    np.testing.assert_allclose(b, a, rtol=1e-10)


@given(seed=st.integers(0, 99), slope=st.floats(-10, 10))
def test_b0_divides_by_at_least_the_deviation_of_the_batch(seed, slope):
    x = 3 * np.random.default_rng(seed).standard_normal((4, 2, 3, 3))
    y, _ = evonorm_b0_train(x, np.ones(2), np.zeros(2), np.full(2, slope), EvoNormState.create(2))
    deviation = x.std(axis=(0, 2, 3)).reshape(1, 2, 1, 1)
    assert (np.abs(y) <= np.abs(x) / deviation * (1 + 1e-12)).all()


def test_b0_state_moves_towards_the_biased_variance_of_the_batch():
    x = draw(SHAPE)[0]
    _, state = evonorm_b0_train(x, np.ones(4), np.zeros(4), np.ones(4), STATE, decay=0.75)
    np.testing.assert_allclose(state.var, 0.75 * STATE.var + 0.25 * x.var(axis=(0, 2, 3)), rtol=1e-12)


def test_b0_in_use_with_the_variance_of_the_batch_is_training():
    arrays = draw(SHAPE, 4, 4, 4)
    y, state = evonorm_b0_train(*arrays, STATE, decay=0.0)
    np.testing.assert_allclose(evonorm_b0_eval(*arrays, state), y, rtol=1e-10)


def test_affine_only_forms_are_affine_and_leave_the_state():
    x, gain, bias, slope = draw(SHAPE, 4, 4, 4)
    expected = gain.reshape(-1, 1, 1) * x + bias.reshape(-1, 1, 1)
    y, state = evonorm_b0_train(x, gain, bias, slope, STATE, nonlinearity=False)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(state.var, STATE.var)
    np.testing.assert_array_equal(evonorm_s0(x, gain, bias, slope, nonlinearity=False), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    arrays = [a.astype(dtype) for a in draw(SHAPE, 4, 4, 4)]
    y, pullback = evonorm_s0_vjp(*arrays, groups=2)
    assert {a.dtype for a in (y, *pullback(y))} == {np.dtype(dtype)}
    (y, state), pullback = evonorm_b0_train_vjp(*arrays, EvoNormState.create(4, dtype))
    assert {a.dtype for a in (y, state.var, *pullback(y))} == {np.dtype(dtype)}
    y, pullback = evonorm_b0_eval_vjp(*arrays, state)
    assert {a.dtype for a in (y, *pullback(y))} == {np.dtype(dtype)}
    y, pullback = evaluate_expression_vjp(random_expression(np.random.default_rng(0)), *arrays[:3])
    assert {a.dtype for a in (y, *pullback(y))} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    arrays = draw(SHAPE, 4, 4, 4)
    state = EvoNormState.create(4)
    for array in (*arrays, state.var):
        array.setflags(write=False)
    evonorm_s0_vjp(*arrays)[1](arrays[0])
    evonorm_b0_train_vjp(*arrays, state)[1](arrays[0])
    evaluate_expression_vjp(random_expression(np.random.default_rng(1)), *arrays[:3])[1](arrays[0])


B0_GRAPH = Expression(
    (
        ("instance_std", (0,)),
        ("mul", (0, 2)),
        ("add", (4, 5)),
        ("batch_std", (0,)),
        ("max", (7, 6)),
        ("div", (0, 8)),
    )
)
S0_GRAPH = Expression(
    (("mul", (0, 2)), ("sigmoid", (4,)), ("mul", (0, 5)), ("group_std", (0,)), ("div", (6, 7))), groups=2
)


def test_both_layers_are_expressions_of_the_search_space():
    x, slope, dy = draw(SHAPE, 4, SHAPE)
    one, zero = np.ones(4), np.zeros(4)
    (y, _), pullback = evonorm_b0_train_vjp(x, one, zero, slope, STATE)
    value, back = evaluate_expression_vjp(B0_GRAPH, x, slope, zero)
    np.testing.assert_allclose(value, y, rtol=1e-12)
    np.testing.assert_allclose(back(dy)[0], pullback(dy)[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(back(dy)[1], pullback(dy)[3], rtol=1e-9, atol=1e-12)
    y, pullback = evonorm_s0_vjp(x, one, zero, slope, groups=2)
    value, back = evaluate_expression_vjp(S0_GRAPH, x, slope, zero)
    np.testing.assert_allclose(value, y, rtol=1e-12)
    np.testing.assert_allclose(back(dy)[0], pullback(dy)[0], rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 500), nodes=st.integers(1, 8))
def test_random_and_mutated_expressions_are_valid_and_differ_in_at_most_one_node(seed, nodes):
    rng = np.random.default_rng(seed)
    before = random_expression(rng, nodes)
    after = mutate_expression(before, rng)
    assert len(after.nodes) == nodes
    assert sum(a != b for a, b in zip(before.nodes, after.nodes, strict=True)) <= 1
    assert evaluate_expression(after, np.ones((1, 2, 2, 2)), np.ones(2), np.zeros(2)).shape == (1, 2, 2, 2)


def test_expressions_read_like_formulas():
    assert str(S0_GRAPH) == "div(mul(x, sigmoid(mul(x, v0))), group_std(x))"


def test_expressions_that_explode_are_rejected_and_their_gradient_is_found_large():
    exploding = Expression((("exp", (0,)), ("exp", (4,)), ("exp", (5,))))
    x, target = draw((6, 1, 4, 4))[0], np.arange(6) % 2
    assert expression_accuracy(exploding, 10 * x, target, np.random.default_rng(0), steps=3) == 0
    assert largest_gradient(exploding, x, np.random.default_rng(0)) > 1e8
    assert largest_gradient(S0_GRAPH, np.repeat(x, 4, axis=1), np.random.default_rng(0)) < 1e8


def test_search_improves_on_its_first_population():
    def score(expression):
        text = str(expression)
        return min(1.0, text.count("x") / 6), min(1.0, text.count("std") / 2)

    seen = []
    found = search_expressions(
        score, np.random.default_rng(0), generations=300, threshold=0.1, callback=lambda n, best: seen.append((n, best))
    )
    assert found.evaluated == 320
    assert 0 < found.rejected < 320
    assert list(found.history) == sorted(found.history)
    assert seen[-1] == (320, found.history[-1])
    assert found.history[-1] > found.history[19]
    assert found.scores == score(found.expression)


def test_search_in_which_everything_is_rejected_says_so():
    found = search_expressions(lambda e: (0.0,), np.random.default_rng(0), population=3, generations=2)
    assert found.expression is None
    assert found.rejected == found.evaluated == 5


X, FOUR = np.ones(SHAPE), np.ones(4)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (evonorm_s0, (X, FOUR, FOUR, np.ones(3)), {}, ValueError, r"slope: expected shape \(4,\), got \(3,\)"),
        (evonorm_s0, (X, FOUR, FOUR, FOUR), {"groups": 3}, ValueError, "groups: expected a divisor of the 4 channels, got 3"),
        (evonorm_s0, (X[..., :1, :1], FOUR, FOUR, FOUR), {}, ValueError, "x: expected at least two entries in a group"),
        (evonorm_s0, (X[0], FOUR, FOUR, FOUR), {}, ValueError, "x: expected 4 dimensions"),
        (evonorm_s0, (X, FOUR, FOUR, FOUR), {"eps": 0.0}, ValueError, "eps: expected a finite number > 0, got 0.0"),
        (evonorm_b0_train, (X, FOUR, FOUR, FOUR, EvoNormState.create(3)), {}, ValueError, r"state.var: expected shape \(4,\), got \(3,\)"),
        (evonorm_b0_train, (X, FOUR, FOUR, FOUR, EvoNormState(-FOUR)), {}, ValueError, "state.var: expected values >= 0, got -1.0"),
        (evonorm_b0_train, (X, FOUR, FOUR, FOUR, EvoNormState(FOUR)), {"decay": 1.5}, ValueError, r"decay: expected a number in \[0, 1\], got 1.5"),
        (evonorm_b0_eval, (X, FOUR.astype("f4"), FOUR, FOUR, EvoNormState(FOUR)), {}, TypeError, "gain: expected dtype float64 like x, got float32"),
        (default_groups, (0,), {}, ValueError, "channels: expected an integer >= 1, got 0"),
        (Expression, ((),), {}, ValueError, "nodes: expected at least one node"),
        (Expression, ((("sin", (0,)),),), {}, ValueError, "nodes: expected one of 'add', .*, got 'sin'"),
        (Expression, ((("add", (0, 4)),),), {}, ValueError, r"nodes\[0\]: expected 2 earlier arguments of add, got \(0, 4\)"),
        (random_expression, (np.random.default_rng(0), 0), {}, ValueError, "n_nodes: expected an integer >= 1, got 0"),
        (search_expressions, (lambda e: (1.0,), 0), {}, TypeError, "rng: expected a numpy.random.Generator"),
    ],
)  # fmt: skip
def test_bad_input_is_named(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)


def test_the_gradient_of_the_network_that_expressions_are_tried_in():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((3, 2, 4, 4))
    # Away from the gains of 1 and the offsets of 0 at the start, which would hide a factor.
    params = [p + 0.3 * rng.standard_normal(p.shape) for p in _init_network(rng, 2, (4, 8), 3)]

    def network(params):
        logits, pullback = _network_vjp(S0_GRAPH, params, x)
        return logits, lambda dlogits: (pullback(dlogits),)

    assert check_vjp(network, params).checks > 0


def test_a_good_expression_learns_and_a_learning_rate_of_nearly_0_does_not():
    rng = np.random.default_rng(0)
    target = np.arange(32) % 2
    # Stripes along either axis.
    stripes = np.sign(np.sin(np.arange(6)))[None, :] * np.ones((6, 1))
    x = np.where(target[:, None, None], stripes, stripes.T)[:, None] + 0.1 * rng.standard_normal((32, 1, 6, 6))
    options = {"channels": (4,), "steps": 40}
    assert expression_accuracy(S0_GRAPH, x, target, np.random.default_rng(1), **options) > 0.95
    untrained = expression_accuracy(S0_GRAPH, x, target, np.random.default_rng(1), learning_rate=1e-9, **options)
    assert untrained < 0.9
