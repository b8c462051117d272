"""Alerts and dashboards: of metrics there are, firing when they should, by the real promtool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cogitate.kit.metric_registry import COUNTER, HISTOGRAM, Metric

pytestmark = pytest.mark.unit

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus/rules.yaml"
UNITS = {"s": "_seconds", "By": "_bytes"}
NAME = re.compile(r"\b(?:cogitate|gen_ai|grpc)_[a-z0-9_]+")
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool")


def offered() -> set[str]:
    """What Prometheus finds at the services, as the exporter names it."""
    names = set()
    for one in Metric:
        name, kind, unit = one.value[:3]
        told = name.replace(".", "_") + UNITS.get(unit, "")
        if kind == COUNTER:
            told += "_total"
        parts = ("_bucket", "_sum", "_count") if kind == HISTOGRAM else ("",)
        names |= {told + part for part in parts}
    return names


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from group["rules"]


def test_rules_and_panels_are_about_metrics_there_are() -> None:
    dashboard = json.loads((DEPLOY / "grafana/cogitate.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [rule["expr"] for rule in rules()]
    labels = {"grpc_method", "grpc_status", "grpc_target", "cogitate_state", "cogitate_fate"}
    lists = re.findall(r"(?:by|on) \(([^)]*)\)|\{([^}]*)\}", " ".join(asked))
    keys = {re.split("[=!~]", key)[0].strip() for pair in lists for key in "".join(pair).split(",")}
    assert keys <= labels | {"le", "job", "instance"}, "no service has such a label"
    named = {name for expr in asked for name in NAME.findall(expr)} - labels
    assert len(named) > 15 and named <= offered(), named - offered()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = {name for expr in asked for name in re.findall(r"\bcogitate:[a-z0-9_:]+", expr)}
    assert used <= recorded


def test_every_alert_says_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len(alerts) >= 9
    for one in alerts:
        assert one["labels"]["severity"] in ("critical", "warning")
        assert one["annotations"]["summary"] and len(one["annotations"]["runbook"]) > 40


def promtool(*arguments: str) -> None:
    ran = subprocess.run(["promtool", *arguments], cwd=DEPLOY / "prometheus",
                         capture_output=True, text=True, timeout=60)  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_promtool
def test_prometheus_takes_them_and_alerts_fire() -> None:
    promtool("check", "rules", "rules.yaml")
    promtool("check", "config", "prometheus.yaml")
    promtool("test", "rules", "rules_test.yaml")
