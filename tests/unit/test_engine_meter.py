"""Utilisation from plain numbers under a clock of the test's; figures of process and device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cogitate.agent_decoder import device
from cogitate.agent_decoder.core.counters import EngineCounters
from cogitate.agent_decoder.core.load import EngineStats
from cogitate.agent_decoder.core.work import Precision
from cogitate.agent_decoder.engine_meter import OBSERVED, EngineMeter
from cogitate.kit import metrics
from cogitate.kit.config import ServiceConfig
from cogitate.kit.metric_registry import HISTOGRAM, Metric
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

pytestmark = pytest.mark.unit

SHAPE = {
    "hidden_size": 8, "intermediate_size": 16, "num_layers": 2, "num_heads": 4,
    "num_kv_heads": 2, "head_dim": 4, "vocab_size": 10,
}  # fmt: skip


class Scene:
    """A meter on an engine of numbers only, and its clocks."""

    def __init__(self) -> None:
        self.now = self.cpu = 0.0
        runner = SimpleNamespace(device=torch.device("cpu"), precision=Precision(4, 4, 4))
        model = SimpleNamespace(config=SimpleNamespace(**SHAPE), runner=runner)
        self.engine: Any = SimpleNamespace(
            model=model,
            stats=EngineStats(),
            counters=EngineCounters(),
            limits=SimpleNamespace(num_blocks=100),
        )
        self.meter = EngineMeter(self.engine, monotonic=lambda: self.now, cpu_s=lambda: self.cpu)


def test_utilisation_is_what_was_done_over_the_window() -> None:
    scene = Scene()
    counters = scene.engine.counters
    counters.book_step([(1, 3, 0)], 0, 0.5)
    counters.num_gangs, counters.num_failed, counters.num_used_blocks = 6, 2, 25
    scene.now, scene.cpu = 2.0, 1.0
    now = scene.meter.utilization()
    assert (now.busy_share, now.kv_share) == (0.25, 0.25)
    assert (now.gangs_per_s, now.failures_per_s) == (3.0, 1.0)
    assert now.cpu_share == 0.5 / device.num_cpus()
    assert now.operations_per_s == scene.meter.operations() / 2 == (2 * 1616 + 384) / 2
    assert now.traffic_per_s == scene.meter.traffic() / 2
    assert 0 < now.memory_share < 1


def test_a_long_step_never_makes_more_than_all_of_the_time() -> None:
    scene = Scene()
    scene.engine.counters.book_step([(1, 3, 0)], 0, 9.0)
    scene.now = 1.5
    assert scene.meter.utilization().busy_share == 1.0


def test_shares_of_peaks_are_of_the_time_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    scene, reader = Scene(), InMemoryMetricReader()
    made = metrics.setup("tester", ServiceConfig(), [reader])
    try:
        scene.meter.export()
        scene.engine.counters.book_step([(1, 3, 0)], 0, 0.5)
        scene.engine.stats.num_prompt, scene.engine.stats.num_cached = 30, 10
        scene.now = 2.0
        found = metrics.values(reader)
        assert "cogitate.engine.flops_utilization" not in found, "no peak is known"
        scene.meter.peaks = device.Peaks(scene.meter.operations() * 4.0, 1e9)
        again = metrics.values(reader)
    finally:
        made.shutdown()
    # In half a second of steps the operations of one second's peak in two.
    assert again["cogitate.engine.flops_utilization"] == [({}, 0.5)]
    assert found["cogitate.step.duration"][0][1].count == 1
    assert again["cogitate.step.duration"][0][1].count == 1, "a step is told once"
    assert found["cogitate.prefix_cache.asked"] == [({}, 40)]
    assert found["cogitate.prefix_cache.found"] == [({}, 10)]


def test_of_many_steps_histograms_are_told_a_part_evenly_picked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    scene, reader = Scene(), InMemoryMetricReader()
    made = metrics.setup("tester", ServiceConfig(), [reader])
    try:
        scene.meter.export()
        told = []
        for num_steps in (200, 201, 1000):
            for number in range(num_steps):
                scene.engine.counters.book_step([(1, 3, 0)], 0, 0.5 if number % 4 else 0.001)
            told.append(metrics.values(reader)["cogitate.step.duration"][0][1].count)
        assert told == [200, 301, 501]
        assert metrics.values(reader)["cogitate.steps"] == [({}, 1401)]
        assert not scene.engine.counters.samples
    finally:
        made.shutdown()


def test_everything_but_histograms_is_observed_once() -> None:
    assert len(set(OBSERVED)) == len(OBSERVED)
    others = ("cogitate.router.", "cogitate.aggregator.", "cogitate.rpcs", "grpc.")
    own = {metric for metric in Metric if not metric.key.startswith(others)}
    assert set(OBSERVED) == {metric for metric in own if metric.kind != HISTOGRAM}


def test_peaks_are_of_this_machine() -> None:
    peaks = device.measure_peaks(torch.device("cpu"), torch.float32, budget_s=0.02)
    assert 1e7 < peaks.operations_per_s < 1e15
    assert 1e7 < peaks.bytes_per_s < 1e13


def test_resident_memory_grows_with_what_is_touched() -> None:
    before = device.resident_bytes()
    held = b"x" * 100_000_000
    assert device.resident_bytes() - before > 50_000_000 < len(held)
    assert before < device.total_bytes()


@pytest.mark.parametrize("has_nvml", [True, False])
def test_readings_of_a_cuda_device(monkeypatch: pytest.MonkeyPatch, has_nvml: bool) -> None:
    """With torch's own functions stood in for: no GPU is needed, and none was tried."""

    def nvml(value: int) -> Any:
        def read(_: torch.device) -> int:
            if not has_nvml:
                raise ModuleNotFoundError("pynvml does not seem to be installed")
            return value

        return read

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70, 100))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 20)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 30)
    monkeypatch.setattr(torch.cuda, "utilization", nvml(45))
    monkeypatch.setattr(torch.cuda, "power_draw", nvml(123_000))
    found = device.device_readings(torch.device("cuda"))
    memory = metrics.states(allocated=20, reserved=30, free=70)
    load = {Metric.DEVICE_UTILIZATION: 0.45, Metric.DEVICE_POWER: 123.0} if has_nvml else {}
    assert found == {Metric.DEVICE_MEMORY: memory, **load}
    assert device.device_readings(torch.device("cpu")) == {}
