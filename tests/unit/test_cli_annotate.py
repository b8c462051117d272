"""Frames on a picture: where they are, what they say, and what cannot be drawn."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cogitate.cli.view.annotate import LEAST_SIDE, MAX_LABEL_CHARS, CannotDraw, labels, save
from cogitate.client import Box, Sight

Image = pytest.importorskip("PIL.Image")

pytestmark = pytest.mark.unit

LEFT, RIGHT = Box(0, 0, 500, 1000), Box(500, 0, 1000, 1000)


def look(agent: int, step: int, box: Box | None, note: str = "", digest: str = "d") -> Sight:
    return Sight(agent, step, digest, box, note)


def test_looks_at_a_region_share_its_frame() -> None:
    seen = [look(2, 1, LEFT, "43"), look(0, 1, LEFT, "43"), look(1, 1, LEFT, "48"),
            look(1, 2, RIGHT), look(0, 2, None, "all")]  # fmt: skip
    assert list(labels(seen)) == [(LEFT, "1. 0, 2: 43 | 1: 48"), (RIGHT, "2. 1")]


def test_a_label_is_short() -> None:
    ((_, label),) = labels([look(0, 1, LEFT, "x" * 99)])
    assert len(label) == MAX_LABEL_CHARS


def test_each_picture_gets_its_own_frames(tmp_path: Path) -> None:
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    digests = []
    for path, colour in zip(paths, ("white", "black"), strict=True):
        Image.new("RGB", (60, 30), colour).save(path)
        digests.append(f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}")
    out = tmp_path / "seen.png"
    written = save(str(out), [str(path) for path in paths], [look(0, 1, RIGHT, "7", digests[1])])
    assert written == [out, tmp_path / "seen-2.png"]
    first, second = (Image.open(path) for path in written)
    assert max(first.size) >= LEAST_SIDE and first.size == second.size
    assert first.getcolors() == [(first.width * first.height, (255, 255, 255))]
    left = second.crop((0, 0, second.width // 2, second.height))
    assert left.getcolors() == [(left.width * left.height, (0, 0, 0))]
    edge = second.getpixel((second.width // 2 + 3, second.height // 2))
    assert edge != (0, 0, 0)


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(CannotDraw, match="needs an --image"):
        save(str(tmp_path / "out.png"), [], [])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with pytest.raises(CannotDraw, match="cannot draw"):
        save(str(tmp_path / "out.png"), [str(text)], [])
    Image.new("RGB", (8, 8)).save(text)
    with pytest.raises(CannotDraw, match="cannot draw"):
        save(str(tmp_path / "nowhere" / "out.png"), [str(text)], [])
