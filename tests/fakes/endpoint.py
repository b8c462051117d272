"""A scripted endpoint: reports to a router whatever a test wants, true or absurd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from cogitate.kit.channels import open_channel
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb2
from cogitate.v1 import router_service_pb2 as router_pb2
from cogitate.v1 import router_service_pb2_grpc as router_grpc


def description(endpoint_id: str, /, **fields: object) -> decoder_pb2.EndpointDescription:
    """Returns a description with sensible defaults, `fields` replacing them."""
    defaults: dict[str, object] = {
        "endpoint_id": endpoint_id,
        "address": "127.0.0.1:1",
        "provider": f"provider-{endpoint_id}",
        "region": "here",
        "models": ["mini"],
        "engine": "fake",
        "total_block_count": 4096,
        "block_size_count": 16,
        "max_sequence_count": 64,
        "max_model_len": 4096,
        "build_digest": "sha256:fake",
    }
    return decoder_pb2.EndpointDescription(**{**defaults, **fields})  # type: ignore[arg-type]


class FakeEndpoint:
    """Reports until it is told otherwise. Use as an async context manager; leaving closes it.

    `load` is sent at the interval the router asks for; set it to send another from then on.
    """

    def __init__(self, endpoint_id: str, router_address: str, /, **fields: object) -> None:
        self.description = description(endpoint_id, **fields)
        blocks = self.description.total_block_count
        self.load = decoder_pb2.EndpointLoad(free_block_count=blocks)
        self.interval_s: float | None = None
        self.error: BaseException | None = None
        self._address = router_address
        self._outbox: asyncio.Queue[router_pb2.ReportRequest | None] = asyncio.Queue(100)
        self._silent = False
        self._task: asyncio.Task[None] | None = None
        self._answered = asyncio.Event()

    async def __aenter__(self) -> FakeEndpoint:
        self._task = asyncio.create_task(self._run(), name="fake endpoint")
        async with asyncio.timeout(5):
            await self._answered.wait()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.kill()

    async def kill(self) -> None:
        """Breaks the stream off, as a killed process does."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def ended(self) -> BaseException | None:
        """Waits until the router ended the stream; returns the error."""
        assert self._task is not None
        async with asyncio.timeout(5):
            await asyncio.wait([self._task])
        return self.error

    def freeze(self) -> None:
        """Stops reporting but keeps the stream open, as a stopped process does at first."""
        self._silent = True

    def thaw(self) -> None:
        """Goes on reporting."""
        self._silent = False

    async def send(self, **report: object) -> None:
        """Sends one report of the test's own, such as `drain=DrainNotice(...)`."""
        await self._outbox.put(router_pb2.ReportRequest(**report))  # type: ignore[arg-type]

    async def _requests(self) -> AsyncIterator[router_pb2.ReportRequest]:
        yield router_pb2.ReportRequest(description=self.description)
        # A write that meets the end of the call hides its status behind INTERNAL: wait for the
        # answer, which a refused endpoint does not get.
        await self._answered.wait()
        yield router_pb2.ReportRequest(load=self.load)
        while True:
            try:
                async with asyncio.timeout(self.interval_s or 0.05):
                    request = await self._outbox.get()
                if request is None:
                    return
                yield request
            except TimeoutError:
                if not self._silent:
                    yield router_pb2.ReportRequest(load=self.load)

    async def _run(self) -> None:
        try:
            async with open_channel(self._address) as channel:
                stub = router_grpc.RouterServiceStub(channel)
                async for response in stub.Report(self._requests()):
                    self.interval_s = response.report_interval.ToTimedelta().total_seconds()
                    self._answered.set()
        except Exception as error:
            self.error = error
        finally:
            self._answered.set()
