"""`cogitate simulate`, small: its files, its seed, an outage, and an engine against arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from cogitate.cli.main import main
from cogitate.cli.simulate import demand, machines
from cogitate.cli.simulate.engine import Engine
from cogitate.router.core.learning import Speed
from cogitate.router.core.types import Description

pytestmark = pytest.mark.integration

OFFERS = """\
provider,region,accelerator,accelerators,vram_gib_per_accelerator,price_usd_per_hour,spot_price_usd_per_hour,instance_type
north,n1,H100,1,80,3.0,1.2,a
north,n2,L40S,1,48,1.1,,b
south,s1,A100-80GB,1,80,1.8,0.9,c
south,s1,H200,2,141,7.0,,d
west,w1,H100,1,80,2.5,,e
west,w1,T4,1,16,0.4,,too-small
west,w1,RTX-Unheard-Of,1,48,0.2,,unknown
"""


def files(folder: Path) -> list[str]:
    """Offers made up, and calls made up in both forms of recordings."""
    (folder / "offers.csv").write_text(OFFERS)
    dice = Random(3)
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    rows += [
        f"2023-11-16 18:17:{i:02}.9799600,{dice.randint(20, 6000)},{dice.randint(5, 60)}"
        for i in range(40)
    ]
    (folder / "calls.csv").write_text("\n".join(rows) + "\n")
    lines = [
        {"timestamp": 250 * i, "input_length": 512 * (i % 7 + 1), "output_length": 20,
         "hash_ids": [100 * (i % 3) + j for j in range(i % 7 + 1)]}
        for i in range(40)
    ]  # fmt: skip
    (folder / "turns.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    calls = f"{folder / 'calls.csv'},{folder / 'turns.jsonl'}"
    return ["--offers", str(folder / "offers.csv"), "--calls", calls, "--endpoints", "24"]


def test_an_outage_loses_nothing_and_the_seed_decides_all(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        out = tmp_path / f"{name}.json"
        arguments = [
            "simulate", *files(tmp_path), "--requests", "40", "--rate", "8", "--providers", "3",
            "--policies", "gang,least_load,burst_prefix", "--outage", "2", "--preemptions", "60",
            "--survivors", "0.5", "--json", str(out),
        ]  # fmt: skip
        assert main(arguments) == 0
        found.append(json.loads(out.read_text()))
    for one in found:
        del one["placing_cpu_us"]
    assert found[0] == found[1]
    runs = {run["policy"]: run for run in found[0]["runs"]}
    assert {run["contemplations"] for run in runs.values()} == {40}
    assert all(run["lost"] == 0 for run in runs.values())
    assert sum(run["moved_agents"] for run in runs.values()) > 0
    assert len({run["makespan_p99_s"] for run in runs.values()}) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policies", "nonsense"], "unknown policy nonsense"),
        (["--offers", "nowhere.csv"], "nowhere.csv"),
        (["--survivors", "1"], "--survivors is from 0"),
    ],
)
def test_wrong_use_is_said(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *files(tmp_path), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_only_offers_that_can_hold_the_model_are_taken(tmp_path: Path) -> None:
    files(tmp_path)
    offers = machines.offers(tmp_path / "offers.csv")
    assert {offer.accelerator for offer in offers} == {"H100", "L40S", "A100-80GB", "H200"}
    fleet = machines.fleet(offers, 30, 2, Random(1))
    assert len({m.description.provider for m in fleet}) == 2
    (tmp_path / "offers.csv").write_text("provider\nx\n")
    with pytest.raises(ValueError, match="no table of offers"):
        machines.offers(tmp_path / "offers.csv")


def test_requests_keep_order_rate_and_prompts(tmp_path: Path) -> None:
    files(tmp_path)
    recordings = [demand.calls(tmp_path / name) for name in ("calls.csv", "turns.jsonl")]
    asked = demand.requests(recordings, 200, 10.0, Random(2))
    assert [r.at_s for r in asked] == sorted(r.at_s for r in asked)
    assert len(asked) == 200
    assert asked[-1].at_s == pytest.approx(20.0, rel=0.2)
    assert {len(r.tokens) for r in asked} == {1, 4, 8, 16}
    assert any(r.conversation for r in asked) and not all(r.conversation for r in asked)
    with pytest.raises(ValueError, match="no recording"):
        demand.calls(tmp_path / "offers.csv")


def test_an_engine_takes_the_time_that_its_speed_says() -> None:
    what = Description("a", "h:1", total_blocks=10_000, block_size=16)
    engine = Engine(machines.Machine(what, Speed(0.01, 0.001, 0.0, 0.002)), Random(1))
    ready = engine.prefill(0.0, 1000, (1, 2), 2)
    assert ready == pytest.approx(2.0)
    assert engine.prefill(0.0, 1000, (1,), 1) == pytest.approx(2.0 + 488 * 0.002)  # one is cached
    engine.start(ready, "c", {0: 100, 1: 300}, 1000)
    engine.noise = 1.0
    first = engine.next_end()
    assert first == pytest.approx(2.0 + 100 * 0.012)
    assert engine.ended(first) == [("c", 0)]
    engine.noise = 1.0
    last = engine.next_end()
    assert last == pytest.approx(first + 200 * 0.011)
    assert engine.drop(first + 100 * 0.011) == [("c", 1, 100)]
    assert engine.next_end() is None
