"""The chart as the real Helm renders it: what pods may, whom they reach, what services take."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from cogitate.kit import access, identity

from tests.unit.test_deploy import knobs

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/cogitate"
FULL = ("-f", str(CHART / "ci/full-values.yaml"))
HELM = ROOT / ".cache/peers/helm/helm/helm"
VALIDATE = ROOT / ".cache/peers/helm/venv/bin/kubernetes-validate"
needs_helm = pytest.mark.skipif(not HELM.exists(), reason="no helm: make helm")
OURS = (
    "keda.sh/",
    "cert-manager.io/",
    "inference.networking.k8s.io/",
    "gateway.networking.k8s.io/",
)
ROLES = {"gateway", "aggregator", "router", "vision-encoder", "tool-executor", "agent-decoder"}


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(HELM), *arguments], capture_output=True, text=True, timeout=60)


@cache
def rendered(*flags: str) -> list[dict[str, Any]]:
    made = helm("template", "mesh", str(CHART), "--namespace", "cogitate", *flags)
    assert made.returncode == 0, made.stderr
    return [one for one in yaml.safe_load_all(made.stdout) if one]


def kind(name: str, *flags: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in rendered(*flags) if one["kind"] == name}


def ports_of(container: dict[str, Any]) -> list[int]:
    return [port["containerPort"] for port in container["ports"]]


def pods(*flags: str) -> dict[str, dict[str, Any]]:
    return {
        name: one["spec"]["template"]["spec"] for name, one in kind("Deployment", *flags).items()
    }


@needs_helm
@pytest.mark.parametrize("flags", [(), FULL], ids=["plain", "full"])
def test_it_is_valid(flags: tuple[str, ...], tmp_path: Path) -> None:
    linted = helm("lint", "--strict", str(CHART), *flags)
    assert linted.returncode == 0, linted.stdout
    known = [one for one in rendered(*flags) if not one["apiVersion"].startswith(OURS)]
    assert len({(one["kind"], one["metadata"]["name"]) for one in known}) == len(known)
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(known))
    ran = subprocess.run([str(VALIDATE), "--strict", str(tmp_path / "all.yaml")],
                         capture_output=True, text=True, timeout=120)  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_helm
@pytest.mark.parametrize("flags", [(), FULL], ids=["plain", "full"])
def test_pods_may_little_and_are_asked_how_they_are(flags: tuple[str, ...]) -> None:
    accounts = kind("ServiceAccount", *flags)
    for name, pod in pods(*flags).items():
        security = pod["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] == 10001
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert accounts[pod["serviceAccountName"]]["automountServiceAccountToken"] is False
        assert len(pod["topologySpreadConstraints"]) == 2
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]
        port = 7199 if "--tls-dir=/tls" in container["args"] else ports_of(container)[0]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["grpc"] == {"port": port}


@needs_helm
@pytest.mark.parametrize("flags", [(), FULL], ids=["plain", "full"])
def test_services_take_their_arguments_and_have_time_to_drain(flags: tuple[str, ...]) -> None:
    seen = set()
    for pod in pods(*flags).values():
        (container,) = pod["containers"]
        role = container["image"].rsplit("/", 1)[1].split(":")[0].removesuffix("-vllm")
        seen.add(role)
        given: Any = knobs(role, container["args"])
        assert given.listen.endswith(f":{container['ports'][0]['containerPort']}")
        stop_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] > stop_s + given.drain_grace_s
    assert seen == ROLES


@needs_helm
def test_services_show_certificates_that_the_table_knows() -> None:
    certificates = kind("Certificate", *FULL)
    for name, pod in pods(*FULL).items():
        (container,) = pod["containers"]
        role = container["image"].rsplit("/", 1)[1].split(":")[0].removesuffix("-vllm")
        given: Any = knobs(role, container["args"])
        spec = certificates[name]["spec"]
        (volume,) = [one for one in pod["volumes"] if one["name"] == "tls"]
        assert volume["secret"]["secretName"] == spec["secretName"]
        (mount,) = [one for one in container["volumeMounts"] if one["name"] == "tls"]
        assert mount["mountPath"] == given.tls_dir
        assert spec["dnsNames"] == [given.tls_server_name]
        parsed = [identity.parse(one) for one in spec["uris"]]
        assert parsed == [("cogitate.local", role)] and role in access.SERVICES
        assert given.health_listen.endswith(":7199")
    assert not kind("Certificate")


@needs_helm
def test_addresses_meet_services() -> None:
    ports = {
        f"{name}.cogitate.svc:{port['port']}"
        for name, one in kind("Service", *FULL).items()
        for port in one["spec"]["ports"]
    }
    named = {
        address
        for pod in pods(*FULL).values()
        for argument in pod["containers"][0]["args"]
        for address in argument.partition("=")[2].split(",")
        if ".svc:" in address
    }
    triggers = [
        trigger["metadata"]["scalerAddress"]
        for one in kind("ScaledObject", *FULL).values()
        for trigger in one["spec"]["triggers"]
    ]
    assert len(named) >= 5 and triggers
    assert {*named, *triggers} <= ports


@needs_helm
def test_nobody_is_reached_but_by_those_who_call() -> None:
    policies = kind("NetworkPolicy")
    denied = policies["mesh-default-deny"]["spec"]
    assert "ingress" not in denied and "egress" not in denied
    labels = denied["podSelector"]["matchLabels"]
    for one in kind("Deployment").values():
        assert labels.items() <= one["spec"]["template"]["metadata"]["labels"].items()

    def sides(name: str) -> tuple[set[str], set[str]]:
        spec = policies[f"mesh-{name}"]["spec"]
        found = []
        for side, word in (("ingress", "from"), ("egress", "to")):
            peers = [peer for rule in spec.get(side) or [] for peer in rule.get(word, [])]
            found.append({p["podSelector"]["matchLabels"]["cogitate.dev/calls-as"] for p in peers})
        return found[0], found[1]

    expected = {
        "gateway": {"aggregator", "router", "vision-encoder"},
        "aggregator": {"router", "vision-encoder", "tool-executor", "decoder"},
        "router": {"decoder"},
        "vision-encoder": set(),
        "tool-executor": {"vision-encoder"},
        "decoder": {"vision-encoder", "decoder"},
    }
    for name, called in expected.items():
        callers = {who for who, whom in expected.items() if name in whom}
        assert sides(name) == (callers, called), name
    # Beyond the mesh: name servers alone.
    for name in expected:
        outside = [r for r in policies[f"mesh-{name}"]["spec"]["egress"] if "to" not in r]
        assert [[p["port"] for p in rule["ports"]] for rule in outside] == [[53, 53]]
    roles = {
        one["spec"]["template"]["metadata"]["labels"]["cogitate.dev/calls-as"]
        for one in kind("Deployment").values()
    }
    assert roles == set(expected)


@needs_helm
def test_a_site_asks_home_for_what_its_encoder_lacks() -> None:
    (container,) = pods(*FULL)["mesh-vision-encoder"]["containers"]
    given: Any = knobs("vision-encoder", container["args"])
    assert given.upstream_address == "pictures.home.example:7103"
    spec = kind("NetworkPolicy", *FULL)["mesh-vision-encoder"]["spec"]
    far = {"ports": [{"port": 7103}], "to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}]}
    near = {"ports": [{"port": 7103}], "from": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}
    assert far in spec["egress"] and near in spec["ingress"]
    router = kind("NetworkPolicy", *FULL)["mesh-router"]["spec"]
    assert [7102] in [[port["port"] for port in rule["ports"]] for rule in router["ingress"]]
    assert near not in router["ingress"] and far not in router["egress"]
    for pod in pods(*FULL).values():
        for address in pod["containers"][0]["args"]:
            assert not address.startswith("--upstream-address") or pod["containers"] == [container]


@needs_helm
def test_pools_differ_and_scale_by_the_router() -> None:
    pools = {n: p["containers"][0] for n, p in pods(*FULL).items() if n.startswith("mesh-decoder-")}
    assert set(pools) == {"mesh-decoder-mini", "mesh-decoder-llama-spot", "mesh-decoder-hosted"}
    spot: Any = knobs("agent-decoder", pools["mesh-decoder-llama-spot"]["args"])
    assert (spot.engine, spot.provider, spot.spot) == ("vllm", "aurora", True)
    assert spot.price_per_hour_micro_usd == 10_000_000
    hosted: Any = knobs("agent-decoder", pools["mesh-decoder-hosted"]["args"])
    assert hosted.engine == "openai" and hosted.openai_key_file.startswith("/secrets/")
    (scaled,) = kind("ScaledObject", *FULL).values()
    metadata = scaled["spec"]["triggers"][0]["metadata"]
    assert metadata["model"] == spot.model and metadata["provider"] == spot.provider
    router: Any = knobs("router", pods(*FULL)["mesh-router"]["containers"][0]["args"])
    assert router.keda_scaler and router.picker
    assert "replicas" not in kind("Deployment", *FULL)["mesh-decoder-llama-spot"]["spec"]
    pool = kind("InferencePool", *FULL)["mesh-decoders"]["spec"]
    for name in pools:
        labels = kind("Deployment", *FULL)[name]["spec"]["template"]["metadata"]["labels"]
        assert pool["selector"]["matchLabels"].items() <= labels.items()


@needs_helm
@pytest.mark.parametrize(
    ("set_", "said"),
    [
        ("aggregator.replicas=2", "journal"),
        ("inferencePool.enabled=true", "router.picker"),
        ("gateway.replica=2", "not allowed"),
        ("decoders.x.prices=1", "not allowed"),
        ("grace.drain=0", "minimum"),
        ("router.resources.limits=null", "limits"),
        ("gateway.args[0]=x", "pattern"),
        ("visionEncoder.upstream=home", "pattern"),
    ],
)
def test_what_cannot_be_is_refused(set_: str, said: str) -> None:
    refused = helm("template", "mesh", str(CHART), "--set", set_)
    assert refused.returncode != 0 and said in refused.stderr, refused.stderr
