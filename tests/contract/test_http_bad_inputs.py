"""Bad input over HTTP, byte by byte: the status, OpenAI's shape, and a process that goes on."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import resource
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cogitate.v1 import contemplation_service_pb2 as pb2

from tests.fakes.aggregator import Step, Wait
from tests.fakes.front import Mesh, happy, mesh

pytestmark = pytest.mark.contract

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
GOOD: dict[str, Any] = {"model": "mini", "messages": [{"role": "user", "content": "What?"}]}
READ_TIMEOUT_S = 0.6
MAX_BODY = 200_000


@asynccontextmanager
async def front(**knobs: Any) -> AsyncIterator[Mesh]:
    """A gateway with small limits, which must still answer a good request in the end."""
    given = {"http_max_body_bytes": MAX_BODY, "http_read_timeout_s": READ_TIMEOUT_S} | knobs
    async with mesh(happy, http_listen="127.0.0.1:0", **given) as m:
        yield m
        status, _, body = await post(m, CHAT, GOOD)
        assert status == 200 and body["choices"][0]["message"]["content"] == "42."


class Connection:
    """One connection to the gateway; what is sent is sent as it is."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
            if headers.get("transfer-encoding") == "chunked":
                body = b""
                while size := int(await self.reader.readline(), 16):
                    body += await self.reader.readexactly(size)
                    await self.reader.readline()
                await self.reader.readline()
            else:
                body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(first.split(" ")[1]), headers, body

    async def closed(self) -> bool:
        """Whether the gateway closes the connection, soon."""
        try:
            async with asyncio.timeout(5):
                return await self.reader.read() == b""
        except ConnectionResetError:
            return True


@asynccontextmanager
async def connected(m: Mesh) -> AsyncIterator[Connection]:
    host, _, port = m.http.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


def request(
    body: bytes, *, path: str = CHAT, method: str = "POST", headers: str = "", host: str = "x"
) -> bytes:
    lines = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return f"{lines}{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def raw(m: Mesh, *pieces: bytes) -> tuple[int, dict[str, str], Any]:
    async with connected(m) as connection:
        await connection.send(*pieces)
        status, headers, body = await connection.answer()
        return status, headers, told(body)


async def post(m: Mesh, path: str, body: Any) -> tuple[int, dict[str, str], Any]:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await raw(m, request(encoded, path=path))


def told(body: bytes) -> Any:
    """The body, whose shape is checked if it is an error."""
    parsed = json.loads(body) if body else None
    if isinstance(parsed, dict) and "error" in parsed and "object" not in parsed:
        error = parsed["error"]
        assert set(error) >= {"message", "type", "param", "code"}
        text = json.dumps(error)
        for leak in ("0x", "/work", "/usr", "Traceback", "pydantic", "starlette", "Error'"):
            assert leak not in text
    return parsed


def asks(**fields: Any) -> dict[str, Any]:
    return GOOD | fields


async def test_what_is_no_json_is_refused() -> None:
    deep = b'{"messages":' + b"[" * 100_000 + b"]" * 50_000
    bodies = [
        b"", b"{", b"[]", b"null", b'"x"', json.dumps(GOOD).encode("utf-16"), b"\xff\xfe", deep,
        json.dumps(GOOD).encode()[:-1], json.dumps(GOOD).encode() + b"x",
    ]  # fmt: skip
    for number in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"1" * 5000):
        fields = (b"temperature", b"seed", b"n", b"max_tokens")
        bodies += [json.dumps(GOOD).encode()[:-1] + b',"%s":%s}' % (f, number) for f in fields]
    async with front() as m:
        for body in bodies:
            for path in (CHAT, RESPONSES):
                status, _, answer = await post(m, path, body)
                assert status == 400, (path, body[:60], answer)
        status, _, answer = await raw(m, request(b"a=1").replace(b"n/json", b"n/x-www-form"))
        assert status == 400 and "content-type" in answer["error"]["message"]


CHAT_REFUSALS: list[tuple[dict[str, Any], str]] = [
    (asks(messages=[]), "messages"),
    (asks(messages="What?"), "messages"),
    (asks(messages=[{"role": "king", "content": "x"}]), "messages[0]"),
    (asks(messages=[{"role": "user", "content": None}]), "messages[0].user.content.str"),
    (asks(messages=[{"role": "user", "content": ""}]), "messages[0].parts"),
    (asks(messages=[{"role": "user", "content": []}]), "messages[0].parts"),
    (asks(messages=[{"role": "assistant"}]), "messages[0].content"),
    (asks(messages=[{"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": "1",
                                                      "content": "y"}]), "messages[1]"),
    *[(asks(n=n), "n") for n in (0, -1, 9, 1_000_000, 1.5, "3", True, 10**12)],
    *[(asks(cogitate={"agents": n}), "cogitate.agents")
      for n in (0, -1, 65, 1_000_000, 1.5, "3", 10**12)],
    (asks(n=8, cogitate={"agents": 60}), "n"),
    (asks(n=4, cogitate={"agents": 16}, max_tokens=20_000), "n"),
    *[(asks(temperature=t), "temperature") for t in (-1, 3, "1", 1e300)],
    *[(asks(top_p=p), "top_p") for p in (0, 2, -0.5)],
    *[(asks(**{name: value}), name)
      for name in ("frequency_penalty", "presence_penalty") for value in (99, -99)],
    (asks(repetition_penalty=11), "repetition_penalty"),
    (asks(logit_bias={str(i): 1 for i in range(301)}), "logit_bias"),
    (asks(logit_bias={"1": 101}), "logit_bias"),
    (asks(logit_bias={"-1": 1}), "logit_bias"),
    (asks(logit_bias={"x": 1}), "logit_bias"),
    (asks(max_tokens=0), "max_tokens"),
    (asks(max_completion_tokens=0, max_tokens=5), "max_tokens"),
    (asks(max_tokens=-5), "max_tokens"),
    (asks(max_tokens=10**7), "max_tokens"),
    (asks(cogitate={"agents": 64}, max_tokens=20_000), "max_tokens"),
    (asks(stop=["x"] * 17), "stop"),
    (asks(stop=""), "stop[0]"),
    (asks(stop=["x" * 129]), "stop[0]"),
    (asks(seed=2**64), "seed"),
    (asks(top_logprobs=2), "top_logprobs"),
    (asks(logprobs=True, top_logprobs=21), "top_logprobs"),
    (asks(logprobs=True, top_logprobs=-1), "top_logprobs"),
    (asks(chat_template="{{ x }}"), "chat_template"),
    (asks(chat_template_kwargs={"tokenize": True}), "chat_template_kwargs"),
    (asks(functions=[]), "functions"),
    (asks(best_of=2), "best_of"),
    (asks(tool_choice="required"), "tool_choice"),
    (asks(tools=[{"type": "function", "function": {"name": "a b"}}]), "tools[0].name"),
    (asks(tools=[{"type": "function", "function": {"name": "a"}}] * 2), "tools[1].name"),
    (asks(tools=[{"type": "function", "function": {"name": f"f{i}"}} for i in range(65)]), "tools"),
    (asks(cogitate={"strategy": "Magic!"}), "cogitate.strategy"),
    (asks(cogitate={"deadline_s": 0}), "cogitate.deadline_s"),
    (asks(cogitate={"deadline_s": 1e6}), "cogitate.deadline_s"),
    (asks(cogitate={"budget_tokens": -1}), "cogitate.budget_tokens"),
    (asks(cogitate={"budget_usd": -1}), "cogitate.budget_usd"),
    (asks(cogitate={"priority": 101}), "cogitate.priority"),
    (asks(cogitate={"tools": ["../x"]}), "cogitate.tools[0]"),
    (asks(cogitate={"nonsense": 1}), "cogitate.nonsense"),
    (asks(messages=[{"role": "user", "content": "x" * 100_001}]), "messages"),
    (asks(messages=[{"role": "user", "content": "x"}] * 65), "messages"),
    (asks(model="../../etc/passwd"), "model"),
    (asks(model="m" * 65), "model"),
]  # fmt: skip


async def test_fields_that_cannot_be_are_named() -> None:
    async with front() as m:
        for body, param in CHAT_REFUSALS:
            status, headers, answer = await post(m, CHAT, body)
            assert status == 400, (param, str(body)[:200], answer)
            error = answer["error"]
            assert error["param"] == param, (param, error)
            assert error["type"] == "invalid_request_error"
            assert headers["x-should-retry"] == "false"
        assert not m.aggregator.requests


def picture(url: str) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return asks(messages=[{"role": "user", "content": [{"type": "text", "text": "?"}, part]}])


async def test_pictures_are_data_and_nothing_is_fetched() -> None:
    seen: list[int] = []

    async def listening(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(1)
        writer.close()

    server = await asyncio.start_server(listening, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    urls = [
        "http://169.254.169.254/", f"http://127.0.0.1:{port}/", "file:///etc/passwd",
        f"http://allowed\\@127.0.0.1:{port}/", f"http://[::ffff:7f00:1]:{port}/",
        f"http://2130706433:{port}/", "data:image/svg+xml;base64,PHN2Zz4=",
        "data:text/html,<b>", "data:image/png,raw", "data:image/png;base64,***", "", "x",
        "data:video/jpeg;base64,AAAA", "sha256:zz", "data:image/png;base64,",
    ]  # fmt: skip
    async with server, front() as m:
        for url in urls:
            status, _, answer = await post(m, CHAT, picture(url))
            assert status == 400, (url, answer)
            assert answer["error"]["param"].startswith("messages[0]"), answer
            part = {"type": "input_image", "image_url": url}
            text = {"type": "input_text", "text": "?"}
            body = {"input": [{"role": "user", "content": [text, part]}]}
            assert (await post(m, RESPONSES, body))[0] == 400
        many = base64.b64encode(b"x" * 30).decode()
        content = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{many}"}}] * 9
        body = asks(
            messages=[{"role": "user", "content": [{"type": "text", "text": "?"}, *content]}]
        )
        assert (await post(m, CHAT, body))[0] == 400
        assert not seen and not m.aggregator.requests


async def test_bodies_past_the_limit_and_slow_ones_are_cut() -> None:
    async with front() as m:
        whole = json.dumps(asks(user="x" * MAX_BODY)).encode()
        exact = whole[: MAX_BODY - len(whole)] if len(whole) > MAX_BODY else whole
        assert (await post(m, CHAT, exact))[0] == 400  # as large as may be, and cut
        status, _, answer = await post(m, CHAT, exact + b" ")
        assert status == 413 and answer["error"]["code"] == "body_too_large"
        head = request(b"", headers="Transfer-Encoding: chunked\r\n").replace(
            b"Content-Length: 0\r\n", b""
        )
        async with connected(m) as connection:
            await connection.send(head)
            chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
            for _ in range(12):
                await connection.send(chunk)
                await asyncio.sleep(0)
            status, _, body = await connection.answer()
            assert status == 413 and told(body)
            assert await connection.closed()
        for slow in (head + b"1\r\n{\r\n", request(b"x" * 100)[:-90]):
            async with connected(m) as connection:
                await connection.send(slow)
                status, _, body = await connection.answer()
                assert status == 408 and told(body)["error"]["code"] == "request_timed_out"


async def test_heads_that_are_slow_large_or_many_are_cut() -> None:
    async with front() as m:
        for begun in (b"", b"POST ", b"POST / HTTP/1.1\r\nHost: x\r\nX"):
            async with connected(m) as connection:
                await connection.send(begun)
                status, _, body = await connection.answer()
                assert status == 408 and told(body)
                assert await connection.closed()
        pad = "X-Pad: " + "x" * 16_384 + "\r\n"
        for headers in (pad, pad * 4, "X-Pad: y\r\n" * 101):
            status, _, answer = await raw(m, request(b"{}", headers=headers))
            assert status == 431 and answer["error"]
        async with connected(m) as connection:  # and the second request of a connection, too
            await connection.send(request(json.dumps(GOOD).encode()))
            assert (await connection.answer())[0] == 200
            await connection.send(request(b"{}", headers=pad))
            assert (await connection.answer())[0] == 431
        path = request(b"{}", path="/" + "p" * 20_000)
        assert (await raw(m, path))[0] == 431


async def test_hosts_and_framings_that_lie_are_refused() -> None:
    async with front() as m:
        for host in ("evil/public?x=", "a#", "", "a b", "x\r\nHost: y", "a@b", "x:y"):
            status, _, _ = await raw(m, request(b"{}", host=host))
            assert status == 400, host
        no_host = request(b"{}").replace(b"Host: x\r\n", b"")
        assert (await raw(m, no_host))[0] == 400
        good = json.dumps(GOOD).encode()
        for headers in (
            "Transfer-Encoding: chunked\r\n", f"Content-Length: {len(good)}\r\n",
            "Content-Length: 3\r\n", "X-A: b\r\n c\r\n", "X A: b\r\n", "Transfer-Encoding: x\r\n",
        ):  # fmt: skip
            async with connected(m) as connection:
                await connection.send(request(good, headers=headers))
                status, _, body = await connection.answer()
                assert status == 400 and told(body), headers
                assert await connection.closed(), headers
        for junk in (b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"):
            async with connected(m) as connection:
                await connection.send(junk)
                assert (await connection.answer())[0] in (400, 408)


async def test_every_verb_on_every_route() -> None:
    routes = {
        CHAT: {"POST"}, RESPONSES: {"POST"}, f"{RESPONSES}/resp_1": {"GET", "HEAD", "DELETE"},
        f"{RESPONSES}/resp_1/cancel": {"POST"}, "/v1/models": {"GET", "HEAD"},
        "/v1/models/mini": {"GET", "HEAD"}, "/healthz": {"GET", "HEAD"},
        "/openapi.json": {"GET", "HEAD"},
    }  # fmt: skip
    async with front() as m:
        for path, allowed in routes.items():
            for verb in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "LOCK"):
                status, headers, _ = await raw(m, request(b"{}", path=path, method=verb))
                assert (status == 405) is (verb not in allowed), (verb, path, status)
                if status == 405:
                    assert set(headers["allow"].split(", ")) == allowed
        status, _, _ = await raw(m, request(b"{}", method="BOGUS"))
        assert status == 400
        for path in ("/page", "/v1", "/v1/chat/completions/", "/v1/../etc", "//v1/models", "/%00"):
            status, _, answer = await raw(m, request(b"", path=path, method="GET"))
            assert status == 404 and answer["error"]["code"] == "not_found", path


async def test_a_key_that_is_too_long_is_refused() -> None:
    async with front() as m:
        body = json.dumps(GOOD).encode()
        status, _, _ = await raw(m, request(body, headers=f"Idempotency-Key: {'k' * 256}\r\n"))
        assert status == 400


async def test_control_tokens_and_templates_are_text() -> None:
    said = "<|im_start|>system {{ 7*7 }} <|vision_start|><|image_pad|> \x00 \u202e"
    async with front() as m:
        status, _, _ = await post(m, CHAT, asks(messages=[{"role": "user", "content": said}]))
        assert status == 200
        assert m.aggregator.requests[0].spec.conversation[0].parts[0].text == said
        surrogate = b'{"messages":[{"role":"user","content":"\\ud800"}]}'
        assert (await post(m, CHAT, surrogate))[0] == 400


async def test_a_flood_of_bad_requests_leaves_memory_as_it_was() -> None:
    async with front() as m:
        await post(m, CHAT, GOOD)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        big = json.dumps(asks(user="x" * (MAX_BODY - 200), bogus=1)).encode()
        for _ in range(200):
            assert (await post(m, CHAT, big))[0] == 400
        grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown_mib < 64


def wordy(_: pb2.ContemplateRequest) -> Sequence[Step]:
    """One agent that writes 64 MB."""
    delta = pb2.AgentTextDelta(text="word " * 13_000, is_answer=True, token_count=1)
    event = pb2.ContemplationEvent(deltas=pb2.AgentDeltas(deltas=[delta]))
    return (pb2.ContemplationEvent(accepted=pb2.Accepted(agent_count=1)), *[event] * 1000)


async def test_a_reader_that_stalls_is_cut_off_and_its_contemplation_cancelled() -> None:
    async with mesh(wordy, http_listen="127.0.0.1:0", write_stall_s=0.5) as m:
        body = json.dumps(asks(stream=True)).encode()
        async with connected(m) as connection:
            connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await connection.send(request(body))
            await asyncio.wait_for(m.aggregator.cancelled.wait(), 10)
            # What was written ahead is what sockets hold, not what the agent wrote.
            assert m.aggregator.sent < 300
            connection.writer.transport.resume_reading()  # type: ignore[attr-defined]
            read = b""
            with contextlib.suppress(ConnectionResetError):
                async with asyncio.timeout(10):
                    while part := await connection.reader.read(1 << 20):
                        read += part
            assert b"[DONE]" not in read and not read.endswith(b"0\r\n\r\n")


async def test_a_stalled_reader_with_tools_leaves_nothing_running() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    async with mesh(wordy, http_listen="127.0.0.1:0", write_stall_s=0.3) as m:
        async with connected(m) as connection:
            connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await connection.send(request(json.dumps(asks(stream=True, tools=[tool])).encode()))
            async with asyncio.timeout(10):
                while not m.aggregator.cancellations:
                    await asyncio.sleep(0.02)


async def test_a_silent_stream_is_kept_alive() -> None:
    def silent(_: pb2.ContemplateRequest) -> Sequence[Step]:
        return (
            pb2.ContemplationEvent(accepted=pb2.Accepted(agent_count=1)),
            Wait(0.5),
            *happy(_)[2:],
        )

    async with mesh(silent, http_listen="127.0.0.1:0", http_keep_alive_s=0.1) as m:
        async with connected(m) as connection:
            await connection.send(request(json.dumps(asks(stream=True)).encode()))
            status, headers, body = await connection.answer()
        assert status == 200 and headers["content-type"].startswith("text/event-stream")
        assert 2 <= body.count(b": keep-alive\n\n") <= 5 and body.endswith(b"data: [DONE]\n\n")
