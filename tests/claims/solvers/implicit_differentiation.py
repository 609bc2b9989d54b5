"""Evidence for implicit differentiation: precision at approximate solutions, modularity, a dual SVM."""

from functools import cache

import numpy as np
from sklearn.datasets import load_diabetes, load_iris

from refnorm.claims import Claim
from refnorm.solvers import (
    GradientStep,
    MirrorDescent,
    NewtonStep,
    ProjectedGradient,
    Stationary,
    root_jvp,
    root_vjp,
    simplex_projection,
    simplex_projection_vjp,
)

PENALTIES = (0.01, 0.1, 1.0)
ITERATES = 500


def claims() -> list[Claim]:
    return [precision(), modularity(), dual_svm()]


@cache
def diabetes():
    data = load_diabetes()
    x, y = data.data - data.data.mean(axis=0), data.target - data.target.mean()
    return x / x.std(axis=0), y / y.std()


def ridge_gradient_vjp(w, penalty):
    """Gradient of |x w - y|^2 / (2 n) + penalty |w|^2 / 2 on the diabetes data."""
    x, y = diabetes()

    def pullback(u):
        return x.T @ (x @ u) / len(y) + penalty * u, np.asarray(w @ u)

    return x.T @ (x @ w - y) / len(y) + penalty * w, pullback


def ridge_run(penalty):
    """Errors of gradient descent's iterates, of the implicit derivative there, and of the unrolled one."""
    x, y = diabetes()
    n, d = x.shape
    hessian = x.T @ x / n + penalty * np.eye(d)
    eigenvalues = np.linalg.eigvalsh(hessian)
    exact = np.linalg.solve(hessian, x.T @ y / n)
    exact_slope = -np.linalg.solve(hessian, exact)
    step = 1 / eigenvalues[-1]
    problem = Stationary(ridge_gradient_vjp)
    w, unrolled, errors = np.zeros(d), np.zeros(d), []
    for _ in range(ITERATES):
        # The recursion and its derivative in the penalty.
        unrolled = unrolled - step * (hessian @ unrolled + w)
        w = w - step * (hessian @ w - x.T @ y / n)
        implicit, _ = root_jvp(problem, w, (np.asarray(penalty),), (np.asarray(1.0),))
        errors.append([np.linalg.norm(e) for e in (w - exact, implicit - exact_slope, unrolled - exact_slope)])
    # A does not depend on w, B = w has Lipschitz constant 1: the constant is 1 / smallest eigenvalue.
    return np.array(errors).T, 1 / eigenvalues[0], eigenvalues[-1] / eigenvalues[0]


def precision() -> Claim:
    figures: dict[str, float | int | str] = {}
    holds = True
    for penalty in PENALTIES:
        (iterate, implicit, unrolled), constant, condition = ridge_run(penalty)
        used = iterate > 1e-10
        excess = float((implicit[used] / (constant * iterate[used])).max())
        slope = float(np.polyfit(np.log(iterate[used]), np.log(implicit[used]), 1)[0])
        worse = float((unrolled[used] > implicit[used]).mean())
        factor = float(np.median(unrolled[used] / implicit[used]))
        # At the bound itself (the iterate's error is the slowest eigenvector) both sides round.
        holds &= excess <= 1 + 1e-6 and abs(slope - 1) <= 0.1 and worse >= 0.95 and factor >= 1.5
        figures |= {
            f"penalty {penalty:g}: condition number": float(condition),
            f"penalty {penalty:g}: largest Jacobian error / bound": excess,
            f"penalty {penalty:g}: slope of Jacobian error against iterate error": slope,
            f"penalty {penalty:g}: iterates at which unrolling is worse": worse,
            f"penalty {penalty:g}: median factor by which it is worse": factor,
        }
    return Claim(
        statement="The implicit derivative at an approximate solution is wrong by at most a constant times "
        "the solution's error, and less wrong than the derivative of the unrolled solver (ridge "
        "regression, diabetes data, 500 gradient steps).",
        expected="no error above the bound while the iterate's is above 1e-10; log-log slope 1 within 0.1; "
        "unrolling worse at 95 % of the iterates or more, by a median factor of 1.5 or more",
        holds=bool(holds),
        figures=figures,
    )


def modularity() -> Claim:
    penalty = np.asarray(0.1)
    x, y = diabetes()
    w = np.linalg.solve(x.T @ x / len(y) + penalty * np.eye(10), x.T @ y / len(y))
    dw = np.random.default_rng(0).standard_normal(10)
    conditions = {
        "stationary": Stationary(ridge_gradient_vjp),
        "gradient step": GradientStep(ridge_gradient_vjp, 0.05),
        "Newton step": NewtonStep(ridge_gradient_vjp),
    }
    values = {
        f"{name}, {solver}": float(root_vjp(problem, w, (penalty,), dw, linear_solver=solver, tol=1e-14)[0][0])
        for name, problem in conditions.items()
        for solver in ("lu", "cg")
    }
    spread = (max(values.values()) - min(values.values())) / abs(values["stationary, lu"])
    return Claim(
        statement="Condition and linear solver are interchangeable: three conditions for the same solution "
        "and two solvers give one hyper-gradient.",
        expected="relative spread of six values below 1e-9",
        holds=bool(spread < 1e-9),
        figures={"hyper-gradient": values["stationary, lu"], "relative spread": float(spread)},
    )


@cache
def svm_data():
    rng = np.random.default_rng(0)
    data = load_iris()
    chosen = rng.permutation(len(data.target))[:40]
    x = data.data[chosen]
    return (x - x.mean(axis=0)) / x.std(axis=0), np.eye(3)[data.target[chosen]], rng.standard_normal((4, 3))


def dual_gradient_vjp(dual, theta):
    """Gradient of theta |W|^2 / 2 + <dual, Y> with W = X^T (Y - dual) / theta."""
    x, labels, _ = svm_data()
    image = x @ (x.T @ (labels - dual))

    def pullback(u):
        return x @ (x.T @ u) / theta, np.asarray((u * image).sum() / theta**2)

    return labels - image / theta, pullback


def solve_dual(theta):
    """Accelerated projected gradient with restarts, until the iterate stands still."""
    x, labels, _ = svm_data()
    step = theta / np.linalg.norm(x, 2) ** 2
    dual = point = np.full(labels.shape, 1 / 3)
    momentum = 1.0
    for _ in range(50_000):
        after = simplex_projection(point - step * (labels - x @ (x.T @ (labels - point)) / theta))
        if np.abs(after - dual).max() < 1e-15:
            break
        if ((point - after) * (after - dual)).sum() > 0:
            momentum = 1.0
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        point = after + (momentum - 1) / following * (after - dual)
        dual, momentum = after, following
    return after


def dual_svm() -> Claim:
    x, labels, direction = svm_data()
    theta = np.asarray(1.0)

    def outer(t):
        return float((direction * (x.T @ (labels - solve_dual(t)) / t)).sum())

    dual = solve_dual(1.0)
    # loss = <V, W>, W = X^T (Y - dual) / theta: one part through dual, one straight from theta.
    ddual, direct = -x @ direction, -float((direction * (x.T @ (labels - dual))).sum())
    step = 1 / np.linalg.norm(x, 2) ** 2
    values = {}
    for name, problem in (
        ("projected gradient", ProjectedGradient(dual_gradient_vjp, simplex_projection_vjp, step)),
        ("mirror descent", MirrorDescent(dual_gradient_vjp, 1.0)),
    ):
        (through,), _ = root_vjp(problem, dual, (theta,), ddual)
        values[name] = direct + float(through)
    h = 1e-4
    values["central differences"] = (outer(1 + h) - outer(1 - h)) / (2 * h)
    spread = max(values.values()) - min(values.values())
    return Claim(
        statement="On the dual of a multiclass support vector machine (iris, 40 points, 120 unknowns on 40 "
        "simplices) the projected-gradient and the mirror-descent condition give the hyper-gradient.",
        expected="both conditions and central differences of the whole training agree to 1e-6",
        holds=bool(spread < 1e-6),
        figures={f"hyper-gradient, {name}": value for name, value in values.items()}
        | {"zero coordinates of the solution": int((dual == 0).sum())},
    )


def figure():
    """Error of the derivative against the error of the solution, implicit and unrolled."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained", sharey=True)
    for ax, penalty in zip(axes, PENALTIES, strict=True):
        (iterate, implicit, unrolled), constant, _ = ridge_run(penalty)
        used = iterate > 1e-10
        ax.loglog(iterate[used], unrolled[used], label="unrolled")
        ax.loglog(iterate[used], implicit[used], label="implicit")
        ax.loglog(iterate[used], constant * iterate[used], "k:", label="bound")
        ax.set(xlabel="error of the solution", title=f"penalty {penalty:g}")
    axes[0].set_ylabel("error of the derivative")
    axes[0].legend()
    return fig
