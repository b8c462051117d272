"""The Collector's config: its parts fit together, and speak of what services tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from cogitate.gateway.config import GatewayConfig
from cogitate.kit.telemetry import Attr

pytestmark = pytest.mark.unit

DEPLOY = Path(__file__).parents[2] / "deploy"


def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "otel/collector.yaml").read_text())
    return loaded


def test_every_part_is_defined_and_used() -> None:
    whole = config()
    pipelines = whole["service"]["pipelines"].values()
    connectors = set(whole["connectors"])
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in pipelines for name in pipeline[kind]}
        assert used - connectors == set(whole[kind]), kind
    fed = {name for pipeline in pipelines for name in pipeline["exporters"]} & connectors
    read = {name for pipeline in pipelines for name in pipeline["receivers"]} & connectors
    assert fed == read == connectors
    assert whole["service"]["extensions"] == list(whole["extensions"])


def test_memory_is_limited_first_and_batches_come_last() -> None:
    for name, pipeline in config()["service"]["pipelines"].items():
        processors = pipeline["processors"]
        assert processors[0] == "memory_limiter", name
        if "batch" in processors:
            assert processors[-1] == "batch", name


def test_a_trace_is_judged_when_its_contemplation_is_over() -> None:
    sampling = config()["processors"]["tail_sampling"]
    assert float(sampling["decision_wait"].removesuffix("s")) > GatewayConfig().default_deadline_s
    keys = {p["numeric_attribute"]["key"] for p in sampling["policies"] if "numeric_attribute" in p}
    assert keys <= {str(attr) for attr in Attr}
