"""A sentence-embedding model in ONNX Runtime: a text in, a vector of length 1 out. Blocks.

The directory is one that sentence-transformers or optimum export: ``model.onnx`` with the inputs
input_ids, attention_mask and maybe token_type_ids, each (1, tokens) int64, and ``tokenizer.json``.
Its output is a sentence's vector, (1, hidden), or the tokens' vectors, (1, tokens, hidden), which
are averaged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort  # type: ignore[import-untyped]
from cogitate.kit.config import ConfigError
from cogitate.kit.errors import EngineFailure
from tokenizers import Tokenizer

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Outputs by preference: BERT's pooler_output, which comes beside them, is no sentence's vector.
_OUTPUTS = ("sentence_embedding", "last_hidden_state", "token_embeddings")


class EmbeddingModel:
    """One loaded model. Not for several threads at once."""

    def __init__(self, directory: Path, max_tokens: int) -> None:
        """Loads and tries the longest text. Raises ConfigError with a sentence."""
        tokenizer, weights = directory / "tokenizer.json", directory / "model.onnx"
        if not (tokenizer.is_file() and weights.is_file()):
            raise ConfigError("embedding_model has no model.onnx or no tokenizer.json")
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(tokenizer))
        except Exception:
            raise ConfigError("tokenizer.json of embedding_model cannot be read") from None
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        try:
            self._session: Any = ort.InferenceSession(
                str(weights), _options(), ["CPUExecutionProvider"]
            )
        except Exception:
            raise ConfigError("model.onnx of embedding_model cannot be loaded") from None
        self._inputs = [each.name for each in self._session.get_inputs()]
        if strangers := set(self._inputs) - set(_INPUTS):
            raise ConfigError(f"model.onnx of embedding_model has an input {min(strangers)!r}")
        outputs = [each.name for each in self._session.get_outputs()]
        self._output = next((name for name in _OUTPUTS if name in outputs), outputs[0])
        try:
            self.embed("a " * max_tokens)
        except EngineFailure as error:
            raise ConfigError(
                f"embedding_model cannot embed a text of {max_tokens} tokens: {error}"
            ) from None

    def embed(self, text: str) -> tuple[float, ...]:
        """The text's vector; what is longer than allowed is cut. Raises EngineFailure."""
        try:
            encoded = self._tokenizer.encode(text)
            rows = (encoded.ids, encoded.attention_mask, encoded.type_ids)
            given = {
                name: np.array([row], dtype=np.int64)
                for name, row in zip(_INPUTS, rows, strict=True)
            }
            needed = {name: given[name] for name in self._inputs}
            [output] = self._session.run([self._output], needed)
        except Exception:
            raise EngineFailure("the model failed") from None
        return _unit(_pooled(output, given["attention_mask"]))


def _options() -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _pooled(output: npt.NDArray[Any], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(hidden,): the sentence's vector, or the mean of its tokens'. Raises EngineFailure."""
    if output.ndim == 2 and output.shape[0] == 1:
        return np.asarray(output[0], dtype=np.float64)
    if output.ndim == 3 and output.shape[:2] == mask.shape and mask.any():
        weights = mask[0, :, None] / mask.sum()
        return np.asarray((output[0].astype(np.float64) * weights).sum(axis=0))
    raise EngineFailure("the model's output is neither a sentence's vector nor its tokens'")


def _unit(vector: npt.NDArray[np.float64]) -> tuple[float, ...]:
    length = float(np.linalg.norm(vector))
    if not (np.isfinite(length) and length > 0):
        raise EngineFailure("the model's vector is not finite, or zero")
    # As the journal keeps it.
    return tuple((vector / length).astype(np.float32).tolist())
