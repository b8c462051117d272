"""The datasets by name: questions with pictures, true answers and their checks."""

from collections.abc import Callable
from functools import partial

from cogitate.evals import boards, countdown, easy_vqa
from cogitate.evals.checks import has_label, has_number, proves
from cogitate.evals.question import Question as Question
from cogitate.evals.render import COLOUR_NAMES

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


DATASETS: dict[str, Callable[[int, int], list[Question]]] = {
    "boards": partial(_boards, "boards", EASY_NOISE),
    "boards-hard": partial(_boards, "boards-hard", HARD_NOISE),
    "easy-vqa": _easy_vqa,
    "countdown": _countdown,
}


def load(name: str, limit: int, seed: int = 0) -> list[Question]:
    """Returns the first `limit` questions of a dataset, the same for the same seed.

    Raises KeyError for an unknown name, MissingEvalExtra if the `eval` extra is not installed.
    """
    if name not in DATASETS:
        raise KeyError(f"unknown dataset {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name](limit, seed)
