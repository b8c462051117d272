"""The datasets by name: questions with pictures, true answers and their checks."""

from collections.abc import Callable
from functools import partial

import numpy as np
from cogitate.evals import boards, charts, compare, countdown, easy_vqa, followups, labels, tables
from cogitate.evals.chains import draw_item as draw_chain
from cogitate.evals.checks import has_label, has_number, proves
from cogitate.evals.grammar import KNOWN_FORMS
from cogitate.evals.items import Draw, Item, Style
from cogitate.evals.outside import draw_near, draw_outside
from cogitate.evals.question import Question as Question
from cogitate.evals.render import COLOUR_NAMES, to_png
from cogitate.evals.sources import held_out_source

EASY_NOISE, HARD_NOISE = 0.5, 1.5


def _boards(name: str, noise: float, limit: int, seed: int) -> list[Question]:
    questions = []
    for i, (item, png) in enumerate(boards.held_out_questions(limit, noise=noise, seed=seed)):
        truth = boards.answer_sentence(item.kind, COLOUR_NAMES[item.colour], item.truth)
        check = partial(has_number, truth=item.truth)
        questions.append(Question(f"{name}-{seed}-{i}", name, item.text, png, truth, check))
    return questions


def _easy_vqa(limit: int, seed: int) -> list[Question]:
    return [
        Question(
            f"easy-vqa-{item.index}",
            "easy-vqa",
            item.text,
            item.image_png,
            easy_vqa.answer_sentence(item.label),
            partial(has_label, truth=item.label),
        )
        for item in easy_vqa.test_questions(limit, seed=seed)
    ]


def _countdown(limit: int, seed: int) -> list[Question]:
    questions = []
    drawn = countdown.held_out_questions(limit, noise=EASY_NOISE, seed=seed)
    for i, (item, png) in enumerate(drawn):
        truth = ", ".join(str(step) for step in item.puzzle.steps) + "."
        check = partial(proves, numbers=item.puzzle.numbers, target=item.puzzle.target)
        questions.append(
            Question(f"countdown-{seed}-{i}", "countdown", item.text, png, truth, check)
        )
    return questions


def _question(name: str, id: str, item: Item) -> Question:
    pictures = tuple(to_png(picture) for picture in item.pictures)
    return Question(
        id,
        name,
        item.text,
        pictures[0] if pictures else None,
        item.truth,
        item.check,
        more_png=pictures[1:],
        earlier=item.earlier,
        tables=item.tables,
    )


def _drawn(name: str, draw: Draw, noise: float, limit: int, seed: int) -> list[Question]:
    """Questions drawn one by one from held-out fonts, words and forms."""
    style = Style(noise, held_out_source(), held_out=True)
    salt = int.from_bytes(name.encode()) % 2**32
    return [
        _question(name, f"{name}-{seed}-{i}", draw(np.random.default_rng((seed, salt, i)), style))
        for i in range(limit)
    ]


def _known(name: str, draw: Draw, noise: float, limit: int, seed: int) -> list[Question]:
    """The same, asked in forms that training had."""
    token = KNOWN_FORMS.set(True)
    try:
        return _drawn(name, draw, noise, limit, seed)
    finally:
        KNOWN_FORMS.reset(token)


_DRAWN: dict[str, tuple[Draw, float]] = {
    "labels": (labels.draw_item, EASY_NOISE),
    "labels-hard": (labels.draw_item, HARD_NOISE),
    "tables": (tables.draw_item, EASY_NOISE),
    "tables-hard": (tables.draw_item, HARD_NOISE),
    "charts": (charts.draw_item, EASY_NOISE),
    "charts-hard": (charts.draw_item, HARD_NOISE),
    "pairs": (compare.draw_item, EASY_NOISE),
    "followups": (followups.draw_item, EASY_NOISE),
    "chains": (draw_chain, EASY_NOISE),
    "outside": (draw_outside, EASY_NOISE),
    "near-misses": (draw_near, EASY_NOISE),
}
# Asked in thousands of forms.
_FORMS = ("labels", "tables", "charts")
# What one agent often gets wrong: hard pictures and puzzles, taken in turn.
_MIXED = ("labels-hard", "tables-hard", "charts-hard", "boards-hard", "countdown")


def _mixed(limit: int, seed: int) -> list[Question]:
    each = -(-limit // len(_MIXED))
    turns = zip(*(DATASETS[name](each, seed) for name in _MIXED), strict=True)
    return [question for turn in turns for question in turn][:limit]


DATASETS: dict[str, Callable[[int, int], list[Question]]] = {
    "boards": partial(_boards, "boards", EASY_NOISE),
    "boards-hard": partial(_boards, "boards-hard", HARD_NOISE),
    "easy-vqa": _easy_vqa,
    "countdown": _countdown,
    "mixed-hard": _mixed,
    **{name: partial(_drawn, name, draw, noise) for name, (draw, noise) in _DRAWN.items()},
    **{f"{name}-known": partial(_known, f"{name}-known", *_DRAWN[name]) for name in _FORMS},
}


def load(name: str, limit: int, seed: int = 0) -> list[Question]:
    """Returns the first `limit` questions of a dataset, the same for the same seed.

    Raises KeyError for an unknown name, MissingEvalExtra if the `eval` extra is not installed.
    """
    if name not in DATASETS:
        raise KeyError(f"unknown dataset {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name](limit, seed)
