"""The journal on a real file, the event log, and the writer between them."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cogitate.aggregator.event_log import EventLog, JournalWriter
from cogitate.aggregator.journal import Journal, Record
from cogitate.v1 import contemplation_service_pb2 as pb

pytestmark = pytest.mark.unit


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(str(tmp_path / "state" / "journal.db"))
    yield made
    made.close()


def record(id_: str = "c1", *, request_id: str = "", tenant: str = "t", at: int = 1) -> Record:
    return Record(id_, tenant, request_id, b"spec", at, None, 1, None, b"accepted")


def test_what_is_journalled_survives_the_process(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.db")
    first = Journal(path, fsync=True)
    first.accept(record("c1"))
    first.accept(record("c2"))
    first.append([("c1", 2, b"two", None), ("c2", 2, b"end", 77)])
    first.close()
    second = Journal(path)
    assert second.events("c1", 0) == [b"accepted", b"two"]
    assert second.events("c1", 1) == [b"two"]
    [left] = second.unfinished()
    assert (left.id, left.last_event, left.accepted) == ("c1", 2, b"accepted")
    ended = second.get("c2")
    assert ended is not None
    assert (ended.end_ns, ended.ending, ended.last_event) == (77, b"end", 2)
    second.close()


def test_the_file_is_in_wal_mode_and_has_one_owner(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.db")
    journal = Journal(path)
    journal.accept(record())
    assert Path(path + "-wal").stat().st_size > 0
    with pytest.raises(OSError, match="another aggregator uses the journal"):
        Journal(path)
    journal.close()
    Journal(path).close()


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(OSError, match="cannot be used"):
        Journal(str(path))


def test_a_torn_write_at_the_end_of_the_wal_is_ignored(tmp_path: Path) -> None:
    path, copy = tmp_path / "journal.db", tmp_path / "copy.db"
    journal = Journal(str(path))
    journal.accept(record())
    journal.append([("c1", 2, b"two", None)])
    # The process and the last pages die: the log is cut in the middle of the last commit.
    copy.write_bytes(path.read_bytes())
    wal = Path(f"{path}-wal").read_bytes()
    Path(f"{copy}-wal").write_bytes(wal[: len(wal) - 2000])
    journal.close()
    second = Journal(str(copy))
    assert second.events("c1", 0) == [b"accepted"]
    assert second.unfinished()[0].last_event == 1
    second.close()


def test_a_failed_commit_leaves_nothing_of_itself(journal: Journal) -> None:
    journal.accept(record())
    with pytest.raises(sqlite3.IntegrityError):
        journal.append([("c1", 2, b"two", None), ("c1", 2, b"again", 5)])
    assert journal.events("c1", 0) == [b"accepted"]
    known = journal.get("c1")
    assert known is not None
    assert (known.last_event, known.ending) == (1, None)


def test_a_request_id_is_unique_to_its_tenant(journal: Journal) -> None:
    journal.accept(record("c1", request_id="r"))
    journal.accept(record("c2", request_id="r", tenant="other"))
    journal.accept(record("c3"))
    journal.accept(record("c4"))
    with pytest.raises(sqlite3.IntegrityError):
        journal.accept(record("c5", request_id="r"))
    assert journal.events("c5", 0) == []
    found = journal.find_request("t", "r")
    assert found is not None
    assert found.id == "c1"
    assert journal.find_request("nobody", "r") is None


def test_pages_go_through_equal_times(journal: Journal) -> None:
    for number in range(5):
        journal.accept(record(f"c{number}", at=7))
    journal.accept(record("theirs", tenant="other", at=8))
    seen: list[str] = []
    before = (2**63 - 1, "")
    while page := journal.page("t", 2, before):
        seen += [r.id for r in page]
        before = (page[-1].accept_ns, page[-1].id)
    assert seen == ["c4", "c3", "c2", "c1", "c0"]


def test_expired_ones_can_be_deleted(journal: Journal) -> None:
    for id_ in ("old", "new", "running"):
        journal.accept(record(id_))
    journal.append([("old", 2, b"end", 10), ("new", 2, b"end", 20)])
    assert journal.expired(20) == ["old"]
    journal.delete(["old"])
    assert journal.get("old") is None
    assert journal.events("old", 0) == []
    assert journal.events("new", 0)


# -- the event log and the writer ------------------------------------------------------------


def event(kind: str = "deltas") -> pb.ContemplationEvent:
    made = pb.ContemplationEvent()
    getattr(made, kind).SetInParent()
    return made


def started(journal: Journal) -> EventLog:
    log = EventLog("c1")
    log.add(event("accepted"))
    journal.accept(record())
    log.publish(1)
    return log


async def read(log: EventLog, after: int = 0) -> list[int]:
    async with asyncio.timeout(5):
        return [e.event_number async for e in log.read(after)]


def test_times_never_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog("c1")
    for now in (5, 3, 9):
        monkeypatch.setattr("time.time_ns", lambda now=now: now)
        log.add(event())
    assert [e.event_time.ToNanoseconds() for e in log.events] == [5, 5, 9]


async def test_nothing_is_read_before_it_is_published() -> None:
    log = EventLog("c1")
    log.add(event("accepted"))
    reading = asyncio.create_task(read(log))
    await asyncio.sleep(0)
    assert not reading.done()
    log.add(event("failed"))
    log.publish(2)
    assert await reading == [1, 2]
    assert await read(log, 1) == [2]
    assert await read(log, 2) == []


async def test_the_writer_commits_in_groups_and_publishes_after(journal: Journal) -> None:
    log, commits = started(journal), []
    append = journal.append
    journal.append = lambda rows: commits.append(len(rows)) or append(rows)  # type: ignore[method-assign,func-returns-value]
    writer = JournalWriter(journal, 1.0)
    for _ in range(5):
        writer.write(log, event())
    assert log.published == 1
    running = asyncio.create_task(writer.run())
    writer.write(log, event("verdict"))
    assert await read(log) == [1, 2, 3, 4, 5, 6, 7]
    writer.stop()
    await running
    assert commits == [6]
    ended = journal.get("c1")
    assert ended is not None
    assert ended.ending == log.events[-1].SerializeToString()


async def test_stop_writes_what_is_queued(journal: Journal) -> None:
    log, writer = started(journal), JournalWriter(journal, 1.0)
    writer.write(log, event("failed"))
    writer.stop()
    await writer.run()
    assert len(journal.events("c1", 0)) == 2


async def test_a_failing_journal_is_made_up_for(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cogitate.aggregator.event_log.RETRY_S", 0.01)
    log, writer, works = started(journal), JournalWriter(journal, 1.0), journal.append

    def full(rows: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    journal.append = full  # type: ignore[method-assign]
    running = asyncio.create_task(writer.run())
    writer.write(log, event())
    writer.write(log, event("verdict"))
    assert await read(log) == [1, 2, 3]  # from memory
    assert writer.failing
    journal.append = works  # type: ignore[method-assign]
    async with asyncio.timeout(5):
        while writer.failing:
            await asyncio.sleep(0.01)
    assert len(journal.events("c1", 0)) == 3
    writer.stop()
    await running


async def test_a_hanging_journal_holds_nobody_up(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cogitate.aggregator.event_log.RETRY_S", 0.01)
    log, writer, works = started(journal), JournalWriter(journal, 0.05), journal.append
    disk = threading.Event()

    def hangs(rows: list[tuple[str, int, bytes, int | None]]) -> None:
        disk.wait()
        works(rows)

    journal.append = hangs  # type: ignore[method-assign]
    running = asyncio.create_task(writer.run())
    writer.write(log, event())
    await asyncio.sleep(0)
    writer.write(log, event("verdict"))
    assert await read(log) == [1, 2, 3]
    assert writer.failing
    disk.set()
    async with asyncio.timeout(5):
        while writer.failing:
            await asyncio.sleep(0.01)
    assert len(journal.events("c1", 0)) == 3
    writer.stop()
    await running
