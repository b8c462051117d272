"""The page in a real browser, before a scripted aggregator: broken streams, keys, errors, eyes."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from cogitate.gateway.core.tenants import Grant
from cogitate.gateway.keys import KeyStore
from cogitate.kit.errors import Rejected
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb2
from playwright.async_api import Page

from tests.fakes.aggregator import Raise, Step, Wait
from tests.fakes.browser import ask, needs_chromium, opened, overflow, until
from tests.fakes.front import happy, mesh
from tests.fakes.lanes import lanes

pytestmark = [pytest.mark.integration, needs_chromium]

HTTP = {"http_listen": "127.0.0.1:0"}
AGENTS, TOKENS = 6, 60
PHONE = {"viewport": {"width": 360, "height": 780}, "has_touch": True}
ENDED = "#ending.verdict"


def slow(request: pb2.ContemplateRequest) -> list[Step]:
    return list(lanes(AGENTS, TOKENS, 0.02))


def texts_of(steps: list[Step]) -> list[str]:
    """What each agent writes in all, without what the page draws as calls."""
    found = [""] * AGENTS
    for step in steps:
        for delta in step.deltas.deltas if isinstance(step, pb2.ContemplationEvent) else ():
            found[delta.agent_id] += delta.text
    return ["".join(text.split()) for text in found]


async def shown(page: Page) -> list[str]:
    script = (
        "lanes => lanes.map(lane => [...lane.querySelectorAll('.thought')].map(p => p.textContent))"
    )
    found = ["".join(parts) for parts in await page.locator(".lane").evaluate_all(script)]
    return ["".join(text.split()) for text in found]


@asynccontextmanager
async def cuttable(address: str) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """The gateway behind a relay; the function cuts all connections there are."""
    host, _, port = address.rpartition(":")
    writers: set[asyncio.StreamWriter] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while part := await reader.read(65_536):
                writer.write(part)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(host, int(port))
        writers.update((writer, forth))
        await asyncio.gather(pump(reader, forth), pump(back, writer))

    def cut() -> None:
        for writer in writers:
            writer.transport.abort()
        writers.clear()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", cut
        cut()


async def test_a_reload_in_mid_stream_loses_nothing_and_doubles_nothing() -> None:
    async with mesh(slow, **HTTP) as m, opened(f"http://{m.http}") as page:
        await ask(page, "What?")
        await until(page, "document.querySelector('.lane .tokens')?.textContent > 10")
        assert await page.evaluate("location.hash") == f"#c/{next(iter(m.aggregator.played))}"
        await page.reload()
        await page.wait_for_selector(ENDED)
        assert await shown(page) == texts_of(slow(pb2.ContemplateRequest()))
        assert m.aggregator.attaches[0] == 0 and len(m.aggregator.requests) == 1
        assert m.aggregator.requests[0].spec.on_disconnect == pb2.ON_DISCONNECT_CONTINUE


async def test_a_connection_that_breaks_is_taken_up_where_it_stood() -> None:
    async with (
        mesh(slow, **HTTP) as m,
        cuttable(m.http) as (origin, cut),
        opened(origin, quiet=False) as page,
    ):
        await ask(page, "What?")
        await until(page, "document.querySelector('.lane .tokens')?.textContent > 10")
        cut()
        await until(page, "/Trying again/.test(document.all.connection.textContent)")
        await page.wait_for_selector(ENDED)
        assert await shown(page) == texts_of(slow(pb2.ContemplateRequest()))
        assert len(m.aggregator.attaches) == 1 and m.aggregator.attaches[0] > 10
        assert await page.inner_text("#connection") == ""


async def test_it_finds_what_it_watched_last_and_stops_it() -> None:
    async with mesh(lambda r: list(lanes(4, 2000, 0.02)), **HTTP) as m:
        async with opened(f"http://{m.http}") as page:
            await ask(page, "What?")
            await page.wait_for_selector(".lane")
            await page.goto(f"http://{m.http}/#history")
            await page.goto(f"http://{m.http}/#")
            await page.click("#running-link")
            await page.wait_for_selector(".lane")
            await page.click("#stop")
            await page.wait_for_selector("#ending.cancelled")
            assert "as you asked" in await page.inner_text("#ending")
            assert await page.evaluate("localStorage.length") == 0


async def test_a_refusal_is_told_in_its_own_words_and_the_form_stays() -> None:
    said = "the queue is full; ask again in 3 s"

    def refuse(request: pb2.ContemplateRequest) -> list[Step]:
        return [Raise(Rejected(said, retry_after_s=3))]

    async with mesh(refuse, **HTTP) as m, opened(f"http://{m.http}", quiet=False) as page:
        await ask(page, "What?", agents="3")
        await page.wait_for_selector("#trouble")
        assert said in await page.inner_text("#trouble")
        assert "REJECTED" in await page.inner_text("#trouble-more")
        assert await page.input_value("#question") == "What?"
        m.aggregator.script = happy
        await page.click("#again")
        await page.wait_for_selector(ENDED)
        assert not await page.is_visible("#trouble")


async def test_what_the_form_sees_itself_is_told_beside_it(tmp_path: Path) -> None:
    async with mesh(**HTTP, max_image_bytes=1000) as m, opened(f"http://{m.http}") as page:
        await page.click("#form button[type=submit]")
        assert await page.inner_text("#form-problem") == "Write a question first."
        (tmp_path / "notes.txt").write_text("no picture")
        (tmp_path / "large.png").write_bytes(bytes(1001))
        await page.wait_for_selector("#server:not(:empty)")
        for name, words in (("notes.txt", "no PNG"), ("large.png", "larger than")):
            await page.set_input_files("#files", tmp_path / name)
            await until(page, f"/{words}/.test(document.all['form-problem'].textContent)")
        await ask(page, "What?", agents="65")
        assert (await page.inner_text("#form-problem")).startswith("Agents:")
        assert not m.aggregator.requests


async def test_a_failure_after_the_beginning_is_an_ending() -> None:
    failed = pb2.Failed(reason="NO_ENDPOINT", message="no endpoint serves this model now")

    def fail(request: pb2.ContemplateRequest) -> list[Step]:
        return [*happy(request)[:1], pb2.ContemplationEvent(failed=failed)]

    async with mesh(fail, **HTTP) as m, opened(f"http://{m.http}") as page:
        await ask(page, "What?")
        await page.wait_for_selector("#ending.failed")
        assert "No endpoint serves this model now." in await page.inner_text("#ending")


async def test_a_key_is_asked_for_and_kept_for_the_tab(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys", create=True)
    made = store.create(Grant("ada"))[1]
    async with mesh(**HTTP, api_keys=str(tmp_path / "keys")) as m:
        async with opened(f"http://{m.http}", quiet=False) as page:
            await page.wait_for_selector("#key")
            await page.fill("#key-value", "cog_wrong")
            await page.click("#key button")
            await page.wait_for_selector("#key")
            await page.fill("#key-value", made)
            await page.click("#key button")
            await page.wait_for_selector("#key", state="hidden")
            await ask(page, "What?")
            await page.wait_for_selector(ENDED)
            assert await page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 1]


async def test_what_models_write_is_text_and_nothing_else() -> None:
    bad = '<img src=x onerror="document.title=1"><script>document.title=2</script>'

    def write(request: pb2.ContemplateRequest) -> list[Step]:
        event = pb2.ContemplationEvent
        delta = pb2.AgentTextDelta(attempt=1, token_count=1, text=bad)
        call = common.ToolCall(call_id="1", name=bad, arguments_json=bad)
        return [
            *happy(request)[:1],
            event(deltas=pb2.AgentDeltas(deltas=[delta])),
            event(tool_call_started=pb2.ToolCallStarted(call=call)),
            event(verdict=common.Verdict(answer=bad, degraded=True, degraded_reasons=[bad])),
        ]

    async with mesh(write, **HTTP) as m, opened(f"http://{m.http}") as page:
        await ask(page, bad)
        await page.wait_for_selector(ENDED)
        assert await page.locator("#run img, #run script").count() == 0
        assert await page.inner_text("#ending .answer") == bad
        assert await page.title() == "Contemplation · Cogitate"


async def test_text_that_is_withdrawn_goes_and_what_follows_is_drawn_behind_it() -> None:
    event = pb2.ContemplationEvent

    def delta(offset: int, text: str) -> Step:
        one = pb2.AgentTextDelta(attempt=1, token_offset=offset, token_count=1, text=text)
        return event(deltas=pb2.AgentDeltas(deltas=[one]))

    def withdraw(request: pb2.ContemplateRequest) -> Iterator[Step]:
        yield happy(request)[0]
        for offset, text in enumerate(("one", " two", " three", " four")):
            yield delta(offset, text)
        yield Wait(0.3)
        yield event(text_retracted=pb2.TextRetracted(attempt=1, token_offset=2))
        yield delta(2, " 3")
        yield Wait(0.3)
        yield event(verdict=common.Verdict(answer="done"))

    async with mesh(withdraw, **HTTP) as m, opened(f"http://{m.http}") as page:
        await ask(page, "What?")
        await until(page, "/four/.test(document.querySelector('.log')?.textContent)")
        await page.wait_for_selector(ENDED)
        assert (await page.inner_text(".lane .log")).strip() == "one two 3"


async def test_envelopes_are_whole_however_their_bytes_come() -> None:
    told = [b'{"a":"\xc3\xa4"}', b"{}", b'{"b":' + b"1" * 300 + b"}"]
    raw = b"".join(struct.pack(">BI", 2 * (one == told[-1]), len(one)) + one for one in told)
    async with mesh(**HTTP) as m, opened(f"http://{m.http}") as page:
        script = """async ([raw, size]) => {
            const { Envelopes } = await import("/page/connect.js");
            const envelopes = new Envelopes();
            const found = [];
            for (let at = 0; at < raw.length; at += size)
                for (const one of envelopes.push(Uint8Array.from(raw.slice(at, at + size))))
                    found.push([one.flags, [...one.data]]);
            return found;
        }"""
        wanted = [[2 * (one == told[-1]), list(one)] for one in told]
        for size in (1, 2, 3, 5, 7, 64, len(raw)):
            assert await page.evaluate(script, [list(raw), size]) == wanted


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_serious(scheme: Any) -> None:
    async def check(what: str) -> None:
        found = (await Axe().run(page)).response["violations"]
        told = [
            (one["id"], [node["html"][:120] for node in one["nodes"][:3]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert told == [], what

    async with mesh(slow, **HTTP) as m:
        async with opened(f"http://{m.http}", color_scheme=scheme) as page:
            ground = await page.evaluate(
                "getComputedStyle(document.documentElement).backgroundColor"
            )
            brightness = sum(int(n) for n in ground.strip("rgb()").split(","))
            assert (brightness > 384) == (scheme == "light")
            await page.click("#form summary")
            await check("the form")
            await ask(page, "What?")
            await page.wait_for_selector(".call")
            await check("a stream")
            await page.wait_for_selector(ENDED)
            await page.click("#ending summary")
            await check("a verdict")
            for name, wanted in (("fleet", ".endpoint"), ("history", "#contemplations a")):
                await page.click(f"nav a[data-page={name}]")
                await page.wait_for_selector(wanted)
                await check(name)


async def test_a_phone_shows_all_of_it_within_its_width() -> None:
    async with mesh(slow, **HTTP) as m, opened(f"http://{m.http}", **PHONE) as page:
        await page.click("#form summary")
        assert await overflow(page) == 0
        await ask(page, "What " + "x" * 200 + "?")
        await page.wait_for_selector(".call")
        assert await overflow(page) == 0
        await page.wait_for_selector(ENDED)
        await page.click("#ending summary")
        assert await overflow(page) == 0
        for name, wanted in (("fleet", ".endpoint"), ("history", "#contemplations a")):
            await page.click(f"nav a[data-page={name}]")
            await page.wait_for_selector(wanted)
            assert await overflow(page) == 0


async def test_everything_can_be_done_by_keyboard() -> None:
    async def tab_to(selector: str) -> None:
        for _ in range(60):
            await page.keyboard.press("Tab")
            if await page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"{selector} cannot be reached")

    async with mesh(slow, **HTTP) as m, opened(f"http://{m.http}") as page:
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.id") == "skip"
        await page.keyboard.press("Enter")
        await tab_to("#question")
        await page.keyboard.type("What?")
        await tab_to("#files")
        await tab_to("[name=effort]")
        await tab_to("#agents")
        await page.keyboard.type("6")
        await tab_to("summary")
        await page.keyboard.press("Enter")
        await tab_to("[name=seed]")
        await page.keyboard.type("7")
        await page.keyboard.press("Enter")
        await page.wait_for_selector(".lane")
        await tab_to(".lane .larger")
        await page.keyboard.press("Enter")
        assert await page.locator(".lane.large").count() == 1
        await page.wait_for_selector(ENDED)
        assert (await page.inner_text("#said")).startswith("Verdict: The sum is 72.")
        spec = m.aggregator.requests[0].spec
        assert (spec.agent_count, spec.sampling_params.seed) == (6, 7)


async def test_without_a_store_the_timeline_says_so() -> None:
    async with mesh(slow, **HTTP) as m, opened(f"http://{m.http}") as page:
        await ask(page, "What?")
        await until(page, "/keeps no spans/.test(document.querySelector('caption')?.textContent)")
        assert "agent 5" in await page.inner_text("#timeline")


async def test_thirty_two_lanes_are_all_drawn() -> None:
    steps = list(lanes(32, 40, 0.005))
    async with mesh(lambda request: steps, **HTTP) as m, opened(f"http://{m.http}") as page:
        await ask(page, "What?", agents="32")
        await page.wait_for_selector(ENDED)
        assert await page.locator(".lane").count() == 32
        counts = await page.locator(".lane .tokens").all_text_contents()
        assert counts == ["40"] * 32
