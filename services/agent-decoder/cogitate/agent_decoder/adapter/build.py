"""Puts the engine `openai` together, and looks every now and then whether its server is there."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets

from cogitate.agent_decoder.adapter import settings
from cogitate.agent_decoder.adapter.blobs import BlobFetcher
from cogitate.agent_decoder.adapter.chat import ChatRenderer
from cogitate.agent_decoder.adapter.client import ChatServer, UpstreamError
from cogitate.agent_decoder.adapter.pieces import CONTROL, Pieces
from cogitate.agent_decoder.adapter.probe import Abilities, probe
from cogitate.agent_decoder.adapter.source import ChatSource
from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.agent_decoder.core.starts import GangRules
from cogitate.agent_decoder.engines import About, MakeEngine, OnEvents, Serving, limits_of
from cogitate.agent_decoder.stream_engine import Prices, StreamEngine
from cogitate.agent_decoder.stream_meter import StreamMeter
from cogitate.kit.errors import EngineFailure

log = logging.getLogger(__name__)

# What a model's context is taken for where the server does not say.
UNKNOWN_MODEL_LEN = 131_072


async def prepare(config: AgentDecoderConfig) -> MakeEngine:
    """Waits for the server and tries what it can do. Raises ConfigError or EngineFailure."""
    server = ChatServer(settings.read(config))
    try:
        abilities = await _found(server, config)
    except BaseException:
        await server.close()
        raise
    return lambda on_events: _serving(config, server, abilities, on_events)


async def _found(server: ChatServer, config: AgentDecoderConfig) -> Abilities:
    """What the server can do. One that is not there yet is waited for: it may be starting, too."""
    ends = asyncio.get_running_loop().time() + config.openai_start_s
    while True:
        try:
            return await probe(server, config)
        except UpstreamError as error:
            if not error.retryable or asyncio.get_running_loop().time() >= ends:
                raise EngineFailure(error.message, reason=error.reason) from None
            log.info("waiting for the model server: %s", error.reason)
        await asyncio.sleep(1.0)


def _serving(
    config: AgentDecoderConfig, server: ChatServer, abilities: Abilities, on_events: OnEvents
) -> Serving:
    pieces = Pieces()
    max_model_len = abilities.max_model_len or UNKNOWN_MODEL_LEN
    rules = GangRules(
        control=CONTROL,
        decode=pieces.decode,
        marks_answers=abilities.reasons,
        max_model_len=max_model_len,
        max_injected=config.max_injected_token_count,
    )
    # Pieces have names in this process alone: no other goes on from its states.
    made_of = f"{config.openai_base_url}|{server.settings.model}|{secrets.token_hex(16)}"
    build_digest = f"sha256:{hashlib.sha256(made_of.encode()).hexdigest()}"
    prices = Prices(
        config.openai_price_per_million_prompt_tokens_micro_usd,
        config.openai_price_per_million_tokens_micro_usd,
    )
    source = ChatSource(server, abilities, pieces, rules)
    engine = StreamEngine(source, limits_of(config), on_events, prices)
    blobs = BlobFetcher(config.fetch_timeout_s, config.openai_max_image_bytes)
    checks = asyncio.create_task(_check(server, config.openai_check_s), name="check")

    async def stop() -> None:
        checks.cancel()
        await asyncio.gather(checks, return_exceptions=True)
        await engine.stop()
        await blobs.close()
        await server.close()

    return Serving(
        engine=engine,
        renderer=ChatRenderer(config, abilities, pieces, blobs, build_digest),
        meter=StreamMeter(engine),
        about=About(
            engine="adapter",
            model=config.model,
            build_digest=build_digest,
            capabilities=abilities.capabilities(),
            hardware=f"server-{abilities.flavour}",
            max_model_len=max_model_len,
            price_per_million_tokens_micro_usd=prices.sampled,
            price_per_million_prompt_tokens_micro_usd=prices.prompt,
        ),
        stop=stop,
    )


async def _check(server: ChatServer, interval_s: float) -> None:
    """Keeps ``ready`` true to the facts while nobody calls."""
    while True:
        await asyncio.sleep(interval_s)
        before = server.ready
        try:
            await server.models()
        except UpstreamError as error:
            # Without a list of models it may still serve; then calls tell whether it does.
            if error.reason in ("UPSTREAM_TIMEOUT", "UPSTREAM_FAILED", "UPSTREAM_DENIED"):
                server.ready = False
        if server.ready != before:
            log.warning("the model server is %s", "back" if server.ready else "away")
