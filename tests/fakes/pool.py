"""A router that picks, and real decoders that report to it, as processes on free ports."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cogitate.kit.channels import open_channel
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import router_service_pb2 as router_pb
from cogitate.v1.router_service_pb2_grpc import RouterServiceStub

from tests.fakes.decode_stream import Stream
from tests.fakes.decoder_nursery import Nursery

START_TIMEOUT_S = 60.0
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


async def until_there(file: Path, process: subprocess.Popen[bytes] | None = None) -> str:
    """Waits for a ready file; returns the address in it."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while not file.exists():
            assert process is None or process.poll() is None
            await asyncio.sleep(0.02)
    return file.read_text().strip()


@asynccontextmanager
async def router_process(
    folder: Path, *flags: str
) -> AsyncIterator[tuple[str, subprocess.Popen[bytes]]]:
    """A router process; yields its address and itself. It may be dead on leaving."""
    ready = folder / "router.ready"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "cogitate.router", "--ready-file", str(ready)]
    command += ["--report-interval-s", "0.05", *flags]
    if "--listen" not in flags:
        command += ["--listen", "127.0.0.1:0"]
    with (folder / "router.log").open("ab") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        yield await until_there(ready, process), process
    finally:
        process.kill()
        process.wait()


@dataclass
class Pool:
    """Decoders of the model `mini`, by name, with their addresses."""

    folder: Path
    nursery: Nursery
    flags: Sequence[str] = ()
    addresses: dict[str, str] = field(default_factory=dict)

    async def add(self, name: str, *flags: str, step_s: float = 0.0) -> str:
        """Starts one; returns its address once it serves."""
        ready = self.folder / f"{name}.ready"
        arguments = ["--listen", "127.0.0.1:0", "--ready-file", str(ready), "--endpoint-id", name]
        arguments += ["--provider", name, "--threads", "1", "--measure-peaks", "false"]
        arguments += [*self.flags, *flags]
        self.nursery.spawn(name, arguments, self.folder / f"{name}.log", step_s)
        self.addresses[name] = await until_there(ready)
        return self.addresses[name]

    def kill(self, name: str) -> None:
        """At once."""
        self.nursery.signal(name, signal.SIGKILL)
        del self.addresses[name]

    def end(self) -> None:
        """Ends those that are left."""
        for name in list(self.addresses):
            self.kill(name)


async def reported(router: str, *names: str) -> None:
    """Waits until the router has the load of exactly these endpoints."""
    async with asyncio.timeout(START_TIMEOUT_S), open_channel(router) as channel:
        stub = RouterServiceStub(channel)
        while True:
            fleet = await stub.GetFleet(router_pb.GetFleetRequest(), timeout=10)
            there = {e.description.endpoint_id for e in fleet.endpoints if e.HasField("load")}
            if there == set(names) == {e.description.endpoint_id for e in fleet.endpoints}:
                return
            await asyncio.sleep(0.02)


async def idle(router: str) -> None:
    """Waits until the router has heard from every endpoint that nothing runs there."""
    async with asyncio.timeout(START_TIMEOUT_S), open_channel(router) as channel:
        stub = RouterServiceStub(channel)
        while True:
            fleet = await stub.GetFleet(router_pb.GetFleetRequest(), timeout=10)
            if not any(e.load.running_sequence_count for e in fleet.endpoints):
                return
            await asyncio.sleep(0.02)


def gang(contemplation_id: str, *, tokens: int, agents: int = 1, seed: int = 1) -> pb.OpenGang:
    """A gang whose agents write exactly so many tokens."""
    params = common.SamplingParams(max_tokens=tokens, min_tokens=tokens, temperature=0.8)
    asks = common.Message(role=common.ROLE_USER, parts=[common.Part(text="Count to twenty.")])
    return pb.OpenGang(
        contemplation_id=contemplation_id,
        gang_id="1.1",
        attempt=1,
        model="mini",
        conversation=[asks],
        effort=common.EFFORT_INSTANT,
        agents=[
            pb.AgentSpec(agent_id=i, attempt=1, sampling_params=params, seed=seed)
            for i in range(agents)
        ],
    )


class Through(Stream):
    """A Decode stream by way of a proxy, with headers that say what it wants."""

    def __init__(self, address: str, **headers: str) -> None:
        super().__init__(address, metadata=[(k.replace("_", "-"), v) for k, v in headers.items()])

    async def where(self, asked: pb.OpenGang) -> str:
        """Opens the gang; returns the endpoint that took it."""
        await self.send(open=asked)
        admitted: pb.GangAdmitted = await self.until("admitted")
        return admitted.endpoint_id

    async def close(self) -> None:
        """Breaks it off if it is still running."""
        self.call.cancel()
        await self.channel.close()
