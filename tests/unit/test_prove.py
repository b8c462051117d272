"""prove: a derivation holds, or it is wrong; nothing in between."""

from __future__ import annotations

import pytest
from cogitate.tool_executor.core.prove import MAX_ABSOLUTE, MAX_NUMBERS, prove, run
from cogitate.tool_executor.core.types import Outcome, ToolError

pytestmark = pytest.mark.unit

NUMBERS = [6, 4, 5, 3]
STEPS = ["6*4=24", "24+5=29", "29-3=26"]


def test_a_derivation_is_answered_as_the_model_would() -> None:
    assert prove(26, NUMBERS, STEPS) == "6*4=24, 24+5=29, 29-3=26."
    assert prove(26, [3, 5, 4, 6], [" 6 * 4 = 24", "24 +5=29 ", "29-3=26"]) == (
        "6*4=24, 24+5=29, 29-3=26."
    )


@pytest.mark.parametrize(
    ("target", "numbers", "steps"),
    [
        (27, NUMBERS, STEPS),
        (26, NUMBERS, [*STEPS[:2], "29-3=27"]),
        (27, NUMBERS, [*STEPS[:2], "29-3=27"]),
        (29, NUMBERS, STEPS[:2]),  # 3 is not used
        (26, [6, 4, 5], STEPS),  # 3 is not there
        (26, [6, 4, 5, 3, 3], STEPS),
        (48, [6, 4], ["6*4=24", "24+24=48"]),  # a result used twice
        (24, [6, 4, 24], ["6*4=24"]),  # 24 is left over
        (12, [6, 6], ["6+6=12", "12+0=12"]),
        (5, [5], []),
        (2, [6, 3], ["6/3=2"]),
        (36, [6, 2], ["6**2=36"]),
        (10, [6, 4], ["6+4"]),
        (10, [6, 4], ["6+4=10.0"]),
        (10, [6, 4], ["6+4=10, 1+1=2"]),
        (10, [6, 4], [""]),
        (10, [6, 4], ["six+4=10"]),
    ],
)
def test_what_does_not_hold_is_wrong(target: int, numbers: list[int], steps: list[str]) -> None:
    assert prove(target, numbers, steps) is None


def test_equal_numbers_are_told_apart_by_how_many_there_are() -> None:
    assert prove(12, [6, 6], ["6+6=12"]) == "6+6=12."
    assert prove(12, [6], ["6+6=12"]) is None
    assert prove(24, [4, 4, 8], ["4*4=16", "16+8=24"])


def test_negative_results_are_numbers_too() -> None:
    assert prove(4, [3, 5, 6], ["3-5=-2", "-2+6=4"]) == "3-5=-2, -2+6=4."


def test_the_outcome_carries_the_proof() -> None:
    asked = {"target": 26, "numbers": NUMBERS, "steps": STEPS}
    assert run(asked, ()) == Outcome(  # type: ignore[arg-type]
        text="proved", proved="6*4=24, 24+5=29, 29-3=26.", claim="26"
    )
    assert run({**asked, "target": 1}, ()) == Outcome(text="wrong")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"target": "26"},
        {"target": True},
        {"target": 26.0},
        {"target": MAX_ABSOLUTE + 1},
        {"numbers": []},
        {"numbers": [1] * (MAX_NUMBERS + 1)},
        {"numbers": [1, False]},
        {"numbers": "6 4"},
        {"steps": []},
        {"steps": ["1+1=2"] * (MAX_NUMBERS + 1)},
        {"steps": [5]},
        {"steps": ["1" * 65]},
        {"extra": 1},
    ],
)
def test_arguments_are_checked(change: dict[str, object]) -> None:
    asked = {"target": 26, "numbers": NUMBERS, "steps": STEPS, **change}
    with pytest.raises(ToolError):
        run(asked, ())  # type: ignore[arg-type]


def test_limits_hold_at_their_edge() -> None:
    numbers = [1] * MAX_NUMBERS
    steps = [f"{n}+1={n + 1}" for n in range(1, MAX_NUMBERS)]
    assert run({"target": MAX_NUMBERS, "numbers": numbers, "steps": steps}, ()).proved  # type: ignore[dict-item]
    big = MAX_ABSOLUTE
    assert prove(big, [big, 1], [f"{big}*1={big}"])
    assert prove(2 * big, [big, big], [f"{big}+{big}={2 * big}"]) is None
