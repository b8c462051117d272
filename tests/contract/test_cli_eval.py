"""`cogitate eval` against a scripted mesh: what it asks, keeps, counts and writes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from cogitate.cli.main import main
from cogitate.cli.measure.ask import MeshAway, SettingRefused, ask
from cogitate.cli.measure.results import read
from cogitate.cli.measure.setting import JUDGE, RETRY, Setting
from cogitate.client import AsyncClient
from cogitate.evals.question import Question
from cogitate.kit.config import ServiceConfig
from cogitate.kit.errors import InvalidRequest
from cogitate.kit.lifecycle import serving
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2

from tests.fakes.aggregator import FakeAggregator, Raise, Script, Step, Wait
from tests.fakes.scenarios import said

pytestmark = pytest.mark.contract

Event = pb2.ContemplationEvent
# The command, Ctrl-C heard even where the tests run in a background that ignores it.
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from cogitate.cli.main import main
sys.exit(main())
"""


@asynccontextmanager
async def mesh(script: Script) -> AsyncIterator[tuple[str, FakeAggregator]]:
    """A scripted mesh; the CLI reaches the aggregator without a gateway."""
    made: list[FakeAggregator] = []

    async def build(_: ServiceConfig, server: grpc.aio.Server) -> FakeAggregator:
        made.append(FakeAggregator(server, script))
        return made[0]

    config = ServiceConfig(listen="127.0.0.1:0", drain_grace_s=0.2)
    async with serving(config, build) as running:
        yield running.address, made[0]


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGITATE_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("COGITATE_ADDRESS", raising=False)


async def run(*arguments: str) -> int:
    """Runs the command in a thread of its own, as a process would."""
    return await asyncio.to_thread(main, ["eval", *arguments])


def text_of(request: pb2.ContemplateRequest) -> str:
    """What was asked."""
    return request.spec.conversation[-1].parts[0].text


def verdict(answer: str, used: int, killed: int = 0, *, proved: bool = False) -> Event:
    """An ending; two ballots for the answer, and one abstained."""
    event = Event(verdict=common_pb2.Verdict(answer=answer, key=answer, proved=proved))
    ledger = event.verdict.certificate.ledger
    ledger.used_token_count, ledger.killed_token_count = used, killed
    ledger.generated_token_count = used + killed
    for agent, key in enumerate((answer, answer, "")):
        event.verdict.certificate.ballots.add(agent_id=agent, key=key, abstained=not key)
    return event


def answering(request: pb2.ContemplateRequest) -> Sequence[Step]:
    """Answers with the first word of the question; `unbeatable` kills half of the tokens."""
    agents = request.spec.agent_count
    saves = request.spec.quorum == "unbeatable"
    ending = verdict(text_of(request).split()[0], 5 * agents, 0 if saves else 5 * agents)
    return (Event(accepted=pb2.Accepted()), said(0, 0, "x", answer=True), Wait(0.02), ending)


def question(number: int) -> Question:
    """A question whose right answer is its number."""
    return Question(str(number), "test", str(number), None, str(number), str(number).__eq__)


def questions_file(folder: Path, count: int = 3) -> str:
    """A file whose last question is answered wrongly."""
    path = folder / "set.jsonl"
    lines = [{"id": i, "question": f"{i} ?", "answer": i} for i in range(count - 1)]
    lines.append({"id": "last", "question": "7 ?", "answer": "8"})
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(path)


async def test_a_gang_is_asked_and_everything_about_it_noted() -> None:
    def script(request: pb2.ContemplateRequest) -> Sequence[Step]:
        assert text_of(request) == "2"
        degraded = pb2.FeatureDegraded(feature="INITIAL_AGENT_COUNT", message="not there yet")
        return (
            Event(accepted=pb2.Accepted()),
            Event(feature_degraded=degraded),
            said(0, 0, "thinking"),
            Wait(0.1),
            said(0, 1, "2", answer=True),
            Wait(0.1),
            verdict("2", 12, 30),
        )

    async with mesh(script) as (address, fake), AsyncClient(address) as client:
        setting = Setting(8, strategy="vote", quorum="posterior:0.95", initial_agents=2)
        found = await ask(client, question(2), setting, 5)
        spec = fake.requests[0].spec
    assert (spec.agent_count, spec.strategy, spec.quorum) == (8, "vote", "posterior:0.95")
    assert (spec.initial_agent_count, spec.sampling_params.seed) == (2, 5)
    assert (found.right, found.answer, found.error) == (True, "2", "")
    assert (found.tokens, found.used_tokens, found.killed_tokens) == (42, 12, 30)
    assert found.first_answer_s is not None
    # Loose towards late: the machine may be busy.
    assert 0.1 <= found.first_answer_s <= found.latency_s - 0.05
    assert found.agreement == pytest.approx(2 / 3)
    assert found.left_out == ("INITIAL_AGENT_COUNT",)


async def test_a_failure_is_a_wrong_answer_that_cost_what_it_cost() -> None:
    def script(request: pb2.ContemplateRequest) -> Sequence[Step]:
        failed = pb2.Failed(code=14, reason="NO_ENDPOINT", message="no endpoint is left")
        failed.ledger.generated_token_count = failed.ledger.lost_token_count = 9
        return (Event(accepted=pb2.Accepted()), Event(failed=failed))

    async with mesh(script) as (address, _), AsyncClient(address) as client:
        found = await ask(client, question(0), Setting(8), 0)
    assert (found.right, found.error) == (False, "NO_ENDPOINT")
    assert (found.tokens, found.lost_tokens) == (9, 9)


async def test_what_is_refused_is_the_settings_fault_or_the_questions() -> None:
    async with (
        mesh(
            lambda request: (
                Raise(
                    InvalidRequest("unknown quorum 'most'; there are: all", field="spec.quorum")
                    if request.spec.quorum == "most"
                    else InvalidRequest("the image is broken", field="conversation[0].parts[1]")
                ),
            )
        ) as (address, _),
        AsyncClient(address) as client,
    ):
        with pytest.raises(SettingRefused, match="there are: all"):
            await ask(client, question(0), Setting(8, quorum="most"), 0)
        found = await ask(client, question(0), Setting(8, quorum="all"), 0)
        assert (found.right, bool(found.error)) == (False, True)
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(MeshAway):
            await ask(client, question(0), Setting(8), 0)


async def test_the_judge_is_shown_what_independent_calls_answered() -> None:
    def script(request: pb2.ContemplateRequest) -> Sequence[Step]:
        text = text_of(request)
        if text != "3":
            return (Event(accepted=pb2.Accepted()), said(0, 0, "3", answer=True), verdict("3", 7))
        seed = request.spec.sampling_params.seed
        answer = "3" if seed % 2 else "4"
        return (Event(accepted=pb2.Accepted()), Wait(0.8), verdict(answer, 10))

    async with mesh(script) as (address, fake), AsyncClient(address) as client:
        found = await ask(client, question(3), Setting(4, kind=JUDGE), 0)
    calls, last = fake.requests[:-1], fake.requests[-1]
    assert len(calls) == 4
    assert len({one.spec.sampling_params.seed for one in calls}) == 4
    assert {(one.spec.agent_count, one.spec.effort) for one in fake.requests} == {
        (1, common_pb2.EFFORT_THINKING)
    }
    answers = ["3" if one.spec.sampling_params.seed % 2 else "4" for one in calls]
    shown = text_of(last)
    assert shown.startswith("3\n\n4 attempts at this question answered:\n1. ")
    assert sorted(answers) == sorted(
        line.split(". ")[1] for line in shown.splitlines() if line[:1].isdigit() and ". " in line
    )
    assert (found.right, found.tokens) == (True, 47)
    assert found.agreement == answers.count("3") / 4
    assert found.first_answer_s is not None
    assert found.first_answer_s >= 0.8, "the judge begins when all have answered"
    assert found.latency_s < 4 * 0.8, "the calls run at the same time"


async def test_the_retry_baseline_stops_at_a_proof_or_at_its_budget() -> None:
    tries: dict[str, int] = {}

    def script(request: pb2.ContemplateRequest) -> Sequence[Step]:
        text = text_of(request)
        tries[text] = tries.get(text, 0) + 1
        right = text == "1" and tries[text] == 3
        return (
            Event(accepted=pb2.Accepted()),
            verdict(text if right else "no", 10, proved=right),
        )

    async with mesh(script) as (address, fake), AsyncClient(address) as client:
        setting = Setting(8, kind=RETRY, strategy="vote", quorum="verified")
        found = [
            await ask(client, question(number), setting, number, budget)
            for number, budget in ((0, 45), (1, 80))
        ]
    assert {"0": 5, "1": 3} == tries
    assert [(False, 50), (True, 30)] == [(one.right, one.tokens) for one in found]
    seeds = [request.spec.sampling_params.seed for request in fake.requests]
    assert len(set(seeds)) == len(seeds)
    # It samples: a greedy agent would say the same in every try.
    temperatures = {request.spec.sampling_params.temperature for request in fake.requests}
    assert len(temperatures) == 1 and temperatures.pop() == pytest.approx(0.8)
    assert {request.spec.agent_count for request in fake.requests} == {1}


async def test_a_grid_over_a_file_is_measured_written_and_taken_up_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = (questions_file(tmp_path), "--agents", "1,4", "--quorum", "all,unbeatable")
    async with mesh(answering) as (address, fake):
        flags = (*asked, "--baseline", "judge", "--out", str(out), "--address", address)
        assert await run(*flags, "--limit", "2") == 0
        first = len(fake.requests)
        # Two questions, of each: one agent, two quorums of four, four calls and their judge.
        assert first == 2 * (1 + 2 + 5)
        assert await run(*flags) == 0
        assert len(fake.requests) == 3 * 8, "what is there is not asked again"
        assert await run(*flags) == 0
        assert len(fake.requests) == 3 * 8
    shown = capsys.readouterr().out
    assert "8 of 12 results are there already" in shown
    assert len(read(out)) == 12
    summary = json.loads((out / "summary.json").read_text())
    rows = {row["name"]: row for row in summary["rows"]}
    assert set(rows) == {
        "1 × vote",
        "4 × vote · all",
        "4 × vote · unbeatable",
        "judge of 4",
    }
    saving, whole = rows["4 × vote · unbeatable"], rows["4 × vote · all"]
    assert (saving["tokens_mean"], whole["tokens_mean"], whole["killed_mean"]) == (20, 40, 20)
    assert (saving["questions"], saving["right"], saving["tokens_per_right"]) == (3, 2, 30)
    assert (
        "| set | 4 × vote · unbeatable | 66.7 (20.8–93.9) | 3 | 20 |"
        in (out / "summary.md").read_text()
    )

    assert await run("compare", str(out)) == 0
    (pair,) = [
        one
        for one in json.loads((out / "comparison.json").read_text())["comparisons"]
        if one["reference"] == "4 × vote · all"
    ]
    assert (pair["setting"], pair["tokens"]["value"]) == ("4 × vote · unbeatable", 0.5)
    assert pair["accuracy"]["value"] == 0.0
    assert pair["accuracy"]["low"] < 0 < pair["accuracy"]["high"]


async def test_plots_are_drawn_of_what_is_in_the_folder(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'cogitate[eval]'")
    out = tmp_path / "out"
    async with mesh(answering) as (address, _):
        asked = ("--agents", "1,2,4", "--out", str(out), "--address", address)
        assert await run(questions_file(tmp_path), *asked) == 0
    for name in ("set-frontier.png", "set-agents.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


async def test_a_refused_setting_is_told_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(request: pb2.ContemplateRequest) -> Sequence[Step]:
        if request.spec.quorum == "most":
            return (Raise(InvalidRequest("unknown quorum 'most'", field="spec.quorum")),)
        return answering(request)

    async with mesh(script) as (address, fake):
        flags = ("--agents", "4", "--quorum", "all,most", "--address", address)
        assert await run(questions_file(tmp_path), *flags) == 1
        assert len(fake.requests) == 3 + 1, "a refused setting is asked for once"
    shown = " ".join(capsys.readouterr().out.split())
    assert "Refused by the mesh: 4 × vote · most: unknown quorum 'most'" in shown
    assert "66.7 (20.8–93.9)" in shown


async def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    def slow(request: pb2.ContemplateRequest) -> Sequence[Step]:
        return (Event(accepted=pb2.Accepted()), Wait(0.2), verdict("1", 5))

    out = tmp_path / "out"
    file = questions_file(tmp_path, 500)
    async with mesh(slow) as (address, fake):
        command = ("eval", file, "--out", str(out), "--address", address)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            INTERRUPTIBLE,
            *command,
            stdout=asyncio.subprocess.PIPE,
            stdin=asyncio.subprocess.DEVNULL,
        )
        while len(fake.requests) < 4:
            await asyncio.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(60):
                shown, _ = await process.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    assert process.returncode == 130
    assert "the same command goes on from here" in shown.decode()
    done = read(out)
    assert 3 <= len(done) <= len(fake.requests)
    rows = json.loads((out / "summary.json").read_text())["rows"]
    assert sum(row["runs"] for row in rows) == len(done)


async def test_wrong_use_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "?", "answer": "1"}\n{"question": "?"}\n')
    (tmp_path / "results.jsonl").write_text("{}\n")
    for arguments, words in (
        ((str(bad),), "bad, line 2: needs an `answer`"),
        (("nothing",), "there is no set 'nothing' and no such file"),
        (("boards", "more"), "only `compare` takes folders"),
        (("compare",), "takes one folder or two"),
        (("compare", str(tmp_path / "gone")), "there are no results"),
        (("compare", str(tmp_path)), "line 1 is not a result"),
        ((str(bad), "--baseline", "luck"), "there is no baseline 'luck'"),
        (("boards", "--baseline", "retry"), "needs answers that a tool can prove"),
    ):
        assert await run(*arguments) == 2
        assert words in capsys.readouterr().err


async def test_nobody_there_keeps_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = (questions_file(tmp_path), "--out", str(out), "--address", "127.0.0.1:1")
    assert await run(*flags) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "no mesh answers at 127.0.0.1:1" in shown
    assert "goes on from here" in shown
    assert read(out) == [], "that nobody was there is no result of the mesh"
