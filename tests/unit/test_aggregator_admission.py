"""What is refused before acceptance, each limit at its edge."""

from __future__ import annotations

from typing import Any

import pytest
from cogitate.aggregator import admission
from cogitate.aggregator.config import AggregatorConfig
from cogitate.aggregator.core.messages import Spec
from cogitate.kit.errors import InvalidRequest
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb

pytestmark = pytest.mark.unit

CONFIG = AggregatorConfig(max_agent_count=10, default_agent_count=4)
QUESTION = common.Message(role=common.ROLE_USER, parts=[common.Part(text="How many?")])
DIGEST = "sha256:" + "ab" * 32


def spec(**fields: Any) -> pb.ContemplationSpec:
    return pb.ContemplationSpec(**{"conversation": [QUESTION], **fields})


def to_spec(**fields: Any) -> Spec:
    return admission.to_spec(spec(**fields), "c", CONFIG)


def sampling(**fields: Any) -> dict[str, Any]:
    return {"sampling_params": common.SamplingParams(**fields)}


def image(digest: str = DIGEST, **fields: Any) -> common.Message:
    part = common.Part(image=common.ImagePart(digest=digest, **fields))
    return common.Message(role=common.ROLE_USER, parts=[part])


def test_defaults() -> None:
    made = to_spec()
    assert (made.model, made.effort, made.num_agents) == ("mini", "CONTEMPLATING", 4)
    assert (made.strategy, made.quorum, made.equivalence) == ("auto", "unbeatable", "auto")
    assert (made.temperature, made.budget_tokens, made.patience_s) == (None, 0, 10.0)
    assert to_spec().seed != made.seed
    alone = to_spec(effort=common.EFFORT_THINKING)
    assert (alone.num_agents, alone.strategy) == (1, "vote")
    assert to_spec(agent_count=1).strategy == "vote"


@pytest.mark.parametrize(
    "fields",
    [
        {"agent_count": 1},
        {"agent_count": 10},
        {"effort": common.EFFORT_INSTANT, "agent_count": 1},
        {"agent_count": 5, "budget": common.Budget(max_tokens=5)},
        {"request_id": "r" * 128},
        {"conversation": [image(), QUESTION]},
        {"client_tools": [common.ToolSpec(name="a" * 64)]},
        sampling(temperature=0.0),
        sampling(temperature=2.0),
        sampling(top_p=1.0),
        sampling(max_tokens=1),
        sampling(stop=["é" * 64] * 16),
        sampling(logit_bias=dict.fromkeys(range(300), 100.0)),
    ],
    ids=repr,
)
def test_at_the_edge_it_is_taken(fields: dict[str, Any]) -> None:
    to_spec(**fields)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"agent_count": 0}, "agent_count"),
        ({"agent_count": 11}, "agent_count"),
        ({"effort": common.EFFORT_INSTANT, "agent_count": 2}, "agent_count"),
        ({"effort": 99}, "effort"),
        ({"agent_count": 5, "budget": common.Budget(max_tokens=4)}, "budget.max_tokens"),
        ({"budget": common.Budget(max_tokens=-1)}, "budget.max_tokens"),
        ({"budget": common.Budget(max_cost_micro_usd=-1)}, "budget.max_cost_micro_usd"),
        ({"request_id": "r" * 129}, "request_id"),
        ({"conversation": []}, "conversation"),
        ({"conversation": [image()]}, "conversation"),
        ({"conversation": [common.Message(parts=[common.Part(text="x")])]}, "conversation"),
        ({"conversation": [image(digest="", data=b"png"), QUESTION]}, "conversation"),
        ({"conversation": [image(digest="sha256:AB"), QUESTION]}, "conversation"),
        ({"strategy": "dice"}, "strategy"),
        ({"quorum": "first:0"}, "quorum"),
        ({"equivalence": "vibes"}, "equivalence"),
        ({"client_tools": [common.ToolSpec(name="a" * 65)]}, "client_tools"),
        ({"client_tools": [common.ToolSpec(name="a")] * 2}, "client_tools"),
        ({"client_tools": [common.ToolSpec()]}, "client_tools"),
        ({"response_json_schema": "[]"}, "response_json_schema"),
        ({"response_json_schema": "{"}, "response_json_schema"),
        ({"response_json_schema": "[" * 100_000}, "response_json_schema"),
        ({"response_json_schema": "{}", **sampling(regex="a")}, "response_json_schema"),
        ({"response_json_schema": "{}", **sampling(json_schema="{}")}, "response_json_schema"),
        (sampling(temperature=-0.1), "sampling_params.temperature"),
        (sampling(temperature=2.01), "sampling_params.temperature"),
        (sampling(temperature=float("nan")), "sampling_params.temperature"),
        (sampling(top_p=0.0), "sampling_params.top_p"),
        (sampling(min_p=1.5), "sampling_params.min_p"),
        (sampling(max_tokens=0), "sampling_params.max_tokens"),
        (sampling(stop=["x"] * 17), "sampling_params.stop"),
        (sampling(stop=["é" * 65]), "sampling_params.stop"),
        (sampling(logit_bias=dict.fromkeys(range(301), 0.0)), "sampling_params.logit_bias"),
        (sampling(logit_bias={1: float("nan")}), "sampling_params.logit_bias"),
        (sampling(logit_bias={1: 100.5}), "sampling_params.logit_bias"),
    ],
    ids=repr,
)
def test_beyond_the_edge_it_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_spec(**fields)
    assert caught.value.field == f"spec.{field}"


def test_width_and_rounds() -> None:
    made = to_spec(agent_count=8, initial_agent_count=8, max_round_count=2)
    assert (made.initial_agents, made.max_rounds) == (8, 2)
    for field, value in (
        ("initial_agent_count", 9), ("initial_agent_count", -1), ("max_round_count", -1)
    ):  # fmt: skip
        with pytest.raises(InvalidRequest) as caught:
            to_spec(agent_count=8, **{field: value})
        assert caught.value.field == f"spec.{field}"


@pytest.mark.parametrize(
    "name", ["posterior:0.5", "posterior:x", "first:0", "first:1.5", "unanimous:1", "all:1", "most"]
)
def test_a_quorum_that_cannot_be_is_refused_with_what_can(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_spec(quorum=name)
    assert caught.value.field == "spec.quorum"
    assert caught.value.message.startswith("quorum ")


def test_tools() -> None:
    assert admission.allowed_tools(spec()) == admission.DEFAULT_TOOLS
    table = common.LookupTable(name="prices", columns=["item", "price"])
    assert admission.allowed_tools(spec(tables=[table]))[-1] == "lookup"
    assert admission.allowed_tools(spec(tables=[table], allowed_tools=["zoom"])) == ("zoom",)
    assert admission.allowed_tools(spec(tables=[table], allowed_tools=["none"])) == ()


def test_agents_are_told_which_tables_there_are() -> None:
    table = common.LookupTable(name="prices", columns=["item", "price"])
    asked = spec(tables=[table])
    shown = admission.conversation_of(asked)
    assert [part.text for part in shown[-1].parts] == ["How many?", "Tables: prices (item, price)."]
    assert len(asked.conversation[-1].parts) == 1  # the request stays as it was
    untold = spec(tables=[table], allowed_tools=["zoom"])
    assert admission.conversation_of(untold) == list(untold.conversation)
    assert admission.allowed_tools(spec(allowed_tools=["none"])) == ()
    assert admission.allowed_tools(spec(allowed_tools=["zoom"])) == ("zoom",)


def test_the_schema_of_the_answer_is_a_constraint_of_every_agent() -> None:
    request = spec(response_json_schema='{"type":"integer"}', **sampling(temperature=0.5))
    params = admission.sampling_of(request)
    assert (params.json_schema, params.temperature) == ('{"type":"integer"}', 0.5)
    assert not request.sampling_params.HasField("json_schema"), "the request stays as it came"
    assert admission.sampling_of(spec(**sampling(regex="a"))).regex == "a"
    assert admission.sampling_of(spec()).WhichOneof("constraint") is None


@pytest.mark.parametrize(
    ("fields", "equivalence"),
    [
        ({"response_json_schema": "{}"}, "json"),
        ({"response_json_schema": "{}", "equivalence": "auto"}, "json"),
        ({"response_json_schema": "{}", "equivalence": "number"}, "number"),
        (sampling(json_schema="{}"), "json"),
        (sampling(regex="a"), "auto"),
    ],
    ids=repr,
)
def test_answers_by_a_schema_are_compared_as_json(fields: dict[str, Any], equivalence: str) -> None:
    assert to_spec(**fields).equivalence == equivalence


def test_computing_ahead_is_a_knob() -> None:
    assert to_spec().prepares
    assert not admission.to_spec(spec(), "c", AggregatorConfig(prepare=False)).prepares
