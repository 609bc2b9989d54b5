"""Frameworks' own operators, held to the golden vectors: worked examples of an adapter.

An adapter maps names to functions that take NumPy arrays and give them back; what an operator cannot do raises
``NotImplementedError``::

    python -m refnorm.conformance run refnorm.conformance.adapters.pytorch:functions
    python -m refnorm.conformance run refnorm.conformance.adapters.onnx:functions

The frameworks are not installed with this package: ``pip install "refnorm[bench]"`` has both.
"""
