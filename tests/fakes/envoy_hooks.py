"""The two services Envoy asks, scripted: may this request pass, and is it too many?

Their messages are Envoy's, whose Python packages clash with others of ours; the few fields that are
needed are written out. `asked` keeps what was sent, as bytes.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc import status_pb2  # type: ignore[import-untyped]

from tests.fakes.serving import FakeServer

CHECK = "/envoy.service.auth.v3.Authorization/Check"
LIMIT = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
OK, OVER_LIMIT = b"\x08\x01", b"\x08\x02"  # RateLimitResponse.overall_code


class Hooks(FakeServer):
    """Lets in who sends `letter`, and limits while `is_over`."""

    def __init__(self, letter: bytes = b"open sesame") -> None:
        super().__init__()
        self.letter, self.is_over = letter, False
        self.asked: list[bytes] = []

    def register(self, server: Any) -> None:
        server.add_generic_rpc_handlers((_Both(self),))

    def check(self, asked: bytes) -> bytes:
        """A CheckResponse: its field 1 is a google.rpc.Status."""
        self.asked.append(asked)
        status = status_pb2.Status(code=0 if self.letter in asked else 7).SerializeToString()
        return b"\x0a" + bytes([len(status)]) + status

    def limit(self, asked: bytes) -> bytes:
        """A RateLimitResponse."""
        self.asked.append(asked)
        return OVER_LIMIT if self.is_over else OK


class _Both(grpc.GenericRpcHandler):
    def __init__(self, hooks: Hooks) -> None:
        self._answers = {CHECK: hooks.check, LIMIT: hooks.limit}

    def service(self, handler_call_details: Any) -> Any:
        answer = self._answers.get(handler_call_details.method)
        if answer is None:
            return None

        async def unary(asked: bytes, context: Any) -> bytes:
            return answer(asked)

        return grpc.unary_unary_rpc_method_handler(unary)
