"""The network between the sites: a router in user space, for kernels that have no netem.

    python -m tests.multihost.wan < commands

Its first line of input says what there is::

    {"sites": {"home": {"number": 1, "namespace": "/run/netns/…"}, …},
     "links": [["home", "aurora", delay_s, bytes_per_s], …], "device": "wan0"}

It makes a TUN device in each site's namespace (an empty name means its own), answers ``{}``, and
forwards IP packets between them. Then each further line is a command and gets one line as answer:
``{"cut": site}`` and ``{"heal": site}`` the time on the system's monotonic clock, ``{"counts": 1}``
what went where so far. It ends with its input, and the devices with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from tests.multihost.links import Shape, Wan

MTU: Final = 1500
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001
_CLONE_NEWNET: Final = 0x40000000
# Packets taken from one device before the others have their turn.
_TURN: Final = 64


def open_tun(name: str, namespace: str) -> int:
    """Makes a TUN device in a namespace and returns its descriptor, which stays good outside."""
    with _inside(namespace):
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        try:
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN_NO_PI))
        except OSError:
            os.close(tun)
            raise
        return tun


@contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """This thread in another network namespace; an empty name means its own."""
    if not namespace:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net") as own, open(namespace) as other:
        if libc.setns(other.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        try:
            yield
        finally:
            libc.setns(own.fileno(), _CLONE_NEWNET)


class Forwarder:
    """Reads packets from every site's device and writes them to another's when it is time."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        sites = plan["sites"]
        shapes = {}
        for one, other, delay_s, bytes_per_s in plan["links"]:
            shapes[one, other] = shapes[other, one] = Shape(delay_s, bytes_per_s)
        self.wan = Wan(shapes, {site["number"]: name for name, site in sites.items()})
        self._tuns = {
            name: open_tun(site.get("device", plan["device"]), site["namespace"])
            for name, site in sites.items()
        }
        self._names = {tun: name for name, tun in self._tuns.items()}

    def run(self) -> None:
        """Forwards until the input ends."""
        poll = select.epoll()
        for tun in self._names:
            poll.register(tun, select.EPOLLIN)
        poll.register(sys.stdin.fileno(), select.EPOLLIN)
        while True:
            at = self.wan.next_at
            wait_s = -1.0 if at is None else max(0.0, at - time.monotonic())
            for ready, _ in poll.poll(wait_s):
                if ready == sys.stdin.fileno():
                    if not (line := sys.stdin.readline()):
                        return
                    print(json.dumps(self._obey(json.loads(line))), flush=True)
                else:
                    self._read(ready)
            self._write()

    def _read(self, tun: int) -> None:
        name = self._names[tun]
        with contextlib.suppress(BlockingIOError):
            for _ in range(_TURN):
                self.wan.take(time.monotonic(), name, os.read(tun, MTU + 64))

    def _write(self) -> None:
        for site, packet in self.wan.due(time.monotonic()):
            try:
                os.write(self._tuns[site], packet)
            except OSError as error:
                # Its queue is full or it is not up: lost, as on any other network.
                if error.errno not in (errno.EAGAIN, errno.EIO, errno.ENOBUFS, errno.EINVAL):
                    raise

    def _obey(self, command: Mapping[str, Any]) -> Any:
        if "cut" in command:
            self.wan.cut(command["cut"])
        elif "heal" in command:
            self.wan.heal(command["heal"])
        else:
            return [
                {
                    "from": pair[0], "to": pair[1], "full": counts.num_full, "cut": counts.num_cut,
                    "ports": {port: [c.packets, c.size] for port, c in counts.passed.items()},
                }
                for pair, counts in self.wan.counts.items()
            ]  # fmt: skip
        return time.monotonic()


def main() -> None:
    forwarder = Forwarder(json.loads(sys.stdin.readline()))
    print("{}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        forwarder.run()


if __name__ == "__main__":
    main()
