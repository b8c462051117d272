"""evals: what is drawn is legible where it says it is, split cleanly, and asked in many ways."""

from __future__ import annotations

import numpy as np
import pytest
from cogitate.cli.commands import evaluate
from cogitate.evals import chains, charts, compare, datasets, followups, labels, nouns, tables
from cogitate.evals.bars import LEAST_GAP, draw_chart
from cogitate.evals.canvas import LARGEST_TURN, Canvas
from cogitate.evals.checks import declines, is_near, is_within, says, says_all
from cogitate.evals.grammar import HELD_OUT_ONE_IN, KNOWN_FORMS, Grammar, is_held_out, number_word
from cogitate.evals.items import Draw, Item, Style
from cogitate.evals.outside import draw_near, draw_outside
from cogitate.evals.phrases import KINDS, grammar
from cogitate.evals.sheets import KINDS as SHEET_KINDS
from cogitate.evals.sheets import cents, draw_sheet

pytestmark = pytest.mark.unit

pytest.importorskip("sklearn", reason="pip install 'cogitate[eval]'")
pytest.importorskip("font_caladea", reason="pip install 'cogitate[eval]'")

DRAWS: dict[str, Draw] = {
    "labels": labels.draw_item,
    "tables": tables.draw_item,
    "charts": charts.draw_item,
    "compare": compare.draw_item,
    "followups": followups.draw_item,
    "chains": chains.draw_item,
    "outside": draw_outside,
    "near-misses": draw_near,
}


@pytest.fixture(scope="module")
def style() -> Style:
    from cogitate.evals.sources import held_out_source

    return Style(0.5, held_out_source(), held_out=True)


def items(draw: Draw, style: Style, count: int = 16) -> list[Item]:
    return [draw(np.random.default_rng((7, i)), style) for i in range(count)]


def test_a_grammar_numbers_its_forms() -> None:
    made = Grammar("<ask> [the|a] {x}[|, please].", {"ask": "[show|read]"})
    forms = [made.form(i) for i in range(made.count)]
    assert len(set(forms)) == made.count == 8
    assert "Read the {x}, please." in forms
    with pytest.raises(IndexError):
        made.form(8)


def test_sets_of_known_forms_keep_all_else_held_out() -> None:
    from cogitate.evals.datasets import load

    form = Grammar("<ask> [the|a] {x}[|, please|, now|!].", {"ask": "[show|read|tell|name|say]"})
    forms = {form.draw(np.random.default_rng(i), held_out=True) for i in range(60)}
    assert all(map(is_held_out, forms))
    token = KNOWN_FORMS.set(True)
    known = {form.draw(np.random.default_rng(i), held_out=True) for i in range(60)}
    KNOWN_FORMS.reset(token)
    assert not any(map(is_held_out, known))
    assert {q.text for q in load("tables-known", 3)}.isdisjoint(q.text for q in load("tables", 3))
    assert not KNOWN_FORMS.get()


@pytest.mark.parametrize("text", ["[a|b", "a]", "<a"])
def test_a_rule_with_a_stray_bracket_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="bracket"):
        Grammar(text, {})


@pytest.mark.parametrize("kind", KINDS)
def test_every_question_has_more_than_a_thousand_forms_in_both_splits(kind: str) -> None:
    made = grammar(kind)
    forms = {made.form(i) for i in range(made.count)}
    kept = sum(map(is_held_out, forms))
    assert len(forms) > 1000
    # Binomial: a share of one in eight over a thousand forms stays within a third of itself.
    assert kept == pytest.approx(len(forms) / HELD_OUT_ONE_IN, rel=0.33)
    assert all(form[0].isupper() or form[0] == "{" for form in forms)
    assert not any("  " in form or " ?" in form or "[" in form for form in forms)


@pytest.mark.parametrize("held_out", [True, False])
def test_forms_are_drawn_from_their_split_alone(held_out: bool) -> None:
    rng = np.random.default_rng(1)
    drawn = [grammar(kind).draw(rng, held_out=held_out) for kind in KINDS for _ in range(20)]
    assert {is_held_out(form) for form in drawn} == {held_out}
    assert len(set(drawn)) > 0.7 * len(drawn)


def test_numbers_may_be_words() -> None:
    rng = np.random.default_rng(1)
    assert {number_word(rng, 3) for _ in range(40)} == {"3", "three"}
    assert number_word(rng, 130) == "130"


@pytest.mark.parametrize("words", [nouns.WORDS, nouns.GOODS, nouns.PLACES, nouns.NAMES])
def test_words_are_split_and_training_never_sees_those_held_out(words: tuple[str, ...]) -> None:
    kept = set(nouns.part(words, held_out=True))
    assert 8 <= len(kept) < len(words) / 3
    rng = np.random.default_rng(1)
    for _ in range(30):
        assert not kept & set(nouns.draw(rng, words, 8, held_out=False))
        assert set(nouns.draw(rng, words, 8, held_out=True)) <= kept


@pytest.mark.parametrize("name", DRAWS)
def test_the_truth_is_right_and_nothing_else(name: str, style: Style) -> None:
    for item in items(DRAWS[name], style):
        assert item.check(item.truth), item
        assert not item.check("")
        assert item.check("I can't answer that.") == (name == "outside")
        assert "{" not in item.text + item.truth


@pytest.mark.parametrize("name", DRAWS)
def test_there_is_ink_where_an_item_says_that_something_is_read(name: str, style: Style) -> None:
    for item in items(DRAWS[name], style):
        for read in item.reads:
            picture = item.pictures[read.picture]
            height, width = picture.shape[:2]
            x0, y0, x1, y1 = read.box
            assert 0 <= x0 < x1 <= 100
            assert 0 <= y0 < y1 <= 100
            rows = slice(height * y0 // 100, -(-height * y1 // 100))
            columns = slice(width * x0 // 100, -(-width * x1 // 100))
            greys = picture[rows, columns].mean(2)
            contrast = np.percentile(greys, 99.5) - np.percentile(greys, 0.5)
            assert contrast > 60, (item.kind, read)


def test_a_box_follows_the_paper_that_is_turned() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        canvas = Canvas(400, 200, (255, 255, 255))
        canvas.draw.rectangle((300, 20, 379, 39), (0, 0, 0))
        canvas.marks["it"] = (300, 20, 380, 40)
        picture, boxes = canvas.photo(rng, 2.0)
        x0, y0, x1, y1 = boxes["it"]
        dark = np.argwhere(picture.mean(2) < 70)
        assert y0 * 2 <= np.percentile(dark[:, 0], 5)
        assert np.percentile(dark[:, 0], 95) <= y1 * 2
        assert x0 * 4 <= np.percentile(dark[:, 1], 5)
        assert np.percentile(dark[:, 1], 95) <= x1 * 4
        # No wider than the largest turn makes it, and the margin.
        assert (x1 - x0) * 4 < 80 + 40 * np.sin(np.radians(LARGEST_TURN)) + 24


def test_bars_can_be_told_apart() -> None:
    for seed in range(200):
        chart = draw_chart(np.random.default_rng(seed), held_out=bool(seed % 2))
        gaps = np.diff(np.sort(chart.values))
        assert gaps.min() >= max(1, round(LEAST_GAP * chart.top))
        assert max(chart.values) <= chart.top
        assert len(chart.values) == len(chart.labels)
        assert len(set(chart.labels)) == len(chart.labels) <= 7


@pytest.mark.parametrize("kind", SHEET_KINDS)
def test_tables_have_the_size_they_are_said_to_have(kind: str) -> None:
    for seed in range(60):
        sheet = draw_sheet(np.random.default_rng(seed), kind, held_out=bool(seed % 2))  # type: ignore[arg-type]
        assert 2 <= len(sheet.columns) <= 4
        assert 3 <= len(sheet.rows) <= 8
        assert len({row[0] for row in sheet.rows}) == len(sheet.rows)


def test_about_half_of_the_receipts_are_added_up_wrong() -> None:
    drawn = [draw_sheet(np.random.default_rng(i), "receipt", held_out=True) for i in range(200)]
    wrong = sum(cents(s.total) != sum(map(cents, s.column("Price"))) for s in drawn)
    assert 70 < wrong < 130


def test_pictures_have_many_sizes_and_aspects(style: Style) -> None:
    shapes = [item.pictures[0].shape for item in items(tables.draw_item, style, 40)]
    aspects = [width / height for height, width, _ in shapes]
    assert min(aspects) < 0.75
    assert max(aspects) > 1.4
    assert len(set(shapes)) > 35


def test_a_chain_looks_up_what_its_table_has(style: Style) -> None:
    for item in items(chains.draw_item, style):
        look = next(use for use in item.uses if use.call.startswith("lookup("))
        row = look.call.removesuffix(")").split(", ")[1]
        assert row in {one[0] for one in item.tables[0].rows}
        assert look.call.startswith(f"lookup({item.tables[0].name}, ")


def test_a_conversation_has_its_earlier_turns(style: Style) -> None:
    drawn = items(followups.draw_item, style)
    assert {len(item.earlier) for item in drawn} == {1, 2}
    assert all(answer for item in drawn for _, answer in item.earlier)


@pytest.mark.parametrize(
    ("answer", "truth", "rivals", "right"),
    [
        ("The price of bread is 2.40.", "2.40", (), True),
        ("The price is 12.40.", "2.40", (), False),
        ("2.40 or 2.50", "2.40", (), False),
        ("It leaves at 10:15.", "10:15", (), True),
        ("It leaves at 10:150.", "10:15", (), False),
        ("Train R5.", "R5", ("R58",), True),
        ("Train R58.", "R5", ("R58",), False),
        ("Uric acid, not zinc.", "Uric acid", ("Zinc",), False),
        ("The unit is mmol/l.", "l", (), False),
        ("Yes, it is 3.10.", "Yes", ("No",), True),
        ("Yes and no.", "Yes", ("No",), False),
    ],
)
def test_the_truth_and_no_rival(
    answer: str, truth: str, rivals: tuple[str, ...], right: bool
) -> None:
    assert says(answer, truth, rivals) is right


def test_words_inside_the_truth_are_no_rivals() -> None:
    assert says("The first train.", "first train", ("train",))
    assert says_all("Apple, pear.", ("apple", "pear"), ("plum",))
    assert not says_all("Apple.", ("apple", "pear"), ())


@pytest.mark.parametrize(
    ("answer", "right"),
    [("Mia is at 105.", True), ("95", True), ("94.9", False), ("105.1", False),
     ("100 or 101", False), ("10:00", False), ("", False)],
)  # fmt: skip
def test_a_value_may_be_five_percent_off(answer: str, right: bool) -> None:
    assert is_near(answer, 100, 0.05) is right


def test_a_difference_may_be_off_by_what_its_reading_may() -> None:
    assert is_within("It is 12.", 10, 2)
    assert not is_within("It is 13.", 10, 2)
    assert is_within("It is 0.", 0, 2)


@pytest.mark.parametrize(
    ("answer", "declined"),
    [
        ("I can't answer that.", True),
        ("Sorry, I cannot tell.", True),
        ("I can't answer that, but it is 7.", False),
        ("It is red.", False),
    ],
)
def test_declining_claims_nothing(answer: str, declined: bool) -> None:
    assert declines(answer) is declined


def test_the_command_line_knows_every_set() -> None:
    assert tuple(datasets.DATASETS) == evaluate.DATASETS
    assert evaluate.COMPARE not in evaluate.DATASETS


def test_a_comparison_brings_two_pictures_and_a_chain_its_table() -> None:
    assert all(len(list(q.pictures())) == 2 for q in datasets.load("pairs", 4))
    asked = datasets.load("chains", 4)
    assert all(len(question.tables) == 1 for question in asked)
    assert len({question.digest for question in asked}) == 4


@pytest.mark.parametrize("held_out", [True, False])
def test_what_is_absent_is_as_new_as_what_is_there(held_out: bool) -> None:
    rng = np.random.default_rng(5)
    there = tuple(nouns.draw(rng, nouns.PLACES, 4, held_out=held_out))
    for _ in range(30):
        absent = nouns.draw_absent(rng, nouns.PLACES, there, held_out=held_out)
        assert absent in nouns.PLACES and absent not in there
        assert nouns.is_held_out(absent) == held_out
    # Of a list that is all there, a name.
    absent = nouns.draw_absent(rng, nouns.DAYS, nouns.DAYS, held_out=held_out)
    assert absent in nouns.NAMES


def test_made_up_words_have_abbreviations_where_the_list_has() -> None:
    rng = np.random.default_rng(6)
    token = nouns.INVENTED.set(1.0)
    tests = nouns.draw(rng, tuple(one.name for one in nouns.ANALYTES), 60, held_out=False)
    places = nouns.draw(rng, nouns.PLACES, 60, held_out=False)
    nouns.INVENTED.reset(token)
    assert 8 < sum(one.isupper() for one in tests) < 35
    assert not any(one.isupper() for one in places) and all(one[0].isupper() for one in places)
    assert not any(map(nouns.is_held_out, (*tests, *places)))
    assert nouns.analyte(tests[0]) == nouns.analyte(tests[0])
    assert nouns.analyte(tests[0]).name == tests[0]
    assert nouns.analyte("Sodium") in nouns.ANALYTES
