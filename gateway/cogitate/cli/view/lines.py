"""Says a contemplation in plain lines, for pipes and logs. Pure: events in, lines out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cogitate.cli.view.state import call_text, waiting_text
from cogitate.v1 import contemplation_service_pb2 as pb2


class Lines:
    """Holds back each agent's text until it pauses, so that agents do not cut each other short."""

    def __init__(self) -> None:
        self._began_s: float | None = None
        self._texts: dict[int, str] = {}
        self._calls: dict[str, str] = {}

    def feed(self, event: pb2.ContemplationEvent) -> list[str]:
        """Returns what is to be printed for `event`, each line with the time it happened."""
        at_s = event.event_time.seconds + event.event_time.nanos / 1e9
        self._began_s = at_s if self._began_s is None else self._began_s
        stamp = f"[{max(0.0, at_s - self._began_s):6.2f} s]"
        # Reasons and messages are other programs' text: a line stays one line.
        return [f"{stamp} {' '.join(line.splitlines())}" for line in self._say(event)]

    def _say(self, event: pb2.ContemplationEvent) -> Iterator[str]:
        match event.WhichOneof("event"):
            case "accepted":
                one = event.accepted
                yield (
                    f"accepted {one.contemplation_id}: {one.model}, {one.agent_count} agents, "
                    f"{one.strategy}, quorum {one.quorum}, seed {one.seed}"
                )
            case "placed":
                for place in event.placed.placements:
                    yield (
                        f"agents {ids(place.agent_ids)} run on {place.endpoint_id} "
                        f"({place.provider}, {place.region}): {place.reason}"
                    )
            case "prefilled" if event.prefilled.prompt_token_count:  # an adapter tells it later
                done = event.prefilled
                yield (
                    f"{done.endpoint_id} read the prompt once: {done.prompt_token_count} "
                    f"positions, {done.cached_token_count} of them cached"
                )
            case "agent_started":
                started = event.agent_started
                if started.hint:
                    yield f"agent {started.agent_id} is told: {started.hint}"
            case "deltas":
                for delta in event.deltas.deltas:
                    held = self._texts.get(delta.agent_id, "") + delta.text
                    self._texts[delta.agent_id] = held
            case "tool_call_started":
                yield from self._tool_started(event.tool_call_started)
            case "tool_call_finished":
                yield from self._tool_finished(event.tool_call_finished)
            case "ballot_cast":
                yield from self._ballot(event.ballot_cast)
            case "decided":
                yield f"decided by {event.decided.quorum}: {event.decided.reason}"
            case "agent_killed":
                one_agent = event.agent_killed.agent
                yield from self._flush(one_agent.agent_id)
                yield (
                    f"agent {one_agent.agent_id} killed: {one_agent.reason}, after "
                    f"{one_agent.sampled_token_count} tokens"
                )
            case _:
                yield from self._rarer(event)

    def _rarer(self, event: pb2.ContemplationEvent) -> Iterator[str]:
        match event.WhichOneof("event"):
            case "round_started":
                if event.round_started.round_number > 1:
                    yield f"round {event.round_started.round_number}: {event.round_started.role}"
            case "queued":
                yield waiting_text(event.queued)
            case "widened":
                widened = event.widened
                yield f"agents {ids(widened.agent_ids)} begin, too: {widened.reason}"
            case "awaiting_client":
                call = event.awaiting_client.call
                waiting = ids(event.awaiting_client.agent_ids)
                yield f"agents {waiting} wait for {call_text(call.name, call.arguments_json)}"
            case "agent_lost":
                lost = event.agent_lost
                what = "goes on elsewhere" if lost.resumed else "is gone"
                yield f"agent {lost.agent_id} lost on {lost.endpoint_id}: {lost.reason}; it {what}"
            case "text_retracted":
                self._texts.pop(event.text_retracted.agent_id, None)
                yield f"agent {event.text_retracted.agent_id} takes text back"
            case "feature_degraded":
                missing = event.feature_degraded
                yield f"left out: {missing.feature}: {missing.message}"
            case "steered":
                yield "the user added a message"
            case "verdict" | "failed" | "cancelled":
                for agent_id in sorted(self._texts):
                    yield from self._flush(agent_id)

    def _tool_started(self, started: pb2.ToolCallStarted) -> Iterator[str]:
        call = started.call
        said = call_text(call.name, call.arguments_json)
        self._calls[call.call_id] = said
        held = self._texts.get(started.agent_id, "")
        at = held.rfind(f"{call.name}(")
        if at >= 0:
            self._texts[started.agent_id] = held[:at]
        yield from self._flush(started.agent_id)
        shared = ", as a sibling did" if started.shared_call_id else ""
        yield f"agent {started.agent_id} calls {said}{shared}"

    def _tool_finished(self, finished: pb2.ToolCallFinished) -> Iterator[str]:
        result = finished.result
        said = self._calls.pop(finished.call_id, "the tool")
        texts = " ".join(part.text.strip() for part in result.parts if part.text)
        images = sum(part.WhichOneof("part") == "image" for part in result.parts)
        shown = texts or ("a crop" if images else "nothing")
        verb = "fails" if result.is_error else "gives"
        yield f"agent {finished.agent_id}: {said} {verb} {shown}"

    def _ballot(self, cast: pb2.BallotCast) -> Iterator[str]:
        ballot = cast.ballot
        yield from self._flush(ballot.agent_id)
        if ballot.abstained:
            yield f"agent {ballot.agent_id} abstains"
            return
        proved = ", proved by a tool" if ballot.proved else ""
        yield (
            f"agent {ballot.agent_id} votes {ballot.key}{proved} "
            f"({cast.leader_key} leads with {cast.leader_count} of {cast.ballot_count})"
        )

    def _flush(self, agent_id: int) -> Iterator[str]:
        text = " ".join(self._texts.pop(agent_id, "").split())
        if text:
            yield f"agent {agent_id}: {text}"


def ids(values: Iterable[int]) -> str:
    """Returns agent ids as ranges: "0–3, 6"."""
    numbers = sorted(values)
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in ranges)
