"""The settings of a grid, what they ask, and what is compared with what."""

from __future__ import annotations

import pytest
from cogitate.cli.measure import compare, report
from cogitate.cli.measure.results import Record, Unit
from cogitate.cli.measure.setting import JUDGE, RETRY, Setting, grid, seed_of
from cogitate.cli.measure.statistics import Outcome
from cogitate.evals.question import Question

pytestmark = pytest.mark.unit

QUESTION = Question("1", "set", "?", b"png", "1", "1".__eq__, system="Be short.", regex="[0-9]+")


def test_a_grid_is_every_combination_and_one_agent_once_a_strategy() -> None:
    quorums = ("all", "posterior:0.95")
    made = grid(Setting(1), (1, 4), ("vote", "confidence"), quorums, (JUDGE, RETRY))
    assert [one.name for one in made] == [
        "1 × vote",
        "1 × confidence",
        "4 × vote · all",
        "4 × vote · posterior:0.95",
        "4 × confidence · all",
        "4 × confidence · posterior:0.95",
        "judge of 4",
        "retry, tokens of 4",
    ]
    assert len(made) == 8 == len(set(made))
    assert next(one for one in made if one.kind == RETRY).gang() in made


def test_settings_that_differ_do_not_share_a_name() -> None:
    base = Setting(8, strategy="vote", quorum="all")
    told = {"effort": "thinking", "temperature": 0.5, "max_tokens": 40, "initial_agents": 2}
    others = [Setting(8, strategy="vote", quorum="all", **{k: v}) for k, v in told.items()]
    assert (
        len({one.name for one in (base, *others)})
        == 5
        == len({one.series for one in (base, *others)})
    )


def test_widening_starts_only_what_is_wider() -> None:
    made = grid(Setting(1, initial_agents=4), (1, 4, 8), ("vote",), ("all",))
    assert [(one.agents, one.initial_agents) for one in made] == [(1, 0), (4, 0), (8, 4)]


def test_one_agent_is_greedy_and_thinks_and_many_contemplate() -> None:
    one, many = (Setting(count, quorum="all").options(QUESTION, 7) for count in (1, 8))
    assert (one["temperature"], one["effort"], one["seed"]) == (0.0, "thinking", 7)
    assert (many["temperature"], many["effort"], many["quorum"]) == (None, "contemplating", "all")
    assert (many["images"], many["system"], many["regex"]) == ([b"png"], "Be short.", "[0-9]+")
    told = Setting(8, temperature=0.3, effort="instant", regex="x", max_tokens=9)
    asked = told.options(QUESTION, 7)
    assert (asked["temperature"], asked["effort"]) == (0.3, "instant")
    assert (asked["regex"], asked["max_tokens"]) == ("x", 9)


def test_calls_of_a_baseline_sample_with_seeds_of_their_own() -> None:
    judge = Setting(8, kind=JUDGE)
    calls = [judge.call(QUESTION, 7, number, "thinking") for number in range(8)]
    assert len({one["seed"] for one in calls}) == 8
    assert {(one["agents"], one["temperature"]) for one in calls} == {(1, 0.8)}
    assert judge.verdict(QUESTION, 7)["temperature"] == 0.0


def test_seeds_are_the_same_for_all_settings_and_differ_by_question_and_repeat() -> None:
    seeds = {seed_of(5, index, repeat) for index in range(50) for repeat in range(3)}
    assert len(seeds) == 150


def record(setting: Setting, number: int, right: bool, tokens: int) -> Record:
    """One asking of question `number`."""
    return Record(Unit("set", str(number), "d", number), setting, Outcome(right, 1.0, tokens))


def test_settings_are_compared_with_waiting_for_all_a_judge_and_one_agent() -> None:
    settings = grid(Setting(1), (1, 8), ("vote",), ("all", "unbeatable"), (JUDGE,))
    records = [record(one, i, True, one.agents * 10) for one in settings for i in range(5)]
    pairs = [(one.setting, one.reference) for one in compare.within(compare.measured(records))]
    assert sorted(pairs) == [
        ("8 × vote · all", "1 × vote"),
        ("8 × vote · all", "judge of 8"),
        ("8 × vote · unbeatable", "1 × vote"),
        ("8 × vote · unbeatable", "8 × vote · all"),
        ("8 × vote · unbeatable", "judge of 8"),
    ]


def test_only_what_both_were_asked_is_compared() -> None:
    whole, part = Setting(8, quorum="all"), Setting(8, quorum="unbeatable")
    records = [record(whole, i, True, 80) for i in range(10)]
    records += [record(part, i, i > 1, 40) for i in range(4)]
    (one,) = compare.within(compare.measured(records))
    assert (one.difference.questions, one.difference.only_first) == (4, 2)
    assert one.difference.tokens is not None
    assert one.difference.tokens.value == pytest.approx(0.5)


def test_two_folders_are_compared_by_setting_or_as_they_are_if_each_has_one() -> None:
    same = compare.measured([record(Setting(8), i, True, 80) for i in range(3)])
    again = compare.measured([record(Setting(8), i, False, 80) for i in range(3)])
    (one,) = compare.between(same, again)
    assert one.difference.accuracy.value == -1.0
    other = compare.measured([record(Setting(8, quorum="all"), i, True, 80) for i in range(3)])
    (two,) = compare.between(same, other)
    assert (two.reference, two.setting) == (
        "8 × default strategy · default quorum",
        "8 × default strategy · all",
    )


def test_a_table_says_what_failed_was_refused_and_was_left_out() -> None:
    setting = Setting(8, strategy="vote", quorum="all")
    unit = Unit("set", "1", "d", 1)
    outcome = Outcome(False, 1.0, 3, error="NO_ENDPOINT", left_out=("ROUNDS",))
    rows = compare.rows(compare.measured([Record(unit, setting, outcome, 4)]))
    said = report.remarks(rows, [4], {Setting(8, quorum="x"): "unknown quorum 'x'"})
    judge = compare.rows(compare.measured([Record(unit, Setting(8, kind=JUDGE), outcome)]))
    assert "temperature 0.8, gangs at the model's own" in report.remarks(judge, [1], {})[0]
    text = report.markdown(rows, [], said)
    for words in ("1 of 1 runs failed: 1 × NO_ENDPOINT", "ROUNDS", "unknown quorum 'x'", "4 quest"):
        assert words in text
    assert "| set | 8 × vote · all | 0.0 (0.0–79.3) | 1 | 3 |" in text
