"""The fleet as arrays, and the memory of prefixes, under any changes."""

from __future__ import annotations

import numpy as np
import pytest
from cogitate.router.core import board as b
from cogitate.router.core.board import Board
from cogitate.router.core.estimate import CostModel
from cogitate.router.core.prefixes import Prefixes
from cogitate.router.core.types import Description, EndpointSnapshot, GangNeed, Load
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.property

changes = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 5), st.sampled_from("pq"), st.booleans()),
    max_size=80,
)


@given(changes)
def test_a_board_kept_up_to_date_is_one_made_anew(
    changes: list[tuple[int, int, str, bool]],
) -> None:
    kept, there = Board(CostModel()), dict[str, EndpointSnapshot]()
    need = GangNeed("c", "mini", (0,))
    for number, running, provider, goes in changes:
        name = f"e{number}"
        if goes:
            kept.remove(name)
            there.pop(name, None)
            continue
        models = ("mini",) if running else ("other",)
        what = Description(
            name, "host:1", provider, models=models, max_sequences=9, max_model_len=running * 100
        )
        there[name] = EndpointSnapshot(what, load=Load(running))
        kept.put(there[name])
    made = Board.of(there.values(), CostModel())
    assert len(kept) == len(made) == len(there)
    assert kept.rows == {s.endpoint_id: i for i, s in enumerate(kept.snapshots)}
    rows = [kept.rows[s.endpoint_id] for s in made.snapshots]
    for column in range(19):
        assert np.array_equal(kept.number(column)[rows], made.number(column))
    here, all_ = np.array(rows, np.int64), np.arange(len(made))
    assert np.array_equal(kept.mixed("c", here), made.mixed("c", all_))
    kinds = [list(board.kinds()) for board in (kept, made)]
    assert [kinds[0][i] for i in kept.index(b.KIND)[rows]] == [
        kinds[1][i] for i in made.index(b.KIND)
    ]
    for board in (kept, made):
        answers = board.group_answers(need)[board.index(b.GROUP)]
        for row, snapshot in enumerate(board.snapshots):
            assert (answers[row] == 0) == ("mini" in snapshot.description.models)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 5)), max_size=50))
def test_the_memory_of_prefixes_is_bounded_and_keeps_the_latest(
    uses: list[tuple[str, int]],
) -> None:
    memory = Prefixes(most_prefixes=2, most_endpoints=3)
    for digest, endpoint in uses:
        memory.note(digest, f"e{endpoint}", 1)
        assert list(memory.where(digest))[-1] == f"e{endpoint}"
        assert len(memory.known) <= 2
        assert all(0 < len(where) <= 3 for where in memory.known.values())
    latest = list(dict.fromkeys(digest for digest, _ in reversed(uses)))
    assert set(memory.known) == set(latest[:2])


def test_no_digest_is_no_prefix_and_no_memory_is_none() -> None:
    memory = Prefixes()
    memory.note("", "a", 1)
    assert memory.where("") == {} and not memory.known
    off = Prefixes(most_prefixes=0)
    off.note("x", "a", 1)
    assert off.where("x") == {}
