"""Truth for transductive clustering: PyTorch's formulas and derivatives, scikit-learn's graph, mpmath, hand work."""

import mpmath
import numpy as np
import torch
from sklearn.neighbors import kneighbors_graph

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
# The order of sums, and with it the last bit, must not depend on the machine's cores.
torch.set_num_threads(1)
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def costs(x, prototypes, *, temperature):
    return torch.stack([torch.stack([((a - m) ** 2).sum() for m in prototypes]) for a in x]) / temperature


def step(z, cost, w, *, laplacian_weight):
    return torch.softmax(-cost + laplacian_weight * w @ z, dim=1)


def energy(z, cost, w, *, laplacian_weight):
    agreement = torch.einsum("pq,pk,qk->", w, z, z)
    return torch.special.xlogy(z, z).sum() + (cost * z).sum() - laplacian_weight / 2 * agreement


def energy_in_digits(z, cost, w, weight):
    rows, n = [[mpmath.mpf(float(v)) for v in row] for row in z], len(z)
    total = mpmath.fsum(v * mpmath.log(v) for row in rows for v in row if v)
    total += mpmath.fsum(
        mpmath.mpf(float(c)) * v for a, row in zip(cost, rows, strict=True) for c, v in zip(a, row, strict=True)
    )
    agreement = mpmath.fsum(
        mpmath.mpf(float(w[p, q])) * a * b
        for p in range(n)
        for q in range(n)
        for a, b in zip(rows[p], rows[q], strict=True)
    )
    return np.array(float(total - mpmath.mpf(weight) / 2 * agreement))


def cases():
    rng = np.random.default_rng(20210616)
    found = []

    def both(function, formula, name, args, options):
        tensors = [torch.tensor(a, requires_grad=True) for a in args]
        value = formula(*tensors, **options)
        cotangent = rng.standard_normal(tuple(value.shape))
        value.backward(torch.tensor(cotangent))
        common = {
            "function": f"solvers.{function}",
            "name": name,
            "args": args,
            "options": options,
            "tolerance": Tolerance(1e-13, "relative_of_largest"),
            "source": TORCH,
        }
        found.append(GoldenCase(**common, expected=value.detach().numpy()))
        found.append(
            GoldenCase(**common, cotangent=np.asarray(cotangent), expected=tuple(t.grad.numpy() for t in tensors))
        )

    for n, k, d in ((6, 3, 2), (1, 2, 5), (12, 4, 3)):
        x, prototypes, cost = (rng.standard_normal(s) for s in ((n, d), (k, d), (n, k)))
        z, w = rng.dirichlet(np.ones(k), size=n), rng.random((n, n))
        name = f"{n} points, {k} classes"
        both("prototype_costs", costs, name, (x, prototypes), {"temperature": 0.3})
        both("bound_step", step, name, (z, cost, w), {"laplacian_weight": 0.8})
        both("laplacian_energy", energy, name, (z, cost, w), {"laplacian_weight": 0.8})
        one_hot = np.eye(k)[rng.integers(k, size=n)]
        mixed = np.where(rng.random((n, 1)) < 0.5, one_hot, z)
        found.append(
            GoldenCase(
                function="solvers.laplacian_energy",
                name=f"{name}, some of them labelled",
                args=(mixed, cost, w),
                options={"laplacian_weight": 0.8},
                expected=energy_in_digits(mixed, cost, w, 0.8),
                tolerance=Tolerance(1e-13, "relative"),
                source="mpmath, 50 digits",
            )
        )
    for n, k in ((9, 1), (20, 3), (5, 4)):
        x = rng.standard_normal((n, 2))
        graph = kneighbors_graph(x, k, include_self=False).toarray()
        found.append(
            GoldenCase(
                function="solvers.knn_affinity",
                name=f"{n} points, {k} neighbours",
                args=(x,),
                options={"k": k},
                expected=np.maximum(graph, graph.T),
                source="scikit-learn kneighbors_graph",
            )
        )
    found.append(
        GoldenCase(
            function="solvers.bound_step",
            name="the point 0.6 between 0 and 1",
            args=(np.zeros((1, 2)), np.array([[0.36, 0.16]]), np.zeros((1, 1))),
            expected=np.array([[1 / (1 + np.exp(0.2)), 1 / (1 + np.exp(-0.2))]]),
            tolerance=Tolerance(4, "ulp"),
            source="by hand: logistic of the difference of the costs",
        )
    )
    return found
