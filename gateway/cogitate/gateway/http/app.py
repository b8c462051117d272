"""The routes: a request's body in, contemplations begun or looked up, answers out."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, TypeVar

import pydantic
from cogitate.gateway import wire
from cogitate.gateway.config import GatewayConfig
from cogitate.gateway.doors import Doors
from cogitate.gateway.front import Front
from cogitate.gateway.http import bodies, document, sse
from cogitate.gateway.http.boundary import Boundary
from cogitate.gateway.http.connect import Rpc
from cogitate.gateway.http.desk import Desk
from cogitate.gateway.http.openai.answering import Chat, Responses
from cogitate.gateway.http.openai.schemas import ChatRequest, ResponseRequest
from cogitate.gateway.http.page import Page
from cogitate.kit.errors import InvalidRequest, NotFound
from cogitate.v1 import gateway_service_pb2
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

M = TypeVar("M", bound=pydantic.BaseModel)


class Stream:
    """An answer of server-sent events."""

    def __init__(
        self, frames: AsyncGenerator[bytes, None], *, stall_s: float, keep_alive_s: float
    ) -> None:
        self._frames, self._stall_s, self._keep_alive_s = frames, stall_s, keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        await sse.write(
            self._frames, receive, send, stall_s=self._stall_s, keep_alive_s=self._keep_alive_s
        )


def _query(request: Request, name: str, pattern: str, words: str) -> str:
    """Returns a parameter of the query, or an empty string. Raises InvalidRequest."""
    given = request.query_params.getlist(name)
    if len(given) > 1 or not all(re.fullmatch(pattern, one) for one in given):
        raise InvalidRequest(f"{name} must be {words}, once", field=name)
    return "".join(given)


def _sharing(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Lets pages of other origins read what is answered (CORS); they bring a key, never cookies."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("*",),
        expose_headers=("grpc-status", "grpc-message", "grpc-status-details-bin", "retry-after"),
        max_age=7200,
    )


class Application:
    """The OpenAI-compatible interface; `asgi` serves it."""

    def __init__(self, config: GatewayConfig, front: Front, doors: Doors, rpc: Rpc) -> None:
        self._config, self._front = config, front
        self._desk = Desk(front)
        self._responses = Responses(self._desk)
        self._start_time_s = int(time.time())
        page = Page()
        one = "/v1/responses/{response_id}"
        routes = [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/responses", self.make_response, methods=["POST"]),
            Route(one, self.response, methods=["GET", "DELETE"]),
            Route(f"{one}/cancel", self.cancel_response, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{model}", self.model, methods=["GET"]),
            Route("/healthz", self.health, methods=["GET"]),
            Route("/openapi.json", self.document, methods=["GET"]),
            *(Route(path, rpc, methods=["POST"]) for path in rpc.paths),
            *(Route(path, page.page, methods=["GET"]) for path in page.paths),
        ]
        router = Router(routes, redirect_slashes=False)
        boundary = Boundary(router, doors, deadline_s=config.default_deadline_s, page=page.paths)
        self.asgi: ASGIApp = _sharing(boundary, config.http_allowed_origins)

    async def close(self) -> None:
        """Ends what is on its way."""
        await self._desk.close()

    async def chat(self, request: Request) -> Any:
        """POST /v1/chat/completions."""
        body = await self._body(request, ChatRequest)
        config = self._config
        key = request.headers.get("idempotency-key", "")
        made = Chat(self._desk, body, key, config.limits, config.http_max_choice_count)
        if body.stream:
            return self._stream(made.stream())
        return JSONResponse(await sse.unless_gone(made.whole(), request.receive))

    async def make_response(self, request: Request) -> Any:
        """POST /v1/responses."""
        body = await self._body(request, ResponseRequest)
        made = await self._responses.make(body, request.headers.get("idempotency-key", ""))
        if body.stream:
            return self._stream(made.stream())
        return JSONResponse(await sse.unless_gone(made.whole(), request.receive))

    async def response(self, request: Request) -> Any:
        """GET and DELETE /v1/responses/{id}: as far as it is, or streamed from any event on."""
        id = request.path_params["response_id"]
        if request.method == "DELETE":
            return JSONResponse(await self._responses.delete(id))
        streams = _query(request, "stream", "true|false", "true or false")
        after = _query(request, "starting_after", "[0-9]{1,18}", "a sequence number")
        wanted = _query(request, "cogitate_events", "none|decisions|all", "none, decisions or all")
        if streams != "true":
            return JSONResponse(await self._responses.look_up(id))
        return self._stream(self._responses.tell_again(id, int(after or -1), wanted or "none"))

    async def cancel_response(self, request: Request) -> Response:
        """POST /v1/responses/{id}/cancel."""
        return JSONResponse(await self._responses.cancel(request.path_params["response_id"]))

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        found = wire.models(await self._front.fleet())
        return JSONResponse({"object": "list", "data": [self._model(one) for one in found]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{model}."""
        for one in wire.models(await self._front.fleet()):
            if one.name == request.path_params["model"]:
                return JSONResponse(self._model(one))
        raise NotFound("no endpoint serves this model now; see /v1/models", field="model")

    async def health(self, request: Request) -> Response:
        """GET /healthz: this process answers."""
        return JSONResponse({"status": "ok"})

    async def document(self, request: Request) -> Response:
        """GET /openapi.json."""
        return JSONResponse(document.openapi(self._config))

    def _model(self, one: gateway_service_pb2.ModelDescription) -> dict[str, Any]:
        return {
            "id": one.name,
            "object": "model",
            "created": self._start_time_s,
            "owned_by": "cogitate",
            "cogitate": {"endpoint_count": one.endpoint_count, "vision": one.vision},
        }

    async def _body(self, request: Request, model: type[M]) -> M:
        config = self._config
        return await bodies.parse(
            request,
            model,
            max_bytes=config.http_max_body_bytes,
            timeout_s=config.http_read_timeout_s,
        )

    def _stream(self, frames: AsyncGenerator[bytes, None]) -> Stream:
        return Stream(
            frames,
            stall_s=self._config.write_stall_s,
            keep_alive_s=self._config.http_keep_alive_s,
        )
