"""Tables for the tool `lookup`: made in code, or read from CSV files."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cogitate.client._errors import InvalidRequest
from cogitate.v1 import common_pb2

_NOT_NAMED = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class LookupTable:
    """A small table agents may look things up in; the first column names the rows.

    Cells are texts and are passed on as they are written: 2.50 stays 2.50.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    @classmethod
    def from_csv(cls, path: str | Path, name: str = "") -> LookupTable:
        """Reads a file whose first line names the columns; `name` defaults to the file's own.

        Commas, semicolons or tabs separate cells, whichever the first line has most of. Blank
        lines are skipped. Raises InvalidRequest for a file that cannot be read.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
            comma = max(",;\t", key=text.partition("\n")[0].count)
            lines = list(csv.reader(text.splitlines(), delimiter=comma, strict=True))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8 CSV"
            raise _bad(f"cannot read the table {path}: {why}") from None
        filled = [[cell.strip() for cell in line] for line in lines if any(map(str.strip, line))]
        if len(filled) < 2:
            raise _bad(f"the table {path} needs a line of column names and one row or more")
        own = _NOT_NAMED.sub("_", name or path.stem)[:64]
        return cls(own, filled[0], filled[1:])

    def message(self) -> common_pb2.LookupTable:
        """Returns it as the contract has it."""
        rows = [common_pb2.LookupRow(cells=row) for row in self.rows]
        return common_pb2.LookupTable(name=self.name, columns=self.columns, rows=rows)


def _bad(message: str) -> InvalidRequest:
    return InvalidRequest(
        message, code="INVALID_ARGUMENT", reason="INVALID_REQUEST", field="tables"
    )
