"""What is asked of routers and decoders for one contemplation, as messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cogitate.aggregator import admission, wire
from cogitate.aggregator.config import AggregatorConfig
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.lengths import Kind, Lengths
from cogitate.aggregator.course import Course
from cogitate.aggregator.guard import Detour
from cogitate.aggregator.tool_client import ToolClient
from cogitate.kit import telemetry
from cogitate.kit.auth import current_tenant
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import router_service_pb2 as router_pb

# Positions a question is expected to take, per character of text and per image, until an endpoint
# has rendered it: the router only compares endpoints by it.
CHARACTERS_PER_TOKEN = 3
TOKENS_PER_IMAGE = 64


class Orders:
    """Owned by one runner."""

    def __init__(
        self,
        config: AggregatorConfig,
        tools: ToolClient,
        lengths: Lengths,
        course: Course,
        epoch: int,
    ) -> None:
        self._config, self._tools, self._epoch = config, tools, epoch
        self._lengths = lengths
        self._kinds: dict[Kind, set[int]] = {}  # asked for, and which agents
        self._request, self._spec, self._machine = course.request, course.spec, course.machine
        self.allowed = admission.allowed_tools(course.request)
        self.sampling = admission.sampling_of(course.request)
        self.images = admission.images_of(course.request)
        self.conversation = admission.conversation_of(course.request)

    def tables(self, tool_name: str) -> Sequence[common.LookupTable]:
        """The tables that come with a call: only the tool for them needs them."""
        return self._request.tables if tool_name == admission.LOOKUP else ()

    def lease(self, effect: m.Declare, detour: Detour, left_s: float) -> router_pb.LeaseRequest:
        """A question to the router."""
        ask = self._declare(effect, left_s) if effect.anew else self._replace(effect)
        body: router_pb.DeclareGangs | router_pb.ReplaceAgents = (
            ask.declare if effect.anew else ask.replace
        )
        body.avoided_endpoint_ids.extend(sorted(detour.avoided))
        body.probed_endpoint_ids.extend(sorted(detour.probed))
        return ask

    def _gang(self, effect: m.Declare) -> router_pb.GangSpec:
        has_tools = bool(self.allowed or self._spec.client_tools)
        text = sum(len(part.text) for msg in self.conversation for part in msg.parts)
        plan = self._machine.rounds.plan
        text += sum(len(turn.text) for turn in plan.turns)
        prompt = text // CHARACTERS_PER_TOKEN + TOKENS_PER_IMAGE * len(self.images)
        longest, mean = self._expected(effect, prompt)
        return router_pb.GangSpec(
            model=self._spec.model,
            role=effect.role,
            agent_ids=effect.agent_ids,
            required_capabilities=wire.capabilities(bool(self.images), has_tools, self.sampling),
            prefix_token_count=prompt,
            tokens_per_agent=longest,
            mean_tokens_per_agent=mean,
            prefilled_endpoint_id=effect.prefilled_at,
            prefix_digest=wire.digest_of(self._prompt(effect.role, plan.shown, plan.has_tools)),
        )

    def _expected(self, effect: m.Declare, prompt: int) -> tuple[int, int]:
        """Tokens that the longest of these agents will still write, and those of a mean one."""
        agents = [self._machine.agents[i] for i in effect.agent_ids]
        asked = self.sampling.max_tokens
        kind = Kind(
            self._spec.model,
            effect.role,
            len(agents),
            self.sampling.min_tokens,
            max((agent.plan.max_tokens or asked for agent in agents), default=asked),
            prompt,
        )
        written = min((agent.num_sampled for agent in agents), default=0)
        if not written:
            self._kinds.setdefault(kind, set()).update(effect.agent_ids)
        longest, mean = self._lengths.expected(kind), self._lengths.mean(kind)
        return max(1, longest - written), max(1, mean - written)

    def learn(self) -> None:
        """The contemplation came to its outcome: what its agents wrote is what others will."""
        for kind, agent_ids in self._kinds.items():
            agents = [self._machine.agents[i] for i in agent_ids if i in self._machine.agents]
            if any(agent.voted for agent in agents):
                self._lengths.learn(kind, [agent.num_sampled for agent in agents])

    def _replace(self, effect: m.Declare) -> router_pb.LeaseRequest:
        failures = [
            router_pb.EndpointFailure(endpoint_id=endpoint, reason=reason)
            for endpoint, reason in effect.failed
        ]
        replace = router_pb.ReplaceAgents(
            contemplation_id=self._spec.contemplation_id,
            attempt=effect.attempt,
            gangs=[self._gang(effect)],
            failures=failures,
            traceparent=telemetry.current_traceparent(),
        )
        return router_pb.LeaseRequest(replace=replace)

    def _declare(self, effect: m.Declare, left_s: float) -> router_pb.LeaseRequest:
        declare = router_pb.DeclareGangs(
            contemplation_id=self._spec.contemplation_id,
            attempt=effect.attempt,
            owner_epoch=self._epoch,
            tenant=current_tenant(),
            gangs=[self._gang(effect)],
            budget=self._request.budget,
            priority=self._request.priority,
            traceparent=telemetry.current_traceparent(),
        )
        limits = declare.constraints
        limits.CopyFrom(self._request.constraints)
        limits.excluded_endpoint_ids.extend(endpoint for endpoint, _ in effect.failed)
        if not self._machine.places.gangs:
            # Half of the time is for the answer. What has run already waits for nobody.
            wait_s = min(self._config.place_timeout_s, left_s / 2)
            declare.max_wait_duration.FromMicroseconds(round(wait_s * 1e6))
            declare.remaining_duration.FromMicroseconds(round(left_s * 1e6))
        if not limits.min_failure_domain_count and self._spec.num_agents > 1:
            # Losing one provider is to cost agents, not the answer.
            limits.min_failure_domain_count = 2
        return router_pb.LeaseRequest(declare=declare)

    def opening(self, effect: m.OpenGang | m.Prepare) -> decoder_pb.OpenGang:
        """All that a gang opens with but its agents."""
        opening = self._prompt(effect.role, effect.turns, effect.has_tools)
        opening.prefix_digest = wire.digest_of(opening)
        opening.contemplation_id = opening.lease_id = self._spec.contemplation_id
        opening.gang_id = effect.gang.gang_id
        opening.owner_epoch = self._epoch
        opening.vision_encoder_address = self._config.vision_encoder_address
        opening.priority = self._request.priority
        return opening

    def _prompt(
        self, role: str, turns: Iterable[tuple[str, str]], has_tools: bool
    ) -> decoder_pb.OpenGang:
        """Of an opening, what makes the prompt, and for whom it may be cached."""
        mesh = [self._tools.spec(name) for name in self.allowed]
        return decoder_pb.OpenGang(
            tenant=current_tenant(),
            model=self._spec.model,
            conversation=[*self.conversation, *wire.to_messages(turns)],
            tools=[*mesh, *self._request.client_tools] if has_tools else [],
            effort=common.Effort.Value(f"EFFORT_{self._spec.effort}"),
            role=role,
        )
