"""``python -m refnorm``: the same as the command ``refnorm``."""

import sys

from refnorm.cli import main

if __name__ == "__main__":
    sys.exit(main())
