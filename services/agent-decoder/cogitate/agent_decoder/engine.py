"""The engine: one thread that owns the model, the cache and every gang, and steps them.

One step is: apply commands → admit waiting gangs → schedule → forward → sample → postprocess.
Commands arrive from any thread by ``submit``; events leave in one batch a gang and step through
``on_events``, called on the engine's thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import torch
from cogitate.agent_decoder.core.block_pool import BlockPool
from cogitate.agent_decoder.core.events import Admitted, Event, Finish, Prefilled, Refused
from cogitate.agent_decoder.core.gang import AgentStart, Gang, GangRules, GangStart
from cogitate.agent_decoder.core.sampling import sample
from cogitate.agent_decoder.core.scheduler import Chunk, StepLimits, schedule
from cogitate.agent_decoder.core.sequence import Agent, Position, Sequence, State
from cogitate.agent_decoder.model.batch import build_step
from cogitate.agent_decoder.model.loader import LoadedModel

log = logging.getLogger(__name__)

# Weight of the newest step in the running means of the load report.
SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Sizes of the engine."""

    num_blocks: int
    block_size: int
    max_sequences: int
    max_waiting_gangs: int
    max_injected: int
    step: StepLimits = field(default_factory=StepLimits)


@dataclass(slots=True)
class EngineStats:
    """What the load report tells; read by other threads, written by the engine's only."""

    num_running: int = 0
    num_waiting: int = 0
    num_paused: int = 0
    num_free_blocks: int = 0
    prefill_tokens_per_s: float = 0.0
    step_s: float = 0.0
    step_batch: float = 0.0
    num_sampled: int = 0
    num_prompt: int = 0


@dataclass(frozen=True, slots=True)
class _Owner:
    """Whom a sequence belongs to; no agent means it is the gang's prefix."""

    sequence: Sequence
    gang: Gang
    agent: Agent | None


# A command runs on the engine's thread with the engine's gangs at hand.
Command = Callable[["Engine"], None]


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
        self._on_events = on_events
        self._monotonic = monotonic
        self.max_model_len = min(
            model.llama.config.max_position_embeddings, limits.num_blocks * limits.block_size
        )
        self.pool = BlockPool(limits.num_blocks, limits.block_size)
        self._cache = model.llama.new_cache(limits.num_blocks * limits.block_size)
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
        self.submit(lambda engine: engine._add_agents(key, agents))

    def inject(self, key: int, agent_id: int, call_id: str, positions: Seq[Position]) -> None:
        """Gives a paused agent what it waits for."""
        self._with_gang(key, lambda gang: gang.inject(agent_id, call_id, positions))

    def kill(self, key: int, agent_ids: Seq[int], reason: str) -> None:
        """Stops agents; empty means all."""
        self._with_gang(key, lambda gang: gang.kill(agent_ids, reason))

    def grant(self, key: int, totals: dict[int, int]) -> None:
        """Raises token grants."""
        self._with_gang(key, lambda gang: gang.grant(totals))

    def set_threshold(self, key: int, group_confidence: float) -> None:
        """Sets the confidence under which agents are killed."""
        self._with_gang(key, lambda gang: setattr(gang, "threshold", group_confidence))

    def close(self, key: int, *, kill_reason: str = "") -> None:
        """No more commands will come; with a reason, what still runs is killed."""

        def command(engine: Engine) -> None:
            if gang := engine._gangs.get(key):
                if kill_reason:
                    gang.kill((), kill_reason)
                gang.closed = True

        self.submit(command)

    def _with_gang(self, key: int, act: Callable[[Gang], None]) -> None:
        def command(engine: Engine) -> None:
            if gang := engine._gangs.get(key):
                act(gang)

        self.submit(command)

    # -- on the engine's thread --------------------------------------------------------------

    def _open(self, key: int, start: GangStart) -> None:
        gang = Gang(key, start, self._rules, self.pool, self._monotonic())
        refusal = self._refusal(gang)
        if refusal is not None:
            self._on_events(key, [refusal])
            return
        self._gangs[key] = gang

    def _refusal(self, gang: Gang) -> Refused | None:
        """Why the gang can never, or not now, be queued."""
        if len(gang.start.prefix) >= self.max_model_len:
            return Refused(
                "INVALID_REQUEST",
                f"the conversation takes {len(gang.start.prefix)} positions, the model has room "
                f"for {self.max_model_len}; shorten it",
            )
        too_many = len(gang.start.agents) > self.limits.max_sequences
        if too_many or gang.blocks_needed() > self.pool.num_blocks:
            return Refused(
                "INVALID_REQUEST",
                f"{len(gang.start.agents)} agents of this length never fit this endpoint; "
                "ask for fewer or shorter ones",
            )
        waiting = sum(g.root.state is State.WAITING for g in self._gangs.values())
        if waiting >= self.limits.max_waiting_gangs:
            return Refused("REJECTED", "the endpoint's queue is full", retry_after_s=1.0)
        return None

    def _add_agents(self, key: int, agents: Seq[AgentStart]) -> None:
        gang = self._gangs.get(key)
        for start in agents if gang else ():
            assert gang is not None
            if not self.pool.can_reserve(gang.blocks_of(start)):
                self._on_events(key, [Refused("REJECTED", "no room for more agents", 1.0)])
                return
            gang.add_agent(start)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._commands or self._stopping or self._has_work()):
                    self._wake.wait()
                commands, self._commands = self._commands, []
                stopping = self._stopping
            for command in commands:
                command(self)
            if stopping:
                self._end_all("SHUTDOWN")
                return
            self._admit()
            try:
                self._step()
            except Exception as error:
                # One broken step must not hang every stream: end them, stay alive.
                log.exception("engine step failed: %s", type(error).__name__)
                self._fail_all()
            self._flush()

    def _has_work(self) -> bool:
        return self._next_admissible() is not None or any(
            (gang.root.state is State.RUNNING and gang.root.pending)
            or any(a.sequence.state is State.RUNNING for a in gang.agents.values())
            for gang in self._gangs.values()
        )

    def _next_admissible(self) -> Gang | None:
        """The longest-waiting gang if there is room for it: small ones do not overtake it."""
        waiting = [g for g in self._gangs.values() if g.root.state is State.WAITING]
        if not waiting:
            return None
        head = waiting[0]
        num_sequences = sum(len(g.agents) for g in self._gangs.values())
        room = num_sequences + len(head.start.agents) <= self.limits.max_sequences
        return head if room and self.pool.can_reserve(head.blocks_needed()) else None

    def _admit(self) -> None:
        while gang := self._next_admissible():
            gang.admit(self._monotonic())
            gang.events.append(Admitted())

    def _step(self) -> None:
        owners = self._owners()
        chunks = schedule((owner.sequence for owner in owners.values()), self.limits.step)
        drawing = [
            (gang, agent)
            for gang in self._gangs.values()
            if gang.prefix_logits is not None
            for agent in gang.agents.values()
            if agent.draws_from_prefix and agent.sequence.state is State.RUNNING
        ]
        if not chunks and not drawing:
            return
        began = self._monotonic()
        for chunk in chunks:
            owners[id(chunk.sequence)].gang.allocate(chunk.sequence, chunk.length)
        self._copy_blocks()
        draws: list[tuple[Gang, Agent, torch.Tensor]] = [
            (gang, agent, gang.prefix_logits) for gang, agent in drawing
        ]
        if chunks:
            draws += self._forward(chunks, owners)
        self._sample(draws)
        self._book(chunks, owners, self._monotonic() - began)

    def _owners(self) -> dict[int, _Owner]:
        """Sequences in order of arrival, by identity, with whom they belong to."""
        owners: dict[int, _Owner] = {}
        for gang in self._gangs.values():
            if gang.root.pending:
                owners[id(gang.root)] = _Owner(gang.root, gang, None)
            for agent in gang.agents.values():
                owners[id(agent.sequence)] = _Owner(agent.sequence, gang, agent)
        return owners

    def _forward(
        self, chunks: Seq[Chunk], owners: dict[int, _Owner]
    ) -> list[tuple[Gang, Agent, torch.Tensor]]:
        """Computes the chunks and returns the agents that can sample now, with their logits."""
        llama = self.model.llama
        step = build_step(chunks, self.pool.block_size, llama.device)
        logits = llama.forward(step, self._cache).cpu()
        draws = []
        for row, chunk in enumerate(chunks):
            sequence = chunk.sequence
            sequence.num_computed += chunk.length
            for _ in range(chunk.length):
                sequence.pending.popleft()
            owner = owners[id(sequence)]
            if sequence.pending:
                continue
            if owner.agent is not None:
                draws.append((owner.gang, owner.agent, logits[row]))
                continue
            draws += self._prefix_done(owner.gang, logits[row])
        return draws

    def _prefix_done(
        self, gang: Gang, logits: torch.Tensor
    ) -> list[tuple[Gang, Agent, torch.Tensor]]:
        """Forks the agents off the prefix; those without an opening sample at once."""
        now = self._monotonic()
        gang.prefix_logits = logits.clone()
        gang.events.append(
            Prefilled(
                len(gang.start.prefix), gang.admitted_s - gang.arrival_s, now - gang.admitted_s
            )
        )
        for agent in gang.agents.values():
            gang.fork_from_prefix(agent)
        return [(gang, a, logits) for a in gang.agents.values() if a.draws_from_prefix]

    def _copy_blocks(self) -> None:
        """Copies the partial blocks of fresh forks, all at once."""
        copies = [copy for gang in self._gangs.values() for copy in gang.copies]
        if not copies:
            return
        for gang in self._gangs.values():
            gang.copies.clear()
        offsets = torch.arange(self.pool.block_size, device=self.model.llama.device)
        pairs = torch.tensor(copies, device=self.model.llama.device) * self.pool.block_size
        sources = (pairs[:, :1] + offsets).reshape(-1)
        targets = (pairs[:, 1:] + offsets).reshape(-1)
        for keys, values in self._cache:
            keys[targets] = keys[sources]
            values[targets] = values[sources]

    def _sample(self, draws: Seq[tuple[Gang, Agent, torch.Tensor]]) -> None:
        if not draws:
            return
        agents = [agent for _, agent, _ in draws]
        result = sample(
            torch.stack([logits for _, _, logits in draws]),
            [a.params for a in agents],
            [a.seed for a in agents],
            [a.agent_id for a in agents],
            [a.sampled for a in agents],
        )
        self.stats.num_sampled += len(draws)
        for i, (gang, agent, _) in enumerate(draws):
            gang.take(
                agent, result.token_ids[i], result.logprobs[i], result.confidences[i], result.top[i]
            )

    def _book(
        self,
        chunks: Seq[Chunk],
        owners: dict[int, _Owner],
        elapsed_s: float,
    ) -> None:
        """Steps and time for the gangs, running means for the load report."""
        for gang in {id(g): g for g in (owners[id(c.sequence)].gang for c in chunks)}.values():
            gang.num_steps += 1
            gang.decode_s += elapsed_s
        prefix = sum(c.length for c in chunks if owners[id(c.sequence)].agent is None)
        self.stats.num_prompt += prefix
        if prefix:
            rate = prefix / max(elapsed_s, 1e-9)
            self.stats.prefill_tokens_per_s = _smooth(self.stats.prefill_tokens_per_s, rate)
        elif chunks:
            self.stats.step_s = _smooth(self.stats.step_s, elapsed_s)
            self.stats.step_batch = _smooth(self.stats.step_batch, float(len(chunks)))

    def _flush(self) -> None:
        """Hands out each gang's events of this step, and lets go of gangs that are done."""
        for gang in list(self._gangs.values()):
            if gang.close_if_done():
                del self._gangs[gang.key]
            if gang.events:
                events, gang.events = gang.events, []
                self._on_events(gang.key, events)
        states = [a.sequence.state for g in self._gangs.values() for a in g.agents.values()]
        self.stats.num_running = states.count(State.RUNNING)
        self.stats.num_waiting = states.count(State.WAITING) + sum(
            len(g.start.agents) for g in self._gangs.values() if g.root.state is State.WAITING
        )
        self.stats.num_paused = states.count(State.PAUSED) + states.count(State.AWAITING_GRANT)
        self.stats.num_free_blocks = self.pool.num_available

    def _fail_all(self) -> None:
        for gang in self._gangs.values():
            for agent in list(gang.agents.values()):
                gang.finish(agent, Finish.ERROR)
            gang.closed = True
            if gang.root.state is State.WAITING:
                gang.events.append(Refused("ENGINE_FAILURE", "the engine failed"))

    def _end_all(self, reason: str) -> None:
        for gang in self._gangs.values():
            gang.kill((), reason)
            gang.closed = True
        self._flush()


def _smooth(mean: float, value: float) -> float:
    return value if mean == 0.0 else mean + SMOOTHING * (value - mean)
