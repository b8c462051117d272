"""What the model should say in a role: check a draft, refine after drafts, join drafts.

The prompts are the strategies' own (`cogitate.aggregator.core.strategies`): drafts made here go
through the very code that the mesh shows them by. Countdown is the subject: it can be checked in
the head, and whoever checks has no tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from cogitate.agent_decoder.model.tiling import Tiling
from cogitate.aggregator.core.answers import key_of
from cogitate.aggregator.core.ballots import Ballot
from cogitate.aggregator.core.strategies import best_of, refine, synthesis
from cogitate.aggregator.core.strategies.base import Draft
from cogitate.aggregator.core.strategies.workspace import LETTERS, candidates, growing, workspace
from cogitate.evals.countdown import (
    LARGEST_NUMBER,
    LARGEST_RESULT,
    LARGEST_TARGET,
    NUMBER_COUNT,
    OPERATORS,
    QUESTION_FORMS,
    SMALLEST_TARGET,
    Puzzle,
    Step,
    apply,
    draw_puzzle,
)
from cogitate.evals.items import Item
from cogitate.evals.outside import REFUSAL
from cogitate.evals.render import COLOUR_NAMES

from mini import tokenizer as names
from mini.scripts import Piece, View, answer, call, script
from mini.traces import COLUMN_NAMES

RIGHT, WRONG = "10", "0"
DRAFTS = (2, 4)
# Cases in which no draft holds. Answers are the same by the number they end with, so a draft that
# claims the target and is wrong can only stand where no right one does.
NONE_RIGHT_SHARE = 0.4
# What is compared, the mark if it comes out well, and whether it does.
Compared = tuple[str, str, bool]
FAULT, COMPARISONS = ": ", 16


@dataclass(frozen=True)
class Case:
    """A puzzle, its question, and drafts of it, each with what is to be said of it.

    Drafts say the numbers, so any board will do for the picture.
    """

    puzzle: Puzzle
    question: str
    drafts: tuple[Draft, ...]
    judged: tuple[tuple[str, bool], ...]
    board: int | None = None


def chain(steps: Sequence[Step]) -> str:
    """Writes steps as an answer."""
    return ", ".join(map(str, steps)) + "."


def judge(puzzle: Puzzle, steps: Sequence[Step]) -> tuple[str, bool]:
    """Goes through a derivation: before each step what is left, up to the first fault.

    Returns what is said, "left 18 1 10 8: 18*1=18 is 18, left 10 8 18: 18+9: no 9.", and whether it
    holds. What a verdict needs stands right before it, and the very next mark is the verdict: the
    number that is looked for and what is left, the claim and the truth, the end and the target.
    """
    pool = list(puzzle.numbers)
    said = f"left {' '.join(map(str, pool))}"
    for step in steps:
        said += f": {step.left}"
        if step.left not in pool:
            return f"{said}: no {step.left}.", False
        pool.remove(step.left)
        said += f"{step.operator}{step.right}"
        if step.right not in pool:
            return f"{said}: no {step.right}.", False
        pool.remove(step.right)
        right = apply(step.left, step.operator, step.right)
        said += f"={step.result} is {right}"
        if step.result != right:
            return f"{said}: not {step.result}.", False
        pool.append(step.result)
        said += f", left {' '.join(map(str, pool))}"
    said += f", target {puzzle.target}"
    if pool != [puzzle.target]:
        return f"{said}: not {puzzle.target} alone.", False
    return f"{said}. It holds.", True


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
        if min(one.result for one in steps) >= 0 and not judge(puzzle, steps)[1]:
            return tuple(steps)


def draft(agent_id: int, answer_text: str, reasoning: str) -> Draft:
    """A draft as an agent of the first round leaves it."""
    key = key_of(answer_text, "auto")
    return Draft(Ballot(agent_id, 1, answer_text, key), f"{reasoning}{answer_text}")


def draw_case(
    rng: np.random.Generator,
    *,
    held_out: bool = False,
    drafts: tuple[int, int] = DRAFTS,
    none_right: float = NONE_RIGHT_SHARE,
) -> Case:
    """Draws a puzzle and as many drafts with different answers, one of them right or none."""
    puzzle = draw_puzzle(rng, held_out=held_out)
    form = QUESTION_FORMS[rng.integers(len(QUESTION_FORMS))]
    colour = COLOUR_NAMES[rng.integers(len(COLOUR_NAMES))]
    count = int(rng.integers(drafts[0], drafts[1] + 1))
    lucky = -1 if rng.random() < none_right else int(rng.integers(count))
    made: list[Draft] = []
    judged: list[tuple[str, bool]] = []
    reasoning = _reasoning(rng, colour, puzzle)
    while len(made) < count:
        i = len(made)
        steps = puzzle.steps if i == lucky else spoil(rng, puzzle)
        one = draft(i, chain(steps), reasoning)
        if one.ballot.key in {other.ballot.key for other in made}:
            continue
        if lucky >= 0 and i != lucky and one.ballot.key == key_of(chain(puzzle.steps), "auto"):
            continue
        made.append(one)
        judged.append(judge(puzzle, steps))
    question = form.format(colour=colour, target=puzzle.target)
    return Case(puzzle, question, tuple(made), tuple(judged))


def _reasoning(rng: np.random.Generator, colour: str, puzzle: Puzzle) -> str:
    """What an agent says on the way to a derivation: where the cards lie, and their numbers."""
    places = [f"{column}{row}" for row in (1, 2, 3) for column in COLUMN_NAMES]
    cells = sorted(rng.permutation(len(places))[: len(puzzle.numbers)].tolist())
    listed = " ".join(map(str, puzzle.numbers))
    return (
        f"{colour.capitalize()} at {' '.join(places[i] for i in cells)}."
        f"{', '.join(map(str, puzzle.numbers))}. Numbers {listed}, target {puzzle.target}."
    )


def _prompt(case: Case, shown: str, request: str) -> list[Piece]:
    """The second round's prompt."""
    turns = ((names.USER, case.question), (names.ASSISTANT, shown), (names.USER, request))
    pieces = [Piece(names.BEGIN)]
    for role, text in turns:
        mark = [Piece(names.ANSWER)] if role == names.ASSISTANT else []
        pieces += [Piece(role), *mark, Piece(text)]
        if text is case.question and case.board is not None:
            pieces.append(Piece(view=View(0, board=case.board)))
        pieces.append(Piece(names.END))
    return [*pieces, Piece(names.ASSISTANT)]


def checker(case: Case, rng: np.random.Generator) -> list[Piece]:
    """`best_of`'s verifier: goes through one draft, says what is wrong, and scores it."""
    tallies = candidates(case.drafts)
    i = int(rng.integers(len(tallies)))
    about = next(d for d in case.drafts if d.ballot.key == tallies[i].key)
    said, holds = case.judged[about.ballot.agent_id]
    pieces = _prompt(case, workspace(case.drafts, with_counts=False), best_of.REQUEST)
    pieces.append(Piece(f"Score of answer {LETTERS[i]}:"))
    pieces.append(Piece(f" {said}", own=True))
    return [*pieces, *answer(RIGHT if holds else WRONG)]


def audit(case: Case, rng: np.random.Generator) -> list[Piece]:
    """The checking alone: one draft, without the question, the others and the request."""
    about = int(rng.integers(len(case.drafts)))
    one, (said, holds) = case.drafts[about], case.judged[about]
    listed = " ".join(map(str, case.puzzle.numbers))
    letter = LETTERS[rng.integers(DRAFTS[1])]
    shown = f"Numbers {listed}, target {case.puzzle.target}.{one.ballot.answer}"
    pieces = [Piece(names.BEGIN), Piece(names.ASSISTANT), Piece(names.ANSWER), Piece(shown)]
    pieces += [Piece(names.END), Piece(names.ASSISTANT), Piece(f"Score of answer {letter}:")]
    return [*pieces, Piece(f" {said}", own=True), *answer(RIGHT if holds else WRONG)]


def comparisons(rng: np.random.Generator) -> list[Piece]:
    """Only the comparisons that a check depends on, as often one way as the other.

    In checks nine of ten come out well, and the mark that says so is written out of habit.
    """
    pieces = [Piece(names.BEGIN), Piece(names.ASSISTANT)]
    for _ in range(COMPARISONS):
        shown, good, holds = (_claimed, _there, _there_beside, _ended)[rng.integers(4)](rng)
        pieces += [Piece(shown), Piece(good if holds else FAULT, own=True)]
        pieces += [Piece(", ")] if holds and good != ", " else []
    return pieces


def _claimed(rng: np.random.Generator) -> Compared:
    """A calculation, the claim and the truth."""
    while True:
        largest = LARGEST_NUMBER if rng.random() < 0.6 else LARGEST_RESULT
        one, other = int(rng.integers(1, largest + 1)), int(rng.integers(1, LARGEST_NUMBER + 1))
        left, right, operator = max(one, other), min(one, other), str(rng.choice([*OPERATORS]))
        truth = apply(left, operator, right)
        if truth <= LARGEST_RESULT:
            break
    others = [apply(left, one, right) for one in OPERATORS]
    others += [truth + off for off in (-10, -2, -1, 1, 2, 10)]
    others = [one for one in others if one >= 0 and one != truth]
    holds = bool(rng.random() < 0.5)
    claim = truth if holds else others[rng.integers(len(others))]
    return f"{left}{operator}{right}={claim} is {truth}", ", ", holds


def _left(rng: np.random.Generator, least: int) -> list[int]:
    numbers = rng.integers(1, LARGEST_NUMBER + 1, rng.integers(least, NUMBER_COUNT + 1)).tolist()
    if rng.random() < 0.5:
        numbers[-1] = int(rng.integers(0, LARGEST_RESULT + 1))
    return numbers


def _looked_for(rng: np.random.Generator, pool: Sequence[int]) -> tuple[int, bool]:
    """A number that is among those left, or one that is not."""
    if rng.random() < 0.5:
        return pool[rng.integers(len(pool))], True
    while True:
        number = int(rng.integers(1, LARGEST_NUMBER + 1))
        if number not in pool:
            return number, False


def _there(rng: np.random.Generator) -> Compared:
    """Is the first number of a step among those left?"""
    pool = _left(rng, 2)
    number, holds = _looked_for(rng, pool)
    return f"left {' '.join(map(str, pool))}: {number}", "+", holds


def _there_beside(rng: np.random.Generator) -> Compared:
    """Is the second one, beside the first?"""
    pool = _left(rng, 2)
    first = pool[rng.integers(len(pool))]
    rest = [*pool]
    rest.remove(first)
    number, holds = _looked_for(rng, rest)
    return f"left {' '.join(map(str, pool))}: {first}+{number}", "=", holds


def _ended(rng: np.random.Generator) -> Compared:
    """Is what is left the target alone?"""
    target = int(rng.integers(SMALLEST_TARGET, LARGEST_TARGET + 1))
    holds = bool(rng.random() < 0.5)
    pool = [target]
    if not holds and rng.random() < 0.4:
        pool.insert(0, int(rng.integers(1, LARGEST_NUMBER + 1)))
    elif not holds:
        off = int(rng.choice((-10, -2, -1, 1, 2, 10))) if rng.random() < 0.5 else 0
        pool = [max(0, target + off) if off else int(rng.integers(0, LARGEST_RESULT + 1))]
        holds = pool == [target]
    return f"left {' '.join(map(str, pool))}, target {target}", ". ", holds


def summariser(case: Case) -> list[Piece]:
    """`synthesis`: one agent gives the draft that holds. Drafts stand in the order they came."""
    pieces = _prompt(case, growing(case.drafts, len(case.drafts)), synthesis.REQUEST)
    told, holding = _gone_through(case, case.drafts)
    sentence = holding or f"I could not make {case.puzzle.target}."
    return [*pieces, Piece(told, own=True), *answer(sentence)]


def echoed(rng: np.random.Generator, drafts: Sequence[Draft]) -> list[Draft]:
    """Adds up to two agents that came to an answer of others."""
    told = list(drafts)
    for i in rng.integers(len(drafts), size=rng.integers(0, 3)).tolist():
        told.append(replace(drafts[i], ballot=replace(drafts[i].ballot, agent_id=len(told))))
    return told


def refiner(case: Case, drafts: Sequence[Draft]) -> list[Piece]:
    """`refine`'s later round: the same from the distilled workspace, in its letters' order.

    `drafts` are the case's, some perhaps more than once. It has tools: if none holds it searches.
    """
    by_key = {one.ballot.key: one for one in case.drafts}
    shown = [by_key[tally.key] for tally in candidates(drafts)]
    prompt = _prompt(case, workspace(drafts), refine.REQUEST)
    told, holding = _gone_through(case, shown)
    if holding:
        return [*prompt, Piece(told, own=True), *answer(holding)]
    return [*prompt, Piece(f"{told} ", own=True), *_searched(case.puzzle)]


def _searched(puzzle: Puzzle) -> list[Piece]:
    """A search that finds, as solvers write it."""
    listed, steps = " ".join(map(str, puzzle.numbers)), chain(puzzle.steps)
    pieces = [Piece(f"Numbers {listed}, target {puzzle.target}.", own=True)]
    for step in puzzle.steps:
        asked = f"calculator({step.left}{step.operator}{step.right})"
        pieces += call(asked, Piece(str(step.result)))
    proof = f"prove({puzzle.target}, {listed}, {steps.removesuffix('.')})"
    return [*pieces, *call(proof, Piece("proved")), *answer(steps)]


def _gone_through(case: Case, shown: Sequence[Draft]) -> tuple[str, str]:
    """Goes through the drafts by their letters up to the first that holds.

    Returns what is said, and that draft's answer, empty if none holds.
    """
    told, holding = [], ""
    for letter, one in zip(LETTERS, shown, strict=False):
        said, holds = case.judged[one.ballot.agent_id]
        told.append(f"{letter}: {said}")
        if holds:
            holding = one.ballot.answer
            break
    return " ".join(told), holding


def again(rng: np.random.Generator, item: Item, tiling: Tiling | None) -> list[Piece]:
    """`refine`'s later round on an item with a picture: it reads again, whatever the drafts say."""
    told = f"{item.seen[:1].upper()}{item.seen[1:]}. " if item.seen else ""
    reads = ", ".join(read.text for read in item.reads)
    answered, request = later(rng, item.truth, f"{told}{reads}. ")
    whole = script(item, tiling)
    begun = next(i for i, piece in enumerate(whole) if piece.own)
    turns = (
        Piece(names.ANSWER), Piece(answered), Piece(names.END), Piece(names.USER),
        Piece(request), Piece(names.END), Piece(names.ASSISTANT),
    )  # fmt: skip
    return [*whole[:begun], *turns, *whole[begun:]]


def later(rng: np.random.Generator, truth: str, thought: str) -> tuple[str, str]:
    """What stands before a later round: the drafts, of which some may be right, and the request."""
    answers = [truth] * int(rng.integers(0, 4))
    answers += [_off(rng, truth) for _ in range(rng.integers(1, 4))]
    drafts = [
        draft(i, answers[j], thought) for i, j in enumerate(rng.permutation(len(answers)).tolist())
    ]
    return workspace(drafts), refine.REQUEST


def _off(rng: np.random.Generator, answer: str) -> str:
    """Another answer of the same form: other digits, or other letters where there are none."""
    digits = [i for i, letter in enumerate(answer) if letter.isdigit()]
    if not digits:
        opposite = {"Yes.": "No.", "No.": "Yes.", "The first.": "The second."}
        return opposite.get(answer, REFUSAL if answer != REFUSAL else "The first.")
    changed = list(answer)
    for i in rng.permutation(digits)[: rng.integers(1, 3)]:
        changed[i] = str(rng.integers(10))
    return "".join(changed)
