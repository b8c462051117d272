"""Three kinds of endpoints of one model on one machine: our engine, llama.cpp's server, vLLM.

The first decodes itself, the second is behind our adapter, the third runs in a decoder of ours in
vLLM's environment. Each has its share of the machine; router and aggregator have one together and
are started anew for each policy, at the same addresses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cogitate.cli.mesh.plan import Options, members, port_count
from cogitate.cli.mesh.processes import Processes, free_ports, is_serving

from tests.bench.cpu_share import cpu_share

START_S = 240.0
ROOT = Path(__file__).parents[2]
# vLLM compiles for minutes on two cores.
VLLM = {"enforce_eager": True, "max_model_len": 2048, "max_num_batched_tokens": 2048}
PLACES = 16  # sequences of an endpoint


@dataclass(frozen=True)
class Parts:
    """What takes part; an empty path leaves that endpoint out."""

    model: str
    models: Path  # the folder that has it
    llama_server: str
    gguf: str
    vllm_python: str
    shares: dict[str, float]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the endpoints there are."""
        has_llama = bool(self.llama_server and self.gguf)
        return (
            "native",
            *(("llama",) if has_llama else ()),
            *(("vllm",) if self.vllm_python else ()),
        )


@contextmanager
def endpoints(
    parts: Parts, router: str, folder: Path, say: Callable[[str], None]
) -> Iterator[None]:
    """Runs all of them; each reports to the router whenever there is one."""
    serves = free_ports(4)
    with ExitStack() as stack:
        for name in parts.names:
            say(f"starting {name}")
            pids = []
            if name == "llama":
                pids.append(_llama_server(stack, parts, serves[-1], folder))
            address = f"127.0.0.1:{serves.pop(0)}"
            pids.append(_decoder(stack, parts, name, address, router, serves[-1], folder))
            stack.enter_context(cpu_share(name, parts.shares[name], *pids))
        yield


def _llama_server(stack: ExitStack, parts: Parts, port: int, folder: Path) -> int:
    command = [
        parts.llama_server, "-m", parts.gguf, "--alias", parts.model, "--host", "127.0.0.1",
        "--port", str(port), "--threads", "1", "--threads-batch", "1", "--threads-http", "4",
        "-np", str(PLACES), "-c", str(PLACES * 1024), "--jinja",
    ]  # fmt: skip
    process = _started(stack, command, folder / "llama-server.log", {})

    def serves() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    _wait(process, serves, "llama-server")
    return process.pid


def _decoder(
    stack: ExitStack, parts: Parts, name: str, address: str, router: str, port: int, folder: Path
) -> int:
    python = parts.vllm_python if name == "vllm" else sys.executable
    command = [
        python, "-m", "cogitate.agent_decoder", "--listen", address, "--endpoint-id", name,
        "--provider", name, "--region", "here", "--model", parts.model,
        "--router-addresses", router, "--max-sequence-count", str(PLACES), "--drain-grace-s", "1",
    ]  # fmt: skip
    if name == "llama":
        command += [
            "--engine", "openai", "--openai-base-url", f"http://127.0.0.1:{port}/v1",
            "--openai-model", parts.model, "--openai-max-call-count", str(PLACES),
        ]  # fmt: skip
    else:
        command += ["--models-path", str(parts.models), "--threads", "1"]
    if name == "vllm":
        command += ["--engine", "vllm", "--vllm-arguments", json.dumps(VLLM)]
    roots = [ROOT, ROOT / "protos/gen", ROOT / "gateway", *(ROOT / "services").iterdir()]
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, roots)),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    process = _started(stack, command, folder / f"{name}.log", environment)
    _wait(process, lambda: is_serving(address), name)
    return process.pid


def _started(
    stack: ExitStack, command: Sequence[str], log: Path, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            env={**os.environ, **environment},
        )  # fmt: skip

    def end() -> None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)
    return process


def _wait(process: subprocess.Popen[bytes], serves: Callable[[], bool], name: str) -> None:
    ends = time.monotonic() + START_S
    while not serves():
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended while it started; its log is in the folder --logs")
        if time.monotonic() > ends:
            raise RuntimeError(f"{name} does not serve after {START_S:g} s")
        time.sleep(0.3)


class Deciders:
    """Router and aggregator, a pair of processes for each policy."""

    def __init__(self, folder: Path, model: str, share: float) -> None:
        options = Options(decoders=0, model=model)
        self._folder, self._share = folder, share
        planned = members(options, free_ports(port_count(options)), folder, folder / "traces")
        by_name = {member.name: member for member in planned}
        self._router, self._aggregator = by_name["router"], by_name["aggregator"]
        self.router, self.aggregator = self._router.address, self._aggregator.address

    @contextmanager
    def running(self, policy: str) -> Iterator[None]:
        """Until both have ended."""
        router = replace(self._router, arguments=(*self._router.arguments, "--policy", policy))
        (self._folder / "journal.sqlite").unlink(missing_ok=True)
        processes = Processes([router, self._aggregator], self._folder)
        processes.start()
        try:
            pids = [member.process.pid for member in processes.noted()]
            with cpu_share("mesh", self._share, *pids):
                yield
        finally:
            processes.stop()
