"""Texts of any kind through a tokenizer: never a control token, and nothing lost."""

from __future__ import annotations

from functools import cache

import pytest
from cogitate.agent_decoder.model.text_codec import TextCodec
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.fakes.chat_model import CONTROL, chat_tokenizer

pytestmark = pytest.mark.property

EXTRA = ("<think>", "</think>", "<tool_call>")
pieces = st.one_of(st.sampled_from([*CONTROL, *EXTRA, "the", " ", "\n"]), st.text(max_size=8))
texts = st.lists(pieces, max_size=12).map("".join)


@cache
def by_bytes() -> TextCodec:
    return TextCodec(chat_tokenizer(EXTRA))


@cache
def by_words() -> TextCodec:
    """As Llama 2 has it: a mark for each space, bytes for what is unknown, a space in front."""
    letters = [chr(c) for c in range(97, 123)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *letters, "▁a"]
    made = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[("▁", "a")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    return TextCodec(made)


@given(texts)
def test_text_makes_no_control_token_and_comes_back(text: str) -> None:
    codec = by_bytes()
    ids = codec.encode(text)
    assert not set(ids) & set(codec.added.values())
    assert codec.decode(ids) == text


@given(texts, texts)
def test_only_trusted_parts_have_control_tokens(trusted: str, text: str) -> None:
    codec = by_bytes()
    ids = list(codec.encode_parts([(trusted, True), (text, False), (trusted, True)]))
    alone = list(codec.encode_parts([(trusted, True)]))
    for token_id in codec.added.values():
        assert ids.count(token_id) == 2 * alone.count(token_id)


@given(texts.filter(lambda text: "▁" not in text and "�" not in text))
def test_pieces_make_the_whole_with_any_decoder(text: str) -> None:
    """Spaces at the front of a piece stay; the one the tokenizer itself puts there is seen."""
    codec = by_words()
    ids = codec.encode(text)
    assert codec.decode(ids) == (f" {text}" if text else "")
    if text.isascii():
        assert "".join(codec.decode([t]) for t in ids) == codec.decode(ids)


def test_a_tokenizer_that_makes_control_tokens_of_text_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<end>": 0, "a": 1}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    with pytest.raises(ValueError, match="control token"):
        TextCodec(tokenizer)
