import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    block_softmax,
    block_softmax_vjp,
    conditional_mean_field,
    conditional_mean_field_vjp,
    hollow_coupling,
    hollow_coupling_vjp,
    mean_field,
    mean_field_vjp,
    prox_softmax,
    prox_softmax_vjp,
)

RNG = np.random.default_rng(12)
SIZES = (2, 3, 1, 4)


def coupling(sizes=SIZES, seed=0, scale=1.5, margin=0.1):
    return hollow_coupling(scale * np.random.default_rng(seed).standard_normal((6, sum(sizes))), sizes, margin=margin)


def conditional_case(phi, b, x):
    return conditional_mean_field_vjp(phi, b, SIZES, np.array([True, False, False, True]), x, tol=1e-13)


ACCURATE = {"tol": 1e-13, "damping": 0.2, "max_iter": 5000}
# Far below and far above the limit of the norms, and mixed.
SMALL, LARGE = 0.1 * RNG.standard_normal((5, 10)), 3 * RNG.standard_normal((5, 10))

GRADIENT_CASES = [
    GradientCase(hollow_coupling_vjp, (SMALL, SIZES), name="nothing scaled"),
    GradientCase(hollow_coupling_vjp, (LARGE, SIZES), name="all scaled"),
    GradientCase(
        hollow_coupling_vjp,
        (np.where(np.arange(10) < 5, SMALL, LARGE), SIZES),
        {"margin": 0.6},
        name="some scaled, wide margin",
    ),
    GradientCase(hollow_coupling_vjp, (RNG.standard_normal((2, 10)), SIZES), name="fewer rows than states"),
    GradientCase(block_softmax_vjp, (RNG.standard_normal((2, 10)), SIZES)),
    GradientCase(prox_softmax_vjp, (RNG.standard_normal((3, 4)),), {"damping": 0.3}, name="rows"),
    GradientCase(prox_softmax_vjp, (RNG.standard_normal((4, 3)),), {"damping": 0.1, "axis": 0}, name="columns"),
    GradientCase(prox_softmax_vjp, (RNG.standard_normal(5),), {"damping": 1.0}, name="softmax"),
    GradientCase(prox_softmax_vjp, (np.array([0.0, 0.0, -2.0]),), {"damping": 0.9}, name="tie"),
    GradientCase(
        mean_field_vjp, (coupling(), RNG.standard_normal(10), SIZES), ACCURATE, name="one problem"
    ),
    GradientCase(
        mean_field_vjp, (coupling(), RNG.standard_normal((3, 10)), SIZES), ACCURATE, name="three problems"
    ),
    GradientCase(
        conditional_mean_field_vjp,
        (coupling(), RNG.standard_normal((2, 10)), RNG.random((2, 10))),
        call=conditional_case,
        name="two of four observed",
    ),
]  # fmt: skip


def test_two_equal_entries_by_hand():
    for damping in (0.1, 0.5, 1.0):
        z, pullback = prox_softmax_vjp(np.zeros(2), damping=damping)
        np.testing.assert_allclose(z, [0.5, 0.5], rtol=1e-15)
        gain = 0.5 / (0.5 + 0.5 * damping)
        np.testing.assert_allclose(pullback(np.array([1.0, 0.0]))[0], [gain / 2, -gain / 2], rtol=1e-14)


@given(size=st.integers(1, 8), damping=st.floats(0.01, 1), scale=st.floats(0.01, 100), seed=st.integers(0, 999))
def test_proximal_point_satisfies_its_equation(size, damping, scale, seed):
    y = scale * np.random.default_rng(seed).standard_normal(size)
    z = prox_softmax(y, damping=damping)
    np.testing.assert_allclose(z.sum(), 1, rtol=1e-14)
    assert (z >= 0).all()
    inside = z > 1e-300
    shift = ((1 - damping) * z + damping * np.log(np.where(inside, z, 1)) - y)[inside]
    np.testing.assert_allclose(shift, shift[np.argmax(z[inside])], atol=1e-12 * (1 + scale))


@given(size=st.integers(2, 6), damping=st.floats(0.05, 0.95), seed=st.integers(0, 999))
def test_proximal_point_minimises_its_objective(size, damping, seed):
    rng = np.random.default_rng(seed)
    y = 2 * rng.standard_normal(size)

    def objective(z):
        entropy = (z * np.log(np.where(z > 0, z, 1))).sum(axis=-1)
        return ((z - y) ** 2).sum(axis=-1) / 2 + damping * (entropy - (z * z).sum(axis=-1) / 2)

    others = rng.dirichlet(np.ones(size), size=100)
    assert (objective(others) >= objective(prox_softmax(y, damping=damping)) - 1e-13).all()


@given(seed=st.integers(0, 999), damping=st.floats(0.01, 1))
def test_softmax_is_the_fixed_point_of_the_damped_map(seed, damping):
    logits = 3 * np.random.default_rng(seed).standard_normal(5)
    q = scipy.special.softmax(logits)
    np.testing.assert_allclose(prox_softmax((1 - damping) * q + damping * logits, damping=damping), q, atol=1e-14)


def test_extreme_entries_give_a_corner_and_no_warning():
    z, pullback = prox_softmax_vjp(np.array([1e8, 0.0, -1e8]), damping=0.01)
    np.testing.assert_array_equal(z, [1, 0, 0])
    np.testing.assert_array_equal(pullback(np.ones(3))[0], 0)


@given(seed=st.integers(0, 999), margin=st.floats(0.01, 0.99), scale=st.floats(0, 5))
def test_coupling_is_hollow_symmetric_and_keeps_the_margin(seed, margin, scale):
    phi = coupling(seed=seed, scale=scale, margin=margin)
    np.testing.assert_array_equal(phi, phi.T)
    start = 0
    for size in SIZES:
        assert (phi[start : start + size, start : start + size] == 0).all()
        start += size
    assert np.linalg.eigvalsh(np.eye(10) - phi).min() >= margin - 1e-12


def test_block_at_the_limit_is_not_scaled():
    # 1 - margin = 1/4 and a block of norm 1/2 exactly: the kink has the derivative of the inactive side.
    weight = np.array([[0.5, 0.0, 0.25, 0.0]])
    phi, pullback = hollow_coupling_vjp(weight, (2, 2), margin=0.75)
    assert phi[0, 2] == -0.125
    dphi = np.zeros((4, 4))
    dphi[0, 2] = 1.0
    np.testing.assert_array_equal(pullback(dphi)[0], [[-0.25, 0.0, -0.5, 0.0]])


def test_zero_weights_give_no_coupling():
    phi, pullback = hollow_coupling_vjp(np.zeros((3, 4)), (2, 2))
    assert (phi == 0).all()
    assert (pullback(np.ones((4, 4)))[0] == 0).all()


def test_uncoupled_variables_have_softmax_marginals():
    b = RNG.standard_normal((2, 10))
    result = mean_field(np.zeros((10, 10)), b, SIZES)
    np.testing.assert_allclose(result.x, block_softmax(b, SIZES), atol=1e-15)
    assert result.converged


def test_repelling_binary_variables_stay_undecided():
    phi = -0.5 * np.kron(np.array([[0.0, 1.0], [1.0, 0.0]]), np.eye(2))
    result = mean_field(phi, np.zeros(4), (2, 2), q0=np.array([0.9, 0.1, 0.9, 0.1]))
    np.testing.assert_allclose(result.x, 0.5, atol=1e-9)


@settings(max_examples=20)
@given(seed=st.integers(0, 999))
def test_every_start_leads_to_the_same_solution(seed):
    rng = np.random.default_rng(seed)
    phi, b = coupling(seed=seed), rng.standard_normal(10)
    starts = block_softmax(5 * rng.standard_normal((6, 10)), SIZES)
    result = mean_field(phi, np.tile(b, (6, 1)), SIZES, q0=starts, damping=0.2, max_iter=3000)
    assert result.converged
    np.testing.assert_allclose(result.x, np.tile(result.x[0], (6, 1)), atol=1e-8)
    np.testing.assert_allclose(block_softmax(result.x @ phi + b, SIZES), result.x, atol=1e-10)


def test_solution_is_that_of_a_root_finder():
    phi, b = coupling(seed=3), RNG.standard_normal(10)
    found = scipy.optimize.root(lambda q: q - block_softmax(phi @ q + b, SIZES), np.full(10, 0.3), tol=1e-12)
    np.testing.assert_allclose(mean_field(phi, b, SIZES, max_iter=5000).x, found.x, atol=1e-8)


def test_distance_shrinks_as_fast_as_promised():
    phi, b = coupling(seed=5), RNG.standard_normal(10)
    operator = np.linalg.eigvalsh(np.eye(10) - phi)
    solution = mean_field(phi, b, SIZES, max_iter=20000, tol=1e-14).x
    distances = [np.sum((mean_field(phi, b, SIZES, max_iter=n, tol=1e-15).x - solution) ** 2) for n in range(1, 12)]
    ratio = np.array(distances[1:]) / distances[:-1]
    assert ratio.max() <= 1 - (operator[0] / operator[-1]) ** 2 + 1e-9


def test_observed_variables_are_clamped_and_the_rest_solved():
    phi, b = coupling(seed=2), RNG.standard_normal((3, 10))
    known = np.array([False, True, True, False])
    x = np.zeros((3, 10))
    x[:, 3] = x[:, 5] = 1
    result = conditional_mean_field(phi, b, SIZES, known, x, max_iter=3000)
    np.testing.assert_array_equal(result.x[:, 2:6], x[:, 2:6])
    solved = block_softmax(result.x @ phi + b, SIZES)
    hidden = [0, 1, 6, 7, 8, 9]
    np.testing.assert_allclose(result.x[:, hidden], solved[:, hidden], atol=1e-9)


def test_without_observations_nothing_is_conditioned():
    phi, b = coupling(seed=2), RNG.standard_normal(10)
    none = np.zeros(4, bool)
    np.testing.assert_array_equal(
        conditional_mean_field(phi, b, SIZES, none, np.zeros(10)).x, mean_field(phi, b, SIZES).x
    )


def test_gradient_does_not_depend_on_the_way_to_the_solution():
    phi, b, dq = coupling(seed=1), RNG.standard_normal(10), RNG.standard_normal(10)
    grads = [
        mean_field_vjp(phi, b, SIZES, damping=damping, tol=1e-13, max_iter=20000)[1](dq) for damping in (None, 0.3)
    ]
    for one, other in zip(*grads, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)


def test_unfinished_run_says_so_and_callback_stops_it():
    phi, b = coupling(seed=1), RNG.standard_normal(10)
    short = mean_field(phi, b, SIZES, max_iter=3)
    assert not short.converged
    assert short.n_iter == len(short.history["residual"]) == 3
    assert mean_field(phi, b, SIZES, callback=lambda progress: progress.n_iter == 2).n_iter == 2


def test_unconstrained_couplings_need_a_damping_and_may_cycle():
    phi = -20 * np.kron(np.array([[0.0, 1.0], [1.0, 0.0]]), np.eye(2))
    with pytest.raises(ValueError, match=r"phi: expected eigenvalues of I - phi above 0 .*, got -19"):
        mean_field(phi, np.zeros(4), (2, 2))
    cycling = mean_field(phi, np.zeros(4), (2, 2), damping=1.0, q0=np.array([0.9, 0.1, 0.9, 0.1]))
    assert not cycling.converged


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    weight = RNG.standard_normal((6, 10)).astype(dtype)
    phi, back = hollow_coupling_vjp(weight, SIZES)
    assert phi.dtype == back(phi)[0].dtype == dtype
    b = RNG.standard_normal(10).astype(dtype)
    q, pullback = mean_field_vjp(phi, b, SIZES, tol=1e-5)
    assert {q.dtype, *(entry.dtype for entry in pullback(q))} == {np.dtype(dtype)}
    z, pullback = prox_softmax_vjp(b, damping=0.3)
    assert z.dtype == pullback(z)[0].dtype == dtype
    known = np.array([True, False, False, False])
    q, pullback = conditional_mean_field_vjp(phi, b, SIZES, known, b, tol=1e-5)
    assert {q.dtype, *(entry.dtype for entry in pullback(q))} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    weight, b = RNG.standard_normal((6, 10)), RNG.standard_normal(10)
    phi = hollow_coupling(weight, SIZES)
    for array in (weight, b, phi):
        array.setflags(write=False)
    hollow_coupling_vjp(3 * weight, SIZES)[1](phi)
    mean_field_vjp(phi, b, SIZES, q0=b)[1](b)
    prox_softmax_vjp(b, damping=0.5)[1](b)


PHI, B, KNOWN = np.zeros((4, 4)), np.zeros(4), np.array([True, False])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hollow_coupling(np.ones((2, 4)), (2, 3)), ValueError, r"block_sizes: expected sizes that sum to 4, got \(2, 3\)"),
        (lambda: hollow_coupling(np.ones((2, 4)), (4, 0)), ValueError, "block_sizes: expected an integer >= 1, got 0"),
        (lambda: hollow_coupling(np.ones((2, 4)), (2, 2), margin=1.0), ValueError, r"margin: expected a number in \(0, 1\), got 1.0"),
        (lambda: hollow_coupling(np.ones((2, 4), int), (2, 2)), TypeError, "weight: expected a float32 or float64 array, got dtype int64"),
        (lambda: prox_softmax(np.ones(2), damping=0.0), ValueError, r"damping: expected a number in \(0, 1\], got 0.0"),
        (lambda: prox_softmax(np.ones((2, 0)), damping=0.5), ValueError, "y: expected at least one entry along axes"),
        (lambda: block_softmax(np.ones(3), (2,)), ValueError, r"block_sizes: expected sizes that sum to 3, got \(2,\)"),
        (lambda: mean_field(np.zeros((4, 3)), B, (2, 2)), ValueError, r"phi: expected shape \(4, 4\), got \(4, 3\)"),
        (lambda: mean_field(np.full((4, 4), np.nan), B, (2, 2)), ValueError, "phi: expected finite values, got 16"),
        (lambda: mean_field(PHI, B.astype("f4"), (2, 2)), TypeError, "b: expected dtype float64 like phi, got float32"),
        (lambda: mean_field(PHI, B, (2, 2), damping=1.5), ValueError, r"damping: expected a number in \(0, 1\], got 1.5"),
        (lambda: mean_field(PHI, B, (2, 2), q0=np.zeros(3)), ValueError, r"q0: expected shape \(4,\), got \(3,\)"),
        (lambda: mean_field(PHI, B, (2, 2), tol=0.0), ValueError, "tol: expected a finite number > 0, got 0.0"),
        (lambda: mean_field(PHI, B, (2, 2), max_iter=0), ValueError, "max_iter: expected an integer >= 1, got 0"),
        (lambda: conditional_mean_field(PHI, B, (2, 2), np.array([1, 0]), B), TypeError, "observed: expected a boolean array, got dtype int64"),
        (lambda: conditional_mean_field(PHI, B, (2, 2), np.array([True]), B), ValueError, r"observed: expected shape \(2,\), got \(1,\)"),
        (lambda: conditional_mean_field(PHI, B, (2, 2), np.array([True, True]), B), ValueError, "observed: expected at least one hidden variable, got none"),
        (lambda: conditional_mean_field(PHI, B, (2, 2), KNOWN, np.zeros(2)), ValueError, r"x: expected shape \(4,\), got \(2,\)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
