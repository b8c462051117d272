"""Who is taken for dead: by silence, and only as long as this process hears at all."""

from __future__ import annotations

import pytest
from cogitate.aggregator.nats_peers import Peers

pytestmark = pytest.mark.unit

HUNG_S = 4.0


class Heard:
    """Peers by a clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.peers = Peers(HUNG_S, monotonic=lambda: self.now_s)
        self.peers.heard("other", "10.0.0.1:7101")

    def wait(self, seconds: float, *, own: bool = True, other: bool = False) -> None:
        """Time passes by quarters of a second, with a beat of each in every one."""
        for _ in range(int(seconds * 4)):
            self.now_s += 0.25
            if own:
                self.peers.heard_own()
            if other:
                self.peers.heard("other", "10.0.0.1:7101")


def test_who_falls_silent_is_dead_after_its_time_and_alive_when_it_speaks() -> None:
    heard = Heard()
    heard.wait(HUNG_S)
    assert not heard.peers.is_dead("other") and heard.peers.any_lives()
    heard.wait(0.25)
    assert heard.peers.is_dead("other") and not heard.peers.any_lives()
    heard.wait(0.25, other=True)
    assert not heard.peers.is_dead("other")
    assert heard.peers.address_of("other") == "10.0.0.1:7101"


def test_the_deaf_take_nobody_for_dead_and_listen_anew_when_they_hear() -> None:
    heard = Heard()
    heard.wait(60.0, own=False)
    assert not heard.peers.is_dead("other"), "it may have spoken all the time"
    heard.wait(HUNG_S)
    assert not heard.peers.is_dead("other"), "its time began when hearing came back"
    heard.wait(0.5)
    assert heard.peers.is_dead("other")


def test_a_goodbye_holds_at_once_and_over_deafness() -> None:
    heard = Heard()
    heard.peers.heard("other", "")
    assert heard.peers.is_dead("other") and heard.peers.address_of("other") == ""
    heard.wait(60.0, own=False)
    heard.wait(0.25)
    assert heard.peers.is_dead("other")


def test_an_owner_never_heard_of_is_given_the_same_time() -> None:
    heard = Heard()
    assert not heard.peers.is_dead("stranger")
    heard.wait(HUNG_S)
    assert not heard.peers.is_dead("stranger")
    heard.wait(0.25)
    assert heard.peers.is_dead("stranger")
