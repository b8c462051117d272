"""How well does a verifier judge drafts? Countdown drafts, of which it is known which hold.

    python -m tests.bench.checker [--cases 400] [--json F]

Puzzles, pictures and fonts are held out. Each case has two to four drafts with different answers,
one of them right or none; the others are spoilt in one of four ways (`mini/roles.py`). They are
shown as `best_of` shows them, by its own code, to verifiers on a real decoder behind a real
encoder, without tools; a score of 5 or more says that a draft is right.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from cogitate.aggregator.core.answers import key_of
from cogitate.aggregator.core.ballots import Ballot
from cogitate.aggregator.core.strategies.base import RoundPlan
from cogitate.aggregator.core.strategies.best_of import HIGHEST, BestOf, score_of
from cogitate.cli.measure.statistics import wilson
from cogitate.cli.mesh.plan import Options
from cogitate.evals import countdown
from cogitate.evals.render import to_png
from cogitate.evals.sources import held_out_source
from cogitate.kit.channels import open_channel
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import vision_encoder_service_pb2 as encoder
from cogitate.v1.vision_encoder_service_pb2_grpc import VisionEncoderServiceStub

from tests.bench import report
from tests.bench.local_mesh import local_mesh
from tests.fakes.decode_stream import Stream

TRAINING = Path(__file__).parents[2] / "services" / "agent-decoder" / "training"
SEED, NOISE = 11, 0.5
ROLES = {"user": common.ROLE_USER, "assistant": common.ROLE_ASSISTANT}


def opening(case: Any, plan: RoundPlan, picture: common.ImagePart, vision: str) -> pb.OpenGang:
    """The gang as the aggregator opens a round of verifiers."""
    asked = [common.Part(text=case.question), common.Part(image=picture)]
    conversation = [common.Message(role=common.ROLE_USER, parts=asked)]
    for turn in plan.turns:
        parts = [common.Part(text=turn.text)]
        conversation.append(common.Message(role=ROLES[turn.speaker], parts=parts))
    agents = [
        pb.AgentSpec(
            agent_id=one.agent_id, attempt=1, assistant_prefix=one.opening,
            sampling_params=common.SamplingParams(temperature=0, max_tokens=one.max_tokens),
        )
        for one in plan.agents
    ]  # fmt: skip
    return pb.OpenGang(
        contemplation_id="checker", gang_id=picture.digest, attempt=1, owner_epoch=1, model="mini",
        conversation=conversation, agents=agents, role=plan.role, vision_encoder_address=vision,
    )  # fmt: skip


async def judged(
    case: Any, png: bytes, vision: VisionEncoderServiceStub, addresses: dict[str, str]
) -> list[tuple[bool, float | None]]:
    """Of each draft, whether it holds and its score, None if there is none."""
    plan = BestOf().follow(2, case.drafts, 100, len(case.drafts))
    assert plan is not None
    chunks = iter([encoder.PutBlobRequest(chunk=png)])
    stored = await vision.PutBlob(chunks)
    picture = common.ImagePart(
        digest=stored.digest, width_px=stored.width_px, height_px=stored.height_px
    )
    stream = Stream(addresses["decoder"])
    try:
        await stream.send(open=opening(case, plan, picture, addresses["vision"]))
        await stream.send(close=pb.CloseGang())
        ended = {
            r.finished.agent_id: r.finished for r in await stream.end() if r.HasField("finished")
        }
    finally:
        await stream.channel.close()
    holds = {d.ballot.key: case.judged[d.ballot.agent_id][1] for d in case.drafts}
    scores = []
    for one in plan.agents:
        answer = ended[one.agent_id].answer
        ballot = Ballot(one.agent_id, 1, answer, key_of(answer, "auto"), about=one.about)
        scores.append((holds[one.about], score_of(ballot)))
    return scores


async def measure(
    cases: int, addresses: dict[str, str], progress: Any
) -> list[tuple[bool, float | None]]:
    """Draws the cases and has all of their drafts judged."""
    from mini import roles

    scores: list[tuple[bool, float | None]] = []
    source, task = held_out_source(), progress.add_task("cases", total=cases)
    async with open_channel(addresses["vision"]) as channel:
        stub = VisionEncoderServiceStub(channel)
        for number in range(cases):
            rng = np.random.default_rng((SEED, number))
            case = roles.draw_case(rng, held_out=True)
            drawn = countdown.draw_question(rng, noise=NOISE, source=source, held_out=True)
            scores += await judged(case, to_png(drawn.picture), stub, addresses)
            progress.advance(task)
    return scores


def main() -> None:
    """Measures, prints, writes."""
    parser = report.parser(__doc__)
    parser.add_argument("--cases", type=int, default=400)
    args: argparse.Namespace = parser.parse_args()
    sys.path.insert(0, str(TRAINING))
    to = report.console()
    with local_mesh(Options(decoders=1), to) as mesh:
        addresses = {
            "decoder": next(a for name, a in mesh.addresses.items() if name.endswith("-1")),
            "vision": next(a for name, a in mesh.addresses.items() if "vision" in name),
        }
        with report.progress(to) as progress:
            scores = asyncio.run(measure(args.cases, addresses, progress))
    rows, summary = [], {}
    for name, part in (
        ("right drafts", [s for s in scores if s[0]]),
        ("wrong drafts", [s for s in scores if not s[0]]),
        ("all", scores),
    ):
        right = sum(s is not None and (s >= HIGHEST / 2) == holds for holds, s in part)
        low, high = wilson(right, len(part))
        summary[name] = {"n": len(part), "judged_rightly": right, "low": low, "high": high}
        rate = right / max(1, len(part))
        rows.append((name, len(part), f"{rate:.3f}", f"{low:.3f} to {high:.3f}"))
    to.print(report.table("verifiers of countdown drafts", ("", "n", "rightly", "95 %"), rows))
    said = Counter("none" if s is None else f"{s:g}" for _, s in scores)
    to.print("scores: " + ", ".join(f"{score} {count} times" for score, count in said.items()))
    report.write(args, summary=summary, scores=said)


if __name__ == "__main__":
    main()
