"""Truth for learned codebooks: hand calculations, scikit-learn's k-means, PyTorch in float64 (autograd, Adam, lstsq)."""

import mpmath
import numpy as np
import torch
from sklearn.cluster import KMeans

from refnorm.conformance import GoldenCase, Tolerance

TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
CLOSE = Tolerance(1e-12, "relative_of_largest")
ULP = Tolerance(4, "ulp_of_largest")


def cases():
    rng = np.random.default_rng(20230917)
    return [*by_hand(), *clusters(rng), *mixtures(rng), *refitted(rng), *fitted(rng), folded()]


def by_hand():
    codebook, logits = np.array([-1.0, 0.0, 1.0]), np.log(np.array([[1.0, 2.0, 1.0]]))
    quarter = float(mpmath.exp(-1) / 4)
    rational = 1 / 8
    weight = np.array([[3.0, 0.1, 2.0, 0.2, 1.0], [-3.0, 0.0, -2.0, 0.0, -1.0]])
    common = {"args": (codebook, logits), "cotangent": np.ones(1), "tolerance": ULP}
    shares = np.array([0.25, 0.5, 0.25])
    return [
        GoldenCase(
            "quantizers.soft_map", "exact gradient", **common, options={"gradient": "exact"},
            expected=(shares, np.array([[-0.25, 0.0, 0.25]])), source="by hand: shares times distances",
        ),
        GoldenCase(
            "quantizers.soft_map", "proximal gradient", **common,
            expected=(shares, np.array([[-quarter, 0.0, quarter]])), source="by hand: shares times exp(-1), mean 0",
        ),
        GoldenCase(
            "quantizers.soft_map", "proximal gradient, rational kernel", **common, options={"kernel": "rational"},
            expected=(shares, np.array([[-rational, 0.0, rational]])), source="by hand: shares times 1 / 2",
        ),
        GoldenCase(
            "quantizers.soft_map", "far codeword", (np.array([0.0, 1.0, 10.0]), np.zeros((1, 3))), cotangent=np.ones(1),
            options={"gradient": "exact"}, expected=(np.full(3, 1 / 3), np.array([[-11.0, -8.0, 19.0]]) / 9),
            source="by hand: the mixture is 11/3", tolerance=ULP,
        ),
        GoldenCase(
            "quantizers.group_neurons", "by spread", (weight, 2), (np.array([1, 3, 4, 2, 0]), np.array([0, 3, 5])),
            "by hand: spreads 3, 0.05, 2, 0.1, 1",
        ),
        GoldenCase(
            "quantizers.fold_permutation", "three neurons", (np.array([[1.0, 2, 3]]), np.array([[4.0], [5], [6]]), np.array([2, 0, 1])),
            (np.array([[3.0, 1, 2]]), np.array([[6.0], [4], [5]])), "by hand",
        ),
        GoldenCase("quantizers.bits_per_weight", "2 bits, 8 codebooks", ((64, 64), 4, 8), np.array(2.25), "by hand: 2 + 8 4 32 / 4096"),
    ]  # fmt: skip


def clusters(rng):
    found = []
    for k in (2, 4, 7):
        weight = rng.standard_normal((9, 11))
        start = np.quantile(weight, (np.arange(k) + 0.5) / k)[:, None]
        truth = KMeans(k, init=start, n_init=1, max_iter=1000, tol=0, algorithm="lloyd").fit(weight.reshape(-1, 1))
        order = np.argsort(truth.cluster_centers_[:, 0])
        label = np.argsort(order)[truth.labels_].reshape(weight.shape)
        found.append(
            GoldenCase(
                "quantizers.kmeans_codebook", f"{k} codewords", (weight, k),
                (truth.cluster_centers_[order, 0], label), "scikit-learn: KMeans from the same start", CLOSE,
                {"n_iter": 1000},
            )
        )  # fmt: skip
    return found


def mixtures(rng):
    found = []
    for name, shapes in (("one codebook", ((4,), (3, 5, 4))), ("a codebook for each column", ((5, 4), (3, 5, 4)))):
        arrays = [rng.standard_normal(shape) for shape in shapes]
        codebook, logits = tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        y = (torch.softmax(logits, dim=-1) * codebook).sum(-1)
        cotangent = rng.standard_normal((3, 5))
        y.backward(torch.tensor(cotangent))
        common = {"function": "quantizers.soft_map", "name": name, "args": tuple(arrays), "tolerance": CLOSE}
        found.append(GoldenCase(**common, expected=y.detach().numpy(), source=TORCH))
        exact = {"options": {"gradient": "exact"}, "source": f"{TORCH}, autograd"}
        found.append(
            GoldenCase(**common, **exact, cotangent=cotangent, expected=tuple(t.grad.numpy() for t in tensors))
        )
    return found


def refitted(rng):
    x, weight, codes = rng.standard_normal((12, 5)), rng.standard_normal((5, 6)), rng.integers(0, 3, (5, 6))
    boundaries, books = np.array([0, 2, 6]), []
    for start, stop in ((0, 2), (2, 6)):
        design = [(x @ (codes[:, start:stop] == j)).ravel() for j in range(3)]
        target = (x @ weight[:, start:stop]).ravel()
        solution = torch.linalg.lstsq(torch.tensor(np.stack(design, axis=1)), torch.tensor(target)[:, None])
        books.append(solution.solution[:, 0].numpy())
    return [
        GoldenCase(
            "quantizers.refit_codebook", "two groups", (x, weight, codes, boundaries), np.stack(books),
            f"{TORCH}: linalg.lstsq on the design matrix", Tolerance(1e-11, "relative_of_largest"),
        )
    ]  # fmt: skip


def fitted(rng):
    """Twenty steps with the exact gradient, one codebook."""
    x, weight, steps, k = rng.standard_normal((20, 5)), rng.standard_normal((5, 4)), 20, 3
    start = np.quantile(weight, (np.arange(k) + 0.5) / k)[:, None]
    order = np.argsort(weight.std(axis=0), kind="stable")
    truth = KMeans(k, init=start, n_init=1, max_iter=50, tol=0, algorithm="lloyd").fit(weight.reshape(-1, 1))
    first = np.sort(truth.cluster_centers_[:, 0])
    gap = (first[-1] - first[0]) / (k - 1)
    sorted_weight = weight[:, order]
    codebook = torch.tensor(first, requires_grad=True)
    logits = torch.tensor(-5 * np.abs(sorted_weight[..., None] - first) / gap, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [logits], "lr": 0.2}, {"params": [codebook], "lr": 0.05}], eps=1e-8)
    tx, target = torch.tensor(x), torch.tensor(x @ sorted_weight)
    losses, changed, jumped, codes = [], [], [], logits.argmax(-1).numpy()
    for i in range(steps):
        m = torch.softmax(logits, dim=-1)
        loss = ((tx @ (m * codebook).sum(-1) - target) ** 2).sum() / len(x)
        losses.append(loss.item())
        moved = np.abs(logits.argmax(-1).numpy() - codes)
        codes = logits.argmax(-1).numpy()
        changed.append((moved > 0).sum())
        jumped.append((moved > 1).sum())
        ramp = max(0.0, (i / steps - 0.2) / 0.8)
        optimizer.zero_grad()
        (loss + 0.01 * ramp * (1 - (m**2).sum(-1)).sum()).backward()
        optimizer.step()
    codes = logits.argmax(-1).numpy()
    design = np.stack([(x @ (codes == j)).ravel() for j in range(k)], axis=1)
    book = torch.linalg.lstsq(torch.tensor(design), target.reshape(-1, 1)).solution[:, 0].numpy()
    rebuilt = np.empty_like(weight)
    rebuilt[:, order] = book[codes]
    return [
        GoldenCase(
            "quantizers.fit_codebook", "twenty steps, exact gradient", (x, weight),
            (
                codes, book[None], np.ones(4), order, np.array([0, 4]), rebuilt, np.array(steps), np.array(losses),
                np.array(changed, float), np.array(jumped, float),
            ),
            f"{TORCH}: autograd, Adam, lstsq; scikit-learn: KMeans", Tolerance(1e-9, "relative_of_largest"),
            {"k": k, "n_groups": 1, "n_iter": steps, "learning_rates": (0.2, 0.05), "gradient": "exact"},
        )
    ]  # fmt: skip


def folded():
    """Neuron j of the folded layers is neuron permutation[j]: the gradient goes back there."""
    args = (np.zeros((1, 3)), np.zeros((3, 1)), np.array([2, 0, 1]))
    cotangent = (np.array([[1.0, 2.0, 3.0]]), np.array([[4.0], [5.0], [6.0]]))
    expected = (np.array([[2.0, 3.0, 1.0]]), np.array([[5.0], [6.0], [4.0]]))
    return GoldenCase("quantizers.fold_permutation", "gradient", args, expected, "by hand", cotangent=cotangent)
