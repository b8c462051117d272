"""Compiles grammars, and tries unknown ones in a process of its own: some take for ever to compile.

As a program (``python -m cogitate.agent_decoder.grammar_trial``) it reads JSON lines: first the
vocabulary, then one grammar a line; it answers each with a line, what is wrong or an empty text.
A grammar that takes too long or too much memory ends the process, and is known by that.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import signal
import sys
import time
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

# What one mask may cost on the engine's thread: tens of milliseconds at the very most.
LIMITS = LLParserLimits(
    initial_lexer_fuel=200_000,
    step_lexer_fuel=50_000,
    step_max_items=20_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
TRIAL_CPU_S = 2.0
TRIAL_MEMORY_BYTES = 1024**3  # beyond what the process has when it is ready
TRIAL_TOKENS = 48
MAX_STEP_CPU_S = 0.05
MAX_MESSAGE_CHARS = 200
# JSON without blanks between its parts: a model that is unsure of what comes next would write them
# until its tokens end. A schema that wants them says so in `x-guidance`.
COMPACT: Any = {"whitespace_flexible": False}


def make_tokenizer(tokenizer_json: str, vocab_size: int, end_ids: list[int]) -> LLTokenizer:
    """The vocabulary as llguidance has it. No added token is ever text. About a second if large."""
    made: dict[str, Any] = json.loads(tokenizer_json)
    made |= {"truncation": None, "padding": None, "post_processor": None}
    for token in made.get("added_tokens", ()):
        token["special"] = True
    return LLTokenizer(json.dumps(made), n_vocab=vocab_size, eos_token=end_ids)


def compile_grammar(tokenizer: LLTokenizer, kind: str, text: str) -> LLMatcher:
    """A matcher at the beginning, its first mask made. Raises ValueError with a phrase."""
    if kind == "regex":
        grammar = LLMatcher.grammar_from_regex(text)
    else:
        takes_options = isinstance(json.loads(text), dict)
        defaults = COMPACT if takes_options else None
        grammar = LLMatcher.grammar_from_json_schema(text, defaults=defaults)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if not matcher.is_error():
        mask_of(matcher, tokenizer.vocab_size)
    if matcher.is_error():
        raise ValueError(_phrase(matcher.get_error()))
    return matcher


def mask_of(matcher: LLMatcher, vocab_size: int) -> np.ndarray:
    """Which tokens may come, (V,) bool."""
    bits = np.zeros((vocab_size + 31) // 32, dtype=np.int32)
    matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
    return np.unpackbits(bits.view(np.uint8), count=vocab_size, bitorder="little").view(bool)


def _phrase(error: str) -> str:
    """The line that says what is wrong; others show where, at length."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("error:")), lines[0] if lines else "")
    return said.removeprefix("error:").strip()[:MAX_MESSAGE_CHARS]


def _try(tokenizer: LLTokenizer, kind: str, text: str) -> str:
    """Compiles and walks a little way in it; what is wrong, or an empty text."""
    matcher, dice = compile_grammar(tokenizer, kind, text), random.Random(0)
    for _ in range(TRIAL_TOKENS):
        began = time.process_time()
        tokens = np.flatnonzero(mask_of(matcher, tokenizer.vocab_size))
        if matcher.is_error() or time.process_time() - began > MAX_STEP_CPU_S:
            return "it is too complex"
        if matcher.is_stopped():
            break
        matcher.consume_token(int(dice.choice(tokens)))
    return ""


def _limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError):  # not everywhere
        with open("/proc/self/statm", encoding="ascii") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + TRIAL_MEMORY_BYTES,) * 2)


def main() -> None:
    """Serves its standard input until it ends."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # by the kernel: no Python needs to run
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's end is this one's
    first = json.loads(sys.stdin.readline())
    tokenizer = make_tokenizer(first["tokenizer"], first["vocab_size"], first["end_ids"])
    _limit_memory()
    for line in sys.stdin:
        asked = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, TRIAL_CPU_S)
        try:
            wrong = _try(tokenizer, asked["kind"], asked["text"])
        except ValueError as error:
            wrong = str(error) or "it cannot be compiled"
        except Exception:
            wrong = "it cannot be compiled"
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        sys.stdout.write(json.dumps({"wrong": wrong}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
