"""What Envoy is told: an endpoint, or the end of the request with a status its client knows."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from typing import Final

import grpc
from cogitate.kit.channels import STATUS_DETAILS_KEY, to_status
from cogitate.kit.errors import CogitateError
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


def passed_on(request: pb.ProcessingRequest) -> pb.ProcessingResponse:
    """Any other part of a request or a response, as it is.

    Where bodies come in full duplex, what is not sent back is lost; trailers end such a body.
    """
    part = request.WhichOneof("request")
    if part == "request_body" or part == "response_body":
        body = getattr(request, part)
        piece = pb.StreamedBodyResponse(body=body.body, end_of_stream=body.end_of_stream)
        mutation = pb.BodyMutation(streamed_response=piece)
        said = pb.BodyResponse(response=pb.CommonResponse(body_mutation=mutation))
        return pb.ProcessingResponse(**{part: said})  # type: ignore[arg-type]
    if part == "request_trailers" or part == "response_trailers":
        return pb.ProcessingResponse(**{part: pb.TrailersResponse()})  # type: ignore[arg-type]
    return pb.ProcessingResponse(response_headers=pb.HeadersResponse())


def _header(key: str, value: str) -> pb.HeaderValueOption:
    return pb.HeaderValueOption(
        header=pb.HeaderValue(key=key, raw_value=value.encode()),
        append_action=pb.OVERWRITE_IF_EXISTS_OR_ADD,
    )
