"""Answers to OpenAI's requests: contemplations folded as they run, whole or as frames."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from cogitate.gateway.core.spec import Limits
from cogitate.gateway.http.desk import Desk, Events
from cogitate.gateway.http.merging import merged
from cogitate.gateway.http.openai import asking, extension
from cogitate.gateway.http.openai.chat import Choice, Completion
from cogitate.gateway.http.openai.responses import STRIDE, Response, frames, parse_response_id
from cogitate.gateway.http.openai.schemas import ChatRequest, ResponseRequest
from cogitate.gateway.http.openai.telling import Telling
from cogitate.gateway.http.problems import body_of
from cogitate.kit.errors import (
    Cancelled,
    CogitateError,
    EngineFailure,
    InvalidRequest,
    OutOfRange,
)
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2

# Where among the frames of an event those of a broken connection stand: behind all others.
_BROKEN: Final = STRIDE - 8
_ENDED: Final = (
    pb2.ContemplationSummary.STATE_COMPLETED,
    pb2.ContemplationSummary.STATE_FAILED,
    pb2.ContemplationSummary.STATE_CANCELLED,
)


class Chat:
    """A chat completion; `stream` and `whole` are two ways to have it, each once."""

    def __init__(
        self, desk: Desk, body: ChatRequest, key: str, limits: Limits, max_choice_count: int
    ) -> None:
        """Begins nothing yet. Raises InvalidRequest."""
        request, results = asking.chat(body)
        count = 1 if body.n is None else body.n
        _check_choices(count, request.spec, limits, max_choice_count, goes_on=results is not None)
        self._desk, self._wanted = desk, body.cogitate.events
        num_returned = results.num_returned if results else 0
        self._choices = [
            Choice(i, Telling(num_returned), tokens=[] if body.logprobs else None)
            for i in range(count)
        ]
        self._sources: list[Events] = (
            [desk.go_on(results)]
            if results
            else [desk.begin(_numbered(request, key, i)) for i in range(count)]
        )
        options = body.stream_options
        with_usage = bool(options and options.include_usage)
        self._completion = Completion(self._choices, with_usage=with_usage)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yields frames. An error before the first is raised; one behind it is the last frame."""
        begun = False
        try:
            async with aclosing(self._frames()) as told:
                async for frame in told:
                    begun = True
                    yield frame
            yield self._completion.end()
        except Cancelled:
            raise
        except CogitateError as error:
            if not begun:
                raise
            yield f"data: {json.dumps(body_of(error))}\n\n".encode()

    async def whole(self) -> dict[str, Any]:
        """Returns the completion once it is there."""
        async with aclosing(self._frames()) as told:
            async for _ in told:
                pass
        return self._completion.whole()

    def _frames(self) -> AsyncGenerator[bytes, None]:
        return merged(
            [self._tell(*pair) for pair in zip(self._choices, self._sources, strict=True)]
        )

    async def _tell(self, choice: Choice, source: Events) -> AsyncGenerator[bytes, None]:
        async with aclosing(_renamed(source, "messages")) as events:
            async for event in events:
                pieces = choice.telling.feed(event)
                frame = b""
                if event.HasField("accepted"):
                    frame = self._completion.opening(choice)
                if (also := extension.told(event, self._wanted)) is not None:
                    frame += self._completion.extension(choice, also)
                if frame := frame + self._completion.chunk(choice, pieces):
                    yield frame
                if choice.finish_reason:
                    if choice.calls:
                        self._desk.keep(choice.telling.contemplation_id)
                    return
        raise _broken()


class Responses:
    """Responses: made, looked up, told again. Owns nothing."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def make(self, body: ResponseRequest, key: str) -> Making:
        """Returns a response to be made; begins nothing yet. Raises InvalidRequest, NotFound."""
        parent, num_before = "", 0
        if body.previous_response_id is not None:
            parent, num_before = parse_response_id(body.previous_response_id)
        request, results = asking.response(body)
        if results is not None:
            if parent and parent != results.contemplation_id:
                raise InvalidRequest(
                    "these results are of another response than previous_response_id", field="input"
                )
            if parent:
                results = results.behind(num_before)
            found = await self._desk.get(results.contemplation_id)
            fold = Response(found.spec, Telling(results.num_returned), body.metadata)
            return Making(self._desk, fold, self._desk.go_on(results), body)
        if parent:
            said = await self._conversation(parent)
            asking.follow(request.spec, parent, said, led=bool(body.instructions))
        fold = Response(request.spec, Telling(), body.metadata, bool(body.background))
        return Making(self._desk, fold, self._desk.begin(_numbered(request, key, 0)), body)

    async def look_up(self, response_id: str) -> dict[str, Any]:
        """Returns a response as far as it is. Raises NotFound."""
        contemplation_id, num_returned = parse_response_id(response_id)
        found = await self._desk.get(contemplation_id)
        fold = Response(found.spec, Telling(num_returned))
        return await self._folded(contemplation_id, fold, found.summary.last_event_number)

    async def _folded(self, contemplation_id: str, fold: Response, last: float) -> dict[str, Any]:
        """The response up to an event's number."""
        async with aclosing(self._desk.again(contemplation_id)) as events:
            async for event in events:
                _take(fold, event)
                if event.event_number >= last or fold.status != "in_progress":
                    break
        return fold.whole()

    async def tell_again(
        self, response_id: str, after: int, wanted: str
    ) -> AsyncGenerator[bytes, None]:
        """Yields the frames of a response behind a sequence number, then goes on live."""
        contemplation_id, num_returned = parse_response_id(response_id)
        found = await self._desk.get(contemplation_id)
        if after >= 0 and after // STRIDE > found.summary.last_event_number:
            raise OutOfRange(
                "starting_after is beyond the last event of the response", field="starting_after"
            )
        fold = Response(found.spec, Telling(num_returned))
        async with aclosing(_told(fold, self._desk.again(contemplation_id), wanted, after)) as all:
            async for frame in all:
                yield frame

    async def cancel(self, response_id: str) -> dict[str, Any]:
        """Stops a response; returns it once all agents have stopped."""
        contemplation_id, num_returned = parse_response_id(response_id)
        await self._desk.cancel(contemplation_id)
        found = await self._desk.get(contemplation_id)
        fold = Response(found.spec, Telling(num_returned))
        return await self._folded(contemplation_id, fold, math.inf)

    async def delete(self, response_id: str) -> dict[str, Any]:
        """Forgets a response that has ended."""
        contemplation_id, _ = parse_response_id(response_id)
        await self._desk.delete(contemplation_id)
        return {"id": response_id, "object": "response", "deleted": True}

    async def _conversation(self, parent: str) -> list[common_pb2.Message]:
        """What was said up to the end of a response."""
        found = await self._desk.get(parent)
        if found.summary.state not in _ENDED:
            raise InvalidRequest(
                "the previous response has not ended yet; wait for it, or cancel it",
                field="previous_response_id",
            )
        said = list(found.spec.conversation)
        if answer := found.ending.verdict.answer:
            parts = [common_pb2.Part(text=answer)]
            said.append(common_pb2.Message(role=common_pb2.ROLE_ASSISTANT, parts=parts))
        return said


class Making:
    """One response on its way."""

    def __init__(self, desk: Desk, fold: Response, source: Events, body: ResponseRequest) -> None:
        self._desk, self._fold, self._source = desk, fold, _renamed(source, "input")
        self._background = bool(body.background)
        self._forget, self._wanted = body.store is False, body.cogitate.events

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yields the frames of typed events."""
        async with aclosing(_told(self._fold, self._source, self._wanted)) as told:
            async for frame in told:
                self._keep()
                yield frame
        self._end()

    async def whole(self) -> dict[str, Any]:
        """Returns the response once it has ended, or at once if it is made in the background."""
        async with aclosing(self._source) as events:
            async for event in events:
                _take(self._fold, event)
                self._keep()
                if self._fold.status != "in_progress" or self._background:
                    break
        if self._fold.error is not None:
            raise self._fold.error
        self._end()
        return self._fold.whole()

    def _keep(self) -> None:
        if self._fold.status == "completed" and self._fold.verdict is None:
            self._desk.keep(self._fold.telling.contemplation_id)

    def _end(self) -> None:
        if self._forget and self._fold.status in ("completed", "incomplete"):
            self._desk.forget(self._fold.telling.contemplation_id)


async def _renamed(source: Events, conversation: str) -> Events:
    """The same events; a refusal speaks of fields as OpenAI calls them."""
    with asking.renaming(conversation):
        async with aclosing(source):
            async for event in source:
                yield event


async def _told(
    fold: Response, source: Events, wanted: str, after: int = -1
) -> AsyncGenerator[bytes, None]:
    number = 0
    try:
        async with aclosing(source):
            async for event in source:
                number = event.event_number
                also = extension.told(event, wanted)
                typed = [{"type": f"cogitate.{also['type']}", "event": also}] if also else []
                if frame := frames([*_take(fold, event), *typed], number, after):
                    yield frame
                if fold.status != "in_progress":
                    return
        raise _broken()
    except Cancelled:
        raise
    except CogitateError as error:
        if not number:
            raise
        yield frames(fold.fail(error), number, after, first=_BROKEN)


def _take(fold: Response, event: pb2.ContemplationEvent) -> list[dict[str, Any]]:
    """The typed events of an event; an ending that is no answer is among them."""
    try:
        pieces = fold.telling.feed(event)
    except CogitateError as error:
        return fold.fail(error)
    typed = fold.begin() if event.HasField("accepted") else []
    return [*typed, *(one for piece in pieces for one in fold.take(piece))]


def _numbered(request: pb2.ContemplateRequest, key: str, index: int) -> pb2.ContemplateRequest:
    """The request of one choice: an id of its own, and another seed than the others'."""
    one = pb2.ContemplateRequest()
    one.CopyFrom(request)
    id = asking.request_id(key)
    one.spec.request_id = str(uuid.uuid5(uuid.UUID(id), str(index))) if index else id
    sampling = one.spec.sampling_params
    if index and sampling.HasField("seed"):
        sampling.seed = (sampling.seed + index) % 2**62
    return one


def _check_choices(
    count: int, spec: pb2.ContemplationSpec, limits: Limits, most: int, *, goes_on: bool
) -> None:
    if not 1 <= count <= most:
        raise InvalidRequest(f"n is {count}, it must be 1 to {most}", field="n")
    if count > 1 and goes_on:
        raise InvalidRequest("n must be 1 where results of tools are handed in", field="n")
    agents = max(1, spec.agent_count)
    if count == 1:
        return
    if count * agents > limits.max_agent_count:
        raise InvalidRequest(
            f"n times cogitate.agents is more than {limits.max_agent_count}", field="n"
        )
    most_tokens = spec.sampling_params.max_tokens
    if most_tokens <= limits.max_token_count < count * agents * most_tokens:
        raise InvalidRequest(
            f"n times agents times max_tokens is more than {limits.max_token_count}", field="n"
        )


def _broken() -> CogitateError:
    return EngineFailure("the contemplation's events ended without an ending", reason="INTERNAL")
