"""Large pictures as an overview and tiles: how many, where, and nothing new without them."""

from __future__ import annotations

import pytest
from cogitate.agent_decoder.model.tiling import MOST_TILES, Tiling, parse, tiled
from cogitate.v1 import common_pb2 as common

pytestmark = pytest.mark.unit

SIX = Tiling(6, 160)
DIGEST = "sha256:" + "0" * 64


def asking(width: int, height: int, **fields: object) -> common.Message:
    image = common.ImagePart(digest=DIGEST, width_px=width, height_px=height, **fields)  # type: ignore[arg-type]
    parts = [common.Part(text="What?"), common.Part(image=image)]
    return common.Message(role=common.ROLE_USER, parts=parts)


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (160, 160, (1, 1)),  # at the edge: none
        (161, 160, (1, 2)),
        (160, 161, (2, 1)),
        (640, 480, (2, 3)),
        (480, 640, (3, 2)),
        (2000, 200, (1, 6)),
        (200, 2000, (6, 1)),
        (300, 900, (3, 1)),
        (4000, 4000, (2, 2)),
        (0, 0, (1, 1)),  # a size nobody knows
    ],
)
def test_the_grid_follows_size_and_shape(width: int, height: int, grid: tuple[int, int]) -> None:
    assert SIX.grid(width, height) == grid


def test_tiles_cover_the_picture_once_in_reading_order() -> None:
    for width in range(50, 1500, 97):
        for height in range(50, 1500, 89):
            boxes = SIX.boxes(width, height)
            rows, columns = SIX.grid(width, height)
            assert len(boxes) == (0 if rows * columns == 1 else rows * columns) <= 6
            area = sum(
                (b.x1_permille - b.x0_permille) * (b.y1_permille - b.y0_permille) for b in boxes
            )
            assert area == (1_000_000 if boxes else 0)
            corners = [(b.y0_permille, b.x0_permille) for b in boxes]
            assert corners == sorted(set(corners))


def test_tiles_come_behind_their_picture_and_are_announced() -> None:
    shown = tiled(asking(300, 400), SIX)
    kinds = [part.WhichOneof("part") for part in shown.parts]
    assert kinds == ["text", *["image"] * 7, "text"]
    assert shown.parts[-1].text == "Tiles 3x2."
    assert not shown.parts[1].image.HasField("box")
    assert all(part.image.digest == DIGEST for part in shown.parts[1:-1])


def test_small_pictures_crops_and_models_without_tiles_are_left_alone() -> None:
    box = common.Box(x1_permille=500, y1_permille=500)
    small, crop, large = asking(100, 100), asking(900, 900, box=box), asking(900, 900)
    assert tiled(small, SIX) is small
    assert tiled(crop, SIX) is crop
    assert tiled(large, None) is large


def test_each_picture_has_its_own_grid() -> None:
    message = asking(300, 400)
    message.parts.add(image=common.ImagePart(digest=DIGEST, width_px=80, height_px=80))
    assert tiled(message, SIX).parts[-1].text == "Tiles 3x2, 1x1."


def test_a_recipe_is_read_or_refused() -> None:
    assert parse({}) is None
    assert parse({"tiles": {"most": 6, "side": 160}}) == SIX
    assert parse({"tiles": {"most": MOST_TILES, "side": 1}}) == Tiling(MOST_TILES, 1)
    for bad in (
        3, {"most": 6}, {"most": 1, "side": 9}, {"most": MOST_TILES + 1, "side": 9},
        {"most": 6, "side": 0}, {"most": "6", "side": 9},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="tiles"):
            parse({"tiles": bad})
