"""An MCP server made with the SDK: `python mcp_sdk.py [PORT]`, by stdio or streamable HTTP."""

from __future__ import annotations

import io
import sys

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Image
from mcp_types import ToolAnnotations
from PIL import Image as Pictures

server = MCPServer("sums", version="1.2")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


@server.tool()
async def sleep(seconds: float) -> str:
    """Sleeps."""
    await anyio.sleep(seconds)
    return "slept"


@server.tool()
def broken() -> str:
    """Fails."""
    raise ValueError("it broke")


@server.tool()
def draw(width: int, height: int, cut: int = 0) -> list[str | Image]:
    """Draws a red picture, and cuts bytes off its file."""
    file = io.BytesIO()
    Pictures.new("RGB", (width, height), (200, 0, 0)).save(file, "PNG")
    data = file.getvalue()
    return ["a picture", Image(data=data[: len(data) - cut], format="png")]


@server.tool()
def token(ctx: Context) -> str:
    """Says which token the caller brought."""
    return str((ctx.headers or {}).get("authorization"))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]), stateless_http=True)
    else:
        server.run()
