"""Values that the router decides on. All are frozen; times are seconds of one monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from cogitate.router.core.learning import Speed, Work


class State(StrEnum):
    """What the router thinks of an endpoint."""

    READY = "READY"
    STALE = "STALE"  # connected, but its reports stopped
    DRAINING = "DRAINING"  # finishes what it has


class Change(StrEnum):
    """News of an endpoint, as lease holders hear it."""

    EXPIRED = "EXPIRED"
    GONE = "GONE"
    DRAINING = "DRAINING"
    BACK = "BACK"


@dataclass(frozen=True, slots=True)
class Description:
    """What an endpoint says it is. Zero blocks means that it has no KV memory to count."""

    endpoint_id: str
    address: str
    provider: str = ""
    region: str = ""
    failure_domain: str = ""
    models: tuple[str, ...] = ()
    capabilities: frozenset[str] = frozenset()
    engine: str = ""
    hardware: str = ""
    price_per_hour_micro_usd: int = 0
    price_per_million_tokens_micro_usd: int = 0
    is_spot: bool = False
    total_blocks: int = 0
    block_size: int = 0
    max_sequences: int = 1
    build_digest: str = ""
    max_model_len: int = 0
    process_id: str = ""  # of this start of it; empty: not told
    price_per_million_prompt_tokens_micro_usd: int = 0

    @property
    def domain(self) -> tuple[str, str]:
        """What fails together; names of zones are only unique within a provider."""
        return (self.provider, self.failure_domain)


@dataclass(frozen=True, slots=True)
class Load:
    """What an endpoint says it does. Zero speeds mean that it has not measured any yet."""

    running: int = 0
    waiting: int = 0
    paused: int = 0
    free_blocks: int = 0
    prefill_tokens_per_s: float = 0.0
    step_s: float = 0.0
    step_batch_size: float = 0.0
    sampled_tokens: int = 0
    computed_prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    draining: bool = False
    cpu_utilization: float = 0.0
    mem_utilization: float = 0.0
    application_utilization: float = 0.0
    kv_cache_utilization: float = 0.0
    waiting_gangs: int = 0
    running_gangs: int = 0
    gangs_per_s: float = 0.0
    failures_per_s: float = 0.0
    preemptions: int = 0
    used_tokens: int = 0
    killed_tokens: int = 0
    lost_tokens: int = 0
    flops_per_s: float = 0.0
    traffic_bytes_per_s: float = 0.0
    work: Work = field(default_factory=Work)

    @property
    def sequences(self) -> int:
        """Sequences that hold a place, whatever they do."""
        return self.running + self.waiting + self.paused


@dataclass(frozen=True, slots=True)
class EndpointSnapshot:
    """An endpoint at one moment. `load` is None while it is unknown.

    `booked_*` count all bookings of leases, `pending_*` those that the reported load cannot hold
    yet, `left_*` those it holds still although they were released. A snapshot is stale from
    `expires_at_s` on.
    """

    description: Description
    state: State = State.READY
    load: Load | None = None
    unknown_because: str = ""
    reported_at_s: float = 0.0
    expires_at_s: float = float("inf")
    incarnation: int = 1
    booked_agents: int = 0
    booked_blocks: int = 0
    pending_agents: int = 0
    pending_blocks: int = 0
    left_agents: int = 0
    left_blocks: int = 0
    speed: Speed | None = None  # None until its steps were seen
    prior: Speed | None = None  # a guess by its hardware, for when it has reported no speed
    speed_error: float | None = None  # running relative error of what was predicted by it
    prompts_until_s: float = 0.0  # when the prompts that were placed there are expected to be done

    @property
    def endpoint_id(self) -> str:
        """The endpoint's id."""
        return self.description.endpoint_id

    @property
    def sequences(self) -> int:
        """Sequences there now, as reported, and as booked and released since; bookings alone if
        unknown. Of what was released some may have ended before the report: what bookings do not
        explain is taken to be others'.
        """
        if self.load is None:
            return self.booked_agents
        told, held = self.load.sequences, self.booked_agents - self.pending_agents
        others = max(0, told - held - self.left_agents)
        return min(told, held + others) + self.pending_agents

    @property
    def free_sequences(self) -> int:
        """Room for further sequences, at least 0."""
        return max(0, self.description.max_sequences - self.sequences)

    @property
    def free_blocks(self) -> int:
        """Blocks nobody uses or has booked, at least 0: running gangs grow into their bookings."""
        unbooked = self.description.total_blocks - self.booked_blocks
        if self.load is None:
            return max(0, unbooked)
        free = self.load.free_blocks + self.left_blocks - self.pending_blocks
        return max(0, min(unbooked, free))


@dataclass(frozen=True, slots=True)
class Constraints:
    """Where a gang may run. Empty sets and zeros allow everything."""

    providers: frozenset[str] = frozenset()
    regions: frozenset[str] = frozenset()
    min_failure_domains: int = 0
    max_price_per_hour_micro_usd: int = 0
    excluded: frozenset[str] = frozenset()
    min_survivors: int = 0  # agents of each gang that the loss of any one provider leaves


@dataclass(frozen=True, slots=True)
class GangNeed:
    """Agents that share a prompt and a model, and what they need."""

    contemplation_id: str
    model: str
    agent_ids: tuple[int, ...]
    role: str = ""
    capabilities: frozenset[str] = frozenset()
    prefix_tokens: int = 0
    tokens_per_agent: int = 0  # of the longest
    mean_tokens: int = 0  # in the mean; 0: all as much as the longest
    max_cost_micro_usd: int = 0
    failed: frozenset[str] = frozenset()  # endpoints that failed this contemplation
    avoided: frozenset[str] = frozenset()  # those to leave out, unless they are all there are
    probed: frozenset[str] = frozenset()  # those to give one agent, if others can hold the rest
    prefilled_at: str = ""  # an endpoint that has most of the prefix computed; empty: none
    prefix_digest: str = ""  # names the common prefix; empty: unknown
    cached_at: frozenset[str] = frozenset()  # endpoints that lately were given that prefix
    region: str = ""  # where it is asked for from; empty: unknown
    turn: int = 0  # agents placed before it: where round robin goes on
    asked_at_s: float = float("inf")  # when; infinite: other gangs' prompts are not waited for
    max_fallbacks: int | None = None  # all on one endpoint, and so many named that would do as well
    constraints: Constraints = field(default_factory=Constraints)


@dataclass(frozen=True, slots=True)
class Share:
    """One endpoint's share of a gang, with the reason."""

    endpoint_id: str
    agent_ids: tuple[int, ...]
    blocks_per_agent: int
    prefix_blocks: int
    predicted_s: float
    predicted_cost_micro_usd: int
    reason: str
    prefill_s: float = 0.0  # of its duration
    fallbacks: tuple[str, ...] = ()  # of a gang that is not to be split: the next best, in order


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an endpoint was not used. `temporary` if waiting may help.

    `count` is for how many endpoints it speaks: in a large fleet few are named for each kind.
    """

    endpoint_id: str
    reason: str
    temporary: bool = False
    count: int = 1


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a gang goes. Without shares it goes nowhere, and `denial` says why, for people."""

    policy: str
    shares: tuple[Share, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    makespan_s: float = 0.0
    denial: str = ""
    denial_reason: str = ""
    retryable: bool = False
    is_full: bool = False  # what denies it is lack of room alone, and room may come


@dataclass(frozen=True, slots=True)
class Terms:
    """What a declaration says of all its gangs, remembered for later replacements."""

    constraints: Constraints = field(default_factory=Constraints)
    max_cost_micro_usd: int = 0
    policy: str = ""


@dataclass(frozen=True, slots=True)
class Declare:
    """Asks for places for gangs; the gangs' constraints are those of `terms`."""

    contemplation_id: str
    attempt: int
    gangs: tuple[GangNeed, ...]
    owner_epoch: int = 0
    terms: Terms = field(default_factory=Terms)
    tenant: str = ""
    priority: int = 0  # higher is served first
    max_wait_s: float = 0.0  # how long it may be queued; 0: it is answered at once
    remaining_s: float = float("inf")  # time left to its deadline
    avoided: frozenset[str] = frozenset()
    probed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Replace:
    """Asks for new places for agents; `failures` are endpoint and reason."""

    contemplation_id: str
    attempt: int
    gangs: tuple[GangNeed, ...]
    failures: tuple[tuple[str, str], ...] = ()
    avoided: frozenset[str] = frozenset()
    probed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Confirm:
    """Tells what became of an attempt's placement: gang id, endpoint and number of agents.

    `providers` and `regions` are where these gangs run.
    """

    contemplation_id: str
    attempt: int
    gangs: tuple[tuple[str, str, int], ...] = ()
    failures: tuple[tuple[str, str], ...] = ()
    providers: frozenset[str] = frozenset()
    regions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class GrantedShare:
    """A booked share: the gang's id, where it runs and what it is part of."""

    gang_id: str
    share: Share
    need: GangNeed
    description: Description


@dataclass(frozen=True, slots=True)
class Granted:
    """A placement that is booked. Whoever cannot deliver it must roll it back."""

    contemplation_id: str
    attempt: int
    gangs: tuple[GrantedShare, ...]
    rejected: tuple[Rejection, ...]
    policy: str


@dataclass(frozen=True, slots=True)
class Denied:
    """No placement; nothing is booked. `reason` is an ErrorReason without its prefix.

    `waited_s` of a declaration that could wait: waiting longer, or asking at once, does not help.
    `retry_after_s`: when asking again may, if that is known. `is_full`: there is no room just now,
    and nothing else is amiss.
    """

    contemplation_id: str
    attempt: int
    reason: str
    message: str
    retryable: bool = False
    rejected: tuple[Rejection, ...] = ()
    waited_s: float | None = None
    retry_after_s: float | None = None
    is_full: bool = False


@dataclass(frozen=True, slots=True)
class Queued:
    """A declaration waits for room: behind how many, and about how long if that is known."""

    contemplation_id: str
    attempt: int
    ahead: int
    expected_s: float | None = None
