"""The OpenAPI document, made of the models that check the requests."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import Any, Final

from cogitate.gateway.http.openai.schemas import ChatRequest, ResponseRequest
from pydantic.json_schema import models_json_schema

_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
                "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
                "retry_after_s": {"type": "number"},
            },
        }
    },
}
_ID: Final = {
    "name": "response_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
}


@cache
def openapi() -> dict[str, Any]:
    """Returns the document of everything that is served."""
    models = [(ChatRequest, "validation"), (ResponseRequest, "validation")]
    _, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    response = {"type": "object", "required": ["id", "object", "status", "output"]}
    paths = {
        "/v1/chat/completions": {
            "post": _operation("Ask; the answer whole or as a stream", "ChatRequest", _CHAT)
        },
        "/v1/responses": {
            "post": _operation("Make a response, whole or as a stream", "ResponseRequest", response)
        },
        "/v1/responses/{response_id}": {
            "parameters": [_ID],
            "get": _operation("A response as far as it is, or its events", "", response)
            | {"parameters": _RETRIEVAL},
            "delete": _operation("Forget a response that has ended", "", {"type": "object"}),
        },
        "/v1/responses/{response_id}/cancel": {
            "parameters": [_ID],
            "post": _operation("Stop a response", "", response),
        },
        "/v1/models": {"get": _operation("The models that can be asked", "", {"type": "object"})},
        "/v1/models/{model}": {
            "parameters": [_ID | {"name": "model"}],
            "get": _operation("One model", "", {"type": "object"}),
        },
        "/healthz": {"get": _operation("Whether this process answers", "", {"type": "object"})},
        "/openapi.json": {"get": _operation("This document", "", {"type": "object"})},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Cogitate", "version": metadata.version("cogitate")},
        "paths": paths,
        "components": {"schemas": schemas["$defs"] | {"Error": _ERROR}},
    }


_CHAT: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices"],
}
_RETRIEVAL: Final[list[dict[str, Any]]] = [
    {"name": "stream", "in": "query", "schema": {"type": "boolean"}},
    {
        "name": "starting_after",
        "in": "query",
        "description": "the last sequence number the client has; needs stream=true",
        "schema": {"type": "integer", "minimum": -1},
    },
    {
        "name": "cogitate_events",
        "in": "query",
        "schema": {"enum": ["none", "decisions", "all"]},
    },
]


def _operation(summary: str, body: str, answer: dict[str, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    told = {
        "application/json": {"schema": answer},
        "text/event-stream": {"schema": {"type": "string"}},
    }
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "as asked", "content": told},
            "4XX": {"description": "the request cannot be answered", "content": error},
            "5XX": {"description": "the mesh could not answer", "content": error},
        },
    }
    if body:
        schema = {"$ref": f"#/components/schemas/{body}"}
        content = {"application/json": {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation
