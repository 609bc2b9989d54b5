"""Soft-NMS against the reference."""

from __future__ import annotations

import doctest
import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refnorm.softmax as reference
import refnorm_fast.softmax as fast
from refnorm_fast.softmax import _boxes
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]
EPS = {np.dtype(np.float32): 2.0**-23, np.dtype(np.float64): 2.0**-52}


@pytest.fixture(params=support.ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    with support.using_isa(request.param):
        yield request.param


def random_boxes(rng: np.random.Generator, n: int, dtype: type, size: int = 8) -> AnyArray:
    """Whole corners: equal boxes, touching ones and ones without area occur."""
    begin = rng.integers(0, 2 * size, size=(n, 2))
    return np.concatenate([begin, begin + rng.integers(0, size, size=(n, 2))], axis=1).astype(dtype)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_box_iou(dtype: type) -> None:
    rng = np.random.default_rng(0)
    for m in (0, *range(1, 40), 300):
        a, b = random_boxes(rng, 5, dtype), random_boxes(rng, m, dtype)
        b[:, 2:] += rng.random((m, 1)).astype(dtype)
        for offset in (0.0, 1.0):
            expected = reference.box_iou(a, b, offset=offset)
            found = fast.box_iou(a, b, offset=offset)
            assert found.dtype == expected.dtype
            np.testing.assert_allclose(found, expected, rtol=2 * EPS[a.dtype], err_msg=f"{m}")
            for out in (np.empty_like(expected), np.empty_like(expected).T.copy().T):
                assert fast.box_iou(a, b, offset=offset, out=out) is out
                np.testing.assert_array_equal(out, found)
    value, pullback = fast.box_iou_vjp(a, b)
    for one, other in zip(pullback(value), reference.box_iou_vjp(a, b)[1](value), strict=True):
        np.testing.assert_array_equal(one, other)
    for count in (1, 2):
        with support.threads(count):
            np.testing.assert_array_equal(fast.box_iou(np.repeat(b, 9, axis=0), b)[::9], fast.box_iou(b, b))


@functools.cache
def detections(
    method: str, prune: str, dtype: type
) -> list[tuple[AnyArray, AnyArray, list[tuple[dict[str, Any], Any]]]]:
    """Boxes and scores, and what the reference keeps of them by several options; the same for all instruction sets."""
    rng, found = np.random.default_rng(0), []
    for n in (0, 1, 2, 3, 7, 8, 9, 17, 100, 333):
        boxes = random_boxes(rng, n, dtype, size=3 + n // 10)
        scores = (rng.integers(0, 20, n) / 20).astype(dtype)  # equal scores occur
        kept = []
        for labels in (None, rng.integers(-2, 2, n)):
            for threshold, offset in ((1e-3, 0.0), (0.0, 1.0), (0.4, 0.0)):
                options: dict[str, Any] = {"method": method, "prune": prune, "labels": labels, "offset": offset}
                options |= {"score_threshold": threshold, "iou_threshold": 0.25}
                kept.append((options, reference.soft_nms(boxes, scores, **options)))
        found.append((boxes, scores, kept))
    return found


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("prune", ["all", "overlap"])
@pytest.mark.parametrize("method", ["gaussian", "linear", "hard"])
def test_soft_nms(method: str, prune: str, dtype: type) -> None:
    for boxes, scores, results in detections(method, prune, dtype):
        for options, wanted in results:
            kept = fast.soft_nms(boxes, scores, **options)
            np.testing.assert_array_equal(kept.indices, wanted.indices, err_msg=f"{len(boxes)} {options}")
            np.testing.assert_allclose(kept.scores, wanted.scores, rtol=16 * EPS[boxes.dtype])
            assert kept.scores.dtype == dtype
            assert kept.indices.dtype == wanted.indices.dtype
        value, pullback = fast.soft_nms_vjp(boxes, scores, method=method)
        expected, reference_pullback = reference.soft_nms_vjp(boxes, scores, method=method)
        np.testing.assert_array_equal(value.indices, expected.indices)
        for one, other in zip(pullback(value.scores), reference_pullback(value.scores), strict=True):
            np.testing.assert_array_equal(one, other)


@given(st.integers(0, 2**32), st.integers(0, 60), st.sampled_from(support.ISAS), st.floats(0.05, 3))
def test_equals_the_reference(seed: int, n: int, isa: str, sigma: float) -> None:
    rng = np.random.default_rng(seed)
    boxes, scores = 10 * rng.random((n, 4)), rng.random(n)
    boxes[:, 2:] += boxes[:, :2]
    with support.using_isa(isa):
        kept = fast.soft_nms(boxes[::-1], np.repeat(scores, 2)[::2], sigma=sigma)
    wanted = reference.soft_nms(boxes[::-1], scores, sigma=sigma)
    np.testing.assert_array_equal(kept.indices, wanted.indices)
    np.testing.assert_allclose(kept.scores, wanted.scores, rtol=1e-12)


BOXES, SCORES = np.array([[0.0, 0.0, 1.0, 1.0]] * 2), np.ones(2)
ERRORS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("box_iou", (BOXES, BOXES[:, :3]), {}),
    ("box_iou", (BOXES, BOXES.astype(np.float32)), {}),
    ("box_iou", (BOXES, BOXES * np.nan), {}),
    ("box_iou", (BOXES, -BOXES), {}),
    ("box_iou", (BOXES, BOXES), {"offset": -1.0}),
    ("soft_nms", (BOXES, SCORES[:1]), {}),
    ("soft_nms", (BOXES, -SCORES), {}),
    ("soft_nms", (BOXES, SCORES * np.inf), {}),
    ("soft_nms", (BOXES, SCORES.astype(np.float32)), {}),
    ("soft_nms", (BOXES, SCORES), {"method": "cubic"}),
    ("soft_nms", (BOXES, SCORES), {"sigma": 0.0}),
    ("soft_nms", (BOXES, SCORES), {"iou_threshold": 1.5}),
    ("soft_nms", (BOXES, SCORES), {"score_threshold": -1.0}),
    ("soft_nms", (BOXES, SCORES), {"prune": "none"}),
    ("soft_nms", (BOXES, SCORES), {"labels": np.zeros(2)}),
    ("soft_nms", (BOXES, SCORES), {"labels": np.zeros(3, int)}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), ERRORS)
def test_errors_are_the_references(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    for suffix in ("", "_vjp"):
        with pytest.raises((TypeError, ValueError)) as expected:
            getattr(reference, name + suffix)(*arguments, **options)
        with pytest.raises(expected.type) as raised:
            getattr(fast, name + suffix)(*arguments, **options)
        assert str(raised.value) == str(expected.value)


def test_inputs_are_not_written() -> None:
    boxes, scores = support.read_only(BOXES), support.read_only(SCORES)
    kept = fast.soft_nms(boxes, scores)
    np.testing.assert_array_equal(kept.indices, [0, 1])
    np.testing.assert_array_equal(scores, 1)


def test_examples() -> None:
    outcome = doctest.testmod(_boxes, extraglobs={"np": np})
    assert outcome.failed == 0
    assert outcome.attempted > 5
