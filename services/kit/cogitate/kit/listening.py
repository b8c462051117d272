"""Where a server listens, and the services every server has: health, load, reflection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
from cogitate.kit import identity
from cogitate.kit.config import ServiceConfig
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]


def bind(
    server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None = None
) -> str:
    """Lets a server listen there, too; returns where. Raises OSError.

    Without credentials it is the running service's identity that speaks, or plaintext.
    """
    host, _, port, is_path = *listen.rpartition(":"), listen.startswith("unix:")
    # gRPC would take port 99999 for 34463, and guess one where none is given.
    if not is_path and not (host and port.isdecimal() and int(port) < 65536):
        raise OSError(f"cannot listen on {listen}: not host:port or unix:path")
    mine = identity.current()
    if credentials is None and mine is not None:
        credentials = mine.server_credentials()
    try:
        if credentials is None:
            bound = server.add_insecure_port(listen)
        else:
            bound = server.add_secure_port(listen, credentials)
    except RuntimeError:
        raise OSError(f"cannot listen on {listen}") from None
    return listen if is_path else f"{host}:{bound}"


async def add_standard_services(
    server: grpc.aio.Server, names: Sequence[str], load: Sequence[str], config: ServiceConfig
) -> health.aio.HealthServicer:
    """Adds health of the services `names`, and reflection of those and of `load`."""
    probes = health.aio.HealthServicer()
    for name in ("", *names):
        await probes.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(probes, server)
    if config.reflection:
        also = (*load, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection((*names, *also), server)
    return probes


@asynccontextmanager
async def health_alone(listen: str, probes: health.aio.HealthServicer) -> AsyncIterator[str]:
    """Serves health in plaintext beside what asks for certificates; yields where, if anywhere.

    For probes that cannot show one, as Kubernetes' own.
    """
    if not listen:
        yield ""
        return
    server = grpc.aio.server(maximum_concurrent_rpcs=16)
    health_pb2_grpc.add_HealthServicer_to_server(probes, server)
    with identity.acting(None):
        address = bind(server, listen)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)
