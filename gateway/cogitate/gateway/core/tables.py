"""Checks the tables a question brings for the tool lookup."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cogitate.gateway.core.spec import Limits, Table
from cogitate.gateway.core.violations import Violation

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def violations(tables: tuple[Table, ...], limits: Limits) -> Iterator[Violation]:
    """Yields what is wrong with the tables, all together first."""
    if len(tables) > limits.max_table_count:
        yield Violation("tables", f"are {len(tables)}, the limit is {limits.max_table_count}")
        return
    count = sum(len(table.rows) for table in tables)
    if count > limits.max_table_row_count:
        yield Violation("tables", f"hold {count} rows, the limit is {limits.max_table_row_count}")
        return
    size = sum(len(cell.encode()) for table in tables for row in _lines(table) for cell in row)
    if size > limits.max_table_bytes:
        yield Violation("tables", f"hold {size} bytes, the limit is {limits.max_table_bytes}")
        return
    names = [table.name for table in tables]
    for i, table in enumerate(tables):
        if not NAME.fullmatch(table.name):
            yield Violation(
                f"tables[{i}].name", "must be 1 to 64 letters, digits, dots, dashes or underscores"
            )
        elif table.name in names[:i]:
            yield Violation(f"tables[{i}].name", "is there twice")
        yield from _content(table, f"tables[{i}]")


def _lines(table: Table) -> tuple[tuple[str, ...], ...]:
    return (table.columns, *table.rows)


def _content(table: Table, path: str) -> Iterator[Violation]:
    width = len(table.columns)
    if width < 2 or not all(name.strip() for name in table.columns):
        yield Violation(f"{path}.columns", "must be two names or more, the first of the rows'")
    elif len(set(table.columns)) < width:
        yield Violation(f"{path}.columns", "must be different names")
    if not table.rows:
        yield Violation(f"{path}.rows", "must be one or more")
    for i, row in enumerate(table.rows):
        if len(row) != width:
            yield Violation(f"{path}.rows[{i}]", f"has {len(row)} cells, there are {width} columns")
        elif not row[0].strip():
            yield Violation(f"{path}.rows[{i}]", "has no name: its first cell is empty")
