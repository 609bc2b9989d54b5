"""Truth for the monotone Boltzmann machine: mpmath (Lambert's W, bisection, differences), SciPy, PyTorch, by hand."""

import mpmath
import numpy as np
import scipy
import scipy.special
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
SCIPY = f"scipy {scipy.__version__}"
STEP = mpmath.mpf(10) ** -15


def exact_prox(y, damping):
    """Lambert's W for every entry, and bisection for the shift."""
    a = mpmath.mpf(damping)
    y = [mpmath.mpf(v) for v in y]

    def entries(shift):
        return [a / (1 - a) * mpmath.lambertw((1 - a) / a * mpmath.exp((v + shift) / a - 1)).real for v in y]

    low, high = -max(y) - 1, 1 - max(y)
    for _ in range(170):
        middle = (low + high) / 2
        low, high = (low, middle) if mpmath.fsum(entries(middle)) > 1 else (middle, high)
    return entries((low + high) / 2)


def exact_softmax(logits):
    terms = [mpmath.exp(v) for v in logits]
    total = mpmath.fsum(terms)
    return [t / total for t in terms]


def exact_mean_field(phi, b, sizes):
    """Plain iteration, for couplings so weak that it contracts."""
    size = len(b)
    q = [mpmath.mpf(1) / 2] * size
    for _ in range(400):
        logits = [b[i] + mpmath.fsum(phi[i][j] * q[j] for j in range(size)) for i in range(size)]
        following, start = [], 0
        for k in sizes:
            following += exact_softmax(logits[start : start + k])
            start += k
        moved = max(abs(p - r) for p, r in zip(q, following, strict=True))
        q = following
        if moved < mpmath.mpf(10) ** -40:
            return q
    raise ArithmeticError("no convergence")


def differences(function, arguments, cotangent):
    """Central differences at 50 digits of <cotangent, function(*arguments)> in every entry of every argument."""
    grads = []
    for argument in arguments:
        grad = np.zeros(np.shape(argument))
        flat = [mpmath.mpf(float(v)) for v in np.ravel(argument)]
        for i in range(len(flat)):
            sides = []
            for sign in (1, -1):
                moved = flat.copy()
                moved[i] += sign * STEP
                others = [
                    moved if other is argument else [mpmath.mpf(float(v)) for v in np.ravel(other)]
                    for other in arguments
                ]
                sides.append(
                    mpmath.fsum(mpmath.mpf(float(c)) * v for c, v in zip(cotangent, function(*others), strict=True))
                )
            grad.flat[i] = float((sides[0] - sides[1]) / (2 * STEP))
        grads.append(grad)
    return tuple(grads)


def torch_coupling(weight, sizes, margin, cotangent):
    a = torch.tensor(weight, requires_grad=True)
    scaled = torch.cat(
        [
            block * torch.clamp(np.sqrt(1 - margin) / torch.linalg.matrix_norm(block, 2), max=1.0)
            for block in a.split(list(sizes), 1)
        ],
        dim=1,
    )
    owner = np.repeat(np.arange(len(sizes)), sizes)
    phi = -(scaled.T @ scaled) * torch.tensor(owner[:, None] != owner)
    phi.backward(torch.tensor(cotangent))
    return phi.detach().numpy(), a.grad.numpy()


def cases():
    rng = np.random.default_rng(20230711)
    found = [
        GoldenCase(
            function="solvers.prox_softmax",
            name="two equal entries by hand",
            args=(np.zeros(2),),
            options={"damping": 0.5},
            cotangent=np.array([1.0, 0.0]),
            expected=(np.array([1.0, -1.0]) / 3,),
            tolerance=Tolerance(4, "ulp"),
            source="by hand: gain 2/3",
        )
    ]
    for damping, scale in ((0.5, 1.0), (0.05, 1.0), (0.9, 5.0), (0.3, 0.01), (0.2, 4.0)):
        y = scale * rng.standard_normal(5)
        found.append(
            GoldenCase(
                function="solvers.prox_softmax",
                name=f"damping {damping:g}, scale {scale:g}",
                args=(y,),
                options={"damping": damping},
                expected=np.array([float(v) for v in exact_prox(y, damping)]),
                # A term's logarithm is as large as 100: its rounding is that many units of the term.
                tolerance=Tolerance(1e-12, "relative"),
                source="mpmath, 50 digits: Lambert's W and bisection",
            )
        )
    for damping in (0.5, 0.05):
        y, cotangent = rng.standard_normal((2, 4))
        found.append(
            GoldenCase(
                function="solvers.prox_softmax",
                name=f"derivative, damping {damping:g}",
                args=(y,),
                options={"damping": damping},
                cotangent=cotangent,
                expected=differences(lambda v, d=damping: exact_prox(v, d), (y,), cotangent),
                tolerance=Tolerance(1e-13, "relative_of_largest"),
                source="mpmath, 50 digits: differences",
            )
        )
    y, cotangent = 5 * rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    found.append(
        GoldenCase(
            function="solvers.prox_softmax",
            name="no damping: softmax of the columns",
            args=(y,),
            options={"damping": 1.0, "axis": 0},
            expected=scipy.special.softmax(y, axis=0),
            tolerance=Tolerance(1e-14, "relative"),
            source=SCIPY,
        )
    )
    x = 3 * rng.standard_normal((2, 9))
    found.append(
        GoldenCase(
            function="solvers.block_softmax",
            name="blocks of 2, 1, 4 and 2",
            args=(x, (2, 1, 4, 2)),
            expected=np.concatenate(
                [scipy.special.softmax(part, axis=1) for part in np.split(x, [2, 3, 7], axis=1)], axis=1
            ),
            tolerance=Tolerance(1e-14, "relative"),
            source=SCIPY,
        )
    )
    tensor, cotangent = torch.tensor(x, requires_grad=True), rng.standard_normal((2, 9))
    torch.cat([part.softmax(1) for part in tensor.split([2, 1, 4, 2], 1)], dim=1).backward(torch.tensor(cotangent))
    found.append(
        GoldenCase(
            function="solvers.block_softmax",
            name="blocks of 2, 1, 4 and 2",
            args=(x, (2, 1, 4, 2)),
            cotangent=cotangent,
            expected=(tensor.grad.numpy(),),
            tolerance=Tolerance(1e-14, "relative_of_largest"),
            source=TORCH,
        )
    )
    for scale, margin in ((0.1, 0.1), (3.0, 0.1), (0.6, 0.5)):
        weight, cotangent = scale * rng.standard_normal((5, 9)), rng.standard_normal((9, 9))
        phi, grad = torch_coupling(weight, (2, 1, 4, 2), margin, cotangent)
        common = {
            "function": "solvers.hollow_coupling",
            "name": f"weights of size {scale:g}, margin {margin:g}",
            "args": (weight, (2, 1, 4, 2)),
            "options": {"margin": margin},
            "tolerance": Tolerance(1e-13, "relative_of_largest"),
            "source": TORCH,
        }
        found.append(GoldenCase(**common, expected=phi))
        found.append(GoldenCase(**common, cotangent=cotangent, expected=(grad,)))
    found += fixed_points(rng)
    return found


def fixed_points(rng):
    sizes, size = (2, 3), 5
    phi = 0.4 * rng.standard_normal((size, size))
    phi = phi + phi.T
    phi[:2, :2] = phi[2:, 2:] = 0
    b, cotangent = rng.standard_normal(size), rng.standard_normal(size)

    def solve(flat_phi, bias):
        return exact_mean_field([flat_phi[i * size : (i + 1) * size] for i in range(size)], bias, sizes)

    options = {"tol": 1e-14, "damping": 0.5}
    found = [
        GoldenCase(
            function="solvers.mean_field",
            name="two variables",
            args=(phi, b, sizes),
            options=options,
            cotangent=cotangent,
            expected=differences(solve, (phi, b), cotangent),
            tolerance=Tolerance(1e-12, "relative_of_largest"),
            source="mpmath, 50 digits: differences of the solution",
        )
    ]
    x = np.array([0.3, 0.7, 0.0, 0.0, 0.0])

    def clamped(flat_phi, bias, values):
        rows = [flat_phi[i * size : (i + 1) * size] for i in range(2, size)]
        shifted = [c + mpmath.fsum(row[j] * values[j] for j in range(2)) for row, c in zip(rows, bias[2:], strict=True)]
        return [*values[:2], *exact_mean_field([row[2:] for row in rows], shifted, sizes[1:])]

    found.append(
        GoldenCase(
            function="solvers.conditional_mean_field",
            name="one of two variables observed",
            args=(phi, b, sizes, np.array([True, False]), x),
            options=options,
            cotangent=cotangent,
            expected=differences(clamped, (phi, b, x), cotangent),
            tolerance=Tolerance(1e-13, "relative_of_largest"),
            source="mpmath, 50 digits: differences of the solution",
        )
    )
    return found
