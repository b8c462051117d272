"""Tries whether products of fixed shapes give a row the same bits in every place, on this machine.

Nothing promises that a library's product treats all its rows alike: a kernel may take the last
ones another way, or an element behind the last whole vector. So it is tried, with all a step does,
before the promise is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from cogitate.agent_decoder.model.attention import Attend, Look
from cogitate.agent_decoder.model.llama import Llama
from cogitate.agent_decoder.model.looks import Tiles

# Computes some rows, given by their numbers, in one tile.
_Trial = Callable[[torch.Tensor], torch.Tensor]
# Rows of larger tiles: a weight is read as often as there are tiles.
_WIDE = 64


@torch.inference_mode()
def find_tiles(llama: Llama) -> tuple[Tiles | None, str]:
    """Shapes in which a row's numbers depend neither on its place nor on its neighbours.

    None where there are none, with where it fails as a phrase. Linear layers are tried on the first
    layer: the others have the same shapes.
    """
    c, tiles, dice = llama.config, Tiles.of(llama.config), torch.Generator().manual_seed(0)

    def rows(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=dice).to(llama.device, llama.dtype)

    layer, turns = llama.layers[0], rows(_WIDE, 1, c.head_dim // 2).to(torch.complex64)
    mixed, hidden = rows(_WIDE, c.num_heads * c.head_dim), rows(_WIDE, c.hidden_size)
    trials: dict[str, _Trial] = {
        "projections": lambda places: llama.project(layer, hidden[places], turns[places]),
        "feed-forward layers": lambda places: llama.feed(layer, hidden[places], mixed[places]),
        "the head": lambda places: llama.head(hidden[places]),
    }
    for name, compute in trials.items():
        if not _same_in_every_place(compute, torch.arange(tiles.rows, device=llama.device)):
            return None, f"{name} give a row other bits in another place"
    if not _attention_is_the_same(llama, tiles, rows):
        return None, "attention gives a query other bits in another place"
    places = torch.arange(_WIDE, device=llama.device)
    if all(_same_in_wide_tiles(trial, places, tiles.rows) for trial in trials.values()):
        tiles = replace(tiles, wide=_WIDE)
    return tiles, ""


def _same_in_wide_tiles(compute: _Trial, places: torch.Tensor, size: int) -> bool:
    """Whether rows come out of one wide tile as of small ones, whatever their place in either."""
    return all(
        torch.equal(
            compute(places.roll(by)),
            torch.cat([compute(part) for part in places.roll(by).view(-1, size)]),
        )
        for by in range(len(places) // size + 1)
    )


def _same_in_every_place(compute: _Trial, places: torch.Tensor) -> bool:
    """Whether rows that are moved, and one that is everywhere, come out with the same bits."""
    whole = compute(places)
    moved = (compute(places.roll(by)).roll(-by, 0) for by in range(1, len(places)))
    alone = (compute(torch.full_like(places, place)) for place in (0, len(places) - 1))
    return all(torch.equal(one, whole) for one in moved) and all(
        torch.equal(one, whole[[place]].expand_as(one))
        for one, place in zip(alone, (0, len(places) - 1), strict=True)
    )


def _attention_is_the_same(llama: Llama, tiles: Tiles, rows: Callable[..., torch.Tensor]) -> bool:
    """One query in every place of every look of a product, among others and other contexts."""
    c, size = llama.config, tiles.positions
    shape = tiles.looks, tiles.queries
    num = tiles.looks * tiles.queries
    query = rows(num, c.num_heads, c.head_dim)
    kv = rows(size * tiles.looks, 2, c.num_kv_heads, c.head_dim)
    order = torch.arange(num, device=llama.device)
    stretches = torch.arange(len(kv), device=llama.device).view(tiles.looks, size)
    found: list[torch.Tensor] = []
    for place in range(num):
        # Row 0 and the first stretch come to this place; the others move on with it.
        look, within = divmod(place, tiles.queries)
        at = order.roll(within).view(shape).roll(look, 0)
        seen = (at + size // 2).clamp(max=size)
        made = Look(at, stretches.roll(look, 0), seen).placed(c.num_kv_heads, num)
        state = Attend(query, c.num_kv_heads)
        for _ in range(2):  # the second time there is something to merge with
            state.look(made, kv)
        found.append(state.result()[0])
    return all(torch.equal(one, found[0]) for one in found)
