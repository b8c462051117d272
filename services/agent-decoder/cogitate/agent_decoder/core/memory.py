"""Whose KV blocks: room for gangs in order of service, and who yields when there is none.

Gangs are served by priority, deadline and arrival; within a gang its agents in order. Blocks are
taken as positions are computed. Where none are left, whoever comes last gives its own back and
computes its positions again once there is room (preemption with recompute): memory pressure slows
agents and ends none.

Invariants (``tests/property/test_memory.py``):

1. Nobody yields to one that comes after it; the prefix of a gang whose agents have all ended yields
   to anybody, and is computed again if agents are added.
2. The first in order always goes on: a gang that could never fit alone is refused.
3. A waiting gang is not overtaken by one behind it, and takes memory only from gangs of a lower
   priority and from agents that were told to stand still; one that waits for a tool keeps it.
4. A preempted agent goes on with the very positions it had.

Source: preemption by recompute as in vLLM (arXiv 2309.06180, section 4.5), here by agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq

from cogitate.agent_decoder.core.block_pool import BlockPool
from cogitate.agent_decoder.core.gang import Gang
from cogitate.agent_decoder.core.sampling import SamplingParams
from cogitate.agent_decoder.core.sequence import Agent, Position, Sequence
from cogitate.agent_decoder.core.starts import AgentStart

# Who may yield; no agent means the gang's prefix, once no agent has memory.
Holder = tuple[Gang, Agent | None]


def misfit(gang: Gang, start: AgentStart) -> str:
    """Why an agent can never run here, as a sentence; empty if it can."""
    rules, prefix = gang.rules, len(gang.start.prefix)
    if start.num_sampled > start.params.max_tokens or start.num_injected > rules.max_injected:
        return "the agent's resume state is longer than its limits"
    own = len(start.opening) + start.num_sampled + start.num_injected
    if prefix + own >= rules.max_model_len:
        return (
            f"the conversation and the agent's opening take {prefix + own} "
            f"positions, the model has room for {rules.max_model_len}; shorten them"
        )
    return ""


def most_blocks(gang: Gang, opening: Seq[Position], params: SamplingParams) -> int:
    """Blocks an agent may come to own beside the shared full blocks of the prefix."""
    prefix, size = len(gang.start.prefix), gang.pool.block_size
    longest = prefix + len(opening) + params.max_tokens + gang.rules.max_injected
    return gang.pool.blocks_for(min(gang.rules.max_model_len, longest)) - prefix // size


def fits(gang: Gang, max_agents: int, start: AgentStart | None = None) -> bool:
    """Whether the gang, with this agent if one is given, could always run to its end alone."""
    new = start.agent_id if start else None
    agents = [(a.opening, a.params) for a in gang.agents.values() if a.agent_id != new]
    if start:
        agents.append((start.opening, start.params))
    most = sum(most_blocks(gang, opening, params) for opening, params in agents)
    most += gang.pool.blocks_for(len(gang.start.prefix))
    return len(agents) <= max_agents and most <= gang.pool.num_blocks


class Memory:
    """The pool's blocks, and the places in the batch, among gangs given in order of service."""

    def __init__(self, pool: BlockPool, max_sequences: int) -> None:
        self.pool, self._max_sequences = pool, max_sequences
        self.num_preemptions = 0  # agents and prefixes that had to yield

    def serve(self, gangs: Seq[Gang], now: float) -> list[Gang]:
        """Admits gangs and brings agents onto their prefix, in order, until one finds no room.

        Returns the gangs that were admitted for the first time.
        """
        admitted = []
        for at, gang in enumerate(gangs):
            if gang.waiting:
                if gang.agents and not self._admit(gangs, at, now):
                    break
                if gang.agents and gang.num_admissions == 1:
                    admitted.append(gang)
            elif gang.prefix_logits is not None and not gang.held:
                waiting = [agent for agent in gang.agents.values() if agent.waits_for_room]
                if not all(self._bring_in(gangs, at, agent) for agent in waiting):
                    break
        return admitted

    def allocate(self, gangs: Seq[Gang], wanted: Seq[tuple[Holder, int]]) -> None:
        """Finds blocks for the next positions of each sequence, in order of service.

        Whoever comes too late yields what it has: its sequence has no computed position after it.
        """
        if self.pool.can_allocate(sum(_missing(holder, length) for holder, length in wanted)):
            for (gang, agent), length in wanted:
                gang.allocate(_sequence(gang, agent), length)
            return
        places = {gang.key: at for at, gang in enumerate(gangs)}
        for (gang, agent), length in sorted(wanted, key=lambda w: _place(places, *w[0])):
            if gang.waiting or (agent is not None and not agent.sequence.num_computed):
                continue  # it yielded to one before it
            behind = self._behind(gangs, places[gang.key], agent)
            if self._free_up(gangs, _missing((gang, agent), length), 0, behind):
                gang.allocate(_sequence(gang, agent), length)
            else:
                self._preempt(gang, agent)

    def has_room(self, gangs: Seq[Gang]) -> bool:
        """Whether one more agent may have a block now, without anybody yielding."""
        return self._free_up(gangs, 1, 1, ())

    # -- room --------------------------------------------------------------------------------

    def _admit(self, gangs: Seq[Gang], at: int, now: float) -> bool:
        gang, rank = gangs[at], gangs[at].start.priority
        behind = [
            (other, agent)
            for other, agent in self._behind(gangs, at, None)
            if not other.agents
            or other.start.priority < rank
            or (agent is not None and agent.paused)
        ]
        need = _blocks_to_begin(gang) + sum(map(_num_running, gangs[:at]))
        if not self._free_up(gangs, need, len(gang.agents), behind):
            return False
        gang.admit(now)
        return True

    def _bring_in(self, gangs: Seq[Gang], at: int, agent: Agent) -> bool:
        gang = gangs[at]
        behind = self._behind(gangs, at, agent)
        yielding = sum(other is gang for other, _ in behind)
        # Those before it may each need a block soon: it would not have its own for long.
        before = max(0, sum(map(_num_running, gangs[: at + 1])) - yielding)
        if not self._free_up(gangs, _blocks_to_go_on(gang, agent) + before, 1, behind):
            return False
        gang.branch(agent, gang.root, gang.root.num_computed)
        return True

    def _behind(self, gangs: Seq[Gang], at: int, agent: Agent | None) -> list[Holder]:
        """Who has memory and is served after this agent, or after this gang, last first.

        Before all of them come prefixes that nobody uses, of gangs whose agents have ended.
        """
        found: list[Holder] = [(g, None) for g in gangs if not g.agents and g.root.block_table]
        for gang in reversed(gangs[at + 1 :]):
            if not gang.agents:
                continue
            found += [(gang, a) for a in reversed(gang.agents.values()) if a.sequence.num_computed]
            if gang.root.block_table:
                found.append((gang, None))
        for other in reversed(gangs[at].agents.values() if agent else ()):
            if other is agent:
                break
            if other.sequence.num_computed:
                found.append((gangs[at], other))
        return found

    def _free_up(self, gangs: Seq[Gang], need: int, places: int, behind: Seq[Holder]) -> bool:
        """Has as few as possible yield for so many blocks and places in the batch, or nobody."""

        def enough() -> bool:
            active = sum(map(_num_active, gangs)) if places else 0
            return self.pool.can_allocate(need) and active + places <= self._max_sequences

        if enough():
            return True
        freed = sum(len(_own_blocks(*holder)) for holder in behind)
        if need > self.pool.num_free + freed:
            return False
        for holder in behind:
            self._preempt(*holder)
            if enough():
                return True
        return False

    def _preempt(self, gang: Gang, agent: Agent | None) -> None:
        self.num_preemptions += 1
        if agent is None:
            gang.preempt_prefix()
        else:
            gang.preempt(agent)


def _sequence(gang: Gang, agent: Agent | None) -> Sequence:
    return gang.root if agent is None else agent.sequence


def _missing(holder: Holder, length: int) -> int:
    return max(0, holder[0].missing(_sequence(*holder), length))


def _own_blocks(gang: Gang, agent: Agent | None) -> list[int]:
    """Blocks that come back with it, or with it and those behind it."""
    blocks = _sequence(gang, agent).block_table
    return blocks if agent is None else blocks[gang.root.num_computed // gang.pool.block_size :]


def _place(places: Mapping[int, int], gang: Gang, agent: Agent | None) -> tuple[int, int]:
    within = list(gang.agents.values()).index(agent) if agent else -1
    return places[gang.key], within


def _num_running(gang: Gang) -> int:
    """Agents that have memory and use more of it as they go."""
    return sum(a.runs and bool(a.sequence.num_computed) for a in gang.agents.values())


def _num_active(gang: Gang) -> int:
    """Places in the batch that the gang takes."""
    if gang.waiting:
        return 0
    if gang.prefix_logits is None:
        return len(gang.agents)
    return sum(bool(agent.sequence.num_computed) for agent in gang.agents.values())


def _blocks_to_go_on(gang: Gang, agent: Agent) -> int:
    """Blocks for what the agent has to compute before its next token, and for that token."""
    prefix = len(gang.start.prefix)
    ends = prefix + len(agent.sequence.pending) + 1
    return gang.pool.blocks_for(ends) - prefix // gang.pool.block_size


def _blocks_to_begin(gang: Gang) -> int:
    agents = sum(_blocks_to_go_on(gang, agent) for agent in gang.agents.values())
    return gang.pool.blocks_for(len(gang.start.prefix)) + agents
