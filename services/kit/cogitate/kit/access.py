"""Which service may call which method, where services know each other by certificates.

Nobody may call what is not written here. Health is open to whoever gets a connection, and so is
reflection where it is served; the gateway's own doors ask for keys instead (`docs/security.md`).

Invariants:
1. Every method of the contract is in the table, and nothing else
   (test_kit_access: the_table_is_the_contract).
2. A caller of another trust domain, or without exactly one name, may call nothing
   (test_kit_access: strangers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from cogitate.kit.errors import PermissionDenied
from cogitate.kit.identity import parse

Check = Callable[[Any, str], None]

# Those that serve, and those that only call: the command line, Envoy in front of decoders or as
# what balances, KEDA.
SERVICES: Final = (
    "gateway", "aggregator", "router", "vision-encoder", "tool-executor", "agent-decoder",
)  # fmt: skip
CLIENTS: Final = ("cli", "admin", "envoy", "keda")

_TABLE: Final = """
ContemplationService.Contemplate           gateway
ContemplationService.Attach                gateway
ContemplationService.GetContemplation      gateway
ContemplationService.ListContemplations    gateway
ContemplationService.CancelContemplation   gateway
ContemplationService.DeleteContemplation   gateway
ContemplationService.SubmitToolResult      gateway
ContemplationService.SteerContemplation    gateway
RouterService.Report                       agent-decoder
RouterService.Lease                        aggregator
RouterService.GetFleet                     gateway admin
AgentDecoderService.Decode                 aggregator envoy
AgentDecoderService.GetEndpoint            admin
AgentDecoderService.FetchConversation      agent-decoder
EndpointService.WatchEndpoint              router
VisionEncoderService.PutBlob               gateway tool-executor
VisionEncoderService.GetBlob               gateway agent-decoder vision-encoder
VisionEncoderService.Encode                aggregator
VisionEncoderService.FetchEmbedding        agent-decoder vision-encoder
VisionEncoderService.GetEncoderInfo        admin
ToolExecutorService.Execute                aggregator
ToolExecutorService.ListTools              aggregator admin
GatewayService.Ask                         -
GatewayService.UploadBlob                  -
GatewayService.DownloadBlob                -
GatewayService.ListModels                  -
GatewayService.DescribeFleet               -
GatewayService.GetServerInfo               -
GatewayService.GetTrace                    -
AdminService.CreateKey                     admin
AdminService.ListKeys                      admin
AdminService.RevokeKey                     admin
AdminService.ListTenants                   admin
AdminService.SetBudget                     admin
AdminService.DrainGateway                  admin
"""
_PEERS: Final = {
    "envoy.service.ext_proc.v3.ExternalProcessor/Process": "envoy",
    # The Envoy beside a gateway shows the gateway's certificate.
    "xds.service.orca.v3.OpenRcaService/StreamCoreMetrics": "envoy gateway",
    "externalscaler.ExternalScaler/IsActive": "keda",
    "externalscaler.ExternalScaler/StreamIsActive": "keda",
    "externalscaler.ExternalScaler/GetMetricSpec": "keda",
    "externalscaler.ExternalScaler/GetMetrics": "keda",
    "externalscaler.ExternalScaler/StreamMetricSpec": "keda",
}


def _table() -> Mapping[str, frozenset[str]]:
    rows = dict(_PEERS)
    for line in _TABLE.strip().splitlines():
        method, _, callers = line.partition(" ")
        rows["cogitate.v1." + method.replace(".", "/")] = callers
    return {method: frozenset(callers.split()) - {"-"} for method, callers in rows.items()}


CALLERS: Final = _table()


def check(names: Iterable[str], method: str, trust_domain: str) -> str:
    """Returns the caller's service. Raises PermissionDenied; `names` are its certificate's URIs."""
    found = list(names)
    caller = parse(found[0]) if len(found) == 1 else None
    if caller is None:
        raise PermissionDenied(
            f"the certificate must hold one name, spiffe://{trust_domain}/SERVICE, and no other URI"
        )
    domain, service = caller
    if domain != trust_domain:
        raise PermissionDenied(
            f"{domain} is not this mesh's trust domain, which is {trust_domain}",
            metadata={"trust_domain": trust_domain, "caller": found[0]},
        )
    method = method.lstrip("/")
    if service not in CALLERS.get(method, frozenset()):
        raise PermissionDenied(
            f"{service} may not call {method}; docs/security.md says who may",
            metadata={"caller": service, "method": method},
        )
    return service


def by_certificate(trust_domain: str) -> Check:
    """Returns what a server asks before it runs a method: its context, and the method."""

    def checked(context: Any, method: str) -> None:
        uris = context.auth_context().get("peer_uri", ())
        check((uri.decode("utf-8", "replace") for uri in uris), method, trust_domain)

    return checked


def unchecked(context: Any, method: str) -> None:
    """Lets everybody in: without certificates nobody is known."""
