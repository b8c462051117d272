"""The bounded workspace: what a later round is shown of the drafts before it.

Each different answer once, with a cut of the words of the agent that stands for it: most ballots
first and with how many gave it, or in the order in which they came. Its size is fixed, so that a
round costs the same however many agents wrote how much before it. Source: the distilled workspace
of Parallel-Distill-Refine (arXiv 2510.01123) and the compacted messages of PaCoRe (arXiv
2601.05593), here without a model's help.
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
        lines += _shown(f"Answer {letter}{held}", words.answer, text_of[words.agent_id], share)
    return "\n".join(lines)


def growing(drafts: Sequence[Draft], num_agents: int) -> str:
    """The answers in the order of the drafts: that of the first few begins that of all.

    The first agent to give an answer stands for it; an answer that comes again is one short line.
    Reasoning takes MAX_CHARS at most, in shares that are fixed by how many agents there are.
    """
    share = MAX_CHARS // max(1, min(num_agents, MAX_ANSWERS))
    letters: dict[str, str] = {}
    lines = []
    for draft in drafts:
        ballot = draft.ballot
        if letter := letters.get(ballot.key):
            lines.append(f"Answer {letter} again.")
        elif not ballot.abstained and len(letters) < MAX_ANSWERS:
            letter = letters[ballot.key] = LETTERS[len(letters)]
            lines += _shown(f"Answer {letter}", ballot.answer, draft.text, share)
    return "\n".join(lines)


def _shown(head: str, answer: str, text: str, share: int) -> list[str]:
    """An answer, and how it was come by unless that is the answer itself."""
    answer, reasoning = _cut(answer, share), _cut(text, share)
    shown = [f"{head}: {answer}"]
    return [*shown, f"Reasoning: {reasoning}"] if reasoning not in ("", answer) else shown


def _cut(text: str, num_chars: int) -> str:
    """On one line; of what is too long, the end: that is where the answer comes from."""
    line = " ".join(text.split())
    return line if len(line) <= num_chars else "… " + line[-num_chars:]
