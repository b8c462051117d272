"""Contemplations to simulate, from recorded calls: a call becomes a gang with its prompt.

Sources, both read from files that the command is given: AzurePublicDataset, code completion
2023-11-16 (CC-BY 4.0; Patel et al., Splitwise, ISCA 2024), and Mooncake's FAST'25 release
(Apache-2.0; Qin et al., FAST 2025), whose calls name the blocks of their prompts.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from random import Random
from statistics import NormalDist
from typing import Final

WIDTHS: Final = (1, 4, 8, 8, 16, 16)  # agents of a gang, drawn evenly
THINKING: Final = 8  # tokens an agent reasons for each token the recorded answer had
_MOST_PROMPT, _LEAST_TOKENS, _MOST_TOKENS = 32_000, 32, 2_048
AGENTS_DIFFER: Final = 0.3  # sigma of the logarithm of what agents of a gang write
_DECLARED_WRONGLY: Final = 0.3  # likewise of what is declared
PREFIX_BLOCK: Final = 512  # positions of a block that the recording names


@dataclass(frozen=True, slots=True)
class Call:
    """A recorded call. `blocks` name its prompt's blocks; none if the recording does not say."""

    at_s: float
    prompt: int
    output: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """A contemplation: when, its prompt, what its agents will write, and what they declare."""

    id: str
    at_s: float
    prompt: int
    tokens: tuple[int, ...]  # by agent; the router is not told
    declared: int
    blocks: tuple[int, ...]

    @property
    def conversation(self) -> str:
        """Names the beginning of the prompt: turns of a conversation share it."""
        return str(self.blocks[0]) if self.blocks else ""


def calls(path: Path) -> list[Call]:
    """Reads a recording, compressed or not, by its name's ending. Raises ValueError."""
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8")
    found: list[Call] = []
    try:
        with opened as file:
            if ".jsonl" in path.name:
                for line in file:
                    one = json.loads(line)
                    found.append(
                        Call(
                            one["timestamp"] / 1000, one["input_length"], one["output_length"],
                            tuple(one.get("hash_ids", ())),
                        )
                    )  # fmt: skip
            else:
                for row in csv.DictReader(file):
                    at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
                    found.append(Call(at, int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path} is no recording of calls: {error!r}") from None
    if len(found) < 2:
        raise ValueError(f"{path} has fewer than two calls")
    return sorted(found, key=lambda call: call.at_s)


def requests(
    recordings: Sequence[Sequence[Call]],
    count: int,
    per_s: float,
    dice: Random,
    differ: float = AGENTS_DIFFER,
) -> list[Request]:
    """Takes equal parts of the recordings, in their order and with their bursts.

    Each is stretched or squeezed so that together they come `per_s` a second in the mean; one that
    is too short begins again.
    """
    share = -(-count // len(recordings))
    drawn: list[tuple[float, int, Call]] = []
    for number, recording in enumerate(recordings):
        length = recording[-1].at_s - recording[0].at_s
        first = dice.randrange(len(recording))
        taken = []
        for i in range(share):
            turn, place = divmod(first + i, len(recording))
            call = recording[place]
            taken.append((turn * (length + 1) + call.at_s - recording[0].at_s, call))
        begin, end = taken[0][0], max(taken[-1][0], taken[0][0] + 1e-3)
        scale = count / per_s / (end - begin)
        drawn += [((at - begin) * scale, number, call) for at, call in taken]
    drawn.sort(key=lambda one: (one[0], one[1]))
    return [
        _request(i, at, number, call, dice, differ)
        for i, (at, number, call) in enumerate(drawn[:count])
    ]


def _request(i: int, at_s: float, number: int, call: Call, dice: Random, differ: float) -> Request:
    mean = min(_MOST_TOKENS, max(_LEAST_TOKENS, THINKING * call.output))
    tokens = tuple(
        max(8, min(2 * _MOST_TOKENS, int(mean * math.exp(dice.gauss(0, differ)))))
        for _ in range(dice.choice(WIDTHS))
    )
    # As an aggregator has learned it: the middle of what the longest of so many agents writes.
    longest = math.exp(differ * NormalDist().inv_cdf(0.5 ** (1 / len(tokens))))
    declared = max(8, int(mean * longest * math.exp(dice.gauss(0, _DECLARED_WRONGLY))))
    prompt = min(_MOST_PROMPT, call.prompt)
    blocks = call.blocks[: -(-prompt // PREFIX_BLOCK)]
    return Request(
        f"c{i}", at_s, prompt, tokens, declared, tuple(number * 10**9 + b for b in blocks)
    )
