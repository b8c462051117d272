"""Ways to split a gang over the endpoints that may take it. Registered by name in POLICIES.

A policy gets scores of endpoints, each with room for at least one agent and together for all of
them, and returns how many agents each place gets. It must keep three promises, which
`placement.place` checks: all agents are placed within the room, at least `domains` failure domains
are used, and no provider has more than its limit (the caller never asks for what cannot be).

`gang`, the default, is in ``solve``; what others have published is in ``peers``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from cogitate.router.core import board as b
from cogitate.router.core import peers
from cogitate.router.core.board import Floats, Ints
from cogitate.router.core.deal import Split, Spread, Tally, fill, greedy
from cogitate.router.core.scores import Scores
from cogitate.router.core.solve import gang

Policy = Callable[[Scores, int, Spread], Split]


def pack(scores: Scores, count: int, spread: Spread) -> Split:
    """Fills the roomiest endpoints first: fewest prefills, whatever the time."""
    return fill(scores, count, spread, scores.mixed - np.minimum(scores.room, count))


def least_load(scores: Scores, count: int, spread: Spread) -> Split:
    """Gives each agent to the endpoint with the smallest share of its places taken."""
    most = scores.board.number(b.MAX_SEQUENCES)[scores.rows]

    def fullness(places: Ints, k: int) -> Floats:
        return (scores.sequences[places] + k) / most[places]

    return greedy(scores, count, spread, fullness)


def round_robin(scores: Scores, count: int, spread: Spread) -> Split:
    """Deals the agents one by one, going on where the gang before it ended."""
    start = scores.need.turn % len(scores)
    turn = [*range(start, len(scores)), *range(start)]
    tally = Tally(scores, count, spread)
    tally.first_of_domains(turn)
    rest = [p for p in turn if p not in tally.split]
    for place in rest[: tally.left]:
        if tally.may(place):
            tally.give(place)
    while tally.left:
        for place in turn:
            if tally.may(place):
                tally.give(place)
    return tally.split


POLICIES: dict[str, Policy] = {
    "gang": gang,
    "pack": pack,
    "least_load": least_load,
    "round_robin": round_robin,
    "power_of_two": peers.power_of_two,
    "prefix_affine": peers.prefix_affine,
    "dynamo_kv": peers.dynamo_kv,
    "burst_prefix": peers.burst_prefix,
    "spot_hedge": peers.spot_hedge,
}
