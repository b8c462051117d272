"""Questions about word labels on coloured cards."""

from __future__ import annotations

from functools import partial

import numpy as np
from cogitate.evals import nouns
from cogitate.evals.cards import Labels, draw_labels, render_labels
from cogitate.evals.checks import says, says_all
from cogitate.evals.items import Item, Read, Style
from cogitate.evals.phrases import grammar
from cogitate.evals.render import COLOUR_NAMES

KINDS = ("word", "colour", "words", "has")


def draw_item(rng: np.random.Generator, style: Style) -> Item:
    """Draws a board, its picture and a question about what the cards say."""
    labels = draw_labels(rng, nouns.WORDS, held_out=style.held_out)
    canvas = render_labels(rng, labels, style)
    picture, boxes = canvas.photo(rng, style.noise)
    reads = [Read(word, boxes["card", i]) for i, word in enumerate(labels.words)]
    kind = KINDS[rng.integers(len(KINDS))]
    make = {"word": _word, "colour": _colour, "words": _words, "has": _has}[kind]
    item, needed = make(rng, labels, style)
    return Item(
        f"labels.{kind}",
        item.text,
        item.truth,
        item.check,
        pictures=(picture,),
        reads=tuple(reads[i] for i in needed),
        seen=labels.seen,
    )


def _ask(rng: np.random.Generator, kind: str, style: Style, **slots: str) -> str:
    form = grammar(f"labels.{kind}").draw(rng, held_out=style.held_out)
    return form.format(**slots)


def _word(rng: np.random.Generator, labels: Labels, style: Style) -> tuple[Item, list[int]]:
    colour = int(rng.choice(labels.single_colours))
    place = labels.colours.index(colour)
    word = labels.words[place]
    others = tuple(one for one in labels.words if one != word)
    text = _ask(rng, "word", style, colour=COLOUR_NAMES[colour])
    check = partial(says, truth=word, rivals=others)
    return Item("", text, f"It says {word}.", check), [place]


def _colour(rng: np.random.Generator, labels: Labels, style: Style) -> tuple[Item, list[int]]:
    place = int(rng.integers(len(labels.words)))
    name = COLOUR_NAMES[labels.colours[place]]
    others = tuple(one for one in COLOUR_NAMES if one != name)
    text = _ask(rng, "colour", style, word=labels.words[place])
    check = partial(says, truth=name, rivals=others)
    return Item("", text, f"The {name} card.", check), list(range(place + 1))


def _words(rng: np.random.Generator, labels: Labels, style: Style) -> tuple[Item, list[int]]:
    few = [k for k in sorted(set(labels.colours)) if labels.colours.count(k) <= 4]
    colour = few[rng.integers(len(few))]
    words = labels.words_of(colour)
    others = tuple(one for one in labels.words if one not in words)
    text = _ask(rng, "words", style, colour=COLOUR_NAMES[colour])
    check = partial(says_all, truths=words, rivals=others)
    places = [i for i, k in enumerate(labels.colours) if k == colour]
    return Item("", text, f"{', '.join(words).capitalize()}.", check), places


def _has(rng: np.random.Generator, labels: Labels, style: Style) -> tuple[Item, list[int]]:
    if rng.random() < 0.5:
        place = int(rng.integers(len(labels.words)))
        word, is_there, needed = labels.words[place], True, list(range(place + 1))
    else:
        word = nouns.draw_absent(rng, nouns.WORDS, labels.words, held_out=style.held_out)
        is_there = False
        needed = list(range(len(labels.words)))
    text = _ask(rng, "has", style, word=word)
    truth, rival = ("Yes", "No") if is_there else ("No", "Yes")
    return Item("", text, f"{truth}.", partial(says, truth=truth, rivals=(rival,))), needed
