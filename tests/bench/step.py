"""Processor time of a step, one thread: a prompt, then agents that share it.

    python -m tests.bench.step [checkpoint directory] [--prompt 200] [--json F]

By the native step in every instruction set that this machine runs, and by torch in shapes of their
own and in fixed ones (`batch_invariant`). The ways take turns; the table shows medians, and what
the products of the prompt come to a second beside torch's own product of square matrices.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cogitate.agent_decoder.core.scheduler import Chunk
from cogitate.agent_decoder.core.sequence import Position, Sequence
from cogitate.agent_decoder.model import invariance, loader
from cogitate.agent_decoder.model.checkpoint import Checkpoint
from cogitate.agent_decoder.model.llama import Llama, LlamaConfig
from cogitate.agent_decoder.model.native import library
from cogitate.agent_decoder.model.native.runner import NativeRunner
from cogitate.agent_decoder.model.runner import ModelRunner, TorchRunner

from tests.bench import machine, report

MINI = Path(loader.__file__).parents[2] / "models" / "mini"
BLOCK, AGENTS = 16, (1, 8, 16)
NATIVE_TYPES = ("bfloat16", "int8", "float32")


@dataclass
class Way:
    """Something that computes steps, and what it took so far, in ms by what was computed."""

    name: str
    dtype: str
    runner: ModelRunner
    took: dict[str, list[float]] = field(default_factory=dict)

    def book(self, what: str, ms: float) -> None:
        """Keeps a time."""
        self.took.setdefault(what, []).append(ms)


def ways(config: LlamaConfig, checkpoint: Checkpoint, num_builds: int | None) -> Iterator[Way]:
    """What this machine runs, best first; all builds of the native step, or so many."""
    names, weights = list(library.CAPABILITIES), checkpoint.weights
    for name in names[names.index(library.capability()) :][:num_builds]:
        with_native(name)
        for dtype in NATIVE_TYPES:
            runner = NativeRunner(config, weights, dtype=dtype, threads=1)
            yield Way(f"native, {name}", dtype, runner)
    llama = Llama(config, weights, dtype=torch.float32, device=torch.device("cpu"))
    yield Way("torch", "float32", TorchRunner(llama))
    tiles, obstacle = invariance.find_tiles(llama)
    if tiles:
        yield Way("torch, fixed shapes", "float32", TorchRunner(llama, tiles=tiles))
    else:
        print(f"torch is not batch-invariant here: {obstacle}")


def with_native(name: str) -> None:
    """Has the native step be loaded as built for an instruction set."""
    library.capability = lambda: name  # type: ignore[assignment]
    library.load.cache_clear()
    library.digest.cache_clear()


def tokens(count: int, vocab_size: int, seed: int) -> deque[Position]:
    """Random ones."""
    generator = torch.Generator().manual_seed(seed)
    return deque(map(Position, torch.randint(vocab_size, (count,), generator=generator).tolist()))


def step_ms(runner: ModelRunner, chunks: list[Chunk]) -> float:
    """Runs the step as the engine would."""
    began = time.thread_time()
    runner.forward(chunks)
    took = time.thread_time() - began
    for chunk in chunks:
        chunk.sequence.num_computed += chunk.length
        for _ in range(chunk.length):
            chunk.sequence.pending.popleft()
    return took * 1e3


def measure(way: Way, vocab: int, prompt: int, steps: int) -> None:
    """One round: the prompt, then some steps of 1, 8 and 16 agents behind it."""
    shared, own = prompt // BLOCK, steps // BLOCK + 2
    root = Sequence(tokens(prompt, vocab, 1), list(range(shared + 1)))
    way.book("prompt", step_ms(way.runner, [Chunk(root, prompt)]))
    for count in AGENTS:
        agents = []
        for i in range(count):
            first = shared + 1 + i * own
            way.runner.copy_blocks([(shared, first)])
            table = [*range(shared), *range(first, first + own)]
            agents.append(Sequence(tokens(steps, vocab, i + 2), table, prompt))
        for _ in range(steps):
            way.book(f"{count}", step_ms(way.runner, [Chunk(agent, 1) for agent in agents]))


def flops(config: LlamaConfig, prompt: int) -> float:
    """Of the products of a prompt with the weights of the layers; attention is not counted."""
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = config.hidden_size * (2 * query + 2 * key + 3 * config.intermediate_size)
    return 2.0 * prompt * config.num_layers * layer


def row(way: Way, config: LlamaConfig, prompt: int) -> dict[str, Any]:
    """Its medians."""
    found = {name: report.median(values) for name, values in way.took.items()}
    return {
        "way": way.name,
        "dtype": way.dtype,
        "prompt_ms": found["prompt"],
        "prompt_gflop_s": round(flops(config, prompt) / found["prompt"] / 1e6, 1),
        "agents_ms": {name: ms for name, ms in found.items() if name != "prompt"},
    }


def main() -> None:
    """Measures in turns, prints, writes."""
    parser = report.parser(__doc__)
    parser.add_argument("model", nargs="?", type=report.resolved, default=MINI)
    parser.add_argument("--prompt", type=int, default=200, help="tokens (%(default)s)")
    parser.add_argument("--steps", type=int, default=15, help="of each size (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--builds", type=int, metavar="N", help="of the native step, best first")
    args = parser.parse_args()
    checkpoint = loader.read_checkpoint(args.model)
    shapes = {name: tuple(weight.shape) for name, weight in checkpoint.weights.items()}
    config, _ = loader.interpret(checkpoint, shapes)
    peaks = machine.peaks(1)  # and leaves torch with one thread
    all_ways = list(ways(config, checkpoint, args.builds))
    blocks = args.prompt // BLOCK + 2 + max(AGENTS) * (args.steps // BLOCK + 2)
    for way in all_ways:
        way.runner.allocate(blocks, BLOCK)
    console = report.console()
    with torch.inference_mode(), report.progress(console) as bar:
        task = bar.add_task("steps", total=args.rounds * len(all_ways))
        for _ in range(args.rounds):
            for way in all_ways:
                measure(way, config.vocab_size, args.prompt, args.steps)
                bar.advance(task)
    rows = [row(way, config, args.prompt) for way in all_ways]
    columns = ("by", "type", "prompt, ms", "GFLOP/s", *(f"{n} agents, ms" for n in AGENTS))
    lines = [
        (r["way"], r["dtype"], r["prompt_ms"], r["prompt_gflop_s"], *r["agents_ms"].values())
        for r in rows
    ]
    console.print(report.table(f"{args.model.name}, prompt of {args.prompt}", columns, lines))
    console.print(f"torch's product of square float32 matrices: {peaks['float32_gflop_s']} GFLOP/s")
    report.write(args, peaks=peaks, rows=rows)


if __name__ == "__main__":
    main()
