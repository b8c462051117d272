"""deploy/envoy/front.yaml beside what it stands before: its limits, methods and clusters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cogitate.gateway.config import GatewayConfig

from tests.fakes.envoy import Config, shipped
from tests.fakes.envoy_front import filter_of

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
UNSEEN = {"connect-failure", "refused-stream"}


def manager(config: Config) -> Any:
    (chain,) = config["static_resources"]["listeners"][0]["filter_chains"]
    return chain["filters"][0]["typed_config"]


def routes(config: Config) -> list[Any]:
    found: list[Any] = manager(config)["route_config"]["virtual_hosts"][0]["routes"]
    return found


@pytest.mark.parametrize("name", ["front.yaml", "aggregators.yaml"])
def test_only_idempotent_methods_are_tried_again_once_seen(name: str) -> None:
    (policy,) = json.loads((ROOT / "protos/service_config.json").read_text())["methodConfig"]
    idempotent = {f"/{one['service']}/{one['method']}" for one in policy["name"]}
    again = set()
    for route in routes(shipped(name)):
        if "route" not in route:
            continue
        matched = [one for one in route["match"].get("headers", ()) if one["name"] == ":method"]
        is_get = any(one["string_match"] == {"exact": "GET"} for one in matched)
        if set(route["route"]["retry_policy"]["retry_on"].split(",")) - UNSEEN and not is_get:
            again.add(route["match"]["path"])
        assert route["route"]["timeout"] == "0s"
    assert again == (idempotent if name == "front.yaml" else set())


def test_its_limits_are_the_gateways() -> None:
    config, gateway = shipped("front.yaml"), GatewayConfig()
    connection = manager(config)
    assert connection["max_request_headers_kb"] * 1024 == gateway.http_max_head_bytes
    assert connection["common_http_protocol_options"]["max_headers_count"] == (
        gateway.http_max_header_count
    )
    streams = connection["http2_protocol_options"]["max_concurrent_streams"]
    assert streams <= gateway.max_connection_rpcs
    transcoder = filter_of(config, "grpc_json_transcoder")["typed_config"]
    assert transcoder["max_request_body_size"] == gateway.http_max_body_bytes
    assert connection["stream_idle_timeout"] == "0s"


def test_what_is_asked_is_there_and_hooks_are_off() -> None:
    config = shipped("front.yaml")
    clusters = {one["name"] for one in config["static_resources"]["clusters"]}
    named = {one["route"]["cluster"] for one in routes(config) if "route" in one}
    assert named == {"gateways-grpc", "gateways-http"} <= clusters
    for hook, cluster in (("ext_authz", "authz"), ("ratelimit", "ratelimit")):
        one = filter_of(config, hook)
        assert one["disabled"] is True and cluster in clusters and cluster in json.dumps(one)
    assert config["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
