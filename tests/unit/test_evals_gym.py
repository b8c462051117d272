"""Reasoning Gym's tasks as questions; the package itself where it is installed, else its shape."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from cogitate.evals import gym

pytestmark = pytest.mark.unit


class Sums:
    """A task in the package's shape: sums up to `largest`, scored by the bare value."""

    def __init__(self, size: int, seed: int, largest: int = 9) -> None:
        assert largest > 0, "largest must be positive"
        self.seed, self.largest = seed, largest

    def __getitem__(self, index: int) -> dict[str, Any]:
        first, second = (self.seed + index) % self.largest, index % self.largest
        return {"question": f"{first} + {second}?", "answer": str(first + second)}

    def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
        return 1.0 if answer == f"={entry['answer']}" else 0.01


@pytest.fixture
def _shape(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("reasoning_gym")
    package.factory = SimpleNamespace(DATASETS={"sums": Sums})  # type: ignore[attr-defined]
    package.create_dataset = lambda name, **how: Sums(**how)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reasoning_gym", package)


@pytest.mark.usefixtures("_shape")
def test_a_task_gives_questions_that_its_score_or_the_mesh_would_call_right() -> None:
    first, second = gym.load("reasoning-gym:sums,largest=5", 2, seed=3)
    assert (first.text, second.text, second.truth) == ("3 + 0?", "4 + 1?", "5")
    assert first.id != second.id
    assert first.dataset == "reasoning-gym:sums,largest=5"
    for answer, is_right in (("The answer is 5.", True), ("=5", True), ("4", False), ("", False)):
        assert second.check(answer) is is_right


@pytest.mark.usefixtures("_shape")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("product", "no task 'product'; there are sums"),
        ("sums,smallest=1", "does not take smallest=1"),
        ("sums,largest=many", "does not take largest=many"),
        ("sums,largest=0", "largest must be positive"),
    ],
)
def test_what_the_package_does_not_have_is_a_sentence(name: str, why: str) -> None:
    with pytest.raises(KeyError, match=why):
        gym.load(f"reasoning-gym:{name}", 1)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"cogitate\[reasoning\]"):
        gym.load("reasoning-gym:sums", 1)


def test_the_package_itself() -> None:
    pytest.importorskip("reasoning_gym", reason="pip install 'cogitate[reasoning]'")
    name = "reasoning-gym:chain_sum,max_terms=2,max_digits=1"
    questions, again = gym.load(name, 5, seed=2), gym.load(name, 5, seed=2)
    assert [one.text for one in questions] == [one.text for one in again]
    for one in questions:
        assert one.check(one.truth)
        assert one.check(f"The answer is {one.truth}.")
        assert not one.check("I can't answer that.")
