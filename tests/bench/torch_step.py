"""Processor time of a step by torch, one thread: a prompt of 200, then agents that share it.

python -m tests.bench.torch_step [checkpoint directory]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from pathlib import Path

import torch
from cogitate.agent_decoder.core.scheduler import Chunk
from cogitate.agent_decoder.core.sequence import Position, Sequence
from cogitate.agent_decoder.model import invariance, loader
from cogitate.agent_decoder.model.llama import Llama
from cogitate.agent_decoder.model.runner import TorchRunner

MINI = Path(loader.__file__).parents[2] / "models" / "mini"
PROMPT, BLOCK, REPEATS, STEPS = 200, 16, 5, 30


def tokens(count: int, vocab_size: int, seed: int) -> deque[Position]:
    generator = torch.Generator().manual_seed(seed)
    return deque(map(Position, torch.randint(vocab_size, (count,), generator=generator).tolist()))


def step_ms(runner: TorchRunner, chunks: list[Chunk]) -> float:
    """Runs the step as the engine would."""
    began = time.thread_time()
    runner.forward(chunks)
    took = time.thread_time() - began
    for chunk in chunks:
        chunk.sequence.num_computed += chunk.length
        for _ in range(chunk.length):
            chunk.sequence.pending.popleft()
    return took * 1e3


def measure(runner: TorchRunner) -> dict[str, float]:
    """Medians, in ms."""
    vocab, shared, own = runner.config.vocab_size, PROMPT // BLOCK, STEPS // BLOCK + 2
    found = {}
    prompts = [Sequence(tokens(PROMPT, vocab, 1), list(range(shared + 1))) for _ in range(REPEATS)]
    found["prompt"] = statistics.median(step_ms(runner, [Chunk(p, PROMPT)]) for p in prompts)
    for count in (1, 8, 16):
        agents = []
        for i in range(count):
            blocks = list(range(20 + i * own, 20 + (i + 1) * own))
            runner.copy_blocks([(shared, blocks[0])])
            table = [*range(shared), *blocks]
            agents.append(Sequence(tokens(STEPS, vocab, i + 2), table, PROMPT))
        times = [step_ms(runner, [Chunk(agent, 1) for agent in agents]) for _ in range(STEPS)]
        found[f"{count} agents"] = statistics.median(times)
    return found


def main() -> None:
    torch.set_num_threads(1)
    checkpoint = loader.read_checkpoint(Path(sys.argv[1]) if len(sys.argv) > 1 else MINI)
    shapes = {name: tuple(weight.shape) for name, weight in checkpoint.weights.items()}
    config, _ = loader.interpret(checkpoint, shapes)
    cpu = torch.device("cpu")
    llama = Llama(config, checkpoint.weights, dtype=torch.float32, device=cpu)
    tiles, obstacle = invariance.find_tiles(llama)
    print(tiles or f"not batch-invariant: {obstacle}")
    for name, shape in (("off", None), ("on", tiles)):
        runner = TorchRunner(llama, tiles=shape)
        runner.allocate(128, BLOCK)
        print(name, {what: round(ms, 1) for what, ms in measure(runner).items()})


if __name__ == "__main__":
    main()
