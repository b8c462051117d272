"""Tool calls as models write them, well and badly."""

from __future__ import annotations

import json

import pytest
from cogitate.agent_decoder.core.calls import MAX_CALL_CHARS, UNREADABLE, parse_call

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("zoom(25, 33, 50, 67)", "zoom", {"box": [25, 33, 50, 67], "image": 0}),
        (" zoom( 0,0,100,100 , 2 ) ", "zoom", {"box": [0, 0, 100, 100], "image": 2}),
        ("calculator((1+2)*3)", "calculator", {"expression": "(1+2)*3"}),
        ("calculator(max(1, 2))", "calculator", {"expression": "max(1, 2)"}),
        (
            "prove(26, 6 4 5 3, 6*4=24, 24+5=29, 29-3=26)",
            "prove",
            {"target": 26, "numbers": [6, 4, 5, 3], "steps": ["6*4=24", "24+5=29", "29-3=26"]},
        ),
        ("lookup(prices, bread)", "lookup", {"table": "prices", "row": "bread"}),
        ("lookup(ranges, Uric acid, low)", "lookup",
         {"table": "ranges", "row": "Uric acid", "column": "low"}),
        ('lookup(prices, "salt, fine")', "lookup", {"table": "prices", "row": "salt, fine"}),
        ('lookup(row="bread")', "lookup", {"row": "bread"}),
        ('lookup({"row": "bread"})', "lookup", {"row": "bread"}),
        ('find(name="so, dium", unit=\'mg\')', "find", {"name": "so, dium", "unit": "mg"}),
        ("find(a=[1, {}], n=-2.5, on=true)", "find", {"a": [1, {}], "n": -2.5, "on": True}),
        ('find({"a": [1, 2]})', "find", {"a": [1, 2]}),
        ("now()", "now", {}),
        ("ns.tool-2(x=1)", "ns.tool-2", {"x": 1}),
    ],
)  # fmt: skip
def test_readable(text: str, name: str, arguments: dict[str, object]) -> None:
    call = parse_call(text)
    assert (call.name, json.loads(call.arguments_json)) == (name, arguments)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "zoom",
        "zoom(",
        "zoom)",
        "(1)",
        "1zoom(1,2,3,4)",
        "zoom(1,2,3)",
        "zoom(1,2,3,4,5,6)",
        "zoom(1.5,2,3,4)",
        "zoom(a,b,c,d)",
        "zoom(1,2,3,99999999999)",
        "calculator()",
        "prove(1, 2)",
        "prove(x, 1 2, 1+1=2)",
        "lookup()",
        "lookup(prices)",
        "lookup(prices, bread, price, more)",
        "find(1, 2)",
        "find(x=)",
        "find(x=open('a'))",
        "find([1])",
        "find({)",
        "find(x=NaN)",
        "find(x=-Infinity)",
        "find(x=1e999)",
        "find(x=1, x=2)",
        "a" * 65 + "(x=1)",
        "find(x=" + "[" * 1500 + ")",
        "find(x=" + "1" * (MAX_CALL_CHARS + 1) + ")",
        "f(" + ")" * 2000 + "x",
        "__import__('os').system('true')",
        "\x00(\x00)",
    ],
)
def test_unreadable(text: str) -> None:
    assert parse_call(text) is UNREADABLE


def test_deep_but_readable_json_stays_json() -> None:
    call = parse_call("find(x=" + "[" * 200 + "]" * 200 + ")")
    assert call.name == "find"
    json.loads(call.arguments_json)
