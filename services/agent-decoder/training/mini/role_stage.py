"""The last stage: roles, with what was learned before kept up.

It starts from the files that ship and changes the decoder's weights only: checking drafts takes
no eyes. So whoever has the repository can go on from here, without any of the stages before.
"""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from tokenizers import Tokenizer
from torch import Tensor

from mini.export import load_llama, write_weights
from mini.joint_stage import JointStage, Mix, Part
from mini.model import Decoder, ModelConfig
from mini.stage import Plan, rank_and_world, run
from mini.tasks import Tasks
from mini.traces import CROPS, Pool

ROLES: Mix = (
    Part("same", 48, 2.0),
    Part("audit", 48),
    Part("judge", 10),
    Part("role", 6, share=0.6),
    Part("again", 6, share=0.4),
    Part("search", 32, share=0.4),
    Part("long", 8, share=0.4),
    Part("medium", 8, share=0.2),
    Part("short", 10, share=0.25),
    Part("glance", 16, share=0.25),
    Part("scene", 24, share=0.15),
    Part("admit", 24, share=0.15),
    Part("match", 24, share=0.2),
    Part("order", 24, share=0.25),
    Part("swap", 12, share=0.25),
    Part("conclude", 8, share=0.15),
    Part("reckon", 16, share=0.2),
    Part("spell", 64, share=0.25),
    Part("item-1", 12, share=0.3),
    Part("item-2", 10, share=0.4),
    Part("item-3", 8, share=0.4),
    Part("item-4", 8, share=0.4),
    Part("item-5", 6, share=0.4),
    Part("item-instant", 8, share=0.2),
)


class ShippedEncoder:
    """The encoder as it ships, as a stage sees through it."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    def see(self, inputs: dict[Pool, Tensor]) -> dict[Pool, Tensor]:
        """Encodes views (n, 3, 64, 64) of each pool; nothing is learned through it."""
        x = torch.cat(list(inputs.values())).numpy()
        both = self.session.run(["whole", "crop"], {"pixel_values": np.ascontiguousarray(x)})
        whole, crop = (torch.from_numpy(one).split([*map(len, inputs.values())]) for one in both)
        return {pool: crop[i] if pool in CROPS else whole[i] for i, pool in enumerate(inputs)}


def train_roles(
    plan: Plan,
    config: ModelConfig,
    shipped: Path,
    tokenizer: Tokenizer,
    train: Tasks,
    dev: Tasks,
    path: Path,
) -> None:
    """Goes on from the `shipped` directory and puts the new weights there."""
    decoder = Decoder(config)
    load_llama(decoder, shipped / "model.safetensors")
    encoder = ShippedEncoder(shipped / "vision.onnx", torch.get_num_threads())
    for layer in decoder.layers:
        layer.compile(dynamic=True)
    stage = JointStage(decoder, encoder.see, tokenizer, train, dev, ROLES)
    run(plan, decoder, stage.losses, stage.measure, path)
    if rank_and_world()[0] == 0:
        write_weights(decoder, shipped)
