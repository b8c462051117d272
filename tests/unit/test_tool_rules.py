"""The rules around a tool: its arguments, its limits, its output."""

from __future__ import annotations

from typing import Any

import pytest
from cogitate.kit.errors import InvalidRequest
from cogitate.tool_executor.core import arguments, output, policy
from cogitate.tool_executor.core.policy import Limits
from cogitate.tool_executor.core.registry import TOOLS
from cogitate.tool_executor.core.types import Box, Call, Image, Outcome, ToolError

pytestmark = pytest.mark.unit

LIMITS = Limits(
    default_timeout_s=5, max_timeout_s=30, default_output_bytes=100, max_output_bytes=1000
)


def call(**fields: Any) -> Call:
    return Call(
        **{
            "contemplation_id": "c",
            "call_id": "1",
            "tool_name": "zoom",
            "arguments_json": "{}",
            "allowed_tools": frozenset(["zoom"]),
            **fields,
        }
    )


def test_arguments_are_read() -> None:
    assert arguments.read('{"a": [1, 2.5, null, true, "x"]}') == {"a": [1, 2.5, None, True, "x"]}
    assert arguments.read("{}") == {}


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "[]", "null", '"x"', "{", '{"a":}', '{"a": NaN}', '{"a": -Infinity}'),
        *('{"a": 1e999}', '{"a": 1, "a": 2}', '{"b": {"a": 1, "a": 2}}', "{'a': 1}"),
        '{"a": ' + "9" * 33 + "}",
        '{"a": "\x00"}',
    ],
)
def test_what_is_not_one_clean_object_is_told_to_the_model(text: str) -> None:
    with pytest.raises(ToolError):
        arguments.read(text)


def test_depth_is_counted_outside_of_strings() -> None:
    for text, depth in [
        ("{}", 1),
        ('{"a": [[]]}', 3),
        ('{"a": "[[[[", "b": [{}]}', 3),
        (r'{"a": "\"[[[", "b": 1}', 1),
        ('{"a": "[[[', 1),
        ("[" * 100_000, 100_000),
    ]:
        arguments.check_limits(text, max_bytes=10**6, max_depth=depth)
        with pytest.raises(InvalidRequest):
            arguments.check_limits(text, max_bytes=10**6, max_depth=depth - 1)


def test_size_is_counted_in_bytes() -> None:
    arguments.check_limits('"é"', max_bytes=4, max_depth=1)
    with pytest.raises(InvalidRequest):
        arguments.check_limits('"é"', max_bytes=3, max_depth=1)


def test_limits_are_the_default_the_callers_or_the_maximum() -> None:
    for asked, granted in [(None, 5), (1.5, 1.5), (30, 30), (31, 30)]:
        assert policy.admit(call(timeout_s=asked), TOOLS, LIMITS).timeout_s == granted
    for asked, granted in [(None, 100), (1, 1), (1000, 1000), (1001, 1000)]:
        grant = policy.admit(call(max_output_bytes=asked), TOOLS, LIMITS)
        assert grant.max_output_bytes == granted


def test_the_fingerprint_tells_calls_apart() -> None:
    image = Image("sha256:1")
    calls = [
        call(),
        call(tool_name="prove"),
        call(arguments_json='{"a":1}'),
        call(images=(image,)),
        call(images=(image, image)),
        call(images=(Image("sha256:1", Box(0, 0, 1, 1)),)),
    ]
    assert len({policy.fingerprint(each) for each in calls}) == len(calls)
    assert policy.fingerprint(call()) == policy.fingerprint(call(timeout_s=1, owner_epoch=2))


def test_output_is_cut_between_characters() -> None:
    for limit in range(1, 30):
        fitted = output.fit(Outcome(text="aé漢😀" * 4), limit)
        assert len(fitted.text.encode()) <= limit and fitted.is_truncated
        kept = fitted.text.removesuffix(output.MARK)
        assert ("aé漢😀" * 4).startswith(kept)
    whole = Outcome(text="aé漢😀", images=(Image("sha256:1"),))
    assert output.fit(whole, len("aé漢😀".encode())) == whole


def test_every_tool_is_registered_under_its_name_with_a_schema() -> None:
    for name, tool in TOOLS.items():
        assert tool.name == name and policy.TOOL_NAME.fullmatch(name)
        assert tool.description.endswith(".")
        properties = tool.schema["properties"]
        assert isinstance(properties, dict) and properties
        assert tool.schema["additionalProperties"] is False
