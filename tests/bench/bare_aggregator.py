"""An aggregator that journals nothing but acceptance: what `journal_cost` compares with.

It is started as `python -m cogitate.aggregator` is. Never use it for anything else.
"""

from __future__ import annotations

import sys
from typing import Any

from cogitate.aggregator import event_log, recording
from cogitate.aggregator.config import AggregatorConfig
from cogitate.aggregator.server import build
from cogitate.kit import lifecycle
from cogitate.v1 import journal_pb2


def _shown(self: Any, log: event_log.EventLog, row: Any, events: Any) -> None:
    for event in events:
        log.add(event)
    if events:
        log.publish(log.last, written=False)


def _nothing(item: Any, source: Any = None) -> journal_pb2.JournalInput:
    return journal_pb2.JournalInput()


if __name__ == "__main__":
    event_log.JournalWriter.write = _shown  # type: ignore[method-assign]
    recording.to_entry = _nothing
    sys.exit(lifecycle.main("aggregator", AggregatorConfig, build))
