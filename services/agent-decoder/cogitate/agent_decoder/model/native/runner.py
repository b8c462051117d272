"""Runs steps in the native library: packs the weights, lays out chunks as plain arrays.

A row's logits do not depend on what else is in the step: each is one chain of multiply-adds in a
fixed order (``src/matrix.h``, ``src/attention.h``). Test: ``tests/property/test_native_step.py``.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from itertools import accumulate, islice
from typing import Final

import numpy as np
import torch
from cogitate.agent_decoder.core.sampling import (
    CONFIDENCE_TOP_K,
    Row,
    Sampled,
    adjust_all,
)
from cogitate.agent_decoder.core.scheduler import Chunk
from cogitate.agent_decoder.core.work import Precision
from cogitate.agent_decoder.model.llama import LlamaConfig
from cogitate.agent_decoder.model.native import library

BLOCK_SIZE: Final = 16
_MAX_HEAD_DIM: Final = 256
_MAX_QUERIES_PER_KEY: Final = 16
# Bytes of a weight, by its store: bytes have a float32 scale for each 32.
_WEIGHT_BYTES: Final = (4.0, 2.0, 1.0 + 4 / 32, 2.0)
_STORES: Final = {"float32": 0, "bfloat16": 1, "int8": 2}
_EXACT: Final = 3  # bfloat16 whose products are taken in float32
# Kinds of cogitate_set_matrix and cogitate_set_vector.
_QKV, _OUT, _GATE_UP, _DOWN, _EMBED, _HEAD = range(6)
_INPUT_NORM, _POST_NORM, _QKV_BIAS, _QUERY_NORM, _KEY_NORM, _NORM, _COSINES, _SINES = range(8)


def misfit(config: LlamaConfig) -> str:
    """Why the native step cannot run a model of this shape, as a sentence; empty if it can."""
    if config.hidden_size % 16 or config.intermediate_size % 16 or config.head_dim % 16:
        return "its sizes are not multiples of 16"
    if config.head_dim > _MAX_HEAD_DIM:
        return f"its heads are larger than {_MAX_HEAD_DIM}"
    if config.num_heads > _MAX_QUERIES_PER_KEY * config.num_kv_heads:
        return f"more than {_MAX_QUERIES_PER_KEY} query heads share a key"
    return ""


class NativeRunner:
    """A model packed for the native step, with its KV cache. Frees both with itself."""

    batch_invariant = True
    device = torch.device("cpu")

    def __init__(
        self,
        config: LlamaConfig,
        weights: Mapping[str, torch.Tensor],
        *,
        dtype: str,
        threads: int,
    ) -> None:
        """dtype: float32, bfloat16 or int8, of weights; keys and values are bfloat16 but for
        float32. Raises library.Unavailable.
        """
        if reason := misfit(config):
            raise library.Unavailable(reason)
        self.config = config
        # The number of threads does not matter: whoever computes a result, its order is the same.
        self.build = f"native {library.digest()} {dtype}"
        self._library = library.load()
        store = _STORES[dtype]
        if dtype == "float32" and all(w.dtype is torch.bfloat16 for w in weights.values()):
            store = _EXACT  # nothing is lost, and half is read
        head_store = _STORES["bfloat16"] if dtype == "int8" else store
        cached = 4 if dtype == "float32" else 2
        self.precision = Precision(_WEIGHT_BYTES[store], _WEIGHT_BYTES[head_store], cached)
        shape = library.Config(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            layers=config.num_layers,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            vocab=config.vocab_size,
            max_positions=config.max_position_embeddings,
            store=store,
            # The table of tokens keeps more: a likeliest token is decided by small differences.
            head_store=head_store,
            half_cache=dtype != "float32",
            threads=threads,
            eps=config.rms_norm_eps,
        )
        self._model = self._library.cogitate_new(ctypes.byref(shape))
        weakref.finalize(self, self._library.cogitate_free, self._model)
        self._pack(weights)
        # Used again step by step: fresh memory costs more than it takes to sample from it.
        self._logits = torch.empty(0, config.vocab_size)

    # -- weights -----------------------------------------------------------------------------

    def _pack(self, weights: Mapping[str, torch.Tensor]) -> None:
        c = self.config
        for i in range(c.num_layers):
            self._pack_layer(i, weights)
        self._matrix(0, _EMBED, c.vocab_size, c.hidden_size, weights["model.embed_tokens.weight"])
        if not c.tie_word_embeddings:
            self._matrix(0, _HEAD, c.vocab_size, c.hidden_size, weights["lm_head.weight"])
        self._vector(0, _NORM, c.hidden_size, weights["model.norm.weight"])
        frequencies = torch.tensor(c.frequencies(), dtype=torch.float64)
        angles = torch.outer(torch.arange(c.max_position_embeddings).double(), frequencies)
        self._vector(0, _COSINES, angles.numel(), angles.cos())
        self._vector(0, _SINES, angles.numel(), angles.sin())

    def _pack_layer(self, i: int, weights: Mapping[str, torch.Tensor]) -> None:
        c = self.config
        layer = f"model.layers.{i}"
        attn, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        query, wide = c.num_heads * c.head_dim, c.intermediate_size
        both = query + 2 * c.num_kv_heads * c.head_dim
        qkv = [weights[f"{attn}.{p}_proj.weight"] for p in "qkv"]
        gate_up = [weights[f"{mlp}.{p}_proj.weight"] for p in ("gate", "up")]
        self._matrix(i, _QKV, both, c.hidden_size, *qkv)
        self._matrix(i, _OUT, c.hidden_size, query, weights[f"{attn}.o_proj.weight"])
        self._matrix(i, _GATE_UP, 2 * wide, c.hidden_size, *gate_up)
        self._matrix(i, _DOWN, c.hidden_size, wide, weights[f"{mlp}.down_proj.weight"])
        self._vector(i, _INPUT_NORM, c.hidden_size, weights[f"{layer}.input_layernorm.weight"])
        after = weights[f"{layer}.post_attention_layernorm.weight"]
        self._vector(i, _POST_NORM, c.hidden_size, after)
        if c.attention_bias:
            biases = torch.cat([weights[f"{attn}.{p}_proj.bias"] for p in "qkv"])
            self._vector(i, _QKV_BIAS, both, biases)
        if c.qk_norm:
            self._vector(i, _QUERY_NORM, c.head_dim, weights[f"{attn}.q_norm.weight"])
            self._vector(i, _KEY_NORM, c.head_dim, weights[f"{attn}.k_norm.weight"])

    def _matrix(self, layer: int, kind: int, rows: int, depth: int, *parts: torch.Tensor) -> None:
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        if whole.shape != (rows, depth):  # the library would read beyond its end
            raise ValueError("the weights have other shapes than the configuration says")
        if whole.dtype is not torch.bfloat16:
            whole = whole.float()
        whole = whole.cpu().contiguous()
        half = whole.dtype is torch.bfloat16
        self._library.cogitate_set_matrix(self._model, layer, kind, whole.data_ptr(), half)

    def _vector(self, layer: int, kind: int, size: int, values: torch.Tensor) -> None:
        if values.numel() != size:
            raise ValueError("the weights have other shapes than the configuration says")
        flat = values.float().cpu().contiguous().view(-1)
        self._library.cogitate_set_vector(self._model, layer, kind, flat.data_ptr(), flat.numel())

    # -- steps -------------------------------------------------------------------------------

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Maps the KV cache; what is never touched costs no memory. Raises MemoryError."""
        if block_size != BLOCK_SIZE:
            raise ValueError(f"the native step has blocks of {BLOCK_SIZE} positions")
        if not self._library.cogitate_allocate(self._model, num_blocks):
            raise MemoryError(f"no room for a KV cache of {num_blocks} blocks")

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies blocks, in order."""
        flat = np.array(pairs, dtype=np.int32)
        self._library.cogitate_copy_blocks(self._model, flat.ctypes.data, len(pairs))

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Computes the chunks."""
        if len(chunks) > len(self._logits):
            self._logits = torch.empty(len(chunks), self.config.vocab_size)
        logits = self._logits[: len(chunks)]
        step, _kept = _lay_out(chunks, logits)
        self._library.cogitate_step(self._model, ctypes.byref(step))
        return logits

    # -- sampling ----------------------------------------------------------------------------

    def sample(self, logits: torch.Tensor, rows: Sequence[Row]) -> Sampled:
        """Draws in float, sums in double."""
        logits = logits.contiguous()
        adjusted = adjust_all(logits, rows)
        num_top = min(CONFIDENCE_TOP_K, self.config.vocab_size)
        params = [row.params for row in rows]
        whole = np.zeros((2, len(rows)), dtype=np.int32)  # top-k, tokens
        whole[0] = [each.top_k for each in params]
        # temperatures, draws, top-p, min-p; log probabilities, confidences
        numbers = np.empty((6, len(rows)), dtype=np.float64)
        numbers[0] = [each.temperature for each in params]
        numbers[1] = [row.draw for row in rows]
        numbers[2] = [each.top_p for each in params]
        numbers[3] = [each.min_p for each in params]
        top_logprobs = np.empty((len(rows), num_top), dtype=np.float32)
        top_ids = np.empty((len(rows), num_top), dtype=np.int32)
        lines = [numbers.ctypes.data + i * numbers.strides[0] for i in range(6)]
        self._library.cogitate_sample(
            self._model, logits.data_ptr(), adjusted.data_ptr(), len(rows), num_top, *lines[:4],
            whole.ctypes.data, whole.ctypes.data + whole.strides[0], *lines[4:],
            top_logprobs.ctypes.data, top_ids.ctypes.data,
        )  # fmt: skip
        top: list[tuple[list[int], list[float]]] = [([], [])] * len(rows)
        for i, row in enumerate(rows):
            if count := row.params.logprobs:
                top[i] = top_ids[i, :count].tolist(), top_logprobs[i, :count].tolist()
        return Sampled(whole[1].tolist(), numbers[4].tolist(), numbers[5].tolist(), top)


def _lay_out(
    chunks: Sequence[Chunk], logits: torch.Tensor
) -> tuple[library.Step, tuple[np.ndarray, np.ndarray | None]]:
    """The chunks as a library.Step, in order, and the arrays that must outlive its use.

    All whole numbers are one array: making one of a list costs as much as filling it.
    """
    token_ids: list[int] = []
    positions: list[int] = []
    starts: list[int] = []
    table_offsets: list[int] = []
    tables: list[int] = []
    embedding_rows: list[int] = []
    embeddings: list[np.ndarray] = []
    for chunk in chunks:
        sequence = chunk.sequence
        starts.append(len(token_ids))
        table_offsets.append(len(tables))
        tables += sequence.block_table
        positions += range(sequence.num_computed, sequence.num_computed + chunk.length)
        for position in islice(sequence.pending, chunk.length):
            if position.embedding is not None:
                embedding_rows.append(len(token_ids))
                embeddings.append(position.embedding)
            token_ids.append(position.token_id)
    lengths = [chunk.length for chunk in chunks]
    wanted = [start + length - 1 for start, length in zip(starts, lengths, strict=True)]
    parts = (token_ids, positions, starts, lengths, table_offsets, wanted, embedding_rows, tables)
    numbers = np.array([number for part in parts for number in part], dtype=np.int32)
    first, size = numbers.ctypes.data, numbers.itemsize
    addresses = [first + size * end for end in accumulate(map(len, parts), initial=0)]
    stacked = np.ascontiguousarray(np.stack(embeddings), np.float32) if embeddings else None
    step = library.Step(
        rows=len(token_ids),
        sequences=len(chunks),
        logit_rows=len(chunks),
        embedding_count=len(embeddings),
        token_ids=addresses[0],
        positions=addresses[1],
        starts=addresses[2],
        lengths=addresses[3],
        table_offsets=addresses[4],
        wanted=addresses[5],
        embedding_rows=addresses[6],
        tables=addresses[7],
        embeddings=stacked.ctypes.data if stacked is not None else None,
        logits=logits.data_ptr(),
    )
    return step, (numbers, stacked)
