"""Whether two contemplations wrote the same."""

from __future__ import annotations

import pytest
from cogitate.cli.view.transcripts import Transcripts, compare
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb2

pytestmark = pytest.mark.unit


def wrote(agent_id: int, offset: int, text: str) -> pb2.ContemplationEvent:
    delta = pb2.AgentTextDelta(
        agent_id=agent_id, token_offset=offset, token_count=len(text), text=text
    )
    return pb2.ContemplationEvent(deltas=pb2.AgentDeltas(deltas=[delta]))


def killed(agent_id: int) -> pb2.ContemplationEvent:
    return pb2.ContemplationEvent(
        agent_killed=pb2.AgentKilled(agent=common.KilledAgent(agent_id=agent_id))
    )


def verdict(answer: str, build: str = "b") -> pb2.ContemplationEvent:
    certificate = common.Certificate(build_digests={"e": build})
    return pb2.ContemplationEvent(verdict=common.Verdict(answer=answer, certificate=certificate))


def told(*events: pb2.ContemplationEvent) -> Transcripts:
    return Transcripts.read(events)


def test_the_same_text_in_other_pieces_is_the_same() -> None:
    before = told(wrote(0, 0, "abc"), wrote(0, 3, "def"), verdict("6"))
    after = told(wrote(0, 0, "a"), wrote(0, 1, "bcdef"), verdict("6"))
    agreement = compare(before, after)
    assert agreement.same
    assert [(row.before, row.after, row.same) for row in agreement.rows] == [(6, 6, True)]


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ([wrote(0, 0, "abc")], [wrote(0, 0, "abx")], False),
        ([wrote(0, 0, "abc")], [wrote(0, 0, "ab")], False),  # shorter, and not stopped
        ([wrote(0, 0, "abc"), killed(0)], [wrote(0, 0, "ab")], True),
        ([wrote(0, 0, "abc"), killed(0)], [wrote(0, 0, "xb")], False),
        ([wrote(0, 0, "abc"), wrote(1, 0, "x")], [wrote(0, 0, "abc")], True),  # 1 never began
    ],
)
def test_who_was_stopped_has_the_beginning_of_the_other(
    before: list[pb2.ContemplationEvent], after: list[pb2.ContemplationEvent], same: bool
) -> None:
    agreement = compare(told(*before, verdict("6")), told(*after, verdict("6")))
    assert agreement.same is same


def test_another_answer_or_build_is_said() -> None:
    agreement = compare(told(verdict("6", "b1")), told(verdict("7", "b2")))
    assert not agreement.same
    assert "another one" in agreement.notes[0]
    assert "builds differ" in agreement.notes[1]


def test_text_that_was_taken_back_does_not_count() -> None:
    retracted = pb2.ContemplationEvent(text_retracted=pb2.TextRetracted(agent_id=0, token_offset=0))
    before = told(wrote(0, 0, "wrong"), retracted, wrote(0, 0, "right"), verdict("6"))
    assert compare(before, told(wrote(0, 0, "right"), verdict("6"))).same
