"""Evidence for LLM.int8(): outlier columns ruin one scale, hurt row scales, and cost nothing once cut out."""

import numpy as np

from refnorm.claims import Claim
from refnorm.quantizers import (
    llm_int8_linear,
    matmul_rowwise,
    matmul_tensorwise,
    matmul_vectorwise,
    matmul_zeropoint,
    quantize_weight,
    vectorwise_quantize,
)

SEEDS = range(10)
ROWS, INPUTS, OUTPUTS, OUTLIERS = 64, 512, 256, 5


def claims() -> list[Claim]:
    return [decomposition(), regular_data(), memory()]


def problem(seed: int, level: tuple[float, float] | None = (20.0, 60.0)):
    """Normal inputs, of which five columns may be large in every row, and weights of log-normal column sizes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((ROWS, INPUTS))
    columns = rng.choice(INPUTS, OUTLIERS, replace=False)
    spread = 1 + 0.1 * rng.standard_normal((ROWS, OUTLIERS))
    sign, place = rng.choice([-1.0, 1.0], OUTLIERS), rng.random(OUTLIERS)
    if level is not None:
        x[:, columns] = sign * (level[0] + (level[1] - level[0]) * place) * spread
    weight = rng.standard_normal((INPUTS, OUTPUTS)) / np.sqrt(INPUTS) * np.exp(0.7 * rng.standard_normal(OUTPUTS))
    return x, weight, np.sort(columns) if level is not None else np.zeros(0, int)


PRODUCTS = {
    "tensor-wise absmax": matmul_tensorwise,
    "tensor-wise zero point": matmul_zeropoint,
    "row-wise": matmul_rowwise,
    "vector-wise": matmul_vectorwise,
    "decomposed, dequantized outlier weights": lambda x, w: llm_int8_linear(x, quantize_weight(w)),
    "decomposed, float outlier weights": lambda x, w: llm_int8_linear(
        x, quantize_weight(w), outlier_weights="float", w_float=w
    ),
}


def errors(x, weight, columns) -> dict[str, float]:
    """Frobenius norm of each product's error, relative to the product of the regular columns."""
    regular = np.setdiff1d(np.arange(x.shape[1]), columns)
    exact, size = x @ weight, np.linalg.norm(x[:, regular] @ weight[regular])
    return {name: float(np.linalg.norm(product(x, weight) - exact) / size) for name, product in PRODUCTS.items()}


def decomposition() -> Claim:
    runs, found_all = [], True
    for seed in SEEDS:
        x, weight, columns = problem(seed)
        runs.append(errors(x, weight, columns))
        found_all &= np.array_equal(vectorwise_quantize(x, threshold=6.0)[2], columns)
    vector, dequantized, exact = (
        np.array([run[name] for run in runs])
        for name in (
            "vector-wise",
            "decomposed, dequantized outlier weights",
            "decomposed, float outlier weights",
        )
    )
    holds = found_all and exact.max() < 0.015 and (vector / exact).min() > 6 and (dequantized < vector / 2.5).all()
    return Claim(
        statement="With five outlier columns of 512, absmax quantization fails, a scale for each row and column "
        "helps, and cutting the columns out restores the error of regular data (Table 1 of the paper).",
        expected="in each of 10 runs: exactly the five columns found; error with float outlier weights below 0.015 and "
        "less than a sixth of vector-wise; with dequantized outlier weights less than 1/2.5 of vector-wise",
        holds=bool(holds),
        figures={f"median error, {name}": float(np.median([run[name] for run in runs])) for name in PRODUCTS}
        | {
            "smallest ratio, vector-wise to float outlier weights": float((vector / exact).min()),
            "smallest ratio, vector-wise to dequantized outlier weights": float((vector / dequantized).min()),
        },
    )


def regular_data() -> Claim:
    runs = [errors(*problem(seed, level=None)) for seed in SEEDS]
    tensor, vector = (np.array([run[name] for run in runs]) for name in ("tensor-wise absmax", "vector-wise"))
    return Claim(
        statement="Without outliers, a scale for each row and column already gives a small error.",
        expected="in each of 10 runs: vector-wise below half the tensor-wise error, and below 0.015",
        holds=bool((vector < 0.5 * tensor).all() and vector.max() < 0.015),
        figures={
            "largest ratio, vector-wise to tensor-wise": float((vector / tensor).max()),
            "largest error, vector-wise": float(vector.max()),
        },
    )


def memory() -> Claim:
    weight = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    packed = quantize_weight(weight)
    share = (packed.q.nbytes + packed.scale.nbytes) / weight.nbytes
    in_int8 = 1 - OUTLIERS / INPUTS
    return Claim(
        statement="The weights take a quarter of float32, and nearly all multiply-adds are int8.",
        expected="codes and scales of a 1024x1024 layer at most 0.26 of float32; at least 0.99 of the multiply-adds in "
        "int8 with five outlier columns of 512",
        holds=share <= 0.26 and in_int8 >= 0.99,
        figures={"share of float32 bytes": share, "share of multiply-adds in int8": in_int8},
    )


def figure():
    """Error of each product against the size of the outlier columns; bands span ten seeds."""
    import matplotlib.pyplot as plt

    levels = np.geomspace(4, 128, 11)
    runs = {name: np.zeros((len(levels), len(SEEDS))) for name in PRODUCTS}
    for i, level in enumerate(levels):
        for j, seed in enumerate(SEEDS):
            for name, value in errors(*problem(seed, level=(level, level))).items():
                runs[name][i, j] = value
    fig, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for (name, values), marker in zip(runs.items(), "osv^D*", strict=True):
        (line,) = ax.plot(levels, np.median(values, axis=1), marker=marker, markersize=4, label=name)
        ax.fill_between(levels, values.min(axis=1), values.max(axis=1), color=line.get_color(), alpha=0.15)
    ax.axvline(6.0, color="gray", linestyle=":")
    ax.set(
        xlabel="size of the five outlier columns (regular columns: 1)",
        ylabel="error relative to the regular product",
        xscale="log",
        yscale="log",
    )
    ax.set_xticks([4, 8, 16, 32, 64, 128], ["4", "8", "16", "32", "64", "128"])
    ax.minorticks_off()
    ax.legend(fontsize="small")
    return fig
