"""Lion-K and running averages as kernels against the reference."""

from __future__ import annotations

import dataclasses
import doctest
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import refnorm.solvers as reference
import refnorm_fast.solvers as fast
from refnorm.solvers import LionKState, make_kappa
from refnorm.tree import tree_leaves, tree_map
from refnorm_fast.solvers import _core
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]
SAME_BITS = {
    "l1": "l1",
    "sq": "sq",
    "huber": "huber",
    "huber, wide": make_kappa("huber", width=0.3),
    "softl1": "softl1",
    "softl1, 0": make_kappa("softl1", threshold=0.0),
    "softl1, high": make_kappa("softl1", threshold=0.7),
    "relu": "relu",
}
REFERENCES = {
    "group": "group",
    "group, axis 0": make_kappa("group", axis=0),
    "lp": make_kappa("lp", power=2.5),
    "topk": "topk",
    "a caller's own": dataclasses.replace(make_kappa("huber", width=0.3), gradient=np.tanh),
}
ALL = SAME_BITS | REFERENCES | {"l2": "l2"}
OPTIONS = {"learning_rate": 0.03, "beta1": 0.7, "beta2": 0.9, "weight_decay": 0.4}


@pytest.fixture(params=support.ISAS, autouse=True)
def isa(request):
    with support.using_isa(request.param):
        yield request.param


def arrays(shape: Any, dtype: Any, seed: int = 0) -> tuple[AnyArray, ...]:
    return tuple(np.asarray(a, dtype) for a in np.random.default_rng(seed).standard_normal((3, *np.atleast_1d(shape))))


def same(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_array_equal(one, other)


def close(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        unit = np.spacing(np.abs(other).max(initial=0)) if other.size else 0
        np.testing.assert_allclose(one, other, rtol=0, atol=4 * unit)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("name", SAME_BITS)
def test_sums_over_coordinates_have_the_bits_of_the_reference(dtype, name):
    for length in [*support.TAILS, 4095, 4096, 4097, 10_001]:
        case = arrays(length, dtype, length)
        for decay in ("explicit", "implicit"):
            options = OPTIONS | {"kappa": SAME_BITS[name], "decay": decay}
            same(fast.lion_kappa_update(*case, **options), reference.lion_kappa_update(*case, **options))


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_l2_follows_the_reference(dtype):
    for shape in [(0,), (1,), (7,), (130,), (5, 3), (3, 0), (4097,), (70, 90), (2, 3, 4)]:
        for scale in (1.0, 1e-30, 1e30):
            p, g, m = arrays(shape, dtype, len(shape))
            case = p, (g * scale).astype(dtype), (m * scale).astype(dtype)
            options = OPTIONS | {"kappa": "l2"}
            close(fast.lion_kappa_update(*case, **options), reference.lion_kappa_update(*case, **options))


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e-160, 1e160, 1e300])
def test_l2_where_squares_leave_the_range_of_float64(scale):
    p, g, m = arrays((9, 500), np.float64)
    case = p, g * scale, m * scale
    close(
        fast.lion_kappa_update(*case, kappa="l2", **OPTIONS)[:1],
        reference.lion_kappa_update(*case, kappa="l2", **OPTIONS)[:1],
    )


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_special_values(dtype, name):
    """NaN stays in its coordinate where kappa is a sum over coordinates, and spreads where it is not."""
    specials = np.array([*support.SPECIAL, *support.HOSTILE, -0.0]).astype(dtype)
    p, _, _ = arrays(specials.size, dtype)
    with np.errstate(all="ignore"):
        for g in (specials, specials[3:], specials[1:], np.zeros(5, dtype)):
            case = p[: g.size], g, np.zeros_like(g)
            found = fast.lion_kappa_update(*case, kappa=ALL[name], **OPTIONS)
            wanted = reference.lion_kappa_update(*case, kappa=ALL[name], **OPTIONS)
            if name == "l2":
                np.testing.assert_allclose(found[0], wanted[0], rtol=16 * np.finfo(dtype).eps)
                same(found[1:], wanted[1:])
            else:
                same(found, wanted)


@pytest.mark.parametrize("name", ALL)
def test_any_layout_in_place_and_overlapping(name):
    p, g, m = arrays((12, 10), np.float64)

    def step(p, g, m, **out):
        return fast.lion_kappa_update(p, g, m, kappa=ALL[name], **OPTIONS, **out)

    expected = step(p, g, m)
    for layout, view in support.layouts(p).items():
        if layout != "row repeated by a zero stride":
            same(step(view, support.layouts(g)[layout], support.layouts(m)[layout]), expected)
    own = p.copy(), m.copy()
    found = step(own[0], g, own[1], out=own)
    same(found, expected)
    assert all(one is other for one, other in zip(found, own, strict=True))
    fortran = [np.full((12, 10), np.nan, order="F") for _ in range(2)]
    same(step(p, g, m, out=fortran), expected)
    memory = np.zeros(400)
    memory[:120] = p.ravel()
    shifted = [memory[7:127].reshape(12, 10), memory[200:320].reshape(12, 10)]
    same(step(memory[:120].reshape(12, 10), g, m, out=shifted), expected)
    first, second = p.copy(), m.copy()
    same(step(first, g, second, out=(second, first)), expected)


def network(seed: int) -> Any:
    """Arrays of both dtypes, small and large ones, a layer without a bias."""
    rng = np.random.default_rng(seed)
    return {
        "layers": [rng.standard_normal((4, 7)), (rng.standard_normal(5).astype(np.float32), None), rng.random((3, 0))],
        "scale": rng.standard_normal((2, 3, 2)),
        "large": [rng.standard_normal((70, 90)).astype(np.float32), rng.standard_normal(9001)],
    }


def leaves(tree: Any) -> list[AnyArray]:
    return [leaf for _, leaf in tree_leaves(tree) if leaf is not None]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("decay", ["explicit", "implicit"])
def test_the_optimizer_follows_the_reference(name, decay):
    kappa = "sq" if name in ("topk", "group, axis 0", "group") else ALL[name]  # these do not take empty arrays
    options = {"learning_rate": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.3, "kappa": kappa, "decay": decay}
    ours, theirs = fast.LionK(**options), reference.LionK(**options)
    params, expected, placed = network(0), network(0), network(0)
    state, expected_state, placed_state = ours.init(params), theirs.init(expected), ours.init(placed)
    for number in range(1, 5):
        params, state = ours.step(params, network(number), state)
        expected, expected_state = theirs.step(expected, network(number), expected_state)
        after, placed_state = ours.step(placed, network(number), placed_state, out=(placed, placed_state))
        assert all(one is other for one, other in zip(leaves(after), leaves(placed), strict=True))
    assert type(state) is LionKState
    compare = close if name == "l2" else same
    for found in (params, placed):
        compare(leaves(found), leaves(expected))
    compare(leaves(state.momentum), leaves(expected_state.momentum))
    assert isinstance(ours, reference.LionK)
    assert dataclasses.replace(ours, learning_rate=0.5).learning_rate == 0.5


def test_gradients_of_none_leave_their_arrays_alone():
    params = {"a": np.ones(3), "b": np.ones(2)}
    after, state = fast.LionK().step(params, {"a": None, "b": np.ones(2)}, fast.LionK().init(params))
    assert after["a"] is params["a"]
    np.testing.assert_array_equal(state.momentum["a"], 0)
    assert (after["b"] < 1).all()


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_results_do_not_depend_on_threads_nor_on_company(name, isa):
    if isa != support.ISAS[-1]:
        pytest.skip("one level: the sharing is the same")
    case = arrays((700, 701), np.float32)
    found = []
    for count in (1, 2, 3):
        with support.threads(count):
            found.append(fast.lion_kappa_update(*case, kappa=name, **OPTIONS))
            average = fast.ema_update([case[0], case[1]], [case[1], case[2]], momentum=0.9)
            found.append(tuple(average))
    same(found[0], found[2])
    same(found[0], found[4])
    same(found[1], found[3])
    optimizer = fast.LionK(0.03, (0.7, 0.9), 0.4, name)
    params, state = [np.ones(5, np.float32), case[0]], LionKState([np.ones(5, np.float32), case[2]])
    after, state = optimizer.step(params, [np.ones(5, np.float32), case[1]], state)
    same((after[1], state.momentum[1]), found[0])


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_results_beyond_the_caches_are_the_same(dtype, isa):
    """They are written past the caches, from the first aligned address on."""
    if isa != support.ISAS[-1]:
        pytest.skip("one level: the loops are the same")
    count = 20_000_000 // np.dtype(dtype).itemsize + 3
    small = arrays(10_007, dtype)
    case = [np.resize(a, count) for a in small]
    for kappa in ("l1", "huber"):
        found = fast.lion_kappa_update(*case, kappa=kappa, **OPTIONS)
        part = fast.lion_kappa_update(*small, kappa=kappa, **OPTIONS)
        same([a[:10_007] for a in found], part)
        rest = fast.lion_kappa_update(*(a[-5:] for a in case), kappa=kappa, **OPTIONS)
        same([a[-5:] for a in found], rest)
    same([fast.ema_update(case[0], case[1])[-99:]], [fast.ema_update(case[0][-99:], case[1][-99:])])


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
               elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
    st.sampled_from(sorted(SAME_BITS)),
)  # fmt: skip
def test_any_array_follows_the_reference(g, name):
    case = np.ones_like(g), g, np.full_like(g, 0.25)
    with np.errstate(all="ignore"):
        same(
            fast.lion_kappa_update(*case, kappa=SAME_BITS[name], **OPTIONS),
            reference.lion_kappa_update(*case, kappa=SAME_BITS[name], **OPTIONS),
        )


BAD: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((np.zeros(3, int), np.zeros(3), np.zeros(3)), {}),
    ((np.zeros(3), np.zeros(2), np.zeros(3)), {}),
    ((np.zeros(3), np.zeros(3), np.zeros(3, np.float32)), {}),
    ((np.zeros(3), np.zeros(3), np.zeros(3)), {"learning_rate": 0.0}),
    ((np.zeros(3), np.zeros(3), np.zeros(3)), {"beta1": 1.0}),
    ((np.zeros(3), np.zeros(3), np.zeros(3)), {"beta2": -0.1}),
    ((np.zeros(3), np.zeros(3), np.zeros(3)), {"weight_decay": -1.0}),
    ((np.zeros(3), np.zeros(3), np.zeros(3)), {"learning_rate": 3.0, "weight_decay": 1.0}),
    ((np.zeros(3), np.zeros(3), np.zeros(3)), {"kappa": "l3"}),
    ((np.zeros(3), np.zeros(3), np.zeros(3)), {"decay": "none"}),
    ((np.zeros(3), np.zeros(3), np.zeros(3)), {"kappa": make_kappa("topk", k=4)}),
]


@pytest.mark.parametrize(("args", "options"), BAD)
def test_bad_input_raises_what_the_reference_raises(args, options):
    with pytest.raises((TypeError, ValueError)) as wanted:
        reference.lion_kappa_update(*args, **options)
    with pytest.raises(type(wanted.value)) as found:
        fast.lion_kappa_update(*args, **options)
    assert str(found.value) == str(wanted.value)


# ---- running averages ----------------------------------------------------------------------------------------------


def without_none(seed: int) -> Any:
    tree = network(seed)
    return {"layers": [tree["layers"][0], tree["layers"][1][0]], "scale": (tree["scale"],), "large": tree["large"]}


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.999, 1.0])
def test_averages_have_the_bits_of_the_reference(momentum):
    ema, target = without_none(0), without_none(1)
    expected = reference.ema_update(ema, target, momentum=momentum)
    same(leaves(fast.ema_update(ema, target, momentum=momentum)), leaves(expected))
    own = tree_map(np.copy, ema)
    found = fast.ema_update(own, target, momentum=momentum, out=own)
    same(leaves(own), leaves(expected))
    assert all(one is other for one, other in zip(leaves(found), leaves(own), strict=True))
    for dtype in support.DTYPES:
        for length in (*support.TAILS, 4097):
            a, b, _ = arrays(length, dtype, length)
            same([fast.ema_update(a, b, momentum=momentum)], [reference.ema_update(a, b, momentum=momentum)])
    with np.errstate(all="ignore"):
        odd = np.array([*support.SPECIAL, *support.HOSTILE])
        for pair in ((odd, odd[::-1]), (odd, np.ones_like(odd))):
            same([fast.ema_update(*pair, momentum=momentum)], [reference.ema_update(*pair, momentum=momentum)])


def test_averages_of_other_layouts_and_dtypes():
    a, b, into = arrays((6, 7), np.float64)
    expected = reference.ema_update(a, b, momentum=0.9)
    for name, view in support.layouts(a).items():
        if name != "row repeated by a zero stride":
            same([fast.ema_update(view, support.layouts(b)[name], momentum=0.9)], [expected])
    narrow = a.astype(np.float32)
    same([fast.ema_update(narrow, b, momentum=0.9)], [reference.ema_update(narrow, b, momentum=0.9)])
    # Results that need a copy, or that lie on the other array.
    for out in (np.asfortranarray(into), support.misaligned(into), np.repeat(into, 2, axis=1)[:, ::2]):
        assert fast.ema_update(a, b, momentum=0.9, out=out) is out
        np.testing.assert_array_equal(out, expected)
    memory = np.zeros(60)
    memory[:42] = b.ravel()
    fast.ema_update(a, memory[:42].reshape(6, 7), momentum=0.9, out=memory[5:47].reshape(6, 7))
    np.testing.assert_array_equal(memory[5:47].reshape(6, 7), expected)


@pytest.mark.parametrize(
    ("ema", "target", "momentum"),
    [
        (np.zeros(3), np.zeros(2), 0.9),
        (np.zeros(3, int), np.zeros(3), 0.9),
        ([np.zeros(3)], [np.zeros(3), np.zeros(3)], 0.9),
        ([np.zeros(3), None], [np.zeros(3), None], 0.9),
        ({"a": np.zeros(3)}, {"b": np.zeros(3)}, 0.9),
        (np.zeros(3), np.zeros(3), 1.5),
        (np.zeros(3), np.zeros(3), np.nan),
    ],
)
def test_averages_of_bad_input(ema, target, momentum):
    with pytest.raises((TypeError, ValueError)) as wanted:
        reference.ema_update(ema, target, momentum=momentum)
    with pytest.raises(type(wanted.value)) as found:
        fast.ema_update(ema, target, momentum=momentum)
    assert str(found.value) == str(wanted.value)


def test_bad_places_for_averages():
    a = np.ones(3)
    for out, error in [
        ([0.0], (TypeError, ValueError)),
        (np.ones(2), ValueError),
        (np.ones(3, np.float32), TypeError),
        (support.read_only(a), ValueError),
    ]:
        with pytest.raises(error):
            fast.ema_update(a, a, out=out)
    first = np.zeros(3)
    with pytest.raises(ValueError, match="shape"):
        fast.ema_update([a, a], [a, a], out=[first, np.ones(2)])
    np.testing.assert_array_equal(first, 0)


def test_examples():
    assert doctest.testmod(_core, extraglobs={"np": np}).failed == 0
