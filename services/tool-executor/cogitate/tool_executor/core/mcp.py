"""MCP servers as values: the file that names them, their tools as ours, their results as ours.

What a server says is as untrusted as what a model says: descriptions are cut and cleaned, names
that are none of ours and schemas that are too large are left out, and only text and pictures come
through. Pictures are files here, within limits; whether one is an image the vision-encoder says,
which has to keep it. What is left out becomes a sentence.

Invariants (tests/unit/test_mcp_values.py):

1. A file that is not exactly right is refused, with the server and the key
   (test_a_bad_file_is_refused).
2. A tool is `repeatable` only if its server calls it read-only (test_tools_are_taken_over).
3. No more pictures come through than allowed, and none that is larger
   (test_pictures_keep_to_their_limits).
"""

from __future__ import annotations

import binascii
import json
import re
import string
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cogitate.kit.errors import InvalidRequest
from cogitate.tool_executor.core import output
from cogitate.tool_executor.core.policy import TOOL_NAME
from cogitate.tool_executor.core.types import Image, Outcome, Tool

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


@dataclass(frozen=True, slots=True)
class Picture:
    """A file that a server calls an image."""

    data: bytes


def read_content(
    result: Mapping[str, Any], *, max_pictures: int, max_picture_bytes: int
) -> list[str | Picture]:
    """Returns what a call gave, by MCP's own names of fields, in order: texts and pictures.

    A picture over the limits, and whatever else cannot be shown, is a sentence.
    """
    content: list[str | Picture] = []
    num_pictures = 0
    for part in result.get("content") or []:
        item: str | Picture | None = _picture(part, max_picture_bytes)
        if isinstance(item, Picture):
            num_pictures += 1
            if num_pictures > max_pictures:
                item = left_out(f"a result shows {max_pictures} at most")
        content.append(_text(part) if item is None else item)
    structured = result.get("structuredContent")
    if not any(content) and structured is not None:
        content = [json.dumps(structured, ensure_ascii=False)]
    return content


def _picture(part: Mapping[str, Any], max_bytes: int) -> Picture | str | None:
    """The image of a part, or why it cannot be shown; None if the part is none."""
    resource = part.get("resource") or {}
    if part.get("type") == "image":
        encoded = str(part.get("data") or "")
    elif "blob" in resource and str(resource.get("mimeType")).startswith("image/"):
        encoded = str(resource["blob"])
    else:
        return None
    if len(encoded) > -(-max_bytes // 3) * 4:
        return left_out(f"it is larger than {max_bytes} bytes")
    try:
        data = binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError:
        return left_out("it is not base64")
    return (
        Picture(data)
        if len(data) <= max_bytes
        else left_out(f"it is larger than {max_bytes} bytes")
    )


def left_out(why: str) -> str:
    """Returns what a model reads in the place of an image that it is not shown."""
    return f"[an image came that cannot be shown: {why}]"


def outcome(content: Iterable[str | Image], result: Mapping[str, Any], max_bytes: int) -> Outcome:
    """Returns the outcome of a call whose pictures are stored, its text so long at most."""
    items = list(content)
    text = "\n".join(item for item in items if isinstance(item, str))
    images = tuple(item for item in items if isinstance(item, Image))
    is_error = result.get("isError") is True
    return output.fit(Outcome(text=text, images=images, is_error=is_error), max_bytes)


def _text(part: Mapping[str, Any]) -> str:
    kind = part.get("type")
    resource = part.get("resource") or {}
    if kind == "text":
        return str(part.get("text", ""))
    if kind == "resource" and "text" in resource:
        return str(resource["text"])
    if kind == "resource_link":
        return f"[a link to {str(part.get('uri', ''))[:256]}]"
    media = part.get("mimeType") or resource.get("mimeType") or "of an unknown type"
    return f"[{kind}, {str(media)[:64]}: it cannot be shown here]"


def wait_s(num_failures: int) -> float:
    """Returns how long to wait before the next try, after so many failures in a row."""
    return float(min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** min(num_failures, 16)))
