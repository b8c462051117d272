"""What do smaller weights cost? Perplexity and agreement on a fixed English text.

    python -m tests.bench.int8_quality MODEL_DIRECTORY [--json F]

The native step reads the text (`tests/bench/data/alice.txt` and the licence) in passages side by
side, once with each type of weights. Perplexity is over all tokens but the first of each passage;
agreement is the share of positions at which the likeliest next token is that of bfloat16.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import deque
from pathlib import Path

import torch
from cogitate.agent_decoder.core.scheduler import Chunk
from cogitate.agent_decoder.core.sequence import Position, Sequence
from cogitate.agent_decoder.model import loader
from cogitate.agent_decoder.model.backend import Wanted
from cogitate.agent_decoder.model.runner import ModelRunner
from rich.progress import track
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]
TEXTS = (Path(__file__).parent / "data" / "alice.txt", ROOT / "LICENSE")
DTYPES = ("float32", "bfloat16", "int8")
BLOCK = 16


def passages(directory: Path, length: int) -> list[list[int]]:
    """The texts as passages of so many tokens; what is left over at the end goes."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    found = []
    for path in TEXTS:
        ids = tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False).ids
        found += [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
    return found


def read(runner: ModelRunner, texts: list[list[int]], title: str) -> tuple[float, torch.Tensor]:
    """Mean negative log probability of the next tokens, and the likeliest ones (passages, T)."""
    length = len(texts[0])
    blocks = -(-length // BLOCK)
    runner.allocate(len(texts) * blocks, BLOCK)
    sequences = [Sequence(pending=deque()) for _ in texts]
    for i, sequence in enumerate(sequences):
        sequence.block_table = list(range(i * blocks, (i + 1) * blocks))
    losses, likeliest = [], []
    for t in track(range(length - 1), description=title):
        for sequence, text in zip(sequences, texts, strict=True):
            sequence.pending.append(Position(text[t]))
        logits = runner.forward([Chunk(sequence, 1) for sequence in sequences])
        for sequence in sequences:
            sequence.pending.popleft()
            sequence.num_computed += 1
        wanted = torch.tensor([text[t + 1] for text in texts])
        losses.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none"))
        likeliest.append(logits.argmax(-1))
    return torch.stack(losses).mean().item(), torch.stack(likeliest, 1)


def main() -> None:
    """Prints a line for each type."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--length", type=int, default=128, help="of a passage (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    texts = passages(args.model, args.length)
    found = {}
    for dtype in DTYPES:
        wanted = Wanted(device="cpu", dtype=dtype, step="native", threads=args.threads)
        runner = loader.load(args.model.name, args.model, wanted).runner
        loss, likeliest = read(runner, texts, dtype)
        found[dtype] = math.exp(loss), likeliest
    perplexity, usual = found["bfloat16"]
    rows = [
        {
            "dtype": dtype,
            "perplexity": own,
            "perplexity_ratio": own / perplexity,
            "agreement": (likeliest == usual).double().mean().item(),
        }
        for dtype, (own, likeliest) in found.items()
    ]
    print(f"{len(texts)} passages of {args.length} tokens")
    for row in rows:
        print(
            f"{row['dtype']:>9}  perplexity {row['perplexity']:.4f}  "
            f"({100 * (row['perplexity_ratio'] - 1):+.2f} % against bfloat16)  "
            f"same likeliest token as bfloat16 {row['agreement']:.2%}"
        )
    if args.json:
        args.json.write_text(json.dumps({"passages": len(texts), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
