"""Endpoints of a simulated fleet: what they say of themselves, and how fast they truly are.

Every one serves one model of 8 billion weights in 16 bits. A step reads the weights, and the keys
and values of all positions (128 KiB each), at a share of the memory bandwidth; a prompt position
costs two operations a weight. Bandwidth and operations are those of the router's own table of
hardware; several accelerators are used together. Each machine differs from that by a factor of its
own, drawn log-normally, and each step by noise; the router knows neither, and learns.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from cogitate.router.core.learning import HARDWARE, Speed
from cogitate.router.core.types import Description

MODEL: Final = "simulated-8b"
BLOCK: Final = 16
_WEIGHT_BYTES: Final = 16e9
_POSITION_BYTES: Final = 131_072.0
_OPERATIONS: Final = 16e9  # a position
_READS, _COMPUTES = 0.6, 0.4  # shares of the data sheet that are reached
_TOGETHER: Final = 0.8  # what a further accelerator adds, of itself
_OTHERWISE: Final = 0.3  # spread of machines of one kind: sigma of the logarithm
_START_S: Final = 0.003  # a step, whatever is in it


@dataclass(frozen=True, slots=True)
class Offer:
    """A row of the offers. Prices are of the whole machine, in USD an hour."""

    provider: str
    region: str
    accelerator: str
    accelerators: int
    gib: float
    price: float
    spot_price: float | None


@dataclass(frozen=True, slots=True)
class Machine:
    """An endpoint: its description, and its true speed, which nobody is told."""

    description: Description
    truth: Speed


def offers(path: Path) -> list[Offer]:
    """Reads gpu_offers.csv; rows of hardware that the router's table does not have are left out.

    Raises ValueError that names what is wrong.
    """
    found: list[Offer] = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                accelerator, count = row["accelerator"], int(row["accelerators"])
                gib = float(row["vram_gib_per_accelerator"] or 0) or _usual_gib(accelerator)
                spot = row["spot_price_usd_per_hour"]
                offer = Offer(
                    row["provider"], row["region"].strip(), accelerator, count, gib,
                    float(row["price_usd_per_hour"]), float(spot) if spot else None,
                )  # fmt: skip
            except (KeyError, ValueError) as error:
                raise ValueError(f"{path} is no table of offers: {error}") from None
            if _bandwidth(accelerator) and gib * count >= 30 and count <= 8 and offer.price > 0:
                found.append(offer)
    if not found:
        raise ValueError(f"{path} has no offer with hardware that is known")
    return found


def fleet(offers: Sequence[Offer], count: int, providers: int, dice: Random) -> list[Machine]:
    """Draws machines from the offers of the providers that offer most."""
    rows: dict[str, list[Offer]] = {}
    for offer in offers:
        rows.setdefault(offer.provider, []).append(offer)
    most = sorted(rows, key=lambda name: (-len(rows[name]), name))[:providers]
    machines = []
    for i in range(count):
        provider = most[i % len(most)]
        offer = dice.choice(rows[provider])
        machines.append(_machine(i, offer, dice))
    return machines


def _machine(i: int, offer: Offer, dice: Random) -> Machine:
    bandwidth, flops = _bandwidth(offer.accelerator) or (1.0, 1.0)
    together = 1 + _TOGETHER * (offer.accelerators - 1)
    own = math.exp(dice.gauss(0, _OTHERWISE))
    reads = bandwidth * 1e9 * _READS * together / own
    computes = flops * 1e12 * _COMPUTES * together / own
    truth = Speed(
        _START_S + _WEIGHT_BYTES / reads, _OPERATIONS / computes, _POSITION_BYTES / reads,
        _OPERATIONS / computes,
    )  # fmt: skip
    is_spot = offer.spot_price is not None and 0 < offer.spot_price and dice.random() < 0.5
    price = offer.spot_price if is_spot and offer.spot_price else offer.price
    free_bytes = offer.gib * 2**30 * offer.accelerators * 0.9 - _WEIGHT_BYTES
    blocks = max(256, int(free_bytes / (_POSITION_BYTES * BLOCK)))
    description = Description(
        endpoint_id=f"{offer.provider}-{i}",
        address=f"{offer.provider}-{i}:7105",
        provider=offer.provider,
        region=offer.region,
        failure_domain=offer.region,
        models=(MODEL,),
        hardware=f"{offer.accelerators}x{offer.accelerator}",
        price_per_hour_micro_usd=int(price * 1e6),
        is_spot=is_spot,
        total_blocks=blocks,
        block_size=BLOCK,
        max_sequences=64,
        build_digest="simulated",
        max_model_len=65_536,
    )
    return Machine(description, truth)


def _bandwidth(accelerator: str) -> tuple[float, float] | None:
    name = accelerator.lower()
    return next(((row[1], row[2]) for row in HARDWARE if row[0] in name), None)


def _usual_gib(accelerator: str) -> float:
    name = accelerator.lower()
    usual = (("h200", 141), ("b200", 180), ("80g", 80), ("32g", 32), ("h100", 80), ("a100", 40))
    return float(next((gib for part, gib in usual if part in name), 16))
