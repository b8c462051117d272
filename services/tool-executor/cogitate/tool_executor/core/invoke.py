"""Runs one tool on what a model wrote; the part of a call that may take long."""

from __future__ import annotations

from collections.abc import Sequence

from cogitate.tool_executor.core import arguments, output
from cogitate.tool_executor.core.types import Image, Outcome, Tool, ToolError


def invoke(
    tool: Tool, arguments_json: str, images: Sequence[Image], *, max_output_bytes: int
) -> Outcome:
    """Returns what the tool gave, or its objection as an error; raises what it crashed with."""
    if tool.run is None:
        raise ValueError("the tool is not a function")
    try:
        outcome = tool.run(arguments.read(arguments_json), images)
    except ToolError as objection:
        outcome = failure(str(objection))
    return output.fit(outcome, max_output_bytes)


def failure(sentence: str) -> Outcome:
    """Returns an error that the model is told in a sentence."""
    return Outcome(text=sentence, is_error=True)
