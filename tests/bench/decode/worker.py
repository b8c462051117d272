"""What every engine of the benchmark is behind: a process that takes jobs on its standard input.

The standard library only, since peers run it in environments of their own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field


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
    memory: dict[str, int] = field(default_factory=dict)  # of what computes; empty: this process
    prefill_s: float = 0.0  # of the last prompt, by the engine's own clock; 0 if it does not say


def memory(pid: int | str = "self") -> dict[str, int]:
    """Resident memory of a process at its peak and now, in MiB. getrusage would count its parent's
    too: what was resident when it was started, before it became another program.
    """
    with open(f"/proc/{pid}/status") as file:
        kib = {k: int(v.split()[0]) for k, v in (x.split(":", 1) for x in file) if k[:2] == "Vm"}
    return {"peak_mib": kib["VmHWM"] // 1024, "resident_mib": kib["VmRSS"] // 1024}


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
        times = {"total_s": timing.total_s, "first_token_s": timing.first_token_s}
        say({**times, "prefill_s": timing.prefill_s, **(timing.memory or memory())})
