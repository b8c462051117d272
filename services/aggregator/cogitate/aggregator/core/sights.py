"""Where agents looked, and what they wrote down right after: the certificate's sights.

A crop is told as a region of the whole picture, whatever it was cut from: the tool that cut it says
so. Killed agents' looks count as well; those of attempts that started over do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cogitate.aggregator.core.agents import AgentState
from cogitate.aggregator.core.messages import Picture

MAX_NOTE_CHARS = 40
# A note ends where the next call begins, in whatever way a model writes its calls.
_CALL = re.compile(r"[A-Za-z_][A-Za-z0-9._-]*\(|[{<\[]")


@dataclass(frozen=True, slots=True)
class Sight:
    """One look: the agent's `step`-th, from 1."""

    agent_id: int
    step: int
    picture: Picture
    note: str


def sights(agents: Iterable[AgentState]) -> Iterator[Sight]:
    """Yields all looks of all agents, by agent and step."""
    for agent in agents:
        results = [one for one in agent.segments if one.result is not None]
        ends = [one.num_characters for one in results[1:]] + [len(agent.text)]
        step = 0
        for segment, end in zip(results, ends, strict=False):
            for picture in segment.pictures:
                step += 1
                note = _note(agent.text[segment.num_characters : end])
                yield Sight(agent.agent_id, step, picture, note)


def _note(text: str) -> str:
    """The few words before the next call."""
    call = _CALL.search(text)
    words = " ".join((text[: call.start()] if call else text).split()).strip(" ,;.:")
    return words if len(words) <= MAX_NOTE_CHARS else words[: MAX_NOTE_CHARS - 1] + "…"
