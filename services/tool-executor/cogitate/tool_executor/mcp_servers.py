"""Runs the tools of MCP servers: one runner a server, so that each is alone in its troubles.

A task keeps a server connected: it connects, lists the tools, lists them again from time to time,
and when that fails or the connection ends it waits, ever longer, and tries again.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from cogitate.kit import telemetry
from cogitate.kit.errors import CogitateError, InvalidRequest
from cogitate.kit.tasks import Supervisor
from cogitate.tool_executor.config import ToolExecutorConfig
from cogitate.tool_executor.core import arguments, mcp, output
from cogitate.tool_executor.core.invoke import failure
from cogitate.tool_executor.core.mcp import Picture, Server
from cogitate.tool_executor.core.policy import Grant
from cogitate.tool_executor.core.types import Call, Image, Outcome, Tool, ToolError
from cogitate.tool_executor.image_store import ImageStore
from cogitate.tool_executor.runners import Emit, Runner, crashed, mark, timed_out

if TYPE_CHECKING:
    from mcp import Client

logger = logging.getLogger(__name__)

# How long the service waits for a server before it serves without it.
START_WAIT_S = 2.0
# Told, not remembered as an error of the tool: the call may have had its effect.
GONE = "The MCP server went away during the call; whether the tool ran is not known."


def mcp_runners(config: ToolExecutorConfig) -> list[Runner]:
    """Returns a runner for each server of the file. Raises InvalidRequest if it cannot be read."""
    if not config.mcp_config:
        return []
    path = Path(config.mcp_config)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InvalidRequest("mcp_config cannot be read") from None
    servers = mcp.read_servers(text, is_json=path.suffix == ".json", env=os.environ)
    try:
        from cogitate.tool_executor.mcp_transports import connect
    except ImportError:
        raise InvalidRequest("mcp_config needs: pip install 'cogitate[mcp]'") from None
    return [McpServer(server, config, connect) for server in servers]


# Makes a client on the stack, which disconnects it; the callback is called when the server is lost.
Connect = Callable[
    [Server, ToolExecutorConfig, AsyncExitStack, Callable[[], None]], Awaitable["Client"]
]


class McpServer:
    """The runner of one server's tools."""

    def __init__(self, server: Server, config: ToolExecutorConfig, connect: Connect) -> None:
        self.tools: Mapping[str, Tool] = {}
        self.slots = asyncio.Semaphore(config.mcp_running_count)
        self._server = server
        self._config = config
        self._connect = connect
        self._images = ImageStore(config.vision_encoder_address, config.mcp_image_timeout_s)
        self._client: Client | None = None
        self._tried = asyncio.Event()  # once: the first try has succeeded or failed
        self._lost = asyncio.Event()
        self._supervisor = Supervisor()
        self._was_logged = False

    @property
    def is_away(self) -> bool:
        """Whether it is not connected."""
        return self._client is None

    def why_not(self, name: str) -> str:
        """Says of a tool under its name that it is not connected, or has no such tool."""
        if not name.startswith(self._server.name + "."):
            return ""
        state = "is not connected" if self.is_away else "has no such tool"
        return f"there is no tool {name!r}: the MCP server {self._server.name!r} {state}"

    async def start(self) -> None:
        """Connects; waits a little for it, and no longer."""
        self._supervisor.spawn(self._keep_connected(), name="mcp-server")
        try:
            async with asyncio.timeout(START_WAIT_S):
                await self._tried.wait()
        except TimeoutError:
            logger.warning("the MCP server %s is not there yet", self._server.name)

    async def stop(self) -> None:
        """Disconnects; a server that we started is ended."""
        await self._supervisor.stop()
        await self._images.close()

    async def run(self, call: Call, grant: Grant, ends: float, emit: Emit) -> Outcome:
        """Runs a call on the server, which is told if it is cancelled or takes too long."""
        try:
            given = arguments.read(call.arguments_json)
            async with asyncio.timeout_at(ends) as limit:
                return await self._call(call.tool_name, dict(given), grant)
        except ToolError as objection:
            return output.fit(failure(str(objection)), grant.max_output_bytes)
        except Exception as error:
            return timed_out(grant.timeout_s) if limit.expired() else self._broken(call, error)
        finally:
            self.slots.release()

    async def _call(self, tool_name: str, given: dict[str, object], grant: Grant) -> Outcome:
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED

        if self._client is None:
            raise ToolError(GONE)
        try:
            name = tool_name.removeprefix(self._server.name + ".")
            result = await self._client.call_tool(name, given)
        except MCPError as error:
            if error.code == CONNECTION_CLOSED:
                mark("TOOL_CRASHED")
                self._lost.set()
                raise ToolError(GONE) from None
            raise ToolError(f"The MCP server refused the call: {error.message}") from None
        said = result.model_dump(mode="json", by_alias=True)
        content = mcp.read_content(
            said,
            max_pictures=self._config.mcp_max_images_count,
            max_picture_bytes=self._config.mcp_max_image_bytes,
        )
        shown = [each if isinstance(each, str) else await self._keep(each) for each in content]
        return mcp.outcome(shown, said, grant.max_output_bytes)

    async def _keep(self, picture: Picture) -> Image | str:
        """The stored image, or a sentence on why it cannot be had."""
        try:
            return await self._images.put(picture.data)
        except CogitateError as error:
            return mcp.left_out(error.message)

    def _broken(self, call: Call, error: Exception) -> Outcome:
        # Its transport broke, or it answered what cannot be read; the next listing will tell which.
        self._lost.set()
        return crashed(call.tool_name, error)

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        num_failures = 0
        while True:
            began = loop.time()
            try:
                await self._connected()
            except Exception as error:
                # What breaks on the way out of a connection must not hide that we are to stop.
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise asyncio.CancelledError from None
                self._log(error)
            finally:
                self._client = None
                self._tried.set()
            num_failures = 0 if loop.time() - began > mcp.MAX_WAIT_S else num_failures + 1
            await asyncio.sleep(mcp.wait_s(num_failures - 1))

    async def _connected(self) -> None:
        """Connects, and returns when the connection has ended. Raises what ended it otherwise."""
        self._lost.clear()
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(self._config.mcp_connect_s):
                client = await self._connect(self._server, self._config, stack, self._lost.set)
                await self._list(client)
            self._client = client
            self._tried.set()
            self._was_logged = False
            logger.info("the MCP server %s has %d tools", self._server.name, len(self.tools))
            while not self._lost.is_set():
                try:
                    async with asyncio.timeout(self._config.mcp_refresh_s):
                        await self._lost.wait()
                except TimeoutError:
                    async with asyncio.timeout(self._config.mcp_connect_s):
                        await self._list(client)
            # Calls that come from here on are refused and not sent to a connection that is going.
            self._client = None

    async def _list(self, client: Client) -> None:
        listed: list[Mapping[str, object]] = []
        cursor: str | None = None
        while len(listed) < mcp.MAX_TOOLS:
            page = await client.list_tools(cursor=cursor, cache_mode="bypass")
            listed += [tool.model_dump(mode="json", by_alias=True) for tool in page.tools]
            cursor = page.next_cursor
            if cursor is None or not page.tools:
                break
        version = client.server_info.version if client.server_info else ""
        self.tools = mcp.read_tools(self._server.name, version, listed)

    def _log(self, error: Exception) -> None:
        # Once for each time it goes away, however often it is tried.
        if not self._was_logged:
            self._was_logged = True
            reason = telemetry.stack_of(error)
            logger.warning("the MCP server %s is not there: %s", self._server.name, reason)
