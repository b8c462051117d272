"""Events in, view out; and that what is drawn fits and says what it must."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pytest
from cogitate.cli.view import crops, lanes, lines, state, verdict
from cogitate.cli.view.state import View, reduce
from cogitate.client import _results
from cogitate.client._cursor import Cursor
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2
from rich.console import Console

from tests.fakes import scenarios

pytestmark = pytest.mark.unit

Event = pb2.ContemplationEvent


def numbered(steps: Iterable[object]) -> list[Event]:
    """The events of a script as an aggregator would send them."""
    events = [step for step in steps if isinstance(step, Event)]
    for number, event in enumerate(events, start=1):
        event.event_number = event.first_event_number = number
        event.event_time.FromMilliseconds(1_700_000_000_000 + 2 * number)
    return events


def view_of(events: Iterable[Event]) -> View:
    """What is seen after the events."""
    view = View()
    for event in events:
        view = reduce(view, event)
    return view


def drawn(what: object, width: int = 100, height: int = 40) -> str:
    """The text of what is drawn."""
    console = Console(record=True, width=width, height=height, file=io.StringIO())
    console.print(what)
    return console.export_text()


def test_a_contemplation_ends_as_it_must() -> None:
    view = view_of(numbered(scenarios.countdown(8)))
    states = [lane.state for lane in view.lanes.values()]
    assert list(range(8)) == list(view.lanes)
    assert [state.VOTED if i in (3, 5) else state.KILLED for i in range(8)] == states
    assert (("26", 1),) == view.tally
    assert 1 == view.abstentions
    assert "agent 3 proved" in view.decided
    assert "verdict" == view.ending
    winner = view.lanes[3]
    assert winner.vote is not None
    assert winner.vote.proved
    said = [item.text for item in winner.items if isinstance(item, state.Said) and item.is_answer]
    assert ["6*4=24, 24+5=29, 29-3=26."] == said
    calls = [item for item in winner.items if isinstance(item, state.Called)]
    assert ["zoom"] * 4 + ["calculator", "prove"] == [call.name for call in calls]
    assert (0, 0, 250, 333) == (calls[0].crop.region if calls[0].crop else None)
    assert "24" == calls[4].result
    assert "aurora-1" == winner.endpoint_id
    assert "End by adding." == winner.hint


def test_reduce_changes_nothing_it_was_given() -> None:
    events = numbered(scenarios.countdown(2))
    views = [View()]
    for event in events:
        before = repr(views[-1])
        views.append(reduce(views[-1], event))
        assert before == repr(views[-2])
    assert repr(view_of(events)) == repr(views[-1])


def test_unknown_events_leave_the_view_but_for_its_clock() -> None:
    view = view_of(numbered(scenarios.countdown(2))[:9])
    unknown = Event(event_number=99)
    unknown.event_time.FromMilliseconds(1_700_000_009_999)
    after = reduce(view, unknown)
    assert view.lanes == after.lanes
    assert after.elapsed_s > view.elapsed_s


def test_the_text_of_a_call_is_shown_as_a_call_only() -> None:
    event = scenarios.said(0, 0, "I look. zoom(1, 2, ")
    more = scenarios.said(0, 4, "3, 4)")
    call = scenarios.called(0, 0, "zoom", '{"box": [1, 2, 3, 4], "image": 0}')
    view = view_of(numbered([event, more, call]))
    said, called = view.lanes[0].items
    assert isinstance(said, state.Said)
    assert "I look. " == said.text
    assert isinstance(called, state.Called)
    assert "zoom(1, 2, 3, 4)" == called.arguments
    alone = view_of(numbered([scenarios.said(0, 0, "zoom(1)"), call]))
    assert 1 == len(alone.lanes[0].items)


def test_text_is_taken_back_from_its_offset_on() -> None:
    events = [scenarios.said(0, i, f"{i} ") for i in range(4)]
    events.append(scenarios.called(0, 0, "calculator", '{"expression": "1"}'))
    events.append(scenarios.said(0, 4, "later"))
    retract = Event(text_retracted=pb2.TextRetracted(agent_id=0, token_offset=2))
    view = view_of(numbered([*events, retract]))
    (said,) = view.lanes[0].items
    assert isinstance(said, state.Said)
    assert ("0 1 ", 2) == (said.text, view.lanes[0].tokens)


def test_a_lost_agent_goes_on_or_is_gone() -> None:
    def lost(resumed: bool) -> Event:
        return Event(
            agent_lost=pb2.AgentLost(
                agent_id=0, endpoint_id="aurora-1", reason="UNAVAILABLE", resumed=resumed
            )
        )

    resumed = view_of(numbered([scenarios.said(0, 0, "x"), lost(True)]))
    assert state.WAITING == resumed.lanes[0].state
    assert "goes on elsewhere" in resumed.notes[0]
    gone = view_of(numbered([scenarios.said(0, 0, "x"), lost(False)]))
    assert state.LOST == gone.lanes[0].state


def test_late_text_does_not_wake_the_dead() -> None:
    killed = Event(
        agent_killed=pb2.AgentKilled(
            agent=common_pb2.KilledAgent(agent_id=0, reason="DECIDED", sampled_token_count=9)
        )
    )
    view = view_of(numbered([killed, scenarios.said(0, 0, "late")]))
    assert (state.KILLED, 9) == (view.lanes[0].state, view.lanes[0].tokens)


@pytest.mark.parametrize(
    ("name", "arguments", "shown"),
    [
        ("zoom", '{"box":[1,2,3,4],"image":0}', "zoom(1, 2, 3, 4)"),
        ("zoom", '{"box":[1,2,3,4],"image":1}', "zoom(1, 2, 3, 4, 1)"),
        ("calculator", '{"expression":"6*4"}', "calculator(6*4)"),
        ("look", "", "look()"),
        ("look", "not json", "look(…)"),
        ("look", "[1]", "look(…)"),
        ("look", "[" * 100_000, "look(…)"),
    ],
)
def test_calls_read_like_calls(name: str, arguments: str, shown: str) -> None:
    assert shown == state.call_text(name, arguments)


@pytest.mark.parametrize("agents", [1, 2, 3, 8, 16, 64])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60), (40, 12)])
def test_the_lanes_fit_the_screen(agents: int, width: int, height: int) -> None:
    view = view_of(numbered(scenarios.countdown(agents, winner=0))[: 20 * agents])
    console = Console(record=True, width=width, height=height, file=io.StringIO())
    picture = crops.render(_png(), lanes.CROP_WIDTH, lanes.CROP_HEIGHT)
    region = (0, 0, 250, 333)
    pictures = lanes.Pictures({state.Crop(scenarios.DIGEST, region): picture})
    console.print(lanes.render(view, "A question? " * 30, pictures, console))
    shown = console.export_text().splitlines()
    assert len(shown) < height
    assert max(map(len, shown)) <= width


def test_a_grid_leaves_few_places_empty_and_lanes_wide() -> None:
    assert (4, 30) == (lanes.lay_out(8, 120, 34).columns, lanes.lay_out(8, 120, 34).lane_width)
    assert 1 == lanes.lay_out(1, 80, 20).columns
    assert 64 > lanes.lay_out(64, 80, 20).shown


def test_the_verdict_says_what_it_rests_on() -> None:
    cursor = Cursor(resumes=False)
    for event in numbered(scenarios.countdown(8)):
        cursor.take(event)
    shown = drawn(verdict.render(_results.answer(cursor)))
    for words in (
        "proved by a tool",
        "6*4=24, 24+5=29, 29-3=26.",
        "agent 3 proved its answer",
        "0–2, 4, 6–7",
        "killed: decided",
        "aurora-1",
        "357 = 93 used + 264 killed + 0 lost",
        "--model mini --seed 1234",
        "75,67–100,100 %",
    ):
        assert words in shown


def test_plain_lines_say_every_step_once() -> None:
    spoken = lines.Lines()
    said = [
        line for event in numbered(scenarios.countdown(3, winner=0)) for line in spoken.feed(event)
    ]
    text = "\n".join(said)
    assert "agent 0 votes 26, proved by a tool" in text
    assert "agent 2 abstains" in text
    assert "agent 1 killed: DECIDED, after 44 tokens" in text
    assert 3 == text.count("calls zoom(0, 0, 25, 33)")
    assert 1 == text.count("agent 0: 6*4=24, 24+5=29, 29-3=26.")
    assert "zoom(0, 0, 25, 33) gives a crop" in text
    assert all(line.startswith("[  0.") for line in said)


def test_ids_are_said_as_ranges() -> None:
    assert "0–2, 4, 6–7" == lines.ids([7, 0, 1, 2, 4, 6])
    assert "" == lines.ids([])


def test_a_picture_that_cannot_be_drawn_is_left_out() -> None:
    assert crops.render(b"nonsense", 10, 5) is None
    picture = crops.render(_png(), 12, 6)
    assert picture is not None
    rows = picture.plain.splitlines()
    assert (6, 12) == (len(rows), len(rows[0]))


def _png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()
