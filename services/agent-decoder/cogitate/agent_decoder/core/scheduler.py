"""Decides what one engine step computes: a chunk of positions for each chosen sequence.

Decoding agents come first with one position each, then chunks (injected results, prefixes) share
what is left of the step's budget, in order of service. A chunk is cut at ``max_chunk``, and in a
step in which agents decode all chunks together at ``max_beside``: a long prefix never stalls
running agents for more than one slice (Sarathi-Serve, arXiv 2403.02310).

Invariants (``tests/property/test_scheduler.py``):

1. The positions of a step never exceed the budget, and no sequence appears twice.
2. A running sequence with one pending position is never left out while the budget lasts.
3. Every waiting chunk is served after finitely many steps: what comes first is served first.
4. Chunks beside decoding agents never exceed their share.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cogitate.agent_decoder.core.sequence import Sequence, State


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next ``length`` pending positions of a sequence."""

    sequence: Sequence
    length: int


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Budget of one step."""

    max_positions: int = 2048  # positions of all sequences in a step
    max_chunk: int = 512  # positions of one sequence in a step
    max_beside: int | None = None  # positions of all chunks in a step that decodes, too


def schedule(sequences: Iterable[Sequence], limits: StepLimits) -> list[Chunk]:
    """Chooses the step's chunks from sequences in order of service. Changes nothing."""
    ready = [s for s in sequences if s.state is State.RUNNING and s.pending]
    budget = limits.max_positions
    chunks: list[Chunk] = []
    for sequence in ready:
        if len(sequence.pending) == 1 and budget > 0:
            chunks.append(Chunk(sequence, 1))
            budget -= 1
    if chunks and limits.max_beside is not None:
        budget = min(budget, limits.max_beside)
    for sequence in ready:
        if len(sequence.pending) > 1 and budget > 0:
            length = min(len(sequence.pending), limits.max_chunk, budget)
            chunks.append(Chunk(sequence, length))
            budget -= length
    return chunks
