"""How fast an endpoint is, learned from the steps it reports.

    step(batch, positions) = base + per_sequence * batch + per_position * positions
    prefill(positions)     = per_prompt_position * positions

Fitted by recursive least squares with exponential forgetting (Ljung, System Identification, 2nd
ed., 11.2), none of the coefficients negative: each report is one observation, the mean of the steps
since the report before, weighed by how exact it is taken to be. It starts from a prior by hardware
class, so the first prediction is a guess and the tenth is not.

Invariants (``tests/property/test_router_learning.py``):

1. Coefficients are finite and never negative, whatever is reported; a step takes some time.
2. On steps that follow the formula predictions come within 15 % of them.
3. What changed is followed: after a change of speed the old steps are forgotten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# Weight of what is older, each observation: half of it is forgotten after 14.
FORGETTING = 0.95
# The standard deviation of a reported mean step time, relative to it.
NOISE = 0.05
# How far the prior may be off, relative to it.
DOUBT = 10.0
# A step that is off by more, while the running error is less, is an exception.
STALL = 0.4
# What a coefficient is multiplied with, so that all are of one size.
_SEQUENCES, _POSITIONS = 8.0, 4096.0
LEAST_STEP_S = 1e-6
_ERROR_SHARE = 0.1  # of the newest in the running error
_PROMPT_SHARE = 0.3  # of the newest in the prefill speed
# Which coefficients may differ from zero, all of them first.
_SETS = ((0, 1, 2), (0, 1), (0, 2), (1, 2), (0,), (1,), (2,))


@dataclass(frozen=True, slots=True)
class Speed:
    """An endpoint's coefficients, in seconds: of a step, a sequence and a position in it."""

    base_s: float
    per_sequence_s: float
    per_position_s: float = 0.0
    per_prompt_position_s: float = 0.0

    def step_s(self, batch: float, positions: float) -> float:
        """Time of a step of ``batch`` sequences that read so many positions in all."""
        linear = self.base_s + self.per_sequence_s * batch + self.per_position_s * positions
        return max(LEAST_STEP_S, linear)


@dataclass(frozen=True, slots=True)
class Work:
    """What an endpoint did since it started, as it reports it: growing numbers."""

    steps: int = 0
    step_s: float = 0.0
    sequences: int = 0  # of those steps, summed
    positions: int = 0  # that those steps read, summed
    prompt_positions: int = 0
    prompt_s: float = 0.0

    def since(self, before: Work) -> Work | None:
        """The difference; None if a number shrank: it is another process's, or absurd."""
        more = Work(
            self.steps - before.steps, self.step_s - before.step_s,
            self.sequences - before.sequences, self.positions - before.positions,
            self.prompt_positions - before.prompt_positions, self.prompt_s - before.prompt_s,
        )  # fmt: skip
        return more if min(more.steps, more.sequences, more.positions) >= 0 <= min(
            more.step_s, more.prompt_positions, more.prompt_s
        ) else None  # fmt: skip


class Learner:
    """Owns the fit of one endpoint. ``error`` is the running relative error of its predictions."""

    def __init__(self, prior: Speed) -> None:
        self.observations = 0
        self.error: float | None = None
        self.last_error: float | None = None  # of the newest observation alone
        self.speed = prior
        self._has_prefilled = False
        # Normal equations of the weighed squares, scaled as observations are; first the prior's.
        weight = (DOUBT * prior.step_s(1, 0)) ** -2
        self._prior = (prior.base_s, prior.per_sequence_s * _SEQUENCES, 0.0)
        self._prior_weight = weight
        self._matrix = [[weight if i == j else 0.0 for j in range(3)] for i in range(3)]
        self._vector = [weight * each for each in self._prior]

    def observe(self, work: Work) -> None:
        """Takes in what was done between two reports."""
        if work.prompt_positions and work.prompt_s:
            rate_s = work.prompt_s / work.prompt_positions
            share = _PROMPT_SHARE if self._has_prefilled else 1.0
            self._has_prefilled = True
            known_s = self.speed.per_prompt_position_s
            self.speed = replace(
                self.speed, per_prompt_position_s=known_s + share * (rate_s - known_s)
            )
        if not (work.steps and work.step_s):
            return
        measured = max(LEAST_STEP_S, work.step_s / work.steps)
        batch, positions = work.sequences / work.steps, work.positions / work.steps
        off = measured - self.speed.step_s(batch, positions)
        noise = (NOISE * measured) ** 2
        wrong = min(1.0, abs(off) / measured)
        if (
            self.error is not None
            and self.error < STALL
            and self.observations > 3
            and wrong > STALL
        ):
            noise += off**2  # a stall of the machine is no step; if it goes on, the error grows
        self.last_error = wrong
        self.error = wrong if self.error is None else self.error + _ERROR_SHARE * (
            wrong - self.error
        )  # fmt: skip
        self.observations += 1
        self._add((1.0, batch / _SEQUENCES, positions / _POSITIONS), measured, 1.0 / noise)

    def _add(self, x: tuple[float, float, float], measured: float, weight: float) -> None:
        """Forgets towards the prior, so that what is not seen any more stays a sensible guess."""
        for i in range(3):
            kept = (1 - FORGETTING) * self._prior_weight
            for j in range(3):
                self._matrix[i][j] *= FORGETTING
                self._matrix[i][j] += weight * x[i] * x[j] + (kept if i == j else 0.0)
            self._vector[i] *= FORGETTING
            self._vector[i] += weight * x[i] * measured + kept * self._prior[i]
        base, sequence, position = _least_squares(self._matrix, self._vector)
        self.speed = replace(
            self.speed,
            base_s=base,
            per_sequence_s=sequence / _SEQUENCES,
            per_position_s=position / _POSITIONS,
        )


def _least_squares(matrix: list[list[float]], vector: list[float]) -> list[float]:
    """The three coefficients, none negative, that fit best (exactly: of all sets of zeros)."""
    best, least = [0.0, 0.0, 0.0], math.inf
    for free in _SETS:
        found = _solved(matrix, vector, free)
        if found is None or min(found) < 0.0:
            continue
        value = sum(
            found[i] * (sum(matrix[i][j] * found[j] for j in range(3)) / 2 - vector[i])
            for i in range(3)
        )
        if len(free) == 3:
            return found  # nothing fits better than all of them free
        if value < least:
            best, least = found, value
    return best


def _solved(
    matrix: list[list[float]], vector: list[float], free: tuple[int, ...]
) -> list[float] | None:
    """Gauss-Jordan on the free coefficients, the others zero; None if it is singular."""
    rows = [[*(matrix[i][j] for j in free), vector[i]] for i in free]
    for k in range(len(free)):
        pivot = rows[k][k]  # of a positive definite matrix: never small beside the others
        if not math.isfinite(pivot) or pivot <= 0.0:
            return None
        rows[k] = [value / pivot for value in rows[k]]
        for other in range(len(free)):
            if other != k:
                factor = rows[other][k]
                rows[other] = [a - factor * b for a, b in zip(rows[other], rows[k], strict=True)]
    found = [0.0, 0.0, 0.0]
    for k, i in enumerate(free):
        found[i] = rows[k][-1]
    return found if all(map(math.isfinite, found)) else None


# Memory bandwidth in GB/s and dense bf16 in TFLOP/s by the makers' data sheets; the first whose
# name is in an endpoint's ``hardware`` is its class. Only their ratios count.
HARDWARE: tuple[tuple[str, float, float], ...] = (
    ("b200", 8000, 2250), ("h200", 4800, 989), ("h100", 3350, 989), ("mi300", 5300, 1307),
    ("a100", 2039, 312), ("l40", 864, 362), ("l4", 300, 121), ("a10", 600, 125),
    ("t4", 320, 65), ("v100", 900, 125), ("4090", 1008, 165), ("5090", 1792, 210),
    ("3090", 936, 71),
)  # fmt: skip
CPU = (50.0, 0.5)
# However fast it is, a step is started, and its tokens are sent.
LEAST_PRIOR_STEP_S = 0.002


def prior_of(hardware: str, step_s: float, slope: float, prompt_rate: float) -> Speed:
    """A guess by hardware class. The numbers are those of a CPU: a step of one sequence, how it
    grows with the batch relative to that, and prompt positions a second."""
    name = hardware.lower()
    bandwidth, flops = next((row[1:] for row in HARDWARE if row[0] in name), CPU)
    step_s = max(min(step_s, LEAST_PRIOR_STEP_S), step_s * CPU[0] / bandwidth)
    base = step_s / (1 + slope)
    return Speed(base, slope * base, 0.0, CPU[1] / flops / prompt_rate)
