"""`cogitate up` and what becomes of its processes when things go wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.mesh import cogitate, free_base_port

pytestmark = pytest.mark.integration

BOARD = Path(__file__).parents[2] / "examples" / "board.png"


def processes_of(state: Path) -> list[int]:
    """The processes that name this test's state folder among their arguments."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(state) in line:
            found.append(int(folder.name))
    return found


def eventually(holds: Callable[[], bool], timeout_s: float = 20) -> None:
    """Waits until something holds."""
    ends = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < ends, "it did not come to hold in time"
        time.sleep(0.1)


def note(state: Path) -> dict[str, object]:
    """What is noted of the mesh."""
    read: dict[str, object] = json.loads((state / "default" / "mesh.json").read_text())
    return read


def test_a_private_mesh_is_gone_after_its_question(tmp_path: Path) -> None:
    done = cogitate(
        tmp_path, "ask", "How many cards are red?", "--image", str(BOARD), "--agents", "2",
        "--decoders", "1", "--json", "--deadline", "30s",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {"answer", "ballots", "certificate", "usage"} <= set(
        json.loads(done.stdout.splitlines()[-1])
    )
    assert processes_of(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["default"], "only the traces stay"


def test_a_child_that_cannot_start_is_reported_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COGITATE_ROUTER_DRAIN_GRACE_S", "soon")
    for more in ((), ("--detach",)):
        done = cogitate(tmp_path, "up", "--base-port", str(free_base_port()), *more)
        assert done.returncode == 1
        assert "router exited with code 2" in done.stderr
        assert "COGITATE_ROUTER_DRAIN_GRACE_S" in done.stderr
        assert processes_of(tmp_path) == []
        assert not (tmp_path / "default" / "mesh.json").exists()


def test_children_die_with_their_owner_and_a_new_mesh_can_start(tmp_path: Path) -> None:
    base = str(free_base_port())
    up = ("up", "--detach", "--base-port", base, "--decoders", "1")
    assert cogitate(tmp_path, *up).returncode == 0
    assert len(processes_of(tmp_path)) == 6
    supervisor = note(tmp_path)["supervisor"]
    assert isinstance(supervisor, dict)

    again = cogitate(tmp_path, *up)
    assert again.returncode == 0
    assert "running already" in again.stdout
    other = cogitate(tmp_path, "up", "--name", "other", "--base-port", base)
    assert other.returncode == 1
    assert f"port {base}" in other.stderr

    os.kill(supervisor["pid"], signal.SIGKILL)
    eventually(lambda: processes_of(tmp_path) == [])
    assert "no mesh is running" in cogitate(tmp_path, "fleet").stderr
    assert cogitate(tmp_path, *up).returncode == 0, "the ports are free and the note is stale"
    down = cogitate(tmp_path, "down")
    assert down.returncode == 0
    assert "drained" in down.stdout
    assert processes_of(tmp_path) == []


def test_in_the_foreground_a_dead_child_is_reported_and_ctrl_c_drains(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cogitate.cli", "up", "--decoders", "1", "--base-port"]
    with subprocess.Popen(
        [*command, str(free_base_port())],
        env={**os.environ, "COGITATE_STATE": str(tmp_path), "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as up:
        file = tmp_path / "default" / "mesh.json"
        eventually(lambda: file.exists() and note(tmp_path)["state"] == "serving", 60)
        members = note(tmp_path)["members"]
        assert isinstance(members, list)
        pids = {member["name"]: member["process"]["pid"] for member in members}
        os.kill(pids["aurora-1"], signal.SIGKILL)
        time.sleep(0.6)
        up.send_signal(signal.SIGINT)
        said, _ = up.communicate(timeout=40)
    assert up.returncode == 0, said
    assert "aurora-1 was ended by SIGKILL" in said
    assert "stopped" in said
    assert not file.exists()
