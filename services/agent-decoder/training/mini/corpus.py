"""The texts the tokenizer is made from, and the words it must leave spelled."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from cogitate.evals import followups, nouns, outside, phrases, toolbox
from cogitate.evals.grammar import Grammar
from cogitate.evals.items import Style
from cogitate.evals.render import COLOUR_NAMES
from tqdm import tqdm

from mini import roles, tasks
from mini.fonts import training_source
from mini.scripts import Piece, script
from mini.tokenizer import SPECIAL_TOKENS
from mini.worlds import SETS, TILING

_SLOT = re.compile(r"\{\w+\}")
FORMS, ITEMS, CASES = 400, 150, 400
# Stand in names of things, too, but are of the language of questions and traces.
LANGUAGE = frozenset(COLOUR_NAMES) | {
    "the", "in", "of", "and", "may", "out", "ok", "use", "two", "will", "target", "price", "item",
    "score", "name", "word", "label", "title", "lab",
}  # fmt: skip


def spelled() -> frozenset[str]:
    """Names of things, in small letters: they are read in pictures, letter by letter."""
    lists = (nouns.WORDS, nouns.GOODS, nouns.PLACES, nouns.NAMES, nouns.DAYS, nouns.MONTHS)
    words = {word.lower() for words in lists for word in words}
    words |= {*toolbox.SERVERS, *toolbox.TOOLS, *toolbox.ARGUMENTS}
    titles = (*nouns.SHOPS, *nouns.MEASURES, *(one.name for one in nouns.ANALYTES))
    words |= {word.lower() for title in titles for word in title.split()}
    return frozenset(words - LANGUAGE)


def _grammars() -> list[Grammar]:
    kinds = [phrases.grammar(kind) for kind in phrases.KINDS]
    follow = [followups.phrase(kind) for kind in ("more", "sum", "difference")]
    others = [outside.outside_grammar(), outside.frame_grammar(), toolbox.phrase()]
    return [*kinds, *follow, *others]


def texts(rng: np.random.Generator) -> Iterator[str]:
    """Yields questions, thoughts, calls, results and answers of every task."""
    yield from tasks.corpus(rng, 300)
    for grammar in _grammars():
        for _ in range(FORMS):
            yield _SLOT.sub("7", grammar.draw(rng, held_out=False))
    style = Style(0.0, training_source(), held_out=False)
    for _, draw in tqdm(SETS.values(), "corpus", unit="set"):
        for _ in range(ITEMS):
            yield from _said(script(draw(rng, style), TILING))
    for _ in range(CASES):
        case = roles.draw_case(rng)
        refiner = roles.refiner(case, case.drafts)
        for pieces in (roles.checker(case, rng), roles.summariser(case), refiner):
            yield from _said(pieces)


def _said(pieces: list[Piece]) -> Iterator[str]:
    return (piece.text for piece in pieces if piece.text and piece.text not in SPECIAL_TOKENS)
