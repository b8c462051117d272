"""The knobs of the tool-executor: COGITATE_TOOL_EXECUTOR_<FIELD>, or --<field>."""

from __future__ import annotations

from dataclasses import dataclass

from cogitate.kit.config import MIB, ServiceConfig, knob
from cogitate.tool_executor.core.policy import Limits


@dataclass(frozen=True)
class ToolExecutorConfig(ServiceConfig):
    """Runs the tools that agents call."""

    default_timeout_s: float = knob(
        5.0, "time of a call that names none", minimum=0.001, maximum=3600
    )
    max_timeout_s: float = knob(
        30.0, "most time of a call; one that asks for more gets this", minimum=0.001, maximum=3600
    )
    default_output_bytes: int = knob(
        16 * 1024, "output of a call that names no limit", minimum=1, maximum=16 * MIB
    )
    max_output_bytes: int = knob(
        64 * 1024,
        "most output of a call; one that asks for more gets this",
        minimum=1,
        maximum=16 * MIB,
    )
    max_arguments_bytes: int = knob(
        16 * 1024, "largest arguments of a call", minimum=2, maximum=MIB
    )
    max_arguments_depth_count: int = knob(
        8, "deepest nesting of a call's arguments", minimum=1, maximum=64
    )
    max_running_count: int = knob(
        8, "calls running at once; more wait for a thread", minimum=1, maximum=1024
    )
    max_calls_count: int = knob(
        256, "calls running or waiting; one more is refused", minimum=1, maximum=100_000
    )
    max_calls_per_tenant_count: int = knob(
        128, "the same of one tenant", minimum=1, maximum=100_000
    )
    result_ttl_s: float = knob(
        600.0, "how long a result answers repetitions of its call", minimum=0, maximum=86_400
    )
    max_results_count: int = knob(
        20_000, "results remembered for that", minimum=0, maximum=10_000_000
    )
    max_results_bytes: int = knob(
        64 * MIB, "memory of the remembered results", minimum=0, maximum=16 * 1024 * MIB
    )
    max_epochs_count: int = knob(
        100_000, "contemplations whose newest owner is remembered", minimum=1, maximum=10_000_000
    )

    @property
    def limits(self) -> Limits:
        """The limits of one call, as the core takes them; a default is never above its maximum."""
        return Limits(
            default_timeout_s=min(self.default_timeout_s, self.max_timeout_s),
            max_timeout_s=self.max_timeout_s,
            default_output_bytes=min(self.default_output_bytes, self.max_output_bytes),
            max_output_bytes=self.max_output_bytes,
        )
