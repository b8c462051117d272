"""The engine: one thread that owns the model, the cache and every gang, and steps them.

One step is: apply commands → admit waiting gangs → schedule → forward → sample → postprocess.
Commands arrive from any thread by ``submit``; events leave in one batch a gang and step through
``on_events``, called on the engine's thread.

Whatever fails in a step ends the admitted gangs with ERROR and starts over with an empty pool; the
thread itself never ends but by ``stop``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from functools import partial

import torch
from cogitate.agent_decoder.core.block_pool import BlockPool
from cogitate.agent_decoder.core.counters import EngineCounters
from cogitate.agent_decoder.core.events import Admitted, Event, Finished, Prefilled, Refused
from cogitate.agent_decoder.core.forking import fork, snapshot
from cogitate.agent_decoder.core.gang import Gang
from cogitate.agent_decoder.core.load import EngineLimits, EngineStats
from cogitate.agent_decoder.core.scheduler import Chunk, schedule
from cogitate.agent_decoder.core.sequence import Agent, Position, Sequence, State
from cogitate.agent_decoder.core.starts import AgentStart, GangRules, GangStart
from cogitate.agent_decoder.model.loader import LoadedModel
from cogitate.kit.telemetry import stack_of

log = logging.getLogger(__name__)

# A command runs on the engine's thread with the engine's gangs at hand.
Command = Callable[["Engine"], None]
# Whom a sequence belongs to; no agent means it is the gang's prefix.
Owner = tuple[Gang, Agent | None]
# An agent that can sample, and the logits (vocab,) it samples from.
Draw = tuple[Gang, Agent, torch.Tensor]


class Engine:
    """Steps gangs on one model. Start it once; ``stop`` kills what is left and joins the thread."""

    def __init__(
        self,
        model: LoadedModel,
        limits: EngineLimits,
        on_events: Callable[[int, list[Event]], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model, self.limits, self.stats = model, limits, EngineStats()
        self.counters = EngineCounters()

        def tell(key: int, events: list[Event]) -> None:
            self.counters.hear(key, events)
            on_events(key, events)

        self._on_events = tell
        self._monotonic = monotonic
        self.max_model_len = min(
            model.config.max_position_embeddings, limits.num_blocks * limits.block_size
        )
        self.pool = BlockPool(limits.num_blocks, limits.block_size)
        self._runner = model.runner
        self._runner.allocate(limits.num_blocks, limits.block_size)
        self._rules = GangRules(
            control=model.template.control,
            decode=model.template.decode,
            marks_answers=model.template.marks_answers,
            max_model_len=self.max_model_len,
            max_injected=limits.max_injected,
        )
        self._gangs: dict[int, Gang] = {}  # in order of arrival
        self._commands: list[Command] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.stats.num_free_blocks = self.pool.num_free

    # -- from any thread ---------------------------------------------------------------------

    def start(self) -> None:
        """Begins to step."""
        self._thread.start()

    def stop(self) -> None:
        """Kills every agent and ends the thread. Blocks for at most one step."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, command: Command) -> None:
        """Has the command run between two steps, in order of submission."""
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def open(self, key: int, start: GangStart) -> None:
        """Queues a gang. Answered by Admitted or Refused."""
        self.submit(lambda engine: engine._open(key, start))

    def add_agents(self, key: int, agents: Seq[AgentStart]) -> None:
        """Widens a gang. Agents for which there is no room end with ERROR at once."""
        self._with_gang(key, lambda gang: self._add_agents(gang, agents))

    def fork(self, key: int, parent_id: int, num_sampled: int, start: AgentStart) -> None:
        """Copies an agent. A copy that cannot be made ends with ERROR at once."""
        self._with_gang(key, lambda gang: self._fork(gang, parent_id, num_sampled, start))

    def inject(
        self,
        key: int,
        agent_id: int,
        call_id: str,
        positions: Seq[Position],
        origin: object = None,
    ) -> None:
        """Gives a paused agent what it waits for."""
        self._with_gang(key, lambda gang: gang.inject(agent_id, call_id, positions, origin))

    def pause(self, key: int, agent_ids: Seq[int]) -> None:
        """Has agents stand still; empty means all."""
        self._with_gang(key, lambda gang: gang.pause(agent_ids))

    def request_states(self, key: int, agent_ids: Seq[int]) -> None:
        """Asks for a Snapshot of each agent that has not ended; empty means all."""

        def act(gang: Gang) -> None:
            asked = [a for i, a in gang.agents.items() if i in agent_ids or not agent_ids]
            gang.events += map(snapshot, asked)

        self._with_gang(key, act)

    def kill(self, key: int, agent_ids: Seq[int], reason: str) -> None:
        """Stops agents; empty means all."""
        self._with_gang(key, lambda gang: gang.kill(agent_ids, reason))

    def grant(self, key: int, totals: dict[int, int]) -> None:
        """Raises token grants."""
        self._with_gang(key, lambda gang: gang.grant(totals))

    def set_threshold(self, key: int, group_confidence: float) -> None:
        """Sets the confidence under which agents are killed."""
        self._with_gang(key, lambda gang: setattr(gang, "threshold", group_confidence))

    def hold(self, key: int, held: bool) -> None:
        """Stops stepping a gang whose reader is behind, or goes on with it."""
        self._with_gang(key, lambda gang: setattr(gang, "held", held))

    def close(self, key: int) -> None:
        """No more commands will come: agents that wait for one are ended, others go on."""
        self._with_gang(key, Gang.close)

    def abort(self, key: int, reason: str) -> None:
        """Kills what still runs and closes."""

        def act(gang: Gang) -> None:
            gang.kill((), reason)
            gang.close()

        self._with_gang(key, act)

    def _with_gang(self, key: int, act: Callable[[Gang], None]) -> None:
        def command(engine: Engine) -> None:
            if gang := engine._gangs.get(key):
                act(gang)

        self.submit(command)

    # -- on the engine's thread: commands ----------------------------------------------------

    def _open(self, key: int, start: GangStart) -> None:
        try:
            refusal = self._enter(key, start)
        except Exception:
            self._on_events(key, [Refused("ENGINE_FAILURE", "the engine failed")])
            raise
        if refusal is not None:
            self._on_events(key, [refusal])

    def _enter(self, key: int, start: GangStart) -> Refused | None:
        gang = Gang(key, start, self._rules, self.pool, self._monotonic())
        if refusal := self._refusal(gang):
            return refusal
        self._gangs[key] = gang
        self._admit()
        num_waiting = sum(g.waiting for g in self._gangs.values())
        if gang.waiting and num_waiting > self.limits.max_waiting_gangs:
            del self._gangs[key]
            return Refused("REJECTED", "the endpoint's queue is full", retry_after_s=1.0)
        return None

    def _refusal(self, gang: Gang) -> Refused | None:
        """Why the gang can never be run here."""
        for start in gang.start.agents:
            if reason := gang.misfit(start):
                return Refused("INVALID_REQUEST", reason)
        too_many = len(gang.agents) > self.limits.max_sequences
        if too_many or gang.blocks_needed() > self.pool.num_blocks:
            return Refused(
                "INVALID_REQUEST",
                f"{len(gang.agents)} agents of this length never fit this endpoint; "
                "ask for fewer or shorter ones",
            )
        return None

    def _add_agents(self, gang: Gang, agents: Seq[AgentStart]) -> None:
        """Each agent alone: a gang that runs does not end because it could not be widened."""
        for start in agents:
            if gang.misfit(start):
                reason = "INVALID_REQUEST"
            elif not self._has_room(gang, gang.blocks_of(start)):
                reason = "REJECTED"
            else:
                gang.add_agent(start)
                continue
            gang.events.append(Finished.unstarted(start.agent_id, start.attempt, reason))

    def _fork(self, gang: Gang, parent_id: int, num_sampled: int, start: AgentStart) -> None:
        self._copy_blocks()  # the parent's last block may be one that still waits for its content
        has_room = partial(self._has_room, gang)
        if reason := fork(gang, parent_id, num_sampled, start, has_room):
            gang.events.append(Finished.unstarted(start.agent_id, start.attempt, reason))
        self._copy_blocks()

    def _has_room(self, gang: Gang, num_blocks: int) -> bool:
        """Whether one more agent with so many blocks may be taken."""
        if gang.waiting:
            fits = gang.blocks_needed() + num_blocks <= self.pool.num_blocks
            return fits and len(gang.agents) < self.limits.max_sequences
        is_free = self._num_admitted() < self.limits.max_sequences
        return is_free and self.pool.can_reserve(num_blocks)

    def _num_admitted(self) -> int:
        return sum(len(g.agents) for g in self._gangs.values() if not g.waiting)

    # -- on the engine's thread: the loop ----------------------------------------------------

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._commands or self._stopping or self._has_work()):
                    self._wake.wait()
                commands, self._commands = self._commands, []
                stopping = self._stopping
            for command in commands:
                self._guard(partial(command, self))
            if stopping:
                self._guard(partial(self._end_all, "SHUTDOWN"))
                return
            self._guard(self._turn)

    def _guard(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            # One broken step must not hang every stream: end them, stay alive.
            log.error("engine step failed: %s", stack_of(error))
            self._fail_all()

    def _turn(self) -> None:
        self._admit()
        self._step()
        self._flush(everything=not self._has_work())

    def _has_work(self) -> bool:
        return self._next_admissible() is not None or any(
            gang.root.pending or any(a.sequence.state is State.RUNNING for a in agents)
            for gang, agents in self._steppable()
        )

    def _steppable(self) -> list[tuple[Gang, list[Agent]]]:
        """Gangs that may be stepped, in order of arrival, with their agents."""
        return [
            (gang, list(gang.agents.values()))
            for gang in self._gangs.values()
            if gang.agents and not gang.held and not gang.waiting
        ]

    def _next_admissible(self) -> Gang | None:
        """The longest-waiting gang if there is room for it: small ones do not overtake it."""
        head = next((g for g in self._gangs.values() if g.waiting and g.agents), None)
        if head is None:
            return None
        room = self._num_admitted() + len(head.agents) <= self.limits.max_sequences
        return head if room and self.pool.can_reserve(head.blocks_needed()) else None

    def _admit(self) -> None:
        while gang := self._next_admissible():
            gang.admit(self._monotonic())
            gang.events.append(Admitted())

    def _step(self) -> None:
        owners: dict[int, Owner] = {}
        sequences: list[Sequence] = []
        draws: list[Draw] = []
        for gang, agents in self._steppable():
            if gang.root.pending:
                owners[id(gang.root)] = (gang, None)
                sequences.append(gang.root)
                continue
            for agent in agents:
                if agent.sequence.state is not State.RUNNING:
                    continue
                if agent.sequence.pending:
                    owners[id(agent.sequence)] = (gang, agent)
                    sequences.append(agent.sequence)
                else:  # at the end of the prefix, whose logits are known
                    draws.append((gang, agent, gang.prefix_logits))
        chunks = schedule(sequences, self.limits.step)
        if not chunks and not draws:
            return
        began = self._monotonic()
        for chunk in chunks:
            owners[id(chunk.sequence)][0].allocate(chunk.sequence, chunk.length)
        self._copy_blocks()
        if chunks:
            draws += self._forward(chunks, owners)
        self._sample(draws)
        self._book(chunks, owners, self._monotonic() - began)

    def _forward(self, chunks: Seq[Chunk], owners: dict[int, Owner]) -> list[Draw]:
        """Computes the chunks and returns the agents that can sample now, with their logits."""
        rows = self._runner.forward(chunks).unbind()
        draws: list[Draw] = []
        for chunk, logits in zip(chunks, rows, strict=True):
            sequence = chunk.sequence
            sequence.num_computed += chunk.length
            for _ in range(chunk.length):
                sequence.pending.popleft()
            gang, agent = owners[id(sequence)]
            if sequence.pending:
                continue
            if agent is not None:
                draws.append((gang, agent, logits))
            else:
                draws += self._prefix_done(gang, logits)
        return draws

    def _prefix_done(self, gang: Gang, logits: torch.Tensor) -> list[Draw]:
        """Forks the agents off the prefix; those without an opening sample at once."""
        now = self._monotonic()
        gang.prefix_logits = logits.clone()
        gang.name_prefix()
        self.stats.num_cached += gang.num_cached
        gang.events.append(
            Prefilled(
                len(gang.start.prefix),
                gang.admitted_s - gang.arrival_s,
                now - gang.admitted_s,
                gang.num_cached,
                gang.num_steps + 1,
            )
        )
        agents = list(gang.agents.values())
        for agent in agents:
            gang.fork_from_prefix(agent)
        return [
            (gang, agent, logits)
            for agent in agents
            if agent.sequence.state is State.RUNNING and not agent.sequence.pending
        ]

    def _copy_blocks(self) -> None:
        """Copies the partial blocks of fresh forks, all at once."""
        copies = [copy for gang in self._gangs.values() for copy in gang.copies]
        if not copies:
            return
        for gang in self._gangs.values():
            gang.copies.clear()
        self._runner.copy_blocks(copies)

    def _sample(self, draws: Seq[Draw]) -> None:
        if not draws:
            return
        logits = torch.stack([logits for _, _, logits in draws])
        result = self._runner.sample(logits, [agent.row() for _, agent, _ in draws])
        self.stats.num_sampled += len(draws)
        for i, (gang, agent, _) in enumerate(draws):
            gang.take(
                agent, result.token_ids[i], result.logprobs[i], result.confidences[i], result.top[i]
            )

    def _book(self, chunks: Seq[Chunk], owners: dict[int, Owner], elapsed_s: float) -> None:
        """Steps and time for the gangs, running means for the load report."""
        gangs = {id(g): g for g in (owners[id(c.sequence)][0] for c in chunks)}.values()
        for gang in gangs:
            gang.num_steps += 1
            gang.decode_s += elapsed_s
        shapes = [
            (c.length, c.sequence.num_computed, owners[id(c.sequence)][0].root.num_computed)
            for c in chunks
        ]
        num_shared = sum(gang.root.num_computed for gang in gangs)
        self.counters.book_step(shapes, num_shared, elapsed_s)
        num_prefix = sum(c.length for c in chunks if owners[id(c.sequence)][1] is None)
        self.stats.book_step(len(chunks), num_prefix, elapsed_s)

    def _flush(self, *, everything: bool) -> None:
        """Hands out the events that are due, or all, and lets go of gangs that are done."""
        now = self._monotonic()
        running = waiting = paused = 0
        for gang in list(self._gangs.values()):
            if gang.close_if_done():
                del self._gangs[gang.key]
            interval_s = 0.0 if everything else self.limits.flush_interval_s
            if gang.news_due(now, interval_s):
                self._on_events(gang.key, gang.tell(now))
            for agent in gang.agents.values():
                state = agent.sequence.state
                running += state is State.RUNNING
                waiting += state is State.WAITING
                paused += state in (State.PAUSED, State.AWAITING_GRANT)
        self.stats.num_running, self.stats.num_waiting = running, waiting
        self.stats.num_paused = paused
        self.stats.num_free_blocks = self.pool.num_available
        counters, num_waiting = self.counters, sum(g.waiting for g in self._gangs.values())
        counters.num_waiting_gangs = num_waiting
        counters.num_running_gangs = len(self._gangs) - num_waiting
        counters.num_used_blocks = self.pool.num_blocks - self.pool.num_free
        counters.num_cached_blocks = self.pool.num_cached

    def _fail_all(self) -> None:
        """Ends every admitted gang and begins with an empty pool; waiting gangs are unharmed."""
        self.pool = BlockPool(self.limits.num_blocks, self.limits.block_size)
        for gang in list(self._gangs.values()):
            gang.pool = self.pool
            if not gang.waiting:
                gang.abandon()
                del self._gangs[gang.key]
                self._on_events(gang.key, gang.events)

    def _end_all(self, reason: str) -> None:
        for gang in self._gangs.values():
            gang.kill((), reason)
            gang.close()
        self._flush(everything=True)
