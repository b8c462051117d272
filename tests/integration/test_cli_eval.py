"""`cogitate eval` on `mini`, through a private mesh: a grid, a judge, taken up again, compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cogitate.cli.measure.results import read

from tests.integration.mesh import cogitate

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_file_with_a_picture_is_measured_taken_up_again_and_compared(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "board.png", tmp_path)
    asked = [
        {"id": "sum", "question": "What is the sum of the red cards?", "answer": 72},
        {"id": "count", "question": "How many cards are red?", "answer": 3},
    ]
    lines = [json.dumps({**one, "image": "board.png"}) for one in asked]
    (tmp_path / "cards.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    flags = (
        "eval", str(tmp_path / "cards.jsonl"), "--agents", "1,4", "--quorum", "all,unbeatable",
        "--baseline", "judge", "--decoders", "1", "--out", str(out),
    )  # fmt: skip
    state = tmp_path / "state"
    one = cogitate(state, *flags, "--limit", "1")
    assert one.returncode == 0, one.stdout + one.stderr
    two = cogitate(state, *flags)
    assert two.returncode == 0, two.stdout + two.stderr
    assert "4 of 8 results are there already" in two.stdout

    outcomes = {(one.unit.question, one.setting.name): one.outcome for one in read(out)}
    assert len(outcomes) == 8
    for (_, name), outcome in outcomes.items():
        assert not outcome.error
        assert outcome.tokens == outcome.used_tokens + outcome.killed_tokens + outcome.lost_tokens
        assert outcome.tokens > 0
        assert outcome.first_answer_s is not None
        assert 0 < outcome.first_answer_s <= outcome.latency_s
        # The judge's long question is not one that `mini` was trained for.
        assert outcome.right or name == "judge of 4"
    for question in ("sum", "count"):
        whole, part = (outcomes[question, f"4 × vote · {rule}"] for rule in ("all", "unbeatable"))
        assert whole.killed_tokens == 0
        assert part.tokens <= whole.tokens

    compared = cogitate(state, "eval", "compare", str(out))
    assert compared.returncode == 0, compared.stderr
    assert "4 × vote · all" in (out / "comparison.md").read_text()
