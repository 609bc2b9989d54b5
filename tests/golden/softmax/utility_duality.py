"""Truth for utilities and probabilities: mpmath with 50 digits, SciPy, PyTorch autograd in float64, hand calculations."""

import mpmath
import numpy as np
import scipy
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
MPMATH = "mpmath, 50 digits"
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
SCIPY = f"scipy {scipy.__version__}"


def exact_scale(rows, choice):
    """Root of the mean of <p, u> - u_chosen by 170 bisections."""

    def slope(beta):
        total = mpmath.mpf(0)
        for row, chosen in zip(rows, choice, strict=True):
            terms = [mpmath.exp(beta * v) for v in row]
            total += mpmath.fsum(t * v for t, v in zip(terms, row, strict=True)) / mpmath.fsum(terms) - row[chosen]
        return total

    low, high = mpmath.mpf(0), mpmath.mpf(50)
    for _ in range(170):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return low


def cases():
    rng = np.random.default_rng(2305)
    found = []

    def add(function, name, args, expected, tolerance, source=TORCH, **more):
        found.append(
            GoldenCase(
                function=f"softmax.{function}", name=name, args=args, expected=expected, tolerance=tolerance,
                source=source, **more,
            )
        )  # fmt: skip

    p = [1 / (1 + mpmath.exp(-1)), 1 / (1 + mpmath.e)]
    entropy = -mpmath.fsum(v * mpmath.log(v) for v in p)
    for dtype in (np.float32, np.float64):
        label = np.dtype(dtype).name
        hand = (np.array([[1, 0]], dtype), np.array([1]))
        add(
            "soft_regret",
            f"{label}, gap 1",
            hand,
            np.array(float(mpmath.log(1 + mpmath.e))),
            Tolerance(2, "ulp"),
            MPMATH,
        )
        add(
            "soft_regret", f"{label}, gap 1", hand, (np.array([[float(p[0]), -float(p[0])]]), np.array(float(entropy))),
            Tolerance(4, "ulp"), MPMATH, options={"temperature": np.asarray(1.0, dtype)}, cotangent=np.array(1, dtype),
        )  # fmt: skip
        add("soft_regret", f"{label}, hard", hand, np.array(1.0), Tolerance(), "by hand", options={"temperature": 0.0})
        add(
            "soft_regret", f"{label}, hard", hand, (np.array([[1.0, -1.0]]),), Tolerance(), "by hand", options={"temperature": 0.0},
            cotangent=np.array(1, dtype),
        )  # fmt: skip
    utility, choice = 3 * rng.standard_normal((5, 6)), np.array([0, 5, 2, 2, 1])
    close = Tolerance(1e-13, "relative_of_largest")
    for temperature in (0.5, 1.0, 4.0):
        for reduction, cotangent in (
            ("mean", np.array(1.5)),
            ("sum", np.array(-0.5)),
            ("none", rng.standard_normal(5)),
        ):
            tu, tt = (torch.tensor(v, requires_grad=True) for v in (utility, np.array(temperature)))
            rows = tt * torch.logsumexp(tu / tt, dim=1) - tu[torch.arange(5), torch.tensor(choice)]
            value = {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction]
            value.backward(torch.tensor(cotangent))
            options = {"temperature": np.array(temperature), "reduction": reduction}
            name = f"{reduction}, temperature {temperature:g}"
            add("soft_regret", name, (utility, choice), value.detach().numpy(), close, options=options)
            grads = (tu.grad.numpy(), tt.grad.numpy())
            add(
                "soft_regret",
                name,
                (utility, choice),
                grads,
                Tolerance(1e-12, "relative_of_largest"),
                options=options,
                cotangent=cotangent,
            )
    # Cold, the slope in the temperature is a tiny entropy: the difference that automatic differentiation forms cancels.
    slopes, total = np.zeros((5, 6)), mpmath.mpf(0)
    for i, row in enumerate(utility):
        terms = [mpmath.exp(mpmath.mpf(float(v)) / mpmath.mpf(0.1)) for v in row]
        p = [t / mpmath.fsum(terms) for t in terms]
        slopes[i] = [float((v - (j == choice[i])) / 5) for j, v in enumerate(p)]
        total -= mpmath.fsum(v * mpmath.log(v) for v in p) / 5
    add(
        "soft_regret", "mean, temperature 0.1", (utility, choice), (slopes, np.array(float(total))), Tolerance(1e-12, "relative_of_largest"),
        MPMATH, options={"temperature": np.array(0.1)}, cotangent=np.array(1.0),
    )  # fmt: skip
    share, g = rng.dirichlet(np.ones(6), 5), rng.standard_normal(5)
    tu, tp = (torch.tensor(v, requires_grad=True) for v in (utility, share))
    value = (tp * tu).sum(dim=1) + 0.7 * torch.special.entr(tp).sum(dim=1)
    value.backward(torch.tensor(g))
    options = {"temperature": 0.7}
    add(
        "gibbs_value",
        "random distributions",
        (utility, share),
        value.detach().numpy(),
        Tolerance(1e-13, "relative"),
        options=options,
    )
    add(
        "gibbs_value",
        "random distributions",
        (utility, share),
        (tu.grad.numpy(), tp.grad.numpy()),
        close,
        options=options,
        cotangent=g,
    )
    at_best = scipy.special.softmax(utility / 0.7, axis=1)
    free = 0.7 * scipy.special.logsumexp(utility / 0.7, axis=1)
    add("gibbs_value", "at its maximum", (utility, at_best), free, Tolerance(1e-13, "relative"), SCIPY, options=options)

    g = rng.standard_normal((5, 6))
    for beta in (0.0, 0.6, 3.0):
        tu, tb = (torch.tensor(v, requires_grad=True) for v in (utility, np.array(beta)))
        value = torch.softmax(tb * tu, dim=1)
        value.backward(torch.tensor(g))
        options = {"inverse_temperature": np.array(beta)}
        add(
            "reestimate_probability",
            f"inverse temperature {beta:g}",
            (utility,),
            value.detach().numpy(),
            Tolerance(1e-13, "relative"),
            options=options,
        )
        grads = (tu.grad.numpy(), tb.grad.numpy())
        add(
            "reestimate_probability",
            f"inverse temperature {beta:g}",
            (utility,),
            grads,
            Tolerance(1e-12, "relative_of_largest"),
            options=options,
            cotangent=g,
        )

    rows = rng.standard_normal((4, 3))
    chosen = np.array([int(rows[0].argmax()), int(rows[1].argmax()), int(rows[2].argmax()), int(rows[3].argmin())])
    exact = [[mpmath.mpf(float(v)) for v in row] for row in rows]
    step, slopes = mpmath.mpf(10) ** -20, np.zeros((4, 3))
    for i, j in np.ndindex(4, 3):
        moved = [
            [[v + s * step * ((a, b) == (i, j)) for b, v in enumerate(row)] for a, row in enumerate(exact)]
            for s in (1, -1)
        ]
        slopes[i, j] = float((exact_scale(moved[0], chosen) - exact_scale(moved[1], chosen)) / (2 * step))
    add(
        "fit_inverse_temperature", "a root inside", (rows, chosen), (slopes,), Tolerance(1e-9, "relative_of_largest"),
        "mpmath, 50 digits: differences of the root", options={"tol": 1e-14}, cotangent=np.array(1.0),
    )  # fmt: skip
    add(
        "fit_inverse_temperature", "a root inside", (rows, chosen), {"inverse_temperature": np.array(float(exact_scale(exact, chosen)))},
        Tolerance(1e-9, "relative"), "mpmath, 50 digits: the root", options={"tol": 1e-14}, kind="fields",
    )  # fmt: skip
    add(
        "fit_inverse_temperature", "every choice is best", (rows, rows.argmax(axis=1)), (np.zeros((4, 3)),), Tolerance(),
        "by hand: held at the end of the search", cotangent=np.array(1.0),
    )  # fmt: skip

    start = rng.standard_normal(4)
    step = start - 0.3 * scipy.special.softmax(start)
    step[2] += 0.3
    add(
        "utility_sgd_step",
        "one step",
        (start, 2),
        step,
        Tolerance(1e-14, "relative_of_largest"),
        SCIPY,
        options={"step": 0.3},
    )
    probabilities = np.array([[0.4, 0.35, 0.25], [0.1, 0.8, 0.1]])
    near = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.8], [0.0, 0.8, 1.0]])
    add("decide", "best", (probabilities,), np.array([0, 1]), Tolerance(), "by hand")
    add(
        "decide",
        "largest expected gain",
        (probabilities,),
        np.array([1, 1]),
        Tolerance(),
        "by hand",
        options={"rule": "mbr", "gain": near},
    )
    other = utility + 2 * rng.standard_normal((5, 6))
    for name, pair in (("distinct", (utility, other)), ("with ties", (utility.round(), other.round()))):
        tau = np.mean([scipy.stats.kendalltau(a, b).statistic for a, b in zip(*pair, strict=True)])
        top1 = np.mean(pair[0].argmax(axis=1) == pair[1].argmax(axis=1))
        add("ordinal_agreement", name, pair, (np.array(tau), np.array(top1)), Tolerance(1e-13, "relative"), SCIPY)
    return found
