"""The tool `python`: what it takes, and what is made of what its code wrote."""

from __future__ import annotations

from cogitate.tool_executor.core import output
from cogitate.tool_executor.core.types import Arguments, Outcome, Tool, ToolError

NAME = "python"
ORIGIN = "sandbox"
NOTHING = "The code printed nothing."


def tool(version: str, timeout_s: float) -> Tool:
    """Returns the tool, for an interpreter of this version."""
    return Tool(
        name=NAME,
        version=version,
        description=(
            f"Runs a Python {version} program and returns what it prints. It has the standard "
            "library only, no network, no files but an empty /tmp, one process, and "
            f"{timeout_s:g} s. Nothing is kept between calls."
        ),
        schema={
            "type": "object",
            "properties": {
                "code": {
                    "type": "string",
                    "description": "The program. Print what you want to know.",
                }
            },
            "required": ["code"],
            "additionalProperties": False,
        },
        origin=ORIGIN,
    )


def code_of(arguments: Arguments) -> bytes:
    """Returns the program of {"code": text}. Raises ToolError."""
    code = arguments.get("code")
    if not isinstance(code, str) or len(arguments) != 1:
        raise ToolError("python takes one argument, code, which is text.")
    if "\0" in code:
        raise ToolError("The code must not contain a NUL character.")
    try:
        return code.encode()
    except UnicodeEncodeError:
        raise ToolError("The code must not contain half a surrogate pair.") from None


def result(printed: str, note: str, *, is_truncated: bool, max_bytes: int) -> Outcome:
    """Returns what the model sees: what was printed, and then why the code did not end well.

    The note is there even when what was printed fills the limit.
    """
    if not note:
        return output.fit(Outcome(text=printed or NOTHING, is_truncated=is_truncated), max_bytes)
    note = output.fit(Outcome(text=note), max_bytes).text
    room = max_bytes - len(note.encode()) - 1
    shown = output.fit(Outcome(text=printed, is_truncated=is_truncated), max(room, 0))
    separator = "" if not shown.text or shown.text.endswith("\n") else "\n"
    return Outcome(
        text=shown.text + separator + note, is_error=True, is_truncated=shown.is_truncated
    )
