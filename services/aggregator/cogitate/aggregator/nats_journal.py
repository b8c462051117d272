"""The journal in NATS JetStream, for aggregators on several machines.

One stream holds everything, a subject a contemplation, a message a write. The server refuses a
message whose writer does not know the newest one of its subject: that is the fence. A claim is a
message, too, so whoever wrote before it is refused from then on. Beside the stream there are
key-value buckets: who lives, what runs, request ids, and the list of each tenant.

An owner that dies is known by its silence only (``nats_peers``).
"""

from __future__ import annotations

import asyncio
import base64
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import nats
from cogitate.aggregator.journal import JournalError, Known, Ownership, Record, Row
from cogitate.aggregator.nats_peers import Peers
from cogitate.kit.tasks import Supervisor
from cogitate.v1 import journal_pb2 as pb
from google.protobuf.message import DecodeError
from nats.js import api
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError, NotFoundError

logger = logging.getLogger(__name__)

T = TypeVar("T")

STREAM: Final = "COGITATE_JOURNAL"
SUBJECT: Final = "cogitate.journal."
BUCKETS: Final = ("owners", "running", "requests", "list")
WRONG_LAST_SEQUENCE: Final = 10071
TIMEOUT_S: Final = 2.0
CONNECT_TIMEOUT_S: Final = 10.0
# A server that fell silent is left after three of these, and dialled anew. A connection through a
# network that was cut would stay silent after it is mended, for as long as it had been cut.
PING_INTERVAL_S: Final = 1
# Rows of one message; the server's limit is 1 MB unless it is told otherwise.
MESSAGE_BYTES: Final = 512 * 1024


@dataclass(slots=True)
class _Head:
    """The end of a subject as this owner wrote it."""

    epoch: int
    stream_sequence: int
    input_offset: int
    last_event: int
    list_key: str = ""  # of those accepted here; the record of others is read for it


class NatsJournal:
    """Safe to use from several tasks."""

    def __init__(self, url: str, *, hung_s: float = 5.0, replicas: int = 1) -> None:
        """Connects on ``open``. ``replicas`` is how many servers keep each message."""
        self._url, self._replicas = url, replicas
        self.owner_id = uuid.uuid4().hex
        self._address = ""
        self._heads: dict[str, _Head] = {}
        self._peers = Peers(hung_s)
        self._running: dict[str, tuple[str, int]] = {}  # owner and epoch, by contemplation
        self._tasks = Supervisor()
        self._again = asyncio.Event()  # of this connection: set once there is a newer one
        self._nats: Any = None
        self._js: Any = None
        self._kv: dict[str, Any] = {}

    @property
    def shared(self) -> bool:
        return self._peers.any_lives()

    async def open(self, address: str) -> None:
        self._address = address
        try:
            # Left to itself it would try for ever, at the start too.
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                self._nats = await nats.connect(
                    self._url, max_reconnect_attempts=-1, reconnect_time_wait=0.1,
                    connect_timeout=1, ping_interval=PING_INTERVAL_S, max_outstanding_pings=2,
                    error_cb=_on_error, reconnected_cb=self._reconnected,
                )  # fmt: skip
            self._js = self._nats.jetstream(timeout=TIMEOUT_S)
            await self._js.add_stream(
                name=STREAM, subjects=[f"{SUBJECT}*"], num_replicas=self._replicas,
                allow_direct=True, storage=api.StorageType.FILE,
            )  # fmt: skip
            for name in BUCKETS:
                config = api.KeyValueConfig(bucket=f"cogitate-{name}", replicas=self._replicas)
                self._kv[name] = await self._js.create_key_value(config)
            await self.beat()
            await self._follow("owners", self._owner_changed)
            await self._follow("running", self._running_changed)
        except (nats.errors.Error, OSError, JournalError) as error:
            await self._disconnect()
            why = str(error) or type(error).__name__
            raise OSError(f"the journal {self._url} cannot be used: {why}") from None

    async def close(self) -> None:
        try:
            with _failing():
                await self._kv["owners"].delete(self.owner_id)
        except (JournalError, KeyError):
            pass  # its silence says the same
        await self._tasks.stop()
        await self._disconnect()

    async def _disconnect(self) -> None:
        if self._nats is not None:
            await self._nats.close()

    async def _reconnected(self) -> None:
        self._again.set()
        self._again = asyncio.Event()

    async def _surely(self, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Makes an attempt, anew when its answer was lost with the connection."""
        while True:
            trying = asyncio.create_task(attempt(), name="attempt")
            renewed = asyncio.create_task(self._again.wait(), name="renewed")
            try:
                await asyncio.wait((trying, renewed), return_when=asyncio.FIRST_COMPLETED)
                if trying.done():
                    return trying.result()
            finally:
                for task in (trying, renewed):
                    task.cancel()
                await asyncio.gather(trying, renewed, return_exceptions=True)

    # -- who lives, what runs -----------------------------------------------------------------

    async def _follow(self, bucket: str, changed: Callable[[Any], None]) -> None:
        """Reads a bucket, then goes on following it."""
        watcher = await self._kv[bucket].watchall()
        while (entry := await watcher.updates(timeout=TIMEOUT_S)) is not None:
            changed(entry)

        async def follow() -> None:
            try:
                async for entry in watcher:
                    if entry is not None:
                        changed(entry)
            finally:
                await watcher.stop()

        self._tasks.spawn(follow(), name=f"follow {bucket}")

    def _owner_changed(self, entry: Any) -> None:
        if entry.key == self.owner_id:
            self._peers.heard_own()
        elif entry.value is None or entry.operation is not None:
            self._peers.heard(entry.key, "")
        else:
            self._peers.heard(entry.key, entry.value.decode())

    def _running_changed(self, entry: Any) -> None:
        if entry.value is None or entry.operation is not None:
            self._running.pop(entry.key, None)
            return
        owner, _, epoch = entry.value.decode().partition(" ")
        self._running[entry.key] = (owner, int(epoch))

    async def beat(self) -> None:
        with _failing():
            await self._kv["owners"].put(self.owner_id, self._address.encode())

    async def abandoned(self) -> list[Ownership]:
        others = {owner for owner, _ in self._running.values()} - {self.owner_id}
        dead = {owner for owner in others if self._peers.is_dead(owner)}
        return [(id_, epoch) for id_, (owner, epoch) in self._running.items() if owner in dead]

    async def claim(self, id_: str, epoch: int) -> Record | None:
        with _failing():
            found = await self._last(id_)
            if found is None or found[1].HasField("end_time"):
                # It ended, or was never accepted, and its owner died before it could say so.
                self._running.pop(id_, None)
                await self._kv["running"].delete(id_)
                return None
            sequence, last = found
            if last.epoch != epoch:
                await self._note_running(id_, last.owner, last.epoch)
                return None
            claim = pb.JournalBatch(
                owner=self.owner_id, epoch=epoch + 1, last_event_number=last.last_event_number
            )
            written = await self._publish(id_, claim, sequence)
            if written is None:
                return None
            self._heads[id_] = _Head(epoch + 1, written, 0, last.last_event_number)
            await self._note_running(id_, self.owner_id, epoch + 1)
            return await self.get(id_)

    async def _note_running(self, id_: str, owner: str, epoch: int) -> None:
        self._running[id_] = (owner, epoch)
        await self._kv["running"].put(id_, f"{owner} {epoch}".encode())

    async def address_of(self, owner: str) -> str:
        if owner == self.owner_id:
            return self._address
        return self._peers.address_of(owner)

    # -- writing ------------------------------------------------------------------------------

    async def accept(self, record: Record) -> None:
        await self._surely(partial(self._accept, record))

    async def _accept(self, record: Record) -> None:
        with _failing():
            if record.request_id:
                await self._take_request(record)
            await self._note_running(record.id, self.owner_id, record.epoch)
            head = pb.JournalHead(
                tenant=record.tenant,
                request_id=record.request_id,
                spec=record.spec,
                acceptance=record.acceptance,
                accepted=record.accepted,
            )
            head.accept_time.FromNanoseconds(record.accept_ns)
            batch = pb.JournalBatch(
                owner=self.owner_id, epoch=record.epoch, head=head, last_event_number=1
            )
            sequence = await self._publish(record.id, batch, 0)
            if sequence is None:
                raise Known(record.id)
            self._heads[record.id] = _Head(record.epoch, sequence, 0, 1, _list_key(record))
            await self._kv["list"].put(_list_key(record), b"")

    async def _take_request(self, record: Record) -> None:
        """Makes the request id this contemplation's. Raises Known."""
        requests, key = self._kv["requests"], _key(record.tenant, record.request_id)
        try:
            await requests.create(key, record.id.encode())
        except KeyWrongLastSequenceError:
            entry = await requests.get(key)
            if entry.value.decode() == record.id:
                return  # by an earlier try, whose answer was lost
            if await self.get(entry.value.decode()) is not None:
                raise Known(record.id) from None
            # Whoever took it died before it had accepted anything.
            await requests.update(key, record.id.encode(), last=entry.revision)

    async def append(self, rows: Sequence[Row]) -> frozenset[Ownership]:
        groups: dict[Ownership, list[Row]] = {}
        for row in rows:
            groups.setdefault(row.ownership, []).append(row)
        with _failing():
            fenced = await asyncio.gather(*(self._append(*key, of) for key, of in groups.items()))
        return frozenset(key for key, refused in zip(groups, fenced, strict=True) if refused)

    async def _append(self, id_: str, epoch: int, rows: list[Row]) -> bool:
        """Writes what is not written yet; says whether it was refused."""
        head = self._heads.get(id_)
        if head is None or head.epoch != epoch:
            return True
        for part in _parts([row for row in rows if not _is_written(row, head)]):
            batch = pb.JournalBatch(owner=self.owner_id, epoch=epoch)
            for row in part:
                batch.rows.add(
                    input_offset=row.sequence,
                    input=row.entry,
                    first_event_number=row.events[0][0] if row.events else 0,
                    events=[event for _, event in row.events],
                )
            numbers = [row.events[-1][0] for row in part if row.events]
            batch.last_event_number = max([head.last_event, *numbers])
            end_ns = part[-1].end_ns
            if end_ns is not None:
                batch.end_time.FromNanoseconds(end_ns)
            sequence = await self._surely(partial(self._publish, id_, batch, head.stream_sequence))
            if sequence is None:
                self._heads.pop(id_, None)
                return True
            head.stream_sequence, head.last_event = sequence, batch.last_event_number
            head.input_offset = part[-1].sequence
            if end_ns is not None:
                await self._surely(partial(self._ended, id_, head.list_key, batch))
                return False
        return False

    async def _ended(self, id_: str, list_key: str, batch: pb.JournalBatch) -> None:
        """Lists it as ended, then has nobody look after it: both on their way at once, in order."""
        self._heads.pop(id_, None)
        if not list_key and (record := await self.get(id_)) is not None:
            list_key = _list_key(record)
        notes: list[Awaitable[Any]] = []
        if list_key:
            listed = pb.JournalListed(end_time=batch.end_time)
            notes.append(self._kv["list"].put(list_key, listed.SerializeToString()))
        self._running.pop(id_, None)
        await asyncio.gather(*notes, self._kv["running"].delete(id_))

    async def _publish(self, id_: str, batch: pb.JournalBatch, after: int) -> int | None:
        """Appends to a subject if its last message is that one; None if it is another's."""
        try:
            headers = {"Nats-Expected-Last-Subject-Sequence": str(after)}
            ack = await self._js.publish(
                SUBJECT + id_, batch.SerializeToString(), stream=STREAM, headers=headers
            )
        except APIError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                raise
            # An earlier try may have come through although its answer did not.
            found = await self._last(id_)
            return found[0] if found is not None and found[1] == batch else None
        return int(ack.seq)

    async def delete(self, ids: Iterable[str]) -> None:
        for id_ in ids:
            record = await self.get(id_)
            with _failing():
                if record is not None:
                    await self._kv["list"].purge(_list_key(record))
                    if record.request_id:
                        await self._kv["requests"].purge(_key(record.tenant, record.request_id))
                await self._js.purge_stream(STREAM, subject=SUBJECT + id_)

    # -- reading ------------------------------------------------------------------------------

    async def get(self, id_: str) -> Record | None:
        with _failing():
            first, last = await self._message(id_, 1), await self._last(id_)
        if first is None or last is None:
            return None
        head, end = first[1].head, last[1]
        ended = end.HasField("end_time")
        return Record(
            id=id_,
            tenant=head.tenant,
            request_id=head.request_id,
            spec=head.spec,
            acceptance=head.acceptance,
            accept_ns=head.accept_time.ToNanoseconds(),
            accepted=head.accepted,
            epoch=end.epoch,
            owner=end.owner,
            last_event=end.last_event_number,
            end_ns=end.end_time.ToNanoseconds() if ended else None,
            ending=end.rows[-1].events[-1] if ended else None,
        )

    async def find_request(self, tenant: str, request_id: str) -> Record | None:
        return await self._surely(partial(self._find_request, tenant, request_id))

    async def _find_request(self, tenant: str, request_id: str) -> Record | None:
        with _failing():
            try:
                entry = await self._kv["requests"].get(_key(tenant, request_id))
            except KeyNotFoundError:
                return None
        return await self.get(entry.value.decode())

    async def page(self, tenant: str, limit: int, before: tuple[int, str]) -> list[Record]:
        """Reads the names of all of the tenant's contemplations."""
        places = []
        async for entry in self._listed(f"{_name(tenant)}.>"):
            _, accept_ns, id_ = entry.key.split(".")
            if (int(accept_ns), id_) < before:
                places.append((int(accept_ns), id_))
        found = [await self.get(id_) for _, id_ in sorted(places, reverse=True)[:limit]]
        return [record for record in found if record is not None]

    async def expired(self, before_ns: int) -> list[str]:
        """Reads the list of all contemplations."""
        ids = []
        async for entry in self._listed(">"):
            listed = pb.JournalListed.FromString(entry.value)
            if listed.HasField("end_time") and listed.end_time.ToNanoseconds() < before_ns:
                ids.append(entry.key.rpartition(".")[2])
        return ids

    async def _listed(self, keys: str) -> AsyncIterator[Any]:
        with _failing():
            watcher = await self._kv["list"].watch(keys, ignore_deletes=True)
            try:
                while (entry := await watcher.updates(timeout=TIMEOUT_S)) is not None:
                    yield entry
            finally:
                await watcher.stop()

    async def events(self, id_: str, after: int, limit: int) -> list[bytes]:
        found: list[bytes] = []
        async for batch in self._batches(id_):
            if batch.HasField("head") and after < 1:
                found.append(batch.head.accepted)
            for row in batch.rows:
                skipped = max(0, after + 1 - row.first_event_number)
                found += row.events[skipped:]
            if len(found) >= limit:
                break
        return found[:limit]

    async def entries(self, id_: str) -> list[bytes]:
        return [row.input async for batch in self._batches(id_) for row in batch.rows if row.input]

    async def _batches(self, id_: str) -> AsyncIterator[pb.JournalBatch]:
        sequence = 1
        with _failing():
            while (found := await self._message(id_, sequence)) is not None:
                yield found[1]
                sequence = found[0] + 1

    async def _message(self, id_: str, sequence: int) -> tuple[int, pb.JournalBatch] | None:
        """The first message of a contemplation from a sequence on."""
        return await _parsed(
            self._js.get_msg(STREAM, seq=sequence, subject=SUBJECT + id_, next=True)
        )

    async def _last(self, id_: str) -> tuple[int, pb.JournalBatch] | None:
        return await _parsed(self._js.get_last_msg(STREAM, SUBJECT + id_))


async def _parsed(asked: Awaitable[Any]) -> tuple[int, pb.JournalBatch] | None:
    try:
        message = await asked
    except NotFoundError:
        return None
    return int(message.seq), pb.JournalBatch.FromString(message.data)


@contextmanager
def _failing() -> Any:
    """Whatever the client library raises becomes JournalError; a cancellation is never lost.

    The library waits with ``asyncio.wait_for``, which before Python 3.12 returns as if nothing
    had been when the answer and a cancellation come in the same turn of the loop. A task that
    beats for ever would then not end.
    """
    cancelled_before = _cancellations()
    try:
        yield
    except (nats.errors.Error, OSError, DecodeError, TimeoutError) as error:
        if _cancellations() > cancelled_before:
            raise asyncio.CancelledError from None
        raise JournalError(
            f"the journal cannot be used just now ({type(error).__name__}); ask again",
            retry_after_s=1.0,
        ) from error
    if _cancellations() > cancelled_before:
        raise asyncio.CancelledError


def _cancellations() -> int:
    """How often the running task was asked to end."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


async def _on_error(error: Exception) -> None:
    logger.debug("nats: %s", type(error).__name__)


def _is_written(row: Row, head: _Head) -> bool:
    """Whether an earlier try of the same append came through."""
    if row.events:
        return row.events[-1][0] <= head.last_event
    return row.sequence <= head.input_offset


def _parts(rows: Sequence[Row]) -> Iterable[list[Row]]:
    """Rows in messages the server takes, if each row is small enough."""
    part: list[Row] = []
    size_bytes = 0
    for row in rows:
        row_bytes = len(row.entry) + sum(len(event) for _, event in row.events)
        if part and size_bytes + row_bytes > MESSAGE_BYTES:
            yield part
            part, size_bytes = [], 0
        part.append(row)
        size_bytes += row_bytes
    if part:
        yield part


def _name(text: str) -> str:
    """Any text as a token of a subject."""
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=") or "-"


def _key(tenant: str, request_id: str) -> str:
    return f"{_name(tenant)}.{_name(request_id)}"


def _list_key(record: Record) -> str:
    return f"{_name(record.tenant)}.{record.accept_ns:020d}.{record.id}"
