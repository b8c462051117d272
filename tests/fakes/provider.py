"""A server that speaks OpenAI's chat completions, well or as badly as a test wants.

It is a server of raw bytes: what it sends wrong is wrong on the wire. A well-behaved one writes
words that depend on the seed and on what it is asked to continue, tells probabilities, fills in
JSON schemas of enums, and calls tools when it is told to.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
WORDS = "one two three four five six seven eight nine ten".split()

# Ways to misbehave, for the next streams, each once.
FAULTS = (
    "status:400", "status:401", "status:404", "status:429", "status:500", "error200", "error_event",
    "truncated", "hang", "hang_later", "other_model", "no_json", "no_object", "html", "two_choices",
    "nan", "close",
)  # fmt: skip


@dataclass
class Provider:
    """Serves on a free port of the loopback inside its `async with`."""

    model: str = "served"
    owner: str = "fake"
    words: int = 4  # an answer has so many, unless max_tokens ends it sooner
    gap_s: float = 0.0
    tops: int = 20
    continues: bool = True
    echoes: bool = False  # where it continues, it says what was begun again, as llama.cpp does
    seeds: bool = True
    schemas: bool = True
    takes_tools: bool = True
    tops_beside_tools: bool = True  # newer llama.cpp refuses both in a stream
    takes_images: bool = False
    images_in_results: bool = True  # OpenAI's own API takes them from users only
    counts: bool = True  # tells usage
    extra_tokens: int = 0  # tokens it says it sampled beside those it showed
    calls: list[tuple[str, str]] = field(default_factory=list)  # for the next streams
    reasons: str = ""  # what it thinks first, told apart
    faults: list[str] = field(default_factory=list)  # for the next streams
    retry_after: str = "0.01"
    choose_fault: Callable[[Json], str] | None = None
    bodies: list[Json] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    running: int = 0
    num_broken: int = 0  # streams that the client closed
    most_running: int = 0
    address: str = ""

    @property
    def base_url(self) -> str:
        return f"http://{self.address}/v1"

    @property
    def streams(self) -> list[Json]:
        """What was asked to stream, but for the adapter's trials."""
        return [body for body in self.bodies if body.get("stream") and not _is_trial(body)]

    async def __aenter__(self) -> Provider:
        await self.listen()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.leave()

    async def listen(self, port: int = 0) -> None:
        self._connections: set[asyncio.Task[Any]] = set()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def leave(self) -> None:
        """Is gone at once, open streams included."""
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: Any, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.headers.append(head)
            length = next(
                (
                    int(x.split(":")[1])
                    for x in head.splitlines()
                    if x.lower().startswith("content-length")
                ),
                0,
            )
            body = json.loads(await reader.readexactly(length)) if length else {}
            if head.startswith("GET"):
                listed = {"id": self.model, "object": "model", "owned_by": self.owner}
                await self._whole(writer, 200, {"object": "list", "data": [listed]})
            else:
                self.bodies.append(body)
                await self._complete(reader, writer, body)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._connections.discard(task)
            writer.close()

    async def _whole(
        self, writer: asyncio.StreamWriter, status: int, reply: Any, *headers: str
    ) -> None:
        data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        kind = "text/html" if data.startswith(b"<") else "application/json"
        lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {len(data)}"]
        lines += ["connection: close", *headers]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        await writer.drain()

    # -- what it writes ----------------------------------------------------------------------

    def _refusal(self, body: Json) -> str:
        """Why it does not take the request; empty if it does."""
        content = json.dumps(body["messages"])
        if body.get("tools") and not self.takes_tools:
            return "tools"
        if "image_url" in content and not self.takes_images:
            return "images"
        results = json.dumps([m for m in body["messages"] if m["role"] == "tool"])
        if "image_url" in results and not self.images_in_results:
            return "images in results"
        if body.get("logprobs") and body.get("top_logprobs", 0) > self.tops:
            return "logprobs"
        both = body.get("logprobs") and body.get("tools") and body.get("stream")
        if both and not self.tops_beside_tools:
            return "logprobs with tools and a stream"
        return "response_format" if body.get("response_format") and not self.schemas else ""

    def _tokens(self, body: Json) -> list[str]:
        if form := body.get("response_format"):
            schema = form["json_schema"]["schema"]
            values = {k: v["enum"][0] for k, v in schema.get("properties", {}).items()}
            return list(json.dumps(values if schema.get("type") == "object" else schema["enum"][0]))
        begun = self._begun(body)
        if begun.endswith("Par"):
            return ["is"]
        seed = body.get("seed", 0) if self.seeds and body["temperature"] else 0
        start = len(begun.split())
        return [f" {self._word(seed, i)}" for i in range(start, max(start, self.words))]

    def _begun(self, body: Json) -> str:
        last = body["messages"][-1]
        return last["content"] if last["role"] == "assistant" and self.continues else ""

    def _echo(self, body: Json) -> str:
        return self._begun(body) if self.echoes else ""

    def _word(self, seed: int, place: int) -> str:
        digest = hashlib.sha256(f"{seed}:{place}".encode()).digest()
        return WORDS[digest[0] % len(WORDS)]

    def _entry(self, token: str) -> Json:
        top = [{"token": token, "logprob": -0.5}, {"token": "x", "logprob": -1.5}]
        return {"token": token, "logprob": -0.5, "top_logprobs": top[: max(0, self.tops)]}

    def _usage(self, body: Json, count: int) -> Json:
        prompt = len(json.dumps(body["messages"])) // 4
        return {
            "prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count,
            "prompt_tokens_details": {"cached_tokens": 3},
        }  # fmt: skip

    async def _complete(self, reader: Any, writer: asyncio.StreamWriter, body: Json) -> None:
        if why := self._refusal(body):
            await self._whole(writer, 400, {"error": {"message": f"no {why}"}})
            return
        tokens = self._tokens(body)
        finish = "stop" if len(tokens) <= body["max_tokens"] else "length"
        tokens = tokens[: body["max_tokens"]]
        if not body.get("stream"):
            message = {"role": "assistant", "content": self._echo(body) + "".join(tokens)}
            choice: Json = {"index": 0, "message": message, "finish_reason": finish}
            if self.reasons:
                message["reasoning_content"] = self.reasons
            if body.get("logprobs") and self.tops:
                choice["logprobs"] = {"content": [self._entry(token) for token in tokens]}
            await self._whole(writer, 200, {"model": self.model, "choices": [choice]})
            return
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        gone = asyncio.create_task(reader.read())
        gone.add_done_callback(lambda done: done.cancelled() or done.exception())
        streaming = asyncio.create_task(self._stream(writer, body, tokens, finish))
        try:
            await asyncio.wait((gone, streaming), return_when=asyncio.FIRST_COMPLETED)
            if not streaming.done():
                self.num_broken += 1
            else:
                streaming.result()
        finally:
            self.running -= 1
            for task in (gone, streaming):
                task.cancel()
            await asyncio.gather(gone, streaming, return_exceptions=True)

    async def _stream(
        self, writer: asyncio.StreamWriter, body: Json, tokens: list[str], finish: str
    ) -> None:
        fault = self.choose_fault(body) if self.choose_fault else ""
        if self.faults and not _is_trial(body):
            fault = fault or self.faults.pop(0)
        if await self._faulty(writer, fault):
            return
        writer.write(
            b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        )

        async def send(delta: Json, reason: str | None = None, **more: Any) -> None:
            choice = {"index": 0, "delta": delta, "finish_reason": reason, **more}
            if fault == "two_choices":
                choice["index"] = 1
            model = "another" if fault == "other_model" else self.model
            chunk = json.dumps({"model": model, "choices": [choice]})
            writer.write(f"data: {chunk}\n\n".encode())
            await writer.drain()

        await send({"role": "assistant", "content": ""})
        for word in self.reasons.split():
            await send({"reasoning_content": word + " "})
        if self.calls and body.get("tools") and not _is_trial(body):
            tokens, finish = [], "tool_calls"
            name, arguments = self.calls.pop(0)
            function = {"name": name, "arguments": ""}
            await send({"tool_calls": [{"index": 0, "id": "x", "function": function}]})
            for i in range(0, len(arguments), 5):
                part = {"index": 0, "function": {"arguments": arguments[i : i + 5]}}
                await send({"tool_calls": [part]})
        for number, token in enumerate(tokens):
            await asyncio.sleep(self.gap_s)
            if number == 2 and fault in (
                "truncated",
                "hang_later",
                "error_event",
                "no_json",
                "no_object",
            ):
                await self._break(writer, fault)
                return
            more = {}
            if body.get("logprobs") and self.tops:
                entry = self._entry(token)
                entry |= {"logprob": float("nan")} if fault == "nan" else {}
                more = {"logprobs": {"content": [entry]}}
            said = self._echo(body) + token if number == 0 else token
            await send({"content": said}, **more)
        await send({}, finish)
        if self.counts:
            usage = self._usage(body, len(tokens) + self.extra_tokens)
            last = json.dumps({"model": self.model, "choices": [], "usage": usage})
            writer.write(f"data: {last}\n\n".encode())
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()

    async def _faulty(self, writer: asyncio.StreamWriter, fault: str) -> bool:
        """Faults before the first event."""
        if fault.startswith("status:"):
            header = [f"retry-after: {self.retry_after}"] if fault.endswith("429") else []
            await self._whole(writer, int(fault[7:]), {"error": {"message": "SECRET"}}, *header)
        elif fault == "error200":
            await self._whole(writer, 200, {"error": {"message": "SECRET"}})
        elif fault == "html":
            await self._whole(writer, 200, b"<html>SECRET</html>")
        elif fault == "hang":
            await asyncio.sleep(3600)
        elif fault == "close":
            writer.transport.abort()
        else:
            return False
        return True

    async def _break(self, writer: asyncio.StreamWriter, fault: str) -> None:
        """Faults in the middle."""
        wrong = {
            "error_event": b'data: {"error": {"message": "SECRET"}}\n\n',
            "no_json": b"data: {SECRET\n\n",
            "no_object": b"data: [1]\n\n",
        }
        if fault == "hang_later":
            await asyncio.sleep(3600)
        writer.write(wrong.get(fault, b'data: {"model": "ser'))
        await writer.drain()


def _is_trial(body: Json) -> bool:
    """Whether the adapter tries what the server can do."""
    return bool(body["messages"][0]["content"] == "Say hello.")
