"""The folder of models: whole or not there, whatever happens; and what commands say without one."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
from cogitate.cli import flags, screen
from cogitate.cli.commands import ask, models, up
from cogitate.cli.main import build_parser, main
from cogitate.cli.mesh.plan import Options, members
from cogitate.cli.store import catalogue, folder, offering
from cogitate.cli.store.folder import ModelError, Note

pytestmark = pytest.mark.unit

CHAT = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COGITATE_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("COGITATE_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("COGITATE_ADDRESS", raising=False)
    monkeypatch.delenv("COGITATE_AGENT_DECODER_MODELS_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "models"


def put(name: str, note: Note | None = None) -> None:
    with folder.staged(name) as staging:
        (staging / "model" / "config.json").write_text("{}")
        if note:
            folder.write_note(staging / "model", note)


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    assert folder.root() == root
    monkeypatch.delenv("COGITATE_MODELS")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert folder.root() == Path("/data/cogitate/models")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert folder.root() == Path.home() / ".local/share/cogitate/models"


def test_a_model_comes_and_goes(root: Path) -> None:
    put("one", Note("somewhere", "MIT", {"a": "b"}))
    entry = folder.find("one")
    assert entry is not None and entry.num_bytes > 2 and not entry.is_shipped
    assert entry.note == Note("somewhere", "MIT", {"a": "b"})
    assert folder.remove("one") and not folder.remove("one")
    assert folder.find("one") is None and list(root.iterdir()) == []


def test_what_fails_half_way_leaves_nothing(root: Path) -> None:
    with pytest.raises(RuntimeError), folder.staged("one") as staging:
        (staging / "model" / "config.json").write_text("{}")
        raise RuntimeError
    assert list(root.iterdir()) == []


def test_what_a_killed_command_left_is_swept_and_another_s_is_not(root: Path) -> None:
    dead = root / ".staging-999999999-one"
    alive = root / f".staging-{os.getppid()}-one"
    for path in (dead, alive):
        (path / "model").mkdir(parents=True)
    put("two")
    assert not dead.exists() and alive.exists()
    assert [entry.name for entry in folder.entries()] == ["mini", "two"]


def test_names_are_taken_once(root: Path) -> None:
    put("one")
    for name in ("one", "mini"):
        with pytest.raises(ModelError, match=r"already|comes with"):
            put(name)
    with pytest.raises(ModelError, match="already"), folder.staged("two"):
        (root / "two").mkdir()  # by another command, meanwhile


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a" * 65, "ä", "a\n"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ModelError, match="name"), folder.staged(name):
        pass


def test_a_private_mesh_serves_the_model_that_is_asked(root: Path) -> None:
    args = build_parser().parse_args(["ask", "?", "--model", "one"])
    assert ask.options(args)["model"] == "one"
    assert flags.mesh_options(args).model == "one"
    for more, model in ((["--model", "a"], "a"), (["--serve-model", "b"], "b"), ([], "mini")):
        assert flags.mesh_options(build_parser().parse_args(["up", *more])).model == model
    assert "--serve-model one" in " ".join(
        up._again(build_parser().parse_args(["up", "--model", "one"]))
    )


def test_decoders_are_told_where_the_model_is(root: Path, tmp_path: Path) -> None:
    put("one")
    options = offering.located(Options(model="one"), screen.console())
    assert options.models_path == str(root.resolve())
    planned = {
        member.name: " ".join(member.arguments)
        for member in members(options, range(7100, 7108), tmp_path, tmp_path / "t")
    }
    assert f"--model one --models-path {root.resolve()}" in planned["aurora-1"]
    assert "--default-model one" in planned["gateway"]
    assert "--default-model one" in planned["aggregator"]
    assert offering.located(Options(), screen.console()) == Options()


def test_a_folder_of_models_here_is_looked_in(tmp_path: Path) -> None:
    here = tmp_path / "checkout" / "models"
    (here / "mine").mkdir(parents=True)
    (here / "mine" / "config.json").write_text("{}")
    os.chdir(here.parent)
    found = offering.located(Options(model="mine"), screen.console())
    assert found.models_path == str(here.resolve())


def test_without_a_terminal_nothing_is_asked_and_nothing_is_fetched(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command in (["ask", "?"], ["up"], ["up", "--detach"]):
        assert main([*command, "--model", CHAT]) == 1
        assert f"`cogitate models fetch {CHAT}`" in capsys.readouterr().err
    assert main(["ask", "?", "--model", "nobody"]) == 1
    said = capsys.readouterr().err
    assert "there is no model 'nobody'" in said and CHAT in said and "mini" in said


@pytest.mark.parametrize("agrees", [True, False])
def test_at_a_terminal_it_is_offered(agrees: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def confirm(question: str, **_: object) -> bool:
        asked.append(question)
        return agrees

    monkeypatch.setattr(offering, "_may_ask", lambda console: True)
    monkeypatch.setattr(offering.Confirm, "ask", confirm)
    monkeypatch.setattr(offering.fetching, "fetch", lambda model, console: put(model.name))
    if agrees:
        assert offering.find(CHAT, screen.console()).name == CHAT
    else:
        with pytest.raises(ModelError, match="models fetch"):
            offering.find(CHAT, screen.console())
    assert "93 MB" in asked[0] and "Apache-2.0" in asked[0]


def test_the_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    put("one", Note("somewhere"))
    for command in (["models"], ["models", "list"]):
        assert main(command) == 0
        lines = capsys.readouterr().out.splitlines()
        assert any("mini" in line and "comes with cogitate" in line for line in lines)
        assert any("one" in line and "imported" in line for line in lines)
        assert any(CHAT in line and "can be fetched" in line for line in lines)


def test_removing(capsys: pytest.CaptureFixture[str]) -> None:
    put("one")
    assert main(["models", "remove", "one"]) == 0
    for name, why in (("one", "no model 'one'"), ("mini", "stays"), ("../x", "name")):
        assert main(["models", "remove", name]) == 1
        assert why in capsys.readouterr().err


def test_only_what_is_known_can_be_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["models", "fetch", "anything"])
    assert caught.value.code == 2
    assert CHAT in capsys.readouterr().err
    put(CHAT)
    assert main(["models", "fetch", CHAT]) == 0
    assert "here already" in capsys.readouterr().out


def test_the_catalogue_is_pinned() -> None:
    parser = argparse.ArgumentParser()
    models.configure(parser)
    for one in catalogue.CATALOGUE:
        assert len(one.sha256) == 64 and one.member_bytes and one.license
        assert one.version and "==" in one.requirement
        assert folder.check_name(one.name)
