"""Which vision-encoder a decoder asks, and what it says when none has the image."""

from __future__ import annotations

import pytest
from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.agent_decoder.encoders import encoders_of, first_of
from cogitate.kit.channels import deadline_scope, remaining_s
from cogitate.kit.errors import CogitateError, EngineFailure, InvalidRequest, NoEndpoint, NotFound
from cogitate.v1 import agent_decoder_service_pb2 as pb

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("own", "named", "expected"),
    [
        ("", "", ()),
        ("site:1", "", ("site:1",)),
        ("", "home:1", ("home:1",)),
        ("site:1", "home:1", ("site:1", "home:1")),
        ("home:1", "home:1", ("home:1",)),
    ],
)
def test_the_sites_own_comes_first(own: str, named: str, expected: tuple[str, ...]) -> None:
    config = AgentDecoderConfig(vision_encoder_address=own)
    assert encoders_of(config, pb.OpenGang(vision_encoder_address=named)) == expected


async def test_the_first_that_has_it_answers() -> None:
    asked = []

    async def ask(address: str) -> str:
        asked.append(address)
        if address == "site":
            raise NotFound("it is not here")
        return address

    assert await first_of(["home"], 1, ask) == "home"
    assert await first_of(["site", "home"], 1, ask) == "home"
    assert await first_of(["home", "site"], 1, ask) == "home"
    assert asked == ["home", "site", "home", "home"]


@pytest.mark.parametrize("last", [NoEndpoint("x"), NotFound("x"), EngineFailure("x")])
async def test_the_last_ones_error_is_told(last: CogitateError) -> None:
    errors = {"site": InvalidRequest("no tower of that model"), "home": last}

    async def ask(address: str) -> str:
        raise errors[address]

    with pytest.raises(type(last)) as caught:
        await first_of(["site", "home"], 1, ask)
    assert caught.value is last


async def test_none_is_an_error_of_its_own() -> None:
    async def ask(address: str) -> str:
        raise AssertionError("nobody is there to be asked")

    with pytest.raises(NoEndpoint, match="no vision-encoder was named"):
        await first_of([], 1, ask)


async def test_a_fault_of_ours_is_not_hidden_behind_the_next() -> None:
    async def ask(address: str) -> str:
        raise KeyError(address)

    with pytest.raises(KeyError, match="site"):
        await first_of(["site", "home"], 1, ask)


async def test_all_of_it_is_within_the_limit_and_the_callers() -> None:
    left = []

    async def ask(address: str) -> str:
        left.append(remaining_s() or 0.0)
        raise NotFound("it is not here")

    for limit in (100.0, 10.0):
        with deadline_scope(limit), pytest.raises(NotFound):
            await first_of(["site", "home"], 60.0, ask)
    site, home, bound_site, bound_home = left
    assert 20 < site <= 30 < 50 < home <= 60
    assert bound_site <= 10 and bound_home <= 10
