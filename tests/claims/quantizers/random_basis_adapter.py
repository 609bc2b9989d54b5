"""Evidence for NOLA: fewer numbers than rank one, adaptation of a network, free rank, quantized coefficients."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
from small_data import digits
from small_networks import accuracy, batches, mlp_init, mlp_loss_and_grads

from refnorm.claims import Claim
from refnorm.nn import relu_vjp
from refnorm.quantizers import (
    BasisGenerator,
    lora_linear_vjp,
    nola_init,
    nola_linear,
    nola_linear_vjp,
    parameter_count,
    quantize_coefficients,
)
from refnorm.quantizers._descent import Descent
from refnorm.softmax import cross_entropy_vjp

SEEDS = range(3)
STEPS, BATCH, COEFFICIENTS = 400, 128, 12


def claims() -> list[Claim]:
    return [floor(), adaptation(), rank(), coefficients()]


def target(seed: int):
    """A random 64 x 64 matrix of rank 4."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((64, 4)) @ rng.standard_normal((4, 64))).astype(np.float32)


@lru_cache
def removed(seed: int, n_basis: int, steps: int = 600) -> float:
    """Share of the target's squared norm that b @ a removes, with ``n_basis`` coefficients for each factor, rank 8."""
    change = target(seed)
    adapter = nola_init((64, 64), rank=8, n_basis=(n_basis, n_basis), seed=1000 + seed, dtype=np.float32)
    start = BasisGenerator(2000 + seed, (8, 64), 1, scale=1 / 8).bases(0, 1)[0]
    # Bases of this size are kept, which is quicker than to make them in every step.
    basis_a = BasisGenerator(adapter.seed_a, (8, 64), n_basis).bases(0, n_basis).reshape(n_basis, -1)
    basis_b = BasisGenerator(adapter.seed_b, (64, 8), n_basis).bases(0, n_basis).reshape(n_basis, -1)
    params = {"a": adapter.coefficients_a, "b": adapter.coefficients_b}
    descent = Descent({"a": 0.05, "b": 0.05})
    for _ in range(steps):
        a, b = start + (params["a"] @ basis_a).reshape(8, 64), (params["b"] @ basis_b).reshape(64, 8)
        error = 2 * (b @ a - change)
        grads = {"a": basis_a @ (b.T @ error).reshape(-1), "b": basis_b @ (error @ a.T).reshape(-1)}
        params = descent.step(params, grads)
    a, b = start + (params["a"] @ basis_a).reshape(8, 64), (params["b"] @ basis_b).reshape(64, 8)
    return 1 - float(np.sum((b @ a - change) ** 2) / np.sum(change**2))


def floor() -> Claim:
    few, more, many = ([removed(seed, n) for seed in SEEDS] for n in (32, 128, 1024))
    return Claim(
        statement="The number of trained parameters can go below that of rank one, and grows by single numbers: share of "
        "the squared norm of a random 64 x 64 change of rank 4 that is removed (rank 8).",
        expected="64 coefficients, half of rank one's 128 numbers: above 0.025, where 64 random linear directions have "
        "0.0156; 256: above 0.2; 2048: above 0.99; on each of 3 seeds",
        holds=min(few) > 0.025 and min(more) > 0.2 and min(many) > 0.99,
        figures={
            "64 coefficients, smallest share": min(few),
            "256 coefficients, smallest share": min(more),
            "2048 coefficients, smallest share": min(many),
        },
    )


@lru_cache
def problem(seed: int):
    """A 64-64-10 network trained on digits 0 to 4, and the same digits turned by 90 degrees."""
    data = digits(seed=seed)
    parts = []
    for x, y in ((data.x, data.target), (data.x_test, data.target_test)):
        turned = np.rot90(x.reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64)
        parts += [x[y < 5], np.ascontiguousarray(turned[y < 5]), y[y < 5]]
    x, turned, y, _, turned_test, y_test = parts
    rng = np.random.default_rng(seed)
    layers = mlp_init(rng, (64, 64, 10))
    descent = Descent(dict.fromkeys("wvbc", 0.001))
    for rows in batches(rng, len(x), 64, 15):
        _, ((w, b), (v, c)) = mlp_loss_and_grads(layers, x[rows], y[rows])
        params = dict(zip("wbvc", (layers[0][0], layers[0][1], layers[1][0], layers[1][1]), strict=True))
        params = descent.step(params, {"w": w, "b": b, "v": v, "c": c})
        layers = [(params["w"], params["b"]), (params["v"], params["c"])]
    frozen = [(np.ascontiguousarray(weight.T), bias) for weight, bias in layers]
    return frozen, (turned, y), (turned_test, y_test)


def forward(frozen, layer, x):
    """Logits, with ``layer(number, h, weight)`` for each linear layer; the pullback gives its results in reverse."""
    h, pull_first = layer(0, x, frozen[0][0])
    h, activate = relu_vjp(h + frozen[0][1])
    logits, pull_second = layer(1, h, frozen[1][0])

    def pullback(dy):
        second = pull_second(dy)
        return pull_first(activate(second[0])[0]), second

    return logits + frozen[1][1], pullback


@lru_cache
def adapted(seed: int, kind: str, rank: int):
    """Test accuracy every 20 steps, and the trained arrays, of an adapter for both layers."""
    frozen, (x, y), (x_test, y_test) = problem(seed)
    rng = np.random.default_rng(100 + seed)
    shapes = [weight.shape for weight, _ in frozen]
    if kind == "lora":
        params = {f"a{i}": rng.uniform(-1, 1, (rank, n)) / np.sqrt(n) for i, (_, n) in enumerate(shapes)}
        params |= {f"b{i}": np.zeros((m, rank)) for i, (m, _) in enumerate(shapes)}
        adapters = None
    else:
        adapters = [
            nola_init(shape, rank=rank, n_basis=(COEFFICIENTS, COEFFICIENTS), seed=10 * seed + i)
            for i, shape in enumerate(shapes)
        ]
        params = {f"a{i}": adapter.coefficients_a for i, adapter in enumerate(adapters)}
        params |= {f"b{i}": adapter.coefficients_b for i, adapter in enumerate(adapters)}

    def layer(i, h, weight):
        if kind == "lora":
            return lora_linear_vjp(h, weight, params[f"a{i}"], params[f"b{i}"], scale=1 / rank)
        return nola_linear_vjp(h, weight, params[f"a{i}"], params[f"b{i}"], adapters[i])

    descent = Descent(dict.fromkeys(params, 1e-2 if kind == "lora" else 5e-2))
    curve = [accuracy(forward(frozen, layer, x_test)[0], y_test)]
    for step in range(STEPS):
        rows = rng.integers(len(x), size=BATCH)
        logits, pullback = forward(frozen, layer, x[rows])
        entries = pullback(cross_entropy_vjp(logits, y[rows])[1](np.array(1.0))[0])
        grads = {
            f"{name}{i}": entry for i, all_ in enumerate(entries) for name, entry in zip("ab", all_[2:], strict=True)
        }
        params = descent.step(params, grads)
        if step % 20 == 19:
            curve.append(accuracy(forward(frozen, layer, x_test)[0], y_test))
    if adapters:
        adapters = [
            replace(adapter, coefficients_a=params[f"a{i}"], coefficients_b=params[f"b{i}"])
            for i, adapter in enumerate(adapters)
        ]
    return curve, adapters


def adaptation() -> Claim:
    start = [adapted(seed, "lora", 1)[0][0] for seed in SEEDS]
    lora, wide, narrow = (
        [adapted(s, *kind)[0][-1] for s in SEEDS] for kind in (("lora", 1), ("nola", 16), ("nola", 4))
    )
    gains = [min(w - a, n - a) / (b - a) for a, b, w, n in zip(start, lora, wide, narrow, strict=True)]
    numbers = sum(parameter_count(shape, rank=1) for shape in ((64, 64), (10, 64)))
    return Claim(
        statement="A network trained on digits 0 to 4 is adapted to the same digits turned by 90 degrees: with a quarter "
        "of the numbers, random bases come near a low-rank adapter of rank one.",
        expected="at rank 4 and rank 16, at least 0.8 of the accuracy that rank one gains, on each of 3 seeds",
        holds=min(gains) >= 0.8,
        figures={
            "numbers trained, rank one": numbers,
            "numbers trained, random bases": 4 * COEFFICIENTS,
            "accuracy before": float(np.mean(start)),
            "accuracy, rank one": float(np.mean(lora)),
            "accuracy, random bases, rank 4": float(np.mean(narrow)),
            "accuracy, random bases, rank 16": float(np.mean(wide)),
            "smallest share of the gain": min(gains),
        },
    )


def rank() -> Claim:
    differences = [adapted(s, "nola", 16)[0][-1] - adapted(s, "nola", 4)[0][-1] for s in SEEDS]
    counts = {parameter_count((64, 64), rank=r, n_basis=(COEFFICIENTS, COEFFICIENTS)) for r in (4, 16)}
    return Claim(
        statement="Rank costs no parameters, and is no delicate choice: test accuracy at rank 4 and rank 16 is close.",
        expected="the same number of parameters; accuracies that differ by at most 0.10 on each of 3 seeds",
        holds=len(counts) == 1 and max(abs(d) for d in differences) <= 0.10,
        figures={"rank 16 minus rank 4, smallest": min(differences), "rank 16 minus rank 4, largest": max(differences)},
    )


def quantized_change(seed: int, bits: int) -> float:
    """Change of the test logits by quantized coefficients, relative to the logits."""
    frozen, _, (x, _) = problem(seed)

    def logits(adapters):
        def layer(i, h, weight):
            return nola_linear(h, weight, adapters[i].coefficients_a, adapters[i].coefficients_b, adapters[i]), None

        return forward(frozen, layer, x)[0]

    _, adapters = adapted(seed, "nola", 16)
    before, after = logits(adapters), logits([quantize_coefficients(a, bits=bits) for a in adapters])
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


def coefficients() -> Claim:
    eight, four = ([quantized_change(seed, bits) for seed in SEEDS] for bits in (8, 4))
    return Claim(
        statement="The coefficients can be quantized after training: the outputs of the adapted network (rank 16) hardly "
        "change at 8 bits.",
        expected="relative change of the logits below 0.03 at 8 bits and below 0.35 at 4 bits, on each of 3 seeds",
        holds=max(eight) < 0.03 and max(four) < 0.35,
        figures={"largest change, 8 bits": max(eight), "largest change, 4 bits": max(four)},
    )


def figure():
    """Share of a rank-4 change removed against the number of parameters, and accuracy during adaptation."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    sizes = [8, 16, 32, 64, 128, 256, 512]
    left.plot([2 * n for n in sizes], [removed(0, n, 300) for n in sizes], "o-", label="random bases, rank 8")
    squares = np.linalg.svd(target(0), compute_uv=False)[:4] ** 2
    left.plot(128 * np.arange(1, 5), np.cumsum(squares) / squares.sum(), "s", label="best of rank 1, 2, 3, 4")
    left.axvline(128, color="0.7", linewidth=1)
    left.set(xlabel="trained numbers", ylabel="share removed", xscale="log", title="A random change of rank 4")
    left.legend(loc="upper left")
    for kind, r, label in (
        ("lora", 1, "low rank 1 (202 numbers)"),
        ("nola", 4, "random bases, rank 4 (48)"),
        ("nola", 16, "random bases, rank 16 (48)"),
    ):
        right.plot(range(0, STEPS + 1, 20), adapted(0, kind, r)[0], label=label)
    right.set(xlabel="step", ylabel="test accuracy", title="Digits turned by 90 degrees")
    right.legend(loc="lower right")
    return fig
