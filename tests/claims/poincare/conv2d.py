"""Evidence for the Poincaré convolution: lengths of features, and what its pullback keeps."""

import dataclasses

import numpy as np

from refnorm.claims import Claim
from refnorm.poincare import beta_concat, conv2d, conv2d_vjp, exp0, init_baseline, init_conv2d_identity, log0

CHANNELS, SIDE, LAYERS, SEEDS = 16, 8, 20, range(3)
RECORDED = 56.0
"""Images' worth of tensors that PyTorch saves for the backward pass of hypll's layer; see the chapter."""


def claims() -> list[Claim]:
    return [expected_length(), identity_in_a_convolution(), identity_that_keeps_lengths(), memory()]


def expected_length() -> Claim:
    joined, plain = [], []
    for seed in SEEDS:
        tangent = np.random.default_rng(seed).standard_normal((9, 1000, CHANNELS))
        tangent *= 0.01 / np.linalg.norm(tangent, axis=-1, keepdims=True)
        joined.append(np.linalg.norm(log0(beta_concat(list(tangent), 1.0), 1.0), axis=-1).mean() / 0.01)
        plain.append(np.linalg.norm(np.concatenate(list(tangent), axis=-1), axis=-1).mean() / 0.01)
    return Claim(
        statement="Joining the nine pixels of a window by beta-concatenation keeps their length; plain concatenation "
        "triples it (16 channels).",
        expected="within 3 % of the pixels' length",
        holds=bool(np.abs(np.array(joined) - 1).max() < 0.03),
        figures={"beta-concatenation, length over a pixel's": joined[0], "plain concatenation": plain[0]},
    )


def lengths(kind, seed, reach=0.5):
    """Mean length of the features after each of 20 layers, relative to the input's."""
    rng = np.random.default_rng(seed)
    x = exp0(reach * rng.standard_normal((4, CHANNELS, SIDE, SIDE)) / np.sqrt(CHANNELS), 1.0, axis=1)
    found = [np.linalg.norm(x, axis=1).mean()]
    for _ in range(LAYERS):
        if kind == "random":
            parameters = init_baseline(9 * CHANNELS, CHANNELS, rng)
        else:
            parameters = init_conv2d_identity(
                CHANNELS, CHANNELS, 3, identity=kind.split()[0], keep_length="kept" in kind
            )
        x = conv2d(x, *parameters, 1.0, kernel=3, padding=1)
        found.append(np.linalg.norm(x, axis=1).mean())
    return np.array(found) / found[0]


def identity_in_a_convolution() -> Claim:
    kinds = ("unfolded", "centre", "random")
    found = {kind: np.stack([lengths(kind, seed) for seed in SEEDS]) for kind in kinds}
    kept = min(float(found[kind][:, -1].min()) for kind in ("unfolded", "centre"))
    return Claim(
        statement="Half the identity as weight of 3 x 3 convolutions keeps the length of features over twenty layers, as "
        "it does in fully connected layers.",
        expected="mean length after 20 layers over before: at least 0.5",
        holds=kept >= 0.5,
        refuted="A window's joined point has the length of one pixel, and half the identity copies a ninth of its "
        "coordinates: each layer shrinks features to a third. Batch normalization has to make up for it.",
        figures={f"{kind}: ratio after 1 layer": float(found[kind][:, 1].mean()) for kind in kinds}
        | {f"{kind}: largest ratio after 20 layers": float(found[kind][:, -1].max()) for kind in kinds},
    )


def identity_that_keeps_lengths() -> Claim:
    final = {reach: [float(lengths("centre kept", seed, reach)[-1]) for seed in SEEDS] for reach in (0.1, 0.5)}
    together = np.concatenate(list(final.values()))
    return Claim(
        statement="The central identity divided by the concatenation's factor keeps lengths over twenty convolutions "
        "(pixels at mean distances of about 0.2 and 1 from the origin).",
        expected="mean length after 20 layers over before: within [1/3, 3]",
        holds=bool(together.min() >= 1 / 3 and together.max() <= 3),
        figures={f"distance {2 * reach:g}: largest ratio after 20 layers": max(r) for reach, r in final.items()},
    )


def kept_bytes(pullback):
    """Bytes of the distinct arrays that a pullback refers to, directly or through what it refers to."""
    sizes, seen, pending = {}, set(), [pullback]
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, np.ndarray):
            while isinstance(item.base, np.ndarray):
                item = item.base
            sizes[id(item)] = item.nbytes
        elif dataclasses.is_dataclass(item) and not isinstance(item, type):
            pending += [getattr(item, field.name) for field in dataclasses.fields(item)]
        elif isinstance(item, dict):
            pending += list(item.values())
        elif isinstance(item, (list, tuple)):
            pending += list(item)
        elif getattr(item, "__closure__", None):
            pending += [cell.cell_contents for cell in item.__closure__]
        elif hasattr(item, "__self__"):
            pending.append(item.__self__)
    return sum(sizes.values())


def memory() -> Claim:
    rng = np.random.default_rng(0)
    x = exp0(0.5 * rng.standard_normal((32, CHANNELS, SIDE, SIDE)) / 4, 1.0, axis=1)
    weight, bias = init_conv2d_identity(CHANNELS, CHANNELS, 3)
    _, pullback = conv2d_vjp(x, weight, bias, 1.0, kernel=3, padding=1)
    worth = kept_bytes(pullback) / x.nbytes
    return Claim(
        statement="A hand-derived pullback keeps a fraction of what a recorded graph of the same layer keeps (32 images "
        "of 16 x 8 x 8, 3 x 3 window; the graph was recorded once, by PyTorch).",
        expected="at most a fifth",
        holds=worth <= RECORDED / 5,
        figures={"pullback, in images": worth, "recorded graph, in images": RECORDED},
    )


def figure():
    """Mean length of the features by layer for four initializations of 3 x 3 convolutions: plain identities
    shrink features to about a third a layer, random weights to less, and the central identity that makes up for the
    concatenation's factor stays near 1.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    for kind, label, colour in (
        ("centre kept", "centre, length kept", "tab:green"),
        ("centre", "centre", "tab:blue"),
        ("unfolded", "unfolded", "tab:purple"),
        ("random", "random", "tab:orange"),
    ):
        ax.semilogy(np.maximum(lengths(kind, 0), 1e-16), color=colour, label=label)
    ax.set(
        xlabel="layer", ylabel="mean length, relative to the input", ylim=(1e-15, 30), xticks=range(0, LAYERS + 1, 4)
    )
    ax.legend(frameon=False)
    return fig
