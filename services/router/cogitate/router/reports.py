"""One stream of an endpoint's reports, whoever dialled: told to the fleet until it ends."""

from __future__ import annotations

from cogitate.kit.errors import InvalidRequest, Rejected
from cogitate.router import wire
from cogitate.router.core.types import Description
from cogitate.router.runtime import Runtime
from cogitate.v1 import router_service_pb2 as router_pb2


class ReportStream:
    """Takes reports in. Whoever has one closes it when the stream ends: then the endpoint is gone.

    `dialled`: the address by which the router reached the endpoint; empty if the endpoint came. It
    stands in for an address that names no machine, such as 0.0.0.0.
    """

    def __init__(self, runtime: Runtime, dialled: str = "") -> None:
        self._runtime, self._dialled = runtime, dialled
        self._number = runtime.number()
        self.described: Description | None = None

    @property
    def owns(self) -> bool:
        """Whether the endpoint is known by this stream, and not by a later one."""
        entries = self._runtime.desk.fleet.entries
        entry = entries.get(self.described.endpoint_id) if self.described else None
        return entry is not None and entry.stream == self._number

    def take(self, request: router_pb2.ReportRequest) -> None:
        """Takes a report in. Raises InvalidRequest, or Rejected where there are too many."""
        runtime, described = self._runtime, self.described
        fleet, now = runtime.desk.fleet, runtime.clock.monotonic()
        which = request.WhichOneof("report")
        if which == "description":
            self._describe(request, now)
            return
        if described is None:
            raise InvalidRequest("the first report must be a description", field="description")
        if which == "load":
            load = wire.load(request.load)
            learned = runtime.observations(described.endpoint_id)
            runtime.apply(fleet.report(self._number, described.endpoint_id, load, now))
            runtime.learned(described.endpoint_id, learned)
        elif which == "drain":
            left = request.drain
            remaining_s = (
                wire.seconds(left.remaining_duration)
                if left.HasField("remaining_duration")
                else None
            )
            runtime.apply(fleet.drain(self._number, described.endpoint_id, remaining_s, now))

    def close(self) -> None:
        """The stream ended."""
        if self.described is not None:
            fleet = self._runtime.desk.fleet
            self._runtime.apply(fleet.close(self._number, self.described.endpoint_id))

    def _describe(self, request: router_pb2.ReportRequest, now: float) -> None:
        fleet = self._runtime.desk.fleet
        said = wire.description(request.description, self._dialled)
        if self.described is not None and said.endpoint_id != self.described.endpoint_id:
            raise InvalidRequest("an endpoint keeps its id", field="description.endpoint_id")
        if not fleet.can_describe(said.endpoint_id):
            raise Rejected(f"this router knows {fleet.max_endpoints} endpoints, the most it may")
        self._runtime.apply(fleet.describe(self._number, said, now))
        self.described = said
