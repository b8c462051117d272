"""A contemplation as a script: eight agents, a countdown, one of them proves it."""

from __future__ import annotations

from collections.abc import Sequence

from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2

from tests.fakes.aggregator import Step, Wait

Event = pb2.ContemplationEvent
HINTS = ("", "Multiply first.", "Add first.", "End by adding.")
CARDS = (
    (0, 0, 250, 333, 6),
    (500, 0, 750, 333, 4),
    (250, 333, 500, 667, 5),
    (750, 667, 1000, 1000, 3),
)
DIGEST = "sha256:" + "ab" * 32


def said(agent: int, offset: int, text: str, *, answer: bool = False) -> Event:
    """One agent's text; a token a word."""
    delta = pb2.AgentTextDelta(
        agent_id=agent,
        attempt=1,
        token_offset=offset,
        token_count=len(text.split()),
        text=text,
        is_answer=answer,
    )
    return Event(deltas=pb2.AgentDeltas(deltas=[delta]))


def called(agent: int, number: int, name: str, arguments: str) -> Event:
    """A tool call of an agent."""
    call = common_pb2.ToolCall(call_id=f"a{agent}-{number}", name=name, arguments_json=arguments)
    return Event(tool_call_started=pb2.ToolCallStarted(agent_id=agent, call=call))


def finished(agent: int, number: int, *parts: common_pb2.Part, proof: str = "") -> Event:
    """The result of a call."""
    result = common_pb2.ToolResult(call_id=f"a{agent}-{number}", parts=parts)
    if proof:
        result.proof.answer = proof
        result.proof.tool_name = "prove"
    event = pb2.ToolCallFinished(
        agent_id=agent, call_id=result.call_id, result=result, shared=agent > 0
    )
    event.duration.FromMilliseconds(8)
    return Event(tool_call_finished=event)


def crop(x0: int, y0: int, x1: int, y1: int, digest: str = DIGEST) -> common_pb2.Part:
    """A crop by digest and box."""
    image = common_pb2.ImagePart(digest=digest)
    image.box.CopyFrom(
        common_pb2.Box(x0_permille=x0, y0_permille=y0, x1_permille=x1, y1_permille=y1)
    )
    return common_pb2.Part(image=image)


def text(value: str) -> common_pb2.Part:
    """A text part."""
    return common_pb2.Part(text=value)


def opening(agents: int, digest: str = DIGEST) -> list[Step]:
    """Accepted, placed, prefilled, started."""
    accepted = pb2.Accepted(
        model="mini",
        strategy="vote",
        quorum="verified",
        agent_count=agents,
        seed=1234,
        trace=common_pb2.TraceRef(trace_id="4f" * 16),
        images=[common_pb2.ImagePart(digest=digest, width_px=512, height_px=384)],
    )
    half = agents // 2 or 1
    places = [
        common_pb2.PlacedAgents(
            endpoint_id="aurora-1",
            provider="aurora",
            region="eu-north",
            agent_ids=range(half),
            reason="idle, 0.08 s sooner",
        ),
        common_pb2.PlacedAgents(
            endpoint_id="borealis-1",
            provider="borealis",
            region="us-west",
            agent_ids=range(half, agents),
            reason="second failure domain",
        ),
    ]
    steps: list[Step] = [
        Event(accepted=accepted),
        Event(placed=pb2.Placed(placements=places, policy="makespan")),
    ]
    steps += [
        Event(prefilled=pb2.Prefilled(gang_id=one, endpoint_id=one, prompt_token_count=41))
        for one in ("aurora-1", "borealis-1")
    ]
    steps.append(Event(round_started=pb2.RoundStarted(round_number=1, agent_ids=range(agents))))
    for agent in range(agents):
        endpoint = "aurora-1" if agent < half else "borealis-1"
        steps.append(
            Event(
                agent_started=pb2.AgentStarted(
                    agent_id=agent,
                    attempt=1,
                    endpoint_id=endpoint,
                    provider=endpoint[:-2],
                    hint=HINTS[agent % len(HINTS)],
                )
            )
        )
    return steps


def countdown(
    agents: int = 8, pause_s: float = 0.0, digest: str = DIGEST, winner: int = 3
) -> Sequence[Step]:
    """All read the four cards; one finds 26, one another number, the rest are killed."""
    steps = opening(agents, digest)
    everyone = range(agents)

    def pause() -> None:
        if pause_s:
            steps.append(Wait(pause_s))

    for agent in everyone:
        steps.append(said(agent, 0, "Red cards: top left, top third, middle second, bottom last. "))
    pause()
    offset = 10
    for number, (x0, y0, x1, y1, value) in enumerate(CARDS):
        for agent in everyone:
            box = f"[{x0 // 10}, {y0 // 10}, {x1 // 10}, {y1 // 10}]"
            steps.append(said(agent, offset, f"zoom({box[1:-1]})"))
            steps.append(called(agent, number, "zoom", f'{{"box": {box}, "image": 0}}'))
        pause()
        for agent in everyone:
            steps.append(finished(agent, number, crop(x0, y0, x1, y1, digest)))
            steps.append(said(agent, offset + 4, f"{value}. "))
        offset += 5
        pause()
    for agent in everyone:
        steps.append(said(agent, offset, "Numbers 6 4 5 3, target 26. "))
        steps.append(called(agent, 4, "calculator", '{"expression": "6*4"}'))
        steps.append(finished(agent, 4, text("24")))
        pause()
    lost = (winner + 2) % agents
    steps.append(said(lost, offset + 6, "I could not make 26.", answer=True))
    steps.append(_ballot(lost, "I could not make 26.", "", 41, abstained=True))
    pause()
    chain = "6*4=24, 24+5=29, 29-3=26"
    steps.append(said(winner, offset + 6, f"prove(26, 6 4 5 3, {chain})"))
    arguments = f'{{"target": 26, "numbers": [6, 4, 5, 3], "steps": "{chain}"}}'
    steps.append(called(winner, 5, "prove", arguments))
    steps.append(finished(winner, 5, text("proved"), proof=f"{chain}."))
    steps.append(said(winner, offset + 9, f"{chain}.", answer=True))
    pause()
    steps.append(_ballot(winner, f"{chain}.", "26", 52, proved=True))
    steps.append(
        Event(
            decided=pb2.Decided(
                quorum="verified", key="26", reason=f"agent {winner} proved its answer by a tool"
            )
        )
    )
    killed = [agent for agent in everyone if agent not in (winner, lost)]
    for agent in killed:
        one = common_pb2.KilledAgent(agent_id=agent, reason="DECIDED", sampled_token_count=44)
        steps.append(Event(agent_killed=pb2.AgentKilled(agent=one)))
    steps.append(_verdict(f"{chain}.", winner, lost, killed, agents, digest))
    return steps


def _ballot(
    agent: int, answer: str, key: str, tokens: int, *, proved: bool = False, abstained: bool = False
) -> Event:
    ballot = common_pb2.Ballot(
        agent_id=agent,
        attempt=1,
        answer=answer,
        key=key,
        proved=proved,
        abstained=abstained,
        weight=1.0,
        finish_reason=common_pb2.FINISH_REASON_STOP,
        sampled_token_count=tokens,
        confidence=common_pb2.Confidence(mean_logprob=-0.21),
    )
    return Event(
        ballot_cast=pb2.BallotCast(
            ballot=ballot, leader_key=key, leader_count=int(bool(key)), ballot_count=1
        )
    )


def _verdict(
    answer: str, winner: int, lost: int, killed: list[int], agents: int, digest: str
) -> Event:
    event = Event()
    verdict = event.verdict
    verdict.answer, verdict.key, verdict.proved = answer, "26", True
    verdict.duration.FromMilliseconds(412)
    usage = verdict.usage
    usage.prompt_token_count, usage.sampled_token_count, usage.injected_token_count = 82, 357, 168
    certificate = verdict.certificate
    certificate.strategy, certificate.quorum = "vote", "verified"
    certificate.decision = f"agent {winner} proved its answer by a tool"
    certificate.model, certificate.seed = "mini", 1234
    certificate.ballots.append(
        _ballot(lost, "I could not make 26.", "", 41, abstained=True).ballot_cast.ballot
    )
    certificate.ballots.append(_ballot(winner, answer, "26", 52, proved=True).ballot_cast.ballot)
    for agent in killed:
        certificate.killed_agents.add(agent_id=agent, reason="DECIDED", sampled_token_count=44)
    for step in opening(agents, digest):
        if isinstance(step, Event) and step.HasField("placed"):
            certificate.placements.extend(step.placed.placements)
    for step, (x0, y0, x1, y1, number) in enumerate(CARDS, 1):
        image = crop(x0, y0, x1, y1, digest).image
        certificate.evidence.add(agent_id=winner, image=image)
        certificate.sights.add(agent_id=winner, step=step, image=image, note=str(number))
    proof = common_pb2.ToolResult(call_id=f"a{winner}-5", parts=[text("proved")])
    proof.proof.answer = answer
    certificate.evidence.add(agent_id=winner, tool_result=proof)
    ledger = certificate.ledger
    ledger.used_token_count, ledger.killed_token_count = 93, 44 * len(killed)
    ledger.generated_token_count = 93 + 44 * len(killed)
    ledger.cost_micro_usd, ledger.tool_call_count, ledger.tool_execution_count = 19, 41, 6
    return event
