"""Two providers and a home site on one machine.

    python -m tests.multihost [tour]   a few contemplations, a site cut off in their midst, healed
    python -m tests.multihost up       stays up until Ctrl-C, and says how to ask
    python -m tests.multihost restart  every process restarted in turn while clients stream
    python -m tests.multihost cut      sites cut off again and again while clients stream
    python -m tests.multihost routers  each router killed while clients stream
    python -m tests.multihost traffic  bytes between the sites, idle and for each contemplation

Needs Linux, root, /dev/net/tun, iproute2 and nats-server. Exits with 1 if anything was lost,
or if a picture or a conversation crossed to a site twice.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cogitate.kit.trace_store import TraceStore
from rich.progress import Progress

from tests.bench import report
from tests.multihost import plot, scenes, traces, traffic
from tests.multihost.layout import AURORA, BOREALIS, HOME
from tests.multihost.load import Load
from tests.multihost.mesh import Mesh, Unavailable, check
from tests.multihost.recorder import Recorder
from tests.multihost.scenes import Mark

SITES = (AURORA, BOREALIS)


class Run:
    """What every scene is given: the mesh, its clients, and where to tell of progress."""

    def __init__(self, args: argparse.Namespace, mesh: Mesh, load: Load, bar: Progress) -> None:
        self.args, self.mesh, self.load, self.bar = args, mesh, load, bar
        self.marks: list[Mark] = []
        self.more: dict[str, Any] = {}
        self.chance = random.Random(args.seed)

    def did(self, mark: Mark) -> None:
        """Notes what was done."""
        self.marks.append(mark)
        told = {key: value for key, value in mark.more.items() if key != "healed_at"}
        self.bar.console.print(f"{mark.what}: {told}" if told else mark.what)

    def settle(self) -> None:
        """Lets all end, and notes for how long something was left behind it."""
        self.more.setdefault("left_s", []).append(scenes.settle(self.mesh, self.load))
        self.load.resume()


def tour(run: Run) -> None:
    run.did(scenes.undisturbed(run.load, 6))
    run.did(scenes.cut(run.mesh, run.load, AURORA, run.args.cut_s, run.chance))
    run.settle()


def restart(run: Run) -> None:
    run.did(scenes.undisturbed(run.load, 50))
    while len(run.load.ended) < run.args.count:
        for name in scenes.RESTART_ORDER:
            run.did(scenes.restart(run.mesh, run.load, name, run.args.between))
    run.settle()


def cut(run: Run) -> None:
    run.did(scenes.undisturbed(run.load, 30))
    for number in range(run.args.cuts):
        site = SITES[number % 2]
        cut_s = run.chance.uniform(0.5, 2 * run.args.cut_s)
        run.did(scenes.cut(run.mesh, run.load, site, cut_s, run.chance))
        run.settle()


def routers(run: Run) -> None:
    run.did(scenes.undisturbed(run.load, 30))
    for number in range(run.args.cuts):
        name = f"router-{1 + number % 2}"
        run.did(scenes.kill(run.mesh, run.load, name, run.args.between))
    run.settle()


def traffic_(run: Run) -> None:
    load, mesh = run.load, run.mesh  # which asks nothing yet
    time.sleep(1.0)
    marks, counts = [time.monotonic()], [mesh.counts()]
    time.sleep(run.args.idle_s)
    marks.append(time.monotonic())
    counts.append(mesh.counts())
    begun = len(load.ended)
    load.resume()
    load.wait_for(lambda: len(load.ended) >= begun + run.args.count, 600)
    load.pause()
    time.sleep(1.0)
    marks.append(time.monotonic())
    counts.append(mesh.counts())
    stories = load.ended[begun:]
    idle_s, busy_s = marks[1] - marks[0], marks[2] - marks[1]
    for name, what in (("bytes", 1), ("packets", 0)):
        idle, busy = (traffic.between(*pair, what) for pair in itertools.pairwise(counts))
        run.more |= {
            f"idle_{name}_per_s": {
                pair: {k: round(v / idle_s) for k, v in of.items()} for pair, of in idle.items()
            },
            f"{name}_per_contemplation": traffic.per_contemplation(
                busy, idle, busy_s / idle_s, len(stories)
            ),
        }
    run.more |= {
        "contemplations": len(stories),
        "endpoints_per_site": traffic.spread(stories),
        "pictures": traffic.pictures(mesh, load.questions),
        "conversation_bytes": traffic.conversation_bytes(mesh, load.questions),
        "a_plainer_mesh": traffic.plainer(stories, run.args.agents),
    }
    run.did(Mark("traffic", marks[0], marks[2]))


SCENES: dict[str, Callable[[Run], None]] = {
    "tour": tour, "restart": restart, "cut": cut, "routers": routers, "traffic": traffic_,
}  # fmt: skip


def play(args: argparse.Namespace, folder: Path) -> bool:
    """Runs a scene; says whether nothing was lost."""
    console = report.console()
    with report.progress(console) as bar:
        starting = bar.add_task("processes", total=None)

        def changed(name: str, what: str) -> None:
            bar.advance(starting, what == "serving")

        with Mesh(folder, on_change=changed) as mesh:
            bar.update(starting, total=len(mesh.layout.processes))
            scenes.wait_for(lambda: scenes.knows_all(mesh))
            asked = bar.add_task("contemplations", total=None)
            recorder = Recorder(mesh)
            with (
                Load(mesh.layout.gateways, args.clients, args.agents,
                     on_end=lambda story: bar.advance(asked), paused=args.scene == "traffic",
                     ) as load,
                recorder,
            ):  # fmt: skip
                run = Run(args, mesh, load, bar)
                SCENES[args.scene](run)
                load.pause()
            told = traces.verify(mesh.layout.gateways, load.ended, args.agents)
            if args.scene == "traffic":
                store = TraceStore(mesh.layout.trace_store(HOME))
                run.more["conversations"] = traffic.conversations(store, load.ended)
    found = scenes.account(load.ended, run.marks)
    fine = not found["failed"] and not told["lost"] and found["answered"] == found["asked"]
    fine = fine and ("pictures" not in run.more or traffic.crossed_once(run.more["pictures"]))
    fine = fine and not run.more.get("conversations", {}).get("crossed_twice")
    console.print(report.table(args.scene, ["what", "found"], rows(found, run, told)))
    report.write(
        args, fine=fine, pid=os.getpid(), account=found, traces=told, **run.more,
        marks=[{"what": m.what, "at_s": round(m.at - load.begun_at, 3),
                "until_s": round(m.until - load.begun_at, 3), **m.more} for m in run.marks],
    )  # fmt: skip
    if args.json:
        plot.draw(args.json.with_suffix(".png"), args.scene, load, run.marks, recorder)
    return fine


def rows(found: dict[str, Any], run: Run, told: dict[str, Any]) -> list[tuple[str, Any]]:
    """The table."""
    made: list[tuple[str, Any]] = [
        ("contemplations asked, answered", f"{found['asked']}, {found['answered']}"),
        ("whole traces, without the router's span", _both(told)),
        ("right answers", found["right"]),
        ("agents that went on elsewhere", found["agents_that_moved"]),
        ("gaps in streams: median, p99, longest", _three(found["gap_s"])),
        ("gaps over 0.5 s", found["gaps_over_limit"]),
        ("question to first event: median, p99, longest", _three(found["first_event_s"])),
    ]
    converged = [m.more["converged_s"] for m in run.marks if "converged_s" in m.more]
    if converged:
        made.append(("converged after healing, s", ", ".join(map(str, converged))))
    made += [("failed", one) for one in found["failed"]]
    made += [("trace", f"{id_}: {fault}") for id_, fault in told["lost"].items()]
    for service, size in traffic.sums(run.more.get("bytes_per_contemplation", {})).items():
        made.append((f"bytes a contemplation between sites: {service}", size))
    for site, done in run.more.get("pictures", {}).items():
        if isinstance(done, dict):
            made += [(f"{name.replace('_', ' ')}: {site}", n) for name, n in done.items()]
    if "conversation_bytes" in run.more:
        made.append(("bytes of a conversation with its tools", run.more["conversation_bytes"]))
        made += [(f"contemplations: {k}", v) for k, v in run.more["endpoints_per_site"].items()]
    made += _conversations(run.more.get("conversations", {}))
    for name, number in run.more.get("a_plainer_mesh", {}).items():
        made.append((f"a plainer mesh, a contemplation: {name}", number))
    return made


def _conversations(found: dict[str, Any]) -> list[tuple[str, Any]]:
    made: list[tuple[str, Any]] = []
    for name, what in found.items():
        name = name.replace("_", " ")
        if name == "answered s":
            made.append(("conversations handed on in: median, p99, longest", _three(what)))
        elif isinstance(what, dict):
            made += [
                (f"conversations {how.replace('_', ' ')}: {name}", n) for how, n in what.items()
            ]
        else:
            made.append((f"conversations, {name}", what if name != "crossed twice" else len(what)))
    return made


def _both(told: dict[str, Any]) -> str:
    return f"{told['whole']}, {told['without_the_routers_span']}"


def _three(of: dict[str, float]) -> str:
    return ", ".join(f"{of[key]:.3f}" for key in ("median", "p99", "max") if key in of)


def up(folder: Path) -> None:
    """Stays up until Ctrl-C."""
    console = report.console()
    with Mesh(folder, on_change=lambda name, what: console.print(f"{name}: {what}")) as mesh:
        for one in mesh.layout.processes.values():
            console.print(f"  {one.site:9} {one.name:18} {one.address}")
        console.print(
            f'\n  cogitate ask "What is the sum of the red cards?" --image examples/board.png '
            f"--address {mesh.layout.gateways}\n  logs in {folder}/logs; Ctrl-C ends it"
        )
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass


def main() -> int:
    parser = report.parser(__doc__ or "")
    parser.add_argument("scene", nargs="?", default="tour", choices=[*SCENES, "up"])
    parser.add_argument("--count", type=int, default=500, help="contemplations at least")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--between", type=int, default=10, help="contemplations after each step")
    parser.add_argument("--cuts", type=int, default=10, help="of sites, or of routers")
    parser.add_argument("--cut-s", type=float, default=5.0, help="how long a site is cut off")
    parser.add_argument("--idle-s", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keeps logs and stores there")
    args = parser.parse_args()
    try:
        check()
        with tempfile.TemporaryDirectory(prefix="cogitate-multihost-") as name:
            folder = (args.folder or Path(name)).resolve()
            if args.scene == "up":
                up(folder)
                return 0
            return 0 if play(args, folder) else 1
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    # The root's certificates and proxies are not for a mesh on this machine.
    os.environ.setdefault("NO_PROXY", "*")
    sys.exit(main())
