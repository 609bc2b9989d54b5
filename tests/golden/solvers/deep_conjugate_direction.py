"""Truth for deep conjugate directions: hand calculations, rational arithmetic, PyTorch in float64."""

from fractions import Fraction

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.solvers import DirectionNetParams

TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def exact_loss(f, r, matrix):
    total, n = Fraction(0), len(matrix)
    entries = [[Fraction(float(v)) for v in row] for row in matrix]
    for proposal, residual in zip(f.reshape(-1, n), r.reshape(-1, n), strict=True):
        f_row, r_row = ([Fraction(float(v)) for v in row] for row in (proposal, residual))
        image = [sum(a * b for a, b in zip(row, f_row, strict=True)) for row in entries]
        step = sum(a * b for a, b in zip(r_row, f_row, strict=True)) / sum(
            a * b for a, b in zip(f_row, image, strict=True)
        )
        total += sum((a - step * b) ** 2 for a, b in zip(r_row, image, strict=True))
    return np.array(float(total / (f.size // n)))


def torch_loss(f, r, matrix, cotangent):
    tensors = [torch.tensor(a, requires_grad=True) for a in (f, r)]
    proposal, residual = tensors
    image = proposal @ torch.tensor(matrix).T
    step = (residual * proposal).sum(-1, keepdim=True) / (proposal * image).sum(-1, keepdim=True)
    loss = ((residual - step * image) ** 2).sum(-1).mean()
    loss.backward(torch.tensor(cotangent, dtype=torch.float64))
    return tuple(t.grad.numpy() for t in tensors)


def random_net(rng, channels):
    def conv(outputs, inputs, side=3):
        return (
            rng.standard_normal((outputs, inputs, side, side)) / np.sqrt(inputs * side * side),
            0.1 * rng.standard_normal(outputs),
        )

    def several(number):
        return tuple(conv(channels, channels) for _ in range(number))

    return DirectionNetParams(conv(channels, 1), several(2), several(4), several(4), several(2), conv(1, channels, 1))


def torch_net(r, params, shape, cotangent):
    functional = torch.nn.functional
    leaves = []

    def tensor(array):
        leaves.append(torch.tensor(array, requires_grad=True))
        return leaves[-1]

    image = tensor(r)
    kernels = [
        (tensor(w), tensor(b))
        for w, b in (params.lift, *params.fine, *params.middle, *params.coarse, *params.up, params.head)
    ]
    lift, fine, middle, coarse, up, head = (
        kernels[0],
        kernels[1:3],
        kernels[3:7],
        kernels[7:11],
        kernels[11:13],
        kernels[13],
    )

    def rho(x, kernel):
        return functional.relu(functional.conv2d(x, *kernel, padding=1))

    a = functional.conv2d(image.reshape(-1, 1, *shape), *lift, padding=1)
    level = rho(a, fine[0])
    level = rho(level, fine[1]) + level
    p = functional.avg_pool2d(level, 2)
    for first, second in (middle[:2], middle[2:]):
        p = p + rho(rho(p, first), second)
    q = functional.avg_pool2d(p, 2)
    for first, second in (coarse[:2], coarse[2:]):
        q = q + rho(rho(q, first), second)
    p = p + functional.interpolate(q, scale_factor=2, mode="nearest")
    p = p + rho(p, up[0])
    u = functional.interpolate(p, scale_factor=2, mode="nearest") + level
    f = functional.conv2d(u + rho(u, up[1]), *head).reshape(r.shape)
    grads = torch.autograd.grad(f, leaves, torch.tensor(cotangent))
    return f.detach().numpy(), tuple(g.numpy() for g in grads)


def cases():
    rng = np.random.default_rng(20220522)
    one, diagonal = np.array([1.0, 1.0]), np.diag([1.0, 4.0])
    found = [
        GoldenCase(
            function="solvers.dcdm_loss",
            name="two unknowns by hand",
            args=(one, one, diagonal),
            expected=np.array(0.72),
            tolerance=Tolerance(4, "ulp"),
            source="by hand: step 2/5, error (0.6, -0.6)",
        ),
        GoldenCase(
            function="solvers.dcdm_loss",
            name="the solution itself",
            args=(np.array([4.0, 1.0]), np.array([4.0, 4.0]), diagonal),
            expected=np.array(0.0),
            source="by hand: A f = r",
        ),
    ]
    for shape in ((6,), (4, 7)):
        root = rng.standard_normal((shape[-1], shape[-1]))
        matrix = root @ root.T + np.eye(shape[-1])
        f, r = rng.standard_normal((2, *shape))
        common = {"function": "solvers.dcdm_loss", "name": f"shape {shape}", "args": (f, r, matrix)}
        found.append(
            GoldenCase(
                **common,
                expected=exact_loss(f, r, matrix),
                tolerance=Tolerance(1e-13, "relative"),
                source="rational arithmetic",
            )
        )
        grads = torch_loss(f, r, matrix, 0.7)
        found.append(
            GoldenCase(
                **common,
                cotangent=np.array(0.7),
                # The matrix is an argument, and counts as fixed.
                expected=grads,
                tolerance=Tolerance(1e-12, "relative_of_largest"),
                source=TORCH,
            )
        )
    params, r, cotangent = random_net(rng, 3), rng.standard_normal((2, 32)), rng.standard_normal((2, 32))
    value, grads = torch_net(r, params, (8, 4), cotangent)
    common = {
        "function": "solvers.direction_net",
        "name": "8 x 4 points, 3 channels",
        "args": (r, params),
        "options": {"shape": (8, 4)},
        "source": TORCH,
    }
    found.append(GoldenCase(**common, expected=value, tolerance=Tolerance(1e-13, "relative_of_largest")))
    found.append(
        GoldenCase(**common, cotangent=cotangent, expected=grads, tolerance=Tolerance(1e-12, "relative_of_largest"))
    )
    return found
