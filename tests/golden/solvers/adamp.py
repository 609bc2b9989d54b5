"""Truth for AdamP and SGDP: hand calculations, the authors' package, torch.optim, exact projections."""

import warnings

import mpmath
import numpy as np
import torch

with warnings.catch_warnings():
    # The package tells about its own import of a deprecated torch name.
    warnings.simplefilter("ignore")
    import adamp

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
SHAPES = ((4, 5), (3, 2, 1, 2), (5,))


def torch_run(optimizer_class, start, gradients, **options):
    params = [torch.tensor(array, requires_grad=True) for array in start]
    optimizer = optimizer_class(params, **options)
    for gradient in gradients:
        for param, grad in zip(params, gradient, strict=True):
            param.grad = torch.tensor(grad)
        optimizer.step()
    return [param.detach().numpy() for param in params]


def gradients_for(start, steps, rng, kind):
    """Gradients orthogonal to the start by channel, by layer, or neither; small steps keep them so."""
    found = []
    for _ in range(steps):
        grads = [rng.standard_normal(array.shape) for array in start]
        for array, grad in zip(start, grads, strict=True):
            if array.ndim > 1 and kind != "random":
                view = (len(array), -1) if kind == "channel" else (1, -1)
                rows, unit = grad.reshape(view), array.reshape(view)
                unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
                rows -= unit * (unit * rows).sum(axis=1, keepdims=True)
        found.append([grad.astype(array.dtype) for grad, array in zip(grads, start, strict=True)])
    return found


def exact_projection(param, update, rows, eps):
    p, u = param.reshape(rows, -1), update.reshape(rows, -1)
    result = np.empty(p.shape)
    for i in range(rows):
        ps, us = ([mpmath.mpf(float(v)) for v in a[i]] for a in (p, u))
        length = mpmath.sqrt(mpmath.fsum(v * v for v in ps)) + mpmath.mpf(eps)
        radial = mpmath.fsum(a * b for a, b in zip(ps, us, strict=True)) / length
        result[i] = [float(b - a / length * radial) for a, b in zip(ps, us, strict=True)]
    return result.reshape(param.shape)


def cases():
    rng = np.random.default_rng(20200615)
    start, slope = np.array([[3.0, 4.0]]), np.array([[-0.8, 0.6]])
    found = [
        GoldenCase(
            function="solvers.AdamP",
            name="one step by hand, eps 0",
            kind="optimizer",
            args=(start, [slope]),
            options={"learning_rate": 0.1, "weight_decay": 0.5, "eps": 0.0},
            expected=np.array([[3.097, 3.896]]),
            tolerance=Tolerance(4, "ulp"),
            source="by hand: update (-0.1, 0.1), radial part 0.02, decay factor 0.995",
        ),
        GoldenCase(
            function="solvers.SGDP",
            name="one step by hand",
            kind="optimizer",
            args=(start, [slope]),
            options={"learning_rate": 0.1, "momentum": 0.9},
            expected=np.array([[3.08, 3.94]]),
            tolerance=Tolerance(4, "ulp"),
            source="by hand: the gradient is orthogonal to the weight",
        ),
    ]
    package = "adamp 0.3.0"
    torch_version = f"torch {torch.__version__.split('+')[0]}"
    for kind in ("random", "channel", "layer"):
        for dtype in (np.float64, np.float32) if kind == "channel" else (np.float64,):
            start = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
            gradients = gradients_for(start, 3, rng, kind)
            name = np.dtype(dtype).name
            # Rounding of three steps; the threshold is far from every cosine.
            tolerance = Tolerance(1e-13 if dtype == np.float64 else 3e-6, "relative_of_largest")
            for options in (
                {"weight_decay": 0.1, "betas": (0.9, 0.99)},
                {"weight_decay": 0.05, "nesterov": True, "delta": 0.2, "weight_decay_ratio": 0.3},
            ):
                translated = {"wd_ratio" if k == "weight_decay_ratio" else k: v for k, v in options.items()}
                found.append(
                    GoldenCase(
                        function="solvers.AdamP",
                        name=f"{kind} gradients, {name}, nesterov {'nesterov' in options}",
                        kind="optimizer",
                        args=(start, gradients),
                        options={"learning_rate": 1e-4} | options,
                        expected=torch_run(adamp.AdamP, start, gradients, lr=1e-4, **translated),
                        tolerance=tolerance,
                        source=package,
                    )
                )
            for options in (
                {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1, "project_buffer": True},
                {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
            ):
                translated = {k: v for k, v in options.items() if k != "project_buffer"}
                found.append(
                    GoldenCase(
                        function="solvers.SGDP",
                        name=f"{kind} gradients, {name}, nesterov {'nesterov' in options}",
                        kind="optimizer",
                        args=(start, gradients),
                        options={"learning_rate": 1e-4} | options,
                        expected=torch_run(adamp.SGDP, start, gradients, lr=1e-4, **translated),
                        tolerance=tolerance,
                        source=package,
                    )
                )
    start = [rng.standard_normal(shape) for shape in SHAPES]
    gradients = gradients_for(start, 6, rng, "channel")
    found.append(
        GoldenCase(
            function="solvers.AdamP",
            name="a test that never fires is AdamW",
            kind="optimizer",
            args=(start, gradients),
            options={"learning_rate": 0.01, "weight_decay": 0.1, "delta": 1e-30},
            expected=torch_run(torch.optim.AdamW, start, gradients, lr=0.01, weight_decay=0.1),
            tolerance=Tolerance(1e-13, "relative_of_largest"),
            source=f"{torch_version}, AdamW, float64",
        )
    )
    for dtype, limit in ((np.float64, 8), (np.float32, 2)):
        param, grad, update = rng.standard_normal((3, 4, 13)).astype(dtype)
        for rows, view in ((4, "channel"), (1, "layer")):
            if view == "layer":
                # Channels along the weight with signs that cancel: no channel is orthogonal, the whole is.
                lengths = (param.astype(np.float64) ** 2).sum(axis=1, keepdims=True)
                grad = (param / lengths * np.array([[1.0], [-1.0], [1.0], [-1.0]])).astype(dtype)
            delta = 100.0 if view == "channel" else 0.1
            found.append(
                GoldenCase(
                    function="solvers.project_radial",
                    name=f"{view}, {np.dtype(dtype).name}",
                    args=(param, grad, update),
                    options={"delta": delta},
                    expected=(exact_projection(param, update, rows, 1e-8), np.array(0.1)),
                    tolerance=Tolerance(limit, "ulp_of_largest"),
                    source="mpmath, 50 digits",
                )
            )
    param, update, cotangent = rng.standard_normal((3, 3, 7))
    found.append(
        GoldenCase(
            function="solvers.project_radial",
            name="self-adjoint in the update",
            args=(np.eye(3, 7), np.ones((3, 7)), update),
            options={"delta": 100.0, "eps": 0.0},
            cotangent=(cotangent, np.array(0.0)),
            expected=(
                # Unit rows e_i: y = u - e_i u_i, so dparam = -(u_i dy + dy_i u) without its entry i.
                np.array(
                    [
                        [
                            0.0 if j == i else -(update[i, i] * cotangent[i, j] + cotangent[i, i] * update[i, j])
                            for j in range(7)
                        ]
                        for i in range(3)
                    ]
                ),
                np.zeros((3, 7)),
                cotangent * (1 - np.eye(3, 7)),
            ),
            tolerance=Tolerance(4, "ulp_of_largest"),
            source="by hand, at unit vectors",
        )
    )
    step_args = [rng.standard_normal((4, 13)) for _ in range(3)] + [rng.random((4, 13))]
    for dtype in (np.float64, np.float32):
        param, grad, first, second = (a.astype(dtype) for a in step_args)
        found.append(
            GoldenCase(
                function="solvers.adamp_update",
                name=f"seventh step, {np.dtype(dtype).name}",
                args=(param, grad, first, second),
                options={"step": 7, "learning_rate": 0.01, "weight_decay": 0.25, "delta": 100.0},
                expected=exact_adamp(param, grad, first, second, 7, 0.01, 0.25),
                tolerance=Tolerance(4, "ulp_of_largest"),
                source="mpmath, 50 digits",
            )
        )
        found.append(
            GoldenCase(
                function="solvers.sgdp_update",
                name=f"momentum 0.9, {np.dtype(dtype).name}",
                args=(param, grad, first),
                options={"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 0.25, "delta": 100.0},
                expected=exact_sgdp(param, grad, first, 0.01, 0.9, 0.25),
                tolerance=Tolerance(4, "ulp_of_largest"),
                source="mpmath, 50 digits",
            )
        )
    # The rows of the first gradient are orthogonal to those of the weight; of the second only as a whole; of the third not.
    weight = np.array([[1.0, 0.0], [0.0, 1.0]])
    for view, grad in (("channel", [[0.0, 2], [3, 0]]), ("layer", [[1.0, 2], [3, -1]]), ("none", [[1.0, 2], [3, 1]])):
        args, text = (weight, np.array(grad)), "by hand: row by row, and as one vector"
        found.append(GoldenCase("solvers.which_view", view, args, view, text))
    return found


def _numbers(array):
    return [mpmath.mpf(float(v)) for v in array.ravel()]


def exact_adamp(param, grad, first, second, step, learning_rate, decay, eps=1e-8, ratio=0.1):
    b1, b2, lr = mpmath.mpf(0.9), mpmath.mpf(0.999), mpmath.mpf(learning_rate)
    m = [b1 * a + (1 - b1) * g for a, g in zip(_numbers(first), _numbers(grad), strict=True)]
    v = [b2 * a + (1 - b2) * g * g for a, g in zip(_numbers(second), _numbers(grad), strict=True)]
    root = mpmath.sqrt(1 - b2**step)
    u = np.array([a / (mpmath.sqrt(b) / root + mpmath.mpf(eps)) for a, b in zip(m, v, strict=True)], object)
    p = np.array(_numbers(param), object).reshape(param.shape)
    u = u.reshape(param.shape)
    for i in range(len(p)):
        length = mpmath.sqrt(mpmath.fsum(x * x for x in p[i])) + mpmath.mpf(eps)
        radial = mpmath.fsum(x * y for x, y in zip(p[i], u[i], strict=True)) / length
        u[i] = u[i] - p[i] / length * radial
    p = p * (1 - lr * mpmath.mpf(decay) * mpmath.mpf(ratio)) - lr / (1 - b1**step) * u
    return tuple(np.array(a, float).reshape(param.shape) for a in (p, np.array(m, object), np.array(v, object)))


def exact_sgdp(param, grad, buffer, learning_rate, momentum, decay, eps=1e-8, ratio=0.1):
    mu, lr = mpmath.mpf(momentum), mpmath.mpf(learning_rate)
    new = np.array([mu * b + g for b, g in zip(_numbers(buffer), _numbers(grad), strict=True)], object).reshape(
        param.shape
    )
    p, u = np.array(_numbers(param), object).reshape(param.shape), new.copy()
    for i in range(len(p)):
        length = mpmath.sqrt(mpmath.fsum(x * x for x in p[i])) + mpmath.mpf(eps)
        radial = mpmath.fsum(x * y for x, y in zip(p[i], u[i], strict=True)) / length
        u[i] = u[i] - p[i] / length * radial
    p = p * (1 - lr * mpmath.mpf(decay) * mpmath.mpf(ratio) / (1 - mu)) - lr * u
    return tuple(np.array(a, float).reshape(param.shape) for a in (p, new))
