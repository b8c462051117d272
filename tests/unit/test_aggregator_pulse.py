"""Silence and slowness, from when agents wrote; in a clock of the test's own."""

from __future__ import annotations

import pytest
from cogitate.aggregator.core.pulse import ENOUGH_TOKENS, Pulse, Silence

pytestmark = pytest.mark.unit

INTERVAL_S = 0.25


def pulse(*gangs: str, at: float = 0.0) -> Pulse:
    made = Pulse(INTERVAL_S)
    for gang_id in gangs:
        made.opened(gang_id, at)
        made.prefilled(gang_id, at)
    return made


def looked(made: Pulse, writing: dict[str, set[int]], since: float, until: float) -> Silence | None:
    """Looks as often as it should; the last look's silence of gang g."""
    now, found = since, None
    while now < until - 1e-9:
        now = min(until, now + INTERVAL_S)
        found = made.look(writing, now).get("g")
    return found


def test_silence_counts_from_the_last_message_and_writing_ends_it() -> None:
    made = pulse("g")
    made.look({"g": {0}}, 0.0)
    made.wrote("g", {0: 1}, 0.0)
    assert looked(made, {"g": {0}}, 0.0, 3.0) == Silence(3.0, True)
    assert made.wrote("g", {0: 1}, 3.5) == 3.5
    assert made.look({"g": {0}}, 3.5) == {"g": Silence(0.0, True)}


def test_a_prompt_that_is_computed_and_a_wait_for_room_are_no_silence() -> None:
    made = Pulse(INTERVAL_S)
    made.opened("g", 0.0)
    assert looked(made, {"g": {0}}, 0.0, 100.0) is None
    made.prefilled("g", 100.0)
    assert looked(made, {"g": {0}}, 100.0, 101.0) == Silence(1.0, False)


@pytest.mark.parametrize("paused", [True, False])
def test_nobody_who_ought_to_write_is_silent(paused: bool) -> None:
    """Waiting for a tool or for tokens is no silence, however long; nor is an empty gang."""
    made = pulse("g")
    made.wrote("g", {0: 1}, 0.0)
    if paused:
        made.paused("g", 0)
    assert looked(made, {"g": set()}, 0.0, 1000.0) is None
    # What it was given is computed first: it is not warm, and its first gap tells nothing.
    assert looked(made, {"g": {0}}, 1000.0, 1002.0) == Silence(2.0, False)
    assert made.wrote("g", {0: 1}, 1002.0) is None
    assert made.wrote("g", {0: 1}, 1002.5) == 0.5


def test_a_pause_between_two_looks_is_not_overlooked() -> None:
    made = pulse("g")
    made.wrote("g", {0: 1}, 0.0)
    made.look({"g": {0}}, 0.1)
    made.paused("g", 0)
    assert made.look({"g": {0}}, 0.2)["g"].is_warm is False


def test_a_sibling_that_writes_keeps_the_gang_alive() -> None:
    made = pulse("g")
    made.wrote("g", {0: 1, 1: 1}, 0.0)
    made.wrote("g", {1: 1}, 2.0)
    assert made.look({"g": {0, 1}}, 2.1)["g"] == Silence(pytest.approx(0.1), True)


def test_time_in_which_this_process_did_not_run_does_not_count() -> None:
    made = pulse("g")
    made.wrote("g", {0: 1}, 0.0)
    made.look({"g": {0}}, 0.0)
    assert made.look({"g": {0}}, 60.0)["g"].s <= 2 * INTERVAL_S


def write(made: Pulse, gang_id: str, agent_id: int, token_s: float, count: int, since: float):
    for number in range(count + 1):
        made.wrote(gang_id, {agent_id: 1}, since + number * token_s)


def test_who_would_end_much_later_than_its_siblings_straggles() -> None:
    made = pulse("f", "g")
    for agent_id in (0, 1, 2):
        write(made, "f", agent_id, 0.01, ENOUGH_TOKENS, 0.0)
    write(made, "g", 3, 0.1, ENOUGH_TOKENS, 0.0)
    now = ENOUGH_TOKENS * 0.1
    places = {0: ("f", 100), 1: ("f", 100), 2: ("f", 100), 3: ("g", 100)}
    made._agents[0, "f"].heard_at = made._agents[1, "f"].heard_at = now
    made._agents[2, "f"].heard_at = now
    assert made.stragglers(places, 3.0, 2.0, now) == [3]
    assert made.stragglers(places, 3.0, 10.0, now) == [], "it would gain less"
    assert made.stragglers(places, 20.0, 2.0, now) == [], "it is not so much slower"
    assert made.stragglers({3: ("g", 10)}, 3.0, 2.0, now) == [], "it is nearly done"


def test_without_siblings_or_tokens_nobody_straggles() -> None:
    made = pulse("g")
    write(made, "g", 0, 0.1, 50, 0.0)
    assert made.stragglers({0: ("g", 1000)}, 3.0, 0.0, 60.0) == []
    for agent_id in (1, 2):
        write(made, "g", agent_id, 0.001, ENOUGH_TOKENS - 1, 0.0)
    assert made.stragglers({0: ("g", 1000)}, 3.0, 0.0, 60.0) == [], "they wrote too little"


def test_who_alone_is_silent_straggles_unless_it_was_paused() -> None:
    made = pulse("g")
    for agent_id in (0, 1, 2):
        write(made, "g", agent_id, 0.01, ENOUGH_TOKENS, 0.0)
    write(made, "g", 1, 0.01, 500, 0.1)
    write(made, "g", 2, 0.01, 500, 0.1)
    places = dict.fromkeys((0, 1, 2), ("g", 100))
    assert made.stragglers(places, 3.0, 2.0, 5.1) == [0]
    made.paused("g", 0)
    assert made.stragglers(places, 3.0, 2.0, 5.1) == []


def test_a_stream_that_ended_is_not_looked_at() -> None:
    made = pulse("g")
    made.ended("g")
    assert made.look({"g": {0}}, 9.0) == {}
    assert made.wrote("g", {0: 1}, 9.0) is None
    assert made.opened_at("g") == float("-inf")
