"""Truth for batch-channel normalization: hand calculations, mpmath, PyTorch in float64."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.norms import BatchChannelState

mpmath.mp.dps = 50
VERSION = f"torch {torch.__version__.split('+')[0]}, float64"


def exact_weights(weight, eps, ddof):
    rows = []
    for row in weight.reshape(len(weight), -1):
        values = [mpmath.mpf(float(v)) for v in row]
        mean = mpmath.fsum(values) / len(values)
        var = mpmath.fsum((v - mean) ** 2 for v in values) / (len(values) - ddof)
        rows.append([float((v - mean) / mpmath.sqrt(var + mpmath.mpf(eps))) for v in values])
    return np.array(rows).reshape(weight.shape)


def cases():
    rng = np.random.default_rng(190310520)
    found = []

    def add(function, name, args, expected, tolerance, source, **more):
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

    row = np.array([[1.0, 2.0, 3.0, 4.0]])
    add(
        "weight_standardize",
        "four weights, unbiased",
        (row,),
        np.array([[-1.5, -0.5, 0.5, 1.5]]) / np.sqrt(5 / 3),
        Tolerance(4, "ulp"),
        "by hand: mean 5/2, variance 5/3",
        options={"eps": 1e-300},
    )
    # Without gain, bias and eps the channel step is (x - 0.2) / sqrt(1.4); one group of one channel standardizes
    # two values to -1 and 1, so the channel step shows in the state only.
    one, zero = np.ones(1), np.zeros(1)
    start = BatchChannelState(np.zeros(1), np.ones(1))
    add(
        "batch_channel_norm_estimated",
        "estimates after one batch",
        (np.array([[[1.0, 3.0]]]), one, zero, one, zero, start),
        (np.array([[[-1.0, 1.0]]]), np.array([0.2]), np.array([1.4])),
        Tolerance(4, "ulp"),
        "by hand: mean 2, mean square about 0 is 5, a tenth of each",
        options={"groups": 1, "eps": 1e-300},
    )
    # Two channels in one group: x_dot = (1 - 0.1)/sqrt(1) and (3 - 0.3)/sqrt(1.8); two values standardize to -1, 1.
    # With group gain 1 the output hides the size, so gain 0 and bias 1, 5 are seen instead.
    add(
        "batch_channel_norm_estimated",
        "gain zero leaves the biases",
        (
            np.array([[1.0, 3.0]]),
            np.zeros(2),
            np.array([1.0, 5.0]),
            one,
            zero,
            BatchChannelState(np.zeros(2), np.ones(2)),
        ),
        (np.array([[-1.0, 1.0]]), np.array([0.1, 0.3]), np.array([1.0, 1.8])),
        Tolerance(4, "ulp"),
        "by hand",
        options={"groups": 1, "eps": 1e-300},
    )
    for dtype in (np.float32, np.float64):
        weight = (0.1 * rng.standard_normal((3, 2, 3, 3)) + 5).astype(dtype)
        for ddof in (0, 1):
            add(
                "weight_standardize",
                f"{np.dtype(dtype).name}, mean 5, ddof {ddof}",
                (weight,),
                exact_weights(weight, 1e-5, ddof),
                Tolerance(2, "ulp_of_largest") if dtype == np.float32 else Tolerance(1e-12, "relative_of_largest"),
                "mpmath, 50 digits",
                options={"ddof": ddof},
            )
    limit = Tolerance(1e-12, "relative_of_largest")
    for ddof in (0, 1):
        weight, cotangent = rng.standard_normal((2, 3, 2, 2, 2))
        tensor = torch.tensor(weight, requires_grad=True)
        var, mean = torch.var_mean(tensor, dim=(1, 2, 3), correction=ddof, keepdim=True)
        ((tensor - mean) / torch.sqrt(var + 1e-5)).backward(torch.tensor(cotangent))
        add(
            "weight_standardize",
            f"ddof {ddof}",
            (weight,),
            (tensor.grad.numpy(),),
            limit,
            f"{VERSION}: autograd of var_mean",
            options={"ddof": ddof},
            cotangent=cotangent,
        )
    functional = torch.nn.functional
    for shape, groups in (((4, 6), 2), ((3, 4, 2, 3), 1), ((2, 6, 5), 3)):
        channels = shape[1]
        x, cotangent = rng.standard_normal((2, *shape))
        arrays = (x, *rng.standard_normal((2, channels)), *rng.standard_normal((2, groups)))
        state = BatchChannelState(rng.standard_normal(channels), rng.random(channels) + 0.2)
        repeat = channels // groups
        places = (0, *range(2, len(shape)))
        for mode in ("batch", "estimated", "in use"):
            tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
            t, gain, bias, group_gain, group_bias = tensors
            mean, var = torch.tensor(state.mean), torch.tensor(state.var)
            if mode == "estimated":
                moment = ((torch.tensor(x).movedim(1, -1) - mean) ** 2).reshape(-1, channels).mean(0)
                mean, var = 0.8 * mean + 0.2 * torch.tensor(x).mean(places), 0.8 * var + 0.2 * moment
            given = (None, None) if mode == "batch" else (mean, var)
            middle = functional.batch_norm(t, *given, gain, bias, training=mode == "batch", eps=1e-3)
            value = functional.group_norm(
                middle, groups, group_gain.repeat_interleave(repeat), group_bias.repeat_interleave(repeat), eps=1e-3
            )
            value.backward(torch.tensor(cotangent))
            grads = tuple(tensor.grad.numpy() for tensor in tensors)
            source = f"{VERSION}: batch_norm and group_norm"
            name, options = f"{mode}, shape {shape}, {groups} groups", {"groups": groups, "eps": 1e-3}
            if mode == "batch":
                call = ("batch_channel_norm", name, arrays)
                add(*call, value.detach().numpy(), limit, source, options=options)
            else:
                call = ("batch_channel_norm_estimated", name, (*arrays, state))
                options = options | {"rate": 0.2, "training": mode == "estimated"}
                expected = (value.detach().numpy(), mean.numpy(), var.numpy())
                add(*call, expected, limit, source, options=options)
            add(*call, grads, limit, source, options=options, cotangent=cotangent)
    return found
