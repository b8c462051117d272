"""A tokenizer that keeps control tokens and text apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

_LETTER = "a"


class TextCodec:
    """Encodes text as text, control tokens where they are meant, and decodes piece by piece.

    ``added`` has every token that the tokenizer would look for in raw text, by what it says.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises ValueError for a tokenizer that makes control tokens of plain text."""
        self.added: dict[str, int] = {
            token.content: token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
        }
        made: dict[str, Any] = json.loads(tokenizer.to_str())
        # Without added tokens nothing in a text is looked for; nothing is put around it, either.
        made |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        self._text = Tokenizer.from_str(json.dumps(made))
        self._whole = tokenizer
        longest_first = sorted(filter(None, self.added), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._ids = frozenset(self.added.values())
        special = tokenizer.get_added_tokens_decoder().items()
        self._hidden = frozenset(token_id for token_id, token in special if token.special)
        self.max_token_chars = max(map(len, tokenizer.get_vocab()), default=1)
        # Decoders other than ByteLevel treat the first token of a call in their own way, so they
        # are always given one before it.
        by_bytes = (made.get("decoder") or {}).get("type") == "ByteLevel"
        self._before = [] if by_bytes else self._text.encode(_LETTER, add_special_tokens=False).ids
        for content in longest_first:
            if self._ids.intersection(self.encode(content)):
                raise ValueError(
                    f"the tokenizer makes a control token of the text {content[:32]!r}"
                )

    def encode(self, text: str) -> list[int]:
        """Text as tokens, never control tokens."""
        ids: list[int] = self._text.encode(text, add_special_tokens=False).ids
        return ids

    def encode_parts(self, parts: Iterable[tuple[str, bool]]) -> Iterator[int]:
        """Encodes (text, may have control tokens) in order, text between control tokens at once."""
        run: list[str] = []
        for text, is_trusted in parts:
            at = 0
            for found in self._control.finditer(text) if is_trusted else ():
                run.append(text[at : found.start()])
                yield from self._encode_run(run)
                yield self.added[found[0]]
                run, at = [], found.end()
            run.append(text[at:])
        yield from self._encode_run(run)

    def _encode_run(self, run: Sequence[str]) -> list[int]:
        text = "".join(run)
        return self.encode(text) if text else []

    def decode(self, token_ids: Sequence[int]) -> str:
        """Tokens as text, control tokens left out. Pieces decoded one by one make the whole."""
        ids = [t for t in token_ids if t not in self._hidden]
        if not ids:
            return ""
        text: str = self._whole.decode([*self._before, *ids], skip_special_tokens=True)
        return text[len(_LETTER) :] if self._before else text
