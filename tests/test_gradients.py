"""Walk the catalogue: every ``_vjp`` has gradient cases, and every case passes."""

import importlib

import pytest
from discovery import TESTS, load

import refnorm
from refnorm import catalogue

CASES = [
    pytest.param(case, id=f"{path.parent.name}/{path.stem[5:]}-{case.f_vjp.__name__}-{case.name or number}")
    for room in refnorm.ROOMS
    for path in sorted((TESTS / room).glob("test_*.py"))
    for number, case in enumerate(getattr(load(path), "GRADIENT_CASES", []))
]


@pytest.mark.parametrize("case", CASES)
def test_pullback_is_the_derivative(case):
    case.check()


@pytest.mark.parametrize("method", catalogue.methods(), ids=lambda method: method.chapter)
def test_every_vjp_of_the_catalogue_is_checked(method):
    path = TESTS / method.room / f"test_{method.name}.py"
    covered = {case.f_vjp.__name__ for case in getattr(load(path), "GRADIENT_CASES", [])}
    room = importlib.import_module(f"refnorm.{method.room}")
    wanted = {f"{name}_vjp" for name in method.functions if hasattr(room, f"{name}_vjp")}
    assert wanted <= covered
