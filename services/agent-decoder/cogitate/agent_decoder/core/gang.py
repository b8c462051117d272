"""One gang's state: the common prefix, its agents, and what each command and token does to them.

Memory is taken from the pool by reservation at admission, for the longest each agent may become,
so an admitted gang always runs to its end.

State diagram (one agent)::

    WAITING --prefix computed--> RUNNING --call--> PAUSED --inject--> RUNNING
                                    |
                                    +--grant used up--> AWAITING_GRANT --grant--> RUNNING
    any --end token, limit, kill--> FINISHED

Invariants (``tests/property/test_gang.py``):

1. Every agent ends with exactly one ``Finished``; nothing is sampled after it.
2. After ``GangDone`` every block and reservation of the gang is back in the pool.
3. A paused agent keeps its blocks and goes on from the very position where it stopped.
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
    num_cached: int = 0  # positions of the prefix that were found computed
    admitted_s: float = 0.0
    told_s: float = -math.inf  # when events were last handed out
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
            self.agents[agent.agent_id] = self._begin(agent)

    @property
    def waiting(self) -> bool:
        """Whether it is not admitted yet: it owns no memory."""
        return self.root.state is State.WAITING

    # -- memory ------------------------------------------------------------------------------

    def misfit(self, start: AgentStart) -> str:
        """Why an agent can never run here, as a sentence; empty if it can."""
        rules, params = self.rules, start.params
        if start.num_sampled > params.max_tokens or start.num_injected > rules.max_injected:
            return "the agent's resume state is longer than its limits"
        own = len(start.opening) + start.num_sampled + start.num_injected
        if len(self.start.prefix) + own >= rules.max_model_len:
            return (
                f"the conversation and the agent's opening take {len(self.start.prefix) + own} "
                f"positions, the model has room for {rules.max_model_len}; shorten them"
            )
        return ""

    def blocks_of(self, start: AgentStart) -> int:
        """Blocks an agent may come to own beside the shared full blocks of the prefix."""
        prefix = len(self.start.prefix)
        own = len(start.opening) + start.params.max_tokens + self.rules.max_injected
        longest = min(self.rules.max_model_len, prefix + own)
        return self.pool.blocks_for(longest) - prefix // self.pool.block_size

    def blocks_needed(self) -> int:
        """Blocks the whole gang needs to be admitted."""
        prefix = self.pool.blocks_for(len(self.start.prefix))
        return prefix + sum(agent.max_blocks for agent in self.agents.values())

    def admit(self, now: float) -> None:
        """Takes the reservation; the prefix begins to run."""
        self.admitted_s = now
        self._reserve(self.root, self.pool.blocks_for(len(self.start.prefix)))
        self._find_cached()
        self.root.state = State.RUNNING
        for agent in self.agents.values():
            self._reserve(agent.sequence, agent.max_blocks)

    def _begin(self, start: AgentStart) -> Agent:
        return begin(start, self.rules, self.blocks_of(start), instant=self.start.instant)

    def _find_cached(self) -> None:
        """Begins the prefix with the blocks that are still there from earlier gangs.

        At least one position is left to compute: its logits are not cached.
        """
        size, root = self.pool.block_size, self.root
        self.names = block_names(self.start.prefix, size, self.start.salt)
        root.block_table = self.pool.allocate_named(
            self.names[: (len(self.start.prefix) - 1) // size]
        )
        root.num_reserved -= len(root.block_table)
        root.num_computed = self.num_cached = len(root.block_table) * size
        for _ in range(self.num_cached):
            root.pending.popleft()

    def name_prefix(self) -> None:
        """Lets later gangs find the prefix, once it is computed."""
        for block, name in zip(self.root.block_table, self.names, strict=False):
            self.pool.name(block, name)

    def add_agent(self, start: AgentStart) -> None:
        """Adds an agent on the prefix; a later attempt takes the place of an earlier one.

        The caller checked ``misfit`` and, unless the gang waits, ``can_reserve``.
        """
        if earlier := self.agents.get(start.agent_id):
            self.finish(earlier, Finish.CANCELLED, "SUPERSEDED")
        agent = self.agents[start.agent_id] = self._begin(start)
        if not self.waiting:
            self._reserve(agent.sequence, agent.max_blocks)
        if self.prefix_logits is not None:
            self.fork_from_prefix(agent)

    def fork_from_prefix(self, agent: Agent) -> None:
        """Shares the prefix's full blocks, asks for a copy of its partial one; the agent begins."""
        sequence, root = agent.sequence, self.root
        full = root.num_computed // self.pool.block_size
        sequence.block_table = root.block_table[:full]
        self.pool.share(sequence.block_table)
        sequence.num_computed = root.num_computed
        if full < len(root.block_table):
            self.allocate(sequence, 0)
            self.copies.append((root.block_table[full], sequence.block_table[full]))
        self._follow(agent, ending_of(agent, self.rules, self.threshold))

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

    # -- commands ----------------------------------------------------------------------------

    def inject(self, agent_id: int, call_id: str, positions: Seq[Position]) -> None:
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
                    agent.sequence.state = State.RUNNING

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
        events, self.events, self.told_s = self.events, [], now
        return events

    # -- tokens ------------------------------------------------------------------------------

    def take(
        self,
        agent: Agent,
        token_id: int,
        logprob: float,
        confidence: float,
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
        """Runs, unless the agent waits for a result or for a grant."""
        if agent.pending_call_id:
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
                agent.lowest_confidence, agent.group_confidence, kill_reason,
            )
        )  # fmt: skip

    def close_if_done(self) -> bool:
        """Frees the prefix and says ``GangDone`` once it is closed and empty."""
        if self.done or not self.closed or self.agents:
            return False
        num_prompt = self.root.num_computed
        self._free(self.root)
        self._say_done(num_prompt)
        return True

    def abandon(self) -> None:
        """Ends everything with ERROR without touching the pool, which is given up as well."""
        for agent in list(self.agents.values()):
            self._say_finished(agent, Finish.ERROR, "ENGINE_FAILURE")
        self._say_done(self.root.num_computed)

    def _say_done(self, num_prompt: int) -> None:
        self.done, self.prefix_logits = True, None
        self.events.append(
            GangDone(
                num_prompt,
                self.num_sampled,
                self.num_injected,
                self.num_steps,
                self.decode_s,
                self.num_cached,
            )
        )
