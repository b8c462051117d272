"""Turns what a caller says into the messages of the contract; shared by both clients."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypedDict

from cogitate.client._errors import InvalidRequest
from cogitate.client._tables import LookupTable
from cogitate.v1 import common_pb2, gateway_service_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2

DEFAULT_ADDRESS: Final = "127.0.0.1:7100"
# The verdict of a contemplation that ends with its deadline still has to travel.
GRACE_S: Final = 10.0

Effort = Literal["instant", "thinking", "contemplating"]
Image = str | Path | bytes

_EFFORTS: Final = {
    "instant": common_pb2.EFFORT_INSTANT,
    "thinking": common_pb2.EFFORT_THINKING,
    "contemplating": common_pb2.EFFORT_CONTEMPLATING,
}
_ON_DISCONNECT: Final = {
    "cancel": pb2.ON_DISCONNECT_CANCEL,
    "continue": pb2.ON_DISCONNECT_CONTINUE,
}


class Box(NamedTuple):
    """A rectangle on an image, in per mille of its width and height."""

    x0: int
    y0: int
    x1: int
    y1: int


class AskOptions(TypedDict, total=False):
    """What can be said beside the question; everything has a default on the server."""

    images: Sequence[Image]
    """Paths, bytes of files, or digests ("sha256:…") of images already uploaded."""
    agents: int | None
    effort: Effort | None
    quorum: str
    strategy: str
    equivalence: str
    """How answers are compared: "auto", "number", "choice", "text", "json" or "embedding:0.9"."""
    initial_agents: int
    """Start with this many and widen to `agents` while there is dissent; 0 means all at once."""
    seed: int | None
    deadline_s: float | None
    """The answer must be there by then; it is given from what exists."""
    budget_tokens: int
    """Tokens all agents together may sample; 0 means the server's limit."""
    budget_usd: float
    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    """Tokens each agent may sample."""
    json_schema: str | Mapping[str, Any]
    """The answer is JSON that follows it."""
    regex: str
    """The answer follows it, all of it."""
    model: str
    tools: Sequence[str] | None
    """Names of the tools agents may use; None means the model's own, an empty list none."""
    providers: Sequence[str]
    regions: Sequence[str]
    on_disconnect: Literal["cancel", "continue"]
    """"continue" lets it run on when the connection breaks, and the stream attaches again."""
    exclude: Sequence[str]
    """Kinds of events to leave out, such as "deltas"."""
    system: str
    """Instructions above the question."""
    earlier: Sequence[tuple[str, str]]
    """The conversation before it: questions with their answers. Images belong to its beginning."""
    tables: Sequence[LookupTable]
    """Small tables that agents may look things up in, with the tool `lookup`."""
    request_id: str


def address(given: str | None) -> str:
    """Returns where the mesh is: as given, else COGITATE_ADDRESS, else the default."""
    return given or os.environ.get("COGITATE_ADDRESS") or DEFAULT_ADDRESS


def authorization(given: str | None) -> tuple[tuple[str, str], ...]:
    """Returns the metadata that carries the key: as given, else COGITATE_API_KEY, else none."""
    key = given if given is not None else os.environ.get("COGITATE_API_KEY", "")
    return (("authorization", f"Bearer {key}"),) if key else ()


def contemplate(text: str, options: AskOptions) -> pb2.ContemplateRequest:
    """Builds the request. Reads image files. Raises InvalidRequest for what cannot be said."""
    spec = pb2.ContemplationSpec(
        request_id=options.get("request_id") or str(uuid.uuid4()),
        model=options.get("model", ""),
        strategy=options.get("strategy", ""),
        quorum=options.get("quorum", ""),
        equivalence=options.get("equivalence", ""),
        initial_agent_count=options.get("initial_agents", 0),
        on_disconnect=_choice(_ON_DISCONNECT, "on_disconnect", options.get("on_disconnect")),
        agent_count=options.get("agents"),
        effort=_choice(_EFFORTS, "effort", options.get("effort")),
    )
    if system := options.get("system"):
        spec.conversation.add(role=common_pb2.ROLE_SYSTEM).parts.add(text=system)
    for asked, answered in options.get("earlier", ()):
        spec.conversation.add(role=common_pb2.ROLE_USER).parts.add(text=asked)
        spec.conversation.add(role=common_pb2.ROLE_ASSISTANT).parts.add(text=answered)
    spec.conversation.add(role=common_pb2.ROLE_USER).parts.add(text=text)
    first = next(turn for turn in spec.conversation if turn.role == common_pb2.ROLE_USER)
    for image in options.get("images", ()):
        first.parts.add(image=image_part(image))
    spec.tables.extend(table.message() for table in options.get("tables", ()))
    sampling = spec.sampling_params
    for name in ("temperature", "top_p", "max_tokens", "seed"):
        if (value := options.get(name)) is not None:
            setattr(sampling, name, value)
    if schema := options.get("json_schema"):
        spec.response_json_schema = schema if isinstance(schema, str) else json.dumps(schema)
    if regex := options.get("regex"):
        sampling.regex = regex
    _set_budget(spec.budget, options)
    tools = options.get("tools")
    if tools is not None:
        spec.allowed_tools.extend(tools or ["none"])
    spec.constraints.providers.extend(options.get("providers", ()))
    spec.constraints.regions.extend(options.get("regions", ()))
    return pb2.ContemplateRequest(
        spec=spec, filter=pb2.EventFilter(excluded_events=options.get("exclude", ()))
    )


def again(asked: pb2.ContemplationSpec) -> pb2.ContemplateRequest:
    """What was asked, as a new question: under a new id, and without a deadline that has passed."""
    request = pb2.ContemplateRequest(spec=asked)
    request.spec.request_id = str(uuid.uuid4())
    request.spec.budget.ClearField("deadline_time")
    return request


def image_part(image: Image) -> common_pb2.ImagePart:
    """Returns an image as a part: read from a file, as bytes, or by digest."""
    if isinstance(image, bytes):
        return common_pb2.ImagePart(data=image)
    if isinstance(image, str) and image.startswith("sha256:"):
        return common_pb2.ImagePart(digest=image)
    try:
        data = Path(image).read_bytes()
    except OSError as error:
        raise InvalidRequest(
            f"cannot read the image {os.fspath(image)}: {error.strerror or 'unreadable'}",
            code="INVALID_ARGUMENT",
            reason="BAD_IMAGE",
            field="images",
        ) from None
    if not data:
        raise InvalidRequest(
            f"the image {os.fspath(image)} is empty",
            code="INVALID_ARGUMENT",
            reason="BAD_IMAGE",
            field="images",
        )
    return common_pb2.ImagePart(data=data)


def blob(
    digest: str, box: Box | tuple[int, int, int, int] | None
) -> gateway_service_pb2.DownloadBlobRequest:
    """Builds the request for an image or a crop of it."""
    image = common_pb2.ImagePart(digest=digest)
    if box is not None:
        x0, y0, x1, y1 = box
        image.box.CopyFrom(
            common_pb2.Box(x0_permille=x0, y0_permille=y0, x1_permille=x1, y1_permille=y1)
        )
    return gateway_service_pb2.DownloadBlobRequest(image=image)


def timeout_s(request: pb2.ContemplateRequest, now_s: float | None = None) -> float | None:
    """Returns how long the call may take: somewhat longer than the answer; None if nobody said."""
    budget = request.spec.budget
    if not budget.HasField("deadline_time"):
        return None
    ends_s = budget.deadline_time.seconds + budget.deadline_time.nanos / 1e9
    return max(0.0, ends_s - (time.time() if now_s is None else now_s)) + GRACE_S


def _set_budget(budget: common_pb2.Budget, options: AskOptions) -> None:
    budget.max_tokens = options.get("budget_tokens", 0)
    budget.max_cost_micro_usd = round(options.get("budget_usd", 0.0) * 1_000_000)
    deadline_s = options.get("deadline_s")
    if deadline_s is not None:
        budget.deadline_time.FromNanoseconds(time.time_ns() + int(deadline_s * 1e9))


def _choice(known: Mapping[str, Any], name: str, value: str | None) -> Any:
    if value is None:
        return 0
    if value not in known:
        raise InvalidRequest(
            f"{name} is one of {', '.join(known)}, not {value!r}",
            code="INVALID_ARGUMENT",
            reason="INVALID_REQUEST",
            field=name,
        )
    return known[value]
