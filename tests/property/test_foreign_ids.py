"""What is another tenant's looks as if it were not there, on every method and route with an id.

A gateway with keys before the real aggregator. ada has contemplations in every state; bob asks for
them, and for ids that nobody has. All that differs may be the id.
"""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cogitate.client import Client, NotFound
from cogitate.gateway.config import GatewayConfig
from cogitate.gateway.core.tenants import Grant
from cogitate.gateway.http import document
from cogitate.gateway.keys import KeyStore
from cogitate.gateway.server import Gateway
from cogitate.kit.lifecycle import serving
from cogitate.v1 import agent_decoder_service_pb2
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.rpc import status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.test_aggregator import aggregator
from tests.fakes.contract import kind, methods
from tests.fakes.decoder import End, FakeDecoder, Hold
from tests.fakes.router import FakeRouter
from tests.fakes.tools import FakeTools
from tests.fakes.vision import FakeVision

pytestmark = pytest.mark.property

DELETE = "cogitate.v1.ContemplationService/DeleteContemplation"
SERVED = ("ContemplationService/", "GatewayService/")
# Fields that hold an id which belongs to somebody. Images' digests are the vision-encoder's affair:
# tests/integration/test_tenants.py.
IDS = ("contemplation_id", "parent_contemplation_id")
TEXTS = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=8)


@dataclass
class Place:
    """Where bob asks, and what ada has."""

    grpc: str = ""
    http: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    hers: dict[str, str] = field(default_factory=dict)  # ids by state
    config: GatewayConfig = field(default_factory=GatewayConfig)


class Run(threading.Thread):
    """The mesh, in a loop of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(name="mesh")
        self._folder, self.place = folder, Place()
        self.ready, self.loop = threading.Event(), asyncio.new_event_loop()
        self.holds, self.ended = False, asyncio.Event()

    def run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._serve())

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.ended.set)
        self.join(30)

    async def _serve(self) -> None:
        async with self._mesh():
            self.ready.set()
            await self.ended.wait()

    def _script(self, _: agent_decoder_service_pb2.AgentSpec) -> tuple[Any, ...]:
        return ("one ", Hold()) if self.holds else ("one ", End("3"))

    @asynccontextmanager
    async def _mesh(self) -> AsyncIterator[None]:
        store = KeyStore(self._folder / "keys", create=True)
        self.place.keys = {name: store.create(Grant(name))[1] for name in ("ada", "bob")}
        store.close()
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            decoder = await enter(FakeDecoder(self._script, endpoint_id="d0"))
            router = await enter(FakeRouter({"d0": decoder.address}))
            tools = await enter(FakeTools({}))
            journal = str(self._folder / "journal.db")
            running = (await enter(aggregator(router, tools, journal=journal)))[1]

            async def vision(_: Any, server: Any) -> Any:
                return FakeVision(server)

            async def build(config: GatewayConfig, server: grpc.aio.Server) -> Gateway:
                return Gateway(config, server)

            encoder = await enter(serving(replace(GatewayConfig(), listen="127.0.0.1:0"), vision))
            self.place.config = replace(
                GatewayConfig(), listen="127.0.0.1:0", http_listen="127.0.0.1:0",
                drain_grace_s=0.1, aggregator_address=running.address,
                vision_encoder_address=encoder.address, router_address=router.address,
                api_keys=str(self._folder / "keys"),
            )  # fmt: skip
            gateway = await enter(serving(self.place.config, build))
            self.place.grpc = gateway.address
            self.place.http = gateway.service.http_address  # type: ignore[attr-defined]
            yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    run = Run(tmp_path_factory.mktemp("mesh"))
    run.start()
    try:
        assert run.ready.wait(60)
        with Client(run.place.grpc, api_key=run.place.keys["ada"]) as ada:
            for state in ("ended", "deleted"):
                run.place.hers[state] = ada.ask("How many?", agents=2).contemplation_id
            gone = {"contemplationId": run.place.hers["deleted"]}
            assert told_by_grpc(run.place, DELETE, gone, "ada") == []
            run.holds = True
            for state in ("cancelled", "running"):
                with ada.contemplate("How many?", agents=2, on_disconnect="continue") as stream:
                    next(stream)
                    run.place.hers[state] = stream.contemplation_id
            ada.cancel(run.place.hers["cancelled"])
            run.holds = False
            for state, id in run.place.hers.items():
                if state == "deleted":
                    with pytest.raises(NotFound):
                        ada.get(id)
                else:
                    assert ada.get(id).state == {"ended": "COMPLETED"}.get(state, state.upper())
        yield run.place
    finally:
        run.stop()


def id_fields(message: Descriptor, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the paths of fields of a request that hold ids, not below repeated ones."""
    for one in message.fields:
        if one.name in IDS:
            yield (*path, one.name)
        elif one.message_type is not None and not one.is_repeated and len(path) < 3:
            yield from id_fields(one.message_type, (*path, one.name))


TAKES_IDS = [
    (name, path)
    for name, method in methods().items()
    if name.partition(".v1.")[2].startswith(SERVED)
    for path in id_fields(method.input_type)
]


@st.composite
def requests(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """A request without its id, as JSON; good but for that, or nearly."""
    short = name.rpartition("/")[2]
    part = {"text": draw(TEXTS)}
    if short in ("Contemplate", "Ask"):
        return {"spec": {"conversation": [{"role": "ROLE_USER", "parts": [part]}],
                         "agentCount": draw(st.integers(1, 2))}}  # fmt: skip
    if short == "Attach":
        excluded = draw(st.lists(st.sampled_from(("deltas", "placed", "nothing")), max_size=2))
        after = draw(st.integers(-1, 60))
        return {"afterEventNumber": str(after), "filter": {"excludedEvents": excluded}}
    if short == "SubmitToolResult":
        return {"result": {"callId": draw(TEXTS), "parts": [part]}}
    if short == "SteerContemplation":
        return {"message": {"role": "ROLE_USER", "parts": [part]}}
    return {}


def with_id(request: dict[str, Any], path: tuple[str, ...], id: str) -> dict[str, Any]:
    """The request with an id at a path."""
    copy: dict[str, Any] = json.loads(json.dumps(request))
    inner = copy
    for one in path[:-1]:
        inner = inner.setdefault(one, {})
    inner[path[-1]] = id
    return copy


def told_by_grpc(place: Place, name: str, request: dict[str, Any], who: str) -> Any:
    """How a call ends: code, words, details; or of what kind its messages are."""
    method = methods()[name]
    message = json_format.ParseDict(request, message_factory.GetMessageClass(method.input_type)())
    metadata = (("authorization", f"Bearer {place.keys[who]}"),)
    with grpc.insecure_channel(place.grpc) as channel:
        make: Any = getattr(channel, kind(method))(
            f"/{name}", response_deserializer=message_factory.GetMessageClass(
                method.output_type).FromString,
        )  # fmt: skip
        try:
            answer = make(message.SerializeToString(), metadata=metadata, timeout=10)
            return kinds(answer, method)
        except grpc.RpcError as raised:
            error: Any = raised
            trailers = dict(error.trailing_metadata())
            trailers.pop("endpoint-load-metrics-bin", None)
            packed = trailers.pop("grpc-status-details-bin", b"")
            details = str(status_pb2.Status.FromString(packed))
            return error.code(), error.details(), details, sorted(trailers)


def kinds(answer: Any, method: MethodDescriptor) -> Any:
    """What of an answer may be compared: events by name, anything else by its fields."""
    if not method.server_streaming:
        return [one.name for one, _ in answer.ListFields()]
    return {one.event.WhichOneof("event") for one in answer} & {"accepted", "verdict", "failed"}


def told_by_http(place: Place, verb: str, path: str, body: Any, who: str) -> Any:
    """Status, headers and body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{place.http}{path}", data=data, method=verb)
    request.add_header("Authorization", f"Bearer {place.keys[who]}")
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, sorted(answer.headers)
    except urllib.error.HTTPError as error:
        headers = {k: v for k, v in error.headers.items() if k.lower() != "date"}
        return error.code, headers, error.read().decode()


def assert_alike(ask: Callable[[str], Any], hers: str) -> Any:
    """Asks for ada's id, and for one that nobody has."""
    unknown = str(uuid.uuid4())
    found = [blind(ask(id), id) for id in (hers, unknown)]
    assert found[0] == found[1]
    return found[0]


def blind(told: Any, id: str) -> str:
    return repr(told).replace(id, "ID").replace(uuid.UUID(id).hex, "ID")


def test_the_methods_that_take_ids_are_known() -> None:
    """Found in the descriptors, so that a new one is asked as well; these must be among them."""
    names = {name.rpartition("/")[2] for name, _ in TAKES_IDS}
    assert names >= {
        "Attach", "Contemplate", "GetContemplation", "CancelContemplation", "DeleteContemplation",
        "SubmitToolResult", "SteerContemplation",
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_by_grpc(place: Place, data: st.DataObject) -> None:
    name, path = data.draw(st.sampled_from(TAKES_IDS))
    hers = data.draw(st.sampled_from(sorted(place.hers.items())))[1]
    request = data.draw(requests(name))
    assert_alike(lambda id: told_by_grpc(place, name, with_id(request, path, id), "bob"), hers)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_by_connect(place: Place, data: st.DataObject) -> None:
    unary = [one for one in TAKES_IDS if not methods()[one[0]].server_streaming]
    name, path = data.draw(st.sampled_from(unary))
    hers = data.draw(st.sampled_from(sorted(place.hers.items())))[1]
    request = data.draw(requests(name))
    told = assert_alike(
        lambda id: told_by_http(place, "POST", f"/{name}", with_id(request, path, id), "bob"), hers
    )
    assert told.startswith("(404" if path != ("spec", "parent_contemplation_id") else "(200")


TEMPLATES = ("/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel")


def test_the_routes_that_take_ids_are_known(place: Place) -> None:
    paths = document.openapi(place.config)["paths"]
    assert {path for path in paths if "{" in path} == {*TEMPLATES, "/v1/models/{model}"}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_by_openais_routes(place: Place, data: st.DataObject) -> None:
    hers = data.draw(st.sampled_from(sorted(place.hers.items())))[1]
    after, text = data.draw(st.integers(0, 2000)), data.draw(TEXTS)
    suffix = data.draw(st.sampled_from(("", "_1", "_9999")))
    stream = data.draw(st.booleans())

    def response(id: str) -> str:
        return f"resp_{uuid.UUID(id).hex}{suffix}"

    def call(id: str) -> str:
        return f"call_{uuid.UUID(id).hex}_{text}"

    def results(id: str) -> dict[str, Any]:
        function = {"name": "f", "arguments": "{}"}
        return {"model": "mini", "stream": stream, "messages": [
            {"role": "user", "content": text},
            {"role": "assistant", "content": None,
             "tool_calls": [{"id": call(id), "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": call(id), "content": "1"},
        ]}  # fmt: skip

    def outputs(id: str) -> dict[str, Any]:
        output = {"type": "function_call_output", "call_id": call(id), "output": "1"}
        return {"model": "mini", "input": [output], "previous_response_id": response(id),
                "stream": stream}  # fmt: skip

    ways: dict[str, Callable[[str], tuple[str, str, Any]]] = {
        "get": lambda id: ("GET", f"/v1/responses/{response(id)}", None),
        "again": lambda id: (
            "GET", f"/v1/responses/{response(id)}?stream=true&starting_after={after}", None,
        ),
        "delete": lambda id: ("DELETE", f"/v1/responses/{response(id)}", None),
        "cancel": lambda id: ("POST", f"/v1/responses/{response(id)}/cancel", {}),
        "follow": lambda id: (
            "POST", "/v1/responses",
            {"model": "mini", "input": text, "previous_response_id": response(id),
             "stream": stream},
        ),
        "outputs": lambda id: ("POST", "/v1/responses", outputs(id)),
        "results": lambda id: ("POST", "/v1/chat/completions", results(id)),
    }  # fmt: skip
    way = ways[data.draw(st.sampled_from(sorted(ways)))]
    told = assert_alike(lambda id: told_by_http(place, *way(id), "bob"), hers)
    assert "'error'" in told or '"error"' in told or "text/event-stream" in told or told[1] == "4"


def test_none_of_it_did_anything_to_hers(place: Place) -> None:
    """After all that bob asked: what runs still runs, what ended is still there."""
    with Client(place.grpc, api_key=place.keys["ada"]) as ada:
        assert ada.get(place.hers["running"]).state == "RUNNING"
        assert ada.get(place.hers["ended"]).state == "COMPLETED"
    with Client(place.grpc, api_key=place.keys["bob"]) as bob:
        mine = {one.contemplation_id for one in bob.list(1000)}
        assert not mine & set(place.hers.values())
