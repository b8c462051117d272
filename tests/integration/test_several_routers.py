"""Two routers that find the decoders themselves, and an aggregator that has both: one dies."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cogitate.kit.channels import open_channel
from cogitate.v1 import common_pb2 as common_pb
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1 import router_service_pb2 as router_pb
from cogitate.v1.contemplation_service_pb2_grpc import ContemplationServiceStub
from cogitate.v1.router_service_pb2_grpc import RouterServiceStub

from tests.fakes.decoder_nursery import Nursery
from tests.fakes.dns_server import DnsServer
from tests.fakes.pool import QUIET, Pool, reported, router_process, until_there
from tests.fakes.watch import Watch

pytestmark = pytest.mark.integration
Process = subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery(QUIET) as made:
        yield made


@asynccontextmanager
async def aggregator_process(folder: Path, *flags: str) -> AsyncIterator[str]:
    ready = folder / "aggregator.ready"
    command = [sys.executable, "-m", "cogitate.aggregator", "--listen", "127.0.0.1:0"]
    command += ["--ready-file", str(ready), *flags]
    with (folder / "aggregator.log").open("ab") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        yield await until_there(ready, process)
    finally:
        process.kill()
        process.wait()


@dataclass
class Mesh:
    """Two routers, two decoders that know neither, an aggregator."""

    routers: dict[str, Process]
    pool: Pool
    aggregator: str

    async def ask(self, tokens: int, seen: Watch, agents: int = 4) -> None:
        """Asks, and follows to the ending."""
        spec = pb.ContemplationSpec(
            request_id=str(uuid.uuid4()), agent_count=agents, quorum="all", strategy="vote",
            allowed_tools=["none"],
        )  # fmt: skip
        spec.conversation.add(role=common_pb.ROLE_USER).parts.add(text="Count to twenty.")
        spec.sampling_params.max_tokens = spec.sampling_params.min_tokens = tokens
        spec.sampling_params.temperature = 0.8
        async with open_channel(self.aggregator) as channel:
            call = ContemplationServiceStub(channel).Contemplate(
                pb.ContemplateRequest(spec=spec), timeout=60
            )
            async for response in call:
                seen.take(response.event)

    async def leases(self) -> dict[str, int]:
        """How many leases each living router holds."""
        found = {}
        for address in self.routers:
            async with open_channel(address) as channel:
                try:
                    fleet: Any = await RouterServiceStub(channel).GetFleet(
                        router_pb.GetFleetRequest(), timeout=5
                    )
                    found[address] = fleet.lease_count
                except grpc.aio.AioRpcError:
                    continue
        return found


@asynccontextmanager
async def mesh(folder: Path, nursery: Nursery, by_name: bool) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        pool = Pool(folder, nursery)
        stack.callback(pool.end)
        for name in ("a", "b"):
            await pool.add(name, step_s=0.03)  # it is to take longer than a router is missed
        file = folder / "endpoints"
        file.write_text("\n".join(pool.addresses.values()))
        finds = ("--endpoints-file", str(file), "--discovery-interval-s", "0.2")
        routers: dict[str, Process] = {}
        port = ""
        for number in (1, 2):
            home = folder / f"router-{number}"
            home.mkdir()
            # Under one name both have the same port, each on an address of its own.
            listen = f"127.0.0.{number}:{port or 0}" if by_name else "127.0.0.1:0"
            address, process = await stack.enter_async_context(
                router_process(home, "--listen", listen, *finds)
            )
            port = address.rpartition(":")[2]
            routers[address] = process
            await reported(address, "a", "b")
        known = ",".join(routers)
        if by_name:
            server = await stack.enter_async_context(DnsServer())
            server.names["routers.mesh"] = ["127.0.0.1", "127.0.0.2"]
            known = f"dns://{server.address}/routers.mesh:{port}"
        address = await stack.enter_async_context(
            aggregator_process(folder, "--router-address", known)
        )
        yield Mesh(routers, pool, address)


@pytest.mark.parametrize("by_name", [False, True], ids=["list", "name"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_what_runs_goes_on_by_the_other_router(
    tmp_path: Path, nursery: Nursery, number: signal.Signals, by_name: bool
) -> None:
    async with mesh(tmp_path, nursery, by_name) as running:
        seen = Watch()
        asking = asyncio.create_task(running.ask(300, seen))
        async with asyncio.timeout(30):
            while sum(seen.tokens.values()) < 20:
                assert not asking.done(), seen.ending
                await asyncio.sleep(0.02)
        ((used, _),) = ((a, n) for a, n in (await running.leases()).items() if n)
        running.routers[used].send_signal(number)
        try:
            # The other is told what runs here.
            (other,) = set(running.routers) - {used}
            async with asyncio.timeout(20):
                while (await running.leases()).get(other) != 1:
                    await asyncio.sleep(0.05)
            # Who loses its decoder now gets a place from a router that never granted it one.
            running.pool.kill("a")
            await asking
            assert seen.kinds[-1] == "verdict"
            assert seen.tokens == dict.fromkeys(range(4), 300)
            again = Watch()
            await running.ask(10, again)
            assert again.kinds[-1] == "verdict"
        finally:
            running.routers[used].send_signal(signal.SIGCONT)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
