"""Endpoints that the router finds: by a file, by DNS, and beside those that dial in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cogitate.agent_decoder.reporter import EndpointServicer, Reporter, Reports
from cogitate.kit import lifecycle
from cogitate.kit.config import ServiceConfig
from cogitate.kit.errors import InvalidRequest
from cogitate.router.config import RouterConfig
from cogitate.router.discovery.sources import MalformedSource, Sources, listed, split
from cogitate.router.server import build
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb
from cogitate.v1.endpoint_service_pb2_grpc import add_EndpointServiceServicer_to_server

from tests.fakes.dns_server import DnsServer
from tests.fakes.endpoint import description

pytestmark = pytest.mark.contract


class Endpoint:
    """What a decoder serves to routers that dial, by the decoder's own code."""

    names = ("cogitate.v1.EndpointService",)

    def __init__(self, endpoint_id: str, server: Any, **fields: object) -> None:
        fields = {"process_id": f"start-of-{endpoint_id}", **fields}
        self.said = description(endpoint_id, **fields)
        self.load = decoder_pb.EndpointLoad(free_block_count=100)
        self.reports = Reports(self.said, lambda: self.load, self.start)
        add_EndpointServiceServicer_to_server(EndpointServicer(self.reports), server)

    async def start(self) -> None:
        pass

    async def drain(self, grace_s: float) -> None:
        self.reports.end()

    async def stop(self) -> None:
        pass


@asynccontextmanager
async def endpoint(
    name: str, listen: str = "127.0.0.1:0", **fields: object
) -> AsyncIterator[tuple[Endpoint, str]]:
    async def build_one(config: ServiceConfig, server: Any) -> Endpoint:
        return Endpoint(name, server, **fields)

    config = ServiceConfig(listen=listen, drain_grace_s=2.0)
    async with lifecycle.serving(config, build_one, name=name) as running:
        yield running.service, running.address  # type: ignore[misc]


@asynccontextmanager
async def router(**knobs: object) -> AsyncIterator[Any]:
    """Yields the running service."""
    given: dict[str, Any] = {
        "report_interval_s": 0.05,
        "discovery_interval_s": 0.05,
        "redial_delay_s": 0.05,
        "dns_timeout_s": 0.3,
        "drain_grace_s": 2.0,
        **knobs,
    }
    async with lifecycle.serving(RouterConfig(**given), build, name="router") as running:
        yield running


async def until(running: Any, **addresses: str) -> None:
    """Waits until the router knows exactly these endpoints, at these addresses, with a load."""
    entries = running.service.runtime.desk.fleet.entries
    async with asyncio.timeout(10):
        while {n: e.description.address for n, e in entries.items() if e.load} != addresses:
            await asyncio.sleep(0.01)


async def test_a_file_lists_endpoints_and_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "endpoints"
    async with endpoint("a", address="0.0.0.0:7105") as (_, at_a), endpoint("b") as (_, at_b):
        file.write_text(f"# the pool\n\n{at_a}  # the first\n")
        async with router(endpoints_file=str(file)) as running:
            # It listens everywhere: where it was found is its address. The other says its own.
            await until(running, a=at_a)
            file.write_text(f"{at_a}\n{at_b}\n")
            await until(running, a=at_a, b="127.0.0.1:1")
            # Nonsense changes nothing, nor does a file that is gone.
            file.write_text("b at noon\n")
            await asyncio.sleep(0.2)
            await until(running, a=at_a, b="127.0.0.1:1")
            file.unlink()
            await asyncio.sleep(0.2)
            await until(running, a=at_a, b="127.0.0.1:1")


async def test_what_is_not_listed_any_more_ends_by_itself_and_is_not_dialled_again(
    tmp_path: Path,
) -> None:
    file = tmp_path / "endpoints"
    async with endpoint("b") as (_, at_b):
        async with endpoint("a") as (_, at_a):
            file.write_text(f"{at_a}\n{at_b}\n")
            async with router(endpoints_file=str(file)) as running:
                await until(running, a="127.0.0.1:1", b="127.0.0.1:1")
                file.write_text(f"{at_b}\n")
                await asyncio.sleep(0.3)
                await until(running, a="127.0.0.1:1", b="127.0.0.1:1")
    # Both end while the router still runs; the one that is listed comes back.
    async with router(endpoints_file=str(file)) as running:
        async with endpoint("b", listen=at_b), endpoint("a", listen=at_a):
            await until(running, b="127.0.0.1:1")
        await until(running)
        async with endpoint("b", listen=at_b):
            await until(running, b="127.0.0.1:1")


async def test_a_name_is_resolved_again_and_again() -> None:
    async with DnsServer() as server, endpoint("a") as (_, at_a):
        port = at_a.rpartition(":")[2]
        async with endpoint("b", listen=f"127.0.0.2:{port}") as (_, at_b):
            knobs = {"endpoint_names": (f"pool.mesh:{port}",), "dns_server": server.address}
            async with router(**knobs) as running:
                await asyncio.sleep(0.2)
                await until(running)  # the name does not exist yet
                server.names["pool.mesh"] = ["127.0.0.1"]
                await until(running, a="127.0.0.1:1")
                server.names["pool.mesh"] = ["127.0.0.1", "127.0.0.2"]
                await until(running, a="127.0.0.1:1", b="127.0.0.1:1")
                server.silent = True  # nobody answers: those that are known stay known
                await asyncio.sleep(0.6)
                await until(running, a="127.0.0.1:1", b="127.0.0.1:1")
            assert at_b.startswith("127.0.0.2:")


async def test_addresses_of_both_families_are_taken() -> None:
    async with DnsServer() as server:
        server.names["pool.mesh"] = ["10.0.0.1", "2001:db8::1"]
        sources = Sources("", ["pool.mesh:7105", "none.mesh:1"], server=server.address)
        assert await sources.addresses() == {"10.0.0.1:7105", "[2001:db8::1]:7105"}
        server.names["pool.mesh"] = []
        assert await sources.addresses() == frozenset(), "it has none any more"


async def test_an_endpoint_that_dials_in_as_well_is_one_and_never_gone(tmp_path: Path) -> None:
    file = tmp_path / "endpoints"
    async with endpoint("a") as (served, at_a):
        file.write_text(f"{at_a}\n")
        async with router(endpoints_file=str(file)) as running:
            fleet = running.service.runtime.desk.fleet
            await until(running, a="127.0.0.1:1")
            incarnation = fleet.entries["a"].incarnation
            dialled = fleet.entries["a"].stream
            reporting = asyncio.create_task(Reporter(running.address, served.reports).run())
            async with asyncio.timeout(10):
                while fleet.entries["a"].stream == dialled:
                    assert "a" in fleet.entries
                    await asyncio.sleep(0.005)
            own = fleet.entries["a"].stream
            for _ in range(40):  # the dialled stream has ended, and does not take it back
                await asyncio.sleep(0.01)
                assert fleet.entries["a"].stream == own
            assert fleet.entries["a"].incarnation == incarnation, "no restart"
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)
            async with asyncio.timeout(10):  # then it is dialled again
                while "a" not in fleet.entries or fleet.entries["a"].stream == own:
                    await asyncio.sleep(0.01)


async def test_a_restart_is_another_process(tmp_path: Path) -> None:
    file = tmp_path / "endpoints"
    async with endpoint("a") as (_, at_a):
        file.write_text(f"{at_a}\n")
        async with router(endpoints_file=str(file)) as running:
            await until(running, a="127.0.0.1:1")
            entries = running.service.runtime.desk.fleet.entries
            first = entries["a"].incarnation
            async with endpoint("a", process_id="another start") as (_, at_other):
                file.write_text(f"{at_other}\n{at_a}\n")
                async with asyncio.timeout(10):
                    while "a" not in entries or entries["a"].incarnation == first:
                        await asyncio.sleep(0.01)


async def test_no_more_are_dialled_than_may_report(tmp_path: Path) -> None:
    file = tmp_path / "endpoints"
    async with endpoint("a") as (_, at_a), endpoint("b") as (_, at_b):
        file.write_text("\n".join(sorted([at_a, at_b])))
        async with router(endpoints_file=str(file), max_endpoint_count=1) as running:
            entries = running.service.runtime.desk.fleet.entries
            async with asyncio.timeout(10):
                while not entries:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            assert len(entries) == 1
            assert len(running.service._helpers[0]._dialled) == 1


@pytest.mark.parametrize(
    "address", ["", "a", "a:", ":1", "a:0", "a:65536", "a b:1", "http://a:1", "a:1:2", "[::1:1"]
)
async def test_what_is_no_address_is_refused_by_a_sentence(address: str) -> None:
    with pytest.raises(MalformedSource, match="is not host:port"):
        split(address)
    with pytest.raises(MalformedSource, match="line 2: "):
        list(listed(f"a:1\n{address or '?'}\n".encode()))
    with pytest.raises(InvalidRequest, match="is not host:port"):
        async with router(endpoint_names=(address,)):
            pass


def test_a_file_has_a_largest_size() -> None:
    line = b"# " + b"x" * 1021 + b"\n"
    assert list(listed(line * 4096)) == []
    with pytest.raises(MalformedSource, match="larger than"):
        list(listed(line * 4096 + b"#"))
