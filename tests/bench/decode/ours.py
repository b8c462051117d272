"""Our engine as a worker of the benchmark: the engine itself, without gRPC."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from cogitate.agent_decoder.core import events as ev
from cogitate.agent_decoder.core.load import EngineLimits
from cogitate.agent_decoder.core.sampling import SamplingParams
from cogitate.agent_decoder.core.sequence import Position
from cogitate.agent_decoder.core.starts import AgentStart, GangStart
from cogitate.agent_decoder.engine import Engine
from cogitate.agent_decoder.model import loader
from cogitate.agent_decoder.model.backend import Wanted

from tests.bench.decode.worker import Job, Timing, serve

NUM_BLOCKS, BLOCK_SIZE = 8192, 16  # untouched blocks cost nothing


class Ours:
    """Runs one or several gangs to their end."""

    def __init__(self, directory: str, dtype: str, threads: int) -> None:
        wanted = Wanted(device="cpu", dtype=dtype, threads=threads, block_size=BLOCK_SIZE)
        model = loader.load(Path(directory).name, Path(directory), wanted)
        limits = EngineLimits(
            NUM_BLOCKS, BLOCK_SIZE, 256, 64, 0, flush_interval_s=0.05, prefill_slice_s=0.1
        )
        self._engine = Engine(model, limits, self._hear)
        self._engine.start()
        self._first: dict[int, float] = {}
        self._ended: set[int] = set()
        self._prefill_s = 0.0
        self._news = threading.Condition()
        self._next_key = 0

    def _hear(self, key: int, events: list[ev.Event]) -> None:
        with self._news:
            for event in events:
                if isinstance(event, ev.Delta):
                    self._first.setdefault(key, time.perf_counter())
                elif isinstance(event, ev.Prefilled):
                    self._prefill_s = event.prefill_s
                elif isinstance(event, ev.GangDone | ev.Refused):
                    self._ended.add(key)
            self._news.notify_all()

    def run(self, job: Job) -> Timing:
        """Opens the gangs at once and waits for all of them."""
        params = SamplingParams(
            temperature=job.temperature,
            max_tokens=job.num_tokens,
            min_tokens=job.num_tokens if job.bans_end else 0,
            ignore_eos=not job.bans_end,
        )
        began = time.perf_counter()
        keys = []
        for prompt in job.prompts:
            self._next_key += 1
            keys.append(self._next_key)
            agents = tuple(AgentStart(i, 1, params, seed=job.seed) for i in range(job.agents))
            # A salt of its own: no gang may profit from one before.
            start = GangStart(tuple(map(Position, prompt)), agents, salt=str(self._next_key))
            self._engine.open(self._next_key, start)
            self._engine.close(self._next_key)
        with self._news:
            self._news.wait_for(lambda: self._ended.issuperset(keys))
        ended = time.perf_counter()
        first_s = max(self._first[key] for key in keys) - began
        return Timing(ended - began, first_s, prefill_s=self._prefill_s)


if __name__ == "__main__":
    serve(Ours)
