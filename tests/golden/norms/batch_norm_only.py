"""Truth for batch norm with a state and for the measurements: hand calculations, PyTorch in float64."""

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.norms import BatchNormState

TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def cases():
    rng = np.random.default_rng(200300152)
    found = []

    def add(function, name, args, expected, tolerance, source=TORCH, **more):
        found.append(
            GoldenCase(
                function=f"norms.{function}",
                name=name,
                args=args,
                expected=expected,
                tolerance=tolerance,
                source=source,
                **more,
            )
        )

    x, one, zero = np.array([[1.0], [2.0], [3.0], [4.0]]), np.ones(1), np.zeros(1)
    tiny = {"eps": 1e-300}
    hand = np.array([[-3.0], [-1.0], [1.0], [3.0]]) / np.sqrt(5.0)
    add(
        "batch_norm_train",
        "four values",
        (x, one, zero, BatchNormState(zero, one)),
        (hand, np.array([1.25]), np.array([4.0 / 3.0])),
        Tolerance(4, "ulp"),
        "by hand: mean 5/2, variance 5/4, unbiased 5/3; half of the old",
        options=tiny | {"momentum": 0.5},
    )
    add(
        "batch_norm_eval",
        "given statistics",
        (x, np.array([2.0]), one, BatchNormState(one, np.array([4.0]))),
        x,
        Tolerance(2, "ulp"),
        "by hand: 2 (x - 1) / 2 + 1",
        options=tiny,
    )
    limit = Tolerance(1e-12, "relative_of_largest")
    for shape in ((6, 3), (3, 4, 2, 3), (1, 2, 5)):
        channels = shape[1]
        x, g = rng.standard_normal((2, *shape))
        arrays = (x, *rng.standard_normal((2, channels)))
        state = BatchNormState(rng.standard_normal(channels), rng.random(channels) + 0.2)
        for mode in ("train", "eval"):
            tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
            running = torch.tensor(state.mean), torch.tensor(state.var)
            value = torch.nn.functional.batch_norm(
                tensors[0], *running, *tensors[1:], training=mode == "train", momentum=0.3, eps=1e-3
            )
            value.backward(torch.tensor(g))
            options = {"eps": 1e-3} | ({"momentum": 0.3} if mode == "train" else {})
            expected = value.detach().numpy()
            if mode == "train":
                expected = (expected, *(r.numpy() for r in running))
            call = (f"batch_norm_{mode}", f"shape {shape}", (*arrays, state))
            add(*call, expected, limit, options=options)
            add(*call, tuple(t.grad.numpy() for t in tensors), limit, options=options, cotangent=g)
    gain = np.array([0.005, -0.0099, 0.01, 0.5, -2.0])
    add("disabled_fraction", "two of five", (gain,), np.array(0.4), Tolerance(1, "ulp"), "by hand")
    add(
        "disabled_fraction",
        "threshold 1",
        (gain,),
        np.array(0.8),
        Tolerance(1, "ulp"),
        "by hand",
        options={"threshold": 1.0},
    )
    activation = np.zeros((100, 4))
    activation[0, 1] = activation[:2, 2] = 1.0
    activation[:, 3] = 1.0
    add(
        "dead_relu_fraction",
        "more than 99%: one channel",
        (activation,),
        np.array(0.25),
        Tolerance(1, "ulp"),
        "by hand",
    )
    add(
        "dead_relu_fraction",
        "more than 98%: two channels",
        (activation,),
        np.array(0.5),
        Tolerance(1, "ulp"),
        "by hand",
        options={"share": 0.985},
    )
    return found
