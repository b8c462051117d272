"""Is the page light and smooth? First paint, bytes, and frames a second while many lanes stream.

    python -m tests.bench.page [--loads 20] [--rounds 3] [--agents 32] [--tokens 800]
                               [--step-ms 12] [--json F]

A scripted aggregator and the gateway, processes of their own, before a headless Chromium on the
same machine. The page is loaded by browsers' contexts that have nothing cached; first paint is what
the browser itself reports (first contentful paint, from the start of the navigation), bytes are all
that came over the network until the form was ready, heads included. Then a question is asked and
every agent is told one token each `--step-ms`; frames are those that Chromium's trace says were
drawn between the first token and the last, and the pauses those between two of them. It needs a
chromium that is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from cogitate.cli.mesh.processes import free_ports
from cogitate.kit.config import ServiceConfig
from cogitate.kit.lifecycle import run
from cogitate.v1 import contemplation_service_pb2 as pb
from playwright.async_api import Browser, async_playwright

from tests.bench import report
from tests.bench.gateway_http import process
from tests.fakes.aggregator import FakeAggregator, Step
from tests.fakes.browser import CHROMIUM
from tests.fakes.front import FakeRouter
from tests.fakes.lanes import lanes

CATEGORIES = ["devtools.timeline", "disabled-by-default-devtools.timeline.frame"]
WINDOW = {"width": 1440, "height": 900}


def serve(args: argparse.Namespace) -> int:
    """The scripted aggregator: for every question the same lanes."""

    def script(request: pb.ContemplateRequest) -> Sequence[Step]:
        return list(lanes(request.spec.agent_count or 1, args.tokens, args.step_ms / 1000))

    async def build(_: ServiceConfig, server: grpc.aio.Server) -> Any:
        FakeRouter(server)  # which models there are
        return FakeAggregator(server, script)

    config = replace(ServiceConfig(), listen="127.0.0.1:0", ready_file=args.upstream)
    return run("upstream", config, build)


async def load(browser: Browser, origin: str) -> dict[str, float]:
    """One load of the page with nothing cached."""
    context = await browser.new_context(viewport=WINDOW)
    try:
        page = await context.new_page()
        network = await context.new_cdp_session(page)
        await network.send("Network.enable")
        sizes: list[float] = []
        network.on("Network.loadingFinished", lambda one: sizes.append(one["encodedDataLength"]))
        await page.goto(origin)
        await page.wait_for_selector("#server:not(:empty)")
        paints = await page.evaluate(
            "performance.getEntriesByType('paint').map(one => [one.name, one.startTime])"
        )
        return {"first_paint_ms": dict(paints)["first-contentful-paint"], "bytes": sum(sizes)}
    finally:
        await context.close()


async def stream(browser: Browser, origin: str, agents: int) -> dict[str, float]:
    """One contemplation, watched; times of frames from the trace."""
    context = await browser.new_context(viewport=WINDOW)
    try:
        page = await context.new_page()
        await page.goto(origin)
        await page.wait_for_selector("#server:not(:empty)")
        await page.fill("#question", "What is the sum of the red cards?")
        await page.fill("#agents", str(agents))
        await browser.start_tracing(page=page, categories=CATEGORIES)
        await page.click("#form button[type=submit]")
        await page.wait_for_selector(".thought")
        await page.evaluate("console.timeStamp('first token')")
        await page.wait_for_selector("#ending.verdict", timeout=240_000)
        await page.evaluate("console.timeStamp('verdict')")
        events = json.loads(await browser.stop_tracing())["traceEvents"]
        assert await page.locator(".lane").count() == agents
        return frames(events) | {"tokens": float(await page.evaluate(_TOKENS))}
    finally:
        await context.close()


_TOKENS = "[...document.querySelectorAll('.lane .tokens')].reduce((a, b) => a + +b.textContent, 0)"


def frames(events: list[dict[str, Any]]) -> dict[str, float]:
    """Frames a second, and the pauses between frames in ms, between the two stamps."""
    stamps = {
        one["args"]["data"]["message"]: one["ts"] for one in events if one["name"] == "TimeStamp"
    }
    start, end = stamps["first token"], stamps["verdict"]
    drawn = sorted(
        one["ts"] for one in events if one["name"] == "DrawFrame" and start <= one["ts"] <= end
    )
    pauses = [(b - a) / 1000 for a, b in itertools.pairwise(drawn)]
    cuts = statistics.quantiles(pauses, n=100)
    return {
        "frames_per_s": round(len(pauses) / (drawn[-1] - drawn[0]) * 1e6, 1),
        "seconds": round((end - start) / 1e6, 2),
        "pause_p50_ms": round(cuts[49], 1),
        "pause_p99_ms": round(cuts[98], 1),
        "pause_max_ms": round(max(pauses), 1),
    }


async def measure(args: argparse.Namespace, origin: str) -> dict[str, Any]:
    """Runs everything; the first load of all warms up."""
    console = report.console()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            version = browser.version
            with report.progress(console) as progress:
                task = progress.add_task("page", total=args.loads + args.rounds + 1)
                loads, streams = [], []
                for _ in range(args.loads + 1):
                    loads.append(await load(browser, origin))
                    progress.advance(task)
                for _ in range(args.rounds):
                    streams.append(await stream(browser, origin, args.agents))
                    progress.advance(task)
        finally:
            await browser.close()
    return {"chromium": version, "loads": loads[1:], "streams": streams}


def main() -> None:
    parser = report.parser(__doc__ or "")
    parser.add_argument("--loads", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--agents", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=800, help="of each agent")
    parser.add_argument("--step-ms", type=float, default=12.0, help="from token to token")
    parser.add_argument("--upstream", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.upstream:
        sys.exit(serve(args))
    if CHROMIUM is None:
        sys.exit("no chromium is installed (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as name:
        upstream, ready, port = Path(name, "upstream"), Path(name, "gateway"), free_ports(1)[0]
        scripted = (
            sys.executable, "-m", "tests.bench.page", "--upstream", str(upstream),
            "--tokens", str(args.tokens), "--step-ms", str(args.step_ms),
        )  # fmt: skip
        with process(*scripted, ready=upstream):
            gateway = (
                sys.executable, "-m", "cogitate.gateway", "--listen", "127.0.0.1:0",
                "--http-listen", f"127.0.0.1:{port}", "--ready-file", str(ready),
                "--aggregator-address", upstream.read_text().strip(),
                "--router-address", upstream.read_text().strip(),
            )  # fmt: skip
            with process(*gateway, ready=ready):
                found = asyncio.run(measure(args, f"http://127.0.0.1:{port}"))
    told = [
        ("first paint, ms", *spread(one["first_paint_ms"] for one in found["loads"])),
        ("bytes of a first visit", *spread(one["bytes"] for one in found["loads"])),
        ("frames a second", *spread(one["frames_per_s"] for one in found["streams"])),
        ("p99 from frame to frame, ms", *spread(one["pause_p99_ms"] for one in found["streams"])),
    ]
    title = f"the page; {args.agents} lanes, each a token every {args.step_ms:g} ms"
    report.console().print(report.table(title, ("", "median", "least", "most"), told))
    report.write(args, **found)


def spread(values: Any) -> tuple[str, str, str]:
    """Median, least and most."""
    sorted_ = sorted(values)
    return tuple(f"{one:,.0f}" for one in (statistics.median(sorted_), sorted_[0], sorted_[-1]))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
