"""Agent-decoders forked from a process that has imported them: one that was killed is soon back.

They are the real service in processes of their own, with a socket each. Only two things are other
than in production: nothing is imported anew, and ``step_s`` slows each engine step down, so that a
model without weight worth speaking of writes at the pace of a large one.

    python -m tests.fakes.decoder_nursery

It reads commands as lines of JSON and answers each by a line: ``{"spawn": name, "arguments": [],
"log": file, "step_s": 0.005}``, or ``{"signal": number, "to": name}``, answered by the time on the
system's monotonic clock. It ends, and all its children with it, when its input does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]


class Nursery:
    """The owner's side. Use as a context manager; methods may be called by any thread."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.decoder_nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **self._environment},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)

    def spawn(self, name: str, arguments: Sequence[str], log: Path, step_s: float) -> None:
        """Starts an agent-decoder; it serves when its ready file is there."""
        self._ask(spawn=name, arguments=list(arguments), log=str(log), step_s=step_s)

    def signal(self, name: str, number: signal.Signals) -> float:
        """Signals one; returns when. One that is killed is gone when this returns."""
        return float(self._ask(signal=int(number), to=name))

    def _ask(self, **command: Any) -> str:
        assert self._process is not None
        with self._lock:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        assert answer, "the nursery died"
        return answer


def _tend() -> None:
    import torch  # noqa: F401  # what takes long
    from cogitate.agent_decoder import native_engine, server  # noqa: F401

    children: dict[str, int] = {}
    print("ready", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        if "spawn" in command:
            children[command["spawn"]] = _fork(command)
            at = time.monotonic()
        else:
            pid, number = children[command["to"]], command["signal"]
            at = time.monotonic()
            os.kill(pid, number)
            if number == signal.SIGKILL:
                os.waitpid(pid, 0)
                del children[command["to"]]
        print(at, flush=True)
    for pid in children.values():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _fork(command: Mapping[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    # The child never comes back from here.
    code = 1
    try:
        log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream, number in ((os.open(os.devnull, os.O_RDWR), 0), (log, 1), (log, 2)):
            os.dup2(stream, number)
        os.setpgid(0, 0)
        sys.argv = ["agent-decoder", *command["arguments"]]
        code = _serve(command["step_s"])
    finally:
        os._exit(code)


def _serve(step_s: float) -> int:
    from cogitate.agent_decoder.config import AgentDecoderConfig
    from cogitate.agent_decoder.model import loader
    from cogitate.agent_decoder.server import build
    from cogitate.kit import lifecycle

    if step_s:
        choose: Any = loader.choose_runner
        setattr(loader, "choose_runner", lambda *args: _Paced(choose(*args), step_s))  # noqa: B010
    return lifecycle.main("agent-decoder", AgentDecoderConfig, build)


class _Paced:
    """A model runner whose steps take a while longer."""

    def __init__(self, runner: Any, step_s: float) -> None:
        self._runner, self._step_s = runner, step_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def forward(self, chunks: Any) -> Any:
        time.sleep(self._step_s)
        return self._runner.forward(chunks)


if __name__ == "__main__":
    _tend()
