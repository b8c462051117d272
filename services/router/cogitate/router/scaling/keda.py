"""The router as an external scaler of KEDA: what a pool needs, asked for or streamed.

A trigger's metadata names the pool: `model` (required), `provider`, `metrics` (of `agents`, `kv`,
`wait`, by commas), `agentsPerEndpoint`, `kvTarget`, `waitTargetSeconds`. Keys of KEDA's own are
left alone; any other is refused, since a misspelt target would scale by a default.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import grpc
from cogitate.kit.errors import InvalidRequest, Rejected
from cogitate.kit.interceptors import long_lived
from cogitate.peers import keda_pb2 as pb
from cogitate.peers import keda_pb2_grpc as pb_grpc
from cogitate.router.runtime import Runtime
from cogitate.router.scaling.demand import Need, Pool, Scale, need_of, queued_agents

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["ExternalScaler"].full_name
METRICS: Final[Mapping[str, str]] = {
    "agents": "cogitate-agents",
    "kv": "cogitate-kv",
    "wait": "cogitate-wait",
}
_DEFAULT_METRICS: Final = "agents,kv"
_KEDAS_OWN: Final = frozenset(
    "scalerAddress tlsCertFile caCert tlsClientCert tlsClientKey enableTLS unsafeSsl".split()
)
_TARGETS: Final = {
    "agentsPerEndpoint": "agents_per_endpoint",
    "kvTarget": "kv_target",
    "waitTargetSeconds": "wait_target_s",
}
_OURS: Final = frozenset({"model", "provider", "metrics", *_TARGETS})
_MAX_CHARS: Final = 256
_MAX_MODELS: Final = 10_000

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")


class KedaScaler(pb_grpc.ExternalScalerServicer):
    """Answers KEDA. Keeps nothing: each call brings the metadata of its trigger."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def IsActive(self, request: pb.ScaledObjectRef, context: Context) -> pb.IsActiveResponse:
        """Whether the pool is needed: agents are there, or found no place lately."""
        return pb.IsActiveResponse(result=self._need(self._pool(request)).is_active)

    @long_lived
    async def StreamIsActive(self, request: pb.ScaledObjectRef, context: Context) -> None:  # type: ignore[override]
        """The same at once and at each change, `scaler_interval_s` later at most."""
        pool = self._pool(request)

        def read() -> pb.IsActiveResponse:
            return pb.IsActiveResponse(result=self._need(pool).is_active)

        await self._stream(read, context)

    async def GetMetricSpec(
        self, request: pb.ScaledObjectRef, context: Context
    ) -> pb.GetMetricSpecResponse:
        """The metrics asked for, and how much of each an endpoint carries."""
        return self._specs(self._pool(request), metrics_of(request.scalerMetadata))

    @long_lived
    async def StreamMetricSpec(self, request: pb.ScaledObjectRef, context: Context) -> None:  # type: ignore[override]
        """The same at once and at each change, such as when endpoints of another size come."""
        pool, names = self._pool(request), metrics_of(request.scalerMetadata)
        await self._stream(lambda: self._specs(pool, names), context)

    async def GetMetrics(
        self, request: pb.GetMetricsRequest, context: Context
    ) -> pb.GetMetricsResponse:
        """The metric's value, summed over the pool; of all that are asked for if it has no name."""
        pool = self._pool(request.scaledObjectRef)
        names = metrics_of(request.scaledObjectRef.scalerMetadata)
        if request.metricName:
            names = [name for name in METRICS if METRICS[name] == request.metricName]
            if not names:
                raise InvalidRequest(
                    f"there is no metric {request.metricName[:64]!r}; there is: "
                    f"{', '.join(METRICS.values())}",
                    field="metricName",
                )
        need = self._need(pool)
        values = {"agents": float(need.agents), "kv": need.kv, "wait": need.wait_s}
        return pb.GetMetricsResponse(
            metricValues=[
                pb.MetricValue(
                    metricName=METRICS[name],
                    metricValue=math.ceil(values[name]),
                    metricValueFloat=values[name],
                )
                for name in names
            ]
        )

    def _pool(self, request: pb.ScaledObjectRef) -> Pool:
        pool = pool_of(request.scalerMetadata)
        # A model that is scaled exists, even while nobody serves it: whoever asks for it is told to
        # come back, and not that there is no such model.
        seen = self._runtime.desk.fleet.models_seen
        if len(seen) < _MAX_MODELS:
            seen.add(pool.model)
        return pool

    def _need(self, pool: Pool) -> Need:
        runtime, config = self._runtime, self._runtime.config
        now = runtime.clock.monotonic()
        board = runtime.desk.board(now)
        denied = runtime.demand.agents(pool.model, pool.provider, now)
        denied += queued_agents(runtime.admission.queue.commands(), pool.model, pool.provider)
        scale = Scale(config.scaler_fill_share, config.scaler_agents_per_endpoint)
        return need_of(pool, board.snapshots, denied, now, board.model, scale)

    def _specs(self, pool: Pool, names: list[str]) -> pb.GetMetricSpecResponse:
        targets = {
            "agents": self._need(pool).agents_per_endpoint,
            "kv": pool.kv_target,
            "wait": pool.wait_target_s,
        }
        return pb.GetMetricSpecResponse(
            metricSpecs=[
                pb.MetricSpec(
                    metricName=METRICS[name],
                    targetSize=math.ceil(targets[name]),
                    targetSizeFloat=targets[name],
                )
                for name in names
            ]
        )

    async def _stream(self, read: Callable[[], T], context: Context) -> None:
        """Writes what is read when it has changed, until the peer leaves or the router drains."""
        runtime = self._runtime
        last: T | None = None
        try:
            async with asyncio.timeout(None) as scope:
                with runtime.stream(scope):
                    while True:
                        if (latest := read()) != last:
                            last = latest
                            await self._write(latest, context)
                        await runtime.clock.sleep(runtime.config.scaler_interval_s)
        except TimeoutError:
            raise runtime.ended() from None

    async def _write(self, message: object, context: Context) -> None:
        try:
            async with asyncio.timeout(self._runtime.config.write_stall_s) as limit:
                await context.write(message)
        except TimeoutError:
            if not limit.expired():
                raise
            raise Rejected(
                "the reader does not keep up with the stream", reason="EVICTED"
            ) from None


def pool_of(metadata: Mapping[str, str]) -> Pool:
    """Reads a trigger's metadata. Raises InvalidRequest naming the key and what there is."""
    unknown = sorted(set(metadata) - _OURS - _KEDAS_OWN)
    if unknown:
        raise InvalidRequest(
            f"the trigger's metadata has the unknown key {unknown[0][:64]!r}; there is: "
            f"{', '.join(sorted(_OURS))}",
            field=f"scalerMetadata.{unknown[0][:64]}",
            metadata={"key": unknown[0][:64]},
        )
    for key in ("model", "provider"):
        if len(metadata.get(key, "")) > _MAX_CHARS:
            raise _invalid(key, f"is longer than {_MAX_CHARS} characters")
    if not metadata.get("model"):
        raise _invalid("model", "is missing: it names the model whose endpoints are scaled")
    targets = {
        field: _positive(metadata, key) for key, field in _TARGETS.items() if key in metadata
    }
    return Pool(model=metadata["model"], provider=metadata.get("provider", ""), **targets)


def metrics_of(metadata: Mapping[str, str]) -> list[str]:
    """The metrics asked for, in order and each once. Raises InvalidRequest."""
    asked = metadata.get("metrics", _DEFAULT_METRICS)
    names = list(dict.fromkeys(part.strip() for part in asked.split(",") if part.strip()))
    if not names or not set(names) <= set(METRICS):
        raise _invalid("metrics", f"must be some of {', '.join(METRICS)}, by commas")
    return names


def _positive(metadata: Mapping[str, str], key: str) -> float:
    try:
        value = float(metadata[key])
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise _invalid(key, "must be a number above 0")
    return value


def _invalid(key: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{key} of the trigger's metadata {what}", field=f"scalerMetadata.{key}")
