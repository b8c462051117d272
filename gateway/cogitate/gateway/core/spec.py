"""What a client asks, as plain values: the shape of ContemplationSpec that validation looks at.

Image bytes do not enter, only how many there are. Absent optional fields are None. A field that
was sent but is of no known kind is None in `Message.parts` and UNKNOWN in an enumeration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class Box:
    """A region in per mille; right and bottom are exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True)
class Text:
    """A piece of text."""

    text: str


@dataclass(frozen=True)
class Image:
    """An image, by digest or by `data_bytes` inline bytes."""

    digest: str = ""
    data_bytes: int = 0
    box: Box | None = None


@dataclass(frozen=True)
class Call:
    """A tool call that an assistant message made."""

    call_id: str
    name: str
    arguments_json: str


@dataclass(frozen=True)
class Result:
    """A tool's result."""

    call_id: str
    parts: tuple[Part | None, ...] = ()


Part = Text | Image | Call | Result


@dataclass(frozen=True)
class Message:
    """One turn; `role` is the wire enumeration's name without its prefix."""

    role: str
    parts: tuple[Part | None, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How agents sample."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 0.0
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    json_schema: str | None = None
    regex: str | None = None


@dataclass(frozen=True)
class Tool:
    """A tool that lives in the client."""

    name: str
    description: str = ""
    parameters_json_schema: str = ""
    client_side: bool = True


@dataclass(frozen=True)
class Table:
    """A table for the tool lookup; its first column names the rows."""

    name: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Constraints:
    """Where agents may run."""

    providers: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    min_failure_domain_count: int = 0
    max_price_per_hour_micro_usd: int = 0
    excluded_endpoint_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spec:
    """One contemplation as asked for; `deadline_s` counts from now and may be negative."""

    conversation: tuple[Message, ...]
    request_id: str = ""
    model: str = ""
    effort: str = "UNSPECIFIED"
    agent_count: int | None = None
    strategy: str = ""
    quorum: str = ""
    sampling: Sampling = Sampling()
    max_tokens: int = 0
    max_cost_micro_usd: int = 0
    deadline_s: float | None = None
    allowed_tools: tuple[str, ...] = ()
    client_tools: tuple[Tool, ...] = ()
    constraints: Constraints = Constraints()
    on_disconnect: str = "UNSPECIFIED"
    parent_contemplation_id: str = ""
    response_json_schema: str = ""
    equivalence: str = ""
    initial_agent_count: int = 0
    max_round_count: int = 0
    priority: int = 0
    excluded_events: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What a request may be at most; every one is a knob of the gateway."""

    max_agent_count: int = 64
    max_image_count: int = 8
    max_image_bytes: int = 16 * 1024 * 1024
    max_image_pixel_count: int = 40_000_000
    max_text_length: int = 100_000
    max_message_count: int = 64
    max_table_count: int = 8
    max_table_row_count: int = 500
    max_table_bytes: int = 64 * 1024
    max_token_count: int = 1_000_000
    max_duration_s: float = 120.0
