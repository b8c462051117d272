"""`python -m cogitate.tool_executor`: runs the tool-executor until it is told to stop."""

from __future__ import annotations

import sys

from cogitate.kit.lifecycle import main
from cogitate.tool_executor.config import ToolExecutorConfig
from cogitate.tool_executor.server import build

if __name__ == "__main__":
    sys.exit(main("tool-executor", ToolExecutorConfig, build))
