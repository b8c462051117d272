"""How conversations, tool results and turns look as tokens, one class for each family.

Text of users, tools and images is untrusted: it is encoded without looking for control tokens, so
that ``<|end|>`` inside it is seven characters and not the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cogitate.agent_decoder.core.transcript import ControlTokens
from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Text:
    """Text of one message part."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image view: where its embeddings go. ``key`` names them; ``is_crop`` says which view."""

    key: str
    is_crop: bool


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation: who speaks ("system", "user", "assistant") and what."""

    role: str
    parts: tuple[Text | Image, ...]


# A prompt is token ids and images in order; the runtime puts embeddings in the images' places.
Prompt = list[int | Image]


class Template(Protocol):
    """What the engine needs to know of a model family's format."""

    control: ControlTokens
    image_token_id: int
    marks_answers: bool
    max_token_chars: int  # no token is longer: a text of n characters takes n / this tokens or more

    def prompt(self, turns: Sequence[Turn], *, instant: bool, tools: Sequence[str] = ()) -> Prompt:
        """The common prefix of all agents, up to where they begin to write.

        `tools` are the functions it may call, each as JSON; a model that was trained on some tools
        is not told of those.
        """
        ...

    def injection(self, parts: Sequence[Text | Image], *, instant: bool = False) -> Prompt:
        """A tool's result as the model sees it, up to where the agent goes on."""
        ...

    def encode(self, text: str) -> list[int]:
        """Untrusted text as tokens, never control tokens."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Tokens as text, control tokens left out."""
        ...

    def num_image_tokens(self, image: Image) -> int:
        """How many positions an image view takes."""
        ...


class MiniTemplate:
    """The embedded model's format: services/agent-decoder/cogitate/models/mini/README.md."""

    marks_answers = True

    def __init__(self, tokenizer: Tokenizer, own: dict[str, Any]) -> None:
        # Control strings in text stay text.
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.max_token_chars = max(map(len, tokenizer.get_vocab()), default=1)
        self._tokenizer = tokenizer
        self._ids = {
            name: _special(tokenizer, f"<|{name}|>")
            for name in (
                "begin end user assistant system image call run result end_result answer"
            ).split()
        }
        self.image_token_id = self._ids["image"]
        self.control = ControlTokens(
            end=frozenset({self._ids["end"]}),
            call=self._ids["call"],
            run=self._ids["run"],
            answer=self._ids["answer"],
        )
        self._image_tokens: dict[str, int] = dict(own["image_tokens"])
        self._trained_tools: frozenset[str] | None = (
            frozenset(own["trained_tools"]) if "trained_tools" in own else None
        )

    def prompt(self, turns: Sequence[Turn], *, instant: bool, tools: Sequence[str] = ()) -> Prompt:
        """Within a message the text comes before the images: the model was trained so."""
        prompt: Prompt = [self._ids["begin"]]
        told = self._tools_line(tools)
        last = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=-1)
        for i, turn in enumerate(turns):
            prompt.append(self._ids[turn.role])
            if turn.role == "assistant":
                prompt.append(self._ids["answer"])
            lines = [part.text for part in turn.parts if isinstance(part, Text)]
            prompt += self.encode("\n".join([*lines, told] if told and i == last else lines))
            prompt += [part for part in turn.parts if isinstance(part, Image)]
            prompt.append(self._ids["end"])
        prompt.append(self._ids["assistant"])
        if instant:
            prompt.append(self._ids["answer"])
        return prompt

    def _tools_line(self, tools: Sequence[str]) -> str:
        """Says how tools besides those it was trained on are called: `Tools: shop.price(item).`"""
        if self._trained_tools is None:
            return ""
        functions = [json.loads(tool)["function"] for tool in tools]
        told = [
            f"{one['name']}({', '.join(_parameters(one['parameters']))})"
            for one in functions
            if one["name"] not in self._trained_tools
        ]
        return f"Tools: {', '.join(told)}." if told else ""

    def injection(self, parts: Sequence[Text | Image], *, instant: bool = False) -> Prompt:
        prompt: Prompt = [self._ids["result"]]
        for part in parts:
            prompt += self.encode(part.text) if isinstance(part, Text) else [part]
        prompt.append(self._ids["end_result"])
        return prompt

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def num_image_tokens(self, image: Image) -> int:
        return self._image_tokens["crop" if image.is_crop else "whole"]


def _parameters(schema: Any) -> list[str]:
    """Names of parameters; none where the caller's schema is not that of an object."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return list(properties) if isinstance(properties, dict) else []


def _special(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise ValueError(f"the tokenizer has no {token}")
    return int(token_id)


TEMPLATES: dict[str, Callable[[Tokenizer, dict[str, Any]], Template]] = {"mini": MiniTemplate}
