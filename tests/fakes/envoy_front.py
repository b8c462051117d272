"""The real Envoy as deploy/envoy/front.yaml has it, before gateways of a test, and its clients."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import httpx2
import yaml

from tests.fakes import certificates
from tests.fakes.envoy import CONFIGS, Config, Envoy, pointed_at, running_envoy_beside, shipped

NOBODY = "127.0.0.1:9"
HTTP_FILTERS = "envoy.filters.http."


@dataclass(frozen=True)
class Door:
    """What stands before the gateways."""

    envoy: Envoy
    tls: Path

    def channel(self, **options: Any) -> grpc.aio.Channel:
        """A client of gRPC that trusts its certificate; pings are not ours to test here."""
        given = [(f"grpc.{name}", value) for name, value in options.items()]
        credentials = grpc.ssl_channel_credentials((self.tls / "ca.crt").read_bytes())
        size = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_retries", 0)]
        return grpc.aio.secure_channel(self.envoy.address, credentials, [*size, *given])

    def http(self, http2: bool = False, local_address: str = "127.0.0.1") -> httpx2.AsyncClient:
        """A client of HTTP."""
        transport = httpx2.AsyncHTTPTransport(
            verify=ssl.create_default_context(cafile=str(self.tls / "ca.crt")),
            http2=http2, local_address=local_address,
        )  # fmt: skip
        return httpx2.AsyncClient(
            transport=transport, base_url=f"https://{self.envoy.address}", timeout=20
        )

    def lines(self) -> list[dict[str, Any]]:
        """The access log so far, and nothing that another process wrote."""
        text = self.envoy.log.read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def front_config(folder: Path, grpc: Sequence[str], http: Sequence[str] = (NOBODY,)) -> Config:
    """As it is shipped, with these gateways and files of this folder."""
    certificates.write(folder / "tls", certificates.signed())
    (folder / "cogitate.pb").write_bytes(_descriptors())
    secret = (CONFIGS / "certificate.yaml").read_text(encoding="utf-8")
    (folder / "certificate.yaml").write_text(secret.replace("/etc/envoy", str(folder)))
    text = yaml.safe_dump(shipped("front.yaml")).replace("/etc/envoy", str(folder))
    config: Config = yaml.safe_load(text)
    pool = {"gateways_grpc": grpc, "gateways_http": http, "authz": [NOBODY], "ratelimit": [NOBODY]}
    return pointed_at(config, **pool)


@cache
def _descriptors() -> bytes:
    command = [sys.executable, str(CONFIGS / "descriptors.py")]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60).stdout


def filter_of(config: Config, name: str) -> Config:
    """One of its HTTP filters."""
    (chain,) = config["static_resources"]["listeners"][0]["filter_chains"]
    filters = chain["filters"][0]["typed_config"]["http_filters"]
    found: Config
    (found,) = (one for one in filters if one["name"] == HTTP_FILTERS + name)
    return found


@asynccontextmanager
async def door(folder: Path, config: Config) -> AsyncIterator[Door]:
    """Runs it."""
    async with running_envoy_beside(folder, config) as envoy:
        yield Door(envoy, folder / "tls")


@asynccontextmanager
async def lines_of(
    client: httpx2.AsyncClient, path: str, body: Any, **headers: str
) -> AsyncIterator[AsyncIterator[str]]:
    """Posts JSON, and yields the answer's lines as they come."""
    async with client.stream("POST", path, json=body, headers=headers) as answer:
        if answer.status_code != 200:
            await answer.aread()
            raise AssertionError((answer.status_code, answer.text))
        yield answer.aiter_lines()
