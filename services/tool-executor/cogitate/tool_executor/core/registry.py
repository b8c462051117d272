"""Which tools there are: one dict. A new built-in tool is one module and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from cogitate.tool_executor.core import calculator, lookup, prove, zoom
from cogitate.tool_executor.core.types import Tool

TOOLS: Mapping[str, Tool] = {
    tool.name: tool for tool in (calculator.TOOL, lookup.TOOL, prove.TOOL, zoom.TOOL)
}
