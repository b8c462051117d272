"""ToolExecutorService over real sockets: what runs, what is refused, and that it runs once."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
from cogitate.kit import lifecycle
from cogitate.kit.auth import tenant_scope
from cogitate.kit.channels import from_rpc_error, open_channel, outgoing
from cogitate.kit.errors import CogitateError
from cogitate.kit.trace_store import TraceStore
from cogitate.tool_executor.config import ToolExecutorConfig
from cogitate.tool_executor.core.policy import Grant
from cogitate.tool_executor.core.registry import TOOLS
from cogitate.tool_executor.core.types import Arguments, Call, Image, Outcome, Tool
from cogitate.tool_executor.runners import Emit
from cogitate.tool_executor.runtime import ToolRuntime
from cogitate.tool_executor.server import ToolExecutorService, ToolExecutorServicer, build
from cogitate.v1 import common_pb2
from cogitate.v1 import tool_executor_service_pb2 as pb
from cogitate.v1 import tool_executor_service_pb2_grpc as pb_grpc
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc

pytestmark = pytest.mark.contract

DIGEST = "sha256:" + "a" * 64


class Gate:
    """A tool that runs until it is let go, and counts its runs."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        self.num_runs = 0

    def run(self, arguments: Arguments, images: Sequence[Image]) -> Outcome:
        self.num_runs += 1
        self.entered.release()
        self.opened.wait(10)
        return Outcome(text=str(arguments.get("say", "done")))

    async def wait_entered(self) -> None:
        await asyncio.to_thread(self.entered.acquire)


def tool(name: str, run: Any) -> Tool:
    return Tool(name=name, version="1", description="", schema={}, run=run)


def crash(arguments: Arguments, images: Sequence[Image]) -> Outcome:
    raise KeyError("secret")


def with_tools(*tools: Tool) -> Any:
    async def build_with(
        config: ToolExecutorConfig, server: grpc.aio.Server
    ) -> ToolExecutorService:
        runtime = ToolRuntime(config, {**TOOLS, **{each.name: each for each in tools}})
        pb_grpc.add_ToolExecutorServiceServicer_to_server(ToolExecutorServicer(runtime), server)
        return ToolExecutorService(runtime)

    return build_with


@asynccontextmanager
async def executor(*tools: Tool, **knobs: Any) -> AsyncIterator[Any]:
    config = ToolExecutorConfig(drain_grace_s=2.0, python_enabled=False, **knobs)
    async with (
        lifecycle.serving(config, with_tools(*tools) if tools else build) as running,
        open_channel(running.address) as channel,
    ):
        yield pb_grpc.ToolExecutorServiceStub(channel)


def request(name: str, arguments: Any, call_id: str = "call-1", **fields: Any) -> pb.ExecuteRequest:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return pb.ExecuteRequest(
        **{
            "contemplation_id": "c-1",
            "call": common_pb2.ToolCall(call_id=call_id, name=name, arguments_json=text),
            "allowed_tools": [name],
            **fields,
        }
    )


async def execute(stub: Any, asked: pb.ExecuteRequest) -> pb.ExecutionFinished:
    events = [event async for event in stub.Execute(asked, **outgoing(10))]
    assert [event.WhichOneof("event") for event in events] == ["finished"]
    return events[-1].finished


async def error_of(stub: Any, asked: pb.ExecuteRequest) -> CogitateError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await execute(stub, asked)
    return from_rpc_error(caught.value)


class Talker:
    """A runner whose one tool says words when it is let to, and notes when it is ended."""

    is_away = False

    def __init__(self) -> None:
        self.tools = {"talk": Tool(name="talk", version="2", description="", schema={}, origin="x")}
        self.slots = asyncio.Semaphore(1)
        self.words: asyncio.Queue[str] = asyncio.Queue()
        self.num_ended = 0

    def why_not(self, name: str) -> str:
        return "there is no tool 'mute' here: it cannot talk" if name == "mute" else ""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def run(self, call: Call, grant: Grant, ends: float, emit: Emit) -> Outcome:
        try:
            said = ""
            while word := await self.words.get():
                said += word
                emit(word)
            return Outcome(text=said)
        finally:
            self.num_ended += 1
            self.slots.release()


@asynccontextmanager
async def talking() -> AsyncIterator[tuple[Any, Talker]]:
    talker = Talker()

    async def build_with(
        config: ToolExecutorConfig, server: grpc.aio.Server
    ) -> ToolExecutorService:
        runtime = ToolRuntime(config, runners=[talker])
        pb_grpc.add_ToolExecutorServiceServicer_to_server(ToolExecutorServicer(runtime), server)
        return ToolExecutorService(runtime)

    async with (
        lifecycle.serving(ToolExecutorConfig(drain_grace_s=2.0), build_with) as running,
        open_channel(running.address) as channel,
    ):
        yield pb_grpc.ToolExecutorServiceStub(channel), talker


async def test_output_comes_while_a_tool_runs_and_to_all_who_wait() -> None:
    async with talking() as (stub, talker):
        first = aiter(stub.Execute(request("talk", {}), **outgoing(10)))
        talker.words.put_nowait("a")
        assert (await anext(first)).output_text == "a"
        # Who comes later gets it from the beginning.
        second = aiter(stub.Execute(request("talk", {}), **outgoing(10)))
        assert (await anext(second)).output_text == "a"
        talker.words.put_nowait("b")
        assert [(await anext(each)).output_text for each in (first, second)] == ["b", "b"]
        talker.words.put_nowait("")
        ends = [[event async for event in each] for each in (first, second)]
        assert [[e.WhichOneof("event") for e in events] for events in ends] == [["finished"]] * 2
        (one,), (two,) = ends
        assert one.finished.result == two.finished.result
        assert one.finished.result.parts[0].text == "ab"
        assert one.finished.provenance.origin == "x" and two.finished.provenance.replayed
        # What is remembered is the result alone.
        done = await execute(stub, request("talk", {}))
        assert done.result == one.finished.result and done.provenance.replayed
        assert talker.num_ended == 1


async def test_a_running_tool_ends_with_its_last_caller() -> None:
    async with talking() as (stub, talker):
        calls = [stub.Execute(request("talk", {}), **outgoing(10)) for _ in range(2)]
        talker.words.put_nowait("a")
        for each in calls:
            assert (await each.read()).output_text == "a"
        calls[0].cancel()
        await asyncio.sleep(0.1)
        assert talker.num_ended == 0
        calls[1].cancel()
        async with asyncio.timeout(5):
            while not talker.num_ended:
                await asyncio.sleep(0.005)
        # Its slot is free, and the call may be made again.
        talker.words.put_nowait("")
        done = await execute(stub, request("talk", {}))
        assert not done.provenance.replayed and talker.num_ended == 2
        error = await error_of(stub, request("mute", {}))
        assert (error.code, error.message) == (
            "NOT_FOUND", "there is no tool 'mute' here: it cannot talk",
        )  # fmt: skip


async def test_without_bubblewrap_there_is_no_python_and_no_way_round(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    async with (
        lifecycle.serving(ToolExecutorConfig(drain_grace_s=2.0), build) as running,
        open_channel(running.address) as channel,
    ):
        stub = pb_grpc.ToolExecutorServiceStub(channel)
        listed = await stub.ListTools(pb.ListToolsRequest(), **outgoing(5))
        assert [spec.name for spec in listed.tools] == ["calculator", "lookup", "prove", "zoom"]
        for call_id in "ab":
            error = await error_of(stub, request("python", {"code": "print(1)"}, call_id))
            assert error.code == "NOT_FOUND" and "bubblewrap makes no sandbox" in error.message
    said = [each for each in caplog.messages if "python" in each]
    assert len(said) == 1 and "there is no bwrap" in said[0]


async def test_the_built_in_tools_answer() -> None:
    async with executor() as stub:
        done = await execute(stub, request("calculator", {"expression": "3*(4+5)"}, "a"))
        assert done.result.parts[0].text == "27"
        assert (done.result.call_id, done.result.is_error) == ("a", False)
        assert (done.provenance.tool, done.provenance.origin) == ("calculator@1", "builtin")
        assert not done.provenance.replayed
        steps = ["6*4=24", "24+5=29", "29-3=26"]
        asked = {"target": 26, "numbers": [6, 4, 5, 3], "steps": steps}
        done = await execute(stub, request("prove", asked, "b"))
        assert done.result.parts[0].text == "proved"
        assert done.result.proof.answer == "6*4=24, 24+5=29, 29-3=26."
        assert done.result.proof.tool_name == "prove"
        done = await execute(stub, request("prove", {**asked, "target": 27}, "c"))
        assert (done.result.parts[0].text, done.result.is_error) == ("wrong", False)
        assert not done.result.HasField("proof")


async def test_zoom_names_a_region_and_composes_boxes() -> None:
    half = common_pb2.Box(x0_permille=500, y0_permille=0, x1_permille=1000, y1_permille=500)
    images = [
        common_pb2.ImagePart(digest=DIGEST, width_px=400, height_px=300),
        common_pb2.ImagePart(digest=DIGEST, box=half),
    ]
    async with executor() as stub:
        done = await execute(stub, request("zoom", {"box": [25, 33, 50, 67]}, "a", images=images))
        (part,) = done.result.parts
        assert (part.image.digest, part.image.width_px, part.image.height_px) == (DIGEST, 400, 300)
        box = part.image.box
        edges = (box.x0_permille, box.y0_permille, box.x1_permille, box.y1_permille)
        assert edges == (250, 330, 500, 670)
        asked = {"box": [50, 50, 100, 100], "image": 1}
        done = await execute(stub, request("zoom", asked, "b", images=images))
        box = done.result.parts[0].image.box
        edges = (box.x0_permille, box.y0_permille, box.x1_permille, box.y1_permille)
        assert edges == (750, 250, 1000, 500)
        done = await execute(stub, request("zoom", {"box": [0, 0, 9, 9], "image": 2}, "c"))
        assert (done.result.is_error, done.result.parts[0].text) == (
            True,
            "There is no image to look at.",
        )


async def test_lookup_reads_the_tables_of_the_request() -> None:
    rows = [common_pb2.LookupRow(cells=cells) for cells in (("bread", "2.50"), ("salt", "0.90"))]
    table = common_pb2.LookupTable(name="prices", columns=["item", "price"], rows=rows)
    async with executor(max_tables_bytes=26) as stub:
        done = await execute(stub, request("lookup", {"row": "Bread"}, "a", tables=[table]))
        assert (done.result.parts[0].text, done.result.is_error) == ("2.50", False)
        asked = {"table": "prices", "row": "breed"}
        done = await execute(stub, request("lookup", asked, "b", tables=[table]))
        assert done.result.is_error and "the nearest are bread" in done.result.parts[0].text
        # The same call with other tables is another call.
        other = common_pb2.LookupTable(name="prices", columns=table.columns, rows=rows[:1])
        error = await error_of(stub, request("lookup", {"row": "Bread"}, "a", tables=[other]))
        assert error.code == "ALREADY_EXISTS"
        rows[0].cells[1] = "12.50"
        over = common_pb2.LookupTable(name="prices", columns=table.columns, rows=rows)
        error = await error_of(stub, request("lookup", {"row": "Bread"}, "c", tables=[over]))
        assert (error.code, error.field) == ("INVALID_ARGUMENT", "tables")


async def test_a_tool_outside_the_list_is_denied_and_an_unknown_one_not_found() -> None:
    async with executor() as stub:
        sum_of = {"expression": "1+1"}
        for allowed in ([], ["zoom"], ["Calculator"]):
            asked = request("calculator", sum_of, allowed_tools=allowed)
            error = await error_of(stub, asked)
            assert (error.code, error.reason) == ("PERMISSION_DENIED", "TOOL_DENIED")
        error = await error_of(stub, request("shell", sum_of))
        assert (error.code, error.reason) == ("NOT_FOUND", "NOT_FOUND")
        assert "calculator, lookup, prove, zoom" in error.message
        # Not in the list, so nothing is said about whether it exists.
        error = await error_of(stub, request("shell", sum_of, allowed_tools=[]))
        assert error.code == "PERMISSION_DENIED"


async def test_what_a_model_gets_wrong_is_told_to_the_model() -> None:
    async with executor() as stub:
        for index, (name, arguments) in enumerate(
            [
                ("calculator", {"expression": "1/0"}),
                ("calculator", {"expression": 3}),
                ("calculator", {}),
                ("calculator", "[1]"),
                ("calculator", "not json"),
                ("calculator", '{"expression": "1", "expression": "2"}'),
                ("calculator", '{"expression": NaN}'),
                ("prove", {"target": 1.5, "numbers": [1], "steps": ["1+1=2"]}),
                ("zoom", {"box": [0, 0, 0, 5]}),
            ]
        ):
            done = await execute(stub, request(name, arguments, f"call-{index}"))
            assert done.result.is_error
            text = done.result.parts[0].text
            assert text.endswith(".") and len(text) < 120 and "0x" not in text


async def test_malformed_requests_are_refused_with_the_field() -> None:
    async with executor() as stub:
        good: dict[str, Any] = {"expression": "1"}
        part = common_pb2.ImagePart
        box = common_pb2.Box(x0_permille=5, y0_permille=0, x1_permille=5, y1_permille=9)
        for field, asked in [
            ("contemplation_id", request("calculator", good, contemplation_id="")),
            ("contemplation_id", request("calculator", good, contemplation_id="x" * 129)),
            ("call.call_id", request("calculator", good, "")),
            ("call.call_id", request("calculator", good, "x" * 129)),
            ("call.name", request("", good)),
            ("call.name", request("x" * 65, good)),
            ("timeout", request("calculator", good, timeout=Duration(seconds=0))),
            ("timeout", request("calculator", good, timeout=Duration(seconds=-1))),
            ("max_output_bytes", request("calculator", good, max_output_bytes=-1)),
            ("owner_epoch", request("calculator", good, owner_epoch=-1)),
            ("images[0].digest", request("calculator", good, images=[part(data=b"x")])),
            ("images[0].digest", request("calculator", good, images=[part(digest="sha256:0")])),
            ("images[0].box", request("calculator", good, images=[part(digest=DIGEST, box=box)])),
            ("images", request("calculator", good, images=[part(digest=DIGEST)] * 65)),
            (
                "allowed_tools",
                request("calculator", good, allowed_tools=[f"t{n}" for n in range(129)]),
            ),
        ]:
            error = await error_of(stub, asked)
            assert (error.code, error.field) == ("INVALID_ARGUMENT", field)


async def test_limits_on_arguments_hold_at_their_edge() -> None:
    async with executor(max_arguments_bytes=40, max_arguments_depth_count=3) as stub:
        fits = '{"expression": "' + "1" * 22 + '"}'
        assert len(fits) == 40
        assert (await execute(stub, request("calculator", fits, "a"))).result.parts[0].text
        error = await error_of(stub, request("calculator", fits + " ", "b"))
        assert (error.code, error.field) == ("INVALID_ARGUMENT", "call.arguments_json")
        done = await execute(stub, request("calculator", '{"a": [[1]]}', "c"))
        assert done.result.is_error
        error = await error_of(stub, request("calculator", '{"a": [[[1]]]}', "d"))
        assert (error.code, error.field) == ("INVALID_ARGUMENT", "call.arguments_json")


async def test_output_is_cut_at_its_limit_and_marked() -> None:
    long = tool("long", lambda arguments, images: Outcome(text="é" * 100))
    async with executor(long, max_output_bytes=201) as stub:
        done = await execute(stub, request("long", {}, "a", max_output_bytes=200))
        assert not done.result.truncated and done.result.parts[0].text == "é" * 100
        done = await execute(stub, request("long", {}, "b", max_output_bytes=199))
        text = done.result.parts[0].text
        assert done.result.truncated and text.endswith("[truncated]")
        assert len(text.encode()) <= 199
        done = await execute(stub, request("long", {}, "c", max_output_bytes=3))
        assert done.result.truncated and done.result.parts[0].text == "é"
    async with executor(long, max_output_bytes=100) as stub:
        done = await execute(stub, request("long", {}, "a", max_output_bytes=10_000))
        assert len(done.result.parts[0].text.encode()) <= 100


async def test_control_characters_do_not_get_through() -> None:
    text = "a\x1b[31m\x00b\u202ec\n<|im_start|>"
    loud = tool("loud", lambda arguments, images: Outcome(text=text))
    async with executor(loud) as stub:
        done = await execute(stub, request("loud", {}))
        assert done.result.parts[0].text == "a\ufffd[31m\ufffdb\ufffdc\n<|im_start|>"


async def test_a_slow_tool_times_out_and_a_crash_says_nothing() -> None:
    gate = Gate()
    async with executor(tool("gate", gate.run), tool("crash", crash), max_timeout_s=0.1) as stub:
        asked = request("gate", {}, "a", timeout=Duration(seconds=3600))
        done = await execute(stub, asked)
        assert done.result.is_error
        assert done.result.parts[0].text == "The tool took longer than 0.1 s."
        done = await execute(stub, request("crash", {}, "b"))
        assert (done.result.is_error, done.result.parts[0].text) == (True, "The tool crashed.")
        gate.opened.set()


async def test_the_same_call_runs_once_and_is_replayed() -> None:
    gate = Gate()
    gate.opened.set()
    async with executor(tool("gate", gate.run)) as stub:
        first = await execute(stub, request("gate", {"say": "x"}))
        second = await execute(stub, request("gate", {"say": "x"}))
        assert (first.provenance.replayed, second.provenance.replayed) == (False, True)
        assert first.result == second.result and gate.num_runs == 1
        error = await error_of(stub, request("gate", {"say": "y"}))
        assert (error.code, error.reason) == ("ALREADY_EXISTS", "ALREADY_EXISTS")
        error = await error_of(stub, request("calculator", {"say": "x"}))
        assert error.code == "ALREADY_EXISTS"
        # Replays are for those who may use the tool.
        error = await error_of(stub, request("gate", {"say": "x"}, allowed_tools=["zoom"]))
        assert error.code == "PERMISSION_DENIED"
        # Another contemplation, and another tenant, have call ids of their own.
        await execute(stub, request("gate", {"say": "y"}, contemplation_id="c-2"))
        with tenant_scope("other"):
            done = await execute(stub, request("gate", {"say": "y"}))
        assert not done.provenance.replayed and gate.num_runs == 3


async def test_a_duplicate_joins_and_a_cancelled_caller_harms_nobody() -> None:
    gate = Gate()
    async with executor(tool("gate", gate.run)) as stub:
        first, second, third = (
            asyncio.ensure_future(execute(stub, request("gate", {}))) for _ in range(3)
        )
        await gate.wait_entered()
        error = await error_of(stub, request("gate", {"other": 1}))
        assert error.code == "ALREADY_EXISTS"
        first.cancel()
        await asyncio.sleep(0.05)
        gate.opened.set()
        results = await asyncio.gather(second, third)
        assert [each.result.parts[0].text for each in results] == ["done", "done"]
        assert gate.num_runs == 1


async def test_a_call_nobody_waits_for_is_dropped_and_may_run_again() -> None:
    gate = Gate()
    async with executor(tool("gate", gate.run)) as stub:
        only = asyncio.ensure_future(execute(stub, request("gate", {})))
        await gate.wait_entered()
        only.cancel()
        await asyncio.sleep(0.05)
        gate.opened.set()
        done = await execute(stub, request("gate", {}))
        assert not done.provenance.replayed and gate.num_runs == 2


async def test_cancelled_calls_leave_nothing_behind() -> None:
    random = Random(7)
    slow = tool("slow", lambda arguments, images: time.sleep(0.002) or Outcome(text="x"))
    knobs = ToolExecutorConfig(max_running_count=2, max_calls_count=1000)
    async with lifecycle.serving(
        replace(knobs, max_calls_per_tenant_count=1000, drain_grace_s=1), with_tools(slow)
    ) as running:
        async with open_channel(running.address) as channel:
            stub = pb_grpc.ToolExecutorServiceStub(channel)
            calls = [
                asyncio.ensure_future(execute(stub, request("slow", {}, f"call-{n % 60}")))
                for n in range(150)
            ]
            for _ in calls:
                await asyncio.sleep(random.random() * 0.002)
                random.choice(calls).cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert not any(isinstance(each, Exception) for each in results)
        runtime = running.service.runtime  # type: ignore[attr-defined]
        slots = runtime._runners[0].slots
        async with asyncio.timeout(5):
            while runtime._runs or runtime._capacity.num_held or slots._value != 2:
                await asyncio.sleep(0.01)
        assert runtime._ledger.num_running == 0
        assert len(runtime._supervisor) == 1  # the sweep


async def test_a_result_is_forgotten_after_its_time() -> None:
    gate = Gate()
    gate.opened.set()
    async with executor(tool("gate", gate.run), result_ttl_s=0.05) as stub:
        await execute(stub, request("gate", {}))
        await asyncio.sleep(0.06)
        done = await execute(stub, request("gate", {"say": "other"}))
        assert not done.provenance.replayed and gate.num_runs == 2


async def test_calls_beyond_the_limits_are_rejected_with_advice() -> None:
    gate = Gate()
    knobs = {"max_running_count": 1, "max_calls_count": 3, "max_calls_per_tenant_count": 2}
    async with executor(tool("gate", gate.run), **knobs) as stub:
        running = [
            asyncio.ensure_future(execute(stub, request("gate", {}, f"call-{n}"))) for n in range(2)
        ]
        await gate.wait_entered()
        await asyncio.sleep(0.05)
        error = await error_of(stub, request("gate", {}, "call-2"))
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "REJECTED")
        assert error.retry_after_s
        with tenant_scope("other"):
            running.append(asyncio.ensure_future(execute(stub, request("gate", {}, "call-3"))))
            await asyncio.sleep(0.05)
            error = await error_of(stub, request("gate", {}, "call-4"))
        assert error.reason == "REJECTED"
        gate.opened.set()
        await asyncio.gather(*running)
        # A refused call was not remembered.
        assert not (await execute(stub, request("gate", {}, "call-2"))).provenance.replayed


async def test_a_call_that_finds_no_thread_in_its_time_is_evicted() -> None:
    gate = Gate()
    async with executor(tool("gate", gate.run), max_running_count=1) as stub:
        first = asyncio.ensure_future(execute(stub, request("gate", {}, "a")))
        await gate.wait_entered()
        short = Duration(nanos=50_000_000)
        error = await error_of(stub, request("calculator", {"expression": "1"}, "b", timeout=short))
        assert (error.code, error.reason) == ("ABORTED", "EVICTED")
        gate.opened.set()
        await first


async def test_a_stale_owner_is_refused() -> None:
    async with executor() as stub:
        good = {"expression": "1"}
        await execute(stub, request("calculator", good, "a", owner_epoch=2))
        await execute(stub, request("calculator", good, "b", owner_epoch=2))
        error = await error_of(stub, request("calculator", good, "c", owner_epoch=1))
        assert (error.code, error.reason) == ("FAILED_PRECONDITION", "NOT_OWNER")
        await execute(stub, request("calculator", good, "c", owner_epoch=3))
        await execute(stub, request("calculator", good, "d", contemplation_id="c-2", owner_epoch=1))


async def test_the_tools_are_listed_with_their_schemas() -> None:
    async with executor() as stub:
        listed = await stub.ListTools(pb.ListToolsRequest(), **outgoing(5))
        assert [spec.name for spec in listed.tools] == ["calculator", "lookup", "prove", "zoom"]
        for spec in listed.tools:
            schema = json.loads(spec.parameters_json_schema)
            assert schema["type"] == "object" and schema["required"] and spec.description


async def test_running_calls_end_within_the_drain_and_new_ones_are_refused() -> None:
    gate = Gate()
    service = lifecycle.serving(
        ToolExecutorConfig(drain_grace_s=5.0), with_tools(tool("gate", gate.run))
    )
    running = await service.__aenter__()
    async with open_channel(running.address) as channel:
        stub = pb_grpc.ToolExecutorServiceStub(channel)
        call = asyncio.ensure_future(execute(stub, request("gate", {}, "a")))
        await gate.wait_entered()
        leaving = asyncio.ensure_future(service.__aexit__(None, None, None))
        await asyncio.sleep(0.05)
        error = await error_of(stub, request("gate", {}, "b"))
        assert error.code == "UNAVAILABLE"
        gate.opened.set()
        assert (await call).result.parts[0].text == "done"
        await leaving


async def test_a_call_has_a_span_under_its_rpc_without_what_was_said(tmp_path: Path) -> None:
    store = tmp_path / "traces"
    async with executor(tool("crash", crash), trace_store=str(store)) as stub:
        await execute(stub, request("calculator", {"expression": "12345+1"}, "a"))
        await execute(stub, request("calculator", {"expression": "12345+1"}, "a"))
        await execute(stub, request("crash", {}, "b"))
    traces = TraceStore(store)
    spans = [span for trace in traces.traces() for span in traces.spans(trace.trace_id)]
    runs = {
        span.attributes["gen_ai.tool.name"]: span for span in spans if span.name == "execute_tool"
    }
    assert len([span for span in spans if span.name == "execute_tool"]) == 2
    parent = next(span for span in spans if span.span_id == runs["calculator"].parent_id)
    assert parent.name == "ToolExecutorService/Execute"
    assert runs["calculator"].attributes == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "calculator",
        "gen_ai.tool.call.id": "a",
        "cogitate.contemplation_id": "c-1",
    }
    assert runs["crash"].attributes["cogitate.reason"] == "TOOL_CRASHED"
    assert "12345" not in str(spans) and "secret" not in str(spans)


async def test_health_is_served() -> None:
    async with (
        lifecycle.serving(ToolExecutorConfig(), build) as running,
        open_channel(running.address) as channel,
    ):
        probe = health_pb2.HealthCheckRequest(service="cogitate.v1.ToolExecutorService")
        answer = await health_pb2_grpc.HealthStub(channel).Check(probe, timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_repeatable_false_runs_to_its_end_without_a_caller() -> None:
    gate = Gate()
    lasting = replace(tool("gate", gate.run), repeatable=False)
    async with executor(lasting) as stub:
        only = asyncio.ensure_future(execute(stub, request("gate", {})))
        await gate.wait_entered()
        only.cancel()
        await asyncio.sleep(0.05)
        gate.opened.set()
        done = await execute(stub, request("gate", {}))
        assert done.provenance.replayed and gate.num_runs == 1
