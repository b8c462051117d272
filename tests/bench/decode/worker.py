"""What every engine of the benchmark is behind: a process that takes jobs on its standard input.

The standard library only, since peers run it in environments of their own.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Job:
    """Contemplations to run at once: a prompt each, `agents` samples of each prompt."""

    prompts: list[list[int]]
    agents: int
    num_tokens: int
    temperature: float
    seed: int
    bans_end: bool = False  # end tokens cannot be drawn, where usually they are drawn and ignored


@dataclass(frozen=True)
class Timing:
    """Wall time to the last token, and to the first token of the last prompt, in seconds."""

    total_s: float
    first_token_s: float
    peak_mib: int = 0  # resident, of what computes; 0 means this process


def peak_mib(pid: int | str = "self") -> int:
    """The most memory a process had resident. The usual call would count its parent's, too: what
    was resident when it was started, before it became another program.
    """
    try:
        with open(f"/proc/{pid}/status") as file:
            return next(int(x.split()[1]) for x in file if x.startswith("VmHWM")) // 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def serve(make: Callable[[str, str, int], object]) -> None:
    """Loads the engine (model, dtype, threads) and runs jobs until the input ends."""
    # What engines print is not ours to parse: answers go to the real output, all else to errors.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine = make(sys.argv[1], sys.argv[2], int(sys.argv[3]))

    def say(message: dict[str, object]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    say({"ready": True})
    for line in sys.stdin:
        timing = engine.run(Job(**json.loads(line)))  # type: ignore[attr-defined]
        say({**asdict(timing), "peak_mib": timing.peak_mib or peak_mib()})
