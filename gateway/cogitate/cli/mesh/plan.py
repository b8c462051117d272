"""Which processes make a mesh, with which flags and on which ports. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Services before decoders; their order is the order of the ports from the base.
SERVICES: Final = ("gateway", "aggregator", "router", "vision-encoder", "tool-executor")
# Modules signalled first to last: who takes work stops before who does it.
STOP_ORDER: Final = ("cogitate.gateway", "cogitate.aggregator")


@dataclass(frozen=True)
class Provider:
    """Who the local decoders pose as; prices in millionths of a US dollar an hour."""

    name: str
    region: str
    price_per_hour_micro_usd: int


PROVIDERS: Final = (
    Provider("aurora", "eu-north", 96_000),
    Provider("borealis", "us-west", 84_000),
)


@dataclass(frozen=True)
class Member:
    """One process of a mesh."""

    name: str
    module: str
    address: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    http: str = ""  # where it speaks HTTP, too
    probe_as: str = ""  # folder of the certificate to show it; empty where it asks for none


@dataclass(frozen=True)
class Server:
    """A server that speaks OpenAI's chat completions, and what it calls the model."""

    url: str
    model: str = ""


@dataclass(frozen=True)
class Options:
    """What `up` lets one choose."""

    decoders: int = 2
    aggregators: int = 1  # on one journal
    model: str = "mini"
    models_path: str = ""  # the folder that has the model, if it is not one that is shipped
    has_tower: bool = False  # whether that folder has its vision tower, too
    threads: int = 1
    host: str = "127.0.0.1"
    otlp_endpoint: str = ""
    log_level: str = "INFO"
    certificates: str = ""  # folder of them, one a service; empty speaks plaintext
    servers: tuple[Server, ...] = ()  # each behind a decoder of its own, after the other decoders
    key_variable: str = ""  # the environment variable that holds the servers' key


def members(
    options: Options, ports: Sequence[int], folder: Path, trace_store: Path
) -> tuple[Member, ...]:
    """Returns the processes in the order of their ports; `folder` holds journal and ready files."""
    addresses = [f"{options.host}:{port}" for port in ports]
    at = dict(zip(SERVICES, addresses, strict=False))
    *more, http = addresses[len(SERVICES) + options.decoders + len(options.servers) :]
    needs = {
        "gateway": _flags(
            aggregator_address=",".join([at["aggregator"], *more]),
            vision_encoder_address=at["vision-encoder"],
            router_address=at["router"],
            default_model=options.model,
            http_listen=http,
        ),
        "aggregator": _flags(
            router_address=at["router"],
            tool_executor_address=at["tool-executor"],
            vision_encoder_address=at["vision-encoder"],
            journal=folder / "journal.sqlite",
            default_model=options.model,
        ),
        "router": _flags(vision_encoder_address=at["vision-encoder"]),
        "vision-encoder": _flags(models=options.model, model_paths=options.models_path)
        if options.has_tower
        else (),
        "tool-executor": _flags(vision_encoder_address=at["vision-encoder"]),
    }
    made = [
        _member(name, name, at[name], needs[name], options, folder, trace_store)
        for name in SERVICES
    ]
    decoders = _decoders(options, at)
    made += [
        _member("agent-decoder", name, address, flags, options, folder, trace_store)
        for (name, flags), address in zip(
            decoders.items(), addresses[len(SERVICES) :], strict=False
        )
    ]
    made += [
        _member(
            "aggregator", f"aggregator-{number}", address, needs["aggregator"], options, folder,
            trace_store,
        )
        for number, address in enumerate(more, start=2)
    ]  # fmt: skip
    return (replace(made[0], http=http), *made[1:])


def _decoders(options: Options, at: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Names and flags of our own decoders, then of those with a server behind them."""
    shared = {
        "router_addresses": at["router"],
        "vision_encoder_address": at["vision-encoder"],
        "model": options.model,
    }
    made = {}
    for i in range(options.decoders):
        who = PROVIDERS[i % len(PROVIDERS)]
        name = f"{who.name}-{i // len(PROVIDERS) + 1}"
        made[name] = _flags(
            **shared,
            models_path=options.models_path,
            threads=options.threads,
            endpoint_id=name,
            provider=who.name,
            region=who.region,
            price_per_hour_micro_usd=who.price_per_hour_micro_usd,
        )
    for number, server in enumerate(options.servers, start=1):
        name = f"server-{number}"
        made[name] = _flags(
            **shared,
            endpoint_id=name,
            provider=urlsplit(server.url).hostname or "",
            engine="openai",
            openai_base_url=server.url,
            openai_model=server.model,
            openai_key_variable=options.key_variable,
        )
    return made


def port_count(options: Options) -> int:
    """Returns how many ports a mesh takes; the last is the gateway's for HTTP."""
    return len(SERVICES) + options.decoders + len(options.servers) + options.aggregators


def ready_file(folder: Path, name: str) -> Path:
    """Returns the file a member writes its address to once it serves."""
    return folder / "ready" / name


def log_file(folder: Path, name: str) -> Path:
    """Returns the file that a member's output goes to."""
    return folder / "logs" / f"{name}.log"


def _member(
    service: str,
    name: str,
    address: str,
    flags: tuple[str, ...],
    options: Options,
    folder: Path,
    trace_store: Path,
) -> Member:
    common = _flags(
        listen=address,
        ready_file=ready_file(folder, name),
        trace_store=trace_store,
        otlp_endpoint=options.otlp_endpoint,
        log_level=options.log_level,
        tls_dir=options.certificates and Path(options.certificates) / service,
    )
    threads = str(options.threads)
    return Member(
        name=name,
        module="cogitate." + service.replace("-", "_"),
        address=address,
        arguments=common + flags,
        environment={
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        },
        # The gateway's clients have none.
        probe_as=str(Path(options.certificates) / "cli")
        if options.certificates and service != "gateway"
        else "",
    )


def _flags(**values: object) -> tuple[str, ...]:
    flags: list[str] = []
    for name, value in values.items():
        if value != "":
            flags += ["--" + name.replace("_", "-"), str(value)]
    return tuple(flags)
