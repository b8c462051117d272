"""The engine: one thread that owns the model, the cache and every gang, and steps them.

One step is: apply commands → find room (``core/memory.py``) → schedule → forward → sample → tell.
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
from dataclasses import replace
from functools import partial

import torch
from cogitate.agent_decoder.core.block_pool import BlockPool
from cogitate.agent_decoder.core.counters import EngineCounters
from cogitate.agent_decoder.core.events import Admitted, Event, Finished, Prefilled, Refused
from cogitate.agent_decoder.core.forking import fork, snapshot
from cogitate.agent_decoder.core.gang import Gang
from cogitate.agent_decoder.core.load import EngineLimits, EngineStats
from cogitate.agent_decoder.core.memory import Holder, Memory, fits, misfit
from cogitate.agent_decoder.core.scheduler import Chunk, StepLimits, schedule
from cogitate.agent_decoder.core.sequence import Agent, Position, Sequence, State
from cogitate.agent_decoder.core.starts import AgentStart, GangRules, GangStart
from cogitate.agent_decoder.model.loader import LoadedModel
from cogitate.kit.telemetry import stack_of

log = logging.getLogger(__name__)

# A command runs on the engine's thread with the engine's gangs at hand.
Command = Callable[["Engine"], None]
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
        self._gangs: dict[int, Gang] = {}  # in order of service
        self._memory = Memory(self.pool, limits.max_sequences)
        self._commands: list[Command] = []
        self._wake = threading.Condition()
        self._stopping = self._busy = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.stats.num_free_blocks = self.pool.num_free

    # -- from any thread ---------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Always: it is in this process."""
        return True

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
        self._with_gang(key, lambda gang: gang.set_threshold(group_confidence))

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
        entered = {**self._gangs, key: gang}
        self._gangs = dict(sorted(entered.items(), key=lambda item: item[1].order))
        self._serve()
        num_waiting = sum(g.waiting for g in self._gangs.values())
        if gang.waiting and num_waiting > self.limits.max_waiting_gangs:
            del self._gangs[key]
            return Refused("REJECTED", "the endpoint's queue is full", retry_after_s=1.0)
        return None

    def _refusal(self, gang: Gang) -> Refused | None:
        """Why the gang can never be run here."""
        for start in gang.start.agents:
            if reason := misfit(gang, start):
                return Refused("INVALID_REQUEST", reason)
        if not fits(gang, self.limits.max_sequences):
            return Refused(
                "INVALID_REQUEST",
                f"{len(gang.agents)} agents of this length never fit this endpoint; "
                "ask for fewer or shorter ones",
            )
        return None

    def _add_agents(self, gang: Gang, agents: Seq[AgentStart]) -> None:
        """Each agent alone: a gang that runs does not end because it could not be widened."""
        for start in agents:
            if misfit(gang, start):
                reason = "INVALID_REQUEST"
            elif not fits(gang, self.limits.max_sequences, start):
                reason = "REJECTED"
            else:
                gang.add_agent(start)
                continue
            gang.events.append(Finished.unstarted(start.agent_id, start.attempt, reason))

    def _fork(self, gang: Gang, parent_id: int, num_sampled: int, start: AgentStart) -> None:
        self._copy_blocks()  # the parent's last block may be one that still waits for its content
        has_room = self._memory.has_room(list(self._gangs.values()))
        max_agents = self.limits.max_sequences
        if reason := fork(
            gang, parent_id, num_sampled, start, max_agents=max_agents, has_room=has_room
        ):
            gang.events.append(Finished.unstarted(start.agent_id, start.attempt, reason))
        self._copy_blocks()

    # -- on the engine's thread: the loop ----------------------------------------------------

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._commands or self._stopping or self._busy):
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
        """One step; not busy afterwards means that only a command can change anything."""
        self._serve()
        self._busy = self._step()
        self._flush(everything=not self._busy)

    def _serve(self) -> None:
        """Admits what there is room for and brings agents onto their prefix."""
        now = self._monotonic()
        for gang in self._memory.serve(list(self._gangs.values()), now):
            gang.events.append(Admitted())
            # Now, and not with the prefill it is about: others can work on it meanwhile.
            self._on_events(gang.key, gang.tell(now))

    def _step(self) -> bool:
        """Computes what can be; False if nothing can."""
        owners: dict[int, Holder] = {}
        sequences: list[Sequence] = []
        draws: list[Draw] = []
        for gang in self._gangs.values():
            if gang.held or gang.waiting or not gang.agents:
                continue
            if gang.root.pending:
                owners[id(gang.root)] = (gang, None)
                sequences.append(gang.root)
                continue
            for agent in gang.agents.values():
                sequence = agent.sequence
                if sequence.state is not State.RUNNING or not sequence.num_computed:
                    continue
                if sequence.pending:
                    owners[id(sequence)] = (gang, agent)
                    sequences.append(sequence)
                else:  # at the end of the prefix, whose logits are known
                    draws.append((gang, agent, gang.prefix_logits))
        chunks = schedule(sequences, self._step_limits())
        if not chunks and not draws:
            return False
        began = self._monotonic()
        chunks = self._allocate(chunks, owners)
        self._copy_blocks()
        together = None
        if chunks:
            logits = self._runner.forward(chunks)
            found = self._advance(chunks, owners, logits)
            together = logits if len(found) == len(chunks) and not draws else None
            draws += found
        self._sample(draws, together)
        self._book(chunks, owners, self._monotonic() - began)
        return True

    def _step_limits(self) -> StepLimits:
        """A slice of time beside running agents, in positions by the speed that was measured."""
        limits, rate = self.limits, self.stats.prefill_tokens_per_s
        if not limits.prefill_slice_s or not rate:
            return limits.step
        share = max(limits.block_size, int(rate * limits.prefill_slice_s))
        return replace(limits.step, max_beside=share)

    def _allocate(self, chunks: Seq[Chunk], owners: dict[int, Holder]) -> list[Chunk]:
        """Blocks for the chunks; those of sequences that had to yield are left out."""
        wanted = [(owners[id(chunk.sequence)], chunk.length) for chunk in chunks]
        before = [chunk.sequence.num_computed for chunk in chunks]
        self._memory.allocate(list(self._gangs.values()), wanted)
        return [
            chunk
            for chunk, num_computed in zip(chunks, before, strict=True)
            if chunk.sequence.num_computed == num_computed and chunk.sequence.state is State.RUNNING
        ]

    def _advance(
        self, chunks: Seq[Chunk], owners: dict[int, Holder], rows: torch.Tensor
    ) -> list[Draw]:
        """Books computed chunks; returns the agents that can sample now, with their logits.

        rows: (chunks, vocab).
        """
        draws: list[Draw] = []
        for chunk, logits in zip(chunks, rows.unbind(), strict=True):
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
                self._prefix_done(gang, logits)
        return draws

    def _prefix_done(self, gang: Gang, logits: torch.Tensor) -> None:
        """Agents may now be brought onto it, and later gangs find it."""
        gang.prefix_logits = logits.clone()
        if logits.isfinite().all():  # else its blocks may hold what would spoil whoever finds them
            gang.name_prefix()
        if gang.prefilled:
            return
        gang.prefilled = True
        self.stats.num_cached += gang.num_cached
        gang.events.append(
            Prefilled(
                len(gang.start.prefix),
                gang.admitted_s - gang.arrival_s,
                self._monotonic() - gang.admitted_s,
                gang.num_cached,
                gang.num_steps + 1,
            )
        )

    def _copy_blocks(self) -> None:
        """Copies the partial blocks of fresh forks, all at once."""
        copies = [copy for gang in self._gangs.values() for copy in gang.copies]
        if not copies:
            return
        for gang in self._gangs.values():
            gang.copies.clear()
        self._runner.copy_blocks(copies)

    def _sample(self, draws: Seq[Draw], together: torch.Tensor | None) -> None:
        """Draws a token for each; ``together`` are their logits where they lie in one piece."""
        if not draws:
            return
        logits = together
        if logits is None:
            logits = torch.stack([logits for _, _, logits in draws])
        result = self._runner.sample(logits, [agent.row() for _, agent, _ in draws])
        self.stats.num_sampled += len(draws)
        for i, (gang, agent, _) in enumerate(draws):
            gang.take(
                agent, result.token_ids[i], result.logprobs[i], result.confidences[i], result.top[i]
            )

    def _book(self, chunks: Seq[Chunk], owners: dict[int, Holder], elapsed_s: float) -> None:
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
        num_read = num_shared + sum(done - shared for _, done, shared in shapes)
        self.stats.book_step(len(chunks), num_prefix, num_read, elapsed_s)

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
                waiting += agent.waits_for_room
                running += state is State.RUNNING and not agent.waits_for_room
                paused += state in (State.PAUSED, State.AWAITING_GRANT)
        self.stats.num_running, self.stats.num_waiting = running, waiting
        self.stats.num_paused = paused
        self.stats.num_free_blocks = self.pool.num_free
        counters, num_waiting = self.counters, sum(g.waiting for g in self._gangs.values())
        counters.num_waiting_gangs = num_waiting
        counters.num_running_gangs = len(self._gangs) - num_waiting
        counters.num_used_blocks = self.pool.num_blocks - self.pool.num_free
        counters.num_cached_blocks = self.pool.num_cached
        counters.num_preemptions = self._memory.num_preemptions

    def _fail_all(self) -> None:
        """Ends every admitted gang and begins with an empty pool; waiting gangs are unharmed."""
        self.pool = BlockPool(self.limits.num_blocks, self.limits.block_size)
        self._memory.pool = self.pool
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
