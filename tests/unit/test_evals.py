"""evals: datasets repeat themselves, checks are strict, nothing held out can leak into training."""

from __future__ import annotations

import numpy as np
import pytest
from cogitate.evals import boards, countdown, easy_vqa, sources
from cogitate.evals.checks import has_label, has_number, proves
from cogitate.evals.datasets import DATASETS, load
from cogitate.evals.render import Card, add_pixel_noise, render_card

pytestmark = pytest.mark.unit

pytest.importorskip("sklearn", reason="pip install 'cogitate[eval]'")
pytest.importorskip("easy_vqa", reason="pip install 'cogitate[eval]'")
pytest.importorskip("font_caladea", reason="pip install 'cogitate[eval]'")


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_is_the_same_for_the_same_seed(name: str) -> None:
    first, again, other = load(name, 3, seed=1), load(name, 3, seed=1), load(name, 3, seed=2)
    assert [(q.text, q.truth, q.image_png) for q in first] == [
        (q.text, q.truth, q.image_png) for q in again
    ]
    assert [q.image_png for q in first] != [q.image_png for q in other]
    assert len({q.id for q in first}) == 3


@pytest.mark.parametrize("name", DATASETS)
def test_every_truth_passes_its_own_check(name: str) -> None:
    for question in load(name, 6):
        assert question.check(question.truth)
        assert not question.check("")
        assert question.check("I can't answer that.") == (name == "outside")


def test_a_longer_list_starts_with_the_shorter_one() -> None:
    assert [q.text for q in load("boards", 4)][:2] == [q.text for q in load("boards", 2)]


def test_unknown_datasets_are_named() -> None:
    with pytest.raises(KeyError, match="boards-hard"):
        load("imagenet", 1)


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("The sum is 152.", True),
        ("152", True),
        ("The sum is 15.", False),
        ("The sum is -152.", False),
        ("The sum is 152 or 153.", False),
        ("I do not know.", False),
    ],
)
def test_one_number_and_the_right_one(answer: str, is_right: bool) -> None:
    assert has_number(answer, 152) is is_right


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("It is teal.", True),
        ("Teal", True),
        ("It is blue.", False),
        ("It is teal or blue.", False),
        ("It is steal.", False),
    ],
)
def test_one_label_and_the_right_one(answer: str, is_right: bool) -> None:
    assert has_label(answer, "teal") is is_right


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("6*4=24, 24+5=29, 29-3=26.", True),
        ("6*4=24,24+5=29,29-3=26", True),
        ("6+4=10, 5*3=15, 10+15=25.", False),
        ("6*4=24, 24+5=29, 29-3=27.", False),
        ("6*4=24, 24+2=26.", False),
        ("6*4=24, 5-3=2, 24+2=26, 26-0=26.", False),
        ("6*4=24, 24+5=29.", False),
        ("I could not make 26.", False),
        ("26", False),
        ("", False),
    ],
)
def test_a_chain_uses_every_number_once(answer: str, is_right: bool) -> None:
    assert proves(answer, (6, 4, 5, 3), 26) is is_right


def test_equal_numbers_are_counted() -> None:
    assert proves("6+6=12.", (6, 6), 12)
    assert not proves("6+6=12.", (6,), 12)
    assert not proves("6*2=12, 12+12=24.", (6, 2), 24)


def test_puzzles_belong_to_exactly_one_split() -> None:
    rng = np.random.default_rng(0)
    for held_out in (True, False):
        puzzle = countdown.draw_puzzle(rng, held_out=held_out)
        assert puzzle.is_held_out is held_out
        turned = countdown.Puzzle(puzzle.numbers[::-1], puzzle.target, puzzle.steps)
        assert turned.is_held_out is held_out
        assert proves(", ".join(map(str, puzzle.steps)), puzzle.numbers, puzzle.target)


def test_a_countdown_board_has_four_cards_of_the_colour() -> None:
    rng = np.random.default_rng(1)
    puzzle = countdown.draw_puzzle(rng, held_out=True)
    board, colour = countdown.lay_out(rng, puzzle)
    assert board.numbers_of(colour) == puzzle.numbers


def test_boards_ask_for_at_most_four_cards_unless_they_count() -> None:
    source = sources.held_out_source()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        question = boards.draw_question(rng, noise=0.5, source=source, cell_px=16)
        numbers = question.board.numbers_of(question.colour)
        assert question.kind == "count" or 1 <= len(numbers) <= boards.MAX_READ_CARDS
        assert question.truth == boards.RULES[question.kind](numbers)


def test_cells_tile_the_picture() -> None:
    assert boards.cell_box((0, 0), 3, 3) == (0, 0, 33, 33)
    assert boards.cell_box((1, 1), 3, 3) == (33, 33, 67, 67)
    assert boards.cell_box((1, 3), 2, 4) == (75, 50, 100, 100)


def test_scans_are_split_without_overlap() -> None:
    held_out, training = sources.held_out_scans(), sources.training_scans()
    total = len(held_out.labels) + len(training.labels)
    assert len(held_out.labels) == round(0.2 * total)
    assert set(held_out.labels) == set(training.labels) == set(range(10))


def test_a_missing_package_says_what_to_install() -> None:
    with pytest.raises(ImportError, match=r"pip install 'cogitate\[eval\]'"):
        sources.package_directory("font_that_is_not_there")


@pytest.mark.parametrize("handwritten", [True, False])
@pytest.mark.parametrize("size", [64, 128])
def test_cards_are_drawn_with_ink(handwritten: bool, size: int) -> None:
    rng = np.random.default_rng(3)
    pixels = render_card(
        rng,
        Card(507, 1, handwritten),
        noise=0.0,
        source=sources.held_out_source(),
        background=(230, 230, 230),
        size=size,
    )
    assert pixels.shape == (size, size, 3)
    middle = pixels[size // 3 : -size // 3, size // 4 : -size // 4].astype(int)
    assert int(np.ptp(middle.sum(-1))) > 200


def test_pixel_noise_grows_with_the_level() -> None:
    flat = np.full((64, 64, 3), 128, np.uint8)
    spread = [
        float(add_pixel_noise(np.random.default_rng(0), flat, noise).std())
        for noise in (0, 0.5, 1.5)
    ]
    assert spread[0] == 0
    assert spread[1] == pytest.approx(6, abs=0.3)
    assert spread[2] == pytest.approx(18, abs=0.6)


def test_scenes_show_the_colour_asked_for() -> None:
    red = easy_vqa.SHAPE_COLOUR_NAMES.index("red")
    for shape in range(len(easy_vqa.SHAPES)):
        pixels = easy_vqa.draw_scene(np.random.default_rng(shape), shape, red)
        assert (pixels == (255, 0, 0)).all(-1).any()


def test_labels_become_sentences() -> None:
    assert easy_vqa.answer_sentence("yes") == "Yes."
    assert easy_vqa.answer_sentence("teal") == "It is teal."
    assert easy_vqa.answer_sentence("circle") == "It is a circle."
    assert boards.answer_sentence("count", "red", 1) == "There is 1 red card."
    assert boards.answer_sentence("diff", "red", 12) == "The difference is 12."
