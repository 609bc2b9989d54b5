"""Truth for coordinate-aware modulation: hand calculations, PyTorch in float64, SciPy's interpolation."""

import numpy as np
import scipy
import torch
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import map_coordinates

from refnorm.conformance import GoldenCase, Tolerance

TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
SCIPY = f"scipy {scipy.__version__}"


def torch_grid(grid, x):
    """grid_sample reads coordinate 0 along the last axis, from -1 to 1: coordinates are flipped and stretched."""
    if grid.ndim == 2:
        grid, x = grid[:, :, None], torch.stack([x[:, 0], torch.zeros(len(x), dtype=x.dtype)], 1)
    places = (2 * x.flip(1) - 1)[None, :, None]
    read = torch.nn.functional.grid_sample(
        grid[None], places, mode="bilinear", padding_mode="border", align_corners=True
    )
    return read[0, :, :, 0].T


def torch_layer(h, weight, bias, grid, x, normalize, relu):
    a = h @ weight + bias
    if normalize:
        a = torch.nn.functional.layer_norm(a, (a.shape[1],), eps=1e-5)
    scale, shift = torch_grid(grid, x).T[:, :, None]
    y = scale * a + shift
    return torch.relu(y) if relu else y


def cases():
    rng = np.random.default_rng(231114993)
    found = []

    def add(function, name, args, expected, source, tolerance, **more):
        found.append(
            GoldenCase(function=f"norms.{function}", name=name, args=args, expected=expected, source=source, tolerance=tolerance, **more)
        )  # fmt: skip

    def with_gradient(function, name, args, model, options=None):
        tensors = [torch.tensor(a, requires_grad=True) for a in args]
        value = model(*tensors)
        cotangent = rng.standard_normal(value.shape)
        value.backward(torch.tensor(cotangent))
        common = {"options": options or {}}
        tolerance = Tolerance(1e-12, "relative_of_largest")
        add(function, name, args, value.detach().numpy(), TORCH, tolerance, **common)
        add(
            function,
            name,
            args,
            tuple(t.grad.numpy() for t in tensors),
            TORCH,
            tolerance,
            cotangent=cotangent,
            **common,
        )

    line, x = np.array([[0.0, 10.0, 40.0]]), np.array([[0.25], [0.75], [1.5]])
    add(
        "grid_interpolate",
        "a line",
        (line, x),
        np.array([[5.0], [25.0], [40.0]]),
        "by hand: u = 0.5, 1.5, at the border",
        Tolerance(),
    )
    expected = (np.array([[0.5, 1.0, 1.5]]), np.array([[20.0], [60.0], [0.0]]))
    add(
        "grid_interpolate",
        "a line",
        (line, x),
        expected,
        "by hand: weights and slopes of the cells",
        Tolerance(),
        cotangent=np.ones((3, 1)),
    )
    square = (np.array([[[0.0, 1.0], [2.0, 3.0]]]), np.array([[0.25, 0.5]]))
    add(
        "grid_interpolate",
        "a square",
        square,
        np.array([[1.0]]),
        "by hand: rows (0.5, 1.5), then their middle",
        Tolerance(),
    )

    for nodes, n in (((5,), 7), ((2,), 3), ((4, 6), 9), ((2, 3), 4)):
        args = (rng.standard_normal((2, *nodes)), rng.uniform(-0.2, 1.2, (n, len(nodes))))
        with_gradient("grid_interpolate", f"nodes {nodes}", args, torch_grid)
        axes = [np.linspace(0, 1, size) for size in nodes]
        places = np.clip(args[1], 0, 1)
        read = RegularGridInterpolator(axes, np.moveaxis(args[0], 0, -1))(places)
        add(
            "grid_interpolate",
            f"nodes {nodes}, SciPy",
            args,
            read,
            f"{SCIPY}, RegularGridInterpolator",
            Tolerance(1e-12, "relative_of_largest"),
        )
        index = (places * (np.array(nodes) - 1)).T
        read = np.stack([map_coordinates(channel, index, order=1, mode="nearest") for channel in args[0]], axis=1)
        add(
            "grid_interpolate",
            f"nodes {nodes}, image",
            args,
            read,
            f"{SCIPY}, map_coordinates",
            Tolerance(1e-12, "relative_of_largest"),
        )

    for nodes, normalize, activation in (
        ((4,), True, "relu"),
        ((3, 5), True, "relu"),
        ((6,), False, "none"),
        ((2, 2), True, "none"),
    ):
        n, inputs, outputs = 6, 3, 8
        args = (
            *(rng.standard_normal(s) for s in ((n, inputs), (inputs, outputs), (outputs,), (2, *nodes))),
            rng.random((n, len(nodes))),
        )
        with_gradient(
            "cam_layer", f"nodes {nodes}, normalize {normalize}, {activation}", args,
            lambda *t, normalize=normalize, activation=activation: torch_layer(*t, normalize, activation == "relu"),
            {"normalize": normalize, "activation": activation},
        )  # fmt: skip
    args = tuple(rng.standard_normal(s) for s in ((3, 2), (2, 4), (4,)))
    with_gradient(
        "cam_layer",
        "without a grid",
        args,
        lambda h, w, b: torch.relu(torch.nn.functional.layer_norm(h @ w + b, (4,), eps=1e-5)),
    )

    for d, scale in ((1, None), (2, 4.0)):
        args = (rng.random((5, d)), rng.standard_normal((d, 6)))

        def features(x, projection, scale=scale):
            phase = 2 * torch.pi * 10 * x @ projection
            return torch.cat([phase.sin(), phase.cos()], 1) * (1 if scale is None else scale / 6**0.5)

        with_gradient("random_fourier_features", f"{d} coordinates, scale {scale}", args, features, {"scale": scale})

    pictures = (np.array([0.5, 0.25, 1.0]), np.array([0.25, 0.25, 0.75]))
    add(
        "psnr",
        "three pixels",
        pictures,
        np.array(10 * np.log10(24.0)),
        "by hand: mean squared error 1/24",
        Tolerance(1e-14, "relative"),
    )
    add("psnr", "equal", (pictures[0], pictures[0]), np.array(np.inf), "by hand: no error", Tolerance())
    return found
