"""Evidence for MgNO: it contains classical multigrid, and it learns a solution operator that a stack of filters cannot."""

import functools
from dataclasses import replace

import numpy as np

from refnorm.claims import Claim
from refnorm.solvers import AdamP, init_vcycle, padded_conv2d, padded_conv2d_vjp, poisson_vcycle, vcycle, vcycle_vjp
from refnorm.tree import tree_leaves

STENCIL = np.array([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]])[None, None]
SIDE, TRAIN, TEST = 15, 200, 50
BATCH, STEPS, RATE = 20, 250, 1e-2
SEED = 0


def claims() -> list[Claim]:
    return [classical(), mesh_independent(), learned()]


def contraction(n: int, weights, steps: int = 50) -> float:
    """Factor by which one cycle shrinks the error of -Laplace u = f, after many cycles."""
    operator = STENCIL * (n + 1) ** 2
    error, factor = np.random.default_rng(0).standard_normal((1, 1, n, n)), 0.0
    for _ in range(steps):
        error = error - vcycle(padded_conv2d(error, operator), weights, geometry="odd")
        factor = float(np.linalg.norm(error))
        error /= factor
    return factor


def classical() -> Claim:
    multigrid = contraction(31, poisson_vcycle(31, 4))
    jacobi = contraction(31, poisson_vcycle(31, 1, smoothings=((4, 0),)))
    return Claim(
        statement="With the kernels of the five-point stencil, full weighting and bilinear prolongation, the V-cycle is "
        "classical multigrid for Poisson's equation (31 x 31 grid).",
        expected="error contracted by at most 0.25 a cycle; by at least 0.9 with four smoothings on the fine grid alone",
        holds=multigrid <= 0.25 and jacobi >= 0.9,
        figures={"contraction, V-cycle on 4 levels": multigrid, "contraction, 4 Jacobi sweeps": jacobi},
    )


def mesh_independent() -> Claim:
    factors = {n: contraction(n, poisson_vcycle(n, levels), 30) for n, levels in ((7, 2), (15, 3), (31, 4), (63, 5))}
    return Claim(
        statement="The contraction of a cycle does not depend on the grid, at a cost proportional to its points.",
        expected="at most 0.25 on grids of 7 to 63 points a side, always down to 3 x 3",
        holds=max(factors.values()) <= 0.25,
        figures={f"contraction, {n} x {n} grid": factor for n, factor in factors.items()},
    )


@functools.cache
def pairs(seed: int):
    """Right-hand sides and solutions of -Laplace u = f, both scaled to unit size."""
    rng = np.random.default_rng(seed)
    grid, number = np.arange(1, SIDE + 1) / (SIDE + 1), np.arange(1, 6)
    waves = np.sin(np.pi * np.outer(number, grid))
    weight = 1 / (1 + 0.2 * (number[:, None] ** 2 + number**2))
    f = np.einsum("nij,ix,jy->nxy", rng.standard_normal((TRAIN + TEST, 5, 5)) * weight, waves, waves)
    # The discrete sines are eigenvectors of the five-point stencil, so the solution is known exactly.
    line = 2 * (SIDE + 1) ** 2 * (1 - np.cos(np.pi * np.arange(1, SIDE + 1) / (SIDE + 1)))
    basis = np.sin(np.pi * np.outer(np.arange(1, SIDE + 1), grid)) * np.sqrt(2 / (SIDE + 1))
    u = basis.T @ ((basis @ f @ basis.T) / (line[:, None] + line)) @ basis
    return [(a / a.std())[:, None].astype(np.float32) for a in (f, u)]


def cycle_model(rng):
    params = {
        "cycle": init_vcycle(rng, 1, 4, 3, geometry="odd", dtype=np.float32),
        "head": rng.uniform(-0.5, 0.5, (1, 4, 1, 1)).astype(np.float32),
    }

    def model(params, f):
        hidden, back_cycle = vcycle_vjp(f, params["cycle"], geometry="odd")
        u, back_head = padded_conv2d_vjp(hidden, params["head"], padding=0)

        def pullback(du):
            dhidden, dhead = back_head(du)
            return {"cycle": back_cycle(dhidden)[1], "head": dhead}

        return u, pullback

    return params, model


def stack_model(rng):
    """Three linear 3 x 3 convolutions with 8 channels, and a 1 x 1 convolution."""
    sizes = [(8, 1, 3), (8, 8, 3), (8, 8, 3), (1, 8, 1)]
    params = [(rng.uniform(-1, 1, (o, i, k, k)) / np.sqrt(k * k * i)).astype(np.float32) for o, i, k in sizes]

    def model(params, f):
        backs, u = [], f
        for kernel in params:
            u, back = padded_conv2d_vjp(u, kernel, padding=kernel.shape[-1] // 2)
            backs.append(back)

        def pullback(du):
            grads = []
            for back in reversed(backs):
                du, grad = back(du)
                grads.append(grad)
            return grads[::-1]

        return u, pullback

    return params, model


def relative_error(model, params, f, u) -> float:
    return float(np.mean(np.linalg.norm((model(params, f)[0] - u).reshape(len(u), -1), axis=1)
                         / np.linalg.norm(u.reshape(len(u), -1), axis=1)))  # fmt: skip


@functools.cache
def train(name: str, seed: int):
    """Relative error on training and test data, parameters, and the test error on the way."""
    f, u = pairs(seed)
    params, model = (cycle_model if name == "V-cycle" else stack_model)(np.random.default_rng(100 + seed))
    rng = np.random.default_rng(200 + seed)
    optimizer = AdamP(learning_rate=RATE, delta=5e-324)  # without its projection: Adam
    state, curve = optimizer.init(params), []
    for step in range(STEPS):
        batch = rng.permutation(TRAIN)[:BATCH]
        value, pullback = model(params, f[batch])
        grads = pullback((value - u[batch]) / np.float32(value.size))
        rate = float(RATE / 2 * (1 + np.cos(np.pi * step / STEPS)))
        params, state = replace(optimizer, learning_rate=rate).step(params, grads, state)
        if step % 25 == 24:
            curve.append(relative_error(model, params, f[TRAIN:], u[TRAIN:]))
    return relative_error(model, params, f[:TRAIN], u[:TRAIN]), curve[-1], params, curve


def count(params) -> int:
    return sum(leaf.size for _, leaf in tree_leaves(params))


def learned() -> Claim:
    cycle, stack = train("V-cycle", SEED), train("stack", SEED)
    return Claim(
        statement="Trained on 200 pairs, one linear V-cycle learns the solution operator of Poisson's equation; a stack "
        "of 3 x 3 convolutions with more parameters sees too little of the domain.",
        expected="test error of the V-cycle below 0.1, below 0.4 of the stack's, and below 1.5 of its own training error",
        holds=cycle[1] < 0.1 and cycle[1] < 0.4 * stack[1] and cycle[1] < 1.5 * cycle[0],
        figures={
            "V-cycle: parameters": count(cycle[2]),
            "V-cycle: relative error, training": cycle[0],
            "V-cycle: relative error, test": cycle[1],
            "stack: parameters": count(stack[2]),
            "stack: relative error, training": stack[0],
            "stack: relative error, test": stack[1],
        },
    )


def figure():
    """Test error during training; and a right-hand side, its solution, and what both models make of it."""
    import matplotlib.pyplot as plt

    f, u = pairs(SEED)
    fig, axes = plt.subplots(1, 5, figsize=(10, 2.6), layout="constrained", width_ratios=[1.7, 1, 1, 1, 1])
    shown = {"f": f[TRAIN, 0], "solution": u[TRAIN, 0]}
    for name, maker in (("V-cycle", cycle_model), ("stack", stack_model)):
        _, _, params, curve = train(name, SEED)
        axes[0].plot(np.arange(25, STEPS + 1, 25), curve, label=name)
        shown[name] = maker(np.random.default_rng(0))[1](params, f[TRAIN : TRAIN + 1])[0][0, 0]
    axes[0].set(yscale="log", xlabel="step", ylabel="relative test error")
    axes[0].legend()
    limit = np.abs(u[TRAIN, 0]).max()
    for ax, (title, image) in zip(axes[1:], shown.items(), strict=True):
        bound = np.abs(image).max() if title == "f" else limit
        ax.imshow(image, cmap="RdBu_r", vmin=-bound, vmax=bound)
        ax.set(title=title, xticks=[], yticks=[])
        ax.grid(False)
    return fig
