"""What `cogitate explain` makes of events."""

from __future__ import annotations

import io

import pytest
from cogitate.cli.commands.explain import render
from cogitate.cli.view.explanation import Explanation
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb2
from cogitate.v1 import router_service_pb2 as router_pb2
from rich.console import Console

pytestmark = pytest.mark.unit


def placed(number: int, endpoint: str, agents: list[int], *rejected: tuple[str, str, int]):
    message = pb2.Placed(
        placements=[
            common.PlacedAgents(
                endpoint_id=endpoint, provider="north", region="n1", agent_ids=agents,
                reason=f"{len(agents)} of 4 agents: 1.00 s predicted",
            )
        ],
        rejected=[
            router_pb2.RejectedEndpoint(endpoint_id=e, reason=r, endpoint_count=n)
            for e, r, n in rejected
        ],
        policy="gang",
    )  # fmt: skip
    return pb2.ContemplationEvent(event_number=number, placed=message)


def test_every_placement_its_reason_and_what_was_lost_are_told() -> None:
    lost = pb2.AgentLost(agent_id=3, endpoint_id="a", reason="UNAVAILABLE", resumed=True)
    events = [
        placed(2, "a", [0, 1, 2, 3], ("x", "it is draining", 1)),
        pb2.ContemplationEvent(event_number=7, agent_lost=lost),
        placed(8, "b", [3], ("a", "it failed this contemplation", 0), ("y", "it is full", 70),
               ("z", "it is full", 1)),
        pb2.ContemplationEvent(event_number=9, verdict=common.Verdict(answer="4")),
    ]  # fmt: skip
    found = Explanation.read(events)
    assert (found.policy, found.ending) == ("gang", "verdict")
    assert [(p.endpoint_id, p.agent_ids) for p in found.places] == [
        ("a", (0, 1, 2, 3)),
        ("b", (3,)),
    ]
    assert found.unused == {"it failed this contemplation": 1, "it is full": 71}
    console = Console(width=160, file=io.StringIO())
    console.print(render(found))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("1 of 4 agents: 1.00 s predicted", "it goes on elsewhere", "y and 70 more"):
        assert part in said
