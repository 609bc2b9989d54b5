"""Truth for region normalization: hand calculations, PyTorch on each region's pixels gathered in a vector."""

import numpy as np
import torch
from torch.nn.functional import batch_norm, conv2d, interpolate

from refnorm.conformance import GoldenCase, Tolerance

TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def torch_regions(x, mask, stats, eps, scaled):
    """Standardize gathered pixels of each region with PyTorch's batch norm."""
    images = [slice(i, i + 1) for i in range(len(x))] if stats == "instance" else [slice(None)]
    result = torch.zeros_like(x)
    for part in images:
        for region in (mask[part, 0], ~mask[part, 0]):
            size = int(region.sum())
            if size < 2:
                continue
            pixels = x[part].permute(0, 2, 3, 1)[region]
            factor = region.numel() / size if scaled else 1.0
            normal = batch_norm(pixels, None, None, training=True, eps=eps * factor)
            whole = torch.zeros(*region.shape, x.shape[1], dtype=x.dtype).index_put((region,), normal)
            result = result + _place(whole.permute(0, 3, 1, 2), part, len(x))
    return result


def _place(values, part, images):
    """Put one image's values among zeros, or all images' as they are."""
    if part == slice(None):
        return values
    return torch.cat([values if image == part.start else torch.zeros_like(values) for image in range(images)])


def cases():
    rng = np.random.default_rng(191110375)
    found = []

    def add(function, name, args, expected, tolerance, source=f"{TORCH}: batch_norm on each region's pixels", **more):
        found.append(
            GoldenCase(
                function=f"norms.{function}",
                name=name,
                args=args,
                expected=expected,
                tolerance=tolerance,
                source=source,
                **more,
            )
        )

    x, mask = np.array([[[[1.0, 3.0, 10.0, 14.0]]]]), np.array([[[[1, 1, 0, 0]]]])
    tiny, zero = {"eps": 1e-300, "eps_mode": "plain"}, np.zeros(1)
    hand = np.array([[[[-1.0, 1.0, -1.0, 1.0]]]])
    add(
        "region_normalize",
        "two pairs",
        (x, mask),
        hand,
        Tolerance(2, "ulp"),
        "by hand: means 2, 12; deviations 1, 2",
        options=tiny,
    )
    add(
        "region_normalize",
        "two pairs, eps 3 and half of the pixels",
        (x, mask),
        np.array([[[[-1.0, 1.0, -2.0, 2.0]]]]) / np.sqrt([7.0, 7.0, 10.0, 10.0]),
        Tolerance(4, "ulp"),
        "by hand: variances 1 and 4, each plus 3 * 4/2",
        options={"eps": 3.0},
    )
    params = (np.array([1.0]), np.array([3.0]), zero, np.array([5.0]))
    add(
        "region_norm_basic",
        "two pairs",
        (x, mask, *params),
        np.array([[[[1.0, 5.0, 4.0, 6.0]]]]),
        Tolerance(2, "ulp"),
        "by hand",
        options=tiny,
    )
    add(
        "region_norm_basic",
        "two pairs, both biases everywhere",
        (x, mask, *params),
        np.array([[[[6.0, 10.0, 7.0, 9.0]]]]),
        Tolerance(2, "ulp"),
        "by hand",
        options=tiny | {"shared_bias": True},
    )
    add(
        "resize_mask_nearest",
        "twice as wide",
        (np.array([[[[0, 1]]]]), (1, 4)),
        np.array([[[[0, 0, 1, 1]]]]),
        Tolerance(),
        "by hand",
    )
    small = (rng.random((2, 1, 3, 5)) > 0.5).astype(float)
    for size in ((6, 7), (2, 3)):
        expected = interpolate(torch.tensor(small), size, mode="nearest").numpy()
        add("resize_mask_nearest", f"to {size}", (small, size), expected, Tolerance(), f"{TORCH}: interpolate")

    limit = Tolerance(1e-12, "relative_of_largest")
    shape = (2, 3, 4, 5)
    for stats, eps_mode in (("batch", "scaled"), ("batch", "plain"), ("instance", "scaled"), ("instance", "plain")):
        x, g = rng.standard_normal((2, *shape))
        mask = rng.random((2, 1, 4, 5)) > 0.4
        options = {"stats": stats, "eps": 1e-2, "eps_mode": eps_mode}
        rule = (torch.tensor(mask), stats, 1e-2, eps_mode == "scaled")
        tensor = torch.tensor(x, requires_grad=True)
        value = torch_regions(tensor, *rule)
        value.backward(torch.tensor(g))
        name = f"{stats} statistics, {eps_mode} eps"
        add("region_normalize", name, (x, mask), value.detach().numpy(), limit, options=options)
        add("region_normalize", name, (x, mask), (tensor.grad.numpy(),), limit, options=options, cotangent=g)

        arrays = (x, *rng.standard_normal((4, 3)))
        tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        inside = torch.tensor(mask)
        gain_1, bias_1, gain_0, bias_0 = (t.reshape(1, 3, 1, 1) for t in tensors[1:])
        scale, shift = 1 + torch.where(inside, gain_1, gain_0), torch.where(inside, bias_1, bias_0)
        value = torch_regions(tensors[0], *rule) * scale + shift
        value.backward(torch.tensor(g))
        args = (x, mask, *arrays[1:])
        add("region_norm_basic", name, args, value.detach().numpy(), limit, options=options)
        add(
            "region_norm_basic", name, args, tuple(t.grad.numpy() for t in tensors), limit, options=options, cotangent=g
        )

    for stats, size in (("batch", 7), ("instance", 3)):
        x, g = rng.standard_normal((2, *shape))
        shapes = ((1, 2, size, size), (1, 1, size, size), (1,), (1, 1, size, size), (1,))
        arrays = (x, *(0.3 * rng.standard_normal(s) for s in shapes))
        tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        t, w1, w2, b2, w3, b3 = tensors
        pooled = torch.cat([t.mean(1, keepdim=True), t.amax(1, keepdim=True)], dim=1)
        soft = torch.sigmoid(conv2d(pooled, w1, padding=size // 2))
        x_hat = torch_regions(t, soft.detach() >= 0.5, stats, 1e-2, True)
        value = x_hat * (1 + conv2d(soft, w2, b2, padding=size // 2)) + conv2d(soft, w3, b3, padding=size // 2)
        value.backward(torch.tensor(g))
        options = {"threshold": 0.5, "stats": stats, "eps": 1e-2}
        name = f"filters of {size} x {size}, {stats} statistics"
        source = f"{TORCH}: batch_norm on each region's pixels, conv2d"
        add("region_norm_learnable", name, arrays, value.detach().numpy(), limit, source, options=options)
        grads = tuple(t.grad.numpy() for t in tensors)
        add("region_norm_learnable", name, arrays, grads, limit, source, options=options, cotangent=g)
    return found
