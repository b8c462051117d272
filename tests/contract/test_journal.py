"""What every journal promises, the same suite for each implementation."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cogitate.aggregator.journal import Journal, JournalError, Known, Record, Row
from cogitate.aggregator.sqlite_journal import SqliteJournal

from tests.fakes.nats_server import nats_process, nats_server

pytestmark = pytest.mark.contract

Open = Callable[[], Journal]
FIRST = (2**63 - 1, "")
# Long beside what a busy machine may take between two beats.
HUNG_S = 1.5


@contextmanager
def sqlite(folder: Path) -> Iterator[Open]:
    yield lambda: SqliteJournal(str(folder / "state" / "journal.db"), hung_s=HUNG_S)


@contextmanager
def jetstream(folder: Path) -> Iterator[Open]:
    module = pytest.importorskip("cogitate.aggregator.nats_journal", reason="no nats-py")
    with nats_server(folder) as url:
        yield lambda: module.NatsJournal(url, hung_s=HUNG_S)


@pytest.fixture(params=[sqlite, jetstream], ids=lambda make: make.__name__)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens journals on one store, each a process of its own as far as it knows."""
    with request.param(tmp_path) as made:
        yield made


@asynccontextmanager
async def opened(store: Open, count: int = 1) -> AsyncIterator[list[Journal]]:
    async with AsyncExitStack() as stack:
        journals = []
        for number in range(count):
            journal = store()
            await journal.open(f"host:{number}")
            stack.push_async_callback(journal.close)
            journals.append(journal)
        yield journals


def record(id_: str = "c1", *, request_id: str = "", tenant: str = "t", at: int = 1) -> Record:
    return Record(
        id=id_,
        tenant=tenant,
        request_id=request_id,
        spec=b"spec",
        acceptance=b"acceptance",
        accept_ns=at,
        accepted=b"accepted",
    )


def row(id_: str = "c1", number: int = 2, *, epoch: int = 1, end_ns: int | None = None) -> Row:
    events = [(number, f"event {number}".encode())]
    return Row(id_, epoch, number - 1, f"input {number - 1}".encode(), events, end_ns)


async def abandoned(journal: Journal, *wanted: tuple[str, int]) -> None:
    """Waits until exactly these are abandoned. Who watches others beats."""
    async with asyncio.timeout(5):
        while sorted(await journal.abandoned()) != list(wanted):
            await journal.beat()
            await asyncio.sleep(0.02)


async def test_what_is_journalled_survives_the_process(store: Open) -> None:
    async with opened(store) as [first]:
        await first.accept(record("c1"))
        await first.accept(record("c2", at=5))
        assert await first.append([row("c1"), row("c2", end_ns=77)]) == frozenset()
        assert await first.append([Row("c1", 1, 2, b"input 2")]) == frozenset()
    async with opened(store) as [second]:
        assert await second.events("c1", 0, 10) == [b"accepted", b"event 2"]
        assert await second.events("c1", 1, 10) == [b"event 2"]
        assert await second.events("c1", 0, 1) == [b"accepted"]
        assert await second.entries("c1") == [b"input 1", b"input 2"]
        running, ended = await second.get("c1"), await second.get("c2")
        assert running is not None
        assert ended is not None
        assert (running.last_event, running.ending, running.end_ns) == (2, None, None)
        assert (running.spec, running.acceptance, running.accepted) == (
            b"spec", b"acceptance", b"accepted",
        )  # fmt: skip
        assert (ended.end_ns, ended.ending, ended.last_event) == (77, b"event 2", 2)
        assert (ended.accept_ns, ended.epoch) == (5, 1)
        assert await second.get("nobody") is None


async def test_a_request_id_is_unique_to_its_tenant(store: Open) -> None:
    async with opened(store) as [journal]:
        await journal.accept(record("c1", request_id="r"))
        await journal.accept(record("c2", request_id="r", tenant="other"))
        await journal.accept(record("c3"))
        await journal.accept(record("c4"))
        with pytest.raises(Known):
            await journal.accept(record("c5", request_id="r"))
        assert await journal.get("c5") is None
        assert await journal.events("c5", 0, 10) == []
        found = await journal.find_request("t", "r")
        assert found is not None
        assert found.id == "c1"
        assert await journal.find_request("nobody", "r") is None


async def test_of_two_that_accept_a_request_at_once_one_is_told(store: Open) -> None:
    async with opened(store, 2) as journals:
        results = await asyncio.gather(
            *(j.accept(record(f"c{i}", request_id="r")) for i, j in enumerate(journals)),
            return_exceptions=True,
        )
        assert sorted(type(result).__name__ for result in results) == ["Known", "NoneType"]


async def test_pages_go_through_equal_times(store: Open) -> None:
    async with opened(store) as [journal]:
        for number in range(5):
            await journal.accept(record(f"c{number}", at=7))
        await journal.accept(record("theirs", tenant="other", at=8))
        seen: list[str] = []
        before = FIRST
        while page := await journal.page("t", 2, before):
            seen += [r.id for r in page]
            before = (page[-1].accept_ns, page[-1].id)
        assert seen == ["c4", "c3", "c2", "c1", "c0"]


async def test_expired_ones_can_be_deleted(store: Open) -> None:
    async with opened(store) as [journal]:
        for id_ in ("old", "new", "running"):
            await journal.accept(record(id_, request_id=id_))
        await journal.append([row("old", end_ns=10), row("new", end_ns=20)])
        assert await journal.expired(20) == ["old"]
        await journal.delete(["old"])
        assert await journal.get("old") is None
        assert await journal.find_request("t", "old") is None
        assert await journal.events("old", 0, 10) == []
        assert await journal.entries("old") == []
        assert len(await journal.events("new", 0, 10)) == 2
        assert [r.id for r in await journal.page("t", 10, FIRST)] == ["running", "new"]


async def test_nothing_follows_an_ending(store: Open) -> None:
    async with opened(store) as [journal]:
        await journal.accept(record())
        await journal.append([row(end_ns=5)])
        assert await journal.append([row(number=3)]) == {("c1", 1)}
        assert len(await journal.events("c1", 0, 10)) == 2


# -- owners ----------------------------------------------------------------------------------


async def test_who_lives_keeps_what_is_his(store: Open) -> None:
    async with opened(store, 2) as [owner, other]:
        await owner.accept(record())
        for _ in range(20):
            await owner.beat()
            assert await other.abandoned() == []
            assert await other.claim("c1", 7) is None
            await asyncio.sleep(0.03)
        assert other.shared
        assert await owner.abandoned() == []
        [mine] = await owner.page("t", 1, FIRST)
        assert await other.address_of(mine.owner) == "host:0"
        assert await other.address_of("nobody") == ""


async def test_what_the_dead_leave_is_claimed_by_one(store: Open) -> None:
    async with opened(store, 2) as [first, second]:
        async with opened(store) as [owner]:
            await owner.accept(record("c1"))
            await owner.accept(record("c2"))
            await owner.append([row("c1"), row("c2", end_ns=9)])
        await abandoned(first, ("c1", 1))
        await abandoned(second, ("c1", 1))
        claims = await asyncio.gather(first.claim("c1", 1), second.claim("c1", 1))
        [claimed] = [claim for claim in claims if claim is not None]
        assert (claimed.epoch, claimed.last_event, claimed.id) == (2, 2, "c1")
        winner = first if claims[0] is not None else second
        loser = second if winner is first else first
        await abandoned(first)
        await abandoned(second)
        assert await loser.append([row("c1", 3, epoch=2)]) == {("c1", 2)}
        assert await winner.append([row("c1", 3, epoch=2)]) == frozenset()
        assert await winner.entries("c1") == [b"input 1", b"input 2"]
        assert await winner.claim("c2", 1) is None


async def test_who_was_taken_for_dead_writes_nothing_more(store: Open) -> None:
    """A process that hung and comes back."""
    async with opened(store, 2) as [frozen, other]:
        await frozen.accept(record("c1"))
        await frozen.accept(record("c2"))
        await frozen.append([row("c1")])
        await other.beat()
        await abandoned(other, ("c1", 1), ("c2", 1))  # it has not beaten for long enough
        claimed = await other.claim("c1", 1)
        assert claimed is not None
        assert await frozen.append([row("c1", 3), row("c2", 2)]) == {("c1", 1)}
        assert len(await other.events("c1", 0, 10)) == 2
        assert len(await other.events("c2", 0, 10)) == 2
        assert await other.append([row("c1", 3, epoch=2, end_ns=4)]) == frozenset()
        assert await frozen.append([row("c1", 4)]) == {("c1", 1)}


async def test_who_gets_back_what_it_lost_does_not_mix_the_two_up(store: Open) -> None:
    async with opened(store) as [first]:
        await first.accept(record())
        async with opened(store) as [second]:
            assert await second.claim("c1", 1) is not None
            await second.append([row("c1", 2, epoch=2)])
        claimed = await first.claim("c1", 2)
        assert claimed is not None
        assert (claimed.epoch, claimed.last_event) == (3, 2)
        rows = [row("c1", 2), row("c1", 3, epoch=3)]
        assert await first.append(rows) == {("c1", 1)}
        assert await first.entries("c1") == [b"input 1", b"input 2"]


async def test_an_owner_that_closes_leaves_what_it_had_at_once(store: Open) -> None:
    async with opened(store) as [other]:
        async with opened(store) as [owner]:
            await owner.accept(record())
            assert await other.abandoned() == []
        async with asyncio.timeout(2):
            while await other.abandoned() != [("c1", 1)]:
                await asyncio.sleep(0.02)


async def test_a_nats_server_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("cogitate.aggregator.nats_journal", reason="no nats-py")
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.3)
    with pytest.raises(OSError, match="cannot be used"):
        await module.NatsJournal("nats://127.0.0.1:1").open("here:1")


async def test_what_does_not_fit_one_message_of_nats_goes_in_several(tmp_path: Path) -> None:
    module = pytest.importorskip("cogitate.aggregator.nats_journal", reason="no nats-py")
    big = b"x" * 300_000
    with nats_server(tmp_path) as url:
        async with opened(lambda: module.NatsJournal(url)) as [journal]:
            await journal.accept(record())
            rows = [
                Row("c1", 1, n, big, [(n + 1, big)], 9 if n == 5 else None) for n in range(1, 6)
            ]
            assert await journal.append(rows) == frozenset()
            assert await journal.entries("c1") == [big] * 5
            assert await journal.events("c1", 1, 10) == [big] * 5
            ended = await journal.get("c1")
            assert ended is not None
            assert (ended.last_event, ended.end_ns) == (6, 9)
            with pytest.raises(JournalError):  # more than the server takes at once
                await journal.accept(record("c2"))
                await journal.append([Row("c2", 1, 1, b"x" * 2_000_000, [(2, b"e")])])


async def test_what_was_on_its_way_when_nats_restarted_is_written_once(tmp_path: Path) -> None:
    module = pytest.importorskip("cogitate.aggregator.nats_journal", reason="no nats-py")
    with nats_process(tmp_path) as server:
        async with opened(lambda: module.NatsJournal(server.url)) as [journal]:
            await journal.accept(record())
            server.process.send_signal(signal.SIGSTOP)  # so that the answer never comes
            writing = asyncio.create_task(journal.append([row()]))
            await asyncio.sleep(0.1)
            server.kill()
            await asyncio.to_thread(server.start)
            assert await writing == frozenset()
            assert await journal.append([row(number=3)]) == frozenset()
            assert await journal.events("c1", 0, 10) == [b"accepted", b"event 2", b"event 3"]


async def test_an_acceptance_whose_answer_was_lost_is_accepted(tmp_path: Path) -> None:
    module = pytest.importorskip("cogitate.aggregator.nats_journal", reason="no nats-py")
    with nats_server(tmp_path) as url:
        async with opened(lambda: module.NatsJournal(url)) as [made]:
            journal: Any = made
            publish = journal._publish

            async def lost(*arguments: Any) -> None:
                journal._publish = publish
                await publish(*arguments)
                await journal._reconnected()
                await asyncio.sleep(60)

            journal._publish = lost
            await journal.accept(record(request_id="r"))
            assert await journal.append([row()]) == frozenset()
            with pytest.raises(Known):
                await journal.accept(record("c2", request_id="r"))


async def test_who_hears_nobody_takes_nobody_for_dead(tmp_path: Path) -> None:
    module = pytest.importorskip("cogitate.aggregator.nats_journal", reason="no nats-py")

    async def beat(journal: Journal, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    with contextlib.suppress(JournalError):
                        await journal.beat()
                    await asyncio.sleep(0.05)

    with nats_process(tmp_path) as server:
        make = lambda: module.NatsJournal(server.url, hung_s=HUNG_S)  # noqa: E731
        async with opened(make, 2) as [owner, other]:
            await owner.accept(record())
            await beat(other, 0.2)
            server.process.send_signal(signal.SIGSTOP)
            await asyncio.gather(beat(owner, 2 * HUNG_S), beat(other, 2 * HUNG_S))
            assert await other.abandoned() == []
            assert other.shared  # so it shows nothing that is not written
            server.process.send_signal(signal.SIGCONT)
            await asyncio.gather(beat(owner, HUNG_S), beat(other, HUNG_S))
            assert await other.abandoned() == []
            # It hears again: who falls silent now is found.
            await abandoned(other, ("c1", 1))


@pytest.mark.parametrize("fails", [False, True])
async def test_who_is_cancelled_as_the_answer_comes_ends(fails: bool) -> None:
    module = pytest.importorskip("cogitate.aggregator.nats_journal", reason="no nats-py")
    answer = asyncio.get_running_loop().create_future()

    class Owners:
        async def put(self, *_: Any) -> None:
            await asyncio.wait_for(answer, 60)  # as the client library waits

    journal = module.NatsJournal("nats://nobody")
    journal._kv["owners"] = Owners()
    beating = asyncio.create_task(journal.beat())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if fails:
        answer.set_exception(TimeoutError())
    else:
        answer.set_result(None)
    beating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beating
