"""Any chat model's format, from the template its checkpoint brings.

The template sees markers where people's texts would be. What it renders is cut at the markers and
at the model's control tokens, and the texts are put in: so a control token is always the
template's, whatever a text says, and the rest is tokenized in one piece as the model was trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cogitate.agent_decoder.core.transcript import ControlTokens
from cogitate.agent_decoder.model.sandbox import ChatMarkup
from cogitate.agent_decoder.model.templates import Image, Prompt, Text, Turn
from cogitate.agent_decoder.model.text_codec import TextCodec
from cogitate.kit.errors import InvalidRequest
from tokenizers import Tokenizer

# Private-use characters make a marker; the separators around it are spaces to `strip` and to
# nothing else, so what is left of them tells whether the template strips the text.
_MARKER = re.compile("(\x1f?)\ue0f0([0-9]+)\ue0f1(\x1f?)")
_RESERVED = re.compile("[\x1f\ue0f0\ue0f1]")
# How models that think before they answer close their thoughts.
_THINK, _THINK_END = "<think>", "</think>"


class ChatTemplate:
    """A Template (see `templates`) for conversations of text."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        source: str,
        *,
        end_token_ids: Sequence[int],
        tokenizer_config: Mapping[str, Any],
    ) -> None:
        """Raises ValueError if the checkpoint's template or tokenizer cannot be used."""
        if not source:
            raise ValueError("the checkpoint has no chat template (chat_template.jinja)")
        if _RESERVED.search(source):
            raise ValueError("the chat template has characters that are reserved here")
        self._codec = TextCodec(tokenizer)
        self._markup = ChatMarkup(source)
        self._names = {
            name: _token_text(tokenizer_config.get(name))
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        }
        if not end_token_ids:
            raise ValueError("the checkpoint does not say which token ends a turn (eos_token_id)")
        think_end = self._codec.added.get(_THINK_END, -1)
        self._takes_lists = False
        self._takes_lists = self._probe()
        self.marks_answers = think_end >= 0 and self._thinks()
        self.control = ControlTokens(
            end=frozenset(end_token_ids), answer=think_end if self.marks_answers else -1
        )
        self._silent = frozenset({think_end, self._codec.added.get(_THINK, -1)})
        self.max_token_chars = self._codec.max_token_chars
        self.image_token_id = 0  # images are refused before one is placed

    def prompt(self, turns: Sequence[Turn], *, instant: bool) -> Prompt:
        """Raises InvalidRequest if the model's template refuses such a conversation."""
        texts = [
            "\n".join(part.text for part in turn.parts if isinstance(part, Text)) for turn in turns
        ]
        marked = [
            {
                "role": turn.role,
                "content": self._content(f"\x1f\ue0f0{i}\ue0f1\x1f" if text else ""),
            }
            for i, (turn, text) in enumerate(zip(turns, texts, strict=True))
        ]
        try:
            rendered = self._render(marked, thinks=not instant)
        except ValueError as error:
            raise InvalidRequest(
                f"the model's template refuses the conversation: {error}", field="conversation"
            ) from None
        present = {int(found[2]) for found in _MARKER.finditer(rendered)}
        if absent := [i for i, text in enumerate(texts) if text and i not in present]:
            raise InvalidRequest(
                f"the model's template leaves out message {absent[0] + 1}, of the "
                f"{turns[absent[0]].role}; leave it out or say it otherwise",
                field="conversation",
            )
        return list(self._codec.encode_parts(_parts(rendered, texts)))

    def injection(self, parts: Sequence[Text | Image]) -> Prompt:
        """Lines of their own: chat models are not taught one format of results."""
        text = "\n".join(part.text for part in parts if isinstance(part, Text))
        return [
            *self.encode(f"\n{text}\n"),
            *(part for part in parts if isinstance(part, Image)),
        ]

    def encode(self, text: str) -> list[int]:
        return self._codec.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._codec.decode([t for t in token_ids if t not in self._silent])

    def num_image_tokens(self, image: Image) -> int:
        raise InvalidRequest("this model takes no images", field="conversation")

    def _render(self, messages: list[dict[str, Any]], *, thinks: bool) -> str:
        return self._markup.render(
            {
                **self._names,
                "messages": messages,
                "add_generation_prompt": True,
                "enable_thinking": thinks,
                "tools": None,
                "documents": None,
            }
        )

    def _content(self, text: str) -> Any:
        return [{"type": "text", "text": text}] if self._takes_lists else text

    def _probe(self) -> bool:
        """Whether contents must be lists of parts. Raises ValueError if neither form is shown."""
        why = "it does not show what the user says"
        for takes_lists in (False, True):
            self._takes_lists = takes_lists
            try:
                shown = self._render(
                    [{"role": "user", "content": self._content("\ue0f00\ue0f1")}], thinks=True
                )
            except ValueError as error:
                why = str(error)
                continue
            if "\ue0f00\ue0f1" in shown:
                return takes_lists
        raise ValueError(f"the chat template does not work: {why}")

    def _thinks(self) -> bool:
        """Whether the model thinks before it answers: it can be told not to, or has begun to."""
        message = {"role": "user", "content": self._content("\ue0f00\ue0f1")}
        opened = self._render([message], thinks=True)
        return opened.rstrip().endswith(_THINK) or opened != self._render([message], thinks=False)


def _parts(rendered: str, texts: Sequence[str]) -> list[tuple[str, bool]]:
    """Cuts at the markers: texts in order, each with whether it is the template's own."""
    parts: list[tuple[str, bool]] = []
    at = 0
    for found in _MARKER.finditer(rendered):
        parts.append((rendered[at : found.start()], True))
        text = texts[int(found[2])]
        text = text if found[1] else text.lstrip()
        parts.append((text if found[3] else text.rstrip(), False))
        at = found.end()
    parts.append((rendered[at:], True))
    return [(text, own) for text, own in parts if text]


def _token_text(value: Any) -> str:
    """A token is a text, or an object that has one."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""
