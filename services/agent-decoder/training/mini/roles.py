"""What the model should say in a role: check a draft, refine after drafts, join drafts.

The prompts are the strategies' own (`cogitate.aggregator.core.strategies`): drafts made here go
through the very code that the mesh shows them by. Countdown is the subject: it can be checked in
the head, and whoever checks has no tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from cogitate.aggregator.core.answers import key_of
from cogitate.aggregator.core.ballots import Ballot
from cogitate.aggregator.core.strategies import best_of, refine, synthesis
from cogitate.aggregator.core.strategies.base import Draft
from cogitate.aggregator.core.strategies.workspace import LETTERS, candidates, growing, workspace
from cogitate.evals.countdown import QUESTION_FORMS, Puzzle, Step, apply, draw_puzzle
from cogitate.evals.render import COLOUR_NAMES

from mini import tokenizer as names
from mini.scripts import Piece, answer

RIGHT, WRONG = "10", "0"
DRAFTS = (2, 4)
# Cases in which no draft holds. Answers are the same by the number they end with, so a draft that
# claims the target and is wrong can only stand where no right one does.
NONE_RIGHT_SHARE = 0.4


@dataclass(frozen=True)
class Case:
    """A puzzle, its question, and drafts of it; `reasons` says of each draft what is wrong."""

    puzzle: Puzzle
    question: str
    drafts: tuple[Draft, ...]
    reasons: tuple[str, ...]


def chain(steps: Sequence[Step]) -> str:
    """Writes steps as an answer."""
    return ", ".join(map(str, steps)) + "."


def judge(puzzle: Puzzle, steps: Sequence[Step]) -> str:
    """Says what the first thing is that is wrong with a derivation; empty if it holds."""
    pool = list(puzzle.numbers)
    for step in steps:
        for number in (step.left, step.right):
            if number not in pool:
                return f"there is no {number} left"
            pool.remove(number)
        right = apply(step.left, step.operator, step.right)
        if step.result != right:
            return f"{step.left}{step.operator}{step.right} is {right}"
        pool.append(step.result)
    if pool == [puzzle.target]:
        return ""
    return f"{pool[0]} is not {puzzle.target}" if len(pool) == 1 else "a number is not used"


def spoil(rng: np.random.Generator, puzzle: Puzzle) -> tuple[Step, ...]:
    """Returns a derivation that does not hold, wrong in one of the ways in which drafts are."""
    while True:
        steps = list(puzzle.steps)
        i = int(rng.integers(len(steps)))
        step = steps[i]
        way = rng.integers(4)
        if way == 0:  # a calculation that is a little off
            off = int(rng.choice((-10, -2, -1, 1, 2, 10)))
            steps[i] = replace(step, result=max(0, step.result + off))
        elif way == 1:  # another operator, calculated well
            operator = str(rng.choice([one for one in "+-*" if one != step.operator]))
            result = apply(step.left, operator, step.right)
            steps[i] = Step(step.left, operator, step.right, result)
        elif way == 2:  # a number that is not on the cards
            left = int(rng.integers(1, 21))
            steps[i] = Step(left, step.operator, step.right, apply(left, step.operator, step.right))
        else:  # a number left out
            steps = steps[:-1]
        if min(one.result for one in steps) >= 0 and judge(puzzle, steps):
            return tuple(steps)


def draft(agent_id: int, answer_text: str, reasoning: str) -> Draft:
    """A draft as an agent of the first round leaves it."""
    key = key_of(answer_text, "auto")
    return Draft(Ballot(agent_id, 1, answer_text, key), f"{reasoning}{answer_text}")


def draw_case(rng: np.random.Generator, *, held_out: bool = False) -> Case:
    """Draws a puzzle and drafts with different answers, one of them right or none."""
    puzzle = draw_puzzle(rng, held_out=held_out)
    form = QUESTION_FORMS[rng.integers(len(QUESTION_FORMS))]
    colour = COLOUR_NAMES[rng.integers(len(COLOUR_NAMES))]
    count = int(rng.integers(DRAFTS[0], DRAFTS[1] + 1))
    lucky = -1 if rng.random() < NONE_RIGHT_SHARE else int(rng.integers(count))
    drafts: list[Draft] = []
    reasons: list[str] = []
    listed = " ".join(map(str, puzzle.numbers))
    while len(drafts) < count:
        i = len(drafts)
        steps = puzzle.steps if i == lucky else spoil(rng, puzzle)
        made = draft(i, chain(steps), f"Numbers {listed}, target {puzzle.target}. ")
        if made.ballot.key in {one.ballot.key for one in drafts}:
            continue
        if lucky >= 0 and i != lucky and made.ballot.key == key_of(chain(puzzle.steps), "auto"):
            continue
        drafts.append(made)
        reasons.append(judge(puzzle, steps))
    question = form.format(colour=colour, target=puzzle.target)
    return Case(puzzle, question, tuple(drafts), tuple(reasons))


def _prompt(case: Case, shown: str, request: str) -> list[Piece]:
    """The second round's prompt. Drafts say the numbers, so the picture is not needed here."""
    turns = ((names.USER, case.question), (names.ASSISTANT, shown), (names.USER, request))
    pieces = [Piece(names.BEGIN)]
    for role, text in turns:
        mark = [Piece(names.ANSWER)] if role == names.ASSISTANT else []
        pieces += [Piece(role), *mark, Piece(text), Piece(names.END)]
    return [*pieces, Piece(names.ASSISTANT)]


def checker(case: Case, rng: np.random.Generator) -> list[Piece]:
    """`best_of`'s verifier: goes through one draft, says what is wrong, and scores it."""
    tallies = candidates(case.drafts)
    i = int(rng.integers(len(tallies)))
    about = next(d for d in case.drafts if d.ballot.key == tallies[i].key)
    reason = case.reasons[about.ballot.agent_id]
    said = f" {reason[:1].upper()}{reason[1:]}." if reason else " Every step holds."
    pieces = _prompt(case, workspace(case.drafts, with_counts=False), best_of.REQUEST)
    pieces.append(Piece(f"Score of answer {LETTERS[i]}:"))
    pieces.append(Piece(said, own=True))
    return [*pieces, *answer(WRONG if reason else RIGHT)]


def summariser(case: Case) -> list[Piece]:
    """`synthesis`: one agent gives the draft that holds. Drafts stand in the order they came."""
    pieces = _prompt(case, growing(case.drafts, len(case.drafts)), synthesis.REQUEST)
    return [*pieces, *_concluded(case, case.drafts)]


def refiner(case: Case) -> list[Piece]:
    """`refine`'s later round: the same from the distilled workspace, in its letters' order."""
    by_key = {one.ballot.key: one for one in case.drafts}
    shown = [by_key[tally.key] for tally in candidates(case.drafts)]
    return [*_prompt(case, workspace(case.drafts), refine.REQUEST), *_concluded(case, shown)]


def _concluded(case: Case, shown: Sequence[Draft]) -> list[Piece]:
    """Names what is wrong with each draft by its letter; gives the one that holds, or admits."""
    said, sentence = [], f"I could not make {case.puzzle.target}."
    for letter, one in zip(LETTERS, shown, strict=False):
        reason = case.reasons[one.ballot.agent_id]
        said.append(f"{letter}: {reason or 'every step holds'}. ")
        sentence = sentence if reason else one.ballot.answer
    return [Piece("".join(said), own=True), *answer(sentence)]
