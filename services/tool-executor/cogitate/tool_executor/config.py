"""The knobs of the tool-executor: COGITATE_TOOL_EXECUTOR_<FIELD>, or --<field>."""

from __future__ import annotations

from dataclasses import dataclass

from cogitate.kit.config import MIB, ServiceConfig, knob
from cogitate.tool_executor.core.policy import Limits
from cogitate.tool_executor.core.sandbox import SandboxLimits


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
    max_tables_bytes: int = knob(
        64 * 1024, "what all tables of a call may hold together", minimum=0, maximum=16 * MIB
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

    python_enabled: bool = knob(True, "offer the tool python where bubblewrap makes a sandbox")
    python_interpreter: str = knob(
        "", "interpreter of that tool; empty takes this one's, or else /usr/bin/python3"
    )
    python_running_count: int = knob(4, "programs running at once", minimum=1, maximum=256)
    python_warm_count: int = knob(
        2, "sandboxes that wait for a program, interpreter up", minimum=0, maximum=256
    )
    python_memory_bytes: int = knob(
        512 * MIB, "address space of a program", minimum=64 * MIB, maximum=1024 * 1024 * MIB
    )
    python_cpu_s: int = knob(
        10, "processor time of a program, all its threads", minimum=1, maximum=3600
    )
    python_threads_count: int = knob(32, "threads of a program", minimum=1, maximum=4096)
    python_tmp_bytes: int = knob(
        16 * MIB, "what fits in a program's /tmp", minimum=65536, maximum=64 * 1024 * MIB
    )
    python_files_count: int = knob(64, "open files of a program", minimum=16, maximum=65536)
    python_written_bytes: int = knob(
        MIB,
        "what a program may write, shown or not; more ends it",
        minimum=1,
        maximum=1024 * MIB,
    )
    mcp_config: str = knob("", "TOML or JSON file that names MCP servers; empty means none")
    mcp_running_count: int = knob(8, "calls running at once on a server", minimum=1, maximum=256)
    mcp_connect_s: float = knob(
        10.0, "time to connect to a server and list its tools", minimum=0.1, maximum=600
    )
    mcp_refresh_s: float = knob(
        30.0, "how often a server's tools are listed again", minimum=0.05, maximum=86_400
    )
    vision_encoder_address: str = knob(
        "127.0.0.1:7103", "vision-encoder that keeps images of MCP servers, host:port"
    )
    mcp_max_images_count: int = knob(
        4, "images shown of one result of a server; 0 shows none", minimum=0, maximum=64
    )
    mcp_max_image_bytes: int = knob(
        4 * MIB, "largest image of a server", minimum=1, maximum=256 * MIB
    )
    mcp_image_timeout_s: float = knob(
        2.0, "how long the vision-encoder may take to store one", minimum=0.01, maximum=60
    )
    mcp_max_message_bytes: int = knob(
        8 * MIB, "largest message of a server; a larger one ends its connection", minimum=1024,
        maximum=1024 * MIB,
    )  # fmt: skip

    @property
    def sandbox_limits(self) -> SandboxLimits:
        """The limits of one program, as the core takes them."""
        return SandboxLimits(
            memory_bytes=self.python_memory_bytes,
            cpu_s=self.python_cpu_s,
            threads_count=self.python_threads_count,
            tmp_bytes=self.python_tmp_bytes,
            files_count=self.python_files_count,
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
