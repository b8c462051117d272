"""Text questions of Reasoning Gym (Apache-2.0), a public benchmark whose tasks are generators.

Needs `pip install 'cogitate[reasoning]'`. A task is called `reasoning-gym:chain_sum`, for instance,
and one with settings of its own `reasoning-gym:chain_sum,max_terms=2,max_digits=1`.
Source: Stojanovski et al., "Reasoning Gym", arXiv 2505.24760.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Final

from cogitate.evals.jsonl import is_right
from cogitate.evals.question import Question

PREFIX: Final = "reasoning-gym:"


def load(name: str, limit: int, seed: int = 0) -> list[Question]:
    """Returns the first `limit` questions of a task; the same for one seed.

    An answer is right if the task's own score says so fully, or if the mesh would count it as the
    same as the truth: the scores want a bare value, and agents write sentences. Raises KeyError for
    an unknown task or setting, ImportError if the package is missing.
    """
    try:
        package: Any = import_module("reasoning_gym")
    except ImportError as error:
        raise ImportError(f"{error.name} is missing: pip install 'cogitate[reasoning]'") from None
    task, *told = name.removeprefix(PREFIX).split(",")
    known = package.factory.DATASETS
    if task not in known:
        raise KeyError(f"Reasoning Gym has no task {task!r}; there are {', '.join(known)}")
    try:
        changed = {key: int(value) for key, _, value in (one.partition("=") for one in told)}
        made = package.create_dataset(task, size=limit, seed=seed, **changed)
    except (TypeError, ValueError, AssertionError) as error:
        raise KeyError(f"{task} does not take {', '.join(told)}: {error}") from None
    return [_question(name, f"{task}-{seed}-{i}", made[i], made.score_answer) for i in range(limit)]


def _question(name: str, id: str, entry: dict[str, Any], score: Callable[..., float]) -> Question:
    truth = str(entry["answer"])
    check = partial(_check, truth=truth, entry=entry, score=score)
    return Question(id, name, entry["question"], None, truth, check)


def _check(answer: str, truth: str, entry: dict[str, Any], score: Callable[..., float]) -> bool:
    return is_right(answer, (truth,), "auto") or score(answer, entry) >= 1.0
