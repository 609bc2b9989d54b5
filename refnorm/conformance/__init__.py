"""Golden vectors for every method, and a runner that holds any implementation to them.

From a shell, for a module whose functions carry this package's names (or that has a dict
``CONFORMANCE`` mapping names such as ``"norms.layer_norm"`` to functions)::

    python -m refnorm.conformance my_package.my_module

From Python, with a mapping of names to functions::

    from refnorm.conformance import run
    outcomes = run({"norms.layer_norm": my_layer_norm})
"""

from refnorm.conformance._cases import GoldenCase, Tolerance, load_cases, method_names, save_cases
from refnorm.conformance._runner import Outcome, format_table, functions_of, run

__all__ = [
    "GoldenCase",
    "Outcome",
    "Tolerance",
    "format_table",
    "functions_of",
    "load_cases",
    "method_names",
    "run",
    "save_cases",
]
