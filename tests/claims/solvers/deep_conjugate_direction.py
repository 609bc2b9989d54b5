"""Evidence for deep conjugate directions: no direction can hurt, and a trained network saves iterations.

The network's weights lie beside this script, as training takes a minute or more; ``train_weights`` repeats it.
"""

import functools
from pathlib import Path

import numpy as np

from refnorm.claims import Claim
from refnorm.solvers import (
    AdamP,
    DirectionNetParams,
    conjugate_direction,
    direction_net,
    direction_net_vjp,
    init_direction_net,
    lanczos_ritz,
    poisson_2d,
    ritz_training_set,
    train_proposal,
)
from refnorm.tree import tree_leaves, tree_map

SIDE, TOLERANCE, STEPS = 32, 1e-4, 4000
SHAPE, SIZE = (SIDE, SIDE), SIDE * SIDE
WEIGHTS = Path(__file__).with_suffix(".npz")
MATRIX = poisson_2d(SIDE, SIDE)


def claims() -> list[Claim]:
    return [monotone(), conjugate_gradients(), iterations()]


def train_weights(seed: int = 0) -> DirectionNetParams:
    """Train the network on 200 residuals from 300 Ritz vectors, batches of 10, Adam at 0.001."""
    rng = np.random.default_rng(seed)
    _, vectors = lanczos_ritz(MATRIX, SIZE, 300, rng=rng)
    samples = ritz_training_set(vectors, 200, rng=rng).astype(np.float32)

    def model_vjp(params, r):
        f, pullback = direction_net_vjp(r, params, shape=SHAPE)
        return f, lambda df: (pullback(df)[1],)

    trained = train_proposal(
        model_vjp,
        init_direction_net(rng),
        samples,
        MATRIX,
        rng=rng,
        n_iter=STEPS,
        optimizer=AdamP(learning_rate=1e-3, delta=5e-324),  # without its projection: Adam
    )
    return trained.params


def save_weights(seed: int = 0) -> None:
    leaves = [leaf.ravel() for _, leaf in tree_leaves(train_weights(seed))]
    np.savez_compressed(WEIGHTS, weights=np.concatenate(leaves))


@functools.cache
def load_weights() -> DirectionNetParams:
    with np.load(WEIGHTS) as archive:
        flat, position = archive["weights"], 0

    def take(leaf):
        nonlocal position
        position += leaf.size
        return flat[position - leaf.size : position].reshape(leaf.shape)

    return tree_map(take, init_direction_net(np.random.default_rng(0)))


def proposal(params):
    return lambda r: direction_net(r.astype(np.float32), params, shape=SHAPE)


def right_hand_sides(seed: int):
    """Five random sums of the 4 x 4 lowest sines, and five times white noise."""
    rng = np.random.default_rng(seed)
    waves = np.sin(np.pi * np.outer(np.arange(1, 5), np.arange(1, SIDE + 1)) / (SIDE + 1))
    smooth = np.einsum("nij,ix,jy->nxy", rng.standard_normal((5, 4, 4)), waves, waves).reshape(5, SIZE)
    return {"smooth": smooth, "white": rng.standard_normal((5, SIZE))}


def monotone() -> Claim:
    """Energy errors from the exact solution, for trained and untrained networks."""
    largest = -np.inf
    nets = [load_weights(), *(init_direction_net(np.random.default_rng(seed)) for seed in range(3))]
    for number, params in enumerate(nets):
        for vectors in right_hand_sides(number).values():
            solution = vectors[0]
            b = MATRIX(solution)
            energies = [float(solution @ b)]
            for steps in range(1, 13):
                x = conjugate_direction(MATRIX, b, proposal(params), tol=1e-12, max_iter=steps).x
                energies.append(float((x - solution) @ MATRIX(x - solution)))
            change = np.diff(energies) / np.array(energies[:-1])
            largest = max(largest, float(change.max()))
    return Claim(
        statement="The energy of the error falls in every iteration, whatever the network proposes: trained or not.",
        expected="no relative growth above 1e-9 in 12 iterations, for one trained and three random networks and two "
        "right-hand sides each",
        holds=largest <= 1e-9,
        figures={"largest relative change of the energy in an iteration": largest},
    )


def conjugate_gradients() -> Claim:
    b = right_hand_sides(0)["white"][0]
    plain, other = np.zeros(SIZE), 0.0
    residual = direction = b
    for count in range(1, 31):
        image = MATRIX(direction)
        step = (residual @ residual) / (direction @ image)
        plain = plain + step * direction
        following = residual - step * image
        direction = following + (following @ following) / (residual @ residual) * direction
        residual = following
        x = conjugate_direction(MATRIX, b, lambda r: r, n_keep=1, tol=0, max_iter=count).x
        other = max(other, float(np.abs(x - plain).max() / np.abs(plain).max()))
    return Claim(
        statement="If the residual itself is proposed, the method is conjugate gradients.",
        expected="30 iterates within a relative 1e-10 of the textbook recursion",
        holds=other < 1e-10,
        figures={"largest relative difference": other},
    )


@functools.cache
def counts(seed: int):
    found = {}
    for kind, vectors in right_hand_sides(seed).items():
        for name, propose in (("network", proposal(load_weights())), ("conjugate gradients", lambda r: r)):
            results = [conjugate_direction(MATRIX, b, propose, tol=TOLERANCE, max_iter=300) for b in vectors]
            found[kind, name] = [result.n_iter if result.converged else np.inf for result in results]
    return found


def iterations() -> Claim:
    found = counts(0)
    mean = {pair: float(np.mean(values)) for pair, values in found.items()}
    total = sum(mean[kind, "network"] for kind in ("smooth", "white"))
    ratio = total / sum(mean[kind, "conjugate gradients"] for kind in ("smooth", "white"))
    smooth = mean["smooth", "network"] / mean["smooth", "conjugate gradients"]
    return Claim(
        statement="A small network that was trained without a single solution saves most of the iterations of conjugate "
        "gradients (Poisson's equation on 32 x 32 points, relative residual 1e-4).",
        expected="at most 0.4 of the iterations over ten right-hand sides, at most 0.7 on the five smooth ones",
        holds=bool(ratio <= 0.4 and smooth <= 0.7),
        figures={f"mean iterations, {kind}, {name}": value for (kind, name), value in mean.items()}
        | {"ratio over all": ratio, "ratio, smooth": smooth},
    )


def figure():
    """Relative residual against iterations, for a smooth and a white right-hand side."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(8.5, 3.4), layout="constrained", sharey=True)
    untrained = init_direction_net(np.random.default_rng(0))
    for ax, (kind, vectors) in zip(axes, right_hand_sides(0).items(), strict=True):
        b = vectors[0]
        for name, propose in (
            ("trained network", proposal(load_weights())),
            ("conjugate gradients", lambda r: r),
            ("untrained network", proposal(untrained)),
        ):
            history = conjugate_direction(MATRIX, b, propose, tol=1e-6, max_iter=80).history["residual"]
            ax.plot(np.concatenate([[1.0], history / np.linalg.norm(b)]), label=name)
        ax.set(yscale="log", xlabel="iteration", title=f"{kind} right-hand side", ylim=(1e-6, 20))
    axes[0].set_ylabel("relative residual")
    axes[1].legend()
    return fig
