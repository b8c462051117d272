"""OpenAI's own client against the gateway over real sockets, before a scripted aggregator."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from cogitate.kit.errors import NoEndpoint, Rejected
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2

from tests.fakes.aggregator import AwaitResult, Break, Raise, Script, Step, Wait
from tests.fakes.front import Mesh, endless, mesh
from tests.fakes.vision import png

pytestmark = pytest.mark.contract

event = pb2.ContemplationEvent
ASKED: list[Any] = [{"role": "user", "content": "What?"}]


@asynccontextmanager
async def client(script: Script, **knobs: Any) -> AsyncIterator[tuple[openai.AsyncOpenAI, Mesh]]:
    """A client that tries nothing twice, and what it talks to."""
    async with mesh(script, http_listen="127.0.0.1:0", **knobs) as m:
        url = f"http://{m.http}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as made:
            yield made, m


def accepted(agents: int = 1) -> pb2.ContemplationEvent:
    return event(accepted=pb2.Accepted(model="mini", agent_count=agents, strategy="vote"))


def wrote(text: str, *, answer: bool, agent: int = 0, tokens: int = 1) -> pb2.ContemplationEvent:
    delta = pb2.AgentTextDelta(agent_id=agent, text=text, is_answer=answer, token_count=tokens)
    return event(deltas=pb2.AgentDeltas(deltas=[delta]))


def sampled(*words: str, answer: bool, agent: int = 0) -> pb2.ContemplationEvent:
    """Text, and its tokens by themselves."""
    made = wrote("".join(words), answer=answer, agent=agent, tokens=len(words))
    for i, word in enumerate(words):
        rival = pb2.TokenLogprob(token="no", logprob=-3.0)
        rivals = [pb2.TokenLogprob(token=word, logprob=-0.5 - i), rival]
        made.deltas.deltas[0].tokens.add(token=word, logprob=-0.5 - i, top=rivals)
    return made


def ballot(agent: int, answer: str, reason: str = "STOP") -> common_pb2.Ballot:
    finish = common_pb2.FinishReason.Value(f"FINISH_REASON_{reason}")
    return common_pb2.Ballot(agent_id=agent, answer=answer, key=answer, finish_reason=finish)


def verdict(answer: str, *ballots: common_pb2.Ballot, **fields: Any) -> pb2.ContemplationEvent:
    usage = common_pb2.Usage(prompt_token_count=20, cached_token_count=8, sampled_token_count=30)
    certificate = common_pb2.Certificate(
        ballots=ballots, build_digests={"a": "sha256:" + "b" * 64}, seed=7
    )
    made = common_pb2.Verdict(
        answer=answer, key=answer, certificate=certificate, usage=usage, **fields
    )
    return event(verdict=made)


def alone(request: pb2.ContemplateRequest) -> Sequence[Step]:
    """One agent thinks, then writes its answer with white space around it."""
    return (
        accepted(),
        event(agent_started=pb2.AgentStarted(agent_id=0)),
        wrote("Let me see. ", answer=False, tokens=3),
        wrote(" For", answer=True),
        wrote("ty \n", answer=True),
        wrote(" two.\n", answer=True),
        verdict("Forty \n two.", ballot(0, "Forty \n two.")),
    )


def three(request: pb2.ContemplateRequest) -> Sequence[Step]:
    """Three agents, of whom two agree."""
    cast = [pb2.BallotCast(ballot=ballot(i, a)) for i, a in enumerate(("42", "41", "42"))]
    return (
        accepted(3),
        *(wrote("x", answer=False, agent=i) for i in range(3)),
        *(event(ballot_cast=one) for one in cast),
        event(decided=pb2.Decided(reason="2 of 3 agree")),
        verdict("42", *(one.ballot for one in cast)),
    )


async def test_a_chat_completion_says_answer_reasoning_usage_and_how_it_came_about() -> None:
    async with client(three) as (openai_client, m):
        made = await openai_client.chat.completions.create(
            model="mini",
            messages=ASKED,
            seed=5,
            temperature=0.5,
            max_completion_tokens=64,
            stop=["END"],
            extra_body={
                "cogitate": {
                    "agents": 3, "quorum": "all", "budget_usd": 0.5,
                    "tables": [{"name": "prices", "columns": ["a", "b"], "rows": [["x", "2.50"]]}],
                }
            },
        )  # fmt: skip
        choice = made.choices[0]
        assert (choice.message.content, choice.finish_reason) == ("42", "stop")
        told = choice.message.model_extra or {}
        assert told["reasoning_content"].splitlines() == [
            "Agent 0: 42", "Agent 1: 41", "Agent 2: 42", "Decided: 2 of 3 agree",
        ]  # fmt: skip
        usage = made.usage
        assert usage and (usage.prompt_tokens, usage.completion_tokens) == (20, 30)
        assert usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens == 8
        assert made.system_fingerprint == "b" * 12
        own = (made.model_extra or {})["cogitate"]
        assert (own["agent_count"], own["ballot_count"], own["agreeing_count"]) == (3, 3, 2)
        assert made.id == f"chatcmpl-{own['contemplation_id']}"
        spec = m.aggregator.requests[0].spec
        assert (spec.agent_count, spec.quorum, spec.sampling_params.seed) == (3, "all", 5)
        assert list(spec.sampling_params.stop) == ["END"]
        assert (spec.tables[0].name, list(spec.tables[0].columns)) == ("prices", ["a", "b"])
        assert list(spec.tables[0].rows[0].cells) == ["x", "2.50"]
        assert spec.sampling_params.max_tokens == 64
        assert spec.budget.max_cost_micro_usd == 500_000


async def test_a_stream_is_the_whole_in_pieces() -> None:
    async with client(alone) as (openai_client, _):
        stream = await openai_client.chat.completions.create(
            model="mini", messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        whole = await openai_client.chat.completions.create(model="mini", messages=ASKED)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert [d.content for d in deltas if d.content] == ["For", "ty", " \n two."]
    assert "".join(d.content or "" for d in deltas) == whole.choices[0].message.content
    assert [(d.model_extra or {}).get("reasoning_content") for d in deltas][1] == "Let me see. "
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    usage = chunks[-1].usage
    assert usage and usage == whole.usage and not chunks[-1].choices
    assert usage.completion_tokens_details
    assert usage.completion_tokens_details.reasoning_tokens == 30 - 3


async def test_efforts_and_pictures_reach_the_mesh_and_nothing_is_fetched() -> None:
    async with client(alone) as (openai_client, m):
        data = base64.b64encode(png(10, 20)).decode()
        content: list[Any] = [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        ]
        await openai_client.chat.completions.create(
            model="mini", messages=[{"role": "user", "content": content}], reasoning_effort="medium"
        )
        spec = m.aggregator.requests[0].spec
        assert spec.effort == common_pb2.EFFORT_THINKING
        part = spec.conversation[0].parts[1]
        assert part.image.digest in m.vision.blobs and not part.image.data
        content[1]["image_url"]["url"] = "http://127.0.0.1:9/secret.png"
        with pytest.raises(openai.BadRequestError) as caught:
            await openai_client.chat.completions.create(
                model="mini", messages=[{"role": "user", "content": content}]
            )
        assert caught.value.param == "messages[0].content[1].image_url.url"
        assert "nothing is fetched" in caught.value.message and "secret" not in str(caught.value)


async def test_choices_have_seeds_of_their_own_and_are_told_apart() -> None:
    async with client(three) as (openai_client, m):
        made = await openai_client.chat.completions.create(
            model="mini", messages=ASKED, n=3, seed=5
        )
        assert [choice.index for choice in made.choices] == [0, 1, 2]
        assert {choice.message.content for choice in made.choices} == {"42"}
        asked = [request.spec for request in m.aggregator.requests]
        assert sorted(spec.sampling_params.seed for spec in asked) == [5, 6, 7]
        assert len({spec.request_id for spec in asked}) == 3
        assert made.usage and made.usage.completion_tokens == 90
        stream = await openai_client.chat.completions.create(
            model="mini", messages=ASKED, n=2, stream=True
        )
        said = {0: "", 1: ""}
        async for chunk in stream:
            for choice in chunk.choices:
                said[choice.index] += choice.delta.content or ""
        assert said == {0: "42", 1: "42"}


async def test_the_same_key_twice_is_one_contemplation_and_another_body_a_conflict() -> None:
    async with client(three) as (openai_client, m):
        create = openai_client.chat.completions.create
        key = {"Idempotency-Key": "mine"}
        first = await create(model="mini", messages=ASKED, extra_headers=key)
        second = await create(model="mini", messages=ASKED, extra_headers=key)
        assert first.id == second.id and len(m.aggregator.played) == 1
        with pytest.raises(openai.ConflictError):
            await create(model="mini", messages=ASKED, temperature=1, extra_headers=key)


def cut_off(request: pb2.ContemplateRequest) -> Sequence[Step]:
    """An agent that reached its limit."""
    return (accepted(), wrote("For", answer=True), verdict("For", ballot(0, "For", "LENGTH")))


async def test_an_answer_that_was_cut_says_so() -> None:
    async with client(cut_off) as (openai_client, _):
        made = await openai_client.chat.completions.create(model="mini", messages=ASKED)
        assert made.choices[0].finish_reason == "length"
        response = await openai_client.responses.create(model="mini", input="What?")
        assert response.status == "incomplete" and response.incomplete_details
        assert response.incomplete_details.reason == "max_output_tokens"


def failing(request: pb2.ContemplateRequest) -> Sequence[Step]:
    """Half an answer, then the end."""
    failed = pb2.Failed(code=14, reason="NO_ENDPOINT", message="nobody is left", retryable=True)
    return (accepted(), wrote("For", answer=True), event(failed=failed))


async def test_a_failure_in_the_middle_of_a_stream_makes_the_client_raise() -> None:
    async with client(failing) as (openai_client, _):
        stream = await openai_client.chat.completions.create(
            model="mini", messages=ASKED, stream=True
        )
        said = ""
        with pytest.raises(openai.APIError, match="nobody is left"):
            async for chunk in stream:
                said += chunk.choices[0].delta.content or ""
        assert said == "For"
        kinds = []
        with pytest.raises(openai.APIError, match="nobody is left"):
            made = await openai_client.responses.create(model="mini", input="What?", stream=True)
            async for told in made:
                kinds += [told.type]
        assert kinds[-1] == "response.failed"
        with pytest.raises(openai.InternalServerError) as caught:
            await openai_client.chat.completions.create(model="mini", messages=ASKED)
        assert caught.value.status_code == 503 and caught.value.response.headers["retry-after"]


def withdrawn(request: pb2.ContemplateRequest) -> Sequence[Step]:
    """An agent that goes on at another model, which says something else."""
    return (
        accepted(),
        wrote("Forty", answer=True),
        event(text_retracted=pb2.TextRetracted(agent_id=0, attempt=1)),
        wrote("Fifty", answer=True),
        verdict("Fifty", ballot(0, "Fifty")),
    )


async def test_what_cannot_be_unsaid_is_an_error_and_a_whole_answer_is_none() -> None:
    async with client(withdrawn) as (openai_client, _):
        stream = await openai_client.chat.completions.create(
            model="mini", messages=ASKED, stream=True
        )
        with pytest.raises(openai.APIError, match="withdrawn"):
            async for _ in stream:
                pass


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (Rejected("there is no room", retry_after_s=2.5), 503, openai.InternalServerError),
        (NoEndpoint("nobody serves it", reason="UNKNOWN_MODEL"), 404, openai.NotFoundError),
        (NoEndpoint("nobody is there"), 503, openai.InternalServerError),
    ],
)
async def test_refusals_have_their_status(error: Any, status: int, kind: Any) -> None:
    async with client(lambda _: (Raise(error),)) as (openai_client, _):
        for stream in (False, True):
            with pytest.raises(kind) as caught:
                await openai_client.chat.completions.create(
                    model="mini", messages=ASKED, stream=stream
                )
            assert caught.value.status_code == status
            assert caught.value.body["message"] == error.message
            headers = caught.value.response.headers
            assert ("x-should-retry" in headers) is not error.retryable
            assert (headers.get("retry-after-ms") == "2500") is (error.retry_after_s == 2.5)


async def test_a_client_that_leaves_cancels_the_contemplation() -> None:
    async with client(endless) as (openai_client, m):
        stream = await openai_client.chat.completions.create(
            model="mini", messages=ASKED, stream=True
        )
        async for _ in stream:
            break
        await stream.close()
        await asyncio.wait_for(m.aggregator.cancelled.wait(), 5)
        m.aggregator.cancelled.clear()
        whole = asyncio.ensure_future(
            openai_client.chat.completions.create(model="mini", messages=ASKED)
        )
        while len(m.aggregator.played) < 2:
            await asyncio.sleep(0.01)
        whole.cancel()
        await asyncio.wait_for(m.aggregator.cancelled.wait(), 5)


# -- tools of the client -------------------------------------------------------------------------


def weather(request: pb2.ContemplateRequest) -> Sequence[Step]:
    """Two agents ask the client for two towns' weather; a third shares one of the calls."""
    steps: list[Step] = [accepted(3)]
    steps += [event(agent_started=pb2.AgentStarted(agent_id=i)) for i in range(3)]
    for agent, town in enumerate(("Oslo", "Rome")):
        call = common_pb2.ToolCall(
            call_id=f"a{agent}.c1", name="weather", arguments_json=json.dumps({"town": town})
        )
        steps += [
            event(tool_call_started=pb2.ToolCallStarted(agent_id=agent, call=call)),
            event(awaiting_client=pb2.AwaitingClient(agent_ids=[agent], call=call)),
        ]
    shared = common_pb2.ToolCall(call_id="a2.c1", name="weather", arguments_json="{}")
    started = pb2.ToolCallStarted(agent_id=2, call=shared, shared_call_id="a0.c1")
    steps.append(event(tool_call_started=started))
    for agent in range(2):
        finished = pb2.ToolCallFinished(agent_id=agent, call_id=f"a{agent}.c1")
        steps += [AwaitResult(f"a{agent}.c1"), event(tool_call_finished=finished)]
    return (*steps, *three(request)[4:])


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
    }
]


@pytest.mark.parametrize("streams", [False, True])
async def test_tools_of_the_client_are_called_and_answered(streams: bool) -> None:
    async with client(weather) as (openai_client, m):
        create = openai_client.chat.completions.create
        messages = list(ASKED)
        if streams:
            async with openai_client.chat.completions.stream(
                model="mini", messages=messages, tools=TOOLS
            ) as stream:
                first: Any = await stream.get_final_completion()
        else:
            first = await create(model="mini", messages=messages, tools=TOOLS)
        choice = first.choices[0]
        assert choice.finish_reason == "tool_calls"
        calls = choice.message.tool_calls
        assert [json.loads(call.function.arguments)["town"] for call in calls] == ["Oslo", "Rome"]
        assert not m.aggregator.cancellations
        messages.append(choice.message.model_dump(exclude_none=True, exclude={"parsed"}))
        for call in calls:
            call_dump = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
            messages.append(call_dump)
        for one in messages:
            for call in one.get("tool_calls", ()):
                call.get("function", {}).pop("parsed_arguments", None)
                call.pop("index", None)
        second = await create(model="mini", messages=messages, tools=TOOLS)
        assert second.choices[0].message.content == "42"
        assert second.id == first.id
        (played,) = m.aggregator.played.values()
        assert {id: r.parts[0].text for id, r in played.results.items()} == {
            "a0.c1": "rain", "a1.c1": "rain",
        }  # fmt: skip


async def test_results_nobody_waits_for_are_refused() -> None:
    async with client(weather) as (openai_client, m):
        create = openai_client.chat.completions.create
        gone = f"call_{uuid.uuid4().hex}_a0.c1"
        for id, words in (("call_1", "no contemplation here waits"), (gone, "is over")):
            made = {"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}}
            messages: list[Any] = [
                *ASKED,
                {"role": "assistant", "tool_calls": [made]},
                {"role": "tool", "tool_call_id": id, "content": "rain"},
            ]
            with pytest.raises(openai.BadRequestError, match=words):
                await create(model="mini", messages=messages)
            with pytest.raises(openai.BadRequestError, match="answers a call that no message"):
                await create(model="mini", messages=[messages[0], messages[2]])
        assert not m.aggregator.played


async def test_a_client_that_leaves_before_its_tools_are_called_cancels() -> None:
    async with client(endless) as (openai_client, m):
        stream = await openai_client.chat.completions.create(
            model="mini", messages=ASKED, tools=TOOLS, stream=True
        )
        async for _ in stream:
            break
        await stream.close()
        async with asyncio.timeout(5):
            while not m.aggregator.cancellations:
                await asyncio.sleep(0.01)


# -- responses -----------------------------------------------------------------------------------


async def test_a_response_streams_typed_events_that_add_up_to_it() -> None:
    async with client(alone) as (openai_client, _):
        async with openai_client.responses.stream(model="mini", input="What?") as stream:
            told = [one async for one in stream]
            final = await stream.get_final_response()
        kinds = [one.type for one in told]
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds[-1] == "response.completed"
        numbers = [one.sequence_number for one in told]
        assert numbers == sorted(set(numbers))
        assert final.output_text == "Forty \n two."
        assert [item.type for item in final.output] == ["reasoning", "message"]
        assert final.usage and final.usage.output_tokens_details.reasoning_tokens == 27
        looked_up = await openai_client.responses.retrieve(final.id)
        made = await openai_client.responses.create(model="mini", input="What?")
    assert looked_up.output_text == made.output_text == final.output_text
    assert looked_up.usage == made.usage == final.usage
    assert [item.type for item in looked_up.output] == [item.type for item in made.output]


def breaking(request: pb2.ContemplateRequest) -> Sequence[Step]:
    """Goes on slowly while nobody looks."""
    steps = list(alone(request))
    return (*steps[:4], Wait(0.05), *steps[4:])


async def test_a_broken_stream_is_taken_up_behind_any_event() -> None:
    async with client(breaking) as (openai_client, _):
        stream = await openai_client.responses.create(
            model="mini", input="What?", stream=True, background=True
        )
        seen: list[Any] = []
        async for told in stream:
            seen.append(told)
            if told.type == "response.output_text.delta":
                break
        await stream.close()
        id = seen[0].response.id
        rest = [
            one
            async for one in await openai_client.responses.retrieve(
                id, stream=True, starting_after=seen[-1].sequence_number
            )
        ]
        again = [one async for one in await openai_client.responses.retrieve(id, stream=True)]
        assert [e.to_dict() for e in (*seen, *rest)][2:] == [e.to_dict() for e in again][2:]
        text = "".join(e.delta for e in (*seen, *rest) if e.type == "response.output_text.delta")
        assert text == "Forty \n two."
        for after in ("-2", "x", str(2**40)):
            with pytest.raises(openai.BadRequestError):
                await openai_client.responses.retrieve(
                    id, stream=True, extra_query={"starting_after": after}
                )
        for unknown in (f"resp_{uuid.uuid4().hex}", "resp_x", "x"):
            with pytest.raises(openai.NotFoundError):
                await openai_client.responses.retrieve(unknown)


async def test_a_response_goes_on_from_another() -> None:
    async with client(alone) as (openai_client, m):
        first = await openai_client.responses.create(
            model="mini", input="What?", instructions="Be brief."
        )
        second = await openai_client.responses.create(
            model="mini",
            input="And now?",
            instructions="Be exact.",
            previous_response_id=first.id,
        )
        assert second.previous_response_id == first.id
        said = m.aggregator.requests[1].spec.conversation
        assert [(turn.role, turn.parts[0].text) for turn in said] == [
            (common_pb2.ROLE_SYSTEM, "Be exact."),
            (common_pb2.ROLE_SYSTEM, "Be brief."),
            (common_pb2.ROLE_USER, "What?"),
            (common_pb2.ROLE_ASSISTANT, "Forty \n two."),
            (common_pb2.ROLE_USER, "And now?"),
        ]


async def test_a_response_in_the_background_is_looked_up_cancelled_and_deleted() -> None:
    async with client(endless) as (openai_client, m):
        made = await openai_client.responses.create(model="mini", input="What?", background=True)
        assert (made.status, made.background, made.output) == ("in_progress", True, [])
        assert (await openai_client.responses.retrieve(made.id)).status == "in_progress"
        assert (await openai_client.responses.cancel(made.id)).status == "cancelled"
        await openai_client.responses.delete(made.id)
        assert len(m.aggregator.deleted) == 1
        with pytest.raises(openai.NotFoundError):
            await openai_client.responses.retrieve(made.id)


async def test_a_response_that_is_not_to_be_stored_is_deleted() -> None:
    async with client(alone) as (openai_client, m):
        await openai_client.responses.create(model="mini", input="What?", store=False)
        async with asyncio.timeout(5):
            while not m.aggregator.deleted:
                await asyncio.sleep(0.01)


async def test_a_response_calls_tools_of_the_client() -> None:
    tool: Any = {"type": "function", "name": "weather", "parameters": {}, "strict": False}
    async with client(weather) as (openai_client, _):
        first = await openai_client.responses.create(model="mini", input="What?", tools=[tool])
        calls = [item for item in first.output if item.type == "function_call"]
        assert [json.loads(call.arguments)["town"] for call in calls] == ["Oslo", "Rome"]
        assert first.status == "completed"
        results: list[Any] = [
            {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
            for call in calls
        ]
        second = await openai_client.responses.create(
            model="mini", input=results, tools=[tool], previous_response_id=first.id
        )
        assert second.output_text == "42" and second.id != first.id
        looked_up = await openai_client.responses.retrieve(second.id)
        assert looked_up.output_text == "42"
        assert [item.type for item in looked_up.output] == ["reasoning", "message"]


async def test_a_json_schema_reaches_the_agents() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    async with client(alone) as (openai_client, m):
        await openai_client.chat.completions.create(
            model="mini",
            messages=ASKED,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": schema, "strict": True},
            },
        )
        text: Any = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
        made = await openai_client.responses.create(model="mini", input="What?", text=text)
        for request in m.aggregator.requests:
            assert json.loads(request.spec.response_json_schema) == schema
        assert made.text and made.text.format and made.text.format.type == "json_schema"


async def test_events_of_the_agents_are_told_to_who_asks_and_harm_nobody() -> None:
    own: Any = {"cogitate": {"events": "all"}}
    async with client(three) as (openai_client, _):
        stream = await openai_client.chat.completions.create(
            model="mini", messages=ASKED, stream=True, extra_body=own
        )
        extra = [(c.model_extra or {})["cogitate"] async for c in stream if not c.choices]
        kinds = [one["event"]["type"] for one in extra]
        assert kinds == ["accepted", *["deltas"] * 3, *["ballot_cast"] * 3, "decided"]
        assert extra[1]["event"]["deltas"]["deltas"][0]["agent_id"] == 0
        async with openai_client.responses.stream(
            model="mini", input="What?", extra_body=own
        ) as events:
            types = [one.type async for one in events]
            final = await events.get_final_response()
        assert final.output_text == "42" and "response.completed" in types


def alone_by_tokens(request: pb2.ContemplateRequest) -> Sequence[Step]:
    """One agent thinks and answers."""
    return (
        accepted(),
        sampled("hm", answer=False),
        sampled("It", " is", answer=True),
        sampled(" 7", "", answer=True),
        verdict("It is 7", ballot(0, "It is 7")),
    )


def several(request: pb2.ContemplateRequest) -> Sequence[Step]:
    """The second of two agents is taken at its word."""
    return (
        accepted(2),
        sampled("8", answer=True, agent=0),
        sampled("It is", " 7", answer=True, agent=1),
        verdict("It is 7", ballot(0, "8"), ballot(1, "It is 7")),
    )


@pytest.mark.parametrize(("script", "words"), [
    (alone_by_tokens, ["It", " is", " 7", ""]), (several, ["It is", " 7"]),
])  # fmt: skip
async def test_tokens_of_the_answer_are_told_with_their_probabilities(
    script: Script, words: list[str]
) -> None:
    async with client(script) as (c, m):
        asked: Any = {"model": "mini", "messages": ASKED, "logprobs": True, "top_logprobs": 2}
        whole = await c.chat.completions.create(**asked)
        assert whole.choices[0].logprobs is not None
        tokens: Any = whole.choices[0].logprobs.content
        assert [one.token for one in tokens] == words
        assert [bytes(one.bytes).decode() for one in tokens] == words
        assert tokens[0].logprob == -0.5 and tokens[1].top_logprobs[0].logprob == -1.5
        assert [one.token for one in tokens[0].top_logprobs] == [words[0], "no"]
        streamed: list[Any] = []
        async for chunk in await c.chat.completions.create(**asked, stream=True):
            if chunk.choices and (told := chunk.choices[0].logprobs):
                streamed += told.content or []
        assert [one.token for one in streamed] == words
        assert m.aggregator.requests[-1].spec.sampling_params.logprobs == 2
        plain = await c.chat.completions.create(model="mini", messages=ASKED)
        assert plain.choices[0].logprobs is None
        assert not m.aggregator.requests[-1].spec.sampling_params.HasField("logprobs")
        only: Any = await c.chat.completions.create(model="mini", messages=ASKED, logprobs=True)
        assert m.aggregator.requests[-1].spec.sampling_params.logprobs == 0
        assert only.choices[0].logprobs.content


async def test_models_are_listed_and_found() -> None:
    async with client(alone) as (openai_client, _):
        assert [model.id async for model in openai_client.models.list()] == ["mini"]
        assert (await openai_client.models.retrieve("mini")).owned_by == "cogitate"
        with pytest.raises(openai.NotFoundError):
            await openai_client.models.retrieve("other")


async def test_an_aggregator_that_breaks_off_is_attached_to_again() -> None:
    def script(request: pb2.ContemplateRequest) -> Sequence[Step]:
        steps = list(alone(request))
        return (*steps[:4], Break(), *steps[4:])

    async with client(script) as (openai_client, m):
        stream = await openai_client.chat.completions.create(
            model="mini", messages=ASKED, stream=True
        )
        text = "".join([c.choices[0].delta.content or "" async for c in stream])
        assert text == "Forty \n two." and m.aggregator.attaches
