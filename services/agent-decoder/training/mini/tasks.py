"""Draws training tasks from the rendered pictures, sorted into buckets of similar length."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from cogitate.evals import countdown, easy_vqa
from cogitate.evals.boards import KINDS, QUESTION_FORMS, RULES, Cell, answer_sentence
from cogitate.evals.countdown import Step, draw_puzzle
from cogitate.evals.render import COLOUR_NAMES
from tokenizers import Tokenizer

from mini import item_tasks, roles, traces
from mini.item_tasks import ItemTasks
from mini.model import CROP_TOKENS
from mini.pictures import Pictures
from mini.scenes import Scenes
from mini.traces import Asked, Look, Trace, Writer
from mini.words import (
    AGENT_HINTS,
    FIRST_HINTS,
    LAST_HINTS,
    OUTSIDE,
    REFUSAL,
    VOCABULARY,
    outside_question,
    vary,
)
from mini.worlds import Worlds

BUCKET_TOKENS = {
    "read": 12,
    "search": 52,
    "admit": 224,
    "plan": 48,
    "glance": 56,
    "scene": 46,
    "short": 120,
    "medium": 176,
    "long": 260,
    **item_tasks.BUCKET_TOKENS,
}
MORE_FORMS = {
    "sum": ("Sum of the {colour} cards?", "How much are the {colour} cards together?"),
    "max": ("Which {colour} card is the largest?", "Largest {colour} number?"),
    "min": ("Which {colour} card is the smallest?", "Smallest {colour} number?"),
    "diff": ("What is the largest {colour} number minus the smallest?",),
    "count": ("Number of {colour} cards?", "How many are {colour}?"),
}
CELL_FORMS = ("What number is at {cell}?", "Which number is on card {cell}?", "Read card {cell}.")
DESCRIBE_FORMS = ("Describe the picture.", "What do you see?", "What is in the picture?")
SCENE_YES_NO = (
    ("does the image contain a {}?", False),
    ("is there a {}?", False),
    ("is there a {} in the image?", False),
    ("is a {} present?", False),
    ("does the image not contain a {}?", True),
    ("is there not a {}?", True),
    ("is there not a {} in the image?", True),
    ("is no {} present?", True),
)
SCENE_COLOUR = (
    "what is the color of the {}?",
    "what color is the {}?",
    "what colour is the {}?",
)
SCENE_SHAPE = (
    "what shape is in the image?",
    "what shape does the image contain?",
    "what shape is present?",
    "what is the {} shape?",
)
# Verdicts by (the shape is as asked, the question is negated).
VERDICTS = {
    (True, False): "ok",
    (False, False): "wrong",
    (True, True): "in",
    (False, True): "out",
}
HINT_SHARE = 0.2
AGAIN_BOARD_SHARE = 0.35
MISS_SHARE, SEARCH_MISS_SHARE, NEAR_MISS = 0.4, 0.2, 3


class Tasks:
    """Draws traces from part of the boards; owns only indices, never changes the pictures."""

    def __init__(
        self,
        pictures: Pictures,
        scenes: Scenes,
        tokenizer: Tokenizer,
        boards: range,
        worlds: Worlds,
        items: range,
        *,
        symbolic: bool,
    ) -> None:
        self.pictures, self.scenes, self.worlds = pictures, scenes, worlds
        self.writer = Writer(tokenizer, symbolic=symbolic)
        self.items = ItemTasks(worlds, self.writer, items, boards)
        self.boards = boards
        self._by_count: dict[int, list[tuple[int, int]]] = {k: [] for k in range(13)}
        self._by_number: dict[tuple[int, int], list[int]] = {}
        self._index()
        first, last = pictures.boards[boards[0], 2], pictures.boards[boards[-1], 2]
        self._crops = np.arange(first, last)
        # A thousand numbers of three digits are a thousand tokens: they need the most practice.
        self._long_crops = self._crops[pictures.cards[first:last, 0] >= 100]
        self.buckets: dict[str, tuple[tuple[float, Callable[..., Trace]], ...]] = {
            "read": ((1.0, self.read),),
            "search": ((1.0, self.search),),
            "admit": ((1.0, self.admit),),
            "plan": ((0.92, self.plan), (0.08, self.describe)),
            "glance": (
                (0.20, self.scene),
                (0.15, self.refusal),
                (0.12, self.count),
                (0.04, self.describe),
                (0.14, self.instant),
                (0.11, self.scene_instant),
            ),
            "scene": ((0.88, self.scene), (0.12, self.scene_instant)),
            "short": ((0.25, self.cell), (0.75, lambda rng: self.board(rng, (1, 2)))),
            "medium": ((1.0, lambda rng: self.board(rng, (3, 4))),),
            "long": ((0.92, self.countdown), (0.08, lambda rng: self.board(rng, (5, 6)))),
        }

    def _index(self) -> None:
        colours = range(len(COLOUR_NAMES))
        for board in self.boards:
            rows, columns, first = (int(v) for v in self.pictures.boards[board])
            cards = self.pictures.cards[first : first + rows * columns]
            for colour in colours:
                count = int((cards[:, 1] == colour).sum())
                self._by_count[count].append((board, colour))
            for i, (number, colour, _) in enumerate(cards.tolist()):
                if number <= countdown.LARGEST_NUMBER:
                    self._by_number.setdefault((number, colour), []).append(first + i)

    def draw(self, bucket: str, rng: np.random.Generator) -> Trace:
        """Draws one trace of a bucket; never longer than the bucket's tokens."""
        if bucket in item_tasks.BUCKET_TOKENS:
            if bucket == "again" and rng.random() < AGAIN_BOARD_SHARE:
                return self.again(rng)
            return self.items.draw(bucket, rng)
        kinds = self.buckets[bucket]
        shares = np.array([share for share, _ in kinds])
        make = kinds[rng.choice(len(kinds), p=shares / shares.sum())][1]
        while True:
            trace = make(rng)
            if len(trace.ids) <= BUCKET_TOKENS[bucket]:
                return trace

    # Looks and their stand-ins.

    def _whole(self, board: int) -> Look:
        rows, columns, first = (int(v) for v in self.pictures.boards[board])
        colours = self.pictures.cards[first : first + rows * columns, 1].tolist()
        symbols = []
        for row in range(4):
            for column in range(4):
                is_card = row < rows and column < columns
                word = COLOUR_NAMES[colours[row * columns + column]] if is_card else "."
                symbols.append(self.writer.encode(f" {word}" if is_card else word)[0])
        return Look("board", board, tuple(symbols))

    def _crop(self, card: int, number: int) -> Look:
        return Look("crop", card, self.writer.encode(str(number)) * CROP_TOKENS)

    def _scene(self, index: int) -> Look:
        shape, colour = (int(v) for v in self.scenes.labels[index])
        words = (f" {easy_vqa.SHAPE_COLOUR_NAMES[colour]}", f" {easy_vqa.SHAPES[shape]}")
        first, second = (self.writer.encode(word)[0] for word in words)
        return Look("scene", index, (first, second) * 8)

    def _asked(self, board: int, colour: int) -> Asked:
        rows, columns, first = (int(v) for v in self.pictures.boards[board])
        cards = self.pictures.cards[first : first + rows * columns]
        places = [int(i) for i in np.flatnonzero(cards[:, 1] == colour)]
        numbers = tuple(int(cards[i, 0]) for i in places)
        crops = tuple(self._crop(first + i, n) for i, n in zip(places, numbers, strict=True))
        cells: tuple[Cell, ...] = tuple(divmod(i, columns) for i in places)
        return Asked(rows, columns, colour, cells, numbers, self._whole(board), crops)

    def _pick(self, rng: np.random.Generator, counts: tuple[int, ...]) -> Asked:
        sizes = np.array([len(self._by_count[count]) ** 0.5 for count in counts])
        options = self._by_count[counts[rng.choice(len(counts), p=sizes / sizes.sum())]]
        return self._asked(*options[rng.integers(len(options))])

    def _hint(self, rng: np.random.Generator) -> str:
        if rng.random() >= HINT_SHARE:
            return ""
        return AGENT_HINTS[rng.integers(1, len(AGENT_HINTS))]

    def _question(self, rng: np.random.Generator, kind: str, colour: int) -> str:
        forms = QUESTION_FORMS[kind] + MORE_FORMS[kind]
        return vary(rng, forms[rng.integers(len(forms))].format(colour=COLOUR_NAMES[colour]))

    # Tasks on boards.

    def board(self, rng: np.random.Generator, counts: tuple[int, ...]) -> Trace:
        """Sum, largest, smallest or difference of the cards of one colour."""
        asked = self._pick(rng, counts)
        kind = KINDS[rng.integers(4)]
        question = self._question(rng, kind, asked.colour)
        return traces.board_trace(self.writer, question, kind, asked, self._hint(rng))

    def again(self, rng: np.random.Generator) -> Trace:
        """A later round of `refine` on a board: it reads again, whatever the drafts say."""
        kind = KINDS[rng.integers(5)]
        asked = self._pick(rng, (1, 2, 3, 4))
        name = COLOUR_NAMES[asked.colour]
        value = RULES[kind](asked.numbers)
        thought = f"{', '.join(map(str, asked.numbers))}. "
        later = roles.later(rng, answer_sentence(kind, name, value), thought)
        question = self._question(rng, kind, asked.colour)
        return traces.board_trace(self.writer, question, kind, asked, "", later)

    def plan(self, rng: np.random.Generator) -> Trace:
        """The beginning of a board question: where the cards of the colour lie, and no more."""
        asked = self._pick(rng, (1, 2, 3, 4, 5) if rng.random() < 0.95 else (0,))
        if rng.random() < 0.3:
            target = int(rng.integers(5, 201))
            question = self._countdown_question(rng, asked.colour, target)
        else:
            question = self._question(rng, KINDS[rng.integers(5)], asked.colour)
        trace = self.writer.ask(question, asked.whole, self._hint(rng))
        self.writer.plan(trace, asked)
        return trace

    def count(self, rng: np.random.Generator) -> Trace:
        """How many cards there are of one colour."""
        asked = self._pick(rng, (0, 1, 2, 3, 4, 5, 6))
        question = self._question(rng, "count", asked.colour)
        return traces.board_trace(self.writer, question, "count", asked, self._hint(rng))

    def instant(self, rng: np.random.Generator) -> Trace:
        """A board question at instant effort."""
        asked = self._pick(rng, (0, 1, 2, 3, 4, 5, 6))
        kind = KINDS[rng.integers(4)] if rng.random() < 0.5 else "count"
        if rng.random() < 0.15:
            target = int(rng.integers(5, 201))
            question = self._countdown_question(rng, asked.colour, target)
            kind = "sum"
        else:
            question = self._question(rng, kind, asked.colour)
        return traces.instant_board_trace(self.writer, question, kind, asked)

    def cell(self, rng: np.random.Generator) -> Trace:
        """What one named card says."""
        board = self.boards[rng.integers(len(self.boards))]
        rows, columns, first = (int(v) for v in self.pictures.boards[board])
        place = int(rng.integers(rows * columns))
        row, column = divmod(place, columns)
        number, colour, _ = (int(v) for v in self.pictures.cards[first + place])
        crop = self._crop(first + place, number)
        whole = self._whole(board)
        asked = Asked(rows, columns, colour, ((row, column),), (number,), whole, (crop,))
        form = CELL_FORMS[rng.integers(len(CELL_FORMS))]
        name = f"{traces.COLUMN_NAMES[column]}{row + 1}"
        question = vary(rng, form.format(cell=name))
        return traces.cell_trace(self.writer, question, asked, self._hint(rng))

    def read(self, rng: np.random.Generator) -> Trace:
        """One crop, most often of a number of three digits."""
        crops = self._long_crops if rng.random() < 0.7 else self._crops
        card = int(crops[rng.integers(len(crops))])
        number = int(self.pictures.cards[card, 0])
        return traces.read_trace(self.writer, number, self._crop(card, number))

    def describe(self, rng: np.random.Generator) -> Trace:
        """The colours of all cards row by row, or the shape of a scene."""
        question = vary(rng, DESCRIBE_FORMS[rng.integers(len(DESCRIBE_FORMS))])
        if rng.random() < 0.15:
            index = int(rng.integers(len(self.scenes.labels)))
            sentence = self._scene_words(index)
            return traces.direct_trace(self.writer, question, self._scene(index), sentence)
        board = self.boards[rng.integers(len(self.boards))]
        rows, columns, first = (int(v) for v in self.pictures.boards[board])
        colours = self.pictures.cards[first : first + rows * columns, 1].reshape(rows, columns)
        lines = (" ".join(COLOUR_NAMES[c] for c in row) for row in colours.tolist())
        sentence = f"{rows} rows of {columns} cards: {'; '.join(lines)}."
        return traces.direct_trace(self.writer, question, self._whole(board), sentence)

    # Countdown.

    def _countdown_question(self, rng: np.random.Generator, colour: int, target: int) -> str:
        forms = countdown.QUESTION_FORMS
        form = forms[rng.integers(len(forms))]
        return vary(rng, form.format(colour=COLOUR_NAMES[colour], target=target))

    def _derivation_hint(self, rng: np.random.Generator, steps: tuple[Step, ...]) -> str:
        """Half of the derivations follow a hint about their first or last operator."""
        if rng.random() < 0.5:
            return ""
        if rng.random() < 0.5:
            return FIRST_HINTS[steps[0].operator]
        return LAST_HINTS[steps[-1].operator]

    def countdown(self, rng: np.random.Generator) -> Trace:
        """A puzzle on four cards; some end in a miss, which the model has to admit."""
        return traces.countdown_trace(self.writer, *self._posed(rng, MISS_SHARE))

    def admit(self, rng: np.random.Generator) -> Trace:
        """Only whether such a puzzle was solved."""
        return traces.admit_trace(self.writer, *self._posed(rng, 0.5))

    def _posed(
        self, rng: np.random.Generator, miss_share: float
    ) -> tuple[str, Asked, int, tuple[Step, ...], str]:
        """Lays out a puzzle: question, cards, target, steps, hint."""
        options = self._by_count[4]
        asked = self._asked(*options[rng.integers(len(options))])
        puzzle = draw_puzzle(rng, held_out=False)
        cards = [self._by_number[number, asked.colour] for number in puzzle.numbers]
        crops = tuple(
            self._crop(choices[rng.integers(len(choices))], number)
            for choices, number in zip(cards, puzzle.numbers, strict=True)
        )
        asked = replace(asked, numbers=puzzle.numbers, crops=crops)
        target = self._target(rng, puzzle.target, miss_share)
        question = self._countdown_question(rng, asked.colour, target)
        return question, asked, target, puzzle.steps, self._derivation_hint(rng, puzzle.steps)

    def search(self, rng: np.random.Generator) -> Trace:
        """Only the derivation of a puzzle."""
        puzzle = draw_puzzle(rng, held_out=False)
        hint = self._derivation_hint(rng, puzzle.steps)
        target = self._target(rng, puzzle.target, SEARCH_MISS_SHARE)
        return traces.search_trace(self.writer, puzzle.numbers, target, puzzle.steps, hint)

    def _target(self, rng: np.random.Generator, made: int, miss_share: float) -> int:
        """What was to be made: sometimes not what is made, often nearly."""
        if rng.random() >= miss_share:
            return made
        gap = int(rng.integers(1, NEAR_MISS + 1)) * (1 if rng.random() < 0.5 else -1)
        target = made + gap if rng.random() < 0.5 else int(rng.integers(5, 201))
        return target if target not in (made, 0) else made + 1

    # Scenes and everything outside the model's world.

    def _scene_words(self, index: int) -> str:
        shape, colour = (int(v) for v in self.scenes.labels[index])
        return f"A {easy_vqa.SHAPE_COLOUR_NAMES[colour]} {easy_vqa.SHAPES[shape]}."

    def _scene_question(self, rng: np.random.Generator, index: int) -> tuple[str, str, str]:
        """Returns an easy-vqa question about a scene, its label and the thought before it.

        For yes and no the thought states what is asked next to what is seen, and a verdict of its
        own for each of the four cases. Whether the two words agree and whether the question is
        negated then add up to the verdict; straight to yes or no they would be a parity, which
        is slow to learn.
        """
        shape, colour = (int(v) for v in self.scenes.labels[index])
        shape_name, colour_name = easy_vqa.SHAPES[shape], easy_vqa.SHAPE_COLOUR_NAMES[colour]
        draw = rng.random()
        if draw < 0.15:
            form = SCENE_COLOUR[rng.integers(len(SCENE_COLOUR))]
            question = form.format(shape_name if rng.random() < 0.5 else "shape")
            return question, colour_name, self._scene_words(index)
        if draw < 0.3:
            question = SCENE_SHAPE[rng.integers(len(SCENE_SHAPE))].format(colour_name)
            return question, shape_name, self._scene_words(index)
        is_true = rng.random() < 0.5
        is_shape = rng.random() < 0.5
        words = easy_vqa.SHAPES if is_shape else easy_vqa.SHAPE_COLOUR_NAMES
        word = shape_name if is_shape else colour_name
        if not is_true:
            word = str(rng.choice([other for other in words if other != word]))
        form, is_negated = SCENE_YES_NO[rng.integers(len(SCENE_YES_NO))]
        label = "yes" if is_true != is_negated else "no"
        seen = self._scene_words(index).removesuffix(".")
        claim = f"a {word}" if is_shape else word
        thought = f"{seen} is {claim}: {VERDICTS[is_true, is_negated]}."
        return form.format(word if is_shape else f"{word} shape"), label, thought

    def scene(self, rng: np.random.Generator) -> Trace:
        """An easy-vqa question, answered after naming what is seen."""
        index = int(rng.integers(len(self.scenes.labels)))
        question, label, thought = self._scene_question(rng, index)
        question = question if rng.random() < 0.8 else question.capitalize()
        sentence = easy_vqa.answer_sentence(label)
        hint, look = self._hint(rng), self._scene(index)
        return traces.direct_trace(
            self.writer, question, look, sentence, thought=thought, hint=hint
        )

    def scene_instant(self, rng: np.random.Generator) -> Trace:
        """An easy-vqa question at instant effort."""
        index = int(rng.integers(len(self.scenes.labels)))
        question, label, _ = self._scene_question(rng, index)
        sentence = easy_vqa.answer_sentence(label)
        look = self._scene(index)
        return traces.direct_trace(self.writer, question, look, sentence, instant=True)

    def refusal(self, rng: np.random.Generator) -> Trace:
        """A question that does not fit the picture, or has none."""
        board = self.boards[rng.integers(len(self.boards))]
        index = int(rng.integers(len(self.scenes.labels)))
        draw = rng.random()
        whole: Look | None
        if draw < 0.5:
            question = vary(rng, outside_question(rng))
            whole = (None, self._whole(board), self._scene(index))[rng.integers(3)]
        elif draw < 0.7:
            question = self._scene_question(rng, index)[0]
            whole = self._whole(board) if rng.random() < 0.7 else None
        else:
            colour = int(rng.integers(len(COLOUR_NAMES)))
            if rng.random() < 0.3:
                question = self._countdown_question(rng, colour, int(rng.integers(5, 201)))
            else:
                question = self._question(rng, KINDS[rng.integers(5)], colour)
            whole = self._scene(index) if rng.random() < 0.7 else None
        instant = rng.random() < 0.2
        hint = "" if instant else self._hint(rng)
        return traces.direct_trace(
            self.writer, question, whole, REFUSAL, hint=hint, instant=instant
        )


def corpus(rng: np.random.Generator, count: int) -> list[str]:
    """Returns sample texts for the tokenizer: questions, thoughts, calls and answers."""
    texts = [*OUTSIDE, REFUSAL, *AGENT_HINTS, *DESCRIBE_FORMS] * 20
    texts += [f"{a} {b}" for a, b in zip(VOCABULARY, reversed(VOCABULARY), strict=True)]
    scenes = (*SCENE_COLOUR, *SCENE_SHAPE, *(form for form, _ in SCENE_YES_NO))
    for _ in range(count):
        colour = str(rng.choice(COLOUR_NAMES))
        kind = KINDS[rng.integers(5)]
        texts += [form.format(colour=colour) for form in QUESTION_FORMS[kind] + MORE_FORMS[kind]]
        texts += [answer_sentence(kind, colour, 2), answer_sentence("count", colour, 1)]
        texts += [f.format(colour=colour, target=2) for f in countdown.QUESTION_FORMS]
        texts += [f"{colour.capitalize()} at A1 B2 C3 D1.", f" {colour.capitalize()} at A1."]
        texts += [f"No {colour} cards.", f" No {colour} cards.", "1, 2. "]
        texts += ["calculator(max(1, 2)-min(1, 2))", "zoom(1, 2, 3, 4)", "calculator(1+2*3)"]
        texts += ["prove(1, 2 3 4, 5*6=7, 8-9=0)", "Numbers 1 2 3, target 4.", "proved", "wrong"]
        texts += ["I could not make 1.", "I can't tell without looking closer.", "1+2=3, 4-5=6."]
        shape = str(rng.choice(easy_vqa.SHAPES))
        shade = str(rng.choice(easy_vqa.SHAPE_COLOUR_NAMES))
        texts += [
            f"A {shade} {shape}.",
            f" A {shade} {shape}.",
            f"It is a {shape}.",
            f"It is {shade}.",
            "Yes.",
            "No.",
        ]
        texts += [form.format(shape) for form in scenes]
        texts += [form.format(f"{shade} shape") for form in scenes]
        texts += [f"2 rows of 3 cards: {colour} {colour}; {colour}.", "The number is 3."]
        texts += [form.format(cell="B2") for form in CELL_FORMS]
    return texts
