"""Compiled grammars: tried in a process of its own, compiled in a thread, kept least recently used.

Nothing here runs on the engine's thread but the matchers, one mask and one token at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from cogitate.agent_decoder.core.constraint import Constraint
from cogitate.agent_decoder.grammar_trial import compile_grammar, make_tokenizer, mask_of
from cogitate.agent_decoder.model.gguf_tokenizer import make_tokenizer as make_gguf_tokenizer
from cogitate.kit.errors import InvalidRequest, Rejected
from gguf import GGUFReader
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

# Of wall time, while the trial has less of the processor's (``grammar_trial.TRIAL_CPU_S``).
TRIAL_TIMEOUT_S = 10.0
START_TIMEOUT_S = 60.0


class TokenMatcher:
    """A `core.constraint.Matcher` by llguidance."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    @property
    def complete(self) -> bool:
        """Whether nothing but an end may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def broken(self) -> bool:
        """Whether it met what it does not allow, or a limit."""
        return self._matcher.is_error()

    def allowed(self) -> torch.Tensor | None:
        """Which tokens may come now."""
        mask = mask_of(self._matcher, self._vocab_size)
        return None if self._matcher.is_error() else torch.from_numpy(mask)

    def accept(self, token_id: int) -> None:
        """Takes a token that came."""
        self._matcher.consume_token(token_id)


class TokenGrammar:
    """A `core.constraint.Grammar`; the engine's thread alone makes matchers of it."""

    def __init__(self, compiled: LLMatcher, vocab_size: int) -> None:
        self._compiled, self._vocab_size = compiled, vocab_size

    def matcher(self) -> TokenMatcher:
        """A matcher at the beginning, with what the compiled one knows already."""
        return TokenMatcher(self._compiled.deep_copy(), self._vocab_size)


class Grammars:
    """Compiles what requests bring, one after the other. Used by one event loop."""

    def __init__(
        self,
        read_tokenizer: Callable[[], str],
        vocab_size: int,
        end_ids: Collection[int],
        capacity: int,
    ) -> None:
        """``read_tokenizer`` gives the tokenizer's JSON; it may take long, and is called once."""
        self._read_tokenizer, self._vocab_size = read_tokenizer, vocab_size
        self._end_ids, self._capacity = sorted(end_ids), capacity
        self._cache: OrderedDict[tuple[str, Constraint], TokenGrammar] = OrderedDict()
        self._lock = asyncio.Lock()
        self._json = ""
        self._tokenizer: LLTokenizer | None = None
        self._trial: asyncio.subprocess.Process | None = None

    async def compile(self, tenant: str, constraint: Constraint) -> TokenGrammar:
        """A tenant's own copy: what others compiled must not show in the time. May be cancelled.

        Raises InvalidRequest with a sentence about this grammar.
        """
        key = tenant, constraint
        async with self._lock:
            if (found := self._cache.get(key)) is not None:
                self._cache.move_to_end(key)
                return found
            tokenizer = await self._ready()
            if wrong := await self._tried(constraint):
                raise _refusal(constraint, wrong)
            try:
                compiled = await asyncio.to_thread(
                    compile_grammar, tokenizer, constraint.kind, constraint.text
                )
            except ValueError as error:
                raise _refusal(constraint, str(error)) from None
            made = self._cache[key] = TokenGrammar(compiled, self._vocab_size)
            while len(self._cache) > self._capacity:
                self._cache.popitem(last=False)
            return made

    async def prepare(self) -> None:
        """Gets ready for the first grammar, which would else wait half a second and more."""
        async with self._lock:
            await self._ready()

    async def _ready(self) -> LLTokenizer:
        if self._tokenizer is None:
            self._json = await asyncio.to_thread(self._read_tokenizer)
            self._tokenizer = await asyncio.to_thread(
                make_tokenizer, self._json, self._vocab_size, self._end_ids
            )
        if self._trial is None or self._trial.returncode is not None:
            await self._start_trial()
        return self._tokenizer

    async def close(self) -> None:
        """Ends the trial's process."""
        trial, self._trial = self._trial, None
        if trial is not None:
            with contextlib.suppress(ProcessLookupError):
                trial.kill()
            await trial.wait()

    async def _tried(self, constraint: Constraint) -> str:
        """What a process that may be lost finds wrong with it; an empty text if nothing."""
        asked = json.dumps({"kind": constraint.kind, "text": constraint.text})
        answer = await self._ask(asked, TRIAL_TIMEOUT_S)
        if not answer:
            return "it is too complex: compiling it takes too long"
        wrong: str = json.loads(answer)["wrong"]
        return wrong

    async def _start_trial(self) -> None:
        self._trial = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cogitate.agent_decoder.grammar_trial",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        first = {
            "tokenizer": self._json, "vocab_size": self._vocab_size, "end_ids": self._end_ids
        }  # fmt: skip
        # The first grammar, which is fine, shows that it is ready.
        ready = {"kind": "regex", "text": "a"}
        answer = await self._ask(f"{json.dumps(first)}\n{json.dumps(ready)}", START_TIMEOUT_S)
        if not answer:
            raise Rejected("grammars cannot be compiled here now", retry_after_s=1.0)

    async def _ask(self, line: str, timeout_s: float) -> bytes:
        """The answer, or nothing: the process is then ended."""
        trial, answer = self._trial, b""
        assert trial is not None and trial.stdin is not None and trial.stdout is not None
        try:
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(timeout_s):
                    trial.stdin.write(line.encode() + b"\n")
                    await trial.stdin.drain()
                    answer = await trial.stdout.readline()
            return answer
        finally:
            if not answer:  # cancelled, too: a late answer would be taken for the next one's
                await self.close()


def read_tokenizer(model: Path) -> str:
    """The tokenizer's JSON of a checkpoint that was loaded before."""
    file = model / "tokenizer.json"
    if file.is_file():
        made: str = Tokenizer.from_file(str(file)).to_str()
        return made
    (gguf,) = sorted(model.glob("*.gguf"))
    fields = {name: field.contents() for name, field in GGUFReader(gguf).fields.items()}
    made = make_gguf_tokenizer(fields).to_str()
    return made


def _refusal(constraint: Constraint, wrong: str) -> InvalidRequest:
    return InvalidRequest(
        f"the {constraint.kind} cannot be followed: {wrong}",
        field=f"sampling_params.{constraint.kind}",
    )
