"""`cogitate certs`: made once, kept while they are good, renewed by the same authority."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cogitate.cli import main as cli
from cogitate.cli.certificates import folder
from cogitate.cli.certificates.folder import Plan, keep
from cogitate.kit import access, identity

pytestmark = pytest.mark.unit

EVERYBODY = (*access.SERVICES, *access.CLIENTS)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_one_command_makes_a_folder_for_each_service(tmp_path: Path) -> None:
    assert cli.main(["certs", "--dir", str(tmp_path / "certs"), "--trust-domain", "a.test"]) == 0
    for name in EVERYBODY:
        papers = identity.read(tmp_path / "certs" / name)
        assert (papers.trust_domain, papers.service) == ("a.test", name)
    for path in (tmp_path / "certs").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_it_is_done_once_and_again_when_asked(tmp_path: Path) -> None:
    plan = Plan(tmp_path)
    assert all(keep(plan).values())
    before = contents(tmp_path)
    assert not any(keep(plan).values())
    assert contents(tmp_path) == before
    assert all(keep(plan, renew=True).values())
    after = contents(tmp_path)
    assert set(after) == set(before)
    same = {name for name in after if after[name] == before[name]}
    assert same == {"ca/ca.crt", "ca/ca.key", *(f"{name}/ca.crt" for name in EVERYBODY)}


def test_what_is_soon_over_is_renewed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(Plan(tmp_path))
    monkeypatch.setattr(folder, "RENEW_AT", 1.1)
    (tmp_path / "router" / "tls.crt").unlink()
    assert all(keep(Plan(tmp_path)).values())
    monkeypatch.setattr(folder, "RENEW_AT", 0.5)
    (tmp_path / "router" / "tls.key").unlink()
    assert [name for name, new in keep(Plan(tmp_path)).items() if new] == ["router"]


@pytest.mark.parametrize(
    "changed",
    [
        {"trust_domain": "other.test"},
        {"hosts": (*folder.LOCAL_HOSTS, "router.example.org")},
    ],
)
def test_what_names_something_else_is_made_anew(tmp_path: Path, changed: dict[str, object]) -> None:
    plan: Any = partial(Plan, tmp_path, **changed)
    keep(Plan(tmp_path))
    assert any(keep(plan()).values())
    assert not any(keep(plan()).values())


def test_an_authority_that_is_over_is_made_anew_with_all_it_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "AUTHORITY_LIFETIME", timedelta(seconds=-1))
    keep(Plan(tmp_path))
    monkeypatch.undo()
    assert all(keep(Plan(tmp_path)).values())


def test_a_folder_that_cannot_be_used_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ca").mkdir()
    for name in ("ca.crt", "ca.key"):
        (tmp_path / "ca" / name).write_text("nothing")
    assert cli.main(["certs", "--dir", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--hours", "0"], ["--trust-domain", "A B"]])
def test_values_that_mean_nothing_are_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["certs", *flags])
