"""The examples that the book prints run, where their framework is installed."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "use"


@pytest.mark.parametrize(("framework", "most"), [("torch", 0.02), ("jax", None)])
def test_example(framework, most):
    pytest.importorskip(framework)
    said = subprocess.run(
        [sys.executable, EXAMPLES / f"{framework}_layer.py"], capture_output=True, text=True, check=True
    ).stdout
    figure = float(said.split()[-1])
    assert figure < most if most is not None else figure > 0.95
