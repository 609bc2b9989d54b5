"""Truth for TrAct: the paper's formula in mpmath, and PyTorch's unfolding, solver and derivatives in float64."""

import mpmath
import numpy as np
import torch
from torch.nn import functional

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
# The order of sums, and with it the last bit, must not depend on the machine's cores.
torch.set_num_threads(1)
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def exact(array):
    return mpmath.matrix([[mpmath.mpf(float(v)) for v in row] for row in array])


def by_formula(x, dz, damping):
    """The paper's primal form, whatever the sizes."""
    rows, deltas = exact(x.reshape(-1, x.shape[-1])), exact(dz.reshape(-1, dz.shape[-1]))
    system = rows.T * rows / rows.rows + mpmath.mpf(damping) * mpmath.eye(rows.cols)
    return np.array((deltas.T * rows * system**-1).tolist(), dtype=float)


def cases():
    rng = np.random.default_rng(20241031)
    found = [
        GoldenCase(
            function="solvers.tract_weight_gradient",
            name="one example with inputs 1 and 2",
            args=(np.array([[1.0, 2.0]]), np.array([[1.0]])),
            options={"damping": 0.1},
            expected=np.array([[1.0, 2.0]]) / 5.1,
            tolerance=Tolerance(4, "ulp"),
            source="by hand: the inputs over |x|^2 + damping",
        )
    ]
    for shape, outputs, damping, dtype in (
        ((9, 4), 3, 0.1, np.float64),
        ((3, 8), 2, 0.1, np.float64),
        ((3, 8), 2, 1e-6, np.float64),
        ((2, 3, 5), 4, 10.0, np.float64),
        ((20, 6), 3, 0.1, np.float32),
    ):
        x = rng.standard_normal(shape).astype(dtype)
        dz = rng.standard_normal((*shape[:-1], outputs)).astype(dtype)
        common = {
            "options": {"damping": damping},
            "tolerance": Tolerance(64, "ulp_of_largest"),
        }
        name = f"{dtype.__name__}, inputs {shape}, damping {damping:g}"
        fitted = by_formula(x, dz, damping)
        found.append(
            GoldenCase(
                function="solvers.tract_weight_gradient", name=name, args=(x, dz), expected=fitted,
                source="mpmath, 50 digits", **common,
            )
        )  # fmt: skip
        if dtype == np.float64:
            weight, bias = rng.standard_normal((outputs, shape[-1])), rng.standard_normal(outputs)
            tensors = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
            z = functional.linear(*tensors)
            z.backward(torch.tensor(dz))
            args = (x, weight, bias)
            found.append(
                GoldenCase(
                    function="solvers.tract_linear", name=name, args=args, expected=z.detach().numpy(),
                    tolerance=Tolerance(1e-14, "relative_of_largest"), source=TORCH,
                )
            )  # fmt: skip
            found.append(
                GoldenCase(
                    function="solvers.tract_linear", name=name, args=args, cotangent=dz,
                    expected=(tensors[0].grad.numpy(), fitted, tensors[2].grad.numpy()),
                    source=f"{TORCH}; mpmath, 50 digits, for the weight", **common,
                )
            )  # fmt: skip

    for shape, size, options in (
        ((2, 2, 6, 5), (3, 2, 3, 3), {}),
        ((1, 3, 4, 4), (2, 3, 3, 3), {}),
        ((2, 1, 6, 7), (3, 1, 2, 3), {"stride": (2, 1), "padding": (1, 2)}),
    ):
        x, weight, bias = (rng.standard_normal(s) for s in (shape, size, size[:1]))
        tensors = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
        z = functional.conv2d(*tensors, **options)
        dz = rng.standard_normal(tuple(z.shape))
        z.backward(torch.tensor(dz))
        rows = functional.unfold(torch.tensor(x), size[2:], **options).transpose(1, 2).flatten(0, 1)
        system = rows.T @ rows / len(rows) + 0.1 * torch.eye(rows.shape[1], dtype=torch.float64)
        fitted = torch.linalg.solve(system, tensors[1].grad.flatten(1).T).T.reshape(size)
        common = {
            "name": f"images {shape}, filters {size[2:]}",
            "args": (x, weight, bias),
            "tolerance": Tolerance(1e-12, "relative_of_largest"),
            "source": TORCH,
        }
        found.append(
            GoldenCase(function="solvers.tract_conv2d", expected=z.detach().numpy(), options=options, **common)
        )
        gradients = (tensors[0].grad.numpy(), fitted.numpy(), tensors[2].grad.numpy())
        with_damping = {**options, "damping": 0.1}
        found.append(
            GoldenCase(
                function="solvers.tract_conv2d", cotangent=dz, expected=gradients, options=with_damping, **common
            )
        )
        found.append(
            GoldenCase(
                function="solvers.patch_gram",
                expected=(rows.T @ rows).numpy(),
                options=options,
                **{**common, "args": (x, size[2:])},
            )
        )
    return found
