"""lookup: rows by name as they are written, and what is said of those that are not there."""

from __future__ import annotations

import pytest
from cogitate.kit.errors import InvalidRequest
from cogitate.tool_executor.core.lookup import MAX_NAME_CHARS, check_size, look_up, run
from cogitate.tool_executor.core.types import Json, Table, ToolError

pytestmark = pytest.mark.unit

RANGES = Table(
    "ranges",
    ("Test", "low", "high"),
    (("Sodium", "135", "145"), ("Potassium", "3.50", "5.10"), ("Uric acid", "3.4", "7.0")),
)
PRICES = Table("prices", ("item", "price"), (("bread", "2.50"), ("Bread", "9"), ("Crème", "1,20")))
TABLES = (RANGES, PRICES)


def test_every_cell_is_found_as_it_is_written() -> None:
    for table in TABLES:
        for row in table.rows:
            for column, cell in zip(table.columns, row, strict=True):
                assert look_up(TABLES, table.name, row[0], column) == cell


def test_a_row_says_all_but_its_name() -> None:
    assert look_up(TABLES, "ranges", "Potassium") == "low 3.50, high 5.10"
    assert look_up(TABLES, "prices", "bread") == "2.50"


@pytest.mark.parametrize("name", ["sodium", " SODIUM ", "sodium.", "ｓｏｄｉｕｍ"])
def test_case_space_and_points_do_not_matter(name: str) -> None:
    assert look_up(TABLES, "Ranges", name, "LOW") == "135"


def test_as_written_comes_before_alike_and_alike_twice_is_a_question() -> None:
    assert look_up(TABLES, "prices", "Bread") == "9"
    with pytest.raises(ToolError, match=r"'BREAD' may be bread, Bread in prices"):
        look_up(TABLES, "prices", "BREAD")


def test_a_name_that_is_not_there_is_told_the_nearest() -> None:
    with pytest.raises(ToolError, match=r"no row 'sodum' in ranges; the nearest are Sodium"):
        look_up(TABLES, "ranges", "sodum")
    with pytest.raises(ToolError, match="there are Sodium, Potassium, Uric acid"):
        look_up(TABLES, "ranges", "xyz")
    with pytest.raises(ToolError, match="no column 'hi' in ranges"):
        look_up(TABLES, "ranges", "Sodium", "hi")
    with pytest.raises(ToolError, match="no table 'fares'; there is: ranges, prices"):
        look_up(TABLES, "fares", "Lyon")
    with pytest.raises(ToolError, match="no row '' in"):
        look_up(TABLES, "ranges", "")


def test_one_table_needs_no_name_and_none_is_told() -> None:
    assert look_up((PRICES,), "", "bread") == "2.50"
    with pytest.raises(ToolError, match="no table ''"):
        look_up(TABLES, "", "bread")
    with pytest.raises(ToolError, match="no tables in this request"):
        look_up((), "prices", "bread")


@pytest.mark.parametrize(
    "arguments",
    [{}, {"table": "prices"}, {"row": None}, {"row": ["a"]}, {"row": True}, {"row": "a", "x": 1},
     {"row": "a" * (MAX_NAME_CHARS + 1)}],
)  # fmt: skip
def test_other_arguments_are_told_to_the_model(arguments: dict[str, Json]) -> None:
    with pytest.raises(ToolError):
        run(arguments, TABLES)


def test_a_row_may_be_named_by_a_number() -> None:
    years = Table("years", ("year", "value"), (("2024", "7"), ("10.5", "8")))
    assert run({"row": 2024}, (years,)).text == "7"
    assert run({"row": 10.5}, (years,)).text == "8"
    with pytest.raises(ToolError):
        look_up((years,), "", "a" * MAX_NAME_CHARS)


def test_size_and_shape_are_limited_at_their_edge() -> None:
    size = sum(len(cell.encode()) for row in (PRICES.columns, *PRICES.rows) for cell in row)
    check_size((PRICES,), size)
    with pytest.raises(InvalidRequest, match=f"hold {size} bytes, the limit is {size - 1}"):
        check_size((PRICES,), size - 1)
    for bad in (Table("a", ("one",), ()), Table("a", ("x", "y"), (("only",),))):
        with pytest.raises(InvalidRequest, match="full rows"):
            check_size((bad,), size)
