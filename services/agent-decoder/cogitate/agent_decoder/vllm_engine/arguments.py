"""What vLLM is started with: the knob `vllm_arguments` over what a gang needs."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.agent_decoder.core.sampling import CONFIDENCE_TOP_K
from cogitate.kit.config import ConfigError

# What gangs rest on, and why it is not for vllm_arguments to say.
OURS: Mapping[str, str] = {
    "model": "--model names the checkpoint",
    "tokenizer": "the checkpoint's own is used",
    "skip_tokenizer_init": "grammars need the tokenizer",
    "enable_prefix_caching": "agents share their prompt by it",
    "max_logprobs": "confidence is of so many likeliest tokens",
    "max_num_seqs": "--max-sequence-count says it",
    "scheduling_policy": "gangs have priorities",
    "logits_processors": "tokens are drawn by one",
    "speculative_config": "tokens are drawn by our own counter, which drafts have not",
    "stream_interval": "every step is told",
    "enable_log_requests": "prompts are not logged",
}
# vLLM's own default on a CPU is 128, and of the last block of a prompt nothing is shared.
CPU_BLOCK_SIZE = 32


def read(text: str, known: Collection[str]) -> dict[str, Any]:
    """The knob's JSON object, each name one of ``known``. Raises ConfigError."""
    try:
        given = json.loads(text or "{}")
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise ConfigError(
            "--vllm-arguments is not one JSON object, such as '{\"tensor_parallel_size\": 2}'"
        )
    for name in given:
        if name in OURS:
            raise ConfigError(f"--vllm-arguments cannot have {name}: {OURS[name]}")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"--vllm-arguments: this vLLM has no argument {name!r}{hint}")
    return given


def complete(
    config: AgentDecoderConfig,
    given: Mapping[str, Any],
    directory: Path,
    *,
    on_cpu: bool,
    sees: bool,
) -> dict[str, Any]:
    """All arguments. ``sees``: the checkpoint takes images, which come as embeddings."""
    block_size = {"block_size": CPU_BLOCK_SIZE} if on_cpu else {}
    embeds = {"enable_prompt_embeds": True} if sees else {}
    return {
        **block_size,
        **embeds,
        **given,
        "model": str(directory),
        "served_model_name": config.model,
        "enable_prefix_caching": True,
        "max_logprobs": CONFIDENCE_TOP_K,
        "max_num_seqs": config.max_sequence_count,
        "scheduling_policy": "priority",
        "disable_log_stats": True,  # its own loggers: ours hears all the same
    }
