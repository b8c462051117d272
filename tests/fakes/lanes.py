"""A script of many agents that write, call tools and vote; the same for the same numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator

from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb2

from tests.fakes.aggregator import Step, Wait

WORDS = (
    "the red card at the top says ten and the one below it three so both together make thirteen "
    "which is still far from the target unless one multiplies first let me look again at the board "
    "there is another number in the last row that I have not read yet"
).split()
PROVIDERS = (("aurora-1", "aurora", "eu-north"), ("borealis-1", "borealis", "us-west"))
TOOL_EVERY = 48


def lanes(agents: int, tokens: int, step_s: float, dissent: float = 0.2) -> Iterator[Step]:
    """`tokens` steps, in each of which every agent writes one token; every 48th calls a tool."""
    dice = random.Random(agents * 1009 + tokens)
    event = pb2.ContemplationEvent
    yield event(
        accepted=pb2.Accepted(
            model="mini", strategy="auto", quorum="unbeatable", agent_count=agents, seed=7
        )
    )
    placed = pb2.Placed(policy="gang")
    for i, (endpoint, provider, region) in enumerate(PROVIDERS):
        mine = range(i * agents // 2, (i + 1) * agents // 2)
        placed.placements.add(
            endpoint_id=endpoint, provider=provider, region=region, agent_ids=mine,
            reason=f"{len(mine)} of {agents} agents; 2 failure domains were asked for",
        )  # fmt: skip
    yield event(placed=placed)
    for i in range(agents):
        endpoint, provider, _ = PROVIDERS[2 * i // agents]
        started = pb2.AgentStarted(agent_id=i, attempt=1, endpoint_id=endpoint, provider=provider)
        yield event(agent_started=started)
    for step in range(tokens):
        yield Wait(step_s)
        yield event(
            deltas=pb2.AgentDeltas(
                deltas=[
                    pb2.AgentTextDelta(
                        agent_id=i, attempt=1, token_offset=step, token_count=1,
                        text=(" " if step else "") + dice.choice(WORDS),
                    )
                    for i in range(agents)
                ]
            )
        )  # fmt: skip
        for i in range(agents):
            if (step + 3 * i) % TOOL_EVERY == TOOL_EVERY - 1:
                yield from _calls(i, step)
    yield from _ending(agents, tokens, dice, dissent)


def _calls(agent: int, step: int) -> Iterator[Step]:
    event = pb2.ContemplationEvent
    call = common.ToolCall(
        call_id=f"a{agent}.{step}", name="calculator", arguments_json=f'{{"expression":"{step}+3"}}'
    )
    yield event(tool_call_started=pb2.ToolCallStarted(agent_id=agent, call=call))
    result = common.ToolResult(call_id=call.call_id, parts=[common.Part(text=str(step + 3))])
    finished = pb2.ToolCallFinished(agent_id=agent, call_id=call.call_id, result=result)
    yield event(tool_call_finished=finished)


def _ending(agents: int, tokens: int, dice: random.Random, dissent: float) -> Iterator[Step]:
    event = pb2.ContemplationEvent
    certificate = common.Certificate(
        strategy="auto", quorum="unbeatable", decision="enough agree", seed=7, model="mini"
    )
    voters = max(1, agents * 3 // 4)
    for i in range(voters):
        key = "72" if i == 0 or dice.random() >= dissent else "68"
        ballot = certificate.ballots.add(
            agent_id=i, attempt=1, answer=f"The sum is {key}.", key=key, weight=1.0,
            sampled_token_count=tokens,
        )  # fmt: skip
        yield event(ballot_cast=pb2.BallotCast(ballot=ballot, leader_key="72", ballot_count=i + 1))
    yield event(decided=pb2.Decided(quorum="unbeatable", key="72", reason="enough agree"))
    for i in range(voters, agents):
        killed = certificate.killed_agents.add(
            agent_id=i, reason="DECIDED", sampled_token_count=tokens
        )
        yield event(agent_killed=pb2.AgentKilled(agent=killed))
    ledger = certificate.ledger
    ledger.generated_token_count = agents * tokens
    ledger.used_token_count = voters * tokens
    ledger.killed_token_count = (agents - voters) * tokens
    ledger.cost_micro_usd = 40
    verdict = common.Verdict(answer="The sum is 72.", key="72", certificate=certificate)
    yield event(verdict=verdict)
