"""Any chat model's format, from the template its checkpoint brings.

The template sees markers where people's texts would be. What it renders is cut at the markers and
at the model's control tokens, and the texts are put in: so a control token is always the
template's, whatever a text says, and the rest is tokenized in one piece as the model was trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
# How models that call tools put a call: Hermes, Qwen, SmolLM and their kin.
_CALL, _CALL_END = "<tool_call>", "</tool_call>"


# What stands for an image in what a template renders, and what belongs around its embeddings.
_IMAGE, _BEFORE_IMAGE, _AFTER_IMAGE = (
    "<image>", "<fake_token_around_image><global-img>", "<fake_token_around_image>"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drawn:
    """A piece of a rendered conversation: text, and whether it is the template's own."""

    text: str
    is_own: bool


class ChatTemplate:
    """A Template (see `templates`) for conversations of text and, where it has them, images."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        source: str,
        *,
        end_token_ids: Sequence[int],
        tokenizer_config: Mapping[str, Any],
        image_tokens: Mapping[str, int] | None = None,
    ) -> None:
        """Raises ValueError if the checkpoint's template or tokenizer cannot be used.

        `image_tokens` says how many positions a view takes, "whole" and "crop"; None: no images.
        """
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
        self.calls_tools = self._calls_tools()
        self.control = self._control_tokens(end_token_ids, think_end)
        self._silent = frozenset({think_end, self._codec.added.get(_THINK, -1)})
        self.max_token_chars = self._codec.max_token_chars
        self._image_tokens = dict(image_tokens or {})
        # Without a tower images are refused before one is placed.
        self.image_token_id = self._codec.added.get(_IMAGE, 0)
        if self._image_tokens:
            self._check_images()

    def prompt(self, turns: Sequence[Turn], *, instant: bool, tools: Sequence[str] = ()) -> Prompt:
        """Raises InvalidRequest if the model's template refuses such a conversation."""
        texts: list[str] = []
        images: list[Image] = []
        owners: list[int] = []  # of each text, its turn
        marked = []
        for number, turn in enumerate(turns):
            contents: list[dict[str, str]] = []
            for part in _joined(turn.parts, self._image_tokens):
                if isinstance(part, Image):
                    images.append(part)
                    contents.append({"type": "image"})
                    continue
                marker = f"\x1f\ue0f0{len(texts)}\ue0f1\x1f" if part.text else ""
                contents.append({"type": "text", "text": marker})
                texts.append(part.text)
                owners.append(number)
            marked.append({"role": turn.role, "content": self._content(contents)})
        names = [_tool_mark(len(texts) + i) for i in range(len(tools) if self.calls_tools else 0)]
        try:
            rendered = self._render(marked, thinks=not instant, tools=names)
        except ValueError as error:
            raise InvalidRequest(
                f"the model's template refuses the conversation: {error}", field="conversation"
            ) from None
        present = {int(found[2]) for found in _MARKER.finditer(rendered)}
        if absent := [owners[i] for i, text in enumerate(texts) if text and i not in present]:
            raise InvalidRequest(
                f"the model's template leaves out message {absent[0] + 1}, of the "
                f"{turns[absent[0]].role}; leave it out or say it otherwise",
                field="conversation",
            )
        return self._encoded(_parts(rendered, [*texts, *tools]), images)

    def injection(self, parts: Sequence[Text | Image], *, instant: bool = False) -> Prompt:
        """A turn of the tool, as the template has it, and the beginning of the agent's next.

        Lines of their own for a model that is not taught to call tools.
        """
        text = "\n".join(part.text for part in parts if isinstance(part, Text))
        images = [part for part in parts if isinstance(part, Image)]
        own = [Drawn(_IMAGE, True)] * len(images)
        if not self.calls_tools:
            return self._encoded([Drawn(f"\n{text}\n", False), *own], images)
        before, after = self._tool_turn(thinks=not instant)
        drawn = [Drawn(before, True), Drawn(text, False), *own, Drawn(after, True)]
        return self._encoded(drawn, images)

    def encode(self, text: str) -> list[int]:
        return self._codec.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._codec.decode([t for t in token_ids if t not in self._silent])

    def num_image_tokens(self, image: Image) -> int:
        if not self._image_tokens:
            raise InvalidRequest("this model takes no images", field="conversation")
        return self._image_tokens["crop" if image.is_crop else "whole"]

    def _encoded(self, drawn: Iterable[Drawn], images: Sequence[Image]) -> Prompt:
        """Encodes what is drawn; the template's own image marks become the images, in order."""
        prompt: Prompt = []
        run: list[tuple[str, bool]] = []
        left = list(images)
        for piece in drawn:
            between = piece.text.split(_IMAGE) if piece.is_own and images else [piece.text]
            run.append((between[0], piece.is_own))
            for text in between[1:]:
                if not left:
                    raise InvalidRequest(
                        "the model's template shows more images than there are",
                        field="conversation",
                    )
                run.append((_BEFORE_IMAGE, True))
                prompt += [*self._codec.encode_parts(run), left.pop(0)]
                run = [(_AFTER_IMAGE, True), (text, True)]
        if left:
            raise InvalidRequest(
                "the model's template leaves out an image; put images in messages of the user",
                field="conversation",
            )
        return [*prompt, *self._codec.encode_parts(run)]

    def _check_images(self) -> None:
        """Raises ValueError if the tokens for images are missing, or the template shows none."""
        around = ("<fake_token_around_image>", _IMAGE)
        if absent := [token for token in around if token not in self._codec.added]:
            raise ValueError(f"the tokenizer has no {absent[0]}, which images need")
        sizes = [self._image_tokens.get(view, 0) for view in ("whole", "crop")]
        if not self._takes_lists or any(type(n) is not int or n < 1 for n in sizes):
            raise ValueError("config.json does not say how many positions an image takes")
        user = Turn("user", (Image("", False), Text("what")))
        if sum(isinstance(item, Image) for item in self.prompt([user], instant=False)) != 1:
            raise ValueError("the chat template does not show images")

    def _control_tokens(self, end_token_ids: Sequence[int], think_end: int) -> ControlTokens:
        """What structures a turn; marks of calls are tokens where both are, else text."""
        ends = frozenset(end_token_ids)
        answer = think_end if self.marks_answers else -1
        if not self.calls_tools:
            return ControlTokens(end=ends, answer=answer)
        call, run = (self._codec.added.get(mark, -1) for mark in (_CALL, _CALL_END))
        if min(call, run) >= 0:
            return ControlTokens(end=ends, answer=answer, call=call, run=run, calls_in_answer=True)
        return ControlTokens(
            end=ends, answer=answer, call_mark=_CALL, run_mark=_CALL_END, calls_in_answer=True
        )

    def _calls_tools(self) -> bool:
        """Whether the template shows tools, teaches this format, and has turns for results."""
        try:
            shown = self._render([self._probed()], thinks=True, tools=[_tool_mark(7)])
            self._tool_turn(thinks=True)
        except ValueError:
            return False
        return _tool_mark(7) in shown and _CALL in shown

    def _tool_turn(self, *, thinks: bool) -> tuple[str, str]:
        """What the template puts around a tool's result, after an agent's call. Raises ValueError.

        It begins with the end of the agent's turn and ends with the beginning of the next.
        """
        roles = ("user", "assistant", "tool")
        messages = [
            {"role": role, "content": self._content([{"type": "text", "text": _tool_mark(i)}])}
            for i, role in enumerate(roles)
        ]
        rendered = self._render(messages, thinks=thinks)
        at = {int(found[2]): found for found in _MARKER.finditer(rendered)}
        if sorted(at) != [0, 1, 2] or at[1].end() > at[2].start():
            raise ValueError("it has no turns of tools")
        return rendered[at[1].end() : at[2].start()], rendered[at[2].end() :]

    def _render(
        self, messages: list[dict[str, Any]], *, thinks: bool, tools: Sequence[str] = ()
    ) -> str:
        """What the template makes of it. Tools are marks, and so are texts."""
        rendered = self._markup.render(
            {
                **self._names,
                "messages": messages,
                "add_generation_prompt": True,
                "enable_thinking": thinks,
                "tools": list(tools) or None,
                "documents": None,
            }
        )
        for mark in tools:  # as JSON a mark is a string, a tool an object
            rendered = rendered.replace(f'"{mark}"', mark)
        return rendered

    def _content(self, contents: list[dict[str, str]]) -> Any:
        """Contents as the template takes them; one that takes no lists is given no images."""
        return contents if self._takes_lists else "".join(one.get("text", "") for one in contents)

    def _probed(self) -> dict[str, Any]:
        content = self._content([{"type": "text", "text": "\ue0f00\ue0f1"}])
        return {"role": "user", "content": content}

    def _probe(self) -> bool:
        """Whether contents must be lists of parts. Raises ValueError if neither form is shown."""
        why = "it does not show what the user says"
        for takes_lists in (False, True):
            self._takes_lists = takes_lists
            try:
                shown = self._render([self._probed()], thinks=True)
            except ValueError as error:
                why = str(error)
                continue
            if "\ue0f00\ue0f1" in shown:
                return takes_lists
        raise ValueError(f"the chat template does not work: {why}")

    def _thinks(self) -> bool:
        """Whether the model thinks before it answers: it can be told not to, or has begun to."""
        message = self._probed()
        opened = self._render([message], thinks=True)
        return opened.rstrip().endswith(_THINK) or opened != self._render([message], thinks=False)


def _tool_mark(number: int) -> str:
    return f"\ue0f0{number}\ue0f1"


def _joined(parts: Iterable[Text | Image], image_tokens: Mapping[str, int]) -> list[Text | Image]:
    """Texts beside each other as lines of one; images are left out where there is no tower."""
    joined: list[Text | Image] = []
    for part in parts:
        if isinstance(part, Text) and joined and isinstance(joined[-1], Text):
            joined[-1] = Text(f"{joined[-1].text}\n{part.text}")
        elif isinstance(part, Text) or image_tokens:
            joined.append(part)
    return joined or [Text("")]


def _parts(rendered: str, texts: Sequence[str]) -> list[Drawn]:
    """Cuts at the markers."""
    parts: list[Drawn] = []
    at = 0
    for found in _MARKER.finditer(rendered):
        parts.append(Drawn(rendered[at : found.start()], True))
        text = texts[int(found[2])]
        text = text if found[1] else text.lstrip()
        parts.append(Drawn(text if found[3] else text.rstrip(), False))
        at = found.end()
    parts.append(Drawn(rendered[at:], True))
    return [part for part in parts if part.text]


def _token_text(value: Any) -> str:
    """A token is a text, or an object that has one."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""
