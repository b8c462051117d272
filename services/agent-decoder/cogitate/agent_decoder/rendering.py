"""From messages to positions: what a gang, an agent or a tool's result is as tokens and images.

Everything here is checked before the engine sees it: a position that reaches the engine is a token
of the vocabulary or a finite embedding row of the right size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Protocol

from cogitate.agent_decoder import wire
from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.agent_decoder.core.constraint import Constraint, Grammar
from cogitate.agent_decoder.core.sequence import Position
from cogitate.agent_decoder.core.starts import (
    AgentStart,
    GangStart,
    InjectedPositions,
    SampledTokens,
)
from cogitate.agent_decoder.embeddings import EmbeddingFetcher
from cogitate.agent_decoder.encoders import encoders_of
from cogitate.agent_decoder.model.loader import PromptModel
from cogitate.agent_decoder.model.templates import Image, Prompt, Text
from cogitate.agent_decoder.model.tiling import tiled
from cogitate.agent_decoder.spelling import Speller
from cogitate.agent_decoder.wire import Embedding
from cogitate.kit.errors import CogitateError, EngineFailure, InvalidRequest
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import common_pb2 as common

# In the place of an image in a tool's result.
UNREAD = "The image cannot be read."
BLIND = "[an image came, which this model cannot see]"


class Compiler(Protocol):
    """Makes grammars of what requests bring."""

    async def compile(self, tenant: str, constraint: Constraint) -> Grammar:
        """A tenant's own copy. Raises InvalidRequest."""
        ...


class Renderer:
    """Renders by the model's template; fetches the embeddings that are not there yet."""

    def __init__(
        self,
        config: AgentDecoderConfig,
        model: PromptModel,
        embeddings: EmbeddingFetcher,
        grammars: Compiler,
        max_model_len: int,
    ) -> None:
        self._config, self._model, self._embeddings = config, model, embeddings
        self._grammars = grammars
        self._template = model.template
        self.speller = Speller(model.template.decode)
        self._vocab_size = model.vocab_size
        self._max_model_len = max_model_len

    async def gang(self, gang: pb.OpenGang) -> GangStart:
        """The common prefix with its embeddings in place, and its agents."""
        messages = [tiled(message, self._model.tiling) for message in gang.conversation]
        parts = [part for message in messages for part in message.parts]
        turns = wire.to_turns(messages)
        self._check_size([part for turn in turns for part in turn.parts])
        embeddings = await self._fetch(gang, wire.images_of(parts))
        instant = gang.effort == common.EFFORT_INSTANT
        tools = [tool_text(tool) for tool in gang.tools]
        self._check_size([Text(tool) for tool in tools])
        prompt = self._template.prompt(turns, instant=instant, tools=tools)
        return GangStart(
            prefix=tuple(self._place(prompt, embeddings)),
            agents=tuple([await self.agent(gang, spec) for spec in gang.agents]),
            instant=instant,
            salt=gang.tenant,
            priority=gang.priority,
        )

    async def agent(self, gang: pb.OpenGang, spec: pb.AgentSpec) -> AgentStart:
        """One agent, fresh or resumed. Raises InvalidRequest, with BUILD_MISMATCH among others."""
        if min(spec.agent_id, spec.attempt, spec.granted_token_count) < 0:
            raise InvalidRequest(
                "an agent's id, attempt and granted tokens must not be negative", field="agents"
            )
        params = wire.to_sampling_params(
            spec.sampling_params,
            temperature=self._model.temperature,
            max_tokens=self._config.default_max_token_count,
            vocab_size=self._vocab_size,
        )
        opening = Text(self.hint(spec) + spec.assistant_prefix)
        self._check_size([opening])
        state = spec.resume_state
        if state.build_digest and state.build_digest != self._model.build_digest:
            raise InvalidRequest(
                "the agent's state comes from another build; start it afresh",
                reason="BUILD_MISMATCH",
            )
        start = AgentStart(
            agent_id=spec.agent_id,
            attempt=max(1, spec.attempt),
            params=params,
            seed=spec.seed,
            opening=tuple(_positions(self._template.encode(opening.text))),
            replay=tuple([await self._segment(gang, segment) for segment in state.segments]),
            pending_call_id=state.pending_call_id,
            granted=spec.granted_token_count,
            mean_logprob=state.confidence.mean_logprob,
            lowest_confidence=state.confidence.lowest_group_confidence or float("inf"),
            grammar=await self._grammar(gang, spec.sampling_params),
        )
        if state.sampled_token_count not in (0, start.num_sampled):
            raise InvalidRequest(
                "the resume state's sampled tokens are not as many as it says",
                field="resume_state.sampled_token_count",
            )
        return start

    async def _grammar(self, gang: pb.OpenGang, params: common.SamplingParams) -> Grammar | None:
        constraint = wire.to_constraint(params)
        return None if constraint is None else await self._grammars.compile(gang.tenant, constraint)

    async def copy(self, gang: pb.OpenGang, spec: pb.AgentSpec) -> AgentStart:
        """An agent that is forked. Raises InvalidRequest."""
        if spec.HasField("resume_state") or spec.HasField("hint_index"):
            raise InvalidRequest("a copy has its parent's history and hint", field="fork.agent")
        if spec.hint or spec.assistant_prefix:
            raise InvalidRequest("a copy has its parent's opening", field="fork.agent")
        return await self.agent(gang, spec)

    def hint(self, spec: pb.AgentSpec) -> str:
        """The sentence that opens the agent's turn."""
        if spec.hint or not spec.HasField("hint_index") or not self._model.hints:
            return spec.hint
        return self._model.hints[spec.hint_index % len(self._model.hints)]

    async def injection(self, gang: pb.OpenGang, inject: pb.InjectAgent) -> list[Position]:
        """What an inject command gives to its agent. Raises InvalidRequest."""
        content = inject.WhichOneof("content")
        if content == "tool_result":
            return await self._tool_result(gang, inject.tool_result)
        if content == "text":
            return _positions(self._template.encode(self._cut(inject.text)))
        if content == "tokens":
            return _positions(self._in_vocabulary(inject.tokens.token_ids))
        if content == "embedding":
            rows = wire.to_embedding(inject.embedding, self._model.hidden_size)
            return [Position(self._template.image_token_id, row) for row in rows]
        raise InvalidRequest(
            "inject needs a tool result, text, tokens or an embedding", field="content"
        )

    async def _tool_result(self, gang: pb.OpenGang, result: common.ToolResult) -> list[Position]:
        """A result as the model sees it. An image that cannot be had becomes a sentence."""
        template, instant = self._template, gang.effort == common.EFFORT_INSTANT
        shown: list[Text | Image] = []
        try:
            shown = [
                Text(self._cut(part.text)) if isinstance(part, Text) else part
                for part in wire.result_parts(result)
            ]
            if not self._model.has_vision:
                shown = _without_images(shown, BLIND)
            images = wire.images_of(result.parts) if self._model.has_vision else {}
            embeddings = await self._fetch(gang, images)
            return self._place(template.injection(shown, instant=instant), embeddings)
        except CogitateError:
            unread = _without_images(shown, UNREAD) or [Text(UNREAD)]
            return self._place(template.injection(unread, instant=instant), {})

    async def _segment(
        self, gang: pb.OpenGang, segment: pb.Segment
    ) -> SampledTokens | InjectedPositions:
        kind = segment.WhichOneof("segment")
        if kind == "sampled":
            return SampledTokens(tuple(self._in_vocabulary(segment.sampled.token_ids)))
        if kind == "injected":
            ids = self._in_vocabulary(segment.injected.token_ids)
            return InjectedPositions(tuple(_positions(ids)), segment)
        if kind == "tool_result":
            result = await self._tool_result(gang, segment.tool_result)
            return InjectedPositions(tuple(result), segment)
        if kind == "image":
            image = wire.to_image(segment.image)
            embeddings = await self._fetch(gang, {image.key: segment.image})
            return InjectedPositions(tuple(self._place([image], embeddings)), segment)
        raise InvalidRequest(
            "a resume segment needs tokens, a tool result or an image", field="segments"
        )

    def _in_vocabulary(self, token_ids: Sequence[int]) -> list[int]:
        if any(not 0 <= t < self._vocab_size for t in token_ids):
            raise InvalidRequest("a token id is outside the model's vocabulary", field="token_ids")
        return list(token_ids)

    def _check_size(self, parts: Iterable[Text | Image]) -> None:
        """Refuses what cannot fit before time is spent on it."""
        num_bytes = num_images = 0
        for part in parts:
            if isinstance(part, Image):
                num_images += self._template.num_image_tokens(part) if self._model.has_vision else 1
            else:
                num_bytes += len(part.text.encode(errors="replace"))
        least = num_images + num_bytes // self._template.max_token_chars
        if least > self._max_model_len:
            raise InvalidRequest(
                f"the conversation takes {least} positions or more, the model has room for "
                f"{self._max_model_len}; shorten it",
                field="conversation",
            )

    def _cut(self, text: str) -> str:
        """At most one token more than could be injected: the engine then says it is too long."""
        return text[: (self._config.max_injected_token_count + 1) * self._template.max_token_chars]

    async def _fetch(
        self, gang: pb.OpenGang, images: dict[str, common.ImagePart]
    ) -> dict[str, Embedding]:
        if images and not self._model.has_vision:
            raise InvalidRequest(
                f"model {self._model.name!r} takes no images", field="conversation"
            )
        return await self._embeddings.fetch(images, encoders_of(self._config, gang))

    def _place(self, prompt: Prompt, embeddings: dict[str, Embedding]) -> list[Position]:
        """Puts embedding rows where the prompt has images."""
        template = self._template
        positions: list[Position] = []
        for item in prompt:
            if isinstance(item, int):
                positions.append(Position(item))
                continue
            rows = embeddings[item.key]
            if len(rows) != template.num_image_tokens(item):
                raise EngineFailure(
                    f"the vision-encoder sent {len(rows)} rows for an image view of "
                    f"{template.num_image_tokens(item)}"
                )
            positions += [Position(template.image_token_id, row) for row in rows]
        return positions


def _without_images(parts: Iterable[Text | Image], sentence: str) -> list[Text | Image]:
    return [part if isinstance(part, Text) else Text(sentence) for part in parts]


def _positions(token_ids: Iterable[int]) -> list[Position]:
    return [Position(token_id) for token_id in token_ids]


def tool_text(tool: common.ToolSpec) -> str:
    """A tool as chat templates have it, as JSON. Raises InvalidRequest."""
    try:
        parameters = json.loads(tool.parameters_json_schema or '{"type":"object","properties":{}}')
    except (ValueError, RecursionError):
        raise InvalidRequest("a tool's parameters are not JSON", field="tools") from None
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return json.dumps({"type": "function", "function": function}, ensure_ascii=False)
