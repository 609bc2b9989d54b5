"""Poincaré layers on images against HypLL's, with PyTorch's plain Euclidean layers for scale; midpoints against geoopt's."""

from __future__ import annotations

import numpy as np

CURVATURE = 0.1
EPS = np.finfo(np.float32).eps

CONVOLUTIONS = (((32, 16, 32, 32), 16), ((32, 64, 8, 8), 64), ((1, 3, 32, 32), 16))
"""Images and output channels, 3 x 3 windows with padding 1."""

BATCHES = ((32, 16, 32, 32), (128, 64, 8, 8), (1, 16, 8, 8))

SETS = ((1, 65536, 16), (256, 64, 32))
"""Sets of points, points of a set, coordinates."""

NETWORKS = ((8, 16, 32), (16, 32, 64))


def races() -> list[dict]:
    import refnorm_fast.poincare as fast

    found = [convolution(fast, *setting) for setting in CONVOLUTIONS]
    found += [convolution_gradient(fast, *setting) for setting in CONVOLUTIONS]
    for shape in BATCHES:
        found += [batch_norm(fast, shape, inference=False), batch_norm(fast, shape, inference=True)]
        found.append(batch_norm_gradient(fast, shape))
    found += [midpoint(fast, *setting) for setting in SETS]
    found += [pooling(fast, (32, 64, 8, 8), 8), pooling(fast, (32, 16, 32, 32), 2)]
    found += [network(fast, channels) for channels in NETWORKS]
    found.append(network_gradient(fast, NETWORKS[0]))
    return [race for race in found if race]


def images(rng, shape: tuple[int, ...], radius: float = 0.7) -> np.ndarray:
    directions = rng.standard_normal(shape)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = radius * rng.uniform(0.2, 1, (shape[0], 1, *shape[2:]))
    return (directions * lengths / np.sqrt(CURVATURE)).astype(np.float32)


def wide(*arrays: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(a, np.float64) for a in arrays]


def race(
    method: str, name: str, shape: str, candidates: dict, truth: dict, exact, traffic: int, ops: int | None
) -> dict:
    def check():
        def error(label, result):
            expected = truth.get(label, exact)
            return float(np.abs(np.asarray(result) - expected).max() / np.abs(expected).max() / EPS)

        return {label: error(label, call()) for label, call in candidates.items() if truth.get(label, 0) is not None}

    return {
        "method": method,
        "name": name,
        "shape": shape,
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": traffic,
        "ops": ops,
        "check": check,
        "check_unit": "units in the last place of the largest entry",
    }


def hypll_ball():
    """HypLL's ball, and a function that gives an array to it; None where it is not installed."""
    try:
        import torch
        from hypll.manifolds.poincare_ball import Curvature, PoincareBall
        from hypll.tensors import ManifoldTensor
    except ImportError:
        return None
    ball = PoincareBall(Curvature(CURVATURE, constraining_strategy=lambda value: value))
    return ball, lambda x, axis: ManifoldTensor(torch.from_numpy(x), manifold=ball, man_dim=axis)


def without_graph(call):
    import torch

    def run():
        with torch.no_grad():
            return call()

    return run


def convolution(fast, shape: tuple[int, int, int, int], outputs: int) -> dict:
    from refnorm import nn
    from refnorm.poincare import conv2d

    rng = np.random.default_rng(0)
    x, entries = images(rng, shape), 9 * shape[1]
    weight = (rng.standard_normal((entries, outputs)) / (2 * np.sqrt(entries))).astype(np.float32)
    bias = (0.1 * rng.standard_normal(outputs)).astype(np.float32)
    filters = np.ascontiguousarray(weight.T.reshape(outputs, shape[1], 3, 3))
    out = np.empty((shape[0], outputs, *shape[2:]), np.float32)
    exact = conv2d(*wide(x, weight, bias), CURVATURE, kernel=3, padding=1)
    truth = {}
    candidates = {"refnorm_fast": lambda: fast.conv2d(x, weight, bias, CURVATURE, kernel=3, padding=1, out=out)}
    if hypll := hypll_ball():
        import torch
        from hypll.nn import HConvolution2d

        ball, point = hypll
        layer = HConvolution2d(shape[1], outputs, 3, ball, padding=1)
        with torch.no_grad():
            layer.weights.tensor.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
        points, tensors = point(x, 1), [torch.from_numpy(a) for a in (x, filters, bias)]
        candidates["hypll"] = without_graph(lambda: layer(points).tensor)
        candidates["torch, plain convolution"] = without_graph(lambda: torch.nn.functional.conv2d(*tensors, padding=1))
        truth["torch, plain convolution"] = nn.conv2d(*wide(x, filters, bias), padding=1)
    pixels = shape[0] * shape[2] * shape[3]
    size = f"{'x'.join(map(str, shape))} to {outputs}"
    return race(
        "poincare/conv2d", "convolution 3x3", size, candidates, truth, exact,
        4 * (x.size + weight.size + out.size), 2 * pixels * entries * outputs,
    )  # fmt: skip


def convolution_gradient(fast, shape: tuple[int, int, int, int], outputs: int) -> dict:
    """Forward and backward: the cotangents of image, weight and bias for a given one of the result."""
    from refnorm import nn
    from refnorm.poincare import conv2d_vjp

    rng = np.random.default_rng(0)
    x, entries = images(rng, shape), 9 * shape[1]
    weight = (rng.standard_normal((entries, outputs)) / (2 * np.sqrt(entries))).astype(np.float32)
    bias = (0.1 * rng.standard_normal(outputs)).astype(np.float32)
    filters = np.ascontiguousarray(weight.T.reshape(outputs, shape[1], 3, 3))
    g = rng.standard_normal((shape[0], outputs, *shape[2:])).astype(np.float32)
    exact = conv2d_vjp(*wide(x, weight, bias), CURVATURE, kernel=3, padding=1)[1](*wide(g))[0]
    truth = {}
    candidates = {
        "refnorm_fast": lambda: fast.conv2d_vjp(x, weight, bias, CURVATURE, kernel=3, padding=1)[1](g)[0],
    }
    if hypll := hypll_ball():
        import torch
        from hypll.nn import HConvolution2d
        from hypll.tensors import ManifoldTensor

        ball, _ = hypll
        layer = HConvolution2d(shape[1], outputs, 3, ball, padding=1)
        with torch.no_grad():
            layer.weights.tensor.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
        image, cotangent = torch.from_numpy(x).requires_grad_(), torch.from_numpy(g)
        plain = [image, *(torch.from_numpy(a).requires_grad_() for a in (filters, bias))]

        def with_hypll():
            y = layer(ManifoldTensor(image, manifold=ball, man_dim=1)).tensor
            return torch.autograd.grad(y, [image, layer.weights.tensor, layer.bias], cotangent)[0]

        def with_torch():
            y = torch.nn.functional.conv2d(*plain, padding=1)
            return torch.autograd.grad(y, plain, cotangent)[0]

        candidates |= {"hypll": with_hypll, "torch, plain convolution": with_torch}
        plain_pullback = nn.conv2d_vjp(*wide(x, filters, bias), padding=1)[1]
        truth["torch, plain convolution"] = plain_pullback(*wide(g))[0]
    return race(
        "poincare/conv2d", "convolution 3x3, forward and backward", f"{'x'.join(map(str, shape))} to {outputs}",
        candidates, truth, exact, 4 * (2 * x.size + 2 * weight.size + 2 * g.size), 6 * g.size * entries,
    )  # fmt: skip


def batch_norm(fast, shape: tuple[int, int, int, int], *, inference: bool) -> dict:
    from refnorm.poincare import midpoint_batch_norm

    rng = np.random.default_rng(1)
    x, channels = images(rng, shape), shape[1]
    bias, gain = (0.1 * rng.standard_normal(channels)).astype(np.float32), np.array(1.5, np.float32)
    statistics = fast.midpoint_statistics(x, CURVATURE) if inference else ()
    out = np.empty_like(x)
    exact = midpoint_batch_norm(*wide(x, bias, gain), CURVATURE, *wide(*statistics))
    candidates = {
        "refnorm_fast": lambda: fast.midpoint_batch_norm(x, bias, gain, CURVATURE, *statistics, out=out),
    }
    truth = {}
    if hypll := hypll_ball():
        import torch
        from hypll.nn import HBatchNorm2d

        ball, point = hypll
        layer = HBatchNorm2d(channels, ball, use_midpoint=True)
        with torch.no_grad():
            layer.norm.bias.copy_(torch.from_numpy(bias))
            layer.norm.weight.copy_(torch.from_numpy(gain))
        points, tensor = point(x, 1), torch.from_numpy(x)
        # It has no running statistics: inference computes the batch's, too.
        candidates["hypll"] = without_graph(lambda: layer(points).tensor)
        plain = torch.nn.BatchNorm2d(channels).train(not inference)
        candidates["torch, plain normalization"] = without_graph(lambda: plain(tensor))
        truth["torch, plain normalization"] = None
    name = "batch normalization, inference" if inference else "batch normalization, training"
    return race("poincare/batch_norm", name, "x".join(map(str, shape)), candidates, truth, exact, 4 * 2 * x.size, None)


def batch_norm_gradient(fast, shape: tuple[int, int, int, int]) -> dict:
    """Forward and backward in training: the cotangent of the points, through the batch's statistics, for a given one of the result."""
    from refnorm.poincare import midpoint_batch_norm_vjp

    rng = np.random.default_rng(1)
    x, channels = images(rng, shape), shape[1]
    bias, gain = (0.1 * rng.standard_normal(channels)).astype(np.float32), np.array(1.5, np.float32)
    g = rng.standard_normal(shape).astype(np.float32)
    exact = midpoint_batch_norm_vjp(*wide(x, bias, gain), CURVATURE)[1](*wide(g))[0]
    candidates = {"refnorm_fast": lambda: fast.midpoint_batch_norm_vjp(x, bias, gain, CURVATURE)[1](g)[0]}
    truth = {}
    if hypll := hypll_ball():
        import torch
        from hypll.nn import HBatchNorm2d
        from hypll.tensors import ManifoldTensor

        ball, _ = hypll
        layer = HBatchNorm2d(channels, ball, use_midpoint=True)
        with torch.no_grad():
            layer.norm.bias.copy_(torch.from_numpy(bias))
            layer.norm.weight.copy_(torch.from_numpy(gain))
        image, cotangent = torch.from_numpy(x).requires_grad_(), torch.from_numpy(g)
        plain = torch.nn.BatchNorm2d(channels)

        def with_hypll():
            y = layer(ManifoldTensor(image, manifold=ball, man_dim=1)).tensor
            return torch.autograd.grad(y, [image, layer.norm.bias, layer.norm.weight], cotangent)[0]

        def with_torch():
            return torch.autograd.grad(plain(image), [image, plain.weight, plain.bias], cotangent)[0]

        candidates |= {"hypll": with_hypll, "torch, plain normalization": with_torch}
        truth["torch, plain normalization"] = None
    return race(
        "poincare/batch_norm", "batch normalization, forward and backward", "x".join(map(str, shape)), candidates,
        truth, exact, 4 * 4 * x.size, None,
    )  # fmt: skip


def midpoint(fast, sets: int, count: int, length: int) -> dict:
    from refnorm.poincare import midpoint as reference

    rng = np.random.default_rng(2)
    x = np.ascontiguousarray(np.moveaxis(images(rng, (sets, length, count)), 1, -1))
    exact = reference(*wide(x), CURVATURE)
    candidates = {"refnorm_fast": lambda: fast.midpoint(x, CURVATURE)}
    if hypll := hypll_ball():
        ball, point = hypll
        points = point(x, -1)
        candidates["hypll"] = without_graph(lambda: ball.midpoint(points, batch_dim=1).tensor)
    try:
        import geoopt
        import torch

        space, tensor = geoopt.PoincareBall(c=CURVATURE), torch.from_numpy(x)
        candidates["geoopt"] = without_graph(lambda: space.weighted_midpoint(tensor, reducedim=[1]))
    except ImportError:
        pass
    return race("poincare/midpoint", "midpoint", f"{sets}x{count}x{length}", candidates, {}, exact, 4 * x.size, None)


def tangent_pool(ball, points, size: int):
    """The mean of logarithms with HypLL's maps; its own pooling layer takes Fréchet means."""
    import torch
    from hypll.utils.layer_utils import op_in_tangent_space

    return op_in_tangent_space(lambda v: torch.nn.functional.avg_pool2d(v, size), ball, points)


def pooling(fast, shape: tuple[int, int, int, int], size: int) -> dict:
    from refnorm.poincare import avg_pool2d

    x = images(np.random.default_rng(3), shape)
    exact = avg_pool2d(*wide(x), CURVATURE, size=size)
    candidates = {"refnorm_fast": lambda: fast.avg_pool2d(x, CURVATURE, size=size)}
    if hypll := hypll_ball():
        ball, point = hypll
        points = point(x, 1)
        candidates["hypll"] = without_graph(lambda: tangent_pool(ball, points, size).tensor)
    return race(
        "poincare/residual", f"average pooling {size}x{size}", "x".join(map(str, shape)), candidates, {}, exact,
        4 * x.size, None,
    )  # fmt: skip


def network(fast, channels: tuple[int, int, int]) -> dict:
    from refnorm.poincare import PoincareResNet, poincare_resnet
    from refnorm.tree import tree_map

    rng = np.random.default_rng(4)
    setting = PoincareResNet(channels=channels, curvature=CURVATURE, init_kind="centre", keep_length=True)
    # Weights of every kind of layer: the identity, stirred.
    params = tree_map(lambda a: a + 0.02 * rng.standard_normal(a.shape) * (a.ndim > 1), setting.init(rng))
    single = tree_map(lambda a: np.asarray(a, np.float32), params)
    x = rng.standard_normal((8, 3, 32, 32)).astype(np.float32)
    # On float32 arrays, whose projections have another margin; every layer of it is computed in float64.
    exact = poincare_resnet(single, x, CURVATURE)
    candidates = {"refnorm_fast": lambda: fast.poincare_resnet(single, x, CURVATURE)}
    if hypll_ball():
        candidates["hypll"] = without_graph(hypll_network(single, x))
    ops = 2 * x.shape[0] * sum(leaf.size * area for leaf, area in weights_and_areas(single))
    return race(
        "poincare/poincare_resnet", "ResNet-20, batch statistics", f"8x3x32x32, channels {channels}", candidates, {},
        exact, 4 * sum(leaf.size for leaf, _ in weights_and_areas(single)), ops,
    )  # fmt: skip


def network_gradient(fast, channels: tuple[int, int, int]) -> dict:
    """A step of training: logits, and the cotangents of all parameters; NumPy's layers are the reference's."""
    from refnorm.poincare import PoincareResNet, poincare_resnet_vjp
    from refnorm.tree import tree_map

    rng = np.random.default_rng(4)
    setting = PoincareResNet(channels=channels, curvature=CURVATURE, init_kind="centre", keep_length=True)
    params = tree_map(lambda a: a + 0.02 * rng.standard_normal(a.shape) * (a.ndim > 1), setting.init(rng))
    single = tree_map(lambda a: np.asarray(a, np.float32), params)
    x = rng.standard_normal((8, 3, 32, 32)).astype(np.float32)

    def step(function):
        logits, back = function(single, x, CURVATURE)
        return back(np.ones_like(logits))[0]["head"]["weight"]

    candidates = {
        "refnorm_fast": lambda: step(fast.poincare_resnet_vjp),
        "reference": lambda: step(poincare_resnet_vjp),
    }
    return race(
        "poincare/poincare_resnet", "ResNet-20, forward and backward", f"8x3x32x32, channels {channels}", candidates,
        {}, step(poincare_resnet_vjp), 4 * 2 * sum(leaf.size for leaf, _ in weights_and_areas(single)),
        6 * x.shape[0] * sum(leaf.size * area for leaf, area in weights_and_areas(single)),
    )  # fmt: skip


def weights_and_areas(params):
    """Every convolution's weight and the pixels of its output."""
    yield params["conv"]["weight"], 1024
    area = 1024
    for block in params["blocks"]:
        area = area // 4 if "shortcut" in block else area
        for name in ("conv1", "conv2", "shortcut"):
            if name in block:
                yield block[name]["weight"], area


def hypll_network(params, x: np.ndarray):
    """The network of HypLL's layers with these parameters, as a function without arguments."""
    import torch
    from hypll.nn import HBatchNorm2d, HConvolution2d, HLinear, HReLU
    from hypll.tensors import TangentTensor

    ball, _ = hypll_ball()
    relu, image = HReLU(ball), torch.from_numpy(x)

    def conv(of, kernel=3, stride=1):
        weight = of["weight"]
        layer = HConvolution2d(
            len(weight) // kernel**2, weight.shape[1], kernel, ball, stride=stride, padding=kernel // 2
        )
        with torch.no_grad():
            layer.weights.tensor.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(of["bias"]))
        return layer

    def norm(of):
        return HBatchNorm2d(len(of["bias"]), ball, use_midpoint=True)

    first = conv(params["conv"]), norm(params["norm"])
    blocks = []
    for block in params["blocks"]:
        stride = 2 if "shortcut" in block else 1
        shortcut = conv(block["shortcut"], 1, 2) if "shortcut" in block else None
        layers = conv(block["conv1"], 3, stride), norm(block["norm1"]), conv(block["conv2"]), norm(block["norm2"])
        blocks.append((layers, shortcut))
    head = HLinear(*params["head"]["weight"].shape, ball)
    with torch.no_grad():
        head.z.tensor.copy_(torch.from_numpy(params["head"]["weight"]))
        head.bias.copy_(torch.from_numpy(params["head"]["bias"]))

    def run():
        y = ball.expmap(TangentTensor(image, manifold=ball, man_dim=1))
        y = relu(first[1](first[0](y)))
        for (conv1, norm1, conv2, norm2), shortcut in blocks:
            f = norm2(conv2(relu(norm1(conv1(y)))))
            y = relu(ball.mobius_add(f, y if shortcut is None else shortcut(y)))
        pooled = tangent_pool(ball, y, x.shape[-1] // 4).squeeze(-1).squeeze(-1)
        return ball.logmap(None, head(pooled)).tensor

    return run
