from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.quantizers import (
    BasisGenerator,
    lora_linear,
    lora_linear_vjp,
    nola_delta,
    nola_init,
    nola_linear,
    nola_linear_vjp,
    nola_merge,
    parameter_count,
    quantize_coefficients,
)

RNG = np.random.default_rng(1)


def adapter_of(shape=(3, 5), rank=2, n_basis=(4, 6), variant="official", seed=0, **options):
    return nola_init(shape, rank=rank, n_basis=n_basis, variant=variant, seed=seed, rng=np.random.default_rng(9), **options)  # fmt: skip


def normal(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


WEIGHT = RNG.standard_normal((3, 5))


def frozen_lora(x, weight, a, b, *, scale, train_weight):
    return lora_linear(x, WEIGHT, a, b, scale=scale)


def frozen_nola(x, weight, coefficients_a, coefficients_b, adapter):
    return nola_linear(x, WEIGHT, coefficients_a, coefficients_b, adapter)


def trained_nola(x, weight, coefficients_a, coefficients_b, adapter, *, train_weight):
    return nola_linear(x, weight, coefficients_a, coefficients_b, adapter)


def trained_lora(x, weight, a, b, *, scale, train_weight):
    return lora_linear(x, weight, a, b, scale=scale)


GRADIENT_CASES = [
    GradientCase(
        lora_linear_vjp,
        normal((4, 5), (3, 5), (2, 5), (3, 2)),
        {"scale": 0.5, "train_weight": True},
        surrogate=trained_lora,
        method="complex",
        name="trained weight",
    ),
    GradientCase(
        lora_linear_vjp,
        (normal((2, 1, 5))[0], WEIGHT, *normal((4, 5), (3, 4))),
        {"scale": -2.0, "train_weight": False},
        surrogate=frozen_lora,
        method="complex",
        name="frozen weight",
    ),
    GradientCase(
        nola_linear_vjp,
        (*normal((4, 5), (3, 5), (4,), (6,)), adapter_of()),
        {"train_weight": True},
        surrogate=trained_nola,
        method="complex",
        name="official, trained weight",
    ),
    GradientCase(
        nola_linear_vjp,
        (normal((2, 2, 5))[0], WEIGHT, *normal((70,), (65,)), adapter_of(n_basis=(70, 65), variant="pure", seed=5)),
        surrogate=frozen_nola,
        method="complex",
        name="pure, frozen weight, more bases than a chunk",
    ),
    GradientCase(
        nola_linear_vjp,
        (normal((4, 5))[0], WEIGHT, np.zeros(4), np.zeros(6), adapter_of()),
        surrogate=frozen_nola,
        method="complex",
        name="start: all coefficients 0",
    ),
]


@given(
    seed=st.integers(0, 2**128 - 1),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    n_basis=st.integers(1, 30),
    data=st.data(),
)
def test_a_basis_is_the_same_alone_and_among_others(seed, shape, n_basis, data):
    generator = BasisGenerator(seed, shape, n_basis)
    everything = generator.bases(0, n_basis)
    assert everything.shape == (n_basis, *shape)
    assert everything.dtype == np.float32
    i = data.draw(st.integers(0, n_basis - 1))
    assert (generator.bases(i, i + 1)[0] == everything[i]).all()


@given(n_basis=st.integers(1, 40), chunk=st.integers(1, 50), seed=st.integers(0, 99))
def test_combine_and_project_are_adjoint_and_agree_with_explicit_bases(n_basis, chunk, seed):
    generator = BasisGenerator(seed, (3, 4), n_basis)
    coefficients, cotangent = np.random.default_rng(seed).standard_normal(n_basis), normal((3, 4))[0]
    explicit = generator.bases(0, n_basis).astype(float)
    combined, projected = generator.combine(coefficients, chunk=chunk), generator.project(cotangent, chunk=chunk)
    np.testing.assert_allclose(combined, np.einsum("i,imn->mn", coefficients, explicit), atol=1e-13)
    np.testing.assert_allclose(projected, np.einsum("mn,imn->i", cotangent, explicit), atol=1e-13)
    np.testing.assert_allclose((combined * cotangent).sum(), projected @ coefficients, atol=1e-12)


def test_repeated_calls_are_equal_bit_for_bit():
    generator, coefficients = BasisGenerator(3, (16, 8), 200), RNG.standard_normal(200)
    assert (generator.combine(coefficients) == generator.combine(coefficients)).all()


def test_entries_are_uniform_and_uncorrelated():
    bases = BasisGenerator(0, (50, 40), 50).bases(0, 50).reshape(50, -1).astype(float) * np.sqrt(50)
    assert bases.min() >= -1
    assert bases.max() < 1
    # 100 000 entries: standard errors 0.0018 (mean) and 0.0009 (variance); 2000 a basis: 0.022 (correlation).
    assert abs(bases.mean()) < 0.008
    assert abs(bases.var() - 1 / 3) < 0.004
    assert np.abs(np.corrcoef(bases) - np.eye(50)).max() < 0.12


@pytest.mark.parametrize("n_basis", [4, 64, 1024])
def test_variance_of_a_combination_does_not_depend_on_the_number_of_bases(n_basis):
    coefficients = np.random.default_rng(n_basis).standard_normal(n_basis)
    coefficients *= np.sqrt(n_basis) / np.linalg.norm(coefficients)
    combined = BasisGenerator(1, (60, 60), n_basis).combine(coefficients)
    assert abs(combined.var() * 3 - 1) < 0.15


def test_both_dtypes_share_the_bases():
    adapter = adapter_of(n_basis=(100, 100))
    trained = replace(adapter, coefficients_a=RNG.standard_normal(100), coefficients_b=RNG.standard_normal(100))
    single = replace(
        trained,
        coefficients_a=trained.coefficients_a.astype(np.float32),
        coefficients_b=trained.coefficients_b.astype(np.float32),
    )
    assert nola_delta(single).dtype == np.float32
    np.testing.assert_allclose(nola_delta(single), nola_delta(trained), atol=1e-5)


@pytest.mark.parametrize("variant", ["official", "pure"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_start_changes_nothing_and_can_learn(variant, dtype):
    adapter = adapter_of(variant=variant, dtype=dtype)
    x, weight = (array.astype(dtype) for array in normal((7, 5), (3, 5)))
    y, pullback = nola_linear_vjp(x, weight, adapter.coefficients_a, adapter.coefficients_b, adapter)
    assert (y == x @ weight.T).all()
    entries = pullback(np.ones_like(y))
    assert [entry.dtype for entry in (y, *entries)] == [dtype] * 5
    assert (entries[2] == 0).all()
    assert np.abs(entries[3]).min() > 1e-4


def test_offset_is_within_the_range_of_kaiming_and_absent_from_the_pure_variant():
    official = adapter_of((2, 400), rank=3, n_basis=(1, 1))
    ones = replace(official, coefficients_b=np.ones(1), scale=1.0)
    b = BasisGenerator(ones.seed_b, (2, 3), 1).bases(0, 1)[0].astype(float)
    offset = np.linalg.lstsq(b.T @ b, b.T @ nola_delta(ones), rcond=1e-9)[0]
    assert np.abs(b @ offset - nola_delta(ones)).max() < 1e-12
    assert np.abs(nola_delta(replace(ones, coefficients_a=np.zeros(1), variant="pure"))).max() == 0
    assert 0.5 < np.abs(nola_delta(ones)).max() / (np.abs(b).sum(axis=1).max() / 20) <= 1


@settings(max_examples=30)
@given(
    m=st.integers(1, 6), n=st.integers(1, 6), rank=st.integers(1, 4), rows=st.integers(0, 4), seed=st.integers(0, 99)
)
def test_merged_weight_gives_the_same_outputs(m, n, rank, rows, seed):
    rng = np.random.default_rng(seed)
    adapter = replace(
        adapter_of((m, n), rank, seed=seed),
        coefficients_a=rng.standard_normal(4),
        coefficients_b=rng.standard_normal(6),
    )
    x, weight = rng.standard_normal((rows, n)), rng.standard_normal((m, n))
    y = nola_linear(x, weight, adapter.coefficients_a, adapter.coefficients_b, adapter)
    np.testing.assert_allclose(y, x @ nola_merge(weight, adapter).T, atol=1e-12)


def test_rank_of_the_change_is_at_most_the_adapters():
    adapter = replace(adapter_of((9, 8), rank=3, n_basis=(50, 50)), coefficients_b=RNG.standard_normal(50))
    assert np.linalg.matrix_rank(nola_delta(adapter)) == 3


def test_nan_in_a_coefficient_is_seen():
    adapter = adapter_of()
    y = nola_linear(np.ones((1, 5)), WEIGHT, np.full(4, np.nan), adapter.coefficients_b, adapter)
    assert np.isnan(y).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantized_coefficients_are_near_on_few_levels_and_stay_so(bits):
    adapter = replace(adapter_of(n_basis=(300, 300)), coefficients_a=RNG.standard_normal(300))
    made = quantize_coefficients(adapter, bits=bits)
    step = np.abs(adapter.coefficients_a).max() / (2 ** (bits - 1) - 1)
    assert np.abs(made.coefficients_a - adapter.coefficients_a).max() <= step / 2 * (1 + 1e-12)
    assert len(np.unique(made.coefficients_a)) <= 2**bits - 1
    assert (made.coefficients_b == 0).all()
    np.testing.assert_allclose(quantize_coefficients(made, bits=bits).coefficients_a, made.coefficients_a, rtol=1e-15)


def test_count_does_not_depend_on_rank_or_shape():
    assert (
        parameter_count((64, 64), rank=4, n_basis=(12, 12)) == parameter_count((9, 5), rank=16, n_basis=(12, 12)) == 24
    )
    assert parameter_count((64, 10), rank=2) == 148


def test_arguments_are_not_written_to():
    adapter = adapter_of()
    arrays = normal((4, 5), (3, 5), (4,), (6,))
    for array in arrays:
        array.setflags(write=False)
    y, pullback = nola_linear_vjp(*arrays, adapter)
    pullback(y)


ARRAYS = (np.ones((2, 5)), np.ones((3, 5)), np.ones(4), np.ones(6))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({0: np.ones((2, 4))}, ValueError, r"x: expected shape \(2, 5\), got \(2, 4\)"),
        ({1: np.ones((5, 3))}, ValueError, r"weight: expected shape \(3, 5\), got \(5, 3\)"),
        ({2: np.ones((4, 1))}, ValueError, r"coefficients_a: expected 1 dimensions, got shape \(4, 1\)"),
        ({2: np.ones(0)}, ValueError, r"coefficients_a: expected at least one entry along axes \(0,\), got shape \(0,\)"),
        ({3: np.ones(6, "f4")}, TypeError, "coefficients_b: expected dtype float64 like x, got float32"),
        ({0: np.ones((2, 5), int)}, TypeError, "x: expected a float32 or float64 array, got dtype int64"),
        ({4: replace(adapter_of(), variant="none")}, ValueError, "variant: expected one of 'official', 'pure', got 'none'"),
    ],
)  # fmt: skip
def test_bad_input_is_named(changed, error, message):
    arguments = dict(enumerate((*ARRAYS, adapter_of()))) | changed
    with pytest.raises(error, match=message):
        nola_linear(*arguments.values())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nola_init((3, 5), rank=0, seed=0), ValueError, "rank: expected an integer >= 1, got 0"),
        (lambda: nola_init((3, 5), n_basis=(0, 4), seed=0), ValueError, "n_basis: expected an integer >= 1, got 0"),
        (lambda: nola_init((3, 5), seed=2**64), ValueError, "seed: expected an integer >= 0 and <= 18446744073709551615"),
        (lambda: nola_init((3, 5), seed=0, variant="pure"), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: nola_init((3, 5), seed=0, dtype=int), ValueError, "dtype: expected one of"),
        (lambda: nola_init((3, 5), seed=0, alpha_scale=0), ValueError, "alpha_scale: expected a finite number > 0, got 0"),
        (lambda: BasisGenerator(0, (2, 0), 3), ValueError, "shape: expected an integer >= 1, got 0"),
        (lambda: BasisGenerator(0, (2,), 3, scale=-1.0), ValueError, "scale: expected a finite number > 0, got -1.0"),
        (lambda: BasisGenerator(0, (2,), 3).bases(2, 4), ValueError, "stop: expected an integer >= 2 and <= 3, got 4"),
        (lambda: BasisGenerator(0, (2,), 3).combine(np.ones(2)), ValueError, r"coefficients: expected shape \(3,\), got \(2,\)"),
        (lambda: BasisGenerator(0, (2,), 3).project(np.ones(3)), ValueError, r"cotangent: expected shape \(2,\), got \(3,\)"),
        (lambda: BasisGenerator(0, (2,), 3).combine(np.ones(3), chunk=0), ValueError, "chunk: expected an integer >= 1, got 0"),
        (lambda: lora_linear(*ARRAYS[:2], np.ones((2, 4)), np.ones((3, 2))), ValueError, r"a: expected shape \(2, 5\), got \(2, 4\)"),
        (lambda: lora_linear(*ARRAYS[:2], np.ones((2, 5)), np.ones((3, 1))), ValueError, r"b: expected shape \(3, 2\), got \(3, 1\)"),
        (lambda: lora_linear(*ARRAYS[:2], np.ones((2, 5)), np.ones((3, 2)), scale=np.inf), ValueError, "scale: expected a finite number, got inf"),
        (lambda: nola_merge(np.ones((5, 3)), adapter_of()), ValueError, r"weight: expected shape \(3, 5\), got \(5, 3\)"),
        (lambda: quantize_coefficients(adapter_of(), bits=1), ValueError, "bits: expected an integer >= 2 and <= 16, got 1"),
        (lambda: quantize_coefficients(replace(adapter_of(), coefficients_b=np.full(6, np.nan))), ValueError, "coefficients_b: expected finite values"),
        (lambda: parameter_count((3, 0)), ValueError, "shape: expected an integer >= 1, got 0"),
    ],
)  # fmt: skip
def test_bad_options_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
