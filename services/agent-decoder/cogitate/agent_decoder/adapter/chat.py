"""From messages of the mesh to messages of the API, and what a server cannot do, refused.

An agent's own turn is rebuilt from what it wrote and was given: its text, its calls and their
results as messages of their own. What it wrote last, behind every result, is a message that the
server is to continue.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cogitate.agent_decoder import wire
from cogitate.agent_decoder.adapter.blobs import BlobFetcher
from cogitate.agent_decoder.adapter.pieces import CALL, RESULT, RUN, Pieces
from cogitate.agent_decoder.adapter.probe import Abilities
from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.agent_decoder.core.sampling import SamplingParams
from cogitate.agent_decoder.core.sequence import Agent, Position
from cogitate.agent_decoder.core.starts import (
    AgentStart,
    GangStart,
    InjectedPositions,
    SampledTokens,
)
from cogitate.agent_decoder.encoders import encoders_of
from cogitate.agent_decoder.model.templates import Image, Text
from cogitate.agent_decoder.rendering import BLIND, UNREAD, tool_text
from cogitate.agent_decoder.spelling import Speller
from cogitate.kit.errors import CogitateError, InvalidRequest
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import common_pb2 as common

Message = dict[str, Any]

# What stands in a tool's result for its image, and before the image itself.
FOLLOWS = "[the image is in the next message]"
SHOWN = "[what the tool showed]"

# Ids in a request mean nothing here: a server's vocabulary is its own.
ANY_VOCABULARY = 1 << 31


@dataclass(frozen=True, slots=True)
class ChatStart(GangStart):
    """A gang whose prefix is messages, which the server renders."""

    messages: tuple[Message, ...] = ()
    tools: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatParams(SamplingParams):
    """How one agent samples, with what the server and not the core sees to."""

    stops: tuple[str, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)


def messages_of(prefix: Sequence[Message], agent: Agent, pieces: Pieces) -> list[Message]:
    """The conversation as the agent has it now. An assistant's message at the end is unfinished."""
    messages, turn = list(prefix), _Turn()
    for position in agent.positions():
        if position.embedding is None:
            turn.add(position.token_id, pieces)
            continue
        messages += _result(position.embedding, turn.end(messages))
        turn = _Turn(turn.num_calls)
    turn.end(messages)
    return messages


def _result(result: Message, call_id: str) -> list[Message]:
    """A tool's result as messages. Its images follow from the user where tools may send none."""
    content = result["content"]
    if not call_id:
        return [{"role": "user", "content": content}]
    told = {"role": "tool", "tool_call_id": call_id, "content": content}
    if not result.get("images_apart"):
        return [told]
    told["content"] = "\n".join(part.get("text", FOLLOWS) for part in content)
    shown = [part for part in content if part["type"] == "image_url"]
    return [told, {"role": "user", "content": [{"type": "text", "text": SHOWN}, *shown]}]


class _Turn:
    """What an agent wrote between two results."""

    def __init__(self, num_calls: int = 0) -> None:
        self.num_calls = num_calls
        self._text: list[str] = []
        self._call: list[str] | None = None
        self._calls: list[str] = []

    def add(self, token_id: int, pieces: Pieces) -> None:
        if token_id == CALL:
            self._call = []
        elif token_id == RUN and self._call is not None:
            self._calls.append("".join(self._call))
            self._call = None
        else:
            into = self._text if self._call is None else self._call
            into.append(pieces.decode((token_id,)))

    def end(self, messages: list[Message]) -> str:
        """Adds the message, if there is anything in it; the id of its call, if it made one."""
        text, called = "".join(self._text), _function(self._calls)
        if called is None:
            # A call that was none stays text: the server may refuse what it did not make.
            text += "".join(self._calls)
        if not text and called is None:
            return ""
        message: Message = {"role": "assistant", "content": text}
        messages.append(message)
        if called is None:
            return ""
        self.num_calls += 1
        call_id = f"call_{self.num_calls}"
        message["tool_calls"] = [{"id": call_id, "type": "function", "function": called}]
        return call_id


def _function(calls: Sequence[str]) -> Message | None:
    try:
        (text,) = calls
        call = json.loads(text)
        return {"name": str(call["name"]), "arguments": json.dumps(call["arguments"])}
    except (ValueError, TypeError, KeyError):
        return None


class ChatRenderer:
    """A `GangRenderer` for a chat server."""

    def __init__(
        self,
        config: AgentDecoderConfig,
        abilities: Abilities,
        pieces: Pieces,
        blobs: BlobFetcher,
        build_digest: str,
    ) -> None:
        self._config, self._can, self._pieces = config, abilities, pieces
        self.speller = Speller(pieces.decode)
        self._blobs, self._build_digest = blobs, build_digest

    async def gang(self, gang: pb.OpenGang) -> GangStart:
        """The conversation with its images in place, the tools, and the agents."""
        if gang.tools and not self._can.tools:
            raise _lacks("calls of tools", "tools")
        messages = []
        for message, turn in zip(gang.conversation, wire.to_turns(gang.conversation), strict=True):
            images = wire.images_of(message.parts)
            content = await self._content(gang, turn.parts, images)
            messages.append({"role": turn.role, "content": content})
        size = sum(len(json.dumps(m["content"])) for m in messages)
        if size > self._config.openai_max_prompt_bytes:
            raise InvalidRequest(
                f"the conversation takes {size} bytes, this endpoint sends at most "
                f"{self._config.openai_max_prompt_bytes}; shorten it",
                field="conversation",
            )
        return ChatStart(
            prefix=(),
            agents=tuple([await self.agent(gang, spec) for spec in gang.agents]),
            instant=gang.effort == common.EFFORT_INSTANT,
            salt=gang.tenant,
            priority=gang.priority,
            messages=tuple(messages),
            tools=tuple(json.loads(tool_text(tool)) for tool in gang.tools),
        )

    async def agent(self, gang: pb.OpenGang, spec: pb.AgentSpec) -> AgentStart:
        """One agent. Raises InvalidRequest for what the server cannot do."""
        if min(spec.agent_id, spec.attempt, spec.granted_token_count) < 0:
            raise InvalidRequest(
                "an agent's id, attempt and granted tokens must not be negative", field="agents"
            )
        state = spec.resume_state
        if (state.build_digest or state.segments) and state.build_digest != self._build_digest:
            raise InvalidRequest(
                "the agent's state comes from another build; start it afresh",
                reason="BUILD_MISMATCH",
            )
        opening = self.hint(spec) + spec.assistant_prefix
        ends_open = state.segments and not state.segments[-1].HasField("tool_result")
        if (opening or (ends_open and not state.pending_call_id)) and not self._can.continues:
            raise _lacks("going on behind a given text (CAPABILITY_CONTINUE)", "agents")
        replay = [await self._segment(gang, segment) for segment in state.segments]
        start = AgentStart(
            agent_id=spec.agent_id,
            attempt=max(1, spec.attempt),
            params=self._params(spec.sampling_params, has_tools=bool(gang.tools)),
            seed=spec.seed,
            opening=self._text(opening),
            replay=tuple(replay),
            pending_call_id=state.pending_call_id,
            granted=spec.granted_token_count,
            mean_logprob=state.confidence.mean_logprob,
            lowest_confidence=state.confidence.lowest_group_confidence or float("inf"),
        )
        if state.sampled_token_count not in (0, start.num_sampled):
            raise InvalidRequest(
                "the resume state's sampled tokens are not as many as it says",
                field="resume_state.sampled_token_count",
            )
        return start

    def _params(self, params: common.SamplingParams, *, has_tools: bool) -> ChatParams:
        can = self._can
        made = wire.to_sampling_params(
            params,
            temperature=self._config.openai_temperature,
            max_tokens=self._config.default_max_token_count,
            vocab_size=ANY_VOCABULARY,
        )
        if made.stop_token_ids or made.logit_bias:
            raise _lacks("the model's token ids (CAPABILITY_TOKEN_IDS)", "sampling_params")
        extended = made.top_k or made.min_p or made.min_tokens or made.ignore_eos
        if (extended or made.repetition_penalty != 1.0) and not can.extended:
            raise _lacks(
                "top_k, min_p, min_tokens, ignore_eos and repetition_penalty", "sampling_params"
            )
        num_top = can.num_top_with(has_tools=has_tools)
        if made.logprobs > num_top:
            beside = " beside tools" if num_top < can.num_top else ""
            what = f"more than {num_top} likeliest tokens{beside}"
            raise _lacks(what, "sampling_params.logprobs")
        plain = {
            name: getattr(made, name)
            for name in SamplingParams.__dataclass_fields__
            if name != "stop"
        }
        return ChatParams(**plain, stops=made.stop, extras=self._extras(params))

    def _extras(self, params: common.SamplingParams) -> Message:
        constraint = wire.to_constraint(params)
        if constraint is None:
            return {}
        if constraint.kind == "regex":
            if not self._can.regexes:
                raise _lacks("regular expressions (CAPABILITY_CONSTRAINT)", "sampling_params")
            return {"structured_outputs": {"regex": constraint.text}}
        if not self._can.schemas:
            raise _lacks("JSON schemas (CAPABILITY_JSON_SCHEMA)", "sampling_params")
        schema = {"name": "answer", "schema": json.loads(constraint.text), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

    async def copy(self, gang: pb.OpenGang, spec: pb.AgentSpec) -> AgentStart:
        """An agent that is forked."""
        if not self._can.continues:
            raise _lacks("copies of agents (CAPABILITY_FORK)", "fork")
        if spec.HasField("resume_state") or spec.HasField("hint_index"):
            raise InvalidRequest("a copy has its parent's history and hint", field="fork.agent")
        if spec.hint or spec.assistant_prefix:
            raise InvalidRequest("a copy has its parent's opening", field="fork.agent")
        return await self.agent(gang, spec)

    def hint(self, spec: pb.AgentSpec) -> str:
        """The sentence that opens the agent's turn: no server's model was trained on ours."""
        return spec.hint

    async def injection(self, gang: pb.OpenGang, inject: pb.InjectAgent) -> Sequence[Position]:
        """A result as a message, or text behind which the agent goes on."""
        content = inject.WhichOneof("content")
        if content == "tool_result":
            return [await self._tool_result(gang, inject.tool_result)]
        if content == "text":
            if inject.text and not self._can.continues:
                raise _lacks("going on behind a given text (CAPABILITY_CONTINUE)", "text")
            return self._text(inject.text)
        if content in ("tokens", "embedding"):
            raise _lacks(f"an injection of {content} (CAPABILITY_INJECT)", "content")
        raise InvalidRequest("inject needs a tool result or text", field="content")

    def _text(self, text: str) -> tuple[Position, ...]:
        return (Position(self._pieces.id_of(text)),) if text else ()

    async def _segment(
        self, gang: pb.OpenGang, segment: pb.Segment
    ) -> SampledTokens | InjectedPositions:
        kind = segment.WhichOneof("segment")
        if kind == "tool_result":
            result = await self._tool_result(gang, segment.tool_result)
            return InjectedPositions((result,), segment)
        if kind not in ("sampled", "injected"):
            raise InvalidRequest(
                "a resume segment here needs tokens or a tool result", field="segments"
            )
        ids = tuple(getattr(segment, kind).token_ids)
        if any(not 0 <= i < len(self._pieces) or i == RESULT for i in ids):
            raise InvalidRequest("a token id names no piece of this endpoint", field="token_ids")
        if kind == "sampled":
            return SampledTokens(ids)
        return InjectedPositions(tuple(map(Position, ids)), segment)

    async def _tool_result(self, gang: pb.OpenGang, result: common.ToolResult) -> Position:
        """One position that holds the message. An image that cannot be had becomes a sentence."""
        parts = list(wire.result_parts(result))
        images = wire.images_of(result.parts)
        limit = self._config.max_injected_token_count * 8
        shown: list[Text | Image] = [
            Text(part.text[:limit]) if isinstance(part, Text) else part for part in parts
        ]
        if not self._can.images:
            shown = [part if isinstance(part, Text) else Text(BLIND) for part in shown]
        try:
            content = await self._content(gang, shown, images)
        except CogitateError:
            unread = [part if isinstance(part, Text) else Text(UNREAD) for part in shown]
            content = await self._content(gang, unread, {})
        apart = isinstance(content, list) and not self._can.images_in_results
        return Position(RESULT, {"content": content, "images_apart": apart})

    async def _content(
        self,
        gang: pb.OpenGang,
        parts: Iterable[Text | Image],
        images: Mapping[str, common.ImagePart],
    ) -> str | list[Message]:
        """Plain text where there is nothing else: not every server reads lists."""
        parts = list(parts)
        if all(isinstance(part, Text) for part in parts):
            return "\n".join(part.text for part in parts if isinstance(part, Text))
        if not self._can.images:
            raise InvalidRequest(
                f"model {self._config.model!r} takes no images", field="conversation"
            )
        addresses = encoders_of(self._config, gang)
        content: list[Message] = []
        for part in parts:
            if isinstance(part, Text):
                content.append({"type": "text", "text": part.text})
                continue
            data, media_type = await self._blobs.fetch(images[part.key], addresses)
            url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
            content.append({"type": "image_url", "image_url": {"url": url}})
        return content


def _lacks(what: str, field: str) -> InvalidRequest:
    return InvalidRequest(f"this endpoint's model server does not offer {what}", field=field)
