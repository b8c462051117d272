"""The OpenAPI document: the models that check the requests, with the ranges of this gateway.

Ranges are checked in one place, `core/validation`, for gRPC and HTTP alike; here they are told.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any, Final

from cogitate.gateway.config import GatewayConfig
from cogitate.gateway.core import sampling, validation
from cogitate.gateway.http.openai.schemas import ChatRequest, ResponseRequest
from pydantic.json_schema import models_json_schema

Schema = dict[str, Any]

_ERROR: Final[Schema] = {
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
_RESPONSE: Final[Schema] = {"type": "object", "required": ["id", "object", "status", "output"]}
_CHAT: Final[Schema] = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices"],
}
_ANY: Final[Schema] = {"type": "object"}
_RETRIEVAL: Final[list[Schema]] = [
    {"name": "stream", "in": "query", "schema": {"type": "boolean"}},
    {
        "name": "starting_after",
        "in": "query",
        "description": "the last sequence number the client has; of a stream only",
        "schema": {"type": "integer", "minimum": 0},
    },
    {
        "name": "cogitate_events",
        "in": "query",
        "description": "events of the agents told beside the answer",
        "schema": {"enum": ["none", "decisions", "all"]},
    },
]
_RULE: Final = f"^({validation.RULE.pattern})?$"
_NAME: Final = f"^{validation.NAME.pattern}$"
_IMAGE: Final = (
    "^(data:image/(png|jpeg|webp|gif);base64,([A-Za-z0-9+/]{4})+|"
    + validation.DIGEST.pattern
    + ")$"
)


def openapi(config: GatewayConfig) -> Schema:
    """Returns the document of everything that is served, with the limits of `config`."""
    models: Any = [(ChatRequest, "validation"), (ResponseRequest, "validation")]
    _, made = models_json_schema(models, ref_template="#/components/schemas/{model}")
    schemas = made["$defs"]
    for (model, name), range_ in _ranges(config).items():
        _narrow(schemas[model]["properties"][name], range_)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Cogitate", "version": metadata.version("cogitate")},
        "paths": _paths(),
        "components": {"schemas": schemas | {"Error": _ERROR}},
    }


def _ranges(config: GatewayConfig) -> dict[tuple[str, str], Schema]:
    """What a field may hold beyond its type, by model and field."""
    limits = config.limits
    tokens = {"minimum": 1, "maximum": limits.max_token_count}
    names = {"maxItems": validation.MAX_NAMES, "items": {"type": "string", "pattern": _NAME}}
    ranges: dict[str, dict[str, Schema]] = {
        "ChatRequest": {
            "messages": {"minItems": 1, "maxItems": limits.max_message_count},
            "n": {"minimum": 1, "maximum": config.http_max_choice_count},
            "max_tokens": tokens,
            "max_completion_tokens": tokens,
            "top_k": {"minimum": 0},
            "min_p": {"minimum": 0, "maximum": 1},
            "repetition_penalty": {"minimum": 0, "maximum": sampling.MAX_REPETITION_PENALTY},
            "frequency_penalty": {"minimum": -2, "maximum": 2},
            "presence_penalty": {"minimum": -2, "maximum": 2},
            "stop": {"minLength": 1, "maxLength": sampling.MAX_STOP_BYTES}
            | {"maxItems": sampling.MAX_STOP},
            "logit_bias": {
                "maxProperties": sampling.MAX_LOGIT_BIAS,
                "propertyNames": {"pattern": "^[0-9]{1,9}$"},
                "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            },
            "top_logprobs": {"minimum": 0, "maximum": sampling.MAX_LOGPROBS},
            "tools": {"maxItems": validation.MAX_NAMES},
        },
        "ResponseRequest": {
            "max_output_tokens": tokens,
            "previous_response_id": {"pattern": "^resp_[0-9a-f]{32}(_[0-9]{1,4})?$"},
            "tools": {"maxItems": validation.MAX_NAMES},
        },
        "Cogitate": {
            "agents": {"minimum": 1, "maximum": limits.max_agent_count},
            "initial_agents": {"minimum": 0, "maximum": limits.max_agent_count},
            "strategy": {"pattern": _RULE},
            "quorum": {"pattern": _RULE},
            "equivalence": {"enum": list(validation.EQUIVALENCES)},
            "rounds": {"minimum": 0, "maximum": validation.MAX_ROUNDS},
            "budget_tokens": {"minimum": 0, "maximum": limits.max_token_count},
            "deadline_s": {"exclusiveMinimum": 0, "maximum": limits.max_duration_s},
            "priority": {"minimum": -validation.MAX_PRIORITY, "maximum": validation.MAX_PRIORITY},
            "tools": names,
            "providers": names,
            "regions": names,
        },
        "Function": {"name": {"pattern": _NAME}},
        "ResponseTool": {"name": {"pattern": _NAME}},
        "ImageUrl": {"url": {"pattern": _IMAGE}},
        "InputImage": {"image_url": {"pattern": _IMAGE}},
    }
    for model in ("ChatRequest", "ResponseRequest"):
        ranges[model] |= {
            "model": {"pattern": f"^({validation.NAME.pattern})?$"},
            "temperature": {"minimum": 0, "maximum": 2},
            "top_p": {"exclusiveMinimum": 0, "maximum": 1},
            "tool_choice": {"enum": ["none", "auto"]},
        }
    return {(model, name): one for model, fields in ranges.items() for name, one in fields.items()}


def _narrow(schema: Schema, range_: Schema) -> None:
    """Adds a range to whatever of a field is not null."""
    for branch in schema.get("anyOf", [schema]):
        if branch.get("type") != "null":
            branch.update(range_)


def _paths() -> Schema:
    one = "/v1/responses/{response_id}"
    id_ = _parameter("response_id", "^resp_[0-9a-f]{32}(_[0-9]{1,4})?$")
    retrieve = _operation("A response as far as it is, or its events", _RESPONSE)
    retrieve |= {"operationId": "retrieve", "parameters": _RETRIEVAL}
    delete = _operation("Forget a response that has ended", _ANY) | {"operationId": "delete"}
    cancel = _operation("Stop a response", _RESPONSE) | {"operationId": "cancel"}
    make = _operation("Make a response, whole or as a stream", _RESPONSE, "ResponseRequest")
    made = {"parameters": {"response_id": "$response.body#/id"}}
    make["responses"]["200"]["links"] = {
        name: {"operationId": name} | made for name in ("retrieve", "delete", "cancel")
    }
    chat = _operation("Ask; the answer whole or as a stream", _CHAT, "ChatRequest")
    models = _operation("The models that can be asked", _ANY)
    model = _operation("One model", _ANY) | {"operationId": "model"}
    first = {"operationId": "model", "parameters": {"model": "$response.body#/data/0/id"}}
    models["responses"]["200"]["links"] = {"model": first}
    return {
        "/v1/chat/completions": {"post": chat},
        "/v1/responses": {"post": make},
        one: {"parameters": [id_], "get": retrieve, "delete": delete},
        f"{one}/cancel": {"parameters": [id_], "post": cancel},
        "/v1/models": {"get": models},
        "/v1/models/{model}": {"parameters": [_parameter("model", _NAME)], "get": model},
        "/healthz": {"get": _operation("Whether this process answers", _ANY)},
        "/openapi.json": {"get": _operation("This document", _ANY)},
    }


def _parameter(name: str, pattern: str) -> Schema:
    schema = {"type": "string", "pattern": pattern}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _operation(summary: str, answer: Schema, body: str = "") -> Schema:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    told: Schema = {
        "application/json": {"schema": answer},
        "text/event-stream": {},
    }
    operation: Schema = {
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
