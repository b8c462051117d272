"""Budgets of tenants: whatever is granted, spent and given back, and on whichever day."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cogitate.gateway.accounts import Accounts
from cogitate.gateway.core import budgets
from cogitate.gateway.core.budgets import LEAST_TOKENS, PERIODS, Amount, Budget, Use, grant
from cogitate.kit.errors import BudgetExceeded, CogitateError, Rejected
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

pytestmark = pytest.mark.property

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC).timestamp()
AMOUNTS = st.builds(Amount, st.integers(0, 50_000), st.integers(0, 50_000))
LIMITS = st.builds(Budget, *[st.sampled_from((0, 1, 5000, 40_000))] * 4)


@given(AMOUNTS, LIMITS, *[st.builds(Use, AMOUNTS, AMOUNTS)] * 2)
def test_something_of_what_is_left(asked: Amount, budget: Budget, day: Use, month: Use) -> None:
    uses = {"day": day, "month": month}
    lefts = {
        unit: min(
            (
                limit - getattr(uses[p].spent, unit) - getattr(uses[p].granted, unit)
                for p in PERIODS
                if (limit := getattr(budget, f"{unit}_per_{p}"))
            ),
            default=None,
        )
        for unit in ("tokens", "micro_usd")
    }
    try:
        granted = grant(asked, budget, uses, NOW)
    except CogitateError as error:
        assert error.reason == "TENANT_LIMIT" and error.code == "RESOURCE_EXHAUSTED"
        assert any(left is not None and left <= 0 for left in lefts.values())
        return
    for unit, left in lefts.items():
        got, wanted = getattr(granted, unit), getattr(asked, unit)
        if left is None:
            assert got == wanted
        else:
            assert 1 <= got <= left
            assert got == min(wanted, left) or not wanted


def test_the_refusal_says_which_budget_and_when_it_renews() -> None:
    spent = {"day": Use(Amount(10)), "month": Use(Amount(0, 0))}
    with pytest.raises(BudgetExceeded, match="10 tokens a day, and has; it renews at") as caught:
        grant(Amount(), Budget(tokens_per_day=10), spent, NOW)
    assert caught.value.metadata == {
        "budget": "tokens_per_day", "limit": "10 tokens", "spent": "10 tokens",
        "renews": "2026-11-28T00:00:00Z",
    }  # fmt: skip
    assert caught.value.retry_after_s == 12 * 3600
    running = {"day": Use(), "month": Use(Amount(0, 4), Amount(0, 6))}
    with pytest.raises(Rejected, match="granted to contemplations that run") as waits:
        grant(Amount(), Budget(micro_usd_per_month=10), running, NOW)
    assert waits.value.metadata["budget"] == "usd_per_month"
    assert waits.value.metadata["renews"] == "2026-12-01T00:00:00Z"
    assert waits.value.retry_after_s == 1.0


@pytest.mark.parametrize(
    ("left", "asked", "granted"),
    [
        (100_000, 0, 25_000), (8_000, 0, LEAST_TOKENS), (LEAST_TOKENS, 0, LEAST_TOKENS),
        (LEAST_TOKENS - 1, 0, LEAST_TOKENS - 1), (1, 0, 1), (100, 99, 99), (100, 100, 100),
        (100, 101, 100),
    ],
)  # fmt: skip
def test_the_edges_of_a_share(left: int, asked: int, granted: int) -> None:
    uses = {period: Use() for period in PERIODS}
    assert grant(Amount(asked), Budget(tokens_per_day=left), uses, NOW).tokens == granted


@given(st.datetimes(datetime(2000, 1, 1), datetime(2099, 1, 1), timezones=st.just(UTC)))
def test_days_and_months_follow_each_other(when: datetime) -> None:
    for period in PERIODS:
        now = when.timestamp()
        ends = budgets.renews(period, now).timestamp()
        assert budgets.begins_s(period, now) <= now < ends
        assert budgets.name_of(period, ends) > budgets.name_of(period, now)
        assert budgets.name_of(period, ends - 1) == budgets.name_of(period, now)
        assert budgets.begins_s(period, ends) == ends


class AccountsMachine(RuleBasedStateMachine):
    """One tenant of two gateways with one file, beside sums kept by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = NOW
        self.accounts = Accounts(Path(":memory:"), now=lambda: self.now_s)
        self.open: dict[str, tuple[Amount, float]] = {}
        self.spent: dict[str, int] = {}
        self.over: dict[str, int] = {}
        self.number = 0
        self.budget = Budget()

    def teardown(self) -> None:
        self.accounts.close()

    @initialize(budget=LIMITS)
    def starts(self, budget: Budget) -> None:
        self.budget = budget
        self.accounts.set_budget("ada", budget)

    @rule(asked=AMOUNTS)
    def begin(self, asked: Amount) -> None:
        self.number += 1
        try:
            granted, is_new = self.accounts.begin("ada", str(self.number), asked)
        except (BudgetExceeded, Rejected):
            return
        assert is_new
        assert self.accounts.begin("ada", str(self.number), asked) == (granted, False)
        self.open[str(self.number)] = granted, self.now_s

    @rule(data=st.data(), over=st.integers(0, 8), share=st.floats(0, 1))
    def end(self, data: st.DataObject, over: int, share: float) -> None:
        if not self.open:
            return
        id = data.draw(st.sampled_from(sorted(self.open)))
        granted, begun_s = self.open.pop(id)
        tokens = int(granted.tokens * share) + over
        assert self.accounts.book("ada", id, Amount(tokens, granted.micro_usd))
        assert not self.accounts.book("ada", id, Amount(tokens)), "booked twice"
        for period in PERIODS:
            name = budgets.name_of(period, begun_s)
            self.spent[name] = self.spent.get(name, 0) + tokens
            self.over[name] = self.over.get(name, 0) + max(0, tokens - granted.tokens)

    @rule(data=st.data())
    def never_was(self, data: st.DataObject) -> None:
        if self.open:
            id = data.draw(st.sampled_from(sorted(self.open)))
            del self.open[id]
            self.accounts.release("ada", id)

    @rule(hours=st.integers(1, 40))
    def time_passes(self, hours: int) -> None:
        self.now_s += hours * 3600

    @invariant()
    def never_more_than_the_budget(self) -> None:
        for period, use in self.accounts.use("ada").items():
            name = budgets.name_of(period, self.now_s)
            assert use.spent.tokens == self.spent.get(name, 0)
            began = budgets.begins_s(period, self.now_s)
            held = sum(g.tokens for g, at in self.open.values() if at >= began)
            assert use.granted.tokens == held
            if limit := getattr(self.budget, f"tokens_per_{period}"):
                # Engines may go a step beyond what they were granted, and no further.
                assert use.spent.tokens + held <= limit + self.over.get(name, 0)


TestAccounts = AccountsMachine.TestCase
TestAccounts.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
