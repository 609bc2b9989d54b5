"""Truth for convergent graph solvers: hand calculations, networkx, mpmath's linear solver, PyTorch in float64."""

import mpmath
import networkx
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.solvers import ConvergentGraphSolver

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def torch_weights(logits, src, n, norm):
    if norm == "degree":
        degree = np.bincount(src, minlength=n)[src, None]
        return torch.clamp(logits, 0, 1) / torch.tensor(degree)
    weights = torch.zeros_like(logits)
    for node in range(n):
        mask = torch.tensor(src == node)
        if mask.any():
            weights = weights.masked_scatter(mask[:, None].expand_as(weights), logits[mask].softmax(0))
    return weights


def torch_fixed(logits, b, src, dst, contraction, norm, activation="identity"):
    weights, n, columns = torch_weights(logits, src, len(b), norm), len(b), []
    for head in range(b.shape[1]):
        matrix = torch.zeros((n, n), dtype=torch.float64).index_put(
            (torch.tensor(dst), torch.tensor(src)), weights[:, head], accumulate=True
        )
        if activation == "identity":
            columns.append(torch.linalg.solve(torch.eye(n, dtype=torch.float64) - contraction * matrix, b[:, head]))
        else:
            z = torch.zeros(n, dtype=torch.float64)
            for _ in range(400):  # unrolled, far beyond convergence
                z = torch.tanh(contraction * matrix @ z + b[:, head])
            columns.append(z)
    return torch.stack(columns, 1)


def exact_solution(logits, b, src, dst, contraction):
    n = len(b)
    degree = np.bincount(src, minlength=n)
    columns = []
    for head in range(b.shape[1]):
        matrix = mpmath.eye(n)
        for edge, (s, d) in enumerate(zip(src.tolist(), dst.tolist(), strict=True)):
            clipped = min(max(mpmath.mpf(float(logits[edge, head])), 0), 1)
            matrix[d, s] -= mpmath.mpf(contraction) * clipped / int(degree[s])
        columns.append([float(v) for v in mpmath.lu_solve(matrix, mpmath.matrix(b[:, head].tolist()))])
    return np.array(columns).T


def gradients(function, arrays, cotangent):
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    value = function(*tensors)
    grads = torch.autograd.grad(value, tensors, torch.tensor(cotangent))
    return value.detach().numpy(), tuple(g.numpy() for g in grads)


def cases():
    rng = np.random.default_rng(20210603)
    n, count, heads = 7, 18, 2
    src, dst = rng.integers(n - 1, size=count), rng.integers(1, n, size=count)
    logits, b = rng.uniform(-0.3, 1.3, (count, heads)), rng.standard_normal((n, heads))
    found = []
    for norm in ("degree", "softmax"):
        cotangent = rng.standard_normal((count, heads))
        value, grads = gradients(lambda a, m=norm: torch_weights(a, src, n, m), (logits,), cotangent)
        common = {
            "function": "solvers.contractive_weights",
            "name": norm,
            "args": (logits, src, dst, n),
            "options": {"norm": norm},
            "source": TORCH,
        }
        found.append(GoldenCase(**common, expected=value, tolerance=Tolerance(4, "ulp")))
        found.append(
            GoldenCase(**common, cotangent=cotangent, expected=grads, tolerance=Tolerance(1e-14, "relative_of_largest"))
        )
    for norm, method, activation, contraction in (
        ("degree", "direct", "identity", 0.9),
        ("softmax", "iterate", "identity", 0.5),
        ("softmax", "iterate", "tanh", 0.7),
    ):
        cotangent = rng.standard_normal((n, heads))
        _, grads = gradients(
            lambda a, c, m=norm, f=activation, g=contraction: torch_fixed(a, c, src, dst, g, m, f),
            (logits, b),
            cotangent,
        )
        found.append(
            GoldenCase(
                function="solvers.graph_fixed_point",
                name=f"{norm}, {method}, {activation}",
                args=(logits, b, src, dst),
                options={
                    "norm": norm,
                    "method": method,
                    "activation": activation,
                    "contraction": contraction,
                    "tol": 1e-15,
                },
                cotangent=cotangent,
                expected=grads,
                tolerance=Tolerance(1e-12, "relative_of_largest"),
                source=TORCH,
            )
        )
    found.append(
        GoldenCase(
            function="solvers.graph_fixed_point",
            name="two nodes by hand",
            args=(np.array([[1.0], [0.5]]), np.array([[1.0], [0.0]]), np.array([0, 1]), np.array([1, 0])),
            options={"method": "direct"},
            cotangent=np.array([[1.0], [0.0]]),
            expected=(np.array([[0.0], [16 / 49]]), np.array([[8 / 7], [2 / 7]])),
            tolerance=Tolerance(4, "ulp"),
            source="by hand: y = (8/7, 2/7); the first logit is clipped",
        )
    )
    heads = np.random.default_rng(11)
    for method in ("iterate", "direct"):
        logits, b = heads.standard_normal((len(src), 2)), heads.standard_normal((n, 2))
        found.append(
            GoldenCase(
                function="solvers.graph_fixed_point",
                name=f"two heads, {method}",
                args=(logits, b, src, dst),
                options={"method": method, "tol": 1e-15},
                expected={"x": exact_solution(logits, b, src, dst, 0.5)},
                tolerance=Tolerance(1e-12, "relative_of_largest"),
                source="mpmath, 50 digits: linear system",
                kind="fields",
            )
        )
    found += networks(rng, src, dst, n, count)
    return found


def networks(rng, src, dst, n, count):
    def affine(inputs, outputs):
        return rng.standard_normal((inputs, outputs)) / np.sqrt(inputs), 0.1 * rng.standard_normal(outputs)

    # A network that passes edge and node features on: its output is the fixed point itself.
    one, zero = np.ones((1, 1)), np.zeros(1)
    edges, nodes = rng.uniform(-0.3, 1.3, (count, 1)), rng.standard_normal((n, 1))
    plain = ConvergentGraphSolver(
        ((np.array([[0.0], [0.0], [1.0]]), zero),),
        ((np.array([[1.0], [0.0]]), zero),),
        (one, zero),
        (one, zero),
        ((one, zero),),
    )
    found = [
        GoldenCase(
            function="solvers.graph_solver",
            name="features passed on: the linear system",
            args=(plain, nodes, edges, src, dst),
            options={"contraction": 0.9},
            expected=exact_solution(edges, nodes, src, dst, 0.9),
            tolerance=Tolerance(1e-13, "relative_of_largest"),
            source="mpmath, 50 digits",
        )
    ]
    ring = np.array([1, 2, 3, 4, 5, 6, 0])
    start, end = np.append(src, np.arange(n)), np.append(dst, ring)
    found.append(
        GoldenCase(
            function="solvers.graph_solver",
            name="page rank",
            args=(plain, np.full((n, 1), 0.15 / n), np.ones((len(start), 1)), start, end),
            options={"contraction": 0.85, "method": "iterate", "tol": 1e-15},
            expected=page_rank(start, end, n),
            tolerance=Tolerance(1e-10, "relative"),
            source=f"networkx {networkx.__version__}",
        )
    )
    params = ConvergentGraphSolver(
        (affine(5, 4), affine(4, 4)),
        (affine(6, 4), affine(4, 4)),
        affine(4, 2),
        affine(4, 2),
        (affine(2, 3), affine(3, 1)),
    )
    nodes, edges, cotangent = rng.standard_normal((n, 2)), rng.standard_normal((count, 1)), rng.standard_normal((n, 1))
    layers = [*params.edge_encoder, *params.node_encoder, params.edge_head, params.node_head, *params.decoder]
    arrays = [array for layer in layers for array in layer] + [nodes, edges]

    def network(*tensors):
        pairs = [tensors[k : k + 2] for k in range(0, 16, 2)]
        x, w = tensors[16:]
        from_, to = torch.tensor(src), torch.tensor(dst)

        def perceptron(a, first, second):
            return torch.relu(a @ first[0] + first[1]) @ second[0] + second[1]

        message = perceptron(torch.cat([x[from_], x[to], w], 1), *pairs[0:2])
        arriving = torch.tensor(np.maximum(np.bincount(dst, minlength=n), 1))[:, None]
        mean = torch.zeros((n, 4), dtype=torch.float64).index_add(0, to, message) / arriving
        state = perceptron(torch.cat([x, mean], 1), *pairs[2:4])
        z = torch_fixed(
            message @ pairs[4][0] + pairs[4][1], state @ pairs[5][0] + pairs[5][1], src, dst, 0.9, "softmax"
        )
        return perceptron(z, *pairs[6:8])

    value, grads = gradients(network, arrays, cotangent)
    common = {
        "function": "solvers.graph_solver",
        "name": "two heads",
        "args": (params, nodes, edges, src, dst),
        "options": {"contraction": 0.9, "norm": "softmax"},
        "source": TORCH,
    }
    found.append(GoldenCase(**common, expected=value, tolerance=Tolerance(1e-13, "relative_of_largest")))
    found.append(
        GoldenCase(**common, cotangent=cotangent, expected=grads, tolerance=Tolerance(1e-12, "relative_of_largest"))
    )
    return found


def page_rank(src, dst, n):
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(n))
    for s, d in zip(src.tolist(), dst.tolist(), strict=True):
        # A doubled edge counts twice.
        graph.add_edge(s, d, weight=1 + (graph[s][d]["weight"] if graph.has_edge(s, d) else 0))
    rank = networkx.pagerank(graph, alpha=0.85, tol=1e-15, max_iter=10_000)
    return np.array([[rank[node]] for node in range(n)])
