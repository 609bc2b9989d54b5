"""The functions of this project, and any pair ``f`` and ``f_vjp``, inside PyTorch's and JAX's differentiation.

Nothing of a framework is imported before one of the functions is called.
"""

from refnorm.interop._jax import jax_function
from refnorm.interop._torch import torch_function

__all__ = ["jax_function", "torch_function"]
