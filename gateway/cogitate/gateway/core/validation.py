"""Says what is wrong with a request, all of it at once, by the names of its fields.

Invariants:
1. A spec with no violation stays within every limit (test_gateway_validation: *_at_the_edge).
2. A violation names a field as the wire calls it, dotted and indexed from the spec.
3. Text of the request never enters a violation, only names, numbers and lengths.

Names of strategies, quorum rules, models and tools are checked by shape only; whether they exist
is known where they live. No ranges beyond the contract's are made up, but where the contract leaves
one open it is written in the constants below.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from cogitate.gateway.core import sampling, tables
from cogitate.gateway.core.spec import (
    UNKNOWN,
    Box,
    Call,
    Constraints,
    Image,
    Limits,
    Message,
    Part,
    Result,
    Spec,
    Text,
    Tool,
)
from cogitate.gateway.core.violations import Violation, is_json_object, require

NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
RULE: Final = re.compile(r"[a-z][a-z0-9_]{0,31}(:[A-Za-z0-9_.-]{1,32})?")
NAMED: Final = "must be 1 to 64 letters, digits, dots, dashes or underscores"
EQUIVALENCES: Final = ("", "auto", "number", "choice", "text", "json")
# Whether there is a model for it, and which numbers it may be, the aggregator knows.
EMBEDDING: Final = re.compile(r"embedding(:[0-9.]{1,16})?")
EVENTS: Final = frozenset(
    "accepted placed prefilled round_started agent_started deltas tool_call_started"
    " tool_call_finished awaiting_client ballot_cast decided agent_killed agent_lost"
    " text_retracted feature_degraded steered widened queued verdict_delta verdict"
    " failed cancelled".split()
)

MAX_NAMES: Final = 64
MAX_ROUNDS: Final = 16
MAX_PRIORITY: Final = 100


def check(spec: Spec, limits: Limits) -> None:
    """Raises InvalidRequest naming every field that is wrong, the first of them as its field."""
    require(violations(spec, limits), "spec")


def violations(spec: Spec, limits: Limits) -> list[Violation]:
    """Returns what is wrong with `spec`, in the order of its fields."""
    return [
        *_identity(spec),
        *_conversation(spec.conversation, limits),
        *_text_length(spec, limits),
        *_width(spec, limits),
        *sampling.violations(spec.sampling, limits),
        *_budget(spec, limits),
        *_tools(spec),
        *tables.violations(spec.tables, limits),
        *_constraints(spec.constraints),
        *_rest(spec),
    ]


def contemplation_id(value: str) -> None:
    """Raises InvalidRequest if `value` cannot be the id of a contemplation."""
    if not ID.fullmatch(value):
        require([Violation("contemplation_id", "must be the id an Accepted event told")])


def filter_violations(excluded: Iterable[str]) -> list[Violation]:
    """Returns what is wrong with a filter of events."""
    return [
        Violation(f"filter.excluded_events[{i}]", "is not the name of an event")
        for i, name in enumerate(excluded)
        if name not in EVENTS
    ]


def image_reference(image: Image, path: str) -> list[Violation]:
    """Returns what is wrong with an image named by its digest."""
    found = []
    if not DIGEST.fullmatch(image.digest):
        found.append(Violation(f"{path}.digest", 'must be "sha256:" and 64 lower-case hex digits'))
    return [*found, *_box(image.box, f"{path}.box")]


def steering(value: Message, limits: Limits) -> list[Violation]:
    """Returns what is wrong with a message added to a running contemplation."""
    found = [*_message(value, "message", limits)]
    if value.role != "USER":
        found.append(Violation("message.role", "must be ROLE_USER"))
    if not _says_something(value):
        found.append(Violation("message.parts", "must hold a text that is not empty"))
    return [*found, *_small(value.parts, "message", limits)]


def client_result(value: Result, limits: Limits) -> list[Violation]:
    """Returns what is wrong with a result a client submits for its own tool."""
    found = [*_part(value, "", limits)]
    found = [Violation(one.field.removeprefix(".tool_"), one.reason) for one in found]
    if not value.call_id:
        found.append(Violation("result.call_id", "must name the call it answers"))
    return [*found, *_small(value.parts, "result", limits)]


def _small(parts: Iterable[Part | None], path: str, limits: Limits) -> Iterator[Violation]:
    held = tuple(parts)
    if sum(len(text) for text in _texts(held)) > limits.max_text_length:
        yield Violation(path, f"holds more than {limits.max_text_length} characters")
    if sum(1 for _ in _images(held)) > limits.max_image_count:
        yield Violation(path, f"holds more than {limits.max_image_count} images")


def _identity(spec: Spec) -> Iterator[Violation]:
    if spec.request_id and not UUID.fullmatch(spec.request_id):
        yield Violation("request_id", "must be a UUID or absent")
    if spec.model and not NAME.fullmatch(spec.model):
        yield Violation("model", NAMED)


def _conversation(conversation: tuple[Message, ...], limits: Limits) -> Iterator[Violation]:
    if not conversation:
        yield Violation("conversation", "must hold at least the question")
        return
    if len(conversation) > limits.max_message_count:
        yield Violation("conversation", f"holds more than {limits.max_message_count} messages")
        return
    for i, one in enumerate(conversation):
        yield from _message(one, f"conversation[{i}]", limits)
    last = len(conversation) - 1
    if conversation[last].role != "USER":
        yield Violation(f"conversation[{last}].role", "must be ROLE_USER: it is the question")
    if not _says_something(conversation[last]):
        yield Violation(
            f"conversation[{last}].parts", "asks nothing: it must hold a text that is not empty"
        )
    count = sum(1 for one in conversation for _ in _images(one.parts))
    if count > limits.max_image_count:
        yield Violation(
            "conversation", f"holds {count} images, the limit is {limits.max_image_count}"
        )


def _message(value: Message, path: str, limits: Limits) -> Iterator[Violation]:
    if value.role in ("UNSPECIFIED", UNKNOWN):
        yield Violation(f"{path}.role", "must say who speaks")
    for i, part in enumerate(value.parts):
        yield from _part(part, f"{path}.parts[{i}]", limits)


def _part(part: Part | None, path: str, limits: Limits) -> Iterator[Violation]:
    match part:
        case None:
            yield Violation(path, "is of no known kind")
        case Text():
            return
        case Image():
            yield from _image(part, f"{path}.image", limits)
        case Call():
            if not NAME.fullmatch(part.name):
                yield Violation(f"{path}.tool_call.name", "is not a tool's name")
            if not is_json_object(part.arguments_json):
                yield Violation(f"{path}.tool_call.arguments_json", "must be one JSON object")
        case Result():
            for i, inner in enumerate(part.parts):
                where = f"{path}.tool_result.parts[{i}]"
                if isinstance(inner, (Call, Result)):
                    yield Violation(where, "must be text or an image")
                else:
                    yield from _part(inner, where, limits)


def _image(image: Image, path: str, limits: Limits) -> Iterator[Violation]:
    if image.digest and image.data_bytes:
        yield Violation(path, "has both a digest and data; send one of them")
    elif image.data_bytes > limits.max_image_bytes:
        yield Violation(
            f"{path}.data",
            f"is {image.data_bytes} bytes, the limit is {limits.max_image_bytes}",
        )
    elif image.digest:
        yield from image_reference(image, path)
        return
    elif not image.data_bytes:
        yield Violation(path, "has neither a digest nor data")
    yield from _box(image.box, f"{path}.box")


def _box(box: Box | None, path: str) -> Iterator[Violation]:
    if box is None:
        return
    for low, high, axis in ((box.x0, box.x1, "x"), (box.y0, box.y1, "y")):
        if not 0 <= low < high <= 1000:
            yield Violation(path, f"must have 0 <= {axis}0 < {axis}1 <= 1000")


def _text_length(spec: Spec, limits: Limits) -> Iterator[Violation]:
    length = sum(len(text) for one in spec.conversation for text in _texts(one.parts))
    length += sum(
        len(tool.description) + len(tool.parameters_json_schema) for tool in spec.client_tools
    )
    length += len(spec.response_json_schema)
    length += len(spec.sampling.json_schema or "") + len(spec.sampling.regex or "")
    if length > limits.max_text_length:
        yield Violation(
            "conversation",
            f"and schemas hold {length} characters, the limit is {limits.max_text_length}",
        )


def _width(spec: Spec, limits: Limits) -> Iterator[Violation]:
    if spec.effort == UNKNOWN:
        yield Violation("effort", "is not a known effort")
    if spec.agent_count is not None and not 1 <= spec.agent_count <= limits.max_agent_count:
        yield Violation(
            "agent_count", f"is {spec.agent_count}, it must be 1 to {limits.max_agent_count}"
        )
    most = spec.agent_count if spec.agent_count is not None else limits.max_agent_count
    all_tokens = (spec.agent_count or 1) * (spec.sampling.max_tokens or 0)
    legal = most <= limits.max_agent_count
    if legal and (spec.sampling.max_tokens or 0) <= limits.max_token_count < all_tokens:
        yield Violation(
            "sampling_params.max_tokens",
            f"times agent_count is {all_tokens}, the limit is {limits.max_token_count}",
        )
    if not 0 <= spec.initial_agent_count <= max(most, 0):
        yield Violation("initial_agent_count", "must be 0 to agent_count")
    for field, value in (("strategy", spec.strategy), ("quorum", spec.quorum)):
        if value and not RULE.fullmatch(value):
            yield Violation(field, f"is not the name of a {field}")
    if not 0 <= spec.max_round_count <= MAX_ROUNDS:
        yield Violation("max_round_count", f"must be 0 to {MAX_ROUNDS}")


def _budget(spec: Spec, limits: Limits) -> Iterator[Violation]:
    if not 0 <= spec.max_tokens <= limits.max_token_count:
        yield Violation("budget.max_tokens", f"must be 0 to {limits.max_token_count}")
    if spec.max_cost_micro_usd < 0:
        yield Violation("budget.max_cost_micro_usd", "must not be negative")
    if spec.deadline_s is not None and spec.deadline_s <= 0:
        yield Violation("budget.deadline_time", "has passed already")
    elif spec.deadline_s is not None and spec.deadline_s > limits.max_duration_s:
        yield Violation(
            "budget.deadline_time", f"is more than {limits.max_duration_s:g} s from now"
        )


def _tools(spec: Spec) -> Iterator[Violation]:
    yield from _names(spec.allowed_tools, "allowed_tools")
    if "none" in spec.allowed_tools and len(spec.allowed_tools) > 1:
        yield Violation("allowed_tools", 'holds "none" beside other names')
    if len(spec.client_tools) > MAX_NAMES:
        yield Violation("client_tools", f"has more than {MAX_NAMES} entries")
        return
    seen: set[str] = set()
    for i, tool in enumerate(spec.client_tools):
        yield from _tool(tool, f"client_tools[{i}]", seen)
        seen.add(tool.name)


def _tool(tool: Tool, path: str, seen: set[str]) -> Iterator[Violation]:
    if not NAME.fullmatch(tool.name):
        yield Violation(f"{path}.name", NAMED)
    elif tool.name in seen:
        yield Violation(f"{path}.name", "is there twice")
    if not tool.client_side:
        yield Violation(f"{path}.client_side", "must be true for a tool of the client")
    if tool.parameters_json_schema and not is_json_object(tool.parameters_json_schema):
        yield Violation(f"{path}.parameters_json_schema", "must be one JSON object")


def _constraints(constraints: Constraints) -> Iterator[Violation]:
    yield from _names(constraints.providers, "constraints.providers")
    yield from _names(constraints.regions, "constraints.regions")
    yield from _names(constraints.excluded_endpoint_ids, "constraints.excluded_endpoint_ids")
    if not 0 <= constraints.min_failure_domain_count <= MAX_NAMES:
        yield Violation("constraints.min_failure_domain_count", f"must be 0 to {MAX_NAMES}")
    if constraints.max_price_per_hour_micro_usd < 0:
        yield Violation("constraints.max_price_per_hour_micro_usd", "must not be negative")


def _rest(spec: Spec) -> Iterator[Violation]:
    if spec.on_disconnect == UNKNOWN:
        yield Violation("on_disconnect", "is not known")
    if spec.parent_contemplation_id and not ID.fullmatch(spec.parent_contemplation_id):
        yield Violation("parent_contemplation_id", "is not the id of a contemplation")
    if spec.response_json_schema and not is_json_object(spec.response_json_schema):
        yield Violation("response_json_schema", "must be one JSON object")
    if spec.equivalence not in EQUIVALENCES and not EMBEDDING.fullmatch(spec.equivalence):
        names = ", ".join(EQUIVALENCES[1:])
        yield Violation("equivalence", f"must be one of {names}, embedding:0.9")
    if not -MAX_PRIORITY <= spec.priority <= MAX_PRIORITY:
        yield Violation("priority", f"must be {-MAX_PRIORITY} to {MAX_PRIORITY}")
    yield from filter_violations(spec.excluded_events)


def _names(names: tuple[str, ...], path: str) -> Iterator[Violation]:
    if len(names) > MAX_NAMES:
        yield Violation(path, f"has more than {MAX_NAMES} entries")
        return
    for i, name in enumerate(names):
        if not NAME.fullmatch(name):
            yield Violation(f"{path}[{i}]", NAMED)


def _says_something(value: Message) -> bool:
    return any(isinstance(part, Text) and part.text.strip() for part in value.parts)


def _texts(parts: Iterable[Part | None]) -> Iterator[str]:
    for part in parts:
        match part:
            case Text():
                yield part.text
            case Call():
                yield part.arguments_json
            case Result():
                yield from _texts(part.parts)


def _images(parts: Iterable[Part | None]) -> Iterator[Image]:
    for part in parts:
        if isinstance(part, Image):
            yield part
        elif isinstance(part, Result):
            yield from _images(part.parts)
