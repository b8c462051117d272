"""One agent's call as a stream of tokens.

A chunk of text counts as one token, unless the server says how many it sampled: then what is
missing is counted as tokens that were not shown, so that the account is the server's own.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from cogitate.agent_decoder.adapter.chat import ChatParams, ChatStart, messages_of
from cogitate.agent_decoder.adapter.client import ChatServer, Json, UpstreamError
from cogitate.agent_decoder.adapter.pieces import ANSWER, CALL, PAD, RUN, Pieces
from cogitate.agent_decoder.adapter.probe import Abilities
from cogitate.agent_decoder.core.events import Finish
from cogitate.agent_decoder.core.gang import Gang
from cogitate.agent_decoder.core.sequence import Agent
from cogitate.agent_decoder.core.starts import GangRules
from cogitate.agent_decoder.core.transcript import Mode
from cogitate.agent_decoder.stream_engine import Chunk, Drawn, seed_of
from cogitate.kit.errors import InvalidRequest

FINISHES = {
    "stop": Finish.STOP,
    "length": Finish.LENGTH,
    "content_filter": Finish.CONTENT_FILTER,
    "tool_calls": Finish.STOP,
    "function_call": Finish.STOP,
}


class ChatSource:
    """Draws tokens from a chat server."""

    shares_prefix = False  # whether it does is the server's affair, and calls go at once

    def __init__(
        self, server: ChatServer, abilities: Abilities, pieces: Pieces, rules: GangRules
    ) -> None:
        self.rules = rules
        self._server, self._abilities, self._pieces = server, abilities, pieces

    @property
    def ready(self) -> bool:
        """Whether the server answered lately."""
        return self._server.ready

    def continues(self, agent: Agent) -> bool:
        """Not in the middle of what follows a grammar: the server would begin it anew."""
        return self._abilities.continues and not getattr(agent.params, "extras", None)

    async def draw(self, gang: Gang, agent: Agent, max_tokens: int) -> AsyncGenerator[Chunk, None]:
        """Streams one completion. Raises UpstreamError."""
        body = self._body(gang, agent, max_tokens)
        last = body["messages"][-1]
        begun = last["content"] if last["role"] == "assistant" else ""
        if last["role"] == "assistant" and not self.continues(agent):
            raise InvalidRequest("the model server cannot go on behind what the agent wrote")
        echo = begun if self._abilities.echoes else ""
        reader = _Reader(self._pieces, agent, self.rules.marks_answers, echo)
        async with aclosing(self._server.stream(body)) as chunks:
            async for chunk in chunks:
                yield reader.read(chunk)
        yield reader.end()

    def _body(self, gang: Gang, agent: Agent, max_tokens: int) -> Json:
        start, params, can = gang.start, agent.params, self._abilities
        assert isinstance(start, ChatStart)
        messages = messages_of(start.messages, agent, self._pieces)
        body: Json = {
            "model": self._server.settings.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
        }
        if messages[-1]["role"] == "assistant":
            body |= can.continuation
        if can.flavour == "vllm":
            body["stream_options"]["continuous_usage_stats"] = True
        if can.extended:
            extended = {
                "top_k": params.top_k, "min_p": params.min_p, "min_tokens": params.min_tokens,
                "repetition_penalty": params.repetition_penalty, "ignore_eos": params.ignore_eos,
            }  # fmt: skip
            plain = {"repetition_penalty": 1.0}
            body |= {k: v for k, v in extended.items() if v != plain.get(k, 0)}
            if start.instant:
                body["chat_template_kwargs"] = {"enable_thinking": False}
        penalties = ("frequency_penalty", "presence_penalty")
        body |= {name: value for name in penalties if (value := getattr(params, name))}
        if can.seeds:
            body["seed"] = seed_of(agent.seed, agent.agent_id, len(agent.sampled))
        if num_top := can.num_top_with(has_tools=bool(start.tools)):
            body |= {"logprobs": True, "top_logprobs": num_top}
        if start.tools:
            body |= {"tools": list(start.tools), "parallel_tool_calls": False}
        if isinstance(params, ChatParams):
            body |= {"stop": list(params.stops)} if params.stops else {}
            body |= dict(params.extras)
        return body


class _Reader:
    """Reads one stream's chunks."""

    def __init__(self, pieces: Pieces, agent: Agent, marks_answers: bool, echo: str) -> None:
        """``echo`` is what the server says again before it goes on."""
        self._pieces, self._agent, self._marks = pieces, agent, marks_answers
        self._echo = echo
        self._counted = 0  # tokens told so far
        self._sampled = 0  # tokens the server says it sampled
        self._calls: set[int] = set()
        self._finish: Finish | None = None
        self._has_prompt = False
        self._answers = agent.transcript.mode is Mode.ANSWERING

    def read(self, chunk: Json) -> Chunk:
        """One chunk. Raises UpstreamError for what is not of the API's shape."""
        try:
            tokens = [token for choice in chunk.get("choices") or () for token in self._of(choice)]
            num_prompt, num_cached = self._usage(chunk.get("usage") or {})
        except (TypeError, KeyError, AttributeError, ValueError):
            raise UpstreamError(
                "UPSTREAM_MALFORMED", "the model server broke its protocol: a chunk is none"
            ) from None
        self._counted += len(tokens)
        missing = max(0, self._sampled - self._counted) if self._finish is None else 0
        return self._chunk(tokens, missing, num_prompt=num_prompt, num_cached=num_cached)

    def end(self) -> Chunk:
        """What is left to tell: tokens that were not shown, the end of a call, why it ended."""
        closing: list[Drawn] = []
        if self._calls and self._finish is Finish.STOP:
            closing = [Drawn(self._pieces.id_of("}")), Drawn(RUN)]
        missing = max(0, self._sampled - self._counted - len(closing))
        return self._chunk(
            [Drawn(PAD)] * missing + closing, 0, finish=None if closing else self._finish
        )

    def _chunk(self, tokens: list[Drawn], missing: int, **fields: Any) -> Chunk:
        self._counted += missing
        return Chunk(tokens=[*tokens, *[Drawn(PAD)] * missing], **fields)

    def _of(self, choice: Json) -> Iterator[Drawn]:
        if choice.get("index", 0) != 0:
            raise ValueError("one choice was asked for")
        delta = choice.get("delta") or {}
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if thought:
            # Where the server was not seen to reason, what it thinks is counted and not shown.
            yield Drawn(self._pieces.id_of(thought) if self._marks else PAD)
        if content := self._behind_echo(delta.get("content") or ""):
            if self._marks and not self._answers:
                self._answers = True
                yield Drawn(ANSWER)
            yield from self._text(content, choice)
        for call in delta.get("tool_calls") or ():
            yield from self._call(call)
        if reason := choice.get("finish_reason"):
            self._finish = FINISHES.get(reason, Finish.STOP)

    def _behind_echo(self, text: str) -> str:
        """What is new in a piece of text."""
        if self._echo.startswith(text):
            self._echo = self._echo[len(text) :]
            return ""
        if not text.startswith(self._echo):
            raise UpstreamError(
                "UPSTREAM_MALFORMED",
                "the model server did not go on behind what the agent wrote",
            )
        new, self._echo = text[len(self._echo) :], ""
        return new

    def _text(self, text: str, choice: Json) -> Iterator[Drawn]:
        """Token by token where the server tells them with their probabilities."""
        entries = (choice.get("logprobs") or {}).get("content") or []
        written = "".join(entry["token"] for entry in entries)
        if written != text:  # bytes of an unfinished character, or nothing is told
            first = entries[0] if len(entries) == 1 else None
            yield self._drawn(text, first)
            return
        for entry in entries:
            yield self._drawn(entry["token"], entry)

    def _drawn(self, text: str, entry: Json | None) -> Drawn:
        token_id = self._pieces.id_of(text)
        if entry is None:
            return Drawn(token_id)
        likeliest = [top for top in entry.get("top_logprobs") or () if top["logprob"] > -1e4]
        values = [float(top["logprob"]) for top in likeliest]
        confidence = -sum(values) / len(values) if values else None
        logprob = float(entry["logprob"])
        if not math.isfinite(logprob):
            raise ValueError("no number")
        asked = self._agent.params.logprobs
        ids = [self._pieces.id_of(top["token"]) for top in likeliest[:asked]]
        return Drawn(token_id, min(0.0, logprob), confidence, (ids, values[:asked]))

    def _call(self, call: Json) -> Iterator[Drawn]:
        """A call as the text that the core reads calls from. Two at once are none: see README."""
        function, index = call.get("function") or {}, int(call.get("index", 0))
        if index not in self._calls:
            if not self._calls:
                yield Drawn(CALL)
            self._calls.add(index)
            name = json.dumps(function.get("name") or "")
            yield Drawn(self._pieces.id_of(f'{{"name": {name}, "arguments": '))
        if function.get("arguments"):
            yield Drawn(self._pieces.id_of(function["arguments"]))

    def _usage(self, usage: Json) -> tuple[int, int]:
        """The prompt, told once, and what was sampled so far."""
        self._sampled = max(self._sampled, int(usage.get("completion_tokens") or 0))
        if self._has_prompt or not usage.get("prompt_tokens"):
            return 0, 0
        self._has_prompt = True
        details = usage.get("prompt_tokens_details") or {}
        return int(usage["prompt_tokens"]), int(details.get("cached_tokens") or 0)
