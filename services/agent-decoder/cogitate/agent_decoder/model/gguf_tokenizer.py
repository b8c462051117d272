"""A `tokenizers.Tokenizer` from a GGUF's metadata: byte-level BPE as the named families have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

# GGUF's tokenizer.ggml.token_type; others are ordinary.
_CONTROL, _USER_DEFINED = 3, 4
# Words as Llama 3 and Qwen2 cut them; they differ in how many digits stay together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = ("smollm", "llama-bpe", "qwen2", "gpt-2")


def make_tokenizer(fields: Mapping[str, Any]) -> Tokenizer:
    """Reads tokenizer.ggml.*. Raises ValueError for what is not known, by name."""
    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise ValueError(
            f"tokenizers of GGUF type {str(kind)[:32]!r} are not supported; there is: gpt2"
        )
    if pre not in PRE_TOKENIZERS:
        raise ValueError(
            f"the GGUF's pre-tokenizer {str(pre)[:32]!r} is not supported; "
            f"there is: {', '.join(PRE_TOKENIZERS)}"
        )
    tokens, merges = (_texts(fields, f"tokenizer.ggml.{name}") for name in ("tokens", "merges"))
    if not tokens or len(set(tokens)) != len(tokens):
        raise ValueError("the GGUF's tokens and merges are missing or damaged")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    try:
        # This library raises bare Exceptions, here for a merge of tokens that are not there.
        bpe = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre == "llama-bpe")
    except Exception:
        raise ValueError("the GGUF's merges do not fit its tokens") from None
    made = Tokenizer(bpe)
    made.pre_tokenizer = _pre_tokenizer(pre)
    made.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        made.normalizer = normalizers.NFC()
    _add_tokens(made, tokens, fields.get("tokenizer.ggml.token_type") or [])
    return made


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    if pre == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    words = Regex(_WORDS.format(digits="{1,3}" if pre == "llama-bpe" else ""))
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _add_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Control tokens are special; what a user defined is looked for in text but shown."""
    for token, kind in zip(tokens, types, strict=False):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])


def _texts(fields: Mapping[str, Any], name: str) -> list[str]:
    """A list of texts; empty if it is anything else."""
    value = fields.get(name)
    is_texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return value if is_texts and value is not None else []
