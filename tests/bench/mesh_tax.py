"""What does the mesh cost? A gang through gateway, aggregator and decoder, beside the bare engine.

    python -m tests.bench.mesh_tax [MODEL_DIRECTORY] [--agents 1,8] [--rounds 5] [--json F]

The mesh is real processes; the bare engine is one more, with the same weights, threads and token
ids: the question is rendered here as the decoder renders it, and the decoder's own count of the
prompt is compared. They take turns within each round. Quorum ``all``, so nobody is killed; as many
tokens from each agent as asked for, on both sides by `min_tokens`, since people's requests cannot
ignore a turn's end. The first token is, at the client, the first event with text; of the engine,
its first event with a token. Tokens with no text of their own make the former later: that is what a
person sees. *around the prefill* is what the first token took beside the prefill, which either side
times itself: prefills differ by more from one to the next than a mesh costs. Ratios and differences
are of the two in the same round; the table shows medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cogitate.agent_decoder.model import loader
from cogitate.agent_decoder.model.checkpoint import read_directory, shapes_in
from cogitate.agent_decoder.model.templates import Template, Text, Turn
from cogitate.client import Client

from tests.bench import machine, report
from tests.bench.decode import peers
from tests.bench.decode.__main__ import FOLDERS, MODEL
from tests.bench.local_mesh import LocalMesh, local_mesh, options_for

STORY = Path(__file__).parent / "data" / "alice.txt"
TEMPERATURE = 0.8


@dataclasses.dataclass(frozen=True)
class Question:
    """A question that begins like no other, so that no cache of an earlier one helps."""

    system: str
    text: str
    token_ids: list[int]


def question(template: Template, number: int, num_tokens: int) -> Question:
    """About so many tokens, as the decoder sees them: never more, a word's tokens less at most."""
    words = (STORY.read_text(encoding="utf-8") + " ").split(" ") * (num_tokens // 400 + 1)
    system = f"{number} is the number of this story. Go on with it."

    def rendered(count: int) -> list[int]:
        turns = [
            Turn("system", (Text(system),)),
            Turn("user", (Text(" ".join(words[:count])),)),
        ]
        return [t for t in template.prompt(turns, instant=False) if isinstance(t, int)]

    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(rendered(middle)) <= num_tokens else (low, middle - 1)
    return Question(system, " ".join(words[:low]), rendered(low))


def through_mesh(
    client: Client, model: str, asked: Question, agents: int, tokens: int, seed: int
) -> dict[str, float]:
    """Asks and reads the events to the verdict."""
    stream = client.contemplate(
        asked.text, system=asked.system, model=model, agents=agents, strategy="vote", quorum="all",
        seed=seed, temperature=TEMPERATURE, max_tokens=tokens, tools=[],
    )  # fmt: skip
    # The plain client has no such option.
    request: Any = stream._request
    request.spec.sampling_params.min_tokens = tokens
    first_s = prefill_s = prompt = cached = 0.0
    began = time.perf_counter()
    with stream:
        for event in stream:
            kind = event.WhichOneof("event")
            if kind == "deltas" and not first_s:
                first_s = time.perf_counter() - began
            elif kind == "prefilled":
                prompt = event.prefilled.prompt_token_count
                cached = event.prefilled.cached_token_count
                prefill_s = event.prefilled.prefill_duration.ToNanoseconds() / 1e9
        total_s = time.perf_counter() - began
        answer = stream.answer()
    if prompt != len(asked.token_ids):
        raise SystemExit(f"the mesh had a prompt of {prompt}, the engine of {len(asked.token_ids)}")
    sampled = answer.usage.sampled_tokens
    return {
        "total_s": total_s, "first_token_s": first_s, "prefill_s": prefill_s, "tokens": sampled,
        "cached": cached,
    }  # fmt: skip


def measure(
    args: argparse.Namespace,
    template: Template,
    bare: peers.Worker,
    mesh: LocalMesh,
    advance: Callable[[], None],
) -> list[dict[str, Any]]:
    """Rounds of both at every number of agents; the first warms up and is not counted."""
    runs: dict[int, list[dict[str, Any]]] = {n: [] for n in args.agents}
    with Client(mesh.address) as client:
        for number in range(args.rounds + 1):
            for n in args.agents:
                asked = question(template, 1000 * number + n, args.prompt)
                before = {name: machine.cpu_s(pid) for name, pid in mesh.pids.items()}
                meshed = through_mesh(client, args.model.name, asked, n, args.tokens, number)
                used = {k: machine.cpu_s(pid) - before[k] for k, pid in mesh.pids.items()}
                alone: dict[str, Any] = bare.run(
                    {
                        "prompts": [asked.token_ids],
                        "agents": n,
                        "num_tokens": args.tokens,
                        "temperature": TEMPERATURE,
                        "seed": number,
                        "bans_end": True,
                    }
                )
                alone["tokens"] = n * args.tokens
                if number:
                    runs[n].append({"mesh": meshed, "engine": alone, "cpu_s": used})
                advance()
    return [row(n, found) for n, found in runs.items()]


def row(agents: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of one number of agents."""

    def rate(run: dict[str, Any], side: str) -> float:
        return run[side]["tokens"] / run[side]["total_s"]

    def around_ms(run: dict[str, Any], side: str) -> float:
        return 1000.0 * (run[side]["first_token_s"] - run[side]["prefill_s"])

    others = [
        sum(used for name, used in run["cpu_s"].items() if not name.endswith("-1")) for run in runs
    ]
    return {
        "agents": agents,
        "rounds": len(runs),
        "engine_tokens_per_s": report.median((rate(r, "engine") for r in runs), 1),
        "mesh_tokens_per_s": report.median((rate(r, "mesh") for r in runs), 1),
        "rate_ratio": report.median(rate(r, "mesh") / rate(r, "engine") for r in runs),
        "engine_first_s": report.median(r["engine"]["first_token_s"] for r in runs),
        "mesh_first_s": report.median(r["mesh"]["first_token_s"] for r in runs),
        "first_difference_ms": report.median(
            (1000 * (r["mesh"]["first_token_s"] - r["engine"]["first_token_s"]) for r in runs), 1
        ),
        "engine_around_ms": report.median((around_ms(r, "engine") for r in runs), 1),
        "mesh_around_ms": report.median((around_ms(r, "mesh") for r in runs), 1),
        "around_difference_ms": report.median(
            (around_ms(r, "mesh") - around_ms(r, "engine") for r in runs), 1
        ),
        "others_cpu_ms": report.median((1000 * used for used in others), 1),
        "runs": runs,
    }


def show(rows: list[dict[str, Any]], args: argparse.Namespace) -> Any:
    """As a table."""
    return report.table(
        f"the mesh beside the bare engine: {args.model.name}, {args.prompt} + {args.tokens} tokens",
        ("agents", "engine tok/s", "mesh tok/s", "mesh / engine", "first: engine", "mesh",
         "difference", "around the prefill: engine", "mesh", "difference", "CPU of others",
         "rounds"),
        (
            (
                r["agents"], r["engine_tokens_per_s"], r["mesh_tokens_per_s"],
                f"{r['rate_ratio']:.1%}", f"{1000 * r['engine_first_s']:.0f} ms",
                f"{1000 * r['mesh_first_s']:.0f} ms", f"{r['first_difference_ms']:+.0f} ms",
                f"{r['engine_around_ms']:.0f} ms", f"{r['mesh_around_ms']:.0f} ms",
                f"{r['around_difference_ms']:+.0f} ms", f"{r['others_cpu_ms']:.0f} ms",
                r["rounds"],
            )
            for r in rows
        ),
    )  # fmt: skip


def main() -> None:
    """Measures, prints, writes."""
    parser = report.parser(__doc__)
    usual = next((f / MODEL for f in FOLDERS if (f / MODEL).exists()), FOLDERS[0] / MODEL)
    parser.add_argument(
        "model", nargs="?", type=report.resolved, default=usual, help="(%(default)s)"
    )
    parser.add_argument(
        "--agents", type=lambda t: [int(n) for n in t.split(",")], default=[1, 8], metavar="N,N,…"
    )
    parser.add_argument("--prompt", type=int, default=512, help="tokens, about (%(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="of each agent (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="beside one to warm up (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    to = report.console()
    checkpoint = read_directory(args.model, weights=False)
    _, template = loader.interpret(checkpoint, shapes_in(args.model, checkpoint.config))
    ours = next(engine for engine in peers.engines() if engine.name == "cogitate")
    engine = dataclasses.replace(ours, dtype="auto")  # as the decoder chooses
    with (
        tempfile.NamedTemporaryFile(suffix=".log") as log,
        local_mesh(options_for(args.model, args.threads), to) as mesh,
    ):
        bare = peers.Worker(engine, args.model, args.threads, Path(log.name))
        try:
            with report.progress(to) as progress:
                task = progress.add_task("rounds", total=(args.rounds + 1) * len(args.agents))
                rows = measure(args, template, bare, mesh, lambda: progress.advance(task))
        finally:
            bare.close()
    to.print(show(rows, args))
    report.write(args, rows=rows)


if __name__ == "__main__":
    main()
