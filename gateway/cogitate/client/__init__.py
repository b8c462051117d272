"""The SDK of a mesh: ask, watch, attach. Needs gRPC and protobuf only.

    from cogitate.client import Client

    with Client() as client:
        answer = client.ask("What is the sum of the red cards?", images=["board.png"], agents=8)
        print(answer.answer, answer.certificate.decision)

`AsyncClient` is the same with `await`. `contemplate` gives every event as it happens; its stream is
a context manager, and leaving the block, by `break` too, ends the call.
"""

from cogitate.client._async_client import AsyncClient, AsyncContemplationStream
from cogitate.client._client import Client, ContemplationStream
from cogitate.client._errors import (
    AlreadyExists,
    Cancelled,
    CogitateError,
    ContemplationFailed,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    Unavailable,
)
from cogitate.client._plain import to_dict
from cogitate.client._request import AskOptions, Box
from cogitate.client._results import (
    Answer,
    Ballot,
    Certificate,
    Endpoint,
    Evidence,
    Fleet,
    KilledAgent,
    Ledger,
    Model,
    Placement,
    Sight,
    Summary,
    Usage,
)
from cogitate.client._tables import LookupTable

__all__ = [
    "AlreadyExists",
    "Answer",
    "AskOptions",
    "AsyncClient",
    "AsyncContemplationStream",
    "Ballot",
    "Box",
    "Cancelled",
    "Certificate",
    "Client",
    "CogitateError",
    "ContemplationFailed",
    "ContemplationStream",
    "DeadlineExceeded",
    "Endpoint",
    "Evidence",
    "Fleet",
    "InvalidRequest",
    "KilledAgent",
    "Ledger",
    "LookupTable",
    "Model",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "Placement",
    "Sight",
    "Summary",
    "Unavailable",
    "Usage",
    "to_dict",
]
