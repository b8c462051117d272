"""What headers of a request ask for, and what Envoy is told."""

from __future__ import annotations

import base64
import json

import pytest
from cogitate.kit.errors import InvalidRequest, NoEndpoint, NotFound, Rejected
from cogitate.peers import ext_proc_pb2 as pb
from cogitate.router.picking import asking, ext_proc, replies
from cogitate.router.picking.asking import Ask, ask_of
from google.rpc import error_details_pb2, status_pb2

pytestmark = pytest.mark.unit


def test_no_headers_ask_for_one_agent_of_the_only_model_anywhere() -> None:
    assert ask_of({}, None, 8) == Ask(model="", agents=1, tenant="", subset=None)


def test_headers_are_read() -> None:
    headers = {
        "x-gateway-model-name": "mini",
        "x-gateway-inference-fairness-id": "acme",
        "x-cogitate-agents": "8",
        "x-cogitate-prefix-digest": "sha256:p",
        "x-cogitate-prompt-tokens": "900",
        "x-cogitate-tokens-per-agent": "64",
        "traceparent": "00-a-b-01",
    }
    expected = Ask("mini", 8, "acme", "sha256:p", 900, 64, None, "00-a-b-01")
    assert ask_of(headers, None, 8) == expected


@pytest.mark.parametrize("text", ["0", "9", "-1", "1.5", "many", "٣", "1" * 17, "1e2"])
def test_a_number_of_agents_that_cannot_be_names_its_header_and_range(text: str) -> None:
    with pytest.raises(InvalidRequest, match="a whole number from 1 to 8") as caught:
        ask_of({"x-cogitate-agents": text}, None, 8)
    assert caught.value.field == "x-cogitate-agents"


@pytest.mark.parametrize("name", [asking.MODEL, asking.TENANT, asking.PREFIX_DIGEST])
def test_texts_are_bounded(name: str) -> None:
    ask_of({name: "x" * 256}, None, 8)
    with pytest.raises(InvalidRequest, match="longer than 256"):
        ask_of({name: "x" * 257}, None, 8)


def test_the_proxys_subset_wins_over_a_header() -> None:
    headers = {asking.SUBSET: "10.0.0.1:1, 10.0.0.2:1"}
    assert ask_of(headers, None, 8).subset == {"10.0.0.1:1", "10.0.0.2:1"}
    assert ask_of(headers, "10.0.0.3:1", 8).subset == {"10.0.0.3:1"}
    assert ask_of(headers, "", 8).subset == frozenset(), "an empty one allows nothing"


@pytest.mark.parametrize(
    ("address", "can"),
    [
        ("10.0.0.1:7105", True), ("[2001:db8::1]:80", True), ("decoder:7105", False),
        ("localhost:1", False), ("10.0.0.1", False), ("10.0.0.1:0", False),
        ("10.0.0.1:65536", False), ("2001:db8::1:80", False), ("[10.0.0.1]:80", False),
        ("unix:/x", False), ("", False),
    ],
)  # fmt: skip
def test_only_addresses_can_be_told_to_envoy(address: str, can: bool) -> None:
    assert asking.is_ip_and_port(address) is can


def test_of_headers_with_one_name_the_first_counts() -> None:
    said = pb.HttpHeaders(
        headers=pb.HeaderMap(
            headers=[
                pb.HeaderValue(key="X-A", raw_value=b"1"),
                pb.HeaderValue(key="x-a", value="2"),
                pb.HeaderValue(key="x-b", raw_value=b"\xff"),
            ]
        )
    )
    assert ext_proc.headers_of(said) == {"x-a": "1", "x-b": "\ufffd"}


@pytest.mark.parametrize("value", ["10.0.0.1:1,10.0.0.2:1", ["10.0.0.1:1", "10.0.0.2:1"]])
def test_a_subset_is_a_list_or_a_text(value: object) -> None:
    request = pb.ProcessingRequest()
    assert ext_proc.subset_of(request) is None
    request.metadata_context.filter_metadata["envoy.lb.subset_hint"].update({"other": 1})
    assert ext_proc.subset_of(request) is None
    request.metadata_context.filter_metadata["envoy.lb.subset_hint"].update({asking.SUBSET: value})
    assert ext_proc.subset_of(request) == "10.0.0.1:1,10.0.0.2:1"


def test_a_subset_of_another_kind_is_refused() -> None:
    request = pb.ProcessingRequest()
    request.metadata_context.filter_metadata["envoy.lb.subset_hint"].update({asking.SUBSET: 1})
    with pytest.raises(InvalidRequest):
        ext_proc.subset_of(request)


def test_the_endpoint_is_told_alike_by_header_and_metadata() -> None:
    told = replies.picked(["10.0.0.1:1", "10.0.0.2:1"])
    (option,) = told.request_headers.response.header_mutation.set_headers
    assert option.header.key == "x-gateway-destination-endpoint"
    assert option.header.raw_value == b"10.0.0.1:1,10.0.0.2:1"
    assert option.append_action == pb.OVERWRITE_IF_EXISTS_OR_ADD, "a client's own is gone"
    metadata = told.dynamic_metadata.fields["envoy.lb"].struct_value.fields
    assert metadata["x-gateway-destination-endpoint"].string_value == "10.0.0.1:1,10.0.0.2:1"


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("i"), 400, "invalid_request_error"),
        (NotFound("n", reason="UNKNOWN_MODEL"), 404, "invalid_request_error"),
        (Rejected("r", retry_after_s=0.2), 429, "rate_limit_error"),
        (NoEndpoint("e", retry_after_s=2.1), 503, "server_error"),
    ],
)
def test_http_is_refused_by_openais_body(error, status: int, kind: str) -> None:
    told = replies.refused(error, is_grpc=False).immediate_response
    assert told.status.code == status and not told.HasField("grpc_status")
    headers = {h.header.key: h.header.raw_value.decode() for h in told.headers.set_headers}
    said = json.loads(told.body)["error"]
    assert said == {
        "message": error.message, "type": kind, "param": None, "code": error.reason.lower()
    }  # fmt: skip
    waits = {0.2: "1", 2.1: "3"}
    assert headers.get("retry-after") == waits.get(error.retry_after_s)


def test_grpc_is_refused_by_a_status_with_details() -> None:
    error = Rejected("there is no room", retry_after_s=0.5, metadata={"model": "mini"})
    told = replies.refused(error, is_grpc=True).immediate_response
    assert (told.grpc_status.status, told.body) == (8, b"there is no room")
    headers = {h.header.key: h.header.raw_value.decode() for h in told.headers.set_headers}
    status = status_pb2.Status.FromString(
        base64.b64decode(headers["grpc-status-details-bin"] + "==")
    )
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info) and info.metadata == {"model": "mini"}
    assert status.details[1].Unpack(retry) and retry.retry_delay.ToMilliseconds() == 500


def test_other_parts_go_on_as_they_are() -> None:
    body = pb.HttpBody(body=b"x", end_of_stream=True)
    duplex = pb.ProtocolConfiguration(request_body_mode=pb.FULL_DUPLEX_STREAMED)
    sent = replies.passed_on(pb.ProcessingRequest(request_body=body), duplex)
    piece = sent.request_body.response.body_mutation.streamed_response
    assert (piece.body, piece.end_of_stream) == (b"x", True)
    # In other modes a body goes on unless it is changed, and pieces must not come back.
    for part in ("request_body", "response_body"):
        sent = replies.passed_on(pb.ProcessingRequest(**{part: body}), pb.ProtocolConfiguration())
        assert getattr(sent, part) == pb.BodyResponse()
    for part in ("response_headers", "request_trailers", "response_trailers"):
        empty = pb.HttpHeaders() if part == "response_headers" else pb.HttpTrailers()
        sent = replies.passed_on(pb.ProcessingRequest(**{part: empty}), duplex)
        assert sent.WhichOneof("response") == part
    with pytest.raises(InvalidRequest, match="newer than this router"):
        replies.passed_on(pb.ProcessingRequest(), duplex)
