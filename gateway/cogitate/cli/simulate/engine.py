"""A modelled endpoint: prefills one after the other, decodes all its sequences in one batch.

All sequences advance by a token a step; a step takes what the machine's true speed says of the
batch, times noise drawn anew whenever the batch changes. Between such changes time passes evenly,
so that only arrivals and endings are events. Prefills do not slow the decoding down; a prefix block
that was computed here and not forgotten is not computed again.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field
from random import Random
from typing import Final

from cogitate.cli.simulate.demand import PREFIX_BLOCK
from cogitate.cli.simulate.machines import BLOCK, Machine
from cogitate.router.core.learning import Work
from cogitate.router.core.types import Load

_NOISE: Final = 0.05
_KEPT_BLOCKS: Final = 512  # of prefixes, the last used


@dataclass(slots=True)
class Engine:
    """One endpoint's state. Times are the simulation's seconds; it is told the time, never asks."""

    machine: Machine
    dice: Random
    at_s: float = 0.0
    steps: float = 0.0
    version: int = 0  # of the batch: what was foretold of an older one is void
    prefill_free_s: float = 0.0
    busy_s: float = 0.0
    token_s: float = 0.0  # sequences times time
    computed: int = 0
    asked: int = 0
    cached: OrderedDict[int, None] = field(default_factory=OrderedDict)
    # When a sequence ends, in steps; contemplation and agent.
    running: list[tuple[float, str, int]] = field(default_factory=list)
    waiting: int = 0
    positions: float = 0.0
    prompts: dict[tuple[str, int], float] = field(default_factory=dict)
    work: list[float] = field(default_factory=lambda: [0.0] * 6)
    noise: float = 1.0

    def prefill(self, now: float, prompt: int, blocks: tuple[int, ...], agents: int) -> float:
        """Takes a gang's prompt in; returns when it is computed."""
        found = 0
        for block in blocks:
            if block not in self.cached:
                break
            found += 1
        for block in blocks:
            self.cached[block] = None
            self.cached.move_to_end(block)
        while len(self.cached) > _KEPT_BLOCKS:
            self.cached.popitem(last=False)
        positions = max(1, prompt - found * PREFIX_BLOCK)
        took = positions * self.machine.truth.per_prompt_position_s
        self.work[4] += positions
        self.work[5] += took
        self.computed += positions
        self.asked += prompt
        if not self.running:
            self.busy_s += max(0.0, took - max(0.0, self.prefill_free_s - now))
        self.waiting += agents
        self.prefill_free_s = max(now, self.prefill_free_s) + took
        return self.prefill_free_s

    def start(self, now: float, contemplation: str, agents: dict[int, int], prompt: int) -> None:
        """Begins to decode agents: id -> tokens each will write."""
        self.advance(now)
        self.waiting -= len(agents)
        for agent, tokens in agents.items():
            heapq.heappush(self.running, (self.steps + tokens, contemplation, agent))
            share = prompt / len(agents) + tokens / 2
            self.prompts[contemplation, agent] = share
            self.positions += share
        self._changed()

    def next_end(self) -> float | None:
        """When the next sequence ends if nothing changes."""
        if not self.running:
            return None
        return self.at_s + max(0.0, self.running[0][0] - self.steps) * self._step_s()

    def ended(self, now: float) -> list[tuple[str, int]]:
        """Takes out the sequences that ended."""
        self.advance(now)
        out = []
        while self.running and self.running[0][0] <= self.steps + 1e-6:
            _, contemplation, agent = heapq.heappop(self.running)
            self.positions -= self.prompts.pop((contemplation, agent))
            out.append((contemplation, agent))
        self._changed()
        return out

    def drop(self, now: float) -> list[tuple[str, int, int]]:
        """The machine is gone: contemplation, agent and tokens each still had to write."""
        self.advance(now)
        lost = [(c, a, max(1, int(end - self.steps))) for end, c, a in sorted(self.running)]
        self.running.clear()
        self.prompts.clear()
        self.cached.clear()
        self.positions, self.waiting, self.prefill_free_s = 0.0, 0, now
        self.work = [0.0] * 6
        self._changed()
        return lost

    def advance(self, now: float) -> None:
        """Lets time pass."""
        elapsed, self.at_s = now - self.at_s, now
        if not self.running or elapsed <= 0:
            return
        steps = elapsed / self._step_s()
        self.steps += steps
        self.busy_s += elapsed
        batch = len(self.running)
        self.token_s += elapsed * batch
        for i, value in enumerate((steps, elapsed, steps * batch, steps * self.positions)):
            self.work[i] += value

    def load(self) -> Load:
        """What it reports."""
        steps, step_s, sequences, positions, prompt, prompt_s = self.work
        total = self.machine.description.total_blocks
        used = int(self.positions / BLOCK)
        return Load(
            running=len(self.running),
            waiting=self.waiting,
            free_blocks=max(0, total - used),
            work=Work(int(steps), step_s, int(sequences), int(positions), int(prompt), prompt_s),
        )

    def _step_s(self) -> float:
        return self.machine.truth.step_s(len(self.running), self.positions) * self.noise

    def _changed(self) -> None:
        self.version += 1
        self.noise = max(0.5, self.dice.gauss(1, _NOISE))
