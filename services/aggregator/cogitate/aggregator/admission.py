"""From a request's spec to what the state machine takes: defaults filled in, everything checked."""

from __future__ import annotations

import json
import math
import re
import secrets
import time
from collections.abc import Callable, Iterable

from cogitate.aggregator.config import AggregatorConfig
from cogitate.aggregator.core.answers import EMBEDDING, EQUIVALENCES, least_cosine
from cogitate.aggregator.core.messages import Spec
from cogitate.aggregator.core.quorums import DEFAULT_QUORUM, quorum
from cogitate.aggregator.core.strategies import default_strategy, strategy
from cogitate.kit import channels
from cogitate.kit.errors import DeadlineExceeded, InvalidRequest
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb

# What the embedded model was trained to call.
DEFAULT_TOOLS = ("zoom", "calculator", "prove")
LOOKUP = "lookup"
NO_TOOLS = "none"
MAX_REQUEST_ID_CHARS = 128
MAX_STOPS = 16
MAX_STOP_BYTES = 128
MAX_LOGIT_BIASES = 300
# Kept from the caller's deadline for the last kills and the answer's way back; of a short one, a
# share.
DEADLINE_MARGIN_S = 0.25
DEADLINE_MARGIN_SHARE = 0.25
_SPEAKERS = (common.ROLE_SYSTEM, common.ROLE_USER, common.ROLE_ASSISTANT, common.ROLE_TOOL)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TOOL = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Optional fields of SamplingParams, and those whose 0 means off: lowest and highest.
_RANGES = {"temperature": (0, 2), "top_p": (1e-6, 1), "max_tokens": (1, 10**6), "logprobs": (0, 20)}
_PLAIN_RANGES = {
    "top_k": (0, 2**31),
    "min_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "repetition_penalty": (0, 10),
    "min_tokens": (0, 10**6),
}


def remaining_s(request: pb.ContemplationSpec) -> float:
    """How long it may take, by its own deadline and its caller's. Raises DeadlineExceeded."""
    limits = []
    if request.budget.HasField("deadline_time"):
        limits.append(request.budget.deadline_time.ToNanoseconds() / 1e9 - time.time())
    callers = channels.remaining_s()
    if callers is not None and request.on_disconnect != pb.ON_DISCONNECT_CONTINUE:
        limits.append(callers)
    left_s = min(limits, default=math.inf)
    if left_s <= 0:
        # It may have been in time when it was sent.
        raise DeadlineExceeded("the deadline was over before the question was accepted")
    return left_s - min(DEADLINE_MARGIN_S, left_s * DEADLINE_MARGIN_SHARE)


def to_spec(request: pb.ContemplationSpec, contemplation_id: str, config: AggregatorConfig) -> Spec:
    """Checks and completes a spec. Raises InvalidRequest naming the field."""
    effort = _effort(request)
    num_agents = _num_agents(request, effort, config)
    _check_conversation(request)
    _check_sampling(request.sampling_params)
    _check_tools(request)
    _check_schema(request)
    if len(request.request_id) > MAX_REQUEST_ID_CHARS:
        raise InvalidRequest(
            f"request_id has more than {MAX_REQUEST_ID_CHARS} characters", field="spec.request_id"
        )
    params = request.sampling_params
    return Spec(
        contemplation_id=contemplation_id,
        model=request.model or config.default_model,
        effort=common.Effort.Name(effort).removeprefix("EFFORT_"),
        num_agents=num_agents,
        strategy=_made(request.strategy or default_strategy(num_agents), strategy, "strategy"),
        quorum=_made(request.quorum or DEFAULT_QUORUM, quorum, "quorum"),
        equivalence=_equivalence(request, config),
        seed=params.seed if params.HasField("seed") else secrets.randbits(62),
        temperature=params.temperature if params.HasField("temperature") else None,
        budget_tokens=_budget(request, num_agents),
        initial_agents=_initial(request, num_agents),
        max_rounds=_rounds(request),
        max_tokens=params.max_tokens if params.HasField("max_tokens") else 0,
        client_tools=frozenset(tool.name for tool in request.client_tools),
        patience_s=config.place_timeout_s,
        max_losses=config.max_agent_loss_count,
        budget_micro_usd=request.budget.max_cost_micro_usd,
        prepares=config.prepare,
        num_images=len(images_of(request)),
    )


def _effort(request: pb.ContemplationSpec) -> common.Effort.ValueType:
    effort = request.effort or common.EFFORT_CONTEMPLATING
    if effort not in common.Effort.values():
        raise InvalidRequest("unknown effort", field="spec.effort")
    return effort


def _num_agents(
    request: pb.ContemplationSpec, effort: common.Effort.ValueType, config: AggregatorConfig
) -> int:
    single = effort in (common.EFFORT_INSTANT, common.EFFORT_THINKING)
    default_count = 1 if single else min(config.default_agent_count, config.max_agent_count)
    num_agents = request.agent_count if request.HasField("agent_count") else default_count
    if not 1 <= num_agents <= config.max_agent_count:
        raise InvalidRequest(
            f"agent_count must be from 1 to {config.max_agent_count}", field="spec.agent_count"
        )
    if single and num_agents != 1:
        raise InvalidRequest(
            "efforts instant and thinking use one agent; ask for contemplating to use more",
            field="spec.agent_count",
        )
    return num_agents


def _initial(request: pb.ContemplationSpec, num_agents: int) -> int:
    if not 0 <= request.initial_agent_count <= num_agents:
        raise InvalidRequest(
            f"initial_agent_count must be from 0 to agent_count, which is {num_agents}",
            field="spec.initial_agent_count",
        )
    return request.initial_agent_count


def _rounds(request: pb.ContemplationSpec) -> int:
    if request.max_round_count < 0:
        raise InvalidRequest("max_round_count cannot be negative", field="spec.max_round_count")
    return request.max_round_count


def _budget(request: pb.ContemplationSpec, num_agents: int) -> int:
    budget = request.budget.max_tokens
    if budget < 0 or 0 < budget < num_agents:
        raise InvalidRequest(
            f"a budget of {budget} tokens is less than one for each of {num_agents} agents",
            field="spec.budget.max_tokens",
        )
    if request.budget.max_cost_micro_usd < 0:
        raise InvalidRequest(
            "the most money cannot be negative", field="spec.budget.max_cost_micro_usd"
        )
    return budget


def _check_conversation(request: pb.ContemplationSpec) -> None:
    field = "spec.conversation"
    if not any(part.text.strip() for message in request.conversation for part in message.parts):
        raise InvalidRequest("the question is empty", field=field)
    if any(message.role not in _SPEAKERS for message in request.conversation):
        raise InvalidRequest("a message has no role that is known here", field=field)
    if not all(_DIGEST.fullmatch(image.digest) for image in images_of(request)):
        raise InvalidRequest(
            "an image needs the digest of its blob here: store it with PutBlob first", field=field
        )


def _check_sampling(params: common.SamplingParams) -> None:
    values = {name: getattr(params, name) for name in _RANGES if params.HasField(name)}  # type: ignore[arg-type]
    values |= {name: getattr(params, name) for name in _PLAIN_RANGES}
    for name, value in values.items():
        lowest, highest = (_RANGES | _PLAIN_RANGES)[name]
        if not (math.isfinite(value) and lowest <= value <= highest):
            raise InvalidRequest(
                f"{name} must be from {lowest} to {highest}", field=f"spec.sampling_params.{name}"
            )
    if len(params.stop) > MAX_STOPS or any(len(s.encode()) > MAX_STOP_BYTES for s in params.stop):
        raise InvalidRequest(
            f"there may be {MAX_STOPS} stop strings of {MAX_STOP_BYTES} bytes each",
            field="spec.sampling_params.stop",
        )
    biases = params.logit_bias.values()
    if len(biases) > MAX_LOGIT_BIASES or not all(abs(bias) <= 100 for bias in biases):
        raise InvalidRequest(
            f"there may be {MAX_LOGIT_BIASES} logit biases, each from -100 to 100",
            field="spec.sampling_params.logit_bias",
        )


def _check_tools(request: pb.ContemplationSpec) -> None:
    names = [tool.name for tool in request.client_tools]
    if len(set(names)) < len(names) or not all(_TOOL.fullmatch(name) for name in names):
        raise InvalidRequest(
            "client tools need names of 1 to 64 letters, digits, dots, dashes or underscores, "
            "each a different one",
            field="spec.client_tools",
        )


def _check_schema(request: pb.ContemplationSpec) -> None:
    """The schema itself is judged by the endpoints that have to follow it."""
    field = "spec.response_json_schema"
    if not request.response_json_schema:
        return
    if request.sampling_params.WhichOneof("constraint"):
        raise InvalidRequest(
            "an answer follows one grammar: give response_json_schema, or json_schema or regex "
            "in sampling_params",
            field=field,
        )
    try:
        schema = json.loads(request.response_json_schema)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise InvalidRequest("response_json_schema must be one JSON object", field=field)


def _equivalence(request: pb.ContemplationSpec, config: AggregatorConfig) -> str:
    """Answers that are JSON by a schema are compared as JSON, unless something else is asked."""
    name = request.equivalence or "auto"
    if name.partition(":")[0] == EMBEDDING:
        if not config.embedding_model:
            raise InvalidRequest(
                "equivalence embedding needs a model, and this aggregator has none: set its knob "
                "embedding_model, or ask for another equivalence",
                field="spec.equivalence",
            )
        return _made(name, least_cosine, "equivalence")
    _named(name, [*EQUIVALENCES, EMBEDDING], "equivalence")
    return "json" if name == "auto" and sampling_of(request).HasField("json_schema") else name


def _made(name: str, make: Callable[[str], object], field: str) -> str:
    """The name, if something can be made of it."""
    try:
        make(name)
    except ValueError as error:
        raise InvalidRequest(f"{field} {error}", field=f"spec.{field}") from None
    return name


def _named(name: str, known: Iterable[str], field: str) -> str:
    names = sorted(known)
    if name not in names:
        raise InvalidRequest(
            f"unknown {field} {name[:64]!r}; there are: {', '.join(names)}", field=f"spec.{field}"
        )
    return name


def sampling_of(request: pb.ContemplationSpec) -> common.SamplingParams:
    """How agents sample, the schema of the answer among it."""
    params = common.SamplingParams()
    params.CopyFrom(request.sampling_params)
    if request.response_json_schema:
        params.json_schema = request.response_json_schema
    return params


def allowed_tools(request: pb.ContemplationSpec) -> tuple[str, ...]:
    """The tools agents may have run for them; those of the client are not among them."""
    if list(request.allowed_tools) == [NO_TOOLS]:
        return ()
    with_tables = (*DEFAULT_TOOLS, LOOKUP) if request.tables else DEFAULT_TOOLS
    return tuple(request.allowed_tools) or with_tables


def question_of(request: pb.ContemplationSpec) -> str:
    """The text of the last message: what is asked."""
    return "\n".join(part.text for part in request.conversation[-1].parts if part.text)


def conversation_of(request: pb.ContemplationSpec) -> list[common.Message]:
    """The conversation as agents are shown it: its last message names the tables there are."""
    messages = list(request.conversation)
    if request.tables and LOOKUP in allowed_tools(request):
        last = common.Message()
        last.CopyFrom(messages[-1])
        last.parts.add(text=tables_line(request.tables))
        messages[-1] = last
    return messages


def tables_line(tables: Iterable[common.LookupTable]) -> str:
    """What agents are told of the tables: "Tables: prices (item, price)."."""
    told = "; ".join(f"{table.name} ({', '.join(table.columns)})" for table in tables)
    return f"Tables: {told}."


def images_of(request: pb.ContemplationSpec) -> list[common.ImagePart]:
    """The conversation's images, in order: tools refer to them by index."""
    return [
        part.image
        for message in request.conversation
        for part in message.parts
        if part.HasField("image")
    ]
