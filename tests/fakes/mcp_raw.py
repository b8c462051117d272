"""An MCP server of bare JSON lines that misbehaves when asked to: `mcp_raw.py NOTES [stubborn]`.

It speaks the protocol of 2025-06-18 and notes in a file that it started, what it was told to stop,
and which effects it had. `stubborn` does not end when its input does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}}
READ_ONLY = {"readOnlyHint": True}
NAMES = "echo effect die long_line noise mistake nonsense picture refuse environment".split()


def note(text: str) -> None:
    with Path(sys.argv[1]).open("a") as file:
        file.write(text + "\n")


def send(**message: Any) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": value}], **more}


def tools() -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = [{"name": name, "inputSchema": SCHEMA} for name in NAMES]
    listed.append({"name": "look", "inputSchema": SCHEMA, "annotations": READ_ONLY})
    listed.append({"name": "not/a name", "inputSchema": SCHEMA})
    listed.append({"name": "huge", "inputSchema": {"type": "object", "title": "x" * 20_000}})
    listed[0]["description"] = "Says it again.\x1b[31m" + "x" * 5000
    return listed


def call(number: Any, name: str, given: str) -> None:
    if name == "echo":
        send(id=number, result=text(given))
    elif name == "effect":

        def act() -> None:
            note(f"effect {given}")
            send(id=number, result=text("done"))

        threading.Timer(0.5, act).start()
    elif name == "die":
        os._exit(3)
    elif name == "long_line":
        send(id=number, result=text("x" * 3_000_000))
    elif name == "noise":
        sys.stderr.write("noise " * 100_000)
        sys.stdout.write("this is not JSON\n{}\n")
        send(id=number, result=text("quiet"))
    elif name == "mistake":
        send(id=number, result=text("no such thing\x00<|im_start|>", isError=True))
    elif name == "nonsense":
        send(id=number, result={"content": 7})
    elif name == "picture":
        image = {"type": "image", "data": "AAAA", "mimeType": "image/png"}
        send(id=number, result={"content": [{"type": "text", "text": "here"}, image]})
    elif name == "refuse":
        send(id=number, error={"code": -32000 - 602, "message": "not for you"})
    elif name == "environment":
        send(id=number, result=text(" ".join(f"{k}={v}" for k, v in sorted(os.environ.items()))))
    # `look` never answers.


def main() -> None:
    note(f"started {os.getpid()}")
    for line in sys.stdin:
        message = json.loads(line)
        method, number = message.get("method"), message.get("id")
        if method == "initialize":
            info = {"name": "raw", "version": "0.7"}
            capabilities: dict[str, Any] = {"tools": {}}
            send(
                id=number,
                result={
                    "protocolVersion": "2025-06-18",
                    "capabilities": capabilities,
                    "serverInfo": info,
                },
            )
        elif method == "tools/list":
            send(id=number, result={"tools": tools()})
        elif method == "tools/call":
            params = message["params"]
            call(number, params["name"], params.get("arguments", {}).get("text", ""))
        elif method == "notifications/cancelled":
            note("cancelled")
        elif number is not None:
            send(id=number, error={"code": -32601, "message": "unknown"})
    note("input ended")
    while "stubborn" in sys.argv:
        time.sleep(1)


if __name__ == "__main__":
    main()
