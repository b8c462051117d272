"""Chat completions: pieces of one choice or several, as chunks of a stream or as one object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cogitate.gateway.http.openai.asking import call_id
from cogitate.gateway.http.openai.summary import counts, summary
from cogitate.gateway.http.openai.telling import (
    Answered,
    Called,
    Ended,
    Piece,
    Reasoned,
    Telling,
)
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2

DONE: Final = b"data: [DONE]\n\n"
_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass
class Choice:
    """One answer on its way."""

    index: int
    telling: Telling
    reasoning: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    verdict: common_pb2.Verdict | None = None
    # Tokens of the answer as OpenAI tells them; None where nobody asked.
    tokens: list[dict[str, Any]] | None = None
    _newest: list[dict[str, Any]] = field(default_factory=list)

    def take(self, piece: Piece) -> dict[str, Any]:
        """Books a piece; returns the delta that tells of it."""
        match piece:
            case Reasoned(text):
                self.reasoning.append(text)
                return {"reasoning_content": text}
            case Answered(text, tokens):
                if self.tokens is not None:
                    self._newest = [_scored(one) for one in tokens]
                    self.tokens += self._newest
                return {"content": text}
            case Called(calls):
                self.finish_reason = "tool_calls"
                self.calls = [self._call(call) for call in calls]
                return {"tool_calls": [{"index": i} | c for i, c in enumerate(self.calls)]}
            case Ended(verdict, reason):
                self.finish_reason, self.verdict = reason, verdict
                return {}

    def _call(self, call: common_pb2.ToolCall) -> dict[str, Any]:
        return {
            "id": call_id(self.telling.contemplation_id, call.call_id),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments_json},
        }

    def whole(self) -> dict[str, Any]:
        """The choice as one object."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": self.telling.answer if self.verdict else self.telling.answer or None,
            "refusal": None,
        }
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.calls:
            message["tool_calls"] = self.calls
        return {
            "index": self.index,
            "message": message,
            "finish_reason": self.finish_reason,
            "logprobs": _logprobs(self.tokens),
        }

    def take_logprobs(self) -> dict[str, Any] | None:
        """What the newest piece of the answer was sampled as; nothing twice."""
        newest, self._newest = self._newest, []
        return _logprobs(newest or None)


def _logprobs(tokens: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    return None if tokens is None else {"content": tokens, "refusal": None}


def _scored(one: pb2.TokenLogprob) -> dict[str, Any]:
    told = _token(one)
    told["top_logprobs"] = [_token(other) for other in one.top]
    return told


def _token(one: pb2.TokenLogprob) -> dict[str, Any]:
    # The bytes of half a character are not known here.
    text = one.token
    whole = "\ufffd" not in text
    return {
        "token": text,
        "logprob": one.logprob,
        "bytes": list(text.encode()) if whole else None,
    }


class Completion:
    """A chat completion of one or more choices."""

    def __init__(self, choices: Sequence[Choice], *, with_usage: bool) -> None:
        self.choices, self._with_usage = choices, with_usage
        self._prefixes: dict[int, str] = {}

    def chunk(self, choice: Choice, pieces: Sequence[Piece]) -> bytes:
        """Returns the frames that tell of `pieces`."""
        return b"".join(self._frame(choice, choice.take(piece)) for piece in pieces)

    def opening(self, choice: Choice) -> bytes:
        """Returns the first frame of a choice: who speaks."""
        return self._frame(choice, {"role": "assistant", "content": ""})

    def extension(self, choice: Choice, event: dict[str, Any]) -> bytes:
        """Returns a frame with an event of the agents, which holds no choice."""
        told = self._head() | {"choices": [], "cogitate": {"index": choice.index, "event": event}}
        return f"data: {_dumps(told)}\n\n".encode()

    def end(self) -> bytes:
        """Returns the last frames."""
        frames = b""
        if self._with_usage:
            told = self._head() | {"choices": [], "usage": self._usage()}
            frames = f"data: {_dumps(told)}\n\n".encode()
        return frames + DONE

    def whole(self) -> dict[str, Any]:
        """The completion as one object."""
        first = self.choices[0]
        told = self._head() | {"object": "chat.completion"}
        told |= {"choices": [one.whole() for one in self.choices], "usage": self._usage()}
        told["system_fingerprint"] = _fingerprint(first.verdict)
        if first.verdict is not None:
            told["cogitate"] = summary(first.telling, first.verdict)
        return told

    def _head(self) -> dict[str, Any]:
        first = self.choices[0].telling
        return {
            "id": f"chatcmpl-{first.contemplation_id}",
            "object": "chat.completion.chunk",
            "created": int(first.accept_time_s),
            "model": first.accepted.model,
        }

    def _frame(self, choice: Choice, delta: dict[str, Any]) -> bytes:
        # The head is the same in thousands of frames: written once.
        prefix = self._prefixes.get(choice.index)
        if prefix is None:
            head = _dumps(self._head())[:-1]
            prefix = f'data: {head},"choices":[{{"index":{choice.index},"delta":'
            self._prefixes[choice.index] = prefix
        finish = _dumps(choice.finish_reason)
        scores = "null" if choice.tokens is None else _dumps(choice.take_logprobs())
        tail = f',"logprobs":{scores},"finish_reason":{finish}}}]'
        if choice.verdict is not None:
            own = summary(choice.telling, choice.verdict)
            print_ = _dumps(_fingerprint(choice.verdict))
            tail += f',"system_fingerprint":{print_},"cogitate":{_dumps(own)}'
        return f"{prefix}{_dumps(delta)}{tail}}}\n\n".encode()

    def _usage(self) -> dict[str, Any]:
        ended = [(one.telling, one.verdict) for one in self.choices if one.verdict is not None]
        sums = [counts(telling, verdict) for telling, verdict in ended] or [(0, 0, 0, 0)]
        prompt, cached, sampled, reasoning = (sum(column) for column in zip(*sums, strict=True))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": sampled,
            "total_tokens": prompt + sampled,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }


def _fingerprint(verdict: common_pb2.Verdict | None) -> str | None:
    """Which builds answered: the same fingerprint and seed give the same answer."""
    digests = sorted(set(verdict.certificate.build_digests.values())) if verdict else []
    return "-".join(one.removeprefix("sha256:")[:12] for one in digests) or None
