"""Truth for the grasp program: hand calculations, the active-set solver quadprog, PyTorch with ``detach``."""

from dataclasses import replace

import numpy as np
import quadprog
import torch

from refnorm.conformance import GoldenCase, Tolerance

VERSION = f"torch {torch.__version__.split('+')[0]}, float64"


def contacts(rng, m):
    """Random points on an ellipsoid with inward normals."""
    axes = np.array([1.0, 0.7, 0.5])
    p = rng.standard_normal((m, 3))
    p /= np.linalg.norm(p / axes, axis=1, keepdims=True)
    n = -p / axes**2
    return p, n / np.linalg.norm(n, axis=1, keepdims=True)


def torch_matrix(p, n, center, length):
    e = torch.zeros_like(n)
    steep = n[:, 1].abs() > 0.99
    e[~steep, 1] = 1
    e[steep, 2] = 1
    a = e - (e * n).sum(1, keepdim=True) * n
    a = (a / a.norm(dim=1, keepdim=True)).detach()
    first = a - (a * n).sum(1, keepdim=True) * n
    first = first / first.norm(dim=1, keepdim=True)
    second = torch.linalg.cross(n, first)
    arm = (p - torch.tensor(center, dtype=torch.float64)) / length
    columns = [torch.cat([v, torch.linalg.cross(arm, v)], dim=1) for v in (n, first, second)]
    return torch.stack(columns, dim=2)


def best_forces(flat, target, friction, strength, penalty):
    """Forces by quadprog, written with k as a constant: min |G f - k t|^2 + penalty |fn|^2."""
    m = flat.shape[1] // 3
    quadratic = flat.T @ flat
    quadratic[np.arange(0, 3 * m, 3), np.arange(0, 3 * m, 3)] += penalty
    rows, right = [], []
    for i in range(m):
        for q in range(8):
            row = np.zeros(3 * m)
            row[3 * i : 3 * i + 3] = friction, -np.sin(2 * np.pi * q / 8), -np.cos(2 * np.pi * q / 8)
            rows.append(row)
            right.append(0.0)
        for sign, bound in ((1.0, 0.01), (-1.0, -1.0)):
            row = np.zeros(3 * m)
            row[3 * i] = sign
            rows.append(row)
            right.append(bound)
    # quadprog wants a definite matrix; the energy does not feel this little.
    definite = quadratic + 1e-11 * np.eye(3 * m)
    return quadprog.solve_qp(definite, strength * flat.T @ target, np.array(rows).T, np.array(right))[0]


def cases():
    rng = np.random.default_rng(20241221)
    opposite = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    lift = np.array([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
    found = [
        GoldenCase(
            "solvers.grasp_energy",
            f"two fingers lift, strength {strength:g}, penalty {penalty:g}",
            (opposite, -opposite, lift),
            np.array([energy]),
            f"by hand: {why}",
            options={"friction": 0.5, "strength": strength, "penalty": penalty},
            tolerance=Tolerance(1e-9, "relative"),
        )
        for strength, penalty, energy, why in (
            (2.0, 0.0, 1.0, "(2 - 1)^2"),
            (1.5, 0.0, 0.25, "(1.5 - 1)^2"),
            (0.5, 0.01, (0.5 - 0.5 / 1.02) ** 2, "both fingers press with 0.5 / 1.02"),
        )
    ]
    for m, options in (
        (3, {"center": (0.1, -0.2, 0.3), "length": 0.7}),
        (2, {"center": (0.0, 0.0, 0.0), "length": 1.0}),
    ):
        p, n = contacts(rng, m)
        if m == 2:
            n[0] = [0.0, -1.0, 0.0]
        tensors = [torch.tensor(array, requires_grad=True) for array in (p, n)]
        cotangent = rng.standard_normal((m, 6, 3))
        value = torch_matrix(*tensors, options["center"], options["length"])
        value.backward(torch.tensor(cotangent))
        common = {
            "function": "solvers.grasp_matrix",
            "name": f"{m} contacts",
            "args": (p, n),
            "options": options,
            "source": VERSION,
            "tolerance": Tolerance(1e-13, "relative_of_largest"),
        }
        found.append(GoldenCase(**common, expected=value.detach().numpy()))
        found.append(GoldenCase(**common, cotangent=cotangent, expected=tuple(t.grad.numpy() for t in tensors)))
    for m, friction, strength in ((3, 0.5, 0.5), (4, 0.3, 1.5), (3, 0.8, 2.0)):
        p, n = contacts(rng, m)
        targets, cotangent = rng.standard_normal((3, 6)), rng.standard_normal(3)
        tensors = [torch.tensor(array, requires_grad=True) for array in (p, n, targets)]
        flat = torch.cat(list(torch_matrix(tensors[0], tensors[1], (0.0, 0.0, 0.0), 1.0)), dim=1)
        forces = np.array([best_forces(flat.detach().numpy(), target, friction, strength, 0.01) for target in targets])
        value = ((torch.tensor(forces) @ flat.T - strength * tensors[2]) ** 2).sum(dim=1)
        value.backward(torch.tensor(cotangent))
        common = {
            "function": "solvers.grasp_energy",
            "name": f"{m} contacts, friction {friction}, strength {strength:g}",
            "args": (p, n, targets),
            "options": {"friction": friction, "strength": strength},
            "source": f"quadprog 0.1.14 for the forces, {VERSION} for the gradient at fixed forces",
            "tolerance": Tolerance(1e-7, "relative_of_largest"),
        }
        found.append(GoldenCase(**common, expected=value.detach().numpy()))
        found.append(GoldenCase(**common, cotangent=cotangent, expected=tuple(t.grad.numpy() for t in tensors)))
    for number in range(4):
        root, a = rng.standard_normal((5, 5)), rng.standard_normal((7, 5))
        h, g, inside = root @ root.T + 0.1 * np.eye(5), 4 * rng.standard_normal(5), rng.standard_normal(5)
        low, high = a @ inside - rng.uniform(0.1, 1, 7), a @ inside + rng.uniform(0.1, 1, 7)
        # quadprog: min h/2 - g' x, C' x >= b, the first rows equations.
        equations = number % 2
        if equations:
            low[0] = high[0] = a[0] @ inside
        columns = np.concatenate([a[:equations], a[equations:], -a[equations:]]).T
        right = np.concatenate([low[:equations], low[equations:], -high[equations:]])
        x = quadprog.solve_qp(h, -g, columns, right, equations)[0]
        found.append(
            GoldenCase(
                "solvers.solve_qp",
                f"random program {number}",
                (h, g, a, low, high),
                x,
                "quadprog 0.1.14",
                tolerance=Tolerance(1e-8, "relative_of_largest"),
            )
        )
    axes = np.array([2.0, 1.0, 0.5])
    found.append(
        GoldenCase(
            "solvers.project_ellipsoid",
            "points on the axes by hand",
            (np.array([[5.0, 0.0, 0.0], [0.0, -3.0, 0.0], [0.0, 0.0, 0.1]]), axes),
            (np.diag([2.0, -1.0, 0.5]), -np.diag([1.0, -1.0, 1.0])),
            "by hand",
        )
    )
    p, n = contacts(rng, 4)
    leaf = torch.tensor(n, requires_grad=True)
    matrix = torch_matrix(torch.zeros(4, 3, dtype=torch.float64), leaf, (0.0, 0.0, 0.0), 1.0)
    tangents = matrix[:, :3, 1], matrix[:, :3, 2]
    cotangents = tuple(rng.standard_normal((4, 3)) for _ in range(2))
    sum((torch.tensor(c) * t).sum() for c, t in zip(cotangents, tangents, strict=True)).backward()
    source, close = f"{VERSION}: autograd", Tolerance(1e-12, "relative_of_largest")
    found += [
        GoldenCase(
            "solvers.contact_frame", "tangents are orthogonal", (np.array([[1.0, 0, 0], [0, 1.0, 0]]),),
            (np.array([[0.0, 1, 0], [0, 0, 1]]), np.array([[0.0, 0, 1], [1, 0, 0]])), "by hand",
        ),
        GoldenCase(
            "solvers.contact_frame", "four contacts", (n,), tuple(t.detach().numpy() for t in tangents), VERSION, close
        ),
        GoldenCase("solvers.contact_frame", "four contacts", (n,), (leaf.grad.numpy(),), source, close, {}, cotangents),
    ]  # fmt: skip
    leaves = [torch.tensor(a, requires_grad=True) for a in (p, n)]
    total = torch_matrix(*leaves, (0.1, 0.2, 0.3), 2.0)[:, :, 0].mean(0)
    energy = total @ total
    energy.backward()
    options = {"center": (0.1, 0.2, 0.3), "length": 2.0}
    grads = tuple(t.grad.numpy() for t in leaves)
    found += [
        GoldenCase(
            "solvers.equal_force_energy", "four contacts", (p, n), energy.detach().numpy(), VERSION, close, options
        ),
        GoldenCase("solvers.equal_force_energy", "four contacts", (p, n), grads, source, close, options, np.array(1.0)),
    ]
    points, axes = leaves = [
        torch.tensor(a, requires_grad=True) for a in (rng.standard_normal((4, 3)), np.array([1.0, 0.7, 0.5]))
    ]
    surface = points / (points / axes).norm(dim=1, keepdim=True)
    steep = surface / axes**2
    inward = -steep / steep.norm(dim=1, keepdim=True)
    (torch.tensor(cotangents[0]) * surface + torch.tensor(cotangents[1]) * inward).sum().backward()
    args = tuple(t.detach().numpy() for t in leaves)
    grads = tuple(t.grad.numpy() for t in leaves)
    found.append(GoldenCase("solvers.project_ellipsoid", "gradient", args, grads, source, close, {}, cotangents))
    # min x^2 + x without an active bound: x = -g / h, so dh = g / h^2 and dg = -1 / h.
    one = np.ones((1, 1))
    found.append(
        GoldenCase(
            "solvers.solve_qp", "gradient without an active bound", (2 * one, np.ones(1), one, np.array([-5.0]), np.array([5.0])),
            (0.25 * one, np.array([-0.5]), 0 * one, np.zeros(1), np.zeros(1)), "by hand", Tolerance(1e-9, "relative_of_largest"),
            cotangent=np.ones(1),
        )
    )  # fmt: skip
    found += [
        replace(case, function="solvers.solve_qp_admm", expected={"x": case.expected}, kind="fields")
        for case in found
        if case.function == "solvers.solve_qp" and case.kind == "value"
    ]
    return found
