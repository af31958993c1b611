"""`python -m chisep.cli`: the same as the command `chisep`."""

import sys

from chisep.cli import main

if __name__ == "__main__":  # spawned workers import this module under another name
    sys.exit(main())
