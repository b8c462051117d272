"""What a grant lets through, and the counting of requests and contemplations."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cogitate.cli.main import main
from cogitate.gateway.core.spec import Constraints, Message, Spec, Text
from cogitate.gateway.core.tenants import Allowances, Grant, check
from cogitate.gateway.keys import KeyStore
from cogitate.kit.errors import (
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Rejected,
    Unauthenticated,
)
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.unit

SPEC = Spec(conversation=(Message("USER", (Text("?"),)),), model="mini")
NARROW = Grant(
    "ada",
    models=frozenset({"mini"}),
    tools=frozenset({"calculator"}),
    providers=frozenset({"aurora"}),
)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (replace(SPEC, model="big"), "the model big; it may use: mini"),
        (replace(SPEC, allowed_tools=("python",)), "the tool python; it may use: calculator"),
        (replace(SPEC, constraints=Constraints(providers=("x",))), "the provider x"),
    ],
)
def test_what_is_left_out_is_refused(spec: Spec, words: str) -> None:
    with pytest.raises(PermissionDenied, match=words):
        check(spec, NARROW)
    check(spec, Grant("ada"))


def test_what_is_granted_is_let_through() -> None:
    check(SPEC, NARROW)
    check(replace(SPEC, allowed_tools=("calculator",)), NARROW)
    check(replace(SPEC, allowed_tools=("none",)), NARROW)


def test_concurrency_is_counted_by_tenant_and_given_back() -> None:
    allowances, two = Allowances(), replace(NARROW, max_contemplation_count=2)
    allowances.begin(two, 0)
    allowances.begin(two, 0)
    with pytest.raises(Rejected, match="2 contemplations at once") as caught:
        allowances.begin(two, 0)
    assert caught.value.reason == "TENANT_LIMIT"
    allowances.begin(replace(two, tenant="bob"), 0)
    allowances.end(two)
    allowances.begin(two, 0)
    assert allowances.running("ada") == 2


@given(st.integers(1, 50), st.lists(st.floats(0, 90), max_size=150))
def test_a_rate_is_never_passed_and_the_wait_told_is_long_enough(
    rate: int, gaps: list[float]
) -> None:
    allowances, grant, now = Allowances(), Grant("ada", max_requests_per_minute=rate), 1000.0
    let_in: list[float] = []
    for gap in gaps:
        now += gap
        try:
            allowances.take_request(grant, now)
        except Rejected as refused:
            assert refused.retry_after_s and 0 < refused.retry_after_s <= 60 / rate + 1e-6
            now += refused.retry_after_s + 1e-6
            allowances.take_request(grant, now)
        let_in.append(now)
    for i, begins in enumerate(let_in):
        for count, ends in enumerate(let_in[i:], start=1):
            assert count <= rate + (ends - begins) * rate / 60 + 1e-3


def test_tenants_that_ask_no_more_are_forgotten() -> None:
    allowances = Allowances()
    for i in range(100):
        allowances.take_request(Grant(f"t{i}", max_requests_per_minute=5), 0)
    allowances.take_request(Grant("late", max_requests_per_minute=5), 1000)
    assert len(allowances._uses) == 1


# -- keys ----------------------------------------------------------------------------------------


def test_a_key_opens_until_it_is_revoked_or_expires(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys", create=True)
    key, text = store.create(NARROW)
    assert store.find(text) == NARROW
    for wrong in (text[:-1] + "!", text.upper(), "", "cog_", text + "x", "' OR 1=1--", "\x00",
                  "k" * 100_000, "\ud800"):  # fmt: skip
        with pytest.raises(Unauthenticated) as caught:
            store.find(wrong)
        assert not wrong or wrong not in caught.value.message
    other = KeyStore(tmp_path / "keys")
    other.revoke(key.id)
    with pytest.raises(Unauthenticated):
        store.find(text)
    with pytest.raises(NotFound):
        store.revoke(key.id)
    _, late = store.create(NARROW, expires_s=time.time() - 1)
    with pytest.raises(Unauthenticated):
        store.find(late)
    assert [one.holds(time.time()) for one in store.keys()] == [False, False]


def test_the_file_holds_no_key_and_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    store = KeyStore(path, create=True)
    texts = [store.create(Grant("ada"))[1] for _ in range(20)]
    store.close()
    held = path.read_bytes()
    assert not any(text.encode() in held or text[4:].encode() in held for text in texts)
    assert path.stat().st_mode & 0o077 == 0
    assert len(set(texts)) == 20
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM keys").fetchone() == (20,)


def test_a_file_that_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cogitate keys create"):
        KeyStore(tmp_path / "none")
    (tmp_path / "other").write_text("no keys here, but words enough to be no empty file")
    (tmp_path / "empty").touch()
    for name in ("other", "empty"):
        with pytest.raises(InvalidRequest, match="not a file of keys"):
            KeyStore(tmp_path / name)


def test_the_command_makes_lists_and_revokes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ["--file", str(tmp_path / "keys")]
    limits = ["--models", "mini,big", "--max-contemplations", "4", "--requests-per-minute", "60"]
    assert main(["keys", "create", "--tenant", "lab", *limits, *file]) == 0
    said = capsys.readouterr()
    text = said.out.strip()
    store = KeyStore(tmp_path / "keys")
    grant = store.find(text)
    assert (grant.tenant, grant.models) == ("lab", {"mini", "big"})
    assert (grant.max_contemplation_count, grant.max_requests_per_minute) == (4, 60)
    assert main(["keys", "list", *file]) == 0
    listed = capsys.readouterr().out
    assert "lab" in listed and "holds" in listed and text not in listed
    (key,) = store.keys()
    assert main(["keys", "revoke", key.id, *file]) == 0
    with pytest.raises(Unauthenticated):
        store.find(text)
    assert main(["keys", "revoke", key.id, *file]) == 1
    assert main(["keys", "create", "--tenant", "a b", *file]) == 1
    assert main(["keys", "list", "--file", str(tmp_path / "none")]) == 1
