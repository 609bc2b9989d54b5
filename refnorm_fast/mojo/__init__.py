"""A few of the kernels once more, in Mojo: the reference's names, signatures, errors and results.

The shared library is compiled at the first call, in some seconds, and kept in a cache folder; see :func:`library`.
It runs on the caller's thread: Mojo's ``parallelize`` is part of another package, ``max``. The interpreter's lock is
released during a call.

Needs a Mojo compiler: ``pip install "refnorm[mojo]"``. Importing this package does not.
"""

from refnorm_fast.mojo import norms, poincare, quantizers, softmax
from refnorm_fast.mojo._build import find_compiler, library

__all__ = ["find_compiler", "library", "norms", "poincare", "quantizers", "softmax"]
