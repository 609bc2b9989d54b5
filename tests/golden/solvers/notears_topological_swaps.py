"""Truth for TOPO: matrix functions in mpmath, regressions of scikit-learn, hand calculations."""

import mpmath
import numpy as np
from sklearn.linear_model import Lasso

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50


def exact_acyclicity(weight, kind, transform, s):
    """Value and gradient, from matrix functions in 50 digits."""
    d = len(weight)
    w = mpmath.matrix([[mpmath.mpf(float(v)) for v in row] for row in weight])
    a = w.apply(abs) if transform == "abs" else w.apply(lambda v: v * v)
    eye = mpmath.eye(d)
    if kind == "logdet":
        matrix = mpmath.mpf(s) * eye - a
        value, grad = d * mpmath.log(s) - mpmath.log(mpmath.det(matrix)), mpmath.inverse(matrix).T
    elif kind == "exp":
        power, total = eye.copy(), eye.copy()
        for k in range(1, 80):
            power = power * a / k
            total = total + power
        value, grad = sum(total[i, i] for i in range(d)) - d, total.T
    else:
        power = (eye + a / d) ** (d - 1)
        whole = power * (eye + a / d)
        value, grad = sum(whole[i, i] for i in range(d)) - d, power.T
    inner = w.apply(mpmath.sign) if transform == "abs" else 2 * w
    return float(value), np.array([[float(grad[i, j] * inner[i, j]) for j in range(d)] for i in range(d)])


def regressions(data, topo, l1):
    weight, loss = np.zeros((data.shape[1],) * 2), 0.0
    for place, node in enumerate(topo):
        before, target = list(topo[:place]), data[:, node]
        if before and l1:
            model = Lasso(alpha=l1, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(data[:, before], target)
            weight[before, node] = model.coef_
        elif before:
            weight[before, node] = np.linalg.lstsq(data[:, before], target, rcond=None)[0]
        residual = target - data @ weight[:, node]
        loss += residual @ residual / (2 * len(data)) + l1 * np.abs(weight[:, node]).sum()
    return weight, np.array(loss)


def cases():
    rng = np.random.default_rng(20230529)
    chain = np.array([[0.0, 3.0, 0.0], [0.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    found = []
    for kind in ("logdet", "exp", "poly"):
        for transform, s in (("abs", 1.0), ("square", 1.5)):
            weight = 0.15 * rng.standard_normal((5, 5))
            weight[0, 1] = weight[3, 2] = 0
            value, grad = exact_acyclicity(weight, kind, transform, s)
            common = {
                "function": "solvers.acyclicity",
                "name": f"five variables with cycles, {kind}, {transform}",
                "args": (weight,),
                "options": {"kind": kind, "transform": transform, "s": s},
                "source": "mpmath, 50 digits",
            }
            found.append(GoldenCase(**common, expected=np.array(value), tolerance=Tolerance(1e-12, "relative")))
            tolerance = Tolerance(1e-13, "relative_of_largest")
            found.append(GoldenCase(**common, cotangent=np.array(1.0), expected=(grad,), tolerance=tolerance))
        found.append(
            GoldenCase(
                function="solvers.acyclicity",
                name=f"a chain with large weights, {kind}",
                args=(chain,),
                options={"kind": kind},
                expected=np.array(0.0),
                source="by hand: no cycle",
            )
        )
    triangle = chain.copy()
    triangle[0, 2] = 0.5
    found.append(
        GoldenCase(
            function="solvers.acyclicity",
            name="gradient of an acyclic graph",
            args=(triangle,),
            cotangent=np.array(1.0),
            expected=(np.zeros((3, 3)),),
            source="by hand: no path leads back along any edge",
        )
    )
    data = np.sqrt(2.0) * np.array([[1.0, 2.0], [0.0, 1.0]])
    for topo, weight, loss in (([0, 1], [[0, 2], [0, 0]], 1.0), ([1, 0], [[0, 0], [0.4, 0]], 2.6)):
        found.append(
            GoldenCase(
                function="solvers.fit_order",
                name=f"covariance ((1, 2), (2, 5)), order {topo}",
                args=(data, topo),
                expected=(np.array(weight, float), np.array(loss)),
                tolerance=Tolerance(8, "ulp_of_largest"),
                source="by hand: the residual variances are 1 and 1, or 5 and 1 - 4/5",
            )
        )
    data = rng.standard_normal((40, 6)) @ (np.eye(6) + 0.5 * rng.standard_normal((6, 6)))
    for l1 in (0.0, 0.2):
        topo = rng.permutation(6).tolist()
        weight, loss = regressions(data, topo, l1)
        found.append(
            GoldenCase(
                function="solvers.fit_order",
                name=f"six variables, l1 {l1:g}",
                args=(data, topo),
                options={"l1": l1},
                expected=(weight, loss),
                tolerance=Tolerance(1e-11 if l1 == 0 else 1e-8, "relative_of_largest"),
                source="numpy.linalg.lstsq" if l1 == 0 else "scikit-learn's Lasso",
            )
        )
    truth, other = np.zeros((4, 4)), np.zeros((4, 4))
    truth[[0, 1, 2], [1, 2, 3]] = 1
    other[[1, 1, 0], [0, 2, 3]] = -2
    found.append(
        GoldenCase(
            function="solvers.structural_hamming",
            name="one reversed, one missing, one too many",
            args=(other, truth),
            expected=np.array(3),
            source="by hand",
        )
    )
    x = np.array([[1.0, 2.0], [-1.0, -2.0], [0.0, 1.0], [0.0, -1.0]])
    found.append(
        GoldenCase(
            function="solvers.kkt_residual",
            name="an empty graph of two variables",
            args=(x, np.zeros((2, 2))),
            expected=np.array(1.0),
            source="by hand: covariance 4 / 4",
        )
    )
    found += [
        GoldenCase("solvers.swap", "first and last", ([2, 0, 1], 2, 1), [1, 0, 2], "by hand"),
        # In the order 1, 0, 2 the pairs (later, earlier) are (0, 1), (2, 0) and (2, 1).
        GoldenCase(
            "solvers.swap_candidates", "two of three",
            (np.array([[0.0, 5, 9], [8, 0, 7], [4, 6, 0]]), [1, 0, 2], 2), [(2, 0), (0, 1)], "by hand: gradients 5, 4, 6",
        ),
        GoldenCase(
            "solvers.threshold_graph", "entries at the threshold stay", (np.array([[0.0, 0.3], [-0.5, 0.29]]), 0.3),
            np.array([[0.0, 0.3], [-0.5, 0.0]]), "by hand",
        ),
    ]  # fmt: skip
    return found
