"""Is a question open? Then its answers are texts that a vote cannot count.

Self-consistency works because a right value is found along many ways and comes out the same; a
majority then means something. Where everybody writes a text of their own no two are the same, the
leader is whoever was surest of its words, and further agents make the verdict no better. Such
questions are worth another round in which the texts are read (ADR 0017). Mistaking a question that
has a value for an open one costs as many tokens again, so in doubt it is not open.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cogitate.aggregator.core.answers import choice_key, json_key, number_key, text_key
from cogitate.aggregator.core.ballots import Ballot

# Shorter answers state something that others could have stated in the same words. The embedded
# model's longest sentence, a board of twelve cards, has 15.
MIN_WORDS = 16
# A text with more numbers than one in so many words is a calculation: what it comes to is a value.
WORDS_PER_NUMBER = 8
_WORD = re.compile(r"[^\W\d_]+")


def is_open(ballots: Sequence[Ballot]) -> bool:
    """Whether two answers or more were given, all of them texts, and no two agents agree.

    Abstentions do not count. Words are told apart by spaces and signs: where a language writes none
    between its words, nothing looks open.
    """
    answers = [ballot for ballot in ballots if not ballot.abstained]
    agree = len({ballot.key for ballot in answers}) < len(answers)
    return len(answers) > 1 and not agree and all(map(_is_text, answers))


def _is_text(ballot: Ballot) -> bool:
    """Whether an answer is neither a value, a choice, JSON nor proved, and has many words."""
    answer = ballot.answer
    if ballot.proved or ballot.key != text_key(answer):
        return False
    if number_key(answer) or choice_key(answer) or json_key(answer).startswith(("{", "[")):
        return False
    num_words = len(_WORD.findall(ballot.key))
    num_numbers = sum(any(map(str.isdigit, word)) for word in ballot.key.split())
    return num_words >= max(MIN_WORDS, WORDS_PER_NUMBER * num_numbers)
