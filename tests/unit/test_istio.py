"""deploy/istio beside the chart as Helm renders it, the table of calls, and Envoy's own rules."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from cogitate.kit import access

from tests.unit.test_deploy import knobs
from tests.unit.test_helm import kind, needs_helm, pods

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
ISTIO = ROOT / "deploy/istio"
VALUES = ("-f", str(ISTIO / "values.yaml"))
ORCA = "/xds.service.orca.v3.OpenRcaService/"
# What stands for a caller of the table: a service account, by its name in the chart.
ACCOUNTS = {
    "cluster.local/ns/cogitate/sa/mesh-decoder-*": "agent-decoder",
    "cluster.local/ns/cogitate/sa/cogitate-admin": "admin",
    "cluster.local/ns/istio-ingress/sa/istio-ingressgateway": "envoy",
    "cluster.local/ns/keda/sa/keda-operator": "keda",
} | {
    f"cluster.local/ns/cogitate/sa/mesh-{name}": name
    for name in ("gateway", "aggregator", "router", "vision-encoder", "tool-executor")
}
SERVERS = {
    "ContemplationService": "aggregator",
    "RouterService": "router",
    "AgentDecoderService": "decoder",
    "EndpointService": "decoder",
    "VisionEncoderService": "vision-encoder",
    "ToolExecutorService": "tool-executor",
    "ExternalProcessor": "router",
    "ExternalScaler": "router",
}


@cache
def objects() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ISTIO / "mesh.yaml").read_text(encoding="utf-8")))


def of_kind(name: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one["spec"] for one in objects() if one["kind"] == name}


def allowed(policy: dict[str, Any]) -> dict[str, set[str]]:
    """Callers by method."""
    assert policy.get("action", "ALLOW") == "ALLOW"
    found: dict[str, set[str]] = {}
    for rule in policy["rules"]:
        (source,), (operation,) = rule["from"], rule["to"]
        for path in operation["operation"]["paths"]:
            who = {ACCOUNTS[one] for one in source["source"]["principals"]}
            found.setdefault(path, set()).update(who)
    return found


def test_policies_are_the_table() -> None:
    policies = of_kind("AuthorizationPolicy")
    assert set(policies) == {f"mesh-{name}" for name in (*SERVERS.values(), "gateway")}
    for server in set(SERVERS.values()):
        expected = {
            f"/{method}": set(callers)
            for method, callers in access.CALLERS.items()
            if SERVERS.get(method.split("/")[0].rsplit(".", 1)[1]) == server
            or f"/{method}".startswith(ORCA)
        }
        assert allowed(policies[f"mesh-{server}"]) == expected, server
    (rule,) = policies["mesh-gateway"]["rules"]
    assert rule["from"][0]["source"]["principals"] == [
        "cluster.local/ns/istio-ingress/sa/istio-ingressgateway"
    ]


def test_everything_is_encrypted_and_nothing_begun_is_tried_again() -> None:
    assert of_kind("PeerAuthentication")["mesh"] == {"mtls": {"mode": "STRICT"}}
    rules = of_kind("DestinationRule")
    assert all(one["trafficPolicy"]["tls"]["mode"] == "ISTIO_MUTUAL" for one in rules.values())
    services = of_kind("VirtualService")
    public = services.pop("mesh-public")
    for one in services.values():
        (route,) = one["http"]
        assert route["retries"] == {"attempts": 0} and route["timeout"] == "0s"
    again, *others = public["http"]
    (policy,) = json.loads((ROOT / "protos/service_config.json").read_text())["methodConfig"]
    assert {match["uri"]["exact"] for match in again["match"]} == {
        f"/{name['service']}/{name['method']}" for name in policy["name"]
    }
    for route in others:
        assert set(route["retries"]["retryOn"].split(",")) <= {"connect-failure", "refused-stream"}
    assert all(route["timeout"] == "0s" for route in public["http"])


@needs_helm
def test_hosts_ports_and_accounts_are_the_charts() -> None:
    services = kind("Service", *VALUES)
    ports = {
        f"{name}.cogitate.svc.cluster.local": {port["port"] for port in one["spec"]["ports"]}
        for name, one in services.items()
    }
    named = 0
    for spec in of_kind("VirtualService").values():
        for route in spec["http"]:
            (to,) = route["route"]
            assert to["destination"]["port"]["number"] in ports[to["destination"]["host"]]
            named += 1
    assert named >= 7
    for spec in of_kind("DestinationRule").values():
        assert spec["host"] in ports or spec["host"].startswith("pods.")
    accounts = {f"cluster.local/ns/cogitate/sa/{name}" for name in kind("ServiceAccount", *VALUES)}
    ours = {one for one in ACCOUNTS if "/sa/mesh-" in one}
    for account in ours:
        prefix = account.removesuffix("*")
        assert any(a == account or (prefix != account and a.startswith(prefix)) for a in accounts)
    for name, spec in of_kind("AuthorizationPolicy").items():
        labels = spec["selector"]["matchLabels"]
        found = [
            one
            for one in kind("Deployment", *VALUES).values()
            if labels.items() <= one["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert found, name
    (pod_ports,) = (spec["ports"] for spec in of_kind("ServiceEntry").values())
    assert {port["number"] for port in pod_ports} == {7101, 7105}


@needs_helm
def test_istio_balances_has_the_certificates_and_starts_first() -> None:
    for name, one in kind("Service", *VALUES).items():
        # Routers dial each decoder: that name stays one of many addresses.
        assert one["spec"].get("clusterIP", "") == ("None" if name == "mesh-decoders" else "")
        for port in one["spec"]["ports"]:
            assert port["appProtocol"] == ("http" if port["name"] == "http" else "grpc")
    assert kind("Service")["mesh-aggregator"]["spec"]["clusterIP"] == "None", "without Istio"
    for name, one in kind("Deployment", *VALUES).items():
        annotations = one["spec"]["template"]["metadata"]["annotations"]
        told = yaml.safe_load(annotations["proxy.istio.io/config"])
        assert told["holdApplicationUntilProxyStarts"] is True
        pod = pods(*VALUES)[name]
        # A sidecar that goes before its service would cut what drains.
        assert int(told["terminationDrainDuration"][:-1]) >= pod["terminationGracePeriodSeconds"]
        role = pod["containers"][0]["image"].rsplit("/", 1)[1].split(":")[0]
        given: Any = knobs(role, pod["containers"][0]["args"])
        assert not given.tls_dir
