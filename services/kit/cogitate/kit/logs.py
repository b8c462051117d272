"""Logs: one line a record on stderr, as text or JSON, with the trace they belong to.

Messages never hold prompts, images or outputs; that is the rule of whoever logs, not of this.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Final

from opentelemetry import trace

TEXT: Final = "text"
JSON: Final = "json"


def setup(service_name: str, level: str, format: str) -> None:
    """Has all of the process's records written, those of libraries too."""
    handler = logging.StreamHandler()
    make = JsonFormatter if format == JSON else TextFormatter
    handler.setFormatter(make(service_name))
    logging.basicConfig(level=level, handlers=[handler])


class TextFormatter(logging.Formatter):
    """For people; the id of the trace is at the end, where there is one."""

    def __init__(self, service_name: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {service_name} %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        line = super().format(record)
        current = trace.get_current_span().get_span_context()
        return f"{line} [trace {current.trace_id:032x}]" if current.is_valid else line


class JsonFormatter(logging.Formatter):
    """For collectors; the fields are those of OpenTelemetry's log data model."""

    def __init__(self, service_name: str) -> None:
        super().__init__()
        self._resource = {"service.name": service_name}

    def format(self, record: logging.LogRecord) -> str:
        """Returns an object on one line, whatever the message holds."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said = {
            "timestamp": f"{moment}.{int(record.msecs):03d}Z",
            "severity_text": record.levelname,
            "body": record.getMessage(),
            "resource": self._resource,
            "scope": record.name,
        }
        if record.exc_info:
            said["exception.stacktrace"] = self.formatException(record.exc_info)
        current = trace.get_current_span().get_span_context()
        if current.is_valid:
            said["trace_id"] = f"{current.trace_id:032x}"
            said["span_id"] = f"{current.span_id:016x}"
            said["trace_flags"] = f"{current.trace_flags:02x}"
        return json.dumps(said, ensure_ascii=False)
