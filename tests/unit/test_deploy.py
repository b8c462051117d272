"""The deployment files say what the code can do: roles, users, entry points, flags, addresses."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from cogitate.agent_decoder.vllm_engine import arguments
from cogitate.kit import config as configuration
from cogitate.kit.config import ServiceConfig
from cogitate.router.picking import ext_proc, replies
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb2

from tests.fakes import envoy

pytestmark = pytest.mark.unit

DEPLOY = Path(__file__).parents[2] / "deploy"
ROLES = ("gateway", "aggregator", "router", "vision-encoder", "tool-executor", "agent-decoder")
SERVICES = (*ROLES[:-1], "aurora-1", "borealis-1")


def stages() -> dict[str, list[tuple[str, str]]]:
    """Returns the instructions of each stage of the Dockerfile, with its parent's first."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "")
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            parent, _, name = rest.partition(" AS ")
            current = found[name] = list(found.get(parent, []))
        current.append((word, rest))
    return found


def compose() -> dict[str, Any]:
    text = (DEPLOY / "compose/compose.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def role_of(service: dict[str, Any]) -> str:
    return str(service["build"]["target"])


def knobs(role: str, arguments: list[str]) -> ServiceConfig:
    """Parses arguments as the service would; raises or exits on what it would refuse."""
    module = importlib.import_module(f"cogitate.{role.replace('-', '_')}.config")
    (cls,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, ServiceConfig)
        and value.__module__ == module.__name__
    ]
    return configuration.load(cls, role, arguments, env={})


@pytest.mark.parametrize("role", ROLES)
def test_every_role_has_an_image_that_is_not_root(role: str) -> None:
    instructions = stages()[role]
    users = [rest for word, rest in instructions if word == "USER"]
    assert users[-1:] == ["10001:10001"]
    (entry,) = [json.loads(rest) for word, rest in instructions if word == "ENTRYPOINT"]
    assert entry[:2] == ["python", "-m"]
    assert entry[2] == f"cogitate.{role.replace('-', '_')}"
    assert importlib.util.find_spec(f"{entry[2]}.__main__") is not None
    assert ("COPY", f"--from={role}-venv /venv /venv") in instructions


def test_every_copied_path_exists_and_is_sent_to_the_builder() -> None:
    ignored = (DEPLOY.parent / ".dockerignore").read_text(encoding="utf-8").split()
    for instructions in stages().values():
        for word, rest in instructions:
            if word == "COPY" and "--from" not in rest:
                for path in rest.split()[:-1]:
                    assert (DEPLOY.parent / path).exists(), path
                    assert any(f"!{p}" in ignored for p in (path, *Path(path).parents)), path


def test_every_role_is_composed_and_decoders_are_two_providers() -> None:
    services = compose()["services"]
    assert set(services) == set(SERVICES)
    assert {role_of(service) for service in services.values()} == set(ROLES)
    decoders = [s for s in services.values() if role_of(s) == "agent-decoder"]
    seen = [knobs("agent-decoder", s["command"]) for s in decoders]
    assert len({k.provider for k in seen}) == 2  # type: ignore[attr-defined]
    assert len({k.endpoint_id for k in seen}) == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", SERVICES)
def test_flags_are_understood_and_addresses_meet(name: str) -> None:
    services = compose()["services"]
    listens = {knobs(role_of(s), s["command"]).listen for s in services.values()}
    assert len(listens) == len(services)
    chosen = knobs(role_of(services[name]), services[name]["command"])
    host = "0.0.0.0" if name == "gateway" else name  # it is on two networks
    assert chosen.listen.split(":")[0] == host
    assert services[name]["hostname"] == name
    for field in dataclasses.fields(chosen):
        if field.name.endswith(("_address", "_addresses")):
            value = getattr(chosen, field.name)
            given = (value,) if isinstance(value, str) else value
            for address in filter(None, given):  # an endpoint may advertise what it listens on
                assert address in listens, f"{field.name} of {name}"


@pytest.mark.parametrize("name", SERVICES)
def test_containers_are_confined_and_checked(name: str) -> None:
    service = compose()["services"][name]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert service["security_opt"] == ["no-new-privileges:true"]
    listen = knobs(role_of(service), service["command"]).listen.replace("0.0.0.0", "127.0.0.1")
    script = "/usr/local/lib/healthcheck.py"
    assert service["healthcheck"]["test"] == ["CMD", "python", script, listen]
    grace_s = knobs(role_of(service), service["command"]).drain_grace_s
    assert float(service["stop_grace_period"].rstrip("s")) > grace_s
    for dependency in service.get("depends_on", {}):
        assert "healthcheck" in compose()["services"][dependency]


def test_only_the_gateway_is_published_and_on_loopback() -> None:
    services = compose()["services"]
    published = {name: s["ports"] for name, s in services.items() if "ports" in s}
    assert published == {"gateway": ["127.0.0.1:7100:7100", "127.0.0.1:7180:7180"]}
    assert compose()["networks"]["mesh"] == {"internal": True}


POOL = DEPLOY / "kubernetes/gpu-pool"


def pods(manifest: str) -> list[dict[str, Any]]:
    """The specs of all pods of a manifest, the decoder's first."""
    spec = yaml.safe_load((POOL / manifest).read_text(encoding="utf-8"))["spec"]
    group = spec.get("leaderWorkerTemplate", {"leaderTemplate": spec.get("template")})
    templates = [group["leaderTemplate"], group.get("workerTemplate")]
    return [template["spec"] for template in templates if template]


@pytest.mark.parametrize("manifest", ["decoder.yaml", "multi-node/decoder.yaml"])
def test_a_gpu_pool_says_what_the_decoder_takes(manifest: str) -> None:
    pod, *_ = pods(manifest)
    (container,) = pod["containers"]
    flags = [a for a in container["args"] if a.startswith("--")]
    assert all(f'$({name})' not in " ".join(flags) or name in {e["name"] for e in container["env"]}
               for name in ("POD_IP", "POD_NAME", "NODE_NAME"))  # fmt: skip
    chosen: Any = knobs("agent-decoder", flags)
    assert chosen.engine == "vllm"
    given = arguments.read(chosen.vllm_arguments, json.loads(chosen.vllm_arguments))
    assert container["resources"]["limits"]["nvidia.com/gpu"] == str(given["tensor_parallel_size"])
    port = int(chosen.listen.rpartition(":")[2])
    probes = [container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]
    assert {probe["grpc"]["port"] for probe in probes} == {port}
    assert pod["terminationGracePeriodSeconds"] > chosen.drain_grace_s
    roots = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {str(chosen.models_path), "/dev/shm", "/tmp"} <= roots


@pytest.mark.parametrize("manifest", ["decoder.yaml", "multi-node/decoder.yaml"])
def test_pods_of_a_gpu_pool_are_confined(manifest: str) -> None:
    for pod in pods(manifest):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        names = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {mount["name"] for mount in container["volumeMounts"]} <= names


def test_the_image_of_a_gpu_pool_is_not_root_and_installs_an_extra_that_exists() -> None:
    instructions = stages()["agent-decoder-vllm"]
    assert [rest for word, rest in instructions if word == "USER"][-1] == "10001:10001"
    runs = " ".join(rest for word, rest in instructions if word == "RUN")
    (extra,) = re.findall(r"\.whl\)\[(\w+)\]", runs)
    pyproject = (DEPLOY.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(rf"^{extra} = \[", pyproject, re.MULTILINE)


PICKER = DEPLOY / "kubernetes/endpoint-picker"


def objects(file: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((PICKER / file).read_text(encoding="utf-8")))


def test_an_endpoint_pickers_names_ports_and_labels_meet() -> None:
    headless, dialled, service, deployment = objects("router.yaml")
    (pool,), (route,) = objects("pool.yaml"), objects("route.yaml")
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    chosen: Any = knobs("router", container["args"])
    assert chosen.picker
    port = int(chosen.listen.rpartition(":")[2])
    assert [p["containerPort"] for p in container["ports"]] == [port]
    assert {container[f"{kind}Probe"]["grpc"]["port"] for kind in ("readiness", "liveness")} == {
        port
    }
    assert container["readinessProbe"]["grpc"]["service"] == ext_proc.SERVICE_NAME
    assert pod["spec"]["terminationGracePeriodSeconds"] > chosen.drain_grace_s
    for found in (headless, service):
        assert found["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        assert [p["targetPort"] for p in found["spec"]["ports"]] == [port]
    assert headless["spec"]["clusterIP"] == dialled["spec"]["clusterIP"] == "None"

    asks = pool["spec"]["endpointPickerRef"]
    assert asks["name"] == service["metadata"]["name"]
    assert asks["port"]["number"] == service["spec"]["ports"][0]["port"]
    decoder = yaml.safe_load((POOL / "decoder.yaml").read_text(encoding="utf-8"))
    labels = decoder["spec"]["template"]["metadata"]["labels"]
    assert pool["spec"]["selector"]["matchLabels"].items() <= labels.items()
    flags = [a for a in decoder["spec"]["template"]["spec"]["containers"][0]["args"] if "=" in a]
    reports: Any = knobs("agent-decoder", flags)
    assert pool["spec"]["targetPorts"] == [{"number": int(reports.listen.rpartition(":")[2])}]
    assert dialled["spec"]["selector"].items() <= labels.items()
    namespace = yaml.safe_load((PICKER / "kustomization.yaml").read_text())["namespace"]
    name, at = headless["metadata"]["name"], headless["spec"]["ports"][0]["port"]
    assert reports.router_addresses == (f"{name}.{namespace}.svc:{at}",)
    name, at = dialled["metadata"]["name"], dialled["spec"]["ports"][0]["port"]
    assert chosen.endpoint_names == (f"{name}.{namespace}.svc.cluster.local:{at}",)
    (rule,) = route["spec"]["rules"]
    assert [b["name"] for b in rule["backendRefs"]] == [pool["metadata"]["name"]]
    decode = decoder_pb2.DESCRIPTOR.services_by_name["AgentDecoderService"].full_name
    assert rule["matches"][0]["path"]["value"] == f"/{decode}/"


def test_pods_of_an_endpoint_picker_are_confined() -> None:
    pod = objects("router.yaml")[3]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_envoy_is_asked_to_do_what_the_picker_says() -> None:
    config = envoy.shipped()
    asks = envoy.picker_filter(config)
    assert asks["metadata_options"]["receiving_namespaces"]["untyped"] == [replies.NAMESPACE]
    assert asks["metadata_options"]["forwarding_namespaces"]["untyped"] == [
        ext_proc.SUBSET_NAMESPACE
    ]
    modes = dict(asks["processing_mode"])
    assert modes.pop("request_header_mode") == "SEND"
    assert set(modes.values()) == {"SKIP", "NONE"}, "nothing else passes the router"
    clusters = {c["name"]: c for c in config["static_resources"]["clusters"]}
    assert asks["grpc_service"]["envoy_grpc"]["cluster_name"] in clusters
    (policy,) = clusters["decoders"]["load_balancing_policy"]["policies"]
    (source,) = policy["typed_extension_config"]["typed_config"]["override_host_sources"]
    assert source["metadata"]["key"] == replies.NAMESPACE
    assert source["metadata"]["path"] == [{"key": replies.DESTINATION}]
