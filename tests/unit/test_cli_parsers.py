"""The command line: what it takes, what it refuses, and that its help is worth reading."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from cogitate.cli import flags
from cogitate.cli.commands import ask, doctor, up
from cogitate.cli.main import COMMANDS, build_parser, main
from cogitate.cli.mesh import state
from cogitate.cli.mesh.plan import Options, members, port_count

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGITATE_STATE", str(tmp_path))
    monkeypatch.delenv("COGITATE_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("text", "seconds"), [("10s", 10), ("500ms", 0.5), ("2m", 120), ("1.5", 1.5), ("1h", 3600)]
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds == flags.duration(text)


@pytest.mark.parametrize("text", ["", "0", "0s", "-1s", "ten", "1d", "1 s s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        flags.duration(text)


def test_counts_and_threads() -> None:
    assert (1, 2, 8) == flags.counts("1,2,8")
    for wrong in ("", "0", "1,-2", "1,x"):
        with pytest.raises(argparse.ArgumentTypeError):
            flags.counts(wrong)
    assert [4, 2, 1, 1] == [flags.default_threads(n, cores=4) for n in (1, 2, 4, 9)]


def test_ask_takes_what_the_issue_says() -> None:
    args = build_parser().parse_args(
        "ask Why? --image a.png --image b.png --agents 8 --effort contemplating --quorum all"
        " --strategy vote --seed 3 --deadline 10s --budget-tokens 500 --json --model mini"
        " --equivalence embedding:0.8".split()
    )
    options = ask.options(args)
    assert ["a.png", "b.png"] == args.image
    assert (8, "contemplating", "all", "vote", 3, 10.0, 500, "mini") == (
        options["agents"],
        options["effort"],
        options["quorum"],
        options["strategy"],
        options["seed"],
        options["deadline_s"],
        options["budget_tokens"],
        options["model"],
    )
    assert options["tools"] is None and options["equivalence"] == "embedding:0.8"
    none = build_parser().parse_args(["ask", "?", "--tool", "none"])
    assert [] == ask.options(none)["tools"]


@pytest.mark.parametrize(
    "wrong",
    [
        ["ask"],
        ["ask", "?", "--effort", "maximal"],
        ["ask", "?", "--agents", "many"],
        ["ask", "?", "--deadline", "soon"],
        ["eval"],
        ["eval", "boards", "--quorum", "all,,first:4"],
        ["eval", "boards", "--agents", "0"],
        ["trace"],
        ["trace", "x", "--last"],
        ["up", "--base-port", "x"],
        ["nonsense"],
    ],
)
def test_wrong_use_exits_with_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(wrong)
    assert 2 == caught.value.code
    assert "usage:" in capsys.readouterr().err


def test_wrong_use_the_parser_cannot_see_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == main(["ask", "?", "--image", "/nowhere.png"])
    assert "there is no image /nowhere.png" in capsys.readouterr().err
    assert 2 == main(["eval", "boards", "--baseline", "retry"])
    assert "needs answers that a tool can prove" in capsys.readouterr().err
    assert 2 == main([])


def test_what_needs_a_mesh_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert 1 == main(["fleet"])
    assert "cogitate up" in capsys.readouterr().err
    assert 1 == main(["trace", "--last"])
    assert "no traces yet" in capsys.readouterr().err
    assert 0 == main(["down"])


@pytest.mark.parametrize("name", [n for n in COMMANDS if n != "evaluate"] + ["eval"])
def test_help_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert 0 == caught.value.code
    said = capsys.readouterr().out
    assert name == "fleet" or f"  cogitate {name}" in said


def test_a_mesh_is_planned_with_ports_from_its_base(tmp_path: Path) -> None:
    options = Options(decoders=3, threads=2)
    assert 9 == port_count(options)
    planned = members(options, range(7100, 7109), tmp_path, tmp_path / "traces.sqlite")
    by_name = {member.name: member for member in planned}
    assert [
        "gateway",
        "aggregator",
        "router",
        "vision-encoder",
        "tool-executor",
        "aurora-1",
        "borealis-1",
        "aurora-2",
    ] == list(by_name)
    assert [f"127.0.0.1:{7100 + i}" for i in range(8)] == [m.address for m in planned]
    gateway = _flags_of(by_name["gateway"].arguments)
    assert ("127.0.0.1:7101", "127.0.0.1:7102", "127.0.0.1:7103") == (
        gateway["--aggregator-address"],
        gateway["--router-address"],
        gateway["--vision-encoder-address"],
    )
    second = _flags_of(by_name["borealis-1"].arguments)
    assert ("borealis", "us-west", "127.0.0.1:7102") == (
        second["--provider"],
        second["--region"],
        second["--router-addresses"],
    )
    assert "cogitate.agent_decoder" == by_name["aurora-2"].module
    assert "2" == by_name["aurora-1"].environment["OMP_NUM_THREADS"]
    assert all(_flags_of(m.arguments)["--trace-store"].endswith("traces.sqlite") for m in planned)


def test_further_aggregators_come_last_share_the_journal_and_are_known_to_the_gateway(
    tmp_path: Path,
) -> None:
    options = Options(decoders=1, aggregators=3)
    assert 9 == port_count(options)
    planned = members(options, range(7100, 7109), tmp_path, tmp_path / "traces.sqlite")
    by_name = {member.name: member for member in planned}
    assert ["aurora-1", "aggregator-2", "aggregator-3"] == list(by_name)[5:]
    told = _flags_of(by_name["gateway"].arguments)["--aggregator-address"]
    assert "127.0.0.1:7101,127.0.0.1:7106,127.0.0.1:7107" == told
    aggregators = [m for m in planned if m.module == "cogitate.aggregator"]
    assert 1 == len({_flags_of(m.arguments)["--journal"] for m in aggregators})
    assert told.split(",") == [_flags_of(m.arguments)["--listen"] for m in aggregators]


def test_notes_of_meshes_that_are_gone_count_as_none() -> None:
    import os

    me = state.identity(os.getpid())
    member = state.NotedMember("gateway", "127.0.0.1:1", "log", me)
    state.write(state.Note("default", "serving", me, (member,)))
    note = state.read("default")
    assert note is not None
    assert "127.0.0.1:1" == note.gateway
    assert [me, me] == note.survivors()
    assert ["default"] == list(state.running_names())
    gone = state.Identity(me.pid, me.start_ticks + 1)
    state.write(state.Note("default", "serving", gone, ()))
    assert state.read("default") is None
    (state.folder("default") / "mesh.json").write_text("{", encoding="ascii")
    assert state.read("default") is None


@pytest.mark.parametrize("name", ["..", "a/b", "", "x" * 65])
def test_names_of_meshes_are_no_paths(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        state.folder(name)


def test_the_doctor_always_has_something_to_say(capsys: pytest.CaptureFixture[str]) -> None:
    shown = doctor.Finding(doctor.FAIL, "extra decoder", "missing: torch", "pip install it")
    assert doctor.render([shown]).row_count == 1
    assert up.NAME in COMMANDS


def _flags_of(arguments: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(arguments[::2], arguments[1::2], strict=True))
