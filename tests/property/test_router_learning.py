"""The learned cost model: it finds what steps follow, follows what changes, and is never absurd."""

from __future__ import annotations

import math
from random import Random

import pytest
from cogitate.router.core.learning import Learner, Speed, Work, prior_of
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.property

PRIOR = prior_of("cpu", 0.02, 0.125, 2000.0)


def report(speed: Speed, random: Random, noise: float = 0.02) -> Work:
    """A report's worth of steps at a random batch and context."""
    steps = random.randint(1, 40)
    batch, positions = random.randint(1, 64), random.randint(16, 20_000)
    step_s = speed.step_s(batch, positions) * (1 + noise * random.uniform(-1, 1))
    return Work(steps, steps * step_s, steps * batch, steps * positions, 0, 0.0)


def worst(learner: Learner, speed: Speed, batches: tuple[int, ...] = (1, 8, 32, 64)) -> float:
    """Largest relative error over batches and contexts that were seen."""
    return max(
        abs(learner.speed.step_s(b, p) / speed.step_s(b, p) - 1)
        for b in batches
        for p in (100, 5_000, 20_000)
    )


speeds = st.builds(
    Speed,
    st.floats(1e-3, 0.3),
    st.floats(1e-5, 0.02),
    st.floats(0, 2e-6),
)


@settings(max_examples=60, deadline=None)
@given(speeds, st.integers(0, 2**32))
def test_it_comes_close_to_steps_that_follow_the_formula(speed: Speed, seed: int) -> None:
    random, learner = Random(seed), Learner(PRIOR)
    for _ in range(60):
        learner.observe(report(speed, random))
    assert worst(learner, speed) < 0.15
    assert learner.error is not None
    assert learner.error < 0.1


@settings(max_examples=30, deadline=None)
@given(speeds, st.floats(0.3, 4.0), st.integers(0, 2**32))
def test_it_follows_a_change_of_speed(speed: Speed, factor: float, seed: int) -> None:
    random, learner = Random(seed), Learner(PRIOR)
    for _ in range(60):
        learner.observe(report(speed, random))
    changed = Speed(*(factor * c for c in (speed.base_s, speed.per_sequence_s, 0.0)))
    for _ in range(150):
        learner.observe(report(changed, random))
    assert worst(learner, changed, (8, 32, 64)) < 0.15
    # Some 20 reports count, and hardly one of them is of a batch this small.
    assert worst(learner, changed, (1,)) < 0.3


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(
            Work,
            st.integers(0, 10**9), st.floats(0, 1e9), st.integers(0, 10**9),
            st.integers(0, 10**12), st.integers(0, 10**9), st.floats(0, 1e9),
        ),
        max_size=20,
    )
)  # fmt: skip
def test_whatever_is_reported_coefficients_stay_numbers(works: list[Work]) -> None:
    learner = Learner(PRIOR)
    for work in works:
        learner.observe(work)
    speed = learner.speed
    values = (speed.base_s, speed.per_sequence_s, speed.per_position_s, speed.per_prompt_position_s)
    assert all(math.isfinite(value) and value >= 0 for value in values)
    assert speed.step_s(0, 0) > 0


def test_one_batch_size_alone_is_learned_and_others_stay_near_the_priors_shape() -> None:
    learner = Learner(PRIOR)
    for _ in range(50):
        learner.observe(Work(10, 0.5, 80, 10_000, 0, 0.0))
    assert learner.speed.step_s(8, 1000) == pytest.approx(0.05, rel=0.02)
    assert 0.01 < learner.speed.step_s(1, 1000) < 0.05 < learner.speed.step_s(32, 1000) < 0.5


def test_a_stall_does_not_become_the_speed() -> None:
    speed, random, learner = Speed(0.02, 0.002), Random(1), Learner(PRIOR)
    for _ in range(60):
        learner.observe(report(speed, random))
    learner.observe(Work(1, 30.0, 8, 1000, 0, 0.0))
    assert worst(learner, speed) < 0.25
    for _ in range(20):
        learner.observe(report(speed, random))
    assert worst(learner, speed) < 0.05


def test_work_is_a_difference_of_growing_numbers() -> None:
    earlier, later = Work(1, 0.5, 8, 100, 10, 0.1), Work(3, 1.5, 24, 400, 10, 0.1)
    assert later.since(earlier) == Work(2, 1.0, 16, 300, 0, 0.0)
    assert earlier.since(later) is None


def test_the_prior_is_faster_on_faster_hardware_and_prefill_is_learned() -> None:
    fast = prior_of("NVIDIA H100 80GB HBM3", 0.5, 0.125, 200.0)
    slow = prior_of("8-core x86", 0.5, 0.125, 200.0)
    assert fast.step_s(1, 0) < slow.step_s(1, 0) / 30
    assert fast.per_prompt_position_s < slow.per_prompt_position_s / 1000
    learner = Learner(slow)
    learner.observe(Work(0, 0.0, 0, 0, 1000, 0.5))
    assert learner.speed.per_prompt_position_s == pytest.approx(0.0005)
