"""What an HTTP request that Envoy asks about wants, by its headers; pure.

Names are those of the Gateway API inference extension where it has one, and ours otherwise. They
are the same for a gRPC `Decode` stream and for an OpenAI-like POST.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cogitate.kit.errors import InvalidRequest

MODEL: Final = "x-gateway-model-name"
TENANT: Final = "x-gateway-inference-fairness-id"
AGENTS: Final = "x-cogitate-agents"
PREFIX_DIGEST: Final = "x-cogitate-prefix-digest"
PROMPT_TOKENS: Final = "x-cogitate-prompt-tokens"
TOKENS_PER_AGENT: Final = "x-cogitate-tokens-per-agent"
SUBSET: Final = "x-gateway-destination-endpoint-subset"
_MAX_CHARS: Final = 256
_MAX_TOKENS: Final = 2**40


@dataclass(frozen=True, slots=True)
class Ask:
    """Where may `agents` agents of `model` go, all to one endpoint? An empty model: the only one.

    `subset`: addresses that come into question; None: all. Counts of tokens are 0 where unknown.
    """

    model: str = ""
    agents: int = 1
    tenant: str = ""
    prefix_digest: str = ""
    prompt_tokens: int = 0
    tokens_per_agent: int = 0
    subset: frozenset[str] | None = None
    traceparent: str = ""


def ask_of(headers: Mapping[str, str], subset: str | None, max_agents: int) -> Ask:
    """Reads headers; `subset` is what the proxy itself says. Raises InvalidRequest naming one."""
    if subset is None:
        subset = headers.get(SUBSET)
    return Ask(
        model=_text(headers, MODEL),
        agents=_count(headers, AGENTS, 1, 1, max_agents),
        tenant=_text(headers, TENANT),
        prefix_digest=_text(headers, PREFIX_DIGEST),
        prompt_tokens=_count(headers, PROMPT_TOKENS, 0, 0, _MAX_TOKENS),
        tokens_per_agent=_count(headers, TOKENS_PER_AGENT, 0, 0, _MAX_TOKENS),
        subset=None if subset is None else frozenset(_addresses(subset)),
        traceparent=headers.get("traceparent", "")[:_MAX_CHARS],
    )


def is_grpc(headers: Mapping[str, str]) -> bool:
    """Whether the request is an RPC, so that a refusal must be a gRPC status."""
    return headers.get("content-type", "").startswith("application/grpc")


@lru_cache(maxsize=65_536)
def is_ip_and_port(address: str) -> bool:
    """Whether Envoy can be told it: it does not resolve names that a picker tells it."""
    host, _, port = address.rpartition(":")
    if not (port.isdecimal() and 0 < int(port) < 65536):
        return False
    is_bracketed = host.startswith("[") and host.endswith("]")
    try:
        return (ipaddress.ip_address(host.strip("[]")).version == 6) == is_bracketed
    except ValueError:
        return False


def _addresses(subset: str) -> list[str]:
    return [part.strip() for part in subset.split(",") if part.strip()]


def _text(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "").strip()
    if len(value) > _MAX_CHARS:
        raise InvalidRequest(
            f"the header {name} is longer than {_MAX_CHARS} characters", field=name
        )
    return value


def _count(headers: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = headers.get(name, "").strip()
    if not text:
        return default
    value = int(text) if text.isascii() and text.isdecimal() and len(text) <= 16 else -1
    if not least <= value <= most:
        raise InvalidRequest(
            f"the header {name} must be a whole number from {least} to {most}", field=name
        )
    return value
