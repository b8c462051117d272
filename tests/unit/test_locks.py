"""deploy/locks: images install what pyproject asks for, by hash; and the lists made of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.unit.test_deploy import stages

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "deploy/locks"
TOOLS = ROOT / ".cache/peers/tools/bin"
EXTRAS = {
    "gateway": ("gateway",),
    "aggregator": ("aggregator", "nats"),
    "router": ("router",),
    "vision-encoder": ("vision",),
    "tool-executor": ("mcp",),
    "agent-decoder": ("adapter", "nvml"),
    "agent-decoder-cuda": ("adapter", "nvml"),
}
MACHINES = ("x86_64", "aarch64")
# In the lock of the CUDA variant alone; the Dockerfile says why.
TORCH = re.compile(r"(torch|triton|cuda-.*|nvidia-(?!ml-py$).*)")


def environment(machine: str) -> dict[str, str]:
    """Of the base image."""
    return {
        "python_version": "3.12", "python_full_version": "3.12.0", "sys_platform": "linux",
        "platform_system": "Linux", "platform_machine": machine, "os_name": "posix",
        "implementation_name": "cpython", "platform_python_implementation": "CPython",
    }  # fmt: skip


@cache
def lock(name: str) -> list[tuple[Requirement, tuple[str, ...]]]:
    """Each package of a lock with its hashes."""
    text = (LOCKS / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", "")
    found = []
    for line in filter(None, text.splitlines()):
        named, *hashes = line.split("--hash=")
        found.append((Requirement(named.strip()), tuple(one.strip() for one in hashes)))
    return found


def installed(name: str, machine: str) -> dict[str, str]:
    """Versions by name, of what a machine installs; nothing twice."""
    found: dict[str, str] = {}
    for one, _ in lock(name):
        if one.marker is None or one.marker.evaluate(environment(machine)):
            (pin,) = one.specifier
            assert canonicalize_name(one.name) not in found, one.name
            found[canonicalize_name(one.name)] = pin.version
    return found


def asked(extras: tuple[str, ...], machine: str) -> Iterator[Requirement]:
    """What pyproject asks for, extras of ours resolved."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    for text in (*project["dependencies"], *(one for extra in extras for one in optional[extra])):
        one = Requirement(text)
        if one.name == "cogitate":
            yield from asked(tuple(one.extras), machine)
        elif one.marker is None or one.marker.evaluate(environment(machine)):
            yield one


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("machine", MACHINES)
def test_a_lock_has_what_its_extras_ask_for(name: str, machine: str) -> None:
    found = installed(name, machine)
    for one in asked(EXTRAS[name], machine):
        if name == "agent-decoder" and TORCH.fullmatch(one.name):
            assert one.name not in found
            continue
        assert one.specifier.contains(found[canonicalize_name(one.name)], prereleases=True), one


@pytest.mark.parametrize("name", [*EXTRAS, "build"])
def test_everything_is_pinned_by_hash_and_no_registry_is_named(name: str) -> None:
    for one, hashes in lock(name):
        assert [pin.operator for pin in one.specifier] == ["=="] and one.url is None, one
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", h) for h in hashes), one
    text = (LOCKS / f"{name}.txt").read_text(encoding="utf-8")
    assert "://" not in text and "index" not in text.lower() and str(ROOT) not in text


def test_both_decoders_are_the_same_but_for_torch() -> None:
    cpu, cuda = (dict(_keys(name)) for name in ("agent-decoder", "agent-decoder-cuda"))
    assert cpu == {key: value for key, value in cuda.items() if not TORCH.fullmatch(key[0])}
    pins = {installed("agent-decoder-cuda", machine)["torch"] for machine in MACHINES}
    runs = " ".join(rest for word, rest in stages()["agent-decoder-venv"] if word == "RUN")
    assert pins == set(re.findall(r"torch==([0-9.]+)", runs))


def _keys(name: str) -> Iterator[tuple[tuple[str, str], Any]]:
    for one, hashes in lock(name):
        yield (canonicalize_name(one.name), str(one.specifier)), hashes


@pytest.mark.parametrize("name", EXTRAS)
def test_an_image_installs_its_lock_and_nothing_else(name: str) -> None:
    instructions = stages()[f"{name}-venv"]
    assert ("COPY", f"--from={name}-venv /venv /venv") in stages()[name]
    runs = " ".join(rest for word, rest in instructions if word == "RUN")
    first, *rest = re.findall(r"/venv/bin/pip install ([^&]+?) *&&", runs)
    assert first == f"--require-hashes --only-binary :all: -r /locks/{name}.txt"
    if name == "agent-decoder":
        assert rest.pop(0).endswith(" torch==2.13.0")
    assert rest == ["--no-deps /dist/*.whl"] and "pip check" in runs


def test_the_bills_of_materials_hold_every_package_with_its_hashes(tmp_path: Path) -> None:
    if not (TOOLS / "cyclonedx-py").exists():
        pytest.skip("cyclonedx-bom is not installed: make tools")
    environment = {**os.environ, "TOOLS": str(TOOLS)}
    subprocess.run(
        [str(LOCKS / "sbom.sh"), str(tmp_path)], env=environment, check=True, timeout=100
    )
    for name in EXTRAS:
        told = json.loads((tmp_path / f"{name}.cdx.json").read_text())
        assert (told["bomFormat"], told["specVersion"]) == ("CycloneDX", "1.6")
        found = {
            (canonicalize_name(one["name"]), one["version"]): {
                entry["content"]
                for reference in one["externalReferences"]
                for entry in reference.get("hashes", ())
            }
            for one in told["components"]
        }
        expected: dict[tuple[str, str], set[str]] = {}
        for one, hashes in lock(name):
            (pin,) = one.specifier
            key = canonicalize_name(one.name), pin.version
            expected.setdefault(key, set()).update(h.removeprefix("sha256:") for h in hashes)
        assert found == expected, name


def test_hadolint_finds_nothing() -> None:
    if not (TOOLS / "hadolint").exists():
        pytest.skip("hadolint is not installed: make tools")
    ran = subprocess.run(
        [str(TOOLS / "hadolint"), "--no-color", str(ROOT / "deploy/Dockerfile")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
