"""`cogitate doctor`: what this machine has and lacks, and what to do about it."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from cogitate.cli import screen
from cogitate.cli.flags import default_threads
from cogitate.cli.mesh import state
from cogitate.cli.mesh.processes import busy_ports, is_serving
from cogitate.cli.store import converting
from cogitate.cli.store import folder as store
from rich.table import Table
from rich.text import Text

NAME = "doctor"
HELP = "say what is missing on this machine"
DESCRIPTION = """\
Looks at Python, the packages of every extra, ONNX Runtime, torch, the sandbox, ports, memory, the
model's files and the mesh that runs, and says what to do about what is missing. Exits with 1 if
something needed is missing.

  cogitate doctor
"""

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"

_EXTRAS: Final = {
    "gateway": ("rich", "grpc_health", "grpc_reflection", "opentelemetry.sdk"),
    "decoder": ("torch", "numpy", "safetensors", "tokenizers", "jinja2", "gguf"),
    "vision": ("onnxruntime", "numpy", "PIL"),
}
_EVAL: Final = ("matplotlib", "sklearn", "easy_vqa")
_MODEL_FILES: Final = ("config.json", "model.safetensors", "tokenizer.json", "vision.onnx")
_MIB: Final = 1024 * 1024


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` says what to do if it is not ok."""

    state: str
    what: str
    found: str
    remedy: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("--base-port", type=int, default=7100, help="(%(default)s)")
    parser.add_argument("--model", default="mini", help="(%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Prints one line a finding."""
    console = screen.console()
    findings = examine(args.base_port, args.model)
    console.print(render(findings))
    bad = [one for one in findings if one.state == FAIL]
    if bad:
        console.print(f"[red]{_many(len(bad), 'needed thing')} missing.[/red]")
        return 1
    warned = sum(one.state == WARN for one in findings)
    remarks = f", with {_many(warned, 'remark')}" if warned else ""
    console.print(f"This machine can run a mesh{remarks}.", highlight=False)
    return 0


def render(findings: list[Finding]) -> Table:
    """Draws the findings."""
    table = Table.grid(padding=(0, 2))
    colours = {OK: "green", WARN: "yellow", FAIL: "bold red"}
    for one in findings:
        said = Text(one.found)
        if one.remedy:
            said.append(f"\n→ {one.remedy}", "dim")
        table.add_row(Text(one.state, colours[one.state]), Text(one.what, "bold"), said)
    return table


def examine(base_port: int, model: str) -> list[Finding]:
    """Looks at everything; a look that fails is itself a finding."""
    looks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _packages,
        _onnxruntime,
        _torch,
        _compiler,
        _sandbox,
        _memory,
        lambda: _ports(base_port),
        lambda: _model(model),
        _state_folder,
        _meshes,
    )
    findings: list[Finding] = []
    for look in looks:
        try:
            findings.extend(look())
        except Exception as error:
            name = getattr(look, "__name__", "a look").strip("_")
            findings.append(Finding(WARN, name, f"could not be looked at: {type(error).__name__}"))
    return findings


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding(OK, "python", found)


def _packages() -> Iterator[Finding]:
    yield Finding(OK, "cogitate", metadata.version("cogitate"))
    for extra, modules in _EXTRAS.items():
        missing = [name for name in modules if not _is_there(name)]
        if missing:
            remedy = f"pip install 'cogitate[{extra}]'"
            yield Finding(FAIL, f"extra {extra}", f"missing: {', '.join(missing)}", remedy)
        else:
            yield Finding(OK, f"extra {extra}", "complete")
    if missing := [name for name in _EVAL if not _is_there(name)]:
        remedy = "for `cogitate eval`: pip install 'cogitate[eval]'"
        yield Finding(WARN, "extra eval", f"missing: {', '.join(missing)}", remedy)
    else:
        yield Finding(OK, "extra eval", "complete")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _onnxruntime() -> Iterator[Finding]:
    if not _is_there("onnxruntime"):
        return
    import onnxruntime  # type: ignore[import-untyped]

    providers = [
        name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()
    ]
    yield Finding(OK, "onnxruntime", f"{onnxruntime.__version__}, {', '.join(providers)}")
    names = ("onnxruntime", "onnxruntime-gpu")
    if len([name for name in names if _is_distributed(name)]) > 1:
        yield Finding(
            FAIL,
            "onnxruntime",
            "both the CPU and the GPU package are installed",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install one again",
        )


def _is_distributed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _compiler() -> Iterator[Finding]:
    name = os.environ.get("CXX", "g++")
    if found := shutil.which(name):
        yield Finding(OK, "C++ compiler", found)
    else:
        remedy = (
            "apt-get install g++, or set CXX; until then torch does its work, several times slower"
        )
        yield Finding(WARN, "C++ compiler", f"no {name}: the native step cannot be built", remedy)


def _torch() -> Iterator[Finding]:
    if not _is_there("torch"):
        return
    import torch

    cuda = f", CUDA {torch.version.cuda}" if torch.cuda.is_available() else ", CPU"
    isa = torch.backends.cpu.get_cpu_capability()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        OK,
        "torch",
        f"{torch.__version__}{cuda}, {isa}, {cores} cores: "
        f"{_many(default_threads(2), 'thread')} for each of two decoders",
    )
    flags = _cpu_flags()
    fast = [name for name in ("avx512_bf16", "amx_bf16") if name in flags]
    if fast:
        yield Finding(OK, "bfloat16", f"in hardware: {', '.join(fast)}")
    elif platform.system() == "Linux":
        yield Finding(WARN, "bfloat16", "not in hardware", "float32 is used where it is faster")


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    line = next((one for one in text.splitlines() if one.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())


def _sandbox() -> Iterator[Finding]:
    path = shutil.which("bwrap")
    remedy = "for tools that run code: apt install bubblewrap"
    if path is None:
        yield Finding(WARN, "sandbox", "bubblewrap is not installed", remedy)
        return
    command = [path, "--ro-bind", "/", "/", "--unshare-all", "true"]
    done = subprocess.run(command, capture_output=True, timeout=5, check=False)
    if done.returncode:
        yield Finding(
            WARN,
            "sandbox",
            "bubblewrap cannot make namespaces here",
            "allow unprivileged user namespaces, or run where they are allowed",
        )
    else:
        yield Finding(OK, "sandbox", f"bubblewrap works ({path})")


def _memory() -> Iterator[Finding]:
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    fields = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines() if ":" in line}
    free_mib = fields["MemAvailable"] // 1024
    remedy = "a mesh with two decoders wants about 2.5 GiB; close something, or --decoders 1"
    if free_mib < 2560:
        yield Finding(WARN if free_mib > 1200 else FAIL, "memory", f"{free_mib} MiB free", remedy)
    else:
        yield Finding(OK, "memory", f"{free_mib / 1024:.1f} GiB free")


def _ports(base: int) -> Iterator[Finding]:
    ports = range(base, base + 7)
    what = f"ports {base}–{ports[-1]}"
    if state.running_names():
        yield Finding(OK, what, "a mesh runs")
    elif busy := busy_ports("127.0.0.1", ports):
        shown = ", ".join(map(str, busy))
        remedy = "choose others: cogitate up --base-port 8100"
        yield Finding(WARN, what, f"in use by another program: {shown}", remedy)
    else:
        yield Finding(OK, what, "free")


def _model(name: str) -> Iterator[Finding]:
    from cogitate.kit.config import model_directory
    from cogitate.kit.errors import InvalidRequest

    entry = store.find(name)
    if entry is not None and not entry.is_shipped:
        yield _own_model(entry)
        return
    try:
        folder = model_directory(name)
    except InvalidRequest as error:
        remedy = "see `cogitate models list`; if it is mini, install the package again"
        yield Finding(FAIL, f"model {name}", str(error), remedy)
        return
    if missing := [file for file in _MODEL_FILES if not (folder / file).is_file()]:
        remedy = "install the package again, or train it: make train-mini"
        yield Finding(FAIL, f"model {name}", f"missing: {', '.join(missing)}", remedy)
        return
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    yield Finding(OK, f"model {name}", f"{size / _MIB:.1f} MiB, {_checksums(folder)}")


def _own_model(entry: store.Entry) -> Finding:
    """A model of the user's folder, looked at as the agent-decoder would."""
    size = f"{entry.num_bytes / _MIB:.1f} MiB"
    try:
        converting.verify(entry.path)
    except store.ModelError as error:
        remedy = f"cogitate models remove {entry.name}, then fetch or import it again"
        return Finding(FAIL, f"model {entry.name}", f"{size}; {error}", remedy)
    return Finding(OK, f"model {entry.name}", f"{size}, can be served")


def _checksums(folder: Path) -> str:
    listed = folder / "SHA256SUMS"
    if not listed.is_file():
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        return f"weights sha256 {digest[:12]}…"
    for line in listed.read_text(encoding="ascii").splitlines():
        wanted, _, name = line.partition("  ")
        if hashlib.sha256((folder / name.strip()).read_bytes()).hexdigest() != wanted:
            raise ValueError(f"checksum of {name}")
    return "checksums right"


def _state_folder() -> Iterator[Finding]:
    root = state.root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".probe-{os.getpid()}"
        probe.write_text("", encoding="ascii")
        probe.unlink()
    except OSError as error:
        remedy = "set COGITATE_STATE to a folder that can be written"
        yield Finding(FAIL, "state folder", f"{root}: {error.strerror}", remedy)
        return
    free_gib = shutil.disk_usage(root).free / 1024**3
    yield Finding(OK, "state folder", f"{root}, {free_gib:.0f} GiB free")


def _meshes() -> Iterator[Finding]:
    names = state.running_names()
    if not names:
        yield Finding(OK, "mesh", "none runs")
    for name in names:
        note = state.read(name)
        members = note.members if note is not None else ()
        down = [one.name for one in members if not is_serving(one.address, probe_as=one.probe_as)]
        if down:
            remedy = f"see {state.folder(name) / 'logs'}; cogitate down, then cogitate up"
            yield Finding(WARN, f"mesh {name}", f"not serving: {', '.join(down)}", remedy)
        else:
            yield Finding(OK, f"mesh {name}", f"{len(members)} processes serve")
