"""A damaged GGUF is refused with a sentence, or loads; it never hangs, crashes or fills memory."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cogitate.agent_decoder.model import loader
from cogitate.agent_decoder.model.backend import Wanted
from cogitate.agent_decoder.model.gguf_header import check_header
from cogitate.kit.errors import EngineFailure
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.gguf_files import config_of, random_weights, write_gguf

pytestmark = pytest.mark.property

WANTED = Wanted(device="cpu", dtype="float32", step="torch", threads=1)


@cache
def whole() -> bytes:
    config = config_of("llama", num_hidden_layers=1)
    with TemporaryDirectory() as folder:
        file = write_gguf(Path(folder) / "a.gguf", config, random_weights(config))
        return file.read_bytes()


def load(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / "a.gguf").write_bytes(content)
        try:
            loader.load("a", Path(folder), WANTED)
        except EngineFailure as error:
            assert folder not in str(error)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
    st.booleans(),
)
def test_flipped_bytes(flips: list[tuple[float, int]], early: bool) -> None:
    content = bytearray(whole())
    for where, value in flips:
        content[int(where * min(len(content) - 1, 12_000 if early else len(content) - 1))] = value
    load(bytes(content))


@settings(max_examples=40)
@given(st.integers(0, 12_000), st.integers(2**20, 2**64 - 1))
def test_lengths_that_lie(at: int, length: int) -> None:
    content = bytearray(whole())
    content[at : at + 8] = struct.pack("<Q", length)
    load(bytes(content))


@pytest.mark.parametrize("kind", range(14))
def test_an_array_longer_than_the_file(kind: int, tmp_path: Path) -> None:
    """What keeps the package's own reader busy for ever."""
    file = tmp_path / "a.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a"
    file.write_bytes(head + struct.pack("<IIQ", 9, kind, 2**60))
    with pytest.raises(ValueError, match=r"cut short|damaged"):
        check_header(file)
