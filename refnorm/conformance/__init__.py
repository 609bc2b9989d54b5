"""Golden vectors for every method, and a runner that holds any implementation to them.

From a shell, for a module whose functions carry this package's names, or for a mapping of such names to functions::

    python -m refnorm.conformance run my_package.my_module
    python -m refnorm.conformance run my_package.my_module:mapping
    python -m refnorm.conformance export vectors        # a folder for programs in other languages

From Python::

    from refnorm.conformance import run
    outcomes = run({"norms.layer_norm": my_layer_norm})
"""

from refnorm.conformance._cases import GoldenCase, Tolerance
from refnorm.conformance._export import compare_exported, export_vectors, load_exported
from refnorm.conformance._files import GOLDEN_ROOT, function_names, load_cases, method_names, save_cases
from refnorm.conformance._report import report
from refnorm.conformance._runner import Outcome, format_table, functions_of, load_implementation, run
from refnorm.conformance._version import FORMAT_VERSION, VECTORS_VERSION

__all__ = [
    "FORMAT_VERSION",
    "GOLDEN_ROOT",
    "VECTORS_VERSION",
    "GoldenCase",
    "Outcome",
    "Tolerance",
    "compare_exported",
    "export_vectors",
    "format_table",
    "function_names",
    "functions_of",
    "load_cases",
    "load_exported",
    "load_implementation",
    "method_names",
    "report",
    "run",
    "save_cases",
]
