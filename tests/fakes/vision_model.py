"""A model directory with a vision tower of the real one's signature, small and untrained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HIDDEN = 8
SIDE_PX = 64


def write_model(
    root: Path, name: str = "tiny", *, outputs: tuple[str, str] = ("whole", "crop")
) -> Path:
    """Writes `root`/`name` and returns its path: 16 tokens for the whole, 4 for a crop."""
    folder = root / name
    folder.mkdir(parents=True)
    recipe = {"image_size": SIDE_PX, "mean": [0.5] * 3, "std": [0.25] * 3, "resample": "bilinear"}
    (folder / "preprocessor_config.json").write_text(json.dumps(recipe))
    nodes = []
    for output, kernel in ((outputs[0], 16), (outputs[1], 32)):
        nodes += [
            helper.make_node(
                "AveragePool",
                ["pixel_values"],
                [f"{output}_p"],
                kernel_shape=[kernel, kernel],
                strides=[kernel, kernel],
            ),
            helper.make_node("Reshape", [f"{output}_p", f"{output}_shape"], [f"{output}_r"]),
            helper.make_node("Transpose", [f"{output}_r"], [f"{output}_t"], perm=[0, 2, 1]),
            helper.make_node("MatMul", [f"{output}_t", "weight"], [output]),
        ]
    weight = np.random.default_rng(1).standard_normal((3, HIDDEN)).astype(np.float32)
    shapes = [(outputs[0], 16), (outputs[1], 4)]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["b", 3, 64, 64])],
        [
            helper.make_tensor_value_info(output, TensorProto.FLOAT, ["b", tokens, HIDDEN])
            for output, tokens in shapes
        ],
        [numpy_helper.from_array(weight, "weight")]
        + [
            numpy_helper.from_array(np.array([-1, 3, tokens], dtype=np.int64), f"{output}_shape")
            for output, tokens in shapes
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "vision.onnx"))
    return folder
