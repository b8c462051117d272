"""Scheduler: budgets hold, decoding goes first, everything is served."""

from __future__ import annotations

from collections import deque

import pytest
from cogitate.agent_decoder.core.scheduler import StepLimits, schedule
from cogitate.agent_decoder.core.sequence import Position, Sequence, State
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.property

SEQUENCES = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from(list(State))).map(
        lambda drawn: Sequence(pending=deque([Position(0)] * drawn[0]), state=drawn[1])
    ),
    max_size=8,
)
LIMITS = st.builds(StepLimits, st.integers(1, 20), st.integers(1, 8), st.none() | st.integers(1, 6))


@settings(max_examples=100, deadline=None)
@given(SEQUENCES, LIMITS)
def test_budgets_hold_and_only_running_sequences_run(
    sequences: list[Sequence], limits: StepLimits
) -> None:
    before = [len(s.pending) for s in sequences]
    chunks = schedule(sequences, limits)
    assert sum(c.length for c in chunks) <= limits.max_positions
    assert len({id(c.sequence) for c in chunks}) == len(chunks)
    for chunk in chunks:
        assert chunk.sequence.state is State.RUNNING
        assert 1 <= chunk.length <= min(limits.max_chunk, len(chunk.sequence.pending))
    assert [len(s.pending) for s in sequences] == before


@settings(max_examples=100, deadline=None)
@given(SEQUENCES, LIMITS)
def test_decoding_is_left_out_only_when_the_budget_is_spent_on_decoding(
    sequences: list[Sequence], limits: StepLimits
) -> None:
    chunks = schedule(sequences, limits)
    chosen = {id(c.sequence) for c in chunks}
    single = [s for s in sequences if s.state is State.RUNNING and len(s.pending) == 1]
    assert [id(s) in chosen for s in single] == [
        i < limits.max_positions for i in range(len(single))
    ]


@settings(max_examples=100, deadline=None)
@given(SEQUENCES, LIMITS)
def test_no_budget_is_left_over_while_something_could_use_it(
    sequences: list[Sequence], limits: StepLimits
) -> None:
    chunks = schedule(sequences, limits)
    lengths = {id(c.sequence): c.length for c in chunks}
    beside = sum(c.length for c in chunks if len(c.sequence.pending) > 1)
    share = limits.max_positions
    if limits.max_beside is not None and any(len(c.sequence.pending) == 1 for c in chunks):
        share = limits.max_beside
        assert beside <= share, "running agents wait for longer than a slice"
    if sum(lengths.values()) < limits.max_positions and beside < share:
        for s in sequences:
            if s.state is State.RUNNING:
                assert lengths.get(id(s), 0) == min(len(s.pending), limits.max_chunk)


@settings(max_examples=100, deadline=None)
@given(SEQUENCES, LIMITS)
def test_everything_is_served_in_finitely_many_steps(
    sequences: list[Sequence], limits: StepLimits
) -> None:
    total = sum(len(s.pending) for s in sequences if s.state is State.RUNNING)
    for _ in range(total):
        for chunk in schedule(sequences, limits):
            for _ in range(chunk.length):
                chunk.sequence.pending.popleft()
    assert not any(s.pending for s in sequences if s.state is State.RUNNING)
