"""Every knob of the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cogitate.gateway.core.spec import Limits
from cogitate.kit.config import MIB, ServiceConfig, knob


@dataclass(frozen=True)
class GatewayConfig(ServiceConfig):
    """The front door of the mesh: checks requests, forwards them, relays what comes back."""

    is_public: ClassVar[bool] = True

    listen: str = knob("127.0.0.1:7100", "host:port to listen on; port 0 takes a free one")
    # A stranger's streams hold their places even before a message came.
    max_connection_rpcs: int = knob(
        256, "RPCs at once on one connection; more wait at the client", minimum=1, maximum=1_000_000
    )
    default_deadline_s: float = knob(
        180.0,
        "deadline of an RPC that brings none, and the longest one it may bring",
        minimum=0.001,
        maximum=86_400,
    )
    aggregator_address: str = knob(
        "127.0.0.1:7101", "gRPC addresses of the aggregators, comma separated; one is enough"
    )
    failover_timeout_s: float = knob(
        15.0,
        "how long a stream whose aggregator died waits for another to go on with it",
        minimum=0,
        maximum=600,
    )
    router_address: str = knob("127.0.0.1:7102", "gRPC address of the router")
    vision_encoder_address: str = knob("127.0.0.1:7103", "gRPC address of the vision-encoder")
    call_timeout_s: float = knob(
        10.0, "longest a short call inside the mesh may take", minimum=0.01, maximum=600
    )
    default_model: str = knob("mini", "model of a question that names none")
    strategies: tuple[str, ...] = knob(
        ("auto", "vote", "confidence", "refine", "best_of", "synthesis"),
        "strategies told to clients, comma separated",
    )
    quorums: tuple[str, ...] = knob(
        ("all", "unbeatable", "unanimous", "posterior", "first", "verified"),
        "quorum rules told to clients, comma separated",
    )
    max_agent_count: int = knob(64, "most agents of one question", minimum=1, maximum=4096)
    max_image_count: int = knob(8, "most images of one question", minimum=0, maximum=256)
    max_image_bytes: int = knob(16 * MIB, "largest image, as a file", minimum=1, maximum=2**31 - 1)
    max_image_pixel_count: int = knob(
        40_000_000, "largest image, width times height", minimum=1, maximum=2**31 - 1
    )
    max_text_length: int = knob(
        100_000, "most characters of all text of one question", minimum=1, maximum=100_000_000
    )
    max_message_count: int = knob(64, "most messages of a conversation", minimum=1, maximum=4096)
    max_table_count: int = knob(8, "most tables of one question", minimum=0, maximum=64)
    max_table_row_count: int = knob(
        500, "most rows of all tables of one question", minimum=1, maximum=100_000
    )
    max_table_bytes: int = knob(
        64 * 1024,
        "what all tables of one question may hold; the tool-executor has its own limit",
        minimum=1,
        maximum=16 * MIB,
    )
    max_token_count: int = knob(
        1_000_000, "most tokens all agents of one question may sample", minimum=1, maximum=2**31 - 1
    )
    max_duration_s: float = knob(
        120.0,
        "longest a contemplation may take; the aggregator has its own limit",
        minimum=0.001,
        maximum=86_400,
    )
    max_trace_span_count: int = knob(
        5000, "most spans told of one contemplation", minimum=1, maximum=1_000_000
    )

    api_keys: str = knob(
        "", "file of API keys (`cogitate keys create`); empty lets everybody in, as one tenant"
    )
    admin_listen: str = knob(
        "", "host:port of AdminService, the operator's; empty serves it nowhere"
    )
    admin_key_file: str = knob(
        "", "file with the operator's key; with tls_dir asked for beside the certificate `admin`"
    )
    jwt_keys: str = knob(
        "", "JWKS of who signs tenants' tokens: a file, or an http(s) URL; empty takes no tokens"
    )
    jwt_issuer: str = knob("", "issuer (iss) that tokens must name")
    jwt_audience: str = knob("", "audience (aud) that tokens must name")
    jwt_algorithms: tuple[str, ...] = knob(
        ("RS256", "ES256", "EdDSA"), "algorithms taken, of these three, comma separated"
    )
    jwt_tenant_claim: str = knob("sub", "claim that names the tenant")
    jwt_models_claim: str = knob("", "claim that lists the models a tenant may use; empty is none")
    jwt_tools_claim: str = knob("", "claim that lists its tools; empty is none")
    jwt_providers_claim: str = knob("", "claim that lists its providers; empty is none")
    jwt_max_contemplation_count: int = knob(
        0, "contemplations a tenant by token may run at once; 0 is no limit", minimum=0,
        maximum=1_000_000,
    )  # fmt: skip
    jwt_requests_per_minute: int = knob(
        0, "requests a minute of a tenant by token; 0 is no limit", minimum=0, maximum=1_000_000
    )
    jwt_leeway_s: float = knob(
        30.0, "how far clocks may be apart when a token's times are read", minimum=0, maximum=600
    )
    jwt_refresh_s: float = knob(
        300.0, "age at which the JWKS is asked for anew", minimum=1, maximum=86_400
    )
    jwt_refresh_min_s: float = knob(
        10.0, "least time between asking, whatever keys tokens name", minimum=0.1, maximum=3600
    )
    http_listen: str = knob(
        "", "host:port of the OpenAI-compatible HTTP interface; empty listens nowhere"
    )
    http_max_body_bytes: int = knob(
        32 * MIB, "largest body of an HTTP request", minimum=1024, maximum=2**31 - 1
    )
    http_max_head_bytes: int = knob(
        16 * 1024, "largest head of an HTTP request", minimum=512, maximum=MIB
    )
    http_max_header_count: int = knob(
        100, "most headers of an HTTP request", minimum=8, maximum=10_000
    )
    http_read_timeout_s: float = knob(
        8.0,
        "how long an HTTP request's head may take, and its body beside a second for each 64 KiB",
        minimum=0.05,
        maximum=3600,
    )
    http_keep_alive_s: float = knob(
        15.0,
        "how long an HTTP stream is silent before a comment is sent",
        minimum=0.05,
        maximum=3600,
    )
    http_allowed_origins: tuple[str, ...] = knob(
        (),
        "origins whose pages may call the HTTP interface from a browser, comma separated; "
        "* is all, none is only the gateway's own",
    )
    http_max_choice_count: int = knob(
        8, "most choices (n) of a chat completion", minimum=1, maximum=128
    )

    @property
    def limits(self) -> Limits:
        """The limits that validation needs."""
        return Limits(
            max_agent_count=self.max_agent_count,
            max_image_count=self.max_image_count,
            max_image_bytes=self.max_image_bytes,
            max_image_pixel_count=self.max_image_pixel_count,
            max_text_length=self.max_text_length,
            max_message_count=self.max_message_count,
            max_table_count=self.max_table_count,
            max_table_row_count=self.max_table_row_count,
            max_table_bytes=self.max_table_bytes,
            max_token_count=self.max_token_count,
            max_duration_s=self.max_duration_s,
        )
