"""Norms with statistics per channel against PyTorch and ONNX Runtime, channels first and last, forward and backward.

Features alone, maps of a network's first and last stages, channels last, and maps larger than any cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

CHANNELS_FIRST = ((32, 64), (4096, 512), (32, 64, 56, 56), (32, 512, 7, 7), (64, 64, 112, 112))
CHANNELS_LAST = ((32, 56, 56, 64),)
CHECKED = 8
"""Channels whose error is measured."""
EPS = 1e-5

OURS, OURS_OUT = "refnorm_fast", "refnorm_fast out="


def races() -> Iterator[dict]:
    for shape in CHANNELS_FIRST:
        yield from batch_norm_races(Maps.random(shape, 1))
    for shape in CHANNELS_FIRST[2:4]:
        yield from evonorm_races(Maps.random(shape, 1))
        yield ghost_race(Maps.random((256, *shape[1:]), 1) if shape[2] < 10 else Maps.random(shape, 1))
        yield l1_race(Maps.random(shape, 1))
    yield unified_race(Maps.random((16384, 512), 1))
    yield unified_race(Maps.random((2048, 512), 1))
    for shape in ((32, 64, 56, 56), (4, 256, 14, 14)):
        yield from batch_channel_races(Maps.random(shape, 1))
        yield unmix_race(Maps.random(shape, 1))
    for shape in ((8, 64, 64, 64), (2, 256, 32, 32)):
        yield from region_races(Maps.random(shape, 1))
    for shape in ((16384, 512), (2048, 512)):
        yield from power_races(Maps.random(shape, 1))
    for shape in CHANNELS_LAST:
        yield from batch_norm_races(Maps.random(shape, len(shape) - 1))


@dataclass
class Maps:
    """Feature maps with a cotangent and what a norm has per channel; PyTorch sees the same memory, channels second."""

    x: np.ndarray
    dy: np.ndarray
    gain: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    channel_axis: int

    @classmethod
    def random(cls, shape: tuple[int, ...], channel_axis: int) -> Maps:
        rng = np.random.default_rng(0)
        x, dy = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
        gain, bias, mean = rng.standard_normal((3, shape[channel_axis]), dtype=np.float32)
        return cls(x + np.float32(1), dy, gain, bias, mean, 1 + mean * mean, channel_axis)

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(self.x.ndim) if axis != self.channel_axis)

    @property
    def label(self) -> str:
        last = self.x.ndim > 2 and self.channel_axis == self.x.ndim - 1
        return "x".join(map(str, self.x.shape)) + (" channels last" if last else "")

    def tensor(self, array: np.ndarray):
        import torch

        tensor = torch.from_numpy(array)
        return tensor if array.ndim == 1 else tensor.movedim(self.channel_axis, 1)

    def checked(self, array: np.ndarray) -> np.ndarray:
        """The channels whose error is measured, first axis, in long doubles."""
        return np.moveaxis(np.asarray(array), self.channel_axis, 0)[:CHECKED].astype(np.longdouble)

    def seen(self, result) -> np.ndarray:
        """The same of a result, which PyTorch gives with the channels second."""
        import torch

        if isinstance(result, torch.Tensor):
            return np.moveaxis(result.numpy(), 1, 0)[:CHECKED]
        return np.moveaxis(np.asarray(result), self.channel_axis, 0)[:CHECKED]


def race(
    method: str, name: str, maps: Maps, candidates: dict[str, Callable], exact: Callable, moved: float, ours: str
) -> dict:
    def check() -> dict[str, float]:
        expected = exact()
        unit = np.spacing(np.float32(np.abs(expected).max())).astype(np.longdouble)
        return {label: float(np.abs(maps.seen(call()) - expected).max() / unit) for label, call in candidates.items()}

    return {
        "method": method,
        "name": name,
        "shape": maps.label,
        "candidates": candidates,
        "ours": ours,
        "bytes": int(moved * maps.x.nbytes),
        "check": check,
        "check_unit": "ULP of the largest",
    }


def reads(maps: Maps, arrays: int) -> int:
    """How often each array is read from memory: once where a channel's entries fit a core's cache, else twice."""
    channel = arrays * maps.x.nbytes // len(maps.gain)
    held = maps.channel_axis == 1 and maps.x.ndim > 2 and channel <= 1 << 20
    return 1 if held or arrays * maps.x.nbytes <= 1 << 20 else 2


def over_places(values: np.ndarray, maps: Maps) -> np.ndarray:
    return values.reshape(-1, *[1] * (maps.x.ndim - 1))


def exact_hat(maps: Maps) -> tuple[np.ndarray, np.ndarray]:
    """Normalized entries and inverse deviations of the checked channels."""
    wide = maps.checked(maps.x)
    over = tuple(range(1, wide.ndim))
    centred = wide - wide.mean(axis=over, keepdims=True)
    inverse = 1 / np.sqrt((centred * centred).mean(axis=over, keepdims=True) + EPS)
    return centred * inverse, inverse


def batch_norm_races(maps: Maps) -> Iterator[dict]:
    import torch

    import refnorm_fast.norms as fast

    functional, method = torch.nn.functional, "norms/batch_statistics"
    x, dy, gain, bias, mean, var = (
        maps.tensor(a) for a in (maps.x, maps.dy, maps.gain, maps.bias, maps.mean, maps.var)
    )
    out, axes = np.empty_like(maps.x), maps.axes
    scale, shift = (over_places(a[:CHECKED].astype(np.longdouble), maps) for a in (maps.gain, maps.bias))

    def exact_training():
        return exact_hat(maps)[0] * scale + shift

    def exact_inference():
        centre, spread = (over_places(a[:CHECKED].astype(np.longdouble), maps) for a in (maps.mean, maps.var))
        return (maps.checked(maps.x) - centre) / np.sqrt(spread + EPS) * scale + shift

    def exact_backward():
        hat, inverse = exact_hat(maps)
        g, over = maps.checked(maps.dy), tuple(range(1, maps.x.ndim))
        along = (g * hat).mean(axis=over, keepdims=True)
        return scale * inverse * (g - g.mean(axis=over, keepdims=True) - hat * along)

    training = {
        OURS: lambda: fast.batch_norm(maps.x, maps.gain, maps.bias, axes=axes),
        OURS_OUT: lambda: fast.batch_norm(maps.x, maps.gain, maps.bias, axes=axes, out=out),
        "torch": lambda: functional.batch_norm(x, None, None, gain, bias, True, 0.1, EPS),
    }
    yield race(method, "batch_norm training", maps, training, exact_training, reads(maps, 1) + 1, OURS_OUT)
    inference = {
        OURS: lambda: fast.batch_norm(maps.x, maps.gain, maps.bias, maps.mean, maps.var, axes=axes),
        OURS_OUT: lambda: fast.batch_norm(maps.x, maps.gain, maps.bias, maps.mean, maps.var, axes=axes, out=out),
        "torch": lambda: functional.batch_norm(x, mean, var, gain, bias, False, 0.1, EPS),
    }
    if maps.channel_axis == 1:
        inference["onnxruntime"] = onnx_batch_norm(maps)
    yield race(method, "batch_norm inference", maps, inference, exact_inference, 2, OURS_OUT)
    _, pullback = fast.batch_norm_vjp(maps.x, maps.gain, maps.bias, axes=axes)
    _, saved_mean, saved_inverse = torch.native_batch_norm(x, gain, bias, None, None, True, 0.1, EPS)
    backward = torch.ops.aten.native_batch_norm_backward
    candidates = {
        OURS: lambda: pullback(maps.dy)[0],
        "torch": lambda: backward(dy, x, gain, None, None, saved_mean, saved_inverse, True, EPS, [True] * 3)[0],
    }
    yield race(method, "batch_norm backward", maps, candidates, exact_backward, 2 * reads(maps, 2) + 1, OURS)


def evonorm_races(maps: Maps) -> Iterator[dict]:
    import torch

    import refnorm_fast.norms as fast
    from refnorm.norms import EvoNormState

    x, dy, gain, bias, slope = (maps.tensor(a) for a in (maps.x, maps.dy, maps.gain, maps.bias, maps.mean))
    per_channel, out = (1, -1, 1, 1), np.empty_like(maps.x)
    gain_, bias_, slope_ = (a.reshape(per_channel) for a in (gain, bias, slope))
    arguments = (maps.x, maps.gain, maps.bias, maps.mean)
    state = EvoNormState(maps.var)

    def torch_s0(x=x):
        blocks = x.reshape(x.shape[0], 32, -1)
        std = torch.sqrt(blocks.var(dim=2, unbiased=False, keepdim=True) + EPS)
        normal = ((x * torch.sigmoid(slope_ * x)).reshape(blocks.shape) / std).reshape(x.shape)
        return normal * gain_ + bias_

    def torch_b0():
        instance = torch.sqrt(x.var(dim=(2, 3), unbiased=False, keepdim=True) + EPS)
        batch = torch.sqrt(maps.tensor(maps.var) + EPS).reshape(per_channel)
        return x / torch.maximum(batch, slope_ * x + instance) * gain_ + bias_

    def exact_of(groups):
        whole = maps.x.astype(np.longdouble)
        g, b, v, var = (
            a.astype(np.longdouble).reshape(per_channel) for a in (maps.gain, maps.bias, maps.mean, maps.var)
        )
        if groups:
            blocks = whole.reshape(len(whole), groups, -1)
            std = np.sqrt(blocks.var(axis=2, keepdims=True) + EPS)
            y = ((whole / (1 + np.exp(-v * whole))).reshape(blocks.shape) / std).reshape(whole.shape) * g + b
        else:
            instance = np.sqrt(whole.var(axis=(2, 3), keepdims=True) + EPS)
            y = whole / np.maximum(np.sqrt(var + EPS), v * whole + instance) * g + b
        return np.moveaxis(y, 1, 0)[:CHECKED]

    method = "norms/evonorm"
    s0 = {
        OURS: lambda: fast.evonorm_s0(*arguments),
        OURS_OUT: lambda: fast.evonorm_s0(*arguments, out=out),
        "torch, composed": torch_s0,
    }
    yield race(method, "evonorm_s0", maps, s0, lambda: exact_of(32), 2, OURS_OUT)
    b0 = {
        OURS: lambda: fast.evonorm_b0_eval(*arguments, state),
        OURS_OUT: lambda: fast.evonorm_b0_eval(*arguments, state, out=out),
        "torch, composed": torch_b0,
    }
    yield race(method, "evonorm_b0 inference", maps, b0, lambda: exact_of(0), 2, OURS_OUT)
    leaf = x.clone().requires_grad_()
    _, pullback = fast.evonorm_s0_vjp(*arguments)
    graph = torch_s0(leaf)
    backward = {
        OURS: lambda: pullback(maps.dy)[0],
        "torch, composed": lambda: torch.autograd.grad(graph, leaf, dy, retain_graph=True)[0],
    }
    plain = race(method, "evonorm_s0 backward", maps, backward, lambda: maps.checked(pullback(maps.dy)[0]), 3, OURS)
    plain["check_unit"] = "ULP of the largest, from ours"
    yield plain


def ghost_race(maps: Maps) -> dict:
    import torch

    import refnorm_fast.norms as fast

    x, gain, bias = (maps.tensor(a) for a in (maps.x, maps.gain, maps.bias))
    out, parts = np.empty_like(maps.x), x.split(16)

    def exact():
        ghosts = np.split(maps.checked(maps.x), len(parts), axis=1)
        over = tuple(range(1, maps.x.ndim))
        hats = [(g - g.mean(axis=over, keepdims=True)) / np.sqrt(g.var(axis=over, keepdims=True) + EPS) for g in ghosts]
        scale, shift = (over_places(a[:CHECKED].astype(np.longdouble), maps) for a in (maps.gain, maps.bias))
        return np.concatenate(hats, axis=1) * scale + shift

    candidates = {
        OURS: lambda: fast.ghost_batch_norm(maps.x, maps.gain, maps.bias, ghost_size=16),
        OURS_OUT: lambda: fast.ghost_batch_norm(maps.x, maps.gain, maps.bias, ghost_size=16, out=out),
        "torch, in a loop": lambda: torch.cat(
            [torch.nn.functional.batch_norm(part, None, None, gain, bias, True, 0.1, EPS) for part in parts]
        ),
    }
    return race("norms/ghost_batch_norm", "ghost_batch_norm, 16 a part", maps, candidates, exact, 2, OURS_OUT)


def l1_race(maps: Maps) -> dict:
    import refnorm_fast.norms as fast

    x, out, axes = maps.tensor(maps.x), np.empty_like(maps.x), maps.axes
    gain, bias = (maps.tensor(a).reshape(1, -1, *[1] * (x.ndim - 2)) for a in (maps.gain, maps.bias))

    def composed():
        centred = x - x.mean(dim=axes, keepdim=True)
        return centred / (centred.abs().mean(dim=axes, keepdim=True) + EPS) * gain + bias

    def exact():
        wide, over = maps.checked(maps.x), tuple(range(1, maps.x.ndim))
        centred = wide - wide.mean(axis=over, keepdims=True)
        scale, shift = (over_places(a[:CHECKED].astype(np.longdouble), maps) for a in (maps.gain, maps.bias))
        return centred / (np.abs(centred).mean(axis=over, keepdims=True) + EPS) * scale + shift

    candidates = {
        OURS: lambda: fast.l1_batch_norm(maps.x, maps.gain, maps.bias, axes=axes),
        OURS_OUT: lambda: fast.l1_batch_norm(maps.x, maps.gain, maps.bias, axes=axes, out=out),
        "torch, composed": composed,
    }
    return race("norms/l1_batch_norm", "l1_batch_norm training", maps, candidates, exact, 2, OURS_OUT)


def unified_race(maps: Maps) -> dict:
    """Against PyTorch's batch norm, the layer that it replaces."""
    import torch

    import refnorm_fast.norms as fast
    from refnorm.norms import UnifiedNormState

    x, gain, bias = (maps.tensor(a) for a in (maps.x, maps.gain, maps.bias))
    state = UnifiedNormState.create(maps.x.shape[1], dtype=np.float32)

    def exact():
        wide = maps.checked(maps.x)
        scale, shift = (over_places(a[:CHECKED].astype(np.longdouble), maps) for a in (maps.gain, maps.bias))
        return wide / np.sqrt((wide * wide).mean(axis=1, keepdims=True) + EPS) * scale + shift

    candidates = {
        OURS: lambda: fast.unified_norm(maps.x, maps.gain, maps.bias, state)[0],
        "torch batch_norm": lambda: torch.nn.functional.batch_norm(x, None, None, gain, bias, True, 0.1, EPS),
    }
    found = race("norms/unified_norm", "unified_norm training", maps, candidates, exact, 3, OURS)
    check = found["check"]
    found["check"] = lambda: {OURS: check()[OURS]}
    return found


def batch_channel_races(maps: Maps) -> Iterator[dict]:
    """Against PyTorch's two norms, one after the other, with the group's gain and bias spread over its channels."""
    import torch

    import refnorm_fast.norms as fast

    functional, groups = torch.nn.functional, 32
    x, dy, gain, bias = (maps.tensor(a) for a in (maps.x, maps.dy, maps.gain, maps.bias))
    group_gain, group_bias = maps.mean[:groups], maps.var[:groups]
    spread_gain, spread_bias = (
        torch.from_numpy(np.repeat(a, len(maps.gain) // groups)) for a in (group_gain, group_bias)
    )
    arguments, out = (maps.x, maps.gain, maps.bias, group_gain, group_bias), np.empty_like(maps.x)

    def composed(x=x):
        middle = functional.batch_norm(x, None, None, gain, bias, True, 0.1, EPS)
        return functional.group_norm(middle, groups, spread_gain, spread_bias, EPS)

    def exact():
        wide = tuple(a.astype(np.float64) for a in arguments)
        return maps.checked(reference_norms().batch_channel_norm(*wide))

    method = "norms/batch_channel_norm"
    forward = {
        OURS: lambda: fast.batch_channel_norm(*arguments),
        OURS_OUT: lambda: fast.batch_channel_norm(*arguments, out=out),
        "torch, two norms": composed,
    }
    yield race(method, "batch_channel_norm", maps, forward, exact, reads(maps, 1) + 1, OURS_OUT)
    _, pullback = fast.batch_channel_norm_vjp(*arguments)
    leaf = x.clone().requires_grad_()
    graph = composed(leaf)

    def exact_backward():
        wide = tuple(a.astype(np.float64) for a in arguments)
        return maps.checked(reference_norms().batch_channel_norm_vjp(*wide)[1](maps.dy.astype(np.float64))[0])

    backward = {
        OURS: lambda: pullback(maps.dy)[0],
        "torch, two norms": lambda: torch.autograd.grad(graph, leaf, dy, retain_graph=True)[0],
    }
    yield race(method, "batch_channel_norm backward", maps, backward, exact_backward, 2 * reads(maps, 2) + 1, OURS)


def unmix_race(maps: Maps) -> dict:
    """Against the reference: PyTorch has no such layer."""
    import refnorm_fast.norms as fast
    from refnorm.norms import UnMixState, unmix_init

    state = unmix_init(maps.mean, maps.var, np.random.default_rng(0))
    arguments = (maps.x, maps.gain, maps.bias, state)

    def exact():
        wide_state = UnMixState(state.means.astype(np.float64), state.variances.astype(np.float64))
        wide = tuple(a.astype(np.float64) for a in arguments[:3])
        return maps.checked(reference_norms().unmix_norm(*wide, wide_state, rate=0.1)[0])

    candidates = {
        OURS: lambda: fast.unmix_norm(*arguments, rate=0.1)[0],
        "NumPy reference": lambda: reference_norms().unmix_norm(*arguments, rate=0.1)[0],
    }
    return race("norms/unmix_test_time_norm", "unmix_norm", maps, candidates, exact, reads(maps, 1) + 1, OURS)


def region_races(maps: Maps) -> Iterator[dict]:
    """Against the same steps in PyTorch, and the reference."""
    import torch

    import refnorm_fast.norms as fast

    mask = np.random.default_rng(1).random((len(maps.x), 1, *maps.x.shape[2:])) < 0.7
    x, dy, inside = maps.tensor(maps.x), maps.tensor(maps.dy), torch.from_numpy(mask)
    out, count = np.empty_like(maps.x), mask.size

    def composed(x=x):
        y = torch.zeros_like(x)
        for region in (inside, ~inside):
            size = region.sum()
            mean = torch.where(region, x, 0).sum((0, 2, 3), keepdim=True) / size
            centred = torch.where(region, x - mean, 0)
            var = (centred * centred).sum((0, 2, 3), keepdim=True) / size
            y = torch.where(region, centred * torch.rsqrt(var + EPS * count / size), y)
        return y

    def exact():
        return maps.checked(reference_norms().region_normalize(maps.x.astype(np.float64), mask))

    def exact_backward():
        wide = reference_norms().region_normalize_vjp(maps.x.astype(np.float64), mask)[1](maps.dy.astype(np.float64))
        return maps.checked(wide[0])

    method, name = "norms/region_norm", "region_normalize"
    forward = {
        OURS: lambda: fast.region_normalize(maps.x, mask),
        OURS_OUT: lambda: fast.region_normalize(maps.x, mask, out=out),
        "torch, composed": composed,
        "NumPy reference": lambda: reference_norms().region_normalize(maps.x, mask),
    }
    yield race(method, name, maps, forward, exact, reads(maps, 1) + 1, OURS_OUT)
    _, pullback = fast.region_normalize_vjp(maps.x, mask)
    leaf = x.clone().requires_grad_()
    graph = composed(leaf)
    backward = {
        OURS: lambda: pullback(maps.dy)[0],
        "torch, composed": lambda: torch.autograd.grad(graph, leaf, dy, retain_graph=True)[0],
    }
    yield race(method, f"{name} backward", maps, backward, exact_backward, 2 * reads(maps, 2) + 1, OURS)


def power_races(maps: Maps) -> Iterator[dict]:
    """Against the reference: PyTorch has no such layer."""
    import refnorm_fast.norms as fast
    from refnorm.norms import PowerNormState

    state = PowerNormState.create(maps.x.shape[1], dtype=np.float32)
    arguments = (maps.x, maps.gain, maps.bias)

    def exact():
        wide_state = PowerNormState.create(maps.x.shape[1])
        return maps.checked(reference_norms().power_norm(*(a.astype(np.float64) for a in arguments), wide_state)[0])

    forward = {
        OURS: lambda: fast.power_norm(*arguments, state)[0],
        "NumPy reference": lambda: reference_norms().power_norm(*arguments, state)[0],
    }
    yield race("norms/power_norm", "power_norm training", maps, forward, exact, 5, OURS)
    _, pullback = fast.power_norm_vjp(*arguments, state)
    _, reference_pullback = reference_norms().power_norm_vjp(*arguments, state)
    backward = {
        OURS: lambda: pullback(maps.dy)[0][0],
        "NumPy reference": lambda: reference_pullback(maps.dy)[0][0],
    }

    def exact_backward():
        wide = tuple(a.astype(np.float64) for a in arguments)
        pull = reference_norms().power_norm_vjp(*wide, PowerNormState.create(maps.x.shape[1]))[1]
        return maps.checked(pull(maps.dy.astype(np.float64))[0][0])

    yield race("norms/power_norm", "power_norm backward", maps, backward, exact_backward, 8, OURS)


def reference_norms():
    import refnorm.norms

    return refnorm.norms


def onnx_batch_norm(maps: Maps) -> Callable:
    """ONNX Runtime's BatchNormalization on the same arrays."""
    import onnxruntime
    from onnx import TensorProto, helper

    names = ["x", "gain", "bias", "mean", "var"]
    arrays = [maps.x, maps.gain, maps.bias, maps.mean, maps.var]
    node = helper.make_node("BatchNormalization", names, ["y"], epsilon=EPS)
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in zip(names, arrays, strict=True)]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, maps.x.shape)
    model = helper.make_model(
        helper.make_graph([node], "batch_norm", inputs, [output]), opset_imports=[helper.make_opsetid("", 15)]
    )
    model.ir_version = 8
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = dict(zip(names, arrays, strict=True))
    return lambda: session.run(None, feed)[0]
