"""How much memory does a gang share? Blocks at the peak, beside what N lone sequences would need.

    python -m tests.bench.kv_memory [--agents 8,16,32] [--prompt 512,500] [--tokens 128] [--json F]

A gang runs to its end in the engine, with a block pool that notes the most blocks in use at once.
Shared memory ought to be (P + N·G) / (N·(P + G)) of the unshared need, for N agents, a prompt of P
positions and G new tokens. Blocks are whole, and each agent copies the last partial one of the
prompt. The embedded model does it: how many blocks there are does not depend on the model.
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

from cogitate.agent_decoder.core import events as ev
from cogitate.agent_decoder.core.block_pool import BlockPool
from cogitate.agent_decoder.core.load import EngineLimits
from cogitate.agent_decoder.core.sampling import SamplingParams
from cogitate.agent_decoder.core.sequence import Position
from cogitate.agent_decoder.core.starts import AgentStart, GangStart
from cogitate.agent_decoder.engine import Engine
from cogitate.agent_decoder.model import loader
from cogitate.agent_decoder.model.backend import Wanted

from tests.bench import report

MINI = Path(__file__).parents[2] / "services/agent-decoder/cogitate/models/mini"
NUM_BLOCKS, BLOCK_SIZE = 4096, 16


class WatchedPool(BlockPool):
    """Notes the most blocks that were in use at once."""

    peak = 0

    def allocate(self, count: int) -> list[int]:
        blocks = super().allocate(count)
        self.peak = max(self.peak, self.num_blocks - self.num_free)
        return blocks


def peak_blocks(model: loader.LoadedModel, agents: int, prompt: int, tokens: int) -> int:
    """Runs one gang; every agent writes so many tokens."""
    done = threading.Event()

    def hear(key: int, events: list[ev.Event]) -> None:
        for event in events:
            if isinstance(event, ev.Refused):
                raise SystemExit(f"the gang does not fit: {event.message}")
            if isinstance(event, ev.GangDone):
                assert event.num_sampled == agents * tokens
                done.set()

    engine = Engine(model, EngineLimits(NUM_BLOCKS, BLOCK_SIZE, 256, 4, 0), hear)
    pool = engine.pool = WatchedPool(NUM_BLOCKS, BLOCK_SIZE)
    engine.start()
    params = SamplingParams(temperature=0.8, max_tokens=tokens, ignore_eos=True)
    starts = tuple(AgentStart(i, 1, params, seed=1) for i in range(agents))
    vocabulary = model.config.vocab_size
    prefix = tuple(Position(7 * i % vocabulary) for i in range(prompt))
    engine.open(1, GangStart(prefix, starts))
    engine.close(1)
    done.wait()
    engine.stop()
    assert pool.num_free == NUM_BLOCKS
    return pool.peak


def rows(args: argparse.Namespace) -> list[dict[str, float]]:
    """One a prompt and number of agents."""
    model = loader.load("mini", MINI, Wanted(device="cpu", block_size=BLOCK_SIZE))
    found = []
    to = report.console()
    with report.progress(to) as progress:
        task = progress.add_task("gangs", total=len(args.prompt) * len(args.agents))
        for prompt in args.prompt:
            for agents in args.agents:
                peak = peak_blocks(model, agents, prompt, args.tokens)
                unshared = agents * -(-(prompt + args.tokens) // BLOCK_SIZE)
                formula = (prompt + agents * args.tokens) / (agents * (prompt + args.tokens))
                found.append(
                    {
                        "prompt": prompt,
                        "agents": agents,
                        "tokens": args.tokens,
                        "peak_blocks": peak,
                        "unshared_blocks": unshared,
                        "share": round(peak / unshared, 4),
                        "formula": round(formula, 4),
                        "above_formula": round(
                            peak / unshared - formula, 4
                        ),  # of the unshared need
                    }
                )
                progress.advance(task)
    to.print(
        report.table(
            f"KV memory at the peak, blocks of {BLOCK_SIZE}, {args.tokens} new tokens",
            ("prompt: N", "blocks", "unshared", "share", "formula", "above it"),
            (
                (
                    f"{r['prompt']}: {r['agents']}", r["peak_blocks"], r["unshared_blocks"],
                    f"{r['share']:.1%}", f"{r['formula']:.1%}", f"{r['above_formula']:+.1%}",
                )
                for r in found
            ),
        )
    )  # fmt: skip
    return found


def main() -> None:
    """Prints, writes."""
    parser = report.parser(__doc__)
    numbers = {"type": lambda text: [int(n) for n in text.split(",")], "metavar": "N,N,…"}
    parser.add_argument("--agents", **numbers, default=[8, 16, 32])
    parser.add_argument("--prompt", **numbers, default=[512, 500])
    parser.add_argument("--tokens", type=int, default=128)
    args = parser.parse_args()
    report.write(args, rows=rows(args))


if __name__ == "__main__":
    main()
