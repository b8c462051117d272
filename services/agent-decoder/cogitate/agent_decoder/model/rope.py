"""How far RoPE turns each pair a position: the plain table and its scalings, in float64.

Source: Llama 3.1's scaling as in Hugging Face's implementation; "factors" is what llama.cpp keeps
of any scaling: one divisor for each pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

SCALINGS = ("default", "linear", "llama3", "factors")


def rope_frequencies(
    scaling: Mapping[str, Any], *, theta: float, head_dim: int, max_positions: int
) -> tuple[float, ...]:
    """Radians a position, (D/2,); empty where nothing is scaled.

    Raises ValueError for a scaling that is unknown or incomplete.
    """
    plain = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return ()
    if kind == "linear":
        factor = _number(scaling, "factor")
        return tuple(f / factor for f in plain)
    if kind == "factors":
        factors = scaling.get("factors")
        if not isinstance(factors, list) or len(factors) != len(plain):
            raise ValueError(f"rope_scaling needs {len(plain)} factors")
        return tuple(f / _positive(by, "factors") for f, by in zip(plain, factors, strict=True))
    if kind == "llama3":
        return _llama3(plain, scaling, max_positions)
    raise ValueError(
        f"rope_scaling of type {str(kind)[:32]!r} is not supported; there is: {', '.join(SCALINGS)}"
    )


def _llama3(
    plain: list[float], scaling: Mapping[str, Any], max_positions: int
) -> tuple[float, ...]:
    """Long waves are stretched by the factor, short ones kept, those between mixed."""
    factor = _number(scaling, "factor")
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    original = _number(scaling, "original_max_position_embeddings", max_positions)
    if high <= low:
        raise ValueError("rope_scaling's high_freq_factor is not above its low_freq_factor")

    def scaled(frequency: float) -> float:
        turns = original * frequency / (2 * math.pi)
        kept = min(1.0, max(0.0, (turns - low) / (high - low)))
        return frequency * (kept + (1 - kept) / factor)

    return tuple(map(scaled, plain))


def _number(scaling: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = scaling.get(name, default)
    if value is None:
        raise ValueError(f"rope_scaling says no {name}")
    return _positive(value, name)


def _positive(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"rope_scaling's {name} is not a number above 0")
    return float(value)
