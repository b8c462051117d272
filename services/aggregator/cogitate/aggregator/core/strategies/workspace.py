"""The bounded workspace: what a later round is shown of the drafts before it.

Each different answer once, most ballots first, with how many gave it and a cut of the words of the
agent that stands for it. Its size is fixed, so that a round costs the same however many agents
wrote how much before it. Source: the distilled workspace of Parallel-Distill-Refine (arXiv
2510.01123) and the compacted messages of PaCoRe (arXiv 2601.05593), here without a model's help.
"""

from __future__ import annotations

from collections.abc import Sequence

from cogitate.aggregator.core.ballots import Tally, count
from cogitate.aggregator.core.strategies.base import Draft

MAX_ANSWERS = 8
MAX_CHARS = 2400
LETTERS = "ABCDEFGH"


def candidates(drafts: Sequence[Draft]) -> list[Tally]:
    """The answers there are, at most MAX_ANSWERS, winner first."""
    return count([draft.ballot for draft in drafts])[:MAX_ANSWERS]


def workspace(drafts: Sequence[Draft], *, with_counts: bool = True) -> str:
    """The answers by letter, and how they were come by; at most MAX_CHARS of the latter."""
    tallies = candidates(drafts)
    text_of = {draft.ballot.agent_id: draft.text for draft in drafts}
    share = MAX_CHARS // max(1, len(tallies))
    lines = []
    for letter, tally in zip(LETTERS, tallies, strict=False):
        words = tally.representative
        held = f", held by {len(tally.ballots)} of {len(drafts)}" if with_counts else ""
        lines.append(f"Answer {letter}{held}: {_cut(words.answer, share)}")
        if reasoning := _cut(text_of[words.agent_id], share):
            lines.append(f"Reasoning: {reasoning}")
    return "\n".join(lines)


def _cut(text: str, num_chars: int) -> str:
    """On one line; of what is too long, the end: that is where the answer comes from."""
    line = " ".join(text.split())
    return line if len(line) <= num_chars else "… " + line[-num_chars:]
