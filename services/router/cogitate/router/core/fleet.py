"""What endpoints report: soft state, forgotten when they stop.

    (none) --describe--> READY <--silence / any message--> STALE
                         READY <--a load's flag--> DRAINING
                         READY --drain notice--> DRAINING for good
    any state --its stream closed--> (none)

Invariants, checked by the state machine in tests/property/test_router_desk.py:
1. An endpoint belongs to the last stream that described it; an older stream changes nothing. A
   second stream of the same process (`process_id`) is no restart.
2. An endpoint whose last report is `expiry_s` old is STALE, whether or not `expire` has run since.
3. Only a load that passes `absurdity` is known; any other leaves the load unknown.
4. Each method returns the changes lease holders must hear of, in order, and each only once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cogitate.router.core.learning import Learner, Speed, Work, prior_of
from cogitate.router.core.types import Change, Description, Load, State

_MAX_MODELS_SEEN = 10_000
_MAX_STEP_S = 3600.0
_MAX_TOKENS_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class EndpointChanged:
    """Something lease holders on the endpoint must hear. `remaining_s` is for DRAINING."""

    endpoint_id: str
    change: Change
    remaining_s: float | None = None


@dataclass(slots=True)
class Entry:
    """One endpoint's state; of one stream, hence of one process."""

    stream: int
    description: Description
    incarnation: int
    reported_at_s: float
    load: Load | None = None
    load_at_s: float | None = None
    unknown_because: str = "it has not reported yet"
    expired: bool = False
    noticed: bool = False
    remaining_s: float | None = None
    drains: bool = False
    work: Work = field(default_factory=Work)  # as last reported
    learner: Learner | None = None  # None until it reports steps
    prior: Speed | None = None  # by its hardware

    @property
    def draining(self) -> bool:
        """Takes no more gangs: a notice holds for good, a load's flag while it is set."""
        return self.noticed or self.drains

    def is_of(self, process_id: str) -> bool:
        """Whether it is this process that reports; no, if either does not say."""
        return bool(process_id) and self.description.process_id == process_id


@dataclass(slots=True)
class Fleet:
    """Owns the reports. Not safe across tasks that await in between; no method awaits."""

    expiry_s: float
    max_endpoints: int = 1000
    prior_step_s: float = 0.02
    prior_slope: float = 0.125
    prior_prefill_tokens_per_s: float = 2000.0
    entries: dict[str, Entry] = field(default_factory=dict)
    models_seen: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)  # changed since who empties it looked
    _incarnations: int = 0

    def describe(
        self, stream: int, description: Description, now: float
    ) -> tuple[EndpointChanged, ...]:
        """Takes an endpoint in, or its new description. The latest stream owns the endpoint."""
        known = self.entries.get(description.endpoint_id)
        self.touched.add(description.endpoint_id)
        if len(self.models_seen) < _MAX_MODELS_SEEN:
            self.models_seen.update(description.models)
        if known is not None and (known.stream == stream or known.is_of(description.process_id)):
            known.stream = stream
            known.description = description
            known.prior = self.prior(description)
            return self._heard(known, now)
        self._incarnations += 1
        entry = Entry(stream, description, self._incarnations, now, prior=self.prior(description))
        if known is not None and _same_machine(known.description, description):
            entry.learner = known.learner
        self.entries[description.endpoint_id] = entry
        gone = EndpointChanged(description.endpoint_id, Change.GONE)
        back = EndpointChanged(description.endpoint_id, Change.BACK)
        # Another process under the same id: what ran in the old one is lost.
        return (back,) if known is None else (gone, back)

    def report(
        self, stream: int, endpoint_id: str, load: Load, now: float
    ) -> tuple[EndpointChanged, ...]:
        """Takes a load in; an absurd one makes the load unknown but still proves life."""
        entry = self._owned(stream, endpoint_id)
        if entry is None:
            return ()
        entry.unknown_because = absurdity(load, entry.description)
        entry.load, entry.load_at_s = (None, None) if entry.unknown_because else (load, now)
        if not entry.unknown_because:
            self._learn(entry, load.work)
        changes = self._heard(entry, now)
        was, entry.drains = entry.draining, load.draining
        if entry.draining == was:
            return changes
        change = Change.DRAINING if entry.draining else Change.BACK
        return (*changes, EndpointChanged(endpoint_id, change))

    def drain(
        self, stream: int, endpoint_id: str, remaining_s: float | None, now: float
    ) -> tuple[EndpointChanged, ...]:
        """Takes a drain notice in. It is news again only when less time remains than was said."""
        entry = self._owned(stream, endpoint_id)
        if entry is None:
            return ()
        changes = self._heard(entry, now)
        less = remaining_s is not None and remaining_s < (
            math.inf if entry.remaining_s is None else entry.remaining_s
        )
        if entry.noticed and not less:
            return changes
        entry.noticed, entry.remaining_s = True, remaining_s
        return (*changes, EndpointChanged(endpoint_id, Change.DRAINING, remaining_s))

    def close(self, stream: int, endpoint_id: str) -> tuple[EndpointChanged, ...]:
        """Forgets an endpoint whose stream ended, unless a newer stream owns it."""
        if self._owned(stream, endpoint_id) is None:
            return ()
        del self.entries[endpoint_id]
        self.touched.add(endpoint_id)
        return (EndpointChanged(endpoint_id, Change.GONE),)

    def expire(self, now: float) -> tuple[EndpointChanged, ...]:
        """Finds the endpoints that fell silent since the last call. O(endpoints)."""
        silent = [
            entry
            for _, entry in sorted(self.entries.items())
            if not entry.expired and now >= entry.reported_at_s + self.expiry_s
        ]
        for entry in silent:
            entry.expired = True
            self.touched.add(entry.description.endpoint_id)
        return tuple(
            EndpointChanged(entry.description.endpoint_id, Change.EXPIRED) for entry in silent
        )

    def can_describe(self, endpoint_id: str) -> bool:
        """Says whether there is room for this endpoint."""
        return endpoint_id in self.entries or len(self.entries) < self.max_endpoints

    def state(self, entry: Entry, now: float) -> State:
        """Returns an endpoint's state at `now`."""
        if entry.expired or now >= entry.reported_at_s + self.expiry_s:
            return State.STALE
        return State.DRAINING if entry.draining else State.READY

    def _learn(self, entry: Entry, work: Work) -> None:
        """Takes in what was done since the last report, if endpoints of this kind tell it."""
        more, entry.work = work.since(entry.work), work
        if more is None or not (more.steps or more.prompt_positions):
            return
        if entry.learner is None:
            entry.learner = Learner(self.prior(entry.description))
        entry.learner.observe(more)

    def prior(self, what: Description) -> Speed:
        """What its hardware lets expect."""
        return prior_of(
            what.hardware, self.prior_step_s, self.prior_slope, self.prior_prefill_tokens_per_s
        )

    def _owned(self, stream: int, endpoint_id: str) -> Entry | None:
        """The entry that a stream may change; it is taken to be changed."""
        entry = self.entries.get(endpoint_id)
        if entry is None or entry.stream != stream:
            return None
        self.touched.add(endpoint_id)
        return entry

    def _heard(self, entry: Entry, now: float) -> tuple[EndpointChanged, ...]:
        entry.reported_at_s = now
        if not entry.expired:
            return ()
        entry.expired = False
        return (EndpointChanged(entry.description.endpoint_id, Change.BACK),)


def _same_machine(one: Description, other: Description) -> bool:
    """Whether what was learned of one holds for the other."""
    return (one.hardware, one.engine, one.models, one.build_digest) == (
        other.hardware, other.engine, other.models, other.build_digest
    )  # fmt: skip


def absurdity(load: Load, description: Description) -> str:
    """Returns what is wrong with a load, or an empty string. Wrong numbers must not win."""
    counts = (
        load.running,
        load.waiting,
        load.paused,
        load.free_blocks,
        load.sampled_tokens,
        load.computed_prompt_tokens,
        load.cached_prompt_tokens,
        load.waiting_gangs,
        load.running_gangs,
        load.preemptions,
        load.used_tokens,
        load.killed_tokens,
        load.lost_tokens,
        load.work.steps,
        load.work.sequences,
        load.work.positions,
        load.work.prompt_positions,
    )
    speeds = (
        load.prefill_tokens_per_s,
        load.step_s,
        load.step_batch_size,
        load.cpu_utilization,
        load.mem_utilization,
        load.application_utilization,
        load.kv_cache_utilization,
        load.gangs_per_s,
        load.failures_per_s,
        load.flops_per_s,
        load.traffic_bytes_per_s,
        load.work.step_s,
        load.work.prompt_s,
    )
    if min(counts) < 0:
        return "it reported a negative count"
    if not all(math.isfinite(speed) and speed >= 0 for speed in speeds):
        return "it reported a speed that is no number"
    if load.prefill_tokens_per_s > _MAX_TOKENS_PER_S or load.step_s > _MAX_STEP_S:
        return "it reported an impossible speed"
    if load.free_blocks > description.total_blocks:
        return "it reported more free blocks than it has"
    if load.step_batch_size > max(description.max_sequences, load.sequences):
        return "it reported a batch larger than it can hold"
    return ""
