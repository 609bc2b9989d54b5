"""Truth for temperature networks: mpmath with 50 digits, PyTorch modules and autograd in float64."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.softmax import BimodalState, PrototypeTempNetParams, TempNetParams

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def pooled(keys, values, log_sharpening, pool_weight, pool_bias, lowest, highest):
    excess = torch.softmax(keys / torch.exp(log_sharpening), dim=1) - 1 / keys.shape[1]
    return lowest + (highest - lowest) * torch.sigmoid((pool_weight * excess * values).sum(dim=1) + pool_bias)


def torch_tempnet(weight1, bias1, weight2, bias2, log_sharpening, pool_weight, pool_bias, logits, lowest, highest):
    z = torch.nn.functional.normalize(logits, dim=1)
    hidden = torch.sigmoid(torch.nn.functional.linear(z, weight1.T, bias1))
    a = torch.nn.functional.linear(hidden, weight2.T, bias2)
    return pooled(a, a, log_sharpening, pool_weight, pool_bias, lowest, highest)


def torch_prototypes(weight, bias, prototypes, log_sharpening, pool_weight, pool_bias, x, lowest, highest):
    features = torch.sigmoid(torch.nn.functional.linear(x, weight.T, bias))
    s = features @ torch.nn.functional.normalize(prototypes, dim=1).T
    return pooled(s, torch.sigmoid(s), log_sharpening, pool_weight, pool_bias, lowest, highest)


def exact_temperature(row, radius):
    """Root of KL(softmax(row / t) || uniform) = radius by 170 bisections."""

    def kl(t):
        terms = [mpmath.exp(v / t) for v in row]
        total = mpmath.fsum(terms)
        return mpmath.log(len(row)) + mpmath.fsum(e / total * mpmath.log(e / total) for e in terms)

    low, high = mpmath.mpf("0.01"), mpmath.mpf(5)
    for _ in range(170):
        middle = (low + high) / 2
        low, high = (middle, high) if kl(middle) > radius else (low, middle)
    return low


def torch_side(similarity, temperature, old, radius, momentum):
    rows = len(similarity)
    delta = similarity - torch.diagonal(similarity)[:, None]
    off = ~torch.eye(rows, dtype=torch.bool)
    terms = torch.exp(delta / temperature[:, None]) * off
    total = terms.sum(dim=1)
    if old is not None:
        total = (1 - momentum) * old[0] * torch.exp(old[1]) + momentum * total
    omega = (terms / total[:, None]).detach()
    slope = torch.log(total / (rows - 1)) + radius - (omega * delta).sum(dim=1) / temperature
    shift = torch.where(off, delta / temperature[:, None], -torch.inf).max(dim=1).values
    shift = shift if old is None else torch.maximum(shift, old[1])
    running = ((total * torch.exp(-shift)).detach().numpy(), shift.detach().numpy())
    return (omega * delta).sum(dim=1).mean(), (temperature * slope.detach()).mean(), running


def cases():
    rng = np.random.default_rng(2404)
    found = []

    def add(function, name, args, expected, tolerance, source=TORCH, **more):
        found.append(
            GoldenCase(
                function=f"softmax.{function}", name=name, args=args, expected=expected, tolerance=tolerance,
                source=source, **more,
            )
        )  # fmt: skip

    hand, radius = (np.array([[1.0, 0.0]]), np.array([0]), np.array([1.0])), mpmath.mpf(0.1)
    loss = mpmath.log(1 + mpmath.exp(-1)) + radius - mpmath.log(2)
    p = 1 / (1 + mpmath.exp(-1))
    slope = radius - mpmath.log(2) - p * mpmath.log(p) - (1 - p) * mpmath.log(1 - p)
    options = {"radius": 0.1}
    add(
        "robust_temperature_loss",
        "two classes",
        hand,
        np.array(float(loss)),
        Tolerance(8, "ulp"),
        "mpmath, 50 digits",
        options=options,
    )
    add(
        "robust_temperature_loss", "two classes", hand, (np.array([[float(p - 1), float(1 - p)]]), np.array([float(slope)])),
        Tolerance(1e-14, "relative"), "mpmath, 50 digits", options=options, cotangent=np.array(1.0),
    )  # fmt: skip
    logits, target, cool = 3 * rng.standard_normal((5, 9)), np.array([0, 8, 3, 3, 1]), rng.uniform(0.2, 2, 5)
    mask = np.array([True, False, True, True, False])
    for reduction, cotangent in (("mean", np.array(1.5)), ("sum", np.array(-0.5)), ("none", rng.standard_normal(5))):
        for masked in (False, True):
            th, tt = (torch.tensor(v, requires_grad=True) for v in (logits, cool))
            rows = tt * torch.nn.functional.cross_entropy(th / tt[:, None], torch.tensor(target), reduction="none")
            rows = rows + (0.4 - np.log(9)) * tt
            weight = torch.tensor(mask if masked else np.ones(5, bool)).double()
            value = {"mean": (rows * weight).sum() / weight.sum(), "sum": (rows * weight).sum(), "none": rows * weight}[
                reduction
            ]
            value.backward(torch.tensor(cotangent))
            options = {"radius": 0.4, "reduction": reduction, "mask": mask if masked else None}
            name, limit = f"{reduction}, {'mask' if masked else 'all rows'}", Tolerance(1e-13, "relative_of_largest")
            add("robust_temperature_loss", name, (logits, target, cool), value.detach().numpy(), limit, options=options)
            grads = (th.grad.numpy(), tt.grad.numpy())
            add(
                "robust_temperature_loss",
                name,
                (logits, target, cool),
                grads,
                limit,
                options=options,
                cotangent=cotangent,
            )

    d, hidden, count = 6, 5, 7
    x, dt = 2 * rng.standard_normal((4, d)), rng.standard_normal(4)
    for normal in (True, False):
        if normal:
            shapes = [(d, hidden), (hidden,), (hidden, hidden), (hidden,), (), (hidden,), ()]
            function, record, network = "tempnet", TempNetParams, torch_tempnet
        else:
            shapes = [(d, hidden), (hidden,), (count, hidden), (), (count,), ()]
            function, record, network = "prototype_tempnet", PrototypeTempNetParams, torch_prototypes
        arrays = [np.asarray(rng.standard_normal(s)) for s in shapes]
        for lowest, highest in ((0.01, 1.2), (0.5, 5.0)):
            leaves = [torch.tensor(v, requires_grad=True) for v in (*arrays, x)]
            value = network(*leaves, lowest, highest)
            value.backward(torch.tensor(dt))
            grads = [v.grad.numpy() for v in leaves]
            options, name = {"lowest": lowest, "highest": highest}, f"between {lowest:g} and {highest:g}"
            args = (record(*arrays), x)
            add(function, name, args, value.detach().numpy(), Tolerance(1e-14, "relative"), options=options)
            add(
                function,
                name,
                args,
                (record(*grads[:-1]), grads[-1]),
                Tolerance(1e-12, "relative_of_largest"),
                options=options,
                cotangent=dt,
            )

    def pair(state, momentum, name):
        arrays = [
            rng.standard_normal((5, 3)),
            rng.standard_normal((5, 3)),
            rng.uniform(0.3, 1, 5),
            rng.uniform(0.3, 1, 5),
        ]
        image, text, ti, tt = leaves = [torch.tensor(v, requires_grad=True) for v in arrays]
        similarity = image @ text.T
        old = (None, None)
        if state is not None:
            sums = [torch.tensor(v) for v in (state.image_sum, state.image_shift, state.text_sum, state.text_shift)]
            old = (sums[:2], sums[2:])
        sides = torch_side(similarity, ti, old[0], 0.7, momentum), torch_side(similarity.T, tt, old[1], 0.7, momentum)
        feature, temperature = sides[0][0] + sides[1][0], sides[0][1] + sides[1][1]
        (1.5 * feature - 0.5 * temperature).backward()
        args = (*arrays, state)
        options = {"radius": 0.7, "momentum": momentum}
        value = (feature.detach().numpy(), temperature.detach().numpy(), BimodalState(*sides[0][2], *sides[1][2]))
        add("bimodal_temp_loss", name, args, value, Tolerance(1e-12, "relative"), options=options)
        add(
            "bimodal_temp_loss", name, args, tuple(v.grad.numpy() for v in leaves), Tolerance(1e-12, "relative_of_largest"),
            options=options, cotangent=(np.array(1.5), np.array(-0.5)),
        )  # fmt: skip

    rows, dt = 2 * rng.standard_normal((2, 5)), rng.standard_normal(2)
    step, slopes = mpmath.mpf(10) ** -20, np.zeros((2, 5))
    for i, j in np.ndindex(2, 5):
        moved = [[mpmath.mpf(float(v)) + sign * step * (n == j) for n, v in enumerate(rows[i])] for sign in (1, -1)]
        difference = exact_temperature(moved[0], mpmath.mpf(0.6)) - exact_temperature(moved[1], mpmath.mpf(0.6))
        slopes[i, j] = float(dt[i] * difference / (2 * step))
    add(
        "solve_temperature", "between the bounds", (rows,), (slopes,), Tolerance(1e-11, "relative_of_largest"),
        "mpmath, 50 digits: differences of the root", options={"radius": 0.6, "tol": 1e-14}, cotangent=dt,
    )  # fmt: skip
    best = [float(exact_temperature([mpmath.mpf(float(v)) for v in row], mpmath.mpf(0.6))) for row in rows]
    add(
        "solve_temperature", "between the bounds", (rows,), {"temperature": np.array(best)}, Tolerance(1e-9, "relative"),
        "mpmath, 50 digits: the root", options={"radius": 0.6, "tol": 1e-14}, kind="fields",
    )  # fmt: skip
    add(
        "solve_temperature", "equal logits and a radius beyond log V", (np.array([[1.0, 1, 1], [3, 0, 0]]),), (np.zeros((2, 3)),),
        Tolerance(), "by hand: both at the lower bound", options={"radius": 1.2}, cotangent=np.ones(2),
    )  # fmt: skip

    pair(None, 0.8, "first time")
    pair(BimodalState(*rng.uniform(0.5, 2, (4, 5))), 0.4, "running sums")
    return found
