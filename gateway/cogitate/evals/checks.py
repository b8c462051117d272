"""Strict checks of answer sentences."""

import re
from collections import Counter
from collections.abc import Sequence

from cogitate.evals.countdown import apply
from cogitate.evals.easy_vqa import SHAPE_COLOUR_NAMES, SHAPES

_NUMBER = re.compile(r"-?\d+")
_WORD = re.compile(r"[a-z]+")
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
