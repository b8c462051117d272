"""The shell around the engine: one Decode stream's commands in and events out.

State owned here: which stream listens to which gang, the newest epoch seen of each contemplation,
fetched embeddings, the gangs' spans. Everything else lives in the engine's thread.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

import numpy as np
from cogitate.agent_decoder import wire
from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.agent_decoder.core import events as ev
from cogitate.agent_decoder.core.gang import (
    AgentStart,
    GangStart,
    InjectedPositions,
    SampledTokens,
)
from cogitate.agent_decoder.core.scheduler import StepLimits
from cogitate.agent_decoder.core.sequence import Position
from cogitate.agent_decoder.embeddings import Embedding, EmbeddingFetcher
from cogitate.agent_decoder.engine import Engine, EngineLimits
from cogitate.agent_decoder.gang_spans import GangSpans
from cogitate.agent_decoder.model.loader import LoadedModel
from cogitate.agent_decoder.model.templates import Prompt, Text
from cogitate.kit.errors import CogitateError, InvalidRequest, NotOwner
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import common_pb2 as common

Write = Callable[[pb.DecodeResponse], Awaitable[None]]

# Newest epochs remembered; a contemplation that old has ended long ago.
MAX_EPOCHS = 10_000


class Runtime:
    """Serves gangs on one engine."""

    def __init__(self, config: AgentDecoderConfig, endpoint_id: str, model: LoadedModel) -> None:
        self.config, self.endpoint_id, self.model = config, endpoint_id, model
        self.draining = False
        limits = EngineLimits(
            num_blocks=config.block_count,
            block_size=config.block_size_count,
            max_sequences=config.max_sequence_count,
            max_waiting_gangs=config.max_waiting_gang_count,
            max_injected=config.max_injected_token_count,
            step=StepLimits(config.max_step_position_count, config.max_chunk_position_count),
        )
        self.engine = Engine(model, limits, self._on_events)
        self.embeddings = EmbeddingFetcher(
            model.name,
            model.llama.config.hidden_size,
            config.embedding_cache_bytes,
            config.fetch_timeout_s,
        )
        self._keys = itertools.count(1)
        self._streams: dict[int, asyncio.Queue[list[ev.Event]]] = {}
        self._epochs: OrderedDict[str, int] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def start(self) -> None:
        """Starts the engine's thread; events come back to the running loop."""
        self._loop = asyncio.get_running_loop()
        self.engine.start()

    async def stop(self) -> None:
        """Kills what is left and ends the thread."""
        await asyncio.to_thread(self.engine.stop)
        await self.embeddings.close()

    async def wait_idle(self) -> None:
        """Returns when no gang has an open stream."""
        await self._idle.wait()

    async def decode(self, requests: AsyncIterator[pb.DecodeRequest], write: Write) -> None:
        """Runs one gang to its end. Cancelled or broken off, its agents are killed at once."""
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("command") != "open":
            raise InvalidRequest("the first message of a Decode stream must be open")
        gang = first.open
        self._check_owner(gang)
        self._check(gang)
        if self.draining:
            await write(pb.DecodeResponse(refused=wire.refused("UNAVAILABLE", "draining", 1.0)))
            return
        key = next(self._keys)
        # Bounded by what the gang may sample: one entry a step at most.
        self._streams[key] = asyncio.Queue()
        self._idle.clear()
        spans = GangSpans(gang, self.endpoint_id, self.config.provider)
        try:
            self.engine.open(key, await self._start_of(gang))
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._commands(key, gang, requests, spans))
                await self._events(key, gang, write, spans)
                reader.cancel()
        finally:
            self.engine.close(key, kill_reason="CANCELLED")
            del self._streams[key]
            if not self._streams:
                self._idle.set()
            spans.end()

    # -- events out --------------------------------------------------------------------------

    def _on_events(self, key: int, events: list[ev.Event]) -> None:
        """On the engine's thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._deliver, key, events)

    def _deliver(self, key: int, events: list[ev.Event]) -> None:
        if (stream := self._streams.get(key)) is not None:
            stream.put_nowait(events)

    async def _events(self, key: int, gang: pb.OpenGang, write: Write, spans: GangSpans) -> None:
        """Writes the gang's events until its last."""
        stream, steps = self._streams[key], 0
        while True:
            events = await stream.get()
            spans.observe(events)
            steps += any(isinstance(event, ev.Delta) for event in events)
            if any(isinstance(event, ev.Admitted) for event in events):
                await write(pb.DecodeResponse(admitted=self._admitted(gang)))
            shown = [event for event in events if not isinstance(event, ev.Admitted)]
            for response in wire.to_responses(shown, steps):
                await write(response)
            if any(isinstance(event, ev.GangDone | ev.Refused) for event in events):
                return

    def _admitted(self, gang: pb.OpenGang) -> pb.GangAdmitted:
        hints = {agent.agent_id: self._hint(agent) for agent in gang.agents}
        return pb.GangAdmitted(
            hints={agent_id: hint for agent_id, hint in hints.items() if hint},
            endpoint_id=self.endpoint_id,
            build_digest=self.model.build_digest,
            capabilities=self.capabilities(),
        )

    def capabilities(self) -> list[pb.Capability.ValueType]:
        """What this engine does with this model."""
        vision = [pb.CAPABILITY_VISION] if self.model.has_vision else []
        return [*wire.CAPABILITIES, *vision]

    # -- commands in -------------------------------------------------------------------------

    async def _commands(
        self,
        key: int,
        gang: pb.OpenGang,
        requests: AsyncIterator[pb.DecodeRequest],
        spans: GangSpans,
    ) -> None:
        """Applies commands in order. A half-closed stream means no more will come."""
        async for request in requests:
            command = request.WhichOneof("command")
            if command == "inject":
                await self._inject(key, gang, request.inject)
            elif command == "kill":
                self.engine.kill(key, list(request.kill.agent_ids), request.kill.reason)
            elif command == "grant":
                self.engine.grant(key, dict(request.grant.granted_token_counts))
            elif command == "add_agents":
                agents = request.add_agents.agents
                spans.add(agents)
                self.engine.add_agents(key, await self._agents(gang, agents))
            elif command == "set_confidence_threshold":
                self.engine.set_threshold(key, request.set_confidence_threshold.group_confidence)
            elif command == "close":
                break
            elif command == "open":
                raise InvalidRequest("a Decode stream opens one gang only")
            else:
                raise InvalidRequest(
                    f"this endpoint does not do {command}: see its capabilities",
                    metadata={"command": str(command)},
                )
        self.engine.close(key)

    async def _inject(self, key: int, gang: pb.OpenGang, inject: pb.InjectAgent) -> None:
        content = inject.WhichOneof("content")
        template = self.model.template
        if content == "tool_result":
            positions = await self._tool_result(gang, inject.tool_result)
        elif content == "text":
            positions = _tokens(template.encode(inject.text))
        elif content == "tokens":
            positions = _tokens(self._in_vocabulary(inject.tokens.token_ids))
        else:
            raise InvalidRequest("inject needs a tool result, text or tokens", field="content")
        self.engine.inject(key, inject.agent_id, inject.call_id, positions)

    async def _tool_result(self, gang: pb.OpenGang, result: common.ToolResult) -> list[Position]:
        """A result as the model sees it. An image that cannot be had becomes a sentence."""
        template = self.model.template
        try:
            embeddings = await self._fetch(gang, wire.images_of(result.parts))
        except CogitateError:
            return self._place(template.injection([Text("The image cannot be read.")]), {})
        return self._place(template.injection(wire.to_parts(result.parts)), embeddings)

    # -- from messages to positions ----------------------------------------------------------

    async def _start_of(self, gang: pb.OpenGang) -> GangStart:
        """Renders the prompt and fetches its embeddings."""
        parts = [part for message in gang.conversation for part in message.parts]
        embeddings = await self._fetch(gang, wire.images_of(parts))
        instant = gang.effort == common.EFFORT_INSTANT
        prompt = self.model.template.prompt(wire.to_turns(gang.conversation), instant=instant)
        return GangStart(
            prefix=tuple(self._place(prompt, embeddings)),
            agents=tuple(await self._agents(gang, gang.agents)),
            instant=instant,
        )

    async def _agents(self, gang: pb.OpenGang, agents: Iterable[pb.AgentSpec]) -> list[AgentStart]:
        return [await self._agent(gang, spec) for spec in agents]

    async def _agent(self, gang: pb.OpenGang, spec: pb.AgentSpec) -> AgentStart:
        opening = _tokens(self.model.template.encode(self._hint(spec) + spec.assistant_prefix))
        params = wire.to_sampling_params(
            spec.sampling_params,
            temperature=self.model.temperature,
            max_tokens=self.config.default_max_token_count,
            vocab_size=self.model.llama.config.vocab_size,
        )
        replay = []
        if spec.HasField("resume_state"):
            state = spec.resume_state
            if state.build_digest and state.build_digest != self.model.build_digest:
                raise InvalidRequest(
                    "the agent's state comes from another build; start it afresh",
                    reason="BUILD_MISMATCH",
                )
            replay = [await self._segment(gang, segment) for segment in state.segments]
        return AgentStart(
            agent_id=spec.agent_id,
            attempt=max(1, spec.attempt),
            params=params,
            seed=spec.seed,
            opening=tuple(opening),
            replay=tuple(replay),
            pending_call_id=spec.resume_state.pending_call_id,
            granted=spec.granted_token_count,
        )

    def _hint(self, spec: pb.AgentSpec) -> str:
        """The sentence that opens the agent's turn."""
        if spec.hint or not spec.HasField("hint_index") or not self.model.hints:
            return spec.hint
        return self.model.hints[spec.hint_index % len(self.model.hints)]

    async def _segment(
        self, gang: pb.OpenGang, segment: pb.Segment
    ) -> SampledTokens | InjectedPositions:
        kind = segment.WhichOneof("segment")
        if kind == "sampled":
            return SampledTokens(tuple(self._in_vocabulary(segment.sampled.token_ids)))
        if kind == "tool_result":
            return InjectedPositions(tuple(await self._tool_result(gang, segment.tool_result)))
        if kind == "injected":
            ids = self._in_vocabulary(segment.injected.token_ids)
            return InjectedPositions(tuple(_tokens(ids)))
        raise InvalidRequest("a resume segment needs tokens or a tool result", field="segments")

    def _in_vocabulary(self, token_ids: Sequence[int]) -> list[int]:
        if any(not 0 <= t < self.model.llama.config.vocab_size for t in token_ids):
            raise InvalidRequest("a token id is outside the model's vocabulary", field="token_ids")
        return list(token_ids)

    async def _fetch(
        self, gang: pb.OpenGang, images: dict[str, common.ImagePart]
    ) -> dict[str, Embedding]:
        if images and not self.model.has_vision:
            raise InvalidRequest(f"model {self.model.name!r} takes no images", field="conversation")
        address = gang.vision_encoder_address or self.config.vision_encoder_address
        return await self.embeddings.fetch(images, address)

    def _place(self, prompt: Prompt, embeddings: dict[str, Embedding]) -> list[Position]:
        """Puts embedding rows where the prompt has images."""
        template = self.model.template
        positions: list[Position] = []
        for item in prompt:
            if isinstance(item, int):
                positions.append(Position(item))
                continue
            rows: np.ndarray = embeddings[item.key]
            positions += [Position(template.image_token_id, row) for row in rows]
        return positions

    # -- checks ------------------------------------------------------------------------------

    def _check_owner(self, gang: pb.OpenGang) -> None:
        """A stale aggregator must not start agents beside the one that took over."""
        seen = self._epochs.get(gang.contemplation_id, 0)
        if gang.owner_epoch < seen:
            raise NotOwner(
                "another aggregator owns this contemplation",
                metadata={"owner_epoch": str(seen)},
            )
        self._epochs[gang.contemplation_id] = gang.owner_epoch
        self._epochs.move_to_end(gang.contemplation_id)
        while len(self._epochs) > MAX_EPOCHS:
            self._epochs.popitem(last=False)

    def _check(self, gang: pb.OpenGang) -> None:
        if gang.model != self.model.name:
            raise InvalidRequest(
                f"this endpoint serves {self.model.name!r}",
                reason="UNKNOWN_MODEL",
                metadata={"models": self.model.name},
                field="model",
            )
        if not gang.agents:
            raise InvalidRequest("a gang needs at least one agent", field="agents")
        if len({agent.agent_id for agent in gang.agents}) != len(gang.agents):
            raise InvalidRequest("agent ids must differ within a gang", field="agents")


def _tokens(token_ids: Iterable[int]) -> list[Position]:
    return [Position(token_id) for token_id in token_ids]
