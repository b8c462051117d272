"""MCP servers as values: the file that names them, their tools as ours, their results as ours.

What a server says is as untrusted as what a model says: descriptions are cut and cleaned, names
that are none of ours and schemas that are too large are left out, and only text comes through. A
picture would have to be in the vision-encoder's store to be named, so it becomes a sentence.

Invariants (tests/unit/test_mcp_values.py):

1. A file that is not exactly right is refused, with the server and the key
   (test_a_bad_file_is_refused).
2. A tool is `repeatable` only if its server calls it read-only (test_tools_are_taken_over).
"""

from __future__ import annotations

import json
import re
import string
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cogitate.kit.errors import InvalidRequest
from cogitate.tool_executor.core import output
from cogitate.tool_executor.core.policy import TOOL_NAME
from cogitate.tool_executor.core.types import Outcome, Tool

MAX_TOOLS = 128
MAX_SCHEMA_BYTES = 16 * 1024
MAX_DESCRIPTION_BYTES = 1024
FIRST_WAIT_S, MAX_WAIT_S = 0.5, 30.0
_SERVER_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_TAKEN = ("builtin", "sandbox")
_COMMAND_KEYS: Mapping[str, type] = {"command": str, "args": list, "env": dict}
_URL_KEYS: Mapping[str, type] = {"url": str, "headers": dict}
_FILLED = ("env", "headers")


@dataclass(frozen=True, slots=True)
class Server:
    """A server to connect to: a `command` of ours to start, or a `url`; exactly one is set."""

    name: str
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


def read_servers(text: str, *, is_json: bool, env: Mapping[str, str]) -> list[Server]:
    """Returns the servers of a file: tables under `servers` in TOML, `mcpServers` in JSON.

    `${NAME}` in a value of `env` or `headers` is a variable of this process. Raises InvalidRequest.
    """
    try:
        data = json.loads(text) if is_json else tomllib.loads(text)
    except ValueError:
        raise InvalidRequest("mcp_config is not valid") from None
    key = "mcpServers" if is_json else "servers"
    named = data.get(key) if isinstance(data, dict) else None
    if not isinstance(named, dict) or set(data) != {key}:
        raise InvalidRequest(f"mcp_config must have {key} and nothing else")
    return [_read_server(name, value, env) for name, value in named.items()]


def _read_server(name: str, value: object, env: Mapping[str, str]) -> Server:
    where = f"mcp_config, server {name[:32]!r}"
    if not _SERVER_NAME.fullmatch(name) or name in _TAKEN:
        raise InvalidRequest(f"{where}: its name must be 1 to 32 letters, digits, - or _")
    if not isinstance(value, dict) or ("command" in value) == ("url" in value):
        raise InvalidRequest(f"{where}: needs a command or a url, and not both")
    known = _COMMAND_KEYS if "command" in value else _URL_KEYS
    for key, given in value.items():
        if not isinstance(given, known.get(key, ())):
            raise InvalidRequest(f"{where}: {key[:32]!r} is not a key of it, or not of its type")
        if not all(isinstance(each, str) and each for each in _within(given)):
            raise InvalidRequest(f"{where}: {key} holds something that is not text")
    url = value.get("url", "https://")
    if not url.startswith(("http://", "https://")):
        raise InvalidRequest(f"{where}: url must begin with http:// or https://")
    filled = {key: _fill(value.get(key, {}), env, where) for key in _FILLED}
    return Server(
        name,
        command=value.get("command", ""),
        args=tuple(value.get("args", ())),
        url=value.get("url", ""),
        **filled,
    )


def _within(given: object) -> Iterable[object]:
    if isinstance(given, dict):
        return list(given.values())
    return given if isinstance(given, list) else [given]


def _fill(values: Mapping[str, str], env: Mapping[str, str], where: str) -> Mapping[str, str]:
    try:
        return {name: string.Template(text).substitute(env) for name, text in values.items()}
    except (KeyError, ValueError) as error:
        missing = str(error) if isinstance(error, KeyError) else "a $ that names none"
        raise InvalidRequest(f"{where}: there is no environment variable {missing}") from None


def read_tools(server: str, version: str, listed: Iterable[Mapping[str, Any]]) -> dict[str, Tool]:
    """Returns the tools of a server under `server.name`, without those that cannot be taken over.

    `listed` is what the server listed, by MCP's own names of fields.
    """
    tools: dict[str, Tool] = {}
    for each in listed:
        name = f"{server}.{each.get('name', '')}"
        schema = each.get("inputSchema")
        too_large = len(json.dumps(schema)) > MAX_SCHEMA_BYTES
        if not TOOL_NAME.fullmatch(name) or not isinstance(schema, dict) or too_large:
            continue
        if len(tools) == MAX_TOOLS:
            break
        about = Outcome(text=str(each.get("description") or ""))
        tools[name] = Tool(
            name=name,
            version=output.clean(version)[:32] or "unknown",
            description=output.fit(about, MAX_DESCRIPTION_BYTES).text,
            schema=schema,
            origin=server,
            repeatable=(each.get("annotations") or {}).get("readOnlyHint") is True,
        )
    return tools


def read_result(result: Mapping[str, Any], max_bytes: int) -> Outcome:
    """Returns the result of a call, by MCP's own names of fields, as text that fits."""
    text = "\n".join(_texts(result.get("content") or []))
    structured = result.get("structuredContent")
    if not text and structured is not None:
        text = json.dumps(structured, ensure_ascii=False)
    return output.fit(Outcome(text=text, is_error=result.get("isError") is True), max_bytes)


def _texts(content: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for part in content:
        kind = part.get("type")
        resource = part.get("resource") or {}
        if kind == "text":
            yield str(part.get("text", ""))
        elif kind == "resource" and "text" in resource:
            yield str(resource["text"])
        elif kind == "resource_link":
            yield f"[a link to {str(part.get('uri', ''))[:256]}]"
        else:
            media = part.get("mimeType") or resource.get("mimeType") or "of an unknown type"
            yield f"[{kind}, {str(media)[:64]}: it cannot be shown here]"


def wait_s(num_failures: int) -> float:
    """Returns how long to wait before the next try, after so many failures in a row."""
    return float(min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** min(num_failures, 16)))
