"""``python -m refnorm``: the same as the command ``refnorm``."""

import os
import sys

from refnorm.cli import INTERRUPTED, main

if __name__ == "__main__":
    status = main()
    if status == INTERRUPTED:
        # Under -m the interpreter remembers an interrupt that passed through an exec() of text (the making of a
        # dataclass), though it was caught, and would end by the signal instead of with the status.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
