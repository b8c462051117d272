"""Answers that follow a grammar: every one, whoever else runs, wherever they are resumed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cogitate.agent_decoder.core import events as ev
from cogitate.agent_decoder.core.constraint import Constraint
from cogitate.agent_decoder.core.load import EngineLimits
from cogitate.agent_decoder.core.sampling import SamplingParams
from cogitate.agent_decoder.core.sequence import Position
from cogitate.agent_decoder.core.starts import AgentStart, GangStart, SampledTokens
from cogitate.agent_decoder.engine import Engine
from cogitate.agent_decoder.grammar_trial import compile_grammar, make_tokenizer
from cogitate.agent_decoder.grammars import Grammars, TokenGrammar, read_tokenizer
from cogitate.agent_decoder.model import loader
from cogitate.agent_decoder.model.backend import Wanted
from cogitate.agent_decoder.model.loader import LoadedModel
from cogitate.agent_decoder.model.native.runner import NativeRunner
from cogitate.kit.errors import InvalidRequest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.tiny_model import CONTROL, write_tiny_model

pytestmark = pytest.mark.property

ID = {name: i for i, name in enumerate(CONTROL)}
PREFIX = tuple(Position(i) for i in (1, 3, *range(30, 47), 2, 4))
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "ü", None]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
REGEX = r"[a-f]{2,5}(-[0-9]{1,3})?"


class Bench:
    """An engine on a tiny model, played one gang at a time, and grammars for it."""

    def __init__(self, directory: Path, step: str) -> None:
        wanted = Wanted(device="cpu", dtype="float32", step=step)
        self.model: LoadedModel = loader.load("tiny", directory, wanted)
        self.end_ids = sorted(self.model.template.control.end)
        self.tokenizer = make_tokenizer(
            read_tokenizer(directory), self.model.config.vocab_size, self.end_ids
        )
        limits = EngineLimits(256, 16, 16, 4, 32)
        self.said: dict[int, list[ev.Event]] = {}
        self.ended = asyncio.Event()
        self.engine = Engine(self.model, limits, self._on_events)
        self._gangs = 0

    def _on_events(self, key: int, events: list[ev.Event]) -> None:
        self.said[key] += events

    def grammar(self, kind: str, text: str) -> TokenGrammar:
        compiled = compile_grammar(self.tokenizer, kind, text)
        return TokenGrammar(compiled, self.model.config.vocab_size)

    def play(self, *agents: AgentStart, instant: bool = True) -> dict[int, ev.Finished]:
        """Runs a gang on this thread, to its end."""
        self._gangs += 1
        self.said[self._gangs] = []
        self.engine.open(self._gangs, GangStart(PREFIX, agents, instant=instant))
        self.engine.close(self._gangs)
        commands, self.engine._commands = self.engine._commands, []
        with torch.inference_mode():
            for command in commands:
                command(self.engine)
            self.engine._turn()
            while self.engine._busy:
                self.engine._turn()
        self.engine.pool.check_integrity()
        assert self.engine.pool.num_free == self.engine.pool.num_blocks
        said = self.said[self._gangs]
        return {e.agent_id: e for e in said if isinstance(e, ev.Finished)}

    def tokens(self, agent_id: int) -> list[int]:
        return [
            e.token_id for e in self.said[self._gangs]
            if isinstance(e, ev.Delta) and e.agent_id == agent_id
        ]  # fmt: skip


@pytest.fixture(scope="module", params=["torch", "native"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.set_num_threads(1)
    return Bench(write_tiny_model(tmp_path_factory.mktemp("models")), request.param)


def start(agent_id: int, grammar: TokenGrammar | None, **fields: Any) -> AgentStart:
    params = {"temperature": 1.0, "max_tokens": 200, **fields.pop("params", {})}
    made = {"attempt": 1, "seed": 3, "params": SamplingParams(**params), **fields}
    return AgentStart(agent_id, grammar=grammar, **made)


def check(answer: str) -> None:
    value = json.loads(answer)
    assert set(value) == {"name", "age", "tags"}
    assert len(value["name"]) <= 6
    assert 0 <= value["age"] <= 99
    assert len(value["tags"]) <= 2 and set(value["tags"]) <= {"a", "ü", None}


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**40), top_p=st.sampled_from([1.0, 0.5]), min_tokens=st.integers(0, 99))
def test_every_answer_follows_its_grammar_and_disturbs_nobody(
    bench: Bench, seed: int, top_p: float, min_tokens: int
) -> None:
    schema, regex = bench.grammar("json_schema", json.dumps(SCHEMA)), bench.grammar("regex", REGEX)
    agents = [
        start(0, schema, seed=seed, params={"top_p": top_p, "min_tokens": min_tokens}),
        start(1, regex, seed=seed, params={"logit_bias": ((ID["end"], 50.0),)}),
        start(2, None, seed=seed, params={"max_tokens": 9}),
        start(3, schema, seed=seed),
    ]
    ended = bench.play(*agents)
    together = {i: bench.tokens(i) for i in range(4)}
    check(ended[0].answer)
    check(ended[3].answer)
    assert re.fullmatch(REGEX, ended[1].answer)
    assert {ended[i].finish for i in (0, 1, 3)} == {ev.Finish.STOP}
    for agent in agents:
        bench.play(agent)
        assert bench.tokens(agent.agent_id) == together[agent.agent_id]


def test_resumed_at_every_token_it_goes_on_with_the_same_tokens(bench: Bench) -> None:
    schema = bench.grammar("json_schema", json.dumps(SCHEMA))
    whole_end = bench.play(start(0, schema))[0]
    whole = bench.tokens(0)
    assert len(whole) > 20
    every = 1 if isinstance(bench.model.runner, NativeRunner) else 6  # torch is slow
    for k in range(0, len(whole) + 1, every):
        ended = bench.play(start(0, schema, attempt=2, replay=(SampledTokens(tuple(whole[:k])),)))
        assert bench.tokens(0) == whole[k:], k
        assert (ended[0].answer, ended[0].finish) == (whole_end.answer, whole_end.finish)


def test_only_the_answer_is_constrained_and_there_is_one(bench: Bench) -> None:
    regex = bench.grammar("regex", "(yes|no)")
    eager = ((ID["end"], 60.0), (ID["answer"], 3.0), (ID["call"], -60.0))
    ended = bench.play(start(0, regex, params={"logit_bias": eager}), instant=False)
    tokens = bench.tokens(0)
    assert ended[0].answer in ("yes", "no")
    assert tokens.index(ID["answer"]) == len(tokens) - 1 - len(ended[0].answer)


def test_the_end_of_an_open_grammar_is_the_agents_own_choice(bench: Bench) -> None:
    some = bench.grammar("regex", "a*")
    eager = {"logit_bias": ((ID["end"], 90.0),), "min_tokens": 4}
    ended = bench.play(start(0, some, params=eager))
    assert bench.tokens(0) == [*bench.model.template.encode("aaaa"), ID["end"]]
    assert ended[0].answer == "aaaa"


def test_replayed_tokens_that_break_the_grammar_end_the_agent(bench: Bench) -> None:
    regex = bench.grammar("regex", "ab")
    broken = start(0, regex, replay=(SampledTokens(tuple(bench.model.template.encode("b"))),))
    ended = bench.play(broken, start(1, regex))
    assert (ended[0].finish, ended[0].kill_reason) == (ev.Finish.ERROR, "CONSTRAINT")
    assert ended[1].answer == "ab"


def test_a_matcher_that_breaks_while_it_runs_ends_its_agent_only(bench: Bench) -> None:
    class Breaking:
        complete = broken = False

        def matcher(self) -> Breaking:
            return Breaking()

        def allowed(self) -> None:
            self.broken = True

        def accept(self, token_id: int) -> None:
            raise AssertionError(token_id)

    made: Any = Breaking()
    ended = bench.play(start(0, made), start(1, bench.grammar("regex", "ab")))
    assert (ended[0].kill_reason, ended[0].num_sampled) == ("CONSTRAINT", 0)
    assert ended[1].answer == "ab"


# -- compiling ------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    yield write_tiny_model(tmp_path)


async def test_grammars_are_tried_kept_and_forgotten(tiny: Path) -> None:
    reads: list[int] = []

    def read() -> str:
        reads.append(1)
        return read_tokenizer(tiny)

    grammars = Grammars(read, 277, [2], capacity=2)
    try:
        a, b = Constraint("regex", "a"), Constraint("json_schema", "true")
        first, again = await asyncio.gather(grammars.compile("t", a), grammars.compile("t", a))
        assert first is again
        assert await grammars.compile("u", a) is not first, "a tenant sees another's cache"
        await grammars.compile("t", a)
        await grammars.compile("t", b)
        assert len(grammars._cache) == 2
        assert await grammars.compile("t", a) is first
        assert len(reads) == 1
        for wrong in (Constraint("regex", "("), Constraint("json_schema", '{"type":"x"}')):
            with pytest.raises(InvalidRequest, match=f"the {wrong.kind} cannot be followed"):
                await grammars.compile("t", wrong)
    finally:
        await grammars.close()


async def test_a_grammar_that_takes_for_ever_is_refused_and_the_next_one_compiled(
    tiny: Path,
) -> None:
    patterns = [{"type": "string", "pattern": f".*a{i}.*"} for i in range(200)]
    endless = Constraint("json_schema", json.dumps({"allOf": patterns}))
    huge = Constraint("regex", "x(a{1000}){1000}")
    grammars = Grammars(lambda: read_tokenizer(tiny), 277, [2], capacity=2)
    try:
        for wrong in (endless, huge):
            with pytest.raises(InvalidRequest, match="cannot be followed"):
                await grammars.compile("t", wrong)
        waits = asyncio.create_task(grammars.compile("t", endless))
        await asyncio.sleep(0.3)
        waits.cancel()
        await asyncio.wait((waits,))
        assert await grammars.compile("t", Constraint("regex", "a"))
    finally:
        await grammars.close()
