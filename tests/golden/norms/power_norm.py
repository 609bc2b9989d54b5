"""Truth for power normalization: hand calculations, a recursion in mpmath, PyTorch autograd in float64."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.norms import PowerNormState

mpmath.mp.dps = 50
TORCH = f"the formula under torch {torch.__version__.split('+')[0]} autograd, float64"


def recursion(batches, cotangents, decay, eps):
    """Power norm without warm-up, groups or mask, gain 1 and bias 0, for one channel; all in mpmath."""
    square, backward, count = mpmath.mpf(1), mpmath.mpf(0), len(batches[0])
    decay = mpmath.mpf(decay)
    for batch, cotangent in zip(batches, cotangents, strict=True):
        x, g = ([mpmath.mpf(float(v)) for v in values] for values in (batch, cotangent))
        before = square, backward
        scale = mpmath.sqrt(square + mpmath.mpf(eps))
        z = [v / scale for v in x]
        power = mpmath.fsum(v * v for v in z) / count
        along = mpmath.fsum(a * b for a, b in zip(g, z, strict=True)) / count
        dx = [(a - backward * b) / scale for a, b in zip(g, z, strict=True)]
        backward = backward * (1 - (1 - decay) * power) + (1 - decay) * along
        square = decay * square + (1 - decay) * mpmath.fsum(v * v for v in x) / count
        after = square, backward
    return before, after, z, dx


def cases():
    rng = np.random.default_rng(200307845)
    found = []

    def add(function, name, args, expected, tolerance, source=TORCH, **more):
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

    x, one, zero, g = np.array([[3.0], [4.0]]), np.ones(1), np.zeros(1), np.array([[1.0], [0.0]])
    z, root = x / np.sqrt(12.5), np.sqrt(12.5)
    tiny = {"eps": 1e-300}
    add("power_norm_v", "two tokens", (x, one, zero), z, Tolerance(2, "ulp"), "by hand: mean square 25/2", options=tiny)
    # along = 3 / (2 root); dx = (g - z along) / root = (1 - 9/25, -12/25) / root.
    add(
        "power_norm_v",
        "two tokens",
        (x, one, zero),
        (np.array([[16.0], [-12.0]]) / 25 / root, np.array([3.0]) / root, one),
        Tolerance(4, "ulp_of_largest"),
        "by hand",
        options=tiny,
        cotangent=g,
    )
    start = PowerNormState(np.ones(1), np.zeros(1), 0)
    options = tiny | {"warmup": 0, "groups": None}
    iteration = np.array(1)
    add(
        "power_norm",
        "first batch",
        (x, one, zero, start),
        (x, np.array([2.15]), zero, iteration),
        Tolerance(2, "ulp"),
        "by hand: 0.9 + 0.1 * 25/2",
        options=options,
    )
    add(
        "power_norm",
        "first batch",
        (x, one, zero, start),
        (g, np.array([3.0]), one, np.array([2.15]), np.array([0.15]), iteration),
        Tolerance(2, "ulp"),
        "by hand: backward mean 0.1 * 3/2",
        options=options,
        cotangent=g,
    )
    add(
        "group_scale",
        "3-4 and 1-1",
        (np.array([[3.0, 4.0, 1.0, 1.0]]),),
        np.array([[3 / root, 4 / root, 1.0, 1.0]]),
        Tolerance(2, "ulp"),
        "by hand",
        options=tiny | {"groups": 2},
    )

    batches, cotangents = rng.standard_normal((2, 6, 5))
    for decay in (0.9, 0.5):
        before, after, z, dx = recursion(batches, cotangents, decay, 1e-5)
        state = PowerNormState(*(np.array([float(v)]) for v in before), 5)
        args = (batches[-1][:, None], one, zero, state)
        options = {"warmup": 0, "groups": None, "decay_forward": decay, "decay_backward": decay}
        moved = np.array([float(after[0])]), np.array([float(after[1])])
        values, grads = (np.array([[float(v)] for v in entry]) for entry in (z, dx))
        source = "mpmath, 50 digits: the recursion over six batches"
        limit = Tolerance(1e-13, "relative")
        name = f"sixth batch, decay {decay}"
        add(
            "power_norm",
            name,
            args,
            (values, moved[0], state.backward_mean, np.array(6)),
            limit,
            source,
            options=options,
        )
        # The cotangent of the gain is sum(g z).
        dgain = mpmath.fsum(mpmath.mpf(float(a)) * b for a, b in zip(cotangents[-1], z, strict=True))
        dbias = mpmath.fsum(mpmath.mpf(float(a)) for a in cotangents[-1])
        expected = (grads, np.array([float(dgain)]), np.array([float(dbias)]), *moved, np.array(6))
        add("power_norm", name, args, expected, limit, source, options=options, cotangent=cotangents[-1][:, None])

    limit = Tolerance(1e-12, "relative_of_largest")
    for shape, mask in (((6, 4), None), ((2, 4, 3), np.array([[True, True, False, True], [False, True, True, True]]))):
        channels = shape[-1]
        x, cotangent = rng.standard_normal((2, *shape))
        arrays = (x, *rng.standard_normal((2, channels)))
        tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        tokens = tensors[0].reshape(-1, channels)
        kept = tokens if mask is None else tokens[torch.tensor(mask.ravel())]
        value = tensors[1] * tensors[0] / torch.sqrt((kept**2).mean(0) + 1e-3) + tensors[2]
        value.backward(torch.tensor(cotangent))
        options = {"eps": 1e-3} if mask is None else {"eps": 1e-3, "mask": mask}
        name = f"shape {shape}, {'no mask' if mask is None else 'mask'}"
        add("power_norm_v", name, arrays, value.detach().numpy(), limit, options=options)
        add(
            "power_norm_v",
            name,
            arrays,
            tuple(t.grad.numpy() for t in tensors),
            limit,
            options=options,
            cotangent=cotangent,
        )

    x, cotangent = rng.standard_normal((2, 3, 6))
    tensor = torch.tensor(x, requires_grad=True)
    groups = tensor.reshape(3, 2, 3)
    value = torch.nn.functional.rms_norm(groups, (3,), eps=1e-3).reshape(3, 6)
    value.backward(torch.tensor(cotangent))
    options = {"groups": 2, "eps": 1e-3}
    source = f"torch {torch.__version__.split('+')[0]} rms_norm, float64"
    add("group_scale", "two groups", (x,), value.detach().numpy(), limit, source, options=options)
    add("group_scale", "two groups", (x,), (tensor.grad.numpy(),), limit, source, options=options, cotangent=cotangent)

    # In use everything is exact, group scaling included.
    arrays = (x, *rng.standard_normal((2, 6)))
    state = PowerNormState(rng.random(6) + 0.2, rng.standard_normal(6), 7)
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    scaled = torch.nn.functional.rms_norm(tensors[0].reshape(3, 2, 3), (3,), eps=1e-3).reshape(3, 6)
    value = tensors[1] * scaled / torch.sqrt(torch.tensor(state.mean_square) + 1e-3) + tensors[2]
    value.backward(torch.tensor(cotangent))
    options = options | {"training": False}
    rest = (state.mean_square, state.backward_mean, np.array(7))
    add("power_norm", "in use", (*arrays, state), (value.detach().numpy(), *rest), limit, options=options)
    grads = tuple(t.grad.numpy() for t in tensors)
    add("power_norm", "in use", (*arrays, state), (*grads, *rest), limit, options=options, cotangent=cotangent)
    return found
