"""vLLM's own server of chat completions, a process in an environment that has it.

`COGITATE_TEST_VLLM` names that environment's Python, as for `tests.fakes.vllm_decoder`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fakes import vllm_decoder

START_S = 200.0


@contextmanager
def running(folder: Path, model: str, *flags: str) -> Iterator[str]:
    """Serves a checkpoint under that name, with more flags of vLLM's; gives the base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [
        vllm_decoder.python(model), "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(folder), "--served-model-name", model, "--host", "127.0.0.1",
        "--port", str(port), "--dtype", "float32", "--enforce-eager",
        "--max-num-batched-tokens", "2048", *flags,
    ]  # fmt: skip
    with vllm_decoder.started(command, environment) as process:
        _wait(process, f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1"


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    ends = time.monotonic() + START_S
    while time.monotonic() < ends:
        assert process.poll() is None, "the server ended while it started"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"the server does not answer after {START_S:g} s")
