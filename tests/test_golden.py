"""Both packages against the golden vectors."""

import importlib

import pytest

from refnorm.conformance import format_table, functions_of, method_names, run

IMPLEMENTATIONS = ["refnorm", "refnorm_fast"]


@pytest.mark.parametrize("package", IMPLEMENTATIONS)
@pytest.mark.parametrize("method", method_names())
def test_implementation_agrees_with_golden_vectors(package, method):
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        pytest.skip(str(error))
    functions = functions_of(module, [method])
    if not functions:
        assert package == "refnorm_fast", "the reference implements every golden case"
        pytest.skip("no kernel for this method")
    outcomes = run(functions, methods=[method])
    assert all(outcome.passed for outcome in outcomes), "\n" + format_table(outcomes)
