"""Responses told again from the journal: the same events, however text was coalesced or cut."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from cogitate.gateway.http.openai import extension
from cogitate.gateway.http.openai.responses import Response, frames
from cogitate.gateway.http.openai.telling import Telling
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.property

Event = pb2.ContemplationEvent
ID = "5267afd8-d5f7-42a7-abf4-4b40b7a1fd22"
texts = st.lists(st.tuples(st.text(max_size=6), st.booleans()), max_size=12)


def journal(
    pieces: Sequence[tuple[str, bool]], starts: Sequence[int]
) -> list[pb2.ContemplationEvent]:
    """One agent's contemplation; text is one event from each of `starts` to the next."""
    thought = [(text, False) for text, is_answer in pieces if not is_answer]
    answer = [(text, True) for text, is_answer in pieces if is_answer]
    said = "".join(text for text, _ in answer).strip()
    accepted = pb2.Accepted(contemplation_id=ID, model="mini", agent_count=1)
    events = [Event(event_number=1, first_event_number=1, accepted=accepted)]
    first = 2
    for number, (text, is_answer) in enumerate((*thought, *answer), start=2):
        held = events[-1].deltas.deltas
        joins = number not in starts and held and held[0].is_answer == is_answer
        if joins:
            held[0].text += text
            held[0].token_count += 1
            events[-1].event_number = number
            continue
        first = number
        delta = pb2.AgentTextDelta(text=text, is_answer=is_answer, token_count=1)
        deltas = pb2.AgentDeltas(deltas=[delta])
        events.append(Event(event_number=number, first_event_number=first, deltas=deltas))
    ballot = common_pb2.Ballot(answer=said, key=said)
    verdict = common_pb2.Verdict(
        answer=said, key=said, certificate=common_pb2.Certificate(ballots=[ballot]),
        usage=common_pb2.Usage(sampled_token_count=len(pieces)),
    )  # fmt: skip
    end = len(pieces) + 2
    return [*events, Event(event_number=end, first_event_number=end, verdict=verdict)]


def told(events: Sequence[pb2.ContemplationEvent], after: int = -1) -> tuple[Response, list[dict]]:  # type: ignore[type-arg]
    fold = Response(pb2.ContemplationSpec(), Telling())
    raw = b""
    for event in events:
        pieces = fold.telling.feed(event)
        typed = fold.begin() if event.HasField("accepted") else []
        typed += [one for piece in pieces for one in fold.take(piece)]
        raw += frames(typed, event.event_number, after)
    told = [part.partition(b"data: ")[2] for part in raw.split(b"\n\n") if part]
    return fold, [json.loads(data) for data in told]


def text_of(events: Sequence[dict], kind: str) -> str:  # type: ignore[type-arg]
    return "".join(e["delta"] for e in events if e["type"] == f"response.{kind}.delta")


@given(texts, st.sets(st.integers(2, 20)))
def test_the_pieces_add_up_to_the_verdict_whatever_was_coalesced(
    pieces: list[tuple[str, bool]], starts: set[int]
) -> None:
    fold, events = told(journal(pieces, range(100)))
    other, others = told(journal(pieces, sorted(starts)))
    assert fold.whole() == other.whole()
    said = "".join(text for text, is_answer in pieces if is_answer).strip()
    for one in (events, others):
        assert text_of(one, "output_text") == said
        assert text_of(one, "reasoning_summary_text") == "".join(
            text for text, is_answer in pieces if not is_answer
        )
        numbers = [event["sequence_number"] for event in one]
        assert numbers == sorted(set(numbers))
        assert one[-1]["type"] == "response.completed"
        assert one[-1]["response"]["output"] == fold.output


@given(texts, st.integers(0, 60))
def test_a_stream_cut_anywhere_goes_on_with_exactly_the_rest(
    pieces: list[tuple[str, bool]], place: int
) -> None:
    events = journal(pieces, range(100))
    _, whole = told(events)
    after = whole[min(place, len(whole) - 1)]["sequence_number"]
    _, rest = told(events, after)
    assert rest == [event for event in whole if event["sequence_number"] > after]


@pytest.mark.parametrize("scored", [False, True])
def test_deltas_written_by_hand_are_what_the_contract_says(scored: bool) -> None:
    delta = pb2.AgentTextDelta(agent_id=1, text="x", token_count=2)
    if scored:
        delta.tokens.add(token="x", logprob=-1, top=[pb2.TokenLogprob(token="y")])
    event = Event(event_number=4, deltas=pb2.AgentDeltas(deltas=[delta]))
    told = extension.told(event, "all")
    assert told is not None
    (by_hand,) = told["deltas"]["deltas"]
    assert by_hand == extension.plain(delta)
    fields = {field.name for field in delta.DESCRIPTOR.fields}
    assert set(by_hand) == (fields if scored else fields - {"tokens"})
