"""`--server`: what is asked of servers, what their models are called, what the mesh is made of."""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cogitate.cli import flags
from cogitate.cli.commands import up
from cogitate.cli.main import build_parser
from cogitate.cli.mesh import access, servers
from cogitate.cli.mesh.plan import Options, Server, members, port_count
from cogitate.cli.mesh.processes import MeshError

pytestmark = pytest.mark.unit


@contextmanager
def listing(*names: str, key: str = "", reply: bytes | None = None) -> Iterator[str]:
    """A server that lists models, to whoever has the key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = not key or self.headers.get("authorization") == f"Bearer {key}"
            status = 200 if self.path == "/v1/models" and allowed else 401
            body = json.dumps({"data": [{"id": name} for name in names]}).encode()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body if reply is None else reply)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("text", "url", "model"),
    [
        ("http://h:1", "http://h:1/v1", ""),
        ("http://h:1/", "http://h:1/v1", ""),
        (" https://api.example.com/v1/ ", "https://api.example.com/v1", ""),
        ("http://h:1/api/v2#llama3.2:3b", "http://h:1/api/v2", "llama3.2:3b"),
    ],
)
def test_an_address_may_name_a_model(text: str, url: str, model: str) -> None:
    assert flags.server(text) == Server(url, model)


def test_an_address_holds_no_key() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="--server-key-variable") as caught:
        flags.server("https://user:secret@h/v1")
    assert "secret" not in str(caught.value)


def test_a_mesh_that_runs_does_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    there = access.Access("127.0.0.1:1", None)
    monkeypatch.setattr(access, "running", lambda *_: there)
    assert access.running_beside("default", None, []) is there
    with pytest.raises(MeshError, match="another --name"):
        access.running_beside("default", None, [Server("http://h:1/v1")])


@pytest.mark.parametrize("text", ["h:1", "ftp://h/v1", "http://", ""])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no address of a server"):
        flags.server(text)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-x", "gpt-x"),
        ("/models/Qwen2.5-7B-Q4.gguf", "Qwen2.5-7B-Q4"),
        ("org/Model-1B", "Model-1B"),
        ("llama3.2:3b", "llama3.2-3b"),
        ("C:\\models\\m.gguf", "m"),
        ("..", "model"),
        ("x" * 80, "x" * 64),
    ],
)
def test_a_model_has_a_name_that_the_mesh_takes(model: str, name: str) -> None:
    assert servers.name_of(model) == name


def test_a_mesh_is_planned_with_servers_behind_its_own_decoders(tmp_path: Path) -> None:
    two = (Server("http://a.example:1/v1", "m.gguf"), Server("https://b.example/v1", "m"))
    options = Options(decoders=1, aggregators=2, model="m", servers=two, key_variable="KEY")
    assert port_count(options) == 10
    planned = {
        member.name: (member.address, " ".join(member.arguments))
        for member in members(options, range(7100, 7110), tmp_path, tmp_path / "t")
    }
    assert [*planned][5:] == ["aurora-1", "server-1", "server-2", "aggregator-2"]
    address, told = planned["server-1"]
    assert address == "127.0.0.1:7106"
    for part in (
        "--engine openai", "--openai-base-url http://a.example:1/v1", "--openai-model m.gguf",
        "--model m", "--provider a.example", "--endpoint-id server-1", "--openai-key-variable KEY",
    ):  # fmt: skip
        assert part in told
    assert "--engine" not in planned["aurora-1"][1]
    assert planned["aggregator-2"][0] == "127.0.0.1:7108"


def test_servers_alone_are_answered_by_no_decoder_of_ours() -> None:
    def options(*more: str) -> Options:
        return flags.mesh_options(build_parser().parse_args(["up", *more]))

    assert (options().decoders, options().model) == (2, "mini")
    alone = options("--server", "http://h:1")
    assert (alone.decoders, alone.model) == (0, "")
    beside = options("--server", "http://h:1", "--decoders", "3", "--model", "m")
    assert (beside.decoders, beside.model) == (3, "m")


def test_a_mesh_in_the_background_has_the_same_servers() -> None:
    typed = ["up", "--server", "http://h:1/v1", "--server", "http://h:2/v1#m:1"]
    typed += ["--server-key-variable", "KEY"]
    parser = build_parser()
    args = parser.parse_args(typed)
    again = parser.parse_args(["up", *up._again(args)])
    assert flags.mesh_options(again) == flags.mesh_options(args)


def test_the_only_model_is_the_one_that_is_meant() -> None:
    with listing("/models/Tiny-1B.gguf") as one, listing("a", "Tiny-1B") as other:
        found = servers.located(Options(model="", servers=(Server(one), Server(other))))
    assert found.model == "Tiny-1B"
    assert [server.model for server in found.servers] == ["/models/Tiny-1B.gguf", "Tiny-1B"]


def test_a_server_may_call_the_model_something_else_if_one_says_so() -> None:
    with listing("mine:latest") as url:
        found = servers.located(Options(model="m", servers=(Server(url, "mine:latest"),)))
        assert (found.model, found.servers[0].model) == ("m", "mine:latest")
        with pytest.raises(MeshError, match=r"no model 'm' but mine:latest.*#mine:latest"):
            servers.located(Options(model="m", servers=(Server(url),)))


def test_of_several_models_one_is_to_be_chosen() -> None:
    with listing("a", "b") as url, pytest.raises(MeshError, match="--serve-model: a, b"):
        servers.located(Options(model="", servers=(Server(url),)))
    with listing() as url, pytest.raises(MeshError, match="lists no model"):
        servers.located(Options(model="", servers=(Server(url),)))


def test_the_key_is_sent_and_never_shown() -> None:
    with listing("m", key="sesame") as url:
        options = Options(model="", servers=(Server(url),), key_variable="KEY")
        assert servers.located(options, {"KEY": "sesame"}).model == "m"
        with pytest.raises(MeshError, match="answers 401") as caught:
            servers.located(options, {"KEY": "secret"})
        assert "secret" not in str(caught.value)
        with pytest.raises(MeshError, match="'KEY' is not set"):
            servers.located(options, {})


@pytest.mark.parametrize("reply", [b"<html>", b"[]", b'{"data": [{}]}', b'{"data": 3}'])
def test_what_answers_may_be_no_model_server(reply: bytes) -> None:
    with listing(reply=reply) as url, pytest.raises(MeshError, match="not a list of models"):
        servers.listed(url)


def test_a_server_that_is_not_there() -> None:
    with listing() as url:
        pass
    with pytest.raises(MeshError, match=r"cannot be reached: .*refused"):
        servers.listed(url)
