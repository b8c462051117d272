"""An agent-decoder whose agents follow scripts, token for token, also when they are resumed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import agent_decoder_service_pb2_grpc as pb_grpc
from cogitate.v1 import common_pb2 as common

from tests.fakes.serving import FakeServer

BUILD = "sha256:fake"


@dataclass(frozen=True)
class Call:
    """The agent calls a tool and waits for the result."""

    name: str
    arguments: str = "{}"


@dataclass(frozen=True)
class End:
    """The agent ends. A script without one ends with its last token as the answer."""

    answer: str = ""
    finish: str = "STOP"
    lowest_confidence: float = 0.0


class Hold:
    """The agent writes nothing until `open` is set; it can be killed all the same."""

    def __init__(self) -> None:
        self.open = asyncio.Event()


# A token is a string; its id follows from agent and position.
Step = str | Call | End | Hold
Script = Callable[[pb.AgentSpec], Sequence[Step]]


def token_id(agent_id: int, offset: int) -> int:
    """The id of an agent's token at an offset."""
    return 1000 * agent_id + offset


@dataclass
class FakeAgent:
    """One agent of a gang: where it is in its script and what it waits for."""

    spec: pb.AgentSpec
    steps: list[Step]
    sampled: int = 0
    granted: int = 0
    calls: int = 0
    pending: str = ""
    starved: bool = False
    injected: list[common.ToolResult] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        """Whether it can take a step now."""
        held = (
            bool(self.steps) and isinstance(self.steps[0], Hold) and not self.steps[0].open.is_set()
        )
        return not (self.pending or self.starved or held)


class FakeDecoder(pb_grpc.AgentDecoderServiceServicer, FakeServer):
    """Serves gangs by `script`. What it was told is kept in `opened` and `commands`."""

    def __init__(
        self,
        script: Script,
        *,
        step_s: float = 0.001,
        build: str = BUILD,
        endpoint_id: str = "fake",
    ) -> None:
        super().__init__()
        self.script, self.step_s, self.build, self.endpoint_id = script, step_s, build, endpoint_id
        self.opened: list[pb.OpenGang] = []
        self.deadlines_s: list[float | None] = []  # of the streams, as each was opened
        self.commands: list[pb.DecodeRequest] = []
        self.refusals: list[pb.GangRefused] = []  # for the next gangs
        self.lacks = False  # True: no conversation it is to fetch comes
        self.deaf = False  # True: commands are read and not obeyed
        self.admits = asyncio.Event()  # clear it and no gang is answered any more
        self.admits.set()
        self.prefills = asyncio.Event()  # clear it and no prompt is computed any more
        self.prefills.set()
        self.num_sampled = 0
        self.running = 0  # agents now
        self.ended = asyncio.Event()  # set when a stream ended, however

    def register(self, server: Any) -> None:
        pb_grpc.add_AgentDecoderServiceServicer_to_server(self, server)

    def agents(self) -> list[pb.AgentSpec]:
        """Every agent it was ever given, in order."""
        return [agent for gang in self.opened for agent in gang.agents]

    async def Decode(
        self, request_iterator: AsyncIterator[pb.DecodeRequest], context: Any
    ) -> AsyncIterator[pb.DecodeResponse]:
        gang = (await anext(aiter(request_iterator))).open
        self.opened.append(gang)
        self.deadlines_s.append(context.time_remaining())
        if self.refusals:
            yield pb.DecodeResponse(refused=self.refusals.pop(0))
            return
        if self.lacks and gang.HasField("conversation_reference"):
            yield pb.DecodeResponse(refused=pb.GangRefused(reason="CONVERSATION_UNAVAILABLE"))
            return
        if any(a.resume_state.build_digest not in ("", self.build) for a in gang.agents):
            yield pb.DecodeResponse(
                refused=pb.GangRefused(reason="BUILD_MISMATCH", message="other")
            )
            return
        play = _Gang(self, gang)
        reader = asyncio.create_task(play.read(request_iterator))
        self.running += len(play.agents)
        try:
            async for response in play.events():
                yield response
        finally:
            self.running -= len(play.agents)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            self.ended.set()


class _Gang:
    """One stream."""

    def __init__(self, decoder: FakeDecoder, gang: pb.OpenGang) -> None:
        self.decoder = decoder
        self.agents = {spec.agent_id: self._agent(spec) for spec in gang.agents}
        self.out: list[pb.DecodeResponse] = []
        self.closed = False
        self.sampled = 0

    def _agent(self, spec: pb.AgentSpec) -> FakeAgent:
        """Goes to where the resume state says the script was left."""
        state = spec.resume_state
        agent = FakeAgent(spec, list(self.decoder.script(spec)), granted=spec.granted_token_count)
        results = sum(segment.HasField("tool_result") for segment in state.segments)
        while agent.sampled < state.sampled_token_count or agent.calls < results:
            step = agent.steps.pop(0)
            agent.sampled += isinstance(step, str)
            agent.calls += isinstance(step, Call)
        if state.pending_call_id:
            del agent.steps[:1]
            agent.calls += 1
            agent.pending = state.pending_call_id
        return agent

    async def read(self, requests: AsyncIterator[pb.DecodeRequest]) -> None:
        async for request in requests:
            self.decoder.commands.append(request)
            if not self.decoder.deaf:
                self._obey(request)
        self.closed = self.closed or not self.decoder.deaf

    def _obey(self, request: pb.DecodeRequest) -> None:
        kind = request.WhichOneof("command")
        if kind == "kill":
            for agent_id in request.kill.agent_ids or list(self.agents):
                if agent := self.agents.get(agent_id):
                    self._finish(agent, End(finish="CANCELLED"), request.kill.reason)
        elif kind == "inject":
            agent = self.agents.get(request.inject.agent_id)
            if agent and agent.pending == request.inject.call_id:
                agent.pending = ""
                agent.injected.append(request.inject.tool_result)
        elif kind == "grant":
            for agent_id, total in request.grant.granted_token_counts.items():
                if agent := self.agents.get(agent_id):
                    agent.granted, agent.starved = total, False
        elif kind == "close":
            self.closed = True
            for agent in [a for a in self.agents.values() if a.pending]:
                self._finish(agent, End(finish="CANCELLED"), "CLOSED")

    async def events(self) -> AsyncIterator[pb.DecodeResponse]:
        admitted = pb.GangAdmitted(
            endpoint_id=self.decoder.endpoint_id, build_digest=self.decoder.build
        )
        await self.decoder.admits.wait()
        yield pb.DecodeResponse(admitted=admitted)
        await self.decoder.prefills.wait()
        yield pb.DecodeResponse(prefilled=pb.GangPrefilled(prompt_token_count=10))
        number = 0
        while self.agents or not self.closed:
            deltas = [d for a in list(self.agents.values()) if a.runs and (d := self._step(a))]
            if deltas:
                number += 1
                yield pb.DecodeResponse(step=pb.GangStep(step_offset=number, deltas=deltas))
            out, self.out = self.out, []
            for response in out:
                yield response
            await asyncio.sleep(self.decoder.step_s)
        for response in self.out:
            yield response
        usage = common.Usage(sampled_token_count=self.sampled)
        yield pb.DecodeResponse(gang_finished=pb.GangFinished(usage=usage))

    def _step(self, agent: FakeAgent) -> pb.AgentDelta | None:
        agent_id, attempt = agent.spec.agent_id, agent.spec.attempt
        while agent.steps and isinstance(agent.steps[0], Hold):
            agent.steps.pop(0)
        step = agent.steps.pop(0) if agent.steps else End()
        if isinstance(step, End):
            self._finish(agent, step)
            return None
        if isinstance(step, Call):
            agent.calls += 1
            agent.pending = f"a{agent_id}.{attempt}.c{agent.calls}"
            call = common.ToolCall(
                call_id=agent.pending, name=step.name, arguments_json=step.arguments
            )
            event = pb.AgentToolCall(
                agent_id=agent_id, attempt=attempt, call=call, sampled_token_count=agent.sampled
            )
            self.out.append(pb.DecodeResponse(tool_call=event))
            return None
        delta = pb.AgentDelta(
            agent_id=agent_id,
            attempt=attempt,
            token_offset=agent.sampled,
            token_ids=[token_id(agent_id, agent.sampled)],
            text=step,
            logprobs=[-0.5],
        )
        agent.sampled += 1
        self.sampled += 1
        self.decoder.num_sampled += 1
        if agent.granted and agent.sampled >= agent.granted and agent.steps:
            agent.starved = True
            waits = pb.AgentAwaitingGrant(agent_id=agent_id, sampled_token_count=agent.sampled)
            self.out.append(pb.DecodeResponse(awaiting_grant=waits))
        return delta

    def _finish(self, agent: FakeAgent, end: End, kill_reason: str = "") -> None:
        del self.agents[agent.spec.agent_id]
        self.decoder.running -= 1
        finished = pb.AgentFinished(
            agent_id=agent.spec.agent_id,
            attempt=agent.spec.attempt,
            finish_reason=common.FinishReason.Value(f"FINISH_REASON_{end.finish}"),
            answer=end.answer,
            usage=common.Usage(sampled_token_count=agent.sampled),
            confidence=common.Confidence(
                mean_logprob=-0.5, lowest_group_confidence=end.lowest_confidence
            ),
            kill_reason=kill_reason,
        )
        self.out.append(pb.DecodeResponse(finished=finished))
