"""training: traces of drawn items and of roles are what the mesh will really show and run."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.unit

for package in ("torch", "tokenizers", "fontTools", "sklearn", "font_caladea"):
    pytest.importorskip(package, reason="see services/agent-decoder/training/README.md")

TRAINING = Path(__file__).parents[2] / "services" / "agent-decoder" / "training"
SHIPPED = Path(__file__).parents[2] / "services/agent-decoder/cogitate/models/mini"
SETS = ("labels", "tables", "charts", "compare", "followups", "chains", "toolbox")


@pytest.fixture(scope="module", autouse=True)
def training_path() -> Any:
    sys.path.insert(0, str(TRAINING))
    yield
    sys.path.remove(str(TRAINING))


@pytest.fixture(scope="module")
def tokenizer(training_path: None) -> Any:
    from mini.tokenizer import load_tokenizer

    return load_tokenizer(SHIPPED / "tokenizer.json")


@pytest.fixture(scope="module")
def style() -> Any:
    from cogitate.evals.items import Style
    from cogitate.evals.sources import held_out_source

    return Style(0.5, held_out_source(), held_out=False)


def draws(name: str) -> Any:
    from cogitate.evals import chains, charts, compare, followups, labels, tables, toolbox

    modules = (labels, tables, charts, compare, followups, chains, toolbox)
    return dict(zip(SETS, modules, strict=True))[name].draw_item


def items(name: str, style: Any, count: int = 12) -> Any:
    return [draws(name)(np.random.default_rng((11, i)), style) for i in range(count)]


def tool_json(name: str, argument: str) -> str:
    """A tool as the decoder gets it from the mesh."""
    schema = {"type": "object", "properties": {argument: {"type": "string"}}}
    function = {"name": name, "description": "", "parameters": schema}
    return json.dumps({"type": "function", "function": function})


def calls_of(pieces: Any) -> list[tuple[str, Any]]:
    """The calls of a script with the piece that follows as their result."""
    from mini.tokenizer import CALL

    starts = [i for i, piece in enumerate(pieces) if piece.text == CALL]
    return [(pieces[i + 1].text, pieces[i + 4]) for i in starts]


@pytest.mark.parametrize("name", SETS)
def test_the_prompt_is_what_the_mesh_renders(name: str, tokenizer: Any, style: Any) -> None:
    from cogitate.agent_decoder import wire
    from cogitate.agent_decoder.model.templates import Image, MiniTemplate
    from cogitate.agent_decoder.model.tiling import Tiling, tiled
    from cogitate.aggregator.admission import conversation_of
    from cogitate.client import LookupTable
    from cogitate.client._request import contemplate
    from mini.model import CROP_TOKENS, WHOLE_TOKENS
    from mini.scripts import prompt
    from mini.tokenizer import IMAGE
    from mini.traces import Writer
    from mini.worlds import trace_of

    template = MiniTemplate(
        tokenizer,
        {
            "image_tokens": {"whole": WHOLE_TOKENS, "crop": CROP_TOKENS},
            "trained_tools": ["zoom", "calculator", "prove", "lookup"],
        },
    )
    tiling, image = Tiling(6, 160), tokenizer.token_to_id(IMAGE)
    for item in items(name, style):
        tables = [LookupTable(one.name, one.columns, one.rows) for one in item.tables]
        request = contemplate(
            item.text,
            {"images": [b"x"] * len(item.pictures), "earlier": item.earlier, "tables": tables},
        )
        for i, part in enumerate(p for p in request.spec.conversation[0].parts if p.image.data):
            part.image.data, part.image.digest = b"", f"sha256:{i:064d}"
            part.image.height_px, part.image.width_px = item.pictures[i].shape[:2]
        messages = [tiled(one, tiling) for one in conversation_of(request.spec)]
        tools = [tool_json(name, "number") for name in ("zoom", "calculator")]
        tools += [tool_json(*one.removesuffix(")").split("(")) for one in item.tools]
        ids: list[int] = []
        for one in template.prompt(wire.to_turns(messages), instant=False, tools=tools):
            count = template.num_image_tokens(one) if isinstance(one, Image) else 1
            ids += [image] * count if isinstance(one, Image) else [one]
        trace = trace_of(Writer(tokenizer, symbolic=False), list(prompt(item, tiling)))
        assert trace.ids == ids
        assert not any(trace.own)


@pytest.mark.parametrize("name", SETS)
def test_calls_are_read_and_answered_by_the_mesh_as_the_trace_says(name: str, style: Any) -> None:
    from cogitate.agent_decoder.core.calls import parse_call
    from cogitate.tool_executor.core.registry import TOOLS
    from cogitate.tool_executor.core.types import Image, Table
    from mini.scripts import script

    for item in items(name, style):
        tables = [Table(one.name, one.columns, one.rows) for one in item.tables]
        pictures = [Image(f"{i}") for i, _ in enumerate(item.pictures)]
        for text, result in calls_of(script(item, None)):
            call = parse_call(text)
            arguments = json.loads(call.arguments_json)
            if name == "toolbox" and call.name != "zoom":
                assert f"{call.name}({next(iter(arguments))})" in item.tools
                continue
            tool = TOOLS[call.name]
            if tool.run_on_tables is not None:
                assert tool.run_on_tables(arguments, tables).text == result.text
            else:
                assert tool.run is not None
                outcome = tool.run(arguments, pictures)
                if call.name == "zoom":
                    (seen,) = outcome.images
                    assert seen.digest == f"{result.view.picture}"
                    assert seen.box is not None
                    edges = (seen.box.x0, seen.box.y0, seen.box.x1, seen.box.y1)
                    assert edges == tuple(10 * edge for edge in result.view.box)
                else:
                    assert outcome.text == result.text


@pytest.mark.parametrize("name", SETS)
def test_only_what_the_model_writes_is_trained_on(name: str, tokenizer: Any, style: Any) -> None:
    from mini.batches import make_batch
    from mini.model import CROP_TOKENS, WHOLE_TOKENS
    from mini.scripts import script
    from mini.tokenizer import END, IMAGE
    from mini.traces import Writer
    from mini.worlds import trace_of, views_of

    writer, image = Writer(tokenizer, symbolic=False), tokenizer.token_to_id(IMAGE)
    for item in items(name, style, 4):
        pieces = script(item, None, hint="Add first.")
        trace = trace_of(writer, pieces)
        pages, patches = views_of(item, pieces)
        assert [view.pool for view in trace.views].count("page") == len(pages)
        assert [view.pool for view in trace.views].count("patch") == len(patches)
        assert all(view.shape == (64, 64, 3) for view in (*pages, *patches))
        own = [i for i, is_own in zip(trace.ids, trace.own, strict=True) if is_own]
        assert image not in own and own[-1] == tokenizer.token_to_id(END)
        said = tokenizer.decode(own)
        assert item.truth in said and "Add first." not in said
        batch = make_batch([trace], 0)
        assert len(batch.places["patch"]) == CROP_TOKENS * len(patches)
        assert len(batch.places["page"]) == WHOLE_TOKENS * len(pages)


def test_a_colon_marks_what_is_wanted(style: Any) -> None:
    from mini.scripts import FOUND, MARKS, found, is_named, script

    kinds = {"receipt.price": 1, "receipt.sum": 2, "lab.result": 1, "chart.value": 1,
             "chart.sum": 2}  # fmt: skip
    seen = set()
    for item in (*items("tables", style, 100), *items("charts", style, 60)):
        marks = [one.text for one in script(item, None) if one.own and one.text in MARKS]
        name = item.kind.rpartition(".")[2]
        if item.kind in kinds:
            assert marks.count(FOUND) == kinds[item.kind], item.text
        elif name in ("most", "least"):
            best = [float(one.text) for one, wanted in zip(item.reads, found(item), strict=True)
                    if wanted]  # fmt: skip
            assert best == sorted(best, reverse=name == "least") and best[0] == float(
                item.reads[0].text
            )
            every = [float(one.text) for one in item.reads]
            assert best[-1] == (max(every) if name == "most" else min(every))
        seen.add(item.kind)
    assert seen > set(kinds) | {"chart.most", "chart.least", "receipt.most", "receipt.least"}
    assert is_named("Ham", "How much is ham?") and is_named("Ham", "The HAM, please")
    assert not is_named("Ham", "The train to Hamburg") and not is_named("", "x")


def test_a_colon_marks_what_both_pictures_say(style: Any) -> None:
    from mini.scripts import FOUND, MARKS, script

    same = [one for one in items("compare", style, 40) if one.kind == "compare.same"]
    for item in same:
        marks = [one.text for one in script(item, None) if one.own and one.text in MARKS]
        assert (marks[-1] == FOUND) == (item.truth == "Yes."), item.text
    assert {item.truth for item in same} == {"Yes.", "No."}


@pytest.fixture(scope="module")
def item_tasks(tokenizer: Any) -> Any:
    from mini.item_tasks import ItemTasks
    from mini.traces import Writer
    from mini.worlds import draw_shard

    worlds = draw_shard(9, 120)
    return ItemTasks(worlds, Writer(tokenizer, symbolic=False), range(120), range(1))


@pytest.mark.parametrize(
    "bucket",
    [
        "where", "point", "match", "order", "conclude", "reckon", "shade", "pick", "swap", "spell",
        "judge", "audit", "same",
    ],
)  # fmt: skip
def test_practice_of_single_steps(bucket: str, item_tasks: Any, tokenizer: Any) -> None:
    from cogitate.evals.render import COLOUR_NAMES
    from mini.item_tasks import BUCKET_TOKENS
    from mini.scripts import MARKS

    rng = np.random.default_rng(3)
    for _ in range(30):
        trace = item_tasks.draw(bucket, rng)
        assert len(trace.ids) == len(trace.own) <= BUCKET_TOKENS[bucket]
        own = [i for i, is_own in zip(trace.ids, trace.own, strict=True) if is_own]
        said = tokenizer.decode(own)
        if bucket in ("match", "order"):
            told = {tokenizer.decode([i]) for i in own} - set(MARKS)
            assert not trace.views and all(one.isdigit() for one in told)
            counts = [int(one) for one in map(tokenizer.decode, [[i] for i in own]) if one in told]
            assert counts == list(range(1, len(counts) + 1)) and (bucket == "order" or not counts)
        elif bucket == "shade":
            assert said in [f"The {name} card." for name in COLOUR_NAMES]
        elif bucket == "spell":
            assert said.endswith(", ") and len(trace.views) == 1
        elif bucket == "swap":
            assert sum(said.count(mark) for mark in MARKS) >= 3
            assert "zoom(" in said or re.search(r"There (is|are) \d bars?\.$", said), said
        elif bucket == "conclude":
            whole = tokenizer.decode(trace.ids)
            difference = re.findall(r"calculator\([^)]*\)(-?[\d.]+?)(?=Yes|No)", whole)[-1]
            assert said.startswith("Yes" if float(difference) == 0 else "No"), whole
        elif bucket == "reckon":
            figures = re.findall(r"\d+\.\d+", said)
            before = tokenizer.decode(trace.ids[: trace.own.index(True)])
            assert not trace.views and re.fullmatch(r"calculator\([\d.()+*-]+\)", said), said
            assert len(figures) == 2 and all(one in before for one in figures)
        elif bucket == "same":
            assert not trace.views and set(map(tokenizer.decode, [[i] for i in own])) <= {
                ", ",
                ": ",
                "+",
                "=",
                ". ",
            }
        elif bucket in ("judge", "audit"):
            assert not trace.views and said.endswith("It holds.10") == said.endswith("10"), said
            assert said.endswith("0")
        else:
            assert "calculator(" not in said and (bucket == "where" or "zoom(" in said)


def test_figures_of_other_pictures_and_what_follows_from_them(style: Any) -> None:
    from mini.figures import compared, swap
    from mini.scripts import found_last

    rng, seen = np.random.default_rng(4), set()
    pool = [(f"{one / 1000:.3f}", one) for one in range(100, 1000)]
    for item in items("charts", style, 60):
        kind = item.kind.rpartition(".")[2]
        if kind not in ("most", "least", "above"):
            continue
        seen.add(kind)
        swapped, patches = swap(rng, item, pool)
        assert [read.box for read in compared(swapped)] == [read.box for read in compared(item)]
        assert [f"{one / 1000:.3f}" for one in patches] == [r.text for r in compared(swapped)]
        if kind == "above":
            assert re.findall(r"\d+", swapped.truth) == [str(sum(found_last(swapped)))]
            continue
        best = (max if kind == "most" else min)(swapped.reads, key=lambda read: float(read.text))
        (name,) = swapped.last
        is_lying = "lying" in item.seen
        middle = (name.box[is_lying] + name.box[is_lying + 2]) / 2
        assert best.box[is_lying] < middle < best.box[is_lying + 2], (item.seen, best, name)
    assert seen == {"most", "least", "above"}


def test_figures_to_compare(style: Any) -> None:
    from mini.figures import COUNT, draw
    from mini.item_tasks import ORDER_KINDS

    rng, told = np.random.default_rng(4), {kind: [0, 0] for kind in ORDER_KINDS}
    for item in (*items("tables", style, 100), *items("charts", style, 60)):
        kind = next((kind for kind in ORDER_KINDS if item.kind.endswith(kind)), None)
        if kind is None:
            continue
        figures = draw(rng, item)
        assert len(figures) == COUNT
        so_far: list[float] = []
        for text, is_wanted in figures:
            if kind == ".who":
                assert is_wanted == (text in item.text), (text, item.text)
            elif kind == ".above":
                assert is_wanted == (float(text) > float(item.uses[-1].result))
            else:
                so_far.append(float(text))
                best = max(so_far) if kind == ".most" else min(so_far)
                assert is_wanted == (best == float(text) and so_far.count(best) == 1)
            told[kind][is_wanted] += 1
    assert all(wanted > 20 and not_wanted > 20 for not_wanted, wanted in told.values()), told


def test_bars_are_compared_with_a_limit_that_is_known(style: Any) -> None:
    from mini.scripts import FOUND, found_last, script

    above = [one for one in items("charts", style, 80) if one.kind == "chart.above"]
    assert len(above) > 3
    for item in above:
        assert len(item.reads) == 1 and len(item.uses) == 1
        count = int(item.truth.split()[2])
        assert sum(found_last(item)) == count
        texts = [one.text for one in script(item, None) if one.own]
        called = texts.index(item.uses[0].call)
        assert texts[called:].count(FOUND) == count
        assert [one for one in texts[called:] if one.isdigit()] == [
            str(i + 1) for i in range(count)
        ]


def test_a_search_that_misses_is_admitted(tokenizer: Any) -> None:
    from cogitate.evals.countdown import draw_puzzle
    from mini.tokenizer import ANSWER, CALL
    from mini.traces import Writer, search_trace

    puzzle = draw_puzzle(np.random.default_rng(2), held_out=False)
    for target, ends in ((puzzle.target, CALL), (puzzle.target + 1, ANSWER)):
        writer = Writer(tokenizer, symbolic=False)
        trace = search_trace(writer, puzzle.numbers, target, puzzle.steps, "")
        assert trace.ids[-1] == tokenizer.token_to_id(ends) and trace.own[-1]
        assert any(trace.own[:-1]) == (target == puzzle.target)


def test_a_shade_is_that_of_the_card_in_the_crop(item_tasks: Any) -> None:
    from cogitate.evals.render import COLOUR_NAMES, COLOURS

    shades = item_tasks._shades
    right = 0
    for patch, _, colour in shades:
        pixels = item_tasks.worlds.patches[patch].reshape(-1, 3).astype(float)
        middle = np.median(pixels, axis=0)
        gaps = [np.abs(np.array(shade) - middle).sum() for _, shade in COLOURS]
        right += COLOUR_NAMES[int(np.argmin(gaps))] == colour
    assert len(shades) > 4 and right >= 0.9 * len(shades)


def test_edges_of_boxes_count_less(tokenizer: Any) -> None:
    import torch
    from mini.joint_stage import BOX_WEIGHT, JointStage
    from mini.tokenizer import CALL, RUN
    from mini.traces import Trace, Writer

    stage = JointStage.__new__(JointStage)
    stage.box_tokens = tokenizer.token_to_id("zoom("), tokenizer.token_to_id(RUN)
    trace = Trace()
    said = (CALL, "zoom(1, 2, 3, 4)", RUN, "Ham: ", CALL, "calculator(1+2)", RUN)
    Writer(tokenizer, symbolic=False).put(trace, *said, own=True)
    ids, labels = trace.ids, torch.tensor(trace.ids)
    start, end = (ids.index(token) for token in stage.box_tokens)
    logits = torch.zeros(len(ids), tokenizer.get_vocab_size())
    alike = float(stage._loss(logits, labels))
    weight = len(ids) - (end - start - 1) * (1 - BOX_WEIGHT)
    for place, share in ((start + 1, BOX_WEIGHT), (start, 1.0), (end, 1.0), (len(ids) - 2, 1.0)):
        sure = logits.clone()
        sure[place, labels[place]] = 100.0
        assert float(stage._loss(sure, labels)) == pytest.approx(alike * (1 - share / weight))


def test_a_draft_is_judged_rightly(training_path: None) -> None:
    from cogitate.evals.checks import proves
    from mini.roles import chain, draw_case, judge

    num_right = 0
    for seed in range(150):
        case = draw_case(np.random.default_rng(seed))
        assert not case.puzzle.is_held_out
        keys = [one.ballot.key for one in case.drafts]
        assert len(set(keys)) == len(keys) >= 2
        for draft, (said, holds) in zip(case.drafts, case.judged, strict=True):
            truth = proves(draft.ballot.answer, case.puzzle.numbers, case.puzzle.target)
            assert truth == holds == said.endswith(" It holds."), (draft, said)
            assert holds or re.search(r": (no \d+|not \d+|not \d+ alone)\.$", said), said
        num_right += sum(holds for _, holds in case.judged)
        assert judge(case.puzzle, case.puzzle.steps)[1]
        assert proves(chain(case.puzzle.steps), case.puzzle.numbers, case.puzzle.target)
    assert 60 < num_right < 120


def test_what_is_compared_gets_the_mark_of_its_truth(training_path: None) -> None:
    from mini.roles import COMPARISONS, FAULT, comparisons

    rng = np.random.default_rng(1)
    well = 0
    for _ in range(60):
        pieces = comparisons(rng)
        own = [i for i, piece in enumerate(pieces) if piece.own]
        assert len(own) == COMPARISONS
        for i in own:
            shown, holds = pieces[i - 1].text, pieces[i].text != FAULT
            well += holds
            if told := re.fullmatch(r"(\d+)([+*-])(\d+)=(\d+) is (\d+)", shown):
                left, operator, right, claim, truth = told.groups()
                assert eval(f"{left}{operator}{right}") == int(truth)
                assert holds == (claim == truth)
                continue
            listed, _, rest = shown.removeprefix("left ").partition(",")
            pool, _, asked = listed.partition(": ")
            numbers = pool.split()
            if rest:
                assert holds == (numbers == [rest.removeprefix(" target ")]), shown
            else:
                first, _, second = asked.partition("+")
                if second:
                    numbers.remove(first)
                assert holds == ((second or first) in numbers), shown
    assert 0.4 < well / (60 * COMPARISONS) < 0.6


def test_roles_are_asked_what_the_strategies_ask(tokenizer: Any) -> None:
    from cogitate.agent_decoder.model.templates import Image, MiniTemplate, Text, Turn
    from cogitate.aggregator.core.strategies import strategy
    from mini.model import CROP_TOKENS, WHOLE_TOKENS
    from mini.roles import checker, draw_case, echoed, refiner, summariser
    from mini.tokenizer import IMAGE
    from mini.traces import Writer
    from mini.worlds import trace_of

    template = MiniTemplate(
        tokenizer, {"image_tokens": {"whole": WHOLE_TOKENS, "crop": CROP_TOKENS}}
    )
    writer, image = Writer(tokenizer, symbolic=False), tokenizer.token_to_id(IMAGE)

    def spread(one: int | Image) -> list[int]:
        is_view = isinstance(one, Image)
        return [image] * template.num_image_tokens(one) if is_view else [one]

    for seed in range(20):
        rng = np.random.default_rng(seed)
        case = replace(draw_case(rng), board=3)
        drafts = echoed(rng, case.drafts)
        made = {
            "best_of": (checker(case, rng), case.drafts),
            "synthesis": (summariser(case), case.drafts),
            "refine:2": (refiner(case, drafts), drafts),
        }
        for name, (pieces, shown) in made.items():
            plan = strategy(name).follow(1, shown, 4, len(shown))
            assert plan is not None
            turns = [Turn("user", (Text(case.question), Image("board", is_crop=False)))]
            turns += [Turn(turn.speaker, (Text(turn.text),)) for turn in plan.turns]
            prompts = [template.prompt(turns, instant=False)]
            if name == "best_of":
                prompts = [prompts[0] + template.encode(agent.opening) for agent in plan.agents]
            trace = trace_of(writer, pieces)
            first_own = trace.own.index(True)
            flat = [[t for one in prompt for t in spread(one)] for prompt in prompts]
            assert trace.ids[:first_own] in flat
            assert [view.pool for view in trace.views] == ["board"]
            searches = "calculator(" in "".join(piece.text for piece in pieces)
            assert searches == (name == "refine:2" and not any(ok for _, ok in case.judged))
            assert all(trace.own[first_own:]) != searches  # what tools say is not its own


def test_a_checker_scores_within_its_tokens_and_the_mesh_reads_the_score(tokenizer: Any) -> None:
    from cogitate.aggregator.core.answers import key_of
    from cogitate.aggregator.core.ballots import Ballot
    from cogitate.aggregator.core.strategies.best_of import MAX_TOKENS, score_of
    from mini.roles import checker, draw_case
    from mini.traces import Writer
    from mini.worlds import trace_of

    scores = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        pieces = checker(draw_case(rng), rng)
        assert sum(trace_of(Writer(tokenizer, symbolic=False), pieces).own) <= MAX_TOKENS
        said = pieces[-2].text
        scores.add(score_of(Ballot(0, 1, said, key_of(said, "number"), about="26")))
    assert scores == {0.0, 10.0}
