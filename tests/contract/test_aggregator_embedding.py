"""Equivalence by embedding: a real ONNX model, tiny, behind the aggregator."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cogitate.aggregator.config import AggregatorConfig
from cogitate.aggregator.embedder import Embedder
from cogitate.aggregator.embedding_model import EmbeddingModel
from cogitate.kit.config import ConfigError
from cogitate.kit.errors import CogitateError, DeadlineExceeded, EngineFailure, Rejected
from cogitate.v1 import contemplation_service_pb2 as pb

from tests.contract.test_aggregator import (
    End,
    Script,
    check_grammar,
    kinds,
    mesh,
    rest,
    spec,
    status_of,
    until,
)
from tests.contract.test_takeover import crash, runtime, twins
from tests.fakes.embedding_model import write_embedding_model

pytestmark = pytest.mark.contract

WORDS = {
    "big": (1.0, 0.0, 0.0),
    "large": (0.9, 0.1, 0.0),
    "small": (0.0, 1.0, 0.0),
    "a": (0.0, 0.0, 1.0),  # what a model is tried with when it is loaded
}
# "it is" adds nothing: unknown words are zero.
ANSWERS = ("It is big.", "small", "Large")


def answers(*said: str) -> Script:
    return lambda agent: (f"w{agent.agent_id} ", End(said[agent.agent_id % len(said)]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_embedding_model(tmp_path / "model", WORDS)


def model(folder: Path, max_tokens: int = 16) -> EmbeddingModel:
    return EmbeddingModel(folder, max_tokens)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


# -- the model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("has_types", [False, True])
def test_vectors_of_both_kinds_of_exports(tmp_path: Path, pooled: bool, has_types: bool) -> None:
    folder = write_embedding_model(tmp_path, WORDS, pooled=pooled, has_types=has_types)
    embed = model(folder).embed
    assert math.isclose(cosine(embed("big"), embed("big")), 1.0, rel_tol=1e-6)
    assert cosine(embed("big"), embed("It is large")) == pytest.approx(0.9 / math.hypot(0.9, 0.1))
    both = embed("big small")
    assert both == pytest.approx((math.sqrt(0.5), math.sqrt(0.5), 0.0))


def test_what_is_longer_is_cut(folder: Path) -> None:
    embed = model(folder, max_tokens=2).embed
    assert embed("big big " + "small " * 1000) == embed("big")


def test_a_text_without_a_vector_is_a_failure(folder: Path) -> None:
    embed = model(folder).embed
    with pytest.raises(EngineFailure, match="zero"):
        embed("unknown")
    with pytest.raises(EngineFailure):
        embed("")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "model.onnx").unlink(), "no model.onnx"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json"),
        (lambda f: (f / "model.onnx").write_bytes(b"no model"), "cannot be loaded"),
        (lambda f: write_embedding_model(f, {"b": (1.0,)}), "cannot embed"),
        (lambda f: write_embedding_model(f, WORDS, input_name="pixels"), "an input 'pixels'"),
        (lambda f: write_embedding_model(f, WORDS, positions=8), "cannot embed a text of 16"),
    ],
)
def test_a_directory_that_is_none_ends_the_service_at_start(
    tmp_path: Path, damage: Any, said: str
) -> None:
    folder = write_embedding_model(tmp_path, {"a": (1.0, 0.0)})
    damage(folder)
    config = AggregatorConfig(embedding_model=str(folder), embedding_max_token_count=16)
    with pytest.raises(ConfigError, match=said):
        Embedder.of(config)


# -- the thread ----------------------------------------------------------------------------------


async def test_the_thread_is_bounded_in_time_and_number_and_by_characters() -> None:
    held, texts = threading.Event(), []

    def slow(text: str) -> tuple[float, ...]:
        texts.append(text)
        held.wait(5)
        return (1.0,)

    embedder = Embedder(slow, timeout_s=0.05, max_waiting=2, max_characters=3)
    try:
        asked = [asyncio.create_task(embedder.embed("abcdef")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Rejected, match="2 answers wait"):
            await embedder.embed("c")
        for task in asked:
            with pytest.raises(DeadlineExceeded, match=r"longer than 0\.05 s"):
                await task
        held.set()
        async with asyncio.timeout(5):
            while embedder._num_waiting:
                await asyncio.sleep(0.005)
        assert await embedder.embed("d") == (1.0,)
        assert texts == ["abc", "d"]  # what nobody waited for any more was not begun
    finally:
        held.set()
        embedder.close()


async def test_a_model_that_raises_says_nothing_of_the_text() -> None:
    def broken(text: str) -> tuple[float, ...]:
        raise ValueError(f"cannot embed {text}")

    embedder = Embedder(broken, timeout_s=1, max_waiting=1, max_characters=100)
    with pytest.raises(CogitateError) as caught:
        await embedder.embed("a secret")
    assert "secret" not in str(caught.value) and caught.value.__suppress_context__
    embedder.close()


# -- the service ---------------------------------------------------------------------------------


async def test_answers_of_the_same_meaning_are_one_answer(folder: Path) -> None:
    async with mesh(answers(*ANSWERS), embedding_model=str(folder)) as m:
        verdict = check_grammar(await m.ask(equivalence="embedding:0.95")).verdict
        assert verdict.answer in ("It is big.", "Large") and not verdict.degraded
        keys = {ballot.answer: ballot.key for ballot in verdict.certificate.ballots}
        assert keys["It is big."] == keys["Large"] == verdict.key != keys["small"] == "small"
        stricter = check_grammar(await m.ask(equivalence="embedding:0.999")).verdict
        assert len({ballot.key for ballot in stricter.certificate.ballots}) == 3


async def test_without_a_model_it_is_refused_by_name() -> None:
    async with mesh(answers(*ANSWERS)) as m:
        for name in ("embedding", "embedding:0.9"):
            code, said = await status_of(m.ask(equivalence=name))
            assert code.name == "INVALID_ARGUMENT"
            assert "embedding_model" in said and "spec.equivalence" not in said


async def test_a_number_that_is_none_is_refused(folder: Path) -> None:
    async with mesh(answers(*ANSWERS), embedding_model=str(folder)) as m:
        code, said = await status_of(m.ask(equivalence="embedding:1.5"))
        assert code.name == "INVALID_ARGUMENT" and "from 0 to 1" in said


async def test_what_the_model_cannot_embed_is_compared_by_its_text(folder: Path) -> None:
    async with mesh(answers("alpha", "Alpha!", "big"), embedding_model=str(folder)) as m:
        events = await m.ask(equivalence="embedding")
        verdict = check_grammar(events).verdict
        assert verdict.key == "alpha"
        [told] = [e.feature_degraded for e in events if e.HasField("feature_degraded")]
        assert told.feature == "EQUIVALENCE_EMBEDDING" and "zero" in told.message


async def test_the_deadline_does_not_wait_for_the_model(folder: Path) -> None:
    async with mesh(answers("big", "big", "small"), **knobs(folder, max_duration_s=0.5)) as m:
        with held(m.runtime):
            events = await m.ask(equivalence="embedding")
    verdict = check_grammar(events).verdict
    assert (verdict.key, list(verdict.degraded_reasons)) == ("big", ["DEADLINE"])
    assert kinds(events).count("feature_degraded") == 1


async def test_a_model_that_takes_too_long_leaves_the_text(folder: Path) -> None:
    quick = knobs(folder, embedding_timeout_s=0.05)
    async with mesh(answers("big", "big", "small"), **quick) as m:
        with held(m.runtime):
            events = await m.ask(equivalence="embedding")
    verdict = check_grammar(events).verdict
    assert (verdict.key, verdict.degraded) == ("big", False)
    [told] = [e.feature_degraded for e in events if e.HasField("feature_degraded")]
    assert "longer than 0.05 s" in told.message


async def test_decided_while_the_model_has_answers(folder: Path) -> None:
    script = answers("big", "small", "small")
    async with mesh(script, **knobs(folder)) as m:
        with held(m.runtime) as asked:
            call = asyncio.create_task(m.ask(equivalence="embedding", quorum="first:1"))
            await until(lambda: len(m.runtime._runners) and waiting(m.runtime) == 3)
            asked.set()
            events = await call
    verdict = check_grammar(events).verdict
    assert len(verdict.certificate.ballots) == 1
    assert [k.reason for k in verdict.certificate.killed_agents] == ["DECIDED"] * 2


async def test_a_new_owner_asks_its_own_model_and_journalled_vectors_stay(
    folder: Path, tmp_path: Path
) -> None:
    """The first owner dies while two of three answers wait; the heir knows the third."""
    journal = tmp_path / "journal.db"
    question = spec(equivalence="embedding:0.95")
    async with twins(journal, answers(*ANSWERS), embedding_model=str(folder)) as m:
        with contextlib.ExitStack() as stack:
            models = [stack.enter_context(held(runtime(a), after=1)) for a in m.aggregators]
            call = m.gateway.Contemplate(pb.ContemplateRequest(spec=question), timeout=20)
            events = [(await call.read()).event]
            owner = m.owner_of(events[0].accepted.contemplation_id)
            while "ballot_cast" not in kinds(events):
                events.append((await call.read()).event)
            await until(lambda: waiting(runtime(owner)) == 2)
            heir = m.other(owner)
            heirs_texts = models[m.aggregators.index(heir)]
            await crash(owner)
            heirs_texts.set()
            events += await rest(call)
    verdict = check_grammar(events).verdict
    assert kinds(events).count("ballot_cast") == 3 and "feature_degraded" not in kinds(events)
    keys = {ballot.answer: ballot.key for ballot in verdict.certificate.ballots}
    assert keys["It is big."] == keys["Large"] == verdict.key


async def test_an_heir_without_a_model_compares_by_text(folder: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal.db"
    question = spec(equivalence="embedding:0.95")
    async with twins(journal, answers("big", "BIG", "small"), embedding_model=str(folder)) as m:
        with contextlib.ExitStack() as stack:
            for each in m.aggregators:
                stack.enter_context(held(runtime(each)))
            call = m.gateway.Contemplate(pb.ContemplateRequest(spec=question), timeout=20)
            events = [(await call.read()).event]
            owner = m.owner_of(events[0].accepted.contemplation_id)
            await until(lambda: waiting(runtime(owner)) == 3)
            runtime(m.other(owner))._neighbours.embedder._model = None
            await crash(owner)
            events += await rest(call)
    assert check_grammar(events).verdict.key == "big"
    [told] = [e.feature_degraded for e in events if e.HasField("feature_degraded")]
    assert "no embedding_model" in told.message


def knobs(folder: Path, **more: Any) -> dict[str, Any]:
    return {"embedding_model": str(folder), **more}


def waiting(runtime: Any) -> int:
    """Ballots that wait for a vector in the one contemplation that runs."""
    [runner] = runtime._runners.values()
    return len(runner.machine.likeness.waiting)


@contextlib.contextmanager
def held(runtime: Any, after: int = 0) -> Iterator[threading.Event]:
    """The model answers so many times, and then not before the event is set, or the end."""
    embedder, free, asked = runtime._neighbours.embedder, threading.Event(), itertools.count()
    model = embedder._model

    def slow(text: str) -> Any:
        if next(asked) >= after:
            free.wait(10)
        return model(text)

    embedder._model = slow
    try:
        yield free
    finally:
        free.set()
