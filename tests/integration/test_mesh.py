"""The whole mesh as processes: a real image, real agents, one answer."""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from cogitate.client import Client, CogitateError, InvalidRequest
from cogitate.v1 import gateway_service_pb2 as gateway_pb
from cogitate.v1 import vision_encoder_service_pb2 as vision_pb
from cogitate.v1.common_pb2 import FINISH_REASON_STOP
from cogitate.v1.gateway_service_pb2_grpc import GatewayServiceStub
from cogitate.v1.vision_encoder_service_pb2_grpc import VisionEncoderServiceStub

from tests.integration.mesh import Mesh, running_mesh

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "examples"
BOARD = EXAMPLES / "board.png"
QUESTION = "What is the sum of the red cards?"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with running_mesh(tmp_path_factory.mktemp("state")) as mesh:
        yield mesh


@pytest.fixture
def client(mesh: Mesh) -> Iterator[Client]:
    with Client(mesh.address) as client:
        yield client


def events_of(client: Client, **options: Any) -> list[Any]:
    with client.contemplate(QUESTION, images=[BOARD], seed=7, **options) as stream:
        return list(stream)


def kind(event: Any) -> str:
    return str(event.WhichOneof("event"))


def loads(mesh: Mesh) -> list[Any]:
    """What the endpoints reported last."""
    with grpc.insecure_channel(mesh.address) as channel:
        fleet = GatewayServiceStub(channel).DescribeFleet(
            gateway_pb.DescribeFleetRequest(), timeout=5
        )
    return [endpoint.load for endpoint in fleet.endpoints]


def sampled(mesh: Mesh) -> int:
    """Tokens the engines say they sampled, all endpoints together."""
    return sum(load.sampled_token_count for load in loads(mesh))


def computed(mesh: Mesh) -> int:
    """Prompt positions the engines say they computed."""
    return sum(load.computed_prompt_token_count for load in loads(mesh))


def encoder_info(mesh: Mesh) -> Any:
    with grpc.insecure_channel(f"127.0.0.1:{mesh.base_port + 3}") as channel:
        stub = VisionEncoderServiceStub(channel)
        return stub.GetEncoderInfo(vision_pb.GetEncoderInfoRequest(), timeout=5)


def test_log_probabilities_of_tokens_reach_an_openai_client(mesh: Mesh) -> None:
    url = f"data:image/png;base64,{base64.b64encode(BOARD.read_bytes()).decode()}"
    content: list[Any] = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": QUESTION},
    ]
    with openai.OpenAI(base_url=f"{mesh.http}/v1", api_key="none", max_retries=0) as client:
        for agents in (1, 4):
            whole = client.chat.completions.create(
                model="mini",
                messages=[{"role": "user", "content": content}],
                logprobs=True,
                top_logprobs=3,
                extra_body={"cogitate": {"agents": agents}},
            )
            assert whole.choices[0].logprobs is not None
            tokens = whole.choices[0].logprobs.content or []
            said = "".join(one.token for one in tokens)
            assert said.strip() == whole.choices[0].message.content
            for one in tokens:
                assert len(one.top_logprobs) == 3 and one.logprob <= 0
                assert one.top_logprobs[0].logprob >= one.top_logprobs[2].logprob


def test_eight_agents_on_two_providers_give_one_verdict(client: Client) -> None:
    events = events_of(client, agents=8)
    kinds = [kind(event) for event in events]
    assert kinds[0] == "accepted" and kinds[-1] == "verdict"
    assert sum(k in ("verdict", "failed", "cancelled") for k in kinds) == 1
    placed = next(e.placed for e in events if kind(e) == "placed")
    assert len({p.provider for p in placed.placements}) == 2
    assert sorted(a for p in placed.placements for a in p.agent_ids) == list(range(8))
    # One prefill for each endpoint, however many agents it has.
    assert kinds.count("prefilled") == len(placed.placements)
    verdict = events[-1].verdict
    assert verdict.answer and not verdict.degraded
    numbers = [(e.first_event_number, e.event_number) for e in events]
    assert numbers[0] == (1, 1)
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(numbers))


def test_the_ledger_equals_the_engines_own_counters(mesh: Mesh, client: Client) -> None:
    time.sleep(1.0)  # endpoints report twice a second
    before = sampled(mesh)
    answer = client.ask(QUESTION, images=[BOARD], agents=6, seed=3)
    ledger = answer.certificate.ledger
    assert ledger.generated_tokens == (
        ledger.used_tokens + ledger.killed_tokens + ledger.lost_tokens
    )
    deadline = time.monotonic() + 10
    while sampled(mesh) - before != ledger.generated_tokens and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sampled(mesh) - before == ledger.generated_tokens


def test_a_gang_computes_its_prompt_once_on_each_endpoint(mesh: Mesh, client: Client) -> None:
    """Sixteen agents on two endpoints: two prompts, and not a position more."""
    time.sleep(1.0)  # endpoints report twice a second
    before = computed(mesh)
    with client.contemplate("Add 17 and 25, then 8.", agents=16, tools=[], seed=1) as stream:
        prompts = [e.prefilled for e in stream if kind(e) == "prefilled"]
    assert len({prompt.endpoint_id for prompt in prompts}) == len(prompts) == 2
    needed = sum(prompt.prompt_token_count - prompt.cached_token_count for prompt in prompts)
    assert needed > 0
    deadline = time.monotonic() + 10
    while computed(mesh) - before < needed and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)  # a report later it is no more
    assert computed(mesh) - before == needed


def test_a_crop_is_encoded_once_and_a_call_runs_once(mesh: Mesh, client: Client) -> None:
    before = encoder_info(mesh).encoded_view_count
    events = events_of(client, agents=8, quorum="all")
    calls = [
        (e.tool_call_started.call.name, e.tool_call_started.call.arguments_json)
        for e in events
        if kind(e) == "tool_call_started"
    ]
    zooms = {arguments for name, arguments in calls if name == "zoom"}
    assert encoder_info(mesh).encoded_view_count - before <= len(zooms) + 1
    ledger = events[-1].verdict.certificate.ledger
    assert ledger.tool_call_count == len(calls)
    assert ledger.tool_execution_count <= len(set(calls))


def test_the_same_seed_gives_the_same_agents(client: Client) -> None:
    def texts() -> dict[int, str]:
        events = events_of(client, agents=4, quorum="all")
        found: dict[int, str] = {}
        for event in events:
            for delta in event.deltas.deltas:
                found[delta.agent_id] = found.get(delta.agent_id, "") + delta.text
        return found

    assert texts() == texts()


def test_every_span_hangs_on_one_root(mesh: Mesh, client: Client) -> None:
    answer = client.ask(QUESTION, images=[BOARD], agents=4, seed=11)
    wanted = {"contemplate", "lease", "place", "gang", "prefill", "invoke_agent", "decode"}
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        spans = mesh.receiver.of_trace(answer.trace_id)
        ids = {span.span_id for span in spans}
        roots = [span for span in spans if span.parent_span_id not in ids]
        if wanted <= {span.name for span in spans} and len(roots) == 1:
            break
        time.sleep(0.2)
    assert wanted <= {span.name for span in spans}
    assert [span.name for span in roots] == ["ContemplationService/Contemplate"]
    assert sum(span.name == "invoke_agent" for span in spans) == 4


def test_attach_gives_exactly_the_rest(client: Client) -> None:
    events = events_of(client, agents=3)
    contemplation_id = events[0].accepted.contemplation_id
    for after in (0, 1, len(events) // 2, len(events) - 1):
        with client.attach(contemplation_id, after) as stream:
            numbers = [event.event_number for event in stream]
        assert numbers == list(range(after + 1, events[-1].event_number + 1))


def test_a_token_budget_is_never_overshot(client: Client) -> None:
    for budget in (8, 40, 100):
        try:
            answer = client.ask(
                QUESTION, images=[BOARD], agents=4, seed=5, budget_tokens=budget, quorum="all"
            )
        except CogitateError as error:
            assert error.reason == "BUDGET_EXCEEDED"
            continue
        assert answer.certificate.ledger.generated_tokens <= budget


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"agents": 0}, "agent_count"),
        ({"agents": -1}, "agent_count"),
        ({"agents": 1_000_000}, "agent_count"),
        ({"strategy": "dictator"}, "strategy"),
        ({"quorum": "majority-of-the-loudest"}, "quorum"),
        ({"temperature": 9.0}, "temperature"),
    ],
)
def test_bad_options_are_refused_by_name(
    client: Client, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        client.ask(QUESTION, images=[BOARD], **options)
    assert field in str(refused.value) or field in str(refused.value.metadata)


@pytest.mark.parametrize("question", ["", "   "])
def test_an_empty_question_is_refused(client: Client, question: str) -> None:
    with pytest.raises(InvalidRequest):
        client.ask(question, images=[BOARD])


def test_over_long_text_is_refused(client: Client) -> None:
    limit = client.server_info().limits.max_text_length
    with pytest.raises(InvalidRequest):
        client.ask("x" * (limit + 1))


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"not an image",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        BOARD.read_bytes()[:200] if BOARD.exists() else b"\x89PNG",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
    ids=["empty", "text", "lying", "truncated", "svg"],
)
def test_an_unreadable_image_is_refused_and_nothing_breaks(client: Client, image: bytes) -> None:
    with pytest.raises(CogitateError):
        client.ask(QUESTION, images=[image])
    assert client.ask(QUESTION, images=[BOARD], agents=1).contemplation_id


def test_an_unknown_model_is_refused_with_those_that_are_there(client: Client) -> None:
    with pytest.raises(CogitateError, match="mini"):
        client.ask(QUESTION, images=[BOARD], model="gpt-17")


def test_every_answer_follows_the_schema(client: Client) -> None:
    schema = {
        "type": "object",
        "properties": {"red": {"type": "integer", "maximum": 99}, "sure": {"enum": ["yes", "no"]}},
        "required": ["red", "sure"],
        "additionalProperties": False,
    }
    events = events_of(client, agents=4, quorum="all", json_schema=schema, max_tokens=200)
    verdict = events[-1].verdict
    cast = [b for b in verdict.certificate.ballots if b.finish_reason == FINISH_REASON_STOP]
    assert cast, "no agent ended its answer"
    for ballot in cast:
        value = json.loads(ballot.answer)
        assert set(value) == {"red", "sure"} and isinstance(value["red"], int)
        assert ballot.key == json.dumps(value, sort_keys=True, separators=(",", ":"))
    assert verdict.answer in [ballot.answer for ballot in cast]


def test_a_grammar_nobody_can_follow_is_refused_in_the_endpoints_words(client: Client) -> None:
    with pytest.raises(CogitateError, match="json_schema cannot be followed"):
        client.ask(QUESTION, images=[BOARD], agents=1, json_schema={"type": "word"})


@pytest.fixture
def openai_client(mesh: Mesh) -> Iterator[openai.OpenAI]:
    url = f"{mesh.http}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def shown() -> list[Any]:
    data = base64.b64encode(BOARD.read_bytes()).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    return [{"role": "user", "content": [{"type": "text", "text": QUESTION}, image]}]


def test_openais_client_gets_the_answer_that_grpc_gets(
    client: Client, openai_client: openai.OpenAI
) -> None:
    answer = client.ask(QUESTION, images=[BOARD], seed=7, agents=8, quorum="all")
    asked: Any = {"cogitate": {"agents": 8, "quorum": "all"}}
    create = openai_client.chat.completions.create
    whole = create(model="mini", messages=shown(), seed=7, extra_body=asked)
    assert whole.choices[0].message.content == answer.answer
    stream = create(model="mini", messages=shown(), seed=7, extra_body=asked, stream=True)
    text = "".join(c.choices[0].delta.content or "" for c in stream)
    assert text == answer.answer
    own = (whole.model_extra or {})["cogitate"]
    assert own["tokens"]["generated"] == whole.usage.completion_tokens > 0  # type: ignore[union-attr]
    assert own["ballot_count"] == 8


def test_a_response_streamed_looked_up_and_told_again_is_one(openai_client: openai.OpenAI) -> None:
    image = shown()[0]["content"][1]["image_url"]["url"]
    asked: list[Any] = [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": QUESTION},
                {"type": "input_image", "image_url": image},
            ],
        }
    ]
    with openai_client.responses.stream(model="mini", input=asked) as stream:
        told = list(stream)
        final = stream.get_final_response()
    again = openai_client.responses.retrieve(final.id)
    assert again.output_text == final.output_text != "" and again.usage == final.usage
    numbers = [event.sequence_number for event in told]
    rest = openai_client.responses.retrieve(
        final.id, stream=True, starting_after=numbers[len(numbers) // 2]
    )
    assert [event.sequence_number for event in rest] == numbers[len(numbers) // 2 + 1 :]
    one = openai_client.responses.create(
        model="mini", input=QUESTION, previous_response_id=final.id,
        reasoning={"effort": "medium"},
    )  # fmt: skip
    assert one.output_text and one.previous_response_id == final.id


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"type": "text"},
        {"type": "string", "pattern": "("},
        nested(120),
        {"enum": ["x" * 99_000]},
    ],
    ids=["itself", "remote", "circle", "type", "pattern", "depth", "size"],
)
def test_a_schema_that_cannot_be_followed_is_refused_over_http(
    openai_client: openai.OpenAI, schema: dict[str, Any]
) -> None:
    create = openai_client.chat.completions.create
    named: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    asked: Any = {"model": "mini", "messages": [{"role": "user", "content": "What is 2 + 2?"}]}
    with pytest.raises(openai.BadRequestError) as caught:
        create(**asked, response_format=named)
    assert "0x" not in str(caught.value) and "Traceback" not in str(caught.value)
    assert create(**asked).choices[0].message.content


def test_the_example_runs(mesh: Mesh) -> None:
    command = [sys.executable, str(EXAMPLES / "openai_client.py"), f"{mesh.http}/v1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "ballots;" in done.stdout and "… and back:" in done.stdout


def test_ask_prints_one_event_a_line_and_the_verdict_last(mesh: Mesh) -> None:
    done = mesh.run("ask", QUESTION, "--image", str(BOARD), "--agents", "4", "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert set(lines[-1]) >= {"answer", "ballots", "certificate", "usage"}


def test_trace_draws_the_last_contemplation(mesh: Mesh) -> None:
    mesh.run("ask", QUESTION, "--image", str(BOARD), "--agents", "2", "--plain", "--no-trace")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done = mesh.run("trace", "--last")
        assert done.returncode == 0, done.stderr
        if "contemplate" in done.stdout and "invoke_agent" in done.stdout:
            return
    pytest.fail(done.stdout)
