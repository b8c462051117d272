"""What became of tokens, and rates of what only grows."""

from __future__ import annotations

from collections import deque

import pytest
from cogitate.agent_decoder.core import events as ev
from cogitate.agent_decoder.core.counters import EngineCounters, RateWindow
from cogitate.agent_decoder.core.events import Finish

pytestmark = pytest.mark.unit


def delta(agent_id: int, attempt: int = 1) -> ev.Delta:
    return ev.Delta(agent_id, attempt, 0, 1, "", 0.0, 0.0, False)


def end(agent_id: int, finish: Finish, reason: str = "", attempt: int = 1) -> ev.Finished:
    # What an agent was resumed with counts for its end, and not for this engine.
    return ev.Finished(agent_id, attempt, finish, "", 99, 0, 0.0, 0.0, 0.0, reason)


@pytest.mark.parametrize(
    ("finish", "reason", "fate"),
    [
        (Finish.STOP, "", "used"),
        (Finish.LENGTH, "", "used"),
        (Finish.BUDGET, "", "used"),
        (Finish.CONFIDENCE, "", "killed"),
        (Finish.CANCELLED, "DECIDED", "killed"),
        (Finish.CANCELLED, "CLOSED", "killed"),
        (Finish.CANCELLED, "LOST", "lost"),
        (Finish.CANCELLED, "SUPERSEDED", "lost"),
        (Finish.CANCELLED, "SHUTDOWN", "lost"),
        (Finish.ERROR, "ENGINE_FAILURE", "lost"),
    ],
)
def test_tokens_meet_their_fate_when_their_agent_ends(
    finish: Finish, reason: str, fate: str
) -> None:
    counters = EngineCounters()
    counters.hear(7, [ev.Admitted(), delta(0), delta(1), delta(0)])
    counters.hear(8, [delta(0)])  # another gang's agent of the same id
    fates = {"used": 0, "killed": 0, "lost": 0}
    assert (counters.num_tokens, counters.num_gangs) == (4, 1)
    assert (counters.num_used, counters.num_killed, counters.num_lost) == tuple(fates.values())
    counters.hear(7, [delta(0), end(0, finish, reason)])
    fates[fate] = 3
    assert (counters.num_used, counters.num_killed, counters.num_lost) == tuple(fates.values())
    assert counters.num_failed == (finish is Finish.ERROR)


def test_attempts_of_one_agent_are_told_apart() -> None:
    counters = EngineCounters()
    counters.hear(1, [delta(0), delta(0), delta(0, 2), end(0, Finish.CANCELLED, "SUPERSEDED")])
    counters.hear(1, [end(0, Finish.STOP, attempt=2)])
    assert (counters.num_lost, counters.num_used) == (2, 1)


def test_steps_are_sampled_for_those_who_collect_only() -> None:
    counters = EngineCounters()
    counters.book_step([(1, 5, 4), (1, 6, 4)], 4, 0.25)
    assert counters.samples is None and counters.had.num_steps == 1
    counters.samples = deque(maxlen=2)
    for length in (3, 4, 5):
        counters.book_step([(length, length, length)], length, 0.5)
    counters.book_step([], 0, 0.125)  # tokens drawn from known logits: no step of the model
    assert list(counters.samples) == [(0.5, 4), (0.5, 5)]
    assert (counters.had.num_steps, counters.step_s) == (4, 1.875)


def test_rates_are_those_of_the_last_whole_window() -> None:
    window = RateWindow(10.0, (0.0, 100.0), min_s=1.0)
    assert window.rates(10.5, (5.0, 100.0)) == (0.0, 0.0)
    assert window.rates(12.0, (6.0, 101.0)) == (3.0, 0.5)
    assert window.rates(12.9, (600.0, 600.0)) == (3.0, 0.5)
    assert window.rates(13.0, (7.0, 102.0)) == (1.0, 1.0)
    assert window.rates(14.0, (0.0, 102.0)) == (0.0, 0.0), "nothing shrinks"
