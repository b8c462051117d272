"""An engine whose agents' tokens come from elsewhere, each agent's by a stream of its own.

Who writes the tokens is a ``TokenSource``: a server behind HTTP, or vLLM in this process. All else
is as in the native engine, and the same code: a ``core.gang.Gang`` follows the agents, their calls,
grants, pauses, forks and ends. Everything here runs on the event loop.

An agent that stands still has no call open, if the source can go on behind what the agent wrote;
else its call stays open and is not read, so that what was asked of the source is not lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from cogitate.agent_decoder.core.block_pool import BlockPool
from cogitate.agent_decoder.core.counters import EngineCounters
from cogitate.agent_decoder.core.events import (
    Admitted,
    Event,
    Finish,
    Finished,
    GangDone,
    Prefilled,
    Refused,
)
from cogitate.agent_decoder.core.forking import fork, snapshot
from cogitate.agent_decoder.core.gang import Gang
from cogitate.agent_decoder.core.load import EngineLimits, EngineStats
from cogitate.agent_decoder.core.memory import misfit
from cogitate.agent_decoder.core.sequence import Agent, Position, State
from cogitate.agent_decoder.core.starts import AgentStart, GangRules, GangStart
from cogitate.agent_decoder.engines import OnEvents
from cogitate.kit.errors import CogitateError
from cogitate.kit.telemetry import stack_of

log = logging.getLogger(__name__)

# A block holds an agent however long it is: memory is the source's, only places are counted.
ENDLESS = 1 << 40


@dataclass(frozen=True, slots=True)
class Drawn:
    """One token; what the source does not tell is None or empty."""

    token_id: int
    logprob: float | None = None
    confidence: float | None = None  # mean negative log probability of the likeliest tokens
    top: tuple[Sequence[int], Sequence[float]] = ((), ())


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a source tells at once."""

    tokens: Sequence[Drawn] = ()
    finish: Finish | None = None  # why the call ended, if no token says it
    num_prompt: int = 0  # of this call's prompt, told once
    num_cached: int = 0


class TokenSource(Protocol):
    """Draws tokens for one agent at a time, many agents at once."""

    rules: GangRules
    shares_prefix: bool  # what one call computed of a prompt, later ones find

    @property
    def ready(self) -> bool:
        """Whether calls are likely to succeed."""
        ...

    def continues(self, agent: Agent) -> bool:
        """Whether it can go on behind what the agent wrote."""
        ...

    def draw(self, gang: Gang, agent: Agent, max_tokens: int) -> AsyncGenerator[Chunk, None]:
        """Draws up to so many tokens behind what the agent has. Closing it ends the call.

        Raises CogitateError; its reason becomes the agent's.
        """
        ...


@dataclass(frozen=True, slots=True)
class Prices:
    """What a million tokens cost, in millionths of a US dollar."""

    prompt: int = 0
    sampled: int = 0


@dataclass(slots=True)
class _Live:
    """A gang, the calls of its agents, and the bell that rings when something changed."""

    gang: Gang
    calls: dict[int, tuple[Agent, asyncio.Task[None]]] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    flush: asyncio.TimerHandle | None = None
    num_prompt: int = 0
    num_cached: int = 0
    prompts: dict[int, tuple[int, int]] = field(default_factory=dict)  # by agent, cached ones apart


def seed_of(seed: int, agent_id: int, num_sampled: int) -> int:
    """31 bits of its own for every agent and for every place it goes on from."""
    text = f"{seed}:{agent_id}:{num_sampled}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big") >> 1


class StreamEngine:
    """Runs gangs on a source."""

    def __init__(
        self,
        source: TokenSource,
        limits: EngineLimits,
        on_events: OnEvents,
        prices: Prices = Prices(),
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits, self.stats, self.counters = limits, EngineStats(), EngineCounters()
        self._source, self._on_events, self._prices = source, on_events, prices
        self._monotonic = monotonic
        self._gangs: dict[int, _Live] = {}
        self._ended: set[asyncio.Task[None]] = set()  # cancelled calls that are still closing

    @property
    def ready(self) -> bool:
        """Whether the source is."""
        return self._source.ready

    @property
    def num_calls(self) -> int:
        """Calls that are open."""
        return sum(len(live.calls) for live in self._gangs.values())

    def start(self) -> None:
        """Nothing to begin with."""

    async def stop(self) -> None:
        """Kills every agent and waits until their calls are closed."""
        for key in list(self._gangs):
            self.abort(key, "SHUTDOWN")
        await asyncio.gather(*self._ended, return_exceptions=True)

    # -- commands ----------------------------------------------------------------------------

    def open(self, key: int, start: GangStart) -> None:
        """Takes a gang at once, or refuses it: there is no queue before the source's own."""
        now = self._monotonic()
        places = BlockPool(2 * self.limits.max_sequences + 2, ENDLESS)
        gang = Gang(key, start, self._source.rules, places, now)
        if refusal := self._refusal(gang):
            self._on_events(key, [refusal])
            return
        gang.root.state, gang.admitted_s = State.RUNNING, now
        gang.root.num_computed = len(gang.root.pending)
        gang.root.pending.clear()
        gang.events.append(Admitted())
        live = self._gangs[key] = _Live(gang)
        self._settle(live)

    def _refusal(self, gang: Gang) -> Refused | None:
        for start in gang.start.agents:
            if reason := misfit(gang, start):
                return Refused("INVALID_REQUEST", reason)
        if len(gang.agents) + self._num_agents() > self.limits.max_sequences:
            return Refused("REJECTED", "the endpoint has no room for so many agents now", 1.0)
        return None

    def _num_agents(self) -> int:
        return sum(len(live.gang.agents) for live in self._gangs.values())

    def add_agents(self, key: int, agents: Sequence[AgentStart]) -> None:
        """Widens a gang. Agents for which there is no room end with ERROR at once."""

        def act(gang: Gang) -> None:
            for start in agents:
                if misfit(gang, start):
                    reason = "INVALID_REQUEST"
                elif self._num_agents() >= self.limits.max_sequences:
                    reason = "REJECTED"
                else:
                    gang.add_agent(start)
                    continue
                gang.events.append(Finished.unstarted(start.agent_id, start.attempt, reason))

        self._with(key, act)

    def fork(self, key: int, parent_id: int, num_sampled: int, start: AgentStart) -> None:
        """Copies an agent. A copy that cannot be made ends with ERROR at once."""

        def act(gang: Gang) -> None:
            most = self.limits.max_sequences - self._num_agents() + len(gang.agents)
            if reason := fork(gang, parent_id, num_sampled, start, max_agents=most, has_room=False):
                gang.events.append(Finished.unstarted(start.agent_id, start.attempt, reason))

        self._with(key, act)

    def inject(
        self,
        key: int,
        agent_id: int,
        call_id: str,
        positions: Sequence[Position],
        origin: object = None,
    ) -> None:
        """Gives a paused agent what it waits for."""
        self._with(key, lambda gang: gang.inject(agent_id, call_id, positions, origin))

    def pause(self, key: int, agent_ids: Sequence[int]) -> None:
        """Has agents stand still."""
        self._with(key, lambda gang: gang.pause(agent_ids))

    def request_states(self, key: int, agent_ids: Sequence[int]) -> None:
        """Asks for a Snapshot of each agent that has not ended."""

        def act(gang: Gang) -> None:
            asked = [a for i, a in gang.agents.items() if i in agent_ids or not agent_ids]
            gang.events += map(snapshot, asked)

        self._with(key, act)

    def kill(self, key: int, agent_ids: Sequence[int], reason: str) -> None:
        """Stops agents."""
        self._with(key, lambda gang: gang.kill(agent_ids, reason))

    def grant(self, key: int, totals: dict[int, int]) -> None:
        """Raises token grants."""
        self._with(key, lambda gang: gang.grant(totals))

    def set_threshold(self, key: int, group_confidence: float) -> None:
        """Sets the confidence under which agents are killed."""
        self._with(key, lambda gang: gang.set_threshold(group_confidence))

    def hold(self, key: int, held: bool) -> None:
        """Stops reading calls of a gang whose reader is behind, or goes on."""
        self._with(key, lambda gang: setattr(gang, "held", held))

    def close(self, key: int) -> None:
        """No more commands will come."""
        self._with(key, Gang.close)

    def abort(self, key: int, reason: str) -> None:
        """Kills what still runs and closes."""

        def act(gang: Gang) -> None:
            gang.kill((), reason)
            gang.close()

        self._with(key, act)

    def _with(self, key: int, act: Callable[[Gang], None]) -> None:
        if live := self._gangs.get(key):
            act(live.gang)
            self._settle(live)

    # -- calls -------------------------------------------------------------------------------

    def _settle(self, live: _Live) -> None:
        """Brings the calls into line with what the agents do, and tells what happened."""
        gang = live.gang
        for agent in list(gang.agents.values()):
            if agent.sequence.state is State.WAITING:
                gang.start_agent(agent)
        for agent_id, (agent, task) in list(live.calls.items()):
            is_still = agent.sequence.state is not State.RUNNING and self._source.continues(agent)
            if is_still or gang.agents.get(agent_id) is not agent:
                self._hang_up(live, agent_id, task)
        for agent in list(gang.agents.values()):
            if self._source.shares_prefix and live.calls and not gang.prefilled:
                break  # the others find what this one computes
            if agent.sequence.state is State.RUNNING and agent.agent_id not in live.calls:
                task = asyncio.create_task(self._run(live, agent), name="call")
                live.calls[agent.agent_id] = (agent, task)
        live.news.set()
        live.news = asyncio.Event()
        self._flush(live)

    def _hang_up(self, live: _Live, agent_id: int, task: asyncio.Task[None]) -> None:
        del live.calls[agent_id]
        if task is not asyncio.current_task():  # else it sees by itself that it is not wanted
            task.cancel()
        self._ended.add(task)
        task.add_done_callback(self._ended.discard)

    def _is_mine(self, live: _Live, agent: Agent) -> bool:
        """Whether the running task is still the agent's call."""
        call = live.calls.get(agent.agent_id)
        return call is not None and call[1] is asyncio.current_task()

    async def _run(self, live: _Live, agent: Agent) -> None:
        """One call, from its prompt to its end."""
        gang, source = live.gang, self._source
        most = agent.granted if source.continues(agent) else agent.params.max_tokens
        limit = most - len(agent.sampled)
        end: tuple[Finish, str] | None = None
        try:
            async with aclosing(source.draw(gang, agent, limit)) as chunks:
                since = self._monotonic()
                num_drawn = 0
                async for chunk in chunks:
                    since = self._heard(live, agent, chunk, since)
                    num_drawn += len(chunk.tokens)
                    if num_drawn >= limit:
                        # The agent ends with these: the call's account comes behind them.
                        chunk = await self._with_rest(live, agent, chunk, chunks)
                    for drawn in chunk.tokens:
                        if not await self._may_take(live, agent):
                            return
                        gang.take(agent, drawn.token_id, drawn.logprob, drawn.confidence, drawn.top)
                        self.stats.num_sampled += 1
                    if chunk.finish is not None:
                        end = chunk.finish, ""
                    self._settle(live)
                    if not self._is_mine(live, agent):
                        return
        except CogitateError as error:
            log.warning("a call ended: %s", error.reason)
            end = Finish.ERROR, error.reason
        except Exception as error:
            log.error("a call failed: %s", stack_of(error))
            end = Finish.ERROR, "ENGINE_FAILURE"
        await self._end(live, agent, end)

    async def _with_rest(
        self, live: _Live, agent: Agent, chunk: Chunk, chunks: AsyncGenerator[Chunk, None]
    ) -> Chunk:
        """A chunk with all that follows it; what breaks then costs the account only."""
        tokens, finish = list(chunk.tokens), chunk.finish
        try:
            async for more in chunks:
                self._heard(live, agent, more, self._monotonic())
                tokens += more.tokens
                finish = more.finish or finish
        except CogitateError as error:
            log.warning("a call's account is missing: %s", error.reason)
        return Chunk(tokens, finish)

    async def _end(self, live: _Live, agent: Agent, end: tuple[Finish, str] | None) -> None:
        """The call is over, and the agent, too, unless it waits for a result or went on."""
        if self._is_mine(live, agent):
            waits = agent.sequence.state is State.AWAITING_GRANT
            if not agent.pending_call_id and (waits or await self._may_take(live, agent)):
                # A source that just stops has no more room for the agent.
                live.gang.finish(agent, *(end or (Finish.LENGTH, "")))
        if self._is_mine(live, agent):
            del live.calls[agent.agent_id]
        self._settle(live)

    async def _may_take(self, live: _Live, agent: Agent) -> bool:
        """Waits until the agent may have a token; False if this call is not wanted any more."""
        while self._is_mine(live, agent) and not agent.pending_call_id:
            if agent.sequence.state is State.RUNNING and not live.gang.held:
                return True
            await live.news.wait()
        return False

    def _heard(self, live: _Live, agent: Agent, chunk: Chunk, since_s: float) -> float:
        """Books a chunk's prompt and time; the first of a gang says that its prefix is there."""
        gang, now = live.gang, self._monotonic()
        live.num_prompt += chunk.num_prompt
        live.num_cached += chunk.num_cached
        self.stats.num_cached += chunk.num_cached
        if not gang.prefilled:
            gang.prefilled = True
            num_positions = chunk.num_prompt or len(gang.start.prefix)
            took_s = now - gang.admitted_s
            gang.events.append(Prefilled(num_positions, 0.0, took_s, chunk.num_cached, 1))
            self.stats.book_step(0, num_positions - chunk.num_cached, 0, took_s)
            return now
        if chunk.num_prompt:  # told once a call, and this is the path of every token
            prompt, cached = live.prompts.get(agent.agent_id, (0, 0))
            live.prompts[agent.agent_id] = prompt + chunk.num_prompt, cached + chunk.num_cached
        self.stats.num_prompt += chunk.num_prompt - chunk.num_cached
        if chunk.tokens and next(iter(live.calls), None) == agent.agent_id:
            # The calls go in step, more or less: one of them tells the time for all.
            each_s = (now - since_s) / len(chunk.tokens)
            for _ in chunk.tokens:
                # The source draws for all gangs at once: its step is of all their calls.
                self.stats.book_step(self.num_calls, 0, 0, each_s)
            gang.num_steps += len(chunk.tokens)
            gang.decode_s += now - since_s
            self.counters.step_s += now - since_s
        return now

    # -- events ------------------------------------------------------------------------------

    def _flush(self, live: _Live, *, due: bool = False) -> None:
        """Hands out the events that are due, and lets go of a gang that is done."""
        gang, now = live.gang, self._monotonic()
        if gang.close_if_done():
            self._gangs.pop(gang.key, None)
        if due and live.flush is not None:
            live.flush = None
        if gang.events and (due or gang.news_due(now, self.limits.flush_interval_s)):
            events = [self._priced(live, event) for event in gang.tell(now)]
            self.counters.hear(gang.key, events)
            self._on_events(gang.key, events)
        elif gang.events and live.flush is None:
            later = partial(self._flush, live, due=True)
            interval_s = self.limits.flush_interval_s
            live.flush = asyncio.get_running_loop().call_later(interval_s, later)
        self._count()

    def _priced(self, live: _Live, event: Event) -> Event:
        """Accounts with what prompts took, the gang's with what a provider asks for it all."""
        if isinstance(event, Finished):
            prompt, cached = live.prompts.pop(event.agent_id, (0, 0))
            return replace(event, num_prompt=prompt, num_cached=cached)
        if not isinstance(event, GangDone):
            return event
        prompt, prices = live.num_prompt, self._prices
        cost = (prompt * prices.prompt + event.num_sampled * prices.sampled + 999_999) // 1_000_000
        return replace(event, num_prompt=prompt, num_cached=live.num_cached, cost_micro_usd=cost)

    def _count(self) -> None:
        states = [a.sequence.state for x in self._gangs.values() for a in x.gang.agents.values()]
        self.stats.num_running = states.count(State.RUNNING)
        self.stats.num_paused = len(states) - self.stats.num_running
        self.counters.num_running_gangs = len(self._gangs)
