"""Draws the pictures in `examples/` from the held-out generators and asks a running mesh of them.

    cogitate up --detach
    python services/agent-decoder/training/draw_examples.py

Of each kind the first picture that is answered right is kept, so that a first try with the examples
does not start with a miss; how often the model is right is measured elsewhere.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from cogitate.client import Client, LookupTable
from cogitate.evals import boards, chains, charts, countdown, easy_vqa, tables
from cogitate.evals.bars import draw_chart
from cogitate.evals.checks import has_label, has_number, proves
from cogitate.evals.datasets import Question
from cogitate.evals.items import Item, Style, Table
from cogitate.evals.render import COLOUR_NAMES, add_pixel_noise, to_png
from cogitate.evals.sheets import draw_sheet
from cogitate.evals.sources import held_out_source
from cogitate.evals.tables import Page, row_name

EXAMPLES = Path(__file__).parents[3] / "examples"
CELL_PX = 128
NOISE = 0.3
SCENE_PX = 256
AGENT_COUNT = 8
FULL_BOARD = 12
TARGET = 26
RED = COLOUR_NAMES.index("red")
RANGES, LAB_ROWS = EXAMPLES / "ranges.csv", 5
HEALTH = "Is {test} within its reference range?"


def board_candidates() -> Iterator[Question]:
    """Yields sums over three or four red cards on a full board."""
    source = held_out_source()
    for seed in range(2000):
        rng = np.random.default_rng((21, seed))
        board = boards.draw_board(rng)
        numbers = board.numbers_of(RED)
        if len(board.cards) != FULL_BOARD or len(numbers) not in (3, 4):
            continue
        clean = boards.render_board(rng, board, noise=NOISE, source=source, cell_px=CELL_PX)
        png = to_png(add_pixel_noise(rng, clean, NOISE))
        check = partial(has_number, truth=sum(numbers))
        text = "What is the sum of the red cards?"
        yield Question("board", "boards", text, png, str(sum(numbers)), check)


def countdown_candidates() -> Iterator[Question]:
    """Yields puzzles that make 26 from four red cards on a full board."""
    source = held_out_source()
    for seed in range(20000):
        rng = np.random.default_rng((22, seed))
        puzzle = countdown.draw_puzzle(rng, held_out=True)
        board, colour = countdown.lay_out(rng, puzzle)
        if puzzle.target != TARGET or colour != RED or len(board.cards) != FULL_BOARD:
            continue
        clean = boards.render_board(rng, board, noise=NOISE, source=source, cell_px=CELL_PX)
        png = to_png(add_pixel_noise(rng, clean, NOISE))
        text = countdown.QUESTION_FORMS[0].format(colour="red", target=TARGET)
        truth = ", ".join(str(step) for step in puzzle.steps) + "."
        check = partial(proves, numbers=puzzle.numbers, target=TARGET)
        yield Question("countdown", "countdown", text, png, truth, check)


def shape_candidates() -> Iterator[Question]:
    """Yields teal circles."""
    teal = easy_vqa.SHAPE_COLOUR_NAMES.index("teal")
    for seed in range(100):
        rng = np.random.default_rng((23, seed))
        circle = easy_vqa.SHAPES.index("circle")
        png = to_png(easy_vqa.draw_scene(rng, circle, teal, size=SCENE_PX))
        check = partial(has_label, truth="yes")
        yield Question("shape", "easy-vqa", "Is there a circle?", png, "Yes.", check)


def _asked(name: str, item: Item) -> Question:
    return Question(name, name, item.text, to_png(item.pictures[0]), item.truth, item.check)


def receipt_candidates() -> Iterator[Question]:
    """Yields receipts whose total is wrong."""
    for seed in range(200):
        rng = np.random.default_rng((24, seed))
        style = Style(NOISE, held_out_source(), held_out=True)
        item = tables.check_item(Page(rng, style, draw_sheet(rng, "receipt", held_out=True)))
        if item.truth.startswith("No"):
            yield _asked("receipt", item)


def chart_candidates() -> Iterator[Question]:
    """Yields charts, and what one bar shows."""
    for seed in range(200):
        rng = np.random.default_rng((25, seed))
        style = Style(NOISE, held_out_source(), held_out=True)
        plot = charts.Plot(rng, style, draw_chart(rng, held_out=True))
        yield _asked("chart", charts.value_item(plot))


def lab_candidates() -> Iterator[tuple[Question, ...]]:
    """Yields lab reports, and where each of their results lies by the ranges of `RANGES`."""
    table = read_table(RANGES)
    for seed in range(400):
        rng = np.random.default_rng((26, seed))
        style = Style(NOISE, held_out_source(), held_out=True)
        page = Page(rng, style, draw_sheet(rng, "lab", held_out=False))
        names = [row[0] for row in page.sheet.rows]
        if len(names) != LAB_ROWS or not {row[0] for row in table.rows}.issuperset(names):
            continue
        items = [chains.range_item(page, row, table) for row in range(len(names))]
        picture = to_png(page.picture)
        yield tuple(
            Question("lab", "lab", HEALTH.format(test=row_name(page.sheet, i)), picture, item.truth,
                     item.check, tables=item.tables)
            for i, item in enumerate(items)
        )  # fmt: skip


def read_table(path: Path) -> Table:
    """Reads the ranges that the example compares with."""
    with path.open(encoding="utf-8", newline="") as file:
        columns, *rows = csv.reader(file)
    return Table(path.stem, tuple(columns), tuple(map(tuple, rows)))


def alone(candidates: Callable[[], Iterator[Question]]) -> Iterator[tuple[Question, ...]]:
    """One question a picture."""
    return ((question,) for question in candidates())


CANDIDATES = (
    (alone(board_candidates), 1),
    (alone(countdown_candidates), AGENT_COUNT),
    (alone(shape_candidates), 1),
    (alone(receipt_candidates), 1),
    (alone(chart_candidates), 1),
    (lab_candidates(), 1),
)


def is_right(client: Client, questions: Sequence[Question], agents: int) -> bool:
    """Asks all the questions about a picture, as long as they are answered right."""
    for one in questions:
        assert one.image_png is not None
        tables = [LookupTable(table.name, table.columns, table.rows) for table in one.tables]
        told = client.ask(one.text, images=[one.image_png], agents=agents, tables=tables)
        if not one.check(told.answer):
            return False
    return True


def main() -> None:
    """Writes the pictures and prints the questions that go with them."""
    EXAMPLES.mkdir(exist_ok=True)
    with Client() as client:
        for candidates, agents in CANDIDATES:
            questions = next(one for one in candidates if is_right(client, one, agents))
            first = questions[0]
            assert first.image_png is not None
            (EXAMPLES / f"{first.id}.png").write_bytes(first.image_png)
            for question in questions:
                print(f"{question.id}.png: {question.text} -> {question.truth}")


if __name__ == "__main__":
    main()
