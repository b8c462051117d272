"""A DNS server on loopback that answers from a dictionary, so that no test touches the system's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class _Protocol(asyncio.DatagramProtocol):
    def __init__(self, owner: DnsServer) -> None:
        self._owner = owner

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._owner.answer(data)
        if answer is not None:
            self._transport.sendto(answer, addr)


class DnsServer:
    """Use as an async context manager. Names without addresses do not exist."""

    def __init__(self) -> None:
        self.names: dict[str, Iterable[str]] = {}
        self.silent = False
        self.asked = 0
        self.address = ""

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: _Protocol(self), local_addr=("127.0.0.1", 0)
        )
        host, port = self._transport.get_extra_info("sockname")
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._transport.close()

    def answer(self, data: bytes) -> bytes | None:
        """The reply to a query, with a time to live of 0; None says nothing."""
        self.asked += 1
        if self.silent:
            return None
        query = dns.message.from_wire(data)
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        (question,) = query.question
        addresses = self.names.get(str(question.name).rstrip("."))
        if addresses is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
            return bytes(reply.to_wire())
        is_v6 = question.rdtype == dns.rdatatype.AAAA
        fitting = [a for a in addresses if (":" in a) is is_v6]
        if fitting and question.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
            kind = dns.rdatatype.to_text(question.rdtype)
            reply.answer.append(dns.rrset.from_text(question.name, 0, "IN", kind, *fitting))
        return bytes(reply.to_wire())
