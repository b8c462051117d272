"""The native step against torch; both against themselves: bit-equal in any company."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from cogitate.agent_decoder.core.sampling import Row, SamplingParams, keep_mask, sample
from cogitate.agent_decoder.core.scheduler import Chunk
from cogitate.agent_decoder.core.sequence import Position, Sequence
from cogitate.agent_decoder.model import invariance
from cogitate.agent_decoder.model.llama import Llama, LlamaConfig
from cogitate.agent_decoder.model.native import library
from cogitate.agent_decoder.model.native.runner import BLOCK_SIZE, NativeRunner, misfit
from cogitate.agent_decoder.model.runner import ModelRunner, TorchRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.property

NUM_BLOCKS = 96
SHAPE = LlamaConfig(64, 96, 2, 6, 2, 32, 130, 1e-5, 10000.0, 512, True)
SHAPES = {
    "grouped heads": SHAPE,
    "a head of its own": replace(SHAPE, tie_word_embeddings=False),
    "biases": replace(SHAPE, attention_bias=True),
    "normed heads": replace(SHAPE, qk_norm=True, head_dim=48),
    "one key for all": replace(SHAPE, num_heads=16, num_kv_heads=1, head_dim=16),
    "a key for each": replace(SHAPE, num_heads=3, num_kv_heads=3),
}
Weights = dict[str, torch.Tensor]


def weights_of(c: LlamaConfig, dtype: torch.dtype = torch.float32) -> Weights:
    generator = torch.Generator().manual_seed(c.num_heads)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).to(dtype)

    made = {"model.embed_tokens.weight": random(c.vocab_size, c.hidden_size) * 4}
    made["model.norm.weight"] = 1 + random(c.hidden_size)
    if not c.tie_word_embeddings:
        made["lm_head.weight"] = random(c.vocab_size, c.hidden_size)
    query, key = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    for i in range(c.num_layers):
        p = f"model.layers.{i}"
        made |= {
            f"{p}.input_layernorm.weight": 1 + random(c.hidden_size),
            f"{p}.post_attention_layernorm.weight": 1 + random(c.hidden_size),
            f"{p}.self_attn.q_proj.weight": random(query, c.hidden_size),
            f"{p}.self_attn.k_proj.weight": random(key, c.hidden_size),
            f"{p}.self_attn.v_proj.weight": random(key, c.hidden_size),
            f"{p}.self_attn.o_proj.weight": random(c.hidden_size, query),
            f"{p}.mlp.gate_proj.weight": random(c.intermediate_size, c.hidden_size),
            f"{p}.mlp.up_proj.weight": random(c.intermediate_size, c.hidden_size),
            f"{p}.mlp.down_proj.weight": random(c.hidden_size, c.intermediate_size),
        }
        if c.attention_bias:
            made |= {f"{p}.self_attn.{n}_proj.bias": random(s) for n, s in
                     (("q", query), ("k", key), ("v", key))}  # fmt: skip
        if c.qk_norm:
            made |= {f"{p}.self_attn.{n}_norm.weight": 1 + random(c.head_dim) for n in "qk"}
    return made


def native(
    c: LlamaConfig, dtype: str = "float32", threads: int = 2, kept: torch.dtype = torch.float32
) -> NativeRunner:
    made = NativeRunner(c, weights_of(c, kept), dtype=dtype, threads=threads)
    made.allocate(NUM_BLOCKS, BLOCK_SIZE)
    return made


def reference(c: LlamaConfig) -> TorchRunner:
    llama = Llama(c, weights_of(c), dtype=torch.float32, device=torch.device("cpu"))
    made = TorchRunner(llama)
    made.allocate(NUM_BLOCKS, BLOCK_SIZE)
    return made


def tiled(c: LlamaConfig, dtype: torch.dtype = torch.float32) -> TorchRunner:
    """Torch in fixed shapes."""
    torch.set_num_threads(1)  # products this small are not worth two
    llama = Llama(c, weights_of(c), dtype=dtype, device=torch.device("cpu"))
    tiles, obstacle = invariance.find_tiles(llama)
    assert tiles is not None, obstacle
    made = TorchRunner(llama, tiles=tiles)
    made.allocate(NUM_BLOCKS, BLOCK_SIZE)
    return made


def sequence(tokens: list[int], blocks: list[int], num_computed: int = 0) -> Sequence:
    made = Sequence(pending=deque(Position(t) for t in tokens))
    made.block_table, made.num_computed = blocks, num_computed
    return made


def compute(runner: ModelRunner, *sequences: Sequence, chunk: int = 10**6) -> list[torch.Tensor]:
    """Runs each sequence to its end, `chunk` positions of each a step; its last logits."""
    last: dict[int, torch.Tensor] = {}
    while any(s.pending for s in sequences):
        ready = [s for s in sequences if s.pending]
        chunks = [Chunk(s, min(chunk, len(s.pending))) for s in ready]
        rows = runner.forward(chunks).clone()
        for one, row in zip(chunks, rows, strict=True):
            for _ in range(one.length):
                one.sequence.pending.popleft()
            one.sequence.num_computed += one.length
            last[id(one.sequence)] = row
    return [last[id(s)] for s in sequences]


def tokens(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SHAPE.vocab_size, (count,), generator=generator).tolist()


@pytest.fixture(scope="module")
def runner() -> NativeRunner:
    return native(SHAPE)


@pytest.fixture(scope="module", params=["native", "torch", "torch bfloat16"])
def invariant(request: pytest.FixtureRequest) -> ModelRunner:
    """Each runner whose rows are their own."""
    made: ModelRunner
    if request.param == "native":
        made = native(SHAPE)
    else:
        made = tiled(SHAPE, torch.bfloat16 if "bfloat16" in request.param else torch.float32)
    assert made.batch_invariant
    return made


def built(name: str, flags: tuple[str, ...]) -> Iterator[None]:
    """The step as it is built with other flags than this machine's."""

    def forget() -> None:
        library.load.cache_clear()
        library.digest.cache_clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(library.CAPABILITIES, name, flags)
        patch.setattr(library, "capability", lambda: name)
        forget()
        yield
    forget()


@pytest.fixture(scope="module")
def dots() -> Iterator[None]:
    """The step as machines run it that have dot products of pairs and quads.

    Where this machine has none, other instructions take their place; all around them is the same.
    """
    flags = (*library.CAPABILITIES[library.capability()], "-DCOGITATE_SLOW_DOTS")
    yield from built("SLOW_DOTS", flags)


def lesser() -> list[str]:
    """Instruction sets of older machines than this one, which it runs, too."""
    names = list(library.CAPABILITIES)
    return names[names.index(library.capability()) + 1 :]


@pytest.fixture(scope="module", params=lesser())
def older(request: pytest.FixtureRequest) -> Iterator[None]:
    """The step as older machines run it."""
    yield from built(request.param, library.CAPABILITIES[request.param])


# -- against torch --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 65, 200])
def test_it_agrees_with_torch(shape: str, length: int) -> None:
    c, blocks = SHAPES[shape], list(range(13, 13 + length // BLOCK_SIZE + 1))
    (fast,) = compute(native(c), sequence(tokens(length), blocks))
    (slow,) = compute(reference(c), sequence(tokens(length), blocks))
    torch.testing.assert_close(fast, slow, atol=2e-4, rtol=0)


def test_embeddings_take_the_place_of_tokens(runner: NativeRunner) -> None:
    rows = np.random.default_rng(0).standard_normal((5, SHAPE.hidden_size)).astype(np.float32)

    def pictured() -> Sequence:
        made = sequence(tokens(20), [1, 2])
        for i, row in enumerate(rows):
            made.pending[3 + i] = Position(0, row)
        return made

    (fast,), (slow,) = compute(runner, pictured()), compute(reference(SHAPE), pictured())
    torch.testing.assert_close(fast, slow, atol=2e-4, rtol=0)
    (other,) = compute(runner, sequence(tokens(20), [1, 2]))
    assert not torch.equal(fast, other)


def test_weights_in_bfloat16_lose_nothing_in_float32() -> None:
    """The shipped weights are bfloat16: half the memory, the same numbers."""
    half = weights_of(SHAPE, torch.bfloat16)
    whole = {name: w.float() for name, w in half.items()}
    made = [NativeRunner(SHAPE, w, dtype="float32", threads=1) for w in (half, whole)]
    for one in made:
        one.allocate(NUM_BLOCKS, BLOCK_SIZE)
    first, second = (compute(one, sequence(tokens(40), [1, 2, 3]))[0] for one in made)
    assert torch.equal(first, second)


@pytest.mark.usefixtures("dots")
@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.06), ("int8", 0.05)])
@pytest.mark.parametrize("shape", SHAPES)
def test_dot_products_stay_near(shape: str, dtype: str, bound: float) -> None:
    """Rows are rounded, too; what they give does not depend on the others or on chunks."""
    stays_near(SHAPES[shape], dtype, bound)


@pytest.mark.usefixtures("older")
@pytest.mark.parametrize(
    ("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 0.06), ("int8", 0.05)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_older_machines_stay_near(shape: str, dtype: str, bound: float) -> None:
    """The same of registers of eight and of four lanes."""
    stays_near(SHAPES[shape], dtype, bound)


@pytest.mark.usefixtures("older")
def test_older_machines_draw_likewise() -> None:
    """Folds and sums over fewer lanes find the same likeliest tokens and draws."""
    logits = torch.randn(24, SHAPE.vocab_size, generator=torch.Generator().manual_seed(3)) * 4
    rows = [
        Row(SamplingParams(temperature=0.8, top_k=k, top_p=p, logprobs=5), (), (i + 0.5) / 24)
        for i, (k, p) in enumerate([(0, 1.0), (7, 1.0), (0, 0.7)] * 8)
    ]
    first, second = native(SHAPE).sample(logits, rows), sample(logits, rows)
    assert first.token_ids == second.token_ids
    torch.testing.assert_close(first.logprobs, second.logprobs, atol=1e-5, rtol=0)
    assert [ids for ids, _ in first.top] == [ids for ids, _ in second.top]


def stays_near(c: LlamaConfig, dtype: str, bound: float) -> None:
    text = tokens(90)
    fast = native(c, dtype)
    (whole,) = compute(fast, sequence(text, list(range(6))))
    (exact,) = compute(reference(c), sequence(text, list(range(6))))
    assert (whole - exact).abs().max() < bound * exact.abs().max()
    assert not torch.equal(whole, exact)
    for chunk in (1, 7, 32):
        beside = [sequence(tokens(n, n), list(range(10 + 8 * n, 18 + 8 * n))) for n in range(1, 6)]
        (again, *_) = compute(fast, sequence(text, list(range(6))), *beside, chunk=chunk)
        assert torch.equal(again, whole)


@pytest.mark.usefixtures("dots")
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_dot_products_keep_a_nan_with_its_sequence(dtype: str) -> None:
    fast, broken = native(SHAPE, dtype), sequence(tokens(20), [1, 2])
    broken.pending[5] = Position(0, np.full(SHAPE.hidden_size, np.nan, np.float32))
    alone = compute(fast, sequence(tokens(20), [3, 4]))
    (spoilt, sound) = compute(fast, broken, sequence(tokens(20), [3, 4]))
    assert spoilt.isnan().any()
    assert torch.equal(sound, alone[0])


@pytest.mark.usefixtures("dots")
def test_float32_is_exact_where_weights_are_bfloat16_and_there_are_dot_products() -> None:
    (fast,) = compute(native(SHAPE, kept=torch.bfloat16), sequence(tokens(90), list(range(6))))
    (plain,) = compute(native(SHAPE), sequence(tokens(90), list(range(6))))
    slow = TorchRunner(
        Llama(
            SHAPE,
            {name: w.float() for name, w in weights_of(SHAPE, torch.bfloat16).items()},
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
    )
    slow.allocate(NUM_BLOCKS, BLOCK_SIZE)
    (exact,) = compute(slow, sequence(tokens(90), list(range(6))))
    torch.testing.assert_close(fast, exact, atol=2e-4, rtol=0)
    assert not torch.equal(fast, plain)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.05), ("int8", 0.05)])
def test_smaller_weights_stay_near(dtype: str, bound: float) -> None:
    (small,) = compute(native(SHAPE, dtype), sequence(tokens(70), list(range(5))))
    (exact,) = compute(native(SHAPE), sequence(tokens(70), list(range(5))))
    assert (small - exact).abs().max() < bound * exact.abs().max()


# -- invariants 3 and 4: a row's numbers are its own ----------------------------------------------


@settings(max_examples=40, deadline=None)
@given(chunk=st.integers(1, 90), length=st.integers(1, 150))
def test_chunks_do_not_matter(invariant: ModelRunner, chunk: int, length: int) -> None:
    (whole,) = compute(invariant, sequence(tokens(length), list(range(10))))
    (cut,) = compute(invariant, sequence(tokens(length), list(range(20, 30))), chunk=chunk)
    assert torch.equal(whole, cut)


SIBLINGS = st.lists(st.integers(1, 30), min_size=1, max_size=20)


def siblings_do_not_matter(runner: ModelRunner, prefix: int, own: list[int]) -> None:
    """Invariant 4: among any others an agent computes what it computes alone."""
    root = sequence(tokens(prefix), list(range(9)))
    compute(runner, root)
    full = prefix // BLOCK_SIZE
    agents = []
    for i, length in enumerate(own):
        blocks = list(range(9 + 3 * i, 12 + 3 * i))
        if prefix % BLOCK_SIZE:
            runner.copy_blocks([(full, blocks[0])])
        agents.append(sequence(tokens(length, i + 1), list(range(full)) + blocks, prefix))
    together = compute(runner, *agents)
    for i, length in enumerate(own):
        alone = sequence(tokens(prefix) + tokens(length, i + 1), list(range(80, 96)))
        assert torch.equal(together[i], compute(runner, alone)[0])


@settings(max_examples=40, deadline=None)
@given(prefix=st.integers(1, 140), own=SIBLINGS, threads=st.sampled_from([1, 2, 3]))
def test_siblings_on_a_shared_prefix_do_not_matter(
    prefix: int, own: list[int], threads: int
) -> None:
    siblings_do_not_matter(native(SHAPE, threads=threads), prefix, own)


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=3, deadline=None)
@given(prefix=st.integers(1, 140), own=st.lists(st.integers(1, 30), min_size=1, max_size=7))
def test_siblings_do_not_matter_by_torch(shape: str, prefix: int, own: list[int]) -> None:
    siblings_do_not_matter(tiled(SHAPES[shape]), prefix, own)


def test_a_long_neighbour_in_the_same_step_does_not_matter(invariant: ModelRunner) -> None:
    (alone,) = compute(invariant, sequence(tokens(33), [1, 2, 3]))
    both = compute(
        invariant, sequence(tokens(180, 5), list(range(20, 32))), sequence(tokens(33), [4, 5, 6])
    )
    assert torch.equal(both[1], alone)


def test_a_nan_stays_with_its_sequence(invariant: ModelRunner) -> None:
    (clean,) = compute(invariant, sequence(tokens(20), [1, 2]))
    broken = sequence(tokens(20), [3, 4])
    broken.pending[2] = Position(0, np.full(SHAPE.hidden_size, np.nan, dtype=np.float32))
    beside = compute(invariant, broken, sequence(tokens(20), [5, 6]))
    assert beside[0].isnan().all() and torch.equal(beside[1], clean)
    # Whoever is given the poisoned blocks next sees nothing of it.
    assert torch.equal(compute(invariant, sequence(tokens(20), [3, 4]))[0], clean)


# -- sampling -------------------------------------------------------------------------------------


def on_edge(probs: torch.Tensor, params: SamplingParams) -> bool:
    """Whether a token is in or out of the tail by less than float precision."""
    ordered = probs.sort(descending=True).values
    before = ordered.cumsum(0) - ordered
    by_mass = (before - params.top_p).abs().min() < 1e-6
    return bool(by_mass or (probs / probs.max() - params.min_p).abs().min() < 1e-6)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    draw=st.floats(0, 1, exclude_max=True),
    scale=st.sampled_from([0.1, 3.0, 40.0]),
    top_k=st.sampled_from([0, 1, 5, 129, 130, 999]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.3, 1e-6]),
    min_p=st.sampled_from([0.0, 1e-4, 0.2, 1.0]),
    ties=st.booleans(),
)
def test_draws_and_reports_agree_with_the_reference(
    runner: NativeRunner,
    seed: int,
    temperature: float,
    draw: float,
    scale: float,
    top_k: int,
    top_p: float,
    min_p: float,
    ties: bool,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, SHAPE.vocab_size, generator=generator) * scale
    if ties:
        logits = (logits / scale * 2).round() * scale
    params = SamplingParams(temperature=temperature, logprobs=4)
    cut = replace(params, top_k=top_k, top_p=top_p, min_p=min_p)
    rows = [Row(params, [], draw), Row(cut, [], draw), Row(params, [], 0.0)]
    fast, slow = runner.sample(logits, rows), sample(logits, rows)
    probs = torch.softmax(logits.double() / (temperature or 1.0), -1)
    for i in range(3):
        if fast.token_ids[i] != slow.token_ids[i]:
            # Only where the draw lands on the boundary of two tokens, or the tail on one, to float
            # precision.
            kept = probs[i] * keep_mask(probs[i], rows[i].params)
            below = kept.cumsum(0) / kept.sum()
            low, high = sorted((fast.token_ids[i], slow.token_ids[i]))
            assert abs(float(below[low]) - rows[i].draw) < 1e-5 or on_edge(probs[i], cut)
            assert float(kept[low + 1 : high].sum()) < 1e-5 or on_edge(probs[i], cut)
            continue
        assert fast.logprobs[i] == pytest.approx(slow.logprobs[i], abs=1e-4)
        assert fast.confidences[i] == pytest.approx(slow.confidences[i], abs=1e-3)
        assert fast.top[i][1] == pytest.approx(slow.top[i][1], abs=1e-4)
        assert ties or fast.top[i][0] == slow.top[i][0]


def test_rows_are_sampled_alone(runner: NativeRunner) -> None:
    logits = torch.randn(9, SHAPE.vocab_size, generator=torch.Generator().manual_seed(1))
    rows = [Row(SamplingParams(temperature=0.2 * i), [], 0.1 * i) for i in range(9)]
    together = runner.sample(logits, rows)
    for i in range(9):
        alone = runner.sample(logits[i : i + 1], rows[i : i + 1])
        assert (alone.token_ids[0], alone.logprobs[0]) == (
            together.token_ids[i], together.logprobs[i],
        )  # fmt: skip


# -- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": 40}, {"head_dim": 8}, {"head_dim": 512}, {"num_heads": 34, "num_kv_heads": 2}],
)
def test_shapes_it_cannot_run_are_refused_by_name(change: dict[str, int]) -> None:
    shape = replace(SHAPE, **change)
    assert misfit(shape)
    with pytest.raises(library.Unavailable):
        NativeRunner(shape, {}, dtype="float32", threads=1)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.down_proj.weight"])
def test_weights_of_another_shape_are_never_read(name: str) -> None:
    weights = weights_of(SHAPE)
    weights[name] = weights[name][..., :-1]
    with pytest.raises(ValueError, match="shapes"):
        NativeRunner(SHAPE, weights, dtype="float32", threads=1)
