"""From a request's spec to what the state machine takes: defaults filled in, names checked."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from cogitate.aggregator.config import AggregatorConfig
from cogitate.aggregator.core.answers import EQUIVALENCES
from cogitate.aggregator.core.ballots import DEFAULT_QUORUM, QUORUMS
from cogitate.aggregator.core.messages import Spec
from cogitate.aggregator.core.strategies import DEFAULT_STRATEGY, STRATEGIES
from cogitate.kit.errors import InvalidRequest
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb

# What the embedded model was trained to call.
DEFAULT_TOOLS = ("zoom", "calculator", "prove")
NO_TOOLS = "none"


def to_spec(request: pb.ContemplationSpec, contemplation_id: str, config: AggregatorConfig) -> Spec:
    """Checks and completes a spec. Raises InvalidRequest naming the field."""
    effort = request.effort or common.EFFORT_CONTEMPLATING
    single = effort in (common.EFFORT_INSTANT, common.EFFORT_THINKING)
    default_count = 1 if single else config.default_agent_count
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
    budget = request.budget.max_tokens
    if budget and budget < num_agents:
        raise InvalidRequest(
            f"a budget of {budget} tokens is less than one for each of {num_agents} agents",
            field="spec.budget.max_tokens",
        )
    if not any(part.text.strip() for message in request.conversation for part in message.parts):
        raise InvalidRequest("the question is empty", field="spec.conversation")
    params = request.sampling_params
    return Spec(
        contemplation_id=contemplation_id,
        model=request.model or config.default_model,
        effort=common.Effort.Name(effort).removeprefix("EFFORT_"),
        num_agents=num_agents,
        strategy=_named(request.strategy or DEFAULT_STRATEGY, STRATEGIES, "strategy"),
        quorum=_named(request.quorum or DEFAULT_QUORUM, QUORUMS, "quorum"),
        equivalence=_named(request.equivalence or "auto", EQUIVALENCES, "equivalence"),
        seed=params.seed if params.HasField("seed") else secrets.randbits(62),
        temperature=params.temperature if params.HasField("temperature") else None,
        budget_tokens=budget,
        max_tokens=params.max_tokens if params.HasField("max_tokens") else 0,
        client_tools=frozenset(tool.name for tool in request.client_tools),
        payload=request,
    )


def _named(name: str, known: Iterable[str], field: str) -> str:
    names = sorted(known)
    if name not in names:
        raise InvalidRequest(
            f"unknown {field} {name!r}; there are: {', '.join(names)}", field=f"spec.{field}"
        )
    return name


def allowed_tools(request: pb.ContemplationSpec) -> tuple[str, ...]:
    """The tools agents may use."""
    if list(request.allowed_tools) == [NO_TOOLS]:
        return ()
    return tuple(request.allowed_tools) or DEFAULT_TOOLS


def images_of(request: pb.ContemplationSpec) -> list[common.ImagePart]:
    """The conversation's images, in order: tools refer to them by index."""
    return [
        part.image
        for message in request.conversation
        for part in message.parts
        if part.HasField("image")
    ]
