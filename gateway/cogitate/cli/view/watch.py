"""Follows one question to its end and shows it, one way or another."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Any, Protocol

from cogitate.cli.view import crops, lanes, state
from cogitate.cli.view.lines import Lines
from cogitate.client import Answer, AskOptions, AsyncClient, CogitateError, to_dict
from cogitate.v1 import contemplation_service_pb2 as pb2
from rich.console import Console, RenderableType
from rich.live import Live

_FETCHES = 4


class Output(Protocol):
    """Shows events as they come; a context manager around the whole."""

    def show(self, event: pb2.ContemplationEvent) -> None:
        """Shows one event."""
        ...

    def wants(self) -> list[state.Crop]:
        """Returns the pictures that it would draw, as far as it has not got them."""
        ...

    def got(self, crop: state.Crop, data: bytes) -> None:
        """Takes a picture's file."""
        ...


async def watch(address: str, text: str, options: AskOptions, output: Output) -> Answer:
    """Asks and shows every event. Cancelled, it cancels the contemplation."""
    gate = asyncio.Semaphore(_FETCHES)
    fetches: set[asyncio.Task[None]] = set()
    async with AsyncClient(address) as client:

        async def fetch(crop: state.Crop) -> None:
            async with gate:
                try:
                    output.got(crop, await client.blob(crop.digest, crop.region))
                except CogitateError:
                    return  # a picture that cannot be fetched is left out

        try:
            async with client.contemplate(text, **options) as stream:
                async for event in stream:
                    output.show(event)
                    for crop in output.wants():
                        task = asyncio.create_task(fetch(crop))
                        fetches.add(task)
                        task.add_done_callback(fetches.discard)
                if fetches:
                    await asyncio.wait(fetches, timeout=0.5)
                return await stream.answer()
        finally:
            left = list(fetches)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)


class LiveOutput:
    """Draws the lanes on a terminal; the last picture stays."""

    def __init__(self, console: Console, question: str) -> None:
        self._console = console
        self._question = question
        self._view = state.View()
        self._pictures = lanes.Pictures()
        # Both are replaced or filled by one thread and read by the one that draws.
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=12, transient=False
        )

    def __enter__(self) -> LiveOutput:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.refresh()
        self._live.stop()

    def show(self, event: pb2.ContemplationEvent) -> None:
        """Takes the event into the view."""
        self._view = state.reduce(self._view, event)

    def wants(self) -> list[state.Crop]:
        """Returns crops and images not asked for yet, and marks them."""
        seen = list(self._view.images)
        for lane in self._view.lanes.values():
            seen += [
                item.crop
                for item in lane.items
                if isinstance(item, state.Called) and item.crop is not None
            ]
        new = [crop for crop in dict.fromkeys(seen) if crop not in self._pictures.drawn]
        for crop in new:
            self._pictures.drawn[crop] = None
        return new

    def got(self, crop: state.Crop, data: bytes) -> None:
        """Draws a picture's file into its place."""
        whole = crop.region is None
        width = lanes.THUMB_WIDTH if whole else lanes.CROP_WIDTH
        height = lanes.THUMB_HEIGHT if whole else lanes.CROP_HEIGHT
        self._pictures.drawn[crop] = crops.render(data, width, height)

    def _render(self) -> RenderableType:
        return lanes.render(self._view, self._question, self._pictures, self._console)


class PlainOutput:
    """Prints lines, for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines = Lines()

    def __enter__(self) -> PlainOutput:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, event: pb2.ContemplationEvent) -> None:
        """Prints what the event says."""
        for line in self._lines.feed(event):
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def wants(self) -> list[state.Crop]:
        """Returns nothing."""
        return []

    def got(self, crop: state.Crop, data: bytes) -> None:
        """Ignores it."""


class JsonOutput(PlainOutput):
    """Prints one event a line as JSON; the verdict is printed by `last_line` instead."""

    def show(self, event: pb2.ContemplationEvent) -> None:
        """Prints the event."""
        kind = event.WhichOneof("event")
        if kind == "verdict":
            return
        plain = to_dict(event)
        plain.pop("first_event_number", None)
        plain = {"event": kind, **plain}
        print(json.dumps(plain, ensure_ascii=False), flush=True)


def last_line(answer: Answer) -> dict[str, Any]:
    """Returns the verdict as the last line of `--json` says it."""
    plain = asdict(
        answer,
        dict_factory=lambda pairs: {key: value for key, value in pairs if key != "verdict"},
    )
    return {"event": "verdict", **plain}


def error_line(error: CogitateError) -> dict[str, Any]:
    """Returns the last line of `--json` when there is no answer."""
    return {
        "error": {
            "reason": error.reason,
            "message": error.message,
            "retryable": error.retryable,
            "metadata": error.metadata,
        }
    }
