"""Strict checks of answer sentences."""

import re
from collections import Counter
from collections.abc import Sequence

from cogitate.evals.countdown import apply
from cogitate.evals.easy_vqa import SHAPE_COLOUR_NAMES, SHAPES

_NUMBER = re.compile(r"-?\d+")
_WORD = re.compile(r"[a-z]+")
_VALUE = re.compile(r"(?<![\w.:])-?\d+(?:[.:]\d+)*(?![\w])")
_REFUSALS = re.compile(r"\b(can't|cannot|can not|unable to) (answer|tell|say|help)\b")
_STEP = re.compile(r"(\d+)([+*-])(\d+)=(-?\d+)")
LABELS = frozenset(("yes", "no", *SHAPES, *SHAPE_COLOUR_NAMES))


def has_number(answer: str, truth: int) -> bool:
    """Tells whether the sentence holds exactly one number and it is the truth."""
    numbers = _NUMBER.findall(answer)
    return len(numbers) == 1 and int(numbers[0]) == truth


def has_label(answer: str, truth: str) -> bool:
    """Tells whether the truth is the only easy-vqa label among the sentence's words."""
    found = LABELS.intersection(_WORD.findall(answer.lower()))
    return found == {truth}


def says(answer: str, truth: str, rivals: Sequence[str] = ()) -> bool:
    """Tells whether the answer says the truth and none of the rivals, letter case aside.

    A number or time that is the truth must be the only one that is not part of a word.
    """
    if _VALUE.fullmatch(truth):
        return _VALUE.findall(answer) == [truth]
    rest, found = _without(answer, truth)
    return found and not any(_without(rest, rival)[1] for rival in rivals)


def _without(text: str, word: str) -> tuple[str, bool]:
    """Takes every mention of a word out, and tells whether there was one."""
    pattern = rf"(?<![\w/]){re.escape(word)}(?![\w/])"
    rest, count = re.subn(pattern, " ", text, flags=re.IGNORECASE)
    return rest, count > 0


def says_all(answer: str, truths: Sequence[str], rivals: Sequence[str]) -> bool:
    """Tells whether the answer says every one of the truths and none of the rivals."""
    return all(says(answer, truth, rivals) for truth in truths)


def is_near(answer: str, truth: float, share: float) -> bool:
    """Tells whether the one number in the answer is within a share of the truth."""
    found = _VALUE.findall(answer)
    if len(found) != 1 or ":" in found[0] or found[0].count(".") > 1:
        return False
    return abs(float(found[0]) - truth) <= share * abs(truth) + 1e-9


def is_within(answer: str, truth: float, slack: float) -> bool:
    """Tells whether the one number in the answer is at most `slack` away from the truth."""
    return is_near(answer, truth, slack / abs(truth)) if truth else says(answer, "0")


def declines(answer: str) -> bool:
    """Tells whether the answer is a polite refusal and nothing else is claimed."""
    return bool(_REFUSALS.search(answer.lower())) and not _VALUE.search(answer)


def proves(answer: str, numbers: Sequence[int], target: int) -> bool:
    """Tells whether a chain like `6*4=24, 24+5=29.` uses every number once and makes the target.

    Every step must be correct and use numbers that are still free; its result becomes free. In the
    end only the target may be left.
    """
    free = Counter(numbers)
    for text in answer.strip().removesuffix(".").split(","):
        step = _STEP.fullmatch(text.strip())
        if step is None:
            return False
        left, right, result = int(step[1]), int(step[3]), int(step[4])
        if apply(left, step[2], right) != result:
            return False
        for number in (left, right):
            if free[number] == 0:
                return False
            free[number] -= 1
        free[result] += 1
    return +free == Counter([target])
