"""From a picture to a vision tower's input, and the names of what comes out."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from cogitate.kit.errors import InvalidRequest
from cogitate.vision_encoder.core import digests, preprocess
from cogitate.vision_encoder.core.image_header import TOO_MANY_BYTES
from cogitate.vision_encoder.core.preprocess import BadPreprocessor, Preprocess
from cogitate.vision_encoder.core.types import Box, Kind, View
from cogitate.vision_encoder.core.upload import MAX_CHUNK_BYTES, Upload
from PIL import Image

from tests.fakes import images

pytestmark = pytest.mark.unit

CONFIG = {"image_size": 64, "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.5, 1], "resample": "bilinear"}
RECIPE = preprocess.parse(CONFIG)
BLOB = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("bilinear", Image.Resampling.BILINEAR),
        ("BOX", Image.Resampling.BOX),
        ("area", Image.Resampling.BOX),
        (3, Image.Resampling.BICUBIC),
    ],
)
def test_the_filter_is_the_models(name: object, wanted: Image.Resampling) -> None:
    recipe = preprocess.parse({**CONFIG, "resample": name})
    assert recipe == Preprocess(64, (0.5, 0.4, 0.3), (0.25, 0.5, 1.0), wanted)
    picture = images.picture(200, 100)
    resized = np.asarray(picture.resize((64, 64), wanted), np.float32) / 255
    expected = (resized - np.float32([0.5, 0.4, 0.3])) / np.float32([0.25, 0.5, 1])
    got = preprocess.prepare(picture, None, recipe)
    assert (got.shape, got.dtype) == ((3, 64, 64), np.float32)
    np.testing.assert_array_equal(got, expected.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 0},
        {"image_size": 5000},
        {"image_size": "64"},
        {"resample": "sharp"},
        {"resample": 9},
        {"resample": None},
        {"mean": [1, 2]},
        {"mean": "abc"},
        {"mean": None},
        {"std": [1, 1, 0]},
    ],
)
def test_a_senseless_recipe_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadPreprocessor):
        preprocess.parse({**CONFIG, **change})


def test_a_crop_is_cut_before_it_is_scaled() -> None:
    picture = images.picture(200, 100)
    crop = picture.crop((50, 33, 100, 67))
    got = preprocess.prepare(picture, Box(250, 330, 500, 670), RECIPE)
    np.testing.assert_array_equal(got, preprocess.prepare(crop, None, RECIPE))


def test_a_box_must_cover_the_minimum() -> None:
    preprocess.check_box(100, 100, Box(0, 0, 40, 40), min_side_px=4, field="box")
    for box in (Box(0, 0, 34, 40), Box(0, 0, 40, 34)):
        with pytest.raises(InvalidRequest, match="less than 4 pixels"):
            preprocess.check_box(100, 100, box, min_side_px=4, field="box")


def test_boxes_are_valid_as_constructed() -> None:
    for edges in ((0, 0, 0, 5), (5, 0, 4, 5), (-1, 0, 4, 5), (0, 0, 1001, 5), (0, 6, 4, 5)):
        with pytest.raises(ValueError, match="not a box"):
            Box(*edges)


def test_digests_tell_views_and_builds_apart() -> None:
    views = [View(BLOB), View(BLOB, Box(0, 0, 1000, 1000)), View(BLOB, Box(1, 11, 111, 112))]
    views += [View(BLOB, Box(11, 1, 111, 112)), View("sha256:" + "b" * 64)]
    names = {digests.embedding_digest(build, view) for build in ("x", "y") for view in views}
    assert len(names) == 2 * len(views)
    assert [view.kind for view in views[:2]] == [Kind.WHOLE, Kind.CROP]
    assert digests.digest_of([b"ab", b"c"]) != digests.digest_of([b"a", b"bc"])
    assert digests.blob_digest(b"x") == "sha256:" + hashlib.sha256(b"x").hexdigest()


@pytest.mark.parametrize("digest", ["", "sha256:", "a" * 64, BLOB.upper(), BLOB + "0", f"{BLOB}\n"])
def test_malformed_digests_are_refused(digest: str) -> None:
    with pytest.raises(InvalidRequest):
        digests.check_digest(digest, "digest")
    assert digests.check_digest(BLOB, "digest") == BLOB


def test_an_upload_is_limited_as_it_comes() -> None:
    upload = Upload(10)
    upload.add(b"12345")
    upload.add(b"67890")
    digest, data = upload.finish("")
    assert (data, digest) == (b"1234567890", digests.blob_digest(data))
    assert upload.finish(digest)[1] == data
    with pytest.raises(InvalidRequest) as caught:
        upload.add(b"1")
    assert (caught.value.message, caught.value.reason) == (TOO_MANY_BYTES, "BAD_IMAGE")
    with pytest.raises(InvalidRequest, match="not those"):
        upload.finish(BLOB)
    Upload(10**9).add(bytes(MAX_CHUNK_BYTES))
    with pytest.raises(InvalidRequest, match="a chunk has at most"):
        Upload(10**9).add(bytes(MAX_CHUNK_BYTES + 1))
