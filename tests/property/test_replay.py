"""A journalled course played again: the same events, and a takeover anywhere ends as it should."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise
from random import Random
from typing import Any, get_args

import pytest
from cogitate.aggregator import recording, wire
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.course import Course, first_difference, replay
from cogitate.aggregator.journal import Record
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1 import journal_pb2
from cogitate.v1 import router_service_pb2 as router_pb
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.test_contemplation import EQUIVALENCES, Fleet

pytestmark = pytest.mark.property

QUESTION = common.Message(role=common.ROLE_USER, parts=[common.Part(text="Make 2.")])
REQUEST = pb.ContemplationSpec(conversation=[QUESTION])
ACCEPT_NS = 1_000


def specs() -> st.SearchStrategy[m.Spec]:
    return st.builds(
        m.Spec,
        contemplation_id=st.just("c"),
        model=st.just("mini"),
        effort=st.just("CONTEMPLATING"),
        num_agents=st.integers(1, 4),
        strategy=st.sampled_from(
            ["auto", "vote", "confidence:0.5", "refine", "best_of", "synthesis", "synthesis"]
        ),
        quorum=st.sampled_from(["all", "unbeatable", "verified", "first:2", "posterior:0.8"]),
        equivalence=st.sampled_from(EQUIVALENCES),
        seed=st.integers(0, 2**62),
        temperature=st.none() | st.floats(0, 2),
        budget_tokens=st.sampled_from([0, 0, 12, 40]),
        max_tokens=st.just(0),
        client_tools=st.just(frozenset({"ask_user"})),
        patience_s=st.just(1.0),
        initial_agents=st.integers(0, 1),
        prepares=st.booleans(),
    )


def entry_of(item: m.Input) -> journal_pb2.JournalInput:
    """An input as the message it comes in, then as it is journalled."""
    if isinstance(item, m.Granted):
        gangs = [
            router_pb.PlacedGang(
                gang_id=gang.gang_id, endpoint_id=gang.endpoint_id, provider=gang.provider,
                region=gang.region, agent_ids=gang.agent_ids, reason=gang.reason,
            )
            for gang in item.gangs
        ]  # fmt: skip
        granted = router_pb.LeaseGranted(attempt=item.attempt, gangs=gangs, policy=item.policy)
        return recording.to_entry(wire.to_granted(granted))
    if isinstance(item, m.ToolReturned):
        result = common.ToolResult(parts=[common.Part(text=item.result.payload)])
        if item.result.proved_answer:
            result.proof.CopyFrom(common.Proof(answer=item.result.proved_answer, claim="2"))
        returned = journal_pb2.JournalToolReturned(
            call_id=item.call_id, result=result, executed=True
        )
        returned.duration.FromMilliseconds(len(item.call_id))
        return recording.to_entry(item, returned)
    response = response_of(item)
    return recording.to_entry(item, response)


def response_of(item: m.Input) -> decoder_pb.DecodeResponse | None:
    if isinstance(item, m.Admitted):
        admitted = decoder_pb.GangAdmitted(build_digest=item.build_digest, hints=item.hints)
        return decoder_pb.DecodeResponse(admitted=admitted)
    if isinstance(item, m.Prefilled):
        prefilled = decoder_pb.GangPrefilled(
            prompt_token_count=item.num_prompt, cached_token_count=item.num_cached
        )
        prefilled.prefill_duration.FromNanoseconds(int(item.seconds * 1e9))
        return decoder_pb.DecodeResponse(prefilled=prefilled)
    if isinstance(item, m.Stepped):
        deltas = [
            decoder_pb.AgentDelta(
                agent_id=d.agent_id, attempt=d.attempt, token_offset=d.token_offset,
                token_ids=d.token_ids, text=d.text, is_answer=d.is_answer,
                logprobs=[d.logprob_sum],
            )
            for d in item.deltas
        ]  # fmt: skip
        return decoder_pb.DecodeResponse(step=decoder_pb.GangStep(deltas=deltas))
    if isinstance(item, m.ToolCalled):
        called = decoder_pb.AgentToolCall(
            agent_id=item.agent_id, attempt=item.attempt, call=wire.to_call(item.call)
        )
        return decoder_pb.DecodeResponse(tool_call=called)
    if isinstance(item, m.AgentEnded):
        finished = decoder_pb.AgentFinished(
            agent_id=item.agent_id,
            attempt=item.attempt,
            finish_reason=common.FinishReason.Value(f"FINISH_REASON_{item.finish}"),
            answer=item.answer,
            usage=common.Usage(sampled_token_count=item.num_sampled),
            confidence=common.Confidence(lowest_group_confidence=item.lowest_confidence),
        )
        return decoder_pb.DecodeResponse(finished=finished)
    if isinstance(item, m.GrantUsedUp):
        waits = decoder_pb.AgentAwaitingGrant(agent_id=item.agent_id)
        return decoder_pb.DecodeResponse(awaiting_grant=waits)
    return None


class RecordedFleet(Fleet):
    """A fleet whose machine is fed by journal entries; what the journal has is kept."""

    def __init__(self, spec: m.Spec, random: Random) -> None:
        super().__init__(spec, random)
        self.events.clear()
        self.asks.clear()
        self.now_ns = ACCEPT_NS
        accepted = pb.ContemplationEvent(
            event_number=1, first_event_number=1, accepted=pb.Accepted(contemplation_id="c")
        )
        accepted.event_time.FromNanoseconds(ACCEPT_NS)
        acceptance = journal_pb2.JournalAcceptance(spec_json=recording.to_json(spec))
        self.record = Record(
            "c", "t", "", REQUEST.SerializeToString(), acceptance.SerializeToString(),
            ACCEPT_NS, accepted.SerializeToString(),
        )  # fmt: skip
        self.course = Course(spec, REQUEST, ACCEPT_NS)
        self.machine = self.course.machine
        self.entries: list[bytes] = []
        self.shown = [accepted]
        self.take(journal_pb2.JournalInput(started=journal_pb2.JournalStarted()))

    def put(self, event: m.Input) -> None:
        assert not self.machine.ended
        self.take(entry_of(event))

    def flush(self) -> None:
        self.take(journal_pb2.JournalInput(flushed=journal_pb2.JournalFlushed()))

    def take(self, entry: journal_pb2.JournalInput) -> None:
        self.now_ns += self.random.randint(-5, 10)  # clocks do go back
        turn = self.course.take(entry, None, max(1, self.now_ns))
        if turn.sequence:
            self.entries.append(turn.entry.SerializeToString())
            assert turn.sequence == len(self.entries)
        self.shown += turn.events
        self.perform(turn.effects)

    def live(self, steps: int) -> None:
        for _ in range(steps):
            actions = self.actions()
            if self.machine.ended or not actions:
                return
            self.random.choice(actions)()
            if not self.machine.ended and self.random.random() < 0.2:
                self.flush()

    def take_over(self, cut: int) -> None:
        """The owner dies with its streams; another goes on from the first entries."""
        replayed = replay(self.record, self.entries[:cut])
        self.entries, self.shown = self.entries[:cut], list(replayed.events)
        self.course, self.machine = replayed.course, replayed.course.machine
        self.asks, self.waits, self.stale, self.embeds = [], [], [], []
        self.gangs, self.ran, self.preparing = {}, [], ""
        self.num_positions = self.machine.accounts.prompt
        waiting = [run.call for _, run in self.machine.tools.unanswered()]
        self.tools = [call.call_id for call in waiting if call.name == "ask_user"]
        self.events = [
            m.Emit(event.WhichOneof("event") or "", fields_of(event)) for event in self.shown[1:]
        ]
        agents = self.machine.agents.values()
        self.num_sampled = self.machine.accounts.generated + sum(
            agent.num_sampled for agent in agents if agent.open
        )
        if not self.machine.ended:
            self.put(m.OwnerChanged(2))

    def finish_all(self) -> None:
        """The deadline passes; kills are acknowledged or their gangs are lost."""
        if not self.machine.ended:
            self.put(m.DeadlinePassed())
        while not self.machine.ended:
            gang = next(gang for gang in self.gangs.values() if gang.agents)
            if self.random.random() < 0.5:
                self.lose(gang)
            else:
                self.finish(gang, next(iter(gang.agents.values())))


def fields_of(event: pb.ContemplationEvent) -> dict[str, Any]:
    """What the fleet's books look at."""
    if event.HasField("text_retracted"):
        told = event.text_retracted
        return {"agent_id": told.agent_id, "token_offset": told.token_offset}
    return {
        "deltas": [
            {"agent_id": d.agent_id, "token_offset": d.token_offset, "token_count": d.token_count}
            for d in event.deltas.deltas
        ]
    }


@settings(max_examples=100, deadline=None)
@given(specs(), st.integers(0, 2**32), st.integers(0, 200))
def test_replay_makes_the_same_events(spec: m.Spec, seed: int, steps: int) -> None:
    fleet = RecordedFleet(spec, Random(seed))
    fleet.live(steps)
    if seed % 2:
        fleet.finish_all()
    replayed = replay(fleet.record, fleet.entries)
    assert first_difference(replayed.events, fleet.shown) == 0
    assert replayed.course.num_executions == fleet.course.num_executions
    assert replayed.course.machine.accounts == fleet.machine.accounts
    assert replayed.course.machine.agents == fleet.machine.agents
    numbers = [event.event_number for event in fleet.shown]
    assert numbers == list(range(1, len(numbers) + 1))
    times = [event.event_time.ToNanoseconds() for event in fleet.shown]
    assert all(a <= b for a, b in pairwise(times))


@settings(max_examples=100, deadline=None)
@given(specs(), st.integers(0, 2**32), st.lists(st.tuples(st.integers(1, 60), st.floats(0, 1))))
def test_a_takeover_at_any_entry_ends_once_and_its_books_are_right(
    spec: m.Spec, seed: int, cuts: list[tuple[int, float]]
) -> None:
    """Invariants 1 and 2: one ending, numbers and token offsets without gaps or repeats."""
    fleet = RecordedFleet(spec, Random(seed))
    for steps, share in cuts:
        fleet.live(steps)
        if fleet.machine.ended:
            break
        fleet.take_over(max(1, round(share * len(fleet.entries))))
    fleet.live(100)
    fleet.finish_all()
    fleet.check_end()
    numbers = [event.event_number for event in fleet.shown]
    assert numbers == list(range(1, len(numbers) + 1))
    assert first_difference(replay(fleet.record, fleet.entries).events, fleet.shown) == 0


def test_a_difference_is_found() -> None:
    one, two = (pb.ContemplationEvent(event_number=n) for n in (1, 2))
    other = pb.ContemplationEvent(event_number=2, failed=pb.Failed())
    assert first_difference([one, two], [one, two]) == 0
    assert first_difference([one, two], [one, other]) == 2
    assert first_difference([one], [one, two]) == 2
    assert first_difference([one, two], [one]) == 2


def test_damaged_entries_are_refused() -> None:
    fleet = RecordedFleet(SPEC, Random(1))
    fleet.live(30)
    cut = journal_pb2.JournalInput(embedded=journal_pb2.JournalEmbedded(vector=b"12345"))
    for entries in (
        [*fleet.entries, cut.SerializeToString()],
        fleet.entries[1:],
        [b"\xff\xff", *fleet.entries],
        [*fleet.entries, b"\x42\x00"],
    ):
        with pytest.raises(wire.Damaged):
            replay(fleet.record, entries)


SPEC = m.Spec(
    contemplation_id="c", model="mini", effort="CONTEMPLATING", num_agents=3, strategy="vote",
    quorum="all", equivalence="auto", seed=2**62 - 1, temperature=0.5, budget_tokens=9,
    max_tokens=7, client_tools=frozenset({"b", "a"}), patience_s=1.5,
    initial_agents=2, max_rounds=3,
)  # fmt: skip


@given(specs())
def test_a_spec_survives_the_journal(spec: m.Spec) -> None:
    assert recording.from_json(m.Spec, recording.to_json(spec)) == spec
    assert recording.from_json(m.Spec, recording.to_json(SPEC)) == SPEC


# Inputs that come as a message are kept as that message.
MESSAGES = {m.Granted, m.Admitted, m.Prefilled, m.Stepped, m.ToolCalled, m.ToolReturned}
MESSAGES |= {m.AgentEnded, m.GrantUsedUp}
VECTOR = (1.0, -0.5, 0.0)
SAMPLES: dict[str, Any] = {
    "int": 3, "str": "é", "tuple[int, ...]": (1, 2), "float | None": 0.25, "float": 0.5,
    "bool": True, "tuple[float, ...]": VECTOR,
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(set(get_args(m.Input)) - MESSAGES, key=str))
def test_every_other_input_survives_the_journal(kind: type[Any]) -> None:
    item = kind(**{field.name: SAMPLES[str(field.type)] for field in fields(kind)})
    entry = recording.to_entry(item)
    assert (
        recording.to_input(journal_pb2.JournalInput.FromString(entry.SerializeToString()), "")
        == item
    )
