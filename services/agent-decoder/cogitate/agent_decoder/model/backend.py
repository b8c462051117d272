"""Chooses what runs a model: device, dtype, and the native step or torch; and names the build."""

from __future__ import annotations

import hashlib
import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from cogitate.agent_decoder.model import invariance
from cogitate.agent_decoder.model.llama import Llama, LlamaConfig
from cogitate.agent_decoder.model.looks import Tiles
from cogitate.agent_decoder.model.native import library
from cogitate.agent_decoder.model.native.runner import BLOCK_SIZE, NativeRunner, misfit
from cogitate.agent_decoder.model.runner import ModelRunner, TorchRunner

log = logging.getLogger(__name__)

# Under this many parameters float32 is fast enough on a CPU, and exact.
FP32_MAX_PARAMETERS = 50_000_000
# The files of a checkpoint that decide what it computes.
_MODEL_SUFFIXES = frozenset({".json", ".jinja", ".safetensors", ".gguf"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the configuration asks for."""

    device: str = "auto"  # auto, cpu, cuda
    dtype: str = "auto"  # auto, float32, bfloat16, int8
    step: str = "auto"  # auto, native, torch
    threads: int = 0  # 0: torch's own choice
    block_size: int = BLOCK_SIZE
    batch_invariant: str = "auto"  # auto, on, off: of torch; the native step always is


def choose_runner(
    config: LlamaConfig, weights: Mapping[str, torch.Tensor], wanted: Wanted
) -> ModelRunner:
    """Takes the native step where it fits. Raises ValueError if what is asked for cannot be had."""
    device = torch.device(wanted.device if wanted.device != "auto" else _best_device())
    obstacle = _native_obstacle(config, device, wanted)
    if obstacle and (wanted.step == "native" or wanted.dtype == "int8"):
        raise ValueError(f"the native step, which int8 needs, cannot run here: {obstacle}")
    if not obstacle:
        dtype = wanted.dtype if wanted.dtype != "auto" else _best_dtype(weights, native=True)
        threads = wanted.threads or torch.get_num_threads()
        try:
            return NativeRunner(config, weights, dtype=dtype, threads=threads)
        except library.Unavailable as error:
            if wanted.step == "native" or dtype == "int8":
                raise ValueError(f"the native step cannot run here: {error}") from None
            log.warning("the native step cannot run here, torch takes its place: %s", error)
    dtype = wanted.dtype if wanted.dtype != "auto" else _best_dtype(weights, native=False)
    if device.type == "cuda" and wanted.dtype == "auto":
        dtype = "bfloat16"
    llama = Llama(config, weights, dtype=getattr(torch, dtype), device=device)
    return TorchRunner(llama, tiles=_tiles(llama, wanted))


def _tiles(llama: Llama, wanted: Wanted) -> Tiles | None:
    """Fixed shapes, if they are wanted and keep what they are for. Raises ValueError."""
    auto = wanted.batch_invariant == "auto"
    if wanted.batch_invariant == "off" or (auto and llama.device.type != "cpu"):
        return None
    tiles, obstacle = invariance.find_tiles(llama)
    if tiles is not None:
        return tiles
    if not auto:
        raise ValueError(f"torch cannot be batch-invariant here: {obstacle}")
    log.warning("steps are not batch-invariant: %s", obstacle)
    return None


def build_digest(directory: Path, runner: ModelRunner) -> str:
    """Two engines with one digest continue each other's agents token for token."""
    facts = (torch.__version__, runner.device.type, platform.machine(), runner.build)
    return digest_of(directory, "|".join(facts))


def digest_of(directory: Path, facts: str) -> str:
    """The digest of our code, the model's files and what else decides the tokens."""
    made_of = hashlib.sha256()
    code = sorted(Path(__file__).resolve().parents[1].rglob("*.py"))
    files = sorted(p for p in directory.iterdir() if p.suffix in _MODEL_SUFFIXES)
    for path in (*code, *files):
        made_of.update(path.name.encode())
        with path.open("rb") as file:
            made_of.update(hashlib.file_digest(file, "sha256").digest())
    made_of.update(facts.encode())
    return f"sha256:{made_of.hexdigest()}"


def hardware(device: torch.device) -> str:
    """A short name of what the model runs on, such as "cpu-avx512" or "cuda-sm90"."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda-sm{major}{minor}"
    return f"cpu-{torch.backends.cpu.get_cpu_capability().lower().replace(' ', '-')}"


def _native_obstacle(config: LlamaConfig, device: torch.device, wanted: Wanted) -> str:
    """Why the native step is out of the question, as a phrase; empty if it is not."""
    if wanted.step == "torch":
        return "torch was asked for"
    if device.type != "cpu":
        return f"the device is {device.type}"
    if wanted.block_size != BLOCK_SIZE:
        return f"it has blocks of {BLOCK_SIZE} positions"
    return misfit(config)


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _best_dtype(weights: Mapping[str, torch.Tensor], *, native: bool) -> str:
    large = sum(w.numel() for w in weights.values()) > FP32_MAX_PARAMETERS
    fast = native or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return "bfloat16" if large and fast else "float32"
