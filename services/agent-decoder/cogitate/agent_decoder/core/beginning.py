"""How an agent begins, and what a token does to its transcript.

A resumed agent is rebuilt by pushing the tokens of its earlier attempt through the same parser that
reads new ones, so that it stands where it stood.
"""

from __future__ import annotations

from collections import deque

from cogitate.agent_decoder.core.sequence import Agent, Position, Sequence
from cogitate.agent_decoder.core.starts import AgentStart, GangRules, InjectedPositions
from cogitate.agent_decoder.core.transcript import ControlTokens, Transcript, Turn


def begin(start: AgentStart, rules: GangRules, *, instant: bool) -> Agent:
    """Makes an agent that waits for its gang's prefix, fresh or resumed."""
    params, control = start.params, rules.control
    transcript = Transcript(
        control,
        rules.decode,
        stop=params.stop,
        answers_only_marked=rules.marks_answers,
        answer_calls=start.grammar is None,
    )
    if instant:
        transcript.open_answer()
    agent = Agent(
        start.agent_id,
        start.attempt,
        params,
        start.seed,
        transcript,
        Sequence(pending=deque(start.opening)),
        granted=min(start.granted or params.max_tokens, params.max_tokens),
        stop_ids=frozenset(params.stop_token_ids)
        | (frozenset() if params.ignore_eos else control.end),
        end_ids=control.end,
        opening=start.opening,
        matcher=start.grammar.matcher() if start.grammar else None,
        pending_call_id=start.pending_call_id,
        lowest_confidence=start.lowest_confidence,
    )
    _replay(agent, start, control)
    return agent


def push_token(agent: Agent, token_id: int, control: ControlTokens) -> tuple[str, Turn]:
    """Reads one sampled token: the text that is complete with it, and what it did."""
    if agent.params.ignore_eos and token_id in control.end:
        return "", Turn.NONE
    stops, matcher = agent.may_stop, agent.matcher
    if matcher is not None and agent.transcript.is_answer and token_id not in control.end:
        matcher.accept(token_id)
    text, turn = agent.transcript.push(token_id, stops=stops)
    stopped = stops and token_id in agent.params.stop_token_ids
    if turn is Turn.NONE and (stopped or (matcher is not None and matcher.complete)):
        return text + agent.transcript.flush(), Turn.STOPPED
    return text, turn


def _replay(agent: Agent, start: AgentStart, control: ControlTokens) -> None:
    """Rebuilds what an earlier attempt did, without showing it again."""
    for segment in start.replay:
        if isinstance(segment, InjectedPositions):
            agent.sequence.pending.extend(segment.positions)
            agent.injections.append((len(agent.sampled), segment.positions, segment.origin))
            agent.num_injected += len(segment.positions)
            agent.last_turn = Turn.NONE
            continue
        for token_id in segment.token_ids:
            _, agent.last_turn = push_token(agent, token_id, control)
            agent.sequence.pending.append(Position(token_id))
            agent.sampled.append(token_id)
            agent.num_calls += agent.last_turn is Turn.CALL_READY
    agent.logprob_sum = start.mean_logprob * len(agent.sampled)
    if agent.last_turn is Turn.CALL_READY and agent.pending_call_id:
        # It waits already: the call was made before, and is not made again.
        agent.last_turn = Turn.NONE
