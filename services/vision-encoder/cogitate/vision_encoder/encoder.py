"""The device: one model's vision tower in ONNX Runtime. Everything here blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort  # type: ignore[import-untyped]
import PIL
from cogitate.kit.config import ConfigError
from cogitate.vision_encoder.core.digests import digest_of
from cogitate.vision_encoder.core.preprocess import BadPreprocessor, Pixels, Preprocess, parse
from cogitate.vision_encoder.core.types import Embedding, Kind

INPUT = "pixel_values"
_PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
# The GPU wheel lists CUDA wherever it is installed, and complains loudly where no GPU is.
_GPU_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
_PROBE_SEED = 20_240_229


@dataclass(frozen=True)
class Item:
    """One view to encode: (3, size, size) float32 and the output that is wanted."""

    pixels: Pixels
    kind: Kind


class Encoder:
    """A loaded vision tower. Not for several threads at once.

    `num_tokens` says how many embeddings each kind of view gives; `is_exact` whether a view's bits
    are the same alone and in company, as far as a probe at the start could tell.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        providers: Sequence[str] = (),
        intra_op_threads: int = 1,
        max_batch: int = 1,
        exact: bool = True,
    ) -> None:
        """Loads and probes. Raises ConfigError if the directory does not hold a vision tower."""
        self.name = name
        try:
            recipe = (directory / "preprocessor_config.json").read_bytes()
            weights = (directory / "vision.onnx").read_bytes()
            self.recipe: Preprocess = parse(json.loads(recipe))
        except OSError:
            raise ConfigError(f"the model {name!r} has no vision tower") from None
        except ValueError as error:
            said = error if isinstance(error, BadPreprocessor) else "not JSON"
            raise ConfigError(f"preprocessor_config.json of {name!r}: {said}") from None
        self._session = _open(name, weights, chosen_providers(providers), intra_op_threads)
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self.num_tokens, self.num_hidden, probed = self._probe_shapes()
        # All that may change a bit of an embedding; the probe's own bits stand for the rest of it:
        # device, instruction set, threads.
        versions = f"{ort.__version__} {PIL.__version__} {np.__version__} {self.providers[0]}"
        self.build_digest = digest_of((weights, recipe, versions.encode(), probed))
        self.is_exact = max_batch == 1 or self._probe_exactness(max_batch)
        self._max_batch = max_batch if self.is_exact or not exact else 1

    def encode(self, items: Sequence[Item]) -> list[Embedding | None]:
        """Returns for each view (tokens, hidden) float32, or None if it is not all finite."""
        results: list[Embedding | None] = []
        for start in range(0, len(items), self._max_batch):
            results += self._run(items[start : start + self._max_batch])
        return results

    def _run(self, items: Sequence[Item]) -> list[Embedding | None]:
        kinds = sorted({item.kind for item in items}, key=lambda kind: kind.value)
        outputs = self._session.run(
            [kind.value for kind in kinds], {INPUT: np.stack([item.pixels for item in items])}
        )
        of_kind = dict(zip(kinds, outputs, strict=True))
        return [self.checked(of_kind[item.kind][at], item.kind) for at, item in enumerate(items)]

    def num_bytes(self, kind: Kind) -> int:
        """Size of an embedding."""
        return self.num_tokens[kind] * self.num_hidden * 4

    def checked(self, row: npt.NDArray[Any], kind: Kind) -> Embedding | None:
        """Returns a copy of one view's rows, or None if they cannot be its embedding."""
        if row.dtype != np.float32 or row.shape != (self.num_tokens[kind], self.num_hidden):
            return None
        # A copy, or one view's row would keep the whole batch in memory.
        return np.array(row, dtype="<f4", order="C") if np.isfinite(row).all() else None

    def _probe_shapes(self) -> tuple[dict[Kind, int], int, bytes]:
        inputs = [put.name for put in self._session.get_inputs()]
        outputs = {put.name for put in self._session.get_outputs()}
        if inputs != [INPUT] or not {kind.value for kind in Kind} <= outputs:
            raise ConfigError(f"vision.onnx of {self.name!r} must map {INPUT} to whole and crop")
        names = [kind.value for kind in Kind]
        rows = self._session.run(names, {INPUT: self._probe(1)})
        if any(row.ndim != 3 or row.shape[0] != 1 for row in rows):
            raise ConfigError(f"vision.onnx of {self.name!r} must give (views, tokens, hidden)")
        hidden = {row.shape[2] for row in rows}
        if len(hidden) != 1:
            raise ConfigError(f"vision.onnx of {self.name!r} gives two sizes of embeddings")
        num_tokens = {kind: row.shape[1] for kind, row in zip(Kind, rows, strict=True)}
        return num_tokens, hidden.pop(), b"".join(row.tobytes() for row in rows)

    def _probe_exactness(self, max_batch: int) -> bool:
        names = [kind.value for kind in Kind]
        pixels = self._probe(max_batch)
        alone = [self._session.run(names, {INPUT: view[None]}) for view in pixels]
        for size in {2, 3, max_batch // 2, max_batch} - {0, 1}:
            together = self._session.run(names, {INPUT: pixels[:size]})
            for at in range(min(size, max_batch)):
                if any(
                    row[at].tobytes() != own[0].tobytes()
                    for row, own in zip(together, alone[at], strict=True)
                ):
                    return False
        return True

    def _probe(self, num_views: int) -> Pixels:
        side = self.recipe.image_size_px
        random = np.random.default_rng(_PROBE_SEED)
        return random.standard_normal((num_views, 3, side, side), dtype=np.float32)


def chosen_providers(wanted: Sequence[str]) -> list[str]:
    """Returns ONNX Runtime's names for what to run on, CPU always last."""
    available = ort.get_available_providers()
    if not wanted:
        has_gpu = any(device.exists() for device in _GPU_DEVICES)
        names = ["cuda"] if has_gpu and _PROVIDERS["cuda"] in available else []
    else:
        names = [name.lower() for name in wanted if name.lower() != "cpu"]
    for name in names:
        if _PROVIDERS.get(name) not in available:
            raise ConfigError(f"the execution provider {name!r} is not available here")
    return [_PROVIDERS[name] for name in [*names, "cpu"]]


def _open(name: str, weights: bytes, providers: list[str], threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin while they wait would take the cores from the decoders beside them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(weights, options, providers=providers)
    except Exception:
        raise ConfigError(f"vision.onnx of {name!r} cannot be loaded") from None
