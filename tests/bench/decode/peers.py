"""The engines that are compared: how each is started, and with which form of the weights."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PEERS = ROOT / ".cache" / "peers"  # virtual environments, ignored by git
LLAMA = PEERS / "llama" / "bin" / "llama_worker"


class EngineGone(RuntimeError):
    """The engine's process ended; the text says where its errors are."""


@dataclass(frozen=True)
class Engine:
    """An engine and the type of weights it runs with."""

    name: str
    dtype: str
    command: tuple[str, ...]
    needs: Path  # what is there when it is installed
    environment: dict[str, str] = field(default_factory=dict, hash=False)
    form: str = "checkpoint"  # of the weights: checkpoint, w8a8, bf16.gguf, q8_0.gguf
    weight_bytes: float = 2.0  # of one parameter of a layer
    head_bytes: float = 2.0  # of one parameter of the table of tokens
    is_usual: bool = True  # compared when no engine is named

    @property
    def label(self) -> str:
        """As the table shows it."""
        return f"{self.name} {self.dtype}"

    @property
    def key(self) -> str:
        """As the flag `--engine` names it."""
        return f"{self.name}:{self.dtype}"

    @property
    def is_installed(self) -> bool:
        """Whether its environment is there."""
        return self.needs.exists()


def engines() -> list[Engine]:
    """All that can be compared, ours first."""
    return [*_ours(), *_vllm(), *_llama(), *_transformers()]


def _ours() -> list[Engine]:
    command = (sys.executable, "-m", "tests.bench.decode.ours")
    return [
        Engine("cogitate", "bfloat16", command, HERE),
        Engine("cogitate", "int8", command, HERE, weight_bytes=1),
        # float32 of weights that are bfloat16 keeps them so: nothing is lost.
        Engine("cogitate", "float32", command, HERE, is_usual=False),
    ]


def _vllm() -> list[Engine]:
    python = PEERS / "vllm" / "bin" / "python"
    command, needs = (str(python), str(HERE / "peer_vllm.py")), python.parent / "vllm"
    found = [
        *python.parents[1].glob("lib/libiomp5.so"),
        *Path("/usr/lib/x86_64-linux-gnu").glob("libtcmalloc_minimal.so.4"),
    ]  # what vLLM's own guide preloads on a CPU, as far as it is there
    environment = {"LD_PRELOAD": ":".join(map(str, found))} if found else {}
    return [
        Engine("vllm", "bfloat16", command, needs, environment),
        Engine("vllm", "float32", command, needs, environment, weight_bytes=4, head_bytes=4),
        Engine("vllm", "w8a8", command, needs, environment, form="w8a8", weight_bytes=1),
    ]


def _llama() -> list[Engine]:
    command = (sys.executable, "-m", "tests.bench.decode.peer_llama")
    eighth = 34 / 32  # Q8_0: 32 weights and their scale are 34 bytes
    return [
        Engine("llama.cpp", "bf16", command, LLAMA, form="bf16.gguf"),
        Engine(
            "llama.cpp", "q8_0", command, LLAMA, form="q8_0.gguf",
            weight_bytes=eighth, head_bytes=eighth,
        ),
    ]  # fmt: skip


def _transformers() -> list[Engine]:
    python = PEERS / "transformers" / "bin" / "python"
    command = (str(python), str(HERE / "peer_transformers.py"))
    return [
        Engine(
            "transformers", f"{dtype}{way}", command, python, weight_bytes=size, head_bytes=size,
            is_usual=not way,
        )
        for way in ("", "+copies")
        for dtype, size in (("float32", 4), ("bfloat16", 2))
    ]  # fmt: skip


class Worker:
    """A running engine: one job at a time."""

    def __init__(self, engine: Engine, model: Path, threads: int, log: Path) -> None:
        """Starts it and waits until it is ready. Raises EngineGone if it cannot be."""
        self.engine = engine
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [*engine.command, str(model), engine.dtype, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env={**os.environ, **engine.environment},
        )
        self._answer()  # it is ready

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def run(self, job: dict[str, Any]) -> dict[str, float]:
        """Runs a job and returns its timing. Raises EngineGone."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `_answer` says so
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the engine: what it started ends with its input, or is killed with it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise EngineGone(f"{self.engine.label} ended; see {self._log.name}")
        answer: dict[str, float] = json.loads(line)
        return answer


def chosen(names: Sequence[str]) -> list[Engine]:
    """The engines of these keys, or all usual ones that are installed."""
    known = engines()
    if not names:
        return [engine for engine in known if engine.is_usual and engine.is_installed]
    if unknown := set(names) - {engine.key for engine in known}:
        raise SystemExit(
            f"unknown engines: {', '.join(sorted(unknown))}; "
            f"there are {', '.join(engine.key for engine in known)}"
        )
    found = [engine for engine in known if engine.key in names]
    if absent := [engine.key for engine in found if not engine.is_installed]:
        raise SystemExit(
            f"not installed: {', '.join(absent)}; `python -m tests.bench.decode.install` does it"
        )
    return found
