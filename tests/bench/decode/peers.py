"""The engines that are compared: how each is installed and started."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Engine:
    """An engine and the type of weights it runs with."""

    name: str
    dtype: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As the table shows it."""
        return f"{self.name} {self.dtype}"

    @property
    def is_installed(self) -> bool:
        """Whether its environment is there."""
        return Path(self.command[0]).exists()


def engines() -> list[Engine]:
    """All that can be compared, ours first."""
    ours = (sys.executable, "-m", "tests.bench.decode.ours")
    vllm = PEERS / "vllm" / "bin" / "python"
    transformers = PEERS / "transformers" / "bin" / "python"
    return [
        Engine("cogitate", "bfloat16", ours),
        Engine("cogitate", "int8", ours),
        Engine("vllm", "bfloat16", (str(vllm), str(HERE / "peer_vllm.py")), _preloads(vllm)),
        Engine("vllm", "float32", (str(vllm), str(HERE / "peer_vllm.py")), _preloads(vllm)),
        Engine("transformers", "bfloat16", (str(transformers), str(HERE / "peer_transformers.py"))),
    ]


def _preloads(python: Path) -> dict[str, str]:
    """What vLLM's own guide preloads on a CPU, as far as it is there."""
    environment = python.parents[1]
    found = [
        *environment.glob("lib/libiomp5.so"),
        *Path("/usr/lib/x86_64-linux-gnu").glob("libtcmalloc_minimal.so.4"),
    ]
    return {"LD_PRELOAD": ":".join(map(str, found))} if found else {}


class Worker:
    """A running engine: one job at a time."""

    def __init__(self, engine: Engine, model: str, threads: int, log: Path) -> None:
        self.engine = engine
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [*engine.command, model, engine.dtype, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env={**os.environ, **engine.environment},
        )
        self._answer()  # it is ready

    def run(self, job: dict[str, Any]) -> dict[str, float]:
        """Runs a job and returns its timing. Raises RuntimeError when the engine is gone."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the engine."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.engine.label} ended; see {self._log.name}")
        answer: dict[str, float] = json.loads(line)
        return answer


def chosen(names: Sequence[str]) -> list[Engine]:
    """The engines of these labels, or all that are installed."""
    known = engines()
    if names:
        unknown = set(names) - {engine.label.replace(" ", ":") for engine in known}
        if unknown:
            raise SystemExit(f"unknown engines: {', '.join(sorted(unknown))}")
        return [engine for engine in known if engine.label.replace(" ", ":") in names]
    return [engine for engine in known if engine.is_installed]
