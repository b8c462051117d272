"""Runs calls: owns the threads, the clock and what is remembered.

A call's run belongs to the service, not to the RPC that asked first: whoever waits for it may leave
without harm to the others. When the last one leaves a repeatable call, the run is dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from cogitate.kit import telemetry
from cogitate.kit.clock import Clock, SystemClock
from cogitate.kit.errors import Evicted, NoEndpoint
from cogitate.kit.tasks import Supervisor
from cogitate.kit.telemetry import Attr, Span
from cogitate.tool_executor.config import ToolExecutorConfig
from cogitate.tool_executor.core import arguments, policy
from cogitate.tool_executor.core.capacity import Capacity
from cogitate.tool_executor.core.invoke import failure, invoke
from cogitate.tool_executor.core.ledger import EpochFence, Key, Ledger, Replay, Start
from cogitate.tool_executor.core.policy import Grant
from cogitate.tool_executor.core.registry import TOOLS
from cogitate.tool_executor.core.types import Call, Execution, Outcome, Tool
from opentelemetry import trace

logger = logging.getLogger(__name__)

_SWEEP_S = 30.0


@dataclass(slots=True, eq=False)
class _Run:
    """A call in progress and how many wait for it."""

    task: asyncio.Task[Execution | Evicted]
    num_waiters: int = 0


class ToolRuntime:
    """Executes calls on threads, each once, within the limits of `config`."""

    def __init__(
        self,
        config: ToolExecutorConfig,
        tools: Mapping[str, Tool] = TOOLS,
        clock: Clock | None = None,
    ) -> None:
        self.tools = tools
        self._config = config
        self._clock = clock or SystemClock()
        self._supervisor = Supervisor()
        self._threads = ThreadPoolExecutor(config.max_running_count, thread_name_prefix="tool")
        self._slots = asyncio.Semaphore(config.max_running_count)
        self._runs: dict[Key, _Run] = {}
        self._ledger = Ledger(
            max_results=config.max_results_count,
            max_bytes=config.max_results_bytes,
            ttl_s=config.result_ttl_s,
        )
        self._fence = EpochFence(config.max_epochs_count)
        self._capacity = Capacity(
            max_calls=config.max_calls_count,
            max_calls_per_tenant=config.max_calls_per_tenant_count,
        )
        self._is_draining = False

    async def start(self) -> None:
        """Starts forgetting results whose time is over."""
        self._supervisor.spawn(self._sweep(), name="tool-results-sweep")

    async def drain(self) -> None:
        """Refuses new calls and waits for those that run. Cancelled, it leaves them running."""
        self._is_draining = True
        while self._runs:
            await asyncio.wait([run.task for run in self._runs.values()])

    async def stop(self) -> None:
        """Drops what still runs. A thread that does not end is left behind."""
        await self._supervisor.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def execute(self, call: Call, tenant: str) -> Execution:
        """Returns the result of a call, of this run, of one in progress or of an earlier one.

        Cancelled, it leaves the run to whoever else waits for it. Raises what `policy.admit`,
        `Ledger.begin` and `EpochFence.check` raise, InvalidRequest for arguments over a limit,
        Rejected if there is no room, Evicted if no thread came free in the call's time.
        """
        grant = policy.admit(call, self.tools, self._config.limits)
        arguments.check_limits(
            call.arguments_json,
            max_bytes=self._config.max_arguments_bytes,
            max_depth=self._config.max_arguments_depth_count,
        )
        self._fence.check(tenant, call.contemplation_id, call.owner_epoch)
        key = Key(tenant, call.contemplation_id, call.call_id)
        decision = self._ledger.begin(key, policy.fingerprint(call), self._clock.monotonic())
        if isinstance(decision, Replay):
            return decision.execution
        if isinstance(decision, Start):
            self._begin(key, call, grant)
            return await self._wait(key, grant)
        return replace(await self._wait(key, grant), replayed=True)

    def _begin(self, key: Key, call: Call, grant: Grant) -> None:
        try:
            if self._is_draining:
                raise NoEndpoint("the tool-executor is stopping", reason="UNAVAILABLE")
            self._capacity.admit(key.tenant)
        except BaseException:
            self._ledger.abandon(key)
            raise
        task = self._supervisor.spawn(self._run(key, call, grant), name="tool-call")
        self._runs[key] = run = _Run(task)
        # Not in the task's own `finally`: one cancelled before its first step never gets there.
        task.add_done_callback(lambda _: self._on_run_done(key, run))

    async def _wait(self, key: Key, grant: Grant) -> Execution:
        run = self._runs[key]
        run.num_waiters += 1
        try:
            await asyncio.wait([run.task])
        finally:
            run.num_waiters -= 1
            if not run.num_waiters and not run.task.done() and grant.tool.repeatable:
                self._drop(key, run)
        if run.task.cancelled():
            raise NoEndpoint("the tool-executor stopped", reason="UNAVAILABLE")
        result = run.task.result()
        if isinstance(result, Evicted):
            raise result
        return result

    def _drop(self, key: Key, run: _Run) -> None:
        # At once, not when the task has noticed: the same call may come again before that.
        self._forget(key, run)
        run.task.cancel()

    def _on_run_done(self, key: Key, run: _Run) -> None:
        self._capacity.release(key.tenant)
        self._forget(key, run)

    def _forget(self, key: Key, run: _Run) -> None:
        # The key may be another run's by now, or have its result.
        if self._runs.get(key) is run:
            del self._runs[key]
            self._ledger.abandon(key)

    async def _run(self, key: Key, call: Call, grant: Grant) -> Execution | Evicted:
        run = self._runs[key]
        ends = asyncio.get_running_loop().time() + grant.timeout_s
        attributes: dict[Attr, str] = {
            Attr.OPERATION: "execute_tool",
            Attr.TOOL_NAME: call.tool_name,
            Attr.TOOL_CALL_ID: call.call_id,
            Attr.CONTEMPLATION_ID: call.contemplation_id,
        }
        with telemetry.span(Span.TOOL, attributes):
            try:
                async with asyncio.timeout_at(ends):
                    await self._slots.acquire()
            except TimeoutError:
                return Evicted("no thread came free in the call's time", retry_after_s=0.5)
            began = self._clock.monotonic()
            outcome = await self._perform(call, grant, ends)
            now = self._clock.monotonic()
        execution = Execution(
            call_id=call.call_id,
            tool_name=grant.tool.name,
            tool_version=grant.tool.version,
            origin=grant.tool.origin,
            outcome=outcome,
            duration_s=now - began,
        )
        # Dropped meanwhile, the key may already be another run's.
        if self._runs.get(key) is run:
            del self._runs[key]
            self._ledger.finish(key, execution, now)
        return execution

    async def _perform(self, call: Call, grant: Grant, ends: float) -> Outcome:
        """Runs the tool on a thread, whose slot is free again only when the thread is."""

        def work() -> Outcome:
            return invoke(
                grant.tool,
                call.arguments_json,
                call.images,
                max_output_bytes=grant.max_output_bytes,
            )

        working = asyncio.get_running_loop().run_in_executor(self._threads, work)
        working.add_done_callback(self._on_thread_free)
        try:
            async with asyncio.timeout_at(ends) as limit:
                return await asyncio.shield(working)
        except Exception as error:
            if limit.expired():
                self._mark("TOOL_TIMED_OUT")
                return failure(f"The tool took longer than {grant.timeout_s:g} s.")
            self._mark("TOOL_CRASHED")
            logger.error("tool %s crashed: %s", grant.tool.name, telemetry.stack_of(error))
            return failure("The tool crashed.")

    def _mark(self, reason: str) -> None:
        trace.get_current_span().set_attribute(Attr.REASON, reason)

    def _on_thread_free(self, working: asyncio.Future[Outcome]) -> None:
        self._slots.release()
        if not working.cancelled():
            working.exception()  # seen, also when nobody waits for it any more

    async def _sweep(self) -> None:
        while True:
            await self._clock.sleep(_SWEEP_S)
            self._ledger.expire(self._clock.monotonic())
