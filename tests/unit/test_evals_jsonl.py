"""Questions from JSON lines: what may stand in one, and what is said of one that is wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from cogitate.evals import jsonl
from cogitate.evals.jsonl import BadQuestion
from cogitate.evals.question import Question

pytestmark = pytest.mark.unit


def parsed(
    *lines: dict[str, Any] | str, folder: Path = Path(), limit: int | None = None
) -> list[Question]:
    """The questions of some lines."""
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    return jsonl.parse([f"{text}\n" for text in texts], "set", folder, limit)


def test_a_question_and_its_answer() -> None:
    (one,) = parsed({"id": 7, "question": "3 + 4?", "answer": 7, "category": "sums"})
    assert (one.id, one.dataset, one.text, one.truth) == ("7", "set", "3 + 4?", "7")
    assert one.check("The sum is 7.")
    assert one.check("7.0")
    assert not one.check("8")
    assert not one.check("")
    assert not one.check("I don't know.")


def test_several_answers_a_system_and_an_equivalence() -> None:
    (one,) = parsed(
        {
            "question": "Where?",
            "answers": ["Paris", "in Paris"],
            "system": "Be short.",
            "equivalence": "text",
            "regex": "[a-z]+",
        }
    )
    assert one.check("PARIS!")
    assert one.check("In Paris.")
    assert not one.check("London")
    assert (one.system, one.equivalence, one.regex) == ("Be short.", "text", "[a-z]+")
    assert len(one.id) == 12


def test_gsm8k_lines_are_read_as_they_are() -> None:
    (one,) = parsed({"question": "How many?", "answer": "48/2 = <<48/2=24>>24\n#### 1,072"})
    assert one.check("1072")


def test_choices_are_written_out_and_held_to_their_letters() -> None:
    asked = {"question": "Which is a colour?", "choices": ["cow", "red", "ten"]}
    by_letter, by_text = parsed(
        {**asked, "id": 1, "answer": "b"}, {**asked, "id": 2, "answer": "red"}
    )
    assert by_letter.truth == by_text.truth == "B"
    assert by_letter.regex == "A|B|C"
    assert "\nA. cow\nB. red\nC. ten\n" in by_letter.text
    assert by_letter.check("B")
    assert not by_letter.check("A")


def test_images_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"first")
    (tmp_path / "set.jsonl").write_text('{"question": "?", "answer": "1", "image": "a.png"}\n\n')
    (one,) = jsonl.load(str(tmp_path / "set.jsonl"))
    assert list(one.pictures()) == [b"first"]
    before = one.digest
    (tmp_path / "a.png").write_bytes(b"second")
    (again,) = jsonl.load(str(tmp_path / "set.jsonl"))
    assert before != again.digest, "another picture is another question"


def test_standard_input_and_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f'{{"question": "{i}?", "answer": {i}}}\n' for i in range(5))
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert [one.truth for one in jsonl.load("-", 3)] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ({"answer": "1"}, "has no `question`"),
        ({"question": 3, "answer": "1"}, "`question` must be text"),
        ({"question": "?"}, "needs an `answer`"),
        ({"question": "?", "answer": True}, "needs an `answer`"),
        ({"question": "?", "answers": []}, "`answers` is empty"),
        ({"question": "?", "answer": "1", "answers": ["1"]}, "has both"),
        ({"question": "?", "answer": "..."}, "says nothing that can be compared"),
        ({"question": "?", "answer": "a cow", "equivalence": "number"}, "compared as number"),
        ({"question": "?", "answer": "1", "equivalence": "exact"}, "`equivalence` must be one of"),
        ({"question": "?", "answer": "1", "image": "gone.png"}, "there is no image"),
        ({"question": "?", "answer": "1", "images": "a.png"}, "`images` must be a list"),
        ({"question": "?", "answer": "D", "choices": ["a", "b"]}, "neither one of the `choices`"),
        ({"question": "?", "answer": "A", "choices": ["a"]}, "`choices` must be 2 to 26"),
        ({"question": "?", "answer": "1", "id": ""}, "`id` must be"),
        ({"id": "first", "question": "?", "answer": "1"}, "has the id of line 1"),
    ],
)
def test_a_bad_line_is_named(line: dict[str, Any] | str, why: str) -> None:
    with pytest.raises(BadQuestion, match=r"^set, line 2: ") as caught:
        parsed({"id": "first", "question": "?", "answer": "1"}, line)
    assert why in str(caught.value)


def test_a_file_that_holds_nothing_or_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    for name, why in (("empty", "no question"), ("binary", "UTF-8"), ("gone", "No such file")):
        with pytest.raises(BadQuestion, match=why):
            jsonl.load(str(tmp_path / f"{name}.jsonl"))
