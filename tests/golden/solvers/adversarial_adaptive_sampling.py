"""Truth for adversarial adaptive sampling: mpmath's derivatives, closed forms, PyTorch in float64."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.solvers import FlowLayer, TanhNet

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def exact_net(point, net):
    total = mpmath.mpf(float(net.offset))
    for w, b, c in zip(net.weight, net.bias, net.output, strict=True):
        z = mpmath.mpf(float(b)) + mpmath.fsum(mpmath.mpf(float(a)) * p for a, p in zip(w, point, strict=True))
        total += mpmath.mpf(float(c)) * mpmath.tanh(z)
    return total


def exact_laplacian(point, net):
    """mpmath's numerical second derivatives at 50 digits."""
    point = [mpmath.mpf(float(p)) for p in point]
    return mpmath.fsum(
        mpmath.diff(lambda t, k=k: exact_net([*point[:k], t, *point[k + 1 :]], net), point[k], 2)
        for k in range(len(point))
    )


def torch_laplacian(x, weight, bias, output):
    """By differentiating twice."""
    u = (torch.tanh(x @ weight.T + bias) @ output).sum()
    (slope,) = torch.autograd.grad(u, x, create_graph=True)
    rows = [torch.autograd.grad(slope[:, k].sum(), x, create_graph=True)[0][:, k] for k in range(x.shape[1])]
    return torch.stack(rows).sum(0)


def torch_flow(x, layers):
    y = torch.logit(x)
    logs = -(torch.log(x) + torch.log1p(-x)).sum(1)
    half = x.shape[1] // 2
    for number, layer in enumerate(layers):
        first, second = (y[:, :half], y[:, half:]) if number % 2 == 0 else (y[:, half:], y[:, :half])

        def network(pair, inputs=first):
            (a, b), (c, d) = pair
            return torch.tanh(torch.tanh(inputs @ a + b) @ c + d)

        stretch = 1 + 0.6 * network(layer.scale)
        second = second * stretch + torch.exp(layer.reach) * network(layer.shift)
        logs = logs + torch.log(stretch).sum(1)
        y = torch.cat([first, second] if number % 2 == 0 else [second, first], 1)
    return logs + torch.distributions.Normal(0.0, 1.0).log_prob(y).sum(1)


def cases():
    rng = np.random.default_rng(20230530)
    found = []
    for dimension in (1, 3):
        net = TanhNet(
            rng.standard_normal((4, dimension)), rng.standard_normal(4), rng.standard_normal(4), np.array(0.3)
        )
        x, cotangent = rng.standard_normal((3, dimension)), rng.standard_normal(3)
        common = {"name": f"{dimension} dimensions", "args": (x, net)}
        found.append(
            GoldenCase(
                function="solvers.tanh_net",
                **common,
                expected=np.array([float(exact_net([mpmath.mpf(float(p)) for p in row], net)) for row in x]),
                tolerance=Tolerance(1e-14, "relative_of_largest"),
                source="mpmath, 50 digits",
            )
        )
        found.append(
            GoldenCase(
                function="solvers.tanh_net_laplacian",
                **common,
                expected=np.array([float(exact_laplacian(row, net)) for row in x]),
                tolerance=Tolerance(1e-13, "relative_of_largest"),
                source="mpmath, 50 digits: numerical second derivatives",
            )
        )
        tensors = [torch.tensor(a, requires_grad=True) for a in (x, net.weight, net.bias, net.output)]
        grads = torch.autograd.grad(torch_laplacian(*tensors), tensors, torch.tensor(cotangent))
        expected = [g.numpy() for g in grads]
        found.append(
            GoldenCase(
                function="solvers.tanh_net_laplacian",
                **common,
                cotangent=cotangent,
                expected=(*expected, np.array(0.0)),
                tolerance=Tolerance(1e-12, "relative_of_largest"),
                source=TORCH,
            )
        )
        plain = [torch.tensor(a, requires_grad=True) for a in (x, *(net.weight, net.bias, net.output, net.offset))]
        u = torch.tanh(plain[0] @ plain[1].T + plain[2]) @ plain[3] + plain[4]
        slopes = tuple(g.numpy() for g in torch.autograd.grad(u, plain, torch.tensor(cotangent)))
        close = Tolerance(1e-13, "relative_of_largest")
        found.append(
            GoldenCase(
                "solvers.tanh_net", **common, cotangent=cotangent, expected=slopes, tolerance=close, source=TORCH
            )
        )
        source = rng.standard_normal(3)
        found.append(
            GoldenCase(
                function="solvers.poisson_residual",
                name=f"{dimension} dimensions",
                args=(x, net, source),
                expected=-torch_laplacian(*tensors).detach().numpy() - source,
                tolerance=Tolerance(1e-12, "relative_of_largest"),
                source=TORCH,
            )
        )
        found.append(
            GoldenCase(
                function="solvers.poisson_residual",
                name=f"{dimension} dimensions",
                args=(x, net, source),
                cotangent=cotangent,
                expected=(*(-g for g in expected), np.array(0.0), -cotangent),
                tolerance=Tolerance(1e-12, "relative_of_largest"),
                source=TORCH,
            )
        )
    for shape, penalty in (((9,), 0.3), ((4, 4), 0.05)):
        logits, reward = rng.standard_normal((2, *shape))
        tensors = [torch.tensor(a, requires_grad=True) for a in (logits, reward)]
        q = tensors[0].reshape(-1).softmax(0).reshape(shape)
        side = 1 / shape[0]
        density = q / side ** len(shape)
        faces = sum(((density.diff(dim=axis) / side) ** 2).sum() for axis in range(len(shape)))
        value = (tensors[1] * q).sum() - penalty * side ** len(shape) * faces
        value.backward()
        common = {
            "function": "solvers.grid_objective",
            "name": f"shape {shape}",
            "args": (logits, reward),
            "options": {"penalty": penalty},
            "source": TORCH,
        }
        found.append(GoldenCase(**common, expected=value.detach().numpy(), tolerance=Tolerance(1e-13, "relative")))
        found.append(
            GoldenCase(
                **common,
                cotangent=np.array(1.0),
                expected=tuple(t.grad.numpy() for t in tensors),
                tolerance=Tolerance(1e-12, "relative_of_largest"),
            )
        )
    cells = 128
    edges = [mpmath.sin(mpmath.pi * k / cells) / mpmath.pi for k in range(cells + 1)]
    reward = np.array([float(1 + cells * (edges[k + 1] - edges[k])) for k in range(cells)])
    # The cell averages are eigenvectors of the grid's Laplacian: the discrete maximum has a closed form, too.
    wave = mpmath.mpf(4) * cells**2 * mpmath.sin(mpmath.pi / (2 * cells)) ** 2
    found.append(
        GoldenCase(
            function="solvers.best_response_1d",
            name="one cosine",
            args=(reward, 0.1),
            expected=np.array([float(1 + (mpmath.mpf(r) - 1) / (2 * mpmath.mpf("0.1") * wave)) for r in reward]),
            tolerance=Tolerance(1e-12, "relative"),
            source="closed form in mpmath: the cosine is an eigenvector of the grid's Laplacian",
        )
    )
    found.append(
        GoldenCase(
            function="solvers.best_response_1d",
            name="two steps by hand",
            args=(np.array([0.0, 0.0, 1.0, 1.0]), 0.25),
            expected=np.array([0.875, 0.9375, 1.0625, 1.125]),
            tolerance=Tolerance(2, "ulp"),
            source="by hand: flux 1/16, 1/8, 1/16",
        )
    )

    def pair(inputs, outputs):
        return (
            (rng.standard_normal((inputs, 3)), rng.standard_normal(3)),
            (rng.standard_normal((3, outputs)), rng.standard_normal(outputs)),
        )

    layers = (
        FlowLayer(pair(1, 2), pair(1, 2), 0.3 * rng.standard_normal(2)),
        FlowLayer(pair(2, 1), pair(2, 1), 0.3 * rng.standard_normal(1)),
    )
    x, cotangent, leaves = rng.uniform(0.05, 0.95, (4, 3)), rng.standard_normal(4), []

    def tensor(array):
        leaves.append(torch.tensor(array, requires_grad=True))
        return leaves[-1]

    point = tensor(x)
    converted = [
        FlowLayer(
            *(tuple((tensor(a), tensor(b)) for a, b in part) for part in (layer.scale, layer.shift)),
            tensor(layer.reach),
        )
        for layer in layers
    ]
    value = torch_flow(point, converted)
    grads = torch.autograd.grad(value, leaves, torch.tensor(cotangent))
    common = {"function": "solvers.flow_log_density", "name": "two couplings", "args": (x, layers), "source": TORCH}
    found.append(
        GoldenCase(**common, expected=value.detach().numpy(), tolerance=Tolerance(1e-13, "relative_of_largest"))
    )
    found.append(
        GoldenCase(
            **common,
            cotangent=cotangent,
            expected=tuple(g.numpy() for g in grads),
            tolerance=Tolerance(1e-12, "relative_of_largest"),
        )
    )
    return found
