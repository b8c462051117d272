"""What came of every asking, kept as JSON lines that are only ever appended to.

An asking is named by what was asked, how, and with which seed, so a run that starts again finds
what it has already. A line that a killed run left half written is dropped; any other line that
cannot be read is an error, for silently leaving results out would change the numbers.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

from cogitate.cli.measure.setting import Setting
from cogitate.cli.measure.statistics import Outcome
from cogitate.evals.question import Question

FILE: Final = "results.jsonl"


class BadResults(ValueError):
    """Raised for a file that holds something else; the message says which line."""


@dataclass(frozen=True)
class Unit:
    """What is asked: the same unit in two settings makes a pair."""

    dataset: str
    question: str
    digest: str
    seed: int


@dataclass(frozen=True)
class Record:
    """One asking and its outcome; `concurrency` is how many questions were in flight."""

    unit: Unit
    setting: Setting
    outcome: Outcome
    concurrency: int = 1

    @property
    def key(self) -> str:
        """Names the asking."""
        return key_of(self.unit, self.setting)

    def to_json(self) -> dict[str, Any]:
        """Returns the record as a line has it."""
        return {
            "key": self.key,
            **asdict(self.unit),
            "concurrency": self.concurrency,
            "setting": self.setting.to_json(),
            "outcome": self.outcome.to_json(),
        }


def unit(question: Question, seed: int) -> Unit:
    """Returns the unit of a question asked with a seed."""
    return Unit(question.dataset, question.id, question.digest, seed)


def key_of(asked: Unit, setting: Setting) -> str:
    """Returns the name of an asking: 16 hex digits."""
    told = json.dumps([asdict(asked), setting.to_json()], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def parse(data: bytes, name: str) -> tuple[list[Record], int]:
    """Returns the records and how many bytes of `data` are whole lines. Raises BadResults."""
    whole = data.rfind(b"\n") + 1
    found = []
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            found.append(_record(json.loads(line)))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise BadResults(f"{name}, line {number} is not a result of `cogitate eval`") from None
    return found, whole


def read(folder: Path) -> list[Record]:
    """Returns the records of a folder that an evaluation wrote. Raises BadResults."""
    path = folder / FILE
    try:
        data = path.read_bytes()
    except OSError:
        raise BadResults(f"there are no results in {folder}") from None
    return parse(data, str(path))[0]


class Results:
    """The records by name, and their file if there is a folder; closed by its `with` block.

    Raises BadResults if the file holds something else, or another process writes to it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._records: dict[str, Record] = {}
        self._file: BinaryIO | None = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found, whole = parse(path.read_bytes(), str(path))
        except BlockingIOError:
            self._file.close()
            raise BadResults(f"another evaluation is writing to {folder}") from None
        except BadResults:
            self._file.close()
            raise
        self._records = {one.key: one for one in found}
        self._file.truncate(whole)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def get(self, key: str) -> Record | None:
        """Returns the record of an asking, or None if it was not asked yet."""
        return self._records.get(key)

    def add(self, record: Record) -> None:
        """Keeps a record, in the file before it returns."""
        self._records[record.key] = record
        if self._file is not None:
            line = json.dumps(record.to_json(), ensure_ascii=False)
            self._file.write(line.encode() + b"\n")
            self._file.flush()


def _record(line: dict[str, Any]) -> Record:
    asked = Unit(*(line[name] for name in ("dataset", "question", "digest", "seed")))
    outcome = Outcome.from_json(line["outcome"])
    return Record(asked, Setting(**line["setting"]), outcome, line["concurrency"])
