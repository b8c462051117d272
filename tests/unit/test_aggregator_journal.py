"""The SQLite journal's file, the event log, and the writer between them."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from cogitate.aggregator import event_log
from cogitate.aggregator.coalesce import MAX_TEXT_BYTES, coalesce
from cogitate.aggregator.event_log import EventLog, JournalWriter
from cogitate.aggregator.journal import JournalError, Ownership, Record, Row
from cogitate.aggregator.sqlite_journal import SqliteJournal
from cogitate.aggregator.wire import Damaged
from cogitate.kit.errors import NotOwner
from cogitate.v1 import contemplation_service_pb2 as pb

pytestmark = pytest.mark.unit


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    made = SqliteJournal(str(tmp_path / "state" / "journal.db"))
    await made.open("here:1")
    yield made
    await made.close()


def record(id_: str = "c1") -> Record:
    return Record(id_, "t", "", b"spec", b"acceptance", 1, event("accepted", 1).SerializeToString())


# -- the file --------------------------------------------------------------------------------


async def test_the_file_is_in_wal_mode(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.db")
    journal = SqliteJournal(path, fsync=True)
    await journal.open("here:1")
    await journal.accept(record())
    assert Path(path + "-wal").stat().st_size > 0
    await journal.close()
    assert [p.name for p in tmp_path.iterdir()] == ["journal.db"]


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(OSError, match="cannot be used"):
        SqliteJournal(str(path))


async def test_a_torn_write_at_the_end_of_the_wal_is_ignored(tmp_path: Path) -> None:
    path, copy = tmp_path / "journal.db", tmp_path / "copy.db"
    journal = SqliteJournal(str(path))
    await journal.open("here:1")
    await journal.accept(record())
    await journal.append([Row("c1", 1, 1, b"input", [(2, b"two")])])
    # The process and the last pages die: the log is cut in the middle of the last commit.
    copy.write_bytes(path.read_bytes())
    wal = Path(f"{path}-wal").read_bytes()
    Path(f"{copy}-wal").write_bytes(wal[: len(wal) - 2000])
    await journal.close()
    second = SqliteJournal(str(copy))
    await second.open("here:2")
    assert len(await second.events("c1", 0, 10)) == 1
    assert await second.entries("c1") == []
    left = await second.get("c1")
    assert left is not None
    assert left.last_event == 1
    await second.close()


async def test_a_failed_commit_leaves_nothing_of_itself(journal: SqliteJournal) -> None:
    await journal.accept(record())
    rows = [Row("c1", 1, number, b"input", [(2, b"two")]) for number in (1, 2)]
    with pytest.raises(JournalError):
        await journal.append(rows)
    assert len(await journal.events("c1", 0, 10)) == 1
    assert await journal.entries("c1") == []


async def test_a_journal_of_the_version_before_is_read_and_its_rest_is_abandoned(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "CREATE TABLE contemplations (id TEXT PRIMARY KEY, tenant TEXT NOT NULL, "
            "request_id TEXT NOT NULL, spec BLOB NOT NULL, accept_ns INTEGER NOT NULL, "
            "end_ns INTEGER, last_event INTEGER NOT NULL, ending BLOB)"
        )
        db.execute("INSERT INTO contemplations VALUES ('old','t','',x'01',5,NULL,1,NULL)")
    journal = SqliteJournal(str(path))
    await journal.open("here:1")
    assert await journal.abandoned() == [("old", 0)]
    old = await journal.get("old")
    assert old is not None
    assert (old.epoch, old.acceptance, old.owner) == (0, b"", "")
    assert (await journal.claim("old", 0)) is not None
    await journal.close()


async def test_owner_files_of_the_dead_are_removed(tmp_path: Path) -> None:
    journal = SqliteJournal(str(tmp_path / "journal.db"))
    await journal.open("here:1")
    (tmp_path / "journal.db.owner.0123").write_text("")
    assert await journal.abandoned() == []
    assert len(list(tmp_path.glob("*.owner.*"))) == 1
    await journal.close()


# -- the event log and the writer ------------------------------------------------------------


def event(kind: str = "deltas", number: int = 0) -> pb.ContemplationEvent:
    made = pb.ContemplationEvent(event_number=number, first_event_number=number)
    getattr(made, kind).SetInParent()
    return made


def text(number: int, *pieces: tuple[int, int, str], attempt: int = 1) -> pb.ContemplationEvent:
    """Deltas: agent, offset and words, one token each."""
    made = event("deltas", number)
    for agent_id, offset, words in pieces:
        made.deltas.deltas.add(
            agent_id=agent_id, attempt=attempt, token_offset=offset,
            token_count=len(words.split()), text=words, logprob_sum=-1.0,
        )  # fmt: skip
    return made


async def nothing(id_: str, after: int, limit: int) -> list[bytes]:
    return []


def put(log: EventLog, writer: JournalWriter, kind: str = "deltas") -> None:
    """Adds the next event, as the only one of its input."""
    made = event(kind, log.last + 1)
    end_ns = 5 if kind in event_log.ENDINGS else None
    row = Row("c1", 1, log.last, b"input", [(made.event_number, made.SerializeToString())], end_ns)
    writer.write(log, row, [made])


async def started(journal: SqliteJournal) -> EventLog:
    log = EventLog("c1", journal.events)
    log.add(event("accepted", 1))
    await journal.accept(record())
    log.publish(1)
    return log


async def read(log: EventLog, after: int = 0) -> list[int]:
    async with asyncio.timeout(5):
        return [e.event_number async for e in log.read(after)]


async def test_nothing_is_read_before_it_is_published() -> None:
    log = EventLog("c1", nothing)
    log.add(event("accepted", 1))
    reading = asyncio.create_task(read(log))
    await asyncio.sleep(0)
    assert not reading.done()
    log.add(event("failed", 2))
    log.publish(2)
    assert await reading == [1, 2]
    assert await read(log, 1) == [2]
    assert await read(log, 2) == []


async def test_the_writer_commits_in_groups_and_publishes_after(journal: SqliteJournal) -> None:
    log, commits = await started(journal), []
    append = journal.append

    async def counted(rows: Sequence[Row]) -> frozenset[Ownership]:
        commits.append(len(rows))
        return await append(rows)

    journal.append = counted  # type: ignore[method-assign]
    writer = JournalWriter(journal, 1.0)
    for _ in range(5):
        put(log, writer)
    assert log.published == 1
    running = asyncio.create_task(writer.run())
    put(log, writer, "verdict")
    assert await read(log) == [1, 2, 3, 4, 5, 6, 7]
    writer.stop()
    await running
    assert commits == [6]
    ended = await journal.get("c1")
    assert ended is not None
    assert ended.ending == log.held[-1].SerializeToString()
    assert len(await journal.entries("c1")) == 6


async def test_commits_keep_their_distance_and_endings_do_not_wait(
    journal: SqliteJournal,
) -> None:
    log, began = await started(journal), []
    append = journal.append

    async def timed(rows: Sequence[Row]) -> frozenset[Ownership]:
        began.append((time.monotonic(), len(rows)))
        return await append(rows)

    journal.append = timed  # type: ignore[method-assign]
    writer = JournalWriter(journal, 5.0, interval_s=0.2)
    running = asyncio.create_task(writer.run())
    for _ in range(20):
        put(log, writer)
        await asyncio.sleep(0.005)
    async with asyncio.timeout(5):
        while log.published < log.last:
            await asyncio.sleep(0.005)
    assert began[0][1] == 1, "the first does not wait"
    assert began[1][0] - began[0][0] >= 0.19
    writer._interval_s = 60.0
    put(log, writer)
    put(log, writer, "verdict")
    async with asyncio.timeout(5):
        assert (await read(log))[-1] == log.last
    writer.stop()
    await running


async def test_the_first_text_does_not_wait_and_the_next_does(journal: SqliteJournal) -> None:
    log = await started(journal)
    writer = JournalWriter(journal, 5.0, interval_s=60.0)
    running = asyncio.create_task(writer.run())
    for kind in ("placed", "prefilled", "deltas"):
        put(log, writer, kind)
        await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        while log.published < log.last:
            await asyncio.sleep(0.005)
    put(log, writer)
    await asyncio.sleep(0.05)
    assert log.published == log.last - 1
    writer.stop()
    await running


async def test_inputs_without_events_wait_for_the_next_commit(journal: SqliteJournal) -> None:
    log = await started(journal)
    writer = JournalWriter(journal, 1.0)
    running = asyncio.create_task(writer.run())
    writer.write(log, Row("c1", 1, 1, b"step"), [])
    await asyncio.sleep(0.05)
    assert await journal.entries("c1") == []
    made = event("failed", 2)
    writer.write(log, Row("c1", 1, 2, b"end", [(2, made.SerializeToString())], 5), [made])
    assert await read(log) == [1, 2]
    assert await journal.entries("c1") == [b"step", b"end"]
    writer.stop()
    await running


async def test_stop_writes_what_is_queued(journal: SqliteJournal) -> None:
    log, writer = await started(journal), JournalWriter(journal, 1.0)
    put(log, writer, "failed")
    writer.stop()
    await writer.run()
    assert len(await journal.events("c1", 0, 10)) == 2


async def full(rows: object) -> frozenset[Ownership]:
    raise JournalError("database or disk is full")


async def until_written(writer: JournalWriter) -> None:
    async with asyncio.timeout(5):
        while writer.failing:
            await asyncio.sleep(0.01)


async def test_a_failing_journal_is_made_up_for(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "RETRY_S", 0.01)
    log, writer, works = await started(journal), JournalWriter(journal, 1.0), journal.append
    journal.append = full  # type: ignore[method-assign]
    running = asyncio.create_task(writer.run())
    put(log, writer)
    put(log, writer, "verdict")
    assert await read(log) == [1, 2, 3]  # from memory
    assert writer.failing
    journal.append = works  # type: ignore[method-assign]
    await until_written(writer)
    assert len(await journal.events("c1", 0, 10)) == 3
    writer.stop()
    await running


async def test_where_another_may_take_over_nothing_is_shown_before_it_is_written(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "RETRY_S", 0.01)
    log, writer, works = await started(journal), JournalWriter(journal, 1.0), journal.append
    journal.append, journal.shared = full, True  # type: ignore[method-assign]
    running = asyncio.create_task(writer.run())
    put(log, writer, "verdict")
    await asyncio.sleep(0.05)
    assert writer.failing
    assert log.published == 1
    journal.append = works  # type: ignore[method-assign]
    assert await read(log) == [1, 2]
    writer.stop()
    await running


async def test_a_hanging_journal_holds_nobody_up(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "RETRY_S", 0.01)
    log, writer, works = await started(journal), JournalWriter(journal, 0.05), journal.append
    disk = asyncio.Event()

    async def hangs(rows: Sequence[Row]) -> frozenset[Ownership]:
        await disk.wait()
        return await works(rows)

    journal.append = hangs  # type: ignore[method-assign]
    running = asyncio.create_task(writer.run())
    put(log, writer)
    await asyncio.sleep(0)
    put(log, writer, "verdict")
    assert await read(log) == [1, 2, 3]
    assert writer.failing
    disk.set()
    await until_written(writer)
    assert len(await journal.events("c1", 0, 10)) == 3
    writer.stop()
    await running


async def test_a_fenced_contemplation_sends_its_readers_away(
    journal: SqliteJournal, tmp_path: Path
) -> None:
    log, gone = await started(journal), []
    writer = JournalWriter(journal, 1.0, gone.append)
    other = SqliteJournal(str(tmp_path / "state" / "journal.db"))
    await other.open("here:2")
    assert await other.claim("c1", 1) is not None
    running = asyncio.create_task(writer.run())
    reading = asyncio.create_task(read(log))
    put(log, writer, "verdict")
    with pytest.raises(NotOwner):
        await reading
    assert gone == [("c1", 1)]
    assert len(await other.events("c1", 0, 10)) == 1
    writer.stop()
    await running
    await other.close()


# -- memory and slow readers -----------------------------------------------------------------


async def test_memory_of_a_log_is_bounded_and_old_events_come_from_the_journal(
    journal: SqliteJournal,
) -> None:
    log, writer = await started(journal), JournalWriter(journal, 1.0)
    running = asyncio.create_task(writer.run())
    for _ in range(5):
        for _ in range(event_log.MAX_HELD):
            put(log, writer, "ballot_cast")
        async with asyncio.timeout(5):
            while log.published < log.last:
                await asyncio.sleep(0.001)
        assert len(log.held) == event_log.MAX_HELD
    put(log, writer, "verdict")
    assert await read(log) == list(range(1, log.last + 1))
    assert await read(log, 17) == list(range(18, log.last + 1))
    writer.stop()
    await running


async def test_an_event_that_is_missing_in_the_journal_is_told(journal: SqliteJournal) -> None:
    log = EventLog.ended_with("c1", nothing, 7)
    with pytest.raises(Damaged):
        await read(log)


async def test_a_reader_that_fell_behind_gets_text_coalesced_and_every_decision() -> None:
    log = EventLog("c1", nothing)
    log.add(event("accepted", 1))
    log.publish(1, written=False)
    reader = log.read(0)
    assert (await anext(reader)).event_number == 1
    waiting = asyncio.create_task(anext(reader))
    await asyncio.sleep(0)
    log.add(text(2, (0, 2, "w")))
    log.publish(2, written=False)
    assert (await waiting).event_number == 2
    for number in range(3, 102):  # meanwhile it stalls
        log.add(
            event("ballot_cast", number) if number % 50 == 0 else text(number, (0, number, "w"))
        )
    log.add(event("verdict", 102))
    log.publish(102, written=False)
    events = [e async for e in reader]
    kinds = [e.WhichOneof("event") for e in events]
    assert kinds == ["deltas", "ballot_cast", "deltas", "ballot_cast", "deltas", "verdict"]
    ranges = [(e.first_event_number, e.event_number) for e in events]
    assert ranges == [(3, 49), (50, 50), (51, 99), (100, 100), (101, 101), (102, 102)]
    assert [d.token_count for d in events[0].deltas.deltas] == [47]
    assert [e.event_number async for e in log.read(0)] == list(range(1, 103)), "what is read later"


def test_coalescing_keeps_each_agents_text_in_order() -> None:
    parts = [
        text(2, (0, 0, "a "), (1, 0, "x ")),
        text(3, (1, 1, "y ")),
        text(4, (0, 1, "b c "), (1, 5, "moved")),  # a gap stays one
        text(5, (0, 3, "again"), attempt=2),
    ]
    [merged] = coalesce(parts)
    assert (merged.first_event_number, merged.event_number) == (2, 5)
    found = [(d.agent_id, d.token_offset, d.token_count, d.text) for d in merged.deltas.deltas]
    assert found == [
        (0, 0, 3, "a b c "), (1, 0, 2, "x y "), (1, 5, 1, "moved"), (0, 3, 1, "again"),
    ]  # fmt: skip
    assert parts[0].event_number == 2, "what is shared with other readers is not changed"


def test_a_coalesced_message_is_bounded() -> None:
    piece = "x" * 10_000
    merged = list(coalesce(text(n, (0, n, piece)) for n in range(1, 41)))
    assert [merged[0].first_event_number, merged[-1].event_number] == [1, 40]
    assert max(m.ByteSize() for m in merged) < MAX_TEXT_BYTES + 2 * len(piece)
    assert sum(len(d.text) for m in merged for d in m.deltas.deltas) == 40 * len(piece)


@pytest.mark.parametrize("_", range(8))
def test_aggregators_that_start_together_all_open_a_new_journal(tmp_path: Path, _: int) -> None:
    gate = threading.Barrier(6)

    def start(_: int) -> SqliteJournal:
        gate.wait()
        return SqliteJournal(str(tmp_path / "journal.sqlite"))

    with ThreadPoolExecutor(6) as pool:
        journals = list(pool.map(start, range(6)))
    for journal in journals:
        asyncio.run(journal.close())
