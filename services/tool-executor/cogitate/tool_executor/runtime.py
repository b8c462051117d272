"""Runs calls: owns the clock, what is remembered, and who waits for what.

A call's run belongs to the service, not to the RPC that asked first: whoever waits for it may leave
without harm to the others. When the last one leaves a repeatable call, the run is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from cogitate.kit import telemetry
from cogitate.kit.clock import Clock, SystemClock
from cogitate.kit.errors import Evicted, NoEndpoint
from cogitate.kit.tasks import Supervisor
from cogitate.kit.telemetry import Attr, Span
from cogitate.tool_executor.config import ToolExecutorConfig
from cogitate.tool_executor.core import arguments, lookup, policy
from cogitate.tool_executor.core.capacity import Capacity
from cogitate.tool_executor.core.ledger import EpochFence, Key, Ledger, Replay, Start
from cogitate.tool_executor.core.policy import Grant
from cogitate.tool_executor.core.registry import TOOLS
from cogitate.tool_executor.core.types import Call, Execution, Tool
from cogitate.tool_executor.runners import Runner, Threads, away

_SWEEP_S = 30.0


@dataclass(slots=True, eq=False)
class _Run:
    """A call in progress, how many wait for it, and its output so far, in pieces.

    `news` is set at the next piece or the end, and then replaced.
    """

    runner: Runner
    task: asyncio.Task[Execution | Evicted] = field(init=False)
    num_waiters: int = 0
    pieces: list[str] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def emit(self, piece: str) -> None:
        """Adds a piece of output."""
        self.pieces.append(piece)
        self.tell()

    def tell(self) -> None:
        """Wakes all who wait."""
        self.news.set()
        self.news = asyncio.Event()


class ToolRuntime:
    """Executes calls, each once, within the limits of `config`.

    `tools` are the built-in ones, `runners` bring the others.
    """

    def __init__(
        self,
        config: ToolExecutorConfig,
        tools: Mapping[str, Tool] = TOOLS,
        clock: Clock | None = None,
        runners: Sequence[Runner] = (),
    ) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._supervisor = Supervisor()
        self._runners: Sequence[Runner] = (Threads(tools, config.max_running_count), *runners)
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

    @property
    def tools(self) -> Mapping[str, Tool]:
        """What can be called now, by name."""
        return {
            name: tool
            for runner in self._runners
            if not runner.is_away
            for name, tool in runner.tools.items()
        }

    async def start(self) -> None:
        """Starts the runners, and forgetting results whose time is over."""
        await asyncio.gather(*(runner.start() for runner in self._runners))
        self._supervisor.spawn(self._sweep(), name="tool-results-sweep")

    async def drain(self) -> None:
        """Refuses new calls and waits for those that run. Cancelled, it leaves them running."""
        self._is_draining = True
        while self._runs:
            await asyncio.wait([run.task for run in self._runs.values()])

    async def stop(self) -> None:
        """Drops what still runs."""
        await self._supervisor.stop()
        await asyncio.gather(*(runner.stop() for runner in self._runners))

    async def execute(self, call: Call, tenant: str) -> AsyncGenerator[str | Execution, None]:
        """Yields the output of a call as it comes and then its result, exactly one, last.

        The result may be of this run, of one in progress or of an earlier one; only a result that
        is remembered comes without the pieces. Cancelled or closed, it leaves the run to whoever
        else waits for it. Raises what `policy.admit`, `Ledger.begin` and `EpochFence.check` raise,
        InvalidRequest for arguments or tables over a limit, Rejected if there is no room,
        NoEndpoint if the tool's server is away, Evicted if no slot came free in the call's time.
        """
        owners = {name: runner for runner in self._runners for name in runner.tools}
        known = {name: runner.tools[name] for name, runner in owners.items()}
        grant = policy.admit(call, known, self._config.limits, why_not=self._why_not)
        arguments.check_limits(
            call.arguments_json,
            max_bytes=self._config.max_arguments_bytes,
            max_depth=self._config.max_arguments_depth_count,
        )
        lookup.check_size(call.tables, self._config.max_tables_bytes)
        self._fence.check(tenant, call.contemplation_id, call.owner_epoch)
        key = Key(tenant, call.contemplation_id, call.call_id)
        decision = self._ledger.begin(key, policy.fingerprint(call), self._clock.monotonic())
        if isinstance(decision, Replay):
            yield decision.execution
            return
        is_first = isinstance(decision, Start)
        if is_first:
            self._begin(key, call, grant, owners[call.tool_name])
        async with aclosing(self._output(key, grant)) as events:
            async for event in events:
                if isinstance(event, Execution) and not is_first:
                    event = replace(event, replayed=True)
                yield event

    def _why_not(self, name: str) -> str:
        return next(filter(None, (runner.why_not(name) for runner in self._runners)), "")

    def _begin(self, key: Key, call: Call, grant: Grant, runner: Runner) -> None:
        try:
            if self._is_draining:
                raise NoEndpoint("the tool-executor is stopping", reason="UNAVAILABLE")
            if runner.is_away:
                raise away(grant.tool.origin)
            self._capacity.admit(key.tenant)
        except BaseException:
            self._ledger.abandon(key)
            raise
        self._runs[key] = run = _Run(runner)
        run.task = self._supervisor.spawn(self._run(key, run, call, grant), name="tool-call")
        # Not in the task's own `finally`: one cancelled before its first step never gets there.
        run.task.add_done_callback(lambda _: self._on_run_done(key, run))

    async def _output(self, key: Key, grant: Grant) -> AsyncGenerator[str | Execution, None]:
        run = self._runs[key]
        run.num_waiters += 1
        try:
            num_seen = 0
            while not run.task.done() or num_seen < len(run.pieces):
                if num_seen < len(run.pieces):
                    yield run.pieces[num_seen]
                    num_seen += 1
                else:
                    await run.news.wait()
        finally:
            run.num_waiters -= 1
            if not run.num_waiters and not run.task.done() and grant.tool.repeatable:
                self._drop(key, run)
        if run.task.cancelled():
            raise NoEndpoint("the tool-executor stopped", reason="UNAVAILABLE")
        result = run.task.result()
        if isinstance(result, Evicted):
            raise result
        yield result

    def _drop(self, key: Key, run: _Run) -> None:
        # At once, not when the task has noticed: the same call may come again before that.
        self._forget(key, run)
        run.task.cancel()

    def _on_run_done(self, key: Key, run: _Run) -> None:
        self._capacity.release(key.tenant)
        self._forget(key, run)
        run.tell()

    def _forget(self, key: Key, run: _Run) -> None:
        # The key may be another run's by now, or have its result.
        if self._runs.get(key) is run:
            del self._runs[key]
            self._ledger.abandon(key)

    async def _run(self, key: Key, run: _Run, call: Call, grant: Grant) -> Execution | Evicted:
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
                    await run.runner.slots.acquire()
            except TimeoutError:
                return Evicted("no slot came free in the call's time", retry_after_s=0.5)
            began = self._clock.monotonic()
            outcome = await run.runner.run(call, grant, ends, run.emit)
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

    async def _sweep(self) -> None:
        while True:
            await self._clock.sleep(_SWEEP_S)
            self._ledger.expire(self._clock.monotonic())
