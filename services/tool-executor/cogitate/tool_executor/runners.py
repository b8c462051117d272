"""What runs tools: the seam between a call's rules and the kinds of tools there are.

A runner owns its slots, so a kind of tool that hangs holds up itself alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from cogitate.kit import telemetry
from cogitate.kit.errors import NoEndpoint
from cogitate.kit.telemetry import Attr
from cogitate.tool_executor.core.invoke import failure, invoke
from cogitate.tool_executor.core.policy import Grant
from cogitate.tool_executor.core.types import Call, Outcome, Tool
from opentelemetry import trace

logger = logging.getLogger(__name__)

# Takes a piece of output as it comes.
Emit = Callable[[str], None]


class Runner(Protocol):
    """Runs the tools of one origin."""

    slots: asyncio.Semaphore

    @property
    def tools(self) -> Mapping[str, Tool]:
        """Every tool it knows, by name; of those that are away for now, too."""
        ...

    @property
    def is_away(self) -> bool:
        """Whether its tools cannot be called for now: they are not listed."""
        ...

    def why_not(self, name: str) -> str:
        """Says why there is no tool of a name; empty if the name is none of its own."""
        ...

    async def start(self) -> None:
        """Gets ready. What is not to be had is logged once, and raises nothing."""
        ...

    async def stop(self) -> None:
        """Ends all it started."""
        ...

    async def run(self, call: Call, grant: Grant, ends: float, emit: Emit) -> Outcome:
        """Runs a call until `ends`, in the loop's time, and gives the taken slot back.

        Cancelled, it ends the tool as far as it can.
        """
        ...


def timed_out(timeout_s: float) -> Outcome:
    """What a model is told, and the span is marked with, when the time is over."""
    mark("TOOL_TIMED_OUT")
    return failure(f"The tool took longer than {timeout_s:g} s.")


def crashed(tool_name: str, error: Exception) -> Outcome:
    """What a model is told when a tool broke; the log gets the stack without what was said."""
    mark("TOOL_CRASHED")
    logger.error("tool %s crashed: %s", tool_name, telemetry.stack_of(error))
    return failure("The tool crashed.")


def mark(reason: str) -> None:
    """Marks the span of the call."""
    trace.get_current_span().set_attribute(Attr.REASON, reason)


def away(origin: str) -> NoEndpoint:
    """What a caller is told when a tool's server is not there now: a retry may help."""
    return NoEndpoint(
        f"the MCP server {origin!r} is not connected",
        metadata={"server": origin},
        retry_after_s=1.0,
    )


class Threads:
    """Runs the built-in tools, each call on a thread."""

    is_away = False

    def __init__(self, tools: Mapping[str, Tool], max_running: int) -> None:
        self.tools = tools
        self.slots = asyncio.Semaphore(max_running)
        self._threads = ThreadPoolExecutor(max_running, thread_name_prefix="tool")

    def why_not(self, name: str) -> str:
        """Has no reasons of its own."""
        return ""

    async def start(self) -> None:
        """Does nothing: threads start when they are needed."""

    async def stop(self) -> None:
        """Leaves a thread that does not end behind."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, call: Call, grant: Grant, ends: float, emit: Emit) -> Outcome:
        """Runs a tool on a thread, whose slot is free again only when the thread is."""

        def work() -> Outcome:
            return invoke(grant.tool, call, max_output_bytes=grant.max_output_bytes)

        working = asyncio.get_running_loop().run_in_executor(self._threads, work)
        working.add_done_callback(self._on_thread_free)
        try:
            async with asyncio.timeout_at(ends) as limit:
                return await asyncio.shield(working)
        except Exception as error:
            return timed_out(grant.timeout_s) if limit.expired() else crashed(call.tool_name, error)

    def _on_thread_free(self, working: asyncio.Future[Outcome]) -> None:
        self.slots.release()
        if not working.cancelled():
            working.exception()  # seen, also when nobody waits for it any more
