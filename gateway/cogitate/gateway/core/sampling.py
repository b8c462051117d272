"""The ranges of sampling parameters, as common.proto writes them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from cogitate.gateway.core.spec import Limits, Sampling
from cogitate.gateway.core.violations import Violation, is_json_object

MAX_STOP: Final = 16
MAX_STOP_BYTES: Final = 128
MAX_LOGIT_BIAS: Final = 300
# The contract leaves these three open.
MAX_STOP_TOKEN_IDS: Final = 256
MAX_LOGPROBS: Final = 20
MAX_REPETITION_PENALTY: Final = 10.0


def violations(sampling: Sampling, limits: Limits) -> Iterator[Violation]:
    """Yields what is out of its range, in the order of the fields."""
    asked = sampling.max_tokens
    most = asked if asked is not None and asked > 0 else limits.max_token_count
    ranges: tuple[tuple[str, float | None, float, float], ...] = (
        ("temperature", sampling.temperature, 0, 2),
        ("top_k", sampling.top_k, 0, math.inf),
        ("min_p", sampling.min_p, 0, 1),
        ("frequency_penalty", sampling.frequency_penalty, -2, 2),
        ("presence_penalty", sampling.presence_penalty, -2, 2),
        ("repetition_penalty", sampling.repetition_penalty, 0, MAX_REPETITION_PENALTY),
        ("max_tokens", sampling.max_tokens, 1, limits.max_token_count),
        ("min_tokens", sampling.min_tokens, 0, most),
        ("logprobs", sampling.logprobs, 0, MAX_LOGPROBS),
    )
    for name, value, low, high in ranges:
        # Negated, so that NaN is refused too.
        if value is not None and not low <= value <= high:
            span = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
            yield Violation(f"sampling_params.{name}", f"must be {span}")
    if sampling.top_p is not None and not 0 < sampling.top_p <= 1:
        yield Violation("sampling_params.top_p", "must be greater than 0, at most 1")
    yield from _stops(sampling)
    if len(sampling.logit_bias) > MAX_LOGIT_BIAS:
        yield Violation("sampling_params.logit_bias", f"has more than {MAX_LOGIT_BIAS} entries")
    elif any(k < 0 or not -100 <= v <= 100 for k, v in sampling.logit_bias.items()):
        yield Violation("sampling_params.logit_bias", "must map token ids to -100 to 100")
    if sampling.json_schema is not None and not is_json_object(sampling.json_schema):
        yield Violation("sampling_params.json_schema", "must be one JSON object")
    if sampling.regex is not None and not sampling.regex:
        yield Violation("sampling_params.regex", "must not be empty")


def _stops(sampling: Sampling) -> Iterator[Violation]:
    if len(sampling.stop) > MAX_STOP:
        yield Violation("sampling_params.stop", f"has more than {MAX_STOP} strings")
    for i, text in enumerate(sampling.stop):
        if not 1 <= len(text.encode()) <= MAX_STOP_BYTES:
            yield Violation(f"sampling_params.stop[{i}]", f"must be 1 to {MAX_STOP_BYTES} bytes")
    if len(sampling.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        yield Violation("sampling_params.stop_token_ids", f"has more than {MAX_STOP_TOKEN_IDS} ids")
    elif any(token < 0 for token in sampling.stop_token_ids):
        yield Violation("sampling_params.stop_token_ids", "must not be negative")
