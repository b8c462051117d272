"""Knobs: precedence, types, ranges, help, and model names that are never paths."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from cogitate.kit.config import ConfigError, ServiceConfig, knob, load, model_directory
from cogitate.kit.errors import InvalidRequest

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Knobs(ServiceConfig):
    """The knobs of a test."""

    width_count: int = knob(3, "how wide, 100% of it", minimum=1, maximum=8)
    ratio: float = knob(0.5, "how much", minimum=0.0)
    verbose: bool = knob(False, "say more")
    peers: tuple[str, ...] = knob((), "whom to call")
    root: Path = knob(Path("/srv"), "where")


def test_defaults() -> None:
    config = load(Knobs, "test", [], {})
    assert config == Knobs()
    assert (config.listen, config.drain_grace_s) == ("127.0.0.1:0", 10.0)


def test_every_type_from_the_environment() -> None:
    env = {
        "COGITATE_MY_TEST_WIDTH_COUNT": "5",
        "COGITATE_MY_TEST_RATIO": "2.5",
        "COGITATE_MY_TEST_VERBOSE": "Yes",
        "COGITATE_MY_TEST_PEERS": "a:1, b:2,",
        "COGITATE_MY_TEST_ROOT": "/tmp/x",
        "COGITATE_OTHER_WIDTH_COUNT": "8",
    }
    config = load(Knobs, "my-test", [], env)
    assert config == Knobs(
        width_count=5, ratio=2.5, verbose=True, peers=("a:1", "b:2"), root=Path("/tmp/x")
    )


def test_a_flag_beats_the_environment() -> None:
    env = {"COGITATE_TEST_WIDTH_COUNT": "5", "COGITATE_TEST_VERBOSE": "true"}
    config = load(Knobs, "test", ["--width-count", "7", "--verbose=false"], env)
    assert (config.width_count, config.verbose) == (7, False)
    assert load(Knobs, "test", ["--verbose"], {}).verbose


@pytest.mark.parametrize(
    ("field", "text", "wanted"),
    [
        ("width_count", "9", "1 to 8"),
        ("width_count", "0", "1 to 8"),
        ("width_count", "wide", "int 1 to 8"),
        ("width_count", "1.5", "int 1 to 8"),
        ("ratio", "-0.1", "0.0 to inf"),
        ("ratio", "nan", "0.0 to inf"),
        ("verbose", "maybe", "bool"),
        ("log_level", "LOUD", "one of DEBUG, INFO, WARNING, ERROR"),
    ],
)
def test_a_bad_value_is_named_with_its_source_and_what_is_allowed(
    field: str, text: str, wanted: str
) -> None:
    variable = f"COGITATE_TEST_{field.upper()}"
    flag = "--" + field.replace("_", "-")
    for source, argv, env in ((variable, [], {variable: text}), (flag, [f"{flag}={text}"], {})):
        with pytest.raises(ConfigError) as caught:
            load(Knobs, "test", argv, env)
        assert source in str(caught.value)
        assert repr(text) in str(caught.value)
        assert wanted in str(caught.value)


def test_a_bad_variable_does_not_matter_when_the_flag_is_given() -> None:
    env = {"COGITATE_TEST_WIDTH_COUNT": "wide"}
    assert load(Knobs, "test", ["--width-count=2"], env).width_count == 2


def test_an_unknown_flag_ends_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(Knobs, "test", ["--width"], {})  # no guessing at abbreviations
    assert caught.value.code == 2
    assert "--width" in capsys.readouterr().err


def test_help_shows_every_knob_with_its_variable_default_and_range(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        load(Knobs, "test", ["--help"], {})
    assert caught.value.code == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    for field in fields(Knobs):
        assert f"COGITATE_TEST_{field.name.upper()}; default" in shown
    assert "how wide, 100% of it (1 to 8) [COGITATE_TEST_WIDTH_COUNT; default 3]" in shown


def test_a_knob_of_an_unsupported_type_is_a_programming_error() -> None:
    @dataclass(frozen=True)
    class Bad:
        """Bad."""

        table: dict[str, str] = knob(None, "no")

    with pytest.raises(TypeError, match="cannot be of type"):
        load(Bad, "bad", ["--table=x"], {})


def test_a_model_is_found_in_the_search_path_first_that_has_it(tmp_path: Path) -> None:
    for root, name in (("a", "one"), ("b", "one"), ("b", "two.gguf-2")):
        (tmp_path / root / name).mkdir(parents=True)
    search = (tmp_path / "a", tmp_path / "b", tmp_path / "missing")
    assert model_directory("one", search) == tmp_path / "a" / "one"
    assert model_directory("two.gguf-2", search) == tmp_path / "b" / "two.gguf-2"


@pytest.mark.parametrize(
    "name", ["nope", "", ".", "..", "a/../one", "/etc", "one\n", "o\0ne", "x" * 65, "a/one"]
)
def test_an_unknown_or_malformed_model_is_refused_with_what_there_is(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "a" / "one").mkdir(parents=True)
    (tmp_path / "a" / "stray-file").write_text("")
    with pytest.raises(InvalidRequest) as caught:
        model_directory(name, (tmp_path / "a",))
    assert (caught.value.reason, caught.value.field) == ("UNKNOWN_MODEL", "model")
    assert "one" in caught.value.message.partition("there is:")[2]
    assert "stray-file" not in caught.value.message
    assert str(tmp_path) not in caught.value.message
