"""The life of a service process: bind, start, serve, drain, stop.

    NOT_SERVING ──start() returned──► SERVING ──signal──► NOT_SERVING: drain() ──► stop()

Health says SERVING only between the two; a second signal skips what is left of the grace.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import grpc
from cogitate.kit import access, calls, identity, listening, logs, metrics, telemetry
from cogitate.kit import config as configuration
from cogitate.kit.channels import server_options
from cogitate.kit.config import ConfigError, ServiceConfig
from cogitate.kit.errors import CogitateError
from cogitate.kit.identity import Identity
from cogitate.kit.interceptors import server_interceptors
from cogitate.kit.orca import ServerLoad
from grpc_health.v1 import health, health_pb2  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)
OWNER = "COGITATE_OWNER_PID"  # names the process that this one is to end with (Linux)


class Service(Protocol):
    """What a service implements; the servicers are already registered when `start` is called."""

    @property
    def names(self) -> Sequence[str]:
        """The full names of the gRPC services it registered, for health and reflection."""
        ...

    async def start(self) -> None:
        """Gets ready to serve; loads models, connects. Health turns SERVING when it returns."""
        ...

    async def drain(self, grace_s: float) -> None:
        """Refuses new work, and finishes what runs or hands it off, within the grace."""
        ...

    async def stop(self) -> None:
        """Cancels what is left and releases everything; the only one called if `start` failed."""
        ...


C = TypeVar("C", bound=ServiceConfig)
Build = Callable[[C, grpc.aio.Server], Awaitable[Service]]


@dataclass
class Running:
    """A service and what it runs on; `address` is where, `serving` whether `start` returned."""

    address: str
    service: Service
    server: grpc.aio.Server
    health: health.aio.HealthServicer
    load: ServerLoad
    health_address: str = ""  # of health alone, in plaintext
    serving: bool = False


def main(name: str, config_class: type[C], build: Build[C]) -> int:
    """Loads the configuration from environment and flags, then runs; for `__main__`."""
    follow_owner()
    try:
        config = configuration.load(config_class, name)
    except ConfigError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 2
    return run(name, config, build)


def follow_owner() -> None:
    """Gets SIGTERM once the owner dies. Asked for here: between fork and exec gRPC may hang it."""
    if (owner := os.environ.pop(OWNER, "")) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != int(owner):
            sys.exit(1)


def run(name: str, config: C, build: Build[C]) -> int:
    """Runs a service until SIGTERM or SIGINT; returns the exit code of the process."""
    logs.setup(name, config.log_level.upper(), config.log_format)
    try:
        asyncio.run(_until_signalled(name, config, build))
    except (CogitateError, OSError) as error:
        logger.error("%s could not run: %s", name, error)
        return 1
    except Exception as error:
        logger.error("%s could not run: %s", name, telemetry.stack_of(error))
        return 1
    return 0


async def _until_signalled(name: str, config: C, build: Build[C]) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    started, asked, forced = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (forced if asked.is_set() else asked).set()
        if task is not None and not started.is_set():
            task.cancel()  # nothing is served yet, so there is nothing to drain

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        async with serving(config, build, name=name, forced=forced):
            started.set()
            logger.info("serving")
            await asked.wait()
            logger.info("draining for at most %g s", config.drain_grace_s)
    except asyncio.CancelledError:
        if started.is_set():
            raise
    logger.info("stopped")


@asynccontextmanager
async def serving(
    config: C, build: Build[C], *, name: str = "service", forced: asyncio.Event | None = None
) -> AsyncIterator[Running]:
    """Runs a service in this event loop; leaving the block drains and stops it.

    `build` is given the configuration with `listen` replaced by the bound address. `forced` ends
    the drain early when it is set.
    """
    forced = forced or asyncio.Event()
    mine = _identity(config)
    exporters = (telemetry.setup(name, config), metrics.setup(name, config))
    calls.observe()
    ready, load = asyncio.Event(), ServerLoad(config)
    with identity.acting(mine):
        try:
            admit = _admission(config, mine)
            server = grpc.aio.server(
                interceptors=server_interceptors(config, load, ready.is_set, admit),
                options=server_options(config),
                maximum_concurrent_rpcs=config.max_concurrent_rpcs,
            )
            with identity.acting(None if config.is_public else mine):
                address = listening.bind(server, config.listen)
            service = await build(replace(config, listen=address), server)
            also = load.serve(server, service)
            probes = await listening.add_standard_services(server, service.names, also, config)
            running = Running(address, service, server, probes, load)
            async with listening.health_alone(config.health_listen, probes) as health_address:
                running.health_address = health_address
                async with _serving(running, config, ready, forced):
                    yield running
        finally:
            # Off the loop: they wait for the last batch to be sent.
            await asyncio.gather(*(asyncio.to_thread(one.shutdown) for one in exporters))


@asynccontextmanager
async def _serving(
    running: Running, config: ServiceConfig, ready: asyncio.Event, forced: asyncio.Event
) -> AsyncIterator[None]:
    try:
        await running.server.start()
        logger.info("starting on %s", running.address)
        await running.service.start()
        ready.set()
        running.serving = True
        await _set_health(running, health_pb2.HealthCheckResponse.SERVING)
        _write_ready_file(config.ready_file, running.address)
        yield
    finally:
        await _shut_down(running, config, forced)


def _identity(config: ServiceConfig) -> Identity | None:
    folder, name = config.tls_dir, config.tls_server_name
    return Identity(Path(folder), server_name=name) if folder else None


def _admission(config: ServiceConfig, mine: Identity | None) -> access.Check:
    if mine is None or config.is_public:
        return access.unchecked
    return access.by_certificate(mine.papers().trust_domain)


async def _set_health(
    running: Running, status: health_pb2.HealthCheckResponse.ServingStatus
) -> None:
    for name in ("", *running.service.names):
        await running.health.set(name, status)


def _write_ready_file(path: str, address: str) -> None:
    if path and not address:
        Path(path).unlink(missing_ok=True)
    elif path:
        # Renamed into place, so that whoever waits for it never reads half an address.
        partial = Path(f"{path}.{os.getpid()}.partial")
        partial.write_text(address + "\n", encoding="utf-8")
        partial.replace(path)


async def _shut_down(running: Running, config: ServiceConfig, forced: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    ends = loop.time() + config.drain_grace_s
    await running.health.enter_graceful_shutdown()
    running.load.stop()
    _write_ready_file(config.ready_file, "")
    try:
        if running.serving:
            await _unless(forced, _drained(running.service, config.drain_grace_s))
            await _unless(forced, running.server.stop(max(0.0, ends - loop.time())))
    finally:
        await running.server.stop(None)
        await running.service.stop()


async def _drained(service: Service, grace_s: float) -> None:
    try:
        async with asyncio.timeout(grace_s):
            await service.drain(grace_s)
    except TimeoutError:
        logger.warning("the drain took longer than its grace")
    except Exception as error:
        logger.error("the drain failed: %s", telemetry.stack_of(error))


async def _unless(forced: asyncio.Event, work: Awaitable[None]) -> None:
    """Awaits `work`, or cancels it as soon as `forced` is set."""
    working = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(forced.wait())
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (working, waiting):
            task.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)
