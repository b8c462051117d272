"""The client's tables and conversations: from CSV files and options to the request."""

from __future__ import annotations

from pathlib import Path

import pytest
from cogitate.client import InvalidRequest, LookupTable
from cogitate.client._request import contemplate
from cogitate.v1 import common_pb2

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("comma", [",", ";", "\t"])
def test_a_file_is_a_table_called_like_it(tmp_path: Path, comma: str) -> None:
    path = tmp_path / "price list.csv"
    path.write_text(f"\ufeffitem{comma}price\n\nbread {comma}2.50\n", encoding="utf-8")
    assert LookupTable.from_csv(path) == LookupTable(
        "price_list", ["item", "price"], [["bread", "2.50"]]
    )
    assert LookupTable.from_csv(path, "prices").name == "prices"


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "none.csv"
    with pytest.raises(InvalidRequest, match=r"cannot read the table .*No such file"):
        LookupTable.from_csv(missing)
    (tmp_path / "short.csv").write_text("item,price\n")
    with pytest.raises(InvalidRequest, match="one row or more"):
        LookupTable.from_csv(tmp_path / "short.csv")
    (tmp_path / "bytes.csv").write_bytes(b"a,b\n\xff,1\n")
    with pytest.raises(InvalidRequest, match="not UTF-8 CSV"):
        LookupTable.from_csv(tmp_path / "bytes.csv")


def test_a_request_has_its_tables_and_the_turns_before_it() -> None:
    table = LookupTable("prices", ["item", "price"], [["bread", "2.50"]])
    request = contemplate(
        "And the pears?",
        {"images": [b"png"], "earlier": [("The apples?", "They are 3.")], "tables": [table]},
    )
    turns = request.spec.conversation
    assert [turn.role for turn in turns] == [
        common_pb2.ROLE_USER,
        common_pb2.ROLE_ASSISTANT,
        common_pb2.ROLE_USER,
    ]
    assert [part.text for turn in turns for part in turn.parts] == [
        "The apples?", "", "They are 3.", "And the pears?",
    ]  # fmt: skip
    assert turns[0].parts[1].image.data == b"png"
    assert list(request.spec.tables[0].rows[0].cells) == ["bread", "2.50"]


def test_a_single_question_has_its_image_behind_its_text() -> None:
    parts = contemplate("What?", {"images": [b"png"]}).spec.conversation[0].parts
    assert [part.WhichOneof("part") for part in parts] == ["text", "image"]
