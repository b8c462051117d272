"""How conversations become tokens: what is text stays text."""

from __future__ import annotations

import json

import pytest
from cogitate.agent_decoder.model.templates import Image, MiniTemplate, Text, Turn

from tests.fakes.tiny_model import CONTROL, tokenizer

pytestmark = pytest.mark.unit

ID = {name: i for i, name in enumerate(CONTROL)}
OWN = {"image_tokens": {"whole": 4, "crop": 2}}
PICTURE, CROP = Image("p", False), Image("p@0", True)


@pytest.fixture(scope="module")
def template() -> MiniTemplate:
    return MiniTemplate(tokenizer(), OWN)


def test_the_question_comes_before_the_images(template: MiniTemplate) -> None:
    turns = [Turn("user", (PICTURE, Text("What"), CROP, Text("is it?")))]
    assert template.prompt(turns, instant=False) == [
        ID["begin"], ID["user"], *template.encode("What\nis it?"), PICTURE, CROP, ID["end"],
        ID["assistant"],
    ]  # fmt: skip


def test_turns_and_instant_effort(template: MiniTemplate) -> None:
    turns = [
        Turn("system", (Text("s"),)),
        Turn("user", (Text("q"),)),
        Turn("assistant", (Text("a"),)),
        Turn("user", ()),
    ]
    (s,), (q,), (a,) = (template.encode(t) for t in "sqa")
    assert template.prompt(turns, instant=True) == [
        ID["begin"], ID["system"], s, ID["end"], ID["user"], q, ID["end"], ID["assistant"],
        ID["answer"], a, ID["end"], ID["user"], ID["end"], ID["assistant"], ID["answer"],
    ]  # fmt: skip


@pytest.mark.parametrize("name", CONTROL)
def test_control_strings_in_text_stay_text(template: MiniTemplate, name: str) -> None:
    text = f"a<|{name}|>b <|{name}|>"
    ids = template.encode(text)
    assert not {*ids} & {*ID.values()}
    assert template.decode(ids) == text
    injected = template.injection([Text(text)])
    assert [i for i in injected if i in ID.values()] == [ID["result"], ID["end_result"]]
    prompt = template.prompt([Turn("user", (Text(text),))], instant=False)
    assert [i for i in prompt if i in ID.values()] == [
        ID["begin"], ID["user"], ID["end"], ID["assistant"]
    ]  # fmt: skip


def test_any_text_survives(template: MiniTemplate) -> None:
    text = "é€😀\x00\n\t the <|im_start|> \u202e"
    assert template.decode(template.encode(text)) == text


def test_decoding_leaves_control_tokens_out(template: MiniTemplate) -> None:
    ids = [ID["answer"], *template.encode("yes"), ID["end"], ID["pad"]]
    assert template.decode(ids) == "yes"


def test_a_result_keeps_its_order(template: MiniTemplate) -> None:
    (x,), (y,) = template.encode("x"), template.encode("y")
    assert template.injection([Text("x"), CROP, Text("y")]) == [
        ID["result"], x, CROP, y, ID["end_result"]
    ]  # fmt: skip


def test_views_have_their_sizes(template: MiniTemplate) -> None:
    assert (template.num_image_tokens(PICTURE), template.num_image_tokens(CROP)) == (4, 2)


def test_no_token_is_longer_than_told(template: MiniTemplate) -> None:
    text = "the answer is in there " * 50
    assert len(template.encode(text)) >= len(text) // template.max_token_chars


def test_tools_it_was_not_trained_on_are_told_at_the_last_question(template: MiniTemplate) -> None:
    told = MiniTemplate(tokenizer(), {**OWN, "trained_tools": ["zoom"]})
    turns = [
        Turn("user", (Text("a"),)),
        Turn("assistant", (Text("b"),)),
        Turn("user", (Text("c"),)),
    ]
    schemas: tuple[object, ...] = (
        {"properties": {"item": {}, "shop": {}}}, {}, [1], {"properties": [1]}, True,
    )  # fmt: skip
    tools = [
        json.dumps({"function": {"name": name, "parameters": schema}})
        for name, schema in zip(("price", "now", "list", "odd", "any"), schemas, strict=True)
    ]
    zoom = json.dumps({"function": {"name": "zoom", "parameters": schemas[0]}})
    prompt = told.prompt(turns, instant=False, tools=[zoom, *tools])
    line = template.encode("c\nTools: price(item, shop), now(), list(), odd(), any().")
    assert prompt[-len(line) - 2 :] == [*line, ID["end"], ID["assistant"]]
    assert prompt[: -len(line) - 2] == template.prompt(turns, instant=False)[:-3]
    # Without others nothing is told, and a model that does not say what it knows is told nothing.
    plain = template.prompt(turns, instant=False)
    assert told.prompt(turns, instant=False, tools=[zoom]) == plain
    assert template.prompt(turns, instant=False, tools=tools) == plain


def test_a_tokenizer_that_would_cut_text_does_not() -> None:
    cutting = tokenizer()
    cutting.enable_truncation(3)
    cutting.enable_padding(length=8)
    assert (
        MiniTemplate(cutting, OWN).decode(MiniTemplate(cutting, OWN).encode("abcdef")) == "abcdef"
    )


def test_a_tokenizer_without_control_tokens_is_refused() -> None:
    from tokenizers import Tokenizer, models

    with pytest.raises(ValueError, match="begin"):
        MiniTemplate(Tokenizer(models.BPE()), OWN)
