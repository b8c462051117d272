"""A random checkpoint of the SmolVLM kind, as `transformers` writes it, with tower and template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.fakes.chat_model import chat_tokenizer

SIDE_PX, PATCH_PX, SCALE = 64, 8, 2
NUM_TOKENS = (SIDE_PX // PATCH_PX // SCALE) ** 2
VOCAB, HIDDEN = 320, 96
MARKS = ("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>")
# SmolVLM's own, word for word.
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def write_checkpoint(
    directory: Path,
    kind: str = "SmolVLM",
    *,
    heads: tuple[int, int] = (6, 2),
    more_tokens: tuple[str, ...] = (),
    **vision: Any,
) -> Any:
    """Writes the directory and returns the model, in float32 and evaluation mode.

    ``heads`` are those of queries and of keys.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = chat_tokenizer((*MARKS, *more_tokens))
    image_id = tokenizer.token_to_id("<image>")
    torch.manual_seed(11)
    text = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=heads[0], num_key_value_heads=heads[1], max_position_embeddings=1024,
        rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.1,
    )  # fmt: skip
    shape = {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": SIDE_PX, "patch_size": PATCH_PX, **vision,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=shape, scale_factor=SCALE, image_token_id=image_id
    )
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:  # norms and biases begin as ones and zeros
                weight.copy_(torch.randn(weight.shape) * 0.3 + (1.0 if "norm" in name else 0.0))
            elif "vision" in name or "connector" in name:
                weight.mul_(4.0)  # so that features are of the size of embeddings
    model.save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    _write(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<end_of_utterance>",
            "pad_token": "<|im_end|>",
        },
    )
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    side = {"longest_edge": shape["image_size"]}
    _write(
        directory / "preprocessor_config.json",
        {
            "image_processor_type": f"{kind}ImageProcessor",
            "do_convert_rgb": True, "do_image_splitting": False, "do_normalize": True,
            "do_pad": True, "do_rescale": True, "do_resize": True, "rescale_factor": 1 / 255,
            "image_mean": [0.5, 0.4, 0.6], "image_std": [0.5, 0.25, 0.4], "resample": 1,
            "size": side, "max_image_size": side,
        },
    )  # fmt: skip
    processor = {"processor_class": f"{kind}Processor", "image_seq_len": NUM_TOKENS}
    _write(directory / "processor_config.json", processor)
    return model


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value))
