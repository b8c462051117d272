"""What cards cost at those who rent them out, and what a model of 8 billion weights costs there.

    python -m tests.bench.gpu_offers gpu_offers.csv [--sequences 32] [--positions 2000] [--json F]

One row a kind of card, of offers of one card: USD an hour, on demand and spot (of the offers that
name one), and at the medians USD for a million tokens that agents write, at so many sequences of so
many positions at once, by the speed that `cogitate simulate` gives the card. That speed is computed
from data sheets, not measured; prices are those of the table, of the day it was made.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from cogitate.cli.simulate.machines import Offer, fleet, offers

from tests.bench import report

COLUMNS = (
    "card", "offers", "providers", "USD/h least", "median", "spot, median", "spot off", "tokens/s",
    "USD/1M", "USD/1M spot",
)  # fmt: skip


class Typical(Random):
    """Draws what is in the middle: the speed of the data sheet, without a machine's own factor."""

    def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float:
        """Returns the mean."""
        return mu


def tokens_per_s(offer: Offer, sequences: int, positions: int) -> float:
    """Of all sequences together."""
    (machine,) = fleet([offer], 1, 1, Typical(0))
    return sequences / machine.truth.step_s(sequences, sequences * positions)


def row(card: str, found: Sequence[Offer], args: argparse.Namespace) -> dict[str, Any]:
    """One kind of card."""
    spots = [(one.spot_price, one.price) for one in found if one.spot_price]
    rate = tokens_per_s(found[0], args.sequences, args.positions)
    median = statistics.median(one.price for one in found)
    spot = statistics.median(price for price, _ in spots) if spots else None
    off = statistics.median(1 - price / usual for price, usual in spots) if spots else None
    per_million = 1e6 / rate / 3600
    return {
        "card": card,
        "offers": len(found),
        "providers": len({one.provider for one in found}),
        "least": round(min(one.price for one in found), 2),
        "median": round(median, 2),
        "spot_median": None if spot is None else round(spot, 2),
        "spot_off": None if off is None else round(off, 2),
        "tokens_per_s": round(rate),
        "usd_per_million": round(median * per_million, 2),
        "usd_per_million_spot": None if spot is None else round(spot * per_million, 2),
    }


def main() -> None:
    """Computes, prints, writes."""
    parser = report.parser(__doc__ or "")
    parser.add_argument("offers", type=Path)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--positions", type=int, default=2000)
    args = parser.parse_args()
    cards: dict[str, list[Offer]] = {}
    for one in offers(args.offers):
        if one.accelerators == 1:
            cards.setdefault(one.accelerator, []).append(one)
    rows = [row(card, found, args) for card, found in cards.items() if len(found) > 1]
    rows.sort(key=lambda one: one["usd_per_million"])
    shown = ([("–" if value is None else value) for value in one.values()] for one in rows)
    report.console().print(report.table("one card", COLUMNS, shown))
    report.write(args, rows=rows)


if __name__ == "__main__":
    main()
