"""The router's knobs."""

from __future__ import annotations

from dataclasses import dataclass

from cogitate.kit.config import ServiceConfig, knob
from cogitate.router.core.policies import POLICIES


@dataclass(frozen=True)
class RouterConfig(ServiceConfig):
    """Places gangs of agents on the fleet that reports to it."""

    vision_encoder_address: str = knob("", "vision-encoder that grants name; empty names none")
    policy: str = knob("gang", "default placement policy", choices=tuple(sorted(POLICIES)))
    report_interval_s: float = knob(
        0.5, "how often endpoints are asked to report", minimum=0.01, maximum=60
    )
    report_expiry_s: float = knob(
        3.0, "silence after which an endpoint is stale", minimum=0.05, maximum=600
    )
    booking_settle_s: float = knob(
        2.0,
        "how long an unconfirmed booking adds to the reported load",
        minimum=0,
        maximum=600,
    )
    retry_delay_s: float = knob(
        0.5, "when a denied declaration may be tried again", minimum=0.01, maximum=600
    )
    max_queue_count: int = knob(
        1000, "contemplations that may wait for room; 0: none waits", minimum=0, maximum=1_000_000
    )
    queue_quantum_count: int = knob(
        128,
        "tokens a tenant is served at a time while others wait; the fewer, the more even",
        minimum=1,
        maximum=1_000_000_000,
    )
    max_endpoint_count: int = knob(1000, "endpoints that may report", minimum=1, maximum=100_000)
    max_lease_count: int = knob(10_000, "leases held at once", minimum=1, maximum=1_000_000)
    max_agent_count: int = knob(1024, "agents in one declaration", minimum=1, maximum=65_536)
    outbox_count: int = knob(
        1024, "answers and news that may wait for one reader", minimum=1, maximum=100_000
    )
    prior_prefill_tokens_per_s: float = knob(
        2000.0, "prefill speed assumed until one is reported", minimum=0.1, maximum=1e9
    )
    prior_step_s: float = knob(
        0.02, "step time of one sequence assumed until one is reported", minimum=1e-6, maximum=60
    )
    batch_slope: float = knob(
        0.125, "growth of the step time per sequence, relative", minimum=0, maximum=100
    )
    prior_agent_token_count: int = knob(
        256, "tokens per agent assumed when a gang declares none", minimum=1, maximum=1_000_000
    )
    spread_penalty: float = knob(
        0.1, "gain each further endpoint must bring, relative", minimum=0, maximum=100
    )
    seconds_per_usd: float = knob(
        60.0, "seconds a gang may take longer to save a dollar", minimum=0, maximum=1e9
    )
    growth_share: float = knob(
        0.5, "share of an agent's expected KV growth that must be free", minimum=0, maximum=1
    )
    region: str = knob("", "region of the aggregators served, for distances; empty: none count")
    region_distance_s: float = knob(0.1, "round trip between two regions", minimum=0, maximum=60)
    spot_losses_per_hour: float = knob(
        0.05, "how often spot capacity is expected to be taken away", minimum=0, maximum=3600
    )
    prefix_count: int = knob(
        10_000, "prefixes remembered with where they are computed", minimum=0, maximum=10_000_000
    )
    prefix_endpoint_count: int = knob(
        8, "endpoints remembered of each prefix", minimum=1, maximum=1024
    )
    endpoints_file: str = knob(
        "", "file of endpoints to dial, host:port a line, read again when it changes"
    )
    endpoint_names: tuple[str, ...] = knob(
        (),
        "names of endpoints to dial at all their addresses, such as headless services, name:port",
    )
    dns_server: str = knob("", "host:port that resolves them; empty takes the system's")
    dns_timeout_s: float = knob(2.0, "how long a name may take", minimum=0.01, maximum=60)
    discovery_interval_s: float = knob(
        5.0, "how often file and names are looked at", minimum=0.01, maximum=3600
    )
    redial_delay_s: float = knob(
        1.0, "when an endpoint that was lost is dialled again", minimum=0.01, maximum=3600
    )
    picker: bool = knob(False, "answer Envoy as an endpoint picker (ext_proc), on the same address")
    picker_listen: str = knob(
        "", "a further host:port of the same server, for Envoy; empty: the one of all"
    )
    picker_wait_s: float = knob(
        0.0, "how long a request may wait for room; below Envoy's message_timeout", minimum=0,
        maximum=3600,
    )  # fmt: skip
    picker_settle_s: float = knob(
        1.0, "how long a pick counts beside what its endpoint reports", minimum=0, maximum=600
    )
    picker_fallback_count: int = knob(
        2, "endpoints told beside the one picked, for retries", minimum=0, maximum=16
    )
    keda_scaler: bool = knob(False, "answer KEDA as an external scaler, on the same address")
    scaler_interval_s: float = knob(
        0.25, "how often its streams look for a change", minimum=0.01, maximum=60
    )
    scaler_window_s: float = knob(
        10.0, "how long agents that found no place count as waiting", minimum=0.1, maximum=3600
    )
    scaler_fill_share: float = knob(
        0.8, "share of an endpoint's sequences that is to be used", minimum=0.01, maximum=1
    )
    scaler_agents_per_endpoint: int = knob(
        16, "agents an endpoint is to hold, until one has said its size", minimum=1, maximum=65_536
    )
