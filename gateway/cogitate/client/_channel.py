"""The options of the client's channel."""

from __future__ import annotations

from typing import Any, Final

CHUNK_BYTES: Final = 1024 * 1024

OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    # A gateway that froze is found within 15 s, an idle stream is kept open.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Streams resume by event number, never by sending a question twice.
    ("grpc.enable_retries", 0),
    # The reader decides how far the writer may run ahead.
    ("grpc.http2.lookahead_bytes", 64 * 1024),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
)


def options(address: str) -> list[tuple[str, Any]]:
    """Returns the options of a channel; a mesh on this machine is never reached by a proxy."""
    local = address.startswith(("127.", "localhost", "[::1]", "unix:"))
    return [*OPTIONS, *([("grpc.enable_http_proxy", 0)] if local else [])]
