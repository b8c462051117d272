"""``vote``: self-consistency (arXiv 2203.11171). Everybody thinks alone and has one vote."""

from __future__ import annotations

from cogitate.aggregator.core.strategies.base import Strategy


class Vote(Strategy):
    """Independent agents, one ballot each."""
