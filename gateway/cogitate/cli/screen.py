"""The console that commands print to."""

from __future__ import annotations

import os
import sys
from typing import Final

from rich.console import Console

_PIPE_WIDTH: Final = 120


def console(*, stderr: bool = False) -> Console:
    """Returns a console as wide as the terminal; 120 columns where there is none to ask."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else _PIPE_WIDTH
    return Console(stderr=stderr, width=width)
