"""What knowing each other costs: an RPC by mutual TLS beside plaintext, and charging a tenant.

`python -m tests.bench.security_cost`. A small unary RPC within one process on loopback, one after
the other, both ways in turn in each round; grant, acceptance and booking of a contemplation
in a file that already holds as many as are asked for. Wall time, medians of all rounds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
from cogitate.gateway.accounts import Accounts
from cogitate.gateway.core.budgets import Amount, Budget
from cogitate.kit import identity, lifecycle
from cogitate.kit.channels import open_channel
from cogitate.kit.config import ServiceConfig
from cogitate.kit.identity import Identity

from tests.bench import report
from tests.fakes import certificates

METHOD = "cogitate.v1.RouterService/GetFleet"
WARM_UP = 100


class Nothing:
    """Answers one method with nothing."""

    names = ("cogitate.v1.RouterService",)

    def __init__(self, server: grpc.aio.Server) -> None:
        async def answer(request: Any, context: Any) -> bytes:
            return b""

        service, _, name = METHOD.partition("/")
        handlers = {name: grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    async def start(self) -> None: ...

    async def drain(self, grace_s: float) -> None: ...

    async def stop(self) -> None: ...


@asynccontextmanager
async def serving(folder: Path, *, tls: bool) -> AsyncIterator[grpc.aio.Channel]:
    """A service and a channel to it, with certificates or without."""

    async def build(_: ServiceConfig, server: grpc.aio.Server) -> Any:
        return Nothing(server)

    config = replace(ServiceConfig(), tls_dir=str(folder / "router") if tls else "")
    async with lifecycle.serving(config, build) as running:
        with identity.acting(Identity(folder / "gateway") if tls else None):
            async with open_channel(running.address) as channel:
                yield channel


async def rpcs(folder: Path, count: int, *, tls: bool) -> list[float]:
    """Microseconds of each call."""
    taken = []
    async with serving(folder, tls=tls) as channel:
        ask = channel.unary_unary(f"/{METHOD}")
        for number in range(WARM_UP + count):
            began = time.perf_counter()
            await ask(b"", timeout=10)
            if number >= WARM_UP:
                taken.append((time.perf_counter() - began) * 1e6)
    return taken


def charges(folder: Path, count: int) -> list[float]:
    """Microseconds of all that a contemplation costs in the accounts."""
    taken = []
    with closing(Accounts(folder / "keys")) as accounts:
        most = 10**15
        accounts.set_budget("ada", Budget(most, most, most, most))
        for number in range(2 * count):
            began = time.perf_counter()
            accounts.begin("ada", f"{folder.name}-{number}", Amount(100, 100))
            accounts.accepted("ada", f"{folder.name}-{number}", "id")
            accounts.book("ada", f"{folder.name}-{number}", Amount(50, 50))
            if number >= count:
                taken.append((time.perf_counter() - began) * 1e6)
    return taken


def row(name: str, round_: int, taken: list[float]) -> dict[str, Any]:
    ordered = sorted(taken)
    p99 = ordered[int(0.99 * (len(ordered) - 1))]
    return {
        "what": name,
        "round": round_,
        "count": len(taken),
        "p50_us": report.median(taken, 0),
        "p99_us": round(p99),
    }


def main() -> None:
    """Runs it."""
    parser = report.parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=1000, help="calls of each kind in a round")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for round_ in range(args.rounds):
        with TemporaryDirectory() as name:
            folder = Path(name)
            for who in ("router", "gateway"):
                certificates.write(folder / who, certificates.signed(who))
            for kind, tls in (("plaintext", False), ("mutual TLS", True)):
                rows.append(row(kind, round_, asyncio.run(rpcs(folder, args.count, tls=tls))))
            rows.append(row("charging", round_, charges(folder, args.count)))
    columns = ("", "p50, us", "p99, us", "of each round")
    shown = []
    for kind in ("plaintext", "mutual TLS", "charging"):
        of = [one for one in rows if one["what"] == kind]
        shown.append(
            (kind, report.median(one["p50_us"] for one in of),
             report.median(one["p99_us"] for one in of), args.count)
        )  # fmt: skip
    report.console().print(report.table(f"medians of {args.rounds} rounds", columns, shown))
    report.write(args, rows=rows)


if __name__ == "__main__":
    main()
