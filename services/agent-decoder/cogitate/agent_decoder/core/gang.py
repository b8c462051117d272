"""One gang's state: the common prefix, its agents, and what each command and token does to them.

Memory is taken from the pool as positions are computed; ``core/memory.py`` sees to it that there is
some. An agent that must yield its memory is preempted: it computes its positions again.

State diagram (one agent)::

    WAITING --room for it on the prefix--> RUNNING --call, pause--> PAUSED --inject--> RUNNING
                                    |
                                    +--grant used up--> AWAITING_GRANT --grant--> RUNNING
    any --end token, limit, kill--> FINISHED

Invariants (``tests/property/test_gang.py``):

1. Every agent ends with exactly one ``Finished``; nothing is sampled after it.
2. After ``GangDone`` every block of the gang is back in the pool.
3. A paused or preempted agent goes on from the very position where it stopped.
4. No agent samples more than it was granted.
5. A gang that was closed ends: agents that could only go on by a command are ended.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

from cogitate.agent_decoder.core.beginning import begin, push_token
from cogitate.agent_decoder.core.block_pool import BlockPool
from cogitate.agent_decoder.core.calls import parse_call
from cogitate.agent_decoder.core.endings import Ending, ending_of, why_unusable
from cogitate.agent_decoder.core.events import (
    AwaitingGrant,
    Delta,
    Event,
    Finish,
    Finished,
    GangDone,
    Injected,
    Paused,
    ToolCall,
)
from cogitate.agent_decoder.core.prefix_hashes import block_names
from cogitate.agent_decoder.core.sequence import Agent, Position, Sequence, State
from cogitate.agent_decoder.core.starts import AgentStart, GangRules, GangStart
from cogitate.agent_decoder.core.transcript import Turn


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
    names: list[bytes] = field(default_factory=list)  # of the prefix's full blocks
    num_cached: int = 0  # positions of the prefix that were found computed, the first time
    admitted_s: float = 0.0  # the first time
    num_admissions: int = 0
    prefilled: bool = False  # its prefix was computed once: that was told
    told_s: float = -math.inf  # when tokens were last handed out
    threshold: float = 0.0
    held: bool = False  # its reader is behind: nothing of it is scheduled
    closed: bool = False
    done: bool = False
    num_steps: int = 0
    decode_s: float = 0.0
    num_sampled: int = 0
    num_injected: int = 0
    # Blocks to copy before the next step: (from, to).
    copies: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root = Sequence(pending=deque(self.start.prefix))
        for agent in self.start.agents:
            self.agents[agent.agent_id] = self.begin(agent)

    @property
    def waiting(self) -> bool:
        """Whether it is not admitted yet: it owns no memory."""
        return self.root.state is State.WAITING

    @property
    def order(self) -> tuple[float, float, float, int]:
        """What gangs are served by: higher priority, earlier deadline, earlier arrival."""
        return -self.start.priority, self.start.deadline_s, self.arrival_s, self.key

    # -- memory ------------------------------------------------------------------------------

    def admit(self, now: float) -> None:
        """The prefix begins to run."""
        self.num_admissions += 1
        self._find_cached()
        if self.num_admissions == 1:
            self.admitted_s, self.num_cached = now, self.root.num_computed
        self.root.state = State.RUNNING

    def begin(self, start: AgentStart) -> Agent:
        """Makes an agent of it, fresh or resumed, that owns no memory yet."""
        return begin(start, self.rules, instant=self.start.instant)

    def _find_cached(self) -> None:
        """Begins the prefix with the blocks that are still there from earlier gangs.

        At least one position is left to compute: its logits are not cached.
        """
        size, root = self.pool.block_size, self.root
        self.names = block_names(self.start.prefix, size, self.start.salt)
        root.block_table = self.pool.allocate_named(
            self.names[: (len(self.start.prefix) - 1) // size]
        )
        root.num_computed = len(root.block_table) * size
        for _ in range(root.num_computed):
            root.pending.popleft()

    def name_prefix(self) -> None:
        """Lets later gangs find the prefix, once it is computed."""
        for block, name in zip(self.root.block_table, self.names, strict=False):
            self.pool.name(block, name)

    def add_agent(self, start: AgentStart) -> None:
        """Adds an agent; a later attempt takes the place of an earlier one.

        The caller checked that it fits (``core/memory.py``).
        """
        if earlier := self.agents.get(start.agent_id):
            self.finish(earlier, Finish.CANCELLED, "SUPERSEDED")
        agent = self.agents[start.agent_id] = self.begin(start)
        if self.threshold:
            agent.num_unheld = len(agent.sampled)

    def start_agent(self, agent: Agent) -> None:
        """Has an agent begin whose memory is another engine's."""
        self._follow(agent, ending_of(agent, self.rules, self.threshold))

    def branch(self, agent: Agent, source: Sequence, length: int) -> None:
        """Has the agent go on behind the source's first ``length`` positions.

        Shares their full blocks and asks for a copy of a partial one, for which there is room.
        """
        sequence, full = agent.sequence, length // self.pool.block_size
        sequence.block_table = source.block_table[:full]
        self.pool.share(sequence.block_table)
        sequence.num_computed = length
        if length % self.pool.block_size:
            self.allocate(sequence, 0)
            self.copies.append((source.block_table[full], sequence.block_table[full]))
        if sequence.state is State.WAITING:
            self._follow(agent, ending_of(agent, self.rules, self.threshold))

    def missing(self, sequence: Sequence, length: int) -> int:
        """Blocks that its next ``length`` positions need beside those it has."""
        return self.pool.blocks_for(sequence.num_computed + length) - len(sequence.block_table)

    def allocate(self, sequence: Sequence, length: int) -> None:
        """Takes the blocks that are missing. Raises OutOfBlocks."""
        if (missing := self.missing(sequence, length)) > 0:
            sequence.block_table += self.pool.allocate(missing)

    def preempt(self, agent: Agent) -> None:
        """Takes an agent's memory; it goes on when it has some again, with the same positions."""
        self._release(agent.sequence)
        agent.sequence.pending = deque(agent.positions())

    def preempt_prefix(self) -> None:
        """Takes the prefix's memory; no agent has any. The gang waits to be admitted again."""
        self._release(self.root)
        self.root.pending = deque(self.start.prefix)
        self.root.state, self.prefix_logits = State.WAITING, None

    def _release(self, sequence: Sequence) -> None:
        # A copy into a block that is given back would overwrite its next owner.
        self.copies = [c for c in self.copies if c[1] not in sequence.block_table]
        self.pool.release(sequence.block_table)
        sequence.block_table, sequence.num_computed = [], 0

    def _free(self, sequence: Sequence) -> None:
        num_computed = sequence.num_computed
        self._release(sequence)
        sequence.num_computed = num_computed  # what it did stays true
        sequence.pending.clear()
        sequence.state = State.FINISHED

    # -- commands ----------------------------------------------------------------------------

    def pause(self, agent_ids: Seq[int]) -> None:
        """Has agents stand still, memory kept, until something is injected that answers no call.

        Empty means all. Results of calls and grants reach an agent that stands still.
        """
        for agent_id in list(agent_ids) or list(self.agents):
            agent = self.agents.get(agent_id)
            if agent is None or self.closed:
                continue
            agent.paused = True
            if agent.sequence.state is State.RUNNING:
                agent.sequence.state = State.PAUSED
                self.events.append(Paused(agent_id, len(agent.sampled)))

    def inject(
        self, agent_id: int, call_id: str, positions: Seq[Position], origin: Any = None
    ) -> None:
        """Gives an agent what it waits for, or, without a call, something to go on with.

        An answer to a call it does not wait for (late, doubled, unknown) is left alone.
        """
        agent = self.agents.get(agent_id)
        if agent is None or agent.pending_call_id != call_id:
            return
        total = len(self.start.prefix) if not agent.sequence.num_computed else 0
        total += agent.sequence.num_positions + len(positions)
        room = self.rules.max_injected - agent.num_injected
        if total >= self.rules.max_model_len or len(positions) > room:
            self.finish(agent, Finish.LENGTH)
            return
        agent.pending_call_id, agent.last_turn = "", Turn.NONE
        agent.paused = agent.paused and bool(call_id)
        if positions:
            agent.injections.append((len(agent.sampled), tuple(positions), origin))
        agent.sequence.pending.extend(positions)
        agent.num_injected += len(positions)
        self.num_injected += len(positions)
        self.events.append(Injected(agent_id, call_id, len(positions)))
        if agent.sequence.state is State.PAUSED:
            self._go_on(agent)

    def kill(self, agent_ids: Seq[int], reason: str) -> None:
        """Stops agents now; empty means all. Acknowledged by ``Finished``."""
        for agent_id in list(agent_ids) or list(self.agents):
            if agent := self.agents.get(agent_id):
                self.finish(agent, Finish.CANCELLED, reason)

    def grant(self, totals: dict[int, int]) -> None:
        """Raises grants; never lowers one."""
        for agent_id, total in totals.items():
            if agent := self.agents.get(agent_id):
                agent.granted = max(agent.granted, min(total, agent.params.max_tokens))
                waits = agent.sequence.state is State.AWAITING_GRANT
                if waits and agent.granted > len(agent.sampled):
                    self._go_on(agent)

    def set_threshold(self, group_confidence: float) -> None:
        """Agents end at the first of their coming tokens at which they are less sure than this."""
        self.threshold = group_confidence
        for agent in self.agents.values():
            agent.num_unheld = len(agent.sampled)

    def close(self) -> None:
        """No more commands will come: what waits for one is ended, the rest goes on."""
        self.closed = True
        for agent in list(self.agents.values()):
            if agent.sequence.state in (State.PAUSED, State.AWAITING_GRANT):
                self._strand(agent)

    # -- events out --------------------------------------------------------------------------

    def news_due(self, now: float, interval_s: float) -> bool:
        """Whether to hand out what happened: tokens may wait, what is acted on goes at once.

        A small model makes a step in less than a message costs; its tokens travel together.
        """
        if not self.events:
            return False
        return now - self.told_s >= interval_s or not all(
            isinstance(event, Delta | Injected) for event in self.events
        )

    def tell(self, now: float) -> list[Event]:
        """Returns what happened since the last time, oldest first."""
        events, self.events = self.events, []
        if any(isinstance(event, Delta) for event in events):
            self.told_s = now
        return events

    # -- tokens ------------------------------------------------------------------------------

    def take(
        self,
        agent: Agent,
        token_id: int,
        logprob: float | None,
        confidence: float | None,
        top: tuple[Seq[int], Seq[float]] = ((), ()),
    ) -> None:
        """Books a sampled token and moves the agent on: text, pause, grant or end."""
        if unusable := why_unusable(agent, logprob):
            self.finish(agent, Finish.ERROR, unusable)
            return
        transcript, offset = agent.transcript, len(agent.sampled)
        is_answer = transcript.is_answer
        text, agent.last_turn = push_token(agent, token_id, self.rules.control)
        agent.observe(token_id, logprob, confidence)
        self.num_sampled += 1
        agent.sequence.pending.append(Position(token_id))
        ending = ending_of(agent, self.rules, self.threshold)
        if ending is not None and agent.last_turn is Turn.NONE:
            text += transcript.flush()
        self.events.append(
            Delta(
                agent.agent_id, agent.attempt, offset, token_id, text, logprob,
                agent.group_confidence, is_answer, tuple(top[0]), tuple(top[1]),
            )
        )  # fmt: skip
        self._follow(agent, ending)

    def _follow(self, agent: Agent, ending: Ending | None) -> None:
        """What follows an agent's newest token, or its beginning."""
        if ending is not None:
            self.finish(agent, *ending)
            return
        if agent.last_turn is Turn.CALL_READY:
            self._call(agent)
        self._go_on(agent)

    def _go_on(self, agent: Agent) -> None:
        """Runs, unless the agent waits for a result, for a grant, or to be let go on."""
        if agent.pending_call_id or agent.paused:
            agent.sequence.state = State.PAUSED
        elif len(agent.sampled) >= agent.granted:
            agent.sequence.state = State.AWAITING_GRANT
            self.events.append(AwaitingGrant(agent.agent_id, len(agent.sampled)))
        else:
            agent.sequence.state = State.RUNNING
            return
        if self.closed:
            self._strand(agent)

    def _call(self, agent: Agent) -> None:
        agent.num_calls += 1
        agent.pending_call_id = f"a{agent.agent_id}.{agent.attempt}.c{agent.num_calls}"
        call = parse_call(agent.transcript.call_text)
        self.events.append(
            ToolCall(
                agent.agent_id, agent.attempt, agent.pending_call_id, call.name,
                call.arguments_json, agent.transcript.call_text, len(agent.sampled),
            )
        )  # fmt: skip

    # -- ends --------------------------------------------------------------------------------

    def _strand(self, agent: Agent) -> None:
        """Ends an agent that could only go on by a command that cannot come any more."""
        if agent.sequence.state is State.AWAITING_GRANT:
            self.finish(agent, Finish.BUDGET)
        else:
            self.finish(agent, Finish.CANCELLED, "CLOSED")

    def finish(self, agent: Agent, finish: Finish, kill_reason: str = "") -> None:
        """Ends an agent and frees its memory."""
        self._free(agent.sequence)
        self._say_finished(agent, finish, kill_reason)

    def _say_finished(self, agent: Agent, finish: Finish, kill_reason: str) -> None:
        del self.agents[agent.agent_id]
        self.events.append(
            Finished(
                agent.agent_id, agent.attempt, finish, agent.transcript.final_answer(),
                len(agent.sampled), agent.num_injected, agent.mean_logprob,
                agent.lowest_confidence, agent.group_confidence, kill_reason, agent.num_unheld,
            )
        )  # fmt: skip

    def close_if_done(self) -> bool:
        """Frees the prefix and says ``GangDone`` once it is closed and empty."""
        if self.done or not self.closed or self.agents:
            return False
        self._free(self.root)
        self._say_done()
        return True

    def abandon(self) -> None:
        """Ends everything with ERROR without touching the pool, which is given up as well."""
        for agent in list(self.agents.values()):
            self._say_finished(agent, Finish.ERROR, "ENGINE_FAILURE")
        self._say_done()

    def _say_done(self) -> None:
        self.done, self.prefix_logits = True, None
        self.events.append(
            GangDone(
                len(self.start.prefix) if self.prefilled else self.root.num_computed,
                self.num_sampled,
                self.num_injected,
                self.num_steps,
                self.decode_s,
                self.num_cached,
            )
        )
