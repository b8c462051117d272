"""Turns scripts into traces, and drawn items into the views they need.

Views are drawn once and kept as 64 x 64 pixels; `page` is a whole picture of 16 tokens, `patch` a
crop or tile of 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cogitate.evals.items import Item
from cogitate.evals.render import Pixels
from PIL import Image

from mini import tokenizer as names
from mini.model import CROP_TOKENS, WHOLE_TOKENS
from mini.scripts import Piece
from mini.scripts import View as Wanted
from mini.traces import Trace, View, Writer
from mini.views import VIEW_PX, whole_view

FILTER = Image.Resampling.BILINEAR


def view_of(item: Item, wanted: Wanted) -> Pixels:
    """Cuts and resizes a view as the vision-encoder does: by boxes in per mille."""
    image = Image.fromarray(item.pictures[wanted.picture])
    if wanted.box is None:
        return whole_view(image)
    x0, y0, x1, y1 = (round(10 * edge) for edge in wanted.box)
    width, height = image.size
    box = (round(width * x0 / 1000), round(height * y0 / 1000),
           round(width * x1 / 1000), round(height * y1 / 1000))  # fmt: skip
    return np.asarray(image.crop(box).resize((VIEW_PX, VIEW_PX), FILTER), np.uint8)


def trace_of(writer: Writer, pieces: Sequence[Piece], starts: tuple[int, int] = (0, 0)) -> Trace:
    """Writes a script as tokens; its views are numbered on from `starts`, pages and patches."""
    trace = Trace()
    page, patch = starts
    for piece in pieces:
        if piece.view is None:
            if piece.text:
                writer.put(trace, piece.text, own=piece.own)
            continue
        is_whole = piece.view.box is None
        index = page if is_whole else patch
        trace.views.append(View("page" if is_whole else "patch", index, len(trace.ids)))
        count = WHOLE_TOKENS if is_whole else CROP_TOKENS
        trace.ids.extend([writer.special[names.IMAGE]] * count)
        trace.own.extend([False] * count)
        page, patch = page + is_whole, patch + (not is_whole)
    return trace


def views_of(item: Item, pieces: Sequence[Piece]) -> tuple[list[Pixels], list[Pixels]]:
    """Returns the pages and the patches of a script, in order."""
    wanted = [piece.view for piece in pieces if piece.view is not None]
    pages = [view_of(item, one) for one in wanted if one.box is None]
    return pages, [view_of(item, one) for one in wanted if one.box is not None]
