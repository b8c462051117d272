"""Looks a row up in a table the caller provides: prices, reference ranges, a timetable.

A row is found by its name as written, or else by the same letters and digits whatever their case,
accents' encoding and punctuation. Cells are given back exactly as the caller wrote them.

Invariants (tests/unit/test_lookup.py):

1. What is given back stands in the table (test_every_cell_is_found_as_it_is_written).
2. A name that is not there is an error that offers names that are
   (test_a_name_that_is_not_there_is_told_the_nearest).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from difflib import get_close_matches

from cogitate.kit.errors import InvalidRequest
from cogitate.tool_executor.core.types import Arguments, Json, Outcome, Table, Tool, ToolError

NAME = "lookup"
MAX_NAME_CHARS = 128
OFFERED = 3
# How alike a name must be to be offered as near, from 0 to 1.
LEAST_LIKENESS = 0.5


def check_size(tables: Sequence[Table], max_bytes: int) -> None:
    """Raises InvalidRequest for tables that are larger than `max_bytes` in all, or not whole."""
    size = 0
    for index, table in enumerate(tables):
        field = f"tables[{index}]"
        if len(table.columns) < 2 or any(len(row) != len(table.columns) for row in table.rows):
            raise InvalidRequest("a table needs two columns or more, and full rows", field=field)
        size += sum(len(cell.encode()) for row in (table.columns, *table.rows) for cell in row)
    if size > max_bytes:
        raise InvalidRequest(
            f"the tables hold {size} bytes, the limit is {max_bytes}", field="tables"
        )


def look_up(tables: Sequence[Table], table: str, row: str, column: str = "") -> str:
    """Returns a cell, or the whole row without its name: "low 135, high 145".

    An empty table name means the only one; of a table of two columns the row is its bare cell.
    Raises ToolError.
    """
    found = _table(tables, table)
    cells = found.rows[_find(row, [one[0] for one in found.rows], "row", found.name)]
    if column:
        return cells[_find(column, found.columns, "column", found.name)]
    if len(found.columns) == 2:
        return cells[1]
    pairs = zip(found.columns[1:], cells[1:], strict=True)
    return ", ".join(f"{name} {cell}" for name, cell in pairs)


def _table(tables: Sequence[Table], name: str) -> Table:
    if not tables:
        raise ToolError("There are no tables in this request.")
    if not name and len(tables) == 1:
        return tables[0]
    names = [table.name for table in tables]
    try:
        return tables[_find(name, names, "table")]
    except ToolError:
        raise ToolError(f"There is no table {name!r}; there is: {', '.join(names)}.") from None


def _find(name: str, names: Sequence[str], what: str, where: str = "") -> int:
    """Returns the index of a name; one as it is written comes before one that is alike."""
    if name in names:
        return names.index(name)
    plain = [_plain(one) for one in names]
    wanted = _plain(name)
    if wanted and plain.count(wanted) == 1:
        return plain.index(wanted)
    if wanted and wanted in plain:
        same = [one for one, key in zip(names, plain, strict=True) if key == wanted]
        raise ToolError(f"{name!r} may be {_listed(same)} in {where}; say which.")
    near = get_close_matches(wanted, plain, OFFERED, LEAST_LIKENESS)
    offered = [names[plain.index(one)] for one in near]
    said = f"the nearest are {_listed(offered)}" if offered else f"there are {_listed(names)}"
    raise ToolError(f"There is no {what} {name!r} in {where}; {said}.")


def _listed(names: Sequence[str]) -> str:
    more = ", …" if len(names) > OFFERED else ""
    return ", ".join(names[:OFFERED]) + more


def _plain(text: str) -> str:
    """The letters and digits of a name, small, single blanks between its words."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


def run(arguments: Arguments, tables: Sequence[Table]) -> Outcome:
    """Runs the tool on {"table": name, "row": name, "column": name}; row alone is needed."""
    if not {"row"} <= set(arguments) <= {"table", "row", "column"}:
        raise ToolError("lookup takes a table, a row and, for one cell alone, a column.")
    table, row, column = (_name(arguments.get(key, "")) for key in ("table", "row", "column"))
    return Outcome(text=look_up(tables, table, row, column))


def _name(value: Json) -> str:
    # A model may well write a row's name as a number: 2024 or 10.5.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or len(value) > MAX_NAME_CHARS:
        raise ToolError(f"Names must be text of at most {MAX_NAME_CHARS} characters.")
    return value


def _property(description: str) -> dict[str, Json]:
    return {"type": "string", "maxLength": MAX_NAME_CHARS, "description": description}


TOOL = Tool(
    name=NAME,
    version="1",
    description=(
        "Looks a row up in a table that came with the question, such as prices or reference ranges."
    ),
    schema={
        "type": "object",
        "properties": {
            "table": _property("The table's name; may be left out if there is only one."),
            "row": _property("What the row's first cell says."),
            "column": _property("A column's name, for that cell alone."),
        },
        "required": ["row"],
        "additionalProperties": False,
    },
    run_on_tables=run,
)
