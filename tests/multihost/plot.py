"""Bytes between the sites and silence in the streams, over time. Needs matplotlib."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.multihost.load import Load
from tests.multihost.recorder import Recorder
from tests.multihost.scenes import LIMIT_OF_GAP_S, Mark

_COLOURS: Final = ("#1f6f8b", "#7db3c6", "#b0562a", "#dba98c", "#4b7f3a", "#a5c79a")
# Less is no silence worth a mark.
_LEAST_S: Final = 0.02


def draw(path: Path, title: str, load: Load, marks: Sequence[Mark], recorder: Recorder) -> None:
    """Writes the picture; shaded is where something was done."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(11, 6.4), sharex=True)
    begun = load.begun_at
    middles = [(a + b) / 2 - begun for a, b in itertools.pairwise(recorder.times)]
    spans = [b - a for a, b in itertools.pairwise(recorder.times)]
    for (pair, totals), colour in zip(sorted(recorder.totals.items()), _COLOURS, strict=False):
        rates = [
            (b - a) / s / 1e3 for (a, b), s in zip(itertools.pairwise(totals), spans, strict=True)
        ]
        upper.plot(middles, rates, lw=0.9, color=colour, label=pair)
    upper.set_ylabel("kB/s between sites")
    upper.legend(fontsize=8, ncol=6, frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
    gaps = [gap for story in load.ended for gap in story.gaps() if gap.s > _LEAST_S]
    lower.plot([g.since - begun for g in gaps], [g.s for g in gaps], ".", ms=3, color=_COLOURS[0])
    lower.axhline(LIMIT_OF_GAP_S, color="#999999", lw=0.8, ls="--")
    lower.set_ylabel("silence in a stream, s")
    lower.set_xlabel("s")
    for axes in (upper, lower):
        _shade(axes, marks, begun)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.02, ha="left", size=11)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _shade(axes: Any, marks: Sequence[Mark], begun: float) -> None:
    for mark in marks:
        if mark.what not in ("undisturbed", "traffic"):
            until = mark.more.get("healed_at") or mark.at + mark.more.get("serves_s", 0.0)
            axes.axvspan(
                mark.at - begun, max(until, mark.at + 0.1) - begun, color="#b0562a", alpha=0.12
            )
