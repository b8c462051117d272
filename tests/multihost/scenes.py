"""What is done to the mesh while clients stream, and what came of it."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from cogitate.client import Client, CogitateError
from cogitate.v1 import router_service_pb2 as router_pb
from cogitate.v1.router_service_pb2_grpc import RouterServiceStub

from tests.bench.report import summary
from tests.multihost.load import Gap, Load, Story
from tests.multihost.mesh import Mesh

Say = Callable[[str], None]
# Who takes work comes last.
RESTART_ORDER: Final = (
    "nats", "router-1", "router-2", "aurora-1", "aurora-2", "borealis-1", "borealis-2",
    "vision-encoder-1", "vision-encoder-2", "vision-encoder-aurora", "vision-encoder-borealis",
    "tool-executor-1", "tool-executor-2",
    "aggregator-1", "aggregator-2", "gateway-1", "gateway-2",
)  # fmt: skip
# How long a scene waits for what it expects before it says that it did not come.
PATIENCE_S: Final = 60.0
LIMIT_OF_GAP_S: Final = 0.5


@dataclass
class Mark:
    """Something that was done: when it began, and when it was over."""

    what: str
    at: float
    until: float = 0.0
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """A router's view of the fleet."""

    num_ready: int
    num_leases: int
    num_busy: int  # agents at endpoints


def routers(mesh: Mesh) -> dict[str, Seen]:
    """What each router that can be reached sees."""
    found = {}
    for one in mesh.layout.of("router"):
        with grpc.insecure_channel(one.address, [("grpc.enable_http_proxy", 0)]) as channel:
            try:
                fleet: Any = RouterServiceStub(channel).GetFleet(
                    router_pb.GetFleetRequest(), timeout=0.5
                )
            except grpc.RpcError:
                continue
        busy = [e.load.running_gang_count + e.load.waiting_gang_count for e in fleet.endpoints]
        ready = [e for e in fleet.endpoints if e.state == "READY"]
        found[one.name] = Seen(len(ready), fleet.lease_count, sum(busy))
    return found


def wait_for(true: Callable[[], bool], timeout_s: float = PATIENCE_S) -> float | None:
    """Returns when it has come true, or None if it does not."""
    ends = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > ends:
            return None
        time.sleep(0.03)
    return time.monotonic()


def knows_all(mesh: Mesh) -> bool:
    """Whether both routers hold every endpoint for ready."""
    seen = routers(mesh)
    num = len(mesh.layout.of("agent-decoder"))
    return len(seen) == 2 and all(one.num_ready == num for one in seen.values())


def is_quiet(mesh: Mesh) -> bool:
    """Whether nothing is left anywhere: no lease, no agent."""
    seen = routers(mesh)
    return len(seen) == 2 and all(s.num_leases == 0 and s.num_busy == 0 for s in seen.values())


def answers(address: str) -> bool:
    """Whether a service of contemplations, gateway or aggregator, answers a question now."""
    try:
        with Client(address, timeout_s=1.0) as client:
            return bool(client.ask("How are you?", agents=2, deadline_s=3.0).contemplation_id)
    except CogitateError:
        return False


# -- the scenes ---------------------------------------------------------------------------------


def undisturbed(load: Load, count: int) -> Mark:
    """Lets a number of contemplations end while nothing happens."""
    mark, begun = Mark("undisturbed", time.monotonic()), len(load.ended)
    load.wait_for(lambda: len(load.ended) >= begun + count, 600)
    mark.until = time.monotonic()
    return mark


def restart(mesh: Mesh, load: Load, name: str, between: int) -> Mark:
    """Ends a process in order and starts it again; then lets some contemplations end."""
    mark = Mark(f"restart {name}", time.monotonic())
    mesh.end(name)
    mark.more["ended_s"] = round(time.monotonic() - mark.at, 3)
    mesh.spawn(name, gently=True)
    mesh.wait_until_serving([name])
    mark.more["serves_s"] = round(time.monotonic() - mark.at, 3)
    wait_for(lambda: knows_all(mesh))
    begun = len(load.ended)
    load.wait_for(lambda: len(load.ended) >= begun + between)
    mark.until = time.monotonic()
    return mark


def cut(mesh: Mesh, load: Load, site: str, cut_s: float, chance: random.Random) -> Mark:
    """Cuts a site off in the midst of contemplations, joins it again, waits for agreement."""
    load.wait_for(lambda: bool(load.running))
    time.sleep(chance.uniform(0, 0.4))
    load.wait_for(lambda: bool(load.running))
    mark = Mark(f"cut {site}", mesh.cut(site))
    inside = load.running
    mark.more["running"] = len(inside)
    time.sleep(cut_s)
    healed_at = mesh.heal(site)
    mark.more["healed_at"] = healed_at
    aggregators = [one.address for one in mesh.layout.of("aggregator")]
    known_at = wait_for(lambda: knows_all(mesh))
    answered_at = [wait_for(lambda at=at: answers(at)) for at in aggregators]
    reached = [known_at, *answered_at]
    mark.until = time.monotonic()
    mark.more["fleet_known_s"] = None if known_at is None else round(known_at - healed_at, 3)
    mark.more["converged_s"] = (
        round(max(at for at in reached if at) - healed_at, 3) if all(reached) else None
    )
    load.wait_for(lambda: all(story.ended_at for story in inside))
    return mark


def kill(mesh: Mesh, load: Load, name: str, between: int) -> Mark:
    """Kills a process without a word, lets contemplations end, starts it again."""
    load.wait_for(lambda: bool(load.running))
    mark = Mark(f"kill {name}", mesh.signal(name, signal.SIGKILL))
    mark.more["running"] = len(load.running)
    begun = len(load.ended)
    load.wait_for(lambda: len(load.ended) >= begun + between)
    mesh.end(name)
    mesh.spawn(name)
    mesh.wait_until_serving([name])
    known_at = wait_for(lambda: knows_all(mesh))
    mark.until = known_at or time.monotonic()
    return mark


def settle(mesh: Mesh, load: Load) -> float | None:
    """Asks nothing new; returns how long after the last ending something was left, or None."""
    load.pause()
    ended_at = time.monotonic()
    quiet_at = wait_for(lambda: is_quiet(mesh))
    return None if quiet_at is None else round(max(0.0, quiet_at - ended_at), 3)


# -- what came of it ----------------------------------------------------------------------------


def account(stories: Sequence[Story], marks: Iterable[Mark]) -> dict[str, Any]:
    """Endings, and the gaps of streams by what was done when they began."""
    gaps = [gap for story in stories for gap in story.gaps()]
    failed = [story for story in stories if story.error]
    by_mark = {}
    for mark in marks:
        inside = [g for g in gaps if g.since < mark.until and g.since + g.s > mark.at]
        by_mark.setdefault(mark.what, []).append(max([g.s for g in inside], default=0.0))
    worst: list[Gap] = sorted(gaps, key=lambda gap: -gap.s)[:10]
    return {
        "asked": len(stories),
        "answered": sum(story.ended_at is not None and not story.error for story in stories),
        "right": sum(story.is_right for story in stories),
        "degraded": sum(bool(story.degraded) for story in stories),
        "agents_that_moved": sum(story.num_lost for story in stories),
        "failed": [f"{story.number}: {story.error}" for story in failed],
        "length_s": summary([story.length_s for story in stories]),
        "first_event_s": summary([story.first_s for story in stories]),
        "gap_s": summary([gap.s for gap in gaps]),
        "gaps_over_limit": sum(gap.s > LIMIT_OF_GAP_S for gap in gaps),
        "longest_gap_s_by_mark": {k: [round(s, 3) for s in v] for k, v in by_mark.items()},
        "worst": [{"s": round(g.s, 3), "story": g.story, "between": g.between} for g in worst],
    }
