"""How long a share of a gang takes and what it costs: one simple, declared model.

    duration(k) = wait + prefix / prefill rate + steps * step(sequences there + k)
    step(b)     = base + per_sequence * b + per_position * (positions there + prefix + new ones)

as learned from the endpoint's steps (``learning``); the wait is for prompts that were placed there
before, since an engine computes one after the other. Of an endpoint that does not tell them it is
c * (1 + batch_slope * b), where `c` comes from its own last report (a step duration at a batch
size) and from a prior while it has none. Agents of an endpoint decode in one batch, so they end
together; the share of an hourly price that a gang pays is its share of that batch. By the token
each agent pays for what it writes, and for the prompt where it is charged for. `effective` adds
money to time at a fixed exchange rate, so that policies compare one number, and what a spot machine
is expected to lose: half of the duration, as often as it is taken away. `scores` has the same
formulas for a whole fleet; `test_scores_agree_with_estimates` holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass

from cogitate.router.core.learning import Speed
from cogitate.router.core.types import EndpointSnapshot, GangNeed


@dataclass(frozen=True, slots=True)
class CostModel:
    """The numbers that no report contains."""

    prior_prefill_tokens_per_s: float = 2000.0
    prior_step_s: float = 0.02
    batch_slope: float = 0.125
    prior_tokens_per_agent: int = 256
    spread_penalty: float = 0.1
    seconds_per_usd: float = 60.0
    growth_share: float = 0.5
    far_s: float = 0.1  # round trip between two regions
    spot_losses_per_hour: float = 0.05


class Estimate:
    """An endpoint seen by one gang. Every method is non-decreasing in `k`, the number of agents.

    `steps`: tokens each agent is expected to sample, no more than the window leaves. `prefill_s`:
    time of the one prefill all agents there share, none where most of it is computed. `wait_s`:
    time until it begins.
    `distance_s`: time to its region and back; regions that are not told are near.
    """

    __slots__ = (
        "_fixed_s", "_per_agent_s", "_per_sequence_s", "distance_s", "is_prefilled", "model",
        "need", "prefill_s", "snapshot", "steps", "wait_s",
    )  # fmt: skip

    def __init__(self, snapshot: EndpointSnapshot, need: GangNeed, model: CostModel) -> None:
        self.snapshot, self.need, self.model = snapshot, need, model
        what, where = snapshot.description, snapshot.endpoint_id
        wanted = need.tokens_per_agent or model.prior_tokens_per_agent
        window = what.max_model_len
        left = min(wanted, window - need.prefix_tokens) if window else wanted
        self.steps = max(1, left) if window else wanted
        self.is_prefilled = where == need.prefilled_at or where in need.cached_at
        self.prefill_s = (
            0.0 if self.is_prefilled else need.prefix_tokens * prompt_position_s(snapshot, model)
        )
        self.wait_s = max(0.0, snapshot.prompts_until_s - need.asked_at_s)
        far = need.region and what.region and need.region != what.region
        self.distance_s = model.far_s if far else 0.0
        speed = speed_of(snapshot, model)
        positions = positions_of(snapshot) + need.prefix_tokens
        self._fixed_s = speed.step_s(snapshot.sequences, positions)
        self._per_sequence_s = speed.per_sequence_s
        self._per_agent_s = speed.per_sequence_s + speed.per_position_s * self.steps / 2

    def step_s(self, k: int) -> float:
        """Time of a step with `k` more agents in the batch, when they have half of their tokens."""
        return self._fixed_s + k * self._per_agent_s

    def duration_s(self, k: int) -> float:
        """Time until `k` agents there are done."""
        return self.distance_s + self.wait_s + self.prefill_s + self.steps * self.step_s(k)

    def expected_s(self, k: int) -> float:
        """The same where agents end before the longest, which goes on in a smaller batch.

        It is what is told; endpoints are compared without it.
        """
        need = self.need
        longest = max(1, need.tokens_per_agent)
        share = min(1.0, need.mean_tokens / longest) if need.mean_tokens else 1.0
        return self.duration_s(k) - self.steps * self._per_sequence_s * (k - 1) * (1 - share)

    def cost_micro_usd(self, k: int) -> float:
        """What `k` agents there cost."""
        what = self.snapshot.description
        prompt = self.need.prefix_tokens * what.price_per_million_prompt_tokens_micro_usd
        by_token = k * (self.steps * what.price_per_million_tokens_micro_usd + prompt) / 1e6
        part = k / (self.snapshot.sequences + k)
        return by_token + part * self.duration_s(k) * what.price_per_hour_micro_usd / 3600

    def effective_s(self, k: int) -> float:
        """Duration, what a spot machine is expected to lose of it, and cost, in seconds."""
        duration_s = self.duration_s(k)
        lost_s = 0.0
        if self.snapshot.description.is_spot:
            lost_s = duration_s**2 / 2 * self.model.spot_losses_per_hour / 3600
        money = self.cost_micro_usd(k) / 1e6 * self.model.seconds_per_usd
        return duration_s + lost_s + money

    @property
    def prefix_blocks(self) -> int:
        """KV blocks of the common prefix; 0 where KV memory is not counted."""
        return self._blocks(self.need.prefix_tokens)

    @property
    def blocks_per_agent(self) -> int:
        """KV blocks each agent is booked: a declared share of what it may grow to, at least one."""
        grown = max(1, int(self.steps * self.model.growth_share))
        return self._blocks(grown)

    def _blocks(self, positions: int) -> int:
        what = self.snapshot.description
        if not what.total_blocks or not what.block_size:
            return 0
        return -(-positions // what.block_size)

    def room(self, *, idle: bool = False) -> int:
        """The most agents that fit, now or if the endpoint were idle."""
        what = self.snapshot.description
        sequences = what.max_sequences if idle else self.snapshot.free_sequences
        if not self.blocks_per_agent:
            return sequences
        blocks = what.total_blocks if idle else self.snapshot.free_blocks
        return max(0, min(sequences, (blocks - self.prefix_blocks) // self.blocks_per_agent))


def speed_of(snapshot: EndpointSnapshot, model: CostModel) -> Speed:
    """How fast it steps: as learned, as it said last, or as its hardware lets expect."""
    if snapshot.speed is not None:
        return snapshot.speed
    load, slope = snapshot.load, model.batch_slope
    if load and load.step_s > 0:
        base = load.step_s / (1 + slope * load.step_batch_size)
    elif snapshot.prior is not None:
        return snapshot.prior
    else:
        base = model.prior_step_s / (1 + slope)
    return Speed(base, base * slope)


def prompt_position_s(snapshot: EndpointSnapshot, model: CostModel) -> float:
    """How long it takes for a position of a prompt, from the same sources."""
    if snapshot.speed is not None and snapshot.speed.per_prompt_position_s:
        return snapshot.speed.per_prompt_position_s
    if snapshot.load and snapshot.load.prefill_tokens_per_s:
        return 1 / snapshot.load.prefill_tokens_per_s
    if snapshot.prior is not None and snapshot.prior.per_prompt_position_s:
        return snapshot.prior.per_prompt_position_s
    return 1 / model.prior_prefill_tokens_per_s


def positions_of(snapshot: EndpointSnapshot) -> int:
    """KV positions that are held there now."""
    what, load = snapshot.description, snapshot.load
    free = snapshot.free_blocks if load is None else load.free_blocks
    return (what.total_blocks - free) * what.block_size
