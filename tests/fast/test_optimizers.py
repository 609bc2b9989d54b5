import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refnorm.solvers as reference
from refnorm.tree import tree_leaves

try:
    from refnorm_fast import _runtime
    from refnorm_fast import solvers as fast
except ImportError as error:
    pytest.skip(f"no kernels: {error}", allow_module_level=True)

ISAS = _runtime.available_isas()
DTYPES = [np.float32, np.float64]


@pytest.fixture(params=ISAS)
def isa(request):
    before = _runtime.use_isa(request.param)
    yield request.param
    _runtime.use_isa(before)


def arrays(shape, dtype, seed=0):
    """Parameter, gradient, first and second moment."""
    rng = np.random.default_rng(seed)
    return *(np.asarray(rng.standard_normal(shape), dtype) for _ in range(3)), np.asarray(rng.random(shape), dtype)


def close(actual, expected, ulp=4):
    """Within a few units in the last place of the largest entry."""
    for one, other in zip(actual, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        unit = np.spacing(np.abs(other).max(initial=0)) if other.size else 0
        np.testing.assert_allclose(one, other, rtol=0, atol=ulp * unit)


def same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_array_equal(one, other)


def calls():
    """Every update, as a function of (param, grad, first, second, module, out)."""
    for form in ("mul_add", "lerp"):
        yield (
            f"lion {form}",
            lambda p, g, m, v, module, form=form, **out: module.lion_update(
                p, g, m, learning_rate=0.01, weight_decay=0.1, form=form, **out
            ),
        )
    for delta in (0.1, 1e3, 1e-30):
        for nesterov in (False, True):
            options = {"weight_decay": 0.1, "delta": delta, "nesterov": nesterov, "learning_rate": 0.01}
            yield (
                f"adamp {delta} {nesterov}",
                lambda p, g, m, v, module, options=options, **out: module.adamp_update(
                    p, g, m, v, step=3, **options, **out
                ),
            )
            for project in (False, True):
                more = {"momentum": 0.9, "dampening": 0.2, "project_buffer": project}
                yield (
                    f"sgdp {delta} {nesterov} {project}",
                    lambda p, g, m, v, module, options=options | more, **out: module.sgdp_update(
                        p, g, m, **options, **out
                    ),
                )


CALLS = dict(calls())


@pytest.mark.parametrize("dtype", DTYPES)
def test_lion_has_the_bits_of_the_reference_at_every_length(isa, dtype):
    for length in [*range(131), 4095, 4096, 4097, 50_001]:
        p, g, m, _ = arrays(length, dtype, length)
        for name in ("lion mul_add", "lion lerp"):
            same(CALLS[name](p, g, m, None, fast), CALLS[name](p, g, m, None, reference))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_updates_agree_with_the_reference(isa, dtype, name):
    for shape in [
        (),
        (0,),
        (7,),
        (301,),
        (1, 2),
        (5, 3),
        (3, 0),
        (17, 33),
        (4, 3, 3, 3),
        (2, 4097),
        (40, 65),
        (3, 9000),
    ]:
        case = arrays(shape, dtype, len(shape))
        close(CALLS[name](*case, fast), CALLS[name](*case, reference))


@pytest.mark.parametrize("dtype", DTYPES)
@given(rows=st.integers(1, 6), columns=st.integers(2, 40), seed=st.integers(0, 999), delta=st.floats(0.05, 3))
def test_views_agree_with_the_reference(dtype, rows, columns, seed, delta):
    p, g, m, v = arrays((rows, columns), dtype, seed)
    options = {"learning_rate": 0.1, "weight_decay": 0.5, "delta": delta, "weight_decay_ratio": 0.0}
    close(fast.adamp_update(p, g, m, v, step=9, **options), reference.adamp_update(p, g, m, v, step=9, **options))


def mixed(channels, columns, dtype):
    """A gradient that is orthogonal to the first channels, then not: the kernel guesses wrong on the way."""
    p, g, m, v = arrays((channels, columns), np.float64)
    unit = p / np.linalg.norm(p, axis=1, keepdims=True)
    g[:-1] -= (unit * (unit * g).sum(axis=1, keepdims=True))[:-1]
    g[-1] = p[-1]
    return tuple(array.astype(dtype) for array in (p, g, m, v))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_guessed_wrong_are_done_again(isa, dtype):
    p, g, m, v = mixed(9, 50, dtype)
    assert reference.which_view(p[:-1], g[:-1]) == "channel"
    assert reference.which_view(p, g) == "none"
    close(CALLS["adamp 0.1 False"](p, g, m, v, fast), CALLS["adamp 0.1 False"](p, g, m, v, reference))
    # Two channels along the weight whose products cancel: no channel is orthogonal, the layer is.
    g[-2:] = p[-2:]
    g[-2] *= -(p[-1] @ p[-1]) / (p[-2] @ p[-2])
    assert reference.which_view(p, g) == "layer"
    for name in ("adamp 0.1 False", "sgdp 0.1 False False", "sgdp 0.1 False True"):
        close(CALLS[name](p, g, m, v, fast), CALLS[name](p, g, m, v, reference))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_in_place_is_the_same(isa, dtype, name):
    for shape in [(5,), (17, 33), (2, 9000), (1, 5000)]:
        p, g, m, v = arrays(shape, dtype)
        expected = CALLS[name](p, g, m, v, fast)
        own = [array.copy() for array in (p, m, v)][: len(expected)]
        found = CALLS[name](own[0], g, own[1], own[2] if len(own) > 2 else v, fast, out=tuple(own))
        same(found, expected)
        assert all(one is other for one, other in zip(found, own, strict=True))


@pytest.mark.parametrize("name", ["lion mul_add", "adamp 1000.0 False", "sgdp 1000.0 False True"])
def test_overlapping_out_is_right(name):
    memory = np.zeros(2000)
    p, g, m, v = arrays((20, 30), np.float64)
    expected = CALLS[name](p, g, m, v, fast)
    memory[:600] = p.ravel()
    shifted = [memory[offset : offset + 600].reshape(20, 30) for offset in (7, 650, 1300)][: len(expected)]
    same(CALLS[name](memory[:600].reshape(20, 30), g, m, v, fast, out=shifted), expected)
    # Results that trade places with each other's inputs.
    if len(expected) == 2:
        first, second = p.copy(), m.copy()
        same(CALLS[name](first, g, second, v, fast, out=(second, first)), expected)


@pytest.mark.parametrize("name", CALLS)
def test_any_layout_and_read_only(isa, name):
    p, g, m, v = arrays((12, 10), np.float64)
    expected = CALLS[name](p, g, m, v, fast)
    wide = [np.repeat(np.repeat(a, 2, axis=0), 3, axis=1) for a in (p, g, m, v)]
    bytes_apart = [np.frombuffer(b"x" + a.tobytes(), np.float64, offset=1).reshape(a.shape) for a in (p, g, m, v)]
    layouts = [
        [np.asfortranarray(a) for a in (p, g, m, v)],
        [a[::2, ::3] for a in wide],
        [a[::-1, ::-1].copy()[::-1, ::-1] for a in (p, g, m, v)],
        bytes_apart,
    ]
    for layout in layouts:
        for array in layout:
            array.setflags(write=False)
        same(CALLS[name](*layout, fast), expected)
    target = [np.full((12, 10), np.nan, order="F") for _ in expected]
    same(CALLS[name](p, g, m, v, fast, out=target), expected)


@pytest.mark.parametrize("name", CALLS)
def test_result_does_not_depend_on_threads(name):
    before = _runtime.get_num_threads()
    try:
        for shape in [(300_007,), (700, 999), (2, 300_000)]:
            case = arrays(shape, np.float32)
            results = []
            for threads in (1, 2, 3, 5):
                _runtime.set_num_threads(threads)
                results.append(CALLS[name](*case, fast))
            for result in results[1:]:
                same(result, results[0])
    finally:
        _runtime.set_num_threads(before)


def test_many_python_threads_at_once():
    cases = [arrays((70, 90), np.float64, seed) for seed in range(8)]
    expected = [CALLS["adamp 1000.0 False"](*case, fast) for case in cases]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            for found, wanted in zip(
                pool.map(lambda case: CALLS["adamp 1000.0 False"](*case, fast), cases), expected, strict=True
            ):
                same(found, wanted)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_after_fork():
    case = arrays((700, 999), np.float32)
    expected = CALLS["adamp 1000.0 False"](*case, fast)
    child = os.fork()
    if not child:
        found = CALLS["adamp 1000.0 False"](*case, fast)
        os._exit(0 if all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_special_values_stay_where_they_are(isa, dtype, name):
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, np.finfo(dtype).tiny / 8, 1e30, -1e30], dtype)
    p, g, m, v = arrays((24,), dtype)
    g[8:16] = special
    with np.errstate(all="ignore"):
        expected = CALLS[name](p, g, m, v, reference)
        found = CALLS[name](p, g, m, v, fast)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
        np.testing.assert_allclose(one, other, rtol=1e-5 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stops_the_projection_only(isa, dtype):
    p, g, m, v = arrays((6, 20), dtype)
    g[2, 3] = np.nan
    found = CALLS["adamp 1000.0 False"](p, g, m, v, fast)
    expected = CALLS["adamp 1000.0 False"](p, g, m, v, reference)
    assert [int(np.isnan(array).sum()) for array in found] == [1, 1, 1]
    finite = ~np.isnan(found[0])
    close([found[0][finite]], [expected[0][finite]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_weights_and_gradients(isa, dtype):
    zero = np.zeros((4, 9), dtype)
    p, g, m, v = arrays((4, 9), dtype)
    for name in CALLS:
        close(CALLS[name](zero, g, m, v, fast), CALLS[name](zero, g, m, v, reference))
        close(CALLS[name](p, zero, m, v, fast), CALLS[name](p, zero, m, v, reference))
        close(CALLS[name](zero, zero, zero, zero, fast), CALLS[name](zero, zero, zero, zero, reference))


OPTIMIZERS = [
    ("Lion", {"learning_rate": 0.01, "weight_decay": 0.1}),
    ("Lion", {"learning_rate": 0.01, "weight_decay": 0.1, "decay_mode": "init_lr", "maximize": True}),
    ("AdamP", {"learning_rate": 0.01, "weight_decay": 0.1, "delta": 1.0}),
    ("SGDP", {"learning_rate": 0.01, "weight_decay": 0.1, "momentum": 0.9, "delta": 1.0}),
    ("AdaGrad", {"learning_rate": 0.01}),
    ("AdaGrad", {"learning_rate": 0.01, "learning_rate_decay": 0.1, "weight_decay": 0.1, "eps": 1e-3}),
    ("AdaGradNorm", {"learning_rate": 0.3, "initial_accumulator_value": 0.0}),
]


def tree(seed):
    rng = np.random.default_rng(seed)
    return {
        "layers": [rng.standard_normal((4, 7)), (rng.standard_normal(5), None)],
        "scale": rng.standard_normal((2, 3, 2)),
    }


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_optimizers_follow_the_reference(name, options):
    ours, theirs = getattr(fast, name)(**options), getattr(reference, name)(**options)
    params, state = tree(0), ours.init(tree(0))
    expected, expected_state = tree(0), theirs.init(tree(0))
    placed = tree(0)
    placed_state = ours.init(placed)
    for step in range(1, 6):
        params, state = ours.step(params, tree(step), state)
        expected, expected_state = theirs.step(expected, tree(step), expected_state)
        placed, placed_state = ours.step(placed, tree(step), placed_state, out=(placed, placed_state))
    for found in (params, placed):
        for one, other in zip(leaves(found), leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)
    assert type(state) is type(expected_state)
    assert isinstance(ours, getattr(reference, name))
    assert dataclasses.replace(ours, learning_rate=0.5).learning_rate == 0.5


@dataclasses.dataclass
class Layer:
    weight: np.ndarray
    bias: np.ndarray


class Pair(NamedTuple):
    first: np.ndarray
    second: np.ndarray


def many(seed, dtype=None):
    """A network's arrays: small and large ones, both dtypes unless one is given, in every kind of tree.

    One has exactly as many entries as the largest that a thread takes whole.
    """
    rng = np.random.default_rng(seed)

    def normal(shape, own):
        return rng.standard_normal(shape).astype(own if dtype is None else dtype)

    return {
        "tiny": [normal(shape, np.float32) for shape in ((1,), (0,), (3, 0), (5, 3), (17, 33, 2), (1, 7), (4097,))],
        "layers": (Layer(normal((30, 40), np.float64), normal(30, np.float32)), Pair(normal(9, np.float32), None)),
        "odd": SimpleNamespace(a=normal((4, 3, 3, 3), np.float64)),
        "large": [normal((300, 500), np.float32), normal((256, 512), np.float32), normal((150_001,), np.float64)],
        3: None,
    }


def flat(params):
    return [leaf for _, leaf in tree_leaves(params) if leaf is not None]


def states(state):
    """The trees of a state, and its numbers."""
    return [getattr(state, field.name) for field in dataclasses.fields(state)]


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_all_arrays_of_a_network_are_stepped_at_once(isa, name, options):
    ours, theirs = getattr(fast, name)(**options), getattr(reference, name)(**options)
    params, placed = many(0), many(0)
    state, placed_state = ours.init(params), ours.init(placed)
    expected, expected_state = many(0), theirs.init(many(0))
    for step in range(1, 3):
        params, state = ours.step(params, many(step), state)
        placed, placed_state = ours.step(placed, many(step), placed_state, out=(placed, placed_state))
        expected, expected_state = theirs.step(expected, many(step), expected_state)
    assert isinstance(params["layers"], tuple)
    assert isinstance(params["layers"][0], Layer)
    assert isinstance(params["layers"][1], Pair)
    assert list(params) == list(expected)
    close(flat(params), flat(expected), 8)
    same(flat(placed), flat(params))
    for one, other, third in zip(states(state), states(expected_state), states(placed_state), strict=True):
        if isinstance(other, dict):
            close(flat(one), flat(other), 8)
            same(flat(third), flat(one))
        else:
            assert one == pytest.approx(other, rel=1e-14)
            assert third == one


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_an_array_has_the_same_result_in_any_company(name, options):
    optimizer = getattr(fast, name)(**options)
    params, grads = many(0, np.float32), many(1, np.float32)
    with_strides = [np.repeat(leaf, 2, axis=-1)[..., ::2] for leaf in flat(params)]
    together = flat(optimizer.step(params, grads, optimizer.init(params))[0])
    # A layout that does not suit sends every array its own way; a norm alone looks at all of them.
    apart = optimizer.step(with_strides, flat(grads), optimizer.init(with_strides))[0]
    if name.startswith("AdaGrad"):
        close(apart, together)
    else:
        same(apart, together)
    before = _runtime.get_num_threads()
    try:
        for threads in (1, 2, 3):
            _runtime.set_num_threads(threads)
            same(flat(optimizer.step(params, grads, optimizer.init(params))[0]), together)
    finally:
        _runtime.set_num_threads(before)


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_arrays_that_share_memory_are_stepped_one_after_the_other(name, options):
    optimizer = getattr(fast, name)(**options)
    rng = np.random.default_rng(0)
    tied, grads = rng.standard_normal((6, 7)), [rng.standard_normal((6, 7)) for _ in range(2)]
    expected = tied.copy()
    params = [tied, tied]
    state = optimizer.init(params)
    after, _ = optimizer.step(params, grads, state, out=(params, state))
    assert after[0] is tied
    assert after[1] is tied
    if not name.startswith("AdaGrad"):
        for grad in grads:
            expected = optimizer.step(expected, grad, optimizer.init(expected))[0]
        np.testing.assert_array_equal(tied, expected)
    else:  # the reference's steps, then both results to one place: the last one stays
        expected = optimizer.step([expected, expected], grads, optimizer.init([expected, expected]))[0]
        close([tied], [expected[1]])


def test_adagrad_follows_infinities_and_nan():
    for options in ({}, {"weight_decay": 0.1}):
        params, grads = [np.array([np.inf, 1.0, 2.0, 3.0])], [np.array([1.0, np.inf, np.nan, 0.0])]
        found, expected = (m.AdaGrad(**options) for m in (fast, reference))
        with np.errstate(all="ignore"):
            one, other = (o.step(params, grads, o.init(params))[0] for o in (found, expected))
        np.testing.assert_allclose(one[0], other[0])
    norm = fast.AdaGradNorm()
    params, state = norm.step(params, grads, norm.init(params))
    assert np.isnan(state.accumulator)
    assert np.isnan(params[0]).all()


def test_wrong_trees_are_the_reference_s_errors():
    params, grads = [np.ones(3), np.ones(2)], [np.ones(3), np.ones(2)]
    wrong = [
        ([np.ones(3)], ValueError, "same structure"),
        ([np.ones(3), np.ones(4)], ValueError, r"grads.1: expected shape \(2,\), got \(4,\)"),
        ([np.ones(3), np.ones(2, np.float32)], TypeError, "grads.1: expected dtype float64"),
        ((np.ones(3), np.ones(2)), ValueError, "same structure"),
    ]
    for name, options in OPTIMIZERS:
        for module in (fast, reference):
            optimizer = getattr(module, name)(**options)
            for bad, error, message in wrong:
                with pytest.raises(error, match=message):
                    optimizer.step(params, bad, optimizer.init(params))
        optimizer = getattr(fast, name)(**options)
        state = optimizer.init(params)
        with pytest.raises((TypeError, ValueError), match="expected"):
            optimizer.step(params, grads, state, out=([np.ones(3), np.ones(4)], state))
        frozen = np.ones(3)
        frozen.setflags(write=False)
        with pytest.raises(ValueError, match="writable"):
            optimizer.step(params, grads, state, out=([frozen, np.ones(2)], state))


def leaves(params):
    return [params["layers"][0], params["layers"][1][0], params["scale"]]


def test_gradient_of_none_leaves_everything():
    params = [np.ones(3), np.ones(2)]
    optimizer = fast.Lion(learning_rate=0.25)
    state = optimizer.init(params)
    after, moved = optimizer.step(params, [None, np.ones(2)], state, out=(params, state))
    assert (after[0] == 1).all()
    assert (after[1] == 0.75).all()
    assert (moved.momentum[0] == 0).all()


X = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.lion_update(X, X[:1], X), ValueError, r"grad: expected shape \(2, 3\), got \(1, 3\)"),
        (lambda m: m.lion_update(X, X, X.astype("f4")), TypeError, "momentum: expected dtype float64 like param, got float32"),
        (lambda m: m.lion_update(X.astype(int), X, X), TypeError, "param: expected a float32 or float64 array, got dtype int64"),
        (lambda m: m.lion_update(X, X, X, learning_rate=0.0), ValueError, "learning_rate: expected a finite number > 0, got 0.0"),
        (lambda m: m.lion_update(X, X, X, beta2=1.5), ValueError, r"beta2: expected a number in \[0.0, 1.0\], got 1.5"),
        (lambda m: m.lion_update(X, X, X, weight_decay=np.nan), ValueError, "weight_decay: expected a finite number >= 0, got nan"),
        (lambda m: m.lion_update(X, X, X, form="fma"), ValueError, "form: expected one of 'mul_add', 'lerp', got 'fma'"),
        (lambda m: m.sign_momentum(X, X, X, beta=-1.0), ValueError, r"beta: expected a number in \[0.0, 1.0\], got -1.0"),
        (lambda m: m.adamp_update(X, X, X, X, step=0), ValueError, "step: expected an integer >= 1, got 0"),
        (lambda m: m.adamp_update(X, X, X, X[:1], step=1), ValueError, "second_moment: expected shape"),
        (lambda m: m.adamp_update(X, X, X, X, step=1, beta1=1.0), ValueError, r"betas: expected a number in \[0.0, 1.0\), got 1.0"),
        (lambda m: m.adamp_update(X, X, X, X, step=1, delta=0.0), ValueError, "delta: expected a finite number > 0, got 0.0"),
        (lambda m: m.sgdp_update(X, X, X[:1], learning_rate=0.1), ValueError, "buffer: expected shape"),
        (lambda m: m.sgdp_update(X, X, X, learning_rate=-0.1), ValueError, "learning_rate: expected a finite number >= 0"),
        (
            lambda m: m.sgdp_update(X, X, X, learning_rate=0.1, momentum=1.0, weight_decay=0.1),
            ValueError,
            "momentum: expected a number below 1 where there is weight decay, got 1.0",
        ),
    ],
)  # fmt: skip
def test_errors_are_those_of_the_reference(call, error, message):
    for module in (reference, fast):
        with pytest.raises(error, match=message):
            call(module)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (X.copy(), ValueError, "out: expected 2 arrays, got ndarray"),
        ((X.copy(),), ValueError, "out: expected 2 arrays, got 1"),
        ((X.copy(), X[:1].copy()), ValueError, "out: expected shape"),
        ((X.copy(), X.astype("f4")), TypeError, "out: expected dtype float64, got dtype float32"),
        ((X.copy(), np.broadcast_to(X[0], (2, 3))), ValueError, "out: expected a writable array, got a read-only one"),
    ],
)
def test_bad_out_is_named(out, error, message):
    with pytest.raises(error, match=message):
        fast.lion_update(X, X, X, out=out)
