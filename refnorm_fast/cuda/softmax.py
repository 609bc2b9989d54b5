"""Softmax, log-softmax, log-sum-exp and cross-entropy on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import Pullback
from refnorm_fast.cuda._arrays import (
    LARGE_TEAM,
    Rows,
    array,
    cotangent,
    empty,
    float_array,
    integer_array,
    number,
    run,
    run_elements,
    run_rows,
    to_host,
)

__all__ = [
    "cross_entropy",
    "cross_entropy_vjp",
    "log_softmax",
    "log_softmax_vjp",
    "logsumexp",
    "logsumexp_vjp",
    "softmax",
    "softmax_vjp",
]

ALGORITHMS = ("two_pass", "three_pass_recompute", "three_pass_reload", "online")
_REDUCTIONS = ("mean", "sum", "none")


def _rows(x: Any, axis: int) -> Rows:
    x = float_array(x, "x", min_ndim=1)
    last = _checks.axes((axis,), x.ndim)[0]
    _checks.not_empty(x, "x", (last,))
    return Rows(x, last)


def _plain(where: Any, temperature: float) -> None:
    """Raise where the kernels cannot do what is asked."""
    if where is not None:
        raise ValueError("where: not available on a GPU; refnorm.softmax has it for a copy on the host")
    _checks.positive(temperature, "temperature")
    if temperature != 1:
        raise ValueError(
            f"temperature: expected 1.0 on a GPU, got {temperature}; divide the logits, or give refnorm.softmax a "
            "copy on the host"
        )


def _run(kernel: str, rows: Rows, *arguments: Any, cached: bool = True) -> None:
    run_rows("softmax", kernel, rows.dtype, rows.rows, rows.length, *arguments, rows.rows, rows.length, cached=cached)


def softmax(x: Any, *, axis: int = -1, algorithm: str = "two_pass", where: Any = None, temperature: float = 1.0) -> Any:
    """Softmax of an array on a GPU; see :func:`refnorm.softmax.softmax`.

    ``algorithm`` is checked and makes no difference: there is one kernel, as accurate as ``"two_pass"``.
    """
    _plain(where, temperature)
    rows = _rows(x, axis)
    _checks.one_of(algorithm, "algorithm", ALGORITHMS)
    y = rows.fresh()
    _run("softmax_rows", rows, rows.x, y)
    return rows.back(y)


def softmax_vjp(
    x: Any, *, axis: int = -1, algorithm: str = "two_pass", where: Any = None, temperature: float = 1.0
) -> tuple[Any, Pullback]:
    """Return :func:`softmax` and its pullback ``dy -> (dx,)``."""
    _plain(where, temperature)
    rows = _rows(x, axis)
    _checks.one_of(algorithm, "algorithm", ALGORITHMS)
    y = rows.fresh()
    _run("softmax_rows", rows, rows.x, y)

    def pullback(dy: Any) -> tuple[Any]:
        dx = rows.fresh()
        _run("softmax_backward", rows, y, rows.cotangent(dy, "dy"), dx, cached=False)
        return (rows.back(dx),)

    return rows.back(y), pullback


def log_softmax(x: Any, *, axis: int = -1, where: Any = None, temperature: float = 1.0) -> Any:
    """Logarithm of the softmax of an array on a GPU; see :func:`refnorm.softmax.log_softmax`."""
    _plain(where, temperature)
    rows = _rows(x, axis)
    z = rows.fresh()
    _run("log_softmax_rows", rows, rows.x, z, None)
    return rows.back(z)


def log_softmax_vjp(x: Any, *, axis: int = -1, where: Any = None, temperature: float = 1.0) -> tuple[Any, Pullback]:
    """Return :func:`log_softmax` and its pullback ``dz -> (dx,)``."""
    _plain(where, temperature)
    rows = _rows(x, axis)
    z, stats = rows.fresh(), empty((rows.rows, 3), rows.dtype)
    _run("log_softmax_rows", rows, rows.x, z, stats)

    def pullback(dz: Any) -> tuple[Any]:
        dx = rows.fresh()
        _run("log_softmax_backward", rows, rows.x, stats, rows.cotangent(dz, "dz"), dx, cached=False)
        return (rows.back(dx),)

    return rows.back(z), pullback


def logsumexp(x: Any, *, axis: int = -1, keepdims: bool = False, where: Any = None, temperature: float = 1.0) -> Any:
    """Logarithm of the sum of exponentials of an array on a GPU; see :func:`refnorm.softmax.logsumexp`."""
    return logsumexp_vjp(x, axis=axis, keepdims=keepdims, where=where, temperature=temperature)[0]


def logsumexp_vjp(
    x: Any, *, axis: int = -1, keepdims: bool = False, where: Any = None, temperature: float = 1.0
) -> tuple[Any, Pullback]:
    """Return :func:`logsumexp` and its pullback ``dlse -> (dx,)``."""
    _plain(where, temperature)
    rows = _rows(x, axis)
    last = rows.order[-1]
    shape = tuple(1 if i == last else n for i, n in enumerate(rows.shape)) if keepdims else rows.outer
    value, stats = empty((rows.rows,), rows.dtype), empty((rows.rows, 3), rows.dtype)
    _run("logsumexp_rows", rows, rows.x, value, stats)

    def pullback(dlse: Any) -> tuple[Any]:
        dx = rows.fresh()
        g = cotangent(dlse, "dlse", shape, rows.dtype)
        _run("logsumexp_backward", rows, rows.x, stats, g, dx, cached=False)
        return (rows.back(dx),)

    return value.reshape(shape), pullback


def cross_entropy(
    logits: Any, target: Any, *, label_smoothing: float = 0.0, ignore_index: int = -100, reduction: str = "mean"
) -> Any:
    """Cross-entropy between softmax of logits on a GPU and labels; see :func:`refnorm.softmax.cross_entropy`.

    The labels are checked, for which the host waits for the GPU.
    """
    return cross_entropy_vjp(
        logits, target, label_smoothing=label_smoothing, ignore_index=ignore_index, reduction=reduction
    )[0]


def cross_entropy_vjp(
    logits: Any, target: Any, *, label_smoothing: float = 0.0, ignore_index: int = -100, reduction: str = "mean"
) -> tuple[Any, Pullback]:
    """Return :func:`cross_entropy` and its pullback ``dloss -> (dlogits,)``: one sweep over the logits each."""
    x = float_array(logits, "logits", ndim=2)
    _checks.not_empty(x, "logits", (1,))
    labels = integer_array(target, "target", ndim=1)
    _checks.shape(labels, "target", x.shape[:1])
    label_smoothing = float(number(label_smoothing))
    _checks.in_range(label_smoothing, "label_smoothing", 0, 1, closed="left")
    ignored = _checks.whole(ignore_index, "ignore_index")
    _checks.one_of(reduction, "reduction", _REDUCTIONS)
    if labels.dtype != np.int64:
        labels = labels.astype(np.int64)
    rows = Rows(x, 1)
    counted = _counted(labels, rows, ignored)
    if reduction == "mean" and counted == 0:
        _checks.fail("target", "at least one row that is not ignored for the mean", f"{rows.rows} rows, 0 counted")
    count = float(counted) if reduction == "mean" else 1.0

    per_row, stats = empty((rows.rows,), np.float64), empty((rows.rows, 3), rows.dtype)
    run_rows(
        "softmax", "cross_entropy_rows", rows.dtype, rows.rows, rows.length,
        x, labels, per_row, stats, rows.rows, rows.length, label_smoothing, ignored,
    )  # fmt: skip
    if reduction == "none":
        value = empty((rows.rows,), rows.dtype)
        run_elements("softmax", "losses", rows.dtype, rows.rows, per_row, value, rows.rows)
    else:
        value = empty((), rows.dtype)
        run("softmax", "total_loss", rows.dtype, 1, LARGE_TEAM, per_row, value, rows.rows, count)

    def pullback(dloss: Any) -> tuple[Any]:
        dlogits = rows.fresh()
        g = cotangent(dloss, "dloss", value.shape, rows.dtype)
        run_rows(
            "softmax", "cross_entropy_backward", rows.dtype, rows.rows, rows.length,
            x, labels, stats, g, reduction == "none", count, dlogits, rows.rows, rows.length, label_smoothing, ignored,
            cached=False,
        )  # fmt: skip
        return (dlogits,)

    return value, pullback


def _counted(labels: Any, rows: Rows, ignored: int) -> int:
    """Return the number of labels that count, or raise if one is no class."""
    result = empty((2,), np.int64)
    run("softmax", "count_targets", rows.dtype, 1, LARGE_TEAM, labels, result, rows.rows, rows.length, ignored)
    counted, first = (int(entry) for entry in to_host(result))
    if first < rows.rows:
        _checks.fail("target", f"classes from 0 to {rows.length - 1} or {ignored}", to_host(array(labels))[first])
    return counted
