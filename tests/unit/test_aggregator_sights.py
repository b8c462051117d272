"""Where agents looked: every look once, in order, with the words that came right after."""

from __future__ import annotations

import pytest
from cogitate.aggregator.core.agents import AgentState
from cogitate.aggregator.core.messages import Delta, Picture, Segment
from cogitate.aggregator.core.sights import MAX_NOTE_CHARS, sights
from cogitate.aggregator.core.strategies.base import AgentPlan

pytestmark = pytest.mark.unit

LEFT, RIGHT = (Picture("sha256:1", box) for box in ((0, 0, 500, 1000), (500, 0, 1000, 1000)))


def agent(agent_id: int, *course: str | Picture | None) -> AgentState:
    """An agent that wrote texts and was shown pictures; None is a result in words."""
    state = AgentState(AgentPlan(agent_id))
    for one in course:
        if isinstance(one, str):
            state.record(Delta(agent_id, 1, 0, (1,), one, is_answer=False, logprob_sum=0.0))
        else:
            pictures = () if one is None else (one,)
            state.segments.append(Segment((), "result", pictures, len(state.text)))
    return state


def told(*agents: AgentState) -> list[tuple[int, int, Picture, str]]:
    return [(one.agent_id, one.step, one.picture, one.note) for one in sights(agents)]


def test_each_look_has_its_step_and_what_was_written_after_it() -> None:
    first = agent(0, "Red at A1 B1.zoom(0, 0, 50, 100)", LEFT, "43, zoom(50, 0, 100, 100)", RIGHT,
                  "7. calculator(43+7)", None, "The sum is 50.")  # fmt: skip
    second = agent(1, "zoom(50, 0, 100, 100)", RIGHT)
    assert told(first, second) == [
        (0, 1, LEFT, "43"),
        (0, 2, RIGHT, "7"),
        (1, 1, RIGHT, ""),
    ]


@pytest.mark.parametrize("call", ['{"name": "zoom"}', "<tool_call>", "my.tool(1)"])
def test_a_note_ends_before_the_next_call_however_it_is_written(call: str) -> None:
    assert told(agent(0, "", LEFT, f" a blue  card, {call}"))[0][3] == "a blue card"


def test_a_note_is_short() -> None:
    assert told(agent(0, LEFT, "x" * MAX_NOTE_CHARS))[0][3] == "x" * MAX_NOTE_CHARS
    cut = told(agent(0, LEFT, "x" * (MAX_NOTE_CHARS + 1)))[0][3]
    assert len(cut) == MAX_NOTE_CHARS and cut.endswith("…")


def test_an_attempt_that_starts_over_has_not_looked() -> None:
    again = agent(0, LEFT, "43")
    again.forget()
    assert told(again) == []
