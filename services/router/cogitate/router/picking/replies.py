"""What Envoy is told: an endpoint, or the end of the request with a status its client knows."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from typing import Final

import grpc
from cogitate.kit.channels import STATUS_DETAILS_KEY, to_status
from cogitate.kit.errors import CogitateError, InvalidRequest
from cogitate.peers import ext_proc_pb2 as pb

DESTINATION: Final = "x-gateway-destination-endpoint"
NAMESPACE: Final = "envoy.lb"
# The nearest of HTTP; what is not here is 500.
_HTTP: Final = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "ABORTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


def picked(addresses: Sequence[str]) -> pb.ProcessingResponse:
    """Sends the request to the first of the addresses, its retries to the others in order."""
    value = ",".join(addresses)
    told = pb.ProcessingResponse(
        request_headers=pb.HeadersResponse(
            response=pb.CommonResponse(
                header_mutation=pb.HeaderMutation(set_headers=[_header(DESTINATION, value)])
            )
        )
    )
    told.dynamic_metadata.update({NAMESPACE: {DESTINATION: value}})
    return told


def refused(error: CogitateError, is_grpc: bool) -> pb.ProcessingResponse:
    """Ends the request: OpenAI's error body, or a gRPC status with google.rpc details."""
    code, message, trailers = to_status(error)
    headers: list[pb.HeaderValueOption] = []
    if error.retry_after_s is not None:
        headers.append(_header("retry-after", str(max(1, math.ceil(error.retry_after_s)))))
    if is_grpc:
        packed = dict(trailers)[STATUS_DETAILS_KEY]
        encoded = base64.b64encode(packed).decode().rstrip("=")
        headers.append(_header(STATUS_DETAILS_KEY, encoded))
        body = message
    else:
        headers.append(_header("content-type", "application/json"))
        status = _HTTP.get(error.code, 500)
        kind = "server_error" if status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if status == 429 else kind
        reason = error.reason.lower()
        said = {"message": message, "type": kind, "param": error.field, "code": reason}
        body = json.dumps({"error": said})
    return pb.ProcessingResponse(
        immediate_response=pb.ImmediateResponse(
            status=pb.HttpStatus(code=_HTTP.get(error.code, 500)),
            headers=pb.HeaderMutation(set_headers=headers),
            body=body.encode(),
            grpc_status=pb.GrpcStatus(status=grpc_code(code)) if is_grpc else None,
            details=f"cogitate_{error.reason.lower()}",
        )
    )


def grpc_code(code: grpc.StatusCode) -> int:
    """Its number."""
    number: int = code.value[0]
    return number


def passed_on(
    request: pb.ProcessingRequest, modes: pb.ProtocolConfiguration
) -> pb.ProcessingResponse:
    """Any other part of a request or a response, as it is. Raises InvalidRequest for no part.

    Of bodies in full duplex what is not sent back is lost; others go on unless they are changed.
    """
    match request.WhichOneof("request"):
        case "request_body":
            said = _body(request.request_body, modes.request_body_mode)
            return pb.ProcessingResponse(request_body=said)
        case "response_body":
            said = _body(request.response_body, modes.response_body_mode)
            return pb.ProcessingResponse(response_body=said)
        case "request_trailers":
            return pb.ProcessingResponse(request_trailers=pb.TrailersResponse())
        case "response_trailers":
            return pb.ProcessingResponse(response_trailers=pb.TrailersResponse())
        case "response_headers":
            return pb.ProcessingResponse(response_headers=pb.HeadersResponse())
    raise InvalidRequest("a part of a request or response is missing, or newer than this router")


def _body(body: pb.HttpBody, mode: pb.BodySendMode.ValueType) -> pb.BodyResponse:
    if mode != pb.FULL_DUPLEX_STREAMED:
        return pb.BodyResponse()
    piece = pb.StreamedBodyResponse(body=body.body, end_of_stream=body.end_of_stream)
    mutation = pb.BodyMutation(streamed_response=piece)
    return pb.BodyResponse(response=pb.CommonResponse(body_mutation=mutation))


def _header(key: str, value: str) -> pb.HeaderValueOption:
    return pb.HeaderValueOption(
        header=pb.HeaderValue(key=key, raw_value=value.encode()),
        append_action=pb.OVERWRITE_IF_EXISTS_OR_ADD,
    )
