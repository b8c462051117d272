"""One gang's state: the common prefix, its agents, and what each command and token does to them.

Memory is taken from the pool by reservation at admission, for the longest each agent may become,
so an admitted gang always runs to its end.

Invariants (``tests/property/test_gang.py``):

1. Every agent ends with exactly one ``Finished``; nothing is sampled after it.
2. After ``GangDone`` every block and reservation of the gang is back in the pool.
3. A paused agent keeps its blocks and goes on from the very position where it stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import Any

from cogitate.agent_decoder.core.block_pool import BlockPool
from cogitate.agent_decoder.core.calls import parse_call
from cogitate.agent_decoder.core.events import (
    AwaitingGrant,
    Delta,
    Event,
    Finish,
    Finished,
    GangDone,
    Injected,
    ToolCall,
)
from cogitate.agent_decoder.core.sampling import SamplingParams
from cogitate.agent_decoder.core.sequence import Agent, Position, Sequence, State
from cogitate.agent_decoder.core.transcript import ControlTokens, Mode, Transcript, Turn


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """Replayed tokens that the agent itself sampled."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InjectedPositions:
    """Replayed positions that were injected."""

    positions: tuple[Position, ...]


@dataclass(frozen=True, slots=True)
class AgentStart:
    """How an agent begins: fresh, or from what an earlier attempt wrote."""

    agent_id: int
    attempt: int
    params: SamplingParams
    seed: int
    opening: tuple[Position, ...] = ()
    replay: tuple[SampledTokens | InjectedPositions, ...] = ()
    pending_call_id: str = ""
    granted: int = 0  # 0 means up to its sampling limit


@dataclass(frozen=True, slots=True)
class GangStart:
    """A gang as the engine takes it: embeddings are already in place."""

    prefix: tuple[Position, ...]
    agents: tuple[AgentStart, ...]
    instant: bool = False


@dataclass(frozen=True, slots=True)
class GangRules:
    """What the model and the engine fix for every gang."""

    control: ControlTokens
    decode: Callable[[Seq[int]], str]
    marks_answers: bool
    max_model_len: int
    max_injected: int  # positions tool results may add to an agent


@dataclass(slots=True)
class Gang:
    """A gang in the engine. Owned by the engine's thread."""

    key: int
    start: GangStart
    rules: GangRules
    pool: BlockPool
    arrival_s: float
    root: Sequence = field(init=False)
    agents: dict[int, Agent] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    prefix_logits: Any = None  # (vocab,) of the last prefix position, once computed
    admitted_s: float = 0.0
    threshold: float = 0.0
    closed: bool = False
    done: bool = False
    num_steps: int = 0
    decode_s: float = 0.0
    num_sampled: int = 0
    num_injected: int = 0
    copies: list[tuple[int, int]] = field(
        default_factory=list
    )  # blocks to copy before the next step

    def __post_init__(self) -> None:
        self.root = Sequence(pending=deque(self.start.prefix))

    # -- memory ------------------------------------------------------------------------------

    def blocks_of(self, agent: AgentStart) -> int:
        """Blocks an agent may come to own beside the shared full blocks of the prefix."""
        prefix = len(self.start.prefix)
        own = len(agent.opening) + agent.params.max_tokens + self.rules.max_injected
        longest = min(self.rules.max_model_len, prefix + own)
        return self.pool.blocks_for(longest) - prefix // self.pool.block_size

    def blocks_needed(self) -> int:
        """Blocks the whole gang needs to be admitted."""
        return self.pool.blocks_for(len(self.start.prefix)) + sum(
            map(self.blocks_of, self.start.agents)
        )

    def admit(self, now: float) -> None:
        """Takes the reservation; the prefix begins to run."""
        self.admitted_s = now
        self._reserve(self.root, self.pool.blocks_for(len(self.start.prefix)))
        self.root.state = State.RUNNING
        for agent in self.start.agents:
            self.add_agent(agent)

    def add_agent(self, start: AgentStart) -> None:
        """Adds an agent on the prefix; the caller checked ``can_reserve(blocks_of(start))``."""
        transcript = Transcript(
            self.rules.control,
            self.rules.decode,
            stop=start.params.stop,
            answers_only_marked=self.rules.marks_answers,
        )
        if self.start.instant:
            transcript.open_answer()
        sequence = Sequence(pending=deque(start.opening))
        self._reserve(sequence, self.blocks_of(start))
        agent = Agent(
            start.agent_id,
            start.attempt,
            start.params,
            start.seed,
            transcript,
            sequence,
            granted=start.granted or start.params.max_tokens,
        )
        self._replay(agent, start)
        agent.draws_from_prefix = not sequence.pending
        agent.pending_call_id = start.pending_call_id
        self.agents[start.agent_id] = agent
        if self.prefix_logits is not None:
            self.fork_from_prefix(agent)

    def fork_from_prefix(self, agent: Agent) -> None:
        """Shares the prefix's full blocks and asks for a copy of its partial one."""
        sequence, root = agent.sequence, self.root
        full = root.num_computed // self.pool.block_size
        sequence.block_table = root.block_table[:full]
        self.pool.share(sequence.block_table)
        sequence.num_computed = root.num_computed
        sequence.state = State.PAUSED if agent.pending_call_id else State.RUNNING
        if full < len(root.block_table):
            self.allocate(sequence, 0)
            self.copies.append((root.block_table[full], sequence.block_table[full]))

    def allocate(self, sequence: Sequence, length: int) -> None:
        """Makes room for the next ``length`` positions, out of the sequence's reservation."""
        missing = self.pool.blocks_for(sequence.num_computed + length) - len(sequence.block_table)
        if missing > 0:
            sequence.block_table += self.pool.allocate(missing)
            sequence.num_reserved -= missing

    def _reserve(self, sequence: Sequence, count: int) -> None:
        self.pool.reserve(count)
        sequence.num_reserved = count

    def _free(self, sequence: Sequence) -> None:
        # A copy into a block that is given back would overwrite its next owner.
        self.copies = [c for c in self.copies if c[1] not in sequence.block_table]
        self.pool.release(sequence.block_table)
        self.pool.unreserve(sequence.num_reserved)
        sequence.block_table, sequence.num_reserved = [], 0
        sequence.pending.clear()
        sequence.state = State.FINISHED

    def _replay(self, agent: Agent, start: AgentStart) -> None:
        """Rebuilds what an earlier attempt did, without showing it again."""
        for segment in start.replay:
            if isinstance(segment, InjectedPositions):
                agent.sequence.pending.extend(segment.positions)
                agent.num_injected += len(segment.positions)
                continue
            for token_id in segment.token_ids:
                agent.sequence.pending.append(Position(token_id))
                agent.sampled.append(token_id)
                if agent.transcript.push(token_id)[1] is Turn.CALL_READY:
                    agent.num_calls += 1

    # -- commands ----------------------------------------------------------------------------

    def inject(self, agent_id: int, call_id: str, positions: Seq[Position]) -> None:
        """Gives a paused agent what it waits for. One that ended meanwhile is left alone."""
        agent = self.agents.get(agent_id)
        if agent is None or agent.pending_call_id != call_id:
            return
        total = agent.sequence.num_positions + len(positions)
        room = self.rules.max_injected - agent.num_injected
        agent.pending_call_id = ""
        if total >= self.rules.max_model_len or len(positions) > room:
            self.finish(agent, Finish.LENGTH)
            return
        agent.sequence.pending.extend(positions)
        agent.num_injected += len(positions)
        self.num_injected += len(positions)
        if agent.sequence.state is State.PAUSED:
            agent.sequence.state = State.RUNNING
        self.events.append(Injected(agent_id, call_id, len(positions)))

    def kill(self, agent_ids: Seq[int], reason: str) -> None:
        """Stops agents now; empty means all. Acknowledged by ``Finished``."""
        if self.root.state is State.WAITING:
            self._kill_waiting(agent_ids, reason)
        for agent_id in list(agent_ids) or list(self.agents):
            if agent := self.agents.get(agent_id):
                self.finish(agent, Finish.CANCELLED, reason)

    def _kill_waiting(self, agent_ids: Seq[int], reason: str) -> None:
        """Takes agents out of a gang that was not admitted yet: they own nothing."""
        for start in self.start.agents:
            if not agent_ids or start.agent_id in agent_ids:
                self.events.append(
                    Finished(
                        start.agent_id, start.attempt, Finish.CANCELLED, "", 0, 0, 0.0, 0.0, 0.0,
                        reason,
                    )
                )  # fmt: skip
        left = tuple(a for a in self.start.agents if agent_ids and a.agent_id not in agent_ids)
        self.start = replace(self.start, agents=left)

    def grant(self, totals: dict[int, int]) -> None:
        """Raises grants; never lowers one."""
        for agent_id, total in totals.items():
            if agent := self.agents.get(agent_id):
                agent.granted = max(agent.granted, min(total, agent.params.max_tokens))
                waiting = agent.sequence.state is State.AWAITING_GRANT
                if waiting and agent.granted > len(agent.sampled):
                    agent.sequence.state = State.RUNNING

    # -- tokens ------------------------------------------------------------------------------

    def take(
        self,
        agent: Agent,
        token_id: int,
        logprob: float,
        confidence: float,
        top: tuple[list[int], list[float]] = ([], []),
    ) -> None:
        """Books a sampled token and moves the agent on: text, pause, grant or end."""
        if agent.params.ignore_eos and token_id in agent.transcript.control.end:
            text, turn = "", Turn.NONE
        else:
            text, turn = agent.transcript.push(token_id)
        offset = len(agent.sampled)
        agent.observe(token_id, logprob, confidence)
        self.num_sampled += 1
        is_answer = agent.transcript.mode in (Mode.ANSWERING, Mode.ENDED)
        self.events.append(
            Delta(
                agent.agent_id, agent.attempt, offset, token_id, text, logprob,
                agent.group_confidence, is_answer, tuple(top[0]), tuple(top[1]),
            )
        )  # fmt: skip
        agent.draws_from_prefix = False
        agent.sequence.pending.append(Position(token_id))
        if turn in (Turn.ENDED, Turn.STOPPED) or token_id in agent.params.stop_token_ids:
            self.finish(agent, Finish.STOP)
        elif (
            len(agent.sampled) >= agent.params.max_tokens
            or agent.sequence.num_positions >= self.rules.max_model_len
        ):
            self.finish(agent, Finish.LENGTH)
        elif self._lost_confidence(agent):
            self.finish(agent, Finish.CONFIDENCE, "CONFIDENCE")
        elif turn is Turn.CALL_READY:
            self._pause_on_call(agent)
        elif len(agent.sampled) >= agent.granted:
            agent.sequence.state = State.AWAITING_GRANT
            self.events.append(AwaitingGrant(agent.agent_id, len(agent.sampled)))

    def _lost_confidence(self, agent: Agent) -> bool:
        full = len(agent.confidences) == agent.confidences.maxlen
        return self.threshold > 0.0 and full and agent.group_confidence < self.threshold

    def _pause_on_call(self, agent: Agent) -> None:
        agent.num_calls += 1
        agent.pending_call_id = f"a{agent.agent_id}.{agent.attempt}.c{agent.num_calls}"
        agent.sequence.state = State.PAUSED
        call = parse_call(agent.transcript.call_text)
        self.events.append(
            ToolCall(
                agent.agent_id, agent.attempt, agent.pending_call_id, call.name,
                call.arguments_json, agent.transcript.call_text, len(agent.sampled),
            )
        )  # fmt: skip

    def finish(self, agent: Agent, finish: Finish, kill_reason: str = "") -> None:
        """Ends an agent and frees its memory."""
        self._free(agent.sequence)
        del self.agents[agent.agent_id]
        self.events.append(
            Finished(
                agent.agent_id, agent.attempt, finish, agent.transcript.final_answer(),
                len(agent.sampled), agent.num_injected, agent.mean_logprob,
                agent.lowest_confidence if agent.confidences else 0.0,
                agent.group_confidence, kill_reason,
            )
        )  # fmt: skip

    def close_if_done(self) -> bool:
        """Frees the prefix and says ``GangDone`` once it is closed and empty."""
        if self.done or not self.closed or self.agents:
            return False
        self.done = True
        self._free(self.root)
        self.prefix_logits = None
        self.events.append(
            GangDone(
                len(self.start.prefix), self.num_sampled, self.num_injected,
                self.num_steps, self.decode_s,
            )
        )  # fmt: skip
        return True
