"""Does time tell one tenant what another asked? Kolmogorov and Smirnov look at the difference.

    python -m tests.bench.cache_timing [MODEL_DIRECTORY] [--probes 200] [--json F]

A real mesh with two keys. Before each pair of probes the victim asks two questions, each about a
picture and under a long system prompt of its own; then the other tenant asks one of the two, which
is in the mesh's caches, and one that nobody ever asked, in a random order. The time is that from
the question to the verdict of one agent that samples one token. As a control the other tenant then
asks the first again: that one is in its own cache, and the same test must see it.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from cogitate.client import AsyncClient
from cogitate.evals.boards import held_out_questions
from cogitate.gateway.core.tenants import Grant
from cogitate.gateway.keys import KeyStore
from scipy import stats

from tests.bench import report
from tests.bench.local_mesh import local_mesh, options_for

MINI = Path("services/agent-decoder/cogitate/models/mini")
WORDS = "amber birch copper delta ember fjord granite harbour indigo juniper kelp lagoon".split()
SYSTEM_WORDS = 60


def question(dice: random.Random, picture: bytes) -> dict[str, Any]:
    """What is asked: all of it is new."""
    return {
        "images": [picture],
        "system": " ".join(dice.choice(WORDS) for _ in range(SYSTEM_WORDS)),
        "agents": 1,
        "max_tokens": 1,
        "tools": [],
        "seed": 1,
    }


async def ask(client: AsyncClient, asked: dict[str, Any]) -> tuple[float, int]:
    """Milliseconds to the verdict, and the positions it says it found cached."""
    began_s = time.perf_counter()
    answer = await client.ask("What is the sum of the red cards?", **asked)
    return 1000 * (time.perf_counter() - began_s), answer.usage.cached_tokens


async def probes(address: str, keys: dict[str, str], count: int, progress: Any) -> list[Any]:
    """Each round's times by kind."""
    dice, rows = random.Random(7), []
    task = progress.add_task("rounds", total=count)
    pictures = iter([png for _, png in held_out_questions(3 * (count + 5), noise=1.0, seed=9)])
    async with (
        AsyncClient(address, api_key=keys["victim"]) as victim,
        AsyncClient(address, api_key=keys["other"]) as other,
    ):
        for number in range(count + 5):
            known, decoy, unseen = (question(dice, next(pictures)) for _ in range(3))
            for one in (known, decoy):
                await ask(victim, one)
            order = [("known", known), ("unseen", unseen)]
            dice.shuffle(order)
            row = {name: await ask(other, asked) for name, asked in order}
            row["own"] = await ask(other, known)
            if number >= 5:  # the first warm the mesh up
                rows.append(row)
                progress.advance(task)
    return rows


def main() -> None:
    parser = report.parser(__doc__ or "")
    parser.add_argument("model", nargs="?", type=report.resolved, default=MINI)
    parser.add_argument("--probes", type=int, default=200)
    args = parser.parse_args()
    console = report.console()
    with tempfile.TemporaryDirectory() as folder:
        store = KeyStore(Path(folder) / "keys", create=True)
        keys = {name: store.create(Grant(name))[1] for name in ("victim", "other")}
        os.environ["COGITATE_GATEWAY_API_KEYS"] = str(Path(folder) / "keys")
        with local_mesh(options_for(args.model, 1), console) as mesh:
            with report.progress(console) as progress:
                rows = asyncio.run(probes(mesh.address, keys, args.probes, progress))
    times = {name: [row[name][0] for row in rows] for name in ("unseen", "known", "own")}
    found = {
        name: {
            "p": float(stats.ks_2samp(times["unseen"], times[name]).pvalue),
            "median_ratio": statistics.median(times[name]) / statistics.median(times["unseen"]),
            "cached_tokens": statistics.median(row[name][1] for row in rows),
        }
        for name in times
    }
    told = [
        (
            name,
            report.median(times[name], 2),
            found[name]["cached_tokens"],
            f"{found[name]['median_ratio'] - 1:+.1%}",
            f"{found[name]['p']:.3g}" if name != "unseen" else "",
        )
        for name in times
    ]
    columns = ("asked before by", "ms", "cached", "median", "KS p")
    told = [({"unseen": "nobody", "known": "the victim", "own": "itself"}[n], *r) for n, *r in told]
    console.print(report.table(f"{len(rows)} probes of each kind", columns, told))
    report.write(args, found=found, rows=rows)


if __name__ == "__main__":
    main()
