"""Runs the gateway: `python -m cogitate.gateway --listen 127.0.0.1:7100`."""

from __future__ import annotations

import sys

import grpc
from cogitate.gateway.config import GatewayConfig
from cogitate.gateway.server import Gateway
from cogitate.kit import lifecycle


async def build(config: GatewayConfig, server: grpc.aio.Server) -> Gateway:
    """Registers the servicers."""
    return Gateway(config, server)


if __name__ == "__main__":
    sys.exit(lifecycle.main("gateway", GatewayConfig, build))
