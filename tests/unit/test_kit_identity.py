"""The files a service's identity is read from, whole and in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
from cogitate.cli.certificates.authority import Signed
from cogitate.kit import identity
from cogitate.kit.identity import LOOK_S, Identity

from tests.fakes import certificates

pytestmark = pytest.mark.unit


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("layout", identity.LAYOUTS)
def test_both_layouts_are_read(tmp_path: Path, layout: tuple[str, str, str]) -> None:
    certificates.write(tmp_path, certificates.signed("router"), layout=layout)
    papers = Identity(tmp_path).papers()
    assert (papers.trust_domain, papers.service) == (certificates.DOMAIN, "router")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (certificates.over, "is valid from"),
        (certificates.early, "is valid from"),
        (lambda: certificates.signed(uris=()), "needs one URI"),
        (lambda: certificates.signed(uris=("spiffe://a/b", "spiffe://a/c")), "needs one URI"),
        (lambda: certificates.signed(uris=("https://a/b",)), "needs one URI"),
        (
            lambda: Signed(certificates.signed().certificate, certificates.signed().key),
            "is not the key of",
        ),
        (lambda: Signed(b"nothing", certificates.signed().key), "in PEM"),
        (lambda: Signed(certificates.signed().certificate, b"nothing"), "in PEM"),
    ],
)
def test_what_cannot_be_shown_is_said_at_the_start(tmp_path: Path, made: object, said: str) -> None:
    certificates.write(tmp_path, made())  # type: ignore[operator]
    with pytest.raises(OSError, match=said):
        Identity(tmp_path)


def test_a_folder_without_files_is_said(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"holds neither tls\.crt"):
        Identity(tmp_path)
    (tmp_path / "tls.crt").write_bytes(certificates.signed().certificate)
    with pytest.raises(OSError, match=r"tls\.key"):
        Identity(tmp_path)


def test_new_files_are_taken_once_they_belong_together(tmp_path: Path) -> None:
    clock = Clock()
    certificates.write(tmp_path, certificates.signed("router"))
    mine = Identity(tmp_path, monotonic=clock)
    first, fresh = mine.papers(), certificates.signed("router")
    (tmp_path / "tls.key").write_bytes(fresh.key)
    clock.now_s = 10.0
    assert mine.papers() is first, "the key of a certificate that is not there yet"
    (tmp_path / "tls.crt").write_bytes(fresh.certificate)
    clock.now_s += LOOK_S * 0.99
    assert mine.papers() is first, "files are not looked at that often"
    clock.now_s += LOOK_S * 0.01
    assert mine.papers().chain == fresh.certificate
    assert mine.papers() is mine.papers()
    (tmp_path / "tls.crt").unlink()
    clock.now_s = 20.0
    assert mine.papers().chain == fresh.certificate, "files that are gone change nothing"


def test_a_renewal_that_is_already_over_is_not_taken(tmp_path: Path) -> None:
    clock = Clock()
    certificates.write(tmp_path, certificates.signed())
    mine = Identity(tmp_path, monotonic=clock)
    first = mine.papers()
    certificates.write(tmp_path, certificates.over())
    clock.now_s = LOOK_S
    assert mine.papers() is first


def test_a_folder_of_links_is_followed_when_they_move(tmp_path: Path) -> None:
    """As Kubernetes mounts secrets: files are links into a folder that is swapped."""
    clock = Clock()
    for name in ("one", "two"):
        certificates.write(tmp_path / name, certificates.signed())
    (tmp_path / "data").symlink_to("one")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    for name in identity.LAYOUTS[0]:
        (mounted / name).symlink_to(f"../data/{name}")
    mine = Identity(mounted, monotonic=clock)
    before = mine.papers()
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(tmp_path / "data")
    clock.now_s = LOOK_S
    assert mine.papers().chain == (tmp_path / "two" / "tls.crt").read_bytes() != before.chain
