"""A random checkpoint for servers of chat completions, which calls `zoom` where it may.

What it writes is noise, of which every token depends on the words and on all pixels. Only behind
a question that tools are offered for it calls `zoom`, token for token: each token of the call has
an axis of the residual stream to itself, by which the head finds the next. All other tokens share
one more, by which the head leaves out what is no plain character.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from tests.fakes import vlm_checkpoint

CALLED = (0, 0, 500, 500)  # where it looks, in permille
# The whole call is one token, so that it is written in a single step.
CALL = '{"name": "zoom", "arguments": {"box": [0, 0, 50, 50]}}'
CHAIN = ("<ask>", "<tool_call>", CALL, "</tool_call>", "<end_of_utterance>")
# What is changed in the template: results come as plain text where they have no image.
EACH = "{% for line in message['content'] %}"
PLAIN = "{% if message['content'] is string %}{{message['content']}}{% else %}"
BEGINS = "{{ 'Assistant:' }}"
ANSWERED = "messages | selectattr('role', 'equalto', 'tool') | list"
ASKS = f"{{% if tools and not {ANSWERED} %}}<ask>{{% endif %}}"
IMAGE_TOKENS = vlm_checkpoint.NUM_TOKENS + 3  # and the marks around them


def write_checkpoint(directory: Path) -> None:
    """Writes it as `transformers` does. Its parser of calls is `hermes`."""
    # vLLM's kernels for processors want heads of 32 or more.
    model = vlm_checkpoint.write_checkpoint(
        directory, "Idefics3", heads=(3, 1), more_tokens=CHAIN[:-1]
    )
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    with torch.no_grad():
        plain = [
            i for token, i in tokenizer.get_vocab().items() if token.isascii() and len(token) < 4
        ]
        _teach(model, [tokenizer.token_to_id(token) for token in CHAIN], plain)
    model.save_pretrained(directory)
    template = vlm_checkpoint.TEMPLATE.replace(BEGINS, BEGINS + ASKS)
    template = template.replace(EACH, PLAIN + EACH)
    template = template.replace("{% endfor %}<end", "{% endfor %}{% endif %}<end")
    (directory / "chat_template.jinja").write_text(template)


def _teach(model: Any, chain: list[int], plain: list[int]) -> None:
    """Has each token of the chain followed by the next, and all others by plain ones."""
    text = model.model.text_model
    embeddings, head = text.embed_tokens.weight, model.lm_head.weight
    first = embeddings.shape[1] - len(chain)
    embeddings[:, first:] = head[:, first:] = 0.0
    text.norm.weight[first:] = 1.0
    model.model.connector.modality_projection.proj.weight[first:] = 0.0
    for layer in text.layers:
        layer.self_attn.o_proj.weight[first:] = layer.mlp.down_proj.weight[first:] = 0.0
    embeddings[:, first], head[:, first] = 1.0, -100.0
    head[plain, first] = 0.0
    for axis, (token, following) in enumerate(pairwise(chain), first + 1):
        embeddings[token] = 0.0
        embeddings[token, axis] = head[following, axis] = 100.0
