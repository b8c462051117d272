"""Questions for tools nobody has seen before: read how they are called, call the right one.

An item lists the signatures of a few tools, as an MCP server may offer them; one of them answers.
What it is asked about stands in the question or on a card.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np
from cogitate.evals import nouns
from cogitate.evals.cards import draw_labels, render_labels
from cogitate.evals.checks import says
from cogitate.evals.grammar import Grammar
from cogitate.evals.items import Item, Read, Style, Use
from cogitate.evals.render import COLOUR_NAMES
from cogitate.evals.sheets import price

SERVERS = tuple(
    "shop lab city stock office library museum school garage bank club farm harbor archive hotel "
    "clinic studio market depot post theatre airport kitchen warehouse campus".split()
)
TOOLS = tuple(
    "price level owner phone hours weight code rating address status age size floor score limit "
    "stock rate date author room height discount seller origin".split()
)
ARGUMENTS = tuple("name item key place word id query title subject entry label target".split())
MOST_TOOLS = 4
PICTURE_SHARE = 0.4

_RULES = {
    "lead": "[|please, |quick question: |tell me: |so, |now, ]",
    "which": "[{tool}|{server} {tool}|{server}'s {tool}|{tool} in the {server}]",
    "ask": (
        "[<lead>what is the <which> of {of}?|<lead>what does {server}.{tool} say [about|of|for] "
        "{of}?|[ask|use|call|try] {server}.{tool} [for|about|with] {of}.|[look up|find|get|tell me"
        "|give me] the <which> [of|for] {of}.|<lead>which <which> does {of} have?|[can|could] you "
        "[look up|find|get] the <which> of {of}?|the <which> of {of}[?|, please.]]"
    ),
}


@cache
def phrase() -> Grammar:
    """Returns the grammar of these questions."""
    return Grammar("<ask>", _RULES)


def signature(name: str, argument: str) -> str:
    """Writes how a tool is called."""
    return f"{name}({argument})"


def draw_item(rng: np.random.Generator, style: Style) -> Item:
    """Draws some tools, and a question for one of them."""
    known = [nouns.part(words, held_out=style.held_out) for words in (SERVERS, TOOLS)]
    count = int(rng.integers(1, MOST_TOOLS + 1))
    servers = [str(rng.choice(known[0])) for _ in range(count)]
    # Tools differ by their own name, so that the question need not name the server.
    tools = [known[1][i] for i in rng.permutation(len(known[1]))[:count]]
    arguments = [str(rng.choice(ARGUMENTS)) for _ in tools]
    names = [f"{a}.{b}" for a, b in zip(servers, tools, strict=False)]
    i = int(rng.integers(len(names)))
    form = phrase().draw(rng, held_out=style.held_out)
    picture: tuple[np.ndarray, ...] = ()
    reads: tuple[Read, ...] = ()
    seen = ""
    if rng.random() < PICTURE_SHARE:
        labels = draw_labels(rng, nouns.WORDS, held_out=style.held_out)
        colour = int(rng.choice(labels.single_colours))
        place = labels.colours.index(colour)
        pixels, boxes = render_labels(rng, labels, style).photo(rng, style.noise)
        picture, value = (pixels,), labels.words[place]
        reads = (Read(value, boxes["card", place]),)
        of, seen = (
            f"the {COLOUR_NAMES[colour]} card",
            labels.seen,
        )
    else:
        words = (nouns.WORDS, nouns.GOODS, nouns.PLACES, nouns.NAMES)[rng.integers(4)]
        of = value = nouns.draw(rng, words, 1, held_out=style.held_out)[0]
    told = _result(rng, style)
    return Item(
        "toolbox.call",
        form.format(server=servers[i], tool=tools[i], of=of),
        f"It is {told}.",
        partial(says, truth=told),
        pictures=picture,
        reads=reads,
        uses=(Use(f'{names[i]}({arguments[i]}="{value}")', told),),
        tools=tuple(map(signature, names, arguments)),
        seen=seen,
    )


def _result(rng: np.random.Generator, style: Style) -> str:
    pick = rng.integers(3)
    if pick == 0:
        return price(int(rng.integers(5, 9000)))
    if pick == 1:
        return str(int(rng.integers(1, 1000)))
    return nouns.draw(rng, nouns.NAMES, 1, held_out=style.held_out)[0]
