"""Evaluations: intervals hold their estimates, order does not matter, resumed runs are whole."""

from __future__ import annotations

import asyncio
import random
import tempfile
from pathlib import Path

import pytest
from cogitate.cli.measure.ask import MeshAway, SettingRefused
from cogitate.cli.measure.compare import measured, rows
from cogitate.cli.measure.paired import difference, mcnemar, mean_difference, ratio
from cogitate.cli.measure.results import FILE, BadResults, Record, Results, read
from cogitate.cli.measure.run import Run, in_turn
from cogitate.cli.measure.setting import JUDGE, RETRY, Setting, grid
from cogitate.cli.measure.statistics import Outcome, row, wilson
from cogitate.evals.question import Question
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.property

GRID = grid(Setting(1), (1, 4), ("vote",), ("all", "unbeatable"), (JUDGE, RETRY))


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    used, killed, lost = (draw(st.integers(0, 500)) for _ in range(3))
    return Outcome(
        right=draw(st.booleans()),
        latency_s=draw(st.floats(0.001, 100)),
        tokens=used + killed + lost,
        used_tokens=used,
        killed_tokens=killed,
        lost_tokens=lost,
        first_answer_s=draw(st.none() | st.floats(0.001, 100)),
        agreement=draw(st.none() | st.floats(0, 1)),
        error=draw(st.sampled_from(["", "", "", "NO_ENDPOINT"])),
    )


@given(st.integers(1, 2000), st.data())
def test_wilson_contains_its_share_and_stays_a_share(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    narrow = wilson(successes * 4, trials * 4)
    assert narrow[1] - narrow[0] <= high - low


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=200))
def test_a_difference_is_in_its_interval_and_swaps_its_sign(gains: list[float]) -> None:
    one, other = mean_difference(gains), mean_difference([-gain for gain in gains])
    assert -1 <= one.low <= one.value <= one.high <= 1
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_a_probability_and_symmetric(first: int, second: int) -> None:
    assert 0 < mcnemar(first, second) <= 1
    assert mcnemar(first, second) == mcnemar(second, first)


@settings(max_examples=10)
@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)), min_size=1, max_size=30))
def test_a_ratio_is_in_its_interval_turns_over_and_repeats(
    pairs: list[tuple[float, float]],
) -> None:
    one, other = ratio(pairs), ratio([(second, first) for first, second in pairs])
    assert one is not None
    assert other is not None
    assert one.low <= one.value <= one.high
    assert one.value * other.value == pytest.approx(1)
    assert one == ratio(pairs)


@given(st.lists(outcomes(), max_size=30), st.randoms(use_true_random=False))
def test_rows_do_not_depend_on_the_order(made: list[Outcome], dice: random.Random) -> None:
    shuffled = made[:]
    dice.shuffle(shuffled)
    one = row(made)
    assert one == row(shuffled)
    assert one.failed + sum(not outcome.error for outcome in made) == one.runs == len(made)
    total = sum(outcome.tokens for outcome in made)
    assert one.tokens_per_right == (total / one.right if one.right else None)


@settings(max_examples=10)
@given(st.lists(st.tuples(outcomes(), outcomes()), min_size=1, max_size=20))
def test_a_difference_counts_what_only_one_had_right(pairs: list[tuple[Outcome, Outcome]]) -> None:
    found = difference([[pair] for pair in pairs])
    gained = (found.only_second - found.only_first) / len(pairs)
    assert found.accuracy.value == pytest.approx(gained)


@given(st.integers(0, 100))
def test_settings_take_turns_and_retries_come_last(turn: int) -> None:
    turned = in_turn(GRID, turn)
    assert sorted(turned, key=GRID.index) == GRID
    assert turned[-1].kind == RETRY
    firsts = {in_turn(GRID, turn + i)[0] for i in range(len(GRID))}
    assert firsts == {one for one in GRID if one.kind != RETRY}


# -- resuming ------------------------------------------------------------------------------------


class Stopped(Exception):
    """Stands for whatever ends a run."""


class Silent:
    """Watches nothing."""

    def done(self, record: Record) -> None:
        """Does nothing."""

    def refused(self, setting: Setting) -> None:
        """Does nothing."""


def question(number: int) -> Question:
    """A question with its number as the answer."""
    return Question(str(number), "set", str(number), None, str(number), str(number).__eq__)


class Mesh:
    """Answers by what it is asked alone, counts, and stops after `lives` answers."""

    def __init__(self, lives: int = 1_000_000) -> None:
        self.lives = lives
        self.asked: list[tuple[str, Setting, int, int]] = []

    async def ask(self, asked: Question, setting: Setting, seed: int, budget: int) -> Outcome:
        await asyncio.sleep(0)
        if len(self.asked) >= self.lives:
            raise Stopped
        self.asked.append((asked.id, setting, seed, budget))
        dice = random.Random(f"{asked.id} {setting} {seed} {budget}")
        tokens = dice.randrange(1, 100)
        return Outcome(dice.random() < 0.5, round(dice.random(), 6), tokens, tokens)


def ran(folder: Path, mesh: Mesh, repeats: int, concurrency: int) -> Run:
    """Runs into a folder as far as the mesh lives."""
    with Results(folder) as results:
        run = Run([question(i) for i in range(3)], GRID, results, 7, repeats, concurrency)
        try:
            asyncio.run(run.go(mesh.ask, Silent()))
        except Stopped:
            pass
        return run


@settings(max_examples=20)
@given(
    lives=st.lists(st.integers(0, 20), max_size=4),
    torn=st.integers(0, 400),
    repeats=st.integers(1, 2),
    concurrency=st.integers(1, 4),
)
def test_a_resumed_run_is_an_uninterrupted_one(
    lives: list[int], torn: int, repeats: int, concurrency: int
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        whole, resumed = Path(scratch, "whole"), Path(scratch, "resumed")
        run = ran(whole, Mesh(), repeats, 1)
        for count in lives:
            ran(resumed, Mesh(count), repeats, concurrency)
        if lives and (data := (resumed / FILE).read_bytes()):
            # Killed in the middle of writing its last lines.
            (resumed / FILE).write_bytes(data[: max(0, len(data) - torn)])
        last = Mesh()
        ran(resumed, last, repeats, concurrency)
        assert run.total == 3 * len(GRID) * repeats == len(read(whole))
        first, second = ({one.key: one.outcome for one in read(f)} for f in (whole, resumed))
        assert first == second
        assert len(read(resumed)) == run.total, "nothing is there twice"
        assert rows(measured(read(whole))) == rows(measured(read(resumed)))
        again = Mesh()
        ran(resumed, again, repeats, concurrency)
        assert again.asked == []
        # A retry may spend what its gang spent, also when the gang ran in an earlier life.
        spent = {(one.unit.question, one.unit.seed, one.setting): one for one in read(resumed)}
        for asked, setting, seed, budget in last.asked:
            if setting.kind == RETRY:
                assert budget == spent[asked, seed, setting.gang()].outcome.tokens


def test_a_refused_setting_ends_alone_and_an_absent_mesh_ends_all() -> None:
    class Picky(Mesh):
        async def ask(self, asked: Question, setting: Setting, seed: int, budget: int) -> Outcome:
            if setting.quorum == "unbeatable":
                raise SettingRefused("unknown quorum")
            return await super().ask(asked, setting, seed, budget)

    with Results() as results:
        run = Run([question(i) for i in range(3)], GRID, results)
        asyncio.run(run.go(Picky().ask, Silent()))
        assert [one.quorum for one in run.refusals] == ["unbeatable"]
        assert len(list(results)) == 3 * (len(GRID) - 1)

    class Gone(Mesh):
        async def ask(self, asked: Question, setting: Setting, seed: int, budget: int) -> Outcome:
            raise MeshAway("nobody answers")

    with Results() as results:
        with pytest.raises(MeshAway):
            asyncio.run(Run([question(0)], GRID, results).go(Gone().ask, Silent()))
        assert list(results) == []


def test_two_evaluations_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with Results(tmp_path), pytest.raises(BadResults, match="another evaluation"):
        Results(tmp_path)
    with Results(tmp_path) as results:
        assert list(results) == []


@pytest.mark.parametrize("line", ["{}", "no", '{"key": 1, "setting": {"shape": 3}}'])
def test_a_line_that_is_no_result_is_named(line: str, tmp_path: Path) -> None:
    ran(tmp_path, Mesh(), 1, 1)
    with (tmp_path / FILE).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(BadResults, match=f"line {3 * len(GRID) + 1} is not a result"):
        Results(tmp_path)
    with pytest.raises(BadResults, match="no results"):
        read(tmp_path / "elsewhere")
