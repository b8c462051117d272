"""Two tenants on one real mesh: what is one's is as if it were not there for the other."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from cogitate.client import Client, CogitateError, NotFound, PermissionDenied
from cogitate.gateway.accounts import Accounts
from cogitate.gateway.core.budgets import Budget
from cogitate.gateway.core.tenants import Grant
from cogitate.gateway.keys import KeyStore
from cogitate.v1.gateway_service_pb2 import GetTraceRequest
from cogitate.v1.gateway_service_pb2_grpc import GatewayServiceStub

from tests.integration.mesh import Mesh, running_mesh

pytestmark = pytest.mark.integration

BOARD = Path(__file__).parents[2] / "examples" / "board.png"
QUESTION = "What is the sum of the red cards?"


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mesh, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("state")
    store = KeyStore(folder / "keys", create=True)
    keys = {name: store.create(Grant(name))[1] for name in ("ada", "bob", "cara")}
    os.environ["COGITATE_GATEWAY_API_KEYS"] = str(folder / "keys")
    try:
        with running_mesh(folder) as mesh:
            yield mesh, keys
    finally:
        del os.environ["COGITATE_GATEWAY_API_KEYS"]


def refused(call: Any) -> tuple[str, str]:
    """What a refusal says."""
    with pytest.raises(CogitateError) as caught:
        call()
    return type(caught.value).__name__, caught.value.message


def trace_of(mesh: Mesh, key: str) -> Callable[[str], Any]:
    """Asks for a trace as whoever has the key; the client has no method for it."""

    def ask(id: str) -> Any:
        with grpc.insecure_channel(mesh.address) as channel:
            try:
                return GatewayServiceStub(channel).GetTrace(
                    GetTraceRequest(contemplation_id=id),
                    metadata=(("authorization", f"Bearer {key}"),),
                    timeout=10,
                )
            except grpc.RpcError as error:
                code, said = error.code(), error.details()
        assert code is grpc.StatusCode.NOT_FOUND
        raise NotFound(said)

    return ask


def test_a_foreign_id_is_an_unknown_id(tenants: tuple[Mesh, dict[str, str]]) -> None:
    mesh, keys = tenants
    with Client(mesh.address, api_key=keys["ada"]) as ada:
        answer = ada.ask(QUESTION, images=[BOARD], agents=2)
        id = answer.contemplation_id
        assert ada.get(id).contemplation_id == id
        digest = ada.upload(BOARD.with_name("countdown.png"))  # which nobody else has
        assert trace_of(mesh, keys["ada"])(id).is_stored
    unknown = str(uuid.uuid4())
    with Client(mesh.address, api_key=keys["bob"]) as bob:

        def attach(one: str) -> None:
            with bob.attach(one) as stream:
                next(stream)

        for method in (bob.get, bob.cancel, attach, trace_of(mesh, keys["bob"])):
            assert refused(lambda m=method: m(id)) == refused(lambda m=method: m(unknown))
            with pytest.raises(NotFound):
                method(id)
        assert id not in [one.contemplation_id for one in bob.list()]
        nobodys = "sha256:" + "0" * 64
        for call in (bob.blob, lambda one: bob.ask(QUESTION, images=[one])):
            told = [
                repr(refused(lambda one=one, call=call: call(one))).replace(one, "ID")
                for one in (digest, nobodys)
            ]
            assert told[0] == told[1]
    url = f"{mesh.http}/v1"
    with openai.OpenAI(base_url=url, api_key=keys["bob"], max_retries=0) as client:
        told = []
        for one in (uuid.UUID(id).hex, uuid.UUID(unknown).hex):
            with pytest.raises(openai.NotFoundError) as caught:
                client.responses.retrieve(f"resp_{one}")
            told.append(caught.value.body)
            with pytest.raises(openai.NotFoundError):
                client.responses.create(
                    model="mini", input="And now?", previous_response_id=f"resp_{one}"
                )
        assert told[0] == told[1]
    with openai.OpenAI(base_url=url, api_key=keys["ada"], max_retries=0) as client:
        found = client.responses.retrieve(f"resp_{uuid.UUID(id).hex}")
        assert found.output_text == answer.answer


def test_a_budget_binds_and_is_charged_by_the_mesh_s_own_counters(
    tenants: tuple[Mesh, dict[str, str]],
) -> None:
    mesh, keys = tenants
    with (
        closing(Accounts(mesh.state / "keys")) as accounts,
        Client(mesh.address, api_key=keys["cara"]) as cara,
    ):
        accounts.set_budget("cara", Budget(tokens_per_day=100))
        spent = 0
        for _ in range(40):
            try:
                answer = cara.ask(QUESTION, images=[BOARD], agents=2, seed=7)
            except CogitateError as error:
                assert "renews at" in error.message
                break
            spent += answer.certificate.ledger.generated_tokens
            assert accounts.use("cara")["day"].spent.tokens == spent
        else:
            raise AssertionError("the budget never ended")
        # Engines overshoot by a step for each agent at most, in the last contemplation.
        assert 100 <= spent <= 100 + 2
        with cara.contemplate(QUESTION, images=[BOARD]) as stream, pytest.raises(CogitateError):
            next(stream)
        assert not accounts.open()


def test_the_command_line_takes_its_key_from_the_environment(
    tenants: tuple[Mesh, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh, keys = tenants
    with Client(mesh.address) as nobody, pytest.raises(PermissionDenied, match="a key is needed"):
        nobody.ask(QUESTION)
    assert "COGITATE_API_KEY" in mesh.run("ask", QUESTION, "--json").stdout
    monkeypatch.setenv("COGITATE_API_KEY", keys["bob"])
    done = mesh.run("ask", QUESTION, "--image", str(BOARD), "--agents", "2", "--json")
    assert done.returncode == 0, done.stderr
    fleet = mesh.run("fleet")
    assert fleet.returncode == 0, fleet.stdout + fleet.stderr
