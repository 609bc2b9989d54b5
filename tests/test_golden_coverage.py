"""Every public function has golden vectors, or belongs to a kind that cannot have them, or is named here with the reason."""

import importlib
import inspect

from refnorm import catalogue
from refnorm.conformance import function_names

COVERED = frozenset(function_names())

FAMILIES = ("attention", "nn", "norms", "poincare", "quantizers", "softmax", "solvers")

CALLABLES = (
    "Callable", "MatVec", "ModelVjp", "LossGrad", "TrainFunction", "Policy", "Optimizer", "Problem", "Oracle", "LogDensity",
    "Surface", "Energy", "Adversary", "OnlineDomain",
)  # fmt: skip
"""Words of annotations that stand for something to call, or for a record of such things."""

RETURNS_FUNCTIONS = ("Problem", "Oracle", "RowMatVec", "ModelVjp", "LossGrad", "Kappa")

PATH = "a search whose result depends on the order of its steps and on ties; its parts have golden vectors"
LEARNED = "it evaluates a network that another function has trained; the same sums have golden vectors"
REBUILT = "it copies a record of parameters, changing some of them; a file does not bring back the record's class"
PROPERTY = "an iteration whose solution the method's test checks"
WITHOUT_VECTORS = {
    "quantizers.adaquant_simplex": PATH,
    "quantizers.ste_step": REBUILT,
    "quantizers.continuous_only_step": REBUILT,
    "quantizers.quantize_coefficients": REBUILT,
    "solvers.friction_qp": "it arranges the matrices of a program whose solution, solve_qp, has golden vectors",
    "solvers.admm_relu": PROPERTY,
    "solvers.gp_interpolate": "it continues from the record of kalman_smoother, which has golden vectors",
    "solvers.predict_functional_tucker": LEARNED,
    "solvers.assemble_boosted": REBUILT,
    "solvers.predict_boosted": LEARNED,
    "solvers.lpn_invert": PROPERTY,
    "solvers.project_nonneg": REBUILT,
    "solvers.activation_floats": "a count of the stored numbers of a record of layers",
    "solvers.conditional_mean_field": PROPERTY,
    "solvers.mean_field": PROPERTY,
    "solvers.mgno": LEARNED,
    "solvers.mgno_layer": LEARNED,
    "solvers.poisson_vcycle": "weights of one fixed cycle, which the method's test applies",
    "solvers.mlp_width_plan": "a plan for coalesce, which has golden vectors",
    "solvers.topo_search": PATH,
    "solvers.nldp_estimate": PROPERTY,
    "solvers.fit_polynomial": PROPERTY,
    "solvers.optimize_schedule": PROPERTY,
    "solvers.mlp_groups": "a description of a network's groups of weights",
    "solvers.sdl_predict_proba": LEARNED,
    "solvers.transductive_cluster": PATH,
    "solvers.worst_case_exact": "it is what the method's networks are compared with, by going through scenarios",
    "solvers.solve_exact": "it is what the method's networks are compared with, by going through decisions",
    "solvers.relu_milp_constraints": "it arranges the constraints of a program, held to the network in the method's test",
    "solvers.neural_main": LEARNED,
    "solvers.neural_ccg": LEARNED,
}
"""Functions that could have golden vectors and have none, with the reason."""


def public_functions():
    """Yield every public function, class and pullback-giving function of the families, with its name."""
    for method in catalogue.methods():
        room = importlib.import_module(f"refnorm.{method.room}")
        for name in method.functions if method.room in FAMILIES else ():
            for one in (name, f"{name}_vjp"):
                if hasattr(room, one):
                    yield f"{method.room}.{one}", getattr(room, one)


def kind_without_vectors(thing):
    """Return why a function or class of this kind has no golden vectors, or an empty string."""
    if isinstance(thing, type):
        return "a class: what it holds or does is covered by the functions that take or return it"
    signature = inspect.signature(thing)
    if "rng" in signature.parameters:
        return "its result depends on NumPy's random numbers, which other languages do not have"
    required = [p for p in signature.parameters.values() if p.default is p.empty]
    if any(word in str(parameter.annotation) for parameter in required for word in CALLABLES):
        return "it takes functions, which a file cannot hold"
    if any(word in str(signature.return_annotation) for word in RETURNS_FUNCTIONS):
        return "it returns functions, which a file cannot hold"
    return ""


def test_every_function_has_golden_vectors_or_a_reason():
    missing = [
        name
        for name, thing in public_functions()
        if name not in COVERED and name not in WITHOUT_VECTORS and not kind_without_vectors(thing)
    ]
    assert not missing, "add cases in tests/golden, or a reason here"


def test_no_reason_is_left_for_a_function_that_has_vectors():
    names = {name for name, _ in public_functions()}
    assert not [name for name in WITHOUT_VECTORS if name in COVERED or name not in names]


def test_the_kinds_are_told_apart():
    def drawn(x, rng):
        return x

    def solver(gradient: "Callable[[float], float]", x0: float) -> "Result":  # noqa: F821
        return x0

    def plain(x: float, callback: "Callable | None" = None) -> float:  # noqa: F821
        return x

    assert "random" in kind_without_vectors(drawn)
    assert "takes functions" in kind_without_vectors(solver)
    assert kind_without_vectors(plain) == ""
