"""Truth for supervised dictionaries: PyTorch's formulas and derivatives, mpmath's singular values, hand work."""

import itertools

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
# The order of sums, and with it the last bit, must not depend on the machine's cores.
torch.set_num_threads(1)
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def log_loss(activation, target):
    logits = torch.cat([torch.zeros_like(activation[:1]), activation])
    return (torch.logsumexp(logits, dim=0) - (target * activation).sum(dim=0)).sum()


def objective(x, target, covariates, dictionary, code, weight, gamma, *, reconstruction, ridge, mode):
    if mode == "filter":
        activation, classifier = weight.T @ (dictionary.T @ x), dictionary @ weight
    else:
        activation, classifier = weight.T @ code, weight.T @ code
    squares = classifier.square().sum()
    if covariates is not None:
        activation, squares = activation + gamma.T @ covariates, squares + gamma.square().sum()
    error = (x - dictionary @ code).square().sum()
    return log_loss(activation, target) + reconstruction * error + ridge / 2 * squares


def nearest_of_rank(matrix, rank):
    u, s, v = mpmath.svd_r(mpmath.matrix([[mpmath.mpf(float(a)) for a in row] for row in matrix]))
    found = u[:, :rank] * mpmath.diag(list(s)[:rank]) * v[:rank, :]
    return np.array(found.tolist(), dtype=float)


def best_support(dictionary, column):
    """Try every set of atoms; return the one whose least-squares code is positive and fits best."""
    best = (float(column @ column), ())
    for size in range(1, dictionary.shape[1] + 1):
        for support in itertools.combinations(range(dictionary.shape[1]), size):
            atoms = dictionary[:, support]
            code = np.linalg.solve(atoms.T @ atoms, atoms.T @ column)
            if (code > 0).all():
                best = min(best, (float(np.square(column - atoms @ code).sum()), support))
    return list(best[1])


def encode(dictionary, x, supports):
    columns = []
    for column, support in zip(x.T, supports, strict=True):
        code = torch.zeros(dictionary.shape[1], dtype=torch.float64)
        if support:
            atoms = dictionary[:, support]
            code = code.index_put((torch.tensor(support),), torch.linalg.solve(atoms.T @ atoms, atoms.T @ column))
        columns.append(code)
    return torch.stack(columns, dim=1)


def cases():
    rng = np.random.default_rng(20220614)
    found = []

    def both(function, formula, name, args, options, *, source=TORCH, limit=1e-13):
        tensors = [None if a is None else torch.tensor(a, requires_grad=True) for a in args]
        value = formula(*tensors)
        cotangent = np.asarray(rng.standard_normal(tuple(value.shape)))
        value.backward(torch.tensor(cotangent))
        common = {
            "function": f"solvers.{function}",
            "name": name,
            "args": args,
            "options": options,
            "tolerance": Tolerance(limit, "relative_of_largest"),
            "source": source,
        }
        found.append(GoldenCase(**common, expected=value.detach().numpy()))
        gradients = tuple(t.grad.numpy() for t in tensors if t is not None)
        found.append(GoldenCase(**common, cotangent=cotangent, expected=gradients))

    for k, n in ((1, 4), (3, 5)):
        target = np.eye(k + 1)[1:, rng.integers(k + 1, size=n)]
        both("multinomial_loss", log_loss, f"{k + 1} classes", (3 * rng.standard_normal((k, n)), target), {})
    for mode in ("filter", "feature"):
        for with_covariates in (True, False):
            p, n, k, r, q = 4, 6, 2, 3, 2
            shapes = ((p, n), (q, n), (p, r), (r, n), (r, k), (q, k))
            x, covariates, dictionary, code, weight, gamma = (rng.standard_normal(s) for s in shapes)
            target = np.eye(k + 1)[1:, rng.integers(k + 1, size=n)]
            if not with_covariates:
                covariates = gamma = None
            options = {"reconstruction": 0.7, "ridge": 0.3, "mode": mode}
            both(
                "sdl_objective", lambda *a, o=options: objective(*a, **o),
                f"{mode}, {'with' if with_covariates else 'without'} covariates",
                (x, target, covariates, dictionary, code, weight, gamma), options,
            )  # fmt: skip
    dictionary, x = rng.standard_normal((6, 3)), rng.standard_normal((6, 5))
    both("sdl_encode", lambda w, a: torch.linalg.pinv(w) @ a, "6 x 3", (dictionary, x), {}, limit=1e-12)
    supports = [best_support(dictionary, column) for column in x.T]
    both(
        "sdl_encode", lambda w, a: encode(w, a, supports), "6 x 3, nonnegative", (dictionary, x), {"nonnegative": True},
        source=f"the best of all sets of atoms; {TORCH}", limit=1e-12,
    )  # fmt: skip

    matrix = rng.standard_normal((4, 6))
    for rank in (1, 3):
        found.append(
            GoldenCase(
                function="solvers.rank_projection", name=f"4 x 6 to rank {rank}", args=(matrix, rank),
                expected=nearest_of_rank(matrix, rank), tolerance=Tolerance(1e-13, "relative_of_largest"),
                source="mpmath, 50 digits",
            )
        )  # fmt: skip
    by_hand = {"tolerance": Tolerance(4, "ulp"), "source": "by hand"}
    found += [
        GoldenCase(
            function="solvers.rank_projection", name="a diagonal matrix", args=(np.diag([3.0, 1.0]), 1),
            expected=np.diag([3.0, 0.0]), **by_hand,
        ),
        GoldenCase(
            function="solvers.multinomial_loss", name="nothing known", args=(np.zeros((1, 1)), np.ones((1, 1))),
            expected=np.array(np.log(2)), **by_hand,
        ),
        GoldenCase(
            function="solvers.sdl_lift", name="numbers, filter", args=(np.full((1, 1), 2.0), np.full((1, 1), 3.0), np.full((1, 1), 5.0)),
            expected=np.array([[10.0, 6.0]]), **by_hand,
        ),
        GoldenCase(
            function="solvers.sdl_lift", name="numbers, feature", args=(np.full((1, 1), 2.0), np.full((1, 1), 3.0), np.full((1, 1), 5.0)),
            options={"mode": "feature"}, expected=np.array([[15.0], [6.0]]), **by_hand,
        ),
        GoldenCase(
            function="solvers.sdl_factorize", name="numbers, filter", args=(np.array([[10.0, 6.0]]), 2, 1),
            expected=(np.array([[1.0]]), np.array([[6.0]]), np.array([[10.0]])), **by_hand,
        ),
        GoldenCase(
            function="solvers.sdl_factorize", name="numbers, feature", args=(np.array([[8.0], [6.0]]), 2, 1),
            options={"mode": "feature"},
            expected=(np.array([[1.0]]), np.array([[6.0]]), np.array([[4 / 3]])), **by_hand,
        ),
    ]  # fmt: skip
    return found
