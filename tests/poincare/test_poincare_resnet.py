import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from refnorm import poincare
from refnorm.gradcheck import GradientCase, check_vjp
from refnorm.poincare import PoincareResNet, init_conv2d_identity, poincare_resnet, poincare_resnet_vjp
from refnorm.poincare._poincare_resnet import LAYERS
from refnorm.tree import tree_leaves, tree_map

ROOT = Path(__file__).resolve().parents[2]
SMALL = PoincareResNet(
    channels=(2, 3, 4), blocks=(1, 1, 1), channels_in=1, classes=3, curvature=0.5, init_kind="baseline"
)


def moved(tree, seed=0):
    """Parameters away from their initial values."""
    rng = np.random.default_rng(seed)

    def one(leaf):
        if leaf.ndim == 2:
            return (2 * leaf + 0.1 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)
        noise = 0.1 * rng.standard_normal(leaf.shape) if leaf.ndim else rng.uniform(-0.3, 0.3)
        return (leaf + noise).astype(leaf.dtype)

    return tree_map(one, tree)


PARAMS = moved(SMALL.init(np.random.default_rng(1)))
RUNNING = moved(SMALL.init_running(), 2)
X = np.random.default_rng(3).standard_normal((2, 1, 5, 5))
GRADIENT_CASES = [
    GradientCase(poincare_resnet_vjp, (PARAMS, X, 0.5, None), step=1e-3, name="training"),
    GradientCase(poincare_resnet_vjp, (PARAMS, X, 0.5, RUNNING), {"order": "rf"}, step=1e-3, name="inference"),
]


def test_methods_are_the_function_with_the_configuration_s_options():
    network = dataclasses.replace(SMALL, order="rf", eps=1e-3)
    expected, pullback = poincare_resnet_vjp(PARAMS, X, 0.5, RUNNING, order="rf", eps=1e-3)
    np.testing.assert_array_equal(network.forward(PARAMS, X, RUNNING), expected)
    dparams, dx, _, drunning = pullback(expected)
    for (path, left), (_, right) in zip(
        tree_leaves(network.forward_vjp(PARAMS, X, RUNNING)[1](expected)),
        tree_leaves((dparams, dx, drunning)),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right, err_msg=path)


def composed(params, x, curvature, running, order):
    """Compute the logits of a network with a shortcut in every block but the first by the room's functions alone."""

    def conv(layer, y, **options):
        return poincare.conv2d(y, layer["weight"], layer["bias"], curvature, **options)

    def norm(layer, y, given):
        statistics = () if given is None else (given["mean"], given["var"])
        return poincare.midpoint_batch_norm(y, layer["bias"], layer["gain"], curvature, *statistics)

    def relu(y):
        return poincare.relu(y, curvature, axis=1)

    y = conv(params["conv"], poincare.exp0(x, curvature, axis=1), kernel=3, padding=1)
    y = relu(norm(params["norm"], y, running and running["norm"]))
    for number, block in enumerate(params["blocks"]):
        given = running["blocks"][number] if running else {"norm1": None, "norm2": None}
        stride = 2 if number else 1
        f = relu(norm(block["norm1"], conv(block["conv1"], y, kernel=3, padding=1, stride=stride), given["norm1"]))
        f = norm(block["norm2"], conv(block["conv2"], f, kernel=3, padding=1), given["norm2"])
        skip = conv(block["shortcut"], y, kernel=1, stride=2) if number else y
        y = relu(poincare.residual_add(f, skip, curvature, order=order, axis=1))
    pooled = poincare.avg_pool2d(y, curvature, size=y.shape[2:])[:, :, 0, 0]
    points = poincare.fully_connected(pooled, params["head"]["weight"], params["head"]["bias"], curvature)
    return poincare.log0(points, curvature)


@pytest.mark.parametrize("order", ["fr", "rf"])
@pytest.mark.parametrize("running", [None, RUNNING])
@pytest.mark.parametrize("gain", [1.0, 500.0])
def test_the_network_is_its_layers_one_after_the_other(order, running, gain):
    # With the larger gain normalized points lie beyond the margin, and are projected.
    params = tree_map(lambda leaf: leaf if leaf.ndim else gain * leaf, PARAMS)
    expected = composed(params, X, 0.5, running, order)
    np.testing.assert_allclose(poincare_resnet(params, X, 0.5, running, order=order), expected, rtol=1e-10, atol=1e-12)


def test_layers_may_be_others_and_run_again_only_if_told():
    calls = []

    def relu_vjp(*args, **options):
        calls.append(args)
        return LAYERS.relu_vjp(*args, **options)

    ops = SimpleNamespace(**{**vars(LAYERS), "relu_vjp": relu_vjp})
    y = poincare_resnet(PARAMS, X, 0.5, ops=ops)
    assert len(calls) == 7
    for options, times in (({}, 7), ({"recompute": False}, 7), ({"recompute": True}, 14)):
        calls.clear()
        logits, pullback = poincare_resnet_vjp(PARAMS, X, 0.5, ops=ops, **options)
        np.testing.assert_array_equal(logits, y)
        pullback(logits)
        assert len(calls) == times


def test_training_returns_the_statistics_that_make_inference_the_same():
    logits, statistics, pullback = SMALL.training_vjp(PARAMS, X)
    np.testing.assert_array_equal(logits, SMALL.forward(PARAMS, X))
    np.testing.assert_allclose(SMALL.forward(PARAMS, X, statistics), logits, rtol=1e-9)
    assert pullback(logits)[2] is None
    running = SMALL.update_running(SMALL.init_running(), statistics, momentum=1.0)
    for (path, left), (_, right) in zip(tree_leaves(running), tree_leaves(statistics), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-15, err_msg=path)


@pytest.mark.parametrize("running", [None, RUNNING])
def test_computing_again_changes_nothing(running):
    logits, pullback = SMALL.forward_vjp(PARAMS, X, running)
    again, lean = dataclasses.replace(SMALL, recompute=True).forward_vjp(PARAMS, X, running)
    np.testing.assert_array_equal(logits, again)
    for (_, left), (_, right) in zip(tree_leaves(pullback(logits)), tree_leaves(lean(logits)), strict=True):
        np.testing.assert_array_equal(left, right)
    function, _ = poincare_resnet_vjp(PARAMS, X, 0.5, running, recompute=True)
    np.testing.assert_array_equal(function, logits)


def test_in_inference_images_do_not_see_each_other():
    together = SMALL.forward(PARAMS, X, RUNNING)
    alone = np.concatenate([SMALL.forward(PARAMS, x[None], RUNNING) for x in X])
    np.testing.assert_allclose(together, alone, rtol=1e-9)
    in_batch = np.concatenate([SMALL.forward(PARAMS, x[None]) for x in X])
    assert np.abs(in_batch - SMALL.forward(PARAMS, X)).max() > 1e-3


@pytest.mark.parametrize(("depth", "blocks"), [(8, 1), (20, 3), (32, 5)])
def test_depths_and_sizes_of_the_paper(depth, blocks):
    network = PoincareResNet.of_depth(depth)
    params = network.init(np.random.default_rng(0))
    assert network.channels == (8, 16, 32)
    assert network.blocks == (blocks,) * 3
    assert network.depth == depth
    weights = [path for path, leaf in tree_leaves(params) if leaf.ndim == 2 and "shortcut" not in path]
    assert len(weights) == depth
    assert params["blocks"][blocks]["shortcut"]["weight"].shape == (8, 16)
    assert params["head"]["weight"].shape == (32, 10)


@pytest.mark.parametrize("depth", [20, 32])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_paper_s_networks_run_in_both_precisions(depth, dtype):
    network = PoincareResNet.of_depth(depth, init_kind="centre", dtype=dtype)
    params = network.init(np.random.default_rng(0))
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(dtype)
    logits, statistics, pullback = network.training_vjp(params, x)
    dparams, dx, _ = pullback(np.ones_like(logits))
    assert {leaf.dtype for _, leaf in tree_leaves((logits, statistics, dparams, dx))} == {np.dtype(dtype)}
    assert all(np.isfinite(leaf).all() for _, leaf in tree_leaves((logits, dparams, dx)))


def test_single_precision_gives_double_precision_s_logits():
    narrow = dataclasses.replace(SMALL, dtype=np.float32)
    params = tree_map(lambda leaf: leaf.astype(np.float32), PARAMS)
    wide = tree_map(lambda leaf: leaf.astype(np.float64), params)
    x = X.astype(np.float32)
    expected = SMALL.forward(wide, x.astype(np.float64))
    assert np.abs(narrow.forward(params, x) - expected).max() < 1e-5 * np.abs(expected).max()


def test_initial_weights_are_of_the_kind_that_is_asked_for():
    params = PoincareResNet(channels=(8, 4, 4), init_kind="unfolded").init(np.random.default_rng(0))
    assert (params["conv"]["weight"].argmax(axis=0) == np.arange(8)).all()
    assert not any(leaf.any() for path, leaf in tree_leaves(params) if path.endswith("bias"))
    assert all(leaf == 1 for path, leaf in tree_leaves(params) if path.endswith("gain"))
    longer = PoincareResNet(channels=(8, 4, 4), init_kind="centre", keep_length=True).init(np.random.default_rng(0))
    assert longer["conv"]["weight"].max() > 1
    weight = PoincareResNet(init_kind="baseline").init(np.random.default_rng(0))["blocks"][-1]["conv2"]["weight"]
    np.testing.assert_allclose(weight.var(), 1 / (2 * 9 * 32 * 32), rtol=0.05)


@pytest.mark.parametrize("kind", ["unfolded", "centre", "baseline"])
def test_initial_trees(kind):
    network = PoincareResNet(channels=(2, 3, 4), blocks=(2, 1, 2), channels_in=2, init_kind=kind, dtype=np.float32)
    params, running = network.init(np.random.default_rng(0)), network.init_running()
    assert {leaf.dtype for _, leaf in tree_leaves((params, running))} == {np.dtype(np.float32)}
    assert ["shortcut" in block for block in params["blocks"]] == [False, False, True, True, False]
    assert [block["conv1"]["weight"].shape for block in params["blocks"]] == [
        (18, 2),
        (18, 2),
        (18, 3),
        (27, 4),
        (36, 4),
    ]
    for path, leaf in tree_leaves(running):
        assert (leaf == (1 if path.endswith("var") else 0)).all()
    assert [block["norm2"]["mean"].shape for block in running["blocks"]] == [(2,), (2,), (3,), (4,), (4,)]
    if kind != "baseline":
        expected, _ = init_conv2d_identity(4, 4, 3, identity=kind, dtype=np.float32)
        np.testing.assert_array_equal(params["blocks"][-1]["conv2"]["weight"], expected)


def test_gains_are_kept_positive_and_nothing_else_changes():
    params = tree_map(lambda leaf: leaf, PARAMS)
    params["norm"]["gain"] = np.array(-0.5)
    params["blocks"][1]["norm2"]["gain"] = np.array(1e-9)
    bounded = SMALL.constrain(params)
    assert bounded["norm"]["gain"] == bounded["blocks"][1]["norm2"]["gain"] == 1e-3
    changed = [
        path
        for (path, left), (_, right) in zip(tree_leaves(params), tree_leaves(bounded), strict=True)
        if not np.array_equal(left, right)
    ]
    assert changed == ["norm.gain", "blocks.1.norm2.gain"]


def test_arguments_are_not_written_to_and_the_pullback_may_be_called_again():
    for _, leaf in tree_leaves((PARAMS, X, RUNNING)):
        leaf.setflags(write=False)
    logits, pullback = SMALL.forward_vjp(PARAMS, X, RUNNING)
    for (_, left), (_, right) in zip(tree_leaves(pullback(logits)), tree_leaves(pullback(logits)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_what_is_left_out_is_the_paper_s():
    explicit = PoincareResNet(
        channels=(8, 16, 32), blocks=(3, 3, 3), channels_in=3, classes=10, curvature=0.1, init_kind="unfolded",
        keep_length=False, order="fr", eps=1e-6, recompute=False, dtype=np.float64,
    )  # fmt: skip
    assert PoincareResNet() == explicit
    _, statistics, _ = SMALL.training_vjp(PARAMS, X)
    pair = (SMALL.update_running(RUNNING, statistics, **options) for options in ({}, {"momentum": 0.1}))
    for (path, left), (_, right) in zip(*map(tree_leaves, pair), strict=True):
        np.testing.assert_array_equal(left, right, err_msg=path)


def test_the_smallest_network():
    network = PoincareResNet(channels=(1, 1, 1), blocks=(1, 1, 1), channels_in=1, classes=1)
    assert network.forward(network.init(np.random.default_rng(0)), X).shape == (2, 1)


def test_images_of_any_size_and_number():
    network = PoincareResNet(channels=(2, 2, 2), blocks=(1, 1, 1), channels_in=2, classes=4, init_kind="centre")
    params = network.init(np.random.default_rng(0))
    for shape in ((1, 2, 1, 1), (3, 2, 7, 4), (2, 2, 9, 9)):
        x = np.random.default_rng(1).standard_normal(shape)
        logits, pullback = network.forward_vjp(params, x)
        assert logits.shape == (shape[0], 4)
        assert pullback(logits)[1].shape == shape


def test_methods_gradient_without_curvature():
    report = check_vjp(SMALL.forward_vjp, PARAMS, X, None, directions=1, options={}, step=1e-3)
    assert report.worst_error < 1e-8


def test_training_script_learns_writes_and_refuses(tmp_path):
    script = [sys.executable, str(ROOT / "tools" / "train_poincare_digits")]
    options = ["--epochs", "1", "--images", "64", "--batch", "32", "--channels", "2,2,2"]
    out = tmp_path / "digits.npz"
    done = subprocess.run([*script, *options, "--out", str(out)], capture_output=True, text=True, check=True)
    assert "epoch 1, loss" in done.stdout
    assert "held-out accuracy" in done.stdout.splitlines()[-2]
    with np.load(out) as file:
        assert file["params.head.weight"].shape == (2, 10)
        assert file["running.norm.var"].shape == ()
    assert [path.name for path in tmp_path.iterdir()] == ["digits.npz"]
    wrong = subprocess.run([*script, "--depth", "9"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "depth: expected 2 more than a multiple of 6, got 9" in wrong.stderr


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PoincareResNet(channels=(2, 2)), ValueError, r"channels: expected three integers, got \(2, 2\)"),
        (lambda: PoincareResNet(blocks=(1, 0, 1)), ValueError, "blocks: expected an integer >= 1, got 0"),
        (lambda: PoincareResNet(channels_in=0), ValueError, "channels_in: expected an integer >= 1, got 0"),
        (lambda: PoincareResNet(classes=0), ValueError, "classes: expected an integer >= 1, got 0"),
        (lambda: PoincareResNet(channels=(2, 0, 2)), ValueError, "channels: expected an integer >= 1, got 0"),
        (lambda: PoincareResNet(channels=(2, 2.0, 2)), TypeError, "channels: expected an integer, got 2.0"),
        (lambda: PoincareResNet(eps=0.0), ValueError, "eps: expected a finite number > 0, got 0.0"),
        (lambda: PoincareResNet(curvature=0.0), ValueError, "curvature: expected a finite number > 0, got 0.0"),
        (lambda: PoincareResNet(init_kind="zero"), ValueError, "init_kind: expected one of 'unfolded', 'centre', 'baseline'"),
        (lambda: PoincareResNet(order="x"), ValueError, "order: expected one of 'fr', 'rf', got 'x'"),
        (lambda: PoincareResNet(dtype=int), ValueError, "dtype: expected one of"),
        (lambda: PoincareResNet.of_depth(21), ValueError, "depth: expected 2 more than a multiple of 6, got 21"),
        (lambda: PoincareResNet.of_depth(2), ValueError, "depth: expected an integer >= 8, got 2"),
        (lambda: PoincareResNet().init(3), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: poincare_resnet(PARAMS, X.astype(int), 0.5), TypeError, "x: expected a float32 or float64 array"),
        (lambda: poincare_resnet(PARAMS, X[0], 0.5), ValueError, "x: expected 4 dimensions"),
        (lambda: SMALL.init(3), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: SMALL.forward(PARAMS, X[0]), ValueError, r"x: expected 4 dimensions, got shape \(1, 5, 5\)"),
        (lambda: SMALL.forward(PARAMS, X.astype("f4")), TypeError, "x: expected dtype float64, got float32"),
        (lambda: SMALL.forward(PARAMS, np.tile(X, (1, 2, 1, 1))), ValueError, r"x: expected shape \(N, 1, H, W\), got \(2, 2, 5, 5\)"),
        (lambda: poincare_resnet(PARAMS, X, -1.0), ValueError, "curvature: expected a finite number > 0, got -1.0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
