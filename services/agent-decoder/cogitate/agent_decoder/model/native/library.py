"""Builds the native step with the machine's C++ compiler, caches it, and loads it.

The shared library is named after what it was made of (sources, flags), so a change builds anew and
processes of different versions do not disturb each other. What is in the cache folder already needs
no compiler: an image is built with one and runs without.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

import torch

SOURCES: Final = Path(__file__).parent / "src"
# No -ffast-math: NaN must stay NaN, and sums keep their order.
_FLAGS: Final = ("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-ffp-contract=fast",
                 "-fno-math-errno", "-Wno-psabi")  # fmt: skip
_AVX512: Final = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma",
                  "-mprefer-vector-width=512")  # fmt: skip
# Best first. Those of the last two of AVX-512 take products by dot products of bytes and halves.
CAPABILITIES: Final = {
    "AVX512_BF16": (*_AVX512, "-mavx512vnni", "-mavx512bf16"),
    "AVX512_VNNI": (*_AVX512, "-mavx512vnni"),
    "AVX512": _AVX512,
    "AVX2": ("-mavx2", "-mfma"),
    "DEFAULT": (),
}  # fmt: skip
_BUILD_TIMEOUT_S: Final = 300


class Unavailable(Exception):
    """The native step cannot be had here; the text says why."""


class Config(ctypes.Structure):
    """CogitateConfig of step.cpp."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in (
            "hidden", "intermediate", "layers", "heads", "kv_heads", "head_dim", "vocab",
            "max_positions", "store", "head_store", "half_cache", "threads",
        )),
        ("eps", ctypes.c_float),
    )  # fmt: skip


class Step(ctypes.Structure):
    """CogitateStep of step.cpp; pointers as plain addresses."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in (
            "rows", "sequences", "logit_rows", "embedding_count",
        )),
        *((name, ctypes.c_void_p) for name in (
            "token_ids", "positions", "starts", "lengths", "table_offsets", "tables",
            "embedding_rows", "embeddings", "wanted", "logits",
        )),
    )  # fmt: skip


@cache
def capability() -> str:
    """The best instruction set of CAPABILITIES that this machine runs."""
    found = torch.backends.cpu.get_cpu_capability()
    if found != "AVX512":
        return found if found in CAPABILITIES else "DEFAULT"
    flags = _processor_flags()
    if "avx512_vnni" not in flags:
        return "AVX512"
    return "AVX512_BF16" if "avx512_bf16" in flags else "AVX512_VNNI"


def _processor_flags() -> frozenset[str]:
    """What Linux says the processor has; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    found = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(found.partition(":")[2].split())


def build(wanted: str = "") -> Path:
    """Builds the library for an instruction set, this machine's if none is named, unless it is
    there already. Raises Unavailable.
    """
    wanted = wanted or capability()
    made_of = hashlib.sha256(" ".join(_flags(wanted)).encode())
    for path in sorted(SOURCES.iterdir()):
        made_of.update(path.read_bytes())
    target = _folder() / f"step-{wanted.lower()}-{made_of.hexdigest()[:16]}.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / ".lock").open("w") as lock:
            # Decoders that start together build once.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                _compile(target, _flags(wanted))
    except OSError as error:
        raise Unavailable(f"its cache folder cannot be written ({type(error).__name__})") from None
    return target


@cache
def digest() -> str:
    """Names the built library by its bytes: compilers that differ may round differently."""
    return hashlib.sha256(build().read_bytes()).hexdigest()[:16]


@cache
def load() -> ctypes.CDLL:
    """Builds and loads the library, with the signatures of its functions. Raises Unavailable."""
    try:
        library = ctypes.CDLL(str(build()))
    except OSError as error:
        raise Unavailable("the built library cannot be loaded") from error
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.cogitate_new.restype = pointer
    signatures = {
        "dots_work": (),
        "new": (pointer,),
        "free": (pointer,),
        "set_matrix": (pointer, number, number, pointer, number),
        "set_vector": (pointer, number, number, pointer, ctypes.c_int64),
        "allocate": (pointer, number),
        "copy_blocks": (pointer, pointer, number),
        "step": (pointer, pointer),
        "sample": (pointer, pointer, pointer, number, number, *([pointer] * 10)),
    }
    for name, arguments in signatures.items():
        getattr(library, f"cogitate_{name}").argtypes = arguments
    if not library.cogitate_dots_work():
        raise Unavailable(f"this processor's dot products ({capability()}) are not as expected")
    return library


def _flags(wanted: str) -> tuple[str, ...]:
    return (*_FLAGS, *CAPABILITIES[wanted])


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cogitate" / "native"


def _compile(target: Path, options: tuple[str, ...]) -> None:
    """Compiles beside the target and renames: a build that is cut off leaves nothing half-made."""
    name = os.environ.get("CXX", "g++")
    if (compiler := shutil.which(name)) is None:
        raise Unavailable(f"there is no C++ compiler ({name}); install g++ or set CXX")
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / "step.so"
        command = [compiler, *options, str(SOURCES / "step.cpp"), "-o", str(made)]
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=_BUILD_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise Unavailable("the C++ compiler took too long") from None
        if done.returncode:
            raise Unavailable("the C++ compiler failed; CXX chooses another")
        made.replace(target)
