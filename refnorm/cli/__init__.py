"""The command ``refnorm``: embed and search text files, look methods up, repeat their evidence, test an implementation.

Exit status: 0 when all went well, 1 when a golden case or a claim fails, 2 for bad input (one line on stderr
says which), 130 when interrupted. One module a command or group; :mod:`refnorm.cli._main` puts them together.
"""

from refnorm.cli._main import INTERRUPTED, main
from refnorm.cli._output import Problem

__all__ = ["INTERRUPTED", "Problem", "main"]
