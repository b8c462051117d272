"""The rule by which Kubernetes scales, as the benchmark of live scaling uses it."""

from __future__ import annotations

import pytest

from tests.fakes.kubernetes import Autoscaler

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("replicas", "total", "wanted"),
    [(1, 40, 4), (4, 43, 4), (4, 45, 5), (2, 21.9, 2), (3, 1000, 6), (1, 0, 1), (0, 5, 1)],
)
def test_as_many_as_the_sum_needs(replicas: int, total: float, wanted: int) -> None:
    assert Autoscaler(1, 6).decide(0.0, replicas, total, 10.0) == wanted


def test_down_only_after_the_window_has_passed() -> None:
    scaler = Autoscaler(1, 6, stabilization_s=10.0)
    assert scaler.decide(0.0, 1, 50, 10.0) == 5
    assert scaler.decide(5.0, 5, 10, 10.0) == 5, "five were wanted lately"
    assert scaler.decide(11.0, 5, 10, 10.0) == 1
    assert scaler.decide(12.0, 1, 50, 10.0) == 5, "up at once"
