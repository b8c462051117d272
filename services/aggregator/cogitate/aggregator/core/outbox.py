"""Effects in the order in which they are to be performed; agents' text is collected in between."""

from __future__ import annotations

from typing import Any

from cogitate.aggregator.core.messages import Delta, Effect, Emit


class Outbox:
    """What the state machine wants done. Text is held back until ``flush`` or the next event."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []
        self._text: dict[int, dict[str, Any]] = {}

    def add(self, effect: Effect) -> None:
        """Appends an effect that is no event."""
        self._effects.append(effect)

    def emit(self, kind: str, **fields: Any) -> None:
        """Appends an event, after the text that was written before it."""
        self.flush()
        self._effects.append(Emit(kind, fields))

    def write(self, delta: Delta) -> None:
        """Collects text: one event then covers several engine steps of all agents."""
        held = self._text.get(delta.agent_id)
        if held is not None and held["is_answer"] != delta.is_answer:
            self.flush()
            held = None
        if held is None:
            self._text[delta.agent_id] = {
                "agent_id": delta.agent_id,
                "attempt": delta.attempt,
                "token_offset": delta.token_offset,
                "token_count": len(delta.token_ids),
                "text": delta.text,
                "is_answer": delta.is_answer,
                "logprob_sum": delta.logprob_sum,
                "tokens": list(delta.tokens),
            }
            return
        held["token_count"] += len(delta.token_ids)
        held["text"] += delta.text
        held["logprob_sum"] += delta.logprob_sum
        held["tokens"] += delta.tokens

    def flush(self) -> None:
        """Turns the text that is held back into an event, by agent id."""
        if self._text:
            deltas = [self._text[agent_id] for agent_id in sorted(self._text)]
            self._text.clear()
            self._effects.append(Emit("deltas", {"deltas": deltas}))

    def take(self) -> list[Effect]:
        """Hands over the effects."""
        effects, self._effects = self._effects, []
        return effects
