"""Vision towers of SmolVLM checkpoints, imported and served, against `transformers`."""

from __future__ import annotations

import json
import shutil
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cogitate.agent_decoder.core.scheduler import Chunk
from cogitate.agent_decoder.core.sequence import Position, Sequence
from cogitate.agent_decoder.model import loader, vision_export
from cogitate.agent_decoder.model.backend import Wanted
from cogitate.agent_decoder.model.templates import Image, Text, Turn
from cogitate.agent_decoder.model.vision_tower import position_ids, read_tower
from cogitate.cli import screen
from cogitate.cli.store import importing
from cogitate.cli.store.folder import ModelError
from cogitate.kit.errors import InvalidRequest
from cogitate.vision_encoder.core.preprocess import prepare
from cogitate.vision_encoder.core.types import Kind
from cogitate.vision_encoder.encoder import Encoder, Item

pytestmark = pytest.mark.unit
pytest.importorskip("transformers", reason="a development dependency")
pytest.importorskip("onnxscript", reason="a development dependency")

from PIL import Image as Pil  # noqa: E402

from tests.fakes.vlm_checkpoint import NUM_TOKENS, SIDE_PX, write_checkpoint  # noqa: E402

MAX_ERROR = 1e-4
PICTURE = Pil.fromarray(
    np.random.default_rng(5).integers(0, 256, (90, 150, 3), dtype=np.uint8), mode=None
)
CONVERSATION = [
    Turn("user", (Image("p", False), Text("What is in the theatre?"))),
    Turn("assistant", (Text("An inner circle."),)),
    Turn("user", (Text("And "), Image("q", True), Text(" there? <image>"))),
]


class Imported:
    """A checkpoint that went through `models import`, and the model it came from."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, kind: str = "SmolVLM") -> None:
        monkeypatch.setenv("COGITATE_MODELS", str(root / "models"))
        self.source = root / "source"
        self.reference = write_checkpoint(self.source, kind)
        importing.import_model(self.source, "tiny", screen.console())
        self.directory = root / "models" / "tiny"
        wanted = Wanted(device="cpu", dtype="float32", step="torch", threads=1)
        self.loaded = loader.load("tiny", self.directory, wanted)
        self.encoder = Encoder("tiny", self.directory, max_batch=4)


@pytest.fixture(scope="module", params=["SmolVLM", "Idefics3"])
def tiny(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Imported]:
    """An imported checkpoint of each kind; exporting takes seconds."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Imported(tmp_path_factory.mktemp("tiny"), monkeypatch, request.param)


def test_features_are_those_of_transformers(tiny: Imported) -> None:
    assert tiny.encoder.num_tokens == {Kind.WHOLE: NUM_TOKENS, Kind.CROP: NUM_TOKENS}
    whole, crop = (
        prepare(PICTURE, None, tiny.encoder.recipe),
        -np.ones((3, SIDE_PX, SIDE_PX), "f4"),
    )
    found = tiny.encoder.encode([Item(whole, Kind.WHOLE), Item(crop, Kind.CROP)])
    with torch.no_grad():
        views = torch.from_numpy(np.stack([whole, crop]))[None]
        features = tiny.reference.model.get_image_features(views).pooler_output[0]
        features = features.unflatten(0, (2, NUM_TOKENS))
    assert features[0].std() > 0.05, "features of a size that says something"
    error = max(
        float(np.abs(row - expected.numpy()).max())
        for row, expected in zip(found, features, strict=True)
        if row is not None
    )
    print(f"largest error of a feature {error:.1e}")
    assert all(row is not None for row in found) and error < MAX_ERROR


def test_pixels_are_those_of_transformers(tiny: Imported) -> None:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    given = json.loads((tiny.source / "preprocessor_config.json").read_text())
    square = PICTURE.resize((SIDE_PX, SIDE_PX))
    processor = Idefics3ImageProcessorPil(**given)
    expected = processor(square, return_tensors="np")["pixel_values"][0, 0]
    assert np.abs(prepare(square, None, tiny.encoder.recipe) - expected).max() < 1e-5


def logits(tiny: Imported, prompt: list[Any], rows: dict[str, Any]) -> torch.Tensor:
    """The engine's, at the last position."""
    positions: list[Position] = []
    for item in prompt:
        if isinstance(item, Image):
            token = tiny.loaded.template.image_token_id
            positions += [Position(token, row) for row in rows[item.key]]
        else:
            positions.append(Position(item))
    runner = tiny.loaded.runner
    runner.allocate(16, 16)
    sequence = Sequence(pending=deque(positions), block_table=list(range(16)))
    return runner.forward([Chunk(sequence, len(positions))])[0].clone()


def test_logits_of_a_conversation_with_images_are_those_of_transformers(tiny: Imported) -> None:
    template, recipe = tiny.loaded.template, tiny.encoder.recipe
    prompt = template.prompt(CONVERSATION, instant=False)
    pixels = [prepare(PICTURE, None, recipe), prepare(PICTURE.rotate(90), None, recipe)]
    encoded = tiny.encoder.encode([Item(pixels[0], Kind.WHOLE), Item(pixels[1], Kind.CROP)])
    found = logits(tiny, prompt, dict(zip("pq", encoded, strict=True)))
    ids: list[int] = []
    for item in prompt:
        ids += [template.image_token_id] * NUM_TOKENS if isinstance(item, Image) else [item]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = tiny.reference(
            input_ids=torch.tensor([ids]), pixel_values=torch.from_numpy(np.stack(pixels))[None]
        ).logits[0, -1]
        blind = tiny.reference(
            input_ids=torch.tensor([ids]),
            pixel_values=torch.from_numpy(np.stack(pixels[::-1]))[None],
        ).logits[0, -1]
    error = (found - expected).abs().max().item()
    print(f"largest error of a logit {error:.1e}")
    assert (blind - expected).abs().max() > 100 * MAX_ERROR, "the images matter"
    assert error < MAX_ERROR


def test_the_prompt_is_what_the_processor_writes(tiny: Imported) -> None:
    """The template's text, `<image>` put out as `Idefics3Processor.replace_image_token` does."""
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(tiny.source)

    def content(turn: Turn) -> list[dict[str, str]]:
        return [
            {"type": "image"} if isinstance(part, Image) else {"type": "text", "text": part.text}
            for part in turn.parts
        ]

    turns = [*CONVERSATION[:2], Turn("user", (Text("And "), Image("q", True), Text("there?")))]
    messages = [{"role": turn.role, "content": content(turn)} for turn in turns]
    text = reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    fake = "<fake_token_around_image>"
    shown = f"{fake}<global-img>{'<image>' * NUM_TOKENS}{fake}"
    expected = reference(text.replace("<image>", shown), add_special_tokens=False)["input_ids"]
    ids: list[int] = []
    for item in tiny.loaded.template.prompt(turns, instant=False):
        whole = isinstance(item, Image)
        ids += [tiny.loaded.template.image_token_id] * NUM_TOKENS if whole else [item]
    assert ids == list(expected)


def test_marks_of_images_in_texts_stay_text(tiny: Imported) -> None:
    template = tiny.loaded.template
    told = "<image><fake_token_around_image> <global-img>"
    prompt = template.prompt([Turn("user", (Image("p", False), Text(told)))], instant=False)
    assert [item for item in prompt if isinstance(item, Image)] == [Image("p", False)]
    assert template.image_token_id not in prompt
    assert template.image_token_id not in template.injection([Text(told)])


def test_a_result_brings_its_crop_between_its_marks(tiny: Imported) -> None:
    template = tiny.loaded.template
    prompt = template.injection([Text("seen"), Image("c", True)])
    at = prompt.index(Image("c", True))
    fake, seen = prompt[at + 1], template.decode([t for t in prompt if isinstance(t, int)])
    assert prompt[at - 2] == fake == prompt[-1] and "seen" in seen


def test_an_image_the_template_does_not_show_is_refused(tiny: Imported, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.directory, tmp_path / "shy"))
    source = (folder / "chat_template.jinja").read_text()
    shy = source.replace("== 'image' %}{{ '<image>'", "== 'image' and loop.first %}{{ '<image>'")
    (folder / "chat_template.jinja").write_text(shy)
    wanted = Wanted(device="cpu", dtype="float32", step="torch", threads=1)
    template = loader.load("tiny", folder, wanted).template
    with pytest.raises(InvalidRequest, match="leaves out an image"):
        template.prompt(CONVERSATION, instant=False)


@pytest.mark.parametrize("side", [19, 25, 32])
def test_positions_are_those_of_transformers_where_rounding_shows(side: int) -> None:
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
    from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings

    config = Idefics3VisionConfig(hidden_size=4, image_size=side * 2, patch_size=2)
    reference = Idefics3VisionEmbeddings(config)
    with torch.no_grad():
        reference.patch_embedding.weight.zero_(), reference.patch_embedding.bias.zero_()
        mask = torch.ones(1, side, side, dtype=torch.bool)
        expected = reference(torch.zeros(1, 3, side * 2, side * 2), mask)[0]
        assert torch.equal(reference.position_embedding(position_ids(side)), expected)


def test_text_only_leaves_the_tower_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGITATE_MODELS", str(tmp_path / "models"))
    write_checkpoint(tmp_path / "source")
    importing.import_model(tmp_path / "source", "tiny", screen.console(), text_only=True)
    folder = tmp_path / "models" / "tiny"
    wanted = Wanted(device="cpu", dtype="float32", step="torch", threads=1)
    assert not (folder / "vision.onnx").exists()
    assert not loader.load("tiny", folder, wanted).has_vision


def changed(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("file", "values", "why"),
    [
        ("preprocessor_config.json", {"max_image_size": {"longest_edge": 32}}, "32 pixels for a"),
        ("preprocessor_config.json", {"do_normalize": False}, "no do_normalize"),
        ("preprocessor_config.json", {"rescale_factor": 1.0}, "rescale_factor"),
        ("config.json", {"scale_factor": 3}, "no multiple of the scale_factor"),
        ("config.json", {"scale_factor": 4}, "another size"),
    ],
)
def test_towers_that_would_be_computed_wrongly_are_refused(
    file: str, values: dict[str, Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COGITATE_MODELS", str(tmp_path / "models"))
    write_checkpoint(tmp_path / "source")
    changed(tmp_path / "source", file, **values)
    with pytest.raises(ModelError, match=why):
        importing.import_model(tmp_path / "source", "tiny", screen.console())
    assert not (tmp_path / "models" / "tiny").exists()


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 4
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"are missing, such as vision_model\.encoder\.layers\.3"):
        read_tower(tmp_path)


def test_without_the_exporter_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COGITATE_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(vision_export, "NEEDED", ("onnx", "no_such_package"))
    write_checkpoint(tmp_path / "source")
    with pytest.raises(ModelError, match=r"no_such_package are missing.*cogitate\[import\]"):
        importing.import_model(tmp_path / "source", "tiny", screen.console())
