"""The shell around the engine: one Decode stream's commands in and events out.

State owned here: which stream listens to which gang, the newest epoch seen of each contemplation,
the gangs' spans. Everything else is the engine's (``engines``).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace

from cogitate.agent_decoder import wire
from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.agent_decoder.conversations import Conversations, Hold
from cogitate.agent_decoder.core import events as ev
from cogitate.agent_decoder.core.starts import AgentStart
from cogitate.agent_decoder.engines import MakeEngine
from cogitate.agent_decoder.gang_spans import GangSpans
from cogitate.kit.errors import CogitateError, InvalidRequest, NotOwner, Rejected
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import common_pb2 as common

Write = Callable[[pb.DecodeResponse], Awaitable[None]]

# Newest epochs remembered; a contemplation that old has ended long ago.
MAX_EPOCHS = 10_000
# Messages a reader may be behind before its gang is held, and when the gang goes on again.
MAX_BACKLOG = 256
RESUME_BACKLOG = 64


@dataclass(slots=True)
class _Stream:
    """One Decode stream. An error in the queue ends it."""

    key: int
    gang: pb.OpenGang
    spans: GangSpans
    # Bounded: at MAX_BACKLOG the engine stops stepping the gang.
    queue: asyncio.Queue[list[ev.Event] | CogitateError] = field(default_factory=asyncio.Queue)
    held: bool = False
    attempts: dict[int, int] = field(default_factory=dict)  # the newest of each agent
    # Injections that wait for an embedding; agents being added, and kills that came meanwhile.
    injecting: set[asyncio.Task[None]] = field(default_factory=set)
    adding: asyncio.Task[None] | None = None
    kills: list[tuple[list[int], str]] = field(default_factory=list)

    # How each agent samples: its copies may sample so.
    params: dict[int, common.SamplingParams] = field(default_factory=dict)

    def newer(self, specs: Iterable[pb.AgentSpec]) -> list[pb.AgentSpec]:
        """Notes those whose attempt is newer than any seen of the agent, and returns them."""
        taken = [s for s in specs if max(1, s.attempt) > self.attempts.get(s.agent_id, 0)]
        self.attempts |= {spec.agent_id: max(1, spec.attempt) for spec in taken}
        self.params |= {spec.agent_id: spec.sampling_params for spec in taken}
        self.spans.add(taken)
        return taken

    def tasks(self) -> list[asyncio.Task[None]]:
        """What is under way."""
        return [*self.injecting, *([self.adding] if self.adding else [])]


class Runtime:
    """Serves gangs on one engine."""

    def __init__(self, config: AgentDecoderConfig, endpoint_id: str, make: MakeEngine) -> None:
        self.config, self.endpoint_id = config, endpoint_id
        self.draining = False
        serving = make(self._on_events)
        self.engine, self._renderer = serving.engine, serving.renderer
        self.meter, self.about, self._stop_engine = serving.meter, serving.about, serving.stop
        self.prepare = serving.prepare
        self.capabilities = (*self.about.capabilities, pb.CAPABILITY_CONVERSATION_REFERENCE)
        self.conversations = Conversations(
            config.conversation_capacity_bytes, config.conversation_timeout_s
        )
        self._keys = itertools.count(1)
        self._streams: dict[int, _Stream] = {}
        self._epochs: OrderedDict[str, int] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def start(self) -> None:
        """Starts the engine; events come back to the running loop."""
        self._loop = asyncio.get_running_loop()
        self.engine.start()

    def drain(self, remaining_s: float) -> None:
        """Takes no new gangs; tells the owners of those that run."""
        self.draining = True
        for stream in self._streams.values():
            stream.queue.put_nowait([ev.Draining(remaining_s)])

    async def wait_idle(self) -> None:
        """Returns when no gang has an open stream."""
        await self._idle.wait()

    async def stop(self) -> None:
        """Kills what is left and ends the engine."""
        await self._stop_engine()
        await self.conversations.close()

    async def decode(
        self,
        requests: AsyncIterator[pb.DecodeRequest],
        write: Write,
        timeout_s: float | None = None,
    ) -> None:
        """Runs one gang to its end. Cancelled or broken off, its agents are killed at once.

        timeout_s: how long the caller waits; None means for ever.
        """
        deadline_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("command") != "open":
            raise InvalidRequest("the first message of a Decode stream must be open")
        gang = first.open
        self._check_owner(gang)
        # Even if it is refused here: it has crossed, and a neighbour may take the gang.
        with self.conversations.of(gang) as hold:
            await self._decode(gang, hold, requests, write, deadline_s)

    async def _decode(
        self,
        gang: pb.OpenGang,
        hold: Hold,
        requests: AsyncIterator[pb.DecodeRequest],
        write: Write,
        deadline_s: float,
    ) -> None:
        if self.draining:
            await write(_refused("UNAVAILABLE", "the endpoint is draining", 1.0))
            return
        if not self.engine.ready:
            await write(_refused("UNAVAILABLE", "the endpoint's model server does not answer", 2.0))
            return
        stream = _Stream(next(self._keys), gang, GangSpans(gang, self.endpoint_id, self._provider))
        self._streams[stream.key] = stream
        self._idle.clear()
        try:
            await self._run(stream, hold, requests, write, deadline_s)
        finally:
            self.engine.abort(stream.key, "LOST")
            del self._streams[stream.key]
            if not self._streams:
                self._idle.set()
            stream.spans.end()

    async def _run(
        self,
        stream: _Stream,
        hold: Hold,
        requests: AsyncIterator[pb.DecodeRequest],
        write: Write,
        deadline_s: float,
    ) -> None:
        try:
            self._check(stream.gang)
            stream.spans.found_conversation(await hold.complete())
            start = await self._renderer.gang(stream.gang)
        except CogitateError as error:
            await write(_refused(error.reason, error.message, error.retry_after_s))
            return
        stream.newer(stream.gang.agents)
        self.engine.open(stream.key, replace(start, deadline_s=deadline_s))
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._commands(stream, requests, tasks))
            await self._events(stream, write)
            for task in (reader, *stream.tasks()):
                task.cancel()

    # -- events out --------------------------------------------------------------------------

    def _on_events(self, key: int, events: list[ev.Event]) -> None:
        """On any thread."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._deliver, key, events)

    def _deliver(self, key: int, events: list[ev.Event]) -> None:
        if (stream := self._streams.get(key)) is None:
            return
        stream.queue.put_nowait(events)
        if not stream.held and stream.queue.qsize() >= MAX_BACKLOG:
            stream.held = True
            self.engine.hold(key, True)

    async def _events(self, stream: _Stream, write: Write) -> None:
        """Writes the gang's events until its last."""
        steps = 0
        while True:
            events = await stream.queue.get()
            if isinstance(events, CogitateError):
                raise events
            if stream.held and stream.queue.qsize() <= RESUME_BACKLOG:
                stream.held = False
                self.engine.hold(stream.key, False)
            stream.spans.observe(events)
            of_agents = Counter(e.agent_id for e in events if isinstance(e, ev.Delta))
            steps += max(of_agents.values(), default=0)
            for response in wire.to_responses(events, steps, self._admitted(stream.gang)):
                if response.HasField("step"):
                    self._renderer.speller.spell(response.step, stream.params)
                if response.resume_state.HasField("state"):
                    response.resume_state.state.build_digest = self.about.build_digest
                await self._write(write, response)
            if any(isinstance(event, ev.GangDone | ev.Refused) for event in events):
                return

    async def _write(self, write: Write, response: pb.DecodeResponse) -> None:
        try:
            async with asyncio.timeout(self.config.write_stall_s):
                await write(response)
        except TimeoutError:
            raise Rejected(
                "the reader does not keep up with the stream", reason="EVICTED"
            ) from None

    def _admitted(self, gang: pb.OpenGang) -> Callable[[], pb.GangAdmitted]:
        def admitted() -> pb.GangAdmitted:
            hints = {agent.agent_id: self._renderer.hint(agent) for agent in gang.agents}
            return pb.GangAdmitted(
                hints={agent_id: hint for agent_id, hint in hints.items() if hint},
                endpoint_id=self.endpoint_id,
                build_digest=self.about.build_digest,
                capabilities=self.capabilities,
            )

        return admitted

    @property
    def _provider(self) -> str:
        return self.config.provider

    # -- commands in -------------------------------------------------------------------------

    async def _commands(
        self,
        stream: _Stream,
        requests: AsyncIterator[pb.DecodeRequest],
        tasks: asyncio.TaskGroup,
    ) -> None:
        """Applies commands in order, but no kill waits for what a vision-encoder may take."""
        async for request in requests:
            command = request.WhichOneof("command")
            if command == "kill":
                self._kill(stream, list(request.kill.agent_ids), request.kill.reason)
                continue
            if stream.adding is not None:
                await asyncio.wait((stream.adding,))  # what follows may be for the new agents
            if command == "close":
                await asyncio.gather(*stream.tasks())
                self.engine.close(stream.key)
                return
            if command == "add_agents":
                stream.kills.clear()
                added = self._add_agents(stream, request.add_agents.agents)
                stream.adding = tasks.create_task(added)
            elif command == "fork":
                stream.kills.clear()
                stream.adding = tasks.create_task(self._fork(stream, request.fork))
            elif command == "inject":
                await self._inject(stream, request.inject, tasks)
            else:
                self._command(stream, request)
        # The stream ended without close: its owner is gone.
        self.engine.abort(stream.key, "LOST")

    def _command(self, stream: _Stream, request: pb.DecodeRequest) -> None:
        command = request.WhichOneof("command")
        if command == "grant":
            self.engine.grant(stream.key, dict(request.grant.granted_token_counts))
        elif command == "set_confidence_threshold":
            threshold = request.set_confidence_threshold.group_confidence
            self.engine.set_threshold(stream.key, threshold)
        elif command == "pause":
            self.engine.pause(stream.key, list(request.pause.agent_ids))
        elif command == "request_resume_states":
            asked = list(request.request_resume_states.agent_ids)
            self.engine.request_states(stream.key, asked)
        elif command == "open":
            raise InvalidRequest("a Decode stream opens one gang only")
        else:
            raise InvalidRequest("a command is missing, or newer than this endpoint")

    def _kill(self, stream: _Stream, agent_ids: list[int], reason: str) -> None:
        self.engine.kill(stream.key, agent_ids, reason)
        if stream.adding is not None and not stream.adding.done():
            stream.kills.append((agent_ids, reason))

    async def _inject(
        self, stream: _Stream, inject: pb.InjectAgent, tasks: asyncio.TaskGroup
    ) -> None:
        """At once, or, if there are images in it, when their embeddings are there."""
        if not wire.images_of(inject.tool_result.parts):
            await self._inject_now(stream, inject)
            return
        if len(stream.injecting) >= self.config.max_sequence_count:
            await asyncio.wait(stream.injecting, return_when=asyncio.FIRST_COMPLETED)
        task = tasks.create_task(self._inject_now(stream, inject))
        stream.injecting.add(task)
        task.add_done_callback(stream.injecting.discard)

    async def _inject_now(self, stream: _Stream, inject: pb.InjectAgent) -> None:
        positions = await self._renderer.injection(stream.gang, inject)
        origin = wire.origin_of(inject)
        self.engine.inject(stream.key, inject.agent_id, inject.call_id, positions, origin)

    async def _add_agents(self, stream: _Stream, specs: Iterable[pb.AgentSpec]) -> None:
        """Adds each agent that can be; the others end with ERROR, the gang goes on.

        An attempt not newer than one seen before is ignored: a repeated command is harmless.
        """
        starts = [
            await self._start(stream, spec, self._renderer.agent(stream.gang, spec))
            for spec in stream.newer(specs)
        ]
        self.engine.add_agents(stream.key, [start for start in starts if start is not None])
        self._kill_late(stream)

    async def _fork(self, stream: _Stream, fork: pb.ForkAgent) -> None:
        """Copies an agent; without sampling parameters of its own, with its parent's."""
        if fork.agent_id in stream.params and not fork.agent.HasField("sampling_params"):
            fork.agent.sampling_params.CopyFrom(stream.params[fork.agent_id])
        for spec in stream.newer([fork.agent]):
            copied = self._renderer.copy(stream.gang, spec)
            if (start := await self._start(stream, spec, copied)) is not None:
                self.engine.fork(stream.key, fork.agent_id, fork.token_offset, start)
        self._kill_late(stream)

    async def _start(
        self, stream: _Stream, spec: pb.AgentSpec, rendered: Awaitable[AgentStart]
    ) -> AgentStart | None:
        """The agent, or its end if it cannot be taken."""
        try:
            return await rendered
        except CogitateError as error:
            attempt = max(1, spec.attempt)
            unstarted = ev.Finished.unstarted(spec.agent_id, attempt, error.reason)
            self._deliver(stream.key, [unstarted])
            return None

    def _kill_late(self, stream: _Stream) -> None:
        """Kills that came while agents were being added are for these, too."""
        for agent_ids, reason in stream.kills:
            self.engine.kill(stream.key, agent_ids, reason)

    # -- checks ------------------------------------------------------------------------------

    def _check_owner(self, gang: pb.OpenGang) -> None:
        """A stale aggregator must not run agents beside the one that took over."""
        seen = self._epochs.get(gang.contemplation_id, 0)
        if gang.owner_epoch < seen:
            raise _not_owner(seen)
        self._epochs[gang.contemplation_id] = gang.owner_epoch
        self._epochs.move_to_end(gang.contemplation_id)
        while len(self._epochs) > MAX_EPOCHS:
            self._epochs.popitem(last=False)
        for stream in self._streams.values():
            same = stream.gang.contemplation_id == gang.contemplation_id
            if same and stream.gang.owner_epoch < gang.owner_epoch:
                stream.queue.put_nowait(_not_owner(gang.owner_epoch))

    def _check(self, gang: pb.OpenGang) -> None:
        if gang.model != self.about.model:
            raise InvalidRequest(
                f"this endpoint serves {self.about.model!r}",
                reason="UNKNOWN_MODEL",
                metadata={"models": self.about.model},
                field="model",
            )
        if not 1 <= len(gang.agents) <= self.config.max_sequence_count:
            raise InvalidRequest(
                f"a gang here has 1 to {self.config.max_sequence_count} agents", field="agents"
            )
        if len({agent.agent_id for agent in gang.agents}) != len(gang.agents):
            raise InvalidRequest("agent ids must differ within a gang", field="agents")


def _not_owner(epoch: int) -> NotOwner:
    return NotOwner(
        "another aggregator owns this contemplation", metadata={"owner_epoch": str(epoch)}
    )


def _refused(reason: str, message: str, retry_after_s: float | None) -> pb.DecodeResponse:
    return pb.DecodeResponse(refused=wire.refused(reason, message, retry_after_s))
