"""Knobs of the aggregator."""

from __future__ import annotations

from dataclasses import dataclass

from cogitate.kit.config import ServiceConfig, knob


@dataclass(frozen=True)
class AggregatorConfig(ServiceConfig):
    """Runs contemplations: places gangs, collects ballots, gives verdicts."""

    router_address: str = knob(
        "127.0.0.1:7102",
        "routers, host:port, comma separated; one is used until it is lost, then the next",
    )
    tool_executor_address: str = knob("127.0.0.1:7104", "tool-executor, host:port")
    vision_encoder_address: str = knob("127.0.0.1:7103", "vision-encoder, host:port")
    provider: str = knob(
        "local", "who runs the site this aggregator is at, as the agent-decoders there are told"
    )
    region: str = knob(
        "local", "its region; decoders of this site are sent conversations, others once a site"
    )
    advertise_address: str = knob(
        "", "host:port others reach this aggregator at; empty means `listen`"
    )
    journal: str = knob(
        "",
        "the journal: an SQLite file, or nats://host:port of a JetStream server; empty keeps it in "
        "memory only",
    )
    journal_replicas: int = knob(
        1, "servers that keep each message of a journal in NATS", minimum=1, maximum=5
    )
    journal_fsync: bool = knob(False, "survive power loss too, at the price of an fsync a commit")
    journal_retention_s: float = knob(
        86_400.0, "how long ended contemplations stay attachable", minimum=1, maximum=31_536_000
    )
    embedding_model: str = knob(
        "",
        "directory with model.onnx and tokenizer.json of a sentence embedding, for equivalence "
        "`embedding`; empty means there is none",
    )
    embedding_timeout_s: float = knob(
        5.0, "how long an answer may wait for its embedding", minimum=0.01, maximum=60
    )
    embedding_max_waiting_count: int = knob(
        256,
        "answers embedded or waiting for it; one more is compared by its text",
        minimum=1,
        maximum=100_000,
    )
    embedding_max_character_count: int = knob(
        4000, "what of an answer is embedded, its beginning", minimum=1, maximum=1_000_000
    )
    embedding_max_token_count: int = knob(
        256, "the same in the model's tokens", minimum=1, maximum=8192
    )
    default_model: str = knob("mini", "model of requests that name none")
    default_agent_count: int = knob(
        8, "agents of a contemplating request that names no number", minimum=1, maximum=1024
    )
    max_agent_count: int = knob(64, "agents of a contemplation", minimum=1, maximum=4096)
    max_contemplation_count: int = knob(
        256, "contemplations running at once; one more is refused", minimum=1, maximum=100_000
    )
    max_duration_s: float = knob(
        120.0, "longest time a contemplation may take", minimum=0.1, maximum=86_400
    )
    place_timeout_s: float = knob(
        10.0, "how long an agent may wait for a place", minimum=0.05, maximum=600
    )
    shed_memory_s: float = knob(
        0.2,
        "how long the router's refusal for want of time speaks for others like it, and a tenth of "
        "the wait it foresees at most; 0: each is asked for",
        minimum=0,
        maximum=60,
    )
    max_agent_loss_count: int = knob(
        3, "an agent that lost its endpoint this often is given up", minimum=1, maximum=1000
    )
    pulse_interval_s: float = knob(
        0.25, "how often it is looked who fell silent or is slow", minimum=0.01, maximum=60
    )
    stall_factor: float = knob(
        2.0,
        "silence of a gang, in times of an outlier of its endpoint's own time between messages, "
        "after which it stalls",
        minimum=1,
        maximum=1000,
    )
    stall_min_s: float = knob(1.0, "the same, at least", minimum=0.05, maximum=600)
    stall_max_s: float = knob(
        20.0,
        "the same, at most; and of what wrote too little to know",
        minimum=0.05,
        maximum=86_400,
    )
    breaker_failure_count: int = knob(
        3, "failures of an endpoint in a row that open its breaker", minimum=1, maximum=1000
    )
    breaker_open_s: float = knob(
        2.0, "how long it is then avoided; twice as long each time", minimum=0.01, maximum=3600
    )
    breaker_max_open_s: float = knob(30.0, "the same, at most", minimum=0.01, maximum=86_400)
    hedge_factor: float = knob(
        3.0,
        "an agent so many times slower than its siblings is hedged; 0: none is for its pace",
        minimum=0,
        maximum=1000,
    )
    hedge_min_gain_s: float = knob(
        2.0, "and only if it would end so much later than at their pace", minimum=0, maximum=3600
    )
    retry_share: float = knob(
        0.1, "attempts beside the first ones, of the agents that run", minimum=0, maximum=1000
    )
    retry_floor_count: int = knob(
        100, "the same, at least, where few run", minimum=0, maximum=1_000_000
    )
    retry_window_s: float = knob(10.0, "within which they are counted", minimum=0.1, maximum=3600)
    tool_timeout_s: float = knob(10.0, "how long a tool call may take", minimum=0.05, maximum=600)
    journal_timeout_s: float = knob(
        1.0, "how long a commit may hold events up before they go out", minimum=0.01, maximum=60
    )
    journal_interval_s: float = knob(
        0.05,
        "shortest time from one commit to the next; first text and endings do not wait",
        minimum=0,
        maximum=1,
    )
    takeover_interval_s: float = knob(
        0.05, "how often owners that died are looked for", minimum=0.005, maximum=60
    )
    heartbeat_interval_s: float = knob(
        0.5, "how often this aggregator says in the journal that it lives", minimum=0.02, maximum=60
    )
    owner_timeout_s: float = knob(
        5.0, "silence after which an owner that hangs is taken for dead", minimum=0.1, maximum=600
    )
    reattach_timeout_s: float = knob(
        10.0, "after a takeover, how long the client may take to attach", minimum=0.1, maximum=600
    )
    kill_ack_timeout_s: float = knob(
        1.0, "how long a kill's acknowledgement is waited for", minimum=0.05, maximum=60
    )
    flush_interval_s: float = knob(
        0.05, "how long agents' text is collected before it is sent", minimum=0.001, maximum=1
    )
    prepare: bool = knob(
        True, "compute the prompt of `synthesis` while the last agents still write their drafts"
    )
    max_kept_contemplation_count: int = knob(
        200, "ended contemplations kept in memory beside the journal", minimum=0, maximum=100_000
    )
