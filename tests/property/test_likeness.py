"""Ballots by embedding: whose key each gets, whatever the answers, the vectors and the order."""

from __future__ import annotations

from typing import Any

import pytest
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.answers import is_refusal, text_key
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_aggregator_contemplation import Script

pytestmark = pytest.mark.property

LEAST = 0.75
ANSWERS = ["Big.", "big", "large", "It is 1.", "I can't answer that.", ""]
# At angles of 0, 37, 53, 74 and 90 degrees; None: the model failed.
VECTORS = [(1.0, 0.0), (0.8, 0.6), (0.6, 0.8), (0.28, 0.96), (0.0, 1.0), (1.0, 0.0, 0.0), None]
Said = tuple[str, tuple[float, ...] | None]


def reference(said: list[Said]) -> list[str]:
    """Keys by the rule in words, ballots in the order in which they were cast."""
    keys: list[str] = []
    for number, (answer, vector) in enumerate(said):
        key = "" if is_refusal(answer) else text_key(answer)
        for (earlier, other), its_key in list(zip(said, keys, strict=False))[:number]:
            if not key or not its_key:
                continue
            both = vector is not None and other is not None and len(vector) == len(other)
            cosine = sum(a * b for a, b in zip(vector, other, strict=True)) if both else 0.0
            if cosine > LEAST + 1e-9 or text_key(earlier) == text_key(answer):
                key = its_key
                break
        keys.append(key)
    return keys


@given(
    st.lists(st.tuples(st.sampled_from(ANSWERS), st.sampled_from(VECTORS)), min_size=2, max_size=8),
    st.randoms(use_true_random=False),
)
def test_keys_are_those_of_the_reference(said: list[Said], random: Any) -> None:
    s = Script(num_agents=len(said), equivalence=f"embedding:{LEAST}").running()
    effects: list[m.Effect] = []
    waiting: list[int] = []
    asked: set[int] = set()  # those whose text has a vector already are not
    order = list(range(len(said)))
    random.shuffle(order)
    while order or waiting:
        if order and (not waiting or random.random() < 0.5):
            agent_id = order.pop()
            s.end(agent_id, said[agent_id][0])
            waiting += [effect.agent_id for effect in s.all(m.Embed)]
            asked |= set(waiting)
        else:
            agent_id = waiting.pop(random.randrange(len(waiting)))
            vector = said[agent_id][1]
            s.put(m.Embedded(agent_id, vector or (), "" if vector else "it failed"))
        effects += s.effects
    cast = [e.fields["ballot"] for e in effects if isinstance(e, m.Emit) and "ballot" in e.fields]
    assert sorted(ballot.agent_id for ballot in cast) == list(range(len(said)))
    heard = [said[b.agent_id] if b.agent_id in asked else (b.answer, None) for b in cast]
    assert [ballot.key for ballot in cast] == reference(heard)
    assert s.machine.ended


@given(st.lists(st.booleans(), min_size=2, max_size=8))
def test_a_model_that_fails_is_told_of_once(fails: list[bool]) -> None:
    s = Script(num_agents=len(fails), equivalence=f"embedding:{LEAST}").running()
    told: list[str] = []
    for agent_id, failing in enumerate(fails):
        s.end(agent_id, f"answer {agent_id}")
        s.put(m.Embedded(agent_id, () if failing else (1.0,), "it failed" if failing else ""))
        told += [effect.fields["message"] for effect in s.all(m.Emit)
                 if effect.kind == "feature_degraded"]  # fmt: skip
    assert len(told) == any(fails)
    assert all("it failed" in message for message in told)
