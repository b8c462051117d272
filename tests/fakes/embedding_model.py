"""A directory with a sentence-embedding model of the real ones' signature: words have vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace

UNKNOWN = "[UNK]"


def write_embedding_model(
    folder: Path,
    vectors: Mapping[str, Sequence[float]],
    *,
    pooled: bool = False,
    has_types: bool = True,
    positions: int = 0,
    input_name: str = "input_ids",
) -> Path:
    """Writes the model. A text's vector is the mean of its words', those unknown being zero.

    `pooled`: the output is the sentence's vector, else the tokens'. `positions`: the most tokens it
    takes, 0 for any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = [UNKNOWN, *vectors]
    size = len(next(iter(vectors.values())))
    table = np.array([[0.0] * size, *vectors.values()], dtype=np.float32)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    tokenizer.enable_padding(length=512)  # as exports have it
    tokenizer.save(str(folder / "tokenizer.json"))
    names = [input_name, "attention_mask", *(["token_type_ids"] if has_types else [])]
    output = "sentence_embedding" if pooled else "last_hidden_state"
    nodes = [helper.make_node("Gather", ["table", input_name], ["tokens"])]
    constants = [numpy_helper.from_array(table, "table")]
    last = "tokens"
    if positions:
        # Adds the positions' vectors, all zero: more tokens than there are do not fit.
        constants += [
            numpy_helper.from_array(np.zeros((positions, size), dtype=np.float32), "places"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "one"),
            numpy_helper.from_array(np.array(1, dtype=np.int64), "unit"),
            numpy_helper.from_array(np.array(0, dtype=np.int64), "zero"),
            numpy_helper.from_array(np.array(1, dtype=np.int64), "axis"),
        ]
        nodes += [
            helper.make_node("Shape", [input_name], ["shape"]),
            helper.make_node("Gather", ["shape", "axis"], ["length"]),
            helper.make_node("Range", ["zero", "length", "unit"], ["at"]),
            helper.make_node("Gather", ["places", "at"], ["placed"]),
            helper.make_node("Add", ["tokens", "placed"], ["sums"]),
        ]
        last = "sums"
    if pooled:
        nodes.append(helper.make_node("ReduceMean", [last], [output], axes=[1], keepdims=0))
    else:
        nodes.append(helper.make_node("Identity", [last], [output]))
    shape = ["b", size] if pooled else ["b", "t", size]
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "t"]) for name in names],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "model.onnx"))
    return folder
