"""The client for programs with an event loop. `_client` is its twin; keep them alike."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
from cogitate.client import _request, _results
from cogitate.client._channel import CHUNK_BYTES, options
from cogitate.client._cursor import Cursor
from cogitate.client._errors import CogitateError, from_rpc
from cogitate.client._request import AskOptions, Box, Image
from cogitate.client._results import Answer, Fleet, Model, Summary
from cogitate.v1 import contemplation_service_pb2 as pb2
from cogitate.v1 import (
    contemplation_service_pb2_grpc,
    gateway_service_pb2,
    gateway_service_pb2_grpc,
)

_STATUS_WAIT_S = 1.0
_BROKEN = "the stream ended before the contemplation did"


class AsyncClient:
    """Asks a mesh; for one event loop. Close it, or use it in an `async with` block.

    `address` is COGITATE_ADDRESS or 127.0.0.1:7100 if not given, `api_key` COGITATE_API_KEY or
    none; `timeout_s` bounds the short calls, not questions.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout_s: float = 30.0,
        api_key: str | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.address = _request.address(address)
        self._timeout_s = timeout_s
        self._metadata = (*_request.authorization(api_key), *metadata)
        self._channel = grpc.aio.insecure_channel(self.address, options=options(self.address))
        self._contemplation: Any = contemplation_service_pb2_grpc.ContemplationServiceStub(
            self._channel
        )
        self._gateway: Any = gateway_service_pb2_grpc.GatewayServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every call and closes the connection."""
        await self._channel.close()

    async def ask(self, text: str, **options: Unpack[AskOptions]) -> Answer:
        """Asks and waits. Raises ContemplationFailed, or what refused the question."""
        async with self.contemplate(text, **options) as stream:
            return await stream.answer()

    def contemplate(self, text: str, **options: Unpack[AskOptions]) -> AsyncContemplationStream:
        """Asks and returns the events as they happen; for use in an `async with` block."""
        request = _request.contemplate(text, options)
        resumes = request.spec.on_disconnect == pb2.ON_DISCONNECT_CONTINUE
        cursor = Cursor(resumes=resumes, filtered=bool(request.filter.excluded_events))
        return AsyncContemplationStream(self, cursor, request.filter, request)

    def attach(
        self, contemplation_id: str, after: int = 0, *, exclude: Sequence[str] = ()
    ) -> AsyncContemplationStream:
        """Returns the events after number `after`, those to come included."""
        cursor = Cursor(resumes=True, filtered=bool(exclude), last=after)
        cursor.contemplation_id = contemplation_id
        return AsyncContemplationStream(self, cursor, pb2.EventFilter(excluded_events=exclude))

    async def get(self, contemplation_id: str) -> Summary:
        """Returns a contemplation's state and, if it ended, its ending."""
        request = pb2.GetContemplationRequest(contemplation_id=contemplation_id)
        found = await self._call(self._contemplation.GetContemplation, request)
        return _results.summary(found.summary, found.ending if found.HasField("ending") else None)

    async def replay(self, contemplation_id: str) -> AsyncContemplationStream:
        """Asks the same again, with the same seed; the events of the new contemplation."""
        request = pb2.GetContemplationRequest(contemplation_id=contemplation_id)
        found = await self._call(self._contemplation.GetContemplation, request)
        again = _request.again(found.spec)
        return AsyncContemplationStream(self, Cursor(resumes=False), pb2.EventFilter(), again)

    async def list(self, limit: int = 50) -> tuple[Summary, ...]:
        """Returns the newest contemplations, newest first."""
        found: tuple[Summary, ...] = ()
        token = ""
        while len(found) < limit:
            request = pb2.ListContemplationsRequest(
                page_size=min(limit - len(found), 1000), page_token=token
            )
            page = await self._call(self._contemplation.ListContemplations, request)
            found += tuple(_results.summary(one) for one in page.contemplations)
            token = page.next_page_token
            if not token:
                break
        return found

    async def cancel(self, contemplation_id: str) -> Summary:
        """Stops all agents and tools; returns the state before. Idempotent."""
        request = pb2.CancelContemplationRequest(contemplation_id=contemplation_id)
        return _results.summary(
            (await self._call(self._contemplation.CancelContemplation, request)).summary
        )

    async def models(self) -> tuple[Model, ...]:
        """Returns the models that can be asked now."""
        request = gateway_service_pb2.ListModelsRequest()
        return _results.models(await self._call(self._gateway.ListModels, request))

    async def fleet(self) -> Fleet:
        """Returns the endpoints as the router sees them."""
        request = gateway_service_pb2.DescribeFleetRequest()
        return _results.fleet(await self._call(self._gateway.DescribeFleet, request))

    async def server_info(self) -> gateway_service_pb2.GetServerInfoResponse:
        """Returns the server's version and limits."""
        request = gateway_service_pb2.GetServerInfoRequest()
        info: gateway_service_pb2.GetServerInfoResponse = await self._call(
            self._gateway.GetServerInfo, request
        )
        return info

    async def upload(self, image: Image) -> str:
        """Stores an image and returns its digest, for use in many questions."""
        data = _request.image_part(image).data
        chunks = [
            gateway_service_pb2.UploadBlobRequest(chunk=data[start : start + CHUNK_BYTES])
            for start in range(0, len(data), CHUNK_BYTES)
        ]
        return str((await self._call(self._gateway.UploadBlob, chunks)).image.digest)

    async def blob(self, digest: str, box: Box | tuple[int, int, int, int] | None = None) -> bytes:
        """Returns an image's file or, with a box in per mille, the crop as a PNG."""
        parts = self._gateway.DownloadBlob(
            _request.blob(digest, box), timeout=self._timeout_s, metadata=self._metadata
        )
        try:
            return b"".join([part.chunk async for part in parts])
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self.address) from None
        finally:
            parts.cancel()

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self.address) from None

    def _open(self, method: str, request: Any, timeout_s: float | None) -> Any:
        call = getattr(self._contemplation, method)
        return call(request, timeout=timeout_s, metadata=self._metadata)


class AsyncContemplationStream:
    """The events of one contemplation, each once and in order; entering the block opens the call.

    A broken connection is taken up again where it stopped if the contemplation survives it
    (`on_disconnect="continue"`, or `attach`).
    """

    def __init__(
        self,
        client: AsyncClient,
        cursor: Cursor,
        event_filter: pb2.EventFilter,
        request: pb2.ContemplateRequest | None = None,
    ) -> None:
        self._client = client
        self._cursor = cursor
        self._filter = event_filter
        self._request = request
        self._call: Any = None

    @property
    def contemplation_id(self) -> str:
        """Known from the first event on."""
        return self._cursor.contemplation_id

    @property
    def trace_id(self) -> str:
        """Known from the first event on."""
        return self._cursor.trace_id

    @property
    def last_event_number(self) -> int:
        """The number to attach after."""
        return self._cursor.last

    async def __aenter__(self) -> Self:
        self._connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._call is None:
            return
        if self._cursor.ending is not None and error is None:
            # The status follows the ending; cancelled before it, the call looks like a failure.
            with contextlib.suppress(grpc.aio.AioRpcError, TimeoutError):
                async with asyncio.timeout(_STATUS_WAIT_S):
                    await self._call.read()
        # Without this the server would go on producing: leaving a loop does not end a call.
        self._call.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> pb2.ContemplationEvent:
        if self._call is None:
            raise RuntimeError("a stream of events is used in an `async with` block")
        while self._cursor.ending is None:
            try:
                response = await self._call.read()
                if response is not grpc.aio.EOF:
                    if self._cursor.take(response.event):
                        event: pb2.ContemplationEvent = response.event
                        return event
                    continue
                broken = CogitateError(_BROKEN, code="UNAVAILABLE", retryable=True)
            except grpc.aio.AioRpcError as error:
                broken = from_rpc(error, self._client.address)
            await asyncio.sleep(self._cursor.after_break(broken))
            self._connect()
        raise StopAsyncIteration

    async def answer(self) -> Answer:
        """Reads to the end and returns the answer; raises what another ending means."""
        async for _ in self:
            pass
        return _results.answer(self._cursor)

    async def cancel(self) -> None:
        """Stops the contemplation; its ending still comes."""
        if self._cursor.contemplation_id:
            await self._client.cancel(self._cursor.contemplation_id)

    def _connect(self) -> None:
        if self._call is not None:
            self._call.cancel()
        cursor, request = self._cursor, self._request
        timeout_s = _request.timeout_s(request) if request is not None else None
        if request is not None and not cursor.contemplation_id:
            # Before the first event the question itself is sent again: its id makes that safe.
            self._call = self._client._open("Contemplate", request, timeout_s)
            return
        attach = pb2.AttachRequest(
            contemplation_id=cursor.contemplation_id,
            after_event_number=cursor.last,
            filter=self._filter,
        )
        self._call = self._client._open("Attach", attach, timeout_s)
