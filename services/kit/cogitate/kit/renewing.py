"""Channels inside the mesh: plaintext without an identity, else mutual TLS with papers that change.

gRPC's credentials in Python hold one certificate for good. So a channel here is a row of them: a
call is made on the newest, and once papers were renewed the one before is closed when the last of
its calls has ended. No call is ever moved or broken off.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from cogitate.kit import identity, tasks
from cogitate.kit.identity import Identity, Papers


def open_channel(address: str, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
    """Opens a channel as who the running service is."""
    mine = identity.current()
    if mine is None:
        return grpc.aio.insecure_channel(address, options=options)
    return RenewingChannel(mine, address, options)


def credentials(papers: Papers) -> grpc.ChannelCredentials:
    """Returns what a client shows and whom it trusts."""
    return grpc.ssl_channel_credentials(papers.roots, papers.key, papers.chain)


class _Generation:
    """One channel of the row."""

    def __init__(self, channel: grpc.aio.Channel, papers: Papers) -> None:
        self.channel, self.papers = channel, papers
        self.running = 0


class RenewingChannel(grpc.aio.Channel):
    """What stubs are made of; belongs to one event loop."""

    def __init__(self, mine: Identity, address: str, options: Sequence[tuple[str, Any]]) -> None:
        self._identity, self._address, self._options = mine, address, list(options)
        if mine.server_name:
            self._options.append(("grpc.ssl_target_name_override", mine.server_name))
        self._closing = tasks.Supervisor()
        self._newest = self._open()
        self._retired: list[_Generation] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Ends every call, those of retired channels too."""
        for one in (self._newest, *self._retired):
            await one.channel.close(grace)
        self._retired.clear()
        await self._closing.stop()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Of the newest channel."""
        return self._generation().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Of the newest channel."""
        await self._generation().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Waits until the newest channel is connected."""
        await self._generation().channel.channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As of any channel; so are the next three."""
        return _Method(self, "unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, "unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, "stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, "stream_stream", args, kwargs)

    def _open(self) -> _Generation:
        papers = self._identity.papers()
        channel = grpc.aio.secure_channel(self._address, credentials(papers), self._options)
        return _Generation(channel, papers)

    def _generation(self) -> _Generation:
        if self._newest.papers is not self._identity.papers():
            before, self._newest = self._newest, self._open()
            self._retired.append(before)
            self._close_idle(before)
        return self._newest

    def _begin(self, generation: _Generation, call: grpc.aio.Call) -> None:
        generation.running += 1

        def ended(_: Any) -> None:
            generation.running -= 1
            self._close_idle(generation)

        call.add_done_callback(ended)

    def _close_idle(self, generation: _Generation) -> None:
        if generation in self._retired and not generation.running:
            self._retired.remove(generation)
            self._closing.spawn(generation.channel.close(), name="retired channel")


class _Method:
    """A method of a stub, on whichever channel is the newest."""

    def __init__(
        self, row: RenewingChannel, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._row, self._kind, self._args, self._kwargs = row, kind, args, kwargs
        self._made: tuple[_Generation, Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        newest = self._row._generation()
        if self._made is None or self._made[0] is not newest:
            make = getattr(newest.channel, self._kind)
            self._made = newest, make(*self._args, **self._kwargs)
        call = self._made[1](*args, **kwargs)
        self._row._begin(newest, call)
        return call
