"""Placements that were recorded, made again by today's code.

A difference is a change of behaviour: look at it, and if it is meant, record it with `make bless`.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from cogitate.router.core.placement import PlacementPolicy, place
from cogitate.router.core.policies import POLICIES
from cogitate.router.core.types import (
    Constraints,
    Description,
    EndpointSnapshot,
    GangNeed,
    Load,
    Placement,
    State,
)

pytestmark = pytest.mark.replay

RECORD = Path(__file__).parent / "router_placements.json"
SCENARIOS = 40


def scenario(number: int) -> tuple[GangNeed, list[EndpointSnapshot], PlacementPolicy]:
    """Returns a fleet, a gang and a policy; the same for the same number."""
    draw = random.Random(f"router-{number}")
    fleet = []
    for i in range(draw.randint(1, 6)):
        what = Description(
            f"e{i}", f"host-{i}:7105", f"provider-{i % 3}", ("eu", "us")[i % 2],
            models=("mini",) if draw.random() < 0.9 else ("other",),
            price_per_hour_micro_usd=draw.choice([0, 90_000, 2_500_000]),
            total_blocks=4096, block_size=16, max_sequences=draw.choice([8, 64]),
            max_model_len=4096,
        )  # fmt: skip
        load = Load(
            running=draw.randint(0, 8), waiting=draw.randint(0, 2), free_blocks=4096,
            prefill_tokens_per_s=draw.choice([0.0, 900.0, 8000.0]),
            step_s=draw.choice([0.0, 0.008, 0.03]), step_batch_size=draw.choice([1.0, 6.0]),
        )  # fmt: skip
        state = State.DRAINING if draw.random() < 0.1 else State.READY
        known = draw.random() < 0.9
        fleet.append(EndpointSnapshot(what, state, load if known else None, "it is unknown"))
    need = GangNeed(
        f"c{number}", "mini", tuple(range(draw.choice([1, 4, 8, 16]))),
        prefix_tokens=draw.choice([60, 700]), tokens_per_agent=draw.choice([0, 160, 1000]),
        constraints=Constraints(min_failure_domains=draw.choice([0, 2, 3])),
    )  # fmt: skip
    return need, fleet, PlacementPolicy(sorted(POLICIES)[number % len(POLICIES)])


def as_record(placement: Placement) -> dict[str, Any]:
    return {
        "policy": placement.policy,
        "shares": [
            {"endpoint": s.endpoint_id, "agents": list(s.agent_ids), "reason": s.reason}
            for s in placement.shares
        ],
        "rejected": {r.endpoint_id: r.reason for r in placement.rejected},
        "denial": placement.denial,
        "retryable": placement.retryable,
    }


def test_recorded_placements_are_made_again() -> None:
    made = {}
    for number in range(SCENARIOS):
        need, fleet, policy = scenario(number)
        made[need.contemplation_id] = as_record(place(need, fleet, 0.0, policy))
    if os.environ.get("COGITATE_BLESS"):
        RECORD.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    assert json.loads(RECORD.read_text(encoding="utf-8")) == made
