"""Events in, view out: what every agent has written, called and voted so far. Pure.

Invariants (test_cli_view):
1. `reduce` never changes a view; an event it does not know leaves the view as it is.
2. An agent's pieces of text are in token order, and a retraction removes exactly those from its
   offset on.
3. A lane's state moves on events only:

    waiting ─started─► thinking ◄─result─► tool ─► voted | killed | lost
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2

WAITING: Final = "waiting"
THINKING: Final = "thinking"
TOOL: Final = "tool"
VOTED: Final = "voted"
KILLED: Final = "killed"
LOST: Final = "lost"

Region = tuple[int, int, int, int]


@dataclass(frozen=True)
class Crop:
    """An image or a region of it, by content; the region is in per mille."""

    digest: str
    region: Region | None


@dataclass(frozen=True)
class Piece:
    """Text as one delta brought it."""

    token_offset: int
    text: str


@dataclass(frozen=True)
class Said:
    """Text an agent wrote, uninterrupted."""

    pieces: tuple[Piece, ...]
    is_answer: bool = False

    @property
    def text(self) -> str:
        """The text."""
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class Called:
    """A tool call; `state` is "running", "done", "error" or "client"."""

    call_id: str
    name: str
    arguments: str
    state: str = "running"
    result: str = ""
    crop: Crop | None = None
    duration_s: float = 0.0
    shared: bool = False
    proof: str = ""


Item = Said | Called


@dataclass(frozen=True)
class Vote:
    """A ballot."""

    answer: str
    key: str
    proved: bool
    abstained: bool


@dataclass(frozen=True)
class Lane:
    """One agent."""

    agent_id: int
    attempt: int = 0
    endpoint_id: str = ""
    provider: str = ""
    role: str = ""
    hint: str = ""
    state: str = WAITING
    items: tuple[Item, ...] = ()
    tokens: int = 0
    vote: Vote | None = None
    kill_reason: str = ""

    @property
    def is_over(self) -> bool:
        """True if nothing more comes from it."""
        return self.state in (VOTED, KILLED, LOST)


@dataclass(frozen=True)
class Place:
    """Where agents run, and why."""

    endpoint_id: str
    provider: str
    region: str
    agent_ids: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class View:
    """A contemplation as far as its events told; `tally` holds ballots by key, most first."""

    contemplation_id: str = ""
    trace_id: str = ""
    model: str = ""
    strategy: str = ""
    quorum: str = ""
    seed: int = 0
    images: tuple[Crop, ...] = ()
    lanes: Mapping[int, Lane] = field(default_factory=dict)
    places: tuple[Place, ...] = ()
    round: int = 0
    round_role: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tally: tuple[tuple[str, int], ...] = ()
    abstentions: int = 0
    decided: str = ""
    notes: tuple[str, ...] = ()
    verdict_text: str = ""
    ending: str = ""
    first_time_s: float = 0.0
    last_time_s: float = 0.0

    @property
    def elapsed_s(self) -> float:
        """Time from the first event to the last."""
        return max(0.0, self.last_time_s - self.first_time_s)

    @property
    def tokens(self) -> int:
        """Tokens all agents have sampled."""
        return sum(lane.tokens for lane in self.lanes.values())


def reduce(view: View, event: pb2.ContemplationEvent) -> View:
    """Returns the view after `event`."""
    kind = event.WhichOneof("event")
    now_s = event.event_time.seconds + event.event_time.nanos / 1e9
    view = replace(view, first_time_s=view.first_time_s or now_s, last_time_s=now_s)
    handler = _HANDLERS.get(kind or "")
    return view if handler is None else handler(view, getattr(event, str(kind)))


def waiting_text(event: pb2.Queued) -> str:
    """Returns how long the wait for room is."""
    about = event.expected_duration.ToNanoseconds() / 1e9
    soon = f", about {about:.1f} s" if event.HasField("expected_duration") else ""
    return f"waits for room behind {event.ahead_count} others{soon}"


def call_text(name: str, arguments_json: str) -> str:
    """Returns a call as a person would write it: `zoom(25, 33, 50, 67)`."""
    try:
        values = json.loads(arguments_json or "{}")
    except (ValueError, RecursionError):
        return f"{name}(…)"
    if not isinstance(values, dict):
        return f"{name}(…)"
    shown = [v for k, v in values.items() if not (k == "image" and v == 0)]
    return f"{name}({', '.join(_flat(value) for value in shown)})"


def _flat(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_flat(one) for one in value)
    return value if isinstance(value, str) else json.dumps(value)


def _accepted(view: View, event: pb2.Accepted) -> View:
    return replace(
        view,
        contemplation_id=event.contemplation_id,
        trace_id=event.trace.trace_id,
        model=event.model,
        strategy=event.strategy,
        quorum=event.quorum,
        seed=event.seed,
        images=tuple(_crop(image) for image in event.images),
        lanes=dict(
            sorted({**{i: Lane(i) for i in range(event.agent_count)}, **view.lanes}.items())
        ),
    )


def _placed(view: View, event: pb2.Placed) -> View:
    places = tuple(
        Place(one.endpoint_id, one.provider, one.region, tuple(one.agent_ids), one.reason)
        for one in event.placements
    )
    for place in places:
        for agent_id in place.agent_ids:
            view = _with(view, agent_id, endpoint_id=place.endpoint_id, provider=place.provider)
    return replace(view, places=view.places + places)


def _prefilled(view: View, event: pb2.Prefilled) -> View:
    return replace(
        view,
        prompt_tokens=view.prompt_tokens + event.prompt_token_count,
        cached_tokens=view.cached_tokens + event.cached_token_count,
    )


def _round(view: View, event: pb2.RoundStarted) -> View:
    return replace(view, round=event.round_number, round_role=event.role)


def _agent_started(view: View, event: pb2.AgentStarted) -> View:
    return _with(
        view,
        event.agent_id,
        attempt=event.attempt,
        endpoint_id=event.endpoint_id,
        provider=event.provider,
        hint=event.hint,
        role=event.role,
        state=THINKING,
    )


def _deltas(view: View, event: pb2.AgentDeltas) -> View:
    for delta in event.deltas:
        lane = _lane(view, delta.agent_id)
        piece = Piece(delta.token_offset, delta.text)
        last = lane.items[-1] if lane.items else None
        if isinstance(last, Said) and last.is_answer == delta.is_answer:
            items = (*lane.items[:-1], replace(last, pieces=(*last.pieces, piece)))
        elif delta.text:
            items = (*lane.items, Said((piece,), delta.is_answer))
        else:
            items = lane.items
        state = lane.state if lane.is_over else THINKING
        tokens = max(lane.tokens, delta.token_offset + delta.token_count)
        view = _with(view, delta.agent_id, items=items, state=state, tokens=tokens)
    return view


def _tool_started(view: View, event: pb2.ToolCallStarted) -> View:
    call = event.call
    lane = _lane(view, event.agent_id)
    called = Called(
        call.call_id,
        call.name,
        call_text(call.name, call.arguments_json),
        shared=bool(event.shared_call_id),
    )
    items = (*_without_call(lane.items, call.name), called)
    return _with(view, event.agent_id, items=items, state=TOOL)


def _tool_finished(view: View, event: pb2.ToolCallFinished) -> View:
    lane = _lane(view, event.agent_id)
    result = event.result
    texts = " ".join(part.text.strip() for part in result.parts if part.text)
    images = [part.image for part in result.parts if part.WhichOneof("part") == "image"]
    items = tuple(
        replace(
            item,
            state="error" if result.is_error else "done",
            result=texts,
            crop=_crop(images[0]) if images else None,
            duration_s=event.duration.seconds + event.duration.nanos / 1e9,
            shared=item.shared or event.shared,
            proof=result.proof.answer,
        )
        if isinstance(item, Called) and item.call_id == event.call_id
        else item
        for item in lane.items
    )
    return _with(view, event.agent_id, items=items, state=lane.state if lane.is_over else THINKING)


def _awaiting(view: View, event: pb2.AwaitingClient) -> View:
    for agent_id in event.agent_ids:
        lane = _lane(view, agent_id)
        called = Called(
            event.call.call_id,
            event.call.name,
            call_text(event.call.name, event.call.arguments_json),
            state="client",
        )
        view = _with(view, agent_id, items=(*lane.items, called), state=TOOL)
    return view


def _ballot(view: View, event: pb2.BallotCast) -> View:
    ballot = event.ballot
    vote = Vote(ballot.answer, ballot.key, ballot.proved, ballot.abstained)
    view = _with(
        view,
        ballot.agent_id,
        vote=vote,
        state=VOTED,
        tokens=max(ballot.sampled_token_count, _lane(view, ballot.agent_id).tokens),
    )
    votes = [lane.vote for lane in view.lanes.values() if lane.vote is not None]
    counts: dict[str, int] = {}
    for one in votes:
        if not one.abstained:
            counts[one.key] = counts.get(one.key, 0) + 1
    tally = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return replace(view, tally=tuple(tally), abstentions=sum(one.abstained for one in votes))


def _decided(view: View, event: pb2.Decided) -> View:
    return replace(view, decided=event.reason or f"{event.quorum}: {event.key}")


def _killed(view: View, event: pb2.AgentKilled) -> View:
    agent = event.agent
    return _with(
        view,
        agent.agent_id,
        state=KILLED,
        kill_reason="".join(filter(str.isprintable, agent.reason)),  # it stands in a border
        tokens=max(agent.sampled_token_count, _lane(view, agent.agent_id).tokens),
    )


def _lost(view: View, event: pb2.AgentLost) -> View:
    where = f" on {event.endpoint_id}" if event.endpoint_id else ""
    what = "goes on elsewhere" if event.resumed else "is gone"
    note = f"agent {event.agent_id} was lost{where} ({event.reason.lower()}) and {what}"
    view = _with(view, event.agent_id, state=WAITING if event.resumed else LOST)
    return replace(view, notes=(*view.notes, note))


def _retracted(view: View, event: pb2.TextRetracted) -> View:
    lane = _lane(view, event.agent_id)
    items: list[Item] = []
    for item in lane.items:
        if isinstance(item, Said):
            kept = tuple(p for p in item.pieces if p.token_offset < event.token_offset)
            if kept:
                items.append(replace(item, pieces=kept))
            if len(kept) < len(item.pieces):
                break  # whatever came later was written after the text that is withdrawn
        else:
            items.append(item)
    return _with(view, event.agent_id, items=tuple(items), tokens=event.token_offset)


def _degraded(view: View, event: pb2.FeatureDegraded) -> View:
    where = f" on {event.endpoint_id}" if event.endpoint_id else ""
    return replace(view, notes=(*view.notes, f"{event.feature}{where}: {event.message}"))


def _steered(view: View, event: pb2.Steered) -> View:
    return replace(view, notes=(*view.notes, "the user added a message"))


def _widened(view: View, event: pb2.Widened) -> View:
    note = f"{len(event.agent_ids)} more agents begin: {event.reason}"
    return replace(view, notes=(*view.notes, note))


def _queued(view: View, event: pb2.Queued) -> View:
    return replace(view, notes=(*view.notes, waiting_text(event)))


def _verdict_delta(view: View, event: pb2.VerdictDelta) -> View:
    return replace(view, verdict_text=view.verdict_text + event.text)


def _verdict(view: View, event: common_pb2.Verdict) -> View:
    return replace(view, verdict_text=event.answer, ending="verdict")


def _failed(view: View, event: pb2.Failed) -> View:
    return replace(view, verdict_text=event.message, ending="failed")


def _cancelled(view: View, event: pb2.ContemplationCancelled) -> View:
    return replace(view, verdict_text=event.reason, ending="cancelled")


_HANDLERS: Final[Mapping[str, Any]] = {
    "accepted": _accepted,
    "placed": _placed,
    "prefilled": _prefilled,
    "round_started": _round,
    "widened": _widened,
    "queued": _queued,
    "agent_started": _agent_started,
    "deltas": _deltas,
    "tool_call_started": _tool_started,
    "tool_call_finished": _tool_finished,
    "awaiting_client": _awaiting,
    "ballot_cast": _ballot,
    "decided": _decided,
    "agent_killed": _killed,
    "agent_lost": _lost,
    "text_retracted": _retracted,
    "feature_degraded": _degraded,
    "steered": _steered,
    "verdict_delta": _verdict_delta,
    "verdict": _verdict,
    "failed": _failed,
    "cancelled": _cancelled,
}


def _lane(view: View, agent_id: int) -> Lane:
    return view.lanes.get(agent_id) or Lane(agent_id)


def _with(view: View, agent_id: int, **changes: Any) -> View:
    lane = replace(_lane(view, agent_id), **changes)
    return replace(view, lanes=dict(sorted({**view.lanes, agent_id: lane}.items())))


def _crop(image: common_pb2.ImagePart) -> Crop:
    box = image.box
    region = (
        (box.x0_permille, box.y0_permille, box.x1_permille, box.y1_permille)
        if image.HasField("box")
        else None
    )
    return Crop(image.digest, region)


def _without_call(items: tuple[Item, ...], name: str) -> tuple[Item, ...]:
    """Drops the call's own text from the end of what was said: it is shown as a call instead."""
    last = items[-1] if items else None
    if not isinstance(last, Said):
        return items
    text = last.text
    start = text.rfind(f"{name}(")
    if start < 0 or not text.rstrip().endswith(")"):
        return items
    kept: list[Piece] = []
    length = 0
    for piece in last.pieces:
        room = start - length
        length += len(piece.text)
        if room > 0:
            kept.append(replace(piece, text=piece.text[:room]))
    if not any(piece.text.strip() for piece in kept):
        return items[:-1]
    return (*items[:-1], replace(last, pieces=tuple(kept)))
