"""Knobs of the agent-decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cogitate.kit.config import ServiceConfig, knob


@dataclass(frozen=True)
class AgentDecoderConfig(ServiceConfig):
    """Runs gangs of agents on one model.

    Example: agent-decoder --listen 127.0.0.1:7105 --router-addresses 127.0.0.1:7102
    """

    engine: str = knob(
        "native",
        "what makes the tokens: our own, a server that speaks OpenAI's chat completions, or vLLM",
        choices=("native", "openai", "vllm"),
    )
    model: str = knob("mini", "model to serve: a shipped name, or a directory under models-path")
    models_path: Path = knob(Path("models"), "folder with further checkpoint directories")
    device: str = knob("auto", "torch device: auto, cpu or cuda")
    dtype: str = knob("auto", "type of weights", choices=("auto", "float32", "bfloat16", "int8"))
    step: str = knob("auto", "what computes a step on a CPU", choices=("auto", "native", "torch"))
    batch_invariant: str = knob(
        "auto",
        "torch computes in fixed shapes: no agent's numbers depend on others; auto: on CPUs",
        choices=("auto", "on", "off"),
    )
    threads: int = knob(0, "threads; 0 leaves torch's own choice", minimum=0, maximum=256)
    endpoint_id: str = knob("", "name in the fleet; empty makes one from provider and port")
    provider: str = knob("local", "who runs this endpoint")
    region: str = knob("local", "region of this endpoint")
    failure_domain: str = knob("", "what fails together with it; empty means the provider")
    price_per_hour_micro_usd: int = knob(
        0, "price per hour in millionths of a US dollar", minimum=0, maximum=10**12
    )
    spot: bool = knob(False, "may be taken away at short notice")
    advertise_address: str = knob(
        "", "host:port under which others reach this endpoint; empty means listen"
    )
    router_addresses: tuple[str, ...] = knob((), "routers to report to, host:port, comma-separated")
    vision_encoder_address: str = knob(
        "", "vision-encoder asked first, that of this site; then the one a gang names"
    )
    block_count: int = knob(4096, "KV blocks of the cache", minimum=1, maximum=10_000_000)
    block_size_count: int = knob(16, "positions in a KV block", minimum=1, maximum=1024)
    max_sequence_count: int = knob(64, "sequences in the batch", minimum=1, maximum=4096)
    max_waiting_gang_count: int = knob(
        64, "gangs waiting for room; one more is refused", minimum=0, maximum=100_000
    )
    max_injected_token_count: int = knob(
        384, "positions tool results may add to an agent", minimum=0, maximum=1_000_000
    )
    default_max_token_count: int = knob(
        256, "tokens an agent may sample if the request does not say", minimum=1, maximum=1_000_000
    )
    max_step_position_count: int = knob(
        2048, "positions one engine step computes", minimum=1, maximum=1_000_000
    )
    max_chunk_position_count: int = knob(
        512, "positions of one sequence in a step", minimum=1, maximum=1_000_000
    )
    prefill_slice_s: float = knob(
        0.1,
        "how long a step with prompts may make running agents wait; 0: no limit",
        minimum=0.0,
        maximum=60.0,
    )
    flush_interval_s: float = knob(
        0.05, "tokens of steps shorter than this are sent together", minimum=0.0, maximum=1.0
    )
    measure_peaks: bool = knob(
        True, "measure at start what the device can do, 0.2 s long, if metrics are sent anywhere"
    )
    embedding_cache_bytes: int = knob(
        64 * 1024 * 1024, "fetched image embeddings kept", minimum=0, maximum=2**40
    )
    conversation_timeout_s: float = knob(
        0.5,
        "how long a conversation may take to come from another endpoint of the site; then the "
        "aggregator sends it",
        minimum=0.01,
        maximum=60,
    )
    conversation_capacity_bytes: int = knob(
        16 * 1024 * 1024,
        "conversations kept for other endpoints of the site; what is over is not handed on",
        minimum=0,
        maximum=2**40,
    )
    grammar_cache_count: int = knob(64, "compiled grammars kept", minimum=1, maximum=100_000)
    fetch_timeout_s: float = knob(
        10.0, "how long fetching an image's embeddings may take", minimum=0.1, maximum=600
    )

    vllm_arguments: str = knob(
        "",
        "what vLLM is started with, a JSON object of its Python arguments, such as "
        '\'{"tensor_parallel_size": 8, "pipeline_parallel_size": 2, '
        '"distributed_executor_backend": "ray"}\'',
    )

    openai_base_url: str = knob("", "the server of the engine openai, such as http://host:8080/v1")
    openai_model: str = knob("", "what the server calls the model; empty means as here")
    openai_reply_models: tuple[str, ...] = knob(
        (), "further names its replies may carry; any other ends the agent"
    )
    openai_key_file: str = knob("", "file that holds the server's key")
    openai_key_variable: str = knob("", "environment variable that holds it, by name")
    openai_flavour: str = knob(
        "auto",
        "whose API it is; auto: as its list of models says",
        choices=("auto", "openai", "vllm", "llamacpp"),
    )
    openai_continue: str = knob(
        "auto", "whether it continues a begun turn; auto: tried", choices=("auto", "on", "off")
    )
    openai_images: str = knob(
        "auto", "whether its model sees images; auto: tried", choices=("auto", "on", "off")
    )
    openai_temperature: float = knob(
        1.0, "temperature of an agent whose request does not say", minimum=0.0, maximum=2.0
    )
    openai_connect_s: float = knob(5.0, "how long connecting may take", minimum=0.01, maximum=600)
    openai_first_token_s: float = knob(
        60.0, "how long a call may wait for its first token", minimum=0.01, maximum=3600
    )
    openai_token_gap_s: float = knob(
        20.0, "how long it may wait for each further one", minimum=0.01, maximum=3600
    )
    openai_max_call_count: int = knob(
        64, "calls at once; further ones wait", minimum=1, maximum=100_000
    )
    openai_max_retry_count: int = knob(
        2, "times a call is tried again before its first token", minimum=0, maximum=100
    )
    openai_max_retry_wait_s: float = knob(
        20.0, "a longer Retry-After ends the call", minimum=0.0, maximum=3600
    )
    openai_start_s: float = knob(
        120.0, "how long to wait for a server that is not there", minimum=0.0, maximum=86_400
    )
    openai_check_s: float = knob(
        5.0, "how often to look whether it is there", minimum=0.05, maximum=3600
    )
    openai_max_prompt_bytes: int = knob(
        32 * 1024 * 1024, "largest conversation sent, images included", minimum=1, maximum=2**31
    )
    openai_max_image_bytes: int = knob(
        16 * 1024 * 1024, "largest image sent", minimum=1, maximum=2**31
    )
    openai_price_per_million_prompt_tokens_micro_usd: int = knob(
        0, "its price of prompts, in millionths of a US dollar", minimum=0, maximum=10**12
    )
    openai_price_per_million_tokens_micro_usd: int = knob(
        0, "its price of sampled tokens, in millionths of a US dollar", minimum=0, maximum=10**12
    )
