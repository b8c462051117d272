"""Policies that others have published, to compare with: each as its source says, on our fleet.

All but `burst_prefix` were made for single requests, so they take the agents of a gang one after
the other, each seeing where those before it went.
"""

from __future__ import annotations

import numpy as np
from cogitate.router.core import board as b
from cogitate.router.core.board import Floats, Ints, hash64
from cogitate.router.core.deal import Split, Spread, Tally, fill, greedy
from cogitate.router.core.scores import Scores, blocks, cached_rows

# A prefix stays where it is until that has so many times the mean load (their c, 1.25 there).
_BOUND = 1.25


def power_of_two(scores: Scores, count: int, spread: Spread) -> Split:
    """Each agent to the less loaded of two endpoints that its hash picks.

    Source: Mitzenmacher, The power of two choices in randomized load balancing, IEEE TPDS 12(10),
    2001. Loads are sequences; who is full is passed over.
    """
    tally = Tally(scores, count, spread)
    order = np.argsort(scores.mixed, kind="stable").tolist()
    tally.first_of_domains(order)
    loads = scores.sequences
    for agent in range(64 * count):
        if not tally.left:
            break
        drawn = hash64(f"{scores.need.contemplation_id}\0{agent}")
        pair = (drawn % len(scores), (drawn >> 32) % len(scores))
        able = [p for p in pair if tally.may(p)]
        if able:
            tally.give(min(able, key=lambda p: loads[p] + tally.split.get(p, 0)))
    for place in order:  # nearly full: whoever has room
        tally.give(place, tally.left)
    return tally.split


def prefix_affine(scores: Scores, count: int, spread: Spread) -> Split:
    """All to the endpoint that the prefix's hash picks, the next ones where it is loaded.

    Source: rendezvous hashing (Thaler and Ravishankar, 1998) with bounded loads (Mirrokni, Thorup
    and Zadimoghaddam, Consistent hashing with bounded loads, SODA 2018).
    """
    digest = scores.need.prefix_digest or scores.need.contemplation_id
    rank = scores.board.mixed(digest, scores.rows)
    most = scores.board.number(b.MAX_SEQUENCES)[scores.rows]
    fullness = (scores.sequences + count) / most
    mean = (float(scores.sequences.sum()) + count) / float(most.sum())
    over = fullness > max(_BOUND * mean, float(fullness.min()))
    return fill(scores, count, spread, rank + over)


def dynamo_kv(scores: Scores, count: int, spread: Spread) -> Split:
    """Each agent to the least `overlap_score_weight * prefill_blocks + decode_blocks`, weight 1.

    Source: NVIDIA Dynamo, docs/design_docs/router_design.md, "Cost Calculation". Blocks that are
    cached, or that an agent of the gang brings there already, are not prefilled again; decode
    blocks are those that would be in use. Temperature 0.
    """
    board, need = scores.board, scores.need
    prefix, each = blocks(board, need, scores.rows)
    size = np.maximum(1.0, board.number(b.BLOCK_SIZE)[scores.rows])
    prefix = np.where(prefix > 0, prefix, need.prefix_tokens / 16)  # no KV memory: as if of 16
    each = np.where(each > 0, each, scores.steps / 16)
    new = np.where(np.isin(scores.rows, cached_rows(board, need)), 0.0, prefix)
    held = board.number(b.TOTAL_BLOCKS)[scores.rows] - board.number(b.FREE_BLOCKS)[scores.rows]
    held = np.where(size > 1, held, scores.sequences * (prefix + each))

    def cost(places: Ints, k: int) -> Floats:
        prefill = new[places] if k == 1 else np.zeros(len(places))
        return prefill + held[places] + prefix[places] + k * each[places]

    return greedy(scores, count, spread, cost)


def burst_prefix(scores: Scores, count: int, spread: Spread) -> Split:
    """The whole group to the least loaded replica; what does not fit spills to the next.

    Source: llm-d/llm-d-router, pkg/epp/framework/plugins/requestcontrol/dataproducer/burstprefix
    (README), `maxPerReplica` -1. Its window of 100 ms is not charged to it: gangs are declared.
    """
    most = scores.board.number(b.MAX_SEQUENCES)[scores.rows]
    return fill(scores, count, spread, scores.sequences / most + 1e-9 * scores.mixed)


def spot_hedge(scores: Scores, count: int, spread: Spread) -> Split:
    """Spot endpoints first, from all zones in turn, none where spot is being taken away just now;
    on demand for what they cannot take. Among equals the least loaded.

    Source: SpotHedge, Mao et al., SkyServe, EuroSys 2025 (arXiv 2411.01438), section 3. It decides
    which replicas to run; here the replicas are given, and it decides which are used.
    """
    board = scores.board
    spot = board.number(b.SPOT) > 0
    leaving = np.unique(board.index(b.DOMAIN)[spot & (board.number(b.DRAINING) > 0)])
    preempting = np.isin(scores.domains, leaving)
    wanted = spot[scores.rows] & ~preempting
    most = board.number(b.MAX_SEQUENCES)[scores.rows]
    load = scores.sequences / most
    order = np.argsort(load + 1e-9 * scores.mixed, kind="stable")
    turn = np.empty(len(scores))
    domains = scores.domains[order]
    by_domain = np.argsort(domains, kind="stable")
    sorted_ = domains[by_domain]
    starts = np.flatnonzero(np.r_[True, sorted_[1:] != sorted_[:-1]])
    sizes = np.diff(np.r_[starts, len(sorted_)])
    turn[order[by_domain]] = np.arange(len(sorted_)) - np.repeat(starts, sizes)

    def cost(places: Ints, k: int) -> Floats:
        # A zone's second endpoint comes after the first of every other zone.
        first = np.where(wanted[places], 0.0, 1e6)
        return (
            first + (load[places] + k / most[places]) * 1000 + np.minimum(turn[places], 1e3) * 0.1
        )

    return greedy(scores, count, spread, cost)
