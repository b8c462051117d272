"""Whatever events come, in whatever order, there is a view, and it fits the screen."""

from __future__ import annotations

import io

import pytest
from cogitate.cli.view import lanes, lines, state
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

pytestmark = pytest.mark.property

AGENTS = st.integers(-1, 5)
TEXT = st.text(max_size=30) | st.sampled_from(["zoom(1, 2)", "", "x" * 200, "漢字 🙂", "[bold]"])


@st.composite
def events(draw: st.DrawFn) -> pb2.ContemplationEvent:
    """Any event that a view knows, about any agent."""
    event = pb2.ContemplationEvent()
    event.event_time.seconds = draw(st.integers(0, 10))
    agent = draw(AGENTS)
    kind = draw(st.sampled_from(sorted(state._HANDLERS)))
    body = getattr(event, kind)
    body.SetInParent()
    if kind == "accepted":
        body.contemplation_id, body.agent_count = "c", draw(st.integers(-1, 9))
    elif kind == "deltas":
        body.deltas.add(
            agent_id=agent,
            text=draw(TEXT),
            token_offset=draw(st.integers(0, 9)),
            token_count=1,
            is_answer=draw(st.booleans()),
        )
    elif kind == "tool_call_started":
        body.agent_id = agent
        body.call.name, body.call.arguments_json = draw(TEXT), draw(TEXT)
    elif kind == "tool_call_finished":
        body.agent_id = agent
        body.result.parts.add(text=draw(TEXT))
    elif kind == "ballot_cast":
        body.ballot.agent_id, body.ballot.key = agent, draw(TEXT)
        body.ballot.abstained = draw(st.booleans())
    elif kind == "agent_killed":
        body.agent.agent_id, body.agent.reason = agent, draw(TEXT)
    elif kind in ("agent_started", "agent_lost", "text_retracted"):
        body.agent_id = agent
    elif kind == "placed":
        body.placements.append(common_pb2.PlacedAgents(agent_ids=[agent], reason=draw(TEXT)))
    elif kind == "decided":
        body.reason = draw(TEXT)
    elif kind == "feature_degraded":
        body.message = draw(TEXT)
    return event


@settings(max_examples=60)
@given(st.lists(events(), max_size=25), st.sampled_from([(80, 24), (120, 40), (30, 10)]))
def test_there_is_always_a_view_that_fits(
    stream: list[pb2.ContemplationEvent], size: tuple[int, int]
) -> None:
    view, spoken = state.View(), lines.Lines()
    for event in stream:
        view = state.reduce(view, event)
        assert all("\n" not in line for line in spoken.feed(event))
    console = Console(record=True, width=size[0], height=size[1], file=io.StringIO())
    console.print(lanes.render(view, "A question?", lanes.Pictures(), console))
    assert len(console.export_text().splitlines()) <= size[1]
    assert list(view.lanes) == sorted(view.lanes)
    assert sum(count for _, count in view.tally) + view.abstentions == sum(
        lane.vote is not None for lane in view.lanes.values()
    )
