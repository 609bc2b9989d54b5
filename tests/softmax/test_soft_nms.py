import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.softmax import SoftNMSResult, box_iou, box_iou_vjp, decay, decay_vjp, soft_nms, soft_nms_vjp

METHODS = ("gaussian", "linear", "hard")
HAND_BOXES = np.array([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]])
HAND_SCORES = np.array([0.9, 0.8, 0.7])


def some_boxes(seed, n, size=10.0, side=6.0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, size, (n, 2))
    # Scores far apart, so that no small move changes the order.
    return np.concatenate([corner, corner + rng.uniform(1, side, (n, 2))], axis=1), rng.permutation(n) * 0.9 / n + 0.1


def nms_case(name, boxes, scores, **options):
    def call(b, s):
        result, pullback = soft_nms_vjp(b, s, **options)
        return result.scores, pullback

    call.__name__ = "soft_nms_vjp"
    return GradientCase(soft_nms_vjp, (boxes, scores), call=call, name=name, step=1e-3)


A, B = some_boxes(1, 4)[0], some_boxes(2, 5)[0]
TWELVE = some_boxes(3, 12)
EQUAL = np.array([[0.0, 0, 4, 4], [0, 0, 4, 4], [1, 1, 3, 6]])

GRADIENT_CASES = [
    GradientCase(box_iou_vjp, (A, B), method="complex"),
    GradientCase(box_iou_vjp, (A, B), {"offset": 1.0}, method="complex", name="pixels"),
    GradientCase(box_iou_vjp, (A, B), name="differences", step=1e-3),
    GradientCase(box_iou_vjp, (A[:1], B + 100), method="complex", name="disjoint"),
    *(GradientCase(decay_vjp, (np.array([[0.0, 0.1], [0.4, 1.0]]),), {"method": m}, method="complex", name=m) for m in METHODS),
    GradientCase(decay_vjp, (np.array([0.2, 0.7]),), {"sigma": 0.05}, name="narrow, differences"),
    *(nms_case(m, *TWELVE, method=m, score_threshold=0.0) for m in METHODS),
    nms_case("pixels, labels, some dropped", *TWELVE, offset=1.0, labels=np.arange(12) % 2, score_threshold=0.15),
    nms_case("linear, many overlaps", *some_boxes(4, 8, size=2.0), method="linear", iou_threshold=0.1, score_threshold=0.0),
]  # fmt: skip


def textbook_nms(boxes, scores, threshold):
    left, kept = list(np.argsort(-scores, kind="stable")), []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if box_iou(boxes[[best]], boxes[[i]])[0, 0] <= threshold]
    return kept


def step_by_step(boxes, scores, factor, threshold):
    """The algorithm on Python lists."""
    left, out = {i: float(s) for i, s in enumerate(scores)}, []
    while left:
        best = max(left, key=lambda i: (left[i], -i))
        out.append((best, left.pop(best)))
        for i in list(left):
            left[i] *= factor(box_iou(boxes[[best]], boxes[[i]])[0, 0])
            if left[i] < threshold:
                del left[i]
    return out


@given(seed=st.integers(0, 9999), n=st.integers(0, 20), threshold=st.floats(0.05, 0.95))
def test_hard_decay_is_plain_suppression(seed, n, threshold):
    boxes, scores = some_boxes(seed, n)
    kept = soft_nms(boxes, scores, method="hard", iou_threshold=threshold)
    assert kept.indices.tolist() == textbook_nms(boxes, scores, threshold)
    np.testing.assert_array_equal(kept.scores, scores[kept.indices])


@given(seed=st.integers(0, 9999), n=st.integers(1, 12), method=st.sampled_from(METHODS[:2]))
def test_result_is_that_of_the_algorithm_on_lists(seed, n, method):
    boxes, scores = some_boxes(seed, n)
    factors = {"gaussian": lambda v: np.exp(-v * v / 0.5), "linear": lambda v: 1 - v if v > 0.3 else 1.0}
    expected = step_by_step(boxes, scores, factors[method], 0.05)
    kept = soft_nms(boxes, scores, method=method, score_threshold=0.05)
    assert kept.indices.tolist() == [i for i, _ in expected if scores[i] >= 0.05]
    np.testing.assert_allclose(kept.scores, [s for _, s in expected], rtol=1e-12)


@given(seed=st.integers(0, 9999), n=st.integers(0, 20), method=st.sampled_from(METHODS))
def test_scores_never_rise_and_nothing_is_kept_twice(seed, n, method):
    boxes, scores = some_boxes(seed, n)
    kept = soft_nms(boxes, scores, method=method)
    assert (np.diff(kept.scores) <= 0).all()
    assert len(set(kept.indices.tolist())) == len(kept.indices)
    assert (kept.scores <= scores[kept.indices]).all()
    if method != "hard":
        assert len(kept.indices) == n  # no score of these falls below a thousandth of the best


@given(seed=st.integers(0, 9999), n=st.integers(1, 12))
def test_moving_and_scaling_the_picture_changes_nothing(seed, n):
    boxes, scores = some_boxes(seed, n)
    kept, moved = soft_nms(boxes, scores), soft_nms(4 * boxes + 32, scores)
    np.testing.assert_array_equal(kept.indices, moved.indices)
    np.testing.assert_allclose(kept.scores, moved.scores, rtol=1e-12)
    # Hence the gradient is orthogonal to a shift of all boxes, and to their scaling about the origin.
    dboxes, _ = soft_nms_vjp(boxes, scores)[1](np.ones(len(kept.scores)))
    np.testing.assert_allclose(dboxes[:, 0::2].sum(), 0, atol=1e-12)
    np.testing.assert_allclose((dboxes * boxes).sum(), 0, atol=1e-11)


@given(seed=st.integers(0, 9999))
def test_overlap_is_symmetric_and_one_with_itself(seed):
    boxes, _ = some_boxes(seed, 6)
    iou = box_iou(boxes, boxes)
    np.testing.assert_array_equal(iou, iou.T)
    np.testing.assert_allclose(np.diag(iou), 1, rtol=1e-14)
    assert ((iou >= 0) & (iou <= 1 + 1e-15)).all()


def test_classes_are_suppressed_apart():
    boxes, scores = some_boxes(5, 15, size=4.0)
    labels = np.arange(15) % 3
    kept = soft_nms(boxes, scores, labels=labels)
    apart = []
    for label in range(3):
        own = np.flatnonzero(labels == label)
        part = soft_nms(boxes[own], scores[own])
        apart += list(zip(-part.scores, own[part.indices], strict=True))
    assert [i for _, i in sorted(apart)] == kept.indices.tolist()
    np.testing.assert_allclose(kept.scores, -np.array([s for s, _ in sorted(apart)]), rtol=1e-15)


def test_equal_scores_keep_their_order():
    boxes = np.array([[9.0, 0, 10, 1], [3, 0, 4, 1], [6, 0, 7, 1], [0, 0, 1, 1]])
    assert soft_nms(boxes, np.full(4, 0.5)).indices.tolist() == [0, 1, 2, 3]


def test_lone_weak_box_stays_only_if_overlap_decides():
    scores = np.array([0.9, 0.8, 1e-4])
    assert soft_nms(HAND_BOXES, scores).indices.tolist() == [0, 1]
    assert soft_nms(HAND_BOXES, scores, prune="overlap").indices.tolist() == [0, 1, 2]
    touching = np.array([0.9, 1e-3, 0.7])
    assert soft_nms(HAND_BOXES, touching, prune="overlap").indices.tolist() == [0, 2]


def test_hard_suppression_deletes_at_a_threshold_of_zero():
    assert soft_nms(HAND_BOXES, HAND_SCORES, method="hard", score_threshold=0.0).indices.tolist() == [0, 2]


def test_overlap_at_the_threshold_costs_nothing():
    for method in ("linear", "hard"):
        assert (decay(np.array([0.5]), method=method, iou_threshold=0.5) == 1).all()
    assert decay(np.array([0.5000001]), method="hard", iou_threshold=0.5) == 0


def test_no_boxes():
    kept, pullback = soft_nms_vjp(np.zeros((0, 4)), np.zeros(0))
    assert kept.indices.shape == kept.scores.shape == (0,)
    dboxes, dscores = pullback(np.zeros(0))
    assert (dboxes.shape, dscores.shape) == ((0, 4), (0,))
    assert box_iou(np.zeros((0, 4)), HAND_BOXES).shape == (0, 3)


def test_boxes_without_area_overlap_nothing():
    boxes = np.array([[1.0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 4, 0], [0, 0, 4, 4]])
    iou, pullback = box_iou_vjp(boxes, boxes)
    np.testing.assert_array_equal(iou, np.diag([0.0, 0, 0, 1]))
    da, _ = pullback(np.ones((4, 4)))
    assert np.isfinite(da).all()
    assert (da[:2] == 0).all()
    assert (np.diag(box_iou(boxes, boxes, offset=1.0)) == 1).all()


def test_equal_boxes_kill_each_other_linearly_and_keep_a_gradient():
    scores = np.array([0.9, 0.8, 0.3])
    kept, pullback = soft_nms_vjp(EQUAL, scores, method="linear", iou_threshold=0.0, score_threshold=0.0)
    assert kept.indices.tolist() == [0, 2, 1]
    assert kept.scores[2] == 0
    dboxes, dscores = pullback(np.array([0.0, 0.0, 1.0]))
    assert dscores[1] == 0
    iou = box_iou(EQUAL, EQUAL)
    # s'_1 = s_1 (1 - iou_01)(1 - iou_12): the slope in iou_01 is -s_1 (1 - iou_12), not 0 / 0.
    expected = box_iou_vjp(EQUAL[:1], EQUAL[1:2])[1](np.array([[-0.8 * (1 - iou[1, 2])]]))
    np.testing.assert_allclose(dboxes[0], expected[0][0], rtol=1e-14)


def test_coinciding_corners_share_the_gradient():
    da, db = box_iou_vjp(HAND_BOXES[:1], HAND_BOXES[1:2])[1](np.ones((1, 1)))
    # inter = 50, union = 100; d iou = 0.015 d inter - 0.005 (d area_a + d area_b)
    np.testing.assert_allclose(
        da[0], [-0.015 * 5 / 2 + 0.005 * 10, 0.05 - 0.015 * 10 / 2, 0.0375 - 0.05, -0.05], rtol=1e-13
    )
    np.testing.assert_allclose(db[0], [-0.0375 + 0.025, -0.075 + 0.05, 0.0375 - 0.025, 0.15 - 0.05], rtol=1e-13)


def test_dropped_boxes_get_no_gradient():
    kept, pullback = soft_nms_vjp(HAND_BOXES, HAND_SCORES, method="hard")
    dboxes, dscores = pullback(np.ones(2))
    assert kept.indices.tolist() == [0, 2]
    assert (dboxes == 0).all()
    assert dscores.tolist() == [1, 0, 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_nothing_is_written_to(dtype):
    boxes, scores = (a.astype(dtype) for a in TWELVE)
    boxes.setflags(write=False)
    scores.setflags(write=False)
    kept, pullback = soft_nms_vjp(boxes, scores)
    assert isinstance(kept, SoftNMSResult)
    assert kept.scores.dtype == dtype
    assert [d.dtype for d in pullback(kept.scores)] == [dtype] * 2
    iou, back = box_iou_vjp(boxes, boxes)
    assert iou.dtype == dtype
    assert [d.dtype for d in back(iou)] == [dtype] * 2
    factor, back = decay_vjp(iou)
    assert (factor.dtype, back(iou)[0].dtype) == (dtype, dtype)
    np.testing.assert_array_equal(kept.indices, soft_nms(*TWELVE).indices)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: box_iou(np.zeros((2, 3)), A), ValueError, r"a: expected shape \(2, 4\), got \(2, 3\)"),
        (lambda: box_iou(A, A[0]), ValueError, r"b: expected 2 dimensions, got shape \(4,\)"),
        (lambda: box_iou(A, B.astype("f4")), TypeError, "b: expected dtype float64 like a, got float32"),
        (lambda: box_iou(A, B, offset=-1.0), ValueError, "offset: expected a finite number >= 0, got -1.0"),
        (lambda: box_iou(A[:, ::-1], B), ValueError, "a: expected x1 <= x2 and y1 <= y2 in every box, got .* at index 0"),
        (lambda: box_iou(np.full((1, 4), np.nan), B), ValueError, "a: expected finite values, got 4 that are not"),
        (lambda: decay(np.array([1])), TypeError, "iou: expected a float32 or float64 array"),
        (lambda: decay(np.ones(1), method="soft"), ValueError, "method: expected one of 'gaussian', 'linear', 'hard', got 'soft'"),
        (lambda: decay(np.ones(1), sigma=0.0), ValueError, "sigma: expected a finite number > 0, got 0.0"),
        (lambda: decay(np.ones(1), iou_threshold=1.5), ValueError, r"iou_threshold: expected a number in \[0.0, 1.0\], got 1.5"),
        (lambda: soft_nms(A, np.ones(3)), ValueError, r"scores: expected shape \(4,\), got \(3,\)"),
        (lambda: soft_nms(A, -np.ones(4)), ValueError, "scores: expected numbers of at least 0, got -1.0"),
        (lambda: soft_nms(A, np.full(4, np.inf)), ValueError, "scores: expected finite values"),
        (lambda: soft_nms(A, np.ones(4), prune="none"), ValueError, "prune: expected one of 'all', 'overlap', got 'none'"),
        (lambda: soft_nms(A, np.ones(4), score_threshold=-1.0), ValueError, "score_threshold: expected a finite number >= 0"),
        (lambda: soft_nms(A, np.ones(4), labels=np.ones(4)), TypeError, "labels: expected an integer array, got dtype float64"),
        (lambda: soft_nms(A, np.ones(4), labels=np.ones(3, int)), ValueError, r"labels: expected shape \(4,\), got \(3,\)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
