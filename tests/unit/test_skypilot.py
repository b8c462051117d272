"""deploy/skypilot: what its tasks run is what the decoder takes, and can be reached and trusted."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.test_deploy import knobs

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
TASKS = sorted((ROOT / "deploy/skypilot").glob("*.yaml"))
GIVEN = {
    "ROUTERS": "router-1.example:7102,router-2.example:7102",
    "PROVIDER": "aurora",
    "REGION": "eu-north",
    "PRICE_PER_HOUR_MICRO_USD": "700000",
    "MODEL": "some-model",
}
# Stands for the environment's Python: writes down its arguments.
STUB = '#!/bin/sh\nfor one in "$@"; do printf "%s\\n" "$one"; done > "$HOME/arguments"\n'
needs_bash = pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")


def task(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def ran(path: Path, home: Path, **given: str) -> list[str]:
    """Executes `run` as a machine would; returns what the decoder would have been given."""
    python = home / "cogitate/venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(STUB)
    python.chmod(0o755)
    loaded = task(path)
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(home), "SKYPILOT_NUM_GPUS_PER_NODE": "4",
        **loaded["envs"], **GIVEN, **given,
    }  # fmt: skip
    assert set(GIVEN) <= set(loaded["envs"])
    done = subprocess.run(
        ["bash", "-c", loaded["run"]], env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    module, name, *arguments = (home / "arguments").read_text().splitlines()
    assert (module, name) == ("-m", "cogitate.agent_decoder")
    return arguments


def test_there_are_three() -> None:
    assert [path.stem for path in TASKS] == ["cpu", "spot-gpu", "vllm"]


@needs_bash
@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_its_decoder_dials_back_and_says_what_it_is(path: Path, tmp_path: Path) -> None:
    chosen: Any = knobs("agent-decoder", ran(path, tmp_path, ADVERTISE_HOST="203.0.113.7"))
    resources = task(path)["resources"]
    assert chosen.router_addresses == tuple(GIVEN["ROUTERS"].split(","))
    assert (chosen.provider, chosen.region) == ("aurora", "eu-north")
    assert chosen.failure_domain == "aurora-eu-north"
    assert chosen.price_per_hour_micro_usd == 700_000 and chosen.model == "some-model"
    assert chosen.endpoint_id.startswith("aurora-") and len(chosen.endpoint_id) > len("aurora-")
    assert chosen.spot is resources["use_spot"]
    # Called from outside, so by mutual TLS alone, at a port that the cloud lets through.
    host, _, port = chosen.advertise_address.rpartition(":")
    assert host == "203.0.113.7" and resources["ports"] == [int(port)]
    assert chosen.listen == f"0.0.0.0:{port}"
    mounts = task(path)["file_mounts"]
    assert chosen.tls_dir == f"{tmp_path}/cogitate/tls" and "~/cogitate/tls" in mounts
    assert chosen.tls_server_name == "cogitate.mesh"
    assert str(chosen.models_path) == f"{tmp_path}/cogitate/models"
    assert ("accelerators" in resources) is (chosen.device == "cuda" or chosen.engine == "vllm")
    if chosen.engine == "vllm":
        assert json.loads(chosen.vllm_arguments) == {"tensor_parallel_size": 4}


@needs_bash
@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
def test_a_machine_asks_for_its_own_address(tmp_path: Path) -> None:
    (tmp_path / "address").write_text("198.51.100.9\n")
    url = f"file://{tmp_path}/address"
    chosen: Any = knobs("agent-decoder", ran(TASKS[0], tmp_path, ADDRESS_URL=url))
    assert chosen.advertise_address == "198.51.100.9:7105"


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_what_it_installs_exists(path: Path) -> None:
    loaded = task(path)
    for lock in re.findall(r"locks/([a-z-]+\.txt)", loaded["setup"]):
        assert (ROOT / "deploy/locks" / lock).exists()
    for source in loaded["file_mounts"].values():
        assert not Path(source).is_absolute() and "://" not in source
    # Only vLLM, which brings a torch of its own, is installed without hashes.
    assert ("--require-hashes" in loaded["setup"]) is (path.stem != "vllm")
