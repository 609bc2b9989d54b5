"""Two objects side by side, and what two ways of suppression leave of their detections."""

import numpy as np

from refnorm.softmax import soft_nms

COLORS = ["#1f77b4"] * 3 + ["#d62728"] * 3


def detections():
    """Three noisy boxes of each of two upright objects that overlap."""
    rng = np.random.default_rng(1)
    objects = np.array([[0.0, 0, 4, 9], [1.7, 0.5, 5.7, 9.5]])
    boxes = np.repeat(objects, 3, axis=0) + 0.3 * rng.standard_normal((6, 4))
    return boxes, np.array([0.95, 0.75, 0.65, 0.9, 0.8, 0.6])


def figure():
    """Six detections of two objects, blue solid and red dashed, three of each; lines are as thick as scores are high, and the bars below are the scores in
    the order of the boxes.
    Hard suppression with threshold 0.3 keeps one box: the second object overlaps the first by 0.43 and is lost. Gaussian Soft-NMS lowers its best
    box from 0.90 to 0.62 and each duplicate below 0.14, so that the two best of the list are the two objects."""
    import matplotlib.pyplot as plt

    boxes, scores = detections()
    kept = {"detections": scores}
    for name, options in (
        ("hard, 0.3", {"method": "hard", "iou_threshold": 0.3}),
        ("Gaussian", {"method": "gaussian"}),
    ):
        result = soft_nms(boxes, scores, **options)
        kept[name] = np.zeros(6)
        kept[name][result.indices] = result.scores
    fig, axes = plt.subplots(2, 3, figsize=(7, 3.6), layout="constrained", height_ratios=(2.2, 1), sharey="row")
    for (top, bottom), (name, score) in zip(axes.T, kept.items(), strict=True):
        for (x1, y1, x2, y2), s, color in zip(boxes, score, COLORS, strict=True):
            if s:
                style = "-" if color == COLORS[0] else "--"
                top.add_patch(
                    plt.Rectangle(
                        (x1, y1),
                        x2 - x1,
                        y2 - y1,
                        fill=False,
                        edgecolor=color,
                        linestyle=style,
                        linewidth=0.4 + 2.6 * s,
                    )
                )
        top.set(xlim=(-2, 8), ylim=(-1, 10.5), aspect="equal")
        top.set_title(name, fontsize=11)
        top.axis("off")
        bottom.bar(range(6), score, color=COLORS)
        bottom.set(xticks=[1, 4], xticklabels=["first", "second"], ylim=(0, 1.05))
        bottom.tick_params(axis="x", length=0)
    axes[1, 0].set_ylabel("score")
    return fig
