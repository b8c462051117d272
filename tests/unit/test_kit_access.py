"""Who may call which method: the table against the contract."""

from __future__ import annotations

import pytest
from cogitate.kit import access
from cogitate.kit.errors import PermissionDenied

from tests.fakes.contract import methods

pytestmark = pytest.mark.unit


def test_the_table_is_the_contract() -> None:
    assert set(access.CALLERS) == set(methods()), "a new method needs a line in kit/access.py"
    known = {*access.SERVICES, *access.CLIENTS}
    assert {name for callers in access.CALLERS.values() for name in callers} <= known


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "must hold one name"),
        (["spiffe://mesh.test/gateway", "spiffe://mesh.test/admin"], "must hold one name"),
        (["https://mesh.test/gateway"], "must hold one name"),
        (["spiffe://mesh.test/ns/x/gateway"], "must hold one name"),
        (["spiffe://mesh.test/"], "must hold one name"),
        (["spiffe://other.test/gateway"], "other.test is not this mesh's trust domain"),
        (["spiffe://mesh.test.evil/gateway"], "mesh.test.evil is not"),
        (["spiffe://mesh.test/tool-executor"], "tool-executor may not call"),
        (["spiffe://mesh.test/unheard-of"], "unheard-of may not call"),
    ],
)
def test_strangers(names: list[str], said: str) -> None:
    with pytest.raises(PermissionDenied, match=said):
        access.check(names, "/cogitate.v1.RouterService/GetFleet", "mesh.test")


def test_a_method_nobody_wrote_down_is_nobodys() -> None:
    for service in (*access.SERVICES, *access.CLIENTS):
        with pytest.raises(PermissionDenied):
            access.check([f"spiffe://m/{service}"], "/cogitate.v1.RouterService/New", "m")
