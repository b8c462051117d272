"""MCP servers as values: the file that names them, their tools, their results."""

from __future__ import annotations

from typing import Any

import pytest
from cogitate.kit.errors import InvalidRequest
from cogitate.tool_executor.core import mcp
from cogitate.tool_executor.core.mcp import Server
from cogitate.tool_executor.core.types import Image, Outcome

pytestmark = pytest.mark.unit

ENV = {"TOKEN": "t0k", "HOME": "/home/x"}
SCHEMA = {"type": "object", "properties": {}}


def read(text: str, *, is_json: bool = False) -> list[Server]:
    return mcp.read_servers(text, is_json=is_json, env=ENV)


def test_both_kinds_of_server_are_read() -> None:
    text = """
[servers.files]
command = "mcp-files"
args = ["--root", "/srv"]
env = { KEY = "a${TOKEN}b", PRICE = "5$$" }
[servers.web-search]
url = "https://example.org/mcp"
headers = { Authorization = "Bearer ${TOKEN}" }
"""
    files, web = read(text)
    assert files == Server(
        "files", "mcp-files", ("--root", "/srv"), {"KEY": "at0kb", "PRICE": "5$"}
    )
    assert (web.name, web.command, web.url) == ("web-search", "", "https://example.org/mcp")
    assert web.headers == {"Authorization": "Bearer t0k"}


def test_json_is_read_as_other_clients_write_it() -> None:
    text = '{"mcpServers": {"a": {"command": "x"}, "b": {"url": "http://127.0.0.1:1/mcp"}}}'
    assert [server.name for server in read(text, is_json=True)] == ["a", "b"]
    assert read("[servers]\n") == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "not valid"),
        ("", "servers"),
        ("servers = 1", "servers"),
        ("[servers]\n[other]", "servers"),
        ('[servers."a.b"]\ncommand = "x"', "name"),
        ('[servers.builtin]\ncommand = "x"', "name"),
        (f'[servers.{"x" * 33}]\ncommand = "x"', "name"),
        ("[servers.a]", "command or a url"),
        ('[servers.a]\ncommand = "x"\nurl = "http://x"', "command or a url"),
        ('[servers.a]\ncommand = ""', "command"),
        ("[servers.a]\ncommand = 1", "command"),
        ('[servers.a]\ncommand = "x"\nargs = "y"', "args"),
        ('[servers.a]\ncommand = "x"\nargs = [1]', "args"),
        ('[servers.a]\ncommand = "x"\nheaders = {}', "headers"),
        ('[servers.a]\ncommand = "x"\nenv = { A = 1 }', "env"),
        ('[servers.a]\ncommand = "x"\nenv = { A = "${MISSING}" }', "MISSING"),
        ('[servers.a]\ncommand = "x"\nenv = { A = "$" }', "$"),
        ('[servers.a]\nurl = "ftp://x"', "url"),
        ('[servers.a]\nurl = "http://x"\nenv = {}', "env"),
    ],
)
def test_a_bad_file_is_refused(text: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(text)
    assert says in caught.value.message and "t0k" not in caught.value.message
    if "[servers.a]" in text:
        assert "'a'" in caught.value.message


def listed(**fields: Any) -> dict[str, Any]:
    return {"name": "look", "inputSchema": SCHEMA, **fields}


def test_tools_are_taken_over() -> None:
    hints = {"readOnlyHint": True, "idempotentHint": True}
    tools = mcp.read_tools(
        "s",
        "1.0\x1b[0m",
        [
            listed(description="Looks.\x00", annotations=hints),
            listed(name="write", annotations={"idempotentHint": True}),
            listed(name="bare", annotations=None, description=None),
            listed(name="not a name"),
            listed(name="x" * 63),
            listed(name="none", inputSchema=None),
            listed(name="large", inputSchema={"x": "y" * mcp.MAX_SCHEMA_BYTES}),
        ],
    )
    assert list(tools) == ["s.look", "s.write", "s.bare"]
    look = tools["s.look"]
    assert (look.name, look.origin, look.version) == ("s.look", "s", "1.0\ufffd[0m")
    assert (look.description, look.schema, look.run) == ("Looks.\ufffd", SCHEMA, None)
    assert [tool.repeatable for tool in tools.values()] == [True, False, False]


def test_so_many_tools_and_no_more() -> None:
    many = [listed(name=f"t{n}") for n in range(mcp.MAX_TOOLS + 5)]
    assert len(mcp.read_tools("s", "", many)) == mcp.MAX_TOOLS
    long = mcp.read_tools("s", "", [listed(description="x" * 5000)])["s.look"]
    assert len(long.description.encode()) <= mcp.MAX_DESCRIPTION_BYTES
    assert long.version == "unknown"


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb"),
        ({"content": [], "structuredContent": {"é": [1]}}, '{"é": [1]}'),
        ({"content": [{"type": "text", "text": "a"}], "structuredContent": {"b": 1}}, "a"),
        ({"content": [{"type": "audio", "data": "AA"}]},
         "[audio, of an unknown type: it cannot be shown here]"),
        ({"content": [{"type": "resource", "resource": {"uri": "x", "text": "t"}}]}, "t"),
        ({"content": [{"type": "resource", "resource": {"blob": "AA", "mimeType": "a/b"}}]},
         "[resource, a/b: it cannot be shown here]"),
        ({"content": [{"type": "resource_link", "uri": "file:///x"}]}, "[a link to file:///x]"),
        ({"content": [{"type": "text", "text": "\x1b[2J\x00<|im_start|>"}]},
         "\ufffd[2J\ufffd<|im_start|>"),
        ({}, ""),
    ],
)  # fmt: skip
def test_results_become_text(result: dict[str, Any], text: str) -> None:
    assert shown(result, 1000).text == text


def shown(result: dict[str, Any], max_bytes: int) -> Outcome:
    """As it comes out if every picture is stored under the same digest."""
    content = mcp.read_content(result, max_pictures=2, max_picture_bytes=4)
    kept = [Image("sha256:x") if isinstance(each, mcp.Picture) else each for each in content]
    return mcp.outcome(kept, result, max_bytes)


def image(data: str, **more: Any) -> dict[str, Any]:
    return {"type": "image", "data": data, "mimeType": "image/png", **more}


def test_pictures_come_through_in_order_with_the_text() -> None:
    blob = {"blob": "AAAB", "mimeType": "image/webp"}
    content = [image("AAAA"), {"type": "text", "text": "a"}, {"type": "resource", "resource": blob}]
    read = mcp.read_content({"content": content}, max_pictures=2, max_picture_bytes=4)
    assert read == [mcp.Picture(b"\0\0\0"), "a", mcp.Picture(b"\0\0\1")]
    result = {"content": content, "structuredContent": {"b": 1}, "isError": True}
    assert shown(result, 10) == Outcome("a", (Image("sha256:x"),) * 2, is_error=True)
    assert shown({"content": [image("AAAA")], "structuredContent": {"b": 1}}, 10).text == ""


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("AAAAAA==", None),  # 4 bytes
        ("AAAAAAA=", "larger than 4 bytes"),
        ("A" * 1_000_000, "larger than 4 bytes"),
        ("AAA", "not base64"),
        ("AA\nAA", "not base64"),
        ("é", "not base64"),
        ("", None),  # the vision-encoder says that it is empty
    ],
)
def test_pictures_keep_to_their_limits(data: str, why: str | None) -> None:
    outcome = shown({"content": [image(data)]}, 1000)
    assert len(outcome.images) == (why is None)
    assert outcome.text == (mcp.left_out(f"it is {why}") if why else "")
    many = shown({"content": [image("AAAA")] * 4}, 1000)
    assert len(many.images) == 2 and many.text.count("2 at most") == 2


def test_a_result_keeps_to_its_limit_and_says_if_it_is_an_error() -> None:
    given = {"content": [{"type": "text", "text": "x" * 100}], "isError": True}
    assert shown(given, 100).text == "x" * 100
    cut = shown(given, 99)
    assert cut.is_truncated and cut.is_error and len(cut.text) == 99


def test_waits_grow_to_a_limit() -> None:
    waits = [mcp.wait_s(n) for n in range(100)]
    assert waits[:4] == [0.5, 1.0, 2.0, 4.0] and waits == sorted(waits)
    assert waits[-1] == mcp.MAX_WAIT_S
