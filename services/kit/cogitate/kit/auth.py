"""Who a request is for, carried through one process.

Between services the tenant travels in the metadata key `x-cogitate-tenant`. That key is believed
inside the mesh only: the gateway must set it from the caller's credentials and never forward it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from cogitate.kit.errors import InvalidRequest

TENANT_METADATA_KEY: Final = "x-cogitate-tenant"
DEFAULT_TENANT: Final = "default"

_TENANT: ContextVar[str] = ContextVar("cogitate_tenant", default=DEFAULT_TENANT)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def current_tenant() -> str:
    """Returns the tenant the running task works for."""
    return _TENANT.get()


@contextmanager
def tenant_scope(tenant: str) -> Iterator[None]:
    """Makes `tenant` the current one; tasks started inside inherit it.

    Raises InvalidRequest if it is not 1 to 64 letters, digits, dots, dashes or underscores.
    """
    if not _NAME.fullmatch(tenant):
        raise InvalidRequest("the tenant's name is malformed", field="tenant")
    token = _TENANT.set(tenant)
    try:
        yield
    finally:
        _TENANT.reset(token)
