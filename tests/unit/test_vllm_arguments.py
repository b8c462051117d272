"""What vLLM is started with: passed on, refused, completed."""

from __future__ import annotations

from pathlib import Path

import pytest
from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.agent_decoder.vllm_engine import arguments
from cogitate.kit.config import ConfigError

pytestmark = pytest.mark.unit

KNOWN = {
    "model", "tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend",
    "block_size", "enable_prompt_embeds", *arguments.OURS,
}  # fmt: skip


def test_arguments_of_vllm_are_passed_on() -> None:
    text = '{"tensor_parallel_size": 8, "distributed_executor_backend": "ray"}'
    given = arguments.read(text, KNOWN)
    made = arguments.complete(
        AgentDecoderConfig(model="m", max_sequence_count=7), given, Path("d"), on_cpu=False,
        sees=False,
    )  # fmt: skip
    assert (made["tensor_parallel_size"], made["distributed_executor_backend"]) == (8, "ray")
    assert (made["model"], made["max_num_seqs"], made["enable_prefix_caching"]) == ("d", 7, True)
    assert "block_size" not in made and "enable_prompt_embeds" not in made


def test_a_cpu_has_small_blocks_and_a_model_that_sees_takes_embeddings_unless_told() -> None:
    config = AgentDecoderConfig()
    made = arguments.complete(config, {}, Path("d"), on_cpu=True, sees=True)
    assert made["block_size"] == arguments.CPU_BLOCK_SIZE and made["enable_prompt_embeds"] is True
    told = arguments.complete(config, {"block_size": 64}, Path("d"), on_cpu=True, sees=True)
    assert told["block_size"] == 64


@pytest.mark.parametrize("text", ["7", "[]", '"x"', "{", "[" * 100_000])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not one JSON object"):
        arguments.read(text, KNOWN)


def test_unknown_arguments_are_refused_with_the_nearest_that_is_known() -> None:
    with pytest.raises(ConfigError, match=r"'tensor_paralel_size'; did you mean tensor_parallel_s"):
        arguments.read('{"tensor_paralel_size": 2}', KNOWN)


@pytest.mark.parametrize("name", arguments.OURS)
def test_what_gangs_rest_on_is_not_for_it_to_say(name: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot have {name}: "):
        arguments.read(f'{{"{name}": null}}', KNOWN)
