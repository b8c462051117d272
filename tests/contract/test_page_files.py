"""The page's files over real sockets: kinds, caching, what they may do, and who may have them."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
import pytest
from cogitate.gateway.core.tenants import Grant
from cogitate.gateway.http.page import Page
from cogitate.gateway.keys import KeyStore

from tests.fakes.front import mesh

pytestmark = pytest.mark.contract

FOLDER = Path(__file__).parents[2] / "gateway/cogitate/gateway/page"
HTTP = {"http_listen": "127.0.0.1:0"}
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}


def texts() -> list[Path]:
    return [file for file in FOLDER.iterdir() if file.suffix != ".webp"]


def path_of(file: Path) -> str:
    return "/" if file.name == "index.html" else f"/page/{file.name}"


async def test_every_file_is_served_as_what_it_is_and_not_sent_twice() -> None:
    async with mesh(**HTTP) as m, httpx2.AsyncClient(base_url=f"http://{m.http}") as client:
        for file in FOLDER.iterdir():
            got = await client.get(path_of(file))
            assert (got.status_code, got.content) == (200, file.read_bytes()), file.name
            assert got.headers["content-type"] == KINDS[file.suffix]
            assert got.headers["cache-control"] == "no-cache"
            assert got.headers["x-content-type-options"] == "nosniff"
            again = await client.get(path_of(file), headers={"if-none-match": got.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            other = await client.get(path_of(file), headers={"if-none-match": '"another"'})
            assert other.status_code == 200
            head = await client.head(path_of(file))
            assert (head.status_code, head.content) == (200, b"")
            assert int(head.headers["content-length"]) == len(file.read_bytes())


async def test_the_policy_lets_nothing_in_from_elsewhere_and_nothing_inline() -> None:
    async with mesh(**HTTP) as m, httpx2.AsyncClient(base_url=f"http://{m.http}") as client:
        policy = (await client.get("/")).headers["content-security-policy"]
    rules = dict(one.strip().split(" ", 1) for one in policy.split(";"))
    assert rules.pop("img-src") == "'self' blob:"
    assert rules.pop("require-trusted-types-for") == "'script'"
    assert set(rules.values()) == {"'none'", "'self'"}
    assert rules["default-src"] == rules["frame-ancestors"] == "'none'"


def test_files_name_no_address_outside_and_have_nothing_inline() -> None:
    for file in texts():
        text = re.sub(r"(?m)^\s*//.*$", "", file.read_text())
        text = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://|(src|href)=\"//", text), file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|\beval\(", text), file.name
        if file.suffix == ".html":
            assert not re.search(r"<style|<script(?! type=\"module\" src=)| on\w+=| style=", text)


def test_every_module_is_reached_and_none_is_large() -> None:
    found, pending = set[str](), {"index.html"}
    while pending:
        name = pending.pop()
        found.add(name)
        named = re.findall(r'"(?:/page|\.)/(\w+\.js)"', (FOLDER / name).read_text())
        pending |= set(named) - found
    assert found - {"index.html"} == {file.name for file in FOLDER.glob("*.js")}
    for file in texts():
        assert len(file.read_text().splitlines()) <= 400, file.name


async def test_without_a_key_the_files_are_all_there_is(tmp_path: Path) -> None:
    KeyStore(tmp_path / "keys", create=True).create(Grant("ada"))
    knobs = HTTP | {"api_keys": str(tmp_path / "keys")}
    async with mesh(**knobs) as m, httpx2.AsyncClient(base_url=f"http://{m.http}") as client:
        for path in Page().paths:
            assert (await client.get(path)).status_code == 200
            for verb in ("POST", "PUT", "DELETE", "OPTIONS"):
                assert (await client.request(verb, path)).status_code == 401
        answer = await client.post(
            "/cogitate.v1.GatewayService/GetTrace", json={"contemplationId": "x"}
        )
        assert answer.status_code == 401


async def test_a_file_is_one_of_the_names_or_it_is_nothing() -> None:
    paths = ("/page", "/page/", "/page/index.html", "/page/%2e%2e/keys.py", "/page/..%2fkeys.py")
    async with mesh(**HTTP) as m, httpx2.AsyncClient(base_url=f"http://{m.http}") as client:
        for path in paths:
            assert (await client.get(path)).status_code == 404, path


def test_the_examples_on_the_page_are_those_in_the_documentation() -> None:
    root = Path(__file__).parents[2]
    script = (FOLDER / "examples.js").read_text(encoding="utf-8")
    documented = (root / "docs" / "examples.md").read_text(encoding="utf-8")
    offered = re.findall(r'picture: "(\w+)", question: "([^"]+)"', script)
    assert len(offered) == 6
    for picture, question in offered:
        assert picture == "shape" or f'"{question}" --image examples/{picture}.png' in documented
    told = (root / "examples" / "ranges.csv").read_text(encoding="utf-8").splitlines()
    lists = [re.findall(r'"([^"]*)"', one) for one in re.findall(r"\[([^\[\]]+)\]", script)]
    assert [",".join(one) for one in lists if len(one) == 3] == told
