"""Lines of logs: one a record, whatever it holds."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from cogitate.kit import logs

pytestmark = pytest.mark.unit


def record(message: str, *, broken: bool = False) -> logging.LogRecord:
    about = None
    if broken:
        try:
            raise KeyError("lost")
        except KeyError:
            about = sys.exc_info()
    made = logging.LogRecord("cogitate.x", logging.WARNING, "x.py", 1, message, (), about)
    made.created, made.msecs = 1_000_000_000.25, 250.0
    return made


@pytest.mark.parametrize("message", ["plain", 'a "quoted" one', "two\nlines", "\u2028\x00é"])
def test_json_is_one_line_and_gives_the_message_back(message: str) -> None:
    line = logs.JsonFormatter("router").format(record(message))
    assert "\n" not in line
    assert json.loads(line) == {
        "timestamp": "2001-09-09T01:46:40.250Z",
        "severity_text": "WARNING",
        "body": message,
        "resource": {"service.name": "router"},
        "scope": "cogitate.x",
    }


def test_json_holds_the_stack_of_an_exception() -> None:
    said = json.loads(logs.JsonFormatter("router").format(record("broken", broken=True)))
    assert said["exception.stacktrace"].endswith("KeyError: 'lost'")


def test_text_outside_of_any_trace_names_none() -> None:
    line = logs.TextFormatter("router").format(record("plain"))
    assert line.endswith("WARNING router cogitate.x: plain")
