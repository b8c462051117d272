"""Budgets by example: money is tokens where tokens have a price."""

from __future__ import annotations

from typing import Any

import pytest
from cogitate.aggregator import endings
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.budget import Budget
from cogitate.aggregator.core.contemplation import Contemplation
from cogitate.v1 import router_service_pb2 as router_pb

pytestmark = pytest.mark.unit


def placed(price: int = 2_000_000, budget: int = 0, money: int = 60) -> tuple[Contemplation, Any]:
    """A machine whose two agents have their place, and the gang that it opened."""
    machine = Contemplation(
        m.Spec(
            contemplation_id="c",
            model="mini",
            effort="CONTEMPLATING",
            num_agents=2,
            strategy="vote",
            quorum="all",
            equivalence="auto",
            seed=1,
            temperature=None,
            budget_tokens=budget,
            max_tokens=10,
            budget_micro_usd=money,
        )
    )
    machine.start()
    payload = router_pb.PlacedGang(price_per_million_tokens_micro_usd=price)
    gang = m.PlacedGang("g", "e", "p", "r", (0, 1), "why", payload, price)
    effects = machine.handle(m.Granted(1, (gang,), "fake"))
    [opened] = [effect for effect in effects if isinstance(effect, m.OpenGang)]
    return machine, opened


@pytest.mark.parametrize(
    ("price", "budget", "money", "granted", "name"),
    [
        (2_000_000, 0, 60, 15, "money budget"),
        (2_000_000, 100, 60, 15, "money budget"),
        (2_000_000, 20, 60, 10, "token budget"),
        (2_000_000, 0, 0, 0, "token budget"),  # no limit
        (0, 0, 60, 0, "token budget"),  # priced by the hour: the shell looks at the time
        (0, 20, 60, 10, "token budget"),
    ],
)
def test_the_narrower_of_both_budgets_is_granted(
    price: int, budget: int, money: int, granted: int, name: str
) -> None:
    machine, opened = placed(price, budget, money)
    assert [order.granted for order in opened.agents] == [granted, granted]
    assert machine.budget.name == name


def test_money_that_is_used_up_ends_it_with_what_there_is() -> None:
    machine, _ = placed()
    effects: list[m.Effect] = []
    for agent_id in range(2):
        delta = m.Delta(agent_id, 1, 0, tuple(range(15)), "seven", True, -1.0)
        machine.handle(m.Stepped("g", (delta,)))
        assert endings.cost(machine, 3.0) == 30 * (agent_id + 1)  # also of agents that still write
        effects += machine.handle(m.GrantUsedUp("g", agent_id))
    for agent_id in range(2):
        effects += machine.handle(m.AgentEnded("g", agent_id, 1, "CANCELLED", "", 15, 0))
    emitted = {effect.kind: effect.fields for effect in effects if isinstance(effect, m.Emit)}
    assert machine.killed == [(0, "BUDGET", 15), (1, "BUDGET", 15)]
    assert emitted["verdict"]["outcome"].degraded_reasons[0] == "BUDGET"
    assert endings.cost(machine, 3.0) == 60


def test_money_that_pays_for_no_token_starts_nobody() -> None:
    budget = Budget(0, micro_usd=1)
    assert budget.price(2_000_000, is_first=True)
    assert (budget.pool, bool(budget.limit)) == (0, True)


def test_a_dearer_endpoint_later_leaves_less_in_the_pool() -> None:
    budget = Budget(0, micro_usd=60)
    assert budget.price(1_000_000, is_first=True)
    assert budget.pool == 60
    assert not budget.price(500_000, is_first=False)
    assert budget.price(3_000_000, is_first=False)
    assert (budget.pool, budget.limit) == (20, 20)


def test_whom_money_does_not_carry_waits_for_what_others_leave() -> None:
    machine, opened = placed(money=30)  # 15 tokens, and an agent is expected to take 10
    assert [(order.agent_id, order.granted) for order in opened.agents] == [(0, 15)]
    assert machine.agents[1].starved
    machine.handle(m.Stepped("g", (m.Delta(0, 1, 0, (1, 2), "7", True, -1.0),)))
    effects = machine.handle(m.AgentEnded("g", 0, 1, "STOP", "7", 2, 0))
    assert machine.agents[1].granted == 13
    assert [effect.agent_ids for effect in effects if isinstance(effect, m.Declare)] == [(1,)]
