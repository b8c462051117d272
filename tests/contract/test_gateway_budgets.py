"""Budgets at the doors: who pays, how much, and what is said when nothing is left."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from cogitate.cli import main as cli
from cogitate.client import AsyncClient
from cogitate.gateway import accounts as accounts_module
from cogitate.gateway import charging
from cogitate.gateway.accounts import Accounts
from cogitate.gateway.core.budgets import Amount, Budget
from cogitate.gateway.core.tenants import Grant
from cogitate.gateway.keys import KeyStore
from cogitate.kit.errors import AlreadyExists, InvalidRequest
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.fakes.aggregator import Break, Raise, Step, Wait
from tests.fakes.front import Mesh, endless, happy, mesh

pytestmark = pytest.mark.contract

ASKED: list[Any] = [{"role": "user", "content": "What?"}]
Event = pb2.ContemplationEvent


def costing(
    tokens: int, micro_usd: int = 0, how: str = "verdict"
) -> Callable[[Any], Sequence[Step]]:
    """A contemplation that ends so, having cost so much."""
    ledger = common_pb2.Ledger(generated_token_count=tokens, cost_micro_usd=micro_usd)
    verdict = common_pb2.Verdict(answer="4.", certificate=common_pb2.Certificate(ledger=ledger))
    ends = {
        "verdict": Event(verdict=verdict),
        "failed": Event(failed=pb2.Failed(code=13, reason="NO_QUORUM", ledger=ledger)),
        "cancelled": Event(cancelled=pb2.ContemplationCancelled(ledger=ledger)),
    }
    return lambda request: (Event(accepted=pb2.Accepted(model="mini")), ends[how])


@asynccontextmanager
async def charged(
    folder: Path, script: Any = happy, **budget: int
) -> AsyncIterator[tuple[Mesh, str, Accounts]]:
    """A gateway with one tenant, its key, and the accounts as another process sees them."""
    path = folder / "keys"
    store = KeyStore(path, create=not path.exists())
    key = store.create(Grant("ada"))[1]
    store.close()
    with closing(Accounts(path)) as accounts:
        if budget:
            accounts.set_budget("ada", Budget(**budget))
        async with mesh(script, api_keys=str(path), http_listen="127.0.0.1:0") as m:
            yield m, key, accounts


def with_key(m: Mesh, key: str) -> AsyncClient:
    return AsyncClient(m.address, api_key=key)


def spent(accounts: Accounts, tenant: str = "ada") -> Amount:
    use = accounts.use(tenant)
    assert use["day"].spent == use["month"].spent
    return use["day"].spent


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(8):
        while not holds():
            await asyncio.sleep(0.02)


def question(**spec: Any) -> pb2.ContemplateRequest:
    request = pb2.ContemplateRequest(spec=pb2.ContemplationSpec(**spec))
    request.spec.conversation.add(role="ROLE_USER").parts.add(text="What?")
    return request


@pytest.mark.parametrize("how", ["verdict", "failed", "cancelled"])
async def test_each_ending_is_booked_by_its_counters(tmp_path: Path, how: str) -> None:
    async with charged(tmp_path, costing(700, 30, how)) as (m, key, accounts):
        metadata = (("authorization", f"Bearer {key}"),)
        async for _ in m.contemplation.Contemplate(question(), metadata=metadata):
            pass
        assert spent(accounts) == Amount(700, 30)
        assert accounts.use("ada")["day"].contemplations == 1 and not accounts.open()
        assert not m.aggregator.requests[0].spec.budget.max_tokens, "without a budget nothing binds"


async def test_a_contemplation_is_bound_to_its_part_and_the_rest_is_free_again(
    tmp_path: Path,
) -> None:
    async with charged(
        tmp_path, costing(1000, 10), tokens_per_day=20_000, micro_usd_per_month=100
    ) as (m, key, accounts):
        async with with_key(m, key) as ada:
            await ada.ask("What?")
            await ada.ask("What?", budget_tokens=50_000)
        bound = [
            (request.spec.budget.max_tokens, request.spec.budget.max_cost_micro_usd)
            for request in m.aggregator.requests
        ]
        assert bound == [(5000, 25), (19_000, 22)]
        assert spent(accounts) == Amount(2000, 20)
        assert accounts.use("ada")["day"].granted == Amount()


async def test_nothing_left_is_429_and_says_what_renews_when(tmp_path: Path) -> None:
    async with charged(tmp_path, costing(100), tokens_per_day=100) as (m, key, accounts):
        url = f"http://{m.http}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as ada:
            await ada.chat.completions.create(model="mini", messages=ASKED)
            with pytest.raises(openai.RateLimitError) as caught:
                await ada.chat.completions.create(model="mini", messages=ASKED)
        told: Any = caught.value.body
        assert told["code"] == "tenant_limit" and told["metadata"]["budget"] == "tokens_per_day"
        assert told["metadata"]["renews"].endswith("T00:00:00Z")
        assert caught.value.response.headers["x-should-retry"] == "false"
        metadata = (("authorization", f"Bearer {key}"),)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in m.contemplation.Contemplate(question(), metadata=metadata):
                pass
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        info = error_details_pb2.ErrorInfo()
        status = rpc_status.from_call(refused.value)
        assert status.details[0].Unpack(info)
        assert info.reason == "TENANT_LIMIT" and info.metadata["limit"] == "100 tokens"
        assert len(m.aggregator.requests) == 1
        accounts.set_budget("ada", Budget(tokens_per_day=101))
        async with with_key(m, key) as ada:
            await ada.ask("What?")  # holds at once, and one token is left
        assert m.aggregator.requests[-1].spec.budget.max_tokens == 1


async def test_what_runs_holds_its_part_and_others_wait_for_it(tmp_path: Path) -> None:
    async with charged(tmp_path, endless, tokens_per_day=5000) as (m, key, _):
        async with with_key(m, key) as ada:
            async with ada.contemplate("What?", budget_tokens=5000) as stream:
                await anext(stream)
                with pytest.raises(Exception, match="granted to contemplations that run"):
                    await ada.ask("What?")


async def test_a_client_that_leaves_pays_what_it_cost(tmp_path: Path) -> None:
    script = lambda request: (*endless(request)[:20], Wait(30))  # noqa: E731
    async with charged(tmp_path, script, tokens_per_day=9000) as (m, key, accounts):
        async with with_key(m, key) as ada:
            async with ada.contemplate("What?") as stream:
                await anext(stream)
            await until(m.aggregator.cancelled.is_set)
            (played,) = m.aggregator.played.values()
            played.events.append(list(costing(321, how="cancelled")(None))[1])
            await until(lambda: spent(accounts) == Amount(321))
        assert not accounts.open()


async def test_one_that_left_before_it_was_told_the_id_is_found_and_pays(tmp_path: Path) -> None:
    """A client could else have its question answered for nothing."""
    script = lambda request: (Wait(0.3), *costing(55)(request))  # noqa: E731
    async with charged(tmp_path, script, tokens_per_day=9000) as (m, key, accounts):
        metadata = (("authorization", f"Bearer {key}"),)
        call = m.contemplation.Contemplate(question(), metadata=metadata)
        await until(lambda: bool(m.aggregator.played))
        call.cancel()
        await until(m.aggregator.cancelled.is_set)
        (played,) = m.aggregator.played.values()
        for event in costing(55)(None):
            played.events.append(event)  # the aggregator went on with it
        await until(lambda: spent(accounts) == Amount(55))


async def test_what_is_deleted_before_it_is_booked_costs_all_it_was_granted(tmp_path: Path) -> None:
    script = lambda request: (*endless(request)[:3], Wait(30))  # noqa: E731
    async with charged(tmp_path, script, tokens_per_day=20_000) as (m, key, accounts):
        async with with_key(m, key) as ada:
            async with ada.contemplate("What?") as stream:
                await anext(stream)
            m.aggregator.played.clear()
            await until(lambda: spent(accounts) == Amount(5000))


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "UNAVAILABLE"])
async def test_what_never_began_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(charging, "LOST_S", 0.05)
    if code == "UNAVAILABLE":
        script: Any = lambda request: (Break(),)  # noqa: E731
    else:
        script = lambda request: (Raise(InvalidRequest("no")),)  # noqa: E731
    async with charged(tmp_path, script, tokens_per_day=9000) as (m, key, accounts):
        async with with_key(m, key) as ada:
            with pytest.raises(Exception, match=r"no|does not answer"):
                await ada.ask("What?")
        m.aggregator.played.clear()
        await until(lambda: not accounts.open())
        assert accounts.use("ada")["day"].contemplations == 0


async def test_a_question_whose_image_cannot_be_stored_costs_nothing(tmp_path: Path) -> None:
    async with charged(tmp_path, costing(9), tokens_per_day=9000) as (m, key, accounts):
        metadata = (("authorization", f"Bearer {key}"),)
        asked = question()
        asked.spec.conversation[0].parts.add().image.data = b"no image"
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in m.contemplation.Contemplate(asked, metadata=metadata):
                pass
        assert not m.aggregator.requests and not accounts.open()


async def test_the_same_question_again_has_the_same_part_and_pays_once(tmp_path: Path) -> None:
    async with charged(tmp_path, costing(500), tokens_per_day=40_000) as (m, key, accounts):
        metadata = (("authorization", f"Bearer {key}"),)
        id = str(uuid.uuid4())
        for _ in range(2):
            async for _ in m.contemplation.Contemplate(question(request_id=id), metadata=metadata):
                pass
        assert spent(accounts) == Amount(500) and len(m.aggregator.played) == 1
        budget = common_pb2.Budget(max_tokens=7)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in m.contemplation.Contemplate(
                question(request_id=id, budget=budget), metadata=metadata
            ):
                pass
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_what_a_killed_gateway_left_open_is_booked_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charging, "SWEEP_S", 0.05)
    async with charged(tmp_path, costing(77), tokens_per_day=9000) as (m, _, accounts):
        # As the other one did before it was killed: it had begun, and not been told the id.
        accounts.begin("ada", "lost", Amount())
        run = m.aggregator.Contemplate(question(request_id="lost"), FakeContext())
        async for _ in run:
            pass
        await until(lambda: spent(accounts) == Amount(77))
        assert not accounts.open()


class FakeContext:
    """Enough of a call for the scripted aggregator."""

    def time_remaining(self) -> float:
        return 1.0

    def invocation_metadata(self) -> tuple[()]:
        return ()


def test_two_gateways_share_one_file_and_a_restart_forgets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with closing(Accounts(path)) as one, closing(Accounts(path)) as two:
        one.set_budget("ada", Budget(tokens_per_day=10_000))
        assert one.begin("ada", "1", Amount(6000))[0] == Amount(6000)
        assert two.begin("ada", "2", Amount(6000))[0] == Amount(4000)
        assert two.book("ada", "1", Amount(100)) and not one.book("ada", "1", Amount(100))
    with closing(Accounts(path)) as again:
        assert spent(again) == Amount(100)
        assert again.use("ada")["day"].granted == Amount(4000)
        (one_open,) = again.open()
        assert (one_open.tenant, one_open.request_id, one_open.granted.tokens) == ("ada", "2", 4000)


def test_midnight_and_the_first_of_the_month_renew(tmp_path: Path) -> None:
    clock = {"now": 1_798_761_599.0}  # 31 December 2026, 23:59:59 UTC
    with closing(Accounts(tmp_path / "keys", now=lambda: clock["now"])) as accounts:
        accounts.set_budget("ada", Budget(tokens_per_day=10, tokens_per_month=10))
        accounts.begin("ada", "old", Amount(10))
        clock["now"] += 1
        assert accounts.begin("ada", "new", Amount(10))[0] == Amount(10)
        accounts.book("ada", "old", Amount(10))
        assert accounts.use("ada")["month"].spent == Amount(), "booked where it began"
        with pytest.raises(AlreadyExists):
            accounts.begin("ada", "new", Amount(9))


def test_old_rows_are_forgotten_and_open_ones_are_not(tmp_path: Path) -> None:
    clock = {"now": 1_000_000.0}
    with closing(Accounts(tmp_path / "keys", now=lambda: clock["now"])) as accounts:
        for id in ("booked", "open"):
            accounts.begin("ada", id, Amount(5))
        accounts.book("ada", "booked", Amount(5))
        clock["now"] += accounts_module.KEEP_S
        accounts.forget_old()
        assert not accounts.begin("ada", "booked", Amount(5))[1]
        clock["now"] += 1
        accounts.forget_old()
        assert accounts.begin("ada", "booked", Amount(5))[1]
        assert accounts.find_open("ada", "open")


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    with pytest.raises(InvalidRequest, match="unable to open"):
        Accounts(tmp_path / "keys")


def test_the_command_line_sets_and_shows_budgets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ["--file", str(tmp_path / "keys")]
    made = ["keys", "create", *file, "--tenant", "lab", "--tokens-per-day", "200"]
    assert cli.main([*made, "--usd-per-month", "1.50"]) == 0
    assert cli.main(["keys", "budget", *file, "lab", "--usd-per-month", "80"]) == 0
    with closing(Accounts(tmp_path / "keys")) as accounts:
        assert accounts.budget("lab") == Budget(tokens_per_day=200, micro_usd_per_month=80_000_000)
        accounts.begin("lab", "1", Amount())
        accounts.book("lab", "1", Amount(150, 2_500_000))
    capsys.readouterr()
    assert cli.main(["keys", "usage", *file]) == 0
    told = capsys.readouterr().out
    assert "150 tokens, 2.50 US dollars" in told and "80.00 US dollars" in told
    assert cli.main(["keys", "budget", *file, "lab", "--tokens-per-day", "0"]) == 0
    assert cli.main(["keys", "budget", *file, "../x", "--tokens-per-day", "1"]) == 1
    for bad in ("-1", "x", "1e400"):
        with pytest.raises(SystemExit):
            cli.main(["keys", "budget", *file, "lab", "--usd-per-day", bad])
