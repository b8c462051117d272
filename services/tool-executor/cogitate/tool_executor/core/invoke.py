"""Runs one tool on what a model wrote; the part of a call that may take long."""

from __future__ import annotations

from cogitate.tool_executor.core import arguments, output
from cogitate.tool_executor.core.types import Call, Outcome, Tool, ToolError


def invoke(tool: Tool, call: Call, *, max_output_bytes: int) -> Outcome:
    """Returns what the tool gave, or its objection as an error; raises what it crashed with."""
    try:
        given = arguments.read(call.arguments_json)
        if tool.run is not None:
            outcome = tool.run(given, call.images)
        elif tool.run_on_tables is not None:
            outcome = tool.run_on_tables(given, call.tables)
        else:
            raise ValueError("the tool is not a function")
    except ToolError as objection:
        outcome = failure(str(objection))
    return output.fit(outcome, max_output_bytes)


def failure(sentence: str) -> Outcome:
    """Returns an error that the model is told in a sentence."""
    return Outcome(text=sentence, is_error=True)
