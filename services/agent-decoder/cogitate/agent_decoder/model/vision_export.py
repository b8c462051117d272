"""Makes of a checkpoint's vision tower what the vision-encoder serves. Done once, at import.

Writes `vision.onnx`, which maps `pixel_values` to `whole` and `crop`, `preprocessor_config.json`
with the names that the vision-encoder reads beside the checkpoint's own, and into `config.json` how
many positions a view takes: by that the agent-decoder knows that images can be had.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from cogitate.agent_decoder.model.checkpoint import read_json
from cogitate.agent_decoder.model.families import TOWERS
from cogitate.agent_decoder.model.vision_tower import VisionConfig, VisionTower, read_tower

NEEDED = ("onnx", "onnxscript")
OPSET = 18
# One file of ONNX holds 2 GiB at most.
MAX_WEIGHT_BYTES = 2**31 - 2**20


def has_tower(directory: Path) -> bool:
    """Whether the checkpoint is of a kind that looks at images. Raises ValueError."""
    return read_json(directory, "config.json").get("model_type") in TOWERS


def missing_packages() -> list[str]:
    """What has to be installed before a tower can be exported."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def export_tower(source: Path, directory: Path, shape: VisionConfig) -> None:
    """Writes the tower of `source` into `directory`, which has its config.json already.

    Raises ValueError with a sentence if the checkpoint asks for what is not there.
    """
    recipe = preprocessing(read_json(source, "preprocessor_config.json"), shape)
    write_onnx(read_tower(source), shape, directory / "vision.onnx")
    _write(directory / "preprocessor_config.json", recipe)
    config = read_json(directory, "config.json")
    tokens = {"whole": shape.num_tokens, "crop": shape.num_tokens}
    config["cogitate"] = {"image_tokens": tokens}
    _write(directory / "config.json", config)


def preprocessing(given: Mapping[str, Any], shape: VisionConfig) -> dict[str, Any]:
    """The checkpoint's preprocessing with the vision-encoder's names. Raises ValueError."""
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if given.get(step, True) is not True:
            raise ValueError(f"preprocessor_config.json has no {step}, which is always done here")
    if abs(float(given.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-6:
        raise ValueError("preprocessor_config.json has a rescale_factor other than 1/255")
    largest = given.get("max_image_size") or {}
    side = largest.get("longest_edge", shape.image_size_px) if isinstance(largest, Mapping) else 0
    if side != shape.image_size_px:
        raise ValueError(
            f"preprocessor_config.json makes views of {side} pixels for a tower of "
            f"{shape.image_size_px}"
        )
    return {
        **given,
        "image_size": shape.image_size_px,
        "mean": given.get("image_mean", [0.5] * 3),
        "std": given.get("image_std", [0.5] * 3),
        "resample": given.get("resample", "lanczos"),
    }


def write_onnx(tower: VisionTower, shape: VisionConfig, path: Path) -> None:
    """Writes the tower as one file with float32 weights and any number of views."""
    if sum(4 * weight.numel() for weight in tower.parameters()) > MAX_WEIGHT_BYTES:
        raise ValueError("the vision tower is larger than the 2 GiB that one ONNX file can hold")
    import onnx

    views = torch.zeros(2, 3, shape.image_size_px, shape.image_size_px)
    with warnings.catch_warnings():
        # The exporter's own, about its dependencies and about packages it can do without.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            tower,
            (views,),
            input_names=["pixel_values"],
            output_names=["whole", "crop"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("views")}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "the exporter returns a program unless it was given a file"
    model = program.model_proto
    # Stack traces of the exporting machine.
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
