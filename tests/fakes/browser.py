"""A real Chromium for tests of the page, and what it complained about."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page, async_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)"
)
WAIT_MS = 20_000


@asynccontextmanager
async def opened(origin: str, *, quiet: bool = True, **options: Any) -> AsyncIterator[Page]:
    """Opens the page in a browser of its own; `options` are of Playwright's context.

    When the block is left: it asked nobody but `origin`, and, if `quiet`, complained of nothing.
    """
    complaints: list[str] = []
    hosts: set[str] = set()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            context = await browser.new_context(**options)
            context.set_default_timeout(WAIT_MS)
            page = await context.new_page()
            page.on("request", lambda one: hosts.add(urlsplit(one.url).netloc))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on(
                "console",
                lambda said: complaints.append(said.text) if said.type == "error" else None,
            )
            await page.goto(origin)
            yield page
        finally:
            await browser.close()
    assert hosts - {""} == {urlsplit(origin).netloc}, "the page asks nobody but its gateway"
    assert not quiet or complaints == []


async def ask(page: Page, question: str, **fields: str) -> None:
    """Fills the form and sends it off; `fields` by their names."""
    await page.fill("#question", question)
    for name, value in fields.items():
        await page.fill(f"[name={name}]", value)
    await page.click("#form button[type=submit]")


async def until(page: Page, script: str) -> None:
    """Waits for an expression to be true; Playwright's own waiting is refused by the page."""
    ends = time.monotonic() + WAIT_MS / 1000
    while not await page.evaluate(script):
        assert time.monotonic() < ends, f"never true: {script}"
        await asyncio.sleep(0.05)


async def overflow(page: Page) -> int:
    """How many pixels the page is wider than its window."""
    return int(await page.evaluate("document.documentElement.scrollWidth - innerWidth"))
