"""Faults of real processes: a contemplation gets exactly one ending, and the mesh goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cogitate.client import Client

from tests.integration.mesh import Mesh, running_mesh

pytestmark = pytest.mark.chaos

BOARD = Path(__file__).parents[2] / "examples" / "board.png"
QUESTION = "What is the sum of the red cards?"
ENDINGS = {"verdict", "failed", "cancelled"}


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with running_mesh(tmp_path) as mesh:
        yield mesh


def strike(mesh: Mesh, number: signal.Signals) -> list[Any]:
    """Asks with eight agents and signals a decoder as soon as all of them write."""
    victim = mesh.pid_of("borealis-1")
    with Client(mesh.address) as client:
        with client.contemplate(
            QUESTION, images=[BOARD], agents=8, seed=2, quorum="all", deadline_s=30
        ) as stream:
            events = []
            for event in stream:
                if event.WhichOneof("event") == "deltas" and victim:
                    os.kill(victim, number)
                    victim = 0
                events.append(event)
        assert not victim, "the fault was never injected"
        # The next question is answered by what is left.
        assert client.ask(QUESTION, images=[BOARD], agents=2, seed=3).contemplation_id
    return events


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_lost_decoder_costs_no_answer(mesh: Mesh, number: signal.Signals) -> None:
    frozen = mesh.pid_of("borealis-1")
    try:
        events = strike(mesh, number)
    finally:
        if number is signal.SIGSTOP:
            os.kill(frozen, signal.SIGCONT)
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[-1] == "verdict" and sum(k in ENDINGS for k in kinds) == 1
    ballots = events[-1].verdict.certificate.ballots
    assert sorted(ballot.agent_id for ballot in ballots) == list(range(8))
    # Tokens of each agent, over both attempts: none missing, none twice.
    expected: dict[int, int] = {}
    for event in events:
        for delta in event.deltas.deltas:
            assert delta.token_offset == expected.get(delta.agent_id, 0)
            expected[delta.agent_id] = delta.token_offset + delta.token_count
