"""Truth for the functional Tucker decomposition: matrix exponentials in mpmath, dense Gaussian-process regression."""

import mpmath
import numpy as np
from sklearn.gaussian_process.kernels import Matern

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.solvers import MaternSDE

mpmath.mp.dps = 60


def exact_transition(smoothness, length_scale, variance, gap):
    """Return expm(F gap) and P - A P A^T, by the series of the exponential in 60 digits."""
    length, gap = mpmath.mpf(length_scale), mpmath.mpf(gap)
    if smoothness == 0.5:
        drift, stationary = mpmath.matrix([[-1 / length]]), mpmath.matrix([[mpmath.mpf(variance)]])
    else:
        rate = mpmath.sqrt(3) / length
        drift = mpmath.matrix([[0, 1], [-(rate**2), -2 * rate]])
        stationary = mpmath.mpf(variance) * mpmath.diag([1, rate**2])
    a = mpmath.expm(drift * gap)
    q = stationary - a * stationary * a.T
    return tuple(np.array(m.tolist(), dtype=float) for m in (a, q))


def smoother_matrix(times, noise, smoothness, length_scale, variance):
    """The matrix that maps observations to the posterior mean, K (K + V)^-1, in mpmath."""
    r = noise.shape[1]
    kernel = np.kron(variance * Matern(length_scale, nu=smoothness)(times[:, None]), np.eye(r))
    observed = mpmath.matrix(kernel.tolist())
    for j, block in enumerate(noise):
        for a in range(r):
            for b in range(r):
                observed[j * r + a, j * r + b] += mpmath.mpf(float(block[a, b]))
    return np.array((mpmath.matrix(kernel.tolist()) * observed**-1).tolist(), dtype=float)


def cases():
    rng = np.random.default_rng(20231108)
    found = []
    for smoothness, length, variance, gap in (
        (0.5, 1.0, 1.0, 0.7),
        (0.5, 0.1, 2.0, 1e-9),
        (1.5, 1.0, 1.0, 0.7),
        (1.5, 0.1, 3.0, 0.02),
        (1.5, 0.3, 1.0, 1e-7),
        (1.5, 0.01, 1.0, 5.0),
        (1.5, 1.0, 1.0, 0.0),
    ):
        transition, noise = exact_transition(smoothness, length, variance, gap)
        found.append(
            GoldenCase(
                function="solvers.sde_transition",
                name=f"smoothness {smoothness:g}, length {length:g}, gap {gap:g}",
                args=(MaternSDE(smoothness, length, variance), np.array(gap)),
                expected=(transition, noise),
                tolerance=Tolerance(1e-12, "relative"),
                source="mpmath, 60 digits: matrix exponential, and the stationary covariance minus its image",
            )
        )
    found.append(
        GoldenCase(
            function="solvers.sde_transition",
            name="a gap of log 2",
            args=(MaternSDE(0.5, 1.0, 1.0), np.array(np.log(2))),
            expected=(np.array([[0.5]]), np.array([[0.75]])),
            tolerance=Tolerance(2, "ulp"),
            source="by hand: 1/2 and 3/4",
        )
    )
    found.append(
        GoldenCase(
            function="solvers.matern_sde",
            name="the record of its arguments",
            args=(1.5, 0.25),
            expected={"smoothness": 1.5, "length_scale": 0.25, "variance": 1.0},
            source="by hand",
            kind="fields",
        )
    )
    for steps, r, smoothness in ((7, 1, 0.5), (9, 1, 1.5), (6, 3, 1.5), (1, 2, 0.5)):
        times = np.sort(rng.random(steps))
        root = rng.standard_normal((steps, r, r))
        noise = root @ root.swapaxes(1, 2) + 0.2 * np.eye(r)
        y, cotangent = rng.standard_normal((2, steps, r))
        matrix = smoother_matrix(times, noise, smoothness, 0.4, 1.5)
        common = {
            "function": "solvers.smoothed_mean",
            "name": f"{steps} times, {r} processes, smoothness {smoothness:g}",
            "args": (y,),
            "options": {"times": times, "noise": noise, "sde": MaternSDE(smoothness, 0.4, 1.5)},
            "tolerance": Tolerance(1e-11, "relative_of_largest"),
            "source": "scikit-learn's Matern kernel, dense solution in mpmath",
        }
        found.append(GoldenCase(**common, expected=(matrix @ y.ravel()).reshape(y.shape)))
        if smoothness == 1.5:
            smoother = {
                "function": "solvers.kalman_smoother",
                "args": (times, y, noise, MaternSDE(smoothness, 0.4, 1.5)),
                "options": {},
                "expected": {"mean": (matrix @ y.ravel()).reshape(y.shape)},
                "kind": "fields",
            }
            found.append(GoldenCase(**common | smoother))
        back = (matrix.T @ cotangent.ravel()).reshape(y.shape)
        found.append(GoldenCase(**common, cotangent=cotangent, expected=(back,)))
    return found
