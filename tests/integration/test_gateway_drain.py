"""An operator drains a gateway: the real process ends by itself, with what it began."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from cogitate.gateway.core.tenants import Grant
from cogitate.gateway.keys import KeyStore
from cogitate.v1 import admin_service_pb2 as pb2
from cogitate.v1.admin_service_pb2_grpc import AdminServiceStub

from tests.integration.mesh import free_base_port

pytestmark = pytest.mark.integration

KEY = "an-operators-key-of-forty-letters-or-so!"


def test_a_drained_gateway_ends_by_itself(tmp_path: Path) -> None:
    KeyStore(tmp_path / "keys", create=True).create(Grant("ada"))
    (tmp_path / "admin.key").write_text(KEY)
    admin = f"127.0.0.1:{free_base_port()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "cogitate.gateway", "--listen", "127.0.0.1:0",
         "--ready-file", str(tmp_path / "ready"), "--api-keys", str(tmp_path / "keys"),
         "--admin-listen", admin, "--admin-key-file", str(tmp_path / "admin.key")],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        ends = time.monotonic() + 60
        while not (tmp_path / "ready").exists():
            assert process.poll() is None and time.monotonic() < ends
            time.sleep(0.02)
        metadata = (("authorization", f"Bearer {KEY}"),)
        with grpc.insecure_channel(admin) as channel:
            stub = AdminServiceStub(channel)
            assert stub.DrainGateway(pb2.DrainGatewayRequest(), metadata=metadata, timeout=5)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0 and "draining" in said and KEY not in said
    finally:
        process.kill()
        process.wait()
