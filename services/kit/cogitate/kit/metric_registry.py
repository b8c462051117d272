"""The registry of metrics: every instrument there is. `docs/metrics.md` is its table."""

from __future__ import annotations

from enum import Enum

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


def _bounds(text: str) -> tuple[float, ...]:
    """Upper bounds of buckets."""
    return tuple(map(float, text.split()))


# The first three as OpenTelemetry's GenAI conventions advise, with finer ones for small models.
_TTFT_S = _bounds("0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10")
_TOKEN_S = _bounds("0.001 0.0025 0.005 0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5")
_REQUEST_S = _bounds("0.01 0.02 0.04 0.08 0.16 0.32 0.64 1.28 2.56 5.12 10.24 20.48 40.96 81.92")
_STEP_S = _bounds("0.0005 0.001 0.002 0.005 0.01 0.02 0.05 0.1 0.2 0.5 1 2 5")
_RPC_S = _bounds("0.0005 0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 5 10 25 50 100")
# As A66 has them, as far as messages go here.
_MESSAGES_BY = _bounds("0 1024 2048 4096 16384 65536 262144 1048576 4194304 16777216 67108864")
_SHARE = _bounds("0.01 0.02 0.05 0.1 0.2 0.3 0.5 0.75 1")
_PLACE_S = _bounds("0.0001 0.0002 0.0005 0.001 0.002 0.005 0.01 0.02 0.05 0.1")
_POSITIONS = _bounds("1 2 4 8 16 32 64 128 256 512 1024 2048 4096")


class Metric(Enum):
    """Every instrument there is: name, kind, unit (UCUM), what it says, bounds of a histogram."""

    # Of requests, by OpenTelemetry's names.
    TIME_TO_FIRST_TOKEN = (
        "gen_ai.server.time_to_first_token", HISTOGRAM, "s",
        "From an agent's arrival to its first token, queue and prefill included.", _TTFT_S,
    )  # fmt: skip
    TIME_PER_OUTPUT_TOKEN = (
        "gen_ai.server.time_per_output_token", HISTOGRAM, "s",
        "Mean time between an agent's tokens, pauses left out; told when it ends.", _TOKEN_S,
    )  # fmt: skip
    REQUEST_DURATION = (
        "gen_ai.server.request.duration", HISTOGRAM, "s",
        "From an agent's arrival to its end, pauses included.", _REQUEST_S,
    )  # fmt: skip
    # Of every server.
    RPC_DURATION = (
        "grpc.server.call.duration", HISTOGRAM, "s",
        "Of an RPC, by gRPC's own name (A66), with grpc.method and grpc.status.", _RPC_S,
    )  # fmt: skip
    RPCS_STARTED = (
        "grpc.server.call.started", COUNTER, "{call}", "RPCs begun, by gRPC's own name (A66).",
    )  # fmt: skip
    RPC_SENT = (
        "grpc.server.call.sent_total_compressed_message_size", HISTOGRAM, "By",
        "What an RPC's answers came to (A66), as grpc.server.call.duration; nothing is compressed.",
        _MESSAGES_BY,
    )  # fmt: skip
    RPC_RECEIVED = (
        "grpc.server.call.rcvd_total_compressed_message_size", HISTOGRAM, "By",
        "What an RPC's requests came to, likewise.", _MESSAGES_BY,
    )  # fmt: skip
    RPCS = "cogitate.rpcs", GAUGE, "{rpc}", "RPCs running, streams that last left out."
    # Of every service that calls another.
    ATTEMPTS_STARTED = (
        "grpc.client.attempt.started", COUNTER, "{attempt}",
        "Calls begun (A66), with grpc.method and grpc.target; a call is one attempt.",
    )  # fmt: skip
    ATTEMPT_DURATION = (
        "grpc.client.attempt.duration", HISTOGRAM, "s",
        "Of a call, from its start to its status (A66), with grpc.status besides.", _RPC_S,
    )  # fmt: skip
    ATTEMPT_SENT = (
        "grpc.client.attempt.sent_total_compressed_message_size", HISTOGRAM, "By",
        "What a call's requests came to (A66), as grpc.client.attempt.duration.", _MESSAGES_BY,
    )  # fmt: skip
    ATTEMPT_RECEIVED = (
        "grpc.client.attempt.rcvd_total_compressed_message_size", HISTOGRAM, "By",
        "What a call's answers came to, likewise.", _MESSAGES_BY,
    )  # fmt: skip
    # Of the queue.
    QUEUE_DURATION = (
        "cogitate.queue.duration", HISTOGRAM, "s",
        "From a gang's arrival to its admission.", _TTFT_S,
    )  # fmt: skip
    GANGS = "cogitate.gangs", GAUGE, "{gang}", "Gangs by state: running, waiting."
    AGENTS = "cogitate.agents", GAUGE, "{agent}", "Agents by state: running, waiting, paused."
    GANGS_OPENED = "cogitate.gangs.opened", COUNTER, "{gang}", "Gangs that were admitted."
    AGENTS_FAILED = "cogitate.agents.failed", COUNTER, "{agent}", "Agents that ended with ERROR."
    # Of steps.
    STEPS = "cogitate.steps", COUNTER, "{step}", "Engine steps that ran the model."
    STEP_DURATION = (
        "cogitate.step.duration", HISTOGRAM, "s",
        "Time of an engine step, sampling included; of at most 200 a collection, evenly picked.",
        _STEP_S,
    )  # fmt: skip
    STEP_POSITIONS = (
        "cogitate.step.positions", HISTOGRAM, "{position}",
        "Positions a step computed; of the same steps.", _POSITIONS,
    )  # fmt: skip
    STEP_TIME = "cogitate.step.time", COUNTER, "s", "Time spent in steps."
    PREEMPTIONS = "cogitate.preemptions", COUNTER, "{agent}", "Agents whose memory was taken away."
    # Of memory.
    KV_BLOCKS = (
        "cogitate.kv.blocks", GAUGE, "{block}",
        "KV blocks by state: used, cached (free, and found again by its prefix), free (the rest).",
    )  # fmt: skip
    KV_UTILIZATION = "cogitate.kv.utilization", GAUGE, "1", "Share of KV blocks in use."
    PREFIX_ASKED = (
        "cogitate.prefix_cache.asked",
        COUNTER,
        "{position}",
        "Prefix positions that were needed.",
    )
    PREFIX_FOUND = (
        "cogitate.prefix_cache.found",
        COUNTER,
        "{position}",
        "Of these, positions found computed.",
    )
    # Of tokens.
    PREFILL_POSITIONS = (
        "cogitate.prefill.positions",
        COUNTER,
        "{position}",
        "Prefix positions computed.",
    )
    TOKENS_SAMPLED = "cogitate.tokens.sampled", COUNTER, "{token}", "Tokens sampled here."
    TOKENS = (
        "cogitate.tokens", COUNTER, "{token}",
        "Tokens of ended agents by fate: used, killed, lost.",
    )  # fmt: skip
    # Of utilisation; gauges are over the last second or more.
    BUSY = "cogitate.engine.utilization", GAUGE, "1", "Share of time in steps."
    FLOPS = "cogitate.engine.flops", COUNTER, "{operation}", "Operations the steps needed."
    TRAFFIC = "cogitate.engine.traffic", COUNTER, "By", "Bytes the steps had to move at least."
    FLOP_RATE = "cogitate.engine.flops_per_s", GAUGE, "{operation}/s", "Operations a second."
    TRAFFIC_RATE = "cogitate.engine.traffic_per_s", GAUGE, "By/s", "Bytes a second, at least."
    FLOP_PEAK = "cogitate.engine.peak_flops_per_s", GAUGE, "{operation}/s", "Measured at start."
    TRAFFIC_PEAK = "cogitate.engine.peak_traffic_per_s", GAUGE, "By/s", "Measured at start."
    FLOP_UTILIZATION = (
        "cogitate.engine.flops_utilization",
        GAUGE,
        "1",
        "Share of the peak while in steps.",
    )
    TRAFFIC_UTILIZATION = (
        "cogitate.engine.traffic_utilization",
        GAUGE,
        "1",
        "Share of the peak while in steps.",
    )
    # Of the process and its device.
    RESIDENT_MEMORY = "cogitate.process.resident_memory", GAUGE, "By", "Resident memory."
    CPU_UTILIZATION = (
        "cogitate.process.cpu_utilization",
        GAUGE,
        "1",
        "Share of the CPUs this process may use.",
    )
    DEVICE_MEMORY = (
        "cogitate.device.memory",
        GAUGE,
        "By",
        "CUDA memory by state: allocated, reserved, free.",
    )
    DEVICE_UTILIZATION = "cogitate.device.utilization", GAUGE, "1", "As NVML says."
    DEVICE_POWER = "cogitate.device.power", GAUGE, "W", "As NVML says."

    # Of the router.
    STEP_PREDICTION_ERROR = (
        "cogitate.router.step_prediction_error", HISTOGRAM, "1",
        "By how much a reported mean step differed from what was predicted, relative.", _SHARE,
    )  # fmt: skip
    PLACEMENT_DURATION = (
        "cogitate.router.placement.duration", HISTOGRAM, "s",
        "Time of a declaration or replacement, from its command to its answer or its queueing.",
        _PLACE_S,
    )  # fmt: skip
    PICK_DURATION = (
        "cogitate.router.pick.duration", HISTOGRAM, "s",
        "From Envoy's question to its answer, by state: picked, or why not.", _RPC_S,
    )  # fmt: skip
    ROUTER_QUEUED = "cogitate.router.queued", GAUGE, "{contemplation}", "Those that wait for room."
    ROUTER_QUEUE_DURATION = (
        "cogitate.router.queue.duration", HISTOGRAM, "s",
        "Wait for room of those that were queued, by state: granted, or why not.", _REQUEST_S,
    )  # fmt: skip

    # Of the aggregator.
    RETRIES = (
        "cogitate.aggregator.retries", COUNTER, "{attempt}",
        "Attempts beside an agent's first, by state: made, refused (the retry budget was spent).",
    )  # fmt: skip
    HEDGES = (
        "cogitate.aggregator.hedges", COUNTER, "{attempt}",
        "Second attempts of slow agents, by state: begun, won (it went on alone).",
    )  # fmt: skip
    STALLS = "cogitate.aggregator.stalls", COUNTER, "{gang}", "Gangs that fell silent for too long."
    BREAKERS_OPENED = (
        "cogitate.aggregator.breakers.opened", COUNTER, "{endpoint}",
        "How often an endpoint was left out for its stalls or failures.",
    )  # fmt: skip
    BREAKERS = (
        "cogitate.aggregator.breakers",
        GAUGE,
        "{endpoint}",
        "Endpoints left out or on trial.",
    )
    RESUME_DURATION = (
        "cogitate.aggregator.resume.duration", HISTOGRAM, "s",
        "From the loss of an agent's endpoint to its next token.", _REQUEST_S,
    )  # fmt: skip

    def __init__(
        self, key: str, kind: str, unit: str, description: str, bounds: tuple[float, ...] = ()
    ) -> None:
        self.key, self.kind, self.unit = key, kind, unit
        self.description, self.bounds = description, bounds
