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
        "what makes the tokens: our engine",
        choices=("native",),
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
    vision_encoder_address: str = knob("", "vision-encoder for gangs that name none")
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
    grammar_cache_count: int = knob(64, "compiled grammars kept", minimum=1, maximum=100_000)
    fetch_timeout_s: float = knob(
        10.0, "how long fetching embeddings may take", minimum=0.1, maximum=600
    )
