"""The prefix cache: what was computed is found again, by its own tenant, and changes nothing."""

from __future__ import annotations

import threading
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from cogitate.agent_decoder.core import events as ev
from cogitate.agent_decoder.core.load import EngineLimits
from cogitate.agent_decoder.core.prefix_hashes import block_names
from cogitate.agent_decoder.core.sampling import SamplingParams
from cogitate.agent_decoder.core.sequence import Position
from cogitate.agent_decoder.core.starts import AgentStart, GangStart
from cogitate.agent_decoder.engine import Engine
from cogitate.agent_decoder.model import loader
from cogitate.agent_decoder.model.backend import Wanted
from cogitate.agent_decoder.model.loader import LoadedModel
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.tiny_model import write_tiny_model

pytestmark = pytest.mark.property

SIZE = 16
positions = st.lists(st.integers(0, 5).map(Position), max_size=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    directory = write_tiny_model(Path(tmp_path_factory.mktemp("models")))
    return loader.load("tiny", directory, Wanted(device="cpu", threads=1))


class Runs:
    """Runs gangs to their end, one after another."""

    def __init__(self, model: LoadedModel, num_blocks: int) -> None:
        self._said: dict[int, list[ev.Event]] = defaultdict(list)
        self._done = threading.Event()
        limits = EngineLimits(num_blocks, SIZE, 8, 4, 0)
        self.engine = Engine(model, limits, self._hear)
        self.engine.start()

    def _hear(self, key: int, events: list[ev.Event]) -> None:
        self._said[key] += events
        if any(isinstance(e, ev.GangDone | ev.Refused) for e in events):
            self._done.set()

    def play(self, prefix: list[int], salt: str = "a") -> tuple[int, list[int]]:
        """Positions found cached, and the tokens of two agents, one after the other."""
        key = len(self._said) + 1
        self._done.clear()
        params = SamplingParams(temperature=0.9, max_tokens=9, ignore_eos=True)
        agents = tuple(AgentStart(i, 1, params, seed=3) for i in range(2))
        self.engine.open(key, GangStart(tuple(map(Position, prefix)), agents, salt=salt))
        self.engine.close(key)
        assert self._done.wait(30)
        said = self._said[key]
        (prefilled,) = (e for e in said if isinstance(e, ev.Prefilled))
        (done,) = (e for e in said if isinstance(e, ev.GangDone))
        assert (prefilled.num_cached, prefilled.num_positions) == (done.num_cached, len(prefix))
        deltas = sorted(
            (e for e in said if isinstance(e, ev.Delta)), key=lambda e: (e.agent_id, e.token_offset)
        )
        return prefilled.num_cached, [e.token_id for e in deltas]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 33, 50])
def test_a_prefix_is_found_again_and_the_tokens_are_the_same(
    model: LoadedModel, length: int
) -> None:
    """Invariant 3: bit-equal, since the native step computes a position the same in any step."""
    runs, prefix = Runs(model, 64), [20 + i % 40 for i in range(length)]
    try:
        first, second = runs.play(prefix), runs.play(prefix)
        # The last position is computed anyway: what comes after it is not cached.
        assert (first[0], second[0]) == (0, (length - 1) // SIZE * SIZE)
        assert first[1] == second[1]
        longer = runs.play([*prefix, 9, 9, 9])
        assert longer[0] == length // SIZE * SIZE
    finally:
        runs.engine.stop()
    runs.engine.pool.check_integrity()


def test_another_tenant_finds_nothing(model: LoadedModel) -> None:
    """Invariant 10: neither tokens nor time tell one tenant what another asked."""
    runs, prefix = Runs(model, 64), list(range(20, 60))
    try:
        runs.play(prefix, "a")
        assert runs.play(prefix, "b")[0] == 0
        assert runs.play(prefix, "a")[0] == 32
    finally:
        runs.engine.stop()


def test_memory_that_is_needed_is_given(model: LoadedModel) -> None:
    """The cache never stands in the way of a gang; what was used longest ago is forgotten."""
    runs = Runs(model, 8)
    try:
        for i in range(6):
            prefix = [20 + (i * 7 + j) % 50 for j in range(40)]
            assert runs.play(prefix)[1]
        assert runs.play([20 + j % 50 for j in range(40)])[0] == 0
    finally:
        runs.engine.stop()
    assert runs.engine.pool.num_free == 8


def test_what_is_not_finite_is_not_found_again(model: LoadedModel) -> None:
    """A position that runs over may spoil those before it in its chunk, for its own gang only."""
    runs, prefix = Runs(model, 64), [20 + i % 40 for i in range(40)]
    broken = np.full(model.config.hidden_size, np.nan, np.float32)
    try:
        spoilt = (*map(Position, prefix), Position(0, broken), Position(0, broken))
        runs.engine.open(
            99, GangStart(spoilt, (AgentStart(0, 1, SamplingParams(), seed=3),), salt="a")
        )
        runs.engine.close(99)
        assert runs._done.wait(30)
        (end,) = (e for e in runs._said[99] if isinstance(e, ev.Finished))
        assert (end.finish, end.kill_reason) == (ev.Finish.ERROR, "NOT_FINITE")
        assert runs.play(prefix)[0] == 0
    finally:
        runs.engine.stop()


@given(
    first=positions, second=positions, size=st.integers(1, 4), salts=st.sampled_from(["aa", "ab"])
)
def test_equal_names_mean_equal_pasts(
    first: list[Position], second: list[Position], size: int, salts: str
) -> None:
    a, b = block_names(first, size, salts[0]), block_names(second, size, salts[1])
    for i, (left, right) in enumerate(zip(a, b, strict=False)):
        same = salts[0] == salts[1] and first[: (i + 1) * size] == second[: (i + 1) * size]
        assert (left == right) == same


def test_an_image_is_told_from_a_token_and_from_another_image() -> None:
    row, other = np.zeros(4, np.float32), np.ones(4, np.float32)
    made = [
        block_names([Position(7, embedding)], 1, "")[0] for embedding in (None, row, other, row)
    ]
    assert len(set(made)) == 3 and made[1] == made[3]
