"""AgentDecoderService over real sockets, with a tiny random model."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cogitate.agent_decoder import runtime as runtime_module
from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.agent_decoder.grammars import Grammars
from cogitate.agent_decoder.rendering import BLIND, UNREAD
from cogitate.agent_decoder.server import build
from cogitate.cli.mesh.processes import free_ports
from cogitate.kit import config as configuration
from cogitate.kit import lifecycle, metrics
from cogitate.kit.channels import from_rpc_error, open_channel
from cogitate.kit.config import ServiceConfig
from cogitate.kit.errors import CogitateError
from cogitate.peers import orca_pb2
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import router_service_pb2 as router_pb
from cogitate.v1 import router_service_pb2_grpc as router_grpc
from cogitate.v1 import vision_encoder_service_pb2 as vision_pb
from cogitate.v1.agent_decoder_service_pb2_grpc import AgentDecoderServiceStub
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from tests.fakes import decode_stream
from tests.fakes.chat_model import QWEN25, chat_tokenizer, write_tokenizer_files
from tests.fakes.gguf_files import config_of, random_weights, write_checkpoint
from tests.fakes.tiny_model import CONTROL, HIDDEN, write_tiny_model
from tests.fakes.tiny_model import tokenizer as tiny_tokenizer
from tests.fakes.vision import FakeVision

pytestmark = pytest.mark.contract

ID = {name: i for i, name in enumerate(CONTROL)}
PICTURE = "sha256:" + hashlib.sha256(b"picture").hexdigest()
# Ends the call it is writing.
RUNS = {ID["run"]: 90.0}
# Never calls, never ends, never answers.
TALKS = dict.fromkeys((ID["call"], ID["end"], ID["answer"]), -100.0)


class Embedder(FakeVision):
    """Sends embeddings, right ones or as a test wants them; counts what was fetched."""

    def __init__(self, server: Any = None) -> None:
        super().__init__(server)
        self.fetched: list[tuple[str, bool]] = []
        self.wrong: common.Tensor | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def FetchEmbedding(
        self, request: vision_pb.FetchEmbeddingRequest, context: Any
    ) -> AsyncIterator[vision_pb.FetchEmbeddingResponse]:
        (view,) = request.views
        is_crop = view.HasField("box")
        self.fetched.append((view.blob_digest, is_crop))
        await self.open.wait()
        rows = 2 if is_crop else 4
        tensor = self.wrong or tensor_of(rows, HIDDEN)
        yield vision_pb.FetchEmbeddingResponse(embedding=tensor)


class FakeRouter(router_grpc.RouterServiceServicer):
    """Hears reports."""

    names = ("cogitate.v1.RouterService",)

    def __init__(self, server: Any) -> None:
        self.reports: list[router_pb.ReportRequest] = []
        router_grpc.add_RouterServiceServicer_to_server(self, server)

    async def start(self) -> None: ...
    async def drain(self, grace_s: float) -> None: ...
    async def stop(self) -> None: ...

    async def Report(
        self, request_iterator: AsyncIterator[router_pb.ReportRequest], context: Any
    ) -> AsyncIterator[router_pb.ReportResponse]:
        interval = router_pb.ReportResponse()
        interval.report_interval.FromMilliseconds(50)
        yield interval
        async for request in request_iterator:
            self.reports.append(request)


def positions_of(text: str) -> int:
    return len(tiny_tokenizer().encode(text).ids)


def tensor_of(*shape: int, value: float = 0.25) -> common.Tensor:
    size = math.prod(shape)
    data = struct.pack(f"<{size}f", *[value] * size)
    return common.Tensor(dtype=common.D_TYPE_FLOAT32, shape=shape, data=data)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_tiny_model(root)
    return root


class Stream(decode_stream.Stream):
    """Sends commands and keeps what was seen; may also end badly."""

    async def error(self) -> CogitateError:
        async with asyncio.timeout(20):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                while await self.call.read() is not grpc.aio.EOF:
                    pass
                await self.call.wait_for_connection()
                code = await self.call.code()
                if code is not grpc.StatusCode.OK:
                    raise grpc.aio.AioRpcError(
                        code,
                        await self.call.initial_metadata(),
                        await self.call.trailing_metadata(),
                    )
        return from_rpc_error(caught.value)


class Decoder:
    """A running service and what a test does with it."""

    def __init__(self, running: lifecycle.Running) -> None:
        self.running, self.address = running, running.address
        self.service: Any = running.service
        self.runtime = self.service._runtime
        self.streams: list[Stream] = []

    def stream(self) -> Stream:
        self.streams.append(Stream(self.address))
        return self.streams[-1]

    async def opened(self, *agents: pb.AgentSpec, **fields: Any) -> Stream:
        stream = self.stream()
        await stream.send(open=opening(*agents, **fields))
        return stream

    async def endpoint(self) -> pb.GetEndpointResponse:
        async with open_channel(self.address) as channel:
            stub = AgentDecoderServiceStub(channel)
            response: pb.GetEndpointResponse = await stub.GetEndpoint(
                pb.GetEndpointRequest(), timeout=10
            )
            return response

    async def empty_within(self, seconds: float) -> None:
        """Waits until nothing runs and every block is free."""
        pool = self.runtime.engine.pool
        async with asyncio.timeout(seconds):
            while pool.num_free < pool.num_blocks or self.runtime._streams:
                await asyncio.sleep(0.01)
        pool.check_integrity()


@asynccontextmanager
async def decoder(models: Path, **knobs: Any) -> AsyncIterator[Decoder]:
    config = AgentDecoderConfig(
        **{
            "model": "tiny", "models_path": models, "threads": 1, "drain_grace_s": 0.2,
            "block_count": 1024, "block_size_count": 4, "endpoint_id": "e1",
            # A message a step: of a fast machine's many tokens would come in one.
            "flush_interval_s": 0.0, **knobs,
        }
    )  # fmt: skip
    async with lifecycle.serving(config, build, name="agent-decoder") as running:
        made = Decoder(running)
        try:
            yield made
        finally:
            for stream in made.streams:
                stream.call.cancel()
                await stream.channel.close()


def spec(agent_id: int = 0, *, bias: dict[int, float] | None = None, **fields: Any) -> pb.AgentSpec:
    sampling = {"max_tokens": 6, "temperature": 0.9, **fields.pop("sampling", {})}
    if bias is not None:
        sampling["logit_bias"] = bias
    params = common.SamplingParams(**sampling)
    return pb.AgentSpec(**{"agent_id": agent_id, "seed": 5, "sampling_params": params, **fields})


def caller(agent_id: int = 0, **fields: Any) -> pb.AgentSpec:
    """An agent that calls a tool with its first token here: it had begun the call before."""
    begun = pb.Segment(sampled=pb.TokenIds(token_ids=[ID["call"]]))
    state = pb.ResumeState(segments=[begun], sampled_token_count=1)
    return spec(agent_id, bias=RUNS, resume_state=state, **fields)


LONG = {"max_tokens": 200, "ignore_eos": True}


def opening(*agents: pb.AgentSpec, parts: Iterable[common.Part] = (), **fields: Any) -> pb.OpenGang:
    parts = list(parts) or [common.Part(text="How many?")]
    return pb.OpenGang(
        **{
            "contemplation_id": "c1", "gang_id": "1", "attempt": 1, "owner_epoch": 3,
            "model": "tiny", "agents": agents or [spec()],
            "conversation": [common.Message(role=common.ROLE_USER, parts=parts)], **fields,
        }
    )  # fmt: skip


def kinds(responses: Iterable[pb.DecodeResponse]) -> list[str]:
    return [str(response.WhichOneof("event")) for response in responses]


# -- a gang's life --------------------------------------------------------------------------------


async def test_an_agent_that_waits_from_the_start_leaves_its_prompt_in_the_cache(
    models: Path,
) -> None:
    """How a prompt is computed ahead: nothing is sampled or held, and a later gang finds it."""
    parts = [common.Part(text="How many cards are there?")]
    waiting = spec(resume_state=pb.ResumeState(pending_call_id="none"))
    async with decoder(models) as made:
        stream = await made.opened(waiting, parts=parts, tenant="t")
        await stream.send(close=pb.CloseGang())
        seen = await stream.end()
        assert kinds(seen) == ["admitted", "prefilled", "finished", "gang_finished"]
        finished = seen[2].finished
        assert finished.finish_reason == common.FINISH_REASON_CANCELLED
        assert (finished.kill_reason, finished.usage.sampled_token_count) == ("CLOSED", 0)
        await made.empty_within(1)
        for tenant, least in (("t", 4), ("other", 0)):
            longer = [common.Part(text=parts[0].text + " And how many are red?")]
            later = await made.opened(spec(), parts=longer, tenant=tenant)
            cached = (await later.until("prefilled")).cached_token_count
            assert bool(cached) == bool(least) and cached >= least


async def test_the_order_of_a_gangs_events(models: Path) -> None:
    async with decoder(models) as made:
        stream = await made.opened(spec(0), spec(1, hint_index=4), spec(2, hint="Third."))
        await stream.send(close=pb.CloseGang())
        seen = await stream.end()
        assert kinds(seen)[:2] == ["admitted", "prefilled"]
        assert kinds(seen)[-1] == "gang_finished"
        assert kinds(seen).count("finished") == 3
        admitted = seen[0].admitted
        assert dict(admitted.hints) == {1: "First.", 2: "Third."}
        assert (admitted.endpoint_id, admitted.build_digest[:7]) == ("e1", "sha256:")
        assert pb.CAPABILITY_VISION in admitted.capabilities
        prompt = seen[1].prefilled.prompt_token_count
        finished = seen[-1].gang_finished
        assert finished.usage.prompt_token_count == prompt > 0
        sampled = [r.finished.usage.sampled_token_count for r in seen if r.HasField("finished")]
        assert finished.usage.sampled_token_count == sum(sampled)
        assert sum(len(stream.tokens(i)) for i in range(3)) == sum(sampled)
        offsets = [
            d.token_offset + i
            for r in seen
            for d in r.step.deltas
            if d.agent_id == 0
            for i in range(len(d.token_ids))
        ]
        assert offsets == list(range(len(offsets)))
        await made.empty_within(1)


async def test_one_message_a_step_for_the_whole_gang(models: Path) -> None:
    async with decoder(models) as made:
        agents = [spec(i, bias=TALKS, sampling={"max_tokens": 5}) for i in range(4)]
        stream = await made.opened(*agents)
        await stream.send(close=pb.CloseGang())
        steps = [r.step for r in await stream.end() if r.HasField("step")]
        assert [len(step.deltas) for step in steps] == [4] * len(steps)
        # What was sampled within an interval travels together; the newest step is named.
        assert [step.step_offset for step in steps] == list(
            itertools.accumulate(len(step.deltas[0].token_ids) for step in steps)
        )
        assert steps[-1].step_offset == 5


async def test_logprobs_are_sent_as_asked(models: Path) -> None:
    async with decoder(models) as made:
        stream = await made.opened(spec(0, sampling={"logprobs": 3}), spec(1))
        await stream.send(close=pb.CloseGang())
        deltas = [d for r in await stream.end() for d in r.step.deltas]
        for d in deltas:
            assert len(d.logprobs) == len(d.token_ids) and max(d.logprobs) <= 0
            asked = [] if d.agent_id else [3] * len(d.token_ids)
            assert [len(top.token_ids) for top in d.top_logprobs] == asked
            for top in d.top_logprobs:
                assert list(top.logprobs) == sorted(top.logprobs, reverse=True)
                assert len(top.tokens) == len(top.token_ids)
            assert len(d.tokens) == (0 if d.agent_id else len(d.token_ids))
        assert "".join(t for d in deltas for t in d.tokens).startswith(
            "".join(d.text for d in deltas if not d.agent_id and not d.is_answer)
        )


async def test_instant_effort_answers_at_once(models: Path) -> None:
    async with decoder(models) as made:
        stream = await made.opened(spec(bias=TALKS), effort=common.EFFORT_INSTANT)
        await stream.send(close=pb.CloseGang())
        seen = await stream.end()
        assert all(d.is_answer for r in seen for d in r.step.deltas)
        (finished,) = (r.finished for r in seen if r.HasField("finished"))
        assert finished.finish_reason == common.FINISH_REASON_LENGTH


async def test_a_tool_call_pauses_and_its_result_goes_on(models: Path) -> None:
    async with decoder(models) as made:
        stream = await made.opened(caller(sampling={"max_tokens": 4}))
        call = await stream.until("tool_call")
        assert (call.call.call_id, call.call.name, call.sampled_token_count) == ("a0.1.c1", "", 2)
        text = [common.Part(text="42 <|end|>")]
        result = common.ToolResult(call_id="a0.1.c1", parts=text)
        for call_id in ("a0.1.c9", "", "a0.1.c1", "a0.1.c1"):  # unknown, none, right, doubled
            await stream.send(
                inject=pb.InjectAgent(agent_id=0, call_id=call_id, tool_result=result)
            )
        await stream.send(inject=pb.InjectAgent(agent_id=7, call_id="x", text="nobody"))
        finished = await stream.until("finished")
        assert finished.finish_reason == common.FINISH_REASON_LENGTH
        assert kinds(stream.seen).count("injected") == 1
        # <|result|>, ten bytes, <|end_result|>.
        injected = await stream.until("injected")
        assert injected.injected_token_count == finished.usage.injected_token_count == 12
        late = pb.InjectAgent(agent_id=0, call_id="a0.1.c2", tool_result=result)
        await stream.send(inject=late)
        await stream.send(close=pb.CloseGang())
        assert kinds(await stream.end())[-1] == "gang_finished"


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ({"text": "hi"}, 2),
        ({"tokens": pb.TokenIds(token_ids=[40, 41, 42])}, 3),
        ({"embedding": tensor_of(5, HIDDEN)}, 5),
        ({"tool_result": common.ToolResult(is_error=True)}, 2 + len("The tool failed.") - 1),
    ],
)
async def test_what_can_be_injected(models: Path, content: dict[str, Any], count: int) -> None:
    async with decoder(models) as made:
        stream = await made.opened(caller())
        call = await stream.until("tool_call")
        await stream.send(inject=pb.InjectAgent(agent_id=0, call_id=call.call.call_id, **content))
        injected = await stream.until("injected")
        assert injected.injected_token_count in (count, count + 1)  # some pairs are one token


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "needs a tool result"),
        ({"tokens": pb.TokenIds(token_ids=[999])}, "vocabulary"),
        ({"tokens": pb.TokenIds(token_ids=[-1])}, "vocabulary"),
        ({"embedding": tensor_of(5, HIDDEN + 1)}, "shape"),
        ({"embedding": tensor_of(5, HIDDEN, value=math.nan)}, "finite"),
    ],
)
async def test_what_cannot_be_injected_ends_the_stream_with_a_clear_error(
    models: Path, content: dict[str, Any], message: str
) -> None:
    async with decoder(models) as made:
        stream = await made.opened(caller())
        call = await stream.until("tool_call")
        await stream.send(inject=pb.InjectAgent(agent_id=0, call_id=call.call.call_id, **content))
        error = await stream.error()
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
        assert message in error.message
        await made.empty_within(1)


async def test_a_result_too_long_ends_its_agent_only(models: Path) -> None:
    async with decoder(models, max_injected_token_count=8) as made:
        stream = await made.opened(caller(0), spec(1, bias=TALKS, sampling=LONG))
        call = await stream.until("tool_call")
        inject = pb.InjectAgent(agent_id=0, call_id=call.call.call_id, text="x" * 1_000_000)
        await stream.send(inject=inject)
        finished = await stream.until("finished")
        assert (finished.agent_id, finished.finish_reason) == (0, common.FINISH_REASON_LENGTH)
        await stream.until("step", kinds(stream.seen).count("step") + 2)


async def test_kill_is_acknowledged_and_nothing_follows(models: Path) -> None:
    async with decoder(models) as made:
        stream = await made.opened(*(spec(i, bias=TALKS, sampling=LONG) for i in range(3)))
        await stream.until("step", 5)
        await stream.send(kill=pb.KillAgents(agent_ids=[1, 99], reason="DECIDED"))
        finished = await stream.until("finished")
        assert (finished.agent_id, finished.kill_reason) == (1, "DECIDED")
        assert finished.finish_reason == common.FINISH_REASON_CANCELLED
        assert len(stream.tokens(1)) == finished.usage.sampled_token_count
        await stream.until("step", kinds(stream.seen).count("step") + 5)
        assert len(stream.tokens(1)) == finished.usage.sampled_token_count
        await stream.send(kill=pb.KillAgents(reason="DECIDED"))
        await stream.until("finished", 3)
        await stream.send(close=pb.CloseGang())
        await stream.end()
        await made.empty_within(1)


async def test_grants(models: Path) -> None:
    async with decoder(models) as made:
        agent = spec(bias=TALKS, sampling={"max_tokens": 5}, granted_token_count=2)
        stream = await made.opened(agent)
        waiting = await stream.until("awaiting_grant")
        assert (waiting.sampled_token_count, len(stream.tokens(0))) == (2, 2)
        await stream.send(grant=pb.GrantTokens(granted_token_counts={0: 4, 8: 9}))
        assert (await stream.until("awaiting_grant", 2)).sampled_token_count == 4
        await stream.send(close=pb.CloseGang())  # no grant can come any more
        finished = await stream.until("finished")
        assert finished.finish_reason == common.FINISH_REASON_BUDGET
        assert kinds(await stream.end())[-1] == "gang_finished"


async def test_agents_are_added_and_those_that_cannot_be_end_alone(models: Path) -> None:
    async with decoder(models, max_sequence_count=3) as made:
        stream = await made.opened(spec(0, bias=TALKS, sampling=LONG))
        await stream.until("step")
        bad = spec(3, sampling={"temperature": 9.0})
        agents = [spec(0), spec(1, bias=TALKS, sampling=LONG), bad]  # 0 runs already: ignored
        await stream.send(add_agents=pb.AddAgents(agents=agents))
        first = await stream.until("finished")
        assert (first.agent_id, first.kill_reason) == (3, "INVALID_REQUEST")
        assert first.finish_reason == common.FINISH_REASON_ERROR
        more = [spec(i, bias=TALKS, sampling=LONG) for i in (4, 5)]
        await stream.send(add_agents=pb.AddAgents(agents=more))
        second = await stream.until("finished", 2)
        assert (second.agent_id, second.kill_reason) == (5, "REJECTED")
        while not (stream.tokens(1) and stream.tokens(4)):
            await stream.read()
        await stream.send(kill=pb.KillAgents(reason="DECIDED"))
        await stream.send(close=pb.CloseGang())
        seen = await stream.end()
        assert kinds(seen).count("finished") == 5
        assert "refused" not in kinds(seen)


async def test_resume_goes_on_with_the_same_tokens(models: Path) -> None:
    async with decoder(models) as made:
        agent = spec(bias=TALKS, sampling={"max_tokens": 12}, hint="First.")
        stream = await made.opened(agent)
        await stream.send(close=pb.CloseGang())
        build_digest = (await stream.end())[0].admitted.build_digest
        whole = stream.tokens(0)
        state = pb.ResumeState(
            segments=[pb.Segment(sampled=pb.TokenIds(token_ids=whole[:7]))],
            sampled_token_count=7,
            build_digest=build_digest,
        )
        agent.MergeFrom(pb.AgentSpec(attempt=2, resume_state=state))
        again = await made.opened(agent)
        await again.send(close=pb.CloseGang())
        await again.end()
        assert again.tokens(0) == whole[7:]


async def test_a_state_that_was_asked_for_goes_on_elsewhere(models: Path) -> None:
    async with decoder(models) as made:
        agent = spec(bias=TALKS, sampling={"max_tokens": 40})
        whole = await made.opened(agent)
        await whole.send(close=pb.CloseGang())
        await whole.end()
        agent.granted_token_count = 17
        first = await made.opened(agent, caller(1))
        await first.until("awaiting_grant")
        await first.send(request_resume_states=pb.RequestResumeStates(agent_ids=[0, 9]))
        state = (await first.until("resume_state")).state
        assert state.sampled_token_count == 17
        assert list(state.segments[0].sampled.token_ids) == whole.tokens(0)[:17] == first.tokens(0)
        agent.MergeFrom(pb.AgentSpec(attempt=2, resume_state=state, granted_token_count=40))
        second = await made.opened(agent, gang_id="2")
        await second.send(close=pb.CloseGang())
        await second.end()
        assert second.tokens(0) == whole.tokens(0)[17:]


async def test_a_state_is_left_out_where_the_contract_cannot_carry_it(models: Path) -> None:
    crop = common.ToolResult(parts=[picture(0, 0, 500, 500)])
    async with seeing(models) as (made, _):
        stream = await made.opened(caller(0), caller(1))
        await stream.until("tool_call", 2)
        await stream.send(pause=pb.PauseAgents())
        raw = pb.InjectAgent(agent_id=0, call_id="a0.1.c1", embedding=tensor_of(2, HIDDEN))
        await stream.send(inject=raw)
        shown = pb.InjectAgent(agent_id=1, call_id="a1.1.c1", tool_result=crop)
        await stream.send(inject=shown)
        await stream.until("injected", 2)
        await stream.send(request_resume_states=pb.RequestResumeStates())
        await stream.until("resume_state", 2)
        found = [r.resume_state for r in stream.seen if r.HasField("resume_state")]
        states = {state.agent_id: state for state in found}
        assert not states[0].HasField("state")
        assert states[1].state.segments[1].tool_result == crop
        assert states[1].state.build_digest[:7] == "sha256:"


async def test_pause_steer_and_fork(models: Path) -> None:
    async with decoder(models) as made:
        assert pb.CAPABILITY_FORK in (await made.endpoint()).description.capabilities
        stream = await made.opened(spec(0, bias=TALKS, sampling=LONG, granted_token_count=5))
        await stream.until("awaiting_grant")
        await stream.send(pause=pb.PauseAgents(agent_ids=[0]))
        await stream.send(grant=pb.GrantTokens(granted_token_counts={0: 200}))
        copy = pb.AgentSpec(agent_id=4, seed=8, granted_token_count=6)
        copies = [
            pb.ForkAgent(agent_id=0, token_offset=2, agent=copy),
            pb.ForkAgent(agent_id=0, token_offset=-1, agent=spec(5, hint="Other.")),
            pb.ForkAgent(agent_id=9, token_offset=-1, agent=spec(6)),
            pb.ForkAgent(agent_id=0, token_offset=-1, agent=spec(7, sampling={"regex": "("})),
        ]
        for command in copies:
            await stream.send(fork=command)
        found = [await stream.until("finished", n) for n in (1, 2, 3)]
        assert {f.agent_id: f.kill_reason for f in found} == {
            5: "INVALID_REQUEST", 6: "NOT_FOUND", 7: "INVALID_REQUEST"
        }  # fmt: skip
        while len(stream.tokens(4)) < 4:
            await stream.read()
        (first, *_) = (d for r in stream.seen for d in r.step.deltas if d.agent_id == 4)
        assert first.token_offset == 2
        assert len(stream.tokens(0)) == 5
        await stream.send(inject=pb.InjectAgent(agent_id=0, text="Or"))
        while len(stream.tokens(0)) < 8:
            await stream.read()
        await stream.send(kill=pb.KillAgents(reason="DECIDED"))
        await stream.send(close=pb.CloseGang())
        await stream.end()
        await made.empty_within(1)


async def test_an_answer_follows_its_schema_and_a_bad_one_ends_its_agent_only(
    models: Path,
) -> None:
    async with decoder(models) as made:
        assert pb.CAPABILITY_CONSTRAINT in (await made.endpoint()).description.capabilities
        schema = {"json_schema": '{"enum":["yes","no"]}', "max_tokens": 40}
        running = spec(0, bias={ID["answer"]: 20.0}, sampling=schema)
        stream = await made.opened(running, spec(1, bias=TALKS, sampling=LONG))
        bad = spec(2, sampling={"regex": "(?=a)b"})
        await stream.send(add_agents=pb.AddAgents(agents=[bad]))
        finished = {f.agent_id: f for f in [await stream.until("finished", n) for n in (1, 2)]}
        assert finished[0].answer in ('"yes"', '"no"')
        assert finished[0].finish_reason == common.FINISH_REASON_STOP
        assert finished[2].kill_reason == "INVALID_REQUEST"
        await stream.until("step", kinds(stream.seen).count("step") + 2)


# -- what is not taken ----------------------------------------------------------------------------


@pytest.mark.parametrize("first", [{}, {"close": pb.CloseGang()}, {"kill": pb.KillAgents()}])
async def test_the_first_message_must_open(models: Path, first: dict[str, Any]) -> None:
    async with decoder(models) as made:
        stream = made.stream()
        await stream.send(**first)
        error = await stream.error()
        assert (error.code, error.message) == (
            "INVALID_ARGUMENT", "the first message of a Decode stream must be open"
        )  # fmt: skip


async def test_a_stream_without_any_message(models: Path) -> None:
    async with decoder(models) as made:
        stream = made.stream()
        await stream.call.done_writing()
        assert (await stream.error()).code == "INVALID_ARGUMENT"


REFUSED: dict[str, tuple[Callable[[], pb.OpenGang], str, str]] = {
    "unknown model": (lambda: opening(model="gpt"), "UNKNOWN_MODEL", "'tiny'"),
    "no agents": (lambda: _without_agents(), "INVALID_REQUEST", "1 to 64 agents"),
    "too many": (lambda: opening(*map(spec, range(65))), "INVALID_REQUEST", "1 to 64 agents"),
    "duplicates": (lambda: opening(spec(1), spec(1)), "INVALID_REQUEST", "differ"),
    "negative id": (lambda: opening(spec(-1)), "INVALID_REQUEST", "negative"),
    "negative grant": (
        lambda: opening(spec(granted_token_count=-1)), "INVALID_REQUEST", "negative"
    ),
    "too long": (lambda: opening(parts=[common.Part(text="q" * 300)]), "INVALID_REQUEST", "256"),
    "far too long": (
        lambda: opening(parts=[common.Part(text="q" * 20_000_000)]), "INVALID_REQUEST", "shorten"
    ),
    "long prefix of an agent": (
        lambda: opening(spec(assistant_prefix="q" * 250)), "INVALID_REQUEST", "shorten"
    ),
    "temperature": (
        lambda: opening(spec(sampling={"temperature": 3.0})), "INVALID_REQUEST", "temperature"
    ),
    "temperature nan": (
        lambda: opening(spec(sampling={"temperature": math.nan})), "INVALID_REQUEST", "temperature"
    ),
    "regex": (lambda: opening(spec(sampling={"regex": "("})), "INVALID_REQUEST", "unclosed"),
    "schema": (
        lambda: opening(spec(sampling={"json_schema": '{"type":"word"}'})),
        "INVALID_REQUEST", "the json_schema cannot be followed: Invalid type",
    ),
    "schema from elsewhere": (
        lambda: opening(spec(sampling={"json_schema": '{"$ref":"http://x/y"}'})),
        "INVALID_REQUEST", "cannot be followed",
    ),
    "other build": (
        lambda: opening(spec(resume_state=pb.ResumeState(build_digest="sha256:x"))),
        "BUILD_MISMATCH", "afresh",
    ),
    "wrong counter": (
        lambda: opening(spec(resume_state=pb.ResumeState(sampled_token_count=2))),
        "INVALID_REQUEST", "as many",
    ),
    "empty segment": (
        lambda: opening(spec(resume_state=pb.ResumeState(segments=[pb.Segment()]))),
        "INVALID_REQUEST", "segment",
    ),
    "no role": (
        lambda: opening(conversation=[common.Message(parts=[common.Part(text="q")])]),
        "INVALID_REQUEST", "role",
    ),
    "no vision-encoder": (
        lambda: opening(parts=[common.Part(image=common.ImagePart(digest=PICTURE))]),
        "NO_ENDPOINT", "vision-encoder",
    ),
}  # fmt: skip


def _without_agents() -> pb.OpenGang:
    made = opening()
    del made.agents[:]
    return made


async def test_refusals(models: Path) -> None:
    async with decoder(models) as made:
        for name, (ask, reason, words) in REFUSED.items():
            stream = made.stream()
            await stream.send(open=ask())
            (response,) = await stream.end()
            refused = response.refused
            assert (refused.reason, words in refused.message) == (reason, True), name
            assert not refused.HasField("retry_delay"), name
        await made.empty_within(1)


async def test_a_full_queue_says_when_to_come_back(models: Path) -> None:
    async with decoder(models, max_sequence_count=1, max_waiting_gang_count=1) as made:
        first = await made.opened(spec(bias=TALKS, sampling=LONG))
        await first.until("admitted")
        second = await made.opened(spec(bias=TALKS))
        while not (await made.endpoint()).load.waiting_sequence_count:
            await asyncio.sleep(0.01)
        third = await made.opened(spec(bias=TALKS))
        (response,) = await third.end()
        assert response.refused.reason == "REJECTED"
        assert response.refused.retry_delay.seconds == 1
        first.call.cancel()
        await second.until("finished")


async def test_a_stale_owner_is_refused_and_one_that_was_overtaken_is_ended(models: Path) -> None:
    async with decoder(models) as made:
        old = await made.opened(spec(bias=TALKS, sampling=LONG))
        await old.until("step")
        stale = await made.opened(owner_epoch=2)
        error = await stale.error()
        assert (error.code, error.reason) == ("FAILED_PRECONDITION", "NOT_OWNER")
        assert error.metadata["owner_epoch"] == "3"
        other = await made.opened(owner_epoch=1, contemplation_id="c2")
        await other.until("admitted")
        newer = await made.opened(owner_epoch=4)
        await newer.until("admitted")
        assert (await old.error()).reason == "NOT_OWNER"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ({"open": opening()}, "one gang only"),
        ({}, "missing"),
    ],
)
async def test_commands_that_are_not_there(
    models: Path, command: dict[str, Any], words: str
) -> None:
    async with decoder(models) as made:
        stream = await made.opened(spec(bias=TALKS, sampling=LONG))
        await stream.until("step")
        await stream.send(**command)
        error = await stream.error()
        assert error.code == "INVALID_ARGUMENT"
        assert words in error.message
        await made.empty_within(1)


# -- images ---------------------------------------------------------------------------------------


@asynccontextmanager
async def embedder() -> AsyncIterator[tuple[Embedder, lifecycle.Running]]:
    made: list[Embedder] = []

    async def build_vision(config: Any, server: Any) -> Embedder:
        made.append(Embedder(server))
        return made[0]

    async with lifecycle.serving(ServiceConfig(drain_grace_s=0.1), build_vision) as running:
        yield made[0], running


@asynccontextmanager
async def seeing(models: Path) -> AsyncIterator[tuple[Decoder, Embedder]]:
    async with embedder() as (vision, serving):
        async with decoder(models, vision_encoder_address=serving.address) as running:
            yield running, vision


def picture(*box: int) -> common.Part:
    part = common.ImagePart(digest=PICTURE)
    if box:
        x0, y0, x1, y1 = box
        part.box.CopyFrom(
            common.Box(x0_permille=x0, y0_permille=y0, x1_permille=x1, y1_permille=y1)
        )
    return common.Part(image=part)


async def test_an_image_is_fetched_once_whoever_shows_it(models: Path) -> None:
    async with seeing(models) as (made, vision):
        agents = [caller(i) for i in range(3)]
        streams = [await made.opened(*agents, parts=[picture()], gang_id=g) for g in "12"]
        result = common.ToolResult(parts=[picture(0, 0, 500, 500)])
        for stream in streams:
            for call in range(1, 4):
                asked = await stream.until("tool_call", call)
                inject = pb.InjectAgent(
                    agent_id=asked.agent_id, call_id=asked.call.call_id, tool_result=result
                )
                await stream.send(inject=inject)
            injected = await stream.until("injected", 3)
            assert injected.injected_token_count == 4  # <|result|>, two rows, <|end_result|>
        assert sorted(vision.fetched) == [(PICTURE, False), (PICTURE, True)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (tensor_of(4, HIDDEN + 1), "shape"),
        (tensor_of(4, HIDDEN, value=math.nan), "finite"),
        (tensor_of(3, HIDDEN), "3 rows"),
        (common.Tensor(dtype=common.D_TYPE_FLOAT32, shape=[4, HIDDEN], data=b"x"), "bytes"),
    ],
)
async def test_a_vision_encoder_is_not_trusted(
    models: Path, wrong: common.Tensor, words: str
) -> None:
    async with seeing(models) as (made, vision):
        vision.wrong = wrong
        stream = await made.opened(parts=[picture()])
        (response,) = await stream.end()
        assert response.refused.reason == "ENGINE_FAILURE"
        assert words in response.refused.message


async def test_the_vision_encoder_of_the_site_is_asked_before_the_gangs(models: Path) -> None:
    gone = f"127.0.0.1:{free_ports(1)[0]}"
    async with embedder() as (own, near), embedder() as (named, far):
        gang = {"parts": [picture()], "vision_encoder_address": far.address}
        async with decoder(models, vision_encoder_address=near.address) as made:
            await (await made.opened(**gang)).until("step")
            assert (len(own.fetched), len(named.fetched)) == (1, 0)
            own.wrong = tensor_of(4, HIDDEN + 1)
            gang["parts"] = [picture(0, 0, 500, 500)]
            await (await made.opened(gang_id="2", **gang)).until("step")
            assert (len(own.fetched), len(named.fetched)) == (2, 1)
            named.wrong = tensor_of(3, HIDDEN)
            gang["parts"] = [picture(0, 0, 500, 400)]
            refused = (await (await made.opened(gang_id="3", **gang)).end())[0].refused
            assert (refused.reason, "3 rows" in refused.message) == ("ENGINE_FAILURE", True)
            named.wrong = None
        for knobs in ({"vision_encoder_address": gone}, {}):
            asked = len(named.fetched)
            async with decoder(models, **knobs) as made:
                await (await made.opened(**gang)).until("step")
            assert len(named.fetched) == asked + 1


async def test_a_crop_that_cannot_be_had_becomes_a_sentence(models: Path) -> None:
    async with seeing(models) as (made, vision):
        stream = await made.opened(caller())
        call = await stream.until("tool_call")
        vision.wrong = tensor_of(1, 1)
        result = common.ToolResult(parts=[picture(0, 0, 500, 500)])
        await stream.send(
            inject=pb.InjectAgent(agent_id=0, call_id=call.call.call_id, tool_result=result)
        )
        assert (await stream.until("injected")).injected_token_count > 20


async def test_what_comes_with_an_image_is_there_without_it(models: Path) -> None:
    """Two callers get the same result; the image of the second cannot be had."""
    result = common.ToolResult(parts=[common.Part(text="seven"), picture()])
    async with seeing(models) as (made, vision):
        counts = []
        for number in range(2):
            stream = await made.opened(caller(), gang_id=str(number))
            call = (await stream.until("tool_call")).call
            inject = pb.InjectAgent(agent_id=0, call_id=call.call_id, tool_result=result)
            await stream.send(inject=inject)
            counts.append((await stream.until("injected")).injected_token_count)
            vision.wrong = tensor_of(1, 1)
            result.parts[1].image.digest = "sha256:" + "0" * 64
        assert counts == [2 + len("seven") + 4, 2 + len("seven") + positions_of(UNREAD)]


async def test_a_model_without_sight_is_told_that_an_image_came(tmp_path: Path) -> None:
    config = config_of("qwen2", max_position_embeddings=1024)
    write_tokenizer_files(
        write_checkpoint(tmp_path / "chat", config, random_weights(config)), QWEN25
    )
    tokenizer = chat_tokenizer()
    begun = tokenizer.encode(
        '<tool_call>\n{"name":"draw","arguments":{}}\n</tool_call', add_special_tokens=False
    ).ids
    state = pb.ResumeState(
        segments=[pb.Segment(sampled=pb.TokenIds(token_ids=begun))],
        sampled_token_count=len(begun),
    )
    agent = spec(
        bias={tokenizer.token_to_id(">"): 90.0},
        resume_state=state,
        sampling={"max_tokens": len(begun) + 2},
    )
    tool = common.ToolSpec(name="draw", parameters_json_schema='{"type":"object"}')
    async with decoder(tmp_path, model="chat") as made:
        stream = await made.opened(agent, model="chat", tools=[tool])
        call = (await stream.until("tool_call")).call
        result = common.ToolResult(parts=[common.Part(text="2"), picture()])
        await stream.send(
            inject=pb.InjectAgent(agent_id=0, call_id=call.call_id, tool_result=result)
        )
        turn = f"<|im_end|>\n<|im_start|>user\n<tool_response>\n2\n{BLIND}\n</tool_response>"
        turn += "<|im_end|>\n<|im_start|>assistant\n"
        injected = (await stream.until("injected")).injected_token_count
        assert injected == len(tokenizer.encode(turn, add_special_tokens=False).ids)


async def test_a_kill_does_not_wait_for_a_slow_vision_encoder(models: Path) -> None:
    async with seeing(models) as (made, vision):
        stream = await made.opened(caller(0), caller(1))
        call = await stream.until("tool_call", 2)
        vision.open.clear()
        result = common.ToolResult(parts=[picture(0, 0, 500, 500)])
        await stream.send(
            inject=pb.InjectAgent(
                agent_id=call.agent_id, call_id=call.call.call_id, tool_result=result
            )
        )
        while not vision.fetched:
            await asyncio.sleep(0.01)
        image = pb.Segment(image=picture().image)
        state = pb.ResumeState(segments=[pb.Segment(sampled=pb.TokenIds(token_ids=[40])), image])
        late = spec(2, resume_state=state)
        await stream.send(add_agents=pb.AddAgents(agents=[late]))
        await stream.send(kill=pb.KillAgents(reason="DECIDED"))
        await stream.until("finished", 2)
        vision.open.set()
        # Killed while it was being added: it ends as soon as it is there.
        finished = await stream.until("finished", 3)
        assert (finished.agent_id, finished.kill_reason) == (2, "DECIDED")
        await stream.send(close=pb.CloseGang())
        assert kinds(await stream.end())[-1] == "gang_finished"


# -- streams that break, stall and drain ----------------------------------------------------------


async def test_a_broken_stream_frees_everything_within_a_second(models: Path) -> None:
    async with decoder(models) as made:
        running = await made.opened(*(spec(i, bias=TALKS, sampling=LONG) for i in range(4)))
        paused = await made.opened(caller())
        await running.until("step")
        await paused.until("tool_call")
        running.call.cancel()
        await paused.channel.close()
        await made.empty_within(1)


async def test_half_closing_without_close_kills(models: Path) -> None:
    async with decoder(models) as made:
        stream = await made.opened(caller())
        await stream.until("tool_call")
        await stream.call.done_writing()
        seen = await stream.end()
        assert kinds(seen)[-2:] == ["finished", "gang_finished"]
        assert seen[-2].finished.kill_reason == "LOST"


async def test_a_slow_reader_is_held_and_stops_nobody_else(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_module, "MAX_BACKLOG", 8)
    monkeypatch.setattr(runtime_module, "RESUME_BACKLOG", 2)
    async with decoder(models) as made:
        gate = asyncio.Event()
        write = made.runtime._write

        async def slow(send: Any, response: pb.DecodeResponse) -> None:
            if response.HasField("step"):
                await gate.wait()
            await write(send, response)

        monkeypatch.setattr(made.runtime, "_write", slow)
        stuck = await made.opened(spec(bias=TALKS, sampling=LONG))
        await stuck.until("prefilled")
        (stream,) = made.runtime._streams.values()
        async with asyncio.timeout(10):
            while not stream.held:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        backlog = stream.queue.qsize()
        assert backlog < 16
        monkeypatch.setattr(made.runtime, "_write", write)
        other = await made.opened(spec(bias=TALKS), contemplation_id="c2")
        await other.send(close=pb.CloseGang())
        await other.end()
        assert stream.queue.qsize() == backlog
        gate.set()
        await stuck.send(close=pb.CloseGang())
        await stuck.end()
        assert len(stuck.tokens(0)) == 200


async def test_a_reader_that_never_reads_is_let_go(models: Path) -> None:
    async with decoder(models, write_stall_s=0.05) as made:
        write = made.runtime.decode

        async def stalled(requests: Any, send: Any, timeout_s: float | None) -> None:
            async def never(response: Any) -> None:
                await asyncio.sleep(60)

            await write(requests, never, timeout_s)

        made.runtime.decode = stalled
        stream = await made.opened(spec(bias=TALKS, sampling=LONG))
        error = await stream.error()
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "EVICTED")
        await made.empty_within(1)


async def test_draining_tells_gangs_and_takes_no_new_ones(models: Path) -> None:
    async with decoder(models) as made:
        stream = await made.opened(
            spec(bias=TALKS, sampling={"max_tokens": 3}, granted_token_count=1)
        )
        await stream.until("awaiting_grant")
        draining = asyncio.create_task(made.service.drain(10))
        notice = await stream.until("draining")
        assert (notice.reason, notice.remaining_duration.seconds) == ("DRAIN", 10)
        (response,) = await (await made.opened()).end()
        assert response.refused.reason == "UNAVAILABLE"
        assert response.refused.HasField("retry_delay")
        assert (await made.endpoint()).load.draining
        assert not draining.done()
        await stream.send(grant=pb.GrantTokens(granted_token_counts={0: 3}))
        await stream.until("finished")
        await stream.send(close=pb.CloseGang())
        await stream.end()
        async with asyncio.timeout(5):
            await draining


async def test_stopping_ends_streams_that_do_not_end(models: Path) -> None:
    async with decoder(models) as made:
        stream = await made.opened(caller())
        await stream.until("tool_call")
        await made.service.stop()
        seen = await stream.end()
        assert [r.finished.kill_reason for r in seen if r.HasField("finished")] == ["SHUTDOWN"]


async def test_an_engine_failure_is_told_to_every_agent(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with decoder(models) as made:
        stream = await made.opened(spec(0, bias=TALKS, sampling=LONG), caller(1))
        await stream.until("tool_call")

        def broken(*args: Any) -> Any:
            raise RuntimeError("secret")

        with monkeypatch.context() as patch:
            patch.setattr(made.runtime.engine.model.runner, "forward", broken)
            seen = await stream.end()
        ends = [r.finished for r in seen if r.HasField("finished")]
        assert [e.finish_reason for e in ends] == [common.FINISH_REASON_ERROR] * 2
        assert kinds(seen)[-1] == "gang_finished"
        again = await made.opened(spec(bias=TALKS))
        await again.until("finished")


# -- what the endpoint says of itself -------------------------------------------------------------


async def test_description_and_load(models: Path) -> None:
    async with decoder(models, provider="p", price_per_hour_micro_usd=7, spot=True) as made:
        stream = await made.opened(
            *(spec(i, bias=TALKS, sampling=LONG) for i in range(2)), caller(2)
        )
        await stream.until("tool_call")
        await stream.until("step", 10)
        answer = await made.endpoint()
        description, load = answer.description, answer.load
        assert (description.endpoint_id, description.models) == ("e1", ["tiny"])
        assert (description.provider, description.failure_domain) == ("p", "p")
        assert (description.total_block_count, description.block_size_count) == (1024, 4)
        assert (description.max_model_len, description.is_spot) == (256, True)
        assert description.address == made.address
        assert (load.running_sequence_count, load.paused_sequence_count) == (2, 1)
        assert 0 < load.free_block_count < 1024
        assert load.step_duration.ToNanoseconds() > 0
        assert load.decode_duration.ToNanoseconds() > 0
        assert load.prefill_duration.ToNanoseconds() > 0
        # Up to three agents a step, each of which reads the prompt that they share and its own.
        assert load.decode_step_count < load.decode_sequence_count <= 3 * load.decode_step_count
        assert load.decode_position_count > load.decode_sequence_count
        assert load.sampled_token_count >= 10
        assert (load.running_gang_count, load.waiting_gang_count) == (1, 0)
        assert 0 < load.kv_cache_utilization < 1 and 0 < load.mem_utilization < 1
        assert load.preemption_count == 0


async def test_the_load_says_how_busy_it_was_and_what_became_of_tokens(models: Path) -> None:
    async with decoder(models) as made:
        stream = await made.opened(*(spec(i, bias=TALKS, sampling=LONG) for i in range(2)))
        await stream.send(kill=pb.KillAgents(agent_ids=[1], reason="DECIDED"))
        await stream.until("finished", 2)
        await asyncio.sleep(1.0)  # rates are over a second
        load = (await made.endpoint()).load
        spent = {
            r.finished.agent_id: r.finished.usage.sampled_token_count
            for r in stream.seen
            if r.HasField("finished")
        }
        assert (load.used_token_count, load.killed_token_count) == (spent[0], spent[1])
        assert (spent[0], load.lost_token_count) == (200, 0)
        assert 0 < load.application_utilization < 1 and 0 < load.cpu_utilization <= 1
        assert load.flops_per_s > 0 and load.traffic_bytes_per_s > 0
        assert load.gangs_per_s > 0 and load.failures_per_s == 0

        await stream.send(close=pb.CloseGang())
        await stream.end()
        broken = await made.opened(spec(bias=TALKS, sampling=LONG), contemplation_id="c2")
        await broken.until("step", 2)
        broken.call.cancel()
        await made.empty_within(2)
        load = (await made.endpoint()).load
        assert load.lost_token_count > 0 and load.killed_token_count == spent[1]
        counters = made.runtime.engine.counters
        assert counters.num_tokens == sum(
            (load.used_token_count, load.killed_token_count, load.lost_token_count)
        )


async def test_a_decoder_tells_the_load_of_its_engine(models: Path) -> None:
    async with decoder(models) as made:
        stream = await made.opened(spec())
        await stream.send(close=pb.CloseGang())
        await stream.end()
        # What its trailer told; gRPC's own client does not show it.
        report = orca_pb2.OrcaLoadReport.FromString(made.running.load.packed())
        assert 0 < report.mem_utilization < 1 and report.application_utilization >= 0.01
        assert report.named_metrics["queued_requests"] == 0
        assert {"kv_cache_utilization", "running_requests"} < set(report.named_metrics)


async def test_metrics_of_a_gang(models: Path) -> None:
    reader = InMemoryMetricReader()
    exported = metrics.setup("tester", configuration.ServiceConfig(), [reader])
    try:
        async with decoder(models) as made:
            stream = await made.opened(*(spec(i, bias=TALKS) for i in range(3)))
            await stream.send(close=pb.CloseGang())
            await stream.end()
            async with asyncio.timeout(20):
                while made.runtime.meter.peaks is None:
                    await asyncio.sleep(0.02)
            found = metrics.values(reader)
            engine = made.runtime.engine
    finally:
        exported.shutdown()

    def one(name: str, **labels: str) -> Any:
        want = {f"cogitate.{key}": value for key, value in labels.items()}
        (value,) = (v for attributes, v in found[name] if want.items() <= attributes.items())
        return value

    assert one("cogitate.tokens.sampled") == one("cogitate.tokens", fate="used") == 18
    assert one("cogitate.tokens", fate="lost") == one("cogitate.preemptions") == 0
    assert one("gen_ai.server.time_to_first_token").count == 3
    assert one("gen_ai.server.request.duration").count == 3
    assert one("cogitate.queue.duration").count == one("cogitate.gangs.opened") == 1
    steps = one("cogitate.steps")
    assert one("cogitate.step.duration").count == steps > 5
    assert 0 < one("cogitate.step.duration").sum <= one("cogitate.step.time")
    assert one("cogitate.step.positions").sum == engine.counters.had.num_positions
    assert one("cogitate.prefix_cache.asked") == one("cogitate.prefill.positions") > 0
    blocks = [one("cogitate.kv.blocks", state=state) for state in ("used", "cached", "free")]
    assert sum(blocks) == 1024 and blocks[0] == 0 and blocks[1] > 0
    assert one("cogitate.engine.flops") == made.runtime.meter.operations() > 0
    assert one("cogitate.engine.traffic") > 0
    assert one("cogitate.engine.peak_flops_per_s") > 1e8
    assert one("cogitate.engine.peak_traffic_per_s") > 1e7
    assert one("cogitate.process.resident_memory") > 10_000_000
    assert "cogitate.device.memory" not in found, "the engine of this test runs on a CPU"


async def test_reports_reach_every_router(models: Path) -> None:
    routers: list[FakeRouter] = []

    async def build_router(config: Any, server: Any) -> FakeRouter:
        routers.append(FakeRouter(server))
        return routers[-1]

    from cogitate.kit.config import ServiceConfig

    quick = ServiceConfig(drain_grace_s=0.1)
    async with (
        lifecycle.serving(quick, build_router) as one,
        lifecycle.serving(quick, build_router) as two,
        decoder(models, router_addresses=(one.address, two.address)) as made,
    ):
        stream = await made.opened(spec(bias=TALKS))
        await stream.until("finished")
        async with asyncio.timeout(10):
            while not all(r.reports and r.reports[-1].load.sampled_token_count for r in routers):
                await asyncio.sleep(0.02)
        for router in routers:
            assert router.reports[0].description.endpoint_id == "e1"
        stream.call.cancel()
        await made.empty_within(1)
        await made.service.drain(1)
        async with asyncio.timeout(10):
            while not all(any(r.HasField("drain") for r in x.reports) for x in routers):
                await asyncio.sleep(0.02)
        for router in routers:
            assert [r.drain.reason for r in router.reports if r.HasField("drain")] == ["DRAIN"]


async def test_routers_hear_of_it_once_it_can_follow_grammars(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the first agent under a schema would wait there for what tries grammars."""
    routers: list[FakeRouter] = []
    may_prepare, prepare = asyncio.Event(), Grammars.prepare

    async def build_router(config: Any, server: Any) -> FakeRouter:
        routers.append(FakeRouter(server))
        return routers[-1]

    async def held(grammars: Grammars) -> None:
        await may_prepare.wait()
        await prepare(grammars)

    monkeypatch.setattr(Grammars, "prepare", held)
    from cogitate.kit.config import ServiceConfig

    async with (
        lifecycle.serving(ServiceConfig(drain_grace_s=0.1), build_router) as router,
        decoder(models, router_addresses=(router.address,)) as made,
    ):
        stream = await made.opened(spec(bias=TALKS))
        await stream.until("finished")  # who knows it may use it
        assert routers[0].reports == []
        may_prepare.set()
        async with asyncio.timeout(20):
            while not routers[0].reports:
                await asyncio.sleep(0.02)
        stream.call.cancel()


async def test_a_chat_model_calls_a_tool_in_its_own_format(tmp_path: Path) -> None:
    """A call that is text, its last character sampled here; the result comes in the tool's turn."""
    config = config_of("qwen2", max_position_embeddings=1024)
    write_tokenizer_files(
        write_checkpoint(tmp_path / "chat", config, random_weights(config)), QWEN25
    )
    tokenizer = chat_tokenizer()

    def written(text: str) -> pb.AgentSpec:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        begun = pb.Segment(sampled=pb.TokenIds(token_ids=ids))
        state = pb.ResumeState(segments=[begun], sampled_token_count=len(ids))
        bias = {tokenizer.token_to_id(">"): 90.0}
        return spec(bias=bias, resume_state=state, sampling={"max_tokens": len(ids) + 2})

    tool = common.ToolSpec(name="calculator", parameters_json_schema='{"type":"object"}')
    call = '{"name": "calculator", "arguments": {"expression": "1+1"}}'
    async with decoder(tmp_path, model="chat") as made:
        for inside, name in ((call, "calculator"), ("{no json", "")):
            agent = written(f"Well. <tool_call>\n{inside}\n</tool_call")
            stream = await made.opened(agent, model="chat", tools=[tool])
            called = (await stream.until("tool_call")).call
            assert called.name == name
            assert called.arguments_json == ('{"expression":"1+1"}' if name else "{}")
            result = common.ToolResult(parts=[common.Part(text="2")])
            await stream.send(
                inject=pb.InjectAgent(agent_id=0, call_id=called.call_id, tool_result=result)
            )
            turn = "<|im_end|>\n<|im_start|>user\n<tool_response>\n2\n</tool_response><|im_end|>\n"
            turn += "<|im_start|>assistant\n"
            injected = (await stream.until("injected")).injected_token_count
            assert injected == len(tokenizer.encode(turn, add_special_tokens=False).ids)
            finished = await stream.until("finished")
            assert finished.answer == ">", "what was sampled after the result, and no more"
            prompt = (await stream.until("prefilled")).prompt_token_count
            plain = await made.opened(spec(), model="chat")
            assert prompt > (await plain.until("prefilled")).prompt_token_count, "tools are shown"

        wrong = common.ToolSpec(name="calculator", parameters_json_schema="{")
        refused = await made.opened(spec(), model="chat", tools=[wrong])
        assert "not JSON" in (await refused.until("refused")).message
