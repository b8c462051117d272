"""llama.cpp as a worker: a program of its own over its library (`llama_worker.cpp`)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.bench.decode.peers import LLAMA
from tests.bench.decode.worker import Job, Timing, memory, serve


class Llama:
    """Passes jobs on as lines of numbers; times are measured in the program."""

    def __init__(self, model: str, dtype: str, threads: int) -> None:
        self._program = subprocess.Popen(
            [LLAMA, str(Path(model)), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._line()  # it is ready

    def run(self, job: Job) -> Timing:
        """Runs one job. Raises RuntimeError when the program is gone."""
        numbers: list[object] = [job.agents, job.num_tokens, job.temperature, job.seed]
        numbers.append(len(job.prompts))
        for prompt in job.prompts:
            numbers += [len(prompt), *prompt]
        assert self._program.stdin is not None
        self._program.stdin.write(" ".join(map(str, numbers)) + "\n")
        self._program.stdin.flush()
        total_s, first_token_s = map(float, self._line().split())
        return Timing(total_s, first_token_s, memory(self._program.pid))

    def _line(self) -> str:
        assert self._program.stdout is not None
        if not (line := self._program.stdout.readline()):
            raise RuntimeError("llama_worker ended; its errors are in the log")
        return line


if __name__ == "__main__":
    serve(Llama)
