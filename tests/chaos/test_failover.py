"""Decoders are killed and stopped while agents write at T > 0, half of them under a JSON schema.

    COGITATE_CHAOS_DECODER_KILLS=1000 pytest -s tests/chaos/test_failover.py -k killed
    COGITATE_CHAOS_ENGINE=mini COGITATE_CHAOS_DECODER_KILLS=100 pytest -s … -k killed
    COGITATE_CHAOS_REQUESTS=2000 COGITATE_CHAOS_CLIENTS=12 COGITATE_CHAOS_TOKENS=40 \
        pytest -s tests/chaos/test_failover.py -k stopped
    COGITATE_CHAOS_OUTAGES=50 pytest -s tests/chaos/test_failover.py -k provider

The engine is the real one, its process and socket too. ``fast`` is a model of random weights whose
steps take 5 ms; ``mini`` is the shipped one on a picture. Every contemplation is compared, text and
tokens of every agent, with a run in which nothing died. A gap is the time from the signal to the
next token that a client saw of an agent that moved. With COGITATE_CHAOS_JSON=FILE what was found
is added to it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cogitate.cli.mesh.plan import Options
from cogitate.v1 import contemplation_service_pb2 as pb

from tests.bench.report import summary
from tests.chaos.fleet import (
    Case,
    Fleet,
    Load,
    Strike,
    gaps_s,
    running_fleet,
    undisturbed,
)
from tests.fakes.tiny_model import write_tiny_model

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(7200)]

KILLS = int(os.environ.get("COGITATE_CHAOS_DECODER_KILLS", "5"))
REQUESTS = int(os.environ.get("COGITATE_CHAOS_REQUESTS", "20"))
OUTAGES = int(os.environ.get("COGITATE_CHAOS_OUTAGES", "2"))
SEED = int(os.environ.get("COGITATE_CHAOS_SEED", "1"))
ENGINE = os.environ.get("COGITATE_CHAOS_ENGINE", "fast")
CLIENTS = int(os.environ.get("COGITATE_CHAOS_CLIENTS", "3"))
TOKENS = int(os.environ.get("COGITATE_CHAOS_TOKENS", "150"))  # of an agent, without a schema
AGENTS = 4
STEP_S = 0.005
BOARD = Path(__file__).parents[2] / "examples" / "board.png"
SCHEMA = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 999},
    "minItems": TOKENS * 2 // 15,
    "maxItems": TOKENS * 4 // 15,
}
# Faults come a thousand times as often as any operator would bear: what bounds retries is tested
# elsewhere, here every agent is to come through.
KNOBS = {"max-agent-loss-count": "50", "retry-floor-count": "100000"}


def questions() -> list[pb.ContemplationSpec]:
    """Of six seeds, every other one under a schema."""
    made = []
    for number in range(6):
        spec = pb.ContemplationSpec(
            agent_count=AGENTS, quorum="all", strategy="vote", allowed_tools=["none"]
        )
        message = spec.conversation.add(role="ROLE_USER")
        if ENGINE == "mini":
            del spec.allowed_tools[:]
            message.parts.add().image.data = BOARD.read_bytes()
            message.parts.add(text="What is the sum of the red cards?")
            spec.sampling_params.temperature = 0.7
        else:
            message.parts.add(text="Say what you like.")
            spec.sampling_params.temperature = 0.9
            spec.sampling_params.max_tokens = TOKENS
        spec.sampling_params.seed = 100 + number
        if number % 2:
            spec.response_json_schema = json.dumps(SCHEMA)
        made.append(spec)
    return made


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    options, step_s = Options(decoders=4), 0.0
    if ENGINE == "fast":
        write_tiny_model(folder / "models")
        options = Options(decoders=4, model="tiny", models_path=str(folder / "models"))
        step_s = STEP_S
    with running_fleet(folder, options, step_s, KNOBS) as made:
        yield made


@pytest.fixture(scope="module")
def cases(fleet: Fleet) -> list[Case]:
    return undisturbed(fleet.address, questions())


def test_decoders_killed_at_any_moment_cost_no_token(fleet: Fleet, cases: list[Case]) -> None:
    """Invariants 1, 2 and 3: what clients see is byte for byte what they saw undisturbed."""
    chance, strikes = random.Random(SEED), []
    with Load(fleet.address, cases, CLIENTS, SEED) as load:
        while len(strikes) < KILLS and not load.books.faults:
            time.sleep(chance.uniform(0, 0.3))
            name = chance.choice(sorted(fleet.decoders))
            strikes.append(Strike(fleet.strike(name, signal.SIGKILL), name))
            fleet.revive(name)
            fleet.wait_until_ready(name)
        time.sleep(1.0)
    tell("kills", len(strikes), load, strikes)


def test_decoders_stopped_at_any_moment_hang_nobody(fleet: Fleet, cases: list[Case]) -> None:
    """A stopped one is left, and what it says when it wakes is heard by nobody."""
    chance, strikes = random.Random(SEED), []
    with Load(fleet.address, cases, CLIENTS, SEED) as load:
        while load.books.num_ended < REQUESTS and not load.books.faults:
            time.sleep(chance.uniform(0.2, 1.0))
            name = chance.choice(sorted(fleet.decoders))
            stopped_at = fleet.strike(name, signal.SIGSTOP)
            # Long enough to be left, often not long enough for the stream to be given up by TCP.
            time.sleep(chance.uniform(1.0, 4.0))
            strikes.append(Strike(stopped_at, name, fleet.strike(name, signal.SIGCONT)))
        time.sleep(1.0)
    tell("stops", len(strikes), load, strikes)


def test_a_provider_that_dies_costs_no_answer(fleet: Fleet, cases: list[Case]) -> None:
    chance, strikes = random.Random(SEED), []
    with Load(fleet.address, cases, CLIENTS, SEED) as load:
        for number in range(OUTAGES):
            time.sleep(chance.uniform(0.3, 1.0))
            names = fleet.of_provider("aurora" if number % 2 else "borealis")
            strikes += [Strike(fleet.strike(name, signal.SIGKILL), name) for name in names]
            time.sleep(0.5)
            for name in names:
                fleet.revive(name)
            fleet.wait_until_ready(*names)
            time.sleep(1.0)  # both providers are known to the router again
            if load.books.faults:
                break
        time.sleep(1.0)
    tell("outages", OUTAGES, load, strikes)


def tell(what: str, count: int, load: Load, strikes: Sequence[Strike]) -> None:
    """Prints what was found, writes it if that was asked for, and fails on any fault."""
    books = load.books
    gaps = gaps_s(books.moves, strikes)
    found: dict[str, Any] = {
        "engine": ENGINE,
        "what": what,
        "count": count,
        "seed": SEED,
        "contemplations": books.num_ended,
        "tokens": books.num_tokens,
        "agents moved": len(books.moves),
        "reasons": dict(Counter(move.reason for move in books.moves)),
        "gap_s": summary(gaps),
        "longest_contemplation_s": round(books.longest_s, 3),
        "faults": len(books.faults),
    }
    print("\n" + json.dumps(found))
    if path := os.environ.get("COGITATE_CHAOS_JSON"):
        with Path(path).open("a") as file:
            file.write(json.dumps({**found, "gaps_s": [round(gap, 4) for gap in gaps]}) + "\n")
    assert books.num_ended
    assert not books.faults, "\n".join(books.faults[:5])
