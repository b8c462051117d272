"""Puts the native engine together: a checkpoint, its thread, its renderer."""

from __future__ import annotations

import asyncio

import torch
from cogitate.agent_decoder import wire
from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.agent_decoder.embeddings import EmbeddingFetcher
from cogitate.agent_decoder.engine import Engine
from cogitate.agent_decoder.engine_meter import EngineMeter
from cogitate.agent_decoder.engines import About, MakeEngine, OnEvents, Serving, limits_of
from cogitate.agent_decoder.grammars import Grammars, read_tokenizer
from cogitate.agent_decoder.model import backend, loader
from cogitate.agent_decoder.model.loader import LoadedModel
from cogitate.agent_decoder.rendering import Renderer
from cogitate.kit.config import model_directory
from cogitate.v1 import agent_decoder_service_pb2 as pb


async def prepare(config: AgentDecoderConfig) -> MakeEngine:
    """Loads the model. Raises EngineFailure."""
    if config.threads:
        torch.set_num_threads(config.threads)
    directory = model_directory(config.model, (config.models_path,))
    wanted = backend.Wanted(
        device=config.device,
        dtype=config.dtype,
        step=config.step,
        threads=config.threads,
        block_size=config.block_size_count,
        batch_invariant=config.batch_invariant,
    )
    model = await asyncio.to_thread(loader.load, config.model, directory, wanted)
    return lambda on_events: _serving(config, model, on_events)


def _serving(config: AgentDecoderConfig, model: LoadedModel, on_events: OnEvents) -> Serving:
    engine = Engine(model, limits_of(config), on_events)
    embeddings = EmbeddingFetcher(
        model.name,
        model.config.hidden_size,
        config.embedding_cache_bytes,
        config.fetch_timeout_s,
    )
    if config.vision_encoder_address and model.has_vision:
        embeddings.connect(config.vision_encoder_address)
    grammars = Grammars(
        lambda: read_tokenizer(model_directory(config.model, (config.models_path,))),
        model.config.vocab_size,
        model.template.control.end,
        config.grammar_cache_count,
    )

    async def stop() -> None:
        await asyncio.to_thread(engine.stop)
        await embeddings.close()
        await grammars.close()

    return Serving(
        engine=engine,
        renderer=Renderer(config, model, embeddings, grammars, engine.max_model_len),
        meter=EngineMeter(engine),
        about=_about(config, model, engine),
        stop=stop,
        prepare=grammars.prepare,
    )


def _about(config: AgentDecoderConfig, model: LoadedModel, engine: Engine) -> About:
    vision = [pb.CAPABILITY_VISION] if model.has_vision else []
    invariant = [pb.CAPABILITY_BATCH_INVARIANT] if model.runner.batch_invariant else []
    return About(
        engine="torch",
        model=model.name,
        build_digest=model.build_digest,
        capabilities=(*wire.CAPABILITIES, *vision, *invariant),
        hardware=backend.hardware(model.runner.device),
        max_model_len=engine.max_model_len,
        block_count=config.block_count,
        block_size=config.block_size_count,
    )
