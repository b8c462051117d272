"""The nouns of the tool-executor.

A tool is a function of its JSON arguments and the conversation's images. It returns an `Outcome`,
or raises `ToolError` with a sentence for the model. Whatever else it raises is a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# What json.loads makes of an argument.
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Arguments = Mapping[str, Json]


class ToolError(Exception):
    """The call cannot be answered; the message is one short sentence for the model."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in per mille of an image; x1 and y1 are exclusive. Valid as constructed."""

    x0: int
    y0: int
    x1: int
    y1: int

    def __post_init__(self) -> None:
        if not (0 <= self.x0 < self.x1 <= 1000 and 0 <= self.y0 < self.y1 <= 1000):
            raise ValueError("not a box")


WHOLE = Box(0, 0, 1000, 1000)


@dataclass(frozen=True, slots=True)
class Image:
    """An image by content, seen through a box or whole."""

    digest: str
    box: Box | None = None
    width_px: int = 0
    height_px: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """A table the caller provides; its first column names the rows."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a tool gave: text, a picture, or both; `proved` is the answer it proved."""

    text: str = ""
    images: tuple[Image, ...] = ()
    is_error: bool = False
    is_truncated: bool = False
    proved: str = ""
    claim: str = ""  # what the proof claims to be asked for


Run = Callable[[Arguments, Sequence[Image]], Outcome]
RunOnTables = Callable[[Arguments, Sequence[Table]], Outcome]


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as the registry names it.

    `origin` says what runs it: "builtin" tools are the function `run`, or `run_on_tables`, which is
    given the request's tables; "sandbox" is code of the model's own, any other the MCP server of
    that name; those have neither. A `repeatable` tool has no effects outside its result, so a call
    nobody waits for any more is dropped and may run again.
    """

    name: str
    version: str
    description: str
    schema: Mapping[str, Json]
    run: Run | None = None
    run_on_tables: RunOnTables | None = None
    origin: str = "builtin"
    repeatable: bool = True


@dataclass(frozen=True, slots=True)
class Call:
    """One execution as asked for; `timeout_s` and `max_output_bytes` are None for the default."""

    contemplation_id: str
    call_id: str
    tool_name: str
    arguments_json: str
    allowed_tools: frozenset[str]
    images: tuple[Image, ...] = ()
    tables: tuple[Table, ...] = ()
    timeout_s: float | None = None
    max_output_bytes: int | None = None
    owner_epoch: int = 0


@dataclass(frozen=True, slots=True)
class Execution:
    """A finished call: its outcome and where that came from."""

    call_id: str
    tool_name: str
    tool_version: str
    origin: str
    outcome: Outcome
    duration_s: float
    replayed: bool = False
