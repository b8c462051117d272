"""The seam between the Decode protocol and whatever makes the tokens.

The runtime owns streams, owners, spans and back-pressure; an engine owns gangs. Between them is
this: a renderer turns what the owner says into a start or an injection, refusing what the engine
cannot do; the engine takes commands, each for one gang by its key, and answers with the events of
``core.events`` alone. What an engine cannot do is missing in its ``About.capabilities``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.agent_decoder.core.counters import EngineCounters
from cogitate.agent_decoder.core.events import Event
from cogitate.agent_decoder.core.load import EngineLimits, EngineStats
from cogitate.agent_decoder.core.scheduler import StepLimits
from cogitate.agent_decoder.core.sequence import Position
from cogitate.agent_decoder.core.starts import AgentStart, GangStart
from cogitate.agent_decoder.engine_meter import Utilization
from cogitate.agent_decoder.spelling import Speller
from cogitate.v1 import agent_decoder_service_pb2 as pb

# Hears a gang's events, in order; from any thread.
OnEvents = Callable[[int, list[Event]], None]


@dataclass(frozen=True, slots=True)
class About:
    """What an engine is and can do; all of it is told to routers and to who opens a gang."""

    engine: str  # "torch", "adapter" or "vllm"
    model: str
    build_digest: str
    capabilities: tuple[pb.Capability.ValueType, ...]
    hardware: str
    max_model_len: int
    block_count: int = 0  # 0: memory is not ours to count
    block_size: int = 0
    price_per_million_tokens_micro_usd: int = 0
    price_per_million_prompt_tokens_micro_usd: int = 0


class GangEngine(Protocol):
    """Runs gangs. Commands never block and never raise; empty agent ids mean all."""

    stats: EngineStats
    counters: EngineCounters

    @property
    def ready(self) -> bool:
        """Whether it could take a gang now."""
        ...

    def start(self) -> None:
        """Begins to work; called on the event loop."""
        ...

    def open(self, key: int, start: GangStart) -> None:
        """Takes a gang. Answered by Admitted or Refused."""
        ...

    def add_agents(self, key: int, agents: Sequence[AgentStart]) -> None:
        """Widens a gang. Agents that cannot be taken end with ERROR at once."""
        ...

    def fork(self, key: int, parent_id: int, num_sampled: int, start: AgentStart) -> None:
        """Copies an agent. A copy that cannot be made ends with ERROR at once."""
        ...

    def inject(
        self,
        key: int,
        agent_id: int,
        call_id: str,
        positions: Sequence[Position],
        origin: object = None,
    ) -> None:
        """Gives a paused agent what it waits for."""
        ...

    def pause(self, key: int, agent_ids: Sequence[int]) -> None:
        """Has agents stand still."""
        ...

    def request_states(self, key: int, agent_ids: Sequence[int]) -> None:
        """Asks for a Snapshot of each agent that has not ended."""
        ...

    def kill(self, key: int, agent_ids: Sequence[int], reason: str) -> None:
        """Stops agents. Acknowledged by Finished, behind which nothing of them follows."""
        ...

    def grant(self, key: int, totals: dict[int, int]) -> None:
        """Raises token grants."""
        ...

    def set_threshold(self, key: int, group_confidence: float) -> None:
        """Sets the confidence under which agents are killed."""
        ...

    def hold(self, key: int, held: bool) -> None:
        """Stops working on a gang whose reader is behind, or goes on with it."""
        ...

    def close(self, key: int) -> None:
        """No more commands will come: agents that wait for one are ended, others go on."""
        ...

    def abort(self, key: int, reason: str) -> None:
        """Kills what still runs and closes."""
        ...


class GangRenderer(Protocol):
    """Turns messages into what the engine takes. All raise InvalidRequest for what cannot be."""

    @property
    def speller(self) -> Speller:
        """Knows the text of tokens."""
        ...

    async def gang(self, gang: pb.OpenGang) -> GangStart:
        """The common prefix and the agents."""
        ...

    async def agent(self, gang: pb.OpenGang, spec: pb.AgentSpec) -> AgentStart:
        """One agent, fresh or resumed."""
        ...

    async def copy(self, gang: pb.OpenGang, spec: pb.AgentSpec) -> AgentStart:
        """An agent that is forked."""
        ...

    def hint(self, spec: pb.AgentSpec) -> str:
        """The sentence that opens the agent's turn."""
        ...

    async def injection(self, gang: pb.OpenGang, inject: pb.InjectAgent) -> Sequence[Position]:
        """What an inject command gives to its agent."""
        ...


class Meter(Protocol):
    """Says how busy the engine is."""

    def utilization(self) -> Utilization:
        """Rates over the last second or more, and shares."""
        ...

    def export(self) -> None:
        """Has the engine's numbers read by whoever collects metrics."""
        ...

    def measure_peaks(self) -> None:
        """Tries what the device can do, if there is one."""
        ...


async def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Serving:
    """An engine with what belongs to it; ``stop`` ends its agents and lets go of everything.

    ``prepare`` is done before routers hear of it: what only some gangs need, and would wait for.
    """

    engine: GangEngine
    renderer: GangRenderer
    meter: Meter
    about: About
    stop: Callable[[], Awaitable[None]]
    prepare: Callable[[], Awaitable[None]] = _nothing


# Puts an engine together that tells events to whom it is given.
MakeEngine = Callable[[OnEvents], Serving]


def limits_of(config: AgentDecoderConfig) -> EngineLimits:
    """The engine's sizes."""
    return EngineLimits(
        num_blocks=config.block_count,
        block_size=config.block_size_count,
        max_sequences=config.max_sequence_count,
        max_waiting_gangs=config.max_waiting_gang_count,
        max_injected=config.max_injected_token_count,
        flush_interval_s=config.flush_interval_s,
        prefill_slice_s=config.prefill_slice_s,
        step=StepLimits(config.max_step_position_count, config.max_chunk_position_count),
    )
