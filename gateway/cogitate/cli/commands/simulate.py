"""`cogitate simulate`: placement policies side by side on a fleet that is not there."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from cogitate.cli import flags, screen

if TYPE_CHECKING:
    from cogitate.cli.simulate.world import Outcome, Setting

NAME = "simulate"
HELP = "compare placement policies on a simulated fleet"
DESCRIPTION = """\
Runs the router's own core against modelled endpoints: machines drawn from a table of GPU offers,
contemplations from recorded calls, the same for every policy of a seed. Truth differs from what the
router is told; it learns from reports. A provider's outage and spot pre-emptions are injected.

  cogitate simulate --offers gpu_offers.csv --calls azure_llm_2023_code.csv.gz,mooncake.jsonl.gz
  cogitate simulate … --endpoints 10000 --rate 50 --requests 2000 --outage 20 --seeds 3

USD are the hourly prices of the time endpoints are busy. `load`: how much more time the largest
share of a gang was given than the mean one, as predicted from what was declared; `ends`: how much
later the last share ended, after agents of unknown lengths (medians, of gangs on several
endpoints). `prefill`: tokens of prompts over those computed for them; each further endpoint of a
gang computes its prompt again. `off`: median error of predicted makespans.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = parser.add_argument
    add("--offers", type=Path, required=True, metavar="CSV", help="table of GPU offers")
    add(
        "--calls",
        type=flags.names,
        required=True,
        metavar="FILES",
        help="recorded calls: .csv, .jsonl, .gz",
    )
    add("--policies", type=flags.names, metavar="NAMES", help="of the router; all unless given")
    add("--endpoints", type=flags.positive, default=1000, help="(%(default)s)")
    add("--providers", type=flags.positive, default=12, help="(%(default)s)")
    add("--requests", type=flags.positive, default=1000, help="contemplations (%(default)s)")
    add("--rate", type=float, default=20.0, help="contemplations a second (%(default)s)")
    add("--domains", type=flags.positive, default=2, help="failure domains of a gang (%(default)s)")
    add("--survivors", type=float, default=0.0, help="share of a gang that outlives any provider")
    add(
        "--seconds-per-usd",
        type=flags.names,
        default=("60",),
        help="of policy gang; several are compared",
    )
    add(
        "--length-spread",
        type=float,
        default=0.3,
        metavar="SIGMA",
        help="of what a gang's agents write, of its logarithm; 0: all as much (%(default)s)",
    )
    add("--outage", type=float, metavar="S", help="when a whole provider goes away")
    add("--preemptions", type=float, default=0.0, metavar="N", help="an hour, of a spot machine")
    add("--seeds", type=flags.positive, default=1, help="how many (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every run")
    add("--plot", type=Path, metavar="FILE", help="draw makespans and costs (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    """Simulates, prints a table a seed; 1 if a contemplation was lost."""
    from cogitate.cli.main import UsageError

    try:
        from cogitate.cli.simulate import demand, machines, report
        from cogitate.cli.simulate.world import Setting
        from cogitate.router.core.policies import POLICIES
    except ImportError as error:
        raise UsageError(f"{error.name} is missing: pip install 'cogitate[router]'") from None
    names = args.policies or tuple(POLICIES)
    if unknown := [name for name in names if name not in POLICIES]:
        raise UsageError(f"unknown policy {unknown[0]}; there is: {', '.join(sorted(POLICIES))}")
    if not 0 <= args.survivors < 1 or args.rate <= 0 or args.preemptions < 0:
        raise UsageError("--survivors is from 0 to less than 1, --rate is above 0")
    if not 0 <= args.length_spread <= 2:
        raise UsageError("--length-spread is from 0 to 2")
    try:
        money = [float(text) for text in args.seconds_per_usd]
        offers = machines.offers(args.offers)
        recordings = [demand.calls(Path(name)) for name in args.calls]
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from None
    base = Setting(
        "gang", domains=args.domains, survivors=args.survivors, outage_at_s=args.outage,
        preemptions_per_hour=args.preemptions,
    )  # fmt: skip
    settings = [
        replace(base, policy=name, seconds_per_usd=each)
        for name in names
        for each in (money if name == "gang" else money[:1])
    ]
    outcomes: list[Outcome] = []
    for seed in range(args.seeds):
        dice = Random(f"simulate-{seed}")
        fleet = machines.fleet(offers, args.endpoints, args.providers, dice)
        asked = demand.requests(recordings, args.requests, args.rate, dice, args.length_spread)
        outcomes += _compared(fleet, asked, [replace(s, seed=seed) for s in settings])
        screen.console().print(f"seed {seed}", report.table(outcomes[-len(settings) :]))
    _write(args, outcomes)
    return int(any(outcome.lost for outcome in outcomes))


def _compared(fleet: list, asked: list, settings: list[Setting]) -> list[Outcome]:  # type: ignore[type-arg]
    from cogitate.cli.simulate.world import World
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    outcomes = []
    with Progress(*columns, TimeElapsedColumn(), console=screen.console(stderr=True)) as bar:
        for setting in settings:
            task = bar.add_task(setting.name, total=len(asked))
            world = World(fleet, asked, setting)
            outcomes.append(world.run(lambda ended, task=task: bar.update(task, completed=ended)))  # type: ignore[misc]
    return outcomes


def _write(args: argparse.Namespace, outcomes: list[Outcome]) -> None:
    from cogitate.cli.simulate import report

    placing = {o.setting.name: 1e6 * o.place_s / max(1, o.placements) for o in outcomes}
    shown = ("endpoints", "providers", "requests", "rate", "domains", "survivors", "outage",
             "preemptions", "length_spread", "seeds", "calls")  # fmt: skip
    settings = {name: getattr(args, name) for name in shown}
    settings["calls"] = [Path(name).name for name in args.calls]
    found = report.write(outcomes, settings, placing)
    for seed, better in found["compared"].items():
        if better:
            print(
                f"seed {seed}: against the best of the others p99 {better['p99_lower']:.0%} lower, "
                f"cost at its p99 {better['cost_at_makespan_lower']:.0%} lower"
            )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        report.plot(outcomes, args.plot)
