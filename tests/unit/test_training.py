"""training: tokens, traces, tools and the exported format, at tiny sizes."""

from __future__ import annotations

import json
import re
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes.plain_llama import Llama

pytestmark = pytest.mark.unit

for package in ("torch", "tokenizers", "onnx", "onnxruntime", "fontTools", "sklearn", "easy_vqa"):
    pytest.importorskip(package, reason="see services/agent-decoder/training/README.md")

TRAINING = Path(__file__).parents[2] / "services" / "agent-decoder" / "training"


@pytest.fixture(scope="module", autouse=True)
def training_path() -> Any:
    """Lets `import mini` find the training package, which is not installed."""
    sys.path.insert(0, str(TRAINING))
    yield
    sys.path.remove(str(TRAINING))


@pytest.fixture(scope="module")
def tokenizer(training_path: None) -> Any:
    from mini.tasks import corpus
    from mini.tokenizer import build_tokenizer

    return build_tokenizer(corpus(np.random.default_rng(0), 30))


@pytest.fixture(scope="module")
def pictures(training_path: None) -> Any:
    """A few boards without real pixels: traces only need what lies where."""
    from cogitate.evals.boards import draw_board
    from mini.pictures import Pictures

    def number(rng: np.random.Generator) -> int:
        return int(rng.integers(1, 21) if rng.random() < 0.7 else rng.integers(100, 1000))

    rng = np.random.default_rng(1)
    boards, cards = [], []
    for _ in range(600):
        board = draw_board(rng, number)
        boards.append((board.rows, board.columns, len(cards)))
        cards += [(card.number, card.colour, int(card.handwritten)) for card in board.cards]
    views = np.zeros((len(cards), 64, 64, 3), np.uint8)
    return Pictures(views[:600], views, np.array(boards, np.int32), np.array(cards, np.int32))


def make_tasks(tokenizer: Any, pictures: Any, *, symbolic: bool) -> Any:
    from mini.scenes import Scenes
    from mini.tasks import Tasks
    from mini.worlds import Worlds

    scenes = Scenes(np.zeros((4, 64, 64, 3), np.uint8), np.array([[0, 1], [1, 2], [2, 3], [0, 6]]))
    none = np.zeros((0, 64, 64, 3), np.uint8)
    worlds = Worlds(none, none, ())
    return Tasks(pictures, scenes, tokenizer, range(600), worlds, range(0), symbolic=symbolic)


def test_every_digit_run_is_one_token(tokenizer: Any) -> None:
    from mini.tokenizer import DIGIT_RUNS, VOCAB_SIZE

    assert tokenizer.get_vocab_size() <= VOCAB_SIZE
    for run in DIGIT_RUNS:
        assert tokenizer.encode(run).tokens == [run]
    assert tokenizer.encode("1523").tokens == ["152", "3"]


@pytest.mark.parametrize("text", ["<|end|>", "zoom(25, 0, 50, 33)", "Grüße, 世界! \n\t 007", ""])
def test_any_text_comes_back(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_to_id("<|end|>") not in ids


@pytest.mark.parametrize("symbolic", [True, False])
@pytest.mark.parametrize(
    "bucket", ["read", "search", "admit", "plan", "scene", "glance", "short", "medium", "long"]
)
def test_traces_are_well_formed(tokenizer: Any, pictures: Any, bucket: str, symbolic: bool) -> None:
    from mini.tasks import BUCKET_TOKENS
    from mini.tokenizer import END, IMAGE

    tasks = make_tasks(tokenizer, pictures, symbolic=symbolic)
    rng = np.random.default_rng(2)
    image = tokenizer.token_to_id(IMAGE)
    for _ in range(40):
        trace = tasks.draw(bucket, rng)
        assert len(trace.ids) == len(trace.own) <= BUCKET_TOKENS[bucket]
        assert not trace.own[0]
        assert all(not own for i, own in zip(trace.ids, trace.own, strict=True) if i == image)
        expected = {view.start + i for view in trace.views for i in range(_tokens(view.pool))}
        assert {i for i, token in enumerate(trace.ids) if token == image} == expected
        if bucket not in ("read", "search", "admit", "plan"):
            assert trace.ids[-1] == tokenizer.token_to_id(END)
            assert trace.own[-1]


def _tokens(pool: str) -> int:
    from mini.model import CROP_TOKENS, WHOLE_TOKENS

    return CROP_TOKENS if pool == "crop" else WHOLE_TOKENS


def test_later_turns_are_written_as_the_mesh_writes_them(tokenizer: Any) -> None:
    from cogitate.agent_decoder.model.templates import Image, MiniTemplate, Text, Turn
    from mini.model import CROP_TOKENS, WHOLE_TOKENS
    from mini.tokenizer import IMAGE
    from mini.traces import Look, Writer

    template = MiniTemplate(
        tokenizer, {"image_tokens": {"whole": WHOLE_TOKENS, "crop": CROP_TOKENS}}
    )
    asked, told, later = "What is the sum?", "The sum is 3.", "And the blue cards?"
    picture = Image("board", is_crop=False)
    turns = [
        Turn("user", (Text(asked), picture)), Turn("assistant", (Text(told),)),
        Turn("user", (Text(later),)),
    ]  # fmt: skip
    prompt: list[int] = []
    for one in template.prompt(turns, instant=False):
        views = [tokenizer.token_to_id(IMAGE)] * WHOLE_TOKENS
        prompt += views if isinstance(one, Image) else [one]
    writer = Writer(tokenizer, symbolic=False)
    assert writer.ask(asked, Look("board", 0, ()), "", (told, later)).ids == prompt


def test_a_later_round_on_a_board_reads_again(tokenizer: Any, pictures: Any) -> None:
    from cogitate.evals.boards import RULES
    from mini.item_tasks import BUCKET_TOKENS

    tasks, num_read = make_tasks(tokenizer, pictures, symbolic=True), 0
    for seed in range(40):
        trace = tasks.again(np.random.default_rng(seed))
        assert len(trace.ids) <= BUCKET_TOKENS["again"]
        own = [i for i, is_own in zip(trace.ids, trace.own, strict=True) if is_own]
        said = tokenizer.decode(own)
        if numbers := [int(one) for one in re.findall(r"\)(\d+)[,.]", said)]:
            num_read += 1
            answer = int(re.findall(r"\d+", said)[-1])
            assert answer in {rule(numbers) for rule in RULES.values()}, said
    assert num_read > 20


def test_calls_in_traces_are_understood_by_the_tools(tokenizer: Any, pictures: Any) -> None:
    from cogitate.agent_decoder.core.calls import parse_call
    from cogitate.tool_executor.core.registry import TOOLS
    from cogitate.tool_executor.core.types import Image
    from mini.tokenizer import CALL, RUN

    tasks = make_tasks(tokenizer, pictures, symbolic=False)
    rng = np.random.default_rng(3)
    call, run = tokenizer.token_to_id(CALL), tokenizer.token_to_id(RUN)
    for bucket in ("short", "medium", "long"):
        for _ in range(25):
            ids = tasks.draw(bucket, rng).ids
            starts = [i for i, token in enumerate(ids) if token == call]
            assert starts
            for start in starts:
                text = tokenizer.decode(ids[start + 1 : ids.index(run, start)])
                called = parse_call(text)
                run_tool = TOOLS[called.name].run
                assert run_tool is not None
                outcome = run_tool(json.loads(called.arguments_json), [Image("board")])
                assert outcome.images or outcome.text not in ("", "wrong"), text


def test_missed_steps_are_not_trained_on(tokenizer: Any, training_path: None) -> None:
    from cogitate.evals.countdown import Step
    from mini.traces import Trace, Writer, derivation

    writer = Writer(tokenizer, symbolic=True)
    steps = (Step(6, "*", 4, 24), Step(24, "+", 5, 29))
    hit = derivation(writer, Trace(), (6, 4, 5), 29, steps)
    miss = derivation(writer, Trace(), (6, 4, 5), 30, steps)
    own = tokenizer.decode([i for i, is_own in zip(miss.ids, miss.own, strict=True) if is_own])
    assert own == "Numbers 6 4 5, target 30.I could not make 30."
    assert tokenizer.decode(hit.ids).endswith("6*4=24, 24+5=29.")


def test_crops_follow_the_percent(training_path: None) -> None:
    from mini.views import crop_view, whole_view
    from PIL import Image

    pixels = np.zeros((128, 256, 3), np.uint8)
    pixels[64:, 128:] = 200
    image = Image.fromarray(pixels)
    assert (crop_view(image, (50, 50, 100, 100)) == 200).all()
    assert (crop_view(image, (0, 0, 50, 50)) == 0).all()
    assert whole_view(image).shape == (64, 64, 3)


def test_held_out_fonts_are_never_trained_on(training_path: None) -> None:
    from cogitate.evals.sources import HELD_OUT_FONTS
    from mini.fonts import is_usable

    for _, file in HELD_OUT_FONTS:
        assert not is_usable(Path(file))
        assert not is_usable(Path("elsewhere") / file.replace("Regular", "BoldItalic"))
    assert is_usable(Path("Lato-Regular.ttf"))


def test_a_stage_resumes_where_it_stopped(tmp_path: Path, training_path: None) -> None:
    import torch
    from mini.stage import Plan, run
    from torch import nn

    def train(path: Path, *stops: int) -> torch.Tensor:
        for stop in stops:
            torch.manual_seed(0)
            parts = {"up_proj": nn.Linear(3, 4), "head": nn.Linear(4, 1)}
            model = nn.Sequential(OrderedDict(parts))
            plan = Plan("tiny", 6, 0.1, seed=1, warmup=2, stop_after=stop)

            def losses(_: np.random.Generator, model: nn.Module = model) -> list[torch.Tensor]:
                return [model(torch.randn(4, 3)).square().mean()]

            run(plan, model, losses, dict, path)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(train(tmp_path / "a.pt", 6), train(tmp_path / "b.pt", 3, 6))


@pytest.mark.parametrize("shape", [(24, 7), (7, 24), (8, 3, 3, 3)])
def test_muon_steps_are_orthogonal_and_as_large_as_those_of_adam(
    training_path: None, shape: tuple[int, ...]
) -> None:
    import torch
    from mini.muon import Muon, orthogonal

    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape).flatten(1)).float())
    assert 0.6 < float(values.min()) and float(values.max()) < 1.3
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape)
    Muon([{"params": [weight], "weight_decay": 0.0}], lr=0.1).step()
    assert 0.1 < float(weight.detach().square().mean().sqrt() / 0.1) < 0.3
    assert float((weight.detach() * weight.grad).sum()) < 0, "against the gradient"


def test_the_export_is_a_plain_llama(tmp_path: Path, tokenizer: Any) -> None:
    """The shipped files, read by an independent decoder, give what the training module gives."""
    import torch
    from mini.export import llama_config, llama_weights
    from mini.model import Decoder, ModelConfig
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = ModelConfig(hidden_size=64, intermediate_size=96, layers=2, heads=2, key_value_heads=1)
    decoder = Decoder(config)
    weights = llama_weights(decoder)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(llama_config(config, tokenizer)))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())
        ids = torch.randint(0, config.vocab_size, (3, 12))
        hidden = decoder(decoder.embed_tokens(ids))
        expected = hidden @ decoder.embed_tokens.weight.T
    llama = Llama(tmp_path, torch.float32)
    llama.start(3, 12)
    rows = slice(None)
    steps = [llama.step(llama.embedding[ids[:, t]], rows, t) for t in range(12)]
    torch.testing.assert_close(torch.stack(steps, 1), expected, rtol=1e-4, atol=1e-4)


def test_vision_export_folds_batch_norm(tmp_path: Path, training_path: None) -> None:
    import torch
    from mini.export import folded
    from mini.model import Encoder, ModelConfig

    torch.manual_seed(0)
    encoder = Encoder(ModelConfig(hidden_size=32, widths=(4, 4, 8, 8)))
    views = torch.randn(4, 3, 64, 64)
    encoder(views)
    encoder.eval()
    with torch.no_grad():
        for exported, expected in zip(folded(encoder)(views), encoder(views), strict=True):
            torch.testing.assert_close(exported, expected, rtol=1e-4, atol=1e-4)
            assert exported.shape[0] == 4


def test_shipped_weights_are_where_a_stage_begins(tmp_path: Path, training_path: None) -> None:
    import torch
    from mini.export import load_llama, write_weights
    from mini.model import Decoder, ModelConfig

    config = ModelConfig(layers=2)
    torch.manual_seed(0)
    shipped, begun = Decoder(config), Decoder(config)
    (tmp_path / "mini").mkdir()
    write_weights(shipped, tmp_path / "mini")
    load_llama(begun, tmp_path / "mini" / "model.safetensors")
    for name, weight in begun.state_dict().items():
        torch.testing.assert_close(weight, shipped.state_dict()[name].bfloat16().float())
    assert [*tmp_path.iterdir()] == [tmp_path / "mini"]


def test_views_of_several_pools_are_seen_at_once_through_the_shipped_encoder(
    training_path: None,
) -> None:
    import torch
    from mini.role_stage import ShippedEncoder

    encoder = ShippedEncoder(TRAINING.parent / "cogitate" / "models" / "mini" / "vision.onnx", 1)
    torch.manual_seed(0)
    counts = {"board": 2, "patch": 3, "page": 1}
    inputs = {pool: torch.randn(count, 3, 64, 64) for pool, count in counts.items()}
    seen = encoder.see(inputs)
    tokens = {"board": 16, "patch": 8, "page": 16}
    assert {pool: tuple(of.shape[:2]) for pool, of in seen.items()} == {
        pool: (count, tokens[pool]) for pool, count in counts.items()
    }
    for pool, views in inputs.items():
        alone = encoder.see({pool: views})[pool]
        torch.testing.assert_close(seen[pool], alone, rtol=1e-4, atol=1e-4)
