"""What a server can do, tried when the decoder starts: a dozen tiny completions.

What a trial does not show is not declared. A knob decides instead of a trial where one is set.
"""

from __future__ import annotations

import base64
import json
import logging
import struct
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cogitate.agent_decoder.adapter.client import ChatServer, Json, UpstreamError
from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.v1 import agent_decoder_service_pb2 as pb

log = logging.getLogger(__name__)

# As many likeliest tokens as DeepConf wants, or as OpenAI or a careful server grants.
TOPS = (20, 5)
# vLLM continues on request, llama.cpp whenever an assistant's message is the last.
CONTINUATIONS: Mapping[str, Json] = {
    "vllm": {"continue_final_message": True, "add_generation_prompt": False},
}
# An answer that was begun in the middle of a word.
BEGUN = "The capital of France is Par"
NOTE: list[Json] = [
    {
        "type": "function",
        "function": {
            "name": "note",
            "description": "Notes a text.",
            "parameters": {"type": "object", "properties": {"text": {"type": "string"}}},
        },
    }
]


@dataclass(frozen=True, slots=True)
class Abilities:
    """What was found."""

    flavour: str = "openai"  # or "vllm" or "llamacpp", as the list of models has it
    max_model_len: int = 0  # 0: not told
    num_top: int = 0  # likeliest tokens it tells the probabilities of; 0: none at all
    seeds: bool = False
    continues: bool = False
    echoes: bool = False  # where it continues, it first says the begun text again
    tools: bool = False
    tops_beside_tools: bool = False  # tells probabilities in a stream that may call tools
    images: bool = False
    images_in_results: bool = False  # from tools, too, where some take them from users only
    schemas: bool = False
    regexes: bool = False
    reasons: bool = False  # tells its reasoning apart from its answer
    extended: bool = False  # takes sampling parameters that OpenAI's API lacks
    continuation: Mapping[str, Any] = field(default_factory=dict)

    def num_top_with(self, *, has_tools: bool) -> int:
        """Likeliest tokens that are told where tools may be called, or may not."""
        return self.num_top if self.tops_beside_tools or not has_tools else 0

    def capabilities(self) -> tuple[pb.Capability.ValueType, ...]:
        """As the mesh calls them. A kill always works: it closes the stream."""
        found = {
            pb.CAPABILITY_KILL: True,
            pb.CAPABILITY_VISION: self.images,
            pb.CAPABILITY_TOOLS: self.tools,
            pb.CAPABILITY_LOGPROBS: self.num_top > 0,
            pb.CAPABILITY_SEED: self.seeds,
            pb.CAPABILITY_CONTINUE: self.continues,
            pb.CAPABILITY_FORK: self.continues,
            pb.CAPABILITY_JSON_SCHEMA: self.schemas,
            pb.CAPABILITY_CONSTRAINT: self.schemas and self.regexes,
        }
        return tuple(capability for capability, is_there in found.items() if is_there)


async def probe(server: ChatServer, config: AgentDecoderConfig) -> Abilities:
    """Tries the server. Raises UpstreamError if it does not answer at all, or as another model."""
    return await _Probe(server, config).run()


class _Probe:
    def __init__(self, server: ChatServer, config: AgentDecoderConfig) -> None:
        self._server, self._config = server, config
        self._reasons = self._echoes = False

    async def run(self) -> Abilities:
        flavour, max_model_len = await self._flavour()
        continuation = CONTINUATIONS.get(flavour, {})
        await self._say("Say hello.", max_tokens=4)  # what goes wrong here goes wrong always
        num_top = await self._tops()
        continues = await self._chosen("continue", lambda: self._continues(continuation))
        tools = await self._may("tools", self._tools)
        both = lambda: self._tops_beside_tools(num_top)  # noqa: E731
        images = await self._chosen("images", self._images)
        return Abilities(
            flavour=flavour,
            max_model_len=max_model_len,
            num_top=num_top,
            seeds=await self._may("seeds", self._seeds),
            continues=continues,
            echoes=self._echoes,
            tools=tools,
            tops_beside_tools=bool(tools and num_top)
            and await self._may("likeliest tokens beside tools", both),
            images=images,
            images_in_results=bool(images and tools)
            and await self._may("images in results of tools", self._images_in_results),
            schemas=await self._may("JSON schemas", self._schemas),
            regexes=flavour == "vllm" and await self._may("regular expressions", self._regexes),
            reasons=self._reasons,
            extended=flavour != "openai",
            continuation=continuation,
        )

    async def _flavour(self) -> tuple[str, int]:
        """Who the server is, and how long its model's context."""
        try:
            listed = await self._server.models()
        except UpstreamError as error:
            if error.reason not in ("UPSTREAM_NOT_FOUND", "UPSTREAM_REFUSED"):
                raise
            listed = []  # a server without a list
        names = [model.get("id") for model in listed]
        asked = self._server.settings.model
        if listed and asked not in names:
            raise UpstreamError(
                "UPSTREAM_NOT_FOUND",
                f"the model server does not list the model {asked!r}; name one that it serves by "
                "--openai-model",
            )
        mine: Json = next((m for m in listed if m.get("id") == asked), {})
        meta = mine.get("meta") or {}
        length = mine.get("max_model_len") or meta.get("n_ctx") or meta.get("n_ctx_train") or 0
        if self._config.openai_flavour != "auto":
            return self._config.openai_flavour, int(length)
        owner = mine.get("owned_by")
        return (owner if owner in ("vllm", "llamacpp") else "openai"), int(length)

    async def _say(self, text: str, **body: Any) -> Json:
        """The first choice of a tiny completion."""
        messages = body.pop("messages", None) or [{"role": "user", "content": text}]
        body = {
            "model": self._server.settings.model,
            "messages": messages,
            "temperature": 0.0,
            "max_tokens": 16,
            **body,
        }
        reply = await self._server.complete(body)
        try:
            choice: Json = reply["choices"][0]
            message = choice["message"]
            self._reasons |= bool(message.get("reasoning_content") or message.get("reasoning"))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise UpstreamError(
                "UPSTREAM_MALFORMED", "the model server broke its protocol: no choice came"
            ) from None
        return choice

    async def _may(self, what: str, trial: Callable[[], Awaitable[bool]]) -> bool:
        try:
            found = await trial()
        except UpstreamError as error:
            log.info("the model server offers no %s: %s", what, error.reason)
            return False
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            found = False
        if not found:
            log.info("the model server offers no %s: the trial did not show it", what)
        return found

    async def _chosen(self, what: str, trial: Callable[[], Awaitable[bool]]) -> bool:
        knob = getattr(self._config, f"openai_{what}")
        return bool(knob == "on") if knob != "auto" else await self._may(what, trial)

    async def _tops(self) -> int:
        for count in TOPS:

            async def trial(count: int = count) -> bool:
                choice = await self._say(
                    "Say hello.", max_tokens=2, logprobs=True, top_logprobs=count
                )
                return len(choice["logprobs"]["content"][0]["top_logprobs"]) > 0

            if await self._may(f"{count} likeliest tokens", trial):
                return count
        return 0

    async def _seeds(self) -> bool:
        """The same twice by one seed, something else by another."""
        ask = "Write three random words."
        said = [
            (await self._say(ask, temperature=1.0, seed=seed))["message"].get("content")
            for seed in (11, 11, 12)
        ]
        return bool(said[0] == said[1] != said[2])

    async def _continues(self, continuation: Mapping[str, Any]) -> bool:
        """Ends a word that was begun, which no new turn begins with."""
        messages = [
            {"role": "user", "content": "What is the capital of France?"},
            {"role": "assistant", "content": BEGUN},
        ]
        choice = await self._say("", messages=messages, max_tokens=4, **continuation)
        text = choice["message"]["content"]
        self._echoes = text.startswith(BEGUN)
        return bool(text.removeprefix(BEGUN).startswith("is"))

    async def _tools(self) -> bool:
        """Takes them. Whether its model calls one is the model's affair."""
        await self._say("Say hello.", max_tokens=2, tools=NOTE, parallel_tool_calls=False)
        return True

    async def _tops_beside_tools(self, num_top: int) -> bool:
        """Takes both in a stream, which newer llama.cpp does not."""
        body = {
            "model": self._server.settings.model,
            "messages": [{"role": "user", "content": "Say hello."}],
            "temperature": 0.0,
            "max_tokens": 2,
            "tools": NOTE,
            "parallel_tool_calls": False,
            "logprobs": True,
            "top_logprobs": num_top,
            "stream": True,
        }
        async for _ in self._server.stream(body):
            pass
        return True

    async def _images(self) -> bool:
        content = [{"type": "text", "text": "What is this?"}, _shown()]
        await self._say("", messages=[{"role": "user", "content": content}], max_tokens=2)
        return True

    async def _images_in_results(self) -> bool:
        called = {"name": "note", "arguments": "{}"}
        messages = [
            {"role": "user", "content": "Say hello."},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "call_1", "type": "function", "function": called}],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": [_shown()]},
        ]
        await self._say("", messages=messages, max_tokens=2, tools=NOTE)
        return True

    async def _schemas(self) -> bool:
        """Writes the one thing that the schema allows, which nobody would say otherwise."""
        schema = {
            "type": "object",
            "properties": {"k": {"enum": ["zq"]}},
            "required": ["k"],
            "additionalProperties": False,
        }
        named = {"name": "answer", "schema": schema, "strict": True}
        choice = await self._say(
            "Say hello.", response_format={"type": "json_schema", "json_schema": named},
            max_tokens=32,
        )  # fmt: skip
        return bool(json.loads(choice["message"]["content"]) == {"k": "zq"})

    async def _regexes(self) -> bool:
        choice = await self._say("Say hello.", structured_outputs={"regex": "zq[0-9]zq"})
        text = choice["message"]["content"]
        return bool(len(text) == 5 and text[:2] == text[3:] == "zq")


def _shown() -> Json:
    url = f"data:image/png;base64,{base64.b64encode(_picture()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _picture(side: int = 64) -> bytes:
    """A grey PNG."""

    def part(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x80" * side) * side)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", rows) + part(b"IEND", b"")
