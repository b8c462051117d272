"""What runs where, and how the sites are joined. Pure.

Home is the site of the clients, of the journal, of pictures and tools; two providers have the
decoders, and a vision-encoder each that fetches from home what it lacks. Each provider may be cut
off: what it runs is gone on with elsewhere. Cutting off home is cutting off the clients. Of each
service there are two, so that one can be restarted; the second aggregator and the second router are
at aurora, the others at home.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cogitate.cli.mesh.plan import PROVIDERS

DESK, HOME, AURORA, BOREALIS = "desk", "home", "aurora", "borealis"
# The third number of each site's addresses. The desk is this machine outside of the namespaces.
NUMBERS: Final = {HOME: 1, AURORA: 2, BOREALIS: 3, DESK: 9}
# One way, as between neighbouring countries and across an ocean.
DELAYS_S: Final = {
    (HOME, AURORA): 0.01, (HOME, BOREALIS): 0.04, (AURORA, BOREALIS): 0.045,
    (DESK, HOME): 0.0005, (DESK, AURORA): 0.01, (DESK, BOREALIS): 0.04,
}  # fmt: skip
BYTES_PER_S: Final = 100e6 / 8
DEVICE: Final = "wan0"

NATS_PORT: Final = 4222
SPANS_PORT: Final = 4317
PORTS: Final = {
    "gateway": 7100, "aggregator": 7101, "router": 7102, "vision-encoder": 7103,
    "tool-executor": 7104, "agent-decoder": 7105,
}  # fmt: skip
# Of the second one at a site; the gateway's port for HTTP is between the two.
SECOND: Final = 10
# What crosses between sites, by the server's port.
TRAFFIC: Final = {
    **{port: name for name, port in PORTS.items()},
    **{port + SECOND: name for name, port in PORTS.items()},
    NATS_PORT: "journal",
    SPANS_PORT: "spans",
}


@dataclass(frozen=True)
class Process:
    """One process at one site. An empty address: it answers no health check."""

    name: str
    service: str
    site: str
    command: tuple[str, ...]
    address: str = ""


@dataclass(frozen=True)
class Choices:
    """What a scene lets one choose."""

    net: int = 77  # sites have addresses in 10.net.0.0/16
    decoders_per_provider: int = 2
    owner_timeout_s: float = 2.0
    drain_grace_s: float = 10.0


def address(choices: Choices, site: str) -> str:
    """Where a site's processes listen."""
    return f"10.{choices.net}.{NUMBERS[site]}.1"


def wan_plan(choices: Choices, namespaces: Mapping[str, str]) -> dict[str, Any]:
    """What ``wan.py`` is told first."""
    return {
        "device": DEVICE,
        "sites": {
            name: {"number": number, "namespace": namespaces.get(name, "")}
            for name, number in NUMBERS.items()
        },
        "links": [[*pair, delay_s, BYTES_PER_S] for pair, delay_s in DELAYS_S.items()],
    }


def _region(site: str) -> str:
    """A provider's; of home, its name."""
    return {one.name: one.region for one in PROVIDERS}.get(site, site)


class Layout:
    """The processes of a mesh, in the order in which they are started."""

    def __init__(self, choices: Choices, folder: Path) -> None:
        self.choices, self._folder = choices, folder
        self.processes = {one.name: one for one in self._all()}

    @property
    def gateways(self) -> str:
        """Both, as one target of gRPC: the first that can be reached is used."""
        return self._either(HOME, "gateway")

    def trace_store(self, site: str) -> Path:
        """The file of spans of a site; home's gets the others', too."""
        return self._folder / site / "traces.sqlite"

    def of(self, *services: str) -> list[Process]:
        """The processes of some services."""
        return [one for one in self.processes.values() if one.service in services]

    def _all(self) -> Iterator[Process]:
        home, store = self._at(HOME), self._folder / HOME / "jetstream"
        yield Process("nats", "nats", HOME, (
            "nats-server", "--addr", home, "--port", str(NATS_PORT), "--jetstream",
            "--store_dir", str(store),
        ))  # fmt: skip
        yield Process("spans", "spans", HOME, (
            sys.executable, "-m", "tests.multihost.trace_sink", f"{home}:{SPANS_PORT}",
            str(self.trace_store(HOME)),
        ))  # fmt: skip
        pictures = {"vision_encoder_address": self._either(HOME, "vision-encoder")}
        # Each has its own neighbour first.
        routers = [f"{self._at(site)}:{PORTS['router']}" for site in (HOME, AURORA)]
        aggregators = [f"{self._at(site)}:{PORTS['aggregator']}" for site in (HOME, AURORA)]
        for number in (1, 2):
            yield self._python("vision-encoder", number, HOME,
                               blob_directory=self._folder / HOME / "blobs")  # fmt: skip
        for site in (AURORA, BOREALIS):
            yield self._python("vision-encoder", 1, site, name=f"vision-encoder-{site}",
                               upstream_address=pictures["vision_encoder_address"])  # fmt: skip
        for number in (1, 2):
            yield self._python("tool-executor", number, HOME, **pictures)
        for number, site in ((1, HOME), (2, AURORA)):
            yield self._python("router", number, site, **pictures)
        for site in (AURORA, BOREALIS):
            for number in range(1, self.choices.decoders_per_provider + 1):
                yield self._decoder(site, number, routers)
        for number, site in ((1, HOME), (2, AURORA)):
            yield self._python(
                "aggregator", number, site, **pictures,
                router_address=",".join(routers if site == HOME else routers[::-1]),
                tool_executor_address=self._either(HOME, "tool-executor"),
                journal=f"nats://{home}:{NATS_PORT}",
                owner_timeout_s=self.choices.owner_timeout_s,
                provider=site, region=_region(site),
            )  # fmt: skip
        for number in (1, 2):
            yield self._python(
                "gateway", number, HOME, **pictures, router_address=f"ipv4:{','.join(routers)}",
                aggregator_address=",".join(aggregators),
                http_listen=f"{home}:{PORTS['gateway'] + 80 + number}",
            )  # fmt: skip

    def _decoder(self, site: str, number: int, routers: list[str]) -> Process:
        [price] = [one.price_per_hour_micro_usd for one in PROVIDERS if one.name == site]
        return self._python(
            "agent-decoder", number, site, name=f"{site}-{number}",
            vision_encoder_address=f"{self._at(site)}:{PORTS['vision-encoder']}",
            endpoint_id=f"{site}-{number}", provider=site, region=_region(site),
            price_per_hour_micro_usd=price,
            router_addresses=",".join(routers), model="mini", threads=1,
        )  # fmt: skip

    def _python(
        self, service: str, number: int, site: str, name: str = "", **knobs: Any
    ) -> Process:
        name = name or f"{service}-{number}"
        # Of what there is once at each of two sites, both have the same port.
        second = SECOND if number == 2 and service not in ("router", "aggregator") else 0
        listen = f"{self._at(site)}:{PORTS[service] + second}"
        knobs |= {
            "listen": listen,
            "ready_file": self.ready(name),
            "trace_store": self.trace_store(site),
            "drain_grace_s": self.choices.drain_grace_s,
        }
        if site != HOME:
            knobs["otlp_endpoint"] = f"{self._at(HOME)}:{SPANS_PORT}"
            knobs["metrics_interval_s"] = 0
        flags = [f"--{knob.replace('_', '-')}={value}" for knob, value in knobs.items()]
        module = "cogitate." + service.replace("-", "_")
        return Process(name, service, site, (sys.executable, "-m", module, *flags), listen)

    def ready(self, name: str) -> Path:
        """The file that a process writes once it serves."""
        return self._folder / "ready" / name

    def log(self, name: str) -> Path:
        """Where its output goes."""
        return self._folder / "logs" / f"{name}.log"

    def _at(self, site: str) -> str:
        return address(self.choices, site)

    def _either(self, site: str, service: str) -> str:
        one = f"{self._at(site)}:{PORTS[service]}"
        return f"ipv4:{one},{self._at(site)}:{PORTS[service] + SECOND}"
