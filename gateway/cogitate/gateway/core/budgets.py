"""What a tenant may spend a day and a month, and what of it one contemplation may take.

A contemplation is granted its part before it begins and is bound to it by the mesh; what it did not
take is free again when it has ended. Days and months are UTC's.

Invariants:
1. What is granted to contemplations that run and what is spent never exceed a budget together
   (test_gateway_budgets: never_more_than_the_budget).
2. Where something is left a contemplation is granted at least one token and one micro-USD
   (test_gateway_budgets: something_of_what_is_left).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cogitate.kit.errors import BudgetExceeded, CogitateError, Rejected

PERIODS: Final = ("day", "month")
# Part of what is left that a contemplation gets which names no budget of its own, and the least
# tokens of it: so that several can run at once.
SHARE: Final = 0.25
LEAST_TOKENS: Final = 4096
_FORMAT: Final = {"day": "%Y-%m-%d", "month": "%Y-%m"}


@dataclass(frozen=True)
class Amount:
    """Sampled tokens, and money in millionths of a US dollar."""

    tokens: int = 0
    micro_usd: int = 0


@dataclass(frozen=True)
class Budget:
    """What a tenant may spend in a period; 0 is no limit."""

    tokens_per_day: int = 0
    tokens_per_month: int = 0
    micro_usd_per_day: int = 0
    micro_usd_per_month: int = 0


@dataclass(frozen=True)
class Use:
    """What a tenant spent in a period, what is granted beside it, in how many contemplations."""

    spent: Amount = Amount()
    granted: Amount = Amount()
    contemplations: int = 0


def name_of(period: str, now_s: float) -> str:
    """Returns the day or month that a Unix time is in, `2026-11-27` or `2026-11`."""
    return datetime.fromtimestamp(now_s, UTC).strftime(_FORMAT[period])


def begins_s(period: str, now_s: float) -> float:
    """Returns when the running day or month began."""
    day = datetime.fromtimestamp(now_s, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (day if period == "day" else day.replace(day=1)).timestamp()


def renews(period: str, now_s: float) -> datetime:
    """Returns when the next day or month begins."""
    began = datetime.fromtimestamp(begins_s(period, now_s), UTC)
    later = began + timedelta(days=1 if period == "day" else 32)
    return later if period == "day" else later.replace(day=1)


def grant(asked: Amount, budget: Budget, uses: Mapping[str, Use], now_s: float) -> Amount:
    """Returns what a contemplation may take; 0 where nothing bounds it, in `asked` too.

    `uses` holds the running day and month. Raises BudgetExceeded if nothing is left, Rejected if
    all that is left is granted to others.
    """
    return Amount(
        _grant("tokens", asked.tokens, budget, uses, now_s),
        _grant("micro_usd", asked.micro_usd, budget, uses, now_s),
    )


def _grant(unit: str, asked: int, budget: Budget, uses: Mapping[str, Use], now_s: float) -> int:
    lefts: list[int] = []
    for period in PERIODS:
        limit: int = getattr(budget, f"{unit}_per_{period}")
        if not limit:
            continue
        spent: int = getattr(uses[period].spent, unit)
        granted: int = getattr(uses[period].granted, unit)
        if spent + granted >= limit:
            raise _refusal(unit, period, limit, spent, now_s)
        lefts.append(limit - spent - granted)
    if not lefts:
        return asked
    left = min(lefts)
    least = LEAST_TOKENS if unit == "tokens" else 1
    share = min(left, max(least, int(left * SHARE)))
    return min(asked, left) if asked else share


def _refusal(unit: str, period: str, limit: int, spent: int, now_s: float) -> CogitateError:
    when = renews(period, now_s)
    told = {
        "budget": f"{'usd' if unit == 'micro_usd' else unit}_per_{period}",
        "limit": shown(unit, limit),
        "spent": shown(unit, spent),
        "renews": when.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    words = f"this tenant may spend {told['limit']} a {period}"
    if spent < limit:
        return Rejected(
            f"{words}; it spent {told['spent']}, and what is left is granted to contemplations "
            "that run",
            reason="TENANT_LIMIT",
            metadata=told,
            retry_after_s=1.0,
        )
    return BudgetExceeded(
        f"{words}, and has; it renews at {told['renews']}",
        reason="TENANT_LIMIT",
        metadata=told,
        retry_after_s=max(1.0, when.timestamp() - now_s),
    )


def shown(unit: str, value: int) -> str:
    """Returns an amount in words."""
    return f"{value} tokens" if unit == "tokens" else f"{value / 1e6:.2f} US dollars"
