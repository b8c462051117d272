"""JWTs at the doors: what opens them, and everything that must not, by gRPC and HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cogitate.gateway.config import GatewayConfig
from cogitate.gateway.core.tenants import Grant
from cogitate.gateway.doors import Doors
from cogitate.gateway.issuer_keys import MAX_BYTES, IssuerKeys, parse
from cogitate.gateway.keys import KeyStore
from cogitate.gateway.tokens import ALGORITHMS, MAX_TOKEN_BYTES, REFUSED
from cogitate.kit import auth
from cogitate.kit.errors import InvalidRequest
from cogitate.v1 import contemplation_service_pb2 as pb2
from cogitate.v1.contemplation_service_pb2_grpc import ContemplationServiceStub

from tests.fakes import issuer
from tests.fakes.front import Mesh, mesh

pytestmark = pytest.mark.contract

NAMED = {"jwt_issuer": issuer.ISSUER, "jwt_audience": issuer.AUDIENCE}


@asynccontextmanager
async def gateway(folder: Path, *keys: dict[str, Any], **knobs: Any) -> AsyncIterator[Mesh]:
    """A gateway that takes tokens by a file of keys."""
    (folder / "jwks.json").write_bytes(issuer.jwks(*keys))
    given = {"jwt_keys": str(folder / "jwks.json"), "http_listen": "127.0.0.1:0", **NAMED} | knobs
    async with mesh(**given) as m:
        yield m


async def by_grpc(m: Mesh, text: str) -> tuple[grpc.StatusCode, str]:
    metadata = (("authorization", f"Bearer {text}"),)
    async with grpc.aio.insecure_channel(m.address) as channel:
        call = ContemplationServiceStub(channel).Contemplate(question(), metadata=metadata)
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code(), str(error.details())
    return grpc.StatusCode.OK, ""


async def by_http(m: Mesh, text: str) -> tuple[int, str]:
    def ask() -> tuple[int, str]:
        request = urllib.request.Request(f"http://{m.http}/v1/models")
        request.add_header("Authorization", f"Bearer {text}")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, ""
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())["error"]["message"]

    return await asyncio.to_thread(ask)


def question() -> pb2.ContemplateRequest:
    request = pb2.ContemplateRequest()
    request.spec.conversation.add(role="ROLE_USER").parts.add(text="What?")
    return request


def raw(header: Any, payload: Any, signature: bytes = b"") -> str:
    """A token put together by hand."""

    def part(value: Any) -> str:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    return ".".join((part(header), part(payload), part(signature)))


def hmac_by_public_key(**header: Any) -> str:
    """HS256 with the RSA public key as its secret: the confusion of RS and HS."""
    import hashlib
    import hmac

    head = {"alg": "HS256", "typ": "JWT", "kid": "RS256-one"} | header
    unsigned = raw(head, issuer.claims())[:-1]
    made = hmac.new(issuer.public_pem(), unsigned.encode(), hashlib.sha256).digest()
    return f"{unsigned}.{base64.urlsafe_b64encode(made).rstrip(b'=').decode()}"


def swapped(text: str, **changed: Any) -> str:
    """Other claims under a good signature."""
    head, _, signature = text.split(".")
    payload = base64.urlsafe_b64encode(json.dumps(issuer.claims(**changed)).encode())
    return ".".join((head, payload.rstrip(b"=").decode(), signature))


now = time.time
ATTACKS: dict[str, Callable[[], str]] = {
    "alg none": lambda: raw({"alg": "none", "kid": "ES256-one"}, issuer.claims()),
    "alg None": lambda: raw({"alg": "None", "kid": "ES256-one"}, issuer.claims()),
    "alg missing": lambda: raw({"kid": "ES256-one"}, issuer.claims()),
    "alg a list": lambda: raw({"alg": ["ES256"], "kid": "ES256-one"}, issuer.claims(), b"x" * 64),
    "HS by the public key": hmac_by_public_key,
    "HS by the public key, without kid": lambda: hmac_by_public_key(kid=None),
    "HS by nothing": lambda: jwt.encode(
        issuer.claims(), "x" * 32, "HS256", headers={"kid": "ES256-one"}
    ),
    "signed by another": lambda: issuer.token(name="other", header={"kid": "ES256-one"}),
    "another kind of key": lambda: issuer.token("RS256", header={"kid": "ES256-one"}),
    "ES384 by a P-256 name": lambda: raw(
        {"alg": "ES384", "kid": "ES256-one"}, issuer.claims(), b"x" * 96
    ),
    "other claims": lambda: swapped(issuer.token(), sub="bob"),
    "no signature": lambda: issuer.token().rpartition(".")[0] + ".",
    "wrong audience": lambda: issuer.token(aud="another"),
    "wrong audiences": lambda: issuer.token(aud=["another", "cogitate.evil"]),
    "no audience": lambda: issuer.token(aud=None),
    "wrong issuer": lambda: issuer.token(iss="https://issuer.test.evil"),
    "no issuer": lambda: issuer.token(iss=None),
    "expired": lambda: issuer.token(exp=int(now()) - 31),
    "no expiry": lambda: issuer.token(exp=None),
    "expires at no number": lambda: issuer.token(exp="soon"),
    "expires at infinity": lambda: raw(
        {"alg": "ES256", "kid": "ES256-one"}, b'{"exp": 1e999}', b"x" * 64
    ),
    "not before": lambda: issuer.token(nbf=int(now()) + 120),
    "issued in the future": lambda: issuer.token(iat=int(now()) + 120),
    "kid traversal": lambda: issuer.token(header={"kid": "../../../../dev/null"}),
    "kid a query": lambda: issuer.token(header={"kid": "' UNION SELECT 'x"}),
    "kid a number": lambda: raw({"alg": "ES256", "kid": 1}, issuer.claims(), b"x" * 64),
    "kid a list": lambda: raw({"alg": "ES256", "kid": ["ES256-one"]}, issuer.claims(), b"x" * 64),
    "no kid": lambda: issuer.token(header={}),
    "its own key": lambda: issuer.token(
        name="other", header={"kid": "ES256-one", "jwk": issuer.jwk(name="other")}
    ),
    "its own keys' address": lambda: issuer.token(
        name="other", header={"kid": "x", "jku": "http://127.0.0.1:9/jwks.json"}
    ),
    "no tenant": lambda: issuer.token(sub=None),
    "an empty tenant": lambda: issuer.token(sub=""),
    "a tenant's path": lambda: issuer.token(sub="../bob"),
    "a tenant of 65 letters": lambda: issuer.token(sub="x" * 65),
    "a deep payload": lambda: raw(
        {"alg": "ES256", "kid": "ES256-one"}, b"[" * 3000 + b"]" * 3000, b"x" * 64
    )[:MAX_TOKEN_BYTES],
    "a deep header": lambda: raw(b"[" * 2900 + b"]" * 2900, {}, b"x")[:MAX_TOKEN_BYTES],
    "no JSON": lambda: raw(b"\xff\xfe", b"\xff", b"x"),
    "dots": lambda: "..",
    "an empty list of models": lambda: issuer.token(models=[]),
    "models that are no names": lambda: issuer.token(models=[1, {}]),
}  # fmt: skip


async def test_every_attack_is_told_the_same(tmp_path: Path) -> None:
    async with gateway(tmp_path, jwt_models_claim="models") as m:
        for name, attack in ATTACKS.items():
            text = attack()
            assert len(text) <= MAX_TOKEN_BYTES, name
            if len(text) < 7000:  # else gRPC's own limit of metadata is met first
                found = await by_grpc(m, text)
                assert found == (grpc.StatusCode.UNAUTHENTICATED, REFUSED), name
            assert await by_http(m, text) == (401, REFUSED), name
        assert not m.aggregator.requests
        assert await by_grpc(m, issuer.token()) == (grpc.StatusCode.OK, "")


async def test_a_token_of_100_kb_is_refused_at_the_door_and_8_kib_is_the_limit(
    tmp_path: Path,
) -> None:
    async with gateway(tmp_path, http_max_head_bytes=256 * 1024, max_metadata_bytes=32 * 1024) as m:
        huge = issuer.token(filler="x" * 75_000)
        assert len(huge) > 100_000
        assert await by_http(m, huge) == (401, REFUSED)
        assert (await by_grpc(m, huge))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        opens = (grpc.StatusCode.OK, 200)
        shut = (grpc.StatusCode.UNAUTHENTICATED, 401)
        for size, codes in ((MAX_TOKEN_BYTES, opens), (MAX_TOKEN_BYTES + 1, shut)):
            text = of_length(size)
            assert ((await by_grpc(m, text))[0], (await by_http(m, text))[0]) == codes


def of_length(size: int) -> str:
    """A good token of so many bytes: the header's length closes the gaps that base64 leaves."""
    for pad in range(4):
        header = {"kid": "ES256-one", "pad": "x" * pad}
        missing = size - len(issuer.token(header=header, filler=""))
        for filler in range(missing * 3 // 4 - 2, missing * 3 // 4 + 3):
            text = issuer.token(header=header, filler="x" * filler)
            if len(text) == size:
                return text
    raise AssertionError(f"no token of {size} bytes")


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
async def test_good_tokens_of_each_algorithm_are_their_tenants(
    tmp_path: Path, algorithm: str
) -> None:
    async with gateway(tmp_path) as m:
        for given in ({}, {"aud": ["x", issuer.AUDIENCE]}, {"exp": int(now()) - 20}):
            assert (await by_grpc(m, issuer.token(algorithm, **given)))[0] is grpc.StatusCode.OK
        told = {metadata[auth.TENANT_METADATA_KEY] for metadata in m.aggregator.metadata}
        assert told == {"ada"}
    async with gateway(tmp_path, jwt_algorithms=tuple(ALGORITHMS - {algorithm})) as m:
        found = await by_grpc(m, issuer.token(algorithm))
        assert found == (grpc.StatusCode.UNAUTHENTICATED, REFUSED)


async def test_claims_narrow_what_a_token_may(tmp_path: Path) -> None:
    claims = {f"jwt_{what}_claim": f"{what}.c" for what in ("models", "tools", "providers")}
    async with gateway(tmp_path, **claims) as m:
        text = issuer.token(**{"models.c": ["mini"], "tools.c": "calculator zoom",
                               "providers.c": ["aurora"]})  # fmt: skip
        assert (await by_grpc(m, text))[0] is grpc.StatusCode.OK
        (request,) = m.aggregator.requests
        assert list(request.spec.allowed_tools) == ["calculator", "zoom"]
        assert list(request.spec.constraints.providers) == ["aurora"]
        code, said = await by_grpc(m, issuer.token(**{"models.c": "big"}))
        assert code is grpc.StatusCode.PERMISSION_DENIED and "may use: big" in said


async def test_tenants_by_token_have_limits_of_their_own(tmp_path: Path) -> None:
    async with gateway(tmp_path, jwt_requests_per_minute=2) as m:
        ada, bob = issuer.token(sub="ada"), issuer.token(sub="bob")
        told = [await by_http(m, ada) for _ in range(3)]
        assert [status for status, _ in told] == [200, 200, 429]
        assert (await by_http(m, bob))[0] == 200
        assert (await by_grpc(m, ada))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_keys_and_tokens_work_beside_each_other(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys", create=True)
    key = store.create(Grant("bob"))[1]
    async with gateway(tmp_path, api_keys=str(tmp_path / "keys")) as m:
        for text, status in ((key, 200), (issuer.token(), 200), ("cog_wrong", 401), ("a.b.c", 401)):
            code, said = await by_http(m, text)
            assert (code, said or REFUSED) == (status, REFUSED)
    async with mesh(api_keys=str(tmp_path / "keys"), http_listen="127.0.0.1:0") as m:
        assert await by_http(m, issuer.token()) == (401, REFUSED), "no tokens unless configured"
        assert (await by_http(m, key))[0] == 200
    async with gateway(tmp_path) as m:
        assert await by_http(m, key) == (401, REFUSED), "no keys unless configured"


async def test_new_keys_of_the_issuer_are_fetched_once_for_all_who_wait(tmp_path: Path) -> None:
    with issuer.server() as told:
        async with mesh(
            jwt_keys=told.url, http_listen="127.0.0.1:0", jwt_refresh_min_s=0.5, **NAMED
        ) as m:
            told.delay_s = 0.1
            found = await asyncio.gather(*(by_grpc(m, issuer.token()) for _ in range(8)))
            assert {code for code, _ in found} == {grpc.StatusCode.OK} and told.count == 1
            fresh = issuer.token(name="next")
            for _ in range(20):  # a storm of unknown keys
                await by_grpc(m, fresh)
            assert told.count == 1, "asked again too soon"
            told.body = issuer.jwks(issuer.jwk(name="next"))
            await asyncio.sleep(0.5)
            found = await asyncio.gather(*(by_grpc(m, fresh) for _ in range(8)))
            assert {code for code, _ in found} == {grpc.StatusCode.OK} and told.count == 2
            gone = await by_grpc(m, issuer.token())
            assert gone[0] is grpc.StatusCode.UNAUTHENTICATED, "a key withdrawn opens nothing"


@pytest.mark.parametrize(
    ("status", "body", "redirected"),
    [
        (500, b"", False), (200, b"nothing", False), (200, b'{"keys": []}', False),
        (200, b" " * (MAX_BYTES + 1), False), (302, b"", True),
    ],
)  # fmt: skip
async def test_what_an_issuer_says_wrong_leaves_the_keys_as_they_are(
    status: int, body: bytes, redirected: bool
) -> None:
    with issuer.server() as elsewhere, issuer.server() as told:
        keys = IssuerKeys(told.url, ALGORITHMS, refresh_s=0.0, least_interval_s=0.0)
        await keys.look_for("ES256-one")
        assert keys.find("ES256-one")
        told.status, told.body = status, body
        told.location = elsewhere.url if redirected else ""
        await keys.look_for("nobody's")
        assert told.count == 2 and keys.find("ES256-one") and not keys.find("nobody's")
        assert not elsewhere.count
        await keys.close()


async def test_a_request_that_ends_does_not_end_the_fetch() -> None:
    with issuer.server() as told:
        told.delay_s = 0.2
        keys = IssuerKeys(told.url, ALGORITHMS, refresh_s=60, least_interval_s=60)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await keys.look_for("ES256-one")
        await keys.look_for("ES256-one")
        assert keys.find("ES256-one") and told.count == 1
        await keys.close()


def test_secrets_and_strange_keys_among_public_ones_are_left_out() -> None:
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"}
    encrypting = issuer.jwk() | {"use": "enc", "kid": "encrypting"}
    private = issuer.KINDS["ES256"].to_jwk(issuer.key(), as_dict=True) | {"kid": "private"}
    strange = {"kty": "EC", "crv": "P-999", "kid": "strange"}
    kept = parse(issuer.jwks(secret, encrypting, private, strange, issuer.jwk()), ALGORITHMS)
    assert set(kept) == {"ES256-one"}
    for bad in (b"", b"[]", b'{"keys": 1}', b'{"keys": [1]}', issuer.jwks(secret)):
        with pytest.raises(ValueError, match="JWKS"):
            parse(bad, ALGORITHMS)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"jwt_issuer": ""}, "needs jwt_issuer"),
        ({"jwt_audience": ""}, "needs jwt_issuer"),
        ({"jwt_keys": "/nowhere/jwks.json"}, "jwt_keys: "),
        ({"jwt_algorithms": ("HS256", "none")}, "no key for"),
    ],
)
def test_what_is_configured_wrong_is_said_at_the_start(
    tmp_path: Path, knobs: dict[str, Any], said: str
) -> None:
    (tmp_path / "jwks.json").write_bytes(issuer.jwks())
    given: dict[str, Any] = {"jwt_keys": str(tmp_path / "jwks.json"), **NAMED} | knobs
    with pytest.raises(InvalidRequest, match=said):
        Doors(GatewayConfig(**given))
