import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    CouplingFlow,
    Diverged,
    GridDensity,
    PoissonProblem,
    adversarial_adaptive_sampling,
    best_response_1d,
    flow_log_density,
    flow_log_density_vjp,
    grid_objective,
    grid_objective_vjp,
    init_coupling_flow,
    init_tanh_net,
    poisson_residual,
    poisson_residual_vjp,
    tanh_net,
    tanh_net_laplacian,
    tanh_net_laplacian_vjp,
    tanh_net_vjp,
)
from refnorm.tree import tree_leaves, tree_map

RNG = np.random.default_rng(41)


def net(dimension=2, hidden=5, frequency=1.5, seed=0, **options):
    return init_tanh_net(np.random.default_rng(seed), dimension, hidden=hidden, frequency=frequency, **options)


def flow(dimension=3, layers=3, seed=0, size=1.0):
    # Larger weights than at initialization, so that the flow is far from the identity.
    drawn = init_coupling_flow(np.random.default_rng(seed), dimension, layers=layers, hidden=4)
    rng = np.random.default_rng(seed + 1)
    return drawn.with_parameters(
        tree_map(lambda leaf: leaf + size * 0.5 * rng.standard_normal(leaf.shape), drawn.layers)
    )


def flow_objective_vjp(layers):
    """The flow's objective and gradient, in the form that the gradient check wants."""
    rng = np.random.default_rng(5)
    x, reward, reference = rng.uniform(0.1, 0.9, (4, 3)), rng.random(4), 0.1 * rng.standard_normal(4)
    value, grads = CouplingFlow(layers).objective_vjp(x, reward, reference, 0.3, np.random.default_rng(6))
    return np.asarray(value), lambda g: (tree_map(lambda leaf: g * leaf, grads),)


GRADIENT_CASES = [
    *(
        GradientCase(tanh_net_vjp, (RNG.standard_normal((4, d)), net(d)), method="complex", name=f"{d} dimensions")
        for d in (1, 2)
    ),
    *(
        GradientCase(
            tanh_net_laplacian_vjp, (RNG.standard_normal((4, d)), net(d)), method="complex", name=f"{d} dimensions"
        )
        for d in (1, 3)
    ),
    GradientCase(poisson_residual_vjp, (RNG.standard_normal((4, 2)), net(2), RNG.standard_normal(4)), method="complex"),
    *(
        GradientCase(
            grid_objective_vjp,
            (RNG.standard_normal(shape), RNG.random(shape)),
            {"penalty": penalty},
            name=f"shape {shape}, penalty {penalty}",
        )
        for shape, penalty in (((6,), 0.3), ((4, 4), 0.1), ((1,), 1.0), ((5,), 0.0))
    ),
    GradientCase(flow_log_density_vjp, (RNG.uniform(0.1, 0.9, (4, 3)), flow().layers), name="three dimensions"),
    GradientCase(flow_log_density_vjp, (RNG.uniform(0.1, 0.9, (4, 2)), flow(2, 2).layers), name="two dimensions"),
    GradientCase(flow_objective_vjp, (flow(size=0.3).layers,), name="adversary's objective"),
]


@given(seed=st.integers(0, 999), dimension=st.integers(1, 3))
def test_laplacian_is_the_sum_of_second_differences(seed, dimension):
    params, x = net(dimension, seed=seed), np.random.default_rng(seed).standard_normal((3, dimension))
    h, total = 1e-4, np.zeros(3)
    for unit in np.eye(dimension):
        total += (tanh_net(x + h * unit, params) - 2 * tanh_net(x, params) + tanh_net(x - h * unit, params)) / h**2
    size = np.abs(params.output).sum() * (params.weight**2).sum(axis=1).max()
    np.testing.assert_allclose(tanh_net_laplacian(x, params), total, atol=1e-5 * (1 + size))


def test_saturated_units_have_no_curvature():
    params = net(1, frequency=1e6)
    assert np.isfinite(tanh_net_laplacian(np.array([[0.3]]), params)).all()


@given(seed=st.integers(0, 999), cells=st.integers(1, 12))
def test_constant_reward_draws_the_adversary_to_the_uniform_density(seed, cells):
    reward = np.full(cells, 3.0)
    _, pullback = grid_objective_vjp(np.zeros(cells), reward, penalty=1.0)
    np.testing.assert_allclose(pullback(np.ones(()))[0], 0, atol=1e-14)
    other = np.random.default_rng(seed).standard_normal(cells)
    assert grid_objective(other, reward, penalty=1.0) <= grid_objective(np.zeros(cells), reward, penalty=1.0) + 1e-14


@given(seed=st.integers(0, 999), cells=st.integers(1, 30), penalty=st.floats(0.5, 10))
def test_best_response_is_the_maximum(seed, cells, penalty):
    rng = np.random.default_rng(seed)
    reward = rng.random(cells)
    density = best_response_1d(reward, penalty)
    np.testing.assert_allclose(density.mean(), 1, rtol=1e-12)
    assert (density > 0).all()
    best = grid_objective(np.log(density), reward, penalty=penalty)
    for _ in range(10):
        other = np.log(density) + 0.1 * rng.standard_normal(cells)
        assert grid_objective(other, reward, penalty=penalty) <= best + 1e-13
    _, pullback = grid_objective_vjp(np.log(density), reward, penalty=penalty)
    np.testing.assert_allclose(pullback(np.ones(()))[0], 0, atol=1e-12)


@given(seed=st.integers(0, 999), floor=st.floats(0, 0.5))
def test_floor_keeps_a_density(seed, floor):
    reward = 100 * np.random.default_rng(seed).random(20)
    density = best_response_1d(reward, 1e-3, floor=floor)
    np.testing.assert_allclose(density.mean(), 1, rtol=1e-12)
    assert density.min() >= floor - 1e-12


def test_inner_maximum_in_closed_form():
    centres = (np.arange(512) + 0.5) / 512
    density = best_response_1d(1 + np.cos(np.pi * centres), 0.1)
    np.testing.assert_allclose(density, 1 + np.cos(np.pi * centres) / (0.2 * np.pi**2), atol=1e-5)
    value = grid_objective(np.log(density), 1 + np.cos(np.pi * centres), penalty=0.1)
    np.testing.assert_allclose(value, 1 + 1 / (0.8 * np.pi**2), rtol=1e-5)


@pytest.mark.parametrize("logits", [np.zeros(8), RNG.standard_normal(8), RNG.standard_normal((4, 4))])
def test_grid_density_integrates_to_one_and_samples_its_cells(logits):
    density, rng = GridDensity(logits), np.random.default_rng(0)
    np.testing.assert_allclose(density.masses().sum(), 1, rtol=1e-14)
    x = density.sample(rng, 4000)
    assert ((x >= 0) & (x <= 1)).all()
    counts = np.zeros(logits.shape)
    np.add.at(counts, density.cells(x), 1)
    np.testing.assert_allclose(counts / 4000, density.masses(), atol=0.03)
    np.testing.assert_allclose(np.exp(-density.log_density(x)).mean(), 1, atol=0.15)


def test_points_on_the_upper_face_belong_to_the_last_cell():
    assert GridDensity(np.zeros(4)).cells(np.array([[0.0], [1.0]]))[0].tolist() == [0, 3]


def test_grid_objective_from_samples_is_the_one_from_cell_means():
    density, rng = GridDensity(RNG.standard_normal(6)), np.random.default_rng(0)
    x = density.sample(rng, 20_000)
    value, grads = density.objective_vjp(x, 1 + x[:, 0], density.log_density(x), 0.05, rng)
    centres = (np.arange(6) + 0.5) / 6
    exact, pullback = grid_objective_vjp(density.logits, 1 + centres, penalty=0.05)
    np.testing.assert_allclose(value, exact, atol=0.02)
    np.testing.assert_allclose(grads, pullback(np.ones(()))[0], atol=0.02)


def test_flow_density_integrates_to_one():
    edges = (np.arange(400) + 0.5) / 400
    x = np.stack(np.meshgrid(edges, edges, indexing="ij"), axis=-1).reshape(-1, 2)
    for size in (0.0, 1.0):
        np.testing.assert_allclose(np.exp(flow(2, 4, size=size).log_density(x)).mean(), 1, atol=2e-3)


@settings(max_examples=20)
@given(seed=st.integers(0, 999), dimension=st.integers(2, 4))
def test_flow_density_has_the_jacobian_of_its_map(seed, dimension):
    sampler = flow(dimension, seed=seed)
    noise = np.random.default_rng(seed).standard_normal((1, dimension))

    class Fixed(np.random.Generator):
        def standard_normal(self, shape):
            return noise.copy()

    def image(z):
        nonlocal noise
        kept, noise = noise, z
        x = sampler.sample(Fixed(np.random.PCG64(0)), 1)
        noise = kept
        return x[0]

    h = 1e-5
    columns = [(image(noise + h * unit) - image(noise - h * unit)) / (2 * h) for unit in np.eye(dimension)]
    base = -(noise**2).sum() / 2 - dimension / 2 * np.log(2 * np.pi)
    expected = base - np.linalg.slogdet(np.stack(columns, axis=1))[1]
    np.testing.assert_allclose(flow_log_density(image(noise)[None], sampler.layers), [expected], atol=1e-5)


def test_flow_is_finite_on_the_faces():
    assert np.isfinite(flow(2).log_density(np.array([[0.0, 1.0], [0.5, 0.5]]))).all()


def line(x):
    return x[:, 0]


PROBLEM = PoissonProblem(lambda x: np.pi**2 * np.sin(np.pi * x[:, 0]), lambda x: 0 * x[:, 0], np.array([[0.0], [1.0]]))


def run(**options):
    problem = options.pop("problem", PROBLEM)
    start = {"rng": np.random.default_rng(0), "epochs": 30, "n_points": 50, "learning_rate": 1e-2} | options
    return adversarial_adaptive_sampling(
        problem, start.pop("net", net(1, 16, 3.0)), start.pop("sampler", GridDensity(np.zeros(16))), **start
    )


@pytest.mark.parametrize("response", ["ascent", "exact"])
def test_training_solves_an_easy_equation(response):
    result = run(response=response, epochs=100, tol=0)
    x = np.linspace(0, 1, 21)[:, None]
    np.testing.assert_allclose(tanh_net(x, result.net), np.sin(np.pi * x[:, 0]), atol=0.05)
    assert result.history["objective"][-1] < 0.01 * result.history["objective"][0]
    assert result.n_iter == 100


def test_flow_sampler_moves_towards_the_peak():
    def source(x):
        return np.exp(-40 * ((x - 0.25) ** 2).sum(axis=1))

    problem = PoissonProblem(source, lambda x: 0 * x[:, 0], np.array([[0.0, 0.0], [1.0, 1.0]]))
    still = tree_map(np.zeros_like, net(2, 4))
    sampler = init_coupling_flow(np.random.default_rng(0), 2)
    # A network that stays zero leaves the source itself as residual.
    result = run(
        problem=problem,
        net=still,
        sampler=sampler,
        learning_rate=1e-12,
        sampler_rate=1e-2,
        penalty=1e-3,
        epochs=40,
        tol=0,
    )
    spot = np.array([[0.25, 0.25]])
    assert result.sampler.log_density(spot)[0] > sampler.log_density(spot)[0] + 0.2


def test_without_sampler_steps_the_density_stays():
    result = run(sampler_steps=0, epochs=3)
    np.testing.assert_array_equal(result.sampler.logits, 0)


def test_run_ends_when_the_objective_stands_still():
    result = run(epochs=200, learning_rate=1e-12, tol=0.5)
    assert result.converged
    assert result.n_iter < 200
    assert run(callback=lambda progress: progress.n_iter == 4).n_iter == 4


def test_divergence_is_named():
    broken = PoissonProblem(lambda x: np.full(len(x), np.nan), PROBLEM.boundary, PROBLEM.boundary_points)
    with pytest.raises(Diverged, match="diverged at iteration 1: objective = nan .* use a smaller learning_rate"):
        run(problem=broken)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    params, x = net(2, dtype=dtype), RNG.random((4, 2)).astype(dtype)
    for f_vjp, args in (
        (tanh_net_vjp, (x, params)),
        (tanh_net_laplacian_vjp, (x, params)),
        (poisson_residual_vjp, (x, params, x[:, 0])),
    ):
        value, pullback = f_vjp(*args)
        assert {value.dtype, *(leaf.dtype for _, leaf in tree_leaves(pullback(value)))} == {np.dtype(dtype)}
    logits = x[:, 0]
    value, pullback = grid_objective_vjp(logits, logits, penalty=0.5)
    assert {value.dtype, *(entry.dtype for entry in pullback(value))} == {np.dtype(dtype)}
    assert best_response_1d(logits, 0.5).dtype == dtype
    layers = init_coupling_flow(np.random.default_rng(0), 2, dtype=dtype).layers
    value, pullback = flow_log_density_vjp(x, layers)
    assert {value.dtype, *(leaf.dtype for _, leaf in tree_leaves(pullback(value)))} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    params, x, layers = net(2), RNG.random((4, 2)), flow(2).layers
    for array in (x, *(leaf for _, leaf in tree_leaves((params, layers)))):
        array.setflags(write=False)
    poisson_residual_vjp(x, params, x[:, 0])[1](x[:, 0])
    flow_log_density_vjp(x, layers)[1](x[:, 0])


X = np.full((3, 2), 0.5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tanh_net(X, net(1)), ValueError, r"net.weight: expected shape \(5, 2\), got \(5, 1\)"),
        (lambda: tanh_net(X.astype("f4"), net(2)), TypeError, "net.weight: expected dtype float32 like x, got float64"),
        (lambda: poisson_residual(X, net(2), np.ones(2)), ValueError, r"source: expected shape \(3,\), got \(2,\)"),
        (lambda: init_tanh_net(RNG, 0), ValueError, "dimension: expected an integer >= 1, got 0"),
        (lambda: init_tanh_net(RNG, 1, frequency=0.0), ValueError, "frequency: expected a finite number > 0, got 0.0"),
        (lambda: grid_objective(np.zeros((2, 3)), np.zeros((2, 3)), penalty=1.0), ValueError, r"logits: expected shape \(K,\) or \(K, K\), got shape \(2, 3\)"),
        (lambda: GridDensity(np.zeros((2, 2, 2))).masses(), ValueError, r"logits: expected shape \(K,\) or \(K, K\)"),
        (lambda: grid_objective(np.zeros(3), np.zeros(2), penalty=1.0), ValueError, r"reward: expected shape \(3,\), got \(2,\)"),
        (lambda: grid_objective(np.zeros(3), np.zeros(3), penalty=-1.0), ValueError, "penalty: expected a finite number >= 0, got -1.0"),
        (lambda: best_response_1d(np.zeros(3), 0.0), ValueError, "penalty: expected a finite number > 0, got 0.0"),
        (lambda: best_response_1d(np.zeros(3), 1.0, floor=1.0), ValueError, r"floor: expected a number in \[0, 1\), got 1.0"),
        (lambda: GridDensity(np.zeros(3)).log_density(np.array([[1.5]])), ValueError, "x: expected points of the unit cube, got 1 outside"),
        (lambda: flow_log_density(X - 1, ()), ValueError, "x: expected points of the unit cube, got 3 outside"),
        (lambda: init_coupling_flow(RNG, 1), ValueError, "dimension: expected an integer >= 2, got 1"),
        (lambda: GridDensity(np.zeros(3)).sample(RNG, 0), ValueError, "m: expected an integer >= 1, got 0"),
        (lambda: run(n_points=0), ValueError, "n_points: expected an integer >= 1, got 0"),
        (lambda: run(penalty=-1.0), ValueError, "penalty: expected a finite number >= 0, got -1.0"),
        (lambda: run(boundary_weight=-1.0), ValueError, "boundary_weight: expected a finite number >= 0, got -1.0"),
        (lambda: run(response="best"), ValueError, "response: expected one of 'ascent', 'exact', got 'best'"),
        (lambda: run(response="exact", sampler=GridDensity(np.zeros((4, 4)))), ValueError, "response: expected 'ascent' for this sampler"),
        (lambda: run(rng=0), TypeError, "rng: expected a numpy.random.Generator"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
