"""Runs the command: `python -m cogitate.cli`."""

import sys

from cogitate.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
