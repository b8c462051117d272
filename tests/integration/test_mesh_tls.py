"""The whole local mesh by mutual TLS, and its certificates renewed while it works."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import pytest
from cogitate.cli.mesh.processes import is_serving
from cogitate.client import Client
from cogitate.kit import identity, renewing
from cogitate.v1 import router_service_pb2, router_service_pb2_grpc

from tests.integration.mesh import running_mesh

pytestmark = pytest.mark.integration

BOARD = Path(__file__).parents[2] / "examples" / "board.png"
QUESTION = "What is the sum of the red cards?"


def test_a_mesh_of_certificates_answers_and_renews_them(tmp_path: Path) -> None:
    with running_mesh(tmp_path, "--tls") as mesh:
        folder = next(tmp_path.rglob("certificates"))
        with Client(mesh.address) as client:
            first = client.ask(QUESTION, images=[BOARD], agents=2)
            renewed = mesh.run("certs", "--dir", str(folder), "--renew")
            assert renewed.returncode == 0, renewed.stderr
            time.sleep(2 * identity.LOOK_S)  # files are looked at that often
            again = client.ask(QUESTION, images=[BOARD], agents=2, seed=7)
            assert first.answer and again.answer
        logs = {p.stem: p.read_text() for p in folder.parent.rglob("logs/*.log")}
        for name in ("gateway", "aggregator", "vision-encoder"):
            assert "the certificate was renewed" in logs[name], logs[name]
        assert not [text for text in logs.values() if "may not call" in text]

        for name, offset in (("aggregator", 1), ("router", 2)):
            address = f"127.0.0.1:{mesh.base_port + offset}"
            assert not is_serving(address), f"{name} speaks plaintext"
            assert is_serving(address, probe_as=str(folder / "cli"))
        router = f"127.0.0.1:{mesh.base_port + 2}"
        for who, code in (("cli", grpc.StatusCode.PERMISSION_DENIED), ("admin", None)):
            shown = renewing.credentials(identity.read(folder / who))
            with grpc.secure_channel(router, shown) as channel:
                stub = router_service_pb2_grpc.RouterServiceStub(channel)
                try:
                    fleet = stub.GetFleet(router_service_pb2.GetFleetRequest(), timeout=5)
                    assert code is None and len(fleet.endpoints) == 2
                except grpc.RpcError as error:
                    assert error.code() is code
