"""What the engine needs of a model: compute a step's chunks, copy blocks, draw tokens.

``TorchRunner`` runs anywhere torch does and is the reference; ``native.runner`` is the fast one on
CPUs. Both are given the same chunks and are interchangeable but for the last bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from cogitate.agent_decoder.core.sampling import Row, Sampled, sample
from cogitate.agent_decoder.core.scheduler import Chunk
from cogitate.agent_decoder.core.work import Precision
from cogitate.agent_decoder.model.batch import build_step
from cogitate.agent_decoder.model.llama import Llama, LlamaConfig
from cogitate.agent_decoder.model.looks import Tiles


class ModelRunner(Protocol):
    """Weights and their KV cache. Used by one thread at a time."""

    config: LlamaConfig
    device: torch.device
    build: str  # what else than code and files decides its last bits: kernels, dtype, threads
    precision: Precision  # bytes of its numbers
    batch_invariant: bool  # whether a row's logits are bit-equal whatever else is in the step

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Makes the KV cache, once, before the first step."""
        ...

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies blocks (from, to), in order."""
        ...

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Computes the chunks and writes their KV; logits (chunks, vocab) float32 on the CPU.

        Logits are those after each chunk's last position. They are valid until the next call.
        """
        ...

    def sample(self, logits: torch.Tensor, rows: Sequence[Row]) -> Sampled:
        """Draws one token a row. logits (B, vocab) float32 on the CPU."""
        ...


class TorchRunner:
    """The plain way, on any device."""

    def __init__(self, llama: Llama, *, tiles: Tiles | None = None) -> None:
        """tiles: shapes in which a row's numbers are its own, of ``invariance.find_tiles``."""
        self._llama, self._tiles = llama, tiles
        self.batch_invariant = tiles is not None
        self.config, self.device = llama.config, llama.device
        capability = torch.backends.cpu.get_cpu_capability()
        size = llama.dtype.itemsize
        self.precision = Precision(size, size, size)
        self.build = f"torch {llama.dtype} {capability} {torch.get_num_threads()} {tiles}"
        self._cache: list[torch.Tensor] = []
        self._block_size = self._num_slots = 0

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Makes the KV cache."""
        self._block_size, self._num_slots = block_size, num_blocks * block_size
        self._cache = self._llama.new_cache(self._num_slots)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies blocks, all at once."""
        offsets = torch.arange(self._block_size, device=self.device)
        ends = torch.tensor(pairs, device=self.device) * self._block_size
        sources = (ends[:, :1] + offsets).reshape(-1)
        targets = (ends[:, 1:] + offsets).reshape(-1)
        for layer in self._cache:
            layer[targets] = layer[sources]

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Computes the chunks."""
        step = build_step(chunks, self._block_size, self._num_slots, self.device, tiles=self._tiles)
        # Sampling is done on the CPU, so that a draw is the same whatever the model runs on.
        return self._llama.forward(step, self._cache).cpu()

    def sample(self, logits: torch.Tensor, rows: Sequence[Row]) -> Sampled:
        """Draws in float64."""
        return sample(logits, rows)
