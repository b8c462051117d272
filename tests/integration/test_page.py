"""The page in a real browser, on the whole mesh: a picture, agents, crops, a verdict, its trace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cogitate.cli.view import state as view
from cogitate.client import Client, LookupTable
from google.protobuf.json_format import MessageToDict

from tests.fakes.browser import ask, needs_chromium, opened, until
from tests.integration.mesh import Mesh, running_mesh

pytestmark = [pytest.mark.integration, needs_chromium]

BOARD = Path(__file__).parents[2] / "examples" / "board.png"
QUESTION = "What is the sum of the red cards?"
SERVICES = {
    "gateway", "aggregator", "router", "vision-encoder", "tool-executor", "agent-decoder",
}  # fmt: skip


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with running_mesh(tmp_path_factory.mktemp("state")) as mesh:
        yield mesh


async def test_an_example_fills_the_form_and_is_answered(mesh: Mesh) -> None:
    async with opened(mesh.http) as page:
        await page.fill("#question", "something else")
        await page.click("#examples button:has-text('a board')")
        await page.wait_for_selector("#pictures img")
        assert await page.input_value("#question") == QUESTION
        await page.click("#examples button:has-text('a shape')")
        await until(page, "document.querySelector('#question').value === 'Is there a circle?'")
        await until(page, "document.querySelectorAll('#pictures img').length === 1")
        await page.click("#form button.main")
        await page.wait_for_selector("#ending.verdict")
        assert await page.inner_text("#ending .answer") == "Yes."


async def test_a_picture_is_asked_about_and_everything_is_told(mesh: Mesh) -> None:
    async with opened(mesh.http) as page:
        await page.set_input_files("#files", BOARD)
        await page.wait_for_selector("#pictures img")
        await page.click("#form summary")
        await ask(page, QUESTION, agents="8", seed="7")
        await page.wait_for_selector("#ending.verdict")
        answer = await page.inner_text("#ending .answer")
        with Client(mesh.address) as client:
            assert answer == client.ask(QUESTION, images=[BOARD], agents=8, seed=7).answer
        # Eight lanes on two providers, and pictures of what they looked at.
        assert await page.locator(".lane").count() == 8
        assert (
            len(set(await page.locator(".lane").evaluate_all("e => e.map(x=>x.dataset.hue)"))) == 2
        )
        await until(
            page,
            "(all => all.length > 7 && all.every(i => i.complete && i.naturalWidth))"
            "([...document.querySelectorAll('.lane .crop img')])",
        )
        assert await page.locator("#places .price").first.inner_text() == "$0.10/hour"
        # Where they looked, on the picture itself: three red cards.
        frames = page.locator("#ending .seen .frame")
        assert await frames.count() == 3
        await until(page, "document.querySelector('.seen img').naturalWidth > 0")
        assert (await frames.first.inner_text()).endswith(": 0")
        picture = await page.locator("#ending .seen img").bounding_box()
        first = await frames.first.bounding_box()
        assert picture is not None and first is not None
        assert first["x"] == pytest.approx(picture["x"] + picture["width"] / 4, abs=2)
        assert first["width"] == pytest.approx(picture["width"] / 4, abs=2)
        # What it rests on.
        await page.click("#ending summary")
        assert await page.locator("#ending tbody tr").count() >= 5
        assert "seed" in await page.inner_text("#ending details")
        # The trace comes once it is stored, with spans of every service.
        await until(page, "/spans of/.test(document.querySelector('caption')?.textContent)")
        told = await page.locator("#timeline tbody tr").evaluate_all(
            "e=>e.map(x=>x.dataset.service)"
        )
        assert set(told) == SERVICES
        assert "invoke_agent" in await page.inner_text("#timeline")


async def test_the_fleet_and_what_was_asked_before(mesh: Mesh) -> None:
    with Client(mesh.address) as client:
        prices = LookupTable("prices", ("item", "price"), (("bread", "2.40"),))
        answer = client.ask("What is the square of 12?", agents=3, tables=[prices])
    async with opened(f"{mesh.http}/#fleet") as page:
        await page.wait_for_selector(".endpoint")
        assert await page.locator(".endpoint h2").all_inner_texts() == [
            "aurora-1ready",
            "borealis-1ready",
        ]
        await page.click("nav a[data-page=history]")
        row = page.locator("#contemplations li", has_text="square of 12").first
        assert answer.answer in await row.inner_text()
        await row.locator("a").click()
        # Joined after its end: everything is there again.
        await page.wait_for_selector("#ending.verdict")
        assert await page.inner_text("#ending .answer") == answer.answer
        # The question is a call of its own, beside the events.
        await until(
            page, "document.querySelector('#asked').innerText === 'What is the square of 12?'"
        )
        await page.click("#anew")
        assert await page.input_value("#question") == "What is the square of 12?"
        assert "the table prices (item, price)" in await page.inner_text("#pictures")
        bodies: list[bytes] = []
        page.on("request", lambda one: bodies.append(one.post_data_buffer or b""))
        await page.click("#form button.main")
        await until(page, "document.querySelector('#status').innerText === 'answered'")
        assert any(b'"cells":["bread","2.40"]' in body for body in bodies), bodies


async def test_the_page_makes_of_events_what_the_command_line_makes_of_them(mesh: Mesh) -> None:
    with Client(mesh.address) as client:
        with client.contemplate(QUESTION, images=[BOARD], agents=6, seed=3) as stream:
            events = list(stream)
    whole = view.View()
    for event in events:
        whole = view.reduce(whole, event)
    wanted = {
        str(id): [
            lane.state,
            lane.tokens,
            lane.vote.key if lane.vote else "",
            [
                item.text.strip() if isinstance(item, view.Said) else [item.call_id, item.result]
                for item in lane.items
            ],
        ]
        for id, lane in whole.lanes.items()
    }
    async with opened(mesh.http) as page:
        got = await page.evaluate(
            """async (events) => {
                const { EMPTY, items, reduce, tally } = await import("/page/state.js");
                const twice = events.flatMap((event) => [event, event]); // a second time is nothing
                const state = twice.reduce(reduce, EMPTY);
                const text = (runs, item) => {
                    const last = runs.at(-1);
                    if (item.callId === undefined && last?.isAnswer === item.isAnswer)
                        last.text += item.text;
                    else runs.push({ ...item });
                    return runs;
                };
                const told = (lane) => items(lane.tail).reduce(text, []).map((one) =>
                    one.callId === undefined ? one.text.trim()
                                             : [one.callId, lane.calls[one.callId].text]);
                return {
                    lanes: Object.fromEntries([...state.lanes].map(([id, lane]) => [
                        id, [lane.status, lane.tokens, lane.vote?.key ?? "", told(lane)]])),
                    tally: tally(state).groups.map((one) => [one.key, one.agents.length]),
                    last: state.last,
                };
            }""",
            [json.loads(json.dumps(MessageToDict(event))) for event in events],
        )
    assert got["lanes"] == wanted
    assert [tuple(pair) for pair in got["tally"]] == list(whole.tally)
    assert got["last"] == events[-1].event_number
