"""The gateway's limits on tables, each at its edge."""

from __future__ import annotations

import pytest
from cogitate.gateway import wire
from cogitate.gateway.core import validation
from cogitate.gateway.core.spec import Limits, Message, Spec, Table, Text
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2

pytestmark = pytest.mark.unit

COLUMNS = ("item", "price")
ROW = ("bread", "2.50")


def found(*tables: Table, limits: Limits | None = None) -> list[str]:
    spec = Spec(conversation=(Message("USER", (Text("What?"),)),), tables=tables)
    return [one.field for one in validation.violations(spec, limits or Limits())]


def test_a_table_is_fine() -> None:
    assert found(Table("prices", COLUMNS, (ROW,))) == []


@pytest.mark.parametrize(
    ("table", "field"),
    [
        (Table("", COLUMNS, (ROW,)), "tables[0].name"),
        (Table("a b", COLUMNS, (ROW,)), "tables[0].name"),
        (Table("a" * 65, COLUMNS, (ROW,)), "tables[0].name"),
        (Table("a", ("item",), (("bread",),)), "tables[0].columns"),
        (Table("a", ("item", " "), (ROW,)), "tables[0].columns"),
        (Table("a", ("item", "item"), (ROW,)), "tables[0].columns"),
        (Table("a", COLUMNS), "tables[0].rows"),
        (Table("a", COLUMNS, (ROW, ("x",))), "tables[0].rows[1]"),
        (Table("a", COLUMNS, ((" ", "1"),)), "tables[0].rows[0]"),
    ],
)
def test_the_field_that_is_wrong_is_named(table: Table, field: str) -> None:
    assert found(table) == [field]


def test_names_are_different_and_limits_hold_at_their_edge() -> None:
    one, two = Table("a", COLUMNS, (ROW,)), Table("b", COLUMNS, (ROW,))
    assert found(one, one) == ["tables[1].name"]
    size = sum(len(cell) for cell in (*COLUMNS, *ROW)) * 2
    edge = Limits(max_table_count=2, max_table_row_count=2, max_table_bytes=size)
    assert found(one, two, limits=edge) == []
    for tight in (
        Limits(max_table_count=1),
        Limits(max_table_row_count=1),
        Limits(max_table_bytes=size - 1),
    ):
        assert found(one, two, limits=tight) == ["tables"]


def test_tables_are_read_from_the_wire() -> None:
    row = common_pb2.LookupRow(cells=ROW)
    table = common_pb2.LookupTable(name="prices", columns=COLUMNS, rows=[row])
    request = pb2.ContemplateRequest(spec=pb2.ContemplationSpec(tables=[table]))
    assert wire.spec(request, now_s=0).tables == (Table("prices", COLUMNS, (ROW,)),)
