"""Truth for layer-adaptive pruning: hand calculations, an integer program, PyTorch's pruning, fractions, a root finder."""

from dataclasses import make_dataclass
from fractions import Fraction

import numpy as np
import scipy
import scipy.optimize
import torch
from torch.nn.utils import prune

from refnorm.conformance import GoldenCase, Tolerance

TORCH = f"torch {torch.__version__.split('+')[0]}"
Record = make_dataclass("RatioAllocation", ["ratios", "objective", "survivors"])
CLOSE = Tolerance(1e-13, "relative")


def cases():
    rng = np.random.default_rng(20230821)
    return [*by_hand(), *programmes(rng), *masks(rng), *rules(rng)]


def by_hand():
    found = []
    sizes, ratios = [4, 4], (0.0, 0.5, 1.0)
    for name, last, chosen, objective in (
        ("tie: the last layer is pruned least", 5.0, (0.5, 0.5), 5.0),
        ("no tie", 4.5, (0.0, 1.0), 4.5),
    ):
        found.append(
            GoldenCase(
                function="quantizers.allocate_ratios",
                name=name,
                args=(np.array([[0.0, 1.0, 10.0], [0.0, 4.0, last]]), sizes),
                options={"ratios": ratios, "sparsity": 0.5},
                expected=Record(np.array(chosen), objective, np.array([4 * (1 - a) for a in chosen], np.int64)),
                source="by hand: of eight weights four may stay; (0, 1), (1/2, 1/2) and (1, 0) fit exactly",
            )
        )
    found += [
        GoldenCase(
            function="quantizers.iterative_targets",
            name="a fifth in each of four rounds",
            args=(0.2, 4),
            expected=np.array([float(1 - Fraction(4, 5) ** i) for i in range(1, 5)]),
            tolerance=CLOSE,
            source="exact fractions",
        ),
        GoldenCase(
            function="quantizers.relative_ratios",
            name="partly and wholly pruned layers",
            args=(np.array([0.75, 0.5, 0.25, 1.0, 1.0]), np.array([0.5, 0.5, 0.5, 0.5, 1.0])),
            expected=np.array([0.5, 0.0, 0.0, 1.0, 0.0]),
            source="by hand",
        ),
    ]
    return found


def programmes(rng):
    """One binary variable for each layer and ratio; HiGHS finds the optimum by branch and bound."""
    found = []
    for number in range(8):
        layers, steps = 6, 10
        curves = np.cumsum(rng.random((layers, steps + 1)) ** 2, axis=1)
        curves[:, 0] = 0
        sizes = rng.integers(5, 300, layers)
        sparsity = (0.5, 0.75, 0.875, 0.25)[number % 4]
        stay = np.array([[n - n * d // steps for d in range(steps + 1)] for n in sizes])
        budget = int(np.floor((1 - sparsity) * sizes.sum()))
        solution = scipy.optimize.milp(
            curves.reshape(-1),
            constraints=[
                scipy.optimize.LinearConstraint(np.kron(np.eye(layers), np.ones(steps + 1)), 1, 1),
                scipy.optimize.LinearConstraint(stay.reshape(1, -1), -np.inf, budget),
            ],
            integrality=np.ones(curves.size),
            bounds=(0, 1),
            options={"mip_rel_gap": 0},
        )
        chosen = np.rint(solution.x).reshape(layers, -1).argmax(axis=1)
        rows = np.arange(layers)
        found.append(
            GoldenCase(
                function="quantizers.allocate_ratios",
                name=f"random instance {number}, sparsity {sparsity}",
                args=(curves, sizes),
                options={"ratios": tuple(d / steps for d in range(steps + 1)), "sparsity": sparsity},
                expected=Record(chosen / steps, float(curves[rows, chosen].sum()), stay[rows, chosen]),
                tolerance=CLOSE,
                source=f"scipy {scipy.__version__}: optimize.milp",
            )
        )
    return found


def masks(rng):
    found = []
    for shape, ratio, pruned in (((6, 7), 0.4, 16), ((3, 2, 5), 0.9, 27), ((8,), 0.0, 0), ((8,), 1.0, 8)):
        weight, cotangent = rng.standard_normal(shape), rng.standard_normal(shape)
        layer = torch.nn.Module()
        layer.register_parameter("weight", torch.nn.Parameter(torch.tensor(weight)))
        prune.l1_unstructured(layer, "weight", amount=pruned)
        mask = layer.weight_mask.numpy().astype(bool)
        layer.weight.backward(torch.tensor(cotangent))
        name = f"shape {shape}, ratio {ratio}"
        common = {"function": "quantizers.apply_mask", "name": name, "args": (weight, mask)}
        source = f"{TORCH}: nn.utils.prune.l1_unstructured"
        found += [
            GoldenCase(function="quantizers.magnitude_mask", name=name, args=(weight, ratio), expected=mask, source=source),
            GoldenCase(**common, expected=layer.weight.detach().numpy(), source=source),
            GoldenCase(
                **common, cotangent=cotangent, expected=(layer.weight_orig.grad.numpy(),), source=f"{source}, autograd"
            ),
        ]  # fmt: skip
    return found


def exact_lamp(weight):
    values = [Fraction(float(v)) ** 2 for v in weight.reshape(-1)]
    scores = [v / sum(u for u in values if u >= v) if v else Fraction(0) for v in values]
    return np.array([float(score) for score in scores]).reshape(weight.shape)


def rules(rng):
    found = []
    weights = [rng.standard_normal((5, 6)), 2 * rng.standard_normal((6, 3)), 0.5 * rng.standard_normal((7,))]
    tied = np.array([[0.5, -0.5, 0.0], [2.0, 1.0, -2.0]])
    for name, weight in (("normal", weights[0]), ("ties and a zero", tied)):
        found.append(
            GoldenCase(
                function="quantizers.lamp_scores",
                name=name,
                args=(weight,),
                expected=exact_lamp(weight),
                tolerance=CLOSE,
                source="exact fractions",
            )
        )
    for sparsity, pruned in ((0.4, 22), (0.8, 44)):
        for function, scores in (("global_ratios", weights), ("lamp_ratios", [exact_lamp(w) for w in weights])):
            layers = [torch.nn.Module() for _ in weights]
            for layer, score in zip(layers, scores, strict=True):
                layer.register_parameter("weight", torch.nn.Parameter(torch.tensor(score)))
            pairs = [(layer, "weight") for layer in layers]
            prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=pruned)
            gone = [float((layer.weight_mask == 0).double().mean()) for layer in layers]
            found.append(
                GoldenCase(
                    function=f"quantizers.{function}",
                    name=f"sparsity {sparsity}",
                    args=(weights, sparsity),
                    expected=np.array(gone),
                    tolerance=CLOSE,
                    source=f"{TORCH}: nn.utils.prune.global_unstructured"
                    + (" on scores in exact fractions" if function == "lamp_ratios" else ""),
                )
            )
    shapes = [(4, 4), (16, 8), (64, 64), (3, 3, 8, 16)]
    sizes = np.array([np.prod(shape) for shape in shapes])
    score = np.array([sum(shape) for shape in shapes]) / sizes
    for sparsity in (0.1, 0.5, 0.9):

        def excess(c, sparsity=sparsity):
            return (np.minimum(1, c * score) * sizes).sum() - (1 - sparsity) * sizes.sum()

        c = scipy.optimize.brentq(excess, 0, 1e4, xtol=1e-14, rtol=1e-15)
        found.append(
            GoldenCase(
                function="quantizers.erk_ratios",
                name=f"sparsity {sparsity}",
                args=([list(shape) for shape in shapes], sparsity),
                expected=1 - np.minimum(1, c * score),
                tolerance=Tolerance(1e-12, "relative_of_largest"),
                source=f"scipy {scipy.__version__}: optimize.brentq on the factor",
            )
        )
    return found
